/*
 * share_table - the files that a pod's guest knows by number and has open, in the state that
 * outlives the server (share_state.h): a new server finds them again by their names when they are
 * asked for. Part of the program aspis-share only.
 *
 * Node ids and handles carry the state's epoch in their upper half and are of one volume: any other
 * leads to nothing. A file found again must be the one that was known, by device, inode number and
 * the time it was made.
 *
 * Memory: the table owns all descriptors. Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_TABLE_H
#define ASPIS_SANDBOX_SHARE_TABLE_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/err.h"
#include "sandbox/share_state.h"

struct inode_key {
    uint64_t dev, ino, volume;
};

struct inode {
    struct inode_key key;
    int fd; /* O_PATH; -1: to be found again */
    mode_t type;
    uint32_t slot;
    UT_hash_handle hh;
};

struct handle {
    int fd;              /* of a file; -1: to be opened again */
    DIR *dir;            /* NULL likewise */
    struct dirent *next; /* read but not sent yet */
    off_t offset;        /* of what comes after it */
};

struct table {
    struct share_state state;
    struct inode **inodes; /* by slot */
    uint32_t cap_inodes;
    uint32_t *free_inodes;
    uint32_t n_free_inodes, cap_free_inodes;
    struct inode *by_key;
    struct handle *handles; /* by slot, beside the state's */
    uint32_t cap_handles, first_free;
};

/* state_fd: -1 or the state's file, taken also on failure. */
int table_open(struct table *t, int state_fd, struct err *err);
/* Takes up what is in the state. exists: is the volume still there? What was known of others is
 * forgotten. */
int table_take_over(struct table *t, bool (*exists)(uint32_t volume), struct err *err);
void table_close(struct table *t);

/* A volume's root goes into the table too; it is the caller's. */
void table_add_root(struct table *t, struct inode *root);
void table_remove_root(struct table *t, struct inode *root);
/* Forgets all that the guest knows of a volume. */
void table_drop_volume(struct table *t, uint32_t volume);

/* NULL with errno: ESTALE. */
struct inode *table_inode(struct table *t, struct inode *root, uint64_t id);
uint64_t table_id(const struct table *t, const struct inode *i);
/* The inode of an O_PATH descriptor, which is taken; counts one lookup. errno, or 0. */
int table_remember(struct table *t, const struct inode *root, const struct inode *parent,
                   const char *name, int fd, const struct stat *st, struct inode **out);
void table_forget(struct table *t, struct inode *root, uint64_t id, uint64_t n);
/* A file has another name now. */
void table_moved(struct table *t, const struct inode *root, const struct file_id *file,
                 const struct inode *parent, const char *name);

/* The descriptor or directory of h is taken. flags: to open it again with. errno, or 0. */
int table_add_handle(struct table *t, const struct inode *root, const struct inode *i,
                     struct handle h, int flags, uint64_t *fh);
/* type: S_IFREG or S_IFDIR. NULL with errno: EBADF, or ESTALE when the file is not found again. */
struct handle *table_handle(struct table *t, struct inode *root, uint64_t fh, mode_t type);
int table_handle_flags(const struct table *t, uint64_t fh);
/* Need not be open, or known. */
bool table_drop_handle(struct table *t, const struct inode *root, uint64_t fh, mode_t type);

#endif
