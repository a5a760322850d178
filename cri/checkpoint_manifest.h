/*
 * checkpoint_manifest - what a pod's checkpoint says about itself: manifest.json, which is written
 * last and makes a directory a checkpoint.
 *
 * It comes back from outside: checkpoint_decode() takes nothing on trust but what it names, and
 * bounds all of it. Pure; no I/O. Threads: any.
 */
#ifndef ASPIS_CRI_CHECKPOINT_MANIFEST_H
#define ASPIS_CRI_CHECKPOINT_MANIFEST_H

#include "base/cleanup.h"
#include "cri/image/digest.h"
#include "proto/arena.h"
#include "proto/cri/v1/api.pb-c.h"
#include "sandbox/checkpoint.h"

#define CHECKPOINT_VERSION 2 /* 1 had no volumes */

/* A file beside the manifest. */
struct checkpoint_file {
    uint64_t bytes;
    char digest[DIGEST_MAX]; /* checkpoint_dir.h says of what */
};

/* An image's disk, in the order of machine.shape.disks. The guest has it mounted, so what it holds
 * must lie where it lay. */
struct checkpoint_disk {
    const char *image; /* id */
    const char *name;  /* for people: a name by digest, or the id */
    char layout[DIGEST_MAX];
};

/* Where a container's volume of the host is: machine_volume's fields of these names. */
struct checkpoint_volume {
    uint32_t id;
    bool mirrored, file;
};

/* A container that ran. */
struct checkpoint_container {
    const char *id;
    const Runtime__V1__ContainerConfig *config;
    const char *image_id, *image_ref, *stop_signal, *groups;
    uint32_t uid, gid;
    uint32_t stdin_id, stdout_id, stderr_id;
    uint64_t offset[2];                /* of stdout and stderr: what its log has */
    struct checkpoint_volume *volumes; /* one for each of spec_volumes(), in its order */
    size_t n_volumes;
};

/* Everything that is pointed at is borrowed, or, after decoding, in the arena. */
struct checkpoint {
    const char *aspis;      /* version of the daemon that wrote it */
    int64_t created_at;     /* ns since the epoch */
    const char *sandbox_id; /* of the saved pod */
    const char *mac;        /* of its NIC, as its guest knows it; "" for none */
    const Runtime__V1__PodSandboxConfig *pod;
    struct machine_image machine;
    struct checkpoint_disk disks[HV_MAX_DISKS];
    struct checkpoint_file state, scratch;
    struct checkpoint_file volumes; /* what the guest knows of them; no bytes: there are none */
    struct checkpoint_container *containers;
    size_t n_containers;
};

/* The caller's; NULL with *err. */
char *checkpoint_encode(const struct checkpoint *c, struct err *err);
/* INVALID: it is none, or damaged; PRECONDITION: of another version. */
int checkpoint_decode(const char *text, size_t len, struct arena *arena, struct checkpoint *out,
                      struct err *err);

#endif
