#include "agent/clock.h"

#include <errno.h>
#include <sys/timex.h>

/* Not ADJ_NANO: it changes what adjtimex tells everybody else in the guest. */
#define US_PER_S INT64_C(1000000)

int clock_adjust(int64_t ns, struct err *err)
{
    bool step = ns > CLOCK_STEP_NS || ns < -CLOCK_STEP_NS;
    int64_t us = ns / 1000;
    struct timex slew = {.modes = ADJ_OFFSET_SINGLESHOT, .offset = step ? 0 : us};
    struct timex jump = {.modes = ADJ_SETOFFSET,
                         .time = {.tv_sec = us / US_PER_S, .tv_usec = us % US_PER_S}};

    if (jump.time.tv_usec < 0) {
        jump.time.tv_sec--;
        jump.time.tv_usec += US_PER_S;
    }
    if (adjtimex(&slew) < 0 || (step && adjtimex(&jump) < 0))
        return err_sys(err, errno, "adjust the clock by %lld ns", (long long)ns);
    return 0;
}
