/*
 * share_state - what a file server must know of the one before it, in a file that outlives both:
 * which files the guest knows by number, what it has open, and which changes were made lately or
 * were being made. Without it a new server would have to refuse the guest's numbers, and could do
 * twice what its predecessor had done already. Part of the program aspis-share; the daemon knows
 * how large the file is, no more.
 *
 * The file is mapped, so what was written is there after a SIGKILL, in the order of the writes;
 * each record has one field that makes it valid and is written last. Room is allocated before it is
 * touched: a full file system is an error, not a SIGBUS. A file of another layout, or that several
 * servers in a row have died of, is begun anew.
 *
 * What is in it is believed as far as the predecessor was: it is checked for what could make this
 * program fail, and its file names and numbers lead nowhere a guest could not go by itself.
 *
 * Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_STATE_H
#define ASPIS_SANDBOX_SHARE_STATE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/limits.h"

/* More than a guest can leave unanswered at a time (LIMIT_FS_WAITING). */
#define STATE_DEEDS 1024

#define ROOT_SLOT 1 /* FUSE's number of a volume's root */

/* A file or directory that the guest knows. */
struct state_node {
    uint64_t dev, ino;
    uint64_t born;           /* share_state_born() */
    uint64_t lookups;        /* that the guest holds */
    uint32_t volume;         /* 0: free */
    uint32_t parent;         /* slot, or 1: the volume's root */
    uint32_t type;           /* S_IFMT */
    char name[NAME_MAX + 1]; /* the last it was seen by; empty: not known */
};

/* What the guest has open. */
struct state_handle {
    uint64_t dev, ino;
    uint32_t volume; /* 0: free */
    uint32_t node;   /* slot, or 1 */
    uint32_t type;   /* S_IFREG or S_IFDIR */
    int32_t flags;   /* to open it again with */
};

struct file_id {
    uint64_t dev, ino; /* 0: there is none */
};

enum deed_phase { DEED_NONE, DEED_BEGUN, DEED_DONE };

/* A request that changes something. */
struct state_deed {
    uint64_t unique;
    uint32_t volume;
    uint32_t opcode;
    uint32_t phase;
    int32_t error;         /* done: errno, or 0 */
    uint64_t result;       /* done: bytes written, handle */
    struct file_id source; /* what the names led to before */
    struct file_id target;
    uint64_t size; /* of the file that is appended to, before */
};

enum {
    STATE_DEEDS_AT = KiB(4),
    STATE_HANDLES_AT = STATE_DEEDS_AT + STATE_DEEDS * (int)sizeof(struct state_deed),
    STATE_NODES_AT = STATE_HANDLES_AT + LIMIT_FS_HANDLES * (int)sizeof(struct state_handle),
    /* of the whole file, nearly all of which is a hole */
    STATE_BYTES = STATE_NODES_AT + LIMIT_FS_INODES * (int)sizeof(struct state_node)
};

struct share_state {
    struct state_head *head;
    struct state_deed *deeds;
    struct state_handle *handles;
    struct state_node *nodes;
    uint32_t epoch;                    /* of node ids and handles */
    uint32_t n_nodes, n_handles;       /* how far they were ever used */
    uint32_t room_nodes, room_handles; /* that may be touched */
    int fd;
    bool inherited; /* there was a predecessor */
};

/* fd: a regular file, taken also on failure; -1: memory of this process. */
int share_state_open(struct share_state *s, int fd, struct err *err);
void share_state_close(struct share_state *s);
/* Room for one more; its slot, zeroed. -1 with errno. */
int64_t share_state_add_node(struct share_state *s);
int64_t share_state_add_handle(struct share_state *s);
/* When what a name leads to was made ("": the directory's descriptor itself), ns; 0: the file
 * system does not know. Inode numbers are used again: between two servers nothing keeps a removed
 * file's from being that of the next one that is made. */
uint64_t share_state_born(int dir, const char *name);
/* The oldest record of a deed, to be written over. */
struct state_deed *share_state_next_deed(struct share_state *s);
/* Is it another pod's, whose volumes have other files (share_move.h)? */
bool share_state_moved(const struct share_state *s);
void share_state_set_moved(struct share_state *s, bool moved);
/* Nothing in it leads anywhere but to a name in a directory. n_nodes: how many there are. */
bool share_state_is_sound(const struct state_node *n, uint32_t n_nodes);
/* Something was served: whatever this server dies of is not what it found in the file. */
void share_state_good(struct share_state *s);

#endif
