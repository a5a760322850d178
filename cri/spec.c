#include "cri/spec.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

typedef Runtime__V1__ContainerConfig Container;
typedef Runtime__V1__PodSandboxConfig Pod;
typedef Runtime__V1__LinuxContainerSecurityContext Security;
typedef Runtime__V1__LinuxContainerResources Resources;

#define OPEN_FILES 1048576 /* what containerd's service unit gives its containers */

static const Security *security_of(const Container *c)
{
    return c->linux != NULL ? c->linux->security_context : NULL;
}

static const Resources *resources_of(const Container *c)
{
    return c->linux != NULL ? c->linux->resources : NULL;
}

static const Runtime__V1__NamespaceOption *namespaces_of(const Container *c)
{
    const Security *s = security_of(c);
    return s != NULL ? s->namespace_options : NULL;
}

/* --- what is refused --- */

static int check_namespaces(const Runtime__V1__NamespaceOption *n, struct err *err)
{
    if (n == NULL)
        return 0;
    static const char why[] = "is asked for; a VM pod cannot share the host's namespaces and the "
                              "host backend is not built";
    if (n->network == RUNTIME__V1__NAMESPACE_MODE__NODE)
        return err_set(err, ERR_PRECONDITION, "network namespace NODE %s", why);
    if (n->pid == RUNTIME__V1__NAMESPACE_MODE__NODE)
        return err_set(err, ERR_PRECONDITION, "pid namespace NODE %s", why);
    if (n->ipc == RUNTIME__V1__NAMESPACE_MODE__NODE)
        return err_set(err, ERR_PRECONDITION, "ipc namespace NODE %s", why);
    if (n->pid == RUNTIME__V1__NAMESPACE_MODE__TARGET)
        return err_set(err, ERR_UNIMPLEMENTED, "pid namespace TARGET is not supported");
    if (n->userns_options != NULL && n->userns_options->mode == RUNTIME__V1__NAMESPACE_MODE__POD)
        return err_set(err, ERR_UNIMPLEMENTED, "user namespaces are not supported");
    return 0;
}

int spec_check_sandbox(const Pod *pod, struct err *err)
{
    const Runtime__V1__LinuxSandboxSecurityContext *s =
        pod->linux != NULL ? pod->linux->security_context : NULL;
    if (s == NULL)
        return 0;
    if (s->privileged)
        return err_set(err, ERR_PRECONDITION,
                       "privileged pods run on the host backend, which is not built");
    return check_namespaces(s->namespace_options, err);
}

static int check_profile(const Runtime__V1__SecurityProfile *p, const char *what, struct err *err)
{
    if (p == NULL || p->profile_type == RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined)
        return 0;
    return err_set(err, ERR_UNIMPLEMENTED,
                   "a%s profile is asked for; none is enforced in the guest", what);
}

int spec_check_container(const Container *c, const Pod *pod, struct err *err)
{
    (void)pod;
    if (c->n_mounts > 0)
        return err_set(err, ERR_UNIMPLEMENTED,
                       "mount of %.200s at %.200s: volumes need the file share, which is not built",
                       c->mounts[0]->host_path, c->mounts[0]->container_path);
    if (c->n_devices > 0)
        return err_set(err, ERR_UNIMPLEMENTED, "device %.200s: host devices are not supported",
                       c->devices[0]->host_path);
    if (c->n_cdi_devices > 0)
        return err_set(err, ERR_UNIMPLEMENTED, "CDI device %.200s: not supported",
                       c->cdi_devices[0]->name);
    const Security *s = security_of(c);
    if (s == NULL)
        return 0;
    if (s->privileged)
        return err_set(err, ERR_PRECONDITION,
                       "privileged containers run on the host backend, which is not built");
    if (check_profile(s->seccomp, " seccomp", err) < 0 ||
        check_profile(s->apparmor, "n AppArmor", err) < 0)
        return -1;
    if (s->run_as_group != NULL && s->run_as_user == NULL && str_empty(s->run_as_username))
        return err_set(err, ERR_INVALID,
                       "run_as_group is set without run_as_user or run_as_username");
    return check_namespaces(s->namespace_options, err);
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
    return 0;
}

/* containerd's and Docker's default set. */
static const char *const default_caps[] = {
    "CHOWN",  "DAC_OVERRIDE", "FSETID",  "FOWNER",           "MKNOD",      "NET_RAW", "SETGID",
    "SETUID", "SETFCAP",      "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL",    "AUDIT_WRITE",
};

static const char *const all_caps[] = {
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
};

/* Index in all_caps, -2 for ALL, -1 when unknown. */
static int cap_index(const char *name)
{
    if (strncasecmp(name, "CAP_", 4) == 0)
        name += 4;
    if (strcasecmp(name, "ALL") == 0)
        return -2;
    for (size_t i = 0; i < ARRAY_LEN(all_caps); i++) {
        if (strcasecmp(name, all_caps[i]) == 0)
            return (int)i;
    }
    return -1;
}

static int change_caps(bool *set, char **names, size_t n, bool value, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int at = cap_index(names[i]);
        if (at == -1)
            return err_set(err, ERR_INVALID, "unknown capability \"%.64s\"", names[i]);
        for (size_t j = 0; j < ARRAY_LEN(all_caps); j++) {
            if (at == -2 || (size_t)at == j)
                set[j] = value;
        }
    }
    return 0;
}

static json_t *cap_list(const bool *set)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_LEN(all_caps); i++) {
        if (set[i])
            (void)json_array_append_new(list, json_sprintf("CAP_%s", all_caps[i]));
    }
    return list;
}

static json_t *make_caps(const Security *s, struct err *err)
{
    bool set[ARRAY_LEN(all_caps)] = {false};
    bool ambient[ARRAY_LEN(all_caps)] = {false};
    for (size_t i = 0; i < ARRAY_LEN(default_caps); i++)
        set[cap_index(default_caps[i])] = true;
    const Runtime__V1__Capability *c = s != NULL ? s->capabilities : NULL;
    if (c != NULL) {
        /* ALL first, so that `drop ALL, add X` and `add ALL, drop X` mean what they say */
        char *all = NULL;
        for (size_t i = 0; i < c->n_add_capabilities; i++) {
            if (cap_index(c->add_capabilities[i]) == -2)
                all = c->add_capabilities[i];
        }
        if (all != NULL && change_caps(set, &all, 1, true, err) < 0)
            return NULL;
        for (size_t i = 0; i < c->n_drop_capabilities; i++) {
            if (cap_index(c->drop_capabilities[i]) == -2)
                (void)memset(set, 0, sizeof(set));
        }
        for (size_t i = 0; i < c->n_add_capabilities; i++) {
            if (cap_index(c->add_capabilities[i]) != -2 &&
                change_caps(set, &c->add_capabilities[i], 1, true, err) < 0)
                return NULL;
        }
        for (size_t i = 0; i < c->n_drop_capabilities; i++) {
            if (cap_index(c->drop_capabilities[i]) != -2 &&
                change_caps(set, &c->drop_capabilities[i], 1, false, err) < 0)
                return NULL;
        }
        if (change_caps(ambient, c->add_ambient_capabilities, c->n_add_ambient_capabilities, true,
                        err) < 0 ||
            change_caps(set, c->add_ambient_capabilities, c->n_add_ambient_capabilities, true,
                        err) < 0)
            return NULL;
    }
    json_t *inheritable = cap_list(ambient);
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "bounding", cap_list(set), "effective",
                     cap_list(set), "permitted", cap_list(set), "inheritable", inheritable,
                     "ambient", cap_list(ambient));
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
    json_auto_t *caps = make_caps(s, err);
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

/* --- mounts --- */

static void add_mount(json_t *mounts, const char *dst, const char *type, const char *src,
                      const char *const *options)
{
    json_t *opts = json_array();
    for (; *options != NULL; options++)
        (void)json_array_append_new(opts, json_string(*options));
    (void)json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:o}", "destination", dst,
                                                  "type", type, "source", src, "options", opts));
}

static json_t *make_mounts(const Container *c)
{
#define OPTIONS(...) ((const char *const[]){__VA_ARGS__, NULL})
    const Security *s = security_of(c);
    bool readonly = s != NULL && s->readonly_rootfs;
    const char *rw = readonly ? "ro" : "rw";
    json_t *m = json_array();
    add_mount(m, "/proc", "proc", "proc", OPTIONS("nosuid", "noexec", "nodev"));
    add_mount(m, "/dev", "tmpfs", "tmpfs",
              OPTIONS("nosuid", "strictatime", "mode=755", "size=65536k"));
    add_mount(m, "/dev/pts", "devpts", "devpts",
              OPTIONS("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"));
    add_mount(m, "/dev/mqueue", "mqueue", "mqueue", OPTIONS("nosuid", "noexec", "nodev"));
    add_mount(m, "/sys", "sysfs", "sysfs", OPTIONS("nosuid", "noexec", "nodev", "ro"));
    add_mount(m, "/sys/fs/cgroup", "cgroup", "cgroup",
              OPTIONS("nosuid", "noexec", "nodev", "relatime", "ro"));
    add_mount(m, "/dev/shm", "bind", "aspis:shm", OPTIONS("rbind", "nosuid", "nodev", "noexec"));
    add_mount(m, "/etc/resolv.conf", "bind", "aspis:resolv.conf", OPTIONS("bind", rw));
    add_mount(m, "/etc/hosts", "bind", "aspis:hosts", OPTIONS("bind", rw));
    add_mount(m, "/etc/hostname", "bind", "aspis:hostname", OPTIONS("bind", rw));
#undef OPTIONS
    return m;
}

/* --- linux --- */

static json_t *make_resources(const Resources *r)
{
    /* nothing but the usual character devices, which the OCI runtime allows by itself: the guest's
     * disks and link ports are not the container's */
    json_t *res = json_pack("{s:[{s:b, s:s}]}", "devices", "allow", 0, "access", "rwm");
    if (r == NULL)
        return res;
    json_t *memory = json_object();
    if (r->memory_limit_in_bytes > 0)
        (void)json_object_set_new(memory, "limit", json_integer(r->memory_limit_in_bytes));
    if (r->memory_swap_limit_in_bytes > 0)
        (void)json_object_set_new(memory, "swap", json_integer(r->memory_swap_limit_in_bytes));
    json_t *cpu = json_object();
    if (r->cpu_shares > 0)
        (void)json_object_set_new(cpu, "shares", json_integer(r->cpu_shares));
    if (r->cpu_quota != 0)
        (void)json_object_set_new(cpu, "quota", json_integer(r->cpu_quota));
    if (r->cpu_period > 0)
        (void)json_object_set_new(cpu, "period", json_integer(r->cpu_period));
    (void)json_object_set_new(res, "memory", memory);
    (void)json_object_set_new(res, "cpu", cpu);
    if (r->n_unified > 0) {
        json_t *unified = json_object();
        for (size_t i = 0; i < r->n_unified; i++)
            (void)json_object_set_new(unified, r->unified[i]->key,
                                      json_string(r->unified[i]->value));
        (void)json_object_set_new(res, "unified", unified);
    }
    return res;
}

static json_t *path_list(char **paths, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        (void)json_array_append_new(list, json_string(paths[i]));
    return list;
}

/* What kubelet sends for procMount Default; crictl sends nothing and means the same. */
static const char *const default_masked[] = {
    "/proc/asound",      "/proc/acpi",          "/proc/interrupts", "/proc/kcore",
    "/proc/keys",        "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi",          "/sys/firmware",    "/sys/devices/virtual/powercap",
};
static const char *const default_readonly[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
};

static json_t *const_list(const char *const *paths, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        (void)json_array_append_new(list, json_string(paths[i]));
    return list;
}

static json_t *make_linux(const Container *c)
{
    const Security *s = security_of(c);
    json_t *masked = s != NULL ? path_list(s->masked_paths, s->n_masked_paths)
                               : const_list(default_masked, ARRAY_LEN(default_masked));
    json_t *readonly = s != NULL ? path_list(s->readonly_paths, s->n_readonly_paths)
                                 : const_list(default_readonly, ARRAY_LEN(default_readonly));
    /* network, ipc and uts are the VM's own, which are the pod's */
    return json_pack("{s:[{s:s}, {s:s}, {s:s}], s:o, s:o, s:o}", "namespaces", "type", "pid",
                     "type", "mount", "type", "cgroup", "resources",
                     make_resources(resources_of(c)), "maskedPaths", masked, "readonlyPaths",
                     readonly);
}

char *spec_make(const Container *c, const Pod *pod, const struct image_config *image,
                struct err *err)
{
    json_auto_t *process = make_process(c, pod, image, err);
    if (process == NULL)
        return NULL;
    const Security *s = security_of(c);
    json_auto_t *spec =
        json_pack("{s:s, s:O, s:{s:s, s:b}, s:o, s:o}", "ociVersion", "1.0.2", "process", process,
                  "root", "path", "rootfs", "readonly", s != NULL && s->readonly_rootfs, "mounts",
                  make_mounts(c), "linux", make_linux(c));
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
