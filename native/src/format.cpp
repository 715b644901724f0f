// The file: its header, its checksum, and the checks that make its bytes safe to search. FORMAT.md is the description.
#include "format.h"
#include "kernels.h"

#include <cfloat>
#include <cstring>
#include <new>

namespace {

constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'I', 'D', 'X', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint64_t kMaxCount = uint64_t{1} << 40;  // rows; with it no size below can wrap

struct Section {
    uint32_t kind;  // 1 codes, 2 scales, 3 ids
    uint32_t reserved;
    uint64_t offset;
    uint64_t size;  // padded
    uint64_t checksum;
};

struct Header {
    char magic[8];
    uint32_t version;
    uint32_t byte_order;
    uint32_t dim;
    uint32_t n_sections;
    uint64_t count;
    uint64_t file_size;
    uint64_t checksum;  // of the header, taken with 0 here
    Section sections[EI_N_SECTIONS];
    uint8_t reserved[EI_HEADER_BYTES - 48 - EI_N_SECTIONS * sizeof(Section)];
};
static_assert(sizeof(Section) == 32 && sizeof(Header) == EI_HEADER_BYTES, "as in FORMAT.md");

uint64_t padded(uint64_t size) { return (size + EI_HEADER_BYTES - 1) / EI_HEADER_BYTES * EI_HEADER_BYTES; }

uint64_t checksum_of(const void *bytes, size_t size)
{
    ei_checksum state;
    ei_checksum_begin(&state);
    ei_checksum_update(&state, bytes, size);
    return ei_checksum_end(&state);
}

// The one header that a file of this shape can have; its own checksum is still 0.
Header expected_header(uint32_t dim, uint64_t count, const uint64_t checksums[EI_N_SECTIONS])
{
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.byte_order = kByteOrder;
    header.dim = dim;
    header.n_sections = EI_N_SECTIONS;
    header.count = count;
    const uint64_t sizes[EI_N_SECTIONS] = {count * ei_row_bytes(dim), count * sizeof(float), count * sizeof(int64_t)};
    uint64_t offset = EI_HEADER_BYTES;
    for (uint32_t i = 0; i < EI_N_SECTIONS; i++) {
        header.sections[i] = {i + 1, 0, offset, padded(sizes[i]), checksums[i]};
        offset += padded(sizes[i]);
    }
    header.file_size = offset;
    return header;
}

uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

}  // namespace

size_t ei_row_bytes(uint32_t dim) { return (size_t{dim} + 63) / 64 * 64; }

ei_status ei_header(uint32_t dim, uint64_t count, const uint64_t checksums[EI_N_SECTIONS], void *out)
{
    if (dim == 0 || dim > EI_MAX_DIM || count > kMaxCount) return EI_ARGUMENT;
    Header header = expected_header(dim, count, checksums);
    header.checksum = checksum_of(&header, sizeof header);
    std::memcpy(out, &header, sizeof header);
    return EI_OK;
}

ei_status ei_open(const void *file, size_t size, int verify, ei_index **out)
{
    *out = nullptr;
    if (reinterpret_cast<uintptr_t>(file) % 64 != 0) return EI_ARGUMENT;
    Header header;
    if (size < sizeof kMagic || std::memcmp(file, kMagic, sizeof kMagic) != 0) return EI_NOT_INDEX;
    if (size < sizeof header) return EI_SIZE;
    std::memcpy(&header, file, sizeof header);

    // Version and byte order before the checksum, so that a foreign file is called foreign and not damaged. A flipped bit in
    // either is then reported as that, and still stops here.
    if (header.byte_order == 0x04030201) return EI_BYTE_ORDER;
    if (header.version != kVersion) return EI_VERSION;
    Header unsigned_header = header;
    unsigned_header.checksum = 0;
    if (header.checksum != checksum_of(&unsigned_header, sizeof header)) return EI_DAMAGED;

    // The checksum is no secret, so a hostile header can be well signed: it must be the very header that its shape demands.
    if (header.dim == 0 || header.dim > EI_MAX_DIM || header.count > kMaxCount) return EI_DAMAGED;
    uint64_t checksums[EI_N_SECTIONS];
    for (int i = 0; i < EI_N_SECTIONS; i++) checksums[i] = header.sections[i].checksum;
    const Header expected = expected_header(header.dim, header.count, checksums);
    if (std::memcmp(&unsigned_header, &expected, sizeof expected) != 0) return EI_DAMAGED;
    if (header.file_size != size) return EI_SIZE;

    const auto *bytes = static_cast<const uint8_t *>(file);
    for (const Section &section : header.sections) {
        if (verify && checksum_of(bytes + section.offset, section.size) != section.checksum) return EI_DAMAGED;
    }
    const auto count = static_cast<size_t>(header.count);
    const auto *scales = reinterpret_cast<const float *>(bytes + header.sections[1].offset);
    const auto *ids = reinterpret_cast<const int64_t *>(bytes + header.sections[2].offset);
    for (size_t i = 0; i < count; i++) {
        if (!(scales[i] > 0 && scales[i] <= FLT_MAX)) return EI_DAMAGED;
        if (i > 0 && ids[i] <= ids[i - 1]) return EI_DAMAGED;
    }
    *out = new (std::nothrow) ei_index{header.dim, ei_row_bytes(header.dim), count,
                                       reinterpret_cast<const int8_t *>(bytes + header.sections[0].offset), scales, ids,
                                       static_cast<size_t>(header.sections[2].offset)};
    return *out ? EI_OK : EI_MEMORY;
}

void ei_close(ei_index *index) { delete index; }
uint32_t ei_dim(const ei_index *index) { return index->dim; }
size_t ei_count(const ei_index *index) { return index->count; }
size_t ei_ids_offset(const ei_index *index) { return index->ids_offset; }

// Eight lanes, so that eight multiplications are under way at once. Every step is a bijection of the lane for given input and
// of the input for a given lane, and so is the end in each lane: a change within one word can not go unseen.
constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio, odd

void ei_checksum_begin(ei_checksum *state)
{
    for (uint64_t i = 0; i < 8; i++) state->lanes[i] = (i + 1) * kMultiplier;
}

ei_status ei_checksum_update(ei_checksum *state, const void *bytes, size_t size)
{
    if (size % EI_CHECKSUM_BLOCK != 0) return EI_ARGUMENT;
    ei_checksum s = *state;
    const auto *at = static_cast<const uint8_t *>(bytes);
    for (const uint8_t *end = at + size; at != end; at += EI_CHECKSUM_BLOCK) {
        EI_PREFETCH(at);
        uint64_t words[8];
        std::memcpy(words, at, sizeof words);
        for (int i = 0; i < 8; i++) s.lanes[i] = rotate_left((s.lanes[i] ^ words[i]) * kMultiplier, 29);
    }
    *state = s;
    return EI_OK;
}

uint64_t ei_checksum_end(const ei_checksum *state)
{
    uint64_t sum = 0;
    for (const uint64_t lane : state->lanes) {
        sum = (sum ^ lane) * kMultiplier;
        sum ^= sum >> 32;
    }
    return sum;
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
    }
    return "unknown status";
}
