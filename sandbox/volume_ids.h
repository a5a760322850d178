/*
 * volume_ids - what a volume's struct volume_ids (machine.h) says of one id.
 *
 * Pure functions: any thread.
 */
#ifndef ASPIS_SANDBOX_VOLUME_IDS_H
#define ASPIS_SANDBOX_VOLUME_IDS_H

#include <stdbool.h>
#include <stdint.h>

#include "sandbox/machine.h"

#define NOBODY 65534 /* the kernel's overflow id */

static inline uint32_t volume_id_out(uint32_t id, uint32_t first, uint32_t n)
{
    return id < n ? first + id : NOBODY;
}

/* -1 as an id means "none" everywhere. False: it is nobody's here. */
static inline bool volume_id_in(uint32_t *id, uint32_t first, uint32_t n)
{
    if (*id == UINT32_MAX)
        return true;
    if (*id < first || *id - first >= n)
        return false;
    *id -= first;
    return true;
}

/* A file's owner and group as the guest sees them. */
static inline void volume_ids_out(const struct volume_ids *ids, uint32_t *uid, uint32_t *gid)
{
    if (ids->n_uids == 0)
        return;
    *uid = volume_id_out(*uid, ids->uid, ids->n_uids);
    *gid = volume_id_out(*gid, ids->gid, ids->n_gids);
}

/* The other way round; false, with nothing to be relied on, when one is nobody's. */
static inline bool volume_ids_in(const struct volume_ids *ids, uint32_t *uid, uint32_t *gid)
{
    return ids->n_uids == 0 ||
           (volume_id_in(uid, ids->uid, ids->n_uids) && volume_id_in(gid, ids->gid, ids->n_gids));
}

#endif
