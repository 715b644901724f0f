/* Compiled with -march=armv8.2-a+dotprod (Raspberry Pi 5, phones, Apple). Equals dot_scalar.c: sdot multiplies signed bytes,
 * so the query comes as two planes. A lane of either takes 1024 products below 128 * 128: far below 2^31. */
#include "kernels.h"

#include <arm_neon.h>

void ei_dot_neon_dotprod(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums)
{
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        int32x4_t high = vdupq_n_s32(0), low = vdupq_n_s32(0);
        for (size_t i = 0; i < row_bytes; i += 16) {
            if (i % 64 == 0) EI_PREFETCH(rows + i);
            const int8x16_t codes = vld1q_s8(rows + i);
            high = vdotq_s32(high, codes, vld1q_s8(query->high + i));
            low = vdotq_s32(low, codes, vld1q_s8(query->low + i));
        }
        sums[r] = 256 * vaddlvq_s32(high) + vaddlvq_s32(low);
    }
}
