/* Compiled with -mavx512f -mavx512bw -mavx512vnni. Equals kernel_scalar.c: dpbusd adds 4 products of an unsigned byte by a
 * signed one to 32 bits, without rounding or saturating. */
#include "kernels.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) /* so that constant dims unroll the loops */

/* One step of a row: its low or its high halves (16 times them: that spares a shift) by 64 bytes of the query. */
INLINE __m512i step(__m512i sums, const uint8_t *codes, __m512i mask, __m512i query)
{
    return _mm512_dpbusd_epi32(sums, _mm512_and_si512(_mm512_load_si512(codes), mask), query);
}

/* Four rows at once share the loads of the query, and fold their 64 sums together. */
INLINE __m128i dot_of_four(const int8_t *query, size_t dims, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                           const uint8_t *d)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)240);
    __m512i sa = _mm512_setzero_si512(), sb = sa, sc = sa, sd = sa;
    for (size_t i = 0; i < dims; i += 128) {
        const __m512i q = _mm512_loadu_si512(query + i + 64);
        sa = step(sa, a + i / 2, high, q), sb = step(sb, b + i / 2, high, q);
        sc = step(sc, c + i / 2, high, q), sd = step(sd, d + i / 2, high, q);
    }
    sa = _mm512_srai_epi32(sa, 4), sb = _mm512_srai_epi32(sb, 4);
    sc = _mm512_srai_epi32(sc, 4), sd = _mm512_srai_epi32(sd, 4);
    for (size_t i = 0; i < dims; i += 128) {
        const __m512i q = _mm512_loadu_si512(query + i);
        sa = step(sa, a + i / 2, low, q), sb = step(sb, b + i / 2, low, q);
        sc = step(sc, c + i / 2, low, q), sd = step(sd, d + i / 2, low, q);
    }
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(sa, sb), _mm512_unpackhi_epi32(sa, sb)); /* a b a b ... */
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(sc, sd), _mm512_unpackhi_epi32(sc, sd));
    const __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)); /* a b c d ... */
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

INLINE int32_t dot_of_one(const int8_t *query, size_t dims, const uint8_t *row)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)240);
    __m512i of_low = _mm512_setzero_si512(), of_high = _mm512_setzero_si512();
    for (size_t i = 0; i < dims; i += 128) {
        of_low = step(of_low, row + i / 2, low, _mm512_loadu_si512(query + i));
        of_high = step(of_high, row + i / 2, high, _mm512_loadu_si512(query + i + 64));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(of_low, _mm512_srai_epi32(of_high, 4)));
}

INLINE void dot4(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows, int32_t *dots)
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
        _mm_storeu_si128((__m128i *)(dots + j), dot_of_four(query, dims, a, b, c, d));
    }
    for (; j < n_rows; j++) dots[j] = dot_of_one(query, dims, codes + (rows ? rows[j] : j) * row_bytes);
}

void ei_dot4_avx512vnni(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                        int32_t *dots)
{
    if (dims == 384) { /* the width of most small embedding models: the query stays in registers */
        dot4(query, 384, codes, rows, n_rows, dots);
    } else {
        dot4(query, dims, codes, rows, n_rows, dots);
    }
}

/* With the query as 256 * high + low, and the residual raised by 128 to be unsigned, the sum is
 * 65536 * high.u + 256 * (low.u + high.r) + low.r, less what the offsets 8 and 128 add. A lane takes at most 256 products
 * below 15 * 128 and as many below 255 * 128: far below 2^31. */
int64_t ei_dot12_avx512vnni(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual)
{
    const __m512i nibble = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)-128);
    __m512i top = _mm512_setzero_si512(), middle = top, bottom = top;
    for (size_t i = 0; i < dims; i += 64) {
        const __m512i pair = _mm512_load_si512(codes + i / 128 * 64);
        const __m512i u = _mm512_and_si512(i % 128 == 0 ? pair : _mm512_srli_epi16(pair, 4), nibble);
        const __m512i r = _mm512_xor_si512(_mm512_loadu_si512(residual + i), flip);
        const __m512i high = _mm512_loadu_si512(query->high + i), low = _mm512_loadu_si512(query->low + i);
        top = _mm512_dpbusd_epi32(top, u, high);
        middle = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(middle, u, low), r, high);
        bottom = _mm512_dpbusd_epi32(bottom, r, low);
    }
    return 65536 * (int64_t)_mm512_reduce_add_epi32(top) + 256 * (int64_t)_mm512_reduce_add_epi32(middle) +
           _mm512_reduce_add_epi32(bottom) - (256 * 8 + 128) * query->sum;
}
