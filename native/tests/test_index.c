/* Tests of edge_index without Python: run under the sanitizers and, for Arm, under qemu. A line per failure; exit 1 if any. */
#define _POSIX_C_SOURCE 200112L
#include "edge_index.h"
#include "kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;
#define CHECK(condition, ...)                                      \
    do {                                                           \
        if (!(condition)) {                                        \
            failures++;                                            \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                   \
            printf("\n");                                          \
        }                                                          \
    } while (0)

static uint64_t seed = 1;
static uint32_t draw(void) /* xorshift64*: the same numbers everywhere */
{
    seed ^= seed >> 12, seed ^= seed << 25, seed ^= seed >> 27;
    return (uint32_t)(seed * 0x2545F4914F6CDD1D >> 32);
}
static float draw_float(void) { return (float)draw() / 4294967296.0f * 2 - 1; }

/* Exactly `size` bytes, so that the address sanitizer sees one byte too many. */
static void *aligned(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, 64, size ? size : 1)) abort();
    return memory;
}

typedef struct file {
    uint8_t *bytes;
    size_t size;
    size_t codes, scales, ids; /* offsets */
} file;

static size_t section(size_t size) { return (size + EI_HEADER_BYTES - 1) / EI_HEADER_BYTES * EI_HEADER_BYTES; }

/* Compute all checksums anew, as one who wants to deceive would. */
static void sign(const file *f, uint32_t dim, size_t count)
{
    const size_t ends[4] = {f->codes, f->scales, f->ids, f->size};
    uint64_t sums[3];
    for (int i = 0; i < 3; i++) {
        ei_checksum state;
        ei_checksum_begin(&state);
        ei_checksum_update(&state, f->bytes + ends[i], ends[i + 1] - ends[i]);
        sums[i] = ei_checksum_end(&state);
    }
    CHECK(ei_header(dim, count, sums, f->bytes) == EI_OK, "dim %u", (unsigned)dim);
}

static void sign_header(uint8_t *bytes)
{
    ei_checksum state;
    memset(bytes + 40, 0, 8);
    ei_checksum_begin(&state);
    ei_checksum_update(&state, bytes, EI_HEADER_BYTES);
    const uint64_t sum = ei_checksum_end(&state);
    memcpy(bytes + 40, &sum, 8);
}

static file make_file(const float *rows, size_t n, uint32_t dim)
{
    file f = {0};
    f.codes = EI_HEADER_BYTES;
    f.scales = f.codes + section(n * ei_row_bytes(dim));
    f.ids = f.scales + section(n * sizeof(float));
    f.size = f.ids + section(n * sizeof(int64_t));
    f.bytes = aligned(f.size);
    memset(f.bytes, 0, f.size);
    CHECK(ei_quantize(rows, n, dim, (int8_t *)f.bytes + f.codes, (float *)(f.bytes + f.scales)) == EI_OK, "n %zu", n);
    for (size_t i = 0; i < n; i++) ((int64_t *)(f.bytes + f.ids))[i] = 10 + 3 * (int64_t)i;
    sign(&f, dim, n);
    return f;
}

static float *random_rows(size_t n, uint32_t dim)
{
    float *rows = malloc(n * dim * sizeof *rows + 1);
    for (size_t i = 0; i < n * dim; i++) rows[i] = draw_float();
    return rows;
}

static const char *const kernel_names[] = {"scalar", "avx2", "avx512vnni", "neon", "dotprod"};
#define N_KERNELS (sizeof kernel_names / sizeof kernel_names[0])

static int64_t naive_dot(const int8_t *row, const int16_t *query, size_t dim)
{
    int64_t sum = 0;
    for (size_t i = 0; i < dim; i++) sum += (int64_t)row[i] * query[i];
    return sum;
}

/* fill: 0 random, 1 all at the low end, 2 at opposite ends. */
static void check_kernel(const char *name, size_t dim, int fill)
{
    enum { N = 3 };
    const size_t row_bytes = ei_row_bytes((uint32_t)dim);
    int8_t *rows = aligned(N * row_bytes), *high = aligned(row_bytes), *low = aligned(row_bytes);
    int16_t *wide = aligned(row_bytes * 2);
    int64_t sums[N];
    ei_query query = {wide, high, low, 0};
    for (size_t i = 0; i < N * row_bytes; i++) rows[i] = (int8_t)(fill == 0 ? (int)(draw() % 256) - 128 : -128);
    for (size_t i = 0; i < row_bytes; i++) {
        const int value = fill == 0 ? (int)(draw() % 65279) - 32639 : fill == 1 ? -32639 : 32639;
        wide[i] = (int16_t)(i < dim ? value : 0);
        high[i] = (int8_t)((wide[i] + 128) >> 8);
        low[i] = (int8_t)(wide[i] - 256 * high[i]);
        query.sum += wide[i];
    }
    ei_dot()(&query, rows, row_bytes, N, sums);
    for (size_t r = 0; r < N; r++)
        CHECK(sums[r] == naive_dot(rows + r * row_bytes, wide, dim), "%s, dim %zu, fill %d", name, dim, fill);
    free(rows), free(high), free(low), free(wide);
}

static void test_every_kernel_equals_the_naive_loop(void)
{
    for (size_t k = 0; k < N_KERNELS; k++) {
        if (ei_simd_select(kernel_names[k]) != EI_OK) continue;
        CHECK(strcmp(ei_simd_name(), kernel_names[k]) == 0, "%s", ei_simd_name());
        printf("kernel %s\n", kernel_names[k]);
        for (size_t dim = 1; dim <= 768; dim++) check_kernel(kernel_names[k], dim, 0);
        for (int fill = 0; fill < 3; fill++) check_kernel(kernel_names[k], EI_MAX_DIM, fill);
    }
    CHECK(ei_simd_select("mmx") == EI_SIMD, "an unknown kernel");
    CHECK(ei_simd_select(NULL) == EI_OK, "the best kernel");
}

static void test_search_finds_what_a_plain_loop_finds(void)
{
    enum { N = 700, DIM = 65, Q = 5, K = 20 };
    float *rows = random_rows(N, DIM), *queries = random_rows(Q, DIM);
    const file f = make_file(rows, N, DIM);
    uint8_t allow[N];
    for (size_t i = 0; i < N; i++) allow[i] = draw() % 3 != 0;
    ei_index *index;
    CHECK(ei_open(f.bytes, f.size, 1, &index) == EI_OK, "open");
    CHECK(ei_count(index) == N && ei_dim(index) == DIM && ei_ids_offset(index) == f.ids, "shape");
    int64_t ids[Q * K], other_ids[Q * K];
    float scores[Q * K], other_scores[Q * K];
    CHECK(ei_search(index, queries, Q, K, allow, 1, ids, scores) == EI_OK, "search");
    const float *scales = (const float *)(f.bytes + f.scales);
    for (size_t q = 0; q < Q; q++) {
        size_t better = 0; /* allowed rows with a plain score above the last one found, by more than the query's rounding */
        for (size_t r = 0; r < N; r++) {
            double score = 0;
            for (size_t i = 0; i < DIM; i++)
                score += (double)queries[q * DIM + i] * ((const int8_t *)f.bytes)[f.codes + r * 128 + i] * (double)scales[r];
            better += allow[r] && score > (double)scores[q * K + K - 1] + 1e-3;
            for (size_t i = 0; i < K; i++) {
                if (ids[q * K + i] != 10 + 3 * (int64_t)r) continue;
                CHECK(allow[r], "row %zu is not allowed", r);
                CHECK(fabs(score - (double)scores[q * K + i]) < 1e-3, "score of row %zu", r);
            }
        }
        CHECK(better < K, "query %zu misses a row", q);
        for (size_t i = 1; i < K; i++) CHECK(scores[q * K + i] <= scores[q * K + i - 1], "order");
    }
    for (size_t k = 0; k < N_KERNELS; k++) {
        if (ei_simd_select(kernel_names[k]) != EI_OK) continue;
        for (unsigned threads = 1; threads <= 7; threads += 3) {
            CHECK(ei_search(index, queries, Q, K, allow, threads, other_ids, other_scores) == EI_OK, "search");
            CHECK(memcmp(ids, other_ids, sizeof ids) == 0, "ids with %s, %u threads", kernel_names[k], threads);
            CHECK(memcmp(scores, other_scores, sizeof scores) == 0, "scores with %s, %u threads", kernel_names[k], threads);
        }
    }
    ei_simd_select(NULL);

    memset(allow, 0, N);
    allow[N - 1] = 1;
    CHECK(ei_search(index, queries, Q, K, allow, 2, ids, scores) == EI_OK, "one row allowed");
    CHECK(ids[0] == 10 + 3 * (N - 1) && ids[1] == -1 && isinf(scores[1]) && scores[1] < 0, "the rest is empty");
    CHECK(ei_search(index, queries, Q, 0, NULL, 1, ids, scores) == EI_ARGUMENT, "k 0");
    CHECK(ei_search(index, queries, Q, K, NULL, 0, ids, scores) == EI_ARGUMENT, "0 threads");
    queries[Q * DIM - 1] = NAN;
    CHECK(ei_search(index, queries, Q, K, NULL, 1, ids, scores) == EI_ARGUMENT, "NaN");
    ei_close(index);
    free(f.bytes), free(rows), free(queries);
}

static void test_an_empty_index_opens_and_finds_nothing(void)
{
    const file f = make_file(NULL, 0, 3);
    const float query[3] = {1, 2, 3};
    int64_t id = 7;
    float score = 7;
    ei_index *index;
    CHECK(f.size == EI_HEADER_BYTES && ei_open(f.bytes, f.size, 1, &index) == EI_OK, "open");
    CHECK(ei_search(index, query, 1, 1, NULL, 3, &id, &score) == EI_OK && id == -1, "search");
    ei_close(index);
    free(f.bytes);
}

static void test_quantize_refuses_what_it_can_not_scale(void)
{
    int8_t codes[64];
    float scale;
    const float bad[][2] = {{0, 0}, {NAN, 1}, {1, NAN}, {INFINITY, 1}, {-INFINITY, 1}, {1e-31f, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(ei_quantize(bad[i], 1, 2, codes, &scale) == EI_ARGUMENT, "row %zu", i);
    const float fine[3] = {-3e38f, 1.5e38f, 1e30f};
    CHECK(ei_quantize(fine, 1, 3, codes, &scale) == EI_OK, "large values");
    CHECK(codes[0] == -127 && codes[1] == 64 && codes[2] == 0 && codes[3] == 0, "%d %d %d", codes[0], codes[1], codes[2]);
}

static void test_every_flipped_bit_is_seen(void)
{
    float *rows = random_rows(3, 5);
    const file f = make_file(rows, 3, 5);
    ei_index *index;
    for (size_t bit = 0; bit < f.size * 8; bit++) {
        f.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(ei_open(f.bytes, f.size, 1, &index) != EI_OK && index == NULL, "bit %zu", bit);
        f.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(ei_open(f.bytes, f.size, 1, &index) == EI_OK, "whole again");
    ei_close(index);
    free(f.bytes), free(rows);
}

static void test_every_other_length_is_refused(void)
{
    float *rows = random_rows(3, 5);
    const file f = make_file(rows, 3, 5);
    ei_index *index;
    for (size_t size = 0; size <= f.size + 64; size++) {
        if (size == f.size) continue;
        uint8_t *copy = aligned(size);
        memset(copy, 0, size);
        memcpy(copy, f.bytes, size < f.size ? size : f.size);
        for (int verify = 0; verify < 2; verify++)
            CHECK(ei_open(copy, size, verify, &index) != EI_OK && index == NULL, "size %zu", size);
        free(copy);
    }
    free(f.bytes), free(rows);
}

static void test_a_well_signed_lie_is_refused(void)
{
    float *rows = random_rows(3, 5);
    const file f = make_file(rows, 3, 5);
    uint8_t *header = malloc(EI_HEADER_BYTES);
    memcpy(header, f.bytes, EI_HEADER_BYTES);
    ei_index *index;
    const struct {
        size_t offset;
        uint64_t value;
        size_t width;
        const char *what;
    } lies[] = {
        {16, 0, 4, "dim 0"},
        {16, 4097, 4, "dim too large"},
        {16, 0xFFFFFFFF, 4, "dim -1"},
        {20, 4, 4, "one more section"},
        {24, 4, 8, "one more row"},
        {24, (uint64_t)1 << 40, 8, "a size beyond the file"},
        {24, (uint64_t)1 << 58, 8, "count * 64 wraps to 0"},
        {24, UINT64_MAX, 8, "count -1"},
        {32, 0, 8, "file size"},
        {48, 2, 4, "kind of a section"},
        {52, 1, 4, "a reserved field"},
        {56, 0, 8, "a section over the header"},
        {56, 64, 8, "a section at another place"},
        {56, UINT64_MAX - 63, 8, "a section before the file"},
        {64, 0, 8, "size of a section"},
        {64, UINT64_MAX, 8, "size of a section"},
        {4088, 1, 8, "the reserved end"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        memcpy(f.bytes, header, EI_HEADER_BYTES);
        memcpy(f.bytes + lies[i].offset, &lies[i].value, lies[i].width); /* little-endian, as the file is */
        sign_header(f.bytes);
        for (int verify = 0; verify < 2; verify++)
            CHECK(ei_open(f.bytes, f.size, verify, &index) != EI_OK && index == NULL, "%s", lies[i].what);
    }
    memcpy(f.bytes, header, EI_HEADER_BYTES);

    float *scales = (float *)(f.bytes + f.scales);
    int64_t *ids = (int64_t *)(f.bytes + f.ids);
    const float bad_scales[] = {NAN, INFINITY, -1, 0};
    for (size_t i = 0; i < 4; i++) {
        const float kept = scales[1];
        scales[1] = bad_scales[i];
        sign(&f, 5, 3);
        CHECK(ei_open(f.bytes, f.size, 1, &index) == EI_DAMAGED, "scale %f", (double)bad_scales[i]);
        scales[1] = kept;
    }
    ids[1] = ids[0];
    sign(&f, 5, 3);
    CHECK(ei_open(f.bytes, f.size, 0, &index) == EI_DAMAGED, "ids that do not ascend");
    free(header), free(f.bytes), free(rows);
}

/* Random damage with the header's checksum put right: open may refuse or accept, and what opens must be safe to search. */
static void test_no_damage_crashes_a_search(void)
{
    enum { N = 40, DIM = 30 };
    float *rows = random_rows(N, DIM);
    const file f = make_file(rows, N, DIM);
    uint8_t *copy = aligned(f.size);
    int64_t ids[5];
    float scores[5];
    int opened = 0;
    for (int round = 0; round < 4000; round++) {
        memcpy(copy, f.bytes, f.size);
        for (uint32_t n = 1 + draw() % 4; n > 0; n--) {
            const size_t at = draw() % 2 ? draw() % 160 : draw() % f.size;
            copy[at] = (uint8_t)draw();
        }
        sign_header(copy);
        ei_index *index;
        if (ei_open(copy, f.size, 0, &index) != EI_OK) continue;
        opened++;
        CHECK(ei_search(index, rows, 1, 5, NULL, 1, ids, scores) == EI_OK, "round %d", round);
        ei_close(index);
    }
    CHECK(opened > 100, "only %d of the damaged files opened", opened);
    free(copy), free(f.bytes), free(rows);
}

int main(void)
{
    test_every_kernel_equals_the_naive_loop();
    test_search_finds_what_a_plain_loop_finds();
    test_an_empty_index_opens_and_finds_nothing();
    test_quantize_refuses_what_it_can_not_scale();
    test_every_flipped_bit_is_seen();
    test_every_other_length_is_refused();
    test_a_well_signed_lie_is_refused();
    test_no_damage_crashes_a_search();
    printf(failures ? "%d failures\n" : "all passed\n", failures);
    return failures != 0;
}
