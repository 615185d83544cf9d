/* tensor.c - see tensor.h for the promise and the habits that keep it. The chapters stand in the header's order. */
#if defined __GNUC__ && !defined __clang__ && __GNUC__ >= 8 && !defined __powerpc__
/* A bare `cc *.c` deserves speed too. No value is changed: we look at no exception flag. The last two keep GCC from
 * undoing what stands here on purpose: from unrolling the loops around sums that are kept in registers, and from
 * calling memcpy for seven floats. */
#pragma GCC optimize("O3", "no-trapping-math", "no-loop-unroll-and-jam", "no-tree-loop-distribute-patterns")
#endif

#include "tensor.h"

#include <string.h>

/* sqrt of what is not negative sets no errno; told so, compilers vectorise it. */
#ifdef __GNUC__
double sqrt(double) __attribute__((const));
#endif

/* The hot loops are compiled once for each generation of x86-64 and the best is picked at start. -march=native, other
 * compilers and other processors simply compile them once. */
#if defined __GNUC__ && !defined __clang__ && defined __x86_64__ && defined __GLIBC__ && !defined __AVX2__ && \
    !defined __SANITIZE_ADDRESS__
#define KERNEL __attribute__((target_clones("avx512f", "avx2", "default")))
#elif defined __GNUC__
#define KERNEL __attribute__((noinline))
#else
#define KERNEL
#endif

/* Stands before short loops of fixed length: GCC would otherwise unroll them into single operations before it looks for
 * vectors. */
#if defined __GNUC__ && !defined __clang__ && __GNUC__ >= 8 && !defined __powerpc__
#define VECTOR_LOOP _Pragma("GCC unroll 1")
#else
#define VECTOR_LOOP
#endif

/* ---- Rounding ---- */

int ieee_setup(void) {
#if defined __GNUC__ && (defined __i386__ || defined __x86_64__) && FLT_EVAL_METHOD != 0
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    control = (unsigned short)((control & ~0x300u) | 0x200u);
    __asm__ volatile("fldcw %0" : : "m"(control));
#elif defined __GNUC__ && defined __m68k__ && FLT_EVAL_METHOD != 0
    unsigned control = 0x80;
    __asm__ volatile("fmove%.l %0, %!" : : "dm"(control));
#endif
    /* 1 + 2^-53 + 2^-60 is just above the middle of two doubles: 1 + 2^-53 must come out as 1 (ties to even), and the
     * sum with 2^-60 added on the right first as 1 + 2^-52. */
    volatile double one = 1.0, half_ulp = 0x1p-53, little = 0x1p-60, zero = 0.0;
    return one + half_ulp + zero == 1.0 && one + (half_ulp + little) == 1.0 + 0x1p-52;
}

/* ---- Sums along rows and columns ---- */

/* The initializer of an array: x[0] to x[3] as doubles. Four at a time are what x86 converts straight from memory, in
 * half the time per float that it takes with the eight or sixteen that compilers load by themselves. */
#define FOUR(x) {(double)(x)[0], (double)(x)[1], (double)(x)[2], (double)(x)[3]}

/* sums[j] += weight[j] x[j]. Every weight is the value of a float, so the products are exact. */
TENSOR_INLINE void add_four(double *sums, const double weight[4], const float *x) {
#ifdef __clang__ /* which keeps four sums in a register only if they are one value */
    typedef double Doubles __attribute__((vector_size(32), aligned(4), may_alias));
    *(Doubles *)sums += *(const Doubles *)weight * (Doubles)FOUR(x);
#else
    const double y[4] = FOUR(x);
    VECTOR_LOOP
    for (size_t j = 0; j < 4; j++) sums[j] += weight[j] * y[j];
#endif
}

/* sums[j] += weight x[j], n of them. */
TENSOR_INLINE void add_row(double *sums, float weight, const float *x, size_t n) {
    const double w = (double)weight, all[4] = {w, w, w, w};
    size_t j = 0;
    for (; j + 4 <= n; j += 4) add_four(sums + j, all, x + j);
    for (; j < n; j++) sums[j] += w * (double)x[j];
}

/* out[j] = f32(sums[j]), n of them. Four at once are rounded first, so that f32 only has to flush them. */
TENSOR_INLINE void round_row(float *out, const double *sums, size_t n) {
    size_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float y[4] = {(float)sums[j], (float)sums[j + 1], (float)sums[j + 2], (float)sums[j + 3]};
        VECTOR_LOOP
        for (size_t i = 0; i < 4; i++) out[j + i] = f32((double)y[i]);
    }
    for (; j < n; j++) out[j] = f32(sums[j]);
}

/* A row is summed in eight running sums, element i into sum i mod 8, joined pairwise; what is left over when n is not a
 * multiple of eight follows one by one. The order is fixed here, and eight independent sums are what vector units and
 * pipelines want. */
enum { LANES = 8 };

TENSOR_INLINE double join(const double s[LANES]) {
    double four[4], two[2];
    VECTOR_LOOP
    for (size_t j = 0; j < 4; j++) four[j] = s[j] + s[j + 4];
    VECTOR_LOOP
    for (size_t j = 0; j < 2; j++) two[j] = four[j] + four[j + 2];
    return two[0] + two[1];
}

TENSOR_INLINE double row_sum(const float *x, size_t n) {
    double s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) add_row(s, 1.0f, x + i, LANES);
    double sum = i > 0 ? join(s) : 0.0;
    for (; i < n; i++) sum += (double)x[i];
    return sum;
}

TENSOR_INLINE double row_dot(const float *x, const float *y, size_t n) {
    double s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        VECTOR_LOOP
        for (size_t j = 0; j < LANES; j++) s[j] += (double)x[i + j] * (double)y[i + j];
    double sum = i > 0 ? join(s) : 0.0;
    for (; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

TENSOR_INLINE float row_max(const float *x, size_t n) {
    float m[LANES], max = -INFINITY;
    size_t i = 0;
    VECTOR_LOOP
    for (size_t j = 0; j < LANES; j++) m[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        VECTOR_LOOP
        for (size_t j = 0; j < LANES; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (size_t j = 0; j < LANES && i > 0; j++) max = m[j] > max ? m[j] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* Columns are summed in stripes of this width, that of a cache line. */
enum { STRIPE = 16 };

/* sums[j] += sum over r of x[r][j] (times times[r][j]), for j from skip to n - 1. */
TENSOR_INLINE void add_columns(float *sums, const float *x, const float *times, size_t rows, size_t d, size_t skip,
                               size_t n) {
    double s[STRIPE] = {0};
    for (size_t r = 0; r < rows; r++) {
        const float *row = x + r * d;
        size_t j = 0;
        for (; times && j + 4 <= n; j += 4) {
            const double factors[4] = FOUR(times + r * d + j);
            add_four(s + j, factors, row + j);
        }
        for (; times && j < n; j++) s[j] += (double)times[r * d + j] * (double)row[j];
        if (!times) add_row(s, 1.0f, row, n);
    }
    for (size_t j = skip; j < n; j++) sums[j] = f32((double)sums[j] + s[j]);
}

KERNEL static void column_stripe(float *sums, const float *x, const float *times, size_t rows, size_t d, size_t skip) {
    if (d < STRIPE)
        add_columns(sums, x, times, rows, d, skip, d);
    else if (times)
        add_columns(sums, x, times, rows, d, skip, STRIPE);
    else
        add_columns(sums, x, NULL, rows, d, skip, STRIPE);
}

/* The last stripe is a whole one, too, and skips what the one before has summed. */
static void column_sums(Share share, float *sums, const float *x, const float *times, size_t rows, size_t d) {
    const size_t end = share_end(share, d, STRIPE);
    for (size_t j = share_begin(share, d, STRIPE); j < end; j += STRIPE) {
        const size_t from = d < STRIPE ? 0 : smaller(j, d - STRIPE);
        column_stripe(sums + from, x + from, times ? times + from : NULL, rows, d, j - from);
    }
}

/* What is done with each row in turn is done in passes over so many rows: sums, divisions and roots of one row then
 * need not wait for each other, and the rows stay in the first-level cache. */
enum { GROUP = 32 };

/* ---- Random numbers ---- */

void mt_seed(Mt19937 *mt, uint32_t seed) {
    mt->state[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        mt->state[i] = UINT32_C(1812433253) * (mt->state[i - 1] ^ (mt->state[i - 1] >> 30)) + i;
    mt->next = 624;
}

/* One word of the next block, from its predecessor in place i, the one after that, and the one 397 places on. */
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
        do { /* a point of the unit disc, the centre excepted; 24 random bits a coordinate are exact in float */
            u = f32((double)(mt_next(mt) >> 8) * 0x1p-23 - 1.0);
            v = f32((double)(mt_next(mt) >> 8) * 0x1p-23 - 1.0);
            s = f32((double)u * u + (double)v * v);
        } while (s >= 1.0f || s == 0.0f);
        float radius = f32(sqrt(-2.0 * log_f32(s) / s) * deviation);
        out[i] = f32((double)u * radius);
        if (i + 1 < n) out[i + 1] = f32((double)v * radius);
    }
}

/* ---- exp, log ---- */

/* Correctly rounded means: of all floats the one nearest to the true value. A result defined this way depends on
 * neither the compiler nor the C library, and it needs no exact arithmetic, only an error smaller than the distance
 * from the true value to the nearest tie, the midpoint between two floats. The comments derive a bound for the error
 * that holds whether or not products are fused with additions (fusing only takes roundings away); u = 2^-53 is the
 * largest relative error of one double operation. The distances were found by trying every input: .ci/exhaustive.c. */

/* ln 2 as a sum. LN2_HI has 45 bits: its product with an integer of up to 8 bits is exact. LN2_LO has the next 53. */
static const double LN2_HI = 0x1.62e42fefa39p-1;
static const double LN2_LO = 0x1.de6af278ece6p-46;

/* exp(x) in double, for f32 to round. Without branches, calls or tables, so that compilers vectorise loops over it.
 *
 * x = k ln 2 + r with integer k and |r| < 0.3466, hence exp(x) = 2^k exp(r), and exp(r) is its Taylor series up to
 * r^13/13!; the remainder is below 0.06 u.
 *
 * Error. k * LN2_HI is exact, and its difference to x, a multiple of 2^-45 below 1, too; the second subtraction rounds
 * once, by u/4. Horner's scheme then ends with g = 1 + r*(1/2 + ...), off by 1.4 u if r > 0 and by 0.8 u if r < 0;
 * r*g, off by 0.347 of that and its own u/4; and 1 + r*g, which adds u above 1 and u/2 below. Relative to exp(r) that
 * is less than 2.1 u in all. Four of all inputs have results within twice this of a tie:
 *     0xc16912cd (-14.57)   at 1.3 u,   0xbae0e25c (-0.0017) at 3.6 u,
 *     0xbbf0edf1 (-0.0074)  at 2.4 u,   0xb3000000 (-2^-25)  at 4 u.
 * They have -2^-6 < r < 0, where all but the last rounding fade with r and the bound is 0.6 u: again less than half.
 */
TENSOR_INLINE double exp_core(float x) {
    /* From 100 on the result is infinity, and x becomes 100. Below -87.33654 it is to be 0, and x becomes -1023 ln 2,
     * so that the exponent field of 2^k below is 0: f32 could make 0 of e^x as well, but converting what is subnormal
     * as a float takes some processors a hundred cycles. NaN stays NaN. All on the bits, where the comparison with
     * both ends of a range is one, and which GCC vectorises when it balks at the choice between two floats. */
    const uint32_t hundred = 0x42c80000, infinity = 0x7f800000, too_low = 0xc2aeac50, minus_infinity = 0xff800000;
    const uint32_t minus_1023_ln2 = 0xc43145bb;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = u - hundred <= infinity - hundred ? hundred : u;
    u = u - too_low <= minus_infinity - too_low ? minus_1023_ln2 : u;
    float c;
    memcpy(&c, &u, sizeof c);

    /* Doubles near 2^52 are integers: the addition rounds c / ln 2 to k and leaves k in the last bits of t. The
     * constant 1 / ln 2 is a float, so the product is exact, and fused or not k is the same. */
    double t = (double)c * 0x1.715476p+0f + 0x1.8p52;
    double k = t - 0x1.8p52;
    double r = (c - k * LN2_HI) - k * LN2_LO;

    double y = 1.0 + r*(1.0 + r*(1.0/2 + r*(1.0/6 + r*(1.0/24 + r*(1.0/120 + r*(1.0/720 + r*(1.0/5040
             + r*(1.0/40320 + r*(1.0/362880 + r*(1.0/3628800 + r*(1.0/39916800
             + r*(1.0/479001600 + r*(1.0/6227020800.0)))))))))))));

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

/* log(2^k x) in double, for f32 to round; x > 0 is finite and not subnormal. Without branches, like exp_core.
 *
 * 2^k x = 2^l m with sqrt(1/2) <= m < sqrt(2), hence the logarithm is l ln 2 + log(1 + f) with f = m - 1. With
 * s = f/(2 + f), |s| < 0.1716, log(1 + f) = 2 atanh(s) = 2s + r s, r = 2/3 s^2 + 2/5 s^4 + ...; and as
 * 2s = f - s f = f - f^2/2 + s f^2/2,
 *     log(2^k x) = a + b,  a = l LN2_HI + f,  b = s (f^2/2 + r) - f^2/2 + l LN2_LO.
 * a is exact (a multiple of 2^-45 below 2^7), and so is f^2/2 (f has 24 bits). Only b, below 0.08, is rounded.
 *
 * Error of b. f^2/2 + r is rounded by 2^-57 and inherits 6 u r from r; the product with s, which is off by u itself,
 * makes that 1.1 * 2^-57; two additions round by 2^-57 each; the remainder of the series is 2^-62. Together: less
 * than 2^-55. For l = 0 all these shrink as f^2, and the same count gives less than 2^-52 times the square of the
 * logarithm. No input's logarithm lies within twice this bound of a tie.
 *
 * Rounding a + b to double would spoil that, by up to 2^-47. So the sum is kept as hi + lo, and where hi alone might
 * be a tie, lo decides: it goes into the last bit of hi, which neither ties nor floats use ("rounding to odd").
 */
TENSOR_INLINE double log_core(float x, int k) {
    const uint32_t one = 0x3f800000, sqrt_half = 0x3f3504f3;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u += one - sqrt_half;           /* the exponent field now steps at sqrt(1/2) 2^l instead of 2^l */
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
    return u < 0x00800000 ? f32(log_core((float)u, -149)) : f32(log_core(x, 0)); /* subnormal: x = u * 2^-149 */
}

/* ---- Hashing ---- */

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *b = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) hash = (hash ^ b[i]) * UINT64_C(1099511628211);
    return hash;
}

uint64_t hash_floats(uint64_t hash, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], 4);
        for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (u >> shift & 255)) * UINT64_C(1099511628211);
    }
    return hash;
}

/* ---- Embedding and gathering ---- */

/* out[r] = a[a_row[r]] + b[b_row[r]] (or a[r], b[0] where the index is NULL). */
KERNEL static void add_rows(float *out, const float *a, const uint32_t *a_row, const float *b, const uint32_t *b_row,
                            size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) {
        const float *from = a + (a_row ? a_row[r] : r) * d, *more = b + (b_row ? b_row[r] * d : 0);
        for (size_t j = 0; j < d; j++) out[r * d + j] = f32((double)from[j] + more[j]);
    }
}

/* to[row[r]] += x[r], in the order of the rows, in columns first to first + n - 1. */
KERNEL static void scatter_rows(float *to, const float *x, const uint32_t *row, size_t rows, size_t d, size_t first,
                                size_t n) {
    for (size_t r = 0; r < rows; r++) {
        float *sum = to + row[r] * d + first;
        const float *more = x + r * d + first;
        for (size_t j = 0; j < n; j++) sum[j] = f32((double)sum[j] + more[j]);
    }
}

static void scatter(Share share, float *to, const float *x, const uint32_t *row, size_t rows, size_t d) {
    const size_t begin = share_begin(share, d, 8), end = share_end(share, d, 8);
    if (begin < end) scatter_rows(to, x, row, rows, d, begin, end - begin);
}

void embed_forward(Share share, float *x, const float *W_E, const float *W_pos, const uint32_t *token,
                   const uint32_t *position, size_t rows, size_t d) {
    const size_t begin = share_begin(share, rows, 8), end = share_end(share, rows, 8);
    add_rows(x + begin * d, W_E, token + begin, W_pos, position + begin, end - begin, d);
}

void embed_backward(Share share, float *dW_E, float *dW_pos, const float *dx, const uint32_t *token,
                    const uint32_t *position, size_t rows, size_t d) {
    scatter(share, dW_E, dx, token, rows, d);
    scatter(share, dW_pos, dx, position, rows, d);
}

void gather_forward(Share share, float *out, const float *x, const float *b, const uint32_t *index, size_t rows,
                    size_t d) {
    const size_t begin = share_begin(share, rows, 8), end = share_end(share, rows, 8);
    if (b)
        add_rows(out + begin * d, index ? x : x + begin * d, index ? index + begin : NULL, b, NULL, end - begin, d);
    else
        for (size_t r = begin; r < end; r++) memcpy(out + r * d, x + (index ? index[r] : r) * d, d * sizeof *out);
}

void gather_backward(Share share, float *dx, float *db, const float *dout, const uint32_t *index, size_t rows,
                     size_t d) {
    scatter(share, dx, dout, index, rows, d);
    if (db) column_sums(share, db, dout, NULL, rows, d);
}

/* ---- Matrix products ---- */

/* One mechanism for x W, dout W^T and x^T dout: a matrix is a pointer and the distances between neighbours in a column
 * (row) and in a row (col), so a transpose is the same data with the distances swapped. */
typedef struct {
    const float *at;
    size_t row, col;
} Matrix;

/* The result is made in blocks that fit the caches; within a block, K is worked off in stretches, for which both
 * factors are copied, as doubles, in the order of use. The innermost step updates a TILE x TILE piece of the result
 * in registers: 64 sums that advance side by side, each in the order k = 0, 1, 2, ... */
enum { TILE = 8, BLOCK_M = 32, BLOCK_N = 64, BLOCK_K = 64 };

/* sums[m][n] = from[m * from_row + n] + sum over k of a[m * a_row + k * a_col] * b[k][n]. Inlined with constant
 * distances. All eight rows in one loop body: compilers then vectorise along n and keep the 64 sums in registers. */
TENSOR_INLINE void tile_product(double (*sums)[BLOCK_N], const double *from, size_t from_row, const double *restrict a,
                                size_t a_row, size_t a_col, const double (*restrict b)[TILE], size_t K) {
    double c[TILE][TILE];
    for (size_t m = 0; m < TILE; m++)
        for (size_t n = 0; n < TILE; n++) c[m][n] = from[m * from_row + n];
    for (size_t k = 0; k < K; k++, a += a_col)
        for (size_t n = 0; n < TILE; n++) {
            const double y = b[k][n];
            c[0][n] += a[0 * a_row] * y;
            c[1][n] += a[1 * a_row] * y;
            c[2][n] += a[2 * a_row] * y;
            c[3][n] += a[3 * a_row] * y;
            c[4][n] += a[4 * a_row] * y;
            c[5][n] += a[5 * a_row] * y;
            c[6][n] += a[6 * a_row] * y;
            c[7][n] += a[7 * a_row] * y;
        }
    for (size_t m = 0; m < TILE; m++)
        for (size_t n = 0; n < TILE; n++) sums[m][n] = c[m][n];
}

/* What the sums of a strip of M <= TILE rows start from. */
TENSOR_INLINE void strip_start(double (*sums)[BLOCK_N], const float *residual, size_t row, const double *bias, size_t M,
                               size_t N) {
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) sums[m][n] = (double)residual[m * row + n] + bias[n];
}

TENSOR_INLINE void strip_finish(float *out, size_t row, double (*sums)[BLOCK_N], size_t M, size_t N) {
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) out[m * row + n] = f32(sums[m][n]);
}

/* b's columns, N <= TILE of them, filled up with zeros to a whole tile. */
TENSOR_INLINE void copy_columns(double (*copy)[TILE], Matrix b, size_t K, size_t N) {
    for (size_t k = 0; k < K; k++)
        if (N == TILE && b.col == 1)
            VECTOR_LOOP
            for (size_t n = 0; n < TILE; n++) copy[k][n] = (double)b.at[k * b.row + n];
        else if (b.col == 1)
            VECTOR_LOOP
            for (size_t n = 0; n < TILE; n++) copy[k][n] = n < N ? (double)b.at[k * b.row + n] : 0.0;
        else
            for (size_t n = 0; n < TILE; n++) copy[k][n] = n < N ? (double)b.at[k * b.row + n * b.col] : 0.0;
}

/* a's rows, M <= TILE of them, likewise. */
TENSOR_INLINE void copy_rows(double *copy, Matrix a, size_t M, size_t K) {
    for (size_t m = 0; m < TILE; m++)
        for (size_t k = 0; k < K; k++) copy[m * BLOCK_K + k] = m < M ? (double)a.at[m * a.row + k] : 0.0;
}

TENSOR_INLINE Matrix part(Matrix a, size_t row, size_t col) {
    a.at += row * a.row + col * a.col;
    return a;
}

/* The part of a product that lies in N <= BLOCK_N columns and M rows, at most BLOCK_M of them if the sums of one
 * stretch of K have to wait for the next; what one stretch completes needs only a strip of them, which stays in the
 * cache. a_columns: whether neighbours in a stand in a column, and so are copied column by column. Inlined for either
 * case. */
TENSOR_INLINE void block(float *out, size_t out_row, const float *residual, const float *bias, Matrix a, Matrix b,
                         size_t M, size_t K, size_t N, int a_columns) {
    double sums[BLOCK_M / TILE][TILE][BLOCK_N] = {{{0}}}, b_copy[BLOCK_N / TILE * BLOCK_K][TILE];
    double a_copy[BLOCK_K * TILE], first[BLOCK_N];
    for (size_t n = 0; n < BLOCK_N; n++) first[n] = bias && n < N ? (double)bias[n] : 0.0;
    const size_t stretch = K <= BLOCK_K ? BLOCK_K : BLOCK_K / 2; /* whose copies of b stay in the cache, too */
    const size_t a_row = a_columns ? 1 : BLOCK_K, a_col = a_columns ? TILE : 1;
    for (size_t k0 = 0; k0 < K; k0 += stretch) {
        const size_t depth = smaller(K - k0, stretch);
        for (size_t n = 0; n < N; n += TILE)
            copy_columns(b_copy + n / TILE * depth, part(b, k0, n), depth, smaller(N - n, TILE));
        for (size_t m = 0; m < M; m += TILE) {
            const size_t height = smaller(M - m, TILE);
            const Matrix strip = part(a, m, k0), transposed = {strip.at, strip.col, 1};
            double(*strip_sums)[BLOCK_N] = sums[K <= BLOCK_K ? 0 : m / TILE];
            if (a_columns)
                copy_columns((double(*)[TILE])a_copy, transposed, depth, height);
            else
                copy_rows(a_copy, strip, height, depth);
            if (k0 == 0 && residual) strip_start(strip_sums, residual + m * out_row, out_row, first, height, N);
            for (size_t n = 0; n < N; n += TILE) {
                double(*tile)[BLOCK_N] = (double(*)[BLOCK_N])&strip_sums[0][n];
                const double(*b_tile)[TILE] = (const double(*)[TILE])b_copy + n / TILE * depth;
                if (k0 == 0 && !residual)
                    tile_product(tile, first + n, 0, a_copy, a_row, a_col, b_tile, depth);
                else
                    tile_product(tile, *tile, BLOCK_N, a_copy, a_row, a_col, b_tile, depth);
            }
            if (k0 + depth == K) strip_finish(out + m * out_row, out_row, strip_sums, height, N);
        }
    }
}

KERNEL static void block_product(float *out, size_t out_row, const float *residual, const float *bias, Matrix a,
                                 Matrix b, size_t M, size_t K, size_t N) {
    if (a.row == 1)
        block(out, out_row, residual, bias, a, b, M, K, N, 1);
    else
        block(out, out_row, residual, bias, a, b, M, K, N, 0);
}

/* out = residual + bias + a b, a (M, K), b (K, N), out and residual (M, N) contiguous. */
static void product(Share share, float *out, const float *residual, const float *bias, Matrix a, Matrix b, size_t M,
                    size_t K, size_t N) {
    const size_t height = K <= BLOCK_K ? 8 * BLOCK_M : BLOCK_M, end = share_end(share, M, TILE);
    for (size_t m = share_begin(share, M, TILE); m < end; m += height)
        for (size_t n = 0; n < N; n += BLOCK_N) {
            const Matrix a_rows = part(a, m, 0), b_columns = part(b, 0, n);
            block_product(out + m * N + n, N, residual ? residual + m * N + n : NULL, bias ? bias + n : NULL, a_rows,
                          b_columns, smaller(end - m, height), K, smaller(N - n, BLOCK_N));
        }
}

void linear_forward(Share share, float *out, const float *residual, const float *x, const float *W, const float *b,
                    size_t rows, size_t n_in, size_t n_out) {
    const Matrix x_view = {x, n_in, 1}, W_view = {W, n_out, 1};
    product(share, out, residual, b, x_view, W_view, rows, n_in, n_out);
}

/* With L the loss and out[r][j] = b[j] + sum_i x[r][i] W[i][j]:
 *   dL/dx[r][i] = sum_j dout[r][j] W[i][j],   dL/dW[i][j] = sum_r x[r][i] dout[r][j],   dL/db[j] = sum_r dout[r][j]. */
void linear_backward(Share share, float *dx, const float *dresidual, float *dW, float *db, const float *dout,
                     const float *x, const float *W, size_t rows, size_t n_in, size_t n_out) {
    const Matrix dout_view = {dout, n_out, 1}, W_transposed = {W, 1, n_out}, x_transposed = {x, 1, n_in};
    if (dx) product(share, dx, dresidual, NULL, dout_view, W_transposed, rows, n_out, n_in);
    if (dW) product(share, dW, dW, NULL, x_transposed, dout_view, n_in, rows, n_out);
    if (db) column_sums(share, db, dout, NULL, rows, n_out);
}

/* ---- Layer normalization ---- */

/* Weights that serve many rows are converted to double once, so many at a time. */
enum { WIDE = 64 };

/* out[j] = f32(x[j] w[j] + b[j]), in n <= WIDE columns of rows of width d. */
TENSOR_INLINE void scale_columns(float *restrict out, const float *restrict x, const float *w, const float *b,
                                 size_t rows, size_t d, size_t n) {
    double wide_w[WIDE], wide_b[WIDE];
    for (size_t j = 0; j < n; j++) wide_w[j] = (double)w[j], wide_b[j] = (double)b[j];
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j++) out[r * d + j] = f32((double)x[r * d + j] * wide_w[j] + wide_b[j]);
}

KERNEL static void layernorm_group(float *restrict out, float *restrict normal, float *restrict inv_std,
                                   const float *restrict x, const float *restrict w, const float *restrict b,
                                   size_t rows, size_t d) {
    double mean[GROUP] = {0}, square[GROUP] = {0};
    for (size_t r = 0; r < rows; r++) mean[r] = row_sum(x + r * d, d);
    for (size_t r = 0; r < GROUP; r++) mean[r] /= (double)d;
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < d; j++) normal[r * d + j] = f32((double)x[r * d + j] - mean[r]);
    for (size_t r = 0; r < rows; r++) square[r] = row_dot(normal + r * d, normal + r * d, d);
    for (size_t r = 0; r < GROUP; r++) square[r] = 1.0 / sqrt(square[r] / (double)d + 1e-5);
    for (size_t r = 0; r < rows; r++) inv_std[r] = f32(square[r]);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < d; j++) normal[r * d + j] = f32((double)normal[r * d + j] * inv_std[r]);
    for (size_t j = 0; j < d; j += WIDE)
        scale_columns(out + j, normal + j, w + j, b + j, rows, d, smaller(WIDE, d - j));
}

void layernorm_forward(Share share, float *out, float *normal, float *inv_std, const float *x, const float *w,
                       const float *b, size_t rows, size_t d) {
    const size_t end = share_end(share, rows, 8);
    for (size_t r = share_begin(share, rows, 8); r < end; r += GROUP)
        layernorm_group(out + r * d, normal + r * d, inv_std + r, x + r * d, w, b, smaller(GROUP, end - r), d);
}

/* For one row, with n = (x - mean) s, s = inv_std, and g = dL/dn = dout w: each x[i] moves n[j] directly, through the
 * mean and through s:  dn[j]/dx[i] = s ([i=j] - 1/d - n[i] n[j] / d).  Hence
 *   dL/dx[i] = s (g[i] - mean(g) - n[i] mean(g n)),   dL/dw = sum of dout n,   dL/db = sum of dout over the rows. */
KERNEL static void layernorm_backward_group(float *dx, const float *dresidual, const float *restrict dout,
                                            const float *restrict normal, const float *restrict inv_std,
                                            const float *restrict w, size_t rows, size_t d) {
    double g_mean[GROUP] = {0}, gn_mean[GROUP] = {0};
    for (size_t r = 0; r < rows; r++) {
        double g_sum[LANES] = {0}, gn_sum[LANES] = {0};
        const float *o = dout + r * d, *n = normal + r * d;
        size_t i = 0;
        for (; i + LANES <= d; i += LANES)
            VECTOR_LOOP
            for (size_t j = 0; j < LANES; j++) {
                const float g = f32((double)o[i + j] * w[i + j]);
                g_sum[j] += (double)g;
                gn_sum[j] += (double)g * n[i + j];
            }
        double sum = join(g_sum), sum_n = join(gn_sum);
        for (; i < d; i++) {
            const float g = f32((double)o[i] * w[i]);
            sum += (double)g;
            sum_n += (double)g * n[i];
        }
        g_mean[r] = sum;
        gn_mean[r] = sum_n;
    }
    for (size_t r = 0; r < GROUP; r++) g_mean[r] /= (double)d, gn_mean[r] /= (double)d;
    for (size_t r = 0; r < rows; r++) {
        const float n_mean = f32(gn_mean[r]);
        for (size_t j = 0; j < d; j++) {
            const float g = f32((double)dout[r * d + j] * w[j]);
            const float change = f32(((double)g - g_mean[r]) - (double)normal[r * d + j] * (double)n_mean);
            dx[r * d + j] = f32((dresidual ? (double)dresidual[r * d + j] : 0.0) + (double)change * inv_std[r]);
        }
    }
}

void layernorm_backward(Share share, float *dx, const float *dresidual, float *dw, float *db, const float *dout,
                        const float *normal, const float *inv_std, const float *w, size_t rows, size_t d) {
    const size_t end = share_end(share, rows, 8);
    for (size_t r = share_begin(share, rows, 8); r < end; r += GROUP)
        layernorm_backward_group(dx + r * d, dresidual ? dresidual + r * d : NULL, dout + r * d, normal + r * d,
                                 inv_std + r, w, smaller(GROUP, end - r), d);
    column_sums(share, dw, dout, normal, rows, d);
    column_sums(share, db, dout, NULL, rows, d);
}

/* ---- ReLU ---- */

void relu_forward(Share share, float *out, const float *x, size_t rows, size_t d) {
    const size_t end = share_end(share, rows, 8) * d;
    for (size_t i = share_begin(share, rows, 8) * d; i < end; i++) out[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void relu_backward(Share share, float *dx, const float *dout, const float *x, size_t rows, size_t d) {
    const size_t end = share_end(share, rows, 8) * d;
    for (size_t i = share_begin(share, rows, 8) * d; i < end; i++) dx[i] = x[i] > 0.0f ? dout[i] : 0.0f;
}

/* ---- Softmax and cross-entropy ---- */

/* each[r * n + j] = value[r] for rows of n <= LANES numbers. Every row writes LANES of them, and the next one
 * overwrites what is too much; then short rows can be worked off in one long loop. */
enum { SHORT_ROWS = GROUP * LANES };

TENSOR_INLINE void spread(double each[SHORT_ROWS], const double *value, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++)
        VECTOR_LOOP
        for (size_t j = 0; j < LANES; j++) each[r * n + j] = value[r];
}

TENSOR_INLINE void subtract_from_rows(float *p, const float *x, const double *value, size_t rows, size_t n) {
    if (n <= LANES) {
        double each[SHORT_ROWS];
        spread(each, value, rows, n);
        for (size_t i = 0; i < rows * n; i++) p[i] = f32((double)x[i] - each[i]);
    } else
        for (size_t r = 0; r < rows; r++)
            for (size_t j = 0; j < n; j++) p[r * n + j] = f32((double)x[r * n + j] - value[r]);
}

TENSOR_INLINE void scale_rows(float *p, const double *value, size_t rows, size_t n) {
    if (n <= LANES) {
        double each[SHORT_ROWS];
        spread(each, value, rows, n);
        for (size_t i = 0; i < rows * n; i++) p[i] = f32((double)p[i] * each[i]);
    } else
        for (size_t r = 0; r < rows; r++)
            for (size_t j = 0; j < n; j++) p[r * n + j] = f32((double)p[r * n + j] * value[r]);
}

/* Subtracts each row's maximum, so that exp cannot overflow, then exp of all rows at once, then each row is divided by
 * its sum. With loss and label, also loss[r] = log(sum) - (x[label] - max); a sum that is not above 0 comes of NaN. */
KERNEL static void softmax_group(float *p, const float *x, float *loss, const uint32_t *label, size_t rows, size_t n) {
    double max[GROUP], sum[GROUP] = {0}, inv[GROUP];
    for (size_t r = 0; r < rows; r++) max[r] = (double)row_max(x + r * n, n);
    subtract_from_rows(p, x, max, rows, n);
    for (size_t r = 0; loss && r < rows; r++) loss[r] = p[r * n + label[r]];
    for (size_t i = 0; i < rows * n; i++) p[i] = f32(exp_core(p[i]));
    for (size_t r = 0; r < rows; r++) sum[r] = row_sum(p + r * n, n);
    for (size_t r = 0; r < rows; r++) inv[r] = 1.0 / sum[r];
    scale_rows(p, inv, rows, n);
    if (loss) {
        float log_sum[GROUP]; /* by a loop of fixed length: what comes of the 0 where no row is, nobody reads */
        for (size_t r = 0; r < GROUP; r++) log_sum[r] = f32(log_core(f32(sum[r]), 0));
        for (size_t r = 0; r < rows; r++)
            loss[r] = f32((sum[r] > 0.0 ? (double)log_sum[r] : (double)NAN) - (double)loss[r]);
    }
}

void softmax_forward(Share share, float *p, const float *x, size_t rows, size_t n) {
    const size_t end = share_end(share, rows, 8);
    for (size_t r = share_begin(share, rows, 8); r < end; r += GROUP)
        softmax_group(p + r * n, x + r * n, NULL, NULL, smaller(GROUP, end - r), n);
}

void cross_entropy_forward(Share share, float *loss, float *p, const float *logits, const uint32_t *label, size_t rows,
                           size_t n) {
    const size_t end = share_end(share, rows, 8);
    for (size_t r = share_begin(share, rows, 8); r < end; r += GROUP)
        softmax_group(p + r * n, logits + r * n, loss + r, label + r, smaller(GROUP, end - r), n);
}

/* loss = log(sum_j e^x[j]) - x[label], and d log(sum_j e^x[j]) / dx[i] = e^x[i] / sum = p[i]:
 *   dloss/dx[i] = p[i] - [i = label]. */
KERNEL static void cross_entropy_backward_rows(float *dlogits, const float *p, const uint32_t *label, float scale,
                                               size_t rows, size_t n) {
    for (size_t i = 0; i < rows * n; i++) dlogits[i] = f32((double)p[i] * scale);
    for (size_t r = 0; r < rows; r++) {
        float *right = dlogits + r * n + label[r];
        *right = f32((double)*right - (double)scale);
    }
}

void cross_entropy_backward(Share share, float *dlogits, const float *p, const uint32_t *label, float scale,
                            size_t rows, size_t n) {
    const size_t r = share_begin(share, rows, 8), end = share_end(share, rows, 8);
    cross_entropy_backward_rows(dlogits + r * n, p + r * n, label + r, scale, end - r, n);
}

/* ---- Attention ---- */

/* Queries of one position, of up to GROUP lists, are worked off together: they see equally many keys. */
typedef struct {
    size_t query, rows, seen; /* the first query's number, how many there are, how many keys each sees */
    const uint32_t *row;      /* of the group's r-th list at position s: row[s * n_lists + r] */
} Group;

/* The first group of a share of the lists, or the next: from position to position, then on to other lists. 0: none. */
static int next_group(const Attention *a, Share share, Group *g) {
    const size_t end = share_end(share, a->n_lists, 8);
    size_t list = share_begin(share, a->n_lists, 8), place = 0;
    if (g->rows > 0) list = g->query % a->n_lists, place = g->query / a->n_lists + 1;
    if (place == a->n_queries) list += g->rows, place = 0;
    if (list >= end) return 0;
    g->query = place * a->n_lists + list, g->rows = smaller(GROUP, end - list);
    g->seen = a->seq_len - a->n_queries + place + 1, g->row = a->row + list;
    return 1;
}

/* Where the query of a list has its row: at the last position that it sees. */
static const uint32_t *query_rows(const Attention *a) { return a->row + (a->seq_len - a->n_queries) * a->n_lists; }

/* sum[u] = join(s[u]) of n = 4 or 8 rows: the second step is taken for two rows at a time, the third for four. */
TENSOR_INLINE void join_rows(double *sum, double (*s)[LANES], size_t n) {
    double four[8 * 4], two[8 * 2];
    for (size_t u = 0; u < n; u++)
        VECTOR_LOOP
        for (size_t j = 0; j < 4; j++) four[4 * u + j] = s[u][j] + s[u][j + 4];
    for (size_t u = 0; u < n; u += 2) {
        const double *a = four + 4 * u, left[4] = {a[0], a[1], a[4], a[5]}, right[4] = {a[2], a[3], a[6], a[7]};
        VECTOR_LOOP
        for (size_t j = 0; j < 4; j++) two[2 * u + j] = left[j] + right[j];
    }
    for (size_t u = 0; u < n; u += 4) {
        const double *a = two + 2 * u, left[4] = {a[0], a[2], a[4], a[6]}, right[4] = {a[1], a[3], a[5], a[7]};
        VECTOR_LOOP
        for (size_t j = 0; j < 4; j++) sum[u + j] = left[j] + right[j];
    }
}

/* dot[u] = x . y[u] for n = 4 or 8 rows y at once, in the order of row_dot: x is converted to double only once. Rows
 * are written out, and the loop ends with its condition, because GCC otherwise keeps some of the sums in memory. */
TENSOR_INLINE void dots(double *dot, const float *x, const float *const *y, size_t n, size_t d) {
    size_t i = 0;
    for (size_t u = 0; u < n; u++) dot[u] = 0.0;
    if (d >= LANES) {
        double s[8][LANES] = {{0}};
        do {
            const double low[4] = FOUR(x + i), high[4] = FOUR(x + i + 4);
            add_four(s[0], low, y[0] + i), add_four(s[0] + 4, high, y[0] + i + 4);
            add_four(s[1], low, y[1] + i), add_four(s[1] + 4, high, y[1] + i + 4);
            add_four(s[2], low, y[2] + i), add_four(s[2] + 4, high, y[2] + i + 4);
            add_four(s[3], low, y[3] + i), add_four(s[3] + 4, high, y[3] + i + 4);
            if (n == 8) {
                add_four(s[4], low, y[4] + i), add_four(s[4] + 4, high, y[4] + i + 4);
                add_four(s[5], low, y[5] + i), add_four(s[5] + 4, high, y[5] + i + 4);
                add_four(s[6], low, y[6] + i), add_four(s[6] + 4, high, y[6] + i + 4);
                add_four(s[7], low, y[7] + i), add_four(s[7] + 4, high, y[7] + i + 4);
            }
            i += LANES;
        } while (i + LANES <= d);
        join_rows(dot, s, n);
    }
    for (; i < d; i++)
        for (size_t u = 0; u < n; u++) dot[u] += (double)x[i] * (double)y[u][i];
}

/* out[i][s] = f32(scale x[x_row[i]] . y[row[s]]) for the group's queries i (or x[i], where x_row is NULL) and the keys
 * that they see, eight keys at a time; `unseen` for the other keys. */
TENSOR_INLINE void group_dots(const Attention *a, Group g, float *out, float unseen, const float *x,
                              const uint32_t *x_row, const float *y, size_t d, double scale) {
    const size_t T = a->seq_len;
    double dot[GROUP * 8];
    float rounded[GROUP * 8];
    for (size_t i = 0; i < GROUP * 8; i++) dot[i] = 0.0;
    for (size_t s0 = 0; s0 < T; s0 += 8) {
        for (size_t r = 0; r < g.rows && s0 < g.seen; r++) {
            const float *keys[8];
            for (size_t u = 0; u < 8; u++) keys[u] = y + g.row[(s0 + u < g.seen ? s0 + u : s0) * a->n_lists + r] * d;
            const float *query = x + (x_row ? x_row[g.query + r] : g.query + r) * d;
            if (g.seen - s0 > 4)
                dots(dot + r * 8, query, keys, 8, d);
            else
                dots(dot + r * 8, query, keys, 4, d); /* the other four are not looked at */
        }
        for (size_t i = 0; i < GROUP * 8; i++) rounded[i] = f32(dot[i] * scale);
        for (size_t r = 0; r < g.rows; r++)
            for (size_t u = 0; u < 8 && s0 + u < T; u++)
                out[(g.query + r) * T + s0 + u] = s0 + u < g.seen ? rounded[r * 8 + u] : unseen;
    }
}

KERNEL static void attention_pattern_group(const Attention *a, Group g, float *pattern, const float *q,
                                           const float *k) {
    float *p = pattern + g.query * a->seq_len;
    group_dots(a, g, pattern, -INFINITY, q, query_rows(a), k, a->d_key, (double)a->scale);
    softmax_group(p, p, NULL, NULL, g.rows, a->seq_len);
}

void attention_pattern(Share share, const Attention *a, float *pattern, const float *q, const float *k) {
    for (Group g = {0}; next_group(a, share, &g);) attention_pattern_group(a, g, pattern, q, k);
}

/* Weighted sums of rows are made so many columns at a time: they stay in registers. */
enum { COLUMNS = 32 };

/* sum[j] = sum over s of weight[s] * x[row[s * stride]][j], for n columns of rows of width d. */
TENSOR_INLINE void weighted_sum(double sum[COLUMNS], const float *weight, const float *x, const uint32_t *row,
                                size_t stride, size_t n_terms, size_t d, size_t n) {
    double t[COLUMNS] = {0};
    for (size_t s = 0; s < n_terms; s++) {
        const double w = (double)weight[s];
        const float *more = x + row[s * stride] * d;
        for (size_t j = 0; j < n; j++) t[j] += w * (double)more[j];
    }
    for (size_t j = 0; j < n; j++) sum[j] = t[j];
}

KERNEL static void attention_values_group(const Attention *a, Group g, float *z, const float *pattern,
                                          const float *v) {
    const size_t T = a->seq_len, d = a->d_value;
    double sum[COLUMNS];
    for (size_t r = 0; r < g.rows; r++) {
        const float *p = pattern + (g.query + r) * T;
        float *to = z + (g.query + r) * d;
        size_t j = 0;
        for (; j + COLUMNS <= d; j += COLUMNS) {
            weighted_sum(sum, p, v + j, g.row + r, a->n_lists, g.seen, d, COLUMNS);
            for (size_t c = 0; c < COLUMNS; c++) to[j + c] = f32(sum[c]);
        }
        if (j < d) weighted_sum(sum, p, v + j, g.row + r, a->n_lists, g.seen, d, d - j);
        for (size_t c = 0; j + c < d; c++) to[j + c] = f32(sum[c]);
    }
}

void attention_values(Share share, const Attention *a, float *z, const float *pattern, const float *v) {
    for (Group g = {0}; next_group(a, share, &g);) attention_values_group(a, g, z, pattern, v);
}

void attention_users(Share share, const Attention *a) {
    const size_t last = share_end(share, a->seq_len, 1);
    uint32_t *end = a->first_user + 1;
    if (share.part == 0) a->first_user[0] = 0;
    for (size_t s = share_begin(share, a->seq_len, 1); s < last; s++) {
        uint32_t sum = (uint32_t)(s * a->n_lists);
        for (size_t r = a->first_row[s]; r < a->first_row[s + 1]; r++) end[r] = 0;
        for (size_t i = s * a->n_lists; i < (s + 1) * a->n_lists; i++) end[a->row[i]]++;
        for (size_t r = a->first_row[s]; r < a->first_row[s + 1]; r++) {
            const uint32_t users = end[r];
            end[r] = sum; /* as yet, where they begin; it advances as they are noted */
            sum += users;
        }
        for (size_t i = s * a->n_lists; i < (s + 1) * a->n_lists; i++) a->user[end[a->row[i]]++] = (uint32_t)i;
    }
}

/* z = sum_s p_s v_s gives dL/dp_s = dz . v_s and dL/dv_s += p_s dz. p = softmax(score) gives dp_s/dscore_u =
 * p_s ([s=u] - p_u), so dL/dscore_s = p_s (dL/dp_s - sum_u p_u dL/dp_u). score_s = scale q . k_s gives
 * dL/dq = sum_s scale dscore_s k_s, dL/dk_s += scale dscore_s q. (The factor goes into dscores.) */
KERNEL static void attention_dscores_group(const Attention *a, Group g, float *dscores, const float *dz,
                                           const float *pattern, const float *v) {
    const size_t T = a->seq_len;
    double mean[GROUP];
    float *ds = dscores + g.query * T;
    const float *p = pattern + g.query * T;
    group_dots(a, g, dscores, 0.0f, dz, NULL, v, a->d_value, 1.0);
    for (size_t r = 0; r < g.rows; r++) mean[r] = row_dot(p + r * T, ds + r * T, T);
    if (T <= LANES) {
        double each[SHORT_ROWS];
        spread(each, mean, g.rows, T);
        for (size_t i = 0; i < g.rows * T; i++)
            ds[i] = f32((double)p[i] * ((double)ds[i] - each[i]) * (double)a->scale);
    } else
        for (size_t r = 0; r < g.rows; r++)
            for (size_t i = r * T; i < (r + 1) * T; i++)
                ds[i] = f32((double)p[i] * ((double)ds[i] - mean[r]) * (double)a->scale);
}

void attention_dscores(Share share, const Attention *a, float *dscores, const float *dz, const float *pattern,
                       const float *v) {
    for (Group g = {0}; next_group(a, share, &g);) attention_dscores_group(a, g, dscores, dz, pattern, v);
}

/* A row of position s receives from each query of its users, as a key, dscores[query][s] times q, and as a value,
 * pattern[query][s] times dz: weight[query][s] times x[x_row[query]], or times x[query] where x_row is NULL. */
typedef struct {
    const float *weight, *x;
    const uint32_t *x_row;
} Role;

/* attention_dkv in n <= COLUMNS columns from number j on. */
TENSOR_INLINE void dkv_columns(const Attention *a, size_t row, float *dx, int add, const Role *roles, size_t n_roles,
                               size_t d, size_t j, size_t n) {
    const uint32_t *user = a->user + a->first_user[row];
    const size_t T = a->seq_len, n_users = a->first_user[row + 1] - a->first_user[row];
    const size_t s = n_users > 0 ? user[0] / a->n_lists : T, first = T - a->n_queries;
    double sum[COLUMNS] = {0};
    for (const Role *as = roles; as < roles + n_roles; as++)
        for (size_t t = s > first ? s : first; t < T; t++) {
            const size_t shift = (t - first - s) * a->n_lists; /* from a user to its query; below zero, it wraps */
            for (size_t u = 0; u < n_users; u++) {
                const size_t query = user[u] + shift, from = as->x_row ? as->x_row[query] : query;
                add_row(sum, as->weight[query * T + s], as->x + from * d + j, n);
            }
        }
    float *to = dx + row * d + j;
    if (add) add_row(sum, 1.0f, to, n);
    round_row(to, sum, n);
}

/* dx[row] = what it receives in its roles, one or both, and what is there if `add`. */
KERNEL static void attention_dkv(const Attention *a, size_t row, float *dx, int add, const Role *roles, size_t n_roles,
                                 size_t d) {
    size_t j = 0;
    for (; j + COLUMNS <= d; j += COLUMNS) dkv_columns(a, row, dx, add, roles, n_roles, d, j, COLUMNS);
    if (j < d) dkv_columns(a, row, dx, add, roles, n_roles, d, j, d - j);
}

/* dq[row] = what its users' queries receive from all keys that they see. */
KERNEL static void attention_dq(const Attention *a, size_t row, float *dq, const float *dscores, const float *k) {
    const uint32_t *user = a->user + a->first_user[row];
    const size_t n_users = a->first_user[row + 1] - a->first_user[row], s = n_users > 0 ? user[0] / a->n_lists : 0;
    const size_t T = a->seq_len, d = a->d_key, first = (T - a->n_queries) * a->n_lists;
    for (size_t j = 0; j < d; j += COLUMNS) {
        double sum[COLUMNS] = {0}, more[COLUMNS];
        for (size_t u = 0; u < n_users; u++) {
            const float *ds = dscores + (user[u] - first) * T;
            const uint32_t *rows = a->row + (user[u] - s * a->n_lists);
            if (j + COLUMNS <= d)
                weighted_sum(more, ds, k + j, rows, a->n_lists, s + 1, d, COLUMNS);
            else
                weighted_sum(more, ds, k + j, rows, a->n_lists, s + 1, d, d - j);
            for (size_t c = 0; c < smaller(COLUMNS, d - j); c++) sum[c] += more[c];
        }
        for (size_t c = 0; c < smaller(COLUMNS, d - j); c++) dq[row * d + j + c] = f32(sum[c]);
    }
}

/* The first row of a share of the rows from a position on. Shares have equally many users, but for a row's: with one
 * query per list that is equal work, with more nearly so, as late rows cost more in dq and less in dk and dv. */
static size_t share_row(Share share, const Attention *a, size_t position) {
    const size_t first = position * a->n_lists, user = first + share_begin(share, a->seq_len * a->n_lists - first, 1);
    size_t low = a->first_row[position], high = a->first_row[a->seq_len];
    if (share.part == share.parts) return high; /* with rows at the end that nobody uses */
    while (low < high) { /* the first row whose users begin there or later */
        const size_t middle = (low + high) / 2;
        if (a->first_user[middle] < user)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void attention_backward(Share share, const Attention *a, float *dq, float *dk, float *dv, const float *dscores,
                        const float *dz, const float *pattern, const float *q, const float *k) {
    const size_t asking = a->seq_len - a->n_queries;
    const Share next = {share.part + 1, share.parts};
    const Role key_value[] = {{dscores, q, query_rows(a)}, {pattern, dz, NULL}};
    const size_t q_end = share_row(next, a, asking), kv_end = share_row(next, a, 0);
    for (size_t r = share_row(share, a, asking); r < q_end; r++) attention_dq(a, r, dq, dscores, k);
    for (size_t r = share_row(share, a, 0); r < kv_end; r++) {
        attention_dkv(a, r, dk, 1, key_value, dv ? 1 : 2, a->d_key);
        if (dv) attention_dkv(a, r, dv, 0, key_value + 1, 1, a->d_value);
    }
}

/* ---- Singular values ---- */

/* One-sided Jacobi (Hestenes 1958): pairs of columns are rotated until all are orthogonal; then their lengths are the
 * singular values and their directions the left singular vectors. For columns x and y the angle that makes them
 * orthogonal has tan(2 angle) = 2 x.y / (x.x - y.y); of its two solutions the smaller is taken (Golub & Van Loan,
 * section 8.5). */
static int rotate_columns(float *x, float *y, size_t n) {
    const double xx = row_dot(x, x, n), yy = row_dot(y, y, n), xy = row_dot(x, y, n);
    if (fabs(xy) <= 1e-6 * sqrt(xx) * sqrt(yy)) return 0;
    const float zeta = f32((yy - xx) / (2.0 * xy));
    const float t = f32((zeta < 0 ? -1.0 : 1.0) / (fabs((double)zeta) + sqrt(1.0 + (double)zeta * zeta)));
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
            for (size_t j = i + 1; j < n_columns; j++) rotated |= rotate_columns(columns + i * n, columns + j * n, n);
    }
    for (size_t i = 0; i < n_columns; i++) values[i] = f32(sqrt(row_dot(columns + i * n, columns + i * n, n)));
    for (size_t i = 0; i < n_columns; i++) { /* the greatest of the rest to the front */
        size_t best = i;
        for (size_t j = i + 1; j < n_columns; j++)
            if (values[j] > values[best]) best = j;
        for (size_t k = 0; k < n; k++) swap(columns + i * n + k, columns + best * n + k);
        swap(values + i, values + best);
    }
}

/* ---- Adam ---- */

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
KERNEL static void adam_part(const Adam *adam, uint32_t step, float *restrict x, float *restrict m, float *restrict v,
                             const float *restrict gradient, size_t n) {
    const double c1 = (double)one_minus_power(adam->beta1, step), c2 = sqrt((double)one_minus_power(adam->beta2, step));
    const float rate = f32(adam->lr * c2 / c1), decay = f32((double)adam->lr * adam->weight_decay);
    const float rest1 = f32(1.0 - (double)adam->beta1), rest2 = f32(1.0 - (double)adam->beta2);
    const float beta1 = adam->beta1, beta2 = adam->beta2;
    const double eps = (double)f32(adam->eps * c2);
    for (size_t i = 0; i < n; i++) {
        const float g = gradient[i], g_squared = f32((double)g * g);
        m[i] = f32((double)beta1 * m[i] + (double)rest1 * g);
        v[i] = f32((double)beta2 * v[i] + (double)rest2 * g_squared);
        const float direction = f32((double)m[i] / (sqrt((double)v[i]) + eps));
        x[i] = f32(((double)x[i] - (double)decay * x[i]) - (double)rate * direction);
    }
}

void adam_step(Share share, const Adam *adam, uint32_t step, float *x, float *m, float *v, const float *gradient,
               size_t n) {
    const size_t i = share_begin(share, n, STRIPE), end = share_end(share, n, STRIPE);
    adam_part(adam, step, x + i, m + i, v + i, gradient + i, end - i);
}
