/* What edge_index.h promises, without Python: run under the sanitizers and, for Arm, under qemu. */
#include "sample.h"

#include <math.h>
#include <pthread.h>

static const ei_metric metrics[] = {EI_COSINE, EI_INNER_PRODUCT, EI_L2};
enum { N_METRICS = 3 };

static ei_search_settings plain(uint32_t k, ei_way way)
{
    const ei_search_settings settings = {k, 0, way, 1, NULL};
    return settings;
}

static double length(const float *x, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* The score as the header defines it. */
static double score_of(ei_metric metric, const float *query, const float *row, uint32_t dim)
{
    double product = 0, distance = 0;
    for (uint32_t i = 0; i < dim; i++) {
        product += (double)query[i] * (double)row[i];
        distance += ((double)query[i] - (double)row[i]) * ((double)query[i] - (double)row[i]);
    }
    if (metric == EI_L2) return -distance;
    return metric == EI_COSINE ? product / (length(query, dim) * length(row, dim)) : product;
}

/* How far a score may be off by the rounding of rows to 12 bits and of the query to 16. */
static double tolerance(ei_metric metric, const float *query, const float *row, uint32_t dim)
{
    const double both = length(query, dim) + length(row, dim);
    const double size = metric == EI_COSINE ? 1 : metric == EI_L2 ? both * both : length(query, dim) * length(row, dim);
    return 2e-3 * size + 1e-6;
}

static int is_allowed(const uint8_t *allow, size_t row) { return allow == NULL || (allow[row / 8] >> row % 8 & 1); }

static int larger_first(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Check one answer against all rows: allowed, ordered, rightly scored, full. Returns how many of the k are among the best. */
static size_t check_answer(const char *what, ei_metric metric, const float *query, const float *rows, const int64_t *ids, size_t n,
                           uint32_t dim, const uint8_t *allow, uint32_t k, const int64_t *found, const float *scores)
{
    double *all = malloc(n * sizeof *all + 1);
    size_t n_allowed = 0, hits = 0;
    double widest = 0;
    for (size_t r = 0; r < n; r++) {
        if (!is_allowed(allow, r)) continue;
        all[n_allowed++] = score_of(metric, query, rows + r * dim, dim);
        widest = fmax(widest, tolerance(metric, query, rows + r * dim, dim));
    }
    qsort(all, n_allowed, sizeof *all, larger_first);
    const size_t expected = n_allowed < k ? n_allowed : k;
    for (size_t i = 0; i < k; i++) {
        if (i >= expected) {
            CHECK(found[i] == -1 && isinf(scores[i]) && scores[i] < 0, "%s: place %zu is not empty", what, i);
            continue;
        }
        size_t row = n;
        for (size_t r = 0; r < n && row == n; r++) row = ids[r] == found[i] ? r : n;
        CHECK(row < n, "%s: place %zu of %zu holds %lld, which is no id", what, i, expected, (long long)found[i]);
        if (row == n) continue;
        CHECK(is_allowed(allow, row), "%s: row %zu is not allowed", what, row);
        const double score = score_of(metric, query, rows + row * dim, dim);
        CHECK(fabs(score - (double)scores[i]) <= widest, "%s: score of row %zu is %g, not %g", what, row, (double)scores[i], score);
        hits += score >= all[expected - 1] - widest;
        if (i == 0) continue;
        CHECK(scores[i] < scores[i - 1] || (scores[i] == scores[i - 1] && found[i] > found[i - 1]),
              "%s: place %zu is not in order", what, i);
    }
    free(all);
    return hits + (k - expected);
}

static void test_round_trips(void)
{
    const uint32_t dims[] = {1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 200, 384, 1000, EI_MAX_DIM};
    enum { N = 37 };
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        for (int m = 0; m < N_METRICS; m++) {
            const uint32_t dim = dims[d];
            const ei_build_settings settings = settings_for(dim, metrics[m], 0);
            float *rows = themed_rows(N, dim, 5, d + 1), *stored = malloc(N * dim * sizeof *stored);
            int64_t *ids = some_ids(N);
            const file f = built(&settings, ids, rows, N);
            ei_index *index = opened(&f);
            ei_info info, peeked;
            ei_get_info(index, &info);
            CHECK(info.count == N && info.dim == dim && info.metric == metrics[m] && info.n_links == 0, "dim %u", dim);
            CHECK(info.file_bytes == f.size && info.hot_bytes <= f.size, "%zu bytes", f.size);
            CHECK(memcmp(f.bytes + info.ids_offset, ids, N * sizeof *ids) == 0, "ids at %u dimensions", dim);
            CHECK(ei_peek(f.bytes, EI_HEADER_BYTES, &peeked) == EI_OK && memcmp(&info, &peeked, sizeof info) == 0, "peek");
            uint32_t order[N];
            for (uint32_t r = 0; r < N; r++) order[r] = N - 1 - r;
            CHECK(ei_vectors(index, order, N, stored) == EI_OK, "vectors");
            for (size_t r = 0; r < N; r++) {
                const float *given = rows + r * dim, *got = stored + (N - 1 - r) * dim;
                const double size = length(given, dim), unit = metrics[m] == EI_COSINE ? 1 / size : 1;
                double error = 0;
                for (uint32_t i = 0; i < dim; i++) {
                    const double off = (double)given[i] * unit - (double)got[i];
                    error += off * off;
                }
                CHECK(sqrt(error) <= 1e-3 * fmax(size * unit, 1) * fmax(1, sqrt((double)dim) / 10), "dim %u metric %d row %zu: %g of %g",
                      dim, metrics[m], r, sqrt(error), size * unit);
            }
            CHECK(ei_vectors(index, order, 0, stored) == EI_OK, "no vectors");
            order[N - 1] = N;
            CHECK(ei_vectors(index, order, N, stored) == EI_ARGUMENT, "a row beyond the end");
            ei_close(index);
            free(f.bytes), free(rows), free(stored), free(ids);
        }
    }
}

static void test_a_scan_finds_what_a_plain_loop_finds(void)
{
    const uint32_t dims[] = {1, 3, 64, 65, 130, 384};
    enum { N = 700, Q = 6, K = 20 };
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        for (int m = 0; m < N_METRICS; m++) {
            const uint32_t dim = dims[d];
            const ei_build_settings settings = settings_for(dim, metrics[m], 0);
            float *rows = themed_rows(N, dim, 20, d + 1), *queries = themed_rows(Q, dim, 20, 1000 + d);
            int64_t *ids = some_ids(N), found[Q * K];
            float scores[Q * K];
            const file f = built(&settings, ids, rows, N);
            ei_index *index = opened(&f);
            uint8_t allow[(N + 7) / 8];
            for (size_t i = 0; i < sizeof allow; i++) allow[i] = (uint8_t)draw();
            for (int filtered = 0; filtered < 2; filtered++) {
                ei_search_settings search = plain(K, EI_SCAN);
                search.allow = filtered ? allow : NULL;
                CHECK(ei_search(index, queries, Q, &search, found, scores) == EI_OK, "search");
                for (size_t q = 0; q < Q; q++) {
                    const size_t hits = check_answer("scan", metrics[m], queries + q * dim, rows, ids, N, dim, search.allow, K,
                                                     found + q * K, scores + q * K);
                    CHECK(hits == K, "dim %u metric %d filtered %d: %zu of %d", dim, metrics[m], filtered, hits, K);
                }
            }
            ei_close(index);
            free(f.bytes), free(rows), free(queries), free(ids);
        }
    }
}

static void test_a_graph_finds_nearly_what_a_plain_loop_finds(void)
{
    enum { N = 3000, DIM = 48, Q = 40, K = 10 };
    for (int m = 0; m < N_METRICS; m++) {
        ei_build_settings settings = settings_for(DIM, metrics[m], 1);
        settings.threads = 2;
        float *rows = themed_rows(N, DIM, 60, 5), *queries = themed_rows(Q, DIM, 60, 6);
        int64_t *ids = some_ids(N), found[Q * K];
        float scores[Q * K];
        const file f = built(&settings, ids, rows, N);
        ei_index *index = opened(&f);
        ei_info info;
        ei_get_info(index, &info);
        CHECK(info.n_links >= N && info.n_links <= (uint64_t)N * info.max_links && info.max_links >= 1 && info.ef_build >= 1,
              "%llu links", (unsigned long long)info.n_links);
        for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
            const ei_search_settings search = plain(K, way);
            CHECK(ei_search(index, queries, Q, &search, found, scores) == EI_OK, "search");
            size_t hits = 0;
            for (size_t q = 0; q < Q; q++) {
                hits += check_answer("graph", metrics[m], queries + q * DIM, rows, ids, N, DIM, NULL, K, found + q * K, scores + q * K);
            }
            CHECK(hits >= (way == EI_SCAN ? Q * K : Q * K * 95 / 100), "metric %d way %d: %zu of %d", metrics[m], way, hits, Q * K);
        }
        ei_close(index);
        free(f.bytes), free(rows), free(queries), free(ids);
    }
}

static void test_a_filter_never_starves_an_answer(void)
{
    enum { N = 2000, DIM = 24, Q = 8, K = 10 };
    const ei_build_settings settings = settings_for(DIM, EI_COSINE, 1);
    float *rows = themed_rows(N, DIM, 40, 5), *queries = themed_rows(Q, DIM, 40, 6);
    int64_t *ids = some_ids(N), found[Q * K];
    float scores[Q * K];
    const file f = built(&settings, ids, rows, N);
    ei_index *index = opened(&f);
    const uint32_t one_in[] = {1, 2, 7, 50, 200, 1500};
    for (size_t s = 0; s < sizeof one_in / sizeof *one_in; s++) {
        for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
            uint8_t allow[(N + 7) / 8] = {0};
            for (size_t r = 0; r < N; r++) allow[r / 8] |= (uint8_t)((draw_below(one_in[s]) == 0) << r % 8);
            ei_search_settings search = plain(K, way);
            search.allow = allow;
            CHECK(ei_search(index, queries, Q, &search, found, scores) == EI_OK, "search");
            for (size_t q = 0; q < Q; q++) {
                const size_t hits = check_answer("filter", EI_COSINE, queries + q * DIM, rows, ids, N, DIM, allow, K, found + q * K,
                                                 scores + q * K);
                CHECK(hits >= (way == EI_SCAN ? K : K - 3), "one in %u way %d: %zu of %d", one_in[s], way, hits, K);
            }
        }
    }
    const uint8_t none[(N + 7) / 8] = {0};
    ei_search_settings search = plain(K, EI_AUTO);
    search.allow = none;
    for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
        search.way = way;
        CHECK(ei_search(index, queries, 1, &search, found, scores) == EI_OK && found[0] == -1 && found[K - 1] == -1, "none allowed");
    }
    ei_close(index);
    free(f.bytes), free(rows), free(queries), free(ids);
}

static void test_few_rows_and_equal_rows(void)
{
    const float row[3] = {1, 2, 3};
    float rows[50 * 3], scores[60];
    int64_t found[60], *ids = some_ids(50);
    for (size_t i = 0; i < 50; i++) memcpy(rows + 3 * i, row, sizeof row);
    for (int m = 0; m < N_METRICS; m++) {
        for (int graph = 0; graph < 2; graph++) {
            const ei_build_settings settings = settings_for(3, metrics[m], graph);
            const size_t counts[] = {0, 1, 2, 50};
            for (size_t c = 0; c < 4; c++) {
                const size_t n = counts[c];
                const file f = built(&settings, ids, rows, n);
                ei_index *index = opened(&f);
                for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
                    const ei_search_settings search = plain(60, way);
                    CHECK(ei_search(index, row, 1, &search, found, scores) == EI_OK, "%zu rows", n);
                    for (size_t i = 0; i < 60; i++) {
                        CHECK(found[i] == (i < n ? ids[i] : -1), "%zu rows, way %d, place %zu: %lld", n, way, i, (long long)found[i]);
                    }
                }
                ei_close(index);
                free(f.bytes);
            }
        }
    }
    free(ids);
}

static void test_extreme_vectors(void)
{
    enum { DIM = 70, N = 6 };
    float rows[N * DIM] = {0}, scores[N];
    int64_t found[N], *ids = some_ids(N);
    for (size_t i = 0; i < DIM; i++) {
        rows[i] = i < 9 ? 1e-20f : 0, rows[DIM + i] = i % 2 ? 1e15f : -1e15f, rows[2 * DIM + i] = 1;
        rows[3 * DIM + i] = i == 7 ? 1 : 0, rows[4 * DIM + i] = i == 7 ? -1e-12f : 0, rows[5 * DIM + i] = (float)i;
    }
    for (int m = 0; m < N_METRICS; m++) {
        const ei_build_settings settings = settings_for(DIM, metrics[m], 1);
        const file f = built(&settings, ids, rows, N);
        ei_index *index = opened(&f);
        const ei_search_settings search = plain(N, EI_AUTO);
        for (size_t r = 0; r < N; r++) {
            CHECK(ei_search(index, rows + r * DIM, 1, &search, found, scores) == EI_OK, "row %zu", r);
            for (size_t i = 0; i < N; i++) CHECK(isfinite(scores[i]) && found[i] != -1, "metric %d row %zu", metrics[m], r);
            if (metrics[m] == EI_COSINE) CHECK(found[0] == ids[r] && fabsf(scores[0] - 1) < 1e-3f, "row %zu: %g", r, (double)scores[0]);
        }
        ei_close(index);
        free(f.bytes);
    }
    free(ids);
}

static void test_vectors_that_are_none_are_refused(void)
{
    enum { DIM = 5 };
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int m = 0; m < N_METRICS; m++) {
        const ei_build_settings settings = settings_for(DIM, metrics[m], 0);
        float rows[4 * DIM], scores[4], *fine = themed_rows(4, DIM, 2, 3);
        int64_t *ids = some_ids(9), found[4];
        ei_builder *builder = NULL;
        sink out = {0};
        size_t at = 99;
        CHECK(ei_builder_new(&settings, &builder) == EI_OK, "new");
        for (size_t i = 0; i < 3; i++) {
            memcpy(rows, fine, sizeof rows);
            rows[2 * DIM + i] = bad[i];
            CHECK(ei_builder_add(builder, ids, rows, 4, &at) == EI_VECTOR && at == 2, "%g: row %zu", (double)bad[i], at);
        }
        memcpy(rows, fine, sizeof rows);
        memset(rows + 3 * DIM, 0, DIM * sizeof *rows);
        const ei_status zero = ei_builder_add(builder, ids, rows, 4, &at);
        CHECK(metrics[m] == EI_COSINE ? zero == EI_VECTOR && at == 3 : zero == EI_OK, "a zero vector: %d, row %zu", zero, at);
        if (zero == EI_VECTOR) CHECK(ei_builder_add(builder, ids, fine, 4, &at) == EI_OK, "none of the refused was added");
        CHECK(ei_builder_finish(builder, NULL, take_bytes, &out) == EI_OK, "finish");
        ei_builder_free(builder);
        const file f = settled(&out);
        ei_index *index = opened(&f);
        ei_info info;
        ei_get_info(index, &info);
        CHECK(info.count == 4, "%llu rows", (unsigned long long)info.count);
        const ei_search_settings search = plain(2, EI_AUTO);
        for (size_t i = 0; i < 3; i++) {
            memcpy(rows, fine, sizeof rows);
            rows[DIM + i] = bad[i];
            CHECK(ei_search(index, rows, 2, &search, found, scores) == EI_VECTOR, "a query with %g", (double)bad[i]);
        }
        for (size_t i = 0; i < DIM; i++) rows[i] = 0;
        const ei_status of_zero = ei_search(index, rows, 1, &search, found, scores);
        CHECK(of_zero == (metrics[m] == EI_COSINE ? EI_VECTOR : EI_OK), "a query of zeros: %d", of_zero);
        ei_close(index);
        free(f.bytes), free(fine), free(ids);
    }
}

static void test_arguments_out_of_range_are_refused(void)
{
    enum { DIM = 4, N = 40 };
    const ei_build_settings good = settings_for(DIM, EI_L2, 1);
    ei_build_settings bad[9];
    for (size_t i = 0; i < 9; i++) bad[i] = good;
    bad[0].dim = 0, bad[1].dim = EI_MAX_DIM + 1, bad[2].metric = (ei_metric)0, bad[3].metric = (ei_metric)4;
    bad[4].max_links = EI_MAX_LINKS + 1, bad[5].ef_build = EI_MAX_EF + 1, bad[6].threads = 0, bad[7].threads = EI_MAX_THREADS + 1;
    bad[8].dim = UINT32_MAX;
    for (size_t i = 0; i < 9; i++) {
        ei_builder *builder = NULL;
        CHECK(ei_builder_new(&bad[i], &builder) == EI_ARGUMENT && builder == NULL, "settings %zu", i);
    }

    float *rows = themed_rows(N, DIM, 3, 1), scores[4];
    int64_t *ids = some_ids(N), found[4];
    ei_builder *builder = NULL;
    size_t at = 0;
    CHECK(ei_builder_new(&good, &builder) == EI_OK, "new");
    CHECK(ei_builder_add(builder, ids + 5, rows, 2, &at) == EI_OK, "add");
    CHECK(ei_builder_add(builder, ids + 6, rows, 1, &at) == EI_ARGUMENT, "the same id again");
    CHECK(ei_builder_add(builder, ids, rows, 1, &at) == EI_ARGUMENT, "an id below the last");
    const int64_t equal[2] = {1000, 1000};
    CHECK(ei_builder_add(builder, equal, rows, 2, &at) == EI_ARGUMENT, "the same id twice");
    CHECK(ei_builder_add(builder, ids, rows, 0, &at) == EI_OK, "no rows");
    ei_builder_free(builder);
    ei_builder_free(NULL);

    const file f = built(&good, ids, rows, N);
    ei_index *index = opened(&f), *none = NULL;
    ei_search_settings search[5];
    for (size_t i = 0; i < 5; i++) search[i] = plain(4, EI_AUTO);
    search[0].k = 0, search[1].threads = 0, search[2].threads = EI_MAX_THREADS + 1, search[3].ef = EI_MAX_EF + 1;
    search[4].way = (ei_way)3;
    for (size_t i = 0; i < 5; i++) CHECK(ei_search(index, rows, 1, &search[i], found, scores) == EI_ARGUMENT, "search %zu", i);
    search[0] = plain(4, EI_AUTO);
    CHECK(ei_search(index, rows, 0, &search[0], found, scores) == EI_OK, "no queries");
    search[0].ef = EI_MAX_EF;
    CHECK(ei_search(index, rows, 1, &search[0], found, scores) == EI_OK && found[3] != -1, "the largest ef");
    search[0].ef = 1;
    CHECK(ei_search(index, rows, 1, &search[0], found, scores) == EI_OK && found[3] != -1, "an ef below k");

    CHECK(ei_builder_new(&good, &builder) == EI_OK, "new");
    CHECK(ei_builder_add(builder, ids, rows, 1, &at) == EI_OK, "add");
    CHECK(ei_builder_take(builder, index, NULL) == EI_ARGUMENT, "take after add");
    ei_builder_free(builder);
    ei_build_settings other = good;
    other.dim = DIM + 1;
    CHECK(ei_builder_new(&other, &builder) == EI_OK, "new");
    CHECK(ei_builder_take(builder, index, NULL) == EI_ARGUMENT, "take of another dim");
    ei_builder_free(builder);
    other = good, other.metric = EI_COSINE;
    CHECK(ei_builder_new(&other, &builder) == EI_OK, "new");
    CHECK(ei_builder_take(builder, index, NULL) == EI_ARGUMENT, "take of another metric");
    ei_builder_free(builder);
    CHECK(ei_builder_new(&good, &builder) == EI_OK, "new");
    CHECK(ei_builder_take(builder, index, NULL) == EI_OK, "take");
    CHECK(ei_builder_add(builder, ids + N - 1, rows, 1, &at) == EI_ARGUMENT, "an id that was taken over");
    ei_builder_free(builder); /* unfinished */

    uint8_t *shifted = aligned(f.size + EI_ALIGNMENT);
    memcpy(shifted + 8, f.bytes, f.size);
    CHECK(ei_open(shifted + 8, f.size, EI_CHECK_ALL, &none) == EI_ARGUMENT && none == NULL, "bytes that are not aligned");
    free(shifted);
    ei_close(index);
    ei_close(NULL);
    for (int status = -1; status < 13; status++) CHECK(strlen(ei_status_text((ei_status)status)) > 3, "status %d", status);
    free(f.bytes), free(rows), free(ids);
}

static void test_a_callback_stops_a_build(void)
{
    enum { N = 3000, DIM = 16 };
    ei_build_settings settings = settings_for(DIM, EI_COSINE, 1);
    settings.threads = 3;
    float *rows = themed_rows(N, DIM, 10, 4);
    int64_t *ids = some_ids(N);
    for (int i = 0; i < 4; i++) {
        ei_builder *builder = NULL;
        sink out = {0};
        size_t bad;
        if (i < 2) out.stop_after = i == 0 ? 1 : 2;
        if (i >= 2) out.full_at = i == 2 ? 1 : 50000;
        CHECK(ei_builder_new(&settings, &builder) == EI_OK && ei_builder_add(builder, ids, rows, N, &bad) == EI_OK, "add");
        CHECK(ei_builder_finish(builder, take_progress, take_bytes, &out) == EI_CANCELLED, "stop %d", i);
        if (i < 2) CHECK(out.steps == out.stop_after, "called %llu times", (unsigned long long)out.steps);
        ei_builder_free(builder);
        free(out.bytes);
    }
    free(rows), free(ids);
}

static void test_threads_and_kernels_change_no_byte(void)
{
    enum { N = 2500, DIM = 72, Q = 9, K = 12 };
    for (int m = 0; m < N_METRICS; m++) {
        float *rows = themed_rows(N, DIM, 30, 8), *queries = themed_rows(Q, DIM, 30, 9);
        int64_t *ids = some_ids(N), found[2][Q * K];
        float scores[2][Q * K];
        file first = {NULL, 0};
        ei_index *index = NULL;
        for (size_t k = 0; k < N_KERNELS; k++) {
            if (ei_simd_select(kernel_names[k]) != EI_OK) continue;
            const uint32_t threads[] = {1, 2, 5};
            for (size_t t = 0; t < (m == 0 ? 3 : 1); t++) {
                ei_build_settings settings = settings_for(DIM, metrics[m], 1);
                settings.threads = threads[t];
                const file f = built(&settings, ids, rows, N);
                if (first.bytes == NULL) {
                    first = f;
                    index = opened(&first);
                    continue;
                }
                CHECK(f.size == first.size && memcmp(f.bytes, first.bytes, f.size) == 0, "%s, %u threads: another file",
                      kernel_names[k], threads[t]);
                free(f.bytes);
            }
        }
        for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
            for (int n_queries = 1; n_queries <= Q; n_queries += Q - 1) {
                int runs = 0;
                for (size_t k = 0; k < N_KERNELS; k++) {
                    if (ei_simd_select(kernel_names[k]) != EI_OK) continue;
                    for (uint32_t threads = 1; threads <= 7; threads += 3) {
                        const int slot = runs++ != 0;
                        ei_search_settings search = plain(K, way);
                        search.threads = threads;
                        CHECK(ei_search(index, queries, (size_t)n_queries, &search, found[slot], scores[slot]) == EI_OK, "search");
                        if (slot == 0) continue;
                        const size_t n = (size_t)n_queries * K;
                        CHECK(memcmp(found[0], found[1], n * sizeof(int64_t)) == 0 && memcmp(scores[0], scores[1], n * sizeof(float)) == 0,
                              "metric %d way %d, %s, %u threads: another answer", metrics[m], way, kernel_names[k], threads);
                    }
                }
            }
        }
        ei_simd_select(NULL);
        ei_close(index);
        free(first.bytes), free(rows), free(queries), free(ids);
    }
}

static void test_a_merge_holds_what_was_kept_and_what_was_added(void)
{
    enum { OLD = 1500, NEW = 400, N = OLD + NEW, DIM = 40, Q = 20, K = 10 };
    for (int m = 0; m < N_METRICS; m++) {
        for (int graph = 0; graph < 4; graph++) { /* bit 0: the base has one, bit 1: the merged index gets one */
            const ei_build_settings before = settings_for(DIM, metrics[m], graph & 1);
            ei_build_settings after = settings_for(DIM, metrics[m], graph >> 1);
            after.threads = 2;
            float *rows = themed_rows(N, DIM, 30, 11), *queries = themed_rows(Q, DIM, 30, 12), scores[Q * K];
            int64_t *ids = some_ids(N), found[Q * K];
            const file base = built(&before, ids, rows, OLD);
            ei_index *index = opened(&base);
            uint8_t keep[(OLD + 7) / 8] = {0};
            float *kept = malloc(N * DIM * sizeof *kept);
            int64_t *kept_ids = malloc(N * sizeof *kept_ids);
            size_t n = 0;
            for (size_t r = 0; r < N; r++) {
                if (r < OLD && draw_below(4) == 0) continue;
                if (r < OLD) keep[r / 8] |= (uint8_t)(1 << r % 8);
                memcpy(kept + n * DIM, rows + r * DIM, DIM * sizeof *rows);
                kept_ids[n++] = ids[r];
            }
            const file merged = built_on(&after, index, keep, ids + OLD, rows + (size_t)OLD * DIM, NEW);
            ei_close(index);
            free(base.bytes);
            index = opened(&merged);
            ei_info info;
            ei_get_info(index, &info);
            CHECK(info.count == n && memcmp(merged.bytes + info.ids_offset, kept_ids, n * sizeof *kept_ids) == 0, "ids");
            CHECK((info.n_links != 0) == (graph >> 1), "graph %d: %llu links", graph, (unsigned long long)info.n_links);
            for (ei_way way = EI_SCAN; way <= EI_GRAPH; way++) {
                const ei_search_settings search = plain(K, way);
                CHECK(ei_search(index, queries, Q, &search, found, scores) == EI_OK, "search");
                size_t hits = 0;
                for (size_t q = 0; q < Q; q++) {
                    hits += check_answer("merge", metrics[m], queries + q * DIM, kept, kept_ids, n, DIM, NULL, K, found + q * K,
                                         scores + q * K);
                }
                CHECK(hits >= (way == EI_SCAN ? Q * K : Q * K * 95 / 100), "metric %d graph %d way %d: %zu of %d", metrics[m], graph,
                      way, hits, Q * K);
            }
            ei_close(index);
            free(merged.bytes), free(rows), free(queries), free(ids), free(kept), free(kept_ids);
        }
    }
}

static void test_merges_of_nothing(void)
{
    enum { N = 60, DIM = 9 };
    float *rows = themed_rows(N, DIM, 3, 1);
    int64_t *ids = some_ids(N);
    for (int graph = 0; graph < 2; graph++) {
        const ei_build_settings settings = settings_for(DIM, EI_L2, graph);
        const file base = built(&settings, ids, rows, N), empty = built(&settings, ids, rows, 0);
        ei_index *of_base = opened(&base), *of_empty = opened(&empty);
        const uint8_t none[(N + 7) / 8] = {0};
        const struct {
            const ei_index *from;
            const uint8_t *keep;
            size_t added, count;
        } merges[] = {{of_base, NULL, 0, N}, {of_base, none, 0, 0}, {of_empty, NULL, 0, 0}, {of_empty, NULL, N, N}, {of_base, none, 0, 0}};
        for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
            const file f = built_on(&settings, merges[i].from, merges[i].keep, ids, rows, merges[i].added);
            ei_index *index = opened(&f);
            ei_info info;
            ei_get_info(index, &info);
            CHECK(info.count == merges[i].count, "merge %zu, graph %d: %llu rows", i, graph, (unsigned long long)info.count);
            ei_close(index);
            free(f.bytes);
        }
        ei_close(of_base), ei_close(of_empty);
        free(base.bytes), free(empty.bytes);
    }
    free(rows), free(ids);
}

typedef struct share {
    const ei_index *index;
    const float *queries;
    size_t n_queries;
    uint32_t k;
    const int64_t *expected;
    int differences;
} share;

static void *search_again(void *context)
{
    share *my = context;
    int64_t *found = malloc(my->n_queries * my->k * sizeof *found);
    float *scores = malloc(my->n_queries * my->k * sizeof *scores);
    for (uint32_t threads = 1; threads < 4; threads++) {
        for (ei_way way = EI_AUTO; way <= EI_GRAPH; way++) {
            ei_search_settings search = plain(my->k, way);
            search.threads = threads;
            my->differences += ei_search(my->index, my->queries, my->n_queries, &search, found, scores) != EI_OK;
            if (way == EI_SCAN) my->differences += memcmp(found, my->expected, my->n_queries * my->k * sizeof *found) != 0;
        }
    }
    free(found), free(scores);
    return NULL;
}

/* Many threads in one index, that meet in residuals which nobody has checked yet: for the thread sanitizer. */
static void test_threads_share_an_index(void)
{
    enum { N = 1200, DIM = 33, Q = 16, K = 7, THREADS = 4 };
    ei_build_settings settings = settings_for(DIM, EI_INNER_PRODUCT, 1);
    settings.threads = 3;
    float *rows = themed_rows(N, DIM, 30, 8), *queries = themed_rows(Q, DIM, 30, 9), scores[Q * K];
    int64_t *ids = some_ids(N), found[Q * K];
    const file f = built(&settings, ids, rows, N);
    ei_index *index = opened(&f);
    const ei_search_settings search = plain(K, EI_SCAN);
    CHECK(ei_search(index, queries, Q, &search, found, scores) == EI_OK, "search");
    ei_close(index);
    CHECK(ei_open(f.bytes, f.size, EI_CHECK_SEARCH, &index) == EI_OK, "open");
    pthread_t threads[THREADS];
    share shares[THREADS];
    for (int t = 0; t < THREADS; t++) {
        const share mine = {index, queries, Q, K, found, 0};
        shares[t] = mine;
        CHECK(pthread_create(&threads[t], NULL, search_again, &shares[t]) == 0, "thread %d", t);
    }
    for (int t = 0; t < THREADS; t++) {
        pthread_join(threads[t], NULL);
        CHECK(shares[t].differences == 0, "thread %d: %d other answers", t, shares[t].differences);
    }
    ei_close(index);
    free(f.bytes), free(rows), free(queries), free(ids);
}

static void test_threads_take_over_a_graph(void)
{
    enum { OLD = 600, NEW = 300, DIM = 20 };
    ei_build_settings settings = settings_for(DIM, EI_COSINE, 1);
    float *rows = themed_rows(OLD + NEW, DIM, 30, 8);
    int64_t *ids = some_ids(OLD + NEW);
    const file base = built(&settings, ids, rows, OLD);
    ei_index *index = opened(&base);
    uint8_t keep[(OLD + 7) / 8];
    for (size_t i = 0; i < sizeof keep; i++) keep[i] = (uint8_t)draw();
    const file by_one = built_on(&settings, index, keep, ids + OLD, rows + (size_t)OLD * DIM, NEW);
    settings.threads = 4;
    const file by_four = built_on(&settings, index, keep, ids + OLD, rows + (size_t)OLD * DIM, NEW);
    CHECK(by_one.size == by_four.size && memcmp(by_one.bytes, by_four.bytes, by_one.size) == 0, "another file");
    ei_close(index);
    free(base.bytes), free(by_one.bytes), free(by_four.bytes), free(rows), free(ids);
}

/* `test_index threads` leaves out what the thread sanitizer has nothing to find in: it takes 30 times as long. */
int main(int n_arguments, char **arguments)
{
    printf("kernel %s\n", ei_simd_name());
    test_threads_share_an_index();
    test_threads_take_over_a_graph();
    test_a_callback_stops_a_build();
    if (n_arguments > 1 && strcmp(arguments[1], "threads") == 0) return checks_done();
    test_round_trips();
    test_a_scan_finds_what_a_plain_loop_finds();
    test_a_graph_finds_nearly_what_a_plain_loop_finds();
    test_a_filter_never_starves_an_answer();
    test_few_rows_and_equal_rows();
    test_extreme_vectors();
    test_vectors_that_are_none_are_refused();
    test_arguments_out_of_range_are_refused();
    test_threads_and_kernels_change_no_byte();
    test_a_merge_holds_what_was_kept_and_what_was_added();
    test_merges_of_nothing();
    return checks_done();
}
