/*
 * SetLimits: limits of a container, or of the pod's containers together, written into its control
 * group and read back. All or none: what was written before one that the kernel refuses is taken
 * back.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/container_cgroup.h"
#include "agent/container_jobs.h"
#include "agent/container_table.h"
#include "agent/limits_v1.h"
#include "agent/oom_score.h"
#include "agent/pod_cgroup.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define MAX_LIMITS 64
#define MAX_VALUE 4096

static int check(const Aspis__Agent__V1__SetLimitsRequest *req, struct err *err)
{
    static const char *const controllers[] = {"cpu.",    "cpuset.", "hugetlb.", "io.",
                                              "memory.", "pids.",   "misc."};
    if (req->n_limits > MAX_LIMITS)
        return err_set(err, ERR_INVALID, "%zu limits", req->n_limits);
    for (size_t i = 0; i < req->n_limits; i++) {
        const char *key = req->limits[i]->key;
        bool known = false;
        for (size_t k = 0; k < ARRAY_LEN(controllers) && !known; k++)
            known = str_starts(key, controllers[k]);
        if (!known ||
            strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") !=
                strlen(key))
            return err_set(err, ERR_INVALID, "\"%.64s\" is no limit of a control group", key);
        if (strlen(req->limits[i]->value) > MAX_VALUE)
            return err_set(err, ERR_INVALID, "%s: the value is too long", key);
    }
    return 0;
}

/* The kernel would take a limit that is below what cannot be reclaimed and kill for it. */
static int check_usage(const char *id, const char *value, struct err *err)
{
    uint64_t limit;
    uint64_t used = cgroup_memory_used(id);
    if (str_to_u64(value, &limit) < 0 || used <= limit)
        return 0;
    return err_set(err, ERR_PRECONDITION,
                   "a memory limit of %" PRIu64 " bytes is below the %" PRIu64 " bytes in use",
                   limit, used);
}

static int set_one(const char *id, const char *key, const char *value, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    auto_free char *path = cgroup_file(id, key);
    if (cgroup_is_v1())
        return limits_v1_set(id, key, value, err);
    if (strcmp(key, "memory.max") == 0 && check_usage(id, value, err) < 0)
        return -1;
    if (fs_write_str(path, value, &e) == 0)
        return 0;
    if (e.sys_errno == ENOENT)
        return err_set(err, ERR_INVALID, "the guest's kernel has no limit %s", key);
    if (e.sys_errno == EINVAL || e.sys_errno == ERANGE)
        return err_set(err, ERR_INVALID, "the guest's kernel refuses %s = \"%.100s\"", key, value);
    return err_move(err, &e);
}

static char *read_one(const char *id, const char *key)
{
    if (cgroup_is_v1())
        return limits_v1_read(id, key);
    auto_free char *path = cgroup_file(id, key);
    char *text = fs_read(path, MAX_VALUE, NULL, NULL);
    size_t n = text != NULL ? strlen(text) : 0;
    if (n > 0 && text[n - 1] == '\n')
        text[n - 1] = '\0';
    return text != NULL ? text : xstrdup("");
}

static int set_all(const char *id, const Aspis__Agent__V1__SetLimitsRequest *req, struct err *err)
{
    char *old[MAX_LIMITS];
    size_t i = 0;
    int ret = 0;
    for (; i < req->n_limits; i++) {
        old[i] = read_one(id, req->limits[i]->key);
        ret = set_one(id, req->limits[i]->key, req->limits[i]->value, err);
        if (ret < 0) {
            free(old[i]);
            break;
        }
    }
    while (i-- > 0) {
        if (ret < 0)
            (void)set_one(id, req->limits[i]->key, old[i], NULL);
        free(old[i]);
    }
    return ret;
}

static int set_oom_score(const struct containers *t, const char *id,
                         const Aspis__Agent__V1__SetLimitsRequest *req, struct err *err)
{
    if (req->oom_score == NULL || *id == '\0')
        return 0;
    if (req->oom_score->adj < -1000 || req->oom_score->adj > 1000)
        return err_set(err, ERR_INVALID, "oom_score_adj %d", (int)req->oom_score->adj);
    auto_free char *state_root = job_state_root(t->state_dir);
    auto_free char *config = fs_format("%s/%s/config.json", state_root, id);
    return oom_score_set(id, config, req->oom_score->adj, err);
}

void handle_set_limits(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__SetLimitsRequest *req =
        (const Aspis__Agent__V1__SetLimitsRequest *)request;
    auto_err struct err err = ERR_INIT;

    /* in a VM that was saved the group has the name from before */
    const struct container *c = container_find(t, req->container_id);
    const char *id = c != NULL ? c->id : "";
    if (*req->container_id != '\0' && c == NULL) {
        fail_call(call, ERR_NOT_FOUND, "no such container");
        return;
    }
    if (check(req, &err) < 0 || set_all(id, req, &err) < 0 || set_oom_score(t, id, req, &err) < 0) {
        rpc_fail(call, &err);
        return;
    }
    Aspis__Agent__V1__SetLimitsResponse reply;
    aspis__agent__v1__set_limits_response__init(&reply);
    Aspis__Agent__V1__KeyValue rows[MAX_LIMITS];
    Aspis__Agent__V1__KeyValue *list[MAX_LIMITS];
    for (size_t i = 0; i < req->n_limits; i++) {
        aspis__agent__v1__key_value__init(&rows[i]);
        rows[i].key = req->limits[i]->key;
        rows[i].value = read_one(id, rows[i].key);
        list[i] = &rows[i];
    }
    reply.n_limits = req->n_limits;
    reply.limits = list;
    reply.oom_score = req->oom_score != NULL;
    rpc_reply(call, &reply.base);
    for (size_t i = 0; i < req->n_limits; i++)
        free(rows[i].value);
}
