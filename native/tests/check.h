/* What the C tests share. A failed check prints a line and counts; main() ends with `return checks_done();`. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200112L
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;
#define CHECK(condition, ...)                                      \
    do {                                                           \
        if (!(condition)) {                                        \
            failures++;                                            \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                   \
            printf("\n");                                          \
        }                                                          \
    } while (0)

static inline int checks_done(void)
{
    printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures != 0;
}

/* xorshift64*: the same numbers everywhere. */
static uint64_t seed = 1;
static inline uint32_t draw(void)
{
    seed ^= seed >> 12, seed ^= seed << 25, seed ^= seed >> 27;
    return (uint32_t)(seed * 0x2545F4914F6CDD1D >> 32);
}
static inline uint32_t draw_below(uint32_t end) { return (uint32_t)((uint64_t)draw() * end >> 32); }

/* Exactly `size` bytes, aligned to 64, so that the address sanitizer sees one byte too many. */
static inline void *aligned(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, 64, size != 0 ? size : 1) != 0) abort();
    return memory;
}

static const char *const kernel_names[] = {"scalar", "avx2", "avx512vnni", "neon", "dotprod"};
#define N_KERNELS (sizeof kernel_names / sizeof kernel_names[0])

#endif
