/* libFuzzer targets for what reads files, one for each -DFUZZ_..:

    MODEL, SAFETENSORS, CONFIG     llm.c's .bin; a Hugging Face folder's model.safetensors and config.json
    MERGES, TOKENIZER              vocab.bpe; tokenizer.txt and tokenizer.json
    STATE                          a run's checkpoint
    SHARD, LOSSES                  token shards; the file of --teacher-cache
    LIBSVM                         what dev/convex reads

    clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DFUZZ_MODEL \
        dev/fuzz.c -o dev/fuzz_model -lm
    mkdir dev/fuzz_corpus
    ASAN_OPTIONS=detect_leaks=0 dev/fuzz_model -max_total_time=600 -timeout=10 dev/fuzz_corpus

The corpus is given a good file to start from. What the C library allocates itself (getline) is not seen by
test/caught.h and leaks. */
#include "../test/caught.h"
#define TRAIN_GPT2_NO_MAIN
#pragma GCC diagnostic ignored "-Wunused-function"
#ifdef FUZZ_LIBSVM
#define main convex_main
#include "convex.c"
#undef main
#include <sys/stat.h>
#else
#include "../train_gpt2.c"
#include "../test/readers.h"
#endif

static char folder[32]; // holds the file in question, and what else its reader wants

static void put(const char *dir, const char *name, const void *bytes, size_t n) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
}

#ifndef FUZZ_LIBSVM
static const GPT2Config tiny = {
    .max_seq_len = 3, .vocab_size = 5, .num_layers = 1, .num_heads = 1, .channels = 2};

static GPT2 tiny_model(void) {
    GPT2 m;
    gpt2_allocate(&m, tiny);
    for (size_t i = 0; i < m.num_parameters; i++) m.params_memory[i] = (float)i;
    return m;
}
#endif

// FILE_NAME is what is damaged; write_first puts a good one, and what its reader needs beside it, into the
// folder; READER is what a program does with it, and with what it is called.
#if defined(FUZZ_MODEL) || defined(FUZZ_SAFETENSORS) || defined(FUZZ_CONFIG)
#if defined(FUZZ_MODEL)
#define FILE_NAME "model.bin"
#elif defined(FUZZ_SAFETENSORS)
#define FILE_NAME "model.safetensors"
#else
#define FILE_NAME "config.json"
#endif
static void write_first(void) {
    GPT2 m = tiny_model();
    gpt2_export_hf(tiny, m.params_memory, &(Tokenizer){0}, folder);
    if (!strcmp(FILE_NAME, "model.bin")) gpt2_save(tiny, m.params_memory, path_in(folder, FILE_NAME).s);
}
#define READER load_model, folder

#elif defined(FUZZ_MERGES) || defined(FUZZ_TOKENIZER)
#ifdef FUZZ_MERGES
#define FILE_NAME "tokenizer.bpe"
static const char first[] =
    "#version: 0.2\nh e\nl l\nhe ll\n\xC4\xA0 w\no r\n\xC4\xA0w or\n\xC3\xA9 \xC4\x8A\n\" \\\n";
#else
#define FILE_NAME "tokenizer.txt"
#define OTHER_NAME "tokenizer.json" // of inputs that begin with {
static const char first[] = "chars\nabc\xC3\xA9\xE6\x97\xA5";
static const char second[] =
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"he\": 256}, \"merges\": [\"h e\", [\"l\", \"l\"]]}, "
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\"}}";
#endif
static void write_first(void) { put(folder, FILE_NAME, first, strlen(first)); }
#define READER load_tokenizer, folder

#elif defined(FUZZ_STATE)
#define FILE_NAME "state.bin"
static Run run;
static void write_first(void) {
    run.options.out = folder;
    run.identity = "steps 5\nseed 7\n";
    run.model = tiny_model();
    optim_init(&run.optimizer, "adamw");
    start_optimizer(&run.optimizer, &run.model, "");
    save_state(&run);
}
static void resume(void *of) {
    if (!load_state(of)) abort();
}
#define READER resume, &run

#elif defined(FUZZ_SHARD)
#define FILE_NAME "shard.bin"
static void write_first(void) {
    int32_t shard[256 + 20] = {20240520, 1, 40};
    for (int i = 0; i < 40; i++) ((uint16_t *)(shard + 256))[i] = (uint16_t)(i % 9);
    put(folder, FILE_NAME, shard, sizeof shard);
}
#define READER load_shard, path_in(folder, FILE_NAME).s

#elif defined(FUZZ_LOSSES)
#define FILE_NAME "losses"
static void write_first(void) {
    const char text[] = CACHE_TITLE "a teacher\ndata 0000000000000007\n"
        "order seed 1337, seq-len 8, batch 2, accumulate 1\n# \"the texts\"\n1 4.25\n2 3.5e0\n7 0\n";
    put(folder, FILE_NAME, text, strlen(text));
}
#define READER load_losses, path_in(folder, FILE_NAME).s

#elif defined(FUZZ_LIBSVM)
#define FILE_NAME "data.svm"
static void write_first(void) {
    const char text[] = "+1 1:0.5 3:-2e0 1000:1\n-1 2:1 # a remark\n+1 3:4 17:0.25\n";
    put(folder, FILE_NAME, text, strlen(text));
}
static void load(void *in) {
    char path[100];
    snprintf(path, sizeof path, "%s/%s", (char *)in, FILE_NAME);
    Data d = data_read(path);
    for (size_t k = 0; k < d.row_start[d.rows]; k++)
        if (d.col[k] < 0 || d.col[k] >= d.cols || d.row[k] < 0 || d.row[k] >= d.rows) abort();
    data_free(&d);
}
#define READER load, folder
#else
#error "define one of the FUZZ_.. at the top of the file"
#endif
#ifndef OTHER_NAME
#define OTHER_NAME FILE_NAME
#endif

static void remove_folder(void) {
    const char *names[] = {FILE_NAME, OTHER_NAME, "model.safetensors", "config.json",
                           "generation_config.json"};
    char path[100];
    for (int i = 0; i < 5; i++) snprintf(path, sizeof path, "%s/%s", folder, names[i]), unlink(path);
    rmdir(folder);
}

// Makes the folder, and the first file of the corpus, which is the first folder of the command line.
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    struct stat s;
    strcpy(folder, access("/dev/shm", W_OK) ? "/tmp/fuzz_XXXXXX" : "/dev/shm/fuzz_XXXXXX");
    if (!mkdtemp(folder) || atexit(remove_folder)) abort();
    write_first();
    for (int i = 1; i < *argc; i++) {
        char path[100], bytes[1 << 16];
        if (stat((*argv)[i], &s) || !S_ISDIR(s.st_mode)) continue;
        snprintf(path, sizeof path, "%s/%s", folder, FILE_NAME);
        FILE *f = fopen(path, "rb");
        put((*argv)[i], "first", bytes, fread(bytes, 1, sizeof bytes, f));
        fclose(f);
#ifdef FUZZ_TOKENIZER
        put((*argv)[i], "second", second, strlen(second));
#endif
        break;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char error[600], path[100];
    const char *name = size && data[0] == '{' ? OTHER_NAME : FILE_NAME;
    put(folder, name, data, size);
    caught(READER, error, sizeof error);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (strcmp(FILE_NAME, OTHER_NAME)) unlink(path);
    return 0;
}
