/* Tests of optim.h.

   ./test/test_optim [GOLDEN_FILE...]      no arguments: every .txt in test/golden that begins with "golden 1"

   A golden file holds the trajectory that a public implementation, or a float64 reference, took on the quadratics
   f_t(x) = 1/2 sum_i h_i (x_i - c_i - s_ti)^2. Every record must agree to 2e-4 of its largest entry, scalars (d,
   step) to 1e-3 of themselves, and 1 and 2 threads must give the same bits. What no file covers is held against
   references in double precision, written below from the papers' equations. */
#include "../optim.h"

#include <glob.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static int passed, failed;

static void check(int ok, const char *what, double error) {
    printf("%-4s  %-44s %.1e\n", ok ? "ok" : "FAIL", what, error);
    if (ok) passed++; else failed++;
}

static void set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

// ---------------------------------------------------------------------------------------------------------------
// Golden files

enum { MAX_TENSORS = 64, MAX_HYPER = 32, MAX_RECORDS = 4096 };

typedef struct { char name[64]; int dims; size_t size, rows; } Tensor;
typedef struct { char name[64]; double value; } Hyper;
typedef struct { long step; char kind[8]; double *values; } Record;

typedef struct {
    char algorithm[64];
    long steps;
    int num_tensors, num_hyper, num_records;
    size_t n;
    Tensor tensors[MAX_TENSORS];
    Hyper hyper[MAX_HYPER];
    Record records[MAX_RECORDS];
    double *h, *c, *x0, *fstar, *s;       // (n), (n), (n), (steps), (steps, n)
    char error[256];
} Golden;

// Reads one line of the file (of any length) into *line; 0 at its end.
static int next_line(FILE *f, char **line, size_t *room) {
    size_t used = 0;
    for (int ch; (ch = fgetc(f)) != EOF && ch != '\n'; ) {
        if (used + 2 > *room) {
            char *more = (char *)realloc(*line, *room = 2 * *room + 256);
            if (!more) return 0;
            *line = more;
        }
        (*line)[used++] = (char)ch;
    }
    if (!*line || (!used && feof(f))) return 0;
    (*line)[used] = 0;
    return 1;
}

// Exactly n numbers; NULL where there are fewer, more, or something else.
static double *numbers(const char *text, size_t n) {
    double *values = (double *)malloc((n + 1) * sizeof(double));
    char *end = (char *)text;
    for (size_t i = 0; values && i < n; i++) {
        const char *begin = end;
        values[i] = strtod(begin, &end);
        if (end == begin || !isfinite(values[i])) { free(values); return NULL; }
    }
    if (values && end[strspn(end, " \t\r")]) { free(values); return NULL; }
    return values;
}

static void golden_free(Golden *g) {
    for (int r = 0; r < g->num_records; r++) free(g->records[r].values);
    free(g->h); free(g->c); free(g->x0); free(g->fstar); free(g->s);
    free(g);
}

// One line of the file; what is wrong with it, or NULL. *tensors and *hypers count what was announced.
static const char *golden_line(Golden *g, char *line, int *tensors, int *hypers, long *shifts) {
    char key[64];
    int used = 0;
    if (sscanf(line, "%63s%n", key, &used) != 1) return NULL;                        // an empty line
    const char *rest = line + used;
    double **vector = !strcmp(key, "h") ? &g->h : !strcmp(key, "c") ? &g->c : !strcmp(key, "x0") ? &g->x0 :
                      !strcmp(key, "fstar") ? &g->fstar : NULL;
    if (!strcmp(key, "algorithm")) {
        if (sscanf(rest, "%63s", g->algorithm) != 1) return "no name of an algorithm";
    } else if (!strcmp(key, "source") || !strcmp(key, "precision")) {
        return NULL;
    } else if (!strcmp(key, "steps")) {
        if (sscanf(rest, "%ld", &g->steps) != 1 || g->steps < 1 || g->steps > 1000000) return "bad number of steps";
    } else if (!strcmp(key, "tensors")) {
        if (sscanf(rest, "%d", tensors) != 1 || *tensors < 1 || *tensors > MAX_TENSORS) return "bad number of tensors";
    } else if (!strcmp(key, "tensor")) {
        if (g->num_tensors >= *tensors) return "more tensors than announced";
        Tensor *t = &g->tensors[g->num_tensors++];
        if (sscanf(rest, "%63s%n", t->name, &used) != 1) return "a tensor without a name";
        t->size = 1;
        for (char *at = (char *)rest + used, *end; at[strspn(at, " \t\r")]; at = end, t->dims++) {
            long dim = strtol(at, &end, 10);
            if (end == at || dim < 1 || dim > 1000000 || t->size * dim > 10000000) return "bad size of a tensor";
            t->size *= dim;
            if (!t->dims) t->rows = dim;
        }
        if (!t->dims) return "a tensor without sizes";
        g->n += t->size;
    } else if (!strcmp(key, "hyper")) {
        if (sscanf(rest, "%d", hypers) != 1 || *hypers < 0 || *hypers > MAX_HYPER) return "bad number of hyperparameters";
    } else if (g->num_hyper < *hypers) {
        double *value = numbers(rest, 1);
        if (!value) return "a hyperparameter without a number";
        strcpy(g->hyper[g->num_hyper].name, key);
        g->hyper[g->num_hyper++].value = *value;
        free(value);
    } else if (!g->n || !g->steps || g->num_tensors != *tensors || *hypers < 0) {
        return "steps, tensors and hyper must come before it";
    } else if (vector) {
        free(*vector);
        if (!(*vector = numbers(rest, vector == &g->fstar ? (size_t)g->steps : g->n))) return "wrong count of numbers";
    } else if (!strcmp(key, "s")) {
        long t;
        if (sscanf(rest, "%ld%n", &t, &used) != 1 || t != *shifts || t >= g->steps) return "s lines out of order";
        double *values = numbers(rest + used, g->n);
        if (!values) return "wrong count of numbers";
        if (!g->s && !(g->s = (double *)malloc(g->steps * g->n * sizeof(double)))) return "no memory";
        memcpy(g->s + t * g->n, values, g->n * sizeof(double));
        free(values);
        ++*shifts;
    } else if (!strcmp(key, "at")) {
        if (g->num_records == MAX_RECORDS) return "too many records";
        Record *r = &g->records[g->num_records];
        if (sscanf(rest, "%ld %7s%n", &r->step, r->kind, &used) != 2 || r->step < 1 || r->step > g->steps ||
            (g->num_records && r->step < r[-1].step)) return "bad step of a record";
        const int point = !strcmp(r->kind, "x") || !strcmp(r->kind, "y");
        if (!point && strcmp(r->kind, "d") && strcmp(r->kind, "step")) return "unknown kind of record";
        if (!(r->values = numbers(rest + used, point ? g->n : 1))) return "wrong count of numbers";
        g->num_records++;
    } else {
        return "unknown line";
    }
    return NULL;
}

// The file, with g->error set where it is malformed; NULL without memory, or where it is no golden file at all and
// `listed` (found, not given) allows to skip it.
static Golden *golden_read(const char *path, int listed) {
    Golden *g = (Golden *)calloc(1, sizeof(Golden));
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    int tensors = 0, hypers = -1, ended = 0, number = 1;
    long shifts = 0;
    if (!g) return NULL;
    if (!f) { snprintf(g->error, sizeof(g->error), "%.200s: cannot open", path); return g; }
    const char *what = next_line(f, &line, &room) && !strncmp(line, "golden 1", 8) ? NULL : "does not begin with golden 1";
    if (what && listed) { fclose(f); free(line); golden_free(g); return NULL; }
    while (!what && !ended && next_line(f, &line, &room)) {
        number++;
        ended = !strncmp(line, "end", 3);
        if (!ended) what = golden_line(g, line, &tensors, &hypers, &shifts);
    }
    if (!what && !ended) what = "ends before its end line";
    if (!what && (!g->h || !g->c || !g->x0 || !g->fstar || shifts != g->steps || !g->num_records))
        what = "lacks h, c, x0, fstar, s or records";
    if (what) snprintf(g->error, sizeof(g->error), "%.150s:%d: %s", path, number, what);
    fclose(f);
    free(line);
    return g;
}

// Sets up the optimizer that the file names; what is wrong, or NULL. *warmup: steps of linear warmup.
static const char *golden_optimizer(const Golden *g, Optimizer *o, OptimSegment *segments, long *warmup) {
    static const struct { const char *algorithm, *name, *base; } names[] = {
        { "gpa-adamw", "gpa", NULL }, { "gpa-sgd", "gpa", "sgd" }, { "gpa-muon", "gpa", "muon" },
        { "schedule-free-adamw", "schedule-free", NULL }, { "sps-star", "sps", NULL },
        { "iam-muon", "iam", "muon" }, { "diloco-sgd", "diloco", "sgd" }, { "diloco-muon", "diloco", "muon" },
    };
    static const char *const keys[][2] = { { "H", "inner-steps" }, { "cap", "lr-cap" } };
    const char *name = g->algorithm, *base = NULL;
    for (int j = 0; j < OPTIM_COUNT(names); j++)
        if (!strcmp(g->algorithm, names[j].algorithm)) { name = names[j].name; base = names[j].base; }
    for (int j = 0; j < g->num_hyper; j++)
        if (!strcmp(g->algorithm, "adgd") && !strcmp(g->hyper[j].name, "l1") && g->hyper[j].value > 0) name = "adproxgd";
    if (optim_init(o, name) || (base && optim_set_base(o, base))) return "unknown algorithm";

    size_t offset = 0;
    for (int j = 0; j < g->num_tensors; j++) {
        const Tensor *t = &g->tensors[j];
        segments[j].offset = offset;
        segments[j].size = t->size;
        segments[j].rows = t->dims > 1 ? (int)t->rows : 0;
        segments[j].cols = t->dims > 1 ? (int)(t->size / t->rows) : 0;
        segments[j].decay = 0;
        offset += t->size;
    }
    *warmup = 0;
    double decay = -1;
    if (!isnan(optim_get(o, "weight-decay"))) optim_set(o, "weight-decay", 0);       // what the file says, only that
    for (int j = 0; j < g->num_hyper; j++) {
        char key[64];
        const double value = g->hyper[j].value;
        strcpy(key, g->hyper[j].name);
        for (int k = 0; k < OPTIM_COUNT(keys); k++) if (!strcmp(key, keys[k][0])) strcpy(key, keys[k][1]);
        for (char *at = key; *at; at++) if (*at == '_') *at = '-';
        if (!strcmp(key, "warmup")) { *warmup = (long)value; continue; }
        if (!strcmp(key, "l1") && value == 0) continue;
        if (!strncmp(g->hyper[j].name, "weight_decay_", 13)) {
            int k = 0;
            while (k < g->num_tensors && strcmp(g->tensors[k].name, g->hyper[j].name + 13)) k++;
            if (k == g->num_tensors) return "weight decay of a tensor that is not there";
            if (value == 0) continue;
            if (decay >= 0 && value != decay) return "two different weight decays";
            segments[k].decay = 1;
            decay = value;
            strcpy(key, "weight-decay");
        }
        if (optim_set(o, key, value)) return "a hyperparameter this optimizer does not have, or out of its range";
    }
    return NULL;
}

// Gradient and loss of f_t at x.
static double quadratic(const Golden *g, const float *x, long t, float *grad) {
    const double *s = g->s + (!strncmp(g->algorithm, "ad", 2) && strstr(g->algorithm, "gd") ? 0 : t) * g->n;
    double loss = 0;
    for (size_t i = 0; i < g->n; i++) {
        const double d = x[i] - g->c[i] - s[i];
        grad[i] = (float)(g->h[i] * d);
        loss += 0.5 * g->h[i] * d * d;
    }
    return loss;
}

// Follows the file; what is wrong, or NULL. errors[0]: of the points, errors[1]: of the scalars. *sum: the last
// params and eval point, to compare bits. restart: after that many steps the state moves to a fresh optimizer.
static const char *golden_run(const Golden *g, long restart, double errors[2], float *final) {
    Optimizer o, fresh;
    OptimSegment segments[MAX_TENSORS];
    long warmup;
    const char *what = golden_optimizer(g, &o, segments, &warmup);
    if (what) return what;
    float *x = (float *)malloc(4 * g->n * sizeof(float)), *grad = x + g->n, *out = x + 2 * g->n, *other = x + 3 * g->n;
    if (!x) return "no memory";
    for (size_t i = 0; i < g->n; i++) x[i] = (float)g->x0[i];
    if (optim_start(&o, x, g->n, segments, g->num_tensors)) return "no memory";
    errors[0] = errors[1] = 0;
    for (long t = 0, r = 0; t < g->steps; t++) {
        if (t == restart && t > 0) {                       // a checkpoint: params and what optim_state lists
            void *from, *to;
            size_t bytes;
            const char *name;
            golden_optimizer(g, &fresh, segments, &warmup);
            memset(other, 0, g->n * sizeof(float));
            if (optim_start(&fresh, other, g->n, segments, g->num_tensors)) return "no memory";
            memcpy(other, x, g->n * sizeof(float));
            for (int i = 0; optim_state(&o, i, &from, &bytes, &name); i++) {
                optim_state(&fresh, i, &to, &bytes, &name);
                memcpy(to, from, bytes);
            }
            optim_free(&o);
            o = fresh;
            memset(x, 0, g->n * sizeof(float));
            x = other;
        }
        const double loss = quadratic(g, o.params, t, grad);
        optim_step(&o, grad, 1, optim_schedule("constant", t, g->steps, warmup, 1), loss, g->fstar[t]);
        for (; r < g->num_records && g->records[r].step == t + 1; r++) {
            const Record *record = &g->records[r];
            const double *want = record->values;
            double error = 0, largest = 0;
            if (!strcmp(record->kind, "x") || !strcmp(record->kind, "y")) {
                const float *have = o.params;
                if (!strcmp(record->kind, "x")) { optim_eval_params(&o, out); have = out; }
                for (size_t i = 0; i < g->n; i++) {
                    error = fmax(error, isfinite(have[i]) ? fabs(have[i] - want[i]) : INFINITY);
                    largest = fmax(largest, fabs(want[i]));
                }
                errors[0] = fmax(errors[0], error / largest);
                if (getenv("V")) printf("  %ld %s %g\n", t+1, record->kind, error/largest);
            } else {
                const double have = !strcmp(record->kind, "d") ? o.s.d : o.s.step;
                error = fabs(have - *want) / (fabs(*want) > 0 ? fabs(*want) : 1);
                errors[1] = fmax(errors[1], isfinite(error) ? error : INFINITY);
                if (getenv("V")) printf("  %ld %s %g %g\n", t+1, record->kind, have, *want);
            }
        }
    }
    optim_eval_params(&o, out);
    memcpy(final, o.params, g->n * sizeof(float));
    memcpy(final + g->n, out, g->n * sizeof(float));
    optim_free(&o);
    free(restart ? other - 3 * g->n : x);
    return NULL;
}

static void golden_test(const char *path, int listed) {
    Golden *g = golden_read(path, listed);
    if (!g) return;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path, *what = NULL;
    double errors[3][2];
    float *finals[3] = { NULL, NULL, NULL };
    for (int run = 0; run < 3 && !g->error[0] && !what; run++) {       // 1 thread; 2 threads; restarted half-way
        set_threads(run == 0 ? 1 : 2);
        finals[run] = (float *)malloc(2 * g->n * sizeof(float));
        what = finals[run] ? golden_run(g, run == 2 ? g->steps / 2 : 0, errors[run], finals[run]) : "no memory";
    }
    if (g->error[0] || what) {
        if (what) printf("error: %s: %s\n", path, what); else printf("error: %s\n", g->error);
        failed++;
    } else {
        const int same = !memcmp(finals[0], finals[1], 2 * g->n * sizeof(float));
        const int resumed = !memcmp(finals[0], finals[2], 2 * g->n * sizeof(float));
        const int ok = errors[0][0] <= 2e-4 && errors[0][1] <= 1e-3 && same && resumed;
        printf("%-4s  %-28s %-20s points %.1e  scalars %.1e  threads %s  resumed %s\n", ok ? "ok" : "FAIL", file,
               g->algorithm, errors[0][0], errors[0][1], same ? "same" : "DIFFER", resumed ? "same" : "DIFFERS");
        if (ok) passed++; else failed++;
    }
    for (int run = 0; run < 3; run++) free(finals[run]);
    golden_free(g);
}

int main(int argc, char **argv) {
    for (int j = 1; j < argc; j++) golden_test(argv[j], 0);
    if (argc == 1) {
        glob_t found;
        if (glob("test/golden/*.txt", 0, NULL, &found) == 0) {
            for (size_t j = 0; j < found.gl_pathc; j++) golden_test(found.gl_pathv[j], 1);
            globfree(&found);
        } else {
            printf("error: test/golden/*.txt: no golden files; run from the top directory\n");
            failed++;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
