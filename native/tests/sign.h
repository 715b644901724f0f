/* The checksums of an index file, taken anew as one who wants to deceive would: a second writing of what FORMAT.md says. */
#ifndef SIGN_H
#define SIGN_H

#include <stdint.h>
#include <string.h>

enum {
    HEADER_BYTES = 4096,
    AT_CHECKSUM = 16,
    AT_COUNT = 40,
    AT_DIM = 64,
    AT_SECTIONS = 88, /* u32 kind, u32 reserved, u64 offset, u64 size, u64 checksum */
    N_SECTIONS = 10,
    SECTION_BYTES = 32,
    RESIDUAL_SUMS = 8,
    RESIDUALS = 9,
    GROUP_ROWS = 16
};

static inline uint64_t read_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t file_checksum(const uint8_t *bytes, size_t size)
{
    const uint64_t multiplier = 0x9E3779B97F4A7C15;
    uint64_t lanes[8], sum = 0;
    for (uint64_t i = 0; i < 8; i++) lanes[i] = (i + 1) * multiplier;
    for (size_t at = 0; at + 64 <= size; at += 64) {
        for (size_t i = 0; i < 8; i++) {
            const uint64_t mixed = (lanes[i] ^ read_u64(bytes + at + 8 * i)) * multiplier;
            lanes[i] = mixed << 29 | mixed >> 35;
        }
    }
    for (size_t i = 0; i < 8; i++) {
        sum = (sum ^ lanes[i]) * multiplier;
        sum ^= sum >> 32;
    }
    return sum;
}

static inline void sign_header(uint8_t *file)
{
    memset(file + AT_CHECKSUM, 0, 8);
    const uint64_t sum = file_checksum(file, HEADER_BYTES);
    memcpy(file + AT_CHECKSUM, &sum, 8);
}

/* Where section `kind` lies, as far as the header speaks the truth; *size is 0 where it does not. */
static inline uint8_t *section_of(uint8_t *file, size_t file_bytes, int kind, size_t *size)
{
    const uint8_t *entry = file + AT_SECTIONS + kind * SECTION_BYTES;
    const uint64_t offset = read_u64(entry + 8), length = read_u64(entry + 16);
    const int inside = offset <= file_bytes && length <= file_bytes - offset;
    *size = inside ? (size_t)length : 0;
    return inside ? file + offset : file;
}

/* Sign everything: groups of residuals, sections, header. Any bytes of at least HEADER_BYTES. */
static inline void sign_file(uint8_t *file, size_t file_bytes)
{
    uint32_t dim;
    size_t sums_bytes, residual_bytes;
    memcpy(&dim, file + AT_DIM, sizeof dim);
    const size_t dims = ((size_t)(dim % 4097) + 127) / 128 * 128;
    const uint64_t count = read_u64(file + AT_COUNT);
    uint8_t *sums = section_of(file, file_bytes, RESIDUAL_SUMS, &sums_bytes);
    const uint8_t *residuals = section_of(file, file_bytes, RESIDUALS, &residual_bytes);
    for (size_t row = 0; row < count && row / GROUP_ROWS * 8 + 8 <= sums_bytes; row += GROUP_ROWS) {
        const size_t rows = count - row < GROUP_ROWS ? (size_t)(count - row) : GROUP_ROWS;
        if ((row + rows) * dims > residual_bytes) break;
        const uint64_t sum = file_checksum(residuals + row * dims, rows * dims);
        memcpy(sums + row / GROUP_ROWS * 8, &sum, 8);
    }
    for (int kind = 0; kind < N_SECTIONS; kind++) {
        size_t size;
        const uint8_t *section = section_of(file, file_bytes, kind, &size);
        const uint64_t sum = file_checksum(section, size);
        memcpy(file + AT_SECTIONS + kind * SECTION_BYTES + 24, &sum, 8);
    }
    sign_header(file);
}

#endif
