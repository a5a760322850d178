#include "cri/userns.h"

#include <stdint.h>

typedef Runtime__V1__NamespaceOption Options;
typedef Runtime__V1__UserNamespace Userns;

bool userns_wanted(const Options *n)
{
    return n != NULL && n->userns_options != NULL &&
           n->userns_options->mode == RUNTIME__V1__NAMESPACE_MODE__POD;
}

static int check_map(const char *what, Runtime__V1__IDMapping *const *map, size_t n,
                     struct err *err)
{
    if (n != 1)
        return err_set(err, ERR_INVALID, "user namespace: %zu %s mappings, one is possible", n,
                       what);
    if (map[0]->container_id != 0)
        return err_set(err, ERR_INVALID, "user namespace: %s 0 is not mapped", what);
    if (map[0]->length == 0 || (uint64_t)map[0]->host_id + map[0]->length > UINT32_MAX)
        return err_set(err, ERR_INVALID, "user namespace: the %s mapping is out of range", what);
    return 0;
}

int userns_check_options(const Options *n, struct err *err)
{
    const Userns *u = n != NULL ? n->userns_options : NULL;
    if (u == NULL)
        return 0;
    switch (u->mode) {
    case RUNTIME__V1__NAMESPACE_MODE__NODE:
        return u->n_uids == 0 && u->n_gids == 0
                   ? 0
                   : err_set(err, ERR_INVALID, "user namespace NODE with mappings");
    case RUNTIME__V1__NAMESPACE_MODE__POD:
        return check_map("uid", u->uids, u->n_uids, err) < 0
                   ? -1
                   : check_map("gid", u->gids, u->n_gids, err);
    case RUNTIME__V1__NAMESPACE_MODE__CONTAINER:
    case RUNTIME__V1__NAMESPACE_MODE__TARGET:
    case _RUNTIME__V1__NAMESPACE_MODE_IS_INT_SIZE:
    default:
        return err_set(err, ERR_INVALID, "user namespace mode %d: only POD and NODE are possible",
                       (int)u->mode);
    }
}

static bool same_map(const Runtime__V1__IDMapping *a, const Runtime__V1__IDMapping *b)
{
    return a->container_id == b->container_id && a->host_id == b->host_id && a->length == b->length;
}

int userns_check_same(const Options *pod, const Options *container, struct err *err)
{
    bool same = userns_wanted(pod) == userns_wanted(container);
    if (same && userns_wanted(pod))
        same = same_map(pod->userns_options->uids[0], container->userns_options->uids[0]) &&
               same_map(pod->userns_options->gids[0], container->userns_options->gids[0]);
    return same ? 0
                : err_set(err, ERR_INVALID,
                          "the container's user namespace is another one than its pod's");
}
