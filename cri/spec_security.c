#include "cri/spec_internal.h"

#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

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

int spec_check_security(const Container *c, struct err *err)
{
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

/* --- capabilities --- */

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

json_t *spec_capabilities(const Security *s, struct err *err)
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

/* --- paths --- */

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

json_t *spec_masked_paths(const Security *s)
{
    return s != NULL ? path_list(s->masked_paths, s->n_masked_paths)
                     : const_list(default_masked, ARRAY_LEN(default_masked));
}

json_t *spec_readonly_paths(const Security *s)
{
    return s != NULL ? path_list(s->readonly_paths, s->n_readonly_paths)
                     : const_list(default_readonly, ARRAY_LEN(default_readonly));
}
