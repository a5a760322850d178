/*
 * qemu_argv - QEMU's command line: the device tree of a pod's VM as text. Pure; no I/O.
 *
 * Every file, socket and tap is a descriptor of a fixed number inside the jail, and the kernel lies
 * at a fixed path there, so the only strings from outside are the name and the MAC.
 */
#ifndef ASPIS_SANDBOX_QEMU_ARGV_H
#define ASPIS_SANDBOX_QEMU_ARGV_H

#include "base/err.h"
#include "base/str.h"
#include "sandbox/hypervisor.h"
#include "sandbox/qemu_arch.h"

/* Descriptors in the jail. */
enum {
    QEMU_FD_CONTROL = 3,
    QEMU_FD_CONSOLE,
    QEMU_FD_CHANNEL, /* three */
    QEMU_FD_TAP = QEMU_FD_CHANNEL + 3,
    QEMU_FD_SCRATCH,
    QEMU_FD_VHOST,
    QEMU_FD_RAM,
    QEMU_FD_STATE,
    QEMU_FD_VSOCK, /* of aspis-vsock */
    QEMU_FD_FORK,  /* for aspis-fork.so */
};

#define QEMU_JAIL_KERNEL "/aspis/vmlinuz"
#define QEMU_JAIL_INITRD "/aspis/initrd"
#define QEMU_JAIL_PAGES "/aspis/pages.so"
#define QEMU_JAIL_FORK "/aspis/fork.so"
#define QEMU_JAIL_TRIM "/aspis/trim.so"
#define QEMU_JAIL_ABSENT "/aspis/absent"
#define QEMU_TB_MIB "64"          /* of TCG's translations */
#define QEMU_RAM_DEFAULT "pc.ram" /* of an ordinary boot; a template's and its clones' is "ram" */
#define QEMU_PLUG_BUS "plug"
#define QEMU_PLUG_SLOTS 29 /* 1..29 on the bridge are for disks */
#define QEMU_PLUG_SLOT_MORE2 30
#define QEMU_VSOCK_ADDR "1f" /* there too */
#define QEMU_VSOCK_CID 3     /* nobody else sees it */
#define QEMU_SCRATCH_FDSET 1
/* Disks for images that are there from the start (qemu_slot.c), numbered after the bridge's. */
#define QEMU_FIXED_FIRST 32
#define QEMU_FIXED_N 2
#define QEMU_SLOTS (QEMU_FIXED_FIRST + QEMU_FIXED_N - 1)
/* The devices that add memory. The first is there from the start and small, since QEMU keeps tables
 * for all that could be added (100 bytes per MiB); the second, for all the rest, is plugged in when
 * the first does not suffice. */
#define QEMU_MORE "more"
#define QEMU_MORE2 "more2"
#define QEMU_MORE_AT_HAND GiB(2)

/* Appends the whole argument vector. INVALID when the MAC is none. */
int qemu_argv(const struct hv_spec *spec, const struct qemu_arch *arch, struct strv *argv,
              struct err *err);
bool qemu_is_clone(const struct hv_spec *spec);
/* Whether it is given aspis-trim.so. */
bool qemu_trims(const struct hv_spec *spec);
/* It starts from a state: a clone, or a VM that was saved. */
bool qemu_is_incoming(const struct hv_spec *spec);
/* What the first device can add to the memory that it starts with; 0: nothing. */
uint64_t qemu_more_bytes(const struct hv_spec *spec);
/* QEMU's option syntax: a comma in a value is written twice. The caller's. */
char *qemu_escape(const char *value);

#endif
