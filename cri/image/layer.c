#include "cri/image/layer.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "cri/image/digest.h"
#include "sandbox/jail.h"

#define PROGRAM "/aspis-unpack" /* inside the jail */
#define OUT_FD 3
#define RESULT_FD 4
#define RESULT_MAX KiB(16)

/* What the unpacker needs beside the tree: libraries, zstd's window, lists over the inodes. */
#define UNPACK_MEMORY (LIMIT_TREE_BYTES + MiB(512))

/* Sanitizers reserve terabytes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

struct conversion {
    const struct image_options *o;
    int in_fd, out_fd, result_fd;
    struct spawn_proc proc;
};

static void conversion_clear(struct conversion *c)
{
    spawn_clear(&c->proc);
    cleanup_closep(&c->in_fd);
    cleanup_closep(&c->out_fd);
    cleanup_closep(&c->result_fd);
}

static uint64_t max_entries(const struct image_options *o)
{
    return o->max_layer_entries != 0 ? o->max_layer_entries : LIMIT_LAYER_ENTRIES;
}

static int start_jailed(const struct conversion *c, const char *const *args,
                        const struct spawn_fd *fds, size_t n_fds, struct spawn_proc *proc,
                        struct cancel *cancel, struct err *err)
{
    auto_free struct jail_bind *binds = calloc(JAIL_LIBRARIES_N + 1, sizeof(*binds));
    if (binds == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    memcpy(binds, JAIL_LIBRARIES, JAIL_LIBRARIES_N * sizeof(*binds));
    binds[JAIL_LIBRARIES_N] = (struct jail_bind){.src = c->o->unpacker, .dst = PROGRAM};
    const struct jail_rlimit rlimits[] = {
#ifndef SANITIZED
        {"as", UNPACK_MEMORY},
#endif
        {"nofile", 16},
        {"core", 0},
        {"fsize", c->o->max_layer_bytes + max_entries(c->o) * KiB(4) + LIMIT_TREE_BYTES},
    };
    const char *const argv[] = {PROGRAM, args[0], args[1], NULL};
    const struct jail_opts opts = {
        .helper = c->o->jail_helper,
        .uid = c->o->unpack_uid,
        .binds = binds,
        .n_binds = JAIL_LIBRARIES_N + 1,
        .rlimits = rlimits,
        .n_rlimits = ARRAY_LEN(rlimits),
        .argv = argv,
        .fds = fds,
        .n_fds = n_fds,
    };
    return jail_spawn(&opts, cancel, proc, err);
}

static int start(struct conversion *c, struct cancel *cancel, struct err *err)
{
    int result[2];
    if (pipe2(result, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make a pipe");
    c->result_fd = result[0];
    auto_close int result_write = result[1];
    const struct spawn_fd fds[] = {{0, c->in_fd}, {OUT_FD, c->out_fd}, {RESULT_FD, result_write}};
    char bytes[24], entries[24];
    (void)snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)c->o->max_layer_bytes);
    (void)snprintf(entries, sizeof(entries), "%llu", (unsigned long long)max_entries(c->o));
    const char *const args[] = {bytes, entries};
    int rc;
    if (c->o->jail_helper != NULL) {
        rc = start_jailed(c, args, fds, ARRAY_LEN(fds), &c->proc, cancel, err);
    } else {
        const char *const argv[] = {c->o->unpacker, bytes, entries, NULL};
        const struct spawn_opts opts = {
            .path = c->o->unpacker, .argv = argv, .fds = fds, .n_fds = ARRAY_LEN(fds)};
        rc = spawn_start(&opts, &c->proc, err);
    }
    if (rc < 0)
        return err_wrap(err, "start the unpacker");
    /* From now on only the unpacker holds the reading end: when it dies, the feeder gets EPIPE. */
    cleanup_closep(&c->in_fd);
    return 0;
}

/* The unpacker's one line; ends when it is gone. */
static int read_result(struct conversion *c, char *line, size_t size, struct cancel *cancel,
                       struct err *err)
{
    size_t len = 0;
    for (;;) {
        if (cancel_poll(cancel, c->result_fd, POLLIN, -1, err) < 0)
            return -1;
        ssize_t n = read(c->result_fd, line + len, size - 1 - len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return err_sys(err, errno, "read the unpacker's result");
        len += (size_t)n;
        line[len] = '\0';
        if (n == 0)
            return 0;
        if (len == size - 1)
            return err_set(err, ERR_INTERNAL, "the unpacker says too much");
    }
}

static int parse_failure(const json_t *j, struct err *err)
{
    const char *message = json_string_value(json_object_get(j, "message"));
    json_int_t code = json_integer_value(json_object_get(j, "code"));
    if (message == NULL || code <= ERR_OK || code > ERR_UNAUTHENTICATED)
        return err_set(err, ERR_INTERNAL, "the unpacker's result is garbled");
    return err_set(err, (enum err_code)code, "%s", message);
}

static int parse_result(const char *line, struct layer_result *res, struct err *err)
{
    json_t *j = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    int ok = 0;
    const char *diff_id = NULL;
    json_int_t bytes = -1;
    json_int_t entries = -1;
    json_int_t file_bytes = -1;
    int rc = 0;
    if (json_unpack(j, "{s:b}", "ok", &ok) < 0) {
        rc = err_set(err, ERR_INTERNAL, "the unpacker's result is garbled");
    } else if (!ok) {
        rc = parse_failure(j, err);
    } else if (json_unpack(j, "{s:s, s:I, s:I, s:I}", "diff_id", &diff_id, "bytes", &bytes,
                           "entries", &entries, "file_bytes", &file_bytes) < 0 ||
               !digest_valid(diff_id) || strlen(diff_id) >= sizeof(res->diff_id) || bytes < 0 ||
               entries < 0 || file_bytes < 0) {
        rc = err_set(err, ERR_INTERNAL, "the unpacker's result is garbled");
    } else {
        (void)snprintf(res->diff_id, sizeof(res->diff_id), "%s", diff_id);
        res->uncompressed_bytes = (uint64_t)bytes;
        res->entries = (uint64_t)entries;
        res->file_bytes = (uint64_t)file_bytes;
    }
    json_decref(j);
    return rc;
}

static int check_file(int fd, const struct layer_result *res, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "stat the layer file");
    if ((uint64_t)st.st_size != res->file_bytes || st.st_size % 4096 != 0)
        return err_set(err, ERR_INTERNAL, "the unpacker's file is not what it says");
    return fsync(fd) < 0 ? err_sys(err, errno, "sync the layer file") : 0;
}

static int convert(struct conversion *c, struct layer_result *res, struct cancel *cancel,
                   struct err *err)
{
    char line[RESULT_MAX] = "";
    int status = 0;
    if (start(c, cancel, err) < 0 || read_result(c, line, sizeof(line), cancel, err) < 0 ||
        spawn_wait(&c->proc, cancel, &status, err) < 0)
        return -1;
    if (status != 0 || line[0] == '\0') {
        char text[64];
        return err_set(err, ERR_INTERNAL, "the unpacker ended with %s",
                       spawn_status_text(status, text, sizeof(text)));
    }
    return parse_result(line, res, err) < 0 || check_file(c->out_fd, res, err) < 0 ? -1 : 0;
}

int layer_convert(const struct image_options *o, int in_fd, const char *out_path,
                  struct layer_result *res, struct cancel *cancel, struct err *err)
{
    struct conversion c = {.o = o,
                           .in_fd = in_fd,
                           .out_fd = open(out_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600),
                           .result_fd = -1,
                           .proc = SPAWN_PROC_INIT};
    if (c.out_fd < 0) {
        int rc = err_sys(err, errno, "create %s", out_path);
        conversion_clear(&c);
        return rc;
    }
    memset(res, 0, sizeof(*res));
    int rc = convert(&c, res, cancel, err);
    conversion_clear(&c);
    if (rc < 0)
        (void)unlink(out_path);
    return rc < 0 ? err_wrap(err, "convert layer") : 0;
}
