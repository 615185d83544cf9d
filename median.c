/* median.c - a one-layer transformer learns to name the median of a list, and is then taken apart.
 *
 * Read it from top to bottom: the task, the model, its forward and backward pass, training, checkpoints; then the
 * instruments for looking inside. The arithmetic of the layers, with their gradients, is in tensor.c. */
#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("O2")
#endif

#include "median.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- Errors and memory ----------------------------------------------------------------------------------------- */

#if defined __GNUC__
#define PRINTF_LIKE(text, args) __attribute__((format(printf, text, args)))
#else
#define PRINTF_LIKE(text, args)
#endif

/* Notes why something failed; returns 0, so that `return fail(error, ...)` says it all. */
PRINTF_LIKE(2, 3) static int fail(Error *error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    return 0;
}

/* Lays arrays out in one piece of memory. With base NULL it only counts, so one function both measures a layout and
 * makes it. The count is a double: it cannot overflow, whatever a configuration asks for. */
typedef struct {
    char *base;
    double used;
} Layout;

static void *lay_out(Layout *layout, double count, size_t size) {
    void *place = layout->base ? layout->base + (size_t)layout->used : NULL;
    layout->used += (floor(count * (double)size / 64.0) + 1.0) * 64.0;
    return place;
}

static float *lay_floats(Layout *layout, size_t a, size_t b, size_t c) {
    return (float *)lay_out(layout, (double)a * (double)b * (double)c, sizeof(float));
}

static uint32_t *lay_words(Layout *layout, size_t a, size_t b) {
    return (uint32_t *)lay_out(layout, (double)a * (double)b, sizeof(uint32_t));
}

/* Zeroed memory, or NULL and the amount that is not to be had. */
static void *allocate(double bytes, const char *purpose, Error *error) {
    void *memory = bytes < (double)SIZE_MAX / 4 ? calloc((size_t)bytes + 1, 1) : NULL;
    if (!memory) fail(error, "out of memory: %s would need %.0f MiB", purpose, ceil(bytes / 1048576.0));
    return memory;
}

/* ---- 1. The task ------------------------------------------------------------------------------------------------ */

/* Half a bubble sort without branches: each round carries the greatest number that is left to the end; when more than
 * half have been carried there, the last one carried is the median. */
uint32_t take_median(uint32_t *list, size_t seq_len) {
    for (size_t end = seq_len - 1; end >= seq_len / 2 && end > 0; end--)
        for (size_t i = 0; i < end; i++) {
            const uint32_t a = list[i], b = list[i + 1];
            list[i] = a < b ? a : b;
            list[i + 1] = a < b ? b : a;
        }
    return list[seq_len / 2];
}

void make_lists(Mt19937 *mt, uint32_t *lists, uint32_t *medians, size_t n, size_t max_num, size_t seq_len) {
    uint32_t sorted[MAX_SEQ_LEN];
    for (size_t i = 0; i < n * seq_len; i++) lists[i] = mt_next(mt) % (uint32_t)max_num;
    for (size_t i = 0; i < n; i++) {
        memcpy(sorted, lists + i * seq_len, seq_len * sizeof *lists);
        medians[i] = take_median(sorted, seq_len);
    }
}

/* ---- 2. The model ----------------------------------------------------------------------------------------------- */

Config config_default(void) {
    const Config config = {50, 7, 32, 32, 1, 1, 0, 1};
    return config;
}

int config_check(const Config *c, Error *error) {
    if (c->seq_len % 2 == 0) return fail(error, "Length must be odd: seq_len is %zu", c->seq_len);
    if (c->seq_len < 3) return fail(error, "Length must be at least 3: seq_len is %zu", c->seq_len);
    const struct {
        const char *name;
        size_t value, min, max;
    } ranges[] = {{"max_num", c->max_num, 2, 65536},  {"seq_len", c->seq_len, 3, MAX_SEQ_LEN},
                  {"d_model", c->d_model, 1, 65536},  {"d_head", c->d_head, 1, 65536},
                  {"n_heads", c->n_heads, 1, 4096},   {"n_layers", c->n_layers, 1, 256},
                  {"d_mlp", c->d_mlp, 0, 1048576},    {"normalization", c->normalization, 0, 1}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return fail(error, "%s is %zu, must be %zu to %zu", ranges[i].name, ranges[i].value, ranges[i].min,
                        ranges[i].max);
    return 1;
}

/* Hands out the parameters one tensor after the other; with tensors NULL it only counts. */
typedef struct {
    Tensor *tensors;
    float *params;
    size_t n_tensors;
    double n_params;
} Dealer;

static float *deal(Dealer *dealer, const char *prefix, const char *name, size_t a, size_t b, size_t c) {
    float *data = NULL;
    if (dealer->tensors) {
        Tensor *t = &dealer->tensors[dealer->n_tensors];
        t->n_dims = c ? 3 : b ? 2 : 1;
        t->shape[0] = a, t->shape[1] = b, t->shape[2] = c;
        t->size = a * (b ? b : 1) * (c ? c : 1);
        t->data = data = dealer->params + (size_t)dealer->n_params;
        snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    }
    dealer->n_tensors++;
    dealer->n_params += (double)a * (double)(b ? b : 1) * (double)(c ? c : 1);
    return data;
}

/* All tensors of a configuration, in the order of the file: this one list defines names, shapes and pointers. */
static void deal_weights(Dealer *dealer, const Config *c, Weights *w) {
    const size_t d = c->d_model, heads = c->n_heads;
    w->W_E = deal(dealer, "", "embed.W_E", c->max_num, d, 0);
    w->W_pos = deal(dealer, "", "pos_embed.W_pos", c->seq_len, d, 0);
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerWeights none = {0}, *layer = w->layers ? &w->layers[l] : &none;
        char prefix[24];
        snprintf(prefix, sizeof prefix, "blocks.%u.", (unsigned)l);
        if (c->normalization) {
            layer->ln1_w = deal(dealer, prefix, "ln1.w", d, 0, 0);
            layer->ln1_b = deal(dealer, prefix, "ln1.b", d, 0, 0);
        }
        layer->W_Q = deal(dealer, prefix, "attn.W_Q", heads, d, c->d_head);
        layer->W_K = deal(dealer, prefix, "attn.W_K", heads, d, c->d_head);
        layer->W_V = deal(dealer, prefix, "attn.W_V", heads, d, c->d_head);
        layer->W_O = deal(dealer, prefix, "attn.W_O", heads, c->d_head, d);
        layer->b_Q = deal(dealer, prefix, "attn.b_Q", heads, c->d_head, 0);
        layer->b_K = deal(dealer, prefix, "attn.b_K", heads, c->d_head, 0);
        layer->b_V = deal(dealer, prefix, "attn.b_V", heads, c->d_head, 0);
        layer->b_O = deal(dealer, prefix, "attn.b_O", d, 0, 0);
        if (c->d_mlp && c->normalization) {
            layer->ln2_w = deal(dealer, prefix, "ln2.w", d, 0, 0);
            layer->ln2_b = deal(dealer, prefix, "ln2.b", d, 0, 0);
        }
        if (c->d_mlp) {
            layer->W_in = deal(dealer, prefix, "mlp.W_in", d, c->d_mlp, 0);
            layer->b_in = deal(dealer, prefix, "mlp.b_in", c->d_mlp, 0, 0);
            layer->W_out = deal(dealer, prefix, "mlp.W_out", c->d_mlp, d, 0);
            layer->b_out = deal(dealer, prefix, "mlp.b_out", d, 0, 0);
        }
    }
    if (c->normalization) {
        w->ln_final_w = deal(dealer, "", "ln_final.w", d, 0, 0);
        w->ln_final_b = deal(dealer, "", "ln_final.b", d, 0, 0);
    }
    w->W_U = deal(dealer, "", "unembed.W_U", d, c->max_num, 0);
    w->b_U = deal(dealer, "", "unembed.b_U", c->max_num, 0, 0);
}

int model_create(Model *model, const Config *config, Error *error) {
    Dealer count = {0};
    Weights unused = {0};
    memset(model, 0, sizeof *model);
    if (!config_check(config, error)) return 0;
    deal_weights(&count, config, &unused);

    Layout layout = {0};
    for (int pass = 0; pass < 2; pass++) { /* measure, then lay out */
        model->tensors = (Tensor *)lay_out(&layout, (double)count.n_tensors, sizeof(Tensor));
        model->weights.layers = (LayerWeights *)lay_out(&layout, (double)config->n_layers, sizeof(LayerWeights));
        model->params = (float *)lay_out(&layout, count.n_params, sizeof(float));
        if (pass == 0 && !(layout.base = (char *)allocate(layout.used, "the model", error))) {
            memset(model, 0, sizeof *model);
            return 0;
        }
        if (pass == 0) layout.used = 0;
    }
    Dealer dealer = {model->tensors, model->params, 0, 0};
    deal_weights(&dealer, config, &model->weights);
    model->config = *config;
    model->n_params = (size_t)dealer.n_params;
    model->n_tensors = dealer.n_tensors;
    return 1;
}

void model_free(Model *model) {
    free(model->tensors); /* the first array of the layout */
    memset(model, 0, sizeof *model);
}

void model_init(Model *model, Mt19937 *mt) {
    const float deviation = f32(0.8 / sqrt((double)model->config.d_model));
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        const char *last = strrchr(t->name, '.') + 1;
        if (strncmp(last, "W_", 2) == 0)
            mt_normal(mt, t->data, t->size, deviation);
        else
            for (size_t j = 0; j < t->size; j++) t->data[j] = strcmp(last, "w") == 0 ? 1.0f : 0.0f;
    }
}

/* ---- 3. Running it ---------------------------------------------------------------------------------------------- */

/* Layer 0 sees no lists, only numbers at positions: at most max_num * seq_len different inputs, usually far fewer than
 * the batch has entries. So a layer works on *rows*, with an index that says which row a list's position has. In layer 0
 * the rows are the different (number, position) pairs of the batch, each normalized and projected once; in later layers
 * every position of every list has a row of its own. Rows are ordered by position, so those of the last position, the
 * only one whose query and output matter in the last layer, stand together at the end.
 *
 * Since (a v) W_O = a (v W_O), W_O may go to each row's value before the attention mixes them, or to each list's mix. In
 * layer 0, with its few rows, the former ("folded") is usually cheaper. */
static int is_folded(const Config *c, size_t layer) {
    return layer == 0 && (c->d_model <= c->d_head || c->seq_len * (c->d_model - c->d_head) < c->d_head * c->d_model);
}

static size_t queries_of_layer(const Config *c, size_t layer) { return layer + 1 == c->n_layers ? 1 : c->seq_len; }

static size_t max_rows(const Config *c, size_t layer, size_t lists) {
    return c->seq_len * (layer == 0 && c->max_num < lists ? c->max_num : lists);
}

/* Gradients with respect to a layer's activations; one set serves all layers in turn. */
typedef struct RunGradients {
    float *x, *h;               /* (rows, d_model): of the layer's input */
    float *out;                 /* (Q, d_model): of its output */
    float *q, *k, *v, *vo;      /* of one head: (rows, d_head) three times, (rows, d_model) */
    float *scores, *z;          /* (Q, seq_len), (Q, d_head) */
    float *h2, *pre, *post;     /* (Q, d_model), (Q, d_mlp) twice */
    float *logits, *final_h;    /* (n_lists, max_num), (n_lists, d_model) */
    double *scratch;            /* attention_backward's */
} RunGradients;

static double max_double(double a, double b) { return a > b ? a : b; }

static void lay_out_gradients(Layout *m, const Config *c, RunGradients *g, size_t lists) {
    double rows = 0, queries = (double)lists, scratch = 0;
    for (size_t l = 0; l < c->n_layers; l++) {
        const double r = (double)max_rows(c, l, lists);
        rows = max_double(rows, r);
        queries = max_double(queries, (double)queries_of_layer(c, l) * (double)lists);
        scratch = max_double(scratch, r * (double)(2 * c->d_head + (is_folded(c, l) ? c->d_model : c->d_head)));
    }
    const size_t R = (size_t)rows, Q = (size_t)queries, d = c->d_model;
    const size_t wide = R > Q ? R : Q;
    g->x = lay_floats(m, wide, d, 1), g->out = lay_floats(m, wide, d, 1);
    g->h = lay_floats(m, R, d, 1), g->vo = lay_floats(m, R, d, 1);
    g->q = lay_floats(m, R, c->d_head, 1), g->k = lay_floats(m, R, c->d_head, 1), g->v = lay_floats(m, R, c->d_head, 1);
    g->scores = lay_floats(m, Q, c->seq_len, 1), g->z = lay_floats(m, Q, c->d_head, 1);
    g->h2 = lay_floats(m, Q, d, 1), g->pre = lay_floats(m, Q, c->d_mlp, 1), g->post = lay_floats(m, Q, c->d_mlp, 1);
    g->logits = lay_floats(m, lists, c->max_num, 1), g->final_h = lay_floats(m, lists, d, 1);
    g->scratch = (double *)lay_out(m, scratch, sizeof(double));
}

static void lay_out_run(Layout *m, Run *run, int with_gradients) {
    const Config *c = &run->config;
    const size_t lists = run->capacity, d = c->d_model, heads = c->n_heads;
    run->layers = (LayerRun *)lay_out(m, (double)c->n_layers, sizeof(LayerRun));
    run->gradients = with_gradients ? (RunGradients *)lay_out(m, 1, sizeof(RunGradients)) : NULL;
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerRun count = {0}, *layer = m->base ? &run->layers[l] : &count;
        const size_t R = max_rows(c, l, lists), Q = queries_of_layer(c, l) * lists;
        layer->folded = is_folded(c, l);
        layer->key_row = lay_words(m, lists, c->seq_len), layer->query_row = lay_words(m, Q, 1);
        layer->x = lay_floats(m, R, d, 1);
        layer->h = layer->x;
        if (c->normalization) {
            layer->normal1 = lay_floats(m, R, d, 1), layer->inv_std1 = lay_floats(m, R, 1, 1);
            layer->h = lay_floats(m, R, d, 1);
        }
        layer->q = lay_floats(m, heads, R, c->d_head), layer->k = lay_floats(m, heads, R, c->d_head);
        layer->v = lay_floats(m, heads, R, c->d_head);
        layer->vo = layer->folded ? lay_floats(m, heads, R, d) : NULL;
        layer->pattern = lay_floats(m, heads, Q, c->seq_len);
        layer->z = lay_floats(m, heads, Q, layer->folded ? d : c->d_head);
        if (c->d_mlp) {
            layer->mid = layer->h2 = lay_floats(m, Q, d, 1);
            if (c->normalization) {
                layer->normal2 = lay_floats(m, Q, d, 1), layer->inv_std2 = lay_floats(m, Q, 1, 1);
                layer->h2 = lay_floats(m, Q, d, 1);
            }
            layer->pre = lay_floats(m, Q, c->d_mlp, 1), layer->post = lay_floats(m, Q, c->d_mlp, 1);
            layer->mlp = lay_floats(m, Q, d, 1);
        }
    }
    run->row_token = lay_words(m, max_rows(c, 0, lists), 1), run->row_position = lay_words(m, max_rows(c, 0, lists), 1);
    run->row_of_pair = lay_words(m, c->seq_len, c->max_num);
    run->final = run->final_h = lay_floats(m, lists, d, 1);
    if (c->normalization) {
        run->final_normal = lay_floats(m, lists, d, 1), run->final_inv_std = lay_floats(m, lists, 1, 1);
        run->final_h = lay_floats(m, lists, d, 1);
    }
    run->logits = lay_floats(m, lists, c->max_num, 1), run->probs = lay_floats(m, lists, c->max_num, 1);
    run->loss = lay_floats(m, lists, 1, 1);
    if (with_gradients) {
        RunGradients count;
        lay_out_gradients(m, c, m->base ? run->gradients : &count, lists);
    }
}

int run_create(Run *run, const Config *config, size_t capacity, int with_gradients, Error *error) {
    Layout layout = {0};
    memset(run, 0, sizeof *run);
    run->config = *config;
    run->capacity = capacity;
    lay_out_run(&layout, run, with_gradients);
    const double bytes = layout.used;
    layout.used = 0;
    if (!(layout.base = (char *)allocate(bytes, "a batch of this size", error))) {
        memset(run, 0, sizeof *run);
        return 0;
    }
    lay_out_run(&layout, run, with_gradients);
    run->memory = layout.base;
    run->bytes = (size_t)bytes;
    return 1;
}

void run_free(Run *run) {
    free(run->memory);
    memset(run, 0, sizeof *run);
}

/* Gives each different (number, position) pair of the batch a row of layer 0, position by position. */
static size_t index_pairs(Run *run, const uint32_t *lists, size_t n_lists) {
    const size_t T = run->config.seq_len, V = run->config.max_num;
    LayerRun *layer = &run->layers[0];
    uint32_t *row_of = run->row_of_pair, n_rows = 0;
    memset(row_of, 0, T * V * sizeof *row_of);
    for (size_t i = 0; i < n_lists; i++)
        for (size_t t = 0; t < T; t++) row_of[t * V + lists[i * T + t]] = 1;
    for (size_t t = 0; t < T; t++)
        for (size_t token = 0; token < V; token++)
            if (row_of[t * V + token]) {
                run->row_token[n_rows] = (uint32_t)token, run->row_position[n_rows] = (uint32_t)t;
                row_of[t * V + token] = n_rows++;
            }
    for (size_t i = 0; i < n_lists; i++)
        for (size_t t = 0; t < T; t++) layer->key_row[i * T + t] = row_of[t * V + lists[i * T + t]];
    return n_rows;
}

static void index_rows(Run *run, const uint32_t *lists, size_t n_lists) {
    const size_t T = run->config.seq_len;
    for (size_t l = 0; l < run->config.n_layers; l++) {
        LayerRun *layer = &run->layers[l];
        layer->n_queries = queries_of_layer(&run->config, l);
        layer->n_out = layer->n_queries * n_lists;
        layer->n_rows = l == 0 ? index_pairs(run, lists, n_lists) : T * n_lists;
        layer->first_query = l == 0 ? 0 : (T - layer->n_queries) * n_lists;
        while (l == 0 && run->row_position[layer->first_query] + layer->n_queries < T) layer->first_query++;
        for (size_t i = 0; i < n_lists; i++) {
            if (l > 0)
                for (size_t t = 0; t < T; t++) layer->key_row[i * T + t] = (uint32_t)(t * n_lists + i);
            for (size_t t = T - layer->n_queries, first = t; t < T; t++)
                layer->query_row[(t - first) * n_lists + i] = layer->key_row[i * T + t];
        }
    }
}

static void add_to(float *x, const float *change, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = f32((double)x[i] + change[i]);
}

static void call_hook(const Hook *hook, HookSite site, size_t layer, size_t head, float *values, size_t rows,
                      size_t width) {
    if (hook) hook->call(hook->context, site, layer, head, values, rows, width);
}

static Attention layer_attention(const Config *c, const LayerRun *layer) {
    const Attention a = {layer->n_out / layer->n_queries, c->seq_len, layer->n_queries, c->d_head,
                         layer->folded ? c->d_model : c->d_head, layer->n_rows, layer->n_rows, layer->key_row,
                         layer->query_row};
    return a;
}

/* Attention of one layer: adds to each query's residual what the heads bring from the positions they look at. */
static void forward_attention(const Config *c, const LayerWeights *w, LayerRun *layer, size_t l, float *out,
                              const Hook *hook) {
    const size_t R = layer->n_rows, Q = layer->n_out, d = c->d_model, dh = c->d_head;
    const Attention shape = layer_attention(c, layer);
    const size_t first = layer->first_query;
    gather_forward(out, layer->x, w->b_O, layer->query_row, Q, d);
    for (size_t head = 0; head < c->n_heads; head++) {
        const size_t rows_at = head * R * dh, weights_at = head * d * dh;
        float *q = layer->q + rows_at, *k = layer->k + rows_at, *v = layer->v + rows_at;
        float *pattern = layer->pattern + head * Q * c->seq_len, *z = layer->z + head * Q * shape.d_value;
        const float *W_O = w->W_O + weights_at;
        linear_forward(q + first * dh, NULL, layer->h + first * d, w->W_Q + weights_at, w->b_Q + head * dh, R - first, d, dh);
        linear_forward(k, NULL, layer->h, w->W_K + weights_at, w->b_K + head * dh, R, d, dh);
        linear_forward(v, NULL, layer->h, w->W_V + weights_at, w->b_V + head * dh, R, d, dh);
        attention_pattern(&shape, pattern, q, k);
        call_hook(hook, HOOK_PATTERN, l, head, pattern, Q, c->seq_len);
        if (layer->folded) {
            float *vo = layer->vo + head * R * d;
            linear_forward(vo, NULL, v, W_O, NULL, R, dh, d);
            attention_values(&shape, z, pattern, vo);
            call_hook(hook, HOOK_HEAD, l, head, z, Q, d);
            add_to(out, z, Q * d);
        } else {
            attention_values(&shape, z, pattern, v);
            call_hook(hook, HOOK_HEAD, l, head, z, Q, dh);
            linear_forward(out, out, z, W_O, NULL, Q, dh, d);
        }
    }
}

static void forward_mlp(const Config *c, const LayerWeights *w, LayerRun *layer, size_t l, float *out,
                        const Hook *hook) {
    const size_t Q = layer->n_out, d = c->d_model;
    memcpy(layer->mid, out, Q * d * sizeof *out);
    if (c->normalization)
        layernorm_forward(layer->h2, layer->normal2, layer->inv_std2, layer->mid, w->ln2_w, w->ln2_b, Q, d);
    linear_forward(layer->pre, NULL, layer->h2, w->W_in, w->b_in, Q, d, c->d_mlp);
    relu_forward(layer->post, layer->pre, Q * c->d_mlp);
    linear_forward(layer->mlp, NULL, layer->post, w->W_out, w->b_out, Q, c->d_mlp, d);
    call_hook(hook, HOOK_MLP, l, 0, layer->mlp, Q, d);
    add_to(out, layer->mlp, Q * d);
}

void model_forward(const Model *model, Run *run, const uint32_t *lists, size_t n_lists, const Hook *hook) {
    const Config *c = &model->config;
    const Weights *w = &model->weights;
    const size_t d = c->d_model;
    run->n_lists = n_lists;
    index_rows(run, lists, n_lists);
    embed_forward(run->layers[0].x, w->W_E, w->W_pos, run->row_token, run->row_position, run->layers[0].n_rows, d);
    for (size_t l = 0; l < c->n_layers; l++) {
        LayerRun *layer = &run->layers[l];
        float *out = l + 1 < c->n_layers ? run->layers[l + 1].x : run->final;
        call_hook(hook, HOOK_RESIDUAL, l, 0, layer->x, layer->n_rows, d);
        if (c->normalization)
            layernorm_forward(layer->h, layer->normal1, layer->inv_std1, layer->x, w->layers[l].ln1_w,
                              w->layers[l].ln1_b, layer->n_rows, d);
        forward_attention(c, &w->layers[l], layer, l, out, hook);
        if (c->d_mlp) forward_mlp(c, &w->layers[l], layer, l, out, hook);
    }
    call_hook(hook, HOOK_RESIDUAL, c->n_layers, 0, run->final, n_lists, d);
    if (c->normalization)
        layernorm_forward(run->final_h, run->final_normal, run->final_inv_std, run->final, w->ln_final_w,
                          w->ln_final_b, n_lists, d);
    linear_forward(run->logits, NULL, run->final_h, w->W_U, w->b_U, n_lists, d, c->max_num);
}

double model_loss(Run *run, const uint32_t *medians) {
    double sum = 0;
    cross_entropy_forward(run->loss, run->probs, run->logits, medians, run->n_lists, run->config.max_num);
    for (size_t i = 0; i < run->n_lists; i++) sum += (double)run->loss[i];
    return sum / (double)run->n_lists;
}

/* ---- 4. The backward pass --------------------------------------------------------------------------------------- */

/* The chain rule, layer by layer from the end: g->out is the gradient of what a layer wrote, g->x of what it read. What
 * the residual stream carries past a layer reaches g->x unchanged; the rest comes through the layer's own backward. */

static void backward_mlp(const Config *c, const LayerWeights *w, const LayerWeights *dw, const LayerRun *layer,
                         RunGradients *g) {
    const size_t Q = layer->n_out, d = c->d_model;
    float *dh2 = c->normalization ? g->h2 : g->out;
    memset(g->post, 0, Q * c->d_mlp * sizeof(float));
    memset(g->pre, 0, Q * c->d_mlp * sizeof(float));
    linear_backward(g->post, dw->W_out, dw->b_out, g->out, layer->post, w->W_out, Q, c->d_mlp, d);
    relu_backward(g->pre, g->post, layer->pre, Q * c->d_mlp);
    if (c->normalization) memset(g->h2, 0, Q * d * sizeof(float));
    linear_backward(dh2, dw->W_in, dw->b_in, g->pre, layer->h2, w->W_in, Q, d, c->d_mlp);
    if (c->normalization)
        layernorm_backward(g->out, dw->ln2_w, dw->ln2_b, g->h2, layer->normal2, layer->inv_std2, w->ln2_w, Q, d);
}

static void backward_attention(const Config *c, const LayerWeights *w, const LayerWeights *dw, const LayerRun *layer,
                               RunGradients *g) {
    const size_t R = layer->n_rows, Q = layer->n_out, d = c->d_model, dh = c->d_head, first = layer->first_query;
    const Attention shape = layer_attention(c, layer);
    float *dh_rows = c->normalization ? g->h : g->x;
    for (size_t head = 0; head < c->n_heads; head++) {
        const size_t rows_at = head * R * dh, weights_at = head * d * dh, bias_at = head * dh;
        const float *q = layer->q + rows_at, *k = layer->k + rows_at, *v = layer->v + rows_at;
        const float *pattern = layer->pattern + head * Q * c->seq_len;
        memset(g->q, 0, R * dh * sizeof(float));
        memset(g->k, 0, R * dh * sizeof(float));
        memset(g->v, 0, R * dh * sizeof(float));
        if (layer->folded) {
            memset(g->vo, 0, R * d * sizeof(float));
            attention_backward(&shape, g->q, g->k, g->vo, g->scores, g->scratch, g->out, pattern, q, k,
                               layer->vo + head * R * d);
            linear_backward(g->v, dw->W_O + weights_at, NULL, g->vo, v, w->W_O + weights_at, R, dh, d);
        } else {
            memset(g->z, 0, Q * dh * sizeof(float));
            linear_backward(g->z, dw->W_O + weights_at, NULL, g->out, layer->z + head * Q * dh, w->W_O + weights_at, Q,
                            dh, d);
            attention_backward(&shape, g->q, g->k, g->v, g->scores, g->scratch, g->z, pattern, q, k, v);
        }
        linear_backward(dh_rows + first * d, dw->W_Q + weights_at, dw->b_Q + bias_at, g->q + first * dh,
                        layer->h + first * d, w->W_Q + weights_at, R - first, d, dh);
        linear_backward(dh_rows, dw->W_K + weights_at, dw->b_K + bias_at, g->k, layer->h, w->W_K + weights_at, R, d, dh);
        linear_backward(dh_rows, dw->W_V + weights_at, dw->b_V + bias_at, g->v, layer->h, w->W_V + weights_at, R, d, dh);
    }
}

static void backward_layer(const Config *c, const LayerWeights *w, const LayerWeights *dw, const LayerRun *layer,
                           RunGradients *g) {
    const size_t R = layer->n_rows, d = c->d_model;
    if (c->d_mlp) backward_mlp(c, w, dw, layer, g);
    memset(g->x, 0, R * d * sizeof(float));
    if (c->normalization) memset(g->h, 0, R * d * sizeof(float));
    gather_backward(g->x, dw->b_O, g->out, layer->query_row, layer->n_out, d);
    backward_attention(c, w, dw, layer, g);
    if (c->normalization)
        layernorm_backward(g->x, dw->ln1_w, dw->ln1_b, g->h, layer->normal1, layer->inv_std1, w->ln1_w, R, d);
}

void model_backward(const Model *model, Run *run, const uint32_t *medians, Model *gradient) {
    const Config *c = &model->config;
    const Weights *w = &model->weights, *dw = &gradient->weights;
    const size_t n = run->n_lists, d = c->d_model;
    RunGradients *g = run->gradients;
    float *dfinal_h = c->normalization ? g->final_h : g->out;
    memset(gradient->params, 0, gradient->n_params * sizeof(float));
    memset(g->logits, 0, n * c->max_num * sizeof(float));
    memset(g->out, 0, n * d * sizeof(float));
    memset(g->final_h, 0, n * d * sizeof(float));
    cross_entropy_backward(g->logits, run->probs, medians, f32(1.0 / (double)n), n, c->max_num);
    linear_backward(dfinal_h, dw->W_U, dw->b_U, g->logits, run->final_h, w->W_U, n, d, c->max_num);
    if (c->normalization)
        layernorm_backward(g->out, dw->ln_final_w, dw->ln_final_b, g->final_h, run->final_normal, run->final_inv_std,
                           w->ln_final_w, n, d);
    for (size_t l = c->n_layers; l-- > 0;) {
        backward_layer(c, &w->layers[l], &dw->layers[l], &run->layers[l], g);
        float *of_input = g->x; /* the input's gradient is that of the layer below's output */
        g->x = g->out;
        g->out = of_input;
    }
    embed_backward(dw->W_E, dw->W_pos, g->out, run->row_token, run->row_position, run->layers[0].n_rows, d);
}

/* ---- 5. Training ------------------------------------------------------------------------------------------------ */

size_t argmax(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

Evaluation evaluate(const Model *model, Run *run, const uint32_t *lists, const uint32_t *medians, size_t n,
                    const Hook *hook) {
    Evaluation e = {0};
    const size_t V = model->config.max_num;
    double loss = 0, distance = 0;
    e.lists = n;
    for (size_t at = 0; at < n; at += run->capacity) {
        const size_t batch = n - at < run->capacity ? n - at : run->capacity;
        model_forward(model, run, lists + at * model->config.seq_len, batch, hook);
        model_loss(run, medians + at);
        for (size_t i = 0; i < batch; i++) {
            const size_t guess = argmax(run->logits + i * V, V), truth = medians[at + i];
            const size_t off = guess > truth ? guess - truth : truth - guess;
            loss += (double)run->loss[i];
            e.alerts += run->loss[i] > 0.7f;
            if (off == 0) e.right++;
            else distance += (double)off, e.by_distance[off < 4 ? off - 1 : 3]++;
        }
    }
    if (n) e.accuracy = (double)e.right / (double)n, e.loss = loss / (double)n;
    if (n > e.right) e.mean_distance = distance / (double)(n - e.right);
    return e;
}

Recipe recipe_original(void) {
    const Recipe r = {48000, 24000, 200, 0, 1024, 0, 0, 23, 1, 1, {3e-3f, 0.9f, 0.999f, 1e-8f, 0.0f}, 0.0f};
    return r;
}

Recipe recipe_default(void) {
    const Recipe r = {0, 24000, 0, 40000, 1024, 100, 1, 23, 0, 0, {1e-2f, 0.9f, 0.999f, 1e-8f, 0.0f}, 0.0f};
    return r;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static void lay_out_trainer(Layout *m, Trainer *t) {
    const Recipe *r = &t->recipe;
    const size_t T = t->model.config.seq_len;
    t->lists = lay_words(m, r->trainset_size, T), t->medians = lay_words(m, r->trainset_size, 1);
    t->order = lay_words(m, r->trainset_size, 1);
    t->batch = lay_words(m, r->batch_size, T), t->batch_medians = lay_words(m, r->batch_size, 1);
    t->val_lists = lay_words(m, r->valset_size, T), t->val_medians = lay_words(m, r->valset_size, 1);
}

int trainer_create(Trainer *t, const Recipe *recipe, const Config *config, const Model *start, Error *error) {
    memset(t, 0, sizeof *t);
    t->recipe = *recipe;
    const Recipe *r = &t->recipe;
    Layout layout = {0};
    if (start) config = &start->config;
    if (r->trainset_size == 0 && r->steps == 0) return fail(error, "fresh lists at every step (--trainset-size 0) need --steps");
    if (!model_create(&t->model, config, error) || !model_create(&t->gradient, config, error) ||
        !model_create(&t->m, config, error) || !model_create(&t->v, config, error) ||
        !model_create(&t->average, config, error) || !model_create(&t->best, config, error) ||
        !run_create(&t->run, config, r->batch_size, 1, error)) {
        trainer_free(t);
        return 0;
    }
    lay_out_trainer(&layout, t);
    const double bytes = layout.used;
    layout.used = 0;
    if (!(t->memory = layout.base = (char *)allocate(bytes, "the lists", error))) {
        trainer_free(t);
        return 0;
    }
    lay_out_trainer(&layout, t);

    mt_seed(&t->data, (uint32_t)r->seed + 1);
    make_lists(&t->data, t->val_lists, t->val_medians, r->valset_size, config->max_num, config->seq_len);
    mt_seed(&t->data, (uint32_t)r->seed);
    make_lists(&t->data, t->lists, t->medians, r->trainset_size, config->max_num, config->seq_len);
    for (size_t i = 0; i < r->trainset_size; i++) t->order[i] = (uint32_t)i;
    mt_seed(&t->order_mt, (uint32_t)r->seed + 2);
    model_init(&t->model, &t->order_mt);
    if (start) memcpy(t->model.params, start->params, start->n_params * sizeof(float));
    memcpy(t->average.params, t->model.params, t->model.n_params * sizeof(float));
    memcpy(t->best.params, t->model.params, t->model.n_params * sizeof(float));
    t->steps_per_epoch = r->trainset_size ? (r->trainset_size + r->batch_size - 1) / r->batch_size : 1000;
    t->total_steps = r->steps ? r->steps : r->epochs * t->steps_per_epoch;
    t->best_accuracy = -1.0;
    return 1;
}

void trainer_free(Trainer *t) {
    model_free(&t->model), model_free(&t->gradient), model_free(&t->m);
    model_free(&t->v), model_free(&t->average), model_free(&t->best);
    run_free(&t->run);
    free(t->memory);
    memset(t, 0, sizeof *t);
}

const Model *trainer_weights(const Trainer *t) { return t->recipe.average > 0 ? &t->average : &t->model; }

/* Fisher & Yates: every order equally likely. */
static void shuffle(Mt19937 *mt, uint32_t *order, size_t n) {
    for (size_t i = n; i > 1; i--) {
        const size_t j = mt_next(mt) % (uint32_t)i;
        const uint32_t swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/* The lists of the next step into t->batch; returns how many. */
static size_t next_batch(Trainer *t) {
    const Recipe *r = &t->recipe;
    const size_t T = t->model.config.seq_len;
    if (r->trainset_size == 0) {
        make_lists(&t->data, t->batch, t->batch_medians, r->batch_size, t->model.config.max_num, T);
        return r->batch_size;
    }
    const size_t at = t->step % t->steps_per_epoch * r->batch_size, n = smaller(r->batch_size, r->trainset_size - at);
    if (at == 0 && r->shuffle) shuffle(&t->order_mt, t->order, r->trainset_size);
    for (size_t i = 0; i < n; i++) {
        const size_t from = t->order[at + i];
        memcpy(t->batch + i * T, t->lists + from * T, T * sizeof *t->batch);
        t->batch_medians[i] = t->medians[from];
    }
    return n;
}

/* cos(pi x) for 0 <= x <= 1, by its Taylor series around the nearer of 0 and 1/2. Every factor of a product that feeds
 * a sum is a float. */
static float cos_pi(float x) {
    /* c = sum of (-1)^k (pi y)^2k / (2k)!, by Horner's rule from the last term, |y| <= 1/2 */
    const float y = x <= 0.5f ? x : f32(1.0 - (double)x);
    const float square = f32(9.8696044010893586 * (double)f32((double)y * y));
    float c = 0.0f;
    for (int k = 9; k >= 0; k--) c = f32(1.0 - (double)f32((double)square * c) / (double)((2 * k + 1) * (2 * k + 2)));
    return x <= 0.5f ? c : -c;
}

static float learning_rate(const Trainer *t) {
    const Recipe *r = &t->recipe;
    const double lr = (double)r->adam.lr;
    if (t->step < r->warmup) return f32(lr * (double)(t->step + 1) / (double)r->warmup);
    if (!r->cosine) return r->adam.lr;
    return f32(lr * 0.5 * (1.0 + (double)cos_pi(f32((double)(t->step - r->warmup) / (double)(t->total_steps - r->warmup)))));
}

int trainer_step(Trainer *t) {
    const size_t n = next_batch(t);
    model_forward(&t->model, &t->run, t->batch, n, NULL);
    t->loss = model_loss(&t->run, t->batch_medians);
    if (!(t->loss < HUGE_VAL)) return 0;
    model_backward(&t->model, &t->run, t->batch_medians, &t->gradient);
    t->lr = learning_rate(t);
    Adam adam = t->recipe.adam;
    adam.lr = t->lr;
    t->step++;
    adam_step(&adam, (uint32_t)t->step, t->model.params, t->m.params, t->v.params, t->gradient.params, t->model.n_params);
    if (t->recipe.average > 0) average_step(t->average.params, t->model.params, t->recipe.average, t->model.n_params);
    return 1;
}
