#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char out_of_memory[] = "out of memory";

__attribute__((format(printf, 1, 0))) static char *msg_format(const char *fmt, va_list ap)
{
    char *msg = NULL;
    if (vasprintf(&msg, fmt, ap) < 0)
        return NULL;
    return msg;
}

static void msg_replace(struct err *err, char *msg)
{
    free(err->msg);
    err->msg = msg;
}

int err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
    if (err == NULL)
        return -1;
    va_list ap;
    va_start(ap, fmt);
    char *msg = msg_format(fmt, ap);
    va_end(ap);
    msg_replace(err, msg);
    err->code = code == ERR_OK ? ERR_UNKNOWN : code;
    err->sys_errno = 0;
    return -1;
}

static enum err_code code_of_errno(int sys_errno)
{
    switch (sys_errno) {
    case ENOENT:
        return ERR_NOT_FOUND;
    case EEXIST:
        return ERR_EXISTS;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
        return ERR_EXHAUSTED;
    case ECANCELED:
        return ERR_CANCELLED;
    case ETIMEDOUT:
        return ERR_DEADLINE;
    case EACCES:
    case EPERM:
        return ERR_DENIED;
    default:
        return ERR_INTERNAL;
    }
}

int err_sys(struct err *err, int sys_errno, const char *fmt, ...)
{
    if (err == NULL)
        return -1;
    va_list ap;
    va_start(ap, fmt);
    char *msg = msg_format(fmt, ap);
    va_end(ap);
    msg_replace(err, msg);
    err->code = code_of_errno(sys_errno);
    (void)err_append(err, ": %s", strerror(sys_errno));
    err->sys_errno = sys_errno;
    return -1;
}

/* Without memory the text stays as it is. */
static void msg_join(struct err *err, const char *first, const char *between, const char *second)
{
    char *msg = NULL;
    if (first != NULL && second != NULL && asprintf(&msg, "%s%s%s", first, between, second) >= 0)
        msg_replace(err, msg);
}

int err_wrap(struct err *err, const char *fmt, ...)
{
    if (err == NULL || err->code == ERR_OK)
        return -1;
    va_list ap;
    va_start(ap, fmt);
    char *head = msg_format(fmt, ap);
    va_end(ap);
    msg_join(err, head, ": ", err_msg(err));
    free(head);
    return -1;
}

int err_append(struct err *err, const char *fmt, ...)
{
    if (err == NULL || err->code == ERR_OK)
        return -1;
    va_list ap;
    va_start(ap, fmt);
    char *tail = msg_format(fmt, ap);
    va_end(ap);
    msg_join(err, err_msg(err), "", tail);
    free(tail);
    return -1;
}

int err_move(struct err *to, struct err *from)
{
    if (to == NULL) {
        err_clear(from);
        return -1;
    }
    if (to != from) {
        free(to->msg);
        *to = *from;
        *from = (struct err)ERR_INIT;
    }
    return -1;
}

void err_clear(struct err *err)
{
    if (err == NULL)
        return;
    free(err->msg);
    *err = (struct err)ERR_INIT;
}

const char *err_msg(const struct err *err)
{
    if (err == NULL || err->code == ERR_OK)
        return "no error";
    return err->msg != NULL ? err->msg : out_of_memory;
}

const char *err_code_name(enum err_code code)
{
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    if ((unsigned)code >= sizeof(names) / sizeof(names[0]))
        return "UNKNOWN";
    return names[code];
}
