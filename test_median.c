/* test_median.c - the tests of tensor.c and median.c, one for every function of tensor.h under that function's name.
 *
 * What is computed there is computed here a second time, from the formulas in the headers, with plain loops in double.
 * A gradient is compared with differences of that, and a layer's also with differences of its own forward pass. */
#include "median.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>


/* ---- The harness ------------------------------------------------------------------------------------------------ */

#define FOR(i, n) for (size_t i = 0; i < (n); i++)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static char failure[400], where[100]; /* of the running test: its first failure; the case that it is at */

static void at(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
}

static int check(int ok, int line, const char *format, ...) {
    char text[250];
    va_list args;
    if (ok || failure[0]) return ok;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(failure, sizeof failure, "%s%s%s (test_median.c:%d)", where, where[0] ? ": " : "", text, line);
    return 0;
}

static void check_within(int line, const char *what, double got, double low, double high) {
    check(got >= low && got <= high, line, "%s: expected %.9g to %.9g, got %.9g", what, low, high, got);
}

static void check_equal(int line, const char *what, double got, double expected) {
    check(got == expected, line, "%s: expected %.17g, got %.17g", what, expected, got);
}

#define CHECK(ok, ...) check(ok, __LINE__, __VA_ARGS__)
#define WITHIN(got, low, high) check_within(__LINE__, #got, (double)(got), low, high)
#define EQUAL(got, expected) check_equal(__LINE__, #got, (double)(got), (double)(expected))

/* Arrays live until the next release(). Around each stand 64 bytes of ones: as floats NaN, which spoils whatever is
 * computed from it, and release() sees whether they were written over. */
enum { GUARD = 64 };
static struct {
    unsigned char *memory;
    size_t bytes;
} blocks[64];
static size_t n_blocks;

static void *take(size_t n, size_t size) {
    const size_t bytes = n * size;
    unsigned char *memory = n_blocks < LENGTH(blocks) ? (unsigned char *)malloc(bytes + 2 * GUARD) : NULL;
    if (!memory) {
        printf("FAIL array %u, of %.0f bytes: out of memory\n", (unsigned)n_blocks, (double)bytes);
        exit(1);
    }
    memset(memory, 0xff, bytes + 2 * GUARD);
    memset(memory + GUARD, 0, bytes);
    blocks[n_blocks].memory = memory, blocks[n_blocks++].bytes = bytes;
    return memory + GUARD;
}

static void release(void) {
    for (; n_blocks > 0; n_blocks--) {
        const unsigned char *memory = blocks[n_blocks - 1].memory, *end = memory + GUARD + blocks[n_blocks - 1].bytes;
        int whole = 1;
        FOR(j, GUARD) whole &= memory[j] == 0xff && end[j] == 0xff;
        CHECK(whole, "written beyond the bounds of array %u of this case", (unsigned)n_blocks);
        free(blocks[n_blocks - 1].memory);
    }
}

static uint64_t noise; /* the tests' own random numbers; every test starts from 1 */

static float uniform(void) { /* from -1 to 1, 24 bits */
    noise = noise * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(noise >> 40) * 0x1p-23 - 1.0);
}

static float *zeros(size_t n) { return (float *)take(n, sizeof(float)); }

static float *randoms(size_t n) {
    float *x = zeros(n);
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
    FOR(i, n) y[i] = x ? (double)x[i] : 0.0;
    return y;
}

static float *copy(const float *x, size_t n) { return (float *)memcpy(take(n, sizeof *x), x, n * sizeof *x); }

/* got - minus against expected: may differ by tolerance * (|expected| + the mean |expected| + floor). */
static void compare(int line, const char *what, const float *got, const float *minus, const double *expected, size_t n,
                    double tolerance, double least) {
    FOR(i, n) least += fabs(expected[i]) / (double)n;
    FOR(i, n) {
        const double value = (double)got[i] - (minus ? (double)minus[i] : 0.0);
        check(fabs(value - expected[i]) <= tolerance * (fabs(expected[i]) + least), line,
              "%s[%u]: expected %.9g, got %.9g", what, (unsigned)i, expected[i], value);
    }
}
#define NEAR(got, expected, n) compare(__LINE__, #got, got, NULL, expected, n, 1e-6, 0.0)

/* ---- Rounding, random numbers, exp and log, hashing -------------------------------------------------------------- */

/* Whether function(x) has the bits it should have; any NaN is as good as another. */
static void check_bits(const char *name, double x, float got, uint32_t expected) {
    uint32_t bits;
    memcpy(&bits, &got, sizeof bits);
    CHECK(bits == expected || ((bits & 0x7fffffff) > 0x7f800000 && (expected & 0x7fffffff) > 0x7f800000),
          "%s(%.17g): expected %08lx, got %08lx", name, x, (unsigned long)expected, (unsigned long)bits);
}

static void golden(const char *name, float (*function)(float), const uint32_t (*table)[2], size_t n) {
    FOR(i, n) {
        float x;
        memcpy(&x, &table[i][0], sizeof x);
        check_bits(name, (double)x, function(x), table[i][1]);
    }
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
    EQUAL(mt_next(&mt), 3499211612.0);
    FOR(i, 9998) mt_next(&mt);
    EQUAL(mt_next(&mt), 4123659995.0);
}

static void test_mt_normal(void) {
    enum { N = 100000 };
    float *x = zeros(N);
    double moments[5] = {0};
    Mt19937 mt, other;
    mt_seed(&mt, 1);
    if (!CHECK(mt_next(&mt) != mt_next(&mt), "mt_next repeats itself")) return;
    mt_normal(&mt, x, N, 2.0f);
    FOR(i, N) FOR(k, 5) moments[k] += pow((double)x[i] / 2.0, (double)k) / N;
    WITHIN(moments[1], -0.01, 0.01);
    WITHIN(moments[2], 0.985, 1.015);
    WITHIN(moments[3], -0.03, 0.03);
    WITHIN(moments[4], 2.93, 3.07);
    for (size_t n = 0; n < 8; n++) { /* against the definition; an odd n drops half of the last pair */
        float *got = randoms(n);
        double expected[8];
        mt_seed(&mt, 77), mt_seed(&other, 77);
        mt_normal(&mt, got, n, 0.3f);
        for (size_t i = 0; i < n; i += 2) {
            double u, v, s;
            do {
                u = floor(mt_next(&other) / 256.0) * 0x1p-23 - 1.0;
                v = floor(mt_next(&other) / 256.0) * 0x1p-23 - 1.0;
                s = (double)f32(u * u + v * v);
            } while (s >= 1.0 || s == 0.0);
            expected[i] = (double)0.3f * u * sqrt(-2.0 * log(s) / s);
            expected[i + 1] = (double)0.3f * v * sqrt(-2.0 * log(s) / s);
        }
        NEAR(got, expected, n);
        EQUAL(mt_next(&mt), mt_next(&other));
    }
}

/* Golden values: {the bits of x, the bits of the result}. */
static const uint32_t exp_golden[][2] = {
    {0x00000000, 0x3f800000}, {0x80000000, 0x3f800000}, {0x00000001, 0x3f800000}, {0x33000000, 0x3f800000},
    {0x3f800000, 0x402df854}, {0xbf800000, 0x3ebc5ab2}, {0x3f000000, 0x3fd3094c}, {0x41200000, 0x46ac14ee},
    {0xc1200000, 0x383e6bce},
    {0x42b17217, 0x7f7fff84}, {0x42b17218, 0x7f800000}, {0x43480000, 0x7f800000}, {0x7f7fffff, 0x7f800000}, /* overflow */
    {0xc2aeac4f, 0x00800026}, {0xc2aeac50, 0x00000000}, {0xc2ce8ed0, 0x00000000}, {0xff7fffff, 0x00000000}, /* underflow */
    {0x7f800000, 0x7f800000}, {0xff800000, 0x00000000}, {0x7fc00000, 0x7fc00000}};

static const uint32_t log_golden[][2] = {
    {0x3f800000, 0x00000000}, {0x3f800001, 0x33ffffff}, {0x3f7fffff, 0xb3800000}, {0x40000000, 0x3f317218},
    {0x3f000000, 0xbf317218}, {0x402df854, 0x3f7fffff}, {0x41200000, 0x40135d8e}, {0x7f7fffff, 0x42b17218},
    {0x00800000, 0xc2aeac50}, {0x00000003, 0xc2cc5c53}, {0x00000001, 0xc2ce8ed0}, /* the least normal; subnormal */
    {0x00000000, 0xff800000}, {0x80000000, 0xff800000}, {0x7f800000, 0x7f800000},
    {0xbf800000, 0x7fc00000}, {0xff800000, 0x7fc00000}, {0x80000001, 0x7fc00000}, {0x7fc00000, 0x7fc00000}};

static void test_exp_f32(void) { golden("exp_f32", exp_f32, exp_golden, LENGTH(exp_golden)); }
static void test_log_f32(void) { golden("log_f32", log_f32, log_golden, LENGTH(log_golden)); }

static void test_hash_bytes(void) { /* the FNV authors' test vectors */
    CHECK(hash_bytes(HASH_START, "", 0) == HASH_START, "of nothing");
    CHECK(hash_bytes(HASH_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c), "of a");
    CHECK(hash_bytes(HASH_START, "foobar", 6) == UINT64_C(0x85944171f73967e8), "of foobar");
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

static void naive_softmax(double *out, const double *x, size_t n) { /* out may be x */
    double max = -HUGE_VAL, sum = 0;
    FOR(i, n) max = x[i] > max ? x[i] : max;
    FOR(i, n) sum += out[i] = exp(x[i] - max);
    FOR(i, n) out[i] /= sum;
}

static double naive_cross_entropy(const double *logits, size_t label, size_t n) {
    double max = -HUGE_VAL, sum = 0;
    FOR(i, n) max = logits[i] > max ? logits[i] : max;
    FOR(i, n) sum += exp(logits[i] - max);
    return log(sum) + max - logits[label];
}

/* A call of a layer on arrays of some size, and with some of the variants that the header allows. */
typedef struct {
    size_t rows, d, d_out, variant;
    float *in[3], *out, *dout; /* inputs that have gradients, output and its gradient */
    size_t n[3], n_out;
    float *side, *side2; /* what else forward writes */
    uint32_t *index, *index2;
    Attention attention;
    float scale;
    int rough; /* too steep or too large for differences in float */
} Case;

typedef struct {
    void (*prepare)(Case *), (*forward)(Case *), (*backward)(Case *, float *const *d);
    void (*naive)(const Case *, double *out, double *const *in); /* out is zero at first */
    size_t n_variants, optional; /* optional: bit k is set if backward's d[k] may be NULL */
    int two_sizes;               /* the numbers of columns of input and output differ */
} Layer;

static void prepare_case(Case *c, size_t n0, size_t n1, size_t n2, size_t n_out) {
    c->n[0] = n0, c->n[1] = n1, c->n[2] = n2, c->n_out = n_out;
    FOR(k, 3) c->in[k] = randoms(c->n[k]);
    c->out = randoms(n_out), c->dout = randoms(n_out);
}

/* x[r] = W_E[token[r]] + W_pos[position[r]] */
enum { VOCABULARY = 11, PLACES = 5 };
static void embed_prepare(Case *c) {
    prepare_case(c, VOCABULARY * c->d, PLACES * c->d, 0, c->rows * c->d);
    c->index = indices(c->rows, VOCABULARY), c->index2 = indices(c->rows, PLACES);
}
static void embed_f(Case *c) { embed_forward(c->out, c->in[0], c->in[1], c->index, c->index2, c->rows, c->d); }
static void embed_b(Case *c, float *const *d) { embed_backward(d[0], d[1], c->dout, c->index, c->index2, c->rows, c->d); }
static void embed_n(const Case *c, double *out, double *const *in) {
    FOR(r, c->rows) FOR(j, c->d) out[r * c->d + j] = in[0][c->index[r] * c->d + j] + in[1][c->index2[r] * c->d + j];
}

/* out[r] = x[index[r]] + b; variant 1: without b */
static void gather_prepare(Case *c) {
    prepare_case(c, VOCABULARY * c->d, c->variant ? 0 : c->d, 0, c->rows * c->d);
    c->index = indices(c->rows, VOCABULARY);
}
static void gather_f(Case *c) { gather_forward(c->out, c->in[0], c->variant ? NULL : c->in[1], c->index, c->rows, c->d); }
static void gather_b(Case *c, float *const *d) {
    gather_backward(d[0], c->variant ? NULL : d[1], c->dout, c->index, c->rows, c->d);
}
static void gather_n(const Case *c, double *out, double *const *in) {
    FOR(r, c->rows) FOR(j, c->d) out[r * c->d + j] = in[0][c->index[r] * c->d + j] + (c->variant ? 0 : in[1][j]);
}

/* out = residual + b + x W; variants: b or not, times residual in its own array, in out, or none */
static void linear_prepare(Case *c) {
    prepare_case(c, c->rows * c->d, c->d * c->d_out, c->variant % 2 ? c->d_out : 0, c->rows * c->d_out);
    c->side = randoms(c->n_out);
}
static void linear_f(Case *c) {
    if (c->variant / 2 == 1) memcpy(c->out, c->side, c->n_out * sizeof(float));
    linear_forward(c->out, c->variant / 2 == 2 ? c->side : c->variant / 2 == 1 ? c->out : NULL, c->in[0], c->in[1],
                   c->variant % 2 ? c->in[2] : NULL, c->rows, c->d, c->d_out);
}
static void linear_b(Case *c, float *const *d) {
    linear_backward(d[0], d[1], c->variant % 2 ? d[2] : NULL, c->dout, c->in[0], c->in[1], c->rows, c->d, c->d_out);
}
static void linear_n(const Case *c, double *out, double *const *in) {
    FOR(i, c->n_out) out[i] = c->variant / 2 ? (double)c->side[i] : 0;
    FOR(r, c->rows)
        naive_linear(out + r * c->d_out, in[0] + r * c->d, in[1], c->variant % 2 ? in[2] : NULL, c->d, c->d_out);
}

static void norm_prepare(Case *c) {
    prepare_case(c, c->rows * c->d, c->d, c->d, c->rows * c->d);
    c->side = randoms(c->n_out), c->side2 = randoms(c->rows);
    c->rough = c->variant == 1; /* variant 1: every third row varies so little that the 1e-5 matters */
    if (c->rough)
        FOR(i, c->n[0]) c->in[0][i] = f32((i / c->d % 3 == 0 ? 0.004 : 2.0) * (double)c->in[0][i] + 0.5);
}
static void norm_f(Case *c) {
    layernorm_forward(c->out, c->side, c->side2, c->in[0], c->in[1], c->in[2], c->rows, c->d);
}
static void norm_b(Case *c, float *const *d) {
    layernorm_backward(d[0], d[1], d[2], c->dout, c->side, c->side2, c->in[1], c->rows, c->d);
}
static void norm_n(const Case *c, double *out, double *const *in) {
    FOR(r, c->rows) naive_norm(out + r * c->d, in[0] + r * c->d, in[1], in[2], c->d);
}

static void relu_prepare(Case *c) {
    prepare_case(c, c->rows * c->d, 0, 0, c->rows * c->d);
    FOR(i, c->n[0]) c->in[0][i] += c->in[0][i] < 0 ? -0.1f : 0.1f; /* no kink within the reach of the differences */
}
static void relu_f(Case *c) { relu_forward(c->out, c->in[0], c->n_out); }
static void relu_b(Case *c, float *const *d) { relu_backward(d[0], c->dout, c->in[0], c->n_out); }
static void relu_n(const Case *c, double *out, double *const *in) {
    FOR(i, c->n_out) out[i] = in[0][i] > 0 ? in[0][i] : 0;
}

/* Steep rows around -1000, 0 and 1000, in the longer ones an entry of -infinity; variant 1: in place, and one entry of
 * each row, at another place in each, so far above the others that only its own subtraction keeps exp from overflow. */
static void softmax_prepare(Case *c) {
    prepare_case(c, c->rows * c->d, 0, 0, c->rows * c->d);
    FOR(i, c->n[0]) c->in[0][i] = f32((double)c->in[0][i] * 20 + ((double)(i / c->d % 3) - 1) * 1000);
    FOR(r, c->rows) c->in[0][r * c->d + r % c->d] += c->variant ? 300.0f : 0.0f;
    FOR(r, c->rows) if (c->d > 5) c->in[0][r * c->d + (r + 1) % 5] = -INFINITY;
}
static void softmax_f(Case *c) {
    memcpy(c->out, c->in[0], c->n_out * sizeof(float));
    softmax_forward(c->out, c->variant ? c->out : c->in[0], c->rows, c->d);
    FOR(r, c->rows) if (c->d > 5) EQUAL(c->out[r * c->d + (r + 1) % 5], 0);
}
static void softmax_n(const Case *c, double *out, double *const *in) {
    FOR(r, c->rows) naive_softmax(out + r * c->d, in[0] + r * c->d, c->d);
}

/* Variant 1: in place; 2: logits around 1000 and -1000. */
static void loss_prepare(Case *c) {
    prepare_case(c, c->rows * c->d, 0, 0, c->rows);
    c->index = indices(c->rows, c->d), c->side = randoms(c->n[0]), c->scale = f32(1.0 / (double)c->rows);
    c->rough = c->variant == 2;
    FOR(i, c->n[0]) c->in[0][i] = f32((double)c->in[0][i] * 2 + (c->variant == 2 ? (double)(i / c->d % 3) - 1 : 0) * 1000);
    FOR(r, c->rows) c->dout[r] = c->scale;
}
static void loss_f(Case *c) {
    memcpy(c->side, c->in[0], c->n[0] * sizeof(float));
    cross_entropy_forward(c->out, c->side, c->variant == 1 ? c->side : c->in[0], c->index, c->rows, c->d);
}
static void loss_b(Case *c, float *const *d) { cross_entropy_backward(d[0], c->side, c->index, c->scale, c->rows, c->d); }
static void loss_n(const Case *c, double *out, double *const *in) {
    FOR(r, c->rows) out[r] = naive_cross_entropy(in[0] + r * c->d, c->index[r], c->d);
}

/* Here the variants are shapes. Positions share out the rows, interleaved, so many to each; some rows stay unused. */
static const struct {
    size_t n_lists, seq_len, n_queries, d_head, d_value, per_position;
} SHAPES[] = {{1, 1, 1, 1, 1, 1}, {3, 5, 2, 4, 5, 2}, {2, 3, 3, 3, 1, 2}, {7, 5, 5, 6, 10, 3}, {13, 7, 1, 5, 67, 6},
              {3, 13, 4, 32, 33, 3}, {67, 3, 2, 10, 6, 5}};
static void attention_prepare(Case *c) {
    const size_t N = SHAPES[c->variant].n_lists, T = SHAPES[c->variant].seq_len, A = SHAPES[c->variant].n_queries;
    const size_t dh = SHAPES[c->variant].d_head, dv = SHAPES[c->variant].d_value, per = SHAPES[c->variant].per_position;
    const size_t q_rows = A * (per + 1), kv_rows = T * per;
    c->index = indices(N * T, per), c->index2 = indices(N * A, per + 1);
    FOR(r, N * T) c->index[r] = (uint32_t)(c->index[r] * T + r % T);
    FOR(i, N * A) c->index2[i] = (uint32_t)(c->index2[i] * A + i / N);
    prepare_case(c, q_rows * dh, kv_rows * dh, kv_rows * dv, N * A * dv);
    c->side = randoms(N * A * T), c->side2 = randoms(N * A * T);
    c->attention.n_lists = N, c->attention.seq_len = T, c->attention.n_queries = A, c->attention.d_key = dh;
    c->attention.d_value = dv, c->attention.q_rows = q_rows, c->attention.kv_rows = kv_rows;
    c->attention.key_row = c->index, c->attention.query_row = c->index2, c->attention.scale = 0.4375f;
    c->rows = N, c->d = T; /* (in messages) */
}
static void attention_f(Case *c) {
    const Attention *a = &c->attention;
    attention_pattern(a, c->side, c->in[0], c->in[1]);
    attention_values(a, c->out, c->side, c->in[2]);
    FOR(i, a->n_queries * a->n_lists)
        for (size_t s = a->seq_len - a->n_queries + i / a->n_lists + 1; s < a->seq_len; s++)
            EQUAL(c->side[i * a->seq_len + s], 0);
}
static void attention_b(Case *c, float *const *d) { /* scratch: one double for each entry of dq, dk and dv */
    const size_t size = c->n[0] + c->n[1] + c->n[2];
    double *scratch = doubles(NULL, size);
    EQUAL(attention_scratch(&c->attention), size);
    FOR(i, size) scratch[i] = 7;
    attention_backward(&c->attention, d[0], d[1], d[2], c->side2, scratch, c->dout, c->side, c->in[0], c->in[1], c->in[2]);
}
static void attention_n(const Case *c, double *out, double *const *in) {
    const Attention *a = &c->attention;
    FOR(i, a->n_queries * a->n_lists) {
        const size_t seen = a->seq_len - a->n_queries + i / a->n_lists + 1, dh = a->d_key, dv = a->d_value;
        const uint32_t *row = a->key_row + i % a->n_lists * a->seq_len;
        double p[16] = {0};
        FOR(s, seen) FOR(j, dh) p[s] += in[0][a->query_row[i] * dh + j] * in[1][row[s] * dh + j] * (double)a->scale;
        naive_softmax(p, p, seen);
        FOR(s, seen) FOR(j, dv) out[i * dv + j] += p[s] * in[2][row[s] * dv + j];
    }
}

static const Layer EMBED = {embed_prepare, embed_f, embed_b, embed_n, 1, 0, 0},
                   GATHER = {gather_prepare, gather_f, gather_b, gather_n, 2, 2, 0},
                   LINEAR = {linear_prepare, linear_f, linear_b, linear_n, 6, 7, 1},
                   NORM = {norm_prepare, norm_f, norm_b, norm_n, 2, 0, 0},
                   RELU = {relu_prepare, relu_f, relu_b, relu_n, 1, 0, 0},
                   SOFTMAX = {softmax_prepare, softmax_f, NULL, softmax_n, 2, 0, 0},
                   LOSS = {loss_prepare, loss_f, loss_b, loss_n, 3, 0, 0},
                   ATTENTION = {attention_prepare, attention_f, attention_b, attention_n, LENGTH(SHAPES), 0, 0};

/* The sum of dout * out, by the layer's own forward pass or by the naive one. */
static double functional(const Layer *layer, Case *c, double *const *in, double *out) {
    double sum = 0;
    FOR(i, c->n_out) out[i] = 0;
    if (in) layer->naive(c, out, in);
    else layer->forward(c);
    FOR(i, c->n_out) sum += (double)c->dout[i] * (in ? out[i] : (double)c->out[i]);
    return sum;
}

static void check_forward(const Layer *layer, Case *c) {
    double *expected = doubles(NULL, c->n_out), *in[3];
    FOR(k, 3) in[k] = doubles(c->in[k], c->n[k]);
    layer->naive(c, expected, in);
    layer->forward(c);
    compare(__LINE__, "out", c->out, NULL, expected, c->n_out, 1e-6, layer == &LOSS ? 0.1 : 0.0);
}

/* Gradients start from numbers other than zero, to which backward must add. */
static void check_backward(const Layer *layer, Case *c) {
    float *d[3], *before[3];
    double *in[3], *out = doubles(NULL, c->n_out);
    const int small = c->n[0] + c->n[1] + c->n[2] <= 250;
    FOR(k, 3) before[k] = randoms(c->n[k]), d[k] = copy(before[k], c->n[k]), in[k] = doubles(c->in[k], c->n[k]);
    layer->forward(c);
    layer->backward(c, d);
    FOR(k, 3) { /* along a random direction, against differences of the naive layer: no entry can be wrong unnoticed */
        const double h = 1e-6;
        double *direction = doubles(randoms(c->n[k]), c->n[k]), got = 0, size = 0, expected = 0;
        for (int sign = 1; sign >= -1; sign -= 2) {
            FOR(i, c->n[k]) in[k][i] = (double)c->in[k][i] + sign * h * direction[i];
            expected += sign * functional(layer, c, in, out) / (2 * h);
        }
        FOR(i, c->n[k]) {
            const double slope = (double)d[k][i] - (double)before[k][i];
            in[k][i] = (double)c->in[k][i];
            got += slope * direction[i];
            size += pow((fabs(slope) + fabs((double)before[k][i])) * direction[i], 2);
        }
        CHECK(fabs(got - expected) <= 1e-6 * (fabs(expected) + sqrt(size)), "d[%u] along a direction: expected %.9g, got %.9g",
              (unsigned)k, expected, got);
    }
    FOR(k, 3) if (layer->optional >> k & 1) { /* without this one, the others are as before */
        float *some[3];
        FOR(m, 3) some[m] = m == k ? NULL : copy(before[m], c->n[m]);
        layer->backward(c, some);
        FOR(m, 3) CHECK(m == k || !memcmp(some[m], d[m], c->n[m] * sizeof(float)), "d[%u] without d[%u] is different",
                        (unsigned)m, (unsigned)k);
    }
    FOR(k, 3) if (small && !c->rough) { /* every entry, against differences of forward itself */
        const double h = 0x1p-5, steps[] = {-2, -1, 1, 2}, factors[] = {1, -8, 8, -1};
        double *expected = doubles(NULL, c->n[k]);
        FOR(i, c->n[k]) {
            const float x = c->in[k][i];
            FOR(s, 4) {
                c->in[k][i] = f32((double)x + steps[s] * h);
                expected[i] += factors[s] * functional(layer, c, NULL, out) / (12 * h);
            }
            c->in[k][i] = x;
        }
        compare(__LINE__, k == 0 ? "d[0]" : k == 1 ? "d[1]" : "d[2]", d[k], before[k], expected, c->n[k], 3e-4, 0.05);
    }
}

static void check_layer(const Layer *layer, void (*check_case)(const Layer *, Case *)) {
    static const size_t rows[] = {1, 7, 13, 67}, sizes[] = {1, 5, 6, 10, 50, 64, 67, 130};
    const int sized = layer != &ATTENTION;
    FOR(i, sized ? LENGTH(rows) : 1) FOR(j, sized ? LENGTH(sizes) : 1) FOR(k, layer->two_sizes ? LENGTH(sizes) : 1)
    FOR(variant, layer->n_variants) {
        Case c = {0};
        c.rows = rows[i], c.d = sizes[j], c.d_out = sizes[k], c.variant = variant;
        layer->prepare(&c);
        at("%u rows of %u (to %u), variant %u", (unsigned)c.rows, (unsigned)c.d, (unsigned)c.d_out, (unsigned)variant);
        check_case(layer, &c);
        release();
    }
}

static void test_relu_at_zero(void) {
    const float x[] = {0.0f, -0.0f, 1e-30f}, dout[] = {1.0f, 1.0f, 1.0f};
    float *out = randoms(3), *dx = zeros(3);
    relu_forward(out, x, 3);
    relu_backward(dx, dout, x, 3);
    FOR(i, 3) EQUAL(out[i], x[i]);
    FOR(i, 3) EQUAL(dx[i], i == 2);
}

static void test_attention_scratch(void) {
    const Attention a = {7, 5, 3, 6, 10, 35, 29, NULL, NULL, 1};
    EQUAL(attention_scratch(&a), 35 * 6 + 29 * 6 + 29 * 10);
}

/* ---- Steps of training ------------------------------------------------------------------------------------------- */

static void test_adam_step(void) {
    const Adam adam = {0.125f, 0.9f, 0.99f, 0.02f, 0.3f};
    const uint32_t steps[] = {1, 2, 3, 4, 50, 1000, 100000};
    const size_t n = 67;
    const double beta1 = (double)adam.beta1, beta2 = (double)adam.beta2, decay = (double)adam.weight_decay;
    float *x = randoms(n), *m = zeros(n), *v = zeros(n);
    double *ex = doubles(x, n), *em = doubles(m, n), *ev = doubles(v, n);
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
        compare(__LINE__, "x", x, NULL, ex, n, 2e-6, 0.1);
    }
}

/* ---- Linear algebra ---------------------------------------------------------------------------------------------- */

/* Columns built as u_k s_k v_k^T sums with orthogonal u and v (discrete cosines): the s must come out, and the u. */
static void test_singular_values(void) {
    enum { N = 24, COLUMNS = 9 };
    const double s[COLUMNS] = {50, 20, 19.5, 4, 1, 0.5, 0.1, 0.01, 0};
    const double pi = 3.14159265358979323846;
    float *columns = zeros(COLUMNS * N), *values = zeros(COLUMNS);
    FOR(c, COLUMNS) FOR(x, N) {
        double sum = 0;
        FOR(k, COLUMNS)
            sum += s[k] * sqrt(2.0 / N) * cos(pi * ((double)x + 0.5) * (double)(k + 1) / N) *
                   sqrt(2.0 / (COLUMNS + 1)) * sin(pi * (double)(c + 1) * (double)(k + 1) / (COLUMNS + 1));
        columns[c * N + x] = f32(sum);
    }
    singular_values(values, columns, COLUMNS, N);
    FOR(k, COLUMNS) WITHIN(values[k], s[k] - 5e-5, s[k] + 5e-5);
    FOR(k, 5) {
        double dot = 0;
        FOR(x, N) dot += (double)columns[k * N + x] / s[k] * sqrt(2.0 / N) * cos(pi * ((double)x + 0.5) * (double)(k + 1) / N);
        WITHIN(fabs(dot), 1 - 1e-4, 1 + 1e-4);
    }
}

/* ---- The task ---------------------------------------------------------------------------------------------------- */

static uint32_t naive_median(const uint32_t *list, size_t n) {
    uint32_t sorted[32];
    FOR(i, n) {
        size_t j = i;
        for (; j > 0 && sorted[j - 1] > list[i]; j--) sorted[j] = sorted[j - 1];
        sorted[j] = list[i];
    }
    return sorted[n / 2];
}

static void test_median_of(void) {
    for (size_t n = 3; n <= 31; n += 2)
        FOR(round, 200) {
            uint32_t *list = indices(n, round % 2 ? 6 : 1000);
            const uint32_t expected = naive_median(list, n);
            EQUAL(median_of(list, n), expected);
            release();
        }
}

static void test_make_lists(void) {
    const struct {
        size_t n, max_num, row;
        uint32_t list[7];
    } known[] = {{1, 50, 0, {41, 46, 16, 47, 30, 12, 27}}, {5, 100, 0, {91, 46, 16, 97, 30, 12, 27}},
                 {5, 100, 4, {31, 62, 14, 73, 23, 85, 91}}};
    FOR(i, LENGTH(known)) {
        uint32_t *lists = indices(5 * 7, 9), *medians = indices(5, 9);
        Mt19937 mt;
        mt_seed(&mt, 23);
        make_lists(&mt, lists, medians, known[i].n, known[i].max_num, 7);
        FOR(j, 7) EQUAL(lists[7 * known[i].row + j], known[i].list[j]);
        FOR(j, known[i].n) EQUAL(medians[j], naive_median(lists + j * 7, 7));
    }
}

/* ---- The model --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    Config config; /* max_num, seq_len, d_model, d_head, n_heads, n_layers, d_mlp, normalization */
} MODELS[] = {{"1 layer 1 head", {7, 5, 10, 6, 1, 1, 0, 1}},
              {"2 layers 3 heads MLP", {7, 5, 10, 6, 3, 2, 11, 1}},
              {"3 layers no normalization", {7, 5, 10, 6, 1, 3, 0, 0}},
              {"2 heads MLP no normalization", {7, 5, 10, 6, 2, 1, 13, 0}},
              {"1 layer narrow heads", {7, 5, 10, 2, 2, 1, 0, 1}},
              {"3 layers narrow heads MLP", {12, 5, 10, 2, 2, 3, 4, 1}},
              {"2 layers narrow heads no normalization", {7, 7, 10, 2, 2, 2, 5, 0}},
              {"d_head above d_model", {7, 3, 5, 9, 2, 2, 0, 1}}};

/* A model with weights of every kind well away from 0, a workspace, lists (the first of one number only) and labels. */
typedef struct {
    Config config;
    Model model, gradient;
    Run run;
    size_t n;
    uint32_t *lists, *labels;
} World;

static void world_create(World *w, const Config *config, size_t n) {
    Error error = {{0}, 0};
    w->config = *config, w->n = n;
    CHECK(model_create(&w->model, config, &error) && model_create(&w->gradient, config, &error) &&
          run_create(&w->run, config, n + 3, 1, &error), "%s", error.text);
    FOR(i, w->model.n_tensors) {
        const Tensor *t = &w->model.tensors[i];
        const int is_scale = strcmp(t->name + strlen(t->name) - 2, ".w") == 0;
        FOR(j, t->size) t->data[j] = (is_scale ? 1.0f : 0.0f) + 0.75f * uniform();
    }
    w->lists = indices(n * config->seq_len, config->max_num), w->labels = indices(n, config->max_num);
    FOR(t, config->seq_len) w->lists[t] = w->lists[0];
}

static void world_free(World *w) {
    model_free(&w->model);
    model_free(&w->gradient);
    run_free(&w->run);
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
    double loss = 0, logits[D_MAX];
    FOR(i, w->n) {
        naive_logits(&w->model, p, w->lists + i * w->config.seq_len, logits);
        loss += naive_cross_entropy(logits, w->labels[i], w->config.max_num) / (double)w->n;
    }
    return loss;
}

/* The naive logits; the same bits alone and in company, and after the workspace has seen other lists. */
static void test_model_forward(void) {
    FOR(i, LENGTH(MODELS)) {
        const size_t n = 9, T = MODELS[i].config.seq_len, V = MODELS[i].config.max_num;
        World w;
        at("%s", MODELS[i].name);
        world_create(&w, &MODELS[i].config, n);
        double *p = doubles(w.model.params, w.model.n_params), *expected = doubles(NULL, n * V);
        FOR(list, n) naive_logits(&w.model, p, w.lists + list * T, expected + list * V);
        model_forward(&w.model, &w.run, indices((n + 3) * T, V), n + 3, NULL);
        model_forward(&w.model, &w.run, w.lists, n, NULL);
        compare(__LINE__, "logits", w.run.logits, NULL, expected, n * V, 1e-5, 0.0);
        const float *together = copy(w.run.logits, n * V);
        for (size_t group = 1; group < n; group += 3)
            for (size_t list = 0; list + group <= n; list += group) {
                model_forward(&w.model, &w.run, w.lists + list * T, group, NULL);
                CHECK(!memcmp(w.run.logits, together + list * V, group * V * sizeof(float)),
                      "logits of list %u in a group of %u differ from those of the whole batch", (unsigned)list, (unsigned)group);
            }
        world_free(&w);
    }
}

/* The loss, and every single parameter's gradient against differences of the naive model's loss. */
static void test_model_backward(void) {
    FOR(i, LENGTH(MODELS)) {
        const double h = 1e-5;
        World w;
        at("%s", MODELS[i].name);
        world_create(&w, &MODELS[i].config, 9);
        double *p = doubles(w.model.params, w.model.n_params), *expected = doubles(NULL, w.model.n_params), mean = 0;
        const uint32_t *other = indices((w.n + 3) * w.config.seq_len, w.config.max_num);
        FOR(pass, 2) { /* the first leaves its traces in the workspace and the gradient */
            const uint32_t *labels = pass ? w.labels : other;
            model_forward(&w.model, &w.run, pass ? w.lists : other, pass ? w.n : w.n + 3, NULL);
            const double loss = model_loss(&w.run, labels), naive = naive_loss(&w, p);
            if (pass) WITHIN(loss, naive * (1 - 1e-6), naive * (1 + 1e-6));
            model_backward(&w.model, &w.run, labels, &w.gradient);
        }
        FOR(j, w.model.n_params) {
            p[j] = (double)w.model.params[j] + h, expected[j] = naive_loss(&w, p);
            p[j] = (double)w.model.params[j] - h, expected[j] = (expected[j] - naive_loss(&w, p)) / (2 * h);
            p[j] = (double)w.model.params[j], mean += fabs(expected[j]) / (double)w.model.n_params;
        }
        FOR(j, w.model.n_tensors) {
            const Tensor *t = &w.model.tensors[j];
            const size_t first = (size_t)(t->data - w.model.params);
            double size = 0;
            FOR(k, t->size) size += fabs(expected[first + k]) / (double)t->size;
            CHECK(size > 1e-3 * mean || strstr(t->name, "b_K"), "%s: the gradient vanishes", t->name); /* b_K's must */
            compare(__LINE__, t->name, w.gradient.params + first, NULL, expected + first, t->size, 1e-5, 0.1 * mean);
        }
        world_free(&w);
    }
}

static void test_use_threads(void) { /* and that no result depends on it */
    const int threads[] = {1, 2, 3, 7};
    uint64_t expected = 0;
    World w;
    world_create(&w, &MODELS[1].config, 67);
    EQUAL(use_threads(-1), 1);
    FOR(i, LENGTH(threads)) {
        const int got = use_threads(threads[i]);
#ifdef _OPENMP
        EQUAL(got, threads[i]);
#else
        EQUAL(got, 1);
#endif
        model_forward(&w.model, &w.run, w.lists, w.n, NULL);
        model_loss(&w.run, w.labels);
        model_backward(&w.model, &w.run, w.labels, &w.gradient);
        const uint64_t hash = hash_floats(HASH_START, w.gradient.params, w.gradient.n_params);
        if (i == 0) expected = hash;
        CHECK(hash == expected, "another gradient with %d threads", threads[i]);
    }
    world_free(&w);
}

static void test_config_check(void) {
    const struct {
        size_t at, value; /* the at-th number of a Config */
        const char *message;
    } wrong[] = {{1, 6, "Length must be odd"}, {1, 0, "Length must be odd"}, {1, 1, "Length must be at least 3"},
                 {1, MAX_SEQ_LEN + 2, "seq_len"}, {0, 0, "max_num"}, {0, 1, "max_num"}, {2, 0, "d_model"},
                 {3, 0, "d_head"}, {4, 0, "n_heads"}, {5, 0, "n_layers"}, {7, 2, "normalization"},
                 {2, SIZE_MAX, "d_model"}, {6, SIZE_MAX, "d_mlp"}};
    FOR(i, LENGTH(wrong)) {
        Error error = {{0}, 0};
        Config c = config_default();
        size_t *const fields[] = {&c.max_num, &c.seq_len, &c.d_model, &c.d_head, &c.n_heads, &c.n_layers, &c.d_mlp, &c.normalization};
        CHECK(config_check(&c, &error), "the default is refused: %s", error.text);
        *fields[wrong[i].at] = wrong[i].value;
        CHECK(!config_check(&c, &error) && strstr(error.text, wrong[i].message), "expected '%s', got '%s'",
              wrong[i].message, error.text);
    }
}

/* Names, shapes and places of all tensors, and their initial values. */
static void test_model_init(void) {
    const char *const names = "embed.W_E 50x32 pos_embed.W_pos 7x32 blocks.0.ln1.w 32 blocks.0.ln1.b 32 "
        "blocks.0.attn.W_Q 2x32x16 blocks.0.attn.W_K 2x32x16 blocks.0.attn.W_V 2x32x16 blocks.0.attn.W_O 2x16x32 "
        "blocks.0.attn.b_Q 2x16 blocks.0.attn.b_K 2x16 blocks.0.attn.b_V 2x16 blocks.0.attn.b_O 32 "
        "blocks.0.ln2.w 32 blocks.0.ln2.b 32 blocks.0.mlp.W_in 32x40 blocks.0.mlp.b_in 40 blocks.0.mlp.W_out 40x32 "
        "blocks.0.mlp.b_out 32 ln_final.w 32 ln_final.b 32 unembed.W_U 32x50 unembed.b_U 50 ";
    const Config config = {50, 7, 32, 16, 2, 1, 40, 1};
    char text[1000] = "";
    size_t n = 0;
    Error error = {{0}, 0};
    Model model;
    Mt19937 mt;
    mt_seed(&mt, 3);
    if (!CHECK(model_create(&model, &config, &error), "%s", error.text)) return;
    model_init(&model, &mt);
    FOR(i, model.n_tensors) {
        const Tensor *t = &model.tensors[i];
        const char *last = strrchr(t->name, '.') + 1;
        double mean = 0, square = 0;
        FOR(j, t->size) mean += (double)t->data[j] / (double)t->size, square += pow((double)t->data[j], 2) / (double)t->size;
        CHECK(last[0] == 'W' ? fabs(mean) < 0.03 && fabs(sqrt(32 * square) - 0.8) < 0.08 : mean == (last[0] == 'w') && square == mean,
              "%s: mean %g, mean square %g", t->name, mean, square);
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s ", t->name);
        FOR(k, t->n_dims) snprintf(text + strlen(text) - (k > 0), 20, "%s%u ", k ? "x" : "", (unsigned)t->shape[k]);
        CHECK(t->data == model.params + n, "%s is not where it should be", t->name);
        n += t->size;
    }
    EQUAL(n, model.n_params);
    CHECK(!strcmp(text, names), "expected the tensors %s, got %s", names, text);
    model_free(&model);
    model_free(&model);
}

static void test_out_of_memory(void) {
    const Config huge = {65536, 255, 65536, 65536, 4096, 256, 1048576, 1}, small = config_default();
    const Model no_model = {{0, 0, 0, 0, 0, 0, 0, 0}, 0, 0, NULL, {NULL, NULL, NULL, NULL, NULL, NULL, NULL}, NULL, 0, {{{0}, {0}}}};
    Error errors[2] = {{{0}, 0}, {{0}, 0}};
    Model model;
    Run run;
    CHECK(!model_create(&model, &huge, &errors[0]), "a model of 65536 wide residual streams was made");
    CHECK(!memcmp(&model, &no_model, sizeof model), "the model that failed is not all zero bytes");
    CHECK(!run_create(&run, &small, SIZE_MAX / 16, 1, &errors[1]), "a workspace for SIZE_MAX / 16 lists was made");
    CHECK(run.memory == NULL && run.layers == NULL, "the workspace that failed is not all zero");
    FOR(i, 2) {
        const char *digit = strpbrk(errors[i].text, "123456789");
        CHECK(digit && strtod(digit, NULL) > 1e3 && strstr(digit, "MiB"), "expected an amount, got '%s'", errors[i].text);
    }
    model_free(&model);
    run_free(&run);
}

/* ---- Hooks, evaluation ------------------------------------------------------------------------------------------- */

typedef struct {
    int calls[4][4][4]; /* of each site, layer and head */
    int wrong_shape;
    size_t zero; /* the site whose values are set to 0 */
    const World *world;
} Seen;

static void see(void *context, HookSite site, size_t layer, size_t head, float *values, size_t rows, size_t width) {
    Seen *seen = (Seen *)context;
    const World *w = seen->world;
    const Config *c = &w->config;
    const size_t queries = w->n * (layer + 1 < c->n_layers ? c->seq_len : 1);
    const int narrow = site == HOOK_HEAD && !w->run.layers[layer].folded;
    seen->calls[site][layer][head]++;
    if (width != (site == HOOK_PATTERN ? c->seq_len : narrow ? c->d_head : c->d_model)) seen->wrong_shape = 1;
    if (rows != (site != HOOK_RESIDUAL ? queries : layer < c->n_layers ? w->run.layers[layer].n_rows : w->n)) seen->wrong_shape = 1;
    if (site == seen->zero) memset(values, 0, rows * width * sizeof *values);
}

/* Zeroing a site everywhere must do what zeroing the weights that feed it does. */
static void test_hooks(void) {
    const char *const feed[] = {"W_E W_pos W_O b_O W_out b_out ", "W_O ", "W_O ", "W_out b_out "};
    FOR(i, LENGTH(MODELS)) {
        const Config *c = &MODELS[i].config;
        const size_t size = 9 * c->max_num * sizeof(float);
        World w;
        at("%s", MODELS[i].name);
        world_create(&w, c, 9);
        const float *params = copy(w.model.params, w.model.n_params);
        model_forward(&w.model, &w.run, w.lists, w.n, NULL);
        const float *plain = copy(w.run.logits, w.n * c->max_num);
        FOR(site, 5) { /* the last zeroes nothing */
            Seen seen = {{{{0}}}, 0, site, &w};
            const Hook hook = {see, &seen};
            model_forward(&w.model, &w.run, w.lists, w.n, &hook);
            CHECK(!seen.wrong_shape, "a site has the wrong number of rows or columns");
            FOR(l, 4) FOR(head, 4) {
                const int inside = l < c->n_layers;
                EQUAL(seen.calls[HOOK_RESIDUAL][l][head], head == 0 && l <= c->n_layers);
                EQUAL(seen.calls[HOOK_PATTERN][l][head], inside && head < c->n_heads);
                EQUAL(seen.calls[HOOK_HEAD][l][head], inside && head < c->n_heads);
                EQUAL(seen.calls[HOOK_MLP][l][head], inside && head == 0 && c->d_mlp);
            }
            const float *hooked = copy(w.run.logits, w.n * c->max_num);
            CHECK((memcmp(hooked, plain, size) == 0) == (site == 4 || (site == HOOK_MLP && !c->d_mlp)),
                  "zeroing site %u changes nothing, or looking changes something", (unsigned)site);
            FOR(j, site < 4 ? w.model.n_tensors : 0) {
                char last[16];
                snprintf(last, sizeof last, "%s ", strrchr(w.model.tensors[j].name, '.') + 1);
                if (strstr(feed[site], last)) memset(w.model.tensors[j].data, 0, w.model.tensors[j].size * sizeof(float));
            }
            model_forward(&w.model, &w.run, w.lists, w.n, NULL);
            /* later layers take it for granted that a pattern's rows add up to 1 */
            CHECK((site == HOOK_PATTERN && c->n_layers > 1) || !memcmp(hooked, w.run.logits, size),
                  "zeroing site %u is not zeroing its weights", (unsigned)site);
            memcpy(w.model.params, params, w.model.n_params * sizeof(float));
        }
        world_free(&w);
    }
}

static void test_argmax(void) {
    const float x[] = {-3, -1, -2, -1, 4, 4};
    const size_t expected[] = {0, 1, 1, 1, 4, 4};
    FOR(i, 6) EQUAL(argmax(x, i + 1), expected[i]);
}

static void test_evaluate(void) {
    const size_t n = 67, T = MODELS[1].config.seq_len, V = MODELS[1].config.max_num;
    size_t off[5] = {0}, alerts = 0;
    double loss = 0, distance = 0;
    World w;
    world_create(&w, &MODELS[1].config, 9);
    const uint32_t *lists = indices(n * T, V), *labels = indices(n, V);
    Evaluation e = {0};
    evaluate(&w.model, &w.run, lists, labels, n, NULL, &e);
    FOR(i, n) {
        model_forward(&w.model, &w.run, lists + i * T, 1, NULL);
        loss += model_loss(&w.run, labels + i) / (double)n;
        alerts += w.run.loss[0] > 0.7f;
        const int wrong_by = abs((int)argmax(w.run.logits, V) - (int)labels[i]);
        off[wrong_by < 4 ? wrong_by : 4]++, distance += wrong_by;
    }
    distance /= (double)(n - off[0]);
    EQUAL(e.lists, n);
    EQUAL(e.right, off[0]);
    EQUAL(e.alerts, alerts);
    EQUAL(e.accuracy, (double)off[0] / (double)n);
    FOR(i, 4) EQUAL(e.by_distance[i], off[i + 1]);
    WITHIN(e.loss, loss * (1 - 1e-6), loss * (1 + 1e-6));
    WITHIN(e.mean_distance, distance * (1 - 1e-6), distance * (1 + 1e-6));
    world_free(&w);
}

/* ---- Training ---------------------------------------------------------------------------------------------------- */

static const Config SMALL = {10, 5, 16, 16, 1, 1, 0, 1};

static Recipe small_recipe(size_t trainset_size, size_t batch_size, size_t steps) {
    Recipe r = recipe_original();
    r.trainset_size = trainset_size, r.valset_size = 10, r.batch_size = batch_size, r.steps = steps, r.seed = 5;
    r.adam.lr = 0.01f;
    return r;
}

static void trainer_start(Trainer *t, const Recipe *recipe, const Model *from) {
    Error error = {{0}, 0};
    CHECK(trainer_create(t, recipe, &SMALL, from, &error), "%s", error.text);
}

/* Runs a training to its end; returns the hash of its weights. */
static uint64_t train(const Recipe *recipe, double *first_loss, double *last_loss) {
    Trainer t;
    trainer_start(&t, recipe, NULL);
    FOR(i, recipe->steps) {
        CHECK(trainer_step(&t), "step %u failed", (unsigned)i + 1);
        if (i == 0) *first_loss = t.loss;
    }
    *last_loss = t.loss;
    const uint64_t hash = hash_floats(HASH_START, t.model.params, t.model.n_params);
    trainer_free(&t);
    return hash;
}

static void test_schedule(void) {
    FOR(cosine, 2) {
        Recipe r = small_recipe(0, 3, 40);
        Trainer t;
        r.warmup = 5, r.cosine = cosine;
        trainer_start(&t, &r, NULL);
        FOR(i, 40) {
            const double half = 0.5 + 0.5 * cos(3.14159265358979323846 * ((double)i - 5) / 35);
            const double expected = 0.01 * (i < 5 ? (double)(i + 1) / 5 : cosine ? half : 1);
            trainer_step(&t);
            at("step %u", (unsigned)i);
            WITHIN(t.lr, expected - 1e-9, expected + 1e-9);
        }
        trainer_free(&t);
    }
}

/* An epoch takes every list once, its last batch is what is left; the next epoch in another order, if at all. */
static void test_batches(void) {
    const size_t sizes[] = {32, 32, 32, 4}, row = 5 * sizeof(uint32_t);
    Recipe r = recipe_original();
    Trainer t;
    r.valset_size = 0;
    trainer_start(&t, &r, NULL);
    EQUAL(t.total_steps, 9400);
    t.step = 46;
    trainer_step(&t);
    EQUAL(t.run.n_lists, 896);
    trainer_free(&t);
    FOR(shuffle, 2) {
        uint64_t sums[3] = {0}, firsts[2] = {0};
        r = small_recipe(100, 32, 8), r.no_shuffle = !shuffle;
        trainer_start(&t, &r, NULL);
        FOR(i, 100) sums[2] += hash_bytes(HASH_START, t.lists + 5 * i, row);
        FOR(validation, 2) { /* the lists are those of the seed, the validation lists those of the next one */
            uint32_t *lists = indices(500, 10), *medians = indices(100, 10);
            Mt19937 mt;
            mt_seed(&mt, (uint32_t)(5 + validation));
            make_lists(&mt, lists, medians, validation ? 10 : 100, 10, 5);
            CHECK(!memcmp(lists, validation ? t.val_lists : t.lists, (validation ? 10 : 100) * row), "not the lists of seed 5, 6");
        }
        FOR(i, 8) {
            const size_t size = sizes[i % 4];
            trainer_step(&t);
            CHECK(i % 4 == 3 || t.run.n_lists == size, "batch %u has %u lists", (unsigned)i, (unsigned)t.run.n_lists);
            FOR(j, size) sums[i / 4] += hash_bytes(HASH_START, t.batch + 5 * j, row);
            FOR(j, size) EQUAL(t.batch_medians[j], naive_median(t.batch + 5 * j, 5));
            if (i % 4 == 0) firsts[i / 4] = hash_bytes(HASH_START, t.batch, 32 * row);
        }
        CHECK(sums[0] == sums[2] && sums[1] == sums[2], "an epoch does not consist of all lists");
        CHECK((firsts[0] != firsts[1]) == (shuffle == 1), "shuffle %u: wrong order in the second epoch", (unsigned)shuffle);
        trainer_free(&t);
    }
}

/* A step is forward, loss, backward and Adam; one that fails changes nothing. */
static void test_trainer_step(void) {
    Recipe r = small_recipe(0, 13, 5);
    World w;
    Trainer t;
    Error error = {{0}, 0};
    world_create(&w, &SMALL, 13);
    r.adam.weight_decay = 0.1f;
    trainer_start(&t, &r, &w.model);
    const size_t n = w.model.n_params, bytes = n * sizeof(float);
    float *m = zeros(n), *v = zeros(n);
    FOR(i, 5) {
        CHECK(trainer_step(&t), "step %u failed", (unsigned)i + 1);
        model_forward(&w.model, &w.run, t.batch, 13, NULL);
        EQUAL(model_loss(&w.run, t.batch_medians), t.loss);
        model_backward(&w.model, &w.run, t.batch_medians, &w.gradient);
        adam_step(&r.adam, (uint32_t)i + 1, w.model.params, m, v, w.gradient.params, n);
        CHECK(!memcmp(t.model.params, w.model.params, bytes), "step %u: the weights differ", (unsigned)i + 1);
    }
    t.model.weights.b_U[3] = NAN;
    memcpy(w.model.params, t.model.params, bytes);
    CHECK(!trainer_step(&t), "a step without a finite loss passes");
    CHECK(!memcmp(t.model.params, w.model.params, bytes), "a step that failed changed the weights");
    trainer_free(&t);
    world_free(&w);
    r.steps = 0;
    CHECK(!trainer_create(&t, &r, &SMALL, NULL, &error) && strstr(error.text, "--steps"), "fresh lists without --steps");
}

/* It learns; the same bits again, and with any number of threads. */
static void test_training(void) {
    const int threads[] = {1, 1, 3};
    Recipe r = small_recipe(0, 64, 300);
    uint64_t hashes[3];
    double first, last;
    r.warmup = 20, r.cosine = 1;
    train(&r, &first, &last);
    WITHIN(first, 2.0, 4.0);
    WITHIN(last, 0.0, 0.9);
    FOR(i, 3) {
        r = small_recipe(100, 32, 8);
        use_threads(threads[i]);
        hashes[i] = train(&r, &first, &last);
    }
    CHECK(hashes[0] == hashes[1], "a second run gives other weights");
    CHECK(hashes[0] == hashes[2], "3 threads give other weights");
}

/* ---- Looking inside ---------------------------------------------------------------------------------------------- */

/* Layer 0's effective QK table, of each key position, gives the attention of the forward pass; its OV table what the head
 * adds to the logits. */
static void test_circuits(void) {
    FOR(i, LENGTH(MODELS)) {
        const Config *c = &MODELS[i].config;
        const size_t V = c->max_num, T = c->seq_len;
        World w;
        at("%s", MODELS[i].name);
        world_create(&w, c, 9);
        model_forward(&w.model, &w.run, w.lists, w.n, NULL);
        float *table = zeros(V * V), *scratch = zeros(circuit_scratch(c));
        FOR(head, c->n_heads) {
            double *score = doubles(NULL, w.n * T);
            FOR(p, T) {
                const Circuit which = {CIRCUIT_QK, 0, 0, head, NO_POSITION, p};
                circuit_table(&w.model, &which, table, scratch);
                FOR(l, w.n) score[l * T + p] = (double)table[w.lists[l * T + T - 1] * V + w.lists[l * T + p]];
            }
            FOR(l, w.n) {
                const LayerRun *layer = &w.run.layers[0];
                const float *pattern = layer->pattern + (head * layer->n_out + layer->n_out - w.n + l) * T;
                naive_softmax(score + l * T, score + l * T, T);
                FOR(p, T) WITHIN(pattern[p], score[l * T + p] - 1e-5, score[l * T + p] + 1e-5);
            }
        }
        const Circuit raw = {CIRCUIT_OV, 1, 0, 0, NO_POSITION, 2}; /* (W_E[s] + W_pos[2]) W_V W_O W_U, for s = 1 */
        const size_t d = c->d_model, dh = c->d_head;
        const Weights *weights = &w.model.weights;
        circuit_table(&w.model, &raw, table, scratch);
        FOR(v, V) {
            double sum = 0;
            FOR(a, d) FOR(b, dh) FOR(e, d)
                sum += ((double)weights->W_E[d + a] + (double)weights->W_pos[2 * d + a]) * (double)weights->layers[0].W_V[a * dh + b] *
                       (double)weights->layers[0].W_O[b * d + e] * (double)weights->W_U[e * V + v];
            WITHIN(table[V + v], sum - 1e-4, sum + 1e-4);
        }
        world_free(&w);
    }
}

/* The terms of the direct attribution add up to the logits. */
static void test_attribution(void) {
    FOR(i, LENGTH(MODELS)) {
        const Config *c = &MODELS[i].config;
        World w;
        at("%s", MODELS[i].name);
        world_create(&w, c, 9);
        Term terms[64];
        float *scratch = zeros(c->d_model + c->d_head);
        FOR(l, w.n) {
            Attribution a = {{l % c->max_num, 0}, 0, terms, 0, {0, 0}};
            model_forward(&w.model, &w.run, w.lists + l * c->seq_len, 1, NULL);
            attribute(&w.model, &w.run, &a, scratch);
            CHECK(a.n_terms <= attribution_terms(c) && attribution_terms(c) <= LENGTH(terms), "too many terms");
            FOR(v, 2) {
                const double logit = (double)w.run.logits[a.numbers[v]];
                WITHIN(a.sum[v], logit - 1e-4, logit + 1e-4);
            }
        }
        world_free(&w);
    }
}

/* Clean values put into a corrupted run at every place give the clean logits, bit for bit; those of the same run change
 * nothing; the mean over equal lists is the value itself. */
static void test_interventions(void) {
    FOR(i, LENGTH(MODELS)) {
        const Config *c = &MODELS[i].config;
        const size_t T = c->seq_len, bytes = c->max_num * sizeof(float);
        Error error = {{0}, 0};
        World w;
        Run source;
        at("%s", MODELS[i].name);
        world_create(&w, c, 9);
        CHECK(run_create(&source, c, 9, RUN_FORWARD, &error), "%s", error.text);
        model_forward(&w.model, &source, w.lists, 1, NULL);
        const float *clean = copy(source.logits, c->max_num);
        FOR(kind, 2) FOR(site, 4) {
            const ReplaceKind kinds[2] = {REPLACE_SAME, REPLACE_MEAN};
            Target all[16];
            size_t n = 0;
            FOR(l, c->n_layers) all[n].site = (HookSite)site, all[n].layer = l, all[n].head = ALL_HEADS, all[n++].position = ALL_POSITIONS;
            if (site == HOOK_MLP && !c->d_mlp) continue;
            run_intervention(&w.model, &w.run, &source, w.lists, kinds[kind], all, n);
            CHECK(!memcmp(w.run.logits, clean, bytes), "site %u: a run's own values change it", (unsigned)site);
            run_intervention(&w.model, &w.run, &source, w.lists + T, kinds[kind], all, n);
            CHECK(site != HOOK_RESIDUAL || !memcmp(w.run.logits, clean, bytes), "patching everything does not restore the logits");
        }
        const Target last = {HOOK_HEAD, c->n_layers - 1, ALL_HEADS, T - 1}, other = {HOOK_HEAD, c->n_layers - 1, ALL_HEADS, 0};
        model_forward(&w.model, &source, w.lists, w.n, NULL);
        const float *plain = copy(source.logits, w.n * c->max_num);
        run_intervention(&w.model, &w.run, &source, w.lists, REPLACE_ZERO, &other, 1);
        CHECK(!memcmp(w.run.logits, plain, w.n * bytes), "the last layer's output at position 0 matters");
        run_intervention(&w.model, &w.run, &source, w.lists, REPLACE_RESAMPLE, &last, 1);
        CHECK(memcmp(w.run.logits, plain, w.n * bytes) != 0, "resampling changes nothing");
        run_free(&source);
        world_free(&w);
    }
}

/* Singular values, votes and the rest of the explanation on a network that is perfect by construction cannot be had in a
 * few lines; what is tested is that its counts fit together and agree with evaluate. */
static void test_explain(void) {
    FOR(i, 2) {
        const Config *c = &MODELS[i].config;
        World w;
        Explanation e;
        Evaluation expected = {0};
        Error error = {{0}, 0};
        at("%s", MODELS[i].name);
        world_create(&w, c, 9);
        evaluate(&w.model, &w.run, w.lists, w.labels, w.n, NULL, &expected);
        CHECK(explain(&w.model, w.lists, w.labels, w.n, &e, &error), "%s", error.text);
        EQUAL(e.ladder[0].right, expected.right);
        WITHIN(e.ladder[0].loss, expected.loss * (1 - 1e-6), expected.loss * (1 + 1e-6));
        EQUAL(e.ladder[0].like_network, w.n);
        EQUAL(e.ladder[4].like_network, expected.right);
        size_t lists = 0, right = 0;
        FOR(v, c->max_num) lists += e.by_median[v].lists, right += e.by_median[v].right;
        EQUAL(lists, w.n);
        EQUAL(right, expected.right);
        FOR(head, e.attention.heads) {
            const Moments *last = e.attention.query + (head * c->seq_len + c->seq_len - 1) * c->seq_len;
            double sum = 0;
            FOR(t, c->seq_len) sum += mean_of(&last[t]);
            WITHIN(sum, 1 - 1e-5, 1 + 1e-5);
        }
        explanation_free(&e);
        world_free(&w);
    }
}

/* ---- Files --------------------------------------------------------------------------------------------------------- */

#define FILE_NAME "median-test.tmp"

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
    } cases[] = {{{6, 5, 16, 8, 1, 1, 0, 1}, 0, 0},     {{6, 5, 16, 8, 3, 1, 0, 1}, 300, 0},
                 {{6, 5, 16, 8, 1, 1, 0, 0}, 40, 0},    {{10, 5, 16, 16, 1, 1, 0, 1}, 300, 0},
                 {{10, 5, 12, 4, 3, 1, 0, 1}, 40, 0},   {{4, 7, 16, 8, 1, 1, 0, 1}, 20, 0},
                 {{4, 7, 16, 8, 3, 1, 0, 0}, 0, 0},     {{6, 5, 16, 8, 1, 1, 0, 1}, 40, 1e4f},
                 {{6, 5, 8, 8, 2, 1, 0, 0}, 40, 1e5f},  {{6, 5, 8, 8, 1, 2, 0, 1}, 0, 0},
                 {{6, 5, 8, 8, 1, 1, 4, 1}, 0, 0},      {{65536, 5, 1, 1, 1, 1, 0, 1}, 0, 0}};
    FOR(k, LENGTH(cases)) FOR(full, 2) {
        const size_t V = cases[k].config.max_num;
        Recipe r = small_recipe(0, 64, 300);
        Trainer t;
        Certificate c;
        Error error = {{0}, 0};
        const CertifyOptions options = {0, full ? 1u << 26 : 20, NULL, NULL};
        at("case %u, %s", (unsigned)k, full ? "all" : "little effort");
        if (!CHECK(trainer_create(&t, &r, &cases[k].config, NULL, &error), "%s", error.text)) return;
        FOR(i, cases[k].steps) trainer_step(&t);
        FOR(v, V) t.model.weights.b_U[v] += cases[k].far;
        const int done = certify(&t.model, &options, &c, &error);
        CHECK(done == (k < 9), "%s", done ? "certified what it cannot" : error.text);
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

/* A saved model comes back with every bit, under the same names; damage anywhere in the header is noticed. */

/* A saved model comes back with every bit, under the same names; damage anywhere in the header is noticed. */
static void test_checkpoints(void) {
    FOR(i, LENGTH(MODELS)) {
        World w;
        Model back;
        Error error = {{0}, 0};
        Recipe r = recipe_default();
        at("%s", MODELS[i].name);
        world_create(&w, &MODELS[i].config, 9);
        model_describe(&w.model, &r);
        CHECK(model_save(&w.model, FILE_NAME, &error), "%s", error.text);
        CHECK(model_load(&back, FILE_NAME, &error), "%s", error.text);
        EQUAL(back.n_params, w.model.n_params);
        CHECK(!memcmp(back.params, w.model.params, w.model.n_params * sizeof(float)), "other parameters");
        CHECK(!memcmp(&back.config, &w.model.config, sizeof back.config), "another configuration");
        EQUAL(back.n_notes, w.model.n_notes);
        FOR(j, back.n_tensors) CHECK(!strcmp(back.tensors[j].name, w.model.tensors[j].name), "other names");
        model_free(&back);
        Text file = {0}, damaged = {0};
        checkpoint_text(&file, &w.model, NULL, 0);
        const size_t header = (unsigned char)file.data[0] + 256u * (unsigned char)file.data[1];
        for (size_t cut = 0; cut < file.size; cut += cut < 20 ? 1 : 997) { /* cut short */
            damaged.size = 0;
            text_bytes(&damaged, file.data, cut);
            CHECK(write_file(FILE_NAME, &damaged, &error), "%s", error.text);
            CHECK(!model_load(&back, FILE_NAME, &error) && error.text[0], "a file of %u bytes is taken", (unsigned)cut);
        }
        for (size_t place = 0; place < 8 + header; place += place < 200 ? 7 : 53) { /* one byte wrong */
            damaged.size = 0;
            text_bytes(&damaged, file.data, file.size);
            damaged.data[place] = (char)(damaged.data[place] ^ 1);
            CHECK(write_file(FILE_NAME, &damaged, &error), "%s", error.text);
            if (model_load(&back, FILE_NAME, &error)) model_free(&back); /* a note may say anything */
            else CHECK(error.text[0], "no reason given");
        }
        text_free(&file), text_free(&damaged);
        world_free(&w);
    }
    remove(FILE_NAME);
}

/* Interrupted after any step and resumed, a training ends with the same bits. */
static void test_resume(void) {
    FOR(fresh, 2) {
        Recipe r = small_recipe(fresh ? 0 : 70, 16, 13);
        Trainer t;
        Error error = {{0}, 0};
        r.keep_best = !fresh, r.balanced = 0.5f, r.cosine = fresh;
        trainer_start(&t, &r, NULL);
        while (t.step < t.total_steps) trainer_step(&t);
        const Model *result = trainer_result(&t);
        const uint64_t expected = hash_floats(HASH_START, result->params, result->n_params);
        trainer_free(&t);
        trainer_start(&t, &r, NULL);
        while (t.step < t.total_steps) {
            CHECK(trainer_save(&t, FILE_NAME, &error), "%s", error.text);
            trainer_free(&t);
            CHECK(trainer_resume(&t, FILE_NAME, &error), "%s", error.text);
            if (failure[0]) return;
            trainer_step(&t);
        }
        result = trainer_result(&t);
        CHECK(hash_floats(HASH_START, result->params, result->n_params) == expected, "resumed %s lists: other weights", fresh ? "fresh" : "fixed");
        trainer_free(&t);
    }
    remove(FILE_NAME);
}

/* ---- The table --------------------------------------------------------------------------------------------------- */

int run_tests(size_t count, const char *const *names) {
    static const struct {
        const char *name;
        void (*run)(void);
        const Layer *layer;
        void (*check_case)(const Layer *, Case *);
    } tests[] = {
        {"f32", test_f32, 0, 0}, {"ieee_setup", test_ieee_setup, 0, 0}, {"mt_seed", test_mt_seed, 0, 0},
        {"mt_next", test_mt_next, 0, 0}, {"mt_normal", test_mt_normal, 0, 0}, {"exp_f32", test_exp_f32, 0, 0},
        {"log_f32", test_log_f32, 0, 0}, {"hash_bytes", test_hash_bytes, 0, 0}, {"hash_floats", test_hash_floats, 0, 0},
        {"embed_forward", 0, &EMBED, check_forward}, {"embed_backward", 0, &EMBED, check_backward},
        {"gather_forward", 0, &GATHER, check_forward}, {"gather_backward", 0, &GATHER, check_backward},
        {"linear_forward", 0, &LINEAR, check_forward}, {"linear_backward", 0, &LINEAR, check_backward},
        {"layernorm_forward", 0, &NORM, check_forward}, {"layernorm_backward", 0, &NORM, check_backward},
        {"relu_forward", 0, &RELU, check_forward}, {"relu_backward", 0, &RELU, check_backward},
        {"relu_at_zero", test_relu_at_zero, 0, 0}, {"softmax_forward", 0, &SOFTMAX, check_forward},
        {"cross_entropy_forward", 0, &LOSS, check_forward}, {"cross_entropy_backward", 0, &LOSS, check_backward},
        {"attention_pattern", 0, &ATTENTION, check_forward}, {"attention_values", 0, &ATTENTION, check_forward},
        {"attention_backward", 0, &ATTENTION, check_backward}, {"attention_scratch", test_attention_scratch, 0, 0},
        {"adam_step", test_adam_step, 0, 0},
        {"singular_values", test_singular_values, 0, 0}, {"use_threads", test_use_threads, 0, 0}, {"median_of", test_median_of, 0, 0},
        {"make_lists", test_make_lists, 0, 0}, {"config_check", test_config_check, 0, 0},
        {"model_init", test_model_init, 0, 0}, {"out_of_memory", test_out_of_memory, 0, 0},
        {"model_forward", test_model_forward, 0, 0}, {"model_backward", test_model_backward, 0, 0},
        {"hooks", test_hooks, 0, 0}, {"argmax", test_argmax, 0, 0}, {"evaluate", test_evaluate, 0, 0},
        {"schedule", test_schedule, 0, 0}, {"batches", test_batches, 0, 0},
        {"trainer_step", test_trainer_step, 0, 0}, {"training", test_training, 0, 0},
        {"circuits", test_circuits, 0, 0}, {"attribution", test_attribution, 0, 0},
        {"interventions", test_interventions, 0, 0}, {"explain", test_explain, 0, 0}, {"certify", test_certify, 0, 0},
        {"checkpoints", test_checkpoints, 0, 0}, {"resume", test_resume, 0, 0}};
    int passed = 0, failed = 0;
    FOR(i, LENGTH(tests)) {
        int chosen = count == 0;
        for (size_t j = 0; j < count; j++) chosen |= strstr(tests[i].name, names[j]) != NULL;
        if (!chosen) continue;
        failure[0] = where[0] = 0;
        noise = 1;
        if (tests[i].run) tests[i].run();
        else check_layer(tests[i].layer, tests[i].check_case);
        release();
        if (failure[0]) printf("FAIL %s: %s\n", tests[i].name, failure), failed++;
        else printf("ok   %s\n", tests[i].name), passed++;
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
