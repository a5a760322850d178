/*
 * inspect - the verbose `info` of PodSandboxStatus and ContainerStatus: JSON for people, with the
 * keys that containerd's users know where there is something to say.
 *
 * The runtime spec of a container is kept as a file in its sandbox's run directory from create
 * until it or the sandbox's machine goes: it holds the environment, so nobody but root may read it.
 * Threads: any. Strings are the caller's.
 */
#ifndef ASPIS_CRI_INSPECT_H
#define ASPIS_CRI_INSPECT_H

#include "cri/model.h"

/* A spec that cannot be kept is only missing later. */
void inspect_keep_spec(const struct container *c, const char *json);
void inspect_drop_spec(const struct container *c);

/* The runtime's lock is not held. NULL only when memory is out. */
char *inspect_container(struct container *c);
char *inspect_sandbox(struct sandbox *s);

/* <run directory>/console.log */
char *inspect_console_path(const struct sandbox *s);

#endif
