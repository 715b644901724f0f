// The file: its header, its checksums, and the checks that make its bytes safe to search. FORMAT.md is the description.
#include "format.h"
#include "parallel.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <new>

namespace ei {

namespace {

constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'I', 'D', 'X', '\n'};
constexpr uint32_t kVersion = 2;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio, odd

uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

}  // namespace

struct Section {
    uint32_t kind;  // SectionKind + 1
    uint32_t reserved;
    uint64_t offset;
    uint64_t size;  // padded
    uint64_t checksum;
};

struct Header {
    char magic[8];
    uint32_t version;
    uint32_t byte_order;
    uint64_t checksum;  // of the header, taken with 0 here
    uint64_t file_bytes;
    uint64_t hot_bytes;
    uint64_t count;
    uint64_t n_links;
    uint64_t n_entries;
    uint32_t dim;
    uint32_t metric;
    uint32_t max_links;
    uint32_t ef_build;
    uint32_t n_sections;
    uint32_t reserved;
    Section sections[kSections];
    uint8_t rest[EI_HEADER_BYTES - 88 - kSections * sizeof(Section)];
};
static_assert(sizeof(Section) == 32 && sizeof(Header) == EI_HEADER_BYTES, "as in FORMAT.md");

bool Layout::valid() const
{
    const bool graph = n_entries > 0;
    return dim >= 1 && dim <= EI_MAX_DIM && metric >= EI_COSINE && metric <= EI_L2 && max_links <= EI_MAX_LINKS &&
           ef_build <= EI_MAX_EF && count <= EI_MAX_ROWS && n_entries <= count && n_links <= count * EI_MAX_LINKS &&
           (graph || n_links == 0);
}

uint64_t Layout::section_bytes(int kind) const
{
    const uint64_t dims = padded_dim(dim);
    switch (kind) {
    case kCentre: return dim * sizeof(float);
    case kCodes: return count * dims / 2;
    case kScales: return count * sizeof(float);
    case kNorms: return metric == EI_L2 ? count * sizeof(float) : 0;
    case kIds: return count * sizeof(int64_t);
    case kLinkStarts: return n_entries ? (count + 1) * sizeof(uint32_t) : 0;
    case kLinks: return n_links * sizeof(uint32_t);
    case kEntries: return n_entries * sizeof(uint32_t);
    case kResidualSums: return (count + kGroupRows - 1) / kGroupRows * sizeof(uint64_t);
    default: return count * dims;
    }
}

namespace {

// The one header that a file of this layout can have; its own checksum is still 0.
Header expected_header(const Layout &layout, const uint64_t checksums[kSections])
{
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.byte_order = kByteOrder;
    header.count = layout.count;
    header.n_links = layout.n_links;
    header.n_entries = layout.n_entries;
    header.dim = layout.dim;
    header.metric = layout.metric;
    header.max_links = layout.max_links;
    header.ef_build = layout.ef_build;
    header.n_sections = kSections;
    uint64_t offset = EI_HEADER_BYTES;
    for (int kind = 0; kind < kSections; kind++) {
        if (kind == kResiduals) header.hot_bytes = offset;
        const uint64_t size = padded(layout.section_bytes(kind));
        header.sections[kind] = {static_cast<uint32_t>(kind + 1), 0, offset, size, checksums[kind]};
        offset += size;
    }
    header.file_bytes = offset;
    return header;
}

// Check the header and take its layout. Everything but the checksums of the sections follows from that.
ei_status read_header(const void *bytes, size_t size, Header *header, Layout *layout)
{
    if (size < sizeof kMagic || std::memcmp(bytes, kMagic, sizeof kMagic) != 0) return EI_NOT_INDEX;
    if (size < sizeof *header) return EI_SIZE;
    std::memcpy(header, bytes, sizeof *header);

    // Version and byte order before the checksum, so that a foreign file is called foreign and not damaged. A flipped bit in
    // either is then reported as that, and still stops here.
    if (header->byte_order == 0x04030201) return EI_BYTE_ORDER;
    if (header->version != kVersion) return EI_VERSION;
    Header plain = *header;
    plain.checksum = 0;
    if (header->checksum != checksum_of(&plain, sizeof plain)) return EI_DAMAGED;

    // The checksum is no secret, so a hostile header can be well signed: it must be the very header that its layout demands.
    *layout = {header->dim, static_cast<ei_metric>(header->metric), header->max_links, header->ef_build,
               header->count, header->n_links, header->n_entries};
    if (header->metric < EI_COSINE || header->metric > EI_L2 || !layout->valid()) return EI_DAMAGED;
    uint64_t checksums[kSections];
    for (int kind = 0; kind < kSections; kind++) checksums[kind] = header->sections[kind].checksum;
    const Header expected = expected_header(*layout, checksums);
    return std::memcmp(&plain, &expected, sizeof expected) == 0 ? EI_OK : EI_DAMAGED;
}

// Whether a search may take these values for what they should be. What it uses to find its way is checked there.
bool plausible(const ei_index &index)
{
    for (size_t i = 0; i < index.count(); i++) {
        if (!(index.scales[i] > 0 && index.scales[i] <= FLT_MAX)) return false;
        if (i > 0 && index.ids[i] <= index.ids[i - 1]) return false;
        if (index.norms && !(index.norms[i] >= 0 && index.norms[i] <= FLT_MAX)) return false;
    }
    return true;
}

// Compare the first n sections with their checksums. In a large file a second thread helps: of two halves, codes are one.
bool sections_match(const uint8_t *bytes, const Header &header, size_t n)
{
    constexpr uint64_t kLarge = 8 << 20;
    std::atomic<bool> match{true};
    Threads threads(header.hot_bytes < kLarge ? 1 : 2);
    threads.each(n, 1, [&](unsigned, size_t kind, size_t) {
        const Section &section = header.sections[kind];
        if (checksum_of(bytes + section.offset, static_cast<size_t>(section.size)) != section.checksum) match = false;
    });
    return match;
}

void fill_info(const Header &header, ei_info *info)
{
    *info = {header.count, header.file_bytes, header.hot_bytes, header.sections[kIds].offset, header.n_links,
             header.dim, header.metric, header.max_links, header.ef_build};
}

}  // namespace

void write_header(const Layout &layout, const uint64_t checksums[kSections], void *out)
{
    Header header = expected_header(layout, checksums);
    header.checksum = checksum_of(&header, sizeof header);
    std::memcpy(out, &header, sizeof header);
}

// Eight lanes, so that eight multiplications are under way at once. Every step is a bijection of the lane for given input and
// of the input for a given lane, and so is the end in each lane: a change within one word can not go unseen.
Checksum::Checksum()
{
    for (uint64_t i = 0; i < 8; i++) lanes_[i] = (i + 1) * kMultiplier;
}

void Checksum::add(const void *bytes, size_t size)
{
    uint64_t lanes[8];
    std::memcpy(lanes, lanes_, sizeof lanes);
    const auto *at = static_cast<const uint8_t *>(bytes);
    for (const uint8_t *end = at + size; at != end; at += 64) {
        EI_PREFETCH(at);
        uint64_t words[8];
        std::memcpy(words, at, sizeof words);
        for (int i = 0; i < 8; i++) lanes[i] = rotate_left((lanes[i] ^ words[i]) * kMultiplier, 29);
    }
    std::memcpy(lanes_, lanes, sizeof lanes);
}

uint64_t Checksum::end() const
{
    uint64_t sum = 0;
    for (const uint64_t lane : lanes_) {
        sum = (sum ^ lane) * kMultiplier;
        sum ^= sum >> 32;
    }
    return sum;
}

uint64_t checksum_of(const void *bytes, size_t size)
{
    Checksum checksum;
    checksum.add(bytes, size);
    return checksum.end();
}

}  // namespace ei

using namespace ei;

const int8_t *ei_index::residual(size_t row) const
{
    const size_t dims = frame.dims(), group = row / kGroupRows;
    if (check == EI_CHECK_SEARCH && !checked_groups[group].load(std::memory_order_relaxed)) {
        const size_t begin = group * kGroupRows, end = std::min(count(), begin + kGroupRows);
        if (checksum_of(residuals + begin * dims, (end - begin) * dims) != residual_sums[group]) return nullptr;
        checked_groups[group].store(1, std::memory_order_relaxed);
    }
    return residuals + row * dims;
}

ei_status ei_open(const void *file, size_t size, uint32_t check, ei_index **out)
{
    *out = nullptr;
    if (reinterpret_cast<uintptr_t>(file) % EI_ALIGNMENT != 0 || check > EI_CHECK_ALL) return EI_ARGUMENT;
    Header header;
    Layout layout;
    const ei_status status = read_header(file, size, &header, &layout);
    if (status != EI_OK) return status;
    if (header.file_bytes != size) return EI_SIZE;

    const auto *bytes = static_cast<const uint8_t *>(file);
    const size_t n_checked = check == EI_CHECK_HEADER ? 0 : check == EI_CHECK_SEARCH ? size_t{kResiduals} : size_t{kSections};
    try {
        if (!sections_match(bytes, header, n_checked)) return EI_DAMAGED;
    } catch (const std::exception &) {
        return EI_MEMORY;
    }
    const auto at = [&](int kind) {
        return layout.section_bytes(kind) ? static_cast<const void *>(bytes + header.sections[kind].offset) : nullptr;
    };
    try {
        std::unique_ptr<ei_index> index(new ei_index{
            layout, Frame(layout.dim, layout.metric, static_cast<const float *>(at(kCentre))), header.file_bytes, header.hot_bytes,
            header.sections[kIds].offset, padded_dim(layout.dim) / 2, static_cast<const uint8_t *>(at(kCodes)),
            static_cast<const float *>(at(kScales)), static_cast<const float *>(at(kNorms)),
            static_cast<const int64_t *>(at(kIds)), static_cast<const uint32_t *>(at(kLinkStarts)),
            static_cast<const uint32_t *>(at(kLinks)), static_cast<const uint32_t *>(at(kEntries)),
            static_cast<const uint64_t *>(at(kResidualSums)), static_cast<const int8_t *>(at(kResiduals)),
            static_cast<ei_check>(check), nullptr});
        if (check != EI_CHECK_HEADER && !plausible(*index)) return EI_DAMAGED;
        if (check == EI_CHECK_SEARCH) {
            index->checked_groups.reset(new std::atomic<uint8_t>[(index->count() + kGroupRows - 1) / kGroupRows]());
        }
        *out = index.release();
    } catch (const std::bad_alloc &) {
        return EI_MEMORY;
    }
    return EI_OK;
}

void ei_close(ei_index *index) { delete index; }

void ei_get_info(const ei_index *index, ei_info *info)
{
    const Layout &layout = index->layout;
    *info = {layout.count, index->file_bytes, index->hot_bytes, index->ids_offset, layout.n_links,
             layout.dim, static_cast<uint32_t>(layout.metric), layout.max_links, layout.ef_build};
}

ei_status ei_peek(const void *bytes, size_t size, ei_info *info)
{
    Header header;
    Layout layout;
    const ei_status status = read_header(bytes, size, &header, &layout);
    if (status == EI_OK) fill_info(header, info);
    return status;
}

ei_status ei_vectors(const ei_index *index, const uint32_t *rows, size_t n, float *out)
{
    try {
        std::vector<float> coordinates(index->frame.dims());
        for (size_t i = 0; i < n; i++, out += index->layout.dim) {
            const size_t row = rows[i];
            if (row >= index->count()) return EI_ARGUMENT;
            const int8_t *residual = index->residual(row);
            if (!residual) return EI_DAMAGED;
            decode_row(index->row_codes(row), residual, coordinates.size(), index->scales[row], coordinates.data());
            index->frame.leave(coordinates.data(), out);
        }
    } catch (const std::bad_alloc &) {
        return EI_MEMORY;
    }
    return EI_OK;
}

const char *ei_status_text(ei_status status)
{
    switch (status) {
    case EI_OK: return "fine";
    case EI_ARGUMENT: return "an argument is out of range";
    case EI_MEMORY: return "out of memory";
    case EI_NOT_INDEX: return "not an index file";
    case EI_VERSION: return "written in a format version that this build does not read";
    case EI_BYTE_ORDER: return "written on a machine of the other byte order";
    case EI_SIZE: return "cut short, or longer than it was written";
    case EI_DAMAGED: return "damaged: its bytes are not those that were written";
    case EI_SIMD: return "no such kernel on this processor";
    case EI_CANCELLED: return "stopped before the end";
    case EI_VECTOR: return "a vector is zero, too large or not finite";
    }
    return "unknown status";
}
