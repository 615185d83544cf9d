/* perfect.c - trains on what `certify` finds wrong, until it proves that nothing is.
 *
 *   cc -O3 -march=native .ci/perfect.c tensor.c -lm -o perfect
 *   ./perfect median.safetensors perfect.safetensors 60     at most 60 rounds
 *
 * A round: certify; remember the lists that it had to run and found wrong or nearly so; train on them, on hard lists and on
 * lists of all kinds; certify again. The network with the fewest wrong lists is kept. */
#define MEDIAN_NO_MAIN
#include "../median.c"

enum { ALL = 400000, WORST = 200000, WIDTH = CERTIFIED_SEQ_LEN };

/* Two collections: lists with margins below `limit`, and those that are wrong or all but wrong. */
typedef struct {
    uint32_t (*all)[WIDTH], (*worst)[WIDTH];
    size_t n_all, n_worst, seq_len;
    double limit;
    Mt19937 mt;
} Found;

static void keep(uint32_t (*lists)[WIDTH], size_t *n, size_t room, const uint32_t *list, Found *f) {
    const size_t to = *n < room ? (*n)++ : mt_next(&f->mt) % room;
    memcpy(lists[to], list, f->seq_len * sizeof *list);
}

static void found(void *context, const uint32_t *list, double margin) {
    Found *f = (Found *)context;
    if (margin < f->limit) keep(f->all, &f->n_all, ALL, list, f);
    if (margin < 0.05) keep(f->worst, &f->n_worst, WORST, list, f);
}

static void shuffle_list(Mt19937 *mt, uint32_t *list, size_t n) {
    uint32_t words[MAX_SEQ_LEN];
    mt_fill(mt, words, n - 1);
    shuffle(list, n, words, n - 1);
}

/* A median, and others near it or anywhere; or, with extremes, at the ends of the range and right beside it. */
static uint32_t special_list(Mt19937 *mt, int extremes, uint32_t *list, uint32_t V, size_t T) {
    const uint32_t m = mt_next(mt) % V, width = 1 + mt_next(mt) % 4;
    for (size_t j = 0; j < T / 2; j++) {
        const uint32_t low[4] = {mt_next(mt) % (m + 1), 0, m, m ? m - 1 : 0};
        const uint32_t high[4] = {m + mt_next(mt) % (V - m), V - 1, m, m + 1 < V ? m + 1 : m};
        const uint32_t down = mt_next(mt) % (width + 1), up = mt_next(mt) % (width + 1), near = mt_next(mt) & 1;
        list[2 * j] = extremes ? low[mt_next(mt) % 4] : near ? m - (down > m ? m : down) : low[0];
        list[2 * j + 1] = extremes ? high[mt_next(mt) % 4] : near ? (m + up < V ? m + up : V - 1) : high[0];
    }
    list[T - 1] = m;
    shuffle_list(mt, list, T);
    return m;
}

/* A fifth of the batch are lists found wrong, a fifth found nearly so (half of either with the order of all but the last number
 * changed), three tenths hard lists, the rest of all kinds. */
static void make_batch(Trainer *t, const Found *f) {
    const size_t B = t->recipe.batch_size, T = f->seq_len, V = t->model.config.max_num, first = draw_hard_lists(t);
    const size_t special = first + B * 2 / 5, plain = special + (B - special) / 2;
    for (size_t i = first; i < special; i++) {
        uint32_t *list = t->batch + i * T;
        const int worst = i % 2 && f->n_worst;
        memcpy(list, worst ? f->worst[mt_next(&t->data) % f->n_worst] : f->all[mt_next(&t->data) % f->n_all], T * sizeof *list);
        if (mt_next(&t->data) & 1) shuffle_list(&t->data, list, T - 1);
        t->batch_medians[i] = median_of(list, T);
    }
    for (size_t i = special; i < plain; i++)
        t->batch_medians[i] = special_list(&t->data, (int)(i & 1), t->batch + i * T, (uint32_t)V, T);
    make_training_lists(&t->data, t->batch + plain * T, t->batch_medians + plain, B - plain, V, T, 0.5f);
}

static int train_round(Model *model, const Recipe *recipe, const Found *f, Error *error) {
    Trainer t;
    if (!trainer_create(&t, recipe, NULL, model, error)) return 0;
    for (size_t step = 0; step < recipe->steps; step++) {
        make_batch(&t, f);
        model_forward(&t.model, &t.run, t.batch, recipe->batch_size, NULL);
        model_loss(&t.run, t.batch_medians);
        memcpy(t.batch_loss, t.run.loss, recipe->batch_size * sizeof(float));
        keep_hard_lists(&t, recipe->batch_size);
        model_backward(&t.model, &t.run, t.batch_medians, &t.gradient);
        Adam adam = recipe->adam;
        adam.lr = learning_rate(&t);
        t.step++;
        adam_step(WHOLE, &adam, (uint32_t)t.step, t.model.params, t.m.params, t.v.params, t.gradient.params, t.model.n_params);
    }
    memcpy(model->params, t.model.params, model->n_params * sizeof(float));
    trainer_free(&t);
    return 1;
}

int main(int argc, char **argv) {
    Model model, best;
    Error error = {{0}, 0};
    Found f = {NULL, NULL, 0, 0, 0, 2.0, {{0}, 0}};
    uint64_t fewest = UINT64_MAX;
    if (argc != 4 || !ieee_setup() || !model_load(&model, argv[1], &error) || !model_load(&best, argv[1], &error))
        return fprintf(stderr, "perfect: %s\n", error.text), 1;
    f.all = (uint32_t(*)[WIDTH])calloc(ALL, sizeof *f.all), f.worst = (uint32_t(*)[WIDTH])calloc(WORST, sizeof *f.worst);
    if (!f.all || !f.worst) return 1;
    f.seq_len = model.config.seq_len;
    mt_seed(&f.mt, 77);
    for (unsigned round = 0; round < (unsigned)atoi(argv[3]) && fewest > 0; round++) {
        Certificate c;
        const CertifyOptions options = {0, UINT64_C(1) << 30, NULL, found, &f};
        if (!certify(&model, &options, &c, &error)) return fprintf(stderr, "perfect: %s\n", error.text), 1;
        const uint64_t wrong = c.wrong + c.undecided;
        printf("round %u: %" PRIu64 " wrong, %u lists to learn from\n", round, wrong, (unsigned)f.n_all);
        fflush(stdout);
        certificate_free(&c);
        if (f.n_all > 20000) f.limit = 0.5;
        /* far from the end, wander; near it, take small steps, always from the best */
        const int near = wrong < 500 || fewest < 500;
        Recipe recipe = recipe_default();
        if (wrong < fewest) {
            fewest = wrong, memcpy(best.params, model.params, model.n_params * sizeof(float));
            model_describe(&best, &recipe);
            if (!model_save(&best, argv[2], &error)) return fprintf(stderr, "perfect: %s\n", error.text), 1;
        }
        if (fewest < 5000) memcpy(model.params, best.params, model.n_params * sizeof(float));
        recipe.steps = !near && fewest < 30000 ? 12000 : 6000, recipe.warmup = 200, recipe.valset_size = 100, recipe.hard = 0.3f;
        recipe.adam.lr = near ? 5e-4f : fewest < 30000 ? 1.5e-3f : 3e-3f, recipe.adam.eps = near ? 1e-5f : 1e-8f;
        recipe.seed = 1000 + round;
        if (fewest > 0 && !train_round(&model, &recipe, &f, &error)) return fprintf(stderr, "perfect: %s\n", error.text), 1;
    }
    printf("best: %" PRIu64 " wrong\n", fewest);
    return fewest > 0;
}
