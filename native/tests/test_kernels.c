/* Every kernel that this processor runs against the meaning of kernels.h, written out here once more. */
#include "check.h"

#include "edge_index.h"
#include "kernels.h"

enum { MAX_ROWS = 9 };

typedef enum fill { RANDOM, LEAST, MOST, OPPOSITE, N_FILLS } fill; /* of codes and query: the ends of their ranges too */

static int32_t code(const uint8_t *row, size_t i)
{
    const uint8_t pair = row[i / 128 * 64 + i % 64];
    return i % 128 < 64 ? pair & 15 : pair >> 4;
}

static void fill_codes(uint8_t *codes, size_t size, fill how)
{
    for (size_t i = 0; i < size; i++) codes[i] = (uint8_t)(how == RANDOM ? draw() : how == LEAST ? 0 : 255);
}

static void check_dot4(const ei_kernel *kernel, size_t dims, fill how)
{
    uint8_t *codes = aligned(MAX_ROWS * dims / 2);
    int8_t *query = malloc(dims);
    int32_t expected[MAX_ROWS];
    fill_codes(codes, MAX_ROWS * dims / 2, how);
    for (size_t i = 0; i < dims; i++) {
        query[i] = (int8_t)(how == RANDOM ? (int)draw_below(255) - 127 : how == OPPOSITE ? -127 : 127);
    }
    for (size_t r = 0; r < MAX_ROWS; r++) {
        expected[r] = 0;
        for (size_t i = 0; i < dims; i++) expected[r] += query[i] * code(codes + r * dims / 2, i);
    }
    for (size_t n = 0; n <= MAX_ROWS; n++) {
        uint32_t *rows = malloc(n * sizeof *rows + 1);
        int32_t *dots = malloc(n * sizeof *dots + 1);
        for (size_t j = 0; j < n; j++) rows[j] = draw_below(MAX_ROWS);
        kernel->dot4(query, dims, codes, rows, n, dots);
        for (size_t j = 0; j < n; j++) {
            CHECK(dots[j] == expected[rows[j]], "%s dims %zu fill %d row %zu of %zu", kernel->name, dims, how, j, n);
        }
        kernel->dot4(query, dims, codes, NULL, n, dots);
        for (size_t j = 0; j < n; j++) {
            CHECK(dots[j] == expected[j], "%s dims %zu fill %d row %zu of %zu", kernel->name, dims, how, j, n);
        }
        free(rows);
        free(dots);
    }
    free(codes);
    free(query);
}

static void check_dot12(const ei_kernel *kernel, size_t dims, fill how)
{
    uint8_t *codes = aligned(dims / 2);
    int8_t *residual = malloc(dims), *high = malloc(dims), *low = malloc(dims);
    int16_t *wide = malloc(dims * sizeof *wide);
    ei_query query = {wide, high, low, 0};
    int64_t expected = 0;
    fill_codes(codes, dims / 2, how);
    for (size_t i = 0; i < dims; i++) {
        residual[i] = (int8_t)(how == RANDOM ? (int)draw_below(256) - 128 : how == LEAST || how == OPPOSITE ? -128 : 127);
        wide[i] = (int16_t)(how == RANDOM ? (int)draw_below(65279) - 32639 : how == OPPOSITE ? 32639 : -32639);
        high[i] = (int8_t)((wide[i] + 128) >> 8);
        low[i] = (int8_t)(wide[i] - 256 * high[i]);
        query.sum += wide[i];
        expected += (int64_t)wide[i] * (256 * (code(codes, i) - 8) + residual[i]);
    }
    const int64_t dot = kernel->dot12(&query, dims, codes, residual);
    CHECK(dot == expected, "%s dims %zu fill %d: %lld", kernel->name, dims, how, (long long)(dot - expected));
    free(codes);
    free(residual);
    free(high);
    free(low);
    free(wide);
}


static void check_selection(void)
{
    CHECK(ei_simd_select("scalar") == EI_OK && strcmp(ei_simd_name(), "scalar") == 0, "%s", ei_simd_name());
    CHECK(ei_simd_select("sse9") == EI_SIMD && strcmp(ei_simd_name(), "scalar") == 0, "%s", ei_simd_name());
    CHECK(ei_simd_select("") == EI_SIMD && strcmp(ei_simd_name(), "scalar") == 0, "%s", ei_simd_name());
    CHECK(ei_simd_select(NULL) == EI_OK, "no kernel at all");
    CHECK(ei_kernel_in_use()->name == ei_simd_name(), "%s", ei_simd_name());
}

int main(void)
{
    const char *const best = ei_simd_name(); /* before any choice */
    check_selection();
    CHECK(strcmp(best, ei_simd_name()) == 0, "%s, then %s", best, ei_simd_name());
    for (size_t k = 0; k < N_KERNELS; k++) {
        if (ei_simd_select(kernel_names[k]) != EI_OK) continue;
        const ei_kernel *kernel = ei_kernel_in_use();
        CHECK(strcmp(kernel->name, kernel_names[k]) == 0, "%s", kernel->name);
        for (size_t dims = 128; dims <= EI_MAX_DIM; dims += 128) {
            for (fill how = RANDOM; how < N_FILLS; how++) {
                check_dot4(kernel, dims, how);
                check_dot12(kernel, dims, how);
            }
        }
        printf("kernel %s\n", kernel->name);
    }
    return checks_done();
}
