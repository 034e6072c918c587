/* Tests of optim.h.

   ./test/test_optim [GOLDEN_FILE...]      no arguments: every .txt in test/golden that begins with "golden 1"

   A golden file holds the trajectory that a public implementation, or a float64 reference, took on the
   quadratics f_t(x) = 1/2 sum_i h_i (x_i - c_i - s_ti)^2. Every record must agree to 2e-4 of its largest
   entry, scalars (d, step) to 1e-3 of themselves, and 1 and 2 threads must give the same bits. What no file
   covers is held against references in double precision, written below from the papers' equations. */
#define _POSIX_C_SOURCE 200809L                    // glob
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

// A checkpoint: params and what optim_state lists go to an optimizer that was started anew, elsewhere.
static void move_state(Optimizer *o, Optimizer *fresh) {
    void *from, *to;
    size_t bytes;
    memcpy(fresh->params, o->params, o->n * sizeof(float));
    for (int i = 0; optim_state(o, i, &from, &bytes); i++) {
        optim_state(fresh, i, &to, &bytes);
        memcpy(to, from, bytes);
    }
    optim_free(o);
    *o = *fresh;
}

// -----------------------------------------------------------------------------------------------------------
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
        if (sscanf(rest, "%ld", &g->steps) != 1 || g->steps < 1 || g->steps > 1000000)
            return "bad number of steps";
    } else if (!strcmp(key, "tensors")) {
        if (sscanf(rest, "%d", tensors) != 1 || *tensors < 1 || *tensors > MAX_TENSORS)
            return "bad number of tensors";
    } else if (!strcmp(key, "tensor")) {
        if (g->num_tensors >= *tensors) return "more tensors than announced";
        Tensor *t = &g->tensors[g->num_tensors++];
        if (sscanf(rest, "%63s%n", t->name, &used) != 1) return "a tensor without a name";
        t->size = 1;
        for (char *at = (char *)rest + used, *end; at[strspn(at, " \t\r")]; at = end, t->dims++) {
            long dim = strtol(at, &end, 10);
            if (end == at || dim < 1 || dim > 1000000 || t->size * dim > 10000000)
                return "bad size of a tensor";
            t->size *= dim;
            if (!t->dims) t->rows = dim;
        }
        if (!t->dims) return "a tensor without sizes";
        g->n += t->size;
    } else if (!strcmp(key, "hyper")) {
        if (sscanf(rest, "%d", hypers) != 1 || *hypers < 0 || *hypers > MAX_HYPER)
            return "bad number of hyperparameters";
    } else if (g->num_hyper < *hypers) {
        char *end; // inf is a growth rate, too
        g->hyper[g->num_hyper].value = strtod(rest, &end);
        if (end == rest || end[strspn(end, " \t\r")]) return "a hyperparameter without a number";
        strcpy(g->hyper[g->num_hyper++].name, key);
    } else if (!g->n || !g->steps || g->num_tensors != *tensors || *hypers < 0) {
        return "steps, tensors and hyper must come before it";
    } else if (vector) {
        free(*vector);
        *vector = numbers(rest, vector == &g->fstar ? (size_t)g->steps : g->n);
        if (!*vector) return "wrong count of numbers";
    } else if (!strcmp(key, "s")) {
        long t;
        if (sscanf(rest, "%ld%n", &t, &used) != 1 || t != *shifts || t >= g->steps)
            return "s lines out of order";
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

// The file, with g->error set where it is malformed; NULL without memory, or where it is no golden file at
// all and `listed` (found, not given) allows to skip it.
static Golden *golden_read(const char *path, int listed) {
    Golden *g = (Golden *)calloc(1, sizeof(Golden));
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    int tensors = 0, hypers = -1, ended = 0, number = 1;
    long shifts = 0;
    if (!g) return NULL;
    if (!f) { snprintf(g->error, sizeof(g->error), "%.200s: cannot open", path); return g; }
    const char *what = "does not begin with golden 1";
    if (next_line(f, &line, &room) && !strncmp(line, "golden 1", 8)) what = NULL;
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
    for (int j = 0; j < g->num_hyper && !strcmp(g->algorithm, "adgd"); j++)
        if (!strcmp(g->hyper[j].name, "l1") && g->hyper[j].value > 0) name = "adproxgd";
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
    optim_set(o, "weight-decay", 0);                       // refused where it has none; the file tells
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
        if (optim_set(o, key, value)) return "a hyperparameter that is unknown here, or out of its range";
    }
    return NULL;
}

static int adgd(const Golden *g) {
    return !strcmp(g->algorithm, "adgd") || !strcmp(g->algorithm, "adproxgd");
}

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

// AdGD is chaotic: roundings of x, amplified by long steps in the stiff directions, change later steps, and
// a record far along may tell more about them than about the algorithm. So here is AdGD in double precision.
// The optimizer must take this rule's step from each of its own iterates, and may miss a record by 3 times
// what the rule misses it by when its x is rounded to float32 at random, up or down, after every step.
typedef struct { double *x, *x_prev, *g, *g_prev, step, step_prev; } AdGD;

static double golden_hyper(const Golden *g, const char *name, double otherwise) {
    for (int j = 0; j < g->num_hyper; j++) if (!strcmp(g->hyper[j].name, name)) return g->hyper[j].value;
    return otherwise;
}

static int adgd_start(const Golden *g, AdGD *a) {
    a->x = (double *)calloc(4 * g->n, sizeof(double));
    a->x_prev = a->x + g->n;
    a->g = a->x + 2 * g->n;
    a->g_prev = a->x + 3 * g->n;
    return a->x != NULL;
}

static void adgd_step(const Golden *g, AdGD *a, long t) {              // from x, g and what went before
    const int first = golden_hyper(g, "version", 2) == 1;
    double dx2 = 0, dg2 = 0, step = golden_hyper(g, "first_step", 0.01);
    for (size_t i = 0; i < g->n; i++) {
        dx2 += (a->x[i] - a->x_prev[i]) * (a->x[i] - a->x_prev[i]);
        dg2 += (a->g[i] - a->g_prev[i]) * (a->g[i] - a->g_prev[i]);
    }
    if (t > 0) {
        const double prev = a->step, L = sqrt(dg2 / dx2);
        const double th = t > 1 ? prev / a->step_prev : first ? 0 : 1.0 / 3;
        step = dx2 == 0 ? prev : first ? fmin(sqrt(1 + th) * prev, 1 / (sqrt(2) * L))
                        : fmin(sqrt(2.0 / 3 + th) * prev, prev / sqrt(fmax(2 * prev * prev * L * L - 1, 0)));
    }
    a->step_prev = a->step;
    a->step = step;
    for (size_t i = 0; i < g->n; i++) {
        const double y = a->x[i] - step * a->g[i], l1 = golden_hyper(g, "l1", 0);
        a->x_prev[i] = a->x[i];
        a->g_prev[i] = a->g[i];
        a->x[i] = copysign(fmax(fabs(y) - step * l1, 0), y);
    }
}

static double record_error(const Record *r, size_t n, const double *point, double scalar) {
    const int is_point = !strcmp(r->kind, "x") || !strcmp(r->kind, "y");
    double error = 0, largest = 0;
    for (size_t i = 0; i < (is_point ? n : 1); i++) {
        const double off = fabs((is_point ? point[i] : scalar) - r->values[i]);
        error = fmax(error, isfinite(off) ? off : INFINITY);
        largest = fmax(largest, fabs(r->values[i]));
    }
    return largest > 0 ? error / largest : error;
}

static unsigned long long random_state;
static double uniform(void) {                              // in (-1, 1), splitmix64
    unsigned long long z = random_state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return ((z ^ (z >> 31)) >> 11) * (2.0 / 9007199254740992.0) - 1;
}

// missed[r]: the most by which AdGD, rounded, misses record r in 8 runs.
static int adgd_missed(const Golden *g, double *missed) {
    AdGD a;
    if (!adgd_start(g, &a)) return 0;
    for (int run = 0; run < 8; run++) {
        random_state = run;
        for (size_t i = 0; i < g->n; i++) a.x[i] = (float)g->x0[i];
        for (long t = 0, r = 0; t < g->steps; t++) {
            for (size_t i = 0; i < g->n; i++) a.g[i] = (float)(g->h[i] * (a.x[i] - g->c[i] - g->s[i]));
            adgd_step(g, &a, t);
            for (size_t i = 0; i < g->n; i++) {
                const float near = (float)a.x[i];
                const float far = nextafterf(near, a.x[i] > near ? INFINITY : -INFINITY);
                a.x[i] = uniform() > 0 || near == a.x[i] ? near : far;
            }
            for (; r < g->num_records && g->records[r].step == t + 1; r++)
                missed[r] = fmax(missed[r], record_error(&g->records[r], g->n, a.x, a.step));
        }
    }
    free(a.x);
    return 1;
}

typedef struct {                      // one run along a file
    double *errors;                   // (num_records), relative to the record's largest entry
    float *final;                     // (2, n): params and evaluation point at the end
    double strayed;                   // AdGD: the largest distance of a step and of x from the rule's
} Run;

// Follows the file; what is wrong, or NULL. restart: after so many steps the state moves to a fresh one.
static const char *golden_run(const Golden *g, long restart, Run *run) {
    Optimizer o, fresh;
    AdGD rule = { NULL, NULL, NULL, NULL, 0, 0 };
    OptimSegment segments[MAX_TENSORS];
    long warmup;
    const size_t n = g->n;
    const char *what = golden_optimizer(g, &o, segments, &warmup);
    if (what) return what;
    float *memory = (float *)calloc(4 * n, sizeof(float)), *x = memory;
    float *grad = x + n, *out = x + 2 * n, *other = x + 3 * n;
    double *point = (double *)malloc(n * sizeof(double));
    if (!memory || !point || (adgd(g) && !adgd_start(g, &rule))) return "no memory";
    for (size_t i = 0; i < n; i++) x[i] = (float)g->x0[i];
    if (optim_start(&o, x, n, segments, g->num_tensors)) return "no memory";
    for (long t = 0, r = 0; t < g->steps; t++) {
        if (t == restart && t > 0) {                       // a checkpoint: params and what optim_state lists
            golden_optimizer(g, &fresh, segments, &warmup);
            if (optim_start(&fresh, other, n, segments, g->num_tensors)) return "no memory";
            move_state(&o, &fresh);
        }
        const double loss = quadratic(g, o.params, t, grad);
        for (size_t i = 0; i < n && adgd(g); i++) { rule.x[i] = o.params[i]; rule.g[i] = grad[i]; }
        const float scale = t % 2 ? 0.5f : 0.125f;         // exact, as a clipping that changes
        for (size_t i = 0; i < n; i++) grad[i] /= scale;
        optim_step(&o, grad, scale, optim_schedule("constant", t, g->steps, warmup, 1), loss, g->fstar[t]);
        if (adgd(g)) {
            double off = 0, largest = 0;
            adgd_step(g, &rule, t);
            for (size_t i = 0; i < n; i++) {
                off = fmax(off, fabs(o.params[i] - rule.x[i]));
                largest = fmax(largest, fabs(rule.x[i]));
            }
            run->strayed = fmax(run->strayed, fmax(off / largest, fabs(o.s.step - rule.step) / rule.step));
        }
        for (; r < g->num_records && g->records[r].step == t + 1; r++) {
            const Record *record = &g->records[r];
            optim_eval_params(&o, out);
            // DoG's files come from its authors' optimizer alone: their x is the iterate, not yet averaged
            const float *have = !strcmp(record->kind, "x") && strcmp(g->algorithm, "dog") ? out : o.params;
            for (size_t i = 0; i < n; i++) point[i] = have[i];
            run->errors[r] = record_error(record, n, point, !strcmp(record->kind, "d") ? o.s.d : o.s.step);
        }
    }
    optim_eval_params(&o, out);
    memcpy(run->final, o.params, n * sizeof(float));
    memcpy(run->final + n, out, n * sizeof(float));
    optim_free(&o);
    free(memory); free(point); free(rule.x);
    return NULL;
}

static void golden_test(const char *path, int listed) {
    Golden *g = golden_read(path, listed);
    if (!g) return;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    const char *what = g->error[0] ? g->error : NULL;
    double *missed = (double *)calloc(4 * MAX_RECORDS, sizeof(double));
    float *finals = (float *)malloc(6 * (g->n + 1) * sizeof(float));
    Run runs[3];                                           // 1 thread; 2 threads; restarted half-way
    if (!missed || !finals || (!what && adgd(g) && !adgd_missed(g, missed))) what = "no memory";
    for (int k = 0; k < 3 && !what; k++) {
        runs[k].errors = missed + (k + 1) * MAX_RECORDS;
        runs[k].final = finals + 2 * k * g->n;
        runs[k].strayed = 0;
        set_threads(k == 0 ? 1 : 2);
        what = golden_run(g, k == 2 ? g->steps / 2 : 0, &runs[k]);
    }
    if (what) {
        printf("error: %s%s%s\n", what == g->error ? "" : path, what == g->error ? "" : ": ", what);
        failed++;
    } else {
        const int same = !memcmp(runs[0].final, runs[1].final, 2 * g->n * sizeof(float));
        const int resumed = !memcmp(runs[0].final, runs[2].final, 2 * g->n * sizeof(float));
        double points = 0, scalars = 0;
        int undetermined = 0, ok = same && resumed && runs[0].strayed <= 1e-5;
        for (int r = 0; r < g->num_records; r++) {
            const int point = !strcmp(g->records[r].kind, "x") || !strcmp(g->records[r].kind, "y");
            const double error = runs[0].errors[r], tolerance = point ? 2e-4 : 1e-3;
            if (!(error <= fmax(tolerance, 3 * missed[r]))) ok = 0;
            if (3 * missed[r] > tolerance) undetermined++;
            else if (point) points = fmax(points, error);
            else scalars = fmax(scalars, error);
        }
        printf("%-4s  %-26s %-20s points %.1e  scalars %.1e  threads %s  resumed %s", ok ? "ok" : "FAIL",
               file, g->algorithm, points, scalars, same ? "same" : "DIFFER", resumed ? "same" : "DIFFERS");
        if (adgd(g)) printf("  steps %.1e, %d records chaotic", runs[0].strayed, undetermined);
        printf("\n");
        if (ok) passed++; else failed++;
    }
    free(missed); free(finals);
    golden_free(g);
}

// -----------------------------------------------------------------------------------------------------------
// References in double precision, from the papers' equations, on a small problem of three tensors

enum { N = 46, STEPS = 60 };
static const OptimSegment reference_segments[3] = {        // a tall matrix, a wide one, an embedding
    { 0, 24, 6, 4, 1 }, { 24, 15, 3, 5, 1 }, { 39, 7, 0, 0, 1 },
};

typedef struct { double x[N], eval[N], m[N], v[N], z[N], x0[N], s[N], r2[N], outer[N], x_outer[N]; } Arrays;
typedef struct Reference {
    Arrays a;
    double d, numerator, grad_sum, distance, gap; // gap: f_t(x) - f*_t
} Reference;
typedef void (*Rule)(Reference *r, const Optimizer *o, const double *g, long t);

static int is_matrix(int i) { return i < 39; }

enum { SIDE = 60 };

// Newton-Schulz of the matrix's entries u[0..], in place, times sqrt(max(1, rows/cols)); at most SIDE by SIDE.
static void reference_orthogonalise(double *u, int rows, int cols) {
    static double X[SIDE*SIDE], A[SIDE*SIDE], B[SIDE*SIDE], Y[SIDE*SIDE];
    double norm = 0;
    const int r = rows < cols ? rows : cols, c = rows < cols ? cols : rows;
    for (int i = 0; i < rows * cols; i++) norm += u[i] * u[i];
    for (int i = 0; i < r; i++) for (int j = 0; j < c; j++)
        X[i*c + j] = (rows > cols ? u[j*cols + i] : u[i*cols + j]) / (sqrt(norm) + 1e-7);
    for (int step = 0; step < 5; step++) {
        for (int i = 0; i < r; i++) for (int j = 0; j < r; j++) {
            A[i*r + j] = 0;
            for (int k = 0; k < c; k++) A[i*r + j] += X[i*c + k] * X[j*c + k];
        }
        for (int i = 0; i < r; i++) for (int j = 0; j < r; j++) {
            B[i*r + j] = -4.7750 * A[i*r + j];
            for (int k = 0; k < r; k++) B[i*r + j] += 2.0315 * A[i*r + k] * A[k*r + j];
        }
        for (int i = 0; i < r; i++) for (int j = 0; j < c; j++) {
            Y[i*c + j] = 3.4445 * X[i*c + j];
            for (int k = 0; k < r; k++) Y[i*c + j] += B[i*r + k] * X[k*c + j];
        }
        memcpy(X, Y, sizeof(X));
    }
    for (int i = 0; i < r; i++) for (int j = 0; j < c; j++)
        u[rows > cols ? j*cols + i : i*cols + j] = X[i*c + j] * sqrt(fmax(1, (double)rows / cols));
}

// Muon's direction for the matrices (momentum in m), AdamW's for the rest.
static void reference_muon(Reference *r, const Optimizer *o, const double *g, long t, double *u) {
    const double mu = o->h.muon_momentum, b1 = o->h.beta1, b2 = o->h.beta2;
    Arrays *a = &r->a;
    for (int i = 0; i < N; i++) {
        if (is_matrix(i)) {
            a->m[i] = mu * a->m[i] + g[i];
            u[i] = g[i] + mu * a->m[i];
        } else {
            a->m[i] = b1 * a->m[i] + (1 - b1) * g[i];
            a->v[i] = b2 * a->v[i] + (1 - b2) * g[i] * g[i];
            u[i] = a->m[i] / (1 - pow(b1, t + 1)) / (sqrt(a->v[i] / (1 - pow(b2, t + 1))) + o->h.eps);
        }
    }
    reference_orthogonalise(u, 6, 4);
    reference_orthogonalise(u + 24, 3, 5);
}

static void rule_muon(Reference *r, const Optimizer *o, const double *g, long t) {
    double u[N];
    reference_muon(r, o, g, t, u);
    for (int i = 0; i < N; i++) {
        const double rate = is_matrix(i) ? o->h.muon_lr : o->h.lr;
        r->a.x[i] = (1 - rate * o->h.weight_decay) * r->a.x[i] - rate * u[i];
        r->a.eval[i] = r->a.x[i];
    }
}

static void rule_gpa(Reference *r, const Optimizer *o, const double *g, long t) {
    double u[N];                                           // x is eval, y is x
    const int sgd = o->row->base == OPTIM_SGD;
    if (!sgd) reference_muon(r, o, g, t, u);
    for (int i = 0; i < N; i++) {
        const double rate = is_matrix(i) && !sgd ? o->h.muon_lr : o->h.lr, wd = o->h.weight_decay;
        if (sgd) u[i] = r->a.m[i] = t ? o->h.momentum * r->a.m[i] + (1 - o->h.dampening) * g[i] : g[i];
        r->a.z[i] = (1 - rate * wd) * r->a.z[i] - rate * u[i];
        r->a.eval[i] = o->h.mu_x * r->a.eval[i] + (1 - o->h.mu_x) * r->a.z[i];
        r->a.x[i] = o->h.mu_y * r->a.eval[i] + (1 - o->h.mu_y) * r->a.z[i];
    }
}

static void reference_outer(Reference *r, const Optimizer *o, long t) {
    Arrays *a = &r->a;
    for (int i = 0; i < N && (t + 1) % (long)o->h.inner_steps == 0; i++) {
        const double d = a->x_outer[i] - a->x[i];
        a->outer[i] = o->h.outer_momentum * a->outer[i] + d;
        a->x[i] = a->x_outer[i] -= o->h.outer_lr * (d + o->h.outer_momentum * a->outer[i]);
    }
    memcpy(a->eval, a->x, sizeof(a->x));
}
static void rule_diloco_muon(Reference *r, const Optimizer *o, const double *g, long t) {
    rule_muon(r, o, g, t);
    reference_outer(r, o, t);
}
static void rule_diloco_sgd(Reference *r, const Optimizer *o, const double *g, long t) {
    for (int i = 0; i < N; i++) {
        r->a.m[i] = t ? o->h.momentum * r->a.m[i] + (1 - o->h.dampening) * g[i] : g[i];
        r->a.x[i] = (1 - o->h.lr * o->h.weight_decay) * r->a.x[i] - o->h.lr * r->a.m[i];
    }
    reference_outer(r, o, t);
}

static void rule_iam_muon(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;
    double d[N], numerator = r->gap, gd = 0;
    for (int i = 0; i < N; i++) {
        if (is_matrix(i)) {
            a->m[i] = o->h.muon_momentum * a->m[i] + g[i];
            d[i] = g[i] + o->h.muon_momentum * a->m[i];
        } else {
            a->v[i] = o->h.beta2 * a->v[i] + (1 - o->h.beta2) * g[i] * g[i];
            d[i] = g[i] / (sqrt(a->v[i] / (1 - pow(o->h.beta2, t + 1))) + o->h.eps);
        }
    }
    reference_orthogonalise(d, 6, 4);
    reference_orthogonalise(d + 24, 3, 5);
    for (int i = 0; i < N; i++) {
        if (is_matrix(i)) d[i] *= o->h.matrix_weight * sqrt(i < 24 ? 4 : 5);     // cols: u has sqrt(rows/cols)
        numerator += g[i] * (a->z[i] - a->x[i]);
        gd += g[i] * d[i];
    }
    const double step = gd > 0 ? fmax(numerator, 0) / gd : 0, l = o->h.lambda;
    const double capped = o->h.lr_cap > 0 ? fmin(step, o->h.lr_cap) : step;
    for (int i = 0; i < N; i++) {
        a->z[i] -= capped * (d[i] + o->h.weight_decay * a->x[i]);
        a->eval[i] = a->x[i] = l / (1 + l) * a->x[i] + 1 / (1 + l) * a->z[i];
    }
}

static void rule_iam(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;
    double d[N], numerator = r->gap, gd = 0;
    const double l = o->h.lambda;
    for (int i = 0; i < N; i++) {
        a->v[i] = o->h.beta2 * a->v[i] + (1 - o->h.beta2) * g[i] * g[i];
        d[i] = o->row->base == OPTIM_SGD ? g[i]
                                         : g[i] / (sqrt(a->v[i] / (1 - pow(o->h.beta2, t + 1))) + o->h.eps);
        numerator += g[i] * (a->z[i] - a->x[i]);
        gd += g[i] * d[i];
    }
    const double step = fmin(gd > 0 ? fmax(numerator, 0) / gd : 0, o->h.lr_cap);
    for (int i = 0; i < N; i++) {
        a->z[i] -= step * (d[i] + o->h.weight_decay * a->x[i]);
        a->eval[i] = a->x[i] = l / (1 + l) * a->x[i] + 1 / (1 + l) * a->z[i];
    }
}

static void rule_schedule_free(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;                                     // x is eval, y is x; distance: the largest rate
    r->distance = fmax(r->distance, o->h.lr);
    const double weight = pow(t + 1, o->h.r) * r->distance * r->distance;
    const double c = weight / (r->grad_sum += weight);
    for (int i = 0; i < N; i++) {
        a->v[i] = o->h.beta2 * a->v[i] + (1 - o->h.beta2) * g[i] * g[i];
        const double u = g[i] / (sqrt(a->v[i] / (1 - pow(o->h.beta2, t + 1))) + o->h.eps);
        a->z[i] -= o->h.lr * (u + o->h.weight_decay * a->x[i]);
        a->eval[i] = (1 - c) * a->eval[i] + c * a->z[i];
        a->x[i] = o->h.beta1 * a->eval[i] + (1 - o->h.beta1) * a->z[i];
    }
}

static void rule_prodigy(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;                                     // distance: the largest estimate so far
    const OptimHyper *h = &o->h;
    const double d = r->d = t ? r->d : h->d0, dlr = d * h->lr;
    const double b3 = h->beta3 == 0 ? sqrt(h->beta2) : h->beta3;
    double dot = 0, sum = 0;
    for (int i = 0; i < N; i++) {
        dot += g[i] * (a->x0[i] - a->x[i]);
        sum += fabs(a->s[i] = b3 * a->s[i] + d / h->d0 * dlr * g[i]);
    }
    r->numerator = b3 * r->numerator + d / h->d0 * dlr * dot;
    const double estimate = h->d_coef * r->numerator / sum;
    r->distance = fmax(t ? r->distance : h->d0, estimate);
    r->d = fmin(r->distance, h->growth_rate * (d == h->d0 ? fmax(d, estimate) : d));
    for (int i = 0; i < N; i++) {
        a->m[i] = h->beta1 * a->m[i] + d * (1 - h->beta1) * g[i];
        a->v[i] = h->beta2 * a->v[i] + d * d * (1 - h->beta2) * g[i] * g[i];
        a->x[i] = (1 - dlr * h->weight_decay) * a->x[i] - dlr * a->m[i] / (sqrt(a->v[i]) + r->d * h->eps);
        a->eval[i] = a->x[i];
    }
}

static void rule_resetting(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;
    double g2 = 0, s2 = 0;
    if (t == 0) r->d = o->h.d0;
    for (int i = 0; i < N; i++) { a->s[i] += r->d * g[i]; g2 += g[i] * g[i]; s2 += a->s[i] * a->s[i]; }
    r->numerator += r->d * r->d * g2 / sqrt(r->grad_sum > 0 ? r->grad_sum : g2);
    r->grad_sum += g2;
    const double gamma = 1 / sqrt(r->grad_sum), d_hat = (gamma * s2 - r->numerator) / (2 * sqrt(s2));
    const int reset = d_hat > 2 * r->d;
    for (int i = 0; i < N; i++) a->eval[i] = a->x[i] = a->x0[i] - (reset ? 0 : gamma * a->s[i]);
    if (!reset) return;
    r->d = d_hat;
    r->numerator = r->grad_sum = 0;
    memset(a->s, 0, sizeof(a->s));
}

static void rule_cdowg(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;
    for (int i = 0; i < N; i++) {
        a->r2[i] = fmax(t ? a->r2[i] : 1e-4, (a->x[i] - a->x0[i]) * (a->x[i] - a->x0[i]));
        a->v[i] += a->r2[i] * g[i] * g[i];
        a->eval[i] = a->x[i] -= a->r2[i] * g[i] / (sqrt(a->v[i]) + o->h.eps);
    }
}

static void rule_dog(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;
    double d2 = 0, x2 = 0;
    for (int i = 0; i < N; i++) {
        d2 += (a->x[i] - a->x0[i]) * (a->x[i] - a->x0[i]);
        x2 += a->x0[i] * a->x0[i];
        r->grad_sum += g[i] * g[i];
    }
    r->distance = fmax(t ? r->distance : o->h.reps_rel * (1 + sqrt(x2)), sqrt(d2));
    for (int i = 0; i < N; i++) {
        a->x[i] -= o->h.lr * r->distance / sqrt(r->grad_sum + o->h.eps) * g[i];
        a->eval[i] = (1 - 9.0 / (9 + t)) * a->eval[i] + 9.0 / (9 + t) * a->x[i];
    }
}

static void rule_box(Reference *r, const Optimizer *o, const double *g, long t) {
    Arrays *a = &r->a;                                     // v: the last gradient, z: the last x
    double dx2 = 0, dg2 = 0, step = o->h.first_step;
    for (int i = 0; i < N; i++) {
        dx2 += (a->x[i] - a->z[i]) * (a->x[i] - a->z[i]);
        dg2 += (g[i] - a->v[i]) * (g[i] - a->v[i]);
    }
    if (t) {
        const double th = t > 1 ? r->d / r->distance : 1.0 / 3;
        step = fmin(sqrt(2.0 / 3 + th) * r->d, r->d / sqrt(fmax(2 * r->d * r->d * dg2 / dx2 - 1, 0)));
    }
    r->distance = r->d;
    r->d = step;
    for (int i = 0; i < N; i++) {
        const double y = a->x[i] - step * g[i], shrunk = copysign(fmax(fabs(y) - step * o->h.l1, 0), y);
        a->z[i] = a->x[i];
        a->v[i] = g[i];
        a->eval[i] = a->x[i] = fmin(fmax(shrunk, o->h.box_low), o->h.box_high);
    }
}

// The optimizer in float beside the rule in double, each at its own gradients; settings: "lr 0.1 mu-x 0.9".
static void reference_test(const char *what, const char *name, const char *base, const char *settings,
                           Rule rule, double noise) {
    static double h[N], c[N], s[STEPS][N];
    Optimizer o;
    Reference r;
    float x[N], grad[N], out[N];
    double error = 0, g[N];
    random_state = 20240520;
    memset(&r, 0, sizeof(r));
    for (int i = 0; i < N; i++) {
        h[i] = exp(uniform());
        c[i] = 2 * uniform();
        x[i] = (float)(0.5 * uniform());
        for (int t = 0; t < STEPS; t++) s[t][i] = noise * uniform();
        r.a.x[i] = r.a.eval[i] = r.a.z[i] = r.a.x0[i] = r.a.x_outer[i] = x[i];
    }
    int ok = !optim_init(&o, name) && (!base || !optim_set_base(&o, base));
    for (const char *at = settings; *at; ) {
        char key[32];
        double value;
        int used;
        if (sscanf(at, "%31s %lf %n", key, &value, &used) != 2) { ok = 0; break; }
        ok &= !optim_set(&o, key, value);
        at += used;
    }
    ok = ok && !optim_start(&o, x, N, reference_segments, 3);
    for (long t = 0; t < STEPS && ok; t++) {
        double loss = 0, star = 0, largest = 0, off = 0;
        const float scale = t % 2 ? 0.5f : 0.125f;
        const double factor = t % 3 ? 0.5 : 0.25;          // the schedule's
        r.gap = 0;
        for (int i = 0; i < N; i++) {
            const double d = x[i] - c[i] - s[t][i], e = r.a.x[i] - c[i] - s[t][i];
            grad[i] = (float)(h[i] * d) / scale;
            g[i] = h[i] * e;
            loss += 0.5 * h[i] * d * d;
            star += 0.5 * h[i] * s[t][i] * s[t][i];
            r.gap += 0.5 * h[i] * (e * e - s[t][i] * s[t][i]);
        }
        Optimizer scheduled = o;
        scheduled.h.lr *= factor, scheduled.h.muon_lr *= factor, scheduled.h.lr_cap *= factor;
        optim_step(&o, grad, scale, factor, loss, star);
        rule(&r, &scheduled, g, t);
        optim_eval_params(&o, out);
        for (int i = 0; i < N; i++) {
            largest = fmax(largest, fabs(r.a.eval[i]));
            off = fmax(off, fmax(fabs(out[i] - r.a.eval[i]), fabs(x[i] - r.a.x[i])));
        }
        error = fmax(error, isfinite(off) ? off / largest : INFINITY);
    }
    check(ok && error <= 2e-4, what, error);
    if (ok) optim_free(&o);
}

// Singular values from 1 down to 1e-6, whose squares a float beside 1 has lost.
static void orthogonalise_test(int rows, int cols) {
    static double left[SIDE*SIDE], right[SIDE*SIDE], wanted[SIDE*SIDE];
    static float u[SIDE*SIDE], scratch[5*SIDE*SIDE];
    const int n = rows < cols ? rows : cols;
    double norm = 0, error = 0;
    char what[80];
    for (int i = 0; i < rows * n; i++) left[i] = uniform();
    for (int i = 0; i < n * cols; i++) right[i] = uniform();
    for (int i = 0; i < rows * cols; i++) {
        double sum = 0;
        for (int k = 0; k < n; k++)
            sum += left[i / cols * n + k] * pow(1e-6, (double)k / n) * right[k * cols + i % cols];
        wanted[i] = u[i] = (float)sum;
        norm += wanted[i] * wanted[i];
    }
    reference_orthogonalise(wanted, rows, cols);
    optim_orthogonalise(u, rows, cols, (float)(1 / sqrt(norm)), (float)sqrt(fmax(1, (double)rows / cols)),
                        scratch);
    for (int i = 0; i < rows * cols; i++) error = fmax(error, fabs(u[i] - wanted[i]));
    snprintf(what, sizeof(what), "orthogonalised, %d x %d, condition 1e6", rows, cols);
    check(error <= 1e-5, what, error);
}

static void reference_tests(void) {
    orthogonalise_test(60, 60);
    orthogonalise_test(60, 37);
    orthogonalise_test(25, 60);
    reference_test("muon, tall and wide", "muon", NULL, "lr 0.02 muon-lr 0.05", rule_muon, 0.3);
    reference_test("gpa over muon, tall and wide", "gpa", "muon", "lr 0.02 muon-lr 0.05 mu-x 0.9",
                   rule_gpa, 0.3);
    reference_test("gpa over sgd, decayed", "gpa", "sgd", "lr 0.05 mu-x 0.9 weight-decay 0.1", rule_gpa, 0.3);
    reference_test("diloco over muon", "diloco", "muon", "lr 0.02 muon-lr 0.05 inner-steps 5",
                   rule_diloco_muon, 0.3);
    reference_test("diloco over sgd", "diloco", "sgd", "inner-steps 7 weight-decay 0.1",
                   rule_diloco_sgd, 0.3);
    reference_test("iam over muon", "iam", "muon", "muon-momentum 0.5", rule_iam_muon, 0.3);
    reference_test("iam over muon, capped, decayed", "iam", "muon", "lr-cap 0.1 weight-decay 0.1",
                   rule_iam_muon, 0.3);
    reference_test("iam over sgd, capped, decayed", "iam", "sgd", "lr-cap 0.4 weight-decay 0.1", rule_iam,
                   0.3);
    reference_test("iam-adam, capped, decayed", "iam-adam", NULL, "lr-cap 0.1 weight-decay 0.1", rule_iam,
                   0.3);
    reference_test("schedule-free, r 1", "schedule-free", NULL, "lr 0.1 r 1 weight-decay 0.1",
                   rule_schedule_free, 0.3);
    reference_test("prodigy, beta3", "prodigy", NULL, "d0 1e-3 beta3 0.99", rule_prodigy, 0.3);
    reference_test("prodigy, d-coef 2, slowly", "prodigy", NULL,
                   "d0 1e-3 d-coef 2 growth-rate 1.1 weight-decay 0.1", rule_prodigy, 0.3);
    reference_test("resetting", "resetting", NULL, "", rule_resetting, 0.3);
    reference_test("resetting, d0 0.1", "resetting", NULL, "d0 0.1", rule_resetting, 0.3);
    reference_test("cdowg", "cdowg", NULL, "", rule_cdowg, 0.3);
    reference_test("dog's average", "dog", NULL, "reps-rel 0.01", rule_dog, 0.3);
    reference_test("adproxgd, l1 and box", "adproxgd", NULL, "l1 0.1 box-low -0.5 box-high 0.7", rule_box, 0);
}

// -----------------------------------------------------------------------------------------------------------
// Bits: threads, where arrays lie in memory, checkpoints, evaluation

// A run of an optimizer on n parameters in segments of awkward sizes. shift: floats by which the arrays are
// moved from where malloc put them. Stops half-way for a checkpoint where `restart`.
static void bits_run(const char *name, const char *base, size_t n, int shift, int restart, float *final) {
    const OptimSegment segments[5] = {
        { 0, 7, 0, 0, 0 }, { 7, 20 * 30, 20, 30, 1 }, { 607, 40 * 15, 40, 15, 1 }, { 1207, 3, 0, 0, 0 },
        { 1210, n - 1210, 0, 0, 1 },
    };
    float *memory = (float *)malloc((3 * n + 64) * sizeof(float)), *x = memory + shift, *grad = x + n + shift;
    float *other = grad + n;
    Optimizer o, fresh;
    random_state = 1;
    for (size_t i = 0; i < n; i++) x[i] = (float)uniform();
    optim_init(&o, name);
    if (base) optim_set_base(&o, base);
    optim_set(&o, "slice-p", 7);
    optim_start(&o, x, n, segments, 5);
    for (int t = 0; t < 6; t++) {
        if (restart && t == 3) {
            optim_init(&fresh, name);
            if (base) optim_set_base(&fresh, base);
            optim_set(&fresh, "slice-p", 7);
            memset(other, 0, n * sizeof(float));
            optim_start(&fresh, other, n, segments, 5);
            move_state(&o, &fresh);
            x = other;
        }
        double loss = 0;
        for (size_t i = 0; i < n; i++) {
            grad[i] = (float)(x[i] - 0.3 + 0.1 * uniform());
            loss += 0.5 * grad[i] * grad[i];
        }
        if (t == 4) optim_eval_params(&o, final);          // must leave no trace
        optim_step(&o, grad, 0.9f, 0.5, loss, 0);
    }
    memcpy(final, x, n * sizeof(float));
    optim_eval_params(&o, final + n);
    optim_free(&o);
    free(memory);
}

static void bits_tests(void) {
    const size_t n = 70001;
    float *want = (float *)malloc(2 * n * sizeof(float)), *have = (float *)malloc(2 * n * sizeof(float));
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        const char *name = optim_rows[j].name, *base = optim_base_names[optim_rows[j].base];
        char what[64];
        double differ = 0;
        if (!strcmp(name, base) || !*base || !strcmp(name, "iam-adam")) base = NULL;
        snprintf(what, sizeof(what), "bits of %s%s%s", name, base ? " over " : "", base ? base : "");
        set_threads(1);
        bits_run(name, base, n, 0, 0, want);
        for (int run = 1; run < 6; run++) {                // 1 and 2 threads, other places, restarts
            set_threads(1 + run % 2);
            bits_run(name, base, n, run, run / 3, have);
            for (size_t i = 0; i < 2 * n; i++) differ += memcmp(&want[i], &have[i], sizeof(float)) != 0;
        }
        for (size_t i = 0; i < 2 * n; i++) differ += !isfinite(want[i]);
        check(differ == 0, what, differ);
    }
    double first = 0, differ = 0;
    for (int threads = 1; threads <= 3; threads++) {
        set_threads(threads);
        const double norm = optim_norm2(want, 2 * n);
        if (threads == 1) first = norm; else differ += norm != first;
    }
    double sum = 0;
    for (size_t i = 0; i < 2 * n; i++) sum += (double)want[i] * want[i];
    check(differ == 0 && fabs(first - sum) <= 1e-5 * sum, "norm2, 1 to 3 threads", fabs(first - sum) / sum);
    free(want);
    free(have);
}

// A run on three segments, before each of which and behind the last stand `gap` parameters that no segment
// covers, with gradients that would show. Writes where the segments end, and returns how many others moved.
static int frozen_run(const char *name, const char *base, size_t gap, float *final) {
    enum { MOVING = 20 * 30 + 7 + 40000 };
    const size_t n = MOVING + 4 * gap;
    const OptimSegment segments[3] = { { gap, 600, 20, 30, 1 }, { 2 * gap + 600, 7, 0, 0, 0 },
                                       { 3 * gap + 607, 40000, 0, 0, 1 } };
    float *x = (float *)malloc(3 * n * sizeof(float)), *grad = x + n, *eval = grad + n;
    int moved = 0;
    Optimizer o;
    for (size_t i = 0; i < n; i++) x[i] = 5;
    for (int s = 0, k = 0; s < 3; s++)
        for (size_t i = 0; i < segments[s].size; i++, k++) x[segments[s].offset + i] = (float)(k % 7);
    optim_init(&o, name);
    if (base) optim_set_base(&o, base);
    optim_set(&o, "slice-p", 7);
    optim_set(&o, "weight-decay", 0.1);
    optim_start(&o, x, n, segments, 3);
    for (int t = 0; t < 4; t++) {
        for (size_t i = 0; i < n; i++) grad[i] = 1000;
        for (int s = 0, k = 0; s < 3; s++)
            for (size_t i = segments[s].offset; i < segments[s].offset + segments[s].size; i++, k++)
                grad[i] = 0.01f * (x[i] - 0.3f) + 0.001f * (float)(k % 5);
        const float clip = (float)(1 / (1 + optim_gradient_norms(&o, grad).s0));
        optim_step(&o, grad, clip, 0.5, 3, 1);
    }
    optim_eval_params(&o, eval);
    for (int s = 0, k = 0; s < 3; s++)
        for (size_t i = segments[s].offset; i < segments[s].offset + segments[s].size; i++, k++) {
            final[k] = x[i], final[MOVING + k] = eval[i];
            x[i] = eval[i] = 5;
        }
    for (size_t i = 0; i < n; i++) moved += x[i] != 5 || eval[i] != 5;
    optim_free(&o);
    free(x);
    return moved;
}

// What no segment covers stays, and the rest moves as if it were not there.
static void frozen_tests(void) {
    const size_t bytes = 2 * (20 * 30 + 7 + 40000) * sizeof(float);
    float *alone = (float *)malloc(bytes), *among = (float *)malloc(bytes);
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        const char *name = optim_rows[j].name, *base = optim_base_names[optim_rows[j].base];
        char what[64];
        if (!strcmp(name, base) || !*base || !strcmp(name, "iam-adam")) base = NULL;
        snprintf(what, sizeof(what), "frozen under %s%s%s", name, base ? " over " : "", base ? base : "");
        frozen_run(name, base, 0, alone);
        const int moved = frozen_run(name, base, 1000, among);
        check(moved == 0 && !memcmp(alone, among, bytes), what, moved);
    }
    free(alone);
    free(among);
}

// -----------------------------------------------------------------------------------------------------------
// Hyperparameters, schedules, the proxy's gradient

static double averaged;
static void halve(float *x, size_t n) { for (size_t i = 0; i < n; i++) x[i] *= 0.5f; averaged++; }

// After a million steps an average moves by less than half an ulp of a weight near 1 a step; it moves all the
// same. z, whose steps are many ulps, goes from 1 to 1.03 and draws x along; doubles do the same beside it.
static void long_average(void) {
    Optimizer o;
    float y = 1, x = 0, g;
    double z = 1, average = 1, t = 1e6;
    int ok = !optim_init(&o, "schedule-free-sgd") && !optim_set(&o, "lr", 1.0 / (1 << 16)) &&
             !optim_set(&o, "weight-decay", 0) && !optim_start(&o, &y, 1, NULL, 0);
    o.s.t = t, o.s.lr_max = o.h.lr, o.s.weight_sum = t * o.h.lr * o.h.lr;
    unsigned random = 1;
    for (int step = 0; step < 300000; step++) {
        random = random * 1664525 + 1013904223;
        g = (float)(random >> 24) / 64 - 2;
        optim_step(&o, &g, 1, 1, 0, 0);
        z -= o.h.lr * g;
        t++;
        average += (z - average) / t;
    }
    optim_eval_params(&o, &x);
    optim_free(&o);
    check(ok && fabs((x - 1) / (average - 1) - 1) < 0.05, "an average moves after 10^6 steps", (x - 1) / (average - 1));
}

// Gradients that are zero move nothing and spoil nothing; nor does a rate of zero, with what the steps before
// have left; a loss that is not a number is not hidden.
static void zero_tests(void) {
    for (int j = 0; j < OPTIM_COUNT(optim_rows); j++) {
        Optimizer o;
        char what[64];
        float x[2] = { 1, -2 }, g[2] = { 0, 0 };
        optim_choose(&o, &optim_rows[j]);
        optim_set(&o, "weight-decay", 0);
        int ok = !optim_start(&o, x, 2, NULL, 0);
        for (int t = 0; t < 3 && ok; t++) optim_step(&o, g, 1, 1, 1, 0);
        ok &= x[0] == 1 && x[1] == -2;
        for (int t = 0; t < 3 && ok; t++) g[0] = x[0], g[1] = x[1], optim_step(&o, g, 1, 1, 1, 0);
        ok &= isfinite(x[0]) && isfinite(x[1]) && isfinite(o.s.d) && (x[0] != 1 || x[1] != -2);
        const float before[2] = { x[0], x[1] };
        const char *name = o.row->name, *averages = "gpa schedule-free schedule-free-sgd diloco ";
        if (!isnan(optim_get(&o, "lr")) && !optim_word(averages, name)) {
            optim_step(&o, g, 1, 0, 1, 0);
            ok &= x[0] == before[0] && x[1] == before[1] && optim_rate(&o, 0) == 0;
        }
        if (optim_is_polyak(&o)) {
            optim_step(&o, g, 1, 1, 1, NAN);
            ok &= isnan(x[0]) && isnan(x[1]);
        }
        snprintf(what, sizeof(what), "zero gradients and rates, %s %s", name, optim_base_names[o.row->base]);
        check(ok, what, x[0]);
        optim_free(&o);
    }
}

static void interface_tests(void) {
    Optimizer o;
    void *ptr;
    size_t bytes;
    float x[3] = { 1, 2, 3 }, g[3] = { 0, 0, 0 };
    int ok = optim_init(&o, "no-such") == -1 && !optim_init(&o, "adamw");
    ok &= optim_set(&o, "mu-x", 0.9) == -1 && optim_set(&o, "no", 1) == -1 && isnan(optim_get(&o, "mu-x"));
    ok &= optim_set(&o, "beta1", 1) == -2 && optim_set(&o, "lr", -1) == -2 && optim_set(&o, "lr", NAN) == -2;
    ok &= optim_set(&o, "lr", 0.25) == 0 && optim_get(&o, "lr") == 0.25 && optim_get(&o, "beta2") == 0.99;
    ok &= optim_set_base(&o, "sgd") == -1;
    check(ok, "adamw's hyperparameters", 0);
    ok = !optim_init(&o, "gpa") && optim_set_base(&o, "lion") == -1 && optim_set(&o, "muon-lr", 1) == -1;
    ok &= !optim_set_base(&o, "muon") && optim_set(&o, "muon-lr", 1) == 0 && optim_set(&o, "mu-y", 0) == -2;
    ok &= !optim_set_base(&o, "sgd") && optim_set(&o, "beta2", 0.9) == -1 && !optim_set(&o, "momentum", 0.9);
    ok &= !optim_init(&o, "iam") && optim_set(&o, "beta2", 0.9) == -1 && !optim_set_base(&o, "adamw");
    ok &= optim_set(&o, "beta2", 0.9) == 0 && !optim_init(&o, "iam-adam") && optim_set_base(&o, "sgd") == -1;
    check(ok, "bases of gpa and iam", 0);
    ok = !optim_init(&o, "iam-adam") && !optim_start(&o, x, 3, NULL, 0) && optim_get(&o, "lr-cap") == 0;
    check(ok, "one vector: no cap from shapes", 0);
    optim_free(&o);
    ok = !optim_init(&o, "prodigy") && optim_set(&o, "slice-p", 2.5) == -2 && !optim_set(&o, "slice-p", 2);
    ok &= isinf(optim_get(&o, "growth-rate")) && !optim_start(&o, x, 3, NULL, 0);
    ok &= optim_state(&o, 3, &ptr, &bytes) && ptr == o.x0 && bytes == 2 * sizeof(float);
    ok &= ((float *)ptr)[0] == 1 && ((float *)ptr)[1] == 3 && !optim_state(&o, 5, &ptr, &bytes);
    ok &= optim_bytes(&o) == sizeof o.s + (3 + 3 + 2 + 2) * sizeof(float);
    ok &= optim_set(&o, "slice-p", 1) == -2 && !optim_set(&o, "d-coef", 2); // x0 is of every second entry
    ok &= optim_set(&o, "d0", 1) == -2;                                     // the estimate has begun
    optim_free(&o);
    ok &= !optim_init(&o, "schedule-free") && optim_set(&o, "beta1", 0) == -2;
    check(ok, "prodigy's slices", 0);
    ok = optim_set(&o, "beta1", 1e-7) == -2 && optim_set(&o, "r", 60) == -2 && optim_set(&o, "eps", 1e-46) == -2;
    ok &= !optim_init(&o, "gpa") && optim_set(&o, "mu-y", 1e-7) == -2 && !optim_set(&o, "mu-y", 1e-3);
    ok &= !optim_init(&o, "prodigy") && optim_set(&o, "d0", 1e-46) == -2 && !optim_set(&o, "d0", 1e-12);
    check(ok, "ranges", 0);
    ok = !optim_init(&o, "diloco") && !optim_set(&o, "inner-steps", 2) && !optim_start(&o, x, 3, NULL, 0);
    o.average = halve;
    for (int t = 0; t < 5; t++) optim_step(&o, g, 1, 1, 0, 0);
    check(ok && averaged == 2 && x[0] < 1, "diloco averages among workers", 0);
    optim_free(&o);
    float y[2] = { 0, 0 }, one[2] = { 1, -1 };
    ok = !optim_init(&o, "sgd") && !optim_set(&o, "momentum", 0) && !optim_set(&o, "lr", 0.25);
    for (int round = 0; round < 2; round++) { // an optimizer may start anew
        ok &= !optim_start(&o, y, 2, NULL, 0) && o.s.t == 0;
        for (int t = 0; t < 4; t++) optim_step(&o, one, 1, 1, 0, 0);
        optim_free(&o);
    }
    check(ok && y[0] == -2 && y[1] == 2, "sgd without momentum dampens nothing", 0);
    one[0] = NAN;
    ok = !optim_init(&o, "adproxgd") && !optim_start(&o, y, 2, NULL, 0);
    optim_step(&o, one, 1, 1, 0, 0);
    check(ok && isnan(y[0]) && y[1] > 2, "a gradient that is not a number is not hidden by a prox", 0);
    optim_free(&o);
    const OptimSegment overlap[2] = { { 0, 2, 0, 0, 0 }, { 1, 1, 0, 0, 0 } }, beyond = { 1, 2, 0, 0, 0 };
    const OptimSegment part = { 0, 2, 2, 2, 0 }, matrix = { 0, 2, 1, 2, 0 };
    ok = !optim_init(&o, "muon") && optim_start(&o, y, 2, overlap, 2) && optim_start(&o, y, 2, &beyond, 1);
    ok &= optim_start(&o, y, 2, &part, 1) && !optim_start(&o, y, 2, &matrix, 1);
    check(ok, "segments that do not fit", 0);
    optim_free(&o);
    ok = !optim_init(&o, "gpa") && !optim_set(&o, "mu-y", 0.9) && !optim_start(&o, y, 2, NULL, 0);
    ok &= optim_set(&o, "mu-y", 0.7) == -2 && !optim_set(&o, "mu-x", 0.9) && !optim_set(&o, "beta1", 0.7);
    optim_free(&o);
    ok &= !optim_init(&o, "schedule-free") && !optim_start(&o, y, 2, NULL, 0) && optim_set(&o, "beta1", 0.8) == -2;
    check(ok, "what x is made of is set before the start", 0);
    optim_free(&o);
    FILE *f = fopen("/dev/null", "w");
    for (int j = 0; j < OPTIM_COUNT(optim_rows) && f; j++) optim_print_help(f, optim_rows[j].name);
    if (f) fclose(f);
}

// What the table promises to who sets nothing: papers' and public codes' defaults.
static void default_tests(void) {
    static const struct { const char *name, *base, *key; double value; } defaults[] = {
        { "adamw", "", "lr", 1e-3 }, { "adamw", "", "beta1", 0.9 }, { "adamw", "", "weight-decay", 0.1 },
        { "adamw", "", "eps", 1e-8 }, { "sgd", "", "lr", 0.1 }, { "sgd", "", "momentum", 0.9 },
        { "sgd", "", "dampening", 0.9 }, { "muon", "", "muon-lr", 0.02 },
        { "muon", "", "muon-momentum", 0.95 }, { "diloco", "", "inner-steps", 32 },
        { "diloco", "", "outer-lr", 0.7 }, { "diloco", "", "outer-momentum", 0.9 },
        { "diloco", "", "beta1", 0.9 }, { "gpa", "", "mu-x", 0.9967 }, { "gpa", "", "mu-y", 0.7 },
        { "gpa", "", "beta1", 0.5 }, { "gpa", "muon", "muon-lr", 0.02 },
        { "schedule-free", "", "lr", 2.5e-3 }, { "schedule-free", "", "beta1", 0.9 },
        { "schedule-free", "", "beta2", 0.999 }, { "schedule-free", "", "r", 0 },
        { "schedule-free-sgd", "", "lr", 1 }, { "prodigy", "", "lr", 1 }, { "prodigy", "", "d0", 1e-6 },
        { "prodigy", "", "beta2", 0.999 }, { "prodigy", "", "d-coef", 1 }, { "prodigy", "", "slice-p", 1 },
        { "dadapt-adam", "", "d0", 1e-6 }, { "resetting", "", "d0", 1e-6 }, { "dog", "", "reps-rel", 1e-6 },
        { "dog", "", "eps", 1e-8 }, { "dowg", "", "eps", 1e-4 }, { "cdowg", "", "eps", 1e-8 },
        { "iam", "", "lambda", 9 }, { "iam", "", "lr-cap", 0 }, { "iam", "muon", "lambda", 4 },
        { "iam", "muon", "matrix-weight", 0.2 }, { "iam-adam", "", "lambda", 4 },
        { "iam-adam", "", "lr-cap", -1 }, { "iam-adam", "", "beta2", 0.999 },
        { "iam-adam", "", "weight-decay", 0 },
        { "adgd", "", "first-step", 0.01 }, { "adgd", "", "version", 2 }, { "adproxgd", "", "l1", 0 },
    };
    Optimizer o;
    for (int i = 0; i < OPTIM_COUNT(defaults); i++) {
        char name[64];
        int ok = !optim_init(&o, defaults[i].name);
        ok = ok && (!*defaults[i].base || !optim_set_base(&o, defaults[i].base));
        snprintf(name, sizeof name, "default: %s %s", defaults[i].name, defaults[i].key);
        check(ok && optim_get(&o, defaults[i].key) == defaults[i].value, name, 0);
    }
}

// Decay moves the tensors whose segments say so, and no others: a step with decay against one without.
static void decay_tests(void) {
    static const char *const of[][2] = { { "adamw", "" }, { "sgd", "" }, { "muon", "" }, { "diloco", "sgd" },
        { "gpa", "adamw" }, { "gpa", "sgd" }, { "gpa", "muon" }, { "schedule-free", "" },
        { "schedule-free-sgd", "" }, { "iam", "sgd" }, { "iam", "adamw" }, { "iam", "muon" },
        { "iam-adam", "" }, { "prodigy", "" }, { "dadapt-adam", "" } };
    OptimSegment tensors[2] = { { 0, 4, 2, 2, 1 }, { 4, 4, 2, 2, 0 } };
    for (int i = 0; i < OPTIM_COUNT(of); i++) {
        float x[2][8], g[8];
        char name[64];
        int ok = 1;
        for (int decay = 0; decay < 2; decay++) {
            Optimizer o;
            ok = ok && !optim_init(&o, of[i][0]) && (!*of[i][1] || !optim_set_base(&o, of[i][1]));
            ok = ok && !optim_set(&o, "weight-decay", decay * 0.5);
            optim_set(&o, "d0", 0.1);
            optim_set(&o, "mu-x", 0.5);
            for (int k = 0; k < 8; k++) x[decay][k] = 1 + (float)k, g[k] = k % 4 == 3 ? 1 : -0.5f;
            ok = ok && !optim_start(&o, x[decay], 8, tensors, 2);
            if (ok) optim_step(&o, g, 1, 1, 2, 1);
            optim_free(&o);
        }
        snprintf(name, sizeof name, "decay of tensors: %s %s", of[i][0], of[i][1]);
        ok = ok && !memcmp(x[0] + 4, x[1] + 4, 4 * sizeof(float));
        for (int k = 0; k < 4; k++) ok = ok && x[0][k] != x[1][k];
        check(ok, name, 0);
    }
}

// A teacher whose loss no student can reach: without the cap IAM's steps grow until nothing is learned.
static void cap_test(const char *name, const char *base) {
    enum { steps = 400 };
    Optimizer o;
    float x[N], grad[N];
    double first = 0, last = 0, longest = 0;
    random_state = 1;
    int ok = !optim_init(&o, name) && (!base || !optim_set_base(&o, base));
    for (int i = 0; i < N; i++) x[i] = (float)uniform();
    ok &= !optim_start(&o, x, N, reference_segments, 3) && optim_get(&o, "lr-cap") == 0.25;  // 1 / 4 columns
    for (long t = 0; t < steps; t++) {
        const double factor = optim_schedule("cosine", t, steps, 20, 0);
        double loss = 0;
        for (int i = 0; i < N; i++) {
            loss += 0.5 * x[i] * x[i];
            grad[i] = x[i] + (float)uniform();
        }
        if (t == 0) first = loss;
        last = loss;
        optim_step(&o, grad, 1, factor, loss, -100);
        longest = fmax(longest, optim_rate(&o, factor) - 0.25 * factor);
    }
    char what[64];
    snprintf(what, sizeof(what), "%s, a teacher out of reach", base ? "iam over muon" : name);
    check(ok && longest <= 1e-12 && last < 0.1 * first, what, last / first);
    optim_free(&o);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void schedule_tests(void) {
    double error = 0, norms[50], factors[50], want[50];
    const struct { const char *kind; long step; double factor; } cases[] = {     // 100 steps, warmup 10
        { "constant", 0, 0.1 }, { "constant", 9, 1 }, { "constant", 99, 1 }, { "cosine", 10, 1 },
        { "cosine", 55, 0.55 }, { "cosine", 100, 0.1 }, { "cosine", 40, 0.1 + 0.9 * 0.75 },
        { "linear", 4, 0.5 }, { "linear", 55, 0.55 }, { "linear", 100, 0.1 },
        { "wsd", 79, 1 }, { "wsd", 80, 1 }, { "wsd", 90, 0.55 }, { "wsd", 100, 0.1 },
    };
    for (int j = 0; j < OPTIM_COUNT(cases); j++) {
        const double factor = optim_schedule(cases[j].kind, cases[j].step, 100, 10, 0.1);
        error = fmax(error, fabs(factor - cases[j].factor));
    }
    check(error < 1e-12 && isnan(optim_schedule("no-such", 0, 1, 0, 0)), "schedules", error);

    for (int l1 = 0; l1 < 2; l1++) {                       // the paper's equations: padded, filtered, weighed
        const int steps = 50, half = 5;                    // tau 0.2: width 2 floor(10/2) + 1
        double total = 0, largest = 0;
        error = 0;
        for (int t = 0; t < steps; t++) norms[t] = 2 + uniform() - 0.02 * t;
        for (int t = 0; t < steps; t++) {
            double around[11];
            for (int j = 0; j < 11; j++) {
                int at = t - half + j;
                if (at < 0) at = 0;
                if (at > steps - 1) at = steps - 1 - (at - (steps - 1));
                around[j] = norms[at];
            }
            qsort(around, 11, sizeof(double), ascending);
            want[t] = l1 ? 1 / around[5] : pow(around[5], -2);
            total += want[t];
        }
        for (int t = 0; t < steps; t++) {
            double tail = 0;
            for (int p = t + 1; p < steps; p++) tail += want[p];
            factors[t] = want[t] * tail / total;
            largest = fmax(largest, factors[t]);
        }
        memcpy(want, factors, sizeof(want));
        const int status = optim_refined(norms, steps, l1 ? "l1" : "l2", 0.2, factors);
        for (int t = 0; t < steps; t++) error = fmax(error, fabs(factors[t] - want[t] / largest));
        check(!status && error < 1e-12 && factors[steps - 1] == 0, l1 ? "refined, l1" : "refined, l2", error);
    }
    for (int t = 0; t < 50; t++) norms[t] = 1;
    error = optim_refined(norms, 50, "l2", 0.1, factors);
    for (int t = 0; t < 50; t++) error = fmax(error, fabs(factors[t] - (49.0 - t) / 49));
    check(error < 1e-12, "refined, equal norms: the linear schedule", error);
    norms[7] = 0;
    check(optim_refined(norms, 50, "l2", 0.1, factors) == -1, "refined refuses a norm of zero", 0);
}

static void proxy_test(void) {
    float a[6][100], out[100], c[100] = {0};
    const OptimSpan all = optim_flat(100, NULL);
    const float average[] = {0, 0.75};
    double error = 0;
    for (int j = 0; j < 5; j++) for (int i = 0; i < 100; i++) a[j][i] = (float)uniform();
    for (int t = 0; t < 2; t++) optim_proxy_correction(all, c, a[1 + t], a[2 + t], average[t]);
    optim_proxy_gradient(all, out, a[0], c, a[3], a[4], 1 / 0.05f);
    for (int i = 0; i < 100; i++) {
        const double want = a[0][i] + 0.75 * (a[1][i] - (double)a[2][i]) +
                            0.25 * (a[2][i] - (double)a[3][i]) + (a[3][i] - (double)a[4][i]) / 0.05;
        error = fmax(error, fabs(out[i] - want) / 40);
    }
    check(error < 1e-6, "the proxy's corrected gradient", error);
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
        reference_tests();
        bits_tests();
        frozen_tests();
        cap_test("iam-adam", NULL);
        cap_test("iam", "muon");
        long_average();
        zero_tests();
        interface_tests();
        default_tests();
        decay_tests();
        schedule_tests();
        proxy_test();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
