/* decode_ppd.c: text from a GPT-2, several tokens a pass, with the same words.

A language model makes a token from each pass over its weights, and on a CPU the pass costs the time that the
weights take to come from memory. So this program does two things: it streams the weights at memory speed, and
it gets more than one token out of a pass. Parallel prompt decoding (PPD, arXiv 2405.18628) trains a few
embeddings, "prompt tokens", that are appended to the text and make the frozen model guess the tokens after
the next one. The next pass then verifies a tree of such guesses, and the text is what plain decoding would
have written, to the last token: a row of a pass is rounded alike whatever other rows are in the pass, and a
guess counts only if it is the token that was going to be drawn.

   1  weights in three kinds, and their product with a few rows
   2  the decoder: a pass of rows that form a tree, over a cache of keys and values
   3  choosing tokens, writing text
   4  guesses: prompt tokens, heads, n-grams, a draft model; generation
   5  the best sparse tree
   6  training the prompt tokens
   7  the prompts file
   8  command line: train, run, bench

Everything about models, tokenizers, files and optimizers comes from train_gpt2.c, which is included. Shapes
as there; R is the number of rows in a pass, n the number of prompt tokens. */

#define TRAIN_GPT2_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "train_gpt2.c"
#pragma GCC diagnostic pop
#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifndef _OPENMP
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

// ============================================================================================================
// 1  Weights in three kinds, and their product with a few rows

/* A weight matrix (N outputs, K inputs) is stored as a pass reads it, in quads of 4 outputs in turns:

       quad 0:  k 0.. of output 0 | k 0.. of output 1 | of 2 | of 3 | next k of output 0 | ...    quad 1:  ...

so that a core reads one to four long streams. A vector holds `step` inputs: VEC as f32; 2 VEC as bf16; 4 VEC
as int8, whose outputs have a scale each (the row's largest weight is 127). Padding is zero. bf16 numbers k
and k + VEC of a step share a 32-bit word, low and high, which a shift and a mask turn back into two vectors
of f32. */
typedef enum { WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_INT8 } WeightKind;
static const char *const kind_names[] = {"f32", "bf16", "int8"};

typedef struct {
    WeightKind kind;
    int N, K, steps;  // steps of K in a row
    size_t quad;      // bytes of 4 outputs
    char *data;
    float *scale;     // (N) int8: weight = scale * stored
    int32_t *offset;  // (N) int8: what the offset of the activations adds to each product
} Matrix;

#define VECTOR ((int)sizeof(vec))
static int kind_step(WeightKind kind) {
    return kind == WEIGHTS_F32 ? VEC : kind == WEIGHTS_BF16 ? 2 * VEC : 4 * VEC;
}
static int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Where input k of output n is stored.
static inline char *matrix_at(const Matrix *m, int n, int k) {
    int step = kind_step(m->kind), lane = k % step;
    size_t within = m->kind == WEIGHTS_F32    ? 4 * lane
                    : m->kind == WEIGHTS_BF16 ? lane % VEC * 4 + lane / VEC * 2
                                              : lane;
    return m->data + n / 4 * m->quad + (size_t)(k / step * 4 + n % 4) * VECTOR + within;
}

static Matrix matrix_pack(const float *w, int N, int K, WeightKind kind) {
    Matrix m = {.kind = kind, .N = N, .K = K, .steps = round_up(K, kind_step(kind)) / kind_step(kind)};
    m.quad = (size_t)m.steps * 4 * VECTOR;
    m.data = allocate((size_t)round_up(N, VEC < 4 ? 4 : VEC) / 4, m.quad);
    m.scale = allocate_floats(round_up(N, VEC));
    m.offset = allocate(round_up(N, VEC), sizeof *m.offset);
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const float *row = w + (size_t)n * K;
        float largest = 0;
        for (int k = 0; k < K; k++) largest = fmaxf(largest, fabsf(row[k]));
        m.scale[n] = largest > 0 ? largest / 127 : 1;
        for (int k = 0; k < K; k++) {
            union { float f; uint32_t u; } bits = {.f = row[k]};
            if (kind == WEIGHTS_F32) *(float *)matrix_at(&m, n, k) = row[k];
            else if (kind == WEIGHTS_BF16) // to the nearest, ties to even
                *(uint16_t *)matrix_at(&m, n, k) = (uint16_t)((bits.u + 0x7FFF + (bits.u >> 16 & 1)) >> 16);
            else {
                int q = (int)rintf(row[k] / m.scale[n]);
                *(int8_t *)matrix_at(&m, n, k) = (int8_t)q;
                m.offset[n] += 128 * q;
            }
        }
    }
    return m;
}

static void matrix_free(Matrix *m) { free(m->data), free(m->scale), free(m->offset); }

// out (K) = the weights of output n, in f32: embeddings are looked up in the classifier's matrix.
static void matrix_row(const Matrix *m, int n, float *out) {
    for (int k = 0; k < m->K; k++) {
        const char *at = matrix_at(m, n, k);
        union { uint32_t u; float f; } bits = {0};
        if (m->kind == WEIGHTS_BF16) bits.u = (uint32_t)*(const uint16_t *)at << 16;
        out[k] = m->kind == WEIGHTS_F32    ? *(const float *)at
                 : m->kind == WEIGHTS_BF16 ? bits.f
                                           : m->scale[n] * *(const int8_t *)at;
    }
}

// The bytes that a pass reads of a matrix.
static size_t matrix_bytes(const Matrix *m) {
    return (size_t)m->N * m->K * (m->kind == WEIGHTS_F32 ? 4 : m->kind == WEIGHTS_BF16 ? 2 : 1);
}

// Each of the sums c += the four products of bytes in that 32-bit lane. Where the machine multiplies only
// unsigned by signed bytes, activations are stored with 128 added (`offset` takes that off again); elsewhere
// they are signed.
#if VEC == 16 && defined(__AVX512VNNI__)
#define ACTIVATION_OFFSET 128
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    return (vec_i)_mm512_dpbusd_epi32((__m512i)c, (__m512i)x, (__m512i)w);
}
#elif VEC == 8 && defined(__AVXVNNI__)
#define ACTIVATION_OFFSET 128
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    return (vec_i)_mm256_dpbusd_avx_epi32((__m256i)c, (__m256i)x, (__m256i)w);
}
#elif VEC == 8 && defined(__AVX2__)
#define ACTIVATION_OFFSET 0
// x w = |x| (sign(x) w); two such products, of at most 127^2 each, fit 16 bits
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), _mm256_sign_epi8((__m256i)w, (__m256i)x));
    return c + (vec_i)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
#define ACTIVATION_OFFSET 0
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    union { vec_i v; int8_t b[4 * VEC]; } a = {x}, b = {w};
    union { vec_i v; int32_t i[VEC]; } sum = {c};
    for (int i = 0; i < 4 * VEC; i++) sum.i[i / 4] += a.b[i] * b.b[i];
    return sum.v;
}
#endif

// Element i of the result is the sum of c[i]: neighbours are added in halves, as in train_gpt2.c's
// transpose_block.
#define REDUCE(c)                                                                              \
    _Pragma("GCC unroll 4") for (int half = VEC / 2; half; half /= 2)                          \
        _Pragma("GCC unroll 8") for (int i = 0; i < half; i++)                                 \
            c[i] = SHUFFLE(c[i], c[i + half], LOW) + SHUFFLE(c[i], c[i + half], HIGH);

/* Products of NB outputs (weights from w on) and RB rows of activations (from x on, `row` bytes apart); NB RB
= VEC, so that one vector holds the results, [row][output]. The first four arguments are constants. Each
product is summed in one accumulator over k, and the accumulator's lanes in one order: a row's rounding does
not depend on NB and RB. The block after this one is fetched meanwhile, where asked for. */
static inline __attribute__((always_inline)) vec_i tile(const WeightKind kind, const int NB, const int RB,
                                                        const int fetch, int steps, const char *w,
                                                        size_t quad, const char *x, size_t row) {
    vec c[VEC];
    vec_i sums[VEC];
    size_t ahead = (size_t)(VEC / 4) * quad;
    for (int i = 0; i < VEC; i++) c[i] = (vec){0}, sums[i] = (vec_i){0};
    for (int s = 0; s < steps; s++, w += 4 * VECTOR, x += kind == WEIGHTS_BF16 ? 2 * VECTOR : VECTOR) {
#pragma GCC unroll 16
        for (int n = 0; n < NB; n++) {
            const char *at = w + n / 4 * quad + n % 4 * VECTOR;
            vec_i bits = *(const vec_i *)at;
            if (fetch) __builtin_prefetch(at + ahead, 0, 2);
#pragma GCC unroll 4
            for (int r = 0; r < RB; r++) {
                const vec *xr = (const vec *)(x + r * row);
                int i = r * NB + n;
                if (kind == WEIGHTS_F32) c[i] += (vec)bits * xr[0];
                if (kind == WEIGHTS_BF16) {
                    c[i] += (vec)(bits << 16) * xr[0];
                    c[i] += (vec)(bits & (int32_t)0xFFFF0000) * xr[1];
                }
                if (kind == WEIGHTS_INT8) sums[i] = dot4(sums[i], *(const vec_i *)xr, bits);
            }
        }
    }
    if (kind == WEIGHTS_INT8) {
        REDUCE(sums)
        return sums[0];
    }
    REDUCE(c)
    return (vec_i)c[0];
}

// Block b of VEC outputs for all rows: raw sums (float, or int32 for int8) into out (R, ld). Both x and out
// have a multiple of 4 rows.
static inline __attribute__((always_inline)) void block_product(const WeightKind kind, float *out, int ld,
                                                                const Matrix *m, int b, const char *x,
                                                                size_t row, int rows) {
    const char *w = m->data + (size_t)b * (VEC / 4) * m->quad;
    int four = rows % 4 == 3 ? rows + 1 : rows / 4 * 4, r = 0; // three rows take longer than four
    out += (size_t)b * VEC;
#define STORE(NB, RB, sub)                                                                                  \
    for (int j = 0; j < RB; j++)                                                                            \
        memcpy(out + (size_t)(r + j) * ld + (sub) * NB, (float *)&sums + j * NB, NB * sizeof(float))
    // expanded twice: what comes first fetches the next block
#define TILE(NB, RB, part)                                                                                   \
    r == 0 ? tile(kind, NB, RB, 1, m->steps, part, m->quad, x, row)                                          \
           : tile(kind, NB, RB, 0, m->steps, part, m->quad, x + r * row, row)
    for (int sub = 0; sub < 4 && four; sub++) { // a quarter of the block stays in L1 for all rows
        const char *part = w + sub * (VEC / 4) / 4 * m->quad + sub * (VEC / 4) % 4 * VECTOR;
        for (r = 0; r < four; r += 4) {
            vec_i sums = TILE(VEC / 4, 4, part);
            STORE(VEC / 4, 4, sub);
        }
    }
    if (rows - r >= 2) {
        for (int sub = 0; sub < 2; sub++) {
            const char *part = w + sub * (VEC / 2) / 4 * m->quad + sub * (VEC / 2) % 4 * VECTOR;
            vec_i sums = TILE(VEC / 2, 2, part);
            STORE(VEC / 2, 2, sub);
        }
        r += 2;
    }
    if (r < rows) {
        vec_i sums = TILE(VEC, 1, w);
        STORE(VEC, 1, 0);
    }
#undef TILE
#undef STORE
}

static __attribute__((noinline)) void product_f32(float *out, int ld, const Matrix *m, int b, const char *x,
                                                  size_t row, int rows) {
    block_product(WEIGHTS_F32, out, ld, m, b, x, row, rows);
}
static __attribute__((noinline)) void product_bf16(float *out, int ld, const Matrix *m, int b, const char *x,
                                                   size_t row, int rows) {
    block_product(WEIGHTS_BF16, out, ld, m, b, x, row, rows);
}
static __attribute__((noinline)) void product_int8(float *out, int ld, const Matrix *m, int b, const char *x,
                                                   size_t row, int rows) {
    block_product(WEIGHTS_INT8, out, ld, m, b, x, row, rows);
}

// Activations of a thread, ready to be multiplied: R rows of `row` bytes, zero beyond the inputs.
typedef struct {
    char *x;
    size_t row;
    float *scale;   // (R) int8
    float *normed;  // (R, stride) room for a layer norm's output
} Operand;

// Each row as the kind of weights needs it: f32 as it stands, or bytes with the row's largest number at 127.
static void operand_set(Operand *o, const float *x, int ld, int rows, int K, WeightKind kind, char *bytes) {
    o->x = kind == WEIGHTS_INT8 ? bytes : (char *)x;
    o->row = kind == WEIGHTS_INT8 ? (size_t)round_up(K, 64) : ld * sizeof(float);
    for (int r = 0; r < rows && kind == WEIGHTS_INT8; r++) {
        const float *from = x + (size_t)r * ld;
        uint8_t *to = (uint8_t *)bytes + r * o->row;
        float largest = 0;
#pragma omp simd reduction(max : largest)
        for (int k = 0; k < K; k++) largest = fabsf(from[k]) > largest ? fabsf(from[k]) : largest;
        float inverse = largest > 0 ? 127 / largest : 0;
        o->scale[r] = largest / 127;
#pragma omp simd
        for (int k = 0; k < K; k++) to[k] = (uint8_t)((int)rintf(from[k] * inverse) + ACTIVATION_OFFSET);
        memset(to + K, 0, o->row - K);
    }
}

// This thread's part of out (R, ld) = x w' + bias, or out += with add; then a GELU. Called by all threads of
// a team, who own ranges of outputs and meet at the end. raw (R, raw_ld) is room for the sums.
static void linear_rows(float *out, int ld, float *raw, int raw_ld, const Operand *x, const Matrix *m,
                        const float *bias, int rows, int add, int with_gelu) {
    int blocks = round_up(m->N, VEC) / VEC, threads = omp_get_num_threads(), t = omp_get_thread_num();
    int first = (int)((long)blocks * t / threads), last = (int)((long)blocks * (t + 1) / threads);
    for (int b = first; b < last; b++)
        (m->kind == WEIGHTS_F32 ? product_f32 : m->kind == WEIGHTS_BF16 ? product_bf16 : product_int8)
            (raw, raw_ld, m, b, x->x, x->row, rows);
    int n0 = first * VEC, n1 = MIN(last * VEC, m->N);
    for (int r = 0; r < rows; r++) {
        float *o = out + (size_t)r * ld, *sums = raw + (size_t)r * raw_ld;
        if (m->kind == WEIGHTS_INT8) {
            int32_t *integers = (int32_t *)sums;
            float scale = x->scale[r];
            for (int n = n0; n < n1; n++) {
                int32_t sum = integers[n] - (ACTIVATION_OFFSET ? m->offset[n] : 0);
                float value = (float)sum * (m->scale[n] * scale);
                memcpy(&sums[n], &value, sizeof value);
            }
        }
        for (int n = n0; n < n1 && bias; n++) sums[n] += bias[n];
        if (add)
            for (int n = n0; n < n1; n++) o[n] += sums[n];
        else if (with_gelu) {
#pragma omp simd
            for (int n = n0; n < n1; n++) o[n] = gelu(sums[n]);
        } else if (o != sums) memcpy(o + n0, sums + n0, (size_t)MAX(n1 - n0, 0) * sizeof(float));
    }
#pragma omp barrier
}

// ============================================================================================================
// 2  The decoder

/* A pass takes R rows that form a tree. A row is a token, or a prompt token, that stands after its parent: an
earlier row, or the last token in the cache. It sees the cache, its ancestors and itself; its key and value go
into the slots behind the cache. Logits are made for groups of neighbouring rows, whose last hidden states are
averaged first: copies of a prompt token, for the mean of logits is the logits of the mean. */
#define MAX_ROWS 64

typedef struct {
    int rows, outputs;
    int token[MAX_ROWS];                             // a token, or ~i: embedding i of the prompts
    int parent[MAX_ROWS];                            // a row, or -1
    int depth[MAX_ROWS];                             // position - tokens in the cache
    int first[MAX_ROWS], count[MAX_ROWS];            // rows of each output
    int head[MAX_ROWS];                              // a head that the output goes through, or -1
} Batch;

// Appends a row and returns its number.
static int batch_add(Batch *b, int token, int parent) {
    if (b->rows == MAX_ROWS) die("a pass has more than %d rows", MAX_ROWS);
    b->token[b->rows] = token;
    b->parent[b->rows] = parent;
    b->depth[b->rows] = parent < 0 ? 0 : b->depth[parent] + 1;
    return b->rows++;
}

static int batch_output(Batch *b, int first, int count, int head) {
    if (b->outputs == MAX_ROWS) die("a pass has more than %d outputs", MAX_ROWS);
    b->first[b->outputs] = first, b->count[b->outputs] = count, b->head[b->outputs] = head;
    return b->outputs++;
}

typedef struct {
    GPT2Config config;
    WeightKind kind;
    float *small_memory;
    ParameterTensors small;                       // wpe, biases, layer norms; the matrices' pointers are NULL
    Matrix wte, *qkv, *attproj, *fc, *fcproj;     // (V,C), and for each layer (3C,C), (C,C), (4C,C), (C,4C)
    float *prompts;                               // (n,copies,C) embeddings of prompt tokens; not owned
    Matrix *heads;                                // (n) of (C,C): chapter 4's heads; not owned
    float *heads_bias;                            // (n,C)
    int stride, wide;                             // floats between rows of C, and of 4C
    int head_stride, capacity;                    // of a value in the cache; slots
    float *keys, *values;                         // (L,NH,HS,capacity), (L,NH,capacity,head_stride)
    int past;                                     // tokens in the cache
    float *residual, *atty, *raw, *hidden, *fch;  // (MAX_ROWS, stride or wide)
    float *logits;                                // (MAX_ROWS, logits_stride)
    int logits_stride;
    struct Scratch { float *normed, *scores; char *bytes; Operand operand; } *scratch; // of each thread
    int threads;
} Decoder;

// The bytes of weights that a pass streams.
static size_t decoder_bytes(const Decoder *d) {
    size_t sum = matrix_bytes(&d->wte);
    for (int l = 0; l < 4 * d->config.num_layers; l++) sum += matrix_bytes(&d->qkv[l]);
    return sum;
}

static void decoder_init(Decoder *d, const GPT2 *m, WeightKind kind) {
    GPT2Config g = m->config;
    int C = g.channels, L = g.num_layers;
    *d = (Decoder){.config = g, .kind = kind, .stride = round_up(C, 64), .wide = round_up(4 * C, 64)};
    size_t small = 0;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        if (!t.cols || i == 1) small += tensor_size(t);
    }
    float *to = d->small_memory = allocate_floats(small), *const *from = (float *const *)&m->params;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        if (t.cols && i != 1) continue;
        ((float **)&d->small)[i] = memcpy(to, from[i], tensor_size(t) * sizeof(float));
        to += tensor_size(t);
    }
    d->wte = matrix_pack(m->params.wte, g.vocab_size, C, kind);
    d->qkv = allocate(4 * L, sizeof(Matrix)), d->attproj = d->qkv + L, d->fc = d->qkv + 2 * L,
    d->fcproj = d->qkv + 3 * L;
    for (int l = 0; l < L; l++) {
        size_t w = (size_t)l * C * C;
        d->qkv[l] = matrix_pack(m->params.qkvw + 3 * w, 3 * C, C, kind);
        d->attproj[l] = matrix_pack(m->params.attprojw + w, C, C, kind);
        d->fc[l] = matrix_pack(m->params.fcw + 4 * w, 4 * C, C, kind);
        d->fcproj[l] = matrix_pack(m->params.fcprojw + 4 * w, C, 4 * C, kind);
    }
    int HS = C / g.num_heads;
    d->head_stride = round_up(HS, VEC);
    d->capacity = round_up(g.max_seq_len + MAX_ROWS, 4 * VEC) + 16; // no power of two: keys would share sets
    d->keys = allocate_floats((size_t)L * C * d->capacity + 4 * VEC);
    d->values = allocate_floats((size_t)L * g.num_heads * d->capacity * d->head_stride);
    d->residual = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->atty = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->hidden = allocate_floats((size_t)(MAX_ROWS + 4) * d->stride);
    d->raw = allocate_floats((size_t)MAX_ROWS * d->wide);
    d->fch = allocate_floats((size_t)MAX_ROWS * d->wide);
    d->logits_stride = round_up(g.vocab_size, 64);
    d->logits = allocate_floats((size_t)MAX_ROWS * d->logits_stride);
    d->threads = (int)MIN((size_t)omp_get_max_threads(), 1 + decoder_bytes(d) / (4 << 20)); // each with work
    d->scratch = allocate(d->threads, sizeof *d->scratch);
    for (int t = 0; t < d->threads; t++) {
        d->scratch[t].normed = allocate_floats((size_t)MAX_ROWS * d->stride);
        d->scratch[t].scores = allocate_floats(d->capacity + 4 * VEC);
        d->scratch[t].bytes = allocate((size_t)MAX_ROWS * d->wide, 1);
        d->scratch[t].operand.scale = allocate_floats(MAX_ROWS);
    }
}

static void decoder_free(Decoder *d) {
    for (int l = 0; l < 4 * d->config.num_layers; l++) matrix_free(&d->qkv[l]);
    matrix_free(&d->wte);
    for (int t = 0; t < d->threads; t++)
        free(d->scratch[t].normed), free(d->scratch[t].scores), free(d->scratch[t].bytes),
            free(d->scratch[t].operand.scale);
    void *owned[] = {d->small_memory, d->qkv, d->keys, d->values, d->residual, d->atty,
                     d->hidden,       d->raw, d->fch,  d->logits, d->scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    memset(d, 0, sizeof *d);
}

// out = the layer norm of x (C); in place, too.
static void normalize_row(float *out, const float *x, const float *weight, const float *bias, int C) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += x[c];
    float mean = sum / (float)C;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (x[c] - mean) * (x[c] - mean);
    float scale = 1.0f / sqrtf(squares / (float)C + 1e-5f);
    for (int c = 0; c < C; c++) out[c] = (x[c] - mean) * scale * weight[c] + bias[c];
}

// This thread's operand: the layer norm of x, or x itself without weights. Every thread makes all of it for
// itself: cheaper than to wait for one another.
static const Operand *prepare_operand(Decoder *d, const float *x, int ld, int rows, int K,
                                      const float *weight, const float *bias) {
    struct Scratch *s = &d->scratch[omp_get_thread_num()];
    if (weight)
        for (int r = 0; r < rows; r++)
            normalize_row(s->normed + (size_t)r * d->stride, x + (size_t)r * ld, weight, bias, K);
    operand_set(&s->operand, weight ? s->normed : x, weight ? d->stride : ld, rows, K, d->kind, s->bytes);
    return &s->operand;
}

// out (HS) = softmax(q k' / sqrt(HS)) v for a row that sees `past` tokens and then the slots
// ancestors[0..count), the last one its own. keys (HS,capacity), values (capacity,head_stride). Scores stand
// in the order of positions before they are summed, so it does not matter in which slots the ancestors are.
static void attend(float *out, const float *q, const float *keys, const float *values, int capacity, int HS,
                   int head_stride, int past, const int *ancestors, int count, float *scores) {
    int n = past + count;
    for (int j = 0; j <= ancestors[count - 1]; j += 4 * VEC) {
        vec s[4] = {{0}};
        for (int c = 0; c < HS; c++)
            for (int i = 0; i < 4; i++)
                s[i] += q[c] * *(const vec_u *)(keys + (size_t)c * capacity + j + i * VEC);
        for (int i = 0; i < 4; i++) *(vec_u *)(scores + j + i * VEC) = s[i];
    }
    for (int i = 0; i < count; i++) scores[past + i] = scores[ancestors[i]]; // ancestors[i] >= past + i
    float max = -INFINITY, sum = 0, scale = 1.0f / sqrtf((float)HS);
#pragma omp simd reduction(max : max)
    for (int j = 0; j < n; j++) max = scores[j] > max ? scores[j] : max;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < n; j++) sum += scores[j] = exp_f32((scores[j] - max) * scale);
    for (int c = 0; c < HS; c += 4 * VEC) {
        vec o[4] = {{0}};
        int vectors = MIN(4, (head_stride - c) / VEC);
        for (int j = 0; j < n; j++) {
            const float *v = values + (size_t)(j < past ? j : ancestors[j - past]) * head_stride + c;
            if (vectors == 4)
                for (int i = 0; i < 4; i++) o[i] += scores[j] * *(const vec *)(v + i * VEC);
            else
                for (int i = 0; i < vectors; i++) o[i] += scores[j] * *(const vec *)(v + i * VEC);
        }
        for (int k = c; k < MIN(HS, c + 4 * VEC); k++) out[k] = o[(k - c) / VEC][(k - c) % VEC] / sum;
    }
}

// This thread's heads: keys and values of the rows go into the cache, then every row attends. raw holds q, k,
// v.
static void attention_rows(Decoder *d, const Batch *b, int layer, int (*ancestors)[MAX_ROWS]) {
    int C = d->config.channels, NH = d->config.num_heads, HS = C / NH;
#pragma omp for schedule(static)
    for (int h = 0; h < NH; h++) {
        float *keys = d->keys + (size_t)(layer * NH + h) * HS * d->capacity;
        float *values = d->values + (size_t)(layer * NH + h) * d->capacity * d->head_stride;
        for (int r = 0; r < b->rows; r++) {
            const float *k = d->raw + (size_t)r * d->wide + C + h * HS;
            for (int c = 0; c < HS; c++) keys[(size_t)c * d->capacity + d->past + r] = k[c];
            memcpy(values + (size_t)(d->past + r) * d->head_stride, k + C, HS * sizeof(float));
        }
        for (int r = 0; r < b->rows; r++)
            attend(d->atty + (size_t)r * d->stride + h * HS, d->raw + (size_t)r * d->wide + h * HS, keys,
                   values, d->capacity, HS, d->head_stride, d->past, ancestors[r], b->depth[r] + 1,
                   d->scratch[omp_get_thread_num()].scores);
    }
}

// The rows' hidden states into d->residual, their keys and values into the cache, the outputs' logits into
// d->logits.
static void decoder_pass(Decoder *d, const Batch *b) {
    GPT2Config g = d->config;
    ParameterTensors p = d->small;
    int C = g.channels, rows = b->rows;
    static int ancestors[MAX_ROWS][MAX_ROWS]; // slots of each row's ancestors, from the first to itself
    for (int r = 0; r < rows; r++) {
        if (b->parent[r] >= 0) memcpy(ancestors[r], ancestors[b->parent[r]], b->depth[r] * sizeof(int));
        ancestors[r][b->depth[r]] = d->past + r;
    }
#pragma omp parallel num_threads(d->threads)
    {
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) {
            float *x = d->residual + (size_t)r * d->stride,
                  *position = p.wpe + (size_t)(d->past + b->depth[r]) * C;
            if (b->token[r] >= 0) matrix_row(&d->wte, b->token[r], x);
            else memcpy(x, d->prompts + (size_t)~b->token[r] * C, C * sizeof(float));
            for (int c = 0; c < C; c++) x[c] += position[c];
        }
        for (int l = 0; l < g.num_layers; l++) {
            const Operand *x =
                prepare_operand(d, d->residual, d->stride, rows, C, p.ln1w + l * C, p.ln1b + l * C);
            linear_rows(d->raw, d->wide, d->raw, d->wide, x, &d->qkv[l], p.qkvb + l * 3 * C, rows, 0, 0);
            attention_rows(d, b, l, ancestors);
            x = prepare_operand(d, d->atty, d->stride, rows, C, NULL, NULL);
            linear_rows(d->residual, d->stride, d->hidden, d->stride, x, &d->attproj[l], p.attprojb + l * C,
                        rows, 1, 0);
            x = prepare_operand(d, d->residual, d->stride, rows, C, p.ln2w + l * C, p.ln2b + l * C);
            linear_rows(d->fch, d->wide, d->raw, d->wide, x, &d->fc[l], p.fcb + l * 4 * C, rows, 0, 1);
            x = prepare_operand(d, d->fch, d->wide, rows, 4 * C, NULL, NULL);
            linear_rows(d->residual, d->stride, d->hidden, d->stride, x, &d->fcproj[l], p.fcprojb + l * C,
                        rows, 1, 0);
        }
#pragma omp for schedule(static)
        for (int o = 0; o < b->outputs; o++) {
            float *h = d->hidden + (size_t)o * d->stride;
            memset(h, 0, C * sizeof(float));
            for (int r = b->first[o]; r < b->first[o] + b->count[o]; r++) {
                float normed[C];
                normalize_row(normed, d->residual + (size_t)r * d->stride, p.lnfw, p.lnfb, C);
                for (int c = 0; c < C; c++) h[c] += normed[c] / (float)b->count[o];
            }
        }
        for (int o = 0, end; o < b->outputs;
             o = end) { // hidden += silu(W hidden + bias), for neighbours of one head
            for (end = o + 1; end < b->outputs && b->head[end] == b->head[o];) end++;
            if (b->head[o] < 0) continue;
            float *h = d->hidden + (size_t)o * d->stride;
            const Operand *x = prepare_operand(d, h, d->stride, end - o, C, NULL, NULL);
            linear_rows(d->fch, d->wide, d->raw, d->wide, x, &d->heads[b->head[o]],
                        d->heads_bias + b->head[o] * C, end - o, 0, 0);
#pragma omp for schedule(static)
            for (int r = 0; r < end - o; r++)
                for (int c = 0; c < C; c++) {
                    float z = d->fch[(size_t)r * d->wide + c];
                    h[(size_t)r * d->stride + c] += z / (1.0f + exp_f32(-z));
                }
        }
        if (b->outputs) {
            const Operand *x = prepare_operand(d, d->hidden, d->stride, b->outputs, C, NULL, NULL);
            linear_rows(d->logits, d->logits_stride, d->logits, d->logits_stride, x, &d->wte, NULL,
                        b->outputs, 0, 0);
        }
    }
}

// After a pass: the rows path[0..n), each the parent of the next, become part of the text; all others are
// forgotten.
static void decoder_accept(Decoder *d, const int *path, int n) {
    int NH = d->config.num_heads, HS = d->config.channels / NH;
    for (int i = 0; i < n; i++) {
        int from = d->past + path[i],
            to = d->past + i; // from >= to: nothing that is still needed is overwritten
        if (from == to) continue;
        for (int lh = 0; lh < d->config.num_layers * NH; lh++) {
            float *keys = d->keys + (size_t)lh * HS * d->capacity,
                  *values = d->values + (size_t)lh * d->capacity * d->head_stride;
            for (int c = 0; c < HS; c++)
                keys[(size_t)c * d->capacity + to] = keys[(size_t)c * d->capacity + from];
            memcpy(values + (size_t)to * d->head_stride, values + (size_t)from * d->head_stride,
                   HS * sizeof(float));
        }
    }
    d->past += n;
}

// Brings tokens into the cache, in passes of MAX_ROWS rows: from some 16 rows on arithmetic bounds a pass,
// and larger ones would gain nothing.
static void decoder_prefill(Decoder *d, const uint16_t *tokens, int n) {
    for (int first = 0; first < n; first += MAX_ROWS) {
        Batch b = {0};
        for (int i = first; i < MIN(n, first + MAX_ROWS); i++) batch_add(&b, tokens[i], b.rows - 1);
        decoder_pass(d, &b);
        d->past += b.rows;
    }
}

// ============================================================================================================
// 3  Choosing tokens, writing text

static int argmax(const float *x, int n) {
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    int i = 0;
    while (i < n - 1 && x[i] != max) i++; // the first of equals
    return i;
}

// ids = the k largest of x (n), in descending order; of equals the first comes first.
static void top_tokens(const float *x, int n, int k, int *ids) {
    int count = 0;
    for (int first = 0; first < n; first += 64) {
        float max = -INFINITY;
        int end = MIN(n, first + 64);
#pragma omp simd reduction(max : max)
        for (int i = first; i < end; i++) max = x[i] > max ? x[i] : max;
        if (count == k && !(max > x[ids[k - 1]])) continue;
        for (int i = first; i < end; i++) {
            if (count == k && !(x[i] > x[ids[k - 1]])) continue;
            int at = count < k ? count++ : k - 1;
            for (; at > 0 && x[i] > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
            ids[at] = i;
        }
    }
}

typedef struct {
    double temperature; // 0: the likeliest token, always
    int top_k;          // 0: all
    double top_p;       // 1: all
    int typical;        // accept what is typical (see typical_child), not what would have been drawn
    uint64_t seed;
} Sampling;

typedef struct { float p; int id; } Candidate;
static int by_probability(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->id - y->id;
}

// Draws the token number `index` of a text. The number alone decides what is drawn from given logits, so that
// a text does not depend on how many tokens each pass has made.
static int choose(const Sampling *s, const float *logits, int V, uint64_t index) {
    if (s->temperature == 0) return argmax(logits, V);
    double u = random_uniform(s->seed + 11, index), total = 0, kept = 0;
    int k = s->top_k ? MIN(s->top_k, V) : 0, n = 0;
    if (!k && s->top_p >= 1) return draw((float *)logits, V, (float)s->temperature, u);
    Candidate *c = resize(NULL, (size_t)(k ? k : V) * sizeof *c);
    float lse = log_sum_exp(logits, V, (float)s->temperature);
    if (k) {
        int *ids = resize(NULL, (size_t)k * sizeof *ids);
        top_tokens(logits, V, k, ids);
        for (; n < k; n++) c[n] = (Candidate){exp_f32(logits[ids[n]] / (float)s->temperature - lse), ids[n]};
        free(ids);
    } else { // tokens below this, all together, are not worth 1 - top_p: none of them is in the nucleus
        float least = (float)((1 - s->top_p) / V);
        for (int i = 0; i < V; i++) {
            float p = exp_f32(logits[i] / (float)s->temperature - lse);
            if (p >= least) c[n++] = (Candidate){p, i};
        }
        qsort(c, n, sizeof *c, by_probability);
    }
    for (int i = 0; i < n && k; i++) total += c[i].p;
    if (!k) total = 1;
    int nucleus = 0;
    while (nucleus < n && (nucleus == 0 || kept < s->top_p * total)) kept += c[nucleus++].p;
    int at = 0;
    for (u *= kept; at < nucleus - 1 && (u -= c[at].p) >= 0;) at++;
    int id = c[at].id;
    free(c);
    return id;
}

// Writes the bytes of tokens as they come; bytes that end within a UTF-8 character wait for the rest of it.
typedef struct {
    const Tokenizer *tokenizer;
    FILE *file;
    char held[4];
    int n;
} Writer;

static void writer_put(Writer *w, int token) {
    size_t length = 0;
    const char *bytes =
        token < w->tokenizer->vocab_size ? tokenizer_token(w->tokenizer, token, &length) : NULL;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if ((c & 0xC0) != 0x80) fwrite(w->held, 1, w->n, w->file), w->n = 0; // a new character
        w->held[w->n++] = (char)c;
        unsigned char lead = (unsigned char)w->held[0];
        int needed = lead > 0xF4 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1;
        if (w->n >= needed) fwrite(w->held, 1, w->n, w->file), w->n = 0;
    }
    fflush(w->file);
}

static void writer_end(Writer *w) { fwrite(w->held, 1, w->n, w->file), w->n = 0, fflush(w->file); }

// ============================================================================================================
// 4  Guesses; generation

/* A pass verifies a tree. Its root is the newest token of the text, whose logits nobody has seen yet; a node
is a guess of what follows its parent. A node may carry a chain of prompt tokens P, whose outputs guess the
tokens after the next one:

      text ... root --+-- "the" --+-- "king"     The logits of a node choose the next token; if a child is
                P P P |   P P     +-- "lord"     that token, it is accepted, and its logits choose the next
                      |                 P        one. The chain at the last accepted node guesses the nodes
                      +-- "a" P                  of the next tree.

Which nodes and chains there are, a template says; one for each state, the number of distances guessed. */
#define MAX_PROMPTS 8
#define RANKS 10 // guesses kept for each distance

typedef struct {
    int nodes, rows;         // node 0 is the root
    int parent[MAX_ROWS];    // comes before its children
    int rank[MAX_ROWS];      // which of the guesses for this distance
    int depth[MAX_ROWS];
    int chain[MAX_ROWS];     // prompt tokens behind the node
} Template;

typedef struct {
    int nodes, rows, most; // rows used, and that there may be
    int token[MAX_ROWS], parent[MAX_ROWS], depth[MAX_ROWS], chain[MAX_ROWS];
} Tree;

typedef enum { GUESS_NOTHING, GUESS_PROMPTS, GUESS_HEADS } GuessKind;

typedef struct Generator {
    Decoder *decoder;
    Sampling sampling;
    uint16_t *text;          // all tokens, prompt first
    int length, capacity;
    int base;                // the cache holds text[base ..)
    uint64_t drawn;          // tokens made
    GuessKind kind;
    int n, copies;           // prompt tokens or heads
    int state;               // distances guessed for the next pass
    int guess[MAX_PROMPTS][RANKS];
    Template templates[MAX_PROMPTS + 1];
    int ngram;               // also look for the last tokens in the text
    struct Generator *draft; // also let this model propose
    const double *latency;   // (MAX_ROWS) seconds of a pass of i+1 rows, for the number of proposals
    double draft_cost;       // seconds a proposed token
    double accepted, proposed; // of proposals, forgetting slowly
    long passes, rows;
} Generator;

static void generator_text(Generator *g, const uint16_t *tokens, int n) {
    if (n > g->capacity) g->text = resize(g->text, (size_t)(g->capacity = 2 * n + 1024) * sizeof *g->text);
    memcpy(g->text, tokens, n * sizeof *tokens);
    g->length = n, g->base = 0, g->state = 0, g->decoder->past = 0;
}

static void generator_append(Generator *g, int token) {
    if (g->length == g->capacity)
        g->text = resize(g->text, (size_t)(g->capacity = 2 * g->length + 1024) * sizeof *g->text);
    g->text[g->length++] = (uint16_t)token;
}

// Makes the cache hold the text but for its last few tokens. When the context is full, its last half is kept
// and computed anew from position 0; a pass that makes several tokens never goes past that point, so the text
// slides at the same places however it is made.
static void generator_prefill(Generator *g) {
    Decoder *d = g->decoder;
    int context = d->config.max_seq_len;
    if (g->length - 1 - g->base >= context) g->base = g->length - 1 - context / 2, d->past = 0;
    int missing = g->length - 1 - g->base - d->past;
    if (missing > 8) decoder_prefill(d, g->text + g->base + d->past, missing);
}

// The child of `parent` that is this token; it is added where there is none and room is left. -1: no room.
static int tree_add(Tree *t, int parent, int token, int chain, int copies) {
    for (int v = 1; v < t->nodes; v++)
        if (t->parent[v] == parent && t->token[v] == token) return v;
    if (t->rows + 1 + chain * copies > t->most) return -1;
    int v = t->nodes++;
    t->token[v] = token, t->parent[v] = parent, t->chain[v] = chain,
    t->depth[v] = v ? t->depth[parent] + 1 : 0;
    t->rows += 1 + chain * copies;
    return v;
}

// What followed the last `size` tokens when they stood in the text before, at the latest such place; 0:
// nowhere.
static int find_ngram(const uint16_t *text, int length, int size) {
    for (int at = length - size - 1; at >= 0; at--)
        if (!memcmp(text + at, text + length - size, size * sizeof *text)) return at + size;
    return 0;
}

// How many proposals pay: the g with the most expected tokens for the time, where each is right with the
// measured probability if those before it are. It begins high: what is never tried is never learned.
static int best_proposals(const Generator *g, int rows) {
    double a = (g->accepted + 3) / (g->proposed + 4), expected = 1, power = 1, best = 0;
    int length = 0;
    if (!g->latency) return 4;
    for (int n = 0; n <= 16 && rows + n <= MAX_ROWS - 8; n++, expected += power *= a) {
        double rate = expected / (g->latency[rows + n - 1] + (g->draft ? n * g->draft_cost : 0));
        if (rate > best) best = rate, length = n;
    }
    return MAX(length, g->passes % 16 == 0); // now and then one anyway, to learn what it would be worth
}

static int generator_step(Generator *g, int limit);

// Lets the draft model go on from our text, and returns its tokens. What it had written of its own is taken
// back to where the texts part.
static int propose_by_draft(Generator *g, int count, const uint16_t **tokens) {
    Generator *s = g->draft;
    int most = MIN(s->length, g->length), same = MIN(most, s->base), added;
    double start = now();
    while (same < most && s->text[same] == g->text[same]) same++;
    added = same < s->length ? s->state : MIN(s->state, g->length - same); // distances: void, or past now
    s->state -= added;
    memmove(s->guess, s->guess + added, s->state * sizeof *s->guess);
    if (s->base > same) s->base = 0, s->decoder->past = 0;
    s->decoder->past = MIN(s->decoder->past, MAX(0, same - s->base));
    s->length = same;
    while (s->length < g->length) generator_append(s, g->text[s->length]);
    s->decoder->past = MIN(s->decoder->past, s->length - 1 - s->base);
    while (s->length < g->length + count) generator_step(s, g->length + count - s->length);
    *tokens = s->text + g->length;
    double cost = (now() - start) / count;
    g->draft_cost = g->draft_cost > 0 ? 0.9 * g->draft_cost + 0.1 * cost : cost;
    return count;
}

// Guesses that come as a text, from the draft or from an n-gram, join the tree as a path from the root.
static int add_proposals(Generator *g, Tree *t, int room) {
    const uint16_t *tokens = NULL;
    int count = MIN(best_proposals(g, t->rows), room), at = 0;
    if (count < 1) return 0;
    if (g->draft) count = propose_by_draft(g, count, &tokens);
    else {
        int found = 0;
        for (int size = 4; size >= 2 && !found && size < g->length; size--)
            found = find_ngram(g->text, g->length, size);
        if (!found) return 0;
        tokens = g->text + found;
        count = MIN(count, g->length - found);
    }
    for (int i = 0; i < count && at >= 0; i++)
        at = tree_add(t, at, tokens[i], i == count - 1 && g->kind == GUESS_PROMPTS ? g->n : 0, g->copies);
    return count;
}

// Typical acceptance (Medusa, arXiv 2401.10774): the likeliest child whose probability is above
// min(0.09, 0.3 exp(-entropy)). It does not keep the model's distribution.
static int typical_child(const Generator *g, const Tree *t, int v, const float *logits) {
    int V = g->decoder->config.vocab_size, best = -1;
    float temperature = g->sampling.temperature > 0 ? (float)g->sampling.temperature : 1,
          lse = log_sum_exp(logits, V, temperature);
    double entropy = 0, most = 0;
    for (int i = 0; i < V; i++) {
        double log_p = logits[i] / temperature - lse;
        entropy -= exp(log_p) * log_p;
    }
    for (int w = v + 1; w < t->nodes; w++) {
        if (t->parent[w] != v) continue;
        double p = exp(logits[t->token[w]] / temperature - lse);
        if (p > most && p > fmin(0.09, 0.3 * exp(-entropy))) most = p, best = w;
    }
    return best;
}

// One pass: appends at least one token to the text, at most `limit`, and returns how many.
static int generator_step(Generator *g, int limit) {
    Decoder *d = g->decoder;
    int V = d->config.vocab_size;
    generator_prefill(g);
    int prefix = g->length - g->base - d->past; // tokens that the cache lacks; the last one is the root
    int room = d->config.max_seq_len - d->past - prefix;  // positions left behind the root
    // the text before the root has rows, too; a node with heads has outputs for each
    Tree t = {.most = g->kind == GUESS_HEADS ? MAX_ROWS / (1 + g->n) : MAX_ROWS - 8};
    const Template *shape = &g->templates[g->state];
    int node_of[MAX_ROWS];
    tree_add(&t, -1, g->text[g->length - 1], g->kind == GUESS_PROMPTS ? shape->chain[0] : 0, g->copies);
    node_of[0] = 0;
    for (int v = 1; v < shape->nodes && g->kind; v++) {
        int parent = node_of[shape->parent[v]], depth = shape->depth[v];
        node_of[v] = -1;
        if (parent < 0 || depth < 1 || depth > MIN(room, limit - 1)) continue; // beyond what can be accepted
        int chain = g->kind == GUESS_PROMPTS ? shape->chain[v] : 0;
        node_of[v] = tree_add(&t, parent, g->guess[depth - 1][shape->rank[v]], chain, g->copies);
    }
    int proposals = g->draft || g->ngram ? add_proposals(g, &t, MIN(room, limit - 1)) : 0;

    Batch b = {0};
    int row[MAX_ROWS], output[MAX_ROWS][MAX_PROMPTS];
    for (int i = 0; i < prefix; i++) row[0] = batch_add(&b, g->text[g->base + d->past + i], i - 1);
    for (int v = 0; v < t.nodes; v++) {
        if (v) row[v] = batch_add(&b, t.token[v], row[t.parent[v]]);
        batch_output(&b, row[v], 1, -1);
    }
    for (int v = 0; v < t.nodes && g->kind == GUESS_PROMPTS; v++) {
        int behind = room - t.depth[v];
        for (int i = 0, first = row[v]; i < (t.chain[v] = MIN(t.chain[v], behind)); i++) {
            int above = first;
            first = b.rows;
            for (int j = 0; j < g->copies; j++) batch_add(&b, ~(i * g->copies + j), i ? above + j : row[v]);
            output[v][i] = batch_output(&b, first, g->copies, -1);
        }
    }
    for (int i = 0; i < g->n && g->kind == GUESS_HEADS; i++)
        for (int v = 0; v < t.nodes; v++) output[v][i] = batch_output(&b, row[v], 1, i);
    decoder_pass(d, &b);
    g->passes++, g->rows += b.rows;

    int path[MAX_ROWS], n = 0, v = 0, made = 0;
    for (; n < prefix; n++) path[n] = n;
    for (;;) {
        const float *logits = d->logits + (size_t)v * d->logits_stride;
        int child = g->sampling.typical ? typical_child(g, &t, v, logits) : -1;
        int token = child >= 0 ? t.token[child] : choose(&g->sampling, logits, V, g->drawn);
        for (int w = v + 1; w < t.nodes && child < 0; w++)
            if (t.parent[w] == v && t.token[w] == token) child = w;
        generator_append(g, token);
        g->drawn++, made++;
        if (child < 0 || made == limit) break;
        v = child;
        path[n++] = row[v];
    }
    decoder_accept(d, path, n);
    if (proposals) { // tried until the first that failed
        double keep = 0.97;
        g->accepted = g->accepted * keep + MIN(made - 1, proposals);
        g->proposed = g->proposed * keep + MIN(made, proposals);
    }
    g->state = g->kind == GUESS_HEADS ? g->n : g->kind == GUESS_PROMPTS ? t.chain[v] : 0;
    for (int i = 0; i < g->state; i++) {
        top_tokens(d->logits + (size_t)output[v][i] * d->logits_stride, V, MIN(RANKS, V), g->guess[i]);
        for (int r = V; r < RANKS; r++) g->guess[i][r] = g->guess[i][0];
    }
    return made;
}

// ============================================================================================================
// 5  The best sparse tree

/* Given: accuracy a[d][r], the probability that the guess of rank r for distance d+1 is right if the guesses
before it were. A node's probability is the product along its path. With budget s rows, which tree should each
state k have?

The states form a Markov decision process: a tree of state k brings 1 + sum of its nodes' probabilities
tokens, and leads to state m if the last accepted node carries m prompt tokens. The long-run tokens a pass,
tau(s), are largest if

    tau + h[k] = max over trees of (tokens + sum over nodes of P(node is the last accepted) h[its chain])

with h[0] = 0 (Howard 1960). For given h the best tree is found exactly, for all budgets at once, by a
knapsack over ranks at each depth: with G(d, b) the best value behind a right node of depth d whose subtree
has b rows,

    G(d, b) = max over chains m of  h[m] + W(b - 1 - m copies),
    W(b) = max over rows b_r for each rank, at most b in all, of  sum_r a[d][r] (1 + G(d+1, b_r) - h[m])

for if the child of rank r is right, the node is not the last one and h[m] is lost. h is found by value
iteration. The authors enumerate (arXiv 2405.18628, section 4); this is the optimum, in a few milliseconds. */
typedef struct {
    int n, copies;                          // copies = rows of a prompt token: 0 for heads, which take none
    double accuracy[MAX_PROMPTS][RANKS];
} TreeModel;

typedef struct {
    double value[MAX_PROMPTS + 1][MAX_ROWS + 1];            // G(d, b)
    int8_t chain[MAX_PROMPTS + 1][MAX_ROWS + 1];            // the m that attains it
    int8_t given[MAX_PROMPTS + 1][MAX_PROMPTS + 1][RANKS][MAX_ROWS + 1]; // b_r: depth, chain, r, rows
} TreeTable;

// Fills the table for state k and budgets up to s.
static void fill_table(TreeTable *t, const TreeModel *model, int k, int s, const double *h) {
    for (int d = k; d >= 0; d--) {
        for (int b = 0; b <= s; b++) t->value[d][b] = -1;
        for (int m = 0; m <= model->n; m++) {
            double w[MAX_ROWS + 1] = {0};
            for (int r = 0; r < RANKS && d < k; r++)
                for (int b = s; b >= 0; b--) { // downwards: w[b - rows] is still that of the ranks before
                    double best = w[b];
                    int rows = 0;
                    for (int give = 1; give <= b; give++) {
                        double value =
                            w[b - give] + model->accuracy[d][r] * (1 + t->value[d + 1][give] - h[m]);
                        if (value > best + 1e-12) best = value, rows = give;
                    }
                    w[b] = best;
                    t->given[d][m][r][b] = (int8_t)rows;
                }
            for (int b = 1 + m * model->copies; b <= s; b++) {
                double value = h[m] + w[b - 1 - m * model->copies];
                if (value > t->value[d][b] + 1e-12) t->value[d][b] = value, t->chain[d][b] = (int8_t)m;
            }
        }
    }
}

// Appends the subtree that the table has for a node of depth d and b rows.
static void read_table(const TreeTable *t, const TreeModel *model, int k, int d, int b, int parent, int rank,
                       Template *out) {
    int v = out->nodes++, m = t->chain[d][b];
    out->parent[v] = parent, out->rank[v] = rank, out->depth[v] = d, out->chain[v] = m;
    out->rows += 1 + m * model->copies;
    b -= 1 + m * model->copies;
    for (int r = RANKS - 1; r >= 0 && d < k; r--) {
        int rows = t->given[d][m][r][b];
        if (rows) read_table(t, model, k, d + 1, rows, v, r, out);
        b -= rows;
    }
}

// The probability of each node and of being the last accepted one; returns the expected tokens of a pass.
static double tree_odds(const Template *t, const TreeModel *model, double *last) {
    double odds[MAX_ROWS], tokens = 0;
    for (int v = 0; v < t->nodes; v++) {
        odds[v] = v ? odds[t->parent[v]] * model->accuracy[t->depth[v] - 1][t->rank[v]] : 1;
        last[v] = odds[v];
        if (v) last[t->parent[v]] -= odds[v];
        tokens += odds[v];
    }
    return tokens;
}

// Tokens and seconds a pass in the long run, if state k uses trees[k]; seconds may be NULL where latency is.
static double long_run(const Template *trees, const TreeModel *model, const double *latency,
                       double *seconds) {
    int n = model->n;
    double share[MAX_PROMPTS + 1] = {1}, tokens[MAX_PROMPTS + 1], last[MAX_ROWS], tau = 0;
    double move[MAX_PROMPTS + 1][MAX_PROMPTS + 1] = {{0}};
    for (int k = 0; k <= n; k++) {
        tokens[k] = tree_odds(&trees[k], model, last);
        for (int v = 0; v < trees[k].nodes; v++) move[k][trees[k].chain[v]] += last[v];
    }
    for (int step = 0; step < 500; step++) { // half of it stays, so that cycles die out
        double next[MAX_PROMPTS + 1] = {0};
        for (int k = 0; k <= n; k++) {
            next[k] += 0.5 * share[k];
            for (int j = 0; j <= n; j++) next[j] += 0.5 * share[k] * move[k][j];
        }
        memcpy(share, next, sizeof share);
    }
    if (seconds) *seconds = 0;
    for (int k = 0; k <= n; k++) {
        tau += share[k] * tokens[k];
        if (seconds) *seconds += share[k] * latency[trees[k].rows - 1];
    }
    return tau;
}

// The best trees of at most s rows for states 0..n.
static void search_trees(const TreeModel *model, int s, Template *trees) {
    static TreeTable table;
    double h[MAX_PROMPTS + 1] = {0};
    for (int k = 0; k <= model->n; k++) h[k] = 0.5 * k;
    for (int step = 0; step < 100; step++) {
        double value[MAX_PROMPTS + 1], change = 0;
        for (int k = 0; k <= model->n; k++) {
            fill_table(&table, model, k, s, h);
            value[k] = table.value[0][s];
        }
        for (int k = 0; k <= model->n; k++) {
            double next = 0.5 * h[k] + 0.5 * (value[k] - value[0]);
            change = fmax(change, fabs(next - h[k]));
            h[k] = next;
        }
        if (change < 1e-6) break;
    }
    for (int k = 0; k <= model->n; k++) {
        fill_table(&table, model, k, s, h);
        trees[k] = (Template){0};
        read_table(&table, model, k, 0, s, -1, 0, &trees[k]);
    }
}

// The budget with the most tokens a second, for passes of `latency` seconds; heads have n and no chains, and
// every node of theirs has n+1 outputs. Returns tau; *speedup is predicted against one row a pass.
static double best_trees(const TreeModel *model, const double *latency, int most, Template *trees,
                         double *speedup) {
    double best = 0, tau = 0;
    for (int s = 1; s <= most; s += s < 16 ? 1 : s < 32 ? 2 : 4) {
        Template candidates[MAX_PROMPTS + 1];
        double seconds;
        search_trees(model, s, candidates);
        double tokens = long_run(candidates, model, latency, &seconds);
        if (tokens * latency[0] / seconds <= best * 1.001) continue; // of about equals, the smallest
        best = tokens * latency[0] / seconds, tau = tokens;
        memcpy(trees, candidates, sizeof candidates);
    }
    *speedup = best;
    return tau;
}

// Measures seconds of a pass of 1 to MAX_ROWS rows, all with an output, behind `past` tokens; between the
// measured sizes, the line through the neighbours.
static void measure_latency(Decoder *d, double *latency) {
    static const int sizes[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    int context = d->config.max_seq_len, saved = d->past, known = 0;
    double begin = now();
    d->past = context / 4;
    // all sizes in turns, so that what else the machine does hits them alike
    for (int round = -1; round < 2 || (round < 8 && now() - begin < 2); round++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            Batch b = {0};
            for (int r = 0; r < sizes[i]; r++) {
                batch_add(&b, r % d->config.vocab_size, r % MAX(1, context / 2) ? r - 1 : -1);
                batch_output(&b, r, 1, -1);
            }
            double start = now(), *at = &latency[sizes[i] - 1];
            decoder_pass(d, &b);
            double took = now() - start;
            *at = round <= 0 ? took : fmin(*at, took);
        }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) { // more rows never take less
        int s = sizes[i];
        if (known) latency[s - 1] = fmax(latency[s - 1], latency[known - 1]);
        for (int r = known + 1; known && r < s; r++)
            latency[r - 1] =
                latency[known - 1] + (latency[s - 1] - latency[known - 1]) * (r - known) / (s - known);
        known = s;
    }
    d->past = saved;
}

// ============================================================================================================
// 6  Training the prompt tokens

/* B texts of T tokens go through the model once, and with them, as further rows of the same matrices, the
prompt tokens of `cuts` random places of each text: rows B*T + ((b*cuts + c)*n + i)*copies + j. Prompt i of a
cut stands at position cut+1+i and sees the text up to the cut, and copy j of the prompts before it. Nothing
of the text sees a prompt.

    loss = sum_i 0.8^i / n  mean over cuts of KL(model at cut+1+i || prompt i),  i from 0  (arXiv 2405.18628)

The model's own distribution at cut+1+i is that of the token i+2 after the cut, whose guess is prompt i's.
Backward, only prompt rows have gradients, unless the model is trained too ("joint"); then text rows have them
as well, and those of the prompts flow into the keys and values of the text. */
typedef struct {
    GPT2 *m;
    int n, copies, cuts, B, T, heads; // heads: train n of them in place of prompt tokens (arXiv 2401.10774)
    int joint;
    float weight;                        // of the prompts' loss
    float *params, *grads;               // (n,copies,C), or heads (n,C,C) and then (n,C)
    int *cut;                            // (B,cuts)
    float *student, *teacher, *dstudent, *z; // (chunk,C)
    float *teacher_logits, *scratch;     // (chunk,V), (2C)
    int chunk;
    double kl;                           // of the last step, weighted
    double top1[MAX_PROMPTS], top5[MAX_PROMPTS]; // shares of cuts whose likeliest token is among the guesses
} PromptTrainer;

static size_t guesser_size(int heads, int n, int copies, int C) {
    return heads ? (size_t)n * (C * (size_t)C + C) : (size_t)n * copies * C;
}

// Of a text.
static int prompt_rows(const PromptTrainer *t) { return t->heads ? 0 : t->cuts * t->n * t->copies; }

static void trainer_allocate(PromptTrainer *t) {
    GPT2 *m = t->m;
    int C = m->config.channels;
    gpt2_allocate_activations(m, 1, t->B * (t->T + prompt_rows(t)), 1);
    if (!t->joint) free(m->grads_memory), m->grads_memory = NULL;
    t->cut = allocate((size_t)t->B * t->cuts, sizeof(int));
    t->chunk = MIN(m->logit_rows, t->B * t->cuts * t->n);
    float **buffers[] = {&t->student, &t->teacher, &t->dstudent, &t->z};
    for (int i = 0; i < 4; i++) *buffers[i] = allocate_floats((size_t)t->chunk * C);
    t->teacher_logits = allocate_floats((size_t)t->chunk * m->config.vocab_size);
    t->scratch = allocate_floats(2 * (size_t)C);
}

// What attention of the prompts of text b in a head works on: rows of q, k, v (3C apart) and of outputs (C
// apart).
typedef struct {
    const float *q, *k, *v, *own_k, *own_v; // own: keys and values of the prompt rows
    size_t out, lse, to_q, to_k;            // where outputs, lse, and gradients of own q and text k begin
} PromptHead;

static PromptHead prompt_head(const PromptTrainer *t, const float *qkv, int b, int h) {
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t);
    size_t row = (size_t)t->B * t->T + (size_t)b * P;
    PromptHead p = {
        .to_q = row * 3 * C + h * HS, .to_k = (size_t)b * t->T * 3 * C + C + h * HS, .out = row * C + h * HS};
    p.q = qkv + p.to_q, p.own_k = p.q + C, p.own_v = p.own_k + C, p.k = qkv + p.to_k, p.v = p.k + C;
    p.lse = (size_t)t->B * t->T * NH + ((size_t)b * NH + h) * P;
    return p;
}

static float dot(const float *a, const float *b, int n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Probabilities of a head's prompt rows: p (P,T) over the text, own (P,n) over the chain up to itself. lse
// (P) is written, or with again = 1 read.
static void prompt_probabilities(const PromptTrainer *t, const PromptHead *a, int b, float *lse, float *p,
                                 float *own, int again) {
    int C = t->m->config.channels, HS = C / t->m->config.num_heads, P = prompt_rows(t), T = t->T;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
    multiply(p, T, a->q, ld, 1, a->k, 1, ld, P, T, HS, plain);
    for (int r = 0; r < P; r++) {
        int i = r / t->copies % t->n, seen = t->cut[b * t->cuts + r / (t->n * t->copies)] + 1;
        float *x = p + (size_t)r * T, *y = own + (size_t)r * t->n, max = -INFINITY, sum = 0;
        for (int e = 0; e <= i; e++) { // prompt e of the same copy
            y[e] = dot(a->q + r * ld, a->own_k + (r - (i - e) * t->copies) * ld, HS) * scale;
            max = fmaxf(max, y[e]);
        }
        for (int j = 0; j < seen; j++) max = x[j] * scale > max ? x[j] * scale : max;
        if (again) max = lse[r];
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < seen; j++) sum += x[j] = exp_f32(x[j] * scale - max);
        for (int e = 0; e <= i; e++) sum += y[e] = exp_f32(y[e] - max);
        for (int j = seen; j < T; j++) x[j] = 0;
        if (again) continue;
        lse[r] = max + logf(sum);
        for (int j = 0; j < seen; j++) x[j] /= sum;
        for (int e = 0; e <= i; e++) y[e] /= sum;
    }
}

static void prompt_attention_forward(const PromptTrainer *t, float *out, float *lse, const float *qkv) {
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t), T = t->T;
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < t->B * NH; bh++) {
        PromptHead a = prompt_head(t, qkv, bh / NH, bh % NH);
        float *p = resize(NULL, (size_t)P * (T + t->n) * sizeof(float)), *own = p + (size_t)P * T,
              *o = out + a.out;
        prompt_probabilities(t, &a, bh / NH, lse + a.lse, p, own, 0);
        multiply(o, C, p, T, 1, a.v, 3L * C, 1, P, HS, T, plain);
        for (int r = 0; r < P; r++)
            for (int i = r / t->copies % t->n, e = 0; e <= i; e++) {
                const float *v = a.own_v + (r - (i - e) * t->copies) * 3L * C;
                for (int c = 0; c < HS; c++) o[(size_t)r * C + c] += own[(size_t)r * t->n + e] * v[c];
            }
        free(p);
    }
}

// dqkv of the prompt rows from dout; jointly, dk and dv of the text are added to.
static void prompt_attention_backward(const PromptTrainer *t, float *dqkv, const float *dout,
                                      const float *qkv, const float *out, float *lse) {
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t), T = t->T;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < t->B * NH; bh++) {
        PromptHead a = prompt_head(t, qkv, bh / NH, bh % NH);
        float *p = resize(NULL, (size_t)P * (2 * T + t->n) * sizeof(float)), *dp = p + (size_t)P * T,
              *own = dp + (size_t)P * T;
        float *dq = dqkv + a.to_q, *dk = dq + C, *dv = dk + C;
        const float *d_o = dout + a.out, *o = out + a.out;
        prompt_probabilities(t, &a, bh / NH, lse + a.lse, p, own, 1);
        multiply(dp, T, d_o, C, 1, a.v, 1, ld, P, T, HS, plain);
        for (int r = 0; r < P; r++)
            for (int c = 0; c < HS; c++) dk[r * ld + c] = dv[r * ld + c] = 0;
        for (int r = 0; r < P; r++) {
            float D = dot(o + (size_t)r * C, d_o + (size_t)r * C, HS), *pr = p + (size_t)r * T,
                  *dpr = dp + (size_t)r * T;
            for (int j = 0; j < T; j++) dpr[j] = pr[j] * (dpr[j] - D) * scale;
        }
        multiply(dq, ld, dp, T, 1, a.k, ld, 1, P, HS, T, plain);
        if (t->joint) {
            multiply(dqkv + a.to_k, ld, dp, 1, T, a.q, ld, 1, T, HS, P, accumulate);
            multiply(dqkv + a.to_k + C, ld, p, 1, T, d_o, C, 1, T, HS, P, accumulate);
        }
        for (int r = 0; r < P; r++)
            for (int i = r / t->copies % t->n, e = 0; e <= i; e++) {
                long from = (r - (i - e) * t->copies) * ld;
                const float *d_r = d_o + (size_t)r * C;
                float y = own[(size_t)r * t->n + e], D = dot(o + (size_t)r * C, d_r, HS);
                float ds = y * (dot(d_r, a.own_v + from, HS) - D) * scale;
                for (int c = 0; c < HS; c++) {
                    dq[r * ld + c] += ds * a.own_k[from + c];
                    dk[from + c] += ds * a.q[r * ld + c];
                    dv[from + c] += y * d_r[c];
                }
            }
        free(p);
    }
}

// As gpt2_forward, with the prompts' rows behind those of the text.
static void prompt_forward(PromptTrainer *t, const uint16_t *tokens) {
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    ParameterTensors p = m->params;
    int C = g.channels, text = t->B * t->T, rows = text + t->B * prompt_rows(t);
    m->tokens = tokens, m->B = t->B, m->T = t->T;
    encoder_forward(m->residual, tokens, p.wte, p.wpe, t->B, t->T, C);
#pragma omp parallel for schedule(static)
    for (int r = text; r < rows; r++) {
        int which = (r - text) % (t->n * t->copies), cut = t->cut[(r - text) / (t->n * t->copies)];
        const float *prompt = t->params + (size_t)which * C,
                    *position = p.wpe + (size_t)(cut + 1 + which / t->copies) * C;
        for (int c = 0; c < C; c++) m->residual[(size_t)r * C + c] = prompt[c] + position[c];
    }
    for (int l = 0; l < g.num_layers; l++) {
        size_t at = (size_t)l * rows, w = (size_t)l * C * C;
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *qkv = m->qkv + at * 3 * C,
              *atty = m->atty + at * C;
        float *lse = m->lse + at * g.num_heads;
        layernorm_forward(m->normed, m->ln1_mean + at, m->ln1_rstd + at, x, p.ln1w + l * C, p.ln1b + l * C,
                          rows, C);
        linear_forward(qkv, m->normed, p.qkvw + 3 * w, rows, C, 3 * C,
                       (Epilogue){.bias = p.qkvb + l * 3 * C});
        attention_forward(atty, lse, qkv, t->B, t->T, C, g.num_heads);
        if (rows > text) prompt_attention_forward(t, atty, lse, qkv);
        linear_forward(x2, atty, p.attprojw + w, rows, C, C,
                       (Epilogue){.bias = p.attprojb + l * C, .residual = x});
        layernorm_forward(m->normed, m->ln2_mean + at, m->ln2_rstd + at, x2, p.ln2w + l * C, p.ln2b + l * C,
                          rows, C);
        linear_forward(m->fch + at * 4 * C, m->normed, p.fcw + 4 * w, rows, C, 4 * C,
                       (Epilogue){.bias = p.fcb + l * 4 * C, .gelu = m->fch_gelu});
        linear_forward(x + (size_t)rows * C, m->fch_gelu, p.fcprojw + 4 * w, rows, 4 * C, C,
                       (Epilogue){.bias = p.fcprojb + l * C, .residual = x2});
    }
    layernorm_forward(m->lnf, m->lnf_mean, m->lnf_rstd, m->residual + (size_t)g.num_layers * rows * C, p.lnfw,
                      p.lnfb, rows, C);
}

// A head's output for cut hidden states: student = x + silu(z), z = x W' + bias; z is kept.
static void heads_forward(PromptTrainer *t, int i, int rows) {
    int C = t->m->config.channels;
    linear_forward(t->z, t->student, t->params + (size_t)i * C * C, rows, C, C,
                   (Epilogue){.bias = t->params + (size_t)t->n * C * C + i * C});
#pragma omp parallel for simd schedule(static)
    for (int k = 0; k < rows * C; k++) t->student[k] += t->z[k] / (1.0f + exp_f32(-t->z[k]));
}

// The gradient of head i's W and bias, from t->dstudent; x are the hidden states, in t->teacher's place.
static void heads_backward(PromptTrainer *t, int i, int rows) {
    int C = t->m->config.channels;
#pragma omp parallel for simd schedule(static)
    for (int k = 0; k < rows * C; k++) {
        float s = 1.0f / (1.0f + exp_f32(-t->z[k]));
        t->z[k] = t->dstudent[k] * (s + t->z[k] * s * (1.0f - s));
    }
    matmul(t->grads + (size_t)i * C * C, t->z, t->teacher, C, C, rows, 1, 0, accumulate);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < C; c++) t->grads[(size_t)t->n * C * C + i * C + c] += t->z[(size_t)r * C + c];
}

// KL of all guesses after prompt_forward, in chunks of cuts; their gradients, times t->weight, go into the
// prompt rows of m->dnormed, into grads.wte (jointly), or into the heads.
static void prompt_loss(PromptTrainer *t) {
    GPT2 *m = t->m;
    int C = m->config.channels, V = m->config.vocab_size, all = t->B * t->cuts;
    size_t text = (size_t)t->B * t->T;
    t->kl = 0;
    memset(t->top1, 0, sizeof t->top1), memset(t->top5, 0, sizeof t->top5);
    for (int i = 0; i < t->n; i++)
        for (int first = 0; first < all; first += t->chunk) {
            int rows = MIN(t->chunk, all - first);
            float weight = powf(0.8f, (float)i) / (float)(t->n * all), kl[rows];
            int rank[rows];
            for (int r = 0; r < rows; r++) {
                int b = (first + r) / t->cuts, cut = t->cut[first + r];
                float *student = t->student + (size_t)r * C;
                memcpy(t->teacher + (size_t)r * C, m->lnf + ((size_t)b * t->T + cut + 1 + i) * C,
                       C * sizeof(float));
                memset(student, 0, C * sizeof(float));
                const float *own = t->heads
                                       ? m->lnf + ((size_t)b * t->T + cut) * C
                                       : m->lnf + (text + ((size_t)(first + r) * t->n + i) * t->copies) * C;
                for (int j = 0; j < (t->heads ? 1 : t->copies); j++)
                    for (int c = 0; c < C; c++)
                        student[c] += own[j * C + c] / (float)(t->heads ? 1 : t->copies);
            }
            linear_forward(t->teacher_logits, t->teacher, m->params.wte, rows, C, V, plain);
            if (t->heads)
                memcpy(t->teacher, t->student, (size_t)rows * C * sizeof(float)), heads_forward(t, i, rows);
            linear_forward(m->logits, t->student, m->params.wte, rows, C, V, plain);
#pragma omp parallel for schedule(static)
            for (int r = 0; r < rows; r++) {
                float *x = m->logits + (size_t)r * V, *y = t->teacher_logits + (size_t)r * V;
                float x_lse = log_sum_exp(x, V, 1), y_lse = log_sum_exp(y, V, 1), likeliest = x[argmax(y, V)],
                      sum = 0;
                int before = 0;
#pragma omp simd reduction(+ : before)
                for (int v = 0; v < V; v++) before += x[v] > likeliest;
#pragma omp simd reduction(+ : sum)
                for (int v = 0; v < V; v++) {
                    float log_p = x[v] - x_lse, log_q = y[v] - y_lse, q = exp_f32(log_q);
                    sum += q > 0 ? q * (log_q - log_p) : 0;
                    x[v] = t->weight * weight * (exp_f32(log_p) - q);
                }
                kl[r] = sum, rank[r] = before;
            }
            for (int r = 0; r < rows; r++) {
                t->kl += weight * kl[r];
                t->top1[i] += (rank[r] < 1) / (double)all, t->top5[i] += (rank[r] < 5) / (double)all;
            }
            if (t->joint) matmul(m->grads.wte, m->logits, t->student, V, C, rows, 1, 0, accumulate);
            matmul(t->dstudent, m->logits, m->params.wte, rows, C, V, 0, 0, plain);
            if (t->heads) heads_backward(t, i, rows);
            for (int r = 0; r < rows && !t->heads; r++)
                for (int j = 0; j < t->copies; j++)
                    for (int c = 0; c < C; c++)
                        m->dnormed[(text + ((size_t)(first + r) * t->n + i) * t->copies + j) * C + c] =
                            t->dstudent[(size_t)r * C + c] / (float)t->copies;
        }
}

// dx = dout w; jointly also dw and dbias +=. Rows from `first` on.
static void backward_linear(const PromptTrainer *t, float *dx, float *dw, float *db, const float *dout,
                            const float *x, const float *w, int rows, int K, int N, Epilogue e) {
    if (t->joint) linear_backward(dx, dw, db, dout, x, w, rows, K, N, e, accumulate);
    else matmul(dx, dout, w, rows, K, N, 0, 0, e);
}

// Forward and backward: t->grads = the gradient of weight * KL; jointly, m->grads = that of the text's loss +
// weight * KL. Returns the text's loss, or NaN. Mirrors gpt2_backward, for rows from `first` on only.
static double prompt_step(PromptTrainer *t, const uint16_t *tokens, const uint16_t *targets) {
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    ParameterTensors p = m->params, d = m->grads;
    int C = g.channels, text = t->B * t->T, rows = text + t->B * prompt_rows(t), first = t->joint ? 0 : text,
        n = rows - first;
    double loss = NAN;
    prompt_forward(t, tokens);
    memset(t->grads, 0, guesser_size(t->heads, t->n, t->copies, C) * sizeof(float));
    if (t->joint) {
        memset(m->grads_memory, 0, m->num_parameters * sizeof(float));
        loss = classifier(m, targets, 1.0f / (float)text, 0, NULL);
    } else { // what the kernels would add to, and nobody reads
        d = (ParameterTensors){.ln1w = t->scratch,
                               .ln1b = t->scratch + C,
                               .ln2w = t->scratch,
                               .ln2b = t->scratch + C,
                               .lnfw = t->scratch,
                               .lnfb = t->scratch + C};
    }
    prompt_loss(t);
    if (!n) return loss;
    size_t layer = t->joint ? C : 0;
    float *dx = m->dresidual, *dnormed = m->dnormed + (size_t)first * C, *dwide = m->dwide;
    memset(dx, 0, (size_t)n * C * sizeof(float));
    layernorm_backward(dx, d.lnfw, d.lnfb, m->partial, dnormed,
                       m->residual + ((size_t)g.num_layers * rows + first) * C, p.lnfw, m->lnf_mean + first,
                       m->lnf_rstd + first, n, C);
    for (int l = g.num_layers - 1; l >= 0; l--) {
        size_t at = (size_t)l * rows + first, w = (size_t)l * C * C, dw = t->joint ? w : 0;
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *fch = m->fch + at * 4 * C;
        float *qkv = m->qkv + (at - first) * 3 * C, *atty = m->atty + (at - first) * C,
              *lse = m->lse + (at - first) * g.num_heads;
        float *mean1 = m->ln1_mean + at, *rstd1 = m->ln1_rstd + at, *mean2 = m->ln2_mean + at,
              *rstd2 = m->ln2_rstd + at;
        float *ln1w = p.ln1w + l * C, *ln2w = p.ln2w + l * C;
        gelu_again(m->fch_gelu, fch, (size_t)n * 4 * C);
        backward_linear(t, dwide, d.fcprojw + 4 * dw, d.fcprojb + l * layer, dx, m->fch_gelu,
                        p.fcprojw + 4 * w, n, 4 * C, C, (Epilogue){.times = fch});
        if (t->joint) layernorm_again(m->normed, x2, ln2w, p.ln2b + l * C, mean2, rstd2, n, C);
        backward_linear(t, dnormed, d.fcw + 4 * dw, d.fcb + l * 4 * layer, dwide, m->normed, p.fcw + 4 * w, n,
                        C, 4 * C, plain);
        layernorm_backward(dx, d.ln2w + l * layer, d.ln2b + l * layer, m->partial, dnormed, x2, ln2w, mean2,
                           rstd2, n, C);
        backward_linear(t, dnormed, d.attprojw + dw, d.attprojb + l * layer, dx, atty + (size_t)first * C,
                        p.attprojw + w, n, C, C, plain);
        if (t->joint) attention_backward(dwide, dnormed, qkv, atty, lse, t->B, t->T, C, g.num_heads);
        prompt_attention_backward(t, dwide - (size_t)first * 3 * C, dnormed - (size_t)first * C, qkv, atty,
                                  lse);
        if (t->joint) layernorm_again(m->normed, x, ln1w, p.ln1b + l * C, mean1, rstd1, n, C);
        backward_linear(t, dnormed, d.qkvw + 3 * dw, d.qkvb + l * 3 * layer, dwide, m->normed, p.qkvw + 3 * w,
                        n, C, 3 * C, plain);
        layernorm_backward(dx, d.ln1w + l * layer, d.ln1b + l * layer, m->partial, dnormed, x, ln1w, mean1,
                           rstd1, n, C);
    }
    if (t->joint) encoder_backward(d.wte, d.wpe, dx, tokens, t->B, t->T, C);
    dx -= (size_t)first * C;
    for (int r = text; r < rows; r++) {
        int which = (r - text) % (t->n * t->copies), cut = t->cut[(r - text) / (t->n * t->copies)];
        for (int c = 0; c < C; c++) t->grads[(size_t)which * C + c] += dx[(size_t)r * C + c];
        for (int c = 0; c < C && t->joint; c++)
            d.wpe[(size_t)(cut + 1 + which / t->copies) * C + c] += dx[(size_t)r * C + c];
    }
    return loss;
}

// Random cuts of the step's texts; each leaves room for the prompts and for what they guess.
static void draw_cuts(PromptTrainer *t, uint64_t seed, long step) {
    for (int i = 0; i < t->B * t->cuts; i++)
        t->cut[i] =
            (int)(random_u64(seed + 5, (uint64_t)step * t->B * t->cuts + i) % (uint64_t)(t->T - t->n));
}

// ============================================================================================================
// 7  The prompts file

/* A PROMPTS file: PromptsHeader, n*copies*C floats (heads: n*(C*C+C)), PromptsTables, a hash of all before
it. It belongs to one model, whose hash it has. How often a guess of some rank was right is counted on text
that the model itself wrote after held-out beginnings: greedy text is what the guesses will meet. */
#define PROMPTS_MAGIC "PPDFILE1"
typedef struct {
    char magic[8];
    int32_t heads, n, copies, channels;
    uint64_t model, steps;
} PromptsHeader;

typedef struct {
    uint32_t seen[MAX_PROMPTS], right[MAX_PROMPTS][RANKS]; // for each distance, whatever came before
    uint32_t seen_after[MAX_PROMPTS], right_after[MAX_PROMPTS][RANKS]; // nearer ones in the first 3
    uint64_t machine[3];                                   // that the latencies are of; 0: none measured
    float latency[3][MAX_ROWS];                            // for each kind of weights, seconds of a pass
} PromptsTables;

typedef struct {
    PromptsHeader header;
    float *params;
    PromptsTables tables;
} Prompts;

static void prompts_save(const Prompts *p, const char *path) {
    size_t bytes =
        guesser_size(p->header.heads, p->header.n, p->header.copies, p->header.channels) * sizeof(float);
    uint64_t hash = hash_bytes(hash_bytes(hash_bytes(0, &p->header, sizeof p->header), p->params, bytes),
                               &p->tables, sizeof p->tables);
    FILE *f = write_begin(path);
    write_bytes(f, &p->header, sizeof p->header);
    write_bytes(f, p->params, bytes);
    write_bytes(f, &p->tables, sizeof p->tables);
    write_bytes(f, &hash, sizeof hash);
    write_commit(f, path);
}

static void prompts_load(Prompts *p, const char *path, GPT2Config g, uint64_t model) {
    size_t size;
    FILE *f = open_file(path, &size);
    uint64_t stored;
    PromptsHeader *h = &p->header;
    if (fread(h, sizeof *h, 1, f) != 1 || memcmp(h->magic, PROMPTS_MAGIC, 8))
        die("%s is not a file of prompt tokens; `decode_ppd train` makes one", path);
    if ((h->heads != 0 && h->heads != 1) || h->n < 1 || h->n > MAX_PROMPTS || h->copies < 1 ||
        h->copies > MAX_ROWS || h->n * h->copies > 48)
        die("%s: %d prompts of %d copies cannot be: the file is damaged", path, h->n, h->copies);
    if (h->channels != g.channels)
        die("%s is for a model of %d channels, this one has %d; give the model it was trained for", path,
            h->channels, g.channels);
    size_t count = guesser_size(h->heads, h->n, h->copies, h->channels),
           expected = sizeof *h + count * 4 + sizeof p->tables + 8;
    if (size != expected)
        die("%s has %zu bytes, its shape asks for %zu: the file is damaged", path, size, expected);
    if (h->model != model)
        die("%s was trained for another model; give that one, or train prompts for this one", path);
    p->params = allocate_floats(count);
    read_floats(f, p->params, count, F32, path, "the prompts");
    if (fread(&p->tables, sizeof p->tables, 1, f) != 1 || fread(&stored, 8, 1, f) != 1)
        die("%s is cut short", path);
    fclose(f);
    if (stored != hash_bytes(hash_bytes(hash_bytes(0, h, sizeof *h), p->params, count * 4), &p->tables,
                             sizeof p->tables))
        die("%s is damaged: its checksum is wrong; train the prompts again", path);
    for (int k = 0; k < 3 * MAX_ROWS; k++)
        if (!(p->tables.latency[k / MAX_ROWS][k % MAX_ROWS] >= 0))
            die("%s: a latency is not a number: the file is damaged", path);
}

// A number for this machine and its threads, so that latencies of another one are not believed.
static uint64_t machine_hash(int threads) {
    char line[256] = "";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f) && strncmp(line, "model name", 10)) {}
    if (f) fclose(f);
    return hash_bytes(threads, line, strlen(line)) | 1;
}

// A model ready to write text.
typedef struct {
    Tokenizer tokenizer;
    Decoder decoder;
    Prompts prompts;              // params NULL without
    Matrix heads[MAX_PROMPTS];
    Generator generator;
    double latency[MAX_ROWS], tau, speedup;
} Engine;

// The best trees for the generator's guesses on this machine.
static void engine_trees(Engine *e) {
    Generator *g = &e->generator;
    const PromptsTables *t = &e->prompts.tables;
    TreeModel model = {.n = g->n, .copies = g->kind == GUESS_HEADS ? 0 : g->copies};
    for (int d = 0; d < g->n; d++)
        for (int r = 0; r < RANKS; r++)
            model.accuracy[d][r] = t->right_after[d][r] / (t->seen_after[d] + 1.0);
    int most = g->kind == GUESS_HEADS ? MAX_ROWS / (1 + g->n) : MAX_ROWS - 16;
    e->tau = best_trees(&model, e->latency, most, g->templates, &e->speedup);
}

// Gives a generator the guesses of a file that has been loaded.
static void engine_guess(Engine *e) {
    Prompts *p = &e->prompts;
    Generator *g = &e->generator;
    Decoder *d = &e->decoder;
    int C = d->config.channels;
    g->n = p->header.n, g->copies = p->header.copies;
    g->kind = p->header.heads ? GUESS_HEADS : GUESS_PROMPTS;
    if (!p->header.heads) d->prompts = p->params;
    else {
        for (int i = 0; i < g->n; i++)
            e->heads[i] = matrix_pack(p->params + (size_t)i * C * C, C, C, d->kind);
        d->heads = e->heads, d->heads_bias = p->params + (size_t)g->n * C * C;
    }
    for (int k = 0; k <= g->n; k++)
        g->templates[k] =
            (Template){.nodes = 1, .rows = 1 + g->n * g->copies, .chain = {g->n}, .parent = {-1}};
}

// Latencies from the file where it has this machine's, or measured now. Returns whether they were measured.
static int engine_latency(Engine *e) {
    int kind = e->decoder.kind, known = e->prompts.tables.machine[kind] == machine_hash(e->decoder.threads);
    if (!known) measure_latency(&e->decoder, e->latency);
    for (int r = 0; r < MAX_ROWS; r++)
        if (known) e->latency[r] = e->prompts.tables.latency[kind][r];
        else e->prompts.tables.latency[kind][r] = (float)e->latency[r];
    e->prompts.tables.machine[kind] = machine_hash(e->decoder.threads);
    e->generator.latency = e->latency;
    return !known;
}

static void engine_start(Engine *e, const GPT2 *m, WeightKind kind) {
    decoder_init(&e->decoder, m, kind);
    e->generator = (Generator){.decoder = &e->decoder, .copies = 1};
}

// Loads a model and, if given, its prompts or heads.
static void engine_load(Engine *e, const char *path, const char *prompts, WeightKind kind) {
    GPT2 m;
    gpt2_load(&m, path);
    if (!tokenizer_load(&e->tokenizer, path))
        die("%s has no tokenizer beside it (tokenizer.txt, tokenizer.bpe or tokenizer.json)", path);
    if (e->tokenizer.vocab_size > m.config.vocab_size)
        die("%s: the tokenizer has %d tokens, the model knows %d", path, e->tokenizer.vocab_size,
            m.config.vocab_size);
    engine_start(e, &m, kind);
    if (*prompts) {
        prompts_load(&e->prompts, prompts, m.config, model_hash(&m));
        engine_guess(e);
        engine_latency(e);
        engine_trees(e);
    }
    gpt2_free(&m);
}

// Counts into the tables how often guesses are right, on `tokens` tokens that the model writes after
// beginnings in `d`.
static void measure_accuracy(Engine *e, const Dataset *data, int tokens) {
    Generator *g = &e->generator;
    PromptsTables *t = &e->prompts.tables;
    int context = e->decoder.config.max_seq_len, begin = MAX(1, MIN(64, context / 4)),
        length = MAX(g->n + 1, MIN(128, context / 2));
    int (*guesses)[MAX_PROMPTS][RANKS] = resize(NULL, (size_t)length * sizeof *guesses);
    Shard shard = data->shards[0];
    if (shard.count < (size_t)begin) die("the held-out text is shorter than %d tokens", begin);
    int texts = MAX(1, tokens / length);
    double start = now();
    for (int text = 0; text < texts && now() - start < 40; text++) {
        generator_text(g, shard.tokens + (shard.count - begin) / (size_t)texts * text, begin);
        for (int i = 0; i < length; i++) {
            generator_step(g, 1);
            memcpy(guesses[i], g->guess, sizeof *guesses);
            if (g->state < g->n) memset(guesses[i], -1, sizeof *guesses); // the context ends
        }
        for (int i = 0; i + g->n < length; i++) // guess d after token i was of token i+1+d
            for (int distance = 0, near = 1; distance < g->n && guesses[i][0][0] >= 0; distance++) {
                int rank = 0, truth = g->text[begin + i + 1 + distance];
                while (rank < RANKS && guesses[i][distance][rank] != truth) rank++;
                t->seen[distance]++, t->seen_after[distance] += near;
                if (rank < RANKS) t->right[distance][rank]++, t->right_after[distance][rank] += near;
                near = near && rank < 3;
            }
    }
    free(guesses);
}

static double top_share(const PromptsTables *t, int distance, int k) {
    double sum = 0;
    for (int r = 0; r < k; r++) sum += t->right[distance][r];
    return sum / MAX(1u, t->seen[distance]);
}

static void print_accuracy(const Prompts *p) {
    for (int d = 0; d < p->header.n; d++)
        printf("distance %d  top-1 %.3f  top-5 %.3f  top-10 %.3f   of the model's own text\n", d + 1,
               top_share(&p->tables, d, 1), top_share(&p->tables, d, 5), top_share(&p->tables, d, 10));
}

// ============================================================================================================
// 8  Command line

typedef struct {
    const char *model, *data, *val, *out, *ppd, *heads_file, *draft, *draft_ppd, *prompt, *weights;
    int tokens, top_k, typical, ngram, seed, texts;
    double temperature, top_p;
    int prompts, copies, heads, joint, own_tokens, steps, batch, seq_len, cuts, save_every, resume, warmup;
    double prompt_weight, final_lr, clip;
    const char *optimizer, *base, *schedule, *out_model;
    int num_hyper;
    const char *hyper_name[64];
    double hyper_value[64];
} DecodeOptions;

#define AT(name) offsetof(DecodeOptions, name)
// `identity` says here to which commands an option belongs: 1 train, 2 run, 4 bench
static const OptionRow decode_rows[] = {
    {"model", 's', AT(model), "", "FILE|DIR", "the model: .bin, Hugging Face folder, run", 0, 0, 7},
    {"data", 's', AT(data), DEFAULT_DATA, "FILE|GLOB", "text, or token shards", 0, 0, 5},
    {"val", 's', AT(val), "", "FILE|GLOB", "held-out text; without it, the last tenth of --data", 0, 0, 5},
    {"out", 's', AT(out), "", "PROMPTS", "the file to write", 0, 0, 1},
    {"ppd", 's', AT(ppd), "", "PROMPTS", "prompt tokens (or heads) that `train` made", 0, 0, 6},
    {"heads-file", 's', AT(heads_file), "", "HEADS", "heads to compare with (train --heads)", 0, 0, 4},
    {"draft", 's', AT(draft), "", "FILE|DIR", "a smaller model of the same tokens, which proposes", 0, 0, 6},
    {"draft-ppd", 's', AT(draft_ppd), "", "PROMPTS", "the draft's own prompt tokens", 0, 0, 6},
    {"ngram", 'f', AT(ngram), "0", "", "propose what followed the last tokens before", 0, 0, 2},
    {"prompt", 's', AT(prompt), "", "TEXT", "without it: standard input, each line a prompt", 0, 0, 2},
    {"tokens", 'i', AT(tokens), "100", "N", "tokens to write", 1, 1e9, 6},
    {"temperature", 'd', AT(temperature), "0", "X", "0: the likeliest token, always", 0, 1e3, 2},
    {"top-k", 'i', AT(top_k), "0", "K", "draw among the K likeliest (0: all)", 0, 65536, 2},
    {"top-p", 'd', AT(top_p), "1", "P", "draw among the likeliest that have P together", 1e-6, 1, 2},
    {"typical", 'f', AT(typical), "0", "", "accept typical guesses: faster, another distribution", 0, 0, 2},
    {"weights", 's', AT(weights), "f32", "f32|bf16|int8", "how weights are kept while decoding", 0, 0, 6},
    {"texts", 'i', AT(texts), "8", "N", "beginnings to go on from", 1, 1e6, 4},
    {"prompts", 'i', AT(prompts), "3", "N", "prompt tokens, or heads", 1, MAX_PROMPTS, 1},
    {"copies", 'i', AT(copies), "1", "N", "copies of each, averaged (EPT)", 1, 16, 1},
    {"heads", 'f', AT(heads), "0", "", "train Medusa-like heads instead", 0, 0, 1},
    {"joint", 'f', AT(joint), "0", "", "train the model on, together with its prompts", 0, 0, 1},
    {"own-tokens", 'i', AT(own_tokens), "20000", "N",
     "train on N tokens that the model writes (0: on the text)", 0, 1e9, 1},
    {"out-model", 's', AT(out_model), "", "DIR", "where --joint writes the model", 0, 0, 1},
    {"prompt-weight", 'd', AT(prompt_weight), "0.3", "X", "of the prompts' loss with --joint", 0, 1e3, 1},
    {"steps", 'i', AT(steps), "600", "N", "optimizer steps", 0, 1e9, 1},
    {"batch", 'i', AT(batch), "4", "B", "texts of a step", 1, 4096, 1},
    {"seq-len", 'i', AT(seq_len), "0", "T", "tokens of a text (0: the context, at most 256)", 0, 1 << 20, 1},
    {"cuts", 'i', AT(cuts), "32", "N", "cuts of a text", 1, 4096, 1},
    {"optimizer", 's', AT(optimizer), "adamw", "NAME", "any of train_gpt2 --help, with its options", 0, 0, 1},
    {"base", 's', AT(base), "", "NAME", "what gpa, iam and diloco are built on", 0, 0, 1},
    {"schedule", 's', AT(schedule), "cosine", "NAME", "constant, cosine, linear, wsd", 0, 0, 1},
    {"warmup", 'i', AT(warmup), "20", "N", "steps of linear warmup", 0, 1e9, 1},
    {"final-lr", 'd', AT(final_lr), "0", "FRACTION", "of the rate at the end", 0, 1, 1},
    {"clip", 'd', AT(clip), "1", "X", "largest gradient norm; 0: none", 0, 1e30, 1},
    {"save-every", 'i', AT(save_every), "100", "N", "steps between checkpoints (PROMPTS.state); 0: none", 0,
     1e9, 1},
    {"resume", 'f', AT(resume), "0", "", "go on from PROMPTS.state", 0, 0, 1},
    {"seed", 'i', AT(seed), "1337", "N", "of what is drawn", 0, 1e9, 7},
};
#define NUM_DECODE ((int)(sizeof decode_rows / sizeof *decode_rows))
static const char *const commands[] = {"train", "run", "bench"};

static void decode_help(void) {
    printf("decode_ppd: text from a GPT-2, several tokens a pass.\n\n"
           "  ./decode_ppd run   --model run --prompt \"Once upon a time\" --tokens 200\n"
           "  ./decode_ppd train --model run --data text.txt --out run/prompts.ppd\n"
           "  ./decode_ppd run   --model run --ppd run/prompts.ppd --prompt \"Once upon a time\"\n"
           "  ./decode_ppd bench --model run --ppd run/prompts.ppd --data text.txt\n");
    for (int c = 0; c < 3; c++) {
        printf("\n%s\n", commands[c]);
        for (int i = 0; i < NUM_DECODE; i++) {
            const OptionRow *r = &decode_rows[i];
            char left[64];
            snprintf(left, sizeof left, "--%s %s", r->name, r->argument);
            if (r->identity >> c & 1)
                printf("  %-28s %s%s%s%s\n", left, r->help, *r->initial && r->type != 'f' ? " [" : "",
                       r->type != 'f' ? r->initial : "", *r->initial && r->type != 'f' ? "]" : "");
        }
    }
}

static DecodeOptions decode_options(int argc, char **argv, int command) {
    DecodeOptions o = {0};
    for (int i = 0; i < NUM_DECODE; i++) set_option((Options *)&o, &decode_rows[i], decode_rows[i].initial);
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "--", 2)) die_usage("unexpected argument '%s'; see --help", argv[i]);
        const char *name = argv[i] + 2;
        if (!strcmp(name, "help")) decode_help(), exit(0);
        int row = 0;
        while (row < NUM_DECODE &&
               (strcmp(decode_rows[row].name, name) || !(decode_rows[row].identity >> command & 1)))
            row++;
        int flag = row < NUM_DECODE && decode_rows[row].type == 'f';
        if (!flag && i + 1 == argc) die_usage("--%s needs a value; see --help", name);
        const char *value = flag ? "1" : argv[++i];
        if (row < NUM_DECODE) set_option((Options *)&o, &decode_rows[row], value);
        else if (command != 0) die_usage("--%s is no option of %s; see --help", name, commands[command]);
        else if (o.num_hyper == 64) die_usage("too many options");
        else o.hyper_name[o.num_hyper] = name, o.hyper_value[o.num_hyper++] = parse_number(name, value, 0);
    }
    if (!*o.model) die_usage("%s needs --model; see --help", commands[command]);
    return o;
}

static WeightKind parse_kind(const char *text) {
    for (int k = 0; k < 3; k++)
        if (!strcmp(text, kind_names[k])) return k;
    die_usage("--weights takes f32, bf16 or int8, not '%s'", text);
}

// Training and held-out tokens for a model.
static void load_data(const DecodeOptions *o, const Tokenizer *t, Dataset *train, Dataset *val) {
    dataset_load(train, o->data, t, NULL, 0);
    if (*o->val) dataset_load(val, o->val, t, NULL, 0);
    else dataset_split(train, val);
    if (!dataset_tokens(train) || !dataset_tokens(val))
        die("%s is too short to hold out a tenth of it", o->data);
}

// Writes up to `tokens` tokens after a prompt; returns how many. *seconds is the time after the prompt.
static int write_text(Engine *e, const uint16_t *prompt, size_t n, int tokens, Writer *w, double *seconds) {
    Generator *g = &e->generator;
    int end = e->tokenizer.kind == TOKENIZER_GPT2 ? e->tokenizer.vocab_size - 1 : -1, made = 0;
    generator_text(g, prompt, (int)n);
    for (size_t i = 0; i < n; i++) writer_put(w, prompt[i]);
    generator_prefill(g);
    double start = now();
    for (int done = 0; made < tokens && !done && !interrupted;) {
        int from = g->length, got = generator_step(g, tokens - made);
        for (int i = 0; i < got && !done; i++) {
            done = g->text[from + i] == end;
            if (!done) writer_put(w, g->text[from + i]);
            made++;
        }
    }
    *seconds += now() - start;
    writer_end(w);
    return made;
}

static int run_command(const DecodeOptions *o) {
    static Engine engine, draft;
    WeightKind kind = parse_kind(o->weights);
    engine_load(&engine, o->model, o->ppd, kind);
    Generator *g = &engine.generator;
    g->sampling = (Sampling){o->temperature, o->top_k, o->top_p, o->typical, o->seed};
    g->ngram = o->ngram;
    if (*o->draft_ppd && !*o->draft) die_usage("--draft-ppd needs --draft, the model it belongs to");
    if (*o->draft) {
        engine_load(&draft, o->draft, o->draft_ppd, kind);
        if (draft.decoder.config.vocab_size != engine.decoder.config.vocab_size)
            die("the draft knows %d tokens, the model %d; they must read the same text alike",
                draft.decoder.config.vocab_size, engine.decoder.config.vocab_size);
        g->draft = &draft.generator;
    }
    if ((g->draft || g->ngram) && !g->latency) engine_latency(&engine);
    size_t capacity = 0, count, prompts = 0;
    char *line = NULL;
    double seconds = 0;
    long made = 0;
    ssize_t length = (ssize_t)strlen(o->prompt);
    while (!interrupted && (*o->prompt ? prompts == 0 : (length = getline(&line, &capacity, stdin)) >= 0)) {
        const char *text = *o->prompt ? o->prompt : line;
        while (!*o->prompt && length && (line[length - 1] == '\n' || line[length - 1] == '\r')) length--;
        if (length == 0) continue;
        uint16_t *tokens = tokenizer_encode(&engine.tokenizer, text, (size_t)length, &count);
        if (count == 0 || count > INT32_MAX / 4)
            die("a prompt of %zu tokens; it must have some, and not billions", count);
        Writer w = {.tokenizer = &engine.tokenizer, .file = stdout};
        made += write_text(&engine, tokens, count, o->tokens, &w, &seconds);
        putchar('\n');
        prompts++;
        free(tokens);
    }
    free(line);
    if (!prompts) die("the prompt is empty; give --prompt TEXT, or lines on standard input");
    if (fflush(stdout)) die("cannot write the text: %s", strerror(errno));
    if (g->kind || g->draft || g->ngram)
        fprintf(stderr, "%.2f tokens a pass of %.1f rows\n", made / (double)MAX(1, g->passes),
                g->rows / (double)MAX(1, g->passes));
    fprintf(stderr, "%ld tokens in %.2f s, %.1f tokens/s\n", made, seconds, made / fmax(seconds, 1e-9));
    return 0;
}

// What `train` works on, and all that its checkpoint holds.
typedef struct {
    PromptTrainer trainer;
    Optimizer optimizer;
    DataLoader loader;
    float *params, *grads; // all that is trained: the prompts, jointly the model before them
    size_t count;
    char identity[4096];
    struct { long step; uint64_t epoch, index; } now;
} PromptRun;

#define PROMPT_STATE_MAGIC "PPDRUN_1"
// Writes, or with f open for reading takes up, the parts of the state after its identity.
static void state_parts(PromptRun *r, FILE *f, uint64_t *hash, const char *path, int reading) {
    void *block = &r->now;
    size_t bytes = sizeof r->now;
    const char *name;
    for (int i = -2; i < 0 || optim_state(&r->optimizer, i, &block, &bytes, &name); i++) {
        if (i == -1) block = r->params, bytes = r->count * sizeof(float);
        if (reading) read_part(f, hash, block, bytes, path);
        else write_part(f, hash, block, bytes);
    }
}

static void prompt_state_save(PromptRun *r, const char *path) {
    FILE *f = write_begin(path);
    uint64_t hash = 0;
    r->now.epoch = r->loader.epoch, r->now.index = r->loader.index;
    write_bytes(f, PROMPT_STATE_MAGIC, 8);
    write_part(f, &hash, r->identity, sizeof r->identity);
    state_parts(r, f, &hash, path, 0);
    write_bytes(f, &hash, sizeof hash);
    write_commit(f, path);
}

static void prompt_state_load(PromptRun *r, const char *path) {
    char magic[8], theirs[sizeof r->identity];
    uint64_t hash = 0, stored;
    FILE *f = fopen(path, "rb");
    if (!f) die("cannot open %s: %s; start without --resume", path, strerror(errno));
    if (fread(magic, 1, 8, f) != 8 || memcmp(magic, PROMPT_STATE_MAGIC, 8))
        die("%s is not a checkpoint of this program", path);
    read_part(f, &hash, theirs, sizeof theirs, path);
    theirs[sizeof theirs - 1] = 0;
    compare_identity(r->identity, theirs, path);
    state_parts(r, f, &hash, path, 1);
    if (fread(&stored, 8, 1, f) != 1 || stored != hash)
        die("%s is damaged; start anew without --resume", path);
    fclose(f);
    r->loader.epoch = r->now.epoch, r->loader.index = r->now.index;
}

// Puts everything that is trained into one flat array, and starts the optimizer on it. Prompts begin near the
// mean of the tokens' embeddings, heads as the identity.
static void start_prompts(PromptRun *r, const DecodeOptions *o) {
    PromptTrainer *t = &r->trainer;
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    size_t model = t->joint ? m->num_parameters : 0,
           own = guesser_size(t->heads, t->n, t->copies, g.channels), offset = 0;
    r->count = model + own;
    r->params = allocate_floats(r->count), r->grads = allocate_floats(r->count);
    t->params = r->params + model, t->grads = r->grads + model;
    OptimSegment *segments = allocate((size_t)NUM_TENSORS * g.num_layers + 1, sizeof *segments);
    int n = 0;
    for (int i = 0; i < NUM_TENSORS && t->joint; i++) {
        TensorShape s = tensor_shape(g, i);
        for (int l = 0; l < MAX(s.layers, 1); l++, offset += layer_size(s), n++) {
            segments[n] = (OptimSegment){offset, layer_size(s), 0, 0, s.cols > 0};
            if (s.layers && s.cols) segments[n].rows = s.rows, segments[n].cols = s.cols;
        }
    }
    segments[n++] = (OptimSegment){offset, own, 0, 0, 0};
    if (!t->heads) {
        random_normal(t->params, own, 0.01f, o->seed + 3);
        for (int c = 0; c < g.channels; c++) {
            double mean = 0;
            for (int v = 0; v < g.vocab_size; v++)
                mean += m->params.wte[(size_t)v * g.channels + c] / g.vocab_size;
            for (int i = 0; i < t->n * t->copies; i++) t->params[(size_t)i * g.channels + c] += (float)mean;
        }
    }
    if (t->joint) {
        memcpy(r->params, m->params_memory, model * sizeof(float));
        free(m->params_memory), free(m->grads_memory);
        m->params_memory = r->params, m->params = point_parameters(r->params, g);
        m->grads_memory = r->grads, m->grads = point_parameters(r->grads, g);
    }
    optim_matmul = muon_matmul;
    if (optim_init(&r->optimizer, o->optimizer))
        die_usage("no optimizer is called '%s'; see train_gpt2 --help", o->optimizer);
    if (*o->base && optim_set_base(&r->optimizer, o->base))
        die_usage("--base %s does not go with %s", o->base, o->optimizer);
    optim_set(&r->optimizer, "lr", t->joint ? 3e-4 : t->heads ? 1e-3 : 3e-2);
    for (int i = 0; i < o->num_hyper; i++)
        if (optim_set(&r->optimizer, o->hyper_name[i], o->hyper_value[i]))
            die_usage("--%s %g is no option of train, nor of %s in that range", o->hyper_name[i],
                      o->hyper_value[i], o->optimizer);
    if (optim_start(&r->optimizer, r->params, r->count, segments, n)) die("out of memory for the optimizer");
    free(segments);
    if (isnan(optim_schedule(o->schedule, 0, 1, 0, 0)))
        die_usage("no schedule is called '%s' here; see --help", o->schedule);
}

// The evaluation point in the place of the parameters; `swap` keeps those.
static void at_evaluation_point(PromptRun *r, float *swap) {
    memcpy(swap, r->params, r->count * sizeof(float));
    float *x = resize(NULL, r->count * sizeof(float));
    optim_eval_params(&r->optimizer, x);
    memcpy(r->params, x, r->count * sizeof(float));
    free(x);
}

static void show_prompt_step(const PromptRun *r, const DecodeOptions *o, double loss, double rate) {
    const PromptTrainer *t = &r->trainer;
    static double shown;
    int terminal = isatty(fileno(stdout)), last = r->now.step == o->steps;
    if (terminal ? now() - shown < 0.2 && !last : r->now.step % MAX(1, o->steps / 10) && !last) return;
    shown = now();
    printf("%sstep %ld/%d | KL %.4f", terminal ? "\r\033[K" : "", r->now.step, o->steps, t->kl);
    if (t->joint) printf(" | loss %.4f", loss);
    printf(" | top-1/5");
    for (int i = 0; i < t->n; i++) printf(" %.2f/%.2f", t->top1[i], t->top5[i]);
    printf(" | %.0f tok/s | %.0f s left%s", rate, (o->steps - r->now.step) * (double)t->B * t->T / rate,
           terminal && !last ? "" : "\n");
    fflush(stdout);
}

// Replaces the training text by what the model itself writes, greedily, after places of it: that is the text
// in which guesses will be wanted. On the demands of greedy decoding, prompts learn more from 20,000 such
// tokens than from all of the text itself. int8 weights and n-grams only make it faster.
static void write_own_text(const GPT2 *m, Dataset *train, int tokens, uint64_t seed) {
    static Engine e;
    Shard from = train->shards[0];
    int length = MIN(256, m->config.max_seq_len), begin = MAX(1, MIN(16, length / 4)), made = 0;
    uint16_t *own = allocate((size_t)tokens + length, sizeof *own);
    double start = now();
    engine_start(&e, m, WEIGHTS_INT8);
    engine_latency(&e);
    e.generator.ngram = 1;
    while (made < tokens && !interrupted) {
        Generator *g = &e.generator;
        uint64_t at = random_u64(seed + 9, (uint64_t)made) %
                      MAX((uint64_t)1, from.count - MIN(from.count, (uint64_t)begin));
        generator_text(g, from.tokens + at, (int)MIN((size_t)begin, from.count));
        while (g->length < length) generator_step(g, length - g->length);
        memcpy(own + made, g->text, (size_t)length * sizeof *own);
        made += length;
    }
    printf("the model wrote %d tokens of its own to learn from, in %.1f s\n", made, now() - start);
    decoder_free(&e.decoder);
    free(e.generator.text), free(train->shards);
    memset(train, 0, sizeof *train);
    dataset_add(train, own, (size_t)made);
}

static int train_command(const DecodeOptions *o) {
    static PromptRun run;
    static Engine engine;
    GPT2 m;
    PromptTrainer *t = &run.trainer;
    Dataset train = {0}, val = {0};
    if (!*o->out) die_usage("train needs --out PROMPTS, the file to write");
    if (o->joint && o->heads) die_usage("--joint goes with prompt tokens only");
    if (o->joint && !*o->out_model) die_usage("--joint needs --out-model DIR, for the model that it trains");
    if (o->prompts * o->copies > 48)
        die_usage("%d prompts of %d copies do not fit a pass; 48 rows at most", o->prompts, o->copies);
    gpt2_load(&m, o->model);
    if (!tokenizer_load(&engine.tokenizer, o->model) && !is_shards(o->data))
        die("%s has no tokenizer beside it", o->model);
    load_data(o, &engine.tokenizer, &train, &val);
    int T = o->seq_len ? o->seq_len : MIN(256, m.config.max_seq_len);
    if (T > m.config.max_seq_len || T <= o->prompts + 1)
        die("--seq-len %d: it must be above --prompts + 1 and at most the model's context of %d", T,
            m.config.max_seq_len);
    *t = (PromptTrainer){.m = &m,
                         .n = o->prompts,
                         .copies = o->heads ? 1 : o->copies,
                         .cuts = o->cuts,
                         .B = o->batch,
                         .T = T,
                         .heads = o->heads,
                         .joint = o->joint,
                         .weight = o->joint ? (float)o->prompt_weight : 1};
    for (int i = 0; i < train.num_shards; i++)
        for (size_t k = 0; k < train.shards[i].count; k++)
            if (train.shards[i].tokens[k] >= m.config.vocab_size)
                die("%s has token %d, the model knows %d tokens", o->data, train.shards[i].tokens[k],
                    m.config.vocab_size);
    if (o->own_tokens && !o->joint) write_own_text(&m, &train, o->own_tokens, o->seed);
    trainer_allocate(t);
    start_prompts(&run, o);
    run.loader = (DataLoader){&train, T, o->seed, 0, 0};
    uint64_t hash = o->joint ? 0 : model_hash(&m);
    snprintf(run.identity, sizeof run.identity,
             "model %016llx %s\ndata %016llx\nshape %d %d %d\nbatch %d %d %d\njoint %d %g\n"
             "optimizer %s %s\nschedule %s %d %d %g %g\nseed %d\n",
             (unsigned long long)hash, o->model, (unsigned long long)train.hash, t->heads, t->n, t->copies,
             t->B, T, t->cuts, t->joint, t->weight, o->optimizer, o->base, o->schedule, o->steps, o->warmup,
             o->final_lr, o->clip, o->seed);
    char state[4096];
    if (is_folder(o->out)) die("%s is a folder; --out names the file to write", o->out);
    if (snprintf(state, sizeof state, "%s.state", o->out) >= (int)sizeof state)
        die("the path %.60s... is too long", o->out);
    if (o->resume)
        prompt_state_load(&run, state), printf("resumed at step %ld of %d\n", run.now.step, o->steps);
    printf("%zu trained numbers, %.6f%% of the model's %zu; %d texts of %d tokens, %d cuts each\n",
           guesser_size(t->heads, t->n, t->copies, m.config.channels),
           100.0 * guesser_size(t->heads, t->n, t->copies, m.config.channels) / m.num_parameters,
           m.num_parameters, t->B, T, t->cuts);
    if (o->joint && !run.now.step) printf("val loss %.4f before\n", evaluate(&m, &val, T, 50000));
    uint16_t *x = allocate((size_t)t->B * T, sizeof *x), *y = allocate((size_t)t->B * T, sizeof *y);
    double rate = 0;
    while (run.now.step < o->steps && !interrupted) {
        double start = now();
        loader_next(&run.loader, x, y, t->B, m.config.vocab_size);
        draw_cuts(t, o->seed, run.now.step);
        double loss = prompt_step(t, x, y), norm = sqrt(optim_norm2(run.grads, run.count));
        if (!isfinite(norm) || !isfinite(t->kl))
            die("the loss is not a number at step %ld; lower --lr", run.now.step + 1);
        optim_step(&run.optimizer, run.grads, o->clip > 0 && norm > o->clip ? (float)(o->clip / norm) : 1,
                   optim_schedule(o->schedule, run.now.step, o->steps, o->warmup, o->final_lr),
                   t->joint ? loss : t->kl, 0);
        run.now.step++;
        double speed = t->B * (double)T / (now() - start);
        rate = rate ? 0.9 * rate + 0.1 * speed : speed;
        show_prompt_step(&run, o, loss, rate);
        if (o->save_every && (run.now.step % o->save_every == 0 || interrupted))
            prompt_state_save(&run, state);
    }
    if (interrupted && run.now.step < o->steps) {
        printf("\nstopped at step %ld of %d%s\n", run.now.step, o->steps,
               o->save_every ? "; the same command with --resume goes on" : "");
        return 0;
    }
    float *swap = resize(NULL, run.count * sizeof(float));
    at_evaluation_point(&run, swap);
    if (o->joint) {
        printf("val loss %.4f after\n", evaluate(&m, &val, T, 50000));
        make_folder(o->out_model);
        gpt2_save(m.config, m.params_memory, path_in(o->out_model, "model.bin").s);
        tokenizer_save(&engine.tokenizer, o->out_model);
    }
    engine.prompts.header = (PromptsHeader){PROMPTS_MAGIC,     t->heads,       t->n,        t->copies,
                                            m.config.channels, model_hash(&m), run.now.step};
    engine.prompts.params = t->params;
    for (int kind = 2; kind >= 0; kind--) { // latencies of all kinds; guesses are counted with f32
        if (kind < 2) decoder_free(&engine.decoder);
        engine_start(&engine, &m, kind);
        engine_latency(&engine);
    }
    engine_guess(&engine);
    measure_accuracy(&engine, &val, 4000);
    prompts_save(&engine.prompts, o->out);
    unlink(state);
    print_accuracy(&engine.prompts);
    engine_trees(&engine);
    printf("%.2f tokens a pass, %.2f times as fast as plain decoding with f32 weights: predicted for this "
           "machine\n",
           engine.tau, engine.speedup);
    return 0;
}

// ---- bench

// Bytes a second that all threads together read from memory.
static double read_bandwidth(void) {
    size_t n = (size_t)64 << 20, best = 0;
    float *x = allocate_floats(n), sink = 0;
    for (int round = 0; round < 5; round++) {
        double start = now();
#pragma omp parallel for reduction(+ : sink) schedule(static)
        for (size_t i = 0; i < n; i += 8 * VEC) {
            vec s = {0};
            for (int j = 0; j < 8; j++) s += *(const vec *)(x + i + j * VEC);
            sink += s[0];
        }
        best = MAX(best, (size_t)((double)n * sizeof(float) / (now() - start)));
    }
    free(x);
    return (double)best + sink;
}

// Perplexity of the first tokens of a text, by the decoder itself.
static double perplexity(Decoder *d, const uint16_t *tokens, int n) {
    double sum = 0;
    d->past = 0;
    for (int first = 0; first + 1 < n; first += MAX_ROWS) {
        Batch b = {0};
        for (int i = first; i < MIN(n - 1, first + MAX_ROWS); i++)
            batch_output(&b, batch_add(&b, tokens[i], b.rows - 1), 1, -1);
        decoder_pass(d, &b);
        for (int r = 0; r < b.rows; r++) {
            const float *logits = d->logits + (size_t)r * d->logits_stride;
            sum += log_sum_exp(logits, d->config.vocab_size, 1) - logits[tokens[first + r + 1]];
        }
        d->past += b.rows;
    }
    return exp(sum / (n - 1));
}

// Whether some 8 tokens in a row come twice in a text.
static int loops(const uint16_t *text, int n) {
    for (int i = 0; i + 8 <= n; i++)
        for (int j = i + 1; j + 8 <= n; j++)
            if (!memcmp(text + i, text + j, 8 * sizeof *text)) return 1;
    return 0;
}

typedef struct {
    const char *name;
    Engine *engine;      // NULL: not asked for
    int prompts, ngram;  // whether its prompts and n-grams are used
    Engine *draft;
    int draft_prompts;
    double seconds[2];   // of texts that do not loop, and that do
    long made[2], passes[2];
    int identical;
    size_t trained, memory;
} Method;

// Sets an engine's guesses on or off for a method.
static void method_enter(const Method *w) {
    Generator *g = &w->engine->generator;
    g->kind = !w->prompts ? GUESS_NOTHING : w->engine->prompts.header.heads ? GUESS_HEADS : GUESS_PROMPTS;
    g->state = 0, g->ngram = w->ngram, g->draft = w->draft ? &w->draft->generator : NULL;
    g->accepted = g->proposed = g->draft_cost = 0;
    if (w->draft)
        w->draft->generator.kind = w->draft_prompts ? GUESS_PROMPTS : GUESS_NOTHING,
        w->draft->generator.length = 0;
}

static void bench_kinds(const GPT2 *m, const uint16_t *tokens, int n, int make) {
    double bandwidth = read_bandwidth(), base = 0;
    printf("weights  bytes a token   tokens/s   GB/s   share of %.1f GB/s read   perplexity (%d tokens)\n",
           bandwidth / 1e9, n);
    for (int kind = 0; kind < 3; kind++) {
        Engine e = {0};
        engine_start(&e, m, kind);
        double ppl = perplexity(&e.decoder, tokens, n), fastest = 1e30;
        if (kind == 0) base = ppl;
        for (int round = 0; round < 3; round++) {
            generator_text(&e.generator, tokens, 8);
            generator_prefill(&e.generator);
            double start = now();
            for (int i = 0; i < make; i++) generator_step(&e.generator, 1);
            fastest = fmin(fastest, (now() - start) / make);
        }
        double speed = decoder_bytes(&e.decoder) / fastest;
        printf("%-8s %8.1f MB    %8.1f   %5.1f   %3.0f%%                     %.3f (%+.3f)\n",
               kind_names[kind], decoder_bytes(&e.decoder) / 1e6, 1 / fastest, speed / 1e9,
               100 * speed / bandwidth, ppl, ppl - base);
        decoder_free(&e.decoder);
        free(e.generator.text);
    }
}

static int bench_command(const DecodeOptions *o) {
    static Engine engine, heads, draft;
    WeightKind kind = parse_kind(o->weights);
    Dataset train = {0}, val = {0};
    GPT2 m;
    if (*o->draft_ppd && !*o->draft) die_usage("--draft-ppd needs --draft, the model it belongs to");
    engine_load(&engine, o->model, o->ppd, kind);
    engine_latency(&engine);
    if (*o->heads_file) engine_load(&heads, o->model, o->heads_file, kind);
    if (*o->draft) {
        engine_load(&draft, o->draft, o->draft_ppd, kind);
        if (draft.decoder.config.vocab_size != engine.decoder.config.vocab_size)
            die("the draft's vocabulary is not the model's");
    }
    load_data(o, &engine.tokenizer, &train, &val);
    int context = engine.decoder.config.max_seq_len, begin = MIN(64, MAX(1, context / 4));
    Shard text = val.shards[0];
    if (text.count < (size_t)begin + 9) die("the held-out text has only %zu tokens", text.count);
    gpt2_load(&m, o->model);
    bench_kinds(&m, text.tokens, (int)MIN(text.count, (size_t)MIN(512, context)),
                MIN(o->tokens, context / 2));
    gpt2_free(&m);

    int ppd = *o->ppd != 0, own = ppd && *o->draft_ppd;
    Method methods[] = {
        {.name = "plain", .engine = &engine},
        {.name = "n-gram", .engine = &engine, .ngram = 1},
        {.name = "heads", .engine = *o->heads_file ? &heads : NULL, .prompts = 1},
        {.name = "heads + n-gram", .engine = *o->heads_file ? &heads : NULL, .prompts = 1, .ngram = 1},
        {.name = "PPD", .engine = ppd ? &engine : NULL, .prompts = 1},
        {.name = "PPD + n-gram", .engine = ppd ? &engine : NULL, .prompts = 1, .ngram = 1},
        {.name = "draft", .engine = *o->draft ? &engine : NULL, .draft = &draft},
        {.name = "draft with PPD",
         .engine = *o->draft_ppd ? &engine : NULL,
         .draft = &draft,
         .draft_prompts = 1},
        {.name = "PPD + draft", .engine = ppd && *o->draft ? &engine : NULL, .prompts = 1, .draft = &draft},
        {.name = "PPD + draft with PPD",
         .engine = own ? &engine : NULL,
         .prompts = 1,
         .draft = &draft,
         .draft_prompts = 1},
    };
    int count = sizeof methods / sizeof *methods, looping = 0;
    uint16_t *plain_text = resize(NULL, (size_t)o->tokens * sizeof *plain_text);
    for (int i = 0; i < count; i++) methods[i].identical = 1;
    for (int n = 0; n < o->texts && !interrupted;
         n++) { // text by text, in turns: what else the machine does hits all alike
        const uint16_t *from = text.tokens + (text.count - begin) / (size_t)o->texts * n;
        int loop = 0;
        for (int i = 0; i < count; i++) {
            Method *w = &methods[i];
            if (!w->engine) continue;
            Generator *g = &w->engine->generator;
            method_enter(w);
            generator_text(g, from, begin);
            generator_prefill(g);
            long passes = g->passes;
            double start = now();
            while (g->length < begin + o->tokens) generator_step(g, begin + o->tokens - g->length);
            double took = now() - start;
            if (i == 0) {
                memcpy(plain_text, g->text + begin, (size_t)o->tokens * sizeof *plain_text);
                looping += loop = loops(plain_text, o->tokens);
            } else if (memcmp(plain_text, g->text + begin, (size_t)o->tokens * sizeof *plain_text))
                w->identical = 0;
            w->seconds[loop] += took, w->made[loop] += o->tokens, w->passes[loop] += g->passes - passes;
        }
    }
    printf("\n%d texts of %d tokens, greedy, %s weights; %d of them loop (8 tokens in a row come twice) and "
           "are counted apart\n"
           "%-22s %18s %18s %14s %18s %10s\n",
           o->texts, o->tokens, o->weights, looping, "", "tokens/s (loops)", "speedup (loops)",
           "a pass (loops)", "trained, added MB", "identical");
    for (int i = 0; i < count; i++) {
        Method *w = &methods[i], *p = &methods[0];
        double rate[2], base[2];
        if (!w->engine) continue;
        for (int l = 0; l < 2; l++)
            rate[l] = w->made[l] / fmax(w->seconds[l], 1e-12),
            base[l] = p->made[l] / fmax(p->seconds[l], 1e-12);
        PromptsHeader h = w->engine->prompts.header, hd = draft.prompts.header;
        size_t trained = w->prompts ? guesser_size(h.heads, h.n, h.copies, h.channels) : 0;
        double added = trained * 4.0 + (w->prompts ? sizeof w->engine->generator.templates : 0);
        if (w->draft) added += decoder_bytes(&draft.decoder);
        if (w->draft_prompts) trained += guesser_size(0, hd.n, hd.copies, hd.channels);
        printf("%-22s %8.1f (%7.1f) %8.2f (%7.2f) %6.2f (%5.2f) %9zu %8.3f %10s\n", w->name, rate[0], rate[1],
               rate[0] / fmax(base[0], 1e-12), rate[1] / fmax(base[1], 1e-12),
               w->made[0] / fmax(w->passes[0], 1), w->made[1] / fmax(w->passes[1], 1), trained, added / 1e6,
               w->identical ? "yes" : "no");
    }
    for (int i = 0; i < 3; i++) {
        Engine *e = i == 0 ? &engine : i == 1 ? &heads : &draft;
        if (!e->prompts.params) continue;
        printf("\n%s: %.2f tokens a pass and speedup %.2f predicted\n",
               i == 0   ? "PPD"
               : i == 1 ? "heads"
                        : "the draft's PPD",
               e->tau, e->speedup);
        print_accuracy(&e->prompts);
    }
    int identical = 1;
    for (int i = 0; i < count; i++) identical &= methods[i].identical;
    printf("identical %s\n", identical ? "yes" : "no");
    free(plain_text);
    return 0;
}

static UNUSED int main_decode(int argc, char **argv) {
    int command = 0;
    if (argc < 2) die_usage("give a command: train, run or bench; see --help");
    if (!strcmp(argv[1], "--help")) return decode_help(), 0;
    while (command < 3 && strcmp(commands[command], argv[1])) command++;
    if (command == 3) die_usage("'%s' is none of train, run, bench; see --help", argv[1]);
    if (!getenv("GOMP_SPINCOUNT") && !getenv("OMP_WAIT_POLICY") && !setenv("GOMP_SPINCOUNT", "10000", 1))
        execv("/proc/self/exe", argv); // as train_gpt2 does, see there
    DecodeOptions o = decode_options(argc, argv, command);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return command == 0 ? train_command(&o) : command == 1 ? run_command(&o) : bench_command(&o);
}

#ifndef DECODE_NO_MAIN
int main(int argc, char **argv) { return main_decode(argc, argv); }
#endif
