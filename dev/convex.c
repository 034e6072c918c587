/* Logistic regression with the optimizers of optim.h against gradient descent tuned on a grid.

       min_w F(w) = 1/rows sum_i log(1 + exp(-y_i <a_i, w>)) + l2/2 |w|^2 + l1 |w|_1,   |w_j| <= box

   on a LIBSVM-format file (one row a line: `label index:value ..`, indices from 1, ascending), or on a small
   data set made here. Full batches, or --batch N rows at a time. The CSV has a row for each measurement:

       optimizer,lr,evaluations,suboptimality    evaluations: gradients over all rows, batches by their share

   A rate that is not the method's own to find is tuned: that with the lowest F at the end. The
   optimum is AdProxGD's in double precision. With l1 or a box, the methods with a prox remain.

   --curvature 1 adds a column: step length times the Hessian's largest eigenvalue, for methods that step
   along the gradient. Gradient descent on a quadratic diverges above 2; a method that stays near 2 is said to
   be at the edge of stability.

       ./dev/convex --out convex.csv && gnuplot -e "csv='convex.csv'" dev/convex.gp      draws convex.svg */
#define _POSIX_C_SOURCE 200809L                            // getline
#include "../optim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

static char unfinished[4096]; // the CSV until it is whole

static void die(const char *what, const char *where, int code) {
    fprintf(stderr, "error: %s%s%s\n", where ? where : "", where ? ": " : "", what);
    if (*unfinished) remove(unfinished);
    exit(code);
}

static void on_signal(int signal) {
    if (*unfinished) unlink(unfinished);
    _exit(128 + signal);
}

static void *grow(void *memory, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) die("too large for this machine's memory", NULL, 1);
    memory = realloc(memory, count * size + 1);
    if (!memory) die("too large for this machine's memory", NULL, 1);
    return memory;
}

// -----------------------------------------------------------------------------------------------------------
// Data: a sparse matrix, by rows for the margins and by columns for the gradient, so that both are parallel

typedef struct {
    long rows, cols;
    size_t *row_start;    // (rows + 1)
    int *col;             // (row_start[rows])
    float *value;
    float *y;             // (rows), -1 or 1
    size_t *col_start;    // (cols + 1)
    int *row;             // the same entries, column by column
    float *col_value;
} Data;

static void data_transpose(Data *d) {
    const size_t entries = d->row_start[d->rows];
    d->col_start = (size_t *)grow(NULL, d->cols + 2, sizeof(size_t));
    d->row = (int *)grow(NULL, entries, sizeof(int));
    d->col_value = (float *)grow(NULL, entries, sizeof(float));
    memset(d->col_start, 0, (d->cols + 2) * sizeof(size_t));
    for (size_t k = 0; k < entries; k++) d->col_start[d->col[k] + 2]++;
    for (long j = 0; j < d->cols; j++) d->col_start[j + 2] += d->col_start[j + 1];
    for (long i = 0; i < d->rows; i++)                     // col_start[j + 1] walks from column j's start on
        for (size_t k = d->row_start[i]; k < d->row_start[i + 1]; k++) {
            const size_t at = d->col_start[d->col[k] + 1]++;
            d->row[at] = (int)i;
            d->col_value[at] = d->value[k];
        }
}

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

// Leaves out the columns that no row has, whose weights stay 0: memory then goes by what the file holds, not
// by the largest index that it names.
static void data_renumber(Data *d, size_t entries) {
    int *used = (int *)grow(NULL, entries, sizeof(int));
    size_t count = 0;
    memcpy(used, d->col, entries * sizeof(int));
    qsort(used, entries, sizeof(int), ascending);
    for (size_t k = 0; k < entries; k++)
        if (!count || used[k] != used[count - 1]) used[count++] = used[k];
    for (size_t k = 0; k < entries; k++)
        d->col[k] = (int)((int *)bsearch(&d->col[k], used, count, sizeof(int), ascending) - used);
    d->cols = (long)count;
    free(used);
}

static Data data_read(const char *path) {
    enum { MOST = 100000000 };                             // rows, columns: they fit an int, and a memory
    Data d;
    FILE *f = fopen(path, "r");
    char *line = NULL, where[512], third[128];
    size_t room = 0, entries = 0, capacity = 0;
    long rows_room = 0, number = 0;
    double labels[2] = { 0, 0 };
    int num_labels = 0;
    memset(&d, 0, sizeof(d));
    if (!f) die(strerror(errno), path, 1);
    for (ssize_t length; (length = getline(&line, &room, f)) >= 0; ) {
        snprintf(where, sizeof(where), "%.400s:%ld", path, ++number);
        if (strlen(line) != (size_t)length) die("a NUL byte: not a text file", where, 1);
        char *at = line + strspn(line, " \t\r\n"), *end;
        if (!*at || *at == '#') continue;
        if (d.rows == MOST) die("more than 100000000 rows", where, 1);
        if (d.rows + 2 > rows_room) {
            rows_room = 2 * rows_room + 1024;
            d.row_start = (size_t *)grow(d.row_start, rows_room, sizeof(size_t));
            d.y = (float *)grow(d.y, rows_room, sizeof(float));
        }
        const double label = strtod(at, &end);
        if (end == at || !isfinite(label) || !strchr(" \t\r\n", *end))
            die("the label is not a number", where, 1);
        int k = 0;
        while (k < num_labels && labels[k] != label) k++;
        if (k == 2) {
            snprintf(third, sizeof(third), "a third label: %g, %g, %g", labels[0], labels[1], label);
            die(third, where, 1);
        }
        if (k == num_labels) labels[num_labels++] = label;
        d.y[d.rows] = (float)k;
        d.row_start[d.rows] = entries;
        long last = 0;
        for (at = end; *(at += strspn(at, " \t\r\n")) && *at != '#'; at = end) {
            errno = 0;
            const long index = strtol(at, &end, 10);
            if (end == at || *end != ':') die("expected index:value", where, 1);
            if (index < 1) die("an index below 1 (they count from 1)", where, 1);
            if (index <= last) die("indices do not ascend", where, 1);
            if (index > MOST || errno) die("an index over 100000000", where, 1);
            const char *begin = end + 1;
            const float value = strtof(begin, &end);
            if (end == begin || strchr(" \t\r\n", *begin) || !strchr(" \t\r\n", *end) || !isfinite(value))
                die("a value is not a number", where, 1);
            if (entries == capacity) {
                capacity = 2 * capacity + 4096;
                d.col = (int *)grow(d.col, capacity, sizeof(int));
                d.value = (float *)grow(d.value, capacity, sizeof(float));
            }
            d.col[entries] = (int)(index - 1);
            d.value[entries++] = value;
            last = index;
        }
        if (last > d.cols) d.cols = last;
        d.rows++;
    }
    if (ferror(f)) die(strerror(errno), path, 1);
    fclose(f);
    free(line);
    if (!d.rows || !d.cols) die("holds no data", path, 1);
    if (num_labels < 2) die("has one label only, two are needed", path, 1);
    d.row_start[d.rows] = entries;
    const int larger = labels[1] > labels[0];              // of the two labels, the larger is 1
    for (long i = 0; i < d.rows; i++) d.y[i] = (d.y[i] == 1) == larger ? 1.0f : -1.0f;
    if ((size_t)d.cols > entries) data_renumber(&d, entries);
    data_transpose(&d);
    return d;
}

static void data_free(Data *d) {
    free(d->row_start); free(d->col); free(d->value); free(d->y);
    free(d->col_start); free(d->row); free(d->col_value);
}

static unsigned long long random_state = 1;
static double uniform(void) {                              // in [0, 1), splitmix64
    unsigned long long z = random_state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return ((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}
static double normal(void) { return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform()); }

// 500 rows, 40 columns whose scales fall thirtyfold, a fifth of the entries zero, labels of a logistic model.
static Data data_make(void) {
    Data d;
    memset(&d, 0, sizeof(d));
    d.rows = 500;
    d.cols = 40;
    d.row_start = (size_t *)grow(NULL, d.rows + 1, sizeof(size_t));
    d.y = (float *)grow(NULL, d.rows, sizeof(float));
    d.col = (int *)grow(NULL, d.rows * d.cols, sizeof(int));
    d.value = (float *)grow(NULL, d.rows * d.cols, sizeof(float));
    size_t entries = 0;
    double w[40];
    for (int j = 0; j < 40; j++) w[j] = normal();
    for (long i = 0; i < d.rows; i++) {
        double margin = 0;
        d.row_start[i] = entries;
        for (int j = 0; j < d.cols; j++) {
            const double value = normal() * pow(30, -j / 40.0);
            if (uniform() < 0.2) continue;
            d.col[entries] = j;
            d.value[entries++] = (float)value;
            margin += value * w[j];
        }
        d.y[i] = uniform() < 1 / (1 + exp(-margin)) ? 1.0f : -1.0f;
    }
    d.row_start[d.rows] = entries;
    data_transpose(&d);
    return d;
}

// -----------------------------------------------------------------------------------------------------------
// The objective

typedef struct {
    Data data;
    double l2, l1, box;
    double *residual;     // (rows): derivative of the loss by the margin
} Problem;

static double norm2(const double *x, long n) {
    double sum = 0;
    for (long j = 0; j < n; j++) sum += x[j] * x[j];
    return sum;
}

// <a_i, w>
static double row_times(const Data *d, long i, const double *w) {
    double sum = 0;
    for (size_t k = d->row_start[i]; k < d->row_start[i + 1]; k++) sum += d->value[k] * w[d->col[k]];
    return sum;
}

// out += sum_i r_i a_i
static void add_columns(const Data *d, double *out, const double *r) {
    OPTIM_PARALLEL for (long j = 0; j < d->cols; j++)
        for (size_t k = d->col_start[j]; k < d->col_start[j + 1]; k++)
            out[j] += d->col_value[k] * r[d->row[k]];
}

static double softplus(double z) { return z > 0 ? z + log1p(exp(-z)) : log1p(exp(z)); }

// The smooth part of F over the rows batch[0..count) (batch NULL: all), and its gradient unless that is NULL.
static double loss_gradient(Problem *p, const double *w, const int *batch, long count, double *gradient) {
    const Data *d = &p->data;
    double loss = 0;
    if (!batch) count = d->rows;
    OPTIM_PARALLEL for (long b = 0; b < count; b++) {
        const long i = batch ? batch[b] : b;
        p->residual[b] = -d->y[i] * row_times(d, i, w);
    }
    for (long b = 0; b < count; b++) {
        const double z = p->residual[b], y = d->y[batch ? batch[b] : b];
        loss += softplus(z) / count;
        p->residual[b] = -y / (1 + exp(-z)) / count;
    }
    for (long j = 0; j < d->cols && gradient; j++) gradient[j] = p->l2 * w[j];
    if (gradient && !batch) add_columns(d, gradient, p->residual);
    for (long b = 0; b < count && gradient && batch; b++)
        for (size_t k = d->row_start[batch[b]]; k < d->row_start[batch[b] + 1]; k++)
            gradient[d->col[k]] += d->value[k] * p->residual[b];
    return loss + 0.5 * p->l2 * norm2(w, d->cols);
}

static double objective(Problem *p, const double *w) {
    double l1 = 0;
    for (long j = 0; j < p->data.cols; j++) l1 += fabs(w[j]);
    return loss_gradient(p, w, NULL, 0, NULL) + p->l1 * l1;
}

static double prox(const Problem *p, double y, double step) {
    return fmin(fmax(copysign(fmax(fabs(y) - step * p->l1, 0), y), -p->box), p->box);
}

static double *vector(const Problem *p) {
    double *v = (double *)grow(NULL, p->data.cols, sizeof(double));
    memset(v, 0, p->data.cols * sizeof(double));
    return v;
}

// AdGD's first step from 0 (arXiv 2308.02261, ymalitsky/AdProxGD): times 10 while a L <= 2, then halved.
static double first_step(Problem *p, long *evaluations) {
    double *g0 = vector(p), *g1 = vector(p), *x1 = vector(p), a = 0.01;
    loss_gradient(p, x1, NULL, 0, g0);
    *evaluations = 0;
    for (int growing = 1; *evaluations < 100; ) {
        double dg = 0;
        for (long j = 0; j < p->data.cols; j++) x1[j] = prox(p, -a * g0[j], a);
        loss_gradient(p, x1, NULL, 0, g1);
        ++*evaluations;
        for (long j = 0; j < p->data.cols; j++) dg += (g1[j] - g0[j]) * (g1[j] - g0[j]);
        const double dx = norm2(x1, p->data.cols);
        if (dx == 0) break;                                // 0 is the solution
        if (a * sqrt(dg / dx) > 2) { growing = 0; a /= 2; } else if (growing && a < 10) a *= 10; else break;
    }
    free(g0); free(g1); free(x1);
    return a;
}

// AdProxGD in double, from x (0) with a first step a, until the prox residual |x - x_prev|/a is below 1e-12
// or no longer falls. Returns F at the last x; *residual is the smallest on the way there.
static double optimum(Problem *p, double a, double *x, double *residual) {
    double *g = vector(p), *x_prev = vector(p), *g_prev = vector(p);
    double a_prev = a, best = INFINITY;
    for (long t = 0, since = 0; t < 200000 && since < 20000; t++, since++) {
        double dx = 0, dg = 0, moved = 0;
        loss_gradient(p, x, NULL, 0, g);
        if (t) {
            for (long j = 0; j < p->data.cols; j++) {
                dx += (x[j] - x_prev[j]) * (x[j] - x_prev[j]);
                dg += (g[j] - g_prev[j]) * (g[j] - g_prev[j]);
            }
            if (dx == 0) break;
            const double th = t > 1 ? a / a_prev : 1.0 / 3;
            a_prev = a;
            a = fmin(sqrt(2.0 / 3 + th) * a, a / sqrt(fmax(2 * a * a * dg / dx - 1, 0)));
        }
        for (long j = 0; j < p->data.cols; j++) {
            x_prev[j] = x[j];
            g_prev[j] = g[j];
            x[j] = prox(p, x[j] - a * g[j], a);
            moved += (x[j] - x_prev[j]) * (x[j] - x_prev[j]);
        }
        *residual = sqrt(moved) / a;
        if (*residual < best) { best = *residual; since = 0; }
        if (*residual < 1e-12) break;
    }
    *residual = best;
    free(g); free(x_prev); free(g_prev);
    return objective(p, x);
}

// The largest eigenvalue of the smooth part's Hessian at w, 1/rows sum_i s_i (1-s_i) a_i a_i' + l2 I, s_i the
// model's probability: power iterations from v, which is left at the eigenvector for the next call.
static double largest_curvature(Problem *p, const double *w, double *v) {
    const Data *d = &p->data;
    for (int iteration = 0; iteration < 20; iteration++) {
        const double norm = sqrt(norm2(v, d->cols));
        for (long j = 0; j < d->cols; j++) v[j] = norm > 0 ? v[j] / norm : 1 / sqrt((double)d->cols);
        OPTIM_PARALLEL for (long i = 0; i < d->rows; i++) {
            const double s = 1 / (1 + exp(-row_times(d, i, w)));
            p->residual[i] = s * (1 - s) * row_times(d, i, v) / d->rows;
        }
        for (long j = 0; j < d->cols; j++) v[j] *= p->l2;
        add_columns(d, v, p->residual);
    }
    return sqrt(norm2(v, d->cols));
}

// -----------------------------------------------------------------------------------------------------------
// Runs

// name: NULL for gradient descent, written out in run()
// is: t its lr is tuned on the grid, p it has a prox (takes l1 and a box), w it is for one function, not for
//     changing batches, g it steps along the gradient, n the gradient is normalized
// mu_x: GPA's default averages some 300 steps, as many as a run has here.
typedef struct { const char *label, *name, *base, *is, *schedule; double mu_x; } Method;

static const Method methods[] = {
    { "gd", NULL, NULL, "tpg", "constant", 0 },           // proximal gradient descent at a constant rate
    { "gd-linear", NULL, NULL, "tg", "linear", 0 },
    { "gd-refined", NULL, NULL, "tg", "refined", 0 },     // from the norms of gd's gradients
    { "ngd", NULL, NULL, "tgn", "constant", 0 },
    { "adgd", "adgd", NULL, "wg", NULL, 0 },
    { "adproxgd", "adproxgd", NULL, "pwg", NULL, 0 },
    { "dowg", "dowg", NULL, "g", NULL, 0 },
    { "cdowg", "cdowg", NULL, "", NULL, 0 },
    { "dog", "dog", NULL, "g", NULL, 0 },
    { "prodigy", "prodigy", NULL, "", NULL, 0 },
    { "dadapt-adam", "dadapt-adam", NULL, "", NULL, 0 },
    { "resetting", "resetting", NULL, "", NULL, 0 },
    { "sps", "sps", NULL, "g", NULL, 0 },
    { "iam", "iam", NULL, "", NULL, 0 },
    { "iam-adam", "iam-adam", NULL, "", NULL, 0 },
    { "sgd-momentum", "sgd", NULL, "t", NULL, 0 },
    { "adamw", "adamw", NULL, "t", NULL, 0 },
    { "gpa", "gpa", NULL, "t", NULL, 0.9 },
    { "gpa-sgd", "gpa", "sgd", "t", NULL, 0.9 },
    { "schedule-free", "schedule-free", NULL, "t", NULL, 0 },
    { "schedule-free-sgd", "schedule-free-sgd", NULL, "t", NULL, 0 },
};
static int is(const Method *m, char what) { return strchr(m->is, what) != NULL; }

typedef struct {
    Problem *p;
    long budget;          // evaluations of the gradient over all rows
    long batch;           // rows a step, 0: all
    long steps;           // of a run
    double f_star;
    const double *x_star;
    unsigned long long seed; // of the batches
    double first_step;    // AdGD's, and what its search took
    long search;
    int curvature;        // measured
    double *norms;        // (steps) of the gradients of the last run of gd
    double *refined;      // (steps) the schedule made of them
} Setting;

static int applies(const Setting *s, const Method *m, const char *only) {
    return (!only || !strcmp(only, m->label)) && (is(m, 'p') || (s->p->l1 == 0 && s->p->box == INFINITY)) &&
           !(is(m, 'w') && s->batch);
}

#define KNOWN 1e-12 // F* is not known better

// A row of the CSV, but for its last column and its end.
static void write_row(FILE *csv, const Method *m, double lr, double spent, double gap) {
    fprintf(csv, "%s,", m->label);
    if (is(m, 't')) fprintf(csv, "%g", lr);
    fprintf(csv, ",%.10g,%.6e", spent, gap);
}

// One run from 0; F - F* at its end, infinite where it diverged; or KNOWN * the share of the budget after
// which it was that small. Measures into csv unless that is NULL.
static double run(const Setting *s, const Method *m, double lr, FILE *csv) {
    const long cols = s->p->data.cols, rows = s->p->data.rows, batch = s->batch ? s->batch : rows;
    float *x = (float *)grow(NULL, cols, sizeof(float)), *g = (float *)grow(NULL, cols, sizeof(float));
    float *out = (float *)grow(NULL, cols, sizeof(float));
    double *w = vector(s->p), *gradient = vector(s->p), *eigenvector = vector(s->p), gap = INFINITY;
    int *draw = (int *)grow(NULL, batch, sizeof(int));
    const double start = objective(s->p, w);
    double known = 1; // the share of the budget after which F - F* was KNOWN
    const long steps = s->steps, every = (long)fmax(1, (double)rows / batch);
    Optimizer o;
    memset(x, 0, cols * sizeof(float));
    random_state = s->seed;
    if (m->name) {
        optim_init(&o, m->name);
        if (m->base) optim_set_base(&o, m->base);
        if (m->mu_x > 0) optim_set(&o, "mu-x", m->mu_x);
        if (is(m, 't')) optim_set(&o, "lr", lr);
        if (is(m, 'w')) optim_set(&o, "first-step", s->first_step);
        optim_set(&o, "l1", s->p->l1);                     // refused where there is no prox
        optim_set(&o, "box-low", -s->p->box);
        optim_set(&o, "box-high", s->p->box);
        if (optim_start(&o, x, cols, NULL, 0)) die("too large for this machine's memory", NULL, 1);
    }
    for (long t = 0; t <= steps; t++) {
        const double spent = (double)t * batch / rows + (is(m, 'w') ? s->search : 0);
        if (spent > s->budget && t > 0) break;
        const int measures = t % every == 0 || t == steps;
        if (measures) {
            if (m->name) optim_eval_params(&o, out); else memcpy(out, x, cols * sizeof(float));
            for (long j = 0; j < cols; j++) w[j] = out[j];
            gap = objective(s->p, w) - s->f_star;
            if (!(gap < 10 * fabs(start) + 1e3)) { // diverged: a last row says so, as 1e300
                gap = INFINITY;
                if (csv) write_row(csv, m, lr, spent, 1e300), fputs(s->curvature ? ",\n" : "\n", csv);
                break;
            }
            known = gap > KNOWN ? 1 : fmin(known, spent / s->budget);
        }
        for (long b = 0; b < batch && s->batch; b++) draw[b] = (int)(uniform() * rows);
        for (long j = 0; j < cols; j++) w[j] = x[j];
        const double loss = loss_gradient(s->p, w, s->batch ? draw : NULL, batch, gradient);
        double step, curvature = NAN;
        if (csv && measures && s->curvature && is(m, 'g'))
            curvature = largest_curvature(s->p, w, eigenvector);
        if (!m->name) {
            const double norm = sqrt(norm2(gradient, cols));
            const long at = t < steps ? t : steps - 1;
            const int refined = !strcmp(m->schedule, "refined");
            if (!strcmp(m->label, "gd") && t < steps) s->norms[t] = norm;
            step = lr * (refined ? s->refined[at] : optim_schedule(m->schedule, at, steps, 0, 0));
            if (is(m, 'n')) step = norm > 0 ? step / norm : 0;
            for (long j = 0; j < cols; j++) x[j] = (float)prox(s->p, x[j] - step * gradient[j], step);
        } else {
            for (long j = 0; j < cols; j++) g[j] = (float)gradient[j];
            const double star = !s->batch ? s->f_star : loss_gradient(s->p, s->x_star, draw, batch, NULL);
            optim_step(&o, g, 1, 1, loss, star);
            step = o.s.step;
        }
        if (!csv || !measures) continue;
        write_row(csv, m, lr, spent, fmax(gap, 0));
        if (s->curvature) fprintf(csv, isnan(curvature) ? "," : ",%.6g", step * curvature);
        fprintf(csv, "\n");
    }
    if (m->name) optim_free(&o);
    free(x); free(g); free(out); free(w); free(gradient); free(eigenvector); free(draw);
    return gap > KNOWN ? gap : KNOWN * known;
}

// The rate with the lowest F - F* at the end of a run: of the powers of 2, then of the quarters of an octave
// beside it. The rows of its batches are others than those of the run that is measured.
static double tuned_rate(const Setting *s, const Method *m) {
    Setting tuning = *s;
    double best = INFINITY, octave = -14, lr = 0;
    tuning.seed += 1000000007;
    for (int i = 0; i < 25 + 7; i++) {
        if (i == 25) octave = log2(lr);
        const double rate = exp2(i < 25 ? i - 14 : octave + (i - 28) / 4.0);
        const double gap = run(&tuning, m, rate, NULL);
        if (gap < best || i == 0) { best = gap; lr = rate; }
    }
    return lr;
}

static void usage(FILE *f) {
    fprintf(f,
        "usage: dev/convex [options]: logistic regression, optimizers against tuned gradient descent; CSV\n"
        "  --data FILE        LIBSVM format, two labels (default: 500 rows of 40 columns made here)\n"
        "  --l2 X             weight of |w|^2/2 (default 1/rows)\n"
        "  --l1 X             weight of |w|_1 (default 0); with it, or a box, only gd and adproxgd run\n"
        "  --box X            |w_j| <= X (default: none)\n"
        "  --batch N          rows drawn for a gradient (default 0: all); without adgd and adproxgd\n"
        "  --seed N           of the rows drawn (default 1)\n"
        "  --evaluations N    gradients over all rows that a run may take (default 300)\n"
        "  --curvature 1      another column: step length times largest curvature\n"
        "  --optimizer NAME   only this one (default all):");
    for (int j = 0; j < OPTIM_COUNT(methods); j++) fprintf(f, " %s", methods[j].label);
    fprintf(f, "\n  --out FILE         the CSV (default: stdout)\n");
}

static double number(const char *option, const char *text, double least, int whole) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value < INFINITY) ||
        (whole && (value != floor(value) || value > 1e9)))
        die(whole ? "needs a whole number (see --help)" : "needs a number (see --help)", option, 2);
    return value;
}

int main(int argc, char **argv) {
    Problem p;
    Setting s;
    const char *data = NULL, *only = NULL, *path = NULL;
    double l2 = -1, residual;
    for (int fd = 0; fd < 3; fd++)  // whoever closed one gets one that cannot be used: no file has its number
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) < 0) exit(1);
    memset(&p, 0, sizeof(p));
    memset(&s, 0, sizeof(s));
    p.box = INFINITY;
    s.budget = 300;
    s.seed = 1;
    for (int i = 1; i < argc; i += 2) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(option, "--help")) { usage(stdout); return 0; }
        if (!value) die("needs a value, or is unknown (see --help)", option, 2);
        if (!strcmp(option, "--data")) data = value;
        else if (!strcmp(option, "--l2")) l2 = number(option, value, 0, 0);
        else if (!strcmp(option, "--l1")) p.l1 = number(option, value, 0, 0);
        else if (!strcmp(option, "--box")) p.box = number(option, value, 1e-30, 0);
        else if (!strcmp(option, "--batch")) s.batch = (long)number(option, value, 0, 1);
        else if (!strcmp(option, "--seed")) s.seed = (unsigned long long)number(option, value, 0, 1);
        else if (!strcmp(option, "--evaluations")) s.budget = (long)number(option, value, 1, 1);
        else if (!strcmp(option, "--curvature")) s.curvature = (int)number(option, value, 0, 1);
        else if (!strcmp(option, "--optimizer")) only = value;
        else if (!strcmp(option, "--out")) path = value;
        else die("unknown option (see --help)", option, 2);
    }
    int chosen = 0;
    s.p = &p;
    for (int j = 0; j < OPTIM_COUNT(methods); j++) chosen += applies(&s, &methods[j], only);
    if (!chosen) die("no such optimizer (see --help), or not with a prox, or not with batches", only, 2);

    p.data = data ? data_read(data) : data_make();
    p.l2 = l2 >= 0 ? l2 : 1.0 / p.data.rows;
    p.residual = (double *)grow(NULL, p.data.rows, sizeof(double));
    if (s.batch > p.data.rows) die("more rows than there are", "--batch", 2);
    s.steps = (long)((double)s.budget * p.data.rows / (s.batch ? s.batch : p.data.rows));
    s.norms = (double *)grow(NULL, s.steps, sizeof(double));
    memset(s.norms, 0, s.steps * sizeof(double));
    s.refined = (double *)grow(NULL, s.steps, sizeof(double));
    struct stat from, to;
    int there = path && !stat(path, &to);
    int replace = path && (!there || S_ISREG(to.st_mode)); // a device or a pipe is written to as it is
    if (there && data && !stat(data, &from) && from.st_dev == to.st_dev && from.st_ino == to.st_ino)
        die("is --data; choose another --out", path, 2);
    if (replace && snprintf(unfinished, sizeof unfinished, "%s.tmp", path) >= (int)sizeof unfinished)
        die("the path is too long", "--out", 2);
    signal(SIGXFSZ, SIG_IGN); // a file larger than is allowed: the write fails, and says so
    signal(SIGINT, on_signal), signal(SIGTERM, on_signal);
    FILE *csv = replace ? fopen(unfinished, "w") : path ? fopen(path, "w") : stdout;
    if (!csv) die(strerror(errno), path, 1);
    double *x_star = vector(&p);
    s.x_star = x_star;
    s.first_step = first_step(&p, &s.search);
    s.f_star = optimum(&p, s.first_step, x_star, &residual);
    fprintf(stderr, "%ld rows, %ld columns, %zu entries; F* = %.15g (prox residual %.1e)\n", p.data.rows,
            p.data.cols, p.data.row_start[p.data.rows], s.f_star, residual);

    fprintf(csv, "optimizer,lr,evaluations,suboptimality%s\n", s.curvature ? ",step_curvature" : "");
    for (int j = 0; j < OPTIM_COUNT(methods); j++) {
        const Method *m = &methods[j];
        if (!applies(&s, m, only)) continue;
        if (m->schedule && !strcmp(m->schedule, "refined")) {
            Setting other = s;
            other.seed += 1000000007; // on the rows that rates are tuned on
            const double gap = run(&other, &methods[0], tuned_rate(&s, &methods[0]), NULL);
            if (gap == INFINITY || optim_refined(s.norms, s.steps, "l2", 0.1, s.refined)) {
                fprintf(stderr, "%-18s not refined: gd diverged, or has fewer than two gradients above 0\n",
                        m->label);
                continue;
            }
        }
        const double lr = is(m, 't') ? tuned_rate(&s, m) : NAN, last = run(&s, m, lr, csv);
        fprintf(stderr, "%-18s %.3e", m->label, fmax(last, KNOWN));
        const char *hint = lr < exp2(-13) || lr > exp2(9) ? ", whose end is near: scale the columns" : "";
        if (is(m, 't')) fprintf(stderr, "  lr %g of 2^-14..2^10%s", lr, hint);
        fprintf(stderr, "\n");
    }
    if (fflush(csv) || ferror(csv) || (path && fclose(csv)) || (replace && rename(unfinished, path)))
        die(strerror(errno), path ? path : "stdout", 1);
    data_free(&p.data);
    free(p.residual); free(x_star); free(s.norms); free(s.refined);
    return 0;
}
