/* libFuzzer targets for what reads files: FUZZ_MODEL (llm.c's .bin), FUZZ_SAFETENSORS, FUZZ_CONFIG
(config.json), FUZZ_MERGES (vocab.bpe), FUZZ_TOKENIZER (tokenizer.txt and tokenizer.json).

    clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DFUZZ_MODEL \
        dev/fuzz.c -o fuzz_model -lm
    mkdir -p corpus_model && ./fuzz_model -max_total_time=600 -timeout=10 -malloc_limit_mb=256 corpus_model

The corpus is given a good file to start from. die() ends a program by exit(1): here exit jumps back, and what
the reader had allocated and opened by then is released. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_OWNED 4096
static void *owned[MAX_OWNED]; // allocations of the reader that is running
static FILE *opened[64];
static jmp_buf after_exit;
static FILE *nowhere; // its stderr

static void own(void *p) {
    int i = 0;
    while (i < MAX_OWNED && owned[i]) i++;
    if (i == MAX_OWNED) abort();
    owned[i] = p;
}

static void disown(void *p) {
    for (int i = 0; i < MAX_OWNED; i++)
        if (owned[i] == p) owned[i] = NULL;
}

static void *own_realloc(void *p, size_t n) {
    if (p) disown(p);
    own(p = realloc(p, n));
    return p;
}

static int own_memalign(void **p, size_t alignment, size_t n) {
    int error = posix_memalign(p, alignment, n);
    if (!error) own(*p);
    return error;
}

static void own_free(void *p) {
    if (p) disown(p);
    free(p);
}

static FILE *own_fopen(const char *path, const char *mode) {
    int i = 0;
    while (opened[i]) i++;
    return opened[i] = fopen(path, mode);
}

static int own_fclose(FILE *f) {
    for (int i = 0; i < 64; i++)
        if (opened[i] == f) opened[i] = NULL;
    return fclose(f);
}

__attribute__((noreturn)) static void own_exit(int code) { longjmp(after_exit, code); }

static void release(void) {
    for (int i = 0; i < MAX_OWNED; i++) free(owned[i]), owned[i] = NULL;
    for (int i = 0; i < 64; i++)
        if (opened[i]) fclose(opened[i]), opened[i] = NULL;
}

#undef stderr
#define stderr nowhere
#define realloc own_realloc
#define posix_memalign own_memalign
#define free own_free
#define fopen own_fopen
#define fclose own_fclose
#define exit own_exit
#define TRAIN_GPT2_NO_MAIN
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../train_gpt2.c"

#if defined(FUZZ_MODEL)
#define FILE_NAME "model.bin"
#elif defined(FUZZ_SAFETENSORS)
#define FILE_NAME "model.safetensors"
#elif defined(FUZZ_CONFIG)
#define FILE_NAME "config.json"
#elif defined(FUZZ_MERGES)
#define FILE_NAME "tokenizer.bpe"
#elif defined(FUZZ_TOKENIZER)
#define FILE_NAME "tokenizer.txt"
#else
#error "define FUZZ_MODEL, FUZZ_SAFETENSORS, FUZZ_CONFIG, FUZZ_MERGES or FUZZ_TOKENIZER"
#endif

static char folder[32]; // holds the file in question, and what else its reader wants

static void put(const char *dir, const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(path_in(dir, name).s, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
}

static void remove_folder(void) {
    const char *names[] = {"model.bin", "model.safetensors", "config.json", "generation_config.json",
                           "tokenizer.bpe", "tokenizer.txt", "tokenizer.json"};
    for (int i = 0; i < 7; i++) unlink(path_in(folder, names[i]).s);
    rmdir(folder);
}

// Makes the folder, and the first file of a corpus.
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const GPT2Config g = {.max_seq_len = 3, .vocab_size = 5, .num_layers = 1, .num_heads = 1, .channels = 2};
    const char merges[] =
        "#version: 0.2\nh e\nl l\nhe ll\n\xC4\xA0 w\no r\n\xC4\xA0w or\n\xC3\xA9 \xC4\x8A\n\" \\\n";
    const char json[] =
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"he\": 256}, \"merges\": [\"h e\", [\"l\", \"l\"]]}, "
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\"}}";
    const char characters[] = "chars\nabc\xC3\xA9\xE6\x97\xA5";
    GPT2 m;
    size_t n;
    nowhere = fopen("/dev/null", "w");
    memset(opened, 0, sizeof opened); // that one stays open
    strcpy(folder, file_exists("/dev/shm") ? "/dev/shm/fuzz_XXXXXX" : "/tmp/fuzz_XXXXXX");
    if (!nowhere || !mkdtemp(folder) || atexit(remove_folder)) abort();
    gpt2_allocate(&m, g);
    for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] = (float)i;
    Path model = path_in(folder, "first.bin");
    gpt2_save(g, m.params_memory, model.s);
    gpt2_export_hf(g, m.params_memory, NULL, folder);
    put(folder, "tokenizer.bpe", merges, strlen(merges));
    put(folder, "tokenizer.txt", characters, strlen(characters));
    char *first = read_file(strcmp(FILE_NAME, "model.bin") ? path_in(folder, FILE_NAME).s : model.s, &n);
    for (int i = 1; i < *argc; i++)
        if (is_folder((*argv)[i])) {
            put((*argv)[i], "first", first, n);
#ifdef FUZZ_TOKENIZER
            put((*argv)[i], "second", json, strlen(json));
#endif
            break;
        }
    unlink(model.s);
    unlink(path_in(folder, "tokenizer.bpe").s);
    unlink(path_in(folder, "tokenizer.txt").s);
    (void)json;
    release();
    return 0;
}

static void read_it(void) {
#if defined(FUZZ_MERGES) || defined(FUZZ_TOKENIZER)
    Tokenizer t = {0};
    size_t count, length, at = 0;
    if (!tokenizer_load(&t, folder)) abort();
    const char *text = t.kind == TOKENIZER_CHARS ? t.text : "hello world, it's\n\n  1 \xC3\xA9\xFF";
    size_t n = t.kind == TOKENIZER_CHARS ? t.text_size : strlen(text);
    uint16_t *ids = tokenizer_encode(&t, text, n, &count);
    for (size_t i = 0; i < count; i++, at += length) {
        const char *token = tokenizer_token(&t, ids[i], &length);
        if (at + length > n || memcmp(token, text + at, length)) abort();
    }
    if (at != n) abort();
#else
    GPT2 m;
    gpt2_load(&m, folder);
    for (size_t i = 0; i < m.num_parameters; i++)
        if (!isfinite(m.params_memory[i])) abort();
#endif
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *name = FILE_NAME;
#ifdef FUZZ_TOKENIZER
    if (size && data[0] == '{') name = "tokenizer.json";
#endif
    put(folder, name, data, size);
    if (!setjmp(after_exit)) read_it();
    release();
    if (strcmp(name, FILE_NAME)) unlink(path_in(folder, name).s);
#ifdef FUZZ_TOKENIZER
    unlink(path_in(folder, FILE_NAME).s);
#endif
    return 0;
}
