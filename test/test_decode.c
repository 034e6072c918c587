// decode_ppd.c: rounding, trees, sampling, training of prompts, the tree search, prompts files.
//   ./test/test_decode [--mutations N] [GOLDEN_DIR...]      a folder with model.bin and greedy.txt
#define DECODE_NO_MAIN
#include "../decode_ppd.c"
#include "check.h"
#include <sys/wait.h>

// A random model of larger weights than at initialisation, so that its texts do not repeat one token.
static GPT2 random_model(GPT2Config g, float scale, uint64_t seed) {
    GPT2 m;
    gpt2_allocate(&m, g);
    gpt2_initialize(&m, seed, GPT2_STD);
    for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] *= scale;
    return m;
}

static float *random_floats(size_t n, float std, uint64_t stream) {
    float *x = allocate_floats(n);
    random_normal(x, n, std, stream);
    return x;
}

static void random_tokens(uint16_t *x, int n, int V, uint64_t stream) {
    for (int i = 0; i < n; i++) x[i] = (uint16_t)(random_u64(stream, i) % V);
}

// Each further row of a pass takes so much of the first one's time.
static Latency some_latency(double row) {
    Latency l = {.guess_cost = 0.5};
    for (int r = 0; r < MAX_ROWS; r++) l.seconds[r] = 1 + row * r;
    return l;
}

// ---- products: against plain loops, and each row alone against the same row among others

static void test_products(void) {
    int sizes[][2] = {{1, 1}, {37, 50}, {96, 64}, {130, 257}, {64, 768}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 3; kind++) {
            int N = sizes[i][0], K = sizes[i][1], rows = 23, ld = round_up(MAX(N, K), 64), changed = 0;
            float *w = random_floats((size_t)N * K, 1, 1), *x = allocate_floats((size_t)rows * ld),
                  *bias = random_floats(N, 1, 3);
            Sum *out = allocate((size_t)rows * ld, sizeof *out), *alone = allocate(ld, sizeof *alone);
            Scratch s = {.scale = allocate_floats(rows), .bytes = allocate((size_t)rows * ld, 1)};
            Linear m = linear_pack(w, N, K, kind, bias, NULL, NULL);
            for (int r = 0; r < rows; r++) random_normal(x + (size_t)r * ld, K, 1, 10 + r);
            prepare_rows(&s, x, ld, rows, K, kind);
            linear_rows(out, ld, &s, &m, rows, STAY, NULL, 0);
            double error = 0;
            for (int r = 0; r < rows; r++) {
                for (int n = 0; n < N; n++) {
                    double sum = bias[n];
                    for (int k = 0; k < K; k++) sum += (double)x[(size_t)r * ld + k] * w[(size_t)n * K + k];
                    error = fmax(error, fabs(sum - out[(size_t)r * ld + n].f) / sqrt(K));
                }
                prepare_rows(&s, x + (size_t)r * ld, ld, 1, K, kind);
                linear_rows(alone, ld, &s, &m, 1, STAY, NULL, 0);
                changed += memcmp(alone, out + (size_t)r * ld, N * sizeof(float)) != 0;
            }
            float row[K];
            for (int at = 4; at < 28; at++) { // tiles of every shape, of weights from memory and from a cache
                int some = at / 2;
                s.cached = at % 2;
                Sum *few = allocate((size_t)rows * ld, sizeof *few);
                prepare_rows(&s, x, ld, some, K, kind);
                linear_rows(few, ld, &s, &m, some, STAY, NULL, 0);
                for (int r = 0; r < some; r++)
                    changed += memcmp(few + (size_t)r * ld, out + (size_t)r * ld, N * sizeof(float)) != 0;
                free(few);
            }
            double stored = 0;
            linear_row(&m, N - 1, row);
            for (int k = 0; k < K; k++) stored = fmax(stored, fabs(row[k] - w[(size_t)(N - 1) * K + k]));
            double allowed[] = {2e-6, 0.02, 0.06}, kept[] = {0, 0.02, 0.03};
            check(error < allowed[kind], "%s product %d x %d is off by %g", kinds[kind].name, N, K, error);
            check(stored <= kept[kind], "%s keeps a weight with error %g", kinds[kind].name, stored);
            check(!changed, "%s %d x %d: %d rows are rounded otherwise when alone", kinds[kind].name, N, K,
                  changed);
            linear_free(&m);
            free(w), free(x), free(bias), free(out), free(alone), free(s.scale), free(s.bytes);
        }
}

// ---- a tree of rows: each row's logits against the model's on its path alone

static void test_tree_attention(int HS) {
    GPT2Config g = {40, 53, 2, 3, 3 * HS};
    GPT2 m = random_model(g, 4, 1);
    gpt2_allocate_activations(&m, 1, 40, 0);
    uint16_t tokens[40], path[40];
    random_tokens(tokens, 40, g.vocab_size, 2);
    for (int kind = 0; kind < 3; kind++) {
        Decoder d, plain_decoder;
        decoder_init(&d, &m, kind);
        decoder_init(&plain_decoder, &m, kind);
        decoder_prefill(&d, tokens, 9, NULL);
        Batch b = {0};
        for (int r = 0; r < 14; r++)
            batch_output(&b, batch_add(&b, tokens[9 + r], r ? (int)(random_u64(3, r) % r) : -1), 1, -1);
        decoder_pass(&d, &b);
        double error = 0, largest = 0;
        int changed = 0;
        for (int r = 0; r < b.rows; r++) {
            int n = 9 + b.depth[r] + 1;
            memcpy(path, tokens, 9 * sizeof *path);
            for (int v = r; v >= 0; v = b.parent[v]) path[9 + b.depth[v]] = (uint16_t)b.token[v];
            const float *logits = product_row(&d, r);
            if (kind == WEIGHTS_F32) {
                gpt2_forward(&m, path, 1, n);
                gpt2_logits(&m, m.logits, n - 1, 1);
                for (int v = 0; v < g.vocab_size; v++) {
                    error = fmax(error, fabs(logits[v] - m.logits[v]));
                    largest = fmax(largest, fabs(m.logits[v]));
                }
            }
            plain_decoder.past = 0; // token by token: the very same bits
            for (int i = 0; i < n; i++) {
                Batch one = {0};
                batch_output(&one, batch_add(&one, path[i], -1), 1, -1);
                decoder_pass(&plain_decoder, &one);
                plain_decoder.past++;
            }
            changed += memcmp(logits, product_row(&plain_decoder, 0), g.vocab_size * sizeof(float)) != 0;
        }
        if (kind == WEIGHTS_F32)
            check(error < 2e-5 * largest, "logits of a tree are off by %g of %g", error, largest);
        check(!changed, "%s, heads of %d: %d rows of a tree differ from plain decoding", kinds[kind].name, HS,
              changed);
        decoder_free(&d), decoder_free(&plain_decoder);
    }
    gpt2_free(&m);
}

// ---- texts longer than a pass, and than the context: losses, logits and what is written are the model's

static void test_long_texts(void) {
    enum { N = 150, MADE = 130 };
    GPT2Config g = {200, 61, 2, 2, 32}, small = {40, 61, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4), s = random_model(small, 3, 4);
    uint16_t text[N + 1];
    random_tokens(text, N + 1, g.vocab_size, 5);
    gpt2_allocate_activations(&m, 1, 200, 0), gpt2_allocate_activations(&s, 1, 40, 0);
    Decoder d;
    Batch b = {0};
    decoder_init(&d, &m, WEIGHTS_F32);
    double found = decoder_prefill(&d, text, N, text + 1) / N, error = 0, largest = 0;
    gpt2_forward(&m, text, 1, N);
    double loss = gpt2_loss(&m, text + 1);
    check(fabs(found - loss) < 1e-4, "%d tokens are read with loss %g, not %g", N, found, loss);
    batch_output(&b, batch_add(&b, text[N], -1), 1, -1);
    decoder_pass(&d, &b);
    gpt2_forward(&m, text, 1, N + 1);
    gpt2_logits(&m, m.logits, N, 1);
    for (int v = 0; v < g.vocab_size; v++) {
        error = fmax(error, fabs(product_row(&d, 0)[v] - m.logits[v]));
        largest = fmax(largest, fabs(m.logits[v]));
    }
    check(error < 5e-5 * largest, "logits behind %d tokens are off by %g of %g", N, error, largest);
    for (int prompt = 5; prompt <= 100; prompt += 95) {
        Engine e = {0};
        int base = 0, wrong = 0, slides = 0;
        engine_start(&e, &s, WEIGHTS_F32);
        generate(&e.generator, text, prompt, MADE);
        for (int i = prompt; i < MADE; i++) { // the likeliest, up to rounding, after what the context holds
            if (i - 1 - base >= small.max_seq_len) base = i - 1 - small.max_seq_len / 2, slides++;
            gpt2_forward(&s, e.generator.text + base, 1, i - base);
            gpt2_logits(&s, s.logits, i - base - 1, 1);
            float most = largest_of(s.logits, small.vocab_size);
            wrong += s.logits[e.generator.text[i]] < most - 1e-4f * fabsf(most);
        }
        check(!wrong, "after %d tokens, %d of %d are not the likeliest", prompt, wrong, MADE - prompt);
        int counted = count_slides(small.max_seq_len, prompt, MADE - prompt);
        check(counted == slides && (slides_seconds(&e.decoder, prompt, MADE - prompt) > 0) == (slides > 0),
              "after %d tokens a text slides %d times, not %d", prompt, slides, counted);
        engine_stop(&e);
    }
    decoder_free(&d);
    gpt2_free(&m), gpt2_free(&s);
}

// ---- golden: the greedy continuation by PyTorch

static void test_golden(const char *dir) {
    char path[4096], line[4096], *rest;
    uint16_t prompt[512];
    int n = 0, made = 0, wrong = 0;
    snprintf(path, sizeof path, "%s/greedy.txt", dir);
    FILE *f = fopen(path, "r");
    if (!f) {
        printf("skipped: %s is not there\n", path);
        skipped++;
        return;
    }
    GPT2 m;
    snprintf(path, sizeof path, "%s/model.bin", dir);
    gpt2_load(&m, path);
    Engine e = {0};
    engine_start(&e, &m, WEIGHTS_F32);
    while (fgets(line, sizeof line, f)) {
        int is_prompt = !strncmp(line, "prompt", 6);
        if (!is_prompt) generator_text(&e.generator, prompt, n);
        for (char *p = strchr(line, ' '), *end; p; p = end) {
            long id = strtol(p, &end, 10);
            if (end == p) break;
            if (is_prompt) prompt[n++] = (uint16_t)id;
            else generator_step(&e.generator, 1), wrong += e.generator.text[n + made++] != id;
            rest = end;
        }
        (void)rest;
    }
    fclose(f);
    check(made > 1 && !wrong, "%s: %d of %d tokens of the greedy continuation differ", dir, wrong, made);
    decoder_free(&e.decoder);
    gpt2_free(&m);
}

// ---- PPD, n-grams, drafts: the same text as plain decoding, past the end of the context too

static TreeModel some_accuracies(int n, int copies, double first, double next) {
    TreeModel t = {.n = n, .copies = copies};
    for (int d = 0; d < n; d++)
        for (int r = 0; r < RANKS; r++) t.accuracy[d][r] = first * pow(0.8, d) * pow(next, r) * (1 - next);
    return t;
}

static void test_identity(void) {
    GPT2Config g = {48, 61, 2, 2, 32}, small = {32, 61, 1, 2, 16};
    GPT2 m = random_model(g, 3, 4), s = random_model(small, 3, 5);
    long passes = 0, tokens = 0;
    for (int kind = 0; kind < 3; kind++)
        for (int copies = 1; copies <= 3; copies += 2) {
            Engine reference = {0}, e = {0}, draft = {0};
            engine_start(&reference, &m, kind), engine_start(&e, &m, kind), engine_start(&draft, &s, kind);
            Prompts p = {.header = {"", 0, 3, copies, copies < 3 ? 1 : 2, 32, 2, copies, 0, 0}},
                    q = {.header = {"", 0, 2, 1, 1, 16, 1, 0, 0, 0}};
            p.params = random_floats(prompts_size(&p.header), 0.1f, 7),
            q.params = random_floats(32, 0.1f, 8);
            e.prompts = p, draft.prompts = q;
            if (copies > 1) e.prompts.tables.likely = 2, e.prompts.tables.group[1] = 2; // 0 to 15, 32 to 47
            engine_guess(&e), engine_guess(&draft);
            Latency fast = some_latency(0.05), slow = some_latency(0.4);
            TreeModel model = some_accuracies(3, copies, 0.9, 0.6), own = some_accuracies(2, 1, 0.9, 0.6);
            search_trees(&model, 24, e.generator.templates), search_trees(&own, 6, draft.generator.templates);
            for (int text = 0; text < 12; text++) {
                uint16_t begin[80];
                int n = 1 + text * 7, wrong = 0, length = 120;
                random_tokens(begin, 80, 61, 100 + text);
                Sampling sampling = {
                    .temperature = text % 3 ? 0 : 0.7, .top_k = text % 2 ? 7 : 0, .top_p = 1, .seed = text};
                e.generator.sampling = reference.generator.sampling = sampling;
                e.generator.ngram = text % 4 == 1;
                e.generator.latency = text % 8 < 4 ? &slow : &fast;
                e.generator.draft = text % 4 >= 2 ? &draft.generator : NULL;
                draft.generator.kind = text % 4 == 3 ? GUESS_PROMPTS : GUESS_NOTHING;
                generator_text(&e.generator, begin, MIN(n, 80)),
                    generator_text(&reference.generator, begin, MIN(n, 80));
                while (reference.generator.length < n + length) generator_step(&reference.generator, 1);
                while (e.generator.length < n + length)
                    generator_step(&e.generator, n + length - e.generator.length);
                for (int i = 0; i < n + length; i++)
                    wrong += e.generator.text[i] != reference.generator.text[i];
                tokens += length;
                check(!wrong, "%s, %d copies, text %d: %d tokens differ from plain decoding",
                      kinds[kind].name, copies, text, wrong);
            }
            passes += e.generator.passes;
            decoder_free(&reference.decoder), decoder_free(&e.decoder), decoder_free(&draft.decoder);
            free(p.params), free(q.params);
        }
    printf("PPD on random models: %ld passes for %ld tokens\n", passes, tokens);
    gpt2_free(&m), gpt2_free(&s);
}

// ---- threads share a pass, the turns of the classifier too: the same bits from one and from several

#ifdef _OPENMP
static void test_decoder_threads(void) {
    enum { V = 2000, MOST = 9 };
    GPT2Config g = {32, V, 4, 4, 320}; // 5 MB of int8: enough for two threads; a second turn for one of three
    GPT2 m = random_model(g, 3, 15);
    uint16_t groups[] = {1, 3, 20, 21, 60, 92, 124};
    int before = omp_get_max_threads();
    static float logits[2][2][MOST][V]; // of one thread, several; without and with likely tokens
    for (int kind = 0; kind < 3; kind++) {
        for (int many = 0; many < 2; many++) {
            Engine e = {0};
            Batch b = {0};
            omp_set_num_threads(many ? 3 : 1);
            engine_start(&e, &m, kind);
            e.prompts.header = (PromptsHeader){"", 1, 2, 1, 1, 320, 4, 0, 0, 0};
            e.prompts.params = random_floats(prompts_size(&e.prompts.header), 0.1f, 7);
            engine_guess(&e);
            Decoder *d = &e.decoder;
            d->prompts = e.prompts.params, d->depth = 1; // of any vectors
            for (int r = 0; r < 5; r++) batch_output(&b, batch_add(&b, 10 + r, r - 1), 1, -1);
            for (int i = 0; i < 2; i++) batch_output(&b, 4, 1, i);
            for (int i = 0; i < 2; i++) batch_output(&b, batch_add(&b, ~i, 4), 1, -1);
            check(!many || d->threads > 1, "%s has one thread: the test says nothing", kinds[kind].name);
            for (int likely = 0; likely < 2; likely++) {
                if (likely) decoder_likely(d, groups, sizeof groups / sizeof *groups);
                memset(d->sums, 0xff, (size_t)MAX_ROWS * d->logits_stride * sizeof(Sum));
                decoder_pass(d, &b);
                for (int o = 0; o < MOST; o++)
                    memcpy(logits[many][likely][o], product_row(d, o), sizeof *logits[many][likely]);
            }
            engine_stop(&e), free(e.prompts.params);
        }
        check(!memcmp(logits[0], logits[1], sizeof *logits), "%s: several threads make other logits than one",
              kinds[kind].name);
    }
    omp_set_num_threads(before);
    gpt2_free(&m);
}
#else
static void test_decoder_threads(void) {} // one thread
#endif

// ---- guesses are of likely tokens; what is not a guess does not notice

static void test_likely(void) {
    enum { V = 150 };
    GPT2Config g = {24, V, 2, 2, 32};
    GPT2 m = random_model(g, 3, 14);
    uint16_t groups[] = {1, 3, 8}, text[4000];
    for (int kind = 0; kind < 3; kind++)
        for (int heads = 0; heads < 2; heads++) {
            Engine e = {0};
            engine_start(&e, &m, kind);
            e.prompts.header = (PromptsHeader){"", heads, 2, 1, 1, 32, 2, 0, 0, 0};
            e.prompts.params = random_floats(prompts_size(&e.prompts.header), 0.1f, 7);
            engine_guess(&e);
            Decoder *d = &e.decoder;
            Batch b = {0};
            for (int r = 0; r < 3; r++) batch_output(&b, batch_add(&b, 10 + r, r - 1), 1, -1);
            for (int i = 0; i < 2; i++)
                batch_output(&b, heads ? 2 : batch_add(&b, ~i, 2 + i), 1, heads ? i : -1);
            check(b.complete == 3, "%d outputs count as no guesses, not 3", b.complete);
            float all[5][V];
            int changed = 0, wrong = 0, guess[RANKS], best[V];
            decoder_pass(d, &b);
            for (int o = 0; o < 5; o++) memcpy(all[o], product_row(d, o), sizeof all[o]);
            memset(d->sums, 0xff, (size_t)MAX_ROWS * d->logits_stride * sizeof(Sum));
            decoder_likely(d, groups, 3);
            decoder_pass(d, &b);
            for (int o = 0; o < b.complete; o++)
                changed += memcmp(all[o], product_row(d, o), sizeof all[o]) != 0;
            for (int o = 3; o < 5; o++) {
                top_tokens(all[o], 0, V, V, best, 0);
                top_guesses(d, o, RANKS, guess);
                for (int r = 0, i = 0; r < RANKS; r++, i++) { // the best of those whose panel is likely
                    while (i < V - 1 && !d->likely[best[i] / NR]) i++;
                    wrong += guess[r] != best[i];
                }
            }
            for (int v = 0; v < V; v++)
                wrong += (v / 16 == 1 || v / 16 == 3 || v / 16 == 8) > d->likely[v / NR];
            check(!changed && !wrong, "%s, %s: %d rows changed, %d guesses are wrong", kinds[kind].name,
                  heads ? "heads" : "prompts", changed, wrong);
            decoder_free(d), free(e.prompts.params);
            for (int i = 0; i < 2; i++) linear_free(&e.heads[i]);
        }
    gpt2_free(&m);
    // the most frequent groups of a text, of a vocabulary that is large
    PromptsTables t = {0};
    Dataset data = {0};
    for (int i = 0; i < 4000; i++) text[i] = (uint16_t)(i % 600 * 32 + 5);
    dataset_add(&data, text, 4000);
    find_likely(&data, 600 * 32, &t);
    int wrong = 0;
    for (int i = 0; i < 400; i++) wrong += t.group[i] != 2 * i; // 400 stood there 7 times, the others 6
    check(t.likely == MAX_LIKELY && !wrong, "%d likely groups, %d of them others", t.likely, wrong);
    find_likely(&data, 16000, &t);
    check(t.likely == 0, "a small vocabulary has %d likely groups", t.likely);
    free(data.shards);
}

static void test_walk(void) {
    const Template tree = {.nodes = 4, .rows = 7, .parent = {-1, 0, 0, 2}, .rank = {0, 0, 1, 0},
                           .depth = {0, 1, 1, 2}, .chain = {2, 0, 1, 0}};
    const struct { uint16_t text[2]; int made, chain; } walks[] = {
        {{7, 9}, 3, 0}, {{7, 8}, 2, 1}, {{5, 9}, 2, 0}, {{6, 9}, 1, 2}};
    int guess[2][RANKS] = {{5, 7}, {9}};
    for (size_t i = 0; i < sizeof walks / sizeof *walks; i++) {
        int chain, made = walk_tree(&tree, guess, walks[i].text, &chain);
        check(made == walks[i].made && chain == walks[i].chain, "walk %zu makes %d tokens, to a chain of %d", i,
              made, chain);
    }
}

// ---- accuracies: heads of zeros guess for every distance what their own node's logits have for the next one

static void test_accuracy(void) {
    enum { N = 3, PROMPT = 21, LENGTH = 42 }; // of a context of 84
    GPT2Config g = {84, 61, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4);
    uint16_t text[100];
    Dataset data = {0};
    Engine e = {0};
    Batch b = {0};
    PromptsTables *t = &e.prompts.tables, want = {0};
    random_tokens(text, 100, g.vocab_size, 5);
    dataset_add(&data, text, 100);
    engine_start(&e, &m, WEIGHTS_F32);
    e.prompts.header = (PromptsHeader){"", 1, N, 1, 1, 32, 2, 0, 0, 0};
    e.prompts.params = allocate_floats(prompts_size(&e.prompts.header));
    engine_guess(&e);
    measure_accuracy(&e, &data, LENGTH);
    for (int i = 0; i < PROMPT + LENGTH - N - 1; i++)
        batch_output(&b, batch_add(&b, e.generator.text[i], i - 1), 1, -1);
    e.decoder.past = 0;
    decoder_pass(&e.decoder, &b);
    for (int i = PROMPT; i < PROMPT + LENGTH - N; i++) {
        const float *logits = product_row(&e.decoder, i - 1);
        for (int distance = 0, near = 1, rank; distance < N; distance++, near &= rank < 3) {
            float truth = logits[e.generator.text[i + 1 + distance]];
            rank = 0;
            for (int v = 0; v < g.vocab_size; v++) rank += logits[v] > truth;
            want.seen[distance]++, want.seen_after[distance] += near;
            if (rank < RANKS) want.right[distance][rank]++, want.right_after[distance][rank] += near;
        }
    }
    check(!memcmp(t, &want, offsetof(PromptsTables, machine)),
          "%u of %u guesses for distance 2 are right, %u of %u after nearer ones; not %u of %u and %u of %u",
          t->right[1][0], t->seen[1], t->right_after[1][0], t->seen_after[1], want.right[1][0], want.seen[1],
          want.right_after[1][0], want.seen_after[1]);
    // with trees only the tokens behind which their passes begin are counted
    Latency latency = some_latency(0.01);
    e.generator.latency = &latency;
    memset(t, 0, sizeof *t);
    measure_accuracy(&e, &data, LENGTH);
    check(t->seen_after[0] > 0 && t->seen_after[0] < t->seen[0], "%u of %u tokens begin passes",
          t->seen_after[0], t->seen[0]);
    engine_stop(&e);
    free(e.prompts.params), free(data.shards);
    gpt2_free(&m);
}

// ---- sampling through a tree keeps the distribution: pairs of tokens, chi-square

static void test_chi_square(void) {
    enum { V = 9, DRAWS = 120000 };
    GPT2Config g = {16, V, 1, 2, 8};
    GPT2 m = random_model(g, 12, 6);
    gpt2_allocate_activations(&m, 1, 16, 0);
    Engine e = {0};
    engine_start(&e, &m, WEIGHTS_F32);
    e.prompts = (Prompts){.header = {"", 0, 2, 1, 1, 8, 1, 0, 0, 0}, .params = random_floats(16, 0.5f, 3)};
    engine_guess(&e);
    TreeModel model = some_accuracies(2, 1, 0.9, 0.7);
    search_trees(&model, 12, e.generator.templates);
    e.generator.sampling = (Sampling){.temperature = 2, .top_p = 1, .seed = 99};
    uint16_t text[8] = {1, 5, 2};
    static int seen[V][V];
    double expected[V][V], chi = 0;
    float logits[V];
    int cells = 0, two = 0;
    for (int a = 0; a < V; a++) {
        double p[2][V];
        text[3] = (uint16_t)a;
        for (int i = 0; i < 2; i++) {
            gpt2_forward(&m, text, 1, 3 + i);
            gpt2_logits(&m, logits, 2 + i, 1);
            float lse = log_sum_exp(logits, V, 2);
            for (int v = 0; v < V; v++) p[i][v] = exp(logits[v] / 2 - lse);
        }
        for (int b = 0; b < V; b++) expected[a][b] = p[0][a] * p[1][b] * DRAWS;
    }
    generator_text(&e.generator, text, 3);
    for (int i = 0; i < DRAWS;
         i++) { // the tree of guesses for what follows 1 5 2 stays that of the last pass
        e.generator.length = 3, e.generator.decoder->past = MIN(2, e.generator.decoder->past);
        e.generator.state = i ? 2 : 0;
        int made = generator_step(&e.generator, 2);
        two += made == 2;
        if (made == 1) generator_step(&e.generator, 1);
        seen[e.generator.text[3]][e.generator.text[4]]++;
    }
    for (int a = 0; a < V; a++)
        for (int b = 0; b < V; b++) {
            if (expected[a][b] < 5) continue;
            double d = seen[a][b] - expected[a][b];
            chi += d * d / expected[a][b];
            cells++;
        }
    double limit = cells + 4 * sqrt(2.0 * cells) + 10; // four standard deviations and more
    check(chi < limit, "chi-square %.1f over %d pairs, at most %.1f expected", chi, cells, limit);
    check(two > DRAWS / 20, "only %d of %d passes made two tokens: the test says nothing", two, DRAWS);
    printf("chi-square %.1f over %d cells, %d draws, %d of them in one pass\n", chi, cells, DRAWS, two);
    decoder_free(&e.decoder);
    gpt2_free(&m);
}

// What choose draws, plainly: ids are all tokens, the likeliest first.
static int plain_choice(const Sampling *s, const float *logits, const int *ids, int V, uint64_t index) {
    double u = random_uniform(s->seed + 11, index), total = 0, kept = 0;
    float temperature = (float)s->temperature, lse = log_sum_exp(logits, V, temperature), p[V];
    int k = s->top_k ? MIN(s->top_k, V) : V, nucleus = 0, at = 0;
    for (int i = 0; i < V; i++) p[i] = exp_f32(logits[ids[i]] / temperature - lse);
    for (int i = 0; i < k; i++) total += p[i];
    while (nucleus < k && (nucleus == 0 || kept < s->top_p * total)) kept += p[nucleus++];
    for (u *= kept; at < nucleus - 1 && (u -= p[at]) >= 0;) at++;
    return ids[at];
}

static void test_choices(void) {
    enum { V = 997, MANY = 50257 };
    Candidate *room = allocate(MANY, sizeof *room);
    float *logits = random_floats(MANY, 2, 1);
    int ids[V], wrong = 0;
    for (int v = 0; v < V; v++) logits[v] = rintf(16 * logits[v]) / 16; // many are equal
    top_tokens(logits, 0, V, V, ids, 0);
    int some_k[] = {0, 1, 2, 7, 300, 499, 996, 997, 5000};
    for (int i = 0; i < 9; i++)
        for (double top_p = 0.3; top_p < 1.2; top_p += 0.35)
            for (int draw = 0; draw < 300; draw++) {
                Sampling s = {.temperature = 0.4 + draw % 3, .top_k = some_k[i], .top_p = top_p, .seed = 5};
                if ((some_k[i] == 0 || some_k[i] >= V) && top_p > 0.9) continue; // draw's, in the order of ids
                wrong += choose(&s, room, logits, V, draw) != plain_choice(&s, logits, ids, V, draw);
            }
    check(!wrong, "%d tokens are not those that were to be drawn", wrong);
    // hardly any temperature: logits as large as GPT-2's make numbers that a float cannot tell apart
    for (int v = 0; v < V; v++) logits[v] -= 150;
    double cold[] = {1e-300, 1e-40, 1e-9, 1e-7, 1e-5, 1e-4, 1.7e-4, 2.3e-4, 4e-4, 7e-4, 1e-3, 1.3e-3};
    wrong = 0;
    for (int i = 0; i < 48; i++)
        for (int draw = 0; draw < 200; draw++) {
            Sampling s = {.temperature = cold[i / 4], .top_k = i & 1 ? 5 : 0, .top_p = i & 2 ? 0.5 : 1};
            room[0].id = -1;
            int id = choose(&s, room, logits, V, draw);
            wrong += id < 0 || id >= V || logits[id] < logits[ids[0]];
        }
    check(!wrong, "%d tokens of a cold text are not the likeliest", wrong);
    for (int v = 0; v < V; v++) logits[v] = -100; // 1/V each, and less when rounded
    wrong = 0;
    for (int draw = 0; draw < 100; draw++) {
        Sampling s = {.temperature = 0.001 + 0.001 * draw, .top_p = 1e-6};
        room[0].id = -1;
        int id = choose(&s, room, logits, V, draw);
        wrong += id < 0 || id >= V;
    }
    check(!wrong, "%d draws of equals are no tokens", wrong);
    for (int v = 0; v < MANY; v++) logits[v] = (float)v / MANY; // the last ones are the likeliest
    wrong = 0;
    for (int draw = 0; draw < 20; draw++)
        wrong += choose(&(Sampling){.temperature = 1, .top_k = MANY / 2, .top_p = 1}, room, logits, MANY, draw) <
                 MANY / 2;
    check(!wrong, "%d tokens are not of the likelier half", wrong);
    free(room), free(logits);
}

static void test_sampling(void) {
    Candidate room[200];
    float logits[200];
    int wrong = 0, counts[200] = {0}, ids[200];
    random_normal(logits, 200, 2, 1);
    top_tokens(logits, 0, 200, 200, ids, 0);
    for (int i = 1; i < 200; i++) wrong += logits[ids[i - 1]] < logits[ids[i]];
    check(!wrong && ids[0] == argmax(logits, 200), "top_tokens is not in order");
    Sampling k = {.temperature = 1, .top_k = 5, .top_p = 1}, p = {.temperature = 1, .top_p = 0.6};
    float lse = log_sum_exp(logits, 200, 1);
    double sum = 0;
    int nucleus = 0;
    while (sum < 0.6) sum += exp(logits[ids[nucleus++]] - lse);
    for (int i = 0; i < 20000; i++) {
        counts[choose(&k, room, logits, 200, i)]++;
        int id = choose(&p, room, logits, 200, i), in = 0;
        for (int j = 0; j < nucleus; j++) in |= ids[j] == id;
        wrong += !in;
    }
    check(!wrong, "top-p draws outside of the nucleus");
    double kept = 0, error = 0;
    for (int i = 0; i < 5; i++) kept += exp(logits[ids[i]] - lse);
    for (int i = 0; i < 5; i++)
        error = fmax(error, fabs(counts[ids[i]] / 20000.0 - exp(logits[ids[i]] - lse) / kept));
    check(error < 0.015, "top-k draws with other shares, by %g", error);
}

static void test_writer(void) {
    Tokenizer t = {0};
    char *text;
    size_t size;
    bytes_init(&t);
    FILE *f = open_memstream(&text, &size);
    Writer w = {.tokenizer = &t, .file = f};
    const char *bytes = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xFF\xC3";
    size_t whole[] = {1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
    int wrong = 0;
    for (int i = 0; bytes[i]; i++)
        writer_put(&w, (unsigned char)bytes[i]), fflush(f), wrong += size != whole[i];
    writer_end(&w);
    check(!wrong && size == strlen(bytes) && !memcmp(text, bytes, size),
          "bytes do not come as whole characters");
    fclose(f);
    free(text);
    tokenizer_free(&t);
}

// ---- a text ends with its last token: GPT-2's <|endoftext|> is the vocabulary's last. A model whose text has a token
// x that was not in it before is one that ends there, if x and the last token change places.

// How many of 40 tokens after a prompt of one token are written; stdout is closed to it.
static int written(Engine *e, uint16_t prompt) {
    double seconds = 0;
    fflush(stdout);
    int out = dup(1), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, 1), close(nowhere);
    int made = write_text(e, &prompt, 1, 40, &seconds);
    fflush(stdout), dup2(out, 1), close(out);
    return made;
}

static void test_end_of_text(void) {
    GPT2Config g = {48, 256, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4);
    Latency latency = some_latency(0.05);
    int place = 0, C = g.channels, last = g.vocab_size - 1, x = last, ended[2];
    for (int swapped = 0; swapped < 2; swapped++) {
        Engine e = {0};
        bytes_init(&e.tokenizer);
        e.tokenizer.kind = swapped ? TOKENIZER_GPT2 : TOKENIZER_BYTES;
        for (int i = 0; i < (swapped ? C : 0); i++) {
            float *row = m.params.wte + i, old = row[x * C];
            row[x * C] = row[last * C], row[last * C] = old;
        }
        engine_start(&e, &m, WEIGHTS_F32);
        int made = written(&e, 1);
        check(swapped || made == 40, "without an end, %d tokens of 40", made);
        const uint16_t *text = e.generator.text;
        for (int i = 1; i < 40 && !swapped; i++) { // the last place with a token that is new
            int before = 0;
            while (text[before] != text[i]) before++;
            if (before == i && text[i] != last) place = i, x = text[i];
        }
        ended[0] = made;
        e.generator.ngram = 1, e.generator.latency = &latency; // passes of several tokens, some behind the end
        ended[1] = written(&e, 1);
        for (int i = 0; i < 2 && swapped; i++)
            check(ended[i] == place && text[place] == last, "a text of %d tokens has %d", place, ended[i]);
        decoder_free(&e.decoder), tokenizer_free(&e.tokenizer), free(e.generator.text);
    }
    check(place > 3, "the text has nothing new after its token %d", place);
    gpt2_free(&m);
}

// Texts that are drawn one after the other, and end somewhere in a pass: each is that of plain decoding. The draft
// is the model itself, so that it is often right, and goes on behind the end.
static void test_texts(void) {
    GPT2Config g = {48, 61, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4);
    Engine plain_one = {0}, e = {0}, draft = {0}, *both[] = {&plain_one, &e};
    Latency latency = some_latency(0.05);
    int wrong = 0, ended = 0, overshot = 0, made[2];
    engine_start(&draft, &m, WEIGHTS_F32);
    for (int i = 0; i < 2; i++) {
        engine_start(both[i], &m, WEIGHTS_F32);
        bytes_init(&both[i]->tokenizer);
        both[i]->tokenizer.kind = TOKENIZER_GPT2;
        both[i]->generator.sampling = (Sampling){.temperature = 0.4, .top_p = 1, .seed = 3};
    }
    e.generator.draft = &draft.generator, e.generator.latency = &latency;
    for (int text = 0; text < 120; text++) {
        int end = text * 7 % g.vocab_size;
        for (int i = 0; i < 2; i++) {
            both[i]->tokenizer.vocab_size = 1 + end; // which is the end of text
            made[i] = written(both[i], (uint16_t)(text % 61));
        }
        overshot += e.generator.length > 1 + made[1], ended += made[1] < 40;
        wrong += made[0] != made[1] ||
                 memcmp(plain_one.generator.text, e.generator.text, (1 + made[0]) * sizeof(uint16_t)) != 0;
    }
    check(!wrong, "%d texts of 120 are not those of plain decoding", wrong);
    check(overshot > 2, "%d of %d texts ended within a pass: the test says nothing", overshot, ended);
    engine_stop(&plain_one), engine_stop(&e), engine_stop(&draft);
    gpt2_free(&m);
}

// A draft begins each text with its owner; and what a draft proposed is told from what prompts guessed: here the prompts
// always guess the next token, and the draft, a model of its own, hardly ever.
static void test_proposals(void) {
    GPT2Config g = {48, 61, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4), other = random_model(g, 3, 9);
    Engine truth = {0}, e = {0}, draft = {0};
    Latency latency = some_latency(0.001);
    uint16_t begin[30];
    engine_start(&truth, &m, WEIGHTS_F32), engine_start(&e, &m, WEIGHTS_F32), engine_start(&draft, &other, WEIGHTS_F32);
    e.prompts.header = (PromptsHeader){"", 0, 1, 1, 1, 32, 2, 0, 0, 0};
    e.prompts.params = random_floats(32, 0.1f, 7);
    engine_guess(&e);
    for (int k = 0; k < 2; k++)
        e.generator.templates[k] = (Template){.nodes = 1 + k, .rows = 3 + k, .parent = {-1, 0}, .depth = {0, 1},
                                              .chain = {1, 1}, .tokens = 1 + k};
    Generator *own = &e.generator;
    own->draft = &draft.generator, own->latency = &latency;
    random_tokens(begin, 30, 61, 5);
    generate(&truth.generator, begin, 30, 300), generator_text(own, begin, 30);
    double right = 0;
    for (int made = 1; own->length < 200; made = generator_step(own, 4)) {
        own->guess[0][0] = truth.generator.text[own->length]; // made is 1 only if the draft was wrong
        right += made > 2;
    }
    check(own->proposed[0] > 5 && own->accepted[0] <= right, "of %.1f proposals %.1f were right, not %.1f or fewer",
          own->proposed[0], own->accepted[0], right);
    check(draft.generator.base > 0, "the draft's text has not slid: the test says nothing");
    // what the draft proposes is what it would write behind the text, whatever it proposed before
    GPT2Config wide = g;
    wide.max_seq_len = 200;
    GPT2 longer = random_model(wide, 3, 4), also = random_model(wide, 3, 9);
    Engine f = {0}, sketch = {0}, anew = {0}, exact = {0};
    engine_start(&f, &longer, WEIGHTS_F32), engine_start(&sketch, &also, WEIGHTS_F32);
    engine_start(&anew, &also, WEIGHTS_F32), engine_start(&exact, &longer, WEIGHTS_F32);
    f.prompts = e.prompts;
    engine_guess(&f);
    memcpy(f.generator.templates, e.generator.templates, 2 * sizeof(Template));
    f.generator.draft = &sketch.generator, f.generator.latency = &latency;
    generate(&exact.generator, begin, 30, 200), generator_text(&f.generator, begin, 30);
    int strange = 0, tried = 0;
    while (f.generator.length < 150) {
        int before = f.generator.length, n;
        long passes = sketch.generator.passes;
        f.generator.guess[0][0] = exact.generator.text[before];
        generator_step(&f.generator, 4);
        if (sketch.generator.passes == passes) continue;
        n = sketch.generator.length - before;
        generate(&anew.generator, f.generator.text, before, before + n);
        strange += memcmp(anew.generator.text + before, sketch.generator.text + before, n * sizeof *begin) != 0;
        tried += n > 1;
    }
    check(!strange && tried > 2, "%d proposals are not the draft's, of %d", strange, tried);
    f.prompts.params = NULL;
    engine_stop(&f), engine_stop(&sketch), engine_stop(&anew), engine_stop(&exact);
    gpt2_free(&longer), gpt2_free(&also);
    generator_text(own, begin + 3, 20);
    check(draft.generator.base == 0 && draft.generator.length == 20 &&
              !memcmp(draft.generator.text, begin + 3, 20 * sizeof *begin), "the draft goes on with the text before");
    engine_stop(&truth), engine_stop(&e), engine_stop(&draft);
    free(e.prompts.params);
    gpt2_free(&m), gpt2_free(&other);
}

// What followed the most last tokens, where they stood last; which children are typical.
static void test_candidates(void) {
    const uint16_t text[] = {1, 2, 3, 4, 9, 7, 3, 4, 8, 3, 4, 6, 1, 2, 3, 4, 9, 7, 3, 4, 8, 3, 3, 3};
    const struct { int length, size, followed; } cases[] = {{16, 4, 4}, {11, 2, 8}, {8, 2, 4}, {5, 1, 0},
        {1, 1, 0}, {17, 4, 5}, {19, 4, 7}, {20, 5, 8}, {21, 5, 9}, {22, 5, 10}, {23, 1, 0}, {24, 2, 23}};
    for (int i = 0; i < 12; i++) {
        int size, at = find_ngram(text, cases[i].length, &size);
        check(at == cases[i].followed && size == cases[i].size, "of %d tokens the last %d were before %d",
              cases[i].length, size, at);
    }
    Decoder d = {.config = {.vocab_size = 4}};
    Generator g = {.decoder = &d, .sampling = {.temperature = 1, .typical = 1}};
    const float logits[] = {3, 2.5f, -3, 0};
    for (int likely = 0; likely < 2; likely++) {
        Tree t = {.root = 0};
        batch_add(&t.batch, 0, -1);
        for (int token = 2 * !likely; token < 4; token += 1 + likely) batch_add(&t.batch, token, 0);
        int child = typical_child(&g, &t, 0, logits); // of 0 and 2, or of 2 and 3, which are rare
        check(likely ? child == 1 : child < 0, "child %d is typical", child);
    }
    for (int alike = 0; alike < 2; alike++) { // 0.7 0.1 0.1 0.1: above 0.09, not 0.117; 1/16: above 0.019
        const float x[16] = {alike ? 0 : logf(7)};
        Tree t = {.root = 0};
        batch_add(&t.batch, 0, -1), batch_add(&t.batch, 1, 0);
        d.config.vocab_size = alike ? 16 : 4;
        check(typical_child(&g, &t, 0, x) == 1, "the second of %d is not typical", d.config.vocab_size);
    }
}

// A draft of so short a context slides among proposals of its own, which then are taken back.
static void test_short_draft(void) {
    GPT2Config g = {48, 5, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4);
    Latency latency = some_latency(0.001);
    for (int context = 2; context <= 24; context += 2) {
        GPT2Config small = {context, 5, 1, 2, 16};
        GPT2 s = random_model(small, 3, context);
        Engine truth = {0}, e = {0}, draft = {0};
        uint16_t begin = 1;
        int differ = 0, strays = 0;
        engine_start(&truth, &m, WEIGHTS_F32), engine_start(&e, &m, WEIGHTS_F32), engine_start(&draft, &s, WEIGHTS_F32);
        Generator *own = &e.generator, *of = &draft.generator;
        own->draft = of, own->latency = &latency;
        own->sampling = truth.generator.sampling = (Sampling){.temperature = 1, .top_p = 1, .seed = context};
        generate(&truth.generator, &begin, 1, 400), generator_text(own, &begin, 1);
        while (own->length < 400) {
            int before = own->length, made = generator_step(own, 400 - before);
            for (int i = 0; i < before && of->length > before; i++) strays += of->text[i] != own->text[i];
            strays += of->base + of->decoder->past >= of->length || made < 1;
        }
        for (int i = 0; i < 400; i++) differ += own->text[i] != truth.generator.text[i];
        check(!differ && !strays, "a draft of context %d: %d tokens differ, %d times it lost its way", context, differ, strays);
        engine_stop(&truth), engine_stop(&e), engine_stop(&draft);
        gpt2_free(&s);
    }
    gpt2_free(&m);
}

// Where proposals are always right guesses only cost, and none are made; where they are wrong no proposal is.
static void test_plan(void) {
    Latency latency = some_latency(0.05);
    TreeModel model = some_accuracies(3, 1, 0.7, 0.5);
    Generator g = {.kind = GUESS_PROMPTS, .n = 3, .copies = 1, .state = 3, .latency = &latency, .passes = 1};
    const Template *shape = NULL;
    search_trees(&model, 12, g.templates);
    check(g.templates[0].worth == 0 && g.templates[3].worth > 0.3 && g.templates[0].later > g.templates[3].later,
          "guesses are worth %.2f tokens, and lead to %.2f", g.templates[3].worth, g.templates[3].later);
    for (int right = 0; right <= 1; right++) {
        g.proposed[4] = 1e6, g.accepted[4] = right ? 1e6 : 0;
        int n = plan_proposals(&g, 4, 1, 10, &shape);
        check(right ? n == 10 && shape == &bare : n == 0 && shape == &g.templates[3],
              "%d proposals that are %s", n, right ? "right" : "wrong");
    }

    Generator draft = {0}; // one that takes a thousand passes' time proposes nothing
    g.draft = &draft, g.proposed[0] = g.accepted[0] = 1e6;
    for (int slow = 0; slow < 2; slow++) {
        g.draft_cost = 1e3 * slow;
        int n = plan_proposals(&g, 0, 1, 10, &shape);
        check(n == (slow ? 0 : 10), "%d proposals of a draft", n);
    }
    g.draft = NULL;

    search_trees(&model, 1, g.templates); // roots alone: no prompts, so none behind a proposal either
    g.proposed[4] = 2, g.accepted[4] = 1;
    check(plan_proposals(&g, 4, 1, 10, &shape) > 0 && proposals_chain(&g) == 0, "%d prompts where none pay",
          proposals_chain(&g));
    search_trees(&model, MAX_TREE, g.templates); // no room for 16 proposals with their prompts
    g.proposed[4] = g.accepted[4] = 1e6;
    int most = plan_proposals(&g, 4, 1, 16, &shape), with = shape == &bare ? 0 : proposals_chain(&g);
    check(most > 0 && shape->rows + most + with <= MAX_ROWS - MAX_MISSING, "%d proposals beside %d rows", most,
          shape->rows);

    // such a pass has the rows of text and of the proposals, 9 here, and leaves no guesses
    GPT2Config config = {48, 61, 2, 2, 32};
    GPT2 m = random_model(config, 3, 4);
    for (int heads = 0; heads <= 1; heads++) {
        Engine e = {0};
        Generator *own = &e.generator;
        uint16_t text[30];
        engine_start(&e, &m, WEIGHTS_F32);
        e.prompts.header = (PromptsHeader){"", heads, 2, 1, heads ? 0 : 1, 32, 2, 0, 0, 0};
        e.prompts.params = random_floats(prompts_size(&e.prompts.header), 0.1f, 7);
        engine_guess(&e);
        own->latency = &latency, own->ngram = 1, own->passes = 1;
        own->proposed[5] = own->accepted[5] = 1e6;
        for (int i = 0; i < 30; i++) text[i] = (uint16_t)(i % 5);
        generator_text(own, text, 30);
        int rows = own->length - own->base - e.decoder.past + 9; // of the loop's five tokens some twice
        generator_step(own, 10);
        check(own->rows == rows && own->state == 0, "%ld rows, not %d, and %d guesses", own->rows, rows, own->state);
        engine_stop(&e);
        free(e.prompts.params);
    }
    gpt2_free(&m);
}

// ---- gradients

static void test_gradients(void) {
    enum { T = 14, B = 2 };
    GPT2Config g = {20, 23, 2, 2, 12};
    uint16_t guessed[B * T], x[B * T], y[B * T];
    random_tokens(x, B * T, 23, 1), random_tokens(y, B * T, 23, 2), random_tokens(guessed, B * T, 23, 3);
    for (int mode = 0; mode < 5; mode++) { // prompts; copies and maps; heads; jointly; with maps, too
        GPT2 m = random_model(g, 5, 1);
        PromptTrainer t = {.m = &m,
                           .h = {.heads = mode == 2,
                                 .n = 3,
                                 .copies = mode == 1 ? 2 : 1,
                                 .depth = mode == 1 || mode == 3 ? 2 : 1, // of 2 layers
                                 .rank = mode == 1 ? 3 : mode == 4 ? 2 : 0,
                                 .channels = 12},
                           .cuts = mode == 2 ? 6 : 3,
                           .B = B,
                           .T = T,
                           .joint = mode >= 3,
                           .scale = mode >= 3 ? 4 : 1,
                           .map_scale = 2,
                           .temperature = mode ? 1.0f : 0.3f};
        size_t n = prompts_size(&t.h), text = (size_t)T * 12,
               model = t.joint ? m.num_parameters : 0;
        t.weight = 1, t.params = random_floats(n, 0.3f / t.scale, 3), t.grads = allocate_floats(n);
        trainer_allocate(&t);
        draw_cuts(&t, 0, 1, 0);
        for (int c = 0; c < B * t.cuts && mode == 4; c++) // what a map reads is nobody's teacher
            t.cuts_of_step[c] = c % t.cuts * (t.h.n + 1);
        prompt_step(&t, guessed, x, y);
        float *own = memcpy(malloc(n * 4), t.grads, n * 4), *teacher = malloc(B * text * 4), *joint = NULL;
        for (int b = 0; b < B; b++) {
            prompt_forward(&t, guessed + b * T, t.cuts_of_step + b * t.cuts);
            memcpy(teacher + b * text, m.lnf, text * 4);
        }
        m.extra = (ExtraRows){0};
        if (model) { // what the prompts add to the gradient of the text's loss
            joint = memcpy(malloc(model * 4), m.grads_memory, model * 4);
            t.weight = 0;
            prompt_step(&t, guessed, x, y);
            for (size_t i = 0; i < model; i++) joint[i] -= m.grads_memory[i];
            GPT2 same = random_model(g, 5, 1);
            gpt2_allocate_activations(&same, B, T, 1);
            gpt2_forward(&same, x, B, T);
            gpt2_backward(&same, y, 1.0f / (B * T), NULL);
            double off = 0;
            for (size_t i = 0; i < model; i++)
                off = fmax(off, fabs(m.grads_memory[i] - same.grads_memory[i]));
            check(off < 1e-5, "without weight, joint training has another gradient than the trainer, by %g",
                  off);
            gpt2_free(&same);
            t.weight = 1;
        }
        double worst = 0, largest = 0;
        for (size_t i = 0; i < n + model; i += i < n ? 3 : 17) {
            float *at = i < n ? &t.params[i] : &m.params_memory[i - n], saved = *at;
            if (i >= n && i - n < 23 * 12) continue; // wte makes the teacher's logits, too
            double kl[2];
            for (int side = 0; side < 2; side++) {
                *at = saved + (side ? -3e-3f : 3e-3f);
                t.kl = 0;
                for (int b = 0; b < B; b++) {
                    prompt_forward(&t, guessed + b * T, t.cuts_of_step + b * t.cuts);
                    for (int r = 0; r < T && !t.h.heads; r++) // the teacher stands still
                        if (mode != 4 || r % (t.h.n + 1))
                            memcpy(m.lnf + r * 12, teacher + b * text + r * 12, 12 * 4);
                    prompt_loss(&t);
                }
                kl[side] = t.kl;
            }
            *at = saved;
            worst = fmax(worst, fabs((kl[0] - kl[1]) / 6e-3 - (i < n ? own[i] : joint[i - n])));
            largest = fmax(largest, fabs(i < n ? own[i] : joint[i - n]));
        }
        check(worst < 0.01 * largest, "gradient, mode %d: off by %g of %g", mode, worst, largest);
        free(own), free(teacher), free(joint);
        gpt2_free(&m);
    }
}

// ---- joint training: interrupted while the model writes new text of its own, it goes on as if it had not been

// Trains up to `steps` in as many parts as there are stops; at a stop the model's own text is lost.
static PromptRun trained(const GPT2Config g, const Dataset *data, const int *stops, int parts) {
    PromptRun run;
    GPT2 m = random_model(g, 3, 1);
    DecodeOptions o = {.joint = 1, .steps = stops[0], .schedule = "constant", .seed = 1};
    run = (PromptRun){.trainer = {.m = &m,
                                  .h = {PROMPTS_MAGIC, 0, 2, 1, 1, g.channels, g.num_layers, 0, 0, 0},
                                  .cuts = 3, .B = 1, .T = 16, .joint = 1, .weight = 1, .scale = 8,
                                  .temperature = 1}};
    choose_optimizer(&run.optimizer, "adamw", "", 0);
    optim_set(&run.optimizer, "lr", 1e-2);
    trainer_allocate(&run.trainer);
    start_prompts(&run, &o);
    run.own = 4 * (size_t)run.trainer.T;
    run.now = allocate(1, sizeof *run.now + run.own * sizeof(uint16_t));
    run.guessed = run.text = (DataLoader){data, 16, 1, 0, 0};
    for (int i = 0; i < parts; i++) {
        o.steps = stops[i];
        train_prompts(&run, data, &o);
        if (i < parts - 1) memset(run.now->own, 0, run.own * sizeof(uint16_t));
    }
    return run;
}

// What prompts and heads guess in decoding is what they were trained to guess: the same logits.
static void test_guesses(void) {
    enum { T = 14, V = 23, CUTS = 6, N = 3 }; // of heads 18 guesses, of which 14 fit the logits at a time
    GPT2Config g = {20, V, 2, 2, 12};
    uint16_t tokens[T];
    int cuts[CUTS] = {5, 0, 10, 3, 8, 5};
    for (int i = 0; i < T; i++) tokens[i] = (uint16_t)(random_u64(3, i) % V);
    for (int mode = 0; mode < 4; mode++) { // prompts; copies in two layers; heads; copies and maps
        GPT2 m;
        gpt2_allocate(&m, g), gpt2_initialize(&m, 1, GPT2_STD);
        for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] *= 5;
        PromptTrainer t = {.m = &m, .h = {.heads = mode == 2, .n = N, .copies = mode % 2 ? 2 : 1,
                           .depth = mode == 1 ? 2 : 1, .channels = 12, .layers = 2, .rank = mode == 3 ? 4 : 0},
                           .cuts = CUTS, .B = 1, .T = T, .temperature = 1, .weight = 1, .scale = 1, .map_scale = 1};
        size_t n = prompts_size(&t.h);
        t.params = allocate_floats(n), random_normal(t.params, n, 0.3f, 3), t.grads = allocate_floats(n);
        trainer_allocate(&t);
        prompt_forward(&t, tokens, cuts);
        prompt_loss(&t);
        m.extra = (ExtraRows){0};
        float want[N * CUTS * V], truth[T * V];
        linear_forward(want, t.student, m.params.wte, N * CUTS, 12, V, plain);
        gpt2_forward(&m, tokens, 1, T);
        for (int i = 0; i < T; i++) gpt2_logits(&m, truth + i * V, i, 1);
        Engine e = {0};
        engine_start(&e, &m, WEIGHTS_F32);
        e.prompts.header = t.h, e.prompts.params = t.params;
        engine_guess(&e);
        double off = 0, largest = 0, kl = 0, right = 0;
        for (int c = 0; c < CUTS; c++) {
            e.decoder.past = 0;
            decoder_prefill(&e.decoder, tokens, cuts[c], NULL);
            Tree tree = {.root = 0};
            batch_add(&tree.batch, tokens[cuts[c]], -1);
            tree.chain[0] = N;
            add_outputs(&e.generator, &tree, 10);
            decoder_pass(&e.decoder, &tree.batch);
            for (int i = 0; i < N; i++) { // prompt or head i guesses what follows the token behind cut + i
                const float *x = product_row(&e.decoder, tree.guesses[0] + i), *y = truth + (cuts[c] + 1 + i) * V;
                float x_lse = log_sum_exp(x, V, 1), y_lse = log_sum_exp(y, V, 1);
                for (int v = 0; v < V; v++) {
                    off = fmax(off, fabs(x[v] - want[(i * CUTS + c) * V + v]));
                    largest = fmax(largest, fabs(x[v]));
                    kl += pow(0.8, i) / (N * CUTS) * exp(y[v] - y_lse) * (y[v] - y_lse - x[v] + x_lse);
                }
                if (i == 0) right += argmax(x, V) == argmax(y, V);
            }
        }
        check(off < 1e-4 * largest, "mode %d: guesses in decoding are off by %g of %g", mode, off, largest);
        check(fabs(t.kl - kl) < 1e-3 * kl && fabs(t.top1[0] - right / CUTS) < 1e-9,
              "mode %d: KL %g, not %g; %g are right, not %g", mode, t.kl, kl, t.top1[0], right / CUTS);
        e.prompts.params = NULL;
        engine_stop(&e), gpt2_free(&m);
    }
}

// What a pass leaves as guesses is what a lone root with all its prompts or heads would guess.
static void test_next_guesses(void) {
    GPT2Config g = {200, 61, 2, 2, 32};
    GPT2 m = random_model(g, 3, 4);
    for (int heads = 0; heads < 2; heads++) {
        Engine e = {0}, alone = {0}, *both[] = {&e, &alone};
        Prompts p = {.header = {"", heads, 3, 1, heads ? 0 : 1, 32, 2, 0, 0, 0}};
        TreeModel model = some_accuracies(3, !heads, 0.9, 0.6);
        uint16_t begin[20];
        int wrong = 0, several = 0;
        random_tokens(begin, 20, 61, 5);
        p.params = random_floats(prompts_size(&p.header), 0.1f, 7);
        for (int i = 0; i < 2; i++)
            engine_start(both[i], &m, WEIGHTS_F32), both[i]->prompts = p, engine_guess(both[i]);
        search_trees(&model, heads ? 16 : 24, e.generator.templates);
        generator_text(&e.generator, begin, 20);
        while (e.generator.length < 180) {
            several += generator_step(&e.generator, 180 - e.generator.length) > 1;
            generator_text(&alone.generator, e.generator.text, e.generator.length - 1);
            generator_step(&alone.generator, 1);
            wrong += memcmp(e.generator.guess, alone.generator.guess,
                            e.generator.state * sizeof *e.generator.guess) != 0;
        }
        check(!wrong && several > 3, "heads %d: after %d passes other guesses; %d made several tokens", heads,
              wrong, several);
        e.prompts.params = alone.prompts.params = NULL;
        engine_stop(&e), engine_stop(&alone), free(p.params);
    }
    gpt2_free(&m);
}

static void test_interrupted(void) {
    GPT2Config g = {32, 29, 1, 2, 16};
    uint16_t text[400];
    Dataset data = {0};
    random_tokens(text, 400, 29, 1);
    dataset_add(&data, text, 400);
    fflush(stdout);
    int out = dup(1), nowhere = open("/dev/null", O_WRONLY);
    int stops[] = {0, 9, 12}; // at step 9 all was read READINGS times
    dup2(nowhere, 1), close(nowhere);
    PromptRun start = trained(g, &data, stops, 1), unbroken = trained(g, &data, stops + 2, 1),
              broken = trained(g, &data, stops + 1, 2), first = trained(g, &data, stops + 1, 1);
    fflush(stdout), dup2(out, 1), close(out);
    check(!memcmp(unbroken.params, broken.params, broken.count * sizeof(float)),
          "new text was to be written, and is not");
    PromptTrainer *t = &unbroken.trainer;
    int n = (int)prompts_size(&t->h), stayed = 0, wrong = 0, least = t->T, most = 0, cuts[3];
    for (int i = 0; i < n; i++) stayed += t->params[i] == start.trainer.params[i];
    check(!stayed, "%d of the prompts' %d numbers are as they began", stayed, n);
    // each step has cuts of its own, all over what the model wrote, as far as there is room for what is guessed
    memcpy(cuts, t->cuts_of_step, sizeof cuts);
    for (int step = 0; step < 200; step++) {
        draw_cuts(t, own_prompt(t->T) - 1, 1, step);
        wrong += (step == 11) != !memcmp(cuts, t->cuts_of_step, sizeof cuts);
        for (int i = 0; i < t->cuts; i++)
            least = MIN(least, t->cuts_of_step[i]), most = MAX(most, t->cuts_of_step[i]);
    }
    check(!wrong && least == own_prompt(t->T) - 1 && most == t->T - t->h.n - 1,
          "cuts from %d to %d, %d steps with those of others", least, most, wrong);
    GPT2 m = random_model(g, 3, 1);
    Engine e = {0}, of_bytes = {0};
    // the texts that were written before the first step, when the model was this one
    int length = t->T, prompt = own_prompt(length), strange = 0;
    engine_start(&of_bytes, &m, WEIGHTS_INT8);
    for (size_t i = 0; i < first.own; i += length) {
        const uint16_t *own = first.now->own + i;
        int begins = 0;
        for (int at = 0; at < 400 - prompt; at++) begins |= !memcmp(text + at, own, prompt * sizeof *own);
        generate(&of_bytes.generator, own, prompt, length);
        strange += !begins || memcmp(of_bytes.generator.text, own, length * sizeof *own) != 0;
    }
    check(!strange && memcmp(first.now->own, first.now->own + length, prompt * sizeof(uint16_t)),
          "%d texts are not the model's own", strange);
    engine_stop(&of_bytes);
    first.guessed.index = 0;
    for (int epoch = 0; epoch < 2; epoch++) { // an epoch has each of them once, whole
        int times[4] = {0};
        for (int i = 0; i < 4; i++) {
            uint16_t x[16];
            next_own_texts(&first, x);
            for (int own = 0; own < 4; own++) times[own] += !memcmp(x, first.now->own + own * length, sizeof x);
        }
        check(times[0] == 1 && times[1] == 1 && times[2] == 1 && times[3] == 1,
              "the model's texts are read %d, %d, %d, %d times", times[0], times[1], times[2], times[3]);
    }
    engine_start(&e, &m, WEIGHTS_F32);
    interrupted = 1;
    generate(&e.generator, text, 4, 4000);
    interrupted = 0;
    check(e.generator.length == 4, "interrupted, %d tokens are written", e.generator.length - 4);
    engine_stop(&e), gpt2_free(&m), free(data.shards);
}

// ---- the tree search against all trees there are

#define BRUTE_RANKS 2
static Template all_trees[16384];
static int num_trees;

// Every set of children and chains: nodes are added in order, each under a node that is not before the last
// parent.
static void enumerate(Template t, const TreeModel *m, int k, int s, int parent, int rank) {
    Template chains = t;
    int options = 1;
    for (int v = 0; v < t.nodes; v++) options *= m->n + 1;
    for (int code = 0; code < options; code++) {
        chains.rows = t.nodes;
        for (int v = 0, c = code; v < t.nodes; v++, c /= m->n + 1)
            chains.chain[v] = c % (m->n + 1), chains.rows += c % (m->n + 1) * m->copies;
        if (chains.rows <= s) all_trees[num_trees++] = chains;
    }
    if (t.nodes == s) return;
    for (int p = parent; p < t.nodes; p++)
        for (int r = p == parent ? rank : 0; r < BRUTE_RANKS && t.depth[p] < k; r++) {
            Template more = t;
            more.parent[t.nodes] = p, more.rank[t.nodes] = r, more.depth[t.nodes] = t.depth[p] + 1;
            more.nodes++;
            enumerate(more, m, k, s, p, r + 1);
        }
}

static void test_tree_search(void) {
    for (int trial = 0; trial < 10; trial++) { // prompts, prompts of two copies, heads
        int s = 3 + (trial < 8 ? trial % 3 : trial % 2), first[4], best_of[3] = {0};
        TreeModel m = {.n = 2, .copies = trial < 5 ? 1 : trial < 8 ? 2 : 0};
        for (int d = 0; d < 2; d++) {
            m.accuracy[d][0] = 0.2 + 0.5 * random_uniform(trial, d);
            m.accuracy[d][1] = (1 - m.accuracy[d][0]) * random_uniform(trial, 4 + d);
        }
        num_trees = 0;
        for (int k = 0; k <= 2; k++) {
            first[k] = num_trees;
            enumerate((Template){.nodes = 1, .parent = {-1}}, &m, k, s, 0, 0);
        }
        first[3] = num_trees;
        double best = 0; // over all triples, by a walk that is exact: only the triples' transitions matter
        Template trees[MAX_PROMPTS + 1], found[MAX_PROMPTS + 1];
        for (int round = 0; round < 4;
             round++) // each state in turn, the others as they are: policy improvement
            for (int k = 0; k <= 2; k++)
                for (int i = first[k]; i < first[k + 1]; i++) {
                    int chosen[3];
                    for (int j = 0; j <= 2; j++) chosen[j] = j == k ? i : MAX(first[j], best_of[j]);
                    for (int j = 0; j <= 2; j++) trees[j] = all_trees[chosen[j]];
                    double tau = long_run(trees, &m, NULL, NULL);
                    if (tau > best) best = tau, memcpy(best_of, chosen, sizeof chosen);
                }
        for (uint64_t i = 0; i < 20000; i++) { // and random triples
            for (int j = 0; j <= 2; j++)
                trees[j] = all_trees[first[j] + random_u64(trial, 3 * i + j) % (first[j + 1] - first[j])];
            best = fmax(best, long_run(trees, &m, NULL, NULL));
        }
        search_trees(&m, s, found);
        double tau = long_run(found, &m, NULL, NULL);
        int fits = 1;
        for (int k = 0; k <= 2; k++) fits &= found[k].rows <= s;
        check(fits && tau > best - 1e-4 && num_trees < 16384,
              "%d rows, %d copies, %d trees: found %.5f tokens a pass, brute force %.5f", s, m.copies, num_trees,
              tau, best);
    }
    TreeModel m = some_accuracies(3, 1, 0.9, 0.55);
    Latency latency = some_latency(0.03);
    Template trees[MAX_PROMPTS + 1];
    double tau = 0, speedup = fastest_trees(&m, &latency, MAX_ROWS - 16, trees, &tau);
    check(tau > 1 && speedup > 1, "the search over all sizes: %.2f tokens a pass, %.2f times as fast", tau, speedup);
    double seconds, brings = long_run(trees, &m, &latency, &seconds), other;
    check(fabs(brings - tau) < 1e-9 && fabs(speedup - tau * latency.seconds[0] / seconds) < 1e-9,
          "the trees bring %g tokens a pass, not the %g that were promised", brings, tau);
    for (int s = 1; s <= 32; s *= 2) {
        Template others[MAX_PROMPTS + 1];
        check(plan_trees(&m, &latency, s, others, &other) < speedup * 1.0011, "%d rows are faster", s);
    }
    // of 4 rows: a root and a child, each with a chain of 1; with guesses at half the cost, 3 rows' time
    TreeModel simple = {.n = 1, .copies = 1, .accuracy = {{0.5}}};
    Latency slow = some_latency(0.05);
    for (int r = 0; r < MAX_ROWS; r++) slow.seconds[r] *= 2;
    speedup = plan_trees(&simple, &slow, 4, trees, &tau);
    check(trees[1].rows == 4 && fabs(tau - 1.5) < 1e-6 && fabs(speedup - 1.5 / 1.1) < 1e-6,
          "%d rows: %g tokens a pass, %g times as fast", trees[1].rows, tau, speedup);
    simple.copies = 0; // heads: a root and a child, with one head each
    speedup = plan_trees(&simple, &slow, 2, trees, &tau);
    check(trees[1].rows == 2 && fabs(tau - 1.5) < 1e-6 && fabs(speedup - 1.5 / 1.1) < 1e-6,
          "heads: %d rows, %g tokens a pass, %g times as fast", trees[1].rows, tau, speedup);
}

// ---- prompts files

static Prompts some_prompts(GPT2Config g) {
    Prompts p = {.header = {PROMPTS_MAGIC, 0, 3, 2, 1, g.channels, g.num_layers, 0, 0, 77}};
    p.params = random_floats(prompts_size(&p.header), 1, 1);
    return p;
}

// Runs f in a child; returns its exit code (128 + signal if killed) and puts what it wrote on stderr into
// text.
static int in_child(void (*f)(const char *), const char *argument, char *text, size_t size) {
    int ends[2], status;
    fflush(stdout);
    if (pipe(ends)) return -1;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2), close(ends[0]);
        f(argument);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; n < size - 1 && (got = read(ends[0], text + n, size - 1 - n)) > 0;) n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static const GPT2Config file_config = {32, 11, 1, 2, 8};
static void load_it(const char *path) {
    Prompts p = {0};
    prompts_load(&p, path, file_config, 77);
}

static void test_prompts_files(int mutations) {
    char path[] = "/tmp/test_decode_XXXXXX";
    close(mkstemp(path));
    char text[512];
    Prompts p = some_prompts(file_config), q = {0};
    prompts_save(&p, path);
    prompts_load(&q, path, file_config, 77);
    check(!memcmp(p.params, q.params, prompts_size(&p.header) * 4) &&
              !memcmp(&p.tables, &q.tables, sizeof p.tables),
          "read otherwise");
    size_t size;
    char *file = read_file(path, &size);
    int bad = 0;
    for (int i = 0; i < mutations; i++) {
        char *copy = memcpy(malloc(size + 8), file, size);
        size_t n = size, at = random_u64(1, i) % (i % 2 ? size : 48);
        if (i % 5 == 4) n = random_u64(2, i) % size;
        else if (i % 5 == 3) n = size + 1 + random_u64(2, i) % 7;
        else copy[at] ^= (char)(1 << random_u64(3, i) % 8);
        FILE *f = fopen(path, "wb");
        fwrite(copy, 1, n, f);
        fclose(f);
        free(copy);
        int code = in_child(load_it, path, text, sizeof text);
        const char *line = strchr(text, '\n');
        if (code != 1 || strncmp(text, "error: ", 7) || !line || line[1]) {
            bad++;
            printf("mutation %d: exit code %d, %s\n", i, code, text);
        }
    }
    check(!bad, "%d of %d mutated prompts files are not refused in one line", bad, mutations);
    unlink(path);
    free(file);
}

int main(int argc, char **argv) {
    int mutations = 300, goldens = 0;
    if (!getenv("GOMP_SPINCOUNT") && !setenv("GOMP_SPINCOUNT", "10000", 1)) execv("/proc/self/exe", argv);
    test_products();
    test_tree_attention(8), test_tree_attention(20), test_tree_attention(70);
    test_long_texts();
    test_sampling();
    test_choices();
    test_writer();
    test_end_of_text();
    test_texts();
    test_candidates();
    test_proposals();
    test_short_draft();
    test_plan();
    test_tree_search();
    test_gradients();
    test_guesses();
    test_next_guesses();
    test_interrupted();
    test_identity();
    test_decoder_threads();
    test_likely();
    test_walk(), test_accuracy();
    test_chi_square();
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--mutations") && i + 1 < argc) mutations = atoi(argv[++i]);
        else test_golden(argv[i]), goldens++;
    if (!goldens) test_golden("test/golden/gpt2_tiny");
    test_prompts_files(mutations);
    return finish();
}
