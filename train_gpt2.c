/* train_gpt2.c: GPT-2 training on a CPU, the whole program in one file.

It reads text, trains a GPT-2 on it with any optimizer of optim.h, learns from a teacher where one is given,
saves what llm.c and Hugging Face's transformers open, and is fast: everything that costs time goes through
one matrix product (chapter 2). It is not a framework: there is no graph and no autograd. Every layer's
backward pass stands beside its forward pass, so that the formulas can be checked against each other.

Built by `make`, or gcc -O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp train_gpt2.c -lm.
Read it top to bottom. Data flows one way through the chapters:

   1  memory, errors, random numbers
   2  vectors, threads, matrix multiplication
   3  layers, forward beside backward
   4  attention
   5  the model: shapes, parameters, activations, forward, backward
   6  checkpoints
   7  tokenizers
   8  data
   9  teacher and proxy
  10  workers
  11  command line
  12  the training loop

Shapes: B sequences of T tokens, C channels, NH heads of HS = C/NH channels, L layers, V tokens in the
vocabulary; rows = B*T. Arrays are row-major, float32 unless they say otherwise: (B,T,C) is float x[B][T][C].
Results are the same to the last bit for any number of threads (but with BLAS=1): each sum is one thread's
work, or is cut into pieces of fixed size which are added in order. */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <glob.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_get_num_threads() 1
#define omp_get_thread_num() 0
#endif
#ifdef USE_BLAS
#include <cblas.h>
#endif
#ifdef USE_MPI
#include <mpi.h>
#endif
#include "optim.h"

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#if defined(TRAIN_GPT2_NO_MAIN) || defined(GPT2_DEVICE) // programs that use parts of this file
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define UNUSED __attribute__((unused))
#define DEFAULT_DATA "dev/data/tales.txt" // what dev/data/tales makes

// ===========================================================================================================
// 1  Memory, errors, random numbers

// A file being written, under its temporary name, and the last folders that were made: die() removes the
// file, and of the folders those that are empty.
#define NEW_FOLDERS 8
static char unfinished_file[4096], new_folders[NEW_FOLDERS][4096];
static int num_new_folders;

static int exit_code; // of die; 0 of a program that ends by itself

static int line_open; // progress stands on the terminal, in a line without an end
static void end_line(void) {
    if (line_open) putchar('\n');
    line_open = 0;
    fflush(stdout);
}

// Prints `error: what, where, and what to do` and ends the program: die with exit code 1, die_usage, for a
// wrong command line, with 2.
__attribute__((format(printf, 2, 3), noreturn)) static void end_with(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    end_line();
    fputs("error: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    if (unfinished_file[0]) unlink(unfinished_file);
    for (int i = 0; i < MIN(num_new_folders, NEW_FOLDERS); i++)
        rmdir(new_folders[(num_new_folders - 1 - i) % NEW_FOLDERS]);
    exit(exit_code = code);
}
#define die(...) end_with(1, __VA_ARGS__)
#define die_usage(...) end_with(2, __VA_ARGS__)

// For the end of a program: dies if not all that was printed has come to where it went.
static void check_printed(void) {
    if (fflush(stdout) || ferror(stdout))
        die("cannot write all of the output; who read it is gone, or the disk full");
}

// Ends the program before it uses `bytes` more where fewer are left: Linux promises memory that is not there,
// and kills the program that writes into it.
static void check_memory(size_t bytes) {
    size_t kib, left = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu", &kib) == 1 || sscanf(line, "SwapFree: %zu", &kib) == 1)
            left += kib;
    if (f) fclose(f);
    if (left && bytes >> 10 > left)
        die("out of memory: %zu MiB more are needed, %zu are left; use a smaller model or batch",
            bytes >> 20, left >> 10);
}

static size_t allocated_bytes; // by allocate(), and of tokens; for the plan that is printed at the start

// An array of count elements of size bytes, zeroed, aligned to a cache line. Large ones ask for huge pages,
// so that passes over hundreds of megabytes spend less on page-table walks.
static void *allocate(size_t count, size_t size) {
    size_t alignment = 64, bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 2)
        die("a size overflows: %zu x %zu", count, size);
    if (bytes >= (1 << 22)) alignment = 1 << 21, check_memory(bytes);
    bytes = (MAX(bytes, 1) + alignment - 1) / alignment * alignment;
    void *p = NULL;
    if (posix_memalign(&p, alignment, bytes))
        die("out of memory: %zu MiB more are needed; use a smaller model or batch", bytes >> 20);
#ifdef MADV_HUGEPAGE
    if (alignment > 64) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    memset(p, 0, bytes);
#pragma omp atomic
    allocated_bytes += bytes;
    return p;
}

static float *allocate_floats(size_t count) { return allocate(count, sizeof(float)); }

// Random numbers by counter (Steele, Lea, Flood 2014, "splitmix64"): number i of a stream is a hash of both,
// so the whole state that a checkpoint keeps is the counter.
static uint64_t random_u64(uint64_t stream, uint64_t i) {
    uint64_t z = stream * 0xD1342543DE82EF95ull + (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Uniform in [0, 1).
static double random_uniform(uint64_t stream, uint64_t i) {
    return (double)(random_u64(stream, i) >> 11) * 0x1p-53;
}

// x[0..n) = normal numbers of mean 0 and deviation std (Box and Muller), of numbers 0 to 2n-1 of a stream.
static void random_normal(float *x, size_t n, float std, uint64_t stream) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        double u = 1.0 - random_uniform(stream, 2 * i), v = random_uniform(stream, 2 * i + 1);
        x[i] = std * (float)(sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v));
    }
}

static volatile sig_atomic_t interrupted; // by a signal: the step is finished, then saved
static int says_it_stops;                 // whether somebody is to be told, for a step may take a while
static void on_signal(int signal) {
    static const char note[] = "\nstopping; once more, two seconds from now, ends it at once and unsaved\n";
    static time_t first;
    if (!interrupted) {
        int error = errno;
        first = time(NULL);
        if (says_it_stops && write(2, note, sizeof note - 1) < 0) says_it_stops = 0;
        errno = error;
    } else if (time(NULL) > first + 1) { // asked again, and not by the same keystroke
        if (unfinished_file[0]) unlink(unfinished_file);
        _exit(128 + signal);
    }
    interrupted = 1;
}

// A file that is mapped was cut short: what it had is gone.
static void on_lost_file(UNUSED int signal) {
    static const char why[] =
        "error: a file was cut short while it was read; put it back, and start again\n";
    UNUSED ssize_t told = write(2, why, sizeof why - 1);
    if (unfinished_file[0]) unlink(unfinished_file);
    _exit(1);
}

// SIGINT, SIGTERM and SIGHUP (of a terminal that closes; unless nohup has it ignored) set `interrupted`.
static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal}, old;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (!sigaction(SIGHUP, NULL, &old) && old.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, NULL);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ===========================================================================================================
// 2  Vectors, threads, matrix multiplication

// A vector register's worth of floats, in the vector extensions that GCC and Clang share. A width that the
// machine does not have (-DVEC=16 on AVX2) is lowered to several registers: slower, the same results.
#ifndef VEC
#if defined(__AVX512F__)
#define VEC 16
#elif defined(__AVX__)
#define VEC 8
#else
#define VEC 4 // SSE, NEON
#endif
#endif
typedef float vec __attribute__((vector_size(4 * VEC)));
typedef float vec_u __attribute__((vector_size(4 * VEC), aligned(4), may_alias)); // anywhere in memory
typedef int32_t vec_i __attribute__((vector_size(4 * VEC)));

// exp(x) to 1 ulp, without branches, so that loops over it become vector code. With n = round(x / ln 2) and
// r = x - n ln 2: exp(x) = 2^n exp(r); exp(r) by a polynomial on |r| <= ln 2 / 2; n is added to its exponent.
// Below -87.3 (results under the smallest normal float) it is 0, above 88.7 infinity; NaN, as the machine
// makes it, stays NaN.
static inline float exp_f32(float x) {
    const float shift = 0x1.8p23f; // adding it rounds to an integer, which then stands in the low bits
    float t = x * 1.44269504f + shift, n = t - shift;
    float r = x - n * 0.693359375f; // ln 2 in two parts: the first has few bits, so n times it is exact
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f; // coefficients: Cephes' expf (Moshier)
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { float f; uint32_t u; } bits = {.f = t}, result = {.f = p};
    result.u += bits.u << 23;
    float y = x > 88.7228f ? INFINITY : result.f;
    return x < -87.3365f ? 0.0f : y;
}

// GELU in its tanh form, GPT-2's "gelu_new": x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3); this is x s
// with the gate s = 1 / (1 + exp(-2u)), in which nothing cancels.
static inline float gelu_gate(float x) {
    return 1.0f / (1.0f + exp_f32(-2.0f * 0.7978845608f * (x + 0.044715f * x * x * x)));
}

static inline float gelu(float x) { return x * gelu_gate(x); }

// d gelu / dx = s + x s (1 - s) 2u', s the gate of x.
static inline float gelu_derivative(float x, float s) {
    return s + x * s * (1.0f - s) * (2.0f * 0.7978845608f) * (1.0f + 3.0f * 0.044715f * x * x);
}

// The largest of n numbers, in VEC maxima side by side.
static float largest_of(const float *x, int n) {
    float m[VEC];
    for (int j = 0; j < VEC; j++) m[j] = -INFINITY;
    int i = 0;
    for (; i + VEC <= n; i += VEC)
        for (int j = 0; j < VEC; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (; i < n; i++) m[0] = x[i] > m[0] ? x[i] : m[0];
    for (int j = 1; j < VEC; j++) m[0] = m[j] > m[0] ? m[j] : m[0];
    return m[0];
}

/* Matrix multiplication after Goto and van de Geijn (2008), in BLIS's words: C (M x N) = A (M x K) B (K x N).

C is cut into tasks, each one thread's work without any waiting for others. A task goes through K in blocks of
KC and packs its part of B into panels, in the order in which they will be read:

                        panel 0    panel 1          for each block of KC rows of B
     A               k=0 [ NR ]     [ NR ]            pack the task's panels (they stay in L2)
     +--KC--+        k=1 [ NR ]     [ NR ]            for each MC rows of A (they stay in L2)
  MR |strip0|        k=2 [ NR ]     [ NR ]              for each panel (most of it stays in L1)
  MR |strip1|            ...        ...                   for each strip of MR rows
     |  ... |                                               microkernel: an MR x NR tile of C

The microkernel keeps the tile of C in registers: for each k it loads NR = 2 vectors of B, and for each of the
MR rows one number of A, which multiplies both: 2 MR fused multiply-adds for 2 + MR loads. Rows of A are read
where they stand; they are packed, MR numbers for each k side by side, only if A is transposed or the strip is
cut short by the end of the matrix. Meanwhile the tile's lines of C come from memory. An element of C is
summed in the same order whoever computes it, so the cuts into tasks may depend on the threads. */
#if VEC == 4 && !defined(__aarch64__) || VEC == 8
#define MR 6 // 12 of 16 registers hold the tile
#else
#define MR 12 // 24 of 32 registers
#endif
#define NR (2 * VEC)
#define KC 384
#define MC 48
#define PANELS (12288 * VEC) // floats: what fits L2, which is larger where the vectors are

// tile += a column of A times a row of B, which is one k's part of it. p points at every third number of the
// column; the two after it are found from there.
static inline __attribute__((always_inline)) void rank_one(vec c[MR][2], const int nv, const float *p[MR / 3],
                                                           long row, const long col, const float *b) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
        float x = p[i / 3][i % 3 * row];
        c[i][0] += x * *(const vec_u *)b;
        if (nv == 2) c[i][1] += x * *(const vec_u *)(b + VEC);
        if (i % 3 == 2) p[i / 3] += col;
    }
}

// tile (MR x nv vectors) = a strip of A times a panel of B; A[i][k] is a[i*row + k*col]. `rows` rows of it
// will be written to C (ldc apart), whose lines are asked for on the way, so few at a time that A and B need
// not wait. nv and col are constants where this is expanded, so that the tile lives in registers.
static inline __attribute__((always_inline)) void microkernel(const int nv, int K, const float *a, long row,
                                                              const long col, const float *b, vec *tile,
                                                              const float *C, long ldc, int rows) {
    vec c[MR][2];
    const float *p[MR / 3];
    int k = 0;
    for (int i = 0; i < MR; i++) c[i][0] = c[i][1] = (vec){0};
    for (int i = 0; i < MR / 3; i++) {
        p[i] = a + 3 * i * row;
        __asm__("" : "+r"(p[i])); // else GCC keeps MR offsets, more than there are registers
    }
    for (; k + 4 <= K && k < 4 * rows; k += 4, C += ldc) {
        for (int j = 0; j < nv; j++) __builtin_prefetch(C + j * VEC, 1);
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++, b += nv * VEC) rank_one(c, nv, p, row, col, b);
    }
#pragma GCC unroll 4
    for (; k < K; k++, b += nv * VEC) rank_one(c, nv, p, row, col, b);
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < nv; j++) tile[i * nv + j] = c[i][j];
}

// What a product may leave out where keys after a query have no part in it: tiles above C's diagonal, which
// nobody will read, or what A has zeros for, above its diagonal or (A transposed) below.
enum { NOTHING, ABOVE_C, ABOVE_A, BELOW_A };

// What is done to C as it is written out, while it is still in cache. All pointers may be NULL.
typedef struct {
    int bf16;              // before it all: B is of bfloat16 (uint16_t), (N,K), and widened as it is packed
    int accumulate;        // C += A B instead of C = A B
    int omit;              // one of the above
    const float *bias;     // (N) added to each row
    const float *residual; // (M,N) added
    const float *times;    // (M,N) multiplies the result
    float *gelu;           // (M,N) receives gelu(C) beside C
} Epilogue;

// The first n floats at p, as a vector.
static inline vec load(const float *p, int n) {
    if (n >= VEC) return *(const vec_u *)p;
    vec v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
}

static inline void store(float *p, vec v, int n) {
    if (n >= VEC) *(vec_u *)p = v;
    else
        for (int i = 0; i < n; i++) p[i] = v[i];
}

// C[row..row+rows)[col..col+cols) from one tile; first and last tell which block of K this was. nv and cols
// are constants for whole tiles, so that nothing but vector instructions remains.
static inline __attribute__((always_inline)) void write_tile(const vec *tile, const int nv, float *C,
                                                             long ldc, int row, int rows, int col,
                                                             const int cols, const Epilogue *e, int first,
                                                             int last) {
    int add = !first || e->accumulate;
    const float *bias = first ? e->bias : NULL, *residual = first ? e->residual : NULL;
    const float *times = last ? e->times : NULL;
    for (int i = 0; i < rows; i++) {
        size_t at = (size_t)(row + i) * ldc + col;
        for (int j = 0; j < nv; j++) {
            int n = cols - j * VEC, to = j * VEC;
            vec x = tile[i * nv + j];
            if (add) x += load(C + at + to, n);
            if (bias) x += load(bias + col + to, n);
            if (residual) x += load(residual + at + to, n);
            if (times) x *= load(times + at + to, n);
            store(C + at + to, x, n);
        }
        if (last && e->gelu) {
#pragma omp simd
            for (int j = 0; j < cols; j++) e->gelu[at + j] = gelu(C[at + j]);
        }
    }
}

// Perfect shuffles of two vectors: a0 b0 a1 b1 ..., from their lower and upper halves.
#if VEC == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VEC == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vec_i){__VA_ARGS__})
#endif

// Transposes VEC rows of VEC floats in registers. A perfect shuffle of row i with row i + VEC/2 rotates the
// bits of an element's address (row, column) by one place; log2(VEC) of them swap row and column.
static inline void transpose_block(float *out, long out_stride, const float *in, long in_stride, int rows) {
    vec x[VEC], y[VEC];
    for (int i = 0; i < VEC; i++) x[i] = i < rows ? (vec) * (const vec_u *)(in + i * in_stride) : (vec){0};
    for (int step = 1; step < VEC; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < VEC / 2; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + VEC / 2], LOW);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + VEC / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VEC; i++) x[i] = y[i];
    }
    for (int i = 0; i < VEC; i++) *(vec_u *)(out + i * out_stride) = x[i];
}

// One panel of B: K rows of `cols` (at most NR) columns; B[k][j] is b[k*row + j*col], and one of row and col
// is 1. The panel is one or two vectors wide; columns past the end become zeros.
static int panel_width(int cols) { return cols <= VEC ? VEC : NR; }

static __attribute__((noinline)) void pack_panel(float *panel, const float *b, long row, long col, int K,
                                                 int cols) {
    int width = panel_width(cols), k = 0;
    if (row == 1) // transposed: columns of B are contiguous
        for (int j = 0; j < width; j += VEC) // VEC of them at a time, as many as the machine reads ahead in
            for (k = 0; k + VEC <= K; k += VEC)
                transpose_block(panel + k * width + j, width, b + k + j * col, col,
                                MAX(0, MIN(VEC, cols - j)));
    for (; k < K; k++)
        for (int j = 0; j < width; j++) panel[k * width + j] = j < cols ? b[k * row + j * col] : 0.0f;
}

// All panels of K rows and N columns of B. Rows that lie in memory as they are needed are read through once,
// each for all panels: a panel at a time would touch a page of every row for NR numbers.
static __attribute__((noinline)) void pack_panels(float *panels, const float *b, long row, long col, int K,
                                                  int N) {
    int whole = col == 1 ? N / NR * NR : 0;
    for (int k = 0; k < K; k++)
        for (int j = 0; j < whole; j += NR)
            memcpy(panels + j * K + k * NR, b + k * row + j, NR * sizeof(float));
    for (int j = whole; j < N; j += NR)
        pack_panel(panels + j * K, b + j * col, row, col, K, MIN(NR, N - j));
}

// bfloat16 is the upper half of a float32. Rounds to the nearest, ties to even.
static inline uint16_t bf16_of(float x) {
    union { float f; uint32_t u; } bits = {.f = x};
    return (uint16_t)((bits.u + 0x7FFF + (bits.u >> 16 & 1)) >> 16);
}

static inline void widen(float *out, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        union { uint32_t u; float f; } bits = {.u = (uint32_t)x[i] << 16};
        out[i] = bits.f;
    }
}

// pack_panels for a B of bfloat16, whose columns are contiguous and col apart.
static void pack_panels_bf16(float *panels, const uint16_t *b, long col, int K, int N) {
    static _Thread_local float columns[NR * KC];
    for (int first = 0; first < N; first += NR) {
        int cols = MIN(NR, N - first);
        for (int j = 0; j < cols; j++) widen(columns + j * K, b + (first + j) * col, (size_t)K);
        pack_panel(panels + first * K, columns, 1, K, K, cols);
    }
}

// Strips of A: for each MR rows, K times MR numbers side by side; rows past the end become zeros. noinline:
// its loop then has the registers to itself.
static __attribute__((noinline)) void pack_strips(float *strips, const float *a, long row, long col, int K,
                                                  int rows) {
    int whole = row == 1 ? rows / MR * MR : 0;
    for (int k = 0; k < K; k++)
        for (int i = 0; i < whole; i += MR)
            memcpy(strips + i * K + k * MR, a + k * col + i, MR * sizeof(float));
    for (int i = whole; i < rows; i += MR) {
        if (rows - i < MR) memset(strips + i * K, 0, (size_t)K * MR * sizeof(float));
        for (int r = 0; r < MIN(MR, rows - i); r++)
            for (int k = 0; k < K; k++) strips[i * K + k * MR + r] = a[(i + r) * row + k * col];
    }
}

// The largest number of columns of B of which a block of KC rows fits the panels.
static int most_columns(int K) { return PANELS / MIN(K, KC) / NR * NR; }

// C (M,N; rows ldc apart) = A B, and the epilogue; one thread's work. A[i][k] is a[i*a_row + k*a_col],
// B[k][j] is b[k*b_row + j*b_col]; of each pair of strides one is 1.
static void multiply(float *C, long ldc, const float *a, long a_row, long a_col, const float *b, long b_row,
                     long b_col, int M, int N, int K, Epilogue e) {
    static _Thread_local float panels[PANELS] __attribute__((aligned(64)));
    static _Thread_local float strips[MC * KC] __attribute__((aligned(64)));
    vec tile[2 * MR];
    const int most = most_columns(K);
    for (; N > most; N -= most, b += most * b_col, C += most) { // wide heads and Muon's: e has no pointers
        multiply(C, ldc, a, a_row, a_col, b, b_row, b_col, M, most, K, e);
        if (e.omit == ABOVE_C) a += most * a_row, C += most * ldc, M -= most; // rows above the next columns
    }
    for (int k0 = 0; k0 < K; k0 += KC) {
        int kc = MIN(KC, K - k0), first = k0 == 0, last = k0 + kc == K;
        if (e.bf16) pack_panels_bf16(panels, (const uint16_t *)b + k0, b_col, kc, N);
        else pack_panels(panels, b + k0 * b_row, b_row, b_col, kc, N);
        for (int m = 0; m < M; m += MC) {
            int mc = MIN(MC, M - m),
                direct = a_row == 1 ? 0 : mc / MR * MR; // rows of A that are read in place
            const float *block = a + m * a_row + k0 * a_col;
            pack_strips(strips + direct * kc, block + direct * a_row, a_row, a_col, kc, mc - direct);
            for (int j = 0; j < N; j += NR) {
                int cols = MIN(NR, N - j), nv = panel_width(cols) / VEC;
                const float *panel = panels + j * kc;
                for (int i = 0; i < mc; i += MR) {
                    int rows = MIN(MR, mc - i), k = 0, n = kc;
                    if (e.omit == ABOVE_C && j >= m + i + MR) continue;
                    if (e.omit == ABOVE_A) n = MAX(0, MIN(kc, m + i + MR - k0));
                    if (e.omit == BELOW_A) k = MAX(0, MIN(kc, m + i - k0)), n = kc - k;
                    const float *c = C + (m + i) * ldc + j, *in_place = block + i * a_row + k,
                                *packed = strips + i * kc + k * MR, *rest = panel + k * nv * VEC;
                    int whole = i < direct;
                    if (whole && nv == 2) microkernel(2, n, in_place, a_row, 1, rest, tile, c, ldc, MR);
                    else if (whole) microkernel(1, n, in_place, a_row, 1, rest, tile, c, ldc, MR);
                    else if (nv == 2) microkernel(2, n, packed, 1, MR, rest, tile, c, ldc, rows);
                    else microkernel(1, n, packed, 1, MR, rest, tile, c, ldc, rows);
                    if (cols == NR) write_tile(tile, 2, C, ldc, m + i, rows, j, NR, &e, first, last);
                    else write_tile(tile, nv, C, ldc, m + i, rows, j, cols, &e, first, last);
                }
            }
        }
    }
}

// The size of equal parts of n, a multiple of `unit` and at most `most` (rounded up to one), their number a
// multiple of `threads` if possible.
static UNUSED int share(int n, int threads, int most, int unit) {
    long round = (long)threads * most;
    int parts = (int)(threads * ((n + round - 1) / round));
    return ((n + parts - 1) / parts + unit - 1) / unit * unit;
}

static const Epilogue plain = {0}, accumulate = {.accumulate = 1};

// C (M,N) = op(A) (M,K) op(B) (K,N), then the epilogue. op transposes where asked for: A is then stored
// (K,M), B (N,K). Neither operand may overlap C.
static void matmul(float *C, const float *A, const void *B, int M, int N, int K, int trans_a, int trans_b,
                   Epilogue e) {
#ifdef USE_BLAS
    float *wide = e.bf16 ? malloc((size_t)N * K * sizeof *wide) : NULL;
    if (e.bf16 && !wide) die("out of memory: a matrix of %zu MiB", ((size_t)N * K * sizeof *wide) >> 20);
    for (int n = 0; e.bf16 && n < N; n++) widen(wide + (size_t)n * K, (const uint16_t *)B + (size_t)n * K, K);
    cblas_sgemm(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, M, N,
                K, 1.0f, A, trans_a ? M : K, wide ? wide : B, trans_b ? K : N, e.accumulate ? 1.0f : 0.0f, C,
                N);
    free(wide);
    e.accumulate = 0;
    if (!e.bias && !e.residual && !e.times && !e.gelu) return;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j += NR) { // the finished product stands for the tile
            int cols = MIN(NR, N - j);
            const float *c = C + (size_t)i * N + j;
            vec tile[2] = {load(c, cols), load(c + VEC, MAX(cols - VEC, 0))};
            write_tile(tile, panel_width(cols) / VEC, C, N, i, 1, j, cols, &e, 1, 1);
        }
#else
    long a_row = trans_a ? 1 : K, a_col = trans_a ? M : 1, b_row = trans_b ? 1 : N, b_col = trans_b ? K : 1;
    // Tasks: rows are shared out where they are more, so that a thread works on the rows that it has in cache
    // from the layer before, else columns; then each thread packs its part of B, or all of a smaller B.
    int threads = omp_get_max_threads(), by_rows = M >= N;
    int mt = share(M, by_rows ? threads : 1, M, MR),
        nt = share(N, by_rows ? 1 : threads, most_columns(K), NR);
    int row_tasks = (M + mt - 1) / mt, col_tasks = (N + nt - 1) / nt;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < row_tasks * col_tasks; task++) {
        int i = (by_rows ? task / col_tasks : task % row_tasks) * mt,
            j = (by_rows ? task % col_tasks : task / row_tasks) * nt;
        Epilogue part = e;
        size_t at = (size_t)i * N + j;
        if (e.bias) part.bias += j;
        if (e.residual) part.residual += at;
        if (e.times) part.times += at;
        if (e.gelu) part.gelu += at;
        const float *b = (const float *)B + j * b_col;
        if (e.bf16) b = (const float *)((const uint16_t *)B + j * b_col);
        multiply(C + at, N, A + i * a_row, a_row, a_col, b, b_row, b_col, MIN(mt, M - i), MIN(nt, N - j), K,
                 part);
    }
#endif
}

// C (N,N) = op(A) (N,K) op(B) (K,N), stored as matmul's, where that is known to be symmetric: the half below
// the diagonal is computed, and copied to the other.
static void symmetric_matmul(float *C, const float *A, const float *B, int N, int K, int trans_a,
                             int trans_b) {
#ifdef USE_BLAS
    matmul(C, A, B, N, N, K, trans_a, trans_b, plain);
#else
    const Epilogue lower = {.omit = ABOVE_C};
    long a_row = trans_a ? 1 : K, a_col = trans_a ? N : 1, b_row = trans_b ? 1 : N, b_col = trans_b ? K : 1;
    int threads = omp_get_max_threads();
#pragma omp parallel for schedule(static)
    for (int t = 0; t < threads; t++) { // each thread's rows have as many numbers below the diagonal
        int from = (int)(N * sqrt((double)t / threads)) / MR * MR;
        int to = t + 1 < threads ? (int)(N * sqrt((t + 1.0) / threads)) / MR * MR : N;
        float *c = C + (size_t)from * N;
        const float *a = A + from * a_row;
        multiply(c, N, a, a_row, a_col, B, b_row, b_col, to - from, from, K, plain);
        multiply(c + from, N, a, a_row, a_col, B + from * b_col, b_row, b_col, to - from, to - from, K,
                 lower);
    }
#endif
#pragma omp parallel for schedule(static, 1)
    for (int i0 = 0; i0 < N; i0 += 16) // rows that stay in cache while they are filled
        for (int j = i0 + 1; j < N; j++)
            for (int i = i0; i < MIN(i0 + 16, j); i++) C[(size_t)i * N + j] = C[(size_t)j * N + i];
}

// ===========================================================================================================
// 3  Layers, forward beside backward. Gradients of vectors and embeddings are added to; those of matrices
//    are written, or added to where the caller says so; those of activations are written unless a comment
//    says +=.

// out (B,T,C) = wte[token] + wpe[position]; wte (V,C), of bfloat16 with bf16, wpe (maxT,C).
static void encoder_forward(float *out, const uint16_t *tokens, const void *wte, int bf16, const float *wpe,
                            int B, int T, int C) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < B * T; r++) {
        float *x = out + (size_t)r * C;
        size_t at = (size_t)tokens[r] * C;
        if (bf16) widen(x, (const uint16_t *)wte + at, (size_t)C);
        else memcpy(x, (const float *)wte + at, C * sizeof *x);
        for (int c = 0; c < C; c++) x[c] += wpe[(size_t)(r % T) * C + c];
    }
}

// dwte[token] += dout, dwpe[position] += dout. A thread owns some channels of all rows, so rows are added in
// order.
static void encoder_backward(float *dwte, float *dwpe, const float *dout, const uint16_t *tokens, int B,
                             int T, int C) {
#pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += 32)
        for (int r = 0; r < B * T; r++) {
            const float *d = dout + (size_t)r * C;
            float *token = dwte + (size_t)tokens[r] * C, *position = dwpe + (size_t)(r % T) * C;
            for (int c = c0; c < MIN(c0 + 32, C); c++) {
                token[c] += d[c];
                position[c] += d[c];
            }
        }
}

// out = (x - mean) * rstd * weight + bias, mean and rstd = 1/sqrt(var + 1e-5) of a row x (C).
static inline void layernorm_row(float *out, float *mean, float *rstd, const float *x, const float *weight,
                                 const float *bias, int C) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += x[c];
    float m = sum / (float)C;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
    float s = 1.0f / sqrtf(squares / (float)C + 1e-5f);
    for (int c = 0; c < C; c++) out[c] = (x[c] - m) * s * weight[c] + bias[c];
    *mean = m;
    *rstd = s;
}

// The same for all rows (rows,C). Backward needs no more than mean and rstd (rows each): `out` is recomputed
// there, see layernorm_again.
static void layernorm_forward(float *out, float *mean, float *rstd, const float *x, const float *weight,
                              const float *bias, int rows, int C) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++)
        layernorm_row(out + (size_t)r * C, mean + r, rstd + r, x + (size_t)r * C, weight, bias, C);
}

// dx += the gradient of x; dweight, dbias (C) += theirs. With n = (x - mean) rstd and dn = dout * weight:
//    dx = rstd (dn - mean(dn) - n mean(dn * n)),  dweight = sum over rows of dout * n,  dbias = sum of dout.
// The sums over rows are taken over groups of GROUP rows first (partial: (groups, 2, C)), then over groups,
// in order. A frozen layer has dweight = NULL.
#define GROUP 64
static void layernorm_backward(float *dx, float *dweight, float *dbias, float *partial, const float *dout,
                               const float *x, const float *weight, const float *mean, const float *rstd,
                               int rows, int C) {
    int groups = (rows + GROUP - 1) / GROUP;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int g = 0; g < groups; g++) {
            float *pw = partial + (size_t)g * 2 * C, *pb = pw + C;
            memset(pw, 0, 2 * (size_t)C * sizeof(float));
            for (int r = g * GROUP; r < MIN(rows, (g + 1) * GROUP); r++) {
                const float *d = dout + (size_t)r * C, *xr = x + (size_t)r * C;
                float *dxr = dx + (size_t)r * C, m = mean[r], s = rstd[r], dn_sum = 0, dnn_sum = 0;
#pragma omp simd reduction(+ : dn_sum, dnn_sum)
                for (int c = 0; c < C; c++) {
                    float n = (xr[c] - m) * s, dn = d[c] * weight[c];
                    dn_sum += dn;
                    dnn_sum += dn * n;
                    pw[c] += d[c] * n;
                    pb[c] += d[c];
                }
                dn_sum /= (float)C;
                dnn_sum /= (float)C;
#pragma omp simd
                for (int c = 0; c < C; c++)
                    dxr[c] += s * (d[c] * weight[c] - dn_sum - (xr[c] - m) * s * dnn_sum);
            }
        }
#pragma omp for schedule(static)
        for (int c = 0; c < (dweight ? C : 0); c++)
            for (int g = 0; g < groups; g++) {
                dweight[c] += partial[(size_t)g * 2 * C + c];
                dbias[c] += partial[(size_t)g * 2 * C + C + c];
            }
    }
}

// out = the layer norm of x once more, from the saved mean and rstd.
static void layernorm_again(float *out, const float *x, const float *weight, const float *bias,
                            const float *mean, const float *rstd, int rows, int C) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < C; c++)
            out[(size_t)r * C + c] = (x[(size_t)r * C + c] - mean[r]) * rstd[r] * weight[c] + bias[c];
}

// out (rows,N) = x (rows,K) w' + bias; w (N,K). The epilogue may add a residual or a GELU.
static void linear_forward(float *out, const float *x, const void *w, int rows, int K, int N, Epilogue e) {
    matmul(out, x, w, rows, N, K, 0, 1, e);
}

// dx (rows,K) = dout w (times e.times, the derivative of what made x);  dbias (N) += the sum of dout's rows;
// dw (N,K) = dout' x, or += with dw_e = accumulate. Frozen weights have dw = dbias = NULL.
static void linear_backward(float *dx, float *dw, float *dbias, const float *dout, const float *x,
                            const float *w, int rows, int K, int N, Epilogue e, Epilogue dw_e) {
    if (dw) matmul(dw, dout, x, N, K, rows, 1, 0, dw_e);
    matmul(dx, dout, w, rows, K, N, 0, 0, e);
    if (!dw) return;
#pragma omp parallel for schedule(static)
    for (int n0 = 0; n0 < N; n0 += 64) {
        float sum[64] = {0};
        int n = MIN(64, N - n0);
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < n; i++) sum[i] += dout[(size_t)r * N + n0 + i];
        for (int i = 0; i < n; i++) dbias[n0 + i] += sum[i];
    }
}

// out = gelu(x), and x becomes the derivative there: all that backward needs of x from here on.
static void gelu_again(float *out, float *x, size_t n) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) {
        float v = x[i], s = gelu_gate(v);
        out[i] = v * s;
        x[i] = gelu_derivative(v, s);
    }
}

// ===========================================================================================================
// 4  Attention. The T x T matrix is never stored: it is made in blocks of QUERIES by KEYS, with the softmax
//    carried along from block to block (Milakov and Gimelshein 2018, "online softmax"; Dao et al. 2022). Many
//    queries share the packing of a few keys; queries before a block's first key are left out, and of a block
//    on the diagonal most of what is above it.

#define QUERIES 256
#define KEYS 64

// out (B,T,C) = softmax(q k' / sqrt(HS), causal) v for each head; qkv (B,T,3C) holds q, k, v side by side.
// lse (B,NH,T): log of the sum of exponentials of each row, from which backward recomputes the probabilities.
static void attention_forward(float *out, float *lse, const float *qkv, int B, int T, int C, int NH) {
    int HS = C / NH;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(static)
    for (int bh = 0; bh < B * NH; bh++) {
        const float *q = qkv + bh / NH * T * ld + bh % NH * HS, *k = q + C, *v = k + C;
        float *o = out + (size_t)(bh / NH) * T * C + bh % NH * HS;
        float p[QUERIES * KEYS], max[QUERIES], sum[QUERIES];
        for (int q0 = 0; q0 < T; q0 += QUERIES) {
            int end = MIN(T, q0 + QUERIES);
            for (int k0 = 0; k0 < end; k0 += KEYS) {
                int first = MAX(q0, k0), nq = end - first, nk = MIN(KEYS, end - k0), diagonal = first == k0;
                multiply(p, KEYS, q + first * ld, ld, 1, k + k0 * ld, 1, ld, nq, nk, HS,
                         (Epilogue){.omit = diagonal ? ABOVE_C : NOTHING});
                for (int i = first; i < end; i++) {
                    // keys after the query count as -infinity, so the loops go over whole blocks, without a
                    // tail
                    float *row = p + (i - first) * KEYS, *oi = o + (size_t)i * C, total = 0;
                    for (int j = MIN(nk, i - k0 + 1); j < KEYS; j++) row[j] = -INFINITY;
                    float m = largest_of(row, KEYS) * scale, shrink = 0;
                    if (k0) {
                        m = MAX(max[i - q0], m);
                        shrink = exp_f32(max[i - q0] - m);
                        for (int c = 0; c < HS; c++) oi[c] *= shrink;
                    }
#pragma omp simd reduction(+ : total)
                    for (int j = 0; j < KEYS; j++) total += row[j] = exp_f32(row[j] * scale - m);
                    sum[i - q0] = (k0 ? sum[i - q0] * shrink : 0) + total;
                    max[i - q0] = m;
                }
                multiply(o + (size_t)first * C, C, p, KEYS, 1, v + k0 * ld, ld, 1, nq, HS, nk,
                         (Epilogue){.accumulate = k0 > 0, .omit = diagonal ? ABOVE_A : NOTHING});
            }
            for (int i = q0; i < end; i++) {
                for (int c = 0; c < HS; c++) o[(size_t)i * C + c] *= 1.0f / sum[i - q0];
                lse[(size_t)bh * T + i] = max[i - q0] + logf(sum[i - q0]);
            }
        }
    }
}

// dqkv (B,T,3C) from dout (B,T,C). With P the probabilities, dP = dout v', D = the row sums of dout * out:
//    dS = P * (dP - D) / sqrt(HS),  dq = dS k,  dk = dS' q,  dv = P' dout.
static void attention_backward(float *dqkv, const float *dout, const float *qkv, const float *out,
                               const float *lse, int B, int T, int C, int NH) {
    int HS = C / NH;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(static)
    for (int bh = 0; bh < B * NH; bh++) {
        size_t to_qkv = bh / NH * T * ld + bh % NH * HS, to_out = (size_t)(bh / NH) * T * C + bh % NH * HS;
        const float *q = qkv + to_qkv, *k = q + C, *v = k + C, *o = out + to_out, *d_o = dout + to_out;
        float *dq = dqkv + to_qkv, *dk = dq + C, *dv = dk + C;
        static _Thread_local float blocks[2][QUERIES * KEYS]; // more than some libraries' threads have stack
        float *p = blocks[0], *dp = blocks[1], D[QUERIES];
        for (int q0 = 0; q0 < T; q0 += QUERIES) {
            int end = MIN(T, q0 + QUERIES);
            for (int i = q0; i < end; i++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int c = 0; c < HS; c++) sum += o[(size_t)i * C + c] * d_o[(size_t)i * C + c];
                D[i - q0] = sum;
            }
            for (int k0 = 0; k0 < end; k0 += KEYS) {
                int first = MAX(q0, k0), nq = end - first, nk = MIN(KEYS, end - k0), diagonal = first == k0;
                const float *qi = q + first * ld, *d_oi = d_o + (size_t)first * C;
                Epilogue square = {.omit = diagonal ? ABOVE_C : NOTHING};
                multiply(p, KEYS, qi, ld, 1, k + k0 * ld, 1, ld, nq, nk, HS, square);
                multiply(dp, KEYS, d_oi, C, 1, v + k0 * ld, 1, ld, nq, nk, HS, square);
                for (int i = first; i < end; i++) {
                    float *pr = p + (i - first) * KEYS, *dpr = dp + (i - first) * KEYS,
                          l = lse[(size_t)bh * T + i], Di = D[i - q0];
                    for (int j = MIN(nk, i - k0 + 1); j < KEYS; j++) pr[j] = -INFINITY, dpr[j] = 0;
#pragma omp simd
                    for (int j = 0; j < KEYS; j++) {
                        pr[j] = exp_f32(pr[j] * scale - l);
                        dpr[j] = pr[j] * (dpr[j] - Di) * scale;
                    }
                }
                // the first queries to see these keys write their gradients, later ones add
                Epilogue add = {.accumulate = q0 > k0, .omit = diagonal ? BELOW_A : NOTHING};
                multiply(dv + k0 * ld, ld, p, 1, KEYS, d_oi, C, 1, nk, HS, nq, add);
                multiply(dk + k0 * ld, ld, dp, 1, KEYS, qi, ld, 1, nk, HS, nq, add);
                multiply(dq + first * ld, ld, dp, KEYS, 1, k + k0 * ld, ld, 1, nq, HS, nk,
                         (Epilogue){.accumulate = k0 > 0, .omit = diagonal ? ABOVE_A : NOTHING});
            }
        }
    }
}

// ===========================================================================================================
// 5  The model: shapes, parameters, activations, forward, backward

typedef struct {
    int max_seq_len; // maxT: rows of wpe, the context
    int vocab_size;  // V: rows of wte
    int num_layers, num_heads, channels;
} GPT2Config;

// The parameters, in the order of llm.c's files; one flat array holds them all.
#define NUM_TENSORS 16
typedef struct {
    float *wte, *wpe;           // (V,C), (maxT,C); wte is also the classifier
    float *ln1w, *ln1b;         // (L,C)
    float *qkvw, *qkvb;         // (L,3C,C), (L,3C)
    float *attprojw, *attprojb; // (L,C,C), (L,C)
    float *ln2w, *ln2b;         // (L,C)
    float *fcw, *fcb;           // (L,4C,C), (L,4C)
    float *fcprojw, *fcprojb;   // (L,C,4C), (L,C)
    float *lnfw, *lnfb;         // (C)
} ParameterTensors;
#define TENSOR(name) (offsetof(ParameterTensors, name) / sizeof(float *)) // its number

typedef struct {
    const char *name, *hf_name; // llm.c's and Hugging Face's, %d is the layer
    int layers;                 // L, or 0 for tensors that are not in the blocks
    int rows, cols;             // of one layer's tensor; cols = 0: a vector of rows numbers
} TensorShape;

static TensorShape tensor_shape(GPT2Config g, int i) {
    int C = g.channels, L = g.num_layers;
    const TensorShape shapes[NUM_TENSORS] = {
        {"wte", "wte.weight", 0, g.vocab_size, C},
        {"wpe", "wpe.weight", 0, g.max_seq_len, C},
        {"ln1w", "h.%d.ln_1.weight", L, C, 0},
        {"ln1b", "h.%d.ln_1.bias", L, C, 0},
        {"qkvw", "h.%d.attn.c_attn.weight", L, 3 * C, C},
        {"qkvb", "h.%d.attn.c_attn.bias", L, 3 * C, 0},
        {"attprojw", "h.%d.attn.c_proj.weight", L, C, C},
        {"attprojb", "h.%d.attn.c_proj.bias", L, C, 0},
        {"ln2w", "h.%d.ln_2.weight", L, C, 0},
        {"ln2b", "h.%d.ln_2.bias", L, C, 0},
        {"fcw", "h.%d.mlp.c_fc.weight", L, 4 * C, C},
        {"fcb", "h.%d.mlp.c_fc.bias", L, 4 * C, 0},
        {"fcprojw", "h.%d.mlp.c_proj.weight", L, C, 4 * C},
        {"fcprojb", "h.%d.mlp.c_proj.bias", L, C, 0},
        {"lnfw", "ln_f.weight", 0, C, 0},
        {"lnfb", "ln_f.bias", 0, C, 0},
    };
    return shapes[i];
}

// Floats in one layer's tensor, and in all layers'.
static size_t layer_size(TensorShape t) { return (size_t)t.rows * (t.cols ? t.cols : 1); }
static size_t tensor_size(TensorShape t) { return layer_size(t) * (t.layers ? t.layers : 1); }

// Whether tensor i takes part in a matrix product: the matrices, and wte (the classifier), but not wpe.
static int is_matrix(TensorShape t, int i) { return t.cols && i != TENSOR(wpe); }

// Whether a list "PATTERN,PATTERN.." means a layer of tensor i. Patterns are the shell's (*, ?, [0-5]), for
// Hugging Face's name of the layer's tensor (h.0.attn.c_attn.weight) or llm.c's of all layers' (qkvw).
static int tensor_matches(const char *patterns, GPT2Config g, int i, int layer) {
    TensorShape t = tensor_shape(g, i);
    char name[64], pattern[64];
    snprintf(name, sizeof name, t.hf_name, layer);
    for (const char *p = patterns, *end; *p; p = end + (*end == ',')) {
        end = p + strcspn(p, ",");
        snprintf(pattern, sizeof pattern, "%.*s", (int)MIN(end - p, 63), p);
        if (!fnmatch(pattern, name, 0) || !fnmatch(pattern, t.name, 0)) return 1;
    }
    return 0;
}

// Dies if one of --freeze's patterns means no tensor.
static void check_patterns(const char *patterns, GPT2Config g) {
    char pattern[64];
    for (const char *p = patterns, *end; *p; p = end + (*end == ',')) {
        int found = 0;
        end = p + strcspn(p, ",");
        snprintf(pattern, sizeof pattern, "%.*s", (int)MIN(end - p, 63), p);
        for (int i = 0; i < NUM_TENSORS && !found; i++)
            for (int l = 0; l < MAX(tensor_shape(g, i).layers, 1); l++)
                found |= tensor_matches(pattern, g, i, l);
        if (!found)
            die("--freeze %s: no tensor is called so; names are wte, fcw, h.0.mlp.c_fc.weight", pattern);
    }
}

static size_t count_parameters(GPT2Config g) {
    size_t n = 0;
    for (int i = 0; i < NUM_TENSORS; i++) n += tensor_size(tensor_shape(g, i));
    return n;
}

static ParameterTensors point_parameters(float *memory, GPT2Config g) {
    ParameterTensors p;
    float **pointers = (float **)&p;
    for (int i = 0; i < NUM_TENSORS; i++) {
        pointers[i] = memory;
        memory += tensor_size(tensor_shape(g, i));
    }
    return p;
}

// Layer l's part of each tensor that has layers. NULL stays NULL: the gradients of a frozen model,
// the matrices of one in bfloat16.
static ParameterTensors tensors_of_layer(ParameterTensors p, GPT2Config g, int l) {
    float **pointers = (float **)&p;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        if (t.layers && pointers[i]) pointers[i] += l * layer_size(t);
    }
    return p;
}

// Rows of a pass behind those of the tokens (decode_ppd.c's prompt tokens). They go through the same
// matrices; the owner's functions write what enters layer l in them, compute their attention, and take the
// gradients of both. All pointers are to row 0 of the whole pass.
typedef struct {
    int rows;
    int frozen; // gradients are those of these rows alone, not of the text's rows nor of the parameters
    void *owner;
    void (*enter)(void *owner, int l, float *residual);
    void (*attend)(void *owner, float *out, const float *qkv);
    void (*attend_backward)(void *owner, float *dqkv, const float *dout, const float *qkv, const float *out);
    void (*enter_backward)(void *owner, int l, const float *dresidual);
} ExtraRows;

typedef struct {
    GPT2Config config;
    size_t num_parameters;
    float *params_memory, *grads_memory; // flat, (num_parameters); grads_memory is NULL for inference
    ParameterTensors params, grads;
    void *mapping;               // gpt2_open's: the file that holds the parameters; params_memory is NULL
    size_t mapped;               // bytes
    // of a model in bfloat16 (gpt2_to_bf16), which makes forward passes only; elsewhere NULL
    uint16_t *bf16_memory;       // of all matrices
    uint16_t *bf16[NUM_TENSORS]; // the matrices, in whose place params has NULL

    int max_rows; // room for B*T rows
    int keep;     // 1: activations of all layers are kept for backward; 0: each layer uses the same memory
    // kept for backward
    float *residual, *residual2;                      // (L+1,B,T,C) what enters each layer, and what leaves
                                                      // the last; (L,B,T,C) after attention
    float *ln1_mean, *ln1_rstd, *ln2_mean, *ln2_rstd; // (L,B,T)
    float *qkv, *atty, *lse;                          // (L,B,T,3C), (L,B,T,C), (L,B,NH,T)
    float *fch;                                       // (L,B,T,4C) before the GELU
    float *lnf, *lnf_mean, *lnf_rstd;                 // (B,T,C), (B,T), (B,T)
    float *losses;                                    // (B,T) cross entropy of each target, in nats
    // recomputed, or needed only for a moment
    float *normed, *fch_gelu;                         // (B,T,C), (B,T,4C)
    float *dresidual, *dnormed, *dwide, *partial;     // (B,T,C), (B,T,C), (B,T,4C), (groups,2,C)
    float *logits;                                    // (logit_rows,V): the classifier takes chunks of rows
    int logit_rows;
    const uint16_t *tokens; // of the last forward pass, (B,T)
    int B, T;
    ExtraRows extra;        // of all passes while it has rows
    struct GradientSum *sum; // chapter 10's, or NULL: which layer_done is called with
    struct Gpu *gpu; // train_gpt2.cu's: what it has instead of the activations
} GPT2;

// Prepares parameters (zero) for a configuration that has been checked.
static void gpt2_allocate(GPT2 *m, GPT2Config config) {
    memset(m, 0, sizeof *m);
    m->config = config;
    m->num_parameters = count_parameters(config);
    m->params_memory = allocate_floats(m->num_parameters);
    m->params = point_parameters(m->params_memory, config);
}

// Rounds the matrices to bfloat16; the vectors and wpe, which are small, stay as they are.
static void gpt2_to_bf16(GPT2 *m) {
    float **tensors = (float **)&m->params, *old = m->params_memory;
    size_t count = 0; // of the matrices
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(m->config, i);
        if (is_matrix(t, i)) count += tensor_size(t);
    }
    uint16_t *half = m->bf16_memory = allocate(count, sizeof *half);
    float *rest = m->params_memory = allocate_floats(m->num_parameters - count);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(m->config, i);
        size_t n = tensor_size(t);
        const float *x = tensors[i];
        if (is_matrix(t, i)) {
            for (size_t k = 0; k < n; k++) half[k] = bf16_of(x[k]);
            m->bf16[i] = half, tensors[i] = NULL, half += n;
        } else {
            memcpy(rest, x, n * sizeof *x);
            tensors[i] = rest, rest += n;
        }
    }
    free(old);
    allocated_bytes -= m->num_parameters * sizeof(float);
}

// The matrix of layer l of tensor i, in the type that Epilogue.bf16 tells.
static const void *weights(const GPT2 *m, int i, int l) {
    size_t at = l * layer_size(tensor_shape(m->config, i));
    return m->bf16_memory ? (const void *)(m->bf16[i] + at) : ((float *const *)&m->params)[i] + at;
}

// Room for passes over up to B sequences of up to T tokens. training = 0: forward only, a layer's worth of
// memory.
static void gpt2_allocate_activations(GPT2 *m, int B, int T, int training) {
    GPT2Config g = m->config;
    size_t rows = (size_t)B * T, C = g.channels, kept = training ? g.num_layers : 1;
    m->max_rows = (int)rows;
    m->keep = training;
    m->residual = allocate_floats((kept + (training != 0)) * rows * C);
    m->residual2 = allocate_floats(kept * rows * C);
    m->ln1_mean = allocate_floats(kept * rows), m->ln1_rstd = allocate_floats(kept * rows);
    m->ln2_mean = allocate_floats(kept * rows), m->ln2_rstd = allocate_floats(kept * rows);
    m->qkv = allocate_floats(kept * rows * 3 * C);
    m->atty = allocate_floats(kept * rows * C);
    m->lse = allocate_floats(kept * rows * g.num_heads);
    m->fch = allocate_floats(kept * rows * 4 * C);
    m->lnf = allocate_floats(rows * C);
    m->lnf_mean = allocate_floats(rows), m->lnf_rstd = allocate_floats(rows);
    m->losses = allocate_floats(rows);
    m->normed = allocate_floats(rows * C);
    m->fch_gelu = allocate_floats(rows * 4 * C);
    m->logit_rows = (int)MIN(rows, MAX(64, (1u << 24) / (size_t)g.vocab_size));
    m->logits = allocate_floats((size_t)m->logit_rows * g.vocab_size);
    if (!training) return;
    m->dresidual = allocate_floats(rows * C);
    m->dnormed = allocate_floats(rows * C);
    m->dwide = allocate_floats(rows * 4 * C);
    m->partial = allocate_floats((rows + GROUP - 1) / GROUP * 2 * C);
    m->grads_memory = allocate_floats(m->num_parameters);
    m->grads = point_parameters(m->grads_memory, g);
}

static void gpt2_free(GPT2 *m) {
    float *owned[] = {m->params_memory, m->grads_memory, m->residual, m->residual2, m->ln1_mean, m->ln1_rstd,
                      m->ln2_mean,      m->ln2_rstd,     m->qkv,      m->atty,      m->lse,      m->fch,
                      m->lnf,           m->lnf_mean,     m->lnf_rstd, m->losses,    m->normed,   m->fch_gelu,
                      m->dresidual,     m->dnormed,      m->dwide,    m->partial,   m->logits};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    free(m->bf16_memory);
    if (m->mapping) munmap(m->mapping, m->mapped);
    memset(m, 0, sizeof *m);
}

#define GPT2_STD 0.02 // --init-std's default

// GPT-2's initialisation: normal of deviation weight_std, the projections that add to the residual stream
// smaller by sqrt(2L), since 2L of them add up; biases 0, layer norms the identity.
static void gpt2_initialize(GPT2 *m, uint64_t seed, double weight_std) {
    float **tensors = (float **)&m->params;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(m->config, i);
        size_t n = tensor_size(t);
        int projection = tensors[i] == m->params.attprojw || tensors[i] == m->params.fcprojw;
        float std = (float)weight_std;
        if (projection) std /= sqrtf(2.0f * (float)m->config.num_layers);
        int norm_weight = t.cols == 0 && t.name[strlen(t.name) - 1] == 'w';
        if (t.cols) random_normal(tensors[i], n, std, seed * NUM_TENSORS + i);
        else
            for (size_t j = 0; j < n; j++) tensors[i][j] = norm_weight ? 1.0f : 0.0f;
    }
}

// Tokens (B,T) to the last layer norm's output, m->lnf (B,T,C).
static void gpt2_forward(GPT2 *m, const uint16_t *tokens, int B, int T) {
    GPT2Config g = m->config;
    int C = g.channels, rows = B * T + m->extra.rows, bf16 = m->bf16_memory != NULL;
    m->tokens = tokens, m->B = B, m->T = T;
    encoder_forward(m->residual, tokens, weights(m, TENSOR(wte), 0), bf16, m->params.wpe, B, T, C);
    for (int l = 0; l < g.num_layers; l++) {
        ParameterTensors p = tensors_of_layer(m->params, g, l);
        size_t at = (size_t)l * m->keep * rows; // rows of the activations of the layers before
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *fch = m->fch + at * 4 * C;
        float *out = m->keep ? x + (size_t)rows * C : x, *qkv = m->qkv + at * 3 * C, *atty = m->atty + at * C;
        if (m->extra.rows) m->extra.enter(m->extra.owner, l, x);
        layernorm_forward(m->normed, m->ln1_mean + at, m->ln1_rstd + at, x, p.ln1w, p.ln1b, rows, C);
        linear_forward(qkv, m->normed, weights(m, TENSOR(qkvw), l), rows, C, 3 * C,
                       (Epilogue){.bf16 = bf16, .bias = p.qkvb});
        attention_forward(atty, m->lse + at * g.num_heads, qkv, B, T, C, g.num_heads);
        if (m->extra.rows) m->extra.attend(m->extra.owner, atty, qkv);
        linear_forward(x2, atty, weights(m, TENSOR(attprojw), l), rows, C, C,
                       (Epilogue){.bf16 = bf16, .bias = p.attprojb, .residual = x});
        layernorm_forward(m->normed, m->ln2_mean + at, m->ln2_rstd + at, x2, p.ln2w, p.ln2b, rows, C);
        linear_forward(fch, m->normed, weights(m, TENSOR(fcw), l), rows, C, 4 * C,
                       (Epilogue){.bf16 = bf16, .bias = p.fcb, .gelu = m->fch_gelu});
        linear_forward(out, m->fch_gelu, weights(m, TENSOR(fcprojw), l), rows, 4 * C, C,
                       (Epilogue){.bf16 = bf16, .bias = p.fcprojb, .residual = x2});
    }
    float *last = m->residual + (size_t)g.num_layers * m->keep * rows * C;
    layernorm_forward(m->lnf, m->lnf_mean, m->lnf_rstd, last, m->params.lnfw, m->params.lnfb, rows, C);
}

// Logits (n,V) of n rows of m->lnf from row `first` on.
static void gpt2_logits(const GPT2 *m, float *logits, int first, int n) {
    int C = m->config.channels;
    linear_forward(logits, m->lnf + (size_t)first * C, weights(m, TENSOR(wte), 0), n, C, m->config.vocab_size,
                   (Epilogue){.bf16 = m->bf16_memory != NULL});
}

// A teacher whose probabilities the student learns too (Hinton et al. 2015). The gradient is that of
// (1 - weight) CE(labels) + weight temperature^2 KL(teacher || student), both sides of the KL at the
// temperature. The loss that is returned, and that sps and iam read, is still CE(labels): their steps do not
// fit this gradient, and are for experiments.
typedef struct {
    GPT2 *teacher; // after its forward pass over the same batch; V and max_rows are the student's
    float temperature, weight;
} SoftLabels;

// log of the sum of exp(x / temperature), over n numbers.
static float log_sum_exp(const float *x, int n, float temperature) {
    float max = largest_of(x, n), sum = 0, scale = 1.0f / temperature;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += exp_f32((x[i] - max) * scale);
    return max * scale + logf(sum);
}

// Cross entropy of the targets (B,T) after gpt2_forward, in chunks of rows whose logits exist only for a
// moment. With grad_scale != 0 the chunk's logits turn into grad_scale times the loss's gradient, from which
// come m->dnormed (B,T,C) = the gradient of m->lnf, and grads.wte. Returns the mean in nats.
static double classifier(GPT2 *m, const uint16_t *targets, float grad_scale, const SoftLabels *soft) {
    int C = m->config.channels, V = m->config.vocab_size, rows = m->B * m->T;
    for (int first = 0; first < rows; first += m->logit_rows) {
        int n = MIN(m->logit_rows, rows - first);
        gpt2_logits(m, m->logits, first, n);
        if (soft) gpt2_logits(soft->teacher, soft->teacher->logits, first, n);
#pragma omp parallel for schedule(static)
        for (int r = 0; r < n; r++) {
            int target = targets[first + r];
            float *x = m->logits + (size_t)r * V, x_target = x[target];
            if (soft) {
                float *y = soft->teacher->logits + (size_t)r * V, t = 1.0f / soft->temperature;
                float lse = log_sum_exp(x, V, 1.0f), x_lse = log_sum_exp(x, V, soft->temperature),
                      y_lse = log_sum_exp(y, V, soft->temperature);
                float hard = (1.0f - soft->weight) * grad_scale,
                      kl = soft->weight * soft->temperature * grad_scale;
#pragma omp simd
                for (int i = 0; i < V; i++)
                    x[i] = hard * exp_f32(x[i] - lse) +
                           kl * (exp_f32(x[i] * t - x_lse) - exp_f32(y[i] * t - y_lse));
                x[target] -= hard;
                m->losses[first + r] = lse - x_target;
            } else {
                float max = largest_of(x, V), sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int i = 0; i < V; i++) sum += x[i] = exp_f32(x[i] - max);
                for (int i = 0; i < V; i++) x[i] *= grad_scale / sum;
                x[target] -= grad_scale;
                m->losses[first + r] = max + logf(sum) - x_target;
            }
        }
        if (grad_scale == 0) continue;
        matmul(m->grads.wte, m->logits, m->lnf + (size_t)first * C, V, C, n, 1, 0,
               first ? accumulate : plain);
        matmul(m->dnormed + (size_t)first * C, m->logits, m->params.wte, n, C, V, 0, 0, plain);
    }
    double sum = 0;
    for (int r = 0; r < rows; r++) sum += m->losses[r];
    return sum / rows;
}

// The mean loss of targets (B,T) after gpt2_forward, in nats per token.
static double gpt2_loss(GPT2 *m, const uint16_t *targets) { return classifier(m, targets, 0.0f, NULL); }

// If m->sum is set: called as soon as the gradients of layer l are complete, and at the end, with l = L, when
// those of the tensors outside the layers are.
static void layer_done(const struct GradientSum *s, int l);

// The gradients of all layers from m->dnormed, that of m->lnf; those of the matrices are written or added to,
// by dw, the others added to. Takes the layers last to first; dresidual is the gradient of the residual
// stream all along.
static void layers_backward(GPT2 *m, Epilogue dw) {
    GPT2Config g = m->config;
    ExtraRows extra = m->extra;
    int C = g.channels, rows = m->B * m->T + extra.rows, first = extra.frozen ? m->B * m->T : 0;
    int n = rows - first;
    float *dresidual = m->dresidual + (size_t)first * C, *dnormed = m->dnormed + (size_t)first * C;
    float *dfch = m->dwide + (size_t)first * 4 * C, *dqkv = m->dwide + (size_t)first * 3 * C;
    memset(dresidual, 0, (size_t)n * C * sizeof(float));
    layernorm_backward(dresidual, m->grads.lnfw, m->grads.lnfb, m->partial, dnormed,
                       m->residual + ((size_t)g.num_layers * rows + first) * C, m->params.lnfw,
                       m->lnf_mean + first, m->lnf_rstd + first, n, C);
    for (int l = g.num_layers - 1; l >= 0; l--) {
        ParameterTensors p = tensors_of_layer(m->params, g, l), d = tensors_of_layer(m->grads, g, l);
        size_t all = (size_t)l * rows, at = all + first;
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *fch = m->fch + at * 4 * C;
        float *qkv = m->qkv + all * 3 * C, *atty = m->atty + all * C;
        float *mean1 = m->ln1_mean + at, *rstd1 = m->ln1_rstd + at, *mean2 = m->ln2_mean + at,
              *rstd2 = m->ln2_rstd + at;
        // the MLP
        gelu_again(m->fch_gelu, fch, (size_t)n * 4 * C);
        linear_backward(dfch, d.fcprojw, d.fcprojb, dresidual, m->fch_gelu, p.fcprojw, n, 4 * C, C,
                        (Epilogue){.times = fch}, dw);
        layernorm_again(m->normed, x2, p.ln2w, p.ln2b, mean2, rstd2, n, C);
        linear_backward(dnormed, d.fcw, d.fcb, dfch, m->normed, p.fcw, n, C, 4 * C, plain, dw);
        layernorm_backward(dresidual, d.ln2w, d.ln2b, m->partial, dnormed, x2, p.ln2w, mean2, rstd2, n, C);
        // attention
        linear_backward(dnormed, d.attprojw, d.attprojb, dresidual, atty + (size_t)first * C, p.attprojw, n,
                        C, C, plain, dw);
        if (!first)
            attention_backward(m->dwide, m->dnormed, qkv, atty, m->lse + all * g.num_heads, m->B, m->T, C,
                               g.num_heads);
        if (extra.rows) extra.attend_backward(extra.owner, m->dwide, m->dnormed, qkv, atty);
        layernorm_again(m->normed, x, p.ln1w, p.ln1b, mean1, rstd1, n, C);
        linear_backward(dnormed, d.qkvw, d.qkvb, dqkv, m->normed, p.qkvw, n, C, 3 * C, plain, dw);
        layernorm_backward(dresidual, d.ln1w, d.ln1b, m->partial, dnormed, x, p.ln1w, mean1, rstd1, n, C);
        if (extra.rows) extra.enter_backward(extra.owner, l, m->dresidual);
        if (m->sum) layer_done(m->sum, l);
    }
    if (!first) encoder_backward(m->grads.wte, m->grads.wpe, dresidual, m->tokens, m->B, m->T, C);
    if (m->sum) layer_done(m->sum, g.num_layers);
}

// After gpt2_forward: grads = grad_scale times the gradient of the summed loss. Returns the mean loss.
static double gpt2_backward(GPT2 *m, const uint16_t *targets, float grad_scale, const SoftLabels *soft) {
    float **grads = (float **)&m->grads;
    for (int i = 0; i < NUM_TENSORS; i++) { // matrices are overwritten, the rest is added to
        TensorShape t = tensor_shape(m->config, i);
        if (!is_matrix(t, i)) memset(grads[i], 0, tensor_size(t) * sizeof(float));
    }
    double loss = classifier(m, targets, grad_scale, soft);
    layers_backward(m, plain);
    return loss;
}

// Floating-point operations of a training step for each token: 6 for each weight that multiplies (those of
// matrices, the embedding once, as the classifier), and 6 L C T for causal attention.
static double flops_per_token(GPT2Config g, int T) {
    double weights = 0;
    for (int i = 0; i < NUM_TENSORS; i++)
        if (is_matrix(tensor_shape(g, i), i)) weights += (double)tensor_size(tensor_shape(g, i));
    return 6.0 * weights + 6.0 * g.num_layers * g.channels * T;
}

// Opens what the model runs on, and names it. On a CPU, what follows the last comma, and with BLAS the
// threads, decide how sums round; workers must agree on it, and on what is fused (compare_workers). f32: no
// bf16, which a GPU has.
static const char *open_device(UNUSED int f32) {
    static char name[64];
    int blas = 0;
#ifdef USE_BLAS
    blas = 1;
#endif
    snprintf(name, sizeof name, "%d threads, vectors of %d floats%s", omp_get_max_threads(), VEC,
             blas ? " and BLAS" : "");
    return name;
}

// Compiled with -DGPT2_DEVICE='"train_gpt2.cu"', this file is the GPU's trainer: from here on, functions of
// that file stand for those above that allocate or pass through a model, and for optim.h's on parameters.
#ifdef GPT2_DEVICE
#include GPT2_DEVICE
#endif

// ===========================================================================================================
// 6  Checkpoints

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are little-endian and are read as they are"
#endif

// ---- files

typedef struct {
    char s[4096];
} Path;

static Path path_in(const char *folder, const char *name) {
    Path p;
    size_t n = strlen(folder), slash = n > 0 && folder[n - 1] != '/';
    if (n + strlen(name) + 8 > sizeof p.s) die("the path %s/%s is too long", folder, name);
    snprintf(p.s, sizeof p.s, "%s%s%s", folder, slash ? "/" : "", name);
    return p;
}

static Path folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    Path p = path_in(slash ? path : ".", "");
    if (slash) p.s[MAX(slash - path, 1)] = 0;
    return p;
}

static int file_exists(const char *path) { return access(path, F_OK) == 0; }

static int is_folder(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

// Makes a folder, and those above it.
static void make_folder(const char *path) {
    Path part = path_in(path, ""); // ends in a slash
    int error = 0;
    for (char *slash = strchr(part.s + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        error = mkdir(part.s, 0777) ? errno : 0;
        if (!error) memcpy(new_folders[num_new_folders++ % NEW_FOLDERS], part.s, sizeof part.s);
        *slash = '/';
    }
    if (error && !is_folder(path)) die("cannot make the folder %s: %s", path, strerror(error));
}

// Memory that grows. No number from a file comes here before it was compared with the file's size.
static void *resize(void *p, size_t bytes) {
    p = realloc(p, bytes ? bytes : 1);
    if (!p) die("out of memory: %zu MiB more are needed", bytes >> 20);
    return p;
}

// FNV-1a's scheme over 8 bytes at a time, with the high bits mixed down: a checksum, not cryptography. It
// goes on from the hash of what came before, 0 at first.
static inline uint64_t hash_bytes(uint64_t h, const void *p, size_t n) {
    const char *bytes = p;
    h = (h ^ n ^ 0xCBF29CE484222325ull) * 0x9E3779B97F4A7C15ull;
    for (; n; bytes += 8) {
        uint64_t word = 0;
        if (n >= 8) memcpy(&word, bytes, 8), n -= 8;
        else memcpy(&word, bytes, n), n = 0;
        h = (h ^ word) * 0x9E3779B97F4A7C15ull;
        h ^= h >> 32;
    }
    return h;
}

// A text shortened and on one line, for messages that quote what a file says.
static Path printable(const char *text, size_t n) {
    Path p = {{0}};
    for (size_t i = 0; i < MIN(n, 200); i++) p.s[i] = iscntrl((unsigned char)text[i]) ? '?' : text[i];
    return p;
}

// Dies with the first line in which what a file says of its run is not what this run is.
static void compare_identity(const char *ours, const char *theirs, const char *path) {
    while (*ours || *theirs) {
        int n = (int)strcspn(ours, "\n"), m = (int)strcspn(theirs, "\n");
        if (n != m || memcmp(ours, theirs, n)) {
            int same = 0; // what is quoted has to show the difference
            while (same < MIN(n, m) && ours[same] == theirs[same]) same++;
            same = MAX(0, same - 100);
            die("%s belongs to another run: '%s' there, '%s' here; give that, or begin another elsewhere",
                path, printable(theirs + same, m - same).s, printable(ours + same, n - same).s);
        }
        ours += n + (ours[n] != 0), theirs += m + (theirs[m] != 0);
    }
}

static int same_file(const char *a, const char *b) {
    struct stat s, t;
    return !stat(a, &s) && !stat(b, &t) && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

// Opens a file for reading; the size of a pipe is 0.
static FILE *open_file(const char *path, size_t *size) {
    struct stat s;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &s)) die("cannot open %s: %s; check the path", path, strerror(errno));
    if (!S_ISREG(s.st_mode) && !S_ISFIFO(s.st_mode))
        die("%s is a %s; give a file", path, S_ISDIR(s.st_mode) ? "folder" : "device");
    *size = (size_t)s.st_size;
    return f;
}

// A whole file or pipe, and a zero byte behind it; the caller frees it.
static char *read_file(const char *path, size_t *size) {
    size_t capacity, n = 0, got;
    FILE *f = open_file(path, &capacity);
    char *text = resize(NULL, capacity + 1);
    while ((got = fread(text + n, 1, capacity + 1 - n, f)) > 0)
        if ((n += got) > capacity) text = resize(text, (capacity = 2 * capacity + 4096) + 1);
    if (ferror(f)) die("cannot read %s: %s", path, strerror(errno));
    fclose(f);
    text[n] = 0;
    *size = n;
    return text;
}

// What this program writes, but for lines added to log.csv and to a teacher's cache, is written under another
// name, brought to the disk, and renamed: at any moment there is the old file or the new one, whole.
static FILE *write_begin(const char *path) {
    Path temporary = path_in(path, "");
    strcpy(temporary.s + strlen(path), ".tmp"); // path_in leaves room for it
    signal(SIGXFSZ, SIG_IGN); // a file larger than is allowed: the write fails, and says so
    FILE *f = fopen(temporary.s, "wb");
    if (!f) die("cannot write %s: %s; choose another place", temporary.s, strerror(errno));
    memcpy(unfinished_file, temporary.s, sizeof unfinished_file);
    return f;
}

static const char *saved_model = ""; // where a run's first model stands, while what belongs to it is written
static void write_failed(const char *path) {
    die("cannot write %s: %s; make room or choose another place%s%s", path, strerror(errno),
        *saved_model ? "; the model so far is " : "", saved_model);
}

static void write_bytes(FILE *f, const void *p, size_t n) {
    if (fwrite(p, 1, n, f) != n) write_failed(unfinished_file);
}

static void write_commit(FILE *f, const char *path) {
    int failed = fflush(f) || ferror(f) || fsync(fileno(f)) || fclose(f) || rename(unfinished_file, path);
    if (failed) write_failed(path);
    unfinished_file[0] = 0;
    int folder = open(folder_of(path).s, O_RDONLY); // the name has to reach the disk, too
    if (folder < 0 || (fsync(folder) && errno != EINVAL)) write_failed(path);
    close(folder);
}

// Dies where a file cannot be written: now, not after the last step.
static void check_writable(const char *path) {
    fclose(write_begin(path));
    unlink(unfinished_file);
    unfinished_file[0] = 0;
}

// ---- models

// Dies unless a model of this shape can exist here: tokens are uint16. where: the file, or who asked for it.
static void check_config(GPT2Config g, const char *where) {
    const struct { const char *what; int value, max; } limits[] = {
        {"a context", g.max_seq_len, 1 << 20}, {"a vocabulary", g.vocab_size, 1 << 16},
        {"a number of layers", g.num_layers, 1 << 12}, {"a number of heads", g.num_heads, 1 << 16},
        {"a number of channels", g.channels, 1 << 16}};
    for (int i = 0; i < 5; i++)
        if (limits[i].value < 1 || limits[i].value > limits[i].max)
            die("%s: %s of %d; it must be 1 to %d", where, limits[i].what, limits[i].value, limits[i].max);
    if (g.channels % g.num_heads)
        die("%s: %d heads cannot share %d channels; make these a multiple", where, g.num_heads, g.channels);
}

typedef enum { F32, F16, BF16 } NumberType;

static int all_finite(const float *x, size_t n) {
    uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (size_t i = 0; i < n; i++) {
        union { float f; uint32_t u; } bits = {.f = x[i]};
        largest = MAX(largest, bits.u & 0x7FFFFFFFu);
    }
    return largest < 0x7F800000u;
}

// A weight that is not finite would make everything NaN: it is refused.
static void check_finite(const float *x, size_t n, const char *path, const char *name) {
    if (!all_finite(x, n))
        die("%s: a weight of %s is not finite: the file is damaged, or its run diverged", path, name);
}

// out = the next n numbers of a file.
static void read_floats(FILE *f, float *out, size_t n, NumberType type, const char *path, const char *name) {
    static uint16_t half[16384];
    for (size_t first = 0; first < n; first += 16384) {
        size_t count = MIN(n - first, 16384);
        float *x = out + first;
        if (type == F32 ? fread(x, 4, count, f) != count : fread(half, 2, count, f) != count)
            die("%s ends within %s: it is cut short; copy or download it again", path, name);
        if (type == BF16) widen(x, half, count);
        for (size_t i = 0; i < count && type == F16; i++) {
            union { uint32_t u; float f; } bits = {.u = (half[i] & 0x7FFFu) << 13};
            bits.f = (half[i] & 0x7C00) == 0x7C00 ? INFINITY : bits.f * 0x1p112f; // rebases the exponent, of
            bits.u |= (half[i] & 0x8000u) << 16;                                  // subnormal numbers too
            x[i] = bits.f;
        }
    }
    check_finite(out, n, path, name);
}

// llm.c's model file: 256 int32 (magic, version, maxT, V, L, NH, C, Vp), then the tensors in the order of
// ParameterTensors, float32 (version 3) or bfloat16 (version 5). Its wte has Vp rows, V rounded up for GPUs;
// in memory here it has V, but where the file is mapped.
#define MODEL_MAGIC 20240326

static void load_llmc(GPT2 *m, const char *path, int map) {
    int32_t header[256];
    size_t size;
    FILE *f = open_file(path, &size);
    if (fread(header, 4, 256, f) != 256 || header[0] != MODEL_MAGIC)
        die("%s is not a model; give a .bin of llm.c's, a run's folder or a Hugging Face folder", path);
    if (header[1] != 3 && header[1] != 5)
        die("%s is of llm.c's version %d; only 3 (float32) and 5 (bfloat16) are read", path, header[1]);
    GPT2Config g = {header[2], header[3], header[4], header[5], header[6]}, padded = g;
    check_config(g, path);
    padded.vocab_size = header[7];
    if (header[7] < g.vocab_size || header[7] > 1 << 20)
        die("%s pads a vocabulary of %d to %d: the file is damaged", path, g.vocab_size, header[7]);
    size_t width = header[1] == 3 ? 4 : 2, expected = sizeof header + width * count_parameters(padded);
    if (!size) die("%s is a pipe; give a model as a file", path);
    if (size != expected)
        die("%s has %zu bytes, a model of its shape %zu: it is damaged; copy it again", path, size, expected);
    if (map && width == 4) {
        char *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fileno(f), 0);
        if (file == MAP_FAILED) die("cannot map %s: %s", path, strerror(errno));
        *m = (GPT2){.config = g, .num_parameters = count_parameters(g), .mapping = file, .mapped = size};
        m->params = point_parameters((float *)(file + sizeof header), padded);
        for (int i = 0; i < NUM_TENSORS; i++) {
            TensorShape t = tensor_shape(g, i);
            check_finite(((float **)&m->params)[i], tensor_size(t), path, t.name);
            madvise(file, size, MADV_DONTNEED); // the page cache has it still
        }
        fclose(f);
        return;
    }
    gpt2_allocate(m, g);
    float *x = m->params_memory;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        read_floats(f, x, tensor_size(t), width == 4 ? F32 : BF16, path, t.name);
        x += tensor_size(t);
        if (i == 0) fseeko(f, (off_t)(width * (padded.vocab_size - g.vocab_size) * g.channels), SEEK_CUR);
    }
    fclose(f);
}

// Writes version 3. params is the flat array (num_parameters); zeros fill wte from row V to row Vp.
static void gpt2_save(const GPT2Config g, const float *params, const char *path) {
    int Vp = (g.vocab_size + 127) / 128 * 128;
    int32_t header[256] = {MODEL_MAGIC, 3, g.max_seq_len, g.vocab_size, g.num_layers, g.num_heads,
                           g.channels, Vp};
    size_t wte = (size_t)g.vocab_size * g.channels;
    FILE *f = write_begin(path);
    write_bytes(f, header, sizeof header);
    write_bytes(f, params, wte * sizeof(float));
    for (size_t i = wte; i < (size_t)Vp * g.channels; i++) write_bytes(f, &(float){0}, sizeof(float));
    write_bytes(f, params + wte, (count_parameters(g) - wte) * sizeof(float));
    write_commit(f, path);
}

// ---- JSON: a text becomes the list of its values, in the order in which they stand there.

typedef struct {
    char type;     // { [ " t f n, or 0 for a number
    char *text;    // where the value stands; strings are without escapes and have a zero behind them
    size_t length; // bytes of text; the number of members of { and [
    size_t next;   // the value after this one and all within it; members of { are key, value, key, value
} JsonNode;

typedef struct {
    JsonNode *nodes;
    size_t count, capacity;
    char *text, *p; // p: how far it has been read
    const char *path;
} Json;

static void json_broken(const Json *j) {
    die("%s is not JSON from byte %zu of its text on: it is damaged", j->path, (size_t)(j->p - j->text));
}

static int utf8_encode(char *out, int c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00 >> n) | c);
    return n;
}

// The number of \uXXXX, or -1.
static int json_hex(const char *p) {
    char digits[5] = {0};
    if (p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 0; i < 4; i++)
        if (!isxdigit((unsigned char)(digits[i] = p[2 + i]))) return -1;
    return (int)strtol(digits, NULL, 16);
}

// Decodes a string in place, which never makes it longer. A zero ends the text, so p[1] can be looked at.
static void json_string(Json *j, JsonNode *node) {
    const char *escapes = "\"\"\\\\//b\bf\fn\nr\rt\t", *e;
    char *out = node->text = j->p + 1;
    for (j->p++; *j->p != '"'; j->p++) {
        if ((unsigned char)*j->p < 32) json_broken(j);
        int c = json_hex(j->p);
        if (*j->p != '\\') *out++ = *j->p;
        else if (c >= 0) {
            int low = c >= 0xD800 && c < 0xDC00 ? json_hex(j->p + 6) : -1;
            if (low >= 0xDC00 && low < 0xE000) c = 0x10000 + ((c - 0xD800) << 10) + low - 0xDC00, j->p += 6;
            out += utf8_encode(out, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c); // half of a pair is no character
            j->p += 5;
        } else {
            for (j->p++, e = escapes; *e && *e != *j->p; e += 2) {}
            if (!*e) json_broken(j);
            *out++ = e[1];
        }
    }
    j->p++;
    node->length = (size_t)(out - node->text);
    *out = 0;
}

static char json_peek(Json *j) {
    while (*j->p == ' ' || *j->p == '\t' || *j->p == '\n' || *j->p == '\r') j->p++;
    return *j->p;
}

static void json_expect(Json *j, char c) {
    if (json_peek(j) != c) json_broken(j);
    j->p++;
}

static void json_value(Json *j, int depth) {
    if (j->count == j->capacity)
        j->nodes = resize(j->nodes, (j->capacity = 2 * j->capacity + 64) * sizeof *j->nodes);
    size_t index = j->count++;
    JsonNode node = {.type = json_peek(j), .text = j->p};
    if (node.type == '"') json_string(j, &node);
    else if (node.type == '{' || node.type == '[') {
        if (depth > 64) json_broken(j);
        for (j->p++; json_peek(j) != node.type + 2; node.length++) { // in ASCII ] is [ + 2, } is { + 2
            if (node.length) json_expect(j, ',');
            if (node.type == '{') {
                if (json_peek(j) != '"') json_broken(j);
                json_value(j, depth + 1);
                json_expect(j, ':');
            }
            json_value(j, depth + 1);
        }
        j->p++;
    } else if (node.type == '-' || isdigit((unsigned char)node.type)) {
        node.type = '0';
        strtod(node.text, &j->p);
        node.length = (size_t)(j->p - node.text);
    } else {
        const char *word = node.type == 't' ? "true" : node.type == 'f' ? "false" : "null";
        node.length = strlen(word);
        if (strncmp(j->p, word, node.length)) json_broken(j);
        j->p += node.length;
    }
    node.next = j->count;
    j->nodes[index] = node;
}

// Takes over the text, which has a zero behind it and must be one object.
static Json json_parse(char *text, size_t size, const char *path) {
    Json j = {.text = text, .p = text, .path = path};
    if (json_peek(&j) != '{') json_broken(&j);
    json_value(&j, 0);
    json_peek(&j);
    if (j.p != text + size) json_broken(&j);
    return j;
}

static Json json_read(const char *path) {
    size_t size;
    char *text = read_file(path, &size);
    return json_parse(text, size, path);
}

static void json_free(Json *j) { free(j->nodes), free(j->text); }

// The value of a key in an object, or 0 where there is none.
static size_t json_get(const Json *j, size_t object, const char *name) {
    if (j->nodes[object].type == '{')
        for (size_t key = object + 1; key < j->nodes[object].next; key = j->nodes[key + 1].next)
            if (!strcmp(j->nodes[key].text, name)) return key + 1;
    return 0;
}

// Whether a value is this text (a string, true, false, null) or this number, to 1e-9.
static int json_is(const Json *j, size_t node, const char *text) {
    JsonNode n = j->nodes[node];
    if (n.type == '0') return isdigit((unsigned char)*text) && fabs(strtod(n.text, NULL) - atof(text)) < 1e-9;
    return n.type != '{' && n.type != '[' && n.length == strlen(text) && !memcmp(n.text, text, n.length);
}

// The value as a whole number from min to max; dies, calling it `what`, where it is none.
static int64_t json_int(const Json *j, size_t node, int64_t min, int64_t max, const char *what) {
    double x = j->nodes[node].type == '0' ? strtod(j->nodes[node].text, NULL) : NAN;
    if (!(x >= (double)min && x <= (double)max) || x != floor(x))
        die("%s: %s is not a whole number from %lld to %lld", j->path, what, (long long)min, (long long)max);
    return (int64_t)x;
}

// ---- Hugging Face's folders

// The shape of a model from config.json. What asks there for another network than GPT-2's is refused by name.
static GPT2Config read_hf_config(const char *path) {
    const char *names[] = {"n_positions", "vocab_size", "n_layer", "n_head", "n_embd"};
    int shape[5] = {0};
    char wide[32];
    Json j = json_read(path);
    for (int i = 0; i < 5; i++) {
        size_t value = json_get(&j, 0, names[i]);
        if (value) shape[i] = (int)json_int(&j, value, INT32_MIN, INT32_MAX, names[i]);
    }
    snprintf(wide, sizeof wide, "%lld", 4ll * shape[4]);
    const char *rules[][3] = {
        {"model_type", "gpt2"}, {"architectures", "GPT2LMHeadModel", "GPT2Model"}, {"n_inner", wide, "null"},
        {"activation_function", "gelu_new", "gelu_pytorch_tanh"}, {"layer_norm_epsilon", "1e-5"},
        {"tie_word_embeddings", "true"}, {"scale_attn_weights", "true"}, {"reorder_and_upcast_attn", "false"},
        {"scale_attn_by_inverse_layer_idx", "false"}, {"add_cross_attention", "false"},
        {"is_encoder_decoder", "false"}, {"quantization_config", "null"}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        size_t value = json_get(&j, 0, rules[i][0]);
        if (value && j.nodes[value].type == '[' && !j.nodes[value].length) continue;
        if (value && j.nodes[value].type == '[') value++; // its first member
        int other = rules[i][2] && json_is(&j, value, rules[i][2]);
        if (!value || other || json_is(&j, value, rules[i][1])) continue;
        JsonNode n = j.nodes[value];
        die("%s: %s is %s; this GPT-2 has only %s", path, rules[i][0],
            printable(n.text, n.type == '{' || n.type == '[' ? 1 : n.length).s, rules[i][1]);
    }
    json_free(&j);
    GPT2Config g = {shape[0], shape[1], shape[2], shape[3], shape[4]};
    check_config(g, path);
    return g;
}

// In Hugging Face's GPT-2 the weights of linear layers are (in,out), transposed against (out,in) here.
static int is_linear(TensorShape t) { return t.layers && t.cols; }

// The tensor and the layer that a name means; -1: none of GPT-2's, -2: one that is not needed.
static int find_tensor(GPT2Config g, const char *name, int *layer) {
    char *rest = NULL;
    if (!strncmp(name, "transformer.", 12)) name += 12;
    *layer = 0;
    if (!strcmp(name, "lm_head.weight")) return -2; // the configuration says it is wte
    if (!strncmp(name, "h.", 2) && isdigit((unsigned char)name[2])) {
        long number = strtol(name + 2, &rest, 10);
        if (*rest != '.' || number >= g.num_layers) return -1;
        if (!strcmp(rest, ".attn.bias") || !strcmp(rest, ".attn.masked_bias")) return -2; // old masks
        *layer = (int)number;
    }
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        if (rest ? t.layers && !strcmp(rest, t.hf_name + strlen("h.%d")) : !strcmp(name, t.hf_name)) return i;
    }
    return -1;
}

// safetensors: the header's size in 8 bytes, the header {name: {dtype, shape, data_offsets}}, the numbers.
// They are put into m, and marked in seen (NUM_TENSORS,L).
static void read_safetensors(GPT2 *m, char *seen, const char *path) {
    GPT2Config g = m->config;
    uint64_t header_size = 0;
    size_t size;
    FILE *f = open_file(path, &size);
    if (fread(&header_size, 8, 1, f) != 1 || header_size > size - 8)
        die("%s is not a safetensors file, or cut short: its header would be larger than the file", path);
    char *header = resize(NULL, header_size + 1);
    if (fread(header, 1, header_size, f) != header_size) die("cannot read %s", path);
    header[header_size] = 0;
    int64_t data = (int64_t)(size - 8 - header_size);
    Json j = json_parse(header, header_size, path);
    for (size_t key = 1; key < j.nodes[0].next; key = j.nodes[key + 1].next) {
        int layer, i = find_tensor(g, j.nodes[key].text, &layer);
        if (i == -2 || json_is(&j, key, "__metadata__")) continue;
        Path name = printable(j.nodes[key].text, j.nodes[key].length);
        if (i == -1) die("%s: a GPT-2 of %d layers has no tensor %s", path, g.num_layers, name.s);
        TensorShape t = tensor_shape(g, i);
        int linear = is_linear(t), first = linear ? t.cols : t.rows, second = linear ? t.rows : t.cols;
        size_t dtype = json_get(&j, key + 1, "dtype"), shape = json_get(&j, key + 1, "shape");
        size_t offsets = json_get(&j, key + 1, "data_offsets");
        if (j.nodes[shape].type != '[' || j.nodes[shape].length != (second ? 2 : 1) ||
            json_int(&j, shape + 1, 0, INT32_MAX, name.s) != first ||
            (second && json_int(&j, shape + 2, 0, INT32_MAX, name.s) != second))
            die("%s: the shape of %s is not config.json's (%d%s%.0d)", path, name.s, first, second ? "," : "",
                second);
        int type = json_is(&j, dtype, "F32") ? F32 : json_is(&j, dtype, "F16") ? F16 : BF16;
        if (type == BF16 && !json_is(&j, dtype, "BF16")) die("%s: %s is not F32, F16 or BF16", path, name.s);
        if (j.nodes[offsets].type != '[' || j.nodes[offsets].length != 2)
            die("%s: %s has no data_offsets: the file is damaged", path, name.s);
        int64_t begin = json_int(&j, offsets + 1, 0, (int64_t)1 << 62, name.s);
        int64_t end = json_int(&j, offsets + 2, 0, (int64_t)1 << 62, name.s);
        if (begin > data || end > data) die("%s ends within %s: it is cut short or damaged", path, name.s);
        if (end - begin != (int64_t)layer_size(t) * (type == F32 ? 4 : 2))
            die("%s: the numbers of %s do not fill its shape: the file is damaged", path, name.s);
        if (seen[i * g.num_layers + layer]++) die("%s: %s is there twice", path, name.s);
        float *w = ((float **)&m->params)[i] + layer * layer_size(t);
        fseeko(f, (off_t)(8 + header_size) + begin, SEEK_SET);
        if (!linear) read_floats(f, w, layer_size(t), type, path, name.s);
        float *row = resize(NULL, (size_t)t.rows * sizeof *row);
        for (int c = 0; linear && c < t.cols; c++) {
            read_floats(f, row, (size_t)t.rows, type, path, name.s);
            for (int r = 0; r < t.rows; r++) w[(size_t)r * t.cols + c] = row[r];
        }
        free(row);
    }
    json_free(&j);
    fclose(f);
}

// config.json, and model.safetensors or the parts that model.safetensors.index.json names.
#define MAX_PARTS 1000
static void load_hf(GPT2 *m, const char *folder) {
    Path config = path_in(folder, "config.json"), index = path_in(folder, "model.safetensors.index.json");
    GPT2Config g = read_hf_config(config.s);
    const char *parts[MAX_PARTS] = {"model.safetensors"};
    size_t count = 1, bytes = 0, size;
    Json j = {0};
    if (!file_exists(path_in(folder, parts[0]).s)) {
        if (!file_exists(index.s)) die("%s has no model.safetensors; write it by save_pretrained", folder);
        j = json_read(index.s);
        size_t map = json_get(&j, 0, "weight_map"), i;
        count = 0;
        if (!map || j.nodes[map].type != '{') die("%s has no weight_map: it is damaged", index.s);
        for (size_t key = map + 1; key < j.nodes[map].next; key = j.nodes[key + 1].next) {
            JsonNode name = j.nodes[key + 1];
            for (i = 0; i < count && !json_is(&j, key + 1, parts[i]);) i++;
            if (i < count) continue;
            if (name.type != '"' || strchr(name.text, '/') || name.length > 200 || count == MAX_PARTS ||
                strcmp(name.text, printable(name.text, name.length).s)) // a line's end, say
                die("%s should name at most %d files beside it: it is damaged", index.s, MAX_PARTS);
            parts[count++] = name.text;
        }
    }
    for (size_t i = 0; i < count; i++, bytes += size) fclose(open_file(path_in(folder, parts[i]).s, &size));
    if (bytes / 2 < count_parameters(g))
        die("%s means %zu parameters, but the model is of %zu bytes", config.s, count_parameters(g), bytes);
    gpt2_allocate(m, g);
    char *seen = allocate((size_t)NUM_TENSORS * g.num_layers, 1);
    for (size_t i = 0; i < count; i++) read_safetensors(m, seen, path_in(folder, parts[i]).s);
    for (int i = 0; i < NUM_TENSORS; i++)
        for (int l = 0; l < MAX(tensor_shape(g, i).layers, 1); l++) {
            char name[64];
            snprintf(name, sizeof name, tensor_shape(g, i).hf_name, l);
            if (!seen[i * g.num_layers + l]) die("%s lacks %s; use save_pretrained", folder, name);
        }
    free(seen);
    json_free(&j);
}

// A model from llm.c's .bin, a run's folder (with its model.bin), or a Hugging Face folder. With `map` it can
// only be read from: float32 parameters of llm.c's are mapped, not copied.
static void gpt2_open(GPT2 *m, const char *path, int map) {
    if (!is_folder(path)) load_llmc(m, path, map);
    else if (file_exists(path_in(path, "model.bin").s)) load_llmc(m, path_in(path, "model.bin").s, map);
    else if (file_exists(path_in(path, "config.json").s)) load_hf(m, path);
    else die("%s has neither model.bin nor config.json; give a run's folder or a Hugging Face model", path);
}

static void gpt2_load(GPT2 *m, const char *path) { gpt2_open(m, path, 0); }

// ===========================================================================================================
// 7  Tokenizers: bytes, the characters of a text, or GPT-2's byte-pair encoding

#include "dev/unicode_tables.h" // unicode_ranges: letters, numbers, white space

typedef enum { TOKENIZER_BYTES, TOKENIZER_CHARS, TOKENIZER_GPT2 } TokenizerKind;
typedef struct {
    TokenizerKind kind;
    int vocab_size;      // V
    char *text;          // the bytes of all tokens, one after the other
    size_t text_size, text_capacity;
    uint32_t *start;     // (V+1) where each token begins in text
    uint16_t *char_id;   // chars: (0x110000) 1 + the token of a code point, or 0
    // gpt2
    uint32_t *slots;     // (SLOTS) a hash table from bytes to tokens
    uint32_t *left;      // (V) of a merge of two tokens: the bytes of the left one
    uint8_t *char_class; // (0x110000) of a code point, as in unicode_ranges
    size_t longest;      // bytes of the longest token
} Tokenizer;
#define MAX_CHAR 0x10FFFF
#define SLOTS (1 << 17)

// The code point at p and its length in bytes; -1 and 1 where the bytes are not UTF-8.
static inline int utf8_decode(const char *p, const char *end, int *length) {
    static const int least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)p;
    *length = 1;
    if (s[0] < 0x80) return s[0];
    int n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2, c = s[0] & (0x7F >> n);
    if (s[0] < 0xC2 || s[0] > 0xF4 || end - p < n) return -1;
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return -1;
        c = c << 6 | (s[i] & 0x3F);
    }
    if (c < least[n] || c > MAX_CHAR || (c >= 0xD800 && c < 0xE000)) return -1;
    *length = n;
    return c;
}

static void tokenizer_free(Tokenizer *t) {
    free(t->text), free(t->start), free(t->char_id), free(t->slots), free(t->left), free(t->char_class);
    memset(t, 0, sizeof *t);
}

// Appends a token; the callers see to it that there are at most 65536.
static void add_token(Tokenizer *t, const char *bytes, size_t n) {
    if (!t->start) t->start = resize(NULL, 65537 * sizeof *t->start), t->start[0] = 0;
    if (n > UINT32_MAX - t->text_size) die("the tokens of a tokenizer are longer than 4 GiB together");
    if (t->text_size + n > t->text_capacity)
        t->text = resize(t->text, t->text_capacity = 2 * (t->text_size + n));
    memcpy(t->text + t->text_size, bytes, n);
    t->start[++t->vocab_size] = (uint32_t)(t->text_size += n);
}

static void bytes_init(Tokenizer *t) {
    t->kind = TOKENIZER_BYTES;
    for (int i = 0; i < 256; i++) add_token(t, &(char){(char)i}, 1);
}

// One token for each code point that the text has, in the order of their numbers.
static void chars_init(Tokenizer *t, const char *text, size_t n, const char *what) {
    int length;
    t->kind = TOKENIZER_CHARS;
    t->char_id = allocate(MAX_CHAR + 1, sizeof *t->char_id);
    for (const char *p = text, *end = text + n; p < end; p += length) {
        int c = utf8_decode(p, end, &length);
        if (c < 0) die("%s is not UTF-8 at byte %zu; take --tokenizer bytes", what, (size_t)(p - text));
        t->char_id[c] = 1;
    }
    for (int c = 0; c <= MAX_CHAR; c++) {
        char bytes[4];
        if (!t->char_id[c]) continue;
        if (t->vocab_size == 65535) die("%s has too many different characters; take --tokenizer gpt2", what);
        add_token(t, bytes, (size_t)utf8_encode(bytes, c));
        t->char_id[c] = (uint16_t)t->vocab_size;
    }
    if (!t->vocab_size) die("%s has no characters to make a tokenizer of", what);
}

// ---- GPT-2's byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019). A text is cut into pieces by a
// pattern. A piece starts as single bytes; again and again the two neighbours are joined whose union is the
// earliest merge, the leftmost of equals, until no union is a token. Tokens are the 256 bytes, the merges in
// order, and <|endoftext|>, which no text is ever encoded to.

// Files spell bytes in visible characters; those without one (0 to 32, 127 to 160, 173) become U+0100 and on.
static int byte_to_symbol(int b) {
    return b < 33 ? 256 + b : b < 127 ? b : b < 161 ? 162 + b : b == 173 ? 323 : b;
}

static int symbol_to_byte(int s) {
    if (s >= 256) return s < 289 ? s - 256 : s < 323 ? s - 162 : s == 323 ? 173 : -1;
    return s >= 0 && byte_to_symbol(s) == s ? s : -1;
}

// Turns symbols into the bytes they stand for, in place, and returns how many; 0 if one stands for none.
static size_t symbols_to_bytes(char *text, size_t n) {
    size_t k = 0;
    int length;
    for (const char *p = text, *end = text + n; p < end; p += length) {
        int b = symbol_to_byte(utf8_decode(p, end, &length));
        if (b < 0) return 0;
        text[k++] = (char)b;
    }
    return k;
}

// The slot of some bytes: it holds 1 + their token, or 0 where they are new and can be put.
static inline uint32_t *find_slot(const Tokenizer *t, const char *bytes, size_t n) {
    for (size_t i = hash_bytes(0, bytes, n) % SLOTS;; i = (i + 1) % SLOTS) {
        uint32_t *slot = &t->slots[i], id = *slot - 1;
        if (!*slot) return slot;
        if (t->start[id + 1] - t->start[id] == n && !memcmp(t->text + t->start[id], bytes, n)) return slot;
    }
}

#define NO_TOKEN UINT32_MAX
static inline uint32_t find_token(const Tokenizer *t, const char *bytes, size_t n) {
    return n > t->longest ? NO_TOKEN : *find_slot(t, bytes, n) - 1;
}

static void add_bpe_token(Tokenizer *t, const char *bytes, size_t n) {
    uint32_t *slot = find_slot(t, bytes, n);
    add_token(t, bytes, n);
    *slot = (uint32_t)t->vocab_size;
    t->longest = MAX(t->longest, n);
}

static void bpe_begin(Tokenizer *t) {
    t->kind = TOKENIZER_GPT2;
    t->slots = allocate(SLOTS, sizeof *t->slots);
    t->left = allocate(65536, sizeof *t->left);
    t->char_class = allocate(MAX_CHAR + 1, 1);
    for (size_t i = 0; i < sizeof unicode_ranges / sizeof *unicode_ranges; i++)
        for (uint32_t c = unicode_ranges[i][0]; c <= unicode_ranges[i][1]; c++)
            t->char_class[c] = (uint8_t)unicode_ranges[i][2];
    for (int visible = 1; visible >= 0; visible--) // first the bytes that stand for themselves
        for (int b = 0; b < 256; b++)
            if ((byte_to_symbol(b) == b) == visible) add_bpe_token(t, &(char){(char)b}, 1);
}

// Adds the union of tokens a and b, given as symbols, which become bytes in place; in memory a is before b.
static void add_merge(Tokenizer *t, char *a, size_t a_size, char *b, size_t b_size, const char *path) {
    int number = t->vocab_size - 255;
    size_t n = symbols_to_bytes(a, a_size), m = symbols_to_bytes(b, b_size);
    if (t->vocab_size == 65535) die("%s has more merges than tokens of 16 bits can count", path);
    memmove(a + n, b, m);
    if (!n || !m || find_token(t, a, n) == NO_TOKEN || find_token(t, a + n, m) == NO_TOKEN)
        die("%s: merge %d is not of two tokens before it: the file is damaged, or not GPT-2's", path, number);
    if (find_token(t, a, n + m) != NO_TOKEN) die("%s: merge %d is there already", path, number);
    t->left[t->vocab_size] = (uint32_t)n;
    add_bpe_token(t, a, n + m);
}

static const char end_of_text[] = "<|endoftext|>";

// vocab.bpe, also known as merges.txt: a line with the version, then a merge in each line.
static void load_merges(Tokenizer *t, const char *path) {
    size_t size;
    char *text = read_file(path, &size), *line = text, *next;
    bpe_begin(t);
    for (char *end = text + size; line < end; line = next + 1) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (!next) die("%s ends within a line: it is cut short, or its last line needs an end", path);
        char *stop = next > line && next[-1] == '\r' ? next - 1 : next;
        char *space = memchr(line, ' ', (size_t)(stop - line));
        if (stop == line || (line == text && !strncmp(line, "#version", 8))) continue;
        if (!space) die("%s: merge %d is not two tokens and a space between", path, t->vocab_size - 255);
        add_merge(t, line, (size_t)(space - line), space + 1, (size_t)(stop - space - 1), path);
    }
    if (t->vocab_size == 256) die("%s has no merges; give GPT-2's vocab.bpe", path);
    add_token(t, end_of_text, strlen(end_of_text));
    free(text);
}

// What is at p: 1 a letter, 2 a number, 3 white space, 0 anything else, also bytes that are not UTF-8.
static inline int class_at(const Tokenizer *t, const char *p, const char *end, int *length) {
    if ((unsigned char)*p < 128) return *length = 1, t->char_class[(unsigned char)*p];
    int c = utf8_decode(p, end, length);
    return c < 0 ? 0 : t->char_class[c];
}

// The end of the piece that starts at p, by GPT-2's pattern:
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static inline const char *piece_end(const Tokenizer *t, const char *p, const char *end) {
    if (*p == '\'') {
        static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
        for (int i = 0; i < 7; i++) {
            long n = (long)strlen(endings[i]);
            if (end - p > n && !memcmp(p + 1, endings[i], (size_t)n)) return p + 1 + n;
        }
    }
    int length, last = 1, space = *p == ' ' && end - p > 1, kind = class_at(t, p + space, end, &length);
    const char *q = p;
    if (kind != 3) {
        for (q += space + length; q < end && class_at(t, q, end, &length) == kind;) q += length;
        return q;
    }
    for (; q < end && class_at(t, q, end, &length) == 3; q += length) last = length;
    return q < end && q - last > p ? q - last : q; // the last of several goes to what is behind it
}

// A part of a piece, named by where it begins.
typedef struct {
    uint32_t next, previous; // the parts beside it
    uint32_t joined;         // what it and the next one would be, or NO_TOKEN
} Part;

// Memory for join_pairs; the heap holds joined << 32 | part, smallest first, also of pairs that are no more.
typedef struct {
    Part *parts;
    uint64_t *heap;
    size_t capacity, heap_size;
} Joiner;

static inline void heap_push(Joiner *s, uint64_t x) {
    size_t i = s->heap_size++;
    for (; i > 0 && s->heap[(i - 1) / 2] > x; i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = x;
}

static inline uint64_t heap_pop(Joiner *s) {
    uint64_t top = s->heap[0], x = s->heap[--s->heap_size];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->heap_size; i = child) {
        if (child + 1 < s->heap_size && s->heap[child + 1] < s->heap[child]) child++;
        if (s->heap[child] >= x) break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = x;
    return top;
}

// Part i and the next one: where their union is a token, the pair goes onto the heap.
static inline void push_pair(const Tokenizer *t, Joiner *s, const char *p, uint32_t n, uint32_t i) {
    uint32_t j = s->parts[i].next, joined = j < n ? find_token(t, p + i, s->parts[j].next - i) : NO_TOKEN;
    s->parts[i].joined = joined;
    if (joined != NO_TOKEN) heap_push(s, (uint64_t)joined << 32 | i);
}

// The tokens of a piece of n bytes, in O(n log n).
static size_t join_pairs(const Tokenizer *t, Joiner *s, const char *p, uint32_t n, uint16_t *ids) {
    if (n > s->capacity) {
        s->capacity = 2 * (size_t)n;
        s->parts = resize(s->parts, s->capacity * sizeof *s->parts);
        s->heap = resize(s->heap, 3 * s->capacity * sizeof *s->heap); // n pairs at first, two by each join
    }
    Part *parts = s->parts;
    s->heap_size = 0;
    for (uint32_t i = 0; i < n; i++) parts[i] = (Part){i + 1, i - 1, NO_TOKEN};
    for (uint32_t i = 0; i < n; i++) push_pair(t, s, p, n, i);
    while (s->heap_size) {
        uint64_t top = heap_pop(s);
        uint32_t i = (uint32_t)top, j = parts[i].next;
        if (parts[i].joined != top >> 32) continue;
        parts[i].next = parts[j].next;
        parts[j].joined = NO_TOKEN;
        if (parts[i].next < n) parts[parts[i].next].previous = i;
        push_pair(t, s, p, n, i);
        if (i > 0) push_pair(t, s, p, n, parts[i].previous);
    }
    size_t count = 0;
    for (uint32_t i = 0; i < n; i = parts[i].next)
        ids[count++] = (uint16_t)find_token(t, p + i, parts[i].next - i);
    return count;
}

// Most pieces of a natural text are tokens as they stand, to which joining would lead as well: training makes
// a token of what was joined before.
static uint16_t *bpe_encode(const Tokenizer *t, const char *text, size_t n, size_t *count) {
    Joiner joiner = {0};
    size_t capacity = n / 4 + 16;
    uint16_t *ids = resize(NULL, capacity * sizeof *ids);
    for (const char *p = text, *end = text + n, *next; p < end; p = next) {
        next = piece_end(t, p, end);
        size_t size = (size_t)(next - p);
        if (size > INT32_MAX) die("a word or a run of spaces has %zu bytes, too many to encode", size);
        if (*count + size > capacity) ids = resize(ids, (capacity = 2 * (*count + size)) * sizeof *ids);
        uint32_t whole = find_token(t, p, size);
        if (whole != NO_TOKEN) ids[(*count)++] = (uint16_t)whole;
        else *count += join_pairs(t, &joiner, p, (uint32_t)size, ids + *count);
    }
    free(joiner.parts), free(joiner.heap);
    return resize(ids, *count * sizeof *ids);
}

// ---- all kinds

// kind: bytes, chars, whose vocabulary is that of a text, or gpt2, whose merges are read from a file.
static void tokenizer_init(Tokenizer *t, const char *kind, const char *text, size_t n,
                           const char *merges_path) {
    if (!strcmp(kind, "bytes")) bytes_init(t);
    else if (!strcmp(kind, "chars")) chars_init(t, text, n, "the training text");
    else if (!merges_path || !*merges_path)
        die("GPT-2's tokenizer needs its merges: --merges vocab.bpe (dev/data/gpt2.sh)");
    else load_merges(t, merges_path);
}

static int same_tokens(const Tokenizer *t, const Tokenizer *u) {
    return t->vocab_size == u->vocab_size && t->text_size == u->text_size &&
           !memcmp(t->start, u->start, (t->vocab_size + 1) * sizeof *t->start) &&
           !memcmp(t->text, u->text, t->text_size);
}

// The bytes of a token.
static const char *tokenizer_token(const Tokenizer *t, int id, size_t *length) {
    if (id < 0 || id >= t->vocab_size) die("token %d is not in the vocabulary of %d", id, t->vocab_size);
    *length = t->start[id + 1] - t->start[id];
    return t->text + t->start[id];
}

// The tokens of a text, which messages call `name`; the caller frees them.
static uint16_t *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, const char *name,
                                  size_t *count) {
    *count = 0;
    if (t->kind == TOKENIZER_GPT2) return bpe_encode(t, text, n, count);
    uint16_t *ids = resize(NULL, n * sizeof *ids);
    if (t->kind == TOKENIZER_BYTES)
        for (; *count < n; ++*count) ids[*count] = (unsigned char)text[*count];
    int length;
    for (const char *p = text, *end = text + n; t->kind == TOKENIZER_CHARS && p < end; p += length) {
        int c = utf8_decode(p, end, &length);
        if (c < 0) die("%s is not UTF-8 at byte %zu; correct it", name, (size_t)(p - text));
        if (!t->char_id[c])
            die("%s: the character %s (U+%04X) at byte %zu is not in the tokenizer; train with it, or take "
                "it out", name, printable(p, (size_t)length).s, c, (size_t)(p - text));
        ids[(*count)++] = t->char_id[c] - 1;
    }
    return ids;
}

// Writes bytes as tokenizers' files spell them: in symbols, or, where tokens are characters, as they are.
static void write_symbols(FILE *f, TokenizerKind kind, const char *bytes, size_t n, int json) {
    for (size_t i = 0; i < n; i++) {
        int c = (unsigned char)bytes[i];
        char utf8[4] = {(char)c};
        size_t length = 1;
        if (kind != TOKENIZER_CHARS) length = (size_t)utf8_encode(utf8, c = byte_to_symbol(c));
        if (json && (c == '"' || c == '\\')) fputc('\\', f);
        if (json && c < 32) fprintf(f, "\\u%04x", c);
        else fwrite(utf8, 1, length, f);
    }
}

static void write_merges(FILE *f, const Tokenizer *t, int json) {
    for (int i = 256; i < t->vocab_size - 1; i++) {
        const char *token = t->text + t->start[i];
        if (json) fputs(i > 256 ? ",\n[\"" : "[\"", f);
        write_symbols(f, t->kind, token, t->left[i], json);
        fputs(json ? "\", \"" : " ", f);
        write_symbols(f, t->kind, token + t->left[i], t->start[i + 1] - t->start[i] - t->left[i], json);
        fputs(json ? "\"]" : "\n", f);
    }
}

static void save_merges(const Tokenizer *t, Path path) {
    FILE *f = write_begin(path.s);
    fputs("#version: 0.2\n", f);
    write_merges(f, t, 0);
    write_commit(f, path.s);
}

// Writes tokenizer.bpe, the merges as in GPT-2's file; or tokenizer.txt: a line `bytes`, or a line `chars`
// and then each character once, which is a text of this vocabulary. Removes what another kind has left there,
// or, where there is no tokenizer (vocab_size 0), both.
static void tokenizer_save(const Tokenizer *t, const char *folder) {
    Path txt = path_in(folder, "tokenizer.txt"), bpe = path_in(folder, "tokenizer.bpe");
    int merges = t->vocab_size && t->kind == TOKENIZER_GPT2;
    if (merges) save_merges(t, bpe);
    if (merges || !t->vocab_size) unlink(txt.s);
    if (!merges) unlink(bpe.s);
    if (merges || !t->vocab_size) return;
    FILE *f = write_begin(txt.s);
    fputs(t->kind == TOKENIZER_BYTES ? "bytes\n" : "chars\n", f);
    if (t->kind == TOKENIZER_CHARS) write_bytes(f, t->text, t->text_size);
    write_commit(f, txt.s);
}

// Dies if a model without a tokenizer would be taken to have one that is in this folder, and not of the kind
// that tokenizer_save removes.
static void check_other_tokenizers(const Tokenizer *t, const char *folder) {
    const char *others[] = {"merges.txt", "vocab.bpe", "tokenizer.json"};
    for (int i = 0; i < 3 && !t->vocab_size; i++)
        if (file_exists(path_in(folder, others[i]).s))
            die("%s has a %s, and these tokens may be others; choose another folder", folder, others[i]);
}

static void load_tokenizer_txt(Tokenizer *t, const char *path) {
    size_t size;
    char *text = read_file(path, &size);
    if (!strcmp(text, "bytes\n")) bytes_init(t);
    else if (strncmp(text, "chars\n", 6)) die("%s is not a tokenizer of this program's; train again", path);
    else {
        int length;
        for (const char *p = text + 6; p < text + size; p += length)
            if (utf8_decode(p, text + size, &length) < 0)
                die("%s is not UTF-8 at byte %zu: it is damaged; train again", path, (size_t)(p - text));
        chars_init(t, text + 6, size - 6, path);
        if (t->text_size != size - 6 || memcmp(t->text, text + 6, size - 6))
            die("%s does not hold each character once, in order: it is damaged; train again", path);
    }
    free(text);
}

// Dies unless a vocabulary {token: number} numbers the tokens as t does.
static void check_vocabulary(const Tokenizer *t, const Json *j, size_t vocabulary) {
    if (j->nodes[vocabulary].type != '{' || (int)j->nodes[vocabulary].length != t->vocab_size)
        die("%s: %zu tokens, but the merges make %d", j->path, j->nodes[vocabulary].length, t->vocab_size);
    for (size_t key = vocabulary + 1; key < j->nodes[vocabulary].next; key = j->nodes[key + 1].next) {
        JsonNode name = j->nodes[key];
        int id = (int)json_int(j, key + 1, 0, t->vocab_size - 1, "a token's number");
        size_t n = id == t->vocab_size - 1 ? name.length : symbols_to_bytes(name.text, name.length);
        if (n != t->start[id + 1] - t->start[id] || memcmp(name.text, t->text + t->start[id], n))
            die("%s: token %d is not the one that GPT-2 has there; no other order is read (for token shards, "
                "move the tokenizer's files elsewhere)", j->path, id);
    }
}

// GPT-2's tokenizer.json.
static void load_tokenizer_json(Tokenizer *t, const char *path) {
    Json j = json_read(path);
    size_t model = json_get(&j, 0, "model"), merges = json_get(&j, model, "merges"), next;
    size_t vocabulary = json_get(&j, model, "vocab"), pattern = json_get(&j, 0, "pre_tokenizer");
    size_t changed = json_get(&j, 0, "normalizer"), pieces = json_get(&j, pattern, "use_regex");
    size_t type = json_get(&j, model, "type"); // older files, GPT-2's own among them, do not say it
    if ((type && !json_is(&j, type, "BPE")) || j.nodes[merges].type != '[' || !vocabulary ||
        !json_is(&j, json_get(&j, pattern, "type"), "ByteLevel") ||
        json_is(&j, json_get(&j, pattern, "add_prefix_space"), "true") ||
        (changed && !json_is(&j, changed, "null")) || (pieces && !json_is(&j, pieces, "true")))
        die("%s is not GPT-2's tokenizer, the only one of this format that is read", path);
    bpe_begin(t);
    for (size_t i = merges + 1; i < j.nodes[merges].next; i = next) { // "left right", or ["left", "right"]
        JsonNode *a = &j.nodes[i];
        char *space = a->type == '"' ? memchr(a->text, ' ', a->length) : NULL;
        next = a->next;
        if (space) add_merge(t, a->text, (size_t)(space - a->text), space + 1, strlen(space + 1), path);
        else if (a->type == '[' && a->length == 2 && a[1].type == '"' && a[2].type == '"')
            add_merge(t, a[1].text, a[1].length, a[2].text, a[2].length, path);
        else die("%s: merge %d is not of two tokens: the file is damaged", path, t->vocab_size - 255);
    }
    add_token(t, end_of_text, strlen(end_of_text));
    check_vocabulary(t, &j, vocabulary);
    json_free(&j);
}

// The tokenizer that stands beside a model, which is a file or a folder. Returns 0 where there is none.
static int tokenizer_load(Tokenizer *t, const char *model_path) {
    const char *names[] = {"tokenizer.txt", "tokenizer.bpe", "merges.txt", "vocab.bpe", "tokenizer.json"};
    Path folder = is_folder(model_path) ? path_in(model_path, "") : folder_of(model_path), path;
    int kind = 0;
    while (kind < 5 && !file_exists((path = path_in(folder.s, names[kind])).s)) kind++;
    if (kind == 5) return 0;
    if (kind == 0) load_tokenizer_txt(t, path.s);
    else if (kind == 4) load_tokenizer_json(t, path.s);
    else load_merges(t, path.s);
    Path vocabulary = path_in(folder.s, "vocab.json");
    if (kind == 2 && file_exists(vocabulary.s)) {
        Json j = json_read(vocabulary.s);
        check_vocabulary(t, &j, 0);
        json_free(&j);
    }
    return 1;
}

// ---- a model and its tokenizer for Hugging Face's transformers

static void export_safetensors(GPT2Config g, const float *params, Path path) {
    char *header, name[64];
    size_t size, offset = 0;
    FILE *h = open_memstream(&header, &size), *f = write_begin(path.s);
    if (!h) die("out of memory");
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", h);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        for (int l = 0; l < MAX(t.layers, 1); l++, offset += layer_size(t) * sizeof(float)) {
            snprintf(name, sizeof name, t.hf_name, l);
            fprintf(h, ",\"transformer.%s\":{\"dtype\":\"F32\",\"shape\":[", name);
            if (!t.cols) fprintf(h, "%d", t.rows);
            else fprintf(h, "%d,%d", is_linear(t) ? t.cols : t.rows, is_linear(t) ? t.rows : t.cols);
            fprintf(h, "],\"data_offsets\":[%zu,%zu]}", offset, offset + layer_size(t) * sizeof(float));
        }
    }
    fputs("}       ", h); // spaces make it a multiple of 8
    if (fclose(h)) die("out of memory");
    write_bytes(f, &(uint64_t){size / 8 * 8}, 8);
    write_bytes(f, header, size / 8 * 8);
    free(header);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        for (int l = 0; l < MAX(t.layers, 1); l++, params += layer_size(t)) {
            if (!is_linear(t)) write_bytes(f, params, layer_size(t) * sizeof(float));
            float *row = resize(NULL, (size_t)t.rows * sizeof *row);
            for (int c = 0; is_linear(t) && c < t.cols; c++) {
                for (int r = 0; r < t.rows; r++) row[r] = params[(size_t)r * t.cols + c];
                write_bytes(f, row, (size_t)t.rows * sizeof *row);
            }
            free(row);
        }
    }
    write_commit(f, path.s);
}

static void write_vocabulary(FILE *f, const Tokenizer *t) {
    for (int i = 0; i < t->vocab_size; i++) {
        fputs(i ? ",\n\"" : "{\"", f);
        if (t->kind == TOKENIZER_GPT2 && i == t->vocab_size - 1) fputs(end_of_text, f);
        else write_symbols(f, t->kind, t->text + t->start[i], t->start[i + 1] - t->start[i], 1);
        fprintf(f, "\": %d", i);
    }
    fputs("}", f);
}

// Replaces all tokenizer files in the folder; with vocab_size 0 it only removes them. transformers sees bytes
// and characters, too, as byte-pair encodings, without merges.
static void export_tokenizer(const Tokenizer *t, int max_seq_len, const char *folder) {
    const char *others[] = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                            "vocab.bpe", "tokenizer.txt", "tokenizer.bpe", "special_tokens_map.json",
                            "added_tokens.json"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) unlink(path_in(folder, others[i]).s);
    if (!t->vocab_size) return;
    int gpt2 = t->kind == TOKENIZER_GPT2, chars = t->kind == TOKENIZER_CHARS;
    Path path = path_in(folder, "tokenizer.json");
    FILE *f = write_begin(path.s);
    fputs("{\"version\": \"1.0\", \"added_tokens\": [", f);
    if (gpt2)
        fprintf(f, "{\"id\": %d, \"content\": \"%s\", \"special\": true, \"normalized\": false,\n"
                "\"single_word\": false, \"lstrip\": false, \"rstrip\": false}",
                t->vocab_size - 1, end_of_text);
    fputs("],\n\"pre_tokenizer\": ", f);
    const char *bytes = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true,\n"
                        "\"use_regex\": ";
    if (chars) fputs("null,\n\"decoder\": {\"type\": \"Fuse\"", f);
    else fprintf(f, "%s%s},\n\"decoder\": %strue", bytes, gpt2 ? "true" : "false", bytes);
    fputs("},\n\"model\": {\"type\": \"BPE\", \"vocab\": ", f);
    write_vocabulary(f, t);
    fputs(",\n\"merges\": [", f);
    if (gpt2) write_merges(f, t, 1);
    fputs("]}}\n", f);
    write_commit(f, path.s);

    path = path_in(folder, "tokenizer_config.json");
    f = write_begin(path.s);
    fprintf(f, "{\"tokenizer_class\": \"%s\", \"model_max_length\": %d, \"add_prefix_space\": false,\n",
            gpt2 ? "GPT2Tokenizer" : "PreTrainedTokenizerFast", max_seq_len);
    if (gpt2) fprintf(f, "\"bos_token\": \"%s\", \"eos_token\": \"%s\",\n", end_of_text, end_of_text);
    fputs("\"clean_up_tokenization_spaces\": false}\n", f);
    write_commit(f, path.s);
    if (!gpt2) return tokenizer_save(t, folder); // a tokenizer.txt, which this program reads
    path = path_in(folder, "vocab.json");
    f = write_begin(path.s);
    write_vocabulary(f, t);
    write_commit(f, path.s);
    save_merges(t, path_in(folder, "merges.txt"));
}

// Writes what from_pretrained reads: the model, its configuration and its tokenizer, if any.
static void gpt2_export_hf(GPT2Config g, const float *params, const Tokenizer *t, const char *dir) {
    char end[16] = "null";
    if (t->kind == TOKENIZER_GPT2) snprintf(end, sizeof end, "%d", t->vocab_size - 1);
    make_folder(dir);
    Path weights = path_in(dir, "model.safetensors"), new = path_in(dir, "model.safetensors.new");
    export_safetensors(g, params, new); // where there is no room for it, an older model stays whole
    unlink(path_in(dir, "config.json").s); // no new weights beside another's tokenizer: it is written last
    if (rename(new.s, weights.s)) write_failed(weights.s);
    export_tokenizer(t, g.max_seq_len, dir);
    Path path = path_in(dir, "generation_config.json");
    FILE *f = write_begin(path.s);
    fprintf(f, "{\"bos_token_id\": %s, \"eos_token_id\": %s}\n", end, end);
    write_commit(f, path.s);
    path = path_in(dir, "config.json");
    f = write_begin(path.s);
    fprintf(f, "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"],\n"
            "\"vocab_size\": %d, \"n_positions\": %d, \"n_ctx\": %d,\n"
            "\"n_embd\": %d, \"n_layer\": %d, \"n_head\": %d,\n"
            "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, \"dtype\": \"float32\",\n"
            "\"tie_word_embeddings\": true, \"resid_pdrop\": 0.0, \"embd_pdrop\": 0.0, \"attn_pdrop\": 0.0,\n"
            "\"bos_token_id\": %s, \"eos_token_id\": %s}\n",
            g.vocab_size, g.max_seq_len, g.max_seq_len, g.channels, g.num_layers, g.num_heads, end, end);
    write_commit(f, path.s);
}

// ===========================================================================================================
// 8  Data

// A stretch of tokens: a text, or an llm.c shard mapped into memory.
typedef struct {
    const uint16_t *tokens;
    size_t count;
} Shard;

typedef struct {
    Shard *shards;
    int num_shards;
    uint64_t hash; // of all tokens, so that a checkpoint can tell whether it belongs to this data
    int largest;   // token
    int files;     // the shards are mapped files
} Dataset;

static size_t dataset_tokens(const Dataset *d) {
    size_t n = 0;
    for (int s = 0; s < d->num_shards; s++) n += d->shards[s].count;
    return n;
}

static void dataset_add(Dataset *d, const uint16_t *tokens, size_t count) {
    d->shards = resize(d->shards, (size_t)(d->num_shards + 1) * sizeof(Shard));
    d->shards[d->num_shards++] = (Shard){tokens, count};
    d->hash = hash_bytes(d->hash, tokens, count * sizeof(uint16_t));
    for (size_t i = 0; i < count; i++) d->largest = MAX(d->largest, tokens[i]);
}

// Dies unless a model knows all tokens of the data called `name`, and one of its shards has T + 1 of them.
static void check_dataset(const Dataset *d, const char *name, int vocab_size, int T) {
    size_t longest = 0;
    for (int s = 0; s < d->num_shards; s++) longest = MAX(longest, d->shards[s].count);
    if (longest <= (size_t)T)
        die("no part of the %s has %d tokens; give a longer text%s", name, T + 1,
            T > 1 ? ", or shorter sequences" : "");
    if (d->largest >= vocab_size)
        die("the %s holds token %d, the model knows %d tokens; it is of another tokenizer", name, d->largest,
            vocab_size);
}

// llm.c's token file: 256 ints (magic 20240520, version 1, count), then the tokens as uint16.
static void dataset_add_shard(Dataset *d, const char *path) {
    size_t size;
    FILE *f = open_file(path, &size);
    if (size < 1024) die("%s is not a token file of llm.c: no header", path);
    int32_t *header = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fileno(f), 0);
    fclose(f);
    if (header == MAP_FAILED) die("cannot map %s: %s", path, strerror(errno));
    if (header[0] != 20240520 || header[1] != 1)
        die("%s is not a token file of llm.c (magic %d, version %d; 20240520 and 1 expected)", path,
            header[0], header[1]);
    if (header[2] < 0 || size != 1024 + 2 * (size_t)header[2])
        die("%s: the header promises %d tokens, the file has %zu bytes of them", path, header[2],
            size - 1024);
    dataset_add(d, (uint16_t *)(header + 256), (size_t)header[2]);
    d->files = 1;
}

static glob_t expand(const char *pattern) {
    glob_t g;
    if (glob(pattern, GLOB_NOCHECK, NULL, &g) || !file_exists(g.gl_pathv[0])) {
        if (!strcmp(pattern, DEFAULT_DATA))
            die("%s is missing; `make %s` writes it, or give a text with --data", pattern, pattern);
        die("no file matches %s; look for it, and quote a pattern", pattern);
    }
    return g;
}

static int is_shards(const char *pattern) {
    size_t n = strlen(pattern);
    return n >= 4 && !strcmp(pattern + n - 4, ".bin");
}

// All text files that match, one after the other, with `between` between them; NUL-terminated.
static char *read_texts(const char *pattern, const char *between, size_t *length) {
    glob_t g = expand(pattern);
    char *all = NULL;
    size_t n, gap = strlen(between);
    *length = 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        const char *path = g.gl_pathv[i];
        if (is_shards(path)) die("%s: %s is of tokens; a pattern of such files ends in .bin", pattern, path);
        char *text = read_file(path, &n);
        all = resize(all, *length + gap + n + 1);
        if (*length) memcpy(all + *length, between, gap), *length += gap;
        memcpy(all + *length, text, n + 1);
        *length += n;
        free(text);
    }
    if (*length == 0) die("%s is empty; give a text", pattern);
    globfree(&g);
    return all;
}

// Text or shards, whole, into d. `text` is the text if the caller has read it already.
static void dataset_load(Dataset *d, const char *pattern, const Tokenizer *tokenizer, const char *text,
                         size_t length) {
    if (is_shards(pattern)) {
        glob_t g = expand(pattern);
        for (size_t i = 0; i < g.gl_pathc; i++) dataset_add_shard(d, g.gl_pathv[i]);
        globfree(&g);
        return;
    }
    if (!tokenizer->vocab_size) die("%s is text, but there is no tokenizer: give --merges FILE", pattern);
    char *read = text ? NULL : read_texts(pattern, "", &length);
    size_t count;
    const uint16_t *tokens = tokenizer_encode(tokenizer, text ? text : read, length, pattern, &count);
    free(read);
    dataset_add(d, tokens, count);
    allocated_bytes += count * sizeof *tokens;
}

// Moves the last tenth of the tokens from train to val.
static void dataset_split(Dataset *train, Dataset *val) {
    Dataset all = *train;
    size_t left = dataset_tokens(&all) * 9 / 10;
    memset(train, 0, sizeof *train);
    train->files = val->files = all.files;
    for (int s = 0; s < all.num_shards; s++) {
        Shard shard = all.shards[s];
        size_t n = MIN(left, shard.count);
        if (n) dataset_add(train, shard.tokens, n);
        if (n < shard.count) dataset_add(val, shard.tokens + n, shard.count - n);
        left -= n;
    }
    free(all.shards);
}

// Dies if a token is larger than any was when the data was read: others may have written to the files.
static void check_tokens(const Dataset *d, const uint16_t *tokens, int n) {
    int largest = 0;
    for (int i = 0; i < n && d->files; i++) largest = MAX(largest, tokens[i]);
    if (largest > d->largest) die("the token shards have changed while they were read; put them back");
}

// Draws windows of T+1 tokens without replacement: an epoch starts at a random offset below T, cuts every
// shard into windows, and takes them in a random order across all shards. The state is two numbers.
typedef struct {
    const Dataset *data;
    int T;
    uint64_t seed;
    uint64_t epoch, index; // the next window is number `index` of the epoch's order
} DataLoader;

// Element i of a random permutation of 0..n-1 that takes no memory: a Feistel network permutes the next power
// of four, and numbers beyond n are sent through again (Black and Rogaway 2002, "cycle walking").
static uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
    int half = 1;
    while (half < 31 && (1ull << 2 * half) < n) half++;
    uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (random_u64(key + round, right) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

static uint64_t windows_of(size_t count, uint64_t offset, int T) {
    return count > offset ? (count - 1 - offset) / T : 0;
}

// The number of windows of this epoch, and its offset: 0 where texts have hardly more than one window. A
// shard must have more than T tokens (check_dataset).
static uint64_t epoch_windows(const DataLoader *l, uint64_t *offset) {
    for (*offset = random_u64(l->seed, l->epoch) % l->T;; *offset = 0) {
        uint64_t n = 0;
        for (int s = 0; s < l->data->num_shards; s++)
            n += windows_of(l->data->shards[s].count, *offset, l->T);
        if (n) return n;
    }
}

// Goes past windows that another worker takes.
static void loader_skip(DataLoader *l, uint64_t windows) {
    uint64_t offset, n;
    for (l->index += windows; l->index >= (n = epoch_windows(l, &offset)); l->epoch++) l->index -= n;
}

// x, y (B,T): tokens and the tokens after them.
static void loader_next(DataLoader *l, uint16_t *x, uint16_t *y, int B) {
    for (int b = 0; b < B; b++) {
        uint64_t offset, n = epoch_windows(l, &offset);
        uint64_t w = permute(l->index, n, random_u64(~l->seed, l->epoch));
        int s = 0;
        while (w >= windows_of(l->data->shards[s].count, offset, l->T))
            w -= windows_of(l->data->shards[s++].count, offset, l->T);
        const uint16_t *from = l->data->shards[s].tokens + offset + w * l->T;
        uint16_t *to[] = {x + (size_t)b * l->T, y + (size_t)b * l->T};
        for (int i = 0; i < 2; i++) {
            memcpy(to[i], from + i, l->T * sizeof *x);
            check_tokens(l->data, to[i], l->T);
        }
        if (++l->index == n) l->index = 0, l->epoch++;
    }
}

// The processes that train the model (chapter 10): which one this is, how many there are, and what each has
// sent to the others, on average.
static struct { int rank, count; double bytes_sent; } workers = {0, 1, 0};
static void sum_over_workers(double *x, int n);

// Mean loss, in nats a token, over the first max_tokens of the dataset (0: all) in windows of T that do not
// overlap; each shard's last window may be shorter. A shard must have two tokens (check_dataset). Workers
// take batches in turn; the sums are added in the batches' order.
static double evaluate(GPT2 *m, const Dataset *d, int T, size_t max_tokens) {
    double sum = 0;
    size_t count = 0;
    int batch = 0;
    if (max_tokens == 0) max_tokens = dataset_tokens(d);
    size_t batches = dataset_tokens(d) / (m->max_rows / T * T) + 3 * (size_t)d->num_shards; // at most
    double *sums = allocate(batches, sizeof(double));
    uint16_t *x = allocate((size_t)m->max_rows + 1, sizeof *x); // what is checked stays as it is
    for (int s = 0; s < d->num_shards && count < max_tokens; s++) {
        size_t n = MIN(d->shards[s].count, max_tokens - count + 1);
        for (size_t at = 0; at + 1 < n;) {
            int t = (int)MIN((size_t)T, n - 1 - at),
                b = t < T ? 1 : (int)MIN((size_t)(m->max_rows / T), (n - 1 - at) / T);
            const uint16_t *from = d->shards[s].tokens + at;
            at += (size_t)b * t;
            count += (size_t)b * t;
            if (batch++ % workers.count != workers.rank) continue;
            memcpy(x, from, (b * t + 1) * sizeof *x);
            check_tokens(d, x, b * t + 1);
            gpt2_forward(m, x, b, t);
            sums[batch - 1] = gpt2_loss(m, x + 1) * b * t;
        }
    }
    sum_over_workers(sums, batch);
    for (int i = 0; i < batch; i++) sum += sums[i];
    free(sums), free(x);
    return sum / (double)count;
}

// ===========================================================================================================
// 9  Teacher and proxy

// A hash of a model's shape and weights as they are kept, by which files name it.
static uint64_t model_hash(const GPT2 *m) {
    uint64_t hash = hash_bytes(0, &m->config, sizeof m->config);
    for (int i = 0; i < NUM_TENSORS; i++) {
        size_t n = tensor_size(tensor_shape(m->config, i));
        if (m->bf16[i]) hash = hash_bytes(hash, m->bf16[i], n * sizeof(uint16_t));
        else hash = hash_bytes(hash, ((float *const *)&m->params)[i], n * sizeof(float));
    }
    return hash;
}

/* --teacher-cache FILE: the teacher's loss on the batch of each step, so that its forward passes are needed
once for all runs over the same batches. Which batch a step sees depends on the data and on the order (the
DataLoader's); the file names both, and one that belongs to others is refused. It is a text, so that losses
can come from elsewhere, from an API, too:

       teacher losses 1
       teacher 8c9bf3a0d5e1f274    a hash of the teacher, or any name; compared only where --teacher is given
       data 52fdfc072182654f       a hash of the training tokens
       order seed 1337, seq-len 64, batch 12, accumulate 1
       # a remark
       1 4.1743872165679932        step 1, and the mean loss on its targets in nats per token

Lines of losses may stand in any order; of two for one step, the first counts. A line is added in one write as
soon as its loss is known: a run that is killed loses none, and several may begin one file and add to it. */
#define CACHE_TITLE "teacher losses 1\nteacher "
typedef struct {
    const char *path;
    char teacher[100]; // who gave the losses
    double *loss;      // (steps) NaN where not known; NULL without --teacher-cache
    FILE *file;        // to add to; NULL where nothing is missing, and for workers but the first
} TeacherCache;

// Takes a line of n bytes up to its end. Losses of steps beyond this run's are for other runs.
static void cache_line(TeacherCache *c, const char *line, size_t n, int steps) {
    char *gap, *end;
    if (line[0] == '#' || strspn(line, " \t\r") == n) return;
    double step = strtod(line, &gap), loss = strtod(gap, &end);
    int numbers = end > gap && step >= 1 && step == floor(step) && loss >= 0 && isfinite(loss);
    if (!numbers || end + strspn(end, " \t\r") != line + n)
        die("%s: '%s' is not a step and its loss in nats", c->path, printable(line, n).s);
    if (step <= steps && isnan(c->loss[(size_t)step - 1])) c->loss[(size_t)step - 1] = loss;
}

// Writes the windows of every step's batch as remarks `# step "text"`: T targets after one token of context.
// A window that begins or ends inside a character has U+FFFD for each byte of its rest there.
static void cache_request(FILE *f, const Tokenizer *t, DataLoader loader, long windows, int steps) {
    int T = loader.T, bytes;
    uint16_t *x = allocate(T, sizeof *x), *y = allocate(T, sizeof *y);
    char *text = NULL;
    for (long i = 0; i < windows * steps; i++) {
        size_t n = 0, length;
        loader_next(&loader, x, y, 1);
        for (int k = 0; k <= T; k++, n += length) {
            const char *token = tokenizer_token(t, k < T ? x[k] : y[T - 1], &length);
            text = resize(text, n + length);
            memcpy(text + n, token, length);
        }
        fprintf(f, "# %ld \"", i / windows + 1);
        for (char *p = text; p < text + n; p += bytes)
            if (utf8_decode(p, text + n, &bytes) < 0) fputs("\xEF\xBF\xBD", f);
            else write_symbols(f, TOKENIZER_CHARS, p, (size_t)bytes, 1);
        fputs("\"\n", f);
    }
    free(x), free(y), free(text);
}

// Begins the file: its first lines and, where no teacher is there to give its losses, each step's text.
static void cache_begin(const char *path, const char *teacher, const char *order, const DataLoader *l,
                        const Tokenizer *t, long windows, int steps) {
    if (!*teacher && !t->vocab_size) die("%s is not there; --teacher FILE|DIR makes it", path);
    Path own = path_in(path, ""); // where another run begins it meanwhile, the other's stays
    snprintf(own.s + strlen(path), sizeof own.s - strlen(path), ".%ld", (long)getpid());
    FILE *f = write_begin(own.s);
    fprintf(f, CACHE_TITLE "%s\n%s", *teacher ? teacher : "?", order);
    if (!*teacher) cache_request(f, t, *l, windows, steps);
    write_commit(f, own.s);
    int failed = link(own.s, path) && errno != EEXIST && rename(own.s, path);
    unlink(own.s);
    if (failed) write_failed(path);
    if (!*teacher) die("%s was not there; it has each step's text now: add lines `step loss`", path);
}

// Opens the file, or begins it, for `steps` steps of `accumulate` batches of B windows. Losses that it lacks
// will come from the teacher of the name `teacher`; where that is "", none may be missing.
static void cache_open(TeacherCache *c, const char *path, const char *teacher, const DataLoader *l,
                       const Tokenizer *t, int B, int accumulate, int steps) {
    char order[200], ours[400], *end;
    size_t n;
    int known = 0;
    snprintf(order, sizeof order, "data %016llx\norder seed %llu, seq-len %d, batch %d, accumulate %d\n",
             (unsigned long long)l->data->hash, (unsigned long long)l->seed, l->T, B, accumulate);
    if (!file_exists(path)) cache_begin(path, teacher, order, l, t, (long)B * accumulate, steps);
    char *text = read_file(path, &n);
    if (strncmp(text, CACHE_TITLE, strlen(CACHE_TITLE)))
        die("%s is not a list of a teacher's losses; name one, or a new file", path);
    const char *name = text + strlen(CACHE_TITLE);
    if (strcspn(name, "\n") >= sizeof c->teacher)
        die("%s: the teacher's name, in the second line, has more than %zu bytes", path,
            sizeof c->teacher - 1);
    snprintf(c->teacher, sizeof c->teacher, "%.*s", (int)strcspn(name, "\n"), name);
    snprintf(ours, sizeof ours, CACHE_TITLE "%s\n%s", *teacher ? teacher : c->teacher, order);
    if (strncmp(text, ours, strlen(ours))) {
        end = text;
        for (int line = 0; line < 4; line++) end += strcspn(end, "\n"), end += *end != 0;
        *end = 0;
        compare_identity(ours, text, path);
        die("%s ends after its first lines: it is cut short", path);
    }
    c->path = path;
    c->loss = allocate(steps + 1, sizeof(double));
    for (int i = 0; i < steps; i++) c->loss[i] = NAN;
    for (char *p = text + strlen(ours); p < text + n; p = end + 1) {
        end = memchr(p, '\n', (size_t)(text + n - p));
        if (!end) die("%s ends within a line: it is cut short; remove the line, or end it", path);
        cache_line(c, p, (size_t)(end - p), steps);
    }
    free(text);
    while (known < steps && !isnan(c->loss[known])) known++;
    if (known == steps) return;
    if (!*teacher)
        die("%s lacks the loss of step %d: add it (a new file gets the texts of all steps), or give the "
            "teacher of its second line", path, known + 1);
    c->file = fopen(path, "a");
    if (!c->file) die("cannot add to %s: %s", path, strerror(errno));
    signal(SIGXFSZ, SIG_IGN); // as in write_begin
}

static void cache_add(TeacherCache *c, long step, double loss) {
    fseeko(c->file, 0, SEEK_END);
    off_t size = ftello(c->file);
    c->loss[step] = loss;
    if (fprintf(c->file, "%ld %.17g\n", step + 1, loss) > 0 && !fflush(c->file)) return;
    int error = errno;
    if (ftruncate(fileno(c->file), size)) error = errno; // no half line stays
    die("cannot add to %s: %s; make room", c->path, strerror(error));
}

/* A student that begins as half of its teacher's layers, as DistilGPT-2 did (Sanh et al. 2019), or as another
number of them, evenly spaced: its layer l of N is the teacher's round(l (L-1)/(N-1)) of L, so the first and
the last are there. Embeddings and the last layer norm are the teacher's; the context may be shorter. */
static int layer_of_teacher(int l, int N, int L) {
    return N > 1 ? (2 * l * (L - 1) + N - 1) / (2 * (N - 1)) : 0;
}

static void start_from_layers(GPT2 *m, const GPT2 *teacher, int layers, int context) {
    GPT2Config g = teacher->config;
    int L = g.num_layers;
    g.num_layers = layers, g.max_seq_len = context;
    gpt2_allocate(m, g);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        size_t n = layer_size(t);
        for (int l = 0; l < MAX(t.layers, 1); l++) {
            const float *from = ((float **)&teacher->params)[i];
            if (t.layers) from += layer_of_teacher(l, layers, L) * n;
            memcpy(((float **)&m->params)[i] + l * n, from, n * sizeof(float));
        }
    }
}

/* A cheaper proxy for the objective (Woodworth, Mishchenko and Bach 2023, arXiv 2302.03542): with g_t the
gradient of a batch of the objective f at x_t, and h the proxy,

       x_{t+1} ~ argmin_x <g_t - grad h(x_t), x> + h(x) + |x - x_t|^2 / (2 eta),

by K steps of any optimizer on grad h(x) + c + (x - x_t)/eta, c = g_t - grad h(x_t), but for sps and iam,
which would need the loss at each x. The K batches of the proxy are drawn before, for grad h(x_t), and serve
the K steps again, so that their noise cancels as long as x is near x_t. That of g_t is in all K steps; what
takes it away is of Chayti and Karimireddy (2022, arXiv 2206.00395): c is averaged over the steps
(--proxy-average), and both its gradients are of one batch (--proxy-paired), where the proxy is the data with
other words or labels, token for token, and each of the K steps has a batch of its own. train_step, in chapter
12, takes them. */
typedef struct {
    Dataset data;
    DataLoader loader;
    float *x_t, *g_t, *correction; // (num_parameters): the point, the objective's gradient there, c
} Proxy;

// Dies unless both have the same number of shards, and each pair the same length.
static void check_pairs(const Dataset *proxy, const Dataset *data) {
    int same = proxy->num_shards == data->num_shards;
    for (int s = 0; same && s < data->num_shards; s++) same = proxy->shards[s].count == data->shards[s].count;
    if (!same)
        die("--proxy-paired: the proxy has %zu tokens in %d parts, the training data %zu in %d (with --val, "
            "all of --data); each part must be as long as its pair",
            dataset_tokens(proxy), proxy->num_shards, dataset_tokens(data), data->num_shards);
}

// ===========================================================================================================
// 10  Workers: processes that train one model together, by MPI: mpirun -n N ./train_gpt2_mpi --workers ...
//
//    data    they share a step's micro-batches and add up the gradients: the same result, to the last bit,
//            for any N, and without MPI.
//    diloco  each takes steps of its own on its share of the micro-batches; after --inner-steps of them, the
//            mean of all pseudo-gradients x_outer - x is the gradient of one outer step (Douillard et al.
//            2023, arXiv 2311.08105; the step is optim.h's).
//
// Only worker 0 prints and writes. All hold the same x, or x_outer, and compute alike whatever decides.

/* The gradients of a step's n micro-batches are added in one tree, whoever computes them. Neighbouring sums
of as many micro-batches are joined as soon as both are there, if they begin at a multiple of twice that
number; at the end the rest is joined from right to left:

       0   1   2   3   4   5   6
       +---+   +---+   +---+   |        sums of 2
       +-------+       +-------+        of 4, and the rest
       +---------------+

A worker computes n/N neighbours and joins what it can of them. What is left travels: one sum where n/N is a
power of two, a few where it is not. Sums that wait take memory: log2(n/N) gradients, or a few more. */
typedef struct GradientSum {
    GPT2 *model;
    float *sums[64]; // (num_parameters) each: those that wait, then the one that is computed now
    int waiting;     // how many wait
    int joins;       // that follow the micro-batch that is computed now
    int travels;     // 1: after it, what is left goes to the other workers
} GradientSum;

// Joins that the sum of the `size` micro-batches before `end` allows, among sums from `first` on. For 8, 1, 0
// there are three: 6 with 7, 4-5 with 6-7, and 0-3 with 4-7.
static int joins_after(long end, long size, long first) {
    int joins = 0;
    for (; end % (2 * size) == 0 && end - 2 * size >= first; size *= 2) joins++;
    return joins;
}

// Before micro-batch i of those of this worker, first .. end-1: where its gradient goes, and what follows.
static void begin_micro_batch(GradientSum *s, long i, long first, long end, int exchange) {
    GPT2 *m = s->model;
    if (i > first) s->waiting += 1 - s->joins;
    else s->waiting = 0, s->sums[0] = m->grads_memory;
    s->travels = exchange && i + 1 == end;
    s->joins = !exchange && i + 1 == end ? s->waiting : joins_after(i + 1, 1, first);
    m->grads = point_parameters(s->sums[s->waiting], m->config);
}

static const char *frozen_tensors = ""; // --freeze: nothing is added up or sent for them

// Tensor i's floats in layer l, or, with l = L, outside of all layers; 0 if it has none there, or is frozen.
// *at: where in the flat array.
static size_t layer_tensor(GPT2Config g, int l, int i, size_t *at) {
    TensorShape t = tensor_shape(g, i);
    *at = t.layers ? l * layer_size(t) : 0;
    for (int j = 0; j < i; j++) *at += tensor_size(tensor_shape(g, j));
    if (*frozen_tensors && tensor_matches(frozen_tensors, g, i, l)) return 0;
    return (t.layers > 0) == (l < g.num_layers) ? layer_size(t) : 0;
}

static void send_layer(const GradientSum *s, int l);
static void receive_layers(int wait);

static void add_floats(float *x, const float *y, size_t n) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

// Called by layers_backward: joins a layer's sums, and sends them while the layers below are computed.
static void layer_done(const GradientSum *s, int l) {
    size_t n, at;
    for (int i = 0; i < NUM_TENSORS && s->joins; i++) {
        n = layer_tensor(s->model->config, l, i, &at);
        for (int k = s->waiting; k > s->waiting - s->joins; k--)
            add_floats(s->sums[k - 1] + at, s->sums[k] + at, n);
    }
    if (s->travels) send_layer(s, l);
    receive_layers(0);
}

// Room for what waits while micro-batches first .. end-1 are added.
static void allocate_sums(GradientSum *s, GPT2 *m, long first, long end) {
    s->model = m, m->sum = s;
    for (long i = first, waiting = 0; i < end; i++) {
        if (waiting && !s->sums[waiting]) s->sums[waiting] = allocate_floats(m->num_parameters);
        waiting += 1 - joins_after(i + 1, 1, first);
    }
}

#ifdef USE_MPI
/* A layer travels in two messages. Everybody sends everybody else a slice of its sums (MPI's alltoall), adds
up its own slice, which continues the tree, and sends the total to all (allgather): a worker sends 2 (N-1)/N
times the layer, which is the least possible. MPI works on them while the layers below are computed; as each
of these is done, receive_layers looks what has come. Alltoalls and allgathers have a communicator each,
because on one of them all workers must begin everything in the same order.

Pseudo-gradients can travel as bfloat16, or as int8 with a scale for every 256. What a worker's slices lose by
that, or the totals, is added to the next ones (error feedback). */
#define SCALED 256
typedef struct {
    size_t slice;                  // floats of the layer that one worker adds up
    int bytes;                     // of them as they travel
    float *out;                    // (sums,N,slice) this worker's sums; later (N,slice) everybody's totals
    float *in;                     // (all_sums,slice) everybody's sums of this worker's slice, in order
    char *out_bytes, *in_bytes;    // as they travel; the same memory where that is float
    float *out_error, *in_error;   // (N,slice), (slice): what the last ones lost; NULL where they are float
    MPI_Datatype one, all;         // a slice of one sum, and of all that this worker has
    MPI_Request sums, total;
} LayerMessage;

static struct {
    GPT2 *model;
    const Optimizer *optimizer;    // diloco's
    LayerMessage *layers;          // (L+1), in the order in which they travel
    int sent, added, done;         // so many of them are, in this step
    int width;                     // bytes of a number that travels: 4, 2 or 1
    int sums, all_sums, *joins;    // this worker's, everybody's; (all_sums): the joins that follow each
    int *counts, *from;            // (N): everybody's sums; those of the workers before
    int *ones, *ranks;             // (N): 1, 1, ..; 0, 1, ..
    MPI_Comm for_sums, for_totals;
} mpi;

#define LAST_WORDS 1 // a message to worker 0: another worker asks to print why it ends; and its answer, yes

// When a process ends. MPI_Abort ends all. An error that all have in common is worker 0's to print: another
// asks it first, is ended with all if worker 0 ends too, and prints when it says yes (arrived) or nothing.
static void leave(void) {
    if (exit_code == 0) MPI_Finalize();
    else {
        signal(SIGTERM, SIG_DFL);
        if (workers.rank) {
            MPI_Request yes;
            int said = 0;
            MPI_Send(NULL, 0, MPI_BYTE, 0, LAST_WORDS, MPI_COMM_WORLD);
            MPI_Irecv(NULL, 0, MPI_BYTE, 0, LAST_WORDS, MPI_COMM_WORLD, &yes);
            for (double asked = now(); !said && now() - asked < 10; usleep(1000))
                MPI_Test(&yes, &said, MPI_STATUS_IGNORE);
        }
        fflush(stderr);
        if (!interrupted) MPI_Abort(MPI_COMM_WORLD, exit_code); // else mpirun has ended all
    }
}

static void start_workers(int *argc, char ***argv) {
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &workers.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &workers.count);
    atexit(leave);
    if (workers.rank == 0) return;
    if (!freopen("/dev/null", "w", stdout)) die("cannot open /dev/null");
    setvbuf(stderr, NULL, _IOFBF, 1 << 14); // for leave to print
}

// Whether a message has come; if it is waited for, it has. Of workers that end meanwhile, worker 0 lets the
// first print why, half a second later: what is on the way may show worker 0 the same error. When one dies,
// mpirun asks the others to stop (SIGTERM) and kills them a second later: if it died in silence, worker 0 has
// this long to say so. Where they were only asked to stop, they end after their step (diloco's where they
// meet), and save, if that comes within this second.
static int arrived(MPI_Request *request, int wait) {
    static int asked, answered, said;
    static MPI_Status by;
    double since = now(), stopped = 0;
    for (int flag = 0;;) {
        MPI_Test(request, &flag, MPI_STATUS_IGNORE);
        if (flag || !wait) return flag;
        if (!workers.rank && !asked) {
            MPI_Iprobe(MPI_ANY_SOURCE, LAST_WORDS, MPI_COMM_WORLD, &asked, &by);
            since = now();
        } else if (asked && !answered && now() - since > 0.5) {
            MPI_Send(NULL, 0, MPI_BYTE, by.MPI_SOURCE, LAST_WORDS, MPI_COMM_WORLD);
            answered = 1;
        }
        if (interrupted && !stopped) stopped = now();
        if (stopped && now() - stopped > 0.6 && !workers.rank && !asked && !said) {
            fprintf(stderr, "error: a worker died, or was asked to stop and is late; --resume goes on from "
                            "the last checkpoint\n");
            said = 1;
        }
        sched_yield();
    }
}

static void connect_workers(MPI_Comm *all) {
    MPI_Request request;
    MPI_Comm_idup(MPI_COMM_WORLD, all, &request);
    arrived(&request, 1);
}

// x (n) = its sum over the workers: exact, whatever the order, where one of them at most has another number
// than 0.
static void sum_over_workers(double *x, int n) {
    MPI_Request request;
    if (workers.count == 1) return;
    MPI_Iallreduce(MPI_IN_PLACE, x, n, MPI_DOUBLE, MPI_SUM, mpi.for_sums, &request);
    arrived(&request, 1);
    workers.bytes_sent += 2.0 * (workers.count - 1) / workers.count * n * sizeof *x;
}

static void copy_from_worker_0(void *p, size_t bytes) {
    MPI_Request request;
    for (size_t n; workers.count > 1 && bytes; p = (char *)p + n, bytes -= n) {
        n = MIN(bytes, 1 << 30);
        MPI_Ibcast(p, (int)n, MPI_BYTE, 0, mpi.for_sums, &request);
        arrived(&request, 1);
    }
}

// Makes ready for the sums of n micro-batches' gradients, or of each worker's pseudo-gradient, n = N. They
// travel as numbers of `width` bytes.
static void prepare_workers(GPT2 *m, const Optimizer *optimizer, int n, int width) {
    int N = workers.count, L = m->config.num_layers, waiting = 0;
    mpi.model = m, mpi.optimizer = optimizer, mpi.width = width;
    if (N == 1) return;
    connect_workers(&mpi.for_sums), connect_workers(&mpi.for_totals);
    mpi.joins = allocate(n, sizeof(int));
    mpi.counts = allocate(N, sizeof(int)), mpi.from = allocate(N, sizeof(int));
    mpi.ones = allocate(N, sizeof(int)), mpi.ranks = allocate(N, sizeof(int));
    for (int r = 0; r < N; r++) {
        mpi.ones[r] = 1, mpi.ranks[r] = r, mpi.from[r] = mpi.all_sums;
        for (long i = (long)r * n / N, end = (long)(r + 1) * n / N, size; i < end; i += size) {
            for (size = 1; i % (2 * size) == 0 && i + 2 * size <= end;) size *= 2;
            int joins = i + size == n ? waiting : joins_after(i + size, size, 0);
            waiting += 1 - joins;
            mpi.joins[mpi.all_sums++] = joins;
        }
        mpi.counts[r] = mpi.all_sums - mpi.from[r];
    }
    mpi.sums = mpi.counts[workers.rank];
    mpi.layers = allocate(L + 1, sizeof(LayerMessage));
    for (int l = 0; l <= L; l++) {
        LayerMessage *layer = &mpi.layers[l < L ? L - 1 - l : L];
        size_t at, floats = 0, unit = width == 1 ? SCALED : 16;
        for (int i = 0; i < NUM_TENSORS; i++) floats += layer_tensor(m->config, l, i, &at);
        size_t slice = (floats + N * unit - 1) / (N * unit) * unit,
               bytes = slice * width + (width == 1 ? slice / SCALED * sizeof(float) : 0);
        if (bytes > INT_MAX) die("%zu parameters do not fit one message; use more workers", slice);
        layer->slice = slice, layer->bytes = (int)bytes;
        layer->out = allocate_floats(mpi.sums * N * slice), layer->in = allocate_floats(mpi.all_sums * slice);
        layer->out_bytes = (char *)layer->out, layer->in_bytes = (char *)layer->in;
        if (width < 4) {
            layer->out_bytes = allocate(N, bytes), layer->in_bytes = allocate(N, bytes);
            layer->out_error = allocate_floats(N * slice), layer->in_error = allocate_floats(slice);
        }
        MPI_Datatype column; // in (sums,N,slice)
        MPI_Type_contiguous(layer->bytes, MPI_BYTE, &layer->one);
        MPI_Type_vector(mpi.sums, 1, N, layer->one, &column);
        MPI_Type_create_resized(column, 0, layer->bytes, &layer->all);
        MPI_Type_commit(&layer->one), MPI_Type_commit(&layer->all);
    }
}

// bytes = n numbers as they travel: bfloat16, rounded to the nearest; or int8, and then the scales.
static void compress(char *bytes, const float *x, size_t n) {
    uint16_t *halves = (uint16_t *)bytes;
    int8_t *quarters = (int8_t *)bytes;
    float *scales = (float *)(bytes + n);
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < (mpi.width == 2 ? n : 0); i++) halves[i] = bf16_of(x[i]);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (mpi.width == 1 ? n : 0); i += SCALED) {
        float largest = 0;
        for (size_t j = i; j < i + SCALED; j++) largest = MAX(largest, fabsf(x[j]));
        float inverse = largest > 1e-30f ? 127 / largest : 0;
        scales[i / SCALED] = largest / 127;
        for (size_t j = i; j < i + SCALED; j++) quarters[j] = (int8_t)rintf(x[j] * inverse);
    }
}

static void decompress(float *x, const char *bytes, size_t n) {
    const uint16_t *halves = (const uint16_t *)bytes;
    const int8_t *quarters = (const int8_t *)bytes;
    const float *scales = (const float *)(bytes + n);
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++)
        if (mpi.width == 2) widen(x + i, halves + i, 1);
        else x[i] = quarters[i] * scales[i / SCALED];
}

// Compresses x (n) with what was lost the last time, and keeps what is lost now.
static void compress_with_feedback(char *bytes, float *x, float *error, size_t n) {
    add_floats(x, error, n);
    compress(bytes, x, n);
    decompress(error, bytes, n);
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) error[i] = x[i] - error[i];
}

// Sends this worker's sums of layer l. All workers do this for all layers in the same order.
static void send_layer(const GradientSum *s, int l) {
    LayerMessage *layer = &mpi.layers[mpi.sent++];
    int N = workers.count;
    for (int k = 0; k < mpi.sums; k++) {
        float *out = layer->out + k * N * layer->slice;
        for (int i = 0; i < NUM_TENSORS; i++) {
            size_t at, n = layer_tensor(s->model->config, l, i, &at);
            memcpy(out, s->sums[k] + at, n * sizeof(float));
            out += n;
        }
    }
    for (int r = 0; r < N && mpi.width < 4; r++)
        compress_with_feedback(layer->out_bytes + (size_t)r * layer->bytes, layer->out + r * layer->slice,
                             layer->out_error + r * layer->slice, layer->slice);
    MPI_Ialltoallv(layer->out_bytes, mpi.ones, mpi.ranks, layer->all, layer->in_bytes, mpi.counts, mpi.from,
                   layer->one, mpi.for_sums, &layer->sums);
    workers.bytes_sent += (double)(N - 1) / N * (mpi.all_sums + N) * layer->bytes; // the mean worker's
}

// Adds up everybody's sums of this worker's slice, and sends the total.
static void add_slice(LayerMessage *layer) {
    size_t n = layer->slice;
    float *stack[64];
    int waiting = 0;
    for (int k = 0; k < mpi.all_sums; k++) {
        float *sum = stack[waiting] = layer->in + k * n;
        if (mpi.width < 4) decompress(sum, layer->in_bytes + (size_t)k * layer->bytes, n);
        for (int j = 0; j < mpi.joins[k]; j++) {
            waiting--;
            add_floats(stack[waiting], stack[waiting + 1], n);
        }
        waiting++;
    }
    if (mpi.width < 4) compress_with_feedback(layer->in_bytes, layer->in, layer->in_error, n);
    MPI_Iallgather(layer->in_bytes, 1, layer->one, layer->out_bytes, 1, layer->one, mpi.for_totals,
                   &layer->total);
}

// Goes on with what has come, or waits for it, until the totals of all layers sent are in grads_memory.
static void receive_layers(int wait) {
    GPT2 *m = mpi.model;
    int L = m->config.num_layers, N = workers.count;
    for (; mpi.added < mpi.sent && arrived(&mpi.layers[mpi.added].sums, wait); mpi.added++)
        add_slice(&mpi.layers[mpi.added]);
    for (; mpi.done < mpi.added && arrived(&mpi.layers[mpi.done].total, wait); mpi.done++) {
        LayerMessage *layer = &mpi.layers[mpi.done];
        const float *total = layer->out;
        if (mpi.width < 4)
            for (int r = 0; r < N; r++)
                decompress(layer->out + r * layer->slice, layer->out_bytes + (size_t)r * layer->bytes,
                       layer->slice);
        for (int i = 0; i < NUM_TENSORS; i++) {
            size_t at, n = layer_tensor(m->config, mpi.done < L ? L - 1 - mpi.done : L, i, &at);
            memcpy(m->grads_memory + at, total, n * sizeof(float));
            total += n;
        }
    }
    if (wait) mpi.sent = mpi.added = mpi.done = 0;
}

// DiLoCo's x = the mean of x over the workers. The gradient's memory is free by then.
static void diloco_average(float *x, size_t n) {
    if (workers.count == 1) return;
    GPT2 *m = mpi.model;
    int L = m->config.num_layers;
    const float *x_outer = mpi.optimizer->x_outer;
    GradientSum s = {.model = m, .sums = {m->grads_memory}};
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) m->grads_memory[i] = x_outer[i] - x[i];
    for (int l = L - 1; l >= 0; l--) send_layer(&s, l);
    send_layer(&s, L);
    receive_layers(1);
    for (int l = 0; l <= L; l++)
        for (int i = 0; i < NUM_TENSORS; i++) {
            size_t at, size = layer_tensor(m->config, l, i, &at);
#pragma omp parallel for simd schedule(static)
            for (size_t j = at; j < at + size; j++)
                x[j] = x_outer[j] - m->grads_memory[j] / (float)workers.count;
        }
}
#else // one process
static void start_workers(int *argc, char ***argv) { (void)argc, (void)argv; }
static void prepare_workers(GPT2 *m, const Optimizer *optimizer, int n, int width) {
    (void)m, (void)optimizer, (void)n, (void)width;
}
static void sum_over_workers(double *x, int n) { (void)x, (void)n; }
static void copy_from_worker_0(void *p, size_t bytes) { (void)p, (void)bytes; }
static void send_layer(const GradientSum *s, int l) { (void)s, (void)l; }
static void receive_layers(int wait) { (void)wait; }
static void diloco_average(float *x, size_t n) { (void)x, (void)n; }
#endif

#ifdef GPT2_DEVICE // its own for GradientSum's functions, prepare_workers, receive_layers and diloco_average
#define GPT2_DEVICE_WORKERS
#include GPT2_DEVICE
#endif

// ===========================================================================================================
// 11  Command line

typedef struct {
    const char *data, *val, *tokenizer, *merges, *model;
    int layers, heads, channels, context, seq_len, batch, accumulate, steps, seed;
    double init_std;
    const char *optimizer, *base, *schedule, *grad_norm;
    int warmup;
    double final_lr, clip;
    const char *student_from, *freeze;
    const char *teacher, *teacher_weights, *distill, *teacher_cache;
    double temperature, soft_weight;
    const char *proxy;
    int proxy_steps, proxy_paired;
    double proxy_average, proxy_eta;
    const char *workers, *compression;
    int diloco; // --workers diloco
    int eval_every, eval_tokens, sample_every, save_every, resume, f32;
    const char *out, *export_hf;
    uint64_t given; // bit i: the command line has option_rows[i]
    int num_hyper;  // the optimizer's own options, as given
    const char *hyper_name[64];
    double hyper_value[64];
} Options;

typedef struct {
    const char *name;
    char type; // i integer, d number, s text, c one of the texts in argument, f flag
    size_t field;
    const char *initial;
    double low, high;
    int marks; // bits: 1, a resumed run must have the same (train_gpt2); decode_ppd.c has bits of its own
    const char *argument, *help;
} OptionRow;

#define FIELD(name) offsetof(Options, name)
static const OptionRow option_rows[] = {
    {"data", 's', FIELD(data), DEFAULT_DATA, 0, 0, 0, "FILE|GLOB", "text, or llm.c token shards (*.bin)"},
    {"val", 's', FIELD(val), "", 0, 0, 0, "FILE|GLOB",
        "validation data; without it, the last tenth of --data"},
    {"tokenizer", 'c', FIELD(tokenizer), "", 0, 0, 1, "bytes|chars|gpt2",
        "default: that of the model or teacher; gpt2 with --merges; or chars"},
    {"merges", 's', FIELD(merges), "", 0, 0, 0, "FILE",
        "GPT-2's vocab.bpe or merges.txt, for --tokenizer gpt2"},
    {"model", 's', FIELD(model), "", 0, 0, 1, "FILE|DIR",
        "start from this model: .bin, Hugging Face folder, run"},
    {"student-from", 's', FIELD(student_from), "", 0, 0, 1, "FILE|DIR",
        "start from half of this model's layers, or --layers of them, evenly spaced"},
    {"freeze", 's', FIELD(freeze), "", 0, 0, 1, "PATTERN,..",
        "tensors that stay as they are: 'wte,wpe,h.0.*'"},
    {"layers", 'i', FIELD(layers), "4", 1, 1000, 1, "L", "layers of a new model"},
    {"heads", 'i', FIELD(heads), "4", 1, 1000, 1, "NH", "attention heads"},
    {"channels", 'i', FIELD(channels), "128", 1, 65536, 1, "C", "width"},
    {"context", 'i', FIELD(context), "64", 1, 1 << 20, 1, "T", "longest sequence of a new model"},
    {"init-std", 'd', FIELD(init_std), "0.02", 1e-6, 10, 1, "X", "deviation of a new model's weights"},
    {"seq-len", 'i', FIELD(seq_len), "0", 0, 1 << 20, 1, "T",
        "tokens of a training sequence (0: the context)"},
    {"batch", 'i', FIELD(batch), "12", 1, 1 << 20, 1, "B", "sequences of a micro-batch"},
    {"accumulate", 'i', FIELD(accumulate), "1", 1, 1 << 20, 1, "N",
        "micro-batches of a step; takes the memory of log2(N) gradients"},
    {"steps", 'i', FIELD(steps), "2000", 0, 1e9, 1, "N",
        "optimizer steps (with --proxy gradients of --data); 0: evaluate, save and export"},
    {"seed", 'i', FIELD(seed), "1337", 0, 1e9, 1, "N", "of initialisation, batches and samples"},
    {"optimizer", 's', FIELD(optimizer), "adamw", 0, 0, 1, "NAME", "see --help NAME for its own options"},
    {"base", 'c', FIELD(base), "", 0, 0, 1, "adamw|sgd|muon",
        "what gpa, diloco (adamw) and iam (sgd) are built on"},
    {"schedule", 's', FIELD(schedule), "cosine", 0, 0, 1, "NAME",
        "constant, cosine, linear, wsd, refined:RUN/log.csv; gpa: linear to 0.1; schedule-free: constant"},
    {"warmup", 'i', FIELD(warmup), "-1", -1, 1e9, 1, "N",
        "steps of linear warmup (-1: --steps/20, gpa: --steps/5)"},
    {"final-lr", 'd', FIELD(final_lr), "0", 0, 1, 1, "FRACTION",
        "of the rate at the end of the schedule (gpa without --schedule: 0.1)"},
    {"grad-norm", 'c', FIELD(grad_norm), "l2", 0, 0, 1, "l1|l2",
        "in log.csv; for refined schedules Adam's kind wants l1"},
    {"clip", 'd', FIELD(clip), "1", 0, 1e30, 1, "X",
        "largest gradient norm; 0: none; never with Polyak steps"},
    {"teacher", 's', FIELD(teacher), "", 0, 0, 0, "FILE|DIR", "distil from this model"},
    {"teacher-weights", 'c', FIELD(teacher_weights), "f32", 0, 0, 0, "f32|bf16", "bf16: half the memory"},
    {"teacher-cache", 's', FIELD(teacher_cache), "", 0, 0, 0, "FILE",
        "its losses: read, and added to where some are missing"},
    {"distill", 'c', FIELD(distill), "loss", 0, 0, 1, "loss|soft",
        "read only its loss (sps, iam), or its probabilities"},
    {"temperature", 'd', FIELD(temperature), "2", 1e-3, 1e3, 1, "X", "of soft labels"},
    {"soft-weight", 'd', FIELD(soft_weight), "0.5", 0, 1, 1, "X", "of soft labels against the text's"},
    {"proxy", 's', FIELD(proxy), "", 0, 0, 1, "FILE|GLOB",
        "cheaper data: most steps are taken on it (arXiv 2302.03542)"},
    {"proxy-steps", 'i', FIELD(proxy_steps), "4", 1, 1e6, 1, "K",
        "optimizer steps on it for each gradient of --data"},
    {"proxy-paired", 'f', FIELD(proxy_paired), "0", 0, 0, 1, "",
        "its token i stands for the data's token i: less noise (train_gpt2.c, chapter 9)"},
    {"proxy-average", 'd', FIELD(proxy_average), "0", 0, 0.9999, 1, "X",
        "keep so much of the last correction: less noise, more lag"},
    {"proxy-eta", 'd', FIELD(proxy_eta), "0", 0, 1e9, 1, "X", "pull back to x_t by (x - x_t)/eta; 0: none"},
    {"workers", 'c', FIELD(workers), "", 0, 0, 0, "data|diloco",
        "mpirun's processes share a step's micro-batches, or meet every --inner-steps"},
    {"compression", 'c', FIELD(compression), "none", 0, 0, 0, "none|bf16|int8",
        "of diloco's pseudo-gradients where they travel; error feedback"},
    {"eval-every", 'i', FIELD(eval_every), "250", 0, 1e9, 0, "N",
        "steps between validations (0: at the end)"},
    {"eval-tokens", 'i', FIELD(eval_tokens), "0", 0, 2e9, 0, "N", "tokens of a validation (0: all)"},
    {"sample-every", 'i', FIELD(sample_every), "0", 0, 1e9, 0, "N",
        "steps between samples of text (0: none)"},
    {"save-every", 'i', FIELD(save_every), "0", 0, 1e9, 0, "N", "steps between checkpoints (0: at the end)"},
    {"out", 's', FIELD(out), "", 0, 0, 0, "DIR", "log.csv, model.bin, tokenizer and state.bin go here"},
    {"resume", 'f', FIELD(resume), "0", 0, 0, 0, "", "go on from the checkpoint in --out"},
    {"f32", 'f', FIELD(f32), "0", 0, 0, 0, "", "float32 throughout, on a GPU too"},
    {"export-hf", 's', FIELD(export_hf), "", 0, 0, 0, "DIR", "write a Hugging Face folder at the end"},
};
#define NUM_OPTIONS ((int)(sizeof option_rows / sizeof *option_rows))

static double parse_number(const char *name, const char *text, int integer) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || (integer && x != floor(x)))
        die_usage("--%s takes %s, not '%s'", name, integer ? "a whole number" : "a number", text);
    return x;
}

// Which name of a list "a|b|c" this is, counted from 0. Dies if it is none.
static int choice(const char *option, const char *name, const char *list) {
    size_t n;
    int index = 0;
    for (const char *p = list; *p; p += n + (p[n] == '|'), index++)
        if ((n = strcspn(p, "|")) == strlen(name) && !strncmp(p, name, n)) return index;
    die_usage("--%s takes one of %s, not '%s'", option, list, name);
}

static void set_option(void *options, const OptionRow *row, const char *text) {
    void *field = (char *)options + row->field;
    if (row->type == 'c' && text != row->initial) choice(row->name, text, row->argument);
    if (row->type == 's' || row->type == 'c') {
        *(const char **)field = text;
        return;
    }
    double x = parse_number(row->name, text, row->type != 'd');
    if (row->type != 'f' && (x < row->low || x > row->high))
        die_usage("--%s %s is not between %.10g and %.10g", row->name, text, row->low, row->high);
    if (row->type == 'd') *(double *)field = x;
    else *(int *)field = (int)x;
}

static void print_option(const OptionRow *r) {
    char left[64];
    int shown = *r->initial && r->type != 'f';
    snprintf(left, sizeof left, "--%s %s", r->name, r->argument);
    printf("  %-30s %s%s%s%s\n", left, r->help, shown ? " [" : "", shown ? r->initial : "", shown ? "]" : "");
}

// NAME: an optimizer's maths and options; NULL: everything.
static void print_help(const char *name) {
    Optimizer optimizer;
    if (name && strncmp(name, "--", 2)) {
        if (optim_init(&optimizer, name)) die_usage("no optimizer is called '%s'; see --help", name);
        optim_print_help(stdout, name);
        return;
    }
    printf("train_gpt2: trains a GPT-2 on text.\n\n"
           "  ./train_gpt2 --data text.txt --out runs/a          trains the default small model\n"
           "  ./train_gpt2 --data text.txt --teacher runs/a --optimizer iam --base muon --out runs/b\n"
           "  ./train_gpt2 --help NAME                           an optimizer's maths and options\n\n");
    for (int i = 0; i < NUM_OPTIONS; i++) print_option(&option_rows[i]);
    printf("\n");
    optim_print_help(stdout, NULL);
}

// optim_init and optim_set_base by name, or dies. GPA's average reaches over 1/(1 - mu_x) updates: a
// fifteenth of the run, 16 at least; other optimizers have no mu-x.
static void choose_optimizer(Optimizer *optimizer, const char *name, const char *base, double updates) {
    if (optim_init(optimizer, name)) die_usage("no optimizer is called '%s'; see --help", name);
    if (*base && optim_set_base(optimizer, base)) die_usage("--base %s does not go with %s", base, name);
    optim_set(optimizer, "mu-x", 1 - 15.0 / MAX(updates, 16));
}

static void set_hyperparameters(Optimizer *optimizer, int n, const char *const *names, const double *values) {
    const char *of = optimizer->row->name;
    for (int i = 0; i < n; i++) {
        int wrong = optim_set(optimizer, names[i], values[i]);
        if (wrong == -1)
            die_usage("--%s is no option, nor one of %s; see --help and --help %s", names[i], of, of);
        if (wrong == -2) die_usage("--%s %g is out of range; see --help %s", names[i], values[i], of);
    }
    if (optim_get(optimizer, "box-low") > optim_get(optimizer, "box-high"))
        die_usage("--box-low is above --box-high");
}

// The number of the row with this name, or n.
static int find_row(const OptionRow *rows, int n, const char *name) {
    int row = 0;
    while (row < n && strcmp(rows[row].name, name)) row++;
    return row;
}

// Goes through a command line: options that stand in a table of n rows are set; others, which are the
// optimizer's or mistakes, are left in rest->hyper_name. help(ARGUMENT or NULL) is what --help prints.
// Returns a set of bits: the rows that were given.
static uint64_t read_options(void *options, const OptionRow *rows, int n, int argc, char **argv,
                             Options *rest, void (*help)(const char *)) {
    uint64_t given = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2)) die_usage("unexpected argument '%s'; see --help", argv[i]);
        const char *name = argv[i] + 2, *value = argv[i + 1];
        if (!strcmp(name, "help")) help(value), check_printed(), exit(0);
        int row = find_row(rows, n, name), flag = row < n && rows[row].type == 'f';
        if (row == n && strchr(name, '=')) die_usage("--%s: a value stands behind a space, not a =", name);
        if (!flag && (!value || !strcmp(value, "--help") ||
                      (!strncmp(value, "--", 2) && find_row(rows, n, value + 2) < n)))
            die_usage("--%s needs a value%s; see --help", name, row < n ? "" : ", or is no option");
        if (row < n && rows[row].type == 's' && !*value)
            die_usage("--%s is empty; give a value, or leave it out", name);
        if (row < n) set_option(options, &rows[row], flag ? "1" : value), given |= 1ull << row;
        else if (rest->num_hyper == 64) die_usage("too many options");
        else {
            rest->hyper_name[rest->num_hyper] = name;
            char *end; // the range, in which inf may be, is for optim_set
            rest->hyper_value[rest->num_hyper++] = strtod(value, &end);
            int key = 0;
            while (key < OPTIM_COUNT(optim_keys) && strcmp(optim_keys[key].name, name)) key++;
            if (end == value || *end)
                die_usage(key < OPTIM_COUNT(optim_keys) ? "--%s takes a number, not '%s'"
                                                        : "--%s %s is no option, or no number; see --help",
                          name, value);
        }
        i += !flag;
    }
    return given;
}

// Whether the command line itself has an option, which then is no default.
static int is_given(const Options *o, const char *name) {
    return o->given >> find_row(option_rows, NUM_OPTIONS, name) & 1;
}

// Dies where options contradict each other, or one says what another leaves no room for.
static void check_options(const Options *o, const Optimizer *optimizer) {
    int hard = strcmp(o->distill, "soft"), refined = !strncmp(o->schedule, "refined:", 8), N = workers.count;
    double cap = optim_get(optimizer, "lr-cap"); // -1 until optim_start finds one
    int rateless = isnan(optim_get(optimizer, "lr")) && (isnan(cap) || cap == 0);
    if (isnan(optim_schedule(o->schedule, 0, 1, 0, 0)) && !refined)
        die_usage("no schedule is called '%s'; see --help", o->schedule);
    if (*o->model && *o->student_from)
        die_usage("--model and --student-from both say where the student starts; give one");
    if (*o->teacher_cache && !hard)
        die_usage("--distill soft needs the teacher's probabilities; --teacher-cache has only its losses");
    if (strcmp(o->compression, "none") && !o->diloco)
        die_usage("--compression goes with --workers diloco");
    if (o->diloco && strcmp(o->optimizer, "diloco"))
        die_usage("--workers diloco is an optimizer; --base chooses what takes its inner steps");
    if (*o->proxy && optim_is_polyak(optimizer))
        die_usage("--proxy does not go with %s, whose steps need the loss at each gradient", o->optimizer);
    if (!*o->teacher && !*o->teacher_cache && optim_is_polyak(optimizer))
        die_usage("%s needs --teacher or --teacher-cache: its step is of a teacher's loss", o->optimizer);
    if (!*o->teacher && !hard) die_usage("--distill soft needs --teacher");
    const struct { const char *name; int idle; const char *why; } given[] = {
        {"proxy-steps", !*o->proxy, "goes with --proxy FILE"},
        {"proxy-eta", !*o->proxy, "goes with --proxy FILE"},
        {"proxy-average", !*o->proxy, "goes with --proxy FILE"},
        {"proxy-paired", !*o->proxy, "goes with --proxy FILE"},
        {"temperature", hard, "goes with --distill soft"},
        {"soft-weight", hard, "goes with --distill soft"},
        {"teacher-weights", !*o->teacher, "goes with --teacher"},
        {"init-std", *o->model || *o->student_from, "is for a new model, and here one is given"},
        {"merges", *o->tokenizer && strcmp(o->tokenizer, "gpt2"), "goes with --tokenizer gpt2"},
        {"save-every", !*o->out, "needs --out DIR, where checkpoints go"},
        {"grad-norm", !*o->out, "needs --out DIR, whose log.csv has it"},
        {"final-lr", !strcmp(o->schedule, "constant"), "does not go with a constant schedule"},
        {"schedule", rateless, "does not go with an optimizer that has no rate"},
        {"warmup", rateless, "does not go with an optimizer that has no rate"},
        {"final-lr", rateless, "does not go with an optimizer that has no rate"},
        {"warmup", refined, "does not go with a refined schedule, which begins as that says"},
        {"final-lr", refined, "does not go with a refined schedule, which ends as that says"}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (given[i].idle && is_given(o, given[i].name)) die_usage("--%s %s", given[i].name, given[i].why);
    if (o->diloco && *o->proxy) die_usage("--proxy goes with --workers data, not with diloco");
    if (o->diloco && *o->teacher_cache)
        die_usage("--workers diloco takes no step from a teacher's loss; --teacher-cache goes with data");
#ifdef GPT2_DEVICE
    if (o->diloco && *o->freeze) // their mean is not what each has, to the last bit
        die_usage("on GPUs, whose --workers diloco averages all tensors, it goes without --freeze");
#endif
    if (N > 1 && !*o->workers) die_usage("%d processes need --workers data or diloco", N);
    if (o->accumulate % N)
        die_usage("%d workers cannot share --accumulate %d micro-batches; make it a multiple", N,
                  o->accumulate);
#ifndef USE_MPI
    if (*o->workers) die_usage("--workers needs MPI: make train_gpt2_mpi, mpirun -n N ./train_gpt2_mpi");
#endif
    if (o->resume && !*o->out) die_usage("--resume needs --out DIR, the run to go on with");
}

static Options parse_command_line(int argc, char **argv, Optimizer *optimizer) {
    Options o = {0};
    for (int i = 0; i < NUM_OPTIONS; i++) set_option(&o, &option_rows[i], option_rows[i].initial);
    o.given = read_options(&o, option_rows, NUM_OPTIONS, argc, argv, &o, print_help);
    o.diloco = !strcmp(o.workers, "diloco");
    if (o.diloco && !strcmp(o.optimizer, "adamw")) o.optimizer = "diloco";
    choose_optimizer(optimizer, o.optimizer, o.base, (double)o.steps * (*o.proxy ? o.proxy_steps : 1));
    // GPA's average does the work of a falling rate, so the rate ends at a tenth; over few iterates it does
    // less against steps that are too long, so warmup takes a fifth of the run. The rate in a new model falls
    // with the width, as Adam's step moves a preactivation by up to its fan-in times the rate.
    int gpa = !strcmp(o.optimizer, "gpa");
    if (!strncmp(o.optimizer, "schedule-free", 13) && !is_given(&o, "schedule")) o.schedule = "constant";
    if (gpa && strcmp(o.base, "sgd") && !*o.model && !*o.student_from)
        optim_set(optimizer, "lr", 1.0 / o.channels);
    if (gpa && !is_given(&o, "schedule")) {
        o.schedule = "linear";
        if (!is_given(&o, "final-lr")) o.final_lr = 0.1;
    }
    if (o.warmup < 0) o.warmup = o.steps / (gpa ? 5 : 20);
    set_hyperparameters(optimizer, o.num_hyper, o.hyper_name, o.hyper_value);
    check_options(&o, optimizer);
    return o;
}

// Writes options into a text, a line each: those whose row has a bit of `mask` in marks, and the
// optimizer's. Returns the length.
static size_t describe_options(char *text, size_t size, const void *options, const OptionRow *rows, int count,
                               int mask, const Optimizer *optimizer) {
    size_t n = 0;
    for (const OptionRow *r = rows; r < rows + count; r++) {
        const void *field = (const char *)options + r->field;
        if (!(r->marks & mask)) continue;
        const char *word = r->type == 's' || r->type == 'c' ? *(const char *const *)field : NULL;
        if (word && strlen(word) > 1000)
            die_usage("--%s has more than 1000 bytes; shorten it, by *", r->name);
        if (word) n += snprintf(text + n, size - n, "%s %s\n", r->name, word);
        else if (r->type == 'd')
            n += snprintf(text + n, size - n, "%s %.17g\n", r->name, *(const double *)field);
        else n += snprintf(text + n, size - n, "%s %d\n", r->name, *(const int *)field);
    }
    for (int i = 0; i < OPTIM_COUNT(optim_keys); i++) {
        double x = optim_get(optimizer, optim_keys[i].name);
        if (!isnan(x)) n += snprintf(text + n, size - n, "%s %.17g\n", optim_keys[i].name, x);
    }
    return n;
}

// What a run is: stored in its checkpoints, and compared when one is resumed. device: open_device's; teacher:
// the name of who gives the teacher's losses; tokenizer: of texts, 0 of shards; schedule: the refined one, or
// NULL.
static char *describe_run(const Options *o, const Optimizer *optimizer, GPT2Config g, const char *device,
                          uint64_t data, uint64_t tokenizer, const char *teacher, const double *schedule) {
    size_t size = 1 << 14;
    char *text = allocate(size, 1);
    size_t n = describe_options(text, size, o, option_rows, NUM_OPTIONS, 1, optimizer);
    uint64_t factors = schedule ? hash_bytes(0, schedule, (size_t)o->steps * sizeof *schedule) : 0;
    snprintf(text + n, size - n,
             "floats %s\nteacher %s\nshape %d %d %d %d %d\ndata %016llx\ntokenizer %016llx\n"
             "refined %016llx\n",
             strstr(device, ", bf16") ? "bf16" : "f32", teacher, g.num_layers, g.num_heads, g.channels,
             g.max_seq_len, g.vocab_size, (unsigned long long)data, (unsigned long long)tokenizer,
             (unsigned long long)factors);
    return text;
}

// ===========================================================================================================
// 12  The training loop

typedef struct {
    Options options;
    Optimizer optimizer;
    GPT2 model, teacher; // teacher.params_memory is NULL without one
    Tokenizer tokenizer; // vocab_size 0: token shards without --merges, whose text cannot be shown
    Dataset train, val;
    DataLoader loader;
    TeacherCache cache;
    Proxy proxy; // x_t is NULL without one
    double *schedule; // the refined schedule's factors, or NULL
    int B, T;
    uint16_t *x, *y; // (B,T)
    GradientSum sum;
    double *losses; // room for those of a step's micro-batches, and the teacher's
    char *identity;
    FILE *log;
    int saved; // whether the files in --out are this run's
    // what changes from step to step, and stands in a checkpoint
    struct { long step; uint64_t epoch, index, proxy_epoch, proxy_index; double seconds, val_loss; } now;
} Run;

// ---- the optimizer, and the point where it is evaluated

// Muon's products by our kernel.
static void muon_matmul(float *C, const float *A, const float *B, int M, int N, int K, int trans_a,
                        int trans_b, int symmetric) {
    if (symmetric) symmetric_matmul(C, A, B, N, K, trans_a, trans_b);
    else matmul(C, A, B, M, N, K, trans_a, trans_b, plain);
}

// Where each layer's tensors are in the parameters, for the optimizer: which decay, and which are matrices
// inside the blocks. Of frozen tensors it does not know: they get no update and count in no norm. Returns how
// many segments there are, at most NUM_TENSORS a layer.
static int model_segments(GPT2Config g, const char *frozen, OptimSegment *segments) {
    size_t offset = 0;
    int n = 0;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        for (int l = 0; l < MAX(t.layers, 1); l++, offset += layer_size(t)) {
            if (tensor_matches(frozen, g, i, l)) continue;
            segments[n] = (OptimSegment){offset, layer_size(t), 0, 0, t.cols > 0};
            if (is_linear(t)) segments[n].rows = t.rows, segments[n].cols = t.cols;
            n++;
        }
    }
    return n;
}

static void start_optimizer(Optimizer *o, GPT2 *m, const char *frozen) {
    check_patterns(frozen, m->config);
    OptimSegment *segments = allocate((size_t)NUM_TENSORS * m->config.num_layers, sizeof(OptimSegment));
    optim_matmul = muon_matmul;
    int n = model_segments(m->config, frozen, segments);
    if (n == 0) die("--freeze %s leaves nothing to train", frozen);
#ifndef GPT2_DEVICE // which has memory of its own
    o->n = 0; // until optim_start sets it, what is trained: the rest takes no memory
    for (int i = 0; i < n; i++) o->n += segments[i].size;
    o->num_slices = o->n / MAX(1, o->h.slice_p); // about so many
    check_memory(optim_bytes(o) + sizeof(float) * optim_scratch(o, segments, n));
#endif
    if (optim_start(o, m->params_memory, m->num_parameters, segments, n))
        die("out of memory for the optimizer");
    free(segments);
}

// Puts the evaluation point x in the place of the parameters, or takes it away again. The gradients' memory
// serves: nothing is copied back, so training goes on with the very bits it had.
static void swap_evaluation_point(Run *run, int enter) {
    GPT2 *m = &run->model;
    if (enter) optim_eval_params(&run->optimizer, m->grads_memory);
    float *swap = m->params_memory;
    m->params_memory = m->grads_memory, m->grads_memory = swap;
    m->params = point_parameters(m->params_memory, m->config);
}

// ---- checkpoints of a run

/* DIR/state.bin holds all that a run needs to go on as if it had not stopped:

       "GPT2RUN1", what the run is (describe_run), run->now, the training point, a proxy's correction, the
   optimizer's blocks, a hash

   Each part but the first and the last is preceded by its length in bytes, which is known before it is read.
   Workers of --workers diloco go on from x_outer, where they last met, each with worker 0's inner moments;
   what --compression had yet to send is lost.
   The file is written beside the old one and renamed into place. */
#define STATE_MAGIC "GPT2RUN1"

static void write_part(FILE *f, uint64_t *hash, const void *part, uint64_t bytes) {
    if (!f) return; // worker 0 writes
    write_bytes(f, &bytes, sizeof bytes);
    write_bytes(f, part, bytes);
    *hash = hash_bytes(*hash, part, bytes);
}

// Worker 0 reads a part, and all get it.
static void read_part(FILE *f, uint64_t *hash, void *part, uint64_t bytes, const char *path) {
    uint64_t length;
    if (f &&
        (fread(&length, sizeof length, 1, f) != 1 || length != bytes || fread(part, 1, bytes, f) != bytes))
        die("%s is cut short or damaged; start anew without --resume", path);
    if (f) *hash = hash_bytes(*hash, part, bytes);
    copy_from_worker_0(part, bytes);
}

// now has now_bytes, params and correction o->n numbers; correction is NULL without a proxy.
static void write_state(const char *path, const char *identity, const void *now, size_t now_bytes,
                        const float *params, const float *correction, Optimizer *o) {
    FILE *f = workers.rank ? NULL : write_begin(path);
    uint64_t hash = 0;
    void *block;
    size_t bytes;
    if (f) write_bytes(f, STATE_MAGIC, 8);
    write_part(f, &hash, identity, strlen(identity));
    write_part(f, &hash, now, now_bytes);
    write_part(f, &hash, params, o->n * sizeof(float));
    if (correction) write_part(f, &hash, correction, o->n * sizeof(float));
    for (int i = 0; optim_state(o, i, &block, &bytes); i++) write_part(f, &hash, block, bytes);
    if (!f) return;
    write_bytes(f, &hash, sizeof hash);
    write_commit(f, path);
}

// Takes up what write_state wrote, if it is of the same run. Returns 0 where there is no file. Only worker
// 0's machine need have it.
static int read_state(const char *path, const char *identity, void *now, size_t now_bytes, float *correction,
                      Optimizer *o) {
    FILE *f = workers.rank ? NULL : fopen(path, "rb");
    char magic[8], theirs[1 << 14] = {0};
    uint64_t hash = 0, length, stored;
    double found = f != NULL;
    void *block;
    size_t bytes;
    if (!workers.rank && !f && errno != ENOENT) die("cannot read %s: %s", path, strerror(errno));
    sum_over_workers(&found, 1);
    if (!found) return 0;
    if (f) {
        if (fread(magic, 1, 8, f) != 8 || memcmp(magic, STATE_MAGIC, 8))
            die("%s is not a checkpoint of this program; start anew without --resume", path);
        if (fread(&length, sizeof length, 1, f) != 1 || length >= sizeof theirs ||
            fread(theirs, 1, length, f) != length)
            die("%s is cut short or damaged; start anew without --resume", path);
        compare_identity(identity, theirs, path);
        hash = hash_bytes(hash, theirs, length);
    }
    read_part(f, &hash, now, now_bytes, path);
    read_part(f, &hash, o->params, o->n * sizeof(float), path);
    if (correction) read_part(f, &hash, correction, o->n * sizeof(float), path);
    for (int i = 0; optim_state(o, i, &block, &bytes); i++) read_part(f, &hash, block, bytes, path);
    if (f && (fread(&stored, sizeof stored, 1, f) != 1 || stored != hash))
        die("%s is damaged; start anew without --resume", path);
    if (f) fclose(f);
    return 1;
}

static void save_state(Run *run) {
    Optimizer *o = &run->optimizer;
    run->now.epoch = run->loader.epoch, run->now.index = run->loader.index;
    run->now.proxy_epoch = run->proxy.loader.epoch, run->now.proxy_index = run->proxy.loader.index;
    float *point = o->params;
    if (run->options.diloco) optim_eval_params(o, point = run->model.grads_memory); // x_outer and the frozen
    write_state(path_in(run->options.out, "state.bin").s, run->identity, &run->now, sizeof run->now, point,
                run->proxy.correction, o);
}

// A run killed before its first checkpoint starts again. Returns whether there was one.
static int load_state(Run *run) {
    if (!read_state(path_in(run->options.out, "state.bin").s, run->identity, &run->now, sizeof run->now,
                    run->proxy.correction, &run->optimizer))
        return 0;
    run->loader.epoch = run->now.epoch, run->loader.index = run->now.index;
    run->proxy.loader.epoch = run->now.proxy_epoch, run->proxy.loader.index = run->now.proxy_index;
    return 1;
}

// ---- what a run shows: its log, samples, progress

// Opens DIR/log.csv for appending, with the rows of steps that the checkpoint has seen; a new run gets an
// empty one. With --workers there is one column more, bytes_sent: in the step, by a worker.
#define LOG_HEADER "step,tokens,seconds,train_loss,val_loss,teacher_loss,lr,grad_norm"
#define LOG_COLUMNS 8
static void open_log(Run *run) {
    Path path = path_in(run->options.out, "log.csv");
    size_t n = 0;
    char *old = run->now.step && file_exists(path.s) ? read_file(path.s, &n) : NULL;
    char *row = old ? strchr(old, '\n') : NULL;
    FILE *f = write_begin(path.s);
    fprintf(f, "%s%s\n", LOG_HEADER, *run->options.workers ? ",bytes_sent" : "");
    for (char *end; row && (end = strchr(++row, '\n')) && atol(row) <= run->now.step; row = end) {
        char *sent = row; // from here on, if the run had --workers then
        for (int i = 0; i < LOG_COLUMNS && sent < end; i++) sent += strcspn(sent + 1, ",\n") + 1;
        if (*run->options.workers && sent == end) fprintf(f, "%.*s,\n", (int)(end - row), row);
        else fprintf(f, "%.*s\n", (int)((*run->options.workers ? end : sent) - row), row);
    }
    write_commit(f, path.s);
    free(old);
    run->log = fopen(path.s, "a");
    if (!run->log) write_failed(path.s);
}

static void log_number(FILE *f, double x, const char *format, char end) {
    if (!isnan(x)) fprintf(f, format, x);
    fputc(end, f);
}

// The token that u in [0,1) draws from the softmax of logits (V) at a temperature.
static int draw(const float *logits, int V, float temperature, double u) {
    float lse = log_sum_exp(logits, V, temperature);
    int likeliest = 0;
    for (int i = 0; i < V; i++) {
        u -= exp_f32(logits[i] / temperature - lse);
        if (u < 0) return i;
        if (logits[i] > logits[likeliest]) likeliest = i;
    }
    return likeliest; // what rounding has left of u
}

// Prints SAMPLE_TOKENS tokens of the model's own, which go on from a line's end or <|endoftext|>. The whole
// window goes through the model for each token: short and slow; decode_ppd.c is the program for long texts.
#define SAMPLE_TOKENS 256
static void print_sample(Run *run) {
    GPT2 *m = &run->model;
    const Tokenizer *t = &run->tokenizer;
    uint16_t tokens[SAMPLE_TOKENS + 1];
    int V = m->config.vocab_size, window = run->T, start = '\n';
    if (t->kind == TOKENIZER_GPT2) start = t->vocab_size - 1;
    if (t->kind == TOKENIZER_CHARS) start = MAX(t->char_id['\n'] - 1, 0); // 0 where no line ends
    tokens[0] = (uint16_t)start;
    end_line();
    printf("--- sample at step %ld\n", run->now.step);
    for (int i = 0; i < SAMPLE_TOKENS; i++) {
        int from = MAX(0, i + 1 - window), n = i + 1 - from;
        gpt2_forward(m, tokens + from, 1, n);
        gpt2_logits(m, m->logits, n - 1, 1);
        int next = draw(m->logits, V, 0.8f,
                        random_uniform(run->options.seed + 7, (uint64_t)run->now.step << 16 | i));
        size_t length;
        const char *bytes = next < t->vocab_size ? tokenizer_token(t, next, &length) : NULL;
        if (bytes) fwrite(bytes, 1, length, stdout);
        tokens[i + 1] = (uint16_t)next;
    }
    printf("\n---\n");
}

// Whether lines written to f can be cleared: it is a terminal, and not a simple one.
static int can_clear(FILE *f) {
    const char *kind = getenv("TERM");
    return isatty(fileno(f)) && kind && strcmp(kind, "dumb");
}

// Begins a line of progress, if one is due after this step: on a terminal five times a second, each in the
// place of the one before, and cut, not wrapped, where it is too long; elsewhere after every tenth of the
// steps, and every minute. *end is what it ends with.
static int begin_progress(long step, long steps, const char **end) {
    static double last_shown;
    int terminal = can_clear(stdout), last = step >= steps;
    if (!last_shown && !terminal) last_shown = now();
    double since = now() - last_shown;
    if (!last && (terminal ? since < 0.2 : since < 60 && step % MAX(1, steps / 10))) return 0;
    last_shown = now();
    *end = !terminal ? "\n" : last ? "\033[?7h\n" : "\033[?7h";
    line_open = terminal && !last;
    if (terminal) printf("\r\033[K\033[?7l");
    return 1;
}

// The micro-batches that pass through the model in a step: the objective's, and a proxy's.
static int batches_a_step(const Options *o) {
    int proxy = (o->proxy_paired ? o->accumulate : o->proxy_steps) + o->proxy_steps;
    return o->accumulate + (*o->proxy ? proxy : 0);
}

typedef struct {
    double loss, teacher_loss, lr, grad_norm; // NaN where not measured
    int taught;                               // the teacher's model has passed over the batch
} StepResult;

static void show_progress(const Run *run, const StepResult *r, double tokens_per_second) {
    const Options *o = &run->options;
    long step = run->now.step;
    const char *end;
    if (!begin_progress(step, o->steps, &end)) return;
    double left = (double)(o->steps - step) * run->B * run->T * batches_a_step(o) / tokens_per_second;
    double flops = flops_per_token(run->model.config, run->T);
    if (r->taught) // a forward pass is a third
        flops += flops_per_token(run->teacher.config, run->T) / 3 * o->accumulate / batches_a_step(o);
    char val[32] = "";
    if (!isnan(run->now.val_loss)) snprintf(val, sizeof val, " | val %.4f", run->now.val_loss);
    printf("step %ld/%d | loss %.4f%s | %d:%02d left | %.0f tokens/s | %.0f GFLOP/s%s", step, o->steps,
           r->loss, val, (int)(left / 60), (int)fmod(left, 60), tokens_per_second,
           tokens_per_second * flops / 1e9, end);
    fflush(stdout);
}

// ---- making ready

// The schedule that the gradient norms of a finished run suggest (optim_refined), from its log.csv. For
// Adam's kind the theory has the l1 norm, which is there with --grad-norm l1; l2 norms may stand for it.
// Returns (steps) factors of the rate, the largest of them 1.
static double *refined_schedule(const char *path, int steps, const Optimizer *optimizer) {
    size_t size, rows = 0;
    char *text = read_file(path, &size), *row = strchr(text, '\n');
    double *norms = allocate(size / 8 + 1, sizeof(double)), *stretched = allocate(steps + 1, sizeof(double));
    if (strncmp(text, LOG_HEADER, strlen(LOG_HEADER))) die("%s is not the log.csv of a run", path);
    for (char *end; row && (end = strchr(row + 1, '\n')); row = end) {
        char *cell = row + 1;
        for (int i = 1; i < LOG_COLUMNS && cell < end; i++) cell += strcspn(cell, ",\n") + 1;
        double norm = cell < end ? strtod(cell, NULL) : NAN;
        if (!(norm > 0 && isfinite(norm))) die("%s: row %zu has no gradient norm", path, rows + 1);
        if (strtoul(row + 1, NULL, 10) != rows + 1)
            die("%s: row %zu is not of step %zu; the log of a whole run is needed", path, rows + 1, rows + 1);
        norms[rows++] = norm;
    }
    if (rows < 2) die("%s has fewer than two steps; a finished run is needed", path);
    if (rows != (size_t)steps) printf("refined    from a run of %zu steps\n", rows);
    for (int i = 0; i < steps; i++) stretched[i] = norms[(size_t)i * rows / steps];
    double *factors = allocate(steps + 1, sizeof(double));
    int sgd = isnan(optim_get(optimizer, "beta2"));
    factors[0] = 1; // if it is the only one
    if (steps > 1 && optim_refined(stretched, steps, sgd ? "l2" : "l1", 0.1, factors)) die("out of memory");
    free(text), free(norms), free(stretched);
    return factors;
}

// Dies where the command line asks for another shape than that of the model in `path`; its student may have
// fewer layers and a shorter context.
static void check_asked_shape(const Options *o, GPT2Config g, const char *path, int student) {
    const struct { const char *name; int asked, there, less; } shapes[] = {
        {"layers", o->layers, g.num_layers, student}, {"heads", o->heads, g.num_heads, 0},
        {"channels", o->channels, g.channels, 0}, {"context", o->context, g.max_seq_len, student}};
    for (int i = 0; i < 4; i++)
        if (is_given(o, shapes[i].name) && shapes[i].asked != shapes[i].there &&
            !(shapes[i].less && shapes[i].asked < shapes[i].there))
            die("--%s %d: %s has %d, and %s can have %s", shapes[i].name, shapes[i].asked, path,
                shapes[i].there, student ? "its student" : "it",
                shapes[i].less ? "no more" : "no other number");
}

// --student-from: a student of --layers layers (half of the model's, unless given), of the same width.
static void start_student(GPT2 *m, const Options *o) {
    GPT2 whole;
    size_t before = allocated_bytes;
    gpt2_load(&whole, o->student_from);
    GPT2Config g = whole.config;
    check_asked_shape(o, g, o->student_from, 1);
    start_from_layers(m, &whole, is_given(o, "layers") ? o->layers : (g.num_layers + 1) / 2,
                      is_given(o, "context") ? o->context : g.max_seq_len);
    gpt2_free(&whole);
    allocated_bytes = before + m->num_parameters * sizeof(float);
}

// Workers that did not read the same data, start from the same model or compute alike would drift apart, and
// those that meet at other steps wait for each other.
static void compare_workers(const Run *run, const char *device) {
    const GPT2 *m = &run->model;
    const Options *o = &run->options;
    if (workers.count == 1) return;
#ifdef GPT2_DEVICE
    const char *arithmetic = device; // GPUs of another kind round products otherwise
#else
    const char *arithmetic = strstr(device, "BLAS") ? device : strrchr(device, ',');
#endif
    int meet[] = {o->eval_every, o->eval_tokens, o->save_every, o->sample_every, o->resume, *o->out != 0,
                  *o->teacher_cache != 0, *o->teacher != 0, *o->export_hf != 0, o->diloco};
    volatile float x = 1 + 0x1p-12f;
    float fused = x * x - (1 + 0x1p-11f); // 0 unless compilers fuse products with sums
    double *hashes = allocate(workers.count, sizeof(double));
    uint64_t hash = hash_bytes(0, run->identity, strlen(run->identity));
    hash = hash_bytes(hash, &fused, sizeof fused);
    hash = hash_bytes(hash, arithmetic, strlen(arithmetic));
    hash = hash_bytes(hash, o->compression, strlen(o->compression));
    hash = hash_bytes(hash, meet, sizeof meet);
    hash = hash_bytes(hash, &run->val.hash, sizeof run->val.hash);
    hash = hash_bytes(hash, m->params_memory, m->num_parameters * sizeof(float));
    hashes[workers.rank] = (double)(hash >> 12);
    sum_over_workers(hashes, workers.count);
    for (int r = 1; r < workers.count; r++)
        if (hashes[r] != hashes[0])
            die("worker %d has other options, data or parameters than worker 0, or another build", r);
    free(hashes);
}

// Takes --out for this run alone, and clears what a run that was killed has left there.
static void claim_folder(const char *out) {
    const char *unfinished[] = {"model.bin.tmp", "model.new.tmp", "state.bin.tmp", "log.csv.tmp",
                                "tokenizer.txt.tmp", "tokenizer.bpe.tmp"};
    make_folder(out);
    int folder = open(out, O_RDONLY | O_DIRECTORY);
    if (folder < 0) die("cannot open the folder %s: %s", out, strerror(errno));
    if (flock(folder, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) // some file systems have no locks
        die("another run is writing to %s; choose another --out", out);
    for (int i = 0; i < 6; i++) unlink(path_in(out, unfinished[i]).s);
}

// Loads what training starts from, and the teacher. Refuses an --out or --export-hf that would overwrite a
// model which --resume has to read again.
static void load_models(Run *run) {
    const Options *o = &run->options;
    const char *read[] = {o->teacher, o->student_from};
    for (int i = 0; i < 2 && *o->out; i++)
        if (same_file(read[i], o->out) || same_file(read[i], path_in(o->out, "model.bin").s))
            die("--out %s would replace %s; choose another", o->out, read[i]);
    for (int i = 0; i < 2 && *o->export_hf; i++)
        if (same_file(read[i], o->export_hf)) die("--export-hf would replace %s; choose another", read[i]);
    const char *hf = o->export_hf;
    if (*hf && *o->out && same_file(o->model, hf))
        die("--export-hf would replace %s, which --resume reads; choose another", o->model);
    if (*hf && !same_file(hf, o->out) && file_exists(path_in(hf, "model.bin").s))
        die("--export-hf %s has a model.bin, which would be read in its place; choose another", hf);
    if (*o->model) gpt2_load(&run->model, o->model), check_asked_shape(o, run->model.config, o->model, 0);
    if (*o->student_from) start_student(&run->model, o);
    if (*o->teacher) gpt2_load(&run->teacher, o->teacher);
    if (*o->teacher && !strcmp(o->teacher_weights, "bf16")) gpt2_to_bf16(&run->teacher);
}

// Finds the tokenizer, and with it reads the texts.
static void load_texts(Run *run) {
    const Options *o = &run->options;
    Tokenizer *t = &run->tokenizer;
    size_t length = 0;
    char *text = is_shards(o->data) ? NULL : read_texts(o->data, "", &length);
    if (!text && !strcmp(o->tokenizer, "chars"))
        die_usage("--tokenizer chars is made of a text, and %s are token shards", o->data);
    if (*o->tokenizer || *o->merges) {
        const char *start = *o->model ? o->model : o->student_from;
        Tokenizer own = {0};
        tokenizer_init(t, *o->tokenizer ? o->tokenizer : "gpt2", text, length, o->merges);
        if (*start && tokenizer_load(&own, start) && !same_tokens(&own, t))
            die("%s has other tokens than --tokenizer and --merges make; leave them out", start);
        tokenizer_free(&own);
    } else {
        const char *models[] = {o->model, o->student_from, o->teacher}, *last = "";
        for (int i = 0; i < 3 && !t->vocab_size; i++)
            if (*models[i]) tokenizer_load(t, last = models[i]);
        if (!t->vocab_size && text) {
            tokenizer_init(t, "chars", text, length, NULL);
            if (*last)
                printf("tokenizer  the text's %d characters: %s has none beside it\n", t->vocab_size, last);
        }
    }
    if (!t->vocab_size && o->sample_every) die_usage("--sample-every needs a tokenizer: give --merges FILE");
    if (*o->out) check_other_tokenizers(t, o->out);
    dataset_load(&run->train, o->data, t, text, length);
    free(text);
    if (*o->val) dataset_load(&run->val, o->val, t, NULL, 0);
    else dataset_split(&run->train, &run->val);
    if (*o->proxy) dataset_load(&run->proxy.data, o->proxy, t, NULL, 0);
}

// Makes the model, unless it was loaded, and room for its passes; dies unless it suits the texts.
static void prepare_model(Run *run) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    int tokens = run->tokenizer.vocab_size;
    if (!m->params_memory) {
        GPT2Config g = {o->context, tokens ? tokens : 50257, o->layers, o->heads, o->channels};
        check_config(g, "the command line");
        gpt2_allocate(m, g);
        gpt2_initialize(m, o->seed, o->init_std);
    }
    GPT2Config g = m->config;
    run->B = o->batch, run->T = o->seq_len ? o->seq_len : g.max_seq_len;
    if (tokens > g.vocab_size)
        die("the tokenizer has %d tokens, the model knows %d; use the model's own tokenizer", tokens,
            g.vocab_size);
    if (run->T > g.max_seq_len)
        die("--seq-len %d is longer than the model's context of %d", run->T, g.max_seq_len);
    if ((size_t)run->B * run->T > 1 << 28)
        die("--batch %d of %d tokens is too large; --accumulate makes a step of several", run->B, run->T);
    check_dataset(&run->train, "training data", g.vocab_size, run->T);
    check_dataset(&run->val, "validation data", g.vocab_size, 1);
    gpt2_allocate_activations(m, run->B, run->T, 1);
    run->x = allocate((size_t)run->B * run->T, sizeof *run->x);
    run->y = allocate((size_t)run->B * run->T, sizeof *run->y);
    run->loader = (DataLoader){&run->train, run->T, o->seed, 0, 0};
}

// Room for the teacher's passes, where there is one; dies where it reads another text.
static void prepare_teacher(Run *run) {
    const Options *o = &run->options;
    GPT2Config g = run->model.config, of_teacher = run->teacher.config;
    Tokenizer t = {0}, *ours = &run->tokenizer;
    if (!*o->teacher) return;
    if (of_teacher.vocab_size != g.vocab_size)
        die("the teacher knows %d tokens, the student %d; they must read the same text alike",
            of_teacher.vocab_size, g.vocab_size);
    if (ours->vocab_size && tokenizer_load(&t, o->teacher) && !same_tokens(&t, ours))
        die("%s has other tokens than the student; train both with one tokenizer", o->teacher);
    tokenizer_free(&t);
    if (of_teacher.max_seq_len < run->T)
        die("the teacher's context is %d; use --seq-len %d", of_teacher.max_seq_len, of_teacher.max_seq_len);
    gpt2_allocate_activations(&run->teacher, run->B, run->T, 0);
}

// Makes ready for sums over micro-batches and over workers.
static void prepare_sums(Run *run) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    int N = workers.count, own = o->accumulate / N;
    run->losses = allocate(2 * (size_t)MAX(o->accumulate, o->proxy_steps), sizeof *run->losses);
    frozen_tensors = o->freeze;
    allocate_sums(&run->sum, m, workers.rank * own, (workers.rank + 1) * own);
    prepare_workers(m, &run->optimizer, o->diloco ? N : o->accumulate,
                    !strcmp(o->compression, "int8") ? 1 : !strcmp(o->compression, "bf16") ? 2 : 4);
    if (o->diloco) run->optimizer.average = diloco_average;
}

// Worker 0 reads the teacher's losses, and all get them: as many as it was told to read, for whether all were
// told the same is seen only later (compare_workers). teacher: a name for it, or "".
static void prepare_cache(Run *run, const char *teacher) {
    const Options *o = &run->options;
    TeacherCache *c = &run->cache;
    size_t bytes = *o->teacher_cache ? o->steps * sizeof *c->loss : 0;
    if (*o->teacher_cache && !workers.rank)
        cache_open(c, o->teacher_cache, teacher, &run->loader, &run->tokenizer, run->B, o->accumulate,
                   o->steps);
    copy_from_worker_0(&bytes, sizeof bytes);
    if (workers.rank && bytes) c->loss = allocate(bytes, 1);
    copy_from_worker_0(c->loss, bytes);
    copy_from_worker_0(c->teacher, sizeof c->teacher);
}

static void prepare_proxy(Run *run) {
    const Options *o = &run->options;
    Proxy *p = &run->proxy;
    size_t n = run->model.num_parameters;
    if (!*o->proxy) return;
    check_dataset(&p->data, "proxy", run->model.config.vocab_size, run->T);
    p->loader = (DataLoader){&p->data, run->T, (uint64_t)o->seed + 1, 0, 0};
    if (o->proxy_paired) check_pairs(&p->data, &run->train);
    p->x_t = allocate_floats(n), p->g_t = allocate_floats(n), p->correction = allocate_floats(n);
    allocate_sums(&run->sum, &run->model, 0, o->proxy_paired ? o->accumulate : o->proxy_steps);
}

static void print_plan(const Run *run, const char *device) {
    const Options *o = &run->options;
    GPT2Config g = run->model.config;
    const Optimizer *opt = &run->optimizer;
    size_t optimizer_bytes = optim_bytes(opt);
#ifndef GPT2_DEVICE // of what is frozen the zeros are never touched
    optimizer_bytes = (size_t)((double)optimizer_bytes * opt->moving / opt->n);
#endif
    optimizer_bytes += sizeof(float) * optim_scratch(opt, opt->segments, opt->num_segments);
    printf("model      %d layers, %d heads, %d channels, context %d, %d tokens: %zu parameters\n",
           g.num_layers, g.num_heads, g.channels, g.max_seq_len, g.vocab_size, run->model.num_parameters);
    printf("data       %zu training tokens, %zu for validation\n", dataset_tokens(&run->train),
           dataset_tokens(&run->val));
    printf("step       %s, %d x %d x %d tokens, %s\n", o->optimizer, o->accumulate, run->B, run->T, device);
    double rate = optim_get(opt, "lr"), muon_rate = optim_get(opt, "muon-lr"), cap = optim_get(opt, "lr-cap");
    if (isnan(rate) && !(cap > 0)) printf("rate       found by %s; no schedule\n", o->optimizer);
    else {
        int factor = optim_get(opt, "d0") > 0 || !strcmp(o->optimizer, "dog");
        printf("rate       ");
        if (factor) printf("found by %s, times ", o->optimizer);
        printf("%s%.4g", isnan(rate) ? "at most " : "", isnan(rate) ? cap : rate);
        if (!isnan(muon_rate)) printf(", of matrices %.4g", muon_rate);
        printf(run->schedule ? ", %s\n" : ", %s, %d steps of warmup\n", o->schedule, o->warmup);
    }
    if (!*o->model && !*o->student_from && run->T < g.max_seq_len)
        printf("positions  %d to %d of the context are not trained\n", run->T + 1, g.max_seq_len);
    if (!*o->out && !*o->export_hf && o->steps) printf("out        nothing is kept without --out DIR\n");
    if (optim_is_polyak(opt) && is_given(o, "clip"))
        printf("clip       none: %s's steps would be longer for it\n", o->optimizer);
    if ((*o->teacher || *o->teacher_cache) && strcmp(o->distill, "soft") && !optim_is_polyak(opt))
        printf("teacher    for the log alone: %s takes no step from its loss; --distill soft would\n",
               o->optimizer);
    if (*o->workers)
        printf("workers    %d, %s, %d micro-batches a step each\n", workers.count, o->workers,
               o->accumulate / workers.count);
    printf("memory     %.0f MB: model, activations %.0f, optimizer %.0f\n",
           (allocated_bytes + optimizer_bytes) / 1e6, allocated_bytes / 1e6, optimizer_bytes / 1e6);
    fflush(stdout); // the first step may take minutes
}

// Reads data, makes or loads the model, and everything else that the loop needs.
static void prepare(Run *run) {
    Options *o = &run->options;
    char teacher[20] = "";
    const char *device = open_device(o->f32);
    if (*o->export_hf && !workers.rank) {
        make_folder(o->export_hf);
        check_writable(path_in(o->export_hf, "model.safetensors.new").s);
        path_in(o->export_hf, "special_tokens_map.json"); // the longest path must not be too long
    }
    if (*o->out && !workers.rank) claim_folder(o->out);
    load_models(run);
    load_texts(run);
    prepare_model(run);
    prepare_teacher(run);
    if (optim_is_polyak(&run->optimizer)) o->clip = 0; // they would be longer for a shorter gradient
    prepare_sums(run);
    if (*o->teacher)
        snprintf(teacher, sizeof teacher, "%016llx", (unsigned long long)model_hash(&run->teacher));
    prepare_cache(run, teacher);
    prepare_proxy(run);
    // last: its zeros take no memory before the first step, so that no later check would see them
    start_optimizer(&run->optimizer, &run->model, o->freeze);
    if (!strncmp(o->schedule, "refined:", 8)) {
        if (*o->out && same_file(o->schedule + 8, path_in(o->out, "log.csv").s))
            die("--out %s would replace the log that the schedule comes from; choose another", o->out);
        run->schedule = refined_schedule(o->schedule + 8, o->steps, &run->optimizer);
    }
    run->now.val_loss = NAN;
    uint64_t data = hash_bytes(run->train.hash, &run->proxy.data.hash, sizeof run->train.hash);
    const Tokenizer *t = &run->tokenizer;
    run->identity = describe_run(o, &run->optimizer, run->model.config, device, data,
                                 is_shards(o->data) ? 0 : hash_bytes(0, t->text, t->text_size),
                                 *teacher ? teacher : run->cache.teacher, run->schedule);
    compare_workers(run, device);
    print_plan(run, device);
}

// ---- a step, and the loop

// What to try where a loss, gradient or weight is not a number.
static const char *advice(const Optimizer *o) {
    if (isnan(optim_get(o, "lr"))) return "; try another optimizer or schedule";
    return isnan(optim_get(o, "muon-lr")) ? "; lower --lr" : "; lower --muon-lr and --lr";
}

// A run's first checkpoint writes its model as DIR/model.new: an older DIR/model.bin stays until
// DIR/state.bin, from which --resume goes on, is there. Then the older one is removed (unless this run began
// with it, and --resume reads it again), the tokenizer is replaced, and the new model renamed.
static void take_new_model(const char *out, const char *began, const Tokenizer *t) {
    Path model = path_in(out, "model.bin"), new = path_in(out, "model.new");
    if (workers.rank || !file_exists(new.s)) return;
    if (!same_file(began, out) && !same_file(began, model.s)) unlink(model.s);
    tokenizer_save(t, out);
    if (rename(new.s, model.s)) write_failed(model.s);
}

// Writes DIR/model.bin (the evaluation point), the tokenizer and DIR/state.bin. All workers come here: each
// may have a part of what worker 0 writes.
static void save_checkpoint(Run *run) {
    GPT2 *m = &run->model;
    const char *out = run->options.out;
    if (!*out) return;
    Path new = path_in(out, "model.new");
    swap_evaluation_point(run, 1);
    if (!workers.rank) {
        if (!all_finite(m->params_memory, m->num_parameters))
            die("after step %ld a weight is not a number%s", run->now.step, advice(&run->optimizer));
        gpt2_save(m->config, m->params_memory, run->saved ? path_in(out, "model.bin").s : new.s);
    }
    swap_evaluation_point(run, 0);
    if (run->log && fsync(fileno(run->log)) && errno != EINVAL) write_failed(path_in(out, "log.csv").s);
    if (!run->saved) saved_model = new.s;
    save_state(run); // the log's rows up to here have reached the disk before it
    saved_model = "";
    take_new_model(out, run->options.model, &run->tokenizer);
    run->saved = 1;
}

// The mean validation loss at the evaluation point, which has to be there.
static double validate(Run *run, GPT2 *m) {
    double loss = evaluate(m, &run->val, run->T, run->options.eval_tokens);
    if (!isfinite(loss) && m == &run->teacher) die("the teacher's validation loss is not a number");
    if (!isfinite(loss))
        die("after step %ld the validation loss is not a number%s", run->now.step,
            run->now.step ? advice(&run->optimizer) : "; look at the model");
    return loss;
}

// The mean gradient of `count` micro-batches, into m->grads_memory; returns their mean loss. The teacher's
// is added to *teacher, unless that is NULL. The workers share those of --data, not a proxy's.
static double gradient(Run *run, DataLoader *loader, int count, double *teacher) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    // own: this worker's micro-batches, first .. end-1. terms: those that the mean is over, in diloco its own
    // alone. exchange: the other workers have the rest of the sum.
    int soft = teacher && !strcmp(o->distill, "soft"), shared = loader == &run->loader;
    int own = shared ? count / workers.count : count, first = shared ? workers.rank * own : 0;
    int end = first + own;
    int terms = o->diloco && shared ? own : count, exchange = own < terms;
    SoftLabels labels = {&run->teacher, (float)o->temperature, (float)o->soft_weight};
    double loss = 0, *losses = run->losses, *teacher_losses = losses + count;
    float scale = 1.0f / ((float)run->B * (float)run->T * (float)terms);
    memset(losses, 0, 2 * count * sizeof *losses);
    loader_skip(loader, (uint64_t)first * run->B);
    for (int i = first; i < end; i++) {
        loader_next(loader, run->x, run->y, run->B);
        if (teacher) { // all that black-box distillation reads of it: f*_t in the steps of sps and iam
            gpt2_forward(&run->teacher, run->x, run->B, run->T);
            teacher_losses[i] = gpt2_loss(&run->teacher, run->y);
        }
        gpt2_forward(m, run->x, run->B, run->T);
        begin_micro_batch(&run->sum, i, first, end, exchange);
        losses[i] = gpt2_backward(m, run->y, scale, soft ? &labels : NULL);
    }
    loader_skip(loader, (uint64_t)(count - end) * run->B);
    if (exchange) receive_layers(1), sum_over_workers(losses, 2 * count);
    for (int i = 0; i < count; i++) loss += losses[i] / terms;
    for (int i = 0; i < count && teacher; i++) *teacher += teacher_losses[i] / terms;
    return loss;
}

// One step of the optimizer with the gradient in m->grads_memory, scaled so that its norm is at most --clip.
// r has the losses, and receives grad_norm and lr.
static void update(Run *run, StepResult *r) {
    const Options *o = &run->options;
    long step = run->now.step;
    OptimSums norms = optim_gradient_norms(&run->optimizer, run->model.grads_memory);
    double norm = sqrt(norms.s0);
    r->grad_norm = strcmp(o->grad_norm, "l1") ? norm : norms.s1;
    if (!isfinite(r->loss) || !isfinite(norm))
        die("the loss or its gradient is not a number at step %ld%s, or look at the data", step + 1,
            advice(&run->optimizer));
    float clip = o->clip > 0 && norm > o->clip ? (float)(o->clip / norm) : 1.0f;
    double factor = run->schedule ? run->schedule[step]
                                  : optim_schedule(o->schedule, step, o->steps, o->warmup, o->final_lr);
    // what --workers diloco evaluates and saves is x_outer: the last step has to reach it
    if (o->diloco && step + 1 == o->steps) optim_set(&run->optimizer, "inner-steps", 1);
    optim_step(&run->optimizer, run->model.grads_memory, clip, factor, r->loss, r->teacher_loss);
    r->lr = optim_rate(&run->optimizer, factor);
}

// Steps on the proxy, corrected by the gradient of the objective in m->grads_memory (optim_proxy_gradient).
// pair: the loader as it was before the objective's batch, for a proxy that has one like it.
static void proxy_steps(Run *run, DataLoader pair, StepResult *r) {
    const Options *o = &run->options;
    Proxy *p = &run->proxy;
    GPT2 *m = &run->model;
    OptimSpan flat = optim_flat(m->num_parameters, NULL);
    DataLoader again = p->loader;
    float average = run->now.step ? (float)o->proxy_average : 0;
    float pull = o->proxy_eta > 0 ? (float)(1 / o->proxy_eta) : 0;
    optim_copy(flat, p->g_t, m->grads_memory);
    optim_copy(flat, p->x_t, m->params_memory);
    pair.data = &p->data;
    if (o->proxy_paired) gradient(run, &pair, o->accumulate, NULL);
    else gradient(run, &p->loader, o->proxy_steps, NULL);
    optim_proxy_correction(flat, p->correction, p->g_t, m->grads_memory, average);
    for (int k = 0; k < o->proxy_steps; k++) {
        gradient(run, o->proxy_paired ? &p->loader : &again, 1, NULL);
        optim_proxy_gradient(flat, m->grads_memory, m->grads_memory, p->correction, m->params_memory, p->x_t,
                             pull);
        update(run, r);
    }
}

// One gradient of the objective, and one update with it; or, with a proxy, several.
static StepResult train_step(Run *run) {
    const Options *o = &run->options;
    StepResult r = {0};
    DataLoader before = run->loader;
    const double *cached = run->cache.loss ? &run->cache.loss[run->now.step] : NULL;
    int known = cached && !isnan(*cached), has_teacher = known || run->teacher.params_memory;
    r.taught = has_teacher && !known;
    r.loss = gradient(run, &run->loader, o->accumulate, r.taught ? &r.teacher_loss : NULL);
    if (known) r.teacher_loss = *cached;
    if (!isfinite(r.teacher_loss)) die("the teacher's loss is not a number at step %ld", run->now.step + 1);
    if (run->cache.file && !known) cache_add(&run->cache, run->now.step, r.teacher_loss);
    if (run->proxy.x_t) proxy_steps(run, before, &r);
    else update(run, &r);
    if (!has_teacher) r.teacher_loss = NAN;
    return r;
}

// Whether the run was interrupted. All workers have to stop at the same step; diloco's agree on it, and stop,
// where they meet.
static int interrupted_anywhere(const Run *run) {
    double stop = interrupted;
    int inner_steps = run->options.diloco ? (int)optim_get(&run->optimizer, "inner-steps") : 1;
    if (run->now.step % inner_steps) return 0;
    sum_over_workers(&stop, 1);
    return stop > 0;
}

// Whether something that is done every so many steps, or with 0 never, is to be done after this one.
static int due(int every, long step) { return every && step % every == 0; }

static void train(Run *run) {
    const Options *o = &run->options;
    says_it_stops = isatty(2) && !workers.rank;
    double began = now() - run->now.seconds, tokens_per_second = 0;
    for (int stop = 0; run->now.step < o->steps && !stop;) {
        double start = now(), sent = workers.bytes_sent;
        StepResult r = train_step(run);
        run->now.step++;
        stop = interrupted_anywhere(run);
        sent = workers.bytes_sent - sent;
        double speed = (double)batches_a_step(o) * run->B * run->T / (now() - start);
        tokens_per_second = tokens_per_second ? 0.9 * tokens_per_second + 0.1 * speed : speed;
        int last = run->now.step == o->steps, evaluated = last || due(o->eval_every, run->now.step),
            sampled = o->sample_every && (last || due(o->sample_every, run->now.step));
        if (evaluated || sampled) {
            swap_evaluation_point(run, 1);
            if (evaluated) run->now.val_loss = validate(run, &run->model);
            if (sampled && workers.rank == 0) print_sample(run);
            swap_evaluation_point(run, 0);
        }
        run->now.seconds = now() - began;
        show_progress(run, &r, tokens_per_second);
        if (run->log) {
            fprintf(run->log, "%ld,%ld,%.3f,", run->now.step, run->now.step * o->accumulate * run->B * run->T,
                    run->now.seconds);
            log_number(run->log, r.loss, "%.6f", ',');
            log_number(run->log, evaluated ? run->now.val_loss : NAN, "%.6f", ',');
            log_number(run->log, r.teacher_loss, "%.6f", ',');
            log_number(run->log, r.lr, "%.6g", ',');
            log_number(run->log, r.grad_norm, "%.6g", *o->workers ? ',' : '\n');
            if (*o->workers) log_number(run->log, sent, "%.0f", '\n');
            if (fflush(run->log)) write_failed(path_in(o->out, "log.csv").s);
        }
        if (last || stop || due(o->save_every, run->now.step)) save_checkpoint(run);
    }
    says_it_stops = 0;
}

// First of all. Whoever closed standard input, output or error gets one that cannot be used: else a file of
// ours would have its number, and lines meant for the terminal in it. And a mapped file that is cut short ends
// the program with a line, not a core dump.
static void guard_files(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) < 0) exit(1);
    signal(SIGBUS, on_lost_file);
}

// libgomp's threads spin for milliseconds where they wait for each other. Where other programs run too, that
// makes a step up to 40 times slower. The limit is read before main, so the program starts itself once more.
static void spin_briefly(char **argv) {
    char self[4096] = ""; // its own name: as /proc/self/exe it would be listed as "exe"
    if (readlink("/proc/self/exe", self, sizeof self - 1) > 0 && !getenv("GOMP_SPINCOUNT") &&
        !getenv("OMP_WAIT_POLICY") && !setenv("GOMP_SPINCOUNT", "10000", 1))
        execv(self, argv);
}

#ifndef TRAIN_GPT2_NO_MAIN
// Begins DIR/log.csv, or goes on in it, and says what of an earlier run will be replaced.
static void open_out(Run *run) {
    const Options *o = &run->options;
    Path state = path_in(o->out, "state.bin"), model = path_in(o->out, "model.bin");
    run->saved = run->now.step > 0;
    if (!run->saved && !unlink(state.s) && !o->resume)
        printf("replaces   the checkpoint %s of an earlier run\n", state.s);
    else if (!run->saved && file_exists(model.s) && !same_file(o->model, o->out) &&
             !same_file(o->model, model.s))
        printf("replaces   %s, once the first checkpoint is there\n", model.s);
    open_log(run);
}

// What follows the last step; none was taken where the run began there.
static void finish(Run *run, int none_taken) {
    const Options *o = &run->options;
    if (none_taken) { // what a checkpoint says may be of other validation data
        swap_evaluation_point(run, 1);
        run->now.val_loss = validate(run, &run->model);
        swap_evaluation_point(run, 0);
    }
    if (o->steps == 0) save_checkpoint(run);
    if (*o->export_hf) {
        swap_evaluation_point(run, 1);
        if (!workers.rank)
            gpt2_export_hf(run->model.config, run->model.params_memory, &run->tokenizer, o->export_hf);
        swap_evaluation_point(run, 0);
    }
    if (run->teacher.params_memory) {
        double loss = validate(run, &run->teacher);
        printf("teacher val loss %.4f, the student is %+.4f from it\n", loss, run->now.val_loss - loss);
    }
    printf("final val loss %.4f\n", run->now.val_loss);
}

int main(int argc, char **argv) {
    static Run run;
    guard_files();
    spin_briefly(argv);
    start_workers(&argc, &argv);
    run.options = parse_command_line(argc, argv, &run.optimizer);
    const Options *o = &run.options;
    prepare(&run);
    if (o->resume) {
        if (load_state(&run)) {
            take_new_model(o->out, o->model, &run.tokenizer); // where the first save ended with its state
            printf("resumed    at step %ld of %d\n", run.now.step, o->steps);
        } else printf("resumed    nothing: %s has no checkpoint, the run begins\n", o->out);
    }
    catch_signals();
    signal(SIGPIPE, SIG_IGN); // who reads the progress may stop; the run goes on, and is saved
    if (*o->out && !workers.rank) open_out(&run);
    long began = run.now.step;
    train(&run);
    if (interrupted) clearerr(stdout); // a write that the signal broke off
    end_line();
    if (workers.count > 1)
        printf("sent       %.3f MB by each worker\n", workers.bytes_sent / 1e6);
    if (run.now.step == o->steps) finish(&run, began == o->steps);
    else {
        printf("stopped at step %ld of %d", run.now.step, o->steps);
        printf(*o->out ? "; the same command with --resume goes on\n" : "; without --out nothing is saved\n");
    }
    check_printed();
    return 0;
}
#endif
