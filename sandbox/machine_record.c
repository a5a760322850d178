#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "sandbox/machine.h"

void machine_record_clear(struct machine_record *r)
{
    free(r->accel);
    free(r->transport);
    free(r->cgroup);
    *r = (struct machine_record){0};
}

char *machine_record_encode(const struct machine_record *r)
{
    json_auto_t *v =
        json_pack("{s:s,s:I,s:I,s:I,s:I,s:s,s:s,s:s,s:I,s:I,s:b,s:I,s:I}", "backend",
                  r->backend == BACKEND_HOST ? "host" : "vm", "pid", (json_int_t)r->pid,
                  "pid_start_time", (json_int_t)r->pid_start_time, "uid", (json_int_t)r->uid, "cid",
                  (json_int_t)r->cid, "accel", r->accel != NULL ? r->accel : "", "transport",
                  r->transport != NULL ? r->transport : "", "cgroup",
                  r->cgroup != NULL ? r->cgroup : "", "memory_bytes", (json_int_t)r->memory_bytes,
                  "vcpus", (json_int_t)r->vcpus, "cloned", r->cloned, "boot_bytes",
                  (json_int_t)r->boot_bytes, "left_bytes", (json_int_t)r->left_bytes);
    char *text = v != NULL ? json_dumps(v, JSON_COMPACT) : NULL;
    return text != NULL ? text : xstrdup("{}");
}

static int number(const json_t *v, const char *key, json_int_t max, json_int_t *out,
                  struct err *err)
{
    const json_t *n = json_object_get(v, key);
    if (!json_is_integer(n) || json_integer_value(n) < 0 || json_integer_value(n) > max)
        return err_set(err, ERR_DATA_LOSS, "machine record: bad \"%s\"", key);
    *out = json_integer_value(n);
    return 0;
}

static int text(const json_t *v, const char *key, char **out, struct err *err)
{
    const char *s = json_string_value(json_object_get(v, key));
    if (s == NULL || strlen(s) >= LIMIT_PATH)
        return err_set(err, ERR_DATA_LOSS, "machine record: bad \"%s\"", key);
    *out = xstrdup(s);
    return 0;
}

int machine_record_decode(const char *in, struct machine_record *r, struct err *err)
{
    json_error_t je;
    *r = (struct machine_record){0};
    json_auto_t *v = json_loads(in, JSON_REJECT_DUPLICATES, &je);
    if (v == NULL)
        return err_set(err, ERR_DATA_LOSS, "machine record: %s", je.text);
    json_int_t pid, start, uid, cid, memory, vcpus;
    if (number(v, "pid", INT32_MAX, &pid, err) < 0 ||
        number(v, "pid_start_time", INT64_MAX, &start, err) < 0 ||
        number(v, "uid", UINT32_MAX - 1, &uid, err) < 0 ||
        number(v, "cid", UINT32_MAX, &cid, err) < 0 ||
        number(v, "memory_bytes", INT64_MAX, &memory, err) < 0 ||
        number(v, "vcpus", 65535, &vcpus, err) < 0)
        return -1;
    if (text(v, "accel", &r->accel, err) < 0 || text(v, "transport", &r->transport, err) < 0 ||
        text(v, "cgroup", &r->cgroup, err) < 0) {
        machine_record_clear(r);
        return -1;
    }
    const char *backend = json_string_value(json_object_get(v, "backend")); /* absent: a VM */
    r->backend = backend != NULL && strcmp(backend, "host") == 0 ? BACKEND_HOST : BACKEND_VM;
    r->pid = (pid_t)pid;
    r->pid_start_time = (uint64_t)start;
    r->uid = (uint32_t)uid;
    r->cid = (uint32_t)cid;
    r->memory_bytes = (uint64_t)memory;
    r->vcpus = (uint32_t)vcpus;
    const json_t *boot = json_object_get(v, "boot_bytes"); /* absent in records before VMs grew */
    r->boot_bytes = json_is_integer(boot) && json_integer_value(boot) > 0
                        ? (uint64_t)json_integer_value(boot)
                        : r->memory_bytes;
    const json_t *left = json_object_get(v, "left_bytes"); /* absent in records before it */
    if (json_is_integer(left) && json_integer_value(left) > 0)
        r->left_bytes = (uint64_t)json_integer_value(left);
    r->cloned = json_is_true(json_object_get(v, "cloned")); /* absent in records before clones */
    return 0;
}
