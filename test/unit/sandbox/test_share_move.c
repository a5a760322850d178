/* What a guest knows of a volume, taken to another directory: files are those of the same names,
 * what is missing is stale alone, and no number ever leads to another file than that. */
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "share_fixture.h"

static int new_state(void)
{
    int fd = memfd_create("state", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* The program with descriptors of its own, to its end; the wait status. */
static int run(const char *argument, int three, int five, const char *failpoints)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *fail = fs_format("ASPIS_FAILPOINTS=%s", failpoints);
    struct spawn_proc p = SPAWN_PROC_INIT;
    int go[2];
    int status = -1;
    const char *env[] = {fail, NULL};
    const char *argv[] = {getenv("ASPIS_SHARE"), argument, NULL};
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    struct spawn_fd fds[] = {{2, 2}, {3, three}, {4, go[0]}, {5, five}};
    struct spawn_opts o = {.path = argv[0],
                           .argv = argv,
                           .env = env,
                           .fds = fds,
                           .n_fds = ARRAY_LEN(fds) - (five < 0 ? 1 : 0)};
    assert_int_equal(spawn_start(&o, &p, &err), 0);
    (void)close(go[0]);
    assert_int_equal(write(go[1], "g", 1), 1);
    (void)close(go[1]);
    assert_int_equal(spawn_wait(&p, NULL, &status, &err), 0);
    spawn_clear(&p);
    return status;
}

/* As the daemon does it: the server is killed, and another program settles a copy of its state. */
static int save(struct guest *g)
{
    int copy = new_state();
    spawn_kill(&g->server);
    assert_int_equal(fs_copy_sparse(g->state, copy, NULL), 0);
    assert_int_equal(run("save=test", copy, -1, ""), 0);
    return copy;
}

static char *in_volume(const struct guest *g, const char *name)
{
    return fs_format("%s/%s", g->dir, name);
}

static void make_dir(const struct guest *g, const char *name)
{
    auto_free char *path = in_volume(g, name);
    assert_int_equal(mkdir(path, 0755), 0);
}

static void remove_there(const struct guest *g, const char *name)
{
    auto_free char *path = in_volume(g, name);
    assert_int_equal(remove(path), 0);
}

/* An empty directory takes the volume's place; the old one goes. */
static void empty_volume(struct guest *g)
{
    auto_free char *away = fs_format("%s.old", g->dir);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(rename(g->dir, away), 0);
    assert_int_equal(mkdir(g->dir, 0755), 0);
    /* no inode number of the old one comes up again before all are made */
    make_file(g, "spare", "");
    assert_int_equal(fs_rm_rf(away, &err), 0);
}

static int attributes(struct guest *g, uint64_t node)
{
    struct fuse_getattr_in ga = {0};
    return call(g, FUSE_GETATTR, node, &ga, sizeof(ga));
}

static int read_from(struct guest *g, uint64_t node, uint64_t fh, char out[64])
{
    struct fuse_read_in r = {.fh = fh, .size = 63};
    int e = call(g, FUSE_READ, node, &r, sizeof(r));
    size_t n = g->reply_len - sizeof(struct fuse_out_header);
    memcpy(out, g->reply + sizeof(struct fuse_out_header), e == 0 ? n : 0);
    out[e == 0 ? n : 0] = '\0';
    return e;
}

static void assert_reads(struct guest *g, uint64_t node, uint64_t fh, const char *text)
{
    char is[64];
    assert_int_equal(read_from(g, node, fh, is), 0);
    assert_string_equal(is, text);
}

static void write_to(struct guest *g, uint64_t node, uint64_t fh, const char *text)
{
    char body[sizeof(struct fuse_write_in) + 64];
    struct fuse_write_in w = {.fh = fh, .size = (uint32_t)strlen(text)};
    memcpy(body, &w, sizeof(w));
    memcpy(body + sizeof(w), text, strlen(text));
    assert_int_equal(call(g, FUSE_WRITE, node, body, sizeof(w) + strlen(text)), 0);
}

struct known {
    uint64_t a, d, b, lost, gone, other;
    uint64_t fa, fb, fd, flost, fgone;
};

static void know(struct guest *g, struct known *k)
{
    make_dir(g, "d");
    make_file(g, "a", "a one");
    make_file(g, "d/b", "b one ");
    make_file(g, "lost", "lost");
    make_file(g, "gone", "gone");
    make_file(g, "other", "other");
    init(g);
    k->a = node_of(g, "a");
    k->d = node_of(g, "d");
    k->b = node_in(g, k->d, "b");
    k->lost = node_of(g, "lost");
    k->gone = node_of(g, "gone");
    k->other = node_of(g, "other");
    k->fa = open_node(g, FUSE_OPEN, k->a, O_RDONLY);
    k->fb = open_node(g, FUSE_OPEN, k->b, O_RDWR | O_APPEND);
    k->fd = open_node(g, FUSE_OPENDIR, k->d, O_RDONLY);
    k->flost = open_node(g, FUSE_OPEN, k->lost, O_RDONLY);
    k->fgone = open_node(g, FUSE_OPEN, k->gone, O_RDONLY);
    /* unlinked but open, and another of the name came; the server can still read it */
    remove_there(g, "gone");
    make_file(g, "gone", "the next");
    assert_reads(g, k->gone, k->fgone, "gone");
}

static void populate_again(struct guest *g)
{
    empty_volume(g);
    make_file(g, "gone", "not that");
    make_file(g, "a", "a two");
    make_dir(g, "d");
    make_file(g, "d/b", "b two ");
    make_dir(g, "other");
}

static void check_known(struct guest *g, const struct known *k)
{
    char text[64];
    assert_reads(g, k->a, k->fa, "a two");
    write_to(g, k->b, k->fb, "and more");
    assert_reads(g, k->b, k->fb, "b two and more");
    assert_int_equal(node_of(g, "a"), k->a);
    assert_int_equal(node_of(g, "d"), k->d);
    assert_int_equal(node_in(g, k->d, "b"), k->b);
    struct fuse_read_in rd = {.fh = k->fd, .size = 4096};
    assert_int_equal(call(g, FUSE_READDIR, k->d, &rd, sizeof(rd)), 0);
    /* missing, unlinked before, of another kind */
    assert_int_equal(attributes(g, k->lost), -ESTALE);
    assert_int_equal(attributes(g, k->gone), -ESTALE);
    assert_int_equal(attributes(g, k->other), -ESTALE);
    assert_int_equal(read_from(g, k->lost, k->flost, text), -ESTALE);
    assert_int_equal(read_from(g, k->gone, k->fgone, text), -ESTALE);
    /* what has their names gets other numbers, and theirs stay what they are */
    make_file(g, "lost", "found");
    uint64_t lost = node_of(g, "lost");
    uint64_t gone = node_of(g, "gone");
    uint64_t other = node_of(g, "other");
    assert_true(lost != k->lost && gone != k->gone && other != k->other);
    uint64_t fh = open_node(g, FUSE_OPEN, gone, O_RDONLY);
    assert_true(fh != k->fgone && fh != k->flost);
    assert_reads(g, gone, fh, "not that");
    assert_int_equal(attributes(g, k->lost), -ESTALE);
    assert_int_equal(read_from(g, k->lost, k->flost, text), -ESTALE);
    struct fuse_release_in rel = {.fh = k->flost};
    assert_int_equal(call(g, FUSE_RELEASE, k->lost, &rel, sizeof(rel)), 0);
    assert_int_equal(read_from(g, k->lost, k->flost, text), -EBADF);
}

static void test_files_follow_their_names(void **state)
{
    static struct guest g;
    struct known k;
    (void)state;
    start_with(&g, new_state(), NULL);
    know(&g, &k);
    int copy = save(&g);
    populate_again(&g);
    (void)close(g.state);
    g.state = copy;
    start_again(&g, NULL);
    init(&g);
    check_known(&g, &k);
    /* and from server to server, as ever */
    start_again(&g, NULL);
    init(&g);
    assert_reads(&g, k.a, k.fa, "a two");
    assert_int_equal(attributes(&g, k.gone), -ESTALE);
    stop(&g);
}

/* Who is saved goes on as it was. */
static void test_the_original_goes_on(void **state)
{
    static struct guest g;
    struct known k;
    (void)state;
    start_with(&g, new_state(), NULL);
    know(&g, &k);
    (void)close(save(&g));
    start_again(&g, NULL);
    init(&g);
    assert_reads(&g, k.a, k.fa, "a one");
    write_to(&g, k.b, k.fb, "more");
    assert_reads(&g, k.b, k.fb, "b one more");
    assert_int_equal(node_of(&g, "lost"), k.lost);
    assert_reads(&g, k.lost, k.flost, "lost");
    assert_int_equal(attributes(&g, k.gone), -ESTALE);
    stop(&g);
}

/* A server that dies on arrival leaves it to the next one. */
static void test_arrival_is_repeated(void **state)
{
    static struct guest g;
    struct known k;
    (void)state;
    start_with(&g, new_state(), NULL);
    know(&g, &k);
    int copy = save(&g);
    populate_again(&g);
    (void)close(g.state);
    g.state = copy;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    static const char *const points[] = {"share.arriving=crash", "share.arrived=crash"};
    for (size_t i = 0; i < ARRAY_LEN(points); i++) {
        /* by the signal, or by its filter, which does not let it send one */
        assert_true(WIFSIGNALED(run("guest=test", ends[0], g.state, points[i])));
    }
    (void)close(ends[0]);
    (void)close(ends[1]);
    start_again(&g, NULL);
    init(&g);
    check_known(&g, &k);
    stop(&g);
}

/* Directories that were renamed, and two files that are one in the new volume. */
static void test_names_at_the_moment_count(void **state)
{
    static struct guest g;
    (void)state;
    start_with(&g, new_state(), NULL);
    make_dir(&g, "d");
    make_dir(&g, "d/e");
    make_file(&g, "d/e/x", "x one");
    make_file(&g, "one", "1");
    make_file(&g, "two", "2");
    init(&g);
    uint64_t d = node_of(&g, "d");
    uint64_t e = node_in(&g, d, "e");
    uint64_t x = node_in(&g, e, "x");
    uint64_t one = node_of(&g, "one");
    uint64_t two = node_of(&g, "two");
    struct {
        struct fuse_rename2_in in;
        char names[6];
    } r = {.in = {.newdir = 1}, .names = "e\0new"};
    assert_int_equal(call(&g, FUSE_RENAME2, d, &r, sizeof(r.in) + sizeof(r.names)), 0);
    int copy = save(&g);
    empty_volume(&g);
    make_dir(&g, "d");
    make_dir(&g, "d/e");
    make_file(&g, "d/e/x", "wrong");
    make_dir(&g, "new");
    make_file(&g, "new/x", "x two");
    make_file(&g, "one", "12");
    auto_free char *from = in_volume(&g, "one");
    auto_free char *to = in_volume(&g, "two");
    assert_int_equal(link(from, to), 0);
    (void)close(g.state);
    g.state = copy;
    start_again(&g, NULL);
    init(&g);
    assert_reads(&g, x, open_node(&g, FUSE_OPEN, x, O_RDONLY), "x two");
    assert_int_equal(node_of(&g, "new"), e);
    assert_true((attributes(&g, one) == 0) != (attributes(&g, two) == 0));
    assert_int_equal(node_of(&g, "one"), node_of(&g, "two"));
    stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_follow_their_names),
        cmocka_unit_test(test_the_original_goes_on),
        cmocka_unit_test(test_arrival_is_repeated),
        cmocka_unit_test(test_names_at_the_moment_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
