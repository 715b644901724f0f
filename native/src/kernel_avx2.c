/* Compiled with -mavx2. Equals kernel_scalar.c: maddubs adds two products of an unsigned byte by a signed one to 16 bits,
 * and 15 * 127 * 2 does not saturate. */
#include "kernels.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) /* so that constant dims unroll the loops */

typedef struct parts {
    __m256i low, high; /* 16 sums of 16 bits each: 8 steps of 15 * 127 * 2 find room */
} parts;

INLINE parts step(parts sums, const uint8_t *codes, __m256i p, __m256i q)
{
    const __m256i pair = _mm256_load_si256((const __m256i *)codes), nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(pair, nibble), high = _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble);
    sums.low = _mm256_add_epi16(sums.low, _mm256_maddubs_epi16(low, p));
    sums.high = _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(high, q));
    return sums;
}

INLINE __m256i widened(__m256i sum, parts sums)
{
    const __m256i ones = _mm256_set1_epi16(1);
    return _mm256_add_epi32(
        sum, _mm256_add_epi32(_mm256_madd_epi16(sums.low, ones), _mm256_madd_epi16(sums.high, ones)));
}

/* Four rows at once share the loads of the query, and fold their 32 sums together. */
INLINE __m128i dot_of_four(const int8_t *query, size_t row_bytes, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                           const uint8_t *d)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum_a = zero, sum_b = zero, sum_c = zero, sum_d = zero;
    for (size_t from = 0; from < row_bytes; from += 256) {
        const size_t to = row_bytes - from < 256 ? row_bytes : from + 256;
        parts in_a = {zero, zero}, in_b = in_a, in_c = in_a, in_d = in_a;
        for (size_t line = from; line < to; line += 64) {
            for (size_t at = line; at < line + 64; at += 32) {
                const __m256i p = _mm256_loadu_si256((const __m256i *)(query + line + at));
                const __m256i q = _mm256_loadu_si256((const __m256i *)(query + line + at + 64));
                in_a = step(in_a, a + at, p, q), in_b = step(in_b, b + at, p, q);
                in_c = step(in_c, c + at, p, q), in_d = step(in_d, d + at, p, q);
            }
        }
        sum_a = widened(sum_a, in_a), sum_b = widened(sum_b, in_b);
        sum_c = widened(sum_c, in_c), sum_d = widened(sum_d, in_d);
    }
    const __m256i abcd = _mm256_hadd_epi32(_mm256_hadd_epi32(sum_a, sum_b), _mm256_hadd_epi32(sum_c, sum_d)); /* twice */
    return _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
}

INLINE int32_t dot_of_one(const int8_t *query, size_t row_bytes, const uint8_t *row)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t line = 0; line < row_bytes; line += 64) {
        parts in = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (size_t at = line; at < line + 64; at += 32) {
            const __m256i p = _mm256_loadu_si256((const __m256i *)(query + line + at));
            const __m256i q = _mm256_loadu_si256((const __m256i *)(query + line + at + 64));
            in = step(in, row + at, p, q);
        }
        sum = widened(sum, in);
    }
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

INLINE void dot4(const int8_t *query, size_t row_bytes, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                 int32_t *dots)
{
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
        _mm_storeu_si128((__m128i *)(dots + j), dot_of_four(query, row_bytes, a, b, c, d));
    }
    for (; j < n_rows; j++) dots[j] = dot_of_one(query, row_bytes, codes + (rows ? rows[j] : j) * row_bytes);
}

void ei_dot4_avx2(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                  int32_t *dots)
{
    if (dims == 384) { /* the width of most small embedding models */
        dot4(query, 384 / 2, codes, rows, n_rows, dots);
    } else {
        dot4(query, dims / 2, codes, rows, n_rows, dots);
    }
}

static int64_t total(__m256i sums)
{
    const __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(sums)),
                                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sums, 1)));
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

int64_t ei_dot12_avx2(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual)
{
    const __m128i nibble = _mm_set1_epi8(15);
    __m256i of_codes = _mm256_setzero_si256(), of_residual = _mm256_setzero_si256(); /* lanes: see kernels.h */
    for (size_t i = 0; i < dims; i += 16) {
        const __m128i pair = _mm_load_si128((const __m128i *)(codes + i / 128 * 64 + i % 64));
        const __m128i u = _mm_and_si128(i % 128 < 64 ? pair : _mm_srli_epi16(pair, 4), nibble);
        const __m256i q = _mm256_loadu_si256((const __m256i *)(query->wide + i));
        const __m256i r = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(residual + i)));
        of_codes = _mm256_add_epi32(of_codes, _mm256_madd_epi16(_mm256_cvtepu8_epi16(u), q));
        of_residual = _mm256_add_epi32(of_residual, _mm256_madd_epi16(r, q));
    }
    return 256 * (total(of_codes) - 8 * query->sum) + total(of_residual);
}
