#include "cri/spec_internal.h"

#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/caps.h"
#include "cri/seccomp.h"
#include "cri/sysctls.h"
#include "cri/userns.h"

/* --- fields that older clients use --- */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static const char *old_seccomp(const Security *s)
{
    return s->seccomp_profile_path;
}

static const char *old_sandbox_seccomp(const Runtime__V1__LinuxSandboxSecurityContext *s)
{
    return s->seccomp_profile_path;
}

static const char *old_apparmor(const Security *s)
{
    return s->apparmor_profile;
}
#pragma GCC diagnostic pop

/* --- what is refused --- */

static int check_namespaces(const Runtime__V1__NamespaceOption *n, struct err *err)
{
    if (n == NULL)
        return 0;
    if (n->pid == RUNTIME__V1__NAMESPACE_MODE__TARGET && str_empty(n->target_id))
        return err_set(err, ERR_INVALID, "pid namespace TARGET without a target_id");
    return userns_check_options(n, err);
}

/* Labels mean something only where SELinux is on; elsewhere they are ignored, as by all runtimes. A
 * guest has none. */
static int check_selinux(const Runtime__V1__SELinuxOption *o, struct err *err)
{
    if (o == NULL ||
        (str_empty(o->user) && str_empty(o->role) && str_empty(o->type) && str_empty(o->level)))
        return 0;
    if (access("/sys/fs/selinux/enforce", F_OK) != 0)
        return 0;
    return err_set(err, ERR_PRECONDITION,
                   "SELinux label %.64s:%.64s:%.64s:%.64s is asked for; the guest's kernel runs "
                   "without SELinux",
                   o->user, o->role, o->type, o->level);
}

/* It is for the pause process, which a VM pod does not have. It is read nevertheless: a profile
 * that is missing or wrong fails here as with other runtimes. */
static int check_sandbox_seccomp(const Runtime__V1__LinuxSandboxSecurityContext *s, struct err *err)
{
    auto_seccomp_filter struct seccomp_filter f = {0};
    struct seccomp_facts facts = {0};
    seccomp_set_kernel(&facts, NULL);
    return seccomp_filter_load(s->seccomp, old_sandbox_seccomp(s), &facts, &f, err);
}

int spec_check_sandbox(const Pod *pod, struct err *err)
{
    const Runtime__V1__LinuxSandboxSecurityContext *s =
        pod->linux != NULL ? pod->linux->security_context : NULL;
    if (sysctls_check(pod->linux, err) < 0)
        return -1;
    if (s == NULL)
        return 0;
    if (check_selinux(s->selinux_options, err) < 0 || check_sandbox_seccomp(s, err) < 0)
        return -1;
    return check_namespaces(s->namespace_options, err);
}

/* AppArmor: containerd, too, refuses every profile where the kernel has no AppArmor, so that nobody
 * believes to be confined who is not. */
static int check_apparmor(const Security *s, struct err *err)
{
    const Runtime__V1__SecurityProfile *p = s->apparmor;
    static const char why[] = "is asked for; the guest's kernel runs without AppArmor";
    if (p == NULL) {
        const char *old = old_apparmor(s);
        if (str_empty(old) || strcmp(old, "unconfined") == 0)
            return 0;
        return err_set(err, ERR_PRECONDITION, "AppArmor profile \"%.200s\" %s", old, why);
    }
    if (p->profile_type == RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined)
        return 0;
    if (p->profile_type == RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Localhost)
        return err_set(err, ERR_PRECONDITION, "AppArmor profile \"%.200s\" %s", p->localhost_ref,
                       why);
    return err_set(err, ERR_PRECONDITION, "AppArmor profile RuntimeDefault %s", why);
}

static const Runtime__V1__NamespaceOption *namespaces_of_pod(const Pod *pod)
{
    return pod->linux != NULL && pod->linux->security_context != NULL
               ? pod->linux->security_context->namespace_options
               : NULL;
}

int spec_check_security(const Container *c, const Pod *pod, struct err *err)
{
    const Security *s = security_of(c);
    if (check_namespaces(namespaces_of(c), err) < 0 ||
        userns_check_same(namespaces_of_pod(pod), namespaces_of(c), err) < 0)
        return -1;
    if (s == NULL)
        return 0;
    if (check_apparmor(s, err) < 0 || check_selinux(s->selinux_options, err) < 0)
        return -1;
    if (s->run_as_group != NULL && s->run_as_user == NULL && str_empty(s->run_as_username))
        return err_set(err, ERR_INVALID,
                       "run_as_group is set without run_as_user or run_as_username");
    return 0;
}

/* --- capabilities --- */

/* containerd's and Docker's default set. */
static const char *const default_caps[] = {
    "CHOWN",  "DAC_OVERRIDE", "FSETID",  "FOWNER",           "MKNOD",      "NET_RAW", "SETGID",
    "SETUID", "SETFCAP",      "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL",    "AUDIT_WRITE",
};

static int change_caps(uint64_t *set, char **names, size_t n, bool value, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int at = caps_index(names[i]);
        if (at == -1)
            return err_set(err, ERR_INVALID, "unknown capability \"%.64s\"", names[i]);
        uint64_t mask = at == CAPS_ALL_NAME ? caps_everything() : UINT64_C(1) << at;
        *set = value ? *set | mask : *set & ~mask;
    }
    return 0;
}

/* The same with only the entries that are ALL, or only the others. */
static int change_some_caps(uint64_t *set, char **names, size_t n, bool all, bool value,
                            struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        if ((caps_index(names[i]) == CAPS_ALL_NAME) == all &&
            change_caps(set, &names[i], 1, value, err) < 0)
            return -1;
    }
    return 0;
}

static int decide_caps(const Security *s, uint64_t *set, uint64_t *ambient, struct err *err)
{
    *set = *ambient = 0;
    for (size_t i = 0; i < ARRAY_LEN(default_caps); i++)
        *set |= UINT64_C(1) << caps_index(default_caps[i]);
    const Runtime__V1__Capability *c = s != NULL ? s->capabilities : NULL;
    if (c == NULL)
        return 0;
    /* ALL first, so that `drop ALL, add X` and `add ALL, drop X` mean what they say */
    if (change_some_caps(set, c->add_capabilities, c->n_add_capabilities, true, true, err) < 0 ||
        change_some_caps(set, c->drop_capabilities, c->n_drop_capabilities, true, false, err) < 0 ||
        change_some_caps(set, c->add_capabilities, c->n_add_capabilities, false, true, err) < 0 ||
        change_some_caps(set, c->drop_capabilities, c->n_drop_capabilities, false, false, err) < 0)
        return -1;
    if (change_caps(ambient, c->add_ambient_capabilities, c->n_add_ambient_capabilities, true,
                    err) < 0)
        return -1;
    *set |= *ambient;
    return 0;
}

static json_t *cap_list(uint64_t set)
{
    json_t *list = json_array();
    for (int i = 0; i < CAPS_COUNT; i++) {
        if ((set >> i & 1) != 0)
            (void)json_array_append_new(list, json_sprintf("CAP_%s", caps_name(i)));
    }
    return list;
}

json_t *spec_capabilities(const Security *s, struct err *err)
{
    uint64_t set;
    uint64_t ambient;
    if (decide_caps(s, &set, &ambient, err) < 0)
        return NULL;
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "bounding", cap_list(set), "effective",
                     cap_list(set), "permitted", cap_list(set), "inheritable", cap_list(ambient),
                     "ambient", cap_list(ambient));
}

json_t *spec_all_capabilities(void)
{
    uint64_t all = caps_everything();
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "bounding", cap_list(all), "effective",
                     cap_list(all), "permitted", cap_list(all), "inheritable", cap_list(0),
                     "ambient", cap_list(0));
}

/* --- seccomp --- */

int spec_seccomp(const Container *c, struct seccomp_filter *f, struct err *err)
{
    const Security *s = security_of(c);
    struct seccomp_facts facts = {0};
    uint64_t ambient;
    *f = (struct seccomp_filter){0};
    if (s == NULL || s->privileged)
        return 0;
    if (decide_caps(s, &facts.caps, &ambient, err) < 0)
        return -1;
    seccomp_set_kernel(&facts, NULL);
    return seccomp_filter_load(s->seccomp, old_seccomp(s), &facts, f, err);
}

int spec_add_seccomp_flags(json_t *spec, const Container *c, struct err *err)
{
    auto_seccomp_filter struct seccomp_filter f = {0};
    if (spec_seccomp(c, &f, err) < 0)
        return -1;
    if (f.flags.n == 0)
        return 0;
    json_t *flags = json_array();
    for (size_t i = 0; i < f.flags.n; i++)
        (void)json_array_append_new(flags, json_string(f.flags.v[i]));
    (void)json_object_set_new(
        json_object_get(spec, "linux"), "seccomp",
        json_pack("{s:s, s:o}", "defaultAction", "SCMP_ACT_ALLOW", "flags", flags));
    return 0;
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
