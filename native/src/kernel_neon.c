/* For every 64-bit Arm (Raspberry Pi 4). Equals kernel_scalar.c: bytes are multiplied into 16 bits, where 16 products of
 * 15 * 127 find room. */
#include "kernels.h"

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

typedef struct parts {
    int16x8_t low, low_too, high, high_too;
} parts;

INLINE parts step(parts sums, const uint8_t *row, int8x16_t p, int8x16_t q)
{
    const uint8x16_t pair = vld1q_u8(row);
    const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(15)));
    const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pair, 4));
    sums.low = vmlal_s8(sums.low, vget_low_s8(low), vget_low_s8(p));
    sums.low_too = vmlal_high_s8(sums.low_too, low, p);
    sums.high = vmlal_s8(sums.high, vget_low_s8(high), vget_low_s8(q));
    sums.high_too = vmlal_high_s8(sums.high_too, high, q);
    return sums;
}

INLINE int32x4_t widened(int32x4_t sum, parts sums)
{
    return vpadalq_s16(vpadalq_s16(vpadalq_s16(vpadalq_s16(sum, sums.low), sums.low_too), sums.high), sums.high_too);
}

/* Four rows at once share the loads of the query and fold their sums together. */
INLINE int32x4_t dot_of_four(const int8_t *query, size_t row_bytes, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                             const uint8_t *d)
{
    const int16x8_t zero = vdupq_n_s16(0);
    int32x4_t sum_a = vdupq_n_s32(0), sum_b = sum_a, sum_c = sum_a, sum_d = sum_a;
    for (size_t from = 0; from < row_bytes; from += 256) {
        const size_t to = row_bytes - from < 256 ? row_bytes : from + 256;
        parts in_a = {zero, zero, zero, zero}, in_b = in_a, in_c = in_a, in_d = in_a;
        for (size_t line = from; line < to; line += 64) {
            for (size_t at = line; at < line + 64; at += 16) {
                const int8x16_t p = vld1q_s8(query + line + at), q = vld1q_s8(query + line + at + 64);
                in_a = step(in_a, a + at, p, q), in_b = step(in_b, b + at, p, q);
                in_c = step(in_c, c + at, p, q), in_d = step(in_d, d + at, p, q);
            }
        }
        sum_a = widened(sum_a, in_a), sum_b = widened(sum_b, in_b);
        sum_c = widened(sum_c, in_c), sum_d = widened(sum_d, in_d);
    }
    return vpaddq_s32(vpaddq_s32(sum_a, sum_b), vpaddq_s32(sum_c, sum_d));
}

INLINE int32_t dot_of_one(const int8_t *query, size_t row_bytes, const uint8_t *row)
{
    const int16x8_t zero = vdupq_n_s16(0);
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t line = 0; line < row_bytes; line += 64) {
        parts in = {zero, zero, zero, zero};
        for (size_t at = line; at < line + 64; at += 16) {
            in = step(in, row + at, vld1q_s8(query + line + at), vld1q_s8(query + line + at + 64));
        }
        sum = widened(sum, in);
    }
    return vaddvq_s32(sum);
}

void ei_dot4_neon(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
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

int64_t ei_dot12_neon(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual)
{
    int32x4_t of_codes = vdupq_n_s32(0), low = vdupq_n_s32(0), high = vdupq_n_s32(0); /* low, high: of the residual */
    for (size_t i = 0; i < dims; i += 16) {
        const uint8x16_t pair = vld1q_u8(codes + i / 128 * 64 + i % 64);
        const uint8x16_t u = i % 128 < 64 ? vandq_u8(pair, vdupq_n_u8(15)) : vshrq_n_u8(pair, 4);
        const int16x8_t c = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(u))), d = vreinterpretq_s16_u16(vmovl_high_u8(u));
        const int8x16_t r = vld1q_s8(residual + i);
        const int16x8_t a = vmovl_s8(vget_low_s8(r)), b = vmovl_high_s8(r);
        const int16x8_t p = vld1q_s16(query->wide + i), q = vld1q_s16(query->wide + i + 8);
        of_codes = vmlal_s16(of_codes, vget_low_s16(c), vget_low_s16(p));
        of_codes = vmlal_high_s16(of_codes, c, p);
        of_codes = vmlal_s16(of_codes, vget_low_s16(d), vget_low_s16(q));
        of_codes = vmlal_high_s16(of_codes, d, q);
        low = vmlal_s16(low, vget_low_s16(a), vget_low_s16(p));
        high = vmlal_high_s16(high, a, p);
        low = vmlal_s16(low, vget_low_s16(b), vget_low_s16(q));
        high = vmlal_high_s16(high, b, q);
    }
    return 256 * (vaddlvq_s32(of_codes) - 8 * query->sum) + vaddlvq_s32(low) + vaddlvq_s32(high);
}
