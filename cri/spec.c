#include "cri/spec_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/backend.h"
#include "cri/spec_cdi.h"

#define OPEN_FILES 1048576 /* what containerd's service unit gives its containers */

int spec_check_container(const Container *c, const Pod *pod, enum backend backend, struct err *err)
{
    if (spec_check_security(c, pod, err) < 0)
        return -1;
    Container *full = spec_cdi_apply(c, err);
    int rc = full == NULL ? -1 : spec_check_mounts(full, err);
    if (rc == 0)
        rc = backend_check_mounts(backend, full, pod, err);
    if (full != NULL)
        protobuf_c_message_free_unpacked(&full->base, NULL);
    if (rc < 0)
        return -1;
    return spec_check_limits(c, backend, err) < 0 ? -1 : spec_check_devices(c, backend, err);
}

/* --- signals --- */

int spec_signal_number(const char *name)
{
    uint64_t n;
    if (str_to_u64(name, &n) == 0)
        return n >= 1 && n <= 64 && n != 32 && n != 33 ? (int)n
                                                       : -1; /* those two are glibc's own */
    if (strncasecmp(name, "SIG", 3) == 0)
        name += 3;
    static const struct {
        const char *prefix;
        int sign;
    } realtime[] = {{"RTMIN+", 1}, {"RTMINPLUS", 1}, {"RTMAX-", -1}, {"RTMAXMINUS", -1}};
    /* 34 and 64 are glibc's SIGRTMIN and SIGRTMAX, which containers mean */
    if (strcasecmp(name, "RTMIN") == 0)
        return 34;
    if (strcasecmp(name, "RTMAX") == 0)
        return 64;
    for (size_t i = 0; i < ARRAY_LEN(realtime); i++) {
        size_t len = strlen(realtime[i].prefix);
        if (strncasecmp(name, realtime[i].prefix, len) == 0 && str_to_u64(name + len, &n) == 0 &&
            n <= 30)
            return realtime[i].sign > 0 ? 34 + (int)n : 64 - (int)n;
    }
    if (strcasecmp(name, "IOT") == 0)
        return SIGABRT;
    if (strcasecmp(name, "CLD") == 0)
        return SIGCHLD;
    if (strcasecmp(name, "IO") == 0)
        return SIGIO; /* glibc calls it POLL */
    for (int sig = 1; sig < 32; sig++) {
        const char *abbrev = sigabbrev_np(sig);
        if (abbrev != NULL && strcasecmp(abbrev, name) == 0)
            return sig;
    }
    return -1;
}

int spec_stop_signal(const Container *c, const struct image_config *image, char name[16])
{
    const char *want = image->stop_signal;
    if (c->stop_signal != RUNTIME__V1__SIGNAL__SIGNAL_RUNTIME_DEFAULT) {
        const ProtobufCEnumValue *v =
            protobuf_c_enum_descriptor_get_value(&runtime__v1__signal__descriptor, c->stop_signal);
        want = v != NULL ? v->name + strlen("SIGNAL_") : NULL;
    }
    int sig = str_empty(want) ? SIGTERM : spec_signal_number(want);
    if (sig < 0)
        sig = SIGTERM; /* an image with nonsense in StopSignal still has to stop */
    if (sig < 32)
        (void)snprintf(name, 16, "SIG%s", sigabbrev_np(sig));
    else
        (void)snprintf(name, 16, "SIGRTMIN+%u", (unsigned)(sig - 34) % 31);
    return sig;
}

/* --- user --- */

int spec_user(const Container *c, const struct image_config *image, Aspis__Agent__V1__User *user,
              struct err *err)
{
    const Security *s = security_of(c);
    user->user = image->user;
    if (s == NULL)
        return 0;
    static _Thread_local char uid[24];
    if (s->run_as_user != NULL) {
        if (s->run_as_user->value < 0 || s->run_as_user->value > UINT32_MAX - 1)
            return err_set(err, ERR_INVALID, "run_as_user %lld is out of range",
                           (long long)s->run_as_user->value);
        (void)snprintf(uid, sizeof(uid), "%lld", (long long)s->run_as_user->value);
        user->user = uid;
    } else if (!str_empty(s->run_as_username)) {
        user->user = s->run_as_username;
    }
    if (s->run_as_group != NULL) {
        if (s->run_as_group->value < 0 || s->run_as_group->value > UINT32_MAX - 1)
            return err_set(err, ERR_INVALID, "run_as_group %lld is out of range",
                           (long long)s->run_as_group->value);
        user->has_group = true;
        user->group = (uint32_t)s->run_as_group->value;
    }
    user->strict_groups =
        s->supplemental_groups_policy == RUNTIME__V1__SUPPLEMENTAL_GROUPS_POLICY__Strict;
    static _Thread_local uint32_t groups[256];
    if (s->n_supplemental_groups > ARRAY_LEN(groups))
        return err_set(err, ERR_INVALID, "more than %zu supplemental groups", ARRAY_LEN(groups));
    for (size_t i = 0; i < s->n_supplemental_groups; i++) {
        if (s->supplemental_groups[i] < 0 || s->supplemental_groups[i] > UINT32_MAX - 1)
            return err_set(err, ERR_INVALID, "supplemental group %lld is out of range",
                           (long long)s->supplemental_groups[i]);
        groups[i] = (uint32_t)s->supplemental_groups[i];
    }
    user->supplemental_groups = groups;
    user->n_supplemental_groups = s->n_supplemental_groups;
    return 0;
}

bool spec_shared_pid(const Container *c)
{
    const Runtime__V1__NamespaceOption *n = namespaces_of(c);
    return n != NULL && n->pid == RUNTIME__V1__NAMESPACE_MODE__POD;
}

/* --- process --- */

/* Kubernetes' rule: command replaces the entrypoint and with it the image's arguments; args replace
 * the image's arguments. */
static json_t *make_args(const Container *c, const struct image_config *image, struct err *err)
{
    json_t *args = json_array();
    for (size_t i = 0; i < c->n_command; i++)
        (void)json_array_append_new(args, json_string(c->command[i]));
    if (c->n_command == 0) {
        for (size_t i = 0; i < image->entrypoint.n; i++)
            (void)json_array_append_new(args, json_string(image->entrypoint.v[i]));
    }
    for (size_t i = 0; i < c->n_args; i++)
        (void)json_array_append_new(args, json_string(c->args[i]));
    if (c->n_command == 0 && c->n_args == 0) {
        for (size_t i = 0; i < image->cmd.n; i++)
            (void)json_array_append_new(args, json_string(image->cmd.v[i]));
    }
    if (json_array_size(args) == 0) {
        json_decref(args);
        (void)err_set(err, ERR_INVALID, "no command specified by the container or its image");
        return NULL;
    }
    return args;
}

/* Replaces KEY= or appends. */
static void set_env(struct strv *env, const char *key, size_t key_len, const char *entry)
{
    for (size_t i = 0; i < env->n; i++) {
        if (strncmp(env->v[i], key, key_len) == 0 && env->v[i][key_len] == '=') {
            free(env->v[i]);
            env->v[i] = xstrdup(entry);
            return;
        }
    }
    strv_add(env, entry);
}

static int make_env(const Container *c, const Pod *pod, const struct image_config *image,
                    struct strv *env, struct err *err)
{
    strv_add(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    strv_addf(env, "HOSTNAME=%s", pod->hostname);
    if (c->tty)
        strv_add(env, "TERM=xterm");
    for (size_t i = 0; i < image->env.n; i++)
        set_env(env, image->env.v[i], strcspn(image->env.v[i], "="), image->env.v[i]);
    for (size_t i = 0; i < c->n_envs; i++) {
        const Runtime__V1__KeyValue *kv = c->envs[i];
        if (str_empty(kv->key) || strchr(kv->key, '=') != NULL)
            return err_set(err, ERR_INVALID, "envs[%zu]: \"%.64s\" is no variable name", i,
                           kv->key);
        const char *value = kv->value.len > 0 ? (const char *)kv->value.data : "";
        if (memchr(value, '\0', kv->value.len) != NULL)
            return err_set(err, ERR_INVALID, "envs[%zu] (%.64s): value holds a NUL", i, kv->key);
        auto_free char *entry = fs_format("%s=%.*s", kv->key, (int)kv->value.len, value);
        if (entry == NULL)
            return err_sys(err, ENOMEM, "envs");
        set_env(env, kv->key, strlen(kv->key), entry);
    }
    auto_strv struct strv of_devices = {0};
    if (spec_cdi_env(c, &of_devices, err) < 0)
        return -1;
    for (size_t i = 0; i < of_devices.n; i++)
        set_env(env, of_devices.v[i], strcspn(of_devices.v[i], "="), of_devices.v[i]);
    return 0;
}

static json_t *make_process(const Container *c, const Pod *pod, const struct image_config *image,
                            struct err *err)
{
    const Security *s = security_of(c);
    const Resources *r = resources_of(c);
    auto_strv struct strv env = {0};
    if (make_env(c, pod, image, &env, err) < 0)
        return NULL;
    json_auto_t *args = make_args(c, image, err);
    if (args == NULL)
        return NULL;
    json_auto_t *caps = spec_capabilities(s, err);
    if (caps == NULL)
        return NULL;
    json_auto_t *envs = json_array();
    for (size_t i = 0; i < env.n; i++) {
        json_t *entry = json_stringn(env.v[i], strlen(env.v[i]));
        if (entry == NULL) {
            (void)err_set(err, ERR_INVALID, "environment variable %.*s is not valid UTF-8",
                          (int)strcspn(env.v[i], "="), env.v[i]);
            return NULL;
        }
        (void)json_array_append_new(envs, entry);
    }
    const char *cwd = !str_empty(c->working_dir)       ? c->working_dir
                      : !str_empty(image->working_dir) ? image->working_dir
                                                       : "/";
    if (cwd[0] != '/') {
        (void)err_set(err, ERR_INVALID, "working directory \"%.200s\" is not absolute", cwd);
        return NULL;
    }
    json_t *p =
        json_pack("{s:b, s:O, s:O, s:s, s:O, s:b, s:{s:i, s:i}, s:[{s:s, s:i, s:i}]}", "terminal",
                  c->tty, "args", args, "env", envs, "cwd", cwd, "capabilities", caps,
                  "noNewPrivileges", s != NULL && s->no_new_privs, "user", "uid", 0, "gid", 0,
                  "rlimits", "type", "RLIMIT_NOFILE", "hard", OPEN_FILES, "soft", OPEN_FILES);
    if (p != NULL && r != NULL && r->oom_score_adj != 0) {
        int64_t adj = r->oom_score_adj;
        adj = adj < -1000 ? -1000 : adj > 1000 ? 1000 : adj;
        (void)json_object_set_new(p, "oomScoreAdj", json_integer(adj));
    }
    if (p == NULL)
        (void)err_set(err, ERR_INVALID, "process holds text that is not valid UTF-8");
    return p;
}

/* --- the whole --- */

static json_t *make_linux(const Container *c)
{
    const Security *s = security_of(c);
    /* network, ipc and uts are the VM's own, which are the pod's */
    return json_pack("{s:[{s:s}, {s:s}, {s:s}], s:o, s:o, s:o}", "namespaces", "type", "pid",
                     "type", "mount", "type", "cgroup", "resources",
                     spec_resources(resources_of(c)), "maskedPaths", spec_masked_paths(s),
                     "readonlyPaths", spec_readonly_paths(s));
}

char *spec_make(const Container *c, const Pod *pod, const struct image_config *image,
                const struct machine_volume *volumes, struct err *err)
{
    json_auto_t *process = make_process(c, pod, image, err);
    if (process == NULL)
        return NULL;
    const Security *s = security_of(c);
    json_auto_t *spec =
        json_pack("{s:s, s:O, s:{s:s, s:b}, s:o, s:o}", "ociVersion", "1.0.2", "process", process,
                  "root", "path", "rootfs", "readonly", s != NULL && s->readonly_rootfs, "mounts",
                  spec_mounts(c, volumes), "linux", make_linux(c));
    if (spec != NULL &&
        (spec_add_seccomp_flags(spec, c, err) < 0 || spec_cdi_finish(c, spec, err) < 0))
        return NULL;
    char *text = spec != NULL ? json_dumps(spec, JSON_COMPACT) : NULL;
    if (text == NULL)
        (void)err_set(err, ERR_INVALID, "the container's configuration cannot be put into a spec");
    else if (strlen(text) > MiB(3)) {
        free(text);
        text = NULL;
        (void)err_set(err, ERR_EXHAUSTED, "the container's configuration is larger than 3 MiB");
    }
    return text;
}
