// Model and tokenizer files: read, written, and refused where they lie.
//   ./test/test_files [--mutations N] [GOLDEN_DIR]       N (300) damaged files of each format
//   ./test/test_files --export DIR [MERGES]              for test_transformers.py: folders, texts, logits
//   ./test/test_files --logits MODEL IDS OUT             the logits of int32 tokens
#include "caught.h"
#define TRAIN_GPT2_NO_MAIN
#include "../train_gpt2.c"
#include "check.h"
#include "forked.h"
#include "damaged.h"
#include "readers.h"

static char folder[64] = "/tmp/test_files_XXXXXX";

static Path in_test(const char *name) { return path_in(folder, name); }

static void put(const char *name, const void *bytes, size_t n) {
    Path path = in_test(name);
    FILE *f = fopen(path.s, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) die("cannot write %s: %s", path.s, strerror(errno));
}

static void remove_folder(const char *path) {
    glob_t g;
    if (!glob(path_in(path, "*").s, 0, NULL, &g))
        for (size_t i = 0; i < g.gl_pathc; i++) {
            if (is_folder(g.gl_pathv[i])) remove_folder(g.gl_pathv[i]);
            else unlink(g.gl_pathv[i]);
        }
    globfree(&g);
    rmdir(path);
}

// ---- models that the tests write themselves

static const GPT2Config small = {
    .max_seq_len = 8, .vocab_size = 20, .num_layers = 2, .num_heads = 2, .channels = 8};

// Weights that each of the number formats holds exactly.
static float *exact_weights(void) {
    size_t n = count_parameters(small);
    float *x = allocate_floats(n);
    for (size_t i = 0; i < n; i++) x[i] = ((float)(random_u64(1, i) % 257) - 128) / 64;
    return x;
}

// x as float32, float16 or bfloat16, for numbers that need no rounding.
static void number_to_bytes(unsigned char *out, float x, NumberType type) {
    union { float f; uint32_t u; } bits = {.f = x};
    uint32_t half = bits.u >> 16, exponent = isinf(x) ? 31 : x != 0 ? (bits.u >> 23 & 255) - 112 : 0;
    if (type == F16) half = (bits.u >> 16 & 0x8000) | exponent << 10 | (bits.u >> 13 & 1023);
    if (type == F32) memcpy(out, &bits, 4);
    else out[0] = half & 255, out[1] = half >> 8;
}

// What a folder of Hugging Face's may look like.
typedef struct {
    NumberType type;
    const char *prefix;      // of names: "transformer." or ""
    int masks;               // with the causal masks of old files
    int lm_head;             // with lm_head.weight beside wte
    int parts;               // 1: model.safetensors; more: parts with an index
    const char *skip, *edit; // a tensor to leave out; one to spoil:
    const char *dtype, *shape;
    long begin, end;         // added to its data_offsets
} Layout;

static const char config_text[] =
    "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"],\n"
    "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, \"n_ctx\": 8,\n"
    "\"n_positions\": 8, \"vocab_size\": 20, \"n_embd\": 8, \"n_head\": 2, \"n_layer\": 2, \"n_inner\": null,\n"
    "\"tie_word_embeddings\": true, \"attn_pdrop\": 0.1,\n"
    "\"task_specific_params\": {\"text-generation\": {\"do_sample\": true, \"max_length\": 50}}}\n";

static void write_hf(const char *name, const float *params, Layout o) {
    Path dir = in_test(name);
    char *index, path[200];
    size_t index_size;
    FILE *list = open_memstream(&index, &index_size);
    make_folder(dir.s);
    snprintf(path, sizeof path, "%s/config.json", name);
    put(path, config_text, strlen(config_text));
    fprintf(list, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    const char *types[] = {"F32", "F16", "BF16"};
    size_t width = o.type == F32 ? 4 : 2, entries = 0;
    for (int part = 0; part < MAX(o.parts, 1); part++) {
        char *header, *body, file[100], tensor[100];
        size_t header_size, body_size, at = 0;
        const float *x = params;
        FILE *h = open_memstream(&header, &header_size), *b = open_memstream(&body, &body_size);
        if (o.parts > 1) snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", part + 1, o.parts);
        else snprintf(file, sizeof file, "model.safetensors");
        fprintf(h, "{\"__metadata__\": {\"format\": \"pt\"}");
        for (int i = 0; i < NUM_TENSORS; i++) {
            TensorShape t = tensor_shape(small, i);
            for (int l = 0; l < MAX(t.layers, 1); l++, x += layer_size(t)) {
                snprintf(tensor, sizeof tensor, t.hf_name, l);
                if ((i + l) % MAX(o.parts, 1) != part || (o.skip && !strcmp(o.skip, tensor))) continue;
                int spoil = o.edit && !strcmp(o.edit, tensor), linear = t.layers && t.cols;
                char shape[40];
                if (!t.cols) snprintf(shape, sizeof shape, "%d", t.rows);
                else if (linear) snprintf(shape, sizeof shape, "%d, %d", t.cols, t.rows);
                else snprintf(shape, sizeof shape, "%d, %d", t.rows, t.cols);
                fprintf(h, ", \"%s%s\": {\"dtype\": \"%s\", \"shape\": [%s], \"data_offsets\": [%ld, %ld]}",
                        o.prefix, tensor,
                        spoil && o.dtype ? o.dtype : types[o.type],
                        spoil && o.shape ? o.shape : shape, (long)at + spoil * o.begin,
                        (long)(at + layer_size(t) * width) + spoil * o.end);
                fprintf(list, "%s\"%s%s\": \"%s\"", entries++ ? ", " : "", o.prefix, tensor, file);
                at += layer_size(t) * width;
                for (size_t k = 0; k < layer_size(t); k++) {
                    unsigned char bytes[4];
                    size_t from = linear ? k % (size_t)t.rows * t.cols + k / (size_t)t.rows : k;
                    number_to_bytes(bytes, x[from], o.type);
                    fwrite(bytes, 1, width, b);
                }
            }
        }
        if (o.masks && part == 0)
            fprintf(h,
                    ", \"%sh.0.attn.bias\": {\"dtype\": \"BOOL\", \"shape\": [1, 1, 8, 8],"
                    " \"data_offsets\": [0, 64]}, \"%sh.1.attn.masked_bias\": {\"dtype\": \"F32\","
                    " \"shape\": [], \"data_offsets\": [0, 4]}",
                    o.prefix, o.prefix);
        if (o.lm_head && part == 0)
            fputs(", \"lm_head.weight\": {\"dtype\": \"F32\", \"shape\": [20, 8], \"data_offsets\": [0, 640]}",
                  h);
        fputs("}", h);
        fclose(h), fclose(b);
        snprintf(path, sizeof path, "%s/%s", name, file);
        FILE *f = fopen(in_test(path).s, "wb");
        if (!f || fwrite(&(uint64_t){header_size}, 8, 1, f) != 1 ||
            fwrite(header, 1, header_size, f) != header_size || fwrite(body, 1, body_size, f) != body_size ||
            fclose(f))
            die("cannot write %s", path);
        free(header), free(body);
    }
    fputs("}}", list);
    fclose(list);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", name);
    if (o.parts > 1) put(path, index, index_size);
    free(index);
}

// llm.c's file, float32 or bfloat16, its wte padded to Vp rows with numbers that must not be read.
static void write_llmc(const char *name, const float *params, int version, int Vp) {
    int32_t header[256] = {MODEL_MAGIC, version, small.max_seq_len, small.vocab_size,
                           small.num_layers, small.num_heads, small.channels, Vp};
    FILE *f = fopen(in_test(name).s, "wb");
    if (!f) die("cannot write %s", name);
    fwrite(header, 4, 256, f);
    size_t wte = (size_t)small.vocab_size * small.channels, n = count_parameters(small);
    for (size_t i = 0; i < n + (size_t)(Vp - small.vocab_size) * small.channels; i++) {
        unsigned char bytes[4];
        size_t pad = (size_t)(Vp - small.vocab_size) * small.channels;
        float x = i < wte ? params[i] : i < wte + pad ? 7.0f : params[i - pad];
        number_to_bytes(bytes, x, version == 3 ? F32 : BF16);
        fwrite(bytes, 1, version == 3 ? 4 : 2, f);
    }
    fclose(f);
}

static void check_params(const char *path, const float *params, GPT2Config g, const char *what) {
    GPT2 m;
    gpt2_load(&m, path);
    check(!memcmp(&m.config, &g, sizeof g) &&
              !memcmp(m.params_memory, params, m.num_parameters * sizeof(float)),
          "%s: other weights than were written", what);
    gpt2_free(&m);
}

// ---- reading and writing

static void test_golden(const char *dir) {
    GPT2 m;
    Path bin = path_in(dir, "model.bin"), copy = in_test("copy.bin");
    size_t n, k;
    gpt2_load(&m, bin.s);
    check_params(path_in(dir, "hf").s, m.params_memory, m.config, "the golden's Hugging Face folder");
    check_params(dir, m.params_memory, m.config, "a folder with a model.bin");
    gpt2_save(m.config, m.params_memory, copy.s);
    char *a = read_file(bin.s, &n), *b = read_file(copy.s, &k);
    check(n == k && !memcmp(a, b, n), "model.bin is not written as it was read");
    gpt2_export_hf(m.config, m.params_memory, &(Tokenizer){0}, in_test("export").s);
    check_params(in_test("export").s, m.params_memory, m.config, "an exported folder");
    free(a), free(b);
    gpt2_free(&m);
}

static void test_variants(const float *params) {
    write_llmc("v3.bin", params, 3, 20);
    check_params(in_test("v3.bin").s, params, small, "version 3 without padding");
    write_llmc("v3.bin", params, 3, 128);
    check_params(in_test("v3.bin").s, params, small, "version 3");
    write_llmc("v5.bin", params, 5, 23);
    check_params(in_test("v5.bin").s, params, small, "version 5");
    for (int i = 0; i < 24; i++) {
        Layout o = {.type = i % 3, .prefix = i / 3 % 2 ? "transformer." : "", .parts = i / 6 % 2 ? 3 : 1,
                    .masks = i / 12, .lm_head = i / 12};
        char name[40];
        snprintf(name, sizeof name, "variant%d", i);
        write_hf(name, params, o);
        check_params(in_test(name).s, params, small, name);
    }
    // float16's corners, in a layer norm's bias
    const uint16_t halves[8] = {0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0x8000, 0x3C00, 0xC000};
    const float floats[8] = {0x1p-24f, -0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f, 65504, -0.0f, 1, -2};
    float out[8];
    put("halves", halves, sizeof halves);
    FILE *f = fopen(in_test("halves").s, "rb");
    read_floats(f, out, 8, F16, "halves", "x");
    check(!memcmp(out, floats, sizeof out), "float16's corners");
    fclose(f);
}

// A student's layers are the teacher's, evenly spaced: for 6 of 12, DistilGPT-2's.
static void test_students(const float *params) {
    const int distilgpt2[6] = {0, 2, 4, 7, 9, 11};
    for (int l = 0; l < 6; l++)
        check(layer_of_teacher(l, 6, 12) == distilgpt2[l], "layer %d of 6 is %d of 12", l,
              layer_of_teacher(l, 6, 12));
    int wrong = 0;
    for (int L = 1; L < 50; L++)
        for (int N = 1; N <= L; N++)
            for (int l = 0; l < N; l++) {
                int from = layer_of_teacher(l, N, L), next = l + 1 < N ? layer_of_teacher(l + 1, N, L) : L;
                wrong += from < 0 || from >= next || (N == L && from != l) || (l == 0 && from != 0) ||
                    (N > 1 && l == N - 1 && from != L - 1);
            }
    check(!wrong, "%d layers are not in order, or the first or last is missing", wrong);
    GPT2Config deep = small;
    deep.num_layers = 5;
    GPT2 teacher, student;
    gpt2_allocate(&teacher, deep);
    for (size_t i = 0; i < teacher.num_parameters; i++) teacher.params_memory[i] = params[0] + (float)i;
    start_from_layers(&student, &teacher, 3, 6);
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(student.config, i);
        const float *a = ((float **)&student.params)[i], *b = ((float **)&teacher.params)[i];
        for (int l = 0; l < MAX(t.layers, 1); l++, a += layer_size(t), b += 2 * layer_size(t))
            check(!memcmp(a, b, layer_size(t) * sizeof(float)), "%s of layer %d", t.name, l);
    }
    const char *list = "wpe,h.[02].mlp.*";
    check(tensor_matches(list, small, 10, 0) && !tensor_matches(list, small, 10, 1) &&
              tensor_matches("x,fcw", small, 10, 1) && !tensor_matches("fc", small, 10, 1) &&
              !tensor_matches("", small, 10, 0) && tensor_matches("*", small, 0, 0),
          "tensors by pattern");
    gpt2_free(&teacher), gpt2_free(&student);
}

static void test_helpers(void) {
    const char zeros[32] = {0};
    size_t n;
    for (size_t i = 0; i < 32; i++)
        for (size_t k = 0; k < i; k++)
            check(hash_bytes(0, zeros, i) != hash_bytes(0, zeros, k), "%zu and %zu zeros have the same hash",
                  i, k);
    check(hash_bytes(1, "a", 1) != hash_bytes(2, "a", 1), "a hash does not depend on what came before");
    check(!strcmp(folder_of("/a/b").s, "/a") && !strcmp(folder_of("/a").s, "/") &&
              !strcmp(folder_of("a").s, "./"),
          "folder_of");
    put("empty", "", 0);
    char *text = read_file(in_test("empty").s, &n);
    check(n == 0 && !*text, "an empty file is not empty");
    free(text);
    int ends[2];
    char pipe_name[40];
    if (pipe(ends)) die("no pipe");
    check(write(ends[1], zeros, 32) == 32, "write");
    close(ends[1]);
    snprintf(pipe_name, sizeof pipe_name, "/dev/fd/%d", ends[0]);
    text = read_file(pipe_name, &n);
    check(n == 32, "a pipe of 32 bytes is read as %zu", n);
    free(text);
    close(ends[0]);
}

static void test_json(void) {
    char *text = strdup(" {\"a\": [1, 2.5e3, true, null, {}], \"\\u00e9\\ud83d\\ude42\\ud83d\\n\": "
                        "\"x\\\"\\\\\\/\", \"a\\u0000b\": []} ");
    Json j = json_parse(text, strlen(text), "text");
    size_t a = json_get(&j, 0, "a"), b = json_get(&j, 0, "\xC3\xA9\xF0\x9F\x99\x82\xEF\xBF\xBD\n");
    check(a && j.nodes[a].length == 5 && json_int(&j, a + 1, 0, 9, "x") == 1 && json_is(&j, a + 2, "2500") &&
              !json_is(&j, a + 1, "true") && json_is(&j, a + 3, "true") && json_is(&j, a + 4, "null") &&
              j.nodes[a + 5].type == '{',
          "JSON values");
    check(b && json_is(&j, b, "x\"\\/"), "JSON escapes");
    json_free(&j);
}

// ---- what is refused

static void test_refused_models(const float *params) {
    const struct { int at; int32_t value; const char *error; } headers[] = {
        {0, 20240520, "is not a model"}, {1, 1, "version 1"}, {1, -3, "version -3"}, {2, 0, "context of 0"},
        {2, -5, "context of -5"}, {2, 9, "bytes"}, {3, 0, "vocabulary of 0"}, {3, 65537, "vocabulary of"},
        {3, 200, "pads"}, {4, 0, "layers of 0"}, {4, 1 << 30, "layers of"}, {5, 0, "heads of 0"},
        {5, 3, "3 heads cannot share 8"}, {6, 0, "channels of 0"}, {6, 65536, "bytes"},
        {6, INT32_MAX, "channels of"}, {7, 5, "pads"}, {7, INT32_MAX, "pads"}, {7, 1 << 20, "bytes"}};
    Path path = in_test("bad.bin");
    write_llmc("bad.bin", params, 3, 128);
    size_t n;
    char *good = read_file(path.s, &n);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        char *bad = resize(NULL, n);
        memcpy(bad, good, n);
        memcpy(bad + 4 * headers[i].at, &headers[i].value, 4);
        put("bad.bin", bad, n);
        check_refused(load_model, path.s, headers[i].error);
        free(bad);
    }
    for (size_t size = 0; size < n; size += size < 1100 ? 97 : 1009) {
        put("bad.bin", good, size);
        check_refused(load_model, path.s, size < 1024 ? "is not a model" : "bytes");
    }
    char *longer = resize(NULL, n + 1);
    memcpy(longer, good, n), longer[n] = 0;
    put("bad.bin", longer, n + 1);
    check_refused(load_model, path.s, "bytes");
    memcpy(longer + n - 4, &(float){NAN}, 4);
    put("bad.bin", longer, n);
    check_refused(load_model, path.s, "lnfb is not finite");
    check_refused(load_model, (void *)"/nowhere/model.bin", "cannot open /nowhere/model.bin");
    make_folder(in_test("nothing").s);
    check_refused(load_model, in_test("nothing").s, "neither model.bin nor config.json");
    make_folder(path_in(in_test("nothing").s, "model.bin").s);
    check_refused(load_model, in_test("nothing").s, "is a folder");
    check_refused(load_model, (void *)"/dev/null", "is a device");
    free(good), free(longer);
}

static void test_refused_configs(const float *params) {
    const char *const cases[][3] = { // what to replace in the configuration, by what, and what the error says
        {"\"gpt2\"", "\"gpt_neo\"", "model_type is gpt_neo"},
        {"GPT2LMHeadModel", "GPT2ForSequenceClassification",
         "architectures is GPT2ForSequenceClassification"},
        {"gelu_new", "relu", "activation_function is relu"},
        {"gelu_new", "gelu", "activation_function is gelu"},
        {"1e-05", "1e-06", "layer_norm_epsilon is 1e-06"},
        {"1e-05", "\"small\"", "layer_norm_epsilon is small"},
        {"null", "16", "n_inner is 16"},
        {": true, \"attn_pdrop\"", ": false, \"attn_pdrop\"", "tie_word_embeddings is false"},
        {"\"attn_pdrop\": 0.1", "\"scale_attn_by_inverse_layer_idx\": true",
         "scale_attn_by_inverse_layer_idx is true"},
        {"\"attn_pdrop\": 0.1", "\"scale_attn_weights\": false", "scale_attn_weights is false"},
        {"\"attn_pdrop\": 0.1", "\"reorder_and_upcast_attn\": true", "reorder_and_upcast_attn is true"},
        {"\"attn_pdrop\": 0.1", "\"add_cross_attention\": true", "add_cross_attention is true"},
        {"\"attn_pdrop\": 0.1", "\"is_encoder_decoder\": true", "is_encoder_decoder is true"},
        {"\"attn_pdrop\": 0.1", "\"quantization_config\": {\"bits\": 4}", "quantization_config is {"},
        {"\"n_layer\": 2", "\"n_layer\": 0", "layers of 0"},
        {"\"n_layer\": 2", "\"n_layer\": 2.5", "n_layer is not a whole number"},
        {"\"n_layer\": 2", "\"n_layer\": \"2\"", "n_layer is not a whole number"},
        {"\"n_layer\": 2", "\"n_layer\": 1e99", "n_layer is not a whole number"},
        {"\"n_layer\": 2", "\"n_layer\": 3", "lacks h.2.ln_1.weight;"},
        {"\"n_layer\": 2", "\"n_layer\": 1", "no tensor transformer.h.1.ln_1.weight"},
        {"\"n_layer\": 2", "\"layers\": 2", "layers of 0"},
        {"\"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"]", "\"llama\", \"hidden_size\": 64",
         "model_type is llama"},
        {": true, \"attn_pdrop\"", ": 0, \"attn_pdrop\"", "tie_word_embeddings is 0"},
        {"\"gelu_new\"", "0", "activation_function is 0"},
        {"\"n_head\": 2", "\"n_head\": 3", "3 heads cannot share 8"},
        {"\"n_head\": 2", "\"n_head\": -2", "heads of -2"},
        {"\"n_embd\": 8", "\"n_embd\": 65536", "parameters"},
        {"\"n_embd\": 8", "\"n_embd\": 4", "wte.weight is not config.json's (20,4)"},
        {"\"vocab_size\": 20", "\"vocab_size\": 70000", "vocabulary of 70000"},
        {"\"vocab_size\": 20", "\"vocab_size\": 21", "wte.weight is not config.json's (21,8)"},
        {"{\"model_type\"", "[\"model_type\"", "is not JSON"},
        {"1e-05", "1e-05x", "is not JSON"},
        {"gelu_new", "gelu\\nnew", "gelu?new"},
        {"}}\n", "}", "is not JSON"}};
    write_hf("hf", params, (Layout){.prefix = "transformer."});
    Path path = in_test("hf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *at = strstr(config_text, cases[i][0]);
        char text[2000];
        if (!at) die("case %zu is not in the configuration", i);
        int n = snprintf(text, sizeof text, "%.*s%s%s", (int)(at - config_text), config_text, cases[i][1],
                         at + strlen(cases[i][0]));
        put("hf/config.json", text, (size_t)n);
        check_refused(load_model, path.s, cases[i][2]);
    }
    const char *const accepted[][2] = {
        {"null", "32"}, {"gelu_new", "gelu_pytorch_tanh"}, {"GPT2LMHeadModel", "GPT2Model"}};
    for (size_t i = 0; i < 3; i++) {
        const char *at = strstr(config_text, accepted[i][0]);
        char text[2000];
        int n = snprintf(text, sizeof text, "%.*s%s%s", (int)(at - config_text), config_text, accepted[i][1],
                         at + strlen(accepted[i][0]));
        put("hf/config.json", text, (size_t)n);
        check_params(path.s, params, small, accepted[i][1]);
    }
}

static void test_refused_safetensors(const float *params) {
    const struct { Layout layout; const char *error; } cases[] = {
        {{.skip = "h.1.mlp.c_fc.bias"}, "lacks h.1.mlp.c_fc.bias;"},
        {{.edit = "h.0.ln_2.bias", .dtype = "F64"}, "h.0.ln_2.bias is not F32, F16 or BF16"},
        {{.edit = "h.0.ln_2.bias", .dtype = "BF16"}, "h.0.ln_2.bias do not fill its shape"},
        {{.edit = "h.0.ln_2.bias", .shape = "8, 1"}, "shape of h.0.ln_2.bias"},
        {{.edit = "h.0.mlp.c_fc.weight", .shape = "32, 8"},
         "shape of h.0.mlp.c_fc.weight is not config.json's (8,32)"},
        {{.edit = "wpe.weight", .shape = "8, -8"}, "wpe.weight is not a whole number"},
        {{.edit = "wpe.weight", .shape = "8, 1e20"}, "wpe.weight is not a whole number"},
        {{.edit = "wpe.weight", .begin = 4}, "wpe.weight do not fill its shape"},
        {{.edit = "wpe.weight", .end = -1}, "wpe.weight do not fill its shape"},
        {{.edit = "wpe.weight", .begin = -1000, .end = -1000}, "wpe.weight is not a whole number"},
        {{.edit = "ln_f.bias", .begin = 64, .end = 64}, "ends within ln_f.bias"},
        {{.edit = "ln_f.bias", .begin = 1l << 60, .end = 1l << 60}, "ends within ln_f.bias"}};
    Path path = in_test("hf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Layout o = cases[i].layout;
        o.prefix = "";
        write_hf("hf", params, o);
        check_refused(load_model, path.s, cases[i].error);
    }
    const char *const bodies[][2] = {{"", "not a safetensors file"}, {"abc", "not a safetensors file"},
                                     {"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F{}", "parameters"}};
    for (int i = 0; i < 3; i++) {
        char file[20000] = {0};
        memcpy(file, bodies[i][0], strlen(bodies[i][0])); // the last one is large enough for its parameters
        put("hf/model.safetensors", file, i == 2 ? 12 : strlen(bodies[i][0]));
        check_refused(load_model, path.s, "parameters");
        put("hf/model.safetensors", file, sizeof file);
        if (i == 2) check_refused(load_model, path.s, "not a safetensors file");
    }
    float *weights = resize(NULL, count_parameters(small) * sizeof *weights);
    memcpy(weights, params, count_parameters(small) * sizeof *weights);
    weights[count_parameters(small) - 1] = INFINITY;
    for (int type = 0; type < 3; type++) {
        write_hf("hf", weights, (Layout){.prefix = "", .type = type});
        check_refused(load_model, path.s, "ln_f.bias is not finite");
    }
    free(weights);
    unlink(in_test("hf/model.safetensors").s);
    check_refused(load_model, path.s, "no model.safetensors");
    write_hf("hf", params, (Layout){.prefix = "", .parts = 3});
    unlink(in_test("hf/model-00002-of-00003.safetensors").s);
    check_refused(load_model, path.s, "model-00002-of-00003.safetensors");
    const char *const indices[] = {"{\"weight_map\": {\"a\": \"../x.safetensors\"}}",
                                   "{\"weight_map\": {\"a\": 5}}", "{\"weight_map\": {\"a\": \"b\\nc\"}}"};
    for (int i = 0; i < 3; i++) {
        put("hf/model.safetensors.index.json", indices[i], strlen(indices[i]));
        check_refused(load_model, path.s, "should name");
    }
    const char *const maps[] = {"{}", "{\"weight_map\": [\"a\", \"b\", \"c\"]}"};
    for (int i = 0; i < 2; i++) {
        put("hf/model.safetensors.index.json", maps[i], strlen(maps[i]));
        check_refused(load_model, path.s, "no weight_map");
    }
    unlink(in_test("hf/model.safetensors.index.json").s);
}

// ---- writing where there is no room

static void save_limited(void *params) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){3000, 3000});
    gpt2_save(small, params, in_test("kept.bin").s);
}

static void export_limited(void *params) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){3000, 3000});
    gpt2_export_hf(small, params, &(Tokenizer){0}, in_test("kept").s);
}

static void save_nowhere(void *params) { gpt2_save(small, params, in_test("no/such/folder.bin").s); }

static void save_over_folder(void *params) { gpt2_save(small, params, in_test("kept").s); }

static void test_no_room(float *params) {
    gpt2_save(small, params, in_test("kept.bin").s);
    check_refused(save_limited, params, "make room");
    check_params(in_test("kept.bin").s, params, small, "the old file, after a failed write");
    check(!file_exists(in_test("kept.bin.tmp").s), "a half-written file stays");
    check_refused(export_limited, params, "make room");
    check(!file_exists(in_test("kept").s), "a half-written export stays");
    check_refused(save_nowhere, params, "cannot write");
    make_folder(in_test("kept").s);
    check_refused(save_over_folder, params, "cannot write");
    check(!file_exists(in_test("kept.tmp").s), "a half-written file stays beside a folder");
}

// ---- tokenizers in Hugging Face's folders

static const char small_merges[] =
    "#version: 0.2\nh e\nl l\nhe ll\n\xC4\xA0 w\no r\n\xC4\xA0w or\n\xC3\xA9 \xC4\x8A\n\" \\\n";

// Makes folders "tok_bytes", "tok_chars", "tok_gpt2" as exported, and returns the tokenizer of the last.
static Tokenizer export_tokenizers(void) {
    const char *kinds[] = {"bytes", "chars", "gpt2"};
    const char text[] = "hello \"world\"\\ \xE6\x97\xA5\n\t\x01\x7F";
    Tokenizer t = {0};
    put("merges.txt", small_merges, strlen(small_merges));
    for (int i = 0; i < 3; i++) {
        Tokenizer u = {0};
        char name[20], left[40] = "";
        size_t n, k;
        snprintf(name, sizeof name, "tok_%s", kinds[i]);
        make_folder(in_test(name).s);
        if (i > 0) { // of another kind, which must leave nothing behind
            export_tokenizer(&t, 8, in_test(name).s);
            snprintf(left, sizeof left, "%s/added_tokens.json", name);
            put(left, "{}", 2);
            snprintf(left, sizeof left, "%s/tokenizer.bpe", name);
            put(left, "a b\n", 4);
            snprintf(left, sizeof left, "%s/added_tokens.json", name);
        }
        tokenizer_free(&t);
        tokenizer_init(&t, kinds[i], text, strlen(text), in_test("merges.txt").s);
        export_tokenizer(&t, 8, in_test(name).s);
        check(tokenizer_load(&u, in_test(name).s) == 1 && u.kind == t.kind && u.text_size == t.text_size &&
                  !memcmp(u.text, t.text, t.text_size),
              "%s: an exported tokenizer comes back otherwise", kinds[i]);
        tokenizer_free(&u);
        check(!*left || !file_exists(in_test(left).s), "%s: another tokenizer's tokens stay", kinds[i]);
        char *json = read_file(path_in(in_test(name).s, "tokenizer.json").s, &n);
        Json j = json_parse(json, n, "tokenizer.json");
        size_t vocabulary = json_get(&j, json_get(&j, 0, "model"), "vocab");
        check(j.nodes[vocabulary].length == (size_t)t.vocab_size, "%s: tokenizer.json lacks tokens",
              kinds[i]);
        json_free(&j);
        if (i < 2) continue;
        char *merges = read_file(path_in(in_test(name).s, "merges.txt").s, &k);
        check(k == strlen(small_merges) && !memcmp(merges, small_merges, k),
              "merges.txt is not written as it was read");
        free(merges);
    }
    return t;
}

static void test_hf_tokenizers(void) {
    Tokenizer t = export_tokenizers(), u = {0};
    Path gpt2 = in_test("tok_gpt2");
    size_t n;
    char *vocabulary = read_file(in_test("tok_gpt2/vocab.json").s, &n), *other = strdup(vocabulary);
    memcpy(strstr(other, "\"he\": 256"), "\"he\": 257", 9);
    memcpy(strstr(other, "\"ll\": 257"), "\"ll\": 256", 9);
    put("tok_gpt2/vocab.json", other, n);
    check_refused(load_tokenizer, gpt2.s, "no other order");
    put("tok_gpt2/vocab.json", "{\"a\": 0}", 8);
    check_refused(load_tokenizer, gpt2.s, "1 tokens, but the merges make 265");
    unlink(in_test("tok_gpt2/vocab.json").s);
    unlink(in_test("tok_gpt2/merges.txt").s);
    const char *const other_ways[] = { // of cutting a text into pieces
        "{\"normalizer\": {\"type\": \"Lowercase\"}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}",
        "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"use_regex\": false}",
        "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}"};
    const char *model = ", \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {}}}";
    Path written = in_test("tok_gpt2/tokenizer.json"), kept = in_test("tok_gpt2/kept");
    rename(written.s, kept.s);
    for (int i = 0; i < 3; i++) {
        char text[300];
        put("tok_gpt2/tokenizer.json", text, (size_t)sprintf(text, "%s%s", other_ways[i], model));
        check_refused(load_tokenizer, gpt2.s, "is not GPT-2's tokenizer");
    }
    rename(kept.s, written.s);
    check(tokenizer_load(&u, gpt2.s) == 1 && u.text_size == t.text_size &&
              !memcmp(u.text, t.text, t.text_size),
          "tokenizer.json alone comes back otherwise");
    tokenizer_free(&u);
    free(other);
    // merges as older files have them, and a vocabulary with escapes
    char *text, *p = vocabulary;
    FILE *f = open_memstream(&text, &n);
    fputs("{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": ["
          "\"h e\", \"l l\", \"he ll\", \"\\u0120 w\", \"o r\", "
          "\"\\u0120w or\", \"\\u00e9 \\u010a\", \"\\\" \\\\\"], \"vocab\": ",
          f);
    for (int length; *p; p += length) {
        int c = utf8_decode(p, p + strlen(p), &length);
        if (c < 128) fputc(c, f);
        else fprintf(f, "\\u%04x", c);
    }
    fputs("}}", f);
    fclose(f);
    put("tok_gpt2/tokenizer.json", text, n);
    check(tokenizer_load(&u, gpt2.s) == 1 && u.text_size == t.text_size &&
              !memcmp(u.text, t.text, t.text_size),
          "an older tokenizer.json comes back otherwise");
    tokenizer_free(&u);
    memcpy(strstr(text, "\"type\": \"BPE\""), "\"kind\"", 6); // still older ones do not say it
    put("tok_gpt2/tokenizer.json", text, n);
    check(tokenizer_load(&u, gpt2.s) == 1 && u.text_size == t.text_size, "a model without type is refused");
    tokenizer_free(&u);
    memcpy(strstr(text, "\"kind\""), "\"type\"", 6);
    memcpy(strstr(text, "\"BPE\""), "\"XYZ\"", 5);
    put("tok_gpt2/tokenizer.json", text, n);
    check_refused(load_tokenizer, gpt2.s, "is not GPT-2's tokenizer");
    memcpy(strstr(text, "\"XYZ\""), "\"BPE\"", 5);
    p = strstr(text, "\"vocab\": ") + 9; // a list of as many members as there are tokens
    for (int i = 0; i < t.vocab_size; i++) p += sprintf(p, i ? ",1" : "[1");
    strcpy(p, "]}}");
    put("tok_gpt2/tokenizer.json", text, strlen(text));
    check_refused(load_tokenizer, gpt2.s, "265 tokens, but the merges make 265");
    free(vocabulary), free(text);
    tokenizer_free(&t);
}

// ---- damaged files

// A run with a checkpoint in the test's folder.
static Run *small_run(void) {
    static Run run;
    run.options.out = folder;
    run.identity = "steps 5\nseed 7\n";
    gpt2_allocate(&run.model, small);
    optim_init(&run.optimizer, "adamw");
    start_optimizer(&run.optimizer, &run.model, "");
    return &run;
}

static void resume(void *run) {
    if (!load_state(run)) die("there is no checkpoint");
}

static void test_mutations(const char *what, const char *file, const char *load, void (*loader)(void *),
                           size_t range, int times) {
    Path path = in_test(file), argument = in_test(load);
    test_damaged(what, path.s, loader, argument.s, range, times);
}

static void test_all_mutations(const float *params, int times) {
    uint64_t header = 0;
    write_llmc("v3.bin", params, 3, 128);
    write_llmc("v5.bin", params, 5, 23);
    write_hf("hf", params, (Layout){.prefix = "transformer.", .masks = 1});
    write_hf("parts", params, (Layout){.prefix = "", .parts = 3});
    FILE *f = fopen(in_test("hf/model.safetensors").s, "rb");
    if (!f || fread(&header, 8, 1, f) != 1) die("no header");
    fclose(f);
    test_mutations("model.bin, float32", "v3.bin", "v3.bin", load_model, SIZE_MAX, times);
    test_mutations("model.bin, bfloat16", "v5.bin", "v5.bin", load_model, SIZE_MAX, times);
    test_mutations("safetensors header", "hf/model.safetensors", "hf", load_model, header + 8, times);
    test_mutations("safetensors", "hf/model.safetensors", "hf", load_model, SIZE_MAX, times);
    test_mutations("config.json", "hf/config.json", "hf", load_model, SIZE_MAX, times);
    test_mutations("index of parts", "parts/model.safetensors.index.json", "parts", load_model, SIZE_MAX,
                   times);
    Tokenizer t = export_tokenizers();
    make_folder(in_test("tok_json").s);
    size_t n;
    char *text = read_file(in_test("tok_gpt2/tokenizer.json").s, &n);
    put("tok_json/tokenizer.json", text, n);
    test_mutations("merges.txt", "tok_gpt2/merges.txt", "tok_gpt2", load_tokenizer, SIZE_MAX, times / 2);
    test_mutations("vocab.json", "tok_gpt2/vocab.json", "tok_gpt2", load_tokenizer, SIZE_MAX, times);
    unlink(in_test("tok_gpt2/vocab.json").s);
    test_mutations("merges.txt alone", "tok_gpt2/merges.txt", "tok_gpt2", load_tokenizer, SIZE_MAX, times);
    test_mutations("tokenizer.json", "tok_json/tokenizer.json", "tok_json", load_tokenizer, SIZE_MAX, times);
    test_mutations("tokenizer.txt", "tok_chars/tokenizer.txt", "tok_chars", load_tokenizer, SIZE_MAX, times);
    free(text);
    tokenizer_free(&t);
    int32_t shard[256 + 100] = {20240520, 1, 200};
    for (int i = 0; i < 200; i++) ((uint16_t *)(shard + 256))[i] = (uint16_t)(i * i % 90);
    put("shard.bin", shard, sizeof shard);
    test_mutations("shard", "shard.bin", "shard.bin", load_shard, SIZE_MAX, times);
    const char losses[] = CACHE_TITLE "a teacher\ndata 0000000000000007\n"
        "order seed 1337, seq-len 8, batch 2, accumulate 1\n# \"the texts\"\n1 4.25\n2 3.5e0\n7 0\n";
    put("losses", losses, strlen(losses));
    test_mutations("teacher's losses", "losses", "losses", load_losses, SIZE_MAX, times);
    Run *run = small_run();
    save_state(run);
    Path state = in_test("state.bin");
    test_damaged("state.bin", state.s, resume, run, SIZE_MAX, times);
    test_damaged("state.bin, its beginning", state.s, resume, run, 200, times);
}

// ---- for test_transformers.py

// ids (n) and logits (n,V) of the model, as int32 n, int32 V, int32 ids, float32 logits.
static void write_logits(GPT2 *m, const uint16_t *ids, int n, const char *path) {
    int V = m->config.vocab_size;
    float *logits = allocate_floats((size_t)n * V);
    FILE *f = write_begin(path);
    gpt2_allocate_activations(m, 1, n, 0);
    gpt2_forward(m, ids, 1, n);
    gpt2_logits(m, logits, 0, n);
    write_bytes(f, &n, 4);
    write_bytes(f, &V, 4);
    for (int i = 0; i < n; i++) write_bytes(f, &(int){ids[i]}, 4);
    write_bytes(f, logits, (size_t)n * V * sizeof *logits);
    write_commit(f, path);
    free(logits);
}

// DIR/bytes, DIR/chars and, with merges, DIR/gpt2: exported models of random weights, text.txt, logits.bin.
static void export_all(const char *dir, const char *merges) {
    const char *kinds[] = {"bytes", "chars", "gpt2"};
    const char text[] = "Hello  world! It's 2024:\n\n\tna\xC3\xAFve caf\xC3\xA9, "
                        "\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x99\x82 \"quoted\\\" end. ";
    for (int i = 0; i < (merges ? 3 : 2); i++) {
        Tokenizer t = {0};
        GPT2 m;
        size_t count;
        Path path = path_in(dir, kinds[i]);
        tokenizer_init(&t, kinds[i], text, strlen(text), merges);
        GPT2Config g = {.max_seq_len = 128, .num_layers = 3, .num_heads = 4, .channels = 64};
        g.vocab_size = t.vocab_size;
        gpt2_allocate(&m, g);
        gpt2_initialize(&m, 5, GPT2_STD);
        for (size_t k = 0; k < m.num_parameters; k++)
            m.params_memory[k] += 0.02f * (float)(random_uniform(9, k) - 0.5); // biases, too
        gpt2_export_hf(m.config, m.params_memory, &t, path.s);
        uint16_t *ids = tokenizer_encode(&t, text, strlen(text), "the text", &count);
        write_logits(&m, ids, (int)count, path_in(path.s, "logits.bin").s);
        FILE *f = write_begin(path_in(path.s, "text.txt").s);
        write_bytes(f, text, strlen(text));
        write_commit(f, path_in(path.s, "text.txt").s);
        free(ids);
        gpt2_free(&m);
        tokenizer_free(&t);
    }
}

static void logits_of(const char *model, const char *tokens, const char *out) {
    GPT2 m;
    size_t n;
    int32_t *text = (int32_t *)read_file(tokens, &n);
    uint16_t *ids = resize(NULL, n);
    gpt2_load(&m, model);
    for (size_t i = 0; i < n / 4; i++)
        if ((ids[i] = (uint16_t)text[i]) >= m.config.vocab_size) die("token %d is not the model's", text[i]);
    write_logits(&m, ids, (int)(n / 4), out);
    free(text), free(ids);
    gpt2_free(&m);
}

int main(int argc, char **argv) {
    int times = 300, i = 1;
    if (argc >= 3 && !strcmp(argv[1], "--export")) return export_all(argv[2], argc > 3 ? argv[3] : NULL), 0;
    if (argc == 5 && !strcmp(argv[1], "--logits")) return logits_of(argv[2], argv[3], argv[4]), 0;
    if (argc >= 3 && !strcmp(argv[1], "--mutations")) times = atoi(argv[2]), i = 3;
    if (!mkdtemp(folder)) die("cannot make %s", folder);
    float *params = exact_weights();
    test_helpers();
    test_json();
    test_golden(i < argc ? argv[i] : "test/golden/gpt2_tiny");
    test_variants(params);
    test_students(params);
    test_refused_models(params);
    test_refused_configs(params);
    test_refused_safetensors(params);
    test_no_room(params);
    test_hf_tokenizers();
    test_all_mutations(params, times);
    if (!failed) remove_folder(folder);
    free(params);
    return finish();
}
