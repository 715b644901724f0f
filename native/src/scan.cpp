// Quantise, and search by reading every row that is allowed.
#include "format.h"
#include "kernels.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBlockBytes = size_t{48} << 10;  // of codes, read by one query after the other while they are in the cache
constexpr size_t kMaxBlockRows = 512;

// Round to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits of the
// significand. Unlike lrintf() it becomes a plain vector loop, and gives the same bits everywhere.
int32_t round_to_int(float x)
{
    const float shifted = x + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
}

float largest_magnitude(const float *values, size_t n, bool *finite)
{
    float peak = 0;
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        const float magnitude = std::fabs(values[i]);
        bad |= !(magnitude <= FLT_MAX);
        peak = magnitude > peak ? magnitude : peak;
    }
    *finite = !bad;
    return peak;
}

// Queries in the form that the kernels read.
struct Queries {
    std::vector<int16_t> wide;
    std::vector<int8_t> high, low;
    std::vector<ei_query> views;
    std::vector<double> scales;

    Queries(const float *queries, size_t n, uint32_t dim, size_t row_bytes)
        : wide(n * row_bytes), high(n * row_bytes), low(n * row_bytes), views(n), scales(n)
    {
        constexpr double kLargest = 32639;  // 256 * 127 + 127: the largest of which both bytes are signed
        for (size_t q = 0; q < n; q++) {
            const float *query = queries + q * dim;
            int16_t *const w = &wide[q * row_bytes];
            bool finite;
            const float peak = largest_magnitude(query, dim, &finite);
            const double factor = peak > 0 ? kLargest / double{peak} : 0;
            int64_t sum = 0;
            for (size_t i = 0; i < dim; i++) {
                w[i] = static_cast<int16_t>(round_to_int(static_cast<float>(query[i] * factor)));
                const int h = (w[i] + 128) >> 8;  // rounds, so that what is left fits a signed byte
                high[q * row_bytes + i] = static_cast<int8_t>(h);
                low[q * row_bytes + i] = static_cast<int8_t>(w[i] - 256 * h);
                sum += w[i];
            }
            views[q] = {w, &high[q * row_bytes], &low[q * row_bytes], sum};
            scales[q] = double{peak} / kLargest;
        }
    }
};

struct Hit {
    float score;
    size_t row;
};

bool better(const Hit &a, const Hit &b) { return a.score != b.score ? a.score > b.score : a.row < b.row; }

// The k best so far: a heap whose front is the worst of them.
struct Best {
    size_t k;
    std::vector<Hit> hits;

    void offer(Hit hit)
    {
        if (hits.size() < k) {
            hits.push_back(hit);
            std::push_heap(hits.begin(), hits.end(), better);
        } else if (better(hit, hits.front())) {
            std::pop_heap(hits.begin(), hits.end(), better);
            hits.back() = hit;
            std::push_heap(hits.begin(), hits.end(), better);
        }
    }
};

// Score the rows begin to end, all of them allowed, at most kMaxBlockRows, for every query.
void score_run(const ei_index &index, const Queries &queries, size_t begin, size_t end, ei_dot_fn *dot, Best *best)
{
    int64_t sums[kMaxBlockRows];
    for (size_t q = 0; q < queries.views.size(); q++) {
        dot(&queries.views[q], index.codes + begin * index.row_bytes, index.row_bytes, end - begin, sums);
        for (size_t row = begin; row < end; row++) {
            const double scale = queries.scales[q] * double{index.scales[row]};
            best[q].offer({static_cast<float>(static_cast<double>(sums[row - begin]) * scale), row});
        }
    }
}

void scan_rows(const ei_index &index, const Queries &queries, const uint8_t *allow, size_t begin, size_t end, Best *best)
{
    ei_dot_fn *const dot = ei_dot();
    const size_t block_rows = std::min(kMaxBlockRows, kBlockBytes / index.row_bytes);
    while (begin < end) {
        if (allow && !allow[begin]) {
            begin++;
            continue;
        }
        const size_t limit = std::min(end, begin + block_rows);
        size_t run_end = limit;
        if (allow) {
            for (run_end = begin + 1; run_end < limit && allow[run_end];) run_end++;
        }
        score_run(index, queries, begin, run_end, dot, best);
        begin = run_end;
    }
}

void search(const ei_index &index, const Queries &queries, size_t k, const uint8_t *allow, unsigned n_threads, int64_t *ids,
            float *scores)
{
    const size_t n_queries = queries.views.size();
    std::vector<Best> best(n_queries * n_threads, Best{std::min(k, index.count), {}});
    for (Best &b : best) b.hits.reserve(b.k);
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    const auto scan_part = [&](unsigned t) {
        scan_rows(index, queries, allow, index.count * t / n_threads, index.count * (t + 1) / n_threads, &best[t * n_queries]);
    };
    unsigned started = 1;
    try {
        for (; started < n_threads; started++) threads.emplace_back(scan_part, started);
    } catch (const std::exception &) {  // the system gives no more threads: this one does their share
    }
    scan_part(0);
    for (unsigned t = started; t < n_threads; t++) scan_part(t);
    for (std::thread &thread : threads) thread.join();

    for (size_t q = 0; q < n_queries; q++) {
        std::vector<Hit> &hits = best[q].hits;
        for (unsigned t = 1; t < n_threads; t++) {
            for (const Hit &hit : best[t * n_queries + q].hits) best[q].offer(hit);
        }
        std::sort(hits.begin(), hits.end(), better);
        for (size_t i = 0; i < k; i++) {
            ids[q * k + i] = i < hits.size() ? index.ids[hits[i].row] : -1;
            scores[q * k + i] = i < hits.size() ? hits[i].score : -std::numeric_limits<float>::infinity();
        }
    }
}

}  // namespace

ei_status ei_search(const ei_index *index, const float *queries, size_t n_queries, size_t k, const uint8_t *allow,
                    unsigned threads, int64_t *ids, float *scores)
{
    if (k == 0 || threads == 0 || threads > 64) return EI_ARGUMENT;
    bool finite;
    largest_magnitude(queries, n_queries * index->dim, &finite);
    if (!finite) return EI_ARGUMENT;
    try {
        search(*index, Queries(queries, n_queries, index->dim, index->row_bytes), k, allow, threads, ids, scores);
    } catch (const std::exception &) {  // bad_alloc, or length_error for a k that no memory holds
        return EI_MEMORY;
    }
    return EI_OK;
}

ei_status ei_quantize(const float *rows, size_t n, uint32_t dim, int8_t *codes, float *scales)
{
    if (dim == 0 || dim > EI_MAX_DIM) return EI_ARGUMENT;
    const size_t row_bytes = ei_row_bytes(dim);
    for (size_t r = 0; r < n; r++, rows += dim, codes += row_bytes) {
        bool finite;
        const float peak = largest_magnitude(rows, dim, &finite);
        if (!finite || peak < 1e-30f) return EI_ARGUMENT;
        const float factor = 127.0f / peak;
        for (size_t i = 0; i < dim; i++) codes[i] = static_cast<int8_t>(round_to_int(rows[i] * factor));
        std::memset(codes + dim, 0, row_bytes - dim);
        scales[r] = peak / 127.0f;
    }
    return EI_OK;
}
