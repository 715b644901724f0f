/* Search an index file and print what it finds: all that a program needs that uses edge_index without Python.
 *
 *   search INDEX K QUERIES.f32       queries as float32, one after the other
 *   search INDEX K -- X1 X2 ... XN   one query, its components as numbers
 *
 * Prints a line for each row found: number of the query, id, score.
 *
 *   cmake -S native -B build/native && cmake --build build/native && cmake --install build/native --prefix PREFIX
 *   export PKG_CONFIG_PATH=PREFIX/lib/pkgconfig
 *   cc search.c $(pkg-config --cflags --libs --static edge_index) -o search
 */
#define _POSIX_C_SOURCE 200809L
#include <edge_index.h>

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int complain(const char *about, const char *what)
{
    fprintf(stderr, "search: %s: %s\n", about, what);
    return 1;
}

/* The mapped bytes stay in place until the process ends. NULL: not readable; errno says why. */
static const void *map_file(const char *path, size_t *size)
{
    struct stat about;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return NULL;
    void *bytes = MAP_FAILED;
    if (fstat(file, &about) == 0 && about.st_size > 0) {
        *size = (size_t)about.st_size;
        bytes = mmap(NULL, *size, PROT_READ, MAP_SHARED, file, 0);
    }
    close(file);
    return bytes != MAP_FAILED ? bytes : NULL;
}

/* Read queries of `dim` floats, from a file or from the command line. NULL: there is none, or part of one. */
static const float *read_queries(int n_words, char **words, uint32_t dim, size_t *n)
{
    if (strcmp(words[0], "--") != 0) {
        size_t size = 0;
        const float *queries = map_file(words[0], &size);
        *n = size / (dim * sizeof *queries);
        return n_words == 1 && size % (dim * sizeof *queries) == 0 ? queries : NULL;
    }
    float *query = malloc(dim * sizeof *query);
    *n = 1;
    if (query == NULL || (uint32_t)n_words != dim + 1) return NULL;
    for (uint32_t i = 0; i < dim; i++) {
        char *end;
        query[i] = strtof(words[1 + i], &end);
        if (end == words[1 + i] || *end != '\0') return NULL;
    }
    return query;
}

int main(int n_arguments, char **arguments)
{
    char *end = "";
    const unsigned long k = n_arguments >= 4 ? strtoul(arguments[2], &end, 10) : 0;
    if (k < 1 || k > 1000000 || *end != '\0') return complain("usage", "search INDEX K QUERIES.f32 | search INDEX K -- X1 X2 ...");

    size_t size = 0;
    const void *bytes = map_file(arguments[1], &size);
    if (bytes == NULL) return complain(arguments[1], "cannot be read");

    ei_index *index;
    ei_status status = ei_open(bytes, size, EI_CHECK_SEARCH, &index);
    if (status != EI_OK) return complain(arguments[1], ei_status_text(status));

    ei_info info;
    ei_get_info(index, &info);
    size_t n = 0;
    const float *queries = read_queries(n_arguments - 3, arguments + 3, info.dim, &n);
    if (queries == NULL) {
        fprintf(stderr, "search: queries of %" PRIu32 " numbers each are needed\n", info.dim);
        return 1;
    }
    int64_t *ids = malloc(n * k * sizeof *ids);
    float *scores = malloc(n * k * sizeof *scores);
    if (ids == NULL || scores == NULL) return complain("answers", "out of memory");

    const ei_search_settings settings = {.k = (uint32_t)k, .threads = 1};
    status = ei_search(index, queries, n, &settings, ids, scores);
    if (status != EI_OK) return complain(arguments[1], ei_status_text(status));
    for (size_t i = 0; i < n * k; i++) {
        if (ids[i] == -1) continue; /* fewer rows than k */
        printf("%zu %" PRId64 " %.6f\n", i / k, ids[i], (double)scores[i]);
    }
    free(ids);
    free(scores);
    ei_close(index);
    return 0;
}
