/*
 * template - a VM that was booted once, to its agent, and is cloned instead of booting again.
 *
 * A template is two sealed memory files: the guest's RAM, which clones map privately (copied on
 * write), and the state of the devices; and its scratch disk, which the guest has mounted already
 * and every clone gets a sparse copy of. They have no name in any file system and live as long as
 * the daemon or a clone holds them, so nothing is left behind and nobody else can open them; the
 * seals keep a QEMU that a guest has taken over from changing what other pods start from (it never
 * gets the disk itself).
 *
 * The pool keeps at most one template, for pods of the base size. It is booted by a thread of the
 * pool's own, in the same jail as any pod, with a NIC on a tap that leads nowhere. Its key is all
 * that went into it (files with inode, size and time, QEMU's arguments, accelerator): a template is
 * used only while the key is still what a new one would get. A pod never waits here:
 * template_take() gives what there is, and asks for a new one in the background.
 *
 * A template has seen no pod: nothing of one is in it. What every VM must have for itself (entropy,
 * machine id, host name, addresses, time) the agent sets in ConfigurePod, before anything runs.
 *
 * Threads: any. Memory: templates are reference counted.
 */
#ifndef ASPIS_SANDBOX_TEMPLATE_H
#define ASPIS_SANDBOX_TEMPLATE_H

#include "base/cleanup.h"
#include "sandbox/hypervisor.h"
#include "sandbox/machine_internal.h"

struct template_pool;
struct template;

#define TEMPLATE_MAC "02:a5:15:00:00:01" /* of its NIC, until the agent sets the pod's */

struct template_pool *template_pool_new(struct machine_factory *f);
/* Starts the thread, which boots the first template. NULL is fine everywhere here. */
void template_pool_start(struct template_pool *p);
/* "ready", "being made", "none: REASON" or "off"; the caller's. */
char *template_pool_text(struct template_pool *p);
/* Ends the thread and a boot in progress. No clone may be starting. */
void template_pool_free(struct template_pool *p);

/* fn(arg) whenever a new template is ready, on the thread, under the pool's lock; NULL: nobody. It
 * does not run any more once another is set. */
void template_pool_notify(struct template_pool *p, void (*fn)(void *arg), void *arg);
/* The template for a VM of this size, or NULL. */
struct template *template_take(struct template_pool *p, enum accel accel,
                               const struct machine_size *size);
struct template *template_ref(struct template *t); /* t, with one more owner */
void template_unref(struct template *t);
/* Descriptors for one clone, which the caller closes. */
int template_open(const struct template *t, struct hv_template *out, struct err *err);
/* A clone of it reached its agent. */
void template_worked(struct template_pool *p);
/* A clone of it failed: it is not used again. */
void template_suspect(struct template_pool *p, struct template *t, const char *why);

DEFINE_AUTO(struct template *, template_unref);
#define auto_template __attribute__((cleanup(template_unrefp)))

#endif
