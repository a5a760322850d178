/*
 * fs - files and directories: the small operations every folder needs, with errors that name the
 * path.
 *
 * Every descriptor is opened O_CLOEXEC. Strings returned are the caller's to free.
 */
#ifndef ASPIS_BASE_FS_H
#define ASPIS_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* asprintf that cannot return garbage: NULL only when memory is out. */
char *fs_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Whole file into memory, at most max bytes (else EXHAUSTED); NUL-terminated beyond *len. len may
 * be NULL. Works for /proc and /sys, whose sizes read 0. */
char *fs_read(const char *path, size_t max, size_t *len, struct err *err);
char *fs_read_fd(int fd, size_t max, size_t *len, struct err *err);
/* Writes the whole buffer, resuming short writes. */
int fs_write_fd(int fd, const void *data, size_t len, struct err *err);
/* write(2) to an existing file such as one under /proc, /sys or a cgroup. */
int fs_write(const char *path, const void *data, size_t len, struct err *err);
int fs_write_str(const char *path, const char *s, struct err *err);
/* Temporary file in the same directory, fsync when sync, rename over path. */
int fs_write_atomic(const char *path, const void *data, size_t len, mode_t mode, bool sync,
                    struct err *err);
/* Locks the file for this process alone: unlike flock's, the lock is not its children's, who may
 * outlive a killed process for the moment between fork and exec. Given up with the process, or when
 * it closes any descriptor of the file. 1: another process has it (its id in *holder, 0: not
 * known); -1 with *err. */
int fs_lock(int fd, pid_t *holder, struct err *err);
/* Like mkdir -p; existing directories keep their mode. */
int fs_mkdir_p(const char *path, mode_t mode, struct err *err);
/* Like rm -rf, never across a mount point, never through a symlink; a missing path is fine. */
int fs_rm_rf(const char *path, struct err *err);
bool fs_exists(const char *path);
/* Copies the contents, keeping holes (SEEK_DATA, copy_file_range). */
int fs_copy_sparse(int from, int to, struct err *err);
/* Opens `path` below dirfd so that neither "..", an absolute link nor a magic link leads out of it
 * (openat2 RESOLVE_IN_ROOT). */
int fs_open_in_root(int dirfd, const char *path, int flags, mode_t mode, struct err *err);
/* Random lower-case hex, n characters and a NUL, from getrandom(2). */
void fs_random_hex(char *out, size_t n);
/* The host's boot id (/proc/sys/kernel/random/boot_id without newline). */
char *fs_boot_id(struct err *err);

#endif
