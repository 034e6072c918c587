// Damaged files: a good one with one to three changes of the kinds that find bugs in parsers. A reader has to
// take it, or to refuse it with one line, `error: ...`. Included after caught.h, the program and forked.h.
#include <ctype.h>
#include <sys/time.h>

static char damaged_now[100]; // what is being read, for the message where the program ends by it

static void damaged_announce(int signal_number) {
    const char text[] = "\nended by a damaged file: ";
    ssize_t written = write(1, text, sizeof text - 1);
    written += write(1, damaged_now, strlen(damaged_now));
    if (write(1, "\n", written > 0) < 0 || !signal_number) return;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}
#ifdef UNDER_ASAN
void __asan_on_error(void);
void __asan_on_error(void) { damaged_announce(0); }
#endif

static uint64_t damaged_random(uint64_t *state) { // splitmix64
    uint64_t z = *state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// The good file of n bytes, changed somewhere in its first `range` bytes; the caller frees it.
static char *mutate(const char *good, size_t n, size_t range, uint64_t seed, size_t *size) {
    static const char *const numbers[] = {
        "-1", "0", "1", "3", "2147483647", "2147483648", "4294967295", "4294967296", "65535", "65536",
        "9223372036854775807", "18446744073709551616", "1e308", "1e999", "-0", "0.5", "null", "\"x\""};
    static const int64_t words[] = {
        0, -1, 1, INT32_MAX, INT32_MIN, 65536, 1 << 20, 1ll << 32, INT64_MAX, INT64_MIN, 1ll << 61};
    size_t capacity = 2 * n + 100;
    char *bad = (char *)malloc(capacity);
#define RANDOM(k) ((size_t)(damaged_random(&seed) % (uint64_t)(k)))
#define LESS(a, b) ((a) < (b) ? (a) : (b))
    memcpy(bad, good, n);
    for (int changes = 1 + (int)RANDOM(3); changes > 0 && n > 0; changes--) {
        size_t reach = LESS(n, range), near = RANDOM(2) ? reach : LESS(reach, 300), at = RANDOM(near);
        size_t length, digits = 0;
        switch (RANDOM(9)) {
        case 0: bad[at] ^= (char)(1 << RANDOM(8)); break;
        case 1: bad[at] = (char)RANDOM(256); break;
        case 2: bad[at] = "{}[],:\"\\ \n0"[RANDOM(11)]; break;
        case 3: // the end goes
            length = RANDOM(4) ? n - at : 1 + RANDOM(8);
            n -= LESS(n, length);
            break;
        case 4: // some bytes go
            length = RANDOM(2) ? 1 + RANDOM(4) : RANDOM(n);
            length = LESS(length, n - at);
            memmove(bad + at, bad + at + length, n - at - length);
            n -= length;
            break;
        case 5: // some bytes come twice
            length = RANDOM(2) ? 1 + RANDOM(8) : RANDOM(n);
            length = LESS(length, LESS(n - at, capacity - n));
            memmove(bad + at + length, bad + at, n - at);
            n += length;
            break;
        case 6: if (n - at >= 4) memcpy(bad + at / 4 * 4, &words[RANDOM(11)], LESS(4, n - at / 4 * 4)); break;
        case 7: if (n - at >= 8) memcpy(bad + at / 8 * 8, &words[RANDOM(11)], LESS(8, n - at / 8 * 8)); break;
        case 8: { // a number becomes another
            const char *number = numbers[RANDOM(18)];
            while (at < reach && !isdigit((unsigned char)bad[at])) at++;
            while (at + digits < n && isdigit((unsigned char)bad[at + digits])) digits++;
            if (at >= reach || n + strlen(number) > capacity) break;
            memmove(bad + at + strlen(number), bad + at + digits, n - at - digits);
            memcpy(bad + at, number, strlen(number));
            n += strlen(number) - digits;
        }
        }
    }
    *size = n;
    return bad;
}

// Reads `times` damaged versions of the file at `path` by loader(argument), each of which is given 10 seconds
// of processor time. The file is good again at the end; where the program ends by one, that one stays.
static void test_damaged(const char *what, const char *path, void (*loader)(void *), void *argument,
                         size_t range, int times) {
    FILE *f = fopen(path, "rb");
    long n;
    if (!f || fseek(f, 0, SEEK_END) || (n = ftell(f)) <= 0 || fseek(f, 0, SEEK_SET)) abort();
    char *good = (char *)malloc((size_t)n), *bad;
    if (fread(good, 1, (size_t)n, f) != (size_t)n) abort();
    fclose(f);
    int loaded = 0, before = failed;
    signal(SIGPROF, damaged_announce);
    signal(SIGABRT, damaged_announce);
#ifndef UNDER_ASAN
    signal(SIGSEGV, damaged_announce);
    signal(SIGBUS, damaged_announce);
#endif
    for (int i = -1; i < times; i++) { // first the whole file
        size_t size = (size_t)n;
        Outcome o;
        if (i < 0) memcpy(bad = (char *)malloc(size), good, size);
        else bad = mutate(good, size, range, (uint64_t)i * 1000 + strlen(what), &size);
        f = fopen(path, "wb");
        if (!f || fwrite(bad, 1, size, f) != size || fclose(f)) abort();
        free(bad);
        snprintf(damaged_now, sizeof damaged_now, "%s, number %d, at %.60s", what, i, path);
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 10}, NULL);
        o.code = caught(loader, argument, o.error, sizeof o.error);
        setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
        loaded += o.code == 0;
        check((o.code == 0 && !o.error[0]) || (i >= 0 && is_refusal(&o)), "%s: exit %d: %s", damaged_now,
              o.code, o.error);
    }
    f = fopen(path, "wb");
    if (!f || fwrite(good, 1, (size_t)n, f) != (size_t)n || fclose(f)) abort();
    free(good);
    printf("%s: %d damaged files, %d loaded, %d failed\n", what, times, loaded - 1, failed - before);
}
