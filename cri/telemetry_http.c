#include "cri/telemetry_http.h"

#include <dirent.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/model.h"
#include "cri/socket.h"
#include "cri/telemetry.h"

#define CONNECTIONS 16
#define TIMEOUT_S 10
#define TEXT_MAX MiB(1)

struct telemetry_server {
    struct runtime *runtime;
    struct MHD_Daemon *http;
    char *path;
    int64_t started; /* wall clock */
};

/* --- what is looked up --- */

static void write_model(struct runtime *rt, struct buf *out)
{
    unsigned ready = 0;
    unsigned silent = 0;
    unsigned notready = 0;
    unsigned containers[CONTAINER_REMOVING + 1] = {0};
    (void)pthread_mutex_lock(&rt->lock);
    for (const struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        bool up = s->rec.phase == SANDBOX_READY && !s->stopping;
        ready += up && s->silence == NULL;
        silent += up && s->silence != NULL;
        notready += !up && s->rec.phase != SANDBOX_CREATING;
    }
    for (const struct container *c = rt->containers; c != NULL; c = c->hh.next)
        containers[c->rec.phase]++;
    (void)pthread_mutex_unlock(&rt->lock);
    static const char sandboxes[] = "aspis_sandboxes";
    telemetry_line(out, sandboxes, "gauge", "Pod sandboxes by state.", "state=\"ready\"", ready);
    telemetry_line(out, sandboxes, NULL, NULL, "state=\"silent\"", silent);
    telemetry_line(out, sandboxes, NULL, NULL, "state=\"notready\"", notready);
    static const char name[] = "aspis_containers";
    telemetry_line(out, name, "gauge", "Containers by state.", "state=\"created\"",
                   containers[CONTAINER_CREATED]);
    telemetry_line(out, name, NULL, NULL, "state=\"running\"", containers[CONTAINER_RUNNING]);
    telemetry_line(out, name, NULL, NULL, "state=\"exited\"",
                   containers[CONTAINER_EXITED] + containers[CONTAINER_REMOVING]);
    telemetry_line(out, "aspis_link_reconnects_total", "counter",
                   "Times the connection to an agent began anew.", NULL, (double)link_reconnects());
}

static size_t count_fds(void)
{
    auto_closedir DIR *d = opendir("/proc/self/fd");
    size_t n = 0;
    for (const struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d))
        n += e->d_name[0] != '.';
    return n;
}

static void write_process(const struct telemetry_server *s, struct buf *out)
{
    struct rusage u = {0};
    unsigned long pages = 0;
    auto_free char *statm = fs_read("/proc/self/statm", KiB(1), NULL, NULL);
    if (statm == NULL || sscanf(statm, "%*u %lu", &pages) != 1)
        pages = 0;
    (void)getrusage(RUSAGE_SELF, &u);
    telemetry_line(out, "aspis_build_info", "gauge", "The daemon's version.",
                   "version=\"" ASPIS_VERSION "\"", 1);
    telemetry_line(out, "aspis_start_time_seconds", "gauge",
                   "Start of the daemon, in seconds since the epoch.", NULL,
                   (double)s->started / 1e9);
    telemetry_line(out, "aspis_resident_memory_bytes", "gauge", "Memory of the daemon.", NULL,
                   (double)pages * (double)sysconf(_SC_PAGESIZE));
    telemetry_line(out, "aspis_cpu_seconds_total", "counter", "CPU time of the daemon.", NULL,
                   (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    telemetry_line(out, "aspis_open_fds", "gauge", "File descriptors of the daemon.", NULL,
                   (double)count_fds());
}

/* --- HTTP --- */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, struct buf *text)
{
    size_t len = text->len;
    char *data = buf_take(text);
    struct MHD_Response *r =
        data != NULL ? MHD_create_response_from_buffer(len, data, MHD_RESPMEM_MUST_FREE) : NULL;
    if (r == NULL) {
        free(data);
        return MHD_NO;
    }
    (void)MHD_add_response_header(r, "Content-Type", "text/plain; version=0.0.4; charset=utf-8");
    enum MHD_Result rc = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_len, void **con_cls)
{
    static char seen;
    struct telemetry_server *s = cls;
    (void)version;
    (void)body;
    if (*con_cls == NULL) { /* the head is there; MHD wants to be asked once more */
        *con_cls = &seen;
        return MHD_YES;
    }
    if (*body_len > 0) {
        *body_len = 0;
        return MHD_YES;
    }
    auto_buf struct buf text = BUF_INIT(TEXT_MAX);
    if (strcmp(method, "GET") != 0) {
        (void)buf_puts(&text, "GET /metrics\n");
        return answer(c, 405, &text);
    }
    if (strcmp(url, "/metrics") != 0) {
        (void)buf_puts(&text, "only /metrics is here\n");
        return answer(c, 404, &text);
    }
    telemetry_write(&text);
    write_model(s->runtime, &text);
    write_process(s, &text);
    return buf_ok(&text) ? answer(c, 200, &text) : MHD_NO;
}

/* The socket comes into being with its mode: made where only root can go, then moved. */
static int make_socket(const char *path, struct err *err)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    auto_free char *dir = fs_format("%s.new", path);
    auto_free char *name = fs_format("%s/s", dir);
    if (socket_check(path, err) < 0 || fs_rm_rf(dir, err) < 0)
        return -1;
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, errno, "socket `%s`", path);
    (void)snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", name); /* socket_check: it fits */
    if (mkdir(dir, 0700) < 0 || bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0 ||
        chmod(name, 0600) < 0 || listen(fd, CONNECTIONS) < 0 || rename(name, path) < 0) {
        (void)err_sys(err, errno, "make socket `%s`", path);
        (void)fs_rm_rf(dir, NULL);
        return -1;
    }
    (void)rmdir(dir);
    return take_fd(&fd);
}

struct telemetry_server *telemetry_server_start(const char *path, struct runtime *runtime,
                                                struct err *err)
{
    auto_close int fd = make_socket(path, err);
    if (fd < 0)
        return NULL;
    struct telemetry_server *s = xcalloc(1, sizeof(*s));
    s->runtime = runtime;
    s->path = xstrdup(path);
    s->started = wall_ns();
    s->http =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL, 0, NULL, NULL, on_request,
                         s, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                         (unsigned)CONNECTIONS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, KiB(16),
                         MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S, MHD_OPTION_END);
    if (s->http == NULL) {
        (void)err_set(err, ERR_INTERNAL, "cannot serve HTTP on `%s`", path);
        telemetry_server_stop(s);
        return NULL;
    }
    (void)take_fd(&fd); /* MHD closes it */
    return s;
}

void telemetry_server_stop(struct telemetry_server *s)
{
    if (s == NULL)
        return;
    if (s->http != NULL)
        MHD_stop_daemon(s->http);
    (void)unlink(s->path);
    free(s->path);
    free(s);
}
