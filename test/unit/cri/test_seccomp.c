/* cri/seccomp: what compiled filters decide (run here as the kernel would), how profiles are read.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/seccomp.h"
#include "cri/seccomp_compile.h"
#include "cri/seccomp_default.h"

#define ALLOW SECCOMP_RET_ALLOW
#define DENY(e) (SECCOMP_RET_ERRNO | (uint32_t)(e))
#define CAP(name) (UINT64_C(1) << CAP_##name)

/* --- the kernel's part --- */

static uint32_t load(const struct seccomp_data *d, uint32_t at)
{
    uint32_t v;
    assert_true(at % 4 == 0 && at + 4 <= sizeof(*d));
    memcpy(&v, (const char *)d + at, sizeof(v));
    return v;
}

/* Every jump is checked; a filter that runs over its end fails the test. */
static uint32_t run(const struct sock_filter *f, size_t n, const struct seccomp_data *d)
{
    uint32_t a = 0;
    for (size_t pc = 0; pc < n; pc++) {
        uint32_t k = f[pc].k;
        bool yes;
        switch (f[pc].code) {
        case BPF_LD | BPF_W | BPF_ABS:
            a = load(d, k);
            continue;
        case BPF_ALU | BPF_AND | BPF_K:
            a &= k;
            continue;
        case BPF_RET | BPF_K:
            return k;
        case BPF_JMP | BPF_JA:
            pc += k;
            continue;
        case BPF_JMP | BPF_JEQ | BPF_K:
            yes = a == k;
            break;
        case BPF_JMP | BPF_JGT | BPF_K:
            yes = a > k;
            break;
        case BPF_JMP | BPF_JGE | BPF_K:
            yes = a >= k;
            break;
        default:
            fail_msg("instruction %zu has code %#x", pc, f[pc].code);
            return 0;
        }
        pc += yes ? f[pc].jt : f[pc].jf;
    }
    fail_msg("the filter runs over its end");
    return 0;
}

struct filter {
    struct sock_filter *at;
    size_t n;
};

static uint32_t decide(const struct filter *f, uint32_t arch, int nr, uint64_t a0, uint64_t a1)
{
    struct seccomp_data d = {.nr = nr, .arch = arch, .args = {a0, a1}};
    return run(f->at, f->n, &d);
}

static uint32_t call(const struct filter *f, const char *name, uint64_t a0)
{
    int nr = seccomp_syscall_resolve_name(name);
    assert_true(nr >= 0);
    return decide(f, seccomp_arch_native(), nr, a0, 0);
}

static void compiled(struct filter *f, const struct seccomp_profile *p)
{
    auto_err struct err err = ERR_INIT;
    if (seccomp_compile(p, &f->at, &f->n, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void default_filter(struct filter *f, uint64_t caps)
{
    auto_seccomp_profile struct seccomp_profile p = {0};
    struct seccomp_facts facts = {.caps = caps};
    assert_int_equal(seccomp_default_make(&facts, &p, NULL), 0);
    compiled(f, &p);
}

static void parsed_filter(struct filter *f, const char *json, uint64_t caps)
{
    auto_seccomp_profile struct seccomp_profile p = {0};
    struct seccomp_facts facts = {.caps = caps, .kernel = 6, .patch = 1};
    auto_err struct err err = ERR_INIT;
    if (seccomp_profile_parse(json, strlen(json), &facts, &p, &err) < 0)
        fail_msg("%s: %s", json, err_msg(&err));
    compiled(f, &p);
}

/* --- the default profile --- */

static void test_default_allows_ordinary_calls(void **state)
{
    (void)state;
    static const char *const ordinary[] = {
        "read",       "write",        "openat", "mmap",   "execve", "exit_group", "futex",
        "epoll_wait", "accept",       "prctl",  "capset", "setuid", "seccomp",    "statx",
        "fork",       "rt_sigreturn", "chown",  "mknod",  "ptrace", "kill"};
    struct filter f;
    default_filter(&f, 0);
    for (size_t i = 0; i < ARRAY_LEN(ordinary); i++) {
        if (seccomp_syscall_resolve_name(ordinary[i]) >= 0)
            assert_int_equal(call(&f, ordinary[i], 0), ALLOW);
    }
    free(f.at);
}

static void test_default_denies_what_reaches_out(void **state)
{
    (void)state;
    static const char *const denied[] = {
        "mount",       "umount2",         "pivot_root",     "unshare",     "setns",
        "keyctl",      "add_key",         "request_key",    "bpf",         "perf_event_open",
        "init_module", "kexec_load",      "reboot",         "swapon",      "settimeofday",
        "acct",        "syslog",          "io_uring_setup", "userfaultfd", "open_by_handle_at",
        "sethostname", "process_madvise", "chroot",         "mbind",       "iopl"};
    struct filter f;
    default_filter(&f, 0);
    for (size_t i = 0; i < ARRAY_LEN(denied); i++) {
        int nr = seccomp_syscall_resolve_name(denied[i]);
        if (nr >= 0)
            assert_int_equal(decide(&f, seccomp_arch_native(), nr, 0, 0), DENY(EPERM));
    }
    /* newer than the profile */
    assert_int_equal(decide(&f, seccomp_arch_native(), 900, 0, 0), DENY(ENOSYS));
    free(f.at);
}

static void test_default_looks_at_flags(void **state)
{
    (void)state;
    struct filter f;
    default_filter(&f, 0);
    assert_int_equal(call(&f, "clone", CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_THREAD), ALLOW);
    static const uint64_t namespaces[] = {CLONE_NEWNS,  CLONE_NEWCGROUP, CLONE_NEWUTS,
                                          CLONE_NEWIPC, CLONE_NEWUSER,   CLONE_NEWPID,
                                          CLONE_NEWNET};
    for (size_t i = 0; i < ARRAY_LEN(namespaces); i++)
        assert_int_equal(call(&f, "clone", namespaces[i] | CLONE_VM), DENY(EPERM));
    assert_int_equal(call(&f, "clone3", 0), DENY(ENOSYS));
    assert_int_equal(call(&f, "socket", AF_INET), ALLOW);
    assert_int_equal(call(&f, "socket", AF_UNIX), ALLOW);
    assert_int_equal(call(&f, "socket", AF_VSOCK), DENY(EPERM));
    assert_int_equal(call(&f, "personality", 0xffffffff), ALLOW);
    assert_int_equal(call(&f, "personality", 0x20008), ALLOW);
    assert_int_equal(call(&f, "personality", 0x40000), DENY(EPERM)); /* no randomisation */
    free(f.at);
}

static void test_capabilities_bring_their_calls(void **state)
{
    (void)state;
    static const struct {
        uint64_t cap;
        const char *name;
    } brought[] = {
        {CAP(SYS_ADMIN), "mount"},
        {CAP(SYS_ADMIN), "unshare"},
        {CAP(SYS_ADMIN), "setns"},
        {CAP(SYS_ADMIN), "clone3"},
        {CAP(SYS_ADMIN), "sethostname"},
        {CAP(SYS_ADMIN), "bpf"},
        {CAP(BPF), "bpf"},
        {CAP(PERFMON), "perf_event_open"},
        {CAP(SYSLOG), "syslog"},
        {CAP(SYS_PTRACE), "kcmp"},
        {CAP(SYS_PTRACE), "pidfd_getfd"},
        {CAP(SYS_BOOT), "reboot"},
        {CAP(SYS_CHROOT), "chroot"},
        {CAP(SYS_MODULE), "finit_module"},
        {CAP(SYS_NICE), "mbind"},
        {CAP(SYS_PACCT), "acct"},
        {CAP(SYS_TIME), "settimeofday"},
        {CAP(SYS_TTY_CONFIG), "vhangup"},
        {CAP(DAC_READ_SEARCH), "open_by_handle_at"},
    };
    struct filter without;
    default_filter(&without, 0);
    for (size_t i = 0; i < ARRAY_LEN(brought); i++) {
        struct filter f;
        default_filter(&f, brought[i].cap);
        assert_int_not_equal(call(&without, brought[i].name, 0), ALLOW);
        assert_int_equal(call(&f, brought[i].name, 0), ALLOW);
        assert_int_equal(call(&f, "keyctl", 0), DENY(EPERM));
        free(f.at);
    }
    struct filter admin;
    default_filter(&admin, CAP(SYS_ADMIN));
    assert_int_equal(call(&admin, "clone", CLONE_NEWUSER), ALLOW);
    assert_int_equal(call(&admin, "socket", AF_VSOCK), DENY(EPERM));
    free(admin.at);
    free(without.at);
}

static void test_other_architectures_of_the_machine(void **state)
{
    (void)state;
    struct filter f;
    default_filter(&f, 0);
    if (seccomp_arch_native() == SCMP_ARCH_X86_64) {
        assert_int_equal(decide(&f, AUDIT_ARCH_I386, 4 /* write */, 0, 0), ALLOW);
        assert_int_equal(decide(&f, AUDIT_ARCH_I386, 21 /* mount */, 0, 0), DENY(EPERM));
        assert_int_equal(decide(&f, AUDIT_ARCH_I386, 310 /* unshare */, 0, 0), DENY(EPERM));
        assert_int_equal(decide(&f, AUDIT_ARCH_I386, 900, 0, 0), DENY(ENOSYS));
        assert_int_equal(decide(&f, AUDIT_ARCH_X86_64, 0x40000001 /* write */, 0, 0), ALLOW);
        assert_int_equal(decide(&f, AUDIT_ARCH_X86_64, 0x40000000 + 165 /* mount */, 0, 0),
                         DENY(EPERM));
        assert_int_equal(decide(&f, AUDIT_ARCH_X86_64, 0x40000000 + 900, 0, 0), DENY(ENOSYS));
        assert_int_not_equal(decide(&f, AUDIT_ARCH_AARCH64, 64, 0, 0), ALLOW);
    }
    free(f.at);
}

/* Every call of every architecture decided as the table says, whatever libseccomp made of it. */
static void test_default_call_by_call(void **state)
{
    (void)state;
    static const uint32_t archs[] = {SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32};
    auto_seccomp_profile struct seccomp_profile p = {0};
    struct seccomp_facts facts = {.caps = CAP(SYS_ADMIN) | CAP(SYS_NICE)};
    struct filter f;
    assert_int_equal(seccomp_default_make(&facts, &p, NULL), 0);
    compiled(&f, &p);
    for (size_t a = 0; seccomp_arch_native() == SCMP_ARCH_X86_64 && a < ARRAY_LEN(archs); a++) {
        bool x32 = archs[a] == SCMP_ARCH_X32;
        uint32_t audit = archs[a] == SCMP_ARCH_X86 ? AUDIT_ARCH_I386 : AUDIT_ARCH_X86_64;
        for (int nr = 0; nr < 450; nr++) {
            int number = x32 ? nr | 0x40000000 : nr;
            auto_free char *name = seccomp_syscall_resolve_num_arch(archs[a], number);
            bool listed = false;
            bool looked_at = false;
            for (size_t i = 0; name != NULL && i < p.n_rules; i++) {
                bool same = strcmp(p.rules[i].name, name) == 0;
                listed = listed || same;
                looked_at = looked_at || (same && p.rules[i].n_args > 0);
            }
            if (!looked_at) /* by its arguments */
                assert_int_equal(decide(&f, audit, number, 0, 0), listed ? ALLOW : DENY(EPERM));
        }
    }
    free(f.at);
}

/* --- profiles --- */

static void test_localhost_denies_a_call(void **state)
{
    (void)state;
    struct filter f;
    parsed_filter(&f,
                  "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\","
                  "\"mkdirat\",\"no_such_call\"],\"action\":\"SCMP_ACT_ERRNO\"},"
                  "{\"name\":\"chmod\",\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":38}]}",
                  0);
    assert_int_equal(call(&f, "mkdirat", 0), DENY(EPERM));
    assert_int_equal(call(&f, "chmod", 0), DENY(38));
    assert_int_equal(call(&f, "openat", 0), ALLOW);
    assert_int_equal(decide(&f, seccomp_arch_native(), 900, 0, 0), ALLOW);
    free(f.at);
}

static void test_arguments(void **state)
{
    (void)state;
    static const struct {
        const char *op;
        uint64_t value, two, hit, miss;
    } ops[] = {
        {"SCMP_CMP_NE", 5, 0, 6, 5},
        {"SCMP_CMP_LT", 5, 0, 4, 5},
        {"SCMP_CMP_LE", 5, 0, 5, 6},
        {"SCMP_CMP_EQ", 0x100000005, 0, 0x100000005, 5},
        {"SCMP_CMP_GE", 0x100000000, 0, 0x100000000, 0xffffffff},
        {"SCMP_CMP_GT", 5, 0, 6, 5},
        {"SCMP_CMP_MASKED_EQ", 0xf0, 0x10, 0x1f, 0x2f},
    };
    for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
        struct filter f;
        auto_free char *json =
            fs_format("{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":38,\"syscalls\":[{"
                      "\"names\":[\"lseek\"],\"action\":\"SCMP_ACT_ALLOW\",\"args\":[{\"index\":1,"
                      "\"value\":%llu,\"valueTwo\":%llu,\"op\":\"%s\"}]}]}",
                      (unsigned long long)ops[i].value, (unsigned long long)ops[i].two, ops[i].op);
        parsed_filter(&f, json, 0);
        assert_int_equal(decide(&f, seccomp_arch_native(), SYS_lseek, 0, ops[i].hit), ALLOW);
        assert_int_equal(decide(&f, seccomp_arch_native(), SYS_lseek, 0, ops[i].miss), DENY(38));
        free(f.at);
    }
    /* two of different arguments: both; two of one argument: either */
    struct filter f;
    parsed_filter(
        &f,
        "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"syscalls\":[{\"names\":[\"lseek\"],\"action\":"
        "\"SCMP_ACT_ALLOW\",\"args\":[{\"index\":0,\"value\":1,\"op\":\"SCMP_CMP_EQ\"},"
        "{\"index\":1,\"value\":2,\"op\":\"SCMP_CMP_EQ\"}]},{\"names\":[\"dup2\",\"fchmod\"],"
        "\"action\":\"SCMP_ACT_ALLOW\",\"args\":[{\"index\":0,\"value\":1,\"op\":\"SCMP_CMP_EQ\"},"
        "{\"index\":0,\"value\":2,\"op\":\"SCMP_CMP_EQ\"}]}]}",
        0);
    assert_int_equal(decide(&f, seccomp_arch_native(), SYS_lseek, 1, 2), ALLOW);
    assert_int_equal(decide(&f, seccomp_arch_native(), SYS_lseek, 1, 3), DENY(EPERM));
    assert_int_equal(call(&f, "fchmod", 1), ALLOW);
    assert_int_equal(call(&f, "fchmod", 2), ALLOW);
    assert_int_equal(call(&f, "fchmod", 3), DENY(EPERM));
    free(f.at);
}

static void test_conditions(void **state)
{
    (void)state;
    static const char docker[] =
        "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"archMap\":[{\"architecture\":\"SCMP_ARCH_X86_64\","
        "\"subArchitectures\":[\"SCMP_ARCH_X86\",\"SCMP_ARCH_X32\"]},{\"architecture\":"
        "\"SCMP_ARCH_LOONGARCH64\",\"subArchitectures\":null}],\"syscalls\":["
        "{\"names\":[\"mount\"],\"action\":\"SCMP_ACT_ALLOW\",\"includes\":{\"caps\":"
        "[\"CAP_SYS_ADMIN\"]}},"
        "{\"names\":[\"unshare\"],\"action\":\"SCMP_ACT_ALLOW\",\"excludes\":{\"caps\":"
        "[\"CAP_SYS_ADMIN\"]}},"
        "{\"names\":[\"dup\"],\"action\":\"SCMP_ACT_ALLOW\",\"includes\":{\"arches\":[\"nowhere\"]}"
        "},"
        "{\"names\":[\"read\"],\"action\":\"SCMP_ACT_ALLOW\",\"includes\":{\"minKernel\":\"4.8\"}},"
        "{\"names\":[\"write\"],\"action\":\"SCMP_ACT_ALLOW\",\"includes\":{\"minKernel\":\"6.2\"}}"
        ","
        "{\"names\":[\"close\"],\"action\":\"SCMP_ACT_ALLOW\",\"excludes\":{\"minKernel\":\"7.0\"},"
        "\"args\":[],\"comment\":\"\",\"includes\":{}}]}";
    struct filter f;
    parsed_filter(&f, docker, 0);
    assert_int_equal(call(&f, "mount", 0), DENY(EPERM));
    assert_int_equal(call(&f, "unshare", 0), ALLOW);
    assert_int_equal(call(&f, "dup", 0), DENY(EPERM));
    assert_int_equal(call(&f, "read", 0), ALLOW);
    assert_int_equal(call(&f, "write", 0), DENY(EPERM));
    assert_int_equal(call(&f, "close", 0), ALLOW);
    free(f.at);
    parsed_filter(&f, docker, CAP(SYS_ADMIN));
    assert_int_equal(call(&f, "mount", 0), ALLOW);
    assert_int_not_equal(call(&f, "unshare", 0), ALLOW);
    free(f.at);
}

static void test_actions(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t verdict;
    } actions[] = {
        {"SCMP_ACT_KILL", SECCOMP_RET_KILL_THREAD},
        {"SCMP_ACT_KILL_THREAD", SECCOMP_RET_KILL_THREAD},
        {"SCMP_ACT_KILL_PROCESS", SECCOMP_RET_KILL_PROCESS},
        {"SCMP_ACT_TRAP", SECCOMP_RET_TRAP},
        {"SCMP_ACT_LOG", SECCOMP_RET_LOG},
        {"SCMP_ACT_TRACE", SECCOMP_RET_TRACE | EPERM},
    };
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        struct filter f;
        auto_free char *json = fs_format("{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{"
                                         "\"names\":[\"getpid\"],\"action\":\"%s\"}]}",
                                         actions[i].name);
        parsed_filter(&f, json, 0);
        assert_int_equal(call(&f, "getpid", 0), actions[i].verdict);
        free(f.at);
    }
}

static void test_wrong_profiles(void **state)
{
    (void)state;
    static const struct {
        const char *json, *says;
    } wrong[] = {
        {"", "line"},
        {"{", "line"},
        {"[]", "no object"},
        {"{}", "defaultAction"},
        {"{\"defaultAction\":7}", "defaultAction"},
        {"{\"defaultAction\":\"SCMP_ACT_MAYBE\"}", "SCMP_ACT_MAYBE"},
        {"{\"defaultAction\":\"SCMP_ACT_NOTIFY\"}", "listener"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"defaultAction\":\"SCMP_ACT_KILL\"}", "duplicate"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"defaultErrnoRet\":1}", "defaultErrnoRet"},
        {"{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":70000}", "errno"},
        {"{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":\"x\"}", "errno"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"listenerPath\":\"/x\"}", "listener"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"architectures\":[\"SCMP_ARCH_VAX\"]}", "VAX"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"architectures\":{}}", "no list"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"archMap\":[{}]}", "archMap[0]"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"flags\":[\"SECCOMP_FILTER_FLAG_X\"]}", "FLAG_X"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":{}}", "no list"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[7]}", "syscalls[0]"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"]}]}", "action"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"action\":\"SCMP_ACT_KILL\"}]}",
         "no system call"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[7],\"action\":"
         "\"SCMP_ACT_KILL\"}]}",
         "name"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"],\"action\":"
         "\"SCMP_ACT_KILL\",\"args\":[{\"index\":6,\"op\":\"SCMP_CMP_EQ\"}]}]}",
         "index 6"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"],\"action\":"
         "\"SCMP_ACT_KILL\",\"args\":[{\"index\":0,\"op\":\"=\"}]}]}",
         "comparison"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"],\"action\":"
         "\"SCMP_ACT_KILL\",\"args\":[{\"index\":0,\"value\":-1,\"op\":\"SCMP_CMP_EQ\"}]}]}",
         "value"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"],\"action\":"
         "\"SCMP_ACT_KILL\",\"includes\":{\"minKernel\":\"new\"}}]}",
         "minKernel"},
        {"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"read\"],\"action\":"
         "\"SCMP_ACT_KILL\",\"includes\":[]}]}",
         "includes"},
    };
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        auto_seccomp_profile struct seccomp_profile p = {0};
        struct seccomp_facts facts = {.kernel = 6};
        auto_err struct err err = ERR_INIT;
        assert_int_equal(
            seccomp_profile_parse(wrong[i].json, strlen(wrong[i].json), &facts, &p, &err), -1);
        if (strstr(err_msg(&err), wrong[i].says) == NULL)
            fail_msg("%s: %s", wrong[i].json, err_msg(&err));
        assert_int_equal(err.code, ERR_INVALID);
    }
}

static void test_too_many_rules(void **state)
{
    (void)state;
    auto_seccomp_profile struct seccomp_profile p = {.default_action = SCMP_ACT_ALLOW};
    auto_err struct err err = ERR_INIT;
    int rc = 0;
    size_t n = 0;
    for (; rc == 0; n++) {
        struct seccomp_arg arg = {.op = SCMP_CMP_EQ, .value = n};
        rc = seccomp_profile_add(&p, "read", SCMP_ACT_KILL, &arg, 1, &err);
    }
    assert_int_equal(n - 1, LIMIT_SECCOMP_RULES);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    struct sock_filter *out = NULL;
    assert_int_equal(seccomp_compile(&p, &out, &n, &err), -1);
    assert_non_null(strstr(err_msg(&err), "instructions"));
}

/* --- files and the cache --- */

static void fill_profile(Runtime__V1__SecurityProfile *p, int type, const char *ref)
{
    runtime__v1__security_profile__init(p);
    p->profile_type = (Runtime__V1__SecurityProfile__ProfileType)type;
    p->localhost_ref = (char *)(uintptr_t)ref;
}

#define DEFAULT RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__RuntimeDefault
#define UNCONFINED RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined
#define LOCALHOST RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Localhost

static bool same(const struct seccomp_filter *a, const struct seccomp_filter *b)
{
    return a->len > 0 && a->len == b->len && memcmp(a->program, b->program, a->len) == 0;
}

#define assert_same(a, b) assert_true(same(a, b))
#define assert_other(a, b) assert_false(same(a, b))

static void test_which_profile(void **state)
{
    (void)state;
    Runtime__V1__SecurityProfile p;
    struct seccomp_facts facts = {0};
    auto_err struct err err = ERR_INIT;
    struct seccomp_filter a, b;

    fill_profile(&p, UNCONFINED, "");
    assert_int_equal(seccomp_filter_load(&p, "runtime/default", &facts, &a, &err), 0);
    assert_null(a.program);
    assert_int_equal(seccomp_filter_load(NULL, "", &facts, &a, &err), 0);
    assert_null(a.program);
    assert_int_equal(seccomp_filter_load(NULL, "unconfined", &facts, &a, &err), 0);
    assert_null(a.program);
    assert_int_equal(seccomp_filter_load(NULL, "what", &facts, &a, &err), -1);

    fill_profile(&p, DEFAULT, "");
    assert_int_equal(seccomp_filter_load(&p, "unconfined", &facts, &a, &err), 0);
    assert_int_equal(seccomp_filter_load(NULL, "runtime/default", &facts, &b, &err), 0);
    assert_same(&a, &b);
    seccomp_filter_clear(&b);
    facts.caps = CAP(SYS_ADMIN);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &b, &err), 0);
    assert_other(&a, &b);
    seccomp_filter_clear(&a);
    seccomp_filter_clear(&b);
    seccomp_forget();
}

static void test_profile_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/test-seccomp-XXXXXX";
    assert_non_null(mkdtemp(dir));
    auto_free char *path = fs_format("%s/profile.json", dir);
    auto_free char *fifo = fs_format("%s/fifo", dir);
    auto_free char *old = fs_format("localhost/%s", path);
    static const char first[] = "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"flags\":["
                                "\"SECCOMP_FILTER_FLAG_LOG\"],\"syscalls\":[{\"names\":[\"mkdir\"],"
                                "\"action\":\"SCMP_ACT_ERRNO\"}]}";
    Runtime__V1__SecurityProfile p;
    struct seccomp_facts facts = {0};
    auto_err struct err err = ERR_INIT;
    struct seccomp_filter a, b;

    fill_profile(&p, LOCALHOST, path);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err_msg(&err), path));
    assert_int_equal(fs_write_atomic(path, first, strlen(first), 0600, false, NULL), 0);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), 0);
    assert_int_equal(a.flags.n, 1);
    assert_string_equal(a.flags.v[0], "SECCOMP_FILTER_FLAG_LOG");
    assert_int_equal(seccomp_filter_load(NULL, old, &facts, &b, &err), 0);
    assert_same(&a, &b);
    assert_int_equal(b.flags.n, 1);
    seccomp_filter_clear(&b);
    /* the file's new contents count at once */
    static const char second[] = "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}";
    assert_int_equal(fs_write_atomic(path, second, strlen(second), 0600, false, NULL), 0);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &b, &err), 0);
    assert_other(&a, &b);
    seccomp_filter_clear(&a);
    seccomp_filter_clear(&b);

    assert_int_equal(fs_write_atomic(path, "{]", 2, 0600, false, NULL), 0);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    assert_non_null(strstr(err_msg(&err), path));
    assert_int_equal(mkfifo(fifo, 0600), 0);
    fill_profile(&p, LOCALHOST, fifo);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    fill_profile(&p, LOCALHOST, "etc/profile.json");
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    fill_profile(&p, 9, "");
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    assert_int_equal(truncate(path, (off_t)LIMIT_SECCOMP_PROFILE + 1), 0);
    fill_profile(&p, LOCALHOST, path);
    assert_int_equal(seccomp_filter_load(&p, "", &facts, &a, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
    seccomp_forget();
}

/* More profiles than are kept. */
static void test_cache_is_bounded(void **state)
{
    (void)state;
    Runtime__V1__SecurityProfile p;
    fill_profile(&p, DEFAULT, "");
    for (unsigned i = 0; i < LIMIT_SECCOMP_FILTERS + 8; i++) {
        struct seccomp_facts facts = {.kernel = i};
        struct seccomp_filter f;
        assert_int_equal(seccomp_filter_load(&p, "", &facts, &f, NULL), 0);
        seccomp_filter_clear(&f);
    }
    seccomp_forget();
}

static void test_kernel_versions(void **state)
{
    (void)state;
    struct seccomp_facts f = {0};
    seccomp_set_kernel(&f, "6.1.0-56-cloud-amd64");
    assert_int_equal(f.kernel, 6);
    assert_int_equal(f.patch, 1);
    seccomp_set_kernel(&f, "what");
    assert_int_equal(f.kernel, 0);
    seccomp_set_kernel(&f, NULL);
    assert_true(f.kernel >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_allows_ordinary_calls),
        cmocka_unit_test(test_default_denies_what_reaches_out),
        cmocka_unit_test(test_default_looks_at_flags),
        cmocka_unit_test(test_capabilities_bring_their_calls),
        cmocka_unit_test(test_other_architectures_of_the_machine),
        cmocka_unit_test(test_default_call_by_call),
        cmocka_unit_test(test_localhost_denies_a_call),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_conditions),
        cmocka_unit_test(test_actions),
        cmocka_unit_test(test_wrong_profiles),
        cmocka_unit_test(test_too_many_rules),
        cmocka_unit_test(test_which_profile),
        cmocka_unit_test(test_profile_files),
        cmocka_unit_test(test_cache_is_bounded),
        cmocka_unit_test(test_kernel_versions),
    };
    return cmocka_run_group_tests_name("seccomp", tests, NULL, NULL);
}
