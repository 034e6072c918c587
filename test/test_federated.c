// Tests dev/federated.c from inside: what is private and what is sent, the gradients, the aggregators, the
// solution of the convex problem, FedAvg's mean, where clients are measured, the books of a text.
#define _GNU_SOURCE // memmem
#define FEDERATED_NO_MAIN
#include "../dev/federated.c"
#include "check.h"

static const char play[] = "/tmp/test_federated_XXXXXX";

// A play of three speakers, each with words of its own, in a file of that name.
static void write_play(char *path) {
    static const char *const words[3][4] = {{"crown", "sword", "banner", "throne"},
                                            {"apple", "barley", "plough", "meadow"},
                                            {"anchor", "tide", "harbour", "sail"}};
    FILE *f = fdopen(mkstemp(path), "w");
    for (int i = 0; i < 400; i++) {
        fprintf(f, "%s:\n", (const char *[]){"KING", "FARMER", "SAILOR"}[i % 3]);
        for (int j = 0; j < 8; j++) fprintf(f, "%s ", words[i % 3][random_u64(3, i * 8 + j) % 4]);
        fprintf(f, "\n\n");
    }
    fclose(f);
}

static void start(Federation *f, int argc, const char **argv) {
    memset(f, 0, sizeof *f);
    f->options = fed_options(argc, (char **)argv);
    prepare_federation(f);
}
#define START(f, ...) \
    start(f, sizeof((const char *[]){"", __VA_ARGS__}) / sizeof(char *), (const char *[]){"", __VA_ARGS__})

static void rounds(Federation *f, int n) {
    double worst;
    for (int i = 0; i < n; i++) {
        ask(f);
        wait_for_answers(f);
        server_step(f);
    }
    measure(f, EVALUATE, &worst);
}

// ---- what is sent: the tap looks for any two neighbours among the numbers that a client keeps, and any four
// of its text's tokens, at every byte of every message

static Federation *tapped;
static size_t secrets; // so many of a client's numbers are looked for
static long sent, longest, leaks;

static int holds(const char *bytes, size_t n, const void *secret, size_t length) {
    return memmem(bytes, n, secret, length) != NULL;
}

static void look(const Message *m) {
    const char *bytes = (const char *)m;
    size_t n = message_bytes(m);
    const Client *c = &tapped->clients[m->client];
    sent++;
    longest = MAX(longest, (long)n);
    for (size_t i = 0; i + 2 <= secrets; i += 2)
        if (c->x[i] != (int)c->x[i] && c->x[i + 1] != (int)c->x[i + 1]) // a start at 0 or 1 is no secret
            leaks += holds(bytes, n, c->x + i, 8);
    for (size_t i = 0; i + 4 <= c->train.shards[0].count; i += 97)
        leaks += holds(bytes, n, c->train.shards[0].tokens + i, 8);
}

static void test_privacy(const char *path) {
    static Federation f;
    const char *patterns[] = {"h.*.ln_*,ln_f.*", "h.1.*", "wpe.weight,h.0.attn.*"};
    for (int i = 0; i < 3; i++) {
        START(&f, "--data", path, "--private", patterns[i], "--channels", "16", "--context", "16",
              "--rounds", "20", "--client-optimizer", "sgd"); // Adam's first steps are +-lr everywhere
        secrets = f.layout.num_private;
        tapped = &f, wire_tap = look, sent = longest = leaks = 0;
        float before = f.clients[0].x[0];
        rounds(&f, 4);
        wire_tap = NULL;
        check(leaks == 0, "--private %s: %ld pieces of what is private were sent", patterns[i], leaks);
        check(sent == 4 * 6 + 6, "every message is seen: %ld of 30", sent);
        check(longest == 24 + 4 * (long)f.layout.num_shared,
              "the longest message has %ld bytes, %zu floats are shared", longest, f.layout.num_shared);
        check(f.clients[0].x[0] != before && f.clients[0].x[0] != f.clients[1].x[0],
              "private tensors learn, each its own way");
    }
    START(&f, "--data", path, "--method", "fedavg", "--channels", "16", "--context", "16");
    secrets = 200; // the tap has to find what is not private
    tapped = &f, wire_tap = look, leaks = 0;
    rounds(&f, 1);
    wire_tap = NULL;
    check(leaks > 100, "the tap finds parameters where they are sent (%ld)", leaks);
}

// ---- tensors and gradients

static void test_layout(const char *path) {
    static Federation f;
    START(&f, "--data", path, "--private", "h.1.*,wpe.weight", "--channels", "16", "--context", "16");
    Layout *l = &f.layout;
    size_t n = layout_size(l), wrong = 0;
    check(n == count_parameters(f.config), "%zu parameters in the layout, the model has %zu", n,
          count_parameters(f.config));
    check(l->num_private_tensors == 13, "13 tensors are private (%d)", l->num_private_tensors);
    float *x = allocate_floats(n), *params = allocate_floats(n), *back = allocate_floats(n);
    for (size_t i = 0; i < n; i++) x[i] = i;
    to_model(l, params, x, x + l->num_private);
    from_model(l, back, params);
    check(!memcmp(x, back, n * sizeof *x), "to the model and back");
    for (int i = 0; i < l->num_tensors; i++) {
        const Tensor *t = &l->tensors[i];
        wrong += t->private != (!strncmp(t->name, "h.1.", 4) || !strcmp(t->name, "wpe.weight"));
    }
    check(!wrong, "%zu tensors are on the wrong side", wrong);

    // FFGG's answer is the gradient of the shared tensors, at the private ones that the local steps left
    Client *c = &f.clients[0];
    Workspace *t = &f.rooms[0];
    Message *out = f.peers[0].reply[WORKING], *in = f.peers[0].request[WORKING];
    *in = (Message){.kind = WORK, .rate = 1, .count = l->num_shared};
    memcpy(in->payload, f.w, l->num_shared * sizeof(float));
    DataLoader before = c->loader;
    client_answer(&f, c, t, in, out);
    c->loader = before, loader_skip(&c->loader, f.options.trainer.batch); // behind the local step's batch
    client_gradient(&f, c, t, c->x, f.w);
    check(!memcmp(out->payload, t->g + l->num_private, l->num_shared * sizeof(float)),
          "the answer is another gradient");
    float eps = 1e-2f;
    for (size_t at = l->num_private, tried = 0; tried < 5; tried++, at += l->num_shared / 6) {
        DataLoader again = c->loader; // the answer's batch is not drawn any more: another one, three times
        float *w = x, analytic;
        double loss[2];
        memcpy(w, f.w, l->num_shared * sizeof(float));
        client_gradient(&f, c, t, c->x, w);
        analytic = t->g[at];
        for (int side = 0; side < 2; side++) {
            c->loader = again;
            w[at - l->num_private] = f.w[at - l->num_private] + (side ? eps : -eps);
            loss[side] = client_gradient(&f, c, t, c->x, w);
        }
        double numeric = (loss[1] - loss[0]) / (2 * eps);
        check(fabs(numeric - analytic) < 2e-3 + 0.05 * fabs(numeric),
              "d f / d w[%zu]: %g, differences say %g", at, analytic, numeric);
    }
    check(out->kind == RESULT && out->count == l->num_shared, "an answer has the shared tensors' size");
}

// ---- the convex problem

static void test_convex(void) {
    static Federation f;
    START(&f, "--convex", "--misfit", "0.5", "--max-clients", "7", "--attackers", "0.3", "--seed", "5");
    double w_sum[TERM_W] = {0}, largest = 0, sum = 0;
    for (int m = 0; m < 7; m++) {
        float x[TERM_COLS], g[TERM_COLS];
        const Term *t = &f.clients[m].term;
        if (f.clients[m].attacker) continue;
        for (int j = 0; j < TERM_COLS; j++) x[j] = (float)t->solution[j];
        term_gradient(t, x, g);
        for (int j = 0; j < TERM_B; j++) largest = fmax(largest, fabs(g[j]));
        for (int j = 0; j < TERM_W; j++) w_sum[j] += g[TERM_B + j], sum += fabs(g[TERM_B + j]);
        check(term_loss(t, x) < 1e-12, "the loss at the solution is 0 (%g)", term_loss(t, x));
        x[3] += 1;
        check(term_loss(t, x) > 0.1, "and not elsewhere");
    }
    check(largest < 1e-5, "at the solution no client's private gradient is left (%g)", largest);
    for (int j = 0; j < TERM_W; j++) largest = fmax(largest, fabs(w_sum[j]));
    check(largest < 1e-5, "nor the honest ones' mean (%g)", largest);
    check(sum > 1, "with noise they differ (%g)", sum);
}

// FedAvg's server puts the mean of what the clients have made of w in its place, also where the schedule has
// fallen: that is in how far they moved.
static void test_fedavg(void) {
    static Federation f;
    START(&f, "--convex", "--method", "fedavg", "--rounds", "10", "--schedule", "linear");
    rounds(&f, 8);
    double largest = 0;
    for (size_t i = 0; i < f.layout.num_shared; i++) {
        double mean = 0;
        for (int m = 0; m < f.num_clients; m++) mean += (double)f.clients[m].x[i] / f.num_clients;
        largest = fmax(largest, fabs(f.w[i] - mean));
    }
    check(fabs(f.peers[0].request[WORKING]->rate - 0.37) < 1e-6, "the clients' rate falls (%g)",
          f.peers[0].request[WORKING]->rate);
    check(largest < 1e-5, "the server's w is the mean of the clients' (%g)", largest);
}

// By the virtual clock client m's answer takes 1 to 1 + D m/(M-1): the first is always quick, the last comes
// both early and late. An asynchronous step with n of M answers is n/M of a full one; staleness counts steps.
static void test_async(void) {
    static Federation f;
    START(&f, "--convex", "--rounds", "500", "--delay", "8", "--async", "3", "--max-clients", "9");
    int late[9] = {0}, early[9] = {0}, short_steps = 0, wrong = 0, steps = 0, M = f.num_clients;
    size_t d = f.layout.num_shared;
    for (int turn = 0; turn < 400; turn++) {
        int answered = 0;
        long stale = f.stale_sum;
        ask(&f);
        for (int m = 0; m < M; m++) {
            double takes = f.peers[m].arrives - f.peers[m].asked;
            late[m] = MAX(late[m], (int)takes), early[m] |= takes == 1;
        }
        wait_for_answers(&f);
        for (int m = 0; m < M; m++) answered += f.peers[m].state == ANSWERED;
        if (answered < 3) continue;
        double moved[TERM_W] = {0}, largest = 0, expected_stale = 0;
        for (int m = 0; m < M; m++) {
            if (f.peers[m].state != ANSWERED) continue;
            expected_stale += f.steps - f.peers[m].version;
            for (size_t i = 0; i < d; i++)
                moved[i] -= f.optimizer.h.lr * f.peers[m].reply[WORKING]->payload[i] / M;
        }
        for (size_t i = 0; i < d; i++) moved[i] += f.w[i];
        server_step(&f);
        for (size_t i = 0; i < d; i++) largest = fmax(largest, fabs(f.w[i] - moved[i]));
        wrong += largest > 1e-5 || f.stale_sum - stale != expected_stale;
        short_steps += answered < M, steps++;
    }
    check(steps > 100 && short_steps > steps / 2, "%d of %d steps have not all answers", short_steps, steps);
    check(!wrong, "%d of %d asynchronous steps are not n/M of a full one", wrong, steps);
    for (int m = 0; m < M; m++)
        check(early[m] && late[m] == 1 + m, "client %d's answers take 1 (%d) to %d, expected %d", m, early[m],
              late[m], 1 + m);
}

// Clients whose optimizer averages are measured at the average, and train on from it.
static void test_measured(void) {
    static Federation f;
    START(&f, "--convex", "--rounds", "10", "--client-optimizer", "schedule-free-sgd", "--client-lr", "0.1");
    rounds(&f, 5);
    float point[TERM_COLS];
    double worst;
    Client *c = &f.clients[3];
    optim_eval_params(&c->optimizer, point);
    memcpy(point + TERM_B, f.w, TERM_W * sizeof(float));
    check(memcmp(point, c->x, TERM_B * sizeof(float)) != 0, "the average is another point");
    check(f.peers[3].loss == (float)term_loss(&c->term, point), "the loss is %g, at the average %g",
          f.peers[3].loss, term_loss(&c->term, point));
    measure(&f, FINETUNE, &worst); // no steps
    check(!memcmp(point, c->x, sizeof point), "fine-tuning begins at the average");
}

// ---- books

static void test_books(void) {
    static const char text[] = "A preface.\nGe1:1 In\n10:1 Now\n12:30 \n1Sa1:1 There\nGe2:1 Thus\n"
                               "it goes on\n";
    static const char *const books[][2] = {{"Ge", "In\n10:1 Now\n12:30 \nThus\nit goes on\n"},
                                           {"1Sa", "There\n"}};
    Federation f = {0};
    split_books(&f, text, text + sizeof text - 1);
    if (!check(f.num_clients == 2, "%d books, 2 expected", f.num_clients)) return;
    for (int i = 0; i < 2; i++) {
        const Client *c = &f.clients[i];
        check(!strcmp(c->name, books[i][0]) && c->bytes == strlen(books[i][1]) &&
                  !memcmp(c->text, books[i][1], c->bytes),
              "book %d is %s, with %zu bytes: %.*s", i, c->name, c->bytes, (int)c->bytes, c->text);
    }
}

// ---- aggregators

static void test_aggregators(void) {
    enum { N = 11, D = 50 };
    static float memory[2 * N][D], out[D];
    float *g[N];
    double honest[D] = {0};
    const char *names[] = {"mean", "median", "trimmed", "geometric-median", "clipping"};
    for (int kind = MEAN; kind <= CLIPPING; kind++) {
        for (int attack = 0; attack < 3; attack++) { // none; from far away; where centred clipping begins
            int attackers = attack ? 4 : 0;
            double off = 0, scale = 0;
            memset(out, 0, sizeof out);
            memset(honest, 0, sizeof honest);
            for (int m = 0; m < N; m++) {
                g[m] = memory[m];
                random_normal(g[m], D, 0.1f, 77 + m);
                for (int i = 0; i < D; i++) {
                    g[m][i] += 1;
                    if (m >= attackers) honest[i] += g[m][i] / (N - attackers);
                    else g[m][i] = attack == 1 ? -1e4f * (m + 1) : 0;
                }
            }
            aggregate(out, g, N, D, kind, 4.0 / N);
            for (int i = 0; i < D; i++)
                off += (out[i] - honest[i]) * (out[i] - honest[i]), scale += honest[i] * honest[i];
            off = sqrt(off / scale);
            if (kind == MEAN)
                check(attack == 1 ? off > 1e3 : attack ? off > 0.3 : off < 1e-6, "mean, attack %d: off by %g",
                      attack, off);
            else
                check(off < 0.15, "%s, %d of 11 attackers, attack %d: off by %g of the honest mean",
                      names[kind], attackers, attack, off);
        }
    }
    // the geometric median has no gradient: the unit vectors to the messages add up to nothing
    for (int m = 0; m < N; m++) random_normal(g[m], D, m + 1, 99 + m);
    aggregate(out, g, N, D, GEOMETRIC_MEDIAN, 0);
    double pull[D] = {0}, left = 0, distance[N], sorted[N];
    distances(distance, sorted, g, N, D, out);
    for (int i = 0; i < D; i++) {
        for (int m = 0; m < N; m++) pull[i] += (g[m][i] - out[i]) / distance[m];
        left += pull[i] * pull[i];
    }
    check(sqrt(left) < 1e-3, "the geometric median's condition (%g)", sqrt(left));
    // buckets: the mean of their means is the mean of all where they are equally large
    float *h[N];
    for (int m = 0; m < N; m++) h[m] = g[m];
    int count = bucketing(&memory[N][0], h, 10, D, 2, 5);
    double worst = 0;
    for (int i = 0; i < D; i++) {
        double a = 0, b = 0;
        for (int m = 0; m < 10; m++) a += g[m][i] / 10;
        for (int m = 0; m < count; m++) b += h[m][i] / count;
        worst = fmax(worst, fabs(a - b));
    }
    check(count == 5 && worst < 1e-5, "%d buckets of 2 have the mean of all 10 (%g)", count, worst);
    // what is left over is a bucket of its own, another one in every step
    int alone[N] = {0}, different = 0;
    for (int key = 0; key < 40; key++) {
        for (int m = 0; m < N; m++) h[m] = g[m];
        count = bucketing(&memory[N][0], h, N, D, 2, key);
        for (int m = 0; m < N; m++) alone[m] += count == 6 && !memcmp(h[5], g[m], sizeof memory[0]);
    }
    for (int m = 0; m < N; m++) different += alone[m] > 0, count += alone[m];
    check(count == 6 + 40 && different > 5, "one of 11 is left over, %d of them in 40 steps", different);
}

// "A little is enough" hides among the honest ones: with 20 clients of whom 8 attack, Phi(z) = 9/12.
static void test_little(void) {
    float honest[12], *g[12], out;
    double mean = 0, square = 0;
    for (int m = 0; m < 12; m++) honest[m] = (float)(m * m % 7), g[m] = &honest[m], mean += honest[m] / 12;
    for (int m = 0; m < 12; m++) square += (honest[m] - mean) * (honest[m] - mean) / 12;
    little_is_enough(&out, g, 12, 1, 20, 8);
    double z = (mean - out) / sqrt(square);
    check(fabs(z - 0.67449) < 1e-4, "z is %g, 0.67449 expected", z);
}

int main(void) {
    char path[sizeof play];
    memcpy(path, play, sizeof play);
    write_play(path);
    test_privacy(path);
    test_layout(path);
    test_convex();
    test_fedavg();
    test_async();
    test_measured();
    test_books();
    test_aggregators();
    test_little();
    unlink(path);
    return finish();
}
