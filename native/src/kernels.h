/* The inner loops. Included by the SIMD files, so it holds no function. Each kernel equals the scalar one, to the last bit. */
#ifndef EI_KERNELS_H
#define EI_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Ask for bytes that will be read soon: at an address, or there but into the second cache only, of which more requests can be
 * under way; or as far ahead in a long run as pays: the processor's own prefetcher stops at the end of each 4 KiB page, and
 * without this a scan of 38 MB takes twice as long. Asking for an address beyond the mapping does nothing. */
#if defined(__GNUC__)
#define EI_PREFETCH_NOW(address) __builtin_prefetch((const void *)(address))
#define EI_PREFETCH_FAR(address) __builtin_prefetch((const void *)(address), 0, 2)
#define EI_PREFETCH(address) __builtin_prefetch((const void *)((uintptr_t)(address) + 6144))
#else
#define EI_PREFETCH_NOW(address) ((void)(address))
#define EI_PREFETCH_FAR(address) ((void)(address))
#define EI_PREFETCH(address) ((void)(address))
#endif

/* Codes of 4 bits: `dims` is a multiple of 128, a row takes dims / 2 bytes, aligned to 64. Dimension i stands in byte
 * i / 128 * 64 + i % 64 of its row, in the low half of the byte if i % 128 < 64, else in the high half; 0 to 15 there means
 * -8 to 7.
 *
 * dots[j] = sum over i of query[i] * u[i] of row rows[j] (or of row j, where rows is NULL), with u as it stands, 0 to 15:
 * the caller takes off 8 * sum(query). query: dims bytes, -127 to 127. A sum is at most 4096 * 127 * 15 < 2^23. */
typedef void ei_dot4_fn(const int8_t *query, size_t dims, const uint8_t *codes, const uint32_t *rows, size_t n_rows,
                        int32_t *dots);

/* A query as integers of 16 bits, -32639 to 32639. Each kernel reads the form that suits it. */
typedef struct ei_query {
    const int16_t *wide; /* (dims,) */
    const int8_t *high;  /* (dims,): wide == 256 * high + low, all three signed */
    const int8_t *low;
    int64_t sum;         /* of wide */
} ei_query;

/* Both parts of one row: the sum over i of query->wide[i] * (256 * (u[i] - 8) + residual[i]), exactly. An accumulator of 32
 * bits takes every 8th product of 8 by 16 bits or fewer, so it stays below 512 * 128 * 32639 = 2,139,029,504 < 2^31. */
typedef int64_t ei_dot12_fn(const ei_query *query, size_t dims, const uint8_t *codes, const int8_t *residual);

ei_dot4_fn ei_dot4_scalar, ei_dot4_avx2, ei_dot4_avx512vnni, ei_dot4_neon, ei_dot4_neon_dotprod;
ei_dot12_fn ei_dot12_scalar, ei_dot12_avx2, ei_dot12_avx512vnni, ei_dot12_neon, ei_dot12_neon_dotprod;

typedef struct ei_kernel {
    const char *name;
    int (*runs_here)(void);
    ei_dot4_fn *dot4;
    ei_dot12_fn *dot12;
} ei_kernel;

const ei_kernel *ei_kernel_in_use(void);

#ifdef __cplusplus
}
#endif
#endif
