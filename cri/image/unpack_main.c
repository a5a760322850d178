/*
 * aspis-unpack - a layer's tar stream on fd 0 becomes an erofs file on fd 3; fd 4 gets one line.
 *
 *     aspis-unpack MAX_BYTES MAX_ENTRIES
 *
 * The line is {"ok":true,"diff_id":"sha256:...","bytes":N,"entries":N,"file_bytes":N} or
 * {"ok":false,"code":N,"message":"..."} (code: enum err_code). Exit status 0 when it was written.
 *
 * It handles an attacker's bytes. It needs no privilege and is started without any, in a jail
 * (layer.c); besides, before it reads the first byte it gives up every system call but those for
 * reading and writing open files and for memory.
 */
#include <locale.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include <jansson.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/image/apply.h"
#include "cri/image/digest.h"
#include "cri/image/erofs_write.h"
#include "cri/image/stream.h"
#include "cri/image/tree.h"

#define IN_FD 0
#define OUT_FD 3
#define RESULT_FD 4

/* A sanitizer's run-time makes system calls of its own choice. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#else
/* It looks for leaks by way of /proc, which the jail does not have. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

struct result {
    char diff_id[DIGEST_MAX];
    uint64_t bytes, entries, file_bytes;
};

static int lock_down(struct err *err)
{
    static const int allowed[] = {
        SCMP_SYS(read),         SCMP_SYS(write),          SCMP_SYS(pwrite64),
        SCMP_SYS(lseek),        SCMP_SYS(ftruncate),      SCMP_SYS(fstat),
        SCMP_SYS(newfstatat),   SCMP_SYS(close),          SCMP_SYS(brk),
        SCMP_SYS(mmap),         SCMP_SYS(munmap),         SCMP_SYS(mremap),
        SCMP_SYS(mprotect),     SCMP_SYS(madvise),        SCMP_SYS(futex),
        SCMP_SYS(getrandom),    SCMP_SYS(clock_gettime),  SCMP_SYS(rt_sigreturn),
        SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(exit),
        SCMP_SYS(exit_group),   SCMP_SYS(getpid),         SCMP_SYS(gettimeofday),
    };
    /* Libraries that look for an optional file get "not there" and go on. */
    static const int absent[] = {SCMP_SYS(open),     SCMP_SYS(openat),     SCMP_SYS(access),
                                 SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(stat)};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (ctx == NULL)
        return err_set(err, ERR_INTERNAL, "seccomp: out of memory");
    int rc = 0;
    for (size_t i = 0; i < ARRAY_LEN(allowed) && rc == 0; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; i < ARRAY_LEN(absent) && rc == 0; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOENT), absent[i], 0);
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc < 0 ? err_sys(err, -rc, "seccomp") : 0;
}

static ssize_t next_bytes(void *arg, const void **data, struct err *err)
{
    return stream_read(arg, data, err);
}

static int unpack(uint64_t max_bytes, uint64_t max_entries, struct result *r, struct err *err)
{
    auto_stream struct stream *in = stream_open(IN_FD, max_bytes, err);
    if (in == NULL)
        return -1;
    auto_tree struct tree *t = tree_new(LIMIT_TREE_BYTES, err);
    auto_erofs_out struct erofs_out out = {0};
    if (t == NULL || erofs_out_init(&out, OUT_FD, max_bytes, err) < 0 ||
        apply_tar(t, &out, next_bytes, in, max_entries, &r->entries, err) < 0 ||
        stream_finish(in, r->diff_id, &r->bytes, err) < 0)
        return -1;
    return erofs_finish(&out, t, NULL, 0, &r->file_bytes, err);
}

static char *result_line(const struct result *r, const struct err *e)
{
    json_t *j;
    if (e->code == ERR_OK)
        j = json_pack("{s:b, s:s, s:I, s:I, s:I}", "ok", 1, "diff_id", r->diff_id, "bytes",
                      (json_int_t)r->bytes, "entries", (json_int_t)r->entries, "file_bytes",
                      (json_int_t)r->file_bytes);
    else
        j = json_pack("{s:b, s:i, s:s}", "ok", 0, "code", (int)e->code, "message",
                      str_is_utf8(err_msg(e), strlen(err_msg(e))) ? err_msg(e) : "invalid layer");
    char *line = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return line;
}

int main(int argc, char **argv)
{
    uint64_t max_bytes, max_entries;
    if (argc != 3 || str_to_u64(argv[1], &max_bytes) < 0 || str_to_u64(argv[2], &max_entries) < 0) {
        (void)fprintf(stderr, "usage: aspis-unpack MAX_BYTES MAX_ENTRIES\n");
        return 2;
    }
    auto_err struct err err = ERR_INIT;
    struct result r = {0};
    (void)signal(SIGPIPE, SIG_IGN);
    /* Loaded now, since files cannot be opened later; and the crypto library set up. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    char scratch[DIGEST_MAX];
    if (digest_of("", 0, "sha256", scratch, &err) == 0 &&
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && (SANITIZED || lock_down(&err) == 0))
        (void)unpack(max_bytes, max_entries, &r, &err);
    else if (err.code == ERR_OK)
        (void)err_sys(&err, errno, "set up the unpacker");

    char *line = result_line(&r, &err);
    int rc = line != NULL && dprintf(RESULT_FD, "%s\n", line) > 0 ? 0 : 1;
    free(line);
    if (utf8 != (locale_t)0)
        freelocale(utf8);
    return rc;
}
