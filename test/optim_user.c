/* A user's program: least squares with optim.h and nothing else of ours.

   min_x 1/(2 rows) |A x - b|^2, b = A x_true, by the optimizer named on the command line (adamw). */
#include "../optim.h"

enum { ROWS = 64, COLS = 16, STEPS = 2000 };
static float A[ROWS][COLS], b[ROWS], x[COLS], gradient[COLS], best[COLS];

static double loss_and_gradient(const float *at) {
    double loss = 0;
    memset(gradient, 0, sizeof(gradient));
    for (int i = 0; i < ROWS; i++) {
        float residual = -b[i];
        for (int j = 0; j < COLS; j++) residual += A[i][j] * at[j];
        for (int j = 0; j < COLS; j++) gradient[j] += residual * A[i][j] / ROWS;
        loss += 0.5 * residual * residual / ROWS;
    }
    return loss;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "adamw";
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) {
            A[i][j] = (float)sin(1.0 + 7 * i * i + 3 * j * j + i * j);
            b[i] += A[i][j] * (float)cos(j);                              // x_true = cos 0, cos 1, ..
        }
    Optimizer o;
    if (optim_init(&o, name)) { printf("error: no optimizer named %s\n", name); return 1; }
    optim_set(&o, "lr", 0.03);                                            // refused where it has none
    if (optim_start(&o, x, COLS, NULL, 0)) { printf("error: no memory\n"); return 1; }
    const double first = loss_and_gradient(x);
    for (long t = 0; t < STEPS; t++) {
        const double loss = loss_and_gradient(x);
        optim_step(&o, gradient, 1, optim_schedule("cosine", t, STEPS, 20, 0), loss, 0);
    }
    optim_eval_params(&o, best);
    const double last = loss_and_gradient(best);
    printf("%s: loss %.3g -> %.3g\n", name, first, last);
    optim_free(&o);
    return !(last < 0.01 * first);
}
