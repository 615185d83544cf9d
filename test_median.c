/* test_median.c - the tests: of tensor.c, one for every function of tensor.h under that function's name, and of median.c.
 *
 * What is computed there is computed here a second time, from the formulas in the headers, with plain loops in double. A
 * gradient is compared with differences of that. What the commands print is compared by its hash. */
#include "median.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- The harness ------------------------------------------------------------------------------------------------ */

#define FOR(i, n) for (size_t i = 0; i < (n); i++)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static char failure[600], where[150]; /* of the running test: its first failure; the case that it is at */

static void at(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
}

static int check(int ok, int line, const char *format, ...) {
    char text[400];
    va_list args;
    if (ok || failure[0]) return ok;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(failure, sizeof failure, "%s%s%s (test_median.c:%d)", where, where[0] ? ": " : "", text, line);
    return 0;
}

static void check_within(int line, const char *what, double got, double low, double high) {
    check(got >= low && got <= high, line, low < high ? "%s: got %.9g, expected %.9g to %.9g" : "%s: got %.17g, expected %.17g", what, got, low, high);
}

#define CHECK(ok, ...) check(ok, __LINE__, __VA_ARGS__)
#define WITHIN(got, low, high) check_within(__LINE__, #got, (double)(got), low, high)
#define EQUAL(got, expected) check_within(__LINE__, #got, (double)(got), (double)(expected), (double)(expected))

/* Arrays live until the next release(). Behind each stand 64 bytes of ones: as floats NaN, which spoils whatever is computed
 * from it, and release() sees whether they were written over. */
enum { GUARD = 64 };
static unsigned char *blocks[64], *ends[64];
static size_t n_blocks;

static void *take(size_t n, size_t size) {
    const size_t bytes = n * size;
    unsigned char *memory = n_blocks < LENGTH(blocks) ? (unsigned char *)calloc(bytes + GUARD, 1) : NULL;
    if (!memory) {
        printf("FAIL array %u, of %.0f bytes: out of memory\n", (unsigned)n_blocks, (double)bytes);
        exit(1);
    }
    blocks[n_blocks] = memory, ends[n_blocks++] = memory + bytes;
    return memset(memory + bytes, 0xff, GUARD), memory;
}

static void release(void) {
    for (; n_blocks > 0; free(blocks[--n_blocks]))
        FOR(j, GUARD) CHECK(ends[n_blocks - 1][j] == 0xff, "array %u of this case is written beyond its end", (unsigned)n_blocks);
}

static uint64_t noise; /* the tests' own random numbers; every test starts from 1 */

static float uniform(void) { /* from -1 to 1, 24 bits */
    noise = noise * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(noise >> 40) * 0x1p-23 - 1.0);
}

static float *randoms(size_t n) {
    float *x = (float *)take(n, sizeof *x);
    FOR(i, n) x[i] = uniform();
    return x;
}

static uint32_t *indices(size_t n, size_t below) {
    uint32_t *x = (uint32_t *)take(n, sizeof *x);
    FOR(i, n) x[i] = (uint32_t)(((double)uniform() + 1.0) * 0.5 * (double)below);
    return x;
}

static double *doubles(const float *x, size_t n) { /* a copy of x, or zeros */
    double *y = (double *)take(n, sizeof *y);
    FOR(i, x ? n : 0) y[i] = (double)x[i];
    return y;
}

static float *copy(const float *x, size_t n) { return (float *)memcpy(take(n, sizeof *x), x, n * sizeof *x); }

static int same(const float *x, const float *y, size_t n) { return memcmp(x, y, n * sizeof *x) == 0; }

/* May differ by tolerance * (|expected| + the mean |expected| + least). */
static void compare(int line, const char *what, const float *got, const double *expected, size_t n, double tolerance, double least) {
    FOR(i, n) least += fabs(expected[i]) / (double)n;
    FOR(i, n) check(fabs((double)got[i] - expected[i]) <= tolerance * (fabs(expected[i]) + least), line,
                    "%s[%u]: expected %.9g, got %.9g", what, (unsigned)i, expected[i], (double)got[i]);
}
#define NEAR(got, expected, n) compare(__LINE__, #got, got, expected, n, 1e-6, 0.0)

/* ---- Rounding, random numbers, exp and log, hashing -------------------------------------------------------------- */

/* Whether function(x) has the bits it should have; any NaN is as good as another. */
static void check_bits(const char *name, double x, float got, uint32_t expected) {
    uint32_t bits;
    memcpy(&bits, &got, sizeof bits);
    CHECK(bits == expected || ((bits & 0x7fffffff) > 0x7f800000 && (expected & 0x7fffffff) > 0x7f800000),
          "%s(%.17g): expected %08lx, got %08lx", name, x, (unsigned long)expected, (unsigned long)bits);
}

static void test_f32(void) {
    const struct {
        double in;
        uint32_t out;
    } table[] = {
        {1.0, 0x3f800000}, {1.0 + 0x1p-24, 0x3f800000}, {1.0 + 0x3p-24, 0x3f800002}, {-1.0 - 0x3p-24, 0xbf800002}, /* ties */
        {1.0 + 0x1p-24 + 0x1p-40, 0x3f800001}, {1.0 + 0x1p-24 - 0x1p-40, 0x3f800000},
        {0x1p-126, 0x00800000}, {-0x1p-126, 0x80800000}, {0x1.fffffffffffffp-127, 0}, {-0x1.fffffffffffffp-127, 0},
        {1e-40, 0}, {-1e-300, 0}, {-0.0, 0}, {0x1.fffffefp127, 0x7f7fffff},
        {HUGE_VAL, 0x7f800000}, {-HUGE_VAL, 0xff800000}, {(double)NAN, 0x7fc00000}};
    FOR(i, LENGTH(table)) {
        volatile double in = table[i].in;
        check_bits("f32", in, f32(in), table[i].out);
    }
}

static void test_smaller(void) {
    EQUAL(smaller(3, 5), 3);
    EQUAL(smaller(5, 3), 3);
}

static void test_ieee_setup(void) { EQUAL(ieee_setup(), 1); }

static void test_mt_seed(void) {
    Mt19937 mt = {{0}, 0};
    mt_seed(&mt, 5489);
    EQUAL(mt.state[0], 5489);
    EQUAL(mt.state[1], 1301868182);
    EQUAL(mt.state[623], 79981964);
    EQUAL(mt.next, 624);
}

static void test_mt_next(void) {
    Mt19937 mt;
    mt_seed(&mt, 5489);
    EQUAL(mt_next(&mt), UINT32_C(3499211612));
    FOR(i, 9998) mt_next(&mt);
    EQUAL(mt_next(&mt), UINT32_C(4123659995));
}

/* Golden values: {the bits of x, the bits of the result}. */
static const uint32_t EXP_GOLDEN[][2] = {
    {0x00000000, 0x3f800000}, {0x80000000, 0x3f800000}, {0x00000001, 0x3f800000}, {0x33000000, 0x3f800000},
    {0x3f800000, 0x402df854}, {0xbf800000, 0x3ebc5ab2}, {0x3f000000, 0x3fd3094c}, {0x41200000, 0x46ac14ee}, {0xc1200000, 0x383e6bce},
    {0x42b17217, 0x7f7fff84}, {0x42b17218, 0x7f800000}, {0x43480000, 0x7f800000}, {0x7f7fffff, 0x7f800000}, /* overflow */
    {0xc2aeac4f, 0x00800026}, {0xc2aeac50, 0x00000000}, {0xc2ce8ed0, 0x00000000}, {0xff7fffff, 0x00000000}, /* underflow */
    {0x7f800000, 0x7f800000}, {0xff800000, 0x00000000}, {0x7fc00000, 0x7fc00000}};

static const uint32_t LOG_GOLDEN[][2] = {
    {0x3f800000, 0x00000000}, {0x3f800001, 0x33ffffff}, {0x3f7fffff, 0xb3800000}, {0x40000000, 0x3f317218},
    {0x3f000000, 0xbf317218}, {0x402df854, 0x3f7fffff}, {0x41200000, 0x40135d8e}, {0x7f7fffff, 0x42b17218},
    {0x00800000, 0xc2aeac50}, {0x00000003, 0xc2cc5c53}, {0x00000001, 0xc2ce8ed0}, /* the least normal; subnormal */
    {0x00000000, 0xff800000}, {0x80000000, 0xff800000}, {0x7f800000, 0x7f800000},
    {0xbf800000, 0x7fc00000}, {0xff800000, 0x7fc00000}, {0x80000001, 0x7fc00000}, {0x7fc00000, 0x7fc00000}};

static void check_golden(const char *name, float (*function)(float), const uint32_t (*table)[2], size_t n) {
    FOR(i, n) {
        float x;
        memcpy(&x, &table[i][0], sizeof x);
        check_bits(name, (double)x, function(x), table[i][1]);
    }
}

static void test_exp_f32(void) { check_golden("exp_f32", exp_f32, EXP_GOLDEN, LENGTH(EXP_GOLDEN)); }
static void test_log_f32(void) { check_golden("log_f32", log_f32, LOG_GOLDEN, LENGTH(LOG_GOLDEN)); }

static void test_mt_normal(void) {
    enum { N_NORMALS = 100001 }; /* odd: half of the last pair is dropped */
    const double expected[] = {1, 0, 1, 0, 3};
    float *x = randoms(N_NORMALS);
    Mt19937 mt;
    mt_seed(&mt, 1);
    mt_normal(&mt, x, N_NORMALS, 2.0f);
    FOR(power, 5) {
        double moment = 0;
        FOR(i, N_NORMALS) moment += pow((double)x[i] / 2.0, (double)power) / N_NORMALS;
        WITHIN(moment, expected[power] - 0.05, expected[power] + 0.05);
    }
    CHECK(hash_floats(HASH_START, x, N_NORMALS) == UINT64_C(0xd2c0915838d3d1e4), "other bits");
    EQUAL(mt_next(&mt), UINT32_C(2563818105));
}

static void test_hash_bytes(void) { /* the FNV authors' test vectors */
    CHECK(hash_bytes(HASH_START, "", 0) == HASH_START, "of nothing");
    CHECK(hash_bytes(HASH_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c), "of a");
    CHECK(hash_bytes(hash_bytes(HASH_START, "foo", 3), "bar", 3) == UINT64_C(0x85944171f73967e8), "of foo, then bar");
    CHECK(hash_bytes(HASH_START, "\xe9", 1) == (HASH_START ^ 0xe9) * UINT64_C(0x100000001b3), "of a byte above 127");
}

static void test_hash_floats(void) {
    const float x[] = {1.0f, -2.5f, 0x1.030506p0f};
    const unsigned char bytes[] = {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0x83, 0x82, 0x81, 0x3f};
    FOR(n, 4) CHECK(hash_floats(5, x, n) == hash_bytes(5, bytes, 4 * n), "of %u floats", (unsigned)n);
}

/* ---- Layers ----------------------------------------------------------------------------------------------------- */

/* Rows of the layers, the formulas of tensor.h and median.h; the naive model is made of them too. */
static void naive_linear(double *out, const double *x, const double *W, const double *b, size_t n_in, size_t n_out) {
    FOR(j, n_out) out[j] += b ? b[j] : 0.0;
    FOR(i, n_in) FOR(j, n_out) out[j] += x[i] * W[i * n_out + j];
}

static void naive_norm(double *out, const double *x, const double *w, const double *b, size_t d) {
    double mean = 0, variance = 0;
    FOR(j, d) mean += x[j] / (double)d;
    FOR(j, d) variance += (x[j] - mean) * (x[j] - mean) / (double)d;
    FOR(j, d) out[j] = (x[j] - mean) / sqrt(variance + 1e-5) * w[j] + b[j];
}

static double naive_softmax(double *p, const double *x, size_t n) { /* p may be x; returns log(sum of all e^x) */
    double max = -HUGE_VAL, sum = 0;
    FOR(i, n) max = x[i] > max ? x[i] : max;
    FOR(i, n) sum += p[i] = exp(x[i] - max);
    FOR(i, n) p[i] /= sum;
    return log(sum) + max;
}

/* A call of a layer on arrays of some size, and with some of the variants that the header allows. */
typedef struct {
    size_t rows, d, d_out, variant;
    size_t n[3], n_out;                  /* numbers in the inputs that have gradients, and in the output */
    float *in[3], *grad[3], *out, *dout; /* inputs, the loss's gradients, the output and its gradient */
    double *x[3], *expected;             /* inputs and output of the naive layer; expected is 0 before it */
    float *side, *side2;                 /* what else forward reads or writes */
    uint32_t *index, *index2;
    Attention attention;
    double least; /* see compare */
} Case;

static void make_arrays(Case *c, size_t n0, size_t n1, size_t n2, size_t n_out) {
    c->n[0] = n0, c->n[1] = n1, c->n[2] = n2, c->n_out = n_out;
    FOR(k, 3) c->in[k] = randoms(c->n[k]);
    c->out = randoms(n_out), c->dout = randoms(n_out), c->expected = doubles(NULL, n_out);
    c->side = randoms(n_out), c->side2 = randoms(n_out);
}

/* x[r] = W_E[token[r]] + W_pos[position[r]] */
enum { VOCABULARY = 11, PLACES = 5 };
static void embed_p(Case *c) {
    make_arrays(c, VOCABULARY * c->d, PLACES * c->d, 0, c->rows * c->d);
    c->index = indices(c->rows, VOCABULARY), c->index2 = indices(c->rows, PLACES);
}
static void embed_f(Case *c) { embed_forward(c->out, c->in[0], c->in[1], c->index, c->index2, c->rows, c->d); }
static void embed_b(Case *c) { embed_backward(c->grad[0], c->grad[1], c->dout, c->index, c->index2, c->rows, c->d); }
static void embed_n(Case *c) {
    FOR(r, c->rows) FOR(j, c->d)
        c->expected[r * c->d + j] = c->x[0][c->index[r] * c->d + j] + c->x[1][c->index2[r] * c->d + j];
}

/* out[r] = x[index[r]] + b; variant 1: without b; 2: forward without index */
static void gather_p(Case *c) {
    make_arrays(c, (VOCABULARY + c->rows) * c->d, c->variant == 1 ? 0 : c->d, 0, c->rows * c->d);
    c->index = indices(c->rows, VOCABULARY);
    FOR(r, c->variant == 2 ? c->rows : 0) c->index[r] = (uint32_t)r;
}
static void gather_f(Case *c) {
    gather_forward(c->out, c->in[0], c->variant == 1 ? NULL : c->in[1], c->variant == 2 ? NULL : c->index, c->rows, c->d);
}
static void gather_b(Case *c) {
    gather_backward(c->grad[0], c->variant == 1 ? NULL : c->grad[1], c->dout, c->index, c->rows, c->d);
}
static void gather_n(Case *c) {
    FOR(r, c->rows) FOR(j, c->d)
        c->expected[r * c->d + j] = c->x[0][c->index[r] * c->d + j] + (c->variant == 1 ? 0 : c->x[1][j]);
}

/* out = residual + b + x W; variants: b or not, times no residual, residual in out, or in its own array */
static void linear_p(Case *c) {
    make_arrays(c, c->rows * c->d, c->d * c->d_out, c->variant % 2 ? c->d_out : 0, c->rows * c->d_out);
}
static void linear_f(Case *c) {
    float *residual = c->variant / 2 == 2 ? c->side : c->variant / 2 == 1 ? c->out : NULL;
    if (residual && residual == c->out) memcpy(c->out, c->side, c->n_out * sizeof(float));
    linear_forward(c->out, residual, c->in[0], c->in[1], c->variant % 2 ? c->in[2] : NULL, c->rows, c->d, c->d_out);
}
static void linear_b(Case *c) {
    float *const *g = c->grad;
    linear_backward(g[0], g[1], c->variant % 2 ? g[2] : NULL, c->dout, c->in[0], c->in[1], c->rows, c->d, c->d_out);
}
static void linear_n(Case *c) {
    const double *b = c->variant % 2 ? c->x[2] : NULL;
    FOR(i, c->n_out) c->expected[i] = c->variant / 2 ? (double)c->side[i] : 0;
    FOR(r, c->rows) naive_linear(c->expected + r * c->d_out, c->x[0] + r * c->d, c->x[1], b, c->d, c->d_out);
}

/* Variant 1: every third row varies so little that the 1e-5 matters. */
static void norm_p(Case *c) {
    make_arrays(c, c->rows * c->d, c->d, c->d, c->rows * c->d);
    FOR(i, c->variant ? c->n[0] : 0) c->in[0][i] = f32((i / c->d % 3 == 0 ? 0.004 : 2.0) * (double)c->in[0][i] + 0.5);
}
static void norm_f(Case *c) {
    layernorm_forward(c->out, c->side, c->side2, c->in[0], c->in[1], c->in[2], c->rows, c->d);
}
static void norm_b(Case *c) {
    layernorm_backward(c->grad[0], c->grad[1], c->grad[2], c->dout, c->side, c->side2, c->in[1], c->rows, c->d);
}
static void norm_n(Case *c) {
    FOR(r, c->rows) naive_norm(c->expected + r * c->d, c->x[0] + r * c->d, c->x[1], c->x[2], c->d);
}

static void relu_p(Case *c) {
    make_arrays(c, c->rows * c->d, 0, 0, c->rows * c->d);
    FOR(i, c->n[0]) c->in[0][i] += c->in[0][i] < 0 ? -0.1f : 0.1f; /* no kink within the reach of the differences */
}
static void relu_f(Case *c) { relu_forward(c->out, c->in[0], c->n_out); }
static void relu_b(Case *c) { relu_backward(c->grad[0], c->dout, c->in[0], c->n_out); }
static void relu_n(Case *c) { FOR(i, c->n_out) c->expected[i] = c->x[0][i] > 0 ? c->x[0][i] : 0; }

/* Steep rows around -1000, 0 and 1000, in the longer ones an entry of -infinity; variant 1: in place, and one entry of
 * each row, at another place in each, so far above the others that only its own subtraction keeps exp from overflow. */
static void softmax_p(Case *c) {
    make_arrays(c, c->rows * c->d, 0, 0, c->rows * c->d);
    FOR(i, c->n[0]) c->in[0][i] = f32((double)c->in[0][i] * 20 + ((double)(i / c->d % 3) - 1) * 1000);
    FOR(r, c->rows) c->in[0][r * c->d + r % c->d] += c->variant ? 300.0f : 0.0f;
    FOR(r, c->rows) if (c->d > 5) c->in[0][r * c->d + (r + 1) % 5] = -INFINITY;
}
static void softmax_f(Case *c) {
    memcpy(c->out, c->in[0], c->n_out * sizeof(float));
    softmax_forward(c->out, c->variant ? c->out : c->in[0], c->rows, c->d);
}
static void softmax_n(Case *c) {
    FOR(r, c->rows) naive_softmax(c->expected + r * c->d, c->x[0] + r * c->d, c->d);
}

/* Variant 1: in place; 2: logits around 1000 and -1000. */
static void loss_p(Case *c) {
    make_arrays(c, c->rows * c->d, 0, 0, c->rows);
    c->index = indices(c->rows, c->d), c->side = randoms(c->n[0]), c->least = 0.1;
    FOR(i, c->n[0]) c->in[0][i] = f32((double)c->in[0][i] * 2 + (c->variant == 2 ? (double)(i / c->d % 3) - 1 : 0) * 1000);
    FOR(r, c->rows) c->dout[r] = f32(1.0 / (double)c->rows);
}
static void loss_f(Case *c) {
    memcpy(c->side, c->in[0], c->n[0] * sizeof(float));
    cross_entropy_forward(c->out, c->side, c->variant == 1 ? c->side : c->in[0], c->index, c->rows, c->d);
}
static void loss_b(Case *c) { cross_entropy_backward(c->grad[0], c->side, c->index, c->dout[0], c->rows, c->d); }
static void loss_n(Case *c) {
    double p[256];
    FOR(r, c->rows) c->expected[r] = naive_softmax(p, c->x[0] + r * c->d, c->d) - c->x[0][r * c->d + c->index[r]];
}

/* Here the variants are shapes. Positions share out the rows, interleaved, so many to each; some rows stay unused. */
static const struct {
    size_t n_lists, seq_len, n_queries, d_key, d_value, per_position;
} SHAPES[] = {{1, 1, 1, 1, 1, 1}, {3, 5, 2, 4, 5, 2}, {2, 3, 3, 3, 1, 2}, {7, 5, 5, 6, 10, 3}, {13, 7, 1, 5, 67, 6},
              {3, 13, 4, 32, 33, 3}, {67, 3, 2, 10, 6, 5}};
static void attention_p(Case *c) {
    const size_t N = SHAPES[c->variant].n_lists, T = SHAPES[c->variant].seq_len, A = SHAPES[c->variant].n_queries;
    const size_t dk = SHAPES[c->variant].d_key, dv = SHAPES[c->variant].d_value, per = SHAPES[c->variant].per_position;
    make_arrays(c, A * (per + 1) * dk, T * per * dk, T * per * dv, N * A * dv);
    c->index = indices(N * T, per), c->index2 = indices(N * A, per + 1);
    FOR(r, N * T) c->index[r] = (uint32_t)(c->index[r] * T + r % T);
    FOR(i, N * A) c->index2[i] = (uint32_t)(c->index2[i] * A + i / N);
    const Attention a = {N, T, A, dk, dv, A * (per + 1), T * per, c->index, c->index2, 0.4375f};
    c->attention = a, c->side = randoms(N * A * T), c->side2 = randoms(N * A * T);
}
static double *naive_pattern(const Case *c, size_t i, double p[16]) { /* query i's weights; 0 for what it does not see */
    const Attention *a = &c->attention;
    const size_t seen = a->seq_len - a->n_queries + i / a->n_lists + 1, d = a->d_key;
    const double *q = c->x[0] + a->query_row[i] * d;
    FOR(s, 16) p[s] = 0;
    FOR(s, seen) FOR(j, d) p[s] += q[j] * c->x[1][a->key_row[i % a->n_lists * a->seq_len + s] * d + j] * (double)a->scale;
    naive_softmax(p, p, seen);
    return p;
}
static void attention_n(Case *c) {
    const Attention *a = &c->attention;
    const size_t T = a->seq_len, d = a->d_value;
    double p[16];
    FOR(i, a->n_queries * a->n_lists) {
        naive_pattern(c, i, p);
        FOR(s, T) FOR(j, d) c->expected[i * d + j] += p[s] * c->x[2][a->key_row[i % a->n_lists * T + s] * d + j];
    }
}
static void values_f(Case *c) { /* from the naive pattern */
    const Attention *a = &c->attention;
    double p[16];
    FOR(i, a->n_queries * a->n_lists) FOR(s, a->seq_len) c->side[i * a->seq_len + s] = f32(naive_pattern(c, i, p)[s]);
    attention_values(a, c->out, c->side, c->in[2]);
}
static void attention_f(Case *c) {
    attention_pattern(&c->attention, c->side, c->in[0], c->in[1]);
    attention_values(&c->attention, c->out, c->side, c->in[2]);
}
static void attention_b(Case *c) {
    float *const *g = c->grad, *const *in = c->in;
    double *scratch = doubles(NULL, c->n[0] + c->n[1] + c->n[2]);
    FOR(i, c->n[0] + c->n[1] + c->n[2]) scratch[i] = 7;
    attention_backward(&c->attention, g[0], g[1], g[2], c->side2, scratch, c->dout, c->side, in[0], in[1], in[2]);
}

/* The last two columns: bit k is set if backward's k-th gradient may be NULL; whether rows and columns are varied: the
 * columns of the output, too, if it is 2. */
typedef struct {
    const char *forward_name, *backward_name;
    void (*prepare)(Case *), (*forward)(Case *), (*backward)(Case *), (*naive)(Case *);
    size_t n_variants, optional, sized;
} Layer;
static const Layer LAYERS[] = {
    {"embed_forward", "embed_backward", embed_p, embed_f, embed_b, embed_n, 1, 0, 1},
    {"gather_forward", "gather_backward", gather_p, gather_f, gather_b, gather_n, 3, 2, 1},
    {"linear_forward", "linear_backward", linear_p, linear_f, linear_b, linear_n, 6, 7, 2},
    {"layernorm_forward", "layernorm_backward", norm_p, norm_f, norm_b, norm_n, 2, 0, 1},
    {"relu_forward", "relu_backward", relu_p, relu_f, relu_b, relu_n, 1, 0, 1},
    {"softmax_forward", NULL, softmax_p, softmax_f, NULL, softmax_n, 2, 0, 1},
    {"cross_entropy_forward", "cross_entropy_backward", loss_p, loss_f, loss_b, loss_n, 3, 0, 1},
    {"attention_values", NULL, attention_p, values_f, NULL, attention_n, LENGTH(SHAPES), 0, 0},
    {"attention_pattern", "attention_backward", attention_p, attention_f, attention_b, attention_n, LENGTH(SHAPES), 0, 0}};

static Case prepare(const Layer *layer, size_t rows, size_t d, size_t d_out, size_t variant) {
    Case c;
    memset(&c, 0, sizeof c);
    c.rows = rows, c.d = d, c.d_out = d_out, c.variant = variant;
    layer->prepare(&c);
    FOR(k, 3) c.x[k] = doubles(c.in[k], c.n[k]);
    at("%u rows of %u (to %u), variant %u", (unsigned)rows, (unsigned)d, (unsigned)d_out, (unsigned)variant);
    return c;
}

static void check_forward(const Layer *layer, Case *c) {
    layer->naive(c);
    layer->forward(c);
    compare(__LINE__, "out", c->out, c->expected, c->n_out, 1e-6, c->least);
}

/* How the sum of dout * out changes along a direction of the k-th input, by differences of the naive layer. */
static double naive_slope(const Layer *layer, Case *c, size_t k, const double *direction) {
    const double h = 1e-6;
    double sum = 0;
    for (int sign = -1; sign <= 1; sign += 2) {
        FOR(i, c->n[k]) c->x[k][i] = (double)c->in[k][i] + sign * h * direction[i];
        FOR(i, c->n_out) c->expected[i] = 0;
        layer->naive(c);
        FOR(i, c->n_out) sum += sign * (double)c->dout[i] * c->expected[i] / (2 * h);
    }
    FOR(i, c->n[k]) c->x[k][i] = (double)c->in[k][i];
    return sum;
}

/* A small gradient entry by entry; a large one along a random direction, on which no entry can be wrong unnoticed. */
static void check_gradient(const Layer *layer, Case *c, size_t k, const float *before) {
    const size_t n = c->n[k], singly = n <= 60;
    double *direction = doubles(randoms(n), n), *slope = doubles(NULL, n), mean = 0;
    FOR(i, n) slope[i] = (double)c->grad[k][i] - (double)before[i], mean += fabs(slope[i]) / (double)n;
    FOR(entry, singly ? n : 1) {
        double got = 0, size = 0;
        FOR(i, singly ? n : 0) direction[i] = i == entry;
        FOR(i, n) got += slope[i] * direction[i], size += pow((fabs(slope[i]) + mean + 1) * direction[i], 2);
        const double expected = naive_slope(layer, c, k, direction);
        CHECK(fabs(got - expected) <= 1e-6 * (fabs(expected) + sqrt(size)), "gradient %u, %s %u: expected %.9g, got %.9g",
              (unsigned)k, singly ? "entry" : "along direction", (unsigned)entry, expected, got);
    }
}

/* Gradients start from numbers other than zero, to which backward must add. */
static void check_backward(const Layer *layer, Case *c) {
    float *before[3], *whole[3];
    FOR(k, 3) before[k] = randoms(c->n[k]), whole[k] = c->grad[k] = copy(before[k], c->n[k]);
    layer->forward(c);
    layer->backward(c);
    FOR(k, 3) check_gradient(layer, c, k, before[k]);
    FOR(k, 3) if (layer->optional >> k & 1) { /* without this one, the others are as before */
        FOR(m, 3) c->grad[m] = m == k ? NULL : copy(before[m], c->n[m]);
        layer->backward(c);
        FOR(m, 3) CHECK(m == k || same(c->grad[m], whole[m], c->n[m]), "without gradient %u, gradient %u is different",
                        (unsigned)k, (unsigned)m);
    }
}

static void check_layer(const Layer *layer, void (*check_case)(const Layer *, Case *)) {
    static const size_t rows[] = {1, 7, 13, 67}, sizes[] = {1, 5, 6, 10, 50, 64, 67, 130};
    FOR(i, layer->sized ? LENGTH(rows) : 1) FOR(j, layer->sized ? LENGTH(sizes) : 1)
        FOR(k, layer->sized == 2 ? LENGTH(sizes) : 1) FOR(variant, layer->n_variants) {
            Case c = prepare(layer, rows[i], sizes[j], sizes[k], variant);
            check_case(layer, &c);
            release();
        }
}

static void test_relu_at_zero(void) {
    const float x[] = {0.0f, -0.0f, 1e-30f}, dout[] = {1.0f, 1.0f, 1.0f};
    float *out = randoms(3), *dx = (float *)take(3, sizeof *dx);
    relu_forward(out, x, 3);
    relu_backward(dx, dout, x, 3);
    FOR(i, 3) EQUAL(out[i], x[i]);
    FOR(i, 3) EQUAL(dx[i], i == 2);
}

static void test_attention_scratch(void) {
    const Attention a = {7, 5, 3, 6, 10, 35, 29, NULL, NULL, 1};
    EQUAL(attention_scratch(&a), 35 * 6 + 29 * 6 + 29 * 10);
}

static void test_use_threads(void) { /* that no result depends on them is seen where a training is repeated with three */
    FOR(threads, 8) {
        const int got = use_threads((int)threads);
#ifdef _OPENMP
        EQUAL(got, threads ? (int)threads : 1);
#else
        EQUAL(got, 1);
#endif
    }
    use_threads(1);
}

/* ---- Adam, singular values --------------------------------------------------------------------------------------- */

static void test_adam_step(void) {
    const Adam adam = {0.125f, 0.9f, 0.99f, 0.02f, 0.3f};
    const uint32_t steps[] = {1, 2, 3, 4, 50, 1000, 100000};
    const size_t n = 67;
    const double beta1 = (double)adam.beta1, beta2 = (double)adam.beta2, decay = (double)adam.weight_decay;
    double *em = doubles(NULL, n), *ev = doubles(NULL, n);
    float *x = randoms(n), *m = (float *)take(n, sizeof *m), *v = (float *)take(n, sizeof *v);
    double *ex = doubles(x, n);
    FOR(s, LENGTH(steps)) {
        const double c1 = 1 - pow(beta1, steps[s]), c2 = 1 - pow(beta2, steps[s]);
        const float *g = randoms(n);
        at("step %lu", (unsigned long)steps[s]);
        FOR(i, n) {
            em[i] = beta1 * em[i] + (1 - beta1) * (double)g[i];
            ev[i] = beta2 * ev[i] + (1 - beta2) * (double)g[i] * (double)g[i];
            ex[i] -= (double)adam.lr * (em[i] / c1 / (sqrt(ev[i] / c2) + (double)adam.eps) + decay * ex[i]);
        }
        adam_step(&adam, steps[s], x, m, v, g, n);
        NEAR(m, em, n);
        NEAR(v, ev, n);
        compare(__LINE__, "x", x, ex, n, 2e-6, 0.1);
    }
}

/* The columns are rotated among themselves, which changes no sum of products along a row, until they are orthogonal. */
static void test_singular_values(void) {
    enum { ROWS = 24, COLUMNS = 9 };
    float *columns = randoms(COLUMNS * ROWS), *values = randoms(COLUMNS);
    FOR(i, ROWS) columns[8 * ROWS + i] = columns[3 * ROWS + i]; /* one value is 0 */
    const float *before = copy(columns, COLUMNS * ROWS);
    singular_values(values, columns, COLUMNS, ROWS);
    FOR(i, ROWS) FOR(j, ROWS) {
        double sum = 0;
        FOR(c, COLUMNS) sum += (double)columns[c * ROWS + i] * columns[c * ROWS + j] - (double)before[c * ROWS + i] * before[c * ROWS + j];
        WITHIN(sum, -1e-5, 1e-5);
    }
    FOR(c, COLUMNS) FOR(e, COLUMNS) {
        double dot = 0;
        FOR(i, ROWS) dot += (double)columns[c * ROWS + i] * columns[e * ROWS + i];
        WITHIN(dot, (c == e) * pow((double)values[c], 2) - 1e-5, (c == e) * pow((double)values[c], 2) + 1e-5);
    }
    FOR(c, COLUMNS - 1) WITHIN(values[c + 1], 0, values[c]);
}

/* ---- The task ---------------------------------------------------------------------------------------------------- */

static uint32_t naive_median(const uint32_t *list, size_t n) {
    FOR(i, n) {
        size_t below = 0, equal = 0;
        FOR(j, n) below += list[j] < list[i], equal += list[j] == list[i];
        if (below <= n / 2 && below + equal > n / 2) return list[i];
    }
    return UINT32_MAX;
}

static void test_median_of(void) {
    for (size_t n = 3; n <= 31; n += 2)
        FOR(round, 200) {
            const uint32_t *list = indices(n, round % 2 ? 6 : 1000);
            EQUAL(median_of(list, n), naive_median(list, n));
            release();
        }
}

static void test_make_lists(void) {
    const uint32_t known[][7] = {{91, 46, 16, 97, 30, 12, 27}, {31, 62, 14, 73, 23, 85, 91}};
    uint32_t *lists = indices(2000 * 7, 9), *medians = indices(2000, 9);
    size_t found[5] = {0};
    Mt19937 mt;
    mt_seed(&mt, 23);
    make_lists(&mt, lists, medians, 5, 100, 7);
    FOR(i, 2) FOR(j, 7) EQUAL(lists[4 * i * 7 + j], known[i][j]);
    make_training_lists(&mt, lists, medians, 2000, 5, 7, 0.5f); /* the first half with evenly distributed medians */
    FOR(i, 2000) EQUAL(medians[i], naive_median(lists + i * 7, 7));
    FOR(i, 1000) found[medians[i]]++;
    FOR(m, 5) WITHIN(found[m], 160, 240);
    FOR(i, 1000) found[medians[1000 + i]]++;
    WITHIN(found[0], 160, 320);
}

/* ---- The model --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    Config config; /* max_num, seq_len, d_model, d_head, n_heads, n_layers, d_mlp, normalization */
} MODELS[] = {{"1 layer 1 head", {7, 5, 10, 6, 1, 1, 0, 1}},
              {"2 layers 3 heads MLP", {7, 5, 10, 6, 3, 2, 11, 1}},
              {"3 layers no normalization", {7, 5, 10, 6, 1, 3, 0, 0}},
              {"2 heads MLP no normalization", {7, 5, 10, 6, 2, 1, 13, 0}},
              {"3 layers narrow heads MLP", {12, 5, 10, 2, 2, 3, 4, 1}},
              {"2 layers narrow heads no normalization", {7, 7, 10, 2, 2, 2, 5, 0}},
              {"d_head above d_model", {7, 3, 5, 9, 2, 2, 0, 1}}};

/* A model with weights of every kind well away from 0, workspaces, lists (the first of one number only) and labels. */
enum { LISTS = 9 };
typedef struct {
    Config config;
    Model model, gradient;
    Run run, source;
    uint32_t *lists, *labels;
    Error error;
} World;

static void world_create(World *w, const Config *config) {
    memset(w, 0, sizeof *w);
    w->config = *config;
    CHECK(model_create(&w->model, config, &w->error) && model_create(&w->gradient, config, &w->error) &&
          run_create(&w->run, config, LISTS + 3, RUN_GRADIENTS, &w->error) &&
          run_create(&w->source, config, LISTS, RUN_FORWARD, &w->error), "%s", w->error.text);
    FOR(i, w->model.n_tensors) {
        const Tensor *t = &w->model.tensors[i];
        const int is_scale = strcmp(t->name + strlen(t->name) - 2, ".w") == 0;
        FOR(j, t->size) t->data[j] = (is_scale ? 1.0f : 0.0f) + 0.75f * uniform();
    }
    w->lists = indices((LISTS + 3) * config->seq_len, config->max_num), w->labels = indices(LISTS + 3, config->max_num);
    FOR(t, config->seq_len) w->lists[t] = w->lists[0];
}

static void world_free(World *w) {
    model_free(&w->model), model_free(&w->gradient);
    run_free(&w->run), run_free(&w->source);
    release();
}

/* The model once more: one list, every position, no tables, in double. p holds the parameters as model->params does. */
enum { T_MAX = 8, D_MAX = 16 };
#define P(weights) (p + ((weights) - model->params))

static void naive_logits(const Model *model, const double *p, const uint32_t *list, double *logits) {
    const Config *c = &model->config;
    const Weights *w = &model->weights;
    const size_t T = c->seq_len, d = c->d_model, dh = c->d_head;
    double x[T_MAX][D_MAX], h[T_MAX][D_MAX];
    FOR(t, T) FOR(j, d) x[t][j] = P(w->W_E)[list[t] * d + j] + P(w->W_pos)[t * d + j];
    FOR(l, c->n_layers) {
        const LayerWeights *y = &w->layers[l];
        memcpy(h, x, sizeof h);
        if (c->normalization) FOR(t, T) naive_norm(h[t], x[t], P(y->ln1_w), P(y->ln1_b), d);
        FOR(t, T) FOR(j, d) x[t][j] += P(y->b_O)[j];
        FOR(head, c->n_heads) {
            const size_t matrix = head * d * dh, bias = head * dh;
            double q[T_MAX][D_MAX] = {{0}}, k[T_MAX][D_MAX] = {{0}}, v[T_MAX][D_MAX] = {{0}};
            FOR(t, T) naive_linear(q[t], h[t], P(y->W_Q + matrix), P(y->b_Q + bias), d, dh);
            FOR(t, T) naive_linear(k[t], h[t], P(y->W_K + matrix), P(y->b_K + bias), d, dh);
            FOR(t, T) naive_linear(v[t], h[t], P(y->W_V + matrix), P(y->b_V + bias), d, dh);
            FOR(t, T) {
                double a[T_MAX] = {0}, z[D_MAX] = {0};
                FOR(s, t + 1) FOR(j, dh) a[s] += q[t][j] * k[s][j] / sqrt((double)dh);
                naive_softmax(a, a, t + 1);
                FOR(s, t + 1) FOR(j, dh) z[j] += a[s] * v[s][j];
                naive_linear(x[t], z, P(y->W_O + matrix), NULL, dh, d);
            }
        }
        if (c->d_mlp) FOR(t, T) {
            double hidden[D_MAX] = {0};
            memcpy(h[t], x[t], sizeof h[t]);
            if (c->normalization) naive_norm(h[t], x[t], P(y->ln2_w), P(y->ln2_b), d);
            naive_linear(hidden, h[t], P(y->W_in), P(y->b_in), d, c->d_mlp);
            FOR(j, c->d_mlp) hidden[j] = hidden[j] > 0 ? hidden[j] : 0;
            naive_linear(x[t], hidden, P(y->W_out), P(y->b_out), c->d_mlp, d);
        }
    }
    if (c->normalization) naive_norm(x[T - 1], x[T - 1], P(w->ln_final_w), P(w->ln_final_b), d);
    FOR(j, c->max_num) logits[j] = 0;
    naive_linear(logits, x[T - 1], P(w->W_U), P(w->b_U), d, c->max_num);
}

static double naive_loss(const World *w, const double *p) {
    double loss = 0, logits[D_MAX], softmax[D_MAX];
    FOR(i, LISTS) {
        naive_logits(&w->model, p, w->lists + i * w->config.seq_len, logits);
        loss += (naive_softmax(softmax, logits, w->config.max_num) - logits[w->labels[i]]) / LISTS;
    }
    return loss;
}

/* The naive logits; the same bits alone and in company, and after the workspace has seen other lists. */
static void test_model_forward(World *w) {
    const size_t T = w->config.seq_len, V = w->config.max_num;
    double *p = doubles(w->model.params, w->model.n_params), *expected = doubles(NULL, LISTS * V);
    FOR(list, LISTS) naive_logits(&w->model, p, w->lists + list * T, expected + list * V);
    model_forward(&w->model, &w->run, indices((LISTS + 3) * T, V), LISTS + 3, NULL);
    model_forward(&w->model, &w->run, w->lists, LISTS, NULL);
    compare(__LINE__, "logits", w->run.logits, expected, LISTS * V, 1e-5, 0.0);
    FOR(list, LISTS - 1) {
        model_forward(&w->model, &w->source, w->lists + list * T, 1 + list % 2, NULL);
        CHECK(same(w->source.logits, w->run.logits + list * V, (1 + list % 2) * V), "list %u has other logits in a small batch", (unsigned)list);
    }
}

/* The loss, and every single parameter's gradient against differences of the naive model's loss. */
static void test_model_backward(World *w) {
    const double h = 1e-5;
    const size_t n = w->model.n_params;
    double *p = doubles(w->model.params, n), *expected = doubles(NULL, n), mean = 0;
    FOR(pass, 2) { /* the first leaves its traces in the workspace and the gradient */
        model_forward(&w->model, &w->run, w->lists, pass ? LISTS : LISTS + 3, NULL);
        const double loss = model_loss(&w->run, w->labels), naive = naive_loss(w, p);
        if (pass) WITHIN(loss, naive * (1 - 1e-6), naive * (1 + 1e-6));
        model_backward(&w->model, &w->run, w->labels, &w->gradient);
    }
    FOR(j, n) {
        const double x = p[j];
        p[j] = x + h, expected[j] = naive_loss(w, p);
        p[j] = x - h, expected[j] = (expected[j] - naive_loss(w, p)) / (2 * h);
        p[j] = x, mean += fabs(expected[j]) / (double)n;
    }
    FOR(j, w->model.n_tensors) {
        const Tensor *t = &w->model.tensors[j];
        const size_t first = (size_t)(t->data - w->model.params);
        double size = 0;
        FOR(k, t->size) size += fabs(expected[first + k]) / (double)t->size;
        CHECK(size > 1e-3 * mean || strstr(t->name, "b_K"), "%s: the gradient vanishes", t->name); /* b_K's must */
        compare(__LINE__, t->name, w->gradient.params + first, expected + first, t->size, 1e-5, 0.1 * mean);
    }
}

/* Weights of the right size, biases 0, scales 1. */
static void test_model_init(World *w) {
    Mt19937 mt;
    mt_seed(&mt, 3);
    model_init(&w->model, &mt);
    FOR(i, w->model.n_tensors) {
        const Tensor *t = &w->model.tensors[i];
        const char *last = strrchr(t->name, '.') + 1;
        double square = 0;
        FOR(j, t->size) square += pow((double)t->data[j], 2);
        if (*last == 'W') WITHIN(sqrt((double)w->config.d_model * square / (double)t->size), 0.5, 1.1);
        else EQUAL(square, *last == 'w' ? t->size : 0);
    }
}

/* Just within the bounds of every number of a configuration, and just outside them. */
static void test_config_check(void) {
    const size_t least[] = {2, 3, 1, 1, 1, 1, 0, 0}, most[] = {65536, 255, 65536, 65536, 4096, 256, 1048576, 1};
    Error error = {{0}, 0};
    Model model;
    Run run;
    FOR(field, 8) FOR(side, 4) {
        size_t numbers[8];
        Config c = config_default();
        memcpy(numbers, &c, sizeof c);
        numbers[field] = side == 0 ? least[field] : side == 1 ? most[field] : side == 2 ? least[field] - 1 : most[field] + 2;
        memcpy(&c, numbers, sizeof c);
        EQUAL(config_check(&c, &error), side < 2);
        if (side >= 2) CHECK(!model_create(&model, &c, &error) && !model.params, "a model that cannot be is made");
    }
    CHECK(!run_create(&run, &MODELS[0].config, SIZE_MAX / 16, RUN_GRADIENTS, &error) && strstr(error.text, " MiB") && !run.memory,
          "a run over SIZE_MAX / 16 lists is made, or: %s", error.text);
}

/* ---- Looking inside ---------------------------------------------------------------------------------------------- */

/* Layer 0's effective QK table, of each key position, gives the attention of the forward pass. */
static void test_circuits(World *w) {
    const Config *c = &w->config;
    const size_t V = c->max_num, T = c->seq_len;
    float *table = randoms(V * V), *scratch = randoms(circuit_scratch(c));
    model_forward(&w->model, &w->run, w->lists, LISTS, NULL);
    const LayerRun *layer = &w->run.layers[0];
    FOR(head, c->n_heads) {
        double scores[LISTS][T_MAX];
        FOR(s, T) {
            const Circuit which = {CIRCUIT_QK, 0, 0, head, NO_POSITION, s};
            circuit_table(&w->model, &which, table, scratch);
            FOR(i, LISTS) scores[i][s] = (double)table[w->lists[i * T + T - 1] * V + w->lists[i * T + s]];
        }
        FOR(i, LISTS) naive_softmax(scores[i], scores[i], T);
        FOR(i, LISTS) compare(__LINE__, "attention", layer->pattern + (head * layer->n_out + layer->n_out - LISTS + i) * T, scores[i], T, 1e-5, 0);
    }
}

/* The terms of the direct attribution add up to the logits. */
static void test_attribution(World *w) {
    Term terms[64];
    float *scratch = randoms(w->config.d_model + w->config.d_head);
    FOR(i, LISTS) {
        Attribution a = {{i % w->config.max_num, 0}, 0, terms, 0, {0, 0}};
        model_forward(&w->model, &w->run, w->lists + i * w->config.seq_len, 1, NULL);
        attribute(&w->model, &w->run, &a, scratch);
        CHECK(a.n_terms <= attribution_terms(&w->config), "%u terms", (unsigned)a.n_terms);
        FOR(v, 2) WITHIN(a.sum[v], (double)w->run.logits[a.numbers[v]] - 1e-4, (double)w->run.logits[a.numbers[v]] + 1e-4);
    }
}

/* A clean run's values, put at every place of a site into the clean run, change nothing, and nor does their mean over lists
 * that are all the same; the residual stream's restore a corrupted run; zeros and others' values matter, but not at positions that
 * nobody reads. */
static void test_interventions(World *w) {
    const Config *c = &w->config;
    const size_t last = c->n_layers - 1;
    model_forward(&w->model, &w->source, w->lists, 1, NULL);
    const float *clean = copy(w->source.logits, c->max_num);
    FOR(site, c->d_mlp ? 4 : 3) FOR(mean, 2) FOR(corrupted, site == HOOK_RESIDUAL ? 2 : 1) {
        Target all[3];
        FOR(l, c->n_layers) all[l].site = (HookSite)site, all[l].layer = l, all[l].head = ALL_HEADS, all[l].position = ALL_POSITIONS;
        run_intervention(&w->model, &w->run, &w->source, w->lists + corrupted * c->seq_len, mean ? REPLACE_MEAN : REPLACE_SAME, all, c->n_layers);
        CHECK(same(w->run.logits, clean, c->max_num), "site %u: the clean values don't give the clean logits", (unsigned)site);
    }
    model_forward(&w->model, &w->source, w->lists, LISTS, NULL);
    const float *plain = copy(w->source.logits, LISTS * c->max_num);
    FOR(kind, 4) FOR(here, 2) {
        const Target t = {HOOK_HEAD, last, ALL_HEADS, here ? c->seq_len - 1 : 0};
        run_intervention(&w->model, &w->run, &w->source, w->lists, (ReplaceKind)kind, &t, 1);
        EQUAL(same(w->run.logits, plain, LISTS * c->max_num), !here || kind == REPLACE_SAME);
    }
}

/* ---- The certificate --------------------------------------------------------------------------------------------- */

/* Runs all lists; expected (max_num, max_num, 2): by last number and median, how many lists there are, and right ones. */
static void run_all_lists(const Model *model, uint64_t *expected) {
    const size_t V = model->config.max_num, T = model->config.seq_len, all = (size_t)pow((double)V, (double)T);
    uint32_t *lists = indices(1024 * T, 1);
    Run run;
    Error error = {{0}, 0};
    if (!CHECK(run_create(&run, &model->config, 1024, RUN_FORWARD, &error), "%s", error.text)) return;
    for (size_t first = 0; first < all; first += 1024) {
        const size_t n = all - first < 1024 ? all - first : 1024;
        FOR(j, n)
            for (size_t t = 0, rest = first + j; t < T; t++, rest /= V) lists[j * T + t] = (uint32_t)(rest % V);
        model_forward(model, &run, lists, n, NULL);
        FOR(j, n) {
            const uint32_t median = naive_median(lists + j * T, T);
            uint64_t *cell = expected + 2 * (lists[j * T + T - 1] * V + median);
            cell[0]++, cell[1] += argmax(run.logits + j * V, V) == median;
        }
    }
    run_free(&run);
}

/* The certificate counts what running every list counts; in the last two cases logits are so great that rounding decides. */
static void test_certify(void) {
    static const struct {
        Config config;
        size_t steps;
        float far;
    } cases[] = {{{20, 3, 8, 8, 2, 1, 0, 1}, 40, 0},    {{6, 5, 16, 8, 1, 1, 0, 1}, 0, 0},     {{6, 5, 16, 8, 3, 1, 0, 1}, 300, 0},
                 {{6, 5, 16, 8, 1, 1, 0, 0}, 40, 0},    {{10, 5, 16, 16, 1, 1, 0, 1}, 300, 0},
                 {{10, 5, 12, 4, 3, 1, 0, 1}, 40, 0},   {{4, 7, 16, 8, 1, 1, 0, 1}, 20, 0},
                 {{4, 7, 16, 8, 3, 1, 0, 0}, 0, 0},     {{6, 5, 16, 8, 1, 1, 0, 1}, 40, 1e4f},
                 {{6, 5, 8, 8, 2, 1, 0, 0}, 40, 1e5f},  {{6, 5, 8, 8, 1, 2, 0, 1}, 0, 0},
                 {{6, 5, 8, 8, 1, 1, 4, 1}, 0, 0},      {{65536, 5, 1, 1, 1, 1, 0, 1}, 0, 0}};
    FOR(k, LENGTH(cases)) FOR(full, 2) {
        const size_t V = cases[k].config.max_num;
        Recipe r = recipe_default();
        Trainer t;
        Certificate c;
        Error error = {{0}, 0};
        const CertifyOptions options = {0, full ? 1u << 26 : 20, NULL, NULL, NULL};
        r.steps = 300, r.batch_size = 64, r.valset_size = 10, r.warmup = 0, r.cosine = 0, r.hard = 0, r.balanced = 0;
        at("case %u, %s", (unsigned)k, full ? "all" : "little effort");
        if (!CHECK(trainer_create(&t, &r, &cases[k].config, NULL, &error), "%s", error.text)) return;
        FOR(i, cases[k].steps) trainer_step(&t);
        FOR(v, V) t.model.weights.b_U[v] += cases[k].far;
        const int done = certify(&t.model, &options, &c, &error);
        CHECK(done == (k < 10), "%s", done ? "certified what it cannot" : error.text);
        if (done) {
            uint64_t *expected = (uint64_t *)take(2 * V * V, sizeof *expected);
            run_all_lists(&t.model, expected);
            FOR(i, V * V) {
                const uint64_t *cell = c.cells[i], right = expected[2 * i + 1], wrong = expected[2 * i] - right;
                CHECK(cell[0] <= right && cell[1] <= wrong && cell[2] == right + wrong - cell[0] - cell[1],
                      "last number %u, median %u: proven %u right, %u wrong; are %u, %u", (unsigned)(i / V), (unsigned)(i % V),
                      (unsigned)cell[0], (unsigned)cell[1], (unsigned)right, (unsigned)wrong);
            }
            CHECK(c.lists == c.right + c.wrong + c.undecided, "the counts don't add up");
            CHECK(!full || c.undecided == 0, "%u lists undecided", (unsigned)c.undecided);
            CHECK(cases[k].far > 0 || c.lists_run < c.lists / 100, "%u lists run", (unsigned)c.lists_run);
            certificate_free(&c);
        }
        trainer_free(&t);
        release();
    }
}

/* ---- Training and files ------------------------------------------------------------------------------------------ */

#define FILE_NAME "median-test.tmp"
#define STATE_NAME "median-test-state.tmp"

static const Config SMALL = {10, 5, 16, 16, 1, 1, 0, 1}, NARROW = {10, 3, 4, 4, 1, 1, 0, 1};

/* With fixed lists, validated; or with fresh ones, and so many that the collection of hard lists is full in the end. */
static void start_training(Trainer *t, int fresh) {
    Recipe r = recipe_original();
    Error error = {{0}, 0};
    r.trainset_size = fresh ? 0 : 70, r.valset_size = 10, r.batch_size = fresh ? 1000 : 16, r.steps = 13;
    r.keep_best = !fresh, r.cosine = (size_t)fresh, r.balanced = 0.5f, r.hard = 0.5f;
    CHECK(trainer_create(t, &r, fresh ? &NARROW : &SMALL, NULL, &error), "%s", error.text);
    CHECK(same(trainer_result(t)->params, t->model.params, t->model.n_params), "before the first step the best is another model");
    mt_seed(&t->data, 1), mt_seed(&t->order_mt, 1); /* a generator without a number left is a case of its own for who saves it */
}

static void make_state(int fresh) {
    Trainer t;
    Error error = {{0}, 0};
    start_training(&t, fresh);
    FOR(i, 6) trainer_step(&t);
    CHECK(trainer_save(&t, STATE_NAME, &error), "%s", error.text);
    trainer_free(&t);
}

/* Saved, forgotten and resumed after every step, a training ends with the same bits. */
static void test_resume(void) {
    static const float told[] = {31.1369438f, 34.7045097f}; /* losses and accuracies of all steps, added up */
    FOR(fresh, 2) {
        uint64_t hash[2];
        FOR(interrupted, 2) {
            double sum = 0;
            Trainer t;
            Error error = {{0}, 0};
            start_training(&t, (int)fresh);
            while (t.step < t.total_steps) {
                const int validated = t.validated;
                if (interrupted) {
                    CHECK(trainer_save(&t, FILE_NAME, &error), "%s", error.text);
                    trainer_free(&t);
                    if (!CHECK(trainer_resume(&t, FILE_NAME, &error), "%s", error.text)) return;
                }
                EQUAL(t.validated, validated);
                trainer_step(&t);
                sum += t.loss + t.accuracy;
            }
            EQUAL(f32(sum), told[fresh]);
            const Model *result = trainer_result(&t);
            hash[interrupted] = hash_floats(HASH_START, result->params, result->n_params);
            t.v.params[0] = HUGE_VALF;
            CHECK(!trainer_save(&t, FILE_NAME, &error) && strstr(error.text, "no longer finite"), "%s", error.text);
            trainer_free(&t);
        }
        CHECK(hash[0] == hash[1], "resumed with %s lists: other weights", fresh ? "fresh" : "fixed");
    }
}

/* Every number's bounds are taken, and printed as they were given; what lies beyond them is not. */
static void test_setting_parse(void) {
    static const struct {
        const char *name, *below, *least, *most, *above;
    } bounds[] = {{"max-num", "1", "2", "65536", "65537"},     {"seq-len", "0", "1", "255", "256"},
                  {"d-model", "0", "1", "65536", "65537"},     {"d-head", "0", "1", "65536", "65537"},
                  {"n-layers", "0", "1", "256", "257"},        {"n-heads", "0", "1", "4096", "4097"},
                  {"d-mlp", "-1", "0", "1048576", "1048577"},  {"trainset-size", "-1", "0", "1000000000", "1000000001"},
                  {"balanced", "-1", "0", "1", "1.1"},         {"hard", "-1", "0", "1", "1.1"},
                  {"epochs", "-1", "0", "1000000000", "1000000001"}, {"valset-size", "-1", "0", "1000000000", "1000000001"},
                  {"steps", "-1", "0", "4000000000", "4000000001"},  {"warmup", "-1", "0", "4000000000", "4000000001"},
                  {"batch-size", "0", "1", "1000000", "1000001"},    {"seed", "-1", "0", "4294967295", "4294967296"},
                  {"lr", "-1", "0", "1e+03", "1001"},          {"weight-decay", "-1", "0", "1e+03", "1001"},
                  {"beta1", "-1", "0", "0.999999", "1"},       {"beta2", "-1", "0", "0.999999", "1"},
                  {"eps", "1e-31", "1e-30", "1", "1.1"},       {"normalization", "LM", "none", "LN", "LNN"},
                  {"schedule", "c", "constant", "cosine", ""}, {"keep", "las", "last", "best", "best|"}};
    FOR(i, n_settings) FOR(k, LENGTH(bounds)) {
        Settings all = {config_default(), recipe_default()};
        Error error = {{0}, 0};
        char text[40];
        if (strcmp(settings[i].name, bounds[k].name) != 0) continue;
        at("%s", settings[i].name);
        EQUAL(setting_parse(&settings[i], &all, bounds[k].below, &error), 0);
        EQUAL(setting_parse(&settings[i], &all, bounds[k].above, &error), 0);
        FOR(most, 2) {
            const char *given = most ? bounds[k].most : bounds[k].least;
            CHECK(setting_parse(&settings[i], &all, given, &error), "%s", error.text);
            setting_print(&settings[i], &all, text, sizeof text);
            CHECK(strcmp(text, given) == 0, "%s is printed as %s", given, text);
        }
    }
}

static void test_text_add(void) { /* pieces longer than any buffer */
    Text text = {0};
    for (int i = 0; i < 5; i++) text_add(&text, "%*d", 700 * i + 1, i);
    EQUAL(text.size, 7005);
    text_add(&text, "%8.3f", 2.5);
    CHECK(text.data[701] == '1' && text.data[2102] == '2' && !strcmp(text.data + 7004, "4   2.500"), "got %s", text.data + 7004);
    text_free(&text);
}

/* What is wrong with a training's state when, in its header, `from` is replaced by `to` and spaces, or by `to` and what follows
 * is lost; without `from`, the whole header; or when tensor `from` has the word @number:value. ' stands for ".
 * Each complaint is here once; .ci/cli has more. */
static const struct {
    const char *from, *to, *message;
} FAULTS[] = {
    {NULL, "[]", "no { (bad header at byte 8)"}, {NULL, "{}", "no tensor in it"},
    {NULL, "{'__metadata__':{}} x", "something stands behind the end"}, {NULL, "{'a':{'dtype':'F", "a string does not end"},
    {NULL, "{'\\u0", "an unknown escape"}, {NULL, "{'a':{'shape':[1", "no ,"},
    {NULL, "{'a':{'shape':[],'data_offsets':[],", "no \""},
    {NULL, "{'a':{'dtype':'F64','shape':[9999999999],'data_offsets':[0,79999999992]}}", "out of memory: it claims to have 76294 MiB"},
    {"'max-num':", "'max-num'", "no :"}, {"'10'", "'\\u00Ff\\u0001\\n\\/'", "the metadata says max-num ?"},
    {"'max-num':'10','seq-len':'5','d-model':'16','d-head':'16','n-layers':", "'a key with more characters than are kept':'','max-num':'9','x':", "the metadata says max-num 9"},
    {"'seq-len'", "'max-num'", "stands twice in __metadata__"}, {"'},'embed", "']'embed", "no ,"},
    {"'embed.W_E':", "'__metadata__':", "__metadata__ stands twice"},
    {"'F32'", "'F99'", "tensor embed.W_E has the unknown type 'F99'"}, {"'F32'", "'I32'", "the type I32 instead of F32"},
    {"'dtype'", "'dtypo'", "an unknown key"}, {"[10,16]", "[10,016]", "no whole number"}, {"[10,16]", "10", "no ["},
    {"[10,16]", "[1,1,1,1,1,1,1,1,1]", "too many numbers"},
    {"[10,16]", "[10,17]", "tensor embed.W_E: its dtype, shape and data_offsets don't fit together"},
    {"[10,16]", "[20,8]", "embed.W_pos has another shape than 5 x 8"}, {"[10,16]", "[160]", "d-model is 0"},
    {NULL, "{'a':{'dtype':'F32','shape':[0],'shape':[0]}}", "tensor a: its dtype, shape and data_offsets don't fit together"},
    {"[0,640]", "[1,641]", "begins after a gap"}, {"[640,960]", "[639,959]", "overlaps another"},
    {"'pos_embed.W_pos'", "'embed.W_E'", "stands twice"},
    {NULL, "{'mask':{'dtype':'F64','shape':[0],'data_offsets':[0,0]},'IGNORE':{'dtype':'U8','shape':[0],'data_offsets':[0,0]}}", "something stands behind the last tensor"},
    {"pos_embed.W_pos", "pos_embed.W_x", "W_pos is missing"}, {"ln_final.w", "ln_final.x", "has no place in the model"},
    {"'state.m'", "'state.x'", "tensor state.m is missing"}, {"'state.m'", "'b_m'", "b_m has no place in the model"},
    {"'U32'", "'I32'", "tensor state.data_mt has the type I32 instead of U32"},
    {"'warmup'", "'x'", "the metadata lacks warmup"}, {"'lr':'0.003'", "'lr':'-1'", "--lr is '-1'"},
    {"'valset-size':'10'", "'valset-size':'0'", "state.words is damaged"},
    {"'batch-size':'16'", "'batch-size':'0'", "--batch-size"},
    {"embed.W_E", "@9:0x7fc00000", "embed.W_E holds NaN"}, {"embed.W_E", "@159:0xff800000", "embed.W_E holds infinity"},
    {"state.m", "@0:0x7f800000", "state.m holds infinity"}, {"'state.order'", "@0:70", "state.order is damaged"},
    {"state.words", "@0:14", "state.words is damaged"}, {"state.words", "@1:2", "state.words is damaged"},
    {"state.words", "@2:11", "state.words is damaged"}, {"state.words", "@3:625", "state.words is damaged"},
    {"state.words", "@4:625", "state.words is damaged"}, {"state.words", "@5:1", "state.words is damaged"}};

static size_t header_size(const Text *file) { return (unsigned char)file->data[0] + 256u * (unsigned char)file->data[1]; }

/* Where `text` stands in the file's header, or the header's beginning. */
static char *in_header(const Text *file, const char *text) {
    char quoted[200];
    snprintf(quoted, sizeof quoted, "%s", text ? text : "");
    for (char *c = quoted; (c = strchr(c, '\'')) != NULL;) *c = '"';
    char *place = strstr(file->data + 8, quoted);
    return CHECK(place != NULL, "%s is not in the header", quoted) ? place : file->data + 8;
}

static void spoil_header(Text *file, const char *from, const char *to) {
    char *place = in_header(file, from);
    memset(place, ' ', from ? strlen(from) : header_size(file));
    FOR(i, strlen(to)) place[i] = (char)(to[i] == '\'' ? '"' : to[i]);
}

static void spoil_word(Text *file, const char *tensor, const char *at) {
    char *end, *place = file->data + 8 + header_size(file) + 4 * strtoul(at + 1, &end, 10);
    const unsigned long word = strtoul(end + 1, NULL, 0);
    place += strtoul(strstr(in_header(file, tensor), "data_offsets\":[") + 15, NULL, 10);
    FOR(i, 4) place[i] = (char)(word >> 8 * i & 255);
}

/* Resumes from the file, which must fail with that message; then the file is sound again. */
static void expect_fault(Text *file, const Text *sound, const char *message) {
    Trainer t;
    Error error = {{0}, 0};
    CHECK(write_file(FILE_NAME, file, &error), "%s", error.text);
    if (trainer_resume(&t, FILE_NAME, &error)) CHECK(0, "it is taken"), trainer_free(&t);
    else CHECK(strstr(error.text, message) != NULL, "expected '%s', got '%s'", message, error.text);
    file->size = 0;
    text_bytes(file, sound->data, sound->size);
}

static void read_state(Text *state, int fresh) {
    char piece[1000];
    make_state(fresh);
    FILE *f = fopen(STATE_NAME, "rb");
    for (size_t n; f && (n = fread(piece, 1, sizeof piece, f)) > 0;) text_bytes(state, piece, n);
    if (f) fclose(f);
}

/* Tensors of every type that the format has are passed over. */
static void expect_types(Text *file, const Text *sound) {
    static const struct {
        unsigned bytes;
        const char *names[5];
    } types[] = {{1, {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"}}, {2, {"I16", "U16", "F16", "BF16"}}, {4, {"I32", "U32", "F32"}},
                 {8, {"I64", "U64", "F64"}}};
    FOR(i, 4) FOR(k, 5) if (types[i].names[k]) {
        char header[100];
        snprintf(header, sizeof header, "{'a':{'dtype':'%s','shape':[3],'data_offsets':[0,%u]}}", types[i].names[k], 3 * types[i].bytes);
        spoil_header(file, NULL, header);
        expect_fault(file, sound, "something stands behind the last tensor");
    }
}

static void test_faults(void) {
    Text sound = {0}, fresh = {0}, file = {0};
    read_state(&sound, 0), read_state(&fresh, 1);
    expect_fault(&file, &sound, "cut off: 8 bytes are missing");
    FOR(i, LENGTH(FAULTS)) {
        at("%s -> %s", FAULTS[i].from ? FAULTS[i].from : "the header", FAULTS[i].to);
        (FAULTS[i].to[0] == '@' ? spoil_word : spoil_header)(&file, FAULTS[i].from, FAULTS[i].to);
        expect_fault(&file, &sound, FAULTS[i].message);
    }
    expect_types(&file, &sound);
    file.size--, expect_fault(&file, &sound, "cut off: 1 bytes are missing");
    file.data[3] = 1, expect_fault(&file, &sound, "its header would have");
    text_bytes(&file, "", 1), expect_fault(&file, &sound, "something stands behind the last tensor");
    spoil_word(&fresh, "state.hard", "@0:10"), expect_fault(&fresh, &sound, "state.hard is damaged");
    text_free(&sound), text_free(&fresh), text_free(&file);
}

/* ---- The command line -------------------------------------------------------------------------------------------- */


/* Models: the usual kind, trained well; one with everything that a model can have; one of zeros; one of numbers that are too
 * great. And a training's state. */
#define A "median-test-a.tmp"
#define B "median-test-b.tmp"
#define C "median-test-c.tmp"
#define D "median-test-d.tmp"
#define ON_A " --model " A
#define LOG_NAME "median-test-log.tmp"
#define TINY "--seq-len 5 --d-model 8 --d-head 8 --valset-size 50 --batch-size 32 "

/* What shows a model is run on A and on B, and the hashes of the output compared. */
static const struct {
    const char *line, *hashes[2];
} VIEWS[] = {
    {"info", {"46bdf96d89a0c7fa", "733b5d8839c4812d"}},
    {"tour --size 50", {"458e7972de494feb", "92a7e71958ef9c57"}},
    {"eval --size 500", {"74b0fc719907b9c5", "5df92d4f352a8c2f"}},
    {"eval --size 500 --seed 3 --csv", {"984ef84056b087e1", "c0461420128cdd57"}},
    {"predict 1 2 3 4 5", {"db61d886721baae1", "41de67f87079f287"}},
    {"predict --logits 9 0 9 -0 5", {"0903d38479767280", "9ed0a46d5882fa4d"}},
    {"predict < 1 2 3 4 5// 5,4,3,2,1 /01 02 03 04 05", {"6f638d86327aa474", "c07da369af8fc8a3"}},
    {"attention --size 20", {"d6dd1add71e668f9", "66926b042c7bef55"}},
    {"attention --size 20 --csv", {"0f37ea110fec2a9e", "556d85994ba25c64"}},
    {"attention --color --size 9 1 2 3 4 5", {"f5dd656627dbbcdb", "23da7e2203ad16e9"}},
    {"circuits qk", {"8c843b706ac4165f", "6ae6f780ccee5b4f"}},
    {"circuits qk --csv --raw --query-pos 1 --key-pos 2", {"1018892f0f22f2b4", "b725c4781cca7e6b"}},
    {"circuits qk --query-pos 1 --width 40", {"ba61d3f6d2e7627a", "d27557921d32d428"}},
    {"circuits ov --head 0.0 --key-pos 0", {"2d1289f3681b112c", "216785baa57182ac"}},
    {"circuits ov --csv", {"85e05b5686b155cb", "ed35086a9c62d308"}},
    {"circuits ov --raw --color", {"687d5aa46a4086a7", "a25f7f1acfa22d87"}},
    {"weights", {"6d1accadb73032a9", "c016febf6049c60e"}},
    {"weights --csv", {"49dfe6f25944f548", "ab2459da061e224e"}},
    {"ablate --size 20", {"90bc011fd8fa0e37", "e1cd04ba8bbec8f8"}},
    {"ablate --size 20 --csv --kind resample --head 0.0 --positions 0,4", {"0d67cb99b10527fa", "7e5bbfc341cb06f8"}},
    {"ablate --size 20 --kind zero --layer 0", {"6cb7382c887b63ca", "6fb5590a263d6840"}},
    {"ablate --size 20 --positions 4", {"cb14bca3081e04da", "074d2c91f08d7079"}},
    {"attribute", {"0ed2771ea8e8d3c2", "25c70814b412b676"}},
    {"attribute --csv 9 1 8 2 7", {"93464ecb19c05ffe", "bd7d2fdf3a8b9799"}},
    {"patch", {"333311b36d6195e4", "1927f81b5647eb95"}},
    {"patch --csv 1 2 3 4 5 1 2 9 4 5", {"bd2335e1418e3c76", "e49c5660720858b7"}},
    {"explain --size 300", {"c69f3dd00dfbe33f", "cec47422882338e7"}},
    {"explain --size 1100 --csv", {"2336f3fe33711ca3", "2544f4334d3d06ee"}},
};

/* Other lines: their exit status, and what the output or the error says, or the output's hash. */
static const struct {
    const char *line;
    int status;
    const char *said;
} LINES[] = {
    {"--version", 0, "median 1."}, {"--help", 0, "Exit status"}, {"-h", 0, "Exit status"}, {"help", 0, "Exit status"},
    {"train --help", 0, "5b12088271832a42"}, {"data --help", 0, "e7e3f15618cbdb89"},
    {"--color --help", 0, "median [--option value]"}, {"data --size 1001", 0, "9ee78e9a20bf7b01"},
    {"data --size 3 --max-num=100 --seed 23", 0, "91 46 16 97 30 12 27 | 30"}, {"check", 0, "08de52e8d469985e"},
    {"bench --size 2 --batch-size 8", 0, "MFLOP a step"}, {"info --model " C, 0, "803c6f397fe4851c"},
    {"tour --size 20 --model " C, 0, "49db83afee9d04c3"}, {"weights --model " C, 0, "01d43ee01a8e31f7"},
    {"explain --csv --size 5 --model " C, 0, "2f498e43f0afb8bf"},
    {"train --resume " STATE_NAME " --log " LOG_NAME " --save-every 2 --out " FILE_NAME, 0, "1ea82f1b0b847a68"},
    {"train " TINY "--max-num 9 --epochs 9 --steps 2 --out " FILE_NAME, 0, "7a8b20d61e12d3b1"},
    {"train --init " A " --steps 3 --batch-size 8 --valset-size 0 --threads 2 --out " FILE_NAME, 0, "d7366a516697349e"},
    {"train " TINY "--trainset-size 32 --normalization none --n-layers 4 --lr 1000 --steps 99 --out " FILE_NAME, 1, "no longer finite"},
    {"train --setps 3", 2, "did you mean --steps?"},
    {"train --zzzzzzzzzzzzzzzz", 2, "unknown option --zzzzzzzzzzzzzzzz"},
    {"train --an-option-of-more-than-sixty-three-characters-which-is-not-like-any", 2, "unknown option"},
    {"eval --lr 3", 2, "unknown option --lr"}, {"tran", 2, "did you mean train?"},
    {"nonsensical", 2, "unknown command"}, {"train --steps", 2, "--steps needs a value"},
    {"eval --csv=1", 2, "--csv takes no value"}, {"eval x", 2, "unexpected argument 'x'"},
    {"train --preset fast", 2, "--preset is 'fast'"}, {"train --keep worst", 2, "--keep is 'worst'"},
    {"train --steps=", 2, "--steps is empty"}, {"train --steps=3.5", 2, "--steps is '3.5'"},
    {"train --lr=nan", 2, "--lr is 'nan'"}, {"train --lr 1e", 2, "--lr is '1e'"},
    {"data --seq-len 4", 2, "Length must be odd"}, {"train --seq-len 1", 2, "Length must be at least 3"},
    {"bench --seq-len 2", 2, "Length must be odd"}, {"train --steps 0", 2, "--steps"},
    {"train --max-num 65536 --d-model 65536", 1, "MiB"}, {"attention --size 1000000000" ON_A, 1, "MiB"},
    {"train --resume x --lr 1", 2, "keeps its own settings"},
    {"train --resume median-test-x.tmp", 1, "median-test-x.tmp: "},
    {"train --init median-test-x.tmp", 1, "median-test-x.tmp: "},
    {"train --steps 1 --out ./no/such", 1, "cannot write ./no/such"},
    {"predict 1 2 3 4 10" ON_A, 2, "10 is not in 0..9"}, {"predict 1 2 3 4 -1" ON_A, 2, "-1 is not in 0..9"},
    {"predict 1 2 3 4 x\n\177" ON_A, 2, "'x?"}, {"predict 1 2 3" ON_A, 2, "too few numbers"},
    {"predict 1 2 3 4 5 6" ON_A, 2, "too many numbers"}, {"predict " ON_A " < 1 2 3 4 5//1 2 3", 1, "line 3: too few"},
    {"attention 1 2" ON_A, 2, "too few"}, {"attribute 1 2 3" ON_A, 2, "too few"}, {"patch 1 2 3" ON_A, 2, "two lists"},
    {"patch 1 2 3 4 5 1 2 3 4 5" ON_A, 2, "must differ in one number"},
    {"patch 1 2 3 4 5 1 2 3 4 x" ON_A, 2, "'x' is not"}, {"circuits" ON_A, 2, "circuits"},
    {"circuits qk --query-pos 5" ON_A, 2, "--query-pos"}, {"circuits qk --key-pos 5" ON_A, 2, "--key-pos"},
    {"circuits qk --head 1.0" ON_A, 2, "--head"}, {"ablate --head 0" ON_A, 2, "--head"},
    {"ablate --head 0.1" ON_A, 2, "--head"}, {"ablate --head x.0" ON_A, 2, "--head"},
    {"ablate --layer 1" ON_A, 2, "--layer"}, {"ablate --layer 0 --part mlp" ON_A, 2, "no MLP"},
    {"ablate --positions 5" ON_A, 2, "--positions"}, {"ablate --positions x" ON_A, 2, "--positions"},
    {"ablate --layer x" ON_A, 2, "--layer"}, {"ablate --head 0.x" ON_A, 2, "--head"},
    {"certify" ON_A, 0, "f39f4f977b134d42"}, {"certify --csv" ON_A, 0, "df0bb4159f48081b"}, {"certify --model " B, 1, "one layer"},
    {"eval --size 2 --model " D, 1, "so great that numbers overflow"},
    {"circuits qk --raw" ON_A, 0, "516ee1d30a6ec9f8"}, {"explain --size 9 --seed 9" ON_A, 0, "Much of the mechanism"},
    {"ablate --size 9 --csv --part mlp --positions 0 --model " B, 0, "95962bf31b014990"}, {"ablate --size 9 --head 0.0,1.1 --model " B, 0, "668515f20677bb76"},
    {"ablate --size 9 --part attn --layer 0 --positions 1 --model " B, 0, "fd8239545533622a"},
    {"ablate --size 9 --csv --part mlp --layer 0,1 --head 1.1 --model " B, 0, "ddbd3ce87397ea95"}};

/* Runs a command line; behind '<' stands its input, with / for the end of a line. Returns the exit status; *said is what was
 * printed, then the error. */
static int run_line(const char *line, const char *option, FILE *out, char hash[20], Text *said) {
    const size_t first = strcspn(line, " ");
    char words[500], *argv[60];
    int argc = 0;
    Error error = {{0}, 0};
    snprintf(words, sizeof words, "median %.*s%s%s", (int)first, line, option, line + first);
    char *input = strchr(words, '<');
    if (input) *input++ = 0;
    FILE *in = fopen("median-test-in.tmp", "wb+"), *progress = fopen("median-test-out.tmp", "wb");
    for (; in && input && *input; input++) fputc(*input == '/' ? '\n' : *input, in);
    if (in) rewind(in);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    const Streams streams = {in, out, progress};
    const int done = CHECK(in && progress, "no file can be made here") && median_command(argc, argv, &streams, said, &error);
    snprintf(hash, 20, "%016" PRIx64, hash_bytes(HASH_START, said->data, said->size));
    text_add(said, "%s", error.text);
    if (in) fclose(in);
    if (progress) fclose(progress);
    return done ? 0 : 1 + error.usage;
}

static void check_line(const char *line, const char *option, int status, const char *expected) {
    char hash[20];
    Text said = {0};
    EQUAL(run_line(line, option, NULL, hash, &said), status);
    CHECK(strstr(said.data, expected) || !strcmp(hash, expected), "expected %s, got %s: %.200s", expected, hash, said.data);
    text_free(&said);
}

static void make_files(void) {
    static int done = 0;
    Model zero;
    const Note note = {"a note of 23 characters", "that is kept, but not its \177"}; /* the longest name, the last character */
    Error error = {{0}, 0};
    if (done++) return;
    check_line("train --max-num 10 " TINY "--steps 1500 --warmup 20 --out " A, "", 0, "1500 steps");
    check_line("train --preset original --max-num 19 " TINY "--trainset-size 200 --epochs 8 --balanced 0.3 --no-shuffle --n-layers 2 "
               "--n-heads 2 --d-mlp 6 --normalization none --weight-decay 0.01 --log " LOG_NAME " --out " B, "", 0, "steps");
    CHECK(model_create(&zero, &SMALL, &error), "%s", error.text);
    zero.notes[0] = note, zero.n_notes = 1;
    CHECK(model_save(&zero, C, &error), "%s", error.text);
    FOR(i, zero.n_params) zero.params[i] = 1e38f;
    CHECK(model_save(&zero, D, &error), "%s", error.text);
    model_free(&zero);
    make_state(0);
}

/* Output that is lost is an error. */
static void test_lost_output(void) {
    char hash[20];
    Text said = {0};
    fclose(fopen(FILE_NAME, "wb"));
    FILE *closed = fopen(FILE_NAME, "rb");
    EQUAL(run_line("data", "", closed, hash, &said), 1);
    CHECK(strstr(said.data, "cannot write to standard output") != NULL, "%s", said.data);
    fclose(closed);
    text_free(&said);
}

/* ---- The table --------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*run)(void);
    void (*run_world)(World *);
} Test;

/* Each storey stands on those before it: where something fails, those above are not tested. */
#define TEST(name) {#name, test_##name, NULL}
#define WORLD_TEST(name) {#name, NULL, test_##name}
static const Test GROUND[] = {TEST(smaller), TEST(f32), TEST(ieee_setup), TEST(mt_seed), TEST(mt_next), TEST(exp_f32), TEST(log_f32), TEST(hash_bytes),
                              TEST(hash_floats), TEST(mt_normal), TEST(attention_scratch)},
                  NUMERICS[] = {TEST(relu_at_zero), TEST(adam_step), TEST(singular_values), TEST(use_threads)},
                  STORY[] = {TEST(median_of), TEST(make_lists), TEST(config_check), WORLD_TEST(model_init), WORLD_TEST(model_forward),
                             WORLD_TEST(model_backward), WORLD_TEST(circuits), WORLD_TEST(attribution), WORLD_TEST(interventions),
                             TEST(resume), TEST(setting_parse), TEST(text_add), TEST(faults),
                             TEST(certify), TEST(lost_output)};

typedef struct {
    size_t n_names;
    const char *const *names;
    int passed, failed;
} Session;

static int begin(const Session *s, const char *name) {
    int chosen = s->n_names == 0;
    for (size_t i = 0; i < s->n_names; i++) chosen |= strstr(name, s->names[i]) != NULL;
    failure[0] = where[0] = 0;
    noise = 1;
    return chosen;
}

static void finish(Session *s, const char *name, const char *more) {
    release();
    if (failure[0]) printf("FAIL %s%s: %s\n", name, more, failure), s->failed++;
    else printf("ok   %s%s\n", name, more), s->passed++;
    fflush(stdout);
}

static void run_table(Session *s, const Test *tests, size_t n) {
    FOR(i, n) {
        if (!begin(s, tests[i].name)) continue;
        if (tests[i].run) tests[i].run();
        FOR(m, tests[i].run ? 0 : LENGTH(MODELS)) {
            World w;
            at("%s", MODELS[m].name);
            world_create(&w, &MODELS[m].config);
            if (!failure[0]) tests[i].run_world(&w);
            world_free(&w);
        }
        finish(s, tests[i].name, "");
    }
}

static void run_layers(Session *s) {
    FOR(i, LENGTH(LAYERS)) FOR(backward, 2) {
        const char *name = backward ? LAYERS[i].backward_name : LAYERS[i].forward_name;
        if (!name || !begin(s, name)) continue;
        check_layer(&LAYERS[i], backward ? check_backward : check_forward);
        finish(s, name, "");
    }
}

static void run_line_test(Session *s, const char *line, const char *option, int status, const char *said) {
    if (!begin(s, line)) return;
    make_files();
    check_line(line, option, status, said);
    finish(s, line, option);
}

static void run_lines(Session *s) {
    const char *const files[] = {FILE_NAME, STATE_NAME, LOG_NAME, A, B, C, D, "median-test-in.tmp", "median-test-out.tmp"};
    FOR(i, LENGTH(VIEWS)) FOR(b, 2) run_line_test(s, VIEWS[i].line, b ? " --model " B : ON_A, 0, VIEWS[i].hashes[b]);
    FOR(i, LENGTH(LINES)) run_line_test(s, LINES[i].line, "", LINES[i].status, LINES[i].said);
    FOR(i, LENGTH(files)) remove(files[i]);
}

int run_tests(size_t n_names, const char *const *names) {
    Session s = {n_names, names, 0, 0};
    run_table(&s, GROUND, LENGTH(GROUND));
    if (!s.failed) run_layers(&s), run_table(&s, NUMERICS, LENGTH(NUMERICS));
    if (!s.failed) run_table(&s, STORY, LENGTH(STORY));
    if (!s.failed) run_lines(&s);
    printf("%d passed, %d failed\n", s.passed, s.failed);
    return s.failed > 0 || s.passed == 0;
}
