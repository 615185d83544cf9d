/* median.h - a small transformer that learns to find the median of a list of numbers.
 *
 * The chapters have the numbers and the order of those in median.c: the task, the model, running
 * it, training it, keeping it in files, looking inside. What it is built of, the layers and their
 * gradients, is in tensor.h.
 *
 * A function that can fail returns 1 when it is done and 0 when it failed; then *error says why,
 * in one line. Only print_file, median_command and the tests print. Nothing exits, or keeps state
 * between calls, use_threads excepted: two models in one program don't disturb each other. */
#ifndef MEDIAN_H
#define MEDIAN_H

#include "tensor.h"

#include <stdarg.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MEDIAN_VERSION "1.0"

typedef struct {
    char text[1000];
    int usage; /* 1: the caller asked for something impossible */
} Error;

#define MAX_SEQ_LEN 255

/* How many threads training, evaluation and the certificate may use, where OpenMP was compiled
 * in; without it, nothing happens. Returns the number in force, at least 1. No result depends on
 * it. */
int use_threads(int n);

/* ---- 1. The task ----------------------------------------------------------------------------- */

/* n lists of seq_len numbers, each mt_next() % max_num, row by row: the numbers that
 * torch.manual_seed(seed); torch.randint(0, max_num, (n, seq_len)) gives after mt_seed(mt,
 * seed). lists (n, seq_len), medians (n). */
void make_lists(Mt19937 *mt, uint32_t *lists, uint32_t *medians, size_t n, size_t max_num,
                size_t seq_len);

/* What training lists are made of. In the first share `balanced` of them every median is equally
 * likely; of these, numbers repeat often in the first share `ties`. */
typedef struct {
    size_t max_num, seq_len;
    float balanced, ties;
} Mixture;

/* The same, but mixed. */
void make_training_lists(Mt19937 *mt, uint32_t *lists, uint32_t *medians, size_t n,
                         const Mixture *mix);

/* The middle one of seq_len numbers, seq_len odd. */
uint32_t median_of(const uint32_t *list, size_t seq_len);

/* ---- 2. The model ---------------------------------------------------------------------------- */

typedef struct {
    size_t max_num; /* numbers are 0 .. max_num-1: the vocabulary, of inputs and of outputs */
    size_t seq_len; /* numbers in a list; odd, at least 3 */
    size_t d_model, d_head, n_heads, n_layers;
    size_t d_mlp;         /* hidden width of the MLP; 0: no MLP */
    size_t normalization; /* NORMALIZATION_..., below */
} Config;

/* Of the residual stream, before attention, MLP and unembedding. LNPre has no w and b: this is what
 * TransformerLens leaves after it has folded LN's into the next weights. */
enum {
    NORMALIZATION_NONE,
    NORMALIZATION_LN,
    NORMALIZATION_LNPRE,
    NORMALIZATION_FROM_FILE /* no configuration has it: see model_load */
};

/* The original's: max_num 50, seq_len 7, d_model 32, d_head 32, one head, one layer, no MLP,
 * layer normalization. */
Config config_default(void);

/* 0 and a reason if no model can have this configuration. */
int config_check(const Config *config, Error *error);

/* The parameters of a layer. What a configuration doesn't have is NULL. */
typedef struct {
    float *ln1_w, *ln1_b;          /* (d_model) */
    float *W_Q, *W_K, *W_V;        /* (n_heads, d_model, d_head) */
    float *W_O;                    /* (n_heads, d_head, d_model) */
    float *b_Q, *b_K, *b_V, *b_O;  /* (n_heads, d_head) three times, (d_model) */
    float *ln2_w, *ln2_b;          /* (d_model) */
    float *W_in, *b_in;            /* (d_model, d_mlp), (d_mlp) */
    float *W_out, *b_out;          /* (d_mlp, d_model), (d_model) */
} LayerWeights;

typedef struct {
    float *W_E, *W_pos;                   /* (max_num, d_model), (seq_len, d_model) */
    LayerWeights *layers;                 /* n_layers of them */
    float *ln_final_w, *ln_final_b;       /* (d_model) */
    float *W_U, *b_U;                     /* (d_model, max_num), (max_num) */
} Weights;

/* A parameter as a named tensor, under TransformerLens's name. */
typedef struct {
    char name[48];
    size_t n_dims, shape[3], size; /* size: the product of the shape */
    float *data;
    uint32_t *words; /* in place of data, where a training's state has whole numbers, */
    size_t limit;    /* all of them below it, if it is not 0 */
} Tensor;

#define MAX_NOTES 32
#define STATE_TENSORS 8 /* of a training under way */
typedef struct {
    char key[24], value[40];
} Note;

/* All parameters stand in one array, in the order of `tensors`; `weights` points into it. */
typedef struct {
    Config config;
    size_t n_params, n_tensors;
    float *params;
    Weights weights;
    Tensor *tensors; /* with room for STATE_TENSORS more */
    void *memory; /* in which all these arrays stand */
    size_t n_notes; /* what the checkpoint says about its training, as `info` shows it */
    Note *notes;    /* room for MAX_NOTES */
    char remarks[2][200]; /* of model_load: what it assumed, what it passed over; or empty */
} Model;

/* Every parameter 0. model_free releases it, and accepts a model that is all zero bytes. */
int model_create(Model *model, const Config *config, Error *error);
void model_free(Model *model);

/* FNV-1a of all parameters. */
uint64_t hash_model(const Model *model);

/* Every W_* normal with deviation 0.8/sqrt(d_model), in the order of the tensors; biases 0,
 * normalization's w 1. */
void model_init(Model *model, Mt19937 *mt);

/* ---- 3. The forward pass --------------------------------------------------------------------- */

/* The places where a run can be observed or changed while it goes on. */
typedef enum {
    HOOK_RESIDUAL, /* the residual stream that enters the layer (n_layers: ln_final): (rows of that
                      layer, d_model) */
    HOOK_PATTERN,  /* a head's attention: (queries, seq_len); rows must go on adding up to 1 */
    HOOK_HEAD,     /* a head's z, what attention has mixed of its values: (queries, d_head) */
    HOOK_MLP       /* the MLP's output: (queries, d_model) */
} HookSite;

/* Called for each site of each layer, and of each head where it is a head's. values has `rows` rows
 * of `width`. Queries are numbered as tensor.h's Attention does. */
typedef struct {
    void (*call)(void *context, HookSite site, size_t layer, size_t head, float *values,
                 size_t rows, size_t width);
    void *context;
} Hook;

/* What a layer computes for each of its rows of the residual stream: see median.c for what a row
 * is. Rows from first_query on ask. Heads stand one after the other. */
typedef struct {
    size_t n_rows, first_query;
    float *x;               /* (n_rows, d_model): the residual stream that enters the layer */
    float *normal, *inv_std; /* (n_rows, d_model), (n_rows): LN1's, with normalization */
    float *h;               /* (n_rows, d_model): what attention reads; x itself without LN */
    float *q, *k, *v;       /* (n_heads, n_rows, d_head); q of rows that ask */
} LayerRows;

/* Layer 0's rows: the different (number, position) pairs of a set of lists, by position. */
typedef struct {
    LayerRows rows;
    size_t max_rows;
    uint32_t *token, *position;  /* (n_rows): the pair of a row */
    uint32_t *used, *row_of_pair; /* (seq_len, max_num): whether a list has the pair; its row */
} Inputs;

/* What a layer computes for lists. Queries are numbered position by position: the last position's
 * stand at the end. */
typedef struct {
    LayerRows *rows, own_rows;   /* rows: in layer 0 those of the Run's inputs, else own_rows */
    uint32_t *row;               /* (seq_len, n_lists): which row a list has at a position */
    size_t queries_per_list, n_queries;
    float *pattern, *z;          /* (n_heads, n_queries, seq_len), (n_heads, n_queries, d_head) */
    float *resid_mid;            /* (n_queries, d_model): after attention, if there is an MLP */
    float *normal2, *inv_std2, *h2;
    float *pre, *post, *mlp_out; /* (n_queries, d_mlp) twice, (n_queries, d_model) */
} LayerRun;

/* The gradients of a layer's rows, in one block of `size` floats; q's only of rows that ask. */
typedef struct {
    float *x, *q, *k, *v;
    size_t size;
} RowGradients;

/* What a backward pass computes on its way. One layer after the other uses the same arrays; n is
 * the greatest number of rows or queries that one has. */
typedef struct {
    float *out, *h;      /* (n, d_model): of a layer's output, of what LN gave */
    float *z, *pattern;  /* of one head: (n, d_head), (n, seq_len) */
    double *q, *k, *v;   /* of one head: (n, d_head), sums in double */
    float *post;         /* (n, d_mlp) */
    float *rows;         /* the block of a RowGradients of n rows */
} RunGradients;

typedef enum {
    RUN_FORWARD,      /* for forward passes only */
    RUN_GRADIENTS,    /* for backward passes too */
    RUN_ALL_POSITIONS /* forward, with attention and residual of the last layer for every position,
                         not just the last */
} RunKind;

/* The workspace of forward and backward passes over up to `capacity` lists at a time. */
typedef struct {
    Config config;
    RunKind kind;
    size_t capacity, n_lists;
    Inputs *inputs, own_inputs;  /* inputs: own_inputs, or what several runs share */
    LayerRun *layers;
    float *final;                /* (n_lists or queries, d_model): the residual stream at the end */
    float *final_normal, *final_inv_std, *final_h; /* (n_lists, d_model), (n_lists): ln_final's */
    float *logits, *probs, *loss; /* (n_lists, max_num) twice, (n_lists) */
    RunGradients gradients;
    void *memory;                /* everything above, in one piece */
    double bytes;
} Run;

int run_create(Run *run, const Config *config, size_t capacity, RunKind kind, Error *error);
void run_free(Run *run);

/* Logits of n_lists lists (n_lists, seq_len), numbers below max_num, into run->logits. A list's
 * logits don't depend on its companions. hook may be NULL. */
void model_forward(const Model *model, Run *run, const uint32_t *lists, size_t n_lists,
                   const Hook *hook);

/* After model_forward: run->probs and run->loss. Returns the mean loss. */
double model_loss(Run *run, const uint32_t *medians);

/* ---- 4. The backward pass -------------------------------------------------------------------- */

/* After model_loss: the gradient of the mean loss, written to `gradient`, a model of the same
 * configuration. Uses run->probs up. */
void model_backward(const Model *model, Run *run, const uint32_t *medians, Model *gradient);

/* ---- 5. Training ----------------------------------------------------------------------------- */

/* The index of the greatest of n logits, the first of equals. */
size_t argmax(const float *logits, size_t n);

typedef struct {
    size_t lists, right;
    double accuracy, loss;             /* right / lists; mean cross-entropy */
    double mean_distance;              /* of the wrong ones: mean |prediction - median| */
    size_t by_distance[4];             /* wrong by 1, 2, 3, more */
    size_t alerts;                     /* lists whose loss exceeds 0.7 */
    double loss_sum, distance_sum;
} Evaluation;

/* Adds the lists of the latest model_forward to *e, which is all 0 at first. */
void evaluate_batch(Run *run, const uint32_t *medians, Evaluation *e);

/* A workspace for each thread: n of them. */
typedef struct {
    size_t n;
    Run *each;
} Runs;

int runs_create(Runs *runs, const Config *config, size_t capacity, RunKind kind, Error *error);
void runs_free(Runs *runs);

/* Runs n lists, any number, and adds them to *e, all 0 at first. */
void evaluate(const Model *model, Runs *runs, const uint32_t *lists, const uint32_t *medians,
              size_t n, Evaluation *e);

typedef struct {
    size_t trainset_size;   /* lists made once, with the seed; 0: fresh lists at every step */
    size_t valset_size;     /* lists of seed + 1 */
    size_t epochs, steps;   /* steps counts if it is not 0, and always with fresh lists */
    size_t batch_size;
    size_t warmup;          /* steps in which the learning rate grows linearly */
    size_t cosine;          /* 1: then falls to 0 along half a cosine; 0: stays */
    size_t seed, no_shuffle; /* no_shuffle: 1: the lists always in the order of the set */
    size_t keep_best;       /* 1: the weights with the best validation accuracy, 0: the last */
    Adam adam;
    float balanced;         /* share of the training lists whose medians are evenly distributed */
    float ties;             /* share of these in which numbers repeat */
    float hard; /* share of a batch of fresh lists that are drawn from those found hard before */
} Recipe;

Recipe recipe_default(void);
Recipe recipe_original(void);

typedef struct Worker Worker;

/* A training under way. Between two steps it is complete in itself: it can be saved and
 * continued. */
typedef struct {
    Recipe recipe;
    Mixture mix;
    Model model, gradient, m, v, best;
    Inputs inputs;          /* of the batch */
    float *row_gradients;   /* of the inputs: the block of a RowGradients */
    float *scratch;         /* (rows of the inputs, d_model) */
    size_t n_workers;
    Worker *workers;        /* one a thread */
    Runs runs;              /* for validation */
    Mt19937 data, order_mt;
    uint32_t *lists, *medians;     /* (trainset_size, seq_len), (trainset_size) */
    uint32_t *order, *order_words; /* (trainset_size): as they are taken; words for the shuffle */
    uint32_t *batch, *batch_medians;
    float *batch_loss;
    uint32_t *val_lists, *val_medians;
    uint32_t *hard, *hard_medians; /* (hard_room, seq_len), (hard_room): n_hard hard lists */
    uint32_t *drawn;               /* which of them are the first n_drawn of the batch */
    size_t n_hard, hard_room, n_drawn;
    size_t step, total_steps, steps_per_epoch;
    float lr;               /* of the last step */
    double loss, accuracy;  /* of its batch */
    Evaluation validation;  /* the latest, if there was one */
    int validated;
    size_t best_right;      /* at the best validation */
    void *memory;
} Trainer;

/* Starts a training of `start`'s configuration from its weights, if they are given, or from new
 * ones. */
int trainer_create(Trainer *trainer, const Recipe *recipe, const Config *config, const Model *start,
                   Error *error);
void trainer_free(Trainer *trainer);

/* One step, and the validation if it ends an epoch (1000 steps with fresh lists) or the
 * training. Returns 0, and leaves the weights as they are, if the loss is no longer finite. */
int trainer_step(Trainer *trainer);

/* The weights to keep, described: those of the best validation, or of the latest, as the recipe
 * says. */
Model *trainer_result(Trainer *trainer);

/* ---- 6. Text and settings -------------------------------------------------------------------- */

/* Output under construction, all zero at first. failed is set when memory ran out. */
typedef struct {
    char *data;
    size_t size, capacity;
    int failed, fixed; /* fixed: data is the caller's array; what exceeds its capacity is cut */
} Text;

/* Formats are printf's, for %s %c %d %u %x %f %g %% with the flags -, + and, where no sign comes,
 * 0, width, precision, '*', and the lengths z, l, ll; what comes out does not depend on platform
 * or locale. */
TENSOR_PRINTF(2, 3) void text_add(Text *text, const char *format, ...);
void text_add_args(Text *text, const char *format, va_list args);
void text_bytes(Text *text, const void *bytes, size_t n);
void text_free(Text *text);

/* The same into an array of `size` characters, at least 1; 0 if it had to be cut. Or to a file, if
 * it is not NULL; 0 if that failed. */
TENSOR_PRINTF(3, 4) int print_to(char *to, size_t size, const char *format, ...);
int print_to_args(char *to, size_t size, const char *format, va_list args);
TENSOR_PRINTF(2, 3) int print_file(FILE *file, const char *format, ...);

typedef struct {
    Config config;
    Recipe recipe;
} Settings;

#define LIST_SIZE 256
typedef enum {
    SETTING_COUNT,
    SETTING_REAL,
    SETTING_CHOICE,
    SETTING_FLAG,
    SETTING_PATH,
    SETTING_LIST
} SettingKind;

/* A named value in a struct: size_t, float, const char *, or for a list char[LIST_SIZE]. */
typedef struct {
    const char *name;
    SettingKind kind;
    size_t offset;
    double min, max;
    const char *choices; /* "a|b|c" */
    int32_t commands;    /* which take it as an option: see median.c */
    const char *help;
} Setting;

extern const Setting settings[]; /* the first n_settings of them are the fields of Settings */
extern const size_t n_settings;

/* What is not set, or is no value that may be given, is printed as "". */
int setting_parse(const Setting *setting, void *base, const char *text, Error *error);
void setting_print(const Setting *setting, const void *base, char *text, size_t size);

/* Notes configuration and recipe in the model, to be saved with it. */
void model_describe(Model *model, const Recipe *recipe);

/* ---- 7. Checkpoints -------------------------------------------------------------------------- */

/* Replaces the file as a whole or, when something goes wrong, not at all, whenever the program
 * may end: the text goes to PATH.tmp, which then takes the name. What a crash of the whole
 * system leaves is up to the file system: C has no way to wait for the disk. On Windows the old
 * file goes a moment before. Devices and pipes are written straight. */
int write_file(const char *path, const Text *text, Error *error);
int model_save(const Model *model, const char *path, Error *error);

/* A training under way, to and from a file. What goes on from there ends with the same bits as
 * without interruption. */
int trainer_save(Trainer *trainer, const char *path, Error *error);
int trainer_resume(Trainer *trainer, const char *path, Error *error);

/* Creates *model from a safetensors file of F32, F16, BF16 or F64 numbers. normalization is for
 * a file that does not say what it has; NORMALIZATION_FROM_FILE leaves it to the file. What was
 * assumed or passed over stands in model->remarks. */
int model_load(Model *model, const char *path, size_t normalization, Error *error);

/* ---- 12. Circuits ---------------------------------------------------------------------------- */

#define NO_POSITION SIZE_MAX

/* A head's QK circuit: the score of query number t (row) for key number s (column). Its OV
 * circuit: what attending to number s (row) adds to the logit of v (column). Raw: the products
 * of the weight matrices alone, with W_pos added where a position is given. Otherwise with LN1,
 * biases and 1/sqrt(d_head), and OV in logits: centred, through ln_final's `scale` and w; query_pos
 * NO_POSITION then means the last, key_pos NO_POSITION the mean over all. */
typedef enum { CIRCUIT_QK, CIRCUIT_OV } CircuitKind;

typedef struct {
    CircuitKind kind;
    int raw;
    size_t layer, head, query_pos, key_pos;
    float scale; /* of ln_final, such as mean_scale() */
} Circuit;

/* ln_final's scale, 1 / the deviation of what it normalizes: the mean over n lists; 1 without
 * normalization. */
float mean_scale(const Model *model, Run *run, const uint32_t *lists, size_t n);

/* table (max_num, max_num); scratch: circuit_scratch() floats. */
void circuit_table(const Model *model, const Circuit *which, float *table, float *scratch);
size_t circuit_scratch(const Config *config);

/* ---- 13. Intervening ------------------------------------------------------------------------- */

#define ALL_HEADS SIZE_MAX
#define ALL_POSITIONS SIZE_MAX

/* A place in the network: an intervention replaces the values that are found there. */
typedef struct {
    HookSite site;
    size_t layer, head, position; /* head counts where the site is a head's */
} Target;

typedef enum {
    REPLACE_MEAN,     /* by the mean over the source's lists */
    REPLACE_ZERO,
    REPLACE_RESAMPLE, /* by the source's value for the next list */
    REPLACE_SAME      /* by the source's value for the same list: patching */
} ReplaceKind;

/* model_forward over source->n_lists lists with the targets' values replaced, all together, by
 * what `source` holds from an earlier model_forward in the same kind of Run. Patching the
 * residual stream of layer 0 needs source->n_lists 1, since lists share rows there. */
void run_intervention(const Model *model, Run *run, const Run *source, const uint32_t *lists,
                      ReplaceKind kind, const Target *targets, size_t n_targets);

/* One summand of the last position's logits, for two numbers. */
typedef struct {
    const char *part; /* "embedding", "position", "head", "b_O", "mlp", "ln_final.b", "b_U" */
    size_t layer, head, position; /* a head's: the position attended to */
    double logit[2];
} Term;

typedef struct {
    size_t numbers[2];    /* whose logits */
    float inv_std;        /* ln_final's scale, taken as given */
    Term *terms;          /* room for attribution_terms() */
    size_t n_terms;
    double sum[2];
} Attribution;

/* Direct attribution of the logits of the first list in run; scratch: d_model + d_head floats. */
void attribute(const Model *model, const Run *run, Attribution *a, float *scratch);
size_t attribution_terms(const Config *config);

/* ---- 14. The explanation, turned into weights ------------------------------------------------ */

/* A network of one layer and one head, of d_model n + 1, whose logits are, times something positive
 * that depends on the list,
 *
 *   logit(m) = sum_i (to[0][m] + sum_(j > 0) from[x_i][j] to[j][m])
 *
 * from (max_num, n), in which entries 0 are set, and rows are no longer than 1 without them;
 * to (n, max_num). n is at least 2. */
int network_of_sums(Model *model, size_t max_num, size_t seq_len, size_t n, float *from,
                    const float *to, Error *error);

/* The network that names the median of every list. *slack: how many votes a majority of one has for
 * certain. It fails if d_model leaves too little of that; max_num + 1 is always enough. */
int construct(Model *model, size_t max_num, size_t seq_len, size_t d_model, double *slack,
              Error *error);

/* ---- 15. The certificate --------------------------------------------------------------------- */

#define CERTIFIED_SEQ_LEN 63 /* no longer list has less than 2^64 cases */

/* A list that is kept, as one of those with the least keys. */
typedef struct {
    uint64_t count;     /* for how many lists it stands that are alike; 0: none is kept here */
    double key, margin; /* margin: the median's logit minus the greatest of the others */
    size_t median, rival; /* rival: the greatest of the others */
    int right;
    uint32_t list[CERTIFIED_SEQ_LEN];
} Sighting;

typedef enum { CERTIFIED_RIGHT, CERTIFIED_WRONG, CERTIFIED_OPEN } Verdict;

typedef struct {
    double least;    /* a set of lists is proven only if all its margins are this great, right or
                        wrong; a list that is run may have any */
    uint64_t effort; /* millions of table entries to look at, in all; what is left is undecided */
    int (*go_on)(void *context, double done); /* may be NULL; returns 0 to stop */
    void *context;
} CertifyOptions;

#define SIGHTINGS 8

typedef struct {
    uint64_t lists, right, wrong, undecided; /* lists: max_num^seq_len, the sum of the others */
    uint64_t (*cells)[3]; /* (max_num, max_num): by last number and median, of which Verdict */
    uint64_t boxes, lists_run; /* sets looked at; lists run */
    int interrupted;
    Sighting closest[SIGHTINGS]; /* of the lists that were run, those of least |margin| */
    Sighting worst[SIGHTINGS];   /* wrong lists, each for the set that it was proven with */
} Certificate;

/* Decides for every possible list whether the model answers right: see median.c. */
int certify(const Model *model, const CertifyOptions *options, Certificate *certificate,
            Error *error);
void certificate_free(Certificate *certificate);

/* ---- 18. The command line: not there with MEDIAN_NO_MAIN ------------------------------------- */

/* What a command line is connected to. */
typedef struct {
    FILE *in, *out, *progress; /* out NULL: what is said stays in *text; progress NULL: none */
    const Model *model; /* what commands look at in place of --model's file; NULL: the file */
} Streams;

/* Runs a command line, argv[0] being the program's name. Returns 0 if it failed; error->usage
 * then tells wrong usage apart. *text is to be freed. */
int median_command(int argc, char **argv, const Streams *streams, Text *text, Error *error);

/* ---- Tests: test_median.c -------------------------------------------------------------------- */

/* Runs the tests whose names contain one of the words, or all if there is none; a first word "math"
 * or "bits" is a suite's, and leaves the other out. Prints a line for each and returns how many
 * failed; a word that no name contains is a failure, too. Ends the program when memory runs out. */
int run_tests(size_t n_words, const char *const *words);

/* The second suite, but for what needs files, for `median check`: tells each test's name with
 * the hash that was found and the one that is expected. Returns the first that differs, or NULL. */
const char *check_golden(void (*tell)(void *context, const char *test, const char *found,
                                      const char *expected),
                         void *context);

/* NULL, or called for each array that is laid out in one piece of memory with others, with the
 * bytes between it and the next: the tests set fences there. */
extern void (*layout_watch)(void *gap, size_t size);

#ifdef __cplusplus
}
#endif
#endif
