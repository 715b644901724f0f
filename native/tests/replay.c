/* Runs the fuzz target where there is no libFuzzer: `replay ROUNDS FILE...` runs each file, then ROUNDS mutations of them that
 * are the same in every run. A crash leaves its input in ./crash. */
#include "check.h"

#include <signal.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern unsigned long n_opened; /* each input is opened three times, with one check after the other */

typedef struct input {
    uint8_t *bytes;
    size_t size;
} input;

static input current;

static input read_input(const char *path)
{
    input in = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        exit(2);
    }
    in.size = (size_t)ftell(file);
    rewind(file);
    in.bytes = malloc(in.size + 1);
    if (fread(in.bytes, 1, in.size, file) != in.size) exit(2);
    fclose(file);
    return in;
}

static void keep_crash(int number)
{
    FILE *file = fopen("crash", "wb");
    if (file != NULL && fwrite(current.bytes, 1, current.size, file) == current.size) fclose(file);
    signal(number, SIG_DFL);
    raise(number);
}

static void run(const uint8_t *bytes, size_t size) /* from memory of exactly its size */
{
    current.bytes = malloc(size + 1);
    current.size = size;
    memcpy(current.bytes, bytes, size);
    LLVMFuzzerTestOneInput(current.bytes, size);
    free(current.bytes);
}

/* Change up to 8 places: a bit, a byte, a number of 32 bits to one that is often wrong, or bytes from another input. */
static size_t mutate(uint8_t *bytes, size_t size, const input *other)
{
    static const uint32_t awkward[] = {0, 1, 2, 127, 128, 255, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x7f800000, 0x7fc00000};
    for (uint32_t n = draw_below(8) + 1; n > 0 && size >= 8; n--) {
        const size_t at = draw_below(12) == 0 ? draw_below((uint32_t)(size < 420 ? size : 420)) : draw_below((uint32_t)size);
        switch (draw_below(5)) {
        case 0: bytes[at] ^= (uint8_t)(1 << draw_below(8)); break;
        case 1: bytes[at] = (uint8_t)draw(); break;
        case 2: bytes[at] = (uint8_t)(bytes[at] + draw_below(3) - 1); break;
        case 3: memcpy(bytes + (at < size - 4 ? at : size - 4), &awkward[draw_below(12)], 4); break;
        default: {
            const size_t from = draw_below((uint32_t)other->size), most = other->size - from < size - at ? other->size - from : size - at;
            memcpy(bytes + at, other->bytes + from, draw_below((uint32_t)(most < 64 ? most : 64) + 1));
        }
        }
    }
    if (size > 8 && draw_below(16) == 0) size -= draw_below((uint32_t)size / 2);
    if (size > 0 && draw_below(4) != 0) bytes[0] |= 1; /* signed: or few mutations get past the checksums */
    return size;
}

int main(int n_arguments, char **arguments)
{
    const long rounds = n_arguments > 2 ? strtol(arguments[1], NULL, 10) : -1;
    if (rounds < 0) {
        fprintf(stderr, "usage: replay ROUNDS FILE...\n");
        return 2;
    }
    const size_t n = (size_t)n_arguments - 2;
    input *inputs = malloc(n * sizeof *inputs);
    signal(SIGABRT, keep_crash);
    signal(SIGSEGV, keep_crash);
    signal(SIGFPE, keep_crash);
    signal(SIGALRM, keep_crash);
    for (size_t i = 0; i < n; i++) {
        inputs[i] = read_input(arguments[2 + i]);
        alarm(60);
        run(inputs[i].bytes, inputs[i].size);
    }
    for (long round = 0; round < rounds; round++) {
        const input *from = &inputs[draw_below((uint32_t)n)];
        uint8_t *bytes = malloc(from->size + 1);
        memcpy(bytes, from->bytes, from->size);
        alarm(60); /* an end that is not reached is a failure too */
        run(bytes, mutate(bytes, from->size, &inputs[draw_below((uint32_t)n)]));
        free(bytes);
    }
    for (size_t i = 0; i < n; i++) free(inputs[i].bytes);
    free(inputs);
    CHECK(rounds < 100 || n_opened > (unsigned long)rounds / 2, "only %lu of %ld mutations opened", n_opened / 3, rounds);
    printf("%zu inputs, %ld mutations, %lu times opened\n", n, rounds, n_opened);
    return checks_done();
}
