// The graph over the rows of a build.
//
// Every row gets links to rows near it, of which those are kept that lead in different directions: a neighbour is
// left out if another one that is kept is nearer to it than the row is. Rows are put in one batch after the other, in an
// order drawn from the seed. The rows of a batch look for their neighbours in the graph of the batches before, each by
// itself; then the links back to them are made, for each target by itself. So no step depends on which thread did what, and
// the file is the same for any number of threads.
#include "builder.h"
#include "walk.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace ei {

namespace {

constexpr size_t kLargestBatch = 4096;
constexpr size_t kWalksAtOnce = 4;
constexpr uint32_t kNone = UINT32_MAX;

// A walk starts with a look at every entry row: a quarter as many as the square root of all rows, and enough of them to have one
// in most clusters of a small file, between which there may be few links.
constexpr double kEntriesFactor = 0.25;
constexpr size_t kFewestEntries = 64;
// A neighbour is left out if a chosen one is nearer to it than the row is, by this factor of the squared distance: a little
// above 1 keeps a few more long links. Measured at 1.0, 1.05, 1.1 and 1.2: fewest rows met for a recall of .99 at 1.05.
constexpr float kAlpha = 1.05f;

uint64_t mixed(uint64_t x)  // a bijection whose output looks random (splitmix64)
{
    x += 0x9E3779B97F4A7C15;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

struct BuildLinks {
    const uint32_t *links;
    const uint8_t *degrees;
    size_t stride;

    const uint32_t *of(uint32_t row, size_t *n) const
    {
        *n = degrees[row];
        return links + row * stride;
    }
    void prefetch(uint32_t row) const
    {
        EI_PREFETCH_NOW(degrees + row);
        for (size_t i = 0; i < stride; i += 16) EI_PREFETCH_NOW(links + row * stride + i);
    }
};

struct Candidate {
    float distance;  // squared, from the row whose neighbours are chosen
    uint32_t row;
    bool operator<(const Candidate &other) const
    {
        return distance != other.distance ? distance < other.distance : row < other.row;
    }
};

struct BackLink {
    uint32_t to, from;
    bool operator<(const BackLink &other) const { return to != other.to ? to < other.to : from < other.from; }
};

class GraphMaker {
  public:
    GraphMaker(ei_builder &b, ei_progress progress, void *context);
    bool make();  // false: cancelled

  private:
    struct Scratch {  // of one thread
        std::vector<int8_t> query;
        std::vector<Candidate> candidates, kept;
        std::vector<uint32_t> which;
        std::vector<int32_t> dots;
        std::vector<float> scores;
        std::vector<BackLink> back_links;  // that the thread's rows ask for
        std::vector<BackLink> arrived;     // at the targets that it has in hand
    };
    struct Lane {
        uint32_t row;
        std::vector<int8_t> query;
        Walk<BuildLinks> walk;
    };

    Aim aim_at(uint32_t row, int8_t *query) const;
    float distance(uint32_t from, uint32_t to, float product) const { return length2(from) + length2(to) - 2 * product; }
    float length2(uint32_t row) const { return b_.extras.empty() ? b_.norms[row] : b_.longest2; }
    void choose(Scratch &scratch, size_t most);
    void set_links(uint32_t row, const std::vector<Candidate> &kept);
    void find_neighbours(unsigned worker, const uint32_t *batch, size_t n, Scratch &scratch);
    void link_back(const BackLink *begin, const BackLink *end, Scratch &scratch);
    void add_batch(const uint32_t *batch, size_t n);
    void set_lengths();
    void set_order();
    void take_graph();
    void take_links(uint32_t row, const std::vector<uint32_t> &new_rows, Scratch &scratch);
    void choose_among(uint32_t row, Scratch &scratch);
    void reach_all();

    ei_builder &b_;
    ei_progress progress_;
    void *context_;
    Rows rows_;
    size_t most_, kept_;  // links of a row: when there are more than most_, kept_ of them are chosen
    size_t n_taken_;      // rows whose links come from the base
    size_t n_starts_ = 0; // a walk starts from the first so many of the order
    std::vector<Scratch> scratch_;
    std::vector<std::vector<std::unique_ptr<Lane>>> lanes_;
};

GraphMaker::GraphMaker(ei_builder &b, ei_progress progress, void *context)
    : b_(b), progress_(progress), context_(context), most_(b.settings.max_links), kept_(b.settings.max_links * 3 / 4),
      n_taken_(b.base && b.base->has_graph() ? b.base_rows.size() : 0), scratch_(b.threads.count()), lanes_(b.threads.count())
{
    for (Scratch &scratch : scratch_) scratch.query.resize(b.dims());
}

// The row as what is looked for: the product with any row, as in a search, plus that of the further coordinates.
Aim GraphMaker::aim_at(uint32_t row, int8_t *query) const
{
    int32_t sum;
    row_as_query(b_.codes.data() + row * (b_.dims() / 2), b_.residual(row), b_.dims(), query, &sum);
    return {query, sum, b_.scales[row] * 16 * 256, b_.extras.empty() ? 0.0f : b_.extras[row]};
}

// From candidates, sorted, choose up to `most`: the nearest, and then each that is nearer to the row than to any chosen one.
void GraphMaker::choose(Scratch &s, size_t most)
{
    s.kept.clear();
    std::vector<Candidate> &left = s.candidates;
    size_t n = left.size();
    while (n > 0 && s.kept.size() < most) {
        const Candidate chosen = left[0];
        s.kept.push_back(chosen);
        if (s.kept.size() == most) return;
        const Aim aim = aim_at(chosen.row, s.query.data());
        s.which.resize(n), s.dots.resize(n), s.scores.resize(n);
        for (size_t i = 1; i < n; i++) s.which[i] = left[i].row;
        score_rows(rows_, aim, s.which.data() + 1, n - 1, s.dots.data(), s.scores.data());
        size_t n_left = 0;
        for (size_t i = 1; i < n; i++) {
            left[n_left] = left[i];
            n_left += kAlpha * distance(chosen.row, left[i].row, s.scores[i - 1]) > left[i].distance;
        }
        n = n_left;
    }
}

void GraphMaker::set_links(uint32_t row, const std::vector<Candidate> &kept)
{
    for (size_t i = 0; i < kept.size(); i++) b_.links.data()[row * b_.stride + i] = kept[i].row;
    b_.degrees[row] = static_cast<uint8_t>(kept.size());
}

void GraphMaker::find_neighbours(unsigned worker, const uint32_t *batch, size_t n, Scratch &s)
{
    std::vector<std::unique_ptr<Lane>> &lanes = lanes_[worker];
    while (lanes.size() < std::min(n, kWalksAtOnce)) {
        const BuildLinks links{b_.links.data(), b_.degrees.data(), b_.stride};
        std::unique_ptr<Lane> lane(new Lane{0, std::vector<int8_t>(b_.dims()), Walk<BuildLinks>(rows_, links)});
        lanes.push_back(std::move(lane));
    }
    size_t next = 0;
    const auto start = [&](Lane &lane) {
        lane.row = batch[next++];
        lane.walk.start(aim_at(lane.row, lane.query.data()), b_.settings.ef_build, b_.order.data(), n_starts_);
    };
    const auto finish = [&](Lane &lane) {
        s.candidates.clear();
        for (const Key key : lane.walk) {
            if (row_of(key) != lane.row) s.candidates.push_back({distance(lane.row, row_of(key), score_of(key)), row_of(key)});
        }
        std::sort(s.candidates.begin(), s.candidates.end());
        choose(s, kept_);
        set_links(lane.row, s.kept);
        for (const Candidate &c : s.kept) s.back_links.push_back({c.row, lane.row});
    };
    size_t running = std::min(n, kWalksAtOnce);
    for (size_t i = 0; i < running; i++) start(*lanes[i]);
    while (running > 0) {
        for (size_t i = 0; i < running;) {
            if (lanes[i]->walk.step()) {
                i++;
                continue;
            }
            finish(*lanes[i]);
            if (next < n) {
                start(*lanes[i]);
            } else {
                std::swap(lanes[i], lanes[--running]);
            }
        }
    }
}

// Give one row links to rows that have linked to it; where that makes too many, choose anew.
void GraphMaker::link_back(const BackLink *begin, const BackLink *end, Scratch &s)
{
    const uint32_t row = begin->to;
    uint32_t *links = b_.links.data() + row * b_.stride;
    size_t degree = b_.degrees[row];
    const size_t n_new = static_cast<size_t>(end - begin);
    if (degree + n_new <= most_) {
        for (const BackLink *link = begin; link != end; link++) links[degree++] = link->from;
        b_.degrees[row] = static_cast<uint8_t>(degree);
        return;
    }
    s.which.assign(links, links + degree);
    for (const BackLink *link = begin; link != end; link++) s.which.push_back(link->from);
    choose_among(row, s);
}

// Set the links of a row to the best of the rows in scratch.which.
void GraphMaker::choose_among(uint32_t row, Scratch &s)
{
    const size_t n = s.which.size();
    s.dots.resize(n), s.scores.resize(n);
    for (const uint32_t other : s.which) prefetch_row(rows_, other);
    score_rows(rows_, aim_at(row, s.query.data()), s.which.data(), n, s.dots.data(), s.scores.data());
    s.candidates.clear();
    for (size_t i = 0; i < n; i++) s.candidates.push_back({distance(row, s.which[i], s.scores[i]), s.which[i]});
    std::sort(s.candidates.begin(), s.candidates.end());
    choose(s, kept_);
    set_links(row, s.kept);
}

void GraphMaker::add_batch(const uint32_t *batch, size_t n)
{
    b_.threads.each(n, std::max<size_t>(1, std::min<size_t>(64, n / b_.threads.count() / 4)), [&](unsigned worker, size_t begin, size_t end) {
        find_neighbours(worker, batch + begin, end - begin, scratch_[worker]);
    });
    // Each piece has the targets with the same remainder, so no two threads meet at a row.
    const size_t n_pieces = b_.threads.count() * 8;
    b_.threads.each(n_pieces, 1, [&](unsigned worker, size_t piece, size_t) {
        Scratch &s = scratch_[worker];
        std::vector<BackLink> &links = s.arrived;
        links.clear();
        for (const Scratch &from : scratch_) {
            std::copy_if(from.back_links.begin(), from.back_links.end(), std::back_inserter(links),
                         [&](const BackLink &link) { return link.to % n_pieces == piece; });
        }
        std::sort(links.begin(), links.end());
        for (size_t begin = 0, end; begin < links.size(); begin = end) {
            for (end = begin + 1; end < links.size() && links[end].to == links[begin].to;) end++;
            link_back(&links[begin], links.data() + end, s);
        }
    });
    for (Scratch &s : scratch_) s.back_links.clear();
}

// Distances are between the rows as stored, whatever a search will score. For EI_INNER_PRODUCT a further coordinate that makes
// all rows equally long turns the largest product into the smallest distance.
void GraphMaker::set_lengths()
{
    if (b_.settings.metric != EI_INNER_PRODUCT) return;
    b_.longest2 = *std::max_element(b_.norms.begin(), b_.norms.end());
    b_.extras.resize(b_.count());
    for (size_t row = 0; row < b_.count(); row++) b_.extras[row] = std::sqrt(b_.longest2 - b_.norms[row]);
}

// Rows that have a graph first, and each part by a number drawn for each id: rows that came one after the other, which are often
// near each other, then come far apart.
void GraphMaker::set_order()
{
    std::vector<std::pair<uint64_t, uint32_t>> drawn;
    for (uint32_t row = 0; row < b_.count(); row++) {
        drawn.emplace_back(mixed(static_cast<uint64_t>(b_.ids[row]) ^ mixed(b_.settings.seed)), row);
    }
    std::sort(drawn.begin(), drawn.end());
    const auto share = static_cast<size_t>(kEntriesFactor * std::sqrt(static_cast<double>(b_.count())));
    const size_t n_entries = std::max(kFewestEntries, share);
    for (const auto &[number, row] : drawn) {
        b_.order.push_back(row);
        if (b_.entries.size() < n_entries) b_.entries.push_back(row);
    }
    std::stable_partition(b_.order.begin(), b_.order.end(), [&](uint32_t row) { return row < n_taken_; });
}

// Take over the links of the base. Where some of them lead to rows that are left out, choose among the others and those that
// the rows left out led to.
void GraphMaker::take_links(uint32_t row, const std::vector<uint32_t> &new_rows, Scratch &s)
{
    const FileLinks graph = b_.base->graph();
    s.which.clear();
    bool mend = false;
    const auto collect = [&](uint32_t old_row, const auto &otherwise) {
        size_t n;
        const uint32_t *links = graph.of(old_row, &n);
        for (size_t i = 0; i < n; i++) {
            if (links[i] >= new_rows.size()) continue;  // a damaged file that is well signed
            if (new_rows[links[i]] != row && new_rows[links[i]] != kNone) s.which.push_back(new_rows[links[i]]);
            if (new_rows[links[i]] == kNone) otherwise(links[i]);
        }
    };
    collect(b_.base_rows[row], [&](uint32_t left_out) {
        mend = true;
        collect(left_out, [](uint32_t) {});
    });
    if (mend || s.which.size() > most_) {
        std::sort(s.which.begin(), s.which.end());
        s.which.erase(std::unique(s.which.begin(), s.which.end()), s.which.end());
        choose_among(row, s);
    } else {
        std::copy(s.which.begin(), s.which.end(), b_.links.data() + row * b_.stride);
        b_.degrees[row] = static_cast<uint8_t>(s.which.size());
    }
}

void GraphMaker::take_graph()
{
    std::vector<uint32_t> new_rows(b_.base->count(), kNone);
    for (uint32_t row = 0; row < n_taken_; row++) new_rows[b_.base_rows[row]] = row;
    b_.threads.each(n_taken_, 256, [&](unsigned worker, size_t begin, size_t end) {
        for (size_t row = begin; row < end; row++) take_links(static_cast<uint32_t>(row), new_rows, scratch_[worker]);
    });
}

// Make every row one that a walk can come to: choosing may leave rows (of many that are equal, say) that no link leads to.
void GraphMaker::reach_all()
{
    std::vector<bool> reached(b_.count());
    std::vector<uint32_t> to_visit, last_added(b_.count(), kNone);
    const auto reach_from = [&](uint32_t start) {
        reached[start] = true;
        to_visit.push_back(start);
        while (!to_visit.empty()) {
            const uint32_t row = to_visit.back();
            to_visit.pop_back();
            for (size_t i = 0; i < b_.degrees[row]; i++) {
                const uint32_t next = b_.links.data()[row * b_.stride + i];
                if (!reached[next]) to_visit.push_back(next);
                reached[next] = true;
            }
        }
    };
    const auto link_to = [&](uint32_t row) {
        for (size_t i = 0; i < b_.degrees[row]; i++) {
            uint32_t parent = b_.links.data()[row * b_.stride + i];
            if (!reached[parent]) continue;
            const uint32_t first = parent;
            while (b_.degrees[parent] == b_.stride && last_added[parent] != kNone) parent = last_added[parent];
            if (b_.degrees[parent] == b_.stride) continue;
            b_.links.data()[parent * b_.stride + b_.degrees[parent]++] = row;
            last_added[first] = row;
            return true;
        }
        return false;
    };
    for (const uint32_t entry : b_.entries) reach_from(entry);
    for (uint32_t row = 0; row < b_.count(); row++) {
        if (reached[row]) continue;
        if (!link_to(row)) b_.entries.push_back(row);
        reach_from(row);
    }
}

bool GraphMaker::make()
{
    const size_t n = b_.count();
    set_lengths();
    b_.stride = most_;
    set_order();
    b_.links = AlignedArray<uint32_t>(n * b_.stride);
    b_.degrees.resize(n);
    rows_ = {n, b_.dims(), b_.codes.data(), b_.scales.data(), b_.extras.empty() ? nullptr : b_.extras.data(), ei_kernel_in_use()};
    if (n_taken_ > 0) take_graph();
    for (size_t done = n_taken_; done < n;) {
        // Rows of a batch do not see each other: it is small beside what is there, and beside what is new, which may be alike.
        const size_t size = std::min({std::max<size_t>(1, done / 32), std::max<size_t>(16, (done - n_taken_) / 4), kLargestBatch, n - done});
        n_starts_ = std::min(done, b_.entries.size());
        add_batch(&b_.order[done], size);
        done += size;
        if (progress_ && done < n && progress_(context_, done, n) != 0) return false;
    }
    reach_all();
    return true;
}

}  // namespace

bool make_graph(ei_builder &builder, ei_progress progress, void *context) { return GraphMaker(builder, progress, context).make(); }

}  // namespace ei
