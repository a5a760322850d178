/* cri/dispatch, cri/methods: the table has exactly the methods of the services' descriptors, with
 * their types; lookup by path. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/dispatch.h"
#include "proto/admin.pb-c.h"
#include "proto/cri/v1/api.pb-c.h"

/* The table is linked without the services: their handlers are never called here. */
#define STAND_IN(name)                                                                             \
    int name(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,             \
             struct err *err);                                                                     \
    int name(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,             \
             struct err *err)                                                                      \
    {                                                                                              \
        (void)call;                                                                                \
        (void)req;                                                                                 \
        (void)reply;                                                                               \
        return err_set(err, ERR_INTERNAL, "stand-in");                                             \
    }
STAND_IN(cri_version)
STAND_IN(cri_status)
STAND_IN(cri_runtime_config)
STAND_IN(cri_update_runtime_config)
STAND_IN(cri_update_container_resources)
STAND_IN(cri_update_pod_sandbox_resources)
STAND_IN(cri_checkpoint_pod)
STAND_IN(cri_restore_pod)
STAND_IN(cri_run_pod_sandbox)
STAND_IN(cri_stop_pod_sandbox)
STAND_IN(cri_remove_pod_sandbox)
STAND_IN(cri_pod_sandbox_status)
STAND_IN(cri_list_pod_sandbox)
STAND_IN(cri_create_container)
STAND_IN(cri_start_container)
STAND_IN(cri_stop_container)
STAND_IN(cri_remove_container)
STAND_IN(cri_container_status)
STAND_IN(cri_list_containers)
STAND_IN(cri_reopen_container_log)
STAND_IN(cri_exec_sync)
STAND_IN(cri_exec)
STAND_IN(cri_attach)
STAND_IN(cri_port_forward)
STAND_IN(cri_stream_pod_sandboxes)
STAND_IN(cri_stream_containers)
STAND_IN(cri_container_stats)
STAND_IN(cri_list_container_stats)
STAND_IN(cri_stream_container_stats)
STAND_IN(cri_pod_sandbox_stats)
STAND_IN(cri_list_pod_sandbox_stats)
STAND_IN(cri_stream_pod_sandbox_stats)
STAND_IN(cri_get_container_events)
STAND_IN(cri_list_metric_descriptors)
STAND_IN(cri_list_pod_sandbox_metrics)
STAND_IN(cri_stream_pod_sandbox_metrics)
STAND_IN(cri_list_images)
STAND_IN(cri_stream_images)
STAND_IN(cri_image_status)
STAND_IN(cri_pull_image)
STAND_IN(cri_remove_image)
STAND_IN(cri_image_fs_info)
STAND_IN(admin_import_image)
STAND_IN(admin_pull_image)
STAND_IN(admin_wait_container)

static const ProtobufCServiceDescriptor *const services[] = {
    &runtime__v1__runtime_service__descriptor,
    &runtime__v1__image_service__descriptor,
    &aspis__v1__admin__descriptor,
};

/* As the .proto text has it: descriptors do not tell. */
static bool streams(const char *proto, const char *method)
{
    char needle[128];
    (void)snprintf(needle, sizeof(needle), "rpc %s(", method);
    const char *at = strstr(proto, needle);
    if (at == NULL)
        return false;
    const char *stream = strstr(at, "(stream ");
    return stream != NULL && stream < strchr(at, ';');
}

static void test_table(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_free char *api = fs_read(PROTO_DIR "/cri/v1/api.proto", MiB(1), NULL, &err);
    auto_free char *admin = fs_read(PROTO_DIR "/admin.proto", MiB(1), NULL, &err);
    assert_true(api != NULL && admin != NULL);
    size_t n, expected = 0;
    const struct method *methods = dispatch_methods(&n);
    for (size_t s = 0; s < ARRAY_LEN(services); s++) {
        expected += services[s]->n_methods;
        for (unsigned i = 0; i < services[s]->n_methods; i++) {
            const ProtobufCMethodDescriptor *d = &services[s]->methods[i];
            char path[128];
            (void)snprintf(path, sizeof(path), "/%s/%s", services[s]->name, d->name);
            const struct method *m = dispatch_find(methods, n, path, strlen(path));
            if (m == NULL)
                fail_msg("%s is not in the table", path);
            assert_ptr_equal(m->request, d->input);
            assert_ptr_equal(m->reply, d->output);
            bool is_admin = services[s] == &aspis__v1__admin__descriptor;
            if (m->streaming != streams(is_admin ? admin : api, d->name))
                fail_msg("%s: streaming is wrong", path);
        }
    }
    assert_int_equal(n, expected); /* so nothing else is in it, and nothing twice */
}

static void test_find(void **state)
{
    (void)state;
    size_t n;
    const struct method *methods = dispatch_methods(&n);
    const char *bad[] = {"",
                         "/",
                         "//",
                         "Version",
                         "/Version",
                         "runtime.v1.RuntimeService/Version",
                         "/runtime.v1.RuntimeService/",
                         "/runtime.v1.RuntimeService/Versio",
                         "/runtime.v1.RuntimeService/Versions",
                         "/runtime.v1.RuntimeService/Version/",
                         "/runtime.v1.ImageService/Version",
                         "/runtime.v1alpha2.RuntimeService/Version"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_null(dispatch_find(methods, n, bad[i], strlen(bad[i])));
    const char good[] = "/runtime.v1.RuntimeService/Version and what follows";
    const struct method *m = dispatch_find(methods, n, good, strcspn(good, " "));
    assert_non_null(m);
    assert_string_equal(m->name, "Version");
    assert_non_null(m->handler);
}

static void test_unbuilt(void **state)
{
    (void)state;
    size_t n;
    const struct method *methods = dispatch_methods(&n);
    const char path[] = "/runtime.v1.RuntimeService/CheckpointContainer";
    struct call call = {.method = dispatch_find(methods, n, path, strlen(path))};
    assert_non_null(call.method);
    assert_null(call.method->handler);
    auto_err struct err err = ERR_INIT;
    ProtobufCMessage *reply;
    assert_int_equal(dispatch_run(&call, NULL, &reply, &err), -1);
    assert_int_equal(err.code, ERR_UNIMPLEMENTED);
    assert_string_equal(err_msg(&err),
                        "CheckpointContainer is not implemented by aspis " ASPIS_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_unbuilt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
