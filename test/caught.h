// Runs readers of files in this process, thousands of times a second: exit, by which die() ends a program,
// jumps back here; stderr is a buffer; what the reader has allocated, opened and mapped by then is
// released. An allocation that is too large for a test's files is a failure at once, as a crash is.
// Included before the program whose readers are tested. Used by test_files.c, test_convex.c and dev/fuzz.c.
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_CAUGHT 4096
#ifndef LARGEST_ALLOCATION
#define LARGEST_ALLOCATION (16u << 20)
#endif
static struct { enum { MEMORY = 1, OPENED, MAPPED } kind; void *p; size_t size; } caught_things[MAX_CAUGHT];
static int caught_count, catching;
static jmp_buf caught_exit;
static FILE *caught_stderr;

static void caught_add(int kind, void *p, size_t size) {
    if (!catching || !p) return;
    if (caught_count == MAX_CAUGHT) abort();
    caught_things[caught_count].kind = kind;
    caught_things[caught_count].p = p;
    caught_things[caught_count++].size = size;
}

static void caught_remove(const void *p) {
    int i = caught_count;
    while (i > 0 && caught_things[i - 1].p != p) i--;
    if (p && i > 0) caught_things[i - 1] = caught_things[--caught_count];
}

static void caught_size(size_t n) {
    if (catching && n > LARGEST_ALLOCATION) {
        fprintf(stderr, "an allocation of %zu bytes\n", n);
        abort();
    }
}

__attribute__((unused)) static void *caught_realloc(void *p, size_t n) {
    caught_size(n);
    caught_remove(p);
    p = realloc(p, n);
    caught_add(MEMORY, p, 0);
    return p;
}

__attribute__((unused)) static int caught_memalign(void **p, size_t alignment, size_t n) {
    caught_size(n);
    int error = posix_memalign(p, alignment, n);
    if (!error) caught_add(MEMORY, *p, 0);
    return error;
}

__attribute__((unused)) static void caught_free(void *p) {
    caught_remove(p);
    free(p);
}

__attribute__((unused)) static FILE *caught_fopen(const char *path, const char *mode) {
    FILE *f = fopen(path, mode);
    caught_add(OPENED, f, 0);
    return f;
}

__attribute__((unused)) static int caught_fclose(FILE *f) {
    caught_remove(f);
    return fclose(f);
}

__attribute__((unused)) static void *caught_mmap(void *at, size_t n, int prot, int flags, int fd, off_t o) {
    void *p = mmap(at, n, prot, flags, fd, o);
    if (p != MAP_FAILED) caught_add(MAPPED, p, n);
    return p;
}

__attribute__((noreturn, unused)) static void caught_exit_with(int code) {
    if (catching) longjmp(caught_exit, 1000 + code);
    exit(code);
}

__attribute__((unused)) static FILE *caught_error_stream(void) { return catching ? caught_stderr : stderr; }

// Runs function(argument); returns the exit code, 0 if it came back, and in `error` what it wrote to stderr.
static int caught(void (*function)(void *), void *argument, char *error, size_t size) {
    memset(error, 0, size);
    caught_stderr = fmemopen(error, size - 1, "w");
    if (!caught_stderr) abort();
    catching = 1;
    int code = setjmp(caught_exit);
    if (!code) function(argument);
    catching = 0;
    fclose(caught_stderr);
    for (; caught_count; caught_count--) {
        void *p = caught_things[caught_count - 1].p;
        if (caught_things[caught_count - 1].kind == MEMORY) free(p);
        else if (caught_things[caught_count - 1].kind == OPENED) fclose(p);
        else munmap(p, caught_things[caught_count - 1].size);
    }
    return code ? code - 1000 : 0;
}

#undef stderr
#define stderr caught_error_stream()
#define realloc caught_realloc
#define posix_memalign caught_memalign
#define free caught_free
#define fopen caught_fopen
#define fclose caught_fclose
#define mmap caught_mmap
#define exit caught_exit_with
