/* A restored process goes on as it is: what its configuration said when it was made must be said
 * again, or nothing. What the runtime does for it from outside may change: names, labels, log,
 * network, limits of the pod. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cri/checkpoint.h"
#include "cri/spec.h"

static bool same_message(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    if (a == NULL || b == NULL)
        return a == b;
    size_t n = protobuf_c_message_get_packed_size(a);
    if (protobuf_c_message_get_packed_size(b) != n)
        return false;
    auto_free uint8_t *x = xcalloc(1, n + 1);
    auto_free uint8_t *y = xcalloc(1, n + 1);
    (void)protobuf_c_message_pack(a, x);
    (void)protobuf_c_message_pack(b, y);
    return memcmp(x, y, n) == 0;
}

static bool same_strings(char *const *a, size_t n_a, char *const *b, size_t n_b)
{
    bool same = n_a == n_b;
    for (size_t i = 0; same && i < n_a; i++)
        same = strcmp(a[i], b[i]) == 0;
    return same;
}

static bool same_devices(const Runtime__V1__ContainerConfig *a,
                         const Runtime__V1__ContainerConfig *b)
{
    bool same = a->n_devices == b->n_devices && a->n_cdi_devices == b->n_cdi_devices;
    for (size_t i = 0; same && i < a->n_devices; i++)
        same = same_message(&a->devices[i]->base, &b->devices[i]->base);
    for (size_t i = 0; same && i < a->n_cdi_devices; i++)
        same = same_message(&a->cdi_devices[i]->base, &b->cdi_devices[i]->base);
    return same;
}

static bool same_ids(Runtime__V1__IDMapping *const *a, size_t n_a, Runtime__V1__IDMapping *const *b,
                     size_t n_b)
{
    bool same = n_a == n_b;
    for (size_t i = 0; same && i < n_a; i++)
        same = same_message(&a[i]->base, &b[i]->base);
    return same;
}

/* What the guest has mounted there. Only where it comes from on the host may be another place. */
static bool same_mount(const Runtime__V1__Mount *x, const Runtime__V1__Mount *y)
{
    bool image = spec_is_image_volume(x);
    return image == spec_is_image_volume(y) && strcmp(x->container_path, y->container_path) == 0 &&
           (!image || strcmp(x->image->image, y->image->image) == 0) &&
           strcmp(x->image_sub_path, y->image_sub_path) == 0 && x->readonly == y->readonly &&
           x->recursive_read_only == y->recursive_read_only && x->propagation == y->propagation &&
           same_strings(x->mount_options, x->n_mount_options, y->mount_options,
                        y->n_mount_options) &&
           same_ids(x->uidmappings, x->n_uidmappings, y->uidmappings, y->n_uidmappings) &&
           same_ids(x->gidmappings, x->n_gidmappings, y->gidmappings, y->n_gidmappings);
}

/* In any order; no two are in one place (checkpoint_check_places()). */
static bool same_mounts(const Runtime__V1__ContainerConfig *a,
                        const Runtime__V1__ContainerConfig *b)
{
    bool same = a->n_mounts == b->n_mounts;
    for (size_t i = 0; same && i < a->n_mounts; i++) {
        bool found = false;
        for (size_t k = 0; k < b->n_mounts && !found; k++)
            found = same_mount(a->mounts[i], b->mounts[k]);
        same = found;
    }
    return same;
}

static int differs(const char *what, const char *name, const char *field, struct err *err)
{
    return err_set(err, ERR_PRECONDITION,
                   "%s %.64s: its %s cannot be another than when it was saved", what, name, field);
}

int restore_check_container(const Runtime__V1__ContainerConfig *saved,
                            const Runtime__V1__ContainerConfig *wanted, struct err *err)
{
    const char *name = saved->metadata->name;
    const char *field = NULL;
    if (!same_strings(saved->command, saved->n_command, wanted->command, wanted->n_command))
        field = "command";
    else if (!same_strings(saved->args, saved->n_args, wanted->args, wanted->n_args))
        field = "args";
    else if (strcmp(saved->working_dir, wanted->working_dir) != 0)
        field = "working_dir";
    else if (saved->stdin != wanted->stdin || saved->stdin_once != wanted->stdin_once)
        field = "stdin";
    else if (saved->tty != wanted->tty)
        field = "tty";
    else if (saved->stop_signal != wanted->stop_signal)
        field = "stop_signal";
    else if (!same_devices(saved, wanted))
        field = "devices";
    else if (!same_mounts(saved, wanted))
        field = "mounts";
    else if (!same_message(saved->linux != NULL ? &saved->linux->base : NULL,
                           wanted->linux != NULL ? &wanted->linux->base : NULL))
        field = "linux";
    return field != NULL ? differs("container", name, field, err) : 0;
}

int restore_check_pod(const Runtime__V1__PodSandboxConfig *saved,
                      const Runtime__V1__PodSandboxConfig *wanted, struct err *err)
{
    const Runtime__V1__LinuxSandboxSecurityContext *a =
        saved->linux != NULL ? saved->linux->security_context : NULL;
    const Runtime__V1__LinuxSandboxSecurityContext *b =
        wanted->linux != NULL ? wanted->linux->security_context : NULL;
    return same_message(a != NULL ? &a->base : NULL, b != NULL ? &b->base : NULL)
               ? 0
               : differs("pod", wanted->metadata->name, "security context", err);
}
