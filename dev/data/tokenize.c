/* Text into llm.c's token shards, by GPT-2's byte-pair encoding: what `train_gpt2 --data 'NAME_*.bin'` reads
without tokenizing anything, however large the text.

    dev/data/tokenize --merges vocab.bpe --out NAME [--shard-tokens 100000000] TEXT...

writes NAME_000000.bin, NAME_000001.bin, .. Each text is a document, and so is what follows a <|endoftext|> in
one; each begins with that token. A text is read a block at a time, of 16 MB, cut where the encoding of what
stands before cannot depend on what comes behind. dev/data/gpt2.sh fetches vocab.bpe. */
#define _GNU_SOURCE // memmem
#define TRAIN_GPT2_NO_MAIN
#include "../../train_gpt2.c"

#ifndef BLOCK_BYTES
#define BLOCK_BYTES (16 << 20)
#endif

typedef struct {
    const Tokenizer *tokenizer;
    const char *name;     // of the shards
    size_t shard_tokens;  // at most, in one
    FILE *shard;          // being written, or NULL
    int number;           // of shards begun
    size_t in_shard, total;
    size_t bytes, all_bytes; // of text: encoded, and all there is; 0 where it is not known
    double began, shown;
} Output;

static Path shard_path(const Output *o, int number) {
    Path p = path_in(o->name, "");
    snprintf(p.s, sizeof p.s, "%s_%06d.bin", o->name, number);
    return p;
}

// Some of the shards would look like all of them: whoever exits before the last is done leaves none.
static Output *unended;
static void drop_shards(void) {
    for (int k = 0; unended && k < unended->number; k++) unlink(shard_path(unended, k).s);
}

// Gives the shard its header, which has the count, and its name.
static void end_shard(Output *o) {
    int32_t header[256] = {20240520, 1, (int32_t)o->in_shard};
    if (!o->shard) return;
    if (fseeko(o->shard, 0, SEEK_SET)) write_failed(unfinished_file);
    write_bytes(o->shard, header, sizeof header);
    write_commit(o->shard, shard_path(o, o->number - 1).s);
    o->shard = NULL;
}

static void put_tokens(Output *o, const uint16_t *tokens, size_t count) {
    for (size_t n; count; tokens += n, count -= n, o->in_shard += n, o->total += n) {
        if (o->shard && o->in_shard == o->shard_tokens) end_shard(o);
        if (!o->shard) {
            o->shard = write_begin(shard_path(o, o->number++).s);
            o->in_shard = 0;
            write_bytes(o->shard, (char[1024]){0}, 1024);
        }
        n = MIN(count, o->shard_tokens - o->in_shard);
        write_bytes(o->shard, tokens, n * sizeof *tokens);
    }
}

static void put_text(Output *o, const char *text, size_t n) {
    size_t count;
    uint16_t *tokens = tokenizer_encode(o->tokenizer, text, n, "the text", &count);
    put_tokens(o, tokens, count);
    free(tokens);
}

static void show(Output *o, int last) {
    double seconds = now() - o->began;
    int terminal = can_clear(stderr);
    if (!last && (!terminal || now() - o->shown < 0.2)) return;
    o->shown = now();
    fprintf(stderr, "%s%zu MB", terminal ? "\r\033[K" : "", o->bytes / 1000000);
    if (o->all_bytes && !last) fprintf(stderr, " of %zu", o->all_bytes / 1000000);
    fprintf(stderr, ", %zu tokens, %.1f MB/s", o->total, (double)o->bytes / 1e6 / seconds);
    if (last) fputc('\n', stderr);
}

// Where the text may be cut: before white space that follows another character. No piece of the encoding's
// reaches across (chapter 7 of train_gpt2.c): white space begins a piece, or is the one space that opens a
// word, and never ends one that began with something else. 0: nowhere.
static size_t last_cut(const Tokenizer *t, const char *text, size_t n) {
    int length;
    for (size_t i = n; i-- > 1;) {
        if (text[i] != ' ' && text[i] != '\n' && text[i] != '\r') continue;
        size_t p = i - 1;
        while (p > 0 && i - p < 4 && (text[p] & 0xC0) == 0x80) p--; // to the character's first byte
        if (class_at(t, text + p, text + i, &length) != 3 && p + length == i) return i;
    }
    return 0;
}

static void put_file(Output *o, const char *path) {
    const uint16_t end_token = (uint16_t)(o->tokenizer->vocab_size - 1);
    size_t size, length = strlen(end_of_text), room = BLOCK_BYTES, n = 0, got, cut;
    FILE *f = open_file(path, &size);
    char *block = resize(NULL, room);
    put_tokens(o, &end_token, 1);
    do {
        got = fread(block + n, 1, room - n, f);
        n += got;
        cut = got && n == room ? last_cut(o->tokenizer, block, n) : n; // the text's end is a cut, too
        char *p = block, *end = block + cut, *next;
        for (; (next = memmem(p, (size_t)(end - p), end_of_text, length)); p = next + length) {
            put_text(o, p, (size_t)(next - p));
            put_tokens(o, &end_token, 1);
        }
        put_text(o, p, (size_t)(end - p));
        o->bytes += cut;
        memmove(block, end, n -= cut);
        if (cut == 0 && got) block = resize(block, room *= 2); // one long word so far
        show(o, 0);
        if (interrupted) die("stopped: no shards stay; the same command begins again");
    } while (got);
    if (ferror(f)) die("cannot read %s: %s", path, strerror(errno));
    fclose(f);
    free(block);
}

int main(int argc, char **argv) {
    Tokenizer tokenizer = {0};
    Output o = {.tokenizer = &tokenizer, .shard_tokens = 100000000};
    const char *merges = NULL;
    int i = 1;
    guard_files();
    for (; i < argc && !strncmp(argv[i], "--", 2); i += 2) {
        const char *name = argv[i] + 2, *value = argv[i + 1];
        if (!strcmp(name, "help")) {
            printf("dev/data/tokenize --merges vocab.bpe --out NAME [--shard-tokens N] TEXT...\n"
                   "writes llm.c's token shards NAME_000000.bin, .., of N tokens (100000000);\n"
                   "each text is a document\n");
            return 0;
        }
        if (!value) die_usage("--%s needs a value; see --help", name);
        if (!strcmp(name, "merges")) merges = value;
        else if (!strcmp(name, "out")) o.name = value;
        else if (!strcmp(name, "shard-tokens")) {
            double tokens = parse_number(name, value, 1);
            if (tokens < 1 || tokens > INT32_MAX) die_usage("--shard-tokens takes 1 to %d", INT32_MAX);
            o.shard_tokens = (size_t)tokens;
        } else die_usage("--%s is no option; see --help", name);
    }
    if (!merges || !o.name || i == argc) die_usage("--merges, --out and a text are needed; see --help");
    tokenizer_init(&tokenizer, "gpt2", NULL, 0, merges);
    glob_t there;
    char pattern[2 * sizeof(Path) + 20], *p = pattern;
    path_in(o.name, "000000.bin"); // dies where it is too long
    for (const char *c = o.name; *c; *p++ = *c++)
        if (strchr("*?[]\\", *c)) *p++ = '\\';
    strcpy(p, "_[0-9]*.bin");
    if (!glob(pattern, 0, NULL, &there))
        die("%s is there already; remove these shards, or choose another --out", there.gl_pathv[0]);
    make_folder(folder_of(o.name).s);
    int pipes = 0;
    for (int k = i; k < argc; k++) { // all of them can be opened, before anything is written
        size_t size;
        struct stat s;
        if (!stat(argv[k], &s) && S_ISFIFO(s.st_mode)) pipes = 1; // whose writer would see it closed again
        else fclose(open_file(argv[k], &size)), o.all_bytes += size;
    }
    if (pipes) o.all_bytes = 0;
    o.began = now();
    unended = &o, atexit(drop_shards);
    catch_signals();
    for (; i < argc; i++) put_file(&o, argv[i]);
    end_shard(&o);
    unended = NULL;
    show(&o, 1);
    printf("%zu tokens of %zu bytes in %d shards, from %s on\n", o.total, o.bytes, o.number,
           shard_path(&o, 0).s);
    tokenizer_free(&tokenizer);
    check_printed();
    return 0;
}
