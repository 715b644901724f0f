/* For every 64-bit Arm (Raspberry Pi 4). Equals dot_scalar.c: codes are widened to 16 bits and multiplied into 32 bits. */
#include "kernels.h"

#include <arm_neon.h>

void ei_dot_neon(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums)
{
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0); /* 8 lanes together: every 8th product, see kernels.h */
        for (size_t i = 0; i < row_bytes; i += 16) {
            if (i % 64 == 0) EI_PREFETCH(rows + i);
            const int8x16_t codes = vld1q_s8(rows + i);
            const int16x8_t a = vmovl_s8(vget_low_s8(codes)), b = vmovl_high_s8(codes);
            const int16x8_t p = vld1q_s16(query->wide + i), q = vld1q_s16(query->wide + i + 8);
            low = vmlal_s16(low, vget_low_s16(a), vget_low_s16(p));
            high = vmlal_high_s16(high, a, p);
            low = vmlal_s16(low, vget_low_s16(b), vget_low_s16(q));
            high = vmlal_high_s16(high, b, q);
        }
        sums[r] = vaddlvq_s32(low) + vaddlvq_s32(high);
    }
}
