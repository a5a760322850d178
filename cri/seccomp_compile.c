#include "cri/seccomp_compile.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fs.h"

#define X32_BIT 0x40000000U
#define ENOSYS_ACTION (SECCOMP_RET_ERRNO | (ENOSYS & SECCOMP_RET_DATA))

DEFINE_AUTO(scmp_filter_ctx, seccomp_release);
#define auto_seccomp __attribute__((cleanup(seccomp_releasep)))

/* --- calls that are newer than the profile --- */

struct code {
    struct sock_filter at[32];
    size_t n;
};

static void emit(struct code *c, uint16_t op, uint32_t k, uint8_t yes, uint8_t no)
{
    c->at[c->n++] = (struct sock_filter){.code = op, .jt = yes, .jf = no, .k = k};
}

#define LOAD(field) (BPF_LD | BPF_W | BPF_ABS), offsetof(struct seccomp_data, field), 0, 0

static void emit_newer_than(struct code *c, uint32_t last)
{
    emit(c, BPF_JMP | BPF_JGT | BPF_K, last, 0, 1);
    emit(c, BPF_RET | BPF_K, ENOSYS_ACTION, 0, 0);
}

/* The highest number among the profile's calls; -1 when it has none on this architecture. */
static int64_t last_call(const struct seccomp_profile *p, uint32_t arch)
{
    int64_t last = -1;
    for (size_t i = 0; i < p->n_rules; i++) {
        int64_t nr = seccomp_syscall_resolve_name_arch(arch, p->rules[i].name);
        if (nr >= 0 && arch == SCMP_ARCH_X32)
            nr |= X32_BIT;
        if (nr > last)
            last = nr;
    }
    return last;
}

static bool has_arch(const struct seccomp_profile *p, uint32_t arch)
{
    for (size_t i = 0; i < p->n_archs; i++) {
        if (p->archs[i] == arch)
            return true;
    }
    return arch == seccomp_arch_native();
}

static void emit_arch(struct code *c, const struct seccomp_profile *p, uint32_t arch)
{
    int64_t last = last_call(p, arch);
    int64_t last_x32 = -1;
    if (arch == SCMP_ARCH_X86_64 && has_arch(p, SCMP_ARCH_X32))
        last_x32 = last_call(p, SCMP_ARCH_X32);
    if (last < 0)
        return;
    emit(c, LOAD(arch));
    size_t test = c->n;
    emit(c, BPF_JMP | BPF_JEQ | BPF_K, arch, 0, 0);
    emit(c, LOAD(nr));
    /* calls of x32 have the same architecture and another range of numbers */
    if (arch == SCMP_ARCH_X86_64)
        emit(c, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 2, 0);
    emit_newer_than(c, (uint32_t)last);
    if (last_x32 >= 0)
        emit_newer_than(c, (uint32_t)last_x32);
    c->at[test].jf = (uint8_t)(c->n - test - 1);
}

static void emit_prefix(struct code *c, const struct seccomp_profile *p)
{
    uint32_t action = p->default_action;
    if (action == SCMP_ACT_ALLOW || action == SCMP_ACT_LOG || action == SCMP_ACT_ERRNO(ENOSYS) ||
        (action & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_TRACE)
        return;
    uint32_t native = seccomp_arch_native();
    emit_arch(c, p, native);
    for (size_t i = 0; i < p->n_archs; i++) {
        if (p->archs[i] != native && p->archs[i] != SCMP_ARCH_X32)
            emit_arch(c, p, p->archs[i]);
    }
}

/* --- the rest --- */

static int add_rule(scmp_filter_ctx ctx, const struct seccomp_rule *r, struct err *err)
{
    struct scmp_arg_cmp cmp[SECCOMP_ARGS];
    unsigned seen = 0;
    bool twice = false;
    int rc = 0;
    int nr = seccomp_syscall_resolve_name(r->name);
    if (nr == __NR_SCMP_ERROR)
        return 0;
    for (size_t i = 0; i < r->n_args; i++) {
        const struct seccomp_arg *a = &r->args[i];
        twice = twice || (seen >> a->index & 1) != 0;
        seen |= 1U << a->index;
        cmp[i] = (struct scmp_arg_cmp){.arg = a->index,
                                       .op = (enum scmp_compare)a->op,
                                       .datum_a = a->value,
                                       .datum_b = a->value_two};
    }
    if (!twice) {
        rc = seccomp_rule_add_array(ctx, r->action, nr, (unsigned)r->n_args, cmp);
    } else {
        /* a filter compares an argument once: as everywhere, one of them suffices then */
        for (size_t i = 0; rc == 0 && i < r->n_args; i++)
            rc = seccomp_rule_add_array(ctx, r->action, nr, 1, &cmp[i]);
    }
    return rc < 0 ? err_sys(err, -rc, "rule for %s", r->name) : 0;
}

static int export(scmp_filter_ctx ctx, char **program, size_t *len, struct err *err)
{
    auto_close int fd = memfd_create("seccomp", MFD_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "memory for the filter");
    int rc = seccomp_export_bpf(ctx, fd);
    if (rc < 0)
        return err_sys(err, -rc, "compile the filter");
    if (lseek(fd, 0, SEEK_SET) < 0)
        return err_sys(err, errno, "memory for the filter");
    *program = fs_read_fd(fd, (size_t)BPF_MAXINSNS * sizeof(struct sock_filter), len, err);
    return *program != NULL ? 0 : err_wrap(err, "the kernel takes %d instructions", BPF_MAXINSNS);
}

int seccomp_compile(const struct seccomp_profile *p, struct sock_filter **out, size_t *n,
                    struct err *err)
{
    auto_seccomp scmp_filter_ctx ctx = seccomp_init(p->default_action);
    if (ctx == NULL)
        return err_set(err, ERR_INTERNAL, "libseccomp does not take the default action");
    for (size_t i = 0; i < p->n_archs; i++) {
        int rc = seccomp_arch_add(ctx, p->archs[i]);
        if (rc < 0 && rc != -EEXIST)
            return err_sys(err, -rc, "add architecture %08x", p->archs[i]);
    }
    /* a tree of comparisons instead of a list: a tenth of the instructions per system call */
    (void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    for (size_t i = 0; i < p->n_rules; i++) {
        if (p->rules[i].action != p->default_action && add_rule(ctx, &p->rules[i], err) < 0)
            return -1;
    }
    auto_free char *program = NULL;
    size_t len = 0;
    struct code prefix = {.n = 0};
    if (export(ctx, &program, &len, err) < 0)
        return -1;
    emit_prefix(&prefix, p);
    size_t body = len / sizeof(struct sock_filter);
    if (prefix.n + body > BPF_MAXINSNS)
        return err_set(err, ERR_EXHAUSTED, "%zu instructions, the kernel takes %d", prefix.n + body,
                       BPF_MAXINSNS);
    *out = xcalloc(prefix.n + body, sizeof(**out));
    memcpy(*out, prefix.at, prefix.n * sizeof(**out));
    memcpy(*out + prefix.n, program, body * sizeof(**out));
    *n = prefix.n + body;
    return 0;
}
