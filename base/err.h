/*
 * err - the one error type of Aspis.
 *
 * A function that can fail takes `struct err *err` as its last argument and returns a negative
 * int (or NULL); on success it leaves *err alone. The lowest level fills the error with
 * err_set(); every level above adds the object's name and the step with err_wrap(), so that the
 * text reads from the outside in:
 *
 *     "sandbox 4f1a (default/web): start machine: qemu exited with status 1: <last console lines>"
 *
 * Only cri/ turns a struct err into a gRPC status.
 *
 * Memory: the struct lives on the caller's stack, starts as ERR_INIT and owns its message;
 * declare it `auto_err struct err err = ERR_INIT;` or call err_clear(). `err` may be NULL where the
 * caller does not care. Threads: an error belongs to one thread at a time.
 */
#ifndef ASPIS_BASE_ERR_H
#define ASPIS_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

/* The values are the canonical gRPC status codes (google.rpc.Code), so that the agent, the daemon
 * and the client agree on them without translation. */
enum err_code {
    ERR_OK = 0,
    ERR_CANCELLED = 1,
    ERR_UNKNOWN = 2,
    ERR_INVALID = 3, /* INVALID_ARGUMENT */
    ERR_DEADLINE = 4,
    ERR_NOT_FOUND = 5,
    ERR_EXISTS = 6,
    ERR_DENIED = 7, /* PERMISSION_DENIED */
    ERR_EXHAUSTED = 8,
    ERR_PRECONDITION = 9,
    ERR_ABORTED = 10,
    ERR_RANGE = 11,
    ERR_UNIMPLEMENTED = 12,
    ERR_INTERNAL = 13,
    ERR_UNAVAILABLE = 14,
    ERR_DATA_LOSS = 15,
    ERR_UNAUTHENTICATED = 16,
};

struct err {
    enum err_code code;
    int sys_errno; /* 0 when no system call was at fault */
    char *msg;     /* owned; NULL when code is ERR_OK */
};

#define ERR_INIT                                                                                   \
    {                                                                                              \
        ERR_OK, 0, 0                                                                               \
    }

/* Fills *err (replacing what it held) and returns -1, so that `return err_set(...)` reads well. */
int err_set(struct err *err, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Like err_set(), with ": strerror(sys_errno)" appended and the code derived from sys_errno
 * (ENOENT -> NOT_FOUND, EEXIST -> EXISTS, ENOSPC/EDQUOT/EMFILE/ENOMEM -> EXHAUSTED,
 * ECANCELED -> CANCELLED, ETIMEDOUT -> DEADLINE, EACCES/EPERM -> DENIED, else INTERNAL). */
int err_sys(struct err *err, int sys_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<text>: " in front of the message; keeps the code. Returns -1. No-op on an ERR_OK error. */
int err_wrap(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Appends text to the message; keeps the code. Returns -1. */
int err_append(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Moves *from into *to (freeing what *to held); *from becomes ERR_INIT. Returns -1. */
int err_move(struct err *to, struct err *from);

void err_clear(struct err *err);

/* Never NULL. */
const char *err_msg(const struct err *err);
const char *err_code_name(enum err_code code); /* "NOT_FOUND", ... */

#define auto_err __attribute__((cleanup(err_clear)))

#endif
