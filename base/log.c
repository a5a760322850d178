#include "base/log.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/limits.h"
#include "base/str.h"

static _Atomic enum log_level threshold = LOG_LEVEL_INFO;
static atomic_int journal_fd = -1;
static char identifier[32] = "aspis";

bool log_init(const char *ident, enum log_level level, bool journal)
{
    (void)snprintf(identifier, sizeof(identifier), "%s", ident);
    atomic_store(&threshold, level);
    if (!journal)
        return true;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket"};
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
        if (fd >= 0)
            (void)close(fd);
        return false;
    }
    atomic_store(&journal_fd, fd);
    return true;
}

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, level);
}

bool log_enabled(enum log_level level)
{
    return level >= atomic_load(&threshold);
}

static const char *const level_names[] = {"debug", "info", "warn", "error"};

int log_level_parse(const char *name, enum log_level *level)
{
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    }
    return -1;
}

static bool needs_quotes(const char *s)
{
    if (*s == '\0')
        return true;
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c >= 0x7f)
            return true;
    }
    return false;
}

/* Control bytes (also the C1 ones that UTF-8 writes as c2 80 to c2 9f) and anything that is not
 * UTF-8 as \xNN: a guest's text must not draw on a terminal. */
static void put_escaped(struct buf *b, const char *s)
{
    bool utf8 = str_is_utf8(s, strlen(s));
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            (void)buf_printf(b, "\\%c", c);
        else if (c == '\n')
            (void)buf_puts(b, "\\n");
        else if (c == 0xc2 && utf8 && (unsigned char)s[1] < 0xa0)
            (void)buf_printf(b, "\\xc2\\x%02x", (unsigned char)*++s);
        else if (c < ' ' || c == 0x7f || (c >= 0x80 && !utf8))
            (void)buf_printf(b, "\\x%02x", c);
        else
            (void)buf_putc(b, (char)c);
    }
}

static void put_value(struct buf *b, const struct log_field *f)
{
    if (f->str == NULL) {
        (void)buf_printf(b, "%" PRId64, f->num);
    } else if (needs_quotes(f->str)) {
        (void)buf_putc(b, '"');
        put_escaped(b, f->str);
        (void)buf_putc(b, '"');
    } else {
        (void)buf_puts(b, f->str);
    }
}

/* An overlong line loses its end, never its newline. */
static void end_line(struct buf *b)
{
    b->overflow = false;
    if (b->len + 1 > b->max)
        b->len = b->max - 1;
    (void)buf_putc(b, '\n');
}

/* Journal native protocol: FIELD=value lines; our values hold no raw newline once escaped. */
static void write_journal(int fd, enum log_level level, const char *msg,
                          const struct log_field *fields)
{
    static const char priorities[] = {'7', '6', '4', '3'};
    auto_buf struct buf b = BUF_INIT(KiB(64));
    (void)buf_printf(&b, "SYSLOG_IDENTIFIER=%s\nPRIORITY=%c\nMESSAGE=", identifier,
                     priorities[level]);
    put_escaped(&b, msg);
    for (const struct log_field *f = fields; f->key != NULL; f++) {
        (void)buf_printf(&b, " %s=", f->key);
        put_value(&b, f);
    }
    end_line(&b);
    for (const struct log_field *f = fields; f->key != NULL; f++) {
        (void)buf_puts(&b, "ASPIS_");
        for (const char *k = f->key; *k != '\0'; k++)
            (void)buf_putc(&b, (char)(*k >= 'a' && *k <= 'z' ? *k - 'a' + 'A' : *k));
        (void)buf_putc(&b, '=');
        if (f->str != NULL)
            put_escaped(&b, f->str);
        else
            put_value(&b, f);
        end_line(&b);
    }
    (void)send(fd, b.data, b.len, MSG_NOSIGNAL);
}

void log_write(enum log_level level, const char *msg, const struct log_field *fields)
{
    int fd = atomic_load(&journal_fd);
    if (fd >= 0) {
        write_journal(fd, level, msg, fields);
        return;
    }
    struct timespec ts;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    char when[32];
    (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
    auto_buf struct buf b = BUF_INIT(KiB(64));
    (void)buf_printf(&b, "%s.%03ldZ %-5s ", when, ts.tv_nsec / 1000000, level_names[level]);
    put_escaped(&b, msg);
    for (const struct log_field *f = fields; f->key != NULL; f++) {
        (void)buf_printf(&b, " %s=", f->key);
        put_value(&b, f);
    }
    end_line(&b);
    ssize_t n = write(STDERR_FILENO, b.data, b.len);
    (void)n; /* nowhere left to complain */
}
