/* dev/federated.c: partially personalized federated learning on GPT-2 or on a convex problem (FFGG,
Mishchenko, Islamov, Gorbunov and Horvath 2023, arXiv 2305.18285).

M clients have texts of their own, which stay with them. Some tensors of the model, w, are shared; the others,
b_m, are private: every client has its own, and nobody else ever sees them.

       min_w  1/M sum_m F_m(w),     F_m(w) = min_b f_m(w, b)

       in a round, client m:   b_m <- K optimizer steps on f_m(w, .), w fixed
                               g_m  = d f_m / dw at (w, b_m), all that is sent
       the server:             w   <- an optimizer's step with aggregate(g_1, .., g_M)

The problem is called overpersonalized if one w minimizes every F_m. Then all g_m vanish at that w, and so
does what usually hurts: local steps have nowhere to drift to, a stale gradient differs by no more than w has
moved, and a robust mean of gradients that attackers have mixed with theirs errs by no more than the honest
ones differ, which goes to zero. So FFGG comes to the exact solution, at a constant rate, as long as the
honest gradients on the way there agree well enough for the share of attackers; with --async, for their share
in each step's answers, which is now and then above that in all clients. Where no w suits everybody,
synchronous FFGG without attackers still does; attackers, and clients that answer at different rates, leave an
error in proportion to how much the clients' gradients differ at the solution (--misfit makes such a problem);
staleness alone leaves one that a smaller rate makes smaller. On text, batches are noisy and nothing is exact.
There --mean-gradient (ours, beyond the paper) takes noise away for nothing: the backward pass of a local step
has a gradient of w, too, and the client sends the mean of all K + 1. At the solution b_m stands still and
they are the same, so what is exact stays so.

The baselines on the same clients: `local` trains everything and sends nothing; `fedavg` (McMahan et al. 2017)
takes K steps on everything and sends how far the shared tensors moved, w_old - w, which the server takes for
a gradient. Without --private it is FedAvg proper, but for the clients' optimizers, which are not begun anew
in a round: adamw and others keep their m and v. --finetune N lets every client train everything on, alone, at
the end.

   1  options
   2  tensors, private and shared
   3  what a client minimizes: text, or a term of a convex problem with a known solution
   4  a client
   5  messages: in one process, or between MPI's ranks
   6  attackers
   7  aggregation
   8  the server
   9  clients from a text; the command line

In a full round all clients weigh the same; with --async or --deadline each weighs as often as it answers, so
that where no w suits all, w suits the quick ones. Every number drawn depends on --seed only, and sums are
taken in the clients' order, so a run's numbers depend neither on threads nor on ranks (with --clock real they
depend on who comes first). */
#define TRAIN_GPT2_NO_MAIN
#include "../train_gpt2.c"
#ifdef FEDERATED_MPI
#include <mpi.h>
#endif

// ===========================================================================================================
// 1  Options (the table and its help stand in chapter 9)

typedef enum { FFGG, FEDAVG, LOCAL } Method;
typedef enum { MEAN, MEDIAN, TRIMMED, GEOMETRIC_MEDIAN, CLIPPING } Aggregator;
typedef enum { SIGN_FLIP, NOISE, LITTLE, NAN_SENDER, SILENT } Attack;

typedef struct {
    Options trainer; // of which it takes some, listed in chapter 9
    const char *data, *split, *tokenizer;
    int convex, min_bytes, max_clients;
    double misfit;
    const char *method_name, *patterns;
    int rounds, local_steps, mean_gradient, finetune;
    double finetune_lr;
    const char *server_optimizer, *client_optimizer, *schedule;
    double clip;
    const char *aggregator_name;
    double trim;
    int bucket;
    double attackers;
    const char *attack_name;
    int async, delay;
    double deadline;
    const char *clock;
    int eval_every;
    const char *out;
    // what the names above mean
    Method method;
    Aggregator aggregator;
    Attack attack;
    Optimizer server, client; // their hyperparameters, not started
} FedOptions;

// ===========================================================================================================
// 2  Tensors, private and shared

typedef struct {
    char name[64]; // as Hugging Face calls it, such as h.0.ln_1.weight; b or w of the convex problem
    int private;
    size_t place;         // where it begins among the model's parameters
    OptimSegment segment; // where it begins in a vector (b, w), and what an optimizer wants to know
} Tensor;

// A client's parameters as one vector: first the private tensors, b (num_private), then the shared ones, w
// (num_shared).
typedef struct {
    Tensor *tensors;
    int num_tensors, num_private_tensors;
    size_t num_private, num_shared;
} Layout;

static void add_tensor(Layout *l, const char *name, OptimSegment segment) {
    l->tensors = resize(l->tensors, (size_t)(l->num_tensors + 1) * sizeof *l->tensors);
    Tensor *t = &l->tensors[l->num_tensors];
    *t = (Tensor){.place = l->num_tensors ? t[-1].place + t[-1].segment.size : 0, .segment = segment};
    snprintf(t->name, sizeof t->name, "%s", name);
    l->num_tensors++;
}

static void add_model_tensors(Layout *l, GPT2Config g) {
    char name[64];
    for (int i = 0; i < NUM_TENSORS; i++) {
        TensorShape t = tensor_shape(g, i);
        for (int layer = 0; layer < MAX(t.layers, 1); layer++) {
            OptimSegment segment = {.size = layer_size(t), .decay = t.cols > 0};
            if (is_linear(t)) segment.rows = t.rows, segment.cols = t.cols;
            snprintf(name, sizeof name, t.hf_name, layer);
            add_tensor(l, name, segment);
        }
    }
}

// Makes private what the patterns match (as a shell matches file names; commas between them), and lays the
// vector out.
static void make_private(Layout *l, const char *patterns) {
    char pattern[256];
    for (const char *p = patterns, *end; *p; p = *end ? end + 1 : end) {
        int matches = 0;
        end = p + strcspn(p, ",");
        snprintf(pattern, sizeof pattern, "%.*s", (int)(end - p), p);
        for (int i = 0; i < l->num_tensors; i++)
            if (!fnmatch(pattern, l->tensors[i].name, 0)) l->tensors[i].private = matches = 1;
        if (!matches)
            die("--private %s matches no tensor; they are called %s to %s", pattern, l->tensors[0].name,
                l->tensors[l->num_tensors - 1].name);
    }
    Tensor *sorted = resize(NULL, (size_t)l->num_tensors * sizeof *sorted);
    size_t offset = 0;
    int n = 0;
    for (int side = 1; side >= 0; side--) { // private, then shared
        for (int i = 0; i < l->num_tensors; i++) {
            if (l->tensors[i].private != side) continue;
            sorted[n] = l->tensors[i];
            sorted[n++].segment.offset = offset;
            offset += l->tensors[i].segment.size;
        }
        if (side) l->num_private = offset, l->num_private_tensors = n;
    }
    l->num_shared = offset - l->num_private;
    free(l->tensors);
    l->tensors = sorted;
}

static size_t layout_size(const Layout *l) { return l->num_private + l->num_shared; }

// params, in the model's order, from b and w.
static void to_model(const Layout *l, float *params, const float *b, const float *w) {
    for (int i = 0; i < l->num_tensors; i++) {
        const Tensor *t = &l->tensors[i];
        const float *from = t->private ? b + t->segment.offset : w + t->segment.offset - l->num_private;
        memcpy(params + t->place, from, t->segment.size * sizeof(float));
    }
}

// x, a vector (b, w), from parameters or gradients in the model's order.
static void from_model(const Layout *l, float *x, const float *params) {
    for (int i = 0; i < l->num_tensors; i++) {
        const Tensor *t = &l->tensors[i];
        memcpy(x + t->segment.offset, params + t->place, t->segment.size * sizeof(float));
    }
}

// Starts an optimizer of x, which holds tensors [first, last) of the layout.
static void start_vector(Optimizer *o, const Optimizer *hyper, const Layout *l, int first, int last,
                         float *x) {
    OptimSegment *segments = resize(NULL, (size_t)l->num_tensors * sizeof *segments);
    size_t n = 0;
    for (int i = first; i < last; i++) {
        segments[i - first] = l->tensors[i].segment;
        segments[i - first].offset = n;
        n += l->tensors[i].segment.size;
    }
    *o = *hyper;
    if (optim_start(o, x, n, segments, last - first)) die("out of memory for the optimizers");
    free(segments);
}

// ===========================================================================================================
// 3  What a client minimizes

// A term of the convex problem, f(b, w) = |B b + A w - y|^2 / (2 rows), y = B b* + A w* + misfit * noise. The
// clients' b* and the scales of their A and B differ; without noise w* suits them all, and the problem is
// overpersonalized. Each client's A is blind to one direction, another for each, so that alone none can find
// w*.
enum { TERM_ROWS = 200, TERM_B = 10, TERM_W = 20, TERM_COLS = TERM_B + TERM_W };
typedef struct {
    double (*z)[TERM_COLS];     // (rows) B and A side by side; NULL: this client has a text
    double *y;                  // (rows)
    double scale;               // std of z, before A is made blind
    double solution[TERM_COLS]; // its own b and everybody's w
} Term;

typedef struct {
    char *name, *text; // the text until it is tokenized
    size_t bytes;
    int attacker;
    Dataset train, val;
    DataLoader loader;
    Term term;

    float *x;  // (b, w): its own b, and a w that counts if it trains everything
    int alone; // its own w counts when it is measured: local, or fine-tuned
    Optimizer optimizer; // of the first n of x, b or all
} Client;

// A thread's room to work for one client after the other. Ranks of MPI have one thread for their clients.
typedef struct {
    GPT2 model;            // unused by the convex problem
    float *params, *grads; // in the model's order
    float *g;              // (b, w)
    uint16_t *x, *y;       // (B,T)
} Workspace;

// f and its gradient at x = (b, w).
static double term_gradient(const Term *t, const float *x, float *grad) {
    double loss = 0, g[TERM_COLS] = {0};
    for (int i = 0; i < TERM_ROWS; i++) {
        double residual = -t->y[i];
        for (int j = 0; j < TERM_COLS; j++) residual += t->z[i][j] * x[j];
        for (int j = 0; j < TERM_COLS; j++) g[j] += residual * t->z[i][j];
        loss += residual * residual;
    }
    for (int j = 0; j < TERM_COLS; j++) grad[j] = (float)(g[j] / TERM_ROWS);
    return loss / (2 * TERM_ROWS);
}

// What counts as its validation loss: half the mean square of the difference between the predictions of x and
// of the solution, over fresh rows that are not blind. So it counts what the client itself cannot see of w.
static double term_loss(const Term *t, const float *x) {
    double square = 0;
    for (int j = 0; j < TERM_COLS; j++) square += (x[j] - t->solution[j]) * (x[j] - t->solution[j]);
    return t->scale * t->scale * square / 2;
}

static void make_term(Term *t, double misfit, uint64_t seed, int client) {
    float truth[TERM_COLS], blind[TERM_W], normal[TERM_COLS + 1];
    uint64_t stream = seed * 100003 + (TERM_ROWS + 3ull) * client;
    double length = 0;
    random_normal(truth, TERM_B, 3, stream);
    random_normal(truth + TERM_B, TERM_W, 1, seed * 100003 - 1);
    random_normal(blind, TERM_W, 1, stream + 1);
    for (int j = 0; j < TERM_W; j++) length += blind[j] * blind[j];
    t->scale = exp2((random_uniform(stream + 2, 0) - 0.5) / 2);
    t->z = allocate(TERM_ROWS, sizeof *t->z);
    t->y = allocate(TERM_ROWS, sizeof *t->y);
    for (int i = 0; i < TERM_ROWS; i++) {
        double *b = t->z[i], *a = b + TERM_B, seen = 0;
        random_normal(normal, TERM_COLS + 1, 1, stream + 3 + i);
        for (int j = 0; j < TERM_COLS; j++) b[j] = t->scale * normal[j];
        for (int j = 0; j < TERM_W; j++) seen += a[j] * blind[j] / length;
        for (int j = 0; j < TERM_W; j++) a[j] -= seen * blind[j];
        for (int j = 0; j < TERM_COLS; j++) t->y[i] += b[j] * truth[j];
        t->y[i] += misfit * normal[TERM_COLS];
    }
}

// Rows of the normal equations, the right side in the last column.
typedef double System[TERM_COLS][TERM_COLS + 1];

// Takes the unknowns [first, end) out of all rows from `first` on but their own (Gauss and Jordan).
static void eliminate(System H, int first, int end) {
    for (int k = first; k < end; k++)
        for (int i = first; i < TERM_COLS; i++) {
            double factor = i == k ? 0 : H[i][k] / H[k][k];
            for (int j = k; j <= TERM_COLS; j++) H[i][j] -= factor * H[k][j];
        }
}

// Every client's part of the solution, w* over the clients that are no attackers. A client's b stands in its
// own equations alone: they are solved for it, and what is left for w (the Schur complement) is summed.
static void solve_terms(Client *clients, int count) {
    System *H = allocate(count, sizeof *H), total = {{0}};
    for (int m = 0; m < count; m++) {
        const Term *t = &clients[m].term;
        for (int i = 0; i < TERM_ROWS; i++)
            for (int j = 0; j < TERM_COLS; j++) {
                for (int k = 0; k < TERM_COLS; k++) H[m][j][k] += t->z[i][j] * t->z[i][k];
                H[m][j][TERM_COLS] += t->z[i][j] * t->y[i];
            }
        eliminate(H[m], 0, TERM_B);
        for (int j = TERM_B; j < TERM_COLS && !clients[m].attacker; j++)
            for (int k = TERM_B; k <= TERM_COLS; k++) total[j][k] += H[m][j][k];
    }
    eliminate(total, TERM_B, TERM_COLS);
    for (int m = 0; m < count; m++) {
        double *x = clients[m].term.solution;
        for (int j = TERM_B; j < TERM_COLS; j++) x[j] = total[j][TERM_COLS] / total[j][j];
        for (int j = 0; j < TERM_B; j++) {
            x[j] = H[m][j][TERM_COLS];
            for (int k = TERM_B; k < TERM_COLS; k++) x[j] -= H[m][j][k] * x[k];
            x[j] /= H[m][j][j];
        }
    }
    free(H);
}

// ===========================================================================================================
// 4  A client

typedef struct Message Message;

// What the server knows of a client. Work and measurements have messages of their own, for a client may be at
// work when it is measured.
enum { WORKING, MEASURING, LANES };
typedef struct {
    enum { IDLE, BUSY, ANSWERED } state;
    Message *request[LANES], *reply[LANES];
    long version;          // the server's steps when it was asked
    double asked, arrives; // times; the virtual clock knows when the answer arrives
    int gone;              // by the real clock: it was given up, and has not answered since
    double loss;           // at the last measurement
#ifdef FEDERATED_MPI
    MPI_Request sending[LANES]; // of requests, on the server; of replies, on the client's rank
#endif
} Peer;

typedef struct {
    FedOptions options;
    Tokenizer tokenizer;
    GPT2Config config;
    Layout layout;
    Client *clients;
    Peer *peers;
    int num_clients;
    Workspace *rooms;    // (num_rooms())
    float *w;            // (num_shared) the server's
    float *point;        // (num_shared) where it is evaluated, the same but for optimizers that average
    Optimizer optimizer; // of w
    float *aggregate;    // (num_shared) the last one
    float *buckets;      // (num_clients / bucket, rounded up, num_shared) means of messages
    int *asked;          // (num_clients) whom a turn asks, or measures
    float **answers;     // (num_clients) the messages of a step
    float noise;         // the attackers'
    double start, clock; // the clock is virtual, or counts seconds from start
    long steps;          // the server's
    long used, refused, missed, stale_sum, stale_max; // answers; missed: given up
    uint64_t bytes_up, bytes_down;
    FILE *log;
} Federation;

// Answers that are over, whatever became of them.
static long spent(const Federation *f) { return f->used + f->refused + f->missed; }

// The training loss of a client at (b, w), and its gradient in t->g (b, w): on its next batch, or its whole
// term.
static double client_gradient(const Federation *f, Client *c, Workspace *t, const float *b, const float *w) {
    double loss;
    to_model(&f->layout, t->params, b, w);
    if (c->term.z) loss = term_gradient(&c->term, t->params, t->grads);
    else {
        int B = f->options.trainer.batch, T = c->loader.T;
        loader_next(&c->loader, t->x, t->y, B);
        gpt2_forward(&t->model, t->x, B, T);
        loss = gpt2_backward(&t->model, t->y, 1.0f / ((float)B * (float)T), NULL);
    }
    from_model(&f->layout, t->g, t->grads);
    if (!isfinite(loss)) {
#pragma omp critical // one client says it
        die("the loss of client %s is not a number: the run diverges; lower --server-lr or --client-lr",
            c->name);
    }
    return loss;
}

// The client's (b, w) where it is measured, into t->g (b, w): its x, but for optimizers that average; w as
// given where that is not the client's alone.
static void client_point(const Federation *f, const Client *c, Workspace *t, const float *w) {
    const Layout *l = &f->layout;
    optim_eval_params(&c->optimizer, t->g);
    if (!c->alone) memcpy(t->g + l->num_private, w, l->num_shared * sizeof(float));
}

// The validation loss, on text in nats per token.
static double client_loss(const Federation *f, Client *c, Workspace *t, const float *w) {
    client_point(f, c, t, w);
    to_model(&f->layout, t->params, t->g, t->g + f->layout.num_private);
    if (c->term.z) return term_loss(&c->term, t->params);
    return evaluate(&t->model, &c->val, c->loader.T, 0);
}

// Gives the client a new optimizer, of b or of everything.
static void client_start(const Federation *f, Client *c, int everything) {
    const Layout *l = &f->layout;
    int tensors = everything ? l->num_tensors : l->num_private_tensors;
    optim_free(&c->optimizer);
    start_vector(&c->optimizer, &f->options.client, l, 0, tensors, c->x);
}

static float clip_factor(const FedOptions *o, const float *g, size_t n) {
    double norm = o->clip > 0 ? sqrt(optim_norm2(g, n)) : 0;
    return norm > o->clip ? (float)(o->clip / norm) : 1.0f;
}

// A step on b alone with the server's w, or on everything.
static void client_step(const Federation *f, Client *c, Workspace *t, const float *w, double rate) {
    size_t n = c->optimizer.n;
    const float *shared = n > f->layout.num_private ? c->x + f->layout.num_private : w;
    double loss = client_gradient(f, c, t, c->x, shared);
    optim_step(&c->optimizer, t->g, clip_factor(&f->options, t->g, n), rate, loss, 0);
}

// ===========================================================================================================
// 5  Messages

// All that is ever sent: a head of 24 bytes and floats, which are the shared tensors (WORK, EVALUATE,
// FINETUNE), their gradient or how far they moved (RESULT), or a single loss (LOSS, a measurement for the
// log).
typedef enum { WORK, EVALUATE, FINETUNE, STOP, RESULT, LOSS } MessageKind;
struct Message {
    int32_t kind, client, job;
    float rate; // the schedule's factor
    uint64_t count;
    float payload[]; // (count)
};

static size_t message_bytes(const Message *m) { return sizeof *m + m->count * sizeof(float); }

static int lane_of(const Message *m) { return m->kind == WORK || m->kind == RESULT ? WORKING : MEASURING; }

static void (*wire_tap)(const Message *m); // the test's, which looks at every byte

// Every message passes here.
static void on_the_wire(const Message *m) {
    if (wire_tap) wire_tap(m);
}

// A message's share of the traffic. Work is counted: a request when it is sent, an answer when the clock
// takes it, so not one that was given up. Measurements are not.
static uint64_t traffic(const Message *m) { return m->count ? message_bytes(m) : 0; }

// What a client does with a message, and what it answers.
static void client_answer(const Federation *f, Client *c, Workspace *t, const Message *in, Message *out) {
    const Layout *l = &f->layout;
    const FedOptions *o = &f->options;
    const float *w = in->payload;
    *out = (Message){.kind = in->kind == WORK ? RESULT : LOSS, .client = in->client, .job = in->job};
    if (in->kind == WORK && o->method == FFGG) {
        const float *g = t->g + l->num_private;
        float share = o->mean_gradient ? 1.0f / (float)(o->local_steps + 1) : 1;
        out->count = l->num_shared;
        memset(out->payload, 0, out->count * sizeof(float));
        for (int k = 0; k <= o->local_steps; k++) {
            if (k < o->local_steps) client_step(f, c, t, w, in->rate);
            else client_gradient(f, c, t, c->x, w);
            if (k == o->local_steps || o->mean_gradient)
                for (size_t i = 0; i < out->count; i++) out->payload[i] += share * g[i];
        }
    } else if (in->kind == WORK) {
        float *own = c->x + l->num_private;
        if (o->method == FEDAVG) memcpy(own, w, l->num_shared * sizeof(float));
        for (int k = 0; k < o->local_steps; k++) client_step(f, c, t, NULL, in->rate);
        out->count = o->method == FEDAVG ? l->num_shared : 0;
        for (size_t i = 0; i < out->count; i++) out->payload[i] = w[i] - own[i];
    } else {
        if (in->kind == FINETUNE) {
            client_point(f, c, t, w);
            memcpy(c->x, t->g, layout_size(l) * sizeof(float));
            c->alone = 1;
            client_start(f, c, 1);
            for (int k = 0; k < o->finetune; k++)
                client_step(f, c, t, NULL,
                            o->finetune_lr * optim_schedule(o->schedule, k, o->finetune, 0, 0));
        }
        out->count = 1;
        out->payload[0] = (float)client_loss(f, c, t, w);
    }
}

#ifdef FEDERATED_MPI
static int mpi_rank, mpi_size = 1;
#else
enum { mpi_rank = 0, mpi_size = 1 };
#endif

static int num_rooms(void) { return mpi_size > 1 ? 1 : omp_get_max_threads(); }

// Whether answers come when they are ready, or when a virtual clock says so.
static int real_clock(const Federation *f) { return mpi_size > 1 && !strcmp(f->options.clock, "real"); }

// How long to wait for a client: --deadline, in rounds of the virtual clock or in seconds.
static double patience(const Federation *f) {
    return f->options.deadline > 0 ? f->options.deadline : real_clock(f) ? 600 : INFINITY;
}

#ifdef FEDERATED_MPI
/* Rank 0 serves, client m lives on rank 1 + m mod (ranks - 1). Nobody waits for a message to be taken: a
client's rank may be busy with another client of its own, and a server that waited for it would wait for a
rank that waits for the server. The tag of a message says whose it is, and whether it is work. */
static void mpi_send(Federation *f, int m, Message *message) {
    int to = mpi_rank ? 0 : 1 + m % (mpi_size - 1), lane = lane_of(message);
    MPI_Isend(message, (int)message_bytes(message), MPI_BYTE, to, LANES * m + lane, MPI_COMM_WORLD,
              &f->peers[m].sending[lane]);
}

// Takes one message off the network, if one is there, into its peer's buffer. It may answer a request that
// was given up long ago: only its job tells. Returns whether one was there.
static int mpi_receive(Federation *f) {
    int there, bytes;
    MPI_Status s;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &there, &s);
    if (!there) {
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        return 0;
    }
    Message *reply = f->peers[s.MPI_TAG / LANES].reply[s.MPI_TAG % LANES];
    MPI_Get_count(&s, MPI_BYTE, &bytes);
    size_t most = s.MPI_TAG % LANES == WORKING ? f->layout.num_shared : 1;
    if ((size_t)bytes > sizeof *reply + most * sizeof(float))
        die("rank %d sends what is no message of this program", s.MPI_SOURCE);
    MPI_Recv(reply, bytes, MPI_BYTE, s.MPI_SOURCE, s.MPI_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    on_the_wire(reply);
    return 1;
}

// Whether client m has taken what it was sent last; by the virtual clock, waits until it has.
static int mpi_taken(Federation *f, int m, int lane) {
    for (int done;;) {
        MPI_Test(&f->peers[m].sending[lane], &done, MPI_STATUS_IGNORE);
        if (done || real_clock(f)) return done;
        mpi_receive(f);
    }
}

// Waits for client m's answer, or, with m = -1, for anybody's that is expected. Returns whose it is, -1 if
// none comes in time.
static int mpi_take(Federation *f, int m, int lane, double seconds) {
    for (double end = now() + seconds;; mpi_receive(f)) {
        for (int i = MAX(m, 0); i < (m < 0 ? f->num_clients : m + 1); i++) {
            const Peer *p = &f->peers[i];
            if ((m >= 0 || p->state == BUSY) && p->reply[lane]->job == p->request[lane]->job) return i;
        }
        if (now() >= end) return -1;
    }
}

// Waits until a client has taken what it was sent to work on: all were given up, and their ranks may be late.
static int mpi_listens(Federation *f, double seconds) {
    for (double end = now() + seconds; now() < end; mpi_receive(f))
        for (int m = 0; m < f->num_clients; m++)
            if (mpi_taken(f, m, WORKING)) return 1;
    return 0;
}

// The life of a rank that has clients.
static void mpi_clients(Federation *f) {
    size_t room = sizeof(Message) + f->layout.num_shared * sizeof(float);
    Message *in = allocate(room, 1);
    for (;;) {
        MPI_Recv(in, (int)room, MPI_BYTE, 0, MPI_ANY_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (in->kind == STOP) break;
        Client *c = &f->clients[in->client];
        Peer *p = &f->peers[in->client];
        MPI_Wait(&p->sending[lane_of(in)], MPI_STATUS_IGNORE);
        client_answer(f, c, &f->rooms[0], in, p->reply[lane_of(in)]);
        if (in->kind == WORK && c->attacker && f->options.attack == SILENT) continue;
        mpi_send(f, in->client, p->reply[lane_of(in)]);
    }
    for (int m = 0; m < f->num_clients; m++) MPI_Waitall(LANES, f->peers[m].sending, MPI_STATUSES_IGNORE);
    MPI_Request home;
    MPI_Ibarrier(MPI_COMM_WORLD, &home);
    MPI_Wait(&home, MPI_STATUS_IGNORE);
}

// Sends every rank home, and takes what they still have to say; a rank that does not go is left to mpirun to
// end.
static void mpi_stop(Federation *f) {
    MPI_Request home;
    double limit = real_clock(f) ? fmax(60, patience(f)) : INFINITY;
    int done = 0;
    Message stop = {.kind = STOP}; // not a request's memory, which may still be on its way
    for (int rank = 1; rank < mpi_size; rank++) {
        MPI_Request sent;
        MPI_Isend(&stop, sizeof stop, MPI_BYTE, rank, 0, MPI_COMM_WORLD, &sent);
        MPI_Request_free(&sent);
    }
    MPI_Ibarrier(MPI_COMM_WORLD, &home);
    for (double end = now() + limit; !done && now() < end; mpi_receive(f))
        MPI_Test(&home, &done, MPI_STATUS_IGNORE);
    if (!done) die("a rank does not stop, and is ended; the results are complete");
}
#else
static void mpi_send(Federation *f, int m, Message *message) { (void)f, (void)m, (void)message; }
static int mpi_receive(Federation *f) { return (void)f, 0; }
static int mpi_taken(Federation *f, int m, int lane) { return (void)f, (void)m, (void)lane, 1; }
static int mpi_listens(Federation *f, double seconds) { return (void)f, (void)seconds, 1; }
static int mpi_take(Federation *f, int m, int lane, double s) { return (void)f, (void)lane, (void)s, m; }
static void mpi_stop(Federation *f) { (void)f; }
#endif

// Sends w, or the point to measure at, to some clients. In one process they answer at once, side by side;
// when such an answer arrives is the clock's affair.
static void post(Federation *f, const int *to, int count, MessageKind kind, double rate) {
    size_t n = f->options.method == LOCAL ? 0 : f->layout.num_shared;
    int lane = kind == WORK ? WORKING : MEASURING;
    for (int i = 0; i < count; i++) {
        Message *request = f->peers[to[i]].request[lane];
        int job = request->job + 1;
        *request = (Message){.kind = kind, .client = to[i], .job = job, .rate = (float)rate, .count = n};
        memcpy(request->payload, kind == WORK ? f->w : f->point, n * sizeof(float));
        on_the_wire(request);
        if (kind == WORK) f->bytes_down += traffic(request);
        if (mpi_size > 1) mpi_send(f, to[i], request);
    }
    if (mpi_size > 1) return;
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < count; i++) {
        Peer *p = &f->peers[to[i]];
        client_answer(f, &f->clients[to[i]], &f->rooms[omp_get_thread_num()], p->request[lane],
                      p->reply[lane]);
    }
    for (int i = 0; i < count; i++)
        if (f->clients[to[i]].attacker == 0 || f->options.attack != SILENT)
            on_the_wire(f->peers[to[i]].reply[lane]);
}

// ===========================================================================================================
// 6  Attackers. They know everything, and change their messages when all others are known.

// Sign flip sends -10 times its own gradient; noise has 10 times the size of the first gradient, for ever.
#define ATTACK_SCALE 10.0f

// "A little is enough" (Baruch, Baruch and Goldberg 2019): mean - z std of the honest messages, coordinate by
// coordinate, with z as large as lets the attackers and the honest ones beyond pass for the majority of M.
static void little_is_enough(float *out, float *const *g, int honest, size_t d, int M, int attackers) {
    double p = (double)(M - attackers - MAX(M / 2 + 1 - attackers, 1)) / (M - attackers), z = -10;
    for (double step = 10; step > 1e-9; step /= 2) // the largest z with Phi(z) <= p
        if (erfc(-(z + step) / M_SQRT2) / 2 <= p) z += step;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < d; i++) {
        double mean = 0, square = 0;
        for (int m = 0; m < honest; m++) mean += (double)g[m][i] / honest;
        for (int m = 0; m < honest; m++) square += (g[m][i] - mean) * (g[m][i] - mean) / honest;
        out[i] = (float)(mean - z * sqrt(square));
    }
}

// Puts the attackers' messages in the place of what they would have answered, once the others' are there.
static void attack(Federation *f) {
    const FedOptions *o = &f->options;
    size_t d = f->layout.num_shared;
    int M = f->num_clients, honest = 0, attackers = 0;
    float **g = f->answers; // the honest ones'
    for (int m = 0; m < M; m++) {
        attackers += f->clients[m].attacker;
        if (f->peers[m].state == ANSWERED && !f->clients[m].attacker)
            g[honest++] = f->peers[m].reply[WORKING]->payload;
    }
    for (int m = 0; m < M; m++) {
        float *x = f->peers[m].reply[WORKING]->payload;
        if (f->peers[m].state != ANSWERED || !f->clients[m].attacker) continue;
        if (!f->noise) f->noise = ATTACK_SCALE * sqrtf(optim_norm2(x, d) / d);
        if (o->attack == LITTLE && honest) little_is_enough(x, g, honest, d, M, attackers);
        if (o->attack == NOISE)
            random_normal(x, d, f->noise, (uint64_t)o->trainer.seed * 65537 + (uint64_t)spent(f) * M + m);
        float factor = o->attack == SIGN_FLIP ? -ATTACK_SCALE : o->attack == NAN_SENDER ? NAN : 1;
        for (size_t i = 0; i < d; i++) x[i] *= factor;
    }
}

// ===========================================================================================================
// 7  Aggregation: out (d) from n messages g[m] (d), some of them an attacker's

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The mean of each coordinate without its `trim` smallest and largest numbers; with trim = (n-1)/2 it is the
// median (Yin et al. 2018).
static void trimmed_mean(float *out, float *const *g, int n, size_t d, int trim) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < d; i++) {
        double sum = 0, x[n];
        for (int m = 0; m < n; m++) {
            int at = m;
            for (; trim && at > 0 && x[at - 1] > g[m][i]; at--) x[at] = x[at - 1];
            x[at] = g[m][i];
        }
        for (int m = trim; m < n - trim; m++) sum += x[m];
        out[i] = (float)(sum / (n - 2 * trim));
    }
}

// distance[m] = |g[m] - v|, and the same in order.
static void distances(double *distance, double *sorted, float *const *g, int n, size_t d, const float *v) {
#pragma omp parallel for schedule(static)
    for (int m = 0; m < n; m++) {
        double sum = 0;
        for (size_t i = 0; i < d; i++) sum += ((double)g[m][i] - v[i]) * ((double)g[m][i] - v[i]);
        distance[m] = sqrt(sum);
    }
    memcpy(sorted, distance, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_doubles);
}

// v = (1 - sum of weights) v + sum of weight[m] g[m].
static void move_towards(float *v, float *const *g, int n, size_t d, const double *weight) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < d; i++) {
        double sum = 0;
        for (int m = 0; m < n; m++) sum += weight[m] * ((double)g[m][i] - v[i]);
        v[i] += (float)sum;
    }
}

// The point with the least sum of distances to the messages (Pillutla et al. 2019, "RFA"), by Weiszfeld's
// iteration from the median of the coordinates; distances below a millionth of the median one count as that.
static void geometric_median(float *v, float *const *g, int n, size_t d) {
    double distance[n], sorted[n];
    trimmed_mean(v, g, n, d, (n - 1) / 2);
    for (int iteration = 0; iteration < 32; iteration++) {
        double total = 0;
        distances(distance, sorted, g, n, d, v);
        if (sorted[n / 2] == 0) break; // most messages are this point
        for (int m = 0; m < n; m++) total += distance[m] = 1 / fmax(distance[m], 1e-6 * sorted[n / 2]);
        for (int m = 0; m < n; m++) distance[m] /= total;
        move_towards(v, g, n, d, distance);
    }
}

// Centred clipping (Karimireddy, He and Jaggi 2021): v, which comes in as the last aggregate, moves by the
// mean of the messages' differences from it, each cut to a radius. That is the lower quartile of their
// lengths: a fixed one would let the attackers push as hard near the solution as far from it, this one
// shrinks with the honest messages. But `cut` messages, the attackers', may be v itself, and would make it 0:
// then it is the next longer one.
static void centred_clipping(float *v, float *const *g, int n, size_t d, int cut) {
    double distance[n], sorted[n];
    for (int iteration = 0; iteration < 10; iteration++) {
        distances(distance, sorted, g, n, d, v);
        double radius = sorted[MAX(n / 4, cut)];
        for (int m = 0; m < n; m++) distance[m] = (distance[m] > radius ? radius / distance[m] : 1) / n;
        move_towards(v, g, n, d, distance);
    }
}

// Means of `size` messages at a time, in a random order, take the messages' place: they differ less, and a
// robust mean of them errs less (Karimireddy, He and Jaggi 2022). But an attacker spoils a whole bucket: the
// share of attackers times the size has to stay below a half. Returns how many buckets.
static int bucketing(float *buckets, float **g, int n, size_t d, int size, uint64_t key) {
    int count = (n + size - 1) / size;
    for (int b = 0; b < count; b++) {
        float *mean = buckets + b * d;
        int members = MIN(size, n - b * size);
        memset(mean, 0, d * sizeof *mean);
        for (int i = 0; i < members; i++) {
            const float *from = g[permute(b * size + i, n, key)];
            for (size_t j = 0; j < d; j++) mean[j] += from[j] / members;
        }
    }
    for (int b = 0; b < count; b++) g[b] = buckets + b * d;
    return count;
}

// out (d) = the aggregate of g (n,d). trim: the share of attackers, which TRIMMED cuts off at either end,
// rounded up. CLIPPING begins at out.
static void aggregate(float *out, float **g, int n, size_t d, Aggregator kind, double trim) {
    int half = (n - 1) / 2, cut = MIN((int)ceil(trim * n - 1e-9), half);
    if (kind == GEOMETRIC_MEDIAN) geometric_median(out, g, n, d);
    else if (kind == CLIPPING) centred_clipping(out, g, n, d, cut);
    else trimmed_mean(out, g, n, d, kind == TRIMMED ? cut : kind == MEDIAN ? half : 0);
}

// ===========================================================================================================
// 8  The server

// The schedule's factor. A round is as many answers as there are clients; on texts a fifth of them is warmup.
static double schedule_now(const Federation *f) {
    const FedOptions *o = &f->options;
    long round = MIN(spent(f) / f->num_clients, o->rounds - 1);
    return optim_schedule(o->schedule, round, o->rounds, o->convex ? 0 : o->rounds / 5, 0.1);
}

// Asks everybody who has nothing to do. By the virtual clock client m's answer takes 1 + a random number from
// 0 to D m/(M-1), D from --delay: some clients are always quick, others now and then very slow.
static void ask(Federation *f) {
    const FedOptions *o = &f->options;
    int count = 0;
    if (real_clock(f)) f->clock = now() - f->start; // a measurement may have come between
    for (int m = 0; m < f->num_clients; m++) {
        Peer *p = &f->peers[m];
        if (p->state != IDLE || !mpi_taken(f, m, WORKING)) continue;
        uint64_t most = (uint64_t)o->delay * m / MAX(f->num_clients - 1, 1);
        uint64_t draw = random_u64((uint64_t)o->trainer.seed * 31 + m, (uint64_t)p->request[WORKING]->job);
        p->state = BUSY;
        p->version = f->steps;
        p->asked = f->clock;
        p->arrives = f->clock + 1 + (double)(draw % (most + 1));
        if (f->clients[m].attacker && o->attack == SILENT) p->arrives = INFINITY;
        f->asked[count++] = m;
    }
    post(f, f->asked, count, WORK, schedule_now(f));
}

// Lets time go on to the next answers, or to when one is given up. The virtual clock takes all that are due,
// the real one all that are there.
static void wait_for_answers(Federation *f) {
    double limit = patience(f), next = INFINITY;
    int busy = -1;
    for (int m = 0; m < f->num_clients; m++) {
        Peer *p = &f->peers[m];
        if (p->state != BUSY) continue;
        busy = m;
        next = fmin(next, real_clock(f) ? p->asked + limit : fmin(p->arrives, p->asked + limit));
    }
    if (real_clock(f)) {
        if (busy >= 0) mpi_take(f, -1, WORKING, next - (now() - f->start));
        else if (!mpi_listens(f, fmax(60, limit))) die("no client's rank takes any message");
        while (mpi_receive(f)) {} // nobody is given up whose answer is here
        next = now() - f->start;
    } else if (next == INFINITY)
        die("client %s never answers, and without --deadline the server waits for ever",
            f->clients[busy].name);
    f->clock = next;
    for (int m = 0; m < f->num_clients; m++) {
        Peer *p = &f->peers[m];
        if (p->state != BUSY) continue;
        int due = real_clock(f) || p->arrives <= next;
        if (due && mpi_take(f, m, WORKING, real_clock(f) ? 0 : INFINITY) == m) {
            p->state = ANSWERED;
            p->gone = 0;
            f->bytes_up += traffic(p->reply[WORKING]);
        } else if (p->asked + limit <= next) {
            p->state = IDLE;
            p->gone = real_clock(f);
            f->missed++;
        }
    }
}

// One step with the answers that are there and can be used: of the right length, and finite. An asynchronous
// step is shorter, so that with SGD an answer weighs 1/M as in a full round. FedAvg's has no schedule: how
// far the clients moved has theirs in it.
static void server_step(Federation *f) {
    const FedOptions *o = &f->options;
    size_t d = o->method == LOCAL ? 0 : f->layout.num_shared;
    double rate = o->method == FEDAVG ? 1 : schedule_now(f);
    float **g = f->answers;
    int n = 0;
    if (d) attack(f);
    for (int m = 0; m < f->num_clients; m++) {
        Peer *p = &f->peers[m];
        Message *reply = p->reply[WORKING];
        if (p->state != ANSWERED) continue;
        p->state = IDLE;
        if (reply->kind != RESULT || reply->count != d || !isfinite(optim_norm2(reply->payload, d))) {
            f->refused++;
            continue;
        }
        long stale = f->steps - p->version;
        f->used++, f->stale_sum += stale, f->stale_max = MAX(f->stale_max, stale);
        g[n++] = reply->payload;
    }
    long rounds = MIN(10L, o->rounds);
    if (!f->used && spent(f) >= rounds * f->num_clients)
        die("no client has sent anything usable in %ld rounds", rounds);
    if (n && d) {
        if (o->async) rate *= (double)n / f->num_clients;
        if (o->bucket > 1)
            n = bucketing(f->buckets, g, n, d, o->bucket, random_u64((uint64_t)o->trainer.seed, f->steps));
        aggregate(f->aggregate, g, n, d, o->aggregator, o->trim);
        optim_step(&f->optimizer, f->aggregate, o->method == FFGG ? clip_factor(o, f->aggregate, d) : 1.0f,
                   rate, 0, 0);
        f->steps++;
    }
}

// The honest clients' losses as they are (EVALUATE), or after each has trained on alone (FINETUNE). Returns
// the mean. By the real clock those that have gone are left out.
static double measure(Federation *f, MessageKind kind, double *worst) {
    int count = 0, honest = 0, answers = 0, *to = f->asked;
    double sum = 0, wait = patience(f); // for a step or an evaluation
    if (kind == FINETUNE) wait *= 1 + f->options.finetune;
    for (int m = 0; m < f->num_clients; m++) {
        Peer *p = &f->peers[m];
        if (f->clients[m].attacker) continue;
        honest++;
        p->gone = p->gone || !mpi_taken(f, m, MEASURING); // the last one's question is still on the way
        if (!p->gone) to[count++] = m;
    }
    optim_eval_params(&f->optimizer, f->point);
    post(f, to, count, kind, 1);
    *worst = -INFINITY;
    for (int i = 0; i < count; i++) {
        Peer *p = &f->peers[to[i]];
        p->gone = mpi_take(f, to[i], MEASURING, real_clock(f) ? wait : INFINITY) < 0;
        if (p->gone) continue;
        p->loss = p->reply[MEASURING]->payload[0];
        sum += p->loss, answers++;
        *worst = fmax(*worst, p->loss);
    }
    if (!answers) die("no client says its loss; are their ranks alive?");
    if (answers < honest) printf("of %d clients %d say their loss in time\n", honest, answers);
    if (!isfinite(sum))
        die("the loss is not a number after %ld server steps: the run diverges; lower the rates", f->steps);
    return sum / answers;
}

static const char log_header[] = "round,time,steps,bytes_up,bytes_down,stale_mean,stale_max,refused,missed,"
                                 "mean_loss,worst_loss\n";
static void log_row(Federation *f, double mean, double worst) {
    double round = (double)spent(f) / f->num_clients, stale = f->used ? (double)f->stale_sum / f->used : 0;
    printf("round %.0f/%d | loss mean %.6g worst %.6g | %.2f MB up, %.2f MB down | stale %.1f, at most %ld",
           round, f->options.rounds, mean, worst, f->bytes_up / 1e6, f->bytes_down / 1e6, stale,
           f->stale_max);
    if (f->refused) printf(" | %ld refused", f->refused);
    if (f->missed) printf(" | %ld given up", f->missed);
    printf("\n");
    fflush(stdout);
    if (!f->log) return;
    fprintf(f->log, "%.2f,%.6g,%ld,%llu,%llu,%.3f,%ld,%ld,%ld,%.9g,%.9g\n", round, f->clock, f->steps,
            (unsigned long long)f->bytes_up, (unsigned long long)f->bytes_down, stale, f->stale_max,
            f->refused, f->missed, mean, worst);
    if (fflush(f->log)) die("cannot write %s/log.csv: %s", f->options.out, strerror(errno));
}

static void serve(Federation *f) {
    const FedOptions *o = &f->options;
    long end = (long)o->rounds * f->num_clients, every = (long)o->eval_every * f->num_clients, due = every;
    double mean, worst;
    f->start = now();
    mean = measure(f, EVALUATE, &worst);
    log_row(f, mean, worst);
    for (int finished = 0; !finished;) {
        int busy = 0, answered = 0;
        ask(f);
        wait_for_answers(f);
        for (int m = 0; m < f->num_clients; m++)
            busy += f->peers[m].state == BUSY, answered += f->peers[m].state == ANSWERED;
        if (busy && spent(f) < end && !(o->async && answered >= o->async)) continue;
        server_step(f);
        finished = spent(f) >= end;
        if (!finished && (!every || spent(f) < due)) continue;
        while (every && due <= spent(f)) due += every;
        mean = measure(f, EVALUATE, &worst);
        log_row(f, mean, worst);
    }
    double tuned_worst = 0, tuned = o->finetune ? measure(f, FINETUNE, &tuned_worst) : 0; // it may print
    printf("final mean loss %.6g, worst %.6g", mean, worst);
    if (o->finetune)
        printf("; after %d steps of fine-tuning %.6g, worst %.6g", o->finetune, tuned, tuned_worst);
    printf("\n");
}

// ===========================================================================================================
// 9  Clients from a text; the command line

// Gives a piece of text to the client of that name, a new one if need be.
static void give_text(Federation *f, const char *name, size_t length, const char *text, size_t bytes) {
    int m = 0;
    while (m < f->num_clients && (strncmp(f->clients[m].name, name, length) || f->clients[m].name[length]))
        m++;
    if (m == f->num_clients) {
        f->clients = resize(f->clients, (size_t)++f->num_clients * sizeof *f->clients);
        f->clients[m] = (Client){.name = strndup(name, length)};
    }
    Client *c = &f->clients[m];
    c->text = resize(c->text, c->bytes + bytes);
    memcpy(c->text + c->bytes, text, bytes);
    c->bytes += bytes;
}

// A play: speeches with empty lines between, each under a line `NAME:`, which is left out.
static void split_speakers(Federation *f, const char *text, const char *end) {
    const char *name = NULL;
    size_t length = 0;
    int after_empty = 1;
    for (const char *line = text, *next; line < end; line = next) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        if (after_empty && stop > line && stop[-1] == ':' && stop - line <= 60)
            name = line, length = (size_t)(stop - 1 - line);
        else if (name) give_text(f, name, length, line, (size_t)(next - line));
        after_empty = stop == line;
    }
    if (!name) die("%s has no speakers: no line `NAME:` after an empty one", f->options.data);
}

// A book of books: lines `BOOK CHAPTER:VERSE text`, such as `Ge1:1 In the beginning`; what stands before the
// text is left out. Other lines go on with the verse above them.
static void split_books(Federation *f, const char *text, const char *end) {
    const char *name = NULL;
    size_t length = 0;
    for (const char *line = text, *next; line < end; line = next) {
        const char *stop = memchr(line, '\n', (size_t)(end - line)), *p = line;
        next = stop ? stop + 1 : end;
        if (isdigit((unsigned char)*p)) p++; // 1Sa, 2Sa
        const char *letters = p;
        while (isalpha((unsigned char)*p)) p++;
        const char *name_end = p;
        while (*p == ' ') p++;
        const char *chapter = p;
        while (isdigit((unsigned char)*p)) p++;
        if (name_end > letters && p > chapter && *p == ':' && isdigit((unsigned char)p[1])) {
            name = line, length = (size_t)(name_end - line);
            while (p < next && *p != ' ') p++;
            line = p + (p < next);
        }
        if (name) give_text(f, name, length, line, (size_t)(next - line));
    }
    if (!name) die("%s has no books: no line such as `Ge1:1 In the beginning`", f->options.data);
}

static int longer_first(const void *a, const void *b) {
    const Client *x = a, *y = b;
    return x->bytes != y->bytes ? (x->bytes < y->bytes) - (x->bytes > y->bytes) : strcmp(x->name, y->name);
}

static int is_here(int client) {
    return mpi_size == 1 || (mpi_rank && client % (mpi_size - 1) == mpi_rank - 1);
}

// A client's tokens, from its text: of the clients that are here, and on rank 0 of all, to say what is wrong.
static void tokenize_client(const Federation *f, Client *c, uint64_t seed) {
    size_t count;
    const uint16_t *tokens = tokenizer_encode(&f->tokenizer, c->text, c->bytes, c->name, &count);
    dataset_add(&c->train, tokens, count);
    dataset_split(&c->train, &c->val);
    c->loader = (DataLoader){&c->train, f->config.max_seq_len, seed, 0, 0};
    if (dataset_tokens(&c->train) <= (size_t)c->loader.T || dataset_tokens(&c->val) < 2)
        die("client %s has only %zu tokens, too few for --context %d; raise --min-bytes", c->name, count,
            c->loader.T);
}

// Reads the texts, splits them among clients, and makes or loads the model that all begin with.
static void prepare_text(Federation *f) {
    const FedOptions *o = &f->options;
    const Options *trainer = &o->trainer;
    size_t read, length = 0;
    char *text = read_texts(o->data, "\n\n", &read); // a file's end is the end of a speech, and of a book
    if (memchr(text, 0, read)) die("%s holds a zero byte: it is not a text", o->data);
    for (size_t i = 0; i < read; i++) // lines may end in "\r\n"
        if (text[i] != '\r') text[length++] = text[i];
    text[length] = 0;
    if (!strcmp(o->split, "speakers")) split_speakers(f, text, text + length);
    else split_books(f, text, text + length);
    qsort(f->clients, f->num_clients, sizeof *f->clients, longer_first);
    int kept = 0;
    while (kept < f->num_clients && f->clients[kept].bytes >= (size_t)o->min_bytes) kept++;
    if (o->max_clients && kept > o->max_clients) kept = o->max_clients;
    if (!kept) die("%s: no client has a text of --min-bytes %d", o->data, o->min_bytes);

    GPT2 *m = &f->rooms[0].model;
    Tokenizer *t = &f->tokenizer;
    if (*trainer->model) {
        gpt2_load(m, trainer->model);
        check_asked_shape(trainer, m->config, trainer->model, 0);
    }
    if (!*trainer->model || !tokenizer_load(t, trainer->model)) {
        tokenizer_init(t, o->tokenizer, text, length, NULL);
        if (*trainer->model && !mpi_rank)
            printf("tokenizer  %d %s: the model has none beside it\n", t->vocab_size, o->tokenizer);
    }
    free(text);
    f->config = *trainer->model ? m->config
        : (GPT2Config){trainer->context, t->vocab_size, trainer->layers, trainer->heads, trainer->channels};
    check_config(f->config, "the command line");
    if (t->vocab_size > f->config.vocab_size)
        die("the tokenizer has %d tokens, the model knows %d", t->vocab_size, f->config.vocab_size);
    add_model_tensors(&f->layout, f->config);
    for (int i = 0; i < f->num_clients; i++) {
        Client *c = &f->clients[i];
        if (i < kept && (is_here(i) || !mpi_rank)) tokenize_client(f, c, trainer->seed + 1000003ull * i);
        free(c->text), c->text = NULL;
    }
    f->num_clients = kept;
    size_t batch_tokens = (size_t)trainer->batch * f->config.max_seq_len;
    for (int i = 0; i < num_rooms(); i++) {
        Workspace *w = &f->rooms[i];
        if (i || !*trainer->model) gpt2_allocate(&w->model, f->config);
        gpt2_allocate_activations(&w->model, trainer->batch, f->config.max_seq_len, 1);
        w->params = w->model.params_memory, w->grads = w->model.grads_memory;
        w->x = allocate(batch_tokens, sizeof *w->x);
        w->y = allocate(batch_tokens, sizeof *w->y);
    }
    if (!*trainer->model) gpt2_initialize(m, (uint64_t)trainer->seed, GPT2_STD);
}

static void prepare_convex(Federation *f) {
    const FedOptions *o = &f->options;
    char name[32];
    f->num_clients = o->max_clients ? o->max_clients : 20;
    f->clients = allocate(f->num_clients, sizeof *f->clients);
    for (int m = 0; m < f->num_clients; m++) {
        snprintf(name, sizeof name, "%d", m);
        f->clients[m].name = strdup(name);
        make_term(&f->clients[m].term, o->misfit, (uint64_t)o->trainer.seed, m);
    }
    add_tensor(&f->layout, "b", (OptimSegment){.size = TERM_B});
    add_tensor(&f->layout, "w", (OptimSegment){.size = TERM_W});
    for (int i = 0; i < num_rooms(); i++)
        f->rooms[i].params = allocate_floats(TERM_COLS), f->rooms[i].grads = allocate_floats(TERM_COLS);
}

// A client's messages, and where it lives its own x, which begins as everybody's.
static void prepare_client(Federation *f, int m, const float *x) {
    const Layout *l = &f->layout;
    Client *c = &f->clients[m];
    Peer *p = &f->peers[m];
    for (int lane = 0; lane < LANES; lane++) {
        size_t answer = lane == WORKING ? l->num_shared : 1;
        p->request[lane] = allocate(1, sizeof(Message) + l->num_shared * sizeof(float));
        p->reply[lane] = allocate(1, sizeof(Message) + answer * sizeof(float));
#ifdef FEDERATED_MPI
        p->sending[lane] = MPI_REQUEST_NULL;
#endif
    }
    c->alone = f->options.method == LOCAL;
    if (!is_here(m)) return;
    c->x = allocate_floats(layout_size(l));
    memcpy(c->x, x, layout_size(l) * sizeof(float));
    client_start(f, c, f->options.method != FFGG);
}

static void print_federation(const Federation *f, int attackers) {
    const FedOptions *o = &f->options;
    const Layout *l = &f->layout;
    printf("clients    %d", f->num_clients);
    if (attackers) printf(", of whom %d attack (%s)", attackers, o->attack_name);
    if (!o->convex)
        printf(", with %zu to %zu bytes; %d layers, %d channels, context %d, %d tokens",
               f->clients[f->num_clients - 1].bytes, f->clients[0].bytes, f->config.num_layers,
               f->config.channels, f->config.max_seq_len, f->config.vocab_size);
    printf("\nparameters %zu shared, %zu private", l->num_shared, l->num_private);
    for (int i = 0; i < l->num_private_tensors; i++)
        printf("%s%s", !i ? ": " : i % 6 ? ", " : ",\n           ", l->tensors[i].name);
    printf("\nmethod     %s, %d local steps of %s, server %s, %s%s\n", o->method_name, o->local_steps,
           o->client_optimizer, o->server_optimizer, o->aggregator_name,
           o->mean_gradient ? " of mean gradients" : "");
}

// All that a run needs, from its options.
static void prepare_federation(Federation *f) {
    const FedOptions *o = &f->options;
    Layout *l = &f->layout;
    f->rooms = allocate(num_rooms(), sizeof *f->rooms);
    optim_matmul = muon_matmul;
    if (o->convex) prepare_convex(f);
    else prepare_text(f);
    int M = f->num_clients, attackers = (int)(o->attackers * M + 0.5);
    make_private(l, o->patterns);
    if (attackers == M) die("all of %d clients would be attackers", M);
    if (o->async > M) die("--async %d: there are only %d clients", o->async, M);
    if (o->attackers > 0 && !attackers) die("--attackers %g of %d clients is none", o->attackers, M);
    if (mpi_size > 1 && l->num_shared > (INT_MAX - sizeof(Message)) / sizeof(float))
        die("the shared tensors do not fit a message of MPI's");
    if (mpi_size - 1 > M) die("%d ranks for %d clients and the server; start fewer", mpi_size, M);
    for (int i = 0; i < attackers; i++)
        f->clients[permute(i, M, (uint64_t)o->trainer.seed + 99)].attacker = 1;
    if (o->convex && M - attackers < 2)
        die("--convex needs two honest clients, for one alone does not determine w; raise --max-clients");
    if (o->convex) solve_terms(f->clients, M);
    if (o->method == FFGG && (!l->num_private || !l->num_shared))
        die("--method ffgg wants some tensors private and others shared; --private makes %d of %d private",
            l->num_private_tensors, l->num_tensors);
    if (o->method == FEDAVG && !l->num_shared) die("nothing is shared; take --method local");
    float *x = allocate_floats(layout_size(l));
    from_model(l, x, f->rooms[0].params);
    for (int i = 0; i < num_rooms(); i++) f->rooms[i].g = allocate_floats(layout_size(l));
    f->peers = allocate(M, sizeof *f->peers);
    for (int m = 0; m < M; m++) prepare_client(f, m, x);
    f->w = allocate_floats(l->num_shared), f->point = allocate_floats(l->num_shared);
    f->aggregate = allocate_floats(l->num_shared);
    f->asked = allocate(M, sizeof *f->asked);
    f->answers = allocate(M, sizeof *f->answers);
    if (o->bucket > 1) f->buckets = allocate_floats((M + o->bucket - 1) / o->bucket * l->num_shared);
    memcpy(f->w, x + l->num_private, l->num_shared * sizeof(float));
    start_vector(&f->optimizer, &o->server, l, l->num_private_tensors, l->num_tensors, f->w);
    free(x);
    if (mpi_rank) return;
    print_federation(f, attackers);
    if (!*o->out) return;
    claim_folder(o->out);
    if (file_exists(path_in(o->out, "model.bin").s)) die("%s holds a model; choose another --out", o->out);
    Path path = path_in(o->out, "log.csv");
    unlink(path_in(o->out, "clients.csv").s); // of an earlier run
    f->log = fopen(path.s, "w");
    if (!f->log || fputs(log_header, f->log) < 0) die("cannot write %s: %s", path.s, strerror(errno));
}

// DIR/clients.csv: each client's loss at the end.
static void write_clients(const Federation *f) {
    Path path = path_in(f->options.out, "clients.csv");
    FILE *file = write_begin(path.s);
    fprintf(file, "client,bytes,attacker,loss\n");
    for (int m = 0; m < f->num_clients; m++) {
        const Client *c = &f->clients[m];
        for (const char *p = c->name; *p; p++)
            fputc(*p == ',' ? ';' : *p, file); // a comma would be another cell
        fprintf(file, ",%zu,%d,", c->bytes, c->attacker);
        log_number(file, c->attacker || f->peers[m].gone ? NAN : f->peers[m].loss, "%.9g", '\n');
    }
    write_commit(file, path.s);
}

#define OF(name) offsetof(FedOptions, name)
static const OptionRow own_rows[] = {
    {"data", 's', OF(data), "", 0, 0, 0, "FILE|GLOB", "a text that is split among clients"},
    {"clients", 'c', OF(split), "speakers", 0, 0, 0, "speakers|books", "of a play, or of a book of books"},
    {"convex", 'f', OF(convex), "0", 0, 0, 0, "", "least squares with a known solution instead of a text"},
    {"misfit", 'd', OF(misfit), "0", 0, 1e6, 0, "X", "noise in it: above 0 no w suits every client"},
    {"max-clients", 'i', OF(max_clients), "0", 0, 1e4, 0, "M", "with the longest texts (0: all, or 20)"},
    {"min-bytes", 'i', OF(min_bytes), "4000", 1, 1e9, 0, "N", "of a client's text"},
    {"tokenizer", 'c', OF(tokenizer), "chars", 0, 0, 0, "chars|bytes", "unless --model has its own"},
    {"method", 's', OF(method_name), "ffgg", 0, 0, 0, "NAME", "ffgg, fedavg or local (everybody alone)"},
    {"private", 's', OF(patterns), "", 0, 0, 0, "PATTERN[,..]", "what stays (ffgg: h.*.ln_*,ln_f.*, or b)"},
    {"rounds", 'i', OF(rounds), "200", 1, 1e7, 0, "N", "N answers of each client, on average"},
    {"local-steps", 'i', OF(local_steps), "1", 0, 1e6, 0, "K", "of a client before it answers"},
    {"mean-gradient", 'f', OF(mean_gradient), "0", 0, 0, 0, "",
        "ffgg sends the mean of the K + 1, not the last"},
    {"finetune", 'i', OF(finetune), "0", 0, 1e7, 0, "N", "steps of each client on everything, at the end"},
    {"finetune-lr", 'd', OF(finetune_lr), "0.3", 0, 1e9, 0, "FRACTION", "of the clients' rate, for these"},
    {"server-optimizer", 's', OF(server_optimizer), "", 0, 0, 0, "NAME", "and --server-lr .. (see the end)"},
    {"client-optimizer", 's', OF(client_optimizer), "", 0, 0, 0, "NAME", "and --client-lr .. (see the end)"},
    {"schedule", 's', OF(schedule), "", 0, 0, 0, "NAME",
        "of both rates (fedavg: the clients'); on texts a fifth is warmup (cosine)"},
    {"clip", 'd', OF(clip), "-1", -1, 1e30, 0, "X", "largest gradient norm; 0: none (-1: 1; --convex: 0)"},
    {"aggregate", 's', OF(aggregator_name), "mean", 0, 0, 0, "NAME", "see the names at the end"},
    {"trim", 'd', OF(trim), "-1", -1, 0.5, 0, "SHARE", "that trimmed cuts off at an end (-1: the attackers)"},
    {"bucket", 'i', OF(bucket), "1", 1, 1e4, 0, "N", "aggregate means of N messages"},
    {"attackers", 'd', OF(attackers), "0", 0, 1, 0, "SHARE", "of the clients"},
    {"attack", 's', OF(attack_name), "sign-flip", 0, 0, 0, "NAME", "see the names at the end"},
    {"async", 'i', OF(async), "0", 0, 1e4, 0, "N", "a step for every N answers (0: when all are there)"},
    {"delay", 'i', OF(delay), "0", 0, 1e6, 0, "D", "client m is 0 to D m/(M-1) rounds late, at random"},
    {"deadline", 'd', OF(deadline), "0", 0, 1e9, 0, "T", "rounds (0: for ever) or seconds (0: 600) to wait"},
    {"clock", 'c', OF(clock), "virtual", 0, 0, 0, "virtual|real", "real: MPI's ranks when they are done"},
    {"eval-every", 'i', OF(eval_every), "20", 0, 1e9, 0, "N", "rounds between validations (0: at the end)"},
    {"out", 's', OF(out), "", 0, 0, 0, "DIR", "log.csv and clients.csv go here"},
};
// The trainer's own, with other defaults: their place in Options is that in FedOptions.
static const char *const trainer_rows[][2] = {{"model", ""}, {"layers", "2"}, {"heads", "2"},
    {"channels", "32"}, {"context", "32"}, {"batch", "4"}, {"seed", "1337"}};
enum { NUM_OWN = sizeof own_rows / sizeof *own_rows,
       NUM_FED = NUM_OWN + sizeof trainer_rows / sizeof *trainer_rows };
static OptionRow fed_rows[NUM_FED]; // all of them

static const char methods[] = "ffgg|fedavg|local";
static const char aggregators[] = "mean|median|trimmed|geometric-median|clipping";
static const char attacks[] = "sign-flip|noise|little|nan|silent";

static void fed_help(UNUSED const char *of) {
    printf("federated: partially personalized federated learning.\n\n"
           "  ./dev/federated --data play.txt --clients speakers --private 'h.*.ln_*,ln_f.*' --out run\n"
           "  ./dev/federated --convex --attackers 0.2 --aggregate median --delay 20 --async 10\n"
           "  mpirun --bind-to none -n 4 ./dev/federated_mpi --convex --clock real --async 1 "
           "(make federated_mpi)\n\n");
    for (int i = 0; i < NUM_FED; i++) print_option(&fed_rows[i]);
    printf("\n--method     %s\n--aggregate  %s\n--attack     %s\n"
           "Optimizers: adamw at rate 3e-3; with --convex sgd at 0.5; the server of fedavg sgd at 1. Others\n"
           "have rates of their own. Which there are, their options and schedules: train_gpt2 --help\n",
           methods, aggregators, attacks);
}

// Chooses an optimizer, unless one is named the usual one, and sets what of the remaining options begins with
// the prefix, as --server-lr does with server-. The rate is the usual one's: another has its own. SGD has no
// momentum unless that is asked for. GPA averages over a fifteenth of so many updates (--async makes more).
static void set_hyper(Optimizer *o, const char **name, const char *usual, double rate, double updates,
                      const char *prefix, const Options *rest) {
    if (!**name) *name = usual;
    const char *optimizer = *name;
    choose_optimizer(o, optimizer, "", updates);
    if (optim_is_polyak(o)) die_usage("%s needs a teacher, which nobody has here", optimizer);
    if (!strcmp(optimizer, usual)) optim_set(o, "lr", rate);
    if (!strcmp(optimizer, "sgd")) optim_set(o, "momentum", 0), optim_set(o, "dampening", 0);
    for (int i = 0; i < rest->num_hyper; i++) {
        if (strncmp(rest->hyper_name[i], prefix, strlen(prefix))) continue;
        if (optim_set(o, rest->hyper_name[i] + strlen(prefix), rest->hyper_value[i]))
            die_usage("--%s %g is no option of %s, or out of its range", rest->hyper_name[i],
                      rest->hyper_value[i], optimizer);
    }
}

// Whether an optimizer's buffers hold a place, which would be wrong once somebody else has moved x.
static int remembers_place(const Optimizer *o) {
    static const char *const places[] = {"z", "x_outer", "x0", "x_average", "x_prev"};
    int found = 0;
    for (int i = 0; i < OPTIM_COUNT(places); i++) found |= optim_word(o->row->buffers, places[i]) != NULL;
    return found;
}

static FedOptions fed_options(int argc, char **argv) {
    FedOptions o = {0};
    Options *rest = &o.trainer; // what is no option here is one of an optimizer's
    for (int i = 0; i < NUM_FED; i++) {
        OptionRow *row = &fed_rows[i];
        if (i < NUM_OWN) *row = own_rows[i];
        else {
            const OptionRow *of_trainer = option_rows;
            while (strcmp(of_trainer->name, trainer_rows[i - NUM_OWN][0])) of_trainer++;
            *row = *of_trainer;
            row->initial = trainer_rows[i - NUM_OWN][1];
        }
        set_option(&o, row, row->initial);
    }
    uint64_t given = read_options(&o, fed_rows, NUM_FED, argc, argv, rest, fed_help);
    o.method = choice("method", o.method_name, methods);
    o.aggregator = choice("aggregate", o.aggregator_name, aggregators);
    o.attack = choice("attack", o.attack_name, attacks);
    const struct { const char *name; int idle; const char *why; } useful[] = {
        {"attack", !(given >> find_row(fed_rows, NUM_FED, "attackers") & 1), "goes with --attackers"},
        {"misfit", !o.convex, "is for --convex"},
        {"trim", o.aggregator != TRIMMED, "goes with --aggregate trimmed"},
        {"finetune-lr", !o.finetune, "goes with --finetune"},
        {"mean-gradient", o.method != FFGG, "is for --method ffgg"},
        {"aggregate", o.method == LOCAL, "does not go with --method local, whose clients send nothing"},
        {"bucket", o.method == LOCAL, "does not go with --method local, whose clients send nothing"},
        {"server-optimizer", o.method == LOCAL, "does not go with --method local, which has no server"}};
    const char *of_texts = "data clients min-bytes tokenizer model layers heads channels context batch";
    for (int i = 0; i < NUM_FED; i++) {
        const char *name = fed_rows[i].name;
        if (!(given >> i & 1)) continue;
        if (o.convex && optim_word(of_texts, name)) die_usage("--%s is for texts, not for --convex", name);
        for (int k = 0; k < OPTIM_COUNT(useful); k++)
            if (useful[k].idle && !strcmp(useful[k].name, name)) die_usage("--%s %s", name, useful[k].why);
        for (int k = 0; k < NUM_OPTIONS; k++) // is_given's bits
            if (i >= NUM_OWN && !strcmp(option_rows[k].name, name)) rest->given |= 1ull << k;
    }
    for (int i = 0; i < rest->num_hyper; i++)
        if (strncmp(rest->hyper_name[i], "server-", 7) && strncmp(rest->hyper_name[i], "client-", 7))
            die_usage("--%s is no option; see --help", rest->hyper_name[i]);
    if (!o.local_steps && o.method != FFGG)
        die_usage("--local-steps 0 trains nothing with --method %s", o.method_name);
    int sends = o.attack != NAN_SENDER && o.attack != SILENT; // what the server takes
    if (sends && o.bucket > 1 && o.attackers * o.bucket >= 0.5)
        die_usage("--bucket %d lets --attackers %g into half of the buckets", o.bucket, o.attackers);
    if (!o.convex && !*o.data) die_usage("give a text with --data FILE, or --convex; see --help");
    if (!strcmp(o.clock, "real") && mpi_size == 1)
        die_usage("--clock real needs MPI's ranks (make federated_mpi)");
    if (!*o.patterns && o.method == FFGG) o.patterns = o.convex ? "b" : "h.*.ln_*,ln_f.*";
    if (!*o.schedule) o.schedule = o.convex ? "constant" : "cosine";
    if (isnan(optim_schedule(o.schedule, 0, 1, 0, 0)))
        die_usage("no schedule is called '%s' here; see --help", o.schedule);
    if (o.clip < 0) o.clip = !o.convex;
    if (o.trim < 0) o.trim = fmin(o.attackers * o.bucket, 0.5); // each attacker may spoil a bucket of its own
    // FedAvg's server puts the mean of what the clients have made of w in its place: SGD at rate 1.
    const char *usual = o.convex ? "sgd" : "adamw";
    double rate = o.convex ? 0.5 : 3e-3;
    int averages = o.method == FEDAVG;
    set_hyper(&o.server, &o.server_optimizer, averages ? "sgd" : usual, averages ? 1 : rate, o.rounds,
              "server-", rest);
    set_hyper(&o.client, &o.client_optimizer, usual, rate, (double)o.rounds * o.local_steps, "client-", rest);
    if (o.async && isnan(optim_get(&o.server, "lr")))
        die_usage("--async weighs an answer by the server's rate, and %s has none", o.server_optimizer);
    if (averages && remembers_place(&o.client))
        die_usage("%s remembers where it was, and FedAvg moves its clients; take adamw, sgd or muon for them",
                  o.client_optimizer);
    return o;
}

#ifndef FEDERATED_NO_MAIN
#ifdef FEDERATED_MPI
// A rank that ends by itself; where one dies, mpirun ends the others.
static void leave(void) {
    if (!exit_code) MPI_Finalize();
}

// Rank 0 reads the command line first: its errors, and --help, nobody else says again.
static void start_ranks(int *argc, char ***argv) {
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    atexit(leave);
    for (int i = 1; i < *argc && mpi_rank; i++)
        if (!strcmp((*argv)[i], "--help")) exit(0);
    if (mpi_rank) MPI_Barrier(MPI_COMM_WORLD);
}
#endif

int main(int argc, char **argv) {
    static Federation f;
    guard_files();
    spin_briefly(argv);
#ifdef FEDERATED_MPI
    start_ranks(&argc, &argv);
#endif
    f.options = fed_options(argc, argv);
    prepare_federation(&f);
#ifdef FEDERATED_MPI
    if (!mpi_rank) MPI_Barrier(MPI_COMM_WORLD);
    if (mpi_rank) mpi_clients(&f);
    else
#endif
    {
        serve(&f);
        if (*f.options.out) write_clients(&f);
        if (mpi_size > 1) mpi_stop(&f);
        check_printed();
    }
    return 0;
}
#endif
