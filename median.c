/* median.c - a one-layer transformer learns to name the median of a list, and is then taken
 * apart.
 *
 * Read it from top to bottom: the task, the model, its forward and backward pass, training,
 * checkpoints; then the instruments for looking inside. The arithmetic of the layers, with their
 * gradients, is in tensor.c.
 *
 * To see how it learns, read chapters 1 to 5. Skip at first: the lay_out functions (memory);
 * chapters 6, 8 and 9 (text, options, reports, the terminal); in 7 all between "reading" and
 * read_file; and 16 to 18. In 14 read the first comment, make_tables and the ladder; in 15 the
 * idea, the theorem and judge. */
#if defined __GNUC__ && __GNUC__ >= 8 && !defined __clang__ && !defined __powerpc__
/* A bare `cc *.c` deserves speed too: see tensor.c. */
#pragma GCC optimize("O1", "tree-vectorize", "no-trapping-math", "no-associative-math")
#endif

#include "median.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A directive for threads, where they are compiled in. */
#ifdef _OPENMP
#include <omp.h>
#define OMP(directive) _Pragma(#directive)
#else
#define OMP(directive)
#endif

/* What a platform adds; without it only comfort is lost. (WASI is C without signals.) */
#ifndef __wasi__
#include <signal.h>
#else
typedef int sig_atomic_t;
#endif
#if (defined __unix__ || defined __APPLE__) && !defined __EMSCRIPTEN__ /* its isatty says 1 */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#define HAVE_STAT
#define HAVE_ISATTY
#elif defined _WIN32
#include <fcntl.h>
#include <io.h>
#define HAVE_ISATTY
#define isatty _isatty
#endif

/* ---- Errors and memory ----------------------------------------------------------------------- */

/* Notes why something failed; returns 0, so that `return fail(error, ...)` says it all. It is one
 * line, whatever stands in a name or a number that it cites: control characters become '?'. */
TENSOR_PRINTF(2, 3) static int fail(Error *error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_to_args(error->text, sizeof error->text, format, args);
    va_end(args);
    for (char *at = error->text; *at; at++)
        if ((*at > 0 && *at < 32) || *at == 127) *at = '?';
    return 0;
}

/* Lays arrays out in one piece of memory. With base NULL it only counts, so one function both
 * measures a layout and makes it. The count is a double: it cannot overflow, whatever a
 * configuration asks for. */
typedef struct {
    char *base;
    double used;
} Layout;

void (*layout_watch)(void *gap, size_t size) = NULL;

static void *lay_out(Layout *layout, double count, size_t size) {
    char *place = layout->base ? layout->base + (size_t)layout->used : NULL;
    const double bytes = count * (double)size, room = (floor(bytes / 64.0) + 1.0) * 64.0;
    if (place && layout_watch) layout_watch(place + (size_t)bytes, (size_t)(room - bytes));
    layout->used += room;
    return place;
}

static float *lay_floats(Layout *layout, size_t a, size_t b, size_t c) {
    return (float *)lay_out(layout, (double)a * (double)b * (double)c, sizeof(float));
}

static double *lay_doubles(Layout *layout, size_t a, size_t b) {
    return (double *)lay_out(layout, (double)a * (double)b, sizeof(double));
}

static uint32_t *lay_words(Layout *layout, size_t a, size_t b) {
    return (uint32_t *)lay_out(layout, (double)a * (double)b, sizeof(uint32_t));
}

/* No piece of memory is greater, and no file: systems that promise more than they have kill who
 * takes them at their word. */
static double max_bytes(void) {
    return (double)SIZE_MAX / 4 < 4294967296.0 ? (double)SIZE_MAX / 4 : 4294967296.0;
}

/* Zeroed memory, or NULL and the amount that is not to be had. */
static void *allocate(double bytes, const char *purpose, Error *error) {
    void *memory = bytes < max_bytes() ? calloc((size_t)bytes + 1, 1) : NULL;
    if (!memory)
        fail(error, "out of memory: %s would need %.0f MiB", purpose, ceil(bytes / 1048576.0));
    return memory;
}

/* Memory for all that `lay` lays out for an owner: called twice, it measures, then makes. It
 * begins where the processor's cache lines do. */
static void *make_layout(void (*lay)(Layout *, void *), void *owner, const char *purpose,
                         Error *error) {
    Layout layout = {0};
    lay(&layout, owner);
    void *memory = allocate(layout.used + 64.0, purpose, error);
    if (!memory) return NULL;
    layout.base = (char *)memory + (64 - (uintptr_t)memory % 64) % 64;
    layout.used = 0;
    lay(&layout, owner);
    return memory;
}

static double max_double(double a, double b) { return a > b ? a : b; }

static double min_double(double a, double b) { return a < b ? a : b; }

/* ---- Threads --------------------------------------------------------------------------------- */

/* Each list is computed by one thread. Training and evaluation have one parallel loop each, over
 * chunks of lists of a size that does not depend on the number of threads; what the chunks bring is
 * added in the order of the chunks. The certificate has one over medians, and adds whole numbers.
 * So no result depends on the number of threads. */
int use_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n > 1 ? n : 1);
    return omp_get_max_threads();
#else
    (void)n;
    return 1;
#endif
}

static size_t n_threads(void) {
#ifdef _OPENMP
    return (size_t)omp_get_max_threads();
#else
    return 1;
#endif
}

/* Which of them this one is, from 0 on. Sets its floating-point unit, as every thread must. */
static size_t this_thread(void) {
    ieee_setup(NULL);
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

/* ---- 1. The task ----------------------------------------------------------------------------- */

/* Half a bubble sort: each round carries the greatest number that is left to the end. When more
 * than half have been carried there, the last one carried is the median. */
uint32_t median_of(const uint32_t *list, size_t seq_len) {
    uint32_t sorted[MAX_SEQ_LEN];
    memcpy(sorted, list, seq_len * sizeof *list);
    for (size_t end = seq_len - 1; end >= seq_len / 2 && end > 0; end--)
        for (size_t i = 0; i < end; i++) {
            const uint32_t a = sorted[i], b = sorted[i + 1];
            sorted[i] = a < b ? a : b;
            sorted[i + 1] = a < b ? b : a;
        }
    return sorted[seq_len / 2];
}

void make_lists(Mt19937 *mt, uint32_t *lists, uint32_t *medians, size_t n, size_t max_num,
                size_t seq_len) {
    mt_fill(mt, lists, n * seq_len);
    for (size_t i = 0; i < n * seq_len; i++) lists[i] %= (uint32_t)max_num;
    for (size_t i = 0; i < n; i++) medians[i] = median_of(lists + i * seq_len, seq_len);
}

static void swap_words(uint32_t *a, uint32_t *b) {
    const uint32_t old = *a;
    *a = *b;
    *b = old;
}

/* Fisher & Yates: makes every order equally likely, by n - 1 random words. */
static void shuffle(uint32_t *order, size_t n, const uint32_t *words) {
    for (size_t last = n - 1; last > 0; last--) {
        const size_t i = *words++ % (uint32_t)(last + 1);
        swap_words(&order[last], &order[i]);
    }
}

/* Of uniform lists, one in a hundred thousand has the least or the greatest number for its median.
 * Here every median is equally likely: it is drawn first, then half of the others from the numbers
 * up to it, half from those from it on, all in random order. If `ties`, a number is in three of
 * four cases the one drawn before it on the same side. */
static void balanced_list(const uint32_t *words, uint32_t *list, uint32_t *median, size_t max_num,
                          size_t seq_len, int ties) {
    const uint32_t m = *median = *words++ % (uint32_t)max_num;
    for (size_t j = 0; j + 1 < seq_len; j++) {
        const uint32_t word = *words++;
        if (ties && j >= 2 && word >> 30 > 0) list[j] = list[j - 2];
        else if (j % 2 == 0) list[j] = word % (m + 1);
        else list[j] = m + word % ((uint32_t)max_num - m);
    }
    list[seq_len - 1] = m;
    shuffle(list, seq_len, words);
}

void make_training_lists(Mt19937 *mt, uint32_t *lists, uint32_t *medians, size_t n,
                         const Mixture *mix) {
    const size_t T = mix->seq_len;
    const size_t balanced = (size_t)((double)mix->balanced * (double)n);
    const size_t tied = (size_t)((double)mix->ties * (double)balanced);
    uint32_t words[2 * MAX_SEQ_LEN];
    for (size_t i = 0; i < balanced; i++) {
        mt_fill(mt, words, 2 * T - 1);
        balanced_list(words, lists + i * T, medians + i, mix->max_num, T, i < tied);
    }
    make_lists(mt, lists + balanced * T, medians + balanced, n - balanced, mix->max_num, T);
}

/* ---- 2. The model ---------------------------------------------------------------------------- */

Config config_default(void) {
    const Config config = {.max_num = 50,
                           .seq_len = 7,
                           .d_model = 32,
                           .d_head = 32,
                           .n_heads = 1,
                           .n_layers = 1,
                           .d_mlp = 0,
                           .normalization = NORMALIZATION_LN};
    return config;
}

int config_check(const Config *c, Error *error) {
    if (c->seq_len % 2 == 0) return fail(error, "Length must be odd: seq_len is %zu", c->seq_len);
    if (c->seq_len < 3) return fail(error, "Length must be at least 3: seq_len is %zu", c->seq_len);
    for (const Setting *s = settings; s->offset < sizeof *c;
         s++) { /* their bounds: see chapter 6 */
        size_t value;
        memcpy(&value, (const char *)c + s->offset, sizeof value);
        if ((double)value < s->min || (double)value > s->max)
            return fail(error, "%s is %zu, must be %.0f to %.0f", s->name, value, s->min, s->max);
    }
    return 1;
}

/* Describes the tensors one after the other and hands out their parameters; with tensors NULL it
 * only counts. */
typedef struct {
    Tensor *tensors;
    float *params;
    size_t n_tensors;
    double n_params;
} TensorList;

/* The shape is a, a x b or a x b x c, where what is 0 is not there. */
static float *add_tensor(TensorList *list, const char *prefix, const char *name, size_t a, size_t b,
                         size_t c) {
    const size_t rows = b ? b : 1;
    const size_t columns = c ? c : 1;
    const size_t size = a * rows * columns;
    float *data = NULL;
    if (list->tensors) {
        Tensor *t = &list->tensors[list->n_tensors];
        data = list->params + (size_t)list->n_params;
        *t = (Tensor){.n_dims = (size_t)(1 + (b > 0) + (c > 0)),
                      .shape = {a, b, c},
                      .size = size,
                      .data = data};
        print_to(t->name, sizeof t->name, "%s%s", prefix, name);
    }
    list->n_tensors++;
    list->n_params += (double)a * (double)rows * (double)columns;
    return data;
}

/* All tensors of a configuration, in the order of the file: this one list defines names, shapes and
 * pointers. */
static void list_tensors(TensorList *t, const Config *c, Weights *w) {
    const size_t d = c->d_model, heads = c->n_heads;
    const int ln = c->normalization == NORMALIZATION_LN;
    w->W_E = add_tensor(t, "", "embed.W_E", c->max_num, d, 0);
    w->W_pos = add_tensor(t, "", "pos_embed.W_pos", c->seq_len, d, 0);
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerWeights none = {0}, *layer = w->layers ? &w->layers[l] : &none;
        char prefix[24];
        print_to(prefix, sizeof prefix, "blocks.%u.", (unsigned)l);
        if (ln) {
            layer->ln1_w = add_tensor(t, prefix, "ln1.w", d, 0, 0);
            layer->ln1_b = add_tensor(t, prefix, "ln1.b", d, 0, 0);
        }
        layer->W_Q = add_tensor(t, prefix, "attn.W_Q", heads, d, c->d_head);
        layer->W_K = add_tensor(t, prefix, "attn.W_K", heads, d, c->d_head);
        layer->W_V = add_tensor(t, prefix, "attn.W_V", heads, d, c->d_head);
        layer->W_O = add_tensor(t, prefix, "attn.W_O", heads, c->d_head, d);
        layer->b_Q = add_tensor(t, prefix, "attn.b_Q", heads, c->d_head, 0);
        layer->b_K = add_tensor(t, prefix, "attn.b_K", heads, c->d_head, 0);
        layer->b_V = add_tensor(t, prefix, "attn.b_V", heads, c->d_head, 0);
        layer->b_O = add_tensor(t, prefix, "attn.b_O", d, 0, 0);
        if (c->d_mlp && ln) {
            layer->ln2_w = add_tensor(t, prefix, "ln2.w", d, 0, 0);
            layer->ln2_b = add_tensor(t, prefix, "ln2.b", d, 0, 0);
        }
        if (c->d_mlp) {
            layer->W_in = add_tensor(t, prefix, "mlp.W_in", d, c->d_mlp, 0);
            layer->b_in = add_tensor(t, prefix, "mlp.b_in", c->d_mlp, 0, 0);
            layer->W_out = add_tensor(t, prefix, "mlp.W_out", c->d_mlp, d, 0);
            layer->b_out = add_tensor(t, prefix, "mlp.b_out", d, 0, 0);
        }
    }
    if (ln) {
        w->ln_final_w = add_tensor(t, "", "ln_final.w", d, 0, 0);
        w->ln_final_b = add_tensor(t, "", "ln_final.b", d, 0, 0);
    }
    w->W_U = add_tensor(t, "", "unembed.W_U", d, c->max_num, 0);
    w->b_U = add_tensor(t, "", "unembed.b_U", c->max_num, 0, 0);
}

static void lay_out_model(Layout *m, void *owner) {
    Model *model = (Model *)owner;
    TensorList count = {0};
    Weights unused = {0};
    list_tensors(&count, &model->config, &unused);
    model->params = (float *)lay_out(m, count.n_params, sizeof(float));
    model->tensors = (Tensor *)lay_out(m, (double)count.n_tensors + STATE_TENSORS, sizeof(Tensor));
    model->notes = (Note *)lay_out(m, MAX_NOTES, sizeof(Note));
    model->weights.layers =
        (LayerWeights *)lay_out(m, (double)model->config.n_layers, sizeof(LayerWeights));
}

int model_create(Model *model, const Config *config, Error *error) {
    memset(model, 0, sizeof *model);
    if (!config_check(config, error)) return 0;
    model->config = *config;
    model->memory = make_layout(lay_out_model, model, "the model", error);
    if (!model->memory) {
        memset(model, 0, sizeof *model);
        return 0;
    }
    TensorList list = {.tensors = model->tensors, .params = model->params};
    list_tensors(&list, config, &model->weights);
    model->n_params = (size_t)list.n_params;
    model->n_tensors = list.n_tensors;
    return 1;
}

void model_free(Model *model) {
    free(model->memory);
    memset(model, 0, sizeof *model);
}

uint64_t hash_model(const Model *m) { return hash_floats(HASH_START, m->params, m->n_params); }

void model_init(Model *model, Mt19937 *mt) {
    const float deviation = f32(0.8 / sqrt((double)model->config.d_model));
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        const char *last = strrchr(t->name, '.') + 1;
        if (strncmp(last, "W_", 2) == 0) mt_normal(mt, t->data, t->size, deviation);
        else
            for (size_t j = 0; j < t->size; j++) t->data[j] = strcmp(last, "w") == 0 ? 1.0f : 0.0f;
    }
}

/* ---- 3. The forward pass --------------------------------------------------------------------- */

/* A layer works on *rows* of the residual stream, and an index says which row a list has at a
 * position. In later layers every position of every list has a row of its own. But layer 0 sees no
 * lists, only numbers at positions: at most max_num * seq_len different inputs, usually far fewer
 * than a batch has entries. So its rows are the different (number, position) pairs, and LN, q, k
 * and v are computed once for each. For the lists 5 3 5 and 5 5 4:
 *
 *     rows of layer 0    0: 5 at 0    1: 3 at 1    2: 5 at 1    3: 4 at 2    4: 5 at 2
 *     row[]              position 0: 0 0    position 1: 1 2    position 2: 4 3
 *
 * Only the last position's logits are trained. So in the last layer, only the last position has
 * a query. Rows are ordered by position: those that ask stand together at the end. */
static size_t queries_per_list(const Config *c, size_t layer, RunKind kind) {
    return layer + 1 == c->n_layers && kind != RUN_ALL_POSITIONS ? 1 : c->seq_len;
}

/* The most rows that so many lists can need. */
static size_t max_rows(const Config *c, size_t layer, size_t lists) {
    return c->seq_len * (layer == 0 ? smaller(c->max_num, lists) : lists);
}

static void lay_out_rows(Layout *m, LayerRows *rows, const Config *c, size_t R) {
    rows->x = lay_floats(m, R, c->d_model, 1);
    rows->h = rows->x;
    if (c->normalization) {
        rows->inv_std = lay_floats(m, R, 1, 1);
        rows->h = rows->normal = lay_floats(m, R, c->d_model, 1);
    }
    if (c->normalization == NORMALIZATION_LN) rows->h = lay_floats(m, R, c->d_model, 1);
    rows->q = lay_floats(m, c->n_heads, R, c->d_head);
    rows->k = lay_floats(m, c->n_heads, R, c->d_head);
    rows->v = lay_floats(m, c->n_heads, R, c->d_head);
}

static void lay_out_inputs(Layout *m, Inputs *in, const Config *c, size_t lists) {
    const size_t R = max_rows(c, 0, lists);
    lay_out_rows(m, &in->rows, c, R);
    in->max_rows = R;
    in->token = lay_words(m, R, 1);
    in->position = lay_words(m, R, 1);
    in->used = lay_words(m, c->seq_len, c->max_num);
    in->row_of_pair = lay_words(m, c->seq_len, c->max_num);
}

/* Splits one block into the gradients of a layer's rows. */
static RowGradients split_rows(float *block, const Config *c, const LayerRows *rows) {
    const size_t R = rows->n_rows, heads = c->n_heads * c->d_head;
    RowGradients g = {.x = block, .k = block + R * c->d_model};
    g.v = g.k + R * heads;
    g.q = g.v + R * heads;
    g.size = R * c->d_model + (3 * R - rows->first_query) * heads;
    return g;
}

static float *lay_row_gradients(Layout *m, const Config *c, size_t R) {
    return lay_floats(m, R, c->d_model + 3 * c->n_heads * c->d_head, 1);
}

static void lay_out_gradients(Layout *m, RunGradients *g, const Run *run) {
    const Config *c = &run->config;
    const size_t lists = run->capacity, d = c->d_model;
    const size_t later = c->n_layers > 1 ? c->seq_len * lists : lists;
    const size_t n = later > run->inputs->max_rows ? later : run->inputs->max_rows;
    g->out = lay_floats(m, n, d, 1);
    g->h = lay_floats(m, n, d, 1);
    g->z = lay_floats(m, n, c->d_head, 1);
    g->pattern = lay_floats(m, n, c->seq_len, 1);
    g->q = lay_doubles(m, n, c->d_head);
    g->k = lay_doubles(m, n, c->d_head);
    g->v = lay_doubles(m, n, c->d_head);
    g->post = lay_floats(m, n, c->d_mlp, 1);
    g->rows = lay_row_gradients(m, c, n);
}

static void lay_out_layer(Layout *m, LayerRun *layer, const Run *run, size_t l) {
    const Config *c = &run->config;
    const size_t lists = run->capacity, d = c->d_model;
    const size_t Q = queries_per_list(c, l, run->kind) * lists;
    if (l > 0) lay_out_rows(m, &layer->own_rows, c, max_rows(c, l, lists));
    layer->rows = l > 0 ? &layer->own_rows : &run->inputs->rows;
    layer->row = lay_words(m, c->seq_len, lists);
    layer->pattern = lay_floats(m, c->n_heads, Q, c->seq_len);
    layer->z = lay_floats(m, c->n_heads, Q, c->d_head);
    if (c->d_mlp == 0) return;
    layer->resid_mid = lay_floats(m, Q, d, 1);
    layer->h2 = layer->resid_mid;
    if (c->normalization) {
        layer->inv_std2 = lay_floats(m, Q, 1, 1);
        layer->h2 = layer->normal2 = lay_floats(m, Q, d, 1);
    }
    if (c->normalization == NORMALIZATION_LN) layer->h2 = lay_floats(m, Q, d, 1);
    layer->pre = lay_floats(m, Q, c->d_mlp, 1);
    layer->post = lay_floats(m, Q, c->d_mlp, 1);
    layer->mlp_out = lay_floats(m, Q, d, 1);
}

static void lay_out_run(Layout *m, void *owner) {
    Run *run = (Run *)owner;
    const Config *c = &run->config;
    const size_t lists = run->capacity, d = c->d_model;
    if (run->inputs == &run->own_inputs) lay_out_inputs(m, run->inputs, c, lists);
    run->layers = (LayerRun *)lay_out(m, (double)c->n_layers, sizeof(LayerRun));
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerRun count = {0};
        lay_out_layer(m, run->layers ? &run->layers[l] : &count, run, l);
    }
    run->final = lay_floats(m, queries_per_list(c, c->n_layers - 1, run->kind) * lists, d, 1);
    run->final_inv_std = lay_floats(m, lists, 1, 1);
    run->final_normal = lay_floats(m, lists, d, 1);
    run->final_h = lay_floats(m, lists, d, 1);
    run->logits = lay_floats(m, lists, c->max_num, 1);
    run->probs = lay_floats(m, lists, c->max_num, 1);
    run->loss = lay_floats(m, lists, 1, 1);
    if (run->kind == RUN_GRADIENTS) lay_out_gradients(m, &run->gradients, run);
    run->bytes = m->used;
}

/* With `inputs`, which are then computed for several runs by the caller. */
static int create_run(Run *run, const Config *config, size_t capacity, RunKind kind, Inputs *inputs,
                      Error *error) {
    memset(run, 0, sizeof *run);
    run->config = *config;
    run->capacity = capacity;
    run->kind = kind;
    run->inputs = inputs ? inputs : &run->own_inputs;
    run->memory = make_layout(lay_out_run, run, "a batch of this size", error);
    if (!run->memory) memset(run, 0, sizeof *run);
    return run->memory != NULL;
}

int run_create(Run *run, const Config *config, size_t capacity, RunKind kind, Error *error) {
    return create_run(run, config, capacity, kind, NULL, error);
}

void run_free(Run *run) {
    free(run->memory);
    memset(run, 0, sizeof *run);
}

/* Gives each different (number, position) pair of n lists a row, position by position, and embeds
 * it. The last `asking` positions have queries. */
static void embed_inputs(const Model *m, Inputs *in, const uint32_t *lists, size_t n,
                         size_t asking) {
    const size_t T = m->config.seq_len, V = m->config.max_num;
    uint32_t n_rows = 0;
    memset(in->used, 0, T * V * sizeof *in->used);
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < T; t++) in->used[t * V + lists[i * T + t]] = 1;
    for (size_t t = 0; t < T; t++) {
        if (t + asking == T) in->rows.first_query = n_rows;
        for (size_t number = 0; number < V; number++) {
            if (!in->used[t * V + number]) continue;
            in->token[n_rows] = (uint32_t)number;
            in->position[n_rows] = (uint32_t)t;
            in->row_of_pair[t * V + number] = n_rows++;
        }
    }
    in->rows.n_rows = n_rows;
    embed_forward(in->rows.x, m->weights.W_E, m->weights.W_pos, in->token, in->position, n_rows,
                  m->config.d_model);
}

/* Writes down which row each list has at each position, layer by layer. */
static void number_rows(Run *run, const uint32_t *lists, size_t n) {
    const Config *c = &run->config;
    const size_t T = c->seq_len;
    run->n_lists = n;
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerRun *layer = &run->layers[l];
        layer->queries_per_list = queries_per_list(c, l, run->kind);
        layer->n_queries = layer->queries_per_list * n;
        for (size_t t = 0; t < T; t++)
            for (size_t i = 0; i < n; i++) {
                const size_t pair = t * c->max_num + lists[i * T + t];
                const size_t here = t * n + i;
                layer->row[here] = l == 0 ? run->inputs->row_of_pair[pair] : (uint32_t)here;
            }
        if (l == 0) continue;
        layer->rows->n_rows = T * n;
        layer->rows->first_query = (T - layer->queries_per_list) * n;
    }
}

static void call_hook(const Hook *hook, HookSite site, size_t layer, size_t head, float *values,
                      size_t rows, size_t width) {
    if (hook) hook->call(hook->context, site, layer, head, values, rows, width);
}

/* x += change, n numbers. */
static void add_to(float *x, const float *change, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = f32(x[i] + change[i]);
}

/* Where the queries of a layer have their rows: at the last positions. */
static const uint32_t *query_rows(const Config *c, const LayerRun *layer) {
    const size_t n_lists = layer->n_queries / layer->queries_per_list;
    return layer->row + (c->seq_len - layer->queries_per_list) * n_lists;
}

static Attention attention_of(const Config *c, const LayerRun *layer) {
    const Attention a = {.n_lists = layer->n_queries / layer->queries_per_list,
                         .seq_len = c->seq_len,
                         .queries_per_list = layer->queries_per_list,
                         .d_head = c->d_head,
                         .row = layer->row,
                         .scale = f32(1.0 / sqrt((double)c->d_head))};
    return a;
}

/* A layer's rows of the residual stream become keys, values and, where they ask, queries:
 *     h = LN1(x),  q = h W_Q + b_Q,  k = h W_K + b_K,  v = h W_V + b_V */
static void project(const Config *c, const LayerWeights *w, LayerRows *rows) {
    const size_t d = c->d_model, dh = c->d_head, R = rows->n_rows, asking = rows->first_query;
    if (c->normalization)
        layernorm_forward(rows->h, rows->normal, rows->inv_std, rows->x, w->ln1_w, w->ln1_b, R, d);
    for (size_t head = 0; head < c->n_heads; head++) {
        const size_t W = head * d * dh, b = head * dh, first = head * R * dh;
        float *q = rows->q + first + asking * dh;
        linear_forward(q, NULL, rows->h + asking * d, w->W_Q + W, w->b_Q + b, R - asking, d, dh);
        linear_forward(rows->k + first, NULL, rows->h, w->W_K + W, w->b_K + b, R, d, dh);
        linear_forward(rows->v + first, NULL, rows->h, w->W_V + W, w->b_V + b, R, d, dh);
    }
}

/* From embedding to logits. Where runs share their inputs, as in training, the caller has embedded
 * and projected these already, once for all. */
void model_forward(const Model *m, Run *run, const uint32_t *lists, size_t n, const Hook *hook) {
    const Config *c = &m->config;
    const size_t d = c->d_model, dh = c->d_head, L = c->n_layers;
    const int own_inputs = run->inputs == &run->own_inputs;
    if (own_inputs) embed_inputs(m, run->inputs, lists, n, queries_per_list(c, 0, run->kind));
    number_rows(run, lists, n);

    for (size_t l = 0; l < L; l++) {
        const LayerWeights *w = &m->weights.layers[l];
        LayerRun *layer = &run->layers[l];
        LayerRows *rows = layer->rows;
        const size_t R = rows->n_rows, Q = layer->n_queries;
        float *out = l + 1 < L ? run->layers[l + 1].rows->x : run->final;

        call_hook(hook, HOOK_RESIDUAL, l, 0, rows->x, R, d);
        if (l > 0 || own_inputs) project(c, w, rows);

        /* Attention: out = x + b_O + the sum over heads of softmax(q k^T / sqrt(d_head)) v W_O */
        const Attention a = attention_of(c, layer);
        gather_forward(out, rows->x, query_rows(c, layer), Q, d);
        for (size_t head = 0; head < c->n_heads; head++) {
            const size_t first = head * R * dh;
            float *pattern = layer->pattern + head * Q * c->seq_len;
            float *z = layer->z + head * Q * dh;
            attention_pattern_forward(pattern, rows->q + first, rows->k + first, &a);
            call_hook(hook, HOOK_PATTERN, l, head, pattern, Q, c->seq_len);
            attention_values_forward(z, pattern, rows->v + first, &a);
            call_hook(hook, HOOK_HEAD, l, head, z, Q, dh);
            linear_forward(out, out, z, w->W_O + head * dh * d, head == 0 ? w->b_O : NULL, Q, dh,
                           d);
        }

        /* MLP: out += relu(LN2(out) W_in + b_in) W_out + b_out */
        if (c->d_mlp == 0) continue;
        memcpy(layer->resid_mid, out, Q * d * sizeof *out);
        if (c->normalization)
            layernorm_forward(layer->h2, layer->normal2, layer->inv_std2, layer->resid_mid,
                              w->ln2_w, w->ln2_b, Q, d);
        linear_forward(layer->pre, NULL, layer->h2, w->W_in, w->b_in, Q, d, c->d_mlp);
        relu_forward(layer->post, layer->pre, Q * c->d_mlp);
        linear_forward(layer->mlp_out, NULL, layer->post, w->W_out, w->b_out, Q, c->d_mlp, d);
        call_hook(hook, HOOK_MLP, l, 0, layer->mlp_out, Q, d);
        add_to(out, layer->mlp_out, Q * d);
    }

    /* Unembedding, at the last position: logits = LN_final(x) W_U + b_U */
    const size_t n_final = run->layers[L - 1].n_queries;
    const float *last = run->final + (n_final - n) * d;
    call_hook(hook, HOOK_RESIDUAL, L, 0, run->final, n_final, d);
    if (c->normalization)
        layernorm_forward(run->final_h, run->final_normal, run->final_inv_std, last,
                          m->weights.ln_final_w, m->weights.ln_final_b, n, d);
    else memcpy(run->final_h, last, n * d * sizeof *last);
    linear_forward(run->logits, NULL, run->final_h, m->weights.W_U, m->weights.b_U, n, d,
                   c->max_num);
}

static double loss_sum(Run *run, const uint32_t *medians) {
    double sum = 0;
    cross_entropy_forward(run->loss, run->probs, run->logits, medians, run->n_lists,
                          run->config.max_num);
    for (size_t i = 0; i < run->n_lists; i++) sum += (double)run->loss[i];
    return sum;
}

double model_loss(Run *run, const uint32_t *medians) {
    return loss_sum(run, medians) / (double)run->n_lists;
}

/* ---- 4. The backward pass -------------------------------------------------------------------- */

/* The mirror image of `project`: from dq, dk and dv to the rows, of which dx already holds what the
 * residual stream carries past the layer. scratch (rows, d_model) takes the gradient of h. */
static void backward_project(const Config *c, const LayerWeights *w, const LayerWeights *dw,
                             const LayerRows *rows, const RowGradients *g, float *scratch) {
    const size_t d = c->d_model, dh = c->d_head, R = rows->n_rows, asking = rows->first_query;
    float *dh_rows = c->normalization ? scratch : g->x;
    if (c->normalization) memset(scratch, 0, R * d * sizeof *scratch);
    for (size_t head = 0; head < c->n_heads; head++) {
        const size_t W = head * d * dh, b = head * dh, first = head * R * dh;
        const float *dq = g->q + head * (R - asking) * dh, *dk = g->k + first, *dv = g->v + first;
        const float *h_asking = rows->h + asking * d;
        float *dh_asking = dh_rows + asking * d;
        linear_backward_weights(dw->W_Q + W, dw->b_Q + b, dq, h_asking, R - asking, d, dh);
        linear_backward_weights(dw->W_K + W, dw->b_K + b, dk, rows->h, R, d, dh);
        linear_backward_weights(dw->W_V + W, dw->b_V + b, dv, rows->h, R, d, dh);
        linear_backward_input(dh_asking, dh_asking, dq, w->W_Q + W, R - asking, d, dh);
        linear_backward_input(dh_rows, dh_rows, dk, w->W_K + W, R, d, dh);
        linear_backward_input(dh_rows, dh_rows, dv, w->W_V + W, R, d, dh);
    }
    if (c->normalization)
        layernorm_backward(g->x, g->x, dw->ln1_w, dw->ln1_b, dh_rows, rows->normal, rows->inv_std,
                           w->ln1_w, R, d);
}

/* The mirror image of `embed_inputs` and of layer 0's `project`. */
static void backward_inputs(const Model *m, const Inputs *in, const RowGradients *g,
                            float *scratch, Model *gradient) {
    const Weights *w = &m->weights, *dw = &gradient->weights;
    backward_project(&m->config, &w->layers[0], &dw->layers[0], &in->rows, g, scratch);
    embed_backward(dw->W_E, dw->W_pos, g->x, in->token, in->position, in->rows.n_rows,
                   m->config.d_model);
}

/* The chain rule, from the loss back to the embedding: model_forward read from its end. Adds the
 * gradient of scale times the sum of the losses. g->out is the gradient of what a layer wrote. What
 * the residual stream carries past attention or MLP arrives unchanged; the rest comes through their
 * own backward functions. Where runs share their inputs, it stops at layer 0's rows, and leaves
 * their gradients in g->rows. */
static void backward(const Model *m, Run *run, const uint32_t *medians, float scale,
                     Model *gradient) {
    const Config *c = &m->config;
    const Weights *w = &m->weights, *dw = &gradient->weights;
    const size_t n = run->n_lists, d = c->d_model, dh = c->d_head, V = c->max_num;
    RunGradients *g = &run->gradients;

    /* Unembedding and ln_final */
    float *dlogits = run->probs;
    cross_entropy_backward(dlogits, run->probs, medians, scale, n, V);
    linear_backward_weights(dw->W_U, dw->b_U, dlogits, run->final_h, n, d, V);
    float *dfinal = c->normalization ? g->h : g->out;
    linear_backward_input(dfinal, NULL, dlogits, w->W_U, n, d, V);
    if (c->normalization)
        layernorm_backward(g->out, NULL, dw->ln_final_w, dw->ln_final_b, dfinal, run->final_normal,
                           run->final_inv_std, w->ln_final_w, n, d);

    for (size_t l = c->n_layers; l-- > 0;) {
        const LayerWeights *lw = &w->layers[l], *dl = &dw->layers[l];
        const LayerRun *layer = &run->layers[l];
        const LayerRows *rows = layer->rows;
        const size_t R = rows->n_rows, asking = rows->first_query, Q = layer->n_queries;
        const RowGradients dr = split_rows(g->rows, c, rows);

        /* MLP */
        if (c->d_mlp) {
            float *dh2 = c->normalization ? g->h : g->out;
            const float *dresidual = c->normalization ? NULL : g->out;
            linear_backward_weights(dl->W_out, dl->b_out, g->out, layer->post, Q, c->d_mlp, d);
            linear_backward_input(g->post, NULL, g->out, lw->W_out, Q, c->d_mlp, d);
            relu_backward(g->post, g->post, layer->pre, Q * c->d_mlp);
            linear_backward_weights(dl->W_in, dl->b_in, g->post, layer->h2, Q, d, c->d_mlp);
            linear_backward_input(dh2, dresidual, g->post, lw->W_in, Q, d, c->d_mlp);
            if (c->normalization)
                layernorm_backward(g->out, g->out, dl->ln2_w, dl->ln2_b, dh2, layer->normal2,
                                   layer->inv_std2, lw->ln2_w, Q, d);
        }

        /* Attention */
        const Attention a = attention_of(c, layer);
        memset(dr.x, 0, R * d * sizeof *dr.x);
        gather_backward(dr.x, g->out, query_rows(c, layer), Q, d);
        for (size_t head = 0; head < c->n_heads; head++) {
            const size_t first = head * R * dh, W = head * dh * d;
            const float *pattern = layer->pattern + head * Q * c->seq_len;
            linear_backward_weights(dl->W_O + W, head == 0 ? dl->b_O : NULL, g->out,
                                    layer->z + head * Q * dh, Q, dh, d);
            linear_backward_input(g->z, NULL, g->out, lw->W_O + W, Q, dh, d);
            memset(g->q + asking * dh, 0, (R - asking) * dh * sizeof *g->q);
            memset(g->k, 0, R * dh * sizeof *g->k);
            memset(g->v, 0, R * dh * sizeof *g->v);
            attention_values_backward(g->pattern, g->v, g->z, pattern, rows->v + first, &a);
            attention_pattern_backward(g->q, g->k, g->pattern, pattern, rows->q + first,
                                       rows->k + first, &a);
            round_sums(dr.q + head * (R - asking) * dh, g->q + asking * dh, (R - asking) * dh);
            round_sums(dr.k + first, g->k, R * dh);
            round_sums(dr.v + first, g->v, R * dh);
        }

        if (l > 0) {
            backward_project(c, lw, dl, rows, &dr, g->h);
            memcpy(g->out, dr.x, R * d * sizeof *g->out);
        } else if (run->inputs == &run->own_inputs)
            backward_inputs(m, run->inputs, &dr, g->h, gradient);
    }
}

void model_backward(const Model *model, Run *run, const uint32_t *medians, Model *gradient) {
    memset(gradient->params, 0, gradient->n_params * sizeof(float));
    backward(model, run, medians, f32(1.0 / (double)run->n_lists), gradient);
}

/* ---- 5. Training ----------------------------------------------------------------------------- */

/* The numbers that decide the result of a training, apart from its recipe. */
enum {
    CHUNK = 256,      /* lists whose gradients are summed before those of the next are added */
    HARD_LISTS = 8192 /* lists in the collection of hard ones */
};
#define HARD_LOSS 0.02f /* a list with a greater loss is hard */

size_t argmax(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

void evaluate_batch(Run *run, const uint32_t *medians, Evaluation *e) {
    const size_t V = run->config.max_num;
    model_loss(run, medians);
    for (size_t i = 0; i < run->n_lists; i++) {
        const size_t guess = argmax(run->logits + i * V, V), median = medians[i];
        const size_t off = guess > median ? guess - median : median - guess;
        e->loss_sum += (double)run->loss[i];
        e->distance_sum += (double)off;
        e->alerts += run->loss[i] > 0.7f;
        if (off == 0) e->right++;
        else e->by_distance[smaller(off, 4) - 1]++;
    }
    e->lists += run->n_lists;
    e->accuracy = (double)e->right / (double)e->lists;
    e->loss = e->loss_sum / (double)e->lists;
    if (e->lists > e->right) e->mean_distance = e->distance_sum / (double)(e->lists - e->right);
}

int runs_create(Runs *runs, const Config *config, size_t capacity, RunKind kind, Error *error) {
    runs->n = 0;
    runs->each = (Run *)allocate((double)n_threads() * sizeof(Run), "the threads", error);
    while (runs->each && runs->n < n_threads()) {
        if (!run_create(&runs->each[runs->n], config, capacity, kind, error)) {
            runs_free(runs);
            return 0;
        }
        runs->n++;
    }
    return runs->each != NULL;
}

void runs_free(Runs *runs) {
    while (runs->n > 0) run_free(&runs->each[--runs->n]);
    free(runs->each);
    runs->each = NULL;
}

void evaluate(const Model *model, Runs *runs, const uint32_t *lists, const uint32_t *medians,
              size_t n, Evaluation *e) {
    const size_t chunk = runs->each[0].capacity;
    OMP(omp parallel for ordered schedule(static, 1) num_threads((int)runs->n))
    for (size_t at = 0; at < n; at += chunk) {
        Run *run = &runs->each[this_thread()];
        model_forward(model, run, lists + at * model->config.seq_len, smaller(chunk, n - at), NULL);
        OMP(omp ordered)
        evaluate_batch(run, medians + at, e);
    }
}

Recipe recipe_original(void) {
    const Recipe recipe = {
        .trainset_size = 48000,
        .valset_size = 24000,
        .epochs = 200,
        .batch_size = 1024,
        .seed = 23,
        .keep_best = 1,
        .adam = {.lr = 3e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f},
    };
    return recipe;
}

Recipe recipe_default(void) {
    const Recipe recipe = {
        .valset_size = 24000,
        .steps = 30000,
        .batch_size = 1024,
        .warmup = 100,
        .cosine = 1,
        .seed = 23,
        .adam = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f},
        .balanced = 1.0f,
        .ties = 0.5f,
        .hard = 0.6f,
    };
    return recipe;
}

/* What one thread needs: a workspace, and room for the gradient of a chunk. */
struct Worker {
    Run run;
    Model gradient;
};

static void lay_out_trainer(Layout *m, void *owner) {
    Trainer *t = (Trainer *)owner;
    const Recipe *r = &t->recipe;
    const Config *c = &t->model.config;
    const size_t T = c->seq_len, batch = r->batch_size;
    t->lists = lay_words(m, r->trainset_size, T);
    t->medians = lay_words(m, r->trainset_size, 1);
    t->order = lay_words(m, r->trainset_size, 1);
    t->order_words = lay_words(m, r->trainset_size, 1);
    t->batch = lay_words(m, batch, T);
    t->batch_medians = lay_words(m, batch, 1);
    t->batch_loss = lay_floats(m, batch, 1, 1);
    t->val_lists = lay_words(m, r->valset_size, T);
    t->val_medians = lay_words(m, r->valset_size, 1);
    t->hard_room = r->hard > 0 && r->trainset_size == 0 ? HARD_LISTS : 0;
    t->hard = lay_words(m, t->hard_room, T);
    t->hard_medians = lay_words(m, t->hard_room, 1);
    t->drawn = lay_words(m, batch, 1);
    lay_out_inputs(m, &t->inputs, c, batch);
    t->row_gradients = lay_row_gradients(m, c, t->inputs.max_rows);
    t->scratch = lay_floats(m, t->inputs.max_rows, c->d_model, 1);
    t->workers = (Worker *)lay_out(m, (double)n_threads(), sizeof(Worker));
}

static int create_workers(Trainer *t, Error *error) {
    const Config *c = &t->model.config;
    const size_t chunk = smaller(CHUNK, t->recipe.batch_size);
    for (; t->n_workers < n_threads(); t->n_workers++) {
        Worker *worker = &t->workers[t->n_workers];
        if (!model_create(&worker->gradient, c, error)) return 0;
        if (create_run(&worker->run, c, chunk, RUN_GRADIENTS, &t->inputs, error)) continue;
        model_free(&worker->gradient);
        return 0;
    }
    return runs_create(&t->runs, c, smaller(1024, t->recipe.valset_size + 1), RUN_FORWARD, error);
}

int trainer_create(Trainer *t, const Recipe *recipe, const Config *config, const Model *start,
                   Error *error) {
    memset(t, 0, sizeof *t);
    t->recipe = *recipe;
    const Recipe *r = &t->recipe;
    if (start) config = &start->config;
    if (r->batch_size == 0) return fail(error, "a batch needs at least one list");
    if (r->trainset_size == 0 && r->steps == 0)
        return fail(error, "fresh lists at every step (--trainset-size 0) need --steps");
    if (!model_create(&t->model, config, error) || !model_create(&t->gradient, config, error) ||
        !model_create(&t->m, config, error) || !model_create(&t->v, config, error) ||
        !model_create(&t->best, config, error) ||
        !(t->memory = make_layout(lay_out_trainer, t, "the lists", error)) ||
        !create_workers(t, error)) {
        trainer_free(t);
        return 0;
    }

    const size_t V = config->max_num, T = config->seq_len;
    t->mix = (Mixture){.max_num = V, .seq_len = T, .balanced = r->balanced, .ties = r->ties};
    mt_seed(&t->data, (uint32_t)r->seed + 1);
    make_lists(&t->data, t->val_lists, t->val_medians, r->valset_size, V, T);
    mt_seed(&t->data, (uint32_t)r->seed);
    make_training_lists(&t->data, t->lists, t->medians, r->trainset_size, &t->mix);
    for (size_t i = 0; i < r->trainset_size; i++) t->order[i] = (uint32_t)i;
    mt_seed(&t->order_mt, (uint32_t)r->seed + 2);
    model_init(&t->model, &t->order_mt);
    if (start) memcpy(t->model.params, start->params, start->n_params * sizeof(float));
    memcpy(t->best.params, t->model.params, t->model.n_params * sizeof(float));
    t->steps_per_epoch =
        r->trainset_size ? (r->trainset_size + r->batch_size - 1) / r->batch_size : 1000;
    t->total_steps = r->steps ? r->steps : r->epochs * t->steps_per_epoch;
    return 1;
}

void trainer_free(Trainer *t) {
    while (t->n_workers > 0) {
        Worker *worker = &t->workers[--t->n_workers];
        run_free(&worker->run);
        model_free(&worker->gradient);
    }
    runs_free(&t->runs);
    model_free(&t->model);
    model_free(&t->gradient);
    model_free(&t->m);
    model_free(&t->v);
    model_free(&t->best);
    free(t->memory);
    memset(t, 0, sizeof *t);
}

/* Most random lists soon have nothing more to teach. So hard lists are collected and, once the
 * collection is full, the share `hard` of every batch is drawn from it, into its first places. */
static void draw_hard_lists(Trainer *t) {
    const size_t T = t->model.config.seq_len, full = t->hard_room && t->n_hard == t->hard_room;
    t->n_drawn = full ? (size_t)((double)t->recipe.hard * (double)t->recipe.batch_size) : 0;
    mt_fill(&t->data, t->drawn, t->n_drawn);
    for (size_t i = 0; i < t->n_drawn; i++) {
        t->drawn[i] %= (uint32_t)t->hard_room;
        memcpy(t->batch + i * T, t->hard + t->drawn[i] * T, T * sizeof *t->batch);
        t->batch_medians[i] = t->hard_medians[t->drawn[i]];
    }
}

/* A fresh list that is hard is kept: where there is room, or in place of the next drawn one whose
 * loss is no greater. */
static void keep_hard_lists(Trainer *t, size_t n) {
    const size_t T = t->model.config.seq_len;
    size_t drawn = 0;
    for (size_t i = t->n_drawn; t->hard_room && i < n; i++) {
        if (t->batch_loss[i] <= HARD_LOSS) continue;
        while (drawn < t->n_drawn && t->batch_loss[drawn] > t->batch_loss[i]) drawn++;
        if (t->n_hard == t->hard_room && drawn == t->n_drawn) return;
        const size_t place = t->n_hard < t->hard_room ? t->n_hard++ : t->drawn[drawn++];
        memcpy(t->hard + place * T, t->batch + i * T, T * sizeof *t->batch);
        t->hard_medians[place] = t->batch_medians[i];
    }
}

/* The lists of the next step into t->batch; returns how many. */
static size_t next_batch(Trainer *t) {
    const Recipe *r = &t->recipe;
    const size_t T = t->model.config.seq_len;
    if (r->trainset_size == 0) {
        draw_hard_lists(t);
        make_training_lists(&t->data, t->batch + t->n_drawn * T, t->batch_medians + t->n_drawn,
                            r->batch_size - t->n_drawn, &t->mix);
        return r->batch_size;
    }
    const size_t at = t->step % t->steps_per_epoch * r->batch_size;
    const size_t n = smaller(r->batch_size, r->trainset_size - at);
    if (at == 0 && !r->no_shuffle) {
        mt_fill(&t->order_mt, t->order_words, r->trainset_size - 1);
        shuffle(t->order, r->trainset_size, t->order_words);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t from = t->order[at + i];
        memcpy(t->batch + i * T, t->lists + from * T, T * sizeof *t->batch);
        t->batch_medians[i] = t->medians[from];
    }
    return n;
}

/* cos(pi x) for 0 <= x <= 1, by its Taylor series around 0, after cos(pi x) = -cos(pi (1 - x))
 * for x above 1/2. Every factor of a product that feeds a sum is a float. */
static float cos_pi(float x) {
    /* c = sum of (-1)^k (pi y)^2k / (2k)!, by Horner's rule from the last term, |y| <= 1/2 */
    const float y = x <= 0.5f ? x : f32(1.0 - (double)x);
    const float square = f32(9.8696044010893586 * (double)f32((double)y * y));
    float c = 0.0f;
    for (int k = 9; k >= 0; k--)
        c = f32(1.0 - (double)f32((double)square * c) / (double)((2 * k + 1) * (2 * k + 2)));
    return x <= 0.5f ? c : -c;
}

static float learning_rate(const Trainer *t) {
    const Recipe *r = &t->recipe;
    const double lr = (double)r->adam.lr;
    if (t->step < r->warmup) return f32(lr * (double)(t->step + 1) / (double)r->warmup);
    if (!r->cosine) return r->adam.lr;
    const double done = (double)(t->step - r->warmup) / (double)(t->total_steps - r->warmup);
    return f32(lr * 0.5 * (1.0 + (double)cos_pi(f32(done))));
}

/* Is the median's logit the greatest, the first of its size? */
static int is_right(const float *logits, size_t n, size_t median) {
    int other = 0;
    for (size_t j = 0; j < median; j++) other |= logits[j] >= logits[median];
    for (size_t j = median + 1; j < n; j++) other |= logits[j] > logits[median];
    return !other;
}

/* How many lists have the right answer. With a loss below log 2, the median has more than half of
 * the probability: no need to look at the others' logits. */
static size_t count_right(const Run *run, const uint32_t *medians) {
    const size_t V = run->config.max_num;
    size_t right = 0;
    for (size_t i = 0; i < run->n_lists; i++)
        right += run->loss[i] < 0.69f || is_right(run->logits + i * V, V, medians[i]);
    return right;
}

static int is_finite(const Model *m) {
    size_t i = 0;
    while (i < m->n_params && m->params[i] - m->params[i] == 0.0f) i++; /* inf - inf is NaN */
    return i == m->n_params;
}

/* At the end of an epoch, and of the training. */
static void validate(Trainer *t) {
    const Evaluation none = {0};
    t->validation = none;
    evaluate(&t->model, &t->runs, t->val_lists, t->val_medians, t->recipe.valset_size,
             &t->validation);
    if (!is_finite(&t->model)) return;
    if (!t->recipe.keep_best || !t->validated || t->validation.right > t->best_right) {
        t->best_right = t->validation.right;
        memcpy(t->best.params, t->model.params, t->model.n_params * sizeof(float));
    }
    t->validated = 1;
}

/* The gradient of the mean loss of the n lists of the batch, and t->loss and t->accuracy:
 *   1. All different (number, position) pairs of the batch are embedded and projected, once.
 *   2. Chunk by chunk, the lists go forward from there to the loss, and backward to there.
 *   3. What each chunk adds to the gradients of weights and rows is added in the chunks' order.
 *   4. Once, the rows' gradients go on to W_Q, W_K, W_V, LN1 and the embeddings. */
static void batch_gradient(Trainer *t, size_t n) {
    const Config *c = &t->model.config;
    const size_t T = c->seq_len;
    const float scale = f32(1.0 / (double)n);
    embed_inputs(&t->model, &t->inputs, t->batch, n, queries_per_list(c, 0, RUN_GRADIENTS));
    project(c, &t->model.weights.layers[0], &t->inputs.rows);
    const RowGradients rows = split_rows(t->row_gradients, c, &t->inputs.rows);
    memset(t->gradient.params, 0, t->gradient.n_params * sizeof(float));
    memset(t->row_gradients, 0, rows.size * sizeof(float));
    t->loss = 0;
    t->accuracy = 0;
    OMP(omp parallel for ordered schedule(static, 1) num_threads((int)t->n_workers))
    for (size_t at = 0; at < n; at += CHUNK) {
        Worker *worker = &t->workers[this_thread()];
        Run *run = &worker->run;
        const uint32_t *medians = t->batch_medians + at;
        model_forward(&t->model, run, t->batch + at * T, smaller(CHUNK, n - at), NULL);
        const double loss = loss_sum(run, medians);
        const size_t right = count_right(run, medians);
        memcpy(t->batch_loss + at, run->loss, run->n_lists * sizeof(float));
        memset(worker->gradient.params, 0, t->gradient.n_params * sizeof(float));
        backward(&t->model, run, medians, scale, &worker->gradient);
        OMP(omp ordered)
        {
            add_to(t->gradient.params, worker->gradient.params, t->gradient.n_params);
            add_to(t->row_gradients, run->gradients.rows, rows.size);
            t->loss += loss;
            t->accuracy += (double)right;
        }
    }
    backward_inputs(&t->model, &t->inputs, &rows, t->scratch, &t->gradient);
    t->loss /= (double)n;
    t->accuracy /= (double)n;
}

int trainer_step(Trainer *t) {
    const size_t n = next_batch(t);
    batch_gradient(t, n);
    if (!(t->loss < HUGE_VAL)) return 0;
    keep_hard_lists(t, n);
    t->lr = learning_rate(t);
    Adam adam = t->recipe.adam;
    adam.lr = t->lr;
    t->step++;
    adam_step(&adam, (uint32_t)t->step, t->model.params, t->m.params, t->v.params,
              t->gradient.params, t->model.n_params);
    if (t->step % t->steps_per_epoch == 0 || t->step == t->total_steps) validate(t);
    return 1;
}

Model *trainer_result(Trainer *t) {
    model_describe(&t->best, &t->recipe);
    return &t->best;
}

/* ---- 6. Text and settings -------------------------------------------------------------------- */

/* All output, files included, is first made in memory: it can be hashed, and a failed write
 * loses nothing. */
void text_free(Text *text) {
    free(text->data);
    memset(text, 0, sizeof *text);
}

void text_bytes(Text *text, const void *bytes, size_t n) {
    const size_t room = text->capacity - text->size, wanted = 2 * (text->size + n) + 1000;
    if (text->failed) return;
    if (n >= room && text->fixed) {
        text->failed = 1;
        n = room - 1;
    } else if (n >= room) {
        char *data = wanted > n ? (char *)realloc(text->data, wanted) : NULL;
        text->failed = !data;
        if (!data) return;
        text->data = data;
        text->capacity = wanted;
    }
    memcpy(text->data + text->size, bytes, n);
    text->size += n;
    text->data[text->size] = 0;
}

static void text_fill(Text *text, char c, size_t n) {
    for (; n > 0; n--) text_bytes(text, &c, 1);
}

/* A conversion of a format: %, flags, width, precision, length, kind. */
typedef struct {
    int minus, plus, zero;
    int width, precision; /* precision -1: none */
    char length, kind;    /* length 'l', 'L' for ll, 'z', or 0 */
} Conversion;

/* The whole number that a text begins with, or `most` if it is greater. Returns how many digits it
 * has. most: at most SIZE_MAX / 20. */
static size_t read_digits(const char *text, size_t most, size_t *number) {
    const size_t n = strspn(text, "0123456789");
    *number = 0;
    for (size_t i = 0; i < n; i++) *number = smaller(10 * *number + (size_t)(text[i] - '0'), most);
    return n;
}

/* A number in a format, or the next argument for a '*'. */
static int format_number(const char **at, va_list *args) {
    size_t n;
    if (**at == '*') {
        (*at)++;
        return va_arg(*args, int);
    }
    *at += read_digits(*at, 100000, &n);
    return (int)n;
}

/* Reads what stands behind a '%'; returns where the format goes on. */
static const char *read_conversion(Conversion *c, const char *at, va_list *args) {
    *c = (Conversion){.precision = -1};
    for (; *at && strchr("-+0", *at); at++) {
        c->minus |= *at == '-';
        c->plus |= *at == '+';
        c->zero |= *at == '0';
    }
    c->width = format_number(&at, args);
    if (*at == '.') {
        at++;
        c->precision = format_number(&at, args);
    }
    for (; *at == 'l' || *at == 'z'; at++) c->length = c->length == 'l' ? 'L' : *at;
    c->kind = *at;
    return at + (*at != 0);
}

/* The next argument of kind d, u or x, in digits. */
static size_t print_whole(char *to, const Conversion *c, va_list *args) {
    const unsigned base = c->kind == 'x' ? 16 : 10;
    char digits[24];
    size_t n = 0, size = 0;
    uint64_t value;
    if (c->kind == 'd') {
        const int number = va_arg(*args, int);
        value = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
        if (number < 0) to[size++] = '-';
    } else if (c->length == 'z') value = va_arg(*args, size_t);
    else if (c->length == 'l') value = va_arg(*args, unsigned long);
    else if (c->length == 'L') value = va_arg(*args, unsigned long long);
    else value = va_arg(*args, unsigned);
    do digits[n++] = "0123456789abcdef"[value % base];
    while ((value /= base) > 0);
    while (n > 0) to[size++] = digits[--n];
    return size;
}

static void add_conversion(Text *text, const Conversion *c, va_list *args) {
    char made[1 + NUMBER_TEXT];
    char *number = made + 1; /* a '+' may come before it */
    const char *body = number;
    size_t n = 1;
    switch (c->kind) {
    case 's':
        body = va_arg(*args, const char *);
        for (n = 0; n != (size_t)c->precision && body[n];) n++;
        break;
    case 'f':
    case 'g':
        n = print_double(number, va_arg(*args, double), c->kind,
                         c->precision < 0 ? 6 : c->precision);
        break;
    case 'd':
    case 'u':
    case 'x': n = print_whole(number, c, args); break;
    case 'c': *number = (char)va_arg(*args, int); break;
    default: *number = c->kind; /* a second '%' */
    }
    if (c->plus && *number != '-') {
        *made = '+';
        body = made;
        n++;
    }
    const size_t width = (size_t)c->width, pad = width > n ? width - n : 0;
    if (!c->minus) text_fill(text, c->zero ? '0' : ' ', pad);
    text_bytes(text, body, n);
    if (c->minus) text_fill(text, ' ', pad);
}

void text_add_args(Text *text, const char *format, va_list args) {
    Conversion c;
    va_list rest;
    va_copy(rest, args);
    while (*format) {
        const size_t plain = strcspn(format, "%");
        text_bytes(text, format, plain);
        format += plain;
        if (*format == 0) break;
        format = read_conversion(&c, format + 1, &rest);
        add_conversion(text, &c, &rest);
    }
    va_end(rest);
}

void text_add(Text *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_add_args(text, format, args);
    va_end(args);
}

int print_to_args(char *to, size_t size, const char *format, va_list args) {
    Text text = {.data = to, .capacity = size, .fixed = 1};
    *to = 0;
    text_add_args(&text, format, args);
    return !text.failed;
}

int print_to(char *to, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int whole = print_to_args(to, size, format, args);
    va_end(args);
    return whole;
}

int print_file(FILE *file, const char *format, ...) {
    Text text = {0};
    va_list args;
    if (!file) return 1;
    va_start(args, format);
    text_add_args(&text, format, args);
    va_end(args);
    const int done = !text.failed && fwrite(text.data, 1, text.size, file) == text.size;
    text_free(&text);
    return done;
}

/* -- options -- */

/* The commands, each a bit in the set of those that take an option. */
enum {
    JOURNEY = 1 << 0,
    TOUR = 1 << 1,
    DATA = 1 << 2,
    CONSTRUCT = 1 << 3,
    TRAIN = 1 << 4,
    INFO = 1 << 5,
    EVAL = 1 << 6,
    PREDICT = 1 << 7,
    ATTENTION = 1 << 8,
    ACTIVATIONS = 1 << 9,
    CIRCUITS = 1 << 10,
    WEIGHTS = 1 << 11,
    ABLATE = 1 << 12,
    ATTRIBUTE = 1 << 13,
    PATCH = 1 << 14,
    EXPLAIN = 1 << 15,
    CERTIFY = 1 << 16,
    CHECK = 1 << 17,
    BENCH = 1 << 18,
    TEST = 1 << 19,
    ALL = 2 * TEST - 1,

    ON_SAMPLE = TOUR | EVAL | ATTENTION | CIRCUITS | ABLATE | EXPLAIN, /* of --size lists */
    ON_LIST = ATTRIBUTE | PATCH | ACTIVATIONS, /* one list, by default the first of --seed */
    ON_MODEL = ON_SAMPLE | ON_LIST | INFO | PREDICT | WEIGHTS | CERTIFY,
    TRAINS = TRAIN | BENCH,
    HAS_CSV = ON_MODEL & ~(TOUR | INFO),
    DRAWS = JOURNEY | TOUR | PREDICT | ATTENTION | CIRCUITS | WEIGHTS | EXPLAIN
};

#define NO_POSITION SIZE_MAX

/* All that a command line can set. */
typedef struct {
    Settings settings; /* of the model and its training */
    size_t preset, size, threads, effort, save_every, part, kind, query_pos, key_pos;
    size_t csv, logits, raw, color, no_color;
    size_t width; /* 0: the terminal's */
    const char *model, *init, *resume, *out, *log;
    char heads[LIST_SIZE], layers[LIST_SIZE], positions[LIST_SIZE];
} Options;

#define OPTION(NAME, KIND, FIELD, LEAST, MOST, CHOICES, COMMANDS, HELP)                         \
    {                                                                                           \
        .name = NAME, .kind = SETTING_##KIND, .offset = offsetof(Options, FIELD), .min = LEAST, \
        .max = MOST, .choices = CHOICES, .commands = COMMANDS, .help = HELP                     \
    }
#define COUNT(NAME, FIELD, LEAST, MOST, COMMANDS, HELP) \
    OPTION(NAME, COUNT, FIELD, LEAST, MOST, NULL, COMMANDS, HELP)
#define REAL(NAME, FIELD, LEAST, MOST, HELP) \
    OPTION(NAME, REAL, FIELD, LEAST, MOST, NULL, TRAIN, HELP)
#define CHOICE(NAME, FIELD, MOST, CHOICES, COMMANDS, HELP) \
    OPTION(NAME, CHOICE, FIELD, 0, MOST, CHOICES, COMMANDS, HELP)
#define FLAG(NAME, FIELD, COMMANDS, HELP) OPTION(NAME, FLAG, FIELD, 0, 1, NULL, COMMANDS, HELP)
#define PATH(NAME, FIELD, COMMANDS, HELP) OPTION(NAME, PATH, FIELD, 0, 0, NULL, COMMANDS, HELP)
#define LIST(NAME, FIELD, FORM, COMMANDS, HELP) \
    OPTION(NAME, LIST, FIELD, 0, 0, FORM, COMMANDS, HELP)
#define CONFIG(FIELD) settings.config.FIELD
#define RECIPE(FIELD) settings.recipe.FIELD

/* Every option. The first n_settings define a model and its training: checkpoints note them under
 * these names. */
const Setting settings[] = {
    COUNT("max-num", CONFIG(max_num), 2, 65536, TRAINS | DATA | CONSTRUCT, "numbers are 0 .. N-1"),
    COUNT("seq-len", CONFIG(seq_len), 1, MAX_SEQ_LEN, TRAINS | DATA | CONSTRUCT,
          "numbers in a list: odd, at least 3"),
    COUNT("d-model", CONFIG(d_model), 1, 65536, TRAINS | CONSTRUCT, "width of the residual stream"),
    COUNT("d-head", CONFIG(d_head), 1, 65536, TRAINS, "width of a head"),
    COUNT("n-layers", CONFIG(n_layers), 1, 256, TRAINS, "layers"),
    COUNT("n-heads", CONFIG(n_heads), 1, 4096, TRAINS, "heads in a layer"),
    COUNT("d-mlp", CONFIG(d_mlp), 0, 1048576, TRAINS, "hidden width of the MLP; 0: none"),
    CHOICE("normalization", CONFIG(normalization), NORMALIZATION_LNPRE, "none|LN|LNPre",
           TRAINS | ON_MODEL, "LNPre: LN without w and b"),
    COUNT("trainset-size", RECIPE(trainset_size), 0, 1e9, TRAIN,
          "training lists; 0: fresh ones at every step"),
    REAL("balanced", RECIPE(balanced), 0, 1, "share with every median equally likely"),
    REAL("ties", RECIPE(ties), 0, 1, "share of these in which numbers repeat"),
    REAL("hard", RECIPE(hard), 0, 1, "share of a batch drawn from hard lists"),
    COUNT("valset-size", RECIPE(valset_size), 0, 1e9, TRAIN, "validation lists"),
    COUNT("epochs", RECIPE(epochs), 0, 1e9, TRAIN, "passes over the training lists"),
    COUNT("steps", RECIPE(steps), 0, 4e9, TRAIN, "training steps, in place of epochs"),
    COUNT("batch-size", RECIPE(batch_size), 1, 1e6, TRAINS, "lists in a step"),
    REAL("lr", RECIPE(adam.lr), 0, 1000, "Adam's learning rate"),
    CHOICE("schedule", RECIPE(cosine), 1, "constant|cosine", TRAIN, "lr after the warm-up"),
    COUNT("warmup", RECIPE(warmup), 0, 4e9, TRAIN, "steps in which lr grows linearly"),
    REAL("beta1", RECIPE(adam.beta1), 0, 0.999999, "Adam's decay of the mean gradient"),
    REAL("beta2", RECIPE(adam.beta2), 0, 0.999999, "Adam's decay of the mean square"),
    REAL("eps", RECIPE(adam.eps), 1e-30, 1, "Adam's epsilon"),
    REAL("weight-decay", RECIPE(adam.weight_decay), 0, 1000, "decoupled weight decay"),
    COUNT("seed", RECIPE(seed), 0, 4294967295.0, TRAIN | DATA | ON_SAMPLE | ON_LIST,
          "of the lists and all else that is random"),
    FLAG("no-shuffle", RECIPE(no_shuffle), TRAIN,
         "take the training lists in the same order always"),
    CHOICE("keep", RECIPE(keep_best), 1, "last|best", TRAIN,
           "the last weights, or best in validation"),

    /* Two more that say what is trained, not how. */
    CHOICE("preset", preset, 1, "default|original", TRAIN, "recipe; other options override it"),
    PATH("init", init, TRAIN, "start from the weights of this checkpoint"),

    PATH("resume", resume, TRAIN, "go on with the state of an interrupted training"),
    PATH("out", out, TRAIN | CONSTRUCT, "where the checkpoint goes"),
    PATH("log", log, TRAIN, "CSV file for step, lr, loss, accuracy"),
    COUNT("save-every", save_every, 1, 4e9, TRAIN, "steps between saves of the state, OUT.state"),
    PATH("model", model, ON_MODEL, "checkpoint"),
    COUNT("size", size, 1, 1e9, ON_SAMPLE | DATA | BENCH, ""),
    COUNT("threads", threads, 1, 1024, JOURNEY | TRAINS | EVAL | CERTIFY,
          "threads, with OpenMP; the same bits for any N"),
    COUNT("effort", effort, 1, 4e9, CERTIFY, "millions of table entries the proof may look at"),
    LIST("head", heads, "L.H", ABLATE | CIRCUITS, "a head as LAYER.HEAD; ablate takes L.H,L.H,..."),
    LIST("layer", layers, "L", ABLATE, "a whole layer, or L,L,..."),
    CHOICE("part", part, 1, "attn|mlp", ABLATE, "of the layer"),
    LIST("positions", positions, "P,P,...", ABLATE, "only there"),
    CHOICE("kind", kind, 2, "mean|zero|resample", ABLATE, "what replaces the values"),
    FLAG("raw", raw, CIRCUITS, "the weight matrices alone: no LN, bias, scale"),
    COUNT("query-pos", query_pos, 0, MAX_SEQ_LEN, CIRCUITS, "the query's position; else the last"),
    COUNT("key-pos", key_pos, 0, MAX_SEQ_LEN, CIRCUITS,
          "the key's position; else the mean over all"),
    FLAG("logits", logits, PREDICT, "print every logit, a line a list"),
    FLAG("csv", csv, HAS_CSV, "print for machines"),
    FLAG("color", color, DRAWS, "draw in colour"),
    FLAG("no-color", no_color, DRAWS, "draw with characters"),
    COUNT("width", width, 40, 1000, ALL & ~(DATA | ACTIVATIONS | TEST),
          "columns; else the terminal's"),
};
enum { N_OPTIONS = sizeof settings / sizeof *settings };
const size_t n_settings = 26;

/* The index of `text` among the words of "one|two|three", or their number if it is none of them. */
static size_t choice_index(const char *choices, const char *text) {
    for (size_t index = 0;; index++) {
        const size_t n = strcspn(choices, "|");
        if (n == strlen(text) && strncmp(choices, text, n) == 0) return index;
        if (!choices[n]) return index + 1;
        choices += n + 1;
    }
}

/* Adds to a list; given again, an option adds to what is there. */
static int parse_words(const Setting *s, char *place, const char *text, Error *error) {
    const size_t n = strlen(place);
    return print_to(place + n, LIST_SIZE - n, "%s%s", n ? "," : "", text) ||
           fail(error, "--%s has %zu characters, must have less than %d", s->name,
                n + 1 + strlen(text), LIST_SIZE);
}

int setting_parse(const Setting *s, void *base, const char *text, Error *error) {
    char *place = (char *)base + s->offset;
    const int whole = s->kind != SETTING_REAL;
    const char *end;
    double value;
    if (!*text) return fail(error, "--%s is empty", s->name);
    if (s->kind == SETTING_LIST) return parse_words(s, place, text, error);
    if (s->kind == SETTING_PATH) {
        memcpy(place, &text, sizeof text);
        return 1;
    }
    if (s->kind == SETTING_CHOICE) {
        value = (double)choice_index(s->choices, text);
        if (value > s->max)
            return fail(error, "--%s is '%.60s', must be one of %s", s->name, text, s->choices);
    } else {
        const char *hint = strcmp(s->name, "seed") ? "" : " (PyTorch takes a seed modulo 2^32)";
        value = parse_double(text, &end);
        if (end == text || *end || (whole && text[strspn(text, "0123456789")]) ||
            value < s->min || value > s->max)
            return fail(error, "--%s is '%.60s', must be a%s number from %.9g to %.10g%s", s->name,
                        text, whole ? " whole" : "", s->min, s->max, hint);
    }
    const float number = f32(value);
    const size_t count = (size_t)value;
    if (whole) memcpy(place, &count, sizeof count);
    else memcpy(place, &number, sizeof number);
    return 1;
}

/* The number that a setting is, or by which it is chosen. */
static double setting_value(const Setting *s, const void *base) {
    const char *place = (const char *)base + s->offset;
    float real;
    size_t count;
    if (s->kind == SETTING_REAL) {
        memcpy(&real, place, sizeof real);
        return real;
    }
    memcpy(&count, place, sizeof count);
    return (double)count;
}

/* A real number gets as few digits as still mean this float. */
void setting_print(const Setting *s, const void *base, char *text, size_t size) {
    const char *word = s->choices, *end;
    *text = 0;
    if (s->kind == SETTING_PATH) {
        memcpy(&word, (const char *)base + s->offset, sizeof word);
        if (word) print_to(text, size, "%s", word);
        return;
    }
    const double value = setting_value(s, base);
    if (!(value >= s->min && value <= s->max)) return;
    if (s->kind == SETTING_REAL) {
        int digits = 0;
        do print_to(text, size, "%.*g", ++digits, value);
        while (digits < 9 && f32(parse_double(text, &end)) != value);
    } else if (word) {
        for (double i = 0; i < value; i++) word += strcspn(word, "|") + 1;
        print_to(text, size, "%.*s", (int)strcspn(word, "|"), word);
    } else print_to(text, size, "%.0f", value);
}

void model_describe(Model *model, const Recipe *recipe) {
    const Settings all = {.config = model->config, .recipe = *recipe};
    model->n_notes = n_settings;
    for (size_t i = 0; i < n_settings; i++) {
        Note *note = &model->notes[i];
        print_to(note->key, sizeof note->key, "%s", settings[i].name);
        setting_print(&settings[i], &all, note->value, sizeof note->value);
    }
}

/* ---- 7. Checkpoints -------------------------------------------------------------------------- */

/* How a model gets into a file and back. The format is safetensors: eight bytes, lowest first, with
 * the length of the header; the header, a JSON object with each tensor's type, shape and place; the
 * tensors' bytes, each number lowest byte first. */

/* A number of up to eight bytes. */
static uint64_t read_number(const char *bytes, size_t n) {
    uint64_t number = 0;
    while (n-- > 0) number = number << 8 | (unsigned char)bytes[n];
    return number;
}

static void add_word(Text *text, uint32_t word) {
    char bytes[4];
    for (size_t i = 0; i < 4; i++) bytes[i] = (char)(word >> 8 * i & 255);
    text_bytes(text, bytes, 4);
}

/* The bytes of a model's file. */
static void checkpoint_text(Text *file, const Model *model) {
    Text header = {0}, data = {0};
    text_add(&header, "{\"__metadata__\":{");
    for (size_t i = 0; i < model->n_notes; i++)
        text_add(&header, "%s\"%s\":\"%s\"", i ? "," : "", model->notes[i].key,
                 model->notes[i].value);
    text_add(&header, "}");
    for (const Tensor *t = model->tensors; t < model->tensors + model->n_tensors; t++) {
        text_add(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                 t->words ? "U32" : "F32");
        for (size_t i = 0; i < t->n_dims; i++)
            text_add(&header, "%s%zu", i ? "," : "", t->shape[i]);
        text_add(&header, "],\"data_offsets\":[%zu,%zu]}", data.size, data.size + 4 * t->size);
        for (size_t i = 0; i < t->size; i++) {
            uint32_t word;
            if (t->words) word = t->words[i];
            else memcpy(&word, t->data + i, sizeof word);
            add_word(&data, word);
        }
    }
    text_add(&header, "}");
    while (header.size % 8 && !header.failed) text_add(&header, " ");

    file->failed |= header.failed | data.failed;
    add_word(file, (uint32_t)header.size);
    add_word(file, 0);
    text_bytes(file, header.data, header.size);
    text_bytes(file, data.data, data.size);
    text_free(&header);
    text_free(&data);
}

/* Is it a device or a pipe, as far as the platform can tell? */
static int is_special(const char *path) {
#ifdef HAVE_STAT
    struct stat about;
    return stat(path, &about) == 0 && !S_ISREG(about.st_mode);
#else
    (void)path;
    return 0;
#endif
}

static int cannot_write(const char *path, Error *error) {
    return fail(error, "cannot write %.400s: %s", path, strerror(errno));
}

/* The file that is written in place of `path`: one beside it, but a device itself. */
static int name_beside(char *beside, size_t size, const char *path, Error *error) {
    return print_to(beside, size, is_special(path) ? "%s" : "%s.tmp", path) ||
           fail(error, "the name %.60s... is too long", path);
}

int write_file(const char *path, const Text *text, Error *error) {
    char beside[4100];
    if (text->failed) return fail(error, "out of memory while preparing %.400s", path);
    if (!name_beside(beside, sizeof beside, path, error)) return 0;
    const int straight = strcmp(beside, path) == 0;
    FILE *f = fopen(beside, "wb");
    int done = f && fwrite(text->data, 1, text->size, f) == text->size;
    if (f) done = fclose(f) == 0 && done;
#ifdef _WIN32
    if (done && !straight) remove(path); /* there, rename does not replace a file */
#endif
    if (done && (straight || rename(beside, path) == 0)) return 1;
    cannot_write(path, error);
    if (f && !straight) remove(beside);
    return 0;
}

int model_save(const Model *model, const char *path, Error *error) {
    Text file = {0};
    checkpoint_text(&file, model);
    const int done = write_file(path, &file, error);
    text_free(&file);
    return done;
}

/* -- reading, which trusts nothing -- */

enum {
    MAX_TENSORS = 8192,
    MAX_METADATA = 256,
    MAX_DIMS = 8,
    MAX_HEADER = 1 << 22
};

/* A name in a JSON object, and its value. Both stay in the header, each ended by a zero. */
typedef struct {
    char *name, *value;
    const char *dtype, *shape; /* of a tensor: F32 and [32,50], as they stand in the header */
    size_t n_dims, dims[MAX_DIMS];
    size_t begin, end; /* its bytes: from `begin` to before `end` of the data */
    int used;
} Entry;

typedef struct {
    Text header, data; /* the file behind its first eight bytes */
    Entry *tensors;
    size_t n_tensors, data_size, n_notes;
    Note notes[MAX_NOTES];
    char remarks[2][200];
    Error error;
} Checkpoint;

/* The file is none that we read, because ...; returns 0. */
#define refuse(file, ...) fail(&(file)->error, __VA_ARGS__)

static int bad_header(Checkpoint *file, const char *at, const char *expected) {
    const size_t byte = 8 + (size_t)(at - file->header.data);
    return refuse(file, "bad header at byte %zu: %s expected, '%.12s' found", byte, expected, at);
}

static Entry *find_entry(Entry *entries, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(entries[i].name, name) == 0) return &entries[i];
    return NULL;
}

static char *skip_space(char *at) { return at + strspn(at, " \t\r\n"); }

/* From a string's first quote to its last, or to the end of the text. */
static char *end_of_string(char *at) {
    for (at++; *at >= ' ' && *at != '"'; at++)
        if (*at == '\\' && at[1] >= ' ') at++;
    return at;
}

/* From the first character of a value to what follows it, or to the end of the text. */
static char *end_of_value(char *at) {
    size_t depth = 0; /* in how many brackets */
    for (; *at && (depth > 0 || !strchr(",]} \t\r\n", *at)); at++) {
        if (*at == '"') at = end_of_string(at);
        if (!*at) break;
        depth += strchr("[{", *at) != NULL;
        depth -= strchr("]}", *at) != NULL;
    }
    return at;
}

/* What stands between a string's quotes, or NULL if the value is none. */
static char *unquote(char *value) {
    if (*value != '"') return NULL;
    char *end = end_of_string(value);
    if (*end != '"' || end[1]) return NULL;
    *end = 0;
    return value + 1;
}

/* Parts {"name": value, ...} into at most `max` entries. The names differ. */
static int split_object(Checkpoint *file, char *at, Entry *entries, size_t max, size_t *n) {
    if (*at != '{') return bad_header(file, at, "{");
    char next = ',';
    if (*skip_space(at + 1) == '}') {
        next = '}';
        at = skip_space(at + 1);
    }
    for (*n = 0; next == ','; ++*n) {
        Entry *e = &entries[*n];
        at = skip_space(at + 1);
        if (*at != '"' || *n == max) return bad_header(file, at, *n < max ? "a name" : "}");
        e->name = at + 1;
        at = end_of_string(at);
        if (*at != '"') return bad_header(file, at, "the end of a name");
        *at = 0;
        if (find_entry(entries, *n, e->name))
            return refuse(file, "%.100s stands twice in the header", e->name);
        at = skip_space(at + 1);
        if (*at != ':') return bad_header(file, at, ":");
        e->value = skip_space(at + 1);
        char *end = end_of_value(e->value);
        at = skip_space(end);
        next = *at;
        if (next != ',' && next != '}') return bad_header(file, at, ", or }");
        *end = 0;
    }
    at = skip_space(at + 1);
    return !*at || bad_header(file, at, "the end");
}

/* One to `max` whole numbers, as in [32, 50]. Returns how many; SIZE_MAX if something else stands
 * there, be it [], the shape of a single number. */
static size_t read_numbers(char *at, size_t *numbers, size_t max) {
    const size_t limit = SIZE_MAX / 20;
    size_t n = 0;
    for (; n < max && *at == (n == 0 ? '[' : ','); n++) {
        at = skip_space(at + 1);
        const size_t digits = read_digits(at, limit, &numbers[n]);
        if (digits == 0 || numbers[n] == limit) return SIZE_MAX;
        at = skip_space(at + digits);
    }
    return strcmp(at, "]") == 0 ? n : SIZE_MAX;
}

/* {"dtype": "F32", "shape": [32,50], "data_offsets": [begin,end]}, in any order. */
static int read_entry(Checkpoint *file, Entry *e) {
    Entry parts[3];
    size_t n, offsets[2];
    if (!split_object(file, e->value, parts, 3, &n)) return 0;
    Entry *dtype = find_entry(parts, n, "dtype"), *shape = find_entry(parts, n, "shape");
    Entry *place = find_entry(parts, n, "data_offsets");
    e->dtype = dtype ? unquote(dtype->value) : NULL;
    if (!e->dtype || !shape || !place || read_numbers(place->value, offsets, 2) != 2 ||
        offsets[0] > offsets[1])
        return refuse(file, "tensor %.100s: no sound dtype, shape and data_offsets", e->name);
    e->shape = shape->value;
    e->n_dims = read_numbers(shape->value, e->dims, MAX_DIMS);
    e->begin = offsets[0];
    e->end = offsets[1];
    if (e->end > file->data_size) file->data_size = e->end;
    return 1;
}

/* Takes off what stands before every name, such as "_orig_mod." or "model.". */
static void take_off_prefix(Checkpoint *file) {
    const char *first = file->tensors[0].name;
    size_t length = strlen(first);
    for (size_t i = 0; i < file->n_tensors; i++)
        while (strncmp(first, file->tensors[i].name, length) != 0) length--;
    while (length > 0 && first[length - 1] != '.') length--;
    for (size_t i = 0; i < file->n_tensors; i++) file->tensors[i].name += length;
}

/* {"max-num": "50", ...}. What is longer than anything of ours is passed over. */
static int read_metadata(Checkpoint *file, char *text) {
    Entry *entries = file->tensors + MAX_TENSORS;
    size_t n;
    if (!split_object(file, text, entries, MAX_METADATA, &n)) return 0;
    for (Entry *e = entries; e < entries + n; e++) {
        const char *value = unquote(e->value);
        Note *note = &file->notes[file->n_notes];
        if (!value)
            return refuse(file, "%.60s in __metadata__ is %.60s, must be a string", e->name,
                          e->value);
        if (file->n_notes < MAX_NOTES && print_to(note->key, sizeof note->key, "%s", e->name) &&
            print_to(note->value, sizeof note->value, "%s", value))
            file->n_notes++;
    }
    return 1;
}

static int read_header(Checkpoint *file) {
    const double bytes = (MAX_TENSORS + MAX_METADATA) * sizeof(Entry);
    char *text = file->header.data;
    file->tensors = (Entry *)allocate(bytes, "the header", &file->error);
    if (!file->tensors) return 0;
    for (size_t i = 0; i < file->header.size; i++) /* no name or value of ours has such */
        if (text[i] == 0 || (unsigned char)text[i] > 126) text[i] = '?';
    if (!split_object(file, text, file->tensors, MAX_TENSORS, &file->n_tensors)) return 0;

    Entry *metadata = find_entry(file->tensors, file->n_tensors, "__metadata__");
    if (metadata) {
        if (!read_metadata(file, metadata->value)) return 0;
        *metadata = file->tensors[--file->n_tensors];
    }
    for (size_t i = 0; i < file->n_tensors; i++)
        if (!read_entry(file, &file->tensors[i])) return 0;
    if (file->n_tensors == 0) return refuse(file, "no tensor in it");
    take_off_prefix(file);
    return 1;
}

/* Adds the next n bytes of f to text, which grows with what really comes: to claim to be huge costs
 * nothing. */
static int read_bytes(Checkpoint *file, FILE *f, Text *text, size_t n) {
    char part[8192];
    if ((double)n >= max_bytes()) return refuse(file, "out of memory: it claims %zu MiB", n >> 20);
    for (size_t got; n > 0; n -= got) {
        got = fread(part, 1, smaller(n, sizeof part), f);
        text_bytes(text, part, got);
        if (text->failed) return refuse(file, "out of memory");
        if (ferror(f)) return refuse(file, "%s", strerror(errno));
        if (got == 0) return refuse(file, "cut off: %zu bytes are missing", n);
    }
    return 1;
}

/* What people take for a checkpoint, by its first bytes, and what to do then. */
static const struct {
    const char *begin, *what;
} strangers[] = {
    {"PK", "a ZIP archive, as torch.save writes; README shows how to convert a .pt file"},
    {"\x80", "a pickle, as torch.save wrote; README shows how to convert a .pt file"},
    {"version ", "a Git LFS pointer; `git lfs pull` fetches the file itself"},
    {"<", "an HTML page; download the file itself"},
    {"{", "JSON; weights stand in a file whose name ends in .safetensors"},
    {"\x1f\x8b", "compressed; unpack it with gunzip"},
};

static int read_file(Checkpoint *file, FILE *f) {
    char first[9] = "";
    const size_t got = fread(first, 1, 8, f);
    const uint64_t length = read_number(first, 8);
    const int sound = got == 8 && length >= 2 && length <= MAX_HEADER;
    if (ferror(f)) return refuse(file, "%s", strerror(errno));
    if (got == 0) return refuse(file, "it is empty; `median train` makes a checkpoint");
    for (size_t i = 0; !sound && i < sizeof strangers / sizeof *strangers; i++)
        if (strncmp(first, strangers[i].begin, strlen(strangers[i].begin)) == 0)
            return refuse(file, "not safetensors but %s", strangers[i].what);
    if (!sound) return refuse(file, "not safetensors: its first bytes are no header's length");
    return read_bytes(file, f, &file->header, (size_t)length) && read_header(file) &&
           read_bytes(file, f, &file->data, file->data_size) &&
           (fgetc(f) == EOF || refuse(file, "something stands behind the last tensor"));
}

static Entry *find_tensor(const Checkpoint *file, const char *name) {
    return find_entry(file->tensors, file->n_tensors, name);
}

static const char *find_note(const Note *notes, size_t n, const char *key) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(notes[i].key, key) == 0) return notes[i].value;
    return NULL;
}

/* A tensor that must be there, with so many dimensions; else NULL. */
static Entry *need_tensor(Checkpoint *file, const char *name, size_t n_dims) {
    Entry *e = find_tensor(file, name), *all = file->tensors;
    const size_t n = file->n_tensors;
    if (e && e->n_dims == n_dims) return e;
    if (e) refuse(file, "tensor %s is %.60s, must have %zu dimensions", name, e->shape, n_dims);
    else
        refuse(file, "tensor %s is missing among %zu, such as %.60s and %.60s", name, n,
               all[0].name, all[n - 1].name);
    return NULL;
}

/* The configuration follows from the shapes. */
static int read_config(Checkpoint *file, Config *c) {
    char name[48] = "blocks.0.attn.W_Q";
    Error reason;
    const Entry *W_in = find_tensor(file, "blocks.0.mlp.W_in");
    const Entry *W_E = need_tensor(file, "embed.W_E", 2);
    const Entry *W_pos = W_E ? need_tensor(file, "pos_embed.W_pos", 2) : NULL;
    const Entry *W_Q = W_pos ? need_tensor(file, name, 3) : NULL;
    if (!W_Q) return 0;
    *c = (Config){.max_num = W_E->dims[0],
                  .seq_len = W_pos->dims[0],
                  .d_model = W_E->dims[1],
                  .d_head = W_Q->dims[2],
                  .n_heads = W_Q->dims[0],
                  .d_mlp = W_in ? W_in->dims[1] : 0};
    for (c->n_layers = 0; find_tensor(file, name); c->n_layers++)
        print_to(name, sizeof name, "blocks.%u.attn.W_Q", (unsigned)c->n_layers + 1);
    return config_check(c, &reason) ||
           refuse(file, "embed.W_E is %.40s, pos_embed.W_pos %.40s, blocks.0.attn.W_Q %.40s: %s",
                  W_E->shape, W_pos->shape, W_Q->shape, reason.text);
}

/* The shapes do not tell normalization none from LNPre, whose w and b are folded into the weights
 * that follow. The metadata does; without it, `wanted`; without both we assume LNPre and say so. */
static int read_normalization(Checkpoint *file, size_t wanted, size_t *found) {
    const char *note = find_note(file->notes, file->n_notes, "normalization");
    const int has_ln = find_tensor(file, "ln_final.w") != NULL;
    *found = note ? choice_index("none|LN|LNPre", note) : wanted;
    if (has_ln) *found = NORMALIZATION_LN;
    if (wanted < NORMALIZATION_FROM_FILE && wanted != *found)
        return refuse(file, "--normalization contradicts the file's %s",
                      note ? note : "ln_final.w");
    if (*found == NORMALIZATION_LN && !has_ln && !find_tensor(file, "blocks.0.ln1.w"))
        return refuse(file, "normalization is LN, but no tensor is an ln; where it is folded into "
                            "the weights, normalization is LNPre");
    if (*found < NORMALIZATION_FROM_FILE) return 1;
    *found = NORMALIZATION_LNPRE;
    print_to(file->remarks[0], sizeof file->remarks[0],
             "taken as LNPre, layer normalization folded into the weights, since neither tensors "
             "nor metadata tell; if it has none, say --normalization none");
    return 1;
}

/* The types that are read, and their bytes. U32 is for the whole numbers of a training's state. */
enum { F32, F16, BF16, F64, U32 };
static const char types[] = "F32|F16|BF16|F64|U32";
static const size_t type_bytes[] = {4, 2, 2, 8, 4};

/* A number of that type, rounded to float. */
static float decode(size_t type, uint64_t bits) {
    uint32_t word = (uint32_t)bits;
    double wide;
    float x;
    if (type == F64) {
        memcpy(&wide, &bits, sizeof wide);
        return f32(wide);
    }
    if (type == BF16) word <<= 16; /* a float without its lower half */
    if (type == F16) {
        /* Sign, 5 bits of exponent, 10 of fraction. A float's exponent is greater by 112, that of
         * infinity and NaN by 224. Exponent 0: a multiple of 2^-24. */
        const uint32_t sign = word >> 15, rest = word & 0x7fff;
        if (rest < 0x400) return f32((sign ? -0x1p-24 : 0x1p-24) * rest);
        word = sign << 31 | (rest + ((rest < 0x7c00 ? 112u : 224u) << 10)) << 13;
    }
    memcpy(&x, &word, sizeof x);
    return f32(x);
}

static void shape_text(char *text, size_t size, const Tensor *t) {
    Text shape = {.data = text, .capacity = size, .fixed = 1};
    for (size_t i = 0; i < t->n_dims; i++) text_add(&shape, "%s%zu", i ? " x " : "", t->shape[i]);
}

/* Fills a tensor with what the file has under its name. */
static int read_tensor(Checkpoint *file, const Tensor *t) {
    Entry *e = need_tensor(file, t->name, t->n_dims);
    char shape[80];
    if (!e) return 0;
    shape_text(shape, sizeof shape, t);
    for (size_t i = 0; i < t->n_dims; i++)
        if (e->dims[i] != t->shape[i])
            return refuse(file, "tensor %s is %.60s, the others ask for %s", t->name, e->shape,
                          shape);
    const size_t type = choice_index(types, e->dtype), width = type > U32 ? 0 : type_bytes[type];
    if (width == 0 || (type == U32) != (t->words != NULL))
        return refuse(file, "tensor %s has the dtype %.20s, must be %s", t->name, e->dtype,
                      t->words ? "U32" : "F32, F16, BF16 or F64");
    if (e->end - e->begin != t->size * width)
        return refuse(file, "tensor %s: its data_offsets do not fit its shape", t->name);

    e->used = 1;
    for (size_t i = 0; i < t->size; i++) {
        const uint64_t bits = read_number(file->data.data + e->begin + i * width, width);
        if (t->words) {
            t->words[i] = (uint32_t)bits;
            if (t->limit && bits >= t->limit)
                return refuse(file, "tensor %s is damaged at number %zu", t->name, i);
        } else {
            t->data[i] = decode(type, bits);
            if (!(fabs(t->data[i]) < HUGE_VAL))
                return refuse(file, "tensor %s holds NaN or, as a float, infinity at number %zu",
                              t->name, i);
        }
    }
    return 1;
}

/* What has a parameter's name, but no place in our model, shows that the file has another one.
 * Buffers and a training's state are passed over; all else, too, but with a remark. */
static int judge_unused(Checkpoint *file) {
    for (const Entry *e = file->tensors; e < file->tensors + file->n_tensors; e++) {
        const char *dot = strrchr(e->name, '.'), *last = dot ? dot + 1 : e->name;
        const int state = strncmp(e->name, "state.", 6) == 0;
        if (e->used || state || choice_index("mask|IGNORE", last) < 2) continue;
        if (*last && strchr("Wwb", *last) && (last[1] == '_' || !last[1]))
            return refuse(file, "tensor %.100s has no place in the model of the rest", e->name);
        print_to(file->remarks[1], sizeof file->remarks[1],
                 "tensor %.100s is passed over; no model of ours has it", e->name);
    }
    return 1;
}

/* What the metadata says about the configuration must be what the shapes say, all->config. With
 * `recipe`, the other settings are read too, and none may be missing. */
static int read_settings(Checkpoint *file, Settings *all, int recipe) {
    for (const Setting *s = settings; s < settings + n_settings; s++) {
        const char *note = find_note(file->notes, file->n_notes, s->name);
        char value[40];
        setting_print(s, all, value, sizeof value);
        if (note && s->offset < sizeof(Config) && strcmp(note, value) != 0)
            return refuse(file, "the metadata says %s %.40s, the tensors say %s", s->name, note,
                          value);
        if (!recipe) continue;
        if (!note) return refuse(file, "not a training's state: the metadata lacks %s", s->name);
        if (!setting_parse(s, all, note, &file->error)) return 0;
    }
    return 1;
}

static int read_model(Checkpoint *file, Model *model, size_t normalization) {
    Config config;
    if (!read_config(file, &config) ||
        !read_normalization(file, normalization, &config.normalization) ||
        !model_create(model, &config, &file->error))
        return 0;
    for (size_t i = 0; i < model->n_tensors; i++)
        if (!read_tensor(file, &model->tensors[i])) return 0;
    Settings all = {.config = config};
    if (!judge_unused(file) || !read_settings(file, &all, 0)) return 0;
    memcpy(model->remarks, file->remarks, sizeof model->remarks);
    memcpy(model->notes, file->notes, sizeof file->notes);
    model->n_notes = file->n_notes;
    return 1;
}

/* -- the state of a training under way -- */

enum { COUNTERS = 6 };

/* All that trainer_create does not make again from the recipe, as further tensors behind the
 * model's: a file that has them, too, is also an ordinary checkpoint of the current weights. This
 * list serves for writing and for reading. */
static Tensor *state_tensors(Trainer *t, uint32_t *counters) {
    const size_t n = t->model.n_params, n_lists = t->recipe.trainset_size;
    const size_t V = t->model.config.max_num, n_hard = t->hard_room * t->model.config.seq_len;
    const Tensor all[STATE_TENSORS] = {
        {.name = "state.m", .size = n, .data = t->m.params},
        {.name = "state.v", .size = n, .data = t->v.params},
        {.name = "state.best", .size = n, .data = t->best.params},
        {.name = "state.data_mt", .size = 624, .words = t->data.state},
        {.name = "state.order_mt", .size = 624, .words = t->order_mt.state},
        {.name = "state.words", .size = COUNTERS, .words = counters},
        {.name = "state.order", .size = n_lists, .words = t->order, .limit = n_lists},
        {.name = "state.hard", .size = n_hard, .words = t->hard, .limit = V},
    };
    Tensor *tensors = t->model.tensors + t->model.n_tensors;
    memcpy(tensors, all, sizeof all);
    for (size_t i = 0; i < STATE_TENSORS; i++) {
        tensors[i].n_dims = 1;
        tensors[i].shape[0] = all[i].size;
    }
    return tensors;
}

int trainer_save(Trainer *t, const char *path, Error *error) {
    uint32_t counters[COUNTERS] = {(uint32_t)t->step,       (uint32_t)t->validated,
                                   (uint32_t)t->best_right, t->data.next,
                                   t->order_mt.next,        (uint32_t)t->n_hard};
    if (!is_finite(&t->model) || !is_finite(&t->m) || !is_finite(&t->v))
        return fail(error, "the weights are no longer finite after step %zu; try a smaller --lr",
                    t->step);
    model_describe(&t->model, &t->recipe);
    state_tensors(t, counters);
    Model all = t->model;
    all.n_tensors += STATE_TENSORS;
    return model_save(&all, path, error);
}

/* The training that goes on from a file, whose model is read already. */
static int read_state(Checkpoint *file, const Model *model, Trainer *t) {
    Settings all = {.config = model->config};
    const Recipe *r = &t->recipe;
    const size_t T = model->config.seq_len;
    uint32_t c[COUNTERS];
    uint64_t sum = 0;
    if (!find_tensor(file, "state.m"))
        return refuse(file, "not a training's state; --init starts anew from its weights");
    if (!read_settings(file, &all, 1) ||
        !trainer_create(t, &all.recipe, NULL, model, &file->error))
        return 0;
    const Tensor *tensors = state_tensors(t, c);
    for (size_t i = 0; i < STATE_TENSORS; i++)
        if (!read_tensor(file, &tensors[i])) return 0;
    if (c[0] > t->total_steps || c[1] > 1 || c[2] > r->valset_size || c[3] > 624 || c[4] > 624 ||
        c[5] > t->hard_room)
        return refuse(file, "tensor state.words is damaged");
    t->step = c[0];
    t->validated = (int)c[1];
    t->best_right = c[2];
    t->data.next = c[3];
    t->order_mt.next = c[4];
    t->n_hard = c[5];
    for (size_t i = 0; i < t->hard_room; i++) t->hard_medians[i] = median_of(t->hard + i * T, T);
    for (size_t i = 0; i < t->v.n_params; i++)
        if (t->v.params[i] < 0)
            return refuse(file, "tensor state.v is damaged: a square is negative");
    for (size_t i = 0; i < r->trainset_size; i++) sum += t->order[i];
    if (2 * sum != (uint64_t)r->trainset_size * (r->trainset_size - 1))
        return refuse(file, "tensor state.order is damaged: a list stands in it twice");
    return 1;
}

/* A file as a model and, if t is not NULL, as a training that goes on. */
static int load(const char *path, size_t normalization, Model *model, Trainer *t, Error *error) {
    Checkpoint file;
    memset(&file, 0, sizeof file);
    memset(model, 0, sizeof *model);
    FILE *f = fopen(path, "rb");
    if (!f)
        return fail(error, "%.400s: %s; `median train` makes one, --model FILE names another", path,
                    strerror(errno));
    const int good = read_file(&file, f) && read_model(&file, model, normalization) &&
                     (!t || read_state(&file, model, t));
    if (!good) {
        fail(error, "%.400s: %s", path, file.error.text);
        model_free(model);
    }
    fclose(f);
    text_free(&file.header);
    text_free(&file.data);
    free(file.tensors);
    return good;
}

int model_load(Model *model, const char *path, size_t normalization, Error *error) {
    return load(path, normalization, model, NULL, error);
}

int trainer_resume(Trainer *t, const char *path, Error *error) {
    Model model;
    memset(t, 0, sizeof *t);
    const int good = load(path, NORMALIZATION_FROM_FILE, &model, t, error);
    if (!good) trainer_free(t);
    model_free(&model);
    return good;
}

/* ---- 8. Reports ------------------------------------------------------------------------------ */

/* Everything on stdout passes through a Report, so that a command says what it found once: `say`
 * and `prose` for words and pictures, which machines don't want, tables for numbers, which all
 * want. */
typedef enum {
    REPORT_TEXT, /* for people */
    REPORT_CSV,  /* one table: the names of its columns, then its rows */
    REPORT_LONG  /* several tables: a line `table,row,column,value` for each cell */
} ReportKind;

enum { MAX_COLUMNS = 16 };

typedef struct {
    size_t width, least; /* of all cells; of the longest word in one */
    int left;            /* it is text */
} Column;

typedef struct {
    ReportKind kind;
    Text text;           /* what has not been written yet */
    FILE *out;           /* NULL: all stays in text */
    size_t width;        /* of the terminal, in characters */
    int color, overflow; /* overflow: a number that was told is infinite or NaN */

    /* The table under way. */
    const char *table, *columns; /* its name; its columns', with commas */
    size_t row, n_columns, gap;
    size_t drawn;                /* the column whose numbers are drawn, too; or n_columns */
    double bar_limit;            /* the number that fills a bar; 0: the greatest in the table */
    double negative, positive;   /* the ends of a bar */
    Text cells; /* for people: the names, then row after row, with a 0 behind each cell */
    Column column[MAX_COLUMNS + 1];
} Report;

/* Is this stream a person's screen? */
static int is_terminal(FILE *stream) {
#ifdef HAVE_ISATTY
    return (stream == stdin && isatty(0)) || (stream == stdout && isatty(1)) ||
           (stream == stderr && isatty(2));
#else
    (void)stream;
    return 0;
#endif
}

/* The columns of the terminal, as it says or COLUMNS says; 80 where stdout is no terminal. */
static size_t terminal_width(FILE *out) {
    const char *columns = getenv("COLUMNS");
    double width = 0;
    if (!is_terminal(out)) return 80;
#ifdef TIOCGWINSZ
    struct winsize size = {0};
    if (ioctl(1, TIOCGWINSZ, &size) == 0) width = size.ws_col;
#endif
    if (width == 0 && columns) width = parse_double(columns, &columns);
    return width >= 40 && width <= 1000 ? (size_t)width : 80;
}

/* Options come first, then https://no-color.org. */
static int wants_color(FILE *out, int color, int no_color) {
    const char *refused = getenv("NO_COLOR"), *terminal = getenv("TERM");
    const int able = is_terminal(out) && !(terminal && strcmp(terminal, "dumb") == 0);
    return !no_color && (color || (able && !(refused && *refused)));
}

/* What holds a number that overflowed is not told. */
static void report_flush(Report *r) {
    if (r->overflow) r->text.size = 0;
    if (!r->out || r->text.size == 0) return;
    fwrite(r->text.data, 1, r->text.size, r->out);
    fflush(r->out);
    r->text.size = 0;
}

/* Is there any use in going on? */
static int takes_more(const Report *r) { return !r->overflow && !(r->out && ferror(r->out)); }

static void flush_if_long(Report *r) {
    if (r->text.size > 60000) report_flush(r);
}

/* For people: the text as it is. */
TENSOR_PRINTF(2, 3) static void say(Report *r, const char *format, ...) {
    va_list args;
    if (r->kind != REPORT_TEXT) return;
    va_start(args, format);
    text_add_args(&r->text, format, args);
    va_end(args);
    flush_if_long(r);
}

/* For all: ends a line, without spaces at its end. */
static void end_line(Report *r) {
    while (r->text.size > 0 && r->text.data[r->text.size - 1] == ' ') r->text.size--;
    text_add(&r->text, "\n");
    flush_if_long(r);
}

/* How many characters of text go on a line of `width`: whole words, at least one. */
static size_t line_length(const char *text, size_t width) {
    size_t n = 0, end = 0;
    do {
        n = end;
        end += strspn(text + end, " ");
        end += strcspn(text + end, " \n");
    } while (end > n && (end <= width || n == 0));
    return n;
}

/* For people: prose, wrapped. A line's own indentation holds for what is wrapped of it. */
TENSOR_PRINTF(2, 3) static void prose(Report *r, const char *format, ...) {
    Text text = {0};
    va_list args;
    if (r->kind != REPORT_TEXT) return;
    va_start(args, format);
    text_add_args(&text, format, args);
    va_end(args);
    r->text.failed |= text.failed;
    for (const char *at = text.data ? text.data : ""; *at; at += *at == '\n') {
        const size_t indent = smaller(strspn(at, " "), r->width / 2);
        at += indent;
        do {
            const size_t n = line_length(at, r->width - indent);
            say(r, "%*s%.*s", (int)indent, "", (int)n, at);
            end_line(r);
            at += n + strspn(at + n, " ");
        } while (*at && *at != '\n');
    }
    text_free(&text);
}

static void heading(Report *r, const char *title) {
    say(r, "\n%s\n", title);
    for (size_t i = 0; title[i]; i++) say(r, "=");
    say(r, "\n\n");
}

/* x, which is told. Weights can be so great that it is infinite or NaN: then the command failed. */
static double checked(Report *r, double x) {
    if (!(fabs(x) < HUGE_VAL)) r->overflow = 1;
    return x;
}

/* n numbers as a line for machines. */
static void line_of_numbers(Report *r, const char *between, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        text_add(&r->text, "%s%.9g", i ? between : "", checked(r, x[i]));
    end_line(r);
}

/* -- tables -- */

/* columns: their names, with commas; people read '_' as a space. */
static void table_begin(Report *r, const char *name, const char *columns) {
    r->table = name;
    r->columns = columns;
    r->row = 0;
    r->n_columns = 1;
    r->bar_limit = 0;
    r->cells.size = 0;
    memset(r->column, 0, sizeof r->column);
    if (r->kind == REPORT_CSV) text_add(&r->text, "%s\n", columns);
    for (; *columns; columns++) {
        const char c = *columns == '_' ? ' ' : *columns;
        r->n_columns += c == ',';
        text_bytes(&r->cells, c == ',' ? "" : &c, 1);
    }
    text_bytes(&r->cells, "", 1);
    r->drawn = r->n_columns;
}

/* A row: each conversion of the format, one of %s, %u, %zu, %f, is a cell. A number followed by
 * %% is a share: people get it in percent, machines as it is. A number followed by | is drawn as
 * well. Machines get numbers with nine digits. */
TENSOR_PRINTF(2, 3) static void table_row(Report *r, const char *format, ...) {
    const int people = r->kind == REPORT_TEXT;
    Text *to = people ? &r->cells : &r->text;
    const char *name = r->columns;
    Conversion c;
    va_list args;
    va_start(args, format);
    for (size_t i = 0; i < r->n_columns; i++) {
        format = read_conversion(&c, strchr(format, '%') + 1, &args);
        const int share = strncmp(format, "%%", 2) == 0;
        const int length = (int)strcspn(name, ",");
        if (share) format += 2;
        if (*format == '|') r->drawn = i;
        r->column[i].left = c.kind == 's';
        if (r->kind == REPORT_CSV && i > 0) text_add(to, ",");
        if (r->kind == REPORT_LONG) text_add(to, "%s,%zu,%.*s,", r->table, r->row, length, name);
        name += length + 1;
        if (c.kind == 'f') {
            const double x = checked(r, va_arg(args, double));
            const char *form = c.plus ? "%+.*f" : "%.*f";
            if (people) text_add(to, form, c.precision, share ? 100 * x : x);
            else text_add(to, "%.9g", x);
        } else add_conversion(to, &c, &args);
        if (people && share) text_bytes(to, " %", 2);
        if (people) text_bytes(to, "", 1); /* the 0 that ends a cell */
        if (r->kind == REPORT_LONG) end_line(r);
    }
    va_end(args);
    if (r->kind == REPORT_CSV) end_line(r);
    r->row++;
}

/* What holds the columns' cells and the longest words of their names; the ends of bars. */
static void measure_columns(Report *r) {
    const char *cell = r->cells.data, *end;
    r->negative = 0;
    r->positive = r->bar_limit;
    for (size_t i = 0; i < (r->row + 1) * r->n_columns; i++, cell += strlen(cell) + 1) {
        Column *c = &r->column[i % r->n_columns];
        size_t word = 0;
        for (const char *at = cell; *at; at += word + strspn(at + word, " ")) {
            word = strcspn(at, " ");
            if (word > c->least) c->least = word;
        }
        word = i < r->n_columns ? c->least : strlen(cell);
        if (word > c->width) c->width = word;
        const double x = i % r->n_columns == r->drawn ? parse_double(cell, &end) : 0;
        if (r->bar_limit == 0) r->positive = max_double(r->positive, x);
        if (x < 0) r->negative = r->bar_limit > 0 ? r->bar_limit : max_double(r->negative, -x);
    }
}

enum {
    GOOD_BAR = 20,
    LEAST_BAR = 8,
    MOST_BAR = 50
};

/* Where a line needs it, narrows the gaps, then columns of text, one character off the widest
 * after the other, down to their longest words. Returns the room for bars. */
static size_t fit_columns(Report *r, int bars) {
    size_t used = 0;
    for (size_t i = 0; i < r->n_columns; i++) used += r->column[i].width;
    const size_t wanted = used + 2 * (r->n_columns - 1) + (bars ? GOOD_BAR : 0);
    r->gap = wanted <= r->width ? 2 : 1;
    used += r->gap * r->n_columns;
    while (used > r->width + r->gap) {
        Column *widest = NULL;
        for (Column *c = r->column; c < r->column + r->n_columns; c++)
            if (c->left && c->width > c->least && (!widest || c->width > widest->width)) widest = c;
        if (!widest) break;
        widest->width--;
        used--;
    }
    return bars && used + LEAST_BAR <= r->width ? smaller(r->width - used, MOST_BAR) : 0;
}

/* A row of cells, each wrapped to its column's width. Columns that a line does not hold follow
 * in the next. */
static void put_row(Report *r, const char **cell, size_t n_cells) {
    for (size_t from = 0, to = 0; from < n_cells; from = to) {
        const size_t indent = from > 0 ? 4 : 0;
        size_t used = indent;
        for (; to < n_cells && (to == from || used + r->column[to].width <= r->width); to++)
            used += r->column[to].width + r->gap;
        int more;
        do {
            more = 0;
            say(r, "%*s", (int)indent, "");
            for (size_t i = from; i < to; i++) {
                const Column *c = &r->column[i];
                const size_t n = line_length(cell[i], c->width);
                say(r, c->left ? "%-*.*s" : "%*.*s", (int)c->width, (int)n, cell[i]);
                say(r, "%*s", (int)r->gap, "");
                cell[i] += n + strspn(cell[i] + n, " ");
                more |= *cell[i] != 0;
            }
            end_line(r);
        } while (more);
    }
}

/* x as a bar of up to `width` characters. Negative ones go left from a line that marks 0. */
static void make_bar(Text *bar, const Report *r, double x, size_t width) {
    const double unit = (r->negative + r->positive) / (double)(width - 1);
    const size_t zero = r->negative > 0 ? (size_t)(r->negative / unit + 0.5) : 0;
    const size_t room = x < 0 ? zero : width - 1 - zero;
    const size_t n = unit > 0 ? (size_t)min_double(fabs(x) / unit + 0.5, (double)room) : 0;
    text_fill(bar, ' ', x < 0 ? zero - n : zero);
    if (x < 0) text_fill(bar, '-', n);
    if (r->negative > 0) text_fill(bar, '|', 1);
    if (x > 0) text_fill(bar, r->negative > 0 ? '+' : '#', n);
}

/* For people: the table as it was collected. */
static void table_end(Report *r) {
    const size_t n = r->n_columns;
    const char *cell[MAX_COLUMNS + 1], *at = r->cells.data, *end;
    r->text.failed |= r->cells.failed;
    if (r->kind != REPORT_TEXT || r->cells.failed || r->row == 0) return;
    measure_columns(r);
    const size_t room = fit_columns(r, r->drawn < n);
    r->column[n] = (Column){.width = room, .left = 1};
    for (size_t row = 0; row <= r->row; row++) {
        char bar[80] = "";
        Text text = {.data = bar, .capacity = sizeof bar, .fixed = 1};
        for (size_t i = 0; i < n; i++, at += strlen(at) + 1) cell[i] = at;
        if (room > 0 && row > 0) make_bar(&text, r, parse_double(cell[r->drawn], &end), room);
        cell[n] = bar;
        put_row(r, cell, n + (room > 0));
    }
}

/* -- pictures -- */

/* Shades from the most negative value to the greatest; the middle one is 0. */
enum { SHADES = 7 };
static const char ramp[] = "W<=~-'`.:;+*#%@";
static const int ramp_colors[] = {17,  20,  27,  33,  75,  117, 153, 254,
                                  224, 217, 210, 203, 196, 160, 88};

/* A value's place in the ramp on the scale -limit .. limit. */
static size_t shade_index(double value, double limit) {
    const double part = limit > 0 ? value / limit * SHADES : 0;
    if (part >= SHADES) return 2 * SHADES;
    return part > -SHADES ? (size_t)floor(part + SHADES + 0.5) : 0;
}

/* `width` characters of one shade, behind a number if there is one. */
static void paint(Report *r, size_t index, const char *number, size_t width) {
    const int ink = index < 3 || index + 3 > 2 * SHADES ? 231 : 16; /* white or black */
    if (r->color) say(r, "\033[48;5;%d;38;5;%dm", ramp_colors[index], ink);
    say(r, "%s", number);
    for (size_t i = 0; i < width; i++) say(r, "%c", r->color ? ' ' : ramp[index]);
    if (r->color) say(r, "\033[0m");
}

/* A table as a picture. */
typedef struct {
    const float *values; /* (rows, cols) */
    size_t rows, cols;
    double limit; /* of the scale; or the greatest |value| in the picture, if that is more */
    const uint32_t *row_names, *col_names; /* NULL: 0, 1, 2, ... */
    const char *row_title, *col_title;
    int causal; /* cells to the right of the diagonal that ends in the last one were not computed */
} Map;

enum {
    MAP_LINES = 25,
    MAP_NUMBERS = 13,
    NUMBER_WIDTH = 7,
    MARGIN = 8
};

/* How a table is drawn: `width` characters, most of them a number if there are so many, are the
 * mean of down x right cells. */
typedef struct {
    size_t down, right, width;
    double limit;
} Grid;

/* The mean of those cells that were computed; *n is how many. */
static double block_mean(const Map *map, const Grid *g, size_t row, size_t col, size_t *n) {
    double sum = 0;
    *n = 0;
    for (size_t i = row; i < smaller(row + g->down, map->rows); i++)
        for (size_t j = col; j < smaller(col + g->right, map->cols); j++) {
            if (map->causal && j + map->rows > i + map->cols) continue;
            sum += map->values[i * map->cols + j];
            (*n)++;
        }
    return *n > 0 ? sum / (double)*n : 0;
}

/* With numbers if the table is small; else two characters a cell, as wide as a line is high;
 * else one for two rows, or for more. */
static Grid fit_map(const Report *r, const Map *map) {
    Grid g = {.down = 1, .right = 1, .width = NUMBER_WIDTH + 1, .limit = map->limit};
    const size_t room = r->width - MARGIN;
    const int low = map->rows <= MAP_LINES;
    size_t n;
    double greatest = 0;
    for (size_t i = 0; i < map->rows * map->cols; i++)
        greatest = max_double(greatest, fabs(map->values[i]));
    if (!low || map->cols > MAP_NUMBERS || map->cols * g.width > room || greatest >= 1000)
        g.width = 2;
    if (g.width == 2 && (!low || 2 * map->cols > room)) {
        g.width = 1;
        g.down = 2;
        while ((map->cols - 1) / g.right >= room || (map->rows - 1) / g.down >= MAP_LINES) {
            g.right++;
            g.down += 2;
        }
    }
    for (size_t i = 0; i < map->rows; i += g.down)
        for (size_t j = 0; j < map->cols; j += g.right)
            g.limit = max_double(g.limit, fabs(block_mean(map, &g, i, j, &n)));
    return g;
}

/* The names of columns, `right` of which take `width` characters, where there is room. */
static void label_columns(Report *r, const uint32_t *names, size_t cols, size_t right,
                          size_t width) {
    const size_t shown = (cols + right - 1) / right, every = width < 5 ? 10 / width : 1;
    for (size_t i = 0; i < shown && (i == 0 || (shown - i) * width > 4); i += every)
        say(r, "%-*zu", (int)(every * width), names ? (size_t)names[i * right] : i * right);
    end_line(r);
}

static void draw_map(Report *r, const Map *map) {
    int signs = 0;
    if (r->kind != REPORT_TEXT) return;
    const Grid g = fit_map(r, map);
    const int numbers = g.width > NUMBER_WIDTH, decimals = g.limit < 10 ? 3 : 1;
    say(r, "%*s%s\n", MARGIN, "", map->col_title);
    say(r, "%*s%*s", MARGIN - 1, map->row_title, numbers ? 3 : 1, "");
    label_columns(r, map->col_names, map->cols, g.right, g.width);
    for (size_t i = 0; i < map->rows; i += g.down) {
        say(r, "%*zu ", MARGIN - 1, map->row_names ? (size_t)map->row_names[i] : i);
        for (size_t j = 0; j < map->cols; j += g.right) {
            char number[24] = "";
            size_t n;
            const double value = checked(r, block_mean(map, &g, i, j, &n));
            signs |= value < 0;
            if (n == 0) break;
            if (numbers) print_to(number, sizeof number, "%*.*f", NUMBER_WIDTH, decimals, value);
            paint(r, shade_index(value, g.limit), number, numbers ? 1 : g.width);
        }
        end_line(r);
    }
    if (signs) say(r, "%.3g ", -g.limit);
    else say(r, "0 ");
    for (size_t i = signs ? 0 : SHADES; i <= 2 * SHADES; i++) paint(r, i, "", 1);
    say(r, " %.3g%s\n", g.limit, signs && !r->color ? " . = 0" : "");
    if (g.down > 1) prose(r, "Each character is the mean of %zu x %zu cells.", g.down, g.right);
}

/* A curve over x = 0 .. n - 1, or the means of neighbours where there are more than fit. */
static void draw_curve(Report *r, const float *y, size_t n, const char *x_title) {
    enum {
        HALF = 4,
        Y_AXIS = 12
    };
    if (r->kind != REPORT_TEXT) return;
    const Map map = {.values = y, .rows = 1, .cols = n};
    const Grid grid = {.down = 1, .right = 1 + (n - 1) / (r->width - Y_AXIS)};
    double limit = 0;
    size_t any;
    for (size_t x = 0; x < n; x++) limit = max_double(limit, fabs(y[x]));
    for (int line = HALF; line >= -HALF; line--) {
        say(r, "%*.2f |", Y_AXIS - 2, limit * line / HALF);
        for (size_t x = 0; x < n; x += grid.right) {
            const double value = limit > 0 ? block_mean(&map, &grid, 0, x, &any) / limit : 0.0;
            const char *empty = line == 0 ? "." : " ";
            say(r, "%s", floor(value * HALF + 0.5) == line ? "*" : empty);
        }
        end_line(r);
    }
    say(r, "%*s+", Y_AXIS - 1, "");
    for (size_t i = 0; i * grid.right < n; i++) say(r, i % 10 == 0 ? "|" : "-");
    say(r, "\n%*s", Y_AXIS, "");
    label_columns(r, NULL, n, grid.right, 1);
    say(r, "%*s%s\n", Y_AXIS, "", x_title);
}

/* -- a command at work -- */

#ifndef MEDIAN_MODEL
#define MEDIAN_MODEL "median.safetensors"
#endif

/* The checkpoint that comes with the program: here, or else where `make install` put it. */
static const char *shipped_model(void) {
#ifdef MEDIAN_MODEL_INSTALLED
    FILE *file = fopen(MEDIAN_MODEL, "rb");
    if (!file) return MEDIAN_MODEL_INSTALLED;
    fclose(file);
#endif
    return MEDIAN_MODEL;
}

enum {
    LIST_TEXT = 7 * MAX_SEQ_LEN,
    LINE = 16384,
    MAX_TARGETS = 256, /* all layers, and what --head and --layer can name */
    MAX_WORDS = 2 * MAX_SEQ_LEN + 1
};

/* A command at work: its options, and what it looks at: a model, the lists of a seed, and one list
 * (for patching, a second one) in particular. */
typedef struct {
    Options opt;
    unsigned char given[N_OPTIONS]; /* which options the command line has */
    int help;
    size_t n_words;
    const char *words[MAX_WORDS]; /* its arguments that are no options */
    Error *error;
    Streams streams;
    const char *program; /* as it was called */
    Model model;
    size_t V, T; /* the model's max_num and seq_len */
    Run run;
    Run second; /* for interventions, made when one is needed */
    size_t n, seed;
    uint32_t *lists, *medians; /* the first n lists of the seed */
    uint32_t list[2 * MAX_SEQ_LEN], median[2];
    char text[LIST_TEXT]; /* what list_text made last */
    char line[LINE];      /* of the input */
    Target targets[MAX_TARGETS]; /* of an ablation */
    int on_tour;          /* `list` is there already */
} Session;

typedef struct {
    const char *name;
    int bit; /* among an option's commands */
    int (*run)(Session *, Report *);
    size_t size, seed; /* defaults of the options */
    size_t batch;      /* lists that session.run takes at once, at least 1 */
    size_t max_lists;  /* that session.lists has at most, if not 0 */
    RunKind kind;
    const char *argument, *argument_is; /* what stands behind the options; NULL: nothing may */
    const char *summary;
    const char *example; /* what to type behind `median` */
} Command;

/* What is to be known of command_NAME. */
#define COMMAND(NAME, BIT, ...)                                 \
    static const Command about_##NAME = {.name = #NAME,         \
                                         .bit = BIT,            \
                                         .run = command_##NAME, \
                                         __VA_ARGS__}

/* The caller asked for something impossible; returns 0. */
#define usage(error, ...) ((error)->usage = 1, fail(error, __VA_ARGS__))

/* Something worth knowing that is no error. */
#define remark(s, format, ...) \
    print_file((s)->streams.progress, "median: " format "\n", __VA_ARGS__)

/* Was the option of this name given? */
static int is_given(const Session *s, const char *name) {
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (strcmp(settings[i].name, name) == 0) return s->given[i];
    return 0;
}

/* An option given that says what is trained, not how; NULL if there is none. */
static const char *given_setting(const Session *s) {
    for (size_t i = 0; i < n_settings + 2; i++)
        if (s->given[i]) return settings[i].name;
    return NULL;
}

/* s->model from a file, and what is to be said of it. */
static int load_model(Session *s, const char *path) {
    const size_t normalization = is_given(s, "normalization") ? s->opt.settings.config.normalization
                                                              : (size_t)NORMALIZATION_FROM_FILE;
    if (!model_load(&s->model, path, normalization, s->error)) return 0;
    for (size_t i = 0; i < 2; i++)
        if (*s->model.remarks[i]) remark(s, "%.300s: %s", path, s->model.remarks[i]);
    return 1;
}

/* -- lists that are typed -- */

/* The whole number at text, `length` characters long; 0 if it is none that the model knows. */
static int parse_entry(Session *s, uint32_t *entry, const char *text, size_t length) {
    const size_t sign = *text == '-';
    const int shown = (int)smaller(length, 60);
    size_t value;
    if (length == sign || sign + read_digits(text + sign, s->V, &value) != length)
        return usage(s->error, "'%.*s' is not a whole number", shown, text);
    if (value >= s->V || (sign && value > 0))
        return usage(s->error, "%.*s is not in 0..%zu, the numbers that this model knows", shown,
                     text, s->V - 1);
    *entry = (uint32_t)value;
    return 1;
}

/* The n numbers of a text, parted by spaces or commas. What stands behind a '|', as `median data`
 * prints it, is passed over, and so is a byte-order mark. */
static int parse_lists(Session *s, uint32_t *list, size_t n, const char *text) {
    static const char between[] = " \t\r\n,";
    size_t found = 0;
    text += strspn(text, between);
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3;
    for (text += strspn(text, between); *text && *text != '|'; text += strspn(text, between)) {
        const size_t length = strcspn(text, " \t\r\n,|");
        if (found < n && !parse_entry(s, &list[found], text, length)) return 0;
        found++;
        text += length;
    }
    const char *much = found < n ? "few" : "many";
    const char *two = n > s->T ? "two lists that make " : "";
    return found == n || usage(s->error, "too %s numbers: %zu are given, %s%zu are expected", much,
                               found, two, n);
}

/* s->list: the one among the arguments, where n_lists (1 or 2) are expected; without arguments, the
 * first of the seed. */
static int given_list(Session *s, size_t seed, size_t n_lists) {
    Mt19937 mt;
    Text line = {0};
    int good = 1;
    if (s->on_tour) return 1;
    mt_seed(&mt, (uint32_t)seed);
    make_lists(&mt, s->list, s->median, 1, s->V, s->T);
    for (size_t i = 0; i < s->n_words; i++) text_add(&line, "%s ", s->words[i]);
    if (line.failed) good = fail(s->error, "out of memory");
    else if (line.data) good = parse_lists(s, s->list, n_lists * s->T, line.data);
    text_free(&line);
    s->median[0] = median_of(s->list, s->T);
    return good;
}

static const char *list_text(Session *s, const uint32_t *list) {
    Text text = {.data = s->text, .capacity = LIST_TEXT, .fixed = 1};
    for (size_t i = 0; i < s->T; i++) text_add(&text, "%s%u", i ? " " : "", (unsigned)list[i]);
    return s->text;
}

/* -- before and after -- */

/* What a command looks at, if anything: the model, which may be there already, and the lists of the
 * seed. */
static int prepare(Session *s, const Command *command) {
    const int looks = (command->bit & ON_MODEL) != 0;
    const Config *c = looks ? &s->model.config : &s->opt.settings.config;
    Mt19937 mt;
    if (looks && !s->model.params && !load_model(s, s->opt.model)) return 0;
    s->V = c->max_num;
    s->T = c->seq_len;
    s->seed = s->opt.settings.recipe.seed;
    s->n = s->opt.size;
    if (command->max_lists) s->n = smaller(s->n, command->max_lists);
    if (!looks) return 1;
    const size_t batch = command->batch ? smaller(s->n, command->batch) : 1;
    if (!run_create(&s->run, c, batch, command->kind, s->error)) return 0;
    s->lists = (uint32_t *)allocate((double)s->n * (double)(s->T + 1) * sizeof(uint32_t),
                                    "that many lists", s->error);
    if (!s->lists) return 0;
    s->medians = s->lists + s->n * s->T;
    mt_seed(&mt, (uint32_t)s->seed);
    make_lists(&mt, s->lists, s->medians, s->n, s->V, s->T);
    return 1;
}

static int run_command(Session *s, const Command *command, Report *r) {
    int done = prepare(s, command) && command->run(s, r);
    if (done && (command->bit & ON_MODEL) && r->overflow)
        done = fail(s->error, "%.400s: its weights are so great that numbers overflow",
                    s->opt.model);
    run_free(&s->run);
    run_free(&s->second);
    free(s->lists);
    s->lists = NULL;
    s->on_tour = 0;
    return done;
}

/* -- data -- */

/* The first n lists of a seed and their medians. */
static void print_lists(Session *s, Report *r, size_t n, size_t seed) {
    Mt19937 mt;
    mt_seed(&mt, (uint32_t)seed);
    for (size_t i = 0; i < n && takes_more(r); i++) {
        make_lists(&mt, s->list, s->median, 1, s->V, s->T);
        say(r, "%s | %u\n", list_text(s, s->list), (unsigned)s->median[0]);
    }
}

static int command_data(Session *s, Report *r) {
    print_lists(s, r, s->n, s->seed);
    return 1;
}

COMMAND(data, DATA, .size = 10, .seed = 23, .summary = "prints lists and their medians",
        .example = "data --size 3 --max-num 100");
/* ---- 9. Training at a terminal --------------------------------------------------------------- */

/* Wall-clock seconds where C offers them, else processor time. */
static double seconds(void) {
#ifdef TIME_UTC
    struct timespec now = {0, 0};
    timespec_get(&now, TIME_UTC);
    return now.tv_sec + 1e-9 * now.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

/* What a person sees of long work: on a terminal one line that changes, else a line now and then.
 * All but the stream and the steps is 0 at first. */
typedef struct {
    FILE *stream; /* NULL: nothing is shown */
    int terminal;
    double steps;               /* that the whole work has; 0: it isn't counted in steps */
    double start, shown, first; /* first: the share that was done at the start */
} Progress;

/* To be called after every step. Shows something when it is time to. */
TENSOR_PRINTF(3, 4) static void show_progress(Progress *p, double done, const char *format, ...) {
    const double now = seconds();
    const int n = (int)(8 * done);
    char text[300];
    Text line = {.data = text, .capacity = sizeof text, .fixed = 1};
    va_list args;
    if (p->start == 0) {
        p->terminal = is_terminal(p->stream);
        p->start = p->shown = now;
        p->first = done;
    }
    if (!p->stream || (done < 1 && now - p->shown < (p->terminal ? 0.1 : 5.0))) return;
    p->shown = now;
    const double rate = (done - p->first) / max_double(now - p->start, 1e-9);
    if (p->terminal) text_add(&line, "[%.*s%.*s] ", n, "########", 8 - n, "........");
    va_start(args, format);
    text_add_args(&line, format, args);
    va_end(args);
    if (p->steps > 0) text_add(&line, "  %.0f steps/s", rate * p->steps);
    text_add(&line, "  %.0f s left", rate > 0 ? (1 - done) / rate : 0.0);
    const int width = (int)(p->terminal ? terminal_width(p->stream) - 1 : line.size);
    print_file(p->stream, p->terminal ? "\r%-*.*s" : "%-*.*s\n", width, width, text);
    if (p->terminal && done >= 1) fputs("\n", p->stream);
    fflush(p->stream);
}

static volatile sig_atomic_t interrupted;

#ifdef SIGINT
static void note_interrupt(int number) {
    (void)number;
    interrupted = 1;
}
#endif

static void catch_interrupts(int on) {
    if (on) interrupted = 0;
#ifdef SIGINT
    signal(SIGINT, on ? note_interrupt : SIG_DFL);
    signal(SIGTERM, on ? note_interrupt : SIG_DFL);
#endif
}

/* A word as a POSIX shell reads it, with a space before. */
static void add_shell_word(Text *text, const char *word) {
    const int plain = !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                         "0123456789_-./")];
    text_add(text, plain ? " " : " '");
    for (; *word; word++) {
        if (*word == '\'') text_add(text, "'\\'");
        text_bytes(text, word, 1);
    }
    if (!plain) text_add(text, "'");
}

/* Saves the state, if there is a file for it, and says how to go on. */
static int stop_training(Trainer *t, const Session *s, const char *state) {
    const char *const words[] = {s->program, "train",    "--resume", state,
                                 "--out",    s->opt.out, "--log",    s->opt.log};
    const size_t n = s->opt.log ? 8 : 6;
    char text[900]; /* an Error has not much more room */
    Text line = {.data = text, .capacity = sizeof text, .fixed = 1};
    if (!state)
        return fail(s->error, "interrupted after step %zu of %zu, and nothing of it is kept; "
                    "`median train` saves a state that can be resumed", t->step, t->total_steps);
    if (!trainer_save(t, state, s->error)) return 0;
    for (size_t i = 0; i < n; i++) add_shell_word(&line, words[i]);
    if (s->opt.threads > 1) text_add(&line, " --threads %zu", s->opt.threads);
    if (line.failed)
        return fail(s->error, "interrupted after step %zu; --resume goes on with the state beside "
                    "--out", t->step);
    return fail(s->error, "interrupted after step %zu; it goes on with:%s", t->step, text);
}

/* The log, and every save_every steps the state, if there are files for them. */
static int record_step(Trainer *t, const Session *s, FILE *log, const char *state) {
    const int saves = state && t->step % s->opt.save_every == 0 && t->step < t->total_steps;
    if (log && (!print_file(log, "%zu,%.9g,%.9g,%.9g\n", t->step, t->lr, t->loss, t->accuracy) ||
                (saves && fflush(log) != 0)))
        return cannot_write(s->opt.log, s->error);
    return !saves || trainer_save(t, state, s->error);
}

/* Steps to the end, or to an interrupt. */
static int run_training(Trainer *t, const Session *s, FILE *log, const char *state) {
    const double total = (double)t->total_steps;
    Progress progress = {.stream = s->streams.progress, .steps = total};
    int done = 1, finite = 1;
    catch_interrupts(1);
    while (done && t->step < t->total_steps && !interrupted && (finite = trainer_step(t)) != 0) {
        done = record_step(t, s, log, state);
        show_progress(&progress, (double)t->step / total, "step %zu/%zu  loss %.4f  %.2f %% right",
                      t->step, t->total_steps, t->loss, 100 * t->accuracy);
    }
    catch_interrupts(0);
    if (t->step < t->total_steps && progress.terminal) fputs("\n", progress.stream);
    if (done && !(finite && is_finite(&t->model)))
        return fail(s->error, "the loss is no longer finite after step %zu; try a smaller --lr",
                    t->step);
    return done && (t->step == t->total_steps || stop_training(t, s, state));
}

/* With --init, the model's configuration stands in the file, whatever the options say. */
static void warn_of_overruled(const Session *s) {
    char wanted[60], found[60];
    const Settings file = {.config = s->model.config};
    for (const Setting *o = settings; o < settings + n_settings; o++) {
        if (!s->given[o - settings] || o->offset >= sizeof(Config)) continue;
        setting_print(o, &s->opt.settings, wanted, sizeof wanted);
        setting_print(o, &file, found, sizeof found);
        if (strcmp(wanted, found) != 0)
            remark(s, "--%s %s changes nothing: %.300s has %s", o->name, wanted, s->opt.init,
                   found);
    }
}

/* A new training, or the rest of an old one. */
static int start_training(Trainer *t, Session *s) {
    const Recipe *recipe = &s->opt.settings.recipe;
    const char *fixed = s->opt.resume ? given_setting(s) : NULL;
    if (fixed) return usage(s->error, "--%s: a resumed training keeps its own settings", fixed);
    if (s->opt.resume) return trainer_resume(t, s->opt.resume, s->error);
    if (recipe->trainset_size == 0 && recipe->steps == 0)
        return usage(s->error, "fresh lists at every step (--trainset-size 0) need --steps");
    if (s->opt.init && !load_model(s, s->opt.init)) return 0;
    if (s->opt.init) warn_of_overruled(s);
    return trainer_create(t, recipe, &s->opt.settings.config, s->opt.init ? &s->model : NULL,
                          s->error);
}

static const char *plural(size_t n) { return n == 1 ? "" : "s"; }

/* What is said of the weights is true of those that are saved; the latest validation may be of
 * others. */
static int save_result(Trainer *t, const char *path, Report *r, Error *error) {
    const size_t n = t->validated ? t->recipe.valset_size : 0, batch = t->recipe.batch_size;
    Model *result = trainer_result(t);
    Evaluation e = {0};
    if (!model_save(result, path, error)) return 0;
    evaluate(result, &t->runs, t->val_lists, t->val_medians, n, &e);
    say(r, "%zu step%s of %zu list%s\n", t->step, plural(t->step), batch, plural(batch));
    if (e.lists && e.loss < HUGE_VAL)
        say(r, "validation accuracy %.3f %%, loss %.5f\n", 100 * e.accuracy, e.loss);
    say(r, "wrote %s, parameters %016" PRIx64 "\n", path, hash_model(result));
    return 1;
}

/* Will write_file find a place? Asked before hours of work, not after. */
static int check_output(const char *path, Error *error) {
    char beside[4100];
#ifdef HAVE_STAT
    struct stat about;
    errno = EISDIR;
    if (stat(path, &about) == 0 && S_ISDIR(about.st_mode)) return cannot_write(path, error);
#endif
    if (!name_beside(beside, sizeof beside, path, error)) return 0;
    if (strcmp(beside, path) == 0) return 1;
    FILE *f = fopen(beside, "wb");
    if (!f) return cannot_write(path, error);
    fclose(f);
    remove(beside);
    return 1;
}

/* Reads a line of any length, of which the first size - 1 characters are kept. 0 at the end of the
 * input. */
static int read_line(FILE *in, char *line, size_t size, size_t *length) {
    int c;
    for (*length = 0; (c = fgetc(in)) != EOF && c != '\n'; ++*length)
        if (*length + 1 < size) line[*length] = (char)(c ? c : '?');
    line[smaller(*length, size - 1)] = 0;
    return *length > 0 || c == '\n';
}

/* The log of a new training, or that of a resumed one without the steps that will be done again. */
static FILE *open_log(const Session *s, const Trainer *t) {
    Text kept = {0};
    char line[200];
    size_t length;
    FILE *old = s->opt.resume ? fopen(s->opt.log, "rb") : NULL;
    text_add(&kept, "step,lr,loss,accuracy\n");
    while (old && read_line(old, line, sizeof line, &length)) {
        const char *end;
        const double step = parse_double(line, &end);
        if (end != line && step <= (double)t->step) text_add(&kept, "%s\n", line);
    }
    if (old) fclose(old);
    const int written = write_file(s->opt.log, &kept, s->error);
    text_free(&kept);
    FILE *log = written ? fopen(s->opt.log, "ab") : NULL;
    if (written && !log) cannot_write(s->opt.log, s->error);
    return log;
}

static int command_train(Session *s, Report *r) {
    const char *out = s->opt.out;
    char beside[4096];
    const char *state = print_to(beside, sizeof beside, "%s.state", out) ? beside : NULL;
    Trainer t;
    FILE *log = NULL;
    if (is_special(out)) state = NULL;
    if (!start_training(&t, s)) return 0;
    int done = check_output(out, s->error) && (!state || check_output(state, s->error)) &&
               (!s->opt.log || (log = open_log(s, &t)) != NULL) && run_training(&t, s, log, state);
    if (log && fclose(log) != 0 && done) done = cannot_write(s->opt.log, s->error);
    if (done) done = save_result(&t, out, r, s->error);
    else if (t.validated && !(t.loss < HUGE_VAL && is_finite(&t.model))) {
        Error lost = {.usage = 0};
        if (save_result(&t, out, r, &lost))
            say(r, "(the training diverged; these are the weights of the best validation)\n");
    }
    if (done && state) remove(state);
    trainer_free(&t);
    return done;
}

COMMAND(train, TRAIN, .seed = 23, .summary = "trains a model",
        .example = "train --steps 5000 --seed 7 --out seven.safetensors");

/* ---- 10. Looking at attention ---------------------------------------------------------------- */

/* Count, sum and sum of squares of what was observed. */
typedef struct {
    double n, sum, squares;
} Moments;

static void observe(Moments *m, float x) {
    m->n++;
    m->sum += x;
    m->squares += (double)x * x;
}

static double mean_of(const Moments *m) { return m->n > 0 ? m->sum / m->n : 0; }

static double deviation_of(const Moments *m) {
    const float mean = f32(mean_of(m));
    const double variance = m->n > 0 ? m->squares / m->n - (double)mean * mean : 0;
    return variance > 0 ? sqrt(variance) : 0;
}

/* Attention over many lists; heads of all layers one after the other. Of each head there is first,
 * (seq_len, seq_len), the attention of each position (row) to each, where the runs computed it;
 * then that of the last position to the list in sorted order, (seq_len), and to a number, wherever
 * it stands, (max_num). */
typedef struct {
    const Config *config;
    size_t heads, size;
    Moments *of_head; /* (heads, size) */
    Moments entropy;  /* of the last position, all heads together, as a part of the greatest
                         possible, log(seq_len) */
} AttentionStats;

/* All 0. a->of_head is to be freed. */
static int attention_create(AttentionStats *a, const Config *c, Error *error) {
    const size_t T = c->seq_len;
    memset(a, 0, sizeof *a);
    a->config = c;
    a->heads = c->n_layers * c->n_heads;
    a->size = T * T + T + c->max_num;
    const double bytes = (double)a->heads * (double)a->size * sizeof(Moments);
    a->of_head = (Moments *)allocate(bytes, "the averages", error);
    return a->of_head != NULL;
}

/* A head's last position: its attention to positions, to ranks, to numbers. */
static Moments *last_position(const AttentionStats *a, size_t head) {
    const size_t T = a->config->seq_len;
    return a->of_head + head * a->size + (T - 1) * T;
}

/* The attention of a head, counted through all layers: (its layer's n_queries, seq_len). */
static const float *head_pattern(const Run *run, size_t head) {
    const LayerRun *layer = &run->layers[head / run->config.n_heads];
    return layer->pattern + head % run->config.n_heads * layer->n_queries * run->config.seq_len;
}

/* The place of a position's number in sorted order; equal ones stand in the order of position. */
static size_t rank_of(const uint32_t *list, size_t n, size_t position) {
    size_t rank = 0;
    for (size_t t = 0; t < n; t++)
        rank += list[t] < list[position] || (list[t] == list[position] && t < position);
    return rank;
}

/* The last position's attention (seq_len) to one list, as seen by a head. */
static void observe_last(AttentionStats *a, size_t head, const uint32_t *list,
                         const float *pattern) {
    const size_t T = a->config->seq_len;
    Moments *rank = last_position(a, head) + T, *number = rank + T;
    double entropy = 0;
    for (size_t t = 0; t < T; t++) {
        observe(&rank[rank_of(list, T, t)], pattern[t]);
        observe(&number[list[t]], pattern[t]);
        if (pattern[t] > 0) entropy -= (double)pattern[t] * log_f32(pattern[t]);
    }
    observe(&a->entropy, f32(entropy / log_f32((float)T)));
}

/* Runs n lists, any number, and adds them. */
static void observe_attention(AttentionStats *a, const Model *m, Run *run, const uint32_t *lists,
                              size_t n) {
    const size_t T = m->config.seq_len;
    for (; n > 0; n -= run->n_lists, lists += run->n_lists * T) {
        model_forward(m, run, lists, smaller(run->capacity, n), NULL);
        for (size_t head = 0; head < a->heads; head++) {
            const float *pattern = head_pattern(run, head);
            const size_t queries = run->layers[head / m->config.n_heads].n_queries;
            Moments *last = last_position(a, head), *first = last + T - queries / run->n_lists * T;
            for (size_t i = 0; i < queries * T; i++)
                observe(&first[i / T / run->n_lists * T + i % T], pattern[i]);
            pattern += (queries - run->n_lists) * T;
            for (size_t i = 0; i < run->n_lists; i++)
                observe_last(a, head, lists + i * T, pattern + i * T);
        }
    }
}

/* Full strength is three times even attention, or the greatest value if that is more: so both a
 * row of even attention and what exceeds it can be seen. Its rows are the last of its columns.
 * list (T): the numbers at the positions, or NULL. */
static void draw_pattern(Report *r, const float *pattern, size_t rows, size_t T,
                         const uint32_t *list) {
    const uint32_t *last = list ? list + T - rows : NULL;
    const Map map = {
        .values = pattern,
        .rows = rows,
        .cols = T,
        .limit = 3.0 / (double)T,
        .causal = 1,
        .row_names = last,
        .col_names = list,
        .row_title = "query",
        .col_title = list ? "attends to" : "position attended to",
    };
    draw_map(r, &map);
}

/* Attention of each number of s->list (row), which the run has just seen, to itself and those
 * before it. Where the run has no more, only the last number's. */
static void show_patterns(const Session *s, Report *r) {
    const Config *c = &s->model.config;
    const size_t T = s->T, H = c->n_heads, heads = c->n_layers * H;
    for (size_t head = 0; r->kind == REPORT_TEXT && head < heads; head++) {
        say(r, "\nlayer %zu head %zu\n", head / H, head % H);
        draw_pattern(r, head_pattern(&s->run, head), s->run.layers[head / H].n_queries, T, s->list);
    }
    if (r->kind == REPORT_TEXT) return;
    table_begin(r, "patterns", "layer,head,query,key,query_number,key_number,attention");
    for (size_t head = 0; head < heads; head++)
        for (size_t i = 0; i < T * T; i++)
            table_row(r, "%zu %zu %zu %zu %u %u %.9f", head / H, head % H, i / T, i % T,
                      (unsigned)s->list[i / T], (unsigned)s->list[i % T],
                      head_pattern(&s->run, head)[i]);
}

/* The mean pattern of each head. */
static void show_mean_patterns(Session *s, Report *r, const AttentionStats *a) {
    const size_t T = s->T, H = s->model.config.n_heads;
    float *pattern = s->run.layers[0].pattern; /* the latest list's is no longer needed */
    for (size_t head = 0; head < a->heads; head++) {
        for (size_t i = 0; i < T * T; i++)
            pattern[i] = f32(mean_of(&a->of_head[head * a->size + i]));
        prose(r, "layer %zu head %zu, mean over %zu list%s of seed %zu", head / H, head % H, s->n,
              plural(s->n), s->seed);
        draw_pattern(r, pattern, T, T, NULL);
        say(r, "\n");
    }
}

/* The last position's attention by position, by rank and, for machines, by number. */
static void show_attention(Report *r, const AttentionStats *a) {
    static const char *const kinds[] = {"position", "rank", "number"};
    const size_t T = a->config->seq_len, H = a->config->n_heads;
    const size_t n = r->kind == REPORT_TEXT ? 2 * T : 2 * T + a->config->max_num;
    prose(r,
          "The last position's attention: to each position; by rank (0 the smallest number, %zu "
          "the median, %zu the greatest).\n\n",
          T / 2, T - 1);
    table_begin(r, "attention", "layer,head,by,index,mean,deviation");
    r->bar_limit = 1;
    for (size_t i = 0; i < a->heads * n; i++) {
        const size_t head = i / n, kind = smaller(i % n / T, 2);
        const Moments *seen = last_position(a, head) + i % n;
        table_row(r, "%zu %zu %s %zu %.3f| %.3f", head / H, head % H, kinds[kind], i % n - kind * T,
                  mean_of(seen), deviation_of(seen));
    }
    table_end(r);
}

/* Runs s->list, as given_list finds it. */
static int run_given_list(Session *s, size_t n_lists) {
    if (!given_list(s, s->seed, n_lists)) return 0;
    model_forward(&s->model, &s->run, s->list, 1, NULL);
    return 1;
}

/* The patterns of a list, if there is one, and averages over s->lists: for machines, the one or the
 * other. */
static int command_attention(Session *s, Report *r) {
    AttentionStats stats;
    if (s->n_words || s->on_tour) {
        if (!run_given_list(s, 1)) return 0;
        show_patterns(s, r);
        if (r->kind != REPORT_TEXT) return 1;
        say(r, "\n");
    }
    if (!attention_create(&stats, &s->model.config, s->error)) return 0;
    observe_attention(&stats, &s->model, &s->run, s->lists, s->n);
    show_mean_patterns(s, r, &stats);
    show_attention(r, &stats);
    free(stats.of_head);
    return 1;
}

COMMAND(attention, ATTENTION, .size = 10000, .seed = 1000, .batch = 256, .kind = RUN_ALL_POSITIONS,
        .argument = "NUMBER...",
        .argument_is = "a list whose patterns are drawn; with --csv, nothing else",
        .summary = "who looks where", .example = "attention 41 46 16 47 30 12 27");

/* ---- 11. Evaluating and predicting ----------------------------------------------------------- */

static void info_line(Report *r, const char *name, const char *text) {
    say(r, "%-28s %s\n", name, text);
}

static int command_info(Session *s, Report *r) {
    const Model *m = &s->model;
    const Settings all = {.config = m->config};
    char text[80];
    size_t n_config = 0;
    prose(r, "%s: %zu parameters in %zu tensors, hash %016" PRIx64 "\n\n", s->opt.model,
          m->n_params, m->n_tensors, hash_model(m));
    for (; settings[n_config].offset < sizeof(Config); n_config++) {
        setting_print(&settings[n_config], &all, text, sizeof text);
        info_line(r, settings[n_config].name, text);
    }
    say(r, "\n");
    for (const Note *note = m->notes; note < m->notes + m->n_notes; note++) {
        size_t i = 0; /* where the note repeats the above */
        while (i < n_config && strcmp(settings[i].name, note->key) != 0) i++;
        if (i == n_config) info_line(r, note->key, note->value);
    }
    say(r, "\n");
    for (const Tensor *t = m->tensors; t < m->tensors + m->n_tensors; t++) {
        shape_text(text, sizeof text, t);
        info_line(r, t->name, text);
    }
    return 1;
}

COMMAND(info, INFO, .summary = "a checkpoint's configuration, recipe, tensors, hash",
        .example = "info --model trained.safetensors");

/* Uniform training lists are those that `data` and `eval` make with the same seed. */
static void warn_of_training_lists(const Session *s) {
    const Model *m = &s->model;
    const char *balanced = find_note(m->notes, m->n_notes, "balanced"), *end;
    const char *seed = find_note(m->notes, m->n_notes, "seed");
    if (balanced && seed && strcmp(balanced, "0") == 0 &&
        parse_double(seed, &end) == (double)s->seed)
        remark(s, "the lists of seed %zu are those that this model was trained on; another --seed "
                  "tests it", s->seed);
}

/* In pieces as large as s->lists: any number of lists needs the same memory. */
static int command_eval(Session *s, Report *r) {
    Evaluation e = {0};
    Mt19937 mt;
    Runs runs;
    if (!runs_create(&runs, &s->model.config, 512, RUN_FORWARD, s->error)) return 0;
    warn_of_training_lists(s);
    mt_seed(&mt, (uint32_t)s->seed);
    while (e.lists < s->opt.size) {
        const size_t n = smaller(s->n, s->opt.size - e.lists);
        make_lists(&mt, s->lists, s->medians, n, s->V, s->T);
        evaluate(&s->model, &runs, s->lists, s->medians, n, &e);
    }
    runs_free(&runs);
    const size_t *by = e.by_distance;
    prose(r, "%zu list%s of seed %zu, evaluated with %s. Alerts are losses above 0.7.\n\n", e.lists,
          plural(e.lists), s->seed, s->opt.model);
    table_begin(r, "evaluation",
                "lists,accuracy,loss,right,mean_distance,by1,by2,by3,by_more,alerts");
    table_row(r, "%zu %.4f%% %.6f %zu %.3f %zu %zu %zu %zu %zu", e.lists, e.accuracy, e.loss,
              e.right, e.mean_distance, by[0], by[1], by[2], by[3], e.alerts);
    table_end(r);
    return 1;
}

COMMAND(eval, EVAL, .size = 100000, .seed = 1000, .max_lists = 16384,
        .summary = "accuracy and loss on fresh lists", .example = "eval --size 1000000 --seed 7");

/* -- predict -- */

static int show_prediction(Session *s, Report *r) {
    float *logits = s->run.logits;
    uint32_t sorted[MAX_SEQ_LEN];
    if (!run_given_list(s, 1)) return 0;
    model_loss(&s->run, s->median);
    const size_t guess = argmax(logits, s->V), median = s->median[0];
    for (size_t t = 0; t < s->T; t++) sorted[rank_of(s->list, s->T, t)] = s->list[t];
    say(r, "list       %s\nsorted    ", list_text(s, s->list));
    for (size_t i = 0; i < s->T; i++)
        say(r, i == s->T / 2 ? " [%u]" : " %u", (unsigned)sorted[i]);
    say(r, "\n");
    prose(r, "prediction %zu, %s (the median is %zu), loss %.5g\n\n", guess,
          guess == median ? "right" : "wrong", median, checked(r, s->run.loss[0]));
    table_begin(r, "leading", "number,logit,probability");
    r->bar_limit = 1;
    for (size_t i = 0; i < smaller(5, s->V); i++) {
        const size_t v = argmax(logits, s->V);
        table_row(r, "%zu %.3f %.5f|", v, logits[v], s->run.probs[v]);
        logits[v] = -HUGE_VALF;
    }
    table_end(r);
    return 1;
}

/* Answers to n lists, one a line. */
static void add_answers(Session *s, Report *r, const uint32_t *lists, const uint32_t *medians,
                        size_t n) {
    if (n == 0) return;
    model_forward(&s->model, &s->run, lists, n, NULL);
    model_loss(&s->run, medians);
    for (size_t i = 0; i < n; i++) {
        const float *logits = s->run.logits + i * s->V;
        const size_t guess = argmax(logits, s->V);
        checked(r, logits[guess]);
        if (s->opt.logits) line_of_numbers(r, " ", logits, s->V);
        else if (r->kind == REPORT_TEXT) say(r, "%zu\n", guess);
        else
            table_row(r, "%s %zu %zu %f %f %f", list_text(s, lists + i * s->T), guess,
                      (size_t)medians[i], logits[guess], s->run.probs[i * s->V + guess],
                      s->run.loss[i]);
    }
    report_flush(r);
}

/* Lists from the input, one a line; blank lines are passed over. A person gets each answer at once,
 * and may mend a line; otherwise the first fault is the end. */
static int predict_input(Session *s, Report *r) {
    FILE *in = s->streams.in, *to = s->streams.progress;
    const int person = is_terminal(in);
    const size_t batch = person ? 1 : s->run.capacity;
    char *line = s->line;
    size_t n = 0, number = 0, length;
    if (person && to)
        print_file(to, "A list of %zu numbers below %zu, and Enter. Ctrl-D ends.\n", s->T, s->V);
    while (takes_more(r) && read_line(in, line, LINE, &length)) {
        uint32_t *list = s->lists + n * s->T;
        number++;
        if (!line[strspn(line, " \t\r,")]) continue;
        int good = length < LINE ||
                   fail(s->error, "it has %zu characters, more than %d", length, LINE - 1);
        if (good) good = parse_lists(s, list, s->T, line);
        if (good) s->medians[n++] = median_of(list, s->T);
        if (n == batch || !good) {
            add_answers(s, r, s->lists, s->medians, n);
            n = 0;
        }
        if (good) continue;
        const Error reason = *s->error;
        s->error->usage = 0;
        if (person) remark(s, "%s", reason.text);
        else return fail(s->error, "standard input, line %zu: %.400s", number, reason.text);
    }
    add_answers(s, r, s->lists, s->medians, n);
    return !ferror(in) || fail(s->error, "cannot read standard input: %s", strerror(errno));
}

static int command_predict(Session *s, Report *r) {
    int done = 1;
    if (s->n_words && r->kind == REPORT_TEXT && !s->opt.logits) {
        done = show_prediction(s, r);
        if (done) show_patterns(s, r);
        return done;
    }
    if (s->n_words && !given_list(s, 1, 1)) return 0;
    if (!s->opt.logits)
        table_begin(r, "predictions", "list,prediction,median,logit,probability,loss");
    if (s->n_words) add_answers(s, r, s->list, s->median, 1);
    else done = predict_input(s, r);
    return done;
}

COMMAND(predict, PREDICT, .size = 256, .batch = 256, .max_lists = 256, .argument = "NUMBER...",
        .argument_is = "the list; without it, lists from stdin, one a line",
        .summary = "the median, as the model sees it", .example = "predict 41 46 16 47 30 12 27");

/* ---- 12. Circuits and weights ---------------------------------------------------------------- */

/* The sum of n products; in y, each number stands `step` behind the one before. */
static double dot_strided(const float *x, const float *y, size_t step, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * y[i * step];
    return sum;
}

/* The mean of n numbers, each `step` behind the one before, is taken from each. */
static void center(float *x, size_t n, size_t step) {
    double sum = 0;
    for (size_t j = 0; j < n; j++) sum += x[j * step];
    for (size_t j = 0; j < n; j++) x[j * step] = f32((double)x[j * step] - sum / (double)n);
}

/* What ln_final makes of vectors x (rows, d_model), which may be out, when its scale is taken as
 * given: centred, times scale, times w. Its b is left out. Without normalization, x. */
static void scale_given(const Model *m, float *out, const float *x, size_t rows, float scale) {
    const size_t d = m->config.d_model;
    const float *w = m->weights.ln_final_w;
    memmove(out, x, rows * d * sizeof *out);
    for (size_t i = 0; m->config.normalization && i < rows * d; i++) {
        if (i % d == 0) center(out + i, d, 1);
        out[i] = f32((double)out[i] * scale);
        if (w) out[i] = f32((double)out[i] * w[i % d]);
    }
}

/* What vectors x (rows, d_model), which are changed, add to the logits (rows, max_num) if
 * ln_final's scale is this. */
static void direct_logits(const Model *m, float *logits, float *x, size_t rows, float scale) {
    const size_t d = m->config.d_model;
    scale_given(m, x, x, rows, scale);
    linear_forward(logits, NULL, x, m->weights.W_U, NULL, rows, d, m->config.max_num);
}

float mean_scale(const Model *m, Run *run, const uint32_t *lists, size_t n) {
    double sum = 0;
    if (!m->config.normalization) return 1;
    for (size_t at = 0; at < n; at += run->n_lists) {
        model_forward(m, run, lists + at * m->config.seq_len, smaller(run->capacity, n - at), NULL);
        for (size_t i = 0; i < run->n_lists; i++) sum += run->final_inv_std[i];
    }
    return f32(sum / (double)n);
}

/* x (n, d) = W_E plus, unless it is NULL, one row of W_pos. */
static void add_position(float *x, const float *W_E, const float *W_pos, size_t n, size_t d) {
    memcpy(x, W_E, n * d * sizeof *x);
    for (size_t i = 0; W_pos && i < n; i++) add_to(x + i * d, W_pos, d);
}

/* What a head's W (d_model, d_head) and b (d_head) make of every number at a position: W_E[t] +
 * W_pos[position], through LN1, times W, plus b; at NO_POSITION the mean over all positions. Raw
 * without LN1 and b, and at NO_POSITION without W_pos. (Later layers see it only as far as the
 * residual stream brings it there unchanged.) out (max_num, d_head). */
static void project_numbers(const Model *m, const Circuit *of, size_t position, const float *W,
                            const float *b, float *out, float *scratch) {
    const Config *c = &m->config;
    const LayerWeights *w = &m->weights.layers[of->layer];
    const size_t V = c->max_num, d = c->d_model, dh = c->d_head;
    const size_t n = position == NO_POSITION && !of->raw ? c->seq_len : 1;
    const int normalized = c->normalization && !of->raw;
    float *mean = scratch, *x = mean + V * d, *normal = x + V * d, *inv_std = normal + V * d;
    float *h = normalized ? inv_std + V : x;
    memset(mean, 0, V * d * sizeof *mean);
    for (size_t p = 0; p < n; p++) {
        const size_t at = n > 1 ? p : position;
        add_position(x, m->weights.W_E, at == NO_POSITION ? NULL : m->weights.W_pos + at * d, V, d);
        if (normalized) layernorm_forward(h, normal, inv_std, x, w->ln1_w, w->ln1_b, V, d);
        for (size_t i = 0; i < V * d; i++)
            mean[i] = f32((double)mean[i] + (double)h[i] / (double)n);
    }
    linear_forward(out, NULL, mean, W + of->head * d * dh, of->raw ? NULL : b + of->head * dh, V, d,
                   dh);
}

size_t circuit_scratch(const Config *c) {
    return c->max_num * (2 * c->d_head + 4 * c->d_model + 1);
}

void circuit_table(const Model *m, const Circuit *of, float *table, float *scratch) {
    const LayerWeights *w = &m->weights.layers[of->layer];
    const size_t V = m->config.max_num, d = m->config.d_model, dh = m->config.d_head;
    const int last = of->query_pos == NO_POSITION && !of->raw;
    float *q = scratch, *k = q + V * dh, *x = k + V * dh;
    if (of->kind == CIRCUIT_OV) {
        project_numbers(m, of, of->key_pos, w->W_V, w->b_V, k, x);
        linear_forward(x, NULL, k, w->W_O + of->head * d * dh, NULL, V, dh, d);
        if (of->raw) linear_forward(table, NULL, x, m->weights.W_U, NULL, V, d, V);
        else direct_logits(m, table, x, V, of->scale);
        return;
    }
    project_numbers(m, of, last ? m->config.seq_len - 1 : of->query_pos, w->W_Q, w->b_Q, q, x);
    project_numbers(m, of, of->key_pos, w->W_K, w->b_K, k, x);
    const float scale = of->raw ? 1.0f : f32(1.0 / sqrt((double)dh));
    for (size_t i = 0; i < V * V; i++)
        table[i] = attention_score(q + i / V * dh, k + i % V * dh, dh, scale);
}

/* A whole number at *text, which moves behind it and the mark that follows; a last ',' may be
 * missing. */
static int next_index(const char **text, char mark, size_t *index) {
    const char *at = *text;
    for (*index = 0; *at >= '0' && *at <= '9'; at++)
        *index = smaller(10 * *index + (size_t)(*at - '0'), SIZE_MAX / 20);
    const int good = at > *text && (*at == mark || (!*at && mark == ','));
    *text = at + (*at != 0);
    return good;
}

/* The next in the list of --head. */
static int next_head(const Session *s, const char **text, size_t *layer, size_t *head) {
    const size_t L = s->model.config.n_layers, H = s->model.config.n_heads;
    if (!next_index(text, '.', layer) || !next_index(text, ',', head))
        return usage(s->error, "--head is '%.40s', must be LAYER.HEAD, such as 0.0", s->opt.heads);
    return (*layer < L && *head < H) ||
           usage(s->error,
                 "--head is '%.40s', but this model has %zu layer%s of %zu head%s, counted from 0",
                 s->opt.heads, L, plural(L), H, plural(H));
}

/* What the options and the argument say of the circuits: `which` is the first, *n how many there
 * are. */
static int parse_circuit(const Session *s, Circuit *which, size_t *n) {
    const size_t positions[] = {s->opt.query_pos, s->opt.key_pos};
    const size_t kind = s->n_words == 1 ? choice_index("qk|ov", s->words[0]) : 2;
    const char *heads = s->opt.heads;
    if (kind > 1)
        return usage(s->error, "which circuits? median circuits qk, or median circuits ov");
    for (size_t i = 0; i < 2; i++)
        if (positions[i] != NO_POSITION && positions[i] >= s->T)
            return usage(s->error, "--%s-pos is %zu, must be less than %zu", i ? "key" : "query",
                         positions[i], s->T);
    *which = (Circuit){.kind = kind ? CIRCUIT_OV : CIRCUIT_QK,
                       .raw = s->opt.raw != 0,
                       .query_pos = s->opt.query_pos,
                       .key_pos = s->opt.key_pos};
    *n = *heads || s->opt.csv ? 1 : s->model.config.n_layers * s->model.config.n_heads;
    if (*heads && !next_head(s, &heads, &which->layer, &which->head)) return 0;
    return !*heads || usage(s->error, "--head is '%.40s', must be one head", s->opt.heads);
}

/* The head's table as text. Scores that differ by less than 1 hardly matter to softmax: they are
 * drawn faint. */
static void show_circuit(Report *r, const Circuit *which, const float *table, size_t V) {
    static const struct {
        const char *title, *row, *column;
    } words[] = {
        {"QK: how much a query number (row) looks at a key number (column)", "query", "key"},
        {"OV: what attending to a number (row) adds to the logit of each (column)", "number",
         "logit of"},
    };
    Map map = {
        .values = table,
        .rows = V,
        .cols = V,
        .row_title = words[which->kind].row,
        .col_title = words[which->kind].column,
    };
    for (size_t t = 0; r->kind != REPORT_TEXT && t < V; t++)
        line_of_numbers(r, ",", table + t * V, V);
    prose(r, "layer %zu head %zu, %s%s", which->layer, which->head, which->raw ? "raw " : "",
          words[which->kind].title);
    if (which->kind == CIRCUIT_QK && !which->raw) map.limit = 1;
    draw_map(r, &map);
    say(r, "\n");
}

static int command_circuits(Session *s, Report *r) {
    const size_t V = s->V, H = s->model.config.n_heads;
    Circuit which;
    size_t n = 0;
    if (!parse_circuit(s, &which, &n)) return 0;
    const double floats = (double)V * (double)V + (double)circuit_scratch(&s->model.config);
    float *table = (float *)allocate(floats * sizeof *table, "the circuit", s->error);
    if (!table) return 0;
    if (which.kind == CIRCUIT_OV && !which.raw)
        which.scale = mean_scale(&s->model, &s->run, s->lists, s->n);
    for (; n > 0; n--) {
        circuit_table(&s->model, &which, table, table + V * V);
        show_circuit(r, &which, table, V);
        which.head = (which.head + 1) % H;
        which.layer += which.head == 0;
    }
    free(table);
    return 1;
}

COMMAND(circuits, CIRCUITS, .size = 20000, .seed = 1000, .batch = 1024, .argument = "qk|ov",
        .argument_is = "which; --csv prints the rows of one head's table, without a header",
        .summary = "QK and OV circuits", .example = "circuits ov --head 0.0 --csv");

/* -- weights -- */

enum { BINS = 40 };

static void show_histogram(Report *r, const Tensor *t, double least, double greatest) {
    const size_t n = smaller(BINS, r->width - 14);
    size_t bins[BINS] = {0}, most = 0;
    for (size_t i = 0; i < t->size; i++) {
        const double share =
            greatest > least ? (t->data[i] - least) / (greatest - least) : 0;
        const size_t bin = smaller((size_t)(share * (double)n), n - 1);
        if (++bins[bin] > most) most = bins[bin];
    }
    say(r, "  histogram |");
    for (size_t i = 0; i < n; i++)
        say(r, "%c", ramp[shade_index((double)bins[i], (double)most)]);
    say(r, "|\n");
}

/* The greatest singular values of a matrix, a head's where there are heads, and its picture. */
static int show_matrix(Report *r, const float *data, size_t rows, size_t cols, Error *error) {
    const size_t few = smaller(rows, cols), many = rows + cols - few;
    const Map map = {.values = data, .rows = rows, .cols = cols, .row_title = "", .col_title = ""};
    const double bytes = (double)few * (double)(many + 1) * (double)sizeof *data;
    char text[256];
    Text line = {.data = text, .capacity = sizeof text, .fixed = 1};
    float *columns = (float *)allocate(bytes, "singular values", error);
    if (!columns) return 0;
    for (size_t i = 0; i < rows * cols; i++) {
        const size_t row = i / cols, col = i % cols;
        columns[rows < cols ? row * many + col : col * many + row] = data[i];
    }
    float *values = columns + few * many;
    singular_values(values, columns, few, many);
    for (size_t i = 0; i < smaller(few, 10); i++)
        text_add(&line, r->kind == REPORT_TEXT ? " %.3f" : ",%.9g", checked(r, values[i]));
    if (r->kind == REPORT_TEXT) prose(r, "  singular values%s", text);
    else text_add(&r->text, "%s", text);
    draw_map(r, &map);
    free(columns);
    return 1;
}

static int show_tensor(Report *r, const Tensor *t, Error *error) {
    char shape[80];
    Moments moments = {0, 0, 0};
    double least = HUGE_VAL, greatest = -HUGE_VAL;
    for (size_t i = 0; i < t->size; i++) {
        observe(&moments, t->data[i]);
        least = min_double(t->data[i], least);
        greatest = max_double(t->data[i], greatest);
    }
    shape_text(shape, sizeof shape, t);
    text_add(&r->text,
             r->kind == REPORT_TEXT ? "%s  %s\n  mean %.4f  deviation %.4f\n  from %.4f to %.4f\n"
                                    : "%s,%s,%.9g,%.9g,%.9g,%.9g",
             t->name, shape, mean_of(&moments), deviation_of(&moments), least, greatest);
    show_histogram(r, t, least, greatest);
    const size_t heads = t->n_dims == 3 ? t->shape[0] : 1, cols = t->shape[t->n_dims - 1];
    const size_t rows = t->size / heads / cols;
    for (size_t head = 0; head < heads; head++) {
        if (heads > 1) say(r, "  head %zu\n", head);
        if (!show_matrix(r, t->data + head * rows * cols, rows, cols, error)) return 0;
    }
    text_add(&r->text, "\n");
    return 1;
}

static int command_weights(Session *s, Report *r) {
    const Model *m = &s->model;
    if (r->kind != REPORT_TEXT)
        text_add(&r->text, "tensor,shape,mean,deviation,min,max,singular_values...\n");
    for (const Tensor *t = m->tensors; t < m->tensors + m->n_tensors; t++)
        if (!show_tensor(r, t, s->error)) return 0;
    return 1;
}

COMMAND(weights, WEIGHTS, .summary = "every tensor: statistics, singular values, picture",
        .example = "weights --width 120");

/* -- activations: every intermediate value, as TransformerLens's run_with_cache has it -- */

#define NONE SIZE_MAX

/* An index as text, or what is said in place of one that is too great. */
static const char *index_text(char text[24], size_t index, size_t n, const char *otherwise) {
    if (index < n) print_to(text, 24, "%zu", index);
    else print_to(text, 24, "%s", otherwise);
    return text;
}

enum {
    BY_HEAD = 1,  /* values of each head, one head after the other */
    BY_INDEX = 2, /* a position's row is the one that the layer's index says */
    INVERSE = 4   /* 1/x is listed */
};

/* The values under one of TransformerLens's names, n a position; x is NULL if this model has
 * none. */
typedef struct {
    const char *name;
    const float *x;
    size_t n;
    int form;
} Site;

/* The sites of a layer, or NONE. */
static void list_sites(const Session *s, Report *r, size_t layer, const Site *sites,
                       size_t n_sites) {
    const size_t T = s->T;
    const LayerRun *run = &s->run.layers[layer == NONE ? 0 : layer];
    char prefix[40] = "", number[24], head[24];
    index_text(number, layer, NONE, "");
    if (layer != NONE) print_to(prefix, sizeof prefix, "blocks.%zu.", layer);
    for (const Site *p = sites; p < sites + n_sites; p++) {
        const int by_head = p->form & BY_HEAD, by_index = p->form & BY_INDEX;
        const size_t heads = by_head ? s->model.config.n_heads : 1;
        const size_t rows = by_index ? run->rows->n_rows : T;
        for (size_t i = 0; p->x && i < heads * T * p->n; i++) {
            const size_t h = i / p->n / T, t = i / p->n % T, row = by_index ? run->row[t] : t;
            double value = p->x[(h * rows + row) * p->n + i % p->n];
            if (p->form & INVERSE) value = f32(1.0 / value);
            if (value > -HUGE_VAL) checked(r, value); /* masked scores are -inf */
            index_text(head, by_head ? h : NONE, NONE, "");
            text_add(&r->text, "%s%s,%s,%s,%zu,%zu,%.9g\n", prefix, p->name, number, head, t,
                     i % p->n, value);
        }
        report_flush(r);
    }
}

/* scratch: (n_heads, T, T) and (T, d_model) */
static void list_layer(const Session *s, Report *r, size_t l, float *scratch) {
    const Config *c = &s->model.config;
    const LayerWeights *w = &s->model.weights.layers[l];
    const LayerRun *layer = &s->run.layers[l];
    const LayerRows *rows = layer->rows;
    const size_t T = s->T, d = c->d_model, dh = c->d_head, H = c->n_heads;
    const float scale = attention_of(c, layer).scale;
    float *scores = scratch, *attn_out = scratch + H * T * T;
    for (size_t i = 0; i < H * T * T; i++) {
        const size_t first = i / T / T * rows->n_rows, query = i / T % T, key = i % T;
        const float *q = rows->q + (first + layer->row[query]) * dh;
        const float *k = rows->k + (first + layer->row[key]) * dh;
        scores[i] = key > query ? -HUGE_VALF : attention_score(q, k, dh, scale);
    }
    memset(attn_out, 0, T * d * sizeof *attn_out);
    for (size_t h = 0; h < H; h++)
        linear_forward(attn_out, attn_out, layer->z + h * T * dh, w->W_O + h * dh * d,
                       h == 0 ? w->b_O : NULL, T, dh, d);
    const Site sites[] = {
        {"hook_resid_pre", rows->x, d, BY_INDEX},
        {"ln1.hook_scale", rows->inv_std, 1, BY_INDEX | INVERSE},
        {"ln1.hook_normalized", rows->normal, d, BY_INDEX},
        {"attn.hook_q", rows->q, dh, BY_INDEX | BY_HEAD},
        {"attn.hook_k", rows->k, dh, BY_INDEX | BY_HEAD},
        {"attn.hook_v", rows->v, dh, BY_INDEX | BY_HEAD},
        {"attn.hook_attn_scores", scores, T, BY_HEAD},
        {"attn.hook_pattern", layer->pattern, T, BY_HEAD},
        {"attn.hook_z", layer->z, dh, BY_HEAD},
        {"hook_attn_out", attn_out, d, 0},
        {"hook_resid_mid", layer->resid_mid, d, 0},
        {"ln2.hook_scale", layer->inv_std2, 1, INVERSE},
        {"ln2.hook_normalized", layer->normal2, d, 0},
        {"mlp.hook_pre", layer->pre, c->d_mlp, 0},
        {"mlp.hook_post", layer->post, c->d_mlp, 0},
        {"hook_mlp_out", layer->mlp_out, d, 0},
        {"hook_resid_post", l + 1 < c->n_layers ? layer[1].rows->x : s->run.final, d, 0},
    };
    list_sites(s, r, l, sites, sizeof sites / sizeof *sites);
}

static int command_activations(Session *s, Report *r) {
    const Config *c = &s->model.config;
    const Weights *w = &s->model.weights;
    const size_t T = s->T, V = s->V, d = c->d_model;
    const double floats =
        (double)T * ((double)c->n_heads * (double)T + 2 * (double)d + 1 + (double)V);
    if (!run_given_list(s, 1)) return 0;
    float *x = (float *)allocate(floats * sizeof *x, "the scores", s->error);
    if (!x) return 0;
    text_add(&r->text, "site,layer,head,position,index,value\n");
    const Site start[] = {{"hook_embed", x, d, 0}, {"hook_pos_embed", w->W_pos, d, 0}};
    gather_forward(x, w->W_E, s->list, T, d);
    list_sites(s, r, NONE, start, 2);
    for (size_t l = 0; l < c->n_layers; l++) list_layer(s, r, l, x);
    float *normal = x, *h = normal + T * d, *inv_std = h + T * d, *logits = inv_std + T;
    if (c->normalization)
        layernorm_forward(h, normal, inv_std, s->run.final, w->ln_final_w, w->ln_final_b, T, d);
    else memcpy(h, s->run.final, T * d * sizeof *h);
    linear_forward(logits, NULL, h, w->W_U, w->b_U, T, d, V);
    const Site end[] = {
        {"ln_final.hook_scale", inv_std, 1, INVERSE},
        {"ln_final.hook_normalized", normal, d, 0},
        {"unembed.hook_in", h, d, 0},
        {"unembed.hook_out", logits, V, 0},
    };
    const size_t first = c->normalization ? 0 : 2;
    list_sites(s, r, NONE, end + first, 4 - first);
    free(x);
    return 1;
}

COMMAND(activations, ACTIVATIONS, .seed = 23, .kind = RUN_ALL_POSITIONS, .argument = "NUMBER...",
        .argument_is = "the list; without it, the first of the seed. In scores and patterns, index "
                       "is the key's position; a masked score is -inf. hook_normalized stands "
                       "before w and b",
        .summary = "every intermediate value of a list, as TransformerLens names it",
        .example = "activations 41 46 16 47 30 12 27");

/* ---- 13. Intervening: ablation, patching, attribution ---------------------------------------- */

/* One hook serves every intervention: where a target says so, values of the run under way are
 * replaced by zeros, or by those of `source`, another run over as many lists: the mean over its
 * lists, the next list's, the same list's. */
typedef struct {
    const Run *run, *source;
    ReplaceKind kind;
    const Target *targets;
    size_t n_targets;
} Intervention;

/* All values of a run at a target's site, layer and head: (rows, width). */
static const float *values_of(const Run *run, const Target *t) {
    const Config *c = &run->config;
    const LayerRun *layer = &run->layers[smaller(t->layer, c->n_layers - 1)];
    if (t->site == HOOK_RESIDUAL) return t->layer < c->n_layers ? layer->rows->x : run->final;
    if (t->site == HOOK_PATTERN) return layer->pattern + t->head * layer->n_queries * c->seq_len;
    if (t->site == HOOK_HEAD) return layer->z + t->head * layer->n_queries * c->d_head;
    return layer->mlp_out;
}

/* Which of those rows a list has at the target's position; NONE where that is not computed, since
 * it does not matter. */
static size_t row_of(const Run *run, const Target *t, size_t list) {
    const size_t L = run->config.n_layers, T = run->config.seq_len;
    const LayerRun *layer = &run->layers[smaller(t->layer, L - 1)];
    if (t->site == HOOK_RESIDUAL && t->layer < L)
        return layer->row[t->position * run->n_lists + list];
    if (t->position + layer->queries_per_list < T) return NONE;
    return (t->position + layer->queries_per_list - T) * run->n_lists + list;
}

/* Replaces values (rows, width) at one place, of all lists. */
static void replace_values(const Intervention *v, const Target *t, float *values, size_t width) {
    const size_t n = v->source->n_lists, shift = v->kind == REPLACE_RESAMPLE ? 1 : 0;
    const float *source = values_of(v->source, t);
    for (size_t j = 0; j < width && row_of(v->run, t, 0) != NONE; j++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += source[row_of(v->source, t, i) * width + j];
        for (size_t i = 0; i < n; i++) {
            float value = source[row_of(v->source, t, (i + shift) % n) * width + j];
            if (v->kind == REPLACE_ZERO) value = 0.0f;
            if (v->kind == REPLACE_MEAN) value = f32(sum / (double)n);
            values[row_of(v->run, t, i) * width + j] = value;
        }
    }
}

static void intervene(void *context, HookSite site, size_t layer, size_t head, float *values,
                      size_t rows, size_t width) {
    const Intervention *v = (const Intervention *)context;
    (void)rows;
    for (size_t i = 0; i < v->n_targets; i++) {
        const Target *t = &v->targets[i];
        Target here = {.site = site, .layer = layer, .head = head};
        if (t->site != site || t->layer != layer) continue;
        if (t->head != head && t->head != ALL_HEADS) continue;
        for (; here.position < v->run->config.seq_len; here.position++)
            if (t->position == here.position || t->position == ALL_POSITIONS)
                replace_values(v, &here, values, width);
    }
}

void run_intervention(const Model *model, Run *run, const Run *source, const uint32_t *lists,
                      ReplaceKind kind, const Target *targets, size_t n_targets) {
    Intervention v = {
        .run = run, .source = source, .kind = kind, .targets = targets, .n_targets = n_targets};
    const Hook hook = {.call = intervene, .context = &v};
    model_forward(model, run, lists, source->n_lists, &hook);
}

/* A run that is intervened in, beside the one that keeps what it computed. */
static int ensure_second_run(Session *s) {
    return s->second.memory ||
           run_create(&s->second, &s->model.config, s->run.capacity, s->run.kind, s->error);
}

/* -- ablation -- */

/* The heads of --head and the layers of --layer, or every layer, each at --positions: the targets
 * of one joint ablation, *n of them, or none if no option asks for any. */
static int parse_targets(const Session *s, Target *targets, size_t *n) {
    const size_t L = s->model.config.n_layers;
    const char *heads = s->opt.heads, *layers = s->opt.layers, *positions = s->opt.positions;
    const int mlp = s->opt.part == 1, everywhere = !*heads && !*layers && (*positions || mlp);
    Target t = {.site = HOOK_HEAD, .position = ALL_POSITIONS};
    size_t places = 0;
    if (mlp && !s->model.config.d_mlp) return usage(s->error, "--part mlp: this model has no MLP");
    for (; *heads; targets[places++] = t)
        if (!next_head(s, &heads, &t.layer, &t.head)) return 0;
    t.site = mlp ? HOOK_MLP : HOOK_HEAD;
    t.head = mlp ? 0 : ALL_HEADS;
    for (; *layers; targets[places++] = t)
        if (!next_index(&layers, ',', &t.layer) || t.layer >= L)
            return usage(s->error, "--layer is '%.40s', must be numbers below %zu", s->opt.layers,
                         L);
    for (t.layer = 0; everywhere && t.layer < L; t.layer++) targets[places++] = t;

    *n = places;
    for (size_t at = 0; *positions; at += places) {
        size_t position;
        if (!next_index(&positions, ',', &position) || position >= s->T)
            return usage(s->error, "--positions is '%.40s', must be numbers below %zu",
                         s->opt.positions, s->T);
        if (at + places > MAX_TARGETS) return usage(s->error, "more than %d targets", MAX_TARGETS);
        for (size_t i = 0; i < places; i++) {
            targets[at + i] = targets[i];
            targets[at + i].position = position;
        }
        *n = at + places;
    }
    return 1;
}

/* A row of the table, over the lists that s->run has just seen: all targets together. */
static void show_ablation(Session *s, Report *r, const Target *targets, size_t n, const char *layer,
                          const char *head, const char *positions) {
    static const char *const kinds[] = {"mean", "zero", "resample"};
    Evaluation e = {0};
    run_intervention(&s->model, &s->second, &s->run, s->lists, (ReplaceKind)s->opt.kind, targets,
                     n);
    evaluate_batch(&s->second, s->medians, &e);
    table_row(r, "%s %s %s %s %.3f%% %.5f %zu %zu", layer, head, positions,
              n ? kinds[s->opt.kind] : "-", e.accuracy, e.loss, e.alerts, e.lists);
}

/* "0,1,2" becomes "0 1 2": a CSV cell has no comma. */
static void commas_to_spaces(char to[LIST_SIZE], const char *from, const char *if_empty) {
    print_to(to, LIST_SIZE, "%s", *from ? from : if_empty);
    while ((to = strchr(to, ',')) != NULL) *to = ' ';
}

/* Ablates what --head, --layer, --part and --positions name, all together. */
static void ablate(Session *s, Report *r, const Target *targets, size_t n) {
    const Options *o = &s->opt;
    const int one_head = *o->heads && !strchr(o->heads, ',') && !*o->layers;
    char layers[LIST_SIZE], heads[LIST_SIZE], positions[LIST_SIZE];
    commas_to_spaces(heads, o->heads, o->part ? "mlp" : "attn");
    commas_to_spaces(layers, o->layers, *o->heads ? "-" : "all");
    commas_to_spaces(positions, o->positions, "all");
    if (one_head) {
        print_to(layers, sizeof layers, "%zu", targets->layer);
        print_to(heads, sizeof heads, "%zu", targets->head);
    }
    show_ablation(s, r, targets, n, layers, heads, positions);
}

/* Of each layer every head, attention as a whole, and the MLP; heads at every position, too: a row
 * for each, as if the options had asked for it. */
static void ablate_singly(Session *s, Report *r, Target *targets) {
    const size_t H = s->model.config.n_heads, parts = H + (s->model.config.d_mlp ? 2 : 1);
    const Options given = s->opt;
    Options *o = &s->opt;
    for (size_t i = 0; i < s->model.config.n_layers * parts; i++) {
        const size_t layer = i / parts, part = i % parts, n_positions = part < H ? s->T : 0;
        *o->heads = *o->layers = 0;
        o->part = part > H;
        if (part < H) print_to(o->heads, LIST_SIZE, "%zu.%zu", layer, part);
        else print_to(o->layers, LIST_SIZE, "%zu", layer);
        for (size_t at = 0; at <= n_positions; at++) {
            size_t n = 0;
            *o->positions = 0;
            if (at < n_positions) print_to(o->positions, LIST_SIZE, "%zu", at);
            parse_targets(s, targets, &n);
            ablate(s, r, targets, n);
        }
    }
    s->opt = given;
}

/* The targets given or, without any, each head at each position, each head, each layer. */
static int command_ablate(Session *s, Report *r) {
    static const char *const titles[] = {"their mean over the lists", "zero", "another list's"};
    Target *targets = s->targets;
    const size_t n_lists = smaller(s->n, s->run.capacity); /* the tour has more */
    size_t n = 0;
    if (!parse_targets(s, targets, &n) || !ensure_second_run(s)) return 0;
    model_forward(&s->model, &s->run, s->lists, n_lists, NULL);
    prose(r,
          "Values replaced by %s, over %zu list%s of seed %zu. An alert is a loss above 0.7.\n\n",
          titles[s->opt.kind], n_lists, plural(n_lists), s->seed);
    table_begin(r, "ablation", "layer,head,positions,kind,accuracy,loss,alerts,lists");
    if (r->kind == REPORT_TEXT) show_ablation(s, r, NULL, 0, "-", "-", "nothing");
    if (n) ablate(s, r, targets, n);
    else ablate_singly(s, r, targets);
    table_end(r);
    return 1;
}

COMMAND(ablate, ABLATE, .size = 200, .seed = 42, .batch = SIZE_MAX,
        .summary = "what breaks when activations are replaced",
        .example = "ablate --head 0.0 --positions 5,6 --kind zero");

/* -- direct logit attribution -- */

size_t attribution_terms(const Config *c) {
    return 4 + c->n_layers * (c->n_heads * c->seq_len + 2);
}

/* The last position's logit of a number is a sum over what stands in the residual stream: one more
 * term, from a vector (d_model) as ln_final would leave it. x (d_model) is scratch, or the
 * vector. */
static void add_term(Attribution *a, const Model *m, Term term, const float *vector, float *x) {
    scale_given(m, x, vector, 1, a->inv_std);
    for (size_t k = 0; k < 2; k++)
        term.logit[k] = dot_strided(x, m->weights.W_U + a->numbers[k], m->config.max_num,
                                    m->config.d_model);
    a->terms[a->n_terms++] = term;
}

/* What a layer's last query reads. */
static void attribute_layer(const Model *m, const Run *run, Attribution *a, Term term, float *x) {
    const Config *c = &m->config;
    const LayerRun *layer = &run->layers[term.layer];
    const LayerWeights *w = &m->weights.layers[term.layer];
    const size_t d = c->d_model, dh = c->d_head, T = c->seq_len;
    for (size_t i = 0; i < c->n_heads * T; i++) {
        const size_t h = i / T, t = i % T;
        const float *v = layer->rows->v + (h * layer->rows->n_rows + layer->row[t]) * dh;
        const float attention = layer->pattern[((h + 1) * layer->n_queries - 1) * T + t];
        linear_forward(x, NULL, v, w->W_O + h * dh * d, NULL, 1, dh, d);
        for (size_t j = 0; j < d; j++) x[j] = f32((double)x[j] * attention);
        add_term(a, m, (Term){.part = "head", .layer = term.layer, .head = h, .position = t}, x, x);
    }
    term.part = "b_O";
    add_term(a, m, term, w->b_O, x);
    term.part = "mlp";
    if (c->d_mlp) add_term(a, m, term, layer->mlp_out + (layer->n_queries - 1) * d, x);
}

/* Terms in the order in which they enter the stream. */
void attribute(const Model *m, const Run *run, Attribution *a, float *x) {
    const Weights *w = &m->weights;
    const size_t d = m->config.d_model, V = m->config.max_num, T = m->config.seq_len;
    const float *number = w->W_E + run->inputs->token[run->layers[0].row[T - 1]] * d;
    Term term = {.part = "embedding", .position = T - 1};
    a->inv_std = m->config.normalization ? run->final_inv_std[0] : 1.0f;
    a->n_terms = 0;
    add_term(a, m, term, number, x);
    term.part = "position";
    add_term(a, m, term, w->W_pos + (T - 1) * d, x);
    for (; term.layer < m->config.n_layers; term.layer++) attribute_layer(m, run, a, term, x);
    Term *ln_final = &a->terms[a->n_terms], *bias = ln_final + 1;
    *ln_final = *bias = term;
    ln_final->part = "ln_final.b";
    bias->part = "b_U";
    a->n_terms += 2;
    for (size_t k = 0; k < 2; k++) {
        const size_t v = a->numbers[k];
        if (w->ln_final_b) ln_final->logit[k] = dot_strided(w->ln_final_b, w->W_U + v, V, d);
        bias->logit[k] = w->b_U[v];
        a->sum[k] = 0;
        for (size_t i = 0; i < a->n_terms; i++) a->sum[k] += a->terms[i].logit[k];
    }
}

/* The number with the greatest logit but for one. */
static size_t best_other(const float *logits, size_t n, size_t number) {
    size_t best = number == 0;
    for (size_t v = best; v < n; v++)
        if (v != number && logits[v] > logits[best]) best = v;
    return best;
}

/* Of s->list: the logit of its median, against that of the best other number. */
static int command_attribute(Session *s, Report *r) {
    const Config *c = &s->model.config;
    const float *logits = s->run.logits;
    const size_t room = attribution_terms(c);
    if (!run_given_list(s, 1)) return 0;
    const size_t median = s->median[0], other = best_other(logits, s->V, median);
    Attribution a = {.numbers = {median, other}};
    const double bytes = (double)room * (double)sizeof(Term) + (double)c->d_model * sizeof(float);
    a.terms = (Term *)allocate(bytes, "the terms", s->error);
    if (!a.terms) return 0;
    attribute(&s->model, &s->run, &a, (float *)(a.terms + room));
    prose(r,
          "What makes the logit of the median, %zu, against that of the best other number, %zu. "
          "List: %s\n\n",
          median, other, list_text(s, s->list));
    table_begin(r, "attribution", "term,layer,head,position,number,logit,against,margin");
    for (const Term *t = a.terms; t < a.terms + a.n_terms; t++)
        table_row(r, "%s %zu %zu %zu %zu %.4f %.4f %+.4f|", t->part, t->layer, t->head, t->position,
                  (size_t)s->list[t->position], t->logit[0], t->logit[1],
                  t->logit[0] - t->logit[1]);
    table_end(r);
    prose(r, "\nThe terms add up to %.4f against %.4f; the network's own logits are %.4f and %.4f.",
          a.sum[0], a.sum[1], logits[median], logits[other]);
    free(a.terms);
    return 1;
}

COMMAND(attribute, ATTRIBUTE, .seed = 23, .argument = "NUMBER...",
        .argument_is = "the list; without it, the first of the seed",
        .summary = "what makes the logit of one list's median",
        .example = "attribute 41 46 16 47 30 12 27");

/* -- activation patching -- */

/* The second list: given behind the first, or the first with its median moved by half the range. */
static int other_list(Session *s) {
    const size_t T = s->T;
    uint32_t *other = s->list + T;
    size_t t = 0, differ = 0;
    if (s->n_words == 0) {
        memcpy(other, s->list, T * sizeof *other);
        while (other[t] != s->median[0]) t++;
        other[t] = (uint32_t)((other[t] + s->V / 2) % s->V);
    }
    for (t = 0; t < T; t++) differ += s->list[t] != other[t];
    s->median[1] = median_of(other, T);
    return differ == 1 ||
           usage(s->error, "the two lists must differ in one number; they differ in %zu", differ);
}

/* By how much one number's logit exceeds another's. */
static double margin(const Run *run, const size_t numbers[2]) {
    return (double)run->logits[numbers[0]] - (double)run->logits[numbers[1]];
}

/* Puts the clean value at one place, of s->run, into the corrupted run: how much of the clean
 * margin comes back? */
static void show_patch(Session *s, Report *r, const Target *t, const size_t numbers[2],
                       double corrupted) {
    static const char *const names[] = {
        [HOOK_RESIDUAL] = "residual",
        [HOOK_PATTERN] = "pattern",
        [HOOK_HEAD] = "head",
        [HOOK_MLP] = "mlp",
    };
    const double clean = margin(&s->run, numbers), whole = clean - corrupted;
    char position[24];
    index_text(position, t->position, s->T, "all");
    run_intervention(&s->model, &s->second, &s->run, s->list + s->T, REPLACE_SAME, t, 1);
    const double patched = margin(&s->second, numbers);
    table_row(r, "%s %zu %zu %s %.4f %.4f %.4f %.3f|", names[t->site], t->layer, t->head, position,
              clean, corrupted, patched,
              whole > 0 || whole < 0 ? (patched - corrupted) / whole : 0.0);
}

/* The clean list is run in s->run, the corrupted one in s->second; what counts is the margin of one
 * number's logit over another's. */
static int command_patch(Session *s, Report *r) {
    const Config *c = &s->model.config;
    if (!run_given_list(s, 2) || !other_list(s) || !ensure_second_run(s)) return 0;
    model_forward(&s->model, &s->second, s->list + s->T, 1, NULL);
    size_t numbers[2] = {s->median[0], s->median[1]};
    if (numbers[0] == numbers[1]) numbers[1] = best_other(s->run.logits, s->V, numbers[0]);
    const double corrupted = margin(&s->second, numbers);
    prose(r, "clean      %s  median %u\n", list_text(s, s->list), (unsigned)s->median[0]);
    prose(r, "corrupted  %s  median %u\n\n", list_text(s, s->list + s->T), (unsigned)s->median[1]);
    prose(r,
          "Margins are logit(%zu) - logit(%zu). One clean value is put into the corrupted run. "
          "Restored 1: the clean margin is back; 0: nothing of it.\n\n",
          numbers[0], numbers[1]);
    table_begin(r, "patching", "site,layer,head,position,clean,corrupted,patched,restored");
    r->bar_limit = 1;
    Target t = {.site = HOOK_RESIDUAL, .position = ALL_POSITIONS};
    show_patch(s, r, &t, numbers, corrupted);
    for (; t.layer < c->n_layers; t.layer++)
        for (int site = HOOK_RESIDUAL; site <= (c->d_mlp ? HOOK_MLP : HOOK_HEAD); site++) {
            const int per_head = site == HOOK_PATTERN || site == HOOK_HEAD;
            const int last_only = site != HOOK_RESIDUAL && t.layer + 1 == c->n_layers;
            t.site = (HookSite)site;
            for (t.head = 0; t.head < (per_head ? c->n_heads : 1); t.head++)
                for (t.position = last_only ? s->T - 1 : 0; t.position < s->T; t.position++)
                    show_patch(s, r, &t, numbers, corrupted);
        }
    table_end(r);
    return 1;
}

COMMAND(patch, PATCH, .seed = 23, .argument = "NUMBER...",
        .argument_is = "a clean list, then one that differs in one number",
        .summary = "which value carries the answer from one list to another",
        .example = "patch 41 46 16 47 30 12 27 41 46 16 47 5 12 27");
/* ---- 14. The explanation --------------------------------------------------------------------- */

/* The median of a list is the m with the smallest sum_i |x_i - m|. The claim is that the network
 * computes that sum, one number after the other:
 *
 *   logit(m) = ratio * sum_t table_t(x_t, m) + fixed(m)      table_t(x, m) = -a |x - m|
 *
 * the latter up to terms that are the same for all m, which softmax does not see. table_t is the
 * mean attention to position t times the effective OV circuit there, all heads together, and an
 * even share of the biases; that of the last position also holds what its number adds through the
 * residual stream. ratio is the list's own ln_final scale over the mean. In other words: at the
 * step from m to m+1 each number votes up if it is greater than m, else down.
 *
 * Each section measures one thing and prints it. Most end in a claim: a figure that must exceed a
 * limit. Beside it stands what networks reach that know 50 numbers and lists of 7:
 *
 *   default    by the default recipe, ten seeds, the worst; they are never wrong
 *   short      by 3,000 steps of it, five seeds, the worst; the answers are good
 *   original   by the original's recipe, two, the better one; the answers are fair
 *   mean       trained to name the mean, and judged by that
 *   rank       trained to name the third smallest number, and judged by that
 *   untrained  two seeds, the better one
 *
 * Limits lie below `short`, which must pass, and above what is to fail by this claim. No other
 * network passes all claims, nor do those that test_median.c builds with known mechanisms.
 * `construct`'s networks reach 1 everywhere. */

enum { MAX_CLAIMS = 16 };

typedef struct {
    const char *text;
    double value, above;
} Claim;

/* Lists: random; with each median equally frequent; such that certify knows the answer is wrong. */
enum { UNIFORM, BALANCED, WRONG };

/* The rungs of a ladder, from the network down to the claim. Each predicts a list's logits: */
enum {
    NETWORK,    /* by the network, in which nothing is replaced */
    FROZEN,     /* by its forward pass, with each attention pattern replaced by its mean */
    SUMS,       /* by ratio * sum_t table_t(x_t, m) + fixed(m), which replaces the pass */
    MEAN_SCALE, /* by rung 2, with ratio replaced by 1 */
    SIDES,      /* by rung 2, with each vote replaced by the mean vote on its side of the step */
    EXCHANGED,  /* by rung 2, with each vote replaced by another number's on its side, at random */
    NEGATED,    /* by rung 2, with each vote replaced by one as far on the other side of the mean */
    FITTED,     /* by ratio * (the sum of a S + c over steps below m), which replaces all tables */
    MEDIAN,     /* by ratio * -a sum_t |x_t - m|: rung 7 with c = 0 and one a for all steps */
    RUNGS,
    TABLES = RUNGS - MEAN_SCALE /* sets of tables: rungs 2 and 3 share one */
};

/* What the sections share. */
typedef struct {
    const Model *model;
    Report *report;
    Run run;
    size_t V, T;
    size_t n;               /* lists of each kind */
    const uint32_t *sample; /* (n, T): uniform lists, from which means are taken */
    Mt19937 mt;             /* for other lists */
    AttentionStats attention;
    Certificate known;
    float scale, unit;      /* ln_final's, the mean; a, of the heads at a position, the mean */
    float *tables;          /* (TABLES, T, V, V): in logits, at the mean scale */
    float *ov, *centered;   /* (V, V): the mean of the heads' tables; the same, centred */
    float *ideal, *work;    /* (V, V): -|x - m|, centred; anything */
    float *scratch;         /* circuit_scratch(): anything */
    float *fixed;           /* (V) */
    float *a, *c;           /* (V): rise(m) = a(m) S(m) + c(m) */
    Moments *rises;         /* (V, 2) */
    float *network, *ratio; /* (batch, V): its logits at the mean scale, centred; (batch) */
    uint32_t *lists, *medians, *answers; /* (batch, T), (batch), (batch): the network's */
    uint32_t *order;        /* (2, V) */
    Claim claims[MAX_CLAIMS];
    size_t n_claims;
} Explainer;

static void lay_out_explainer(Layout *m, void *owner) {
    Explainer *x = (Explainer *)owner;
    const size_t V = x->V, T = x->T, batch = x->run.capacity;
    x->tables = lay_floats(m, TABLES * T, V, V);
    x->ov = lay_floats(m, V, V, 1);
    x->centered = lay_floats(m, V, V, 1);
    x->ideal = lay_floats(m, V, V, 1);
    x->work = lay_floats(m, V, V, 1);
    x->scratch = lay_floats(m, circuit_scratch(&x->model->config), 1, 1);
    x->fixed = lay_floats(m, V, 1, 1);
    x->a = lay_floats(m, V, 1, 1);
    x->c = lay_floats(m, V, 1, 1);
    x->rises = (Moments *)lay_out(m, (double)V, 2 * sizeof *x->rises);
    x->network = lay_floats(m, batch, V, 1);
    x->ratio = lay_floats(m, batch, 1, 1);
    x->lists = lay_words(m, batch, T);
    x->medians = lay_words(m, batch, 1);
    x->answers = lay_words(m, batch, 1);
    x->order = lay_words(m, 2, V);
}

/* A value that is not a number exceeds nothing. */
static void claim(Explainer *x, const char *text, double value, double above) {
    x->claims[x->n_claims++] = (Claim){.text = text, .value = value, .above = above};
}

/* The logits of list i in the run, brought to the mean scale and centred. */
static void at_mean_scale(const Explainer *x, size_t i, float *to) {
    const float *logits = x->run.logits + i * x->V;
    for (size_t m = 0; m < x->V; m++) to[m] = f32(logits[m] / x->ratio[i]);
    center(to, x->V, 1);
}

/* Runs the network on lists `at`, at + 1, ... of n of this kind, as many as a batch holds. */
static void run_network(Explainer *x, int kind, size_t at, size_t n) {
    const size_t V = x->V, T = x->T, n_lists = smaller(n - at, x->run.capacity);
    const Mixture mix = {.max_num = V, .seq_len = T, .balanced = kind == BALANCED ? 1.0f : 0.0f};
    if (kind != WRONG) make_training_lists(&x->mt, x->lists, x->medians, n_lists, &mix);
    for (size_t i = 0; kind == WRONG && i < n_lists; i++) {
        const Sighting *seen = &x->known.worst[at + i];
        memcpy(x->lists + i * T, seen->list, T * sizeof *seen->list);
        x->medians[i] = (uint32_t)seen->median;
    }
    model_forward(x->model, &x->run, x->lists, n_lists, NULL);
    for (size_t i = 0; i < n_lists; i++) {
        const float scale = x->model->config.normalization ? x->run.final_inv_std[i] : 1;
        x->ratio[i] = f32(scale / x->scale);
        x->answers[i] = (uint32_t)argmax(x->run.logits + i * V, V);
        at_mean_scale(x, i, x->network + i * V);
    }
}

/* -- where it looks -- */

static void show_looks(Explainer *x) {
    Report *r = x->report;
    const Moments *entropy = &x->attention.entropy;
    prose(r, "\n1. Where does the last position look?\n\n");
    observe_attention(&x->attention, x->model, &x->run, x->sample, x->n);
    prose(r, "Its attention over %zu lists; even attention would be %.3f everywhere.\n\n", x->n,
          1.0 / (double)x->T);
    show_attention(r, &x->attention);
    say(r, "\n");
    table_begin(r, "entropy", "mean,deviation");
    table_row(r, "%.4f %.4f", mean_of(entropy), deviation_of(entropy));
    table_end(r);
    prose(r, "(Its entropy, as a part of the greatest possible: 1 is even attention.)");
}

/* -- what each number says -- */

static void center_both(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) center(x + i * n, n, 1);
    for (size_t j = 0; j < n; j++) center(x + j, n, n);
}

/* Of two centred arrays; 0 if one is all 0. */
static double correlation(const float *x, const float *y, size_t n) {
    const double own = dot_strided(x, x, 1, n), other = dot_strided(y, y, 1, n);
    return own > 0 && other > 0 ? dot_strided(x, y, 1, n) / (sqrt(own) * sqrt(other)) : 0.0;
}

/* a in table = -a |x - m|, by least squares, both centred. (If one is, it is as if both were.) */
static float weight_of(const Explainer *x, const float *table) {
    const size_t n = x->V * x->V;
    return f32(dot_strided(table, x->ideal, 1, n) / dot_strided(x->ideal, x->ideal, 1, n));
}

/* The heads' part of the tables, and ov. Heads of later layers see of a number what the residual
 * stream brings them unchanged. */
static void add_heads(Explainer *x) {
    const size_t n = x->V * x->V, T = x->T, H = x->model->config.n_heads;
    for (size_t i = 0; i < x->attention.heads * T; i++) {
        const size_t head = i / T, t = i % T;
        const Circuit which = {
            .kind = CIRCUIT_OV,
            .layer = head / H,
            .head = head % H,
            .key_pos = t,
            .scale = x->scale,
        };
        const float attention = f32(mean_of(last_position(&x->attention, head) + t));
        circuit_table(x->model, &which, x->work, x->scratch);
        for (size_t j = 0; j < n; j++) {
            const float said = f32((double)x->work[j] * attention);
            float *entry = &x->tables[t * n + j];
            *entry = f32(*entry + said);
            x->ov[j] = f32(x->ov[j] + said / (double)T);
        }
    }
}

/* The rest of the tables, and fixed. Returns the weight of what the last number brings without any
 * head. */
static float add_rest(Explainer *x) {
    const Weights *w = &x->model->weights;
    const size_t V = x->V, T = x->T, L = x->model->config.n_layers, d = x->model->config.d_model;
    float *vectors = x->scratch, *bias = x->fixed, *last = x->tables + (T - 1) * V * V;
    memset(vectors, 0, d * sizeof *vectors);
    for (const LayerWeights *layer = w->layers; layer < w->layers + L; layer++) {
        add_to(vectors, layer->b_O, d);
        if (layer->b_out) add_to(vectors, layer->b_out, d);
    }
    direct_logits(x->model, bias, vectors, 1, x->scale);
    for (size_t i = 0; i < T * V * V; i++)
        x->tables[i] = f32(x->tables[i] + bias[i % V] / (double)T);
    memcpy(x->fixed, w->b_U, V * sizeof *x->fixed);
    if (w->ln_final_b) linear_forward(x->fixed, x->fixed, w->ln_final_b, w->W_U, NULL, 1, d, V);
    add_position(vectors, w->W_E, w->W_pos + (T - 1) * d, V, d);
    direct_logits(x->model, x->work, vectors, V, x->scale);
    add_to(last, x->work, V * V);
    return weight_of(x, x->work);
}

/* -|x - m|^p, centred. */
static void power_table(float *table, size_t V, float p) {
    for (size_t i = 0; i < V * V; i++) {
        const float distance = f32(fabs((double)(i / V) - (double)(i % V)));
        table[i] = distance > 0 ? -exp_f32(f32((double)p * log_f32(distance))) : 0.0f;
    }
    center_both(table, V);
}

/* Correlation alone tells -|x - m| badly from -(x - m)^2, the circuit of the mean: they correlate
 * by 0.95 with each other. So two powers compete for what the other leaves unexplained. */
static void show_powers(Explainer *x) {
    Report *r = x->report;
    float fit[13] = {0}; /* of p = 1/4, 2/4, ... */
    size_t best = 0;
    say(r, "\n");
    table_begin(r, "powers", "power,correlation");
    for (size_t p = 1; p < 13; p++) {
        power_table(x->work, x->V, (float)p / 4);
        fit[p] = f32(correlation(x->centered, x->work, x->V * x->V));
        table_row(r, "%.2f %.4f|", (double)p / 4, fit[p]);
        if (fit[p] > fit[best]) best = p;
    }
    table_end(r);
    prose(r, "\nCorrelation with -|x - m|^p, both centred. Of these p, %.2f is best.\n\n",
          (double)best / 4);
    const double left = 1 - (double)fit[4] * fit[4], left_by_square = 1 - (double)fit[8] * fit[8];
    /* default 0.998, short 0.997, original 0.950, mean 0.967, rank 0.990, untrained 0.00 */
    claim(x, "A number says -|x - m| to every m: correlation", fit[4], 0.9);
    /* default 0.93, short 0.92, original 0.41, mean -0.03, rank 0.75, untrained 0.00; of 2
     * numbers, no one can tell */
    if (x->V > 2)
        claim(x, "And not -(x - m)^2: what this leaves less what that leaves / their sum",
              (left_by_square - left) / (left_by_square + left), 1.0 / 3);
}

/* cos(pi j (i + 1/2) / n). */
static float cosine_mode(size_t j, size_t i, size_t n) {
    const double turns = ((double)i + 0.5) * (double)j / (double)n;
    const double phase = turns - 2.0 * floor(turns / 2.0);
    return cos_pi(f32(phase > 1.0 ? 2.0 - phase : phase));
}

/* b_j = 1 / (V sin^2(pi j / 2V)), in -|x - m| = sum_j b_j cosine_mode(j, x) cosine_mode(j, m) over
 * j = 1 .. V-1, which holds when rows and columns are centred. So these are its modes, and its
 * singular values fall like b_j. */
static float mode_weight(size_t j, size_t V) {
    const float sine = cos_pi(f32(0.5 - (double)j / (2 * (double)V)));
    return f32(1 / ((double)V * ((double)sine * sine)));
}

static void show_modes(Explainer *x) {
    Report *r = x->report;
    const size_t V = x->V;
    float *values = x->scratch, *mode = values + V, *columns = x->work;
    for (size_t i = 0; i < V * V; i++) columns[i % V * V + i / V] = x->centered[i];
    singular_values(values, columns, V, V); /* makes of columns the left singular vectors */
    prose(r, "Singular values, as parts of the first, and how far the singular vectors are cosine "
             "modes, cos(pi mode (x + 1/2) / %zu):\n\n", V);
    table_begin(r, "modes", "mode,singular_value,ideal,overlap");
    for (size_t j = 1; j <= smaller(8, V - 1); j++) {
        const double first = values[0] > 0 ? values[0] : 1;
        for (size_t i = 0; i < V; i++) mode[i] = cosine_mode(j, i, V);
        table_row(r, "%zu %.4f %.4f %.3f|", j, values[j - 1] / first,
                  mode_weight(j, V) / (double)mode_weight(1, V),
                  fabs(correlation(columns + (j - 1) * V, mode, V)));
    }
    table_end(r);
}

static void show_ov(Explainer *x) {
    Report *r = x->report;
    const size_t V = x->V;
    x->scale = mean_scale(x->model, &x->run, x->sample, x->n);
    power_table(x->ideal, V, 1.0f);
    add_heads(x);
    memcpy(x->centered, x->ov, V * V * sizeof *x->ov);
    center_both(x->centered, V);
    x->unit = weight_of(x, x->ov);
    Map map = {
        .values = x->centered,
        .rows = V,
        .cols = V,
        .row_title = "number",
        .col_title = "its effect on the logit of",
    };
    for (size_t i = 0; i < V * V; i++) {
        x->work[i] = f32((double)x->ideal[i] * fabs((double)x->unit));
        map.limit = max_double(map.limit, fabs(x->centered[i]));
        map.limit = max_double(map.limit, fabs(x->work[i]));
    }
    prose(r, "\n2. What does a number say?\n\n");
    prose(r, "Mean attention x effective OV circuit: what a number (row) adds to each logit "
             "(column); rows and columns are centred.\n\n");
    draw_map(r, &map);
    map.values = x->work;
    prose(r, "\nAnd -|x - m| at the same scale, which is what the network should say if it looks "
             "for the m with the smallest sum of |x - m|:\n\n");
    draw_map(r, &map);
    show_powers(x);
    show_modes(x);
}

/* -- does every number count alike? -- */

static void show_weights(Explainer *x) {
    Report *r = x->report;
    const size_t T = x->T, n = x->V * x->V;
    const float direct = add_rest(x);
    float weights[MAX_SEQ_LEN];
    double mean = 0, lead = 0; /* lead: of the lightest majority over the others */
    prose(r, "\n3. Does every number count alike?\n\n");
    for (size_t t = 0; t < T; t++) {
        weights[t] = weight_of(x, x->tables + t * n);
        mean += weights[t] / (double)T;
    }
    table_begin(r, "weights", "position,weight,relative");
    for (size_t t = 0; t < T; t++) {
        size_t lighter = 0;
        for (size_t s = 0; s < T; s++)
            lighter += weights[s] < weights[t] || (weights[s] == weights[t] && s < t);
        lead += lighter <= T / 2 ? weights[t] : -weights[t];
        table_row(r, "%zu %.4f %.4f", t, weights[t], mean > 0 ? weights[t] / mean : 0.0);
    }
    table_end(r);
    prose(r, "\nWeight: a in -a |x - m|, in logits. Of the last number's, %.4f comes through the "
             "residual stream, without any head.", direct);
    /* default 0.95, short 0.86, original 0.88, mean 0.95, rank 0.98, untrained -14; 1 if all count
     * alike, below 0 if three outweigh four */
    claim(x, "No minority outweighs a majority: lead of the lightest majority / mean weight",
          mean > 0 ? lead / mean : 0.0, 0);
}

/* -- votes -- */

/* A number's vote at the step from m to m+1; row is its row in a table. */
static float vote_of(const float *row, size_t m) {
    return f32(row[m + 1] - row[m]);
}

/* The votes at a step of the numbers up to m, votes[0], of those above, votes[1], and of all. */
static void observe_votes(Moments votes[3], const float *table, size_t V, size_t m) {
    memset(votes, 0, 3 * sizeof *votes);
    for (size_t i = 0; i < V; i++) {
        const float vote = vote_of(table + i * V, m);
        observe(&votes[i > m], vote);
        observe(&votes[2], vote);
    }
}

/* How much more a number above has to say than one below. */
static double gap_of(const Moments votes[3]) { return mean_of(&votes[1]) - mean_of(&votes[0]); }

/* R^2 of the votes' fit by two numbers, the means of both sides. */
static double side_fit(const Moments votes[3]) {
    const double below = votes[0].n / votes[2].n, above = votes[1].n / votes[2].n;
    const double deviation = deviation_of(&votes[2]);
    const double gap = deviation > 0 ? gap_of(votes) / deviation : 0.0;
    return min_double(below * above * gap * gap, 1);
}

/* If k+1 of the 2k+1 numbers lie above m, the logits must rise from m to m+1; if k, fall. By how
 * many votes do they at least, whatever the numbers are? A network where this is above 0 for
 * every m is right for every list. A vote is half the difference of the sides' means in the first
 * of the n tables. bias (V), what each number adds besides, may be NULL. */
static double step_slack(const float *tables, size_t n, const float *bias, size_t V, size_t T,
                         size_t m) {
    const double k = (double)(T / 2), bias_votes = bias ? (double)T * vote_of(bias, m) : 0;
    double slack = INFINITY;
    Moments sides[3];
    for (size_t up = 0; up < 2; up++) { /* which side the majority is on */
        float least[2] = {INFINITY, INFINITY};
        for (size_t i = 0; i < n * V; i++) {
            const float vote = vote_of(tables + i * V, m), wanted = up ? vote : -vote;
            if (wanted < least[i % V > m]) least[i % V > m] = wanted;
        }
        const double votes = (double)least[up] * (k + 1) + (double)least[!up] * k;
        slack = min_double(up ? votes + bias_votes : votes - bias_votes, slack);
    }
    observe_votes(sides, tables, V, m);
    const double unit = fabs(gap_of(sides)) / 2;
    return unit > 0 ? slack / unit : 0.0;
}

/* a(m) and c(m) by least squares over the lists where the decision is close: S(m), how many more
 * numbers lie above the step from m to m+1 than below, is 1 or -1. The logits are the network's
 * own, however it comes by them. */
static void fit_rises(Explainer *x) {
    const size_t V = x->V, T = x->T;
    for (size_t at = 0; at < x->n; at += x->run.n_lists) {
        run_network(x, BALANCED, at, x->n);
        for (size_t i = 0; i < x->run.n_lists * (V - 1); i++) {
            const size_t list = i / (V - 1), m = i % (V - 1);
            size_t above = 0;
            for (size_t t = 0; t < T; t++) above += x->lists[list * T + t] > m;
            if (above == T / 2 || above == T / 2 + 1)
                observe(&x->rises[2 * m + above - T / 2], vote_of(x->network + list * V, m));
        }
    }
    for (size_t m = 0; m + 1 < V; m++) {
        const double down = mean_of(&x->rises[2 * m]), up = mean_of(&x->rises[2 * m + 1]);
        x->a[m] = f32((up - down) / 2);
        x->c[m] = f32((up + down) / 2);
    }
}

static void show_votes(Explainer *x) {
    Report *r = x->report;
    const size_t V = x->V, every = r->kind == REPORT_TEXT && V > 24 ? V / 12 : 1;
    double fits = 0, least = HUGE_VAL, most = -HUGE_VAL;
    size_t balanced = 0, certain = 0;
    Moments votes[3];
    prose(r, "\n4. Votes\n\n");
    prose(r, "logit(m+1) - logit(m) as a function of a number: its vote for going up from m, or "
             "not.");
    for (size_t i = 1; i <= 3; i++) {
        const size_t m = smaller(V - 2, i * V / 4);
        for (size_t j = 0; j < V; j++) x->work[j] = vote_of(x->ov + j * V, m);
        prose(r, "\nm = %zu:\n\n", m);
        draw_curve(r, x->work, V, "number");
    }
    prose(r, "\nOver a list, the logits rise by a(m) S(m) + c(m), where S(m), an odd number, says "
             "how many more numbers lie above the step than below. They climb up to the median and "
             "then fall if -1 < c/a < 1. (For its neighbours in rank, c/a is 2 or -2.) R2: how far "
             "votes on a side are alike. Slack: how many votes a majority of one has for certain, "
             "whatever the numbers are.\n\n");
    fit_rises(x);
    table_begin(r, "votes", "m,step,offset,R2,slack");
    for (size_t m = 0; m + 1 < V; m++) {
        const double a = x->a[m], offset = a > 0 || a < 0 ? x->c[m] / a : 0.0;
        observe_votes(votes, x->ov, V, m);
        const double fit = side_fit(votes);
        const double slack = step_slack(x->tables, x->T, NULL, V, x->T, m);
        if (m % every == 0) table_row(r, "%zu %.4f %.3f %.3f %.3f", m, a, offset, fit, slack);
        fits += fit / (double)(V - 1);
        least = min_double(offset, least);
        most = max_double(most, offset);
        balanced += a > 0 && fabs(offset) < 1;
        certain += slack > 0;
    }
    table_end(r);
    prose(r,
          "\nc/a from %.3f to %.3f; mean R2 %.3f. Slack above 0 at every step would prove rung 2 "
          "right for every list, but for the biases; it is above 0 at %zu of %zu.",
          least, most, fits, certain, V - 1);
    /* default 1, short 1, original 0.86, mean 0.27, rank 0, untrained 0.04; claimed of all steps */
    claim(x, "Votes balance at the median: steps with a > 0 and -1 < c/a < 1 / all steps",
          (double)balanced / (double)(V - 1), 1 - 0.5 / (double)(V - 1));
}

/* -- the ladder -- */

/* What a rung predicts, counted over lists. */
typedef struct {
    size_t right, alike, repeated; /* of all; like the network; like it where it is wrong */
    double squares, off;           /* of the network's logits, and by how much these differ */
} Rung;

/* A rung's name, and the claim that its figure of one kind exceeds a limit: at worst, on uniform
 * and on balanced lists. */
enum { RIGHT, ALIKE, R2, FIGURES };
static const struct {
    const char *name, *claim;
    int figure;
    double above;
} ladder[RUNGS] = {
    /* default 1, short 0.977, original 0.85, mean 0.94, rank 0.996, untrained 0.02 */
    {"the network", "It finds medians: right answers", RIGHT, 0.9},
    {"attention its mean", NULL, 0, 0},
    /* default 0.999, short 0.991, original 0.988, mean 1.00, rank 0.92, untrained 0.84; 0.00
     * where an MLP does the work */
    {"sum of tables", "Its logits are sums over the numbers: R2 of rung 2", R2, 0.9},
    /* default 0.999, short 0.913, original 0.92, mean 0.13, rank 0.46, untrained 0.58 */
    {"ln_final's scale its mean", "A sum at one scale answers as it does: rung 3", ALIKE, 0.8},
    /* default 1, short 0.968, original 0.32, mean 0.31, rank 0.36, untrained 0.20 */
    {"(2) votes their side's mean", "Also where all numbers on a side vote alike: rung 4", ALIKE,
     0.8},
    {"(2) deviations exchanged", NULL, 0, 0},
    {"(2) deviations negated", NULL, 0, 0},
    /* default 1, short 0.977, original 0.88, mean 0.13, rank 0.996, untrained 0.22 */
    {"a(m) S(m) + c(m)", "Also by a(m) S(m) + c(m): rung 7", ALIKE, 0.9},
    /* default 0.994, short 0.982, original 0.72, mean 0.66 (built by hand 0.90), rank 0.79,
     * untrained 0.00 */
    {"median: -a sum |x - m|", "Its logits are -a sum |x - m|: R2 of rung 8", R2, 0.95},
};

static void freeze_attention(void *context, HookSite site, size_t layer, size_t head, float *values,
                             size_t rows, size_t width) {
    const Explainer *x = (const Explainer *)context;
    const size_t n = x->run.n_lists;
    if (site != HOOK_PATTERN) return;
    const Moments *last = last_position(&x->attention, layer * x->run.config.n_heads + head);
    const Moments *first = last + width - rows / n * width; /* of the first position that asks */
    for (size_t i = 0; i < rows * width; i++)
        values[i] = f32(mean_of(&first[i / width / n * width + i % width]));
}

/* The tables of the rungs from SIDES on, step by step. Three of them are causal scrubbing: are a
 * vote's deviations from its side's mean noise, or does the answer depend on them? */
static void make_rungs(Explainer *x) {
    const size_t V = x->V, T = x->T;
    uint32_t *from = x->order, *words = x->order + V;
    for (size_t m = 0; m + 1 < V; m++) {
        const float c = f32(x->c[m] / (double)T);
        Moments side[3];
        for (size_t i = 0; i < V; i++) from[i] = (uint32_t)i;
        mt_fill(&x->mt, words, V);
        shuffle(from, m + 1, words);
        shuffle(from + m + 1, V - m - 1, words + m + 1);
        for (size_t i = 0; i < T * V; i++) { /* the rows of all positions' tables */
            const float *table = x->tables + i / V * V * V;
            const size_t number = i % V, above = number > m;
            const double up = above ? 1 : -1;
            if (number == 0) observe_votes(side, table, V, m);
            const double mean = f32(mean_of(&side[above]));
            const double votes[TABLES - 1] = {
                mean,
                vote_of(table + from[number] * V, m),
                2 * mean - vote_of(table + number * V, m),
                up * x->a[m] + c,
                up * x->unit,
            };
            for (size_t k = 1; k < TABLES; k++) {
                float *row = x->tables + (k * T * V + i) * V;
                row[m + 1] = f32(row[m] + votes[k - 1]);
            }
        }
    }
}

/* The logits that a rung from SUMS on predicts for list i of the batch. */
static void sum_tables(const Explainer *x, size_t rung, size_t i, float *logits) {
    const size_t V = x->V, T = x->T, set = rung > MEAN_SCALE ? rung - MEAN_SCALE : 0;
    const float ratio = rung == MEAN_SCALE ? 1 : x->ratio[i];
    for (size_t m = 0; m < V; m++) {
        const float *column = x->tables + set * T * V * V + m;
        double sum = 0;
        for (size_t t = 0; t < T; t++) sum += column[(t * V + x->lists[i * T + t]) * V];
        logits[m] = f32((double)f32(sum) * ratio + (rung < FITTED ? x->fixed[m] : 0));
    }
}

/* Compares what a rung predicts for the batch with the network's logits. */
static void note_rung(Explainer *x, size_t index, Rung *rung) {
    const size_t V = x->V;
    for (size_t i = 0; i < x->run.n_lists; i++) {
        const float *network = x->network + i * V;
        float *logits = x->run.logits + i * V;
        if (index >= SUMS) sum_tables(x, index, i, logits);
        const size_t guess = argmax(logits, V);
        at_mean_scale(x, i, logits);
        for (size_t m = 0; m < V; m++) logits[m] = f32(logits[m] - network[m]);
        rung->squares += dot_strided(network, network, 1, V);
        rung->off += dot_strided(logits, logits, 1, V);
        rung->right += guess == x->medians[i];
        rung->alike += guess == x->answers[i];
        rung->repeated += guess == x->answers[i] && guess != x->medians[i];
    }
}

/* worst: of each rung, the figure that its claim is about; the lesser one, if there are two. */
static void show_rungs(Explainer *x, int kind, size_t n, double *worst) {
    static const char *const kinds[] = {"uniform", "balanced", "wrong"};
    const Hook hook = {.call = freeze_attention, .context = x};
    Rung rungs[RUNGS] = {{0}};
    for (size_t at = 0; at < n; at += x->run.n_lists) {
        run_network(x, kind, at, n);
        for (size_t i = 0; i < RUNGS; i++) {
            if (i == FROZEN) model_forward(x->model, &x->run, x->lists, x->run.n_lists, &hook);
            note_rung(x, i, &rungs[i]);
        }
    }
    const size_t mistakes = n - rungs[NETWORK].right;
    for (size_t i = 0; i < RUNGS; i++) {
        const Rung *rung = &rungs[i];
        const double figures[] = {
            (double)rung->right / (double)n,
            (double)rung->alike / (double)n,
            rung->squares > 0 ? 1 - rung->off / rung->squares : 0.0,
        };
        char repeated[24] = "-";
        if (mistakes) print_to(repeated, sizeof repeated, "%zu", rung->repeated);
        table_row(x->report, "%s %zu %s %.3f%% %.3f%% %.4f %s", kinds[kind], i, ladder[i].name,
                  figures[RIGHT], figures[ALIKE], figures[R2], repeated);
        const double figure = figures[ladder[i].figure];
        if (kind == UNIFORM || figure < worst[i]) worst[i] = figure;
    }
}

static void show_ladder(Explainer *x) {
    Report *r = x->report;
    double worst[RUNGS];
    size_t wrong = 0;
    while (wrong < SIGHTINGS && x->known.worst[wrong].count) wrong++;
    prose(r, "\n5. The ladder\n\n"
             "Ever simpler models, on %zu uniform lists and on as many balanced ones, where each "
             "median is equally frequent. Nothing was fitted to these. R2: how far their logits "
             "are the network's, each list's divided by its ln_final scale; the last one is the "
             "claim in one number. Repeated: how many of the network's mistakes a model makes, "
             "too, with the same answer; - where there are none.%s\n\n", x->n,
          wrong ? " Wrong: lists that `certify` soon finds to be answered wrong; the claims below "
                  "leave them out." : "");
    make_rungs(x);
    table_begin(r, "ladder", "lists,rung,model,right,like_network,R2,repeated");
    show_rungs(x, UNIFORM, x->n, worst);
    show_rungs(x, BALANCED, x->n, worst);
    for (size_t i = 0; i < RUNGS; i++)
        if (ladder[i].claim) claim(x, ladder[i].claim, worst[i], ladder[i].above);
    if (wrong) show_rungs(x, WRONG, wrong, worst);
    table_end(r);
}

/* -- verdict -- */

static void show_verdict(const Explainer *x) {
    Report *r = x->report;
    size_t holding = 0;
    prose(r, "\n6. Verdict\n\n");
    table_begin(r, "verdict", "holds,claim,value,above");
    for (const Claim *c = x->claims; c < x->claims + x->n_claims; c++) {
        const int holds = c->value > c->above;
        table_row(r, "%s %s %.4f %.4f", holds ? "yes" : "NO", c->text, c->value, c->above);
        holding += (size_t)holds;
    }
    table_end(r);
    prose(r, "\n%s", holding == x->n_claims
                         ? "The mechanism is there: the network adds up one vote per number and "
                           "climbs from m to m+1 as long as more numbers lie above than below. It "
                           "minimises sum |x - m|, as the median does."
                         : "The mechanism is not there, or not all of it: see the lines with NO.");
    prose(r, "(Measured on a sample. For all lists there are: `median certify`.)");
}

/* The wrong lists that certify finds in a second. It refuses some networks: of these
 * none is known. */
static int find_wrong_lists(Explainer *x, Error *error) {
    const CertifyOptions options = {.least = 1e-3, .effort = 250};
    return certify(x->model, &options, &x->known, error) ||
           strncmp(error->text, "no proof", 8) == 0;
}

static int command_explain(Session *s, Report *r) {
    const Config *c = &s->model.config;
    Explainer x = {
        .model = &s->model,
        .report = r,
        .V = s->V,
        .T = s->T,
        .n = s->n,
        .sample = s->lists,
    };
    void *memory = NULL;
    mt_seed(&x.mt, (uint32_t)s->seed + 1);
    if (run_create(&x.run, c, smaller(s->n, 1024), RUN_FORWARD, s->error) &&
        attention_create(&x.attention, c, s->error) && find_wrong_lists(&x, s->error))
        memory = make_layout(lay_out_explainer, &x, "the explanation", s->error);
    if (memory && s->opt.csv) {
        r->kind = REPORT_LONG;
        text_add(&r->text, "table,row,column,value\n");
    }
    if (memory) {
        prose(r, "The median is the m with the smallest sum of |x - m| over the list. The claim is "
                 "that the network computes this sum: attention collects a vector from each number "
                 "x, and the vector says -|x - m| to the logit of every m.");
        show_looks(&x);
        show_ov(&x);
        show_weights(&x);
        show_votes(&x);
        show_ladder(&x);
        show_verdict(&x);
    }
    certificate_free(&x.known);
    free(x.attention.of_head);
    free(memory);
    run_free(&x.run);
    return memory != NULL;
}

COMMAND(explain, EXPLAIN, .size = 20000, .seed = 1000, .summary = "the explanation, tested",
        .example = "explain --size 100000");

/* -- the explanation, turned into weights -- */

/* Votes. What rounding takes away is less: 1e-4 with 1000 numbers. */
#define LEAST_SLACK 1e-3

/* With q_j, j = 0 .. d-2, orthonormal vectors (d), all at right angles to (1, ..., 1), so that
 * there is no mean to subtract:
 *
 *   W_E[x] = sum_j from[x][j] q_j               of length 1: ln1 multiplies all by the same
 *   W_pos = W_Q = W_K = 0                       attention is even
 *   W_V = 1, W_O = K sum_(j > 0) q_j q_j^T      K so large that the last number's own embedding is
 *   b_O = K (what ln1 multiplies by) q_0          lost in rounding
 *   W_U = T sum_j q_j to[j]
 *
 * ln_final divides by something positive that depends on the list; one vote more is worth about
 * sqrt(d) logits. */
int network_of_sums(Model *model, size_t max_num, size_t seq_len, size_t n, float *from,
                    const float *to, Error *error) {
    const size_t V = max_num, d = n + 1;
    const float K = f32(1048576.0 * (double)seq_len), ln1 = f32(1 / sqrt(1 / (double)d + 1e-5));
    const double floats = (double)n * (double)d;
    Config config = config_default();
    config.max_num = V;
    config.seq_len = seq_len;
    config.d_model = config.d_head = d;
    float *q = (float *)allocate(floats * sizeof *q, "the construction", error);
    if (!q || !model_create(model, &config, error)) return free(q), 0;
    const Weights *w = &model->weights;
    const LayerWeights *layer = w->layers;
    for (size_t i = 0; i < n * d; i++)
        q[i] = f32(sqrt(2 / (double)d) * (double)cosine_mode(i / d + 1, i % d, d));
    for (size_t x = 0; x < V; x++) {
        const float *row = from + x * n + 1;
        from[x * n] = f32(sqrt(max_double(0, 1 - dot_strided(row, row, 1, n - 1))));
    }
    linear_forward(w->W_E, NULL, from, q, NULL, V, n, d);
    linear_backward_weights(w->W_U, NULL, to, q, n, d, V); /* q^T to; below, q^T q without q_0 */
    for (size_t j = 0; j < d; j++) {
        layer->ln1_w[j] = 1;
        w->ln_final_w[j] = 1;
        layer->W_V[j * d + j] = 1;
        layer->b_O[j] = f32((double)f32((double)K * ln1) * q[j]);
        q[j] = 0;
    }
    linear_backward_weights(layer->W_O, NULL, q, q, n, d, d);
    for (size_t i = 0; i < d * d; i++) layer->W_O[i] = f32((double)layer->W_O[i] * K);
    for (size_t i = 0; i < d * V; i++) w->W_U[i] = f32((double)w->W_U[i] * (double)seq_len);
    free(q);
    return 1;
}

/* With C_j(x) = cos(pi j (x + 1/2) / V), the sum of C_j(x) C_j(m) mode_weight(j) over all
 * j = 1 .. V-1 is -|x - m|, up to terms in x alone and a parabola in m, which to[0] takes away.
 * With fewer j, slack is lost. */
int construct(Model *model, size_t max_num, size_t seq_len, size_t d_model, double *slack,
              Error *error) {
    const size_t V = max_num, n = d_model - 1;
    const double floats = (double)V * (2 * (double)n + (double)V);
    double sum = 0;
    memset(model, 0, sizeof *model);
    if (d_model < 3) return usage(error, "--d-model is %zu, must be at least 3 here", d_model);
    float *from = (float *)allocate(floats * sizeof *from, "the construction", error);
    if (!from) return 0;
    float *to = from + V * n, *table = to + n * V;
    for (size_t j = 1; j < smaller(n, V); j++) sum += mode_weight(j, V);
    for (size_t x = 0; x < V; x++) {
        to[x] = f32((double)x - (double)x * ((double)x + 1) / (double)V);
        for (size_t j = 1; j < smaller(n, V); j++) {
            const double mode = cosine_mode(j, x, V), weight = mode_weight(j, V);
            from[x * n + j] = f32(sqrt(weight / sum) * mode);
            to[j * V + x] = f32(sqrt(weight * sum) * mode);
        }
    }
    linear_forward(table, NULL, from, to, NULL, V, n, V);
    *slack = HUGE_VAL;
    for (size_t m = 0; m + 1 < V; m++)
        *slack = min_double(step_slack(table, 1, to, V, seq_len, m), *slack);
    int done = *slack > LEAST_SLACK;
    if (done) done = network_of_sums(model, V, seq_len, n, from, to, error);
    else usage(error, "--d-model %zu leaves a slack of %.4f votes; the threshold, with room for "
                      "rounding, is %.3f; try %zu", d_model, *slack, LEAST_SLACK, V + 1);
    free(from);
    return done;
}

static int command_construct(Session *s, Report *r) {
    const Config *c = &s->opt.settings.config;
    const size_t d_model = is_given(s, "d-model") ? c->d_model : c->max_num + 1;
    double slack;
    if (!construct(&s->model, c->max_num, c->seq_len, d_model, &slack, s->error)) return 0;
    if (!model_save(&s->model, s->opt.out, s->error)) return 0;
    prose(r, "Lists of %zu numbers below %zu: at every step a majority of one has at least %.4f "
             "votes for certain, so the answer is right for every list.",
          c->seq_len, c->max_num, slack);
    prose(r, "wrote %s, parameters %016" PRIx64, s->opt.out, hash_model(&s->model));
    return 1;
}

COMMAND(construct, CONSTRUCT,
        .summary = "writes a network whose weights follow from the explanation",
        .example = "construct --max-num 20 --out twenty.safetensors");

/* ---- 15. The certificate --------------------------------------------------------------------- */

/* For every one of the max_num^seq_len lists: does `predict` name its median? Counted, and proven:
 * by bounds that hold for whole sets of lists, and by running lists that the bounds leave open.
 * (Compare Gross et al. 2024, arXiv 2406.11779.)
 *
 * The idea. The answer is the median m if every lead, logit_m - logit_v, is positive. Times s, what
 * ln_final divides by, a lead is a sum of three:
 *     B_m - B_v                           from the last number and b_O
 *     the average of P_m - P_v            from attention, for each head, over the list's numbers
 *     s (c_m - c_v)                       from biases
 * A box is a set of lists: so many of their numbers in this range, so many in that, in any order.
 * The least that a number of a range can bring bounds the average for all lists of the box
 * (bound_box). If all leads are above 0 by more than rounding can change, all its lists are right;
 * if one is below 0 by as much, all are wrong (judge). An open box is cut in halves (cut); an open
 * box of single numbers is run, order by order (run_orders). Lemmas 1 to 6 say how much rounding
 * can change; 7 to 10, what the least of a box is.
 *
 * Hypotheses, each checked, or the proof is refused:
 *   H1  One layer, no MLP.                                             (certify)
 *   H2  V^T < 2^64, with V = max_num, T = seq_len; so T <= 63.         (certify)
 *   H3  Fewer than 2^14 roundings follow each other.                   (bound_logits)
 *   H4  Scores, x, v, A, ln_final's w and b, a and reach are below LIMIT; then nothing overflows,
 *       nothing is NaN, and 1/s is not flushed to 0.                   (callers of within_limit)
 *
 * A pair is a number at a position. Its q, k, v and x (the residual stream before attention) don't
 * depend on the list. Nor do the scores of a last number with the pairs. The proof takes them from
 * model_forward and attention_score as they are, to the bit. Only what follows is bounded.
 *
 * Lemma 1, rounding. f32 of a sum in double of n < 2^20 exact products, whose absolute values add
 *   up to A, is off by at most UNIT (A + FLOOR). Half a unit in the last place is 2^-24 A; n
 *   roundings of the sum, n 2^-53 A; flushing takes 2^-126 < UNIT FLOOR. UNIT is 2^-24 and a 64th
 *   more: a fourth of that is for the sums in double, here and in the proof's own bounds, the rest
 *   for errors of errors, as (1 + UNIT)^(2^14) < 1.001. A matrix product over n terms is rounded
 *   roundings(n) times.
 * Lemma 2, softmax. Let x_i be a list's scores, a_i = max x - x_i, E_i = exp(-a_i), E their sum; so
 *   E >= 1. Pattern p has sum |p_i - E_i / E| <= (T + 3) UNIT.
 *   f32(-a_i) is off by UNIT (a_i + FLOOR), so exp_f32 of it by UNIT (a_i E_i + E_i + 2 FLOOR), and
 *   a exp(-a) < 0.37, and 0 for the greatest. Their sum, and the sum of these errors, are off by
 *   UNIT (0.37 (T - 1) + E + 2 T FLOOR): over E, each is less than UNIT (T / 2 + 1). p is rounded:
 *   UNIT.
 * Lemma 3, z. With V_j = max over pairs of |v_j| + FLOOR, z_j is off by (T + 4) UNIT V_j.
 * Lemma 4, the residual stream. R_k = x_k + b_O[k] + sum over heads and j of z_j W_O[j][k], x of
 *   the last number. The terms' absolute values add up to less than A_k = max |x_k| + |b_O[k]|
 *   + sum of V_j |W_O[j][k]| + FLOOR. R_k is off by (T + 4 + heads roundings(d_head)) UNIT A_k.
 *   With LN or LNPre let n = f32(R - mean R), which takes one rounding more; A_k bounds n_k, too,
 *   once the mean of A has been added to A. Without them let n = R.
 *   The proof has the same as real numbers, N_k = base_k + sum over heads of the average of o_k,
 *   each pair of the list weighing w = exp(score). o is v W_O, centred: roundings(d_head) + 1
 *   roundings. base is x + b_O, centred: 2 roundings, no more than o's. In all
 *       |n_k - N_k| <= pass UNIT A_k,   pass = T + 6 + (heads + 1) roundings(d_head).
 * Lemma 5, logits. Let s = sqrt(mean n_k^2 + 1e-5), or 1 without normalization. inv_std and normal
 *   are off by UNIT each, out by UNIT, a logit by roundings(d_model) UNIT. All of it is relative to
 *   reach_v = |b_U[v]| + sum |b_k W_U[k][v]| + sqrt(d_model) |U_v|, as |n / s| <= sqrt(d_model);
 *   U_kv = w_k W_U[k][v], with w and b of ln_final (1 and 0 in LNPre). So
 *       |logit_v - (sum n_k U_kv / s + c_v)| <= f_v,   c_v = sum b_k W_U[k][v] + b_U[v],
 *       f_v = (roundings(d_model) + 3) UNIT reach_v.
 *   Without normalization, reach_v = |b_U[v]| + a_v, and only the logit's roundings are there.
 * Lemma 6, products. a_v = sum A_k |U_kv|. P = o U and B = base U are matrix products, and U is
 *   rounded: with lemma 4, sum n_k U_kv is off by e_v = (pass + roundings(d_model) + 1) UNIT a_v
 *   from the sum of B_v and of the heads' averages of P_v, and by FLOOR for what is flushed. (So
 *   each term of V_j, A_k, a_v and reach_v has FLOOR added: they only grow.)
 *
 * Theorem. Let m be the median. If for every other v
 *       B_m - B_v + (heads' averages of P_m - P_v) + s (c_m - c_v - f_m - f_v) - e_m - e_v > 0
 *   then logit_m > logit_v, and the answer is m. If for some v
 *       B_v - B_m + (heads' averages of P_v - P_m) + s (c_v - c_m - f_m - f_v) - e_m - e_v > 0
 *   then logit_v > logit_m, and the answer is not m. (Lemmas 5 and 6, times s > 0.)
 *   Both ask for a little more, s times options->least.
 *
 * Lemma 7, columns. Each column bounds a quantity from below: n_k or -n_k; a lead times s, or its
 *   negative. It is a sum: start, which has B or base and - e; constant times s, or 0; the heads'
 *   averages of y, what a pair brings.
 *       round_down(x) <= x - 2^-25 |x| - FLOOR / 2,   and start, constant and y go through it:
 *   that is more than the 2^20 roundings in double that follow take, and what P lost by flushing.
 *   A weight w, divided by the greatest, is off by less than 1.4 UNIT (lemma 2); light <= w <=
 *   heavy are the next but one multiples of 1 / WEIGHT_UNITS, so that times a float or a count
 *   below 2^6 they are exact in double.
 * Lemma 8, averages. Let y' = y + share with any number as share, and more = (start + constant s)
 *   / heads - share. The quantity is the sum over heads of the average of y' + more, and
 *       w y' >= weighed = (y' < 0 ? heavy : light) y',
 *       sum of w (y' + more) >= N = sum of weighed + (more < 0 ? sum of heavy : sum of light) more;
 *   so the average is at least N / (sum of heavy) if N >= 0, N / (sum of light) if not. The nearer
 *   share is to what it should be, the less is lost: it takes s from a list of medians.
 * Lemma 9, positions. Every position but the last holds one number. So, whatever the prices,
 *       sum of weighed = prices of all positions + sum of (weighed - price of its position),
 *   and the least of weighed - price over all pairs of a range is `low`. If what a number brings is
 *   its own part and its position's, with that as the price nothing is lost. weighed - price has
 *   one rounding; the sum of the prices is off by less than 2^-40 of their absolute values.
 * Lemma 10, s. Lower bounds of n_k and of -n_k give the least and the greatest |n_k|, and their
 *   squares those of s. */
#define UNIT 0x1.04p-24
#define FLOOR 0x1p-80
#define LIMIT 0x1p60
#define WEIGHT_UNITS 0x1p22

enum { NEAR = 3 }; /* numbers on each side of the median whose mean is a position's price */

/* A float below x: lemma 7. */
TENSOR_INLINE float round_down(double x) { return f32(x - 0x1p-23 * fabs(x) - FLOOR); }

/* Roundings in a matrix product over n terms: lemma 1. */
static double roundings(size_t n) { return floor((double)(n + SUM_DEPTH - 1) / SUM_DEPTH); }

/* What is known of the network before any list is looked at. */
typedef struct {
    const Model *model;
    const CertifyOptions *options;
    Certificate *result;
    Run run;                /* the pass, of all pairs: pair t V + x is number x at position t */
    size_t T, V, d, heads, pairs;
    uint32_t *lists;        /* (V, T): 0 0 0 ..., 1 1 1 ..., ... */
    float *o;               /* (heads pairs + V, d): o_k of each head's pairs; base_k */
    float *P;               /* (heads pairs + V, V): o U; B */
    float *weight;          /* (heads, V, pairs): w, by the last number */
    float *U;               /* (d, V) */
    float *A;               /* (d) */
    float *error;           /* (d + V): of each n_k; e_v */
    double *constant;       /* (V): c_v */
    float *constant_error;  /* (V): f_v */
} Proof;

static void lay_out_proof(Layout *m, void *owner) {
    Proof *p = (Proof *)owner;
    const size_t rows = p->heads * p->pairs + p->V;
    p->lists = lay_words(m, p->V, p->T);
    p->o = lay_floats(m, rows, p->d, 1);
    p->P = lay_floats(m, rows, p->V, 1);
    p->weight = lay_floats(m, p->heads, p->V, p->pairs);
    p->U = lay_floats(m, p->d, p->V, 1);
    p->A = lay_floats(m, p->d, 1, 1);
    p->error = lay_floats(m, p->d + p->V, 1, 1);
    p->constant = lay_doubles(m, p->V, 1);
    p->constant_error = lay_floats(m, p->V, 1, 1);
}

/* The greatest |x| of n numbers; INFINITY if one is no number. */
static double greatest(const float *x, size_t n, size_t step) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double size = fabs(x[i * step]);
        if (!(size < LIMIT)) return INFINITY;
        most = max_double(most, size);
    }
    return most;
}

static int within_limit(double x, const char *what, Error *error) {
    if (x < LIMIT) return 1;
    return fail(error, "no proof: %s may reach %.3g; the bounds hold below %.3g", what, x, LIMIT);
}

/* w of all pairs, by head and last number. */
static int weigh_pairs(const Proof *p, Error *error) {
    const LayerRows *rows = p->run.layers[0].rows;
    const size_t n = p->model->config.d_head, first_last = p->pairs - p->V;
    const float scale = f32(1.0 / sqrt((double)n));
    float *weight = p->weight;
    for (size_t i = 0; i < p->heads * p->V; i++, weight += p->pairs) {
        const float *k = rows->k + i / p->V * p->pairs * n;
        const float *q = rows->q + (i / p->V * p->pairs + first_last + i % p->V) * n;
        double most = -LIMIT;
        for (size_t pair = 0; pair < p->pairs; pair++) {
            weight[pair] = attention_score(q, k + pair * n, n, scale);
            most = max_double(most, weight[pair]);
        }
        if (!within_limit(greatest(weight, p->pairs, 1), "an attention score", error)) return 0;
        for (size_t pair = 0; pair < p->pairs; pair++)
            weight[pair] = exp_f32(f32(weight[pair] - most));
    }
    return 1;
}

/* o, base, and A; with a normalization, A includes its mean. */
static int bound_residual(const Proof *p, Error *error) {
    const Config *c = &p->model->config;
    const LayerWeights *w = &p->model->weights.layers[0];
    const LayerRows *rows = p->run.layers[0].rows;
    const size_t d = p->d, n = c->d_head, pairs = p->pairs;
    const float *x = rows->x + (pairs - p->V) * d;
    float *base = p->o + p->heads * pairs * d;
    double mean = 0;
    for (size_t h = 0; h < p->heads; h++)
        linear_forward(p->o + h * pairs * d, NULL, rows->v + h * pairs * n, w->W_O + h * n * d,
                       NULL, pairs, n, d);
    for (size_t i = 0; i < p->V * d; i++) base[i] = f32(x[i] + w->b_O[i % d]);
    for (size_t r = 0; c->normalization && r < p->heads * pairs + p->V; r++)
        center(p->o + r * d, d, 1);
    for (size_t k = 0; k < d; k++) {
        double A = greatest(x + k, p->V, d) + fabs(w->b_O[k]) + FLOOR;
        for (size_t j = 0; j < p->heads * n; j++) {
            const double V_j = greatest(rows->v + j / n * pairs * n + j % n, pairs, n) + FLOOR;
            A += (double)f32(V_j) * fabs(w->W_O[j * d + k]);
        }
        if (!within_limit(A, "the residual stream", error)) return 0;
        p->A[k] = f32(A);
        mean += c->normalization ? A / (double)d : 0;
    }
    for (size_t k = 0; k < d; k++) p->A[k] = f32(p->A[k] + mean);
    return 1;
}

/* U, and for each number e, c and f. */
static int bound_logits(const Proof *p, Error *error) {
    const Config *c = &p->model->config;
    const Weights *w = &p->model->weights;
    const size_t d = p->d, V = p->V;
    const double pass = (double)p->T + 6 + (double)(p->heads + 1) * roundings(c->d_head);
    const double product = roundings(d);
    if (!(pass + product < 0x1p14))
        return fail(error, "no proof: %.0f roundings in a row, bounded are up to 16384",
                    pass + product);
    if (w->ln_final_w &&
        !within_limit(max_double(greatest(w->ln_final_w, d, 1), greatest(w->ln_final_b, d, 1)),
                      "a weight of ln_final", error))
        return 0;
    for (size_t k = 0; k < d; k++) p->error[k] = f32(pass * UNIT * p->A[k]);
    for (size_t v = 0; v < V; v++) {
        double a = 0, squares = 0, constant = w->b_U[v], reach = fabs(constant) + FLOOR;
        for (size_t k = 0; k < d; k++) {
            const float W = w->W_U[k * V + v], b = w->ln_final_b ? w->ln_final_b[k] : 0;
            const float U = w->ln_final_w ? f32((double)w->ln_final_w[k] * W) : W;
            p->U[k * V + v] = U;
            a += (double)p->A[k] * f32(fabs(U) + FLOOR);
            squares += (double)U * U;
            constant += (double)b * W;
            reach += (double)f32(fabs(b) + FLOOR) * fabs(W);
        }
        reach += c->normalization ? sqrt((double)d * squares) : a;
        if (!within_limit(a, "the residual stream times W_U", error)) return 0;
        if (!within_limit(reach, "a logit", error)) return 0;
        p->error[d + v] = f32((pass + product + 1) * UNIT * a);
        p->constant[v] = constant;
        p->constant_error[v] = f32((product + 3) * UNIT * reach);
    }
    return 1;
}

/* Everything in Proof. The pass computes x, q, k and v of all pairs. */
static int prepare_proof(Proof *p, Error *error) {
    if (!run_create(&p->run, &p->model->config, p->V, RUN_FORWARD, error)) return 0;
    for (size_t i = 0; i < p->pairs; i++) p->lists[i] = (uint32_t)(i / p->T);
    model_forward(p->model, &p->run, p->lists, p->V, NULL);
    if (!bound_residual(p, error) || !bound_logits(p, error) || !weigh_pairs(p, error)) return 0;
    linear_forward(p->P, NULL, p->o, p->U, NULL, p->heads * p->pairs + p->V, p->d, p->V);
    return 1;
}

/* Numbers first .. end-1, before the last position. Range LAST is the last number, there. */
typedef struct {
    uint32_t first, end;
    uint32_t halves; /* the first half's range, the second's follows; 0: one number */
} Range;
enum { LAST, BELOW, MIDDLE, ABOVE, N_ROOTS };

typedef struct {
    uint32_t range, count;
} Part;

/* All lists that have so many numbers in each of these ranges, in any order. The first part is the
 * last number. */
typedef struct {
    uint32_t n_parts;
    Part parts[CERTIFIED_SEQ_LEN];
} Box;

/* The work on the lists with one median, m. Quantity c is n_c for c < d, and the lead over number
 * v for c = d + v; c = d + V is a weight. Column 2c bounds it from below, column 2c + 1 its
 * negative. The weight's two stand apart, as they change with the last number. */
typedef struct {
    const Proof *p;
    size_t median, last, rival, n_ranges, columns, n_stack;
    Range *ranges;           /* (n_ranges) */
    float *low;              /* (heads, n_ranges, columns): the least of a range's pairs */
    float *weights;          /* (heads, n_ranges, 2): the same for the last quantity */
    float *y;                /* (heads pairs + V, columns): what a pair brings; base */
    float *weighed;          /* (columns): w y' of one pair */
    float *price;            /* (T, columns): of a position, for one head; 0 of the last */
    double *prices;          /* (heads, columns): of all positions */
    float *start, *constant; /* (columns): what does not depend on other numbers; times s */
    float *share, *more;     /* (columns): of a head, with a usual s; what s makes of it */
    double *sum, *least;     /* (columns): of one head; of the latest box */
    float s[2];
    Box *stack;
    Run run;
    double spent, allowed;
    uint64_t boxes, lists_run;
    Sighting *closest, *worst; /* (SIGHTINGS) */
} Prover;

static void lay_out_prover(Layout *m, void *owner) {
    Prover *w = (Prover *)owner;
    w->ranges = (Range *)lay_out(m, (double)w->n_ranges, sizeof(Range));
    w->low = lay_floats(m, w->p->heads, w->n_ranges, w->columns);
    w->weights = lay_floats(m, w->p->heads, w->n_ranges, 2);
    w->start = lay_floats(m, w->columns, 1, 1);
    w->constant = lay_floats(m, w->columns, 1, 1);
    w->share = lay_floats(m, w->columns, 1, 1);
    w->more = lay_floats(m, w->columns, 1, 1);
    w->y = lay_floats(m, w->p->heads * w->p->pairs + w->p->V, w->columns, 1);
    w->weighed = lay_floats(m, w->columns, 1, 1);
    w->price = lay_floats(m, w->p->T, w->columns, 1);
    w->prices = lay_doubles(m, w->p->heads, w->columns);
    w->sum = lay_doubles(m, w->columns, 1);
    w->least = lay_doubles(m, w->columns, 1);
    /* At first fewer than T^2 boxes; a cut adds one for each number whose range it halves, which
     * happens to a number up to 16 times. */
    w->stack = (Box *)lay_out(m, (double)(w->p->T * (w->p->T + 16)), sizeof(Box));
    w->closest = (Sighting *)lay_out(m, SIGHTINGS, sizeof(Sighting));
    w->worst = (Sighting *)lay_out(m, SIGHTINGS, sizeof(Sighting));
}

/* The numbers below, equal to and above the median; halves, and theirs. */
static void make_ranges(Prover *w) {
    const uint32_t m = (uint32_t)w->median, V = (uint32_t)w->p->V;
    uint32_t n = N_ROOTS;
    w->ranges[BELOW] = (Range){0, m, 0};
    w->ranges[MIDDLE] = (Range){m, m + 1, 0};
    w->ranges[ABOVE] = (Range){m + 1, V, 0};
    for (Range *r = w->ranges; r < w->ranges + n; r++) {
        const uint32_t middle = (r->first + r->end) / 2;
        if (r->end < r->first + 2) continue;
        r->halves = n;
        w->ranges[n++] = (Range){r->first, middle, 0};
        w->ranges[n++] = (Range){middle, r->end, 0};
    }
    w->n_ranges = n;
}

static void minimum(float *to, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = a[i] < b[i] ? a[i] : b[i];
}

/* What each pair brings through a head, from below; and base. */
static void bound_pairs(const Prover *w) {
    const Proof *p = w->p;
    const float *o = p->o, *P = p->P;
    float *y = w->y;
    for (size_t i = 0; i < p->heads * p->pairs + p->V; i++, P += p->V) {
        for (size_t k = 0; k < p->d; k++, o++) {
            *y++ = round_down(*o);
            *y++ = round_down(-*o);
        }
        for (size_t v = 0; v < p->V; v++) {
            const double lead = (double)P[w->median] - (double)P[v];
            *y++ = round_down(lead);
            *y++ = round_down(-lead);
        }
    }
}

/* Lower bounds of a pair's w and -w before the last number: lemma 7. */
static void bound_weight(const Prover *w, float bounds[2], size_t head, size_t pair) {
    const Proof *p = w->p;
    const double weight = p->weight[(head * p->V + w->last) * p->pairs + pair] * WEIGHT_UNITS;
    bounds[0] = f32(max_double(floor(weight) - 1, 0) / WEIGHT_UNITS);
    bounds[1] = f32((floor(-weight) - 1) / WEIGHT_UNITS);
}

/* Lower bounds of w y' of a pair, less the price of its position: lemmas 8 and 9. */
static void weigh_pair(const Prover *w, size_t head, size_t pair, const float *price) {
    const size_t n = w->columns;
    const float *y = w->y + (head * w->p->pairs + pair) * n, *share = w->share;
    float weight[2], *weighed = w->weighed;
    bound_weight(w, weight, head, pair);
    const double light = weight[0], heavy = -(double)weight[1];
    for (size_t j = 0; j < n; j++) {
        const double shared = round_down((double)y[j] + share[j]);
        weighed[j] = round_down(shared * (shared < 0 ? heavy : light) - price[j]);
    }
}

/* The price of each position, the mean of what the numbers near the median bring there; and the
 * sum of all prices, from below: lemma 9. */
static void price_positions(Prover *w, size_t head) {
    const size_t n = w->columns, last = w->p->T - 1, first = w->median - smaller(w->median, NEAR);
    const size_t end = smaller(w->median + NEAR + 1, w->p->V);
    const float *free_of_charge = w->price + last * n;
    double *sum = w->sum;
    for (size_t t = 0; t < last; t++) {
        for (size_t j = 0; j < n; j++) sum[j] = 0;
        for (size_t x = first; x < end; x++) {
            weigh_pair(w, head, t * w->p->V + x, free_of_charge);
            for (size_t j = 0; j < n; j++) sum[j] += w->weighed[j];
        }
        for (size_t j = 0; j < n; j++) w->price[t * n + j] = f32(sum[j] / (double)(end - first));
    }
    for (size_t j = 0; j < n; j++) {
        double all = 0, size = 0;
        for (size_t t = 0; t < last; t++) {
            all += w->price[t * n + j];
            size += fabs(w->price[t * n + j]);
        }
        w->prices[head * n + j] = all - 0x1p-40 * size;
    }
}

/* The least of a range: of its halves, or of its number at all positions. */
static void bound_range(const Prover *w, size_t head, size_t range) {
    const Proof *p = w->p;
    const Range *r = &w->ranges[range];
    const size_t n = w->columns, row = head * w->n_ranges + range;
    float *low = w->low + row * n, *weights = w->weights + 2 * row;
    size_t pair = r->first, end = p->pairs - p->V;
    if (r->halves) {
        const size_t half = head * w->n_ranges + r->halves;
        minimum(low, w->low + half * n, w->low + (half + 1) * n, n);
        minimum(weights, w->weights + 2 * half, w->weights + 2 * (half + 1), 2);
        return;
    }
    if (range == LAST) {
        pair = end + w->last;
        end = p->pairs;
    }
    for (size_t j = 0; j < n; j++) low[j] = INFINITY;
    weights[0] = weights[1] = INFINITY;
    for (; pair < end; pair += p->V) {
        float weight[2];
        weigh_pair(w, head, pair, w->price + pair / p->V * n);
        bound_weight(w, weight, head, pair);
        minimum(low, low, w->weighed, n);
        minimum(weights, weights, weight, 2);
    }
}

/* What depends on the last number. */
static void take_last(Prover *w) {
    const Proof *p = w->p;
    const size_t m = w->median, d = p->d;
    uint32_t list[CERTIFIED_SEQ_LEN];
    for (size_t i = 0; i < p->T; i++) list[i] = (uint32_t)(i + 1 < p->T ? m : w->last);
    model_forward(p->model, &w->run, list, 1, NULL);
    const double s = p->model->config.normalization ? 1 / (double)w->run.final_inv_std[0] : 1;
    const float *base = w->y + (p->heads * p->pairs + w->last) * w->columns;
    for (size_t j = 0; j < w->columns; j++) {
        const double sign = j % 2 ? -1 : 1;
        const size_t c = j / 2, v = c - d;
        w->constant[j] = 0;
        w->start[j] = round_down(base[j] - p->error[c] - (c < d ? 0 : p->error[d + m]));
        if (c >= d)
            w->constant[j] = round_down(sign * (p->constant[m] - p->constant[v]) -
                                        p->constant_error[m] - p->constant_error[v] -
                                        p->options->least);
        w->share[j] = round_down((w->start[j] + w->constant[j] * s) / (double)p->heads);
    }
    for (size_t head = 0; head < p->heads; head++) {
        price_positions(w, head);
        for (size_t range = w->n_ranges; range-- > 0;) bound_range(w, head, range);
    }
}

/* Lower bounds in columns begin .. end-1 over all of a box's lists: lemmas 8 and 9. */
static void bound_box(Prover *w, const Box *box, size_t begin, size_t end) {
    const double heads = (double)w->p->heads;
    double *least = w->least, *sum = w->sum;
    for (size_t j = begin; j < end; j++) {
        const double fixed = w->start[j] + (double)w->constant[j] * w->s[w->constant[j] < 0];
        w->more[j] = round_down(fixed / heads - w->share[j]);
        least[j] = 0;
    }
    for (size_t head = 0; head < w->p->heads; head++) {
        double light = 0, heavy = 0;
        for (size_t j = begin; j < end; j++) sum[j] = w->prices[head * w->columns + j];
        for (size_t i = 0; i < box->n_parts; i++) {
            const double count = box->parts[i].count;
            const size_t row = head * w->n_ranges + box->parts[i].range;
            const float *low = w->low + row * w->columns;
            light += count * w->weights[2 * row];
            heavy -= count * w->weights[2 * row + 1];
            for (size_t j = begin; j < end; j++) sum[j] += count * low[j];
        }
        for (size_t j = begin; j < end; j++) {
            sum[j] += w->more[j] * (w->more[j] < 0 ? heavy : light);
            least[j] += sum[j] / (sum[j] < 0 ? light : heavy);
        }
    }
}

/* Bounds of s: lemma 10. */
static void bound_scale(Prover *w, const Box *box) {
    const size_t d = w->p->d;
    double squares[2] = {0, 0};
    w->s[0] = w->s[1] = 1;
    if (!w->p->model->config.normalization) return;
    bound_box(w, box, 0, 2 * d);
    for (size_t k = 0; k < d; k++) {
        const double low = w->least[2 * k], low_of_negative = w->least[2 * k + 1];
        const float near = round_down(max_double(max_double(low, low_of_negative), 0));
        const float far = round_down(min_double(low, low_of_negative));
        squares[0] += (double)near * near;
        squares[1] += (double)far * far;
    }
    w->s[0] = round_down(sqrt(squares[0] / (double)d + 1e-5));
    w->s[1] = -round_down(-sqrt(squares[1] / (double)d + 1e-5));
}

/* Are all of a box's lists answered right, or all wrong? */
static Verdict judge(Prover *w, const Box *box) {
    const double *lead = w->least + 2 * w->p->d;
    double smallest = INFINITY;
    bound_scale(w, box);
    bound_box(w, box, 2 * w->p->d, w->columns);
    for (size_t v = 0; v < w->p->V; v++) {
        if (v == w->median || lead[2 * v] >= smallest) continue;
        smallest = lead[2 * v];
        w->rival = v;
    }
    if (smallest > 0) return CERTIFIED_RIGHT;
    return lead[2 * w->rival + 1] > 0 ? CERTIFIED_WRONG : CERTIFIED_OPEN;
}

/* How many lists there are in a box, and one of them: middles of the ranges, in their order. */
static uint64_t lists_of(const Prover *w, const Box *box, uint32_t *list) {
    uint64_t lists = 1, places = 0;
    for (size_t i = 1; i < box->n_parts; i++) {
        const Range range = w->ranges[box->parts[i].range];
        uint64_t choices = 1; /* of this part's places among all so far; 62 C(61, 30) < 2^64 */
        for (uint64_t n = 1; n <= box->parts[i].count; n++) {
            list[places++] = (range.first + range.end - 1) / 2;
            choices = choices * places / n;
            lists *= range.end - range.first;
        }
        lists *= choices;
    }
    list[places] = (uint32_t)w->last;
    return lists;
}

/* Puts a list among the n that are kept, those with the least keys, in order. */
static void sight(Sighting *kept, const Sighting *s) {
    size_t at = SIGHTINGS;
    if (s->count == 0) return;
    for (; at > 0 && (kept[at - 1].count == 0 || s->key < kept[at - 1].key); at--)
        if (at < SIGHTINGS) kept[at] = kept[at - 1];
    if (at < SIGHTINGS) kept[at] = *s;
}

/* Runs a list. If it is wrong, it is sighted for so many. */
static Sighting run_list(Prover *w, const uint32_t *list, uint64_t count) {
    const Config *c = &w->p->model->config;
    float *logits = w->run.logits;
    model_forward(w->p->model, &w->run, list, 1, NULL);
    Sighting s = {.count = count, .median = w->median, .margin = logits[w->median]};
    s.right = argmax(logits, w->p->V) == w->median;
    memcpy(s.list, list, c->seq_len * sizeof *list);
    logits[w->median] = -INFINITY;
    s.rival = argmax(logits, w->p->V);
    s.key = s.margin -= logits[s.rival];
    if (!s.right) sight(w->worst, &s);
    w->spent += (double)c->d_model * (double)(c->n_heads * c->d_head + c->max_num);
    return s;
}

/* The next order of n numbers, after which comes the next greater; 0 after the last. */
static int next_order(uint32_t *list, size_t n) {
    size_t i = n - 1, j = i;
    while (i > 0 && list[i - 1] >= list[i]) i--;
    if (i == 0) return 0;
    while (list[j] <= list[i - 1]) j--;
    swap_words(&list[i - 1], &list[j]);
    for (j = n - 1; i < j; i++, j--) swap_words(&list[i], &list[j]);
    return 1;
}

/* Runs the lists of a box of single numbers, order by order, as far as effort allows. */
static void run_orders(Prover *w, uint32_t *list, uint64_t *cell) {
    const size_t n = w->p->T - 1;
    for (size_t i = 1; i < n; i++)
        for (size_t j = i; j > 0 && list[j - 1] > list[j]; j--)
            swap_words(&list[j], &list[j - 1]);
    do {
        Sighting s = run_list(w, list, 1);
        cell[s.right ? CERTIFIED_RIGHT : CERTIFIED_WRONG]++;
        cell[CERTIFIED_OPEN]--;
        s.key = fabs(s.margin);
        sight(w->closest, &s);
        w->lists_run++;
    } while (w->spent < w->allowed && next_order(list, n));
}

/* Puts a box on the stack, n numbers of whose part i have gone to another range. */
static void push(Prover *w, const Box *box, size_t i, uint32_t n, uint32_t range) {
    Box *copy = &w->stack[w->n_stack++];
    const Part part = {range, n};
    *copy = *box;
    copy->parts[i].count -= n;
    if (copy->parts[i].count == 0) copy->parts[i] = part;
    else if (n > 0) copy->parts[copy->n_parts++] = part;
}

/* Cuts a range of a box into halves: the one that leaves the lead over the rival most open. */
static int cut(Prover *w, Box *box) {
    const size_t lead = 2 * (w->p->d + w->rival);
    Part *best = NULL;
    double most = -1;
    for (Part *part = box->parts; part < box->parts + box->n_parts; part++) {
        double open = 0;
        if (!w->ranges[part->range].halves) continue;
        for (size_t head = 0; head < w->p->heads; head++) {
            const float *low = w->low + (head * w->n_ranges + part->range) * w->columns + lead;
            open -= (double)low[0] + (double)low[1];
        }
        open *= part->count;
        if (open <= most) continue;
        most = open;
        best = part;
    }
    if (!best) return 0;
    best->range = w->ranges[best->range].halves;
    for (uint32_t n = 0; n <= best->count; n++)
        push(w, box, (size_t)(best - box->parts), n, best->range + 1);
    return 1;
}

/* The boxes that hold all lists with this last number and median: how many numbers lie below and
 * above. Returns how many lists there are. */
static uint64_t push_roots(Prover *w) {
    const uint32_t others = (uint32_t)w->p->T - 1, half = others / 2;
    uint32_t list[CERTIFIED_SEQ_LEN];
    uint64_t all = 0;
    for (uint32_t below = 0; below + (w->last < w->median) <= half; below++)
        for (uint32_t above = 0; above + (w->last > w->median) <= half; above++) {
            const uint32_t counts[N_ROOTS] = {1, below, others - below - above, above};
            Box *box = &w->stack[w->n_stack];
            box->n_parts = 0;
            for (uint32_t i = LAST; i < N_ROOTS; i++)
                if (counts[i]) box->parts[box->n_parts++] = (Part){i, counts[i]};
            const uint64_t lists = lists_of(w, box, list);
            w->n_stack += lists > 0;
            all += lists;
        }
    return all;
}

/* Decides about all lists with this last number and median. */
static void certify_cell(Prover *w, uint64_t *cell) {
    const double columns = (double)w->p->heads * (double)w->columns;
    uint32_t list[CERTIFIED_SEQ_LEN];
    cell[CERTIFIED_OPEN] = push_roots(w);
    take_last(w);
    while (w->n_stack && w->spent < w->allowed) {
        Box box = w->stack[--w->n_stack];
        const uint64_t lists = lists_of(w, &box, list);
        const Verdict verdict = judge(w, &box);
        w->spent += columns * box.n_parts;
        w->boxes++;
        cell[CERTIFIED_OPEN] -= lists;
        cell[verdict] += lists;
        if (verdict == CERTIFIED_WRONG) run_list(w, list, lists);
        if (verdict == CERTIFIED_OPEN && !cut(w, &box)) run_orders(w, list, cell);
    }
    w->n_stack = 0;
}

/* Decides about all lists with this median. What one last number leaves of its share of the effort
 * is the next one's. */
static void certify_median(Prover *w, double effort) {
    const size_t V = w->p->V;
    Certificate *r = w->p->result;
    make_ranges(w);
    bound_pairs(w);
    for (w->last = 0; w->last < V; w->last++) {
        uint64_t *cell = r->cells[w->last * V + w->median];
        OMP(omp critical)
        w->allowed = r->interrupted ? 0 : effort * (double)(w->last + 1) / (double)V;
        certify_cell(w, cell);
        OMP(omp critical) {
            r->right += cell[CERTIFIED_RIGHT];
            r->wrong += cell[CERTIFIED_WRONG];
            r->undecided += cell[CERTIFIED_OPEN];
            const double done = (double)(r->right + r->wrong + r->undecided) / (double)r->lists;
            if (w->p->options->go_on && !r->interrupted)
                r->interrupted = !w->p->options->go_on(w->p->options->context, done);
        }
    }
}

/* All medians, side by side. What was kept is joined in their order, so that of equal margins the
 * same are. */
static int certify_all(const Proof *p, double effort, Error *error) {
    Certificate *r = p->result;
    int done = 1;
    OMP(omp parallel for ordered schedule(dynamic))
    for (size_t median = 0; median < p->V; median++) {
        Prover w = {.p = p,
                    .median = median,
                    .n_ranges = 2 * p->V,
                    .columns = 2 * (p->d + p->V)};
        void *memory;
        int ready;
        this_thread();
        OMP(omp critical) {
            memory = make_layout(lay_out_prover, &w, "the certificate", error);
            ready = memory && create_run(&w.run, &p->model->config, 1, RUN_FORWARD, p->run.inputs,
                                         error);
            done &= ready;
        }
        if (ready) certify_median(&w, effort / (double)p->V);
        OMP(omp ordered) {
            r->boxes += w.boxes;
            r->lists_run += w.lists_run;
            for (size_t i = 0; ready && i < SIGHTINGS; i++) {
                sight(r->closest, &w.closest[i]);
                sight(r->worst, &w.worst[i]);
            }
        }
        run_free(&w.run);
        free(memory);
    }
    return done;
}

/* What the tables cost, as entries looked at. */
static double table_cost(const Config *c) {
    const double V = (double)c->max_num, d = (double)c->d_model, n = (double)c->d_head;
    const double pairs = (double)c->n_heads * (double)c->seq_len * V;
    return pairs * (2 * d * n + V * n + 2 * d * V + V * (V + 8) * 2 * (d + V));
}

int certify(const Model *model, const CertifyOptions *options, Certificate *r, Error *error) {
    const Config *c = &model->config;
    const size_t V = c->max_num;
    const double effort = (double)options->effort * 1e6 - table_cost(c);
    memset(r, 0, sizeof *r);
    if (c->n_layers != 1 || c->d_mlp)
        return fail(error, "no proof: it needs one layer without MLP; n_layers is %zu, d_mlp %zu",
                    c->n_layers, c->d_mlp);
    r->lists = 1;
    for (size_t i = 0; i < c->seq_len; i++) {
        if (r->lists > UINT64_MAX / V)
            return fail(error, "no proof: %zu^%zu lists are more than 64 bits count", V,
                        c->seq_len);
        r->lists *= V;
    }
    if (effort < 0)
        return fail(error, "no proof: the tables alone need --effort %.0f",
                    floor(table_cost(c) / 1e6) + 1);
    Proof p = {
        .model = model,
        .options = options,
        .result = r,
        .T = c->seq_len,
        .V = V,
        .d = c->d_model,
        .heads = c->n_heads,
        .pairs = c->seq_len * V,
    };
    void *memory = make_layout(lay_out_proof, &p, "the certificate", error);
    r->cells = (uint64_t(*)[3])allocate((double)V * (double)V * sizeof *r->cells, "the certificate",
                                        error);
    const int done = memory && r->cells && prepare_proof(&p, error) &&
                     certify_all(&p, effort, error);
    run_free(&p.run);
    free(memory);
    if (!done) certificate_free(r);
    return done;
}

void certificate_free(Certificate *r) {
    free(r->cells);
    memset(r, 0, sizeof *r);
}

static int show_certified(void *context, double done) {
    show_progress((Progress *)context, done, "%.2f %% of all lists", 100 * done);
    return !interrupted;
}

/* One row: the lists with this median, or all. */
static void show_certified_row(Report *r, const Certificate *all, size_t V, size_t median) {
    uint64_t n[3] = {0};
    char name[24], text[3][24];
    for (size_t k = 0; k < 3; k++) {
        for (size_t i = median % V; i < V * V; i += median < V ? V : 1) n[k] += all->cells[i][k];
        print_to(text[k], sizeof text[k], "%" PRIu64, n[k]);
    }
    const double lists = (double)n[0] + (double)n[1] + (double)n[2];
    table_row(r, "%s %s %s %s %.7f%% %.7f%%", index_text(name, median, V, "all"), text[0], text[1],
              text[2], (double)n[0] / lists, ((double)n[0] + (double)n[2]) / lists);
}

static void show_sightings(Session *s, Report *r, const char *title, const Sighting *seen) {
    if (seen->count) say(r, "\n%s\n", title);
    for (size_t i = 0; i < SIGHTINGS && seen[i].count; i++)
        say(r, "%12.6f  %zu against %zu:  %s\n", seen[i].margin, seen[i].median, seen[i].rival,
            list_text(s, seen[i].list));
}

static int command_certify(Session *s, Report *r) {
    const double entries_per_second = 3.5e8, effort = (double)s->opt.effort;
    Certificate all;
    Progress progress = {.stream = s->streams.progress};
    const CertifyOptions options = {.least = 1e-3,
                                    .effort = (uint64_t)s->opt.effort,
                                    .go_on = show_certified,
                                    .context = &progress};
    if (progress.stream && effort * 1e6 / entries_per_second > 60)
        print_file(progress.stream,
                   "certify: --effort %.0f may take up to %.0f minutes on one core; "
                   "interrupted, it prints what is proven by then\n",
                   effort, effort / (60e-6 * entries_per_second) + 1);
    catch_interrupts(1);
    const int done = certify(&s->model, &options, &all, s->error);
    catch_interrupts(0);
    if (!done) return 0;

    prose(r, "There are %" PRIu64 " lists of %zu numbers below %zu. %" PRIu64 " are proven right, "
             "%" PRIu64 " proven wrong%s, in %" PRIu64 " sets; %" PRIu64 " of them were run.",
          all.lists, s->T, s->V, all.right, all.wrong,
          all.interrupted ? ", before an interrupt" : "", all.boxes, all.lists_run);
    prose(r, "Asked of every set that counts as right: a median's logit greater than any other by "
             "%.3f or more.", options.least);
    say(r, "\n");
    table_begin(r, "certificate", "median,right,wrong,undecided,accuracy_from,accuracy_to");
    for (size_t median = 0; median <= s->V; median++) show_certified_row(r, &all, s->V, median);
    table_end(r);
    show_sightings(s, r, "The smallest margins among the lists that were run:", all.closest);
    show_sightings(s, r, "The worst of the wrong lists, each for all in its set:", all.worst);
    certificate_free(&all);
    return 1;
}

COMMAND(certify, CERTIFY,
        .summary = "the accuracy over all possible lists: counted, by proof",
        .example = "certify --model trained.safetensors");

/* ---- 16. The tour and the journey ------------------------------------------------------------ */

static const struct {
    const char *title;
    int (*show)(Session *, Report *);
    const char *lesson; /* what it means, and what to type next; %s is the list */
} chapters[] = {
    {"1. How good is it?", command_eval,
     "The network has never seen a rule for sorting or for medians, only lists and answers. More "
     "lists:\n"
     "    median eval --size 1000000"},
    {"2. One list", show_prediction,
     "These are the numbers it would most likely name. Neighbours of the median in value come "
     "next: what the network knows is a place on a scale, not a choice among the list's numbers. A "
     "list of your own:\n"
     "    median predict %s"},
    {"3. Who looks where?", command_attention,
     "Each row is shared out among the columns and adds up to 1. A number sees itself and those "
     "before it. The answer is read off at the last position, so in the last layer only the last "
     "row matters. If that row is nearly even, attention doesn't pick the median out; it collects "
     "all numbers. The list above:\n"
     "    median attention %s"},
    {"4. What is needed?", command_ablate,
     "In the last layer only the last position's output is used. Other replacements, several at "
     "once:\n"
     "    median ablate --kind resample --head 0.0 --positions 0,1"},
    {"5. What makes the answer?", command_attribute,
     "Every logit is a sum of what each part writes, ln_final's scale taken as given. Numbers "
     "above the median and numbers below it pull the margin to opposite sides. Another list:\n"
     "    median attribute --seed 24"},
    {"6. Which value carries it?", command_patch,
     "The values that restore the clean answer carry the difference between the lists. Two lists "
     "of your own:\n"
     "    median patch LIST OTHER-LIST"},
    {"7. How it works", command_explain,
     "The circuits as tables, all weights, and a network that knows nothing yet:\n"
     "    median circuits ov --csv\n"
     "    median weights\n"
     "    median train --steps 1 --out new.safetensors\n"
     "    median explain --model new.safetensors"},
};

/* One list of seed 23 runs through all chapters. */
static int command_tour(Session *s, Report *r) {
    prose(r, "%s: %zu parameters, hash %016" PRIx64, s->opt.model, s->model.n_params,
         hash_model(&s->model));
    prose(r, "(A long text. Page by page: median tour --color | less -R)");
    if (!given_list(s, 23, 1)) return 0;
    s->on_tour = 1;
    for (size_t i = 0; i < sizeof chapters / sizeof *chapters; i++) {
        heading(r, chapters[i].title);
        if (!chapters[i].show(s, r)) return 0;
        say(r, "\n");
        prose(r, chapters[i].lesson, list_text(s, s->list));
    }
    return 1;
}

COMMAND(tour, TOUR, .size = 20000, .seed = 1000, .batch = 512, .kind = RUN_ALL_POSITIONS,
        .summary = "the journey on a trained model",
        .example = "tour --model trained.safetensors | less");

/* The hash of the parameters in median.safetensors. */
static const uint64_t shipped_hash = UINT64_C(0xb7ee6e7a6ef8ad0f);

/* Trains the default recipe; the result becomes s->model. */
static int train_anew(Session *s, Report *r) {
    const Recipe recipe = recipe_default();
    Trainer t;
    if (!trainer_create(&t, &recipe, &s->opt.settings.config, NULL, s->error)) return 0;
    prose(r,
         "One layer, one head, %zu parameters, all random at first: %zu steps of %zu lists each.",
         t.model.n_params, t.total_steps, recipe.batch_size);
    report_flush(r);
    const int done = run_training(&t, s, NULL, NULL);
    if (done) {
        Model *result = trainer_result(&t);
        prose(r,
             "Trained: validation accuracy %.3f %%. The parameters are %sthose of the shipped "
             "median.safetensors, bit for bit.",
             100 * t.validation.accuracy, hash_model(result) == shipped_hash ? "" : "NOT ");
        s->model = *result;
        s->opt.model = "this network";
        memset(result, 0, sizeof *result);
    }
    trainer_free(&t);
    return done;
}

/* Data, training, proof, tour. */
static int command_journey(Session *s, Report *r) {
    prose(r, "A small transformer learns to find the median of a list, and shows how it does it.");
    heading(r, "The data");
    print_lists(s, r, 5, recipe_default().seed);
    say(r, "\n");
    prose(r, "Seven numbers from 0 to 49, and the one that would stand in the middle if they were "
            "sorted. The network sees the lists and is told the medians; nobody tells it how to "
            "sort.");
    heading(r, "Training");
    if (!train_anew(s, r)) return 0;
    heading(r, "The proof");
    return run_command(s, &about_certify, r) && run_command(s, &about_tour, r);
}

static const Command about_journey = {
    .name = "",
    .bit = JOURNEY,
    .run = command_journey,
    .size = 20000,
    .seed = 1000,
    .summary = "the whole journey: the data, training, the proof, the tour",
    .example = "--color | less -R",
};

/* ---- 17. Is it fast, is it right ------------------------------------------------------------- */

/* Floating-point operations of a forward pass as it is done here, a multiplication with its
 * addition counting two: matrix products and attention. A backward pass does each product twice,
 * once for either factor. */
static double forward_flops(const Run *run) {
    const Config *c = &run->config;
    const double d = (double)c->d_model, dh = (double)c->d_head, T = (double)c->seq_len;
    double sum = (double)run->n_lists * d * (double)c->max_num;
    for (const LayerRun *layer = run->layers; layer < run->layers + c->n_layers; layer++) {
        const double rows = (double)layer->rows->n_rows, queries = (double)layer->n_queries;
        const double asking = rows - (double)layer->rows->first_query;
        const double seen = layer->queries_per_list == 1 ? T : (T + 1) / 2;
        const double qkv = (asking + 2 * rows) * d * dh;
        const double head = qkv + queries * seen * 2 * dh + queries * dh * d;
        sum += (double)c->n_heads * head + 2 * queries * d * (double)c->d_mlp;
    }
    return 2 * sum;
}

/* Forward passes over the trainer's latest batch. */
static void infer_batch(Trainer *t) {
    const size_t n = t->recipe.batch_size, T = t->model.config.seq_len;
    Run *run = &t->runs.each[0];
    for (size_t at = 0; at < n; at += run->capacity)
        model_forward(&t->model, run, t->batch + at * T, smaller(run->capacity, n - at), NULL);
}

enum { ROUNDS = 5 };

/* Seconds that a training step takes, time[0], and inference on as many lists, time[1]: the fastest
 * of ROUNDS rounds, since that is what the machine can do undisturbed. */
static void time_steps(Trainer *t, size_t steps, double time[2]) {
    time[0] = time[1] = HUGE_VAL;
    for (size_t round = 0; round < 2 * ROUNDS; round++) {
        const double start = seconds();
        for (size_t i = 0; i < steps; i++) {
            if (round % 2) infer_batch(t);
            else trainer_step(t);
        }
        time[round % 2] = min_double(time[round % 2], (seconds() - start) / (double)steps);
    }
}

/* FLOPs go to stdout, rates to where the progress goes: stdout is the same bytes everywhere, every
 * time. */
static int command_bench(Session *s, Report *r) {
    static const char *const names[] = {"training ", "inference"};
    static const char *const units[] = {"step", "batch"};
    Recipe recipe = s->opt.settings.recipe;
    FILE *to = s->streams.progress;
    Trainer t;
    double time[2];
    const double batch = (double)recipe.batch_size;
    const size_t steps = (s->opt.size + ROUNDS - 1) / ROUNDS;
    recipe.steps = ROUNDS * steps;
    recipe.valset_size = recipe.batch_size;
    if (!trainer_create(&t, &recipe, &s->opt.settings.config, NULL, s->error)) return 0;
    time_steps(&t, steps, time);
    const Run *run = &t.runs.each[0];
    const double forward = forward_flops(run) * batch / (double)run->n_lists;
    const double flops[] = {3 * forward, forward};
    say(r, "%zu parameters, %zu list%s a step, %zu inputs to layer 0\n", t.model.n_params,
        recipe.batch_size, plural(recipe.batch_size), run->layers[0].rows->n_rows);
    say(r, "training   %10.3f MFLOP a step\n", flops[0] * 1e-6);
    say(r, "inference  %10.3f MFLOP a batch, %.0f FLOP a list\n", flops[1] * 1e-6,
        flops[1] / batch);
    report_flush(r);
    for (size_t k = 0; to && k < 2; k++)
        print_file(to, "%s  %6.3f ms a %s, %.0f lists/s, %.2f GFLOP/s\n", names[k], time[k] * 1e3,
                   units[k], batch / time[k], flops[k] * 1e-9 / time[k]);
    if (to)
        print_file(to, "memory     %6.2f MiB for activations and gradients\n",
                   run->bytes / 1048576.0);
    trainer_free(&t);
    return 1;
}

COMMAND(bench, BENCH, .size = 500, .seed = 23, .summary = "speed of training and inference",
        .example = "bench --d-model 64 --threads 2");

#ifndef MEDIAN_NO_MAIN

static void show_golden(void *context, const char *test, const char *found, const char *expected) {
    Report *r = (Report *)context;
    const int same = strcmp(found, expected) == 0;
    say(r, "%-30s %s %s\n", test, found, same ? "ok" : "DIFFERS");
    if (!same) say(r, "%30s %s expected\n", "", expected);
    report_flush(r);
}

/* The golden values stand in test_median.c. */
static int command_check(Session *s, Report *r) {
    const char *differs = check_golden(show_golden, r);
    return !differs || fail(s->error, "check: the first that differs is: %s", differs);
}

COMMAND(check, CHECK, .summary = "golden values: does this build compute the same bits?",
        .example = "check");

/* Prints by itself, as it goes. */
static int command_test(Session *s, Report *r) {
    report_flush(r);
    return run_tests(s->n_words, s->words) == 0 || fail(s->error, "a test failed");
}

COMMAND(test, TEST, .argument = "NAME...",
        .argument_is = "test names, or parts of them; all tests without", .summary = "the tests",
        .example = "test layernorm attention");

#endif

/* ---- 18. The command line -------------------------------------------------------------------- */

static const Command *const commands[] = {
    &about_journey, &about_tour,    &about_data,      &about_train,       &about_info,
    &about_eval,    &about_predict, &about_attention, &about_activations, &about_circuits,
    &about_weights, &about_ablate,  &about_attribute, &about_patch,       &about_explain,
    &about_construct, &about_certify, &about_bench,
#ifndef MEDIAN_NO_MAIN
    &about_check,   &about_test,
#endif
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static Options default_options(const Command *command, int original) {
    Options o = {
        .size = command->size ? command->size : 1,
        .threads = 1,
        .effort = 20000,
        .save_every = 2000,
        .query_pos = NO_POSITION,
        .key_pos = NO_POSITION,
        .model = shipped_model(),
        .out = "trained.safetensors",
    };
    o.settings.config = config_default();
    if (command->bit == CONSTRUCT) {
        o.out = "constructed.safetensors";
        o.settings.config.d_model = o.settings.config.max_num + 1;
    }
    o.settings.recipe = original ? recipe_original() : recipe_default();
    o.settings.recipe.seed = command->seed;
    return o;
}

/* -- help -- */

/* What stands on the left is `indent` characters wide; the text follows it, or the next line has
 * it. */
static void help_line(Report *r, size_t indent, const char *left, const char *text) {
    if (strlen(left) <= indent && 4 + indent + strlen(text) <= r->width)
        say(r, "  %-*s  %s\n", (int)indent, left, text);
    else {
        say(r, "  %s\n", left);
        prose(r, "      %s", text);
    }
}

static void option_help(const Setting *s, const Command *command, Report *r) {
    static const char *const values[] = {" N", " X", " ", "", " FILE", " "}; /* by SettingKind */
    const Options defaults = default_options(command, 0);
    const char *choices = s->choices ? s->choices : "", *help = s->help;
    char left[64], value[400] = "", text[500];
    const int of_model = s->offset < sizeof(Config) && (command->bit & ON_MODEL);
    const int has_value = s->kind != SETTING_FLAG && s->kind != SETTING_LIST && !of_model;
    if (!*help) help = command->bit == BENCH ? "how many steps" : "how many lists"; /* --size */
    if (has_value) setting_print(s, &defaults, value, sizeof value);
    print_to(left, sizeof left, "--%s%s%s", s->name, values[s->kind], choices);
    print_to(text, sizeof text, *value ? "%s (%s)" : "%s%s", help, value);
    help_line(r, 26, left, text);
}

static void command_help(const Command *command, Report *r) {
    const char *name = command->name, *of = command->argument;
    say(r, *name ? "median %s [--option value]..." : "median%s [--option value]...", name);
    say(r, of ? " %s\n\n" : "\n\n", of);
    prose(r, "%s\n\n", command->summary);
    if (of) help_line(r, 26, of, command->argument_is);
    for (const Setting *s = settings; s < settings + N_OPTIONS; s++)
        if (s->commands & command->bit) option_help(s, command, r);
    say(r, "\nExample:\n  median %s\n", command->example);
}

static void general_help(Report *r) {
    prose(r, "median COMMAND [--option value | --option=value]... [argument]...\n ");
    prose(r, "A small transformer that learns to find the median of a list, to be looked into.");
    say(r, "\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        help_line(r, 12, *commands[i]->name ? commands[i]->name : "(none)", commands[i]->summary);
    say(r, "\n");
    prose(r, "median COMMAND --help: a command's options. median --version.");
    prose(r, "Exit status: 0 done, 1 it failed, 2 wrong usage.");
}

static int is_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

/* -- options -- */

/* The index of a word among n names, of which some may be NULL. If it is none of them, n, and the
 * error tells the most similar: that with the shortest stretch between what both begin with and
 * what both end with. kind: "command " or "option --", what the message calls it. */
static size_t find_name(const char *const *names, size_t n, const char *kind, const char *word,
                        size_t length, Error *error) {
    const char *best = NULL, *dashes = strchr(kind, '-');
    size_t least = 4;
    for (size_t i = 0; i < n; i++) {
        if (!names[i]) continue;
        const char *name = names[i];
        const size_t size = strlen(name), shorter = smaller(size, length);
        size_t head = 0, tail = 0;
        while (head < shorter && name[head] == word[head]) head++;
        while (head + tail < shorter && name[size - 1 - tail] == word[length - 1 - tail]) tail++;
        const size_t differ = size + length - shorter - head - tail; /* of the longer one */
        if (differ == 0) return i;
        if (differ < least && differ < size) {
            best = name;
            least = differ;
        }
    }
    const int shown = (int)smaller(length, 60);
    if (best)
        usage(error, "unknown %s%.*s; did you mean %s%s?", kind, shown, word, dashes ? dashes : "",
              best);
    else usage(error, "unknown %s%.*s; --help lists them", kind, shown, word);
    return n;
}

static const Command *find_command(const char *name, Error *error) {
    const char *names[N_COMMANDS];
    for (size_t i = 0; i < N_COMMANDS; i++) names[i] = commands[i]->name;
    const size_t found = find_name(names, N_COMMANDS, "command ", name, strlen(name), error);
    return found < N_COMMANDS ? commands[found] : NULL;
}

/* The option at argv[*i], its value there or in the next argument. */
static int parse_option(Session *s, const Command *command, int argc, char **argv, int *i) {
    const char *names[N_OPTIONS];
    const char *word = argv[*i] + 2, *value = strchr(word, '=');
    const size_t length = value ? (size_t)(value - word) : strlen(word);
    for (size_t k = 0; k < N_OPTIONS; k++)
        names[k] = settings[k].commands & command->bit ? settings[k].name : NULL;
    const size_t found = find_name(names, N_OPTIONS, "option --", word, length, s->error);
    if (found == N_OPTIONS) return 0;
    const Setting *option = &settings[found];
    if (option->kind == SETTING_FLAG) {
        if (value) return usage(s->error, "--%s takes no value", option->name);
        value = "1";
    } else if (value) value++;
    else if (*i + 1 < argc) value = argv[++*i];
    else return usage(s->error, "--%s needs a value", option->name);
    s->given[found] = 1;
    if (setting_parse(option, &s->opt, value, s->error)) return 1;
    s->error->usage = 1;
    return 0;
}

/* Options in any order. A preset is taken first, so that the others override it. */
static int parse_options(Session *s, const Command *command, int argc, char **argv) {
    for (int pass = 0; pass < 2; pass++) {
        s->opt = default_options(command, s->opt.preset == 1);
        s->n_words = 0;
        for (int i = *command->name ? 2 : 1; i < argc; i++) {
            if (is_help(argv[i])) s->help = 1;
            else if (strncmp(argv[i], "--", 2) == 0) {
                if (!parse_option(s, command, argc, argv, &i)) return 0;
            } else if (!command->argument)
                return usage(s->error, "unexpected argument '%.60s'", argv[i]);
            else if (s->n_words++ < MAX_WORDS) s->words[s->n_words - 1] = argv[i];
        }
    }
    if (s->n_words > MAX_WORDS)
        return usage(s->error, "too many arguments: %zu, at most %d", s->n_words, MAX_WORDS);
    if (is_given(s, "epochs") && !is_given(s, "steps")) s->opt.settings.recipe.steps = 0;
    return 1;
}

/* The command line proper: a command and its options. */
static int run_line(Session *s, Report *r, int argc, char **argv) {
    const char *name = argc > 1 && strncmp(argv[1], "--", 2) != 0 ? argv[1] : "";
    const Command *command = find_command(name, s->error);
    if (!command || !parse_options(s, command, argc, argv)) return 0;
    const Options *o = &s->opt;
    const int threads = (int)o->threads;
    if (o->width) r->width = o->width;
    if (s->help) {
        command_help(command, r);
        return 1;
    }
    if (!o->init && !o->resume && !config_check(&o->settings.config, s->error)) {
        s->error->usage = 1;
        return 0;
    }
    r->kind = o->csv ? REPORT_CSV : REPORT_TEXT;
    r->color = wants_color(r->out, o->color != 0, o->no_color != 0);
    if (use_threads(threads) < threads)
        remark(s, "this build has no threads: --threads %d changes nothing", threads);
    return run_command(s, command, r);
}

int median_command(int argc, char **argv, const Streams *streams, Text *text, Error *error) {
    const char *first = argc > 1 ? argv[1] : "";
    Report r = {.out = streams->out, .width = terminal_width(streams->out)};
    int done = 1;
    /* Too big for a small stack. */
    Session *s = (Session *)allocate(sizeof *s, "the command", error);
    if (!s) return 0;
    s->error = error;
    s->program = argc > 0 ? argv[0] : "median";
    s->streams = *streams;
    if (streams->model) s->model = *streams->model;
    if (is_help(first) || strcmp(first, "help") == 0) general_help(&r);
    else if (strcmp(first, "--version") == 0) say(&r, "median " MEDIAN_VERSION "\n");
    else done = run_line(s, &r, argc, argv);
    if (!streams->model) model_free(&s->model);
    free(s);
    report_flush(&r);
    text_free(&r.cells);
    if (done && r.text.failed) done = fail(error, "out of memory");
    if (r.out && (fflush(r.out) != 0 || ferror(r.out)) && done)
        done = fail(error, "cannot write to standard output");
    *text = r.text;
    return done;
}

#ifndef MEDIAN_NO_MAIN

/* What the outside does to a program before it runs. A file that is opened while stdin, stdout or
 * stderr is closed would take its place, and get its text; so something that fails to read or write
 * does. */
static void prepare_process(void) {
#ifdef HAVE_STAT
    for (int stream = 0; stream < 3; stream++)
        if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY) < 0)
            continue;
#endif
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* then a write beyond the limit on file sizes fails like any other */
#endif
#ifdef _WIN32
    _setmode(_fileno(stdout), _O_BINARY);
#endif
}

int main(int argc, char **argv) {
    const Streams streams = {.in = stdin, .out = stdout, .progress = stderr};
    const char *problem = NULL;
    Text text = {0};
    Error error = {0};
    int done = 0;
    prepare_process();
    if (ieee_setup(&problem)) done = median_command(argc, argv, &streams, &text, &error);
    else fail(&error, "%s", problem);
    text_free(&text);
    if (done) return 0;
    fprintf(stderr, "median: %s\n", error.text);
    return error.usage ? 2 : 1;
}

#endif
