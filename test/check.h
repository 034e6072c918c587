// What the tests in C share: counting, and the closing line that the suite reads.
#include <stdarg.h>
#include <stdio.h>

static int passed, failed, skipped;

// Counts a check; a failed one is printed.
__attribute__((format(printf, 2, 3), unused)) static int check(int ok, const char *format, ...) {
    va_list args;
    if (ok) passed++;
    else {
        failed++;
        va_start(args, format);
        printf("FAILED: ");
        vprintf(format, args);
        printf("\n");
        va_end(args);
    }
    return ok;
}

__attribute__((unused)) static int finish(void) {
    printf("%d passed, %d failed", passed, failed);
    if (skipped) printf(", %d skipped", skipped);
    printf("\n");
    return failed != 0;
}
