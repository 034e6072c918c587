/* optim.h - optimizers and learning-rate schedules for flat parameter arrays, in one header. C11, C++17.

   Each algorithm is written once, as the update of element i: OPTIM_PASS makes a parallel SIMD loop of it
   (and, compiled by nvcc, a kernel). Sums over all parameters go through OPTIM_SUM: chunks of fixed size,
   added in order, so every result is the same to the last bit for any number of threads. Nothing here knows
   a model: an optimizer sees flat arrays of floats, cut into segments (tensors).

   Use (test/optim_user.c is a whole program):

       #include "optim.h"                   // gcc -O3 -march=native -fno-math-errno -fopenmp user.c -lm

       Optimizer o;
       optim_init(&o, "gpa");               // -1: no such name; optim_print_help(stdout, NULL) lists them
       optim_set_base(&o, "muon");          // gpa, iam and diloco only, and before optim_set
       optim_set(&o, "lr", 3e-3);           // -1: it has no such hyperparameter, -2: out of its range
       optim_start(&o, params, n, segments, count);       // NULL, 0: one vector without weight decay
       for (long t = 0; t < steps; t++) {
           double loss = loss_and_gradient(params, grad); // params is the training point
           float clip = fmin(1, 1 / sqrt(optim_gradient_norms(&o, grad).s0));
           optim_step(&o, grad, clip, optim_schedule("cosine", t, steps, 100, 0.1), loss, 0);
       }
       optim_eval_params(&o, out);          // the point to evaluate and save, into an array of the caller's
       optim_free(&o);

   The gradient is taken at params. Averaging methods (gpa, schedule-free, dog, diloco's workers) evaluate
   another point x: optim_eval_params computes it into `out` and leaves params alone, so training goes on bit
   for bit. optim_state lists what a checkpoint holds besides params, optim_bytes its size. sps and iam use
   the losses given to optim_step: f_t(x) and the teacher's loss on the same batch. The schedule multiplies
   "lr", "muon-lr" and "lr-cap"; optimizers without any of these ignore it. Everything here is static, and
   tables know functions by address: an Optimizer stays with the source file that initialised it. Numbers are
   read with points: who calls setlocale leaves LC_NUMERIC at "C".

   name               paper                     buffers besides parameters and gradients   bytes a parameter
   adamw              arXiv 1711.05101          m v                                        8
   sgd                momentum with dampening   m                                          4
   muon               kellerjordan.github.io    m v (the matrices' v: their direction)     8
   diloco             arXiv 2311.08105          its base's, outer x_outer                  base + 8
   gpa                arXiv 2512.17131          its base's, z                              base + 4
   schedule-free      arXiv 2405.15682          v z                                        8
   schedule-free-sgd  arXiv 2405.15682          z                                          4
   prodigy            arXiv 2306.06101          m v x0 sum (these last of n/slice-p)       8 + 8/slice-p
   dadapt-adam        arXiv 2301.07733          m v sum                                    12
   resetting          arXiv 2306.06101          x0 sum                                     8
   dog                arXiv 2302.12022          x0 x_average                               8
   dowg, cdowg        arXiv 2305.16284          x0; cdowg: x0 r2 v                         4; 12
   sps                arXiv 2504.01898                                                     0
   iam                arXiv 2504.01898          z; over adamw: v z; over muon: m v z       4; 8; 12
   iam-adam           iam over adamw            v z                                        8
   adgd, adproxgd     arXiv 2308.02261          x_prev g_prev                              8

   Over muon, r c + 4 min(r, c)^2 floats more, r x c the largest matrix. Schedules: constant, cosine,
   linear, wsd, and one refined from the gradient norms of an earlier run (arXiv 2310.07831).

   A new optimizer is its maths, the body of its passes, its step function and a row of optim_rows; a buffer
   or a hyperparameter that none had before, a line of OPTIM_BUFFERS or OPTIM_KEYS. */
#ifndef OPTIM_H
#define OPTIM_H

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "optim.h knows what is absent by NaN and infinity: add -fno-finite-math-only (-Ofast, -ffast-math)"
#endif
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
#define OPTIM_API static __attribute__((unused))                   // a program need not call everything
#define OPTIM_INLINE static inline __attribute__((always_inline))
#else
#define OPTIM_API static
#define OPTIM_INLINE static inline
#endif

// On a GPU (nvcc --extended-lambda, or test/cuda_on_cpu.h) passes are kernels on the default stream; params,
// grad and out are then in unified or the GPU's memory, and so is what is allocated here. OPTIM_ELEMENT marks
// functions that bodies call.
#if defined(__CUDACC__) || defined(CUDA_ON_CPU_H)
#define OPTIM_CUDA
#define OPTIM_ELEMENT __host__ __device__ OPTIM_INLINE
#ifndef OPTIM_LAUNCH
#define OPTIM_LAUNCH(kernel, blocks, threads, ...) kernel<<<blocks, threads>>>(__VA_ARGS__)
#endif
OPTIM_API void *optim_allocate(size_t count, size_t size) {
    void *p = NULL;
    if (cudaMallocManaged(&p, count * size + 1) != cudaSuccess) return NULL; // + 1: CUDA gives no 0 bytes
    if (cudaMemset(p, 0, count * size) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess) return p;
    cudaFree(p);
    return NULL;
}
OPTIM_API void optim_release(void *p) { cudaFree(p); }
#else
#define OPTIM_ELEMENT OPTIM_INLINE
OPTIM_API void *optim_allocate(size_t count, size_t size) { return calloc(count, size); }
OPTIM_API void optim_release(void *p) { free(p); }
#endif

// -----------------------------------------------------------------------------------------------------------
// Passes: loops over all elements

typedef struct {          // a run of elements of one segment
    size_t begin, end;    // elements [begin, end) of the arrays
    size_t first;         // begin's place in params: another than begin where the arrays are slices of those
    float decay;          // 1: weight decay applies, 0: it does not
} OptimChunk;

typedef struct { double s0, s1; } OptimSums;

typedef struct {          // what a pass runs over: a table of chunks, or (NULL) n elements cut by length
    const OptimChunk *chunk;
    int count;
    size_t n, length;
    OptimSums *sums;      // (count) room for the chunks' sums
} OptimSpan;

#ifndef OPTIM_CHUNK       // a test has less, so that small tensors have several
#define OPTIM_CHUNK 16384 // floats: 64 KB, so that the streams of one chunk stay in a core's L2 cache
#define OPTIM_BLOCK 4096  // a chunk's sums are floats for so many elements, then doubles
#endif
#define OPTIM_STRIPS 1024 // at most so many chunks where there is no table

OPTIM_ELEMENT OptimChunk optim_chunk(OptimSpan span, int k) {
    if (span.chunk) return span.chunk[k];
    size_t begin = (size_t)k * span.length, end = begin + span.length;
    OptimChunk c = { begin, end < span.n ? end : span.n, begin, 0 };
    return c;
}

static inline OptimSpan optim_flat(size_t n, OptimSums *sums) {
    size_t length = (n + OPTIM_STRIPS - 1) / OPTIM_STRIPS;
    if (length < OPTIM_CHUNK) length = OPTIM_CHUNK;
    OptimSpan span = { NULL, (int)((n + length - 1) / length), n, length, sums };
    return span;
}

static inline OptimSums optim_add(const OptimSums *sums, int count) {
    OptimSums s = { 0, 0 };
    for (int k = 0; k < count; k++) { s.s0 += sums[k].s0; s.s1 += sums[k].s1; }
    return s;
}

#ifdef _OPENMP
#define OPTIM_PARALLEL _Pragma("omp parallel for schedule(static)")
#else
#define OPTIM_PARALLEL
#endif
#if defined(_OPENMP) && (!defined(__clang__) || defined(__NO_MATH_ERRNO__))
#define OPTIM_SIMD     _Pragma("omp simd")
#define OPTIM_SIMD_SUM _Pragma("omp simd reduction(+:s0,s1)")
#else // clang warns where sqrtf, as it may set errno, keeps an `omp simd` loop from SIMD
#define OPTIM_SIMD
#define OPTIM_SIMD_SUM
#endif
#define OPTIM_LIST(...) __VA_ARGS__

// OPTIM_PASS(name, (arguments), body): `body` for every element i of the span; it may use chunk.
// OPTIM_SUM: the same, and `body` adds to s0 and s1, whose totals are returned. Within OPTIM_BLOCK elements
// (on a GPU: within a thread) s0 and s1 are of `type`; from there on sums are double. float is the faster.
#ifndef OPTIM_CUDA
#define OPTIM_PASS(name, arguments, ...)                                                                    \
    OPTIM_API void name(OptimSpan span, OPTIM_LIST arguments) {                                             \
        OPTIM_PARALLEL for (int k = 0; k < span.count; k++) {                                               \
            const OptimChunk chunk = optim_chunk(span, k);                                                  \
            OPTIM_SIMD for (size_t i = chunk.begin; i < chunk.end; i++) { __VA_ARGS__ }                     \
        }                                                                                                   \
    }

#define OPTIM_SUM(type, name, arguments, ...)                                                               \
    OPTIM_API OptimSums name(OptimSpan span, OPTIM_LIST arguments) {                                        \
        OPTIM_PARALLEL for (int k = 0; k < span.count; k++) {                                               \
            const OptimChunk chunk = optim_chunk(span, k);                                                  \
            OptimSums sum = { 0, 0 };                                                                       \
            for (size_t j = chunk.begin, end; j < chunk.end; j = end) {                                     \
                type s0 = 0, s1 = 0;                                                                        \
                end = chunk.end - j < OPTIM_BLOCK ? chunk.end : j + OPTIM_BLOCK;                            \
                OPTIM_SIMD_SUM for (size_t i = j; i < end; i++) { __VA_ARGS__ }                             \
                sum.s0 += s0; sum.s1 += s1;                                                                 \
            }                                                                                               \
            span.sums[k] = sum;                                                                             \
        }                                                                                                   \
        return optim_add(span.sums, span.count);                                                            \
    }

#else
// A block of threads for each chunk. The body is a lambda that brings its arguments along.
#define OPTIM_THREADS 256

template <typename Body>
__global__ void __launch_bounds__(OPTIM_THREADS) optim_pass_kernel(OptimSpan span, Body body) {
    const OptimChunk chunk = optim_chunk(span, blockIdx.x);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += OPTIM_THREADS) body(i, chunk);
}

// sums[k] = the sums of chunk k: each thread's, then pairs of threads', in an order that never changes.
template <typename Real, typename Body>
__global__ void __launch_bounds__(OPTIM_THREADS)
optim_sum_kernel(OptimSpan span, OptimSums *sums, Body body) {
    __shared__ double part[2][OPTIM_THREADS];
    const OptimChunk chunk = optim_chunk(span, blockIdx.x);
    const int thread = threadIdx.x;
    Real s0 = 0, s1 = 0;
    for (size_t i = chunk.begin + thread; i < chunk.end; i += OPTIM_THREADS) body(i, chunk, s0, s1);
    part[0][thread] = s0; part[1][thread] = s1;
    for (int half = OPTIM_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int j = 0; j < 2 && thread < half; j++) part[j][thread] += part[j][thread + half];
    }
    if (thread > 0) return;
    sums[blockIdx.x].s0 = part[0][0]; sums[blockIdx.x].s1 = part[1][0];
}

// Where several processes have a shard of the parameters each: makes a shard's sums those of all.
static void (*optim_across)(OptimSums *sums);

// The chunks' sums, brought to span.sums: waits for the GPU, as whoever asks for a sum goes on with a number.
template <typename Real, typename Body> static OptimSums optim_sum_on_gpu(OptimSpan span, Body body) {
    static OptimSums *sums;
    static int room;
    const OptimSums failed = { NAN, NAN };
    if (span.count > room) {
        if (sums) cudaFreeHost(sums);
        room = cudaMallocHost(&sums, span.count * sizeof *sums) == cudaSuccess ? span.count : 0;
        if (!room) { sums = NULL; return failed; }
    }
    if (span.count) OPTIM_LAUNCH((optim_sum_kernel<Real, Body>), span.count, OPTIM_THREADS, span, sums, body);
    if (span.count && cudaDeviceSynchronize() != cudaSuccess) return failed;
    for (int k = 0; k < span.count; k++) span.sums[k] = sums[k];
    OptimSums total = optim_add(span.sums, span.count);
    if (optim_across) optim_across(&total);
    return total;
}

#define OPTIM_PASS(name, arguments, ...)                                                                    \
    OPTIM_API void name(OptimSpan span, OPTIM_LIST arguments) {                                             \
        auto body = [=] __device__ (size_t i, const OptimChunk &chunk) { (void)chunk; __VA_ARGS__ };        \
        if (span.count) OPTIM_LAUNCH(optim_pass_kernel, span.count, OPTIM_THREADS, span, body);             \
    }
#define OPTIM_SUM(type, name, arguments, ...)                                                               \
    OPTIM_API OptimSums name(OptimSpan span, OPTIM_LIST arguments) {                                        \
        auto body = [=] __device__ (size_t i, const OptimChunk &chunk, type &s0, type &s1) {                \
            (void)chunk; (void)s0; (void)s1; __VA_ARGS__ };                                                 \
        return optim_sum_on_gpu<type>(span, body);                                                          \
    }
#endif

OPTIM_SUM(float, optim_norms, (const float *g), s0 += g[i] * g[i]; s1 += fabsf(g[i]);)    // |g|^2, |g|_1
OPTIM_PASS(optim_copy, (float *out, const float *x), out[i] = x[i];)

OPTIM_API double optim_norm2(const float *g, size_t n) {            // |g|^2
    OptimSums sums[OPTIM_STRIPS];
    return optim_norms(optim_flat(n, sums), g).s0;
}

// -----------------------------------------------------------------------------------------------------------
// The optimizer

typedef struct {          // one tensor (of one layer) inside the flat parameter array
    size_t offset, size;  // in floats
    int rows, cols;       // rows > 0: a matrix inside the blocks (Muon's), row-major, rows = outputs; else 0
    int decay;            // weight decay applies (tensors of two or more dimensions)
} OptimSegment;

// Hyperparameters: field, name, range (an i behind it: whole numbers), meaning. eps and d0 have lower
// bounds so that they are not 0 as floats. So have mu-y and Schedule-Free's beta1: x is found by dividing by
// them, which makes y's rounding errors larger.
#define OPTIM_KEYS(KEY)                                                                                     \
    KEY(lr, "lr", "[0,inf)", "learning rate, times the schedule")                                           \
    KEY(beta1, "beta1", "[0,1)", "decay of the first moment; schedule-free: weight of x in y, from 1e-3")   \
    KEY(beta2, "beta2", "[0,1)", "decay of the second moment")                                              \
    KEY(beta3, "beta3", "[0,1)", "decay of the sums of the estimate; 0: the root of beta2")                 \
    KEY(eps, "eps", "[1e-20,inf)", "added to the denominator, or under its root")                           \
    KEY(weight_decay, "weight-decay", "[0,inf)", "on tensors of two or more dimensions")                    \
    KEY(momentum, "momentum", "[0,1)", "decay of the momentum")                                             \
    KEY(dampening, "dampening", "[0,1]", "the gradient enters the momentum times 1 - this")                 \
    KEY(muon_lr, "muon-lr", "[0,inf)", "learning rate of the matrices, times the schedule")                 \
    KEY(muon_momentum, "muon-momentum", "[0,1)", "momentum of the matrices")                                \
    KEY(matrix_weight, "matrix-weight", "(0,inf)", "root mean square of the matrices' direction")           \
    KEY(inner_steps, "inner-steps", "[1,1e9]i", "steps from one outer step to the next (H)")                \
    KEY(outer_lr, "outer-lr", "[0,inf)", "of the outer Nesterov step")                                      \
    KEY(outer_momentum, "outer-momentum", "[0,1)", "of the outer Nesterov step")                            \
    KEY(mu_x, "mu-x", "[0,1]", "weight of x in the new x")                                                  \
    KEY(mu_y, "mu-y", "[1e-3,1]", "weight of x in y")                                                       \
    KEY(r, "r", "[0,16]", "power of t in the average's weights")                                            \
    KEY(lambda, "lambda", "[0,inf)", "weight of the past in the average; 0: t = 1, 2, ..")                  \
    KEY(lr_cap, "lr-cap", "[-1,inf)", "longest step, times the schedule; 0: none; -1: matrices' 1/fan-in") \
    KEY(d0, "d0", "[1e-12,inf)", "first estimate of the distance to the solution")                          \
    KEY(d_coef, "d-coef", "(0,inf)", "factor of the estimate")                                              \
    KEY(growth_rate, "growth-rate", "[1,inf]", "the most the estimate grows by; prodigy's first is free")   \
    KEY(safeguard_warmup, "safeguard-warmup", "[0,1]i", "keep the rate out of the estimate's denominator")  \
    KEY(bias_correction, "bias-correction", "[0,1]i", "Adam's, in the rate")                                \
    KEY(slice_p, "slice-p", "[1,1e9]i", "estimate from every p-th entry of each tensor")                    \
    KEY(reps_rel, "reps-rel", "(0,inf)", "the first distance, relative to 1 + |x0|")                        \
    KEY(first_step, "first-step", "(0,inf)", "length of the first step")                                    \
    KEY(version, "version", "[1,2]i", "of the step rule")                                                   \
    KEY(l1, "l1", "[0,inf)", "weight of |x|_1 in the objective")                                            \
    KEY(box_low, "box-low", "[-inf,inf)", "lower bound of every entry")                                     \
    KEY(box_high, "box-high", "(-inf,inf]", "upper bound of every entry")

// Buffers: name, 1: begins as a copy of params, else zero; 1: has num_slices elements, else n
#define OPTIM_BUFFERS(BUFFER)                                                                               \
    BUFFER(m, 0, 0)         /* momentum, or first moment */                                                 \
    BUFFER(v, 0, 0)         /* second moment; Muon's directions */                                          \
    BUFFER(z, 1, 0)         /* the sequence that takes the steps, where params is an average's */           \
    BUFFER(outer, 0, 0)     /* diloco: the outer momentum */                                                \
    BUFFER(x_outer, 1, 0)   /* diloco: where the last outer step ended */                                   \
    BUFFER(x0, 1, 1)        /* the start */                                                                 \
    BUFFER(sum, 0, 1)       /* weighted sum of gradients */                                                 \
    BUFFER(x_average, 1, 0)                                                                                 \
    BUFFER(r2, 0, 0)        /* cdowg: largest squared distance from the start, in every entry */            \
    BUFFER(x_prev, 0, 0)                                                                                    \
    BUFFER(g_prev, 0, 0)

#define OPTIM_DOUBLE(field, name, range, meaning) double field;
#define OPTIM_POINTER(name, start, sliced) float *name;
typedef struct { OPTIM_KEYS(OPTIM_DOUBLE) } OptimHyper;

typedef struct {          // everything that changes from step to step besides the buffers
    double t;                       // updates done
    double step, step_prev;         // the last two step lengths, where the optimizer finds them itself
    double d, d_max, numerator;     // estimated distance to the solution (prodigy, dadapt-adam, resetting)
    double distance, grad_sum;      // largest |x-x0| (dowg: its square); sum of |g|^2 (dowg: weighted)
    double lr_max, weight_sum;      // schedule-free
} OptimScalars;

typedef enum { OPTIM_NO_BASE, OPTIM_ADAMW, OPTIM_SGD, OPTIM_MUON } OptimBase;
typedef struct Optimizer Optimizer;

typedef struct {          // what optim_step was given
    const float *g;
    float scale;          // the gradient is scale * g
    double lr, muon_lr, lr_cap; // scheduled; lr_cap is infinite where there is none
    double gap;           // f_t(x) - f*_t
} OptimInput;

typedef struct {          // a row of the table of optimizers, optim_rows
    const char *name;
    OptimBase base;
    const char *buffers;  // their names
    const char *defaults; // its hyperparameters, each with its default
    const char *maths;
    void (*step)(Optimizer *o, const OptimInput *in);
    void (*eval)(const Optimizer *o, float *out);        // writes x; NULL: x is params
} OptimRow;

struct Optimizer {
    const OptimRow *row;
    OptimHyper h;
    OptimScalars s;
    float *params;        // the caller's, as many as n
    size_t n, moving;     // moving: those that the segments cover
    size_t num_slices;    // of a sliced buffer: every slice-p-th element of each segment
    OPTIM_BUFFERS(OPTIM_POINTER)                         // those of the row are allocated, the others NULL
    void (*average)(float *x, size_t n); // diloco among workers: x = its mean over them, the same bits where
                                         // no segment is; NULL: one worker
    OptimSegment *segments;
    int num_segments;
    OptimChunk *chunks;   // the rest's, the matrices' where Muon moves them, prodigy's slices
    OptimSums *sums;
    OptimSpan all, rest, matrices, slices;
    float *muon_scratch;
};

// Muon's products, row-major: C (M x N) = op(A) (M x K) op(B) (K x N). op transposes where asked for: A is
// then stored (K x M), B (N x K). symmetric: C is known to be, so half of it is enough to compute. A program
// with a fast kernel puts it here.
OPTIM_API void optim_matmul_plain(float *C, const float *A, const float *B, int M, int N, int K, int transA,
                                  int transB, int symmetric) {
    const size_t a_row = transA ? 1 : K, a_col = transA ? M : 1;
#ifdef OPTIM_CUDA
    cudaDeviceSynchronize();                               // kernels before it may still write A and B
#endif
    OPTIM_PARALLEL for (int i = 0; i < M; i++) {
        float *c = C + (size_t)i * N;
        const float *a = A + i * a_row;
        for (int j = 0; j < N; j++) c[j] = 0;
        for (int k = 0; k < K && !transB; k++) {
            const float w = a[k * a_col], *b = B + (size_t)k * N;
            OPTIM_SIMD for (int j = 0; j < N; j++) c[j] += w * b[j];
        }
        for (int j = 0; j < N && transB; j++) {
            const float *b = B + (size_t)j * K;
            float s0 = 0, s1 = 0;
            OPTIM_SIMD_SUM for (int k = 0; k < K; k++) s0 += a[k * a_col] * b[k];
            c[j] = s0 + s1;
        }
    }
    (void)symmetric;
}
OPTIM_API void (*optim_matmul)(float *C, const float *A, const float *B, int M, int N, int K, int transA,
                               int transB, int symmetric) = optim_matmul_plain;

// -----------------------------------------------------------------------------------------------------------
// AdamW, SGD, Muon: on their own, and as bases of DiLoCo, GPA and IAM
static const char optim_maths_adamw[] =
    "m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2                       arXiv 1711.05101, torch.optim.AdamW\n"
    "u = m/(1-b1^(t+1)) / (sqrt(v/(1-b2^(t+1))) + eps)\n"
    "x = (1 - lr wd) x - lr u\n";
static const char optim_maths_sgd[] =
    "m = momentum m + (1-dampening) g, the first m = g; momentum 0: m = g       torch.optim.SGD\n"
    "x = (1 - lr wd) x - lr m    (torch adds wd x to g instead)\n";
static const char optim_maths_muon[] =
    "matrices: m = momentum m + g                                      kellerjordan.github.io/posts/muon\n"
    "u = NS(g + momentum m) sqrt(max(1, rows/cols)), NS: singular values near 1 by five Newton-Schulz steps\n"
    "x = (1 - muon_lr wd) x - muon_lr u;  the rest: AdamW\n";

typedef struct { float b1, a1, b2, a2, c1, c2, eps; } OptimAdam;    // a = 1-b; c1, c2: bias correction

static OptimAdam optim_adam(const Optimizer *o) {
    const double b1 = o->h.beta1, b2 = o->h.beta2, k = o->s.t + 1;
    OptimAdam c = { (float)b1, (float)(1 - b1), (float)b2, (float)(1 - b2), (float)(1 / (1 - pow(b1, k))),
                    (float)(1 / sqrt(1 - pow(b2, k))), (float)o->h.eps };
    return c;
}

OPTIM_ELEMENT float optim_adam_direction(float g, float *m, float *v, OptimAdam c) {
    *m = c.b1 * *m + c.a1 * g;
    *v = c.b2 * *v + c.a2 * g * g;
    return *m * c.c1 / (sqrtf(*v) * c.c2 + c.eps);
}
OPTIM_PASS(optim_adamw, (float *x, const float *g, float scale, float *m, float *v, OptimAdam c, float lr,
                         float wd),
    const float u = optim_adam_direction(scale * g[i], &m[i], &v[i], c);
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * u;)

OPTIM_PASS(optim_sgd, (float *x, const float *g, float scale, float *m, float momentum, float a, float lr,
                       float wd),
    m[i] = momentum * m[i] + a * (scale * g[i]);
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * m[i];)

// The gradient's weight in SGD's momentum: torch starts the momentum at the first gradient, undampened, and
// dampens nothing where there is no momentum.
static float optim_gradient_weight(const Optimizer *o) {
    return o->s.t == 0 || o->h.momentum == 0 ? 1 : (float)(1 - o->h.dampening);
}

OPTIM_SUM(float, optim_muon_momentum, (const float *g, float scale, float *m, float *u, float momentum),
    m[i] = momentum * m[i] + scale * g[i];
    u[i] = scale * g[i] + momentum * m[i];
    s0 += u[i] * u[i];)
OPTIM_PASS(optim_muon, (float *x, const float *u, float lr, float wd),
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * u[i];)

OPTIM_PASS(optim_scale, (float *x, float scale), x[i] *= scale;)
OPTIM_PASS(optim_polynomial, (float *P, const float *G), P[i] = 2.0315f * P[i] - 4.7750f * G[i];)
OPTIM_PASS(optim_add_diagonal, (float *P, float a, size_t step), P[i * step] += a;)

// u = scale NS(norm u), u (rows x cols) with norm times its singular values at most 1. NS is five steps of
// X = P X, P = 3.4445 I - 4.7750 G + 2.0315 G^2, G = X X^T; a tall X has the same from the right, G = X^T X.
// All P are polynomials in the first G, so they commute, and only G, min(rows, cols) wide, has to go through
// the steps: G = P G P, and Q = P Q is applied to X once (Zhang, Amsel, Chen, Dao: Gram Newton-Schulz, 2026).
// Errors in small eigenvalues of G grow tenfold a step; X and G made anew after three keeps them as small as
// they are in steps of X. scratch: rows x cols + 4 min(rows, cols)^2.
static void optim_orthogonalise(float *u, int rows, int cols, float norm, float scale, float *scratch) {
    const int tall = rows > cols, n = tall ? cols : rows, K = tall ? rows : cols;
    const size_t square = (size_t)n * n;
    const OptimSpan all = optim_flat(square, NULL), diagonal = optim_flat(n, NULL);
    float *Y = scratch, *G = Y + (size_t)rows * cols, *P = G + square, *Q = P + square, *T = Q + square;
    float *swap;
    for (int step = 0; step < 5; step++) {
        const int first = step == 0 || step == 3;
        if (step == 3) optim_matmul(Y, tall ? u : Q, tall ? Q : u, rows, cols, n, 0, 0, 0);
        if (first) {
            const float *X = step ? Y : u;
            optim_matmul(G, X, X, n, n, K, tall, !tall, 1);
            optim_scale(all, G, norm * norm);
        }
        optim_matmul(P, G, G, n, n, n, 0, 0, 1);
        optim_polynomial(all, P, G);
        optim_add_diagonal(diagonal, P, 3.4445f, n + 1);
        if (step != 2 && step != 4) {                                           // there G is not needed again
            optim_matmul(T, G, P, n, n, n, 0, 0, 1);
            optim_matmul(G, T, P, n, n, n, 0, 0, 1);
        }
        if (first) { swap = Q; Q = P; P = swap; continue; }
        optim_matmul(T, P, Q, n, n, n, 0, 0, 1);
        swap = Q; Q = T; T = swap;
    }
    optim_scale(all, Q, norm * scale);
    optim_matmul(u, tall ? Y : Q, tall ? Q : Y, rows, cols, n, 0, 0, 0);
}

// Every matrix's direction u, kept where the rest has v (Adam's second moment). rms: the root mean square of
// u's entries (those of NS have 1/sqrt(max(rows, cols))); 0: Muon's own scale.
static void optim_muon_directions(Optimizer *o, const OptimInput *in, double rms) {
    if (!o->matrices.count) return;
    optim_muon_momentum(o->matrices, in->g, in->scale, o->m, o->v, (float)o->h.muon_momentum);
    const OptimSums *sums = o->matrices.sums;                                // of this matrix's chunks
    for (int j = 0; j < o->num_segments; j++) {
        const OptimSegment *seg = &o->segments[j];
        if (!seg->rows) continue;
        const int chunks = (int)((seg->size + OPTIM_CHUNK - 1) / OPTIM_CHUNK);
        const double larger = seg->rows > seg->cols ? seg->rows : seg->cols;
        const double scale = rms > 0 ? rms * sqrt(larger) : sqrt(larger / seg->cols);
        const double norm = 1 / (sqrt(optim_add(sums, chunks).s0) + 1e-7);
        optim_orthogonalise(o->v + seg->offset, seg->rows, seg->cols, (float)norm, (float)scale,
                            o->muon_scratch);
        sums += chunks;
    }
}

static void optim_step_base(Optimizer *o, const OptimInput *in) {
    const float lr = (float)in->lr, wd = (float)o->h.weight_decay;
    if (o->row->base == OPTIM_SGD) {
        optim_sgd(o->all, o->params, in->g, in->scale, o->m, (float)o->h.momentum, optim_gradient_weight(o),
                  lr, wd);
        return;
    }
    optim_adamw(o->rest, o->params, in->g, in->scale, o->m, o->v, optim_adam(o), lr, wd);
    optim_muon_directions(o, in, 0);
    optim_muon(o->matrices, o->params, o->v, (float)in->muon_lr, wd);
}

// -----------------------------------------------------------------------------------------------------------
// DiLoCo
static const char optim_maths_diloco[] =
    "x: steps of the base, whose state is kept; after every inner-steps of them         arXiv 2311.08105\n"
    "d = x_outer - x (x the mean over the workers),  outer = outer_momentum outer + d\n"
    "x_outer = x_outer - outer_lr (d + outer_momentum outer),  x = x_outer;  workers evaluate x_outer\n";

OPTIM_PASS(optim_outer, (float *x, float *x_outer, float *outer, float lr, float momentum),
    const float d = x_outer[i] - x[i];
    outer[i] = momentum * outer[i] + d;
    x_outer[i] -= lr * (d + momentum * outer[i]);
    x[i] = x_outer[i];)

static void optim_step_diloco(Optimizer *o, const OptimInput *in) {
    optim_step_base(o, in);
    if (fmod(o->s.t + 1, o->h.inner_steps) != 0) return;
    if (o->average) o->average(o->params, o->n);
    optim_outer(o->all, o->params, o->x_outer, o->outer, (float)o->h.outer_lr, (float)o->h.outer_momentum);
}

// Between outer steps x differs among workers; x_outer is what they share.
static void optim_eval_diloco(const Optimizer *o, float *out) {
    optim_copy(o->all, out, o->average ? o->x_outer : o->params);
}

// -----------------------------------------------------------------------------------------------------------
// Generalized Primal Averaging
static const char optim_maths_gpa[] =
    "y = mu_y x + (1-mu_y) z, g at y;  u: the base's step         arXiv 2512.17131, facebookresearch gpa/\n"
    "z = (1 - lr wd) z - lr u,  x = mu_x x + (1-mu_x) z;  DiLoCo's H steps: mu_x = momentum^(1/H)\n"
    "stored: z, which decays first, and y = (1-c) y + c z + lr (mu_y (1-c) - 1) u, c = 1-mu_x;\n"
    "x = y + (1 - 1/mu_y) (z - y).  Over sgd and muon z's decay moves y, too, by 1-mu_y times as much\n"
    "train_gpt2 sets mu-x = 1 - 15/steps and, in a new model over adamw or muon, lr = 1/width\n";

// Weight decay moves z before the step (the authors' public code adds wd y to u instead). Over AdamW y stays
// where it is, so the x that y and z imply moves along; over the other bases x stays, which moves y by
// (1-mu_y) times z's move.
typedef struct { float c, k, follow; } OptimGpa;                    // 1-mu_x; mu_y (1-c) - 1; 0 or 1-mu_y

OPTIM_ELEMENT void optim_gpa_move(float *y, float *z, float u, float lr, float decay, const OptimGpa *w) {
    const float z0 = decay * *z, y0 = *y + w->follow * (z0 - *z);
    *y = y0 + (w->c * (z0 - y0) + lr * w->k * u);       // one sum: where c is small, y0 + c (z0-y0) is y0
    *z = z0 - lr * u;
}
OPTIM_PASS(optim_gpa_adamw, (float *y, float *z, const float *g, float scale, float *m, float *v, OptimAdam c,
                             float lr, float wd, OptimGpa w),
    const float u = optim_adam_direction(scale * g[i], &m[i], &v[i], c);
    optim_gpa_move(&y[i], &z[i], u, lr, 1 - lr * wd * chunk.decay, &w);)
OPTIM_PASS(optim_gpa_sgd, (float *y, float *z, const float *g, float scale, float *m, float momentum, float a,
                           float lr, float wd, OptimGpa w),
    m[i] = momentum * m[i] + a * (scale * g[i]);
    optim_gpa_move(&y[i], &z[i], m[i], lr, 1 - lr * wd * chunk.decay, &w);)
OPTIM_PASS(optim_gpa_muon, (float *y, float *z, const float *u, float lr, float wd, OptimGpa w),
    optim_gpa_move(&y[i], &z[i], u[i], lr, 1 - lr * wd * chunk.decay, &w);)

static void optim_step_gpa(Optimizer *o, const OptimInput *in) {
    const float lr = (float)in->lr, wd = (float)o->h.weight_decay;
    const double follow = o->row->base == OPTIM_ADAMW ? 0 : 1 - o->h.mu_y;
    const OptimGpa w = { (float)(1 - o->h.mu_x), (float)(o->h.mu_y * o->h.mu_x - 1), (float)follow };
    if (o->row->base == OPTIM_SGD) {
        optim_gpa_sgd(o->all, o->params, o->z, in->g, in->scale, o->m, (float)o->h.momentum,
                      optim_gradient_weight(o), lr, wd, w);
        return;
    }
    optim_gpa_adamw(o->rest, o->params, o->z, in->g, in->scale, o->m, o->v, optim_adam(o), lr, wd, w);
    optim_muon_directions(o, in, 0);
    optim_gpa_muon(o->matrices, o->params, o->z, o->v, (float)in->muon_lr, wd, w);
}

OPTIM_PASS(optim_extrapolate, (float *x, const float *y, const float *z, float w),
    x[i] = y[i] + w * (z[i] - y[i]);)
static void optim_eval_gpa(const Optimizer *o, float *out) {
    optim_extrapolate(o->all, out, o->params, o->z, (float)(1 - 1 / o->h.mu_y));
}

// -----------------------------------------------------------------------------------------------------------
// Schedule-Free
static const char optim_maths_schedule_free[] =
    "y = b1 x + (1-b1) z, g at y                                       arXiv 2405.15682, schedule_free\n"
    "u = g/(sqrt(v/(1-b2^(t+1))) + eps) + wd y (SGD: g + wd y),  z = z - lr u;  needs warmup, no schedule\n"
    "x = (1-c) x + c z,  c = w_t/sum w,  w_t = (t+1)^r lr_max^2;  stored as GPA's y and z, mu_y = b1\n";

OPTIM_PASS(optim_schedule_free, (float *y, float *z, const float *g, float scale, float *v, OptimAdam c,
                                 float lr, float wd, OptimGpa w),
    const float grad = scale * g[i];
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    const float u = grad / (sqrtf(v[i]) * c.c2 + c.eps) + wd * chunk.decay * y[i];
    optim_gpa_move(&y[i], &z[i], u, lr, 1, &w);)
OPTIM_PASS(optim_schedule_free_sgd, (float *y, float *z, const float *g, float scale, float lr, float wd,
                                     OptimGpa w),
    optim_gpa_move(&y[i], &z[i], scale * g[i] + wd * chunk.decay * y[i], lr, 1, &w);)

static void optim_step_schedule_free(Optimizer *o, const OptimInput *in) {
    o->s.lr_max = fmax(o->s.lr_max, in->lr);
    const double weight = pow(o->s.t + 1, o->h.r) * o->s.lr_max * o->s.lr_max;
    o->s.weight_sum += weight;
    const double c = weight > 0 ? weight / o->s.weight_sum : 0;
    const OptimGpa w = { (float)c, (float)(o->h.beta1 * (1 - c) - 1), 0 };
    const float lr = (float)in->lr, wd = (float)o->h.weight_decay;
    if (o->v) optim_schedule_free(o->all, o->params, o->z, in->g, in->scale, o->v, optim_adam(o), lr, wd, w);
    else optim_schedule_free_sgd(o->all, o->params, o->z, in->g, in->scale, lr, wd, w);
}
static void optim_eval_schedule_free(const Optimizer *o, float *out) {
    optim_extrapolate(o->all, out, o->params, o->z, (float)(1 - 1 / o->h.beta1));
}

// -----------------------------------------------------------------------------------------------------------
// Prodigy, D-Adaptation, Resetting: d estimates the distance to the solution
static const char optim_maths_prodigy[] =
    "num = b3 num + (d/d0) dlr <g, x0-x>,  s = b3 s + (d/d0) dlr g,  b3: sqrt b2 if 0,  dlr = d lr\n"
    "m = b1 m + d (1-b1) g,  v = b2 v + d^2 (1-b2) g^2\n"
    "d_max = max(d_max, d_hat),  d_hat = d_coef num/|s|_1;  then d = min(d_max, growth_rate d)\n"
    "x = (1 - wd dlr) x - dlr m/(sqrt v + d eps), dlr with the d before    2306.06101, konstmish/prodigy\n";
static const char optim_maths_dadapt[] =
    "num = sqrt b2 num + (1-sqrt b2) dlr <g, s/(sqrt v + eps)>, v before its update,  dlr = d lr\n"
    "m = b1 m + dlr (1-b1) g,  v = b2 v + (1-b2) g^2,  s = sqrt b2 s + (1-sqrt b2) dlr g\n"
    "x = (1 - wd dlr) x - m/(sqrt v + eps)                                            arXiv 2301.07733\n"
    "d = max(d, min(d_hat, growth_rate d)),  d_hat = num/((1-sqrt b2) |s|_1)\n";
static const char optim_maths_resetting[] =
    "s = s + d g,  gamma = 1/sqrt(sum |g|^2),  x = x0 - gamma s        arXiv 2306.06101, dual averaging\n"
    "d_hat = (gamma |s|^2 - sum gamma_k d^2 |g_k|^2)/(2 |s|), gamma_k from the gradients before k\n"
    "where d_hat > 2 d: d = d_hat, x = x0, and the sums start again;  gamma_0 = 1/|g_0|\n";

OPTIM_ELEMENT float optim_prodigy_sum(float grad, float *s, float b3, float a) {
    return fabsf(*s = b3 * *s + a * grad);
}
OPTIM_SUM(float, optim_prodigy_sums, (const float *x, const float *x0, const float *g, float scale, float *s,
                                      float b3, float a),
    s0 += (scale * g[i]) * (x0[i] - x[i]);
    s1 += optim_prodigy_sum(scale * g[i], &s[i], b3, a);)

// The same from every slice-th entry of each tensor: element i of x0 and s belongs to element `at` of x.
OPTIM_SUM(float, optim_prodigy_slices, (const float *x, const float *x0, const float *g, float scale,
                                        float *s, float b3, float a, size_t slice),
    const size_t at = chunk.first + (i - chunk.begin) * slice;
    s0 += (scale * g[at]) * (x0[i] - x[at]);
    s1 += optim_prodigy_sum(scale * g[at], &s[i], b3, a);)
OPTIM_PASS(optim_copy_slices, (float *out, const float *x, size_t slice),
    out[i] = x[chunk.first + (i - chunk.begin) * slice];)

OPTIM_PASS(optim_prodigy, (float *x, const float *g, float scale, float *m, float *v, float b1, float a1,
                           float b2, float a2, float eps, float dlr, float wd),
    const float grad = scale * g[i];
    m[i] = b1 * m[i] + a1 * grad;
    v[i] = b2 * v[i] + a2 * grad * grad;
    x[i] = (1 - wd * dlr * chunk.decay) * x[i] - dlr * m[i] / (sqrtf(v[i]) + eps);)

static void optim_step_prodigy(Optimizer *o, const OptimInput *in) {
    const OptimHyper *h = &o->h;
    const double d = o->s.d, k = o->s.t + 1, b3 = h->beta3 > 0 ? h->beta3 : sqrt(h->beta2);
    const double correction = h->bias_correction ? sqrt(1 - pow(h->beta2, k)) / (1 - pow(h->beta1, k)) : 1;
    const double dlr = d * in->lr * correction, a = d / h->d0 * (h->safeguard_warmup ? d : dlr);
    o->s.step = dlr;
    if (in->lr == 0) return;                          // nothing is to move, nothing can be learned about d
    const OptimSums sums = h->slice_p == 1
        ? optim_prodigy_sums(o->all, o->params, o->x0, in->g, in->scale, o->sum, (float)b3, (float)a)
        : optim_prodigy_slices(o->slices, o->params, o->x0, in->g, in->scale, o->sum, (float)b3, (float)a,
                               (size_t)h->slice_p);
    if (sums.s1 == 0) return;                             // all gradients so far were zero
    o->s.numerator = b3 * o->s.numerator + d / h->d0 * dlr * sums.s0;
    const double d_hat = h->d_coef * o->s.numerator / sums.s1;
    o->s.d_max = fmax(o->s.d_max, d_hat);
    o->s.d = fmin(o->s.d_max, (d == h->d0 ? fmax(d, d_hat) : d) * h->growth_rate);
    optim_prodigy(o->all, o->params, in->g, in->scale, o->m, o->v, (float)h->beta1,
                  (float)(d * (1 - h->beta1)), (float)h->beta2, (float)(d * d * (1 - h->beta2)),
                  (float)(o->s.d * h->eps), (float)dlr, (float)h->weight_decay);
}

// d moves only the next step's rate, so that sums and update are one pass.
OPTIM_SUM(float, optim_dadapt, (float *x, const float *g, float scale, float *m, float *v, float *s,
                                OptimAdam c, float b3, float a3, float dlr, float wd),
    const float grad = scale * g[i];
    s0 += grad * (s[i] / (sqrtf(v[i]) + c.eps));
    m[i] = c.b1 * m[i] + dlr * c.a1 * grad;
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    s[i] = b3 * s[i] + a3 * grad;
    s1 += fabsf(s[i]);
    x[i] = (1 - wd * dlr * chunk.decay) * x[i] - m[i] / (sqrtf(v[i]) + c.eps);)

static void optim_step_dadapt(Optimizer *o, const OptimInput *in) {
    const double dlr = o->s.step = o->s.d * in->lr, b3 = sqrt(o->h.beta2);
    if (in->lr == 0) return;                              // m has earlier rates in it, and would move x
    const OptimSums sums = optim_dadapt(o->all, o->params, in->g, in->scale, o->m, o->v, o->sum,
                                        optim_adam(o), (float)b3, (float)((1 - b3) * dlr), (float)dlr,
                                        (float)o->h.weight_decay);
    if (sums.s1 == 0) return;
    o->s.numerator = b3 * o->s.numerator + (1 - b3) * dlr * sums.s0;
    const double d_hat = o->s.numerator / ((1 - b3) * sums.s1);
    o->s.d = fmax(o->s.d, fmin(d_hat, o->s.d * o->h.growth_rate));
}

OPTIM_SUM(float, optim_dual_sum, (const float *g, float scale, float *s, float d),
    const float grad = scale * g[i];
    s[i] += d * grad;
    s0 += s[i] * s[i];
    s1 += grad * grad;)
OPTIM_PASS(optim_dual_step, (float *x, const float *x0, const float *s, float gamma),
    x[i] = x0[i] - gamma * s[i];)
OPTIM_PASS(optim_dual_reset, (float *x, const float *x0, float *s), x[i] = x0[i]; s[i] = 0;)

static void optim_step_resetting(Optimizer *o, const OptimInput *in) {
    OptimScalars *s = &o->s;
    const OptimSums sums = optim_dual_sum(o->all, in->g, in->scale, o->sum, (float)s->d);
    if (sums.s0 == 0) return;                             // all gradients so far were zero
    s->numerator += s->d * s->d * sums.s1 / sqrt(s->grad_sum > 0 ? s->grad_sum : sums.s1);
    s->grad_sum += sums.s1;
    const double gamma = 1 / sqrt(s->grad_sum);
    const double d_hat = (gamma * sums.s0 - s->numerator) / (2 * sqrt(sums.s0));
    s->step = gamma * s->d;
    if (d_hat > 2 * s->d) {
        s->d = d_hat;
        s->numerator = s->grad_sum = 0;
        optim_dual_reset(o->all, o->params, o->x0, o->sum);
    } else {
        optim_dual_step(o->all, o->params, o->x0, o->sum, (float)gamma);
    }
}

// -----------------------------------------------------------------------------------------------------------
// DoG and DoWG: distance over (weighted) gradients
static const char optim_maths_dog[] =
    "rbar = max(rbar, |x-x0|), at first reps_rel (1 + |x0|)            arXiv 2302.12022, formll/dog\n"
    "x = x - lr rbar/sqrt(sum |g|^2 + eps) g\n"
    "evaluated: x_average = x_average + 9/(8+t) (x - x_average), t = 1, 2, ..\n";
static const char optim_maths_dowg[] =
    "r2 = max(r2, |x-x0|^2), at first eps                              arXiv 2305.16284, rka97/dowg\n"
    "v = v + r2 |g|^2\n"
    "x = x - r2 g/(sqrt v + eps)\n";
static const char optim_maths_cdowg[] =
    "r2 = max(r2, (x-x0)^2), at first 1e-4, for every entry            arXiv 2305.16284, rka97/dowg (CDoWG)\n"
    "v = v + r2 g^2\n"
    "x = x - r2 g/(sqrt v + eps)\n";

OPTIM_ELEMENT float optim_max(float a, float b) { return a < b ? b : a; } // a, if it is not a number
OPTIM_ELEMENT float optim_min(float a, float b) { return a > b ? b : a; }

OPTIM_SUM(float, optim_distance, (const float *x, const float *x0, const float *g, float scale),
    const float d = x[i] - x0[i], grad = scale * g[i];
    s0 += d * d;
    s1 += grad * grad;)
OPTIM_PASS(optim_descend, (float *x, const float *g, float a), x[i] -= a * g[i];)
OPTIM_PASS(optim_dog, (float *x, const float *g, float *average, float a, float w),
    x[i] -= a * g[i];
    average[i] += w * (x[i] - average[i]);)
OPTIM_PASS(optim_cdowg, (float *x, const float *x0, const float *g, float scale, float *r2, float *v,
                         float eps),
    const float d = x[i] - x0[i], grad = scale * g[i];
    r2[i] = optim_max(optim_max(r2[i], 1e-4f), d * d);
    v[i] += r2[i] * grad * grad;
    x[i] -= r2[i] * grad / (sqrtf(v[i]) + eps);)

static void optim_step_dog(Optimizer *o, const OptimInput *in) {
    const OptimSums sums = optim_distance(o->all, o->params, o->x0, in->g, in->scale);
    if (o->s.t == 0) {
        o->s.distance = o->h.reps_rel * (1 + sqrt(optim_norms(o->all, o->x0).s0));
        o->s.grad_sum = o->h.eps;
    }
    o->s.distance = fmax(o->s.distance, sqrt(sums.s0));
    o->s.grad_sum += sums.s1;
    o->s.step = in->lr * o->s.distance / sqrt(o->s.grad_sum);
    optim_dog(o->all, o->params, in->g, o->x_average, (float)(o->s.step * in->scale),
              (float)(9 / (9 + o->s.t)));
}
static void optim_eval_dog(const Optimizer *o, float *out) { optim_copy(o->all, out, o->x_average); }

static void optim_step_dowg(Optimizer *o, const OptimInput *in) {
    const OptimSums sums = optim_distance(o->all, o->params, o->x0, in->g, in->scale);
    o->s.distance = fmax(o->s.t == 0 ? o->h.eps : o->s.distance, sums.s0);            // squared
    o->s.grad_sum += o->s.distance * sums.s1;
    o->s.step = o->s.distance / (sqrt(o->s.grad_sum) + o->h.eps);
    optim_descend(o->all, o->params, in->g, (float)(o->s.step * in->scale));
}
static void optim_step_cdowg(Optimizer *o, const OptimInput *in) {
    optim_cdowg(o->all, o->params, o->x0, in->g, in->scale, o->r2, o->v, (float)o->h.eps);
    o->s.step = NAN; // each entry has its own
}

// -----------------------------------------------------------------------------------------------------------
// SPS* and IAM: Polyak's step, with a teacher's loss for the loss at the solution
static const char optim_maths_sps[] =
    "a = [f_t(x) - f*_t]_+ / |g|^2                                     arXiv 2504.01898\n"
    "x = x - a g\n";
static const char optim_maths_iam[] =
    "a = [f_t(x) - f*_t + <g, z-x>]_+ / <g, d>, at most lr-cap, scheduled;  g at x   arXiv 2504.01898\n"
    "z = z - a (d + wd x),  x = l/(1+l) x + 1/(1+l) z,  l = lambda, or t = 1, 2, .. where lambda is 0\n"
    "d = g (sgd); g/D, D = sqrt(v/(1-b2^(t+1))) + eps (adamw); over muon g/D for the rest, for the matrices\n"
    "matrix-weight sqrt(max(rows, cols)) NS(g + muon_momentum m).  The paper's: lambda 9, lr-cap 0\n";

static void optim_step_sps(Optimizer *o, const OptimInput *in) {
    const double scale = in->scale, g2 = scale * scale * optim_norms(o->all, in->g).s0;
    o->s.step = g2 > 0 ? (in->gap < 0 ? 0 : in->gap) / g2 : 0;       // a gap that is NaN makes x NaN
    optim_descend(o->all, o->params, in->g, (float)(o->s.step * scale));
}

// s0 = <g, z-x>, s1 = <g, d>
OPTIM_SUM(float, optim_iam_sum_sgd, (const float *x, const float *z, const float *g, float scale),
    const float grad = scale * g[i];
    s0 += grad * (z[i] - x[i]);
    s1 += grad * grad;)
OPTIM_SUM(float, optim_iam_sum_adam, (const float *x, const float *z, const float *g, float scale, float *v,
                                      OptimAdam c),
    const float grad = scale * g[i];
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    s0 += grad * (z[i] - x[i]);
    s1 += grad * (grad / (sqrtf(v[i]) * c.c2 + c.eps));)
OPTIM_SUM(float, optim_iam_sum_muon, (const float *x, const float *z, const float *g, float scale,
                                      const float *u),
    const float grad = scale * g[i];
    s0 += grad * (z[i] - x[i]);
    s1 += grad * u[i];)

OPTIM_ELEMENT void optim_iam_move(float *x, float *z, float d, float a, float wd, float c) {   // c = 1/(1+l)
    *z -= a * (d + wd * *x);
    *x += c * (*z - *x);
}
OPTIM_PASS(optim_iam_sgd, (float *x, float *z, const float *g, float scale, float a, float wd, float c),
    optim_iam_move(&x[i], &z[i], scale * g[i], a, wd * chunk.decay, c);)
OPTIM_PASS(optim_iam_adam, (float *x, float *z, const float *g, float scale, const float *v, OptimAdam adam,
                            float a, float wd, float c),
    const float d = scale * g[i] / (sqrtf(v[i]) * adam.c2 + adam.eps);
    optim_iam_move(&x[i], &z[i], d, a, wd * chunk.decay, c);)
OPTIM_PASS(optim_iam_muon, (float *x, float *z, const float *u, float a, float wd, float c),
    optim_iam_move(&x[i], &z[i], u[i], a, wd * chunk.decay, c);)

// Why a cap. Polyak's step is as long as the line from f_t(x) along d needs to come down to the teacher's
// loss. A student that cannot get there has a gap that never closes, and steps that never shorten; they even
// grow, for where they are too long g is small against the noise that D remembers. How far the line holds is
// known from the shapes: entries of d near 1, times inputs near 1 (they come from a LayerNorm), change a
// matrix's outputs by their own size where a is 1/fan-in, Adam's rate by width in arXiv 2203.03466 too. The
// schedule on the cap anneals the noise that an open gap would keep; where the teacher is within reach, a is
// below it. Under the cap lambda 4, which averages over fewer steps than the paper's 9, is stable.
//
// Why 0.2 for Muon's matrices: the root mean square of Adam's steps (0.2 to 0.4, arXiv 2502.16982), so that
// one a, and one cap, suits matrices and rest.
static void optim_step_iam(Optimizer *o, const OptimInput *in) {
    float *x = o->params, *z = o->z, *v = o->v;
    const int sgd = o->row->base == OPTIM_SGD;
    const OptimAdam adam = optim_adam(o);
    const float wd = (float)o->h.weight_decay;
    OptimSums matrices = { 0, 0 }, rest;
    if (sgd) {
        rest = optim_iam_sum_sgd(o->all, x, z, in->g, in->scale);
    } else {
        optim_muon_directions(o, in, o->h.matrix_weight);
        matrices = optim_iam_sum_muon(o->matrices, x, z, in->g, in->scale, v);
        rest = optim_iam_sum_adam(o->rest, x, z, in->g, in->scale, v, adam);
    }
    const double above = matrices.s0 + in->gap + rest.s0, slope = matrices.s1 + rest.s1;
    const double polyak = slope > 0 ? (above < 0 ? 0 : above) / slope : 0;
    o->s.step = polyak > in->lr_cap ? in->lr_cap : polyak;
    const float a = (float)o->s.step, c = (float)(1 / (1 + (o->h.lambda > 0 ? o->h.lambda : o->s.t + 1)));
    if (sgd) {
        optim_iam_sgd(o->all, x, z, in->g, in->scale, a, wd, c);
    } else {
        optim_iam_adam(o->rest, x, z, in->g, in->scale, v, adam, a, wd, c);
        optim_iam_muon(o->matrices, x, z, v, a, wd, c);
    }
}

// -----------------------------------------------------------------------------------------------------------
// AdGD and AdProxGD: steps from the curvature met on the way. For gradients of one function, not of batches.
static const char optim_maths_adgd[] =
    "L = |g - g_prev|/|x - x_prev|,  th = a_prev/a_prevprev          arXiv 2308.02261, ymalitsky/AdProxGD\n"
    "version 1: a = min(sqrt(1+th) a_prev, 1/(sqrt2 L)), th_0 = 0\n"
    "version 2: a = min(sqrt(2/3+th) a_prev, a_prev/sqrt([2 a_prev^2 L^2 - 1]_+)), th_0 = 1/3\n"
    "x = prox(x - a g): adproxgd's shrinks by a l1 towards 0 and clips to the box; adgd has none\n";

OPTIM_SUM(double, optim_differences, (const float *x, const float *x_prev, const float *g, float scale,
                                      const float *g_prev),
    const double dx = x[i] - x_prev[i], dg = scale * g[i] - g_prev[i];      // double: the step is sensitive
    s0 += dx * dx;
    s1 += dg * dg;)
OPTIM_PASS(optim_adproxgd, (float *x, float *x_prev, const float *g, float scale, float *g_prev, float a,
                            float l1, float low, float high),
    const float grad = scale * g[i], y = x[i] - a * grad, t = a * l1;
    x_prev[i] = x[i];
    g_prev[i] = grad;
    x[i] = optim_min(optim_max(optim_max(y - t, 0) + optim_min(y + t, 0), low), high);)

static void optim_step_adgd(Optimizer *o, const OptimInput *in) {
    const int version1 = o->h.version == 1;
    double a = o->h.first_step;
    if (o->s.t > 0) {
        const OptimSums s = optim_differences(o->all, o->params, o->x_prev, in->g, in->scale, o->g_prev);
        const double prev = o->s.step, L2 = s.s1 / s.s0;
        const double th = o->s.t > 1 ? prev / o->s.step_prev : version1 ? 0 : 1.0 / 3;
        a = s.s0 == 0 ? prev                               // x stood still: nothing was learned
          : version1 ? fmin(sqrt(1 + th) * prev, 1 / sqrt(2 * L2))
                     : fmin(sqrt(2.0 / 3 + th) * prev, prev / sqrt(fmax(2 * prev * prev * L2 - 1, 0)));
    }
    o->s.step_prev = o->s.step;
    o->s.step = a;
    optim_adproxgd(o->all, o->params, o->x_prev, in->g, in->scale, o->g_prev, (float)a, (float)o->h.l1,
                   (float)o->h.box_low, (float)o->h.box_high);
}

// -----------------------------------------------------------------------------------------------------------
// The table of optimizers, with their defaults. Programs set those that depend on what they train, such as
// GPA's mu-x and lr.

#define OPTIM_ADAM_WITH_(beta1) "lr=1e-3 beta1=" beta1 " beta2=0.99 eps=1e-8 weight-decay=0.1 "
#define OPTIM_ADAM_ OPTIM_ADAM_WITH_("0.9")
#define OPTIM_SGD_ "lr=0.1 momentum=0.9 dampening=0.9 weight-decay=0 "
#define OPTIM_MUON_ "muon-lr=0.02 muon-momentum=0.95 "
#define OPTIM_FREE_ "beta1=0.9 weight-decay=0 r=0 "
#define OPTIM_D_ "lr=1 beta1=0.9 beta2=0.999 eps=1e-8 weight-decay=0 d0=1e-6 growth-rate=inf "
#define OPTIM_IAM_ADAM_ "lambda=4 lr-cap=-1 weight-decay=0 beta2=0.999 eps=1e-8 "
#define OPTIM_OVER_BASES(name, beta1, buffers, defaults, maths, step, eval)                                 \
    { name, OPTIM_ADAMW, "m v " buffers, OPTIM_ADAM_WITH_(beta1) defaults, maths, step, eval },             \
    { name, OPTIM_SGD, "m " buffers, OPTIM_SGD_ defaults, maths, step, eval },                              \
    { name, OPTIM_MUON, "m v " buffers, OPTIM_ADAM_WITH_(beta1) OPTIM_MUON_ defaults, maths, step, eval },

static const OptimRow optim_rows[] = {
    { "adamw", OPTIM_ADAMW, "m v", OPTIM_ADAM_, optim_maths_adamw, optim_step_base, NULL },
    { "sgd", OPTIM_SGD, "m", OPTIM_SGD_, optim_maths_sgd, optim_step_base, NULL },
    { "muon", OPTIM_MUON, "m v", OPTIM_ADAM_ OPTIM_MUON_, optim_maths_muon, optim_step_base, NULL },
    OPTIM_OVER_BASES("diloco", "0.9", "outer x_outer", "inner-steps=32 outer-lr=0.7 outer-momentum=0.9 ",
        optim_maths_diloco, optim_step_diloco, optim_eval_diloco)
    // The average does beta1's work as well, so beta1 is below Adam's usual 0.9.
    OPTIM_OVER_BASES("gpa", "0.5", "z", "mu-x=0.9967 mu-y=0.7 ", optim_maths_gpa, optim_step_gpa,
        optim_eval_gpa)
    { "schedule-free", OPTIM_NO_BASE, "v z", "lr=2.5e-3 beta2=0.999 eps=1e-8 " OPTIM_FREE_,
        optim_maths_schedule_free, optim_step_schedule_free, optim_eval_schedule_free },
    { "schedule-free-sgd", OPTIM_NO_BASE, "z", "lr=1 " OPTIM_FREE_, optim_maths_schedule_free,
        optim_step_schedule_free, optim_eval_schedule_free },
    { "prodigy", OPTIM_NO_BASE, "m v x0 sum", OPTIM_D_
        "d-coef=1 safeguard-warmup=0 bias-correction=0 slice-p=1 beta3=0 ", optim_maths_prodigy,
        optim_step_prodigy, NULL },
    { "dadapt-adam", OPTIM_NO_BASE, "m v sum", OPTIM_D_, optim_maths_dadapt, optim_step_dadapt, NULL },
    { "resetting", OPTIM_NO_BASE, "x0 sum", "d0=1e-6 ", optim_maths_resetting, optim_step_resetting, NULL },
    { "dog", OPTIM_NO_BASE, "x0 x_average", "lr=1 reps-rel=1e-6 eps=1e-8 ", optim_maths_dog, optim_step_dog,
        optim_eval_dog },
    { "dowg", OPTIM_NO_BASE, "x0", "eps=1e-4 ", optim_maths_dowg, optim_step_dowg, NULL },
    { "cdowg", OPTIM_NO_BASE, "x0 r2 v", "eps=1e-8 ", optim_maths_cdowg, optim_step_cdowg, NULL },
    { "sps", OPTIM_NO_BASE, "", "", optim_maths_sps, optim_step_sps, NULL },
    { "iam", OPTIM_SGD, "z", "lambda=9 lr-cap=0 weight-decay=0 ", optim_maths_iam, optim_step_iam, NULL },
    { "iam", OPTIM_ADAMW, "v z", OPTIM_IAM_ADAM_, optim_maths_iam, optim_step_iam, NULL },
    { "iam", OPTIM_MUON, "m v z", OPTIM_IAM_ADAM_ "muon-momentum=0.95 matrix-weight=0.2 ", optim_maths_iam,
        optim_step_iam, NULL },
    { "iam-adam", OPTIM_ADAMW, "v z", OPTIM_IAM_ADAM_, optim_maths_iam, optim_step_iam, NULL },
    { "adgd", OPTIM_NO_BASE, "x_prev g_prev", "first-step=0.01 version=2 ", optim_maths_adgd, optim_step_adgd,
        NULL },
    { "adproxgd", OPTIM_NO_BASE, "x_prev g_prev", "first-step=0.01 version=2 l1=0 box-low=-inf box-high=inf ",
        optim_maths_adgd, optim_step_adgd, NULL },
};

static const char *const optim_base_names[] = { "", "adamw", "sgd", "muon" };

#define OPTIM_KEY_ENTRY(field, name, range, meaning) { name, offsetof(OptimHyper, field), range, meaning },
static const struct { const char *name; size_t field; const char *range, *meaning; } optim_keys[] = {
    OPTIM_KEYS(OPTIM_KEY_ENTRY)
};
#define OPTIM_BUFFER_ENTRY(name, start, sliced) { #name, offsetof(Optimizer, name), start, sliced },
static const struct { const char *name; size_t field; int start, sliced; } optim_buffers[] = {
    OPTIM_BUFFERS(OPTIM_BUFFER_ENTRY)
};
#define OPTIM_COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

// -----------------------------------------------------------------------------------------------------------
// The interface

// Behind `word` in a list such as "m v z" or "lr=1 r=0 ", or NULL where the list lacks it.
static const char *optim_word(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && strchr(" =", at[length])) return at + length;
    return NULL;
}

static double *optim_value(const Optimizer *o, int key) {
    return (double *)((char *)&o->h + optim_keys[key].field);
}
static int optim_key(const Optimizer *o, const char *name) {        // its index, or -1 where the row lacks it
    for (int key = 0; key < OPTIM_COUNT(optim_keys); key++)
        if (!strcmp(optim_keys[key].name, name) && optim_word(o->row->defaults, name)) return key;
    return -1;
}

static void optim_choose(Optimizer *o, const OptimRow *row) {
    memset(o, 0, sizeof(*o));
    o->row = row;
    o->h.box_low = -INFINITY, o->h.box_high = INFINITY;     // adgd has none
    for (int key = 0; key < OPTIM_COUNT(optim_keys); key++) {
        const char *at = optim_word(row->defaults, optim_keys[key].name);
        if (at) *optim_value(o, key) = strtod(at + 1, NULL);
    }
}

// Chooses the optimizer of this name, over the first of its bases in the table (gpa and diloco over adamw,
// iam over sgd). 0, or -1 when the name is unknown.
OPTIM_API int optim_init(Optimizer *o, const char *name) {
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++)
        if (!strcmp(optim_rows[j].name, name)) { optim_choose(o, &optim_rows[j]); return 0; }
    return -1;
}

// "adamw", "sgd" or "muon" under diloco, gpa and iam, with that row's defaults; -1 if not applicable.
OPTIM_API int optim_set_base(Optimizer *o, const char *base) {
    const OptimRow *found = NULL;
    int rows = 0;
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        if (strcmp(optim_rows[j].name, o->row->name)) continue;
        rows++;
        if (!strcmp(optim_base_names[optim_rows[j].base], base)) found = &optim_rows[j];
    }
    if (rows < 2 || !found) return -1;
    optim_choose(o, found);
    return 0;
}

// Sets a hyperparameter. 0; -1 if this optimizer does not have it; -2 if the value is out of its range or
// comes too late: after optim_start a new mu-y (or schedule-free's beta1) would move x, which is not stored
// but follows from y and z; and slice-p, d0 and an lr-cap of -1 have been used by then.
OPTIM_API int optim_set(Optimizer *o, const char *name, double value) {
    const int key = optim_key(o, name);
    char open, close, whole = 0;
    double low, high;
    if (key < 0) return -1;
    if (sscanf(optim_keys[key].range, "%c%lf,%lf%c%c", &open, &low, &high, &close, &whole) < 4) return -2;
    if (!(open == '[' ? value >= low : value > low)) return -2;
    if (!(close == ']' ? value <= high : value < high) || (whole && value != floor(value))) return -2;
    if (value < 0 && value > -1 && !strcmp(name, "lr-cap")) return -2;
    if (o->chunks && optim_word("slice-p d0 mu-y ", name)) return -2;
    if (o->chunks && !strcmp(name, "lr-cap") && value < 0) return -2;
    if ((o->chunks || value < 1e-3) && o->row->eval == optim_eval_schedule_free && !strcmp(name, "beta1"))
        return -2;
    *optim_value(o, key) = value;
    return 0;
}

OPTIM_API double optim_get(const Optimizer *o, const char *name) {      // NaN where absent
    const int key = optim_key(o, name);
    return key < 0 ? NAN : *optim_value(o, key);
}

// Cuts every segment (of matrices, or of the rest) into chunks, written at `out` unless that is NULL. With
// slice > 1: all segments, for arrays that hold every slice-th element of each, one segment behind the other.
static int optim_cut(const Optimizer *o, int matrices, size_t slice, OptimChunk *out) {
    int count = 0;
    size_t place = 0;
    for (int j = 0; j < o->num_segments; j++) {
        const OptimSegment *seg = &o->segments[j];
        const size_t size = (seg->size + slice - 1) / slice, start = slice > 1 ? place : seg->offset;
        place += size;
        if (slice == 1 && (seg->rows > 0 && o->row->base == OPTIM_MUON) != matrices) continue;
        for (size_t i = 0; i < size; i += OPTIM_CHUNK, count++) {
            if (!out) continue;
            out[count].begin = start + i;
            out[count].end = start + (size - i < OPTIM_CHUNK ? size : i + OPTIM_CHUNK);
            out[count].first = seg->offset + i * slice;
            out[count].decay = seg->decay ? 1.0f : 0.0f;
        }
    }
    return count;
}

static float **optim_buffer(const Optimizer *o, int b) {
    return (float **)((char *)o + optim_buffers[b].field);
}
static size_t optim_size(const Optimizer *o, int b) {                   // in floats; 0: not one of the row's
    if (!optim_word(o->row->buffers, optim_buffers[b].name)) return 0;
    return optim_buffers[b].sliced ? o->num_slices : o->n;
}

OPTIM_API void optim_free(Optimizer *o) {
    for (int b = 0; b < OPTIM_COUNT(optim_buffers); b++) {
        optim_release(*optim_buffer(o, b));
        *optim_buffer(o, b) = NULL;
    }
    free(o->segments); optim_release(o->chunks); free(o->sums); optim_release(o->muon_scratch);
    o->segments = NULL; o->chunks = NULL; o->sums = NULL; o->muon_scratch = NULL;
}

// Floats of scratch memory that Muon needs for the largest of these tensors; 0 where it is not the base.
OPTIM_API size_t optim_scratch(const Optimizer *o, const OptimSegment *segments, int num_segments) {
    size_t scratch = 0;
    for (int j = 0; j < num_segments && o->row->base == OPTIM_MUON; j++) {
        const size_t r = segments[j].rows < segments[j].cols ? segments[j].rows : segments[j].cols;
        const size_t need = segments[j].size + 4 * r * r;
        if (segments[j].rows && need > scratch) scratch = need;
    }
    return scratch;
}

// Allocates the buffers. params is the caller's array of n floats and holds the starting point; the
// segments name its tensors in order (NULL, 0: one vector without weight decay). What no segment covers
// never moves and counts in no sum. Its zeros in the buffers are not touched, so on a CPU they take no memory
// until a checkpoint is written and read (on a GPU they do). An lr-cap of -1 becomes the number that it
// stands for. 0, or -1: no memory, or segments that overlap, leave the array or, with Muon as the base, have
// not rows times columns elements.
OPTIM_API int optim_start(Optimizer *o, float *params, size_t n, const OptimSegment *segments,
                          int num_segments) {
    const OptimSegment whole = { 0, n, 0, 0, 0 };
    if (!num_segments) { segments = &whole; num_segments = 1; }
    size_t end = 0;
    for (const OptimSegment *s = segments; s < segments + num_segments; end = s->offset + s->size, s++) {
        if (s->offset < end || s->offset > n || s->size > n - s->offset) return -1;
        if (o->row->base == OPTIM_MUON && s->rows && (size_t)s->rows * s->cols != s->size) return -1;
    }
    o->params = params;
    o->n = o->num_slices = n;
    o->num_segments = num_segments;
    o->segments = (OptimSegment *)malloc(num_segments * sizeof(OptimSegment));
    if (!o->segments) return -1;
    memcpy(o->segments, segments, num_segments * sizeof(OptimSegment));
    o->moving = 0;
    for (int j = 0; j < num_segments; j++) o->moving += segments[j].size;

    const size_t slice = o->h.slice_p > 1 ? (size_t)o->h.slice_p : 1;
    if (o->h.lr_cap < 0) {
        int fan_in = 0;                                    // the smallest; without matrices, no cap
        for (int j = 0; j < num_segments; j++)
            if (segments[j].rows && (!fan_in || segments[j].cols < fan_in)) fan_in = segments[j].cols;
        o->h.lr_cap = fan_in ? 1.0 / fan_in : 0;
    }
    const int rest = optim_cut(o, 0, 1, NULL), matrices = optim_cut(o, 1, 1, NULL);
    const int slices = slice > 1 ? optim_cut(o, 0, slice, NULL) : 0;
    o->chunks = (OptimChunk *)optim_allocate(rest + matrices + slices, sizeof(OptimChunk));
    o->sums = (OptimSums *)malloc((rest + matrices) * sizeof(OptimSums));
    if (!o->chunks || !o->sums) { optim_free(o); return -1; }
    optim_cut(o, 0, 1, o->chunks);
    optim_cut(o, 1, 1, o->chunks + rest);
    const OptimSpan all = { o->chunks, rest + matrices, n, 0, o->sums };
    o->all = o->rest = o->matrices = o->slices = all;
    o->rest.count = rest;
    o->matrices.chunk += rest;
    o->matrices.sums += rest;
    o->matrices.count = matrices;
    if (slices) {
        OptimChunk *chunk = o->chunks + rest + matrices;
        o->slices.chunk = chunk;
        o->slices.count = optim_cut(o, 0, slice, chunk);
        o->num_slices = chunk[slices - 1].end;
    }

    const size_t scratch = optim_scratch(o, segments, num_segments);
    int missing = scratch && !(o->muon_scratch = (float *)optim_allocate(scratch, sizeof(float)));
    for (int b = 0; b < OPTIM_COUNT(optim_buffers) && !missing; b++) {
        const size_t size = optim_size(o, b);
        float *buffer = size ? (float *)optim_allocate(size, sizeof(float)) : NULL;
        *optim_buffer(o, b) = buffer;
        missing = size && !buffer;
        if (!buffer || !optim_buffers[b].start) continue;
        if (optim_buffers[b].sliced) optim_copy_slices(o->slices, buffer, params, slice);
        else optim_copy(o->all, buffer, params);
    }
    if (missing) { optim_free(o); return -1; }
    memset(&o->s, 0, sizeof o->s);
    o->s.d = o->s.d_max = o->h.d0;
    return 0;
}

// One update of params. grad: the gradient there, multiplied by grad_scale on the way (clipping costs no
// pass; for sps and iam it is 1, as a shorter gradient makes their step longer). lr_factor: the schedule's
// value, times "lr", "muon-lr" and "lr-cap". loss and loss_star: f_t(x) and the teacher's f*_t on this batch
// (sps and iam; the others ignore them).
OPTIM_API void optim_step(Optimizer *o, const float *grad, float grad_scale, double lr_factor, double loss,
                          double loss_star) {
    const OptimInput in = { grad, grad_scale, o->h.lr * lr_factor, o->h.muon_lr * lr_factor,
                            o->h.lr_cap > 0 ? o->h.lr_cap * lr_factor : INFINITY, loss - loss_star };
    o->row->step(o, &in);
    o->s.t++;
}

// Whether the step comes from losses, the batch's and a teacher's, not from a rate.
OPTIM_API int optim_is_polyak(const Optimizer *o) {
    return o->row->step == optim_step_sps || o->row->step == optim_step_iam;
}

// The step length for a log: the scheduled rate, or what the last step found; NaN where it is no single one.
OPTIM_API double optim_rate(const Optimizer *o, double lr_factor) {
    const int found = isnan(optim_get(o, "lr")) || o->h.d0 > 0 || o->row->step == optim_step_dog;
    return found ? o->s.step : o->h.lr * lr_factor;
}

// s0 = |g|^2, s1 = |g|_1, over what moves.
OPTIM_API OptimSums optim_gradient_norms(const Optimizer *o, const float *g) {
    return optim_norms(o->all, g);
}

// Writes the evaluation point x to out (n floats); params stays.
OPTIM_API void optim_eval_params(const Optimizer *o, float *out) {
    if (!o->row->eval || o->moving < o->n) optim_copy(optim_flat(o->n, NULL), out, o->params);
    if (o->row->eval) o->row->eval(o, out);
}

// Block i = 0, 1, .. of what a checkpoint holds besides params: the scalars, then the buffers. 0: no more.
OPTIM_API int optim_state(Optimizer *o, int i, void **ptr, size_t *bytes) {
    if (i == 0) { *ptr = &o->s; *bytes = sizeof(o->s); return 1; }
    for (int b = 0; b < OPTIM_COUNT(optim_buffers); b++) {
        if (!optim_size(o, b) || --i) continue;
        *ptr = *optim_buffer(o, b);
        *bytes = optim_size(o, b) * sizeof(float);
        return 1;
    }
    return 0;
}

// Bytes of all blocks that optim_state lists. Before optim_start: of o->n parameters and o->num_slices
// slices, which the caller has set.
OPTIM_API size_t optim_bytes(const Optimizer *o) {
    size_t bytes = sizeof(o->s);
    for (int b = 0; b < OPTIM_COUNT(optim_buffers); b++) bytes += optim_size(o, b) * sizeof(float);
    return bytes;
}

// One optimizer's maths, options, defaults and memory, over each of its bases; all names where name is NULL.
OPTIM_API void optim_print_help(FILE *f, const char *name) {
    if (!name) fprintf(f, "optimizers:");
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        const OptimRow *row = &optim_rows[j];
        const char *base = optim_base_names[row->base];
        int buffers = 0, another = j > 0 && !strcmp(row->name, row[-1].name);
        Optimizer o;
        optim_choose(&o, row);
        if (!name && !another) fprintf(f, " %s", row->name);
        if (!name || strcmp(row->name, name)) continue;
        if (!another)
            for (const char *line = row->maths; *line; line = strchr(line, '\n') + 1)
                fprintf(f, "    %.*s\n", (int)strcspn(line, "\n"), line);
        if (optim_set_base(&o, base)) fprintf(f, "%s\n", name);
        else fprintf(f, "%s --base %s\n", name, base);
        for (int key = 0; key < OPTIM_COUNT(optim_keys); key++) {
            const char *range = optim_keys[key].range;
            if (!optim_word(row->defaults, optim_keys[key].name)) continue;
            fprintf(f, "  --%-17s %-8g %-11.*s %s\n", optim_keys[key].name, *optim_value(&o, key),
                    (int)strcspn(range, ")]") + 1, range, optim_keys[key].meaning);
        }
        for (int b = 0; b < OPTIM_COUNT(optim_buffers); b++)
            buffers += optim_word(row->buffers, optim_buffers[b].name) != NULL;
        fprintf(f, "  memory: %d bytes a parameter beyond parameters and gradients%s%s%s%s\n", 4 * buffers,
                buffers ? " (" : "", row->buffers, buffers ? ")" : "",
                row->base == OPTIM_MUON ? " and r c + 4 min(r, c)^2 floats, r x c the largest matrix" : "");
    }
    if (!name) fprintf(f, "\n");
}

// -----------------------------------------------------------------------------------------------------------
// Schedules

// The factor of the rate at step 0..steps-1: linear warmup, then constant, cosine, linear, or wsd (constant,
// then linear over the last fifth) down to final_fraction. NaN: no such kind.
OPTIM_API double optim_schedule(const char *kind, long step, long steps, long warmup, double final_fraction) {
    const int constant = !strcmp(kind, "constant"), cosine = !strcmp(kind, "cosine");
    const int wsd = !strcmp(kind, "wsd"), linear = !strcmp(kind, "linear");
    if (!constant && !cosine && !wsd && !linear) return NAN;
    if (step < warmup) return (double)(step + 1) / warmup;
    const long begin = wsd && steps - steps / 5 > warmup ? steps - steps / 5 : warmup;
    if (constant || step < begin || steps <= begin) return 1;
    const double done = fmin(1, (double)(step - begin) / (double)(steps - begin));
    const double left = cosine ? 0.5 + 0.5 * cos(3.14159265358979323846 * done) : 1 - done;
    return final_fraction + (1 - final_fraction) * left;
}

// In a sorted array (count) that has `out`, `in` takes its place.
static void optim_replace(double *sorted, long count, double out, double in) {
    long k = 0;
    while (sorted[k] != out) k++;
    for (; k + 1 < count && sorted[k + 1] < in; k++) sorted[k] = sorted[k + 1];
    for (; k > 0 && sorted[k - 1] > in; k--) sorted[k] = sorted[k - 1];
    sorted[k] = in;
}

// The refined schedule of arXiv 2310.07831 (facebookresearch/adaptive_scheduling) from the gradient norms of
// a finished run: G after a median filter of width 2 floor(tau steps/2) + 1 (left of the run its first norm,
// right of it its reflection), w = G^-2 of l2 norms for SGD (which "l2") or 1/G of l1 norms for Adam ("l1"),
//     factor_t = w_t sum_{p>t} w_p / sum_p w_p, divided by the largest.
// 0, or -1 without memory, with fewer than two steps, another `which`, a tau beyond 0 to 1, or a norm that is
// not a positive number.
OPTIM_API int optim_refined(const double *grad_norms, long steps, const char *which, double tau,
                            double *factors_out) {
    const int l1 = !strcmp(which, "l1");
    if (steps < 2 || (!l1 && strcmp(which, "l2")) || !(tau >= 0 && tau <= 1)) return -1;
    for (long t = 0; t < steps; t++) if (!(grad_norms[t] > 0 && grad_norms[t] < INFINITY)) return -1;
    const long half = (long)(tau * steps) / 2, width = 2 * half + 1;
    double *window = (double *)malloc(width * sizeof(double)), total = 0, tail = 0, largest = 0;
    if (!window) return -1;
    for (long j = 0; j < width; j++) window[j] = INFINITY;
    for (long t = -width; t < steps; t++) {                // t < 0 fills the window, then it slides by one
        const long last = t + half, old = last - width;
        const double in = grad_norms[last < 0 ? 0 : last < steps ? last : 2 * (steps - 1) - last];
        optim_replace(window, width, t < 0 ? INFINITY : grad_norms[old < 0 ? 0 : old], in);
        if (t < 0) continue;
        factors_out[t] = l1 ? 1 / window[half] : 1 / (window[half] * window[half]);
        total += factors_out[t];
    }
    free(window);
    for (long t = steps - 1; t >= 0; t--) {
        const double w = factors_out[t];
        factors_out[t] *= tail / total;
        tail += w;
        largest = fmax(largest, factors_out[t]);
    }
    for (long t = 0; t < steps; t++) factors_out[t] /= largest;
    return 0;
}

// -----------------------------------------------------------------------------------------------------------
// A cheaper proxy's gradient, corrected: of <c, x> + fh(x) + |x-x_t|^2/(2 eta), c = g_t - grad fh(x_t),
// arXiv 2302.03542; averaged over the steps, c = a c + (1-a) (g_t - grad fh(x_t)), as in 2206.00395
OPTIM_PASS(optim_proxy_correction, (float *c, const float *g, const float *proxy_t, float a),
    c[i] = a * c[i] + (1 - a) * (g[i] - proxy_t[i]);)

OPTIM_PASS(optim_proxy_gradient, (float *out, const float *proxy, const float *c, const float *x,
                                  const float *x_t, float pull),                    // pull = 1/eta
    out[i] = proxy[i] + c[i] + pull * (x[i] - x_t[i]);)

#endif
