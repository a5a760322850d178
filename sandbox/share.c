#include "sandbox/share.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/spawn.h"
#include "base/str.h"
#include "sandbox/cgroup.h"
#include "sandbox/hypervisor.h"
#include "sandbox/jail.h"
#include "sandbox/lock.h"
#include "sandbox/share_internal.h"
#include "sandbox/share_ns.h"

#define STATE_FILE "share.json"
#define LOG_FILE "share.log"
#define START_NS INT64_C(10000000000)
#define RETRY_FIRST_MS 20
#define RETRY_MAX_MS 5000
#define STEADY_NS INT64_C(10000000000) /* a server that lived so long is started again at once */
#define TMP_BYTES MiB(1)
#define SERVER_NOFILE 1048576 /* LIMIT_FS_INODES, and what of the host allows more */

static void entry_free(struct share_entry *e)
{
    free(e->owner);
    free(e->source);
    free(e);
}

/* --- the record --- */

int share_write_record(struct share *s, struct err *err)
{
    json_auto_t *list = json_array();
    struct share_entry *e;
    STAILQ_FOREACH(e, &s->entries, link)
    {
        if (json_array_append_new(
                list, json_pack("{s:I, s:s, s:i, s:b, s:s, s:b, s:b, s:b, s:[I, I, I, I]}", "id",
                                (json_int_t)e->id, "owner", e->owner, "nth", (int)e->nth, "file",
                                e->file, "source", e->source, "readonly", e->readonly, "recursive",
                                e->recursive, "slave", e->slave, "ids", (json_int_t)e->ids.uid,
                                (json_int_t)e->ids.n_uids, (json_int_t)e->ids.gid,
                                (json_int_t)e->ids.n_gids)) < 0)
            return err_set(err, ERR_INVALID, "volume path is not valid UTF-8");
    }
    json_auto_t *v =
        json_pack("{s:I, s:I, s:I, s:O}", "pid", (json_int_t)s->pid, "start_time",
                  (json_int_t)s->start_time, "last_id", (json_int_t)s->last_id, "volumes", list);
    auto_free char *text = v != NULL ? json_dumps(v, JSON_COMPACT) : NULL;
    if (text == NULL)
        return err_sys(err, ENOMEM, "record of volumes");
    return fs_write_atomic(s->state_path, text, strlen(text), 0600, false, err);
}

static bool yes(const json_t *v, const char *key)
{
    return json_is_true(json_object_get(v, key));
}

static int load_entry(struct share *s, const json_t *v)
{
    json_int_t id = json_integer_value(json_object_get(v, "id"));
    const char *owner = json_string_value(json_object_get(v, "owner"));
    const char *source = json_string_value(json_object_get(v, "source"));
    if (id <= 0 || id > UINT32_MAX || owner == NULL || source == NULL)
        return -1;
    struct share_entry *e = xcalloc(1, sizeof(*e));
    e->id = (uint32_t)id;
    e->owner = xstrdup(owner);
    e->source = xstrdup(source);
    json_int_t nth = json_integer_value(json_object_get(v, "nth"));
    bool said = json_is_integer(json_object_get(v, "nth"));
    e->nth = said && nth >= 0 && nth < INT32_MAX ? (int32_t)nth : -1;
    e->file = yes(v, "file");
    e->readonly = yes(v, "readonly");
    e->recursive = yes(v, "recursive");
    e->slave = yes(v, "slave");
    uint32_t *ids[] = {&e->ids.uid, &e->ids.n_uids, &e->ids.gid, &e->ids.n_gids};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        *ids[i] = (uint32_t)json_integer_value(json_array_get(json_object_get(v, "ids"), i));
    STAILQ_INSERT_TAIL(&s->entries, e, link);
    return 0;
}

static int load(struct share *s, struct err *err)
{
    size_t len = 0;
    if (!fs_exists(s->state_path))
        return 0;
    auto_free char *text = fs_read(s->state_path, LIMIT_RPC_MESSAGE, &len, err);
    if (text == NULL)
        return -1;
    json_error_t at;
    json_auto_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
    const json_t *list = json_object_get(v, "volumes");
    size_t i;
    const json_t *item;
    json_int_t pid = json_integer_value(json_object_get(v, "pid"));
    json_int_t last = json_integer_value(json_object_get(v, "last_id"));
    bool good =
        json_is_array(list) && pid >= 0 && pid <= INT32_MAX && last >= 0 && last < UINT32_MAX;
    json_array_foreach(list, i, item)
    {
        good = good && load_entry(s, item) == 0;
    }
    if (!good)
        return err_set(err, ERR_DATA_LOSS, "%s is damaged", s->state_path);
    s->pid = (pid_t)pid;
    s->start_time = (uint64_t)json_integer_value(json_object_get(v, "start_time"));
    s->last_id = (uint32_t)last;
    return 0;
}

/* --- the server --- */

static void forget_server(struct share *s)
{
    cleanup_closep(&s->pidfd);
    s->pid = 0;
    s->start_time = 0;
}

/* The recorded process, if it still is that one. */
static void adopt(struct share *s)
{
    if (s->pid <= 1)
        return;
    s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
    if (s->pidfd < 0 || hv_start_time(s->pid) != s->start_time)
        forget_server(s);
}

void share_end_server(struct share *s)
{
    if (s->pidfd < 0)
        return;
    spawn_kill_pidfd(s->pidfd);
    (void)cancel_poll(NULL, s->pidfd, POLLIN, -1, NULL);
    (void)waitpid(s->pid, NULL, WNOHANG); /* ours, unless an earlier daemon started it */
    forget_server(s);
}

/* The program in its jail: argument, and fds from 3 on. */
int share_spawn(struct share *s, const char *argument, const char *log, const int *fds,
                size_t n_fds, struct spawn_proc *proc, struct cancel *cancel, struct err *err)
{
    auto_strv struct strv cgroups = {0};
    auto_free char *log_path = fs_format("%s/%s", s->run_dir, log);
    if (cgroup_create(s->cgroup, &cgroups, err) < 0)
        return -1;
    auto_close int out = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0)
        return err_sys(err, errno, "open %s", log_path);
    struct jail_bind binds[8];
    struct spawn_fd given[4] = {{2, out}};
    size_t n = 0;
    for (; n < JAIL_LIBRARIES_N; n++)
        binds[n] = JAIL_LIBRARIES[n];
    binds[n++] = (struct jail_bind){.src = s->server, .dst = "/aspis-share"};
    for (size_t i = 0; i < n_fds; i++)
        given[i + 1] = (struct spawn_fd){3 + (int)i, fds[i]};
    static const struct jail_rlimit limits[] = {{"nofile", SERVER_NOFILE}, {"core", 0}};
    static const char *const caps[] = {"chown", "dac_override", "fowner", "fsetid", NULL};
    const char *argv[] = {"/aspis-share", argument, NULL};
    struct jail_opts jail = {.helper = s->jail_helper,
                             .uid = s->uid,
                             .cgroups = (const char *const *)cgroups.v,
                             .binds = binds,
                             .n_binds = n,
                             .rlimits = limits,
                             .n_rlimits = ARRAY_LEN(limits),
                             .caps = caps,
                             .proc = true,
                             .tmp_bytes = TMP_BYTES,
                             .argv = argv,
                             .fds = given,
                             .n_fds = n_fds + 1};
    return jail_spawn(&jail, cancel, proc, err);
}

static int spawn(struct share *s, int channel, int go, struct cancel *cancel, struct err *err)
{
    struct spawn_proc proc;
    auto_free char *name = fs_format("guest=%s", s->run_dir);
    auto_free char *nodes_path = fs_format("%s/" SHARE_NODES_FILE, s->run_dir);
    auto_close int nodes = open(nodes_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (nodes < 0)
        return err_sys(err, errno, "open %s", nodes_path);
    const int fds[] = {channel, go, nodes};
    if (share_spawn(s, name, LOG_FILE, fds, ARRAY_LEN(fds), &proc, cancel, err) < 0)
        return -1;
    s->pid = proc.pid;
    s->pidfd = proc.pidfd;
    s->start_time = hv_start_time(proc.pid);
    s->started_ns = mono_ns();
    return 0;
}

/* All that is on record into a server. Each is tried; 0 if none failed. */
int share_attach_all(struct share *s, int pidfd, struct err *err)
{
    struct share_entry *e;
    int r = 0;
    STAILQ_FOREACH(e, &s->entries, link)
    {
        auto_err struct err why = ERR_INIT;
        bool file;
        if (share_ns_attach(pidfd, e->id, e->source, e->readonly, e->recursive, e->slave, &e->ids,
                            &file, &why) == 0)
            continue;
        log_error("a volume is lost", LOG_STR("owner", e->owner), LOG_STR("error", err_msg(&why)));
        r = r < 0 ? -1 : err_move(err, &why);
    }
    return r;
}

/* What is gone from the host meanwhile is missing in the guest, and the others go on; but if `all`
 * are needed. */
int share_start_server(struct share *s, bool all, struct cancel *cancel, struct err *err)
{
    int go[2];
    auto_close int channel = link_dial(&s->transport, LINK_FS, err);
    if (channel < 0)
        return -1;
    if (fcntl(channel, F_SETFL, 0) < 0 || pipe2(go, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make a pipe");
    int r = FAILPOINT("share.spawn", err);
    if (r == 0)
        r = spawn(s, channel, go[0], cancel, err);
    (void)close(go[0]);
    if (r == 0) {
        auto_err struct err why = ERR_INIT;
        r = share_attach_all(s, s->pidfd, &why);
        r = r < 0 && all ? err_move(err, &why) : share_write_record(s, err);
    }
    if (r == 0 && write(go[1], "g", 1) != 1)
        r = err_sys(err, errno, "let the file server go");
    (void)close(go[1]);
    if (r < 0)
        share_end_server(s);
    else
        (void)eventfd_write(s->wake_fd, 1);
    return r < 0 ? err_wrap(err, "start file server") : 0;
}

/* --- the watcher --- */

/* Waits for the server's end or a sign; false when the watcher is to end. */
static bool wait_for_news(struct share *s, int pidfd, int timeout_ms)
{
    struct pollfd p[3] = {{.fd = s->stop_fd, .events = POLLIN},
                          {.fd = s->wake_fd, .events = POLLIN},
                          {.fd = pidfd, .events = POLLIN}};
    (void)poll(p, 3, timeout_ms);
    if (p[1].revents != 0) {
        eventfd_t n;
        (void)eventfd_read(s->wake_fd, &n);
    }
    return p[0].revents == 0;
}

/* Starts a new server in place of one that ended. How long to wait before the next look, -1: for
 * news. */
static int look_after(struct share *s, int wait_ms)
{
    auto_err struct err why = ERR_INIT;
    int next = -1;
    (void)pthread_mutex_lock(&s->lock);
    struct pollfd p = {.fd = s->pidfd, .events = POLLIN};
    bool ended = s->pidfd >= 0 && poll(&p, 1, 0) == 1;
    if (ended && !s->stopping) {
        log_warn("file server ended", LOG_STR("dir", s->run_dir), LOG_INT("pid", s->pid));
        (void)waitpid(s->pid, NULL, WNOHANG);
        forget_server(s);
    }
    bool wanted = !s->stopping && s->pidfd < 0 && !STAILQ_EMPTY(&s->entries);
    /* one that ends as soon as it started, as with a hostile guest, is not started without pause */
    if (wanted && wait_ms < 0 && s->started_ns != 0 && mono_ns() - s->started_ns < STEADY_NS &&
        ended) {
        next = RETRY_FIRST_MS;
    } else if (wanted) {
        auto_cancel struct cancel *c = cancel_new(mono_ns() + START_NS, NULL);
        if (share_start_server(s, false, c, &why) == 0)
            log_info("file server started again", LOG_STR("dir", s->run_dir),
                     LOG_INT("pid", s->pid));
        else
            next = wait_ms < RETRY_FIRST_MS     ? RETRY_FIRST_MS
                   : wait_ms > RETRY_MAX_MS / 2 ? RETRY_MAX_MS
                                                : wait_ms * 2;
    }
    (void)pthread_mutex_unlock(&s->lock);
    return next;
}

static void *watch(void *arg)
{
    struct share *s = arg;
    int wait_ms = -1;
    for (;;) {
        (void)pthread_mutex_lock(&s->lock);
        int pidfd = s->pidfd >= 0 ? fcntl(s->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
        (void)pthread_mutex_unlock(&s->lock);
        bool go_on = wait_for_news(s, pidfd, wait_ms);
        cleanup_closep(&pidfd);
        if (!go_on)
            return NULL;
        wait_ms = look_after(s, wait_ms);
    }
}

int share_start_watcher(struct share *s, struct err *err)
{
    if (s->watched)
        return 0;
    int e = pthread_create(&s->watcher, NULL, watch, s);
    if (e != 0)
        return err_sys(err, e, "start a thread");
    s->watched = true;
    return 0;
}

static void stop_watcher(struct share *s)
{
    (void)pthread_mutex_lock(&s->lock);
    s->stopping = true;
    bool watched = s->watched;
    s->watched = false;
    (void)pthread_mutex_unlock(&s->lock);
    if (!watched)
        return;
    (void)eventfd_write(s->stop_fd, 1);
    (void)pthread_join(s->watcher, NULL);
}

/* --- volumes --- */

/* Takes the owner's entries out. */
static void drop_entries(struct share *s, const char *owner)
{
    struct share_entry *e = STAILQ_FIRST(&s->entries);
    while (e != NULL) {
        struct share_entry *next = STAILQ_NEXT(e, link);
        if (strcmp(e->owner, owner) == 0) {
            STAILQ_REMOVE(&s->entries, e, share_entry, link);
            if (s->pidfd >= 0)
                share_ns_detach(s->pidfd, e->id);
            entry_free(e);
        }
        e = next;
    }
}

/* A missing source becomes a directory, as with other runtimes. The path that is recorded has no
 * links in it. */
static char *resolve(const char *source, struct err *err)
{
    char *path = realpath(source, NULL);
    if (path == NULL && errno == ENOENT) {
        if (fs_mkdir_p(source, 0755, err) < 0)
            return NULL;
        path = realpath(source, NULL);
    }
    if (path == NULL)
        (void)err_sys(err, errno, "%s", source);
    return path;
}

/* Is anything mounted below the path? Then its mount alone being read-only says nothing of it. */
static bool has_submounts(const char *path)
{
    auto_free char *text = fs_read("/proc/self/mountinfo", MiB(16), NULL, NULL);
    size_t len = strlen(path);
    char *save_line = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save_line) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save_line)) {
        const char *p = line;
        for (int field = 1; field < 5 && p != NULL; field++)
            p = (p = strchr(p, ' ')) != NULL ? p + 1 : NULL;
        if (p != NULL && strncmp(p, path, len) == 0 && p[len] == '/')
            return true;
    }
    return false;
}

/* Takes the source. */
void share_add_entry(struct share *s, const char *owner, char *source,
                     const struct machine_volume *v)
{
    struct stat st;
    struct share_entry *e = xcalloc(1, sizeof(*e));
    *e = (struct share_entry){.id = v->id,
                              .owner = xstrdup(owner),
                              .nth = (int32_t)v->nth,
                              .file = stat(source, &st) == 0 && !S_ISDIR(st.st_mode),
                              .source = source,
                              .readonly = v->readonly,
                              .recursive = v->recursive,
                              .slave = v->slave,
                              .ids = v->ids};
    STAILQ_INSERT_TAIL(&s->entries, e, link);
}

/* On record first: what a daemon attached that died before it said so would never be taken out. */
static int add_entries(struct share *s, const char *owner, struct machine_volume *v, size_t n,
                       struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        char *source = resolve(v[i].source, err);
        if (source == NULL)
            return -1;
        v[i].id = ++s->last_id;
        share_add_entry(s, owner, source, &v[i]);
        v[i].all_readonly =
            v[i].readonly && (v[i].recursive || (!v[i].slave && !has_submounts(source)));
    }
    return share_write_record(s, err);
}

static int attach_entries(struct share *s, struct machine_volume *v, size_t n, struct err *err)
{
    struct share_entry *e;
    STAILQ_FOREACH(e, &s->entries, link)
    {
        for (size_t i = 0; i < n; i++) {
            if (v[i].id == e->id &&
                share_ns_attach(s->pidfd, e->id, e->source, e->readonly, e->recursive, e->slave,
                                &e->ids, &v[i].file, err) < 0)
                return -1;
        }
    }
    return FAILPOINT("share.attached", err);
}

static int add_locked(struct share *s, const char *owner, struct machine_volume *v, size_t n,
                      struct cancel *cancel, struct err *err)
{
    if (s->stopping)
        return err_set(err, ERR_UNAVAILABLE, "the machine is being stopped");
    if (share_start_watcher(s, err) < 0 ||
        (s->pidfd < 0 && share_start_server(s, false, cancel, err) < 0))
        return -1;
    if (add_entries(s, owner, v, n, err) == 0 && attach_entries(s, v, n, err) == 0)
        return 0;
    drop_entries(s, owner);
    (void)share_write_record(s, NULL);
    return -1;
}

int share_add(struct share *s, const char *owner, struct machine_volume *v, size_t n,
              struct cancel *cancel, struct err *err)
{
    if (lock_within(&s->lock, cancel, "the pod's file server", err) < 0)
        return -1;
    int r = add_locked(s, owner, v, n, cancel, err);
    (void)pthread_mutex_unlock(&s->lock);
    return r;
}

int share_remove(struct share *s, const char *owner, struct cancel *cancel, struct err *err)
{
    if (lock_within(&s->lock, cancel, "the pod's file server", err) < 0)
        return -1;
    struct share_entry *e;
    bool any = false;
    STAILQ_FOREACH(e, &s->entries, link)
    any = any || strcmp(e->owner, owner) == 0;
    drop_entries(s, owner);
    int r = any ? share_write_record(s, err) : 0;
    (void)pthread_mutex_unlock(&s->lock);
    return r;
}

/* --- making and freeing --- */

struct share *share_new(const struct share_config *config, struct err *err)
{
    struct share *s = xcalloc(1, sizeof(*s));
    s->server = xstrdup(config->server);
    s->jail_helper = xstrdup(config->jail_helper);
    s->run_dir = xstrdup(config->run_dir);
    s->cgroup = xstrdup(config->cgroup);
    s->uid = config->uid;
    s->transport = *config->transport;
    for (int i = 0; i < LINK_CHANNELS; i++)
        s->transport.path[i] = xstrdup(config->transport->path[i]);
    s->state_path = fs_format("%s/" STATE_FILE, s->run_dir);
    s->pidfd = -1;
    STAILQ_INIT(&s->entries);
    (void)pthread_mutex_init(&s->lock, NULL);
    s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->stop_fd < 0 || s->wake_fd < 0) {
        (void)err_sys(err, errno, "make eventfd");
        share_free(s);
        return NULL;
    }
    if (load(s, err) < 0) {
        share_free(s);
        return NULL;
    }
    adopt(s);
    if (!STAILQ_EMPTY(&s->entries)) {
        if (share_start_watcher(s, err) < 0) {
            share_free(s);
            return NULL;
        }
        (void)eventfd_write(s->wake_fd, 1);
    }
    return s;
}

void share_move(struct share *s, const char *cgroup)
{
    if (s == NULL)
        return;
    (void)pthread_mutex_lock(&s->lock);
    free(s->cgroup);
    s->cgroup = xstrdup(cgroup);
    (void)pthread_mutex_unlock(&s->lock);
}

void share_stop(struct share *s)
{
    if (s == NULL)
        return;
    stop_watcher(s);
    (void)pthread_mutex_lock(&s->lock);
    share_end_server(s);
    (void)pthread_mutex_unlock(&s->lock);
}

void share_free(struct share *s)
{
    if (s == NULL)
        return;
    stop_watcher(s);
    cleanup_closep(&s->pidfd);
    cleanup_closep(&s->stop_fd);
    cleanup_closep(&s->wake_fd);
    struct share_entry *e;
    while ((e = STAILQ_FIRST(&s->entries)) != NULL) {
        STAILQ_REMOVE_HEAD(&s->entries, link);
        entry_free(e);
    }
    for (int i = 0; i < LINK_CHANNELS; i++)
        free(s->transport.path[i]);
    (void)pthread_mutex_destroy(&s->lock);
    free(s->server);
    free(s->jail_helper);
    free(s->run_dir);
    free(s->cgroup);
    free(s->state_path);
    free(s);
}
