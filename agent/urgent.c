#include "agent/urgent.h"

#include <stdlib.h>

void urgent_begin(void)
{
    (void)setpriority(PRIO_PROCESS, 0, URGENT);
}

int __real_clearenv(void);
int __wrap_clearenv(void);
int __wrap_clearenv(void)
{
    urgent_end();
    return __real_clearenv();
}
