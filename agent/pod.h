/*
 * pod - what this guest is: its identity, files, disks and namespaces, as ConfigurePod said.
 *
 * Owned by the agent's main; one per guest. Single-threaded.
 */
#ifndef ASPIS_AGENT_POD_H
#define ASPIS_AGENT_POD_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/loop.h"
#include "proto/agent.pb-c.h"

struct pod;

struct pod *pod_new(struct loop *loop, struct err *err);
/* For an agent that is not a guest's init (tests): the pod's files live below `dir`, and nothing of
 * the machine is touched (clock, hostname, entropy, sysctls, network, mounts). Before the first
 * pod_configure(). */
void pod_use_dir(struct pod *p, const char *dir);
/* A pod on the host, whose namespaces are those of this process: host_enter() made them. What it
 * shares with the host is not configured; neither are clock, entropy and disks. userns: borrowed,
 * -1: none. Before the first pod_configure(). */
void pod_use_host(struct pod *p, bool host_net, bool host_ipc, bool host_uts, int userns);
/* On the host: path of the user namespace that the pod's others belong to and its containers join;
 * NULL: none. */
const char *pod_userns(const struct pod *p);
bool pod_on_host(const struct pod *p);
bool pod_has_host_network(const struct pod *p);
void pod_free(struct pod *p);

/* ConfigurePod. Repeatable. Waits without blocking the loop for the scratch disk and the NICs that
 * the request names, at most 10 s, then calls done once: err is NULL or says what failed. done may
 * run before this returns. req must live until then. A second request while the first waits ends
 * the first with ABORTED. */
typedef void (*pod_configured_fn)(void *arg, const struct err *err);
void pod_configure(struct pod *p, const Aspis__Agent__V1__ConfigurePodRequest *req,
                   pod_configured_fn done, void *arg);
const char *pod_id(const struct pod *p); /* "" before ConfigurePod */
/* A VM made from a saved one takes the id that its ConfigurePod will have. */
int pod_become(struct pod *p, const char *from, const char *id, struct err *err);
/* PrepareTemplate: the scratch disk and the default shm are mounted and the loopback is up now, as
 * pod_configure() would do it; it then finds them so. Only before the first pod_configure(). */
int pod_prepare(struct pod *p, const char *scratch_disk, struct err *err);

/* From main: a device appeared (uevent), and a child was reaped. */
void pod_device_appeared(struct pod *p);
void pod_reaped(struct pod *p, pid_t pid);

/* Guest path of a pod file by its name in a mount source: "resolv.conf", "hosts", "hostname",
 * "shm"; NULL when unknown. */
const char *pod_file(const struct pod *p, const char *name);

/* Directory on the scratch disk (or tmpfs) for upper and work directories of containers. */
const char *pod_scratch_dir(const struct pod *p);

/* Waits (without blocking the loop) until the disk with this virtio-blk serial is there, mounts it
 * as erofs read-only once, and calls done with the mount point or an error. Each successful call
 * takes a reference that pod_image_release() gives back. */
typedef void (*pod_image_fn)(void *arg, const char *mountpoint, const struct err *err);
void pod_image_acquire(struct pod *p, const char *serial, pod_image_fn done, void *arg);
/* Ends the wait of the call with this arg, if there is one, with ABORTED. */
void pod_image_give_up(struct pod *p, const void *arg);
void pod_image_release(struct pod *p, const char *serial);
/* NameDisk: the disk with the serial `disk` holds the image `serial`. */
int pod_image_name(struct pod *p, const char *serial, const char *disk, struct err *err);
/* Unmounts; PRECONDITION while referenced. */
int pod_image_detach(struct pod *p, const char *serial, struct err *err);
/* Serials of mounted image disks, NULL-terminated, valid until the next change. */
const char *const *pod_images(const struct pod *p);

/* "/proc/<pid>/ns/pid" of the pod's shared process namespace, made on first use: its init is a tiny
 * reaping process of the agent. NULL with *err. */
const char *pod_shared_pidns(struct pod *p, struct err *err);

#endif
