// The model against PyTorch's golden files, every layer against finite differences, the kernels against plain
// loops.
//   ./test/test_gpt2 [GOLDEN_DIR...]      a folder with model.bin, state.bin, greedy.txt and hf/
#define TRAIN_GPT2_NO_MAIN
#include "../train_gpt2.c"
#include "check.h"
#include "golden.h"

static float *random_floats(size_t n, float std, uint64_t stream) {
    float *x = allocate_floats(n);
    random_normal(x, n, std, stream);
    return x;
}

// ---- exp and GELU against libm, in units in the last place

static double ulps(float x, double exact) { // NaN is infinitely far
    float nearest = (float)exact;
    double off = fabs(x - exact) / (nextafterf(fabsf(nearest), INFINITY) - fabsf(nearest));
    return isnan(off) ? INFINITY : off;
}

static double exact_gelu(double x) {
    return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}

static void test_functions(void) {
    double exp_error = 0, gelu_error = 0;
    for (float x = -87.3f; x < 88.7f; x += 0.00037f) exp_error = fmax(exp_error, ulps(exp_f32(x), exp(x)));
    for (float x = -1; x < 12; x += 0.0000371f) gelu_error = fmax(gelu_error, ulps(gelu(x), exact_gelu(x)));
    for (float x = -30; x < -1; x += 0.0000371f) // tiny beside x: its error is measured in x's ulps
        gelu_error = fmax(gelu_error, ulps((float)(x + gelu(x) - exact_gelu(x)), x));
    for (float x = 1e-20f; x < 1; x *= 1.01f) gelu_error = fmax(gelu_error, ulps(gelu(-x), exact_gelu(-x)));
    check(exp_error < 1.5, "exp_f32 is off by %.2f ulp", exp_error);
    check(gelu_error < 5, "gelu is off by %.2f ulp", gelu_error);
    printf("exp %.2f ulp, gelu %.2f ulp\n", exp_error, gelu_error);
    check(exp_f32(-INFINITY) == 0 && exp_f32(-200) == 0, "exp of very small numbers is not 0");
    check(isinf(exp_f32(INFINITY)) && isinf(exp_f32(100)), "exp of very large numbers is not infinite");
    check(exp_f32(0) == 1 && gelu(0) == 0 && gelu(30) == 30 && gelu(-30) == 0, "exact values");
    check(isnan(exp_f32(NAN)) && isnan(gelu(NAN)), "NaN does not stay NaN");
    int wrong = 0;
    for (float x = -110; x < -87.3f; x += 0.0037f) wrong += !(exp_f32(x) >= 0 && exp_f32(x) < 1.25e-38f);
    for (float x = 88.73f; x < 110; x += 0.0037f) wrong += exp_f32(x) != INFINITY;
    check(!wrong, "exp of %d numbers whose exponential is no float", wrong);
    float x[3 * VEC + 2];
    for (int n = 1; n <= 3 * VEC + 1; n++)
        for (int at = 0; at < n; at++) {
            for (int i = 0; i < n; i++) x[i] = i == at ? -1 : -2 - i;
            x[n] = 0; // behind the end
            wrong += largest_of(x, n) != -1;
        }
    check(!wrong, "largest_of misses %d places", wrong);
    float at_300[37], one[37], zero[37] = {0}, out[37], mean, rstd;
    double m = 0, squares = 0;
    random_normal(at_300, 37, 1, 3);
    for (int c = 0; c < 37; c++) at_300[c] += 300, one[c] = 1, m += at_300[c] / 37.0;
    for (int c = 0; c < 37; c++) squares += (at_300[c] - m) * (at_300[c] - m) / 37;
    layernorm_row(out, &mean, &rstd, at_300, one, zero, 37);
    check(fabs(rstd * sqrt(squares) - 1) < 1e-4, "the layer norm of numbers near 300 has rstd %g", rstd);
}

// ---- matrix multiplication against plain loops in double, with every epilogue

static void test_matmul(void) {
    int sizes[][3] = {{1, 1, 1},      {2, 3, 1},       {5, 17, 7},  {12, 32, 256},
                      {13, 33, 257},  {64, 65, 128},   {1, 97, 48}, {97, 48, 21},
                      {300, 130, 70}, {130, 300, 513}, {7, 600, 390}}; // more than KC deep, than a task wide
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int which = 0; which < 16; which++) {
            int M = sizes[s][0], N = sizes[s][1], K = sizes[s][2], trans_a = which & 1,
                trans_b = which >> 1 & 1;
            int epilogue = which >> 2;
            float *A = random_floats((size_t)M * K, 1, 1), *B = random_floats((size_t)K * N, 1, 2);
            float *C = random_floats((size_t)M * N, 1, 3), *expected = random_floats((size_t)M * N, 1, 3);
            float *bias = random_floats(N, 1, 4), *other = random_floats((size_t)M * N, 1, 5);
            float *activated = allocate_floats((size_t)M * N),
                  *expected_activated = allocate_floats((size_t)M * N);
            Epilogue e[] = {{0},
                            {.accumulate = 1},
                            {.bias = bias, .residual = other},
                            {.bias = bias, .times = other, .gelu = activated}};
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) {
                    size_t at = (size_t)i * N + j;
                    double sum = 0;
                    for (int k = 0; k < K; k++)
                        sum += (double)A[trans_a ? (size_t)k * M + i : (size_t)i * K + k] *
                               B[trans_b ? (size_t)j * K + k : (size_t)k * N + j];
                    if (epilogue == 1) sum += expected[at];
                    if (epilogue == 2) sum += bias[j] + other[at];
                    if (epilogue == 3) sum = (sum + bias[j]) * other[at];
                    expected[at] = (float)sum;
                    expected_activated[at] = (float)(0.5 * sum *
                                                     (1 + tanh(0.7978845608 *
                                                               (sum + 0.044715 * sum * sum * sum))));
                }
            matmul(C, A, B, M, N, K, trans_a, trans_b, e[epilogue]);
            double error = relative_error(C, expected, (size_t)M * N);
            if (epilogue == 3)
                error = fmax(error, relative_error(activated, expected_activated, (size_t)M * N));
            check(error < 1e-5, "matmul %d x %d x %d, transposed %d %d, epilogue %d: error %g", M, N, K,
                  trans_a, trans_b, epilogue, error);
            float *all[] = {A, B, C, expected, bias, other, activated, expected_activated};
            for (int i = 0; i < 8; i++) free(all[i]);
        }
}

// Products that are symmetric: as the whole product is; both halves, and any threads', alike to the last bit.
static void test_symmetric_matmul(void) {
    int sizes[][2] = {{1, 1}, {5, 3}, {16, 40}, {37, 300}, {130, 70}, {90, 6}};
    sizes[5][0] += most_columns(KC), sizes[5][1] += KC; // more than a panel's
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int trans = 0; trans < 2; trans++) {
            int N = sizes[s][0], K = sizes[s][1], halves_alike = 1;
            float *A = random_floats((size_t)N * K, 1, 1), *C = random_floats((size_t)N * N, 1, 2);
            float *expected = allocate_floats((size_t)N * N);
            symmetric_matmul(C, A, A, N, K, trans, !trans);
            matmul(expected, A, A, N, N, K, trans, !trans, plain);
            double error = relative_error(C, expected, (size_t)N * N);
            for (int i = 0; i < N; i++)
                for (int j = 0; j < i; j++) halves_alike &= C[(size_t)i * N + j] == C[(size_t)j * N + i];
#if defined(_OPENMP) && !defined(USE_BLAS)
            int most = omp_get_max_threads();
            memcpy(expected, C, (size_t)N * N * sizeof(float));
            for (int threads = 1; threads <= 5; threads++) {
                omp_set_num_threads(threads);
                memset(C, 0, (size_t)N * N * sizeof(float));
                symmetric_matmul(C, A, A, N, K, trans, !trans);
                halves_alike &= !memcmp(expected, C, (size_t)N * N * sizeof(float));
            }
            omp_set_num_threads(most);
#endif
            check(error < 1e-6 && halves_alike, "symmetric %d x %d, K %d, transposed %d: error %g, alike %d", N,
                  N, K, trans, error, halves_alike);
            free(A), free(C), free(expected);
        }
}

// What is left out, in products wider than a task's panels.
static void test_omitted(void) {
    const int M = 50, K = 50, N = most_columns(K) + 20;
    for (int below = 0; below < 2; below++) {
        float *A = random_floats(M * K, 1, 1), *B = random_floats((size_t)K * N, 1, 2);
        float *C = random_floats((size_t)M * N, 1, 3), *expected = allocate_floats((size_t)M * N);
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++)
                if (below ? k < i : k > i) A[below ? k * M + i : i * K + k] = 0;
        matmul(expected, A, B, M, N, K, below, 0, plain);
        multiply(C, N, A, below ? 1 : K, below ? M : 1, B, N, 1, M, N, K,
                 (Epilogue){.omit = below ? BELOW_A : ABOVE_A});
        double error = relative_error(C, expected, (size_t)M * N);
        check(error < 1e-5, "a wide product, of A %s its diagonal: error %g", below ? "above" : "below", error);
        free(A), free(B), free(C), free(expected);
    }
}

// ---- layers against finite differences: the loss is the sum of out * weights for random weights

typedef struct {
    int B, T, C, NH, N;
    uint16_t *tokens;
    float *in[4], *din[4], *weights; // inputs (parameters too) and their gradients
    size_t size[4], out_size;
    float *mean, *rstd, *lse, *partial, *scratch;
} Case;

static void embed_forward(Case *c, float *out) {
    encoder_forward(out, c->tokens, c->in[0], 0, c->in[1], c->B, c->T, c->C);
}
static void embed_backward(Case *c, const float *out) {
    (void)out;
    encoder_backward(c->din[0], c->din[1], c->weights, c->tokens, c->B, c->T, c->C);
}
static void norm_forward(Case *c, float *out) {
    layernorm_forward(out, c->mean, c->rstd, c->in[0], c->in[1], c->in[2], c->B * c->T, c->C);
}
static void norm_backward(Case *c, const float *out) {
    layernorm_again(c->scratch, c->in[0], c->in[1], c->in[2], c->mean, c->rstd, c->B * c->T, c->C);
    check(relative_error(c->scratch, out, c->out_size) < 1e-6,
          "layernorm_again differs from layernorm_forward");
    layernorm_backward(c->din[0], c->din[1], c->din[2], c->partial, c->weights, c->in[0], c->in[1], c->mean,
                       c->rstd, c->B * c->T, c->C);
}
static void line_forward(Case *c, float *out) {
    linear_forward(out, c->in[0], c->in[1], c->B * c->T, c->C, c->N,
                   (Epilogue){.bias = c->in[2], .residual = c->in[3]});
}
static void line_backward(Case *c, const float *out) {
    (void)out;
    linear_backward(c->din[0], c->din[1], c->din[2], c->weights, c->in[0], c->in[1], c->B * c->T, c->C, c->N,
                    plain, plain);
    memcpy(c->din[3], c->weights, c->size[3] * sizeof(float));
}
static void mlp_forward(Case *c, float *out) { // gelu through the epilogue
    linear_forward(c->scratch, c->in[0], c->in[1], c->B * c->T, c->C, c->N,
                   (Epilogue){.bias = c->in[2], .gelu = out});
}
static void mlp_backward(Case *c, const float *out) {
    float *again = allocate_floats(c->out_size), *d = allocate_floats(c->out_size);
    mlp_forward(c, again);
    gelu_again(again, c->scratch, c->out_size);
    check(relative_error(again, out, c->out_size) < 1e-6, "gelu_again differs from the epilogue's gelu");
    for (size_t i = 0; i < c->out_size; i++) d[i] = c->weights[i] * c->scratch[i];
    linear_backward(c->din[0], c->din[1], c->din[2], d, c->in[0], c->in[1], c->B * c->T, c->C, c->N, plain,
                    plain);
    free(again), free(d);
}
static void att_forward(Case *c, float *out) {
    attention_forward(out, c->lse, c->in[0], c->B, c->T, c->C, c->NH);
}
static void att_backward(Case *c, const float *out) {
    random_normal(c->din[0], c->size[0], 1, 8); // which it replaces
    attention_backward(c->din[0], c->weights, c->in[0], out, c->lse, c->B, c->T, c->C, c->NH);
}

static double weighted(Case *c, void (*forward)(Case *, float *), float *out) {
    double sum = 0;
    forward(c, out);
    for (size_t i = 0; i < c->out_size; i++) sum += (double)out[i] * c->weights[i];
    return sum;
}

static void test_layer(const char *name, Case c, void (*forward)(Case *, float *),
                       void (*backward)(Case *, const float *)) {
    size_t rows = (size_t)c.B * c.T;
    float *out = allocate_floats(c.out_size), *moved = allocate_floats(c.out_size);
    c.tokens = allocate(rows, sizeof *c.tokens);
    for (size_t i = 0; i < rows; i++) c.tokens[i] = (uint16_t)(random_u64(9, i) % 7);
    c.weights = random_floats(c.out_size, 1, 20);
    c.mean = allocate_floats(rows), c.rstd = allocate_floats(rows),
    c.lse = allocate_floats(rows * MAX(c.NH, 1));
    c.partial = allocate_floats((rows + GROUP) * 2 * c.C), c.scratch = allocate_floats(c.out_size);
    for (int i = 0; i < 4 && c.size[i]; i++)
        c.in[i] = random_floats(c.size[i], 1, 30 + i), c.din[i] = allocate_floats(c.size[i]);
    forward(&c, out);
    backward(&c, out);
    for (int i = 0; i < 4 && c.size[i]; i++) {
        int infinite = 0;
        for (size_t j = 0; j < c.size[i]; j++) infinite += !isfinite(c.din[i][j]);
        check(!infinite, "%s, input %d: %d gradients are not finite", name, i, infinite);
        double worst = 0, largest = 1e-3;
        for (size_t probe = 0; probe < 40; probe++) {
            size_t at = random_u64(50 + i, probe) % c.size[i];
            float x = c.in[i][at], h = 4e-3f;
            c.in[i][at] = x + h;
            double up = weighted(&c, forward, moved);
            c.in[i][at] = x - h;
            double down = weighted(&c, forward, moved), width = (double)(x + h) - (double)(x - h);
            c.in[i][at] = x;
            worst = fmax(worst, fabs((up - down) / width - c.din[i][at]));
            largest = fmax(largest, fabs(c.din[i][at]));
        }
        check(worst < 3e-3 * largest, "%s, input %d: gradient is off by %g of %g", name, i, worst, largest);
    }
    for (int i = 0; i < 4; i++) free(c.in[i]), free(c.din[i]);
    float *owned[] = {out, moved, c.weights, c.mean, c.rstd, c.lse, c.partial, c.scratch};
    for (int i = 0; i < 8; i++) free(owned[i]);
    free(c.tokens);
}

// Attention against the plain formula in double, over more than one block of queries and keys. std: of what
// comes in; with 8 scores reach hundreds.
static void test_attention(int B, int T, int C, int NH, float std) {
    int HS = C / NH;
    float *qkv = random_floats((size_t)B * T * 3 * C, std, 6), *out = allocate_floats((size_t)B * T * C);
    float *expected = allocate_floats((size_t)B * T * C), *lse = allocate_floats((size_t)B * NH * T);
    attention_forward(out, lse, qkv, B, T, C, NH);
    double *p = allocate(T, sizeof(double));
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                double sum = 0;
                for (int j = 0; j <= i; j++) {
                    double dot = 0;
                    for (int c = 0; c < HS; c++)
                        dot += (double)qkv[((size_t)b * T + i) * 3 * C + h * HS + c] *
                               qkv[((size_t)b * T + j) * 3 * C + C + h * HS + c];
                    sum += p[j] = exp(dot / sqrt(HS));
                }
                for (int c = 0; c < HS; c++) {
                    double o = 0;
                    for (int j = 0; j <= i; j++)
                        o += p[j] / sum * qkv[((size_t)b * T + j) * 3 * C + 2 * C + h * HS + c];
                    expected[((size_t)b * T + i) * C + h * HS + c] = (float)o;
                }
            }
    double error = relative_error(out, expected, (size_t)B * T * C);
    check(error < 1e-5 * std * std, "attention B %d T %d C %d NH %d, deviation %g: error %g", B, T, C, NH,
          std, error);
    free(qkv), free(out), free(expected), free(lse), free(p);
}

// ---- the whole model

static void random_tokens(uint16_t *x, size_t n, int V) {
    for (size_t i = 0; i < n; i++) x[i] = (uint16_t)(random_u64(77, i) % V);
}

// Logits of hundreds: loss and gradient are the plain formula's.
static void test_large_logits(void) {
    enum { T = 8, V = 37, C = 16 };
    GPT2Config g = {T, V, 1, 2, C};
    GPT2 m;
    uint16_t x[T + 1];
    float logits[T * V], expected[C] = {0};
    double loss = 0;
    random_tokens(x, T + 1, V);
    gpt2_allocate(&m, g), gpt2_initialize(&m, 5, GPT2_STD), gpt2_allocate_activations(&m, 1, T, 1);
    for (int c = 0; c < C; c++) m.params.lnfw[c] = 4000;
    gpt2_forward(&m, x, 1, T);
    for (int r = 0; r < T; r++) gpt2_logits(&m, logits + r * V, r, 1);
    double found = gpt2_backward(&m, x + 1, 1.0f / T, NULL);
    for (int r = 0; r < T; r++) {
        const float *l = logits + r * V;
        double max = -INFINITY, sum = 0;
        for (int v = 0; v < V; v++) max = fmax(max, l[v]);
        for (int v = 0; v < V; v++) sum += exp(l[v] - max);
        loss += (max + log(sum) - l[x[r + 1]]) / T;
        for (int v = 0; v < V; v++) {
            double d = (exp(l[v] - max) / sum - (v == x[r + 1])) / T;
            for (int c = 0; c < C; c++) expected[c] += (float)(d * m.params.wte[v * C + c]);
        }
    }
    double error = relative_error(m.grads.lnfb, expected, C);
    check(loss > 100 && fabs(found - loss) < 1e-5 * loss && error < 1e-3,
          "large logits: loss %g, expected %g; gradient off by %g", found, loss, error);
    gpt2_free(&m);
}

// The gradient along random directions against finite differences, plain and with soft labels, and
// accumulated.
static void test_model(void) {
    GPT2Config g = {24, 31, 2, 3, 24};
    GPT2 m, teacher;
    int B = 3, T = 20;
    uint16_t x[61], *y = x + 1;
    random_tokens(x, 61, 31);
    gpt2_allocate(&m, g), gpt2_allocate(&teacher, g);
    gpt2_initialize(&m, 5, GPT2_STD), gpt2_initialize(&teacher, 6, GPT2_STD);
    for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] *= 3, teacher.params_memory[i] *= 4;
    gpt2_allocate_activations(&m, B, T, 1), gpt2_allocate_activations(&teacher, B, T, 0);
    m.logit_rows = teacher.logit_rows = 17; // the classifier's chunks: four for 60 rows
    gpt2_forward(&teacher, x, B, T);
    SoftLabels soft = {&teacher, 2.0f, 0.6f};
    float *direction = allocate_floats(m.num_parameters), *start = allocate_floats(m.num_parameters);
    float *teacher_logits = allocate_floats((size_t)B * T * 31);
    float *logits = allocate_floats((size_t)B * T * 31);
    gpt2_logits(&teacher, teacher_logits, 0, B * T);
    memcpy(start, m.params_memory, m.num_parameters * sizeof(float));
    for (int with_soft = 0; with_soft < 2; with_soft++)
        for (int tensor = 0; tensor < NUM_TENSORS; tensor++) {
            gpt2_forward(&m, x, B, T);
            gpt2_backward(&m, y, 1.0f / (B * T), with_soft ? &soft : NULL);
            float **tensors = (float **)&m.params;
            size_t offset = tensors[tensor] - m.params_memory, n = tensor_size(tensor_shape(g, tensor));
            double dot = 0, length = 0, loss[2] = {0};
            random_normal(direction, n, 1, 90 + tensor);
            for (size_t i = 0; i < n; i++) dot += (double)m.grads_memory[offset + i] * direction[i];
            for (size_t i = 0; i < n; i++)
                length += (double)m.grads_memory[offset + i] * m.grads_memory[offset + i];
            for (int side = 0; side < 2; side++) {
                float h = (side ? -2e-3f : 2e-3f);
                for (size_t i = 0; i < n; i++)
                    m.params_memory[offset + i] = start[offset + i] + h * direction[i];
                gpt2_forward(&m, x, B, T);
                gpt2_loss(&m, y);
                gpt2_logits(&m, logits, 0, B * T);
                for (int r = 0; r < B * T; r++) {
                    double ce = m.losses[r], kl = 0, zs = 0, zt = 0, *which = &loss[side];
                    float *s = logits + r * 31, *t = teacher_logits + r * 31;
                    for (int i = 0; i < 31; i++) zs += exp(s[i] / 2.0), zt += exp(t[i] / 2.0);
                    for (int i = 0; i < 31; i++)
                        kl += exp(t[i] / 2.0) / zt * (t[i] / 2.0 - log(zt) - s[i] / 2.0 + log(zs));
                    *which += with_soft ? 0.4 * ce + 0.6 * 4 * kl : ce;
                }
            }
            memcpy(m.params_memory + offset, start + offset, n * sizeof(float));
            double measured = (loss[0] - loss[1]) / (B * T) / 4e-3;
            check(fabs(measured - dot) < 0.01 * fabs(dot) + 0.005 * sqrt(length),
                  "model, %s%s: gradient along a direction %g, measured %g", tensor_shape(g, tensor).name,
                  with_soft ? ", soft labels" : "", dot, measured);
        }
    // two micro-batches added up are one batch
    float *once = direction, *first = start;
    gpt2_forward(&m, x, B, T), gpt2_backward(&m, y, 1.0f / (B * T), NULL);
    memcpy(once, m.grads_memory, m.num_parameters * sizeof(float));
    gpt2_forward(&m, x, 1, T), gpt2_backward(&m, y, 1.0f / (B * T), NULL);
    memcpy(first, m.grads_memory, m.num_parameters * sizeof(float));
    gpt2_forward(&m, x + T, 2, T), gpt2_backward(&m, y + T, 1.0f / (B * T), NULL);
    for (size_t i = 0; i < m.num_parameters; i++) m.grads_memory[i] += first[i];
    check(relative_error(m.grads_memory, once, m.num_parameters) < 1e-5,
          "accumulated gradients differ from one batch's");
    // inference-only activations give the same loss
    double loss = (gpt2_forward(&m, x, B, T), gpt2_loss(&m, y));
    memcpy(teacher.params_memory, m.params_memory, m.num_parameters * sizeof(float));
    check(loss == (gpt2_forward(&teacher, x, B, T), gpt2_loss(&teacher, y)),
          "forward without kept activations differs");
    free(direction), free(start), free(teacher_logits), free(logits);
    gpt2_free(&m), gpt2_free(&teacher);
}

// GPT-2's: weights N(0, 0.02), those that are added to the residual over sqrt(2 L), layer norms 1, biases 0.
static void test_initialization(void) {
    GPT2Config g = {64, 97, 3, 4, 64};
    GPT2 m, other;
    gpt2_allocate(&m, g), gpt2_initialize(&m, 11, GPT2_STD);
    gpt2_allocate(&other, g), gpt2_initialize(&other, 12, GPT2_STD);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        const float *w = ((float **)&m.params)[i];
        double n = tensor_size(t), mean = 0, square = 0;
        for (size_t k = 0; k < n; k++) mean += w[k] / n, square += w[k] * w[k] / n;
        int added = i == TENSOR(attprojw) || i == TENSOR(fcprojw), norm = !t.cols && strchr(t.name, 'w');
        double std = t.cols ? 0.02 / (added ? sqrt(6) : 1) : 0, found = sqrt(fabs(square - mean * mean));
        double error = fmax(fabs(mean - norm), fabs(found - std));
        check(error <= 4 * std / sqrt(n) + 1e-6,
              "%s begins with mean %g and deviation %g, not %d and %g", t.name, mean, found, norm, std);
    }
    float wte = *m.params.wte, wpe = *m.params.wpe, next = *other.params.wte;
    check(wte != wpe && wte != next && wpe != next, "wte, wpe and the next seed's wte begin with %g, %g, %g",
          wte, wpe, next);
    gpt2_free(&m), gpt2_free(&other);
    double flops = flops_per_token((GPT2Config){1024, 50257, 12, 12, 768}, 1024); // 124M: 123,532,032 weights
    check(flops == 6 * 123532032.0 + 6 * 12 * 768 * 1024, "a token of GPT-2 takes %.0f operations", flops);
}

#if defined(_OPENMP) && !defined(USE_BLAS) // which OpenBLAS does not promise
// The same bits from 1, 2, 3 and 5 threads, on shapes that end in the middle of tiles.
static void test_threads(void) {
    GPT2Config g = {80, 301, 2, 5, 80};
    GPT2 m;
    int B = 3, T = 77, most = omp_get_max_threads();
    uint16_t *x = allocate(B * T + 1, sizeof *x);
    random_tokens(x, B * T + 1, 301);
    gpt2_allocate(&m, g), gpt2_initialize(&m, 3, GPT2_STD), gpt2_allocate_activations(&m, B, T, 1);
    float *expected = allocate_floats(m.num_parameters);
    double loss[4];
    int threads[] = {1, 2, 3, 5};
    for (int i = 0; i < 4; i++) {
        omp_set_num_threads(threads[i]);
        gpt2_forward(&m, x, B, T);
        loss[i] = gpt2_backward(&m, x + 1, 1.0f / (B * T), NULL);
        if (i == 0) memcpy(expected, m.grads_memory, m.num_parameters * sizeof(float));
        else check(loss[i] == loss[0] && !memcmp(expected, m.grads_memory, m.num_parameters * sizeof(float)),
                   "%d threads give other bits than 1", threads[i]);
    }
    omp_set_num_threads(most);
    free(expected), free(x);
    gpt2_free(&m);
}
#else
static void test_threads(void) {} // one thread
#endif

// ---- golden files

static void test_golden(const char *dir) {
    GPT2 m, hf;
    char path[4096], hf_path[4096];
    snprintf(path, sizeof path, "%s/model.bin", dir), snprintf(hf_path, sizeof hf_path, "%s/hf", dir);
    gpt2_load(&m, path);
    gpt2_load(&hf, hf_path);
    check(m.num_parameters == hf.num_parameters &&
              !memcmp(m.params_memory, hf.params_memory, m.num_parameters * 4),
          "%s: hf/ and model.bin differ", dir);
    GPT2Config g = m.config;
    Golden o = read_golden(dir, g);
    int V = g.vocab_size, B = o.B, T = o.T, rows = B * T;
    float *ours = allocate_floats((size_t)rows * V);
    gpt2_allocate_activations(&m, B, MAX(T, g.max_seq_len), 1);
    gpt2_forward(&m, o.x, B, T);
    gpt2_logits(&m, ours, 0, rows);
    double error = relative_error(ours, o.logits, (size_t)rows * V),
           loss = gpt2_backward(&m, o.x + rows, 1.0f / rows, NULL);
    check(error < 1e-4, "%s: logits are off by %g of the largest", dir, error);
    check(fabs(loss - o.loss) < 1e-4, "%s: loss %.6f, expected %.6f", dir, loss, o.loss);
    double worst = compare_gradients(dir, g, m.grads_memory, o.grads, o.padded, relative_error, 1e-4);
    printf("%s: logits %.1e, loss %.1e, gradients %.1e\n", dir, error, fabs(loss - o.loss), worst);

    snprintf(path, sizeof path, "%s/greedy.txt", dir);
    size_t length;
    char *text = read_file(path, &length), *at = text + strlen("prompt");
    uint16_t tokens[4096];
    int n = 0, wrong = 0;
    for (char *end; n < 4096 && (tokens[n] = (uint16_t)strtol(at, &end, 10), end != at); at = end) n++;
    at = strstr(text, "continuation") + strlen("continuation");
    for (char *end; n < 4096; at = end, n++) {
        long expected = strtol(at, &end, 10);
        if (end == at) break;
        int from = MAX(0, n - g.max_seq_len), best = 0;
        gpt2_forward(&m, tokens + from, 1, n - from);
        gpt2_logits(&m, ours, n - from - 1, 1);
        for (int i = 1; i < V; i++) best = ours[i] > ours[best] ? i : best;
        wrong += best != expected;
        tokens[n] = (uint16_t)expected;
    }
    check(wrong == 0 && n > 1, "%s: %d tokens of the greedy continuation differ", dir, wrong);
    free(text), free(ours), free(o.x), free(o.logits), free(o.grads);
    gpt2_free(&m), gpt2_free(&hf);
}

// A model in bfloat16 gives the very logits of the same numbers in float32.
static void test_bf16(void) {
    const float cases[][2] = {{1, 1}, {-0.0f, -0.0f}, {0x1.fffp10f, 0x1p11f}, {0x1.010002p0f, 0x1.02p0f},
                              {0x1.01p0f, 0x1p0f}, {-0x1.03p-126f, -0x1.04p-126f}}; // ties to even
    for (int i = 0; i < 6; i++) {
        float back;
        widen(&back, &(uint16_t){bf16_of(cases[i][0])}, 1);
        check(back == cases[i][1], "bfloat16 of %a is %a, not %a", cases[i][0], back, cases[i][1]);
    }
    GPT2Config g = {40, 333, 2, 3, 288};
    GPT2 m, half;
    uint16_t x[81];
    random_tokens(x, 81, 333);
    gpt2_allocate(&m, g), gpt2_allocate(&half, g);
    gpt2_initialize(&m, 5, GPT2_STD), gpt2_initialize(&half, 5, GPT2_STD);
    gpt2_to_bf16(&half);
    for (int i = 0; i < NUM_TENSORS; i++)
        if (half.bf16[i]) widen(((float **)&m.params)[i], half.bf16[i], tensor_size(tensor_shape(g, i)));
    uint64_t hash = model_hash(&half);
    half.bf16_memory[1]++;
    check(hash != model_hash(&half), "a model's hash does not see a weight in bfloat16");
    half.bf16_memory[1]--;
    gpt2_allocate_activations(&m, 2, 40, 0), gpt2_allocate_activations(&half, 2, 40, 0);
    for (int T = 1; T <= 40; T += 13) {
        gpt2_forward(&m, x, 2, T), gpt2_forward(&half, x, 2, T);
        double a = gpt2_loss(&m, x + 1), b = gpt2_loss(&half, x + 1);
        gpt2_logits(&m, m.logits, 0, MIN(2 * T, m.logit_rows));
        gpt2_logits(&half, half.logits, 0, MIN(2 * T, m.logit_rows));
        size_t n = (size_t)MIN(2 * T, m.logit_rows) * 333;
        check(a == b && !memcmp(m.logits, half.logits, n * sizeof(float)),
              "bfloat16, T %d: loss %.9g, float32 has %.9g", T, b, a);
    }
    gpt2_free(&m), gpt2_free(&half);
}

// Tokens that say where they stand, in two shards: the split, an epoch's windows, the mean loss, the segments.
static void test_data(void) {
    enum { N = 1003, T = 7, FIRST = 400 };
    uint16_t text[N], x[T], y[T];
    Dataset d = {0}, val = {0};
    for (int i = 0; i < N; i++) text[i] = (uint16_t)i;
    dataset_add(&d, text, FIRST), dataset_add(&d, text + FIRST, N - FIRST);
    dataset_split(&d, &val);
    check(dataset_tokens(&d) == 902 && dataset_tokens(&val) == 101 && val.shards[0].tokens[0] == 902,
          "validation is on another part than the last tenth");
    DataLoader l = {&d, T, 5, 0, 0};
    int offsets = 0, in_order = 0, wrong = 0, n = 0;
    for (uint64_t epoch = 0; epoch < 8; epoch++) {
        int seen[N] = {0}, least = N, last = -1;
        for (n = 0; l.epoch == epoch; n++) {
            loader_next(&l, x, y, 1);
            for (int i = 0; i < T; i++) wrong += seen[x[i]]++ || y[i] != x[0] + i + 1 || x[i] != x[0] + i;
            wrong += (x[0] < FIRST) != (y[T - 1] < FIRST);
            in_order += x[0] == last + T, last = x[0], least = MIN(least, x[0]);
        }
        wrong += n < (902 - 2 * (T + 1)) / T - 1;
        offsets |= 1 << least;
    }
    check(!wrong, "%d tokens come twice in an epoch, or not in a row; %d windows", wrong, n);
    DataLoader orders[] = {{&d, T, 5, 0, 0}, {&d, T, 5, 1, 0}, {&d, T, 6, 0, 0}};
    int first[20];
    for (int k = 0; k < 3; k++) {
        int same = 0;
        for (int i = 0; i < 20; i++) {
            loader_next(&orders[k], x, y, 1);
            if (k == 0) first[i] = x[0] / T;
            else same += x[0] / T == first[i];
        }
        check(same < 5, "%d of 20 windows are those of another %s", same, k == 1 ? "epoch" : "seed");
    }
    check(in_order < 40 && (offsets & (offsets - 1)), "%d windows in order, offsets %x", in_order, offsets);
    GPT2Config g = {T, N, 1, 1, 8};
    GPT2 m;
    gpt2_allocate(&m, g), gpt2_initialize(&m, 1, GPT2_STD), gpt2_allocate_activations(&m, 3, T, 0);
    for (size_t most = 0; most <= 40; most += 40) {
        double sum = 0;
        size_t count = most ? most : 100;
        for (size_t at = 0; at < count; at += T) {
            int t = (int)MIN((size_t)T, count - at);
            gpt2_forward(&m, val.shards[0].tokens + at, 1, t);
            sum += gpt2_loss(&m, val.shards[0].tokens + at + 1) * t;
        }
        double loss = evaluate(&m, &val, T, most);
        check(fabs(loss - sum / count) < 1e-6, "validation loss %g, window by window %g", loss, sum / count);
    }
    OptimSegment s[NUM_TENSORS];
    check(model_segments(g, "", s) == NUM_TENSORS, "segments");
    size_t place = 0;
    for (int i = 0; i < NUM_TENSORS; place += s[i++].size) {
        const char *name = tensor_shape(g, i).hf_name;
        int decays = !strstr(name, "bias") && !strstr(name, "ln_"), inside = decays && !strncmp(name, "h.", 2);
        check(s[i].offset == place && s[i].decay == decays && (s[i].rows > 0) == inside,
              "%s: decays %d, a matrix of %d rows", name, s[i].decay, s[i].rows);
    }
    gpt2_free(&m);
}

int main(int argc, char **argv) {
    test_functions();
#ifndef USE_BLAS
    for (int i = 0; i < 2; i++) { // products whose rows are beyond an int where threads multiply them
        int n = i ? 238700000 : 1 << 24, threads = i ? 8 : 128, part = share(n, threads, n, MR);
        check(part > 0 && part < n && (long)part * threads >= n, "%d rows, %d threads: parts of %d", n, threads, part);
    }
#endif
    test_matmul();
    test_initialization();
    test_symmetric_matmul();
    test_omitted();
    test_layer("encoder", (Case){.B = 3, .T = 5, .C = 19, .size = {7 * 19, 5 * 19}, .out_size = 3 * 5 * 19},
               embed_forward, embed_backward);
    test_layer("layernorm",
               (Case){.B = 5, .T = 31, .C = 37, .size = {155 * 37, 37, 37}, .out_size = 155 * 37},
               norm_forward, norm_backward);
    test_layer(
        "linear",
        (Case){
            .B = 2, .T = 9, .C = 21, .N = 35, .size = {18 * 21, 35 * 21, 35, 18 * 35}, .out_size = 18 * 35},
        line_forward, line_backward);
    test_layer("linear and gelu",
               (Case){.B = 2, .T = 9, .C = 21, .N = 35, .size = {18 * 21, 35 * 21, 35}, .out_size = 18 * 35},
               mlp_forward, mlp_backward);
    test_layer("attention",
               (Case){.B = 2, .T = 70, .C = 24, .NH = 3, .size = {140 * 72}, .out_size = 140 * 24},
               att_forward, att_backward);
    test_layer("attention, more than QUERIES",
               (Case){.B = 1, .T = 330, .C = 16, .NH = 2, .size = {330 * 48}, .out_size = 330 * 16},
               att_forward, att_backward);
    test_attention(2, 150, 24, 3, 1);
    test_attention(2, 150, 24, 3, 8); // scores whose exponentials are beyond floats
    test_attention(1, 330, 24, 3, 1); // more than QUERIES, and a block of keys beyond
    test_attention(1, 5, 400, 1, 1);  // a head wider than a block of K
    test_attention(1, 64, 64, 2, 1);
    test_large_logits();
    test_model();
    test_bf16();
    test_data();
    test_threads();
    for (int i = 1; i < argc; i++) test_golden(argv[i]);
    if (argc == 1) test_golden("test/golden/gpt2_tiny");
    return finish();
}
