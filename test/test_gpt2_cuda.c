// train_gpt2.cu's kernels against PyTorch's golden files and against train_gpt2.c.
//   ./test/test_gpt2_cuda [GOLDEN_DIR...]      a folder with model.bin and state.bin
// Linked with train_gpt2.cu as test/cuda_on_cpu.h makes it (-DCUDA_ON_CPU), or as nvcc does, and then it runs
// on the GPU.
#define TRAIN_GPT2_NO_MAIN
#define GPT2_DEVICE "train_gpt2.cu"
#include "../train_gpt2.c"
#undef gpt2_allocate // from here on the CPU's functions have their names back
#undef gpt2_allocate_activations
#undef gpt2_free
#undef gpt2_forward
#undef gpt2_logits
#undef gpt2_loss
#undef gpt2_backward
#undef allocate_floats
#undef optim_start
#undef optim_step
#undef optim_eval_params
#undef optim_state
#undef optim_bytes
#include "check.h"
#include "golden.h"

#ifdef CUDA_ON_CPU
extern unsigned cuda_on_cpu_seed;
extern long cuda_on_cpu_drains;
extern int cuda_on_cpu_no_gelu;
#endif

// The norm of the difference as a share of the norm of b: what rounding to bf16 leaves small.
static double norm_error(const float *a, const float *b, size_t n) {
    double error = 0, norm = 1e-30;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return isfinite(error) ? sqrt(error / norm) : INFINITY;
}

// A model on both sides. cpu's gradients and logits are train_gpt2.c's.
typedef struct { GPT2 cpu, gpu; } Pair;

// The model `from`, which the pair takes over, and a copy of it on the GPU.
static Pair make_pair(const GPT2 *from, int B, int T, int bf16) {
    Pair p = {.cpu = *from};
    gpt2_allocate_activations(&p.cpu, B, T, 1);
    gpt2_allocate_gpu(&p.gpu, from->config);
    memcpy(p.gpu.params_memory, from->params_memory, from->num_parameters * sizeof(float));
    gpu_bf16 = bf16;
    gpt2_allocate_activations_gpu(&p.gpu, B, T, 1);
    return p;
}
static void free_pair(Pair *p) { gpt2_free_gpu(&p->gpu), gpt2_free(&p->cpu); }

// A model from a file, in the CPU's memory.
static GPT2 load_model(const char *path) {
    GPT2 m, loaded;
    size_t before = gpu_bytes();
    gpt2_load(&loaded, path);
    gpt2_allocate(&m, loaded.config);
    memcpy(m.params_memory, loaded.params_memory, m.num_parameters * sizeof(float));
    gpt2_free_gpu(&loaded);
    check(gpu_bytes() == before, "%s: %zu bytes stay counted as the GPU's", path, gpu_bytes() - before);
    return m;
}

// ---- golden files

static void test_golden(const char *dir, int bf16) {
    GPT2 m = load_model(dir);
    GPT2Config g = m.config;
    Golden o = read_golden(dir, g);
    int V = g.vocab_size, B = o.B, T = o.T, rows = B * T;
    float *ours = allocate_floats((size_t)rows * V);
    Pair p = make_pair(&m, B, T, bf16);
    gpt2_forward_gpu(&p.gpu, o.x, B, T);
    gpt2_logits_gpu(&p.gpu, ours, 0, rows);
    double loss = gpt2_backward_gpu(&p.gpu, o.x + rows, 1.0f / rows, NULL);
    double (*measure)(const float *, const float *, size_t) = bf16 ? norm_error : relative_error;
    double error = measure(ours, o.logits, (size_t)rows * V), tolerance = bf16 ? 0.03 : 1e-4;
    char name[64];
    snprintf(name, sizeof name, "golden, %s", bf16 ? "bf16" : "f32");
    check(error < tolerance, "%s: logits are off by %g", name, error);
    check(fabs(loss - o.loss) < (bf16 ? 0.01 : 1e-4), "%s: loss %.6f, expected %.6f", name, loss, o.loss);
    gpu_wait();
    double worst = compare_gradients(name, g, p.gpu.grads_memory, o.grads, o.padded, measure, tolerance);
    printf("%s: logits %.1e, loss %.1e, gradients %.1e\n", name, error, fabs(loss - o.loss), worst);
    free(ours), free(o.x), free(o.logits), free(o.grads);
    free_pair(&p);
}

// ---- every kernel against train_gpt2.c, on shapes that end in the middle of tiles

// A model of random weights, larger than initialisation makes them, so that attention is far from uniform.
static GPT2 random_model(GPT2Config g, uint64_t seed) {
    GPT2 m;
    gpt2_allocate(&m, g);
    gpt2_initialize(&m, seed, GPT2_STD);
    for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] *= 1.5f;
    random_normal(m.params.qkvb, (size_t)3 * g.num_layers * g.channels, 0.3f, seed + 100);
    return m;
}

static uint16_t *random_tokens(size_t n, int V) {
    uint16_t *x = allocate(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (uint16_t)(random_u64(77, i * i) % V % (i % 3 ? V : 5)); // some are frequent
    return x;
}

// train_gpt2.c's backward pass, its gradients added to those that are there.
static double added_backward(GPT2 *m, const uint16_t *targets, float scale, int add, const SoftLabels *soft) {
    size_t n = m->num_parameters;
    float *before = allocate_floats(n);
    memcpy(before, m->grads_memory, n * sizeof(float));
    double loss = gpt2_backward(m, targets, scale, soft);
    for (size_t i = 0; add && i < n; i++) m->grads_memory[i] += before[i];
    free(before);
    return loss;
}

// Two micro-batches with gradients added up, with or without soft labels, on both sides; a forward pass
// without backward.
static void test_shape(GPT2Config g, int B, int T, int bf16, int soft, const char *what) {
    GPT2 m = random_model(g, 11), t = random_model(g, 12);
    Pair p = make_pair(&m, B, T, bf16), teacher = make_pair(&t, B, T, bf16);
    SoftLabels labels = {&teacher.cpu, 2.0f, 0.7f}, labels_gpu = {&teacher.gpu, 2.0f, 0.7f};
    int rows = B * T;
    uint16_t *x = random_tokens(2 * rows + 1, g.vocab_size);
    double expected = 0, loss = 0, tolerance = bf16 ? 0.06 : 2e-4;
    char name[128];
    snprintf(name, sizeof name, "%s, %s%s", what, bf16 ? "bf16" : "f32", soft ? ", soft labels" : "");
    for (int micro = 0; micro < 2; micro++) {
        const uint16_t *from = x + micro * rows;
        gpt2_forward(&p.cpu, from, B, T);
        if (soft) gpt2_forward(&teacher.cpu, from, B, T), gpt2_forward_gpu(&teacher.gpu, from, B, T);
        expected += added_backward(&p.cpu, from + 1, 0.5f / rows, micro, soft ? &labels : NULL) / 2;
        gpt2_forward_gpu(&p.gpu, from, B, T);
        add_micro_batch = micro;
        loss += gpt2_backward_gpu(&p.gpu, from + 1, 0.5f / rows, soft ? &labels_gpu : NULL) / 2;
    }
    add_micro_batch = 0;
    check(fabs(loss - expected) < (bf16 ? 0.02 : 1e-5), "%s: loss %.6f, train_gpt2.c's is %.6f", name, loss,
          expected);
    float *grads = p.gpu.grads_memory;
    gpu_wait();
    double worst =
        compare_gradients(name, g, grads, p.cpu.grads_memory, g.vocab_size, norm_error, tolerance);
    printf("%s: loss %.1e, gradients %.1e\n", name, fabs(loss - expected), worst);

    Optimizer o;
    optim_init(&o, "sps");
    gpu_optim_start(&o, p.gpu.params_memory, m.num_parameters, NULL, 0);
    double norm = gpu_gradient_norms(&o, grads).s0, cpu_norm = optim_norm2(grads, m.num_parameters);
    gpu_optim_free(&o);
    check(fabs(norm - cpu_norm) <= 1e-5 * cpu_norm, "%s: the gradient's squared norm is %g, not %g", name,
          norm, cpu_norm);
    Gpu *forward_only = gpu_create(g, B, T, 0, bf16);
    gpt2_forward_gpu(&p.gpu, x, 1, T - 1);
    gpu_forward(forward_only, p.gpu.params_memory, x, 1, T - 1);
    check(gpt2_loss_gpu(&p.gpu, x + 1) == gpu_loss(forward_only, x + 1),
          "%s: forward without kept activations differs", name);
    gpu_free(forward_only);
    free(x);
    free_pair(&p), free_pair(&teacher);
}

// The same bits, whatever order blocks and threads run in.
static void test_orders(GPT2Config g, int B, int T, int bf16, const char *what) {
#ifdef CUDA_ON_CPU
    GPT2 m = random_model(g, 13), t = random_model(g, 14);
    Pair p = make_pair(&m, B, T, bf16), teacher = make_pair(&t, B, T, bf16);
    SoftLabels labels = {&teacher.gpu, 2.0f, 0.5f};
    uint16_t *x = random_tokens(B * T + 1, g.vocab_size);
    float *first = allocate_floats(m.num_parameters);
    double loss[4];
    for (unsigned seed = 0; seed < 4; seed++) {
        cuda_on_cpu_seed = seed;
        gpt2_forward_gpu(&teacher.gpu, x, B, T);
        gpt2_forward_gpu(&p.gpu, x, B, T);
        loss[seed] = gpt2_backward_gpu(&p.gpu, x + 1, 1.0f / (B * T), &labels);
        gpu_wait();
        if (seed == 0) memcpy(first, p.gpu.grads_memory, m.num_parameters * sizeof(float));
        else
            check(loss[seed] == loss[0] &&
                      !memcmp(first, p.gpu.grads_memory, m.num_parameters * sizeof(float)),
                  "%s, %s: order %u of the threads gives other bits: a race", what, bf16 ? "bf16" : "f32",
                  seed);
    }
    cuda_on_cpu_seed = 0;
    free(x), free(first);
    free_pair(&p), free_pair(&teacher);
#else
    (void)g, (void)B, (void)T, (void)bf16, (void)what;
    skipped++;
#endif
}

// A step of two micro-batches lets the GPU run out of work once: where the CPU needs the gradient's norm.
static void test_waits(void) {
#ifdef CUDA_ON_CPU
    GPT2Config g = {16, 97, 1, 2, 16};
    GPT2 m = random_model(g, 14);
    Pair p = make_pair(&m, 2, 16, 1);
    uint16_t *x = random_tokens(33, g.vocab_size);
    Optimizer o;
    optim_init(&o, "adamw");
    gpu_optim_start(&o, p.gpu.params_memory, m.num_parameters, NULL, 0);
    for (int step = 0; step < 2; step++) {
        cuda_on_cpu_drains = 0;
        for (int micro = 0; micro < 2; micro++) {
            gpt2_forward_gpu(&p.gpu, x, 2, 16);
            add_micro_batch = micro;
            gpt2_backward_gpu(&p.gpu, x + 1, 1, NULL);
        }
        add_micro_batch = 0;
        float clip = (float)(1 / sqrt(gpu_gradient_norms(&o, p.gpu.grads_memory).s0));
        gpu_optim_step(&o, p.gpu.grads_memory, clip, 1, 0, 0);
        check(cuda_on_cpu_drains == 1, "in a step the GPU runs out of work %ld times", cuda_on_cpu_drains);
    }
    gpu_optim_free(&o);
    free(x);
    free_pair(&p);
#else
    skipped++;
#endif
}

// ---- ten steps of every optimizer on both sides, each from its own gradients

static void start_pair(Optimizer *cpu, Optimizer *gpu, const OptimRow *row, Pair *p) {
    GPT2 *m = &p->cpu;
    OptimSegment segments[256];
    int n = model_segments(m->config, "", segments);
    optim_choose(cpu, row);
    if (optim_get(cpu, "inner-steps") > 0) optim_set(cpu, "inner-steps", 4);
    if (optim_get(cpu, "slice-p") > 0) optim_set(cpu, "slice-p", 3);
    if (optim_get(cpu, "d0") > 0) optim_set(cpu, "d0", 1e-3);
    if (optim_get(cpu, "lr-cap") == 0) optim_set(cpu, "lr-cap", 0.1);
    *gpu = *cpu;
    optim_matmul = muon_matmul;
    if (optim_start(cpu, m->params_memory, m->num_parameters, segments, n) ||
        gpu_optim_start(gpu, p->gpu.params_memory, m->num_parameters, segments, n))
        die("no memory for the optimizer");
}

static int rank, ranks = 1; // under mpirun: each has a batch of its own, and a shard of the optimizer

static void test_optimizer(const OptimRow *row, const char *dir) {
    GPT2 m = load_model(dir);
    int B = 2, T = 16;
    Pair p = make_pair(&m, B, T, 0);
    Optimizer cpu, gpu;
    size_t n = m.num_parameters;
    float *start = allocate_floats(n), *moved = allocate_floats(n), *expected = allocate_floats(n),
          *out = gpu_share(n);
    uint16_t *x = random_tokens(B * T + ranks, m.config.vocab_size);
    double loss = 0, cpu_loss = 0;
    float scale = 1.0f / (float)(B * T * ranks);
    memcpy(start, m.params_memory, n * sizeof(float));
    start_pair(&cpu, &gpu, row, &p);
    for (int step = 0; step < 10; step++) {
#ifdef CUDA_ON_CPU
        cuda_on_cpu_seed = 1 + step;
#endif
        cpu_loss = 0;
        for (int r = 0; r < ranks; r++) {
            gpt2_forward(&p.cpu, x + r, B, T);
            cpu_loss += added_backward(&p.cpu, x + r + 1, scale, r > 0, NULL) / ranks;
        }
        gpt2_forward_gpu(&p.gpu, x + rank, B, T);
        loss = gpt2_backward_gpu(&p.gpu, x + rank + 1, scale, NULL);
#ifdef USE_NCCL
        gpu_sum_gradients(p.gpu.grads_memory, n);
        MPI_Allreduce(MPI_IN_PLACE, &loss, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        loss /= ranks;
        double norm = gpu_gradient_norms(&gpu, p.gpu.grads_memory).s0;
        double expected_norm = optim_norm2(p.cpu.grads_memory, n);
        check(fabs(norm - expected_norm) < 1e-3 * expected_norm,
              "%s: the gradient's squared norm is %g, not %g", row->name, norm, expected_norm);
#endif
        optim_step(&cpu, p.cpu.grads_memory, 0.7f, 1 - 0.05 * step, cpu_loss, 0.9 * cpu_loss);
        gpu_optim_step(&gpu, p.gpu.grads_memory, 0.7f, 1 - 0.05 * step, loss, 0.9 * loss);
    }
#ifdef CUDA_ON_CPU
    cuda_on_cpu_seed = 0;
#endif
    optim_eval_params(&cpu, expected);
    gpu_optim_eval(&gpu, out);
    for (size_t i = 0; i < n; i++) moved[i] = out[i] - start[i], expected[i] -= start[i];
    const char *base = optim_base_names[row->base];
    double error = norm_error(moved, expected, n);
    check(error < 2e-3 && fabs(loss - cpu_loss) < 1e-3,
          "%s %s: ten steps lead elsewhere than train_gpt2.c's, by %g of the way; "
          "loss %.6f and %.6f",
          row->name, base, error, loss, cpu_loss);
    for (int i = 1;; i++) { // what a checkpoint holds
        void *ours, *theirs = NULL;
        size_t bytes;
        if (!gpu_optim_state(&gpu, i, &ours, &bytes)) break;
        optim_state(&cpu, i, &theirs, &bytes);
        error = norm_error(ours, theirs, bytes / sizeof(float));
        check(error < 2e-3, "%s %s: buffer %d differs by %g", row->name, base, i, error);
    }
    size_t bytes = gpu_optim_bytes(&gpu), all_bytes = optim_bytes(&cpu);
    check(bytes == all_bytes || (ranks > 1 && bytes < all_bytes), "%s %s: %zu bytes of state, not %zu",
          row->name, base, bytes, all_bytes);
    free(start), free(moved), free(expected), free(x);
    gpu_unshare(out, n);
    optim_free(&cpu);
    gpu_optim_free(&gpu);
    free_pair(&p);
}

static void test_kernels(const char *dir, int bf16) {
    test_golden(dir, bf16);
    test_shape((GPT2Config){80, 301, 2, 5, 80}, 3, 77, bf16, 1, "heads of 16");
    test_shape((GPT2Config){70, 97, 1, 1, 184}, 1, 70, bf16, 0, "a head of 184");
    test_orders((GPT2Config){40, 97, 1, 3, 48}, 2, 40, bf16, "heads of 16");
    if (bf16) { // heads that tensor cores take
        test_shape((GPT2Config){150, 97, 1, 2, 64}, 2, 140, 1, 0, "heads of 32");
        test_shape((GPT2Config){200, 97, 2, 2, 128}, 1, 200, 1, 1, "heads of 64");
        test_shape((GPT2Config){150, 97, 1, 1, 128}, 1, 150, 1, 0, "a head of 128");
        test_orders((GPT2Config){150, 97, 1, 2, 64}, 1, 150, 1, "heads of 32");
        test_orders((GPT2Config){150, 97, 1, 1, 64}, 1, 150, 1, "a head of 64");
        test_orders((GPT2Config){100, 97, 1, 1, 128}, 1, 100, 1, "a head of 128");
    }
#ifdef CUDA_ON_CPU
    cuda_on_cpu_no_gelu = 1; // of another shape, for which no algorithm is known yet
    test_shape((GPT2Config){80, 301, 1, 5, 80}, 3, 71, bf16, 0, "without GELU epilogues");
    cuda_on_cpu_no_gelu = 0;
#endif
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : "test/golden/gpt2_tiny";
#ifdef _OPENMP
    omp_set_num_threads(1); // models so small that threads would mostly wait for each other
#endif
    int every = 1;
#ifdef __SANITIZE_ADDRESS__
    every = 5; // it is slow; the passes are alike in what they reach
#endif
#ifdef USE_NCCL
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &ranks);
#endif
    if (ranks > 1 && !getenv("FULL")) every = 6;
    const char *device = open_device(0);
    if (ranks == 1) {
        int has_bf16 = gpu_bf16;
        printf("on %s\n", device);
        test_waits();
        test_kernels(dir, 0);
        if (has_bf16) test_kernels(dir, 1);
        for (int i = 2; i < argc; i++) test_golden(argv[i], 0), test_golden(argv[i], has_bf16);
    }
    for (int i = 0; i < OPTIM_COUNT(optim_rows); i += every) test_optimizer(&optim_rows[i], dir);
#ifdef USE_NCCL
    int mine[2] = {passed, failed}, all[2];
    MPI_Reduce(mine, all, 2, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    if (rank) return failed != 0;
    passed = all[0], failed = all[1];
#endif
    return finish();
}
