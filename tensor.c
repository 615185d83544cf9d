/* tensor.c - see tensor.h for the promise and the habits that keep it.
 *
 * The chapters: rounding; sums, the primitives that everything below is made of; random numbers;
 * exp and log; hashing; then layer after layer, each forward pass with its backward pass and the
 * derivation between them; singular values; Adam; numbers as text. Whoever comes for the
 * transformer may skip to "Embedding"; in "Linear layers" the comment above Factors says all, and
 * one may go on at linear_forward. KERNEL, the two LOOPs and FOUR only make it fast. */
#include "tensor.h"

#include <string.h>

/* gcc 11 and clang define no macro for some parts of -ffast-math. Each leaves its mark on a line
 * below: the compiler cannot know the values, which are volatile, but may rewrite the expressions.
 * Stands before the pragma, behind which gcc 11 forgets the flags that median.c is compiled with.
 * Returns NULL, or what is wrong. */
static const char *flag_at_work(void) {
    volatile double source[4] = {2.75, 5.0, (double)NAN, (double)INFINITY};
    const double x = source[0];
    const double five = source[1];
    const double nan = source[2];
    const double infinity = source[3];
    const char *wrong = NULL;
    if (nan == nan) wrong = "-fno-honor-nans takes NaN for impossible: build without";
    if (infinity != (double)INFINITY)
        wrong = "-fno-honor-infinities takes infinity for impossible: build without";
    if (five / 3.0 != 0x1.aaaaaaaaaaaabp+0) /* five times (1 / 3) is one unit less */
        wrong = "-freciprocal-math turns x / y into x * (1 / y): build without";
    /* last, since what implies both is called by this message */
    if (x + 0x1.8p52 - 0x1.8p52 != 3.0) /* doubles of that size are whole numbers */
        wrong = "-fassociative-math (or -funsafe-math-optimizations) reorders sums: build without";
    return wrong;
}

/* Tells the compiler that sqrt has no side effect (no errno for x >= 0), so it may vectorise it.
 * Before the pragma, too: picolibc defines sqrt in its header, without these options. */
#ifdef __GNUC__
double sqrt(double) __attribute__((const));
#endif

#if defined __GNUC__ && !defined __clang__ && __GNUC__ >= 8 && !defined __powerpc__
/* A bare `cc *.c` deserves speed too. No value changes: nothing here looks at exception flags. The
 * last two options keep GCC from undoing what stands here on purpose: from unrolling the loops
 * around sums that are kept in registers, and from calling memcpy for seven floats. */
#pragma GCC optimize("O3", "no-trapping-math", "no-associative-math")
#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512")
#endif
#pragma GCC optimize("no-loop-unroll-and-jam", "no-tree-loop-distribute-patterns")
/* Stands before short loops of fixed length: GCC would otherwise unroll them into single operations
 * before it looks for vectors. */
#define VECTOR_LOOP _Pragma("GCC unroll 1")
#else
#define VECTOR_LOOP
#endif
/* Stands before loops of fixed length whose arrays can stay in registers if they are unrolled. */
#ifdef __GNUC__
#define REGISTER_LOOP _Pragma("GCC unroll 16")
#else
#define REGISTER_LOOP
#endif

/* The hot functions are compiled a second time for x86-64 processors with AVX2 and FMA, and the
 * matrix product a third time for those with AVX-512; the best version is picked at run time. Other
 * compilers and processors compile them once. */
#if defined __GNUC__ && !defined __clang__ && __GNUC__ >= 12 && defined __x86_64__ && \
    defined __GLIBC__ && !defined __AVX2__ && !defined __SANITIZE_ADDRESS__
#define KERNEL __attribute__((target_clones("arch=x86-64-v3", "default")))
#define AVX512_KERNEL __attribute__((target("arch=x86-64-v4")))
#define HAS_AVX512 __builtin_cpu_supports("x86-64-v4")
#else
#define KERNEL
#define AVX512_KERNEL
#if defined __AVX512F__ && !defined __clang__ /* which prefers half registers */
#define HAS_AVX512 1
#else
#define HAS_AVX512 0
#endif
#endif

/* LANES decides results, since it fixes the order of sums, and so does tensor.h's SUM_DEPTH. All
 * other sizes decide only how fast it is. */
enum {
    LANES = 8,           /* running sums of a row */
    STRIP = 16,          /* columns whose sums stay in registers */
    TILE_COLUMNS = 8,    /* the piece of a matrix product that stays in registers is so wide */
    TILE_ROWS = 6,       /* and so high, */
    LOW_TILE_ROWS = 4,   /* or so for gradients of weights: 4 divides most widths, */
    HIGH_TILE_ROWS = 16, /* or with the 32 wide registers of AVX-512 so high */
    PANEL = 40           /* columns of the right factor that are widened together, on the stack */
};

/* ---- Rounding -------------------------------------------------------------------------------- */

int ieee_setup(const char **problem) {
#if defined __GNUC__ && (defined __i386__ || defined __x86_64__) && !TENSOR_EXACT_TYPES
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    control = (unsigned short)((control & ~0x300u) | 0x200u);
    __asm__ volatile("fldcw %0" : : "m"(control));
#elif defined __GNUC__ && defined __m68k__ && !TENSOR_EXACT_TYPES
    unsigned control = 0x80;
    __asm__ volatile("fmove%.l %0, %!" : : "dm"(control));
#endif
    /* Just above the middle of two doubles must go up, the middle itself to the even one, 1. Each
     * sum has two terms, so that there is nothing to reorder. */
    volatile double one = 1.0, half_ulp = 0x1p-53, above_half = 0x1.02p-53;
    const char *wrong = flag_at_work();
    if (one + half_ulp != 1.0 || one + above_half != 1.0 + 0x1p-52)
        wrong = "doubles do not round to 53 bits, ties to even: is another rounding mode set?";
    if (problem) *problem = wrong;
    return wrong == NULL;
}

/* ---- Sums: the primitives -------------------------------------------------------------------- */

/* out[i] = f32(sums[i]). */
KERNEL void round_sums(float *out, const double *sums, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = f32(sums[i]);
}

/* The initializer of four doubles. Four floats at a time are what x86 converts straight from
 * memory, in half the time per float of the eight or sixteen that compilers load by themselves. */
#define FOUR(x) {(double)(x)[0], (double)(x)[1], (double)(x)[2], (double)(x)[3]}

/* sums[j] += weight * x[j]. */
TENSOR_INLINE void add_row(double *sums, float weight, const float *x, size_t n) {
    size_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const double four[4] = FOUR(x + j);
        VECTOR_LOOP
        for (size_t i = 0; i < 4; i++) sums[j + i] += (double)weight * four[i];
    }
    for (; j < n; j++) sums[j] += (double)weight * (double)x[j];
}

/* A row is summed in eight running sums, element i into sum i mod 8, which are then joined
 * pairwise; what is left over when n is no multiple of eight follows one by one. The order is fixed
 * here, and independent sums are what vector units and pipelines want. */
TENSOR_INLINE double join(const double low[4], const double high[4]) {
    double four[4];
    VECTOR_LOOP
    for (size_t j = 0; j < 4; j++) four[j] = low[j] + high[j];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

TENSOR_INLINE double row_sum(const float *x, size_t n) {
    double low[4] = {0}, high[4] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        add_row(low, 1.0f, x + i, 4);
        add_row(high, 1.0f, x + i + 4, 4);
    }
    if (i > 0) sum = join(low, high);
    for (; i < n; i++) sum += (double)x[i];
    return sum;
}

/* sums[j] += x[j] y[j], four of them. */
TENSOR_INLINE void add_products(double sums[4], const float *x, const float *y) {
    const double a[4] = FOUR(x), b[4] = FOUR(y);
    VECTOR_LOOP
    for (size_t j = 0; j < 4; j++) sums[j] += a[j] * b[j];
}

TENSOR_INLINE double dot(const float *x, const float *y, size_t n) {
    double low[4] = {0}, high[4] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        add_products(low, x + i, y + i);
        add_products(high, x + i + 4, y + i + 4);
    }
    if (i > 0) sum = join(low, high);
    for (; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* x . y, and on the way sums[i] += weight * x[i]. */
TENSOR_INLINE double dot_and_add(double *sums, float weight, const float *x, const float *y,
                                 size_t n) {
    double low[4] = {0}, high[4] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        add_products(low, x + i, y + i);
        add_products(high, x + i + 4, y + i + 4);
        add_row(sums + i, weight, x + i, LANES);
    }
    if (i > 0) sum = join(low, high);
    for (; i < n; i++) {
        sum += (double)x[i] * (double)y[i];
        sums[i] += (double)weight * (double)x[i];
    }
    return sum;
}

/* The sum of f32(x[i] w[i]) y[i]. */
TENSOR_INLINE double weighted_dot(const float *x, const float *w, const float *y, size_t n) {
    double low[4] = {0}, high[4] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float xw[LANES];
        VECTOR_LOOP
        for (size_t j = 0; j < LANES; j++) xw[j] = f32(x[i + j] * w[i + j]);
        add_products(low, xw, y + i);
        add_products(high, xw + 4, y + i + 4);
    }
    if (i > 0) sum = join(low, high);
    for (; i < n; i++) sum += (double)f32(x[i] * w[i]) * (double)y[i];
    return sum;
}

/* sums[j] += the sum over the rows of x[r][j], or of x[r][j] times[r][j], in n <= STRIP columns of
 * rows of width d. */
TENSOR_INLINE void add_strip(float *sums, const float *x, const float *times, size_t rows, size_t d,
                             size_t n) {
    double s[STRIP] = {0};
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j++)
            s[j] += (double)x[r * d + j] * (times ? (double)times[r * d + j] : 1.0);
    for (size_t j = 0; j < n; j++) sums[j] = f32((double)sums[j] + s[j]);
}

/* The same in all d columns. */
KERNEL static void add_columns(float *sums, const float *x, const float *times, size_t rows,
                               size_t d) {
    size_t j = 0;
    for (; j + STRIP <= d; j += STRIP)
        if (times) add_strip(sums + j, x + j, times + j, rows, d, STRIP);
        else add_strip(sums + j, x + j, NULL, rows, d, STRIP);
    if (j < d) add_strip(sums + j, x + j, times ? times + j : NULL, rows, d, d - j);
}

/* ---- Random numbers -------------------------------------------------------------------------- */

void mt_seed(Mt19937 *mt, uint32_t seed) {
    mt->state[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        mt->state[i] = UINT32_C(1812433253) * (mt->state[i - 1] ^ (mt->state[i - 1] >> 30)) + i;
    mt->next = 624;
}

/* One word of the next block, from its predecessor in place i, the one after that, and the one
 * 397 places on. */
TENSOR_INLINE uint32_t mt_word(uint32_t here, uint32_t after, uint32_t far) {
    const uint32_t y = (here & UINT32_C(0x80000000)) | (after & UINT32_C(0x7fffffff));
    return far ^ (y >> 1) ^ (UINT32_C(0x9908b0df) & (0u - (y & 1u)));
}

static void mt_refill(Mt19937 *mt) {
    uint32_t *s = mt->state;
    for (uint32_t i = 0; i < 227; i++) s[i] = mt_word(s[i], s[i + 1], s[i + 397]);
    for (uint32_t i = 227; i < 623; i++) s[i] = mt_word(s[i], s[i + 1], s[i - 227]);
    s[623] = mt_word(s[623], s[0], s[396]);
    mt->next = 0;
}

KERNEL static void mt_temper(uint32_t *words, const uint32_t *state, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t y = state[i];
        y ^= y >> 11;
        y ^= (y << 7) & UINT32_C(0x9d2c5680);
        y ^= (y << 15) & UINT32_C(0xefc60000);
        words[i] = y ^ (y >> 18);
    }
}

void mt_fill(Mt19937 *mt, uint32_t *words, size_t n) {
    for (size_t i = 0; i < n;) {
        if (mt->next >= 624) mt_refill(mt);
        const size_t some = smaller(n - i, 624 - mt->next);
        mt_temper(words + i, mt->state + mt->next, some);
        mt->next += (uint32_t)some;
        i += some;
    }
}

uint32_t mt_next(Mt19937 *mt) {
    uint32_t word;
    mt_fill(mt, &word, 1);
    return word;
}

void mt_normal(Mt19937 *mt, float *out, size_t n, float deviation) {
    for (size_t i = 0; i < n; i += 2) {
        float u, v, s;
        do { /* a point of the unit disc, the centre excepted; 24 random bits a coordinate are exact
                in float */
            u = f32((double)(mt_next(mt) >> 8) * 0x1p-23 - 1.0);
            v = f32((double)(mt_next(mt) >> 8) * 0x1p-23 - 1.0);
            s = f32((double)u * u + (double)v * v);
        } while (s >= 1.0f || s == 0.0f);
        float radius = f32(sqrt(-2.0 * log_f32(s) / s) * deviation);
        out[i] = f32((double)u * radius);
        if (i + 1 < n) out[i + 1] = f32((double)v * radius);
    }
}

/* ---- exp, log -------------------------------------------------------------------------------- */

/* Correctly rounded means: of all floats the one nearest to the true value. A result defined
 * this way depends on neither the compiler nor the C library, and it needs no exact arithmetic,
 * only an error smaller than the distance from the true value to the nearest tie, the midpoint
 * between two floats. The comments derive a bound for the error that holds whether or not
 * products are fused with additions (fusing only takes roundings away); u = 2^-53 is the largest
 * relative error of one double operation. The distances were found by trying every input:
 * .ci/exhaustive.c. */

/* ln 2 as a sum. LN2_HI has 45 bits: its product with an integer of up to 8 bits is exact.
 * LN2_LO has the next 53. */
static const double LN2_HI = 0x1.62e42fefa39p-1;
static const double LN2_LO = 0x1.de6af278ece6p-46;

/* exp(x) in double, for f32 to round. Without branches, calls or tables, so that compilers
 * vectorise loops over it.
 *
 * x = k ln 2 + r with integer k and |r| < 0.3466, hence exp(x) = 2^k exp(r), and exp(r) is its
 * Taylor series up to r^13/13!; the remainder is below 0.06 u.
 *
 * Error. k * LN2_HI is exact, and its difference to x, a multiple of 2^-45 below 1, too; the
 * second subtraction rounds once, by u/4. Horner's scheme then ends with g = 1 + r*(1/2 + ...),
 * off by 1.4 u if r > 0 and by 0.8 u if r < 0; r*g, off by 0.347 of that and its own u/4; and 1
 * + r*g, which adds u above 1 and u/2 below. Relative to exp(r) that is less than 2.1 u in all.
 * Four of all inputs have results within twice this of a tie:
 *     0xc16912cd (-14.57)   at 1.3 u,   0xbae0e25c (-0.0017) at 3.6 u,
 *     0xbbf0edf1 (-0.0074)  at 2.4 u,   0xb3000000 (-2^-25)  at 4 u.
 * They have -2^-6 < r < 0, where all but the last rounding fade with r and the bound is 0.6 u:
 * again less than half. */
TENSOR_INLINE double exp_core(float x) {
    /* From 100 on the result is infinity, and x becomes 100. Below -87.33654 it is to be 0, and
     * x becomes -1023 ln 2, so that the exponent field of 2^k below is 0: f32 could make 0 of
     * e^x as well, but converting what is subnormal as a float takes some processors a hundred
     * cycles. NaN stays NaN. All on the bits, where the comparison with both ends of a range is
     * one, and which GCC vectorises when it balks at the choice between two floats. */
    const uint32_t hundred = 0x42c80000, infinity = 0x7f800000, too_low = 0xc2aeac50,
                   minus_infinity = 0xff800000;
    const uint32_t minus_1023_ln2 = 0xc43145bb;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = u - hundred <= infinity - hundred ? hundred : u;
    u = u - too_low <= minus_infinity - too_low ? minus_1023_ln2 : u;
    float c;
    memcpy(&c, &u, sizeof c);

    /* Doubles near 2^52 are integers: the addition rounds c / ln 2 to k and leaves k in the last
     * bits of t. The constant 1 / ln 2 is a float, so the product is exact, and fused or not k
     * is the same. */
    double t = (double)c * 0x1.715476p+0f + 0x1.8p52;
    double k = t - 0x1.8p52;
    double r = (c - k * LN2_HI) - k * LN2_LO;

    double y =
        1.0 +
        r * (1.0 +
             r * (1.0 / 2 +
                  r * (1.0 / 6 +
                       r * (1.0 / 24 +
                            r * (1.0 / 120 +
                                 r * (1.0 / 720 +
                                      r * (1.0 / 5040 +
                                           r * (1.0 / 40320 +
                                                r * (1.0 / 362880 +
                                                     r * (1.0 / 3628800 +
                                                          r * (1.0 / 39916800 +
                                                               r * (1.0 / 479001600 +
                                                                    r * (1.0 /
                                                                         6227020800.0)))))))))))));

    /* 2^k has the exponent field 1023 + k; the shift pushes all of t but k out. */
    uint64_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = (bits + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

/* exp(NaN) = NaN, exp(-inf) = 0; +inf from x = 88.72284 on, 0 below x = -87.33654. */
float exp_f32(float x) {
    return f32(exp_core(x));
}

/* log(2^k x) in double, for f32 to round; x > 0 is finite and not subnormal. Without branches,
 * like exp_core.
 *
 * 2^k x = 2^l m with sqrt(1/2) <= m < sqrt(2), hence the logarithm is l ln 2 + log(1 + f) with f
 * = m - 1. With s = f/(2 + f), |s| < 0.1716, log(1 + f) = 2 atanh(s) = 2s + r s, r = 2/3 s^2 +
 * 2/5 s^4 + ...; and as 2s = f - s f = f - f^2/2 + s f^2/2,
 *     log(2^k x) = a + b,  a = l LN2_HI + f,  b = s (f^2/2 + r) - f^2/2 + l LN2_LO.
 * a is exact (a multiple of 2^-45 below 2^7), and so is f^2/2 (f has 24 bits). Only b, below
 * 0.08, is rounded.
 *
 * Error of b. f^2/2 + r is rounded by 2^-57 and inherits 6 u r from r; the product with s, which
 * is off by u itself, makes that 1.1 * 2^-57; two additions round by 2^-57 each; the remainder
 * of the series is 2^-62. Together: less than 2^-55. For l = 0 all these shrink as f^2, and the
 * same count gives less than 2^-52 times the square of the logarithm. No input's logarithm lies
 * within twice this bound of a tie.
 *
 * Rounding a + b to double would spoil that, by up to 2^-47. So the sum is kept as hi + lo, and
 * where hi alone might be a tie, lo decides: it goes into the last bit of hi, which neither ties
 * nor floats use ("rounding to odd"). */
TENSOR_INLINE double log_core(float x, int k) {
    const uint32_t one = 0x3f800000, sqrt_half = 0x3f3504f3;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u += one - sqrt_half; /* the exponent field now steps at sqrt(1/2) 2^l instead of 2^l */
    const int l = k + (int)(u >> 23) - 127;
    u = (u & 0x007fffff) + sqrt_half;
    float m;
    memcpy(&m, &u, sizeof m);

    double f = m - 1.0;
    double half_f2 = 0.5 * (f * f);
    double s = f / (2.0 + f);
    double z = s * s;
    double r = z*(2.0/3 + z*(2.0/5 + z*(2.0/7 + z*(2.0/9 + z*(2.0/11 + z*(2.0/13 + z*(2.0/15
             + z*(2.0/17 + z*(2.0/19 + z*(2.0/21))))))))));

    double a = l * LN2_HI + f;
    double b = s * (half_f2 + r) - half_f2 + l * LN2_LO;
    double hi = a + b;
    double lo = b - (hi - a);       /* exact, as |a| >= |b| (Dekker's fast two-sum) */
    uint64_t bits;
    memcpy(&bits, &hi, sizeof bits);
    bits -= hi * lo < 0.0;          /* hi + lo cut towards zero ... */
    bits |= lo != 0.0;              /* ... and a bit more, if there is more */
    memcpy(&hi, &bits, sizeof hi);
    return hi;
}

/* log(+-0) = -inf, log(+inf) = +inf; NaN for NaN and for negative x. */
float log_f32(float x) {
    /* Decided by the bits, as some machines read subnormal floats as 0. */
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffff) == 0) return -INFINITY;
    if (u > 0x7f800000) return NAN;
    if (u == 0x7f800000) return INFINITY;
    return u < 0x00800000 ? f32(log_core((float)u, -149))
                          : f32(log_core(x, 0)); /* subnormal: x = u * 2^-149 */
}

/* ---- Hashing --------------------------------------------------------------------------------- */

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *b = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) hash = (hash ^ b[i]) * UINT64_C(1099511628211);
    return hash;
}

uint64_t hash_floats(uint64_t hash, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], 4);
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (u >> shift & 255)) * UINT64_C(1099511628211);
    }
    return hash;
}

/* ---- Embedding and gathering ----------------------------------------------------------------- */

void embed_forward(float *x, const float *W_E, const float *W_pos, const uint32_t *token,
                   const uint32_t *position, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) {
        const float *e = W_E + token[r] * d;
        const float *p = W_pos + position[r] * d;
        for (size_t j = 0; j < d; j++) x[r * d + j] = f32(e[j] + p[j]);
    }
}

/* A row of x is the sum of two rows, so its gradient goes to both. */
void embed_backward(float *dW_E, float *dW_pos, const float *dx, const uint32_t *token,
                    const uint32_t *position, size_t rows, size_t d) {
    gather_backward(dW_E, dx, token, rows, d);
    gather_backward(dW_pos, dx, position, rows, d);
}

void gather_forward(float *out, const float *x, const uint32_t *index, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) memcpy(out + r * d, x + index[r] * d, d * sizeof *out);
}

/* A row of x that was copied to several rows of out receives the gradients of all of them. */
void gather_backward(float *dx, const float *dout, const uint32_t *index, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) {
        float *to = dx + index[r] * d;
        for (size_t j = 0; j < d; j++) to[j] = f32(to[j] + dout[r * d + j]);
    }
}

/* ---- Linear layers --------------------------------------------------------------------------- */

/* One product serves x W, dout W^T and x^T dout. A matrix is a pointer and two distances: to the
 * next row and to the next column. A transpose is the same data with the distances swapped. */
typedef struct {
    const float *at;
    size_t row, col;
} Matrix;

/* Where a product goes. */
typedef struct {
    float *out;
    const float *residual, *bias; /* what is added to it; either may be NULL */
    size_t row;                   /* the distance to the next row, in out and residual */
} Result;

TENSOR_INLINE Matrix matrix_from(Matrix a, size_t row, size_t col) {
    a.at += row * a.row + col * a.col;
    return a;
}

TENSOR_INLINE Result result_from(Result to, size_t row, size_t col) {
    to.out += row * to.row + col;
    if (to.residual) to.residual += row * to.row + col;
    if (to.bias) to.bias += col;
    return to;
}

/* What the product computes, but for speed, is
 *
 *     for each m, n:  out[m][n] = f32(residual[m][n] + bias[n] + sum over k of a[m][k] b[k][n])
 *
 * with one rounding for every SUM_DEPTH terms: what they add up to is the residual of the next.
 * To be fast, it widens the floats of both factors to double once, in the order of use, and keeps
 * the sums of a tile of results in registers. Each sum still runs over k in order. */

/* A tile's factors, widened: its rows of a, with the distances to the next row and column, and its
 * columns of b. */
typedef struct {
    const double *a;
    size_t a_row, a_col;
    const double (*b)[TILE_COLUMNS];
} Factors;

/* s[n] += a b[n]. */
TENSOR_INLINE void add_times(double s[TILE_COLUMNS], double a, const double b[TILE_COLUMNS]) {
    VECTOR_LOOP
    for (size_t n = 0; n < TILE_COLUMNS; n++) s[n] += a * b[n];
}

/* A whole tile of the product, over K terms. rows is a constant, once the call is inlined. */
TENSOR_INLINE void multiply_tile(Result to, Factors f, size_t K, size_t rows) {
    double s[HIGH_TILE_ROWS][TILE_COLUMNS];
    for (size_t m = 0; m < rows; m++)
        VECTOR_LOOP
        for (size_t n = 0; n < TILE_COLUMNS; n++)
            s[m][n] = to.residual ? (double)to.residual[m * to.row + n] : 0.0;
    for (size_t m = 0; to.bias && m < rows; m++)
        VECTOR_LOOP
        for (size_t n = 0; n < TILE_COLUMNS; n++) s[m][n] += (double)to.bias[n];
    for (size_t k = 0; k < K; k++, f.a += f.a_col)
        REGISTER_LOOP
        for (size_t m = 0; m < rows; m++) add_times(s[m], f.a[m * f.a_row], f.b[k]);
    for (size_t m = 0; m < rows; m++)
        VECTOR_LOOP
        for (size_t n = 0; n < TILE_COLUMNS; n++) to.out[m * to.row + n] = f32(s[m][n]);
}

/* A tile of which only height x width results lie in the matrix is computed in a copy. */
typedef struct {
    float out[HIGH_TILE_ROWS][TILE_COLUMNS], bias[TILE_COLUMNS];
} Copy;

static Result open_copy(Copy *copy, Result to, size_t height, size_t width) {
    memset(copy, 0, sizeof *copy);
    for (size_t n = 0; to.bias && n < width; n++) copy->bias[n] = to.bias[n];
    for (size_t m = 0; to.residual && m < height; m++)
        for (size_t n = 0; n < width; n++) copy->out[m][n] = to.residual[m * to.row + n];
    return (Result){
        .out = *copy->out, .residual = *copy->out, .bias = copy->bias, .row = TILE_COLUMNS};
}

static void close_copy(const Copy *copy, Result to, size_t height, size_t width) {
    for (size_t m = 0; m < height; m++)
        for (size_t n = 0; n < width; n++) to.out[m * to.row + n] = copy->out[m][n];
}

/* wide[k][n] = b[k][n], columns from n = N on filled up with zeros. */
TENSOR_INLINE void widen_columns(double (*wide)[TILE_COLUMNS], Matrix b, size_t K, size_t N) {
    if (N >= TILE_COLUMNS && b.col == 1)
        for (size_t k = 0; k < K; k++)
            VECTOR_LOOP
            for (size_t n = 0; n < TILE_COLUMNS; n++) wide[k][n] = (double)b.at[k * b.row + n];
    else
        for (size_t k = 0; k < K; k++)
            for (size_t n = 0; n < TILE_COLUMNS; n++)
                wide[k][n] = n < N ? (double)b.at[k * b.row + n * b.col] : 0.0;
}

/* A tile's rows of a, from row m = M on filled up with zeros. Where neighbours in a column of a
 * stand side by side in memory, so they do in the copy; otherwise neighbours in a row do. */
TENSOR_INLINE void widen_rows(double wide[HIGH_TILE_ROWS * SUM_DEPTH], Matrix a, size_t M, size_t K,
                              size_t rows, int by_column) {
    if (by_column)
        for (size_t k = 0; k < K; k++)
            for (size_t m = 0; m < rows; m++)
                wide[k * rows + m] = m < M ? (double)a.at[m + k * a.col] : 0.0;
    else
        for (size_t m = 0; m < rows; m++)
            for (size_t k = 0; k < K; k++)
                wide[m * SUM_DEPTH + k] = m < M ? (double)a.at[m * a.row + k] : 0.0;
}

/* The sizes of a product: M x K times K x N. */
typedef struct {
    size_t M, K, N;
} Sizes;

/* The product in N <= PANEL columns, over K <= SUM_DEPTH terms. by_column says that a.row is 1. */
TENSOR_INLINE void multiply_panel(Result to, Matrix a, Matrix b, Sizes size, size_t rows,
                                  int by_column) {
    double b_wide[PANEL / TILE_COLUMNS][SUM_DEPTH][TILE_COLUMNS];
    double a_wide[HIGH_TILE_ROWS * SUM_DEPTH];
    Copy copy;
    for (size_t n = 0; n < size.N; n += TILE_COLUMNS)
        widen_columns(b_wide[n / TILE_COLUMNS], matrix_from(b, 0, n), size.K, size.N - n);
    Factors f = {.a = a_wide, .a_row = SUM_DEPTH, .a_col = 1};
    if (by_column) {
        f.a_row = 1;
        f.a_col = rows;
    }
    for (size_t m = 0; m < size.M; m += rows) {
        const size_t height = smaller(size.M - m, rows);
        widen_rows(a_wide, matrix_from(a, m, 0), height, size.K, rows, by_column);
        for (size_t n = 0; n < size.N; n += TILE_COLUMNS) {
            const size_t width = smaller(size.N - n, TILE_COLUMNS);
            const int whole = height == rows && width == TILE_COLUMNS;
            const Result place = result_from(to, m, n);
            f.b = (const double(*)[TILE_COLUMNS])b_wide[n / TILE_COLUMNS];
            multiply_tile(whole ? place : open_copy(&copy, place, height, width), f, size.K, rows);
            if (!whole) close_copy(&copy, place, height, width);
        }
    }
}

KERNEL static void multiply_low(Result to, Matrix a, Matrix b, Sizes size) {
    if (a.row == 1) multiply_panel(to, a, b, size, LOW_TILE_ROWS, 1);
    else multiply_panel(to, a, b, size, TILE_ROWS, 0);
}

AVX512_KERNEL static void multiply_high(Result to, Matrix a, Matrix b, Sizes size) {
    if (a.row == 1) multiply_panel(to, a, b, size, HIGH_TILE_ROWS, 1);
    else multiply_panel(to, a, b, size, HIGH_TILE_ROWS, 0);
}

/* to = residual + bias + a b. a (M, K), b (K, N). */
static void multiply(Result to, Matrix a, Matrix b, size_t M, size_t K, size_t N) {
    for (size_t n = 0; n < N; n += PANEL) {
        Result part = result_from(to, 0, n);
        for (size_t k = 0; k < K; k += SUM_DEPTH) {
            const Sizes size = {M, smaller(K - k, SUM_DEPTH), smaller(N - n, PANEL)};
            const Matrix a_part = matrix_from(a, 0, k), b_part = matrix_from(b, k, n);
            if (HAS_AVX512) multiply_high(part, a_part, b_part, size);
            else multiply_low(part, a_part, b_part, size);
            part.residual = part.out;
            part.bias = NULL;
        }
    }
}

void linear_forward(float *out, const float *residual, const float *x, const float *W,
                    const float *b, size_t rows, size_t n_in, size_t n_out) {
    const Result to = {.out = out, .residual = residual, .bias = b, .row = n_out};
    const Matrix x_view = {.at = x, .row = n_in, .col = 1};
    const Matrix W_view = {.at = W, .row = n_out, .col = 1};
    multiply(to, x_view, W_view, rows, n_in, n_out);
}

/* With L the loss and out[r][j] = b[j] + sum_i x[r][i] W[i][j]:
 *     dL/dx[r][i] = sum_j dout[r][j] W[i][j]
 *     dL/dW[i][j] = sum_r x[r][i] dout[r][j]
 *     dL/db[j]    = sum_r dout[r][j] */
void linear_backward_input(float *dx, const float *dresidual, const float *dout, const float *W,
                           size_t rows, size_t n_in, size_t n_out) {
    const Result to = {.out = dx, .residual = dresidual, .row = n_in};
    const Matrix dout_view = {.at = dout, .row = n_out, .col = 1};
    const Matrix W_transposed = {.at = W, .row = 1, .col = n_out};
    multiply(to, dout_view, W_transposed, rows, n_out, n_in);
}

void linear_backward_weights(float *dW, float *db, const float *dout, const float *x, size_t rows,
                             size_t n_in, size_t n_out) {
    const Result to = {.out = dW, .residual = dW, .row = n_out};
    const Matrix x_transposed = {.at = x, .row = 1, .col = n_in};
    const Matrix dout_view = {.at = dout, .row = n_out, .col = 1};
    multiply(to, x_transposed, dout_view, n_in, rows, n_out);
    if (db) add_columns(db, dout, NULL, rows, n_out);
}

/* ---- Layer normalization --------------------------------------------------------------------- */

/* In passes over all rows, so that the divisions and roots of one row need not wait for
 * another's. */
KERNEL void layernorm_forward(float *out, float *normal, float *inv_std, const float *x,
                              const float *w, const float *b, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) {
        const double mean = row_sum(x + r * d, d) / (double)d;
        for (size_t j = 0; j < d; j++) normal[r * d + j] = f32((double)x[r * d + j] - mean);
    }
    for (size_t r = 0; r < rows; r++) {
        const double variance = dot(normal + r * d, normal + r * d, d) / (double)d;
        inv_std[r] = f32(1.0 / sqrt(variance + 1e-5));
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < d; j++)
            normal[r * d + j] = f32(normal[r * d + j] * inv_std[r]);
    if (!w && out != normal) memcpy(out, normal, rows * d * sizeof *out);
    for (size_t r = 0; w && r < rows; r++)
        for (size_t j = 0; j < d; j++)
            out[r * d + j] = f32((double)normal[r * d + j] * w[j] + (double)b[j]);
}

/* For one row, with n = (x - mean) s, s = inv_std, and g = dL/dn = dout w: each x[i] moves n[j]
 * directly, through the mean and through s:
 *     dn[j]/dx[i] = s ([i=j] - 1/d - n[i] n[j] / d)
 * Hence
 *     dL/dx[i] = sum_j g[j] dn[j]/dx[i] = s (g[i] - mean(g) - n[i] mean(g n))
 *     dL/dw    = the sum over the rows of dout n
 *     dL/db    = the sum over the rows of dout */
TENSOR_INLINE void layernorm_backward_row(float *dx, const float *dresidual, const float *dout,
                                          const float *n, float s, const float *w, size_t d) {
    const double g_mean = (w ? dot(dout, w, d) : row_sum(dout, d)) / (double)d;
    /* a float, since it becomes a factor */
    const float gn_mean = f32((w ? weighted_dot(dout, w, n, d) : dot(dout, n, d)) / (double)d);
    for (size_t i = 0; i < d; i++) {
        const float g = w ? f32(dout[i] * w[i]) : dout[i];
        const float change = f32(((double)g - g_mean) - (double)n[i] * gn_mean);
        dx[i] = f32((dresidual ? (double)dresidual[i] : 0.0) + (double)change * s);
    }
}

KERNEL void layernorm_backward(float *dx, const float *dresidual, float *dw, float *db,
                               const float *dout, const float *normal, const float *inv_std,
                               const float *w, size_t rows, size_t d) {
    if (w) {
        add_columns(dw, dout, normal, rows, d);
        add_columns(db, dout, NULL, rows, d);
    }
    for (size_t r = 0; r < rows; r++)
        layernorm_backward_row(dx + r * d, dresidual ? dresidual + r * d : NULL, dout + r * d,
                               normal + r * d, inv_std[r], w, d);
}

/* ---- ReLU ------------------------------------------------------------------------------------ */

void relu_forward(float *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void relu_backward(float *dx, const float *dout, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) dx[i] = x[i] > 0.0f ? dout[i] : 0.0f;
}

/* ---- Softmax and cross-entropy --------------------------------------------------------------- */

/* The greatest of n numbers, by eight running ones. */
TENSOR_INLINE float row_max(const float *x, size_t n) {
    float m[LANES], max = -INFINITY;
    size_t i = 0;
    if (n >= LANES)
        for (size_t j = 0; j < LANES; j++) m[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        VECTOR_LOOP
        for (size_t j = 0; j < LANES; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (size_t j = 0; i > 0 && j < LANES; j++) max = m[j] > max ? m[j] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* p[r][j] = x[r][j] - the greatest of row r, so that exp cannot overflow. */
TENSOR_INLINE void subtract_maximum(float *p, const float *x, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++) {
        const float max = row_max(x + r * n, n);
        for (size_t j = 0; j < n; j++) p[r * n + j] = f32(x[r * n + j] - max);
    }
}

/* All rows at once: vector units want long loops. */
TENSOR_INLINE void exp_all(float *p, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = f32(exp_core(p[i]));
}

/* Divides a row by its sum, which it returns. */
TENSOR_INLINE double normalize_row(float *p, size_t n) {
    const double sum = row_sum(p, n), inverse = 1.0 / sum;
    for (size_t j = 0; j < n; j++) p[j] = f32((double)p[j] * inverse);
    return sum;
}

KERNEL void softmax_forward(float *p, const float *x, size_t rows, size_t n) {
    subtract_maximum(p, x, rows, n);
    exp_all(p, rows * n);
    for (size_t r = 0; r < rows; r++) normalize_row(p + r * n, n);
}

/* With x less its maximum: -log(e^x[label] / sum_j e^x[j]) = log(sum_j e^x[j]) - x[label]. */
KERNEL void cross_entropy_forward(float *loss, float *p, const float *logits, const uint32_t *label,
                                  size_t rows, size_t n) {
    subtract_maximum(p, logits, rows, n);
    for (size_t r = 0; r < rows; r++) loss[r] = p[r * n + label[r]];
    exp_all(p, rows * n);
    for (size_t r = 0; r < rows; r++) {
        const float log_sum = log_f32(f32(normalize_row(p + r * n, n)));
        loss[r] = f32(log_sum - loss[r]);
    }
}

/* loss = log(sum_j e^x[j]) - x[label], and d log(sum_j e^x[j]) / dx[i] = e^x[i] / sum = p[i]:
 *     dloss/dx[i] = p[i] - [i = label] */
KERNEL void cross_entropy_backward(float *dlogits, const float *p, const uint32_t *label,
                                   float scale, size_t rows, size_t n) {
    /* Subnormal products, which f32 makes 0, take some processors a hundred cycles. */
    const float least = f32(0.5 * (double)FLT_MIN / (double)scale);
    for (size_t i = 0; i < rows * n; i++)
        dlogits[i] = f32((p[i] < least ? 0.0f : p[i]) * scale);
    for (size_t r = 0; r < rows; r++) {
        float *right = dlogits + r * n + label[r];
        *right = f32(*right - scale);
    }
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* Where the row of a list at a position begins, in q, k, v and their gradients. */
TENSOR_INLINE size_t row_at(const Attention *a, size_t position, size_t list) {
    return a->row[position * a->n_lists + list] * a->d_head;
}

/* sums[c] = the sum over the positions s <= t of weight[s] x[list i's row at s][j + c], in n <=
 * STRIP columns. */
TENSOR_INLINE void mix_strip(double sums[STRIP], const float *weight, const float *x,
                             const Attention *a, size_t t, size_t i, size_t j, size_t n) {
    double strip[STRIP];
    for (size_t c = 0; c < STRIP; c++) strip[c] = 0.0;
    for (size_t s = 0; s <= t; s++) add_row(strip, weight[s], x + row_at(a, s, i) + j, n);
    for (size_t c = 0; c < STRIP; c++) sums[c] = strip[c];
}

TENSOR_INLINE float score_of(const float *q, const float *k, size_t d_head, float scale) {
    return f32(dot(q, k, d_head) * (double)scale);
}

float attention_score(const float *q, const float *k, size_t d_head, float scale) {
    return score_of(q, k, d_head, scale);
}

KERNEL void attention_pattern_forward(float *pattern, const float *q, const float *k,
                                      const Attention *a) {
    const size_t n = a->n_lists, T = a->seq_len, first = T - a->queries_per_list;
    for (size_t t = first; t < T; t++)
        for (size_t i = 0; i < n; i++) {
            float *score = pattern + ((t - first) * n + i) * T;
            const float *query = q + row_at(a, t, i);
            for (size_t s = 0; s <= t; s++)
                score[s] = score_of(query, k + row_at(a, s, i), a->d_head, a->scale);
            for (size_t s = t + 1; s < T; s++) score[s] = -INFINITY;
        }
    softmax_forward(pattern, pattern, a->queries_per_list * n, T);
}

/* Softmax gives dp[s]/dscore[u] = p[s] ([s=u] - p[u]). Hence
 *     dL/dscore[s] = p[s] (dL/dp[s] - sum_u p[u] dL/dp[u])
 * and score[s] = scale q . k[s] gives
 *     dL/dq = sum_s scale dL/dscore[s] k[s],    dL/dk[s] = scale dL/dscore[s] q
 * The scale goes into dscore. */
KERNEL void attention_pattern_backward(double *dq, double *dk, float *dpattern,
                                       const float *pattern, const float *q, const float *k,
                                       const Attention *a) {
    const size_t n = a->n_lists, T = a->seq_len, d = a->d_head, first = T - a->queries_per_list;
    float *dscore = dpattern;
    for (size_t query = 0; query < a->queries_per_list * n; query++) {
        const float *p = pattern + query * T;
        float *ds = dscore + query * T;
        const double p_dp = dot(p, ds, T); /* sum_u p[u] dL/dp[u] */
        for (size_t s = 0; s < T; s++)
            ds[s] = f32((double)p[s] * ((double)ds[s] - p_dp) * (double)a->scale);
    }
    for (size_t t = first; t < T; t++)
        for (size_t i = 0; i < n; i++) {
            const float *ds = dscore + ((t - first) * n + i) * T;
            double *to = dq + row_at(a, t, i), sums[STRIP];
            for (size_t j = 0; j < d; j += STRIP) {
                if (d - j >= STRIP) mix_strip(sums, ds, k, a, t, i, j, STRIP);
                else mix_strip(sums, ds, k, a, t, i, j, d - j);
                for (size_t c = 0; c < smaller(STRIP, d - j); c++) to[j + c] += sums[c];
            }
        }
    for (size_t s = 0; s < T; s++)
        for (size_t t = s > first ? s : first; t < T; t++)
            for (size_t i = 0; i < n; i++)
                add_row(dk + row_at(a, s, i), dscore[((t - first) * n + i) * T + s],
                        q + row_at(a, t, i), d);
}

KERNEL void attention_values_forward(float *z, const float *pattern, const float *v,
                                     const Attention *a) {
    const size_t n = a->n_lists, T = a->seq_len, d = a->d_head, first = T - a->queries_per_list;
    for (size_t t = first; t < T; t++)
        for (size_t i = 0; i < n; i++, z += d, pattern += T)
            for (size_t j = 0; j < d; j += STRIP) {
                double sums[STRIP];
                if (d - j >= STRIP) mix_strip(sums, pattern, v, a, t, i, j, STRIP);
                else mix_strip(sums, pattern, v, a, t, i, j, d - j);
                for (size_t c = 0; c < smaller(STRIP, d - j); c++) z[j + c] = f32(sums[c]);
            }
}

/* z = sum_s p[s] v[s] gives
 *     dL/dp[s] = dz . v[s],    dL/dv[s] = p[s] dz */
KERNEL void attention_values_backward(float *dpattern, double *dv, const float *dz,
                                      const float *pattern, const float *v, const Attention *a) {
    const size_t n = a->n_lists, T = a->seq_len, d = a->d_head, first = T - a->queries_per_list;
    for (size_t s = 0; s < T; s++)
        for (size_t t = first; t < T; t++)
            for (size_t i = 0; i < n; i++) {
                const size_t query = (t - first) * n + i;
                const size_t row = row_at(a, s, i);
                float *to = dpattern + query * T + s;
                if (s > t) *to = 0.0f;
                else *to = f32(dot_and_add(dv + row, pattern[query * T + s], dz + query * d,
                                           v + row, d));
            }
}

/* ---- Singular values ------------------------------------------------------------------------- */

/* One-sided Jacobi (Hestenes 1958): pairs of columns are rotated until all are orthogonal; then
 * their lengths are the singular values and their directions the left singular vectors. For
 * columns x and y the angle that makes them orthogonal has tan(2 angle) = 2 x.y / (x.x - y.y);
 * of its two solutions the smaller is taken (Golub & Van Loan, section 8.5). */
static int rotate_columns(float *x, float *y, size_t n) {
    const double xx = dot(x, x, n), yy = dot(y, y, n), xy = dot(x, y, n);
    if (fabs(xy) <= 1e-6 * sqrt(xx) * sqrt(yy)) return 0;
    const float zeta = f32((yy - xx) / (2.0 * xy));
    const float t =
        f32((zeta < 0 ? -1.0 : 1.0) / (fabs((double)zeta) + sqrt(1.0 + (double)zeta * zeta)));
    const float c = f32(1.0 / sqrt(1.0 + (double)t * t)), s = f32((double)c * t);
    for (size_t i = 0; i < n; i++) {
        const float x_i = x[i];
        x[i] = f32((double)c * x_i - (double)s * y[i]);
        y[i] = f32((double)s * x_i + (double)c * y[i]);
    }
    return 1;
}

static void swap(float *a, float *b) {
    const float was = *a;
    *a = *b;
    *b = was;
}

void singular_values(float *values, float *columns, size_t n_columns, size_t n) {
    int rotated = 1;
    for (int sweep = 0; sweep < 60 && rotated; sweep++) {
        rotated = 0;
        for (size_t i = 0; i < n_columns; i++)
            for (size_t j = i + 1; j < n_columns; j++)
                rotated |= rotate_columns(columns + i * n, columns + j * n, n);
    }
    for (size_t i = 0; i < n_columns; i++)
        values[i] = f32(sqrt(dot(columns + i * n, columns + i * n, n)));
    for (size_t i = 0; i < n_columns; i++) { /* the greatest of the rest to the front */
        size_t best = i;
        for (size_t j = i + 1; j < n_columns; j++)
            if (values[j] > values[best]) best = j;
        for (size_t k = 0; k < n; k++) swap(columns + i * n + k, columns + best * n + k);
        swap(values + i, values + best);
    }
}

/* ---- Adam ------------------------------------------------------------------------------------ */

/* (1 - beta^step), the power by repeated squaring with every product rounded to float. */
static float one_minus_power(float beta, uint32_t step) {
    float power = 1.0f, square = beta;
    for (; step > 0; step /= 2) {
        if (step % 2 == 1) power = f32((double)power * square);
        square = f32((double)square * square);
    }
    return f32(1.0 - (double)power);
}

/* Both bias corrections are constants of the step: with c1 = 1-beta1^step and c2 = 1-beta2^step,
 *   lr (m/c1) / (sqrt(v/c2) + eps) = (lr sqrt(c2)/c1) m / (sqrt(v) + eps sqrt(c2)). */
KERNEL void adam_step(const Adam *adam, uint32_t step, float *restrict x, float *restrict m,
                      float *restrict v, const float *restrict gradient, size_t n) {
    const double c1 = (double)one_minus_power(adam->beta1, step);
    const double root_c2 = sqrt((double)one_minus_power(adam->beta2, step));
    const float rate = f32(adam->lr * root_c2 / c1),
                decay = f32((double)adam->lr * adam->weight_decay);
    const float rest1 = f32(1.0 - (double)adam->beta1), rest2 = f32(1.0 - (double)adam->beta2);
    const float beta1 = adam->beta1, beta2 = adam->beta2;
    const double eps = (double)f32(adam->eps * root_c2);
    for (size_t i = 0; i < n; i++) {
        const float g = gradient[i], g_squared = f32((double)g * g);
        m[i] = f32((double)beta1 * m[i] + (double)rest1 * g);
        v[i] = f32((double)beta2 * v[i] + (double)rest2 * g_squared);
        const float direction = f32((double)m[i] / (sqrt((double)v[i]) + eps));
        x[i] = f32(((double)x[i] - (double)decay * x[i]) - (double)rate * direction);
    }
}

/* ---- Numbers as text ------------------------------------------------------------------------- */

/* A number from 0 to 10^UNITS in decimal, digit[UNITS] being its units. Digits before `first`
 * and from `end` on are 0; digit[first] is not, before it is rounded. Every double is such a
 * number: none ends later than 1074 places behind the point. */
enum { UNITS = 330, DIGITS = UNITS + 1 + 1120 };

typedef struct {
    unsigned char digit[DIGITS];
    size_t first, end;
    int more; /* 1: the number is greater than its digits say, by less than a unit of the last */
} Decimal;

/* d *= 2^bits, bits at most 60, so that ten times 2^bits fits into 64 bits. */
static void decimal_multiply(Decimal *d, int bits) {
    uint64_t carry = 0;
    for (size_t i = d->end; i > d->first || carry > 0;) {
        carry += (uint64_t)d->digit[--i] << bits;
        d->digit[i] = (unsigned char)(carry % 10);
        carry /= 10;
        if (i < d->first) d->first = i;
    }
}

/* d /= 2^bits, bits at most 60: long division. */
static void decimal_divide(Decimal *d, int bits) {
    uint64_t rest = 0;
    size_t i = d->first;
    for (; i < d->end || (rest > 0 && i < DIGITS); i++) {
        rest = 10 * rest + d->digit[i];
        d->digit[i] = (unsigned char)(rest >> bits);
        rest &= (UINT64_C(1) << bits) - 1;
    }
    d->end = i;
    d->more |= rest > 0;
    while (d->first < d->end && d->digit[d->first] == 0) d->first++;
}

/* Keeps the digits before index `cut`, rounded to the nearest, ties to even. */
static void decimal_round(Decimal *d, size_t cut) {
    int up = d->digit[cut] > 5;
    if (d->digit[cut] == 5) {
        up = d->more || d->digit[cut - 1] % 2;
        for (size_t i = cut + 1; i < d->end; i++) up |= d->digit[i] > 0;
    }
    if (cut < d->end) memset(d->digit + cut, 0, d->end - cut);
    for (size_t i = cut; up; up = d->digit[i] == 0) {
        i--;
        d->digit[i] = (unsigned char)((d->digit[i] + 1) % 10);
        if (i < d->first) d->first = i;
    }
}

static const uint64_t INFINITY_BITS = UINT64_C(2047) << 52, SIGN_BIT = UINT64_C(1) << 63;

/* The digits of the finite double >= 0 that has these bits. */
static void decimal_of(Decimal *d, uint64_t bits) {
    uint64_t mantissa = bits & ((UINT64_C(1) << 52) - 1);
    int power = bits >> 52 > 0 ? (int)(bits >> 52) - 1075 : -1074; /* number = mantissa 2^power */
    if (bits >> 52 > 0) mantissa |= UINT64_C(1) << 52;
    memset(d, 0, sizeof *d);
    d->first = d->end = UNITS + 1;
    for (; mantissa > 0; mantissa /= 10) d->digit[--d->first] = (unsigned char)(mantissa % 10);
    for (; power >= 60; power -= 60) decimal_multiply(d, 60);
    for (; power <= -60; power += 60) decimal_divide(d, 60);
    if (power > 0) decimal_multiply(d, power);
    else decimal_divide(d, -power);
}

size_t print_double(char *text, double x, char style, int precision) {
    Decimal d;
    uint64_t bits;
    char *at = text;
    memcpy(&bits, &x, sizeof bits);
    const uint64_t size = bits & ~SIGN_BIT;
    if (size < bits && size <= INFINITY_BITS) *at++ = '-';
    if (size >= INFINITY_BITS) {
        memcpy(at, size > INFINITY_BITS ? "nan" : "inf", 4);
        return (size_t)(at + 3 - text);
    }
    decimal_of(&d, size);
    if (precision > MAX_PRECISION) precision = MAX_PRECISION;
    if (precision == 0 && style == 'g') precision = 1;
    const size_t cut = (style == 'f' ? UNITS + 1 : d.first) + (size_t)precision;
    decimal_round(&d, cut);

    const int exponent = UNITS - (int)d.first;
    const int scientific = style == 'g' && (exponent < -4 || exponent >= precision);
    const size_t units = scientific ? d.first : UNITS; /* the digit before the point */
    size_t last = cut - 1;
    while (style == 'g' && last > units && d.digit[last] == 0) last--;
    for (size_t i = smaller(d.first, units); i <= last; i++) {
        *at++ = (char)('0' + d.digit[i]);
        if (i == units && i < last) *at++ = '.';
    }
    if (scientific) {
        const int e = exponent < 0 ? -exponent : exponent;
        *at++ = 'e';
        *at++ = exponent < 0 ? '-' : '+';
        if (e >= 100) *at++ = (char)('0' + e / 100);
        *at++ = (char)('0' + e / 10 % 10);
        *at++ = (char)('0' + e % 10);
    }
    *at = 0;
    return (size_t)(at - text);
}

static const char *skip_digits(const char *at) {
    while (*at >= '0' && *at <= '9') at++;
    return at;
}

/* The exponent at *text, which moves behind it; 0 if there is none. */
static int64_t parse_exponent(const char **text) {
    const char *at = *text + 1;
    int64_t value = 0;
    if (**text != 'e' && **text != 'E') return 0;
    const int negative = *at == '-';
    if (negative || *at == '+') at++;
    if (skip_digits(at) == at) return 0;
    for (; *at >= '0' && *at <= '9'; at++)
        if (value < 1000000000000) value = 10 * value + (*at - '0'); /* no text is that long */
    *text = at;
    return negative ? -value : value;
}

/* The whole part of d, or 10^18 if it has more than 18 digits. */
static uint64_t whole_part(const Decimal *d) {
    uint64_t n = 0;
    if (d->first + 18 <= UNITS) return UINT64_C(1000000000000000000);
    for (size_t i = d->first; i <= UNITS; i++) n = 10 * n + d->digit[i];
    return n;
}

/* The bits of the double nearest to d, ties to even. d becomes n 2^-power, n a whole number from
 * 2^52 to 2^53, or less if power is 1074; then the bits are (1074 - power) 2^52 + n. */
static uint64_t nearest_bits(Decimal *d) {
    int power = 0;
    for (int bits; whole_part(d) >> 53 > 0; power -= bits) {
        bits = whole_part(d) >> 59 > 0 ? 6 : 1;
        decimal_divide(d, bits);
    }
    for (int bits; whole_part(d) >> 52 == 0 && power < 1074; power += bits) {
        bits = whole_part(d) >> 22 == 0 && power < 1044 ? 30 : 1;
        decimal_multiply(d, bits);
    }
    decimal_round(d, UNITS + 1);
    return power < -971 ? INFINITY_BITS : ((uint64_t)(1074 - power) << 52) + whole_part(d);
}

double parse_double(const char *text, const char **end) {
    const char *start = text + (*text == '-' || *text == '+'), *point = skip_digits(start);
    const char *behind = *point == '.' ? skip_digits(point + 1) : point;
    Decimal d = {.first = DIGITS};
    uint64_t bits = 0;
    double x;
    *end = behind;
    if (behind - start == (*point == '.')) {
        *end = text;
        return 0.0;
    }
    int64_t index = UNITS + 1 - (point - start) - parse_exponent(end); /* of the first digit */
    for (const char *at = start; at < behind; at++) {
        if (*at == '.') continue;
        if (*at > '0' && index < 0) bits = INFINITY_BITS;
        else if (*at > '0' && index >= DIGITS) d.more = 1;
        else if (*at > '0') {
            d.digit[index] = (unsigned char)(*at - '0');
            d.first = smaller(d.first, (size_t)index);
            d.end = (size_t)index + 1;
        }
        index++;
    }
    if (bits == 0) bits = nearest_bits(&d);
    if (*text == '-') bits |= SIGN_BIT;
    memcpy(&x, &bits, sizeof x);
    return x;
}
