/*
 * urgent - the agent's work goes before that of containers.
 *
 * Most guests have one vCPU. What somebody waits for (an exec, a start) would share it with a
 * container that computes, or that has just been started and does everything for the first time:
 * the first exec in such a container took twice as long as the next. So the agent and the children
 * of its operations have a better nice value. What becomes a container's process gives that back
 * before its seccomp filter is on, in clearenv(), which libcrun calls for each and nobody else (the
 * linker puts __wrap_clearenv() in its place; integration tests look at what processes have).
 *
 * For guests only: on the host an agent must not go before anybody.
 */
#ifndef ASPIS_AGENT_URGENT_H
#define ASPIS_AGENT_URGENT_H

#include <sys/resource.h>

/* Of its control group it takes nearly all when it wants to run. */
#define URGENT (-15)

/* For the calling process and the children that it will have. */
void urgent_begin(void);

/* In a child that nobody waits for. Inline, since not all that calls it is in one library. */
static inline void urgent_end(void)
{
    if (getpriority(PRIO_PROCESS, 0) == URGENT)
        (void)setpriority(PRIO_PROCESS, 0, 0);
}

#endif
