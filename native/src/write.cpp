// Writing a file in one pass: the checksums first, because the header that holds them comes first.
#include "builder.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace ei {

namespace {

using Use = std::function<bool(const void *, size_t)>;  // false: stop

// Use the bytes of a section, in order and without the padding.
bool each_part(const ei_builder &b, int kind, const Use &use)
{
    const auto whole = [&](const auto &values) { return values.empty() || use(values.data(), values.size() * sizeof values[0]); };
    std::vector<uint32_t> some;
    std::vector<uint64_t> sums;
    switch (kind) {
    case kCentre: return whole(b.frame->centre());
    case kCodes: return b.count() == 0 || use(b.codes.data(), b.count() * b.dims() / 2);
    case kScales: return whole(b.scales);
    case kNorms: return b.settings.metric != EI_L2 || whole(b.norms);
    case kIds: return whole(b.ids);
    case kLinkStarts:
        if (b.entries.empty()) return true;
        some.push_back(0);
        for (size_t row = 0; row < b.count(); row++) some.push_back(some.back() + b.degrees[row]);
        return whole(some);
    case kLinks:
        for (size_t row = 0; row < b.count() && !b.entries.empty(); row++) {
            const uint32_t *links = b.links.data() + row * b.stride;
            some.insert(some.end(), links, links + b.degrees[row]);
            if (some.size() >= 1 << 16 || row + 1 == b.count()) {
                if (!whole(some)) return false;
                some.clear();
            }
        }
        return true;
    case kEntries: return whole(b.entries);
    case kResidualSums:
        for (size_t row = 0; row < b.count(); row += kGroupRows) {
            sums.push_back(checksum_of(b.residual(row), std::min(kGroupRows, b.count() - row) * b.dims()));
        }
        return whole(sums);
    default:
        for (size_t row = 0; row < b.count(); row += kChunkRows) {
            if (!use(b.residual(row), std::min(kChunkRows, b.count() - row) * b.dims())) return false;
        }
        return true;
    }
}

// Cut parts of any size into blocks of a section's alignment, the last one padded.
class Blocks {
  public:
    explicit Blocks(const Use &use) : use_(use) {}
    bool operator()(const void *bytes, size_t size)
    {
        const auto *at = static_cast<const uint8_t *>(bytes);
        if (n_ > 0) {
            const size_t n = std::min(size, kSectionAlignment - n_);
            std::memcpy(block_ + n_, at, n);
            n_ += n, at += n, size -= n;
            if (n_ < kSectionAlignment) return true;
            n_ = 0;
            if (!use_(block_, kSectionAlignment)) return false;
        }
        const size_t whole = size / kSectionAlignment * kSectionAlignment;
        if (whole && !use_(at, whole)) return false;
        std::memcpy(block_, at + whole, n_ = size - whole);
        return true;
    }
    bool end()
    {
        if (n_ == 0) return true;
        std::memset(block_ + n_, 0, kSectionAlignment - n_);
        return use_(block_, kSectionAlignment);
    }

  private:
    const Use &use_;
    uint8_t block_[kSectionAlignment];
    size_t n_ = 0;
};

bool each_block(const ei_builder &b, int kind, const Use &use)
{
    Blocks blocks(use);
    return each_part(b, kind, std::ref(blocks)) && blocks.end();
}

}  // namespace

ei_status write_file(const ei_builder &b, ei_write write, void *context)
{
    Layout layout{b.settings.dim, b.metric(), b.settings.max_links, b.settings.ef_build, b.count(), 0, b.entries.size()};
    for (const uint8_t degree : b.degrees) layout.n_links += degree;
    uint64_t checksums[kSections];
    for (int kind = 0; kind < kSections; kind++) {
        Checksum checksum;
        each_block(b, kind, [&](const void *bytes, size_t size) {
            checksum.add(bytes, size);
            return true;
        });
        checksums[kind] = checksum.end();
    }
    uint8_t header[EI_HEADER_BYTES];
    write_header(layout, checksums, header);
    if (write(context, header, sizeof header) != 0) return EI_CANCELLED;
    for (int kind = 0; kind < kSections; kind++) {
        const bool done = each_block(b, kind, [&](const void *bytes, size_t size) { return write(context, bytes, size) == 0; });
        if (!done) return EI_CANCELLED;
    }
    return EI_OK;
}

}  // namespace ei
