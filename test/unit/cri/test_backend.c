/* cri/backend, cri/spec_adapt, cri/spec_host: which pods get a VM, and what a container on the
 * host, or a privileged one, gets in its spec. */
#include "cri/backend.h"
#include "test/unit/cri/spec_fixture.h"

#define NODE RUNTIME__V1__NAMESPACE_MODE__NODE

/* --- the rule --- */

static void assert_backend(struct box *b, const char *handler, bool privileged_on_host,
                           enum backend want, const char *why)
{
    struct backend_choice choice;
    assert_int_equal(backend_choose(&b->pod, handler, privileged_on_host, &choice, &b->err), 0);
    assert_int_equal(choice.backend, want);
    assert_non_null(strstr(choice.why, why));
}

static void assert_no_backend(struct box *b, const char *handler, enum err_code code,
                              const char *text)
{
    struct backend_choice choice;
    assert_int_equal(backend_choose(&b->pod, handler, true, &choice, &b->err), -1);
    assert_int_equal(b->err.code, code);
    assert_non_null(strstr(err_msg(&b->err), text));
    err_clear(&b->err);
}

static void test_rule(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_backend(&b, "", true, BACKEND_VM, "nothing of the host");
    assert_backend(&b, "aspis-vm", true, BACKEND_VM, "aspis-vm");
    assert_backend(&b, "aspis-host", true, BACKEND_HOST, "aspis-host");
    assert_no_backend(&b, "runc", ERR_INVALID, "\"aspis-host\"");
    b.pod_security.privileged = true;
    assert_backend(&b, "", true, BACKEND_HOST, "privileged");
    assert_backend(&b, "", false, BACKEND_VM, "");
    assert_backend(&b, "aspis-vm", true, BACKEND_VM, "aspis-vm");
    b.pod_security.privileged = false;
    Runtime__V1__UserNamespace userns;
    runtime__v1__user_namespace__init(&userns);
    userns.mode = RUNTIME__V1__NAMESPACE_MODE__POD;
    b.pod_ns.userns_options = &userns;
    assert_backend(&b, "aspis-host", true, BACKEND_HOST, "aspis-host");
    assert_backend(&b, "", true, BACKEND_VM, "");
    b.pod_ns.pid = NODE;
    assert_no_backend(&b, "", ERR_PRECONDITION, "user namespace");
    assert_no_backend(&b, "aspis-host", ERR_PRECONDITION, "the host's pid namespace");
    b.pod_ns.pid = 0;
    b.pod_ns.userns_options = NULL;
    Runtime__V1__NamespaceMode *modes[] = {&b.pod_ns.network, &b.pod_ns.pid, &b.pod_ns.ipc};
    static const char *const names[] = {"network", "pid", "ipc"};
    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        Runtime__V1__NamespaceMode before = *modes[i];
        *modes[i] = NODE;
        assert_backend(&b, "", false, BACKEND_HOST, names[i]);
        assert_backend(&b, "aspis-host", false, BACKEND_HOST, "aspis-host");
        assert_no_backend(&b, "aspis-vm", ERR_PRECONDITION, "aspis-host");
        assert_int_equal(backend_host_network(&b.pod), i == 0);
        assert_int_equal(backend_host_ipc(&b.pod), i == 2);
        *modes[i] = before;
    }
    b.pod.linux = NULL;
    assert_backend(&b, "", true, BACKEND_VM, "");
    assert_false(backend_host_network(&b.pod));
    clear(&b);
}

static void assert_container(struct box *b, enum backend backend, enum err_code code,
                             const char *text)
{
    int rc = backend_check_container(backend, &b->c, &b->pod, &b->err);
    assert_int_equal(rc, code == ERR_OK ? 0 : -1);
    if (code != ERR_OK) {
        assert_int_equal(b->err.code, code);
        assert_non_null(strstr(err_msg(&b->err), text));
    }
    err_clear(&b->err);
}

static void test_containers(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_container(&b, BACKEND_VM, ERR_OK, "");
    b.security.privileged = true;
    assert_container(&b, BACKEND_HOST, ERR_PRECONDITION, "no privileged container");
    b.pod_security.privileged = true;
    assert_container(&b, BACKEND_HOST, ERR_OK, "");
    assert_container(&b, BACKEND_VM, ERR_OK, "");
    b.ns.network = NODE;
    assert_container(&b, BACKEND_HOST, ERR_PRECONDITION, "network namespace NODE");
    b.pod_ns.network = NODE;
    assert_container(&b, BACKEND_HOST, ERR_OK, "");
    b.ns.pid = NODE;
    assert_container(&b, BACKEND_HOST, ERR_PRECONDITION, "pid namespace NODE");
    b.pod_security.namespace_options = NULL;
    assert_container(&b, BACKEND_HOST, ERR_PRECONDITION, "network namespace NODE");
    b.security.namespace_options = NULL;

    Runtime__V1__Mount mount;
    Runtime__V1__Mount *mounts[1];
    give_mounts(&b, &mount, mounts, 1);
    mount.host_path = mount.container_path = OWN("/there");
    mount.propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_BIDIRECTIONAL;
    assert_container(&b, BACKEND_VM, ERR_PRECONDITION, "aspis-host");
    assert_container(&b, BACKEND_HOST, ERR_OK, "");
    b.c.n_mounts = 0;
    b.c.linux = NULL;
    assert_container(&b, BACKEND_HOST, ERR_OK, "");
    clear(&b);
}

/* --- the spec --- */

static json_t *adapted(struct box *b, const struct machine_volume *v, size_t n,
                       enum backend backend)
{
    auto_free char *plain = spec_make(&b->c, &b->pod, &b->image, v, &b->err);
    assert_non_null(plain);
    auto_free char *text = spec_adapt(plain, &b->c, &b->pod, v, n, backend, &b->err);
    assert_non_null(text);
    json_t *spec = json_loads(text, 0, NULL);
    assert_non_null(spec);
    return spec;
}

static bool has_namespace(const json_t *spec, const char *type)
{
    size_t i;
    const json_t *n;
    json_array_foreach(at(spec, "linux.namespaces"), i, n)
    {
        if (strcmp(json_string_value(json_object_get(n, "type")), type) == 0)
            return true;
    }
    return false;
}

static bool has_option(const json_t *spec, const char *destination, const char *option)
{
    size_t i;
    size_t k;
    const json_t *m;
    const json_t *o;
    json_array_foreach(at(spec, "mounts"), i, m)
    {
        if (strcmp(json_string_value(json_object_get(m, "destination")), destination) != 0)
            continue;
        json_array_foreach(json_object_get(m, "options"), k, o)
        {
            if (strcmp(json_string_value(o), option) == 0)
                return true;
        }
    }
    return false;
}

static void test_vm_is_left_alone(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    auto_free char *plain = spec_make(&b.c, &b.pod, &b.image, NULL, &b.err);
    auto_free char *same = spec_adapt(plain, &b.c, &b.pod, NULL, 0, BACKEND_VM, &b.err);
    assert_string_equal(plain, same);
    clear(&b);
}

static void test_host(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    json_auto_t *spec = adapted(&b, NULL, 0, BACKEND_HOST);
    assert_true(has_namespace(spec, "pid") && has_namespace(spec, "cgroup"));
    assert_true(has_namespace(spec, "mount"));
    assert_false(has_namespace(spec, "network"));
    /* the client named none, and /proc is the host's */
    assert_true(json_array_size(at(spec, "linux.maskedPaths")) > 5);
    assert_true(json_array_size(at(spec, "linux.readonlyPaths")) > 2);
    assert_true(has_option(spec, "/sys", "ro"));
    assert_null(at(spec, "linux.devices"));
    assert_null(at(spec, "linux.rootfsPropagation"));
    b.ns.pid = NODE;
    json_auto_t *node = adapted(&b, NULL, 0, BACKEND_HOST);
    assert_false(has_namespace(node, "pid"));
    clear(&b);
}

static void test_privileged(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    b.security.privileged = true;
    char *masked[] = {OWN("/proc/kcore")};
    b.security.masked_paths = masked;
    b.security.n_masked_paths = 1;
    json_auto_t *vm = adapted(&b, NULL, 0, BACKEND_VM);
    assert_int_equal(json_array_size(at(vm, "process.capabilities.bounding")), 41);
    assert_int_equal(json_array_size(at(vm, "process.capabilities.ambient")), 0);
    assert_int_equal(json_array_size(at(vm, "linux.maskedPaths")), 0);
    assert_true(has_option(vm, "/sys", "rw") && has_option(vm, "/sys/fs/cgroup", "rw"));
    assert_true(json_is_true(
        json_object_get(json_array_get(at(vm, "linux.resources.devices"), 0), "allow")));
    json_auto_t *host = adapted(&b, NULL, 0, BACKEND_HOST);
    assert_false(has_namespace(host, "cgroup"));
    assert_int_equal(json_array_size(at(host, "linux.maskedPaths")), 0);
    clear(&b);
}

static void test_volumes(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__Mount m[4];
    Runtime__V1__Mount *mounts[4];
    size_t n = 0;
    static const char *const paths[] = {"/private", "/slave", "/shared", "/ro"};
    give_mounts(&b, m, mounts, ARRAY_LEN(m));
    for (size_t i = 0; i < ARRAY_LEN(m); i++)
        m[i].host_path = m[i].container_path = OWN(paths[i]);
    m[1].propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_HOST_TO_CONTAINER;
    m[2].propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_BIDIRECTIONAL;
    m[3].readonly = true;
    b.c.n_mounts = 2;
    auto_free struct machine_volume *two = volumes_of(&b, &n);
    json_auto_t *slave = adapted(&b, two, 2, BACKEND_HOST);
    assert_string_equal(json_string_value(at(slave, "linux.rootfsPropagation")), "rslave");
    b.c.n_mounts = ARRAY_LEN(m);
    auto_free struct machine_volume *v = volumes_of(&b, &n);
    assert_true(v[1].slave && v[2].shared && v[3].readonly && !v[0].shared);
    json_auto_t *spec = adapted(&b, v, ARRAY_LEN(m), BACKEND_HOST);
    assert_true(has_option(spec, "/private", "rprivate") && has_option(spec, "/slave", "rslave") &&
                has_option(spec, "/shared", "rshared") && has_option(spec, "/ro", "ro"));
    assert_false(has_option(spec, "/private", "ro"));
    assert_string_equal(json_string_value(at(spec, "linux.rootfsPropagation")), "rshared");
    clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_containers),
        cmocka_unit_test(test_vm_is_left_alone),
        cmocka_unit_test(test_host),
        cmocka_unit_test(test_privileged),
        cmocka_unit_test(test_volumes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
