#include "agent/size.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/huge_pages.h"
#include "agent/pod_cgroup.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"

#define WAIT_NS INT64_C(10000000000)
#define MAX_WAITING 4
#define SLACK MiB(1) /* the kernel's own pages of a new block */

struct waiting {
    struct rpc_call *call;
    uint64_t added;
    uint32_t vcpus;
    uint64_t huge;
};

struct size {
    struct loop *loop;
    struct events *events;
    uint64_t base_bytes; /* MemTotal when the agent began */
    struct waiting waiting[MAX_WAITING];
    size_t n_waiting;
    struct loop_source *deadline;
    bool watch;
    uint64_t huge; /* bytes that are kept as huge pages for the host's sake */
    bool told;     /* the host knows that memory runs short */
    int inotify_fd;
    struct loop_source *inotify_source;
    struct rpc_method methods[2];
};

/* --- figures --- */

uint64_t size_meminfo(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p != NULL; p = strchr(p, '\n')) {
        if (*p == '\n')
            p++;
        if (strncmp(p, name, n) == 0 && p[n] == ':')
            return (uint64_t)strtoull(p + n + 1, NULL, 10) * KiB(1);
    }
    return 0;
}

static uint64_t margin(uint64_t total)
{
    return total / 10 > MiB(24) ? total / 10 : MiB(24);
}

uint64_t size_high(uint64_t total, uint64_t free_bytes, uint64_t used)
{
    uint64_t all = free_bytes + used;
    uint64_t keep = margin(total);
    return all > keep + MiB(16) ? all - keep : MiB(16);
}

uint64_t size_low_mark(uint64_t total)
{
    return margin(total) + total / 8;
}

static uint64_t memory_now(void)
{
    struct sysinfo info = {0};
    (void)sysinfo(&info);
    return (uint64_t)info.totalram * info.mem_unit;
}

static uint32_t vcpus_now(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

/* --- the watch --- */

static char *meminfo(void)
{
    return fs_read("/proc/meminfo", KiB(16), NULL, NULL);
}

/* Without what is reserved as huge pages, which containers have beside all else. */
static uint64_t total_of(const char *meminfo_text)
{
    uint64_t total = size_meminfo(meminfo_text, "MemTotal");
    uint64_t huge = size_meminfo(meminfo_text, "Hugetlb");
    return huge < total ? total - huge : total;
}

static void set_high(const struct size *s)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *text = s->watch ? meminfo() : NULL;
    auto_free char *file = cgroup_file("", "memory.high");
    char value[32] = "max";
    if (text != NULL)
        (void)snprintf(
            value, sizeof(value), "%" PRIu64,
            size_high(total_of(text), size_meminfo(text, "MemFree"), cgroup_memory_current("")));
    if (fs_write_str(file, value, &err) < 0)
        log_warn("cannot watch the memory", LOG_STR("error", err_msg(&err)));
}

/* The containers met memory.high. */
static void look(struct size *s)
{
    auto_free char *text = s->watch && !s->told ? meminfo() : NULL;
    if (text == NULL)
        return;
    uint64_t total = total_of(text);
    uint64_t available = size_meminfo(text, "MemAvailable");
    if (available >= size_low_mark(total))
        return;
    s->told = true;
    (void)events_memory_low(s->events, total, available);
}

static void on_inotify(struct loop_source *src, uint32_t events, void *arg)
{
    struct size *s = arg;
    char buf[1024];
    (void)src;
    (void)events;
    while (read(s->inotify_fd, buf, sizeof(buf)) > 0)
        ;
    look(s);
}

/* --- Resize --- */

static bool satisfied(const struct size *s, const struct waiting *w)
{
    return memory_now() + SLACK >= s->base_bytes + w->added && vcpus_now() >= w->vcpus;
}

static void answer(struct size *s, size_t at)
{
    struct waiting w = s->waiting[at];
    s->waiting[at] = s->waiting[--s->n_waiting];
    uint64_t huge = huge_pages_reserve(&s->huge, w.huge);
    if (s->watch)
        set_high(s);
    Aspis__Agent__V1__ResizeResponse r;
    aspis__agent__v1__resize_response__init(&r);
    r.memory_bytes = memory_now();
    r.added_bytes = satisfied(s, &w)                 ? w.added
                    : r.memory_bytes > s->base_bytes ? r.memory_bytes - s->base_bytes
                                                     : 0;
    r.vcpus = vcpus_now();
    r.huge_bytes = huge;
    rpc_reply(w.call, &r.base);
}

void size_changed(struct size *s)
{
    if (s->watch)
        set_high(s);
    for (size_t i = 0; i < s->n_waiting;) {
        if (satisfied(s, &s->waiting[i]))
            answer(s, i);
        else
            i++;
    }
}

static void on_deadline(struct loop_source *src, void *arg)
{
    struct size *s = arg;
    (void)src;
    while (s->n_waiting > 0)
        answer(s, 0);
}

static void handle_resize(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct size *s = arg;
    const Aspis__Agent__V1__ResizeRequest *req =
        (const Aspis__Agent__V1__ResizeRequest *)(const void *)request;
    if (s->n_waiting == MAX_WAITING || loop_set_timer(s->deadline, WAIT_NS) < 0) {
        auto_err struct err err = ERR_INIT;
        err_set(&err, ERR_EXHAUSTED, "too many changes of the size at once");
        rpc_fail(call, &err);
        return;
    }
    s->watch = req->watch_memory;
    s->told = false;
    s->waiting[s->n_waiting++] = (struct waiting){
        .call = call, .added = req->added_bytes, .vcpus = req->vcpus, .huge = req->huge_bytes};
    /* the memory of those that go may be asked back at once */
    if (req->huge_bytes < s->huge)
        (void)huge_pages_reserve(&s->huge, req->huge_bytes);
    set_high(s);
    size_changed(s);
}

/* --- making --- */

struct size *size_new(struct loop *loop, struct events *events, struct err *err)
{
    struct size *s = xcalloc(1, sizeof(*s));
    s->loop = loop;
    s->events = events;
    s->base_bytes = memory_now();
    s->methods[0] = (struct rpc_method){"Resize", &aspis__agent__v1__resize_request__descriptor,
                                        handle_resize, s};
    s->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    s->deadline = loop_add_timer(loop, -1, on_deadline, s, err);
    if (s->inotify_fd < 0)
        (void)err_sys(err, errno, "inotify");
    else if (s->deadline != NULL)
        s->inotify_source = loop_add_fd(loop, s->inotify_fd, EPOLLIN, on_inotify, s, err);
    if (s->inotify_source == NULL) {
        size_free(s);
        return NULL;
    }
    auto_free char *file = cgroup_file("", "memory.events");
    if (inotify_add_watch(s->inotify_fd, file, IN_MODIFY) < 0 && errno != ENOENT)
        log_warn("cannot watch the memory", LOG_STR("file", file),
                 LOG_STR("error", strerror(errno)));
    return s;
}

void size_free(struct size *s)
{
    if (s == NULL)
        return;
    loop_remove(s->deadline);
    loop_remove(s->inotify_source);
    cleanup_closep(&s->inotify_fd);
    free(s);
}

const struct rpc_method *size_methods(struct size *s)
{
    return s->methods;
}
