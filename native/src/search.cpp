// Search: by following the graph or by reading every allowed row, then scoring the best again with all that is stored.
#include "format.h"
#include "parallel.h"
#include "walk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace ei {

namespace {

constexpr size_t kDefaultEf = 128;
constexpr size_t kWalksAtOnce = 4;
constexpr size_t kBlockRows = 256;  // of a scan: their codes stay in the cache while one query after the other reads them

// Of how many rows the order by codes is trusted less than the order by whole rows: on real vectors the ten best are always
// among the 30 best by codes.
size_t n_rescored(size_t k) { return 2 * k + 16; }

struct Request {
    const ei_index &index;
    const float *queries;
    size_t n_queries, k;
    const uint8_t *allow;
    size_t n_allowed;
    int64_t *ids;
    float *scores;

    bool allows(size_t row) const { return !allow || bit_of(allow, row); }
};

Rows rows_of(const ei_index &index) { return {index.count(), index.frame.dims(), index.codes, index.scales, index.norms, ei_kernel_in_use()}; }

// The norms matter for EI_L2 only: half the squared distance is (|query|^2 + |row|^2) / 2 - query * row.
Aim aim_of(const Query &query) { return {query.coarse.data(), query.coarse_sum, query.coarse_scale, -0.5f}; }

struct Damaged {};

// Score candidates again, with their residuals, and put the k best of them into the answer.
void answer(const Request &request, size_t q, const Query &query, std::vector<Key> &candidates)
{
    const ei_index &index = request.index;
    const auto dot12 = ei_kernel_in_use()->dot12;
    const ei_query fine = query.fine();
    for (const Key candidate : candidates) {
        const int8_t *residual = index.residuals + row_of(candidate) * index.frame.dims();
        for (size_t at = 0; at < index.frame.dims(); at += 64) EI_PREFETCH_FAR(residual + at);
    }
    for (Key &candidate : candidates) {
        const uint32_t row = row_of(candidate);
        const int8_t *residual = index.residual(row);
        if (!residual) throw Damaged();
        const int64_t sum = dot12(&fine, index.frame.dims(), index.row_codes(row), residual);
        double score = static_cast<double>(sum) * query.fine_scale * double{index.scales[row]};
        if (index.norms) {
            score = -std::max(0.0, query.norm2 - 2 * score + double{index.norms[row]});
        } else {
            score += query.centre_product;
            if (index.layout.metric == EI_COSINE) score = std::min(1.0, std::max(-1.0, score));  // rounding may lead beyond
        }
        candidate = key_of(static_cast<float>(score), row);
    }
    const size_t n = std::min(request.k, candidates.size());
    std::partial_sort(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(n), candidates.end(), std::greater<Key>());
    for (size_t i = 0; i < n; i++) {
        request.ids[q * request.k + i] = index.ids[row_of(candidates[i])];
        request.scores[q * request.k + i] = score_of(candidates[i]);
    }
}

void set_query(const Request &request, size_t q, Query *query)
{
    if (!query->set(request.index.frame, request.queries + q * request.index.layout.dim)) throw EI_VECTOR;
}

// ---- the graph ----

// Answer the queries begin to end; return those for which the walk met fewer allowed rows than there could be hits.
std::vector<size_t> follow_graph(const Request &request, size_t ef, size_t begin, size_t end)
{
    struct Lane {
        size_t q;
        Query query;
        Walk<FileLinks> walk;
    };
    const ei_index &index = request.index;
    const size_t wanted = std::min(request.k, request.n_allowed);
    std::vector<size_t> starved;
    std::vector<std::unique_ptr<Lane>> lanes;
    std::vector<Key> candidates;
    size_t next = begin;
    const auto start = [&](Lane &lane) {
        lane.q = next++;
        set_query(request, lane.q, &lane.query);
        lane.walk.start(aim_of(lane.query), ef, index.entries, static_cast<size_t>(index.layout.n_entries));
    };
    const auto finish = [&](Lane &lane) {
        candidates.clear();
        for (const Key key : lane.walk) {
            if (request.allows(row_of(key))) candidates.push_back(key);
            if (candidates.size() == n_rescored(request.k)) break;
        }
        if (candidates.size() < wanted) {
            starved.push_back(lane.q);
        } else {
            answer(request, lane.q, lane.query, candidates);
        }
    };
    const size_t n_lanes = std::min(kWalksAtOnce, end - begin);
    for (size_t i = 0; i < n_lanes; i++) {
        std::unique_ptr<Lane> lane(new Lane{0, Query(index.frame.dims()), Walk<FileLinks>(rows_of(index), index.graph())});
        lanes.push_back(std::move(lane));
        start(*lanes.back());
    }
    while (!lanes.empty()) {
        for (size_t i = 0; i < lanes.size();) {
            if (lanes[i]->walk.step()) {
                i++;
                continue;
            }
            finish(*lanes[i]);
            if (next < end) {
                start(*lanes[i]);
            } else {
                std::swap(lanes[i], lanes.back());
                lanes.pop_back();
            }
        }
    }
    return starved;
}

// ---- the scan ----

// The best so far of one query: a heap whose front is the worst of them.
struct Best {
    size_t size;
    std::vector<Key> keys;

    void offer(Key key)
    {
        if (keys.size() < size) {
            keys.push_back(key);
            std::push_heap(keys.begin(), keys.end(), std::greater<Key>());
        } else if (key > keys.front()) {
            std::pop_heap(keys.begin(), keys.end(), std::greater<Key>());
            keys.back() = key;
            std::push_heap(keys.begin(), keys.end(), std::greater<Key>());
        }
    }
    float threshold() const { return keys.size() < size ? -std::numeric_limits<float>::infinity() : score_of(keys.front()); }
};

void scan_block(const Rows &rows, const Aim &aim, const uint32_t *which, size_t first, size_t n, Best *best)
{
    int32_t dots[kBlockRows];
    float scores[kBlockRows];
    if (which) {
        score_rows(rows, aim, which, n, dots, scores);
    } else {
        rows.kernel->dot4(aim.query, rows.dims, rows.codes + first * (rows.dims / 2), nullptr, n, dots);
        const float *scales = rows.scales + first;
        for (size_t i = 0; i < n; i++) scores[i] = static_cast<float>(dots[i] - 8 * aim.sum) * (aim.scale * scales[i]);
        if (rows.extras) {
            for (size_t i = 0; i < n; i++) scores[i] += aim.extra_weight * rows.extras[first + i];
        }
    }
    float threshold = best->threshold();
    for (size_t i = 0; i < n; i++) {
        if (!(scores[i] >= threshold)) continue;
        best->offer(key_of(scores[i], which ? which[i] : static_cast<uint32_t>(first + i)));
        threshold = best->threshold();
    }
}

void scan_rows(const Request &request, const std::vector<Query> &queries, size_t begin, size_t end, std::vector<Best> &best)
{
    const Rows rows = rows_of(request.index);
    uint32_t which[kBlockRows];
    for (size_t first = begin; first < end;) {
        size_t n = 0, last = first;
        if (request.allow) {
            for (; last < end && n < kBlockRows; last++) {
                if (last % 8 == 0 && request.allow[last / 8] == 0) {
                    last += 7;
                } else if (request.allows(last)) {
                    which[n++] = static_cast<uint32_t>(last);
                }
            }
            last = std::min(last, end);
        } else {
            last = std::min(end, first + kBlockRows);
            n = last - first;
        }
        const bool dense = n == last - first;
        if (!dense) {
            for (size_t i = 0; i < n; i++) prefetch_row(rows, which[i]);
        }
        for (size_t q = 0; q < queries.size(); q++) {
            if (n) scan_block(rows, aim_of(queries[q]), dense ? nullptr : which, first, n, &best[q]);
        }
        first = last;
    }
}

void scan(const Request &request, const std::vector<size_t> &which, Threads &threads)
{
    constexpr size_t kQueriesAtOnce = 64;
    constexpr size_t kPieceRows = 1 << 14;
    const size_t n_pieces = std::min<size_t>(threads.count(), (request.index.count() + kPieceRows - 1) / kPieceRows);
    const size_t size = std::min(n_rescored(request.k), request.n_allowed);
    for (size_t first = 0; first < which.size(); first += kQueriesAtOnce) {
        const size_t n = std::min(kQueriesAtOnce, which.size() - first);
        std::vector<Query> queries(n, Query(request.index.frame.dims()));
        for (size_t i = 0; i < n; i++) set_query(request, which[first + i], &queries[i]);
        std::vector<std::vector<Best>> best(n_pieces, std::vector<Best>(n, Best{size, {}}));
        threads.each(n_pieces, 1, [&](unsigned, size_t piece, size_t) {
            // Pieces meet at multiples of 8 rows, so that each takes whole bytes of the filter.
            const auto edge = [&](size_t p) { return p == n_pieces ? request.index.count() : request.index.count() * p / n_pieces / 8 * 8; };
            scan_rows(request, queries, edge(piece), edge(piece + 1), best[piece]);
        });
        threads.each(n, 1, [&](unsigned, size_t i, size_t) {
            for (size_t piece = 1; piece < n_pieces; piece++) {
                for (const Key key : best[piece][i].keys) best[0][i].offer(key);
            }
            answer(request, which[first + i], queries[i], best[0][i].keys);
        });
    }
}

// ---- which of them ----

size_t count_allowed(const uint8_t *allow, size_t n_rows)
{
    size_t n = 0, row = 0;
    for (; row + 64 <= n_rows; row += 64) {
        uint64_t word;
        std::memcpy(&word, allow + row / 8, sizeof word);
        for (; word; word &= word - 1) n++;
    }
    for (; row < n_rows; row++) n += bit_of(allow, row);
    return n;
}

// Fewer rows are allowed, the more must be kept in sight to meet enough of them.
size_t widened(size_t ef, const Request &request)
{
    const double share = static_cast<double>(request.n_allowed) / static_cast<double>(request.index.count());
    return static_cast<size_t>(std::min(static_cast<double>(ef) / share, double{EI_MAX_EF}));
}

// The cost model, from `edge-rag bench index --part scale`: for each row in sight a walk meets about 16, and meeting one costs as
// much as reading 4 in order.
bool graph_is_cheaper(const Request &request, size_t ef)
{
    constexpr double kMetForEach = 16, kCostOfMeeting = 4;
    return static_cast<double>(ef) * kMetForEach * kCostOfMeeting < static_cast<double>(request.n_allowed);
}

void search(const Request &request, const ei_search_settings &settings)
{
    std::fill_n(request.ids, request.n_queries * request.k, int64_t{-1});
    std::fill_n(request.scores, request.n_queries * request.k, -std::numeric_limits<float>::infinity());
    if (request.n_allowed == 0) return;
    Threads threads(settings.threads);
    std::vector<size_t> to_scan;
    const size_t ef = widened(std::max<size_t>(settings.ef ? settings.ef : std::max(kDefaultEf, n_rescored(request.k)), request.k), request);
    if (request.index.has_graph() && settings.way != EI_SCAN && (settings.way == EI_GRAPH || graph_is_cheaper(request, ef))) {
        const size_t grain = threads.count() == 1 ? request.n_queries : kWalksAtOnce * 4;
        std::vector<std::vector<size_t>> starved(threads.count());
        threads.each(request.n_queries, grain, [&](unsigned worker, size_t begin, size_t end) {
            const std::vector<size_t> some = follow_graph(request, ef, begin, end);
            starved[worker].insert(starved[worker].end(), some.begin(), some.end());
        });
        for (const std::vector<size_t> &some : starved) to_scan.insert(to_scan.end(), some.begin(), some.end());
    } else {
        for (size_t q = 0; q < request.n_queries; q++) to_scan.push_back(q);
    }
    if (!to_scan.empty()) scan(request, to_scan, threads);
}

}  // namespace

}  // namespace ei

ei_status ei_search(const ei_index *index, const float *queries, size_t n_queries, const ei_search_settings *settings,
                    int64_t *ids, float *scores)
{
    if (settings->k == 0 || settings->ef > EI_MAX_EF || settings->threads == 0 || settings->threads > EI_MAX_THREADS ||
        settings->way > EI_GRAPH) {
        return EI_ARGUMENT;
    }
    const size_t n_allowed = settings->allow ? ei::count_allowed(settings->allow, index->count()) : index->count();
    try {
        ei::search({*index, queries, n_queries, settings->k, settings->allow, n_allowed, ids, scores}, *settings);
    } catch (const ei::Damaged &) {
        return EI_DAMAGED;
    } catch (const ei_status status) {
        return status;
    } catch (const std::exception &) {  // bad_alloc, or length_error for a k that no memory holds
        return EI_MEMORY;
    }
    return EI_OK;
}
