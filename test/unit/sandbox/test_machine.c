/* Real VMs: needs root, QEMU, and the guest files that deploy/guest and the build make. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/arena.h"
#include "sandbox/cgroup.h"
#include "sandbox/machine_internal.h"

#define SECOND INT64_C(1000000000)

static struct {
    struct loop *control, *io;
    pthread_t threads[2];
    char root[64], cgroup[64];
    char *run, *state;
    struct machine_config config;
    struct machine_factory *f;
} t;

struct watch {
    sem_t dead;
    char reason[8192];
};

static void on_dead(void *arg, const char *reason)
{
    struct watch *w = arg;
    (void)snprintf(w->reason, sizeof(w->reason), "%s", reason);
    (void)sem_post(&w->dead);
}

static void on_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    (void)arg;
    (void)event;
}

static struct watch *new_watch(void)
{
    struct watch *w = xcalloc(1, sizeof(*w));
    (void)sem_init(&w->dead, 0, 0);
    return w;
}

static struct machine_callbacks callbacks(struct watch *w)
{
    return (struct machine_callbacks){.on_event = on_event, .on_dead = on_dead, .arg = w};
}

static bool dead_within(struct watch *w, int64_t ns)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += ns / SECOND;
    int rc;
    while ((rc = sem_timedwait(&w->dead, &ts)) < 0 && errno == EINTR)
        ;
    return rc == 0;
}

static void *run(void *arg)
{
    loop_run(arg);
    return NULL;
}

static int group_setup(void **state)
{
    (void)state;
    (void)snprintf(t.root, sizeof(t.root), "/run/aspis-unit-XXXXXX");
    assert_non_null(mkdtemp(t.root));
    t.run = fs_format("%s/run", t.root);
    t.state = fs_format("%s/state", t.root);
    (void)snprintf(t.cgroup, sizeof(t.cgroup), "/aspis-unit-vm-%d", (int)getpid());
    t.control = loop_new(NULL);
    t.io = loop_new(NULL);
    assert_int_equal(pthread_create(&t.threads[0], NULL, run, t.control), 0);
    assert_int_equal(pthread_create(&t.threads[1], NULL, run, t.io), 0);
    t.config = (struct machine_config){
        .qemu = "/usr/bin/qemu-system-x86_64",
        .kernel = getenv("ASPIS_KERNEL"),
        .initrd = getenv("ASPIS_INITRD"),
        .jail_helper = getenv("ASPIS_JAIL"),
        .run_root = t.run,
        .state_root = t.state,
        .accel = ACCEL_TCG,
        .transport = TRANSPORT_VIRTIO_SERIAL,
        .uid_base = 2146000000,
        .uid_count = 16,
        .base_memory_bytes = MiB(192),
        .overhead_memory_bytes = MiB(64),
        .max_vcpus = 1,
        .scratch_bytes = GiB(1),
        .boot_timeout_ns = 60 * SECOND,
        .kvm_probe_timeout_ns = 20 * SECOND,
        .cgroup_root = t.cgroup,
    };
    auto_err struct err err = ERR_INIT;
    t.f = machine_factory_new(&t.config, t.control, t.io, &err);
    if (t.f == NULL)
        fail_msg("%s", err_msg(&err));
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    machine_factory_free(t.f);
    loop_stop(t.control);
    loop_stop(t.io);
    (void)pthread_join(t.threads[0], NULL);
    (void)pthread_join(t.threads[1], NULL);
    loop_free(t.control);
    loop_free(t.io);
    (void)fs_rm_rf(t.root, NULL);
    free(t.run);
    free(t.state);
    return 0;
}

static struct machine *start(struct machine_factory *f, const char *id, struct watch *w)
{
    auto_err struct err err = ERR_INIT;
    struct machine_spec spec = {.sandbox_id = id, .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = callbacks(w);
    struct machine *m = machine_start(f, &spec, &cb, NULL, &err);
    if (m == NULL)
        fail_msg("%s", err_msg(&err));
    return m;
}

static void nothing_left(const char *id)
{
    auto_free char *run_dir = machine_run_path(t.f, id);
    auto_free char *state_dir = machine_state_path(t.f, id);
    assert_false(fs_exists(run_dir));
    assert_false(fs_exists(state_dir));
    auto_strv struct strv groups = {0};
    (void)cgroup_find(t.cgroup, &groups, NULL);
    for (size_t i = 0; i < groups.n; i++)
        assert_null(strstr(groups.v[i], id));
    for (uint32_t i = 0; i < t.config.uid_count; i++)
        assert_int_equal(t.f->uids[i], 0);
}

static void end(struct machine *m, struct watch *w, const char *id)
{
    auto_err struct err err = ERR_INIT;
    if (machine_destroy(m, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(machine_destroy(m, NULL, &err), 0); /* again */
    machine_free(m);
    nothing_left(id);
    (void)sem_destroy(&w->dead);
    free(w);
}

static void has(const char *text, const char *want)
{
    if (text == NULL || strstr(text, want) == NULL)
        fail_msg("no \"%s\" in: %s", want, text != NULL ? text : "(nothing)");
}

static char *proc_file(pid_t pid, const char *name)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    char *text = fs_read(path, MiB(1), NULL, NULL);
    assert_non_null(text);
    return text;
}

static void life(void **state)
{
    (void)state;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "life", w);
    struct machine_record r = {0};
    machine_get_record(m, &r);
    assert_true(machine_alive(m));
    assert_int_equal(r.memory_bytes, MiB(192));
    assert_int_equal(r.vcpus, 1);
    assert_string_equal(r.accel, "tcg");
    /* confinement, as the kernel sees it */
    auto_free char *status = proc_file(r.pid, "status");
    char uid_line[128];
    (void)snprintf(uid_line, sizeof(uid_line), "Uid:\t%u\t%u\t%u\t%u\n", r.uid, r.uid, r.uid,
                   r.uid);
    has(status, uid_line);
    has(status, "CapEff:\t0000000000000000");
    has(status, "CapBnd:\t0000000000000000");
    has(status, "NoNewPrivs:\t1");
    has(status, "Seccomp:\t2");
    auto_free char *groups = proc_file(r.pid, "cgroup");
    has(groups, r.cgroup);
    auto_free char *mounts = proc_file(r.pid, "mountinfo");
    assert_null(strstr(mounts, t.root));
    assert_null(strstr(mounts, " /proc "));
    /* the agent answers, and says what it has */
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(1));
    Aspis__Agent__V1__Empty ping;
    aspis__agent__v1__empty__init(&ping);
    if (link_call(machine_link(m), "Ping", &ping.base, &aspis__agent__v1__empty__descriptor, a,
                  NULL, &err) == NULL)
        fail_msg("%s", err_msg(&err));
    machine_record_clear(&r);
    end(m, w, "life");
}

static int part(size_t size)
{
    int fd = memfd_create("part", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static void disks(void **state)
{
    (void)state;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "disks", w);
    auto_err struct err err = ERR_INIT;
    struct disk_part parts[128];
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        parts[i] = (struct disk_part){.fd = part(8192), .size = 8192};
    /* forty layers, one layer, as many as an image may have; twice the same is once */
    const size_t counts[] = {41, 1, 128};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        char serial[21];
        (void)snprintf(serial, sizeof(serial), "img-%zu", counts[i]);
        for (int again = 0; again < 2; again++) {
            if (machine_attach_image(m, serial, parts, counts[i], NULL, &err) < 0)
                fail_msg("%s", err_msg(&err));
        }
    }
    if (machine_detach_image(m, "img-41", NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(machine_detach_image(m, "img-41", NULL, &err), 0);
    assert_int_equal(machine_attach_image(m, "img-41", parts, 41, NULL, &err), 0);
    /* what cannot be a disk is refused, and costs no slot */
    struct disk_part bad = parts[0];
    bad.size = 16384; /* longer than its file */
    for (int i = 0; i < 40; i++) {
        assert_int_equal(machine_attach_image(m, "bad", &bad, 1, NULL, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
        err_clear(&err);
    }
    assert_int_equal(machine_attach_image(m, "no,pe=1", parts, 1, NULL, &err), -1);
    err_clear(&err);
    assert_int_equal(machine_attach_image(m, "none", parts, 0, NULL, &err), -1);
    err_clear(&err);
    /* the slots end, with an error that says so, and detaching frees one */
    int n = 3;
    for (; n < 40; n++) {
        char serial[21];
        (void)snprintf(serial, sizeof(serial), "more-%d", n);
        if (machine_attach_image(m, serial, parts, 2, NULL, &err) < 0)
            break;
    }
    assert_int_equal(n, 31); /* the two that are always there, and those of the bridge */
    assert_int_equal(err.code, ERR_EXHAUSTED);
    err_clear(&err);
    assert_int_equal(machine_detach_image(m, "more-7", NULL, &err), 0);
    assert_int_equal(machine_attach_image(m, "last", parts, 2, NULL, &err), 0);

    /* a restarted daemon knows them */
    struct machine_record r = {0};
    machine_get_record(m, &r);
    machine_free(m);
    struct machine_spec spec = {.sandbox_id = "disks", .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = callbacks(w);
    m = machine_adopt(t.f, &spec, &r, &cb, NULL, &err);
    if (m == NULL)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(machine_attach_image(m, "last", parts, 2, NULL, &err), 0);
    assert_int_equal(machine_attach_image(m, "one-more", parts, 2, NULL, &err), -1);
    err_clear(&err);
    assert_int_equal(machine_detach_image(m, "last", NULL, &err), 0);
    assert_int_equal(machine_attach_image(m, "one-more", parts, 2, NULL, &err), 0);
    machine_record_clear(&r);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        (void)close(parts[i].fd);
    end(m, w, "disks");
}

static void killed(void **state)
{
    (void)state;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "killed", w);
    struct machine_record r = {0};
    machine_get_record(m, &r);
    assert_int_equal(kill(r.pid, SIGKILL), 0);
    assert_true(dead_within(w, SECOND));
    has(w->reason, "signal 9");
    has(w->reason, "console:");
    assert_false(machine_alive(m));
    auto_err struct err err = ERR_INIT;
    struct disk_part p = {.fd = 0, .size = 4096};
    assert_int_equal(machine_attach_image(m, "x", &p, 1, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_int_equal(machine_detach_image(m, "x", NULL, &err), 0);
    /* it cannot be adopted any more */
    struct machine_spec spec = {.sandbox_id = "killed", .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = callbacks(w);
    err_clear(&err);
    assert_null(machine_adopt(t.f, &spec, &r, &cb, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    machine_record_clear(&r);
    end(m, w, "killed");
}

static void stopped_vm(void **state)
{
    (void)state;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "stopped", w);
    struct machine_record r = {0};
    machine_get_record(m, &r);
    assert_int_equal(kill(r.pid, SIGSTOP), 0);
    auto_err struct err err = ERR_INIT;
    auto_close int fd = part(4096);
    struct disk_part p = {.fd = fd, .size = 4096};
    auto_cancel struct cancel *c = cancel_new(mono_ns() + SECOND / 10, NULL);
    assert_int_equal(machine_attach_image(m, "x", &p, 1, c, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    machine_record_clear(&r);
    end(m, w, "stopped");
}

static void adopted_and_recorded(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "adopted", w);
    struct machine_record r = {0};
    machine_get_record(m, &r);
    machine_free(m); /* as when the daemon ends */
    assert_int_equal(kill(r.pid, 0), 0);
    struct machine_spec spec = {.sandbox_id = "adopted", .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = callbacks(w);
    /* another process of that pid is not ours */
    struct machine_record wrong = r;
    wrong.pid_start_time++;
    assert_null(machine_adopt(t.f, &spec, &wrong, &cb, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    err_clear(&err);
    m = machine_adopt(t.f, &spec, &r, &cb, NULL, &err);
    if (m == NULL)
        fail_msg("%s", err_msg(&err));
    assert_true(machine_alive(m));
    machine_free(m);
    assert_int_equal(machine_destroy_record(t.f, "adopted", &r, NULL, &err), 0);
    assert_int_equal(machine_destroy_record(t.f, "adopted", &r, NULL, &err), 0);
    nothing_left("adopted");
    machine_record_clear(&r);
    (void)sem_destroy(&w->dead);
    free(w);
}

/* The daemon died before it could record the machine. */
static void unrecorded(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct watch *w = new_watch();
    struct machine *m = start(t.f, "lost", w);
    struct machine *kept = start(t.f, "kept", w);
    struct machine_record lost = {0};
    struct machine_record k = {0};
    machine_get_record(m, &lost);
    machine_get_record(kept, &k);
    machine_free(m);
    assert_int_equal(machine_destroy_record(t.f, "lost", NULL, NULL, &err), 0);
    machine_uid_release(t.f, lost.uid); /* a new daemon would not have had it */
    assert_int_equal(kill(k.pid, 0), 0);
    assert_true(machine_alive(kept));

    m = start(t.f, "lost2", w);
    machine_record_clear(&lost);
    machine_get_record(m, &lost);
    machine_free(m);
    const char *ids[] = {"kept"};
    if (machine_collect(t.f, ids, 1, &err) < 0)
        fail_msg("%s", err_msg(&err));
    machine_uid_release(t.f, lost.uid);
    assert_true(machine_alive(kept));
    auto_free char *gone = machine_run_path(t.f, "lost2");
    assert_false(fs_exists(gone));
    machine_record_clear(&lost);
    machine_record_clear(&k);
    end(kept, w, "kept");
}

static struct machine *start_with(struct machine_config *c, const char *id, struct cancel *cancel,
                                  struct err *err)
{
    struct watch *w = new_watch();
    struct machine_factory *f = machine_factory_new(c, t.control, t.io, err);
    struct machine_spec spec = {.sandbox_id = id, .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = callbacks(w);
    assert_non_null(f);
    struct machine *m = machine_start(f, &spec, &cb, cancel, err);
    if (m == NULL) {
        for (uint32_t i = 0; i < c->uid_count; i++)
            assert_int_equal(f->uids[i], 0);
        machine_factory_free(f);
        assert_false(dead_within(w, 0)); /* a machine that never was does not die */
    }
    (void)sem_destroy(&w->dead);
    free(w);
    return m;
}

static void failed_boots(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_free char *junk = fs_format("%s/junk", t.root);
    assert_int_equal(fs_write_atomic(junk, "junk", 4, 0644, false, &err), 0);
    /* no init: the kernel panics, and the error says so */
    struct machine_config c = t.config;
    c.initrd = junk;
    c.boot_timeout_ns = 300 * SECOND; /* a kernel that gets a twentieth of a processor */
    int64_t begin = mono_ns();
    assert_null(start_with(&c, "panic", NULL, &err));
    assert_true(mono_ns() - begin < 240 * SECOND); /* not the deadline */
    has(err_msg(&err), "Kernel panic");
    err_clear(&err);
    nothing_left("panic");
    /* not a kernel at all */
    c = t.config;
    c.kernel = junk;
    assert_null(start_with(&c, "nokernel", NULL, &err));
    err_clear(&err);
    nothing_left("nokernel");
    /* too slow */
    c = t.config;
    c.boot_timeout_ns = SECOND / 5;
    assert_null(start_with(&c, "slow", NULL, &err));
    assert_int_equal(err.code, ERR_DEADLINE);
    has(err_msg(&err), "did not answer within 200 ms");
    err_clear(&err);
    nothing_left("slow");
    /* the caller gives up */
    auto_cancel struct cancel *cancel = cancel_new(mono_ns() + SECOND / 10, NULL);
    assert_null(start_with(&t.config, "givenup", cancel, &err));
    assert_int_equal(err.code, ERR_DEADLINE);
    err_clear(&err);
    nothing_left("givenup");
    auto_cancel struct cancel *fired = cancel_new(0, NULL);
    cancel_fire(fired);
    assert_null(start_with(&t.config, "fired", fired, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    err_clear(&err);
    nothing_left("fired");
    /* files that are missing */
    c = t.config;
    c.jail_helper = "/nonexistent";
    assert_null(start_with(&c, "nojail", NULL, &err));
    err_clear(&err);
    nothing_left("nojail");
    c = t.config;
    c.initrd = "/nonexistent";
    assert_null(start_with(&c, "noinitrd", NULL, &err));
    has(err_msg(&err), "/nonexistent");
    err_clear(&err);
    nothing_left("noinitrd");
    /* hostile names */
    struct machine_callbacks cb = callbacks(NULL);
    struct machine_spec spec = {.sandbox_id = "../x", .cgroup_parent = "", .tap_fd = -1};
    assert_null(machine_start(t.f, &spec, &cb, NULL, &err));
    assert_int_equal(err.code, ERR_INVALID);
    err_clear(&err);
    spec.sandbox_id = "ok";
    spec.cgroup_parent = "/../../etc";
    assert_null(machine_start(t.f, &spec, &cb, NULL, &err));
    assert_int_equal(err.code, ERR_INVALID);
    nothing_left("ok");
}

static void facts(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct machine_facts m = {0};
    assert_int_equal(machine_facts(t.f, &m, &err), 0);
    assert_true(m.ready);
    assert_int_equal(m.accel, ACCEL_TCG);
    assert_int_equal(m.transport, TRANSPORT_VIRTIO_SERIAL);
    assert_non_null(m.qemu_version);
    assert_non_null(m.kernel_release);
    has(m.kernel_release, ".");
    machine_facts_clear(&m);
    struct machine_config c = t.config;
    c.qemu = "/nonexistent";
    struct machine_factory *f = machine_factory_new(&c, t.control, t.io, &err);
    assert_int_equal(machine_facts(f, &m, &err), 0);
    assert_false(m.ready);
    has(m.not_ready_reason, "qemu");
    machine_facts_clear(&m);
    machine_factory_free(f);
    c = t.config;
    c.uid_base = 0;
    assert_null(machine_factory_new(&c, t.control, t.io, &err)); /* root is no pool */
}

static void verdict(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct machine_config c = t.config;
    c.accel = ACCEL_AUTO;
    struct machine_factory *f = machine_factory_new(&c, t.control, t.io, &err);
    if (machine_decide_accel(f, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_not_equal(f->accel, ACCEL_AUTO);
    enum accel first = f->accel;
    has(f->accel_reason, first == ACCEL_KVM ? "kvm: " : "tcg: ");
    machine_factory_free(f);
    /* the next daemon of this boot need not probe */
    f = machine_factory_new(&c, t.control, t.io, &err);
    assert_int_equal(f->accel, first);
    machine_factory_free(f);
    /* unless the kernel is another; a damaged cache is none */
    auto_free char *cache = fs_format("%s/accel.json", t.run);
    assert_int_equal(fs_write_atomic(cache, "{\"key\":1", 8, 0600, false, &err), 0);
    f = machine_factory_new(&c, t.control, t.io, &err);
    assert_int_equal(f->accel, ACCEL_AUTO);
    /* a caller that gives up decides nothing */
    auto_cancel struct cancel *fired = cancel_new(0, NULL);
    cancel_fire(fired);
    (void)machine_decide_accel(f, fired, &err);
    machine_factory_free(f);
    err_clear(&err);
    nothing_left("kvm-probe");
}

static int usable(void)
{
    const char *files[] = {getenv("ASPIS_KERNEL"), getenv("ASPIS_INITRD"), getenv("ASPIS_JAIL"),
                           "/usr/bin/qemu-system-x86_64"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        if (files[i] == NULL || access(files[i], R_OK) < 0)
            return 0;
    }
    return geteuid() == 0;
}

int main(int argc, char **argv)
{
    if (!usable()) {
        puts("1..0 # SKIP needs root, qemu and the guest files");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts),      cmocka_unit_test(life),
        cmocka_unit_test(disks),      cmocka_unit_test(killed),
        cmocka_unit_test(stopped_vm), cmocka_unit_test(adopted_and_recorded),
        cmocka_unit_test(unrecorded), cmocka_unit_test(failed_boots),
        cmocka_unit_test(verdict),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
