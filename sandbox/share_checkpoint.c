/* What the guest of a pod knows of its shared volumes, saved with the pod and taken up by another
 * one (share_move.h says what becomes of it). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/share_internal.h"
#include "sandbox/share_state.h"

#define LOG_FILE "share-save.log"

bool share_find(struct share *s, const char *owner, uint32_t nth, uint32_t *id, bool *file)
{
    const struct share_entry *e;
    bool found = false;
    (void)pthread_mutex_lock(&s->lock);
    STAILQ_FOREACH(e, &s->entries, link)
    {
        if (e->nth != (int32_t)nth || strcmp(e->owner, owner) != 0)
            continue;
        *id = e->id;
        *file = e->file;
        found = true;
    }
    (void)pthread_mutex_unlock(&s->lock);
    return found;
}

/* --- saving --- */

static int copy_state(struct share *s, int to, struct err *err)
{
    auto_free char *path = fs_format("%s/" SHARE_NODES_FILE, s->run_dir);
    auto_close int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return err_sys(err, errno, "open %s", path);
    return fs_copy_sparse(from, to, err);
}

/* A process that sees the volumes looks which of the names are still right. */
static int settle_names(struct share *s, int copy, struct cancel *cancel, struct err *err)
{
    int go[2];
    int status = 0;
    char how[64];
    struct spawn_proc proc = SPAWN_PROC_INIT;
    auto_free char *name = fs_format("save=%s", s->run_dir);
    if (pipe2(go, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make a pipe");
    const int fds[] = {copy, go[0]};
    int r = share_spawn(s, name, LOG_FILE, fds, ARRAY_LEN(fds), &proc, cancel, err);
    (void)close(go[0]);
    if (r == 0) {
        /* what is gone from the host leads nowhere in the copy either */
        (void)share_attach_all(s, proc.pidfd, NULL);
        if (write(go[1], "g", 1) != 1)
            r = err_sys(err, errno, "let it go");
    }
    (void)close(go[1]);
    if (r == 0)
        r = spawn_wait(&proc, cancel, &status, err);
    if (r == 0 && status != 0)
        r = err_set(err, ERR_INTERNAL, "aspis-share: %s, see %s/" LOG_FILE,
                    spawn_status_text(status, how, sizeof(how)), s->run_dir);
    spawn_clear(&proc);
    return r;
}

int share_save(struct share *s, int fd, uint32_t *last_id, struct cancel *cancel, struct err *err)
{
    if (lock_within(&s->lock, cancel, "the pod's file server", err) < 0)
        return -1;
    int r = 0;
    *last_id = s->last_id;
    if (!STAILQ_EMPTY(&s->entries)) {
        /* it leaves everything behind that it knows, and the next one goes on from there */
        share_end_server(s);
        r = FAILPOINT("checkpoint.volumes", err);
        if (r == 0)
            r = copy_state(s, fd, err);
        if (r == 0)
            r = settle_names(s, fd, cancel, err);
    }
    (void)pthread_mutex_unlock(&s->lock);
    return r < 0 ? err_wrap(err, "save what the guest knows of its volumes") : 0;
}

/* --- restoring --- */

static int put_state(struct share *s, int from, struct err *err)
{
    struct stat st;
    auto_free char *path = fs_format("%s/" SHARE_NODES_FILE, s->run_dir);
    if (fstat(from, &st) < 0)
        return err_sys(err, errno, "what the guest knows of its volumes");
    if (st.st_size != STATE_BYTES)
        return err_set(err, ERR_PRECONDITION,
                       "what the guest knows of its volumes was written in another layout");
    auto_close int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_sys(err, errno, "make %s", path);
    return fs_copy_sparse(from, to, err);
}

static int restore_locked(struct share *s, int fd, uint32_t last_id,
                          const struct machine_owned_volume *list, size_t n, struct cancel *cancel,
                          struct err *err)
{
    s->last_id = last_id;
    for (size_t i = 0; i < n; i++) {
        if (list[i].v.mirrored)
            continue;
        char *source = realpath(list[i].v.source, NULL);
        if (source == NULL)
            return err_sys(err, errno, "%s", list[i].v.source);
        share_add_entry(s, list[i].owner, source, &list[i].v);
    }
    if (share_write_record(s, err) < 0)
        return -1;
    if (STAILQ_EMPTY(&s->entries))
        return 0;
    return put_state(s, fd, err) < 0 || share_start_watcher(s, err) < 0
               ? -1
               : share_start_server(s, true, cancel, err);
}

int share_restore(struct share *s, int fd, uint32_t last_id,
                  const struct machine_owned_volume *list, size_t n, struct cancel *cancel,
                  struct err *err)
{
    if (lock_within(&s->lock, cancel, "the pod's file server", err) < 0)
        return -1;
    int r = restore_locked(s, fd, last_id, list, n, cancel, err);
    (void)pthread_mutex_unlock(&s->lock);
    return r;
}
