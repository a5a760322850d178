#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cancel.h"
#include "base/str.h"
#include "cri/backend.h"
#include "cri/convert.h"
#include "cri/daemon.h"
#include "cri/service_runtime.h"
#include "netplugin/cni.h"
#include "sandbox/machine.h"

/* Status is asked every few seconds; whether the kernel image is still there need not be looked up
 * each time. */
#define FACTS_NS (10LL * 1000000000)

int cri_version(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                struct err *err)
{
    (void)message;
    Runtime__V1__VersionResponse *r =
        call_message(call, &runtime__v1__version_response__descriptor, err);
    if (r == NULL)
        return -1;
    r->version = call_string(call, "0.1.0", err); /* of kubelet's runtime API, fixed since 2016 */
    r->runtime_name = call_string(call, "aspis", err);
    r->runtime_version = call_string(call, ASPIS_VERSION, err);
    r->runtime_api_version = call_string(call, "v1", err);
    *reply = &r->base;
    return err->code == ERR_OK ? 0 : -1;
}

static Runtime__V1__RuntimeCondition *condition(struct call *call, const char *type, bool status,
                                                const char *reason, const char *message,
                                                struct err *err)
{
    Runtime__V1__RuntimeCondition *c =
        call_message(call, &runtime__v1__runtime_condition__descriptor, err);
    if (c == NULL)
        return NULL;
    c->type = call_string(call, type, err);
    c->status = status;
    c->reason = call_string(call, status ? "" : reason, err);
    c->message = call_string(call, status ? "" : message, err);
    return c;
}

/* The facts of the last few seconds, under facts_lock. */
static pthread_mutex_t facts_lock = PTHREAD_MUTEX_INITIALIZER;
static struct machine_facts facts;
static int64_t facts_at;
static const struct machine_factory *facts_of;

static int refresh_facts(struct machine_factory *f, struct err *err)
{
    if (facts_of == f && facts_at != 0 && mono_ns() - facts_at < FACTS_NS)
        return 0;
    struct machine_facts now = {0};
    if (machine_facts(f, &now, err) < 0)
        return -1;
    machine_facts_clear(&facts);
    facts = now;
    facts_at = mono_ns();
    facts_of = f;
    return 0;
}

static const char *accel_name(enum accel a)
{
    return a == ACCEL_KVM ? "kvm" : a == ACCEL_TCG ? "tcg" : "undecided";
}

static char *verbose_info(const struct daemon *d)
{
    auto_free char *cni = cni_info(d->cni);
    json_auto_t *network = cni != NULL ? json_loads(cni, 0, NULL) : NULL;
    auto_err struct err why = ERR_INIT;
    bool userns = machine_host_userns(d->factory, &why) == 0;
    json_auto_t *j = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s*, s:s*, s:s*, s:s, s:O}", "version", ASPIS_VERSION,
        "accelerator", accel_name(facts.accel), "acceleratorReason",
        facts.accel_reason ? facts.accel_reason : "", "transport", transport_name(facts.transport),
        "transportReason", facts.transport_reason ? facts.transport_reason : "", "qemu",
        facts.qemu_version, "guestKernel", facts.kernel_release, "templates", facts.templates,
        "hostUserNamespaces", userns ? "ready" : err_msg(&why), "cni",
        network != NULL ? network : json_null());
    return j != NULL ? json_dumps(j, JSON_INDENT(2)) : NULL;
}

static int add_handlers(struct call *call, Runtime__V1__StatusResponse *r, struct err *err)
{
    const struct daemon *d = call->daemon;
    size_t n = 0;
    while (BACKEND_HANDLERS[n] != NULL)
        n++;
    r->runtime_handlers = call_array(call, n, sizeof(void *), err);
    for (size_t i = 0; r->runtime_handlers != NULL && i < n; i++) {
        Runtime__V1__RuntimeHandler *h =
            call_message(call, &runtime__v1__runtime_handler__descriptor, err);
        if (h == NULL)
            return -1;
        h->name = call_string(call, BACKEND_HANDLERS[i], err);
        Runtime__V1__RuntimeHandlerFeatures *features =
            call_message(call, &runtime__v1__runtime_handler_features__descriptor, err);
        if (features == NULL)
            return -1;
        features->recursive_read_only_mounts = true; /* by the file server's mounts, or ours */
        /* in the guest, where the file server maps volumes; on the host if it can */
        features->user_namespaces = strcmp(BACKEND_HANDLERS[i], "aspis-host") != 0 ||
                                    machine_host_userns(d->factory, NULL) == 0;
        h->features = features;
        r->runtime_handlers[r->n_runtime_handlers++] = h;
    }
    r->features = call_message(call, &runtime__v1__runtime_features__descriptor, err);
    if (r->features != NULL)
        r->features->supplemental_groups_policy = true;
    return err->code == ERR_OK ? 0 : -1;
}

int cri_status(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
               struct err *err)
{
    const Runtime__V1__StatusRequest *req = (const Runtime__V1__StatusRequest *)message;
    const struct daemon *d = call->daemon;
    Runtime__V1__StatusResponse *r =
        call_message(call, &runtime__v1__status_response__descriptor, err);
    if (r == NULL)
        return -1;
    r->status = call_message(call, &runtime__v1__runtime_status__descriptor, err);
    Runtime__V1__RuntimeCondition **list = call_array(call, 2, sizeof(*list), err);
    if (r->status == NULL || list == NULL || add_handlers(call, r, err) < 0)
        return -1;
    auto_free char *reason = NULL;
    auto_free char *why = NULL;
    auto_free char *network = NULL;
    bool net = cni_ready(d->cni, &reason, &why, &network);
    (void)pthread_mutex_lock(&facts_lock);
    int rc = refresh_facts(d->factory, err);
    if (rc == 0) {
        list[0] = condition(call, "RuntimeReady", facts.ready, "MachineNotReady",
                            facts.not_ready_reason, err);
        list[1] = condition(call, "NetworkReady", net, reason, why, err);
        auto_free char *text = req->verbose ? verbose_info(d) : NULL;
        const char *pairs[] = {"config", text != NULL ? text : "{}"};
        if (req->verbose) {
            r->n_info = 1;
            r->info = convert_pairs(call, pairs, 1,
                                    &runtime__v1__status_response__info_entry__descriptor, err);
        }
    }
    (void)pthread_mutex_unlock(&facts_lock);
    r->status->conditions = list;
    r->status->n_conditions = 2;
    *reply = &r->base;
    return rc < 0 || err->code != ERR_OK ? -1 : 0;
}

int cri_runtime_config(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                       struct err *err)
{
    (void)message;
    Runtime__V1__RuntimeConfigResponse *r =
        call_message(call, &runtime__v1__runtime_config_response__descriptor, err);
    if (r == NULL)
        return -1;
    r->linux = call_message(call, &runtime__v1__linux_runtime_configuration__descriptor, err);
    if (r->linux == NULL)
        return -1;
    /* the daemon makes its cgroups by itself */
    r->linux->cgroup_driver = RUNTIME__V1__CGROUP_DRIVER__CGROUPFS;
    *reply = &r->base;
    return 0;
}

int cri_update_runtime_config(struct call *call, const ProtobufCMessage *message,
                              ProtobufCMessage **reply, struct err *err)
{
    (void)message; /* pod_cidr is for runtimes that write a CNI configuration; ours comes from the
                      administrator */
    *reply = call_message(call, &runtime__v1__update_runtime_config_response__descriptor, err);
    return *reply == NULL ? -1 : 0;
}
