// The file as a searchable thing: where its sections stand, and which of its bytes have been checked. FORMAT.md describes it.
#ifndef EI_FORMAT_H
#define EI_FORMAT_H

#include "edge_index.h"
#include "encode.h"

#include <atomic>
#include <memory>

namespace ei {

enum SectionKind { kCentre, kCodes, kScales, kNorms, kIds, kLinkStarts, kLinks, kEntries, kResidualSums, kResiduals, kSections };

constexpr size_t kSectionAlignment = 4096;
constexpr size_t kGroupRows = 16;  // residuals are checked in groups of so many rows, when one of them is first read

// What decides where everything in a file stands.
struct Layout {
    uint32_t dim;
    ei_metric metric;
    uint32_t max_links, ef_build;
    uint64_t count, n_links, n_entries;

    bool valid() const;
    uint64_t section_bytes(int kind) const;  // before padding
};

struct Header;

// Fill a header of EI_HEADER_BYTES for a file of this layout whose padded sections have these checksums.
void write_header(const Layout &layout, const uint64_t checksums[kSections], void *out);

class Checksum {
  public:
    Checksum();
    void add(const void *bytes, size_t size);  // size is a multiple of 64
    uint64_t end() const;

  private:
    uint64_t lanes_[8];
};

uint64_t checksum_of(const void *bytes, size_t size);

inline uint64_t padded(uint64_t size) { return (size + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment; }

// The graph in a file.
struct FileLinks {
    const uint32_t *starts, *links;
    uint64_t n_links;

    const uint32_t *of(uint32_t row, size_t *n) const
    {
        const uint32_t begin = starts[row], end = starts[row + 1];
        // Always true, unless the file is damaged and nobody checked.
        *n = begin <= end && end <= n_links && end - begin <= EI_MAX_LINKS ? end - begin : 0;
        return *n ? links + begin : links;
    }
    void prefetch(uint32_t row) const
    {
        size_t n;
        const uint32_t *begin = of(row, &n);
        for (size_t i = 0; i < n + 15; i += 16) EI_PREFETCH_NOW(begin + i);
    }
};

inline bool bit_of(const uint8_t *bits, size_t i) { return bits[i / 8] >> i % 8 & 1; }

}  // namespace ei

struct ei_index {
    ei::Layout layout;
    ei::Frame frame;
    uint64_t file_bytes, hot_bytes, ids_offset;
    size_t code_bytes;  // of a row

    const uint8_t *codes;
    const float *scales;
    const float *norms;  // squared lengths, for EI_L2; else NULL
    const int64_t *ids;
    const uint32_t *link_starts, *links, *entries;
    const uint64_t *residual_sums;
    const int8_t *residuals;

    ei_check check;  // how it was opened
    mutable std::unique_ptr<std::atomic<uint8_t>[]> checked_groups;

    size_t count() const { return static_cast<size_t>(layout.count); }
    const uint8_t *row_codes(size_t row) const { return codes + row * code_bytes; }
    bool has_graph() const { return layout.n_entries > 0; }

    ei::FileLinks graph() const { return {link_starts, links, layout.n_links}; }

    // The residual of a row; NULL if its bytes are not those that were written.
    const int8_t *residual(size_t row) const;
};
#endif
