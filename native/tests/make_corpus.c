/* Writes the seeds of the fuzzer into a folder: `make_corpus native/tests/corpus`. Run it when the format has changed.
 * Whole files of every kind, and damaged ones of each sort: cut short, a flipped bit, and well signed lies. */
#include "packed.h"
#include "sample.h"

static void keep(const char *folder, const char *name, const uint8_t *bytes, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

static void keep_packed(const char *folder, const char *name, const file *f, uint8_t flags, uint16_t cut)
{
    uint8_t *out = malloc(2 * f->size + 3);
    const size_t size = packed(f->bytes, f->size, flags, out);
    out[1] = (uint8_t)cut, out[2] = (uint8_t)(cut >> 8);
    keep(folder, name, out, size);
    free(out);
}

/* `value` over the first bytes of a section, or of the header. */
static void keep_forged(const char *folder, const char *name, const file *f, int kind, size_t at, uint32_t value, uint8_t flags)
{
    size_t size;
    const file forged = {aligned(f->size), f->size};
    memcpy(forged.bytes, f->bytes, f->size);
    uint8_t *from = kind < 0 ? forged.bytes : section_of(forged.bytes, f->size, kind, &size);
    memcpy(from + at, &value, sizeof value);
    keep_packed(folder, name, &forged, flags, 0);
    free(forged.bytes);
}

int main(int n_arguments, char **arguments)
{
    const struct {
        const char *name;
        uint32_t dim;
        ei_metric metric;
        size_t n;
        int graph;
    } seeds[] = {
        {"cosine-flat", 3, EI_COSINE, 5, 0},         {"product-flat", 1, EI_INNER_PRODUCT, 17, 0}, {"l2-flat", 130, EI_L2, 2, 0},
        {"cosine-graph", 5, EI_COSINE, 20, 1},       {"product-graph", 2, EI_INNER_PRODUCT, 33, 1}, {"l2-graph", 9, EI_L2, 18, 1},
        {"empty", 4, EI_COSINE, 0, 0},               {"single-graph", 7, EI_L2, 1, 1},
    };
    if (n_arguments != 2) {
        fprintf(stderr, "usage: make_corpus FOLDER\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        ei_build_settings settings = settings_for(seeds[i].dim, seeds[i].metric, seeds[i].graph);
        settings.max_links = 6;
        float *rows = themed_rows(seeds[i].n, seeds[i].dim, 3, i + 1);
        int64_t *ids = some_ids(seeds[i].n);
        const file f = built(&settings, ids, rows, seeds[i].n);
        keep_packed(arguments[1], seeds[i].name, &f, PACKED_SIGNED, 0);
        if (strcmp(seeds[i].name, "l2-graph") == 0) {
            keep_packed(arguments[1], "cut", &f, PACKED_SIGNED, 5000);
            keep_forged(arguments[1], "flipped", &f, 1, 3, 0x12345678, 0);
            keep_forged(arguments[1], "count", &f, -1, AT_COUNT, 0x01ffffff, PACKED_SIGNED);
            keep_forged(arguments[1], "scale", &f, 2, 4, 0x7f7fffff, PACKED_SIGNED);
            keep_forged(arguments[1], "norm", &f, 3, 4, 0x7fc00000, PACKED_SIGNED);
            keep_forged(arguments[1], "link-start", &f, 5, 8, 0xfffffff0, PACKED_SIGNED);
            keep_forged(arguments[1], "link", &f, 6, 12, 0xfffffff0, PACKED_SIGNED);
            keep_forged(arguments[1], "entry", &f, 7, 0, 0x80000000, PACKED_SIGNED);
        }
        free(f.bytes), free(rows), free(ids);
    }
    return failures != 0;
}
