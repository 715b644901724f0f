/* edge_index: an exact scan over int8 vectors in a checksummed, memory-mapped file (native/FORMAT.md).
 *
 * Ownership: the library never keeps what it is handed, with one exception: an ei_index points into the `file` bytes that
 * it was opened on, so these must stay readable and unchanged until ei_close(). Every output goes into memory of the caller.
 * Threads: every function may be called from any thread. An ei_index is read-only after ei_open(), so any number of threads
 * may search it at once; nobody may search it during or after ei_close(). ei_simd_select() must not run beside a search.
 * Failure: a call that does not return EI_OK has no effect beyond scribbling on its outputs. A malformed file is a status.
 */
#ifndef EDGE_INDEX_H
#define EDGE_INDEX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EI_MAX_DIM 4096u
#define EI_HEADER_BYTES 4096u  /* also the alignment of every section */
#define EI_CHECKSUM_BLOCK 64u  /* checksums run over whole blocks of this many bytes */
#define EI_N_SECTIONS 3        /* in the order of the file: codes, scales, ids */

typedef enum ei_status {
    EI_OK = 0,
    EI_ARGUMENT = 1,    /* an argument is out of its documented range */
    EI_MEMORY = 2,      /* out of memory */
    EI_NOT_INDEX = 3,   /* the file does not begin as an index does */
    EI_VERSION = 4,     /* a format version that this build does not read */
    EI_BYTE_ORDER = 5,  /* written, or read, on a machine of the other byte order */
    EI_SIZE = 6,        /* the file is cut short or has bytes too many */
    EI_DAMAGED = 7,     /* a checksum does not match, or a value cannot be */
    EI_SIMD = 8         /* this build or this processor has no such kernel */
} ei_status;

/* Return a short English text for a status. Static, never NULL. */
const char *ei_status_text(ei_status status);

/* ---- reading ---- */

typedef struct ei_index ei_index;

/* Check `size` bytes at `file` (aligned to 64) and open them as an index. The header and every value that a search trusts
 * are always checked; the checksums of the sections too, unless `verify` is 0. On EI_OK free *out with ei_close(). */
ei_status ei_open(const void *file, size_t size, int verify, ei_index **out);
void ei_close(ei_index *index); /* NULL is fine */

uint32_t ei_dim(const ei_index *index);
size_t ei_count(const ei_index *index);
size_t ei_ids_offset(const ei_index *index); /* where in the file the ids stand: int64, ascending, ei_count() of them */

/* Find the k rows with the largest inner product for each of n_queries queries ((n_queries, dim) floats, all finite).
 *
 * allow: NULL, or one byte for each row; rows whose byte is 0 are skipped.
 * threads: threads that share the scan, 1 to 64.
 * ids, scores: (n_queries, k), best first, ties by smaller id; places beyond the rows allowed hold -1 and -infinity. */
ei_status ei_search(const ei_index *index, const float *queries, size_t n_queries, size_t k, const uint8_t *allow,
                    unsigned threads, int64_t *ids, float *scores);

/* ---- writing: the caller streams the sections to a file, padded, and puts the header before them at the end ---- */

/* Bytes that one row of codes takes in the file: dim rounded up to a multiple of 64. */
size_t ei_row_bytes(uint32_t dim);

/* Quantise n rows: codes is (n, ei_row_bytes(dim)) with zeros after each row, scales is (n,). EI_ARGUMENT if a row holds a
 * value that is not finite, or nothing larger than 1e-30. */
ei_status ei_quantize(const float *rows, size_t n, uint32_t dim, int8_t *codes, float *scales);

/* A running checksum: begin, update with any number of multiples of EI_CHECKSUM_BLOCK bytes, end. */
typedef struct ei_checksum {
    uint64_t lanes[8];
} ei_checksum;
void ei_checksum_begin(ei_checksum *state);
ei_status ei_checksum_update(ei_checksum *state, const void *bytes, size_t size);
uint64_t ei_checksum_end(const ei_checksum *state);

/* Fill `header` (EI_HEADER_BYTES) for a file of count rows whose padded sections have these checksums. */
ei_status ei_header(uint32_t dim, uint64_t count, const uint64_t checksums[EI_N_SECTIONS], void *header);

/* ---- kernels ---- */

/* Use the named kernel (scalar, avx2, avx512vnni, neon, dotprod), or with NULL the best that this processor runs; that is
 * also the state before any call. All give bit-identical results. EI_SIMD: there is no such kernel here; nothing changes. */
ei_status ei_simd_select(const char *name);
const char *ei_simd_name(void); /* static */

#ifdef __cplusplus
}
#endif
#endif
