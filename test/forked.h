// Runs what may end the program in a child process. It must end by itself within 10 seconds and a limit of
// memory, with exit code 0, or with 1 and one line on stderr, `error: ...`.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifdef UNDER_ASAN // an address space full of shadow memory cannot be limited, but a single allocation can
void __lsan_disable(void); // what a child leaves behind when it ends with an error is no leak
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "exitcode=99:max_allocation_size_mb=512:detect_leaks=0"; }
#endif

typedef struct {
    int code;        // exit code, or 1000 + the signal that ended it
    char error[600]; // the beginning of what it wrote to stderr
} Outcome;

// What a child may allocate beyond what the parent has.
#define CHILD_MEMORY (200l << 20)

static void limit_memory(void) {
#ifndef UNDER_ASAN
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld", &pages) == 1) {
        rlim_t bytes = (rlim_t)(pages * sysconf(_SC_PAGESIZE) + CHILD_MEMORY);
        setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes});
    }
    if (f) fclose(f);
#endif
}

static Outcome in_child(void (*function)(void *), void *argument) {
    Outcome out = {0};
    int ends[2], status, n = 0, got;
    fflush(stdout);
    if (pipe(ends)) exit(2);
    pid_t child = fork();
    if (child < 0) exit(2);
    if (!child) {
        dup2(ends[1], 2);
        close(ends[0]), close(ends[1]);
#ifdef UNDER_ASAN
        __lsan_disable();
#endif
        limit_memory();
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        alarm(10);
        function(argument);
        _exit(0);
    }
    close(ends[1]);
    char rest[4096]; // read to the end, so that the child can always write
    while ((got = (int)read(ends[0], rest, sizeof rest)) > 0)
        for (int i = 0; i < got && n < (int)sizeof out.error - 1; i++) out.error[n++] = rest[i];
    close(ends[0]);
    waitpid(child, &status, 0);
    out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    return out;
}

// One line, `error: ...`, and no want of memory.
static int is_refusal(const Outcome *o) {
    const char *line = strchr(o->error, '\n');
    return o->code == 1 && !strncmp(o->error, "error: ", 7) && line && !line[1] &&
        !strstr(o->error, "memory");
}

// The function must be refused with an error that contains `text`.
__attribute__((unused)) static void check_refused(void (*function)(void *), void *argument,
                                                  const char *text) {
    Outcome o = in_child(function, argument);
    check(is_refusal(&o) && strstr(o.error, text), "expected an error with '%s', got %d: %s", text, o.code,
          o.error);
}
