/* The facade with fake plugins: cache, order, readiness, reload. */
#include "fixture.h"

#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

#include "base/cancel.h"
#include "netplugin/cache.h"
#include "netplugin/cni.h"
#include "netplugin/gate.h"
#include "netplugin/json.h"

struct world {
    struct fixture *f;
    struct loop *loop;
    pthread_t thread;
    struct cni *cni;
};

static void *run_loop(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void start(struct world *w, struct fixture *f, int64_t timeout)
{
    struct cni_options o = {
        .conf_dir = f->conf, .bin_dirs = f->bin_dirs, .cache_dir = f->cache, .timeout_ns = timeout};
    auto_err struct err err = ERR_INIT;

    *w = (struct world){.f = f};
    w->loop = loop_new(NULL);
    w->cni = cni_new(&o, w->loop, &err);
    if (w->cni == NULL)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(pthread_create(&w->thread, NULL, run_loop, w->loop), 0);
}

static void stop_loop(struct world *w)
{
    loop_stop(w->loop);
    (void)pthread_join(w->thread, NULL);
}

static void stop(struct world *w)
{
    stop_loop(w);
    cni_free(w->cni);
    loop_free(w->loop);
}

static void network(struct fixture *f, const char *name, const char *version, const char *type)
{
    auto_free char *text =
        fs_format("{\"cniVersion\":\"%s\",\"name\":\"%s\",\"plugins\":[{\"type\":\"%s\","
                  "\"capabilities\":{\"portMappings\":true,\"dns\":true}}]}",
                  version, name, type);

    fx_write(f->conf, "10-net.conflist", text);
}

static const char good_add[] =
    "echo "
    "'{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"/run/netns/x\"}],"
    "\"ips\":[{\"address\":\"fd00::2/64\",\"interface\":0},{\"address\":\"10.0.0.2/"
    "24\",\"interface\":0}]}'";

static const struct cni_port_mapping ports[] = {
    {.protocol = "TCP", .container_port = 80, .host_port = 8080, .host_ip = ""},
    {.protocol = "udp", .container_port = 53, .host_port = 0},
};
static const char *const servers[] = {"10.0.0.10", NULL};

static struct cni_attachment pod(const char *id)
{
    return (struct cni_attachment){.sandbox_id = id,
                                   .netns = "/run/netns/x",
                                   .ifname = "eth0",
                                   .pod_name = "web",
                                   .pod_namespace = "default",
                                   .pod_uid = "u-1",
                                   .ports = ports,
                                   .n_ports = 2,
                                   .dns_servers = servers};
}

static void must_add(struct world *w, const char *id)
{
    struct cni_attachment a = pod(id);
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;

    if (cni_add(w->cni, &a, &n, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(n.n_ips, 2);
    assert_string_equal(n.ips[0], "10.0.0.2");
}

/* Waits, by events and not by the clock, until the probe thread has come to the answer; the
 * deadline is only for a broken build. */
static void wait_ready(struct world *w, bool want, const char *net, const char *in_message)
{
    int64_t deadline = mono_ns() + SEC(15);
    auto_cancel struct cancel *tick = NULL;

    for (;;) {
        auto_free char *reason = NULL, *message = NULL, *name = NULL;
        bool ready = cni_ready(w->cni, &reason, &message, &name);

        assert_true(ready == (reason == NULL) && ready == (message == NULL));
        if (ready == want && (net == NULL || (name != NULL && strcmp(name, net) == 0)) &&
            (in_message == NULL || (message != NULL && strstr(message, in_message) != NULL)))
            return;
        if (mono_ns() > deadline)
            fail_msg("ready %d, network %s, message %s", ready, name ? name : "-",
                     message ? message : "-");
        cancel_unref(tick);
        tick = cancel_new(mono_ns() + 20000000, NULL);
        (void)cancel_poll(tick, -1, 0, -1, NULL);
    }
}

static void add_check_del(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_free char *text = NULL, *env = NULL;
    auto_json json_t *cache = NULL, *in = NULL;
    auto_cache_entry struct cache_entry e = {0};
    auto_free char *file = fs_format("%s/results/net-pod1-eth0", f->cache);
    auto_free char *results = fs_format("%s/results", f->cache);
    struct stat st;
    const json_t *args;

    fx_plugin(f, "one");
    network(f, "net", "1.0.0", "one");
    fx_write(f->fake, "one.ADD", good_add);
    start(&w, f, SEC(20));
    must_add(&w, "pod1");
    /* libcni's own format */
    text = fx_read(f->cache, "results/net-pod1-eth0");
    assert_non_null(text);
    cache = json_loads(text, 0, NULL);
    assert_string_equal(json_get_string(cache, "kind"), "cniCacheV1");
    assert_string_equal(json_get_string(cache, "containerId"), "pod1");
    assert_string_equal(json_get_string(cache, "ifName"), "eth0");
    assert_string_equal(json_get_string(cache, "networkName"), "net");
    assert_string_equal(json_get_string(cache, "netns"), "/run/netns/x");
    assert_true(str_starts(json_get_string(cache, "config"), "eyJ"));
    args = json_object_get(cache, "cniArgs");
    assert_int_equal(json_array_size(args), 5);
    assert_string_equal(json_string_value(json_array_get(json_array_get(args, 0), 0)),
                        "IgnoreUnknown");
    assert_string_equal(json_string_value(json_array_get(json_array_get(args, 0), 1)), "1");
    assert_int_equal(
        json_array_size(json_object_get(json_object_get(cache, "capabilityArgs"), "portMappings")),
        1);
    assert_int_equal(json_array_size(json_object_get(json_object_get(cache, "result"), "ips")), 2);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(results, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(cache_read(file, &e, NULL), 0);
    assert_true(e.ours);
    assert_string_equal(e.args, "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
                                "K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=u-1");

    assert_int_equal(cni_check(w.cni, &a, NULL, NULL), 0);
    /* a DEL long after: another netns argument, the rest from the cache */
    a = (struct cni_attachment){.sandbox_id = "pod1", .ifname = "eth0", .netns = ""};
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    assert_false(fs_exists(file));
    text = take(text);
    free(text);
    text = fx_read(f->fake, "one.DEL.stdin");
    in = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(json_object_get(in, "prevResult"), "ips")), 2);
    assert_non_null(json_object_get(json_object_get(in, "runtimeConfig"), "portMappings"));
    assert_non_null(json_object_get(json_object_get(in, "runtimeConfig"), "dns"));
    env = fx_read(f->fake, "one.DEL.env");
    assert_non_null(strstr(env, "K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=u-1\n"));
    assert_non_null(strstr(env, "CNI_NETNS=\n"));
    /* again, with nothing cached: the current configuration, no result */
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    assert_int_equal(
        cni_check(w.cni,
                  &(struct cni_attachment){.sandbox_id = "pod1", .ifname = "eth0", .netns = "/x"},
                  NULL, NULL),
        -1);
    stop(&w);
}

static void del_uses_the_configuration_of_the_add(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_free char *conf = fs_format("%s/10-net.conflist", f->conf);
    auto_free char *log = NULL;

    fx_plugin(f, "one");
    fx_plugin(f, "two");
    network(f, "net", "1.0.0", "one");
    fx_write(f->fake, "one.ADD", good_add);
    start(&w, f, SEC(20));
    must_add(&w, "pod1");
    must_add(&w, "pod2");
    network(f, "other", "0.4.0", "two");
    wait_ready(&w, true, "other", NULL);
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    /* the configuration is gone, and the daemon was restarted */
    (void)unlink(conf);
    wait_ready(&w, false, NULL, "no network configuration");
    stop(&w);
    start(&w, f, SEC(20));
    a.sandbox_id = "pod2";
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    log = fx_read(f->fake, "log");
    assert_non_null(strstr(log, "one DEL pod1"));
    assert_non_null(strstr(log, "one DEL pod2"));
    assert_null(strstr(log, "two DEL"));
    /* neither cache nor configuration: nothing to do */
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    stop(&w);
}

static void a_failed_add_is_undone(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL, *fifo = fs_format("%s/fifo", f->fake);
    auto_free char *file = fs_format("%s/results/net-pod1-eth0", f->cache);
    auto_cancel struct cancel *token = NULL;

    fx_plugin(f, "one");
    network(f, "net", "1.0.0", "one");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    fx_write(f->fake, "one.ADD", "cat < \"$FAKE_CNI_DIR/fifo\"");
    start(&w, f, SEC(20));
    /* the call's token ends the ADD; the DEL has time of its own */
    token = cancel_new(mono_ns() + SEC(1) / 2, NULL);
    assert_int_equal(cni_add(w.cni, &a, &n, token, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    log = fx_read(f->fake, "log");
    assert_non_null(strstr(log, "one DEL pod1"));
    assert_false(fs_exists(file));
    /* no address is a failure too */
    fx_write(f->fake, "one.ADD", "echo '{}'");
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "no address"));
    assert_false(fs_exists(file));
    /* when undoing fails as well, the error says so and a DEL may follow */
    fx_write(f->fake, "one.DEL", "echo '{\"code\":5,\"msg\":\"busy\"}'; exit 1");
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "undoing it failed: plugin one: DEL: busy (code 5)"));
    assert_int_equal(cni_del(w.cni, &a, NULL, &err), -1);
    fx_write(f->fake, "one.DEL", "true");
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    stop(&w);
}

static void a_broken_cache_does_not_stop_a_del(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_free char *results = fs_format("%s/results", f->cache);
    auto_free char *file = fs_format("%s/net-pod1-eth0", results), *in = NULL;

    fx_plugin(f, "one");
    network(f, "net", "1.0.0", "one");
    start(&w, f, SEC(20));
    assert_int_equal(fs_mkdir_p(results, 0700, NULL), 0);
    fx_write(results, "net-pod1-eth0", "{\"kind\":\"cniCacheV1\",\"contai");
    /* another container whose id ends in ours */
    fx_write(results, "net-x-pod1-eth0",
             "{\"kind\":\"cniCacheV1\",\"containerId\":\"x-pod1\",\"ifName\":\"eth0\","
             "\"networkName\":\"net\","
             "\"config\":\"eyJuYW1lIjoibmV0IiwicGx1Z2lucyI6W3sidHlwZSI6Im9uZSJ9XX0=\"}");
    assert_int_equal(cni_del(w.cni, &a, NULL, NULL), 0);
    assert_false(fs_exists(file));
    free(file);
    file = fs_format("%s/net-x-pod1-eth0", results);
    assert_true(fs_exists(file));
    in = fx_read(f->fake, "one.DEL.stdin");
    assert_non_null(in);
    assert_null(strstr(in, "prevResult"));
    stop(&w);
}

static void gc_deletes_ours_and_spares_others(void **state)
{
    struct fixture *f = *state;
    struct world w;
    const char *const ids[] = {"pod1", "pod9"};
    auto_free char *log = NULL, *text = NULL;
    auto_free char *gone = fs_format("%s/results/net-pod2-eth0", f->cache);
    auto_free char *results = fs_format("%s/results", f->cache);
    auto_json json_t *in = NULL;
    const json_t *valid;

    fx_plugin(f, "one");
    network(f, "net", "1.1.0", "one");
    fx_write(f->fake, "one.ADD", good_add);
    start(&w, f, SEC(20));
    must_add(&w, "pod1");
    must_add(&w, "pod2");
    fx_write(results, "net-theirs-eth0",
             "{\"kind\":\"cniCacheV1\",\"containerId\":\"theirs\",\"ifName\":\"eth0\","
             "\"networkName\":\"net\","
             "\"config\":\"eyJuYW1lIjoibmV0IiwicGx1Z2lucyI6W3sidHlwZSI6Im9uZSJ9XX0=\"}");
    assert_int_equal(cni_gc(w.cni, ids, 2, NULL, NULL), 0);
    assert_false(fs_exists(gone));
    log = fx_read(f->fake, "log");
    assert_non_null(strstr(log, "one DEL pod2"));
    assert_null(strstr(log, "one DEL pod1"));
    assert_null(strstr(log, "one DEL theirs"));
    text = fx_read(f->fake, "one.GC.stdin");
    in = json_loads(text, 0, NULL);
    valid = json_object_get(in, "cni.dev/valid-attachments");
    assert_int_equal(json_array_size(valid), 3);
    stop(&w);
}

static void readiness_follows_files_and_plugins(void **state)
{
    struct fixture *f = *state;
    struct world w;
    auto_free char *conf = fs_format("%s/10-net.conflist", f->conf);
    auto_free char *aside = fs_format("%s.away", f->conf), *info = NULL;
    auto_json json_t *tree = NULL;
    struct cni_attachment a = pod("pod1");
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;

    fx_plugin(f, "one");
    start(&w, f, SEC(20));
    wait_ready(&w, false, NULL, "cni plugin not initialized: no network configuration");
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    network(f, "net", "1.1.0", "one");
    wait_ready(&w, true, "net", NULL);
    /* the file breaks, and heals */
    fx_write(f->conf, "10-net.conflist", "{ broken");
    wait_ready(&w, false, NULL, "10-net.conflist");
    fx_write(f->fake, "one.STATUS", "echo '{\"code\":50,\"msg\":\"no daemon\"}'; exit 1");
    network(f, "net", "1.1.0", "one");
    wait_ready(&w, false, "net", "plugin one: STATUS: no daemon (code 50)");
    (void)unlink(conf);
    wait_ready(&w, false, NULL, "no network configuration");
    network(f, "late", "1.0.0", "missing");
    wait_ready(&w, false, "late", "plugin missing: no such program");
    fx_plugin(f, "missing");
    network(f, "later", "1.0.0", "missing");
    wait_ready(&w, true, "later", NULL);
    /* the directory goes and comes back */
    assert_int_equal(rename(f->conf, aside), 0);
    wait_ready(&w, false, NULL, "no network configuration");
    assert_int_equal(mkdir(f->conf, 0755), 0);
    network(f, "back", "1.0.0", "one");
    wait_ready(&w, true, "back", NULL);
    network(f, "once-more", "1.0.0", "one");
    wait_ready(&w, true, "once-more", NULL);
    info = cni_info(w.cni);
    tree = json_loads(info, 0, NULL);
    assert_string_equal(json_get_string(tree, "network"), "once-more");
    assert_true(json_is_true(json_object_get(tree, "ready")));
    stop(&w);
}

static void a_hanging_status_blocks_nobody(void **state)
{
    struct fixture *f = *state;
    struct world w;
    auto_free char *fifo = fs_format("%s/fifo", f->fake), *reason = NULL, *message = NULL,
                   *name = NULL;
    int64_t before;

    fx_plugin(f, "one");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    network(f, "net", "1.1.0", "one");
    fx_write(f->fake, "one.VERSION", "cat < \"$FAKE_CNI_DIR/fifo\"");
    before = mono_ns();
    start(&w, f, SEC(60));
    assert_false(cni_ready(w.cni, &reason, &message, &name));
    assert_string_equal(name, "net");
    /* stopping ends the plugin rather than waiting for it */
    stop(&w);
    assert_true(mono_ns() - before < SEC(20));
}

/* A daemon that is killed during an ADD: its plugins go on, and the next daemon's DEL waits. */
static void a_del_waits_for_the_plugins_of_a_killed_daemon(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL;

    network(f, "mynet", "1.0.0", "slow");
    fx_plugin(f, "slow");
    fx_write(f->fake, "slow.ADD", "sleep 1; echo late >> $FAKE_CNI_DIR/log");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        auto_netinfo struct netinfo n = {0};
        start(&w, f, SEC(20));
        (void)cni_add(w.cni, &a, &n, NULL, NULL);
        _exit(0);
    }
    auto_free char *file = fs_format("%s/slow.ADD.env", f->fake);
    for (int64_t end = mono_ns() + SEC(15); !fs_exists(file);)
        assert_true(mono_ns() < end && poll(NULL, 0, 5) == 0);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    start(&w, f, SEC(20));
    if (cni_del(w.cni, &a, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    stop(&w);
    log = fx_read(f->fake, "log");
    const char *late = strstr(log, "late");
    const char *del = strstr(log, "slow DEL");
    assert_true(late != NULL && del != NULL && late < del);
}

/* A plugin that is at work when its call is cancelled finishes before its work is undone. */
static void a_cancelled_add_is_not_torn_apart(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a = pod("pod1");
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *soon = cancel_new(mono_ns() + SEC(1) / 2, NULL);

    network(f, "mynet", "1.0.0", "slow");
    fx_plugin(f, "slow");
    fx_write(f->fake, "slow.ADD", "sleep 2; echo late >> $FAKE_CNI_DIR/log");
    start(&w, f, SEC(20));
    assert_int_equal(cni_add(w.cni, &a, &n, soon, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    stop(&w);
    auto_free char *log = fx_read(f->fake, "log");
    const char *late = strstr(log, "late");
    const char *del = strstr(log, "slow DEL");
    assert_true(late != NULL && del != NULL && late < del);
}

static void hostile_attachments_are_refused(void **state)
{
    struct fixture *f = *state;
    struct world w;
    struct cni_attachment a;
    auto_netinfo struct netinfo n = {0};
    auto_free char *log = NULL;
    const struct cni_port_mapping bad_port = {
        .protocol = "icmp", .container_port = 1, .host_port = 1};

    fx_plugin(f, "one");
    network(f, "net", "1.0.0", "one");
    start(&w, f, SEC(20));
    a = pod("../pod");
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, NULL), -1);
    a = pod("pod");
    a.ifname = "eth0/..";
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, NULL), -1);
    a = pod("pod");
    a.pod_name = "web;K8S_POD_UID=other";
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, NULL), -1);
    a = pod("pod");
    a.netns = "";
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, NULL), -1);
    a = pod("pod");
    a.ports = &bad_port;
    a.n_ports = 1;
    assert_int_equal(cni_add(w.cni, &a, &n, NULL, NULL), -1);
    log = fx_read(f->fake, "log");
    assert_true(log == NULL || strstr(log, "ADD") == NULL);
    stop(&w);
}

/* ---- the gate ---- */

static struct {
    struct gate *gate;
    pthread_mutex_t lock;
    int inside, most, of_key[4];
    bool alone, broken;
} g;

static void *visit(void *arg)
{
    int key = *(int *)arg;
    static const char *const keys[] = {"a", "b", "c", NULL};

    for (int i = 0; i < 50; i++) {
        struct gate_pass *p = gate_enter(g.gate, keys[key], NULL, NULL);

        (void)pthread_mutex_lock(&g.lock);
        g.inside++;
        g.of_key[key]++;
        g.broken |= g.of_key[key] > 1 || g.alone || (key == 3 && g.inside > 1) || g.inside > 2;
        g.alone = key == 3;
        (void)pthread_mutex_unlock(&g.lock);
        (void)sched_yield();
        (void)pthread_mutex_lock(&g.lock);
        g.inside--;
        g.of_key[key]--;
        g.alone = g.alone && key != 3;
        (void)pthread_mutex_unlock(&g.lock);
        gate_leave(p);
    }
    return NULL;
}

static void the_gate_keeps_its_rules(void **state)
{
    pthread_t t[8];
    int keys[8] = {0, 0, 1, 1, 2, 2, 3, 3};
    struct gate_pass *first, *second;
    auto_cancel struct cancel *token = cancel_new(mono_ns() + 10000000, NULL);
    auto_err struct err err = ERR_INIT;

    (void)state;
    (void)pthread_mutex_init(&g.lock, NULL);
    g.gate = gate_new(2);
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&t[i], NULL, visit, &keys[i]), 0);
    for (int i = 0; i < 8; i++)
        (void)pthread_join(t[i], NULL);
    assert_false(g.broken);
    /* a waiter whose token fires goes away and blocks nobody */
    first = gate_enter(g.gate, "a", NULL, NULL);
    assert_null(gate_enter(g.gate, NULL, token, &err));
    assert_int_equal(err.code, ERR_DEADLINE);
    second = gate_enter(g.gate, "b", NULL, NULL);
    assert_non_null(second);
    gate_leave(first);
    gate_leave(second);
    gate_free(g.gate);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fx_setup, fx_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(add_check_del),
        TEST(del_uses_the_configuration_of_the_add),
        TEST(a_failed_add_is_undone),
        TEST(a_broken_cache_does_not_stop_a_del),
        TEST(gc_deletes_ours_and_spares_others),
        TEST(readiness_follows_files_and_plugins),
        TEST(a_hanging_status_blocks_nobody),
        TEST(a_del_waits_for_the_plugins_of_a_killed_daemon),
        TEST(a_cancelled_add_is_not_torn_apart),
        TEST(hostile_attachments_are_refused),
        cmocka_unit_test(the_gate_keeps_its_rules),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
