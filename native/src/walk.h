// Following the graph: from the entry rows to ever nearer neighbours, keeping the best `ef` rows seen in sight.
#ifndef EI_WALK_H
#define EI_WALK_H

#include "edge_index.h"
#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace ei {

// A score and its row as one number, larger for a better score, then for a smaller row. The lowest bit is free.
using Key = uint64_t;

inline Key key_of(float score, uint32_t row)
{
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    bits ^= (0u - (bits >> 31)) | 0x80000000u;  // without a branch: there is no telling the sign
    return Key{bits} << 32 | (0x7fffffffu - row) << 1;
}

inline uint32_t row_of(Key key) { return 0x7fffffffu - (static_cast<uint32_t>(key) >> 1); }

inline float score_of(Key key)
{
    uint32_t bits = static_cast<uint32_t>(key >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

// The rows that can be met, as they are read while searching.
struct Rows {
    size_t count, dims;
    const uint8_t *codes;
    const float *scales;
    const float *extras;  // NULL, or what else a score depends on
    const ei_kernel *kernel;
};

// What is looked for: score of a row = scale * scales[row] * (product of query and codes) + extra_weight * extras[row].
struct Aim {
    const int8_t *query;
    int32_t sum;
    float scale, extra_weight;
};

inline void score_rows(const Rows &rows, const Aim &aim, const uint32_t *which, size_t n, int32_t *dots, float *scores)
{
    rows.kernel->dot4(aim.query, rows.dims, rows.codes, which, n, dots);
    for (size_t i = 0; i < n; i++) {
        scores[i] = static_cast<float>(dots[i] - 8 * aim.sum) * (aim.scale * rows.scales[which[i]]);
    }
    if (!rows.extras) return;
    for (size_t i = 0; i < n; i++) scores[i] += aim.extra_weight * rows.extras[which[i]];
}

inline void prefetch_row(const Rows &rows, uint32_t row)
{
    const uint8_t *codes = rows.codes + row * (rows.dims / 2);
    for (size_t at = 0; at < rows.dims / 2; at += 64) EI_PREFETCH_FAR(codes + at);
    EI_PREFETCH_NOW(rows.scales + row);
}

constexpr size_t kStarts = 8;  // entries that a walk begins with

// One walk. Memory waits cost more than arithmetic, so it goes in steps, each of which asks for the bytes that the next one
// reads: several walks that take steps in turn wait together.
//
// Links gives the neighbours of a row: `const uint32_t *of(uint32_t row, size_t *n) const`, n <= EI_MAX_LINKS, and
// `void prefetch(uint32_t row) const`.
template <class Links>
class Walk {
  public:
    Walk(const Rows &rows, const Links &links) : rows_(rows), links_(links), visited_((rows.count + 63) / 64) {}

    // Begin anew. The bytes at aim.query must stay until the last step.
    void start(const Aim &aim, size_t ef, const uint32_t *entries, size_t n_entries)
    {
        forget();
        aim_ = aim;
        ef_ = ef;
        pool_.resize(ef);
        size_ = next_ = 0;
        scores_next_ = false;

        std::vector<Key> &best = starts_;
        best.clear();
        for (size_t i = 0; i < n_entries; i += EI_MAX_LINKS) {
            meet(entries + i, std::min(size_t{EI_MAX_LINKS}, n_entries - i));
            float scores[EI_MAX_LINKS];
            score_todo(scores);
            for (size_t j = 0; j < n_todo_; j++) best.push_back(key_of(scores[j], todo_[j]) | 1);
        }
        // A few of the entries suffice to go on from; most of the others would only be sorted in and pushed out again.
        const auto n = static_cast<ptrdiff_t>(std::min({best.size(), kStarts, ef}));
        std::partial_sort(best.begin(), best.begin() + n, best.end(), std::greater<Key>());
        std::copy(best.begin(), best.begin() + n, pool_.begin());
        size_ = n_joined_ = static_cast<size_t>(n);
    }

    // Take a step; false when there is nothing more to do.
    bool step()
    {
        if (scores_next_) {
            score();
            if (next_ < size_) links_.prefetch(row_of(pool_[next_]));
        } else {
            if (next_ == size_ && !other_entries_join()) return false;
            const uint32_t row = row_of(pool_[next_]);
            pool_[next_] &= ~Key{1};
            while (next_ < size_ && !(pool_[next_] & 1)) next_++;
            if (next_ < size_) links_.prefetch(row_of(pool_[next_]));  // the next one, unless something better is met
            size_t n;
            const uint32_t *neighbours = links_.of(row, &n);
            meet(neighbours, n);
        }
        scores_next_ = !scores_next_;
        return true;
    }

    // The rows in sight, best first. The lowest bits of the keys mean nothing.
    const Key *begin() const { return pool_.data(); }
    const Key *end() const { return pool_.data() + size_; }

  private:
    // Let those of the entries in that the walk did not begin with, but that are as near as what it found. True if any was.
    bool other_entries_join()
    {
        for (; n_joined_ < starts_.size(); n_joined_++) insert(starts_[n_joined_]);
        return next_ < size_;
    }

    void forget()
    {
        if (seen_.size() * 512 < rows_.count) {
            for (const uint32_t row : seen_) visited_[row / 64] = 0;
        } else {
            std::fill(visited_.begin(), visited_.end(), 0);
        }
        seen_.clear();
    }

    void meet(const uint32_t *which, size_t n)
    {
        uint64_t *const visited = visited_.data();
        const size_t count = rows_.count;
        size_t n_todo = 0;
        for (size_t i = 0; i < n; i++) {
            const uint32_t row = which[i];
            if (row >= count) continue;  // a damaged file that nobody checked
            const uint64_t word = visited[row / 64], bit = uint64_t{1} << row % 64;
            visited[row / 64] = word | bit;
            todo_[n_todo] = row;
            n_todo += !(word & bit);
        }
        for (size_t i = 0; i < n_todo; i++) prefetch_row(rows_, todo_[i]);
        seen_.insert(seen_.end(), todo_, todo_ + n_todo);
        n_todo_ = n_todo;
    }

    void score_todo(float *scores)
    {
        int32_t dots[EI_MAX_LINKS];
        score_rows(rows_, aim_, todo_, n_todo_, dots, scores);
    }

    void score()
    {
        float scores[EI_MAX_LINKS];
        score_todo(scores);
        const float worst = size_ == ef_ ? score_of(pool_[ef_ - 1]) : -std::numeric_limits<float>::infinity();
        uint32_t good[EI_MAX_LINKS];
        size_t n_good = 0;
        for (size_t i = 0; i < n_todo_; i++) {
            good[n_good] = static_cast<uint32_t>(i);
            n_good += scores[i] >= worst;
        }
        for (size_t i = 0; i < n_good; i++) insert(key_of(scores[good[i]], todo_[good[i]]) | 1);
    }

    void insert(Key key)
    {
        Key *const pool = pool_.data();
        if (size_ == ef_ && key < pool[ef_ - 1]) return;
        size_ -= size_ == ef_;
        // A binary search without branches, which no processor would predict here.
        const Key *place = pool;
        for (size_t n = size_; n > 0;) {
            const size_t half = (n + 1) / 2;
            place += half & (size_t{0} - (place[half - 1] > key));
            n -= half;
        }
        const auto at = static_cast<size_t>(place - pool);
        std::memmove(pool + at + 1, pool + at, (size_ - at) * sizeof *pool);
        pool[at] = key;
        size_++;
        next_ = std::min(next_, at);
    }

    Rows rows_;
    Links links_;
    Aim aim_{};
    size_t ef_ = 0;
    std::vector<Key> pool_;  // best first; the lowest bit is set where the row's neighbours have not been looked at
    size_t size_ = 0;        // of what is in use of it
    size_t next_ = 0;        // the first place with that bit
    bool scores_next_ = false;
    uint32_t todo_[EI_MAX_LINKS] = {};  // rows whose codes have been asked for
    size_t n_todo_ = 0;
    std::vector<uint64_t> visited_;
    std::vector<uint32_t> seen_;
    std::vector<Key> starts_;  // the entries, those that the walk began with first
    size_t n_joined_ = 0;      // of the entries: are in the pool, or were found too far
};

}  // namespace ei
#endif
