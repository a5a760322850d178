/*
 * spare - VMs that are started and warmed up before anybody asks for a pod, each with the network
 * namespace and tap that it will have.
 *
 * A spare has the id of a sandbox from the beginning, so that its directories, its process's name
 * and its namespace are already what its pod's will be; only its cgroup changes when it is taken.
 * It is a clone of the present template, has seen no pod, and gets entropy, names and addresses
 * with its pod's ConfigurePod like any other VM. A pod never waits for one and never fails because
 * of one: while there is none, or after it turned out to be unusable, the VM is cloned or booted.
 *
 * One thread makes them, one after the other, when no pod has been worked on for a moment and with
 * what processor time is left over. They end with the daemon; those of a daemon that was killed are
 * collected by the next like everything that no record owns.
 *
 * Threads: any. Memory: what spares_take() gives is the caller's: spare_free() once the machine and
 * the namespace have another owner, or spares_put_back().
 */
#ifndef ASPIS_CRI_SPARE_SPARE_H
#define ASPIS_CRI_SPARE_SPARE_H

#include <stdint.h>

#include "base/err.h"
#include "sandbox/machine.h"

struct spares;

struct spare {
    char *id;
    char *netns;             /* with the tap in it that the machine has */
    struct machine *machine; /* machine_claim() is next */
    struct spare_state *state;
};

/* `count` of them as soon as there is a template; 0: none ever. NULL only with *err. netns_notes:
 * the directory of netns_note.h; tap_name: of the tap in a pod's namespace. Call it before
 * machine_start_templates(). */
struct spares *spares_new(struct machine_factory *f, const char *netns_notes, uint32_t count,
                          const char *tap_name, struct err *err);
/* Destroys those that nobody took. NULL is fine here and below. */
void spares_free(struct spares *p);

/* The oldest, or NULL. */
struct spare *spares_take(struct spares *p);
/* It was not touched. */
void spares_put_back(struct spares *p, struct spare *s);
void spare_free(struct spare *s);

/* A pod is being worked on: the next spare can wait. */
void spares_yield(struct spares *p);
/* How many there are to take. */
uint32_t spares_count(struct spares *p);

#endif
