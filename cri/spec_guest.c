/*
 * What the agent gets beside the OCI spec, since only the guest can make a spec of it: devices of
 * its kernel, another container's process namespace, user namespaces; and the seccomp filter.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/cdi.h"
#include "cri/spec_cdi.h"
#include "cri/spec_internal.h"
#include "cri/userns.h"

typedef Aspis__Agent__V1__CreateContainerRequest Request;

/* Devices that a guest's kernel offers and that are nobody's but the pod's. All else below the
 * host's /dev is the host's. */
static const char *const of_the_guest[] = {
    "/dev/full",   "/dev/fuse", "/dev/kvm",     "/dev/net/tun", "/dev/null",
    "/dev/random", "/dev/tty",  "/dev/urandom", "/dev/zero",
};

bool spec_is_disk(const char *host_path)
{
    struct stat st;
    return stat(host_path, &st) == 0 && S_ISBLK(st.st_mode);
}

void spec_disk_serial(const char *container_id, size_t index, char out[21])
{
    (void)snprintf(out, 21, MACHINE_RAW_DISK "%zu-%.12s", index % 1000, container_id);
}

static int check_device(const char *path, const char *permissions, enum backend backend, bool disk,
                        struct err *err)
{
    bool known = disk || backend == BACKEND_HOST; /* the agent looks */
    for (size_t i = 0; !known && i < ARRAY_LEN(of_the_guest); i++)
        known = strcmp(path, of_the_guest[i]) == 0;
    if (!known)
        return err_set(
            err, ERR_PRECONDITION,
            "device %.200s: a VM pod has no devices of the host but disks; others take the handler "
            "aspis-host; its own kernel offers full, fuse, kvm, net/tun, null, random, "
            "tty, urandom, zero",
            path);
    if (strlen(permissions) > 3 || strspn(permissions, "rwm") != strlen(permissions))
        return err_set(err, ERR_INVALID, "device %.200s: permissions \"%.16s\" are not of r, w, m",
                       path, permissions);
    return 0;
}

int spec_cdi_env(const Container *c, struct strv *env, struct err *err)
{
    auto_cdi_edits struct cdi_edits edits = {0};
    if (spec_cdi_resolve(c, &edits, err) < 0)
        return -1;
    for (size_t i = 0; i < edits.env.n; i++)
        strv_add(env, edits.env.v[i]);
    return 0;
}

int spec_check_devices(const Container *c, enum backend backend, struct err *err)
{
    auto_cdi_edits struct cdi_edits edits = {0};
    for (size_t i = 0; i < c->n_devices; i++) {
        if (check_device(c->devices[i]->host_path, c->devices[i]->permissions, backend,
                         spec_is_disk(c->devices[i]->host_path), err) < 0)
            return -1;
        if (!str_empty(c->devices[i]->container_path) && c->devices[i]->container_path[0] != '/')
            return err_set(err, ERR_INVALID, "device %.200s: the path in the container is relative",
                           c->devices[i]->host_path);
    }
    if (spec_cdi_resolve(c, &edits, err) < 0)
        return -1;
    for (size_t i = 0; i < edits.n_nodes; i++) {
        if (check_device(edits.nodes[i].host_path, edits.nodes[i].permissions, backend, false,
                         err) < 0)
            return err_wrap(err, "CDI");
    }
    return 0;
}

/* --- the request --- */

/* Nodes that the OCI runtime makes by itself at the same place are left to it. */
static int put_device(Request *req, const char *path, const char *as, const char *permissions,
                      struct arena *a, struct err *err)
{
    if (str_empty(as))
        as = path;
    static const char *const usual[] = {"/dev/full", "/dev/null",    "/dev/random",
                                        "/dev/tty",  "/dev/urandom", "/dev/zero"};
    for (size_t i = 0; strcmp(path, as) == 0 && i < ARRAY_LEN(usual); i++) {
        if (strcmp(path, usual[i]) == 0)
            return 0;
    }
    Aspis__Agent__V1__Device *d = arena_alloc(a, sizeof(*d));
    if (d == NULL)
        return err_sys(err, ENOMEM, "devices");
    aspis__agent__v1__device__init(d);
    d->path = arena_strdup(a, path);
    d->container_path = arena_strdup(a, as);
    d->permissions = arena_strdup(a, str_empty(permissions) ? "rwm" : permissions);
    req->devices[req->n_devices++] = d;
    return arena_exhausted(a) ? err_sys(err, ENOMEM, "devices") : 0;
}

/* A block device of the host, which the VM has as a disk of this serial. */
static int put_disk(Request *req, const Runtime__V1__Device *d, size_t index, struct arena *a,
                    struct err *err)
{
    char serial[21];
    spec_disk_serial(req->container_id, index, serial);
    req->raw_disks[req->n_raw_disks++] = arena_strdup(a, serial);
    const char *path = arena_printf(a, "aspis:disk:%s", serial);
    if (path == NULL)
        return err_sys(err, ENOMEM, "devices");
    return put_device(req, path, str_empty(d->container_path) ? d->host_path : d->container_path,
                      d->permissions, a, err);
}

static int put_devices(const Container *c, enum backend backend, Request *req, struct arena *a,
                       struct err *err)
{
    auto_cdi_edits struct cdi_edits edits = {0};
    const Security *s = security_of(c);
    req->all_devices = s != NULL && s->privileged;
    if (!req->all_devices && spec_cdi_resolve(c, &edits, err) < 0)
        return -1;
    req->devices = arena_alloc(a, (c->n_devices + edits.n_nodes + 1) * sizeof(void *));
    req->raw_disks = arena_alloc(a, (c->n_devices + 1) * sizeof(void *));
    if (req->devices == NULL || req->raw_disks == NULL)
        return err_sys(err, ENOMEM, "devices");
    for (size_t i = 0; i < c->n_devices; i++) {
        const Runtime__V1__Device *d = c->devices[i];
        int rc = 0;
        if (backend == BACKEND_VM && spec_is_disk(d->host_path))
            rc = put_disk(req, d, i, a, err);
        else if (!req->all_devices || (backend == BACKEND_HOST && !str_empty(d->container_path) &&
                                       strcmp(d->host_path, d->container_path) != 0))
            rc = put_device(req, d->host_path, d->container_path, d->permissions, a, err);
        if (rc < 0)
            return -1;
    }
    for (size_t i = 0; i < edits.n_nodes; i++) {
        const struct cdi_node *n = &edits.nodes[i];
        if (put_device(req, n->host_path, n->path, n->permissions, a, err) < 0)
            return -1;
    }
    return 0;
}

static Aspis__Agent__V1__IdMapping **copy_map(Runtime__V1__IDMapping *const *map, size_t n,
                                              struct arena *a)
{
    Aspis__Agent__V1__IdMapping **out = arena_alloc(a, (n + 1) * sizeof(void *));
    for (size_t i = 0; out != NULL && i < n; i++) {
        out[i] = arena_alloc(a, sizeof(*out[i]));
        if (out[i] == NULL)
            return NULL;
        aspis__agent__v1__id_mapping__init(out[i]);
        out[i]->container_id = map[i]->container_id;
        out[i]->host_id = map[i]->host_id;
        out[i]->length = map[i]->length;
    }
    return out;
}

int spec_guest(const Container *c, enum backend backend, const struct seccomp_filter *filter,
               Request *req, struct arena *a, struct err *err)
{
    const Runtime__V1__NamespaceOption *n = namespaces_of(c);
    req->seccomp_filter = (ProtobufCBinaryData){filter->len, filter->program};
    if (n != NULL && n->pid == RUNTIME__V1__NAMESPACE_MODE__TARGET)
        req->pid_target = arena_strdup(a, n->target_id);
    if (userns_wanted(n)) {
        const Runtime__V1__UserNamespace *u = n->userns_options;
        req->uids = copy_map(u->uids, u->n_uids, a);
        req->gids = copy_map(u->gids, u->n_gids, a);
        req->n_uids = u->n_uids;
        req->n_gids = u->n_gids;
    }
    if (arena_exhausted(a))
        return err_sys(err, ENOMEM, "create request");
    return put_devices(c, backend, req, a, err);
}

static bool has_huge(const Request *req)
{
    for (size_t i = 0; i < req->n_volumes; i++) {
        if (req->volumes[i]->huge != NULL)
            return true;
    }
    return false;
}

int spec_guest_understood(const Request *req, uint32_t knows, struct err *err)
{
    const struct {
        bool used;
        uint32_t field;
        const char *what;
    } used[] = {
        {req->seccomp_filter.len > 0, 100, "filter system calls"},
        {!str_empty(req->pid_target), 101, "join another container's process namespace"},
        {req->n_devices > 0 || req->all_devices, 103, "give devices"},
        {req->n_uids > 0, 105, "make user namespaces"},
        {has_huge(req), 940, "mount huge pages"},
    };
    for (size_t i = 0; i < ARRAY_LEN(used); i++) {
        if (used[i].used && knows < used[i].field)
            return err_set(err, ERR_PRECONDITION,
                           "the pod was started by an older release, whose agent cannot %s",
                           used[i].what);
    }
    return 0;
}
