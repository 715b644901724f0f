/* Writes the seeds of the fuzzer into a folder: `make_corpus native/tests/corpus`. Run it when the format has changed. */
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
        uint8_t *out = malloc(2 * f.size + 3);
        const size_t size = packed(f.bytes, f.size, PACKED_SIGNED, out);
        keep(arguments[1], seeds[i].name, out, size);
        free(f.bytes), free(rows), free(ids), free(out);
    }
    return failures != 0;
}
