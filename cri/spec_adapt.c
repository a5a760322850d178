/*
 * What the backend and a privileged container change in a spec: namespaces, mounts, devices,
 * capabilities, masks.
 */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/backend.h"
#include "cri/huge_pages.h"
#include "cri/spec_host.h"
#include "cri/spec_internal.h"
#include "cri/userns.h"

static json_t *member(json_t *object, const char *key, json_t *(*make)(void))
{
    if (json_object_get(object, key) == NULL)
        (void)json_object_set_new(object, key, make());
    return json_object_get(object, key);
}

static json_t *mount_at(const json_t *spec, const char *destination)
{
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(spec, "mounts"), i, m)
    {
        const char *at = json_string_value(json_object_get(m, "destination"));
        if (at != NULL && strcmp(at, destination) == 0)
            return m;
    }
    return NULL;
}

static void replace_option(json_t *mount, const char *from, const char *to)
{
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(mount, "options"), i, o)
    {
        if (strcmp(json_string_value(o), from) == 0)
            (void)json_array_set_new(json_object_get(mount, "options"), i, json_string(to));
    }
}

/* --- privileged --- */

/* As kubelet's users know it: every capability, nothing hidden, nothing filtered, sysfs and cgroups
 * writable; and every device, whose nodes the agent adds. */
static void make_privileged(json_t *spec)
{
    json_t *process = json_object_get(spec, "process");
    json_t *lin = json_object_get(spec, "linux");
    (void)json_object_set_new(process, "capabilities", spec_all_capabilities());
    (void)json_object_set_new(lin, "maskedPaths", json_array());
    (void)json_object_set_new(lin, "readonlyPaths", json_array());
    (void)json_object_del(lin, "seccomp");
    (void)json_object_del(process, "apparmorProfile");
    replace_option(mount_at(spec, "/sys"), "ro", "rw");
    replace_option(mount_at(spec, "/sys/fs/cgroup"), "ro", "rw");
    json_t *resources = member(lin, "resources", json_object);
    (void)json_object_set_new(resources, "devices",
                              json_pack("[{s:b, s:s}]", "allow", 1, "access", "rwm"));
}

/* --- the host --- */

/* Network, ipc and uts are the agent's, which has the pod's or the host's; a pid namespace that the
 * pod shares is filled in by the agent. In a user namespace only a cgroup namespace of its own lets
 * a container mount its groups. */
static void set_namespaces(json_t *lin, const Container *c, bool privileged)
{
    const Runtime__V1__NamespaceOption *n = namespaces_of(c);
    json_t *list = json_object_get(lin, "namespaces");
    for (size_t i = json_array_size(list); i > 0; i--) {
        const char *type = json_string_value(json_object_get(json_array_get(list, i - 1), "type"));
        bool drop = (strcmp(type, "pid") == 0 && n != NULL &&
                     n->pid == RUNTIME__V1__NAMESPACE_MODE__NODE) ||
                    (strcmp(type, "cgroup") == 0 && privileged && !userns_wanted(n));
        if (drop)
            (void)json_array_remove(list, i - 1);
    }
}

/* The daemon has attached each volume with its flags and propagation. */
static void set_volumes(json_t *spec, const struct machine_volume *volumes, size_t n)
{
    const char *root = NULL;
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(spec, "mounts"), i, m)
    {
        const char *source = json_string_value(json_object_get(m, "source"));
        uint64_t id;
        if (source == NULL || !str_starts(source, "aspis:volume:") ||
            str_to_u64(source + strlen("aspis:volume:"), &id) < 0)
            continue;
        for (size_t k = 0; k < n; k++) {
            if (volumes[k].id != id)
                continue;
            /* of the mount itself; those below it have flags of their own */
            if (volumes[k].readonly)
                replace_option(m, "rw", "ro");
            if (volumes[k].shared) {
                replace_option(m, "rprivate", "rshared");
                root = "rshared";
            } else if (volumes[k].slave) {
                replace_option(m, "rprivate", "rslave");
                root = root != NULL ? root : "rslave";
            }
        }
    }
    /* or the container's copies of the volumes would be cut off before they are mounted */
    if (root != NULL)
        (void)json_object_set_new(json_object_get(spec, "linux"), "rootfsPropagation",
                                  json_string(root));
}

/* A client that names no paths means the usual ones: here /proc and /sys are the host's. */
static void set_paths(json_t *lin)
{
    if (json_array_size(json_object_get(lin, "maskedPaths")) == 0)
        (void)json_object_set_new(lin, "maskedPaths", spec_masked_paths(NULL));
    if (json_array_size(json_object_get(lin, "readonlyPaths")) == 0)
        (void)json_object_set_new(lin, "readonlyPaths", spec_readonly_paths(NULL));
}

/* In a VM it is the VM that is pinned. */
static void set_cpuset(json_t *lin, const Container *c)
{
    const Resources *r = resources_of(c);
    json_t *cpu = member(member(lin, "resources", json_object), "cpu", json_object);
    if (r != NULL && !str_empty(r->cpuset_cpus))
        (void)json_object_set_new(cpu, "cpus", json_string(r->cpuset_cpus));
    if (r != NULL && !str_empty(r->cpuset_mems))
        (void)json_object_set_new(cpu, "mems", json_string(r->cpuset_mems));
}

char *spec_adapt(const char *text, const Container *c, const Pod *pod,
                 const struct machine_volume *volumes, size_t n_volumes, enum backend backend,
                 struct err *err)
{
    const Security *s = security_of(c);
    bool privileged = s != NULL && s->privileged;
    (void)pod;
    json_auto_t *huge = huge_pages_spec(resources_of(c), backend);
    if (backend == BACKEND_VM && !privileged && huge == NULL)
        return xstrdup(text);
    json_auto_t *spec = json_loads(text, 0, NULL);
    json_t *lin = json_object_get(spec, "linux");
    if (lin == NULL) {
        (void)err_set(err, ERR_INTERNAL, "the spec cannot be read back");
        return NULL;
    }
    if (privileged)
        make_privileged(spec);
    if (huge != NULL)
        (void)json_object_set(member(lin, "resources", json_object), "hugepageLimits", huge);
    if (backend == BACKEND_HOST) {
        set_namespaces(lin, c, privileged);
        set_volumes(spec, volumes, n_volumes);
        set_cpuset(lin, c);
        if (!privileged)
            set_paths(lin);
        spec_host_clamp(json_object_get(spec, "process"));
    }
    char *out = json_dumps(spec, JSON_COMPACT);
    if (out == NULL)
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
    return out;
}
