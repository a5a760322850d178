#include "sandbox/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"

#define FORMAT_VERSION 2

/* No journal: the disk does not outlive its pod. The inode tables of a fresh file are zero, so
 * neither mkfs nor the guest's lazy initialisation need write them. */
static int run_mkfs(const char *path, struct cancel *cancel, struct err *err)
{
    const char *argv[] = {"mkfs.ext4",
                          "-q",
                          "-F",
                          "-O",
                          "^has_journal,^resize_inode,^metadata_csum,uninit_bg",
                          "-E",
                          "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1",
                          "-m",
                          "0",
                          "-L",
                          "scratch",
                          path,
                          NULL};
    const char *env[] = {"PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", NULL};
    struct spawn_opts o = {.argv = argv, .env = env};
    auto_buf struct buf said = BUF_INIT(KiB(4));
    int status = 0;
    if (spawn_run(&o, NULL, 0, NULL, &said, cancel, &status, err) < 0)
        return -1;
    if (status != 0) {
        char text[64];
        return err_set(err, ERR_INTERNAL, "mkfs.ext4: %s: %s",
                       spawn_status_text(status, text, sizeof(text)), buf_str(&said));
    }
    return 0;
}

static int make_master(const char *dir, const char *path, uint64_t bytes, struct cancel *cancel,
                       struct err *err)
{
    char random[17];
    fs_random_hex(random, 16);
    auto_free char *tmp = fs_format("%s/new-%s", dir, random);
    auto_close int fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "make %s", tmp);
    int ret = ftruncate(fd, (off_t)bytes) == 0 ? 0 : err_sys(err, errno, "size %s", tmp);
    if (ret == 0)
        ret = run_mkfs(tmp, cancel, err);
    /* a host crash must not leave a half-written master under its final name */
    if (ret == 0 && (fsync(fd) < 0 || rename(tmp, path) < 0))
        ret = err_sys(err, errno, "store %s", path);
    if (ret < 0)
        (void)unlink(tmp);
    return ret;
}

static char *master_path(const char *dir, uint64_t bytes)
{
    return fs_format("%s/ext4-%" PRIu64 "-v%d", dir, bytes, FORMAT_VERSION);
}

static int open_master(const char *state_root, uint64_t bytes, struct cancel *cancel,
                       struct err *err)
{
    auto_free char *dir = fs_format("%s/scratch", state_root);
    auto_free char *path = master_path(dir, bytes);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        if (fs_mkdir_p(dir, 0700, err) < 0 || make_master(dir, path, bytes, cancel, err) < 0)
            return -1;
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0)
        return err_sys(err, errno, "open %s", path);
    return fd;
}

char *scratch_master(const char *state_root, uint64_t bytes, struct cancel *cancel, struct err *err)
{
    auto_close int fd = open_master(state_root, bytes, cancel, err);
    auto_free char *dir = fs_format("%s/scratch", state_root);
    if (fd < 0) {
        (void)err_wrap(err, "scratch disk");
        return NULL;
    }
    return master_path(dir, bytes);
}

int scratch_copy(int from, const char *path, struct err *err)
{
    if (FAILPOINT("machine.scratch", err) < 0)
        return -1;
    auto_close int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_sys(err, errno, "scratch disk: make %s", path);
    if (fs_copy_sparse(from, to, err) < 0) {
        (void)unlink(path);
        return err_wrap(err, "scratch disk: fill %s", path);
    }
    return take_fd(&to);
}

int scratch_create(const char *state_root, const char *path, uint64_t bytes, struct cancel *cancel,
                   struct err *err)
{
    auto_close int from = open_master(state_root, bytes, cancel, err);
    return from < 0 ? err_wrap(err, "scratch disk") : scratch_copy(from, path, err);
}
