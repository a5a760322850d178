/*
 * cleanup - ownership that shows in the code: scope-bound release and explicit transfer.
 *
 *     auto_free char *path = NULL;
 *     auto_close int fd = -1;
 *     ...
 *     return take_fd(&fd);      // the caller owns it now
 *
 * Every module defines its own auto_ attribute beside its free function with DEFINE_AUTO().
 */
#ifndef ASPIS_BASE_CLEANUP_H
#define ASPIS_BASE_CLEANUP_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_freep(void *p)
{
    free(*(void **)p);
}

/* Closes without disturbing errno; accepts -1. */
static inline void cleanup_closep(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        (void)close(*fd);
        errno = saved;
    }
    *fd = -1;
}

static inline void cleanup_fclosep(FILE **f)
{
    if (*f != NULL)
        (void)fclose(*f);
}

static inline void cleanup_closedirp(DIR **d)
{
    if (*d != NULL)
        (void)closedir(*d);
}

#define auto_free __attribute__((cleanup(cleanup_freep)))
#define auto_close __attribute__((cleanup(cleanup_closep)))
#define auto_fclose __attribute__((cleanup(cleanup_fclosep)))
#define auto_closedir __attribute__((cleanup(cleanup_closedirp)))

/* DEFINE_AUTO(struct foo *, foo_free): defines foo_freep() for
 * `#define auto_foo __attribute__((cleanup(foo_freep)))`. The free function must accept NULL. */
#define DEFINE_AUTO(type, func)                                                                    \
    static inline void func##p(type *p) /* NOLINT(bugprone-macro-parentheses) */                   \
    {                                                                                              \
        if (*p)                                                                                    \
            func(*p);                                                                              \
    }                                                                                              \
    struct func##_auto_needs_semicolon

/* Transfer: yields the value and leaves the variable empty. */
#define take(ptr)                                                                                  \
    __extension__({                                                                                \
        __typeof__(ptr) *take_p_ = &(ptr);                                                         \
        __typeof__(ptr) take_v_ = *take_p_;                                                        \
        *take_p_ = NULL;                                                                           \
        take_v_;                                                                                   \
    })

static inline int take_fd(int *fd)
{
    int v = *fd;
    *fd = -1;
    return v;
}

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
