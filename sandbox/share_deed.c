#include "sandbox/share_deed.h"

#include <stdatomic.h>
#include <stdlib.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/str.h"

struct deed_key {
    uint64_t unique, volume;
};

struct old_deed {
    struct deed_key key;
    struct state_deed *deed;
    UT_hash_handle hh;
};

static struct old_deed *find(const struct deeds *d, uint32_t volume, uint64_t unique)
{
    struct deed_key key = {.unique = unique, .volume = volume};
    struct old_deed *o = NULL;
    HASH_FIND(hh, d->old, &key, sizeof(key), o);
    return o;
}

static void forget(struct deeds *d, struct old_deed *o)
{
    HASH_DEL(d->old, o);
    free(o);
}

void deeds_open(struct deeds *d, struct share_state *state)
{
    *d = (struct deeds){.state = state};
    for (uint32_t i = 0; i < STATE_DEEDS; i++) {
        struct state_deed *deed = &state->deeds[i];
        if ((deed->phase != DEED_BEGUN && deed->phase != DEED_DONE) ||
            find(d, deed->volume, deed->unique) != NULL)
            continue;
        struct old_deed *o = xcalloc(1, sizeof(*o));
        *o = (struct old_deed){.key = {.unique = deed->unique, .volume = deed->volume},
                               .deed = deed};
        HASH_ADD(hh, d->old, key, sizeof(o->key), o); // NOLINT
    }
}

void deeds_close(struct deeds *d)
{
    struct old_deed *o;
    struct old_deed *next;
    HASH_ITER(hh, d->old, o, next) // NOLINT
    forget(d, o);
}

struct state_deed *deeds_find(const struct deeds *d, uint32_t volume, uint64_t unique)
{
    const struct old_deed *o = d->old != NULL ? find(d, volume, unique) : NULL;
    return o != NULL ? o->deed : NULL;
}

static void set_phase(struct state_deed *deed, enum deed_phase phase)
{
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint32_t *)&deed->phase = phase;
    atomic_signal_fence(memory_order_seq_cst);
}

struct state_deed *deeds_begin(struct deeds *d, const struct state_deed *what)
{
    struct state_deed *deed = share_state_next_deed(d->state);
    struct old_deed *o = d->old != NULL ? find(d, deed->volume, deed->unique) : NULL;
    if (o != NULL)
        forget(d, o);
    set_phase(deed, DEED_NONE);
    *deed = *what;
    set_phase(deed, DEED_BEGUN);
    return deed;
}

void deed_done(struct state_deed *deed, int error, uint64_t result)
{
    deed->error = error;
    deed->result = result;
    set_phase(deed, DEED_DONE);
}
