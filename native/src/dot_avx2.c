/* Compiled with -mavx2. Equals dot_scalar.c: codes are widened to 16 bits, and madd adds pairs of products in 32 bits. */
#include "kernels.h"

#include <immintrin.h>

void ei_dot_avx2(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums)
{
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256(); /* two chains, so that adds overlap */
        for (size_t i = 0; i < row_bytes; i += 32) {
            EI_PREFETCH(rows + i);
            const __m256i a = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(rows + i)));
            const __m256i b = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(rows + i + 16)));
            const __m256i *q = (const __m256i *)(query->wide + i);
            even = _mm256_add_epi32(even, _mm256_madd_epi16(a, _mm256_loadu_si256(q)));
            odd = _mm256_add_epi32(odd, _mm256_madd_epi16(b, _mm256_loadu_si256(q + 1)));
        }
        const __m256i both = _mm256_add_epi32(even, odd); /* each lane: every 8th product, see kernels.h */
        const __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(both)),
                                              _mm256_cvtepi32_epi64(_mm256_extracti128_si256(both, 1)));
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        sums[r] = _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
    }
}
