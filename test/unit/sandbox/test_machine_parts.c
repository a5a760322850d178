/* The parts of a machine that need no VM: argument vector, size, record, console, scratch disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "sandbox/console.h"
#include "sandbox/machine_internal.h"
#include "sandbox/qemu_argv.h"
#include "sandbox/scratch.h"

/* --- argument vector --- */

static const struct hv_spec base_spec = {
    .name = "/run/x/a,b",
    .binary = "/usr/bin/qemu-system-x86_64",
    .accel = ACCEL_TCG,
    .tsc_khz = 2600001,
    .memory_bytes = MiB(300),
    .max_memory_bytes = MiB(4096),
    .vcpus = 2,
    .max_vcpus = 8,
    .tap_fd = 5,
    .mac = "02:00:00:aA:00:01",
    .scratch_fd = 6,
    .scratch_serial = "scratch",
};

static char *joined(const struct hv_spec *s, struct err *err)
{
    auto_strv struct strv a = {0};
    auto_buf struct buf b = BUF_INIT(MiB(1));
    if (qemu_argv(s, qemu_arch_host(), &a, err) < 0)
        return NULL;
    for (size_t i = 0; i < a.n; i++) {
        (void)buf_puts(&b, a.v[i]);
        (void)buf_puts(&b, "\n");
    }
    return buf_take(&b);
}

static void has(const char *text, const char *want)
{
    if (strstr(text, want) == NULL)
        fail_msg("no \"%s\" in:\n%s", want, text);
}

static void hasnt(const char *text, const char *what)
{
    if (strstr(text, what) != NULL)
        fail_msg("\"%s\" in:\n%s", what, text);
}

static void argv_tcg(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    if (qemu_arch_host() == NULL)
        skip();
    auto_free char *t = joined(&base_spec, &err);
    assert_non_null(t);
    has(t, "-name\nguest=/run/x/a,,b\n");
    has(t, "-nodefaults\n");
    has(t, "-no-user-config\n");
    has(t, "-sandbox\non,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny\n");
    has(t, "-no-reboot\n");
    has(t, "-accel\ntcg,");
    has(t, " tsc_early_khz=2600001");
    has(t, "-smp\ncpus=2,maxcpus=8\n");
    has(t, "-m\nsize=300M,maxmem=4096M\n");
    has(t, "name=org.aspis.rpc\n");
    has(t, "name=org.aspis.io\n");
    has(t, "name=org.aspis.fs\n");
    has(t, "virtio-net-pci,netdev=net,mac=02:00:00:aA:00:01,romfile=\n");
    has(t, "free-page-reporting=on");
    has(t, "vmgenid");
    /* 4096 less 300, in whole steps, of which no more than this is at hand */
    has(t, "memory-backend-memfd,id=more-ram,size=2048M,share=on");
    has(t, "virtio-mem-pci,id=more,memdev=more-ram,requested-size=0\n");
    has(t, "filename=/dev/fdset/1,discard=unmap");
    hasnt(t, "vhost-vsock");
    hasnt(t, "kvm");
    /* no file or socket of the host is named: everything is a descriptor */
    hasnt(t, "path=");
    hasnt(t, "ifname=");
}

static void argv_kvm_vsock(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    if (qemu_arch_host() == NULL)
        skip();
    struct hv_spec s = base_spec;
    s.accel = ACCEL_KVM;
    s.cid = 77;
    s.tap_fd = -1;
    s.mac = NULL;
    s.scratch_fd = -1;
    auto_free char *t = joined(&s, &err);
    assert_non_null(t);
    has(t, "-accel\nkvm\n");
    has(t, "-cpu\nhost\n");
    has(t, "vhost-vsock-pci,guest-cid=77,vhostfd=");
    hasnt(t, "virtserialport");
    hasnt(t, "tsc_early_khz");
    hasnt(t, "no_timer_check");
    hasnt(t, "netdev");
    hasnt(t, "scratch");
}

static void argv_bad_mac(void **state)
{
    (void)state;
    static const char *const bad[] = {NULL,
                                      "",
                                      "02:00:00:00:00",
                                      "02:00:00:00:00:01,x=y",
                                      "02:00:00:00:00:0g",
                                      "02-00-00-00-00-01",
                                      "02:00:00:00:00:01:02"};
    if (qemu_arch_host() == NULL)
        skip();
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        struct hv_spec s = base_spec;
        s.mac = bad[i];
        assert_null(joined(&s, &err));
        assert_int_equal(err.code, ERR_INVALID);
    }
}

static void escaping(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""}, {"a", "a"}, {",", ",,"}, {"a,b,,c", "a,,b,,,,c"}, {"\n;\xff", "\n;\xff"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_free char *got = qemu_escape(cases[i].in);
        assert_string_equal(got, cases[i].out);
    }
}

/* --- size --- */

static void sizes(void **state)
{
    (void)state;
    struct machine_config c = {.base_memory_bytes = MiB(256), .overhead_memory_bytes = MiB(96)};
    const uint64_t host = GiB(16) + 12345;
    struct machine_size s = machine_size_for(&c, host, 8, 0, 0, 0);
    assert_int_equal(s.memory_bytes, MiB(256));
    assert_int_equal(s.vcpus, 1);
    assert_int_equal(s.max_vcpus, 8);
    assert_true(s.max_memory_bytes >= s.memory_bytes);
    assert_int_equal(s.max_memory_bytes % MiB(1), 0);
    /* a small limit does not make a VM too small to boot */
    s = machine_size_for(&c, host, 8, MiB(16), 0, 0);
    assert_int_equal(s.memory_bytes, MiB(256));
    s = machine_size_for(&c, host, 8, MiB(1000) + 1, 0, 0);
    assert_int_equal(s.memory_bytes, MiB(1097));
    /* never more than the host or the configuration */
    s = machine_size_for(&c, host, 8, GiB(20), 0, 0);
    assert_int_equal(s.memory_bytes, GiB(16));
    s = machine_size_for(&c, host, 8, UINT64_MAX, 0, 0);
    assert_int_equal(s.memory_bytes, GiB(16));
    c.max_memory_bytes = GiB(4);
    s = machine_size_for(&c, host, 8, GiB(20), 0, 0);
    assert_int_equal(s.memory_bytes, GiB(4));

    assert_int_equal(machine_size_for(&c, host, 8, 0, 100000, 100000).vcpus, 1);
    assert_int_equal(machine_size_for(&c, host, 8, 0, 100001, 100000).vcpus, 2);
    assert_int_equal(machine_size_for(&c, host, 8, 0, 1000, 100000).vcpus, 1);
    assert_int_equal(machine_size_for(&c, host, 8, 0, 350000, 100000).vcpus, 4);
    assert_int_equal(machine_size_for(&c, host, 8, 0, INT64_MAX, 1).vcpus, 8);
    assert_int_equal(machine_size_for(&c, host, 8, 0, -1, 100000).vcpus, 1);
    assert_int_equal(machine_size_for(&c, host, 8, 0, 5, 0).vcpus, 1);
    c.max_vcpus = 3;
    assert_int_equal(machine_size_for(&c, host, 8, 0, 900000, 100000).vcpus, 3);
    assert_int_equal(machine_size_for(&c, host, 8, 0, 0, 0).max_vcpus, 3);
    c.max_vcpus = 0;
    assert_int_equal(machine_size_for(&c, host, 64, 0, 0, 0).max_vcpus, 32);
    assert_int_equal(machine_size_for(&c, host, 64, 0, 6400000, 100000).max_vcpus, 64);
}

static void sizes_of_pods(void **state)
{
    (void)state;
    struct machine_factory f = {
        .config = {.base_memory_bytes = MiB(256), .overhead_memory_bytes = MiB(96)},
        .host_memory_bytes = GiB(16),
        .host_vcpus = 4,
    };
    struct machine_spec s = {.memory_limit_bytes = MiB(300), .memory_needed_bytes = MiB(100)};
    assert_int_equal(machine_spec_size(&f, &s).memory_bytes, MiB(396));
    /* a container that was given more than its pod */
    s.memory_needed_bytes = MiB(700);
    assert_int_equal(machine_spec_size(&f, &s).memory_bytes, MiB(796));
    s.memory_limit_bytes = 0;
    assert_int_equal(machine_spec_size(&f, &s).memory_bytes, MiB(796));
    s.memory_needed_bytes = UINT64_MAX;
    assert_int_equal(machine_spec_size(&f, &s).memory_bytes, GiB(16));
    assert_int_equal(machine_base_size(&f).memory_bytes, MiB(256));
}

/* --- record --- */

/* Several that grow at once do not each get the same memory, and some is kept back. */
static void shares_of_the_host(void **state)
{
    (void)state;
    static const char text[] = "MemTotal:  9999999 kB\nMemFree: 1 kB\nMemAvailable:  1048576 kB\n";
    const uint64_t step = MiB(128);
    const int64_t later = 60000000000;
    struct host_memory h;
    host_memory_init(&h);
    assert_int_equal(host_memory_grant_of(&h, text, later, MiB(512), step, MiB(256)), MiB(512));
    assert_int_equal(host_memory_grant_of(&h, text, later + 1, MiB(512), step, MiB(256)), MiB(256));
    assert_int_equal(host_memory_grant_of(&h, text, later + 2, MiB(512), step, MiB(256)), 0);
    /* what was granted shows by then, or was not used */
    assert_int_equal(host_memory_grant_of(&h, text, 2 * later, GiB(8), step, MiB(250)), MiB(768));
    assert_int_equal(host_memory_grant_of(&h, text, 3 * later, MiB(130), step, 0), step);
    assert_int_equal(host_memory_grant_of(&h, text, 4 * later, GiB(1), step, GiB(2)), 0);
    /* what cannot be told does not stand in the way */
    assert_int_equal(host_memory_grant_of(&h, NULL, later, GiB(1), step, GiB(2)), GiB(1));
    assert_int_equal(host_memory_grant_of(&h, "MemAvailable: no", later, GiB(1), step, 0), GiB(1));
    host_memory_destroy(&h);
}

static void records(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    char accel[] = "tcg";
    char transport[] = "virtio-serial";
    char cgroup[] = "/kube\"pods/\\x";
    struct machine_record r = {.pid = 4711,
                               .pid_start_time = UINT64_C(1) << 40,
                               .uid = 3000000001U,
                               .cid = 0,
                               .accel = accel,
                               .transport = transport,
                               .cgroup = cgroup,
                               .memory_bytes = GiB(64),
                               .vcpus = 3};
    auto_free char *text = machine_record_encode(&r);
    struct machine_record back = {0};
    assert_int_equal(machine_record_decode(text, &back, &err), 0);
    assert_int_equal(back.pid, r.pid);
    assert_int_equal(back.pid_start_time, r.pid_start_time);
    assert_int_equal(back.uid, r.uid);
    assert_int_equal(back.memory_bytes, r.memory_bytes);
    assert_int_equal(back.vcpus, 3);
    assert_string_equal(back.cgroup, cgroup);
    assert_string_equal(back.accel, "tcg");
    machine_record_clear(&back);
    static const char *const bad[] = {
        "",
        "{}",
        "[]",
        "null",
        "x",
        "{\"pid\":-1,\"pid_start_time\":1,\"uid\":1,\"cid\":0,\"accel\":\"\",\"transport\":\"\","
        "\"cgroup\":\"\",\"memory_bytes\":1,\"vcpus\":1}",
        "{\"pid\":1,\"pid_start_time\":1,\"uid\":4294967295,\"cid\":0,\"accel\":\"\","
        "\"transport\":\"\",\"cgroup\":\"\",\"memory_bytes\":1,\"vcpus\":1}",
        "{\"pid\":1,\"pid_start_time\":1,\"uid\":1,\"cid\":0,\"accel\":7,\"transport\":\"\","
        "\"cgroup\":\"\",\"memory_bytes\":1,\"vcpus\":1}",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(machine_record_decode(bad[i], &back, &err), -1);
        assert_int_equal(err.code, ERR_DATA_LOSS);
        err_clear(&err);
    }
    for (size_t n = 0; n < strlen(text); n++) { /* cut anywhere */
        auto_free char *part = xstrndup(text, n);
        assert_int_equal(machine_record_decode(part, &back, NULL), -1);
    }
}

/* --- console --- */

struct io {
    struct loop *loop;
    pthread_t thread;
    char dir[64];
};

static void *run(void *arg)
{
    loop_run(arg);
    return NULL;
}

static int io_setup(void **state)
{
    struct io *io = xcalloc(1, sizeof(*io));
    (void)snprintf(io->dir, sizeof(io->dir), "/tmp/aspis-parts-XXXXXX");
    assert_non_null(mkdtemp(io->dir));
    io->loop = loop_new(NULL);
    assert_int_equal(pthread_create(&io->thread, NULL, run, io->loop), 0);
    *state = io;
    return 0;
}

static int io_teardown(void **state)
{
    struct io *io = *state;
    loop_stop(io->loop);
    (void)pthread_join(io->thread, NULL);
    loop_free(io->loop);
    (void)fs_rm_rf(io->dir, NULL);
    free(io);
    return 0;
}

static void nothing(void *arg)
{
    (void)arg;
}

static void drain(void *arg)
{
    console_drain(arg);
}

static void console_bounds(void **state)
{
    struct io *io = *state;
    auto_err struct err err = ERR_INIT;
    auto_free char *path = fs_format("%s/con", io->dir);
    int p[2];
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    struct console *c = console_new(io->loop, p[0], path, &err);
    assert_non_null(c);
    char line[128];
    struct stat st;
    for (int i = 0; i < 40000; i++) {
        int n = snprintf(line, sizeof(line), "line %06d of a guest that talks and talks\r\n", i);
        assert_int_equal(write(p[1], line, (size_t)n), n);
        if (i % 1000 == 0) {
            assert_int_equal(stat(path, &st), 0);
            assert_true((size_t)st.st_size <= LIMIT_CONSOLE_FILE);
        }
    }
    static const char last[] = "\033[31mKernel panic - not syncing: x\001\xff\033[0m\nend\n\n";
    assert_int_equal(write(p[1], last, sizeof(last) - 1), (ssize_t)sizeof(last) - 1);
    loop_call(io->loop, drain, c);
    assert_int_equal(stat(path, &st), 0);
    assert_true((size_t)st.st_size <= LIMIT_CONSOLE_FILE);
    assert_true(st.st_size > 0);
    auto_free char *tail = console_tail(c, 4096);
    has(tail, "line 039999 of a guest");
    hasnt(tail, "line 039900");
    hasnt(tail, "\033");
    hasnt(tail, "\r");
    assert_string_equal(tail + strlen(tail) - 4, "\nend");
    auto_free char *brief = console_tail(c, 10);
    assert_true(strlen(brief) <= 10);
    auto_free char *panic = console_line(c, "Kernel panic");
    assert_string_equal(panic, "Kernel panic - not syncing: x?");
    assert_null(console_line(c, "nothing like it"));
    console_free(c);
    (void)close(p[1]);
    /* a later daemon continues the file and knows its end */
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    c = console_new(io->loop, p[0], path, &err);
    auto_free char *old = console_tail(c, 4096);
    assert_string_equal(old, tail);
    (void)close(p[1]); /* end of stream */
    loop_call(io->loop, nothing, NULL);
    console_free(c);
}

/* --- scratch disk --- */

static void scratch(void **state)
{
    struct io *io = *state;
    auto_err struct err err = ERR_INIT;
    const uint64_t size = GiB(20);
    auto_free char *a = fs_format("%s/a", io->dir);
    auto_free char *b = fs_format("%s/b", io->dir);
    auto_close int fd = scratch_create(io->dir, a, size, NULL, &err);
    if (fd < 0)
        fail_msg("%s", err_msg(&err));
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, size);
    assert_true(st.st_blocks * 512 < 8 << 20); /* sparse */
    unsigned char magic[2];
    assert_int_equal(pread(fd, magic, 2, 1024 + 56), 2); /* ext4 superblock */
    assert_int_equal(magic[0] | magic[1] << 8, 0xef53);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
    /* the second is a copy of its own */
    auto_close int fd2 = scratch_create(io->dir, b, size, NULL, &err);
    assert_true(fd2 >= 0);
    assert_int_equal(pwrite(fd, "xx", 2, 1024 + 56), 2);
    assert_int_equal(pread(fd2, magic, 2, 1024 + 56), 2);
    assert_int_equal(magic[0], 0x53);
    /* existing: refused, and left alone */
    assert_int_equal(scratch_create(io->dir, a, size, NULL, &err), -1);
    assert_int_equal(err.code, ERR_EXISTS);
    assert_true(fs_exists(a));
    err_clear(&err);
    /* cannot be made: nothing remains */
    assert_int_equal(scratch_create(io->dir, "/nonexistent/x", size, NULL, &err), -1);
    err_clear(&err);
    auto_cancel struct cancel *c = cancel_new(0, NULL);
    cancel_fire(c);
    auto_free char *d = fs_format("%s/d", io->dir);
    assert_int_equal(scratch_create(io->dir, d, GiB(1), c, &err), -1);
    assert_false(fs_exists(d));
    auto_free char *masters = fs_format("%s/scratch", io->dir);
    auto_free char *master = fs_format("%s/ext4-%llu-v1", masters, (unsigned long long)GiB(1));
    assert_false(fs_exists(master));
}

/* A template and its clones have the same devices; what differs is where they begin. */
static void argv_template(void **state)
{
    (void)state;
    static const struct hv_template making = {.ram_fd = 9, .state_fd = -1};
    static const struct hv_template cloning = {.ram_fd = 9, .state_fd = 10};
    auto_err struct err err = ERR_INIT;
    struct hv_spec s = base_spec;
    auto_free char *plain = joined(&s, &err);
    s.tpl = &making;
    auto_free char *made = joined(&s, &err);
    s.tpl = &cloning;
    auto_free char *clone = joined(&s, &err);
    has(plain, "free-page-reporting=on");
    assert_null(strstr(plain, "memory-backend-file"));
    has(made, "share=on");
    /* without the library a clone would punch holes into what others share */
    has(made, "free-page-reporting=off");
    has(made, "-kernel\n");
    assert_null(strstr(made, "-incoming"));
    has(clone, "mem-path=/proc/self/fd/");
    has(clone, "share=off");
    has(clone, "free-page-reporting=off");
    has(clone, "-incoming\ndefer\n");
    assert_null(strstr(clone, "-kernel"));
    assert_null(strstr(clone, "-append"));
    s.pages_library = "/usr/libexec/aspis/aspis-pages.so";
    auto_free char *giving = joined(&s, &err);
    has(giving, "free-page-reporting=on");
    /* only an emulated clone translates, and only when it was wanted */
    s.thrift.trim = "/usr/libexec/aspis/aspis-trim.so";
    auto_free char *never = joined(&s, &err);
    assert_null(strstr(never, "-plugin"));
    s.trim_seconds = 15;
    auto_free char *trimmed = joined(&s, &err);
    has(trimmed, "-accel\ntcg,tb-size=64,");
    has(trimmed, "-plugin\nfile=/aspis/trim.so,seconds=15,buffer=64\n");
    s.accel = ACCEL_KVM;
    auto_free char *kvm = joined(&s, &err);
    assert_null(strstr(kvm, "-plugin"));
    s.accel = ACCEL_TCG;
    s.tpl = &making;
    auto_free char *template = joined(&s, &err);
    assert_null(strstr(template, "-plugin"));
    const char *from = clone;
    auto_free char *copy = xstrdup(made);
    char *save = NULL;
    bool device = false;
    for (char *l = strtok_r(copy, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save)) {
        if (device) {
            from = strstr(from, l);
            assert_non_null(from);
        }
        device = strcmp(l, "-device") == 0;
    }
}

/* A copy of a saved VM: the RAM under its name, and every device where it was. */
static void argv_restore(void **state)
{
    (void)state;
    static const struct hv_restore saved = {.state_fd = 10, .ram_id = "pc.ram"};
    auto_err struct err err = ERR_INIT;
    struct hv_spec s = base_spec;
    auto_free char *plain = joined(&s, &err);
    s.restore = &saved;
    auto_free char *copy = joined(&s, &err);
    has(copy, ",memory-backend=pc.ram");
    has(copy, "memory-backend-ram,id=pc.ram,size=");
    has(copy, "-incoming\ndefer\n");
    assert_null(strstr(copy, "-kernel"));
    assert_null(strstr(copy, "mem-path"));
    assert_string_equal(strstr(copy, "-device"), strstr(plain, "-device"));
}

static void image(void **state)
{
    (void)state;
    const struct machine_image good = {.accel = "tcg",
                                       .transport = "virtio-serial",
                                       .shape = {.ram_id = "ram",
                                                 .boot_bytes = MiB(128),
                                                 .max_bytes = GiB(1),
                                                 .boot_vcpus = 1,
                                                 .vcpus = 1,
                                                 .max_vcpus = 1},
                                       .last_mirror = MACHINE_MIRROR_FIRST,
                                       .scratch_bytes = MiB(16)};
    struct machine_image i = good;
    i.last_volume = MACHINE_MIRROR_FIRST;
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i = good;
    i.last_mirror = 0;
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i = good;
    assert_int_equal(machine_image_check(&i, NULL), 0);
    i.shape.added_bytes = GiB(1);
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i = good;
    i.shape.boot_vcpus = 0;
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i = good;
    i.shape.n_disks = 2;
    i.shape.disks[0].slot = i.shape.disks[1].slot = 4;
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i.shape.disks[1].slot = 5;
    assert_int_equal(machine_image_check(&i, NULL), 0);
    i.shape.n_disks = HV_MAX_DISKS + 1;
    assert_int_equal(machine_image_check(&i, NULL), -1);
    i = good;
    (void)snprintf(i.transport, sizeof(i.transport), "user-vsock");
    assert_int_equal(machine_image_check(&i, NULL), -1);
}

static void shapes(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct hv_spec s = base_spec;
    auto_free char *first = qemu_hv.shape(&s, &err);
    s.name = "another";
    s.tsc_khz++;
    s.mac = "02:00:00:00:00:99";
    s.tap_fd = 17;
    auto_free char *other = qemu_hv.shape(&s, &err);
    assert_non_null(first);
    assert_string_equal(first, other);
    s.memory_bytes += MiB(1);
    auto_free char *larger = qemu_hv.shape(&s, &err);
    assert_string_not_equal(first, larger);
    s = base_spec;
    s.accel = ACCEL_KVM;
    auto_free char *kvm = qemu_hv.shape(&s, &err);
    assert_string_not_equal(first, kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(argv_tcg),
        cmocka_unit_test(argv_kvm_vsock),
        cmocka_unit_test(argv_bad_mac),
        cmocka_unit_test(argv_template),
        cmocka_unit_test(argv_restore),
        cmocka_unit_test(image),
        cmocka_unit_test(shapes),
        cmocka_unit_test(escaping),
        cmocka_unit_test(sizes),
        cmocka_unit_test(sizes_of_pods),
        cmocka_unit_test(shares_of_the_host),
        cmocka_unit_test(records),
        cmocka_unit_test_setup_teardown(console_bounds, io_setup, io_teardown),
        cmocka_unit_test_setup_teardown(scratch, io_setup, io_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
