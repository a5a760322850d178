#include "sandbox/share_move.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/str.h"
#include "sandbox/share_ns.h"

#define DEPTH_MAX 2048

struct root {
    uint32_t volume;
    int fd; /* O_PATH; -1: there is none */
    struct stat st;
    UT_hash_handle hh;
};

struct place {
    bool looked;
    int fd; /* of a directory that was found; -1 */
};

struct walk {
    struct share_state *s;
    bool arrive;
    struct root *roots;
    struct place *places; /* by slot */
};

static const struct root *root_of(struct walk *w, uint32_t volume)
{
    struct root *r = NULL;
    char path[24];
    HASH_FIND(hh, w->roots, &volume, sizeof(volume), r);
    if (r != NULL)
        return r;
    r = xcalloc(1, sizeof(*r));
    r->volume = volume;
    (void)snprintf(path, sizeof(path), SHARE_VOLUME, volume);
    r->fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (r->fd >= 0 && fstat(r->fd, &r->st) < 0)
        cleanup_closep(&r->fd);
    HASH_ADD(hh, w->roots, volume, sizeof(r->volume), r); // NOLINT
    return r;
}

/* The slot stays taken: the guest may ask for it, and must not get another file. */
static void lose(const struct walk *w, struct state_node *n, uint32_t slot)
{
    n->name[0] = '\0';
    if (!w->arrive)
        return;
    n->dev = 0;
    n->ino = slot;
}

/* The directory that a node is in; -1: it was not found. */
static int parent_of(struct walk *w, const struct state_node *n)
{
    if (n->parent == ROOT_SLOT)
        return root_of(w, n->volume)->fd;
    return w->s->nodes[n->parent].volume == n->volume ? w->places[n->parent].fd : -1;
}

static bool find(struct walk *w, struct state_node *n, uint32_t slot)
{
    struct stat st;
    int dir = parent_of(w, n);
    if (dir < 0 || n->name[0] == '\0')
        return false;
    /* a directory is kept open for what is in it */
    auto_close int fd =
        S_ISDIR(n->type) ? openat(dir, n->name, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (S_ISDIR(n->type) ? fd < 0 || fstat(fd, &st) < 0
                         : fstatat(dir, n->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return false;
    uint64_t born = share_state_born(dir, n->name);
    if ((st.st_mode & S_IFMT) != n->type ||
        (!w->arrive && (st.st_dev != n->dev || st.st_ino != n->ino || born != n->born)))
        return false;
    n->dev = st.st_dev;
    n->ino = st.st_ino;
    n->born = born;
    w->places[slot].fd = take_fd(&fd);
    return true;
}

/* Looks for a node after the directories above it. */
static void look(struct walk *w, uint32_t slot)
{
    uint32_t way[DEPTH_MAX];
    size_t n = 0;
    while (slot != ROOT_SLOT && !w->places[slot].looked && n < DEPTH_MAX) {
        w->places[slot].looked = true; /* hence no circle is endless */
        if (!share_state_is_sound(&w->s->nodes[slot], w->s->n_nodes))
            break;
        way[n++] = slot;
        slot = w->s->nodes[slot].parent;
    }
    while (n > 0) {
        slot = way[--n];
        if (!find(w, &w->s->nodes[slot], slot))
            lose(w, &w->s->nodes[slot], slot);
    }
}

static bool is_of(const struct state_handle *h, uint64_t dev, uint64_t ino)
{
    return h->dev == dev && h->ino == ino;
}

/* A handle without a node is one of a file that is lost. */
static void move_handle(struct walk *w, struct state_handle *h)
{
    const struct state_node *n =
        h->node > ROOT_SLOT && h->node < w->s->n_nodes ? &w->s->nodes[h->node] : NULL;
    const struct root *r = h->node == ROOT_SLOT ? root_of(w, h->volume) : NULL;
    uint64_t dev = n != NULL ? n->dev : 0;
    uint64_t ino = n != NULL ? n->ino : 0;
    bool good = n != NULL && n->volume == h->volume && n->type == h->type;
    if (r != NULL && r->fd >= 0) {
        dev = r->st.st_dev;
        ino = r->st.st_ino;
        good = (r->st.st_mode & S_IFMT) == h->type;
    }
    if (!good || (!w->arrive && !is_of(h, dev, ino)))
        h->node = 0;
    h->dev = dev;
    h->ino = ino;
}

static void walk(struct share_state *s, bool arrive)
{
    struct walk w = {.s = s, .arrive = arrive};
    struct root *r;
    struct root *next;
    w.places = xcalloc((size_t)s->n_nodes + 1, sizeof(*w.places));
    for (uint32_t i = 0; i < s->n_nodes; i++)
        w.places[i].fd = -1;
    for (uint32_t i = ROOT_SLOT + 1; i < s->n_nodes; i++) {
        if (s->nodes[i].volume != 0)
            look(&w, i);
    }
    for (uint32_t i = 0; i < s->n_handles; i++) {
        if (s->handles[i].volume != 0)
            move_handle(&w, &s->handles[i]);
    }
    for (uint32_t i = 0; i < s->n_nodes; i++)
        cleanup_closep(&w.places[i].fd);
    free(w.places);
    HASH_ITER(hh, w.roots, r, next) // NOLINT
    {
        HASH_DEL(w.roots, r);
        cleanup_closep(&r->fd);
        free(r);
    }
}

void share_move_leave(struct share_state *s)
{
    walk(s, false);
    share_state_good(s);
    share_state_set_moved(s, true);
}

void share_move_arrive(struct share_state *s)
{
    (void)FAILPOINT("share.arriving", NULL);
    walk(s, true);
    (void)FAILPOINT("share.arrived", NULL);
    share_state_set_moved(s, false);
}
