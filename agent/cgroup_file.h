/*
 * cgroup_file - a control group's small files as text and numbers.
 *
 * Threads: any; no state.
 */
#ifndef ASPIS_AGENT_CGROUP_FILE_H
#define ASPIS_AGENT_CGROUP_FILE_H

#include <stdint.h>

/* At most 64 KiB; the caller's. NULL: not there, or it cannot be read. */
char *cgroup_file_text(const char *dir, const char *name);
/* A file of one number; "max" is 0, as is a file that is not there. */
uint64_t cgroup_file_number(const char *dir, const char *name);

#endif
