/* Which kernel runs. The choice is made once, from what the processor and the operating system say, not the build machine. */
#include "edge_index.h"
#include "kernels.h"

#include <stdatomic.h>
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

static const ei_kernel kernels[] = { /* best first */
#if defined(EI_X86_64)
    {"avx512vnni", has_avx512vnni, ei_dot4_avx512vnni, ei_dot12_avx512vnni},
    {"avx2", has_avx2, ei_dot4_avx2, ei_dot12_avx2},
#elif defined(EI_ARM64)
    {"dotprod", has_dotprod, ei_dot4_neon_dotprod, ei_dot12_neon_dotprod},
    {"neon", always, ei_dot4_neon, ei_dot12_neon},
#endif
    {"scalar", always, ei_dot4_scalar, ei_dot12_scalar},
};

static const ei_kernel *best(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if ((name == NULL || strcmp(name, kernels[i].name) == 0) && kernels[i].runs_here()) return &kernels[i];
    }
    return NULL;
}

/* NULL until first used. Two threads that choose at once choose the same. */
static _Atomic(const ei_kernel *) chosen;

ei_status ei_simd_select(const char *name)
{
    const ei_kernel *kernel = best(name);
    if (kernel == NULL) return EI_SIMD;
    atomic_store(&chosen, kernel);
    return EI_OK;
}

const ei_kernel *ei_kernel_in_use(void)
{
    const ei_kernel *kernel = atomic_load(&chosen);
    return kernel != NULL ? kernel : best(NULL);
}

const char *ei_simd_name(void) { return ei_kernel_in_use()->name; }
