/*
 * disk - the VM's disks by their virtio-blk serial: finds them, waits for them, mounts container
 * images.
 *
 * An image disk holds an erofs file system and is mounted read-only once, at <dir>/<serial>,
 * however many containers use it.
 *
 * A disk may be known by another serial than its own: some are there from the start, empty, and get
 * an image while the VM runs (disks_name()).
 *
 * A disk whose serial begins with "raw" is handed over as it is: its "mount point" is its device
 * node.
 *
 * Memory: the table owns its entries and mount points. Threads: the loop's.
 */
#ifndef ASPIS_AGENT_DISK_H
#define ASPIS_AGENT_DISK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/loop.h"

struct disks;

/* virtio-blk carries at most 20 bytes (VIRTIO_BLK_ID_BYTES); ours are of [A-Za-z0-9._-] and do not
 * begin with '.'. */
#define DISK_SERIAL_MAX 20
bool disk_serial_valid(const char *serial);

/* Device node ("/dev/vdb") of the disk with this serial, looked up below sysfs ("/sys"); NULL when
 * it is not there. The caller frees it. */
char *disk_find(const char *sysfs, const char *serial);

/* dir: where image disks are mounted; copied. */
struct disks *disks_new(struct loop *loop, const char *dir);
/* Leaves mounts alone. Waiters get CANCELLED. */
void disks_free(struct disks *d);

/* A disk may have appeared. */
void disks_rescan(struct disks *d);

/* On the host there are no disks: the daemon attaches each image's tree at <dir>/<serial>. */
void disks_use_trees(struct disks *d);

/* See pod_image_acquire() and friends in agent/pod.h. */
typedef void (*disk_image_fn)(void *arg, const char *mountpoint, const struct err *err);
void disks_acquire(struct disks *d, const char *serial, disk_image_fn done, void *arg);
void disks_give_up(struct disks *d, const void *arg);
void disks_release(struct disks *d, const char *serial);
/* Remembers where the disks are that there are now, and will be as long as the guest: looking for
 * one asks each disk for its serial. */
void disks_learn(struct disks *d, const char *sysfs);
/* The disk with the serial `disk` holds the image `serial` from now on, and no other. */
int disks_name(struct disks *d, const char *serial, const char *disk, struct err *err);
int disks_detach(struct disks *d, const char *serial, struct err *err);
const char *const *disks_mounted(struct disks *d);

#endif
