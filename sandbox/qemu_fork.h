/*
 * qemu_fork - what the daemon and aspis-fork.so (qemu_fork.c) say to each other.
 *
 * Over a SOCK_SEQPACKET pair whose other end is the descriptor named by ASPIS_FORK_FD: a request
 * with n_targets + 1 descriptors, answered by a reply with a pidfd. The last descriptor is one end
 * of another such pair, the child's: it replaces its descriptors, reads one byte from it, and
 * writes a fork_word when its threads go on or it has failed. A request without targets and
 * descriptors only parks the process.
 */
#ifndef ASPIS_SANDBOX_QEMU_FORK_H
#define ASPIS_SANDBOX_QEMU_FORK_H

#include <stdint.h>

#define FORK_FD_VARIABLE "ASPIS_FORK_FD"
#define FORK_MAX_FDS 16

struct fork_request {
    uint32_t uid; /* of the child; 0: it stays who it is, and a child of the process */
    uint32_t n_targets;
    /* The descriptors to replace, in the order of those sent; -1: another descriptor of the file to
     * replace is sent after the new one. */
    int32_t targets[FORK_MAX_FDS];
    char name[256]; /* takes the place of what -name says, if as long: how a process is found */
};

struct fork_reply {
    int32_t error; /* an errno, or 0 */
    int32_t pid;
};

struct fork_word {
    int32_t error;
    char what[60]; /* the step that failed */
};

#endif
