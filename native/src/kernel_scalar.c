/* The plain meaning of each kernel, and what runs where no other does. */
#include "kernels.h"

void ei_dot4_scalar(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                    int32_t *dots)
{
    for (size_t j = 0; j < n_rows; j++) {
        const uint8_t *row = codes + (rows ? rows[j] : j) * (dims / 2);
        int32_t dot = 0;
        for (size_t i = 0; i < dims; i += 128) {
            for (size_t b = 0; b < 64; b++) {
                const uint8_t pair = row[i / 2 + b];
                dot += query[i + b] * (pair & 15) + query[i + 64 + b] * (pair >> 4);
            }
        }
        dots[j] = dot;
    }
}

int64_t ei_dot12_scalar(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual)
{
    int64_t dot = 0;
    for (size_t i = 0; i < dims; i++) {
        const uint8_t pair = codes[i / 128 * 64 + i % 64];
        const int32_t u = i % 128 < 64 ? pair & 15 : pair >> 4;
        dot += query->wide[i] * (256 * (u - 8) + residual[i]); /* below 2^27 */
    }
    return dot;
}
