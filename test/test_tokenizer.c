// The tokenizers: against tiktoken's answers, against a plain reading of the definition, there and back.
//   ./test/test_tokenizer [--merges vocab.bpe] [CASES...]    without GPT-2's merges (or $GPT2_MERGES) what
//                                                            needs them is skipped
//   ./test/test_tokenizer --merges vocab.bpe --speed TEXT    prints MB/s of encoding on one core
// CASES (test/golden/bpe_cases.txt) are pairs of lines: a text as a JSON string, and its tokens.
#define BLOCK_BYTES 40 // of text, at a time: nearly every text here is cut
#define main tokenize_main
#include "../dev/data/tokenize.c"
#undef main
#include "check.h"
#include "forked.h"

static char folder[] = "/tmp/test_tokenizer_XXXXXX";

static void write_file(const char *path, const char *text, size_t n) {
    FILE *f = write_begin(path);
    write_bytes(f, text, n);
    write_commit(f, path);
}

// decode(encode(text)) == text
static int there_and_back(const Tokenizer *t, const char *text, size_t n) {
    size_t count, length, at = 0;
    uint16_t *ids = tokenizer_encode(t, text, n, "the text", &count);
    int same = 1;
    for (size_t i = 0; same && i < count; i++, at += length) {
        const char *token = tokenizer_token(t, ids[i], &length);
        same = at + length <= n && !memcmp(token, text + at, length);
    }
    free(ids);
    return same && at == n;
}

// Saves t and loads it again: the same tokens and the same encoding.
static void check_saved(const Tokenizer *t, const char *text, size_t n, const char *what) {
    Tokenizer u = {0};
    size_t a, b;
    tokenizer_save(t, folder);
    check(tokenizer_load(&u, folder) == 1, "%s: not loaded again", what);
    check(u.kind == t->kind && u.vocab_size == t->vocab_size && u.text_size == t->text_size &&
          !memcmp(u.text, t->text, t->text_size), "%s: loaded with other tokens", what);
    uint16_t *x = tokenizer_encode(t, text, n, "the text", &a);
    uint16_t *y = tokenizer_encode(&u, text, n, "the text", &b);
    check(a == b && !memcmp(x, y, a * sizeof *x), "%s: encodes otherwise once loaded", what);
    free(x), free(y);
    tokenizer_free(&u);
    unlink(path_in(folder, t->kind == TOKENIZER_GPT2 ? "tokenizer.bpe" : "tokenizer.txt").s);
    check(tokenizer_load(&u, folder) == 0, "%s: loaded from an empty folder", what);
}

// ---- bytes and characters

static void encode_chars(void *text) { // with a tokenizer of "abc"
    Tokenizer t = {0};
    size_t count;
    tokenizer_init(&t, "chars", "abc", 3, NULL);
    tokenizer_encode(&t, text, strlen(text), "the text", &count);
}

static void make_chars(void *text) {
    Tokenizer t = {0};
    tokenizer_init(&t, "chars", text, strlen(text), NULL);
}

static void make_all_chars(void *unused) { // 70,000 different characters
    char *text = resize(NULL, 280000);
    size_t n = 0;
    (void)unused;
    for (int c = 0; c < 70000; c++)
        if (c < 0xD800 || c >= 0xE000) n += (size_t)utf8_encode(text + n, c);
    Tokenizer t = {0};
    tokenizer_init(&t, "chars", text, n, NULL);
}

static void make_kind(void *kind) {
    Tokenizer t = {0};
    tokenizer_init(&t, kind, "abc", 3, NULL);
}

static void test_bytes_and_chars(void) {
    const char text[] =
        "na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x99\x82\n\0 end\r\n"; // naïve 日本 🙂
    size_t n = sizeof text - 1, count, length;
    Tokenizer t = {0};
    tokenizer_init(&t, "bytes", NULL, 0, NULL);
    check(t.vocab_size == 256 && there_and_back(&t, text, n), "bytes do not come back");
    check_saved(&t, text, n, "bytes");
    tokenizer_free(&t);
    tokenizer_init(&t, "chars", text, n, NULL);
    check(t.vocab_size == 13 && there_and_back(&t, text, n), "characters do not come back, or are not 13");
    for (int i = 0, last = -1, c; i < t.vocab_size; i++, last = c) {
        int used;
        const char *token = tokenizer_token(&t, i, &length);
        c = utf8_decode(token, token + length, &used);
        check(c > last && used == (int)length, "character %d is not in order", i);
    }
    uint16_t *ids = tokenizer_encode(&t, text, n, "the text", &count);
    check(count == 18, "%zu characters, not 18", count);
    free(ids);
    check_saved(&t, text, n, "chars");
    write_file(path_in(folder, "tokenizer.bpe").s, "a b\n", 4);
    check_saved(&t, text, n, "chars beside an old tokenizer.bpe");
    tokenizer_free(&t);
    check_refused(encode_chars, "ab\xC3\xA9", "\xC3\xA9 (U+00E9) at byte 2");
    check_refused(encode_chars, "abcab\n", "U+000A");
    check_refused(make_chars, "ab\xFF", "not UTF-8 at byte 2");
    check_refused(make_chars, "ab\xE6\x97", "not UTF-8 at byte 2");
    check_refused(make_chars, "\xC0\x80", "not UTF-8 at byte 0");
    check_refused(make_chars, "x\xED\xA0\x80", "not UTF-8 at byte 1");
    check_refused(make_chars, "x\xF4\x90\x80\x80", "not UTF-8 at byte 1");
    check_refused(make_chars, "", "no characters");
    check_refused(make_all_chars, NULL, "too many");
    check_refused(make_kind, "gpt2", "--merges");
}

// ---- byte pairs against their definition

// Merges of random pairs of tokens, as a file; every union is new.
static void random_merges(int number, uint64_t seed, char **text, size_t *size) {
    Tokenizer t = {0};
    char pair[64];
    FILE *f = open_memstream(text, size);
    bpe_begin(&t);
    fputs("#version: 0.2\n", f);
    for (uint64_t draw = 0; number > 0; draw += 2) {
        int ids[2]; // of letters and spaces mostly, and of what is made of them
        for (int k = 0; k < 2; k++) {
            uint64_t r = random_u64(seed, draw + k), late = t.vocab_size - 256;
            if (late && r % 3 == 0) ids[k] = 256 + (int)(r / 3 % late);
            else ids[k] = (int)find_token(&t, &"abc e\xC3\xA9\n'"[r / 3 % 9], 1);
        }
        size_t n, m;
        const char *a = tokenizer_token(&t, ids[0], &n), *b = tokenizer_token(&t, ids[1], &m);
        if (n + m > 40) continue;
        memcpy(pair, a, n), memcpy(pair + n, b, m);
        if (find_token(&t, pair, n + m) != NO_TOKEN) continue;
        write_symbols(f, t.kind, pair, n, 0), fputc(' ', f);
        write_symbols(f, t.kind, pair + n, m, 0), fputc('\n', f);
        add_bpe_token(&t, pair, n + m);
        number--;
    }
    fclose(f);
    tokenizer_free(&t);
}

// Encodes by the words of the definition, in quadratic time.
static size_t encode_slowly(const Tokenizer *t, const char *text, size_t n, uint16_t *ids) {
    size_t count = 0;
    for (const char *p = text, *end = text + n, *next; p < end; p = next) {
        next = piece_end(t, p, end);
        size_t parts = (size_t)(next - p), starts[600], where = 0;
        for (size_t i = 0; i <= parts; i++) starts[i] = i;
        if (find_token(t, p, parts) != NO_TOKEN) starts[1] = parts, parts = 1;
        for (uint32_t best;; parts--) {
            best = NO_TOKEN;
            for (size_t i = 0; i + 2 <= parts; i++) {
                uint32_t joined = find_token(t, p + starts[i], starts[i + 2] - starts[i]);
                if (joined < best) best = joined, where = i;
            }
            if (best == NO_TOKEN) break;
            memmove(starts + where + 1, starts + where + 2, (parts - where - 1) * sizeof *starts);
        }
        for (size_t i = 0; i < parts; i++)
            ids[count++] = (uint16_t)find_token(t, p + starts[i], starts[i + 1] - starts[i]);
    }
    return count;
}

static void test_byte_pairs(void) {
    for (int round = 0; round < 20; round++) {
        size_t size, n, count, wrong = 0, lost = 0;
        char *merges, text[500];
        random_merges(200, 100 + round, &merges, &size);
        Path path = path_in(folder, "merges.txt");
        write_file(path.s, merges, size);
        Tokenizer t = {0}, u = {0};
        tokenizer_init(&t, "gpt2", NULL, 0, path.s);
        check(t.vocab_size == 457, "256 bytes, 200 merges and the end of text make 457 tokens, not %d",
              t.vocab_size);
        for (int k = 0; k < 200; k++) {
            uint16_t slow[500];
            n = random_u64(k, 0) % 500;
            for (size_t i = 0; i < n; i++) {
                uint64_t r = random_u64(k, i + 1);
                text[i] = k % 4 == 0 ? (char)r : "abc e\xC3\xA9\n'"[r % 9];
            }
            uint16_t *ids = tokenizer_encode(&t, text, n, "the text", &count);
            size_t expected = encode_slowly(&t, text, n, slow);
            wrong += count != expected || memcmp(ids, slow, count * sizeof *ids);
            lost += !there_and_back(&t, text, n);
            free(ids);
        }
        check(!wrong && !lost, "merges %d: %zu texts are encoded wrong, %zu do not come back", round, wrong,
              lost);
        // the same file with carriage returns, and without its first line
        char *crlf = resize(NULL, 2 * size), *first = strchr(merges, '\n') + 1;
        n = 0;
        for (char *p = round % 2 ? first : merges; *p; p++) {
            if (*p == '\n') crlf[n++] = '\r';
            crlf[n++] = *p;
        }
        write_file(path.s, crlf, n);
        check(tokenizer_load(&u, folder) == 1 && u.text_size == t.text_size &&
                  !memcmp(u.text, t.text, t.text_size),
              "carriage returns change the merges");
        unlink(path.s);
        check_saved(&t, text, 400, "random merges");
        tokenizer_free(&t), tokenizer_free(&u);
        free(merges), free(crlf);
    }
}

static void load_folder(void *path) {
    Tokenizer t = {0};
    tokenizer_load(&t, path);
}

static void test_broken_merges(void) {
    const char *const cases[][2] = {{"#version: 0.2\na b\nc\n", "merge 2 is not two tokens"},
                                    {"#version: 0.2\na b\nab cd\n", "merge 2 is not of two tokens before it"},
                                    {"a b\na b\n", "merge 2 is there already"},
                                    {"", "has no merges"},
                                    {"a b\na c", "ends within a line"},
                                    {"a \n", "merge 1 is not"},
                                    {" a\n", "merge 1 is not"},
                                    {"a b c\n", "merge 1 is not"},
                                    {"a \xE6\x97\xA5\n", "merge 1 is not"},
                                    {"a \xFF\n", "merge 1 is not"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(path_in(folder, "tokenizer.bpe").s, cases[i][0], strlen(cases[i][0]));
        check_refused(load_folder, folder, cases[i][1]);
    }
    unlink(path_in(folder, "tokenizer.bpe").s);
    const char *const broken[] = {
        "", "bytes", "chars\n", "chars\nba", "chars\naab", "chars\na\xFF", "words\n", "chars 5\nabc"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        write_file(path_in(folder, "tokenizer.txt").s, broken[i], strlen(broken[i]));
        check_refused(load_folder, folder, "tokenizer.txt");
    }
    unlink(path_in(folder, "tokenizer.txt").s);
}

// The tables are of Unicode 16.0, as in tiktoken 0.14: it finds these numbers of characters.
static void test_classes(void) {
    int counts[4] = {0};
    Tokenizer t = {0};
    bpe_begin(&t);
    for (int c = 0; c <= MAX_CHAR; c++) counts[t.char_class[c]]++;
    check(counts[1] == 141028 && counts[2] == 1911 && counts[3] == 25, "%d letters, %d numbers, %d spaces",
          counts[1], counts[2], counts[3]);
    tokenizer_free(&t);
}

// dev/data/tokenize: texts cut into blocks and tokens into shards are the documents' encodings in a row.
static void test_shards(void) {
    const char *parts[] = {" ",  "\n", "abc", "e\xC3\xA9", "'", "s ", "\xE2\x80\x83", "\xFF", end_of_text,
                           "  a"};
    Tokenizer t = {0};
    char *merges, text[2000];
    size_t size, n, count, wrong = 0;
    random_merges(200, 99, &merges, &size);
    Path path = path_in(folder, "merges.txt"), in = path_in(folder, "text"), name = path_in(folder, "shard");
    write_file(path.s, merges, size);
    tokenizer_init(&t, "gpt2", NULL, 0, path.s);
    uint16_t *expected = resize(NULL, 2 * sizeof text);
    for (int round = 0; round < 200; round++) {
        Output o = {.tokenizer = &t, .name = name.s, .shard_tokens = round % 3 ? 1000000 : 17};
        Dataset d = {0};
        size_t all = 0, at = 0;
        text[n = 0] = 0;
        for (uint64_t i = 0; n < random_u64(round, 0) % 1900; i++) {
            const char *part = parts[random_u64(round, i + 1) % (round % 2 ? 10 : 4)];
            n += (size_t)sprintf(text + n, "%s", part);
        }
        write_file(in.s, text, n);
        for (char *p = text, *end; p; p = end ? end + strlen(end_of_text) : NULL) { // a document
            end = strstr(p, end_of_text);
            uint16_t *ids = tokenizer_encode(&t, p, (size_t)((end ? end : text + n) - p), "the text", &count);
            expected[all++] = 456;
            memcpy(expected + all, ids, count * sizeof *ids);
            all += count;
            free(ids);
        }
        put_file(&o, in.s);
        end_shard(&o);
        for (int i = 0; i < o.number; i++) dataset_add_shard(&d, shard_path(&o, i).s);
        for (int i = 0; i < d.num_shards; at += d.shards[i++].count)
            wrong += at + d.shards[i].count > all || d.shards[i].count > o.shard_tokens ||
                memcmp(expected + at, d.shards[i].tokens, 2 * d.shards[i].count);
        wrong += at != all || all != o.total || n != o.bytes;
        for (int i = 0; i < o.number; i++) unlink(shard_path(&o, i).s);
        free(d.shards);
    }
    check(!wrong, "%zu texts are other tokens in shards", wrong);
    unlink(path.s), unlink(in.s);
    free(expected), free(merges);
    tokenizer_free(&t);
}

// ---- GPT-2's own merges

static void test_cases(const Tokenizer *t, const char *path) {
    size_t size, number = 0, count, wrong = 0;
    char *text = read_file(path, &size), *line = text;
    while (*line) {
        Json j = {.text = line, .p = line, .path = path};
        JsonNode string = {0};
        json_string(&j, &string);
        uint16_t *ids = tokenizer_encode(t, string.text, string.length, "the text", &count);
        size_t k = 0;
        int same = 1;
        line = j.p + 1; // the line of tokens
        for (char *end; *line && *line != '\n'; line = end, k++) {
            long id = strtol(line, &end, 10);
            if (end == line) die("%s: case %zu: a token is missing", path, number + 1);
            same &= k < count && ids[k] == id;
        }
        if (!check(same && k == count && there_and_back(t, string.text, string.length), "%s: case %zu: %.60s",
                   path, number + 1, string.text))
            wrong++;
        free(ids);
        line += *line == '\n';
        number++;
    }
    check(number > 0, "%s has no cases", path);
    printf("%s: %zu cases, %zu wrong\n", path, number, wrong);
    free(text);
}

static void test_gpt2(const char *merges) {
    Tokenizer t = {0};
    size_t n = 1 << 20, count;
    tokenizer_init(&t, "gpt2", NULL, 0, merges);
    check(t.vocab_size == 50257, "V = %d, not 50257", t.vocab_size);
    // texts that make slow tokenizers quadratic
    char *text = resize(NULL, n);
    const char kinds[] = "a ?\xE6?'"; // the other two: letters, and any bytes
    for (int k = 0; k < 6; k++) {
        for (size_t i = 0; i < n; i++)
            text[i] = k == 2 ? (char)('a' + random_u64(1, i) % 26) :
                      k == 4 ? (char)random_u64(2, i) : kinds[k];
        double start = now();
        uint16_t *ids = tokenizer_encode(&t, text, n, "the text", &count);
        check(now() - start < 10, "a megabyte of kind %d takes %.1f s", k, now() - start);
        check(there_and_back(&t, text, n), "a megabyte of kind %d does not come back", k);
        free(ids);
    }
    uint16_t *ids = tokenizer_encode(&t, end_of_text, strlen(end_of_text), "the text", &count);
    check(count == 7 && ids[0] == 27, "<|endoftext|> in a text is not ordinary text");
    const char *token = tokenizer_token(&t, 50256, &n);
    check(n == 13 && !memcmp(token, "<|endoftext|>", 13), "token 50256 is not <|endoftext|>");
    check_saved(&t, "Hello world, it's 2024!\n\n  x", 28, "gpt2");
    free(text), free(ids);
    tokenizer_free(&t);
}

static void speed(const char *merges, const char *path) {
    Tokenizer t = {0};
    size_t n, count = 0;
    double best = INFINITY;
    char *text = read_file(path, &n);
    tokenizer_init(&t, "gpt2", NULL, 0, merges);
    for (int i = 0; i < 5; i++) {
        double start = now();
        free(tokenizer_encode(&t, text, n, "the text", &count));
        best = fmin(best, now() - start);
    }
    printf("%s: %zu bytes, %zu tokens, %.1f MB/s\n", path, n, count, (double)n / best * 1e-6);
    free(text);
    tokenizer_free(&t);
}

// The pieces of GPT-2's pattern, and the tokens of single bytes, for which no merges are needed.
static void test_pieces(void) {
    const char text[] = "It's we'll they're I've I'm he'd don't  x\n\n 12abc?! a'b ";
    const char expected[] = "It|'s| we|'ll| they|'re| I|'ve| I|'m| he|'d| don|'t| | x|\n\n| 12|abc|?!| a|'|b| |";
    const struct { char byte; uint32_t id; } bytes[] = {
        {'!', 0}, {'a', 64}, {'\xA1', 94}, {'\xAE', 106}, {0, 188}, {'\n', 198}, {' ', 220}, {'\x7F', 221},
        {'\xA0', 254}, {'\xAD', 255}};
    char pieces[200];
    size_t n = 0;
    Tokenizer t = {0};
    bpe_begin(&t);
    for (const char *p = text, *end = text + sizeof text - 1, *next; p < end; p = next) {
        next = piece_end(&t, p, end);
        n += (size_t)sprintf(pieces + n, "%.*s|", (int)(next - p), p);
    }
    check(!strcmp(pieces, expected), "a text is cut into %s", pieces);
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        uint32_t id = find_token(&t, &bytes[i].byte, 1);
        check(id == bytes[i].id, "byte %d is token %u, not %u", bytes[i].byte, id, bytes[i].id);
    }
    tokenizer_free(&t);
}

int main(int argc, char **argv) {
    const char *merges = getenv("GPT2_MERGES");
    int first = 1, timed = 0;
    if (first + 1 < argc && !strcmp(argv[first], "--merges")) merges = argv[first + 1], first += 2;
    if (first + 1 < argc && !strcmp(argv[first], "--speed")) timed = 1, first++;
    if (timed && !merges) die("--speed needs --merges vocab.bpe");
    for (int i = first; timed && i < argc; i++) speed(merges, argv[i]);
    if (timed) return 0;
    if (!mkdtemp(folder)) die("cannot make %s", folder);
    test_bytes_and_chars();
    test_pieces();
    test_byte_pairs();
    test_shards();
    test_broken_merges();
    test_classes();
    if (merges && *merges) {
        Tokenizer t = {0};
        test_gpt2(merges);
        tokenizer_init(&t, "gpt2", NULL, 0, merges);
        for (int i = first; i < argc; i++) test_cases(&t, argv[i]);
        if (first >= argc) test_cases(&t, "test/golden/bpe_cases.txt");
        tokenizer_free(&t);
    } else {
        printf("skipped: two tests need GPT-2's merges; give --merges vocab.bpe or set GPT2_MERGES\n");
        skipped += 2;
    }
    rmdir(folder);
    return finish();
}
