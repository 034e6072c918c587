// Readers of files for test_files.c and dev/fuzz.c, as caught.h and forked.h call them, with a path.
// They abort where what was read cannot be. Included after train_gpt2.c.

static void load_model(void *path) {
    GPT2 m;
    gpt2_load(&m, path);
    for (size_t i = 0; i < m.num_parameters; i++)
        if (!isfinite(m.params_memory[i])) abort();
}

static void load_tokenizer(void *path) {
    Tokenizer t = {0};
    size_t count, length, at = 0;
    if (!tokenizer_load(&t, path)) abort();
    const char *text = t.kind == TOKENIZER_CHARS ? t.text : "hello world, it's\n\n  1 \xC3\xA9\xFF";
    size_t n = t.kind == TOKENIZER_CHARS ? t.text_size : strlen(text);
    uint16_t *ids = tokenizer_encode(&t, text, n, "the text", &count);
    for (size_t i = 0; i < count; i++, at += length) {
        const char *token = tokenizer_token(&t, ids[i], &length);
        if (at + length > n || memcmp(token, text + at, length)) abort();
    }
    if (at != n) abort();
}

static void load_shard(void *path) {
    Dataset d = {0};
    uint16_t x[16], y[16];
    dataset_add_shard(&d, path);
    check_dataset(&d, "shard", 1 << 16, 8);
    DataLoader l = {&d, 8, 1, 0, 0};
    for (int i = 0; i < 20; i++) loader_next(&l, x, y, 2);
}

static void load_losses(void *path) {
    const Dataset d = {.hash = 7};
    const DataLoader l = {&d, 8, 1337, 0, 0};
    const Tokenizer t = {0};
    TeacherCache c = {0};
    cache_open(&c, path, "a teacher", &l, &t, 2, 1, 30);
    for (int i = 0; i < 30; i++)
        if (isinf(c.loss[i]) || c.loss[i] < 0) abort();
}
