/* faults.c - memory that runs out at the n-th request: see .ci/faults.
 *
 * Linked with -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc. FAULT=n in the environment: request n fails, and it alone.
 * COUNT=file: the number of requests is written there at the end. */
#include <stdio.h>
#include <stdlib.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *memory, size_t size);

static unsigned long requests, fault;

static void write_count(void) {
    FILE *f = getenv("COUNT") ? fopen(getenv("COUNT"), "w") : NULL;
    if (f) fprintf(f, "%lu\n", requests), fclose(f);
}

static int fails(void) {
    if (requests++ == 0) {
        fault = getenv("FAULT") ? strtoul(getenv("FAULT"), NULL, 10) : 0;
        atexit(write_count);
    }
    return requests == fault;
}

void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *memory, size_t size) { return fails() ? NULL : __real_realloc(memory, size); }
