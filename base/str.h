/*
 * str - string checks and lists.
 */
#ifndef ASPIS_BASE_STR_H
#define ASPIS_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* strict UTF-8 (RFC 3629): no overlong forms, no surrogates. */
bool str_is_utf8(const char *s, size_t len);
bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);
static inline bool str_empty(const char *s)
{
    return s == NULL || *s == '\0';
}
/* Whole-string decimal; -1 on anything else or out of range. */
int str_to_u64(const char *s, uint64_t *out);
int str_to_i64(const char *s, int64_t *out);
/* 0 to 15; -1: no hexadecimal digit. */
int str_hex_digit(int c);
/* strdup that aborts when memory is out: for small strings whose loss nothing could survive. */
char *xstrdup(const char *s); /* NULL gives NULL */
char *xstrndup(const char *s, size_t n);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n, size_t size);

/* A NULL-terminated, owned list of owned strings; starts as {0}. */
struct strv {
    char **v; /* NULL while empty; else NULL-terminated */
    size_t n;
};
void strv_add(struct strv *l, const char *s); /* copies */
void strv_addf(struct strv *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strv_clear(struct strv *l);
#define auto_strv __attribute__((cleanup(strv_clear)))

#endif
