// PyTorch's golden files for test_gpt2.c and test_gpt2_cuda.c. Included after train_gpt2.c and check.h.

// The largest difference as a share of the largest entry of b.
static double relative_error(const float *a, const float *b, size_t n) {
    double error = 0, largest = 1e-30;
    for (size_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)a[i] - b[i]));
        largest = fmax(largest, fabs(b[i]));
        if (!isfinite(a[i])) return INFINITY;
    }
    return error / largest;
}

// Every tensor's gradient against `expected`, whose wte has `padded` rows; the worst error.
static double compare_gradients(const char *name, GPT2Config g, const float *ours, const float *expected,
                                int padded, double (*error)(const float *, const float *, size_t),
                                double tolerance) {
    double worst = 0;
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        double e = error(ours, expected, tensor_size(t));
        check(e < tolerance, "%s: gradient of %s is off by %g", name, t.name, e);
        worst = fmax(worst, e);
        ours += tensor_size(t);
        expected += tensor_size(t) + (i == 0 ? (size_t)(padded - g.vocab_size) * g.channels : 0);
    }
    return worst;
}

// state.bin: a batch, and what PyTorch makes of it; in grads wte has `padded` rows.
typedef struct {
    int B, T, padded;
    uint16_t *x;                 // (2,B,T) tokens, and the targets
    float *logits, *grads, loss; // (B,T,V); as in model.bin
} Golden;

static void read_exactly(FILE *f, void *p, size_t n, const char *path) {
    if (fread(p, 1, n, f) != n) die("%s is cut short", path);
}

static Golden read_golden(const char *dir, GPT2Config g) {
    Golden o;
    int32_t header[2][256];
    const char *names[] = {"model.bin", "state.bin"};
    Path path;
    FILE *f = NULL;
    for (int i = 0; i < 2; i++) {
        if (f) fclose(f);
        path = path_in(dir, names[i]);
        if (!(f = fopen(path.s, "rb"))) die("%s is missing", path.s);
        read_exactly(f, header[i], sizeof header[i], path.s);
    }
    o.padded = header[0][7], o.B = header[1][2], o.T = header[1][3];
    check(header[1][0] == 20240327 && o.B > 0 && o.T > 0, "%s: header", path.s);
    size_t rows = (size_t)o.B * o.T, logits = rows * g.vocab_size;
    size_t grads = count_parameters(g) + (size_t)(o.padded - g.vocab_size) * g.channels;
    int32_t *ids = allocate(2 * rows, sizeof *ids);
    o.x = allocate(2 * rows, sizeof *o.x);
    o.logits = allocate_floats(logits), o.grads = allocate_floats(grads);
    read_exactly(f, ids, 2 * rows * sizeof *ids, path.s);
    read_exactly(f, o.logits, logits * sizeof(float), path.s);
    read_exactly(f, &o.loss, sizeof o.loss, path.s);
    read_exactly(f, o.grads, grads * sizeof(float), path.s);
    fclose(f);
    for (size_t i = 0; i < 2 * rows; i++) o.x[i] = (uint16_t)ids[i];
    free(ids);
    return o;
}
