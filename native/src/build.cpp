// Building a file: rows come in and are rounded, a graph is made over them, everything is written in one pass.
#include "builder.h"

#include <algorithm>
#include <cstring>

namespace ei {

namespace {

constexpr uint32_t kDefaultMaxLinks = 48;
constexpr uint32_t kDefaultEfBuild = 160;
constexpr uint32_t kDefaultGraphFrom = 8192;
constexpr size_t kCentreRows = 1024;  // from so many rows on, the first of them say where the centre is
constexpr size_t kFewestForCentre = 32;

void reserve_rows(ei_builder &b, size_t count)
{
    const size_t n_chunks = (count + kChunkRows - 1) / kChunkRows;
    while (b.chunks.size() < n_chunks) b.chunks.emplace_back(b.dims());
    b.scales.resize(count);
    b.norms.resize(count);
}

// Round n vectors into the rows from `first` on.
void encode(ei_builder &b, size_t first, const float *vectors, size_t n)
{
    const size_t dims = b.dims();
    reserve_rows(b, first + n);
    b.threads.each(n, 256, [&](unsigned, size_t begin, size_t end) {
        std::vector<float> coordinates(dims);
        for (size_t i = begin; i < end; i++) {
            b.frame->enter_row(vectors + i * b.settings.dim, coordinates.data());
            const size_t row = first + i;
            Chunk &chunk = b.chunks[row / kChunkRows];
            uint8_t *codes = chunk.codes.data() + row % kChunkRows * (dims / 2);
            int8_t *residual = chunk.residuals.data() + row % kChunkRows * dims;
            b.scales[row] = encode_row(coordinates.data(), dims, codes, residual);
            b.norms[row] = static_cast<float>(stored_norm2(codes, residual, dims, b.scales[row]));
        }
    });
}

// Fix the centre at the mean of the vectors that wait, and encode them.
void settle_centre(ei_builder &b)
{
    const uint32_t dim = b.settings.dim;
    const size_t n = b.waiting.size() / dim;
    std::vector<float> centre(dim), vector(dim);
    if (n >= kFewestForCentre) {
        const Frame plain(dim, b.metric(), nullptr);
        std::vector<double> sums(dim);
        for (size_t row = 0; row < n; row++) {
            plain.normalise(&b.waiting[row * dim], vector.data());
            for (uint32_t i = 0; i < dim; i++) sums[i] += double{vector[i]};
        }
        for (uint32_t i = 0; i < dim; i++) centre[i] = static_cast<float>(sums[i] / static_cast<double>(n));
    }
    b.frame.emplace(dim, b.metric(), centre.data());
    encode(b, 0, b.waiting.data(), n);
    b.waiting = {};
}

// Put the codes of all chunks together, and let the chunks' own go.
void join_codes(ei_builder &b)
{
    const size_t row_bytes = b.dims() / 2;
    b.codes = AlignedArray<uint8_t>(b.count() * row_bytes);
    for (size_t first = 0; first < b.count(); first += kChunkRows) {
        Chunk &chunk = b.chunks[first / kChunkRows];
        std::memcpy(b.codes.data() + first * row_bytes, chunk.codes.data(), std::min(kChunkRows, b.count() - first) * row_bytes);
        chunk.codes = AlignedArray<uint8_t>();
    }
}

}  // namespace

}  // namespace ei

using namespace ei;

ei_status ei_builder_new(const ei_build_settings *settings, ei_builder **out)
{
    *out = nullptr;
    ei_build_settings s = *settings;
    if (s.max_links == 0) s.max_links = kDefaultMaxLinks;
    if (s.ef_build == 0) s.ef_build = kDefaultEfBuild;
    if (s.graph_from == 0) s.graph_from = kDefaultGraphFrom;
    if (s.dim == 0 || s.dim > EI_MAX_DIM || s.metric < EI_COSINE || s.metric > EI_L2 || s.max_links < 4 ||
        s.max_links > EI_MAX_LINKS || s.ef_build > EI_MAX_EF || s.threads == 0 || s.threads > EI_MAX_THREADS) {
        return EI_ARGUMENT;
    }
    try {
        *out = new ei_builder(s);
    } catch (const std::exception &) {
        return EI_MEMORY;
    }
    return EI_OK;
}

void ei_builder_free(ei_builder *builder) { delete builder; }

ei_status ei_builder_take(ei_builder *builder, const ei_index *from, const uint8_t *keep)
{
    ei_builder &b = *builder;
    if (b.base || b.count() > 0 || from->layout.dim != b.settings.dim || from->layout.metric != b.metric() ||
        from->check == EI_CHECK_HEADER) {
        return EI_ARGUMENT;
    }
    try {
        b.base = from;
        b.frame.emplace(from->frame);
        for (size_t row = 0; row < from->count(); row++) {
            if (keep && !bit_of(keep, row)) continue;
            if (!from->residual(row)) return EI_DAMAGED;
            b.base_rows.push_back(static_cast<uint32_t>(row));
            b.ids.push_back(from->ids[row]);
        }
        const size_t dims = b.dims();
        reserve_rows(b, b.count());
        b.threads.each(b.count(), 256, [&](unsigned, size_t begin, size_t end) {
            for (size_t row = begin; row < end; row++) {
                const size_t old_row = b.base_rows[row];
                Chunk &chunk = b.chunks[row / kChunkRows];
                const uint8_t *codes = from->row_codes(old_row);
                const int8_t *residual = from->residuals + old_row * dims;
                std::memcpy(chunk.codes.data() + row % kChunkRows * (dims / 2), codes, dims / 2);
                std::memcpy(chunk.residuals.data() + row % kChunkRows * dims, residual, dims);
                b.scales[row] = from->scales[old_row];
                b.norms[row] = static_cast<float>(stored_norm2(codes, residual, dims, b.scales[row]));
            }
        });
        return EI_OK;
    } catch (const std::exception &) {
        return EI_MEMORY;
    }
}

ei_status ei_builder_add(ei_builder *builder, const int64_t *ids, const float *rows, size_t n, size_t *bad)
{
    ei_builder &b = *builder;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 ? ids[i] <= ids[i - 1] : !b.ids.empty() && ids[0] <= b.ids.back()) return EI_ARGUMENT;
    }
    if (n > EI_MAX_ROWS - b.count()) return EI_ARGUMENT;
    const uint32_t dim = b.settings.dim;
    try {
        const Frame plain(dim, b.metric(), nullptr);
        for (size_t i = 0; i < n; i++) {
            if (!plain.usable(rows + i * dim)) {
                *bad = i;
                return EI_VECTOR;
            }
        }
        const size_t before = b.count();
        b.ids.insert(b.ids.end(), ids, ids + n);
        size_t n_waiting = 0;
        if (!b.frame) {
            n_waiting = std::min(n, kCentreRows - before);
            b.waiting.insert(b.waiting.end(), rows, rows + n_waiting * dim);
            if (before + n_waiting == kCentreRows) settle_centre(b);
        }
        if (n_waiting < n) encode(b, before + n_waiting, rows + n_waiting * dim, n - n_waiting);
        return EI_OK;
    } catch (const std::exception &) {
        return EI_MEMORY;
    }
}

ei_status ei_builder_finish(ei_builder *builder, ei_progress progress, ei_write write, void *context)
{
    ei_builder &b = *builder;
    try {
        if (!b.frame) settle_centre(b);
        join_codes(b);
        if (b.count() >= b.settings.graph_from) {
            if (!make_graph(b, progress, context)) return EI_CANCELLED;
        }
        if (progress && progress(context, b.count(), b.count()) != 0) return EI_CANCELLED;
        return write_file(b, write, context);
    } catch (const std::exception &) {
        return EI_MEMORY;
    }
}
