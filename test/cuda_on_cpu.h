/* CUDA on a CPU: with this header before it, train_gpt2.cu is C++ that any compiler takes, and its kernels
run on the CPU. Not a GPU's speed, but its semantics: what a test without a GPU can know.

    g++ -std=c++17 -fno-strict-aliasing -include test/cuda_on_cpu.h -x c++ -c train_gpt2.cu

What is asked of the GPU (launches, products, asynchronous copies) is done when the CPU waits for it: what the
CPU reads without waiting is not there yet, and what it overwrites without waiting is lost.

A launch runs its blocks one after the other; a block's threads are fibers, each with a stack of its own. A
fiber runs until it comes to a barrier (__syncthreads, __syncwarp, a shuffle or another operation of a whole
warp), and goes on when all have come. Orders that CUDA leaves open are drawn anew for each launch from
cuda_on_cpu_seed (0: in turn): those of blocks, and of threads between barriers; from seed 2 on a warp goes on
until it has to wait for others. So a race shows as results that differ from seed to seed. A barrier that some
threads never reach, and a thread that leaves while others of its warp wait for it, end the program with a
message.

__shared__ variables are static: one block at a time has them. Dynamic shared memory is filled with NaN
before each block, and under AddressSanitizer what is beyond the launch's size is poisoned.

mma and ldmatrix are emulated by the tables of the PTX manual ("Matrix Fragments for mma.m16n8k16",
"ldmatrix"). Asynchronous copies are made at once where the seed is even, as late as a wait allows where it is
odd: what is overwritten or read too early shows as another result. cuBLASLt is the few calls that
train_gpt2.cu makes, by plain loops in float32. */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <ucontext.h>
#include <vector>
#include <algorithm>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// -----------------------------------------------------------------------------------------------------------
// Blocks and threads

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct int4 { int x, y, z, w; } __attribute__((aligned(16)));

static dim3 gridDim, blockDim, blockIdx, threadIdx;
extern "C" unsigned cuda_on_cpu_seed; // 0: threads and blocks in turn
extern "C" long cuda_on_cpu_drains;   // waits that leave the GPU without work
unsigned cuda_on_cpu_seed;
long cuda_on_cpu_drains;
static unsigned cpu_seed; // cuda_on_cpu_seed, when what is being done was asked for

// The one stream: what has been asked for and not been done yet, and how much has been asked for so far.
static std::deque<std::function<void()>> cpu_stream;
static long cpu_asked;
static void cpu_ask(std::function<void()> work) { cpu_stream.push_back(work), cpu_asked++; }
static void cpu_do_until(long asked) {
    while (cpu_asked - (long)cpu_stream.size() < asked) {
        std::function<void()> work = std::move(cpu_stream.front());
        cpu_stream.pop_front();
        work();
    }
}
static void cpu_drain() { cpu_do_until(cpu_asked); }

#define CPU_SHARED (96 << 10)
static char shared_memory[CPU_SHARED] __attribute__((aligned(128))); // as train_gpt2.cu calls it
#define SHARED_MEMORY

#define CPU_THREADS 1024
#define CPU_WARP 32
#define CPU_STACK (256 << 10)

// What a barrier counts: threads that wait at it. When all have come, the round goes up and they go on.
struct CpuBarrier { int waiting; unsigned round; };

// Jumps between stacks. The compiler's own are twice as fast as the library's, which AddressSanitizer slows
// down further.
#if defined(__GNUC__) && !defined(__clang__)
typedef void *CpuJump[5];
#define CPU_SET(jump) __builtin_setjmp(jump)
#define CPU_SWITCH \
    __attribute__((noipa, no_sanitize("address"))) // a function that jumps: registers are not what they seem
CPU_SWITCH static void cpu_jump(CpuJump jump) { __builtin_longjmp(jump, 1); }
#else
typedef jmp_buf CpuJump;
#define CPU_SET(jump) _setjmp(jump)
#define cpu_jump(jump) _longjmp(jump, 1)
#define CPU_SWITCH __attribute__((noinline))
#endif

struct CpuCopy { void *to; const void *from; int bytes, group; };

struct CpuFiber {
    char *stack;
    CpuJump registers;
    dim3 index;
    bool begun, done;
    CpuBarrier *at; // the barrier where it waits, NULL: none
    unsigned round;
    char exchange
        [2][64]; // what it shows to its warp; two take turns, so that one barrier is enough for each exchange
    int turn;
    std::vector<CpuCopy> copies; // asked for, not yet made
    int groups;                  // of copies, committed so far
};
static CpuFiber cpu_fibers[CPU_THREADS];
static CpuFiber *cpu_now;
static CpuJump cpu_scheduler;
static std::function<void()> *cpu_kernel;
static CpuBarrier cpu_block_barrier, cpu_warp_barrier[CPU_THREADS / CPU_WARP];
static int cpu_threads;
#ifdef __SANITIZE_ADDRESS__
static const void *cpu_main_stack;
static size_t cpu_main_stack_size;
#endif

__attribute__((noreturn)) static void cpu_wrong(const char *what) {
    fprintf(stderr, "cuda_on_cpu: %s (block %u,%u thread %u)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
    abort();
}

static unsigned cpu_random(unsigned *state) { return *state = *state * 1664525u + 1013904223u, *state >> 8; }

// Leaves the fiber; the scheduler goes on, and later jumps back.
CPU_SWITCH static void cpu_yield() {
#ifdef __SANITIZE_ADDRESS__
    void *fake;
    __sanitizer_start_switch_fiber(&fake, cpu_main_stack, cpu_main_stack_size);
#endif
    if (!CPU_SET(cpu_now->registers)) cpu_jump(cpu_scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, &cpu_main_stack, &cpu_main_stack_size);
#endif
}

static void cpu_fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, &cpu_main_stack, &cpu_main_stack_size);
#endif
    for (;;) {
        (*cpu_kernel)();
        cpu_now->done = true;
        cpu_yield();
    }
}

CPU_SWITCH static void cpu_resume(CpuFiber *f) {
    cpu_now = f;
    threadIdx = f->index;
#ifdef __SANITIZE_ADDRESS__
    void *fake;
    __sanitizer_start_switch_fiber(&fake, f->stack, CPU_STACK);
#endif
    if (!CPU_SET(cpu_scheduler)) {
        static ucontext_t first;
        if (!f->begun) { // its endless loop
            f->begun = true;
            getcontext(&first);
            first.uc_stack.ss_sp = f->stack, first.uc_link = NULL;
            first.uc_stack.ss_size =
                CPU_STACK - (f - cpu_fibers) % 60 * 64; // else all tops of stacks share a few cache lines
            makecontext(&first, cpu_fiber_main, 0);
            setcontext(&first);
        }
        cpu_jump(f->registers);
    }
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static void cpu_wait(CpuBarrier *b, int threads) {
    CpuFiber *f = cpu_now;
    if (++b->waiting == threads) {
        b->waiting = 0;
        b->round++;
        return;
    }
    f->at = b;
    f->round = b->round;
    cpu_yield();
}

static void cpu_run_block(unsigned *random) {
    int order[CPU_THREADS], left = cpu_threads, warps = (cpu_threads + CPU_WARP - 1) / CPU_WARP;
    int alone = *random && cpu_seed > 1 ? 0 : -1, stuck = 0; // the warp that goes on, -1: all
    for (int i = 0; i < cpu_threads; i++) {
        CpuFiber *f = &cpu_fibers[i];
        if (!f->stack) f->stack = (char *)calloc(1, CPU_STACK);
        f->index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
        f->done = false, f->at = NULL, f->turn = 0;
        f->copies.clear(), f->groups = 0;
        order[i] = i;
    }
    while (left) {
        bool moved = false;
        for (int i = cpu_threads - 1; i > 0 && *random; i--) {
            int j = cpu_random(random) % (i + 1), swap = order[i];
            order[i] = order[j], order[j] = swap;
        }
        for (int i = 0; i < cpu_threads; i++) {
            CpuFiber *f = &cpu_fibers[order[i]];
            if (f->done || (f->at && f->at->round == f->round)) continue;
            if (alone >= 0 && order[i] / CPU_WARP != alone) continue;
            f->at = NULL;
            cpu_resume(f);
            moved = true;
            if (f->done) left--;
        }
        if (!moved && alone >= 0) alone = (alone + 1) % warps;
        stuck = moved ? 0 : stuck + 1;
        if (stuck > (alone < 0 ? 0 : warps)) cpu_wrong("threads wait at a barrier that others never reach");
    }
    if (cpu_block_barrier.waiting) cpu_wrong("a barrier is left half full");
}

static void cpu_run_grid(dim3 grid, dim3 block, size_t shared, std::function<void()> kernel,
                         unsigned random) {
    unsigned blocks = grid.x * grid.y * grid.z;
    cpu_kernel = &kernel;
    gridDim = grid, blockDim = block;
    cpu_threads = (int)(block.x * block.y * block.z);
    if (!blocks || cpu_threads < 1 || cpu_threads > CPU_THREADS || grid.y > 65535 || grid.z > 65535 ||
        shared > CPU_SHARED)
        cpu_wrong("a launch of impossible size");
    std::vector<unsigned> order(blocks);
    for (unsigned i = 0; i < blocks; i++) order[i] = i;
    for (unsigned i = blocks - 1; i > 0 && random; i--)
        std::swap(order[i], order[cpu_random(&random) % (i + 1)]);
    for (unsigned i : order) {
        blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
        memset(shared_memory, 0xFF, shared);
#ifdef __SANITIZE_ADDRESS__
        __asan_poison_memory_region(shared_memory + (shared + 7) / 8 * 8, CPU_SHARED - (shared + 7) / 8 * 8);
#endif
        cpu_run_block(&random);
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(shared_memory, CPU_SHARED);
#endif
    }
}

// The arguments are what they are now, not when the kernel runs.
template <typename Kernel, typename... Arguments>
static void cpu_launch(dim3 grid, dim3 block, size_t shared, Kernel kernel, Arguments... arguments) {
    unsigned seed = cuda_on_cpu_seed, random = seed ? seed + (unsigned)cpu_asked * 7919u : 0;
    cpu_ask([=] {
        cpu_seed = seed;
        cpu_run_grid(grid, block, shared, [=] { kernel(arguments...); }, random);
    });
}
#define LAUNCH(kernel, grid, block, shared, ...) \
    cpu_launch(grid, block, shared, [](auto... arguments) { (kernel)(arguments...); }, __VA_ARGS__)

static inline void __syncthreads() { cpu_wait(&cpu_block_barrier, cpu_threads); }

// ---- a warp's operations: each lane shows a value, all wait, each reads the others'

static int cpu_lane() { return (int)(cpu_now - cpu_fibers) % CPU_WARP; }
static void cpu_warp_wait() {
    int warp = (int)(cpu_now - cpu_fibers) / CPU_WARP, lanes = cpu_threads - warp * CPU_WARP;
    cpu_wait(&cpu_warp_barrier[warp], lanes < CPU_WARP ? lanes : CPU_WARP);
}
static inline void __syncwarp(unsigned = 0xFFFFFFFFu) { cpu_warp_wait(); }

template <typename V> static int cpu_show(const V &value) { // returns which of the two exchanges it is
    CpuFiber *f = cpu_now;
    static_assert(sizeof(V) <= sizeof f->exchange[0], "too large for an exchange");
    int turn = f->turn ^= 1;
    memcpy(f->exchange[turn], &value, sizeof value);
    cpu_warp_wait();
    return turn;
}
template <typename V> static V cpu_see(int turn, int lane) {
    V value;
    CpuFiber *warp = cpu_now - cpu_lane();
    if (warp + lane >= cpu_fibers + cpu_threads)
        cpu_wrong("a warp's operation reads a lane that is not there");
    memcpy(&value, warp[lane].exchange[turn], sizeof value);
    return value;
}
template <typename V> static V __shfl_xor_sync(unsigned mask, V value, int d) {
    if (mask != 0xFFFFFFFFu) cpu_wrong("only whole warps shuffle here");
    int turn = cpu_show(value);
    return cpu_see<V>(turn, cpu_lane() ^ d);
}

// -----------------------------------------------------------------------------------------------------------
// bf16: the upper half of a float, rounded to the nearest, ties to even

struct __nv_bfloat16 {
    uint16_t bits;
    explicit operator float() const {
        uint32_t u = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
};
struct __nv_bfloat162 { __nv_bfloat16 x, y; } __attribute__((aligned(4)));

static inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }
static inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if (std::isnan(x)) return __nv_bfloat16{0x7FFF};
    return __nv_bfloat16{(uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16(x), __float2bfloat16(y)};
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// -----------------------------------------------------------------------------------------------------------
// Tensor cores

static inline float cpu_half_of(uint32_t pair, int high) {
    return (float)__nv_bfloat16{(uint16_t)(high ? pair >> 16 : pair)};
}

// Lane 8 i + r says where row r of matrix i begins; lane 4 g + t gets numbers 2t, 2t+1 of row g of each
// matrix.
static inline void ldmatrix(uint32_t (&r)[4], const __nv_bfloat16 *row) {
    if ((uintptr_t)row % 16) cpu_wrong("ldmatrix: a row that is not aligned to 16 bytes");
    int turn = cpu_show(row), lane = cpu_lane();
    for (int i = 0; i < 4; i++) {
        const __nv_bfloat16 *p = cpu_see<const __nv_bfloat16 *>(turn, 8 * i + lane / 4) + lane % 4 * 2;
        r[i] = p[0].bits | (uint32_t)p[1].bits << 16;
    }
    cpu_warp_wait(); // all have read before any goes on to overwrite
}
// The same of the transposed matrices: numbers g of rows 2t and 2t+1.
static inline void ldmatrix_transposed(uint32_t (&r)[4], const __nv_bfloat16 *row) {
    if ((uintptr_t)row % 16) cpu_wrong("ldmatrix: a row that is not aligned to 16 bytes");
    int turn = cpu_show(row), lane = cpu_lane();
    for (int i = 0; i < 4; i++) {
        const __nv_bfloat16 *a = cpu_see<const __nv_bfloat16 *>(turn, 8 * i + lane % 4 * 2);
        const __nv_bfloat16 *b = cpu_see<const __nv_bfloat16 *>(turn, 8 * i + lane % 4 * 2 + 1);
        r[i] = a[lane / 4].bits | (uint32_t)b[lane / 4].bits << 16;
    }
    cpu_warp_wait();
}

// cp.async: 16 bytes, of which the last 16 - bytes become zeros.
static inline void cpu_copy(const CpuCopy &c) {
    memcpy(c.to, c.from, c.bytes);
    memset((char *)c.to + c.bytes, 0, 16 - c.bytes);
}
static inline void copy_async(__nv_bfloat16 *to, const __nv_bfloat16 *from, int bytes) {
    CpuCopy c = {to, from, bytes, cpu_now->groups};
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) cpu_wrong("cp.async: not aligned to 16 bytes");
    if (cpu_seed % 2) cpu_now->copies.push_back(c);
    else cpu_copy(c);
}
static inline void commit_copies() { cpu_now->groups++; }
template <int GROUPS> static inline void wait_copies() { // until at most so many are under way
    std::vector<CpuCopy> &copies = cpu_now->copies;
    size_t done = 0;
    while (done < copies.size() && copies[done].group < cpu_now->groups - GROUPS) cpu_copy(copies[done++]);
    copies.erase(copies.begin(), copies.begin() + done);
}
static inline float power_of_two(float x) { return exp2f(x); }

// c (16x8) += a (16x16) b (16x8), the fragments laid out as train_gpt2.cu says, chapter 4.
static inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Fragments { uint32_t a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    int turn = cpu_show(mine), lane = cpu_lane(), g = lane / 4, t = lane % 4;
    for (int source = 0; source < 4; source++) { // columns 2 source, + 1, + 8, + 9 of a; these rows of b
        Fragments of_a = cpu_see<Fragments>(turn, 4 * g + source);
        Fragments left = cpu_see<Fragments>(turn, 4 * (2 * t) + source),
                  right = cpu_see<Fragments>(turn, 4 * (2 * t + 1) + source);
        for (int k = 0; k < 4; k++) {
            int upper = k / 2, high = k % 2;
            float top = cpu_half_of(of_a.a[2 * upper], high),
                  bottom = cpu_half_of(of_a.a[2 * upper + 1], high);
            float x = cpu_half_of(left.b[upper], high), y = cpu_half_of(right.b[upper], high);
            c[0] += top * x, c[1] += top * y, c[2] += bottom * x, c[3] += bottom * y;
        }
    }
}

// -----------------------------------------------------------------------------------------------------------
// The runtime: memory is the CPU's; what is asynchronous is queued, all else waits for the queue

typedef int cudaError_t, cudaStream_t;
typedef long *cudaEvent_t; // how much had been asked for when it was recorded
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaDevAttrComputeCapabilityMajor = 75 };
struct cudaDeviceProp { char name[256]; };

// Bytes of memory, $CUDA_ON_CPU_MEMORY, and those that may still be allocated.
static const size_t cuda_on_cpu_total =
    getenv("CUDA_ON_CPU_MEMORY") ? strtoull(getenv("CUDA_ON_CPU_MEMORY"), NULL, 10) : (size_t)1 << 40;
static size_t cuda_on_cpu_memory = cuda_on_cpu_total;

template <typename P> static cudaError_t cudaMalloc(P **p, size_t bytes) {
    if (bytes > cuda_on_cpu_memory) return cudaErrorMemoryAllocation;
    cuda_on_cpu_memory -= bytes;
    char *memory = (char *)aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    memset(memory, 0xFF, bytes); // NaN, so that what is read before it is written shows
    *p = (P *)memory;
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory + (bytes + 7) / 8 * 8,
                                (bytes + 255) / 256 * 256 + 256 - (bytes + 7) / 8 * 8);
#endif
    return cudaSuccess;
}
template <typename P> static cudaError_t cudaMallocManaged(P **p, size_t bytes) {
    return cudaMalloc(p, bytes);
}
template <typename P> static cudaError_t cudaMallocHost(P **p, size_t bytes) { return cudaMalloc(p, bytes); }
static inline cudaError_t cudaFree(void *p) { return cpu_drain(), free(p), cudaSuccess; }
static inline cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
static inline cudaError_t cudaMemset(void *p, int x, size_t n) {
    return cpu_drain(), memset(p, x, n), cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int x, size_t n, cudaStream_t) {
    return cpu_ask([=] { memset(p, x, n); }), cudaSuccess;
}
static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t n, int) {
    cuda_on_cpu_drains++;
    return cpu_drain(), memcpy(to, from, n), cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, int, cudaStream_t) {
    return cpu_ask([=] { memcpy(to, from, n); }), cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    return *available = cuda_on_cpu_memory, *total = cuda_on_cpu_total, cudaSuccess;
}
static inline cudaError_t cudaDeviceSynchronize() { return cuda_on_cpu_drains++, cpu_drain(), cudaSuccess; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char *cudaGetErrorString(cudaError_t) { return "an error"; }
static inline cudaError_t cudaGetDeviceCount(int *n) { // $CUDA_ON_CPU_GPUS
    return *n = getenv("CUDA_ON_CPU_GPUS") ? atoi(getenv("CUDA_ON_CPU_GPUS")) : 8, cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    return strcpy(p->name, "a CPU that plays a GPU"), cudaSuccess;
}
static inline cudaError_t cudaDeviceGetAttribute(int *value, int, int) { return *value = 8, cudaSuccess; }
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = new long(-1), cudaSuccess; }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
    return *e = cpu_asked, cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return cuda_on_cpu_drains += *e == cpu_asked, cpu_do_until(*e), cudaSuccess;
}
template <typename Kernel> static cudaError_t cudaFuncSetAttribute(Kernel, int, int) { return cudaSuccess; }
struct cudaFuncAttributes { int ptxVersion; };
template <typename Kernel> static cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, Kernel) {
    return a->ptxVersion = 80, cudaSuccess;
}

// -----------------------------------------------------------------------------------------------------------
// cuBLASLt: column-major D = epilogue(alpha op(A) op(B) + beta C), D is C

typedef int cublasStatus_t, cudaDataType_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164,
    CUBLASLT_EPILOGUE_DGELU = 192
};
enum {
    CUBLASLT_MATMUL_DESC_TRANSA,
    CUBLASLT_MATMUL_DESC_TRANSB,
    CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD
};
enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
};

struct CpuProduct {
    cublasOperation_t trans_a, trans_b;
    int epilogue;
    const void *bias;
    void *aux;
    int64_t aux_ld;
};
struct CpuLayout { int type; uint64_t rows, cols; int64_t ld; };
typedef int cublasLtHandle_t, cublasLtMatmulPreference_t, cublasLtMatmulAlgo_t;
typedef CpuProduct *cublasLtMatmulDesc_t;
typedef CpuLayout *cublasLtMatrixLayout_t;
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; };

extern "C" int cuda_on_cpu_no_gelu; // plays a cuBLASLt without GELU epilogues
int cuda_on_cpu_no_gelu;

static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return *h = 0; }
static inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, int, int) {
    return *d = new CpuProduct(), CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    return delete d, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return delete l, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int which, const void *p,
                                                            size_t n) {
    void *fields[] = {&d->trans_a, &d->trans_b, &d->epilogue, &d->bias, &d->aux, &d->aux_ld};
    size_t sizes[] = {4, 4, 4, sizeof(void *), sizeof(void *), 8};
    if (n != sizes[which]) cpu_wrong("cuBLASLt: an attribute of the wrong size");
    return memcpy(fields[which], p, n), CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, int type, uint64_t rows,
                                                        uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows) cpu_wrong("cuBLASLt: columns that overlap");
    return *l = new CpuLayout{type, rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceCreate(int *p) { return *p = 0; }
static inline cublasStatus_t cublasLtMatmulPreferenceDestroy(int) { return CUBLAS_STATUS_SUCCESS; }
static inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(int, int, const void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(int, cublasLtMatmulDesc_t d,
                                                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                            int, int, cublasLtMatmulHeuristicResult_t *,
                                                            int *found) {
    *found = !(cuda_on_cpu_no_gelu && d->epilogue >= CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static inline float cpu_get(const void *p, int type, size_t i) {
    return type == CUDA_R_32F ? ((const float *)p)[i] : (float)((const __nv_bfloat16 *)p)[i];
}
static inline void cpu_put(void *p, int type, size_t i, float x) {
    if (type == CUDA_R_32F) ((float *)p)[i] = x;
    else ((__nv_bfloat16 *)p)[i] = __float2bfloat16(x);
}

// op(X) as rows of floats: out[i * k_size + k] = X[i][k], or of the transposed.
static inline std::vector<float> cpu_unpack(const void *p, CpuLayout l, bool by_column, size_t *lines,
                                            size_t *length) {
    *lines = by_column ? l.cols : l.rows, *length = by_column ? l.rows : l.cols;
    std::vector<float> x(*lines * *length);
    for (size_t i = 0; i < *lines; i++)
        for (size_t k = 0; k < *length; k++)
            x[i * *length + k] = cpu_get(p, l.type, by_column ? i * l.ld + k : k * l.ld + i);
    return x;
}

static void cpu_multiply(CpuProduct d, float alpha, const void *A, CpuLayout la, const void *B, CpuLayout lb,
                         float beta, void *C, CpuLayout lc) {
    size_t M, N, K, K2;
    std::vector<float> a = cpu_unpack(A, la, d.trans_a == CUBLAS_OP_T, &M, &K),
                       b = cpu_unpack(B, lb, d.trans_b == CUBLAS_OP_N, &N, &K2);
    const void *pointers[] = {A, B, C, d.bias, d.aux};
    for (const void *p : pointers)
        if ((uintptr_t)p % 16) cpu_wrong("cuBLASLt: an operand that is not aligned to 16 bytes");
    if (K != K2 || M != lc.rows || N != lc.cols) cpu_wrong("cuBLASLt: shapes that do not fit");
    for (size_t n = 0; n < N; n++)
        for (size_t m = 0; m < M; m++) {
            const float *x = &a[m * K], *y = &b[n * K];
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size_t k = 0; k < K; k++) sum += x[k] * y[k];
            size_t at = n * lc.ld + m;
            sum *= alpha;
            if (beta != 0) sum += beta * cpu_get(C, lc.type, at);
            if (d.epilogue == CUBLASLT_EPILOGUE_BIAS || d.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
                sum += cpu_get(d.bias, lc.type, m);
            float u = sum;
            if (d.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
                cpu_put(d.aux, lc.type, n * d.aux_ld + m, sum);
            if (d.epilogue == CUBLASLT_EPILOGUE_DGELU) u = cpu_get(d.aux, lc.type, n * d.aux_ld + m);
            float t = d.epilogue >= CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                          ? tanhf(0.7978845608f * (u + 0.044715f * u * u * u))
                          : 0;
            if (d.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) sum = 0.5f * u * (1 + t);
            if (d.epilogue == CUBLASLT_EPILOGUE_DGELU)
                sum *= 0.5f * (1 + t) + 0.5f * u * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * u * u);
            cpu_put(C, lc.type, at, sum);
        }
}

static inline cublasStatus_t cublasLtMatmul(int, cublasLtMatmulDesc_t d, const float *alpha, const void *A,
                                            cublasLtMatrixLayout_t la, const void *B,
                                            cublasLtMatrixLayout_t lb, const float *beta, const void *C,
                                            cublasLtMatrixLayout_t lc, void *D, cublasLtMatrixLayout_t,
                                            const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t) {
    if (C != D) cpu_wrong("cuBLASLt: C that is not D");
    CpuProduct product = *d; // as it is now
    CpuLayout a = *la, b = *lb, c = *lc;
    float by = *alpha, of_old = *beta;
    cpu_ask([=] { cpu_multiply(product, by, A, a, B, b, of_old, D, c); });
    return CUBLAS_STATUS_SUCCESS;
}

// -----------------------------------------------------------------------------------------------------------
// NCCL: the few calls that train_gpt2.cu makes, by MPI; a process's GPU is the process itself. They are made
// at once: a GPU goes on while its process waits for others, which here it could not.

#ifdef USE_NCCL
#define OMPI_SKIP_MPICXX
#include <mpi.h>
typedef MPI_Comm ncclComm_t;
typedef int ncclResult_t;
struct ncclUniqueId { char internal[128]; };
enum { ncclSuccess = 0 };
#define ncclFloat MPI_FLOAT
#define ncclDouble MPI_DOUBLE
#define ncclSum MPI_SUM
static inline const char *ncclGetErrorString(int) { return "an error"; }
static inline int ncclGetUniqueId(ncclUniqueId *id) { return memset(id, 7, sizeof *id), ncclSuccess; }
static inline int ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    int theirs, mine;
    MPI_Comm_dup(MPI_COMM_WORLD, comm);
    MPI_Comm_size(*comm, &theirs), MPI_Comm_rank(*comm, &mine);
    if (theirs != ranks || mine != rank || id.internal[127] != 7) cpu_wrong("NCCL: processes do not fit");
    return ncclSuccess;
}
static inline int ncclAllGather(const float *from, float *to, size_t n, MPI_Datatype type, ncclComm_t comm,
                                cudaStream_t) {
    int rank;
    MPI_Comm_rank(comm, &rank);
    if (from != to + rank * n) cpu_wrong("NCCL: a gathering that is not in place");
    cpu_drain();
    return MPI_Allgather(MPI_IN_PLACE, 0, type, to, (int)n, type, comm);
}
static inline int ncclReduceScatter(const float *from, float *to, size_t n, MPI_Datatype type, MPI_Op op,
                                    ncclComm_t comm, cudaStream_t) {
    std::vector<float> sum(n); // in place, MPI would write elsewhere than NCCL
    cpu_drain();
    int error = MPI_Reduce_scatter_block(from, sum.data(), (int)n, type, op, comm);
    return std::copy(sum.begin(), sum.end(), to), error;
}
static inline int ncclAllReduce(const void *from, void *to, size_t n, MPI_Datatype type, MPI_Op op,
                                ncclComm_t comm, cudaStream_t) {
    if (from != to) cpu_wrong("NCCL: a reduction that is not in place");
    cpu_drain();
    return MPI_Allreduce(MPI_IN_PLACE, to, (int)n, type, op, comm);
}
#endif

#endif
