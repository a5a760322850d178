/*
 * qemu_zygote - the driver's side of aspis-fork.so (qemu_fork.c): a VM that is stopped for good so
 * that others can be copied from its process.
 *
 * Threads: qemu_freeze() once, on a VM nobody else uses any more; qemu_fork() from any after that,
 * one at a time. Private to the QEMU driver.
 */
#ifndef ASPIS_SANDBOX_QEMU_ZYGOTE_H
#define ASPIS_SANDBOX_QEMU_ZYGOTE_H

#include "sandbox/qemu_vm.h"

/* Stops the vCPUs, has QEMU close all its connections, and parks its threads. Only qemu_fork() and
 * quit() may follow. */
int qemu_freeze(struct hv *hv, struct cancel *cancel, struct err *err);
/* A copy of spec->fork_of, whose descriptors are these in the child, and which joins spec's cgroups
 * before it runs. Its vCPUs are stopped still. *proc is the caller's. */
int qemu_fork(const struct hv_spec *spec, const struct spawn_fd *fds, size_t n_fds,
              struct cancel *cancel, struct spawn_proc *proc, struct err *err);

#endif
