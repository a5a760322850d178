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

#include <jansson.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/image/apply.h"
#include "cri/image/digest.h"
#include "cri/image/erofs_write.h"
#include "cri/image/stream.h"
#include "cri/image/tree.h"
#include "sandbox/lockdown.h"

#define IN_FD 0
#define OUT_FD 3
#define RESULT_FD 4

struct result {
    char diff_id[DIGEST_MAX];
    uint64_t bytes, entries, file_bytes;
};

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
    static const int calls[] = {SCMP_SYS(read),      SCMP_SYS(write),     SCMP_SYS(pwrite64),
                                SCMP_SYS(lseek),     SCMP_SYS(ftruncate), SCMP_SYS(fstat),
                                SCMP_SYS(newfstatat)};
    auto_err struct err err = ERR_INIT;
    struct result r = {0};
    (void)signal(SIGPIPE, SIG_IGN);
    /* Loaded now, since files cannot be opened later; and the crypto library set up. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    char scratch[DIGEST_MAX];
    if (digest_of("", 0, "sha256", scratch, &err) == 0 &&
        lock_down(calls, ARRAY_LEN(calls), &err) == 0)
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
