/* Whatever bytes an index is opened on: no crash, no read outside of them, no end that is not reached, no status that
 * edge_index.h does not name. Built as a libFuzzer target, or with replay.c, which runs a corpus and mutations of it. */
#include "packed.h"

#include "edge_index.h"

#define MUST(condition)                                                    \
    do {                                                                   \
        if (!(condition)) {                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                       \
        }                                                                  \
    } while (0)

enum { K = 5 };

extern unsigned long n_opened;
unsigned long n_opened; /* for replay.c, which would test little if nearly all were refused */

static void search(const ei_index *index, const float *query, ei_way way, const uint8_t *allow)
{
    const ei_search_settings settings = {K, way == EI_GRAPH ? 17 : 0, way, 1, allow};
    int64_t ids[2 * K];
    float scores[2 * K];
    const ei_status status = ei_search(index, query, 2, &settings, ids, scores);
    MUST(status == EI_OK || status == EI_DAMAGED || status == EI_MEMORY);
}

static int drop(void *context, const void *bytes, size_t size)
{
    size_t *written = context;
    (void)bytes;
    *written += size;
    return 0;
}

/* Merge it into another, as one that comes from elsewhere would be. */
static void merge(const ei_index *index, const ei_info *info, const float *row)
{
    const ei_build_settings settings = {info->dim, (ei_metric)info->metric, 8, 16, 1, 1, 1};
    ei_builder *builder = NULL;
    MUST(ei_builder_new(&settings, &builder) == EI_OK);
    if (ei_builder_take(builder, index, NULL) == EI_OK) {
        const int64_t id = INT64_MAX;
        size_t bad = 0, written = 0;
        if (ei_builder_add(builder, &id, row, 1, &bad) == EI_OK) ei_builder_finish(builder, NULL, drop, &written);
    }
    ei_builder_free(builder);
}

static void exercise(const uint8_t *file, size_t size, ei_check check)
{
    ei_index *index = NULL;
    ei_info info;
    if (ei_open(file, size, check, &index) != EI_OK) {
        MUST(index == NULL);
        return;
    }
    n_opened++;
    ei_get_info(index, &info);
    MUST(info.dim >= 1 && info.dim <= EI_MAX_DIM && info.metric >= 1 && info.metric <= 3);
    MUST(info.file_bytes == size && info.hot_bytes <= size && info.ids_offset % 8 == 0);
    MUST(info.ids_offset <= size && info.count <= (size - info.ids_offset) / 8);

    float *query = malloc(2 * info.dim * sizeof *query), *row = malloc(info.dim * sizeof *row);
    uint8_t *allow = calloc((size_t)info.count / 8 + 1, 1);
    for (uint32_t i = 0; i < 2 * info.dim; i++) query[i] = (float)(i % 7) - 2.5f;
    for (uint64_t r = 0; r < info.count; r += 3) allow[r / 8] |= (uint8_t)(1 << r % 8);
    for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
        search(index, query, way, NULL);
        search(index, query, way, allow);
    }
    for (uint32_t r = 0; r < info.count; r++) {
        const ei_status status = ei_vectors(index, &r, 1, row);
        MUST(status == EI_OK || status == EI_DAMAGED || status == EI_MEMORY);
    }
    MUST(ei_vectors(index, &(uint32_t){(uint32_t)info.count}, 1, row) == EI_ARGUMENT);
    if (info.count <= 512) merge(index, &info, query);
    free(query);
    free(row);
    free(allow);
    ei_close(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t file_size;
    uint8_t *file = unpacked(data, size, &file_size);
    ei_info info;
    const ei_status peeked = ei_peek(file, file_size, &info);
    for (ei_check check = EI_CHECK_HEADER; check <= EI_CHECK_ALL; check++) exercise(file, file_size, check);
    if (peeked == EI_OK) MUST(info.dim >= 1 && info.dim <= EI_MAX_DIM);
    free(file);
    return 0;
}
