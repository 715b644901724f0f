/* The inner loop: one query against consecutive rows of codes. Included by the SIMD files, so it holds no function. */
#ifndef EI_KERNELS_H
#define EI_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A query as integers of 16 bits, -32639 to 32639, zero after dim. Each kernel reads the form that suits it. */
typedef struct ei_query {
    const int16_t *wide; /* (row_bytes,) */
    const int8_t *high;  /* (row_bytes,): wide == 256 * high + low, all three signed */
    const int8_t *low;
    int64_t sum;         /* of wide */
} ei_query;

/* Ask for the bytes that will be read soon. The processor's own prefetcher stops at the end of each 4 KiB page, and without
 * this a scan of 38 MB takes twice as long. Asking for an address beyond the mapping does nothing. */
#if defined(__GNUC__)
#define EI_PREFETCH(address) __builtin_prefetch((const void *)((uintptr_t)(address) + 6144))
#else
#define EI_PREFETCH(address) ((void)0)
#endif

/* sums[r] = sum over i of rows[r * row_bytes + i] * query->wide[i], exactly. row_bytes is a multiple of 64, at most 4096;
 * rows are aligned to 64. An accumulator of 32 bits takes every 8th product or fewer, so it stays below
 * 512 * 128 * 32639 = 2,139,029,504 < 2^31, whatever the file holds. */
typedef void ei_dot_fn(const ei_query *query, const int8_t *rows, size_t row_bytes, size_t n_rows, int64_t *sums);

ei_dot_fn ei_dot_scalar, ei_dot_avx2, ei_dot_avx512vnni, ei_dot_neon, ei_dot_neon_dotprod;

ei_dot_fn *ei_dot(void); /* the kernel in use */

#ifdef __cplusplus
}
#endif
#endif
