/*
 * checkpoint_dir - the directory of a checkpoint: "vm" (RAM and devices), "scratch" (the pod's
 * disk, sparse), "volumes" (what the guest knows of the host's files, sparse; empty if it has none)
 * and "manifest.json", which comes last and by rename: without it there is no
 * checkpoint.
 *
 * What is in it is a pod's memory, so the files are root's alone. Both ways the directory must be a
 * real one, root's, that nobody else can write to: what was checked in it stays as it is. Files are
 * reached by its descriptor and never through a link.
 *
 * A directory that is being filled is noted below the state root first, so that the daemon's
 * successor can empty it (checkpoint_dir_recover()).
 *
 * Threads: any; one checkpoint_dir by one thread at a time.
 */
#ifndef ASPIS_CRI_CHECKPOINT_DIR_H
#define ASPIS_CRI_CHECKPOINT_DIR_H

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "cri/checkpoint_manifest.h"

struct checkpoint_dir {
    char *path, *note;
    int fd;
    int state, scratch; /* files */
    int volumes;        /* likewise; -1 in one that an older daemon wrote */
    bool made;          /* the directory is ours */
    bool finished;
};
#define CHECKPOINT_DIR_INIT                                                                        \
    {                                                                                              \
        NULL, NULL, -1, -1, -1, -1, false, false                                                   \
    }

/* path: absolute; empty, or missing in a directory that exists. sandbox_id: who is noted. */
int checkpoint_dir_create(const char *path, const char *state_root, const char *sandbox_id,
                          struct checkpoint_dir *out, struct err *err);
/* Everything is on disk when it returns. */
int checkpoint_dir_finish(struct checkpoint_dir *d, const char *manifest, struct err *err);
/* Of one that was opened, or created and finished: closes it. Else nothing of it stays. */
void checkpoint_dir_clear(struct checkpoint_dir *d);
#define auto_checkpoint_dir __attribute__((cleanup(checkpoint_dir_clear)))

/* For reading; *manifest is the caller's. The files are there, but not checked. */
int checkpoint_dir_open(const char *path, struct checkpoint_dir *out, char **manifest, size_t *len,
                        struct err *err);

/* Of what the file holds, and where: blocks of 64 KiB that are all zero do not count, so it does
 * not matter which of them are holes. */
int checkpoint_file_describe(int fd, struct checkpoint_file *out, struct cancel *cancel,
                             struct err *err);
/* DATA_LOSS: it is not what the manifest says. Leaves the offset at the beginning. */
int checkpoint_file_check(int fd, const struct checkpoint_file *want, const char *name,
                          struct cancel *cancel, struct err *err);

/* Takes away what a killed daemon left half-written; fn gets the id of each pod that was being
 * saved. */
void checkpoint_dir_recover(const char *state_root, void (*fn)(void *arg, const char *sandbox_id),
                            void *arg);

#endif
