#include "kernels.h"

void ei_dot_scalar(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums)
{
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        int64_t sum = 0;
        for (size_t i = 0; i < row_bytes; i += 64) {
            int32_t part = 0; /* 64 products: far below 2^31 */
            for (size_t j = i; j < i + 64; j++) part += (int32_t)rows[j] * query->wide[j];
            sum += part;
        }
        sums[r] = sum;
    }
}
