// What an open index is: pointers into the file's bytes, all of them checked by ei_open().
#pragma once

#include "edge_index.h"

struct ei_index {
    uint32_t dim;
    size_t row_bytes;
    size_t count;
    const int8_t *codes;  // (count, row_bytes)
    const float *scales;  // (count,), finite and above 0
    const int64_t *ids;   // (count,), ascending
    size_t ids_offset;
};
