/* test_median.c - the tests: of tensor.c, one for every function of tensor.h under its name, and of median.c.
 *
 * What is computed there is computed here a second time, from the formulas in the headers, with plain loops in double.
 * A gradient is compared with differences of that. What the commands print is compared by its hash. */
#include "median.h"

#include <inttypes.h>
#include <stdlib.h>
#include <stdarg.h>
#include <string.h>

/* ---- The harness ------------------------------------------------------------------------------------------------ */

#define FOR(i, n) for (size_t i = 0; i < (n); i++)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static char title[200], where[150], failure[600]; /* the running test; the case that it is at; its first failure */
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
    snprintf(failure, sizeof failure, "%s%s%s (test_median.c:%d)", where, where[0] ? ": " : "", text, line);
    return 0;
}

static void check_near(int line, const char *what, double got, double expected, double tolerance) {
    const int ok = got == expected || fabs(got - expected) <= tolerance;
    check(ok, line, "%s: expected %.10g, got %.10g", what, expected, got);
}

/* Each of n numbers within tolerance * (its size + their mean size). */
static void check_all(int line, const float *got, const double *expected, size_t n, double tolerance) {
    double mean = 0;
    FOR(i, n) mean += fabs(expected[i]) / (double)n;
    FOR(i, n) check(fabs((double)got[i] - expected[i]) <= tolerance * (fabs(expected[i]) + mean), line,
                    "number %u: expected %.9g, got %.9g", (unsigned)i, expected[i], (double)got[i]);
}

#define CHECK(ok, ...) check(ok, __LINE__, __VA_ARGS__)
#define DONE(call) check(call, __LINE__, "%s", error.text)
#define NEAR(got, expected, tolerance) check_near(__LINE__, #got, (double)(got), (double)(expected), tolerance)
#define EQUAL(got, expected) NEAR(got, expected, 0.0)
#define ALL_NEAR(got, expected, n, tolerance) check_all(__LINE__, got, expected, n, tolerance)

/* Arrays live until the next release(). Behind each stand 64 bytes of ones: as floats NaN, which spoils whatever is
 * computed from it, and release() sees whether they were written over. */
enum { GUARD = 64 };
static unsigned char *blocks[200], *ends[200];
static size_t n_blocks;

static void *take(size_t n, size_t size) {
    unsigned char *memory = n_blocks < LENGTH(blocks) ? (unsigned char *)calloc(n * size + GUARD, 1) : NULL;
    if (!memory) {
        printf("FAIL array %u, of %.0f bytes: out of memory\n", (unsigned)n_blocks, (double)(n * size));
        exit(1);
    }
    blocks[n_blocks] = memory;
    ends[n_blocks] = memory + n * size;
    memset(ends[n_blocks++], 0xff, GUARD);
    return memory;
}

static void release(void) {
    for (; n_blocks > 0; free(blocks[--n_blocks]))
        FOR(j, GUARD) CHECK(ends[n_blocks - 1][j] == 0xff, "array %u is written beyond its end", (unsigned)n_blocks);
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

/* gradient - before (n) is how loss(of) changes when x (n) moves, by central differences: a small one entry by entry, a
 * large one along a random direction, on which no entry can be wrong unnoticed. size: of an entry, as a rule. */
enum { BY_ENTRY = 200 };
static void check_gradient(const char *name, const float *gradient, const float *before, double *x, size_t n,
                           double (*loss)(void *), void *of, double size) {
    const double h = 1e-6;
    const int singly = n <= BY_ENTRY;
    double *direction = doubles(NULL, n);
    FOR(entry, singly ? n : 1) {
        double got = 0, squares = 0;
        FOR(i, n) direction[i] = singly ? i == entry : (double)uniform();
        FOR(i, n) got += ((double)gradient[i] - (double)before[i]) * direction[i];
        FOR(i, n) squares += pow((fabs((double)gradient[i]) + size) * direction[i], 2);
        FOR(i, n) x[i] += h * direction[i];
        const double above = loss(of);
        FOR(i, n) x[i] -= 2 * h * direction[i];
        const double expected = (above - loss(of)) / (2 * h);
        FOR(i, n) x[i] += h * direction[i];
        CHECK(fabs(got - expected) <= 2e-6 * sqrt(squares), "gradient of %s, %s %u: expected %.9g, got %.9g", name,
              singly ? "entry" : "along direction", (unsigned)entry, expected, got);
    }
}

/* ---- Rounding, random numbers, exp and log, hashing -------------------------------------------------------------- */

static void test_smaller(void) {
    EQUAL(smaller(3, 5), 3);
    EQUAL(smaller(5, 3), 3);
}

/* From Python's decimal module, which is exact. */
static void test_print_double(void) {
    const struct {
        double x;
        char style;
        int precision;
        const char *text;
    } cases[] = {
        {32.8125, 'f', 3, "32.812"}, {0.00046, 'f', 3, "0.000"}, {0.5, 'f', 0, "0"}, {1.5, 'f', 0, "2"},
        {2.5, 'f', 0, "2"}, {0.125, 'f', 2, "0.12"}, {0.375, 'f', 2, "0.38"}, {9.995, 'f', 2, "9.99"},
        {-999999.5, 'f', 0, "-1000000"}, {1e22, 'f', 0, "10000000000000000000000"},
        {1e23, 'f', 1, "99999999999999991611392.0"}, {9.5, 'e', 0, "1e+01"}, {0.0, 'e', 2, "0.00e+00"},
        {0x1p-1074, 'e', 20, "4.94065645841246544177e-324"}, {0x1p-1022, 'e', 16, "2.2250738585072014e-308"},
        {0x1p-1074, 'f', 40, "0.0000000000000000000000000000000000000000"},
        {DBL_MAX, 'e', 40, "1.7976931348623157081452742373170435679807e+308"},
        {0.1, 'f', 40, "0.1000000000000000055511151231257827021182"}, {0.3, 'e', 17, "2.99999999999999989e-01"},
        {0.0, 'g', 9, "0"}, {-0.0, 'f', 1, "-0.0"}, {100, 'g', 3, "100"}, {1000, 'g', 3, "1e+03"},
        {999.5, 'g', 3, "1e+03"}, {998.5, 'g', 3, "998"}, {0.0001, 'g', 9, "0.0001"}, {0.00001, 'g', 9, "1e-05"},
        {0.1, 'g', 17, "0.10000000000000001"}, {123456789.5, 'g', 9, "123456790"}, {-0x1p-149, 'g', 9, "-1.40129846e-45"},
        {0.25, 'g', 0, "0.2"}, {HUGE_VAL, 'f', 3, "inf"}, {-HUGE_VAL, 'g', 9, "-inf"}};
    char text[NUMBER_TEXT];
    FOR(i, LENGTH(cases)) {
        const size_t n = print_double(text, cases[i].x, cases[i].style, cases[i].precision, 0);
        CHECK(strcmp(text, cases[i].text) == 0, "expected %s, got %s", cases[i].text, text);
        EQUAL(n, strlen(cases[i].text));
    }
    print_double(text, HUGE_VAL - HUGE_VAL, 'f', 2, 0);
    CHECK(strcmp(text, "nan") == 0, "NaN is '%s'", text);
    EQUAL(print_double(text, -DBL_MAX, 'f', 1000, 1), 1 + 309 + 1 + MAX_PRECISION);
    EQUAL(print_double(text, 100, 'g', 6, 1), 7);
    CHECK(strcmp(text, "100.000") == 0, "kept zeros: %s", text);
}

static void test_parse_double(void) {
    const struct {
        const char *text;
        double x;
        size_t n;
    } cases[] = {
        {"0", 0.0, 1}, {"+00012", 12, 6}, {"-.5x", -0.5, 3}, {"5.", 5, 2}, {"1.5e3", 1500, 5}, {"1.5E+3,2", 1500, 6},
        {"1e", 1, 1}, {"1e+", 1, 1}, {"1e-x", 1, 1}, {"1,5", 1, 1}, {"", 0, 0}, {".", 0, 0}, {"-", 0, 0}, {"e5", 0, 0},
        {" 1", 0, 0}, {"inf", 0, 0}, {"0x10", 0, 1}, {"1e400", HUGE_VAL, 5}, {"-1e400", -HUGE_VAL, 6}, {"1e-400", 0, 6},
        {"1e99999999999999999999", HUGE_VAL, 22}, {"1e-99999999999999999999", 0, 23}, {"0e99999999999999999999", 0, 22},
        {"2.4703282292062327e-324", 0, 23}, {"2.4703282292062328e-324", 0x1p-1074, 23}, /* half of the least */
        {"1.7976931348623158e308", DBL_MAX, 22}, {"1.7976931348623159e308", HUGE_VAL, 22},
        {"2.2250738585072011e-308", 0x0.fffffffffffffp-1022, 23}, {"2.2250738585072012e-308", 0x1p-1022, 23},
        {"9007199254740993", 0x1p53, 16}, {"9007199254740995", 0x1p53 + 4, 16}, /* ties */
        {"9007199254740993.00000000000000000000000000000000001", 0x1p53 + 2, 52},
        {"9007199254740992999999999999999999999999999999999e-33", 0x1p53, 53}};
    static char far[2 * 1200];
    char text[NUMBER_TEXT];
    const char *end;
    FOR(i, LENGTH(cases)) {
        const double x = parse_double(cases[i].text, &end);
        CHECK(x == cases[i].x, "%s is read as %.17g", cases[i].text, x);
        EQUAL(end - cases[i].text, cases[i].n);
    }
    FOR(more, 2) { /* a tie to even, and a digit behind the last place that any double has */
        memset(far, '0', sizeof far - 1);
        memcpy(far, "9007199254740993.", 17);
        if (more) far[sizeof far - 2] = '1';
        EQUAL(parse_double(far, &end), more ? 0x1p53 + 2 : 0x1p53);
        EQUAL(end - far, sizeof far - 1);
    }
    FOR(i, 3000) { /* 17 digits tell any two doubles apart */
        const uint64_t bits = (uint64_t)(uniform() * 0x1p30f + 0x1p30f) << 32 | (uint64_t)(uniform() * 0x1p30f + 0x1p30f);
        double x, back;
        memcpy(&x, &bits, sizeof x);
        if (!(x < HUGE_VAL)) continue;
        print_double(text, x, i % 2 ? 'e' : 'g', i % 2 ? 16 : 17, 0);
        back = parse_double(text, &end);
        CHECK(memcmp(&x, &back, sizeof x) == 0 && *end == 0, "%s is read as another number", text);
    }
}

/* No isnan, no signbit: pcc does not compile them here. */
static void test_f32(void) { /* ties, and next to them; the least number that is kept, what is flushed; the greatest */
    const double table[][2] = {
        {1.0 + 0x1p-24, 1.0}, {1.0 + 0x3p-24, 1.0 + 0x1p-22}, {-1.0 - 0x3p-24, -1.0 - 0x1p-22},
        {1.0 + 0x1p-24 + 0x1p-40, 1.0 + 0x1p-23}, {1.0 + 0x1p-24 - 0x1p-40, 1.0}, {0x1.000002p-126, 0x1.000002p-126},
        {-0x1.000002p-126, -0x1.000002p-126}, {0x1p-126, 0}, {-0x1p-126, 0},
        {0x1.fffffffffffffp-127, 0}, {-0x1.fffffffffffffp-127, 0}, {1e-40, 0}, {-1e-300, 0}, {-0.0, 0},
        {0x1.fffffefp127, 0x1.fffffep127}, {HUGE_VAL, HUGE_VAL}, {-HUGE_VAL, -HUGE_VAL}};
    FOR(i, LENGTH(table)) {
        volatile double in = table[i][0];
        EQUAL(f32(in), table[i][1]);
        CHECK(f32(in) != 0 || 1 / f32(in) > 0, "%g becomes -0", in);
    }
    const float nan = f32((double)NAN);
    CHECK(nan != nan, "NaN becomes a number");
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

static void test_mt_fill(void) {
    Mt19937 mt;
    uint32_t words[10000];
    mt_seed(&mt, 5489);
    FOR(i, 100) mt_fill(&mt, words + i * (i - 1) / 2, i);
    EQUAL(words[0], UINT32_C(3499211612));
    mt_fill(&mt, words + 4950, 5050);
    EQUAL(words[9999], UINT32_C(4123659995));
    EQUAL(words[4949], UINT32_C(1981091823));
    EQUAL(words[4950], UINT32_C(858281024));
}

/* Golden values: {the bits of x, the bits of the result}; any NaN is as good as another. */
static void check_golden(float (*function)(float), const uint32_t (*golden)[2], size_t n) {
    FOR(i, n) {
        float x, y;
        uint32_t bits;
        memcpy(&x, &golden[i][0], sizeof x);
        y = function(x);
        memcpy(&bits, &y, sizeof bits);
        CHECK(isnan(y) ? golden[i][1] == 0x7fc00000 : bits == golden[i][1], "of %.9g: expected %08lx, got %08lx",
              (double)x, (unsigned long)golden[i][1], (unsigned long)bits);
    }
}

static void test_exp_f32(void) {
    static const uint32_t golden[][2] = {
        {0x00000000, 0x3f800000}, {0x80000000, 0x3f800000}, {0x00000001, 0x3f800000}, {0x33000000, 0x3f800000},
        {0x3f800000, 0x402df854}, {0xbf800000, 0x3ebc5ab2}, {0x3f000000, 0x3fd3094c}, {0x41200000, 0x46ac14ee},
        {0xc1200000, 0x383e6bce}, {0x7f800000, 0x7f800000}, {0xff800000, 0x00000000}, {0x7fc00000, 0x7fc00000},
        {0x42b17217, 0x7f7fff84}, {0x42b17218, 0x7f800000}, {0x43480000, 0x7f800000}, {0x7f7fffff, 0x7f800000},
        {0xc2aeac4f, 0x00800026}, {0xc2aeac50, 0x00000000}, {0xc2ce8ed0, 0x00000000}, {0xff7fffff, 0x00000000}};
    check_golden(exp_f32, golden, LENGTH(golden));
}

static void test_log_f32(void) {
    static const uint32_t golden[][2] = {
        {0x3f800000, 0x00000000}, {0x3f800001, 0x33ffffff}, {0x3f7fffff, 0xb3800000}, {0x40000000, 0x3f317218},
        {0x3f000000, 0xbf317218}, {0x402df854, 0x3f7fffff}, {0x41200000, 0x40135d8e}, {0x7f7fffff, 0x42b17218},
        {0x00800000, 0xc2aeac50}, {0x00000003, 0xc2cc5c53}, {0x00000001, 0xc2ce8ed0}, {0x80000001, 0x7fc00000},
        {0x00000000, 0xff800000}, {0x80000000, 0xff800000}, {0x7f800000, 0x7f800000}, {0xff800000, 0x7fc00000},
        {0xbf800000, 0x7fc00000}, {0x7fc00000, 0x7fc00000}};
    check_golden(log_f32, golden, LENGTH(golden));
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

static void test_mt_normal(void) {
    enum { N = 100001 }; /* odd: half of the last pair is dropped */
    static const double moments[] = {1, 0, 1, 0, 3};
    float *x = randoms(N);
    Mt19937 mt;
    mt_seed(&mt, 1);
    mt_normal(&mt, x, N, 2.0f);
    FOR(power, 5) {
        double mean = 0;
        FOR(i, N) mean += pow((double)x[i] / 2.0, (double)power) / N;
        NEAR(mean, moments[power], 0.05);
    }
    CHECK(hash_floats(HASH_START, x, N) == UINT64_C(0xd2c0915838d3d1e4), "other bits");
    EQUAL(mt_next(&mt), UINT32_C(2563818105));
}

static void test_attention_users(void) {
    static const uint32_t first_row[] = {0, 4, 7}, row[] = {1, 3, 1, 4, 4, 6};
    static const uint32_t firsts[] = {0, 0, 2, 2, 3, 5, 5, 6}, users[] = {0, 2, 1, 3, 4, 5};
    uint32_t first_user[8], user[6];
    const Attention a = {3, 2, 1, 6, 10, first_row, row, first_user, user, 1};
    attention_users(WHOLE, &a);
    FOR(r, 8) EQUAL(first_user[r], firsts[r]);
    FOR(i, 6) EQUAL(user[i], users[i]);
}

/* The shares of a work follow each other without gap, and are alike to within two units. */
static void test_share_begin(void) {
    FOR(n, 70) for (size_t unit = 1; unit <= 16; unit *= 2) for (size_t parts = 1; parts <= 9; parts++) {
        size_t done = 0, least = n, most = 0;
        for (Share s = {0, parts}; s.part < parts; s.part++) {
            const Share next = {s.part + 1, parts};
            const size_t end = share_begin(next, n, unit);
            at("%u by %u, part %u of %u", (unsigned)n, (unsigned)unit, (unsigned)s.part, (unsigned)parts);
            EQUAL(share_begin(s, n, unit), done);
            CHECK(end >= done && (end % unit == 0 || end == n), "ends at %u", (unsigned)end);
            least = end - done < least ? end - done : least, most = end - done > most ? end - done : most;
            done = end;
        }
        EQUAL(done, n);
        CHECK(most < least + 2 * unit, "between %u and %u long", (unsigned)least, (unsigned)most);
    }
}

static void test_share_end(void) {
    const Share second = {1, 3};
    EQUAL(share_end(WHOLE, 350, 8), 350);
    EQUAL(share_end(second, 350, 8), 232); /* 44 eights, of which 14, 15 and 15 */
    EQUAL(share_end(second, 7, 1), 4);
}

static void test_use_threads(void) { /* that no result depends on them is seen where a model is trained with two */
#ifdef _OPENMP
    EQUAL(use_threads(3), 3);
#else
    EQUAL(use_threads(3), 1);
#endif
    EQUAL(use_threads(0), 1);
}

/* ---- Adam, singular values --------------------------------------------------------------------------------------- */

static void test_adam_step(void) {
    static const uint32_t steps[] = {1, 2, 3, 4, 50, 1000, 100000};
    const Adam adam = {0.125f, 0.9f, 0.99f, 0.02f, 0.3f};
    const size_t n = 67;
    const double beta1 = (double)adam.beta1, beta2 = (double)adam.beta2, decay = (double)adam.weight_decay;
    float *x = randoms(n), *m = (float *)take(n, sizeof *m), *v = (float *)take(n, sizeof *v);
    double *ex = doubles(x, n), *em = doubles(NULL, n), *ev = doubles(NULL, n);
    FOR(s, LENGTH(steps)) {
        const double c1 = 1 - pow(beta1, steps[s]), c2 = 1 - pow(beta2, steps[s]);
        const float *g = randoms(n);
        at("step %lu", (unsigned long)steps[s]);
        FOR(i, n) em[i] = beta1 * em[i] + (1 - beta1) * (double)g[i];
        FOR(i, n) ev[i] = beta2 * ev[i] + (1 - beta2) * (double)g[i] * (double)g[i];
        FOR(i, n) ex[i] -= (double)adam.lr * (em[i] / c1 / (sqrt(ev[i] / c2) + (double)adam.eps) + decay * ex[i]);
        adam_step(WHOLE, &adam, steps[s], x, m, v, g, n);
        ALL_NEAR(m, em, n, 1e-6);
        ALL_NEAR(v, ev, n, 1e-6);
        ALL_NEAR(x, ex, n, 2e-6);
    }
}

static double dot(const float *x, const float *y, size_t n, size_t step) {
    double sum = 0;
    FOR(i, n) sum += (double)x[i * step] * (double)y[i * step];
    return sum;
}

/* The columns are rotated among themselves, which changes no sum of products along a row, until they are orthogonal. */
static void test_singular_values(void) {
    enum { ROWS = 24, COLUMNS = 9 };
    float *columns = randoms(COLUMNS * ROWS), *values = randoms(COLUMNS);
    FOR(i, ROWS) columns[8 * ROWS + i] = columns[3 * ROWS + i]; /* one value is 0 */
    const float *before = copy(columns, COLUMNS * ROWS);
    singular_values(values, columns, COLUMNS, ROWS);
    FOR(i, ROWS) FOR(j, ROWS)
        NEAR(dot(columns + i, columns + j, COLUMNS, ROWS), dot(before + i, before + j, COLUMNS, ROWS), 1e-5);
    FOR(c, COLUMNS) FOR(e, COLUMNS)
        NEAR(dot(columns + c * ROWS, columns + e * ROWS, ROWS, 1), c == e ? pow((double)values[c], 2) : 0.0, 1e-5);
    FOR(c, COLUMNS - 1) CHECK(values[c] >= values[c + 1], "not in descending order");
}

/* ---- Layers ----------------------------------------------------------------------------------------------------- */

/* The formulas of tensor.h; the naive model is made of them too. */
static void naive_linear(double *y, const double *x, const double *W, const double *b, size_t rows, size_t n,
                         size_t m) {
    FOR(r, rows) FOR(j, m) y[r * m + j] += b ? b[j] : 0.0;
    FOR(r, rows) FOR(i, n) FOR(j, m) y[r * m + j] += x[r * n + i] * W[i * m + j];
}

static void naive_norm(double *out, const double *x, const double *w, const double *b, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++, x += d, out += d) {
        double mean = 0, variance = 0;
        FOR(j, d) mean += x[j] / (double)d;
        FOR(j, d) variance += (x[j] - mean) * (x[j] - mean) / (double)d;
        FOR(j, d) out[j] = (x[j] - mean) / sqrt(variance + 1e-5) * w[j] + b[j];
    }
}

static double naive_softmax(double *p, const double *x, size_t n) { /* p may be x; returns log(sum of all e^x) */
    double max = -HUGE_VAL, sum = 0;
    FOR(i, n) max = x[i] > max ? x[i] : max;
    FOR(i, n) sum += p[i] = exp(x[i] - max);
    FOR(i, n) p[i] /= sum;
    return log(sum) + max;
}

/* A call of a layer. Each is tried on all sizes, and takes turns among the variants that the header allows. */
static const size_t SIZES[][3] = { /* rows, d, d_out */
    {1, 1, 1}, {7, 5, 10}, {13, 10, 5}, {1, 67, 6}, {67, 6, 1}, {6, 1, 67}, {64, 64, 64}, {7, 130, 10}, {13, 5, 130},
    {130, 67, 5}, {67, 10, 50}, {50, 130, 67}};

typedef struct Case {
    size_t number, rows, d, d_out;
    size_t parts, first, last;           /* of so many parts, from the first to before the last are computed */
    size_t n[3], n_out;                  /* numbers in the inputs with gradients (0: no such input), the output */
    float *in[3], *grad[3], *out, *dout; /* inputs, the loss's gradients, the output and its gradient */
    double *x[3], *expected;             /* inputs and output of the naive layer; `expected` is 0 before it */
    float *side, *side2;                 /* what else forward reads or writes */
    uint32_t *index, *index2;
    Attention attention;
    void (*layer)(struct Case *c, int step);
    int written;                         /* bit k: backward wrote gradient k, and added nothing */
    size_t kept;                         /* but left so many numbers at the beginning of gradient 0 as they were */
} Case;

#define EACH_SHARE for (Share s = {c->first, c->parts}; s.part < c->last; s.part++)

enum { MAKE, NAIVE, FORWARD, BACKWARD }; /* what a layer is asked for: its arrays, the naive output, a call */

static void make_arrays(Case *c, size_t n0, size_t n1, size_t n2, size_t n_out) {
    c->n[0] = n0, c->n[1] = n1, c->n[2] = n2, c->n_out = n_out;
    FOR(k, 3) c->in[k] = c->n[k] ? randoms(c->n[k]) : NULL;
    c->out = randoms(n_out), c->dout = randoms(n_out), c->expected = doubles(NULL, n_out);
    c->side = randoms(n_out), c->side2 = randoms(n_out);
}

static void embed(Case *c, int step) {
    enum { VOCABULARY = 11, PLACES = 5 };
    const size_t rows = c->rows, d = c->d;
    if (step == MAKE) {
        make_arrays(c, VOCABULARY * d, PLACES * d, 0, rows * d);
        c->index = indices(rows, VOCABULARY), c->index2 = indices(rows, PLACES);
    }
    if (step == NAIVE)
        FOR(r, rows) FOR(j, d) c->expected[r * d + j] = c->x[0][c->index[r] * d + j] + c->x[1][c->index2[r] * d + j];
    if (step == FORWARD) EACH_SHARE embed_forward(s, c->out, c->in[0], c->in[1], c->index, c->index2, rows, d);
    if (step == BACKWARD) EACH_SHARE embed_backward(s, c->grad[0], c->grad[1], c->dout, c->index, c->index2, rows, d);
}

static void gather(Case *c, int step) { /* with b and index; without b; forward without index */
    const size_t rows = c->rows, d = c->d, variant = c->number % 3, with_b = variant != 1;
    if (step == MAKE) {
        make_arrays(c, (rows + 3) * d, with_b * d, 0, rows * d);
        c->index = indices(rows, rows + 3);
        FOR(r, variant == 2 ? rows : 0) c->index[r] = (uint32_t)r;
    }
    if (step == NAIVE)
        FOR(r, rows) FOR(j, d) c->expected[r * d + j] = c->x[0][c->index[r] * d + j] + (with_b ? c->x[1][j] : 0.0);
    const uint32_t *index = variant == 2 ? NULL : c->index;
    if (step == FORWARD) EACH_SHARE gather_forward(s, c->out, c->in[0], c->in[1], index, rows, d);
    if (step == BACKWARD) EACH_SHARE gather_backward(s, c->grad[0], c->grad[1], c->dout, c->index, rows, d);
}

/* What is to be added to the input's gradient: nothing, or what stands there, or what stands elsewhere. */
static const float *dresidual(Case *c) {
    const size_t kind = c->number % 3;
    c->written = kind == 0;
    return kind == 0 ? NULL : kind == 1 || !c->grad[0] ? c->grad[0] : copy(c->grad[0], c->n[0]);
}

static void linear(Case *c, int step) { /* with b or not; without residual, it being out, or in its own array */
    const size_t rows = c->rows, d = c->d, n = c->d_out;
    float *const residuals[] = {NULL, c->out, c->side}, *residual = residuals[c->number / 2 % 3], **in = c->in;
    float **grad = c->grad;
    if (step == MAKE) make_arrays(c, rows * d, d * n, c->number % 2 ? n : 0, rows * n);
    if (step == NAIVE) FOR(i, residual ? rows * n : 0) c->expected[i] = (double)c->side2[i];
    if (step == NAIVE) naive_linear(c->expected, c->x[0], c->x[1], c->x[2], rows, d, n);
    if (step == NAIVE && residual) memcpy(residual, c->side2, rows * n * sizeof(float));
    if (step == FORWARD) EACH_SHARE linear_forward(s, c->out, residual, in[0], in[1], in[2], rows, d, n);
    if (step != BACKWARD) return;
    const float *add = dresidual(c);
    EACH_SHARE linear_backward(s, grad[0], add, grad[1], grad[2], c->dout, in[0], in[1], rows, d, n);
}

static void layernorm(Case *c, int step) { /* every third row varies so little that the 1e-5 matters */
    const size_t rows = c->rows, d = c->d;
    float **in = c->in, **grad = c->grad;
    if (step == MAKE) make_arrays(c, rows * d, d, d, rows * d);
    if (step == MAKE) FOR(i, rows * d) in[0][i] = f32((i / d % 3 == 2 ? 0.004 : 2.0) * (double)in[0][i] + 0.5);
    if (step == NAIVE) naive_norm(c->expected, c->x[0], c->x[1], c->x[2], rows, d);
    if (step == FORWARD) EACH_SHARE layernorm_forward(s, c->out, c->side, c->side2, in[0], in[1], in[2], rows, d);
    if (step != BACKWARD) return;
    const float *add = dresidual(c);
    EACH_SHARE layernorm_backward(s, grad[0], add, grad[1], grad[2], c->dout, c->side, c->side2, in[1], rows, d);
}

static void relu(Case *c, int step) { /* every fifth number is 0, the others are farther from it than 0.1 */
    const size_t n = c->rows * c->d;
    if (step == MAKE) make_arrays(c, n, 0, 0, n);
    if (step == MAKE) FOR(i, n) c->in[0][i] = i % 5 == 4 ? 0.0f : c->in[0][i] + (c->in[0][i] < 0 ? -0.1f : 0.1f);
    if (step == NAIVE) FOR(i, n) c->expected[i] = c->x[0][i] > 0.01 ? c->x[0][i] : 0.0; /* of slope 0 at 0 */
    if (step == FORWARD) EACH_SHARE relu_forward(s, c->out, c->in[0], c->rows, c->d);
    if (step == BACKWARD) EACH_SHARE relu_backward(s, c->grad[0], c->dout, c->in[0], c->rows, c->d);
    c->written = 1;
}

static void make_logits(Case *c, size_t n_out, int steep) { /* steep: rows around 0, 1000 and -1000 */
    static const double level[] = {0, 1000, -1000};
    make_arrays(c, c->rows * c->d, 0, 0, n_out);
    FOR(i, c->n[0]) c->in[0][i] = f32((double)c->in[0][i] * 2 + (steep ? level[i / c->d % 3] : 0));
}

/* In the longer rows an entry of -infinity; now and then in place, and one entry of each row, at another place in each,
 * so far above the others that only its own subtraction keeps exp from overflow. */
static void softmax(Case *c, int step) {
    const size_t rows = c->rows, d = c->d, variant = c->number % 2;
    if (step == MAKE) {
        make_logits(c, rows * d, 1);
        FOR(r, variant ? rows : 0) c->in[0][r * d + r % d] += 300.0f;
        FOR(r, d > 5 ? rows : 0) c->in[0][r * d + (r + 1) % 5] = -INFINITY;
    }
    if (step == NAIVE) FOR(r, rows) naive_softmax(c->expected + r * d, c->x[0] + r * d, d);
    if (step == NAIVE) memcpy(c->out, c->in[0], rows * d * sizeof(float));
    if (step == FORWARD) EACH_SHARE softmax_forward(s, c->out, variant ? c->out : c->in[0], rows, d);
}

static void cross_entropy(Case *c, int step) { /* in place; or with steep rows */
    const size_t rows = c->rows, d = c->d, variant = c->number % 2;
    double p[256];
    if (step == MAKE) {
        make_logits(c, rows, !variant);
        c->index = indices(rows, d), c->side = randoms(rows * d);
        FOR(r, rows) c->dout[r] = f32(1.0 / (double)rows);
    }
    if (step == NAIVE)
        FOR(r, rows) c->expected[r] = naive_softmax(p, c->x[0] + r * d, d) - c->x[0][r * d + c->index[r]];
    if (step == NAIVE) memcpy(c->side, c->in[0], rows * d * sizeof(float));
    const float *logits = variant ? c->side : c->in[0];
    if (step == FORWARD) EACH_SHARE cross_entropy_forward(s, c->out, c->side, logits, c->index, rows, d);
    if (step == BACKWARD) EACH_SHARE cross_entropy_backward(s, c->grad[0], c->side, c->index, c->dout[0], rows, d);
    c->written = 1;
}

/* Sizes of its own: some rows serve many lists, some one, some none. Where keys and values are of one width, they are
 * the same array. */
static void make_attention(Case *c) {
    static const size_t sizes[][6] = { /* n_lists, seq_len, n_queries, d_key, d_value, rows of each position */
        {1, 1, 1, 1, 1, 2}, {3, 5, 2, 5, 5, 2}, {2, 3, 3, 3, 1, 2}, {7, 5, 5, 6, 10, 3}, {13, 7, 1, 5, 67, 6},
        {3, 13, 4, 32, 33, 3}, {67, 3, 2, 10, 6, 5}, {5, 3, 2, 37, 37, 4}};
    const size_t *size = sizes[c->number % LENGTH(sizes)], N = size[0], T = size[1], Q = N * size[2], R = T * size[5];
    make_arrays(c, R * size[3], R * size[3], size[3] != size[4] ? R * size[4] : 0, Q * size[4]);
    c->side = randoms(Q * T), c->side2 = randoms(Q * T);
    c->index = indices(N * T, size[5]), c->index2 = indices(T + 1 + R + 1 + N * T, 1);
    FOR(i, N * T) c->index[i] += (uint32_t)(i / N * size[5]);
    FOR(s, T + 1) c->index2[s] = (uint32_t)(s * size[5]);
    const Attention a = {N, T, size[2], size[3], size[4], c->index2, c->index, c->index2 + T + 1, c->index2 + T + R + 2,
                         0.4375f};
    c->attention = a;
    EACH_SHARE attention_users(s, &a);
}

static void naive_attention(Case *c) { /* the pattern goes to side2 */
    const Attention *a = &c->attention;
    const double *v = c->n[2] ? c->x[2] : c->x[1];
    const size_t N = a->n_lists, T = a->seq_len, dk = a->d_key, dv = a->d_value;
    FOR(i, a->n_queries * N) {
        const size_t t = T - a->n_queries + i / N;
        const uint32_t *row = a->row + i % N;
        double p[16] = {0};
        FOR(s, t + 1) FOR(j, dk) p[s] += c->x[0][row[t * N] * dk + j] * c->x[1][row[s * N] * dk + j] * (double)a->scale;
        naive_softmax(p, p, t + 1);
        FOR(s, T) FOR(j, dv) c->expected[i * dv + j] += p[s] * v[row[s * N] * dv + j];
        FOR(s, T) c->side2[i * T + s] = f32(p[s]);
    }
}

static void attention_by_pattern(Case *c, int step) { /* of the naive pattern */
    if (step == MAKE) make_attention(c);
    if (step == NAIVE) naive_attention(c);
    const float *v = c->in[c->n[2] ? 2 : 1];
    if (step == FORWARD) EACH_SHARE attention_values(s, &c->attention, c->out, c->side2, v);
}

static void attention(Case *c, int step) {
    const Attention *a = &c->attention;
    float **g = c->grad, **in = c->in;
    const float *v = c->n[2] ? in[2] : in[1];
    if (step != FORWARD) attention_by_pattern(c, step);
    if (step == FORWARD) EACH_SHARE attention_pattern(s, a, c->side, in[0], in[1]);
    if (step == FORWARD) EACH_SHARE attention_values(s, a, c->out, c->side, v);
    if (step != BACKWARD) return;
    EACH_SHARE attention_dscores(s, a, c->side2, c->dout, c->side, v);
    EACH_SHARE attention_backward(s, a, g[0], g[1], g[2], c->side2, c->dout, c->side, in[0], in[1]);
    c->written = in[2] ? 1 | 4 : 1;
    c->kept = a->first_row[a->seq_len - a->n_queries] * a->d_key; /* rows that don't ask */
}

static void test_attention_dscores(void) { /* p (dp - the sum of p dp) scale, for any p */
    FOR(number, 7) {
        Case of, *c = &of;
        memset(c, 0, sizeof *c);
        c->number = number, c->parts = c->last = 1 + number % 3;
        make_attention(c);
        const Attention *a = &c->attention;
        const size_t N = a->n_lists, T = a->seq_len, d = a->d_value;
        const float *v = c->n[2] ? c->in[2] : c->in[1];
        EACH_SHARE attention_dscores(s, a, c->side2, c->dout, c->side, v);
        FOR(i, N * a->n_queries) {
            double dp[16] = {0}, mean = 0;
            const size_t seen = T - a->n_queries + i / N + 1;
            FOR(s, seen) FOR(j, d) dp[s] += (double)c->dout[i * d + j] * (double)v[a->row[s * N + i % N] * d + j];
            FOR(s, seen) mean += (double)c->side[i * T + s] * dp[s];
            at("case %u, query %u", (unsigned)number, (unsigned)i);
            FOR(s, T) dp[s] = (double)c->side[i * T + s] * (dp[s] - mean) * (double)a->scale;
            FOR(s, T) NEAR(c->side2[i * T + s], dp[s], 1e-6);
        }
        release();
    }
}

/* needed: so many of backward's gradients must be there, the others may be NULL. */
static const struct {
    const char *forward_name, *backward_name;
    void (*call)(Case *, int);
    size_t needed;
} LAYERS[] = {
    {"embed_forward", "embed_backward", embed, 3}, {"gather_forward", "gather_backward", gather, 1},
    {"linear_forward", "linear_backward", linear, 0}, {"layernorm_forward", "layernorm_backward", layernorm, 3},
    {"relu_forward", "relu_backward", relu, 3}, {"softmax_forward", NULL, softmax, 3},
    {"cross_entropy_forward", "cross_entropy_backward", cross_entropy, 3},
    {"attention_values", NULL, attention_by_pattern, 3}, {"attention_pattern", "attention_backward", attention, 3}};

static double layer_loss(void *of) {
    Case *c = (Case *)of;
    double loss = 0;
    memset(c->expected, 0, c->n_out * sizeof *c->expected);
    c->layer(c, NAIVE);
    FOR(i, c->n_out) loss += (double)c->dout[i] * c->expected[i];
    return loss;
}

/* No two parts write to the same place: each is computed alone, from the same start, and what it changes is noted. */
static void check_parts(Case *c, int step) {
    unsigned char *was[LENGTH(blocks)], *changed[LENGTH(blocks)];
    const size_t n = n_blocks;
    FOR(b, n) {
        const size_t size = (size_t)(ends[b] - blocks[b]);
        was[b] = (unsigned char *)memcpy(take(size, 1), blocks[b], size), changed[b] = (unsigned char *)take(size, 1);
    }
    for (c->last = 1; c->last <= c->parts; c->last++) {
        c->first = c->last - 1;
        c->layer(c, step);
        FOR(b, n) for (unsigned char *at_byte = blocks[b]; at_byte < ends[b]; at_byte++) {
            const size_t j = (size_t)(at_byte - blocks[b]);
            if (*at_byte == was[b][j]) continue;
            CHECK(!changed[b][j], "byte %u of array %u is written by two parts", (unsigned)j, (unsigned)b);
            changed[b][j] = 1, *at_byte = was[b][j];
        }
    }
    c->first = 0, c->last = c->parts;
}

/* Gradients start from numbers other than zero, to which backward must add, but where it writes the first one. */
static void check_layer(size_t number, int backward) {
    static const char *const names[] = {"input 0", "input 1", "input 2"};
    FOR(i, LENGTH(SIZES)) {
        Case c;
        float *before[3];
        memset(&c, 0, sizeof c);
        c.number = i, c.rows = SIZES[i][0], c.d = SIZES[i][1], c.d_out = SIZES[i][2], c.layer = LAYERS[number].call;
        c.parts = c.last = 1 + i % 4;
        at("case %u, %u rows of %u (to %u)", (unsigned)i, (unsigned)c.rows, (unsigned)c.d, (unsigned)c.d_out);
        c.layer(&c, MAKE);
        FOR(k, 3) c.x[k] = c.n[k] ? doubles(c.in[k], c.n[k]) : NULL, before[k] = randoms(c.n[k]);
        c.layer(&c, NAIVE);
        check_parts(&c, FORWARD);
        c.layer(&c, FORWARD);
        if (!backward) ALL_NEAR(c.out, c.expected, c.n_out, 1e-6);
        FOR(k, 3) if ((k < LAYERS[number].needed || i % 4 != k) && c.n[k]) c.grad[k] = copy(before[k], c.n[k]);
        if (backward) check_parts(&c, BACKWARD);
        if (backward) c.layer(&c, BACKWARD);
        FOR(k, 3) FOR(j, c.written >> k & 1 ? c.n[k] : 0) if (k > 0 || j >= c.kept) before[k][j] = 0;
        FOR(k, backward ? 3 : 0) if (c.grad[k])
            check_gradient(names[k], c.grad[k], before[k], c.x[k], c.n[k], layer_loss, &c, 1.0);
        release();
    }
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

static void test_make_lists(void) {
    static const uint32_t known[][7] = {{91, 46, 16, 97, 30, 12, 27}, {31, 62, 14, 73, 23, 85, 91}};
    uint32_t *lists = indices(2000 * 31, 9), *medians = indices(2000, 9);
    size_t found[5] = {0};
    Mt19937 mt;
    mt_seed(&mt, 23);
    make_lists(&mt, lists, medians, 5, 100, 7);
    FOR(i, 2) FOR(j, 7) EQUAL(lists[4 * i * 7 + j], known[i][j]);
    for (size_t n = 3; n <= 31; n += 2) {
        make_lists(&mt, lists, medians, 200, n % 3 ? 1000 : 6, n);
        FOR(i, 200) EQUAL(medians[i], naive_median(lists + i * n, n));
        FOR(i, 200) EQUAL(median_of(lists + i * n, n), medians[i]);
    }
    make_training_lists(&mt, lists, medians, 2000, 5, 7, 0.5f); /* the first half with evenly distributed medians */
    FOR(i, 2000) EQUAL(medians[i], naive_median(lists + i * 7, 7));
    FOR(i, 1000) found[medians[i]]++;
    FOR(m, 5) NEAR(found[m], 200, 40);
    FOR(i, 1000) found[medians[1000 + i]]++;
    NEAR(found[0], 240, 80);
}

/* ---- The model --------------------------------------------------------------------------------------------------- */

static const Config MODELS[] = { /* max_num, seq_len, d_model, d_head, n_heads, n_layers, d_mlp, normalization */
    {7, 5, 10, 6, 1, 1, 0, 1},  {7, 5, 10, 6, 3, 2, 11, 1}, {7, 5, 10, 6, 1, 3, 0, 0}, {7, 5, 10, 6, 2, 1, 13, 0},
    {12, 5, 10, 2, 2, 3, 4, 1}, {7, 7, 10, 2, 2, 2, 5, 0},  {7, 3, 5, 9, 2, 2, 0, 1}};

/* A model with weights of every kind well away from 0, workspaces, lists (the first of one number only) and labels. */
enum { LISTS = 9 };
typedef struct {
    Config config;
    Model model, gradient;
    double *p; /* the parameters once more, for the naive model */
    Run run, source;
    uint32_t *lists, *labels;
} World;

static void run_on_model(void (*test)(World *), const Config *config) {
    World w;
    memset(&w, 0, sizeof w);
    w.config = *config;
    at("%u heads, %u layers, d_mlp %u, normalization %u", (unsigned)config->n_heads, (unsigned)config->n_layers,
       (unsigned)config->d_mlp, (unsigned)config->normalization);
    if (DONE(model_create(&w.model, config, &error) && model_create(&w.gradient, config, &error) &&
             run_create(&w.run, config, LISTS + 3, RUN_GRADIENTS, &error) &&
             run_create(&w.source, config, LISTS, RUN_FORWARD, &error))) {
        FOR(i, w.model.n_tensors) {
            const Tensor *t = &w.model.tensors[i];
            const int is_scale = strcmp(t->name + strlen(t->name) - 2, ".w") == 0;
            FOR(j, t->size) t->data[j] = (is_scale ? 1.0f : 0.0f) + 0.75f * uniform();
        }
        w.p = doubles(w.model.params, w.model.n_params);
        w.lists = indices((LISTS + 3) * config->seq_len, config->max_num);
        w.labels = indices(LISTS + 3, config->max_num);
        FOR(t, config->seq_len) w.lists[t] = w.lists[0];
        test(&w);
    }
    model_free(&w.model), model_free(&w.gradient);
    run_free(&w.run), run_free(&w.source);
    release();
}

/* The model once more: one list, every position, no tables, in double. */
enum { WIDE = 128 }; /* no array (seq_len, ...) is greater */
#define P(weights) (w->p + ((weights) - w->model.params))

static void naive_logits(const World *w, const uint32_t *list, double *logits) {
    const Config *c = &w->config;
    const Weights *all = &w->model.weights;
    const size_t T = c->seq_len, d = c->d_model, dh = c->d_head;
    double x[WIDE] = {0}, h[WIDE];
    FOR(t, T) FOR(j, d) x[t * d + j] = P(all->W_E)[list[t] * d + j] + P(all->W_pos)[t * d + j];
    FOR(l, c->n_layers) {
        const LayerWeights *y = &all->layers[l];
        memcpy(h, x, sizeof h);
        if (c->normalization) naive_norm(h, x, P(y->ln1_w), P(y->ln1_b), T, d);
        FOR(head, c->n_heads) {
            const size_t matrix = head * d * dh, bias = head * dh;
            double q[WIDE] = {0}, k[WIDE] = {0}, v[WIDE] = {0}, z[WIDE] = {0};
            naive_linear(q, h, P(y->W_Q + matrix), P(y->b_Q + bias), T, d, dh);
            naive_linear(k, h, P(y->W_K + matrix), P(y->b_K + bias), T, d, dh);
            naive_linear(v, h, P(y->W_V + matrix), P(y->b_V + bias), T, d, dh);
            FOR(t, T) {
                double a[8] = {0};
                FOR(s, t + 1) FOR(j, dh) a[s] += q[t * dh + j] * k[s * dh + j] / sqrt((double)dh);
                naive_softmax(a, a, t + 1);
                FOR(s, t + 1) FOR(j, dh) z[t * dh + j] += a[s] * v[s * dh + j];
            }
            naive_linear(x, z, P(y->W_O + matrix), head ? NULL : P(y->b_O), T, dh, d);
        }
        if (c->d_mlp) {
            double hidden[WIDE] = {0};
            memcpy(h, x, sizeof h);
            if (c->normalization) naive_norm(h, x, P(y->ln2_w), P(y->ln2_b), T, d);
            naive_linear(hidden, h, P(y->W_in), P(y->b_in), T, d, c->d_mlp);
            FOR(i, WIDE) hidden[i] = hidden[i] > 0 ? hidden[i] : 0;
            naive_linear(x, hidden, P(y->W_out), P(y->b_out), T, c->d_mlp, d);
        }
    }
    double *last = x + (T - 1) * d;
    if (c->normalization) naive_norm(last, last, P(all->ln_final_w), P(all->ln_final_b), 1, d);
    FOR(j, c->max_num) logits[j] = 0;
    naive_linear(logits, last, P(all->W_U), P(all->b_U), 1, d, c->max_num);
}

static double naive_loss(void *of) {
    const World *w = (const World *)of;
    double loss = 0, logits[WIDE], p[WIDE];
    FOR(i, LISTS) {
        naive_logits(w, w->lists + i * w->config.seq_len, logits);
        loss += (naive_softmax(p, logits, w->config.max_num) - logits[w->labels[i]]) / LISTS;
    }
    return loss;
}

/* The naive logits; the same bits alone and in company, and after the workspace has seen other lists. */
static void test_model_forward(World *w) {
    const size_t T = w->config.seq_len, V = w->config.max_num;
    double *expected = doubles(NULL, LISTS * V);
    FOR(i, LISTS) naive_logits(w, w->lists + i * T, expected + i * V);
    model_forward(&w->model, &w->run, indices((LISTS + 3) * T, V), LISTS + 3, NULL);
    model_forward(&w->model, &w->run, w->lists, LISTS, NULL);
    ALL_NEAR(w->run.logits, expected, LISTS * V, 1e-5);
    FOR(i, LISTS - 1) {
        const size_t n = 1 + i % 2;
        model_forward(&w->model, &w->source, w->lists + i * T, n, NULL);
        CHECK(same(w->source.logits, w->run.logits + i * V, n * V), "list %u: other bits in a batch of %u", (unsigned)i,
              (unsigned)n);
    }
}

/* The loss, and every single parameter's gradient against differences of the naive model's loss. */
static void test_model_backward(World *w) {
    const float *zeros = (const float *)take(w->model.n_params, sizeof *zeros);
    double loss = 0, mean = 0;
    FOR(pass, 2) { /* the first leaves its traces in the workspace and the gradient */
        model_forward(&w->model, &w->run, w->lists, pass ? LISTS : LISTS + 3, NULL);
        loss = model_loss(&w->run, w->labels);
        model_backward(&w->model, &w->run, w->labels, &w->gradient);
    }
    NEAR(loss, naive_loss(w), 1e-6 * loss);
    FOR(i, w->model.n_params) mean += fabs((double)w->gradient.params[i]) / (double)w->model.n_params;
    FOR(i, w->model.n_tensors) {
        const Tensor *t = &w->gradient.tensors[i];
        CHECK(t->size <= BY_ENTRY, "%s is not checked entry by entry", t->name);
        check_gradient(t->name, t->data, zeros, P(w->model.tensors[i].data), t->size, naive_loss, w, mean);
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
        if (*last == 'W') NEAR(sqrt((double)w->config.d_model * square / (double)t->size), 0.8, 0.3);
        else EQUAL(square, *last == 'w' ? t->size : 0);
    }
}

/* ---- Looking inside ---------------------------------------------------------------------------------------------- */

/* Layer 0's effective QK table, of each key position, gives the attention of the forward pass. */
static void test_circuits(World *w) {
    const size_t V = w->config.max_num, T = w->config.seq_len;
    const LayerRun *layer = &w->run.layers[0];
    float *table = randoms(V * V), *scratch = randoms(circuit_scratch(&w->config));
    model_forward(&w->model, &w->run, w->lists, LISTS, NULL);
    FOR(head, w->config.n_heads) FOR(i, LISTS) {
        const uint32_t *list = w->lists + i * T;
        double scores[8];
        FOR(s, T) {
            const Circuit which = {CIRCUIT_QK, 0, 0, head, NO_POSITION, s};
            circuit_table(&w->model, &which, table, scratch);
            scores[s] = (double)table[list[T - 1] * V + list[s]];
        }
        naive_softmax(scores, scores, T);
        ALL_NEAR(layer->pattern + ((head + 1) * layer->n_out - LISTS + i) * T, scores, T, 1e-5);
    }
}

/* The terms of the direct attribution add up to the logits. */
static void test_attribution(World *w) {
    float *scratch = randoms(w->config.d_model + w->config.d_head);
    Term terms[64];
    FOR(i, LISTS) {
        Attribution a = {{i % w->config.max_num, 0}, 0, terms, 0, {0, 0}};
        model_forward(&w->model, &w->run, w->lists + i * w->config.seq_len, 1, NULL);
        attribute(&w->model, &w->run, &a, scratch);
        CHECK(a.n_terms <= attribution_terms(&w->config), "%u terms", (unsigned)a.n_terms);
        FOR(v, 2) NEAR(a.sum[v], w->run.logits[a.numbers[v]], 1e-4);
    }
}

/* The residual stream's rows, layer by layer, and at last before ln_final. */
static void note_rows(void *context, HookSite site, size_t layer, size_t head, float *values, size_t rows,
                      size_t width) {
    (void)head, (void)values, (void)width;
    if (site == HOOK_RESIDUAL) ((size_t *)context)[layer] = rows;
}

/* A clean run's values, put at every place of a site into the clean run, change nothing, and nor does their mean over
 * lists that are all the same; the residual stream's restore a corrupted run; zeros and others' values matter, but not
 * at positions that nobody reads. */
static void test_interventions(World *w) {
    const size_t V = w->config.max_num, L = w->config.n_layers, T = w->config.seq_len;
    model_forward(&w->model, &w->source, w->lists, 1, NULL);
    const float *clean = copy(w->source.logits, V);
    FOR(site, w->config.d_mlp ? 4 : 3) FOR(mean, 2) FOR(corrupted, site == HOOK_RESIDUAL ? 2 : 1) {
        const HookSite s = (HookSite)site;
        const Target all[] = {{s, 0, ALL_HEADS, ALL_POSITIONS}, {s, 1, ALL_HEADS, ALL_POSITIONS},
                              {s, 2, ALL_HEADS, ALL_POSITIONS}};
        const ReplaceKind kind = mean ? REPLACE_MEAN : REPLACE_SAME;
        run_intervention(&w->model, &w->run, &w->source, w->lists + corrupted * T, kind, all, L);
        CHECK(same(w->run.logits, clean, V), "site %u: the clean values don't give the clean logits", (unsigned)site);
    }
    size_t rows[8] = {0};
    const Hook hook = {note_rows, rows};
    model_forward(&w->model, &w->source, w->lists, LISTS, &hook);
    FOR(l, L + 1) EQUAL(rows[l], l < L ? w->source.layers[l].n_rows : w->source.layers[L - 1].n_out);
    const float *plain = copy(w->source.logits, LISTS * V);
    FOR(kind, 4) FOR(here, 2) {
        const Target t = {HOOK_HEAD, L - 1, ALL_HEADS, here ? T - 1 : 0};
        run_intervention(&w->model, &w->run, &w->source, w->lists, (ReplaceKind)kind, &t, 1);
        EQUAL(same(w->run.logits, plain, LISTS * V), !here || kind == REPLACE_SAME);
    }
}

/* ---- The certificate --------------------------------------------------------------------------------------------- */

/* Runs every possible list; cells (max_num, max_num, 2): by last number and median, how many are right and wrong. */
static void run_all_lists(const Model *model, size_t n, uint64_t *cells) {
    const size_t V = model->config.max_num, T = model->config.seq_len;
    uint32_t *lists = indices(n * T, 1);
    Run run;
    if (!DONE(run_create(&run, &model->config, n, RUN_FORWARD, &error))) return;
    CHECK(run.bytes > (double)(n * V * sizeof *run.logits), "%.0f bytes: less than the logits", run.bytes);
    FOR(i, n) for (size_t t = 0, rest = i; t < T; t++, rest /= V) lists[i * T + t] = (uint32_t)(rest % V);
    model_forward(model, &run, lists, n, NULL);
    FOR(i, n) {
        const uint32_t median = naive_median(lists + i * T, T), last = lists[i * T + T - 1];
        cells[2 * (last * V + median) + (argmax(run.logits + i * V, V) != median)]++;
    }
    run_free(&run);
}

/* The certificate counts what running every list counts, with little effort too; in two cases logits are so great that
 * rounding decides; the last three are none that it can do. */
static void test_certify(void) {
    static const struct {
        Config config;
        size_t steps;
        float far;
    } cases[] = {
        {{20, 3, 8, 8, 2, 1, 0, 1}, 40, 0}, {{6, 5, 16, 8, 1, 1, 0, 1}, 0, 0}, {{6, 5, 16, 8, 3, 1, 0, 1}, 300, 0},
        {{6, 5, 16, 8, 1, 1, 0, 0}, 40, 0}, {{10, 5, 16, 16, 1, 1, 0, 1}, 300, 0}, {{10, 5, 12, 4, 3, 1, 0, 1}, 40, 0},
        {{4, 7, 16, 8, 1, 1, 0, 1}, 20, 0}, {{4, 7, 16, 8, 3, 1, 0, 0}, 0, 0}, {{6, 5, 16, 8, 1, 1, 0, 1}, 40, 1e4f},
        {{6, 5, 8, 8, 2, 1, 0, 0}, 40, 1e5f}, {{6, 5, 8, 8, 1, 2, 0, 1}, 0, 0}, {{6, 5, 8, 8, 1, 1, 4, 1}, 0, 0},
        {{65536, 5, 1, 1, 1, 1, 0, 1}, 0, 0}};
    FOR(k, LENGTH(cases)) {
        const size_t V = cases[k].config.max_num, possible = k + 3 < LENGTH(cases);
        Recipe r = recipe_default();
        Trainer t;
        r.steps = 300, r.batch_size = 64, r.valset_size = 10, r.warmup = 0, r.cosine = 0, r.hard = 0, r.balanced = 0;
        if (!DONE(trainer_create(&t, &r, &cases[k].config, NULL, &error))) return;
        FOR(i, cases[k].steps) trainer_step(&t);
        FOR(v, V) t.model.weights.b_U[v] += cases[k].far;
        size_t lists = 1;
        FOR(i, cases[k].config.seq_len) lists *= V;
        uint64_t *cells = (uint64_t *)take(possible ? 2 * V * V : 1, sizeof *cells);
        if (possible) run_all_lists(&t.model, lists, cells);
        FOR(full, 2) {
            const CertifyOptions options = {0, full ? 1u << 26 : 20, NULL, NULL, NULL};
            Certificate c;
            at("case %u, %s", (unsigned)k, full ? "all" : "little effort");
            const int done = certify(&t.model, &options, &c, &error);
            CHECK(done == (int)possible, "%s", done ? "certified what it cannot" : error.text);
            if (!done) continue;
            EQUAL(c.lists, lists);
            EQUAL(c.right + c.wrong + c.undecided, lists);
            FOR(i, V * V) {
                const uint64_t *cell = c.cells[i], right = cells[2 * i], wrong = cells[2 * i + 1];
                CHECK(cell[0] <= right && cell[1] <= wrong && cell[0] + cell[1] + cell[2] == right + wrong,
                      "last number %u, median %u: proven %u right, %u wrong; are %u, %u", (unsigned)(i / V),
                      (unsigned)(i % V), (unsigned)cell[0], (unsigned)cell[1], (unsigned)right, (unsigned)wrong);
            }
            CHECK(!full || c.undecided == 0, "%u lists undecided", (unsigned)c.undecided);
            CHECK(cases[k].far > 0 || c.lists_run < lists / 100, "%.0f lists run", (double)c.lists_run);
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
    r.trainset_size = fresh ? 0 : 70, r.valset_size = 10, r.batch_size = fresh ? 1000 : 16, r.steps = 13;
    r.keep_best = !fresh, r.cosine = (size_t)fresh, r.balanced = 0.5f, r.hard = 0.5f;
    DONE(trainer_create(t, &r, fresh ? &NARROW : &SMALL, NULL, &error));
    CHECK(same(trainer_result(t)->params, t->model.params, t->model.n_params), "at first, the best is another");
    mt_seed(&t->data, 1), mt_seed(&t->order_mt, 1); /* a generator without a number left is a case of its own */
}

static void make_state(int fresh) {
    Trainer t;
    start_training(&t, fresh);
    FOR(i, 6) trainer_step(&t);
    DONE(trainer_save(&t, STATE_NAME, &error));
    trainer_free(&t);
}

/* A training ends with the same bits, saved, forgotten and resumed after every step or not; its losses count, too. */
static void test_resume(void) {
    static const uint64_t golden[] = {UINT64_C(0x02e9ecba2980b339), UINT64_C(0x708fae64896cb774)};
    FOR(fresh, 2) FOR(interrupted, 2) {
        uint64_t hash = HASH_START;
        Trainer t;
        start_training(&t, (int)fresh);
        while (t.step < t.total_steps) {
            const int validated = t.validated;
            if (interrupted) {
                DONE(trainer_save(&t, FILE_NAME, &error));
                trainer_free(&t);
                if (!DONE(trainer_resume(&t, FILE_NAME, &error))) return;
            }
            EQUAL(t.validated, validated);
            trainer_step(&t);
            const float told[] = {f32(t.loss), f32(t.accuracy)};
            hash = hash_floats(hash, told, 2);
        }
        hash = hash_floats(hash, trainer_result(&t)->params, t.model.n_params);
        at("%s lists%s", fresh ? "fresh" : "fixed", interrupted ? ", resumed" : "");
        CHECK(hash == golden[fresh], "expected %016" PRIx64 ", got %016" PRIx64, golden[fresh], hash);
        t.v.params[0] = HUGE_VALF;
        CHECK(!trainer_save(&t, FILE_NAME, &error) && strstr(error.text, "no longer finite"), "%s", error.text);
        trainer_free(&t);
    }
}

/* The bounds of every number: they are taken, and printed as they were given; what lies beyond them is not, nor does a
 * model come of it. */
static void test_settings(void) {
    static const struct {
        const char *name;
        double least, most;
    } bounds[] = {{"max-num", 2, 65536}, {"seq-len", 3, 255}, {"d-model", 1, 65536}, {"d-head", 1, 65536},
                  {"n-layers", 1, 256}, {"n-heads", 1, 4096}, {"d-mlp", 0, 1048576}, {"trainset-size", 0, 1e9},
                  {"balanced", 0, 1}, {"hard", 0, 1}, {"valset-size", 0, 1e9}, {"epochs", 0, 1e9}, {"steps", 0, 4e9},
                  {"batch-size", 1, 1e6}, {"lr", 0, 1000}, {"warmup", 0, 4e9}, {"beta1", 0, 0.999999},
                  {"beta2", 0, 0.999999}, {"eps", 1e-30, 1}, {"weight-decay", 0, 1000}, {"seed", 0, 4294967295.0}};
    Run run;
    FOR(i, n_settings) FOR(k, LENGTH(bounds)) FOR(most, 2) if (strcmp(settings[i].name, bounds[k].name) == 0) {
        const double bound = most ? bounds[k].most : bounds[k].least;
        const size_t beyond = most ? (size_t)bound + 2 : (size_t)bound - 1;
        Settings all = {config_default(), recipe_default()};
        char text[40];
        const char *end;
        Model model;
        at("%s", settings[i].name);
        snprintf(text, sizeof text, "%.10g", most ? bound + 1 : bound - 1);
        CHECK(!setting_parse(&settings[i], &all, text, &error) || !config_check(&all.config, &error), "%s too", text);
        snprintf(text, sizeof text, "%.10g", bound);
        DONE(setting_parse(&settings[i], &all, text, &error) && config_check(&all.config, &error));
        setting_print(&settings[i], &all, text, sizeof text);
        CHECK(parse_double(text, &end) == bound, "%.10g is printed as %s", bound, text);
        if (settings[i].offset >= sizeof all.config) continue;
        memcpy((char *)&all + settings[i].offset, &beyond, sizeof beyond);
        CHECK(!model_create(&model, &all.config, &error) && !model.params, "an impossible model is made");
    }
    CHECK(!run_create(&run, &SMALL, SIZE_MAX / 16, RUN_GRADIENTS, &error) && !run.memory, "an impossible run is made");
    FOR(missing, 2) { /* a recipe has no text: trainer_create itself must see what it lacks */
        static const char *const what[] = {"at least one list", "need --steps"};
        Recipe r = recipe_default();
        Trainer t;
        *(missing ? &r.steps : &r.batch_size) = 0;
        CHECK(!trainer_create(&t, &r, &SMALL, NULL, &error) && strstr(error.text, what[missing]), "%s", error.text);
    }
}

/* Texts of any length into a Text, into an array and into a file: the same. */
TENSOR_PRINTF(2, 3) static void check_format(const char *expected, const char *format, ...) {
    Text text = {0};
    char array[64], cut[4];
    va_list args;
    va_start(args, format);
    text_add_args(&text, format, args);
    va_end(args);
    CHECK(text.data && strcmp(text.data, expected) == 0, "%s gives '%s', should be '%s'", format, text.data, expected);
    EQUAL(text.size, strlen(expected));
    EQUAL(print_to(array, sizeof array, "%s", text.data), strlen(expected) < sizeof array);
    CHECK(strncmp(array, expected, sizeof array - 1) == 0, "cut to '%s'", array);
    EQUAL(print_to(cut, sizeof cut, "%s%s", text.data, "x"), strlen(expected) < 3);
    EQUAL(strlen(cut), smaller(3, strlen(expected) + 1));
    text_free(&text);
}

static void test_text_add(void) {
    const uint64_t most = UINT64_MAX;
    Text text = {0};
    check_format("7 -7 +7 +0|0", "%d %d %+d %+d|%u", 7, -7, 7, 0, 0u);
    check_format("-2147483648 4294967295", "%d %u", INT32_MIN, UINT32_MAX);
    check_format("18446744073709551615 ffffffffffffffff 0", "%" PRIu64 " %" PRIx64 " %zu", most, most, (size_t)0);
    check_format("00000000000000ff|  ff|ff  |", "%016" PRIx64 "|%4x|%-4x|", (uint64_t)255, 255u, 255u);
    check_format("    7|7    |-0007|+0007|   -7|", "%5d|%-5d|%05d|%+05d|%*d|", 7, 7, -7, 7, 5, -7);
    check_format("7  |", "%*d|", -3, 7);
    check_format("abc|ab|ab|   ab|ab   ||", "%s|%.2s|%.*s|%5.2s|%-5.2s|%.0s|", "abc", "abc", 2, "abc", "abc", "abc", "abc");
    check_format("100 % x%", "%d %% %c%%", 100, 'x');
    check_format("1.500000 1.5 2 2. 1.500e+00 1.50000", "%f %g %.0f %#.0f %.3e %#g", 1.5, 1.5, 1.5, 1.5, 1.5, 1.5);
    check_format("+1.50|  -1.5|-001.5|1.5   |inf", "%+.2f|%6.1f|%06.1f|%-6.1f|%f", 1.5, -1.5, -1.5, 1.5, HUGE_VAL);
    text_add(&text, "%d%5000d", 7, 1); /* longer than any buffer */
    EQUAL(text.size, 5001);
    CHECK(text.data[0] == '7' && text.data[1] == ' ' && text.data[5000] == '1', "got %.30s", text.data);
    text_free(&text);
}

/* What is wrong with a training's state when, in its header, `from` is replaced by `to` and spaces, or by `to` and what
 * follows is lost; without `from`, the whole header; or when tensor `from` has the word @number:value. ' stands for ".
 * Each complaint is here once; .ci/cli has more. */
static const struct {
    const char *from, *to, *message;
} FAULTS[] = {
    {NULL, "{'mask':{'dtype':'F64','shape':[0],'data_offsets':[0,0]},'IGNORE':{'dtype':'U8','shape':[0],"
           "'data_offsets':[0,0]}}", "something stands behind the last tensor"},
    {NULL, "[]", "no { (bad header at byte 8)"}, {NULL, "{}", "no tensor in it"},
    {NULL, "{'__metadata__':{}} x", "something stands behind the end"},
    {NULL, "{'a':{'dtype':'F", "a string does not end"}, {NULL, "{'\\u0", "an unknown escape"},
    {NULL, "{'a':{'shape':[1", "no ,"}, {NULL, "{'a':{'shape':[],'data_offsets':[],", "no \""},
    {NULL, "{'a':{'dtype':'F64','shape':[9999999999],'data_offsets':[0,79999999992]}}",
     "out of memory: it claims to have 76294 MiB"}, {"'max-num':", "'max-num'", "no :"},
    {"'10'", "'\\u00Ff\\u0001\\n\\/'", "the metadata says max-num ?"},
    {"'max-num':'10','seq-len':'5','d-model':'16','d-head':'16','n-layers':",
     "'a key with more characters than are kept':'','max-num':'9','x':", "the metadata says max-num 9"},
    {"'seq-len'", "'max-num'", "stands twice in __metadata__"}, {"'},'embed", "']'embed", "no ,"},
    {"'embed.W_E':", "'__metadata__':", "__metadata__ stands twice"},
    {"'F32'", "'F99'", "tensor embed.W_E has the unknown type 'F99'"},
    {"'F32'", "'I32'", "the type I32 instead of F32"}, {"'dtype'", "'dtypo'", "an unknown key"},
    {"[10,16]", "[10,016]", "no whole number"}, {"[10,16]", "10", "no ["},
    {"[10,16]", "[1,1,1,1,1,1,1,1,1]", "too many numbers"},
    {"[10,16]", "[10,17]", "tensor embed.W_E: its dtype, shape and data_offsets don't fit together"},
    {"[10,16]", "[20,8]", "embed.W_pos has another shape than 5 x 8"}, {"[10,16]", "[160]", "d-model is 0"},
    {NULL, "{'a':{'dtype':'F32','shape':[0],'shape':[0]}}",
     "tensor a: its dtype, shape and data_offsets don't fit together"}, {"[0,640]", "[1,641]", "begins after a gap"},
    {"[640,960]", "[639,959]", "overlaps another"}, {"'pos_embed.W_pos'", "'embed.W_E'", "stands twice"},
    {"pos_embed.W_pos", "pos_embed.W_x", "W_pos is missing"}, {"ln_final.w", "ln_final.x", "has no place in the model"},
    {"'state.m'", "'state.x'", "tensor state.m is missing"}, {"'state.m'", "'b_m'", "b_m has no place in the model"},
    {"'U32'", "'I32'", "tensor state.data_mt has the type I32 instead of U32"},
    {"'warmup'", "'x'", "the metadata lacks warmup"}, {"'lr':'0.003'", "'lr':'-1'", "--lr is '-1'"},
    {"'valset-size':'10'", "'valset-size':'0'", "state.words is damaged"},
    {"'batch-size':'16'", "'batch-size':'0'", "--batch-size"}, {"embed.W_E", "@9:0x7fc00000", "embed.W_E holds NaN"},
    {"embed.W_E", "@159:0xff800000", "embed.W_E holds infinity"},
    {"state.m", "@0:0x7f800000", "state.m holds infinity"}, {"'state.order'", "@0:70", "state.order is damaged"},
    {"'state.order'", "@69:8", "a list stands in it twice"}, {"state.v", "@5:0xb3000000", "a mean square is negative"},
    {"state.words", "@0:14", "state.words is damaged"}, {"state.words", "@1:2", "state.words is damaged"},
    {"state.words", "@2:11", "state.words is damaged"}, {"state.words", "@3:625", "state.words is damaged"},
    {"state.words", "@4:625", "state.words is damaged"}, {"state.words", "@5:1", "state.words is damaged"}
};

/* The state's file, in its header ' for ". */
static char file[1 << 18];
static size_t file_size, header_size;

static void swap_quotes(char from, char to) {
    FOR(i, header_size) if (file[8 + i] == from) file[8 + i] = to;
}

static void read_state(void) {
    FILE *f = fopen(STATE_NAME, "rb");
    file_size = f ? fread(file, 1, sizeof file, f) : 0;
    header_size = (unsigned char)file[0] + 256u * (unsigned char)file[1];
    swap_quotes('"', '\'');
    if (f) fclose(f);
}

static void spoil(const char *from, const char *to) {
    char *header = file + 8, *place = from ? strstr(header, from) : header, *end;
    CHECK(place != NULL, "%s is not in the header", from);
    if (!place) return;
    if (*to == '@') {
        place = header + header_size + strtoul(strstr(place, "data_offsets':[") + 15, NULL, 10);
        place += 4 * strtoul(to + 1, &end, 10);
        FOR(i, 4) place[i] = (char)(strtoul(end + 1, NULL, 0) >> 8 * i & 255);
    } else {
        memset(place, ' ', from ? strlen(from) : header_size);
        FOR(i, strlen(to)) place[i] = to[i];
    }
}

/* Resumes from the file, which must fail with that message; then the file is sound again. */
static void expect_fault(const char *message) {
    const Text text = {.data = file, .size = file_size, .capacity = sizeof file};
    Trainer t;
    swap_quotes('\'', '"');
    DONE(write_file(FILE_NAME, &text, &error));
    if (trainer_resume(&t, FILE_NAME, &error)) CHECK(0, "it is taken"), trainer_free(&t);
    else CHECK(strstr(error.text, message) != NULL, "expected '%s', got '%s'", message, error.text);
    read_state();
}

static void test_faults(void) {
    static const char *const types[] = {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32",
                                        "U32", "F32", "I64", "U64", "F64"};
    file_size = 0, expect_fault("cut off: 8 bytes are missing");
    make_state(0), read_state();
    FOR(i, LENGTH(FAULTS)) {
        at("%s -> %s", FAULTS[i].from ? FAULTS[i].from : "the header", FAULTS[i].to);
        spoil(FAULTS[i].from, FAULTS[i].to);
        expect_fault(FAULTS[i].message);
    }
    FOR(i, LENGTH(types)) { /* tensors of every type that the format has are passed over */
        const char *digit = strpbrk(types[i], "1368");
        const int size = digit ? (int)strtol(digit, NULL, 10) : 8;
        char header[100];
        snprintf(header, sizeof header, "{'a':{'dtype':'%s','shape':[8],'data_offsets':[0,%d]}}", types[i], size);
        at("%s", types[i]);
        spoil(NULL, header);
        expect_fault("something stands behind the last tensor");
    }
    file_size--, expect_fault("cut off: 1 bytes are missing");
    file[3] = 1, expect_fault("its header would have");
    file_size++, expect_fault("something stands behind the last tensor");
    make_state(1), read_state();
    spoil("state.hard", "@0:10"), expect_fault("state.hard is damaged");
}

/* ---- The command line -------------------------------------------------------------------------------------------- */

/* Models: the usual kind, trained well; one with everything that a model can have; one of zeros; one of numbers that
 * are too great. And a training's state. */
#define A "median-test-a.tmp"
#define B "median-test-b.tmp"
#define C "median-test-c.tmp"
#define D "median-test-d.tmp"
#define ON_A " --model " A
#define ON_B " --model " B
#define LOG_NAME "median-test-log.tmp"
#define IN_NAME "median-test-in.tmp"
#define OUT_NAME "median-test-out.tmp"
#define TINY "--seq-len 5 --d-model 8 --d-head 8 --valset-size 50 --batch-size 32 "

/* Command lines; behind '<' stands the input, with / for the end of a line. Their exit status (BOTH: to be run on A,
 * then on B, with success), and what the output or the error says, or the hash of the output. */
enum { BOTH = -1 };
static const struct {
    const char *line;
    int status;
    const char *said;
} LINES[] = {
    {"info", BOTH, "85cc17ff69167668"}, {"tour --size 50", BOTH, "f5e6998fe183cea2"},
    {"eval --size 500", BOTH, "485a298cfe421ccf"}, {"eval --size 500 --seed 3 --csv", BOTH, "aad10c62149a1db0"},
    {"predict 1 2 3 4 5", BOTH, "c69f737fe54cf0a9"}, {"predict --logits 9 0 9 -0 5", BOTH, "ae5facd7f70ddeec"},
    {"predict < 1 2 3 4 5// 5,4,3,2,1 /01 02 03 04 05", BOTH, "1065def3b0e38f3e"},
    {"attention --size 20", BOTH, "1285d15b9e46dd4d"}, {"attention --size 20 --csv", BOTH, "8b7db0907ec602c8"},
    {"attention --color --size 9 1 2 3 4 5", BOTH, "17196d5c42665ffe"}, {"circuits qk", BOTH, "eb65ea8b992825ff"},
    {"circuits qk --csv --raw --query-pos 1 --key-pos 2", BOTH, "c8a046832fef8f6d"},
    {"circuits qk --query-pos 1 --width 40", BOTH, "a3e468f16060f358"},
    {"circuits ov --head 0.0 --key-pos 0", BOTH, "9c6426d7c65dce45"}, {"circuits ov --csv", BOTH, "55b270ba970b1099"},
    {"circuits ov --raw --color", BOTH, "960b8e2ef0890869"}, {"weights", BOTH, "88457b492a49b21b"},
    {"weights --csv", BOTH, "ac08f4ef7d52ac03"}, {"ablate --size 20", BOTH, "994910aa794afbb7"},
    {"ablate --size 20 --csv --kind resample --head 0.0 --positions 0,4", BOTH, "f1ed5d8bed9a52b4"},
    {"ablate --size 20 --kind zero --layer 0", BOTH, "4e773c755d13374b"},
    {"ablate --size 20 --positions 4", BOTH, "24e0219711058ef4"}, {"attribute", BOTH, "b7b78abbf68d97b9"},
    {"attribute --csv 9 1 8 2 7", BOTH, "5c03fc6cc09c1f66"}, {"patch", BOTH, "69f851f132df997b"},
    {"patch --csv 1 2 3 4 5 1 2 9 4 5", BOTH, "892f175aa20adc80"}, {"explain --size 300", BOTH, "38c000884ee677da"},
    {"explain --size 1100 --csv", BOTH, "ac28d8c7e0ffffb2"},
    {"--version", 0, "median 1."}, {"--help", 0, "Exit status"}, {"-h", 0, "Exit status"}, {"help", 0, "Exit status"},
    {"train --help", 0, "5b12088271832a42"}, {"data --help", 0, "e7e3f15618cbdb89"},
    {"--color --help", 0, "median [--option value]"}, {"data --size 1001", 0, "9ee78e9a20bf7b01"},
    {"data --size 3 --max-num=100 --seed 23", 0, "91 46 16 97 30 12 27 | 30"}, {"check", 0, "9cf538c9da69b0ac"},
    {"bench --size 2 --batch-size 8", 0, "MFLOP a step"}, {"info --model " C, 0, "803c6f397fe4851c"},
    {"tour --size 20 --model " C, 0, "6bbbedef23565e71"}, {"weights --model " C, 0, "d6e38fff8dd66d29"},
    {"explain --csv --size 5 --model " C, 0, "0566a73b5568d476"},
    {"train --resume " STATE_NAME " --log " LOG_NAME " --save-every 2 --out " FILE_NAME, 0, "7285c653b9a38081"},
    {"train " TINY "--max-num 9 --epochs 9 --steps 2 --out " FILE_NAME, 0, "3011c5b30c0fdb37"},
    {"train --init " A " --steps 3 --batch-size 40 --valset-size 0 --threads 2 --out " FILE_NAME, 0,
     "14b632c69103559d"},
    {"train " TINY "--trainset-size 32 --normalization none --n-layers 4 --lr 1000 --steps 99 --out " FILE_NAME, 1,
     "no longer finite"}, {"train --setps 3", 2, "did you mean --steps?"},
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
    {"certify" ON_A, 0, "fc84ce740d29e907"}, {"certify --csv" ON_A, 0, "df0bb4159f48081b"},
    {"certify --model " B, 1, "one layer"}, {"eval --size 2 --model " D, 1, "so great that numbers overflow"},
    {"circuits qk --raw" ON_A, 0, "b0bf9b259e8dd85b"}, {"explain --size 9 --seed 9" ON_A, 0, "Much of the mechanism"},
    {"ablate --size 9 --csv --part mlp --positions 0 --model " B, 0, "95962bf31b014990"},
    {"ablate --size 9 --head 0.0,1.1 --model " B, 0, "aad96826165a929a"},
    {"ablate --size 9 --part attn --layer 0 --positions 1 --model " B, 0, "fd3ab32322cedc32"},
    {"ablate --size 9 --csv --part mlp --layer 0,1 --head 1.1 --model " B, 0, "a3717a29df3fd0fd"}
};

static void check_line(const char *line, int status, const char *expected) {
    const size_t n = strcspn(line, "<");
    uint64_t hash = HASH_START;
    Text said = {0};
    FOR(b, status == BOTH ? 2 : 1) {
        const char *input = line + n;
        char words[500], *argv[60];
        int argc = 0;
        snprintf(words, sizeof words, "median %.*s%s", (int)n, line, status != BOTH ? "" : b ? ON_B : ON_A);
        for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
        FILE *in = fopen(IN_NAME, "wb+"), *progress = fopen(OUT_NAME, "wb");
        for (; in && *input; input++) fputc(*input == '/' ? '\n' : *input == '<' ? ' ' : *input, in);
        if (in) rewind(in);
        const Streams streams = {in, NULL, progress};
        error.usage = 0, error.text[0] = 0;
        text_free(&said);
        const int ready = CHECK(in && progress, "no file can be made here");
        const int done = ready && median_command(argc, argv, &streams, &said, &error);
        EQUAL(done ? 0 : 1 + error.usage, status == BOTH ? 0 : status);
        hash = hash_bytes(hash, said.data, said.size);
        if (in) fclose(in);
        if (progress) fclose(progress);
    }
    char digits[20];
    snprintf(digits, sizeof digits, "%016" PRIx64, hash);
    text_add(&said, "%s", error.text);
    CHECK(strstr(said.data, expected) || !strcmp(digits, expected), "expected %s, got %s: %.200s", expected, digits,
          said.data);
    text_free(&said);
}

static void make_files(void) {
    static int done = 0;
    const Note note = {"a note of 23 characters", "that is kept, but not its \177"}; /* the longest name; 127 */
    Model zero;
    if (done++) return;
    check_line("train --max-num 10 " TINY "--steps 1500 --warmup 20 --out " A, 0, "1500 steps");
    check_line("train --preset original --max-num 19 " TINY "--trainset-size 200 --epochs 8 --balanced 0.3 "
               "--no-shuffle --n-layers 2 --n-heads 2 --d-mlp 6 --normalization none --weight-decay 0.01 "
               "--log " LOG_NAME " --out " B, 0, "steps");
    DONE(model_create(&zero, &SMALL, &error));
    zero.notes[0] = note, zero.n_notes = 1;
    DONE(model_save(&zero, C, &error));
    FOR(i, zero.n_params) zero.params[i] = 1e38f;
    DONE(model_save(&zero, D, &error));
    model_free(&zero);
    make_state(0);
}

/* ---- The tests in their order ------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;
    void (*run)(void);
    void (*run_on)(World *); /* on each of MODELS */
} Test;

#define TEST(name) {#name, test_##name, NULL}
#define ON_MODELS(name) {#name, NULL, test_##name}
static const Test GROUND[] = {
    TEST(smaller), TEST(f32), TEST(ieee_setup), TEST(mt_seed), TEST(mt_fill), TEST(mt_next), TEST(exp_f32),
    TEST(log_f32), TEST(hash_bytes), TEST(hash_floats), TEST(mt_normal), TEST(share_begin), TEST(share_end),
    TEST(attention_users), TEST(attention_dscores), TEST(adam_step), TEST(singular_values), TEST(print_double),
    TEST(parse_double), TEST(use_threads)};
static const Test STORY[] = {
    TEST(make_lists), ON_MODELS(model_init), ON_MODELS(model_forward), ON_MODELS(model_backward), ON_MODELS(circuits),
    ON_MODELS(attribution), ON_MODELS(interventions), TEST(resume), TEST(settings), TEST(text_add), TEST(faults),
    TEST(certify)};

static int passed, failed;
static size_t n_wanted; /* the names of which a test's must contain one; 0: all are wanted */
static const char *const *wanted;

static void make_printable(char *text) {
    for (; *text; text++)
        if (*text < ' ' || *text > '~') *text = '?';
}

static int begin(const char *name) {
    int chosen = n_wanted == 0;
    snprintf(title, sizeof title, "%s", name);
    make_printable(title);
    FOR(i, n_wanted) chosen |= strstr(title, wanted[i]) != NULL;
    failure[0] = where[0] = 0;
    noise = 1;
    return chosen;
}

static void finish(void) {
    release();
    make_printable(failure);
    if (failure[0]) printf("FAIL %s: %s\n", title, failure), failed++;
    else printf("ok   %s\n", title), passed++;
    fflush(stdout);
}

static void run_table(const Test *tests, size_t n) {
    FOR(i, n) if (begin(tests[i].name)) {
        if (tests[i].run) tests[i].run();
        FOR(m, tests[i].run ? 0 : LENGTH(MODELS)) run_on_model(tests[i].run_on, &MODELS[m]);
        finish();
    }
}

static void run_layers(void) {
    FOR(i, LENGTH(LAYERS)) {
        if (begin(LAYERS[i].forward_name)) check_layer(i, 0), finish();
        if (LAYERS[i].backward_name && begin(LAYERS[i].backward_name)) check_layer(i, 1), finish();
    }
}

static void run_lines(void) {
    static const char *const files[] = {FILE_NAME, STATE_NAME, LOG_NAME, IN_NAME, OUT_NAME, A, B, C, D};
    FOR(i, LENGTH(LINES)) if (begin(LINES[i].line)) {
        make_files();
        check_line(LINES[i].line, LINES[i].status, LINES[i].said);
        finish();
    }
    FOR(i, LENGTH(files)) remove(files[i]);
}

/* Each storey stands on those before it: where something fails, those above are not tested. */
int run_tests(size_t n_names, const char *const *names) {
    n_wanted = n_names, wanted = names, passed = failed = 0;
    run_table(GROUND, LENGTH(GROUND));
    if (!failed) run_layers();
    use_threads(3); /* from here on, where there are threads */
    if (!failed) run_table(STORY, LENGTH(STORY));
    if (!failed) run_lines();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
