/* Which kernel runs. The choice is made once, from what the processor and the operating system say, not the build machine. */
#include "edge_index.h"
#include "kernels.h"

#include <string.h>

#if defined(EI_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

static int always(void) { return 1; }

#if defined(EI_X86_64)
/* __builtin_cpu_supports also asks whether the operating system saves the wide registers. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(EI_ARM64)
static int has_dotprod(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return 1; /* every Apple processor that runs macOS has it */
#else
    return 0;
#endif
}
#endif

static const struct kernel {
    const char *name;
    ei_dot_fn *dot;
    int (*runs_here)(void);
} kernels[] = { /* best first */
#if defined(EI_X86_64)
    {"avx512vnni", ei_dot_avx512vnni, has_avx512vnni},
    {"avx2", ei_dot_avx2, has_avx2},
#elif defined(EI_ARM64)
    {"dotprod", ei_dot_neon_dotprod, has_dotprod},
    {"neon", ei_dot_neon, always},
#endif
    {"scalar", ei_dot_scalar, always},
};

static const struct kernel *chosen; /* NULL until first used: choosing twice at once gives the same kernel */

ei_status ei_simd_select(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if ((name == NULL || strcmp(name, kernels[i].name) == 0) && kernels[i].runs_here()) {
            chosen = &kernels[i];
            return EI_OK;
        }
    }
    return EI_SIMD;
}

static const struct kernel *kernel_in_use(void)
{
    if (chosen == NULL) ei_simd_select(NULL);
    return chosen;
}

ei_dot_fn *ei_dot(void) { return kernel_in_use()->dot; }
const char *ei_simd_name(void) { return kernel_in_use()->name; }
