/* Compiled with -march=armv8.2-a+dotprod (Raspberry Pi 5, phones, Apple). Equals kernel_scalar.c: sdot adds 4 products of
 * signed bytes to 32 bits. */
#include "kernels.h"

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

INLINE int32x4_t step(int32x4_t sum, const uint8_t *row, int8x16_t p, int8x16_t q)
{
    const uint8x16_t pair = vld1q_u8(row);
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(15))), p);
    return vdotq_s32(sum, vreinterpretq_s8_u8(vshrq_n_u8(pair, 4)), q);
}

/* Four rows at once share the loads of the query and fold their sums together. */
INLINE int32x4_t dot_of_four(const int8_t *query, size_t row_bytes, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                             const uint8_t *d)
{
    int32x4_t in_a = vdupq_n_s32(0), in_b = in_a, in_c = in_a, in_d = in_a;
    for (size_t line = 0; line < row_bytes; line += 64) {
        for (size_t at = line; at < line + 64; at += 16) {
            const int8x16_t p = vld1q_s8(query + line + at), q = vld1q_s8(query + line + at + 64);
            in_a = step(in_a, a + at, p, q), in_b = step(in_b, b + at, p, q);
            in_c = step(in_c, c + at, p, q), in_d = step(in_d, d + at, p, q);
        }
    }
    return vpaddq_s32(vpaddq_s32(in_a, in_b), vpaddq_s32(in_c, in_d));
}

INLINE int32_t dot_of_one(const int8_t *query, size_t row_bytes, const uint8_t *row)
{
    int32x4_t sum = vdupq_n_s32(0), sum_too = vdupq_n_s32(0); /* two chains, so that adds overlap */
    for (size_t line = 0; line < row_bytes; line += 64) {
        for (size_t at = line; at < line + 64; at += 32) {
            const int8_t *q = query + line + at;
            sum = step(sum, row + at, vld1q_s8(q), vld1q_s8(q + 64));
            sum_too = step(sum_too, row + at + 16, vld1q_s8(q + 16), vld1q_s8(q + 80));
        }
    }
    return vaddvq_s32(vaddq_s32(sum, sum_too));
}

void ei_dot4_neon_dotprod(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                          int32_t *dots)
{
    const size_t row_bytes = dims / 2;
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4) {
        const uint8_t *a, *b, *c, *d;
        if (rows != NULL) {
            a = codes + rows[j] * row_bytes, b = codes + rows[j + 1] * row_bytes;
            c = codes + rows[j + 2] * row_bytes, d = codes + rows[j + 3] * row_bytes;
        } else {
            a = codes + j * row_bytes, b = a + row_bytes, c = b + row_bytes, d = c + row_bytes;
            for (size_t at = 0; at < 4 * row_bytes; at += 64) EI_PREFETCH(a + at);
        }
        vst1q_s32(dots + j, dot_of_four(query, row_bytes, a, b, c, d));
    }
    for (; j < n_rows; j++) dots[j] = dot_of_one(query, row_bytes, codes + (rows ? rows[j] : j) * row_bytes);
}

/* The query as 256 * high + low. A lane takes at most 1024 products below 128 * 128 twice: far below 2^31. */
int64_t ei_dot12_neon_dotprod(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual)
{
    int32x4_t top = vdupq_n_s32(0), middle = vdupq_n_s32(0), bottom = vdupq_n_s32(0);
    for (size_t i = 0; i < dims; i += 16) {
        const uint8x16_t pair = vld1q_u8(codes + i / 128 * 64 + i % 64);
        const int8x16_t u = vreinterpretq_s8_u8(i % 128 < 64 ? vandq_u8(pair, vdupq_n_u8(15)) : vshrq_n_u8(pair, 4));
        const int8x16_t r = vld1q_s8(residual + i), high = vld1q_s8(query->high + i), low = vld1q_s8(query->low + i);
        top = vdotq_s32(top, u, high);
        middle = vdotq_s32(vdotq_s32(middle, u, low), r, high);
        bottom = vdotq_s32(bottom, r, low);
    }
    return 65536 * (int64_t)vaddvq_s32(top) + 256 * (int64_t)vaddvq_s32(middle) + vaddvq_s32(bottom) - 2048 * query->sum;
}
