#include "sandbox/share_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"

#define MAGIC UINT64_C(0x6173706973736802) /* the last byte is the layout's version */
#define STARTS_MAX 4                       /* servers in a row that served nothing */
#define CHUNK KiB(64)                      /* of the file, allocated at a time */

struct state_head {
    uint64_t magic;
    uint32_t epoch;
    uint32_t starts; /* since something was served */
    uint32_t n_nodes, n_handles;
    uint32_t next_deed;
    uint32_t moved;
};

enum {
    DEEDS_AT = STATE_DEEDS_AT,
    HANDLES_AT = STATE_HANDLES_AT,
    NODES_AT = STATE_NODES_AT,
    END = STATE_BYTES
};
_Static_assert(HANDLES_AT % _Alignof(struct state_handle) == 0, "alignment");
_Static_assert(NODES_AT % _Alignof(struct state_node) == 0, "alignment");

/* Room in the file from `at` for n records. How many have it now, which are more; -1 with errno. */
static int64_t reach(const struct share_state *s, size_t at, size_t n, size_t size)
{
    size_t from = at / CHUNK * CHUNK;
    size_t to = (at + n * size + CHUNK - 1) / CHUNK * CHUNK;
    if (fallocate(s->fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) < 0)
        return -1;
    return (int64_t)((to - at) / size);
}

static bool is_whole(struct share_state *s)
{
    const struct state_head *h = s->head;
    if (h->magic != MAGIC || h->epoch == 0 || h->starts >= STARTS_MAX ||
        h->n_nodes > LIMIT_FS_INODES || h->n_handles > LIMIT_FS_HANDLES)
        return false;
    int64_t nodes = reach(s, NODES_AT, h->n_nodes, sizeof(struct state_node));
    int64_t handles = reach(s, HANDLES_AT, h->n_handles, sizeof(struct state_handle));
    if (nodes < 0 || handles < 0)
        return false;
    s->n_nodes = h->n_nodes;
    s->n_handles = h->n_handles;
    return true;
}

static int begin(struct share_state *s, struct err *err)
{
    uint32_t epoch;
    /* nothing of an earlier one shines through, and its room is given back */
    if (ftruncate(s->fd, 0) < 0 || ftruncate(s->fd, END) < 0 || reach(s, 0, HANDLES_AT, 1) < 0)
        return err_sys(err, errno, "make room for the file server's state");
    if (getrandom(&epoch, sizeof(epoch), 0) != (ssize_t)sizeof(epoch))
        return err_sys(err, errno, "random bytes");
    s->head->epoch = epoch | 1; /* never 0: a bare slot number is no node id */
    atomic_signal_fence(memory_order_seq_cst);
    s->head->magic = MAGIC;
    return 0;
}

int share_state_open(struct share_state *s, int fd, struct err *err)
{
    struct stat st;
    *s = (struct share_state){.fd = fd >= 0 ? fd : memfd_create("aspis-share", MFD_CLOEXEC)};
    bool fresh = s->fd >= 0 && fstat(s->fd, &st) == 0 && st.st_size != END;
    if (s->fd < 0 || (fresh && ftruncate(s->fd, END) < 0) || reach(s, 0, HANDLES_AT, 1) < 0) {
        (void)err_sys(err, errno, "the file server's state");
        share_state_close(s);
        return -1;
    }
    char *at = mmap(NULL, END, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (at == MAP_FAILED) {
        (void)err_sys(err, errno, "map the file server's state");
        share_state_close(s);
        return -1;
    }
    s->head = (struct state_head *)(void *)at;
    s->deeds = (struct state_deed *)(void *)(at + DEEDS_AT);
    s->handles = (struct state_handle *)(void *)(at + HANDLES_AT);
    s->nodes = (struct state_node *)(void *)(at + NODES_AT);
    s->inherited = !fresh && is_whole(s);
    if (!s->inherited && begin(s, err) < 0) {
        share_state_close(s);
        return -1;
    }
    s->head->starts++;
    s->epoch = s->head->epoch;
    return 0;
}

void share_state_close(struct share_state *s)
{
    if (s->head != NULL)
        (void)munmap(s->head, END);
    cleanup_closep(&s->fd);
    *s = (struct share_state){.fd = -1};
}

/* The next slot of a table, with room made for it. */
static int64_t add(const struct share_state *s, uint32_t *n, uint32_t *room, uint32_t max,
                   size_t at, size_t size)
{
    if (*n >= max) {
        errno = ENFILE;
        return -1;
    }
    if (*n >= *room) {
        int64_t now = reach(s, at, *n + 1U, size);
        if (now < 0)
            return -1;
        *room = now < max ? (uint32_t)now : max;
    }
    return (*n)++;
}

int64_t share_state_add_node(struct share_state *s)
{
    int64_t slot =
        add(s, &s->n_nodes, &s->room_nodes, LIMIT_FS_INODES, NODES_AT, sizeof(struct state_node));
    s->head->n_nodes = s->n_nodes;
    return slot;
}

int64_t share_state_add_handle(struct share_state *s)
{
    int64_t slot = add(s, &s->n_handles, &s->room_handles, LIMIT_FS_HANDLES, HANDLES_AT,
                       sizeof(struct state_handle));
    s->head->n_handles = s->n_handles;
    return slot;
}

uint64_t share_state_born(int dir, const char *name)
{
    struct statx st;
    if (statx(dir, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BTIME, &st) < 0 ||
        (st.stx_mask & STATX_BTIME) == 0)
        return 0;
    return (uint64_t)st.stx_btime.tv_sec * UINT64_C(1000000000) + st.stx_btime.tv_nsec;
}

struct state_deed *share_state_next_deed(struct share_state *s)
{
    return &s->deeds[s->head->next_deed++ % STATE_DEEDS];
}

void share_state_good(struct share_state *s)
{
    s->head->starts = 0;
}

bool share_state_moved(const struct share_state *s)
{
    return s->head->moved != 0;
}

void share_state_set_moved(struct share_state *s, bool moved)
{
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint32_t *)&s->head->moved = moved;
    atomic_signal_fence(memory_order_seq_cst);
}

bool share_state_is_sound(const struct state_node *n, uint32_t n_nodes)
{
    return n->volume != 0 && n->lookups > 0 &&
           (n->parent == ROOT_SLOT || (n->parent > ROOT_SLOT && n->parent < n_nodes)) &&
           memchr(n->name, '\0', sizeof(n->name)) != NULL && strchr(n->name, '/') == NULL &&
           strcmp(n->name, ".") != 0 && strcmp(n->name, "..") != 0;
}
