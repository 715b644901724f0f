/* edge_index: nearest vectors, from an immutable, checksummed file that is mapped and searched in place (native/FORMAT.md).
 *
 * A file holds rows: an id and a vector each, the vector as 4-bit codes (read while searching), an 8-bit residual (read for
 * the few best), and, for many rows, a navigable graph. Few rows or few allowed ones are searched exhaustively.
 *
 * Ownership: the library never keeps what it is handed, with two exceptions: an ei_index points into the `file` bytes that
 * it was opened on, so these must stay readable and unchanged until ei_close(), and an ei_builder uses the ei_index that it
 * took rows from. Every output goes into memory of the caller.
 * Threads: every function may be called from any thread. Any number of threads may search an ei_index at once; nobody may
 * search it during or after ei_close(). An ei_builder is used by one thread at a time. ei_simd_select() must not run beside
 * a search or a build.
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
#define EI_MAX_ROWS 0x1ffffffu
#define EI_MAX_LINKS 128u
#define EI_MAX_EF 65536u
#define EI_MAX_THREADS 64u
#define EI_ALIGNMENT 64u /* of the bytes that an index is opened on, in memory */

typedef enum ei_status {
    EI_OK = 0,
    EI_ARGUMENT = 1,    /* an argument is out of its documented range */
    EI_MEMORY = 2,      /* out of memory */
    EI_NOT_INDEX = 3,   /* the file does not begin as an index does */
    EI_VERSION = 4,     /* a format version that this build does not read */
    EI_BYTE_ORDER = 5,  /* written, or read, on a machine of the other byte order */
    EI_SIZE = 6,        /* the file is cut short or has bytes too many */
    EI_DAMAGED = 7,     /* a checksum does not match, or a value cannot be */
    EI_SIMD = 8,        /* this build or this processor has no such kernel */
    EI_CANCELLED = 9,   /* a callback asked to stop */
    EI_VECTOR = 10      /* a vector holds a value that is not finite, or is zero where a direction is needed */
} ei_status;

/* Return a short English text for a status. Static, never NULL. */
const char *ei_status_text(ei_status status);

typedef enum ei_metric {
    EI_COSINE = 1,        /* score: the cosine, -1 to 1; vectors of any length but zero */
    EI_INNER_PRODUCT = 2, /* score: the inner product */
    EI_L2 = 3             /* score: minus the squared distance */
} ei_metric;

/* ---- reading ---- */

typedef struct ei_index ei_index;

typedef enum ei_check {
    EI_CHECK_HEADER = 0, /* the header only; what a search reads besides is checked for being in range, not for being true */
    EI_CHECK_SEARCH = 1, /* also all that a search reads: the hot part here, residuals when they are first read */
    EI_CHECK_ALL = 2     /* also every residual, here */
} ei_check;

/* Check `size` bytes at `file` and open them as an index; check is an ei_check. On EI_OK free *out with ei_close(). Whatever the bytes and
 * whichever check, no search reads outside of them or fails to end. */
ei_status ei_open(const void *file, size_t size, uint32_t check, ei_index **out);
void ei_close(ei_index *index); /* NULL is fine */

typedef struct ei_info {
    uint64_t count;
    uint64_t file_bytes;
    uint64_t hot_bytes;  /* the first so many bytes of the file are what a search reads most of */
    uint64_t ids_offset; /* where in the file the ids stand: int64, ascending, `count` of them */
    uint64_t n_links;    /* in the whole graph; 0 if there is none */
    uint32_t dim;
    uint32_t metric;     /* an ei_metric */
    uint32_t max_links;  /* of one row */
    uint32_t ef_build;
} ei_info;
void ei_get_info(const ei_index *index, ei_info *info);

/* As ei_get_info(), from the first `size` (at least EI_HEADER_BYTES) bytes of a file only; checks these. */
#define EI_HEADER_BYTES 4096u
ei_status ei_peek(const void *header, size_t size, ei_info *info);

typedef enum ei_way {
    EI_AUTO = 0, /* the cheaper of the two by the cost model, and always EI_SCAN where EI_GRAPH finds fewer than k */
    EI_SCAN = 1, /* every allowed row: exact up to the rounding of the stored vectors */
    EI_GRAPH = 2 /* the graph (or EI_SCAN, if the file has none) */
} ei_way;

typedef struct ei_search_settings {
    uint32_t k;           /* at least 1 */
    uint32_t ef;          /* rows kept in sight while following the graph; 0: the default, larger finds more */
    uint32_t way;         /* an ei_way */
    uint32_t threads;     /* 1 to EI_MAX_THREADS: they share the queries, or the rows of a scan */
    const uint8_t *allow; /* NULL, or a bit for each row, (count + 7) / 8 bytes: row r is bit r % 8 of byte r / 8 */
} ei_search_settings;

/* Find the k best rows for each of n_queries queries ((n_queries, dim) floats, all finite, for EI_COSINE not zero).
 *
 * ids, scores: (n_queries, k), best first, ties by smaller id; places beyond the rows allowed hold -1 and -infinity. No
 * place is left empty while an allowed row is left out. */
ei_status ei_search(const ei_index *index, const float *queries, size_t n_queries, const ei_search_settings *settings,
                    int64_t *ids, float *scores);

/* Reconstruct rows (not ids) as floats, (n, dim): what the file knows of the vectors; for EI_COSINE scaled to length 1. */
ei_status ei_vectors(const ei_index *index, const uint32_t *rows, size_t n, float *out);

/* ---- building ---- */

typedef struct ei_builder ei_builder;

typedef struct ei_build_settings {
    uint32_t dim;
    uint32_t metric;    /* an ei_metric */
    uint32_t max_links; /* of one row, 4 to EI_MAX_LINKS; 0: the default. Larger finds more for the same ef, and takes more of the file */
    uint32_t ef_build;  /* rows kept in sight while looking for a row's neighbours; 0: the default */
    uint64_t seed;
    uint32_t graph_from; /* build a graph for so many rows or more; 0: the default; UINT32_MAX: never */
    uint32_t threads;    /* 1 to EI_MAX_THREADS; the file does not depend on it */
} ei_build_settings;

ei_status ei_builder_new(const ei_build_settings *settings, ei_builder **out);
void ei_builder_free(ei_builder *builder); /* NULL is fine */

/* Before anything else is added: take over the rows of an index of the same dim and metric, and its graph if it has one.
 * `from` must have been opened with EI_CHECK_SEARCH or EI_CHECK_ALL, and stay open until ei_builder_finish() is through.
 * keep: NULL, or a bit for each row as in ei_search_settings; the others are left out, and links around them mended. */
ei_status ei_builder_take(ei_builder *builder, const ei_index *from, const uint8_t *keep);

/* Add n rows, (n, dim) floats; ids ascend strictly, through all calls. EI_VECTOR: *bad is the row that is no vector, and
 * none of the n was added. */
ei_status ei_builder_add(ei_builder *builder, const int64_t *ids, const float *rows, size_t n, size_t *bad);

/* Called now and then, and at the end, from the thread that called in; not 0 stops the work. */
typedef int (*ei_progress)(void *context, uint64_t done, uint64_t total);
/* Called from the thread that called in: write the next `size` bytes of the file; not 0 means that it failed, and stops the work. */
typedef int (*ei_write)(void *context, const void *bytes, size_t size);

/* Build the graph and write the whole file. After EI_OK or not, the builder can only be freed. progress: or NULL. */
ei_status ei_builder_finish(ei_builder *builder, ei_progress progress, ei_write write, void *context);

/* ---- kernels ---- */

/* Use the named kernel (scalar, avx2, avx512vnni, neon, dotprod), or with NULL the best that this processor runs; that is
 * also the state before any call. All give bit-identical results. EI_SIMD: there is no such kernel here; nothing changes. */
ei_status ei_simd_select(const char *name);
const char *ei_simd_name(void); /* static */

#ifdef __cplusplus
}
#endif
#endif
