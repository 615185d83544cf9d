/* tensor.h - the numerics of a small transformer: random numbers, exp and log, every layer's
 * forward and backward pass, Adam, hashing, singular values. Nothing here knows what the network
 * is for.
 *
 * The promise: every function gives the same bits on every platform with IEEE-754 float and
 * double, with every compiler and optimisation level short of -ffast-math, with or without fused
 * multiply-add. It rests on five habits:
 *
 *   - Values are stored as float and summed in double. A product that feeds a sum has two float
 *     factors, so it is exact in double (24 + 24 bits fit into 53), and fusing it with the sum
 *     changes nothing. (exp and log compute in double throughout. They have an argument of their
 *     own, told there.)
 *   - Every rounding to float goes through f32(). Of two floats, a sum, a difference, a product or
 *     a quotient is rounded correctly whether it was computed in float or in double before.
 *   - The source fixes the order of every sum.
 *   - Of <math.h> only what is defined to the last bit is used: sqrt, fabs, floor, ceil. exp and
 *     log are our own.
 *   - No stored float is subnormal, since some processors would flush it to zero.
 *
 * Conventions. Arrays are contiguous and row-major: (rows, n) is rows times n numbers, one row
 * after the other. Outputs come first, sizes last. An output does not overlap an input unless
 * the comment allows it.
 *
 * A backward function takes d... = d loss / d ... of what its forward function wrote. It ADDS to
 * the gradients of parameters and of rows that several others share (embed, gather, attention):
 * zero those once, before the first call. It OVERWRITES the gradient of its input: its own part
 * plus dresidual, which is what reaches the same input along the residual stream. dresidual may
 * be NULL (nothing to add) or the same array as dx.
 *
 * Nothing here allocates, prints, exits, keeps state or starts threads. */
#ifndef TENSOR_H
#define TENSOR_H

#ifndef __USE_MINGW_ANSI_STDIO
/* Then PRIu64 is "llu" with mingw, too, as the formats of median.h want it. */
#define __USE_MINGW_ANSI_STDIO 1
#endif

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* The parts of -ffast-math, as far as macros tell. ieee_setup finds the others. */
#if defined __FAST_MATH__ || defined _M_FP_FAST
#error "-ffast-math (or -Ofast) reorders sums: the same bits everywhere need plain -O2 or -O3."
#elif defined __ASSOCIATIVE_MATH__
#error "-fassociative-math (or -funsafe-math-optimizations) reorders sums: build without it."
#elif defined __RECIPROCAL_MATH__
#error "-freciprocal-math turns x / y into x * (1 / y), which rounds twice: build without it."
#elif defined __FINITE_MATH_ONLY__ && __FINITE_MATH_ONLY__
#error "-ffinite-math-only takes NaN and infinity for impossible: build without it."
#endif
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128 || DBL_MANT_DIG != 53 || \
    DBL_MAX_EXP != 1024
#error "float and double must be IEEE-754 binary32 and binary64: is there an option for that?"
#endif
/* 1.0 is a double. -fsingle-precision-constant makes it a float, and this size negative. */
typedef char build_without_fsingle_precision_constant[sizeof(1.0) == sizeof(double) ? 1 : -1];

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Rounding -------------------------------------------------------------------------------- */

#ifdef __GNUC__
#define TENSOR_INLINE static inline __attribute__((always_inline, unused))
#if defined __MINGW32__ && !defined __clang__ /* where printf stands for Microsoft's, without %zu */
#define TENSOR_PRINTF(text, args) __attribute__((format(gnu_printf, text, args)))
#else
#define TENSOR_PRINTF(text, args) __attribute__((format(printf, text, args)))
#endif
#else
#define TENSOR_INLINE static inline
#define TENSOR_PRINTF(text, args)
#endif

TENSOR_INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* 1 where arithmetic of float and double is done in these types, and not in a wider one. (16 says
 * the same, of processors with a half-precision type.) */
#if defined FLT_EVAL_METHOD && (FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16)
#define TENSOR_EXACT_TYPES 1
#else
#define TENSOR_EXACT_TYPES 0
#endif

/* x rounded to float, ties to even; what then is not above FLT_MIN in size becomes +0, so that
 * no stored float is subnormal. (FLT_MIN itself, too: a processor that flushes before it rounds
 * would have 0 for what rounds up to it.) Where the compiler computes in a wider format, only a
 * store rounds: hence the volatile. */
TENSOR_INLINE float f32(double x) {
#if TENSOR_EXACT_TYPES
    const float y = (float)x;
#else
    volatile float store = (float)x;
    const float y = store;
#endif
    return fabsf(y) <= FLT_MIN ? 0.0f : y;
}

/* Sets the floating-point unit of the calling thread to round doubles to 53 bits, which the x87
 * and the 68881 don't do by default. To be called by every thread before anything else. Returns 1
 * if double arithmetic then behaves as IEEE-754 demands. If not, it returns 0, and *problem, unless
 * problem is NULL, says in one line what is wrong: no result of this library is reproducible.
 * A host that lets floating-point exceptions trap (feenableexcept) turns that off around its calls:
 * vectorised code computes in every lane, also where the result is not taken. */
int ieee_setup(const char **problem);

/* ---- Random numbers: MT19937, Matsumoto & Nishimura 1998 ------------------------------------- */

typedef struct {
    uint32_t state[624];
    uint32_t next; /* index of the next word of state to hand out, 624 when a new block is due */
} Mt19937;

/* The state that the authors' init_genrand(seed) gives; torch.manual_seed(seed) starts from it
 * too. */
void mt_seed(Mt19937 *mt, uint32_t seed);

/* The next of the 2^19937 - 1 outputs, uniform in 0 .. 2^32 - 1. */
uint32_t mt_next(Mt19937 *mt);

/* words (n): the next n of them. */
void mt_fill(Mt19937 *mt, uint32_t *words, size_t n);

/* out (n): each f32(deviation * z), z normal with mean 0 and deviation 1, by Marsaglia's polar
 * method (Marsaglia & Bray 1964), which needs log and sqrt only. Of each pair of normals both
 * are used; an odd n drops the last. */
void mt_normal(Mt19937 *mt, float *out, size_t n, float deviation);

/* ---- exp, log -------------------------------------------------------------------------------- */

/* e^x, correctly rounded for every float, then flushed like f32. exp(-inf) = 0, exp(inf) = inf,
 * exp(NaN) = NaN. */
float exp_f32(float x);

/* ln x, correctly rounded for every float. log(0) = -inf, log(inf) = inf; NaN for negative x and
 * NaN. */
float log_f32(float x);

/* ---- Hashing --------------------------------------------------------------------------------- */

#define HASH_START UINT64_C(14695981039346656037)

/* FNV-1a, 64 bit, of n bytes, continued from hash (HASH_START at first). */
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n);

/* The same of n floats, each as the four bytes of its bit pattern, lowest first, on machines of
 * either byte order. */
uint64_t hash_floats(uint64_t hash, const float *x, size_t n);

/* ---- Layers ---------------------------------------------------------------------------------- */

/* x[r] = W_E[token[r]] + W_pos[position[r]]. x (rows, d), W_E (vocabulary, d), W_pos (places,
 * d). */
void embed_forward(float *x, const float *W_E, const float *W_pos, const uint32_t *token,
                   const uint32_t *position, size_t rows, size_t d);
/* dW_E[token[r]] += dx[r],  dW_pos[position[r]] += dx[r], in the order of the rows. */
void embed_backward(float *dW_E, float *dW_pos, const float *dx, const uint32_t *token,
                    const uint32_t *position, size_t rows, size_t d);

/* out[r] = x[index[r]]. out (rows, d); x has at least max(index) + 1 rows. */
void gather_forward(float *out, const float *x, const uint32_t *index, size_t rows, size_t d);
/* dx[index[r]] += dout[r], in the order of the rows. */
void gather_backward(float *dx, const float *dout, const uint32_t *index, size_t rows, size_t d);

/* So many terms of a matrix product are added up in double before they are rounded to float; what
 * they come to goes on as the residual of the next. */
enum { SUM_DEPTH = 64 };

/* out = residual + b + x W. x (rows, n_in), W (n_in, n_out), b (n_out), out and residual (rows,
 * n_out). b may be NULL; residual may be NULL or out itself. */
void linear_forward(float *out, const float *residual, const float *x, const float *W,
                    const float *b, size_t rows, size_t n_in, size_t n_out);
/* dx = dresidual + dout W^T. */
void linear_backward_input(float *dx, const float *dresidual, const float *dout, const float *W,
                           size_t rows, size_t n_in, size_t n_out);
/* dW += x^T dout,  db += the column sums of dout; db may be NULL. */
void linear_backward_weights(float *dW, float *db, const float *dout, const float *x, size_t rows,
                             size_t n_in, size_t n_out);

/* Layer normalization (Ba, Kiros & Hinton 2016) of each row: normal = (x - mean) * inv_std, out
 * = normal * w + b, with inv_std = 1 / sqrt(mean of (x - mean)^2 + 1e-5). x, normal, out (rows,
 * d); w, b (d); inv_std (rows). w NULL (then b is NULL too): out = normal, and out may be the
 * same array as normal. */
void layernorm_forward(float *out, float *normal, float *inv_std, const float *x, const float *w,
                       const float *b, size_t rows, size_t d);
/* dx = dresidual + what comes through the normalization,  dw += ...,  db += .... dx may be dout.
 * With w NULL, dw and db are not touched. */
void layernorm_backward(float *dx, const float *dresidual, float *dw, float *db, const float *dout,
                        const float *normal, const float *inv_std, const float *w, size_t rows,
                        size_t d);

/* out = max(x, 0), n numbers; out may be x. */
void relu_forward(float *out, const float *x, size_t n);
/* dx = dout where x > 0, else 0; dx may be dout. */
void relu_backward(float *dx, const float *dout, const float *x, size_t n);

/* p = softmax of each row: exp(x - max) / sum of the same. x and p (rows, n) may be the same
 * array. An entry of -INFINITY gets probability 0. */
void softmax_forward(float *p, const float *x, size_t rows, size_t n);

/* loss[r] = -log softmax(logits[r])[label[r]], finite where that probability rounds to 0, too; and
 * p = softmax(logits), for backward; logits and p may be one. */
void cross_entropy_forward(float *loss, float *p, const float *logits, const uint32_t *label,
                           size_t rows, size_t n);
/* dlogits = scale * (p - onehot(label)); scale is 1/rows for the gradient of the mean loss.
 * dlogits may be p. */
void cross_entropy_backward(float *dlogits, const float *p, const uint32_t *label, float scale,
                            size_t rows, size_t n);

/* One head of causal attention over n_lists lists of seq_len positions. The last
 * queries_per_list positions ask: query t * n_lists + i is list i's at position seq_len -
 * queries_per_list + t, and sees the positions up to its own. */
typedef struct {
    size_t n_lists, seq_len, queries_per_list, d_head;
    const uint32_t *row; /* (seq_len, n_lists): the row of q, k and v that a list has at a position;
                            lists may share */
    float scale;         /* of the scores, as a rule 1/sqrt(d_head) */
} Attention;

/* A score: scale q . k, of two rows (d_head). */
float attention_score(const float *q, const float *k, size_t d_head, float scale);
/* pattern[query][s] = softmax over the seen s of scale q[query's row] . k[s's row], 0 for later s.
 * q, k (any number of rows, d_head); pattern (queries, seq_len). */
void attention_pattern_forward(float *pattern, const float *q, const float *k, const Attention *a);
/* Turns dpattern into the gradient of q . k, the scale included and 0 for later s, then dq += ...,
 * dk += .... dq and dk (rows, d_head) are sums in double. */
void attention_pattern_backward(double *dq, double *dk, float *dpattern, const float *pattern,
                                const float *q, const float *k, const Attention *a);

/* z[query] = sum over the seen s of pattern[query][s] v[s's row]. v (rows, d_head), z (queries,
 * d_head). */
void attention_values_forward(float *z, const float *pattern, const float *v, const Attention *a);
/* dpattern = ... (queries, seq_len; 0 for later s),  dv += ..., a sum in double. */
void attention_values_backward(float *dpattern, double *dv, const float *dz, const float *pattern,
                               const float *v, const Attention *a);

/* out[i] = f32(sums[i]), n of them. */
void round_sums(float *out, const double *sums, size_t n);

/* ---- Linear algebra -------------------------------------------------------------------------- */

/* Singular values of the matrix whose columns stand one after the other, (n_columns, n), in
 * descending order; the columns are replaced by the left singular vectors times their values.
 * Accurate to about 1e-6 of the greatest. */
void singular_values(float *values, float *columns, size_t n_columns, size_t n);

/* ---- Training -------------------------------------------------------------------------------- */

typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
} Adam;

/* Step number `step` (1 at first) of Adam (Kingma & Ba 2015) with decoupled weight decay
 * (Loshchilov & Hutter 2019) on n parameters: m = beta1 m + (1-beta1) g,  v = beta2 v +
 * (1-beta2) g^2, x -= lr m/(1-beta1^step) / (sqrt(v/(1-beta2^step)) + eps) + lr weight_decay x.
 * m and v are zero before the first. */
void adam_step(const Adam *adam, uint32_t step, float *x, float *m, float *v, const float *gradient,
               size_t n);

/* ---- Numbers as text ------------------------------------------------------------------------- */

/* The C library's printf and strtod differ from platform to platform and obey the locale; these
 * two don't. Both are exact: a double's decimal expansion is written out in full, up to 1074
 * places, and only then rounded. */

#define MAX_PRECISION 40
#define NUMBER_TEXT 400 /* room for any number */

/* Writes x as printf would in style 'f' or 'g' with up to MAX_PRECISION digits, rounded to the
 * nearest, ties to even: 0.125 is 0.12 as %.2f. NaN is "nan" of either sign. Returns the length,
 * without the 0 at the end. */
size_t print_double(char *text, double x, char style, int precision);

/* The double nearest to the decimal number at the start of text, ties to even: a sign or none,
 * digits with a point or without, an exponent or none. *end is where it ends, or text if no
 * number is there. Too great a number is infinite. */
double parse_double(const char *text, const char **end);

#ifdef __cplusplus
}
#endif
#endif
