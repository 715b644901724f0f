/* Damaged and forged files: each is refused, or answers as if it were whole, or says that it is damaged. */
#include "sample.h"
#include "sign.h"

enum { N = 21, DIM = 5, K = 4 };

static file small_file(ei_metric metric)
{
    ei_build_settings settings = settings_for(DIM, metric, 1);
    float *rows = themed_rows(N, DIM, 3, 2);
    int64_t *ids = some_ids(N);
    settings.max_links = 4;
    const file f = built(&settings, ids, rows, N);
    free(rows), free(ids);
    return f;
}

typedef struct answer {
    ei_status status;
    int64_t ids[2][K];
    float scores[2][K];
    float vectors[N * DIM];
} answer;

/* Open with EI_CHECK_SEARCH and ask for everything. */
static answer answer_of(const file *f)
{
    static const float query[EI_MAX_DIM] = {0.3f, -0.2f, 0.5f, 0.1f, -0.7f}; /* a forged header may have any dim */
    answer a;
    ei_index *index;
    ei_info info;
    memset(&a, 0, sizeof a);
    a.status = ei_open(f->bytes, f->size, EI_CHECK_SEARCH, &index);
    if (a.status != EI_OK) return a;
    ei_get_info(index, &info);
    for (int i = 0; i < 2 && a.status == EI_OK; i++) {
        const ei_search_settings search = {K, 0, i == 0 ? EI_SCAN : EI_GRAPH, 1, NULL};
        a.status = ei_search(index, query, 1, &search, a.ids[i], a.scores[i]);
    }
    for (uint32_t r = 0; info.dim == DIM && r < info.count && r < N && a.status == EI_OK; r++) a.status = ei_vectors(index, &r, 1, a.vectors + r * DIM);
    ei_close(index);
    return a;
}

static void test_every_flipped_byte_is_seen(void)
{
    for (int metric = 1; metric <= 3; metric++) {
        const file f = small_file((ei_metric)metric);
        const answer whole = answer_of(&f);
        CHECK(whole.status == EI_OK, "%d", whole.status);
        size_t unseen = 0, asked = 0;
        for (size_t at = 0; at < f.size; at++) {
            /* every bit where something stands, one where the file is filled with zeros */
            const uint8_t kept = f.bytes[at];
            const int meaning = kept != 0 || at < AT_SECTIONS + N_SECTIONS * SECTION_BYTES;
            for (size_t bit = meaning ? 0 : at % 8; bit < (meaning ? 8 : at % 8 + 1); bit++) {
                ei_index *index = NULL;
                f.bytes[at] ^= (uint8_t)(1 << bit);
                unseen += ei_open(f.bytes, f.size, EI_CHECK_ALL, &index) == EI_OK || index != NULL;
                if (bit == at % 8) {
                    const answer a = answer_of(&f);
                    if (a.status == EI_OK) {
                        asked++;
                        CHECK(memcmp(&a, &whole, sizeof a) == 0, "byte %zu: a wrong answer", at);
                    }
                }
                f.bytes[at] = kept;
            }
        }
        CHECK(unseen == 0, "metric %d: %zu flipped bits go unseen", metric, unseen);
        CHECK(asked < f.size / 4, "metric %d: %zu of %zu flipped bytes are not checked before a search", metric, asked, f.size);
        free(f.bytes);
    }
}

static void test_every_other_length_is_refused(void)
{
    const file f = small_file(EI_COSINE);
    for (size_t size = 0; size <= f.size + 4096; size += size < 200 || size % 4096 > 4090 || size % 4096 < 4 ? 1 : 61) {
        if (size == f.size) continue;
        uint8_t *copy = aligned(size);
        memset(copy, 0, size);
        memcpy(copy, f.bytes, size < f.size ? size : f.size);
        for (ei_check check = EI_CHECK_HEADER; check <= EI_CHECK_ALL; check++) {
            ei_index *index = NULL;
            const ei_status status = ei_open(copy, size, check, &index);
            CHECK(status == (size < 8 ? EI_NOT_INDEX : EI_SIZE) && index == NULL, "size %zu: %d", size, status);
        }
        ei_info info;
        const ei_status status = ei_peek(copy, size, &info);
        CHECK(status == (size < 8 ? EI_NOT_INDEX : size < EI_HEADER_BYTES ? EI_SIZE : EI_OK), "peek at %zu: %d", size, status);
        free(copy);
    }
    free(f.bytes);
}

static void test_a_foreign_file_is_called_foreign(void)
{
    const file f = small_file(EI_COSINE);
    const struct {
        size_t offset;
        uint32_t value;
        ei_status status;
    } changes[] = {{0, 0x464c457f, EI_NOT_INDEX}, {8, 0x7fffffff, EI_VERSION}, {8, 0, EI_VERSION}, {12, 0x04030201, EI_BYTE_ORDER}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        uint32_t kept;
        ei_index *index = NULL;
        memcpy(&kept, f.bytes + changes[i].offset, 4);
        memcpy(f.bytes + changes[i].offset, &changes[i].value, 4);
        const ei_status status = ei_open(f.bytes, f.size, EI_CHECK_HEADER, &index);
        CHECK(status == changes[i].status && index == NULL, "change %zu: %d", i, status);
        memcpy(f.bytes + changes[i].offset, &kept, 4);
    }
    free(f.bytes);
}

/* Every field of the header, set to what it must not be, and signed. */
static void test_a_well_signed_header_that_lies_is_refused(void)
{
    const uint64_t values[] = {0, 1, 2, 3, 4, 7, 64, 4095, 4096, 4097, 65537, 0x2000000, 0x7fffffff, 0x80000000, 0xffffffff,
                               (uint64_t)1 << 40, (uint64_t)1 << 52, (uint64_t)1 << 58, (uint64_t)1 << 63, UINT64_MAX - 4095, UINT64_MAX};
    const file f = small_file(EI_L2);
    uint8_t *header = malloc(HEADER_BYTES);
    memcpy(header, f.bytes, HEADER_BYTES);
    for (size_t at = 0; at < HEADER_BYTES; at += at < AT_SECTIONS + N_SECTIONS * SECTION_BYTES ? 4 : 500) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            for (size_t width = 4; width <= 8 && at + width <= HEADER_BYTES; width += 4) {
                memcpy(f.bytes + at, &values[v], width);
                sign_header(f.bytes);
                if (memcmp(f.bytes, header, HEADER_BYTES) != 0) {
                    ei_index *index = NULL;
                    ei_info info;
                    const ei_status peeked = ei_peek(f.bytes, HEADER_BYTES, &info);
                    const ei_status status = ei_open(f.bytes, f.size, EI_CHECK_ALL, &index);
                    if (peeked != EI_OK) CHECK(status != EI_OK, "offset %zu value %llx", at, (unsigned long long)values[v]);
                    const int fits = at >= AT_COUNT && at < AT_SECTIONS; /* fewer rows or links, say, than the file has room for */
                    CHECK(fits || status != EI_OK, "offset %zu value %llx", at, (unsigned long long)values[v]);
                    ei_close(index);
                    if (status == EI_OK) answer_of(&f);
                }
                memcpy(f.bytes, header, HEADER_BYTES);
            }
        }
    }
    free(header), free(f.bytes);
}

static void test_well_signed_values_that_cannot_be_are_refused(void)
{
    for (int metric = 1; metric <= 3; metric++) {
        const file f = small_file((ei_metric)metric);
        ei_index *index = opened(&f);
        ei_info info;
        ei_get_info(index, &info);
        ei_close(index);

        int64_t *ids = (int64_t *)(void *)(f.bytes + info.ids_offset);
        const int64_t kept = ids[1];
        ids[1] = ids[0];
        sign_file(f.bytes, f.size);
        CHECK(ei_open(f.bytes, f.size, EI_CHECK_SEARCH, &index) == EI_DAMAGED, "ids that do not ascend");
        ids[1] = kept;

        const uint32_t bad[] = {0x7fc00000, 0x7f800000, 0xff800000, 0xbf800000}; /* NaN, infinity, minus infinity, -1 */
        size_t size;
        float *scales = (float *)(void *)section_of(f.bytes, f.size, 2, &size);
        for (size_t i = 0; i < 4; i++) {
            const float scale = scales[N - 1];
            memcpy(scales + N - 1, &bad[i], 4);
            sign_file(f.bytes, f.size);
            CHECK(ei_open(f.bytes, f.size, EI_CHECK_SEARCH, &index) == EI_DAMAGED, "scale %zu", i);
            scales[N - 1] = scale;
        }
        sign_file(f.bytes, f.size);
        CHECK(answer_of(&f).status == EI_OK, "whole again");
        free(f.bytes);
    }
}

/* Links and entries that lead out of the rows, and signatures that are right: a search must stay inside and must end. */
static void test_forged_links_lead_nowhere(void)
{
    enum { LINK_STARTS = 5, LINKS = 6, ENTRIES = 7 };
    const uint32_t bad[] = {0, N - 1, N, N + 1, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    const file f = small_file(EI_COSINE);
    for (int kind = LINK_STARTS; kind <= ENTRIES; kind++) {
        size_t size;
        uint8_t *section = section_of(f.bytes, f.size, kind, &size);
        for (size_t at = 0; at + 4 <= size && at < 4 * (size_t)N * 6; at += 4) {
            for (size_t v = 0; v < sizeof bad / sizeof *bad; v++) {
                uint32_t kept;
                memcpy(&kept, section + at, 4);
                memcpy(section + at, &bad[v], 4);
                sign_file(f.bytes, f.size);
                for (ei_check check = EI_CHECK_HEADER; check <= EI_CHECK_ALL; check++) {
                    ei_index *index = NULL;
                    const float query[DIM] = {1, 2, 3, 4, 5};
                    int64_t ids[N];
                    float scores[N];
                    if (ei_open(f.bytes, f.size, check, &index) != EI_OK) continue;
                    const ei_search_settings search = {N, 64, EI_GRAPH, 1, NULL};
                    const ei_status status = ei_search(index, query, 1, &search, ids, scores);
                    CHECK(status == EI_OK || status == EI_DAMAGED, "section %d offset %zu: %d", kind, at, status);
                    ei_close(index);
                }
                memcpy(section + at, &kept, 4);
            }
        }
    }
    free(f.bytes);
}

int main(void)
{
    test_every_flipped_byte_is_seen();
    test_every_other_length_is_refused();
    test_a_foreign_file_is_called_foreign();
    test_a_well_signed_header_that_lies_is_refused();
    test_well_signed_values_that_cannot_be_are_refused();
    test_forged_links_lead_nowhere();
    return checks_done();
}
