/* A file server killed at each step of each change, and its successor, which is told the same
 * again: nothing is lost, nothing happens twice, and the caller hears what is true. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "share_fixture.h"

/* --- the volume: a directory d with one, two, empty/, and what each change makes of it --- */

static char *in_dir(const struct guest *g, const char *name)
{
    return fs_format("%s/d/%s", g->dir, name);
}

static bool is_there(const struct guest *g, const char *name)
{
    struct stat st;
    auto_free char *path = in_dir(g, name);
    return lstat(path, &st) == 0;
}

static void assert_text(const struct guest *g, const char *name, const char *text)
{
    auto_free char *path = in_dir(g, name);
    auto_free char *is = fs_read(path, KiB(4), NULL, NULL);
    assert_non_null(is);
    assert_string_equal(is, text);
}

static mode_t mode_of(const struct guest *g, const char *name)
{
    struct stat st;
    auto_free char *path = in_dir(g, name);
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode;
}

static void populate(struct guest *g)
{
    auto_free char *dir = in_dir(g, "");
    auto_free char *empty = in_dir(g, "empty");
    assert_int_equal(mkdir(dir, 0755), 0);
    assert_int_equal(mkdir(empty, 0755), 0);
    make_file(g, "d/one", "1");
    make_file(g, "d/two", "2");
}

/* --- requests --- */

struct request {
    uint32_t opcode;
    uint64_t node;
    uint64_t unique;
    size_t len;
    char body[512];
};

static void add(struct request *r, const void *data, size_t len)
{
    assert_true(r->len + len <= sizeof(r->body));
    memcpy(r->body + r->len, data, len);
    r->len += len;
}

static void add_name(struct request *r, const char *name)
{
    add(r, name, strlen(name) + 1);
}

/* What there is to work with, from before the server dies. */
struct known {
    uint64_t dir, one, append, rw;
};

static void ask_rename(struct request *r, const struct known *k, const char *from, const char *to,
                       uint32_t flags)
{
    struct fuse_rename2_in in = {.newdir = k->dir, .flags = flags};
    *r = (struct request){.opcode = FUSE_RENAME2, .node = k->dir};
    add(r, &in, sizeof(in));
    add_name(r, from);
    add_name(r, to);
}

static void rename_over(struct request *r, const struct known *k)
{
    ask_rename(r, k, "one", "two", 0);
}

static void check_rename_over(const struct guest *g)
{
    assert_false(is_there(g, "one"));
    assert_text(g, "two", "1");
}

static void rename_exchange(struct request *r, const struct known *k)
{
    ask_rename(r, k, "one", "two", RENAME_EXCHANGE);
}

static void check_exchange(const struct guest *g)
{
    assert_text(g, "one", "2");
    assert_text(g, "two", "1");
}

static void rename_noreplace(struct request *r, const struct known *k)
{
    ask_rename(r, k, "one", "three", RENAME_NOREPLACE);
}

static void check_noreplace(const struct guest *g)
{
    assert_false(is_there(g, "one"));
    assert_text(g, "three", "1");
}

static void rename_onto(struct request *r, const struct known *k)
{
    ask_rename(r, k, "one", "two", RENAME_NOREPLACE);
}

static void rename_absent(struct request *r, const struct known *k)
{
    ask_rename(r, k, "absent", "two", 0);
}

static void check_untouched(const struct guest *g)
{
    assert_text(g, "one", "1");
    assert_text(g, "two", "2");
    assert_true(is_there(g, "empty"));
}

static void ask_names(struct request *r, const struct known *k, uint32_t opcode, const char *name)
{
    *r = (struct request){.opcode = opcode, .node = k->dir};
    add_name(r, name);
}

static void unlink_one(struct request *r, const struct known *k)
{
    ask_names(r, k, FUSE_UNLINK, "one");
}

static void check_no_one(const struct guest *g)
{
    assert_false(is_there(g, "one"));
    assert_text(g, "two", "2");
}

static void unlink_absent(struct request *r, const struct known *k)
{
    ask_names(r, k, FUSE_UNLINK, "absent");
}

static void rmdir_empty(struct request *r, const struct known *k)
{
    ask_names(r, k, FUSE_RMDIR, "empty");
}

static void check_no_empty(const struct guest *g)
{
    assert_false(is_there(g, "empty"));
}

static void ask_mkdir(struct request *r, const struct known *k, const char *name)
{
    struct fuse_mkdir_in in = {.mode = 0711};
    *r = (struct request){.opcode = FUSE_MKDIR, .node = k->dir};
    add(r, &in, sizeof(in));
    add_name(r, name);
}

static void mkdir_new(struct request *r, const struct known *k)
{
    ask_mkdir(r, k, "new");
}

static void check_new_dir(const struct guest *g)
{
    assert_int_equal(mode_of(g, "new"), S_IFDIR | 0711);
}

static void mkdir_existing(struct request *r, const struct known *k)
{
    ask_mkdir(r, k, "empty");
}

static void mknod_new(struct request *r, const struct known *k)
{
    struct fuse_mknod_in in = {.mode = S_IFIFO | 04640};
    *r = (struct request){.opcode = FUSE_MKNOD, .node = k->dir};
    add(r, &in, sizeof(in));
    add_name(r, "new");
}

static void check_new_fifo(const struct guest *g)
{
    assert_int_equal(mode_of(g, "new") & S_IFMT, S_IFIFO);
}

static void symlink_new(struct request *r, const struct known *k)
{
    ask_names(r, k, FUSE_SYMLINK, "new");
    add_name(r, "one");
}

static void check_new_link(const struct guest *g)
{
    assert_int_equal(mode_of(g, "new") & S_IFMT, S_IFLNK);
    assert_text(g, "new", "1");
}

static void link_new(struct request *r, const struct known *k)
{
    struct fuse_link_in in = {.oldnodeid = k->one};
    *r = (struct request){.opcode = FUSE_LINK, .node = k->dir};
    add(r, &in, sizeof(in));
    add_name(r, "new");
}

static void check_hard_link(const struct guest *g)
{
    struct stat st;
    auto_free char *path = in_dir(g, "new");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 2);
    assert_text(g, "new", "1");
}

static void ask_create(struct request *r, const struct known *k, const char *name)
{
    struct fuse_create_in in = {.flags = O_CREAT | O_EXCL | O_RDWR, .mode = S_IFREG | 04755};
    *r = (struct request){.opcode = FUSE_CREATE, .node = k->dir};
    add(r, &in, sizeof(in));
    add_name(r, name);
}

static void create_new(struct request *r, const struct known *k)
{
    ask_create(r, k, "new");
}

static void check_created(const struct guest *g)
{
    assert_int_equal(mode_of(g, "new"), S_IFREG | 04755);
}

static void create_existing(struct request *r, const struct known *k)
{
    ask_create(r, k, "one");
}

static void open_truncating(struct request *r, const struct known *k)
{
    struct fuse_open_in in = {.flags = O_WRONLY | O_TRUNC};
    *r = (struct request){.opcode = FUSE_OPEN, .node = k->one};
    add(r, &in, sizeof(in));
}

static void check_empty_one(const struct guest *g)
{
    assert_text(g, "one", "");
}

static void truncate_longer(struct request *r, const struct known *k)
{
    struct fuse_setattr_in in = {.valid = FATTR_SIZE | FATTR_MODE, .size = 2, .mode = 0600};
    *r = (struct request){.opcode = FUSE_SETATTR, .node = k->one};
    add(r, &in, sizeof(in));
}

static void check_longer(const struct guest *g)
{
    struct stat st;
    auto_free char *path = in_dir(g, "one");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 2);
    assert_int_equal(st.st_mode & 07777, 0600);
}

static void ask_write(struct request *r, uint64_t node, uint64_t fh, uint64_t at)
{
    struct fuse_write_in in = {.fh = fh, .offset = at, .size = 5};
    *r = (struct request){.opcode = FUSE_WRITE, .node = node};
    add(r, &in, sizeof(in));
    add(r, "words", 5);
}

static void write_appending(struct request *r, const struct known *k)
{
    ask_write(r, k->one, k->append, 1);
}

static void write_in_place(struct request *r, const struct known *k)
{
    ask_write(r, k->one, k->rw, 1);
}

static void check_words(const struct guest *g)
{
    assert_text(g, "one", "1words");
}

static void ask_attribute(struct request *r, const struct known *k, const char *name)
{
    uint32_t in[2] = {2, XATTR_CREATE};
    *r = (struct request){.opcode = FUSE_SETXATTR, .node = k->one};
    add(r, in, sizeof(in));
    add_name(r, name);
    add(r, "ab", 2);
}

static void set_attribute(struct request *r, const struct known *k)
{
    ask_attribute(r, k, "user.new");
}

static void check_attribute(const struct guest *g)
{
    char value[8];
    auto_free char *path = in_dir(g, "one");
    assert_int_equal(getxattr(path, "user.new", value, sizeof(value)), 2);
    assert_memory_equal(value, "ab", 2);
}

static void set_existing_attribute(struct request *r, const struct known *k)
{
    ask_attribute(r, k, "user.old");
}

static void remove_attribute(struct request *r, const struct known *k)
{
    *r = (struct request){.opcode = FUSE_REMOVEXATTR, .node = k->one};
    add_name(r, "user.old");
}

static void check_no_attribute(const struct guest *g)
{
    auto_free char *path = in_dir(g, "one");
    assert_int_equal(getxattr(path, "user.old", NULL, 0), -1);
    assert_int_equal(errno, ENODATA);
}

static const struct change {
    const char *name;
    void (*make)(struct request *r, const struct known *k);
    int error;
    void (*check)(const struct guest *g);
    bool xattr;
} changes[] = {
    {"rename over another", rename_over, 0, check_rename_over, false},
    {"rename, exchanging", rename_exchange, 0, check_exchange, false},
    {"rename to a new name", rename_noreplace, 0, check_noreplace, false},
    {"rename onto what is there", rename_onto, -EEXIST, check_untouched, false},
    {"rename what is not there", rename_absent, -ENOENT, check_untouched, false},
    {"unlink", unlink_one, 0, check_no_one, false},
    {"unlink what is not there", unlink_absent, -ENOENT, check_untouched, false},
    {"rmdir", rmdir_empty, 0, check_no_empty, false},
    {"mkdir", mkdir_new, 0, check_new_dir, false},
    {"mkdir of what is there", mkdir_existing, -EEXIST, check_untouched, false},
    {"mknod", mknod_new, 0, check_new_fifo, false},
    {"symlink", symlink_new, 0, check_new_link, false},
    {"link", link_new, 0, check_hard_link, false},
    {"create", create_new, 0, check_created, false},
    {"create what is there", create_existing, -EEXIST, check_untouched, false},
    {"open, truncating", open_truncating, 0, check_empty_one, false},
    {"set size and mode", truncate_longer, 0, check_longer, false},
    {"append", write_appending, 0, check_words, false},
    {"write", write_in_place, 0, check_words, false},
    {"set an attribute", set_attribute, 0, check_attribute, true},
    {"set one that is there", set_existing_attribute, -EEXIST, check_untouched, true},
    {"remove an attribute", remove_attribute, 0, check_no_attribute, true},
};

/* --- the servers --- */

static const char *const steps[] = {"begun", "made", "acted", "noted", "said"};

static int new_state(void)
{
    int fd = memfd_create("state", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* What the successor's answer must lead to, when it leads to something. */
static void use_answer(struct guest *g, const struct request *r, const struct known *k)
{
    const char *body = g->reply + sizeof(struct fuse_out_header);
    struct fuse_getattr_in ga = {0};
    struct fuse_entry_out e;
    struct fuse_open_out o;
    struct fuse_write_out w;
    if (r->opcode == FUSE_WRITE) {
        memcpy(&w, body, sizeof(w));
        assert_int_equal(w.size, 5);
    } else if (r->opcode == FUSE_OPEN || r->opcode == FUSE_CREATE) {
        memcpy(&e, body, sizeof(e));
        memcpy(&o, body + (r->opcode == FUSE_CREATE ? sizeof(e) : 0), sizeof(o));
        struct request write;
        ask_write(&write, k->one, o.fh, 0);
        assert_int_equal(call(g, write.opcode, write.node, write.body, write.len), 0);
    } else if (r->opcode == FUSE_MKDIR || r->opcode == FUSE_LINK || r->opcode == FUSE_MKNOD) {
        memcpy(&e, body, sizeof(e));
        assert_int_equal(call(g, FUSE_GETATTR, e.nodeid, &ga, sizeof(ga)), 0);
    }
}

/* A server that knows d, one and two open files dies; the next dies of the change, the third is
 * told of it once more. */
static void try(const struct change *c, const char *step)
{
    static struct guest g;
    struct request r;
    auto_free char *fail = fs_format("share.%s=crash", step);
    start_with(&g, new_state(), NULL);
    populate(&g);
    auto_free char *one = in_dir(&g, "one");
    bool attributes = setxattr(one, "user.old", "x", 1, 0) == 0;
    init(&g);
    struct known k = {.dir = node_of(&g, "d")};
    k.one = node_in(&g, k.dir, "one");
    k.append = open_node(&g, FUSE_OPEN, k.one, O_WRONLY | O_APPEND);
    k.rw = open_node(&g, FUSE_OPEN, k.one, O_RDWR);
    if (attributes || !c->xattr) {
        start_again(&g, fail);
        init(&g);
        c->make(&r, &k);
        r.unique = g.unique += 2;
        ask_as(&g, r.unique, r.opcode, r.node, r.body, r.len);
        int heard = hear(&g);
        assert_true(heard == c->error || heard == 1);
#ifdef ASPIS_FAILPOINTS
        assert_true((heard == 1) == (strcmp(step, "said") != 0) || strcmp(step, "made") == 0);
#endif
        start_again(&g, NULL);
        init(&g);
        g.unique = r.unique; /* for hear() */
        ask_as(&g, r.unique, r.opcode, r.node, r.body, r.len);
        heard = hear(&g);
        if (heard != c->error)
            fail_msg("%s, killed when it was %s: %d", c->name, step, heard);
        c->check(&g);
        g.unique += 2; /* INIT's */
        if (heard == 0)
            use_answer(&g, &r, &k);
    }
    stop(&g);
}

static void test_changes_happen_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(changes); i++)
        for (size_t s = 0; s < ARRAY_LEN(steps); s++)
            try(&changes[i], steps[s]);
}

/* Another request that asks for the same is another one. */
static void test_what_is_new_is_done(void **state)
{
    static struct guest g;
    struct request r;
    (void)state;
    start_with(&g, new_state(), NULL);
    populate(&g);
    init(&g);
    struct known k = {.dir = node_of(&g, "d")};
    mkdir_new(&r, &k);
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), 0);
    start_again(&g, NULL);
    init(&g);
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), -EEXIST);
    unlink_one(&r, &k);
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), 0);
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), -ENOENT);
    stop(&g);
}

static void assert_read(struct guest *g, uint64_t node, uint64_t fh, const char *text)
{
    struct fuse_read_in r = {.fh = fh, .size = 4096};
    assert_int_equal(call(g, FUSE_READ, node, &r, sizeof(r)), 0);
    assert_int_equal(g->reply_len, sizeof(struct fuse_out_header) + strlen(text));
    assert_memory_equal(g->reply + sizeof(struct fuse_out_header), text, strlen(text));
}

/* Numbers go on to mean what they meant, through renames, and nothing else. */
static void test_numbers_stay(void **state)
{
    static struct guest g;
    struct request r;
    struct fuse_getattr_in ga = {0};
    (void)state;
    start_with(&g, new_state(), NULL);
    populate(&g);
    init(&g);
    struct known k = {.dir = node_of(&g, "d")};
    k.one = node_in(&g, k.dir, "one");
    uint64_t two = node_in(&g, k.dir, "two");
    uint64_t fh = open_node(&g, FUSE_OPEN, k.one, O_RDWR);
    uint64_t dh = open_node(&g, FUSE_OPENDIR, k.dir, O_RDONLY);
    rename_exchange(&r, &k);
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), 0);
    struct fuse_rename2_in in = {.newdir = 1};
    r = (struct request){.opcode = FUSE_RENAME2, .node = 1};
    add(&r, &in, sizeof(in));
    add_name(&r, "d");
    add_name(&r, "elsewhere");
    assert_int_equal(call(&g, r.opcode, r.node, r.body, r.len), 0);
    start_again(&g, NULL);
    init(&g);
    assert_read(&g, k.one, fh, "1");
    assert_read(&g, two, open_node(&g, FUSE_OPEN, two, O_RDONLY), "2");
    struct fuse_read_in rd = {.fh = dh, .size = 4096};
    assert_int_equal(call(&g, FUSE_READDIR, k.dir, &rd, sizeof(rd)), 0);
    assert_true(g.reply_len > sizeof(struct fuse_out_header));
    /* another file under its name is not it */
    make_file(&g, "elsewhere/new", "new");
    auto_free char *from = fs_format("%s/elsewhere/new", g.dir);
    auto_free char *to = fs_format("%s/elsewhere/one", g.dir);
    assert_int_equal(rename(from, to), 0);
    start_again(&g, NULL);
    init(&g);
    assert_int_equal(call(&g, FUSE_GETATTR, two, &ga, sizeof(ga)), -ESTALE);
    assert_read(&g, k.one, fh, "1");
    /* forgotten and closed is forgotten and closed */
    struct fuse_release_in rel = {.fh = fh};
    assert_int_equal(call(&g, FUSE_RELEASE, k.one, &rel, sizeof(rel)), 0);
    struct fuse_forget_in f = {.nlookup = 1};
    ask(&g, FUSE_FORGET, k.one, &f, sizeof(f));
    assert_int_equal(call(&g, FUSE_GETATTR, k.dir, &ga, sizeof(ga)), 0);
    start_again(&g, NULL);
    init(&g);
    assert_int_equal(call(&g, FUSE_GETATTR, k.one, &ga, sizeof(ga)), -ESTALE);
    rd.fh = fh;
    assert_int_equal(call(&g, FUSE_READ, k.one, &rd, sizeof(rd)), -EBADF);
    stop(&g);
}

/* The clock that files are stamped with goes in steps of some milliseconds. */
static void await_another_stamp(void)
{
    struct timespec was;
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &was);
    do
        (void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
    while (now.tv_sec == was.tv_sec && now.tv_nsec == was.tv_nsec);
}

/* A new file d/again with that inode number; false where the file system does not use one again. */
static bool make_with_number(struct guest *g, ino_t number, const char *text)
{
    auto_free char *again = in_dir(g, "again");
    for (int i = 0; i < 200; i++) {
        auto_free char *name = fs_format("d/try%d", i);
        auto_free char *path = fs_format("%s/%s", g->dir, name);
        struct stat st;
        make_file(g, name, text);
        assert_int_equal(lstat(path, &st), 0);
        if (st.st_ino == number)
            return rename(path, again) == 0;
    }
    return false;
}

/* A removed file's inode number is given to another one, which is not it. */
static void test_a_number_used_again(void **state)
{
    static const bool directories[] = {false, true};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(directories); i++) {
        static struct guest g;
        struct fuse_getattr_in ga = {0};
        const char *was = directories[i] ? "empty" : "one";
        struct stat st;
        start_with(&g, new_state(), NULL);
        populate(&g);
        init(&g);
        uint64_t dir = node_of(&g, "d");
        uint64_t old = node_in(&g, dir, was);
        uint64_t fh = open_node(&g, directories[i] ? FUSE_OPENDIR : FUSE_OPEN, old, O_RDONLY);
        auto_free char *path = in_dir(&g, was);
        assert_int_equal(lstat(path, &st), 0);
        spawn_kill(&g.server);
        assert_int_equal(remove(path), 0);
        await_another_stamp();
        if (!make_with_number(&g, st.st_ino, "new")) {
            stop(&g);
            skip();
        }
        start_again(&g, NULL);
        init(&g);
        dir = node_of(&g, "d");
        uint64_t now = node_in(&g, dir, "again");
        assert_int_not_equal(now, old);
        assert_read(&g, now, open_node(&g, FUSE_OPEN, now, O_RDONLY), "new");
        assert_int_equal(call(&g, FUSE_GETATTR, old, &ga, sizeof(ga)), -ESTALE);
        struct fuse_read_in rd = {.fh = fh, .size = 4096};
        assert_int_equal(call(&g, directories[i] ? FUSE_READDIR : FUSE_READ, old, &rd, sizeof(rd)),
                         -ESTALE);
        /* nor does the next server mix them up */
        start_again(&g, NULL);
        init(&g);
        assert_read(&g, now, open_node(&g, FUSE_OPEN, now, O_RDONLY), "new");
        assert_int_equal(call(&g, FUSE_GETATTR, old, &ga, sizeof(ga)), -ESTALE);
        stop(&g);
    }
}

/* What is in the file is not believed blindly; a server serves whatever it holds. */
static void test_damaged_state(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 40; seed++) {
        static struct guest g;
        struct fuse_getattr_in ga = {0};
        unsigned random = seed * 2654435761U;
        start_with(&g, new_state(), NULL);
        populate(&g);
        init(&g);
        uint64_t dir = node_of(&g, "d");
        uint64_t one = node_in(&g, dir, "one");
        uint64_t fh = open_node(&g, FUSE_OPEN, one, O_RDWR);
        spawn_kill(&g.server);
        for (int i = 0; i < 400; i++) {
            /* the head, deeds, handles and nodes: whatever has been allocated */
            random = random * 1664525U + 1013904223U;
            off_t data = lseek(g.state, (off_t)(random % 9000000U), SEEK_DATA);
            char c = (char)(random >> 24);
            /* not the counter of failed starts, and little of the head: it would begin anew */
            if (data > 64 || (data >= 0 && i % 97 == 0))
                assert_int_equal(pwrite(g.state, &c, 1, data + (off_t)(random >> 20 & 1023)), 1);
        }
        start_again(&g, NULL);
        init(&g);
        (void)call(&g, FUSE_GETATTR, one, &ga, sizeof(ga));
        struct fuse_read_in rd = {.fh = fh, .size = 4096};
        assert_int_not_equal(call(&g, FUSE_READ, one, &rd, sizeof(rd)), 1);
        assert_int_equal(call(&g, FUSE_GETATTR, 1, &ga, sizeof(ga)), 0);
        uint64_t again = node_in(&g, node_of(&g, "d"), "one");
        assert_read(&g, again, open_node(&g, FUSE_OPEN, again, O_RDONLY), "1");
        stop(&g);
    }
    /* no state at all */
    static struct guest g;
    int fd = new_state();
    assert_int_equal(write(fd, "something else", 14), 14);
    start_with(&g, fd, NULL);
    init(&g);
    stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes_happen_once), cmocka_unit_test(test_what_is_new_is_done),
        cmocka_unit_test(test_numbers_stay),        cmocka_unit_test(test_a_number_used_again),
        cmocka_unit_test(test_damaged_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
