/* optim.h - optimizers and learning-rate schedules for flat parameter arrays, in one header. C11, C++17, CUDA.

   Each algorithm is written once, as the update of element i: OPTIM_PASS makes it a parallel SIMD loop in C and a
   kernel in CUDA. Sums over all parameters go through OPTIM_SUM: chunks of fixed size, added in order, so every
   result is the same to the last bit for any number of threads. Nothing here knows a model: an optimizer sees flat
   arrays of floats, cut into segments (tensors).

   Use (a whole program is test/optim_user.c):

       #include "optim.h"                           // gcc -O3 -march=native -fno-math-errno -fopenmp user.c -lm

       Optimizer o;
       optim_init(&o, "adamw");                     // -1: no such name; optim_print_help(stdout, NULL) lists them
       optim_set_base(&o, "muon");                  // gpa, iam and diloco only, and before optim_set
       optim_set(&o, "lr", 3e-3);                   // -1: adamw has no such hyperparameter, -2: out of its range
       optim_start(&o, params, n, segments, count); // allocates; NULL, 0: one vector without weight decay
       for (long t = 0; t < steps; t++) {
           double loss = loss_and_gradient(params, grad);      // params is the training point
           float clip = fmin(1, 1 / sqrt(optim_norm2(grad, n)));
           optim_step(&o, grad, clip, optim_schedule("cosine", t, steps, 100, 0.1), loss, 0);
       }
       optim_eval_params(&o, out);                  // the point to evaluate and save, into an array of the caller's
       optim_free(&o);

   The gradient is taken at params. Averaging methods (gpa, schedule-free, dog) evaluate another point x:
   optim_eval_params computes x into `out` and leaves params alone, so training goes on bit for bit.
   optim_state enumerates what a checkpoint holds besides params. sps and iam use the losses given to
   optim_step: f_t(x) and the teacher's loss on the same batch. Optimizers without the hyperparameter "lr"
   find their own step and ignore the schedule.

   name               paper, source                                 buffers           bytes a parameter (beyond
                                                                                      parameters and gradients)
   adamw              arXiv 1711.05101                              m v               8
   sgd                momentum and dampening                        m                 4
   muon               kellerjordan.github.io/posts/muon             m v               8, and 2 (r c + r r) floats,
                                                                                      r x c the largest matrix
   diloco             arXiv 2311.08105, single worker               base's outer x_outer    base's + 8
   gpa                arXiv 2512.17131                              base's z          base's + 4
   schedule-free      arXiv 2405.15682                              v z               8
   schedule-free-sgd  arXiv 2405.15682                              z                 4
   sps                arXiv 2504.01898                                                0
   iam                arXiv 2504.01898                              z [v [m]]         4 (sgd), 8 (adamw), 12 (muon)
   iam-adam           arXiv 2504.01898                              z v               8
*/
#ifndef OPTIM_H
#define OPTIM_H

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
#define OPTIM_API static __attribute__((unused))                // a program need not call everything in here
#define OPTIM_INLINE static inline __attribute__((always_inline))
#else
#define OPTIM_API static
#define OPTIM_INLINE static inline
#endif

// On a GPU (nvcc --extended-lambda, or test/cuda_on_cpu.h) passes are kernels on the default stream; params, grad and
// out are then unified or device memory, and so is what is allocated here.
#if defined(__CUDACC__) || defined(CUDA_ON_CPU_H)
#define OPTIM_CUDA
#define OPTIM_ELEMENT __host__ __device__ OPTIM_INLINE          // one element's part, called from bodies of passes
#ifndef OPTIM_LAUNCH
#define OPTIM_LAUNCH(kernel, blocks, threads, ...) kernel<<<blocks, threads>>>(__VA_ARGS__)
#endif
OPTIM_API void *optim_allocate(size_t count, size_t size) {
    void *p = NULL;
    if (cudaMallocManaged(&p, count * size + 1) != cudaSuccess) return NULL;
    if (cudaMemset(p, 0, count * size) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess) return p; // the CPU may write now
    cudaFree(p);
    return NULL;
}
OPTIM_API void optim_release(void *p) { cudaFree(p); }
#else
#define OPTIM_ELEMENT OPTIM_INLINE
OPTIM_API void *optim_allocate(size_t count, size_t size) { return calloc(count, size); }
OPTIM_API void optim_release(void *p) { free(p); }
#endif

// ---------------------------------------------------------------------------------------------------------------
// Passes: loops over all elements

// A run of elements of one segment. index: of element begin inside its segment's array (see prodigy's slices).
typedef struct {
    size_t begin, end;    // elements [begin, end) of the buffers
    size_t first;         // element begin of the buffers is element first of params
    float decay;          // 1: weight decay applies, 0: it does not
} OptimChunk;

// What a pass runs over: a table of chunks, or (chunk NULL) n elements cut every `length`.
typedef struct {
    const OptimChunk *chunk;
    int count;
    size_t n, length;
    double *sums;         // (count, 3) room for the chunks' sums
} OptimSpan;

typedef struct { double s0, s1, s2; } OptimSums;

#define OPTIM_CHUNK 16384           // floats: 64 KB, so that the streams of one chunk stay in a core's L2 cache
#define OPTIM_STRIPS 1024           // at most so many chunks where no table is at hand

OPTIM_ELEMENT OptimChunk optim_chunk(OptimSpan span, int k) {
    if (span.chunk) return span.chunk[k];
    size_t begin = (size_t)k * span.length, end = begin + span.length;
    OptimChunk c = { begin, end < span.n ? end : span.n, begin, 0 };
    return c;
}

static inline OptimSpan optim_flat(size_t n, double *sums) {
    size_t length = (n + OPTIM_STRIPS - 1) / OPTIM_STRIPS;
    if (length < OPTIM_CHUNK) length = OPTIM_CHUNK;
    OptimSpan span = { NULL, (int)((n + length - 1) / length), n, length, sums };
    return span;
}

static inline OptimSums optim_add(const double *sums, int count) {
    OptimSums s = { 0, 0, 0 };
    for (int k = 0; k < count; k++) { s.s0 += sums[3*k]; s.s1 += sums[3*k + 1]; s.s2 += sums[3*k + 2]; }
    return s;
}

#ifdef _OPENMP
#define OPTIM_PARALLEL _Pragma("omp parallel for schedule(static)")
#define OPTIM_SIMD     _Pragma("omp simd")
#define OPTIM_SIMD_SUM _Pragma("omp simd reduction(+:s0,s1,s2)")
#else
#define OPTIM_PARALLEL
#define OPTIM_SIMD
#define OPTIM_SIMD_SUM
#endif

#define OPTIM_LIST(...) __VA_ARGS__

// OPTIM_PASS(name, (arguments), body): `body` for every element i of the span; it may use chunk.decay.
// OPTIM_SUM: the same, and `body` adds to s0, s1, s2, whose totals are returned.
#ifndef OPTIM_CUDA
#define OPTIM_PASS(name, arguments, ...)                                                  \
    OPTIM_API void name(OptimSpan span, OPTIM_LIST arguments) {                           \
        OPTIM_PARALLEL for (int k = 0; k < span.count; k++) {                             \
            const OptimChunk chunk = optim_chunk(span, k);                                \
            OPTIM_SIMD for (size_t i = chunk.begin; i < chunk.end; i++) { __VA_ARGS__ }   \
        }                                                                                 \
    }

#define OPTIM_SUM(name, arguments, ...)                                                   \
    OPTIM_API OptimSums name(OptimSpan span, OPTIM_LIST arguments) {                      \
        OPTIM_PARALLEL for (int k = 0; k < span.count; k++) {                             \
            const OptimChunk chunk = optim_chunk(span, k);                                \
            double s0 = 0, s1 = 0, s2 = 0;                                                \
            OPTIM_SIMD_SUM for (size_t i = chunk.begin; i < chunk.end; i++) { __VA_ARGS__ } \
            span.sums[3*k] = s0; span.sums[3*k + 1] = s1; span.sums[3*k + 2] = s2;        \
        }                                                                                 \
        return optim_add(span.sums, span.count);                                          \
    }
#else
// A block of threads for each chunk. The body is a lambda that brings its arguments along.
#define OPTIM_THREADS 256

template <typename Body> __global__ void __launch_bounds__(OPTIM_THREADS) optim_pass_kernel(OptimSpan span, Body body) {
    const OptimChunk chunk = optim_chunk(span, blockIdx.x);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += OPTIM_THREADS) body(i, chunk);
}

// sums[3k..3k+3) = the sums of chunk k: each thread's, then pairs of threads', in an order that never changes.
template <typename Body> __global__ void __launch_bounds__(OPTIM_THREADS) optim_sum_kernel(OptimSpan span, double *sums, Body body) {
    __shared__ double part[3][OPTIM_THREADS];
    const OptimChunk chunk = optim_chunk(span, blockIdx.x);
    const int thread = threadIdx.x;
    double s0 = 0, s1 = 0, s2 = 0;
    for (size_t i = chunk.begin + thread; i < chunk.end; i += OPTIM_THREADS) body(i, chunk, s0, s1, s2);
    part[0][thread] = s0; part[1][thread] = s1; part[2][thread] = s2;
    for (int half = OPTIM_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int j = 0; j < 3 && thread < half; j++) part[j][thread] += part[j][thread + half];
    }
    if (thread == 0) for (int j = 0; j < 3; j++) sums[3*(size_t)blockIdx.x + j] = part[j][0];
}

// The chunks' sums, brought to span.sums: waits for the GPU, as whoever asks for a sum goes on with a number.
template <typename Body> static OptimSums optim_sum_on_gpu(OptimSpan span, Body body) {
    static double *sums;
    static int room;
    const OptimSums nothing = { 0, 0, 0 };
    if (!span.count) return nothing;
    if (span.count > room) {
        if (sums) cudaFreeHost(sums);
        room = cudaMallocHost(&sums, 3 * (size_t)span.count * sizeof(double)) == cudaSuccess ? span.count : 0;
        const OptimSums failed = { NAN, NAN, NAN };
        if (!room) { sums = NULL; return failed; }
    }
    OPTIM_LAUNCH(optim_sum_kernel, span.count, OPTIM_THREADS, span, sums, body);
    cudaDeviceSynchronize();
    memcpy(span.sums, sums, 3 * (size_t)span.count * sizeof(double));
    return optim_add(span.sums, span.count);
}

#define OPTIM_PASS(name, arguments, ...)                                                  \
    OPTIM_API void name(OptimSpan span, OPTIM_LIST arguments) {                           \
        auto body = [=] __device__ (size_t i, const OptimChunk &chunk) { (void)chunk; __VA_ARGS__ }; \
        if (span.count) OPTIM_LAUNCH(optim_pass_kernel, span.count, OPTIM_THREADS, span, body); \
    }

#define OPTIM_SUM(name, arguments, ...)                                                   \
    OPTIM_API OptimSums name(OptimSpan span, OPTIM_LIST arguments) {                      \
        auto body = [=] __device__ (size_t i, const OptimChunk &chunk, double &s0, double &s1, double &s2) { \
            (void)chunk; (void)s0; (void)s1; (void)s2; __VA_ARGS__ };                     \
        return optim_sum_on_gpu(span, body);                                              \
    }
#endif

OPTIM_SUM(optim_sum_squares, (const float *g), s0 += (double)g[i] * g[i];)
OPTIM_PASS(optim_copy, (float *out, const float *x), out[i] = x[i];)

// |g|^2
OPTIM_API double optim_norm2(const float *g, size_t n) {
    double sums[3 * OPTIM_STRIPS];
    return optim_sum_squares(optim_flat(n, sums), g).s0;
}

// ---------------------------------------------------------------------------------------------------------------
// The optimizer

typedef struct {          // one tensor (of one layer) inside the flat parameter array
    size_t offset, size;  // in floats
    int rows, cols;       // rows > 0: a matrix inside the blocks (Muon's), row-major, rows = outputs; 0: the rest
    int decay;            // weight decay applies (tensors of two or more dimensions)
} OptimSegment;

typedef struct {          // hyperparameters; optim_keys gives their names, ranges and meaning
    double lr, beta1, beta2, eps, weight_decay, momentum, dampening, muon_lr, muon_momentum, matrix_weight;
    double inner_steps, outer_lr, outer_momentum, mu_x, mu_y, r, lambda, lr_cap;
    double d0, d_coef, growth_rate, safeguard_warmup, bias_correction, slice_p, reps_rel;
    double first_step, version, l1, box_low, box_high;
} OptimHyper;

typedef struct {          // everything that changes from step to step besides the buffers
    double t;                       // updates done
    double step, step_prev;         // the last step lengths found (sps, iam, adgd, dog, dowg, resetting)
    double d, d_max, numerator;     // the estimated distance to the solution (prodigy, dadapt-adam, resetting)
    double distance, grad_sum;      // from the start; sum of (weighted) squared gradients (dog, dowg, resetting)
    double lr_max, weight_sum;      // schedule-free
} OptimScalars;

typedef struct Optimizer Optimizer;

typedef struct {          // what optim_step was given
    const float *g;
    float scale;          // the gradient is scale * g
    double lr, muon_lr;   // scheduled
    double gap;           // f_t(x) - f*_t
} OptimInput;

typedef enum { OPTIM_NO_BASE, OPTIM_ADAMW, OPTIM_SGD, OPTIM_MUON } OptimBase;

typedef struct {          // a row of the table at the end of this file
    const char *name;
    OptimBase base;
    const char *buffers;  // names in optim_buffers
    const char *defaults; // its hyperparameters, each with its default
    const char *maths;
    void (*step)(Optimizer *o, const OptimInput *in);
    void (*eval)(const Optimizer *o, float *out);       // writes x; NULL: x is params
} OptimRow;

struct Optimizer {
    const OptimRow *row;
    OptimHyper h;
    OptimScalars s;
    float *params;        // the caller's
    size_t n;
    float *m, *v, *z;     // momentum or first moment; second moment; the sequence that takes the steps
    float *outer, *x_outer;            // diloco: the outer momentum and the point of the last outer step
    float *x0, *sum;      // the start and the (weighted) sum of gradients
    float *x_average, *r2, *x_prev, *g_prev;
    void (*average)(float *x, size_t n); // diloco among workers: replaces x by its mean over them; NULL: one worker
    OptimSegment *segments;
    int num_segments;
    OptimChunk *chunks;   // the rest's, then the matrices' where Muon moves them
    double *sums;
    OptimSpan all, rest, matrices, slices;
    size_t num_slices;    // elements of x0 and sum: n, or fewer under prodigy's slice-p
    float *muon_scratch;
};

// start: the buffer begins as a copy of params, else zero. sliced: it has num_slices elements
static const struct { const char *name; size_t field; int start, sliced; } optim_buffers[] = {
    { "m", offsetof(Optimizer, m), 0, 0 },             { "v", offsetof(Optimizer, v), 0, 0 },
    { "z", offsetof(Optimizer, z), 1, 0 },             { "outer", offsetof(Optimizer, outer), 0, 0 },
    { "x_outer", offsetof(Optimizer, x_outer), 1, 0 }, { "x0", offsetof(Optimizer, x0), 1, 1 },
    { "sum", offsetof(Optimizer, sum), 0, 1 },         { "x_average", offsetof(Optimizer, x_average), 1, 0 },
    { "r2", offsetof(Optimizer, r2), 0, 0 },           { "x_prev", offsetof(Optimizer, x_prev), 0, 0 },
    { "g_prev", offsetof(Optimizer, g_prev), 0, 0 },
};

static const struct { const char *name; size_t field; const char *range, *meaning; } optim_keys[] = {
    { "lr", offsetof(OptimHyper, lr), "[0,inf)", "learning rate, times the schedule" },
    { "beta1", offsetof(OptimHyper, beta1), "[0,1)", "decay of the first moment; schedule-free: weight of x in y" },
    { "beta2", offsetof(OptimHyper, beta2), "[0,1)", "decay of the second moment" },
    { "eps", offsetof(OptimHyper, eps), "(0,inf)", "added to the denominator" },
    { "weight-decay", offsetof(OptimHyper, weight_decay), "[0,inf)", "on tensors of two or more dimensions" },
    { "momentum", offsetof(OptimHyper, momentum), "[0,1)", "decay of the momentum" },
    { "dampening", offsetof(OptimHyper, dampening), "[0,1]", "the gradient enters the momentum times 1 - this" },
    { "muon-lr", offsetof(OptimHyper, muon_lr), "[0,inf)", "learning rate of the matrices, times the schedule" },
    { "muon-momentum", offsetof(OptimHyper, muon_momentum), "[0,1)", "momentum of the matrices" },
    { "matrix-weight", offsetof(OptimHyper, matrix_weight), "(0,inf)", "of the matrices' direction against the rest" },
    { "inner-steps", offsetof(OptimHyper, inner_steps), "[1,inf)i", "steps between two outer steps (H)" },
    { "outer-lr", offsetof(OptimHyper, outer_lr), "[0,inf)", "of the outer Nesterov step" },
    { "outer-momentum", offsetof(OptimHyper, outer_momentum), "[0,1)", "of the outer Nesterov step" },
    { "mu-x", offsetof(OptimHyper, mu_x), "[0,1]", "weight of x in the new x; H inner steps of DiLoCo: mu^(1/H)" },
    { "mu-y", offsetof(OptimHyper, mu_y), "(0,1]", "weight of x in y" },
    { "r", offsetof(OptimHyper, r), "[0,inf)", "power of t in the average's weights" },
    { "lambda", offsetof(OptimHyper, lambda), "[0,inf)", "weight of the past in the average; 0: lambda_t = t" },
    { "lr-cap", offsetof(OptimHyper, lr_cap), "[0,inf)", "the step length is at most this; 0: no cap" },
    { "d0", offsetof(OptimHyper, d0), "(0,inf)", "the first estimate of the distance to the solution" },
    { "d-coef", offsetof(OptimHyper, d_coef), "(0,inf)", "factor of the estimate" },
    { "growth-rate", offsetof(OptimHyper, growth_rate), "[1,inf]", "the estimate grows at most so fast a step" },
    { "safeguard-warmup", offsetof(OptimHyper, safeguard_warmup), "[0,1]i", "keep the rate out of the estimate" },
    { "bias-correction", offsetof(OptimHyper, bias_correction), "[0,1]i", "Adam's, in the rate" },
    { "slice-p", offsetof(OptimHyper, slice_p), "[1,inf)i", "estimate from every p-th entry of each tensor" },
    { "reps-rel", offsetof(OptimHyper, reps_rel), "(0,inf)", "the first distance, relative to 1 + |x0|" },
    { "first-step", offsetof(OptimHyper, first_step), "(0,inf)", "length of the first step" },
    { "version", offsetof(OptimHyper, version), "[1,2]i", "of the step rule" },
    { "l1", offsetof(OptimHyper, l1), "[0,inf)", "weight of |x|_1 in the objective" },
    { "box-low", offsetof(OptimHyper, box_low), "[-inf,inf)", "lower bound of every entry" },
    { "box-high", offsetof(OptimHyper, box_high), "(-inf,inf]", "upper bound of every entry" },
};

// Muon's products: C (M x N) = alpha A (M x K) op(B) + beta C, row-major; op(B) = B (K x N), or B^T with B (N x K).
// beta 0 overwrites C, whatever it held. A program with a fast kernel points optim_matmul to it.
OPTIM_API void optim_matmul_plain(float *C, const float *A, const float *B, int M, int N, int K, int transB,
                                  float alpha, float beta) {
    OPTIM_PARALLEL for (int i = 0; i < M; i++) {
        float *c = C + (size_t)i * N;
        const float *a = A + (size_t)i * K;
        for (int j = 0; j < N; j++) c[j] = beta == 0 ? 0 : beta * c[j];
        for (int k = 0; k < K && !transB; k++) {
            const float w = alpha * a[k], *b = B + (size_t)k * N;
            OPTIM_SIMD for (int j = 0; j < N; j++) c[j] += w * b[j];
        }
        for (int j = 0; j < N && transB; j++) {
            const float *b = B + (size_t)j * K;
            double s0 = 0, s1 = 0, s2 = 0;
            OPTIM_SIMD_SUM for (int k = 0; k < K; k++) s0 += (double)a[k] * b[k];
            c[j] += alpha * (float)(s0 + s1 + s2);
        }
    }
}
OPTIM_API void (*optim_matmul)(float *C, const float *A, const float *B, int M, int N, int K, int transB,
                               float alpha, float beta) = optim_matmul_plain;

// ---------------------------------------------------------------------------------------------------------------
// AdamW, SGD, Muon: on their own, and as bases of GPA, IAM and DiLoCo
static const char optim_maths_adamw[] =
    "m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2            arXiv 1711.05101, torch.optim.AdamW\n"
    "u = m/(1-b1^(t+1)) / (sqrt(v/(1-b2^(t+1))) + eps)\n"
    "x = (1 - lr wd) x - lr u\n";
static const char optim_maths_sgd[] =
    "m = momentum m + (1-dampening) g, the first m = g      torch.optim.SGD\n"
    "x = (1 - lr wd) x - lr m\n";
static const char optim_maths_muon[] =
    "matrices: m = momentum m + g                           kellerjordan.github.io/posts/muon\n"
    "u = NS(g + momentum m) sqrt(max(1, rows/cols)), NS: the nearest orthogonal matrix by five Newton-Schulz steps\n"
    "x = (1 - muon_lr wd) x - muon_lr u;  the rest: AdamW\n";

typedef struct { float b1, a1, b2, a2, c1, c2, eps; } OptimAdam;    // a = 1 - b, c: bias corrections

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

OPTIM_PASS(optim_adamw, (float *x, const float *g, float scale, float *m, float *v, OptimAdam c, float lr, float wd),
    const float u = optim_adam_direction(scale * g[i], &m[i], &v[i], c);
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * u;)

OPTIM_PASS(optim_sgd, (float *x, const float *g, float scale, float *m, float momentum, float a, float lr, float wd),
    m[i] = momentum * m[i] + a * (scale * g[i]);
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * m[i];)

// The weight of the gradient in SGD's momentum. torch starts the momentum at the first gradient, undampened.
static float optim_undampened(const Optimizer *o) { return o->s.t == 0 ? 1 : (float)(1 - o->h.dampening); }

OPTIM_SUM(optim_muon_momentum, (const float *g, float scale, float *m, float *u, float momentum),
    m[i] = momentum * m[i] + scale * g[i];
    u[i] = scale * g[i] + momentum * m[i];
    s0 += (double)u[i] * u[i];)

OPTIM_PASS(optim_muon, (float *x, const float *u, float lr, float wd),
    x[i] = (1 - lr * wd * chunk.decay) * x[i] - lr * u[i];)

// out (rows x cols) = scale * in, or its transpose of (cols x rows)
OPTIM_PASS(optim_scaled, (float *out, const float *in, float scale), out[i] = scale * in[i];)
OPTIM_PASS(optim_scaled_transpose, (float *out, const float *in, float scale, size_t rows, size_t cols),
    out[i] = scale * in[(i % cols) * rows + i / cols];)

// X (r x c), r <= c, of singular values at most 1: five steps X = 3.4445 X + (-4.7750 A + 2.0315 A^2) X, A = X X^T
// take each singular value near 1. Y (r x c), A and B (r x r) are scratch; returns where X ended.
static float *optim_newton_schulz(float *X, float *Y, float *A, float *B, int r, int c) {
    for (int step = 0; step < 5; step++) {
        optim_matmul(A, X, X, r, r, c, 1, 1, 0);
        optim_copy(optim_flat((size_t)r * r, NULL), B, A);
        optim_matmul(B, A, A, r, r, r, 0, 2.0315f, -4.7750f);
        optim_copy(optim_flat((size_t)r * c, NULL), Y, X);
        optim_matmul(Y, B, X, r, c, r, 0, 1, 3.4445f);
        float *swap = X; X = Y; Y = swap;
    }
    return X;
}

// Every matrix's direction u, kept in its place of v: Adam's second moment is for the rest only.
static void optim_muon_directions(Optimizer *o, const OptimInput *in) {
    if (!o->matrices.count) return;
    optim_muon_momentum(o->matrices, in->g, in->scale, o->m, o->v, (float)o->h.muon_momentum);
    int k = 0;                                                          // chunks of the matrices before this one
    for (int j = 0; j < o->num_segments; j++) {
        const OptimSegment *seg = &o->segments[j];
        if (!seg->rows) continue;
        const int chunks = (int)((seg->size + OPTIM_CHUNK - 1) / OPTIM_CHUNK), tall = seg->rows > seg->cols;
        const int r = tall ? seg->cols : seg->rows, c = tall ? seg->rows : seg->cols;
        const float norm = (float)(1 / (sqrt(optim_add(o->matrices.sums + 3*k, chunks).s0) + 1e-7));
        const float scale = (float)sqrt(fmax(1, (double)seg->rows / seg->cols));
        float *u = o->v + seg->offset, *X = o->muon_scratch, *Y = X + seg->size, *A = Y + seg->size;
        const OptimSpan flat = optim_flat(seg->size, NULL);
        if (tall) optim_scaled_transpose(flat, X, u, norm, r, c);
        else optim_scaled(flat, X, u, norm);
        X = optim_newton_schulz(X, Y, A, A + (size_t)r * r, r, c);
        if (tall) optim_scaled_transpose(flat, u, X, scale, c, r);
        else optim_scaled(flat, u, X, scale);
        k += chunks;
    }
}

static void optim_step_base(Optimizer *o, const OptimInput *in) {
    const float lr = (float)in->lr, wd = (float)o->h.weight_decay;
    if (o->row->base == OPTIM_SGD) {
        optim_sgd(o->all, o->params, in->g, in->scale, o->m, (float)o->h.momentum, optim_undampened(o), lr, wd);
        return;
    }
    optim_adamw(o->rest, o->params, in->g, in->scale, o->m, o->v, optim_adam(o), lr, wd);
    optim_muon_directions(o, in);
    optim_muon(o->matrices, o->params, o->v, (float)in->muon_lr, wd);
}

// ---------------------------------------------------------------------------------------------------------------
// DiLoCo
static const char optim_maths_diloco[] =
    "x: the base's steps; every inner-steps of them         arXiv 2311.08105, torch.optim.SGD(nesterov) outside\n"
    "d = x_outer - x (x the mean over the workers),  outer = outer_momentum outer + d\n"
    "x_outer = x_outer - outer_lr (d + outer_momentum outer),  x = x_outer; the base's state is kept\n";

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

// ---------------------------------------------------------------------------------------------------------------
// Generalized Primal Averaging
static const char optim_maths_gpa[] =
    "y = mu_y x + (1-mu_y) z, g at y;  u: the base's step   arXiv 2512.17131, facebookresearch/optimizers gpa/\n"
    "z = (1 - lr wd) z - lr u,  x = mu_x x + (1-mu_x) z\n"
    "stored are y and z: y = (1-c) y + c z + lr (mu_y (1-c) - 1) u, c = 1-mu_x;  x = y + (1 - 1/mu_y)(z - y)\n";

// Weight decay moves z before the step. The authors' AdamW in place leaves y where it is, so the x that y and z imply
// moves along; over the other bases x stays, which moves y by (1-mu_y) times z's move.
typedef struct { float c, k, follow; } OptimGpa;                    // 1-mu_x; mu_y (1-c) - 1; 0 or 1-mu_y

OPTIM_ELEMENT void optim_gpa_move(float *y, float *z, float u, float lr, float decay, const OptimGpa *w) {
    const float z0 = decay * *z;
    const float y0 = *y + w->follow * (z0 - *z);
    *y = y0 + w->c * (z0 - y0) + lr * w->k * u;
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
        optim_gpa_sgd(o->all, o->params, o->z, in->g, in->scale, o->m, (float)o->h.momentum, optim_undampened(o),
                      lr, wd, w);
        return;
    }
    optim_gpa_adamw(o->rest, o->params, o->z, in->g, in->scale, o->m, o->v, optim_adam(o), lr, wd, w);
    optim_muon_directions(o, in);
    optim_gpa_muon(o->matrices, o->params, o->z, o->v, (float)in->muon_lr, wd, w);
}

// x from y and z: y = mu x + (1-mu) z
OPTIM_PASS(optim_extrapolate, (float *x, const float *y, const float *z, float w), x[i] = y[i] + w * (z[i] - y[i]);)

static void optim_eval_gpa(const Optimizer *o, float *out) {
    optim_extrapolate(o->all, out, o->params, o->z, (float)(1 - 1 / o->h.mu_y));
}

// ---------------------------------------------------------------------------------------------------------------
// Polyak steps from a teacher's loss
static const char optim_maths_sps[] =
    "a = [f_t(x) - f*_t]_+ / |g|^2                          arXiv 2504.01898\n"
    "x = x - a g\n";
static const char optim_maths_iam[] =
    "a = [f_t(x) - f*_t + <g, z-x>]_+ / <g, d>, at most lr-cap        arXiv 2504.01898; g at x\n"
    "z = z - a (d + wd x),  x = l/(1+l) x + 1/(1+l) z,  l = lambda, or t = 1, 2, .. where lambda is 0\n"
    "d = g (base sgd); g/D, D = sqrt(v/(1-b2^(t+1))) + eps (adamw); matrix-weight times Muon's u, g/D (muon)\n";

OPTIM_PASS(optim_descend, (float *x, const float *g, float a), x[i] -= a * g[i];)

static void optim_step_sps(Optimizer *o, const OptimInput *in) {
    const double scale = in->scale, g2 = scale * scale * optim_sum_squares(o->all, in->g).s0;
    o->s.step = g2 > 0 ? fmax(in->gap, 0) / g2 : 0;
    optim_descend(o->all, o->params, in->g, (float)(o->s.step * scale));
}

// s0 = <g, z-x>, s1 = <g, d>
OPTIM_SUM(optim_iam_sum_sgd, (const float *x, const float *z, const float *g, float scale),
    const float grad = scale * g[i];
    s0 += (double)grad * (z[i] - x[i]);
    s1 += (double)grad * grad;)
OPTIM_SUM(optim_iam_sum_adam, (const float *x, const float *z, const float *g, float scale, float *v, OptimAdam c),
    const float grad = scale * g[i];
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    s0 += (double)grad * (z[i] - x[i]);
    s1 += (double)grad * (grad / (sqrtf(v[i]) * c.c2 + c.eps));)
OPTIM_SUM(optim_iam_sum_muon, (const float *x, const float *z, const float *g, float scale, const float *u, float w),
    const float grad = scale * g[i];
    s0 += (double)grad * (z[i] - x[i]);
    s1 += (double)grad * (w * u[i]);)

OPTIM_ELEMENT void optim_iam_move(float *x, float *z, float d, float a, float wd, float c) {   // c = 1/(1+l)
    *z -= a * (d + wd * *x);
    *x += c * (*z - *x);
}
OPTIM_PASS(optim_iam_sgd, (float *x, float *z, const float *g, float scale, float a, float wd, float c),
    optim_iam_move(&x[i], &z[i], scale * g[i], a, wd * chunk.decay, c);)
OPTIM_PASS(optim_iam_adam, (float *x, float *z, const float *g, float scale, const float *v, OptimAdam adam, float a,
                            float wd, float c),
    const float d = scale * g[i] / (sqrtf(v[i]) * adam.c2 + adam.eps);
    optim_iam_move(&x[i], &z[i], d, a, wd * chunk.decay, c);)
OPTIM_PASS(optim_iam_muon, (float *x, float *z, const float *u, float w, float a, float wd, float c),
    optim_iam_move(&x[i], &z[i], w * u[i], a, wd * chunk.decay, c);)

static void optim_step_iam(Optimizer *o, const OptimInput *in) {
    float *x = o->params, *z = o->z, *v = o->v;
    const OptimAdam adam = optim_adam(o);
    const float wd = (float)o->h.weight_decay, w = (float)o->h.matrix_weight;
    OptimSums s, matrices;
    if (o->row->base == OPTIM_SGD) {
        s = optim_iam_sum_sgd(o->all, x, z, in->g, in->scale);
    } else {
        s = optim_iam_sum_adam(o->rest, x, z, in->g, in->scale, v, adam);
        optim_muon_directions(o, in);
        matrices = optim_iam_sum_muon(o->matrices, x, z, in->g, in->scale, v, w);
        s.s0 += matrices.s0;
        s.s1 += matrices.s1;
    }
    o->s.step = s.s1 > 0 ? fmax(in->gap + s.s0, 0) / s.s1 : 0;
    if (o->h.lr_cap > 0) o->s.step = fmin(o->s.step, o->h.lr_cap);
    const float a = (float)o->s.step, c = (float)(1 / (1 + (o->h.lambda > 0 ? o->h.lambda : o->s.t + 1)));
    if (o->row->base == OPTIM_SGD) {
        optim_iam_sgd(o->all, x, z, in->g, in->scale, a, wd, c);
    } else {
        optim_iam_adam(o->rest, x, z, in->g, in->scale, v, adam, a, wd, c);
        optim_iam_muon(o->matrices, x, z, v, w, a, wd, c);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Schedule-Free
static const char optim_maths_schedule_free[] =
    "y = b1 x + (1-b1) z, g at y                            arXiv 2405.15682, facebookresearch/schedule_free\n"
    "u = g/(sqrt(v/(1-b2^(t+1))) + eps) + wd y (SGD: g + wd y),  z = z - lr u\n"
    "x = (1-c) x + c z,  c = w_t / sum w,  w_t = (t+1)^r lr_max^2;  stored are y and z; warm up, nothing else\n";

OPTIM_PASS(optim_schedule_free, (float *y, float *z, const float *g, float scale, float *v, OptimAdam c, float lr,
                                 float wd, OptimGpa w),
    const float grad = scale * g[i];
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    const float u = grad / (sqrtf(v[i]) * c.c2 + c.eps) + wd * chunk.decay * y[i];
    optim_gpa_move(&y[i], &z[i], u, lr, 1, &w);)

OPTIM_PASS(optim_schedule_free_sgd, (float *y, float *z, const float *g, float scale, float lr, float wd, OptimGpa w),
    optim_gpa_move(&y[i], &z[i], scale * g[i] + wd * chunk.decay * y[i], lr, 1, &w);)

static void optim_step_schedule_free(Optimizer *o, const OptimInput *in) {
    o->s.lr_max = fmax(o->s.lr_max, in->lr);
    const double weight = pow(o->s.t + 1, o->h.r) * o->s.lr_max * o->s.lr_max;
    o->s.weight_sum += weight;
    const double c = weight > 0 ? weight / o->s.weight_sum : 0;
    const OptimGpa w = { (float)c, (float)(o->h.beta1 * (1 - c) - 1), 0 };       // GPA's move with mu_y = b1
    const float lr = (float)in->lr, wd = (float)o->h.weight_decay;
    if (o->v) optim_schedule_free(o->all, o->params, o->z, in->g, in->scale, o->v, optim_adam(o), lr, wd, w);
    else optim_schedule_free_sgd(o->all, o->params, o->z, in->g, in->scale, lr, wd, w);
}

static void optim_eval_schedule_free(const Optimizer *o, float *out) {
    optim_extrapolate(o->all, out, o->params, o->z, (float)(1 - 1 / o->h.beta1));
}

// ---------------------------------------------------------------------------------------------------------------
// D-Adaptation, Prodigy, Resetting: estimates d of the distance to the solution
static const char optim_maths_prodigy[] =
    "num = b3 num + (d/d0) dlr <g, x0-x>,  s = b3 s + (d/d0) dlr g,  d_hat = d_coef num/|s|_1,  b3 = sqrt b2\n"
    "m = b1 m + d (1-b1) g,  v = b2 v + d^2 (1-b2) g^2,  dlr = d lr: with d before its update to max(d, d_hat)\n"
    "x = (1 - wd dlr) x - dlr m/(sqrt v + d eps)            arXiv 2306.06101, konstmish/prodigy\n";
static const char optim_maths_dadapt[] =
    "num = sqrt b2 num + (1-sqrt b2) dlr <g, s/(sqrt v + eps)>, v before its update,  dlr = d lr\n"
    "m = b1 m + dlr (1-b1) g,  v = b2 v + (1-b2) g^2,  s = sqrt b2 s + (1-sqrt b2) dlr g;  d = max(d, d_hat)\n"
    "x = (1 - wd dlr) x - m/(sqrt v + eps),  d_hat = num/((1-sqrt b2) |s|_1)    arXiv 2301.07733, dadaptation\n";
static const char optim_maths_resetting[] =
    "s = s + d g,  gamma = 1/sqrt(sum |g|^2),  x = x0 - gamma s     arXiv 2306.06101, over dual averaging (2301.07733)\n"
    "d_hat = (gamma |s|^2 - sum gamma_k d^2 |g_k|^2) / (2 |s|), gamma_k from the gradients before k, at first 1/|g_0|\n"
    "if d_hat > 2d: d = d_hat, x = x0, and all sums start again\n";

// Prodigy's estimate from every slice_p-th entry of each tensor: element i of x0 and s belongs to element `at` of x.
OPTIM_ELEMENT float optim_prodigy_sum(float grad, float *s, float b3, float a) { return *s = b3 * *s + a * grad; }
OPTIM_SUM(optim_prodigy_sums, (const float *x, const float *x0, const float *g, float scale, float *s, float b3,
                               float a),
    s0 += (double)(scale * g[i]) * (x0[i] - x[i]);
    s1 += fabsf(optim_prodigy_sum(scale * g[i], &s[i], b3, a));)
OPTIM_SUM(optim_prodigy_slices, (const float *x, const float *x0, const float *g, float scale, float *s, float b3,
                                 float a, size_t slice),
    const size_t at = chunk.first + (i - chunk.begin) * slice;
    s0 += (double)(scale * g[at]) * (x0[i] - x[at]);
    s1 += fabsf(optim_prodigy_sum(scale * g[at], &s[i], b3, a));)
OPTIM_PASS(optim_copy_slices, (float *out, const float *x, size_t slice),
    out[i] = x[chunk.first + (i - chunk.begin) * slice];)

OPTIM_PASS(optim_prodigy, (float *x, const float *g, float scale, float *m, float *v, float b1, float a1, float b2,
                           float a2, float eps, float dlr, float wd),
    const float grad = scale * g[i];
    m[i] = b1 * m[i] + a1 * grad;
    v[i] = b2 * v[i] + a2 * grad * grad;
    x[i] = (1 - wd * dlr * chunk.decay) * x[i] - dlr * m[i] / (sqrtf(v[i]) + eps);)

static void optim_step_prodigy(Optimizer *o, const OptimInput *in) {
    const OptimHyper *h = &o->h;
    const double d = o->s.d, k = o->s.t + 1, b3 = sqrt(h->beta2);
    const double dlr = d * in->lr * (h->bias_correction ? sqrt(1 - pow(h->beta2, k)) / (1 - pow(h->beta1, k)) : 1);
    if (in->lr == 0) return;                              // nothing is to move, nothing can be learned about d
    const float b = (float)b3, a = (float)(d / h->d0 * (h->safeguard_warmup ? d : dlr));
    const OptimSums sums = h->slice_p == 1
        ? optim_prodigy_sums(o->all, o->params, o->x0, in->g, in->scale, o->sum, b, a)
        : optim_prodigy_slices(o->slices, o->params, o->x0, in->g, in->scale, o->sum, b, a, (size_t)h->slice_p);
    if (sums.s1 == 0) return;                             // all gradients so far were zero
    o->s.numerator = b3 * o->s.numerator + d / h->d0 * dlr * sums.s0;
    const double d_hat = h->d_coef * o->s.numerator / sums.s1;
    o->s.d_max = fmax(o->s.d_max, d_hat);
    o->s.d = fmin(o->s.d_max, (d == h->d0 ? fmax(d, d_hat) : d) * h->growth_rate);
    optim_prodigy(o->all, o->params, in->g, in->scale, o->m, o->v, (float)h->beta1, (float)(d * (1 - h->beta1)),
                  (float)h->beta2, (float)(d * d * (1 - h->beta2)), (float)(o->s.d * h->eps), (float)dlr,
                  (float)h->weight_decay);
}

// d moves only the next step's rate, so that sums and update are one pass.
OPTIM_SUM(optim_dadapt, (float *x, const float *g, float scale, float *m, float *v, float *s, OptimAdam c, float b3,
                         float a3, float dlr, float wd),
    const float grad = scale * g[i];
    s0 += (double)grad * (s[i] / (sqrtf(v[i]) + c.eps));
    m[i] = c.b1 * m[i] + dlr * c.a1 * grad;
    v[i] = c.b2 * v[i] + c.a2 * grad * grad;
    s[i] = b3 * s[i] + a3 * grad;
    s1 += fabsf(s[i]);
    x[i] = (1 - wd * dlr * chunk.decay) * x[i] - m[i] / (sqrtf(v[i]) + c.eps);)

static void optim_step_dadapt(Optimizer *o, const OptimInput *in) {
    const double dlr = o->s.d * in->lr, b3 = sqrt(o->h.beta2);
    const OptimSums sums = optim_dadapt(o->all, o->params, in->g, in->scale, o->m, o->v, o->sum, optim_adam(o),
                                        (float)b3, (float)((1 - b3) * dlr), (float)dlr, (float)o->h.weight_decay);
    if (sums.s1 == 0) return;
    o->s.numerator = b3 * o->s.numerator + (1 - b3) * dlr * sums.s0;
    const double d_hat = o->s.numerator / ((1 - b3) * sums.s1);
    o->s.d = fmax(o->s.d, fmin(d_hat, o->s.d * o->h.growth_rate));
}

OPTIM_SUM(optim_dual_sum, (const float *g, float scale, float *s, float d),
    const float grad = scale * g[i];
    s[i] += d * grad;
    s0 += (double)s[i] * s[i];
    s1 += (double)grad * grad;)
OPTIM_PASS(optim_dual_step, (float *x, const float *x0, const float *s, float gamma), x[i] = x0[i] - gamma * s[i];)
OPTIM_PASS(optim_dual_reset, (float *x, const float *x0, float *s), x[i] = x0[i]; s[i] = 0;)

static void optim_step_resetting(Optimizer *o, const OptimInput *in) {
    OptimScalars *s = &o->s;
    const OptimSums sums = optim_dual_sum(o->all, in->g, in->scale, o->sum, (float)s->d);
    if (sums.s0 == 0) return;                                            // all gradients so far were zero
    const double before = s->grad_sum > 0 ? s->grad_sum : sums.s1;       // gamma_0 = 1/|g_0|
    s->numerator += s->d * s->d * sums.s1 / sqrt(before);
    s->grad_sum += sums.s1;
    s->step = 1 / sqrt(s->grad_sum);
    const double d_hat = (s->step * sums.s0 - s->numerator) / (2 * sqrt(sums.s0));
    if (d_hat > 2 * s->d) {
        s->d = d_hat;
        s->numerator = s->grad_sum = 0;
        optim_dual_reset(o->all, o->params, o->x0, o->sum);
    } else {
        optim_dual_step(o->all, o->params, o->x0, o->sum, (float)s->step);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// DoG and DoWG: distance over (weighted) gradients
static const char optim_maths_dog[] =
    "rbar = max(rbar, |x-x0|), at first reps_rel (1 + |x0|)         arXiv 2302.12022, formll/dog\n"
    "G = sum |g|^2,  x = x - lr rbar/sqrt(G + eps) g\n"
    "evaluated: average = average + 9/(8+t) (x - average), t = 1, 2, ..\n";
static const char optim_maths_dowg[] =
    "r2 = max(r2, |x-x0|^2), at first eps                   arXiv 2305.16284, rka97/dowg\n"
    "v = v + r2 |g|^2\n"
    "x = x - r2 g/(sqrt v + eps)\n";
static const char optim_maths_cdowg[] =
    "r2 = max(r2, (x-x0)^2), at first 1e-4, in every entry  arXiv 2305.16284, CDoWG of rka97/dowg\n"
    "v = v + r2 g^2\n"
    "x = x - r2 g/(sqrt v + eps)\n";

OPTIM_ELEMENT float optim_max(float a, float b) { return a > b ? a : b; }
OPTIM_ELEMENT float optim_min(float a, float b) { return a < b ? a : b; }

// s0 = |x-a|^2, s1 = |scale g - b|^2
OPTIM_SUM(optim_distances, (const float *x, const float *a, const float *g, float scale),
    const float d = x[i] - a[i], grad = scale * g[i];
    s0 += (double)d * d;
    s1 += (double)grad * grad;)
OPTIM_PASS(optim_dog, (float *x, const float *g, float *average, float a, float w),
    x[i] -= a * g[i];
    average[i] += w * (x[i] - average[i]);)

static void optim_step_dog(Optimizer *o, const OptimInput *in) {
    const OptimSums sums = optim_distances(o->all, o->params, o->x0, in->g, in->scale);
    if (o->s.t == 0) {
        o->s.distance = o->h.reps_rel * (1 + sqrt(optim_sum_squares(o->all, o->x0).s0));
        o->s.grad_sum = o->h.eps;
    }
    o->s.distance = fmax(o->s.distance, sqrt(sums.s0));
    o->s.grad_sum += sums.s1;
    o->s.step = in->lr * o->s.distance / sqrt(o->s.grad_sum);
    optim_dog(o->all, o->params, in->g, o->x_average, (float)(o->s.step * in->scale), (float)(9 / (9 + o->s.t)));
}
static void optim_eval_dog(const Optimizer *o, float *out) { optim_copy(o->all, out, o->x_average); }

static void optim_step_dowg(Optimizer *o, const OptimInput *in) {
    const OptimSums sums = optim_distances(o->all, o->params, o->x0, in->g, in->scale);
    o->s.distance = fmax(o->s.t == 0 ? o->h.eps : o->s.distance, sums.s0);           // squared
    o->s.grad_sum += o->s.distance * sums.s1;
    o->s.step = o->s.distance / (sqrt(o->s.grad_sum) + o->h.eps);
    optim_descend(o->all, o->params, in->g, (float)(o->s.step * in->scale));
}

OPTIM_PASS(optim_cdowg, (float *x, const float *x0, const float *g, float scale, float *r2, float *v, float eps),
    const float d = x[i] - x0[i], grad = scale * g[i];
    r2[i] = optim_max(optim_max(r2[i], 1e-4f), d * d);
    v[i] += r2[i] * grad * grad;
    x[i] -= r2[i] * grad / (sqrtf(v[i]) + eps);)

static void optim_step_cdowg(Optimizer *o, const OptimInput *in) {
    optim_cdowg(o->all, o->params, o->x0, in->g, in->scale, o->r2, o->v, (float)o->h.eps);
}

// ---------------------------------------------------------------------------------------------------------------
// AdGD and AdProxGD: steps from the curvature met on the way; gradients of one function, not of changing batches
static const char optim_maths_adgd[] =
    "L = |g - g_prev|/|x - x_prev|,  th = a_prev/a_prevprev    arXiv 2308.02261, ymalitsky/AdProxGD\n"
    "version 1: a = min(sqrt(1+th) a_prev, 1/(sqrt2 L));  2: min(sqrt(2/3+th) a_prev, a_prev/sqrt([2 a_prev^2 L^2-1]_+))\n"
    "th_0 = 0 and 1/3;  x = prox(x - a g): adproxgd's shrinks by a l1 towards 0 and clips to the box; adgd has none\n";

OPTIM_SUM(optim_differences, (const float *x, const float *x_prev, const float *g, float scale, const float *g_prev),
    const float dx = x[i] - x_prev[i], dg = scale * g[i] - g_prev[i];
    s0 += (double)dx * dx;
    s1 += (double)dg * dg;)
OPTIM_PASS(optim_adproxgd, (float *x, float *x_prev, const float *g, float scale, float *g_prev, float a, float l1,
                            float low, float high),
    const float grad = scale * g[i], y = x[i] - a * grad, t = a * l1;
    x_prev[i] = x[i];
    g_prev[i] = grad;
    x[i] = optim_min(optim_max(optim_max(y - t, 0) + optim_min(y + t, 0), low), high);)

static void optim_step_adgd(Optimizer *o, const OptimInput *in) {
    double a = o->h.first_step;
    const double th0 = o->h.version == 1 ? 0 : 1.0 / 3;                  // the second step does not grow
    if (o->s.t > 0) {
        const OptimSums sums = optim_differences(o->all, o->params, o->x_prev, in->g, in->scale, o->g_prev);
        const double prev = o->s.step, th = o->s.t > 1 ? prev / o->s.step_prev : th0;
        const double L2 = sums.s0 > 0 ? sums.s1 / sums.s0 : 0;
        a = o->h.version == 1 ? fmin(sqrt(1 + th) * prev, 1 / sqrt(2 * L2))
                              : fmin(sqrt(2.0 / 3 + th) * prev, prev / sqrt(fmax(2 * prev * prev * L2 - 1, 0)));
    }
    o->s.step_prev = o->s.step;
    o->s.step = a;
    const int prox = o->h.box_low < o->h.box_high;                       // adgd's row has neither box nor l1
    optim_adproxgd(o->all, o->params, o->x_prev, in->g, in->scale, o->g_prev, (float)a, (float)o->h.l1,
                   (float)(prox ? o->h.box_low : -INFINITY), (float)(prox ? o->h.box_high : INFINITY));
}

// ---------------------------------------------------------------------------------------------------------------
// The table of optimizers. Defaults live here and nowhere else.

#define OPTIM_ADAM_DEFAULTS "lr=1e-3 beta1=0.9 beta2=0.99 eps=1e-8 weight-decay=0.1 "
#define OPTIM_SGD_DEFAULTS  "lr=0.1 momentum=0.9 dampening=0.9 weight-decay=0 "
#define OPTIM_MUON_DEFAULTS OPTIM_ADAM_DEFAULTS "muon-lr=0.02 muon-momentum=0.95 "
#define OPTIM_OUTER_DEFAULTS "inner-steps=32 outer-lr=0.7 outer-momentum=0.9 "
#define OPTIM_GPA_DEFAULTS "mu-x=0.9967 mu-y=0.7 "
#define OPTIM_IAM_DEFAULTS "lambda=9 lr-cap=0 weight-decay=0 "
#define OPTIM_DISTANCE_DEFAULTS "lr=1 beta1=0.9 beta2=0.999 eps=1e-8 weight-decay=0 d0=1e-6 growth-rate=inf "

static const OptimRow optim_rows[] = {
    { "adamw", OPTIM_ADAMW, "m v", OPTIM_ADAM_DEFAULTS, optim_maths_adamw, optim_step_base, NULL },
    { "sgd", OPTIM_SGD, "m", OPTIM_SGD_DEFAULTS, optim_maths_sgd, optim_step_base, NULL },
    { "muon", OPTIM_MUON, "m v", OPTIM_MUON_DEFAULTS, optim_maths_muon, optim_step_base, NULL },
    { "diloco", OPTIM_ADAMW, "m v outer x_outer", OPTIM_ADAM_DEFAULTS OPTIM_OUTER_DEFAULTS, optim_maths_diloco,
      optim_step_diloco, NULL },
    { "diloco", OPTIM_SGD, "m outer x_outer", OPTIM_SGD_DEFAULTS OPTIM_OUTER_DEFAULTS, optim_maths_diloco,
      optim_step_diloco, NULL },
    { "diloco", OPTIM_MUON, "m v outer x_outer", OPTIM_MUON_DEFAULTS OPTIM_OUTER_DEFAULTS, optim_maths_diloco,
      optim_step_diloco, NULL },
    { "gpa", OPTIM_ADAMW, "m v z", OPTIM_ADAM_DEFAULTS OPTIM_GPA_DEFAULTS, optim_maths_gpa, optim_step_gpa,
      optim_eval_gpa },
    { "gpa", OPTIM_SGD, "m z", OPTIM_SGD_DEFAULTS OPTIM_GPA_DEFAULTS, optim_maths_gpa, optim_step_gpa,
      optim_eval_gpa },
    { "gpa", OPTIM_MUON, "m v z", OPTIM_MUON_DEFAULTS OPTIM_GPA_DEFAULTS, optim_maths_gpa, optim_step_gpa,
      optim_eval_gpa },
    { "schedule-free", OPTIM_NO_BASE, "v z", "lr=2.5e-3 beta1=0.9 beta2=0.999 eps=1e-8 weight-decay=0 r=0 ",
      optim_maths_schedule_free, optim_step_schedule_free, optim_eval_schedule_free },
    { "schedule-free-sgd", OPTIM_NO_BASE, "z", "lr=1 beta1=0.9 weight-decay=0 r=0 ", optim_maths_schedule_free,
      optim_step_schedule_free, optim_eval_schedule_free },
    { "prodigy", OPTIM_NO_BASE, "m v x0 sum", OPTIM_DISTANCE_DEFAULTS
      "d-coef=1 safeguard-warmup=0 bias-correction=0 slice-p=1 ", optim_maths_prodigy, optim_step_prodigy, NULL },
    { "dadapt-adam", OPTIM_NO_BASE, "m v sum", OPTIM_DISTANCE_DEFAULTS, optim_maths_dadapt, optim_step_dadapt, NULL },
    { "resetting", OPTIM_NO_BASE, "x0 sum", "d0=1e-6 ", optim_maths_resetting, optim_step_resetting, NULL },
    { "dog", OPTIM_NO_BASE, "x0 x_average", "lr=1 reps-rel=1e-6 eps=1e-8 ", optim_maths_dog, optim_step_dog,
      optim_eval_dog },
    { "dowg", OPTIM_NO_BASE, "x0", "eps=1e-4 ", optim_maths_dowg, optim_step_dowg, NULL },
    { "cdowg", OPTIM_NO_BASE, "x0 r2 v", "eps=1e-8 ", optim_maths_cdowg, optim_step_cdowg, NULL },
    { "sps", OPTIM_NO_BASE, "", "", optim_maths_sps, optim_step_sps, NULL },
    { "iam", OPTIM_SGD, "z", OPTIM_IAM_DEFAULTS, optim_maths_iam, optim_step_iam, NULL },
    { "iam", OPTIM_ADAMW, "v z", OPTIM_IAM_DEFAULTS "beta2=0.999 eps=1e-8 ", optim_maths_iam, optim_step_iam, NULL },
    { "iam", OPTIM_MUON, "m v z", "lambda=4 lr-cap=0 weight-decay=0 beta2=0.999 eps=1e-8 muon-momentum=0.95 "
      "matrix-weight=0.3 ", optim_maths_iam, optim_step_iam, NULL },
    { "iam-adam", OPTIM_ADAMW, "v z", OPTIM_IAM_DEFAULTS "beta2=0.999 eps=1e-8 ", optim_maths_iam, optim_step_iam,
      NULL },
    { "adgd", OPTIM_NO_BASE, "x_prev g_prev", "first-step=0.01 version=2 ", optim_maths_adgd, optim_step_adgd, NULL },
    { "adproxgd", OPTIM_NO_BASE, "x_prev g_prev", "first-step=0.01 version=2 l1=0 box-low=-inf box-high=inf ",
      optim_maths_adgd, optim_step_adgd, NULL },
};
static const char *const optim_base_names[] = { "", "adamw", "sgd", "muon" };

#define OPTIM_COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

// ---------------------------------------------------------------------------------------------------------------
// The interface

// Walks "lr=1e-3 beta1=0.9 ": copies the next name, returns where its value begins, or NULL at the end.
static const char *optim_next_default(const char *list, char name[32]) {
    size_t length = strcspn(list, "=");
    if (!list[length] || length > 31) return NULL;
    memcpy(name, list, length);
    name[length] = 0;
    return list + length + 1;
}

static int optim_key(const Optimizer *o, const char *name) {            // its index, -1 where this row lacks it
    char key[32];
    for (const char *value = optim_next_default(o->row->defaults, key); value;
         value = optim_next_default(strchr(value, ' ') + 1, key)) {
        if (strcmp(key, name)) continue;
        for (int j = 0; j < OPTIM_COUNT(optim_keys); j++) if (!strcmp(optim_keys[j].name, name)) return j;
    }
    return -1;
}

static double *optim_value(const Optimizer *o, int key) { return (double *)((char *)&o->h + optim_keys[key].field); }

static void optim_choose(Optimizer *o, const OptimRow *row) {           // the row and its defaults
    memset(o, 0, sizeof(*o));
    o->row = row;
    char key[32];
    for (const char *value = optim_next_default(row->defaults, key); value;
         value = optim_next_default(strchr(value, ' ') + 1, key))
        *optim_value(o, optim_key(o, key)) = strtod(value, NULL);
}

// Finds the row of the table; 0, or -1 when the name is unknown.
OPTIM_API int optim_init(Optimizer *o, const char *name) {
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++)
        if (!strcmp(optim_rows[j].name, name)) { optim_choose(o, &optim_rows[j]); return 0; }
    return -1;
}

// "adamw", "sgd" or "muon" under gpa, iam or diloco, with that row's defaults; -1 if not applicable.
OPTIM_API int optim_set_base(Optimizer *o, const char *base) {
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++)
        if (!strcmp(optim_rows[j].name, o->row->name) && strcmp(o->row->name, base) && optim_rows[j].base &&
            !strcmp(optim_base_names[optim_rows[j].base], base)) {
            optim_choose(o, &optim_rows[j]);
            return 0;
        }
    return -1;
}

static int optim_in_range(const char *range, double value) {            // "[0,1)", an i behind it: whole numbers
    char open, close, whole = 0;
    double low, high;
    if (sscanf(range, "%c%lf,%lf%c%c", &open, &low, &high, &close, &whole) < 4) return 0;
    return (open == '[' ? value >= low : value > low) && (close == ']' ? value <= high : value < high) &&
           (whole != 'i' || value == floor(value));
}

// Sets a hyperparameter; 0, -1 if this optimizer has no such one, -2 if the value is out of its range.
OPTIM_API int optim_set(Optimizer *o, const char *name, double value) {
    int key = optim_key(o, name);
    if (key < 0) return -1;
    if (!optim_in_range(optim_keys[key].range, value)) return -2;
    if (o->row->eval == optim_eval_schedule_free && value == 0 && !strcmp(name, "beta1")) return -2;   // x = y = z
    *optim_value(o, key) = value;
    return 0;
}

OPTIM_API double optim_get(const Optimizer *o, const char *name) {      // NaN where absent
    int key = optim_key(o, name);
    return key < 0 ? NAN : *optim_value(o, key);
}

// Cuts every segment (of matrices, or of the rest) into chunks; writes them at `out` unless that is NULL. slice p > 1:
// the chunks of arrays that hold every p-th element of each segment, one segment behind the other.
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

static int optim_uses(const Optimizer *o, int buffer) {                 // whether the row names this buffer
    const char *name = optim_buffers[buffer].name, *list = o->row->buffers;
    const size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length])) return 1;
    return 0;
}

static float **optim_buffer(const Optimizer *o, int buffer) {
    return (float **)((char *)o + optim_buffers[buffer].field);
}

static size_t optim_size(const Optimizer *o, int buffer) {              // in floats
    return optim_buffers[buffer].sliced ? o->num_slices : o->n;
}

OPTIM_API void optim_free(Optimizer *o) {
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++) { optim_release(*optim_buffer(o, j)); *optim_buffer(o, j) = NULL; }
    free(o->segments); optim_release(o->chunks); free(o->sums); optim_release(o->muon_scratch);
    o->segments = NULL; o->chunks = NULL; o->sums = NULL; o->muon_scratch = NULL;
}

// Allocates the buffers. params is the caller's array of n floats and holds the starting point; the segments cover
// it in order. 0, or -1 without memory.
OPTIM_API int optim_start(Optimizer *o, float *params, size_t n, const OptimSegment *segments, int num_segments) {
    const OptimSegment whole = { 0, n, 0, 0, 0 };
    if (!num_segments) { segments = &whole; num_segments = 1; }
    o->params = params;
    o->n = n;
    o->num_segments = num_segments;
    o->segments = (OptimSegment *)malloc(num_segments * sizeof(OptimSegment));
    if (!o->segments) return -1;
    memcpy(o->segments, segments, num_segments * sizeof(OptimSegment));

    const size_t slice = o->h.slice_p > 1 ? (size_t)o->h.slice_p : 1;
    const int rest = optim_cut(o, 0, 1, NULL), matrices = optim_cut(o, 1, 1, NULL);
    const int sliced = slice > 1 ? optim_cut(o, 0, slice, NULL) : 0;
    o->chunks = (OptimChunk *)optim_allocate(rest + matrices + sliced, sizeof(OptimChunk));
    o->sums = (double *)malloc(3 * (rest + matrices) * sizeof(double));
    int missing = !o->chunks || !o->sums;
    o->num_slices = n;
    if (!missing) {
        const OptimSpan span = { o->chunks, optim_cut(o, 0, 1, o->chunks), n, 0, o->sums };
        o->all = o->rest = o->matrices = o->slices = span;
        o->all.count += optim_cut(o, 1, 1, o->chunks + rest);
        o->matrices.chunk += rest;
        o->matrices.sums += 3 * rest;
        o->matrices.count = matrices;
        if (sliced) {
            o->slices.chunk += rest + matrices;
            o->slices.count = optim_cut(o, 0, slice, o->chunks + rest + matrices);
            o->num_slices = o->slices.chunk[sliced - 1].end;
        }
    }
    size_t scratch = 0;
    for (int j = 0; j < num_segments && matrices; j++) {
        const size_t r = segments[j].rows < segments[j].cols ? segments[j].rows : segments[j].cols;
        const size_t need = 2 * (segments[j].size + r * r);
        if (segments[j].rows && need > scratch) scratch = need;
    }
    if (scratch) missing |= !(o->muon_scratch = (float *)optim_allocate(scratch, sizeof(float)));
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++)
        if (optim_uses(o, j)) missing |= !(*optim_buffer(o, j) = (float *)optim_allocate(optim_size(o, j), sizeof(float)));
    if (missing) { optim_free(o); return -1; }
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++) {
        if (!optim_uses(o, j) || !optim_buffers[j].start) continue;
        if (optim_buffers[j].sliced && sliced) optim_copy_slices(o->slices, *optim_buffer(o, j), params, slice);
        else optim_copy(o->all, *optim_buffer(o, j), params);
    }
    o->s.d = o->s.d_max = o->h.d0;
    return 0;
}

// One update of params. grad: the gradient there, multiplied by grad_scale on the way (clipping costs no pass).
// lr_factor: the schedule's value, times the hyperparameters "lr" and "muon-lr". loss, loss_star: f_t(x) and the
// teacher's f*_t on this batch (sps, iam).
OPTIM_API void optim_step(Optimizer *o, const float *grad, float grad_scale, double lr_factor, double loss,
                          double loss_star) {
    const OptimInput in = { grad, grad_scale, o->h.lr * lr_factor, o->h.muon_lr * lr_factor, loss - loss_star };
    o->row->step(o, &in);
    o->s.t++;
}

// Whether the step comes from losses, the batch's and a teacher's, not from a rate.
OPTIM_API int optim_is_polyak(const Optimizer *o) { return o->row->step == optim_step_sps || o->row->step == optim_step_iam; }

// The step length for a log: the scheduled rate, or what the last step found.
OPTIM_API double optim_rate(const Optimizer *o, double lr_factor) {
    return isnan(optim_get(o, "lr")) ? o->s.step : o->h.lr * lr_factor;
}

// Writes the evaluation point x to out (n floats); params stays.
OPTIM_API void optim_eval_params(const Optimizer *o, float *out) {
    if (o->row->eval) o->row->eval(o, out);
    else optim_copy(o->all, out, o->params);
}

// Block i of what a checkpoint holds besides params: the scalars, then the buffers; 0 past the end.
OPTIM_API int optim_state(Optimizer *o, int i, void **ptr, size_t *bytes, const char **name) {
    if (i == 0) { *ptr = &o->s; *bytes = sizeof(o->s); *name = "scalars"; return 1; }
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++) {
        if (!optim_uses(o, j) || --i) continue;
        *ptr = *optim_buffer(o, j);
        *bytes = optim_size(o, j) * sizeof(float);
        *name = optim_buffers[j].name;
        return 1;
    }
    return 0;
}

// One optimizer's maths, options, defaults and memory; all names where name is NULL.
OPTIM_API void optim_print_help(FILE *f, const char *name) {
    if (!name) fprintf(f, "optimizers:");
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        Optimizer o;
        optim_choose(&o, &optim_rows[j]);
        if (!name) {
            if (!j || strcmp(optim_rows[j].name, optim_rows[j-1].name)) fprintf(f, " %s", optim_rows[j].name);
            continue;
        }
        if (strcmp(optim_rows[j].name, name)) continue;
        const char *base = optim_base_names[optim_rows[j].base];
        fprintf(f, "%s%s%s\n", name, *base && strcmp(base, name) ? " --base " : "", strcmp(base, name) ? base : "");
        for (const char *line = optim_rows[j].maths; *line; line = strchr(line, '\n') + 1)
            fprintf(f, "    %.*s\n", (int)strcspn(line, "\n"), line);
        for (int key = 0; key < OPTIM_COUNT(optim_keys); key++) {
            if (optim_key(&o, optim_keys[key].name) < 0) continue;
            const char *range = optim_keys[key].range, *bracket = strpbrk(range, ")]");
            fprintf(f, "  --%-17s %-8g %-8.*s %s\n", optim_keys[key].name, *optim_value(&o, key),
                    (int)(bracket - range) + 1, range, optim_keys[key].meaning);
        }
        int count = 0;
        for (int b = 0; b < OPTIM_COUNT(optim_buffers); b++) count += optim_uses(&o, b);
        fprintf(f, "  memory: %d bytes a parameter beyond parameters and gradients (%s)\n", 4 * count,
                optim_rows[j].buffers);
    }
    if (!name) fprintf(f, "\n");
}

// ---------------------------------------------------------------------------------------------------------------
// Schedules

// The factor of the rate at step 0..steps-1: a linear warmup, then constant, cosine, linear, or wsd (constant, and
// linear over the last fifth) down to final_fraction. NaN: no such kind.
OPTIM_API double optim_schedule(const char *kind, long step, long steps, long warmup, double final_fraction) {
    const int constant = !strcmp(kind, "constant"), cosine = !strcmp(kind, "cosine"), wsd = !strcmp(kind, "wsd");
    if (!constant && !cosine && !wsd && strcmp(kind, "linear")) return NAN;
    if (step < warmup) return (double)(step + 1) / warmup;
    if (constant) return 1;
    long begin = wsd ? steps - steps / 5 : warmup;
    if (begin < warmup) begin = warmup;
    if (step < begin || steps <= begin) return 1;
    const double done = fmin(1, (double)(step - begin) / (double)(steps - begin));
    const double left = cosine ? 0.5 + 0.5 * cos(3.14159265358979323846 * done) : 1 - done;
    return final_fraction + (1 - final_fraction) * left;
}

static int optim_by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The refined schedule of arXiv 2310.07831 (facebookresearch/adaptive_scheduling) from the gradient norms of a
// finished run: G after a median filter of width 2 floor(tau steps/2) + 1 (left of the run its first norm, right of it
// its reflection), w = G^-2 for SGD (which "l2") or 1/G of the l1 norms for Adam ("l1"), then
//     factor_t = w_t sum_{p>t} w_p / sum_p w_p, divided by the largest.
// 0, or -1 without memory, with fewer than two steps, or where a norm is not a positive number.
OPTIM_API int optim_refined(const double *grad_norms, long steps, const char *which, double tau, double *factors_out) {
    const int l1 = !strcmp(which, "l1");
    if (steps < 2 || (!l1 && strcmp(which, "l2")) || !(tau >= 0 && tau <= 1)) return -1;
    const long half = (long)(tau * steps) / 2, width = 2 * half + 1;
    double *window = (double *)malloc(width * sizeof(double)), total = 0, tail = 0, largest = 0;
    if (!window) return -1;
    for (long t = 0; t < steps; t++) {
        for (long j = -half; j <= half; j++) {
            const long at = t + j < 0 ? 0 : t + j < steps ? t + j : 2 * (steps - 1) - (t + j);
            if (!(grad_norms[at] > 0 && grad_norms[at] < INFINITY)) { free(window); return -1; }
            window[j + half] = grad_norms[at];
        }
        qsort(window, width, sizeof(double), optim_by_value);
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

// ---------------------------------------------------------------------------------------------------------------
// A proxy's corrected gradient, arXiv 2302.03542: the gradient of <g_t - grad fh(x_t), x> + fh(x) + |x-x_t|^2/(2 eta)
OPTIM_PASS(optim_proxy_pass, (float *out, const float *proxy, const float *g, const float *proxy_t, const float *x,
                              const float *xt, float c),
    out[i] = proxy[i] + (g[i] - proxy_t[i]) + c * (x[i] - xt[i]);)

OPTIM_API void optim_proxy_gradient(float *out, const float *grad_proxy, const float *g,
                                    const float *grad_proxy_at_xt, const float *x, const float *xt, double eta,
                                    size_t n) {
    optim_proxy_pass(optim_flat(n, NULL), out, grad_proxy, g, grad_proxy_at_xt, x, xt, (float)(1 / eta));
}

#endif
