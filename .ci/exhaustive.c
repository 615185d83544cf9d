/* Every one of the 2^32 inputs of exp_f32 and log_f32 against MPFR, in two minutes or so.
 *
 *     cc -O2 exhaustive.c -lmpfr -lgmp -lm && ./a.out [--part i/n]
 *
 * It also lists the inputs whose true value is closer to a tie than twice the error that the functions' comments prove:
 * the four that exp_core's comment names, none for log.
 *
 * MPFR needs microseconds for a value, too long for eight thousand million of them. It is asked for anchors: the inputs
 * with at most 12 significant bits. The inputs behind an anchor c, up to the next one, are c + d with 0 <= d/c < 2^-11,
 * and a short Taylor series in double leads from the anchor's value to theirs. That is an approximation y with an error
 * bound that is easy to prove, here taken many times too large. If y - bound and y + bound round to the same float,
 * the true value does too. If not, MPFR decides that input itself; so no C library's exp or log is trusted.
 *
 * --part i/n takes the blocks i, i + n, i + 2n, ... (0 <= i < n) of 4096 inputs: a share that visits every exponent.
 * The hash is FNV-1a over the little-endian result bits, exp(x) then log(x), for x in the order of the bits of x.
 */
#include <inttypes.h>
#include <math.h>
#include <mpfr.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tensor.h"

enum { BLOCK = 4096, BLOCKS = 1 << 20 };

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return x != x ? 0x7fc00000 : u;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Written out again, so that the project's f32 is under test as well. */
static float nearest(double y)
{
    return fabsf((float)y) <= 0x1p-126f ? 0.0f : (float)y;
}

/* One of the two functions, its current anchor, and what was found about it. */
struct function {
    const char *name;
    int       (*mpfr)(mpfr_ptr, mpfr_srcptr, mpfr_rnd_t);
    double    (*error)(double); /* the bound that its comment derives, relative to the result */
    double      at, value;      /* anchor and MPFR's function value there, rounded to double */
    double      gap;            /* smallest relative distance of a true value to a rounding boundary, */
    uint32_t    hardest;        /* and the bits of the input that has it */
    uint64_t    wrong, decisions;
};

static double exp_error(double y)
{
    (void)y;
    return 2.1 * 0x1p-53;
}

static double log_error(double y)
{
    double absolute = y * y < 0.125 ? y * y * 0x1p-52 : 0x1p-55;
    return absolute / fabs(y);
}

static double anchor(struct function *f, float x)
{
    double c = x;
    uint64_t u;
    memcpy(&u, &c, sizeof u);
    u &= ~(uint64_t)0 << 41;
    memcpy(&c, &u, sizeof c);
    if (c != f->at) {
        mpfr_t y;
        mpfr_init2(y, 53);
        mpfr_set_d(y, c, MPFR_RNDN);
        f->mpfr(y, y, MPFR_RNDN);
        f->at = c;
        f->value = mpfr_get_d(y, MPFR_RNDN);
        mpfr_clear(y);
    }
    return x - c;
}

/* Notes how far the true value y is from the nearest boundary: a tie between two floats, which is a number of exactly
 * 25 significant bits, or the 2^-126 below which results are flushed. Only inputs that MPFR decides get here, but all
 * within twice the error do, as the bounds of the approximations below are larger than that. */
static void note_gap(struct function *f, float x, mpfr_t y)
{
    mpfr_t boundary;
    mpfr_init2(boundary, 25);
    for (int i = 0; i < 3; i++) {
        mpfr_set_ui_2exp(boundary, 1, -126, MPFR_RNDN);
        if (i < 2 && mpfr_cmpabs(y, boundary) >= 0) {
            mpfr_set(boundary, y, i ? MPFR_RNDA : MPFR_RNDZ);
            if (mpfr_min_prec(boundary) < 25)
                continue;
        }
        mpfr_t gap;
        mpfr_init2(gap, 53);
        mpfr_reldiff(gap, y, boundary, MPFR_RNDN);
        double g = fabs(mpfr_get_d(gap, MPFR_RNDN));
        mpfr_clear(gap);
        if (g < 2 * f->error(mpfr_get_d(y, MPFR_RNDN)))
            printf("%s(0x%08" PRIx32 ") lies at 2^%.2f of a boundary, within twice the error\n",
                   f->name, bits_of(x), log2(g));
        if (g < f->gap) {
            f->gap = g;
            f->hardest = bits_of(x);
        }
    }
    mpfr_clear(boundary);
}

/* MPFR rounds correctly to any precision: to 24 bits for the result, and to 200 to measure the gap. */
static float decide(struct function *f, float x)
{
    mpfr_t y, exact;
    mpfr_inits2(200, exact, (mpfr_ptr)0);
    mpfr_init2(y, 24);
    mpfr_set_flt(y, x, MPFR_RNDN);
    f->mpfr(exact, y, MPFR_RNDN);
    f->mpfr(y, y, MPFR_RNDN);
    float result = mpfr_get_flt(y, MPFR_RNDN);
    if (!mpfr_zero_p(exact)) {
        if (mpfr_get_exp(exact) < -125)
            result = 0.0f;
        note_gap(f, x, exact);
    }
    mpfr_clears(y, exact, (mpfr_ptr)0);
    f->decisions++;
    return result;
}

static float settle(struct function *f, float x, double y, double bound)
{
    float low = nearest(y - bound), high = nearest(y + bound);
    return bits_of(low) == bits_of(high) ? low : decide(f, x);
}

/* exp(c + d) = exp(c) exp(d) with |d| < 2^-11 * 2^6, as |c| < 2^7. The series' remainder is below d^7/7! * 1.1 < 2^-47,
 * and roundings add less than 2^-49 (relative to the result). */
static float true_exp(struct function *f, float x)
{
    if (x != x)
        return x;
    if (fabs((double)x) >= 128)
        return x > 0 ? INFINITY : 0.0f;
    double d = anchor(f, x);
    double y = f->value * (1 + d * (1 + d/2 * (1 + d/3 * (1 + d/4 * (1 + d/5 * (1 + d/6))))));
    return settle(f, x, y, y * 0x1p-45);
}

/* log(c + d) = log(c) + log(1 + t) with t = d/c, 0 <= t < 2^-11. The series' remainder is below t^6/6 < t * 2^-57, the
 * roundings of log(c), t, the series and the sum are below 2^-50 of (|log(c)| + t). */
static float true_log(struct function *f, float x)
{
    if (x != x || x < 0)
        return NAN;
    if (x == 0 || x == INFINITY)
        return x == 0 ? -INFINITY : x;
    double t = anchor(f, x) / f->at;
    double y = f->value + t * (1 - t * (1.0/2 - t * (1.0/3 - t * (1.0/4 - t/5))));
    return settle(f, x, y, (fabs(f->value) + t) * 0x1p-48);
}

static void compare(struct function *f, float x, float result, float truth)
{
    if (bits_of(result) == bits_of(truth))
        return;
    if (f->wrong++ < 10)
        printf("%s(0x%08" PRIx32 ") is 0x%08" PRIx32 ", should be 0x%08" PRIx32 "\n",
               f->name, bits_of(x), bits_of(result), bits_of(truth));
}

static uint64_t fnv1a(uint64_t hash, uint32_t u)
{
    for (int shift = 0; shift < 32; shift += 8)
        hash = (hash ^ (u >> shift & 0xff)) * 0x100000001b3;
    return hash;
}

int main(int argc, char **argv)
{
    unsigned part = 0, parts = 1;
    if (argc != 1 && (argc != 3 || strcmp(argv[1], "--part") || sscanf(argv[2], "%u/%u", &part, &parts) != 2
                      || part >= parts)) {
        fprintf(stderr, "usage: %s [--part i/n], 0 <= i < n\n", argv[0]);
        return 2;
    }

    struct function e = { "exp", mpfr_exp, exp_error, NAN, 0, 1, 0, 0, 0 };
    struct function l = { "log", mpfr_log, log_error, NAN, 0, 1, 0, 0, 0 };
    static float x[BLOCK], exp_x[BLOCK], log_x[BLOCK];
    uint64_t hash = 0xcbf29ce484222325;
    for (uint32_t block = part; block < BLOCKS; block += parts) {
        for (uint32_t i = 0; i < BLOCK; i++)
            x[i] = float_of(block * BLOCK + i);
        for (int i = 0; i < BLOCK; i++)
            exp_x[i] = exp_f32(x[i]);
        for (int i = 0; i < BLOCK; i++)
            log_x[i] = log_f32(x[i]);
        for (int i = 0; i < BLOCK; i++) {
            compare(&e, x[i], exp_x[i], true_exp(&e, x[i]));
            compare(&l, x[i], log_x[i], true_log(&l, x[i]));
            hash = fnv1a(fnv1a(hash, bits_of(exp_x[i])), bits_of(log_x[i]));
        }
    }
    struct function *both[] = { &e, &l };
    for (int i = 0; i < 2; i++)
        printf("%s: wrong %" PRIu64 ", decided by MPFR %" PRIu64 ", closest 0x%08" PRIx32 ", at 2^%.2f of a boundary\n",
               both[i]->name, both[i]->wrong, both[i]->decisions, both[i]->hardest, log2(both[i]->gap));
    printf("part %u/%u hash %016" PRIx64 "\n", part, parts, hash);
    mpfr_free_cache();
    return e.wrong || l.wrong;
}
