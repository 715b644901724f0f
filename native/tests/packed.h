/* Index files without their zeros, so that a corpus of them is small and a fuzzer spends itself on bytes that mean something.
 *
 *   u8  flags: PACKED_SIGNED: sign the unpacked file, as one who wants to deceive would
 *   u16 how many bytes to cut off the end of the unpacked file
 *   for each 4096 bytes of the file: u16 how many bytes (modulo 4097) stand before the zeros that fill the page, these bytes
 *
 * Any bytes unpack to something. */
#ifndef PACKED_H
#define PACKED_H

#include "check.h"
#include "sign.h"

enum { PACKED_SIGNED = 1, PACKED_PAGE = 4096, PACKED_MAX_PAGES = 64 };

static inline size_t packed_u16(const uint8_t *at) { return (size_t)at[0] | (size_t)at[1] << 8; }

/* Unpack into new memory, aligned to 64, of exactly *size bytes. */
static inline uint8_t *unpacked(const uint8_t *data, size_t data_size, size_t *size)
{
    const uint8_t flags = data_size >= 1 ? data[0] : 0;
    const size_t cut = data_size >= 3 ? packed_u16(data + 1) : 0;
    uint8_t *pages = calloc(PACKED_MAX_PAGES, PACKED_PAGE);
    if (pages == NULL) abort();
    size_t at = 3, n = 0;
    for (; at + 2 <= data_size && n < PACKED_MAX_PAGES; n++) {
        const size_t asked = packed_u16(data + at) % (PACKED_PAGE + 1), left = data_size - at - 2;
        const size_t length = asked < left ? asked : left;
        memcpy(pages + n * PACKED_PAGE, data + at + 2, length);
        at += 2 + length;
    }
    *size = n * PACKED_PAGE;
    if ((flags & PACKED_SIGNED) && n > 0) sign_file(pages, *size);
    *size -= cut < *size ? cut : *size;
    uint8_t *exact = aligned(*size);
    memcpy(exact, pages, *size);
    free(pages);
    return exact;
}

/* Pack a file of whole pages into out (at least 3 + size + 2 for each page). Returns the packed size. */
static inline size_t packed(const uint8_t *file, size_t size, uint8_t flags, uint8_t *out)
{
    size_t to = 3;
    out[0] = flags, out[1] = out[2] = 0;
    for (size_t page = 0; page < size; page += PACKED_PAGE) {
        size_t length = PACKED_PAGE;
        while (length > 0 && file[page + length - 1] == 0) length--;
        out[to] = (uint8_t)length, out[to + 1] = (uint8_t)(length >> 8);
        memcpy(out + to + 2, file + page, length);
        to += 2 + length;
    }
    return to;
}

#endif
