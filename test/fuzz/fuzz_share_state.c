/* The "volumes" file of a checkpoint, as the file server of a restored pod takes it up: whatever it
 * says, nothing is found but what is in the volume that is asked, and of the kind that is recorded.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"
#include "sandbox/share_move.h"
#include "sandbox/share_ns.h"
#include "sandbox/share_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RECORDS 64

struct input {
    const uint8_t *data;
    size_t left;
};

static uint8_t next(struct input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->data++;
}

/* Two volumes there are; a third there is not. */
static uint32_t first_volume(void)
{
    return 3000000000U + 4 * (uint32_t)getpid();
}

static void make_file(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    if (fs_write_str(path, name, NULL) < 0 && fs_write_atomic(path, "x", 1, 0600, false, NULL) < 0)
        abort();
}

static void remove_volumes(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        auto_free char *dir = fs_format(SHARE_VOLUME, first_volume() + i);
        (void)fs_rm_rf(dir, NULL);
    }
}

static void make_volumes(void)
{
    static bool made;
    if (made)
        return;
    made = true;
    for (uint32_t i = 0; i < 2; i++) {
        auto_free char *dir = fs_format(SHARE_VOLUME, first_volume() + i);
        auto_free char *deep = fs_format("%s/d/e", dir);
        auto_free char *way_out = fs_format("%s/out", dir);
        if (fs_mkdir_p(deep, 0700, NULL) < 0 || symlink("/", way_out) < 0)
            abort();
        make_file(dir, "a");
        make_file(dir, "d/b");
        make_file(dir, "d/e/c");
    }
    (void)atexit(remove_volumes);
}

static uint32_t volume(struct input *in)
{
    uint8_t v = next(in) % 4;
    return v == 0 ? 0 : first_volume() + v - 1;
}

static uint32_t type(struct input *in)
{
    static const uint32_t types[] = {S_IFREG, S_IFDIR, S_IFLNK, 0xffffffff};
    return types[next(in) % ARRAY_LEN(types)];
}

/* Names that are there, the recorded bytes otherwise. */
static void name(struct input *in, char out[NAME_MAX + 1])
{
    static const char *const names[] = {"a", "d", "b", "e", "c", "out", "..", "d/b", ""};
    uint8_t n = next(in);
    if (n < ARRAY_LEN(names)) {
        memcpy(out, names[n], strlen(names[n]) + 1);
        return;
    }
    memset(out, 'x', NAME_MAX + 1);
    for (size_t i = 0; i < n; i++)
        out[i] = (char)next(in);
}

static void fill(struct share_state *s, struct input *in)
{
    while (share_state_add_node(s) < RECORDS)
        ;
    while (share_state_add_handle(s) < RECORDS)
        ;
    for (uint32_t i = ROOT_SLOT + 1; i < s->n_nodes && in->left > 0; i++) {
        struct state_node *n = &s->nodes[i];
        *n = (struct state_node){.volume = volume(in), .parent = next(in), .type = type(in)};
        n->lookups = next(in);
        n->ino = next(in);
        name(in, n->name);
    }
    for (uint32_t i = 0; i < s->n_handles && in->left > 0; i++)
        s->handles[i] = (struct state_handle){.volume = volume(in),
                                              .node = next(in),
                                              .type = type(in),
                                              .flags = next(in) << 8 | next(in),
                                              .ino = next(in)};
}

/* Is the descriptor of something below the volume? */
static void check_place(int fd, uint32_t id, mode_t want)
{
    char link[40];
    char path[LIMIT_PATH + 1];
    struct stat st;
    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n < 0 || fstat(fd, &st) < 0 || (st.st_mode & S_IFMT) != want)
        abort();
    path[n] = '\0';
    auto_free char *root = fs_format(SHARE_VOLUME, id);
    if (!str_starts(path, root) || (path[strlen(root)] != '/' && path[strlen(root)] != '\0'))
        abort();
}

static bool exists(uint32_t id)
{
    return id == first_volume() || id == first_volume() + 1;
}

static void use(struct table *t, uint32_t id)
{
    auto_free char *path = fs_format(SHARE_VOLUME, id);
    struct stat st;
    auto_close int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        abort();
    struct inode root = {.key = {.dev = st.st_dev, .ino = st.st_ino, .volume = id},
                         .fd = fd,
                         .type = S_IFDIR,
                         .slot = ROOT_SLOT};
    table_add_root(t, &root);
    for (uint64_t slot = 0; slot < RECORDS + 8; slot++) {
        const struct inode *i = table_inode(t, &root, (uint64_t)t->state.epoch << 32 | slot);
        if (i != NULL)
            check_place(i->fd, id, i->type);
        for (int dir = 0; dir < 2; dir++) {
            struct handle *h = table_handle(t, &root, (uint64_t)t->state.epoch << 32 | slot,
                                            dir ? S_IFDIR : S_IFREG);
            if (h != NULL)
                check_place(dir ? dirfd(h->dir) : h->fd, id, dir ? S_IFDIR : S_IFREG);
        }
    }
    table_remove_root(t, &root);
    table_drop_volume(t, id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct share_state s;
    struct table t;
    auto_err struct err err = ERR_INIT;
    make_volumes();
    auto_close int fd = memfd_create("state", MFD_CLOEXEC);
    if (fd < 0 || share_state_open(&s, fcntl(fd, F_DUPFD_CLOEXEC, 0), &err) < 0)
        abort();
    uint8_t how = next(&in);
    fill(&s, &in);
    if ((how & 1) != 0)
        share_move_leave(&s);
    share_state_set_moved(&s, true);
    share_state_close(&s);
    /* the head, too */
    for (int i = 0; i < how >> 5; i++) {
        off_t at = next(&in) % 32;
        uint8_t byte = next(&in);
        if (pwrite(fd, &byte, 1, at) != 1)
            abort();
    }
    if (table_open(&t, fcntl(fd, F_DUPFD_CLOEXEC, 0), &err) < 0)
        abort();
    if (share_state_moved(&t.state))
        share_move_arrive(&t.state);
    if (share_state_moved(&t.state) || table_take_over(&t, exists, &err) < 0)
        abort();
    use(&t, first_volume());
    use(&t, first_volume() + 1);
    table_close(&t);
    return 0;
}
