/*
 * share_deed - changes that must happen once: each is on record from before it is made until long
 * after its answer was sent, in the state that outlives the server (share_state.h). A guest whose
 * server died says everything again that had no answer; what its successor finds on record it
 * answers as its predecessor would have, or finishes. Part of the program aspis-share only.
 *
 * Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_DEED_H
#define ASPIS_SANDBOX_SHARE_DEED_H

#include <stdbool.h>
#include <stdint.h>

#include "sandbox/share_state.h"

struct old_deed;

struct deeds {
    struct share_state *state;
    struct old_deed *old; /* of earlier servers, until their place is needed */
};

/* The state is borrowed. */
void deeds_open(struct deeds *d, struct share_state *state);
void deeds_close(struct deeds *d);
/* What an earlier server has on record of a request; NULL: nothing. */
struct state_deed *deeds_find(const struct deeds *d, uint32_t volume, uint64_t unique);
/* Puts it on record as begun. Valid until STATE_DEEDS others were. */
struct state_deed *deeds_begin(struct deeds *d, const struct state_deed *what);
void deed_done(struct state_deed *deed, int error, uint64_t result);

#endif
