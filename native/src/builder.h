// What a build holds between its parts: rows as they come in (build.cpp), the graph over them (graph.cpp), the file (write.cpp).
#ifndef EI_BUILDER_H
#define EI_BUILDER_H

#include "format.h"
#include "parallel.h"

#include <memory>
#include <new>
#include <optional>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#if !defined(__SANITIZE_ADDRESS__)  // which sees what goes beyond an array in the heap only
#define EI_FROM_SYSTEM
#endif
#endif

namespace ei {

constexpr size_t kChunkRows = 4096;

// An array of a size that is known at once, straight from the system: pages take no memory before they are used, and are given
// back when the array goes. The heap would keep what join_codes() lets go, a quarter of a file's size.
template <class T>
class AlignedArray {
  public:
    explicit AlignedArray(size_t n = 0) : memory_(nullptr, Release{0})
    {
        if (n == 0) return;
        constexpr size_t kHugePage = size_t{2} << 20;
        const size_t size = n * sizeof(T);
        const bool large = size >= 8 * kHugePage;
        const size_t alignment = large ? kHugePage : size_t{EI_ALIGNMENT};
        memory_ = {taken(size + alignment), Release{size + alignment}};
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        data_ = reinterpret_cast<T *>((address + alignment - 1) / alignment * alignment);
#if defined(__linux__)
        // Random reads of memory in small pages wait for the translation of addresses. Where this is refused nothing is lost.
        if (large) madvise(data_, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    }
    T *data() const { return data_; }

  private:
#if defined(EI_FROM_SYSTEM)
    static uint8_t *taken(size_t size)
    {
        void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        return static_cast<uint8_t *>(memory);
    }
    struct Release {
        size_t size;
        void operator()(uint8_t *memory) const { munmap(memory, size); }
    };
#else
    static uint8_t *taken(size_t size) { return new uint8_t[size]; }
    struct Release {
        size_t size;
        void operator()(uint8_t *memory) const { delete[] memory; }
    };
#endif

    std::unique_ptr<uint8_t[], Release> memory_;
    T *data_ = nullptr;
};

// Rows as they came in. Chunks, so that growing never copies, and codes can be put together and let go chunk by chunk.
struct Chunk {
    AlignedArray<uint8_t> codes;
    AlignedArray<int8_t> residuals;
    explicit Chunk(size_t dims) : codes(kChunkRows * dims / 2), residuals(kChunkRows * dims) {}
};

}  // namespace ei

struct ei_builder {
    ei_build_settings settings;
    std::optional<ei::Frame> frame;  // once the centre is known
    ei::Threads threads;

    std::vector<float> waiting;  // vectors that came before the centre was known; their ids are in `ids`
    std::vector<int64_t> ids;
    std::vector<ei::Chunk> chunks;
    std::vector<float> scales, norms;  // norms: squared lengths

    const ei_index *base = nullptr;   // the index that the first rows were taken from
    std::vector<uint32_t> base_rows;  // where in it they stand

    ei::AlignedArray<uint8_t> codes;  // of all rows, from finish() on
    ei::AlignedArray<uint32_t> links;  // (count, stride)
    std::vector<uint8_t> degrees;
    size_t stride = 0;
    std::vector<float> extras;    // EI_INNER_PRODUCT: a further coordinate that gives all rows the same length
    float longest2 = 0;           // squared length of all rows with that coordinate
    std::vector<uint32_t> order, entries;

    explicit ei_builder(const ei_build_settings &s) : settings(s), threads(s.threads) {}

    size_t count() const { return ids.size(); }
    size_t dims() const { return ei::padded_dim(settings.dim); }
    ei_metric metric() const { return static_cast<ei_metric>(settings.metric); }
    const int8_t *residual(size_t row) const { return chunks[row / ei::kChunkRows].residuals.data() + row % ei::kChunkRows * dims(); }
};

namespace ei {

// Give every row links to others. False: stopped by progress.
bool make_graph(ei_builder &builder, ei_progress progress, void *context);

ei_status write_file(const ei_builder &builder, ei_write write, void *context);

}  // namespace ei
#endif
