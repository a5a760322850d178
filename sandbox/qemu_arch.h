/*
 * qemu_arch - the names that differ between the architectures QEMU emulates, in one table.
 *
 * Immutable data; any thread.
 */
#ifndef ASPIS_SANDBOX_QEMU_ARCH_H
#define ASPIS_SANDBOX_QEMU_ARCH_H

#include <stdbool.h>

struct qemu_arch {
    const char *name;            /* as uname -m says */
    const char *machine;         /* -machine */
    const char *cpu_tcg;         /* -cpu under TCG */
    const char *console;         /* the kernel's console= */
    const char *kernel_args;     /* always */
    const char *kernel_args_tcg; /* under TCG */
    bool tsc;                    /* takes tsc_early_khz= under TCG, whose TSC is the host's */
    bool vmgenid;
    const char *plug_bridge; /* device whose slots take hot-plugged disks, with ACPI hot-plug */
};

/* The host's architecture; NULL when it is not supported. */
const struct qemu_arch *qemu_arch_host(void);

#endif
