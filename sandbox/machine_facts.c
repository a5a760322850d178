/* What a machine says of itself: whether it lives, its record, paths and names, what it uses. */
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/cgroup.h"
#include "sandbox/cgroup_usage.h"
#include "sandbox/machine_internal.h"

enum backend machine_backend(const struct machine *m)
{
    return m->record.backend;
}

bool machine_alive(struct machine *m)
{
    (void)pthread_mutex_lock(&m->lock);
    bool alive = !m->dead;
    (void)pthread_mutex_unlock(&m->lock);
    return alive;
}

int machine_check_alive(struct machine *m, struct err *err)
{
    int ret = 0;
    (void)pthread_mutex_lock(&m->lock);
    if (m->dead)
        ret = err_set(err, ERR_UNAVAILABLE, "the vm is gone: %s", m->reason);
    (void)pthread_mutex_unlock(&m->lock);
    return ret;
}

void machine_copy_record(struct machine_record *to, const struct machine_record *from)
{
    *to = *from;
    to->accel = xstrdup(from->accel);
    to->transport = xstrdup(from->transport);
    to->cgroup = xstrdup(from->cgroup);
}

void machine_get_record(struct machine *m, struct machine_record *out)
{
    (void)pthread_mutex_lock(&m->lock);
    machine_copy_record(out, &m->record);
    (void)pthread_mutex_unlock(&m->lock);
}

struct link *machine_link(struct machine *m)
{
    return m->link;
}

const char *machine_console_path(struct machine *m)
{
    return m->console_path;
}

const char *machine_run_dir(struct machine *m)
{
    return m->run_dir;
}

const char *machine_scratch_serial(struct machine *m)
{
    (void)m;
    return SCRATCH_SERIAL;
}

const char *machine_guest_mac(struct machine *m)
{
    return m->guest_mac;
}

int machine_usage(struct machine *m, struct machine_usage *out, struct err *err)
{
    *out = (struct machine_usage){0};
    (void)pthread_mutex_lock(&m->lock);
    int ret = 0;
    if (m->cgroup_dirs.n == 0)
        ret = cgroup_dirs(m->record.cgroup, &m->cgroup_dirs, err);
    (void)pthread_mutex_unlock(&m->lock);
    if (ret == 0)
        cgroup_usage(&m->cgroup_dirs, out); /* once found they stay */
    return ret;
}

const char *machine_process_state(struct machine *m)
{
    auto_free char *path = fs_format("/proc/%d/stat", (int)m->record.pid);
    auto_free char *text = fs_read(path, KiB(4), NULL, NULL);
    const char *after = text != NULL ? strrchr(text, ')') : NULL;
    if (after == NULL || after[1] == '\0')
        return "gone";
    switch (after[2]) {
    case 'T':
    case 't':
        return "stopped";
    case 'D':
        return "waiting for a device";
    case 'Z':
        return "gone";
    default:
        return "running";
    }
}
