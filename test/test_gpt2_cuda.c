// train_gpt2.cu's kernels against PyTorch's golden files and against train_gpt2.c.
//   ./test/test_gpt2_cuda [GOLDEN_DIR...]      a folder with model.bin and state.bin
// Linked with train_gpt2.cu as test/cuda_on_cpu.h makes it (-DCUDA_ON_CPU), or as nvcc does, and then it runs on the GPU.
#define TRAIN_GPT2_NO_MAIN
#include "../train_gpt2.cu"
#undef optim_start
#undef optim_step
#undef optim_eval_params
#undef optim_norm2
#include "check.h"

#ifdef CUDA_ON_CPU
extern unsigned cuda_on_cpu_seed;
extern int cuda_on_cpu_no_gelu;
#endif

// The largest difference as a share of the largest entry of b.
static double relative_error(const float *a, const float *b, size_t n) {
    double error = 0, largest = 1e-30;
    for (size_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)a[i] - b[i]));
        largest = fmax(largest, fabs(b[i]));
        if (!isfinite(a[i])) return INFINITY;
    }
    return error / largest;
}

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
typedef struct {
    GPT2 cpu;
    Gpu *gpu;
    float *params, *grads; // the GPU's
} Pair;

static Pair make_pair(const GPT2 *from, int B, int T, int bf16) {
    Pair p = {.cpu = *from};
    size_t n = from->num_parameters;
    gpt2_allocate_activations(&p.cpu, B, T, 1);
    p.params = gpu_share(n), p.grads = gpu_share(n);
    memcpy(p.params, from->params_memory, n * sizeof(float));
    p.gpu = gpu_create(shape_of(from->config), p.params, p.grads, B, T, 1, bf16);
    return p;
}
static void free_pair(Pair *p) {
    gpu_free(p->gpu);
    gpu_unshare(p->params), gpu_unshare(p->grads);
    gpt2_free(&p->cpu);
}

// Every tensor's gradient against `expected`, whose wte has `padded` rows; the worst error.
static double compare_gradients(const char *name, GPT2Config g, const float *ours, const float *expected, int padded,
                                double (*error)(const float *, const float *, size_t), double tolerance) {
    double worst = 0;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        double e = error(ours, expected, tensor_size(t));
        check(e < tolerance, "%s: gradient of %s is off by %g", name, t.name, e);
        worst = fmax(worst, e);
        ours += tensor_size(t);
        expected += tensor_size(t) + (i == 0 ? (size_t)(padded - g.vocab_size) * g.channels : 0);
    }
    return worst;
}

// ---- golden files

static void read_exactly(FILE *f, void *p, size_t n, const char *path) {
    if (fread(p, 1, n, f) != n) die("%s is cut short", path);
}

static void test_golden(const char *dir, int bf16) {
    GPT2 m;
    gpt2_load(&m, dir);
    GPT2Config g = m.config;
    int32_t header[256], V = g.vocab_size, padded = (V + 127) / 128 * 128;
    Path path = path_in(dir, "state.bin");
    FILE *f = fopen(path.s, "rb");
    if (!f) die("%s is missing", path.s);
    read_exactly(f, header, sizeof header, path.s);
    int B = header[2], T = header[3], rows = B * T;
    check(header[0] == 20240327 && B > 0 && T > 0, "%s: header", path.s);
    int32_t *ids = allocate(2 * rows, sizeof *ids);
    uint16_t *x = allocate(2 * rows, sizeof *x);
    float *logits = allocate_floats((size_t)rows * V), *ours = allocate_floats((size_t)rows * V), loss;
    size_t n = m.num_parameters + (size_t)(padded - V) * g.channels;
    float *grads = allocate_floats(n);
    read_exactly(f, ids, 2 * rows * sizeof *ids, path.s);
    read_exactly(f, logits, (size_t)rows * V * sizeof(float), path.s);
    read_exactly(f, &loss, sizeof loss, path.s);
    read_exactly(f, grads, n * sizeof(float), path.s);
    fclose(f);
    for (int i = 0; i < 2 * rows; i++) x[i] = (uint16_t)ids[i];

    Pair p = make_pair(&m, B, T, bf16);
    gpu_forward(p.gpu, x, B, T);
    gpu_logits(p.gpu, ours, 0, rows);
    gpu_backward(p.gpu, x + rows, 1.0f / rows, 0, NULL, 1, 0);
    double ours_loss = gpu_loss_sum(p.gpu) / rows;
    double (*measure)(const float *, const float *, size_t) = bf16 ? norm_error : relative_error;
    double error = measure(ours, logits, (size_t)rows * V), tolerance = bf16 ? 0.03 : 1e-4;
    char name[64];
    snprintf(name, sizeof name, "golden, %s", bf16 ? "bf16" : "f32");
    check(error < tolerance, "%s: logits are off by %g", name, error);
    check(fabs(ours_loss - loss) < (bf16 ? 0.01 : 1e-4), "%s: loss %.6f, expected %.6f", name, ours_loss, loss);
    double worst = compare_gradients(name, g, p.grads, grads, padded, measure, tolerance);
    printf("%s: logits %.1e, loss %.1e, gradients %.1e\n", name, error, fabs(ours_loss - loss), worst);
    free(ids), free(x), free(logits), free(ours), free(grads);
    free_pair(&p);
}

int main(int argc, char **argv) {
    printf("on %s\n", gpu_open(0));
    for (int bf16 = 0; bf16 <= gpu_has_bf16(); bf16++) {
        for (int i = 1; i < argc; i++) test_golden(argv[i], bf16);
        if (argc == 1) test_golden("test/golden/gpt2_tiny", bf16);
    }
    return finish();
}
