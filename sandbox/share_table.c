#include "sandbox/share_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

#define DEPTH_MAX 2048 /* of what is found again by its name */

/* What makes a record valid is written last, and taken back first. */
static void publish(uint32_t *field, uint32_t value)
{
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint32_t *)field = value;
    atomic_signal_fence(memory_order_seq_cst);
}

/* --- slots --- */

static int grow(struct table *t, uint32_t slot)
{
    if (slot < t->cap_inodes)
        return 0;
    uint32_t cap = t->cap_inodes == 0 ? 64 : t->cap_inodes;
    while (cap <= slot)
        cap *= 2;
    struct inode **inodes = reallocarray(t->inodes, cap, sizeof(struct inode *));
    if (inodes == NULL)
        return ENOMEM;
    memset(inodes + t->cap_inodes, 0, (cap - t->cap_inodes) * sizeof(struct inode *));
    t->inodes = inodes;
    uint32_t *frees = reallocarray(t->free_inodes, cap, sizeof(*frees));
    if (frees == NULL)
        return ENOMEM;
    t->free_inodes = frees;
    t->cap_inodes = cap;
    return 0;
}

static int grow_handles(struct table *t, uint32_t slot)
{
    if (slot < t->cap_handles)
        return 0;
    uint32_t cap = t->cap_handles == 0 ? 64 : t->cap_handles;
    while (cap <= slot)
        cap *= 2;
    struct handle *more = reallocarray(t->handles, cap, sizeof(*more));
    if (more == NULL)
        return ENOMEM;
    t->handles = more;
    for (uint32_t i = t->cap_handles; i < cap; i++)
        t->handles[i] = (struct handle){.fd = -1};
    t->cap_handles = cap;
    return 0;
}

static int take_slot(struct table *t, uint32_t *slot)
{
    if (t->n_free_inodes > 0) {
        *slot = t->free_inodes[--t->n_free_inodes];
        return 0;
    }
    int64_t at = share_state_add_node(&t->state);
    if (at < 0)
        return errno;
    int e = grow(t, (uint32_t)at);
    if (e == 0)
        *slot = (uint32_t)at;
    return e;
}

/* --- taking over --- */

static struct inode *add_inode(struct table *t, const struct state_node *n, uint32_t slot)
{
    struct inode *i = xcalloc(1, sizeof(*i));
    *i = (struct inode){.key = {.dev = n->dev, .ino = n->ino, .volume = n->volume},
                        .fd = -1,
                        .type = n->type,
                        .slot = slot};
    t->inodes[slot] = i;
    HASH_ADD(hh, t->by_key, key, sizeof(i->key), i);
    return i;
}

static struct inode *known(const struct table *t, const struct inode_key *key)
{
    struct inode *i = NULL;
    HASH_FIND(hh, t->by_key, key, sizeof(*key), i);
    return i;
}

/* One answer for all the records of a volume that follow each other. */
struct asked {
    bool (*exists)(uint32_t volume);
    uint32_t volume;
    bool there;
};

static bool is_there(struct asked *a, uint32_t volume)
{
    if (volume != a->volume)
        a->there = a->exists(volume);
    a->volume = volume;
    return a->there;
}

/* The slot stays taken: the guest may still ask for it. */
static void lose_node(struct state_node *n, uint32_t slot)
{
    n->name[0] = '\0';
    n->dev = 0;
    n->ino = slot;
}

static int take_over(struct table *t, bool (*exists)(uint32_t volume))
{
    struct share_state *s = &t->state;
    struct asked a = {.exists = exists};
    for (uint32_t slot = ROOT_SLOT + 1; slot < s->n_nodes; slot++) {
        struct state_node *n = &s->nodes[slot];
        struct inode_key key = {.dev = n->dev, .ino = n->ino, .volume = n->volume};
        if (grow(t, slot) != 0)
            return -1;
        bool sound = share_state_is_sound(n, s->n_nodes) && is_there(&a, n->volume);
        if (sound && known(t, &key) != NULL) {
            /* two of the guest's files are one now: its second number leads nowhere */
            lose_node(n, slot);
            key = (struct inode_key){.ino = slot, .volume = n->volume};
        }
        if (sound && known(t, &key) == NULL) {
            (void)add_inode(t, n, slot);
        } else {
            publish(&n->volume, 0);
            t->free_inodes[t->n_free_inodes++] = slot;
        }
    }
    for (uint32_t slot = 0; slot < s->n_handles; slot++) {
        struct state_handle *h = &s->handles[slot];
        if (grow_handles(t, slot) != 0)
            return -1;
        if (h->volume != 0 &&
            ((!S_ISREG(h->type) && !S_ISDIR(h->type)) || !is_there(&a, h->volume)))
            publish(&h->volume, 0);
    }
    return 0;
}

int table_open(struct table *t, int state_fd, struct err *err)
{
    *t = (struct table){0};
    if (share_state_open(&t->state, state_fd, err) < 0)
        return -1;
    /* slots 0 and 1 are never given out: 1 is the root's node id */
    while (t->state.n_nodes <= ROOT_SLOT && share_state_add_node(&t->state) >= 0)
        ;
    if (t->state.n_nodes > ROOT_SLOT && grow(t, ROOT_SLOT) == 0)
        return 0;
    (void)err_sys(err, errno, "make the file server's tables");
    table_close(t);
    return -1;
}

int table_take_over(struct table *t, bool (*exists)(uint32_t volume), struct err *err)
{
    return take_over(t, exists) == 0 ? 0
                                     : err_sys(err, errno, "take over from the last file server");
}

static void close_handle(struct handle *h)
{
    cleanup_closep(&h->fd);
    if (h->dir != NULL)
        (void)closedir(h->dir);
    *h = (struct handle){.fd = -1};
}

void table_close(struct table *t)
{
    for (uint32_t i = 0; i < t->cap_handles; i++)
        close_handle(&t->handles[i]);
    HASH_CLEAR(hh, t->by_key);
    for (uint32_t i = 0; i < t->cap_inodes; i++) {
        if (t->inodes[i] == NULL)
            continue;
        cleanup_closep(&t->inodes[i]->fd);
        free(t->inodes[i]);
    }
    free(t->inodes);
    free(t->free_inodes);
    free(t->handles);
    share_state_close(&t->state);
}

/* --- nodes --- */

void table_add_root(struct table *t, struct inode *root)
{
    HASH_ADD(hh, t->by_key, key, sizeof(root->key), root);
}

static void drop_inode(struct table *t, struct inode *i)
{
    publish(&t->state.nodes[i->slot].volume, 0);
    HASH_DEL(t->by_key, i);
    cleanup_closep(&i->fd);
    t->inodes[i->slot] = NULL;
    t->free_inodes[t->n_free_inodes++] = i->slot;
    free(i);
}

void table_remove_root(struct table *t, struct inode *root)
{
    HASH_DEL(t->by_key, root);
}

void table_drop_volume(struct table *t, uint32_t volume)
{
    for (uint32_t slot = 0; slot < t->state.n_handles; slot++) {
        if (t->state.handles[slot].volume != volume)
            continue;
        publish(&t->state.handles[slot].volume, 0);
        close_handle(&t->handles[slot]);
        t->first_free = slot < t->first_free ? slot : t->first_free;
    }
    for (uint32_t slot = ROOT_SLOT + 1; slot < t->state.n_nodes; slot++)
        if (t->inodes[slot] != NULL && t->inodes[slot]->key.volume == volume)
            drop_inode(t, t->inodes[slot]);
}

static bool is_same(const struct table *t, const struct inode *i, int fd)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == i->key.dev && st.st_ino == i->key.ino &&
           (st.st_mode & S_IFMT) == i->type &&
           share_state_born(fd, "") == t->state.nodes[i->slot].born;
}

static struct inode *in_slot(const struct table *t, struct inode *root, uint32_t slot)
{
    if (slot == ROOT_SLOT)
        return root;
    struct inode *i = slot < t->state.n_nodes ? t->inodes[slot] : NULL;
    return i != NULL && i->key.volume == root->key.volume ? i : NULL;
}

/* Opens what an earlier server knew, by the names it had. */
static bool find_again(const struct table *t, struct inode *root, struct inode *i)
{
    struct inode **way = xcalloc(DEPTH_MAX, sizeof(struct inode *));
    size_t n = 0;
    while (i != NULL && i->fd < 0 && n < DEPTH_MAX) {
        way[n++] = i;
        i = in_slot(t, root, t->state.nodes[i->slot].parent);
    }
    bool good = i != NULL && i->fd >= 0;
    for (; good && n > 0; i = way[--n]) {
        const char *name = t->state.nodes[way[n - 1]->slot].name;
        int fd = *name != '\0' ? openat(i->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1;
        good = is_same(t, way[n - 1], fd);
        if (good)
            way[n - 1]->fd = take_fd(&fd);
        cleanup_closep(&fd);
    }
    free(way);
    return good;
}

struct inode *table_inode(struct table *t, struct inode *root, uint64_t id)
{
    struct inode *i = id == ROOT_SLOT              ? root
                      : id >> 32 == t->state.epoch ? in_slot(t, root, (uint32_t)id)
                                                   : NULL;
    if (i != NULL && (uint32_t)id > 0 && (i->fd >= 0 || find_again(t, root, i)))
        return i;
    errno = ESTALE;
    return NULL;
}

uint64_t table_id(const struct table *t, const struct inode *i)
{
    return i->slot == ROOT_SLOT ? ROOT_SLOT : (uint64_t)t->state.epoch << 32 | i->slot;
}

static void put_name(struct state_node *n, const struct inode *parent, const char *name)
{
    if (n->parent == parent->slot && strcmp(n->name, name) == 0)
        return;
    n->name[0] = '\0'; /* until it is whole */
    atomic_signal_fence(memory_order_seq_cst);
    n->parent = parent->slot;
    size_t len = strlen(name);
    if (len >= sizeof(n->name))
        return;
    memcpy(n->name + 1, name + 1, len);
    atomic_signal_fence(memory_order_seq_cst);
    n->name[0] = name[0];
}

/* It was removed, and its number is another file's. */
static void lose_inode(struct table *t, struct inode *i)
{
    HASH_DEL(t->by_key, i);
    lose_node(&t->state.nodes[i->slot], i->slot);
    i->key.dev = 0;
    i->key.ino = i->slot;
    HASH_ADD(hh, t->by_key, key, sizeof(i->key), i);
}

int table_remember(struct table *t, const struct inode *root, const struct inode *parent,
                   const char *name, int fd, const struct stat *st, struct inode **out)
{
    auto_close int owned = fd;
    struct inode_key key = {.dev = st->st_dev, .ino = st->st_ino, .volume = root->key.volume};
    struct inode *i = known(t, &key);
    if (i != NULL && i->fd < 0 && !is_same(t, i, fd)) {
        lose_inode(t, i);
        i = NULL;
    }
    if (i == NULL) {
        uint32_t slot = 0;
        int e = take_slot(t, &slot);
        if (e != 0)
            return e;
        struct state_node *n = &t->state.nodes[slot];
        *n = (struct state_node){.dev = key.dev,
                                 .ino = key.ino,
                                 .born = share_state_born(fd, ""),
                                 .type = st->st_mode & S_IFMT};
        put_name(n, parent, name);
        n->lookups = 1;
        publish(&n->volume, (uint32_t)key.volume);
        i = add_inode(t, n, slot);
    } else if (i->slot != ROOT_SLOT) {
        t->state.nodes[i->slot].lookups++;
        put_name(&t->state.nodes[i->slot], parent, name);
    }
    if (i->fd < 0)
        i->fd = take_fd(&owned);
    *out = i;
    return 0;
}

void table_forget(struct table *t, struct inode *root, uint64_t id, uint64_t n)
{
    uint32_t slot = (uint32_t)id;
    struct inode *i =
        id >> 32 == t->state.epoch && slot > ROOT_SLOT ? in_slot(t, root, slot) : NULL;
    if (i == NULL)
        return;
    uint64_t *lookups = &t->state.nodes[slot].lookups;
    *lookups -= n < *lookups ? n : *lookups;
    if (*lookups == 0)
        drop_inode(t, i);
}

void table_moved(struct table *t, const struct inode *root, const struct file_id *file,
                 const struct inode *parent, const char *name)
{
    struct inode_key key = {.dev = file->dev, .ino = file->ino, .volume = root->key.volume};
    const struct inode *i = known(t, &key);
    if (i != NULL && i->slot != ROOT_SLOT)
        put_name(&t->state.nodes[i->slot], parent, name);
}

/* --- handles --- */

int table_add_handle(struct table *t, const struct inode *root, const struct inode *i,
                     struct handle h, int flags, uint64_t *fh)
{
    struct share_state *s = &t->state;
    uint32_t at = t->first_free;
    int e = 0;
    while (at < s->n_handles && s->handles[at].volume != 0)
        at++;
    if (at == s->n_handles && share_state_add_handle(s) < 0)
        e = errno;
    if (e == 0)
        e = grow_handles(t, at);
    if (e != 0) {
        close_handle(&h);
        return e;
    }
    t->first_free = at + 1;
    t->handles[at] = h;
    s->handles[at] = (struct state_handle){.dev = i->key.dev,
                                           .ino = i->key.ino,
                                           .node = i->slot,
                                           .type = h.dir != NULL ? S_IFDIR : S_IFREG,
                                           .flags = flags};
    publish(&s->handles[at].volume, (uint32_t)root->key.volume);
    *fh = (uint64_t)s->epoch << 32 | at;
    return 0;
}

static struct state_handle *record_of(const struct table *t, const struct inode *root, uint64_t fh,
                                      mode_t type)
{
    uint32_t at = (uint32_t)fh;
    if (fh >> 32 != t->state.epoch || at >= t->state.n_handles)
        return NULL;
    struct state_handle *h = &t->state.handles[at];
    return h->volume == root->key.volume && h->type == type ? h : NULL;
}

static bool open_again(struct table *t, struct inode *root, const struct state_handle *record,
                       struct handle *h)
{
    struct inode *i = in_slot(t, root, record->node);
    char path[40];
    if (i == NULL || i->key.dev != record->dev || i->key.ino != record->ino ||
        i->type != record->type || (i->fd < 0 && !find_again(t, root, i)))
        return false;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", i->fd);
    int flags = record->flags & ~(O_CREAT | O_EXCL | O_TRUNC);
    if (S_ISDIR(record->type))
        flags = O_RDONLY | O_DIRECTORY;
    auto_close int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || S_ISREG(record->type)) {
        h->fd = take_fd(&fd);
        return h->fd >= 0;
    }
    h->dir = fdopendir(fd);
    if (h->dir != NULL)
        (void)take_fd(&fd);
    return h->dir != NULL;
}

struct handle *table_handle(struct table *t, struct inode *root, uint64_t fh, mode_t type)
{
    const struct state_handle *record = record_of(t, root, fh, type);
    struct handle *h = record != NULL ? &t->handles[(uint32_t)fh] : NULL;
    if (h != NULL && (h->fd >= 0 || h->dir != NULL || open_again(t, root, record, h)))
        return h;
    errno = h != NULL ? ESTALE : EBADF;
    return NULL;
}

int table_handle_flags(const struct table *t, uint64_t fh)
{
    return t->state.handles[(uint32_t)fh].flags;
}

bool table_drop_handle(struct table *t, const struct inode *root, uint64_t fh, mode_t type)
{
    struct state_handle *record = record_of(t, root, fh, type);
    uint32_t at = (uint32_t)fh;
    if (record == NULL)
        return false;
    publish(&record->volume, 0);
    close_handle(&t->handles[at]);
    t->first_free = at < t->first_free ? at : t->first_free;
    return true;
}
