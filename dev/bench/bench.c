// What the machine can do, and what share of it the program reaches.
//   bench machine         FMA peak in GFLOP/s and read bandwidth in GB/s, the best of some tries
//   bench step NAME       tokens/s, GFLOP/s and peak memory of training steps: 124M, medium or small
//   bench matmul [I]      GFLOP/s of every product of these models, or of product I (BLAS=1: the library's)
//   bench optim NAME      seconds and bytes of an optimizer's step with 124M parameters
//   bench decode KIND     tokens/s of plain decoding with 124M parameters (f32, bf16, int8), GB/s of weights
#define DECODE_NO_MAIN
#include "../../decode_ppd.c"
#include <sys/resource.h>

// Multiply-adds on registers only: MR x 2 independent chains, as in the microkernel.
static __attribute__((noinline)) float fma_chains(long n, float factor) {
    vec a[2 * MR], f = (vec){0} + factor;
    for (int i = 0; i < 2 * MR; i++) a[i] = (vec){0} + (float)i;
    for (long r = 0; r < n; r++)
#pragma GCC unroll 24
        for (int i = 0; i < 2 * MR; i++) a[i] = a[i] * f + f;
    for (int i = 1; i < 2 * MR; i++) a[0] += a[i];
    return a[0][0];
}

static double fma_peak(double seconds) {
    double best = 0, end = now() + seconds;
    volatile float sink = 0;
    while (now() < end) {
        long n = 200000;
        double start = now();
#pragma omp parallel
        sink = fma_chains(n, 0.5f);
        best = fmax(best, 2.0 * VEC * 2 * MR * n * omp_get_max_threads() / (now() - start) / 1e9);
    }
    (void)sink;
    return best;
}

static const struct { GPT2Config g; int B, T; } models[] = { // in the order of bench_step's list of names
    {{1024, 50257, 12, 12, 768}, 4, 64},
    {{256, 65, 6, 6, 384}, 16, 256},
    {{64, 65, 4, 4, 128}, 12, 64},
};

static double peak_megabytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return usage.ru_maxrss / 1e6;
#else
    return usage.ru_maxrss * 1024 / 1e6;
#endif
}

// Whole training steps as the trainer does them: forward, backward, clipping, AdamW. Prints the median step's
// figures.
static void bench_step(const char *name, double seconds) {
    static Run run;
    int i = choice("step", name, "124M|medium|small"), B = models[i].B, T = models[i].T, count = 0;
    GPT2Config g = models[i].g;
    char *arguments[] = {"bench", NULL};
    run.options = parse_command_line(1, arguments, &run.optimizer);
    run.options.clip = 1;
    run.options.steps = 1 << 30;
    GPT2 *m = &run.model;
    gpt2_allocate(m, g), gpt2_initialize(m, 1, GPT2_STD), gpt2_allocate_activations(m, B, T, 1);
    start_optimizer(&run.optimizer, m, "");
    run.B = B, run.T = T;
    run.x = allocate(B * T, sizeof *run.x), run.y = allocate(B * T, sizeof *run.y);
    run.losses = allocate(2, sizeof *run.losses);
    allocate_sums(&run.sum, m, 0, 1);
    uint16_t *tokens = allocate(100000, sizeof *tokens);
    for (int t = 0; t < 100000; t++) tokens[t] = (uint16_t)(random_u64(1, t) % g.vocab_size);
    dataset_add(&run.train, tokens, 100000);
    run.loader = (DataLoader){&run.train, T, 1, 0, 0};
    double times[4096], end = 0;
    for (int step = 0; step < 4096 && (step < 5 || now() < end); step++) {
        double start = now();
        train_step(&run);
        run.now.step++;
        if (step < 2) end = now() + seconds; // warming up
        else insert_sorted(times, count++, now() - start);
    }
    double speed = B * T / times[count / 2];
    printf("%.1f %.1f %.0f\n", speed, speed * flops_per_token(g, T) / 1e9, peak_megabytes());
}

static const struct { const char *what; int M, N, K, trans_a, trans_b;
} products[] = {
#define LAYER(name, rows, C)                                                                                 \
    {name " qkv forward", rows, 3 * C, C, 0, 1}, {name " qkv dx", rows, C, 3 * C, 0, 0},                     \
        {name " qkv dw", 3 * C, C, rows, 1, 0}, {name " proj forward", rows, C, C, 0, 1},                    \
        {name " proj dx", rows, C, C, 0, 0}, {name " proj dw", C, C, rows, 1, 0},                            \
        {name " fc forward", rows, 4 * C, C, 0, 1}, {name " fc dx", rows, C, 4 * C, 0, 0},                   \
        {name " fc dw", 4 * C, C, rows, 1, 0}, {name " fcproj forward", rows, C, 4 * C, 0, 1},               \
        {name " fcproj dx", rows, 4 * C, C, 0, 0}, {                                                         \
        name " fcproj dw", C, 4 * C, rows, 1, 0                                                              \
    }
    LAYER("124M", 256, 768),
    LAYER("medium", 4096, 384),
    LAYER("small", 768, 128),
    {"124M logits forward", 256, 50257, 768, 0, 1},
    {"124M logits dx", 256, 768, 50257, 0, 0},
    {"124M logits dw", 50257, 768, 256, 1, 0},
    {"medium logits forward", 4096, 65, 384, 0, 1},
    {"medium logits dx", 4096, 384, 65, 0, 0},
    {"medium logits dw", 65, 384, 4096, 1, 0},
    {"small logits forward", 768, 65, 128, 0, 1},
    {"small logits dx", 768, 128, 65, 0, 0},
    {"small logits dw", 65, 128, 768, 1, 0},
};

static void bench_matmul(int only) {
    for (int i = 0; i < (int)(sizeof products / sizeof *products); i++) {
        if (only >= 0 && i != only) continue;
        int M = products[i].M, N = products[i].N, K = products[i].K;
        float *A = allocate_floats((size_t)M * K), *B = allocate_floats((size_t)K * N),
              *C = allocate_floats((size_t)M * N);
        random_normal(A, (size_t)M * K, 1, 1), random_normal(B, (size_t)K * N, 1, 2);
        double times[9];
        int repeats = MAX(1, (int)(4e9 / (2.0 * M * N * K)));
        for (int r = 0; r < 9; r++) {
            double start = now();
            for (int q = 0; q < repeats; q++)
                matmul(C, A, B, M, N, K, products[i].trans_a, products[i].trans_b, plain);
            insert_sorted(times, r, (now() - start) / repeats);
        }
        printf("%s|%d|%d|%d|%.1f\n", products[i].what, M, N, K, 2e-9 * M * N * K / times[4]);
        fflush(stdout);
        free(A), free(B), free(C);
    }
}

// Bytes that one step of an optimizer has to move: each buffer's once for each time that it is read or
// written.
static void bench_optim(const char *name) {
    static const int reads_and_writes[] = {7, 9, 7, 12};
    int floats = reads_and_writes[choice("optim", name, "adamw|gpa|schedule-free|prodigy")];
    Optimizer o;
    GPT2 m;
    optim_init(&o, name);
    gpt2_allocate(&m, models[0].g), gpt2_initialize(&m, 1, GPT2_STD);
    float *g = allocate_floats(m.num_parameters);
    random_normal(g, m.num_parameters, 1e-3f, 2);
    start_optimizer(&o, &m, "");
    double best = INFINITY;
    for (int i = 0; i < 8; i++) {
        double start = now();
        optim_step(&o, g, 1, 1, 1, 0);
        best = fmin(best, now() - start);
    }
    printf("%.4f %.3f\n", best, floats * 4.0 * m.num_parameters / 1e9);
}

static void bench_decode(const char *kind) {
    static Engine e;
    const uint16_t tokens[8] = {11, 22, 33, 44, 55, 66, 77, 88};
    GPT2 m;
    gpt2_allocate(&m, models[0].g), gpt2_initialize(&m, 1, GPT2_STD);
    engine_start(&e, &m, choice("weights", kind, "f32|bf16|int8"));
    gpt2_free(&m);
    double seconds = plain_seconds(&e, tokens, 64);
    printf("%.1f %.1f\n", 1 / seconds, decoder_bytes(&e.decoder) / seconds / 1e9);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "machine")) printf("%.1f %.1f\n", fma_peak(1), read_bandwidth(2) / 1e9);
    else if (!strcmp(what, "step") && argc > 2) bench_step(argv[2], argc > 3 ? atof(argv[3]) : 5);
    else if (!strcmp(what, "matmul")) bench_matmul(argc > 2 ? atoi(argv[2]) : -1);
    else if (!strcmp(what, "optim") && argc > 2) bench_optim(argv[2]);
    else if (!strcmp(what, "decode") && argc > 2) bench_decode(argv[2]);
    else die_usage("bench machine | step NAME [SECONDS] | matmul [I] | optim NAME | decode KIND");
    return 0;
}
