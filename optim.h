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
#define OPTIM_API static __attribute__((unused))   // a program need not call everything in here
#else
#define OPTIM_API static
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

static inline OptimChunk optim_chunk(OptimSpan span, int k) {
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

#define OPTIM_ELEMENT static inline               // a function of one element, called from the bodies of passes
#define OPTIM_LIST(...) __VA_ARGS__

// OPTIM_PASS(name, (arguments), body): `body` for every element i of the span; it may use chunk.decay.
#define OPTIM_PASS(name, arguments, ...)                                                  \
    OPTIM_API void name(OptimSpan span, OPTIM_LIST arguments) {                           \
        OPTIM_PARALLEL for (int k = 0; k < span.count; k++) {                             \
            const OptimChunk chunk = optim_chunk(span, k);                                \
            OPTIM_SIMD for (size_t i = chunk.begin; i < chunk.end; i++) { __VA_ARGS__ }   \
        }                                                                                 \
    }

// OPTIM_SUM: the same, and `body` adds to s0, s1, s2, whose totals are returned.
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
} OptimHyper;

typedef struct {          // everything that changes from step to step besides the buffers
    double t;             // updates done
    double step;          // the last step length found (sps, iam)
    double d;
    double lr_max, weight_sum;                                        // schedule-free
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
    void (*average)(float *x, size_t n); // diloco among workers: replaces x by its mean over them; NULL: one worker
    OptimSegment *segments;
    int num_segments;
    OptimChunk *chunks;   // the rest's, then the matrices' where Muon moves them
    double *sums;
    OptimSpan all, rest, matrices;
    float *muon_scratch;
};

// start: the buffer begins as a copy of params, else zero
static const struct { const char *name; size_t field; int start; } optim_buffers[] = {
    { "m", offsetof(Optimizer, m), 0 },
    { "v", offsetof(Optimizer, v), 0 },
    { "z", offsetof(Optimizer, z), 1 },
    { "outer", offsetof(Optimizer, outer), 0 },
    { "x_outer", offsetof(Optimizer, x_outer), 1 },
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
};

// Muon's products: C (M x N) = alpha A (M x K) op(B) + beta C, row-major; op(B) = B (K x N), or B^T with B (N x K).
// A program with a fast kernel points optim_matmul to it.
OPTIM_API void optim_matmul_plain(float *C, const float *A, const float *B, int M, int N, int K, int transB,
                                  float alpha, float beta) {
    OPTIM_PARALLEL for (int i = 0; i < M; i++) {
        float *c = C + (size_t)i * N;
        const float *a = A + (size_t)i * K;
        for (int j = 0; j < N; j++) c[j] *= beta;
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

OPTIM_ELEMENT void optim_gpa_move(float *y, float *z, float u, float lr, float decay, OptimGpa w) {
    const float z0 = decay * *z;
    const float y0 = *y + w.follow * (z0 - *z);
    *y = y0 + w.c * (z0 - y0) + lr * w.k * u;
    *z = z0 - lr * u;
}

OPTIM_PASS(optim_gpa_adamw, (float *y, float *z, const float *g, float scale, float *m, float *v, OptimAdam c,
                             float lr, float wd, OptimGpa w),
    const float u = optim_adam_direction(scale * g[i], &m[i], &v[i], c);
    optim_gpa_move(&y[i], &z[i], u, lr, 1 - lr * wd * chunk.decay, w);)

OPTIM_PASS(optim_gpa_sgd, (float *y, float *z, const float *g, float scale, float *m, float momentum, float a,
                           float lr, float wd, OptimGpa w),
    m[i] = momentum * m[i] + a * (scale * g[i]);
    optim_gpa_move(&y[i], &z[i], m[i], lr, 1 - lr * wd * chunk.decay, w);)

OPTIM_PASS(optim_gpa_muon, (float *y, float *z, const float *u, float lr, float wd, OptimGpa w),
    optim_gpa_move(&y[i], &z[i], u[i], lr, 1 - lr * wd * chunk.decay, w);)

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
// The table of optimizers. Defaults live here and nowhere else.

#define OPTIM_ADAM_DEFAULTS "lr=1e-3 beta1=0.9 beta2=0.99 eps=1e-8 weight-decay=0.1 "
#define OPTIM_SGD_DEFAULTS  "lr=0.1 momentum=0.9 dampening=0.9 weight-decay=0 "
#define OPTIM_MUON_DEFAULTS OPTIM_ADAM_DEFAULTS "muon-lr=0.02 muon-momentum=0.95 "
#define OPTIM_OUTER_DEFAULTS "inner-steps=32 outer-lr=0.7 outer-momentum=0.9 "
#define OPTIM_GPA_DEFAULTS "mu-x=0.9967 mu-y=0.7 "

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
    { "sps", OPTIM_NO_BASE, "", "", optim_maths_sps, optim_step_sps, NULL },
    { "iam", OPTIM_SGD, "z", "lambda=9 lr-cap=0 weight-decay=0 ", optim_maths_iam, optim_step_iam, NULL },
    { "iam", OPTIM_ADAMW, "v z", "lambda=9 lr-cap=0 beta2=0.999 eps=1e-8 weight-decay=0 ", optim_maths_iam,
      optim_step_iam, NULL },
    { "iam", OPTIM_MUON, "m v z", "lambda=4 lr-cap=0 beta2=0.999 eps=1e-8 weight-decay=0 muon-momentum=0.95 "
      "matrix-weight=0.3 ", optim_maths_iam, optim_step_iam, NULL },
    { "iam-adam", OPTIM_ADAMW, "v z", "lambda=9 lr-cap=0 beta2=0.999 eps=1e-8 weight-decay=0 ", optim_maths_iam,
      optim_step_iam, NULL },
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
    *optim_value(o, key) = value;
    return 0;
}

OPTIM_API double optim_get(const Optimizer *o, const char *name) {      // NaN where absent
    int key = optim_key(o, name);
    return key < 0 ? NAN : *optim_value(o, key);
}

// Cuts every segment (of matrices, or of the rest) into chunks; writes them at `out` unless that is NULL.
static int optim_cut(const Optimizer *o, int matrices, OptimChunk *out) {
    int count = 0;
    for (int j = 0; j < o->num_segments; j++) {
        const OptimSegment *seg = &o->segments[j];
        if ((seg->rows > 0 && o->row->base == OPTIM_MUON) != matrices) continue;
        for (size_t i = 0; i < seg->size; i += OPTIM_CHUNK, count++) {
            if (!out) continue;
            const size_t begin = seg->offset + i, left = seg->size - i;
            out[count].begin = out[count].first = begin;
            out[count].end = begin + (left < OPTIM_CHUNK ? left : OPTIM_CHUNK);
            out[count].decay = seg->decay ? 1.0f : 0.0f;
        }
    }
    return count;
}

static int optim_uses(const Optimizer *o, int buffer) {                 // whether the row names this buffer
    const char *name = optim_buffers[buffer].name, *list = o->row->buffers;
    const size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length])) return 1;
    return 0;
}

static float **optim_buffer(const Optimizer *o, int buffer) {
    return (float **)((char *)o + optim_buffers[buffer].field);
}

OPTIM_API void optim_free(Optimizer *o) {
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++) { free(*optim_buffer(o, j)); *optim_buffer(o, j) = NULL; }
    free(o->segments); free(o->chunks); free(o->sums); free(o->muon_scratch);
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

    const int rest = optim_cut(o, 0, NULL), matrices = optim_cut(o, 1, NULL);
    o->chunks = (OptimChunk *)malloc((rest + matrices) * sizeof(OptimChunk));
    o->sums = (double *)malloc(3 * (rest + matrices) * sizeof(double));
    int missing = !o->chunks || !o->sums;
    if (!missing) {
        const OptimSpan all = { o->chunks, optim_cut(o, 0, o->chunks), n, 0, o->sums };
        o->all = o->rest = o->matrices = all;
        o->all.count += optim_cut(o, 1, o->chunks + rest);
        o->matrices.chunk += rest;
        o->matrices.sums += 3 * rest;
        o->matrices.count = matrices;
    }
    size_t scratch = 0;
    for (int j = 0; j < num_segments && matrices; j++) {
        const size_t r = segments[j].rows < segments[j].cols ? segments[j].rows : segments[j].cols;
        const size_t need = 2 * (segments[j].size + r * r);
        if (segments[j].rows && need > scratch) scratch = need;
    }
    if (scratch) missing |= !(o->muon_scratch = (float *)malloc(scratch * sizeof(float)));
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++)
        if (optim_uses(o, j)) missing |= !(*optim_buffer(o, j) = (float *)calloc(n, sizeof(float)));
    if (missing) { optim_free(o); return -1; }
    for (int j = 0; j < OPTIM_COUNT(optim_buffers); j++)
        if (optim_uses(o, j) && optim_buffers[j].start) optim_copy(o->all, *optim_buffer(o, j), params);
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
        *bytes = o->n * sizeof(float);
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
