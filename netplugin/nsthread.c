#include "netplugin/nsthread.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/vfs.h>

#include "base/cleanup.h"

struct job {
    const char *path;
    nsthread_fn fn;
    void *arg;
    struct err *err;
    int ret;
};

static int enter(const char *path, struct err *err)
{
    auto_close int fd = -1;
    struct statfs fs;

    if (path == NULL)
        return unshare(CLONE_NEWNET) < 0 ? err_sys(err, errno, "new network namespace") : 0;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_sys(err, errno, "open network namespace %s", path);
    /* after a reboot the file may still be there, as a plain file */
    if (fstatfs(fd, &fs) < 0 || fs.f_type != NSFS_MAGIC)
        return err_set(err, ERR_NOT_FOUND, "%s is not a network namespace any more", path);
    if (setns(fd, CLONE_NEWNET) < 0)
        return err_sys(err, errno, "enter network namespace %s", path);
    return 0;
}

static void *run(void *arg)
{
    struct job *j = arg;

    j->ret = enter(j->path, j->err);
    if (j->ret == 0)
        j->ret = j->fn(j->arg, j->err);
    return NULL;
}

int nsthread_run(const char *path, nsthread_fn fn, void *arg, struct err *err)
{
    struct job j = {.path = path, .fn = fn, .arg = arg, .err = err, .ret = -1};
    sigset_t all, old;
    pthread_t t;
    int rc;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&t, NULL, run, &j);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0)
        return err_sys(err, rc, "start a thread for the network namespace");
    (void)pthread_join(t, NULL);
    return j.ret;
}
