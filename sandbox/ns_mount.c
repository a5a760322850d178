#include "sandbox/ns_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

struct job {
    int pidfd;
    ns_mount_fn fn;
    void *arg;
    const char *step;
    int error; /* errno of the step that failed */
};

static void *run(void *arg)
{
    struct job *j = arg;
    /* a thread may enter a mount namespace only when it shares its directory with no other */
    if (unshare(CLONE_FS) < 0 || setns(j->pidfd, CLONE_NEWNS) < 0 || j->fn(j->arg, &j->step) < 0)
        j->error = errno;
    return NULL;
}

int ns_mount_run(int pidfd, const char *entry, ns_mount_fn fn, void *arg, struct err *err)
{
    struct job j = {.pidfd = pidfd, .fn = fn, .arg = arg, .step = entry};
    pthread_t thread;
    int e = pthread_create(&thread, NULL, run, &j);
    if (e != 0)
        return err_sys(err, e, "start a thread");
    (void)pthread_join(thread, NULL);
    return j.error != 0 ? err_sys(err, j.error, "%s", j.step) : 0;
}

int ns_mount_make_file(const char *path)
{
    auto_close int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    return fd < 0 ? -1 : 0;
}

int ns_mount_attach(int tree, const char *path)
{
    return move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
}

void ns_mount_detach(const char *path)
{
    (void)umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    if (rmdir(path) < 0)
        (void)unlink(path);
}

/* A line of mountinfo names the device third and the type behind " - " (proc_pid_mountinfo(5)). */
void ns_mount_type(int fd, char out[NS_MOUNT_TYPE])
{
    struct statx st;
    char device[40];
    auto_free char *text = fs_read("/proc/self/mountinfo", MiB(16), NULL, NULL);
    char *save = NULL;
    (void)snprintf(out, NS_MOUNT_TYPE, "unknown");
    if (text == NULL || statx(fd, "", AT_EMPTY_PATH, STATX_TYPE, &st) < 0)
        return;
    (void)snprintf(device, sizeof(device), " %u:%u ", st.stx_dev_major, st.stx_dev_minor);
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        const char *type = strstr(line, " - ");
        if (type == NULL || strstr(line, device) == NULL)
            continue;
        type += strlen(" - ");
        (void)snprintf(out, NS_MOUNT_TYPE, "%.*s", (int)strcspn(type, " "), type);
        return;
    }
}

int ns_mount_set(int tree, struct mount_attr *all, bool readonly, bool recursive, struct err *err)
{
    struct mount_attr ro = {.attr_set = MOUNT_ATTR_RDONLY};
    if (all != NULL && mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, all, sizeof(*all)) < 0)
        return err_sys(err, errno, "set mount attributes");
    if (readonly && mount_setattr(tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0U), &ro,
                                  sizeof(ro)) < 0)
        return err_sys(err, errno, "make the mount read-only");
    return 0;
}
