#include "sandbox/lockdown.h"

#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <sys/prctl.h>

#include "base/cleanup.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
/* It looks for leaks by way of /proc, which a jail does not have. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#else
#define SANITIZED 0
#endif

static const int always[] = {
    SCMP_SYS(brk),           SCMP_SYS(mmap),           SCMP_SYS(munmap), SCMP_SYS(mremap),
    SCMP_SYS(mprotect),      SCMP_SYS(madvise),        SCMP_SYS(futex),  SCMP_SYS(getrandom),
    SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday),   SCMP_SYS(getpid), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigaction),  SCMP_SYS(rt_sigprocmask), SCMP_SYS(exit),   SCMP_SYS(exit_group),
    SCMP_SYS(close),
};
/* Libraries that look for an optional file get "not there" and go on. */
static const int absent[] = {SCMP_SYS(open),     SCMP_SYS(openat),     SCMP_SYS(access),
                             SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(stat)};

static bool is_in(int call, const int *calls, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (calls[i] == call)
            return true;
    return false;
}

static int add(scmp_filter_ctx ctx, uint32_t action, const int *calls, size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = seccomp_rule_add(ctx, action, calls[i], 0);
    return rc;
}

int lock_down(const int *calls, size_t n, struct err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_sys(err, errno, "no_new_privs");
    if (SANITIZED)
        return 0;
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (ctx == NULL)
        return err_set(err, ERR_INTERNAL, "seccomp: out of memory");
    int rc = add(ctx, SCMP_ACT_ALLOW, always, ARRAY_LEN(always));
    if (rc == 0)
        rc = add(ctx, SCMP_ACT_ALLOW, calls, n);
    for (size_t i = 0; i < ARRAY_LEN(absent) && rc == 0; i++)
        if (!is_in(absent[i], calls, n))
            rc = add(ctx, SCMP_ACT_ERRNO(ENOENT), &absent[i], 1);
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc < 0 ? err_sys(err, -rc, "seccomp") : 0;
}
