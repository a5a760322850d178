#include "sandbox/console.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define TAIL_KEPT KiB(16)

struct console {
    struct loop *loop;
    struct loop_source *src;
    int fd;
    int file;
    size_t written;       /* size of the file */
    pthread_mutex_t lock; /* guards tail */
    struct buf tail;
};

static void remember(struct console *c, const char *data, size_t len)
{
    if (len > TAIL_KEPT) {
        data += len - TAIL_KEPT;
        len = TAIL_KEPT;
    }
    (void)pthread_mutex_lock(&c->lock);
    if (c->tail.len + len > TAIL_KEPT)
        buf_consume(&c->tail, c->tail.len + len - TAIL_KEPT);
    (void)buf_append(&c->tail, data, len);
    (void)pthread_mutex_unlock(&c->lock);
}

static void put(struct console *c, const char *data, size_t len)
{
    if (c->written + len > LIMIT_CONSOLE_FILE) {
        static const char cut[] = "[earlier output dropped]\n";
        if (ftruncate(c->file, 0) < 0)
            return; /* the bound comes first */
        c->written = 0;
        put(c, cut, sizeof(cut) - 1);
        put(c, buf_str(&c->tail), c->tail.len); /* only this thread changes it */
    }
    if (fs_write_fd(c->file, data, len, NULL) == 0)
        c->written += len; /* a full disk costs the file some lines, the tail none */
}

static void stop(struct console *c)
{
    loop_remove(c->src);
    c->src = NULL;
    cleanup_closep(&c->fd);
}

/* False when the stream has nothing more for now. */
static bool read_some(struct console *c)
{
    char block[16384];
    if (c->fd < 0)
        return false;
    ssize_t n = read(c->fd, block, sizeof(block));
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0) {
        stop(c);
        return false;
    }
    put(c, block, (size_t)n);
    remember(c, block, (size_t)n);
    return true;
}

static void on_readable(struct loop_source *src, uint32_t events, void *arg)
{
    (void)src;
    (void)events;
    (void)read_some(arg);
}

/* A pipe or socket buffer holds less than this; more is a writer that does not stop. */
void console_drain(struct console *c)
{
    for (int i = 0; c != NULL && i < 64 && read_some(c); i++)
        ;
}

static int open_file(struct console *c, const char *path, struct err *err)
{
    c->file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat st;
    if (c->file < 0 || fstat(c->file, &st) < 0)
        return err_sys(err, errno, "open %s", path);
    c->written = (size_t)st.st_size;
    char *old = malloc(TAIL_KEPT);
    if (old == NULL)
        return err_sys(err, ENOMEM, "read %s", path);
    size_t from = c->written > TAIL_KEPT ? c->written - TAIL_KEPT : 0;
    ssize_t n = pread(c->file, old, TAIL_KEPT, (off_t)from);
    if (n > 0)
        remember(c, old, (size_t)n);
    free(old);
    return 0;
}

struct add {
    struct console *c;
    bool ok; /* the stream may end before the caller looks at c->src */
};

static void add_work(void *arg)
{
    struct add *a = arg;
    a->c->src = loop_add_fd(a->c->loop, a->c->fd, EPOLLIN, on_readable, a->c, NULL);
    a->ok = a->c->src != NULL;
}

struct console *console_new(struct loop *loop, int fd, const char *path, struct err *err)
{
    struct console *c = xcalloc(1, sizeof(*c));
    c->loop = loop;
    c->fd = fd;
    c->file = -1;
    c->tail = (struct buf)BUF_INIT(TAIL_KEPT);
    (void)pthread_mutex_init(&c->lock, NULL);
    if (open_file(c, path, err) < 0) {
        console_free(c);
        return NULL;
    }
    int flags = fcntl(fd, F_GETFL);
    (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    struct add a = {.c = c};
    loop_call(loop, add_work, &a);
    if (!a.ok) {
        (void)err_set(err, ERR_INTERNAL, "watch the stream for %s", path);
        console_free(c);
        return NULL;
    }
    return c;
}

/* Printable text of one line's bytes: escape sequences and control characters go. */
static void clean(struct buf *out, const char *p, const char *end)
{
    for (; p < end; p++) {
        if (*p == '\033' && p + 1 < end && p[1] == '[') {
            p += 2;
            while (p < end && (*p < '@' || *p > '~'))
                p++;
        } else if (*p == '\n' || *p == '\t' || (*p >= ' ' && *p < 0x7f)) {
            (void)buf_putc(out, *p);
        } else if ((unsigned char)*p >= 0x80) {
            (void)buf_putc(out, '?');
        }
    }
}

static char *clean_copy(struct console *c)
{
    auto_buf struct buf text = BUF_INIT(TAIL_KEPT);
    (void)pthread_mutex_lock(&c->lock);
    const char *data = buf_str(&c->tail);
    clean(&text, data, data + c->tail.len);
    (void)pthread_mutex_unlock(&c->lock);
    while (text.len > 0 && (text.data[text.len - 1] == '\n' || text.data[text.len - 1] == ' '))
        text.data[--text.len] = '\0';
    return xstrdup(buf_str(&text));
}

char *console_tail(struct console *c, size_t max)
{
    if (c == NULL)
        return xstrdup("");
    auto_free char *s = clean_copy(c);
    size_t len = strlen(s);
    size_t at = len;
    for (int lines = 0; at > 0 && len - at < max; at--) {
        if (s[at - 1] == '\n' && ++lines == LIMIT_CONSOLE_TAIL)
            break;
    }
    return xstrdup(s + at);
}

char *console_line(struct console *c, const char *needle)
{
    if (c == NULL)
        return NULL;
    auto_free char *s = clean_copy(c);
    char *hit = NULL;
    for (char *p = strstr(s, needle); p != NULL; p = strstr(p + 1, needle))
        hit = p;
    if (hit == NULL)
        return NULL;
    size_t len = strcspn(hit, "\n");
    return xstrndup(hit, len < 200 ? len : 200);
}

static void stop_work(void *arg)
{
    stop(arg);
}

void console_free(struct console *c)
{
    if (c == NULL)
        return;
    loop_call(c->loop, stop_work, c);
    cleanup_closep(&c->fd);
    cleanup_closep(&c->file);
    buf_clear(&c->tail);
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}
