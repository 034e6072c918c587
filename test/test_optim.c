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

static int adgd(const Golden *g) { return !strcmp(g->algorithm, "adgd") || !strcmp(g->algorithm, "adproxgd"); }

// Gradient and loss of f_t at x.
static double quadratic(const Golden *g, const float *x, long t, float *grad) {
    const double *s = g->s + (adgd(g) ? 0 : t) * g->n;
    double loss = 0;
    for (size_t i = 0; i < g->n; i++) {
        const double d = x[i] - g->c[i] - s[i];
        grad[i] = (float)(g->h[i] * d);
        loss += 0.5 * g->h[i] * d * d;
    }
    return loss;
}

typedef struct {                      // one run along a file
    double points, scalars;           // the largest errors: of a point relative to its record's largest entry, of a scalar
    int undetermined;                 // scalars that float32 does not determine
    float *final;                     // (2, n): params and evaluation point at the end
} Run;

// Follows the file; what is wrong, or NULL. restart: after that many steps the state moves to a fresh optimizer.
//
// AdGD finds its step from the difference of two iterates. Where they differ by less than 2e-3 of the largest entry,
// float32's roundings, which its long steps amplify in the stiff directions, move the step by 1e-3 and more (a float64
// run from the nine digits of the file misses such records as well): they are counted, not compared.
static const char *golden_run(const Golden *g, long restart, Run *run) {
    Optimizer o, fresh;
    OptimSegment segments[MAX_TENSORS];
    long warmup;
    const size_t n = g->n;
    const char *what = golden_optimizer(g, &o, segments, &warmup);
    if (what) return what;
    float *memory = (float *)calloc(4 * n, sizeof(float)), *x = memory, *grad = x + n, *out = x + 2 * n, *other = x + 3 * n;
    if (!memory) return "no memory";
    for (size_t i = 0; i < n; i++) x[i] = (float)g->x0[i];
    if (optim_start(&o, x, n, segments, g->num_tensors)) { free(memory); return "no memory"; }
    run->points = run->scalars = 0;
    run->undetermined = 0;
    for (long t = 0, r = 0; t < g->steps; t++) {
        if (t == restart && t > 0) {                       // a checkpoint: params and what optim_state lists
            void *from, *to;
            size_t bytes;
            const char *name;
            golden_optimizer(g, &fresh, segments, &warmup);
            if (optim_start(&fresh, other, n, segments, g->num_tensors)) { free(memory); return "no memory"; }
            memcpy(other, x, n * sizeof(float));
            for (int i = 0; optim_state(&o, i, &from, &bytes, &name); i++) {
                optim_state(&fresh, i, &to, &bytes, &name);
                memcpy(to, from, bytes);
            }
            optim_free(&o);
            o = fresh;
        }
        const double loss = quadratic(g, o.params, t, grad);
        double moved = 0, entry = 0;
        memcpy(out, o.params, n * sizeof(float));
        optim_step(&o, grad, 1, optim_schedule("constant", t, g->steps, warmup, 1), loss, g->fstar[t]);
        for (size_t i = 0; i < n; i++) {
            moved = fmax(moved, fabs((double)o.params[i] - out[i]));
            entry = fmax(entry, fabs(out[i]));
        }
        for (; r < g->num_records && g->records[r].step == t + 1; r++) {
            const Record *record = &g->records[r];
            double error = 0, largest = 0;
            if (!strcmp(record->kind, "d") || !strcmp(record->kind, "step")) {
                const double have = !strcmp(record->kind, "d") ? o.s.d : o.s.step, want = record->values[0];
                error = fabs(have - want) / (want != 0 ? fabs(want) : 1);
                if (adgd(g) && moved < 2e-3 * entry) run->undetermined++;
                else run->scalars = fmax(run->scalars, isfinite(error) ? error : INFINITY);
                continue;
            }
            optim_eval_params(&o, out);
            // DoG's files come from its authors' optimizer alone: their x is the iterate, not yet averaged
            const float *have = !strcmp(record->kind, "x") && strcmp(g->algorithm, "dog") ? out : o.params;
            for (size_t i = 0; i < n; i++) {
                error = fmax(error, isfinite(have[i]) ? fabs(have[i] - record->values[i]) : INFINITY);
                largest = fmax(largest, fabs(record->values[i]));
            }
            run->points = fmax(run->points, error / largest);
        }
    }
    optim_eval_params(&o, out);
    memcpy(run->final, o.params, n * sizeof(float));
    memcpy(run->final + n, out, n * sizeof(float));
    optim_free(&o);
    free(memory);
    return NULL;
}

static void golden_test(const char *path, int listed) {
    Run runs[3] = { { 0, 0, 0, NULL }, { 0, 0, 0, NULL }, { 0, 0, 0, NULL } };   // 1 thread, 2, restarted half-way
    Golden *g = golden_read(path, listed);
    if (!g) return;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path, *what = NULL;
    for (int k = 0; k < 3 && !what && !g->error[0]; k++) {
        set_threads(k == 0 ? 1 : 2);
        runs[k].final = (float *)malloc(2 * g->n * sizeof(float));
        what = runs[k].final ? golden_run(g, k == 2 ? g->steps / 2 : 0, &runs[k]) : "no memory";
    }
    if (what || g->error[0]) {
        if (what) printf("error: %s: %s\n", path, what); else printf("error: %s\n", g->error);
        failed++;
    } else {
        const int same = !memcmp(runs[0].final, runs[1].final, 2 * g->n * sizeof(float));
        const int resumed = !memcmp(runs[0].final, runs[2].final, 2 * g->n * sizeof(float));
        const int ok = runs[0].points <= 2e-4 && runs[0].scalars <= 1e-3 && same && resumed;
        printf("%-4s  %-26s %-20s points %.1e  scalars %.1e  threads %s  resumed %s", ok ? "ok" : "FAIL", file,
               g->algorithm, runs[0].points, runs[0].scalars, same ? "same" : "DIFFER", resumed ? "same" : "DIFFERS");
        if (runs[0].undetermined) printf("  (%d steps below float32's resolution)", runs[0].undetermined);
        printf("\n");
        if (ok) passed++; else failed++;
    }
    for (int k = 0; k < 3; k++) free(runs[k].final);
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
