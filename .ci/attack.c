/* attack.c - tries to catch `certify` in a false statement.
 *
 *   cc -O2 -DMEDIAN_NO_MAIN .ci/attack.c median.c tensor.c -lm -o attack
 *   ./attack 60            for a minute; then it says how many networks and lists it tried
 *   ./attack 1 4711        network 4711 alone
 *
 * Makes small networks of every kind that could break a bound: weights from 1e-38 to 3e38, sparse,
 * with equal rows or columns, constant, huge with tiny differences, with results that are flushed
 * to 0; one to three heads, with LN, LNPre or none; and biases that make lists nearly tie. Each
 * cell of the certificate is compared with every list, run. */
#include "../median.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LISTS = 20000, MOST = 8 };

static Mt19937 mt;

static uint32_t below(uint32_t n) { return mt_next(&mt) % n; }

/* Between -1 and 1. */
static double real(void) { return (double)mt_next(&mt) / 2147483648.0 - 1; }

static double power_of_ten(double exponent) {
    double x = 1;
    for (; exponent >= 1; exponent -= 1) x *= 10;
    for (; exponent <= -1; exponent += 1) x /= 10;
    return x * (1 + exponent); /* near enough */
}

static float legal(double x) {
    const double most = 3e38;
    return f32(x > most ? most : x < -most ? -most : x);
}

/* Fills a tensor of `rows` rows. */
static void fill(float *x, size_t size, size_t rows, int wild) {
    const uint32_t kind = below(10), shape = below(8), width = (uint32_t)(size / rows);
    const double scale = power_of_ten(wild ? 38 * real() : 1.5 * real());
    for (size_t i = 0; i < size; i++) {
        double value = scale * real();
        if (kind == 0) value = 0;
        if (kind == 1) value = below(4) ? 0 : value;
        if (kind == 2) value = scale * (1 + (double)below(4) / 8388608);
        if (kind == 3) value = scale * ((double)below(5) - 2);
        if (kind == 4) value = scale * (below(2) ? 1 : -1);
        x[i] = legal(value);
    }
    for (size_t i = 0; i < size; i++) {
        if (shape == 0) x[i] = x[i % width];           /* equal rows */
        if (shape == 1) x[i] = x[i - i % width];       /* equal columns */
        if (shape == 2) x[i] = x[0];
        if (shape == 3) x[i] = legal((double)x[i] + 1000 * scale);
    }
}

static Config random_config(void) {
    Config c = config_default();
    c.max_num = 2 + below(5);
    c.seq_len = 3 + 2 * below(c.max_num < 4 ? 3 : c.max_num < 7 ? 2 : 1);
    c.d_model = 1 + below(6);
    c.d_head = 1 + below(5);
    c.n_heads = 1 + below(3);
    c.n_layers = 1;
    c.d_mlp = 0;
    c.normalization = below(3);
    if (below(40) == 0) c.d_model = 60 + below(80);
    if (below(40) == 0) c.d_head = 60 + below(280);
    return c;
}

static void fill_model(Model *model) {
    const int wild = below(4) == 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        const int norm = strstr(t->name, ".w") != NULL;
        if (norm && below(2)) {
            for (size_t j = 0; j < t->size; j++) t->data[j] = 1;
            continue;
        }
        fill(t->data, t->size, t->n_dims > 1 ? t->size / t->shape[t->n_dims - 1] : 1, wild && below(2));
    }
}

/* Large numbers that cancel: what the heads bring is small beside the residual stream, or cancels
 * its biases; or their bits are lost one after the other. */
static void fill_cancelling(Model *model) {
    const Config *c = &model->config;
    LayerWeights *w = model->weights.layers;
    const double large = power_of_ten(2 + 3 * (1 + real()));
    const uint32_t kind = below(4);
    for (size_t i = 0; i < c->seq_len * c->d_model && kind < 2; i++)
        model->weights.W_pos[i] = legal((double)model->weights.W_pos[i] + large);
    for (size_t k = 0; k < c->d_model && kind == 1; k++) w->b_O[k] = legal((double)w->b_O[k] - large);
    for (size_t i = 0; i < c->n_heads * c->d_head && kind == 2; i++) w->b_V[i] = legal((double)w->b_V[i] + large);
    if (kind < 3) return;
    const double ulp = 0.0009765625, each = 0.49 * ulp / (c->d_head < 64 ? (double)c->d_head : 64); /* of 8192 */
    for (size_t i = 0; i < c->seq_len * c->d_model; i++) model->weights.W_pos[i] = i % c->d_model ? 0 : 8192;
    for (size_t i = 0; i < c->n_heads * c->d_head; i++) w->b_V[i] = 1;
    for (size_t i = 0; i < c->n_heads * c->d_head * c->d_model; i++) {
        w->W_V[i] = 0;
        w->W_O[i] = i % c->d_model ? 0 : legal(each);
    }
    for (size_t i = 0; i < c->max_num * c->d_model; i++) model->weights.W_E[i] = i % c->d_model ? legal(real()) : 0;
    for (size_t k = 0; k < c->d_model; k++) w->b_O[k] = 0;
}

static void run_all(const Model *model, Run *run, uint32_t *lists, size_t n) {
    const size_t V = model->config.max_num, T = model->config.seq_len;
    for (size_t i = 0; i < n; i++) {
        size_t rest = i;
        for (size_t t = 0; t < T; t++) {
            lists[i * T + t] = (uint32_t)(rest % V);
            rest /= V;
        }
    }
    model_forward(model, run, lists, n, NULL);
}

/* Changes b_U so that some list's median and a rival all but tie. */
static void make_tie(Model *model, const Run *run, const uint32_t *lists, size_t n) {
    const size_t V = model->config.max_num, T = model->config.seq_len, i = mt_next(&mt) % n;
    const size_t m = median_of(lists + i * T, T), v = below((uint32_t)V);
    const double margin = (double)run->logits[i * V + m] - (double)run->logits[i * V + v];
    model->weights.b_U[v] = legal((double)model->weights.b_U[v] + margin * (1 + 1e-7 * real() * below(3)));
    for (size_t j = 0; j < V && below(2); j++)
        if (j != m && j != v) model->weights.b_U[j] = legal((double)model->weights.b_U[j] - fabs(margin));
}

/* The certificate against all lists; 0 if it states what is not so. */
static int compare(const Model *model, const Certificate *c, double least, const Run *run,
                   const uint32_t *lists, size_t n) {
    const size_t V = model->config.max_num, T = model->config.seq_len;
    static uint64_t count[MOST * MOST][2];
    uint64_t clear = 0; /* right, by `least` or more */
    memset(count, 0, sizeof count);
    for (size_t i = 0; i < n; i++) {
        const float *logits = run->logits + i * V;
        const size_t m = median_of(lists + i * T, T), last = lists[i * T + T - 1];
        const int right = argmax(logits, V) == m && logits[m] - logits[m] == 0;
        count[last * V + m][!right]++;
        double margin = right ? INFINITY : -1;
        for (size_t v = 0; v < V; v++) {
            const double lead = (double)logits[m] - (double)logits[v];
            if (v != m && lead < margin) margin = lead;
        }
        clear += margin >= least;
    }
    int good = c->right <= clear + c->lists_run;
    for (size_t i = 0; i < V * V; i++) {
        const uint64_t *cell = c->cells[i], *is = count[i];
        good &= cell[0] <= is[0] && cell[1] <= is[1] && cell[0] + cell[1] + cell[2] == is[0] + is[1];
    }
    return good && c->right + c->wrong + c->undecided == n;
}

int main(int argc, char **argv) {
    const double seconds = argc > 1 ? atof(argv[1]) : 10;
    const clock_t start = clock();
    uint32_t seed = argc > 2 ? (uint32_t)atof(argv[2]) : 0;
    uint64_t tried = 0, proofs = 0, n_lists = 0, decided = 0, run_lists = 0, refused = 0;
    if (!ieee_setup(NULL)) return 1;
    do {
        Error error = {{0}, 0};
        Model model;
        Run run;
        mt_seed(&mt, ++seed);
        const Config config = random_config();
        size_t n = 1;
        for (size_t t = 0; t < config.seq_len; t++) n *= config.max_num;
        uint32_t *lists = (uint32_t *)malloc(n * config.seq_len * sizeof *lists);
        if (!lists || !model_create(&model, &config, &error) ||
            !run_create(&run, &config, n, RUN_FORWARD, &error))
            return fprintf(stderr, "attack: %s\n", error.text), 1;
        fill_model(&model);
        if (below(4) == 0) fill_cancelling(&model);
        for (uint32_t round = 0; round < 4; round++) {
            const CertifyOptions options = {.least = round < 2 ? 0 : power_of_ten(3 * real() - 3),
                                            .effort = round == 1 ? 1 : 1000};
            Certificate c;
            run_all(&model, &run, lists, n);
            tried++;
            if (certify(&model, &options, &c, &error)) {
                proofs++;
                n_lists += n;
                decided += c.right + c.wrong;
                run_lists += c.lists_run;
                if (!compare(&model, &c, options.least, &run, lists, n))
                    return fprintf(stderr, "attack: network %u, round %u: the certificate is false\n", (unsigned)seed, (unsigned)round), 1;
                certificate_free(&c);
            } else refused++;
            make_tie(&model, &run, lists, n);
        }
        run_free(&run);
        model_free(&model);
        free(lists);
    } while ((double)(clock() - start) / CLOCKS_PER_SEC < seconds && argc < 3);
    printf("%" PRIu64 " networks, %" PRIu64 " refused; of %" PRIu64 " lists %" PRIu64 " decided, %" PRIu64
           " of them run: every statement holds\n", tried, refused, n_lists, decided, run_lists);
    return 0;
}
