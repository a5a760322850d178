#include "cri/dispatch.h"

#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "cri/message.h"
#include "cri/telemetry.h"

const struct method *dispatch_find(const struct method *list, size_t n, const char *path,
                                   size_t len)
{
    if (len == 0 || path[0] != '/')
        return NULL;
    path++;
    len--;
    const char *slash = memchr(path, '/', len);
    if (slash == NULL)
        return NULL;
    size_t service_len = (size_t)(slash - path);
    const char *name = slash + 1;
    size_t name_len = len - service_len - 1;
    for (size_t i = 0; i < n; i++)
        if (strlen(list[i].service) == service_len && strlen(list[i].name) == name_len &&
            memcmp(list[i].service, path, service_len) == 0 &&
            memcmp(list[i].name, name, name_len) == 0)
            return &list[i];
    return NULL;
}

/* One line per call: what a log of a node is read for. */
static void log_end(const struct method *m, int64_t start, int rc, const struct err *err)
{
    int64_t ms = (mono_ns() - start) / 1000000;
    if (rc == 0) {
        if (m->quiet)
            log_debug("call", LOG_STR("method", m->name), LOG_INT("ms", ms));
        else
            log_info("call", LOG_STR("method", m->name), LOG_INT("ms", ms));
        return;
    }
    /* A missing object or method is an everyday answer to polling. */
    enum log_level level = LOG_LEVEL_WARN;
    if (err->code == ERR_NOT_FOUND || err->code == ERR_UNIMPLEMENTED || err->code == ERR_CANCELLED)
        level = m->quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;
    log_at_(level, "call failed", LOG_STR("method", m->name), LOG_INT("ms", ms),
            LOG_STR("code", err_code_name(err->code)), LOG_STR("error", err_msg(err)));
}

int dispatch_run(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                 struct err *err)
{
    const struct method *m = call->method;
    int64_t start = mono_ns();
    *reply = NULL;
    int rc;
    if (m->handler == NULL)
        rc = err_set(err, ERR_UNIMPLEMENTED, "%s is not implemented by aspis " ASPIS_VERSION,
                     m->name);
    else
        rc = m->handler(call, req, reply, err);
    if (rc == 0 && !m->streaming && *reply == NULL)
        rc = err_set(err, ERR_INTERNAL, "%s: the handler gave no reply", m->name);
    if (rc < 0 && err->code == ERR_OK)
        (void)err_set(err, ERR_INTERNAL, "%s: failed without a reason", m->name);
    log_end(m, start, rc, err);
    telemetry_call(m->name, rc < 0 ? err->code : ERR_OK, mono_ns() - start);
    return rc < 0 ? -1 : 0;
}

static int full(const struct call *call, struct err *err)
{
    return err_set(err, ERR_EXHAUSTED, "%s: the call needs more than %zu MiB of memory",
                   call->method->name, (size_t)LIMIT_CALL_ARENA >> 20);
}

void *call_message(struct call *call, const ProtobufCMessageDescriptor *desc, struct err *err)
{
    void *m = arena_alloc(call->arena, desc->sizeof_message);
    if (m == NULL) {
        (void)full(call, err);
        return NULL;
    }
    protobuf_c_message_init(desc, m);
    return m;
}

void *call_array(struct call *call, size_t n, size_t size, struct err *err)
{
    size_t bytes;
    void *p = NULL;
    if (!__builtin_mul_overflow(n, size, &bytes))
        p = arena_alloc(call->arena, bytes);
    if (p == NULL)
        (void)full(call, err);
    return p;
}

char *call_string(struct call *call, const char *s, struct err *err)
{
    char *p = arena_strdup(call->arena, s == NULL ? "" : s);
    if (p == NULL)
        (void)full(call, err);
    return p;
}

int call_send(struct call *call, const ProtobufCMessage *message, struct err *err)
{
    size_t len;
    auto_free uint8_t *data = message_pack(message, LIMIT_GRPC_MESSAGE, call->arena, &len, err);
    if (data == NULL)
        return -1;
    return call->send(call, data, len, err);
}
