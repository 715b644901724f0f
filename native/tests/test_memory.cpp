// Memory: what a build and a search take at most, and what happens when there is none. Replaces the allocator of C++.
#include "edge_index.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>

static std::atomic<size_t> live{0}, peak{0}, n_allocations{0};
static std::atomic<size_t> fail_at{SIZE_MAX};  // the number of the first allocation that fails

static void *allocate(size_t size, size_t alignment)
{
    if (n_allocations++ >= fail_at) return nullptr;
    const size_t before = alignment < 16 ? 16 : alignment;
    void *memory = nullptr;
    if (posix_memalign(&memory, before, size + before) != 0) return nullptr;
    auto *bytes = static_cast<uint8_t *>(memory) + before;
    std::memcpy(bytes - sizeof size, &size, sizeof size);
    const size_t now = live += size;
    size_t most = peak;
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
    return bytes;
}

static void release(void *memory, size_t alignment)
{
    if (memory == nullptr) return;
    auto *bytes = static_cast<uint8_t *>(memory);
    size_t size;
    std::memcpy(&size, bytes - sizeof size, sizeof size);
    live -= size;
    std::free(bytes - (alignment < 16 ? 16 : alignment));
}

static void *allocate_or_throw(size_t size, size_t alignment)
{
    if (void *memory = allocate(size, alignment)) return memory;
    throw std::bad_alloc();
}

void *operator new(size_t size) { return allocate_or_throw(size, 16); }
void *operator new[](size_t size) { return allocate_or_throw(size, 16); }
void *operator new(size_t size, const std::nothrow_t &) noexcept { return allocate(size, 16); }
void *operator new[](size_t size, const std::nothrow_t &) noexcept { return allocate(size, 16); }
void *operator new(size_t size, std::align_val_t to) { return allocate_or_throw(size, static_cast<size_t>(to)); }
void *operator new[](size_t size, std::align_val_t to) { return allocate_or_throw(size, static_cast<size_t>(to)); }
void operator delete(void *memory) noexcept { release(memory, 16); }
void operator delete[](void *memory) noexcept { release(memory, 16); }
void operator delete(void *memory, size_t) noexcept { release(memory, 16); }
void operator delete[](void *memory, size_t) noexcept { release(memory, 16); }
void operator delete(void *memory, std::align_val_t to) noexcept { release(memory, static_cast<size_t>(to)); }
void operator delete[](void *memory, std::align_val_t to) noexcept { release(memory, static_cast<size_t>(to)); }
void operator delete(void *memory, size_t, std::align_val_t to) noexcept { release(memory, static_cast<size_t>(to)); }
void operator delete[](void *memory, size_t, std::align_val_t to) noexcept { release(memory, static_cast<size_t>(to)); }

static int failures;
#define CHECK(condition, ...)                                           \
    do {                                                                \
        if (!(condition)) {                                             \
            failures++;                                                 \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                   \
            std::printf("\n");                                          \
        }                                                               \
    } while (0)

struct File {  // takes bytes from malloc(), which is not counted
    uint8_t *bytes = nullptr;
    size_t size = 0;
    ~File() { std::free(bytes); }
};

static int take(void *context, const void *bytes, size_t size)
{
    auto *file = static_cast<File *>(context);
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, file->size + size + 64) != 0) return 1;
    if (file->size != 0) std::memcpy(memory, file->bytes, file->size);
    if (size != 0) std::memcpy(static_cast<uint8_t *>(memory) + file->size, bytes, size);
    std::free(file->bytes);
    file->bytes = static_cast<uint8_t *>(memory);
    file->size += size;
    return 0;
}

static int count_bytes(void *context, const void *, size_t size)
{
    *static_cast<size_t *>(context) += size;
    return 0;
}

static float value(uint64_t i)  // splitmix64: no order that a graph could follow
{
    i = (i ^ i >> 30) * 0xBF58476D1CE4E5B9;
    i = (i ^ i >> 27) * 0x94D049BB133111EB;
    return static_cast<float>((i ^ i >> 31) % 2001) / 1000.0f - 1.0f;
}

constexpr uint32_t kDim = 384;
constexpr size_t kBlockRows = 256;

// Build n rows in blocks, upon a base or not. The status of the first call that fails.
static ei_status build(size_t n, uint32_t threads, const ei_index *base, size_t block_rows, ei_write write, void *to)
{
    static float block[kBlockRows * kDim];  // not counted: it is the caller's
    ei_build_settings settings{kDim, EI_COSINE, 0, 0, 1, 1, threads};
    ei_builder *builder = nullptr;
    ei_status status = ei_builder_new(&settings, &builder);
    if (status != EI_OK) return status;
    int64_t first = 0;
    if (base != nullptr) {
        ei_info info;
        ei_get_info(base, &info);
        first = static_cast<int64_t>(info.count);
        status = ei_builder_take(builder, base, nullptr);
    }
    for (size_t at = 0; at < n && status == EI_OK; at += block_rows) {
        const size_t rows = block_rows < n - at ? block_rows : n - at;
        int64_t ids[kBlockRows];
        for (size_t i = 0; i < rows; i++) ids[i] = first + static_cast<int64_t>(at + i);
        for (size_t i = 0; i < rows * kDim; i++) block[i] = value(at * kDim + i);
        size_t bad;
        status = ei_builder_add(builder, ids, block, rows, &bad);
    }
    if (status == EI_OK) status = ei_builder_finish(builder, nullptr, write, to);
    ei_builder_free(builder);
    return status;
}

// What this process holds (VmRSS) or has held at most (VmHWM); 0 where nobody says.
static size_t resident([[maybe_unused]] const char *which)
{
    size_t kilobytes = 0;
#if !defined(__SANITIZE_ADDRESS__)  // which holds much for itself
    if (std::FILE *status = std::fopen("/proc/self/status", "r")) {
        char line[256];
        while (std::fgets(line, sizeof line, status) != nullptr) {
            if (std::strncmp(line, which, 5) == 0) kilobytes = std::strtoul(line + 6, nullptr, 10);
        }
        std::fclose(status);
    }
#endif
    return 1024 * kilobytes;
}

static void test_a_build_takes_little_more_than_its_file()
{
    size_t written = 0;
    CHECK(build(300, 2, nullptr, kBlockRows, count_bytes, &written) == EI_OK, "build");
    const size_t before = live, resident_before = resident("VmRSS");
    written = 0;
    const bool measures = resident_before != 0;
    CHECK(build(measures ? 20000 : 2000, 2, nullptr, kBlockRows, count_bytes, &written) == EI_OK, "build");
    if (measures) {
        const double share = static_cast<double>(resident("VmHWM") - resident_before) / static_cast<double>(written);
        std::printf("a file of %zu bytes: memory %.2f times that\n", written, share);
        CHECK(share < 1.3, "%.2f times the file", share);
    }
    CHECK(live == before, "%zu bytes are left", live - before);
}

static void test_a_search_takes_little()
{
    float query[kDim];
    for (uint32_t i = 0; i < kDim; i++) query[i] = value(i);
    File file;
    CHECK(build(4000, 2, nullptr, kBlockRows, take, &file) == EI_OK, "build");
    const size_t before = live;
    peak = before;
    ei_index *index = nullptr;
    CHECK(ei_open(file.bytes, file.size, EI_CHECK_SEARCH, &index) == EI_OK, "open");
    for (const ei_way way : {EI_SCAN, EI_GRAPH}) {
        const ei_search_settings search{10, 0, way, 1, nullptr};
        int64_t ids[10];
        float scores[10];
        CHECK(ei_search(index, query, 1, &search, ids, scores) == EI_OK, "search");
    }
    CHECK(peak - before < 400000, "a search took %zu bytes", peak - before);
    ei_close(index);
    CHECK(live == before, "%zu bytes are left", live - before);
}

// Let every allocation fail in turn: the call says so, nothing leaks, and what was there before still works.
static void test_no_memory_is_a_status()
{
    File file;
    CHECK(build(300, 1, nullptr, 100, take, &file) == EI_OK, "build");
    size_t n_failed = 0;
    for (size_t step = 0;; step += 1 + step / 40) {
        ei_index *index = nullptr;
        size_t written = 0;
        int64_t ids[10];
        float scores[10], query[kDim] = {1, 2, 3}, vector[kDim];
        const size_t before = live;
        n_allocations = 0;
        fail_at = step;
        ei_status status = ei_open(file.bytes, file.size, EI_CHECK_ALL, &index);
        for (const ei_way way : {EI_SCAN, EI_GRAPH}) {
            const ei_search_settings search{10, 0, way, 2, nullptr};
            if (status == EI_OK) status = ei_search(index, query, 1, &search, ids, scores);
        }
        const uint32_t row = 7;
        if (status == EI_OK) status = ei_vectors(index, &row, 1, vector);
        if (status == EI_OK) status = build(20, 2, index, 20, count_bytes, &written);
        fail_at = SIZE_MAX;
        const bool all_there = n_allocations <= step;
        ei_close(index);
        CHECK(live == before, "allocation %zu: %zu bytes are left", step, live - before);
        if (all_there) {
            CHECK(status == EI_OK, "%s", ei_status_text(status));
            break;
        }
        CHECK(status == EI_MEMORY || status == EI_OK, "allocation %zu: %s", step, ei_status_text(status));
        n_failed += status == EI_MEMORY;
    }
    CHECK(n_failed > 5, "only %zu failures", n_failed);
}

int main()
{
    test_a_build_takes_little_more_than_its_file();
    test_a_search_takes_little();
    test_no_memory_is_a_status();
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures != 0;
}
