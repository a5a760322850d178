/*
 * aspis-share - the file server of one pod's volumes. Started by share.c in a jail:
 *     aspis-share guest=NAME
 * Descriptor 3 is the connection to the pod's `fs` channel, 4 a pipe from which one byte says that
 * the daemon has this process on record (its end instead: nobody would ever find it, so it ends).
 * 5, if there is one, a file in which a server leaves to the next what the guest knows
 * (share_state.h). Volume N is mounted at /tmp/N by the daemon, its ids are in /tmp/N.ids. NAME
 * only shows in ps.
 *
 * It ends when the VM hangs up, or says no sense: then the daemon starts another one.
 *
 *     aspis-share save=NAME
 * makes a copy of such a file, descriptor 3, one that another pod can go on from (share_move.h).
 * Descriptor 4 is the same pipe, and the volumes are where they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/lockdown.h"
#include "sandbox/share_check.h"
#include "sandbox/share_fs.h"
#include "sandbox/share_move.h"
#include "sandbox/share_ns.h"
#include "sandbox/share_wire.h"

enum { CHANNEL_FD = 3, COPY_FD = 3, GO_FD = 4, STATE_FD = 5 };

struct mounted {
    uint32_t id;
    struct server *server;
    struct volume *volume;
    UT_hash_handle hh;
};

struct server {
    struct share_wire wire;
    struct table table;
    struct deeds deeds;
    struct mounted *volumes;
    bool lost; /* a reply could not be sent */
};

static int send_message(void *arg, const struct iovec *iov, int n)
{
    struct mounted *m = arg;
    if (m->server->wire.unanswered)
        return 0;
    if (m->server->lost || share_wire_send(&m->server->wire, m->id, iov, n) < 0)
        m->server->lost = true;
    return m->server->lost ? -1 : 0;
}

static void reply_error(struct server *s, uint32_t id, uint64_t unique, int error)
{
    struct fuse_out_header h = {.len = sizeof(h), .error = -error, .unique = unique};
    struct iovec iov = {.iov_base = &h, .iov_len = sizeof(h)};
    if (share_wire_send(&s->wire, id, &iov, 1) < 0)
        s->lost = true;
}

static void close_volume(struct server *s, struct mounted *m)
{
    HASH_DEL(s->volumes, m);
    volume_free(m->volume);
    free(m);
}

/* Beside the volume, when its ids are others than the files'. */
static int read_ids(uint32_t id, struct volume_ids *ids, struct err *err)
{
    char path[32];
    (void)snprintf(path, sizeof(path), SHARE_IDS_FILE, id);
    auto_close int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    auto_free char *text = fd >= 0 ? fs_read_fd(fd, 128, NULL, err) : NULL;
    if (text == NULL ||
        sscanf(text, "%10u %10u %10u %10u", &ids->uid, &ids->n_uids, &ids->gid, &ids->n_gids) != 4)
        return err_set(err, ERR_DATA_LOSS, "ids of volume %u", id);
    return 0;
}

/* A volume is opened when the guest's kernel says INIT. */
static struct mounted *open_volume(struct server *s, uint32_t id, struct err *err)
{
    char path[24];
    if (HASH_COUNT(s->volumes) >= LIMIT_FS_VOLUMES) {
        (void)err_sys(err, ENFILE, "more than %d volumes", LIMIT_FS_VOLUMES);
        return NULL;
    }
    (void)snprintf(path, sizeof(path), SHARE_VOLUME, id);
    auto_close int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        (void)err_sys(err, errno, "volume %u", id);
        return NULL;
    }
    struct mounted *m = xcalloc(1, sizeof(*m));
    m->id = id;
    m->server = s;
    struct volume_spec spec = {.id = id, .table = &s->table, .deeds = &s->deeds};
    if (read_ids(id, &spec.ids, err) == 0)
        m->volume = volume_new(&spec, take_fd(&fd), send_message, m, err);
    if (m->volume == NULL) {
        free(m);
        return NULL;
    }
    HASH_ADD(hh, s->volumes, id, sizeof(m->id), m);
    return m;
}

/* -1 when the guest is hostile. */
static int handle(struct server *s, uint32_t id, struct err *err)
{
    struct mounted *m = NULL;
    struct fuse_in_header h;
    char *message = s->wire.message.data;
    size_t len = s->wire.message.len;
    HASH_FIND(hh, s->volumes, &id, sizeof(id), m);
    enum share_verdict verdict = share_check(message, len, m != NULL && volume_started(m->volume));
    if (verdict == SHARE_HOSTILE)
        return err_set(err, ERR_DATA_LOSS, "a FUSE request of %zu bytes that no kernel sends", len);
    memcpy(&h, message, sizeof(h));
    if (verdict == SHARE_IGNORE)
        return 0;
    if (m == NULL && verdict == SHARE_PASS) {
        auto_err struct err why = ERR_INIT;
        m = open_volume(s, id, &why);
        if (m == NULL) {
            reply_error(s, id, h.unique, ENODEV);
            return 0;
        }
    }
    if (verdict == SHARE_UNKNOWN)
        reply_error(s, id, h.unique, ENOSYS);
    else
        volume_request(m->volume, message, len);
    if (h.opcode != FUSE_INIT && verdict == SHARE_PASS)
        share_state_good(&s->table.state);
    return 0;
}

static bool volume_exists(uint32_t id)
{
    char path[24];
    struct stat st;
    (void)snprintf(path, sizeof(path), SHARE_VOLUME, id);
    return lstat(path, &st) == 0;
}

static int serve(struct server *s, struct err *err)
{
    while (!s->lost) {
        uint32_t id = 0;
        switch (share_wire_next(&s->wire, &id, err)) {
        case SHARE_MESSAGE:
            if (handle(s, id, err) < 0)
                return -1;
            break;
        case SHARE_CLOSED: {
            struct mounted *m = NULL;
            HASH_FIND(hh, s->volumes, &id, sizeof(id), m);
            if (m != NULL)
                close_volume(s, m);
            table_drop_volume(&s->table, id);
            break;
        }
        case SHARE_END:
            return 0;
        case SHARE_BROKEN:
        default:
            return -1;
        }
    }
    return 0;
}

/* What share_fs and share_wire do, and nothing that makes a process, a socket or a mount, or looks
 * at another process. */
static int confine(struct err *err)
{
    static const int calls[] = {
        /* the channel, the log */
        SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(read),
        SCMP_SYS(write), SCMP_SYS(dup), SCMP_SYS(fcntl), SCMP_SYS(getuid),
        /* files */
        SCMP_SYS(open), SCMP_SYS(openat), SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(lseek),
        SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(ftruncate), SCMP_SYS(truncate),
        SCMP_SYS(fallocate), SCMP_SYS(getdents64), SCMP_SYS(munmap),
        /* attributes */
        SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(fstatfs), SCMP_SYS(chmod),
        SCMP_SYS(fchmodat), SCMP_SYS(fchownat), SCMP_SYS(utimensat), SCMP_SYS(getxattr),
        SCMP_SYS(setxattr), SCMP_SYS(listxattr), SCMP_SYS(removexattr),
        /* names */
        SCMP_SYS(readlinkat), SCMP_SYS(mknodat), SCMP_SYS(mkdirat), SCMP_SYS(symlinkat),
        SCMP_SYS(linkat), SCMP_SYS(unlinkat), SCMP_SYS(renameat), SCMP_SYS(renameat2)};
    return lock_down(calls, ARRAY_LEN(calls), err);
}

static bool told_to_go(void)
{
    char c;
    ssize_t n;
    do
        n = read(GO_FD, &c, 1);
    while (n < 0 && errno == EINTR);
    (void)close(GO_FD);
    return n == 1;
}

static int save_copy(struct err *err)
{
    struct share_state state;
    if (fcntl(COPY_FD, F_SETFD, FD_CLOEXEC) < 0)
        return err_sys(err, errno, "the copy");
    if (share_state_open(&state, COPY_FD, err) < 0)
        return -1;
    int r = confine(err);
    if (r == 0)
        share_move_leave(&state);
    share_state_close(&state);
    return r;
}

/* Until the VM hangs up. */
static int serve_guest(struct server *s, struct err *err)
{
    share_wire_init(&s->wire, CHANNEL_FD);
    int state = fcntl(STATE_FD, F_SETFD, FD_CLOEXEC) == 0 ? STATE_FD : -1;
    if (table_open(&s->table, state, err) < 0) {
        share_wire_clear(&s->wire);
        return -1;
    }
    int r = confine(err);
    if (r == 0 && share_state_moved(&s->table.state))
        share_move_arrive(&s->table.state);
    if (r == 0)
        r = table_take_over(&s->table, volume_exists, err);
    deeds_open(&s->deeds, &s->table.state);
    if (r == 0)
        r = share_wire_sync(&s->wire, err);
    if (r == 0)
        r = serve(s, err);
    struct mounted *m;
    struct mounted *next;
    HASH_ITER(hh, s->volumes, m, next) // NOLINT
    close_volume(s, m);
    deeds_close(&s->deeds);
    table_close(&s->table);
    share_wire_clear(&s->wire);
    return r;
}

int main(int argc, char **argv)
{
    auto_err struct err err = ERR_INIT;
    struct server s = {.lost = false};
    bool saves = argc == 2 && str_starts(argv[1], "save=");
    if (argc != 2 || fcntl(CHANNEL_FD, F_GETFD) < 0) {
        (void)fputs(
            "Usage: aspis-share guest=NAME | save=NAME\nPart of Aspis; started by aspisd.\n",
            stderr);
        return 2;
    }
    (void)prctl(PR_SET_DUMPABLE, 0);
    (void)signal(SIGPIPE, SIG_IGN); // NOLINT(cert-err33-c)
    (void)signal(SIGXFSZ, SIG_IGN); // NOLINT(cert-err33-c)
    (void)umask(0);                 /* modes come from the guest, its umask applied */
    if (!told_to_go())
        return saves ? 1 : 0;
    int r = saves ? save_copy(&err) : serve_guest(&s, &err);
    if (r < 0)
        (void)fprintf(stderr, "%s\n", err_msg(&err));
    (void)fflush(stderr);
    _exit(r < 0 ? 1 : 0); /* a leak checker has no /proc of ours to look into */
}
