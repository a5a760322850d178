/*
 * clock - keeps the guest's wall clock on the host's, as the daemon's Clock calls say.
 *
 * A little is made up for by running faster or slower, so that time never jumps for what runs here;
 * more than CLOCK_STEP_NS, which only a step of the host's clock or a VM that stood still brings
 * about, at once. Either replaces what was still to be made up for. Never on the host, whose clock
 * is not ours.
 */
#ifndef ASPIS_AGENT_CLOCK_H
#define ASPIS_AGENT_CLOCK_H

#include <stdint.h>

#include "base/err.h"

#define CLOCK_STEP_NS 10000000

/* ns: by how much the clock is behind. The kernel makes up for 0.5 ms per second. */
int clock_adjust(int64_t ns, struct err *err);

#endif
