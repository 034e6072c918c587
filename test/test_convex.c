// The LIBSVM files that dev/convex reads: read, and refused where they lie; its options; gd's norms.
//   ./test/test_convex [--mutations N]       N (300) damaged files
#include "caught.h"
#define main convex_main
#include "../dev/convex.c"
#undef main
#include "check.h"
#include "forked.h"
#include "damaged.h"

static char path[] = "/tmp/test_convex_XXXXXX";

static void put(const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) abort();
}

static void load(void *unused) {
    (void)unused;
    Data d = data_read(path);
    for (long i = 0; i < d.rows; i++)
        for (size_t k = d.row_start[i]; k < d.row_start[i + 1]; k++)
            if (d.col[k] < 0 || d.col[k] >= d.cols || !isfinite(d.value[k])) abort();
    for (size_t k = 0; k < d.col_start[d.cols]; k++)
        if (d.row[k] < 0 || d.row[k] >= d.rows) abort();
    if (d.col_start[d.cols] != d.row_start[d.rows]) abort();
    data_free(&d);
}

static void test_reading(void) {
    put("# two classes\n+1 1:0.5 3:-2e0\n\n-1 2:1 # a remark\n1 3:4\n");
    Data d = data_read(path);
    const float y[] = {1, -1, 1}, value[] = {0.5f, -2, 1, 4}, by_column[] = {0.5f, 1, -2, 4};
    const int col[] = {0, 2, 1, 2};
    check(d.rows == 3 && d.cols == 3 && !memcmp(d.y, y, sizeof y) && !memcmp(d.col, col, sizeof col) &&
              !memcmp(d.value, value, sizeof value) && !memcmp(d.col_value, by_column, sizeof by_column),
          "three rows are read as others");
    data_free(&d);
    put("2 7:1 100000000:2\n0 100000000:3 # columns that are not there take no memory\n");
    d = data_read(path);
    check(d.rows == 2 && d.cols == 2 && d.col[0] == 0 && d.col[1] == 1 && d.col[2] == 1 && d.y[0] == 1 &&
              d.y[1] == -1 && d.value[2] == 3,
          "large indices are not renumbered");
    data_free(&d);
    const char *const cases[][2] = {
        {"", "no data"}, {"1 1:1\n1 1:2\n", "one label"}, {"1 1:1\n2 1:2\n3 1:2\n", ":3: a third label"},
        {"1 1:1\n2 x:2\n", ":2: expected index:value"}, {"x 1:1\n", "label is not a number"},
        {"1 0:1\n", "index below 1"}, {"1 2:1 2:1\n", "do not ascend"}, {"1 100000001:1\n", "over 100000000"},
        {"1 99999999999999999999:1\n", "over 100000000"}, {"1 1:nan\n", "value is not"},
        {"1 1:\n", "value is not"}, {"1 1:1e99\n", "value is not"}, {"inf 1:1\n", "label is not"},
        {"1\n2\n", "no data"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put(cases[i][0]);
        check_refused(load, NULL, cases[i][1]);
    }
}

// argv: a program's name, one option and its value
static void call(void *argv) { convex_main(3, argv); }

static void test_options(void) {
    char *numbers[][3] = {{"", "--l2", "inf"}, {"", "--l1", "inf"}, {"", "--l2", "nan"}, {"", "--l1", "-1"}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        Outcome o = in_child(call, numbers[i]);
        check(o.code == 2 && strstr(o.error, "needs a number"), "%s %s is not refused: exit %d: %s",
              numbers[i][1], numbers[i][2], o.code, o.error);
    }
    char *nowhere[] = {"", "--out", "/nowhere/x.csv"};
    check_refused(call, nowhere, "/nowhere/x.csv: No such file"); // its only line: before the optimum is said
}

// The norms are those of the steps' gradients: a longer run's first ones are a shorter run's.
static void test_norms(void) {
    Problem p = {.data = data_make(), .l2 = 0.01, .box = INFINITY};
    double norms[2][3], residual[500];
    p.residual = residual;
    for (int i = 0; i < 2; i++) {
        Setting s = {.p = &p, .budget = 2 + i, .steps = 2 + i, .norms = norms[i]};
        run(&s, &methods[0], 0.5, NULL);
    }
    check(norms[0][0] == norms[1][0] && norms[0][1] == norms[1][1] && norms[1][2] < norms[1][1],
          "the norms of 2 steps are %g, %g, of 3 %g, %g, %g", norms[0][0], norms[0][1], norms[1][0],
          norms[1][1], norms[1][2]);
    data_free(&p.data);
}

// Gradients are the loss's differences; at the optimum the subgradient is 0; who finds it says how far he is.
static void test_optimum(void) {
    Problem p = {.data = data_make(), .l2 = 0.01, .box = INFINITY};
    int batch[3] = {4, 9, 4};
    double *w = vector(&p), *g = vector(&p), off = 0, residual, f = 0, loss[2];
    p.residual = (double *)grow(NULL, p.data.rows, sizeof(double));
    for (long j = 0; j < p.data.cols; j++) w[j] = 0.1 * normal();
    for (int part = 0; part < 2; part++)
        for (long j = 0; j < p.data.cols; j++) {
            const double at = w[j];
            loss_gradient(&p, w, part ? batch : NULL, 3, g);
            for (int up = 0; up < 2; up++) {
                w[j] = up ? at + 1e-5 : at - 1e-5;
                loss[up] = loss_gradient(&p, w, part ? batch : NULL, 3, NULL);
            }
            w[j] = at;
            off = fmax(off, fabs((loss[1] - loss[0]) / 2e-5 - g[j]));
        }
    check(off < 1e-7, "the gradient is off by %g", off);
    for (int j = 0; j < p.data.cols; j++) f += 0.5 * 0.01 * w[j] * w[j];
    for (long i = 0; i < p.data.rows; i++)
        f += log1p(exp(-p.data.y[i] * row_times(&p.data, i, w))) / p.data.rows;
    check(fabs(f - objective(&p, w)) < 1e-12, "F is %g, not %g", objective(&p, w), f);
    for (int kind = 0; kind < 3; kind++) {
        p.l1 = kind ? 0.02 : 0, p.box = kind == 2 ? 0.2 : INFINITY;
        memset(w, 0, p.data.cols * sizeof *w);
        Setting s = {.p = &p, .x_star = w, .budget = 2000, .steps = 2000};
        s.first_step = first_step(&p, &s.search);
        s.f_star = optimum(&p, s.first_step, w, &residual);
        loss_gradient(&p, w, NULL, 0, g);
        off = 0;
        int low = 0, high = 0, zero = 0;
        for (long j = 0; j < p.data.cols; j++) { // -g is in the subgradient of l1 |w| and the box
            double least = w[j] > 0 ? p.l1 : -p.l1, most = w[j] < 0 ? -p.l1 : p.l1;
            if (w[j] >= p.box) most = INFINITY, high++;
            if (w[j] <= -p.box) least = -INFINITY, low++;
            zero += w[j] == 0;
            off = fmax(off, fmax(least + g[j], -g[j] - most));
        }
        check(off < 1e-9, "l1 %g, box %g: the optimum's subgradient is %g", p.l1, p.box, off);
        check(kind == 0 || (zero && (kind == 1 || (low && high))), "%d zeros, %d and %d at the box", zero, low, high);
        double gap = run(&s, &methods[5], NAN, NULL);
        check(!strcmp(methods[5].label, "adproxgd") && fabs(gap) < 1e-6, "adproxgd ends %g above", gap);
        double l1 = 0;
        for (long j = 0; j < p.data.cols; j++) l1 += fabs(w[j]);
        check(fabs(loss_gradient(&p, w, NULL, 0, NULL) + p.l1 * l1 - s.f_star) < 1e-12, "F* is another");
    }
    data_free(&p.data);
}

// The largest curvature is what the gradient changes by along its eigenvector, and in no direction by more; a
// rate is tuned when half and twice as much end higher.
static void test_curvature_and_rate(void) {
    Problem p = {.data = data_make(), .l2 = 0.01, .box = INFINITY};
    const long n = p.data.cols;
    double *w = vector(&p), *v = vector(&p), *up = vector(&p), *down = vector(&p);
    double largest = 0, off = 0, most = 0;
    p.residual = (double *)grow(NULL, p.data.rows, sizeof(double));
    for (long j = 0; j < n; j++) w[j] = 0.1 * normal();
    for (int i = 0; i < 30; i++) largest = largest_curvature(&p, w, v);
    for (int direction = 0; direction < 11; direction++) { // the eigenvector, then others
        for (long j = 0; j < n; j++) v[j] = direction ? normal() : v[j];
        const double step = 1e-4 / sqrt(norm2(v, n));
        double along = 0;
        for (long j = 0; j < n; j++) w[j] += step * v[j];
        loss_gradient(&p, w, NULL, 0, up);
        for (long j = 0; j < n; j++) w[j] -= 2 * step * v[j];
        loss_gradient(&p, w, NULL, 0, down);
        for (long j = 0; j < n; j++) {
            w[j] += step * v[j];
            const double change = (up[j] - down[j]) / (2 * step);
            along += change * v[j] / norm2(v, n);
            if (!direction) off = fmax(off, fabs(change - largest * v[j]) / sqrt(norm2(v, n)));
        }
        if (direction) most = fmax(most, along);
    }
    check(off < 1e-4 * largest && most > 0 && most < largest,
          "the largest curvature is %g, off by %g; another %g", largest, off, most);
    double norms[50], residual, gap[3];
    Setting s = {.p = &p, .x_star = w, .budget = 50, .steps = 50, .norms = norms};
    s.first_step = first_step(&p, &s.search);
    s.f_star = optimum(&p, s.first_step, w, &residual);
    const double rate = tuned_rate(&s, &methods[0]);
    for (int i = 0; i < 3; i++) gap[i] = run(&s, &methods[0], rate * exp2(i - 1), NULL);
    check(gap[1] < gap[0] && gap[1] < gap[2], "the tuned rate is %g: %g, %g and %g at half, once and twice",
          rate, gap[0], gap[1], gap[2]);
    const double wild = run(&s, &methods[0], 1e6, NULL);
    check(wild == INFINITY, "a run that diverges ends at %g", wild);
    free(w); free(v); free(up); free(down); free(p.residual);
    data_free(&p.data);
}

int main(int argc, char **argv) {
    int times = argc == 3 && !strcmp(argv[1], "--mutations") ? atoi(argv[2]) : 300, file = mkstemp(path);
    if (file < 0) abort();
    close(file);
    test_reading();
    test_options();
    test_norms();
    test_optimum();
    test_curvature_and_rate();
    put("# made for this\n+1 1:0.5 3:-2e0 1000:1\n-1 2:1 # a remark\n+1 3:4 17:0.25 18:-1\n-1 1:1 2:2 3:3\n");
    test_damaged("LIBSVM", path, load, NULL, SIZE_MAX, times);
    unlink(path);
    return finish();
}
