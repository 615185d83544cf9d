/* What the sources use of Microsoft's C library, declared as it declares it: for .ci/lint, which lets clang's MSVC front
 * end read them where there is no Windows SDK. Every standard header includes this one. */
#ifndef MSVC_H
#define MSVC_H
#include <stddef.h>
#ifdef _WIN64
typedef long long intptr_t;
#else
typedef int intptr_t;
#endif
typedef long long time_t;
typedef long clock_t;
typedef struct _iobuf { void *_Placeholder; } FILE;
typedef int errno_t;

#define CLOCKS_PER_SEC ((clock_t)1000)
#define EOF (-1)
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2
#define BUFSIZ 512
#define EXIT_SUCCESS 0
#define EXIT_FAILURE 1
#define LC_ALL 0
#define LC_NUMERIC 4
#define _IONBF 4
#define _IOLBF 0x40
#define _O_BINARY 0x8000
#define SIGINT 2
#define SIGTERM 15
#define SIG_DFL ((void(__cdecl *)(int))0)
#define SIG_IGN ((void(__cdecl *)(int))1)
#define SIG_ERR ((void(__cdecl *)(int))-1)
#define ENOENT 2
#define EINTR 4
#define ENOMEM 12
#define EEXIST 17
#define ENOSPC 28
#define ERANGE 34
#define HUGE_VAL ((double)1e300 * 1e300)
#define HUGE_VALF ((float)HUGE_VAL)
#define INFINITY ((float)(1e300 * 1e300))
#define NAN (-(float)(INFINITY * 0.0F))
#define PRIu32 "u"
#define PRIx32 "x"
#define PRIu64 "llu"
#define PRId64 "lld"
#define PRIx64 "llx"
#define errno (*_errno())
#define stdin (__acrt_iob_func(0))
#define stdout (__acrt_iob_func(1))
#define stderr (__acrt_iob_func(2))
#define isnan(x) ((x) != (x))
#define isinf(x) ((x) == HUGE_VAL || (x) == -HUGE_VAL)
#define isfinite(x) ((x) - (x) == 0)

#ifdef __cplusplus
extern "C" {
#endif
typedef int sig_atomic_t;
int *__cdecl _errno(void);
FILE *__cdecl __acrt_iob_func(unsigned);
double __cdecl sqrt(double), fabs(double), floor(double), ceil(double), exp(double), log(double), pow(double, double), ldexp(double, int);
double __cdecl sin(double), cos(double), tan(double), asin(double), acos(double), atan(double), atan2(double, double), fmod(double, double);
float __cdecl fabsf(float);
int __cdecl printf(const char *, ...), fprintf(FILE *, const char *, ...), snprintf(char *, size_t, const char *, ...);
int __cdecl sprintf(char *, const char *, ...), sscanf(const char *, const char *, ...);
int __cdecl vfprintf(FILE *, const char *, __builtin_va_list), vsnprintf(char *, size_t, const char *, __builtin_va_list);
int __cdecl puts(const char *), fputs(const char *, FILE *), fputc(int, FILE *), putchar(int), fgetc(FILE *), getc(FILE *), ungetc(int, FILE *);
int __cdecl putc(int, FILE *), fclose(FILE *), feof(FILE *), ferror(FILE *), fflush(FILE *), fseek(FILE *, long, int), remove(const char *);
int __cdecl rename(const char *, const char *), setvbuf(FILE *, char *, int, size_t);
void __cdecl clearerr(FILE *), rewind(FILE *), perror(const char *);
char *__cdecl fgets(char *, int, FILE *);
long __cdecl ftell(FILE *);
FILE *__cdecl fopen(const char *, const char *);
FILE *__cdecl tmpfile(void);
size_t __cdecl fread(void *, size_t, size_t, FILE *), fwrite(const void *, size_t, size_t, FILE *);
void *__cdecl malloc(size_t);
void *__cdecl calloc(size_t, size_t);
void *__cdecl realloc(void *, size_t);
void __cdecl free(void *), qsort(void *, size_t, size_t, int(__cdecl *)(const void *, const void *));
__declspec(noreturn) void __cdecl exit(int);
__declspec(noreturn) void __cdecl abort(void);
char *__cdecl getenv(const char *);
int __cdecl atoi(const char *), abs(int), system(const char *);
double __cdecl strtod(const char *, char **), atof(const char *);
unsigned long __cdecl strtoul(const char *, char **, int);
long __cdecl strtol(const char *, char **, int);
unsigned long long __cdecl strtoull(const char *, char **, int);
void *__cdecl memcpy(void *, const void *, size_t);
void *__cdecl memmove(void *, const void *, size_t);
void *__cdecl memset(void *, int, size_t);
void *__cdecl memchr(const void *, int, size_t);
int __cdecl memcmp(const void *, const void *, size_t), strcmp(const char *, const char *), strncmp(const char *, const char *, size_t);
size_t __cdecl strlen(const char *), strspn(const char *, const char *), strcspn(const char *, const char *);
char *__cdecl strchr(const char *, int);
char *__cdecl strrchr(const char *, int);
char *__cdecl strstr(const char *, const char *);
char *__cdecl strpbrk(const char *, const char *);
char *__cdecl strcpy(char *, const char *);
char *__cdecl strncpy(char *, const char *, size_t);
char *__cdecl strcat(char *, const char *);
char *__cdecl strtok(char *, const char *);
char *__cdecl strerror(int);
char *__cdecl setlocale(int, const char *);
clock_t __cdecl clock(void);
time_t __cdecl time(time_t *);
double __cdecl difftime(time_t, time_t);
void(__cdecl *__cdecl signal(int, void(__cdecl *)(int)))(int);
int __cdecl raise(int), isalpha(int), isdigit(int), isspace(int), isprint(int), tolower(int), toupper(int);
int __cdecl _setmode(int, int), _isatty(int), _fileno(FILE *);
#ifdef __cplusplus
}
#endif
#endif
