/* Compiled with -mavx512f -mavx512bw -mavx512vnni. Equals dot_scalar.c: dpbusd multiplies unsigned by signed bytes, so the
 * codes are raised by 128 (an XOR of the sign bit) and 128 * sum(query) is taken off at the end. A lane of `high` or `low`
 * takes 256 products below 255 * 128: far below 2^31. */
#include "kernels.h"

#include <immintrin.h>

void ei_dot_avx512vnni(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums)
{
    const __m512i flip = _mm512_set1_epi8((char)-128);
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
        for (size_t i = 0; i < row_bytes; i += 64) {
            EI_PREFETCH(rows + i);
            const __m512i codes = _mm512_xor_si512(_mm512_load_si512(rows + i), flip);
            high = _mm512_dpbusd_epi32(high, codes, _mm512_loadu_si512(query->high + i));
            low = _mm512_dpbusd_epi32(low, codes, _mm512_loadu_si512(query->low + i));
        }
        sums[r] = 256 * (int64_t)_mm512_reduce_add_epi32(high) + _mm512_reduce_add_epi32(low) - 128 * query->sum;
    }
}
