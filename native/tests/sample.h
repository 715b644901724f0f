/* Vectors and small indexes for the tests. */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "check.h"

#include "edge_index.h"

static inline float draw_float(void) /* -1 to 1, with more near 0 */
{
    return ((float)draw_below(2001) + (float)draw_below(2001) + (float)draw_below(2001) - 3000) / 3000;
}

/* Vectors around `n_themes` points, as texts are around themes: a graph has something to follow. */
static inline float *themed_rows(size_t n, uint32_t dim, size_t n_themes, uint64_t from)
{
    float *rows = malloc(n * dim * sizeof *rows + 1), *themes = malloc(n_themes * dim * sizeof *themes);
    seed = 99; /* the same themes for rows and queries */
    for (size_t i = 0; i < n_themes * dim; i++) themes[i] = draw_float();
    seed = from;
    for (size_t r = 0; r < n; r++) {
        const float *theme = themes + (size_t)draw_below((uint32_t)n_themes) * dim;
        for (uint32_t i = 0; i < dim; i++) rows[r * dim + i] = theme[i] + 0.7f * draw_float();
    }
    free(themes);
    return rows;
}

static inline int64_t *some_ids(size_t n) /* ascending, with gaps, some below 0, none -1 */
{
    int64_t *ids = malloc(n * sizeof *ids + 1);
    for (size_t i = 0; i < n; i++) ids[i] = 3 * (int64_t)i - 11;
    return ids;
}

typedef struct file {
    uint8_t *bytes;
    size_t size;
} file;

typedef struct sink {
    uint8_t *bytes;
    size_t size, capacity;
    size_t full_at; /* refuse more than so many bytes; 0: never */
    uint64_t steps, stop_after; /* stop at this call of progress; 0: never */
    int fell_back;  /* progress went backwards, or beyond its total */
    uint64_t last;
} sink;

static inline int take_bytes(void *context, const void *bytes, size_t size)
{
    sink *to = context;
    if (to->full_at != 0 && to->size + size > to->full_at) return 1;
    if (to->size + size > to->capacity) {
        to->capacity = 2 * (to->size + size);
        to->bytes = realloc(to->bytes, to->capacity);
        if (to->bytes == NULL) abort();
    }
    if (size != 0) memcpy(to->bytes + to->size, bytes, size);
    to->size += size;
    return 0;
}

static inline int take_progress(void *context, uint64_t done, uint64_t total)
{
    sink *to = context;
    to->steps++;
    if (done < to->last || done > total) to->fell_back = 1;
    to->last = done;
    return to->stop_after != 0 && to->steps >= to->stop_after;
}

/* What was written, in memory of exactly its size, aligned as an index must be. */
static inline file settled(sink *from)
{
    const file f = {aligned(from->size), from->size};
    if (from->size != 0) memcpy(f.bytes, from->bytes, from->size);
    free(from->bytes);
    from->bytes = NULL;
    return f;
}

static inline ei_build_settings settings_for(uint32_t dim, ei_metric metric, int graph)
{
    const ei_build_settings settings = {dim, metric, 0, 0, 7, graph ? 1 : UINT32_MAX, 1};
    return settings;
}

/* Build from a base (or NULL), what of it to keep (or NULL), and rows that are handed over in blocks of uneven length. */
static inline file built_on(const ei_build_settings *settings, const ei_index *base, const uint8_t *keep, const int64_t *ids,
                            const float *rows, size_t n)
{
    ei_builder *builder = NULL;
    sink out = {0};
    size_t bad = 0;
    CHECK(ei_builder_new(settings, &builder) == EI_OK, "new, dim %u", (unsigned)settings->dim);
    if (base != NULL) CHECK(ei_builder_take(builder, base, keep) == EI_OK, "take");
    for (size_t at = 0, block = 1; at < n; at += block, block = 3 * block + 1) {
        if (block > n - at) block = n - at;
        CHECK(ei_builder_add(builder, ids + at, rows + at * settings->dim, block, &bad) == EI_OK, "rows from %zu", at);
    }
    const ei_status status = ei_builder_finish(builder, take_progress, take_bytes, &out);
    CHECK(status == EI_OK, "finish: %s", ei_status_text(status));
    CHECK(!out.fell_back, "progress went backwards or too far");
    ei_builder_free(builder);
    return settled(&out);
}

static inline file built(const ei_build_settings *settings, const int64_t *ids, const float *rows, size_t n)
{
    return built_on(settings, NULL, NULL, ids, rows, n);
}

static inline ei_index *opened(const file *f)
{
    ei_index *index = NULL;
    const ei_status status = ei_open(f->bytes, f->size, EI_CHECK_ALL, &index);
    CHECK(status == EI_OK, "open: %s", ei_status_text(status));
    if (status != EI_OK) exit(checks_done());
    return index;
}

#endif
