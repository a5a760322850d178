#include "agent/service.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>

#include "agent/clock.h"
#include "agent/older.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"
#include "proto/version.h"

/* For the reply to leave through the virtual port before the machine goes. */
#define SHUTDOWN_DELAY_NS INT64_C(20000000)

struct service {
    struct pod *pod;
    struct loop_source *shutdown_timer;
    void (*shutdown)(void *arg);
    void *arg;
    char instance[33];
    struct rpc_method methods[9];
};

static void reply_empty(struct rpc_call *call)
{
    Aspis__Agent__V1__Empty empty = ASPIS__AGENT__V1__EMPTY__INIT;
    rpc_reply(call, &empty.base);
}

static uint64_t boottime_ns(void)
{
    struct timespec ts = {0};
    (void)clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

static void hello(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    const Aspis__Agent__V1__HelloRequest *req =
        (const Aspis__Agent__V1__HelloRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    if (req->major != PROTOCOL_MAJOR) {
        err_set(&err, ERR_UNIMPLEMENTED,
                "agent " ASPIS_VERSION " speaks protocol %d.%d, the daemon %u.%u", PROTOCOL_MAJOR,
                AGENT_MINOR, req->major, req->minor);
        rpc_fail(call, &err);
        return;
    }
    char version[] = ASPIS_VERSION;
    char instance[sizeof(s->instance)];
    memcpy(instance, s->instance, sizeof(instance));
    auto_free char *id = xstrdup(pod_id(s->pod));
    struct utsname uts = {0};
    (void)uname(&uts);
    struct sysinfo info = {0};
    (void)sysinfo(&info);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    Aspis__Agent__V1__HelloResponse r;
    aspis__agent__v1__hello_response__init(&r);
    r.major = PROTOCOL_MAJOR;
    r.minor = AGENT_MINOR;
    r.agent_version = version;
    r.kernel_release = uts.release;
    r.sandbox_id = id;
    r.uptime_ns = boottime_ns();
    r.memory_bytes = (uint64_t)info.totalram * info.mem_unit;
    r.vcpus = cpus > 0 ? (uint32_t)cpus : 1;
    r.boot_id = instance;
    rpc_reply(call, &r.base);
}

static void ping(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    (void)request;
    (void)arg;
    reply_empty(call);
}

static void set_clock(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    const Aspis__Agent__V1__ClockRequest *req =
        (const Aspis__Agent__V1__ClockRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    Aspis__Agent__V1__ClockResponse r;

    if (req->adjust_ns != 0 && !pod_on_host(s->pod) && clock_adjust(req->adjust_ns, &err) < 0) {
        rpc_fail(call, &err);
        return;
    }
    aspis__agent__v1__clock_response__init(&r);
    r.wall_clock_ns = (uint64_t)wall_ns();
    rpc_reply(call, &r.base);
}

static void configured(void *arg, const struct err *err)
{
    struct rpc_call *call = arg;
    if (err != NULL)
        rpc_fail(call, err);
    else
        reply_empty(call);
}

static void configure_pod(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    pod_configure(s->pod, (const Aspis__Agent__V1__ConfigurePodRequest *)(const void *)request,
                  configured, call);
}

static void reply_result(struct rpc_call *call, int r, const struct err *err)
{
    if (r < 0)
        rpc_fail(call, err);
    else
        reply_empty(call);
}

static void prepare_template(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    const Aspis__Agent__V1__PrepareTemplateRequest *req =
        (const Aspis__Agent__V1__PrepareTemplateRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    reply_result(call, pod_prepare(s->pod, req->scratch_disk, &err), &err);
}

static void name_disk(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    const Aspis__Agent__V1__NameDiskRequest *req =
        (const Aspis__Agent__V1__NameDiskRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    reply_result(call, pod_image_name(s->pod, req->serial, req->disk, &err), &err);
}

static void detach_disk(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const struct service *s = arg;
    const Aspis__Agent__V1__DetachDiskRequest *req =
        (const Aspis__Agent__V1__DetachDiskRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    reply_result(call, pod_image_detach(s->pod, req->serial, &err), &err);
}

static void shutdown_due(struct loop_source *src, void *arg)
{
    const struct service *s = arg;
    (void)src;
    s->shutdown(s->arg);
}

static void shut_down(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct service *s = arg;
    (void)request;
    log_info("shutting down");
    reply_empty(call);
    if (loop_set_timer(s->shutdown_timer, SHUTDOWN_DELAY_NS) < 0)
        s->shutdown(s->arg);
}

/* Needs no quality, and the kernel's pool may not be seeded yet. */
static void make_instance(char out[33])
{
    uint8_t bytes[16] = {0};
    (void)!getrandom(bytes, sizeof(bytes), GRND_INSECURE);
    for (size_t i = 0; i < sizeof(bytes); i++)
        (void)snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

struct service *service_new(struct loop *loop, struct pod *pod, void (*shutdown)(void *arg),
                            void *arg, struct err *err)
{
    struct service *s = xcalloc(1, sizeof(*s));
    s->pod = pod;
    make_instance(s->instance);
    s->shutdown = shutdown;
    s->arg = arg;
    s->shutdown_timer = loop_add_timer(loop, -1, shutdown_due, s, err);
    if (s->shutdown_timer == NULL) {
        free(s);
        return NULL;
    }
    const struct rpc_method methods[] = {
        {"Hello", &aspis__agent__v1__hello_request__descriptor, hello, s},
        {"Ping", &aspis__agent__v1__empty__descriptor, ping, s},
        {"Clock", &aspis__agent__v1__clock_request__descriptor, set_clock, s},
        {"ConfigurePod", &aspis__agent__v1__configure_pod_request__descriptor, configure_pod, s},
        {"PrepareTemplate", &aspis__agent__v1__prepare_template_request__descriptor,
         prepare_template, s},
        {"NameDisk", &aspis__agent__v1__name_disk_request__descriptor, name_disk, s},
        {"DetachDisk", &aspis__agent__v1__detach_disk_request__descriptor, detach_disk, s},
        {"Shutdown", &aspis__agent__v1__empty__descriptor, shut_down, s},
        {0},
    };
    for (size_t i = 0; i < ARRAY_LEN(methods); i++)
        s->methods[i] = methods[i];
    return s;
}

void service_free(struct service *s)
{
    if (s == NULL)
        return;
    loop_remove(s->shutdown_timer);
    free(s);
}

const struct rpc_method *service_methods(struct service *s)
{
    return s->methods;
}
