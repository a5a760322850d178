/*
 * The end of a machine, with its handle or from what an earlier daemon recorded. Each step looks at
 * what there is, so all of it can be called again after a failure.
 */
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/spawn.h"
#include "base/str.h"
#include "sandbox/cgroup.h"
#include "sandbox/lock.h"
#include "sandbox/machine_internal.h"
#include "sandbox/mirror.h"

/* The files, groups and uid of a pod whose process is gone. */
static int sweep(struct machine_factory *f, const char *id, const char *cgroup, uint32_t uid,
                 struct cancel *cancel, struct err *err)
{
    auto_free char *run = machine_run_path(f, id);
    auto_free char *state = machine_state_path(f, id);
    if (!str_empty(cgroup) &&
        cgroup_remove(cgroup, machine_cgroup_root(f, cgroup), cancel, err) < 0)
        return -1;
    if (fs_rm_rf(run, err) < 0 || fs_rm_rf(state, err) < 0)
        return -1;
    if (uid != 0)
        machine_uid_release(f, uid);
    return 0;
}

/* The guest is not asked: its disk dies with it, and what it wrote to volumes was on the host
 * before write(2) or munmap(2) returned there. */
int machine_take_down(struct machine *m, struct cancel *cancel, struct err *err)
{
    (void)pthread_mutex_lock(&m->lock);
    m->silent = true;
    if (!m->dead) {
        m->dead = true;
        m->reason = xstrdup("the vm was stopped");
    }
    (void)pthread_mutex_unlock(&m->lock);
    if (m->link != NULL)
        link_close(m->link, "the vm was stopped");
    if (m->hv != NULL && m->ops->quit(m->hv, cancel, err) < 0)
        return -1;
    share_stop(m->share);
    mirror_stop(m->mirror);
    uint32_t uid = m->uid_taken ? m->record.uid : 0;
    if (sweep(m->f, m->id, m->record.cgroup, uid, cancel, err) < 0)
        return -1;
    m->uid_taken = false;
    return 0;
}

int machine_destroy(struct machine *m, struct cancel *cancel, struct err *err)
{
    if (lock_within(&m->ending, cancel, "another removal of this machine", err) < 0)
        return -1;
    int ret = FAILPOINT("machine.destroy", err);
    if (ret == 0)
        ret = machine_take_down(m, cancel, err);
    (void)pthread_mutex_unlock(&m->ending);
    return ret < 0 ? err_wrap(err, "destroy machine") : 0;
}

/* Kills the process that the record names, if it still is that one. */
static int kill_recorded(const struct machine_record *r, struct cancel *cancel, struct err *err)
{
    if (r->pid <= 1)
        return 0;
    auto_close int fd = (int)syscall(SYS_pidfd_open, r->pid, 0);
    if (fd < 0 || hv_start_time(r->pid) != r->pid_start_time)
        return 0;
    spawn_kill_pidfd(fd);
    if (cancel_poll(cancel, fd, POLLIN, -1, err) < 0)
        return err_wrap(err, "wait for qemu's end");
    (void)waitpid(r->pid, NULL, WNOHANG); /* it may be our child, if this daemon started it */
    return 0;
}

int machine_destroy_record(struct machine_factory *f, const char *sandbox_id,
                           const struct machine_record *record, struct cancel *cancel,
                           struct err *err)
{
    static const struct machine_record none;
    const struct machine_record *r = record != NULL ? record : &none;
    if (machine_check_id(sandbox_id, err) < 0)
        return -1;
    /* A daemon that died between the start and its record left a VM that only its name tells. */
    int ret =
        r->pid > 1 ? kill_recorded(r, cancel, err) : machine_kill_stray(f, sandbox_id, cancel, err);
    if (ret == 0)
        ret = sweep(f, sandbox_id, r->cgroup, r->uid, cancel, err);
    return ret < 0 ? err_wrap(err, "destroy machine") : 0;
}
