/* test_median.c - the tests, in two suites.
 *
 *   math   what any sound implementation passes. Everything is computed a second time, from the
 *          formula in its header, with plain loops in double; a gradient is compared with
 *          differences of that. The tolerance has room for any order of summation and any way to
 *          write a formula, but not for a wrong sign or a lost term.
 *   bits   the very numbers of this implementation: hashes of all that the first suite's tests
 *          compute, and of what the commands print.
 *
 * The test of a function of tensor.h has the function's name. */
#include "median.h"

#include <inttypes.h>
#include <locale.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(place, size)
#define ASAN_UNPOISON_MEMORY_REGION(place, size)
#endif

/* ---- The harness ----------------------------------------------------------------------------- */

#define FOR(i, n) for (size_t i = 0; i < (n); i++)
#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define EACH(i, array) FOR(i, LENGTH(array))

#define TEST(name) static void test_##name(void)

static enum { MATH, BITS } suite;
static char title[200];   /* the running test */
static char where[150];   /* the case that it is at */
static char failure[600]; /* the first thing that went wrong */
static uint64_t bits;     /* the hash of what it has computed */
static size_t number;     /* of the case; variants take turns by it */
static Error error;

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
    snprintf(failure, sizeof failure, "%s%s%s (test_median.c:%d)", where, where[0] ? ": " : "",
             text, line);
    return 0;
}

static void check_near(int line, const char *what, double got, double expected, double tolerance) {
    const int ok = got == expected || fabs(got - expected) <= tolerance;
    check(ok, line, "%s: expected %.10g, got %.10g", what, expected, got);
}

static void add_bits(const float *x, size_t n) { bits = hash_floats(bits, x, n); }

/* How far a number may be off, as a part of its size and of the mean size of its fellows. Rounding
 * to float is a hundredth of it, so that there is room for other ways to compute the same. */
#define TOLERANCE 1e-5

static void check_all(int line, const float *got, const double *expected, size_t n) {
    double mean = 0;
    FOR(i, n) mean += fabs(expected[i]) / (double)n;
    FOR(i, n) {
        char what[30];
        snprintf(what, sizeof what, "number %zu", i);
        check_near(line, what, got[i], expected[i], TOLERANCE * (fabs(expected[i]) + mean));
    }
    add_bits(got, n);
}

#define CHECK(ok, ...) check(ok, __LINE__, __VA_ARGS__)
#define DONE(call) check(call, __LINE__, "%s", error.text)
#define NEAR(got, expected, tolerance) \
    check_near(__LINE__, #got, (double)(got), (double)(expected), tolerance)
#define EQUAL(got, expected) NEAR(got, expected, 0.0)
#define ALL_NEAR(got, expected, n) check_all(__LINE__, got, expected, n)

/* A fence is a stretch of words that belongs to no array. As floats they are signalling NaN: these
 * spoil whatever is computed from them, and become other NaN where something is added to them.
 * release() sees whether a fence was written to; the address sanitizer sees every access. */
enum { FENCE = 64 };
static const uint32_t FENCE_WORD = 0xffbfffff;
static struct {
    unsigned char *place; /* of any alignment: an array of bytes may end anywhere */
    size_t size;          /* in bytes */
    void *block;          /* what is to be freed with it, or NULL */
} fences[2000];
static size_t n_fences;

static void make_fence(void *place, size_t size) {
    if (!CHECK(n_fences < LENGTH(fences), "too many arrays")) return;
    fences[n_fences].place = place;
    fences[n_fences].size = size;
    fences[n_fences].block = NULL;
    for (size_t i = 0; i + 4 <= size; i += 4) memcpy(fences[n_fences].place + i, &FENCE_WORD, 4);
    ASAN_POISON_MEMORY_REGION(place, size);
    n_fences++;
}

/* n zeros between two fences, until release(). */
static void *take(size_t n, size_t size) {
    unsigned char *memory = calloc(n * size + 2 * FENCE, 1);
    if (!memory || n_fences + 2 > LENGTH(fences)) {
        printf("FAIL %s: out of memory\n", title);
        exit(1);
    }
    make_fence(memory, FENCE);
    fences[n_fences - 1].block = memory;
    make_fence(memory + FENCE + n * size, FENCE);
    return memory + FENCE;
}

static void release(void) {
    while (n_fences > 0) {
        const unsigned char *place = fences[--n_fences].place;
        const size_t size = fences[n_fences].size;
        ASAN_UNPOISON_MEMORY_REGION(place, size);
        for (size_t i = 0; i + 4 <= size; i += 4) {
            CHECK(memcmp(place + i, &FENCE_WORD, 4) == 0,
                  "something is written beyond an array's end");
        }
        free(fences[n_fences].block);
    }
}

static uint64_t noise; /* the tests' own random numbers; every test starts from 1 */

static float uniform(void) { /* from -1 to 1, 24 bits */
    noise = noise * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(noise >> 40) * 0x1p-23 - 1.0);
}

static float *randoms(size_t n) {
    float *x = take(n, sizeof *x);
    FOR(i, n) x[i] = uniform();
    return x;
}

static uint32_t *indices(size_t n, size_t below) {
    uint32_t *x = take(n, sizeof *x);
    FOR(i, n) x[i] = (uint32_t)((uniform() + 1.0) * 0.5 * (double)below);
    return x;
}

static double *doubles(const float *x, size_t n) { /* a copy of x, or zeros */
    double *y = take(n, sizeof *y);
    FOR(i, x ? n : 0) y[i] = x[i];
    return y;
}

static float *copy(const float *x, size_t n) {
    return memcpy(take(n, sizeof *x), x, n * sizeof *x);
}

static int same(const float *x, const float *y, size_t n) {
    return memcmp(x, y, n * sizeof *x) == 0;
}

/* The loss where x (n) is changed by h * direction. */
static double loss_beside(double (*loss)(void), double *x, const double *direction, size_t n,
                          double h) {
    FOR(i, n) x[i] += h * direction[i];
    const double result = loss();
    FOR(i, n) x[i] -= h * direction[i];
    return result;
}

/* gradient (n) must be the loss's with respect to x, by central differences. Entries that are
 * GROUPS apart move together, each by a part of its own, so that none is wrong unnoticed.
 * size: of an entry, as a rule. The second suite, where only hashes count, goes on without it. */
enum { GROUPS = 64 };
static void check_gradient(const char *of, const double *gradient, double *x, size_t n,
                           double (*loss)(void), double size) {
    const double h = 1e-6;
    const uint64_t noise_before = noise;
    double *direction = doubles(NULL, n);
    FOR(first, suite == MATH ? smaller(n, GROUPS) : 0) {
        double got = 0, squares = 0;
        FOR(i, n) {
            direction[i] = i % GROUPS == first ? 1.0 + 0.5 * uniform() : 0.0;
            got += gradient[i] * direction[i];
            squares += pow((fabs(gradient[i]) + size) * direction[i], 2);
        }
        const double above = loss_beside(loss, x, direction, n, h);
        const double expected = (above - loss_beside(loss, x, direction, n, -h)) / (2 * h);
        CHECK(fabs(got - expected) <= TOLERANCE * sqrt(squares),
              "gradient of %s, entry %zu%s: expected %.9g, got %.9g", of, first,
              n > GROUPS ? " and others" : "", expected, got);
    }
    noise = noise_before;
}

/* ---- Rounding, random numbers, exp and log, hashing ------------------------------------------ */

TEST(smaller) {
    EQUAL(smaller(3, 5), 3);
    EQUAL(smaller(5, 3), 3);
}

/* From Python's decimal module, which is exact. */
TEST(print_double) {
    const struct {
        double x;
        char style;
        int precision;
        const char *text;
    } cases[] = {{32.8125, 'f', 3, "32.812"},
                 {1.5, 'f', 0, "2"},
                 {2.5, 'f', 0, "2"},
                 {9.995, 'f', 2, "9.99"},
                 {-999999.5, 'f', 0, "-1000000"},
                 {1e22, 'f', 0, "10000000000000000000000"},
                 {1e23, 'f', 1, "99999999999999991611392.0"},
                 {9.5, 'g', 1, "1e+01"},
                 {2501, 'g', 1, "3e+03"},
                 {0x1p-1070, 'g', 16, "7.905050333459945e-323"},
                 {0x1p-1074, 'g', 21, "4.94065645841246544177e-324"},
                 {0x1p-1022, 'g', 17, "2.2250738585072014e-308"},
                 {0x1p-1074, 'f', 40, "0.0000000000000000000000000000000000000000"},
                 {DBL_MAX, 'g', 40, "1.797693134862315708145274237317043567981e+308"},
                 {0.1, 'f', 40, "0.1000000000000000055511151231257827021182"},
                 {0.3, 'g', 18, "0.299999999999999989"},
                 {0.0, 'g', 9, "0"},
                 {-0.0, 'f', 1, "-0.0"},
                 {100, 'g', 3, "100"},
                 {999.5, 'g', 3, "1e+03"},
                 {998.5, 'g', 3, "998"},
                 {0.0001, 'g', 9, "0.0001"},
                 {0.00001, 'g', 9, "1e-05"},
                 {0.1, 'g', 17, "0.10000000000000001"},
                 {-0x1p-149, 'g', 9, "-1.40129846e-45"},
                 {0.25, 'g', 0, "0.2"},
                 {HUGE_VAL, 'f', 3, "inf"},
                 {-HUGE_VAL, 'g', 9, "-inf"}};
    char text[NUMBER_TEXT];
    EACH(i, cases) {
        const size_t n = print_double(text, cases[i].x, cases[i].style, cases[i].precision);
        CHECK(strcmp(text, cases[i].text) == 0, "expected %s, got %s", cases[i].text, text);
        EQUAL(n, strlen(cases[i].text));
    }
    print_double(text, HUGE_VAL - HUGE_VAL, 'f', 2);
    CHECK(strcmp(text, "nan") == 0, "NaN is '%s'", text);
    EQUAL(print_double(text, -DBL_MAX, 'f', 1000), 1 + 309 + 1 + MAX_PRECISION);
}

TEST(parse_double) {
    const struct {
        const char *text;
        double x;
        size_t n;
    } cases[] = {{"0", 0.0, 1},
                 {"+00012", 12, 6},
                 {"-.5x", -0.5, 3},
                 {"1.5e3", 1500, 5},
                 {"1.5E+3,2", 1500, 6},
                 {"1e", 1, 1},
                 {"1e-x", 1, 1},
                 {"1,5", 1, 1},
                 {"", 0, 0},
                 {".", 0, 0},
                 {"e5", 0, 0},
                 {"inf", 0, 0},
                 {"0x10", 0, 1},
                 {"1e400", HUGE_VAL, 5},
                 {"-1e400", -HUGE_VAL, 6},
                 {"1e-400", 0, 6},
                 {"1e99999999999999999999", HUGE_VAL, 22},
                 {"1e-99999999999999999999", 0, 23},
                 {"0e99999999999999999999", 0, 22},
                 {"2.4703282292062327e-324", 0, 23},
                 {"2.4703282292062328e-324", 0x1p-1074, 23}, /* half of the least */
                 {"1.7976931348623158e308", DBL_MAX, 22},
                 {"1.7976931348623159e308", HUGE_VAL, 22},
                 {"2.2250738585072011e-308", 0x0.fffffffffffffp-1022, 23},
                 {"2.2250738585072012e-308", 0x1p-1022, 23},
                 {"9007199254740993", 0x1p53, 16},
                 {"9007199254740995", 0x1p53 + 4, 16}, /* ties */
                 {"9007199254740993.00000000000000000000000000000000001", 0x1p53 + 2, 52},
                 {"9007199254740992999999999999999999999999999999999e-33", 0x1p53, 53}};
    static char far[1220];
    char text[NUMBER_TEXT];
    const char *end;
    EACH(i, cases) {
        const double x = parse_double(cases[i].text, &end);
        CHECK(x == cases[i].x, "%s is read as %.17g", cases[i].text, x);
        EQUAL(end - cases[i].text, cases[i].n);
    }
    FOR(i, 1200) { /* a tie to even, unless there is another digit, be it behind the last place of
                      any double */
        memset(far, '0', sizeof far - 1);
        memcpy(far, "9007199254740993.", 17);
        if (i) far[16 + i] = '1';
        EQUAL(parse_double(far, &end), i ? 0x1p53 + 2 : 0x1p53);
        EQUAL(end - far, sizeof far - 1);
    }
    FOR(i, 3000) { /* 17 digits tell any two doubles apart */
        const uint64_t word = (uint64_t)(uniform() * 0x1p30f + 0x1p30f) << 32 |
                              (uint64_t)(uniform() * 0x1p30f + 0x1p30f);
        double x, back;
        memcpy(&x, &word, sizeof x);
        if (!(x < HUGE_VAL)) continue;
        print_double(text, x, 'g', 17);
        back = parse_double(text, &end);
        CHECK(memcmp(&x, &back, sizeof x) == 0 && *end == 0, "%s is read as another number", text);
    }
}

/* Ties, and next to them; the least number that is kept, and what is flushed; the greatest. */
TEST(f32) { /* no isnan, no signbit: pcc does not compile them */
    const double table[][2] = {
        {1.0 + 0x1p-24, 1.0},
        {1.0 + 0x3p-24, 1.0 + 0x1p-22},
        {1.0 + 0x1p-24 + 0x1p-40, 1.0 + 0x1p-23},
        {1.0 + 0x1p-24 - 0x1p-40, 1.0},
        {-0x1.000002p-126, -0x1.000002p-126},
        {0x1p-126, 0}, {-0x1p-126, 0}, {-0x1.fffffffffffffp-127, 0}, {1e-40, 0}, {-0.0, 0},
        {0x1.fffffefp127, 0x1.fffffep127}, {-HUGE_VAL, -HUGE_VAL}};
    EACH(i, table) {
        volatile double in = table[i][0];
        EQUAL(f32(in), table[i][1]);
        CHECK(f32(in) != 0 || 1 / f32(in) > 0, "%g becomes -0", in);
    }
    const float nan = f32(NAN);
    CHECK(nan != nan, "NaN becomes a number");
}

TEST(ieee_setup) {
    const char *wrong = "nothing";
    const int good = ieee_setup(&wrong);
    CHECK(good && !wrong, "%s", wrong ? wrong : "it fails and does not say why");
    EQUAL(ieee_setup(NULL), 1);
}

TEST(mt_seed) {
    Mt19937 mt = {.next = 0};
    mt_seed(&mt, 5489);
    EQUAL(mt.state[0], 5489);
    EQUAL(mt.state[1], 1301868182);
    EQUAL(mt.state[623], 79981964);
    EQUAL(mt.next, 624);
}

TEST(mt_fill) { /* in pieces, and over the ends of blocks */
    Mt19937 mt;
    uint32_t *words = take(10000, sizeof *words);
    mt_seed(&mt, 5489);
    FOR(i, 100) mt_fill(&mt, words + i * (i - 1) / 2, i);
    mt_fill(&mt, words + 4950, 5050);
    EQUAL(words[0], UINT32_C(3499211612));
    EQUAL(words[4949], UINT32_C(1981091823));
    EQUAL(words[4950], UINT32_C(858281024));
    EQUAL(words[9999], UINT32_C(4123659995));
}

TEST(mt_next) {
    Mt19937 mt;
    mt_seed(&mt, 5489);
    EQUAL(mt_next(&mt), UINT32_C(3499211612));
    FOR(i, 9998) mt_next(&mt);
    EQUAL(mt_next(&mt), UINT32_C(4123659995));
}

static float float_of(uint32_t pattern) {
    float x;
    memcpy(&x, &pattern, sizeof x);
    return x;
}

/* A function at n floats, whose bit patterns are `step` apart. */
static void check_function(float (*function)(float), double (*exact)(double), uint32_t pattern,
                           size_t n, uint32_t step) {
    for (; n > 0; n--, pattern += step) {
        const float x = float_of(pattern), y = function(x), expected = f32(exact(x));
        at("of %.9g", x);
        NEAR(y, expected, 2e-7 * fabs(expected));
        add_bits(&y, 1);
    }
}

/* All over the range; where the result nearly is a tie; next to the ends of the range. */
TEST(exp_f32) {
    static const uint32_t special[] = {0xc16912cd, 0xbae0e25c, 0xbbf0edf1, 0xb3000000, 0x42b17217,
                                       0x42b17218, 0xc2aeac4f, 0xc2aeac50, 0x7f800000, 0xff800000};
    check_function(exp_f32, exp, 0x00000000, 32640, 0xffff);
    check_function(exp_f32, exp, 0x80000000, 32640, 0xffff);
    EACH(i, special) check_function(exp_f32, exp, special[i], 1, 0);
    const float nan = exp_f32(NAN);
    CHECK(nan != nan, "of NaN: a number");
}

TEST(log_f32) {
    const float none[] = {-1.0f, -INFINITY, NAN};
    check_function(log_f32, log, 0x00800000, 32512, 0xffff);
    check_function(log_f32, log, 0x3f7ffff0, 32, 1); /* around 1 */
    NEAR(log_f32(float_of(1)), -149 * log(2), 1e-5); /* subnormal */
    EQUAL(log_f32(0.0f), -INFINITY);
    EQUAL(log_f32(INFINITY), INFINITY);
    EACH(i, none) CHECK(log_f32(none[i]) != log_f32(none[i]), "of %g", none[i]);
}

TEST(hash_bytes) { /* the FNV authors' test vectors */
    const uint64_t foo = hash_bytes(HASH_START, "foo", 3);
    CHECK(hash_bytes(HASH_START, "", 0) == HASH_START, "of nothing");
    CHECK(hash_bytes(HASH_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c), "of a");
    CHECK(hash_bytes(foo, "bar", 3) == UINT64_C(0x85944171f73967e8), "of foo, then bar");
    CHECK(hash_bytes(HASH_START, "\xe9", 1) == (HASH_START ^ 0xe9) * UINT64_C(0x100000001b3),
          "of a byte above 127");
}

TEST(hash_floats) {
    const float x[] = {1.0f, -2.5f, 0x1.030506p0f};
    const unsigned char bytes[] = {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0x83, 0x82, 0x81, 0x3f};
    FOR(n, 4) CHECK(hash_floats(5, x, n) == hash_bytes(5, bytes, 4 * n), "of %zu", n);
}

TEST(mt_normal) { /* an odd number: half of the last pair is dropped */
    enum { N = 100001 };
    static const double moments[] = {1, 0, 1, 0, 3};
    float *x = randoms(N);
    Mt19937 mt;
    mt_seed(&mt, 1);
    mt_normal(&mt, x, N, 2.0f);
    FOR(power, 5) {
        double mean = 0;
        FOR(i, N) mean += pow(x[i] / 2.0, (double)power) / N;
        NEAR(mean, moments[power], 0.05);
    }
    add_bits(x, N);
    EQUAL(mt_next(&mt), UINT32_C(2563818105));
}

/* ---- Adam, singular values ------------------------------------------------------------------- */

TEST(adam_step) {
    static const uint32_t steps[] = {1, 2, 3, 50, 1000, 100000};
    const Adam adam = {
        .lr = 0.125f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 0.02f, .weight_decay = 0.3f};
    const double beta1 = adam.beta1, beta2 = adam.beta2;
    enum { N = 67 };
    float *x = randoms(N), *m = take(N, sizeof *m), *v = take(N, sizeof *v);
    double *ex = doubles(x, N), *em = doubles(NULL, N), *ev = doubles(NULL, N);
    EACH(s, steps) {
        const double c1 = 1 - pow(beta1, steps[s]), c2 = 1 - pow(beta2, steps[s]);
        const float *g = randoms(N);
        at("step %zu", (size_t)steps[s]);
        FOR(i, N) {
            em[i] = beta1 * em[i] + (1 - beta1) * g[i];
            ev[i] = beta2 * ev[i] + (1 - beta2) * pow(g[i], 2);
            const double direction = em[i] / c1 / (sqrt(ev[i] / c2) + adam.eps);
            ex[i] -= adam.lr * (direction + adam.weight_decay * ex[i]);
        }
        adam_step(&adam, steps[s], x, m, v, g, N);
        ALL_NEAR(m, em, N);
        ALL_NEAR(v, ev, N);
        ALL_NEAR(x, ex, N);
    }
}

static double dot(const float *x, const float *y, size_t n, size_t stride) {
    double sum = 0;
    FOR(i, n) sum += (double)x[i * stride] * y[i * stride];
    return sum;
}

/* The columns are rotated among themselves, which changes no sum of products along a row, until
 * they are orthogonal. */
TEST(singular_values) {
    enum {
        N = 24,
        COLUMNS = 9
    };
    float *columns = randoms(COLUMNS * N), *values = randoms(COLUMNS);
    memcpy(columns + 8 * N, columns + 3 * N, N * sizeof *columns); /* one value is 0 */
    const float *before = copy(columns, COLUMNS * N);
    singular_values(values, columns, COLUMNS, N);
    FOR(i, N) FOR(j, N) {
        const double row_by_row = dot(before + i, before + j, COLUMNS, N);
        NEAR(dot(columns + i, columns + j, COLUMNS, N), row_by_row, 1e-5);
    }
    FOR(a, COLUMNS) FOR(b, COLUMNS) {
        const double square = a == b ? pow(values[a], 2) : 0.0;
        NEAR(dot(columns + a * N, columns + b * N, N, 1), square, 1e-5);
        CHECK(a > b || values[a] >= values[b], "not in descending order");
    }
    add_bits(columns, COLUMNS * N);
}

TEST(attention_score) {
    FOR(d, 70) {
        const float *q = randoms(d), *k = randoms(d);
        double sum = 0;
        FOR(j, d) sum += (double)q[j] * (double)k[j];
        at("%zu numbers", d);
        NEAR(attention_score(q, k, d, 0.375f), 0.375 * sum, 1e-6 * (1 + fabs(sum)));
        release();
    }
}

TEST(round_sums) {
    const double sums[] = {1.0 + 0x1p-24, 1e-40, -3.0, 1e6 + 0x1p-30, 0x1.fffffefp127};
    float *out = randoms(5);
    round_sums(out, sums, 5);
    FOR(i, 5) EQUAL(out[i], f32(sums[i]));
}

/* ---- Layers ---------------------------------------------------------------------------------- */

/* The formulas of tensor.h, of which the naive model is made, too. y += b + x W. */
static void naive_linear(double *y, const double *x, const double *W, const double *b, size_t R,
                         size_t n, size_t m) {
    FOR(r, R) FOR(j, m) {
        y[r * m + j] += b ? b[j] : 0.0;
        FOR(i, n) y[r * m + j] += x[r * n + i] * W[i * m + j];
    }
}

static double naive_norm(double *out, const double *x, const double *scale, const double *b,
                         size_t d) { /* returns inv_std */
    double mean = 0, variance = 0;
    FOR(j, d) mean += x[j] / (double)d;
    FOR(j, d) variance += pow(x[j] - mean, 2) / (double)d;
    const double inv_std = 1 / sqrt(variance + 1e-5);
    FOR(j, d) {
        out[j] = (x[j] - mean) * inv_std;
        if (scale) out[j] *= scale[j];
        if (b) out[j] += b[j];
    }
    return inv_std;
}

static double naive_softmax(double *p, const double *x, size_t n) { /* returns log(sum of e^x) */
    double max = -HUGE_VAL, sum = 0;
    FOR(i, n) max = x[i] > max ? x[i] : max;
    FOR(i, n) sum += exp(x[i] - max);
    FOR(i, n) p[i] = exp(x[i] - max) / sum;
    return log(sum) + max;
}

/* The case at hand: a layer of one of these sizes, rows, n_in, n_out: few and many, odd and even,
 * square, more than one and two stretches of 64; and no rows. */
static const size_t SIZES[][3] = {
    {1, 1, 1}, {7, 5, 10}, {13, 10, 5}, {1, 67, 6}, {67, 6, 1}, {6, 2, 67}, {64, 64, 64},
    {7, 130, 10}, {0, 5, 9}, {130, 9, 5}, {66, 65, 129}, {6, 8, 7}};
static size_t rows, n_in, n_out;

/* Up to three inputs, gradients for each that start from noise (before), the output, and the
 * gradient dout of the loss, which is the sum of dout * output. What a backward function writes
 * is the gradient on top of `base`: the noise, if it adds; NULL: nothing. The formula adds to
 * `result` the output of the inputs in `exact`, all in double. */
enum { INPUTS = 3 };
static size_t input_size[INPUTS], output_size;
static float *inputs[INPUTS], *grad[INPUTS], *before[INPUTS], *base[INPUTS], *output, *dout;
static double *exact[INPUTS], *result;
static void (*formula)(void);

/* Forward and backward are called in turn; each has its own test, in which only it is checked. */
static int testing(const char *part) { return strstr(title, part) != NULL; }

static double case_loss(void) {
    double loss = 0;
    memset(result, 0, output_size * sizeof *result);
    formula();
    FOR(i, output_size) loss += dout[i] * result[i];
    return loss;
}

static void check_input(size_t k) {
    static const char *const names[] = {"input 0", "input 1", "input 2"};
    const size_t n = input_size[k];
    double *got = doubles(grad[k], n), mean = 0;
    FOR(i, n) {
        got[i] -= base[k] ? base[k][i] : 0.0;
        mean += fabs(got[i]) / (double)n;
    }
    check_gradient(names[k], got, exact[k], n, case_loss, mean + 0.1);
    add_bits(grad[k], n);
}

/* While `cancelling`, there are two cases, SIDE x SIDE, of numbers whose sums nearly cancel. So
 * every bit of a double sum, and with it the order, shows in the float that it is rounded to. Sizes
 * go from 2^-30 to 2^30. The second half of the rows, and of the columns, repeats the first with
 * the given sign and a little noise. No formula is precise enough for this: only hashes count. */
enum { SIDE = 70 };
static int cancelling;

static void fill_cancelling(float *x, size_t n, double rows_sign, double columns_sign) {
    const size_t half = SIDE / 2;
    FOR(i, n) {
        const size_t row = i / SIDE, column = i % SIDE;
        const int power = (int)(30 * uniform());
        const double size = ldexp(uniform(), power);
        const double little = ldexp(uniform(), -10);
        if (column >= half) x[i] = f32(columns_sign * x[i - half] + little);
        else if (row >= half) x[i] = f32(rows_sign * x[i - half * SIDE] + little);
        else x[i] = f32(size + little);
    }
}

static void hash_case(void) {
    add_bits(output, output_size);
    FOR(k, INPUTS) add_bits(grad[k], grad[k] ? input_size[k] : 0);
}

static void finish_case(void) {
    if (cancelling) hash_case();
    else if (testing("forward")) ALL_NEAR(output, result, output_size);
    else FOR(k, INPUTS) if (grad[k]) check_input(k);
}

/* To be used as `while (next_case())`. Checks the case before. */
static int next_case(void) {
    if (number > 0) finish_case();
    release();
    memset(inputs, 0, sizeof inputs);
    memset(grad, 0, sizeof grad);
    if (number == (cancelling ? 2 : LENGTH(SIZES))) return 0;
    rows = cancelling ? SIDE : SIZES[number][0];
    n_in = cancelling ? SIDE : SIZES[number][1];
    n_out = cancelling ? SIDE : SIZES[number][2];
    at("case %zu", ++number);
    return 1;
}

static float *make_input(size_t k, size_t n) {
    const double sign = k % 2 == number % 2 ? -1 : 1;
    input_size[k] = n;
    inputs[k] = randoms(n);
    if (cancelling) fill_cancelling(inputs[k], n, sign, sign);
    before[k] = randoms(n);
    base[k] = before[k];
    grad[k] = copy(before[k], n);
    return inputs[k];
}

/* To be called when all inputs are made. */
static void expect(void (*output_formula)(void), size_t n) {
    output_size = n;
    output = randoms(n);
    dout = randoms(n);
    if (cancelling) fill_cancelling(dout, n, -1, 1);
    FOR(k, INPUTS) exact[k] = inputs[k] ? doubles(inputs[k], input_size[k]) : NULL;
    result = doubles(NULL, n);
    formula = output_formula;
    formula();
}

/* What is to be added to the first input's gradient: nothing, or what stands there, or what stands
 * elsewhere. */
static const float *dresidual(void) {
    const float *const kinds[] = {NULL, grad[0], before[0]};
    if (number % 3 == 0) base[0] = NULL;
    return kinds[number % 3];
}

/* The first input's gradient is written, not added to; at times in place of `from`. */
static float *written(const float *from, size_t n) {
    base[0] = NULL;
    if (number % 2) grad[0] = copy(from, n);
    return grad[0];
}

static uint32_t *token, *position;

static void embed_formula(void) {
    FOR(r, rows) FOR(j, n_in) {
        result[r * n_in + j] +=
            exact[0][token[r] * n_in + j] + exact[1][position[r] * n_in + j];
    }
}

TEST(embed) {
    enum {
        VOCABULARY = 11,
        PLACES = 5
    };
    while (next_case()) {
        make_input(0, VOCABULARY * n_in);
        make_input(1, PLACES * n_in);
        token = indices(rows, VOCABULARY);
        position = indices(rows, PLACES);
        expect(embed_formula, rows * n_in);
        embed_forward(output, inputs[0], inputs[1], token, position, rows, n_in);
        embed_backward(grad[0], grad[1], dout, token, position, rows, n_in);
    }
}

static void gather_formula(void) {
    FOR(r, rows) FOR(j, n_in) result[r * n_in + j] += exact[0][position[r] * n_in + j];
}

TEST(gather) {
    while (next_case()) {
        make_input(0, (rows + 3) * n_in);
        position = indices(rows, rows + 3);
        expect(gather_formula, rows * n_in);
        gather_forward(output, inputs[0], position, rows, n_in);
        gather_backward(grad[0], dout, position, rows, n_in);
    }
}

static void linear_formula(void) {
    naive_linear(result, exact[0], exact[1], exact[2], rows, n_in, n_out);
}

/* With b or without; the residual is nothing, or the output itself, or stands elsewhere. */
TEST(linear) {
    while (next_case()) {
        float *x = make_input(0, rows * n_in), *W = make_input(1, n_in * n_out);
        float *b = number % 2 ? make_input(2, n_out) : NULL;
        expect(linear_formula, rows * n_out);
        float *noise_before = copy(output, output_size);
        const float *residuals[] = {NULL, output, noise_before};
        const float *residual = residuals[number % 3];
        FOR(i, residual ? output_size : 0) result[i] += noise_before[i];
        linear_forward(output, residual, x, W, b, rows, n_in, n_out);
        linear_backward_input(grad[0], dresidual(), dout, W, rows, n_in, n_out);
        linear_backward_weights(grad[1], grad[2], dout, x, rows, n_in, n_out);
        if (testing("weights")) grad[0] = NULL;
        if (testing("input")) grad[1] = grad[2] = NULL;
    }
}

static void layernorm_formula(void) {
    FOR(r, rows) {
        const size_t first = r * n_in;
        naive_norm(result + first, exact[0] + first, exact[1], exact[2], n_in);
    }
}

static void check_normal(const float *normal, const float *inv_std) {
    double *std = doubles(NULL, rows), *exact_normal = doubles(NULL, output_size);
    FOR(r, rows) {
        const size_t first = r * n_in;
        std[r] = naive_norm(exact_normal + first, exact[0] + first, NULL, NULL, n_in);
    }
    ALL_NEAR(normal, exact_normal, output_size);
    ALL_NEAR(inv_std, std, rows);
}

/* With w and b or without, and then at times with one array for two outputs; some rows differ so
 * little that the 1e-5 matters. A single number would leave nothing but rounding noise. */
TEST(layernorm) {
    while (next_case()) {
        n_in = n_in > 1 ? n_in : 2;
        float *x = make_input(0, rows * n_in);
        float *w = number % 4 ? make_input(1, n_in) : NULL;
        float *b = w ? make_input(2, n_in) : NULL;
        const double scale = number % 3 == 0 ? 0.004 : 2.0;
        FOR(i, cancelling ? 0 : rows * n_in) x[i] = f32(scale * (x[i] + 0.25));
        expect(layernorm_formula, rows * n_in);
        float *inv_std = randoms(rows), *normal = number % 8 ? randoms(output_size) : output;
        layernorm_forward(output, normal, inv_std, x, w, b, rows, n_in);
        if (testing("forward")) check_normal(normal, inv_std);
        layernorm_backward(grad[0], dresidual(), grad[1], grad[2], dout, normal, inv_std, w, rows,
                           n_in);
    }
}

static void relu_formula(void) { /* of slope 0 at 0 */
    FOR(i, output_size) result[i] += exact[0][i] > 0.01 ? exact[0][i] : 0.0;
}

/* Every fifth number is 0, the others are farther from it than 0.1; at times in place. */
TEST(relu) {
    while (next_case()) {
        const size_t n = rows * n_in;
        float *x = make_input(0, n);
        FOR(i, n) {
            x[i] += x[i] < 0 ? -0.1f : 0.1f;
            if (i % 5 == 4) x[i] = 0;
        }
        expect(relu_formula, n);
        if (number % 2) output = copy(x, n);
        relu_forward(output, number % 2 ? output : x, n);
        float *dx = written(dout, n);
        relu_backward(dx, number % 2 ? dx : dout, x, n);
    }
}

/* Rows around 0, 1000 and -1000, so that only the row's own maximum keeps exp from overflow. */
static float *make_steep(int steep) {
    static const float level[] = {0, 1000, -1000};
    float *x = make_input(0, rows * n_in);
    FOR(i, rows * n_in) x[i] = 2 * x[i] + (steep ? level[i / n_in % 3] : 0);
    return x;
}

static void softmax_formula(void) {
    FOR(r, rows) naive_softmax(result + r * n_in, exact[0] + r * n_in, n_in);
}

/* At times in place; then one number of each row is far above the others. In longer rows, an entry
 * of -infinity. */
TEST(softmax) {
    while (next_case()) {
        float *x = make_steep(1);
        FOR(r, number % 2 ? rows : 0) x[r * n_in + r % n_in] += 300.0f;
        FOR(r, n_in > 5 ? rows : 0) x[r * n_in + (r + 1) % 5] = -INFINITY;
        expect(softmax_formula, rows * n_in);
        if (number % 2) output = x;
        softmax_forward(output, x, rows, n_in);
    }
}

static void cross_entropy_formula(void) {
    double p[256];
    FOR(r, rows) {
        const double *x = exact[0] + r * n_in;
        result[r] += naive_softmax(p, x, n_in) - x[token[r]];
    }
}

/* At times in place; then the label's logit may be so low that its probability is 0, not its loss
 * infinite. */
TEST(cross_entropy) {
    const float scale = 0.375f;
    while (next_case()) {
        const size_t n = rows * n_in;
        float *logits = make_steep(number % 4 == 0);
        double exact_p[256];
        token = indices(rows, n_in);
        FOR(r, number % 4 == 1 ? rows : 0) logits[r * n_in + token[r]] -= 300.0f;
        expect(cross_entropy_formula, rows);
        FOR(r, rows) dout[r] = scale;
        float *p = copy(logits, n);
        cross_entropy_forward(output, p, number % 2 ? p : logits, token, rows, n_in);
        FOR(r, testing("forward") ? rows : 0) {
            naive_softmax(exact_p, exact[0] + r * n_in, n_in);
            ALL_NEAR(p + r * n_in, exact_p, n_in);
        }
        float *dlogits = written(p, n);
        cross_entropy_backward(dlogits, number % 2 ? dlogits : p, token, scale, rows, n_in);
    }
}

static Attention attention;

/* Sizes of its own. Returns the number of rows: some serve many lists, some one, some none. */
static size_t make_attention(void) {
    static const size_t sizes[][4] = { /* n_lists, seq_len, queries_per_list, d_head */
        {2, 17, 17, 8}, {1, 1, 1, 1}, {3, 5, 2, 5}, {2, 3, 3, 3}, {7, 5, 5, 6}, {13, 7, 1, 32},
        {3, 13, 4, 33}, {67, 3, 2, 10}, {5, 9, 2, 37}, {1, 8, 1, 130}, {10, 7, 3, SIDE}};
    const size_t *size = sizes[cancelling ? LENGTH(sizes) - 1 : number % (LENGTH(sizes) - 1)];
    const size_t n = 1 + size[0] * size[1] * 2 / 3;
    const Attention a = {
        .n_lists = size[0], .seq_len = size[1], .queries_per_list = size[2], .d_head = size[3],
        .row = indices(size[0] * size[1], n), .scale = cancelling ? 0x1p-10f : 0.4375f};
    attention = a;
    return n;
}

static size_t n_queries(void) { return attention.n_lists * attention.queries_per_list; }

/* How many positions query i sees. */
static size_t seen_by(size_t i) {
    return attention.seq_len - attention.queries_per_list + i / attention.n_lists + 1;
}

static size_t row_of(size_t i, size_t s) {
    return attention.row[s * attention.n_lists + i % attention.n_lists];
}

static void clear_unseen(float *pattern) {
    const size_t T = attention.seq_len;
    FOR(i, n_queries()) for (size_t s = seen_by(i); s < T; s++) pattern[i * T + s] = 0;
}

static void pattern_formula(void) {
    const size_t d = attention.d_head;
    FOR(i, n_queries()) {
        const double *q = exact[0] + row_of(i, seen_by(i) - 1) * d;
        double *p = result + i * attention.seq_len;
        FOR(s, seen_by(i)) FOR(j, d) {
            p[s] += attention.scale * q[j] * exact[1][row_of(i, s) * d + j];
        }
        naive_softmax(p, p, seen_by(i));
    }
}

TEST(attention_pattern) {
    while (next_case()) {
        const size_t vectors = make_attention(), n = vectors * attention.d_head;
        float *q = make_input(0, n), *k = make_input(1, n);
        expect(pattern_formula, n_queries() * attention.seq_len);
        clear_unseen(dout);
        attention_pattern_forward(output, q, k, &attention);
        double *dq = doubles(before[0], n), *dk = doubles(before[1], n);
        float *dpattern = copy(dout, output_size);
        attention_pattern_backward(dq, dk, dpattern, output, q, k, &attention);
        round_sums(grad[0], dq, n);
        round_sums(grad[1], dk, n);
    }
}

static void values_formula(void) {
    const size_t d = attention.d_head;
    FOR(i, n_queries()) FOR(s, seen_by(i)) FOR(j, d) {
        const double weight = exact[0][i * attention.seq_len + s];
        result[i * d + j] += weight * exact[1][row_of(i, s) * d + j];
    }
}

TEST(attention_values) {
    while (next_case()) {
        const size_t vectors = make_attention(), n = vectors * attention.d_head;
        float *pattern = make_input(0, n_queries() * attention.seq_len), *v = make_input(1, n);
        clear_unseen(pattern);
        expect(values_formula, n_queries() * attention.d_head);
        attention_values_forward(output, pattern, v, &attention);
        double *dv = doubles(before[1], n);
        attention_values_backward(grad[0], dv, dout, pattern, v, &attention);
        round_sums(grad[1], dv, n);
        base[0] = NULL;
    }
}

/* That the order of every sum is the one it was; and that double operations round to 53 bits, as
 * IEEE-754 demands. */
TEST(sums) {
    static void (*const layers[])(void) = {test_gather, test_linear, test_layernorm,
                                           test_attention_pattern, test_attention_values};
    double sum = 0;
    FOR(i, 1000) {
        sum += sqrt((double)(i + 1)) / (double)(i + 3);
        double rest = sum;
        FOR(part, 3) { /* of 24 bits each */
            const float x = f32(rest);
            add_bits(&x, 1);
            rest -= x;
        }
    }
    cancelling = 1;
    EACH(i, layers) {
        number = 0;
        layers[i]();
    }
    cancelling = 0;
}

/* ---- The task -------------------------------------------------------------------------------- */

static uint32_t naive_median(const uint32_t *list, size_t n) {
    FOR(i, n) {
        size_t below = 0, equal = 0;
        FOR(j, n) {
            below += list[j] < list[i];
            equal += list[j] == list[i];
        }
        if (below <= n / 2 && below + equal > n / 2) return list[i];
    }
    return UINT32_MAX;
}

TEST(median_of) {
    for (size_t n = 3; n <= 31; n += 2) FOR(i, 200) {
        const uint32_t *list = indices(n, i % 2 ? 1000 : 6);
        EQUAL(median_of(list, n), naive_median(list, n));
        release();
    }
}

TEST(make_lists) {
    static const uint32_t known[][7] = {{91, 46, 16, 97, 30, 12, 27}, {31, 62, 14, 73, 23, 85, 91}};
    uint32_t *lists = indices(5 * 7, 9), *medians = indices(5, 9);
    Mt19937 mt;
    mt_seed(&mt, 23);
    make_lists(&mt, lists, medians, 5, 100, 7);
    FOR(i, 2) FOR(j, 7) EQUAL(lists[4 * i * 7 + j], known[i][j]);
    FOR(i, 5) EQUAL(medians[i], naive_median(lists + i * 7, 7));
}

/* Lists with numbers that repeat, balanced ones, others. */
TEST(make_training_lists) {
    enum {
        N = 4000,
        T = 7,
        V = 5
    };
    uint32_t *lists = indices(N * T, 9), *medians = indices(N, 9);
    const Mixture mix = {.max_num = V, .seq_len = T, .balanced = 0.75f, .ties = 0.5f};
    Mt19937 mt;
    mt_seed(&mt, 23);
    make_training_lists(&mt, lists, medians, N, &mix);
    size_t found[2][V] = {{0}}, repeats[2] = {0};
    FOR(i, N) {
        const uint32_t *list = lists + i * T;
        EQUAL(medians[i], naive_median(list, T));
        FOR(m, V) found[i >= N * 3 / 4][m] += naive_median(list, T) == m;
        FOR(j, T) FOR(k, j) repeats[i >= N * 3 / 8] += list[j] == list[k];
    }
    FOR(m, V) NEAR(found[0][m], N * 3 / 4 / V, 60);
    NEAR(found[1][0], 33, 25);
    CHECK(3 * repeats[0] > 4 * repeats[1] * 3 / 5, "ties: %zu and %zu", repeats[0],
          repeats[1]);
}

TEST(use_threads) {
#ifdef _OPENMP
    EQUAL(use_threads(3), 3);
#else
    EQUAL(use_threads(3), 1);
#endif
    EQUAL(use_threads(0), 1);
}

/* ---- The model ------------------------------------------------------------------------------- */

/* max_num, seq_len, d_model, d_head, n_heads, n_layers, d_mlp, normalization */
static const Config MODELS[] = {
    {7, 5, 10, 6, 1, 1, 0, NORMALIZATION_LN},     {7, 5, 10, 6, 3, 2, 11, NORMALIZATION_LN},
    {7, 5, 10, 6, 1, 3, 0, NORMALIZATION_NONE},   {7, 5, 10, 6, 2, 1, 13, NORMALIZATION_NONE},
    {12, 5, 10, 2, 2, 3, 4, NORMALIZATION_LN},    {7, 7, 10, 2, 2, 2, 5, NORMALIZATION_NONE},
    {7, 3, 5, 9, 2, 2, 0, NORMALIZATION_LN},      {7, 5, 10, 6, 2, 2, 8, NORMALIZATION_LNPRE},
};

/* The model at hand, with weights of every kind well away from 0, workspaces, lists and labels.
 * Every list but two has every number at another position than the others: with 7 numbers layer 0
 * has as many rows as it can have, and fences stand right behind them. */
enum { LISTS = 9 };
static struct {
    Config config;
    size_t T, V, L; /* seq_len, max_num, n_layers */
    Model model, gradient;
    double *params; /* the model's once more, for the naive one */
    Run run, source;
    uint32_t *lists, *labels;
} w;

static int make_model(void) {
    const Config *c = &w.config;
    layout_watch = make_fence;
    const int made = model_create(&w.model, c, &error) && model_create(&w.gradient, c, &error) &&
                     run_create(&w.run, c, LISTS, RUN_GRADIENTS, &error) &&
                     run_create(&w.source, c, LISTS, RUN_FORWARD, &error);
    layout_watch = NULL;
    FOR(i, w.model.n_tensors) {
        const Tensor *t = &w.model.tensors[i];
        const int is_scale = strcmp(t->name + strlen(t->name) - 2, ".w") == 0;
        FOR(j, t->size) t->data[j] = (is_scale ? 1.0f : 0.0f) + 0.5f * uniform();
    }
    w.params = doubles(w.model.params, w.model.n_params);
    w.labels = indices(LISTS, w.V);
    w.lists = indices(LISTS * w.T, w.V);
    FOR(i, 7) FOR(t, w.T) w.lists[i * w.T + t] = (uint32_t)((i + t) % w.V);
    FOR(t, w.T) w.lists[7 * w.T + t] = 3;
    return DONE(made);
}

/* To be used as `while (next_model())`. */
static int next_model(void) {
    release();
    model_free(&w.model);
    model_free(&w.gradient);
    run_free(&w.run);
    run_free(&w.source);
    if (number == LENGTH(MODELS)) return 0;
    const Config *c = &MODELS[number++];
    w.config = *c;
    w.T = c->seq_len;
    w.V = c->max_num;
    w.L = c->n_layers;
    at("model %zu", number);
    return make_model();
}

/* The model once more: one list, every position, no tables, in double. */
enum { WIDE = 128 }; /* no array (seq_len, ...) is greater */

static const double *exact_of(const float *weights) {
    return weights ? w.params + (weights - w.model.params) : NULL;
}

/* y += b + x W, for every position. */
static void naive_project(double *y, const double *x, const float *W, const float *b, size_t n,
                          size_t m) {
    naive_linear(y, x, exact_of(W), exact_of(b), w.T, n, m);
}

static void naive_rows(double *h, const double *x, const float *scale, const float *b) {
    const size_t d = w.config.d_model;
    memcpy(h, x, WIDE * sizeof *h);
    FOR(t, w.config.normalization ? w.T : 0) {
        naive_norm(h + t * d, x + t * d, exact_of(scale), exact_of(b), d);
    }
}

static void naive_head(const LayerWeights *y, size_t head, const double *h, double *x) {
    const size_t d = w.config.d_model, dh = w.config.d_head, W = head * d * dh, b = head * dh;
    double q[WIDE] = {0}, k[WIDE] = {0}, v[WIDE] = {0}, z[WIDE] = {0};
    naive_project(q, h, y->W_Q + W, y->b_Q + b, d, dh);
    naive_project(k, h, y->W_K + W, y->b_K + b, d, dh);
    naive_project(v, h, y->W_V + W, y->b_V + b, d, dh);
    FOR(t, w.T) {
        double a[8] = {0};
        FOR(s, t + 1) FOR(j, dh) a[s] += q[t * dh + j] * k[s * dh + j] / sqrt((double)dh);
        naive_softmax(a, a, t + 1);
        FOR(s, t + 1) FOR(j, dh) z[t * dh + j] += a[s] * v[s * dh + j];
    }
    naive_project(x, z, y->W_O + W, head ? NULL : y->b_O, dh, d);
}

static void naive_mlp(const LayerWeights *y, const double *h, double *x) {
    double hidden[WIDE] = {0};
    naive_project(hidden, h, y->W_in, y->b_in, w.config.d_model, w.config.d_mlp);
    FOR(i, WIDE) hidden[i] = hidden[i] > 0 ? hidden[i] : 0;
    naive_project(x, hidden, y->W_out, y->b_out, w.config.d_mlp, w.config.d_model);
}

static void naive_logits(const uint32_t *list, double *logits) {
    const Weights *all = &w.model.weights;
    const size_t d = w.config.d_model;
    const double *W_E = exact_of(all->W_E), *W_pos = exact_of(all->W_pos);
    double x[WIDE] = {0}, h[WIDE];
    FOR(t, w.T) FOR(j, d) x[t * d + j] = W_E[list[t] * d + j] + W_pos[t * d + j];
    FOR(l, w.L) {
        const LayerWeights *y = &all->layers[l];
        naive_rows(h, x, y->ln1_w, y->ln1_b);
        FOR(head, w.config.n_heads) naive_head(y, head, h, x);
        naive_rows(h, x, y->ln2_w, y->ln2_b);
        if (w.config.d_mlp) naive_mlp(y, h, x);
    }
    naive_rows(h, x, all->ln_final_w, all->ln_final_b);
    memset(logits, 0, w.V * sizeof *logits);
    naive_linear(logits, h + (w.T - 1) * d, exact_of(all->W_U), exact_of(all->b_U), 1, d, w.V);
}

static double naive_loss(void) {
    double loss = 0, logits[WIDE], p[WIDE];
    FOR(i, LISTS) {
        naive_logits(w.lists + i * w.T, logits);
        loss += (naive_softmax(p, logits, w.V) - logits[w.labels[i]]) / LISTS;
    }
    return loss;
}

static void forward(Run *run, const uint32_t *lists, size_t n) {
    model_forward(&w.model, run, lists, n, NULL);
}

/* The naive logits; the same bits alone and in company, and after the workspace has seen other
 * lists. */
TEST(model_forward) {
    while (next_model()) {
        double *logits = doubles(NULL, LISTS * w.V);
        FOR(i, LISTS) naive_logits(w.lists + i * w.T, logits + i * w.V);
        forward(&w.run, indices(LISTS * w.T, w.V), LISTS);
        forward(&w.run, w.lists, LISTS);
        ALL_NEAR(w.run.logits, logits, LISTS * w.V);
        FOR(i, LISTS - 1) {
            forward(&w.source, w.lists + i * w.T, 1 + i % 2);
            CHECK(same(w.source.logits, w.run.logits + i * w.V, (1 + i % 2) * w.V),
                  "list %zu: other bits in a batch of %zu", i, (1 + i % 2));
        }
    }
}

/* The loss, and every parameter's gradient against differences of the naive model's loss. */
TEST(model_backward) {
    while (next_model()) {
        double loss = 0;
        FOR(pass, 2) { /* the first leaves its traces in the workspace and the gradient */
            forward(&w.run, w.lists, pass ? LISTS : LISTS - 2);
            loss = model_loss(&w.run, w.labels);
            model_backward(&w.model, &w.run, w.labels, &w.gradient);
        }
        NEAR(loss, naive_loss(), TOLERANCE);
        const size_t n = w.model.n_params;
        double *got = doubles(w.gradient.params, n), mean = 0;
        FOR(i, n) mean += fabs(got[i]) / (double)n;
        FOR(i, w.model.n_tensors) {
            const Tensor *t = &w.model.tensors[i];
            const size_t first = (size_t)(t->data - w.model.params);
            check_gradient(t->name, got + first, w.params + first, t->size, naive_loss, mean);
        }
        add_bits(w.gradient.params, n);
    }
}

/* A step's gradient, made chunk by chunk, is that of the whole batch. */
TEST(trainer_step) {
    enum { BATCH = 600 };
    Recipe recipe = recipe_default();
    recipe.batch_size = BATCH;
    recipe.valset_size = 10;
    recipe.steps = 1;
    while (next_model()) {
        Trainer t;
        Run run;
        DONE(run_create(&run, &w.config, BATCH, RUN_GRADIENTS, &error));
        if (DONE(trainer_create(&t, &recipe, NULL, &w.model, &error))) {
            trainer_step(&t);
            forward(&run, t.batch, BATCH);
            NEAR(t.loss, model_loss(&run, t.batch_medians), TOLERANCE);
            model_backward(&w.model, &run, t.batch_medians, &w.gradient);
            const double *whole = doubles(w.gradient.params, w.model.n_params);
            ALL_NEAR(t.gradient.params, whole, w.model.n_params);
        }
        trainer_free(&t);
        run_free(&run);
    }
}

/* Weights of the right size, biases 0, scales 1. */
TEST(model_init) {
    Mt19937 mt;
    mt_seed(&mt, 3);
    while (next_model()) {
        model_init(&w.model, &mt);
        FOR(i, w.model.n_tensors) {
            const Tensor *t = &w.model.tensors[i];
            const char *last = strrchr(t->name, '.') + 1;
            const double mean_square = dot(t->data, t->data, t->size, 1) / (double)t->size;
            if (*last == 'W') NEAR(sqrt((double)w.config.d_model * mean_square), 0.8, 0.3);
            else EQUAL(mean_square, *last == 'w');
        }
        add_bits(w.model.params, w.model.n_params);
    }
}

/* ---- Looking inside -------------------------------------------------------------------------- */

/* Layer 0's effective QK table, of each key position, gives the attention of the forward pass. */
TEST(circuits) {
    while (next_model()) {
        const LayerRun *layer = &w.run.layers[0];
        float *table = randoms(w.V * w.V), *scratch = randoms(circuit_scratch(&w.config));
        forward(&w.run, w.lists, LISTS);
        FOR(head, w.config.n_heads) FOR(i, LISTS) {
            const uint32_t *list = w.lists + i * w.T;
            const size_t query =
                (head + 1) * layer->n_queries - LISTS + i; /* the last position's */
            double scores[8];
            FOR(s, w.T) {
                const Circuit which = {
                    .kind = CIRCUIT_QK, .head = head, .query_pos = NO_POSITION, .key_pos = s};
                circuit_table(&w.model, &which, table, scratch);
                scores[s] = table[list[w.T - 1] * w.V + list[s]];
            }
            naive_softmax(scores, scores, w.T);
            ALL_NEAR(layer->pattern + query * w.T, scores, w.T);
        }
    }
}

/* The terms of the direct attribution add up to the logits. */
TEST(attribution) {
    while (next_model()) {
        float *scratch = randoms(w.config.d_model + w.config.d_head);
        Term *terms = take(attribution_terms(&w.config), sizeof *terms);
        FOR(i, LISTS) {
            Attribution a = {.numbers = {i % w.V, 0}, .terms = terms};
            forward(&w.run, w.lists + i * w.T, 1);
            attribute(&w.model, &w.run, &a, scratch);
            FOR(k, 2) NEAR(a.sum[k], w.run.logits[a.numbers[k]], 1e-4);
        }
    }
}

/* One unit: what the attribution says of a head of layer 0 is attention times its OV circuit, both
 * at the list's own scale. */
TEST(logits_of_circuits) {
    while (next_model()) {
        float *table = randoms(w.V * w.V), *scratch = randoms(circuit_scratch(&w.config));
        Term *terms = take(attribution_terms(&w.config), sizeof *terms);
        FOR(i, LISTS) {
            const uint32_t *list = w.lists + i * w.T;
            Attribution a = {.numbers = {i % w.V, 0}, .terms = terms};
            Circuit which = {.kind = CIRCUIT_OV, .scale = mean_scale(&w.model, &w.run, list, 1)};
            forward(&w.run, list, 1);
            attribute(&w.model, &w.run, &a, scratch);
            FOR(k, a.n_terms) {
                if (strcmp(terms[k].part, "head") != 0 || terms[k].layer > 0) continue;
                const LayerRun *layer = &w.run.layers[0];
                const size_t row = (terms[k].head + 1) * layer->n_queries - 1;
                const size_t at = terms[k].position;
                const double weight = layer->pattern[row * w.T + at];
                which.head = terms[k].head;
                which.key_pos = at;
                circuit_table(&w.model, &which, table, scratch);
                NEAR(terms[k].logit[0], weight * table[list[at] * w.V + a.numbers[0]], 1e-4);
            }
        }
    }
}

/* The residual stream's rows, layer by layer, and at last before ln_final. */
static void note_rows(void *context, HookSite site, size_t layer, size_t head, float *values,
                      size_t n, size_t width) {
    (void)head, (void)values, (void)width;
    if (site == HOOK_RESIDUAL) ((size_t *)context)[layer] = n;
}

TEST(hooks) {
    size_t seen[8] = {0};
    const Hook hook = {.call = note_rows, .context = seen};
    while (next_model()) {
        model_forward(&w.model, &w.source, w.lists, LISTS, &hook);
        FOR(l, w.L) EQUAL(seen[l], w.source.layers[l].rows->n_rows);
        EQUAL(seen[w.L], w.source.layers[w.L - 1].n_queries);
    }
}

static Target target(size_t site, size_t layer, size_t place) {
    const Target t = {
        .site = (HookSite)site, .layer = layer, .head = ALL_HEADS, .position = place};
    return t;
}

/* A clean run's values, put at every place of a site into the clean run, change nothing, and nor
 * does their mean over lists that are all the same; the residual stream's restore a corrupted
 * run. */
TEST(patching) {
    while (next_model()) {
        forward(&w.source, w.lists, 1);
        const float *clean = copy(w.source.logits, w.V);
        const size_t sites = w.config.d_mlp ? HOOK_MLP + 1 : HOOK_MLP;
        FOR(site, sites) FOR(mean, 2) FOR(list, site == HOOK_RESIDUAL ? 2 : 1) {
            const ReplaceKind kind = mean ? REPLACE_MEAN : REPLACE_SAME;
            Target all[3];
            FOR(l, w.L) all[l] = target(site, l, ALL_POSITIONS);
            run_intervention(&w.model, &w.run, &w.source, w.lists + list * w.T, kind, all, w.L);
            CHECK(same(w.run.logits, clean, w.V), "site %zu: other logits", site);
        }
    }
}

/* Zeros and other lists' values matter, but not at positions that nobody reads. */
TEST(ablation) {
    while (next_model()) {
        forward(&w.source, w.lists, LISTS);
        const float *plain = copy(w.source.logits, LISTS * w.V);
        FOR(kind, 4) FOR(here, 2) {
            const Target t = target(HOOK_HEAD, w.L - 1, here ? w.T - 1 : 0);
            run_intervention(&w.model, &w.run, &w.source, w.lists, (ReplaceKind)kind, &t, 1);
            EQUAL(same(w.run.logits, plain, LISTS * w.V), !here || kind == REPLACE_SAME);
        }
    }
}

/* ---- What commands say of a model in memory -------------------------------------------------- */

/* A command line in words; returns how many. */
static int split_line(char *line, char **argv) {
    int argc = 0;
    for (char *next = strtok(line, " "); next; next = strtok(NULL, " ")) argv[argc++] = next;
    return argc;
}

static Text said_of(const Model *model, const char *line) {
    const Streams streams = {.model = model};
    char words[100], *argv[20];
    Text said = {0};
    print_to(words, sizeof words, "median %s --model median.safetensors", line);
    DONE(median_command(split_line(words, argv), argv, &streams, &said, &error));
    bits = hash_bytes(bits, said.data, said.size);
    return said;
}

TEST(reports) {
    static const char *const lines[] = {"info", "tour --size 20", "weights", "circuits qk --csv",
                                        "circuits ov --csv", "explain --size 20 --csv"};
    while (next_model()) EACH(i, lines) {
        Text said = said_of(&w.model, lines[i]);
        text_free(&said);
    }
}

/* A value of the table that `activations` prints; the first head's, where there are heads. */
static double activation(const Text *table, size_t layer, const char *site, size_t query,
                         size_t index) {
    char key[100];
    const char *end;
    print_to(key, sizeof key, "\nblocks.%zu.%s,%zu,%s,%zu,%zu,", layer, site, layer,
             strstr(site, "attn.") ? "0" : "", query, index);
    const char *row = strstr(table->data, key);
    return CHECK(row != NULL, "no %s", key + 1) ? parse_double(row + strlen(key), &end) : 0;
}

/* A head's pattern is the softmax of its scores; what a layer adds makes the residual stream. */
static void check_layer_activations(const Text *table, size_t layer, size_t t) {
    double scores[8] = {0};
    FOR(s, t + 1) scores[s] = activation(table, layer, "attn.hook_attn_scores", t, s);
    naive_softmax(scores, scores, t + 1);
    FOR(s, w.T) NEAR(activation(table, layer, "attn.hook_pattern", t, s), scores[s], TOLERANCE);
    FOR(j, w.config.d_model) {
        double sum = activation(table, layer, "hook_resid_pre", t, j);
        sum += activation(table, layer, "hook_attn_out", t, j);
        if (w.config.d_mlp) sum += activation(table, layer, "hook_mlp_out", t, j);
        NEAR(activation(table, layer, "hook_resid_post", t, j), sum, 50 * TOLERANCE);
    }
}

/* Besides, the table ends with the logits of the last position. */
TEST(activations) {
    while (next_model()) {
        char line[80] = "activations";
        double naive[WIDE];
        const char *end;
        FOR(t, w.T) print_to(line + strlen(line), 4, " %u", (unsigned)w.lists[t]);
        Text table = said_of(&w.model, line);
        FOR(l, failure[0] ? 0 : w.L) FOR(t, w.T) check_layer_activations(&table, l, t);
        naive_logits(w.lists, naive);
        const char *row = table.data + table.size;
        for (size_t v = w.V; v-- > 0 && !failure[0];) {
            while (row[-1] != ',') row--;
            NEAR(parse_double(row, &end), naive[v], 50 * TOLERANCE);
            while (row[-1] != '\n') row--;
            row--;
        }
        text_free(&table);
    }
}

/* ---- The certificate ------------------------------------------------------------------------- */

/* Runs every possible list; cells (max_num, max_num, 2): by last number and median, how many are
 * right and wrong. */
static void run_all_lists(const Model *model, size_t n, uint64_t *cells) {
    const size_t V = model->config.max_num, T = model->config.seq_len;
    uint32_t *lists = indices(n * T, 1);
    Run run;
    if (!DONE(run_create(&run, &model->config, n, RUN_FORWARD, &error))) return;
    CHECK(run.bytes > (double)(n * V * sizeof *run.logits), "%.0f bytes: less than the logits",
          run.bytes);
    FOR(i, n)
    for (size_t t = 0, rest = i; t < T; t++, rest /= V) lists[i * T + t] = (uint32_t)(rest % V);
    model_forward(model, &run, lists, n, NULL);
    FOR(i, n) {
        const uint32_t median = naive_median(lists + i * T, T), last = lists[i * T + T - 1];
        cells[2 * (last * V + median) + (argmax(run.logits + i * V, V) != median)]++;
    }
    run_free(&run);
}

/* Does the certificate state nothing that running every list refutes? `complete`: it decides
 * all. */
static void check_certificate(const Model *model, uint64_t effort, int complete) {
    const size_t V = model->config.max_num;
    const CertifyOptions options = {.least = 0, .effort = effort};
    uint64_t *cells = (uint64_t *)take(2 * V * V, sizeof *cells);
    size_t lists = 1;
    Certificate c;
    FOR(i, model->config.seq_len) lists *= V;
    run_all_lists(model, lists, cells);
    if (!DONE(certify(model, &options, &c, &error))) return;
    EQUAL(c.lists, lists);
    EQUAL(c.right + c.wrong + c.undecided, lists);
    FOR(i, V * V) {
        const uint64_t *cell = c.cells[i], right = cells[2 * i], wrong = cells[2 * i + 1];
        CHECK(cell[0] <= right && cell[1] <= wrong && cell[0] + cell[1] + cell[2] == right + wrong,
              "last number %u, median %u: proven %u right, %u wrong; are %u, %u", (unsigned)(i / V),
              (unsigned)(i % V), (unsigned)cell[0], (unsigned)cell[1], (unsigned)right,
              (unsigned)wrong);
    }
    CHECK(!complete || c.undecided == 0, "%u lists undecided", (unsigned)c.undecided);
    /* Each last number has its share of the effort. */
    uint64_t decided = 0;
    FOR(m, V) decided += c.cells[(V - 1) * V + m][0] + c.cells[(V - 1) * V + m][1];
    CHECK(decided > 0, "nothing decided where the last number is %u", (unsigned)(V - 1));
    certificate_free(&c);
}

/* Trained a little, or not at all; in two cases logits are so great that rounding decides. */
TEST(certify) {
    static const struct {
        Config config;
        size_t steps;
        float far;
    } cases[] = {{{20, 3, 8, 8, 2, 1, 0, 1}, 40, 0},    {{6, 5, 16, 8, 1, 1, 0, 1}, 0, 0},
                 {{6, 5, 16, 8, 3, 1, 0, 2}, 300, 0},   {{6, 5, 16, 8, 1, 1, 0, 0}, 40, 0},
                 {{10, 5, 16, 16, 1, 1, 0, 1}, 300, 0}, {{10, 5, 12, 4, 3, 1, 0, 1}, 40, 0},
                 {{4, 7, 16, 8, 1, 1, 0, 1}, 20, 0},    {{4, 7, 16, 8, 3, 1, 0, 0}, 0, 0},
                 {{6, 5, 16, 8, 1, 1, 0, 1}, 40, 1e4f}, {{6, 5, 8, 8, 2, 1, 0, 0}, 40, 1e5f}};
    FOR(k, LENGTH(cases)) {
        Recipe r = recipe_default();
        Trainer t;
        r.steps = 300;
        r.batch_size = 64;
        r.valset_size = 10;
        r.warmup = 0;
        r.cosine = 0;
        r.hard = 0;
        r.balanced = 0;
        if (!DONE(trainer_create(&t, &r, &cases[k].config, NULL, &error))) return;
        FOR(i, cases[k].steps) trainer_step(&t);
        FOR(v, cases[k].config.max_num) t.model.weights.b_U[v] += cases[k].far;
        at("case %u", (unsigned)k);
        check_certificate(&t.model, 1000, 1);
        check_certificate(&t.model, 4, 0);
        trainer_free(&t);
        release();
    }
}

/* Biases are tuned until lists of small networks tie, so that every rounding of the table
 * counts; where biases are great, those of the logits. */
TEST(certify_ties) {
    FOR(k, 300) {
        const Config config = {2 + k % 2, 3, 2 + k % 3, 1 + k % 2, 1, 1, 0, k % 3};
        Model model;
        Run run;
        if (!DONE(model_create(&model, &config, &error))) return;
        DONE(run_create(&run, &config, 1, RUN_FORWARD, &error));
        FOR(i, model.n_params) model.params[i] = 2 * uniform();
        FOR(v, k / 6 % 2 ? config.max_num : 0) model.weights.b_U[v] += 4096;
        FOR(round, 4) {
            const size_t V = config.max_num, v = (k + round) % V;
            const uint32_t list[3] = {(uint32_t)v, (uint32_t)(k % V),
                                      (uint32_t)((k / 2 + round) % V)};
            const uint32_t m = naive_median(list, 3);
            model_forward(&model, &run, list, 1, NULL);
            model.weights.b_U[v] =
                f32((double)model.weights.b_U[v] + run.logits[m] - run.logits[v]);
            at("network %u, round %u", (unsigned)k, (unsigned)round);
            check_certificate(&model, 1000, 0);
        }
        run_free(&run);
        model_free(&model);
        release();
    }
}

/* Heads add less than half a bit to 8192, 64 values after 64, and every time it is lost: nearly
 * 20 bits in all, while the logits differ by half a bit. */
TEST(certify_lost_bits) {
    const Config config = {2, 3, 1, 320, 8, 1, 0, NORMALIZATION_NONE};
    const double bit = 0.0009765625; /* of 8192 */
    Model model;
    if (!DONE(model_create(&model, &config, &error))) return;
    const LayerWeights *layer = model.weights.layers;
    FOR(i, 3) model.weights.W_pos[i] = 8192;
    FOR(i, 8 * 320) {
        layer->b_V[i] = 1;
        layer->W_O[i] = f32(0.49 * bit / 64);
    }
    model.weights.W_U[1] = 1;
    model.weights.b_U[1] = f32(-8192 - bit);
    check_certificate(&model, 1000, 1);
    model_free(&model);
}

/* 2^63 lists; and what no proof can be of. */
TEST(certify_limits) {
    static const struct {
        Config config;
        float weight; /* of all parameters */
        const char *refusal;
    } cases[] = {
        {{2, 63, 2, 1, 1, 1, 0, 1}, 0.5f, NULL},
        {{6, 5, 8, 8, 1, 2, 0, 1}, 1, "one layer"},
        {{6, 5, 8, 8, 1, 1, 4, 1}, 1, "one layer"},
        {{65536, 5, 1, 1, 1, 1, 0, 1}, 1, "64 bits"},
        {{65536, 3, 1, 1, 1, 1, 0, 1}, 1, "--effort"},
        {{3, 3, 2, 2, 1, 1, 0, 1}, 1e30f, "bounds hold below"},
        {{3, 3, 2, 2, 1, 1, 0, 1}, 3e38f, "no proof"},
        {{2, 3, 1, 193, 4096, 1, 0, 0}, 0.01f, "16398 roundings in a row"},
    };
    FOR(k, LENGTH(cases)) {
        const CertifyOptions options = {.least = 0, .effort = 100};
        Certificate c;
        Model model;
        if (!DONE(model_create(&model, &cases[k].config, &error))) return;
        FOR(i, model.n_params) model.params[i] = cases[k].weight * uniform();
        at("case %u", (unsigned)k);
        const int done = certify(&model, &options, &c, &error);
        CHECK(done == !cases[k].refusal, "%s", done ? "certified what it cannot" : error.text);
        CHECK(done || strstr(error.text, cases[k].refusal), "%s", error.text);
        if (done) {
            CHECK(c.lists == UINT64_C(1) << 63, "%.0f lists", (double)c.lists);
            CHECK(c.right + c.wrong + c.undecided == c.lists, "the counts don't add up");
            certificate_free(&c);
        }
        model_free(&model);
    }
    const CertifyOptions options = {.least = 0, .effort = 100};
    const Config config = {3, 3, 2, 2, 1, 1, 0, 1};
    Certificate c;
    Model model;
    at("one great number");
    if (!DONE(model_create(&model, &config, &error))) return;
    model.weights.W_E[0] = 0x1p100f;
    CHECK(!certify(&model, &options, &c, &error), "certified what it cannot");
    CHECK(strstr(error.text, "the residual stream") != NULL, "%s", error.text);
    model.weights.W_E[0] = 0;
    at("infinity times a weight of 0");
    model.weights.ln_final_w[1] = 3e38f;
    CHECK(!certify(&model, &options, &c, &error), "certified what it cannot");
    CHECK(strstr(error.text, "ln_final") != NULL, "%s", error.text);
    model_free(&model);
}

/* ---- Training and files ---------------------------------------------------------------------- */

#define FILE_NAME "median-test.tmp"
#define STATE_NAME "median-test-state.tmp"
#define SAYS(text, part) CHECK(strstr(text, part) != NULL, "expected '%s', got '%s'", part, text)

static const Config SMALL = {10, 5, 16, 16, 1, 1, 0, 1}, NARROW = {10, 3, 4, 4, 1, 1, 0, 1};

/* With fixed lists, validated; or with fresh ones, and so many that the collection of hard lists
 * is full in the end. */
static void start_training(Trainer *t, int fresh) {
    Recipe r = recipe_original();
    r.trainset_size = fresh ? 0 : 70;
    r.valset_size = 10;
    r.batch_size = fresh ? 1000 : 16;
    r.steps = 13;
    r.keep_best = !fresh;
    r.cosine = (size_t)fresh;
    r.balanced = 0.5f;
    r.hard = 0.5f;
    DONE(trainer_create(t, &r, fresh ? &NARROW : &SMALL, NULL, &error));
    CHECK(same(trainer_result(t)->params, t->model.params, t->model.n_params),
          "at first, the best is another");
    /* A generator without a number left is a case of its own. */
    mt_seed(&t->data, 1);
    mt_seed(&t->order_mt, 1);
}

static void make_state(int fresh) {
    Trainer t;
    start_training(&t, fresh);
    FOR(i, 6) trainer_step(&t);
    DONE(trainer_save(&t, STATE_NAME, &error));
    trainer_free(&t);
}

/* Of the losses and of the weights in the end. Interrupted: saved, forgotten and resumed before
 * every step. */
static uint64_t hash_of_training(int fresh, int interrupted) {
    uint64_t hash = bits;
    Trainer t;
    start_training(&t, fresh);
    while (t.step < t.total_steps) {
        const int validated = t.validated;
        if (interrupted) {
            DONE(trainer_save(&t, FILE_NAME, &error));
            trainer_free(&t);
            if (!DONE(trainer_resume(&t, FILE_NAME, &error))) return 0;
        }
        EQUAL(t.validated, validated);
        trainer_step(&t);
        const float told[] = {f32(t.loss), f32(t.accuracy)};
        hash = hash_floats(hash, told, 2);
    }
    hash = hash_floats(hash, trainer_result(&t)->params, t.model.n_params);
    t.v.params[0] = HUGE_VALF;
    CHECK(!trainer_save(&t, FILE_NAME, &error), "infinity is saved");
    SAYS(error.text, "no longer finite");
    trainer_free(&t);
    return hash;
}

TEST(resume) {
    FOR(fresh, 2) {
        at("fresh: %zu", fresh);
        const uint64_t plain = hash_of_training((int)fresh, 0);
        CHECK(hash_of_training((int)fresh, 1) == plain, "other bits than without interruption");
        bits = plain;
    }
}

/* A bound is taken, and printed as it was given. What lies beyond it is not, nor does a model come
 * of it. */
static void check_bound(const Setting *s, double bound, int outwards) {
    const size_t beyond = (size_t)bound + (size_t)outwards;
    Settings all = {config_default(), recipe_default()};
    char text[40];
    const char *end;
    Model model;
    at("%s", s->name);
    print_to(text, sizeof text, "%.10g", bound + outwards);
    CHECK(!setting_parse(s, &all, text, &error), "%s too", text);
    print_to(text, sizeof text, "%.10g", bound);
    DONE(setting_parse(s, &all, text, &error));
    setting_print(s, &all, text, sizeof text);
    CHECK(parse_double(text, &end) == bound, "%.10g is printed as %s", bound, text);
    bits = hash_bytes(bits, text, strlen(text));
    if (s->offset >= sizeof all.config) return;
    memcpy((char *)&all + s->offset, &beyond, sizeof beyond);
    CHECK(!model_create(&model, &all.config, &error) && !model.params,
          "an impossible model is made");
}

/* The bounds themselves are in the second suite. */
TEST(settings) {
    Run run;
    FOR(i, n_settings) {
        if (settings[i].choices) continue;
        check_bound(&settings[i], settings[i].min, -1);
        check_bound(&settings[i], settings[i].max, 2);
    }
    CHECK(!run_create(&run, &SMALL, SIZE_MAX / 16, RUN_GRADIENTS, &error) && !run.memory,
          "an impossible run is made");
    FOR(missing, 2) { /* a recipe has no text: trainer_create itself must see what it lacks */
        static const char *const what[] = {"at least one list", "need --steps"};
        Recipe r = recipe_default();
        Trainer t;
        *(missing ? &r.steps : &r.batch_size) = 0;
        CHECK(!trainer_create(&t, &r, &SMALL, NULL, &error), "it is taken");
        SAYS(error.text, what[missing]);
    }
}

/* A Text, and an array that has room for all, or not. */
TENSOR_PRINTF(2, 3) static void check_format(const char *expected, const char *format, ...) {
    Text text = {0};
    char array[64], cut[4];
    va_list args;
    va_start(args, format);
    text_add_args(&text, format, args);
    va_end(args);
    CHECK(text.data && strcmp(text.data, expected) == 0, "%s gives '%s', should be '%s'", format,
          text.data, expected);
    EQUAL(text.size, strlen(expected));
    EQUAL(print_to(array, sizeof array, "%s", text.data), strlen(expected) < sizeof array);
    CHECK(strncmp(array, expected, sizeof array - 1) == 0, "cut to '%s'", array);
    EQUAL(print_to(cut, sizeof cut, "%s%s", text.data, "x"), strlen(expected) < 3);
    EQUAL(strlen(cut), smaller(3, strlen(expected) + 1));
    text_free(&text);
}

TEST(text_add) {
    static const char *const locales[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "German_Germany.1252", "C"};
    const uint64_t most = UINT64_MAX;
    Text text = {0};
    check_format("7 -7 +7 +0|0", "%d %d %+d %+d|%u", 7, -7, 7, 0, 0u);
    check_format("-2147483648 4294967295", "%d %u", INT32_MIN, UINT32_MAX);
    check_format("18446744073709551615 ffffffffffffffff 0", "%" PRIu64 " %" PRIx64 " %zu", most,
                 most, (size_t)0);
    check_format("00000000000000ff|  ff|ff  |", "%016" PRIx64 "|%4x|%-4x|", (uint64_t)255, 255u,
                 255u);
    check_format("    7|7    |00007|   -7|   +7|", "%5d|%-5d|%05d|%*d|%+5d|", 7, 7, 7, 5, -7, 7);
    check_format("+7   |7    |1.5   |+1.5  |", "%-+5d|%-*d|%-6.3g|%+-6.3g|", 7, 5, 7, 1.5, 1.5);
    check_format("abc|ab|ab|   ab|ab   ||", "%s|%.2s|%.*s|%5.2s|%-5.2s|%.0s|", "abc", "abc", 2,
                 "abc", "abc", "abc", "abc");
    check_format("100 % x%", "%d %% %c%%", 100, 'x');
    check_format("1.500000 1.5 2 1.5", "%f %g %.0f %.3g", 1.5, 1.5, 1.5, 1.5);
    check_format("+1.50|  -1.5|   1.5|1.5   |inf|+nan", "%+.2f|%6.1f|%6.1f|%-6.1f|%f|%+g", 1.5,
                 -1.5, 1.5, 1.5, HUGE_VAL, HUGE_VAL - HUGE_VAL);
    EACH(i, locales) { /* those with a decimal comma, where they are installed */
        const char *end;
        setlocale(LC_ALL, locales[i]);
        check_format("1.500 1.5e+09 1.5", "%.3f %.2g %g", 1.5, 1.5e9, 1.5);
        EQUAL(parse_double("50.32,7", &end), 50.32);
        EQUAL(*end, ',');
    }
    text_add(&text, "%d%5000d", 7, 1); /* longer than any buffer */
    EQUAL(text.size, 5001);
    CHECK(text.data[0] == '7' && text.data[1] == ' ' && text.data[5000] == '1', "got %.30s",
          text.data);
    text_free(&text);
}

/* The file at hand: its header, in which ' stands for ", and the numbers. */
static Text header, numbers;

static void write_parts(void) {
    Text text = {0};
    FOR(i, 8) text_add(&text, "%c", i < 2 ? (int)(header.size >> 8 * i & 255) : 0);
    FOR(i, header.size) text_bytes(&text, header.data[i] == '\'' ? "\"" : header.data + i, 1);
    text_bytes(&text, numbers.data, numbers.size);
    DONE(write_file(FILE_NAME, &text, &error));
    text_free(&text);
}

static void forget_parts(void) {
    text_free(&header);
    text_free(&numbers);
}

static void read_state(void) {
    static char bytes[1 << 18];
    FILE *f = fopen(STATE_NAME, "rb");
    const size_t size = f ? fread(bytes, 1, sizeof bytes, f) : 0;
    const size_t n = (unsigned char)bytes[0] + 256u * (unsigned char)bytes[1];
    if (f) fclose(f);
    FOR(i, n) if (bytes[8 + i] == '"') bytes[8 + i] = '\'';
    forget_parts();
    text_bytes(&header, bytes + 8, n);
    if (CHECK(size > 8 + n, "no state")) text_bytes(&numbers, bytes + 8 + n, size - 8 - n);
}

static void set_number(size_t at, size_t width, uint64_t word) {
    FOR(i, width) numbers.data[at + i] = (char)(word >> 8 * i & 255);
}

/* In the header `to` takes the place of `from`, or of everything if that is NULL; or tensor `from`
 * has the word @number:value. */
static void edit(const char *from, const char *to) {
    static char rest[1 << 14];
    char *place = from ? strstr(header.data, from) : header.data, *value;
    if (!CHECK(place != NULL, "%s is not in the header", from)) return;
    if (*to == '@') {
        const size_t first = strtoul(strstr(place, "data_offsets':[") + 15, NULL, 10);
        const size_t index = strtoul(to + 1, &value, 10);
        set_number(first + 4 * index, 4, strtoul(value + 1, NULL, 0));
        return;
    }
    print_to(rest, sizeof rest, "%s", from ? place + strlen(from) : "");
    header.size = (size_t)(place - header.data);
    text_add(&header, "%s%s", to, rest);
}

/* What is wrong with a training's state after such an edit. Each complaint is here once; .ci/cli
 * has more. */
#define A_HAS(parts) "{'a':{'dtype':'F64'," parts "}}"
#define AT(offsets) A_HAS("'shape':[1],'data_offsets':" offsets)
static const struct {
    const char *from, *to, *message;
} FAULTS[] = {
    {NULL, "[]", "bad header at byte 8: { expected, '[]"},
    {NULL, "{'__metadata__':{'a':'b'}}", "no tensor in it"},
    {NULL, "{} x", "the end expected, 'x"},
    {NULL, "{'a':{'dtype':'F", ", or } expected"},
    {NULL, "{'a", "the end of a name expected"},
    {NULL, "{'a'", ": expected"},
    {NULL, "{'a':{},}", "a name expected, '}"},
    {NULL, A_HAS("'shape':[0],'data_offsets':[0,0],'x':1"), "} expected, '\"x"},
    {NULL, "{'a':[[[[[[[[", ", or } expected"},
    {NULL, "{'a':{'dtype':'F99','shape':[1,],'data_offsets':[0,8]}}", "behind the last tensor"},
#if SIZE_MAX > 4294967295 /* elsewhere no size is that great */
    {NULL, A_HAS("'shape':[9999999999],'data_offsets':[0,79999999992]"),
     "out of memory: it claims 76293 MiB"},
#endif
    {NULL, AT("[8,0]"), "tensor a: no sound dtype"},
    {NULL, AT("[0,18446744073709551624]"), "a: no sound"},
    {NULL, AT("[0,8,9]"), "tensor a: no sound dtype"},
    {NULL, AT("[0,-8]"), "tensor a: no sound dtype"},
    {NULL, "{'a':{'dtype':F64,'shape':[1],'data_offsets':[0,8]}}", "tensor a: no sound dtype"},
    {NULL, A_HAS("'data_offsets':[0,8]"), "tensor a: no sound dtype"},
    {NULL, "{'a':1}", "{ expected, '1'"},
    {"'10'", "10", "max-num in __metadata__ is 10, must be a string"},
    {"'10'", "'9'", "the metadata says max-num 9, the tensors say 10"},
    {"'10'", "'\\u0031\\u0030'", "the metadata says max-num \\u0031\\u0030"},
    {"'10'", "'\xe9'", "the metadata says max-num ?, the tensors say 10"},
    {"'seq-len'", "'max-num'", "max-num stands twice in the header"},
    {"'pos_embed.W_pos'", "'embed.W_E'", "embed.W_E stands twice in the header"},
    {"'F32'", "'F99'", "tensor embed.W_E has the dtype F99, must be F32, F16, BF16 or F64"},
    {"'F32'", "'U32'", "tensor embed.W_E has the dtype U32"},
    {"'F32'", "'F64'", "tensor embed.W_E: its data_offsets do not fit its shape"},
    {"[10,16]", "[20,8]", "tensor pos_embed.W_pos is [5,16], the others ask for 5 x 8"},
    {"[10,16]", "[160]", "tensor embed.W_E is [160], must have 2 dimensions"},
    {"[10,16]", "[1e1]", "tensor embed.W_E is [1e1], must have 2 dimensions"},
    {"[1,16,16]", "[16,16]", "tensor blocks.0.attn.W_Q is [16,16], must have 3 dimensions"},
    {"[5,16]", "[6,16]", "pos_embed.W_pos [6,16], blocks.0.attn.W_Q [1,16,16]: Length must be odd"},
    {"embed.W_pos", "embed.W_x", "W_pos is missing among 24, such as state.hard and state.order"},
    {"'state.m'", "'state.x'", "not a training's state; --init starts"},
    {"'state.v'", "'state.x'", "tensor state.v is missing"},
    {"'state.m'", "'b_m'", "b_m has no place in the model"},
    {"'U32'", "'I32'", "tensor state.data_mt has the dtype I32, must be U32"},
    {"'warmup'", "'x'", "the metadata lacks warmup"},
    {"'lr':'0.003'", "'lr':'-1'", "--lr is '-1'"},
    {"'valset-size':'10'", "'valset-size':'0'", "state.words is damaged"},
    {"embed.W_E", "@159:0xff800000", "embed.W_E holds NaN or, as a float, infinity at number 159"},
    {"'state.order'", "@0:70", "state.order is damaged"},
    {"'state.order'", "@69:8", "a list stands in it twice"},
    {"state.v", "@5:0xb3000000", "a square is negative"},
    {"state.words", "@0:14", "state.words is damaged"},
    {"state.words", "@1:2", "state.words is damaged"},
    {"state.words", "@2:11", "state.words is damaged"},
    {"state.words", "@3:625", "state.words is damaged"},
    {"state.words", "@4:625", "state.words is damaged"},
    {"state.words", "@5:1", "state.words is damaged"},
};

static int load(Model *model, const char *path) {
    return model_load(model, path, NORMALIZATION_FROM_FILE, &error);
}

/* To resume from the file must fail with that message; then the file is sound again. */
static void expect_fault(const char *message) {
    Trainer t;
    write_parts();
    if (!CHECK(!trainer_resume(&t, FILE_NAME, &error), "it is taken")) trainer_free(&t);
    else SAYS(error.text, message);
    read_state();
}

TEST(faults) {
    static const char *const shapes[] = {"data_mt':{'dtype':'U32','shape':[624]",
                                         "order_mt':{'dtype':'U32','shape':[624]",
                                         "words':{'dtype':'U32','shape':[6]"};
    Model model;
    make_state(0);
    read_state();
    EACH(i, FAULTS) {
        at("%s -> %s", FAULTS[i].from ? FAULTS[i].from : "the header", FAULTS[i].to);
        edit(FAULTS[i].from, FAULTS[i].to);
        expect_fault(FAULTS[i].message);
    }
    at("the sound file");
    DONE(load(&model, STATE_NAME));
    CHECK(!*model.remarks[0] && !*model.remarks[1], "it gets a remark: %s", model.remarks[1]);
    model_free(&model);
    EQUAL(header.size % 8, 0);
    EACH(i, shapes) SAYS(header.data, shapes[i]);
    at("its length");
    numbers.size--;
    expect_fault("cut off: 1 bytes are missing");
    text_add(&numbers, "x");
    expect_fault("something stands behind the last tensor");
    make_state(1);
    read_state();
    edit("state.hard", "@0:10");
    expect_fault("state.hard is damaged");
    forget_parts();
}

/* Files that are no checkpoints, by how they begin; and none at all. */
TEST(strangers) {
    static const struct {
        const char *begin, *message;
    } files[] = {
        {"", "it is empty; `median train` makes"},
        {"PK\3\4 and so on", "a ZIP archive, as torch.save writes; README shows"},
        {"\x80\2}q\1(X and so on", "a pickle"},
        {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; `git lfs pull`"},
        {"<!DOCTYPE html>", "an HTML page"},
        {"{}", "JSON"},
        {"\x1f\x8b\10\10 and so on", "gunzip"},
        {"1234567", "its first bytes are no header's length"},
        {"12345678", "its first bytes are no header's length"},
    };
    Model model;
    EACH(i, files) {
        Text text = {0};
        at("%.10s", files[i].begin);
        text_add(&text, "%s", files[i].begin);
        DONE(write_file(FILE_NAME, &text, &error));
        CHECK(!load(&model, FILE_NAME), "it is taken");
        SAYS(error.text, files[i].message);
        text_free(&text);
    }
    at("no file");
    CHECK(!load(&model, "no/such"), "it is there");
    SAYS(error.text, "no/such: ");
    SAYS(error.text, "--model FILE");
}

/* A file of another program: all tensors of a model, each name behind a prefix, each number the
 * same bits; then `more`, further members of the header. */
static void make_foreign(const Config *config, const char *prefix, const char *dtype, size_t width,
                         uint64_t word, const char *more) {
    Model model;
    size_t end = 0;
    forget_parts();
    DONE(model_create(&model, config, &error));
    FOR(i, model.n_tensors) {
        const Tensor *t = &model.tensors[i];
        text_add(&header, "%s\n'%s%s' : { 'shape' :", i ? "," : "{", prefix, t->name);
        FOR(k, t->n_dims) text_add(&header, "%s %zu", k ? " ," : "[", t->shape[k]);
        text_add(&header, " ] , 'dtype':'%s', 'data_offsets' : [%zu", dtype, end);
        end += t->size * width;
        text_add(&header, ", %zu ] }", end);
    }
    model_free(&model);
    text_add(&header, "%s } ", more);
    text_add(&numbers, "%*s", (int)end, "");
    for (size_t at = 0; at < end; at += width) set_number(at, width, word);
    write_parts();
    forget_parts();
}

/* Numbers of every type, and the float that is read; HUGE_VALF: the file is refused. */
TEST(number_types) {
    static const struct {
        const char *dtype;
        size_t width;
        uint64_t bits;
        float value;
    } words[] = {
        {"F32", 4, 0xc0490fdb, -0x1.921fb6p1f},
        {"F32", 4, 0x007fffff, 0},
        {"F32", 4, 0x7f7fffff, FLT_MAX},
        {"F32", 4, 0xffc00000, HUGE_VALF},
        {"F16", 2, 0x3c00, 1},
        {"F16", 2, 0xb555, -0x1.554p-2f},
        {"F16", 2, 0x7bff, 65504},
        {"F16", 2, 0x0400, 0x1p-14f},
        {"F16", 2, 0x83ff, -0x1.ff8p-15f},
        {"F16", 2, 0x0001, 0x1p-24f},
        {"F16", 2, 0x8000, 0},
        {"F16", 2, 0xfc00, HUGE_VALF},
        {"F16", 2, 0x7c01, HUGE_VALF},
        {"BF16", 2, 0xc049, -3.140625f},
        {"BF16", 2, 0x7f7f, 0x1.fep127f},
        {"BF16", 2, 0x007f, 0},
        {"BF16", 2, 0xffc0, HUGE_VALF},
        {"F64", 8, UINT64_C(0x3fd5555555555555), 0x1.555556p-2f},
        {"F64", 8, UINT64_C(0xc005bf0a8b145769), -0x1.5bf0a8p1f},
        {"F64", 8, UINT64_C(0x3690000000000000), 0},
        {"F64", 8, UINT64_C(0x47efffffefffffff), FLT_MAX},
        {"F64", 8, UINT64_C(0x47effffff0000000), HUGE_VALF},
        {"F64", 8, UINT64_C(0x7ff8000000000000), HUGE_VALF},
    };
    EACH(i, words) {
        Model model;
        at("%s %llx", words[i].dtype, (unsigned long long)words[i].bits);
        make_foreign(&NARROW, "", words[i].dtype, words[i].width, words[i].bits, "");
        const int good = load(&model, FILE_NAME);
        EQUAL(good, words[i].value < HUGE_VALF);
        if (!good) SAYS(error.text, "holds NaN or, as a float, infinity at number 0");
        FOR(k, good ? model.n_params : 0) EQUAL(model.params[k], words[i].value);
        model_free(&model);
    }
}

#define NOTE(key, value) ",'__metadata__':{'" key "':'" value "'}"
#define MORE(name, dtype) ",'" name "':{'dtype':'" dtype "','shape':[9],'data_offsets':[0,4]}"

/* What a file's further members and the caller's hint make of it, and what is remarked. */
TEST(foreign) {
    enum { NONE, LN, PRE, ANY, REFUSED };
    static const struct {
        int normalization; /* of the model whose tensors the file has */
        const char *prefix, *more;
        int hint, found;
        const char *said; /* in the error or in a remark; "": there is none */
    } files[] = {
        {LN, "", "", ANY, LN, ""},
        {LN, "_orig_mod.", "", ANY, LN, ""},
        {LN, "module.model.", MORE("module.model.blocks.0.attn.mask", "BOOL"), ANY, LN, ""},
        {LN, "m", "", ANY, REFUSED, "missing among 16, such as membed.W_E and munembed.b_U"},
        {LN, "", "", LN, LN, ""},
        {LN, "", "", NONE, REFUSED, "--normalization contradicts the file's ln_final.w"},
        {PRE, "", "", ANY, PRE, "say --normalization none"},
        {PRE, "", "", PRE, PRE, ""},
        {PRE, "", "", NONE, NONE, ""},
        {PRE, "", "", LN, REFUSED, "normalization is LN, but no tensor is an ln"},
        {PRE, "", NOTE("normalization", "LN"), ANY, REFUSED, "normalization is LNPre"},
        {PRE, "", NOTE("normalization", "LNPre"), ANY, PRE, ""},
        {PRE, "", NOTE("normalization", "none"), ANY, NONE, ""},
        {PRE, "", NOTE("normalization", "none"), PRE, REFUSED, "contradicts the file's none"},
        {PRE, "", NOTE("normalization", "RMS"), ANY, REFUSED, "RMS, the tensors say LNPre"},
        {LN, "", NOTE("normalization", "none"), ANY, REFUSED, "none, the tensors say LN"},
        {LN, "", NOTE("a", "b \\'} c"), ANY, LN, ""},
        {LN, "", NOTE("a key of more than 23 characters", "pt"), ANY, LN, ""},
        {LN, "", NOTE("max-num", "10"), ANY, LN, ""},
        {LN, "", MORE("blocks.0.attn.IGNORE", "F99"), ANY, LN, ""},
        {LN, "", MORE("attn.rotary_sin", "F99"), ANY, LN, "attn.rotary_sin is passed over"},
        {LN, "", MORE("mlp.W_gate", "F32"), ANY, REFUSED, "mlp.W_gate has no place"},
        {LN, "", MORE("mlp.b", "F32"), ANY, REFUSED, "mlp.b has no place"},
        {LN, "", MORE("attn.w_scale", "F32"), ANY, REFUSED, "w_scale has no place"},
    };
    Model model;
    EACH(i, files) {
        Config config = NARROW;
        at("file %zu", i);
        config.normalization = (size_t)files[i].normalization;
        make_foreign(&config, files[i].prefix, "F32", 4, 0x3f800000, files[i].more);
        const int good = model_load(&model, FILE_NAME, (size_t)files[i].hint, &error);
        const char *said = good ? model.remarks[*model.remarks[0] == 0] : error.text;
        EQUAL(good ? model.config.normalization : REFUSED, files[i].found);
        CHECK(strstr(said, files[i].said) && (*files[i].said || !*said), "got '%s'", said);
        if (good) EQUAL(model.n_params, model.params[0] * (float)model.n_params);
        model_free(&model);
    }
    Text many = {0};
    at("more metadata than are kept");
    FOR(i, 40) text_add(&many, "%s'%zu':'x'", i ? "," : ",'__metadata__':{", i);
    text_add(&many, "}");
    make_foreign(&NARROW, "", "F32", 4, 0, many.data);
    DONE(load(&model, FILE_NAME));
    EQUAL(model.n_notes, MAX_NOTES);
    CHECK(!*model.remarks[0] && !*model.remarks[1], "it gets a remark: %s", model.remarks[0]);
    model_free(&model);
    text_free(&many);
}

/* ---- The explanation ------------------------------------------------------------------------- */

/* Networks whose mechanism is known, because it is built here, most of them from a table: what each
 * number adds to each logit. */
enum {
    KNOWN_V = 12,
    KNOWN_T = 7
};

typedef enum {
    BY_TABLE,
    BY_MLP,
    TWO_HEADS,
    TWO_HEADS_BY_POSITION,
    BY_LAST,
    UNTRAINED,
    TRAINED
} Mechanism;

/* claims: what `explain` must say, y or N in its order: |x - m|; not (x - m)^2; no minority
 * outweighs a majority; votes balance at the median; the answers are medians; the logits are sums
 * over the numbers; also at one scale; also with equal votes; also a S + c; the logits are
 * -a sum |x - m|. w: the ladder is climbed on wrong lists, too. */
typedef struct {
    const char *name;
    Mechanism mechanism;
    double power, offset; /* the table is -|x - m|^power; offset votes go up at every step */
    const char *claims;
} Known;

static const Known KNOWN[] = {
    {"the median", BY_TABLE, 1, 0, "yyyyyyyyyy"},
    {"the third smallest", BY_TABLE, 1, -2, "yyyNNyyyyNw"},
    {"the second smallest", BY_TABLE, 1, -4, "yyyNNyyyyNw"},
    {"the third greatest", BY_TABLE, 1, 2, "yyyNNyyyyNw"},
    {"the mean", BY_TABLE, 2, 0, "yNyNNyyNNNw"},
    {"between median and mean", BY_TABLE, 1.25, 0, "yyyNNyyNNyw"},
    {"near the mid-range", BY_TABLE, 12, 0, "NNyNNyyNNN"},
    {"the least sum of roots", BY_TABLE, 0.5, 0, "yyyNNyyNNNw"},
    {"the most frequent", BY_TABLE, 0.01, 0, "NNyNNyyNNNw"},
    {"the last number", BY_LAST, 0, 0, "NNNNNyyyNNw"},
    {"an MLP does it", BY_MLP, 1, 0, "yyyyyNyyyN"},
    {"an untrained network", UNTRAINED, 0, 0, "NNNNNNNNNNw"},
    {"a trained network", TRAINED, 0, 0, "yyyyyyyyyy"},
    {"two heads, each for half the numbers", TWO_HEADS, 1, 0, "yyyyyyyyyy"},
    {"two heads, each for half the positions", TWO_HEADS_BY_POSITION, 1, 0, "yyyyyyyyyy"},
};

static float entry(const Known *known, size_t x, size_t m) {
    return x == m ? 0.0f : (float)-pow(fabs((double)x - (double)m), known->power);
}

/* Entry i of the j-th of d - 1 orthonormal vectors at right angles to (1, ..., 1). */
static float direction(size_t j, size_t i, size_t d) {
    const double turns = (double)(j + 1) * ((double)i + 0.5) / (double)d;
    return (float)(sqrt(2.0 / (double)d) * cos(acos(-1.0) * turns));
}

static int make_from_table(Model *m, const Known *known) {
    const size_t V = KNOWN_V, n = V + 1;
    float *from = take(V * n, sizeof *from), *to = take(n * V, sizeof *to);
    FOR(x, V) {
        from[x * n + x + 1] = 1;
        FOR(v, V) to[(x + 1) * V + v] = entry(known, x, v);
        to[x] = (float)(known->offset / KNOWN_T * (double)x);
    }
    return network_of_sums(m, V, KNOWN_T, n, from, to, &error);
}

/* The head counts the numbers, each in a direction of its own; the logits read these counts by the
 * table, but they are so weak that it makes no difference. The MLP has a unit for each count, and
 * writes its row of the table, many times larger, in directions for the logits. */
static void build_mlp(Model *m, const Known *known) {
    const size_t V = KNOWN_V, d = m->config.d_model;
    const LayerWeights *layer = m->weights.layers;
    FOR(i, d) FOR(x, V) {
        const float count = direction(V + x, i, d);
        layer->W_V[i * V + x] = direction(x, i, d);
        layer->W_O[x * d + i] = 1e-3f * count;
        layer->W_in[i * V + x] = count;
        FOR(v, V) {
            const float logit = direction(2 * V + v, i, d);
            layer->W_out[x * d + i] += 1e6f * entry(known, x, v) * logit;
            m->weights.W_U[i * V + v] += entry(known, x, v) * count + (x == v ? logit : 0.0f);
        }
    }
}

/* Each head looks at all positions and sees every other number, or sees all numbers at every other
 * position. */
static void build_two_heads(Model *m, const Known *known) {
    const size_t V = KNOWN_V, T = KNOWN_T, d = m->config.d_model;
    const LayerWeights *layer = m->weights.layers;
    const int by_position = known->mechanism == TWO_HEADS_BY_POSITION;
    FOR(i, d) FOR(x, V) {
        FOR(v, V) m->weights.W_U[i * V + v] += entry(known, x, v) * direction(x, i, d);
        FOR(h, 2) {
            const size_t seen = h ? T / 2 : T - T / 2;
            const float weight = by_position ? 1e6f * (float)seen : 1e6f;
            if (!by_position && x % 2 != h) continue;
            layer->W_V[(h * d + i) * V + x] = direction(x, i, d);
            layer->W_O[(h * V + x) * d + i] = weight * direction(x, i, d);
        }
    }
    FOR(i, d) FOR(t, T) m->weights.W_pos[t * d + i] = direction(V, i, d) * (t % 2 ? -1.0f : 1.0f);
    FOR(h, 2) FOR(i, d) {
        layer->b_Q[h * V] = by_position ? 100.0f : 0.0f;
        layer->W_K[(h * d + i) * V] = direction(V, i, d) * (h ? -1.0f : 1.0f);
    }
}

/* A network as it is at first, or after a short training. */
static int make_trained(Model *m, size_t steps) {
    Config config = config_default();
    config.max_num = 10;
    config.seq_len = 5;
    config.d_model = config.d_head = 16;
    Recipe r = recipe_default();
    Trainer t;
    r.steps = 600;
    r.warmup = 50;
    r.batch_size = 128;
    r.valset_size = 0;
    if (!DONE(trainer_create(&t, &r, &config, NULL, &error))) return 0;
    FOR(i, steps) trainer_step(&t);
    *m = t.model;
    memset(&t.model, 0, sizeof t.model);
    trainer_free(&t);
    return 1;
}

static int make_known(Model *m, const Known *known) {
    const size_t V = KNOWN_V, d = 3 * V + 2;
    const int two = known->mechanism == TWO_HEADS || known->mechanism == TWO_HEADS_BY_POSITION;
    const int mlp = known->mechanism == BY_MLP;
    Config config = config_default();
    config.max_num = config.d_head = V;
    config.seq_len = KNOWN_T;
    config.d_model = d;
    config.n_heads = two ? 2 : 1;
    config.d_mlp = mlp ? V : 0;
    if (known->mechanism == BY_TABLE) return make_from_table(m, known);
    if (known->mechanism == TRAINED) return make_trained(m, 600);
    if (known->mechanism == UNTRAINED) return make_trained(m, 0);
    if (!model_create(m, &config, &error)) return 0;
    const LayerWeights *layer = m->weights.layers;
    FOR(i, d) {
        layer->ln1_w[i] = m->weights.ln_final_w[i] = 1;
        if (layer->ln2_w) layer->ln2_w[i] = 1;
        FOR(x, V) m->weights.W_E[x * d + i] = direction(x, i, d);
        FOR(v, known->mechanism == BY_LAST ? V : 0) m->weights.W_U[i * V + v] = direction(v, i, d);
    }
    if (mlp) build_mlp(m, known);
    if (two) build_two_heads(m, known);
    return 1;
}

TEST(explain) {
    FOR(k, LENGTH(KNOWN)) {
        const Known *known = &KNOWN[k];
        char claims[20] = "";
        size_t n = 0;
        Model m = {0};
        at("%s", known->name);
        if (!DONE(make_known(&m, known))) return;
        Text said = said_of(&m, "explain --csv --size 2000");
        for (const char *at = said.data; n < 18 && (at = strstr(at, ",holds,")) != NULL; at++)
            claims[n++] = at[7];
        if (strstr(said.data, "ladder,18,lists,wrong\n")) claims[n] = 'w';
        CHECK(strcmp(claims, known->claims) == 0, "expected %s, got %s", known->claims, claims);
        CHECK(!claims[n] || strstr(said.data, "ladder,18,right,0\n"), "a wrong list is right");
        text_free(&said);
        model_free(&m);
        release();
    }
}

/* A majority of one has the votes that `construct` promises, and certify proves the result. One
 * direction less is too few for the first. */
TEST(construct) {
    static const struct {
        size_t max_num, seq_len, d_model;
        double slack;
    } cases[] = {{50, 7, 46, 0.0819}, {50, 7, 51, 1}, {20, 5, 21, 1}, {10, 9, 11, 1},
                 {2, 3, 3, 1},        {10, 3, 14, 1}, {50, 7, 45, -0.0737}};
    FOR(k, LENGTH(cases)) {
        const size_t V = cases[k].max_num, T = cases[k].seq_len, d = cases[k].d_model;
        const CertifyOptions options = {.effort = 20000};
        Certificate c;
        Model m = {0};
        double slack = 0;
        at("%u numbers, lists of %u, d_model %u", (unsigned)V, (unsigned)T, (unsigned)d);
        const int done = construct(&m, V, T, d, &slack, &error);
        NEAR(slack, cases[k].slack, 1e-4);
        CHECK(done == (slack > 0) && done == (m.params != NULL), "%s model", done ? "a" : "no");
        if (done && DONE(certify(&m, &options, &c, &error))) {
            EQUAL(c.right, c.lists);
            certificate_free(&c);
        }
        model_free(&m);
    }
}

/* ---- The command line ------------------------------------------------------------------------ */

/* Models: the usual kind, trained well; one with everything that a model can have; one of zeros;
 * one of numbers that are too great; one that was trained on uniform lists of seed 5; one that was
 * constructed, for so many numbers that maps of 40 columns share characters. And a training's
 * state. */
#define A "median-test-a.tmp"
#define B "median-test-b.tmp"
#define C "median-test-c.tmp"
#define D "median-test-d.tmp"
#define E "median-test-e.tmp"
#define F "median-test-f.tmp"
#define LOG_NAME "median-test-log.tmp"
#define IN_NAME "median-test-in.tmp"
#define OUT_NAME "median-test-out.tmp"
#define TINY "train --seq-len 5 --d-model 8 --d-head 8 --valset-size 50 --batch-size 32 "
#define TO_FILE " --out " FILE_NAME

/* Command lines; behind '<' stands the input, with / for the end of a line. A '*' at the end
 * repeats the two characters before it 10000 times. And what the output or the error says, or the
 * hash of the output. */
enum { REPEATED = 10000 };
typedef struct {
    const char *line, *said;
} Line;

static const Line MAKE[] = {
    {TINY "--max-num 10 --steps 1500 --warmup 20 --out " A, "1500 steps"},
    {TINY "--preset original --max-num 19 --trainset-size 200 --epochs 8 --balanced 0.3 "
          "--no-shuffle --n-layers 2 --n-heads 2 --d-mlp 6 --normalization none "
          "--weight-decay 0.01 --log " LOG_NAME " --out " B,
     "steps"},
    {TINY "--max-num 10 --steps 2 --balanced 0 --seed 5 --out " E, "2 steps"},
    {"construct --max-num 33 --seq-len 3 --out " F, "at least 1.0000"},
};

static const Line DONE_ON_BOTH[] = {
    {"eval --size 500", "dcc30ce8de8fb8ef"},
    {"eval --size 500 --seed 3 --csv", "a3e68e6b929af962"},
    {"predict 1 2 3 4 5", "d6d016924ed2118f"},
    {"predict --logits 9 0 9 -0 5", "fe2f0db35d2c3287"},
    {"predict < 1 2 3 4 5// 5,4,3,2,1 /01 02 03 04 05", "fb1fc8c8fc873b4e"},
    {"attention --size 20", "03d8c1f8eee5d0df"},
    {"attention --size 20 --csv", "d53355364a6bdcb2"},
    {"attention --color --size 9 1 2 3 4 5", "dbe6cbf77127268e"},
    {"circuits qk", "f3c85c6a80b82fc2"},
    {"circuits qk --csv --raw --query-pos 1 --key-pos 2", "df42d1eba6a2dffa"},
    {"circuits qk --query-pos 1 --width 40", "af40f09ef88911a2"},
    {"circuits ov --head 0.0 --key-pos 0", "19807be8ab13f5ff"},
    {"circuits ov --raw --color", "049ab7378ab772cb"},
    {"weights --csv", "273ce562952a49c9"},
    {"ablate --size 20", "6854ad2f6098b440"},
    {"ablate --size 20 --csv --kind resample --head 0.0 --positions 0,4", "4eb6a078ec049c2b"},
    {"ablate --size 20 --kind zero --layer 0", "7a27044ee42b6224"},
    {"ablate --size 20 --positions 4", "c2695ac180701135"},
    {"attribute", "2ce1676aafd409ed"},
    {"attribute --csv 9 1 8 2 7", "39fe7b3e3c71b855"},
    {"patch", "97b2abad00497c69"},
    {"patch --csv 1 2 3 4 5 1 2 9 4 5", "c4ca7ecee1b09a24"},
    {"explain --size 300", "b1af1ba6792f2a6f"},
    {"explain --size 1100 --csv", "263536687a848d00"},
    {"predict 1,2,3,4 5|x", "d6d016924ed2118f"},
    {"predict --csv 1 2 3 4 5", "6d57ff5bc4f3f4c1"},
    {"predict --csv < 1 2 3 4 5 | 3/ 5,4,3,2,1|", "38d53fdd44de389e"},
    {"attention --csv 1 2 3 4 5", "d2144ddb26680a3b"},
    {"activations 1 2 3 4 5", "957d23cc08424bc4"},
    {"circuits ov --color --no-color --width 60", "b55500fd8bf7f264"},
    {"tour --size 50 --width 60", "8a92b6a06e28c6ef"},
};

static const Line DONE_ON_A[] = {
    {"attention --csv --size 9", "layer,head,by,index,mean,deviation\n"},
    {"activations --csv 1 2 3 4 5", "site,layer,head,position,index,value\n"},
    {"predict --csv < \xef\xbb\xbf\061,2,3,4,5", "1 2 3 4 5,"},
    {"tour --size 600", "over 512 lists of seed"},
    {"certify", "236dee147869c023"},
    {"certify --effort 1000000", "236dee147869c023"},
    {"certify --csv", "f9b43d89912b9a1f"},
    {"circuits qk --raw", "7659436447deda5a"},
    {"explain --size 9 --seed 9", "Verdict"},
};

static const Line DONE_ON_B[] = {
    {"ablate --csv --size 9 --head 1.1", "\n1,1,all,mean,"},
    {"eval --size 9 --seed 23", "alerts"},
    {"ablate --size 9 --csv --part mlp --positions 0", "172015bc72ed4ce2"},
    {"ablate --size 9 --head 0.0,1.1", "ac090fcad9a08aa1"},
    {"ablate --size 9 --part attn --layer 0 --positions 1", "7b02a888e6d8f51b"},
    {"ablate --size 9 --csv --part mlp --layer 0,1 --head 1.1", "10ec980a643d3f29"},
};

static const Line DONE_ON_C[] = {
    {"info", "dcf5ba300b373902"},
    {"tour --size 20", "ffbfa9fc431b1211"},
    {"weights", "62cae145a88b1bcd"},
    {"explain --csv --size 5", "ceea1c371071f643"},
};

static const Line DONE_ON_F[] = {
    {"circuits qk --query-pos 1 --width 40 --no-color", "4 x 2"},
    {"circuits ov --width 40 --no-color", "897ad267a25bb55a"},
    {"explain --size 20", "197b09b3ae9c0448"},
};

static const Line DONE_ALONE[] = {
    {"predict -h", "median predict [--option value]... NUMBER..."},
    {"predict 1 -h", "median predict"},
    {"train --help --width 40", "ea9d8abf7a25ce23"},
    {"eval --size 9 --seed 5 --model " E, "another --seed"},
    {"--version", "median 1."},
    {"--help", "Exit status"},
    {"help", "Exit status"},
    {"train --help", "d119960c0c4759b1"},
    {"data --help", "a201ddb1961ef0fe"},
    {"--color --help", "median [--option value]"},
    {"data --size 1001", "9ee78e9a20bf7b01"},
    {"data --size 3 --max-num=100 --seed 23", "91 46 16 97 30 12 27 | 30"},
    {"bench --size 2 --batch-size 8", "MFLOP a step"},
    {"train --resume " STATE_NAME " --log " LOG_NAME " --save-every 2" TO_FILE, "c5d3942b4630de3f"},
    {TINY "--max-num 9 --epochs 9 --steps 2" TO_FILE, "ca329c812c00ca4b"},
    {"train --init " A " --steps 1 --d-model 99 --batch-size 9 --valset-size 0" TO_FILE,
     "--d-model 99 changes nothing"},
    {"train --init " A " --steps 3 --batch-size 40 --valset-size 0 --threads 2" TO_FILE,
     "17827f2bcac6190c"},
    {"construct --max-num 5 --seq-len 3" TO_FILE, "at least 1.0000"},
};

static const Line FAILING[] = {
    {TINY "--trainset-size 32 --normalization none --n-layers 4 --lr 1000 --steps 99" TO_FILE,
     "no longer finite"},
    {"train --max-num 65536 --d-model 65536", "MiB"},
    {"train --resume median-test-x.tmp", "median-test-x.tmp: "},
    {"train --init median-test-x.tmp", "median-test-x.tmp: "},
    {"train --steps 1 --out ./no/such", "cannot write ./no/such"},
    {"certify --model " B, "one layer"},
    {"construct --max-num 5 --seq-len 3 --out 11*", "is too long"},
};

static const Line FAILING_ON_A[] = {
    {"attention --size 1000000000", "MiB"},
    {"predict < 1 2 3 4 5//1 2 3", "line 3: too few"},
    {"predict <11*", "line 1: it has 20002 characters, more than 16383"},
};

static const Line FAILING_ON_D[] = {
    {"predict 1 2 3 4 5", "overflow"},
    {"predict < 1 2 3 4 5", "overflow"},
    {"attribute", "overflow"},
    {"patch", "overflow"},
    {"eval --size 2", "so great that numbers overflow"},
};

static const Line WRONG[] = {
    {"train --setps 3", "did you mean --steps?"},
    {"eval --lr 3", "unknown option --lr"},
    {"tran", "did you mean train?"},
    {"nonsensical", "unknown command"},
    {"train --steps", "--steps needs a value"},
    {"eval --csv=1", "--csv takes no value"},
    {"eval x", "unexpected argument 'x'"},
    {"train --keep worst", "--keep is 'worst'"},
    {"train --steps=", "--steps is empty"},
    {"train --lr=nan", "--lr is 'nan'"},
    {"train --lr 1e", "--lr is '1e'"},
    {"train --steps 0", "need --steps"},
    {"data --seq-len 4", "Length must be odd"},
    {"train --seq-len 1", "Length must be at least 3"},
    {"train --resume x --lr 1", "keeps its own settings"},
    {"circuits qk --head 2.0 --model " B, "2 layers of 2 heads,"},
    {"construct --d-model 45" TO_FILE, "leaves a slack of -0.0737 votes"},
    {"construct --d-model 2" TO_FILE, "at least 3"},
};

static const Line WRONG_ON_A[] = {
    {"predict 1 2 3 4 10", "10 is not in 0..9"},
    {"predict 1 2 3 4 -1", "-1 is not in 0..9"},
    {"predict 1 2 3 4 -", "'-' is not a whole"},
    {"predict 1 2 3 4 x\177", "'x?'"},
    {"predict 1 2 3 4 5 6 7 8 9", "too many numbers: 9 are given, 5 are expected"},
    {"eval --width 39", "--width is '39'"},
    {"attention 1 2", "too few"},
    {"attribute 1 2 3", "too few"},
    {"patch 1 2 3", "two lists"},
    {"patch 1 2 3 4 5 1 2 3 4 5", "must differ in one number"},
    {"patch 1 2 3 4 5 1 2 3 4 x", "'x' is not"},
    {"circuits", "circuits"},
    {"circuits qk --query-pos 5", "--query-pos"},
    {"circuits qk --key-pos 5", "--key-pos"},
    {"ablate --head 0", "--head"},
    {"ablate --head 0.1", "1 layer of 1 head,"},
    {"ablate --head x.0", "--head"},
    {"ablate --layer 1", "--layer"},
    {"ablate --layer 0 --part mlp", "no MLP"},
    {"ablate --positions 5", "--positions"},
    {"ablate --positions x", "--positions"},
    {"ablate --layer x", "--layer"},
    {"ablate --head 0.x", "--head"},
    {"ablate --head 11*", "--head has 20003 characters, must have less than"},
    {"predict 1 *", "too many arguments: 10001, at most 511"},
};

/* Which lines end with which exit status, on which model or models. */
static const struct {
    const Line *lines;
    size_t n;
    int status;
    const char *models[2];
} TABLES[] = {
#define LINES(table, status, first, second) {table, LENGTH(table), status, {first, second}}
    LINES(DONE_ON_BOTH, 0, A, B),
    LINES(DONE_ON_A, 0, A, NULL),
    LINES(DONE_ON_B, 0, B, NULL),
    LINES(DONE_ON_C, 0, C, NULL),
    LINES(DONE_ON_F, 0, F, NULL),
    LINES(DONE_ALONE, 0, NULL, NULL),
    LINES(FAILING, 1, NULL, NULL),
    LINES(FAILING_ON_A, 1, A, NULL),
    LINES(FAILING_ON_D, 1, D, NULL),
    LINES(WRONG, 2, NULL, NULL),
    LINES(WRONG_ON_A, 2, A, NULL),
};

/* Adds the lines of what goes to stderr that are no progress. */
static void add_remarks(Text *text) {
    char line[300];
    FILE *f = fopen(OUT_NAME, "rb");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "median: ", 8) == 0) text_add(text, "%s", line);
    if (f) fclose(f);
}

/* Returns the exit status. */
static int run_line(const char *line, const char *model, Text *said) {
    static char *argv[REPEATED + 60];
    Text words = {0}, input = {0};
    Streams streams = {.in = fopen(IN_NAME, "wb+"), .progress = fopen(OUT_NAME, "wb")};
    if (!CHECK(streams.in && streams.progress, "no file can be made here")) return 0;
    text_add(&words, "median ");
    Text *to = &words;
    for (; *line; line++) {
        if (*line == '<') to = &input;
        else if (*line == '*') FOR(i, REPEATED) text_bytes(to, line - 2, 2);
        else text_bytes(to, *line == '/' && to == &input ? "\n" : line, 1);
    }
    if (model) text_add(&words, " --model %s", model);
    if (input.size) fwrite(input.data, 1, input.size, streams.in);
    rewind(streams.in);
    error.usage = 0;
    error.text[0] = 0;
    const int argc = split_line(words.data, argv);
    const int done = median_command(argc, argv, &streams, said, &error);
    fclose(streams.in);
    fclose(streams.progress);
    text_free(&words);
    text_free(&input);
    return done ? 0 : 1 + error.usage;
}

static void check_line(const Line *of, int expected, const char *const *models) {
    uint64_t hash = HASH_START;
    char digits[20];
    Text said = {0};
    FOR(i, models[1] ? 2 : 1) {
        text_free(&said);
        EQUAL(run_line(of->line, models[i], &said), expected);
        hash = hash_bytes(hash, said.data, said.size);
    }
    print_to(digits, sizeof digits, "%016" PRIx64, hash);
    text_add(&said, "%s", error.text);
    add_remarks(&said);
    CHECK(strstr(said.data, of->said) || !strcmp(digits, of->said), "expected %s, got %s: %.200s",
          of->said, digits, said.data);
    text_free(&said);
}

static void make_files(void) {
    static const char *const none[2] = {NULL, NULL};
    const Note note = {"a note of 23 characters",
                       "that is kept, but not its \177"}; /* the longest name; 127 */
    Model zero;
    EACH(i, MAKE) check_line(&MAKE[i], 0, none);
    DONE(model_create(&zero, &SMALL, &error));
    zero.notes[0] = note;
    zero.n_notes = 1;
    DONE(model_save(&zero, C, &error));
    FOR(i, zero.n_params) zero.params[i] = 1e38f;
    DONE(model_save(&zero, D, &error));
    model_free(&zero);
    make_state(0);
}


/* ---- The suites ------------------------------------------------------------------------------ */

typedef struct {
    const char *name; /* NULL: here ends a storey */
    void (*run)(void);
    const char *golden; /* the hash of what it computes; NULL: the first suite says it all */
} Test;

#define PLAIN(function) {#function, test_##function, NULL}
#define BITS_OF(function, hash) {#function, test_##function, hash}
#define PART(function, layer, hash) {#function, test_##layer, hash}
#define NEXT_STOREY {NULL, NULL, NULL}

static const Test TESTS[] = {
    PLAIN(smaller),
    PLAIN(f32),
    PLAIN(ieee_setup),
    PLAIN(mt_seed),
    PLAIN(mt_fill),
    PLAIN(mt_next),
    PLAIN(hash_bytes),
    PLAIN(hash_floats),
    PLAIN(round_sums),
    PLAIN(attention_score),
    PLAIN(print_double),
    PLAIN(parse_double),
    BITS_OF(exp_f32, "8620d060f1beb2e7"),
    BITS_OF(log_f32, "5e6c71a97f4dfd3f"),
    BITS_OF(mt_normal, "d2c0915838d3d1e4"),
    BITS_OF(adam_step, "67d3ec2348742ce5"),
    BITS_OF(singular_values, "e694aff63a8ee6c1"),
    NEXT_STOREY,
    PART(gather_forward, gather, "bdc425fb7a1c1000"),
    PART(gather_backward, gather, "3593384954466679"),
    PART(embed_forward, embed, "c9f8c99c4fcca78f"),
    PART(embed_backward, embed, "b866cee8512fc662"),
    PART(linear_forward, linear, "2844a707add66fef"),
    PART(linear_backward_input, linear, "39220b47d9d3c44e"),
    PART(linear_backward_weights, linear, "04f1e9957f500911"),
    PART(layernorm_forward, layernorm, "810a8ef96b2fa3cb"),
    PART(layernorm_backward, layernorm, "9e81d233c3689566"),
    PART(relu_forward, relu, "de78207a6c97268d"),
    PART(relu_backward, relu, "15b3e50afbecdc7a"),
    PART(softmax_forward, softmax, "fd4ece29a0d64b61"),
    PART(cross_entropy_forward, cross_entropy, "9e90ab73e0a4d073"),
    PART(cross_entropy_backward, cross_entropy, "569801aa9e1a618d"),
    PART(attention_pattern_forward, attention_pattern, "b9a4181b87a7bf3b"),
    PART(attention_pattern_backward, attention_pattern, "908ebd74946197f4"),
    PART(attention_values_forward, attention_values, "1383952c563affa6"),
    PART(attention_values_backward, attention_values, "10a8db0701761e91"),
    NEXT_STOREY,
    PLAIN(use_threads),
    PLAIN(median_of),
    PLAIN(make_lists),
    PLAIN(make_training_lists),
    BITS_OF(model_init, "2b4e58e9a734e18f"),
    BITS_OF(model_forward, "64cd8ddcdc38d1aa"),
    BITS_OF(model_backward, "2673e2f8ae3ebccf"),
    BITS_OF(trainer_step, "07099234d85b586e"),
    BITS_OF(sums, "bfe097f3b95f5829"),
    BITS_OF(reports, "c3cb1031c8bdbe01"),
    BITS_OF(activations, "4941b3da523e98ae"),
    PLAIN(hooks),
    BITS_OF(circuits, "9f63706ebe9a0ef1"),
    PLAIN(attribution),
    PLAIN(logits_of_circuits),
    PLAIN(patching),
    PLAIN(ablation),
    BITS_OF(resume, "7a8d12249c6ae209"),
    BITS_OF(settings, "ee6f4d302489cdfd"),
    PLAIN(text_add),
    PLAIN(faults),
    PLAIN(strangers),
    PLAIN(number_types),
    PLAIN(foreign),
    PLAIN(certify),
    PLAIN(certify_ties),
    PLAIN(certify_lost_bits),
    PLAIN(certify_limits),
    PLAIN(explain),
    PLAIN(construct),
    NEXT_STOREY,
};

static const char *word; /* what the names of the tests to run contain */
static int passed, failed;
static int broken; /* whether a test of this word has failed */

static void make_printable(char *text) {
    for (; *text; text++)
        if (*text < ' ' || *text > '~') *text = '?';
}

static int begin(const char *name, const char *model) {
    print_to(title, sizeof title, model ? "%s --model %s" : "%s", name, model);
    make_printable(title);
    failure[0] = where[0] = 0;
    noise = 1;
    number = 0;
    bits = HASH_START;
    return strstr(title, word) != NULL;
}

static void finish(void) {
    release();
    make_printable(failure);
    if (failure[0]) {
        printf("FAIL %s: %s\n", title, failure);
        broken = 1;
        failed++;
    } else {
        printf("ok   %s\n", title);
        passed++;
    }
    fflush(stdout);
}

static void run_test(const Test *test, char *found, size_t size) {
    test->run();
    release();
    print_to(found, size, "%016" PRIx64, bits);
}

/* Lines of which a hash is expected are in the second suite, the others in the first. */
static void run_lines(void) {
    static const char *const files[] = {FILE_NAME, STATE_NAME, LOG_NAME, IN_NAME, OUT_NAME,
                                        A, B, C, D, E, F};
    int files_made = 0;
    EACH(k, TABLES) FOR(i, TABLES[k].n) {
        const Line *line = &TABLES[k].lines[i];
        const char *const *models = TABLES[k].models;
        const int hashed = strspn(line->said, "0123456789abcdef") == 16;
        if (hashed != (suite == BITS) || !begin(line->line, models[1] ? NULL : models[0])) continue;
        if (!files_made++) make_files();
        check_line(line, TABLES[k].status, models);
        finish();
    }
    EACH(i, files) remove(files[i]);
}

/* In the first suite each storey stands on those before it: where something fails, those above are
 * not tested. In the second only the hash counts. */
static void run_suite(void) {
    char found[20];
    use_threads(3); /* where there are threads */
    EACH(i, TESTS) {
        const Test *test = &TESTS[i];
        if (!test->name && broken && suite == MATH) {
            printf("What stands on this is not tested.\n");
            return;
        }
        if (!test->name || (suite == BITS && !test->golden) || !begin(test->name, NULL)) continue;
        run_test(test, found, sizeof found);
        if (suite == BITS) {
            failure[0] = where[0] = 0;
            CHECK(!strcmp(found, test->golden), "expected %s, got %s", test->golden, found);
        }
        finish();
    }
    run_lines();
}

/* The tests of which the name contains the word, of both suites or of one. */
static void run_word(const char *of, int math, int other) {
    const int count = passed + failed;
    word = of;
    broken = 0;
    for (suite = MATH; suite <= BITS && !broken; suite++) {
        if (suite == MATH ? math : other) run_suite();
    }
    if (passed + failed > count) return;
    begin(word, NULL);
    printf("FAIL no test's name contains '%s'\n", title);
    failed++;
}

int run_tests(size_t n_words, const char *const *words) {
    const int math = n_words == 0 || strcmp(words[0], "bits") != 0;
    const int other = n_words == 0 || strcmp(words[0], "math") != 0;
    const size_t first = !math || !other;
    passed = 0;
    failed = 0;
    if (n_words == first) run_word("", math, other);
    for (size_t i = first; i < n_words; i++) run_word(words[i], math, other);
    printf("%d passed, %d failed\n", passed, failed);
    return failed;
}

const char *check_golden(void (*tell)(void *context, const char *test, const char *found,
                                      const char *expected),
                         void *context) {
    const char *first = NULL;
    word = "";
    suite = BITS;
    EACH(i, TESTS) {
        const Test *t = &TESTS[i];
        char found[20];
        if (!t->golden || t->run == test_resume) continue; /* which writes files */
        begin(t->name, NULL);
        run_test(t, found, sizeof found);
        tell(context, t->name, found, t->golden);
        if (!first && strcmp(found, t->golden) != 0) first = t->name;
    }
    return first;
}
