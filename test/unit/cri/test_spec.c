/* cri/spec: Kubernetes' rules for a container's process, what is refused, the JSON's shape. */
#include <signal.h>

#include "base/limits.h"
#include "cri/seccomp.h"
#include "test/unit/cri/spec_fixture.h"

/* the older fields of the security context are tried, too */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/* The spec, which must be made; json_decref() it. */
static json_t *spec_of(struct box *b)
{
    size_t n = 0;
    auto_free struct machine_volume *v = volumes_of(b, &n);
    auto_free char *text = spec_make(&b->c, &b->pod, &b->image, v, &b->err);
    if (text == NULL)
        fail_msg("%s", err_msg(&b->err));
    json_t *spec = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(spec);
    return spec;
}

/* "process.args" etc. as compact JSON text. */
static void assert_at(struct box *b, const char *path, const char *want)
{
    json_auto_t *spec = spec_of(b);
    const json_t *found = at(spec, path);
    auto_free char *got = found != NULL ? json_dumps(found, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    assert_string_equal(got != NULL ? got : "(none)", want);
}

static void assert_accepted(struct box *b)
{
    if (spec_check_container(&b->c, &b->pod, BACKEND_VM, &b->err) < 0)
        fail_msg("%s", err_msg(&b->err));
}

static void assert_refused(struct box *b, enum err_code code, const char *words)
{
    err_clear(&b->err);
    int rc = spec_check_container(&b->c, &b->pod, BACKEND_VM, &b->err);
    char *text = rc == 0 ? spec_make(&b->c, &b->pod, &b->image, NULL, &b->err) : NULL;
    assert_null(text);
    assert_int_equal(b->err.code, code);
    if (strstr(err_msg(&b->err), words) == NULL)
        fail_msg("\"%s\" does not name %s", err_msg(&b->err), words);
    err_clear(&b->err);
}

static void test_args(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    char *command[] = {OWN("/cmd"), OWN("-c")};
    char *args[] = {OWN("arg"), OWN("")};
    assert_at(&b, "process.args", "[\"/entry\",\"default\"]");
    b.c.args = args;
    b.c.n_args = 2;
    assert_at(&b, "process.args", "[\"/entry\",\"arg\",\"\"]");
    b.c.command = command;
    b.c.n_command = 2;
    assert_at(&b, "process.args", "[\"/cmd\",\"-c\",\"arg\",\"\"]");
    b.c.n_args = 0;
    assert_at(&b, "process.args", "[\"/cmd\",\"-c\"]");
    b.c.n_command = 0;
    strv_clear(&b.image.entrypoint);
    assert_at(&b, "process.args", "[\"default\"]");
    strv_clear(&b.image.cmd);
    assert_refused(&b, ERR_INVALID, "no command");
    clear(&b);
}

static void test_environment(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_at(&b, "process.env",
              "[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\","
              "\"HOSTNAME=pod\"]");
    strv_add(&b.image.env, "PATH=/image");
    strv_add(&b.image.env, "A=image");
    strv_add(&b.image.env, "AB=image");
    strv_add(&b.image.env, "BARE");
    Runtime__V1__KeyValue kv[2];
    runtime__v1__key_value__init(&kv[0]);
    runtime__v1__key_value__init(&kv[1]);
    kv[0].key = OWN("A");
    kv[0].value = (ProtobufCBinaryData){7, (uint8_t *)OWN("x=\"y\nz")};
    kv[0].value.len = 6;
    kv[1].key = OWN("HOSTNAME");
    Runtime__V1__KeyValue *envs[] = {&kv[0], &kv[1]};
    b.c.envs = envs;
    b.c.n_envs = 2;
    b.c.tty = true;
    assert_at(
        &b, "process.env",
        "[\"PATH=/image\",\"HOSTNAME=\",\"TERM=xterm\",\"A=x=\\\"y\\nz\",\"AB=image\",\"BARE\"]");
    assert_at(&b, "process.terminal", "true");
    kv[1].key = OWN("");
    assert_refused(&b, ERR_INVALID, "envs[1]");
    kv[1].key = OWN("A=B");
    assert_refused(&b, ERR_INVALID, "A=B");
    kv[1].key = OWN("C");
    kv[1].value = (ProtobufCBinaryData){3, (uint8_t *)OWN("a\0b")};
    assert_refused(&b, ERR_INVALID, "NUL");
    kv[1].value = (ProtobufCBinaryData){2, (uint8_t *)OWN("\xff\xfe")};
    assert_refused(&b, ERR_INVALID, "environment variable C");
    clear(&b);
}

static void test_working_directory(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_at(&b, "process.cwd", "\"/\"");
    b.image.working_dir = OWN("/image");
    assert_at(&b, "process.cwd", "\"/image\"");
    b.c.working_dir = OWN("/own");
    assert_at(&b, "process.cwd", "\"/own\"");
    b.c.working_dir = OWN("relative");
    assert_refused(&b, ERR_INVALID, "relative");
    clear(&b);
}

/* A capability set of the spec, "CHOWN KILL ..." */
static void assert_caps(struct box *b, const char *set, size_t n, const char *has,
                        const char *has_not)
{
    json_auto_t *spec = spec_of(b);
    const json_t *list = json_object_get(at(spec, "process.capabilities"), set);
    assert_int_equal(json_array_size(list), n);
    bool found = false;
    bool found_not = false;
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        assert_true(str_starts(name, "CAP_"));
        found = found || strcmp(name, has) == 0;
        found_not = found_not || strcmp(name, has_not) == 0;
    }
    assert_true(found || n == 0);
    assert_false(found_not);
}

static void test_capabilities(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    char *all[] = {OWN("ALL")};
    char *lower[] = {OWN("cap_net_admin"), OWN("Sys_Time")};
    char *chown[] = {OWN("CHOWN")};
    char *unknown[] = {OWN("CHOWN"), OWN("FLY")};
    assert_caps(&b, "bounding", 14, "CAP_CHOWN", "CAP_SYS_ADMIN");
    assert_caps(&b, "inheritable", 0, "", "");
    assert_caps(&b, "ambient", 0, "", "");
    b.security.capabilities = &b.caps;
    b.caps.add_capabilities = lower;
    b.caps.n_add_capabilities = 2;
    assert_caps(&b, "effective", 16, "CAP_NET_ADMIN", "CAP_SYS_ADMIN");
    b.caps.drop_capabilities = all;
    b.caps.n_drop_capabilities = 1;
    assert_caps(&b, "permitted", 2, "CAP_SYS_TIME", "CAP_CHOWN");
    b.caps.n_add_capabilities = 0;
    assert_caps(&b, "bounding", 0, "", "CAP_CHOWN");
    b.caps.add_capabilities = all;
    b.caps.n_add_capabilities = 1;
    b.caps.drop_capabilities = chown;
    assert_caps(&b, "bounding", 40, "CAP_SYS_ADMIN", "CAP_CHOWN");
    b.caps.n_drop_capabilities = 0;
    assert_caps(&b, "bounding", 41, "CAP_CHECKPOINT_RESTORE", "CAP_ALL");
    b.caps.n_add_capabilities = 0;
    b.caps.add_ambient_capabilities = lower;
    b.caps.n_add_ambient_capabilities = 2;
    assert_caps(&b, "ambient", 2, "CAP_NET_ADMIN", "CAP_CHOWN");
    assert_caps(&b, "inheritable", 2, "CAP_NET_ADMIN", "CAP_CHOWN");
    assert_caps(&b, "permitted", 16, "CAP_NET_ADMIN", "CAP_SYS_ADMIN");
    b.caps.n_add_ambient_capabilities = 0;
    b.caps.add_capabilities = unknown;
    b.caps.n_add_capabilities = 2;
    assert_refused(&b, ERR_INVALID, "FLY");
    b.caps.n_add_capabilities = 0;
    b.caps.drop_capabilities = unknown;
    b.caps.n_drop_capabilities = 2;
    assert_refused(&b, ERR_INVALID, "FLY");
    clear(&b);
}

static void test_signals(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int number;
    } cases[] = {
        {"SIGTERM", SIGTERM}, {"term", SIGTERM},
        {"15", 15},           {"9", 9},
        {"SIGIO", SIGIO},     {"SIGPOLL", SIGIO},
        {"IOT", SIGABRT},     {"SIGCLD", SIGCHLD},
        {"SIGRTMIN", 34},     {"SIGRTMIN+3", 37},
        {"RTMIN+30", 64},     {"SIGRTMAX", 64},
        {"SIGRTMAX-14", 50},  {"SIGRTMINPLUS1", 35},
        {"RTMAXMINUS1", 63},  {"64", 64},
        {"34", 34},           {"", -1},
        {"SIG", -1},          {"0", -1},
        {"65", -1},           {"32", -1},
        {"33", -1},           {"-9", -1},
        {"SIGRTMIN+31", -1},  {"SIGRTMIN+", -1},
        {"SIGRTMIN+x", -1},   {"SIGRTMIN-1", -1},
        {"RTMAX+1", -1},      {"SIGFOO", -1},
        {"9x", -1},           {"SIGSIGTERM", -1},
        {"99999999999", -1},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_int_equal(spec_signal_number(cases[i].name), cases[i].number);
}

static void test_stop_signal(void **state)
{
    (void)state;
    struct box b;
    char name[16];
    init(&b);
    assert_int_equal(spec_stop_signal(&b.c, &b.image, name), SIGTERM);
    assert_string_equal(name, "SIGTERM");
    b.image.stop_signal = OWN("SIGRTMIN+3"); /* systemd in a container */
    assert_int_equal(spec_stop_signal(&b.c, &b.image, name), 37);
    assert_string_equal(name, "SIGRTMIN+3");
    b.image.stop_signal = OWN("rubbish");
    assert_int_equal(spec_stop_signal(&b.c, &b.image, name), SIGTERM);
    /* the container's own goes first */
    b.image.stop_signal = OWN("SIGUSR1");
    b.c.stop_signal = RUNTIME__V1__SIGNAL__SIGNAL_SIGQUIT;
    assert_int_equal(spec_stop_signal(&b.c, &b.image, name), SIGQUIT);
    b.c.stop_signal = (Runtime__V1__Signal)4711;
    assert_int_equal(spec_stop_signal(&b.c, &b.image, name), SIGTERM);
    clear(&b);
}

static void test_users(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Aspis__Agent__V1__User u;
    aspis__agent__v1__user__init(&u);
    b.image.user = OWN("app:more");
    assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), 0);
    assert_string_equal(u.user, "app:more");
    assert_false(u.has_group || u.strict_groups);
    b.security.run_as_username = OWN("name");
    assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), 0);
    assert_string_equal(u.user, "name");
    b.security.run_as_user = &b.user;
    b.security.run_as_group = &b.group;
    b.user.value = 0;
    b.group.value = 4294967294;
    int64_t groups[300] = {5, 0};
    b.security.supplemental_groups = groups;
    b.security.n_supplemental_groups = 2;
    b.security.supplemental_groups_policy = RUNTIME__V1__SUPPLEMENTAL_GROUPS_POLICY__Strict;
    assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), 0);
    assert_string_equal(u.user, "0");
    assert_true(u.has_group && u.group == 4294967294 && u.strict_groups);
    assert_int_equal(u.n_supplemental_groups, 2);
    assert_int_equal(u.supplemental_groups[0], 5);
    b.security.n_supplemental_groups = 300;
    assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), -1);
    b.security.n_supplemental_groups = 1;
    static const int64_t bad[] = {-1, 4294967295, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        b.user.value = bad[i];
        assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), -1);
        assert_non_null(strstr(err_msg(&b.err), "run_as_user"));
        b.user.value = 1;
        b.group.value = bad[i];
        assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), -1);
        assert_non_null(strstr(err_msg(&b.err), "run_as_group"));
        b.group.value = 1;
        groups[0] = bad[i];
        assert_int_equal(spec_user(&b.c, &b.image, &u, &b.err), -1);
        assert_non_null(strstr(err_msg(&b.err), "supplemental group"));
        groups[0] = 1;
    }
    clear(&b);
}

static void test_refused_containers(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_accepted(&b);
    Runtime__V1__Mount mount;
    Runtime__V1__Mount *mounts[1];
    give_mounts(&b, &mount, mounts, 1);
    mount.host_path = OWN("host");
    mount.container_path = OWN("/there");
    assert_refused(&b, ERR_INVALID, "host path");
    mount.host_path = OWN("/host");
    mount.container_path = OWN("//");
    assert_refused(&b, ERR_INVALID, "container path");
    mount.container_path = OWN("/there");
    mount.recursive_read_only = true;
    assert_refused(&b, ERR_INVALID, "recursive read-only");
    mount.readonly = true;
    mount.propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_HOST_TO_CONTAINER;
    assert_refused(&b, ERR_INVALID, "recursive read-only");
    mount.recursive_read_only = false;
    mount.propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_PRIVATE;
    mount.image_sub_path = OWN("x");
    assert_refused(&b, ERR_INVALID, "no image");
    b.c.n_mounts = 0;
    Runtime__V1__Device device;
    runtime__v1__device__init(&device);
    device.host_path = OWN("/dev/sda");
    device.permissions = OWN("rwm");
    Runtime__V1__Device *devices[] = {&device};
    b.c.devices = devices;
    b.c.n_devices = 1;
    assert_refused(&b, ERR_PRECONDITION, "/dev/sda");
    device.host_path = OWN("/dev/kvm");
    assert_accepted(&b);
    device.permissions = OWN("rx");
    assert_refused(&b, ERR_INVALID, "/dev/kvm");
    device.permissions = OWN("r");
    device.container_path = OWN("kvm");
    assert_refused(&b, ERR_INVALID, "/dev/kvm");
    b.c.n_devices = 0;
    Runtime__V1__CDIDevice cdi;
    runtime__v1__cdidevice__init(&cdi);
    cdi.name = OWN("aspis.test/none=gpu");
    Runtime__V1__CDIDevice *cdis[] = {&cdi};
    b.c.cdi_devices = cdis;
    b.c.n_cdi_devices = 1;
    assert_refused(&b, ERR_NOT_FOUND, "aspis.test/none=gpu");
    cdi.name = OWN("gpu");
    assert_refused(&b, ERR_INVALID, "gpu");
    b.c.n_cdi_devices = 0;
    Runtime__V1__SecurityProfile profile;
    runtime__v1__security_profile__init(&profile);
    profile.profile_type = RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Localhost;
    profile.localhost_ref = OWN("/nowhere/profile.json");
    b.security.seccomp = &profile;
    assert_refused(&b, ERR_NOT_FOUND, "/nowhere/profile.json");
    b.security.seccomp = NULL;
    b.security.apparmor = &profile;
    assert_refused(&b, ERR_PRECONDITION, "AppArmor");
    profile.profile_type = RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__RuntimeDefault;
    assert_refused(&b, ERR_PRECONDITION, "AppArmor");
    profile.profile_type = RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined;
    assert_accepted(&b);
    b.security.apparmor = NULL;
    b.security.apparmor_profile = OWN("unconfined");
    assert_accepted(&b);
    b.security.apparmor_profile = OWN("localhost/mine");
    assert_refused(&b, ERR_PRECONDITION, "localhost/mine");
    b.security.apparmor_profile = OWN("");
    b.security.run_as_group = &b.group;
    assert_refused(&b, ERR_INVALID, "run_as_group");
    b.security.run_as_group = NULL;
    b.ns.pid = RUNTIME__V1__NAMESPACE_MODE__TARGET;
    b.ns.target_id = OWN("");
    assert_refused(&b, ERR_INVALID, "TARGET");
    b.ns.target_id = OWN("abc");
    assert_accepted(&b);
    b.ns.pid = RUNTIME__V1__NAMESPACE_MODE__POD;
    assert_true(spec_shared_pid(&b.c));
    Runtime__V1__UserNamespace userns;
    runtime__v1__user_namespace__init(&userns);
    userns.mode = RUNTIME__V1__NAMESPACE_MODE__POD;
    b.ns.userns_options = &userns;
    assert_refused(&b, ERR_INVALID, "mapping");
    userns.mode = RUNTIME__V1__NAMESPACE_MODE__NODE;
    assert_accepted(&b);
    /* a client that sends no linux part at all */
    b.c.linux = NULL;
    assert_accepted(&b);
    assert_false(spec_shared_pid(&b.c));
    assert_at(&b, "root", "{\"path\":\"rootfs\",\"readonly\":false}");
    clear(&b);
}

static size_t filter_size(const struct box *b)
{
    auto_seccomp_filter struct seccomp_filter f = {0};
    auto_err struct err err = ERR_INIT;
    if (spec_seccomp(&b->c, &f, &err) < 0)
        fail_msg("%s", err_msg(&err));
    return f.len;
}

/* What the agent is asked for beside the spec. */
static void ask_guest(struct box *b, Aspis__Agent__V1__CreateContainerRequest *req, struct arena *a)
{
    const struct seccomp_filter none = {0};
    aspis__agent__v1__create_container_request__init(req);
    if (spec_guest(&b->c, BACKEND_VM, &none, req, a, &b->err) < 0)
        fail_msg("%s", err_msg(&b->err));
}

static void test_user_namespaces(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__IDMapping map;
    Runtime__V1__IDMapping other;
    Runtime__V1__UserNamespace u;
    runtime__v1__idmapping__init(&map);
    runtime__v1__idmapping__init(&other);
    runtime__v1__user_namespace__init(&u);
    Runtime__V1__IDMapping *maps[] = {&map, &other};
    map.host_id = 65536;
    map.length = 65536;
    u.mode = RUNTIME__V1__NAMESPACE_MODE__POD;
    u.uids = u.gids = maps;
    u.n_uids = u.n_gids = 1;
    b.ns.userns_options = &u;
    assert_refused(&b, ERR_INVALID, "another one than its pod's");
    Runtime__V1__NamespaceOption of_pod = b.ns;
    b.pod_security.namespace_options = &of_pod;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), 0);
    assert_accepted(&b);
    auto_arena struct arena *a = arena_new(KiB(64));
    Aspis__Agent__V1__CreateContainerRequest req;
    ask_guest(&b, &req, a);
    assert_int_equal(req.n_uids, 1);
    assert_int_equal(req.gids[0]->host_id, 65536);
    assert_int_equal(spec_guest_understood(&req, 105, &b.err), 0);
    assert_int_equal(spec_guest_understood(&req, 0, &b.err), -1);
    Runtime__V1__UserNamespace others = u;
    Runtime__V1__IDMapping *two[] = {&other};
    other.host_id = 7;
    other.length = 65536;
    others.uids = two;
    of_pod.userns_options = &others;
    assert_refused(&b, ERR_INVALID, "another one than its pod's");
    of_pod.userns_options = &u;
    u.n_gids = 2;
    assert_refused(&b, ERR_INVALID, "2 gid mappings");
    u.n_gids = 1;
    map.container_id = 1;
    assert_refused(&b, ERR_INVALID, "uid 0 is not mapped");
    map.container_id = 0;
    map.length = UINT32_MAX;
    assert_refused(&b, ERR_INVALID, "out of range");
    map.length = 1;
    u.mode = RUNTIME__V1__NAMESPACE_MODE__CONTAINER;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), -1);
    u.mode = RUNTIME__V1__NAMESPACE_MODE__TARGET;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), -1);
    u.mode = RUNTIME__V1__NAMESPACE_MODE__NODE;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), -1);
    clear(&b);
}

static void test_devices(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__Device d[3];
    Runtime__V1__Device *list[3];
    for (size_t i = 0; i < ARRAY_LEN(d); i++) {
        runtime__v1__device__init(&d[i]);
        list[i] = &d[i];
    }
    d[0].host_path = OWN("/dev/fuse");
    d[0].permissions = OWN("rw");
    d[1].host_path = d[1].container_path = OWN("/dev/null"); /* is there anyway */
    d[2].host_path = OWN("/dev/zero");
    d[2].container_path = OWN("/dev/noughts");
    b.c.devices = list;
    b.c.n_devices = ARRAY_LEN(d);
    assert_accepted(&b);
    auto_arena struct arena *a = arena_new(KiB(64));
    Aspis__Agent__V1__CreateContainerRequest req;
    ask_guest(&b, &req, a);
    assert_int_equal(req.n_devices, 2);
    assert_string_equal(req.devices[0]->container_path, "/dev/fuse");
    assert_string_equal(req.devices[0]->permissions, "rw");
    assert_string_equal(req.devices[1]->path, "/dev/zero");
    assert_string_equal(req.devices[1]->container_path, "/dev/noughts");
    assert_string_equal(req.devices[1]->permissions, "rwm");
    assert_false(req.all_devices);
    b.security.privileged = true;
    ask_guest(&b, &req, a);
    assert_true(req.all_devices);
    clear(&b);
}

static void test_seccomp(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__SecurityProfile profile;
    runtime__v1__security_profile__init(&profile); /* RuntimeDefault */
    assert_int_equal(filter_size(&b), 0);
    b.security.seccomp = &profile;
    assert_true(filter_size(&b) > 1000);
    assert_at(&b, "linux.seccomp", "(none)");
    b.security.privileged = true; /* nothing is filtered then */
    assert_int_equal(filter_size(&b), 0);
    b.security.privileged = false;
    profile.profile_type = RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined;
    assert_int_equal(filter_size(&b), 0);
    seccomp_forget();
    clear(&b);
}

static void test_sysctls(void **state)
{
    (void)state;
    static const char *const good[] = {"net.ipv4.ip_forward",
                                       "net/ipv4/conf/eth0.7/forwarding",
                                       "kernel.shm_rmid_forced",
                                       "kernel.msgmax",
                                       "kernel.sem",
                                       "fs.mqueue.msg_max",
                                       "vm.max_map_count",
                                       "vm/swappiness"};
    static const char *const bad[] = {"kernel.core_pattern",
                                      "kernel.modprobe",
                                      "kernel.hostname",
                                      "kernel.panic",
                                      "vm.drop_caches",
                                      "",
                                      ".",
                                      "..",
                                      "net/../kernel/modprobe",
                                      "net..ipv4",
                                      "/etc/passwd",
                                      "net.",
                                      "net",
                                      "kernel.shm/../modprobe",
                                      "net.a b",
                                      "net.\001",
                                      "kernel..shm"};
    struct box b;
    init(&b);
    Runtime__V1__LinuxPodSandboxConfig__SysctlsEntry kv;
    runtime__v1__linux_pod_sandbox_config__sysctls_entry__init(&kv);
    Runtime__V1__LinuxPodSandboxConfig__SysctlsEntry *list[] = {&kv};
    b.pod_linux.sysctls = list;
    b.pod_linux.n_sysctls = 1;
    kv.value = OWN("1");
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        kv.key = OWN(good[i]);
        if (spec_check_sandbox(&b.pod, &b.err) < 0)
            fail_msg("%s", err_msg(&b.err));
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        kv.key = OWN(bad[i]);
        if (spec_check_sandbox(&b.pod, &b.err) == 0)
            fail_msg("%s was accepted", bad[i]);
        assert_non_null(strstr(err_msg(&b.err), bad[i]));
    }
    kv.key = OWN("net.ipv4.ip_forward");
    kv.value = OWN("");
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), -1);
    clear(&b);
}

static void test_refused_pods(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), 0);
    b.ns.pid = RUNTIME__V1__NAMESPACE_MODE__TARGET;
    b.pod_security.namespace_options = &b.ns;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), -1);
    b.pod.linux = NULL;
    assert_int_equal(spec_check_sandbox(&b.pod, &b.err), 0);
    clear(&b);
}

static void test_resources(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    assert_at(&b, "linux.resources.devices", "[{\"allow\":false,\"access\":\"rwm\"}]");
    assert_at(&b, "linux.resources.memory", "{}");
    assert_at(&b, "process.oomScoreAdj", "(none)");
    b.resources.memory_limit_in_bytes = 1 << 30;
    b.resources.memory_swap_limit_in_bytes = 1 << 30;
    b.resources.cpu_shares = 512;
    b.resources.cpu_quota = 150000;
    b.resources.cpu_period = 100000;
    b.resources.oom_score_adj = 5000;
    assert_at(&b, "linux.resources.memory", "{\"limit\":1073741824,\"swap\":1073741824}");
    assert_at(&b, "linux.resources.cpu", "{\"shares\":512,\"quota\":150000,\"period\":100000}");
    assert_at(&b, "process.oomScoreAdj", "1000");
    b.resources.oom_score_adj = INT64_MIN;
    assert_at(&b, "process.oomScoreAdj", "-1000");
    Runtime__V1__LinuxContainerResources__UnifiedEntry entry;
    runtime__v1__linux_container_resources__unified_entry__init(&entry);
    entry.key = OWN("memory.high");
    entry.value = OWN("1000");
    Runtime__V1__LinuxContainerResources__UnifiedEntry *unified[] = {&entry};
    b.resources.unified = unified;
    b.resources.n_unified = 1;
    assert_at(&b, "linux.resources.unified", "{\"memory.high\":\"1000\"}");
    clear(&b);
}

static void test_limits_that_cannot_be(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct {
        Runtime__V1__LinuxContainerResources r;
        enum err_code code;
    } cases[12];
    size_t n = 0;
#define CASE(want, ...)                                                                            \
    do {                                                                                           \
        runtime__v1__linux_container_resources__init(&cases[n].r);                                 \
        Runtime__V1__LinuxContainerResources *r = &cases[n].r;                                     \
        cases[n++].code = (want);                                                                  \
        __VA_ARGS__;                                                                               \
    } while (0)
    Runtime__V1__HugepageLimit pages;
    runtime__v1__hugepage_limit__init(&pages);
    pages.page_size = OWN("2MB");
    pages.limit = 1;
    Runtime__V1__HugepageLimit none = pages;
    none.limit = 0;
    Runtime__V1__HugepageLimit *list[] = {&pages};
    Runtime__V1__HugepageLimit *empty[] = {&none};
    Runtime__V1__LinuxContainerResources__UnifiedEntry entry;
    runtime__v1__linux_container_resources__unified_entry__init(&entry);
    entry.key = OWN("memory.high/../../x");
    entry.value = OWN("1");
    Runtime__V1__LinuxContainerResources__UnifiedEntry line = entry;
    line.key = OWN("memory.high");
    line.value = OWN("1\n2");
    Runtime__V1__LinuxContainerResources__UnifiedEntry *climbing[] = {&entry};
    Runtime__V1__LinuxContainerResources__UnifiedEntry *lines[] = {&line};
    CASE(ERR_OK, r->memory_limit_in_bytes = -1);
    CASE(ERR_OK, (r->n_hugepage_limits = 1, r->hugepage_limits = empty));
    CASE(ERR_OK, (r->cpuset_cpus = OWN("0-3,7"), r->cpuset_mems = OWN("0")));
    CASE(ERR_INVALID, r->memory_limit_in_bytes = MiB(4) - 1);
    CASE(ERR_INVALID, r->memory_limit_in_bytes = -2);
    CASE(ERR_INVALID, r->cpu_shares = -1);
    CASE(ERR_INVALID, (r->memory_limit_in_bytes = MiB(8), r->memory_swap_limit_in_bytes = MiB(7)));
    CASE(ERR_INVALID, (r->n_hugepage_limits = 1, r->hugepage_limits = list));
    CASE(ERR_INVALID, r->cpuset_cpus = OWN("0;1"));
    CASE(ERR_INVALID, (r->n_unified = 1, r->unified = climbing));
    CASE(ERR_INVALID, (r->n_unified = 1, r->unified = lines));
#undef CASE
    for (size_t i = 0; i < n; i++) {
        (void)spec_check_resources(&cases[i].r, &err);
        assert_int_equal(err.code, cases[i].code);
        err_clear(&err);
    }
}

/* The parts that OCI runtime-spec 1.0 requires, with their types. */
static void test_shape(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    b.security.readonly_rootfs = true;
    b.security.no_new_privs = true;
    char *masked[] = {OWN("/proc/kcore")};
    b.security.masked_paths = masked;
    b.security.n_masked_paths = 1;
    json_auto_t *spec = spec_of(&b);
    assert_string_equal(json_string_value(json_object_get(spec, "ociVersion")), "1.0.2");
    assert_at(&b, "root", "{\"path\":\"rootfs\",\"readonly\":true}");
    assert_at(&b, "process.user", "{\"uid\":0,\"gid\":0}");
    assert_at(&b, "process.noNewPrivileges", "true");
    assert_at(&b, "linux.maskedPaths", "[\"/proc/kcore\"]");
    assert_at(&b, "linux.namespaces",
              "[{\"type\":\"pid\"},{\"type\":\"mount\"},{\"type\":\"cgroup\"}]");
    json_t *mounts = json_object_get(spec, "mounts");
    size_t i;
    json_t *m;
    int found = 0;
    json_array_foreach(mounts, i, m)
    {
        const char *dst = json_string_value(json_object_get(m, "destination"));
        assert_non_null(dst);
        assert_int_equal(dst[0], '/');
        assert_true(json_is_string(json_object_get(m, "type")));
        assert_true(json_is_string(json_object_get(m, "source")));
        size_t k;
        json_t *option;
        bool ro = false;
        json_array_foreach(json_object_get(m, "options"), k, option)
        {
            assert_true(json_is_string(option));
            ro = ro || strcmp(json_string_value(option), "ro") == 0;
        }
        /* a read-only root has no writable files in /etc either */
        if (str_starts(dst, "/etc/")) {
            assert_true(ro);
            found++;
        }
        found += strcmp(dst, "/proc") == 0 || strcmp(dst, "/dev") == 0 || strcmp(dst, "/sys") == 0;
    }
    assert_int_equal(found, 6);
    /* a client that says nothing of paths gets the usual ones */
    b.linux_.security_context = NULL;
    json_auto_t *plain = spec_of(&b);
    assert_true(json_array_size(at(plain, "linux.maskedPaths")) > 5);
    assert_true(json_array_size(at(plain, "linux.readonlyPaths")) == 5);
    clear(&b);
}

#define HEX64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void test_image_volumes(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__ImageSpec spec;
    runtime__v1__image_spec__init(&spec);
    spec.image = OWN("sha256:" HEX64);
    Runtime__V1__Mount m[2];
    Runtime__V1__Mount *mounts[2];
    give_mounts(&b, m, mounts, 2);
    m[0].container_path = OWN("/data/");
    m[0].image = &spec;
    m[0].image_sub_path = OWN("a b/c");
    m[1].container_path = OWN("/host");
    m[1].host_path = OWN("/host");
    assert_refused(&b, ERR_INVALID,
                   "image volume at /data/: an image can be mounted read-only only");
    m[0].readonly = true;
    assert_accepted(&b);
    size_t n = 0;
    auto_free struct machine_volume *v = spec_volumes(&b.c, &n);
    assert_int_equal(n, 1); /* images are no files of the host's */
    assert_string_equal(v[0].source, "/host");
    json_auto_t *made = spec_of(&b);
    bool seen = false;
    size_t i;
    const json_t *item;
    json_array_foreach(json_object_get(made, "mounts"), i, item)
    {
        if (strcmp(json_string_value(json_object_get(item, "destination")), "/data") != 0)
            continue;
        auto_free char *text = json_dumps(item, JSON_COMPACT);
        assert_string_equal(
            text, "{\"destination\":\"/data\",\"type\":\"bind\",\"source\":"
                  "\"aspis:image:img-0123456789abcdef/a b/c\",\"options\":[\"bind\",\"rprivate\","
                  "\"ro\",\"nosuid\",\"nodev\",\"noexec\"]}");
        seen = true;
    }
    assert_true(seen);
    static const char *const bad[] = {"..", "../x", "a/../b", "a/..", "/a", "/"};
    for (i = 0; i < ARRAY_LEN(bad); i++) {
        m[0].image_sub_path = OWN(bad[i]);
        assert_refused(&b, ERR_INVALID, "image volume at /data/: sub path");
    }
    m[0].image_sub_path = OWN("..a/b..");
    assert_accepted(&b);
    m[0].host_path = OWN("/x");
    assert_refused(&b, ERR_INVALID, "both an image and the host path /x");
    clear(&b);
}

static void test_too_large(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    auto_free char *big = xcalloc(250001, 1);
    memset(big, 'x', 250000);
    char *args[20];
    for (size_t i = 0; i < ARRAY_LEN(args); i++)
        args[i] = big;
    b.c.args = args;
    b.c.n_args = ARRAY_LEN(args);
    assert_refused(&b, ERR_EXHAUSTED, "3 MiB");
    clear(&b);
}

/* Parents come first whatever the order asked for, and a mount takes the place of ours. */
static void test_volumes(void **state)
{
    (void)state;
    struct box b;
    init(&b);
    Runtime__V1__Mount m[4];
    Runtime__V1__Mount *mounts[4];
    char *const paths[] = {OWN("/a/b/c"), OWN("/etc//hosts/"), OWN("/a"), OWN("/dev/./log")};
    give_mounts(&b, m, mounts, 4);
    for (size_t i = 0; i < 4; i++) {
        m[i].host_path = OWN("/host");
        m[i].container_path = paths[i];
    }
    json_auto_t *spec = spec_of(&b);
    const json_t *list = json_object_get(spec, "mounts");
    size_t at[4] = {0};
    size_t hosts = 0;
    size_t dev = 0;
    size_t i;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        const char *source = json_string_value(json_object_get(item, "source"));
        const char *to = json_string_value(json_object_get(item, "destination"));
        for (size_t k = 0; k < 4; k++) {
            char want[32];
            (void)snprintf(want, sizeof(want), "aspis:volume:%zu", k + 1);
            if (strcmp(source, want) == 0)
                at[k] = i;
        }
        hosts += strcmp(to, "/etc/hosts") == 0;
        if (strcmp(to, "/dev") == 0)
            dev = i;
    }
    assert_int_equal(hosts, 1);
    assert_true(at[2] < at[0] && dev < at[3]);
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(list, at[1]), "destination")),
        "/etc/hosts");
    clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_volumes),
        cmocka_unit_test(test_args),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_working_directory),
        cmocka_unit_test(test_capabilities),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_stop_signal),
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_refused_containers),
        cmocka_unit_test(test_user_namespaces),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_seccomp),
        cmocka_unit_test(test_sysctls),
        cmocka_unit_test(test_refused_pods),
        cmocka_unit_test(test_resources),
        cmocka_unit_test(test_limits_that_cannot_be),
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_image_volumes),
        cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
