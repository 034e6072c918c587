/* decode_ppd.c: text from a GPT-2, several tokens a pass, with the same words.

A language model makes a token from each pass over its weights, and on a CPU the pass costs the time that the
weights take to come from memory. So this program does two things: it streams the weights at memory speed, and
it gets more than one token out of a pass. Parallel prompt decoding (PPD, arXiv 2405.18628) trains a few
embeddings, "prompt tokens", that are appended to the text and make the frozen model guess the tokens after
the next one. The next pass then verifies a tree of such guesses, and the text is what plain decoding would
have written, to the last token (unless --typical is given): a row of a pass is rounded alike whatever other
rows are in the pass, and a guess counts only if it is the token that was going to be drawn.

   1  weights in three kinds, and their product with a few rows
   2  the decoder: a pass of rows that form a tree, over a cache of keys and values
   3  choosing tokens, writing text
   4  guesses: prompt tokens, heads, n-grams, a draft model; generation
   5  the best sparse tree
   6  training the prompt tokens
   7  the prompts file; an engine: model, guesses and trees together
   8  command line: run, train
   9  bench

Everything about models, tokenizers, files and optimizers comes from train_gpt2.c, which is included. Shapes
as there; R is the number of rows in a pass, n the number of prompt tokens. */

#define TRAIN_GPT2_NO_MAIN
#include "train_gpt2.c"
#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

// ===========================================================================================================
// 1  Weights in three kinds, and their product with a few rows

/* A weight matrix (N outputs, K inputs) is stored as a pass reads it, in panels of NR = 2 VEC outputs:

       panel 0:  word 0 of outputs 0 .. NR-1 | word 1 of outputs 0 .. NR-1 | ...    panel 1:  ...

so that a core reads one long stream, and a lane of a vector belongs to one output. A word of 32 bits holds
one input as f32, two as bf16, four as int8, whose outputs have a scale each (the largest weight is 127).
Padding is zero. A model's file has another order (and never int8), in pages of 4 KB: one of float32 is mapped
by `run` and `bench`, and the weights are packed from there, once, into huge pages. */
typedef enum { WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_INT8, NUM_KINDS } WeightKind;
static const struct { const char *name; int bytes; } kinds[NUM_KINDS] = {
    {"f32", 4}, {"bf16", 2}, {"int8", 1}};

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

// A linear layer, with the layer norm before it where there is one.
typedef struct {
    WeightKind kind;
    int N, K;
    int panels;                   // of NR outputs
    int words;                    // of a row
    char *data;
    float *scale;                 // (N) int8: weight = scale * stored
    int32_t *offset;              // (N) int8: what the offset of the activations adds to each product
    const float *bias;            // (N), or NULL; not owned
    const float *norm_w, *norm_b; // (K), or NULL; not owned
} Linear;

// Where input k of output n is stored.
static inline char *weight_at(const Linear *m, int n, int k) {
    int bytes = kinds[m->kind].bytes, inputs = 4 / bytes;
    return m->data + ((size_t)(n / NR) * m->words + k / inputs) * NR * 4 + n % NR * 4 + k % inputs * bytes;
}

// Packs w (N,K) as `kind`, with int8 a scale for each row; bias (N), and the norm (K) of the input, are kept
// by pointer, NULL without.
static Linear linear_pack(const float *w, int N, int K, WeightKind kind, const float *bias,
                          const float *norm_w, const float *norm_b) {
    int inputs = 4 / kinds[kind].bytes;
    Linear m = {.kind = kind, .N = N, .K = K, .panels = round_up(N, NR) / NR,
                .words = round_up(K, inputs) / inputs, .bias = bias, .norm_w = norm_w, .norm_b = norm_b};
    m.data = allocate((size_t)m.panels * m.words, NR * 4);
    m.scale = allocate_floats(m.panels * NR);
    m.offset = allocate(m.panels * NR, sizeof *m.offset);
#pragma omp parallel for schedule(static)
    for (int p = 0; p < m.panels; p++)
        for (int n = p * NR; n < MIN(N, (p + 1) * NR); n++) {
            const float *row = w + (size_t)n * K;
            float largest = 0;
            for (int k = 0; k < K && kind == WEIGHTS_INT8; k++) largest = MAX(largest, fabsf(row[k]));
            m.scale[n] = largest > 0 ? largest / 127 : 1;
            for (int k = 0; k < K; k++) {
                char *at = weight_at(&m, n, k);
                int q = kind == WEIGHTS_INT8 ? (int)rintf(row[k] / m.scale[n]) : 0;
                if (kind == WEIGHTS_F32) *(float *)at = row[k];
                else if (kind == WEIGHTS_BF16) *(uint16_t *)at = bf16_of(row[k]);
                else *(int8_t *)at = (int8_t)q, m.offset[n] += 128 * q;
            }
        }
    return m;
}

static void linear_free(Linear *m) { free(m->data), free(m->scale), free(m->offset); }

// out (K) = the weights of output n, in f32: embeddings are looked up in the classifier's matrix.
static void linear_row(const Linear *m, int n, float *out) {
    for (int k = 0; k < m->K; k++) {
        const void *at = weight_at(m, n, k);
        if (m->kind == WEIGHTS_F32) out[k] = *(const float *)at;
        else if (m->kind == WEIGHTS_BF16) widen(out + k, at, 1);
        else out[k] = m->scale[n] * *(const int8_t *)at;
    }
}

// The bytes that a pass reads of the weights.
static size_t linear_bytes(const Linear *m) { return (size_t)m->N * m->K * kinds[m->kind].bytes; }

// Each of the sums c += the four products of bytes in that 32-bit lane. VNNI multiplies unsigned by signed
// bytes: there activations are stored with 128 added (`offset` takes that off again); elsewhere they are
// signed.
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
    __m256i size = _mm256_abs_epi8((__m256i)x), signed_w = _mm256_sign_epi8((__m256i)w, (__m256i)x);
    return c + (vec_i)_mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_w), _mm256_set1_epi16(1));
}
#elif VEC == 16 && defined(__AVX512BW__)
#define ACTIVATION_OFFSET 0
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) { // the same; there is no instruction for sign(x) w
    __m512i size = _mm512_abs_epi8((__m512i)x), plus = (__m512i)w;
    __m512i signed_w = _mm512_mask_sub_epi8(plus, _mm512_movepi8_mask((__m512i)x), (__m512i)(vec_i){0}, plus);
    return c + (vec_i)_mm512_madd_epi16(_mm512_maddubs_epi16(size, signed_w), _mm512_set1_epi16(1));
}
#elif VEC == 4 && defined(__ARM_FEATURE_DOTPROD)
#define ACTIVATION_OFFSET 0
static inline vec_i dot4(vec_i c, vec_i x, vec_i w) {
    return (vec_i)vdotq_s32((int32x4_t)c, (int8x16_t)x, (int8x16_t)w);
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

typedef union { float f; int32_t i; } Sum; // of a product: an integer if both sides are int8

// A word of inputs, and a vector of words of weights, of whatever kind they are.
typedef int32_t any_word __attribute__((may_alias));
typedef int32_t any_words __attribute__((vector_size(4 * VEC), may_alias));

// What a thread keeps for itself.
typedef struct {
    const char *x;  // the activations to be multiplied: R rows, `row` bytes apart, zero beyond the inputs
    size_t row;
    int cached;     // the weights stay in a cache from pass to pass
    float *scale;   // (R) int8: of each row
    char *bytes;    // int8: the rows, `row` bytes apart
    float *normed;  // (R, stride) a layer norm's output
    float *scores;  // (capacity) of attention
} Scratch;

#define CHUNK 128 // words

/* out (RB, ld) = or, with add, += products of `words` words of NV / 2 panels of weights, from w on, `panel`
bytes apart, and RB rows of activations, from x on and `row` bytes apart; kind, RB and NV are constants. An
output is summed in one lane of one accumulator, word after word, and every CHUNK words added to what is
there: a row's rounding does not depend on RB and NV. Meanwhile what will be wanted soon is fetched, `step`
bytes of each panel for a word. The inputs of few rows stay in registers while 4 vectors of weights pass by,
else 2 vectors of weights stay while inputs do. */
static inline __attribute__((always_inline)) void tile(const WeightKind kind, const int RB, const int NV,
                                                       Sum *out, int ld, int words, int add, const char *w,
                                                       size_t panel, const char *x, size_t row,
                                                       const char *soon, size_t step) {
    const int parts = kind == WEIGHTS_BF16 ? 2 : 1;
    vec c[MR][4];
    vec_i sums[MR][4];
    for (int r = 0; r < RB; r++)
        for (int j = 0; j < NV; j++) c[r][j] = (vec){0}, sums[r][j] = (vec_i){0};
#pragma GCC unroll 2
    for (int k = 0; k < words; k++, w += NR * 4, soon += step, x += 4 * parts) {
        for (int j = 0; j < NV; j += VEC > 8 ? 1 : 2)
            __builtin_prefetch(soon + j / 2 * panel + j % 2 * sizeof(vec), 0, 2);
#pragma GCC unroll 2 // else -O2 leaves a jump in some tiles, and GCC fuses no multiply-adds across it
        for (int part = 0; part < parts; part++) {
            vec_i inputs[MR], weights[4];
// volatile: else GCC loads weights anew for every row
#define INPUT(r) (inputs[r] = (vec_i){0} + *(const any_word *)(x + (r) * row + 4 * part))
#define WEIGHTS(j) (weights[j] = *(const volatile any_words *)(w + (j) / 2 * panel + (j) % 2 * sizeof(vec)))
#pragma GCC unroll 12
            for (int r = 0; r < RB && NV == 4; r++) INPUT(r);
#pragma GCC unroll 2
            for (int j = 0; j < NV && NV == 2; j++) WEIGHTS(j);
#pragma GCC unroll 24
            for (int i = 0; i < RB * NV; i++) {
                const int r = NV == 4 ? i % RB : i / NV, j = NV == 4 ? i / RB : i % NV;
                if (NV == 4 && r == 0) WEIGHTS(j);
                if (NV == 2 && j == 0) INPUT(r);
                vec_i v = weights[j];
                if (kind == WEIGHTS_BF16) v = part ? v & (int32_t)0xFFFF0000 : v << 16;
                if (kind == WEIGHTS_INT8) sums[r][j] = dot4(sums[r][j], inputs[r], v);
                else c[r][j] += (vec)inputs[r] * (vec)v;
            }
#undef INPUT
#undef WEIGHTS
        }
    }
    for (int r = 0; r < RB; r++)
        for (int j = 0; j < NV; j++) {
            vec_u *to = (vec_u *)(out + (size_t)r * ld + j * VEC);
            if (add && kind == WEIGHTS_INT8) sums[r][j] += (vec_i)*to;
            if (add) c[r][j] += *to;
            *to = kind == WEIGHTS_INT8 ? (vec)sums[r][j] : c[r][j];
        }
}

// Panels first to last - 1 for all rows, into out (R, ld), a chunk at a time, which stays in L1 for the next
// tile. A tile has 2 MR accumulators at most (bf16 needs registers to be widened in): of two panels, which
// come from memory faster than one does, where rows are few, else of one. Each of the tiles fetches its part
// of a later chunk. From a cache the next chunk is early enough, and rows for which two panels would take
// two tiles go faster through one tile of one panel (measured with AVX2: up to a fifth, but not of int8).
static inline __attribute__((always_inline)) void panel_products(const WeightKind kind, Sum *out, int ld,
                                                                 const Linear *m, int first, int last,
                                                                 const Scratch *x, int rows) {
    const int bf16 = kind == WEIGHTS_BF16;
    const int wide = MR / 2 - bf16 * MR / 6, tall = MR - 2 * bf16; // rows of such tiles
    const int near = x->cached && kind != WEIGHTS_INT8, ahead = near ? CHUNK : 2 * CHUNK;
    const int pairs = MIN(bf16 ? 4 : 5, near ? wide : MR); // rows of which two panels are taken
    const size_t panel = (size_t)m->words * NR * 4, row = x->row;
    for (int p = first, taken; p < last; p += taken) {
        taken = rows <= pairs && p + 1 < last ? 2 : 1;
        int most = taken == 2 ? wide : tall, tiles = (rows + most - 1) / most;
        for (int done = 0, words; done < m->words; done += words) {
            words = MIN(CHUNK, m->words - done);
            int later = done + ahead; // of this panel, or of one behind all that are taken
            if (later >= m->words) later += (taken - 1) * m->words;
            const char *w = m->data + p * panel + (size_t)done * NR * 4,
                       *soon = m->data + p * panel + (size_t)later * NR * 4;
            for (int r = 0, t = 0, n; r < rows; r += n, t++) {
                Sum *to = out + (size_t)r * ld + p * NR;
                const char *from = x->x + r * row + (size_t)done * (bf16 ? 8 : 4);
                n = (rows - r + tiles - t - 1) / (tiles - t);
#define CASE(RB, NV)                                                                                         \
    case 10 * RB + NV:                                                                                       \
        tile(kind, RB, NV, to, ld, words, done > 0, w, panel, from, row,                                     \
             soon + (size_t)t * words * NR * 4 / tiles, NR * 4 / tiles);                                     \
        break;
                switch (10 * n + 2 * taken) {
                    CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)
                    CASE(1, 4) CASE(2, 4) CASE(3, 4)
#if MR == 12
                    CASE(7, 2) CASE(8, 2) CASE(9, 2) CASE(10, 2) CASE(11, 2) CASE(12, 2)
                    CASE(4, 4) CASE(5, 4) CASE(6, 4)
#endif
                }
#undef CASE
            }
        }
    }
}

#define PRODUCT(name, kind)                                                                                \
    static __attribute__((noinline)) void name(Sum *out, int ld, const Linear *m, int first, int last,     \
                                               const Scratch *x, int rows) {                              \
        panel_products(kind, out, ld, m, first, last, x, rows);                                            \
    }
PRODUCT(product_f32, WEIGHTS_F32)
PRODUCT(product_bf16, WEIGHTS_BF16)
PRODUCT(product_int8, WEIGHTS_INT8)

// Sets s->x to rows x (R, ld) as the kind of weights needs them: f32 as they stand, or bytes with the row's
// largest number at 127.
static void prepare_rows(Scratch *s, const float *x, int ld, int rows, int K, WeightKind kind) {
    s->x = kind == WEIGHTS_INT8 ? s->bytes : (const char *)x;
    s->row = kind == WEIGHTS_INT8 ? (size_t)round_up(K, 64) : ld * sizeof(float);
    for (int r = 0; r < rows && kind == WEIGHTS_INT8; r++) {
        const float *from = x + (size_t)r * ld;
        uint8_t *to = (uint8_t *)s->bytes + r * s->row;
        float largest = 0;
#pragma omp simd reduction(max : largest)
        for (int k = 0; k < K; k++) largest = fabsf(from[k]) > largest ? fabsf(from[k]) : largest;
        float inverse = largest > 0 ? 127 / largest : 0;
        s->scale[r] = largest / 127;
#pragma omp simd
        for (int k = 0; k < K; k++) to[k] = (uint8_t)((int)rintf(from[k] * inverse) + ACTIVATION_OFFSET);
        memset(to + K, 0, s->row - K);
    }
}

// Panels first to last - 1 of the product of x->x and the weights, and bias: it stays in sums (R, sums_ld),
// is added to out (R, ld), or goes there through a GELU.
typedef enum { STAY, ADD, GELU } Finish;
static void linear_panels(Sum *sums, int sums_ld, const Scratch *x, const Linear *m, int first, int last,
                          int rows, Finish finish, float *out, int ld) {
    (m->kind == WEIGHTS_F32 ? product_f32 : m->kind == WEIGHTS_BF16 ? product_bf16 : product_int8)
        (sums, sums_ld, m, first, last, x, rows);
    int n0 = first * NR, n1 = MIN(last * NR, m->N);
    for (int r = 0; r < rows; r++) {
        Sum *s = sums + (size_t)r * sums_ld;
        float *o = out + (size_t)r * ld;
#pragma omp simd
        for (int n = n0; n < (m->kind == WEIGHTS_INT8 ? n1 : n0); n++)
            s[n].f = m->scale[n] * x->scale[r] * (float)(s[n].i - (ACTIVATION_OFFSET ? m->offset[n] : 0));
#pragma omp simd
        for (int n = n0; n < (m->bias ? n1 : n0); n++) s[n].f += m->bias[n];
#pragma omp simd
        for (int n = n0; n < (finish == ADD ? n1 : n0); n++) o[n] += s[n].f;
#pragma omp simd
        for (int n = n0; n < (finish == GELU ? n1 : n0); n++) o[n] = gelu(s[n].f);
    }
}

// All of them: called by all threads of a team, who own ranges of outputs and meet at the end.
static void linear_rows(Sum *sums, int sums_ld, const Scratch *x, const Linear *m, int rows, Finish finish,
                        float *out, int ld) {
    int threads = omp_get_num_threads(), t = omp_get_thread_num();
    int first = (int)((long)m->panels * t / threads), last = (int)((long)m->panels * (t + 1) / threads);
    linear_panels(sums, sums_ld, x, m, first, last, rows, finish, out, ld);
#pragma omp barrier
}

// ===========================================================================================================
// 2  The decoder

/* A pass takes R rows that form a tree. A row is a token, or a prompt token, that stands after its parent: an
earlier row, or the last token in the cache. It sees the cache, its ancestors and itself; its key and value go
into the slots behind the cache. Logits are made for groups of neighbouring rows, whose last hidden states are
averaged first: copies of a prompt token, for the mean of their logits is what the mean state gives.

Logits of prompt tokens and heads only guess, so they need not be complete. Of a large vocabulary they are
made for the likely tokens alone, which are few: most of a text is in 512 of GPT-2's 3,141 groups of 16. (Zhao
et al. 2025, arXiv 2502.14856, do so with a draft's vocabulary.) */
#define MAX_ROWS 64
#define TOKEN_GROUP 16
#define MAX_LIKELY 512 // groups

typedef struct {
    int rows, outputs;
    int complete;                          // outputs that do not just guess
    int token[MAX_ROWS];                   // a token, or ~i: embedding i of the prompts
    int parent[MAX_ROWS];                  // a row, or -1
    int depth[MAX_ROWS];                   // position - tokens in the cache
    int first[MAX_ROWS], count[MAX_ROWS];  // rows of each output
    int head[MAX_ROWS];                    // a head that the output goes through, or -1
} Batch;

// Appends a row and returns its number.
static int batch_add(Batch *b, int token, int parent) {
    if (b->rows == MAX_ROWS) die("a pass has more than %d rows", MAX_ROWS);
    b->token[b->rows] = token, b->parent[b->rows] = parent;
    b->depth[b->rows] = parent < 0 ? 0 : b->depth[parent] + 1;
    return b->rows++;
}

// Outputs that guess come after all others.
static int batch_output(Batch *b, int first, int count, int head) {
    if (b->outputs == MAX_ROWS) die("a pass has more than %d outputs", MAX_ROWS);
    b->first[b->outputs] = first, b->count[b->outputs] = count, b->head[b->outputs] = head;
    if (head < 0 && b->token[first] >= 0) b->complete = b->outputs + 1;
    return b->outputs++;
}

typedef struct { Linear qkv, attproj, fc, fcproj; } DecoderLayer; // (3C,C), (C,C), (4C,C), (C,4C)

typedef struct {
    GPT2Config config;
    WeightKind kind;
    ParameterTensors small;                    // wpe, biases, layer norms; the matrices' pointers are NULL
    Linear wte;                                // (V,C)
    DecoderLayer *layers;                      // (L)
    float *prompts;                            // (n,copies,depth,C) of chapter 6's prompt tokens; not owned
    int depth;                                 // layers at whose beginning a prompt token adds a vector
    const float *maps;                         // (n,2,rank,C), chapter 6's; not owned
    int rank;
    Linear *heads;                             // (n) of (C,C): chapter 4's heads; not owned
    char *likely;                              // whether guesses may be of a panel of wte; NULL: of all
    int stride, wide;                          // floats between rows of C, and of 4C
    int head_stride, capacity;                 // of a value in the cache; slots
    float *keys, *values;                      // (L,NH,HS,capacity), (L,NH,capacity,head_stride)
    int past;                                  // tokens in the cache
    float *residual, *hidden, *fch;            // (MAX_ROWS, stride or wide)
    Sum *sums;                                 // (MAX_ROWS, logits_stride) products, at last the logits
    int logits_stride;
    Scratch *scratch;                          // of each thread
    int threads;
} Decoder;

// What the last matrix product left of a row: q, k, v, or a head's outputs; after a pass, an output's logits.
static inline const float *product_row(const Decoder *d, int r) {
    return (const float *)(d->sums + (size_t)r * d->logits_stride);
}

// The bytes of weights that a pass streams.
static size_t decoder_bytes(const Decoder *d) {
    size_t sum = linear_bytes(&d->wte);
    for (DecoderLayer *y = d->layers; y < d->layers + d->config.num_layers; y++)
        sum += linear_bytes(&y->qkv) + linear_bytes(&y->attproj) + linear_bytes(&y->fc) +
               linear_bytes(&y->fcproj);
    return sum;
}

// The bytes of its keys and values.
static size_t cache_bytes(const Decoder *d) {
    GPT2Config g = d->config;
    return (size_t)g.num_layers * d->capacity * (g.channels + g.num_heads * d->head_stride) * sizeof(float);
}

// Copies all that it needs of m.
static void decoder_init(Decoder *d, const GPT2 *m, WeightKind kind) {
    GPT2Config g = m->config;
    int C = g.channels, L = g.num_layers;
    *d = (Decoder){.config = g, .kind = kind, .stride = round_up(C, 64), .wide = round_up(4 * C, 64)};
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        size_t n = tensor_size(t);
        if (is_matrix(t, i)) continue;
        ((float **)&d->small)[i] = memcpy(allocate_floats(n), ((float **)&m->params)[i], n * sizeof(float));
    }
    d->wte = linear_pack(m->params.wte, g.vocab_size, C, kind, NULL, NULL, NULL);
    d->layers = allocate(L, sizeof *d->layers);
    for (int l = 0; l < L; l++) {
        ParameterTensors p = tensors_of_layer(m->params, g, l), s = tensors_of_layer(d->small, g, l);
        DecoderLayer *y = &d->layers[l];
        y->qkv = linear_pack(p.qkvw, 3 * C, C, kind, s.qkvb, s.ln1w, s.ln1b);
        y->attproj = linear_pack(p.attprojw, C, C, kind, s.attprojb, NULL, NULL);
        y->fc = linear_pack(p.fcw, 4 * C, C, kind, s.fcb, s.ln2w, s.ln2b);
        y->fcproj = linear_pack(p.fcprojw, C, 4 * C, kind, s.fcprojb, NULL, NULL);
        if (m->mapping) madvise(m->mapping, m->mapped, MADV_DONTNEED); // what was read may leave memory
    }
    d->head_stride = round_up(C / g.num_heads, 4 * VEC);
    d->capacity = round_up(g.max_seq_len + MAX_ROWS, 4 * VEC) + 16; // no power of two: keys would share sets
    d->keys = allocate_floats((size_t)L * C * d->capacity + 4 * VEC);
    d->values = allocate_floats((size_t)L * g.num_heads * d->capacity * d->head_stride);
    d->residual = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->hidden = allocate_floats((size_t)MAX_ROWS * d->stride);
    d->fch = allocate_floats((size_t)MAX_ROWS * d->wide);
    d->logits_stride = MAX(round_up(g.vocab_size, 64), d->wide) + 16;
    d->sums = allocate((size_t)MAX_ROWS * d->logits_stride, sizeof(Sum));
    d->threads = (int)MIN((size_t)omp_get_max_threads(), 1 + decoder_bytes(d) / (4 << 20)); // each with work
    d->scratch = allocate(d->threads, sizeof *d->scratch);
    for (int t = 0; t < d->threads; t++) {
        Scratch *s = &d->scratch[t];
        s->cached = decoder_bytes(d) <= 16 << 20; // such caches are common
        s->normed = allocate_floats((size_t)MAX_ROWS * d->stride), s->scale = allocate_floats(MAX_ROWS);
        s->bytes = allocate(MAX_ROWS, d->wide), s->scores = allocate_floats(d->capacity + 4 * VEC);
    }
}

static void decoder_free(Decoder *d) {
    for (DecoderLayer *y = d->layers; y < d->layers + d->config.num_layers; y++)
        linear_free(&y->qkv), linear_free(&y->attproj), linear_free(&y->fc), linear_free(&y->fcproj);
    linear_free(&d->wte);
    for (int i = 0; i < NUM_TENSORS; i++) free(((float **)&d->small)[i]);
    for (Scratch *s = d->scratch; s < d->scratch + d->threads; s++)
        free(s->normed), free(s->scale), free(s->bytes), free(s->scores);
    void *owned[] = {d->likely, d->layers, d->keys, d->values, d->residual, d->hidden, d->fch, d->sums,
                     d->scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    memset(d, 0, sizeof *d);
}

// Rows x (R, x_ld) through a linear layer, and its layer norm; the rest as in linear_rows. Every thread
// normalizes all rows for itself: cheaper than to wait for one another.
static void decoder_linear(Decoder *d, const Linear *m, const float *x, int x_ld, int rows, Finish finish,
                           float *out, int ld) {
    Scratch *s = &d->scratch[omp_get_thread_num()];
    float mean, rstd;
    for (int r = 0; r < rows && m->norm_w; r++)
        layernorm_row(s->normed + (size_t)r * d->stride, &mean, &rstd, x + (size_t)r * x_ld, m->norm_w,
                      m->norm_b, m->K);
    prepare_rows(s, m->norm_w ? s->normed : x, m->norm_w ? d->stride : x_ld, rows, m->K, d->kind);
    linear_rows(d->sums, d->logits_stride, s, m, rows, finish, out, ld);
}

// Guesses will be of these groups of tokens, if there are any.
static void decoder_likely(Decoder *d, const uint16_t *group, int groups) {
    free(d->likely);
    d->likely = groups ? allocate(d->wte.panels, 1) : NULL;
    for (int i = 0; i < groups; i++)
        for (int token = group[i] * TOKEN_GROUP; token < MIN(d->wte.N, (group[i] + 1) * TOKEN_GROUP); token++)
            d->likely[token / NR] = 1;
}

// The end of the panels from p on, before `last`, that are as likely as p.
static int likely_end(const Decoder *d, int p, int last) {
    int end = p + 1;
    while (end < last && d->likely[end] == d->likely[p]) end++;
    return end;
}

// The logits of d->hidden. Threads take turns at some panels, for likely ones have low numbers.
static void classify(Decoder *d, const Batch *b) {
    enum { TURN = 16 };
    Scratch *s = &d->scratch[omp_get_thread_num()];
    int panels = d->wte.panels;
    if (!d->likely || b->complete == b->outputs) {
        decoder_linear(d, &d->wte, d->hidden, d->stride, b->outputs, STAY, NULL, 0);
        return;
    }
    prepare_rows(s, d->hidden, d->stride, b->outputs, d->wte.K, d->kind);
    for (int from = omp_get_thread_num() * TURN; from < panels; from += omp_get_num_threads() * TURN)
        for (int p = from, to = MIN(panels, from + TURN), end; p < to; p = end) {
            end = likely_end(d, p, to);
            linear_panels(d->sums, d->logits_stride, s, &d->wte, p, end,
                          d->likely[p] ? b->outputs : b->complete, STAY, NULL, 0);
        }
#pragma omp barrier
}

// out (HS) = softmax(q k' / sqrt(HS)) v for a row that sees `past` tokens and then the slots
// ancestors[0..count), the last one its own. keys (HS,capacity), values (capacity,head_stride). Scores stand
// in the order of positions before they are summed, so it does not matter in which slots the ancestors are.
static void attend(const Decoder *d, float *out, const float *q, const float *keys, const float *values,
                   const int *ancestors, int count, float *scores) {
    int past = d->past, n = past + count, HS = d->config.channels / d->config.num_heads;
    for (int j = 0; j <= ancestors[count - 1]; j += 4 * VEC) {
        vec s[4] = {{0}};
        for (int c = 0; c < HS; c++)
            for (int i = 0; i < 4; i++)
                s[i] += q[c] * *(const vec_u *)(keys + (size_t)c * d->capacity + j + i * VEC);
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
        for (int j = 0; j < n; j++) {
            const float *v = values + (size_t)(j < past ? j : ancestors[j - past]) * d->head_stride + c;
            for (int i = 0; i < 4; i++) o[i] += scores[j] * *(const vec *)(v + i * VEC);
        }
        for (int i = 0; i < 4; i++) o[i] /= sum;
        memcpy(out + c, o, MIN(HS - c, 4 * VEC) * sizeof(float));
    }
}

// This thread's attention heads: keys and values of the rows go into the cache, then every row attends. What
// d->sums holds is q, k, v of each row.
static void attention_rows(Decoder *d, const Batch *b, int layer, int (*ancestors)[MAX_ROWS]) {
    int C = d->config.channels, NH = d->config.num_heads, HS = C / NH;
#pragma omp for schedule(static)
    for (int h = 0; h < NH; h++) {
        float *keys = d->keys + (size_t)(layer * NH + h) * HS * d->capacity;
        float *values = d->values + (size_t)(layer * NH + h) * d->capacity * d->head_stride;
        for (int c = 0; c < HS; c++)
            for (int r = 0; r < b->rows; r++)
                keys[(size_t)c * d->capacity + d->past + r] = product_row(d, r)[C + h * HS + c];
        for (int r = 0; r < b->rows; r++)
            memcpy(values + (size_t)(d->past + r) * d->head_stride, product_row(d, r) + 2 * C + h * HS,
                   HS * sizeof(float));
        for (int r = 0; r < b->rows; r++)
            attend(d, d->hidden + (size_t)r * d->stride + h * HS, product_row(d, r) + h * HS, keys, values,
                   ancestors[r], b->depth[r] + 1, d->scratch[omp_get_thread_num()].scores);
    }
}

static inline float sigmoid(float z) { return 1.0f / (1.0f + exp_f32(-z)); }

// d->hidden += silu(W d->hidden + bias), silu(z) = z sigmoid(z), with the head of each output that has one;
// neighbours of one head together.
static void apply_heads(Decoder *d, const Batch *b) {
    int C = d->config.channels;
    for (int o = 0, end; o < b->outputs; o = end) {
        for (end = o + 1; end < b->outputs && b->head[end] == b->head[o];) end++;
        int rows = end - o, head = b->head[o];
        float *h = d->hidden + (size_t)o * d->stride;
        if (head < 0) continue;
        decoder_linear(d, &d->heads[head], h, d->stride, rows, STAY, NULL, 0);
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < C; c++) {
                float z = product_row(d, r)[c];
                h[(size_t)r * d->stride + c] += z * sigmoid(z);
            }
    }
}

// The residual stream of prompt tokens += their vectors for layer l.
static void add_prompts(Decoder *d, const Batch *b, int l) {
    int C = d->config.channels;
#pragma omp for schedule(static)
    for (int r = 0; r < b->rows; r++) {
        if (b->token[r] >= 0) continue;
        const float *vector = d->prompts + ((size_t)~b->token[r] * d->depth + l) * C;
        for (int c = 0; c < C; c++) d->residual[(size_t)r * d->stride + c] += vector[c];
    }
}

// s (C) += scale U'u, u (rank) = scale D x: what a prompt's map (2,rank,C), D and U, makes of a state x (C).
#define MAX_RANK 64
static void apply_map(float *s, float *u, const float *map, const float *x, int rank, int C, float scale) {
    for (int k = 0; k < rank; k++) {
        const float *down = map + (size_t)k * C, *up = down + (size_t)rank * C;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += down[c] * x[c];
        u[k] = scale * sum;
#pragma omp simd
        for (int c = 0; c < C; c++) s[c] += scale * u[k] * up[c];
    }
}

// h (C) = the mean of the last states of output o's rows, normed; a prompt's map adds to it.
static void output_state(const Decoder *d, const Batch *b, int o, float *h) {
    int C = d->config.channels, first = b->first[o], count = b->count[o], node = first;
    float normed[C], u[MAX_RANK], mean, rstd;
    memset(h, 0, C * sizeof(float));
    for (int r = first; r < first + count; r++) {
        layernorm_row(normed, &mean, &rstd, d->residual + (size_t)r * d->stride, d->small.lnfw, d->small.lnfb,
                      C);
        for (int c = 0; c < C; c++) h[c] += normed[c] / (float)count;
    }
    while (node >= 0 && b->token[node] < 0) node = b->parent[node];
    if (!d->rank || node == first || node < 0) return; // the cache keeps no states
    layernorm_row(normed, &mean, &rstd, d->residual + (size_t)node * d->stride, d->small.lnfw, d->small.lnfb,
                  C);
    apply_map(h, u, d->maps + (size_t)(~b->token[first] / count) * 2 * d->rank * C, normed, d->rank, C, 1);
}

// The rows' keys and values into the cache, the outputs' logits to product_row.
static void decoder_pass(Decoder *d, const Batch *b) {
    GPT2Config g = d->config;
    ParameterTensors p = d->small;
    int C = g.channels, rows = b->rows, stride = d->stride, prompts = 0;
    static int ancestors[MAX_ROWS][MAX_ROWS]; // slots of each row's ancestors, from the first to itself
    for (int r = 0; r < rows; r++) {
        if (b->parent[r] >= 0) memcpy(ancestors[r], ancestors[b->parent[r]], b->depth[r] * sizeof(int));
        ancestors[r][b->depth[r]] = d->past + r;
        prompts += b->token[r] < 0;
    }
#pragma omp parallel num_threads(d->threads)
    {
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) {
            float *x = d->residual + (size_t)r * stride;
            const float *position = p.wpe + (size_t)(d->past + b->depth[r]) * C;
            if (b->token[r] >= 0) linear_row(&d->wte, b->token[r], x);
            else memset(x, 0, C * sizeof(float));
            for (int c = 0; c < C; c++) x[c] += position[c];
        }
        for (int l = 0; l < g.num_layers; l++) {
            if (prompts && l < d->depth) add_prompts(d, b, l);
            DecoderLayer *y = &d->layers[l];
            decoder_linear(d, &y->qkv, d->residual, stride, rows, STAY, NULL, 0);
            attention_rows(d, b, l, ancestors);
            decoder_linear(d, &y->attproj, d->hidden, stride, rows, ADD, d->residual, stride);
            decoder_linear(d, &y->fc, d->residual, stride, rows, GELU, d->fch, d->wide);
            decoder_linear(d, &y->fcproj, d->fch, d->wide, rows, ADD, d->residual, stride);
        }
#pragma omp for schedule(static)
        for (int o = 0; o < b->outputs; o++) output_state(d, b, o, d->hidden + (size_t)o * stride);
        apply_heads(d, b);
        if (b->outputs) classify(d, b);
    }
}

// After a pass: the rows path[0..n), each the parent of the next, become part of the text; all others are
// forgotten.
static void decoder_accept(Decoder *d, const int *path, int n) {
    int NH = d->config.num_heads, HS = d->config.channels / NH, stay = 0;
    while (stay < n && path[stay] == stay) stay++;
    for (int lh = 0; lh < d->config.num_layers * NH && stay < n; lh++) {
        float *keys = d->keys + (size_t)lh * HS * d->capacity + d->past,
              *values = d->values + ((size_t)lh * d->capacity + d->past) * d->head_stride;
        for (int c = 0; c < HS; c++, keys += d->capacity)
            for (int i = stay; i < n; i++) keys[i] = keys[path[i]]; // path[i] > i: what is still needed stays
        for (int i = stay; i < n; i++)
            memcpy(values + i * d->head_stride, values + path[i] * d->head_stride, HS * sizeof(float));
    }
    d->past += n;
}

// Brings tokens into the cache, in passes of MAX_ROWS rows: from some 16 rows on arithmetic bounds a pass,
// and larger ones would gain nothing. With `next` (n), the tokens after each, returns the sum of their
// losses in nats, else 0.
static double decoder_prefill(Decoder *d, const uint16_t *tokens, int n, const uint16_t *next) {
    double sum = 0;
    for (int first = 0; first < n; first += MAX_ROWS) {
        Batch b = {0};
        for (int i = first; i < MIN(n, first + MAX_ROWS); i++) {
            int row = batch_add(&b, tokens[i], b.rows - 1);
            if (next) batch_output(&b, row, 1, -1);
        }
        decoder_pass(d, &b);
        for (int r = 0; r < b.outputs; r++)
            sum += log_sum_exp(product_row(d, r), d->config.vocab_size, 1) -
                   product_row(d, r)[next[first + r]];
        d->past += b.rows;
    }
    return sum;
}

// What passes take on this machine.
typedef struct {
    float seconds[MAX_ROWS]; // [r-1]: of a pass of r rows, each with an output
    float guess_cost;        // of such a row, the part that a prompt token's row takes, or a head's output
} Latency;

// Seconds of a pass of so many rows, on the line between whole numbers; beyond MAX_ROWS, on the last one's.
static double pass_seconds(const Latency *l, double rows) {
    int below = (int)fmax(1, fmin(rows, MAX_ROWS - 1));
    return l->seconds[below - 1] + (rows - below) * (l->seconds[below] - l->seconds[below - 1]);
}

// Puts x among times[0..n), which ascend.
static void insert_sorted(double *times, int n, double x) {
    for (; n > 0 && times[n - 1] > x; n--) times[n] = times[n - 1];
    times[n] = x;
}

// Measures latencies behind 128 tokens, or half a context, in at most so many rounds; between the measured
// sizes, the line through the neighbours.
#define LATENCY_ROUNDS 8
static void measure_latency(Decoder *d, int heads, int copies, Latency *l, int rounds) {
    static const int sizes[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    enum { SIZES = sizeof sizes / sizeof *sizes, NODES = 8, GUESSES = 16 };
    int context = d->config.max_seq_len;
    double took[SIZES + 1][LATENCY_ROUNDS], median[SIZES + 1] = {0}, begin = now();
    d->past = MIN(context / 2, 128);
    // All sizes in turns, so that what else the machine does hits them alike; the median of the rounds is
    // taken: the best would be of moments in which the machine did nothing else. Each size has some
    // passes before it is timed: one of many rows is so slow that others evict the weights from a shared
    // cache, and the next few pay for it. A size is timed for 5 ms, or 200 passes. The last pass is of
    // some rows and guesses.
    for (int round = 0; round < rounds && (round < 3 || now() - begin < 2); round++)
        for (int i = 0; i <= SIZES; i++) {
            Batch b = {0};
            int guesses = i == SIZES ? GUESSES : 0, nodes = guesses ? NODES : sizes[i];
            int before = 0, passes = 0;
            if (guesses && !heads && !d->prompts) continue;
            for (int r = 0; r < nodes + (heads ? 0 : guesses); r++)
                batch_add(&b, r < nodes ? r % d->config.vocab_size : ~0,
                          r % MAX(1, context / 2) ? r - 1 : -1);
            for (int r = 0; r < nodes; r++) batch_output(&b, r, 1, -1);
            for (int r = 0; r < guesses; r += heads ? 1 : copies)
                if (heads) batch_output(&b, r % nodes, 1, r * heads / guesses);
                else batch_output(&b, nodes + r, MIN(copies, guesses - r), -1);
            double start = now(), spent = 0;
            do decoder_pass(d, &b);
            while (++before < 8 && now() - start < 15e-3);
            for (start = now(); spent < 5e-3 && passes < 200; spent = now() - start, passes++)
                decoder_pass(d, &b);
            insert_sorted(took[i], round, spent / passes);
            median[i] = took[i][round / 2];
        }
    l->seconds[0] = median[0];
    for (int i = 1; i < SIZES; i++) {
        int known = sizes[i - 1], s = sizes[i];
        double from = l->seconds[known - 1], to = fmax(median[i], from); // never less
        for (int r = known + 1; r <= s; r++)
            l->seconds[r - 1] = from + (to - from) * (r - known) / (s - known);
    }
    // Where memory bounds a pass, both differences are noise: a fiftieth of a pass pulls their quotient to 1.
    double noise = 0.02 * l->seconds[0], nodes = l->seconds[NODES - 1] - noise;
    double cost = (median[SIZES] - nodes) / (l->seconds[NODES + GUESSES - 1] - nodes);
    l->guess_cost = heads || d->prompts ? fmin(fmax(cost, 0.05), 2) : 1;
    d->past = 0; // what the cache held is overwritten
}

// ===========================================================================================================
// 3  Choosing tokens, writing text

// The first of the largest.
static int argmax(const float *x, int n) {
    float max = largest_of(x, n);
    int i = 0;
    while (i < n - 1 && x[i] != max) i++;
    return i;
}

// ids are the largest numbers' places so far, `count` and at most k of them, in descending order; of equals
// the first comes first. Takes x[from .. n) in, and returns how many they are now.
static int top_tokens(const float *x, int from, int n, int k, int *ids, int count) {
    for (int first = from; first < n; first += 64) {
        int end = MIN(n, first + 64);
        if (count == k && !(largest_of(x + first, end - first) > x[ids[k - 1]])) continue;
        for (int i = first; i < end; i++) {
            if (count == k && !(x[i] > x[ids[k - 1]])) continue;
            int at = count < k ? count++ : k - 1;
            for (; at > 0 && x[i] > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
            ids[at] = i;
        }
    }
    return count;
}

// The k tokens that an output guesses.
static void top_guesses(const Decoder *d, int output, int k, int *ids) {
    const float *logits = product_row(d, output);
    int V = d->config.vocab_size, panels = d->likely ? d->wte.panels : 0;
    int count = d->likely ? 0 : top_tokens(logits, 0, V, k, ids, 0);
    for (int p = 0, end; p < panels; p = end) {
        end = likely_end(d, p, panels);
        if (d->likely[p]) count = top_tokens(logits, p * NR, MIN(V, end * NR), k, ids, count);
    }
    for (; count < k; count++) ids[count] = ids[0]; // a small vocabulary
}

#define COLDEST 1e-4 // below this temperature floats lose what parts one logit / temperature from the next
typedef struct {
    double temperature; // below COLDEST: the likeliest token, always
    int top_k;          // 0: all
    double top_p;       // 1: all
    int typical;        // accept what is typical (see typical_child), not what would have been drawn
    uint64_t seed;
} Sampling;

typedef struct { float logit, p; int id; } Candidate;
static int by_logit(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

// Draws the token number `index` of a text. The number alone decides what is drawn from given logits, so that
// a text does not depend on how many tokens each pass has made. There is room for V candidates.
static int choose(const Sampling *s, Candidate *c, const float *logits, int V, uint64_t index) {
    if (s->temperature < COLDEST) return argmax(logits, V);
    double u = random_uniform(s->seed + 11, index), total = 0, kept = 0;
    float temperature = (float)s->temperature, lse = log_sum_exp(logits, V, temperature), bar = -INFINITY;
    int k = s->top_k ? MIN(s->top_k, V) : V, n = 0, nucleus = 0, at = 0;
    if (k == V && s->top_p >= 1) return draw(logits, V, temperature, u);
    for (int i = 0; i < V && k < V; i++) {
        if (logits[i] <= bar) continue; // k others are as large
        c[n++] = (Candidate){logits[i], exp_f32(logits[i] / temperature - lse), i};
        if (n < 2 * k) continue;
        qsort(c, n, sizeof *c, by_logit);
        bar = c[(n = k) - 1].logit;
    }
    // of all tokens those are sorted that have top_p together: most often few
    for (double least = 0.01; k == V && n < V && total <= s->top_p && least > 1e-38; least /= 10) {
        bar = ((float)log(least) + lse) * temperature;
        total = n = 0;
        for (int i = 0; i < V; i++)
            if (logits[i] >= bar) c[n++] = (Candidate){logits[i], exp_f32(logits[i] / temperature - lse), i};
        for (int i = 0; i < n; i++) total += c[i].p;
    }
    qsort(c, n, sizeof *c, by_logit);
    n = MIN(n, k);
    if (n == 0) return argmax(logits, V); // logits that are no numbers
    if (k == V) total = 1;
    for (int i = 0; i < n && k < V; i++) total += c[i].p;
    while (nucleus < n && (nucleus == 0 || kept < s->top_p * total)) kept += c[nucleus++].p;
    for (u *= kept; at < nucleus - 1 && (u -= c[at].p) >= 0;) at++;
    return c[at].id;
}

// Writes the bytes of tokens; those that end within a UTF-8 character wait for the rest of it.
typedef struct {
    const Tokenizer *tokenizer;
    FILE *file;
    char held[4];
    int n;
} Writer;

static void writer_put(Writer *w, int token) {
    size_t length = 0;
    const Tokenizer *t = w->tokenizer;
    const char *bytes = token < t->vocab_size ? tokenizer_token(t, token, &length) : NULL;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if ((c & 0xC0) != 0x80) fwrite(w->held, 1, w->n, w->file), w->n = 0; // a new character
        w->held[w->n++] = (char)c;
        unsigned char lead = (unsigned char)w->held[0];
        int needed = lead > 0xF4 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1;
        if (w->n >= needed) fwrite(w->held, 1, w->n, w->file), w->n = 0;
    }
}

static void writer_end(Writer *w) { fwrite(w->held, 1, w->n, w->file), w->n = 0, fflush(w->file); }

// ===========================================================================================================
// 4  Guesses; generation

/* A pass verifies a tree. Its root is the newest token of the text, whose logits nobody has seen yet; a node
is a guess of what follows its parent. A node may carry a chain of prompt tokens P, whose outputs guess the
tokens after the next one:

      text ... root --+-- "the" --+-- "king"     The logits of a node choose the next token; if a child is
                P P P |   P P     +-- "lord"     that token, it is accepted, and its logits choose the next
                      |                 P        one. The chain at the last accepted node guesses the nodes
                      +-- "a" P                  of the next tree.

Which nodes and chains there are, a template says; one for each state, the number of distances guessed.
Instead of a chain, every node may have Medusa's heads (arXiv 2401.10774): head i guesses from the node's own
last hidden state, through a layer of its own. */
#define MAX_PROMPTS 8
#define RANKS 10                 // guesses kept for each distance
#define MAX_MISSING 8            // tokens of the text that a pass brings into the cache before its root
#define MAX_TREE (MAX_ROWS - 16) // rows of a template; the other 16 are for those tokens and for proposals
#define MAX_PROPOSALS 16         // tokens that an n-gram or a draft proposes, as far as there is room

typedef struct {
    int nodes, rows;         // node 0 is the root
    int parent[MAX_ROWS];    // comes before its children
    int rank[MAX_ROWS];      // which of the guesses for this distance
    int depth[MAX_ROWS];
    int chain[MAX_ROWS];     // prompt tokens behind the node
    double tokens;           // that a pass with it is expected to bring
    double worth, later;     // tokens that its state is worth, against state 0; mean worth of what follows
} Template;

// A tree becoming a pass: rows of text, the last of which is the root, then the other nodes, then the chains.
typedef struct {
    Batch batch;
    int root;
    int planned, most;       // rows of nodes and their chains, and that there may be
    int chain[MAX_ROWS];     // prompt tokens behind a node
    int guesses[MAX_ROWS];   // the first output of its chain or heads
    int bare;                // nothing guesses
} Tree;

typedef enum { GUESS_NOTHING, GUESS_PROMPTS, GUESS_HEADS } GuessKind;

typedef struct Generator {
    Decoder *decoder;
    Sampling sampling;
    uint16_t *text;            // all tokens, prompt first
    int length, capacity;
    int base;                  // the cache holds text[base ..)
    uint32_t texts;            // begun
    uint64_t drawn;            // number of the next token to draw: the text's, and the token's in it
    Candidate *candidates;     // (V)
    GuessKind kind;
    int n, copies;             // prompt tokens or heads
    int state;                 // distances guessed for the next pass
    int guess[MAX_PROMPTS][RANKS];
    Template templates[MAX_PROMPTS + 1];
    int ngram;                 // also look for the last tokens in the text
    struct Generator *draft;   // also let this model propose
    const Latency *latency;    // what passes take: for trees and the number of proposals
    double draft_cost;         // seconds a proposed token
    // fading: [0] a draft's; [2..5] an n-gram's (see find_ngram), [6..9] if prompts or heads guess the same
    double accepted[10], proposed[10];
    long passes, rows;
} Generator;

// The heads of each node, or 0.
static int heads_of(const Generator *g) { return g->kind == GUESS_HEADS ? g->n : 0; }

static void generator_append(Generator *g, const uint16_t *tokens, int n) {
    if (g->length + n > g->capacity)
        g->text = resize(g->text, (size_t)(g->capacity = 2 * (g->length + n) + 1024) * sizeof *g->text);
    memcpy(g->text + g->length, tokens, n * sizeof *tokens);
    g->length += n;
}

// Where the part of a text begins that the cache is to hold. When the context is full, its last half is kept
// and computed anew from position 0; a pass that makes several tokens never goes past that point, so the text
// slides at the same places however it is made.
static int slide(int base, int length, int context) {
    return length - 1 - base < context ? base : length - 1 - context / 2;
}

// Makes the cache hold the text but for its last few tokens.
static void generator_prefill(Generator *g) {
    Decoder *d = g->decoder;
    int base = slide(g->base, g->length, d->config.max_seq_len);
    if (base > g->base) g->base = base, d->past = 0;
    int missing = g->length - 1 - g->base - d->past;
    if (missing > MAX_MISSING) decoder_prefill(d, g->text + g->base + d->past, missing, NULL);
}

// Begins a text: its prompt, if it has more than MAX_MISSING + 1 tokens, goes into the cache now, and into
// the draft's, so that steps are of new tokens.
static void generator_text(Generator *g, const uint16_t *tokens, int n) {
    g->length = g->base = g->state = g->decoder->past = 0;
    g->drawn = (uint64_t)g->texts++ << 32; // however many tokens of the text before were thrown away
    generator_append(g, tokens, n);
    generator_prefill(g);
    if (g->draft) generator_text(g->draft, tokens, n);
}

// The child of a node that is this token, or -1.
static int tree_child(const Tree *t, int parent, int token) {
    int v = parent + 1;
    while (v < t->batch.rows && (t->batch.parent[v] != parent || t->batch.token[v] != token)) v++;
    return v < t->batch.rows ? v : -1;
}

// The same; it is added where there is none and room is left.
static int tree_add(Tree *t, int parent, int token, int chain, int copies) {
    int v = tree_child(t, parent, token), rows = 1 + chain * copies;
    if (v >= 0 || t->planned + rows > t->most) return v;
    t->planned += rows;
    v = batch_add(&t->batch, token, parent);
    t->chain[v] = chain;
    return v;
}

// What followed the last tokens where they stood in the text before: the most of them, at the latest such
// place. *size says how many: 2, 3, 4, or 5 for 8 and more; 1 where not even 2 did, and 0 is returned.
static int find_ngram(const uint16_t *text, int length, int *size) {
    int found = 0, longest = 1;
    for (int at = length - 1; at > 0 && longest < 8; at--) {
        int same = 0;
        while (same < MIN(at, 8) && text[at - 1 - same] == text[length - 1 - same]) same++;
        if (same > longest) longest = same, found = at;
    }
    *size = longest == 8 ? 5 : MIN(longest, 4);
    return found;
}

// The rows of text that take as long as a template, whose nodes have so many heads.
static double template_rows(const Template *t, const Latency *l, int heads) {
    return t->nodes + (t->rows - t->nodes + t->nodes * heads) * l->guess_cost;
}

// The root alone: nothing guesses.
static const Template bare = {.nodes = 1, .rows = 1, .parent = {-1}, .tokens = 1};

// Rows of nodes and their chains that a pass can have, each node with so many heads.
static int most_nodes(int heads) { return heads ? MAX_ROWS / (1 + heads) : MAX_ROWS - MAX_MISSING; }

// The prompt tokens behind the last proposal.
static int proposals_chain(const Generator *g) {
    return g->kind == GUESS_PROMPTS ? g->templates[0].chain[0] : 0;
}

/* How many proposals pay, and with which of three templates: the state's own; the smallest, which is a root
with its chain; or the bare root, where nothing guesses. The last two only with proposals: without any, a
state's own tree is the best there is. Proposals are right with the measured probability a if those before
them are, so n of them bring 1 + a + ... + a^n tokens, and if the first is wrong, what the template brings.
What the pass guesses for the next one, behind the last proposal (a chain as behind a lone root) or the
template's nodes, counts as far as proposals will fail there. The tokens, less what the guesses that led here
are worth, divided by the time are to be the most. a begins high: what is never tried is never learned.
source: 0 the draft, 2 to 9 an n-gram (see Generator); prefix: rows of text, the root the last. Returns how
many proposals, `most` at most, and the template in *shape. */
static int plan_proposals(const Generator *g, int source, int prefix, int most, const Template **shape) {
    double a = (g->accepted[source] + 3) / (g->proposed[source] + 4), best = -INFINITY;
    const Template *own = &g->templates[g->state], *smallest = &g->templates[0];
    const Template *shapes[] = {own, smallest, &bare};
    int count = 0;
    for (int i = g->kind ? 0 : 2; i < 3; i++) {
        const Template *t = shapes[i];
        int heads = t == &bare ? 0 : heads_of(g), chain = t == &bare ? 0 : proposals_chain(g) * g->copies;
        int room = most_nodes(heads) - t->rows - chain; // rows that the pass can still have
        double rows = prefix - 1 + template_rows(t, g->latency, heads);
        double each = 1 + heads * g->latency->guess_cost, sum = 1, power = 1; // 1 + a + ... + a^n, a^n
        double others = t->tokens - 1 + (1 - a) * t->later;
        double behind = t == &bare ? 0 : (1 - a) * smallest->later;
        for (int n = 0; n <= MIN(MIN(MAX_PROPOSALS, most), MAX(room, 0)); n++, sum += power *= a) {
            double tokens = n ? sum + (1 - a) * others + power * behind : 1 + others;
            double behind_them = n ? chain * g->latency->guess_cost : 0;
            double seconds = pass_seconds(g->latency, rows + n * each + behind_them) +
                             (g->draft ? n * g->draft_cost : 0);
            double rate = (tokens - (1 - a) * own->worth) / seconds;
            if (rate > best && (n || t == own || !g->kind)) best = rate, count = n, *shape = t;
        }
    }
    if (count == 0 && most && g->passes % 16 == 0) count = 1; // now and then: what is one worth?
    return count;
}

static int generator_step(Generator *g, int limit);

// Lets the draft model go on from our text, and returns its tokens. What it had written of its own is taken
// back to where the texts part.
static const uint16_t *propose_by_draft(Generator *g, int count) {
    Generator *s = g->draft;
    int most = MIN(s->length, g->length), added;
    int same = MIN(most, MAX(0, s->base - MAX_PROPOSALS)); // it was no further ahead of us when it slid there
    while (same < most && s->text[same] == g->text[same]) same++;
    added = same < s->length ? s->state : MIN(s->state, g->length - same); // distances: past now, or void
    s->state -= added;
    memmove(s->guess, s->guess + added, s->state * sizeof *s->guess);
    if (s->base > MIN(same, g->length - 1)) s->base = 0, s->decoder->past = 0;
    s->length = same;
    generator_append(s, g->text + same, g->length - same);
    s->decoder->past = MIN(s->decoder->past, MAX(0, MIN(same, s->length - 1) - s->base));
    generator_prefill(s);
    double start = now(); // catching up by many tokens is no proposal's cost
    while (s->length < g->length + count) generator_step(s, g->length + count - s->length);
    double cost = (now() - start) / count;
    g->draft_cost = g->draft_cost > 0 ? 0.9 * g->draft_cost + 0.1 * cost : cost;
    return s->text + g->length;
}

// Typical acceptance (Medusa, arXiv 2401.10774): the likeliest child whose probability is above
// min(0.09, 0.3 exp(-entropy)). It does not keep the model's distribution. At temperature 0, probabilities
// are those at temperature 1, and where no child is typical the likeliest token is taken.
static int typical_child(const Generator *g, const Tree *t, int v, const float *logits) {
    const Batch *b = &t->batch;
    int V = g->decoder->config.vocab_size, best = -1;
    for (int w = v + 1; w < b->rows; w++)
        if (b->parent[w] == v && b->token[w] >= 0 &&
            (best < 0 || logits[b->token[w]] > logits[b->token[best]]))
            best = w;
    if (best < 0) return -1;
    float temperature = g->sampling.temperature >= COLDEST ? (float)g->sampling.temperature : 1,
          lse = log_sum_exp(logits, V, temperature), entropy = 0;
#pragma omp simd reduction(- : entropy)
    for (int i = 0; i < V; i++) {
        float log_p = logits[i] / temperature - lse;
        entropy -= exp_f32(log_p) * log_p;
    }
    float p = exp_f32(logits[b->token[best]] / temperature - lse);
    return p > fminf(0.09f, 0.3f * expf(-entropy)) ? best : -1;
}

// Adds a template's nodes, with the tokens that were guessed, as far as a text of at most `deepest` more
// tokens needs them.
static void add_guesses(const Generator *g, const Template *shape, Tree *t, int deepest) {
    int row[MAX_ROWS] = {t->root};
    for (int v = 1; v < shape->nodes && g->kind; v++) {
        int parent = row[shape->parent[v]], depth = shape->depth[v];
        row[v] = parent < 0 || depth > deepest
                     ? -1
                     : tree_add(t, parent, g->guess[depth - 1][shape->rank[v]],
                                g->kind == GUESS_PROMPTS ? shape->chain[v] : 0, g->copies);
    }
}

// Gives every node its output, and the outputs that guess: of the prompt tokens of its chain, which end with
// the context, or of the heads.
static void add_outputs(const Generator *g, Tree *t, int room) {
    Batch *b = &t->batch;
    int end = b->rows, heads = t->bare ? 0 : heads_of(g);
    for (int v = t->root; v < end; v++) batch_output(b, v, 1, -1);
    for (int i = 0; i < heads; i++) // a head's stand together: node v's is guesses[v] + i nodes
        for (int v = t->root; v < end; v++) t->guesses[v] = batch_output(b, v, 1, i) - i * (end - t->root);
    for (int v = t->root; v < end && g->kind == GUESS_PROMPTS; v++) {
        t->chain[v] = MIN(t->chain[v], room - (b->depth[v] - b->depth[t->root]));
        t->guesses[v] = b->outputs;
        for (int i = 0, above = v; i < t->chain[v]; i++) {
            int first = b->rows;
            for (int j = 0; j < g->copies; j++) batch_add(b, ~(i * g->copies + j), i ? above + j : v);
            batch_output(b, above = first, g->copies, -1);
        }
    }
}

// Follows what the logits of a pass choose down its tree, and appends it to the text, at most `limit` tokens.
// Rows whose tokens stay in the text go to path[*n ..). Returns the last of them.
static int follow_tree(Generator *g, const Tree *t, int limit, int *path, int *n) {
    for (int v = t->root, made = 1;; made++) {
        const float *logits = product_row(g->decoder, v - t->root);
        int child = g->sampling.typical ? typical_child(g, t, v, logits) : -1;
        uint16_t token = (uint16_t)(child >= 0 ? t->batch.token[child]
                                               : choose(&g->sampling, g->candidates, logits,
                                                        g->decoder->config.vocab_size, g->drawn));
        if (child < 0) child = tree_child(t, v, token);
        generator_append(g, &token, 1);
        g->drawn++;
        if (child < 0 || made == limit) return v;
        path[(*n)++] = v = child;
    }
}

// One pass: appends at least one token to the text, at most `limit`, and returns how many.
static int generator_step(Generator *g, int limit) {
    Decoder *d = g->decoder;
    generator_prefill(g);
    int prefix = g->length - g->base - d->past;          // tokens that the cache lacks; the last is the root
    int room = d->config.max_seq_len - d->past - prefix; // positions left behind the root
    // the text before the root has rows, too; a node with heads has outputs for each
    Tree t = {.root = prefix - 1, .planned = 1};
    for (int i = 0; i < prefix; i++) batch_add(&t.batch, g->text[g->base + d->past + i], i - 1);
    const Template *shape = &g->templates[g->state];
    int proposals = 0, source = 0, deepest = MIN(room, limit - 1);
    int found = g->draft || !g->ngram ? 0 : find_ngram(g->text, g->length, &source);
    uint16_t proposed[MAX_PROPOSALS]; // copied: the text may move
    if (found && g->state && g->guess[0][0] == g->text[found]) source += 4;
    if (g->draft || found) proposals = plan_proposals(g, source, prefix, deepest, &shape);
    t.bare = shape == &bare;
    t.most = most_nodes(t.bare ? 0 : heads_of(g));
    if (g->kind == GUESS_PROMPTS) t.chain[t.root] = shape->chain[0];
    t.planned += t.chain[t.root] * g->copies;
    add_guesses(g, shape, &t, deepest);
    if (proposals) {
        const uint16_t *from = g->draft ? propose_by_draft(g, proposals) : g->text + found;
        int period = found ? g->length - found : proposals; // a text that repeats itself goes on so
        for (int i = 0; i < proposals; i++) proposed[i] = from[i % period];
        int chain = t.bare ? 0 : proposals_chain(g); // at the end of their path, which goes on from there
        for (int i = 0, at = t.root; i < proposals && at >= 0; i++)
            at = tree_add(&t, at, proposed[i], i == proposals - 1 ? chain : 0, g->copies);
    }
    int nodes = t.batch.rows - t.root, before = g->length;
    add_outputs(g, &t, room);
    decoder_pass(d, &t.batch);
    g->passes++, g->rows += t.batch.rows;

    int path[MAX_ROWS], n = 0;
    for (; n < prefix; n++) path[n] = n;
    int v = follow_tree(g, &t, limit, path, &n), made = g->length - before;
    decoder_accept(d, path, n);
    if (proposals) { // tried until the first that was wrong
        int right = 0, tried = MIN(made, proposals);
        while (right < tried && g->text[before + right] == proposed[right]) right++;
        g->accepted[source] = g->accepted[source] * 0.97 + right;
        g->proposed[source] = g->proposed[source] * 0.97 + right + (right < tried);
    }
    g->state = g->kind == GUESS_HEADS && !t.bare ? g->n : t.chain[v];
    for (int i = 0; i < g->state; i++) {
        int output = t.guesses[v] + i * (g->kind == GUESS_HEADS ? nodes : 1);
        top_guesses(d, output, RANKS, g->guess[i]);
    }
    return made;
}

// The text becomes `prompt` tokens, and goes on until it has `length` or is interrupted. Returns the seconds
// after the prompt.
static double generate(Generator *g, const uint16_t *from, int prompt, int length) {
    generator_text(g, from, prompt);
    double start = now();
    while (g->length < length && !interrupted) generator_step(g, length - g->length);
    return now() - start;
}

// ===========================================================================================================
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
                    double best = w[b], right = model->accuracy[d][r];
                    int rows = 0;
                    for (int give = 1; give <= b; give++) {
                        double value = w[b - give] + right * (1 + t->value[d + 1][give] - h[m]);
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
    int v = out->nodes++, m = t->chain[d][b], own = 1 + m * model->copies;
    out->parent[v] = parent, out->rank[v] = rank, out->depth[v] = d, out->chain[v] = m;
    out->rows += own;
    b -= own;
    for (int r = RANKS - 1; r >= 0 && d < k; r--) {
        int rows = t->given[d][m][r][b];
        if (rows) read_table(t, model, k, d + 1, rows, v, r, out);
        b -= rows;
    }
}

// Of each node of a tree: the probability that it is right. Returns their sum.
static double tree_odds(const Template *t, const TreeModel *model, double *odds) {
    double sum = odds[0] = 1;
    for (int v = 1; v < t->nodes; v++)
        sum += odds[v] = odds[t->parent[v]] * model->accuracy[t->depth[v] - 1][t->rank[v]];
    return sum;
}

// Tokens a pass in the long run, if state k uses trees[k]; and seconds, unless it is NULL.
static double long_run(const Template *trees, const TreeModel *model, const Latency *latency,
                       double *seconds) {
    enum { STATES = MAX_PROMPTS + 1 };
    int n = model->n;
    double share[STATES] = {1}, tokens[STATES] = {0}, move[STATES][STATES] = {{0}}, tau = 0;
    for (int k = 0; k <= n; k++) {
        const Template *t = &trees[k];
        double odds[MAX_ROWS];
        tokens[k] = tree_odds(t, model, odds);
        for (int v = 0; v < t->nodes; v++) {
            move[k][t->chain[v]] += odds[v]; // it is the last one, unless a child is right
            if (v) move[k][t->chain[t->parent[v]]] -= odds[v];
        }
    }
    for (int step = 0; step < 500; step++) { // half of it stays, so that cycles die out
        double next[STATES] = {0};
        for (int k = 0; k <= n; k++) {
            next[k] += 0.5 * share[k];
            for (int j = 0; j <= n; j++) next[j] += 0.5 * share[k] * move[k][j];
        }
        memcpy(share, next, sizeof share);
    }
    for (int k = 0; k <= n; k++) tau += share[k] * tokens[k];
    if (!seconds) return tau;
    *seconds = 0;
    int heads = model->copies ? 0 : n;
    for (int k = 0; k <= n; k++)
        *seconds += share[k] * pass_seconds(latency, template_rows(&trees[k], latency, heads));
    return tau;
}

// The best trees of at most s rows for states 0..n.
static void search_trees(const TreeModel *model, int s, Template *trees) {
    static TreeTable table;
    double h[MAX_PROMPTS + 1] = {0};
    for (int k = 0; k <= model->n; k++) h[k] = 0.5 * k;
    for (int step = 0, done = 0; step <= 100 && !done; step++) {
        double value[MAX_PROMPTS + 1], change = 0;
        for (int k = 0; k <= model->n; k++) {
            fill_table(&table, model, k, s, h);
            value[k] = table.value[0][s];
            trees[k] = (Template){0};
            read_table(&table, model, k, 0, s, -1, 0, &trees[k]);
        }
        for (int k = 0; k <= model->n; k++) {
            double next = 0.5 * h[k] + 0.5 * (value[k] - value[0]);
            change = fmax(change, fabs(next - h[k]));
            h[k] = next;
        }
        done = change < 1e-6;
    }
    for (int k = 0; k <= model->n; k++) {
        double odds[MAX_ROWS];
        trees[k].tokens = tree_odds(&trees[k], model, odds);
        trees[k].worth = h[k];
        for (int v = 0; v < trees[k].nodes; v++) { // it is the last one, unless a child is right
            int above = trees[k].parent[v];
            trees[k].later += odds[v] * (h[trees[k].chain[v]] - (v ? h[trees[k].chain[above]] : 0));
        }
    }
}

// The best trees of at most s rows; *tau is what they bring, tokens a pass. Returns how many times as fast as
// passes of one row that is.
static double plan_trees(const TreeModel *model, const Latency *latency, int s, Template *trees,
                         double *tau) {
    double seconds;
    search_trees(model, s, trees);
    *tau = long_run(trees, model, latency, &seconds);
    return *tau * latency->seconds[0] / seconds;
}

// The same of the size that is fastest, with at most `most` rows.
static double fastest_trees(const TreeModel *model, const Latency *latency, int most, Template *trees,
                            double *tau) {
    double best = 0;
    for (int s = 1; s <= most; s += s < 16 ? 1 : s < 32 ? 2 : 4) {
        Template candidates[MAX_PROMPTS + 1];
        double tokens, speedup = plan_trees(model, latency, s, candidates, &tokens);
        if (speedup <= best * 1.001) continue; // of about equals, the smallest
        best = speedup, *tau = tokens;
        memcpy(trees, candidates, sizeof candidates);
    }
    return best;
}

// ===========================================================================================================
// 6  Training the prompt tokens

/* A text of T tokens goes through the model once, and with it, as further rows of the same matrices, the
prompt tokens of `cuts` random places of it. Guess q = i*cuts + c is that of prompt i at cut c, and has the
rows T + q*copies + j. They stand at position cut+1+i and see the text up to the cut, and copy j of the
prompts before; nothing of the text sees a prompt.

    loss = sum_i 0.8^i / n  mean over cuts of KL(model at cut+1+i || prompt i),  i from 0  (arXiv 2405.18628)

The model's own distribution at cut+1+i is that of the token i+2 after the cut, whose guess is prompt i's. It
is taken at the temperature at which text will be drawn, so that prompts learn what they will meet: 0 unless
asked for; the paper has 1. The text in which they learn, and by which trees are chosen, is greedy all the
same.
A prompt token is an embedding (depth 1), as in the paper, or has a vector for the beginning of every layer
(depth L, ours): a small frozen model makes little of a strange embedding alone. With the tales' model of
dev/studies/decoding.sh, the character after the next is among the first 1, 5, 10 guesses 78%, 90%, 96% of the
time with --deep; 36%, 69%, 84% with embeddings alone, trained at temperature 1 as the paper's are.
A map of low rank (ours) lets a prompt read what the model makes of the token at the cut: its last state s
becomes s + U'D x, x that token's. So a frozen small model, which makes little of prompts alone, guesses
nearly as well as with heads, whose numbers are 8 to 15 times as many. Top-1 at distance 1, 2, 3 after 400
steps, of 34 million parameters (the study's long form) and of 3 million: embeddings alone 0.21, 0.19, 0.17
and 0.36, 0.33, 0.18; --deep 0.23, 0.19, 0.17 and 0.78, 0.67, 0.43; --rank 12 0.60, 0.52, 0.46, --rank 16
0.83, 0.80, 0.77; heads 0.66, 0.58, 0.54 and 0.86, 0.83, 0.80. A step of Adam's moves a map's numbers
MAP_SCALE times as far as a vector's.
Backward, only prompt rows have gradients, unless the model is trained too ("joint"); then text rows have them
as well, and those of the prompts flow into the keys and values of the text. The B texts of a step come one
after the other.
Guesses will meet what the model writes, so they learn from that: --own-tokens of it, written before the first
step. Jointly, the next-token loss is that of the training text all the same, and since the model changes, and
would soon know by heart what it once wrote, it writes anew whenever that was read READINGS times.
Adam's steps are as long as its rate in every number, and prompts, which begin as noise, have further to go
than the model: jointly, what is trained is their numbers divided by JOINT_SCALE, so that their steps are so
much longer (64 times, where steps are proportional to the gradient). The model of the short decoding study,
trained on for 300 steps at 5e-4 with a weight of 0.5 (one seed), ends at 1.293 validation loss, its prompts
at a KL of 2.17 in held-out text; with scales of 1, 16, 32 at 1.301, 1.291, 1.299 and 2.19, 2.14, 2.20. */
#define READINGS 2
#define JOINT_SCALE 8.0f
#define MAP_SCALE 0.05f
#define PROMPTS_MAGIC "PPDFILE5"

// What is trained, as its file begins: n prompt tokens of copies*depth vectors and a map each, or n heads
// instead (arXiv 2401.10774).
typedef struct {
    char magic[8];
    int32_t heads, n, copies, depth, channels, layers, rank, zero; // zero: `model` stands at a multiple of 8
    uint64_t model; // its hash
} PromptsHeader;

// Where the maps (n,2,rank,C) begin, behind the vectors (n,copies,depth,C).
static size_t maps_at(const PromptsHeader *h) { return (size_t)h->n * h->copies * h->depth * h->channels; }
static size_t prompts_size(const PromptsHeader *h) {
    size_t C = h->channels;
    return h->heads ? h->n * (C * C + C) : maps_at(h) + (size_t)h->n * 2 * h->rank * C;
}

typedef struct {
    GPT2 *m;
    PromptsHeader h;
    int cuts, B, T;
    int joint;
    float weight;                       // of the prompts' loss
    float scale;                        // of prompts: what they are, by what is in params; 1 of heads
    float map_scale;                    // the same of their maps
    float temperature;                  // of the text that will be guessed
    float *params, *grads;              // (n,copies,depth,C), or heads (n,C,C) and then (n,C)
    int *cuts_of_step;                  // (B,cuts)
    const int *cut;                     // (cuts) of the text that is in the model
    float *student, *teacher, *dstudent; // (n*cuts,C) hidden states: of guesses, of what they guess; gradient
    float *inputs, *z;                  // (n*cuts,C) heads: the hidden states that they read, and products;
                                        // maps: z[q*C .. + rank) is u of guess q
    float *teacher_logits;              // (logit_rows,V)
    float *attention;                   // (threads,2,P,R) of P prompt rows over all R = T+P
    double kl;                          // of the last step, without `weight`
    double top1[MAX_PROMPTS], top5[MAX_PROMPTS]; // shares of cuts whose likeliest token is among the guesses
} PromptTrainer;

// P, of a text.
static int prompt_rows(const PromptTrainer *t) { return t->h.heads ? 0 : t->cuts * t->h.n * t->h.copies; }

// Activations for a text and its prompts, jointly for B texts, too; without joint the gradients of t->m are
// freed, for it is frozen.
static void trainer_allocate(PromptTrainer *t) {
    GPT2 *m = t->m;
    int C = m->config.channels, P = prompt_rows(t), R = t->T + P, guesses = t->h.n * t->cuts;
    gpt2_allocate_activations(m, 1, t->joint ? MAX(R, t->B * t->T) : R, 1);
    if (!t->joint) {
        free(m->grads_memory), m->grads_memory = NULL;
        memset(&m->grads, 0, sizeof m->grads);
    }
    t->cuts_of_step = allocate((size_t)t->B * t->cuts, sizeof(int));
    float **buffers[] = {&t->student, &t->teacher, &t->dstudent, &t->inputs, &t->z};
    for (int i = 0; i < 5; i++) *buffers[i] = allocate_floats((size_t)guesses * C);
    t->teacher_logits = allocate_floats((size_t)m->logit_rows * m->config.vocab_size);
    t->attention = allocate_floats((size_t)omp_get_max_threads() * 2 * P * R);
}

// p (P,R) = the probabilities of a head's prompt rows; qkv at the head's queries of row 0.
static void prompt_probabilities(const PromptTrainer *t, float *p, const float *qkv) {
    int C = t->m->config.channels, HS = C / t->m->config.num_heads, T = t->T, P = prompt_rows(t), R = T + P;
    float own[MAX_PROMPTS], temperature = sqrtf((float)HS);
    multiply(p, R, qkv + T * 3L * C, 3L * C, 1, qkv + C, 1, 3L * C, P, R, HS, plain);
    for (int r = 0; r < P; r++) { // the rest of the row becomes invisible
        float *x = p + (size_t)r * R;
        int of_a_prompt = t->cuts * t->h.copies, i = r / of_a_prompt, within = r % of_a_prompt;
        for (int e = 0; e <= i; e++) own[e] = x[T + e * of_a_prompt + within];
        for (int k = t->cut[within / t->h.copies] + 1; k < R; k++) x[k] = -INFINITY;
        for (int e = 0; e <= i; e++) x[T + e * of_a_prompt + within] = own[e];
        float lse = log_sum_exp(x, R, temperature);
#pragma omp simd
        for (int k = 0; k < R; k++) x[k] = exp_f32(x[k] / temperature - lse);
    }
}

// The prompt rows of out (R,C), as attention_forward does those of the text.
static void prompt_attention_forward(void *trainer, float *out, const float *qkv) {
    const PromptTrainer *t = trainer;
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, P = prompt_rows(t), R = t->T + P;
#pragma omp parallel for schedule(dynamic)
    for (int h = 0; h < NH; h++) {
        float *p = t->attention + (size_t)omp_get_thread_num() * 2 * P * R;
        prompt_probabilities(t, p, qkv + h * HS);
        multiply(out + (size_t)t->T * C + h * HS, C, p, R, 1, qkv + 2 * C + h * HS, 3L * C, 1, P, HS, R,
                 plain);
    }
}

// dqkv of the prompt rows from dout; jointly, dk and dv of the text are added to.
static void prompt_attention_backward(void *trainer, float *dqkv, const float *dout, const float *qkv,
                                      const float *out) {
    const PromptTrainer *t = trainer;
    int C = t->m->config.channels, NH = t->m->config.num_heads, HS = C / NH, T = t->T, P = prompt_rows(t),
        R = T + P;
    long ld = 3L * C;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(dynamic)
    for (int h = 0; h < NH; h++) {
        float *p = t->attention + (size_t)omp_get_thread_num() * 2 * P * R, *dp = p + (size_t)P * R;
        const float *q = qkv + h * HS, *k = q + C, *v = k + C;
        const float *o = out + (size_t)T * C + h * HS, *d_o = dout + (size_t)T * C + h * HS;
        float *dq = dqkv + h * HS, *dk = dq + C, *dv = dk + C;
        prompt_probabilities(t, p, q);
        multiply(dp, R, d_o, C, 1, v, 1, ld, P, R, HS, plain);
        for (int r = 0; r < P; r++) {
            float D = 0, *pr = p + (size_t)r * R, *dpr = dp + (size_t)r * R;
            for (int c = 0; c < HS; c++) D += o[(size_t)r * C + c] * d_o[(size_t)r * C + c];
            for (int j = 0; j < R; j++) dpr[j] = pr[j] * (dpr[j] - D) * scale;
        }
        multiply(dq + T * ld, ld, dp, R, 1, k, ld, 1, P, HS, R, plain);
        for (int own = !t->joint; own < 2; own++) { // the text's own attention has written to its rows
            int from = own ? T : 0, rows = own ? P : T;
            Epilogue add = own ? plain : accumulate;
            multiply(dk + from * ld, ld, dp + from, 1, R, q + T * ld, ld, 1, rows, HS, P, add);
            multiply(dv + from * ld, ld, p + from, 1, R, d_o, C, 1, rows, HS, P, add);
        }
    }
}

// The position of prompt row r, and where in params its vectors begin.
static int prompt_position(const PromptTrainer *t, int r) {
    return t->cut[r / t->h.copies % t->cuts] + 1 + r / t->h.copies / t->cuts;
}
static size_t prompt_at(const PromptTrainer *t, int r) {
    int copies = t->h.copies;
    return (size_t)(r / copies / t->cuts * copies + r % copies) * t->h.depth * t->h.channels;
}

// What enters layer l: x (R,C), at first the positions.
static void prompts_enter(void *trainer, int l, float *x) {
    const PromptTrainer *t = trainer;
    int C = t->m->config.channels;
    x += (size_t)t->T * C;
    for (int r = 0; r < prompt_rows(t); r++, x += C) {
        if (l == 0) memcpy(x, t->m->params.wpe + (size_t)prompt_position(t, r) * C, C * sizeof(float));
        const float *own = t->params + prompt_at(t, r) + l * C;
        for (int c = 0; c < (l < t->h.depth ? C : 0); c++) x[c] += t->scale * own[c];
    }
}

static void prompts_enter_backward(void *trainer, int l, const float *dx) {
    const PromptTrainer *t = trainer;
    int C = t->m->config.channels;
    dx += (size_t)t->T * C;
    for (int r = 0; r < prompt_rows(t); r++, dx += C) {
        float *position = l == 0 && t->joint ? t->m->grads.wpe + (size_t)prompt_position(t, r) * C : NULL;
        float *own = t->grads + prompt_at(t, r) + l * C;
        for (int c = 0; c < (l < t->h.depth ? C : 0); c++) own[c] += t->scale * dx[c];
        for (int c = 0; c < (position ? C : 0); c++) position[c] += dx[c];
    }
}

// The hidden states m->lnf of a text of T tokens, and of its P prompt rows behind them. `cut` has to stay.
static void prompt_forward(PromptTrainer *t, const uint16_t *tokens, const int *cut) {
    t->cut = cut;
    t->m->extra = (ExtraRows){prompt_rows(t), !t->joint, t, prompts_enter, prompt_attention_forward,
                              prompt_attention_backward, prompts_enter_backward};
    gpt2_forward(t->m, tokens, 1, t->T);
}

// Heads: t->student = x + silu(z), z = x W' + bias, from the hidden states x of the cuts, kept in t->inputs.
static void heads_forward(PromptTrainer *t) {
    int C = t->m->config.channels, cuts = t->cuts, n = t->h.n * cuts * C;
    memcpy(t->inputs, t->student, (size_t)n * sizeof(float));
    for (int i = 0; i < t->h.n; i++) {
        size_t rows = (size_t)i * cuts * C, w = (size_t)i * C * C, bias = (size_t)t->h.n * C * C + i * C;
        linear_forward(t->z + rows, t->inputs + rows, t->params + w, cuts, C, C,
                       (Epilogue){.bias = t->params + bias});
    }
#pragma omp parallel for simd schedule(static)
    for (int k = 0; k < n; k++) t->student[k] += t->z[k] * sigmoid(t->z[k]);
}

// The gradient of the heads' W and bias += that of t->dstudent.
static void heads_backward(PromptTrainer *t) {
    int C = t->m->config.channels, guesses = t->h.n * t->cuts;
#pragma omp parallel for simd schedule(static)
    for (int k = 0; k < guesses * C; k++) {
        float s = sigmoid(t->z[k]);
        t->z[k] = t->dstudent[k] * (s + t->z[k] * s * (1.0f - s));
    }
    for (int i = 0; i < t->h.n; i++) {
        size_t rows = (size_t)i * t->cuts * C, w = (size_t)i * C * C;
        matmul(t->grads + w, t->z + rows, t->inputs + rows, C, C, t->cuts, 1, 0, accumulate);
    }
    for (int q = 0; q < guesses; q++)
        for (int c = 0; c < C; c++)
            t->grads[(size_t)t->h.n * C * C + q / t->cuts * C + c] += t->z[(size_t)q * C + c];
}

// The map of guess q in params or grads.
static float *map_of(const PromptTrainer *t, float *params, int q) {
    return params + maps_at(&t->h) + (size_t)(q / t->cuts) * 2 * t->h.rank * t->h.channels;
}

// The gradient of the maps += that of t->dstudent; jointly, that of the states that they read goes into
// m->dnormed.
static void maps_backward(PromptTrainer *t) {
    int C = t->m->config.channels, rank = t->h.rank;
    for (int q = 0; q < t->h.n * t->cuts; q++) {
        size_t at = (size_t)t->cut[q % t->cuts] * C;
        const float *d = t->dstudent + (size_t)q * C, *x = t->m->lnf + at, *map = map_of(t, t->params, q);
        float *grad = map_of(t, t->grads, q), *dx = t->joint ? t->m->dnormed + at : NULL;
        for (int k = 0; k < rank; k++) {
            const float *down = map + (size_t)k * C, *up = down + (size_t)rank * C;
            float *grad_down = grad + (size_t)k * C, *grad_up = grad_down + (size_t)rank * C;
            float du = 0, u = t->z[(size_t)q * C + k] * t->map_scale;
#pragma omp simd reduction(+ : du)
            for (int c = 0; c < C; c++) du += up[c] * d[c];
            du *= t->map_scale * t->map_scale;
#pragma omp simd
            for (int c = 0; c < C; c++) grad_up[c] += u * d[c], grad_down[c] += du * x[c];
            for (int c = 0; c < (dx ? C : 0); c++) dx[c] += du * down[c];
        }
    }
}

// Adds the KL of all guesses after prompt_forward to t->kl. Its gradient, times t->weight, goes into the
// prompt rows of m->dnormed and jointly into grads.wte, or into the heads.
static void prompt_loss(PromptTrainer *t) {
    GPT2 *m = t->m;
    int C = m->config.channels, V = m->config.vocab_size, guesses = t->h.n * t->cuts, all = t->B * t->cuts;
    int copies = t->h.copies, rank[guesses]; // heads have one copy
    float kl[guesses], temperature = fmaxf(t->temperature, 1e-3f); // at 1e-3 the likeliest token has it all
    memset(t->student, 0, (size_t)guesses * C * sizeof(float));
    for (int q = 0; q < guesses; q++) {
        int at = t->cut[q % t->cuts];
        const float *own = m->lnf + (size_t)(t->h.heads ? at : t->T + q * copies) * C;
        memcpy(t->teacher + (size_t)q * C, m->lnf + (size_t)(at + 1 + q / t->cuts) * C, C * sizeof(float));
        for (int k = 0; k < copies * C; k++) t->student[(size_t)q * C + k % C] += own[k] / (float)copies;
        if (t->h.rank)
            apply_map(t->student + (size_t)q * C, t->z + (size_t)q * C, map_of(t, t->params, q),
                      m->lnf + (size_t)at * C, t->h.rank, C, t->map_scale);
    }
    if (t->h.heads) heads_forward(t);
    for (int first = 0; first < guesses; first += m->logit_rows) {
        int rows = MIN(m->logit_rows, guesses - first);
        float *student = t->student + (size_t)first * C;
        linear_forward(t->teacher_logits, t->teacher + (size_t)first * C, m->params.wte, rows, C, V, plain);
        linear_forward(m->logits, student, m->params.wte, rows, C, V, plain);
#pragma omp parallel for schedule(static)
        for (int r = 0; r < rows; r++) {
            float *x = m->logits + (size_t)r * V, *y = t->teacher_logits + (size_t)r * V, sum = 0;
            int top = argmax(y, V), before = 0;
            float likeliest = x[top], highest = y[top];
            for (int v = 0; v < V; v++) y[v] = (y[v] - highest) / temperature; // so exact where it is cold
            float x_lse = log_sum_exp(x, V, 1), y_lse = log_sum_exp(y, V, 1);
            float scale = t->weight * powf(0.8f, (float)((first + r) / t->cuts)) / (float)(t->h.n * all);
#pragma omp simd reduction(+ : before)
            for (int v = 0; v < V; v++) before += x[v] > likeliest;
#pragma omp simd reduction(+ : sum)
            for (int v = 0; v < V; v++) {
                float log_p = x[v] - x_lse, log_q = y[v] - y_lse, q = exp_f32(log_q);
                sum += q > 0 ? q * (log_q - log_p) : 0;
                x[v] = scale * (exp_f32(log_p) - q);
            }
            kl[first + r] = sum, rank[first + r] = before;
        }
        if (t->joint) matmul(m->grads.wte, m->logits, student, V, C, rows, 1, 0, accumulate);
        matmul(t->dstudent + (size_t)first * C, m->logits, m->params.wte, rows, C, V, 0, 0, plain);
    }
    if (t->h.heads) heads_backward(t);
    else maps_backward(t);
    for (int q = 0; q < guesses; q++) {
        int i = q / t->cuts;
        t->kl += powf(0.8f, (float)i) / (float)(t->h.n * all) * kl[q];
        t->top1[i] += (rank[q] < 1) / (double)all, t->top5[i] += (rank[q] < 5) / (double)all;
        const float *d = t->dstudent + (size_t)q * C;
        float *own = m->dnormed + (size_t)(t->T + q * copies) * C;
        for (int k = 0; k < copies * C && !t->h.heads; k++) own[k] = d[k % C] / (float)copies;
    }
}

// Forward and backward of a text: the gradient of weight * KL is added to t->grads, jointly also to m->grads.
static void prompt_text(PromptTrainer *t, const uint16_t *tokens, const int *cut) {
    GPT2 *m = t->m;
    prompt_forward(t, tokens, cut);
    if (t->joint) memset(m->dnormed, 0, (size_t)t->T * m->config.channels * sizeof(float)); // of the text
    prompt_loss(t);
    if (!t->h.heads) layers_backward(m, accumulate);
    m->extra = (ExtraRows){0};
}

// The gradients of a step into t->grads, jointly also into m->grads; t->kl and the accuracies. The prompts
// guess in B texts, `guessed` (B,T); jointly, the model learns B more, x and y (B,T), whose mean loss is
// returned, else NaN.
static double prompt_step(PromptTrainer *t, const uint16_t *guessed, const uint16_t *x, const uint16_t *y) {
    double loss = NAN;
    memset(t->grads, 0, prompts_size(&t->h) * sizeof(float));
    memset(t->top1, 0, sizeof t->top1), memset(t->top5, 0, sizeof t->top5);
    t->kl = 0;
    if (t->joint) {
        gpt2_forward(t->m, x, t->B, t->T);
        loss = gpt2_backward(t->m, y, 1.0f / (float)(t->B * t->T), NULL);
    }
    for (int b = 0; b < t->B; b++) prompt_text(t, guessed + b * t->T, t->cuts_of_step + b * t->cuts);
    return loss;
}

// Random cuts of the step's texts, from `first` on; each leaves room for the prompts and what they guess.
static void draw_cuts(PromptTrainer *t, int first, uint64_t seed, long step) {
    first = MIN(first, t->T - t->h.n - 1);
    uint64_t n = (uint64_t)(t->B * t->cuts), places = (uint64_t)(t->T - t->h.n - first);
    for (uint64_t i = 0; i < n; i++)
        t->cuts_of_step[i] = first + (int)(random_u64(seed + 5, (uint64_t)step * n + i) % places);
}

// ===========================================================================================================
// 7  The prompts file; an engine

/* A PROMPTS file: PromptsHeader, prompts_size floats (vectors and maps; heads: n*(C*C+C)), PromptsTables, a
hash of all before it. It belongs to one model, whose hash it has. How often a guess of some rank was right is
counted on text that the model itself wrote after held-out beginnings: greedy text is what the guesses will
meet. */
typedef struct {
    uint32_t seen[MAX_PROMPTS], right[MAX_PROMPTS][RANKS]; // for each distance, whatever came before
    uint32_t seen_after[MAX_PROMPTS], right_after[MAX_PROMPTS][RANKS]; // if all nearer were in the first 3
    uint64_t machine[NUM_KINDS];                           // that the latencies are of; 0: none measured
    Latency latency[NUM_KINDS];                            // for each kind of weights
    int32_t likely;                                        // groups of tokens that guesses may be of; 0: all
    uint16_t group[MAX_LIKELY];                            // in ascending order
} PromptsTables;

typedef struct {
    PromptsHeader header;
    float *params;
    PromptsTables tables;
} Prompts;

static uint64_t prompts_hash(const Prompts *p) {
    uint64_t hash = hash_bytes(0, &p->header, sizeof p->header);
    hash = hash_bytes(hash, p->params, prompts_size(&p->header) * 4);
    return hash_bytes(hash, &p->tables, sizeof p->tables);
}

static void prompts_save(const Prompts *p, const char *path) {
    uint64_t hash = prompts_hash(p);
    FILE *f = write_begin(path);
    write_bytes(f, &p->header, sizeof p->header);
    write_bytes(f, p->params, prompts_size(&p->header) * sizeof(float));
    write_bytes(f, &p->tables, sizeof p->tables);
    write_bytes(f, &hash, sizeof hash);
    write_commit(f, path);
}

// Dies unless the file is whole and of that shape and model (its hash).
static void prompts_load(Prompts *p, const char *path, GPT2Config g, uint64_t model) {
    size_t size;
    FILE *f = open_file(path, &size);
    uint64_t stored;
    PromptsHeader *h = &p->header;
    if (fread(h, sizeof *h, 1, f) != 1 || memcmp(h->magic, PROMPTS_MAGIC, 8))
        die("%s is not a file of prompt tokens; `decode_ppd train` makes one", path);
    if ((h->heads != 0 && h->heads != 1) || h->n < 1 || h->n > MAX_PROMPTS || h->copies < 1 ||
        h->copies > MAX_ROWS || h->n * h->copies >= MAX_TREE || (h->depth != 1 && h->depth != h->layers) ||
        h->rank < 0 || h->rank > MIN(h->heads ? 0 : MAX_RANK, h->channels))
        die("%s: %d prompts of %d copies, depth %d, rank %d and kind %d cannot be: the file is damaged", path,
            h->n, h->copies, h->depth, h->rank, h->heads);
    if (h->channels != g.channels || h->layers != g.num_layers)
        die("%s is for a model of %d layers and %d channels, not of %d and %d; give that model", path,
            h->layers, h->channels, g.num_layers, g.channels);
    size_t count = prompts_size(h), expected = sizeof *h + count * 4 + sizeof p->tables + 8;
    if (size != expected)
        die("%s has %zu bytes, its shape asks for %zu: the file is damaged", path, size, expected);
    if (h->model != model)
        die("%s was trained for another model; give that one, or train prompts for this one", path);
    p->params = allocate_floats(count);
    if (fread(p->params, 4, count, f) != count || fread(&p->tables, sizeof p->tables, 1, f) != 1 ||
        fread(&stored, 8, 1, f) != 1 || stored != prompts_hash(p))
        die("%s is damaged: its checksum is wrong; train the prompts again", path);
    int likely = p->tables.likely;
    if (likely < 0 || likely > MAX_LIKELY ||
        (likely && (p->tables.group[likely - 1] + 1) * TOKEN_GROUP > g.vocab_size))
        die("%s has guesses of tokens that the model does not know: the file is damaged", path);
    fclose(f);
}

// A number for this machine, the width of its vectors and the number of threads, so that latencies of others
// are not believed.
static uint64_t machine_hash(int threads) {
    char line[256] = "";
    uint64_t hash = hash_bytes(threads, &(int){VEC}, sizeof(int));
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f) && *line != '\n') // of the first core; ARM's lines begin with CPU
        if (!strncmp(line, "model name", 10) || !strncmp(line, "CPU ", 4))
            hash = hash_bytes(hash, line, strlen(line));
    if (f) fclose(f);
    return hash | 1;
}

// A model ready to write text.
typedef struct {
    Tokenizer tokenizer;
    Decoder decoder;
    Prompts prompts;              // params NULL without
    Linear heads[MAX_PROMPTS];
    Generator generator;
    TreeModel odds;               // how often its guesses are right
    double tau, speedup;          // of the trees: tokens a pass, predicted speedup
} Engine;

// Rows of a tree for the engine's guesses.
static int engine_most_rows(const Engine *e) { return MIN(MAX_TREE, most_nodes(heads_of(&e->generator))); }

// The best trees for the engine's guesses on this machine, or, where `rows` is not 0, the best of that size.
static void engine_trees(Engine *e, int rows) {
    Generator *g = &e->generator;
    const PromptsTables *t = &e->prompts.tables;
    int most = engine_most_rows(e);
    if (rows > most) die("--tree %d: with %d heads a pass has room for %d", rows, g->n, most);
    e->odds = (TreeModel){.n = g->n, .copies = g->kind == GUESS_HEADS ? 0 : g->copies};
    for (int d = 0; d < g->n; d++)
        for (int r = 0; r < RANKS; r++)
            e->odds.accuracy[d][r] = t->right_after[d][r] / (t->seen_after[d] + 1.0);
    e->speedup = rows ? plan_trees(&e->odds, e->generator.latency, rows, g->templates, &e->tau)
                      : fastest_trees(&e->odds, e->generator.latency, most, g->templates, &e->tau);
}

// Gives the generator the guesses of e->prompts. Until there are trees, each pass has a root and its chain.
static void engine_guess(Engine *e) {
    const PromptsHeader *h = &e->prompts.header;
    Generator *g = &e->generator;
    Decoder *d = &e->decoder;
    int C = d->config.channels;
    g->n = h->n, g->copies = h->copies, g->kind = h->heads ? GUESS_HEADS : GUESS_PROMPTS;
    d->prompts = e->prompts.params, d->depth = h->heads ? 0 : h->depth;
    d->maps = e->prompts.params + maps_at(h), d->rank = h->rank;
    float *w = e->prompts.params, *bias = w + (size_t)g->n * C * C;
    for (int i = 0; i < heads_of(g); i++)
        e->heads[i] = linear_pack(w + (size_t)i * C * C, C, C, d->kind, bias + i * C, NULL, NULL);
    d->heads = e->heads;
    decoder_likely(d, e->prompts.tables.group, e->prompts.tables.likely);
    for (int k = 0; k <= g->n; k++)
        g->templates[k] =
            (Template){.nodes = 1, .rows = 1 + (h->heads ? 0 : g->n * g->copies), .chain = {g->n},
                       .parent = {-1}, .tokens = 1};
}

// Latencies from the prompts where they have those of this machine and number of threads, or measured now, at
// every start: only `train` writes the file.
static void engine_latency(Engine *e) {
    int kind = e->decoder.kind;
    PromptsTables *t = &e->prompts.tables;
    uint64_t here = machine_hash(e->decoder.threads);
    if (t->machine[kind] != here)
        measure_latency(&e->decoder, heads_of(&e->generator), e->generator.copies, &t->latency[kind],
                        LATENCY_ROUNDS);
    t->machine[kind] = here;
    e->generator.latency = &t->latency[kind];
}

static void engine_start(Engine *e, const GPT2 *m, WeightKind kind) {
    decoder_init(&e->decoder, m, kind);
    e->generator = (Generator){.decoder = &e->decoder, .copies = 1};
    e->generator.candidates = allocate(m->config.vocab_size, sizeof *e->generator.candidates);
}

static void engine_stop(Engine *e) {
    decoder_free(&e->decoder);
    free(e->generator.text), free(e->generator.candidates);
    for (int i = 0; i < MAX_PROMPTS; i++) linear_free(&e->heads[i]), e->heads[i] = (Linear){0};
}

// The tokenizer beside a model of V tokens; there may be none unless it is needed.
static void load_tokenizer(Tokenizer *t, const char *path, int V, int needed) {
    if (!tokenizer_load(t, path) && needed)
        die("%s has no tokenizer beside it (tokenizer.txt, .bpe or .json, merges.txt or vocab.bpe)",
            path);
    if (t->vocab_size > V)
        die("%s: the tokenizer has %d tokens, the model knows %d", path, t->vocab_size, V);
}

// Loads a model and, if given, its prompts or heads, with trees of some rows (0: the best).
static void engine_load(Engine *e, const char *path, const char *prompts, WeightKind kind, int rows) {
    GPT2 m;
    gpt2_open(&m, path, 1);
    load_tokenizer(&e->tokenizer, path, m.config.vocab_size, 1);
    engine_start(e, &m, kind);
    if (*prompts) {
        prompts_load(&e->prompts, prompts, m.config, model_hash(&m));
        engine_guess(e);
        engine_latency(e);
        engine_trees(e, rows);
    }
    gpt2_free(&m);
}

// The longest piece of a text: from it come the beginnings that a model goes on from.
static Shard longest_piece(const Dataset *d) {
    Shard longest = d->shards[0];
    for (int s = 1; s < d->num_shards; s++)
        if (d->shards[s].count > longest.count) longest = d->shards[s];
    return longest;
}

// Tokens of such a beginning in held-out text.
static int held_out_prompt(GPT2Config g) { return MAX(1, MIN(64, g.max_seq_len / 4)); }

// Counts what is right of the guesses (n,RANKS) after a token; text (n): what followed. In right_after and
// seen_after, and with `all` in right and seen, too.
static void count_guesses(PromptsTables *t, int n, int (*guess)[RANKS], const uint16_t *text, int all) {
    for (int d = 0, near = 1, rank; d < n; d++, near = near && rank < 3) {
        for (rank = 0; rank < RANKS && guess[d][rank] != text[d];) rank++;
        t->seen[d] += all, t->seen_after[d] += near;
        if (rank < RANKS) t->right[d][rank] += all, t->right_after[d][rank] += near;
    }
}

// The tokens that a pass with this tree makes there, and the last node's chain.
static int walk_tree(const Template *tree, int (*guess)[RANKS], const uint16_t *text, int *chain) {
    int v = 0, made = 1;
    for (int w = 1; w < tree->nodes; w++) // behind their parents
        if (tree->parent[w] == v && guess[made - 1][tree->rank[w]] == text[made - 1]) v = w, made++;
    *chain = tree->chain[v];
    return made;
}

// Counts how often guesses are right, on `tokens` tokens that the model writes after beginnings in `data`;
// after 40 seconds no text is begun. Texts may be longer than the context, which then slides. The tables seen
// and right count every token. Trees are made of seen_after and right_after, which are to count tokens as
// passes meet them, and passes begin more often where a text is hard to guess: the first round counts every
// token, each of the next two only those at which passes with the trees of the round before would begin.
static void measure_accuracy(Engine *e, const Dataset *data, int tokens) {
    Generator *g = &e->generator;
    PromptsTables *t = &e->prompts.tables;
    int prompt = held_out_prompt(e->decoder.config), n = g->n;
    int length = MIN(128, tokens), most = tokens / length, texts = 0;
    int (*guesses)[MAX_PROMPTS][RANKS] = resize(NULL, (size_t)most * length * sizeof *guesses);
    uint16_t *written = resize(NULL, (size_t)most * length * sizeof *written);
    Shard piece = longest_piece(data);
    for (double start = now(); texts < most && now() - start < 40; texts++) {
        const uint16_t *from = piece.tokens + (piece.count - prompt) * (size_t)texts / most;
        check_tokens(data, from, prompt);
        generator_text(g, from, prompt);
        for (int i = 0; i < length; i++) {
            generator_step(g, 1);
            memcpy(guesses[texts * length + i], g->guess, sizeof *guesses);
            if (g->state < n) memset(guesses[texts * length + i], -1, sizeof *guesses); // the context ends
        }
        memcpy(written + texts * length, g->text + prompt, length * sizeof *written);
    }
    for (int round = 0; round < (g->latency ? 3 : 1); round++) {
        memset(t->seen_after, 0, sizeof t->seen_after), memset(t->right_after, 0, sizeof t->right_after);
        for (int text = 0; text < texts; text++)
            for (int i = 0, made, state = n; i + n < length; i += made) {
                int (*guess)[RANKS] = guesses[text * length + i], known = guess[0][0] >= 0;
                const uint16_t *next = written + text * length + i + 1; // of which guess d is of next[d]
                if (known) count_guesses(t, n, guess, next, round == 0);
                made = round && known ? walk_tree(&g->templates[state], guess, next, &state) : 1;
                if (g->kind == GUESS_HEADS) state = n;
            }
        if (g->latency) engine_trees(e, 0);
    }
    free(guesses), free(written);
}

static void print_accuracy(const PromptsTables *t, int n) {
    for (int d = 0; d < n; d++) {
        uint32_t top[RANKS + 1] = {0};
        double seen = MAX(1u, t->seen[d]);
        for (int r = 0; r < RANKS; r++) top[r + 1] = top[r] + t->right[d][r];
        printf("distance %d  top-1 %.3f  top-5 %.3f  top-10 %.3f   of the model's own text\n", d + 1,
               top[1] / seen, top[5] / seen, top[10] / seen);
    }
}

// ===========================================================================================================
// 8  Command line

typedef struct {
    const char *model, *data, *val, *out, *ppd, *heads_file, *draft, *draft_ppd, *prompt, *weights;
    int tokens, top_k, typical, ngram, tree, seed, texts;
    double temperature, top_p;
    int prompts, copies, deep, rank, heads, joint, own_tokens;
    int steps, batch, seq_len, cuts, save_every, resume, warmup;
    double prompt_weight, final_lr, clip;
    const char *optimizer, *base, *schedule, *out_model;
    Options rest; // its hyper_name: the optimizer's own options
} DecodeOptions;

#define AT(name) offsetof(DecodeOptions, name)
// the last number says here to which commands an option belongs: 1 train, 2 run, 4 bench; and 8: a resumed
// training must have the same
static const OptionRow decode_rows[] = {
    {"model", 's', AT(model), "", 0, 0, 7, "FILE|DIR", "the model: .bin, Hugging Face folder, run"},
    {"data", 's', AT(data), DEFAULT_DATA, 0, 0, 5, "FILE|GLOB", "text, or token shards"},
    {"val", 's', AT(val), "", 0, 0, 5, "FILE|GLOB", "held-out text; without it, the last tenth of --data"},
    {"out", 's', AT(out), "", 0, 0, 1, "PROMPTS", "the file to write"},
    {"ppd", 's', AT(ppd), "", 0, 0, 6, "PROMPTS", "prompt tokens that `train` made (run: or heads)"},
    {"heads-file", 's', AT(heads_file), "", 0, 0, 4, "HEADS", "heads to compare with (train --heads)"},
    {"draft", 's', AT(draft), "", 0, 0, 6, "FILE|DIR", "a smaller model of the same tokens, which proposes"},
    {"draft-ppd", 's', AT(draft_ppd), "", 0, 0, 6, "PROMPTS", "the draft's own prompt tokens"},
    {"ngram", 'f', AT(ngram), "0", 0, 0, 2, "", "propose what followed the last tokens before"},
    {"prompt", 's', AT(prompt), "", 0, 0, 2, "TEXT", "without it: standard input, each line a prompt"},
    {"tokens", 'i', AT(tokens), "100", 1, 1e9, 6, "N", "tokens to write; a full context slides by half"},
    {"temperature", 'd', AT(temperature), "0", 0, 1e3, 11, "X",
        "of the text; below 1e-4 the likeliest token"},
    {"top-k", 'i', AT(top_k), "0", 0, 65536, 2, "K", "draw among the K likeliest (0: all)"},
    {"top-p", 'd', AT(top_p), "1", 1e-6, 1, 2, "P", "draw among the likeliest that have P together"},
    {"typical", 'f', AT(typical), "0", 0, 0, 2, "", "accept typical guesses: faster, another distribution"},
    {"weights", 'c', AT(weights), "f32", 0, 0, 6, "f32|bf16|int8", "how weights are kept while decoding"},
    {"tree", 'i', AT(tree), "0", 0, MAX_TREE, 6, "S", "rows of --ppd's trees (0: what is fastest here)"},
    {"texts", 'i', AT(texts), "8", 1, 1e6, 4, "N", "beginnings to go on from"},
    {"prompts", 'i', AT(prompts), "3", 1, MAX_PROMPTS, 9, "N", "prompt tokens, or heads"},
    {"copies", 'i', AT(copies), "1", 1, 16, 9, "N", "copies of each, averaged: ensemble prompt tokens"},
    {"deep", 'f', AT(deep), "0", 0, 0, 9, "", "a vector for every layer, not just an embedding"},
    {"rank", 'i', AT(rank), "0", 0, MAX_RANK, 9, "R",
        "prompts read the last state of the token before them, by maps of rank R"},
    {"heads", 'f', AT(heads), "0", 0, 0, 9, "", "train Medusa-like heads instead"},
    {"joint", 'f', AT(joint), "0", 0, 0, 9, "", "train the model on, together with its prompts"},
    {"own-tokens", 'i', AT(own_tokens), "20000", 0, 1e9, 9, "N",
        "learn from tokens of the model's own (0: --data)"},
    {"out-model", 's', AT(out_model), "", 0, 0, 1, "DIR", "where --joint writes the model"},
    {"prompt-weight", 'd', AT(prompt_weight), "0.1", 0, 1e3, 9, "X", "of the prompts' loss with --joint"},
    {"steps", 'i', AT(steps), "600", 0, 1e9, 9, "N", "optimizer steps"},
    {"batch", 'i', AT(batch), "4", 1, 4096, 9, "B", "texts of a step"},
    {"seq-len", 'i', AT(seq_len), "0", 0, 1 << 20, 9, "T", "tokens of a text (0: the context, at most 256)"},
    {"cuts", 'i', AT(cuts), "32", 1, 4096, 9, "N", "cuts of a text"},
    {"optimizer", 's', AT(optimizer), "adamw", 0, 0, 9, "NAME",
        "any of train_gpt2 --help, with its options; --lr is 3e-2, of heads 1e-3, jointly 3e-4"},
    {"base", 'c', AT(base), "", 0, 0, 9, "adamw|sgd|muon", "of gpa and diloco (adamw), and iam (sgd)"},
    {"schedule", 's', AT(schedule), "cosine", 0, 0, 9, "NAME", "constant, cosine, linear, wsd"},
    {"warmup", 'i', AT(warmup), "20", 0, 1e9, 9, "N", "steps of linear warmup"},
    {"final-lr", 'd', AT(final_lr), "0", 0, 1, 9, "FRACTION", "of the rate at the end"},
    {"clip", 'd', AT(clip), "1", 0, 1e30, 9, "X", "largest gradient norm; 0: none"},
    {"save-every", 'i', AT(save_every), "100", 0, 1e9, 1, "N", "steps between checkpoints (PROMPTS.state)"},
    {"resume", 'f', AT(resume), "0", 0, 0, 1, "", "go on from PROMPTS.state"},
    {"seed", 'i', AT(seed), "1337", 0, 1e9, 11, "N", "of what is drawn"},
};
#define NUM_DECODE ((int)(sizeof decode_rows / sizeof *decode_rows))
static const char *const commands[] = {"train", "run", "bench"};

static void decode_help(const char *of) {
    if (of && strncmp(of, "--", 2)) return print_help(of); // an optimizer's
    printf("decode_ppd: text from a GPT-2, several tokens a pass.\n\n"
           "  ./decode_ppd run   --model runs/a --prompt \"Once upon a time\" --tokens 200\n"
           "  ./decode_ppd train --model runs/a --data text.txt --out runs/a/prompts.ppd\n"
           "  ./decode_ppd run   --model runs/a --ppd runs/a/prompts.ppd --prompt \"Once upon a time\"\n"
           "  ./decode_ppd bench --model runs/a --ppd runs/a/prompts.ppd --data text.txt\n\n"
           "Prompts hold latencies of the machine and threads that trained them. Elsewhere, and for a draft\n"
           "or n-grams alone, run measures before it writes: for two seconds, with a large model longer.\n");
    for (int c = 0; c < 3; c++) {
        printf("\n%s\n", commands[c]);
        for (int i = 0; i < NUM_DECODE; i++)
            if (decode_rows[i].marks >> c & 1) print_option(&decode_rows[i]);
    }
    printf("\n");
    optim_print_help(stdout, NULL);
}

static DecodeOptions decode_options(int argc, char **argv, int command) {
    DecodeOptions o = {0};
    OptionRow rows[NUM_DECODE];
    int n = 0;
    for (int i = 0; i < NUM_DECODE; i++) {
        set_option(&o, &decode_rows[i], decode_rows[i].initial);
        if (decode_rows[i].marks >> command & 1) rows[n++] = decode_rows[i];
    }
    uint64_t given = read_options(&o, rows, n, argc - 1, argv + 1, &o.rest, decode_help);
    int schedule = 0, final_lr = 0, greedy = o.temperature < COLDEST;
    for (int i = 0; i < n; i++) {
        const char *name = rows[i].name;
        if (!(given >> i & 1)) continue;
        schedule |= !strcmp(name, "schedule"), final_lr |= !strcmp(name, "final-lr");
        if (!o.joint && !strcmp(name, "prompt-weight")) die_usage("--prompt-weight goes with --joint");
        if (greedy && (!strcmp(name, "top-k") || !strcmp(name, "top-p")))
            die_usage("--%s needs a --temperature; without, the likeliest token is taken", name);
        if (o.typical && (!strcmp(name, "top-k") || !strcmp(name, "top-p")))
            die_usage("--%s does not go with --typical, which takes other tokens too", name);
    }
    if (o.typical && !*o.ppd && !*o.draft && !o.ngram)
        die_usage("--typical accepts guesses: give --ppd, --draft or --ngram");
    if (!strncmp(o.optimizer, "schedule-free", 13) && !schedule) o.schedule = "constant";
    if (final_lr && !strcmp(o.schedule, "constant"))
        die_usage("--final-lr does not go with a constant schedule");
    if (command != 0 && o.rest.num_hyper)
        die_usage("--%s is no option of %s; see --help", o.rest.hyper_name[0], commands[command]);
    if (!*o.model) die_usage("%s needs --model; see --help", commands[command]);
    return o;
}

// The model with its prompts, and the draft where there is one, for `run` and `bench`.
static void load_engines(Engine *engine, Engine *draft, const DecodeOptions *o) {
    WeightKind kind = choice("weights", o->weights, "f32|bf16|int8");
    if (*o->draft_ppd && !*o->draft) die_usage("--draft-ppd needs --draft, the model it belongs to");
    if (o->tree && !*o->ppd) die_usage("--tree goes with --ppd, whose guesses it holds");
    engine_load(engine, o->model, o->ppd, kind, o->tree);
    if (!*o->draft) return;
    engine_load(draft, o->draft, o->draft_ppd, kind, 0);
    if (draft->decoder.config.vocab_size != engine->decoder.config.vocab_size)
        die("the draft knows %d tokens, the model %d; they must read the same text alike",
            draft->decoder.config.vocab_size, engine->decoder.config.vocab_size);
    if (!same_tokens(&draft->tokenizer, &engine->tokenizer))
        die("%s has other tokens than %s; they must read the same text alike", o->draft, o->model);
}

// Training and held-out tokens for a model; the longest piece of each has more than T and held_out tokens.
// With T 0, of bench, none are needed to train on.
static void load_data(const DecodeOptions *o, const Tokenizer *t, GPT2Config g, Dataset *train, int T,
                      Dataset *val, int held_out) {
    if (T || !*o->val) dataset_load(train, o->data, t, NULL, 0);
    if (*o->val) dataset_load(val, o->val, t, NULL, 0);
    else dataset_split(train, val);
    if (T) check_dataset(train, "training text", g.vocab_size, T);
    check_dataset(val, "held-out text", g.vocab_size, held_out);
}

// ---- run

// Writes a prompt and up to `tokens` tokens after it; returns how many were made, the unwritten end of the
// text included. The time after the prompt is added to *seconds.
static int write_text(Engine *e, const uint16_t *prompt, size_t n, int tokens, double *seconds) {
    Generator *g = &e->generator;
    Writer w = {.tokenizer = &e->tokenizer, .file = stdout};
    int end = e->tokenizer.kind == TOKENIZER_GPT2 ? e->tokenizer.vocab_size - 1 : -1, made = 0;
    for (size_t i = 0; i < n; i++) writer_put(&w, prompt[i]);
    fflush(stdout);
    generator_text(g, prompt, (int)n);
    double start = now();
    for (int done = 0; made < tokens && !done && !interrupted && !ferror(stdout);) {
        int from = g->length, got = generator_step(g, tokens - made);
        for (int i = 0; i < got && !done; i++, made++) {
            done = g->text[from + i] == end;
            if (!done) writer_put(&w, g->text[from + i]);
        }
        fflush(stdout);
    }
    *seconds += now() - start;
    writer_end(&w);
    putchar('\n');
    return made;
}

static int run_command(const DecodeOptions *o) {
    static Engine engine, draft;
    Generator *g = &engine.generator;
    if (o->ngram && *o->draft) die_usage("--ngram and --draft both propose the next tokens; give one");
    load_engines(&engine, &draft, o);
    g->sampling = (Sampling){o->temperature, o->top_k, o->top_p, o->typical, o->seed};
    g->ngram = o->ngram;
    if (*o->draft) g->draft = &draft.generator;
    if ((g->draft || g->ngram) && !g->latency) engine_latency(&engine);
    size_t capacity = 0, count, prompts = 0;
    char *line = NULL;
    double seconds = 0;
    long made = 0;
    ssize_t length = (ssize_t)strlen(o->prompt);
    if (!*o->prompt && isatty(fileno(stdin))) fprintf(stderr, "each line is a prompt; Ctrl-D ends\n");
    while (!interrupted && !ferror(stdout) &&
           (*o->prompt ? prompts == 0 : (length = getline(&line, &capacity, stdin)) >= 0)) {
        const char *text = *o->prompt ? o->prompt : line;
        while (!*o->prompt && length && (line[length - 1] == '\n' || line[length - 1] == '\r')) length--;
        if (length == 0) continue;
        uint16_t *tokens = tokenizer_encode(&engine.tokenizer, text, (size_t)length, "the prompt", &count);
        if (count == 0 || count > INT32_MAX / 4)
            die("a prompt of %zu tokens; it must have some, and not billions", count);
        made += write_text(&engine, tokens, count, o->tokens, &seconds);
        prompts++;
        free(tokens);
    }
    if (!interrupted && ferror(stdin)) die("cannot read the prompts: %s", strerror(errno));
    free(line);
    if (!prompts && !interrupted) die("the prompt is empty; give --prompt TEXT, or lines on standard input");
    check_printed();
    double passes = MAX(1, g->passes);
    if (g->kind || g->draft || g->ngram)
        fprintf(stderr, "%.2f tokens a pass of %.1f rows\n", made / passes, g->rows / passes);
    fprintf(stderr, "%ld tokens in %.2f s, %.1f tokens/s\n", made, seconds, made / fmax(seconds, 1e-9));
    return 0;
}

// ---- train

// The beginnings from which a model goes on to write texts of T tokens, to learn from.
static int own_prompt(int T) { return MAX(1, MIN(16, T / 4)); }

// What `train` works on, and all that its checkpoint holds.
typedef struct {
    PromptTrainer trainer;
    Optimizer optimizer;
    DataLoader guessed, text; // of texts in which prompts guess (of `own`, if any); of those the model learns
    float *params, *grads; // all that is trained: jointly the model, then the prompts
    size_t count;
    char identity[8192], state[4096]; // what the run is; PROMPTS.state, its checkpoint
    size_t own, now_bytes;            // tokens of texts by the model, whole ones; bytes of *now
    struct {
        long step;
        uint64_t guessed_epoch, guessed_index, epoch, index;
        uint16_t own[];
    } *now;
} PromptRun;

// Puts everything that is trained into one flat array, and starts the optimizer on it. Prompts begin near the
// mean of the tokens' embeddings, heads as the identity.
static void start_prompts(PromptRun *r, const DecodeOptions *o) {
    PromptTrainer *t = &r->trainer;
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    int C = g.channels, n = 0;
    size_t model = t->joint ? m->num_parameters : 0, own = prompts_size(&t->h);
    r->count = model + own;
    r->params = allocate_floats(r->count), r->grads = allocate_floats(r->count);
    t->params = r->params + model, t->grads = r->grads + model;
    OptimSegment *segments = allocate((size_t)NUM_TENSORS * g.num_layers + 1, sizeof *segments);
    if (t->joint) n = model_segments(g, "", segments);
    segments[n++] = (OptimSegment){model, own, 0, 0, 0};
    size_t vectors = t->h.heads ? 0 : maps_at(&t->h), map = (size_t)t->h.rank * C;
    random_normal(t->params, vectors, 0.01f, o->seed + 3);
    for (int c = 0; c < C && vectors; c++) {
        double mean = 0;
        for (int v = 0; v < g.vocab_size; v++) mean += m->params.wte[(size_t)v * C + c] / g.vocab_size;
        for (size_t i = c; i < vectors; i += (size_t)t->h.depth * C) t->params[i] += (float)mean;
    }
    for (size_t i = 0; i < vectors; i++) t->params[i] /= t->scale;
    for (int i = 0; i < t->h.n && map; i++) // U is 0
        random_normal(t->params + vectors + 2 * i * map, map, 1 / (sqrtf((float)C) * t->map_scale),
                      o->seed + 9 + i);
    if (t->joint) {
        memcpy(r->params, m->params_memory, model * sizeof(float));
        free(m->params_memory), free(m->grads_memory);
        m->params_memory = r->params, m->params = point_parameters(r->params, g);
        m->grads_memory = r->grads, m->grads = point_parameters(r->grads, g);
    }
    optim_matmul = muon_matmul;
    r->optimizer.n = r->count, r->optimizer.num_slices = r->count / MAX(1, r->optimizer.h.slice_p); // about
    check_memory(optim_bytes(&r->optimizer) + sizeof(float) * optim_scratch(&r->optimizer, segments, n));
    if (optim_start(&r->optimizer, r->params, r->count, segments, n)) die("out of memory for the optimizer");
    free(segments);
}

static void show_prompt_step(const PromptRun *r, const DecodeOptions *o, double loss, double rate) {
    const PromptTrainer *t = &r->trainer;
    const char *end;
    if (!begin_progress(r->now->step, o->steps, &end)) return;
    double left = (o->steps - r->now->step) * (double)t->B * t->T / rate;
    printf("step %ld/%d | KL %.4f", r->now->step, o->steps, t->kl);
    if (t->joint) printf(" | loss %.4f", loss);
    printf(" | %d:%02d left | %.0f tokens/s | top-1/5", (int)(left / 60), (int)fmod(left, 60), rate);
    for (int i = 0; i < t->h.n; i++) printf(" %.2f/%.2f", t->top1[i], t->top5[i]);
    printf("%s", end);
    fflush(stdout);
}

// Fills now->own with texts that begin as places of the training text do, and that the model goes on with,
// greedily: such text as guesses will be wanted in. int8 weights make it faster and a little different,
// n-grams only faster. What is interrupted is not kept.
static void write_own_text(PromptRun *r, const Dataset *train, uint64_t seed) {
    static Engine e; // keeps its latencies from one time to the next
    Generator *g = &e.generator;
    const GPT2 *m = r->trainer.m;
    Shard from = longest_piece(train);
    int length = r->trainer.T, prompt = own_prompt(length);
    size_t made = 0;
    double start = now();
    engine_start(&e, m, WEIGHTS_INT8);
    engine_latency(&e);
    g->ngram = 1;
    for (; made < r->own; made += length) {
        uint64_t at = random_u64(seed + 9, (uint64_t)r->now->step * r->own + made) % (from.count - prompt);
        check_tokens(train, from.tokens + at, prompt);
        generate(g, from.tokens + at, prompt, length);
        if (interrupted) break;
        memcpy(r->now->own + made, g->text, (size_t)length * sizeof *g->text);
    }
    if (!r->now->step && !interrupted)
        printf("the model wrote %zu tokens of its own to learn from, in %.1f s\n",
               made / length * (length - prompt), now() - start);
    engine_stop(&e);
}

// Guesses are learned in B of the model's own texts, each from its beginning, as decoding meets it.
static void next_own_texts(PromptRun *r, uint16_t *x) {
    DataLoader *l = &r->guessed;
    uint64_t texts = r->own / l->T;
    for (int b = 0; b < r->trainer.B; b++) {
        uint64_t i = permute(l->index, texts, random_u64(~l->seed, l->epoch));
        memcpy(x + (size_t)b * l->T, r->now->own + i * l->T, l->T * sizeof *x);
        if (++l->index == texts) l->index = 0, l->epoch++;
    }
}

static void check_trained(const PromptRun *r) {
    if (!all_finite(r->params, r->count))
        die("after step %ld a weight is not a number%s", r->now->step, advice(&r->optimizer));
}

static void save_prompts_state(PromptRun *r) {
    check_trained(r);
    write_state(r->state, r->identity, r->now, r->now_bytes, r->params, NULL, &r->optimizer);
}

// The steps from r->now on. Returns whether they came to their end. At a step that needs new text of the
// model's own, a checkpoint does not have it yet: a run that goes on there writes it, the same.
static int train_prompts(PromptRun *r, const Dataset *train, const DecodeOptions *o) {
    PromptTrainer *t = &r->trainer;
    size_t tokens = (size_t)t->B * t->T;
    uint16_t *x = allocate(tokens, sizeof *x), *y = allocate(tokens, sizeof *y);
    uint16_t *guessed = allocate(tokens, sizeof *guessed);
    long renewed = (long)(READINGS * r->own / tokens + 1); // so many steps the model's own text is good for
    double rate = 0;
    says_it_stops = isatty(2);
    while (r->now->step < o->steps) {
        if (r->own && (t->joint ? r->now->step % renewed : r->now->step) == 0)
            write_own_text(r, train, o->seed);
        if (interrupted) break;
        double start = now();
        if (r->own) next_own_texts(r, guessed);
        else loader_next(&r->guessed, guessed, y, t->B);
        if (t->joint) loader_next(&r->text, x, y, t->B);
        draw_cuts(t, r->own ? own_prompt(t->T) - 1 : 0, o->seed, r->now->step);
        double loss = prompt_step(t, guessed, x, y), norm = sqrt(optim_norm2(r->grads, r->count));
        if (!isfinite(norm) || !isfinite(t->kl))
            die("the loss is not a number at step %ld%s", r->now->step + 1, advice(&r->optimizer));
        int clipped = o->clip > 0 && norm > o->clip && !optim_is_polyak(&r->optimizer);
        optim_step(&r->optimizer, r->grads, clipped ? (float)(o->clip / norm) : 1,
                   optim_schedule(o->schedule, r->now->step, o->steps, o->warmup, o->final_lr),
                   t->joint ? loss : t->kl, 0);
        r->now->step++;
        double speed = (double)tokens / (now() - start);
        rate = rate ? 0.9 * rate + 0.1 * speed : speed;
        show_prompt_step(r, o, loss, rate);
        r->now->guessed_epoch = r->guessed.epoch, r->now->guessed_index = r->guessed.index;
        r->now->epoch = r->text.epoch, r->now->index = r->text.index;
        if (due(o->save_every, r->now->step) || (o->save_every && r->now->step == o->steps))
            save_prompts_state(r);
    }
    says_it_stops = 0;
    if (interrupted && o->save_every && r->now->step) save_prompts_state(r);
    free(x), free(y), free(guessed);
    return r->now->step >= o->steps;
}

static void check_train_options(const DecodeOptions *o) {
    if (!*o->out) die_usage("train needs --out PROMPTS, the file to write");
    if (o->joint && o->heads) die_usage("--joint goes with prompt tokens only");
    if (o->joint && !*o->out_model) die_usage("--joint needs --out-model DIR, for the model that it trains");
    if (!o->joint && *o->out_model) die_usage("--out-model goes with --joint; else the model stays as it is");
    if (o->heads && (o->deep || o->copies > 1 || o->rank))
        die_usage("--deep, --copies and --rank go with prompt tokens, not with --heads");
    if (o->prompts * o->copies >= MAX_TREE) // a tree has its root, too
        die_usage("%d prompts of %d copies do not fit a pass; %d rows at most", o->prompts, o->copies,
                  MAX_TREE - 1);
    if (isnan(optim_schedule(o->schedule, 0, 1, 0, 0)))
        die_usage("no schedule is called '%s' here; see --help", o->schedule);
}

// Two trainings of one --out would write over each other's checkpoint. The lock ends with the process.
static char lock_path[4096];
static void unlock(void) { unlink(lock_path); }
static void claim_prompts(const char *out) {
    if (snprintf(lock_path, sizeof lock_path, "%s.lock", out) >= (int)sizeof lock_path)
        die("the path %.60s... is too long", out);
    struct stat ours = {0}, named;
    do { // once more where its last holder has removed it between open and flock
        int lock = open(lock_path, O_RDWR | O_CREAT, 0666);
        if (lock < 0) die("cannot write %s: %s; choose another place", lock_path, strerror(errno));
        if (fstat(lock, &ours) || !S_ISREG(ours.st_mode) || ours.st_size) // ours is empty
            die("%s is something else; --out names another file, for the prompts", lock_path);
        if (flock(lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) // some file systems have no locks
            die("another training is writing %s; choose another --out", out);
    } while (stat(lock_path, &named) || named.st_ino != ours.st_ino);
    atexit(unlock);
}

// Makes --out-model's folder. Dies where an output would replace something else, or cannot be written.
static void check_outputs(const DecodeOptions *o, const Tokenizer *t, const char *state) {
    Path model = path_in(o->out_model, "model.bin");
    if (o->joint && !same_file(o->model, o->out_model)) claim_folder(o->out_model);
    struct stat s;
    if (is_folder(state)) die("%s is a folder; --out names another file", state);
    if (is_folder(o->out)) die("%s is a folder; --out names the file to write", o->out);
    if (!stat(o->out, &s) && !S_ISREG(s.st_mode)) die("%s is no file; --out names the file to write", o->out);
    const char *written[] = {o->out, state}, *magics[] = {PROMPTS_MAGIC, STATE_MAGIC};
    for (int i = 0; i < 2; i++) { // older ones differ in the eighth character
        char magic[8] = "";
        FILE *f = fopen(written[i], "rb");
        if (!f && errno == EACCES) die("cannot read %s: %s", written[i], strerror(errno));
        if (f && fread(magic, 1, 8, f) && memcmp(magic, magics[i], 7))
            die("%s is something else; --out names another file, for the prompts", written[i]);
        if (f) fclose(f);
    }
    if (o->joint) {
        if (same_file(o->model, o->out_model) || same_file(o->model, model.s))
            die("%s is --model's; --resume will need that as it is: give --out-model another folder",
                model.s);
        if (file_exists(path_in(o->out_model, "state.bin").s))
            die("%s is a run of train_gpt2; give --out-model another folder", o->out_model);
        check_other_tokenizers(t, o->out_model);
        const char *slash = strrchr(o->out, '/'), *name = slash ? slash + 1 : o->out;
        int taken = !strcmp(name, "model.bin") || !strcmp(name, "tokenizer.txt") ||
                    !strcmp(name, "tokenizer.bpe");
        if (taken && same_file(folder_of(o->out).s, o->out_model))
            die("%s will be --out-model's; --out names another file", o->out);
        check_writable(model.s);
    }
    claim_prompts(o->out);
    check_writable(state);
    check_writable(o->out);
}

// The groups of tokens that are most frequent in a text, if the vocabulary is so large that leaving out the
// rest pays.
static void find_likely(const Dataset *text, int V, PromptsTables *t) {
    int groups = V / TOKEN_GROUP;
    t->likely = 0;
    if (groups < 2 * MAX_LIKELY) return;
    int64_t *count = allocate(groups + 1, sizeof *count);
    for (Shard *s = text->shards; s < text->shards + text->num_shards; s++)
        for (size_t i = 0; i < s->count; i++) count[MIN(s->tokens[i] / TOKEN_GROUP, groups)]++;
    for (int i = 0, most = 0; i < MAX_LIKELY; i++, count[most] = -1) // -1: taken
        for (int k = 0; k < groups; k++)
            if (count[k] > count[most]) most = k;
    for (int k = 0; k < groups; k++)
        if (count[k] < 0) t->group[t->likely++] = (uint16_t)k;
    free(count);
}

// After the last step: the evaluation point becomes the model (jointly) and the prompts; what this machine
// takes for a pass, and how often guesses are right, is measured; all is written.
static void finish_prompts(PromptRun *r, Engine *e, const Dataset *train, const Dataset *val,
                           const DecodeOptions *o) {
    PromptTrainer *t = &r->trainer;
    GPT2 *m = t->m;
    GPT2Config g = m->config;
    optim_eval_params(&r->optimizer, r->grads); // whose memory is free now
    memcpy(r->params, r->grads, r->count * sizeof(float));
    optim_free(&r->optimizer);
    check_trained(r);
    if (o->joint) printf("val loss %.4f after\n", evaluate(m, val, t->T, 50000));
    t->h.model = model_hash(m);
    for (size_t i = 0; i < prompts_size(&t->h); i++)
        t->params[i] *= t->h.heads || i < maps_at(&t->h) ? t->scale : t->map_scale;
    e->prompts.header = t->h, e->prompts.params = t->params;
    find_likely(train, g.vocab_size, &e->prompts.tables);
    for (int kind = NUM_KINDS - 1; kind >= 0; kind--) { // latencies of all; guesses are counted with f32
        if (kind < NUM_KINDS - 1) engine_stop(e);
        engine_start(e, m, kind);
        engine_guess(e);
        engine_latency(e);
    }
    measure_accuracy(e, val, 4000);
    if (o->joint) {
        gpt2_save(g, m->params_memory, path_in(o->out_model, "model.new").s);
        take_new_model(o->out_model, o->model, &e->tokenizer); // which is not there: see check_outputs
    }
    prompts_save(&e->prompts, o->out);
    unlink(r->state);
    print_accuracy(&e->prompts.tables, t->h.n);
    printf("%.2f tokens a pass, %.2f times as fast as plain decoding with f32 weights: predicted\n", e->tau,
           e->speedup);
}

// The optimizer of the command line, whose usual rate depends on what is trained.
static void prompt_optimizer(Optimizer *optimizer, const DecodeOptions *o) {
    choose_optimizer(optimizer, o->optimizer, o->base, o->steps);
    if (o->joint && optim_is_polyak(optimizer)) // the gradient is of more than the text's loss
        die_usage("--joint does not go with %s, whose steps need the loss of each gradient", o->optimizer);
    if (!o->joint && optimizer->row->base == OPTIM_MUON)
        die_usage("Muon is for the model's matrices: prompts and heads alone would be AdamW's; give --joint");
    if (isnan(optim_get(optimizer, "d0")) && isnan(optim_get(optimizer, "reps-rel"))) // theirs is a factor
        optim_set(optimizer, "lr", o->joint ? 3e-4 : o->heads ? 1e-3 : 3e-2);
    set_hyperparameters(optimizer, o->rest.num_hyper, o->rest.hyper_name, o->rest.hyper_value);
}

// Goes on from PROMPTS.state.
static void resume_prompts(PromptRun *r, const DecodeOptions *o) {
    if (!read_state(r->state, r->identity, r->now, r->now_bytes, NULL, &r->optimizer)) {
        if (file_exists(o->out)) die("%s is finished; without --resume it is made anew", o->out);
        printf("resumed    nothing: there is no %s, the run begins\n", r->state);
        return;
    }
    r->guessed.epoch = r->now->guessed_epoch, r->guessed.index = r->now->guessed_index;
    r->text.epoch = r->now->epoch, r->text.index = r->now->index;
    printf("resumed    at step %ld of %d\n", r->now->step, o->steps);
}

static int train_command(const DecodeOptions *o) {
    static PromptRun run;
    static Engine engine;
    GPT2 m;
    PromptTrainer *t = &run.trainer;
    Dataset train = {0}, val = {0};
    check_train_options(o);
    if (snprintf(run.state, sizeof run.state, "%s.state", o->out) >= (int)sizeof run.state)
        die("the path %.60s... is too long", o->out);
    prompt_optimizer(&run.optimizer, o);
    gpt2_load(&m, o->model);
    load_tokenizer(&engine.tokenizer, o->model, m.config.vocab_size,
                   !is_shards(o->data) || (*o->val && !is_shards(o->val)));
    int T = o->seq_len ? o->seq_len : MIN(256, m.config.max_seq_len);
    if (m.config.max_seq_len <= o->prompts + 1)
        die("a context of %d has no room for %d prompts; give fewer --prompts", m.config.max_seq_len,
            o->prompts);
    if (T > m.config.max_seq_len || T <= o->prompts + 1)
        die("--seq-len %d: it must be above --prompts + 1 (%d) and at most the model's context of %d", T,
            o->prompts + 1, m.config.max_seq_len);
    load_data(o, &engine.tokenizer, m.config, &train, T, &val, held_out_prompt(m.config));
    if ((size_t)o->batch * T > 1 << 28) die("--batch %d of %d tokens is too large", o->batch, T);
    check_outputs(o, &engine.tokenizer, run.state);
    int L = m.config.num_layers;
    if (o->rank > m.config.channels)
        die("--rank %d: the model has %d channels", o->rank, m.config.channels);
    *t = (PromptTrainer){.m = &m, .cuts = o->cuts, .B = o->batch, .T = T, .joint = o->joint,
                         .weight = o->joint ? (float)o->prompt_weight : 1,
                         .scale = o->joint ? JOINT_SCALE : 1,
                         .map_scale = o->joint ? MAP_SCALE * JOINT_SCALE : MAP_SCALE,
                         .temperature = (float)o->temperature,
                         .h = {PROMPTS_MAGIC, o->heads, o->prompts, o->copies, o->deep ? L : 1,
                               m.config.channels, L, o->rank, 0, 0}};
    uint64_t model = model_hash(&m);
    trainer_allocate(t);
    start_prompts(&run, o);
    if (o->own_tokens) run.own = (size_t)round_up(o->own_tokens, T);
    run.now_bytes = sizeof *run.now + run.own * sizeof(uint16_t);
    run.now = allocate(1, run.now_bytes);
    run.guessed = run.text = (DataLoader){&train, T, o->seed, 0, 0};
    size_t length = describe_options(run.identity, sizeof run.identity, o, decode_rows, NUM_DECODE, 8,
                                     &run.optimizer);
    snprintf(run.identity + length, sizeof run.identity - length,
             "model %016llx\ndata %016llx\nscales %g %g\nown-texts whole\n",
             (unsigned long long)model, (unsigned long long)train.hash, t->scale, t->map_scale);
    if (o->resume) resume_prompts(&run, o);
    size_t trained = prompts_size(&t->h);
    printf("%zu trained numbers, %.6f%% of the model's %zu; %d texts of %d tokens, %d cuts each\n", trained,
           100.0 * trained / m.num_parameters, m.num_parameters, t->B, T, t->cuts);
    if (o->joint && !run.now->step) printf("val loss %.4f before\n", evaluate(&m, &val, T, 50000));
    if (!train_prompts(&run, &train, o)) {
        end_line();
        printf("stopped at step %ld of %d%s\n", run.now->step, o->steps,
               o->save_every && run.now->step ? "; the same command with --resume goes on" : "");
        return 0;
    }
    finish_prompts(&run, &engine, &train, &val, o);
    return 0;
}

// ===========================================================================================================
// 9  Bench

// Bytes a second that all threads together read from memory, the best of some tries.
static double read_bandwidth(double seconds) {
    size_t n = (size_t)1 << 28; // 1 GiB
    float *x = allocate_floats(n);
    double best = 0, end = now() + seconds;
    volatile float sink = 0;
    while (now() < end && !interrupted) {
        double start = now();
        float sum = 0;
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
        for (size_t i = 0; i < n; i++) sum += x[i];
        sink = sum;
        best = fmax(best, 4.0 * n / (now() - start));
    }
    (void)sink;
    free(x);
    return best;
}

// Seconds a token of plain decoding, after 8 tokens of a text: the best of three times `make` tokens.
static double plain_seconds(Engine *e, const uint16_t *tokens, int make) {
    double fastest = INFINITY;
    for (int round = 0; round < 3; round++)
        fastest = fmin(fastest, generate(&e->generator, tokens, 8, 8 + make) / make);
    return fastest;
}

// Plain decoding with each kind of weights.
static void bench_kinds(const char *path, const Dataset *data, const uint16_t *tokens, int n, int make) {
    double bandwidth = read_bandwidth(1), base = 0;
    GPT2 m;
    check_tokens(data, tokens, n);
    gpt2_open(&m, path, 1);
    printf("weights  bytes a token   tokens/s   GB/s   share of %.1f GB/s read   perplexity (%d tokens)\n",
           bandwidth / 1e9, n - 1);
    for (int kind = 0; kind < NUM_KINDS && !interrupted; kind++) {
        Engine e = {0};
        engine_start(&e, &m, kind);
        double ppl = exp(decoder_prefill(&e.decoder, tokens, n - 1, tokens + 1) / (n - 1));
        double bytes = decoder_bytes(&e.decoder), rate = 1 / plain_seconds(&e, tokens, make);
        if (kind == 0) base = ppl;
        if (!interrupted)
            printf("%-8s %8.1f MB    %8.1f   %5.1f   %3.0f%% %20s %.3f (%+.3f)\n", kinds[kind].name,
                   bytes / 1e6, rate, bytes * rate / 1e9, 100 * bytes * rate / bandwidth, "", ppl,
                   ppl - base);
        engine_stop(&e);
    }
    gpt2_free(&m);
}

// Whether some tokens in a row, `size` of them, come twice in a text.
static int loops(const uint16_t *text, int n, int size) {
    for (int i = 0; i + size <= n && !interrupted; i++)
        for (int j = i + 1; j + size <= n; j++)
            if (!memcmp(text + i, text + j, size * sizeof *text)) return 1;
    return 0;
}

// What a method guesses with. Of texts that do not loop, and that do, what it took is added up.
enum { NGRAM = 1, HEADS = 2, PPD = 4, DRAFT = 8, DRAFT_PPD = 16 };
typedef struct {
    const char *name;
    int uses;
    double seconds[2];
    long made[2], passes[2];
    int differs; // texts that are not those of plain decoding
} Method;

// Goes on from a beginning until the generator's text has `length` tokens. Returns the seconds.
static double method_write(const Method *w, Engine *e, Engine *draft, const uint16_t *from, int prompt,
                           int length) {
    Generator *g = &e->generator, *s = &draft->generator;
    g->kind = w->uses & PPD ? GUESS_PROMPTS : w->uses & HEADS ? GUESS_HEADS : GUESS_NOTHING;
    g->ngram = w->uses & NGRAM, g->draft = w->uses & DRAFT ? s : NULL;
    g->passes = 0, g->draft_cost = 0;
    memset(g->accepted, 0, sizeof g->accepted), memset(g->proposed, 0, sizeof g->proposed);
    s->kind = w->uses & DRAFT_PPD ? GUESS_PROMPTS : GUESS_NOTHING;
    return generate(g, from, prompt, length);
}

static void method_print(const Method *w, const Method *plain_decoding, const Engine *e,
                         const Engine *draft) {
    double rate[2], speedup[2], passes[2];
    size_t trained = w->uses & (PPD | HEADS) ? prompts_size(&e->prompts.header) : 0, added = 0;
    for (int l = 0; l < 2; l++) {
        rate[l] = w->made[l] / fmax(w->seconds[l], 1e-12), passes[l] = w->made[l] / fmax(w->passes[l], 1);
        speedup[l] = plain_decoding->seconds[l] / fmax(w->seconds[l], 1e-12);
    }
    if (trained) added += trained * 4 + sizeof e->generator.templates;
    if (w->uses & DRAFT) added += decoder_bytes(&draft->decoder) + cache_bytes(&draft->decoder);
    if (w->uses & DRAFT_PPD) {
        size_t own = prompts_size(&draft->prompts.header);
        trained += own, added += own * 4 + sizeof draft->generator.templates;
    }
    printf("%-22s %8.1f (%7.1f) %8.2f (%7.2f) %6.2f (%5.2f) %9zu %10zu (%8.4f%%) %10s\n", w->name, rate[0],
           rate[1], speedup[0], speedup[1], passes[0], passes[1], trained, added,
           100.0 * (double)added / (double)decoder_bytes(&e->decoder), w->differs ? "no" : "yes");
}

// How often a text of so many tokens after a prompt slides.
static int count_slides(int context, int prompt, int tokens) {
    int slides = 0;
    for (int length = prompt, base = 0, next; length < prompt + tokens; length++, base = next)
        slides += (next = slide(base, length, context)) > base;
    return slides;
}

// What it spends on that: no guess shortens it.
static double slides_seconds(Decoder *d, int prompt, int tokens) {
    int context = d->config.max_seq_len, keep = context / 2, times = 5;
    int slides = count_slides(context, prompt, tokens);
    uint16_t *any = allocate(keep + 1, sizeof *any);
    double start = now();
    for (int i = 0; i < times && slides; i++) d->past = 0, decoder_prefill(d, any, keep, NULL);
    double seconds = (now() - start) / times;
    free(any);
    return slides * seconds;
}

// What the trees that were used should have brought, and how those of other sizes would do, slides aside.
static void print_trees(const char *name, Engine *e, int prompt, int tokens) {
    int n = e->generator.n;
    const Latency *l = e->generator.latency;
    if (!e->prompts.params) return;
    double seconds, tau = long_run(e->generator.templates, &e->odds, l, &seconds);
    double slides = slides_seconds(&e->decoder, prompt, tokens), plain = tokens * l->seconds[0] + slides;
    printf("\n%s: %.2f tokens a pass and speedup %.2f predicted\n", name, tau,
           plain / (tokens * seconds / tau + slides));
    print_accuracy(&e->prompts.tables, n);
    for (int s = 1; s <= engine_most_rows(e); s += s < 4 ? 1 : s / 2) {
        Template trees[MAX_PROMPTS + 1];
        double speedup = plan_trees(&e->odds, l, s, trees, &tau);
        double rows = template_rows(&trees[n], l, e->odds.copies ? 0 : n);
        printf("tree of %2d rows  %.2f tokens in %.3f ms, a pass of all rows %.3f ms  speedup %.2f\n", s, tau,
               1e3 * tau * l->seconds[0] / speedup, 1e3 * pass_seconds(l, rows), speedup);
    }
}

// Latencies of now go into the mean of those that were measured `times` before: a shared memory is now fast,
// now slow, and a prediction and what it predicts should be of the same minutes. The trees stay. An engine
// that plans nothing has none.
static void engine_latency_again(Engine *e, int times) {
    if (!e->generator.latency) return;
    Latency l, *mean = &e->prompts.tables.latency[e->decoder.kind];
    measure_latency(&e->decoder, heads_of(&e->generator), e->generator.copies, &l, 3);
    for (int r = 0; r < MAX_ROWS; r++) mean->seconds[r] += (l.seconds[r] - mean->seconds[r]) / (times + 1);
    mean->guess_cost += (l.guess_cost - mean->guess_cost) / (times + 1);
}

// Trees are chosen from latencies of so many moments before the texts: one moment's may be of a busy machine.
#define PLANNING 4
// A text of less than a twentieth of a second is written so many times, and the median time counts.
#define REPEATS 5

static int bench_command(const DecodeOptions *o) {
    static Engine engine, heads, draft;
    Dataset train = {0}, val = {0};
    load_engines(&engine, &draft, o);
    if (*o->heads_file) engine_load(&heads, o->model, o->heads_file, engine.decoder.kind, 0);
    if (engine.prompts.header.heads || draft.prompts.header.heads ||
        (*o->heads_file && !heads.prompts.header.heads))
        die("bench takes prompt tokens as --ppd and --draft-ppd, heads as --heads-file: files change places");
    Engine *engines[] = {&engine, &heads, &draft};
    GPT2Config g = engine.decoder.config;
    int prompt = held_out_prompt(g), tokens = o->tokens;
    load_data(o, &engine.tokenizer, g, &train, 0, &val, prompt + 8);
    Shard text = longest_piece(&val);
    bench_kinds(o->model, &val, text.tokens, (int)MIN(text.count, (size_t)MIN(511, g.max_seq_len) + 1),
                MAX(1, MIN(tokens, g.max_seq_len / 2)));
    if (!engine.generator.latency) engine_latency(&engine); // for n-grams, too
    for (int i = 0; i < 3 * PLANNING && !interrupted; i++) engine_latency_again(engines[i % 3], i / 3);
    for (int i = 0; i < 3; i++)
        if (engines[i]->prompts.params) engine_trees(engines[i], i == 0 ? o->tree : 0);

    Method methods[] = {
        {.name = "plain"},
        {.name = "n-gram", .uses = NGRAM},
        {.name = "heads", .uses = HEADS},
        {.name = "heads + n-gram", .uses = HEADS | NGRAM},
        {.name = "PPD", .uses = PPD},
        {.name = "PPD + n-gram", .uses = PPD | NGRAM},
        {.name = "draft", .uses = DRAFT},
        {.name = "draft with PPD", .uses = DRAFT | DRAFT_PPD},
        {.name = "PPD + draft", .uses = PPD | DRAFT},
        {.name = "PPD + draft with PPD", .uses = PPD | DRAFT | DRAFT_PPD},
    };
    int have = NGRAM | (engine.prompts.params ? PPD : 0) | (*o->heads_file ? HEADS : 0) |
               (*o->draft ? DRAFT : 0) | (draft.prompts.params ? DRAFT_PPD : 0);
    int count = sizeof methods / sizeof *methods, looping = 0, differs = 0, texts = 0;
    int gram = engine.tokenizer.kind == TOKENIZER_GPT2 ? 8 : 32; // as much text, in characters
    size_t bytes = (size_t)tokens * sizeof(uint16_t);
    uint16_t *plain_text = resize(NULL, bytes);
    // text by text, in turns: what else the machine does hits all alike; an interrupted text does not count
    for (; texts < o->texts; texts++) {
        const uint16_t *from = text.tokens + (text.count - prompt) * (size_t)texts / o->texts;
        check_tokens(&val, from, prompt);
        Method turn[sizeof methods / sizeof *methods];
        int loop = 0, between = MAX(o->texts / 16, 1), before = texts / between;
        for (int i = 0; i < 3 && before && texts % between == 0; i++)
            engine_latency_again(engines[i], PLANNING - 1 + before);
        memcpy(turn, methods, sizeof methods);
        double took[sizeof methods / sizeof *methods][REPEATS];
        for (int n = 0, times = 1; n < times; n++)
            for (Method *w = turn; w < turn + count && !interrupted; w++) {
                if (w->uses & ~have) continue;
                Engine *e = w->uses & HEADS ? &heads : &engine;
                double seconds = method_write(w, e, &draft, from, prompt, prompt + tokens);
                const uint16_t *made = e->generator.text + prompt;
                if (interrupted) break;
                if (w == turn && n == 0) {
                    memcpy(plain_text, made, bytes), loop = loops(made, tokens, gram);
                    times = seconds < 0.05 ? REPEATS : 1;
                }
                insert_sorted(took[w - turn], n, seconds);
                if (n + 1 < times) continue;
                w->seconds[loop] += took[w - turn][n / 2], w->made[loop] += tokens;
                w->passes[loop] += e->generator.passes;
                w->differs += memcmp(plain_text, made, bytes) != 0;
            }
        if (interrupted) break;
        memcpy(methods, turn, sizeof methods), looping += loop;
    }
    if (!texts) die("stopped before all methods had written the first text");
    printf("\n%d texts of %d tokens, greedy, %s weights; %d of them loop (%d tokens in a row come twice) and "
           "are counted apart\n%-22s %18s %18s %14s %9s %22s %10s\n",
           texts, tokens, o->weights, looping, gram, "", "tokens/s (loops)", "speedup (loops)",
           "a pass (loops)", "trained", "bytes (share of model)", "identical");
    for (Method *w = methods; w < methods + count; w++) {
        if (w->uses & ~have) continue;
        method_print(w, methods, w->uses & HEADS ? &heads : &engine, &draft), differs += w->differs;
    }
    print_trees("PPD", &engine, prompt, tokens), print_trees("heads", &heads, prompt, tokens);
    print_trees("the draft's PPD", &draft, prompt, tokens);
    printf("identical %s\n", differs ? "no" : "yes");
    free(plain_text);
    return 0;
}

#ifndef DECODE_NO_MAIN
int main(int argc, char **argv) {
    int command = 0;
    if (argc < 2) die_usage("give a command: train, run or bench; see --help");
    if (!strcmp(argv[1], "--help")) decode_help(NULL), check_printed(), exit(0);
    while (command < 3 && strcmp(commands[command], argv[1])) command++;
    if (command == 3) die_usage("'%s' is none of train, run, bench; see --help", argv[1]);
    guard_files();
    spin_briefly(argv);
    DecodeOptions o = decode_options(argc, argv, command);
    catch_signals();
    if (command == 0) signal(SIGPIPE, SIG_IGN); // who reads the progress may stop
    int status = command == 0 ? train_command(&o) : command == 1 ? run_command(&o) : bench_command(&o);
    check_printed();
    return status;
}
#endif
