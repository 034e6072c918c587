/* decode_ppd.c: text from a GPT-2, several tokens a pass, with the same words.

A language model makes a token from each pass over its weights, and on a CPU the pass costs the time that the
weights take to come from memory. So this program does two things: it streams the weights at memory speed, and it
gets more than one token out of a pass. Parallel prompt decoding (PPD, arXiv 2405.18628) trains a few embeddings,
"prompt tokens", that are appended to the text and make the frozen model guess the tokens after the next one. The
next pass then verifies a tree of such guesses, and the text is what plain decoding would have written, to the last
token: a row of a pass is rounded alike whatever other rows are in the pass, and a guess counts only if it is the
token that was going to be drawn.

   1  weights in three kinds, and their product with a few rows
   2  the decoder: a pass of rows that form a tree, over a cache of keys and values
   3  choosing tokens, writing text
   4  guesses: prompt tokens, heads, n-grams, a draft model; generation
   5  the best sparse tree
   6  training the prompt tokens
   7  the prompts file
   8  command line: train, run, bench

Everything about models, tokenizers, files and optimizers comes from train_gpt2.c, which is included. Shapes as
there; R is the number of rows in a pass, n the number of prompt tokens. */

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

/* A weight matrix (N outputs, K inputs) is stored as a pass reads it: in quads of 4 outputs whose vectors alternate,

       quad 0:  k 0.. of output 0 | k 0.. of output 1 | of 2 | of 3 | next k of output 0 | ...    quad 1:  ...

so that a core reads one to four long streams. A vector holds `step` inputs: VEC as f32; 2 VEC as bf16; 4 VEC as
int8, whose outputs have a scale each (the row's largest weight is 127). Padding is zero. bf16 numbers k and k + VEC
of a step share a 32-bit word, low and high, which a shift and a mask turn back into two vectors of f32. */
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
static int kind_step(WeightKind kind) { return kind == WEIGHTS_F32 ? VEC : kind == WEIGHTS_BF16 ? 2 * VEC : 4 * VEC; }
static int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Where input k of output n is stored.
static inline char *matrix_at(const Matrix *m, int n, int k) {
    int step = kind_step(m->kind), lane = k % step;
    size_t within = m->kind == WEIGHTS_F32 ? 4 * lane : m->kind == WEIGHTS_BF16 ? lane % VEC * 4 + lane / VEC * 2 : lane;
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
        out[k] = m->kind == WEIGHTS_F32 ? *(const float *)at : m->kind == WEIGHTS_BF16 ? bits.f : m->scale[n] * *(const int8_t *)at;
    }
}

// The bytes that a pass reads of a matrix.
static size_t matrix_bytes(const Matrix *m) {
    return (size_t)m->N * m->K * (m->kind == WEIGHTS_F32 ? 4 : m->kind == WEIGHTS_BF16 ? 2 : 1);
}

// Each of the sums c += the four products of bytes in that 32-bit lane. Where the machine multiplies only unsigned by
// signed bytes, activations are stored with 128 added (`offset` takes that off again); elsewhere they are signed.
#if VEC == 16 && defined(__AVX512VNNI__)
#define ACTIVATION_OFFSET 128
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) { return (vec_i)_mm512_dpbusd_epi32((__m512i)c, (__m512i)x, (__m512i)w); }
#elif VEC == 8 && defined(__AVXVNNI__)
#define ACTIVATION_OFFSET 128
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) { return (vec_i)_mm256_dpbusd_avx_epi32((__m256i)c, (__m256i)x, (__m256i)w); }
#elif VEC == 8 && defined(__AVX2__)
#define ACTIVATION_OFFSET 0 // x w = |x| (sign(x) w); pairs of such products fit 16 bits, for none is beyond 127^2
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), _mm256_sign_epi8((__m256i)w, (__m256i)x));
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

// Element i of the result is the sum of c[i]: neighbours are added in halves, as in train_gpt2.c's transpose_block.
#define REDUCE(c)                                                                              \
    _Pragma("GCC unroll 4") for (int half = VEC / 2; half; half /= 2)                          \
        _Pragma("GCC unroll 8") for (int i = 0; i < half; i++)                                 \
            c[i] = SHUFFLE(c[i], c[i + half], LOW) + SHUFFLE(c[i], c[i + half], HIGH);

/* Products of NB outputs (weights from w on) and RB rows of activations (from x on, `row` bytes apart); NB RB = VEC,
so that one vector holds the results, [row][output]. The first four arguments are constants. Each product is summed in
one accumulator over k, and the accumulator's lanes in one order: a row's rounding does not depend on NB and RB. The
block after this one is fetched meanwhile, where asked for. */
static inline __attribute__((always_inline)) vec_i tile(const WeightKind kind, const int NB, const int RB, const int fetch,
                                                        int steps, const char *w, size_t quad, const char *x, size_t row) {
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

// Block b of VEC outputs for all rows: raw sums (float, or int32 for int8) into out (R, ld).
static inline __attribute__((always_inline)) void block_product(const WeightKind kind, float *out, int ld, const Matrix *m, int b,
                                                                const char *x, size_t row, int rows) {
    const char *w = m->data + (size_t)b * (VEC / 4) * m->quad;
    int four = rows / 4 * 4, r = 0;
    out += (size_t)b * VEC;
#define STORE(NB, RB, sub)                                                                                    \
    for (int j = 0; j < RB; j++) memcpy(out + (size_t)(r + j) * ld + (sub) * NB, (float *)&sums + j * NB, NB * sizeof(float))
    for (int sub = 0; sub < 4 && four; sub++) { // a quarter of the block stays in L1 for all rows
        const char *part = w + sub * (VEC / 4) / 4 * m->quad + sub * (VEC / 4) % 4 * VECTOR;
        for (r = 0; r < four; r += 4) {
            vec_i sums = tile(kind, VEC / 4, 4, 0, m->steps, part, m->quad, x + r * row, row);
            STORE(VEC / 4, 4, sub);
        }
    }
    if (rows - r >= 2) {
        for (int sub = 0; sub < 2; sub++) {
            const char *part = w + sub * (VEC / 2) / 4 * m->quad + sub * (VEC / 2) % 4 * VECTOR;
            vec_i sums = tile(kind, VEC / 2, 2, 0, m->steps, part, m->quad, x + r * row, row);
            STORE(VEC / 2, 2, sub);
        }
        r += 2;
    }
    if (r < rows) {
        vec_i sums = rows == 1 ? tile(kind, VEC, 1, 1, m->steps, w, m->quad, x + r * row, row)
                               : tile(kind, VEC, 1, 0, m->steps, w, m->quad, x + r * row, row);
        STORE(VEC, 1, 0);
    }
#undef STORE
}

static __attribute__((noinline)) void product_f32(float *out, int ld, const Matrix *m, int b, const char *x, size_t row, int rows) {
    block_product(WEIGHTS_F32, out, ld, m, b, x, row, rows);
}
static __attribute__((noinline)) void product_bf16(float *out, int ld, const Matrix *m, int b, const char *x, size_t row, int rows) {
    block_product(WEIGHTS_BF16, out, ld, m, b, x, row, rows);
}
static __attribute__((noinline)) void product_int8(float *out, int ld, const Matrix *m, int b, const char *x, size_t row, int rows) {
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

// This thread's part of out (R, ld) = x w' + bias, or out += with add; then a GELU. Called by all threads of a team,
// who own ranges of outputs and meet at the end. raw (R, raw_ld) is room for the sums.
static void linear_rows(float *out, int ld, float *raw, int raw_ld, const Operand *x, const Matrix *m, const float *bias, int rows,
                        int add, int with_gelu) {
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

/* A pass takes R rows that form a tree. A row is a token, or a prompt token, that stands after its parent: an earlier
row, or the last token in the cache. It sees the cache, its ancestors and itself; its key and value go into the slots
behind the cache. Logits are made for groups of neighbouring rows, whose last hidden states are averaged first: copies
of a prompt token, for the mean of logits is the logits of the mean. */
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
    d->qkv = allocate(4 * L, sizeof(Matrix)), d->attproj = d->qkv + L, d->fc = d->qkv + 2 * L, d->fcproj = d->qkv + 3 * L;
    for (int l = 0; l < L; l++) {
        size_t w = (size_t)l * C * C;
        d->qkv[l] = matrix_pack(m->params.qkvw + 3 * w, 3 * C, C, kind);
        d->attproj[l] = matrix_pack(m->params.attprojw + w, C, C, kind);
        d->fc[l] = matrix_pack(m->params.fcw + 4 * w, 4 * C, C, kind);
        d->fcproj[l] = matrix_pack(m->params.fcprojw + 4 * w, C, 4 * C, kind);
    }
    int HS = C / g.num_heads;
    d->head_stride = round_up(HS, VEC);
    d->capacity = round_up(g.max_seq_len + MAX_ROWS, 4 * VEC) + 16; // not a power of two: keys would share cache sets
    d->keys = allocate_floats((size_t)L * C * d->capacity + 4 * VEC);
    d->values = allocate_floats((size_t)L * g.num_heads * d->capacity * d->head_stride);
    d->residual = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->atty = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->hidden = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->raw = allocate_floats((size_t)MAX_ROWS * d->wide);
    d->fch = allocate_floats((size_t)MAX_ROWS * d->wide);
    d->logits_stride = round_up(g.vocab_size, 64);
    d->logits = allocate_floats((size_t)MAX_ROWS * d->logits_stride);
    d->threads = omp_get_max_threads();
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
        free(d->scratch[t].normed), free(d->scratch[t].scores), free(d->scratch[t].bytes), free(d->scratch[t].operand.scale);
    void *owned[] = {d->small_memory, d->qkv, d->keys, d->values, d->residual, d->atty, d->hidden, d->raw, d->fch, d->logits, d->scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    memset(d, 0, sizeof *d);
}

// The bytes of weights that a pass streams.
static size_t decoder_bytes(const Decoder *d) {
    size_t sum = matrix_bytes(&d->wte);
    for (int l = 0; l < 4 * d->config.num_layers; l++) sum += matrix_bytes(&d->qkv[l]);
    return sum;
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

// This thread's operand: the layer norm of x, or x itself without weights. Every thread makes all of it for itself:
// cheaper than to wait for one another.
static const Operand *prepare_operand(Decoder *d, const float *x, int ld, int rows, int K, const float *weight, const float *bias) {
    struct Scratch *s = &d->scratch[omp_get_thread_num()];
    if (weight)
        for (int r = 0; r < rows; r++) normalize_row(s->normed + (size_t)r * d->stride, x + (size_t)r * ld, weight, bias, K);
    operand_set(&s->operand, weight ? s->normed : x, weight ? d->stride : ld, rows, K, d->kind, s->bytes);
    return &s->operand;
}

// out (HS) = softmax(q k' / sqrt(HS)) v for a row that sees `past` tokens and then the slots ancestors[0..count), the
// last one its own. keys (HS,capacity), values (capacity,head_stride). Scores stand in the order of positions before
// they are summed, so it does not matter in which slots the ancestors are.
static void attend(float *out, const float *q, const float *keys, const float *values, int capacity, int HS, int head_stride,
                   int past, const int *ancestors, int count, float *scores) {
    int n = past + count;
    for (int j = 0; j <= ancestors[count - 1]; j += 4 * VEC) {
        vec s[4] = {{0}};
        for (int c = 0; c < HS; c++)
            for (int i = 0; i < 4; i++) s[i] += q[c] * *(const vec_u *)(keys + (size_t)c * capacity + j + i * VEC);
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

// This thread's heads: keys and values of the rows go into the cache, then every row attends. raw holds q, k, v.
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
            attend(d->atty + (size_t)r * d->stride + h * HS, d->raw + (size_t)r * d->wide + h * HS, keys, values, d->capacity, HS,
                   d->head_stride, d->past, ancestors[r], b->depth[r] + 1, d->scratch[omp_get_thread_num()].scores);
    }
}

// The rows' hidden states into d->residual, their keys and values into the cache, the outputs' logits into d->logits.
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
            float *x = d->residual + (size_t)r * d->stride, *position = p.wpe + (size_t)(d->past + b->depth[r]) * C;
            if (b->token[r] >= 0) matrix_row(&d->wte, b->token[r], x);
            else memcpy(x, d->prompts + (size_t)~b->token[r] * C, C * sizeof(float));
            for (int c = 0; c < C; c++) x[c] += position[c];
        }
        for (int l = 0; l < g.num_layers; l++) {
            const Operand *x = prepare_operand(d, d->residual, d->stride, rows, C, p.ln1w + l * C, p.ln1b + l * C);
            linear_rows(d->raw, d->wide, d->raw, d->wide, x, &d->qkv[l], p.qkvb + l * 3 * C, rows, 0, 0);
            attention_rows(d, b, l, ancestors);
            x = prepare_operand(d, d->atty, d->stride, rows, C, NULL, NULL);
            linear_rows(d->residual, d->stride, d->hidden, d->stride, x, &d->attproj[l], p.attprojb + l * C, rows, 1, 0);
            x = prepare_operand(d, d->residual, d->stride, rows, C, p.ln2w + l * C, p.ln2b + l * C);
            linear_rows(d->fch, d->wide, d->raw, d->wide, x, &d->fc[l], p.fcb + l * 4 * C, rows, 0, 1);
            x = prepare_operand(d, d->fch, d->wide, rows, 4 * C, NULL, NULL);
            linear_rows(d->residual, d->stride, d->hidden, d->stride, x, &d->fcproj[l], p.fcprojb + l * C, rows, 1, 0);
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
        for (int o = 0, end; o < b->outputs; o = end) { // hidden += silu(W hidden + bias), for neighbours of one head
            for (end = o + 1; end < b->outputs && b->head[end] == b->head[o];) end++;
            if (b->head[o] < 0) continue;
            float *h = d->hidden + (size_t)o * d->stride;
            const Operand *x = prepare_operand(d, h, d->stride, end - o, C, NULL, NULL);
            linear_rows(d->fch, d->wide, d->raw, d->wide, x, &d->heads[b->head[o]], d->heads_bias + b->head[o] * C, end - o, 0, 0);
#pragma omp for schedule(static)
            for (int r = 0; r < end - o; r++)
                for (int c = 0; c < C; c++) {
                    float z = d->fch[(size_t)r * d->wide + c];
                    h[(size_t)r * d->stride + c] += z / (1.0f + exp_f32(-z));
                }
        }
        if (b->outputs) {
            const Operand *x = prepare_operand(d, d->hidden, d->stride, b->outputs, C, NULL, NULL);
            linear_rows(d->logits, d->logits_stride, d->logits, d->logits_stride, x, &d->wte, NULL, b->outputs, 0, 0);
        }
    }
}

// After a pass: the rows path[0..n), each the parent of the next, become part of the text; all others are forgotten.
static void decoder_accept(Decoder *d, const int *path, int n) {
    int NH = d->config.num_heads, HS = d->config.channels / NH;
    for (int i = 0; i < n; i++) {
        int from = d->past + path[i], to = d->past + i; // from >= to: nothing that is still needed is overwritten
        if (from == to) continue;
        for (int lh = 0; lh < d->config.num_layers * NH; lh++) {
            float *keys = d->keys + (size_t)lh * HS * d->capacity, *values = d->values + (size_t)lh * d->capacity * d->head_stride;
            for (int c = 0; c < HS; c++) keys[(size_t)c * d->capacity + to] = keys[(size_t)c * d->capacity + from];
            memcpy(values + (size_t)to * d->head_stride, values + (size_t)from * d->head_stride, HS * sizeof(float));
        }
    }
    d->past += n;
}

// Brings tokens into the cache, in passes of MAX_ROWS rows: from some 16 rows on arithmetic bounds a pass, and larger
// ones would gain nothing.
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

// Draws the token number `index` of a text. The number alone decides what is drawn from given logits, so that a text
// does not depend on how many tokens each pass has made.
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
    const char *bytes = token < w->tokenizer->vocab_size ? tokenizer_token(w->tokenizer, token, &length) : NULL;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if ((c & 0xC0) != 0x80) fwrite(w->held, 1, w->n, w->file), w->n = 0; // a new character
        w->held[w->n++] = (char)c;
        unsigned char lead = (unsigned char)w->held[0];
        int needed = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1;
        if (w->n >= needed) fwrite(w->held, 1, w->n, w->file), w->n = 0;
    }
    fflush(w->file);
}

static void writer_end(Writer *w) { fwrite(w->held, 1, w->n, w->file), w->n = 0, fflush(w->file); }

// ============================================================================================================
// 4  Guesses; generation

/* A pass verifies a tree. Its root is the newest token of the text, whose logits nobody has seen yet; a node is a guess
of what follows its parent. A node may carry a chain of prompt tokens, whose outputs guess the tokens after the next one:

      text ... root --+-- "the" --+-- "king"          the logits of a node choose the next token; if a child is that
                P P P |   P P     +-- "lord" P        token, it is accepted, and its logits choose the next one.
                      +-- "a" P                       The chain at the last accepted node guesses the next tree.

Which nodes and chains, a template says: there is one for each state, the number of guessed distances at hand. */
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
    int nodes, rows;
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
    if (g->length == g->capacity) g->text = resize(g->text, (size_t)(g->capacity = 2 * g->length + 1024) * sizeof *g->text);
    g->text[g->length++] = (uint16_t)token;
}

// Makes the cache hold the text but for its last few tokens. When the context is full, its last half is kept and
// computed anew from position 0; a pass that makes several tokens never goes past that point, so the text slides at
// the same places however it is made.
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
    if (t->rows + 1 + chain * copies > MAX_ROWS - 8) return -1; // rows of the text before the root come on top
    int v = t->nodes++;
    t->token[v] = token, t->parent[v] = parent, t->chain[v] = chain, t->depth[v] = v ? t->depth[parent] + 1 : 0;
    t->rows += 1 + chain * copies;
    return v;
}

// What followed the last `size` tokens when they stood in the text before, at the latest such place; 0: nowhere.
static int find_ngram(const uint16_t *text, int length, int size) {
    for (int at = length - size - 1; at >= 0; at--)
        if (!memcmp(text + at, text + length - size, size * sizeof *text)) return at + size;
    return 0;
}

// How many proposals pay: the g with the most expected tokens for the time, where each is right with the measured
// probability if those before it are.
static int best_proposals(const Generator *g, int rows) {
    double a = (g->accepted + 1) / (g->proposed + 2), expected = 1, power = 1, best = 0;
    int length = 0;
    if (!g->latency) return 4;
    for (int n = 0; n <= 16 && rows + n <= MAX_ROWS - 8; n++, expected += power *= a) {
        double rate = expected / (g->latency[rows + n - 1] + n * g->draft_cost);
        if (rate > best) best = rate, length = n;
    }
    return MAX(length, g->passes % 16 == 0); // now and then one anyway, to learn what it would be worth
}

static int generator_step(Generator *g, int limit);

// Lets the draft model go on from our text, and returns its tokens. What it had written of its own is taken back to where
// the texts part.
static int propose_by_draft(Generator *g, int count, const uint16_t **tokens) {
    Generator *s = g->draft;
    int most = MIN(s->length, g->length), same = MIN(most, s->base), added;
    double start = now();
    while (same < most && s->text[same] == g->text[same]) same++;
    added = same < s->length ? s->state : MIN(s->state, g->length - same); // distances whose guesses are void or past
    s->state -= added;
    memmove(s->guess, s->guess + added, s->state * sizeof *s->guess);
    if (s->base > same) s->base = 0, s->decoder->past = 0;
    s->decoder->past = MIN(s->decoder->past, MAX(0, same - s->base));
    s->length = same;
    while (s->length < g->length) generator_append(s, g->text[s->length]);
    s->decoder->past = MIN(s->decoder->past, s->length - 1 - s->base);
    while (s->length < g->length + count) generator_step(s, g->length + count - s->length);
    *tokens = s->text + g->length;
    g->draft_cost += 0.1 * ((now() - start) / count - g->draft_cost);
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
        for (int size = 4; size >= 2 && !found && size < g->length; size--) found = find_ngram(g->text, g->length, size);
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
    float temperature = g->sampling.temperature > 0 ? (float)g->sampling.temperature : 1, lse = log_sum_exp(logits, V, temperature);
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
    Tree t = {0};
    const Template *shape = &g->templates[g->state];
    int node_of[MAX_ROWS];
    tree_add(&t, -1, g->text[g->length - 1], g->kind == GUESS_PROMPTS ? shape->chain[0] : 0, g->copies);
    node_of[0] = 0;
    for (int v = 1; v < shape->nodes && g->kind; v++) {
        int parent = node_of[shape->parent[v]];
        node_of[v] = parent < 0 || shape->depth[v] > MIN(room, limit - 1) ? -1 : // beyond what can be accepted
            tree_add(&t, parent, g->guess[shape->depth[v] - 1][shape->rank[v]], g->kind == GUESS_PROMPTS ? shape->chain[v] : 0, g->copies);
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

/* Given: accuracy a[d][r], the probability that the guess of rank r for distance d+1 is right if the guesses before it
were. A node's probability is the product along its path. With budget s rows, which tree should each state k have?

The states form a Markov decision process: a tree of state k brings 1 + sum of its nodes' probabilities tokens, and
leads to state m if the last accepted node carries m prompt tokens. The long-run tokens a pass, tau(s), are largest if

    tau + h[k] = max over trees of ( tokens + sum over nodes of P(node is the last accepted) h[its chain] ),  h[0] = 0

(Howard 1960). For given h the best tree is found exactly, for all budgets at once, by a knapsack over ranks at each
depth: with G(d, b) the best value behind a right node of depth d whose subtree has b rows,

    G(d, b) = max over chains m of  h[m] + W(b - 1 - m copies),
    W(b) = max over rows b_r given to each rank, their sum at most b, of  sum_r a[d][r] (1 + G(d+1, b_r) - h[m])

for if the child of rank r is right, the node is not the last one and h[m] is lost. h is found by value iteration. The
authors enumerate (arXiv 2405.18628, section 4); this is the optimum, in a few milliseconds. */
typedef struct {
    int n, copies;                          // copies = rows of a prompt token: 0 for heads, which take none
    double accuracy[MAX_PROMPTS][RANKS];
} TreeModel;

typedef struct {
    double value[MAX_PROMPTS + 1][MAX_ROWS + 1];            // G(d, b)
    int8_t chain[MAX_PROMPTS + 1][MAX_ROWS + 1];            // the m that attains it
    int8_t given[MAX_PROMPTS + 1][MAX_PROMPTS + 1][RANKS][MAX_ROWS + 1]; // b_r: depth, chain, rank, rows for ranks 0..r
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
                        double value = w[b - give] + model->accuracy[d][r] * (1 + t->value[d + 1][give] - h[m]);
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
static void read_table(const TreeTable *t, const TreeModel *model, int k, int d, int b, int parent, int rank, Template *out) {
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
static double long_run(const Template *trees, const TreeModel *model, const double *latency, double *seconds) {
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

// The budget with the most tokens a second, for passes of `latency` seconds; heads have n and no chains, and every node
// of theirs has n+1 outputs. Returns tau; *speedup is predicted against one row a pass.
static double best_trees(const TreeModel *model, const double *latency, int most, Template *trees, double *speedup) {
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

// Measures seconds of a pass of 1 to MAX_ROWS rows, all with an output, behind `past` tokens; between the measured
// sizes, the line through the neighbours.
static void measure_latency(Decoder *d, double *latency) {
    static const int sizes[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    int context = d->config.max_seq_len, saved = d->past, known = 0;
    d->past = context / 4;
    for (int round = -1; round < 8; round++) // in turns: what else the machine does hits all alike
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
            latency[r - 1] = latency[known - 1] + (latency[s - 1] - latency[known - 1]) * (r - known) / (s - known);
        known = s;
    }
    d->past = saved;
}

// ============================================================================================================
// 6  Training the prompt tokens

/* B texts of T tokens go through the model once, and with them, as further rows of the same matrices, the prompt tokens
of `cuts` random places of each text: rows B*T + ((b*cuts + c)*n + i)*copies + j. Prompt i of a cut stands at position
cut+1+i and sees the text up to the cut, and copy j of the prompts before it. Nothing of the text sees a prompt.

    loss = sum_i 0.8^i / n  mean over cuts of KL( model at cut+1+i || prompt i ),  i from 0         (arXiv 2405.18628)

The model's own distribution at cut+1+i is that of the token i+2 after the cut, whose guess is prompt i's. Backward,
only prompt rows have gradients, unless the model is trained too ("joint"); then text rows have them as well, and
those of the prompts flow into the keys and values of the text. */
typedef struct {
    GPT2 *m;
    int n, copies, cuts, B, T, heads;    // heads: train n of them in place of prompt tokens (arXiv 2401.10774)
    int joint;
    float weight;                        // of the prompts' loss
    float *params, *grads;               // (n,copies,C), or heads (n,C,C) and then (n,C)
    int *cut;                            // (B,cuts)
    float *student, *teacher, *dstudent, *z; // (chunk,C)
    float *teacher_logits, *scratch;     // (chunk,V), (2C)
    int chunk;
    double kl;                           // of the last step, weighted
    double top1[MAX_PROMPTS], top5[MAX_PROMPTS]; // shares of cuts where the model's likeliest token is among the guesses
} PromptTrainer;

static size_t guesser_size(int heads, int n, int copies, int C) { return heads ? (size_t)n * (C * (size_t)C + C) : (size_t)n * copies * C; }
static int prompt_rows(const PromptTrainer *t) { return t->heads ? 0 : t->cuts * t->n * t->copies; } // of a text

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

// What attention of the prompts of text b in a head works on: rows of q, k, v (3C apart) and of outputs (C apart).
typedef struct {
    const float *q, *k, *v, *own_k, *own_v; // own: keys and values of the prompt rows
    size_t out, lse, to_q, to_k;            // where outputs, lse, and gradients of own q and text k begin
} PromptHead;

static PromptHead prompt_head(const PromptTrainer *t, const float *qkv, int b, int h) {
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t);
    size_t row = (size_t)t->B * t->T + (size_t)b * P;
    PromptHead p = {.to_q = row * 3 * C + h * HS, .to_k = (size_t)b * t->T * 3 * C + C + h * HS, .out = row * C + h * HS};
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

// Probabilities of a head's prompt rows: p (P,T) over the text, own (P,n) over the chain up to itself. lse (P) is
// written, or with again = 1 read.
static void prompt_probabilities(const PromptTrainer *t, const PromptHead *a, int b, float *lse, float *p, float *own, int again) {
    int C = t->m->config.channels, HS = C / t->m->config.num_heads, P = prompt_rows(t), T = t->T;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
    multiply(p, T, a->q, ld, 1, a->k, 1, ld, P, T, HS, plain, NULL);
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
        float *p = resize(NULL, (size_t)P * (T + t->n) * sizeof(float)), *own = p + (size_t)P * T, *o = out + a.out;
        prompt_probabilities(t, &a, bh / NH, lse + a.lse, p, own, 0);
        multiply(o, C, p, T, 1, a.v, 3L * C, 1, P, HS, T, plain, NULL);
        for (int r = 0; r < P; r++)
            for (int i = r / t->copies % t->n, e = 0; e <= i; e++) {
                const float *v = a.own_v + (r - (i - e) * t->copies) * 3L * C;
                for (int c = 0; c < HS; c++) o[(size_t)r * C + c] += own[(size_t)r * t->n + e] * v[c];
            }
        free(p);
    }
}

// dqkv of the prompt rows from dout; jointly, dk and dv of the text are added to.
static void prompt_attention_backward(const PromptTrainer *t, float *dqkv, const float *dout, const float *qkv, const float *out,
                                      float *lse) {
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t), T = t->T;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < t->B * NH; bh++) {
        PromptHead a = prompt_head(t, qkv, bh / NH, bh % NH);
        float *p = resize(NULL, (size_t)P * (2 * T + t->n) * sizeof(float)), *dp = p + (size_t)P * T, *own = dp + (size_t)P * T;
        float *dq = dqkv + a.to_q, *dk = dq + C, *dv = dk + C;
        const float *d_o = dout + a.out, *o = out + a.out;
        prompt_probabilities(t, &a, bh / NH, lse + a.lse, p, own, 1);
        multiply(dp, T, d_o, C, 1, a.v, 1, ld, P, T, HS, plain, NULL);
        for (int r = 0; r < P; r++)
            for (int c = 0; c < HS; c++) dk[r * ld + c] = dv[r * ld + c] = 0;
        for (int r = 0; r < P; r++) {
            float D = dot(o + (size_t)r * C, d_o + (size_t)r * C, HS), *pr = p + (size_t)r * T, *dpr = dp + (size_t)r * T;
            for (int j = 0; j < T; j++) dpr[j] = pr[j] * (dpr[j] - D) * scale;
        }
        multiply(dq, ld, dp, T, 1, a.k, ld, 1, P, HS, T, plain, NULL);
        if (t->joint) {
            multiply(dqkv + a.to_k, ld, dp, 1, T, a.q, ld, 1, T, HS, P, accumulate, NULL);
            multiply(dqkv + a.to_k + C, ld, p, 1, T, d_o, C, 1, T, HS, P, accumulate, NULL);
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
        const float *prompt = t->params + (size_t)which * C, *position = p.wpe + (size_t)(cut + 1 + which / t->copies) * C;
        for (int c = 0; c < C; c++) m->residual[(size_t)r * C + c] = prompt[c] + position[c];
    }
    for (int l = 0; l < g.num_layers; l++) {
        size_t at = (size_t)l * rows, w = (size_t)l * C * C;
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *qkv = m->qkv + at * 3 * C, *atty = m->atty + at * C;
        float *lse = m->lse + at * g.num_heads;
        layernorm_forward(m->normed, m->ln1_mean + at, m->ln1_rstd + at, x, p.ln1w + l * C, p.ln1b + l * C, rows, C);
        linear_forward(qkv, m->normed, p.qkvw + 3 * w, rows, C, 3 * C, (Epilogue){.bias = p.qkvb + l * 3 * C});
        attention_forward(atty, lse, qkv, t->B, t->T, C, g.num_heads);
        if (rows > text) prompt_attention_forward(t, atty, lse, qkv);
        linear_forward(x2, atty, p.attprojw + w, rows, C, C, (Epilogue){.bias = p.attprojb + l * C, .residual = x});
        layernorm_forward(m->normed, m->ln2_mean + at, m->ln2_rstd + at, x2, p.ln2w + l * C, p.ln2b + l * C, rows, C);
        linear_forward(m->fch + at * 4 * C, m->normed, p.fcw + 4 * w, rows, C, 4 * C,
                       (Epilogue){.bias = p.fcb + l * 4 * C, .gelu = m->fch_gelu});
        linear_forward(x + (size_t)rows * C, m->fch_gelu, p.fcprojw + 4 * w, rows, 4 * C, C,
                       (Epilogue){.bias = p.fcprojb + l * C, .residual = x2});
    }
    layernorm_forward(m->lnf, m->lnf_mean, m->lnf_rstd, m->residual + (size_t)g.num_layers * rows * C, p.lnfw, p.lnfb, rows, C);
}

// A head's output for cut hidden states: student = x + silu(z), z = x W' + bias; z is kept.
static void heads_forward(PromptTrainer *t, int i, int rows) {
    int C = t->m->config.channels;
    linear_forward(t->z, t->student, t->params + (size_t)i * C * C, rows, C, C, (Epilogue){.bias = t->params + (size_t)t->n * C * C + i * C});
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

// KL of all guesses after prompt_forward, in chunks of cuts; their gradients, times t->weight, go into the prompt rows of
// m->dnormed, into grads.wte (jointly), or into the heads.
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
                memcpy(t->teacher + (size_t)r * C, m->lnf + ((size_t)b * t->T + cut + 1 + i) * C, C * sizeof(float));
                memset(student, 0, C * sizeof(float));
                const float *own = t->heads ? m->lnf + ((size_t)b * t->T + cut) * C
                                            : m->lnf + (text + ((size_t)(first + r) * t->n + i) * t->copies) * C;
                for (int j = 0; j < (t->heads ? 1 : t->copies); j++)
                    for (int c = 0; c < C; c++) student[c] += own[j * C + c] / (float)(t->heads ? 1 : t->copies);
            }
            linear_forward(t->teacher_logits, t->teacher, m->params.wte, rows, C, V, plain);
            if (t->heads) memcpy(t->teacher, t->student, (size_t)rows * C * sizeof(float)), heads_forward(t, i, rows);
            linear_forward(m->logits, t->student, m->params.wte, rows, C, V, plain);
#pragma omp parallel for schedule(static)
            for (int r = 0; r < rows; r++) {
                float *x = m->logits + (size_t)r * V, *y = t->teacher_logits + (size_t)r * V;
                float x_lse = log_sum_exp(x, V, 1), y_lse = log_sum_exp(y, V, 1), likeliest = x[argmax(y, V)], sum = 0;
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
static void backward_linear(const PromptTrainer *t, float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                            int rows, int K, int N, Epilogue e) {
    if (t->joint) linear_backward(dx, dw, db, dout, x, w, rows, K, N, e, accumulate);
    else matmul(dx, dout, w, rows, K, N, 0, 0, e);
}

// Forward and backward: t->grads = the gradient of weight * KL; jointly, m->grads = that of the text's loss + weight * KL.
// Returns the text's loss, or NaN. Mirrors gpt2_backward, for rows from `first` on only.
static double prompt_step(PromptTrainer *t, const uint16_t *tokens, const uint16_t *targets) {
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    ParameterTensors p = m->params, d = m->grads;
    int C = g.channels, text = t->B * t->T, rows = text + t->B * prompt_rows(t), first = t->joint ? 0 : text, n = rows - first;
    double loss = NAN;
    prompt_forward(t, tokens);
    memset(t->grads, 0, guesser_size(t->heads, t->n, t->copies, C) * sizeof(float));
    if (t->joint) {
        memset(m->grads_memory, 0, m->num_parameters * sizeof(float));
        loss = classifier(m, targets, 1.0f / (float)text, 0, NULL);
    } else { // what the kernels would add to, and nobody reads
        d = (ParameterTensors){.ln1w = t->scratch, .ln1b = t->scratch + C, .ln2w = t->scratch, .ln2b = t->scratch + C,
                               .lnfw = t->scratch, .lnfb = t->scratch + C};
    }
    prompt_loss(t);
    if (!n) return loss;
    size_t layer = t->joint ? C : 0;
    float *dx = m->dresidual, *dnormed = m->dnormed + (size_t)first * C, *dwide = m->dwide;
    memset(dx, 0, (size_t)n * C * sizeof(float));
    layernorm_backward(dx, d.lnfw, d.lnfb, m->partial, dnormed, m->residual + ((size_t)g.num_layers * rows + first) * C, p.lnfw,
                       m->lnf_mean + first, m->lnf_rstd + first, n, C);
    for (int l = g.num_layers - 1; l >= 0; l--) {
        size_t at = (size_t)l * rows + first, w = (size_t)l * C * C, dw = t->joint ? w : 0;
        float *x = m->residual + at * C, *x2 = m->residual2 + at * C, *fch = m->fch + at * 4 * C;
        float *qkv = m->qkv + (at - first) * 3 * C, *atty = m->atty + (at - first) * C, *lse = m->lse + (at - first) * g.num_heads;
        float *mean1 = m->ln1_mean + at, *rstd1 = m->ln1_rstd + at, *mean2 = m->ln2_mean + at, *rstd2 = m->ln2_rstd + at;
        float *ln1w = p.ln1w + l * C, *ln2w = p.ln2w + l * C;
        gelu_again(m->fch_gelu, fch, (size_t)n * 4 * C);
        backward_linear(t, dwide, d.fcprojw + 4 * dw, d.fcprojb + l * layer, dx, m->fch_gelu, p.fcprojw + 4 * w, n, 4 * C, C,
                        (Epilogue){.times = fch});
        if (t->joint) layernorm_again(m->normed, x2, ln2w, p.ln2b + l * C, mean2, rstd2, n, C);
        backward_linear(t, dnormed, d.fcw + 4 * dw, d.fcb + l * 4 * layer, dwide, m->normed, p.fcw + 4 * w, n, C, 4 * C, plain);
        layernorm_backward(dx, d.ln2w + l * layer, d.ln2b + l * layer, m->partial, dnormed, x2, ln2w, mean2, rstd2, n, C);
        backward_linear(t, dnormed, d.attprojw + dw, d.attprojb + l * layer, dx, atty + (size_t)first * C, p.attprojw + w, n, C, C, plain);
        if (t->joint) attention_backward(dwide, dnormed, qkv, atty, lse, t->B, t->T, C, g.num_heads);
        prompt_attention_backward(t, dwide - (size_t)first * 3 * C, dnormed - (size_t)first * C, qkv, atty, lse);
        if (t->joint) layernorm_again(m->normed, x, ln1w, p.ln1b + l * C, mean1, rstd1, n, C);
        backward_linear(t, dnormed, d.qkvw + 3 * dw, d.qkvb + l * 3 * layer, dwide, m->normed, p.qkvw + 3 * w, n, C, 3 * C, plain);
        layernorm_backward(dx, d.ln1w + l * layer, d.ln1b + l * layer, m->partial, dnormed, x, ln1w, mean1, rstd1, n, C);
    }
    if (t->joint) encoder_backward(d.wte, d.wpe, dx, tokens, t->B, t->T, C);
    dx -= (size_t)first * C;
    for (int r = text; r < rows; r++) {
        int which = (r - text) % (t->n * t->copies), cut = t->cut[(r - text) / (t->n * t->copies)];
        for (int c = 0; c < C; c++) t->grads[(size_t)which * C + c] += dx[(size_t)r * C + c];
        for (int c = 0; c < C && t->joint; c++) d.wpe[(size_t)(cut + 1 + which / t->copies) * C + c] += dx[(size_t)r * C + c];
    }
    return loss;
}

// Random cuts of the step's texts; each leaves room for the prompts and for what they guess.
static void draw_cuts(PromptTrainer *t, uint64_t seed, long step) {
    for (int i = 0; i < t->B * t->cuts; i++)
        t->cut[i] = (int)(random_u64(seed + 5, (uint64_t)step * t->B * t->cuts + i) % (uint64_t)(t->T - t->n));
}
