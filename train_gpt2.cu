/* train_gpt2.cu: GPT-2 training on NVIDIA GPUs: chapters 2 to 5 of train_gpt2.c anew, kernels in the place of
loops, cuBLASLt in the place of our matrix product; and of chapter 10 what GPUs do by NCCL. Read train_gpt2.c
first.

This file is compiled in parts. nvcc makes kernels of the first, and of optim.h's passes. The others are C:
train_gpt2.c, compiled with -DGPT2_DEVICE='"train_gpt2.cu"', includes one at the end of its chapter 5 and,
with GPT2_DEVICE_WORKERS, one at the end of chapter 10, and from there on speaks to the GPU where it says
gpt2_forward, gpt2_backward or optim_step. So files, data, options, teacher, proxy and the training loop are
the CPU's own. Between C++ and C stands a border of 27 C functions.

   2  the GPU: errors, memory, launches, sums over threads, matrix multiplication
   3  layers, forward beside backward
   4  attention: a plain path, and tensor cores
   5  the model: parameters, activations, forward, classifier, backward
  10  workers
      the border, and the C parts

Shapes and letters as in train_gpt2.c. T is a type here, float or bf16 (bfloat16: a sign, 8 bits of exponent,
7 of mantissa); the length of a sequence is `length`. The parameters, their gradients and all that the
optimizer keeps are float32; in bf16 training the layers use a copy of the parameters, renewed after every
step, and activations are bf16. Sums are taken in float32 (the loss, and the optimizer's over threads, in
double), in an order that depends on nothing but shapes and tokens: there are no atomic additions, so a run
gives the same bits each time. What the optimizer works on is unified memory, which the CPU fills at the
start, and reads to save it or to compare workers.

Everything goes into one stream, the default one. The CPU waits where it needs numbers: a micro-batch's loss,
which is known when the GPU has half of the work still before it, and the norm of the gradient at the end of a
step (and Muon's sums, and those of optimizers that find their own rate); logits, evaluation points,
checkpoints. So the CPU sorts the next tokens while the GPU is in backward, and in a step only the norm (or
such a sum) leaves the GPU without work, and a teacher's loss in each micro-batch.
There are no CUDA graphs: a step of 124M is 470 launches, 2 ms of the CPU's time at 4 us each, hidden behind
tens of ms of the GPU's; only models of a few MB would gain, and a graph would hide that wte_backward's grid
comes from the batch.

What to expect, on paper. With R = B*length rows, a step of GPT-2 124M (L 12, C 768, V 50257, n = 124M
parameters) in bf16 with B 32, length 1024 has these floating-point operations, and these bytes to and from
the GPU's memory where nothing but a row stays in cache, weights aside. The H100 has 295 FLOP for a byte, the
A100 153: what has more is bound by arithmetic, the rest by memory (attention is just below the H100's).

                                                       TFLOP                        GB      FLOP a byte
    products of the layers, forward and backward       72 L R C^2        16.7    112 L R C   33.8    494
    attention, forward 2 and backward 7 products       9 L R length C     2.8     32 L R C    9.7    288
    classifier's products                              6 R C V            7.6      6 R V      9.9    768
    cross entropy                                                                  6 R V      9.9
    layer norms with residuals, forward                                           16 L R C    4.8
    layer norms, backward, with the weights' sums                                 16 L R C    4.8
    gradients of biases                                                           18 L R C    5.4
    embeddings, forward and backward                                              10 R C      0.3
    AdamW, the norm, the copy to bf16                                             38 n        4.7
                                    bound by arithmetic  27.1                by memory  29.9

    card        peak TFLOP/s, GB/s (NVIDIA's)    at both peaks: arithmetic + memory    tokens/s
    A100 80GB          312, 2039                          87 + 15 ms                   322 thousand
    H100 SXM           989, 3350                          27 +  9 ms                   902 thousand
    H200               989, 4800                          27 +  6 ms                   975 thousand

N workers add the sum of gradients and the gathering of parameters, 4 n (N-1)/N bytes = 0.5 GB from and to
each GPU, twice: 2.2 ms a step at the 450 GB/s of an H100's NVLink, 40 ms at 25 GB/s.

Nothing reaches both peaks; these are bounds, not forecasts. As dev/gpu_check.sh measured an older build (the
kernels are almost all the same, no build since was run on a GPU) on an H200: 531 thousand tokens/s, 61.7 ms a
step, 13.3 GB; PyTorch 2.11, compiled, minutes later 512 thousand and 16.3 GB; with B 128 553 thousand. Each
kernel alone takes, in ms: the products 36.3 (670 TFLOP/s), attention 11.8 (forward 223 TFLOP/s, backward 239:
warps wait for what they asked for, and no unit is busy for more than 40% of the time), cross entropy 2.2,
layer norms 1.3 and 1.8, biases 1.7, AdamW, norm and copy 1.5, embeddings 0.1. That is 56.7; where the other 5
pass was not measured: between kernels, or the card slows under load.
*/

#ifdef __cplusplus
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#ifndef CUDA_ON_CPU_H // test/cuda_on_cpu.h stands for all of these
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared, ...) (kernel)<<<grid, block, shared>>>(__VA_ARGS__)
#define SHARED_MEMORY extern __shared__ __align__(16) char shared_memory[] // as much as the launch asks for
#ifdef USE_NCCL
#include <nccl.h>
#endif
#endif
#define OPTIM_LAUNCH(kernel, blocks, threads, ...) LAUNCH(kernel, blocks, threads, 0, __VA_ARGS__)
#include "optim.h"
typedef struct { int max_seq_len, vocab_size, num_layers, num_heads, channels; } GPT2Config; // train_gpt2.c's
extern "C" {
#endif

// ---- the border: what C++ and C know of each other
typedef struct Gpu Gpu;            // a model on the GPU
void gpu_die(const char *message); // the C part's die()
const char *gpu_open(int device, int *has_bf16); // makes it current; its name, whether it multiplies bf16
size_t gpu_bytes(void);            // allocated so far
float *gpu_share(size_t n);        // n zeros that both sides can reach (the CPU after a gpu_wait)
void gpu_unshare(float *p, size_t n); // what gpu_share(n) gave, or NULL
void gpu_wait(void);
Gpu *gpu_create(GPT2Config g, int B, int length, int training, int in_bf16);
void gpu_free(Gpu *m);
// As train_gpt2.c's gpt2_forward and so on. params, grads: shared, flat, as its ParameterTensors.
void gpu_forward(Gpu *m, const float *params, const uint16_t *tokens, int B, int length);
void gpu_logits(Gpu *m, float *logits, int first, int n); // (n,V) of n rows, into the CPU's memory
double gpu_loss(Gpu *m, const uint16_t *targets);
double gpu_backward(Gpu *m, float *grads, const uint16_t *targets, float grad_scale, int add, Gpu *teacher,
                    float temperature, float weight);
// Several processes, with a GPU each: one makes a ticket, all join with it.
#define GPU_TICKET 128
void gpu_ticket(char *ticket);
void gpu_join(const char *ticket, int rank, int ranks);
void gpu_sum_gradients(float *grads, size_t n); // over the processes, as far as the optimizer here needs it
void gpu_average(float *x, size_t n);           // x = its mean over the processes
void gpu_sent(double bytes);                    // the C part's: so many went from here to the others
// As optim.h's.
int gpu_optim_start(Optimizer *o, float *params, size_t n, const OptimSegment *segments, int count);
void gpu_optim_step(Optimizer *o, const float *grad, float scale, double factor, double loss,
                    double loss_star);
void gpu_optim_eval(const Optimizer *o, float *out); // and waits
int gpu_optim_state(Optimizer *o, int i, void **block, size_t *bytes);
size_t gpu_optim_bytes(const Optimizer *o); // of this process's shard
void gpu_optim_free(Optimizer *o);
OptimSums gpu_gradient_norms(const Optimizer *o, const float *g);
void gpu_copy(OptimSpan span, float *out, const float *x);
void gpu_proxy_correction(OptimSpan span, float *c, const float *g, const float *proxy_t, float average);
void gpu_proxy_gradient(OptimSpan span, float *out, const float *proxy, const float *c, const float *x,
                        const float *x_t, float pull);
#ifdef __cplusplus
}

// ===========================================================================================================
// 2  The GPU: errors, memory, launches, sums over threads, matrix multiplication

typedef __nv_bfloat16 bf16;
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...) {
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    gpu_die(message);
    abort();
}

static void check_cuda(cudaError_t error, int line) {
    if (error != cudaSuccess) fail("the GPU: %s (train_gpt2.cu, line %d)", cudaGetErrorString(error), line);
}
static void check_cublas(cublasStatus_t status, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fail("cuBLASLt: status %d (train_gpt2.cu, line %d)", (int)status, line);
}
#define CUDA(call) check_cuda(call, __LINE__)
#define CUBLAS(call) check_cublas(call, __LINE__)

static size_t gpu_allocated, optimizer_bytes, gpu_room; // the last: free when the GPU was opened

// Fails where the GPU has no room for so many bytes more. Beyond that CUDA would still give unified memory,
// whose pages then move between CPU and GPU in every step. And what the driver calls free is too much: pages
// that only the CPU has written are not on the GPU yet. So what was allocated is counted here as well.
static void check_room(size_t bytes) {
    size_t left, total;
    CUDA(cudaMemGetInfo(&left, &total));
    left = MIN(left, gpu_room - MIN(gpu_room, gpu_allocated + optimizer_bytes));
    if (bytes > left)
        fail("the GPU has %zu of its %zu MiB left, %zu more are needed; use a smaller model or --batch",
             left >> 20, total >> 20, bytes >> 20);
}

// n elements of memory that only the GPU reaches.
template <typename T> static T *device_memory(size_t n) {
    void *p = NULL;
    check_room(n * sizeof(T));
    CUDA(cudaMalloc(&p, n * sizeof(T)));
    gpu_allocated += n * sizeof(T);
    return (T *)p;
}

// More than 48 KB of shared memory have to be asked for; only attention takes so much. A block may have
// 99 KB or more from sm_80 on, but 64 KB on sm_75: there heads of 198 to 256 channels do not fit.
template <typename Kernel> static void allow_shared(Kernel kernel, size_t bytes) {
    if (bytes <= 48 << 10) return;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error == cudaErrorInvalidValue)
        fail("attention over heads so large needs %zu KB of shared memory, more than this GPU has; use more "
             "--heads", (bytes + 1023) >> 10);
    CUDA(error);
}

// Launches a kernel of this file (optim.h launches its own): `grid` blocks of `block` threads, with `shared`
// bytes of shared memory for each block.
#define RUN(kernel, grid, block, shared, ...)             \
    do {                                                  \
        allow_shared(kernel, shared);                     \
        LAUNCH(kernel, grid, block, shared, __VA_ARGS__); \
        CUDA(cudaGetLastError());                         \
    } while (0)

#define GRID_Y 65535 // the most blocks in a grid's second dimension: attention's heads, column_sums' rows
#define WARP 32
#define EVERY_LANE 0xFFFFFFFFu

static inline int blocks_for(size_t n, int each) { return (int)((n + each - 1) / each); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline void assign(float *p, float x) { *p = x; }
__device__ inline void assign(bf16 *p, float x) { *p = __float2bfloat16(x); }

// 16 bytes: what a thread loads at once where it can. All rows of activations begin at a multiple of it.
template <typename T> struct Pack {
    static const int size = 16 / sizeof(T);
    T x[size];
    __device__ float operator[](int i) const { return to_float(x[i]); }
};
template <typename T> __device__ inline Pack<T> load(const T *p) {
    union { int4 bits; T x[Pack<T>::size]; } from;
    Pack<T> pack;
    from.bits = *(const int4 *)p;
    for (int i = 0; i < Pack<T>::size; i++) pack.x[i] = from.x[i];
    return pack;
}
template <typename T> __device__ inline void store(T *p, const float *x) {
    union { int4 bits; T x[Pack<T>::size]; } to;
    for (int i = 0; i < Pack<T>::size; i++) assign(&to.x[i], x[i]);
    *(int4 *)p = to.bits;
}

// The sum (or maximum) over the lanes of a warp; every lane gets it.
__device__ inline float warp_sum(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(EVERY_LANE, x, d);
    return x;
}
__device__ inline float warp_max(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, d));
    return x;
}

// The classifier and attention on tensor cores take exp(x) as 2^(x log2 e): the GPU has an instruction for
// powers of two, with a relative error below 2^-22.
#define LOG2_E 1.44269504f
#ifndef CUDA_ON_CPU_H
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

static cublasLtHandle_t cublas;
static void *workspace;
static const size_t workspace_bytes = 32 << 20;

// What is done to C while it is written.
template <typename T> struct Epilogue {
    const T *bias = NULL;       // (N) added to each row
    T *before_gelu = NULL;      // (M,N), beside a bias: receives C, and C becomes gelu(C)
    const T *derivative = NULL; // (M,N) C is multiplied by GELU's derivative there
    int accumulate = 0;         // C += A B
};

// A kind of product, and what cuBLASLt wants to know of it, found at its first call.
typedef struct {
    int M, N, K, trans_a, trans_b, type, c_type, epilogue, compute;
} Product;
typedef struct {
    Product key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t first, second, c; // of B, A and C: see find_plan
    cublasLtMatmulAlgo_t algorithm;
    int tried, found;
} Plan;

static cublasLtMatrixLayout_t layout(int type, int rows, int cols) {
    cublasLtMatrixLayout_t l;
    CUBLAS(cublasLtMatrixLayoutCreate(&l, (cudaDataType_t)type, rows, cols, rows));
    return l;
}

#define SET(plan, name, value)                                                                    \
    CUBLAS(cublasLtMatmulDescSetAttribute((plan)->product, CUBLASLT_MATMUL_DESC_##name, &(value), \
                                          sizeof(value)))

// cuBLAS counts column by column: its matrices are the transposes of ours, and so it is asked for C' = op(B)'
// op(A)'. B comes first.
static Plan *find_plan(Product want) {
    static Plan plans[256];
    static int turn;
    for (int i = 0; i < 256; i++)
        if (!memcmp(&plans[i].key, &want, sizeof want)) return &plans[i];
    Plan *p = &plans[turn++ % 256];
    if (p->key.M) { // an old one makes room
        CUBLAS(cublasLtMatmulDescDestroy(p->product));
        CUBLAS(cublasLtMatrixLayoutDestroy(p->first));
        CUBLAS(cublasLtMatrixLayoutDestroy(p->second));
        CUBLAS(cublasLtMatrixLayoutDestroy(p->c));
    }
    memset(p, 0, sizeof *p);
    p->key = want;
    int64_t aux_ld = want.N;
    cublasOperation_t op_b = want.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                      op_a = want.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLAS(cublasLtMatmulDescCreate(&p->product, (cublasComputeType_t)want.compute, CUDA_R_32F));
    SET(p, TRANSA, op_b);
    SET(p, TRANSB, op_a);
    SET(p, EPILOGUE, want.epilogue);
    if (want.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || want.epilogue == CUBLASLT_EPILOGUE_DGELU)
        SET(p, EPILOGUE_AUX_LD, aux_ld);
    p->first = want.trans_b ? layout(want.type, want.K, want.N) : layout(want.type, want.N, want.K);
    p->second = want.trans_a ? layout(want.type, want.M, want.K) : layout(want.type, want.K, want.M);
    p->c = layout(want.c_type, want.N, want.M);
    return p;
}

static void find_algorithm(Plan *p) {
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t best = {};
    uint32_t alignment = 16; // of tensors within the flat arrays
    p->tried = 1;
    CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
#define PREFER(name, value)                                                                        \
    CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_##name, &(value), \
                                                sizeof(value)))
    PREFER(MAX_WORKSPACE_BYTES, workspace_bytes);
    PREFER(MIN_ALIGNMENT_A_BYTES, alignment);
    PREFER(MIN_ALIGNMENT_B_BYTES, alignment);
    PREFER(MIN_ALIGNMENT_C_BYTES, alignment);
    PREFER(MIN_ALIGNMENT_D_BYTES, alignment);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(cublas, p->product, p->first, p->second, p->c,
                                                           p->c, preference, 1, &best, &p->found);
    p->found = status == CUBLAS_STATUS_SUCCESS && p->found > 0;
    if (p->found) p->algorithm = best.algo;
    CUBLAS(cublasLtMatmulPreferenceDestroy(preference));
}

__device__ inline float gelu(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}
__device__ inline float gelu_derivative(float x) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x)),
          du = 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * du;
}

// out = gelu(x); or, with `times`, x * gelu'(times). n is a multiple of the pack.
template <typename T> __global__ void gelu_kernel(T *out, const T *x, const T *times, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * Pack<T>::size;
    if (i >= n) return;
    Pack<T> a = load(x + i), b = times ? load(times + i) : a;
    float y[Pack<T>::size];
    for (int j = 0; j < Pack<T>::size; j++) y[j] = times ? a[j] * gelu_derivative(b[j]) : gelu(a[j]);
    store(out + i, y);
}
template <typename T> static void gelu_pass(T *out, const T *x, const T *times, size_t n) {
    RUN(gelu_kernel<T>, blocks_for(n, 256 * Pack<T>::size), 256, 0, out, x, times, n);
}

static int cuda_type(const float *) { return CUDA_R_32F; }
static int cuda_type(const bf16 *) { return CUDA_R_16BF; }
static int float_products = CUBLAS_COMPUTE_32F; // or with tensor cores' TF32, for Muon in bf16 training

// C (M,N) = op(A) (M,K) op(B) (K,N), then the epilogue. op transposes where asked for: A is then stored
// (K,M), B (N,K).
template <typename T, typename OUT>
static void matmul(OUT *C, const T *A, const T *B, int M, int N, int K, int trans_a, int trans_b,
                   Epilogue<T> e) {
    cublasLtEpilogue_t epilogue = e.before_gelu  ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                                  : e.derivative ? CUBLASLT_EPILOGUE_DGELU
                                  : e.bias       ? CUBLASLT_EPILOGUE_BIAS
                                                 : CUBLASLT_EPILOGUE_DEFAULT;
    Product key = {M, N, K, trans_a, trans_b, cuda_type(A), cuda_type(C), epilogue,
                   sizeof(T) == 4 ? float_products : CUBLAS_COMPUTE_32F};
    Plan *p = find_plan(key);
    const void *gelu_input = e.before_gelu ? e.before_gelu : e.derivative;
    if (e.bias) SET(p, BIAS_POINTER, e.bias);
    if (gelu_input) SET(p, EPILOGUE_AUX_POINTER, gelu_input);
    if (!p->tried) find_algorithm(p);
    if (!p->found && gelu_input) { // no such epilogue for the shape and type: a pass of our own
        const T *derivative = e.derivative;
        T *before = e.before_gelu, *out = (T *)C;
        e.derivative = e.before_gelu = NULL;
        matmul(before ? before : out, A, B, M, N, K, trans_a, trans_b, e);
        gelu_pass(out, before ? before : out, derivative, (size_t)M * N);
        return;
    }
    if (!p->found) fail("cuBLASLt has no way to multiply (%d,%d) by (%d,%d)", M, K, K, N);
    const float alpha = 1, beta = e.accumulate;
    CUBLAS(cublasLtMatmul(cublas, p->product, &alpha, B, p->first, A, p->second, &beta, C, p->c, C, p->c,
                          &p->algorithm, workspace, workspace_bytes, 0));
}

// Muon's products; cuBLASLt has none that stops at the diagonal.
static void muon_matmul(float *C, const float *A, const float *B, int M, int N, int K, int trans_a,
                        int trans_b, int) {
    matmul(C, A, B, M, N, K, trans_a, trans_b, {});
}

// ===========================================================================================================
// 3  Layers, forward beside backward

#define THREADS 256 // of a block of most kernels: 8 warps
#define WARPS (THREADS / WARP)

// out (rows,C) = wte[token] + wpe[position]; a thread makes a pack of channels.
template <typename T> __global__ void encoder_forward(T *out, const uint16_t *tokens, const T *wte,
                                                      const T *wpe, int rows, int length, int C) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * Pack<T>::size;
    if (i >= (size_t)rows * C) return;
    int row = (int)(i / C), c = (int)(i % C);
    Pack<T> token = load(wte + (size_t)tokens[row] * C + c),
            position = load(wpe + (size_t)(row % length) * C + c);
    float sum[Pack<T>::size];
    for (int j = 0; j < Pack<T>::size; j++) sum[j] = token[j] + position[j];
    store(out + i, sum);
}

// The gradients of wpe and wte. Additions in the order of rows would make most threads wait for the most
// frequent token, and atomic ones would come in any order. So the CPU sorts the rows by token: `order` holds
// the rows of token tokens[order[start[k]]] from start[k] to start[k+1]; a warp adds each WARPS-th of them,
// then one adds the warps' sums. Blocks: a run of equal tokens, 32 channels.
template <typename T> __global__ void wte_backward(float *dwte, const T *dout, const uint16_t *tokens,
                                                   const int *order, const int *start, int C) {
    __shared__ float part[WARPS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.y * WARP + lane;
    int from = start[blockIdx.x], to = start[blockIdx.x + 1];
    float sum = 0;
    for (int i = from + warp; i < to && c < C; i += WARPS) sum += to_float(dout[(size_t)order[i] * C + c]);
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
    for (int w = 1; w < WARPS; w++) sum += part[w][lane];
    dwte[(size_t)tokens[order[from]] * C + c] += sum;
}

template <typename T> __global__ void wpe_backward(float *dwpe, const T *dout, int B, int length, int C) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, n = (size_t)length * C;
    if (i >= n) return;
    float sum = dwpe[i];
    for (int b = 0; b < B; b++) sum += to_float(dout[b * n + i]);
    dwpe[i] = sum;
}

// sum (rows,C) = x + y, if y is given; out = layer norm of the sum (of x, without y). A warp has a row; it
// reads it three times, of which two come from the cache. sum may be x.
template <typename T> __global__ void layernorm_forward(T *sum, T *out, float *mean, float *rstd, const T *x,
                                                        const T *y, const T *weight, const T *bias, int rows,
                                                        int C) {
    const int size = Pack<T>::size;
    int lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    size_t at = (size_t)row * C;
    float total = 0, squares = 0, z[size];
    for (int c = lane * size; c < C; c += WARP * size) {
        Pack<T> a = load(x + at + c);
        if (y) {
            Pack<T> b = load(y + at + c);
            for (int j = 0; j < size; j++) z[j] = a[j] + b[j];
            store(sum + at + c, z);
            a = load(sum + at + c); // as later kernels will see it
        }
        for (int j = 0; j < size; j++) total += a[j];
    }
    const T *row_of = (y ? sum : x) + at;
    float m = warp_sum(total) / (float)C;
    for (int c = lane * size; c < C; c += WARP * size) {
        Pack<T> a = load(row_of + c);
        for (int j = 0; j < size; j++) squares += (a[j] - m) * (a[j] - m);
    }
    float s = rsqrtf(warp_sum(squares) / (float)C + 1e-5f);
    for (int c = lane * size; c < C; c += WARP * size) {
        Pack<T> a = load(row_of + c), w = load(weight + c), b = load(bias + c);
        for (int j = 0; j < size; j++) z[j] = (a[j] - m) * s * w[j] + b[j];
        store(out + at + c, z);
    }
    if (lane == 0) mean[row] = m, rstd[row] = s;
}

// Four numbers: what a thread loads where neighbours in a warp take the next ones.
template <typename T> struct __align__(4 * sizeof(T)) Four { T x[4]; };
#define SUM_ROWS 256 // rows that a block of column_sums adds up: few, so that a whole GPU has blocks
#define NORM_ROWS 64 // rows of a block of layernorm_backward

// dx (rows,C) += the gradient of x; with n = (x - mean) rstd and dn = dout * weight:
//    dx = rstd (dn - mean(dn) - n mean(dn * n))
// and of each block's rows the sums that make the gradients of weight and bias, of dout * n and of dout:
// partial (blocks,2,C). First warps take rows, for the two means; then threads take channels, and go through
// the rows.
template <typename T> __global__ void layernorm_backward(T *dx, float *partial, const T *dout, const T *x,
                                                         const T *weight, const float *mean,
                                                         const float *rstd, int rows, int C) {
    const int size = Pack<T>::size, ahead = 4; // rows that are loaded before the first is used
    __shared__ float dn_mean[NORM_ROWS], dnn_mean[NORM_ROWS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int from = blockIdx.x * NORM_ROWS, to = MIN(rows, from + NORM_ROWS);
    for (int row = from + warp; row < to; row += WARPS) {
        size_t at = (size_t)row * C;
        float m = mean[row], s = rstd[row], dn_sum = 0, dnn_sum = 0;
        for (int c = lane * size; c < C; c += WARP * size) {
            Pack<T> d = load(dout + at + c), a = load(x + at + c), w = load(weight + c);
            for (int j = 0; j < size; j++) {
                dn_sum += d[j] * w[j];
                dnn_sum += d[j] * w[j] * (a[j] - m) * s;
            }
        }
        dn_sum = warp_sum(dn_sum), dnn_sum = warp_sum(dnn_sum);
        if (lane == 0) dn_mean[row - from] = dn_sum / (float)C, dnn_mean[row - from] = dnn_sum / (float)C;
    }
    __syncthreads();
    for (int c = threadIdx.x * 4; c < C; c += THREADS * 4) {
        Four<T> w = *(const Four<T> *)(weight + c), d[ahead], a[ahead], z[ahead];
        Four<float> dweight = {{0, 0, 0, 0}}, dbias = dweight;
        for (int first = from; first < to; first += ahead) {
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                size_t at = (size_t)MIN(first + k, to - 1) * C + c;
                d[k] = *(const Four<T> *)(dout + at), a[k] = *(const Four<T> *)(x + at);
                z[k] = *(const Four<T> *)(dx + at);
            }
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                int row = first + k;
                if (row >= to) break;
                float m = mean[row], s = rstd[row], dn = dn_mean[row - from], dnn = dnn_mean[row - from];
                for (int j = 0; j < 4; j++) {
                    float g = to_float(d[k].x[j]), n = (to_float(a[k].x[j]) - m) * s;
                    dweight.x[j] += g * n, dbias.x[j] += g;
                    assign(&z[k].x[j], to_float(z[k].x[j]) + s * (g * to_float(w.x[j]) - dn - n * dnn));
                }
                *(Four<T> *)(dx + (size_t)row * C + c) = z[k];
            }
        }
        float *of_block = partial + (size_t)blockIdx.x * 2 * C + c;
        *(Four<float> *)of_block = dweight, *(Four<float> *)(of_block + C) = dbias;
    }
}

// partial (groups,C): the sums over SUM_ROWS rows each of d (rows,C), towards the gradient of a bias. A block
// takes 4 channels for each lane; its warps take turns with the rows.
#define SUM_CHANNELS (4 * WARP)
template <typename T> __global__ void column_sums(float *partial, const T *d, int rows, int C) {
    __shared__ Four<float> part[WARPS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * SUM_CHANNELS + lane * 4;
    int from = blockIdx.y * SUM_ROWS, to = MIN(rows, from + SUM_ROWS);
    Four<float> sum = {{0, 0, 0, 0}};
#pragma unroll 4
    for (int r = from + warp; r < to; r += WARPS) {
        if (c >= C) continue;
        Four<T> a = *(const Four<T> *)(d + (size_t)r * C + c);
        for (int j = 0; j < 4; j++) sum.x[j] += to_float(a.x[j]);
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
    for (int w = 1; w < WARPS; w++)
        for (int j = 0; j < 4; j++) sum.x[j] += part[w][lane].x[j];
    *(Four<float> *)(partial + (size_t)blockIdx.y * C + c) = sum;
}

// first (C) += the sums over the groups of partial (groups,C); or, of partial (groups,2,C), first and second.
__global__ void add_groups(float *first, float *second, const float *partial, int groups, int C) {
    __shared__ float part[WARP][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    float sum = 0;
    for (int g = warp; g < groups && c < C; g += WARP)
        sum += partial[((size_t)g * gridDim.y + blockIdx.y) * C + c];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
    for (int w = 1; w < WARP; w++) sum += part[w][lane];
    (blockIdx.y ? second : first)[c] += sum;
}

// out (rows,N) = x (rows,K) w', then e; w (N,K).
template <typename T>
static void linear_forward(T *out, const T *x, const T *w, int rows, int K, int N, Epilogue<T> e) {
    matmul(out, x, w, rows, N, K, 0, 1, e);
}

// dx (rows,K) = dout w, then e; dw (N,K) = dout' x, or += with add; dbias (N) += the sum of dout's rows.
template <typename T> static void linear_backward(T *dx, float *dw, float *dbias, float *partial,
                                                  const T *dout, const T *x, const T *w, int rows, int K,
                                                  int N, Epilogue<T> e, int add) {
    matmul(dw, dout, x, N, K, rows, 1, 0, {NULL, NULL, NULL, add});
    matmul(dx, dout, w, rows, K, N, 0, 0, e);
    int groups = blocks_for(rows, SUM_ROWS);
    RUN(column_sums<T>, dim3(blocks_for(N, SUM_CHANNELS), groups), THREADS, 0, partial, dout, rows, N);
    RUN(add_groups, blocks_for(N, WARP), WARP * WARP, 0, dbias, (float *)NULL, partial, groups, N);
}

// ===========================================================================================================
// 4  Attention. As in train_gpt2.c, the matrix of probabilities is never stored: a block of threads takes
//    some queries through the keys, tile by tile, and carries the softmax along; backward makes the
//    probabilities again from lse. Backward runs twice, once for the gradients of queries and once for those
//    of keys and values. That costs 7 products of tiles instead of 5, and needs no additions across blocks,
//    which would come in any order.
//
//    Both passes of backward are one kernel. Each has rows of its own (a, b) and walks over tiles of others
//    (A, B):
//                         own a  own b   tile A  tile B      s = a A',  dp = b B',  p = exp(s scale - lse)
//       gradient of q:      q     dout      k       v        ds = p (dp - D),  da += scale ds A
//       of k and v:         k      v        q      dout      db += p B in the second pass
//    D (B,NH,length) are the sums over channels of dout * out; the pass for queries makes them.

// lse and D of a head stand at head * length; its rows of q at head_at(...), of k and v C and 2C further.
__device__ inline size_t head_at(int head, int NH, int HS, int length, int stride) {
    return (size_t)(head / NH) * length * stride + head % NH * HS;
}

//  ---- the plain path: any type, any head size up to 256. A warp owns a row (a query, or a key in the second
//  pass of backward); a lane owns a row of the tile while products are taken, and channels lane, lane + 32,
//  .. while they are used.
#define PLAIN_ROWS 8 // warps of a block
#define MAX_HEAD 256

// 32 rows of HS numbers, from row `first` on, into shared memory as (32,HS+1): lanes reading a column meet no
// bank twice where HS is even. stride: numbers from row to row.
template <typename T>
__device__ inline void load_rows(float *to, const T *from, int stride, int first, int length, int HS) {
    for (int i = threadIdx.x; i < WARP * HS; i += blockDim.x) {
        int r = i / HS, c = i % HS;
        to[r * (HS + 1) + c] = first + r < length ? to_float(from[(size_t)(first + r) * stride + c]) : 0.0f;
    }
}

__device__ inline float dot(const float *a, const float *b, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++) sum += a[c] * b[c];
    return sum;
}

static size_t plain_bytes(int HS) {
    return sizeof(float) * (2 * WARP * (HS + 1) + 2 * PLAIN_ROWS * (HS + WARP));
}

template <typename T>
__global__ void attention_forward_plain(T *out, float *lse, const T *qkv, int length, int NH, int HS) {
    SHARED_MEMORY;
    float *keys = (float *)shared_memory, *values = keys + WARP * (HS + 1);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C = NH * HS, head = blockIdx.y;
    float *q = values + WARP * (HS + 1) + warp * (HS + WARP), *p = q + HS;
    int first = blockIdx.x * PLAIN_ROWS, query = first + warp;
    const T *of_head = qkv + head_at(head, NH, HS, length, 3 * C);
    float scale = rsqrtf((float)HS), max = -INFINITY, sum = 0, o[MAX_HEAD / WARP] = {0};
    for (int c = lane; c < HS && query < length; c += WARP)
        q[c] = to_float(of_head[(size_t)query * 3 * C + c]);
    for (int k0 = 0; k0 < MIN(first + PLAIN_ROWS, length); k0 += WARP) {
        __syncthreads();
        load_rows(keys, of_head + C, 3 * C, k0, length, HS);
        load_rows(values, of_head + 2 * C, 3 * C, k0, length, HS);
        __syncthreads();
        if (query >= length || k0 > query) continue; // the same for all lanes
        float s = k0 + lane <= query ? dot(q, keys + lane * (HS + 1), HS) * scale : -INFINITY;
        float m = fmaxf(max, warp_max(s)), shrink = expf(max - m);
        p[lane] = expf(s - m);
        sum = sum * shrink + warp_sum(p[lane]);
        max = m;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MAX_HEAD / WARP; i++) {
            int c = lane + i * WARP;
            float add = 0;
            for (int j = 0; j < WARP && c < HS; j++) add += p[j] * values[j * (HS + 1) + c];
            o[i] = o[i] * shrink + add;
        }
        __syncwarp();
    }
    if (query >= length) return;
    T *to = out + head_at(head, NH, HS, length, C) + (size_t)query * C;
#pragma unroll
    for (int i = 0; i < MAX_HEAD / WARP; i++)
        if (lane + i * WARP < HS) assign(to + lane + i * WARP, o[i] / sum);
    if (lane == 0) lse[(size_t)head * length + query] = max + logf(sum);
}

// OF_KEYS: the second pass, of keys and values; the first leaves D for it.
template <typename T, int OF_KEYS>
__global__ void attention_backward_plain(T *dqkv, float *D, const T *dout, const T *qkv, const T *out,
                                         const float *lse, int length, int NH, int HS) {
    SHARED_MEMORY;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C = NH * HS, head = blockIdx.y, LD = HS + 1;
    float *A = (float *)shared_memory, *B = A + WARP * LD;
    float *a = B + WARP * LD + warp * 2 * (HS + WARP), *b = a + HS, *p = b + HS, *ds = p + WARP;
    int first = blockIdx.x * PLAIN_ROWS, own = first + warp;
    size_t at = head_at(head, NH, HS, length, 3 * C);
    const T *q = qkv + at, *k = q + C, *v = k + C, *d_o = dout + head_at(head, NH, HS, length, C);
    const T *own_b = OF_KEYS ? v : d_o, *tile_b = OF_KEYS ? d_o : v;
    int own_stride = OF_KEYS ? 3 * C : C, tile_stride = OF_KEYS ? C : 3 * C;
    float scale = rsqrtf((float)HS), da[MAX_HEAD / WARP] = {0}, db[MAX_HEAD / WARP] = {0};
    for (int c = lane; c < HS && own < length; c += WARP) {
        a[c] = to_float((OF_KEYS ? k : q)[(size_t)own * 3 * C + c]);
        b[c] = to_float(own_b[(size_t)own * own_stride + c]);
    }
    lse += (size_t)head * length, D += (size_t)head * length;
    float own_D = 0;
    out += head_at(head, NH, HS, length, C) + (size_t)own * C;
    for (int c = lane; !OF_KEYS && c < HS && own < length; c += WARP) own_D += b[c] * to_float(out[c]);
    own_D = warp_sum(own_D);
    if (!OF_KEYS && lane == 0 && own < length) D[own] = own_D;
    for (int t0 = OF_KEYS ? first / WARP * WARP : 0;
         t0 < (OF_KEYS ? length : MIN(first + PLAIN_ROWS, length)); t0 += WARP) {
        __syncthreads();
        load_rows(A, OF_KEYS ? q : k, 3 * C, t0, length, HS);
        load_rows(B, tile_b, tile_stride, t0, length, HS);
        __syncthreads();
        if (own >= length) continue;
        int query = OF_KEYS ? t0 + lane : own, key = OF_KEYS ? own : t0 + lane;
        p[lane] = ds[lane] = 0;
        if (key <= query && query < length) {
            p[lane] = expf(dot(a, A + lane * LD, HS) * scale - lse[query]);
            ds[lane] = p[lane] * (dot(b, B + lane * LD, HS) - (OF_KEYS ? D[query] : own_D)) * scale;
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MAX_HEAD / WARP; i++) {
            int c = lane + i * WARP;
            for (int j = 0; j < WARP && c < HS; j++) {
                da[i] += ds[j] * A[j * LD + c];
                if (OF_KEYS) db[i] += p[j] * B[j * LD + c];
            }
        }
        __syncwarp();
    }
    if (own >= length) return;
    T *to = dqkv + at + (size_t)own * 3 * C + (OF_KEYS ? C : 0);
#pragma unroll
    for (int i = 0; i < MAX_HEAD / WARP; i++)
        if (lane + i * WARP < HS) {
            assign(to + lane + i * WARP, da[i]);
            if (OF_KEYS) assign(to + C + lane + i * WARP, db[i]);
        }
}

/* ---- tensor cores: bf16, from sm_80 on, head sizes 32, 64 and 128.

A warp multiplies by mma.m16n8k16 (PTX manual, "Matrix Fragments for mma.m16n8k16"): a 16x8 tile of C (f32) +=
16x16 of A times 16x8 of B (bf16). With lane = 4 g + t:
      C: c0, c1 at row g, columns 2t and 2t+1;  c2, c3 the same in row g+8
      A: a0 row g, a1 row g+8 at columns 2t, 2t+1;  a2, a3 the same at columns 2t+8, 2t+9 (two numbers each)
      B: b0 rows 2t, 2t+1 of column g;  b1 rows 2t+8, 2t+9
ldmatrix brings four 8x8 matrices from shared memory into such fragments; each lane says where a row of 8
begins: lanes 0-7 those of the first matrix, and so on. A tile of C is, two numbers packed into one, a
fragment of A: so that the probabilities go from one product into the next without leaving the registers (Dao
2023, "FlashAttention-2").

cp.async copies 16 bytes from the GPU's memory to shared memory while the thread goes on; what it has asked
for since its last commit is a group, and it waits until at most so many groups are under way. So the next
tile comes while the warps multiply by this one: of two places for tiles, one is being filled. */
#ifndef CUDA_ON_CPU_H // else they come from test/cuda_on_cpu.h, by the same tables
#if __CUDA_ARCH__ >= 800
__device__ inline void ldmatrix(uint32_t (&r)[4], const bf16 *row) {
    uint32_t p = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p));
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const bf16 *row) {
    uint32_t p = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p));
}
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The last 16 - bytes of the 16 become zeros.
__device__ inline void copy_async(bf16 *to, const bf16 *from, int bytes) {
    uint32_t p = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(p),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}
__device__ inline void commit_copies(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> __device__ inline void wait_copies(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#else // never reached: gpu_open says that there is no bf16 for such code
__device__ inline void ldmatrix(uint32_t (&)[4], const bf16 *) {}
__device__ inline void ldmatrix_transposed(uint32_t (&)[4], const bf16 *) {}
__device__ inline void mma(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) {}
__device__ inline void copy_async(bf16 *, const bf16 *, int) {}
__device__ inline void commit_copies(void) {}
template <int GROUPS> __device__ inline void wait_copies(void) {}
#endif
#endif

// A block of 4 warps owns 4 * 16 M rows: each number that a warp loads of the tiles of others meets 16 M of
// its own, so M is as large as registers allow.
#define TENSOR_THREADS 128
#define TENSOR_BLOCKS 2 // at once on a multiprocessor; so a thread may have all of its 255 registers
#define M_OF(HS) ((HS) <= 64 ? 2 : 1)
#define OWN_ROWS(HS) (64 * M_OF(HS))
#define KEYS 64            // rows of a tile of others, forward
#define OTHERS 32          // and backward
#define ROW(HS) ((HS) + 8) // numbers between rows in shared memory: rows begin in different banks

__device__ inline uint32_t pack_bf16(float low, float high) {
    union { __nv_bfloat162 two; uint32_t bits; } u;
    u.two = __floats2bfloat162_rn(low, high);
    return u.bits;
}

// 16 M rows of HS numbers in shared memory, as fragments of A.
template <int HS, int M>
__device__ inline void load_fragments(uint32_t (&x)[M][HS / 16][4], const bf16 *rows) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int k = 0; k < HS / 16; k++)
            ldmatrix(x[m][k], rows + (m * 16 + lane % 16) * ROW(HS) + k * 16 + lane / 16 * 8);
}

// s (16 M,N) += x b': x (16 M,HS) in registers, N rows of HS numbers in shared memory at b.
template <int HS, int N, int M>
__device__ inline void multiply_rows(float (&s)[M][N / 8][4], const uint32_t (&x)[M][HS / 16][4],
                                     const bf16 *b) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < HS / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t y[4];
            ldmatrix(y, b + (n * 16 + lane % 8 + lane / 16 * 8) * ROW(HS) + k * 16 + lane / 8 % 2 * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(s[m][2 * n], x[m][k], y[0], y[1]);
                mma(s[m][2 * n + 1], x[m][k], y[2], y[3]);
            }
        }
}

// o (16 M,HS) += p b: p (16 M,N) in registers, N rows at b.
template <int HS, int N, int M>
__device__ inline void multiply_registers(float (&o)[M][HS / 8][4], const float (&p)[M][N / 8][4],
                                          const bf16 *b) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        uint32_t x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                x[m][i] = pack_bf16(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < HS / 16; n++) {
            ldmatrix_transposed(y, b + (k * 16 + lane % 16) * ROW(HS) + n * 16 + lane / 16 * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(o[m][2 * n], x[m], y[0], y[1]);
                mma(o[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

// Asks for N rows of HS numbers from row `first` on; past the end there are zeros. A thread takes 8 numbers
// of each step-th row.
template <int HS, int N>
__device__ inline void load_tile(bf16 *to, const bf16 *from, int stride, int first, int length) {
    const int packs = HS / 8, step = TENSOR_THREADS / packs;
    int r = threadIdx.x / packs, c = threadIdx.x % packs * 8;
    from += (size_t)(first + r) * stride + c, to += r * ROW(HS) + c;
#pragma unroll
    for (int i = 0; i < N; i += step)
        copy_async(to + i * ROW(HS), from + (size_t)i * stride, first + r + i < length ? 16 : 0);
}

// The sum (or maximum) over the four lanes that share a row of C.
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(EVERY_LANE, x, 1);
    return x + __shfl_xor_sync(EVERY_LANE, x, 2);
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 1));
    return fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 2));
}

// Blocks: own queries (the last first: they have the most keys), a head.
template <int HS> __global__ void __launch_bounds__(TENSOR_THREADS, TENSOR_BLOCKS)
    attention_forward_tensor(bf16 *out, float *lse, const bf16 *qkv, int length, int NH) {
    const int M = M_OF(HS), tile = KEYS * ROW(HS);
    SHARED_MEMORY;
    // two places, each for a tile of keys and one of values; at first the second holds the queries
    bf16 *tiles = (bf16 *)shared_memory;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C = NH * HS, head = blockIdx.y;
    int q0 = (gridDim.x - 1 - blockIdx.x) * OWN_ROWS(HS), first = q0 + warp * 16 * M; // of the warp
    int keys = MIN(q0 + OWN_ROWS(HS), length);
    const bf16 *q = qkv + head_at(head, NH, HS, length, 3 * C), *k = q + C, *v = k + C;
    uint32_t x[M][HS / 16][4];
    float o[M][HS / 8][4] = {{{0}}}, max[M][2], sum[M][2] = {{0}};
    float scale_log2 = rsqrtf((float)HS) * LOG2_E;
    for (int m = 0; m < M; m++) max[m][0] = max[m][1] = -INFINITY;
    load_tile<HS, OWN_ROWS(HS)>(tiles + 2 * tile, q, 3 * C, q0, length);
    commit_copies();
    load_tile<HS, KEYS>(tiles, k, 3 * C, 0, length), load_tile<HS, KEYS>(tiles + tile, v, 3 * C, 0, length);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    load_fragments<HS, M>(x, tiles + 2 * tile + warp * 16 * M * ROW(HS));
    __syncthreads();
    for (int k0 = 0, place = 0; k0 < keys; k0 += KEYS, place ^= 1) {
        bf16 *now = tiles + place * 2 * tile, *next = tiles + (place ^ 1) * 2 * tile;
        if (k0 + KEYS < keys) {
            load_tile<HS, KEYS>(next, k, 3 * C, k0 + KEYS, length);
            load_tile<HS, KEYS>(next + tile, v, 3 * C, k0 + KEYS, length);
        }
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        if (k0 < first + 16 * M) { // else all these keys are later than the warp's queries
            float s[M][KEYS / 8][4] = {{{0}}};
            multiply_rows<HS, KEYS, M>(s, x, now);
            if (k0 + KEYS > first) { // some are later
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            int key = k0 + n * 8 + lane % 4 * 2 + j % 2;
                            if (key > first + m * 16 + lane / 4 + j / 2 * 8) s[m][n][j] = -INFINITY;
                        }
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) { // rows lane / 4 and 8 further
                    float top = max[m][h], total = 0;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
                        top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                    top = quad_max(top);
                    float shrink = power_of_two((max[m][h] - top) * scale_log2);
                    float top_scaled = top * scale_log2;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int j = 2 * h; j < 2 * h + 2; j++)
                            total += s[m][n][j] = power_of_two(s[m][n][j] * scale_log2 - top_scaled);
#pragma unroll
                    for (int n = 0; n < HS / 8; n++) o[m][n][2 * h] *= shrink, o[m][n][2 * h + 1] *= shrink;
                    sum[m][h] = sum[m][h] * shrink + total;
                    max[m][h] = top;
                }
            multiply_registers<HS, KEYS, M>(o, s, now + tile);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int query = first + m * 16 + lane / 4 + 8 * h;
            float total = quad_sum(sum[m][h]), inverse = 1 / total;
            if (query >= length) continue;
            bf16 *to = out + head_at(head, NH, HS, length, C) + (size_t)query * C + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HS / 8; n++)
                *(uint32_t *)(to + n * 8) = pack_bf16(o[m][n][2 * h] * inverse, o[m][n][2 * h + 1] * inverse);
            if (lane % 4 == 0)
                lse[(size_t)head * length + query] = max[m][h] * (scale_log2 / LOG2_E) + logf(total);
        }
}

// The first pass leaves D for the second, OF_KEYS.
template <int HS, int OF_KEYS> __global__ void __launch_bounds__(TENSOR_THREADS, TENSOR_BLOCKS)
    attention_backward_tensor(bf16 *dqkv, float *D, const bf16 *dout, const bf16 *qkv, const bf16 *out,
                              const float *lse, int length, int NH) {
    const int M = M_OF(HS), own_rows = OWN_ROWS(HS), tile = OTHERS * ROW(HS);
    SHARED_MEMORY;
    bf16 *a = (bf16 *)shared_memory, *b = a + own_rows * ROW(HS), *tiles = b + own_rows * ROW(HS);
    __shared__ float of_lse[OWN_ROWS(HS)], of_D[OWN_ROWS(HS)]; // of own queries, or, OF_KEYS, of two tiles'
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C = NH * HS, head = blockIdx.y;
    int block = OF_KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x; // the most work first
    int begin = block * own_rows, first = begin + warp * 16 * M;
    int from = OF_KEYS ? begin : 0, to = OF_KEYS ? length : MIN(begin + own_rows, length);
    size_t at = head_at(head, NH, HS, length, 3 * C), at_out = head_at(head, NH, HS, length, C);
    const bf16 *q = qkv + at, *k = q + C, *v = k + C, *d_o = dout + at_out;
    uint32_t x[M][HS / 16][4], y[M][HS / 16][4];
    float da[M][HS / 8][4] = {{{0}}}, db[M][HS / 8][4] = {{{0}}};
    float scale = rsqrtf((float)HS), scale_log2 = scale * LOG2_E;
    lse += (size_t)head * length, D += (size_t)head * length;

    auto load_others = [&](int t0, int place) {
        bf16 *A = tiles + place * 2 * tile;
        load_tile<HS, OTHERS>(A, OF_KEYS ? q : k, 3 * C, t0, length);
        load_tile<HS, OTHERS>(A + tile, OF_KEYS ? d_o : v, OF_KEYS ? C : 3 * C, t0, length);
        if (OF_KEYS && threadIdx.x < OTHERS) {
            int query = t0 + threadIdx.x, i = place * OTHERS + threadIdx.x;
            of_lse[i] = query < length ? lse[query] * LOG2_E : INFINITY; // so that probabilities are 0
            of_D[i] = query < length ? D[query] : 0;
        }
    };
    load_tile<HS, OWN_ROWS(HS)>(a, OF_KEYS ? k : q, 3 * C, begin, length);
    load_tile<HS, OWN_ROWS(HS)>(b, OF_KEYS ? v : d_o, OF_KEYS ? 3 * C : C, begin, length);
    load_others(from, 0);
    commit_copies();
    if (!OF_KEYS && threadIdx.x < own_rows) {
        int i = threadIdx.x, query = begin + i;
        float sum = 0;
        for (int c = 0; query < length && c < HS; c += 8) {
            Pack<bf16> d = load(d_o + (size_t)query * C + c), o = load(out + at_out + (size_t)query * C + c);
            for (int j = 0; j < 8; j++) sum += d[j] * o[j];
        }
        if (query < length) D[query] = sum;
        of_D[i] = sum;
        of_lse[i] = query < length ? lse[query] * LOG2_E : 0;
    }
    for (int t0 = from, place = 0; t0 < to; t0 += OTHERS, place ^= 1) {
        const bf16 *A = tiles + place * 2 * tile, *B = A + tile;
        if (t0 + OTHERS < to) load_others(t0 + OTHERS, place ^ 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        // own rows stay in registers, but not OF_KEYS, where da and db fill these: they come anew each time
        int again = OF_KEYS || t0 == from;
        if (again) load_fragments<HS, M>(x, a + warp * 16 * M * ROW(HS));
        if (again && !OF_KEYS) load_fragments<HS, M>(y, b + warp * 16 * M * ROW(HS));
        if (OF_KEYS ? t0 + OTHERS > first : t0 < first + 16 * M) { // else no query is as late as a key
            float s[M][OTHERS / 8][4] = {{{0}}}, dp[M][OTHERS / 8][4] = {{{0}}};
            multiply_rows<HS, OTHERS, M>(s, x, A);
            if (OF_KEYS) load_fragments<HS, M>(y, b + warp * 16 * M * ROW(HS));
            multiply_rows<HS, OTHERS, M>(dp, y, B);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int i = OF_KEYS ? place * OTHERS + n * 8 + lane % 4 * 2 + j % 2
                                        : warp * 16 * M + m * 16 + lane / 4 + j / 2 * 8;
                        s[m][n][j] = power_of_two(s[m][n][j] * scale_log2 - of_lse[i]);
                        dp[m][n][j] -= of_D[i];
                    }
            if (OF_KEYS ? t0 < first + 16 * M : t0 + OTHERS > first) { // some queries are earlier than a key
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            int own = first + m * 16 + lane / 4 + j / 2 * 8;
                            int other = t0 + n * 8 + lane % 4 * 2 + j % 2;
                            if (OF_KEYS ? own > other : other > own) s[m][n][j] = 0;
                        }
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++) dp[m][n][j] *= s[m][n][j];
            if (OF_KEYS) multiply_registers<HS, OTHERS, M>(db, s, B);
            multiply_registers<HS, OTHERS, M>(da, dp, A);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int own = first + m * 16 + lane / 4 + 8 * h;
            if (own >= length) continue;
            bf16 *to = dqkv + at + (size_t)own * 3 * C + (OF_KEYS ? C : 0) + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) {
                float *low = da[m][n] + 2 * h;
                *(uint32_t *)(to + n * 8) = pack_bf16(low[0] * scale, low[1] * scale);
                if (OF_KEYS)
                    *(uint32_t *)(to + C + n * 8) = pack_bf16(db[m][n][2 * h], db[m][n][2 * h + 1]);
            }
        }
}

template <int HS> static void attention_forward_on_tensor_cores(bf16 *out, float *lse, const bf16 *qkv, int B,
                                                                int length, int NH) {
    size_t bytes = sizeof(bf16) * ROW(HS) * 4 * KEYS;
    RUN(attention_forward_tensor<HS>, dim3(blocks_for(length, OWN_ROWS(HS)), B * NH), TENSOR_THREADS, bytes,
        out, lse, qkv, length, NH);
}
template <int HS>
static void attention_backward_on_tensor_cores(bf16 *dqkv, float *D, const bf16 *dout, const bf16 *qkv,
                                               const bf16 *out, const float *lse, int B, int length, int NH) {
    size_t bytes = sizeof(bf16) * ROW(HS) * (2 * OWN_ROWS(HS) + 4 * OTHERS);
    dim3 grid(blocks_for(length, OWN_ROWS(HS)), B * NH);
    RUN((attention_backward_tensor<HS, 0>), grid, TENSOR_THREADS, bytes, dqkv, D, dout, qkv, out, lse, length,
        NH);
    RUN((attention_backward_tensor<HS, 1>), grid, TENSOR_THREADS, bytes, dqkv, D, dout, qkv, out, lse, length,
        NH);
}

// out (B,length,C) and lse (B,NH,length) from qkv (B,length,3C).
template <typename T>
static void attention_forward(T *out, float *lse, const T *qkv, int B, int length, int C, int NH) {
    int HS = C / NH;
    if constexpr (sizeof(T) == 2) {
        if (HS == 32) return attention_forward_on_tensor_cores<32>(out, lse, qkv, B, length, NH);
        if (HS == 64) return attention_forward_on_tensor_cores<64>(out, lse, qkv, B, length, NH);
        if (HS == 128) return attention_forward_on_tensor_cores<128>(out, lse, qkv, B, length, NH);
    }
    RUN(attention_forward_plain<T>, dim3(blocks_for(length, PLAIN_ROWS), B * NH), PLAIN_ROWS * WARP,
        plain_bytes(HS), out, lse, qkv, length, NH, HS);
}

// dqkv from dout and what forward left; D (B,NH,length) is scratch.
template <typename T> static void attention_backward(T *dqkv, float *D, const T *dout, const T *qkv,
                                                     const T *out, const float *lse, int B, int length, int C,
                                                     int NH) {
    int HS = C / NH;
    if constexpr (sizeof(T) == 2) {
        if (HS == 32)
            return attention_backward_on_tensor_cores<32>(dqkv, D, dout, qkv, out, lse, B, length, NH);
        if (HS == 64)
            return attention_backward_on_tensor_cores<64>(dqkv, D, dout, qkv, out, lse, B, length, NH);
        if (HS == 128)
            return attention_backward_on_tensor_cores<128>(dqkv, D, dout, qkv, out, lse, B, length, NH);
    }
    dim3 grid(blocks_for(length, PLAIN_ROWS), B * NH);
    size_t bytes = plain_bytes(HS);
    RUN((attention_backward_plain<T, 0>), grid, PLAIN_ROWS * WARP, bytes, dqkv, D, dout, qkv, out, lse,
        length, NH, HS);
    RUN((attention_backward_plain<T, 1>), grid, PLAIN_ROWS * WARP, bytes, dqkv, D, dout, qkv, out, lse,
        length, NH, HS);
}

// ===========================================================================================================
// 5  The model

// The parameters, as in train_gpt2.c; all in one flat array.
enum { WTE = 0, QKVW = 4, ATTPROJW = 6, FCW = 10, FCPROJW = 12, NUM_TENSORS = 16 };
template <typename T> struct ParameterTensors {
    T *wte, *wpe;           // (V,C), (maxT,C)
    T *ln1w, *ln1b;         // (L,C)
    T *qkvw, *qkvb;         // (L,3C,C), (L,3C)
    T *attprojw, *attprojb; // (L,C,C), (L,C)
    T *ln2w, *ln2b;         // (L,C)
    T *fcw, *fcb;           // (L,4C,C), (L,4C)
    T *fcprojw, *fcprojb;   // (L,C,4C), (L,C)
    T *lnfw, *lnfb;         // (C)
};

// Points to the tensors in memory, and says how large each is; returns how many numbers they are in all.
template <typename T>
static size_t point_parameters(ParameterTensors<T> *p, T *memory, GPT2Config g, size_t *sizes = NULL) {
    size_t C = g.channels, L = g.num_layers, n = 0;
    const size_t each[NUM_TENSORS] = {g.vocab_size * C, g.max_seq_len * C, L * C, L * C, L * 3 * C * C,
                                      L * 3 * C, L * C * C, L * C, L * C, L * C, L * 4 * C * C, L * 4 * C,
                                      L * 4 * C * C, L * C, C, C};
    for (int i = 0; i < NUM_TENSORS; n += each[i++]) {
        ((T **)p)[i] = memory + n;
        if (sizes) sizes[i] = each[i];
    }
    return n;
}

// Layer l's part of each tensor that has layers; where one tensor ends, the next begins.
template <typename T> static ParameterTensors<T> tensors_of_layer(ParameterTensors<T> p, int L, int l) {
    T **tensors = (T **)&p;
    for (int i = 2; i < NUM_TENSORS - 2; i++) tensors[i] += (tensors[i + 1] - tensors[i]) / L * l;
    return p;
}

#ifndef LOGITS // tests take less
#define LOGITS (1 << 27)       // at most so many at once
#define CLASSIFIER_THREADS 512 // of a block, which has a row of them
#endif

struct Gpu {
    int in_bf16; // it is a Model<bf16>, else a Model<float>
    void *owned[40]; // the GPU's memory
    int num_owned;
    size_t bytes; // of it
};

template <typename T> struct Model : Gpu {
    GPT2Config shape;
    size_t num_parameters;
    ParameterTensors<T> w;   // what the layers use: the parameters, or their copy in bf16
    T *copy;                 // (num_parameters), bf16 only
    const float *copied;     // the parameters that it is a copy of
    int keep, B, length;     // as in train_gpt2.c
    // kept for backward
    T *residual, *residual2;                          // (L+1,B,length,C), (L,B,length,C)
    float *ln1_mean, *ln1_rstd, *ln2_mean, *ln2_rstd; // (L,B,length)
    T *ln1, *qkv, *atty;                              // (L,B,length,C), (L,B,length,3C), (L,B,length,C)
    T *ln2, *fch, *fch_gelu;                          // (L,B,length,C), two of (L,B,length,4C)
    float *lse;                                       // (L,B,NH,length)
    T *lnf;                                           // (B,length,C)
    float *lnf_mean, *lnf_rstd;                       // (B,length)
    float *losses;                                    // (B,length)
    // for a moment
    T *branch;                                        // (B,length,C)
    T *dresidual, *dnormed, *dwide;                   // (B,length,C), (B,length,C), (B,length,4C)
    float *partial, *D; // (groups,4C) or (groups,2,C), (B,NH,length)
    T *logits;                                        // (logit_rows,Vp)
    // Products are fast where sizes are multiples of 8, so the classifier has Vp classes: V rounded up to a
    // multiple of 64. As rows V to Vp of wte it takes what lies behind wte in memory (the next tensors).
    // Their logits are ignored and the gradients of these are set to 0. So they add 0 to m->dnormed, and the
    // product that makes dwte adds 0 to the gradients behind it (or writes 0, before those are computed).
    int logit_rows, Vp;
    // The batch: tokens, targets, and the rows sorted by token (see wte_backward); before each, its place
    // in memory of the CPU's that the GPU copies from while the CPU goes on.
    uint16_t *tokens_sent, *tokens, *targets_sent, *targets; // (B,length)
    int *order_sent, *order, *start_sent, *start, runs;      // (B,length), (runs+1)
    cudaEvent_t sent; // when that memory may be written again (targets_sent: when mean_loss has waited)
    double *loss_sum; // of the CPU's memory too: the GPU writes it
    cudaEvent_t loss_known;
};

template <typename V> static V *take(Gpu *m, size_t n) {
    V *p = device_memory<V>(n);
    m->owned[m->num_owned++] = p;
    m->bytes += n * sizeof(V);
    return p;
}

template <typename V> static V *cpu_memory(size_t n) {
    void *p = NULL;
    CUDA(cudaMallocHost(&p, n * sizeof(V)));
    return (V *)p;
}

template <typename T> static Gpu *model_create(GPT2Config g, int B, int length, int training) {
    Model<T> *m = (Model<T> *)calloc(1, sizeof *m);
    if (!m) fail("out of memory");
    size_t rows = (size_t)B * length, C = g.channels, kept = training ? g.num_layers : 1;
    m->in_bf16 = sizeof(T) == 2;
    m->shape = g;
    m->keep = training;
    m->num_parameters = point_parameters(&m->w, (T *)NULL, g);
    if (m->in_bf16) m->copy = take<T>(m, m->num_parameters);
    m->residual = take<T>(m, (kept + (training != 0)) * rows * C), m->residual2 = take<T>(m, kept * rows * C);
    m->ln1_mean = take<float>(m, kept * rows), m->ln1_rstd = take<float>(m, kept * rows);
    m->ln2_mean = take<float>(m, kept * rows), m->ln2_rstd = take<float>(m, kept * rows);
    m->ln1 = take<T>(m, kept * rows * C), m->ln2 = take<T>(m, kept * rows * C);
    m->qkv = take<T>(m, kept * rows * 3 * C);
    m->atty = take<T>(m, kept * rows * C);
    m->fch = take<T>(m, kept * rows * 4 * C), m->fch_gelu = take<T>(m, kept * rows * 4 * C);
    m->lse = take<float>(m, kept * rows * g.num_heads);
    m->lnf = take<T>(m, rows * C);
    m->lnf_mean = take<float>(m, rows), m->lnf_rstd = take<float>(m, rows);
    m->losses = take<float>(m, rows);
    m->branch = take<T>(m, rows * C);
    m->Vp = (g.vocab_size + 63) / 64 * 64;
    m->logit_rows = (int)MIN(rows, MAX((size_t)64, (size_t)LOGITS / m->Vp / 64 * 64));
    m->logits = take<T>(m, (size_t)m->logit_rows * m->Vp);
    m->tokens = take<uint16_t>(m, rows), m->targets = take<uint16_t>(m, rows);
    m->tokens_sent = cpu_memory<uint16_t>(rows), m->targets_sent = cpu_memory<uint16_t>(rows);
    m->order_sent = cpu_memory<int>(rows), m->start_sent = cpu_memory<int>(rows + 1);
    m->loss_sum = cpu_memory<double>(1);
    CUDA(cudaEventCreate(&m->sent));
    CUDA(cudaEventCreate(&m->loss_known));
    if (!training) return m;
    m->dresidual = take<T>(m, rows * C), m->dnormed = take<T>(m, rows * C);
    m->dwide = take<T>(m, rows * 4 * C);
    m->partial = take<float>(m, MAX(blocks_for(rows, SUM_ROWS) * 4 * C, blocks_for(rows, NORM_ROWS) * 2 * C));
    m->D = take<float>(m, rows * g.num_heads);
    m->order = take<int>(m, rows), m->start = take<int>(m, rows + 1);
    return m;
}

template <typename T> static void model_free(Model<T> *m) {
    void *sent[] = {m->tokens_sent, m->targets_sent, m->order_sent, m->start_sent, m->loss_sum};
    for (int i = 0; i < m->num_owned; i++) CUDA(cudaFree(m->owned[i]));
    gpu_allocated -= m->bytes;
    for (int i = 0; i < 5; i++) CUDA(cudaFreeHost(sent[i]));
    CUDA(cudaEventDestroy(m->sent));
    CUDA(cudaEventDestroy(m->loss_known));
    free(m);
}

__global__ void copy_to_bf16(bf16 *out, const float *x, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        assign(out + i, x[i]);
}

static const float *moved; // the parameters that the optimizer has moved; their copy is older

static void use_parameters(Model<float> *m, const float *params) {
    point_parameters(&m->w, (float *)params, m->shape);
}
static void use_parameters(Model<bf16> *m, const float *params) {
    point_parameters(&m->w, m->copy, m->shape);
    if (params == m->copied && params != moved) return;
    if (params == moved) moved = NULL;
    m->copied = params;
    RUN(copy_to_bf16, MIN(blocks_for(m->num_parameters, THREADS), 4096), THREADS, 0, m->copy, params,
        m->num_parameters);
}

template <typename V> static void send(V *to, const V *from, size_t n) {
    CUDA(cudaMemcpyAsync(to, from, n * sizeof(V), cudaMemcpyHostToDevice, 0));
}

// Brings tokens (rows) to the GPU; in a model that trains also their order.
template <typename T> static void send_tokens(Model<T> *m, const uint16_t *tokens, int rows) {
    CUDA(cudaEventSynchronize(m->sent)); // of the batch before: long ago
    memcpy(m->tokens_sent, tokens, rows * sizeof *tokens);
    send(m->tokens, m->tokens_sent, rows);
    if (m->keep) { // sorted by counting: the rows of a token stay in their order
        static int place[65537];
        memset(place, 0, sizeof place);
        for (int r = 0; r < rows; r++) place[tokens[r] + 1]++;
        m->runs = 0;
        for (int v = 0, first = 0; v < 65536; v++) {
            int count = place[v + 1];
            if (count) m->start_sent[m->runs++] = first;
            place[v] = first;
            first += count;
        }
        m->start_sent[m->runs] = rows;
        for (int r = 0; r < rows; r++) m->order_sent[place[tokens[r]]++] = r;
        send(m->order, m->order_sent, rows);
        send(m->start, m->start_sent, m->runs + 1);
    }
    CUDA(cudaEventRecord(m->sent, 0));
}

template <typename T> static void send_targets(Model<T> *m, const uint16_t *targets) {
    int rows = m->B * m->length;
    memcpy(m->targets_sent, targets, rows * sizeof *targets); // mean_loss waited until the last were read
    send(m->targets, m->targets_sent, rows);
}

// sum = x + y (if y), out = its layer norm.
template <typename T> static void layernorm(T *sum, T *out, float *mean, float *rstd, const T *x, const T *y,
                                            const T *weight, const T *bias, int rows, int C) {
    RUN(layernorm_forward<T>, blocks_for(rows, WARPS), THREADS, 0, sum, out, mean, rstd, x, y, weight, bias,
        rows, C);
}

// Tokens (B,length) to m->lnf (B,length,C).
template <typename T> static void forward(Model<T> *m, const float *params, const uint16_t *tokens, int B,
                                          int length) {
    GPT2Config g = m->shape;
    int C = g.channels, rows = B * length, L = g.num_layers;
    use_parameters(m, params);
    m->B = B, m->length = length;
    send_tokens(m, tokens, rows);
    RUN(encoder_forward<T>, blocks_for((size_t)rows * C, THREADS * Pack<T>::size), THREADS, 0, m->residual,
        m->tokens, m->w.wte, m->w.wpe, rows, length, C);
    layernorm(m->residual, m->ln1, m->ln1_mean, m->ln1_rstd, m->residual, (T *)NULL, m->w.ln1w, m->w.ln1b,
              rows, C);
    for (int l = 0; l < L; l++) {
        ParameterTensors<T> p = tensors_of_layer(m->w, L, l);
        size_t at = (size_t)l * m->keep * rows, next = m->keep ? at + rows : 0;
        T *x = m->residual + at * C, *x2 = m->residual2 + at * C, *out = m->residual + next * C;
        T *ln1 = m->ln1 + at * C, *qkv = m->qkv + at * 3 * C, *atty = m->atty + at * C;
        T *ln2 = m->ln2 + at * C, *fch = m->fch + at * 4 * C, *fch_gelu = m->fch_gelu + at * 4 * C;
        linear_forward(qkv, ln1, p.qkvw, rows, C, 3 * C, {p.qkvb});
        attention_forward(atty, m->lse + at * g.num_heads, qkv, B, length, C, g.num_heads);
        linear_forward(m->branch, atty, p.attprojw, rows, C, C, {p.attprojb});
        layernorm(x2, ln2, m->ln2_mean + at, m->ln2_rstd + at, x, m->branch, p.ln2w, p.ln2b, rows, C);
        linear_forward(fch_gelu, ln2, p.fcw, rows, C, 4 * C, {p.fcb, fch});
        linear_forward(m->branch, fch_gelu, p.fcprojw, rows, 4 * C, C, {p.fcprojb});
        // the residual stream, and the next layer norm of it
        if (l < L - 1)
            layernorm(out, m->ln1 + next * C, m->ln1_mean + next, m->ln1_rstd + next, x2, m->branch,
                      p.ln1w + C, p.ln1b + C, rows, C);
        else layernorm(out, m->lnf, m->lnf_mean, m->lnf_rstd, x2, m->branch, p.lnfw, p.lnfb, rows, C);
    }
}

// Logits (n,Vp) of n rows of m->lnf from row `first` on, in m->logits.
template <typename T> static void logits(Model<T> *m, int first, int n) {
    int C = m->shape.channels;
    linear_forward(m->logits, m->lnf + (size_t)first * C, m->w.wte, n, C, m->Vp, {});
}

// Logits i, i+1, ..; those from V on are -infinity, which the softmax does not see.
template <typename T> __device__ inline Pack<T> load_logits(const T *x, int i, int V) {
    const int size = Pack<T>::size;
    Pack<T> a;
    if (i < V) a = load(x + i);
    if (i + size > V)
        for (int j = 0; j < size; j++)
            if (i + j >= V) assign(&a.x[j], -INFINITY);
    return a;
}

#define AHEAD 2 // packs that a thread loads before it uses the first

// log2 of the sum of exp(scale x) over x (V). Each thread goes through its packs with a running maximum and
// a sum of powers relative to it; then those of the block's threads are combined, and every thread has it.
template <typename T> __device__ inline float log2_sum_exp(const T *x, int V, float scale) {
    __shared__ float maxima[WARP], sums[WARP];
    const int size = Pack<T>::size, step = CLASSIFIER_THREADS * size;
    float max = -INFINITY, sum = 0;
    scale *= LOG2_E;
    for (int first = threadIdx.x * size; first < V; first += AHEAD * step) {
        Pack<T> a[AHEAD];
        float m = max;
#pragma unroll
        for (int k = 0; k < AHEAD; k++) a[k] = load_logits(x, first + k * step, V);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            for (int j = 0; j < size; j++) m = fmaxf(m, a[k][j] * scale);
        sum *= power_of_two(max - m);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            for (int j = 0; j < size; j++) sum += power_of_two(a[k][j] * scale - m);
        max = m;
    }
    float m = warp_max(max);
    sum = warp_sum(max == -INFINITY ? 0 : sum * power_of_two(max - m));
    __syncthreads(); // all have read what an earlier call left
    if (threadIdx.x % WARP == 0) maxima[threadIdx.x / WARP] = m, sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0, top = -INFINITY;
    for (int i = 0; i < CLASSIFIER_THREADS / WARP; i++) top = fmaxf(top, maxima[i]);
    for (int i = 0; i < CLASSIFIER_THREADS / WARP; i++)
        if (maxima[i] > -INFINITY) total += sums[i] * power_of_two(maxima[i] - top);
    return top + log2f(total);
}

// losses (rows) from logits (rows,Vp). With grad_scale != 0 the logits are replaced by grad_scale times
// their gradient, as train_gpt2.c's classifier has it, and 0 from V on. teacher: its logits (rows,Vp), or
// NULL. A block has a row.
template <typename T> __global__ void __launch_bounds__(CLASSIFIER_THREADS, 2)
    cross_entropy(T *logits, float *losses, const uint16_t *targets, int V, int Vp, float grad_scale,
                  const T *teacher, float temperature, float weight) {
    const int size = Pack<T>::size, step = CLASSIFIER_THREADS * size;
    int row = blockIdx.x, target = targets[row];
    T *x = logits + (size_t)row * Vp;
    const T *y = teacher ? teacher + (size_t)row * Vp : x;
    float x_target = to_float(x[target]), y_target = to_float(y[target]), t = LOG2_E / temperature;
    float lse = log2_sum_exp(x, V, 1), x_lse = 0, y_lse = 0;
    if (threadIdx.x == 0) { // rounding must not take it below 0
        float loss = lse / LOG2_E - x_target;
        losses[row] = loss < 0 ? 0 : loss;
    }
    if (grad_scale == 0) return;
    if (teacher) x_lse = log2_sum_exp(x, V, 1 / temperature), y_lse = log2_sum_exp(y, V, 1 / temperature);
    float hard = teacher ? (1.0f - weight) * grad_scale : grad_scale, kl = weight * temperature * grad_scale;
    auto gradient = [&](float a, float b, float label) {
        float d = hard * (power_of_two(a * LOG2_E - lse) - label);
        return teacher ? d + kl * (power_of_two(a * t - x_lse) - power_of_two(b * t - y_lse)) : d;
    };
    for (int first = threadIdx.x * size; first < Vp; first += AHEAD * step) {
        Pack<T> a[AHEAD], b[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            a[k] = b[k] = load_logits(x, first + k * step, V);
            if (teacher) b[k] = load_logits(y, first + k * step, V);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            float d[size];
            for (int j = 0; j < size; j++) d[j] = gradient(a[k][j], b[k][j], 0);
            if (first + k * step < Vp) store(x + first + k * step, d);
        }
    }
    if ((int)threadIdx.x == target / size % CLASSIFIER_THREADS) // whose the target is
        assign(x + target, gradient(x_target, y_target, 1));
}

// *out = the sum of x, by one block.
__global__ void sum_losses(double *out, const float *x, int n) {
    __shared__ double part[THREADS];
    int thread = threadIdx.x;
    double sum = 0;
    for (int i = thread; i < n; i += THREADS) sum += x[i];
    part[thread] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) part[thread] += part[thread + half];
    }
    if (thread == 0) *out = part[0];
}

// Cross entropy of the targets in chunks of rows, whose logits exist only for a moment; with grad_scale != 0
// also m->dnormed, the gradient of m->lnf, and dwte.
template <typename T>
static void classifier(Model<T> *m, const uint16_t *targets, float *dwte, float grad_scale, int add,
                       Gpu *teacher, float temperature, float weight) {
    int C = m->shape.channels, V = m->shape.vocab_size, rows = m->B * m->length;
    Model<T> *t = (Model<T> *)teacher;
    send_targets(m, targets);
    for (int first = 0; first < rows; first += m->logit_rows) {
        int n = MIN(m->logit_rows, rows - first);
        logits(m, first, n);
        if (t) logits(t, first, n);
        RUN(cross_entropy<T>, n, CLASSIFIER_THREADS, 0, m->logits, m->losses + first, m->targets + first, V,
            m->Vp, grad_scale, t ? t->logits : (T *)NULL, temperature, weight);
        if (grad_scale == 0) continue;
        matmul(dwte, m->logits, m->lnf + (size_t)first * C, m->Vp, C, n, 1, 0,
               {NULL, NULL, NULL, first || add});
        matmul(m->dnormed + (size_t)first * C, m->logits, m->w.wte, n, C, m->Vp, 0, 0, {});
    }
    RUN(sum_losses, 1, THREADS, 0, m->loss_sum, m->losses, rows);
    CUDA(cudaEventRecord(m->loss_known, 0));
}

// The mean loss of the last classifier, as soon as that is done: the GPU may be far behind, in backward.
template <typename T> static double mean_loss(Model<T> *m) {
    CUDA(cudaEventSynchronize(m->loss_known));
    return *m->loss_sum / (m->B * m->length);
}

// From m->dnormed, the gradient of a layer norm's output: m->dresidual += its input's, dweight +=, dbias +=.
template <typename T> static void layernorm_gradients(Model<T> *m, float *dweight, float *dbias, const T *x,
                                                      const T *weight, const float *mean, const float *rstd) {
    int rows = m->B * m->length, C = m->shape.channels, blocks = blocks_for(rows, NORM_ROWS);
    RUN(layernorm_backward<T>, blocks, THREADS, 0, m->dresidual, m->partial, m->dnormed, x, weight, mean,
        rstd, rows, C);
    RUN(add_groups, dim3(blocks_for(C, WARP), 2), WARP * WARP, 0, dweight, dbias, m->partial, blocks, C);
}

// After forward: grads = grad_scale times the gradient of the summed loss, or += with add; returns the mean.
template <typename T>
static double backward(Model<T> *m, float *grads_memory, const uint16_t *targets, float grad_scale, int add,
                       Gpu *teacher, float temperature, float weight) {
    GPT2Config g = m->shape;
    ParameterTensors<float> grads;
    int B = m->B, length = m->length, C = g.channels, rows = B * length, L = g.num_layers;
    float **tensors = (float **)&grads;
    size_t sizes[NUM_TENSORS];
    point_parameters(&grads, grads_memory, g, sizes);
    for (int i = 0; !add && i < NUM_TENSORS; i++) // products overwrite, the rest is added to
        if (i != WTE && i != QKVW && i != ATTPROJW && i != FCW && i != FCPROJW)
            CUDA(cudaMemsetAsync(tensors[i], 0, sizes[i] * sizeof(float), 0));
    classifier(m, targets, grads.wte, grad_scale, add, teacher, temperature, weight);
    CUDA(cudaMemsetAsync(m->dresidual, 0, (size_t)rows * C * sizeof(T), 0));
    layernorm_gradients(m, grads.lnfw, grads.lnfb, m->residual + (size_t)L * rows * C, m->w.lnfw, m->lnf_mean,
                        m->lnf_rstd);
    for (int l = L - 1; l >= 0; l--) {
        ParameterTensors<T> p = tensors_of_layer(m->w, L, l);
        ParameterTensors<float> d = tensors_of_layer(grads, L, l);
        size_t at = (size_t)l * rows;
        T *x = m->residual + at * C, *x2 = m->residual2 + at * C, *atty = m->atty + at * C;
        T *ln1 = m->ln1 + at * C, *qkv = m->qkv + at * 3 * C;
        T *ln2 = m->ln2 + at * C, *fch = m->fch + at * 4 * C, *fch_gelu = m->fch_gelu + at * 4 * C;
        float *mean1 = m->ln1_mean + at, *rstd1 = m->ln1_rstd + at, *mean2 = m->ln2_mean + at,
              *rstd2 = m->ln2_rstd + at;
        // the MLP
        linear_backward(m->dwide, d.fcprojw, d.fcprojb, m->partial, m->dresidual, fch_gelu, p.fcprojw, rows,
                        4 * C, C, {NULL, NULL, fch}, add);
        linear_backward(m->dnormed, d.fcw, d.fcb, m->partial, m->dwide, ln2, p.fcw, rows, C, 4 * C, {}, add);
        layernorm_gradients(m, d.ln2w, d.ln2b, x2, p.ln2w, mean2, rstd2);
        // attention
        linear_backward(m->dnormed, d.attprojw, d.attprojb, m->partial, m->dresidual, atty, p.attprojw, rows,
                        C, C, {}, add);
        attention_backward(m->dwide, m->D, m->dnormed, qkv, atty, m->lse + at * g.num_heads, B, length, C,
                           g.num_heads);
        linear_backward(m->dnormed, d.qkvw, d.qkvb, m->partial, m->dwide, ln1, p.qkvw, rows, C, 3 * C, {},
                        add);
        layernorm_gradients(m, d.ln1w, d.ln1b, x, p.ln1w, mean1, rstd1);
    }
    RUN(wte_backward<T>, dim3(m->runs, blocks_for(C, WARP)), THREADS, 0, grads.wte, m->dresidual, m->tokens,
        m->order, m->start, C);
    RUN(wpe_backward<T>, blocks_for((size_t)length * C, THREADS), THREADS, 0, grads.wpe, m->dresidual, B,
        length, C);
    return mean_loss(m);
}

// ===========================================================================================================
// 10  Workers: processes with a GPU each, which share every step's micro-batches

// The optimizer's state is cut into as many shards as there are processes (Rajbhandari et al. 2020, "ZeRO",
// stage 1): each sums up its shard of everyone's gradients, moves its shard of the parameters, and all gather
// the whole. As many bytes travel as if all added all gradients, with 1/ranks of the state and work.
// Muon needs whole matrices, Prodigy's slices whole tensors, and DiLoCo's workers each a state of
// their own: there each process has all of it. NCCL's order of sums is its own: unlike on CPUs, numbers of
// processes agree to rounding, not to the bit.
static int rank, ranks = 1, sharded;

static size_t shard_size(size_t n) { return sharded ? ((n + ranks - 1) / ranks + 3) / 4 * 4 : n; }
static size_t shard_begin(size_t n) { return sharded ? MIN(n, rank * shard_size(n)) : 0; }
static size_t shard_end(size_t n) { return MIN(n, shard_begin(n) + shard_size(n)); }

#ifdef USE_NCCL
static ncclComm_t nccl;
static void check_nccl(ncclResult_t result, int line) {
    if (result != ncclSuccess) fail("NCCL: %s (train_gpt2.cu, line %d)", ncclGetErrorString(result), line);
}
#define NCCL(call) check_nccl(call, __LINE__)

// A shard of n / ranks floats goes to each of the others: once to be summed up or gathered, twice for both.
static void count_sent(size_t n, int times) {
    gpu_sent(times * (double)(ranks - 1) / ranks * (double)n * sizeof(float));
}

static void all_gather(float *x, size_t n) {
    size_t size = shard_size(n);
    if (!sharded) return;
    NCCL(ncclAllGather(x + rank * size, x, size, ncclFloat, nccl, 0));
    count_sent(n, 1);
}

void gpu_sum_gradients(float *g, size_t n) {
    size_t size = shard_size(n);
    if (sharded) NCCL(ncclReduceScatter(g, g + rank * size, size, ncclFloat, ncclSum, nccl, 0));
    else if (ranks > 1) NCCL(ncclAllReduce(g, g, n, ncclFloat, ncclSum, nccl, 0));
    count_sent(n, sharded ? 1 : 2);
}

OPTIM_PASS(divide, (float *x, float by), x[i] /= by;)

void gpu_average(float *x, size_t n) {
    NCCL(ncclAllReduce(x, x, n, ncclFloat, ncclSum, nccl, 0));
    count_sent(n, 2);
    divide(optim_flat(n, NULL), x, (float)ranks);
}

// A sum over a shard becomes one over all of them.
static void add_shards(OptimSums *s) {
    static OptimSums *shared;
    if (!sharded) return;
    if (!shared) shared = cpu_memory<OptimSums>(1);
    *shared = *s;
    const size_t count = sizeof *shared / sizeof(double);
    NCCL(ncclAllReduce(shared, shared, count, ncclDouble, ncclSum, nccl, 0));
    gpu_wait();
    *s = *shared;
}

void gpu_ticket(char *ticket) { NCCL(ncclGetUniqueId((ncclUniqueId *)ticket)); }

void gpu_join(const char *ticket, int this_rank, int all_ranks) {
    static_assert(sizeof(ncclUniqueId) == GPU_TICKET, "NCCL's ticket has another size");
    rank = this_rank, ranks = all_ranks;
    NCCL(ncclCommInitRank(&nccl, ranks, *(const ncclUniqueId *)ticket, rank));
    optim_across = add_shards;
}
#else
static void all_gather(float *, size_t) {}
#endif

// ===========================================================================================================
//    The border

const char *gpu_open(int device, int *has_bf16) {
    static cudaDeviceProp properties;
    int count = 0, major;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (count == 1 && getenv("CUDA_VISIBLE_DEVICES")) device = 0; // each worker sees one, its own
    if (error != cudaSuccess)
        fail("CUDA finds no GPU: %s; ./train_gpt2 trains on the CPU", cudaGetErrorString(error));
    if (count <= device)
        fail("no GPU number %d that CUDA knows: %d are there; ./train_gpt2 trains on the CPU", device, count);
    CUDA(cudaSetDevice(device));
    CUDA(cudaGetDeviceProperties(&properties, device));
    CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaFuncAttributes code;
    if (cudaFuncGetAttributes(&code, attention_forward_tensor<64>) != cudaSuccess)
        fail("built for other GPUs than %s; make clean, then make train_gpt2cu without CUDA_ARCH",
             properties.name);
    *has_bf16 = major >= 8 && code.ptxVersion >= 80; // built for sm_75 alone, tensor kernels do nothing
    CUBLAS(cublasLtCreate(&cublas));
    size_t total;
    CUDA(cudaMemGetInfo(&gpu_room, &total));
    workspace = device_memory<char>(workspace_bytes);
    optim_matmul = muon_matmul;
    return properties.name;
}

size_t gpu_bytes(void) { return gpu_allocated; }

static size_t with_room(size_t n) { return (n / ranks + 4) * ranks; } // for shards of the same size
float *gpu_share(size_t n) {
    check_room(with_room(n) * sizeof(float));
    float *p = (float *)optim_allocate(with_room(n), sizeof(float));
    if (!p) fail("CUDA gives no %zu MiB of unified memory", with_room(n) >> 18);
    gpu_allocated += with_room(n) * sizeof(float);
    return p;
}
void gpu_unshare(float *p, size_t n) {
    optim_release(p);
    if (p) gpu_allocated -= with_room(n) * sizeof(float);
}
void gpu_wait(void) { CUDA(cudaDeviceSynchronize()); }

// Calls f of the model that m is.
#define OF_MODEL(m, f, ...) \
    ((m)->in_bf16 ? f((Model<bf16> *)(m), ##__VA_ARGS__) : f((Model<float> *)(m), ##__VA_ARGS__))

Gpu *gpu_create(GPT2Config g, int B, int length, int training, int in_bf16) {
    if (g.channels % 8) fail("%d channels; a GPU reads 8 at once, so make it a multiple of 8", g.channels);
    if (g.channels / g.num_heads > MAX_HEAD)
        fail("heads of %d channels; on a GPU they have at most %d", g.channels / g.num_heads, MAX_HEAD);
    if ((size_t)B * g.num_heads > GRID_Y || (size_t)B * length > (size_t)GRID_Y * SUM_ROWS)
        fail("%d sequences of %d tokens are too many for a GPU; use a smaller --batch, more --accumulate", B,
             length);
    float_products = in_bf16 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    return in_bf16 ? model_create<bf16>(g, B, length, training) : model_create<float>(g, B, length, training);
}
void gpu_free(Gpu *m) { OF_MODEL(m, model_free); }

void gpu_forward(Gpu *m, const float *params, const uint16_t *tokens, int B, int length) {
    OF_MODEL(m, forward, params, tokens, B, length);
}

template <typename T> static void logits_to_cpu(Model<T> *m, float *out, int first, int n) {
    size_t V = m->shape.vocab_size, Vp = m->Vp;
    T *rows = (T *)malloc(MIN(n, m->logit_rows) * Vp * sizeof(T));
    if (!rows) fail("out of memory");
    for (int done = 0; done < n; done += m->logit_rows) {
        int now = MIN(m->logit_rows, n - done);
        logits(m, first + done, now);
        CUDA(cudaMemcpy(rows, m->logits, now * Vp * sizeof(T), cudaMemcpyDeviceToHost));
        for (size_t r = 0; r < (size_t)now; r++)
            for (size_t i = 0; i < V; i++) out[(done + r) * V + i] = (float)rows[r * Vp + i];
    }
    free(rows);
}
void gpu_logits(Gpu *m, float *out, int first, int n) { OF_MODEL(m, logits_to_cpu, out, first, n); }

double gpu_loss(Gpu *m, const uint16_t *targets) {
    OF_MODEL(m, classifier, targets, NULL, 0, 0, NULL, 1, 0);
    return OF_MODEL(m, mean_loss);
}

double gpu_backward(Gpu *m, float *grads, const uint16_t *targets, float grad_scale, int add, Gpu *teacher,
                    float temperature, float weight) {
    return OF_MODEL(m, backward, grads, targets, grad_scale, add, teacher, temperature, weight);
}

// While one of these lives, the C part's optimizer is ready for the GPU: its row is the one compiled here,
// whose functions launch kernels (the C part's are loops), and n, num_slices and params are those of this
// process's shard (the C part's are the whole).
struct OnGpu {
    Optimizer *o;
    const OptimRow *row;
    size_t n, begin;
    OnGpu(Optimizer *o, size_t n) : o(o), row(o->row), n(n), begin(shard_begin(n)) {
        for (const OptimRow *r = optim_rows; r < optim_rows + OPTIM_COUNT(optim_rows); r++)
            if (!strcmp(r->name, row->name) && r->base == row->base) o->row = r;
        if (sharded) o->n = o->num_slices = shard_end(n) - begin;
        o->params += begin;
    }
    ~OnGpu() {
        if (sharded) o->n = o->num_slices = n;
        o->params -= begin;
        o->row = row;
    }
};

int gpu_optim_start(Optimizer *o, float *params, size_t n, const OptimSegment *segments, int count) {
    sharded = ranks > 1 && o->row->base != OPTIM_MUON && o->h.slice_p <= 1 && strcmp(o->row->name, "diloco");
    OptimSegment *parts = (OptimSegment *)malloc((count + 1) * sizeof *parts);
    size_t begin = shard_begin(n), end = shard_end(n);
    if (!parts) return -1;
    for (int i = 0; i < count; i++) { // what of each lies in the shard
        size_t from = MIN(MAX(segments[i].offset, begin), end);
        size_t to = MIN(MAX(segments[i].offset + segments[i].size, begin), end);
        parts[i] = segments[i];
        parts[i].offset = from - begin, parts[i].size = to - from;
    }
    OnGpu on(o, n);
    o->n = end - begin, o->num_slices = o->n / MAX(1, o->h.slice_p); // about so many, for optim_bytes
    check_room(optim_bytes(o) + sizeof(float) * optim_scratch(o, parts, count));
    int error = optim_start(o, params + begin, end - begin, parts, count);
    optimizer_bytes = optim_bytes(o) + sizeof(float) * optim_scratch(o, parts, count);
    free(parts);
    gpu_wait();
    return error;
}

void gpu_optim_step(Optimizer *o, const float *grad, float scale, double factor, double loss,
                    double loss_star) {
    OnGpu on(o, o->n);
    optim_step(o, grad + on.begin, scale, factor, loss, loss_star);
    CUDA(cudaGetLastError());
    moved = o->params - on.begin;
    all_gather(o->params - on.begin, on.n);
}

void gpu_optim_eval(const Optimizer *optimizer, float *out) {
    Optimizer o = *optimizer;
    OnGpu on(&o, o.n);
    optim_eval_params(&o, out + on.begin);
    CUDA(cudaGetLastError());
    all_gather(out, on.n);
    gpu_wait();
}

// Block i of what a checkpoint holds, as a whole. Where processes have shards, these are gathered in memory
// that a checkpoint is written from or read into; the next call copies this process's shard back from it.
int gpu_optim_state(Optimizer *o, int i, void **block, size_t *bytes) {
    static float *whole, *shard;
    size_t begin = shard_begin(o->n), shard_bytes = (shard_end(o->n) - begin) * sizeof(float);
    if (whole) memcpy(shard, whole + begin, shard_bytes);
    optim_release(whole);
    whole = NULL;
    if (!optim_state(o, i, block, bytes)) return 0;
    if (!sharded || i == 0) return 1;
    shard = (float *)*block;
    *block = whole = (float *)optim_allocate(ranks * shard_size(o->n), sizeof(float));
    if (!whole) fail("no memory for %zu MiB of a checkpoint", *bytes >> 20);
    memcpy(whole + begin, shard, shard_bytes);
    all_gather(whole, o->n);
    gpu_wait();
    return 1;
}

size_t gpu_optim_bytes(const Optimizer *optimizer) {
    Optimizer o = *optimizer;
    OnGpu on(&o, o.n);
    return optim_bytes(&o);
}

void gpu_optim_free(Optimizer *o) { optim_free(o), optimizer_bytes = 0; }

OptimSums gpu_gradient_norms(const Optimizer *optimizer, const float *g) {
    Optimizer o = *optimizer;
    OnGpu on(&o, o.n);
    OptimSums norms = optim_gradient_norms(&o, g + on.begin);
    CUDA(cudaGetLastError()); // else a fault of the GPU would look like a gradient that is not a number
    return norms;
}
void gpu_copy(OptimSpan span, float *out, const float *x) { optim_copy(span, out, x); }
void gpu_proxy_correction(OptimSpan span, float *c, const float *g, const float *proxy_t, float average) {
    optim_proxy_correction(span, c, g, proxy_t, average);
    all_gather(c, span.n); // of g this process has the sum in its shard alone; a checkpoint holds all of c
}
void gpu_proxy_gradient(OptimSpan span, float *out, const float *proxy, const float *c, const float *x,
                        const float *x_t, float pull) {
    optim_proxy_gradient(span, out, proxy, c, x, x_t, pull);
}

#elif !defined GPT2_DEVICE_WORKERS // the C part within train_gpt2.c, at the end of its chapter 5

void gpu_die(const char *message) { die("%s", message); }

static int gpu_bf16; // whether models train in it
#ifdef USE_NCCL
static int arrived(MPI_Request *request, int wait); // chapter 10
#endif

// Workers (chapter 10) take a GPU each of those that their machine has.
static const char *open_device_gpu(int f32) {
    static char name[300];
    int has_bf16, device = 0;
#ifdef USE_NCCL
    MPI_Comm machine;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &device);
    MPI_Comm_free(&machine);
#endif
    snprintf(name, sizeof name, "%s", gpu_open(device, &has_bf16));
#ifdef USE_NCCL
    MPI_Request all; // whoever has no GPU says so now: NCCL would wait for it
    MPI_Ibarrier(MPI_COMM_WORLD, &all), arrived(&all, 1);
    char ticket[GPU_TICKET];
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (rank == 0) gpu_ticket(ticket);
    MPI_Bcast(ticket, sizeof ticket, MPI_BYTE, 0, MPI_COMM_WORLD);
    if (ranks > 1) gpu_join(ticket, rank, ranks);
#endif
    gpu_bf16 = has_bf16 && !f32;
    strcat(name, gpu_bf16 ? ", bf16" : ", f32");
    return name;
}

static float *allocate_floats_gpu(size_t n) {
    float *p = gpu_share(n);
    allocated_bytes = gpu_bytes();
    return p;
}

static void gpt2_allocate_gpu(GPT2 *m, GPT2Config config) {
    memset(m, 0, sizeof *m);
    m->config = config;
    m->num_parameters = count_parameters(config);
    m->params_memory = allocate_floats_gpu(m->num_parameters);
    m->params = point_parameters(m->params_memory, config);
}

static void gpt2_allocate_activations_gpu(GPT2 *m, int B, int T, int training) {
    m->max_rows = B * T;
    m->logits = allocate_floats(m->config.vocab_size);
    if (training) m->grads_memory = allocate_floats_gpu(m->num_parameters);
    m->gpu = gpu_create(m->config, B, T, training, gpu_bf16);
    allocated_bytes = gpu_bytes();
}

static void gpt2_free_gpu(GPT2 *m) {
    if (m->gpu) gpu_free(m->gpu);
    gpu_unshare(m->params_memory, m->num_parameters), gpu_unshare(m->grads_memory, m->num_parameters);
    free(m->logits);
}

static void gpt2_forward_gpu(GPT2 *m, const uint16_t *tokens, int B, int T) {
    gpu_forward(m->gpu, m->params_memory, tokens, B, T);
}
static void gpt2_logits_gpu(const GPT2 *m, float *logits, int first, int n) {
    gpu_logits(m->gpu, logits, first, n);
}
static double gpt2_loss_gpu(GPT2 *m, const uint16_t *targets) { return gpu_loss(m->gpu, targets); }

static int add_micro_batch; // to the gradients of those before (chapter 10)
static double gpt2_backward_gpu(GPT2 *m, const uint16_t *targets, float grad_scale, const SoftLabels *soft) {
    static const SoftLabels none = {.temperature = 1};
    const SoftLabels *s = soft ? soft : &none;
    return gpu_backward(m->gpu, m->grads_memory, targets, grad_scale, add_micro_batch,
                        soft ? soft->teacher->gpu : NULL, s->temperature, s->weight);
}

// What chapters 6 to 12 of train_gpt2.c call is, from here on, the GPU's.
#define open_device open_device_gpu
#define allocate_floats allocate_floats_gpu
#define gpt2_allocate gpt2_allocate_gpu
#define gpt2_allocate_activations gpt2_allocate_activations_gpu
#define gpt2_free gpt2_free_gpu
#define gpt2_to_bf16(m) die("--teacher-weights is for CPUs; a GPU computes in bf16 where it can")
#define gpt2_forward gpt2_forward_gpu
#define gpt2_logits gpt2_logits_gpu
#define gpt2_loss gpt2_loss_gpu
#define gpt2_backward gpt2_backward_gpu
#define optim_start gpu_optim_start
#define optim_step gpu_optim_step
#define optim_eval_params gpu_optim_eval
#define optim_state gpu_optim_state
#define optim_bytes gpu_optim_bytes
#define optim_gradient_norms gpu_gradient_norms
#define optim_copy gpu_copy
#define optim_proxy_correction gpu_proxy_correction
#define optim_proxy_gradient gpu_proxy_gradient

#else // and at the end of chapter 10: micro-batches are added where they are computed, by NCCL across workers

static void allocate_sums_gpu(GradientSum *s, GPT2 *m, long first, long end) {
    (void)s, (void)m, (void)first, (void)end;
}
static void begin_micro_batch_gpu(GradientSum *s, long i, long first, long end, int exchange) {
    (void)s, (void)end, (void)exchange;
    add_micro_batch = i > first;
}

#ifdef USE_NCCL
static void prepare_workers_gpu(GPT2 *m, const Optimizer *optimizer, int n, int width) {
    (void)optimizer, (void)n;
    if (width < 4) die("--compression is for CPUs; GPUs send float32");
    mpi.model = m;
    connect_workers(&mpi.for_sums);
}

void gpu_sent(double bytes) { workers.bytes_sent += bytes; }

static void receive_layers_gpu(int wait) {
    (void)wait;
    gpu_sum_gradients(mpi.model->grads_memory, mpi.model->num_parameters);
}
static void diloco_average_gpu(float *x, size_t n) {
    if (workers.count > 1) gpu_average(x, n);
}
#define prepare_workers prepare_workers_gpu
#define receive_layers receive_layers_gpu
#define diloco_average diloco_average_gpu
#endif
#define allocate_sums allocate_sums_gpu
#define begin_micro_batch begin_micro_batch_gpu
#endif
