/*
 * failpoint - named places where a test build can be made to fail, wait or die.
 *
 * FAILPOINT("sandbox.tap", err) evaluates to 0 in a normal build and compiles to nothing there
 * (meson -Dfailpoints=true turns them on). In a failpoint build the environment variable
 * ASPIS_FAILPOINTS, or a file named by ASPIS_FAILPOINTS_FILE that is re-read at each hit, holds
 * "name=error;name=delay:250;name=crash;name=1*error" (N*: only the first N hits).
 */
#ifndef ASPIS_BASE_FAILPOINT_H
#define ASPIS_BASE_FAILPOINT_H

#include "base/err.h"

#ifdef ASPIS_FAILPOINTS
int failpoint_hit(const char *name, struct err *err);
#define FAILPOINT(name, err) failpoint_hit((name), (err))
#else
#define FAILPOINT(name, err) ((void)(err), 0)
#endif

#endif
