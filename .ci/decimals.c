/* decimals.c - compares print_double and parse_double with the C library's printf and strtod, which must
 * round correctly, as glibc's and musl's do: on random doubles, on texts exactly between two doubles and
 * next to that, and on a share of all floats.
 *
 *     cc -O2 -I. .ci/decimals.c tensor.c -lm -o decimals && ./decimals [DOUBLES [STRIDE]]
 *
 * DOUBLES random numbers (1000000) and every STRIDE-th float (4099; 1: all 2^32). */
#include "tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t wrong, compared, state = 1;

static uint64_t random_bits(void) { /* an LCG, its bits mixed */
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state ^ state >> 29) * UINT64_C(0x9e3779b97f4a7c15) ^ state >> 7;
}

static double from_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void complain(const char *what, const char *got, const char *expected) {
    if (wrong++ < 20) printf("%.200s: %.200s, should be %.200s\n", what, got, expected);
}

static void compare_print(double x, char style, int precision) {
    char format[16], got[NUMBER_TEXT], expected[NUMBER_TEXT];
    snprintf(format, sizeof format, "%%.%d%c", precision, style);
    snprintf(expected, sizeof expected, format, x);
    const size_t n = print_double(got, x, style, precision);
    if (strcmp(got, expected) != 0 || n != strlen(expected)) complain(format, got, expected);
    compared++;
}

static void compare_parse(const char *text) {
    char *end, got[40], expected[40];
    const char *our_end;
    const double theirs = strtod(text, &end), ours = parse_double(text, &our_end);
    compared++;
    if (memcmp(&theirs, &ours, sizeof ours) == 0 && end == our_end) return;
    snprintf(got, sizeof got, "%a", ours);
    snprintf(expected, sizeof expected, "%a", theirs);
    complain(text, got, expected);
}

/* Printed in some style, and read back from a longer or shorter form. */
static void compare(double x) {
    char text[100];
    const uint64_t r = random_bits();
    const int precision = (int)((r & 1 ? r >> 1 & 7 : (r >> 1) % (MAX_PRECISION + 1)));
    if (x != x) return; /* the sign of a NaN is the machine's affair */
    compare_print(x, "fg"[r >> 8 & 1], precision);
    snprintf(text, sizeof text, "%.*e", (int)(r >> 40 & 31), x);
    if (fabs(x) < HUGE_VAL) compare_parse(text);
}

/* Halfway to the next double in size, written out in full, and the least bit more or less. */
static void compare_tie(uint64_t bits) {
#if LDBL_MANT_DIG > DBL_MANT_DIG
    char text[1300];
    const double x = from_bits(bits);
    if (!(fabs(x) < 0x1.fffffffffffffp1023)) return;
    const long double tie = ((long double)x + (long double)from_bits(bits + 1)) / 2;
    const int n = snprintf(text, sizeof text, "%.1100Le", tie);
    char *exponent = strchr(text, 'e');
    (void)n;
    compare_parse(text);
    exponent[-1] = '1';
    compare_parse(text);
    snprintf(text, sizeof text, "%.*Le", (int)(random_bits() % 60), tie);
    compare_parse(text);
#else
    (void)bits;
#endif
}

int main(int argc, char **argv) {
    static const char *const odd[] = {
        "0", "-0", "+0.0e0", ".5", "5.", "-.5e1", "1e", "1e+", "1e-x", "1.5e3x", "12abc", "1,5", "00001", "0e999999999999999",
        "1e400", "-1e400", "1e-400", "1e99999999999999999999", "1e-99999999999999999999", "4.9406564584124654e-324",
        "2.4703282292062327e-324", "2.4703282292062328e-324", "1.7976931348623157e308", "1.7976931348623158e308",
        "1.7976931348623159e308", "2.2250738585072011e-308", "2.2250738585072012e-308", "9007199254740993"};
    const double doubles = argc > 1 ? atof(argv[1]) : 1e6;
    const uint64_t stride = argc > 2 ? strtoul(argv[2], NULL, 10) : 4099;
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) compare_parse(odd[i]);
    for (double i = 0; i < doubles; i++) {
        const uint64_t bits = random_bits();
        compare(from_bits(bits));                                                 /* any */
        compare(from_bits((bits & ~(UINT64_C(2047) << 52)) | (1023 - 30 + (bits >> 52 & 63)) << 52)); /* of common size */
        compare((double)(int64_t)(bits >> 40) / 1024);                            /* with ties */
        compare((double)(bits >> 44) * 1e-5);                                     /* near ties */
        if (bits % 16 == 0) compare_tie(random_bits());
        if (bits % 16 == 1) compare_tie(random_bits() & ~(UINT64_C(2046) << 52)); /* the least */
    }
    for (uint64_t i = 0; i < UINT64_C(1) << 32; i += stride) {
        const uint32_t bits = (uint32_t)i;
        float x;
        memcpy(&x, &bits, sizeof x);
        if (x != x) continue;
        compare((double)x);
        compare_print((double)x, 'g', 9);
    }
    printf("%" PRIu64 " texts compared, %" PRIu64 " wrong\n", compared, wrong);
    return wrong > 0;
}
