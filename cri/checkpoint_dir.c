#include "cri/checkpoint_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define STATE "vm"
#define SCRATCH "scratch"
#define VOLUMES "volumes"
#define MANIFEST "manifest.json"
#define MANIFEST_NEW "manifest.json.new"
#define NOTES "checkpoints"
#define BLOCK KiB(64)

static const char *const parts[] = {MANIFEST_NEW, STATE, SCRATCH, VOLUMES};

/* --- the directory --- */

static int check_path(const char *path, struct err *err)
{
    auto_free char *probe = fs_format("%s/", path);
    if (path[0] != '/' || path[1] == '\0' || strlen(path) > LIMIT_PATH ||
        strstr(probe, "/../") != NULL)
        return err_set(err, ERR_INVALID,
                       "checkpoint directory \"%.200s\": an absolute path is needed", path);
    return 0;
}

/* Only its last part may not be a link: who can change what is above it is root already. */
static int open_dir(const char *path, struct err *err)
{
    auto_free char *clean = xstrdup(path);
    for (size_t n = strlen(clean); n > 1 && clean[n - 1] == '/'; n--)
        clean[n - 1] = '\0';
    auto_close int fd = open(clean, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return err_set(err, ERR_PRECONDITION, "checkpoint %.200s is no directory", path);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "checkpoint directory %.200s", path);
    if (st.st_uid != geteuid() || (st.st_mode & 022) != 0)
        return err_set(err, ERR_PRECONDITION,
                       "checkpoint directory %.200s: others than root can change it", path);
    return take_fd(&fd);
}

static int check_empty(const char *path, int dir, struct err *err)
{
    auto_close int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_closedir DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;
    if (d == NULL)
        return err_sys(err, errno, "checkpoint directory %.200s", path);
    (void)take_fd(&fd);
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            return err_set(err, ERR_PRECONDITION, "checkpoint directory %.200s is not empty", path);
    }
    return 0;
}

static int make_file(int dir, const char *name, struct err *err)
{
    int fd = openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : err_sys(err, errno, "make %s", name);
}

/* What it says: whose directory it is to remove with, then the path. */
static int write_note(const struct checkpoint_dir *d, struct err *err)
{
    auto_free char *text = fs_format("%s%s", d->made ? "made " : "kept ", d->path);
    return fs_write_atomic(d->note, text, strlen(text), 0600, true, err);
}

int checkpoint_dir_create(const char *path, const char *state_root, const char *sandbox_id,
                          struct checkpoint_dir *out, struct err *err)
{
    auto_checkpoint_dir struct checkpoint_dir d = CHECKPOINT_DIR_INIT;
    auto_free char *notes = fs_format("%s/" NOTES, state_root);
    if (check_path(path, err) < 0 || fs_mkdir_p(notes, 0700, err) < 0)
        return -1;
    d.path = xstrdup(path);
    d.made = !fs_exists(path);
    d.note = fs_format("%s/%s", notes, sandbox_id);
    /* nothing of what may be there already is ours to remove */
    d.fd = d.made ? -1 : open_dir(path, err);
    if (!d.made && (d.fd < 0 || check_empty(path, d.fd, err) < 0)) {
        d.finished = true;
        free(take(d.note));
        return -1;
    }
    if (write_note(&d, err) < 0)
        return -1;
    if (d.made && mkdir(path, 0700) < 0) {
        d.made = false;
        return err_sys(err, errno, "make checkpoint directory %.200s", path);
    }
    if (d.made && (d.fd = open_dir(path, err)) < 0)
        return -1;
    if (FAILPOINT("checkpoint.files", err) < 0 || (d.state = make_file(d.fd, STATE, err)) < 0 ||
        (d.scratch = make_file(d.fd, SCRATCH, err)) < 0 ||
        (d.volumes = make_file(d.fd, VOLUMES, err)) < 0)
        return err_wrap(err, "checkpoint directory %.200s", path);
    *out = d;
    d = (struct checkpoint_dir)CHECKPOINT_DIR_INIT;
    return 0;
}

int checkpoint_dir_finish(struct checkpoint_dir *d, const char *manifest, struct err *err)
{
    if (FAILPOINT("checkpoint.sync", err) < 0)
        return -1;
    if (fsync(d->state) < 0 || fsync(d->scratch) < 0 || fsync(d->volumes) < 0)
        return err_sys(err, errno, "checkpoint directory %.200s: write", d->path);
    auto_close int fd = make_file(d->fd, MANIFEST_NEW, err);
    if (fd < 0 || fs_write_fd(fd, manifest, strlen(manifest), err) < 0)
        return err_wrap(err, "checkpoint directory %.200s", d->path);
    if (fsync(fd) < 0 || fsync(d->fd) < 0)
        return err_sys(err, errno, "checkpoint directory %.200s: write", d->path);
    if (FAILPOINT("checkpoint.commit", err) < 0)
        return -1;
    if (renameat(d->fd, MANIFEST_NEW, d->fd, MANIFEST) < 0 || fsync(d->fd) < 0)
        return err_sys(err, errno, "checkpoint directory %.200s: write", d->path);
    d->finished = true;
    return 0;
}

/* The files that were being written, and the directory if it was not there before. */
static void empty(int dir, const char *path, bool made)
{
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        (void)unlinkat(dir, parts[i], 0);
    if (made)
        (void)rmdir(path);
}

void checkpoint_dir_clear(struct checkpoint_dir *d)
{
    if (!d->finished && d->fd >= 0) {
        (void)unlinkat(d->fd, MANIFEST, 0); /* renamed, but not known to last */
        empty(d->fd, d->path, d->made);
    }
    if (d->note != NULL)
        (void)unlink(d->note);
    cleanup_closep(&d->state);
    cleanup_closep(&d->scratch);
    cleanup_closep(&d->volumes);
    cleanup_closep(&d->fd);
    free(take(d->path));
    free(take(d->note));
}

/* --- reading --- */

static int open_part(int dir, const char *name, struct err *err)
{
    auto_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    if (fd < 0 && errno == ENOENT)
        return err_set(err, ERR_NOT_FOUND, "it has no file %s", name);
    if (fd < 0 && errno == ELOOP)
        return err_set(err, ERR_PRECONDITION, "%s is a symbolic link", name);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "open %s", name);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return err_set(err, ERR_PRECONDITION, "%s is no file of its own", name);
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return err_set(err, ERR_PRECONDITION, "%s: others than root can read or change it", name);
    return take_fd(&fd);
}

int checkpoint_dir_open(const char *path, struct checkpoint_dir *out, char **manifest, size_t *len,
                        struct err *err)
{
    auto_checkpoint_dir struct checkpoint_dir d = CHECKPOINT_DIR_INIT;
    d.finished = true;
    if (check_path(path, err) < 0)
        return -1;
    d.path = xstrdup(path);
    d.fd = open_dir(path, err);
    if (d.fd < 0)
        return -1;
    auto_close int fd = open_part(d.fd, MANIFEST, err);
    if (fd < 0 || (d.state = open_part(d.fd, STATE, err)) < 0 ||
        (d.scratch = open_part(d.fd, SCRATCH, err)) < 0)
        return err_wrap(err, "checkpoint %.200s", path);
    auto_err struct err why = ERR_INIT;
    d.volumes = open_part(d.fd, VOLUMES, &why);
    if (d.volumes < 0 && why.code != ERR_NOT_FOUND) {
        (void)err_wrap(&why, "checkpoint %.200s", path);
        return err_move(err, &why);
    }
    *manifest = fs_read_fd(fd, LIMIT_CHECKPOINT_MANIFEST, len, err);
    if (*manifest == NULL)
        return err_wrap(err, "checkpoint %.200s: manifest", path);
    *out = d;
    d = (struct checkpoint_dir)CHECKPOINT_DIR_INIT;
    return 0;
}

/* --- what files hold --- */

static int add_block(struct digest_ctx *c, off_t at, const uint8_t *data, size_t n, struct err *err)
{
    static const uint8_t zero[BLOCK];
    char place[32];
    if (memcmp(data, zero, n) == 0)
        return 0;
    int len = snprintf(place, sizeof(place), "%" PRIx64 "\n", (uint64_t)at);
    return digest_update(c, place, (size_t)len, err) < 0 || digest_update(c, data, n, err) < 0 ? -1
                                                                                               : 0;
}

static int digest_blocks(int fd, off_t size, struct digest_ctx *c, struct cancel *cancel,
                         struct err *err)
{
    auto_free uint8_t *block = xcalloc(1, BLOCK);
    for (off_t at = 0; at < size;) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data < 0)
            return err_sys(err, errno, "find data");
        at = data / (off_t)BLOCK * (off_t)BLOCK;
        size_t want = size - at < (off_t)BLOCK ? (size_t)(size - at) : BLOCK;
        size_t got = 0;
        while (got < want) {
            ssize_t n = pread(fd, block + got, want - got, at + (off_t)got);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return n < 0 ? err_sys(err, errno, "read")
                             : err_set(err, ERR_DATA_LOSS, "it became shorter");
            got += (size_t)n;
        }
        if (add_block(c, at, block, want, err) < 0 || cancel_check(cancel, err) < 0)
            return -1;
        at += (off_t)want;
    }
    return 0;
}

int checkpoint_file_describe(int fd, struct checkpoint_file *out, struct cancel *cancel,
                             struct err *err)
{
    struct digest_ctx c;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "stat");
    out->bytes = (uint64_t)st.st_size;
    if (digest_init(&c, "sha256", err) < 0)
        return -1;
    if (digest_blocks(fd, st.st_size, &c, cancel, err) < 0) {
        digest_clear(&c);
        return -1;
    }
    return digest_final(&c, out->digest, err);
}

int checkpoint_file_check(int fd, const struct checkpoint_file *want, const char *name,
                          struct cancel *cancel, struct err *err)
{
    struct checkpoint_file have;
    struct stat st;
    if (fstat(fd, &st) == 0 && (uint64_t)st.st_size != want->bytes)
        return err_set(err, ERR_DATA_LOSS, "%s has %" PRIu64 " bytes, the manifest says %" PRIu64,
                       name, (uint64_t)st.st_size, want->bytes);
    if (checkpoint_file_describe(fd, &have, cancel, err) < 0)
        return err_wrap(err, "%s", name);
    if (strcmp(have.digest, want->digest) != 0)
        return err_set(err, ERR_DATA_LOSS, "%s is not what the manifest says: %s", name,
                       have.digest);
    return lseek(fd, 0, SEEK_SET) == 0 ? 0 : err_sys(err, errno, "%s", name);
}

/* --- after a killed daemon --- */

static void take_back(const char *note)
{
    auto_free char *text = fs_read(note, LIMIT_PATH + 8, NULL, NULL);
    if (text == NULL || strlen(text) < 6 || check_path(text + 5, NULL) < 0)
        return;
    auto_close int fd = open_dir(text + 5, NULL);
    if (fd >= 0 && faccessat(fd, MANIFEST, F_OK, AT_SYMLINK_NOFOLLOW) < 0) {
        log_info("half-written checkpoint removed", LOG_STR("path", text + 5));
        empty(fd, text + 5, str_starts(text, "made "));
    }
}

void checkpoint_dir_recover(const char *state_root, void (*fn)(void *arg, const char *sandbox_id),
                            void *arg)
{
    auto_free char *notes = fs_format("%s/" NOTES, state_root);
    auto_closedir DIR *d = opendir(notes);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        auto_free char *note = fs_format("%s/%s", notes, e->d_name);
        take_back(note);
        fn(arg, e->d_name);
        (void)unlink(note);
    }
}
