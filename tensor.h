/* tensor.h - the numerics of a small transformer: random numbers, exp and log, every layer's forward and backward
 * pass, Adam, hashing, singular values. Nothing here knows what the network is for.
 *
 * The promise: every function gives the same bits on every platform with IEEE-754 float and double, with every
 * compiler and optimisation level short of -ffast-math, with or without fused multiply-add, with any number of
 * threads. It rests on five habits, kept throughout tensor.c:
 *
 *   - Values are stored as float and summed in double. A product that feeds a sum has two float factors, so it is
 *     exact in double (24 + 24 bits fit into 53) and fusing it with the sum changes nothing.
 *   - Every rounding from double to float goes through f32().
 *   - The order of every sum is written in the source. Work is divided by results, never by the terms of a sum.
 *   - Of <math.h> only what IEEE-754 defines to the last bit is used: sqrt, fabs. exp and log are our own.
 *   - No stored float is subnormal, since some processors would flush it to zero.
 *
 * Arrays are contiguous and row-major: (rows, n) is rows times n floats, one row after the other. Outputs don't overlap
 * inputs unless it is said. A backward function receives d... = d loss / d ... of what its forward wrote. To
 * gradients of parameters, and of rows that are used many times (embed, gather, attention's keys), it *adds*: a caller
 * zeroes them once before the step. The gradient of a layer's input it writes, and on top of it what dresidual holds:
 * the gradient that reaches the same input by another way. Nothing here allocates, prints, exits or starts threads. */
#ifndef TENSOR_H
#define TENSOR_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined __FAST_MATH__ || defined _M_FP_FAST
#error "-ffast-math (or -Ofast) lets the compiler reorder sums: the same bits everywhere need plain -O2 or -O3."
#endif
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128 || DBL_MANT_DIG != 53 || DBL_MAX_EXP != 1024
#error "float and double must be IEEE-754 binary32 and binary64: look for a compiler option that makes them so."
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Rounding ------------------------------------------------------------------------------------------------- */

#ifdef __GNUC__
#define TENSOR_INLINE static inline __attribute__((always_inline, unused))
#define TENSOR_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define TENSOR_INLINE static inline
#define TENSOR_PRINTF(text, args)
#endif

TENSOR_INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* x rounded to float, ties to even; what then is not above FLT_MIN in size becomes +0, so that no stored float is
 * subnormal. (FLT_MIN itself, too: a processor that flushes before it rounds would have 0 for what rounds up to it.)
 * Where the compiler computes in a wider format, only a store rounds: hence the volatile. */
TENSOR_INLINE float f32(double x) {
#if defined FLT_EVAL_METHOD && FLT_EVAL_METHOD == 0
    const float y = (float)x;
#else
    volatile float store = (float)x;
    const float y = store;
#endif
    return fabsf(y) <= FLT_MIN ? 0.0f : y;
}

/* Sets this thread's floating-point unit to round doubles to 53 bits, which the x87 and the 68881 don't by default.
 * To be called once before anything else; threads started later inherit it. Returns 1 if double arithmetic then
 * behaves as IEEE-754 demands, 0 if it does not: no result of this library is reproducible on such a machine. */
int ieee_setup(void);

/* ---- Random numbers: MT19937, Matsumoto & Nishimura 1998 ------------------------------------------------------- */

typedef struct {
    uint32_t state[624];
    uint32_t next; /* index of the next word of state to hand out, 624 when a new block is due */
} Mt19937;

/* The state that the authors' init_genrand(seed) gives; torch.manual_seed(seed) starts from it too. */
void mt_seed(Mt19937 *mt, uint32_t seed);

/* The next of the 2^19937 - 1 outputs, uniform in 0 .. 2^32 - 1. */
uint32_t mt_next(Mt19937 *mt);

/* words (n): the next n of them. */
void mt_fill(Mt19937 *mt, uint32_t *words, size_t n);

/* out (n): each f32(deviation * z), z normal with mean 0 and deviation 1, by Marsaglia's polar method (Marsaglia & Bray
 * 1964), which needs log and sqrt only. Of each pair of normals both are used; an odd n drops the last. */
void mt_normal(Mt19937 *mt, float *out, size_t n, float deviation);

/* ---- exp, log -------------------------------------------------------------------------------------------------- */

/* e^x, correctly rounded for every float, then flushed like f32. exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN. */
float exp_f32(float x);

/* ln x, correctly rounded for every float. log(0) = -inf, log(inf) = inf; NaN for negative x and NaN. */
float log_f32(float x);

/* ---- Hashing --------------------------------------------------------------------------------------------------- */

#define HASH_START UINT64_C(14695981039346656037)

/* FNV-1a, 64 bit, of n bytes, continued from hash (HASH_START at first). */
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n);

/* The same of n floats, each as the four bytes of its bit pattern, lowest first, on machines of either byte order. */
uint64_t hash_floats(uint64_t hash, const float *x, size_t n);

/* ---- Shares of the work ---------------------------------------------------------------------------------------- */

/* A function that takes a Share computes one of `parts` parts of its results, and writes nothing else. The caller has
 * all parts computed before the results are used: one after the other, by as many threads at once, or as WHOLE. No
 * result depends on the number of parts. Rows, and attention's lists, are divided alike everywhere, in eights: what a
 * thread has made of its share of some rows, it can use at once for the same rows. Columns and parameters, and what
 * attention_users and attention_backward compute, are divided in other ways. */
typedef struct {
    size_t part, parts;
} Share;

static const Share WHOLE = {0, 1};

/* Of n things, in units of so many, those from share_begin to before share_end. */
TENSOR_INLINE size_t share_begin(Share share, size_t n, size_t unit) {
    return smaller(n, (n + unit - 1) / unit * share.part / share.parts * unit);
}
TENSOR_INLINE size_t share_end(Share share, size_t n, size_t unit) {
    share.part++;
    return share_begin(share, n, unit);
}

/* ---- Layers ---------------------------------------------------------------------------------------------------- */

/* x[r] = W_E[token[r]] + W_pos[position[r]] for each row. x (rows, d), W_E (vocabulary, d), W_pos (places, d). */
void embed_forward(Share share, float *x, const float *W_E, const float *W_pos, const uint32_t *token,
                   const uint32_t *position, size_t rows, size_t d);
/* dW_E[token[r]] += dx[r],  dW_pos[position[r]] += dx[r], in the order of the rows. */
void embed_backward(Share share, float *dW_E, float *dW_pos, const float *dx, const uint32_t *token,
                    const uint32_t *position, size_t rows, size_t d);

/* out[r] = x[index[r]] + b, for each of the rows; index NULL: x[r]; b (d) may be NULL. out (rows, d). */
void gather_forward(Share share, float *out, const float *x, const float *b, const uint32_t *index, size_t rows,
                    size_t d);
/* dx[index[r]] += dout[r],  db += dout[r], in the order of the rows; db may be NULL. */
void gather_backward(Share share, float *dx, float *db, const float *dout, const uint32_t *index, size_t rows,
                     size_t d);

/* out = residual + b + x W. x (rows, n_in), W (n_in, n_out), b (n_out), out and residual (rows, n_out).
 * b may be NULL, residual may be NULL or out itself. */
void linear_forward(Share share, float *out, const float *residual, const float *x, const float *W, const float *b,
                    size_t rows, size_t n_in, size_t n_out);
/* dx = dresidual + dout W^T,  dW += x^T dout,  db += the column sums of dout. Each of dx, dW and db may be NULL;
 * dresidual may be NULL or dx itself. */
void linear_backward(Share share, float *dx, const float *dresidual, float *dW, float *db, const float *dout,
                     const float *x, const float *W, size_t rows, size_t n_in, size_t n_out);

/* Layer normalization (Ba, Kiros & Hinton 2016) of each row: normal = (x - mean) * inv_std, out = normal * w + b, with
 * inv_std = 1 / sqrt(mean of (x - mean)^2 + 1e-5). x, normal, out (rows, d); w, b (d); inv_std (rows). */
void layernorm_forward(Share share, float *out, float *normal, float *inv_std, const float *x, const float *w,
                       const float *b, size_t rows, size_t d);
/* dx = dresidual + what comes through the normalization, dw += ..., db += ...; dresidual may be NULL or dx itself. */
void layernorm_backward(Share share, float *dx, const float *dresidual, float *dw, float *db, const float *dout,
                        const float *normal, const float *inv_std, const float *w, size_t rows, size_t d);

/* out = max(x, 0), (rows, d). */
void relu_forward(Share share, float *out, const float *x, size_t rows, size_t d);
/* dx = dout where x > 0, else 0. */
void relu_backward(Share share, float *dx, const float *dout, const float *x, size_t rows, size_t d);

/* p = softmax of each row: exp(x - max) / sum of the same. x and p (rows, n) may be the same array. An entry of
 * -INFINITY gets probability 0. */
void softmax_forward(Share share, float *p, const float *x, size_t rows, size_t n);

/* loss[r] = -log softmax(logits[r])[label[r]], and p = softmax(logits), for backward; logits and p may be one. */
void cross_entropy_forward(Share share, float *loss, float *p, const float *logits, const uint32_t *label, size_t rows,
                           size_t n);
/* dlogits = scale * (p - onehot(label)); scale is 1/rows for the gradient of the mean loss. dlogits may be p. */
void cross_entropy_backward(Share share, float *dlogits, const float *p, const uint32_t *label, float scale,
                            size_t rows, size_t n);

/* One head of causal attention over many lists. Query t of a list looks at its positions 0 .. t. Only the last
 * n_queries positions ask; queries are numbered position by position: query i is list i % n_lists at position
 * seq_len - n_queries + i / n_lists. */
typedef struct {
    size_t n_lists, seq_len, n_queries;
    size_t d_key, d_value;           /* widths of a query or key, and of a value */
    const uint32_t *first_row;       /* (seq_len + 1): position t has the rows first_row[t] to first_row[t+1] - 1 of q,
                                      * k and v: together R = first_row[seq_len] */
    const uint32_t *row;             /* (seq_len, n_lists): which of them a list has there; lists may share rows */
    uint32_t *first_user, *user;     /* (R + 1), (seq_len * n_lists): the i with row[i] = r, in ascending order, are
                                      * user[first_user[r]] to user[first_user[r + 1] - 1]. For backward only */
    float scale;                     /* of the scores, as a rule 1/sqrt(d_head) */
} Attention;

/* pattern[i][s] = softmax over s <= t of scale q_i . k_s, 0 for s > t;  z[i] = sum over s of pattern[i][s] v_s.
 * q, k (R, d_key), v (R, d_value), pattern (n_queries * n_lists, seq_len), z (n_queries * n_lists, d_value). */
void attention_pattern(Share share, const Attention *a, float *pattern, const float *q, const float *k);
void attention_values(Share share, const Attention *a, float *z, const float *pattern, const float *v);
/* Writes a's first_user and user. */
void attention_users(Share share, const Attention *a);
/* The derivatives of both: first dscores, of pattern's shape, from dz; then dq = ..., dk += ..., dv = .... With dv
 * NULL the values are the keys, and dk receives both. Rows of q whose positions don't ask are left alone. */
void attention_dscores(Share share, const Attention *a, float *dscores, const float *dz, const float *pattern,
                       const float *v);
void attention_backward(Share share, const Attention *a, float *dq, float *dk, float *dv, const float *dscores,
                        const float *dz, const float *pattern, const float *q, const float *k);

/* ---- Linear algebra -------------------------------------------------------------------------------------------- */

/* Singular values of the matrix whose columns stand one after the other, (n_columns, n), in descending order; the
 * columns are replaced by the left singular vectors times their values. Accurate to about 1e-6 of the greatest. */
void singular_values(float *values, float *columns, size_t n_columns, size_t n);

/* ---- Training -------------------------------------------------------------------------------------------------- */

typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
} Adam;

/* Step number `step` (1 at first) of Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019)
 * on n parameters: m = beta1 m + (1-beta1) g,  v = beta2 v + (1-beta2) g^2,
 * x -= lr m/(1-beta1^step) / (sqrt(v/(1-beta2^step)) + eps) + lr weight_decay x. m and v are zero before the first. */
void adam_step(Share share, const Adam *adam, uint32_t step, float *x, float *m, float *v, const float *gradient,
               size_t n);

#ifdef __cplusplus
}
#endif
#endif
