#include "cri/ctl/follow.h"

#include <fcntl.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* A record is at most LIMIT_LOG_LINE of text and its time, stream and tag. Other writers may go
 * beyond. */
#define MAX_RECORD MiB(1)

struct follow {
    char *path;
    int inotify;
    int fd; /* of the log; -1: not there yet */
    int out, errout;
    struct buf pending; /* the last, unfinished record */
};

struct follow *follow_open(const char *path, int out, int errout, struct err *err)
{
    const char *slash = strrchr(path, '/');
    auto_free char *dir = slash == NULL || slash == path ? xstrdup(slash == NULL ? "." : "/")
                                                         : xstrndup(path, (size_t)(slash - path));
    auto_close int inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    /* The directory, so that a file that is made, renamed or grows is noticed by one watch. */
    if (inotify < 0 || inotify_add_watch(inotify, dir, IN_CREATE | IN_MOVED_TO | IN_MODIFY) < 0) {
        (void)err_sys(err, errno, "watch `%s`", dir);
        return NULL;
    }
    struct follow *f = xcalloc(1, sizeof(*f));
    f->path = xstrdup(path);
    f->inotify = take_fd(&inotify);
    f->fd = -1;
    f->out = out;
    f->errout = errout;
    f->pending = (struct buf)BUF_INIT(MAX_RECORD);
    return f;
}

int follow_fd(const struct follow *f)
{
    return f->inotify;
}

void follow_close(struct follow *f)
{
    if (f == NULL)
        return;
    cleanup_closep(&f->inotify);
    cleanup_closep(&f->fd);
    buf_clear(&f->pending);
    free(f->path);
    free(f);
}

/* One record without its newline. What is no record is printed as it is. */
static int print_record(struct follow *f, const char *line, size_t len, struct err *err)
{
    const char *stream = memchr(line, ' ', len);
    const char *tag =
        stream != NULL ? memchr(stream + 1, ' ', len - (size_t)(stream + 1 - line)) : NULL;
    const char *text = tag != NULL ? memchr(tag + 1, ' ', len - (size_t)(tag + 1 - line)) : NULL;
    if (text == NULL)
        return fs_write_fd(f->out, line, len, err) < 0 ? -1 : fs_write_fd(f->out, "\n", 1, err);
    bool is_err = (size_t)(tag - stream) == strlen(" stderr") &&
                  memcmp(stream, " stderr", strlen(" stderr")) == 0;
    bool partial = tag[1] == 'P'; /* the line goes on in the stream's next record */
    int fd = is_err ? f->errout : f->out;
    text++;
    if (fs_write_fd(fd, text, len - (size_t)(text - line), err) < 0)
        return -1;
    return partial ? 0 : fs_write_fd(fd, "\n", 1, err);
}

static int print_records(struct follow *f, struct err *err)
{
    const char *end;
    size_t done = 0;
    while ((end = memchr(f->pending.data + done, '\n', f->pending.len - done)) != NULL) {
        const char *line = f->pending.data + done;
        if (print_record(f, line, (size_t)(end - line), err) < 0)
            return -1;
        done += (size_t)(end - line) + 1;
    }
    buf_consume(&f->pending, done);
    return 0;
}

/* Reads the open file to its present end. */
static int read_on(struct follow *f, struct err *err)
{
    for (;;) {
        char *room = buf_reserve(&f->pending, KiB(64));
        if (room == NULL)
            return err_set(err, ERR_EXHAUSTED, "log `%s`: a record is too long", f->path);
        ssize_t n = read(f->fd, room, KiB(64));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "log `%s`", f->path);
        if (n == 0)
            return 0;
        buf_commit(&f->pending, (size_t)n);
        if (print_records(f, err) < 0)
            return -1;
    }
}

/* Is another file at the path now? */
static bool rotated(const struct follow *f)
{
    struct stat here, there;
    return fstat(f->fd, &here) == 0 && stat(f->path, &there) == 0 &&
           (here.st_ino != there.st_ino || here.st_dev != there.st_dev);
}

int follow_read(struct follow *f, struct err *err)
{
    char events[4096];
    while (read(f->inotify, events, sizeof(events)) > 0)
        ; /* what happened does not matter: we look */
    for (;;) {
        if (f->fd < 0)
            f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (f->fd < 0)
            return errno == ENOENT ? 0 : err_sys(err, errno, "log `%s`", f->path);
        /* Looked at before reading: what is written to the old file between is read below. */
        bool other = rotated(f);
        if (read_on(f, err) < 0)
            return -1;
        if (!other)
            return 0;
        cleanup_closep(&f->fd);
        buf_reset(&f->pending);
    }
}
