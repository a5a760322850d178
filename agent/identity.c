#include "agent/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define HOSTNAME_LEN 64
#define NS_PER_S UINT64_C(1000000000)

int identity_check_hostname(const char *hostname, struct err *err)
{
    size_t n = hostname ? strlen(hostname) : 0;
    if (n == 0 || n > HOSTNAME_LEN)
        return err_set(err, ERR_INVALID, "hostname: %zu characters, 1 to %d are possible", n,
                       HOSTNAME_LEN);
    if (strspn(hostname, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") != n ||
        hostname[0] == '-' || hostname[0] == '.')
        return err_set(err, ERR_INVALID, "hostname: \"%s\" is not a host name", hostname);
    return 0;
}

char *identity_sysctl_path(const char *key, struct err *err)
{
    size_t n = key ? strlen(key) : 0;
    if (n == 0 || n > LIMIT_NAME) {
        err_set(err, ERR_INVALID, "sysctl: a name of %zu bytes", n);
        return NULL;
    }
    auto_free char *path = xstrdup(key);
    bool dots = key[strcspn(key, "./")] == '.';
    for (char *c = path; dots && *c; c++)
        *c = *c == '.' ? '/' : *c == '/' ? '.' : *c;
    size_t start = 0;
    for (size_t i = 0; i <= n; i++) {
        char c = path[i];
        if (c == '/' || c == '\0') {
            size_t len = i - start;
            if (len == 0 || (len <= 2 && strspn(path + start, ".") >= len))
                break;
            start = i + 1;
            if (c == '\0')
                return take(path);
        } else if (c <= ' ' || c > '~') {
            break;
        }
    }
    err_set(err, ERR_INVALID, "sysctl: \"%s\" is not a sysctl's name", key);
    return NULL;
}

int identity_set_clock(uint64_t wall_clock_ns, struct err *err)
{
    struct timespec ts = {.tv_sec = (time_t)(wall_clock_ns / NS_PER_S),
                          .tv_nsec = (long)(wall_clock_ns % NS_PER_S)};
    if (clock_settime(CLOCK_REALTIME, &ts) < 0)
        return err_sys(err, errno, "set the clock to %lld s", (long long)ts.tv_sec);
    return 0;
}

int identity_seed(const uint8_t *entropy, size_t len, struct err *err)
{
    if (len < IDENTITY_ENTROPY_MIN || len > IDENTITY_ENTROPY_MAX)
        return err_set(err, ERR_INVALID, "entropy: %zu bytes, %d to %d are wanted", len,
                       IDENTITY_ENTROPY_MIN, IDENTITY_ENTROPY_MAX);
    auto_close int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "entropy: open /dev/urandom");
    union {
        struct rand_pool_info info;
        uint8_t room[sizeof(struct rand_pool_info) + IDENTITY_ENTROPY_MAX];
    } pool = {.info = {.entropy_count = (int)len * 8, .buf_size = (int)len}};
    memcpy(pool.room + offsetof(struct rand_pool_info, buf), entropy, len);
    int r = ioctl(fd, RNDADDENTROPY, &pool.info);
    explicit_bzero(&pool, sizeof(pool));
    if (r < 0)
        return err_sys(err, errno, "entropy: RNDADDENTROPY");
    if (ioctl(fd, RNDRESEEDCRNG) < 0)
        return err_sys(err, errno, "entropy: RNDRESEEDCRNG");
    return 0;
}

int identity_set_hostname(const char *hostname, struct err *err)
{
    if (identity_check_hostname(hostname, err) < 0)
        return -1;
    if (sethostname(hostname, strlen(hostname)) < 0)
        return err_sys(err, errno, "set the hostname %s", hostname);
    return 0;
}

int identity_write_machine_id(const char *path, const uint8_t id[IDENTITY_MACHINE_ID],
                              struct err *err)
{
    static const char hex[] = "0123456789abcdef";
    char text[2 * IDENTITY_MACHINE_ID + 1];
    for (size_t i = 0; i < IDENTITY_MACHINE_ID; i++) {
        text[2 * i] = hex[id[i] >> 4];
        text[2 * i + 1] = hex[id[i] & 15];
    }
    text[sizeof(text) - 1] = '\n';
    /* always as long, so a second time needs no other file */
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0444);
    if (fd < 0)
        return err_sys(err, errno, "open %s", path);
    return fs_write_fd(fd, text, sizeof(text), err) < 0 ? err_wrap(err, "%s", path) : 0;
}

/* The next number of a text, which is moved on. False when there is none. */
static bool next_number(const char **text, long long *value)
{
    char *end;
    *text += strspn(*text, " \t\n");
    *value = strtoll(*text, &end, 0);
    bool found = end != *text && (*end == '\0' || strchr(" \t\n", *end) != NULL);
    *text = end;
    return found;
}

static bool at_end(const char *text)
{
    return text[strspn(text, " \t\n")] == '\0';
}

/* The kernel reads as many numbers as it wants and ignores the rest ("1 and more" is 1). Only
 * numbers are compared; text it may keep in other words. */
static bool took_value(const char *wrote, const char *holds)
{
    const char *a = wrote;
    const char *b = holds;
    long long x;
    long long y;
    while (!at_end(b)) {
        if (!next_number(&b, &y))
            return true;
        if (!next_number(&a, &x) || x != y)
            return false;
    }
    return at_end(a);
}

/* What cannot be read back is taken as written. */
static int verify_sysctl(int root, const char *path, const char *key, const char *value,
                         struct err *err)
{
    auto_close int fd = fs_open_in_root(root, path, O_RDONLY, 0, NULL);
    auto_free char *holds = fd >= 0 ? fs_read_fd(fd, KiB(16), NULL, NULL) : NULL;
    if (holds == NULL || at_end(holds) || took_value(value, holds))
        return 0;
    holds[strcspn(holds, "\n")] = '\0';
    return err_set(err, ERR_INVALID, "sysctl %s: wrote \"%.200s\", the kernel holds \"%.200s\"",
                   key, value, holds);
}

int identity_set_sysctl(const char *key, const char *value, struct err *err)
{
    auto_free char *path = identity_sysctl_path(key, err);
    if (path == NULL)
        return -1;
    if (strlen(value) > LIMIT_SYSCTL_VALUE)
        return err_set(err, ERR_INVALID, "sysctl %s: a value of %zu bytes", key, strlen(value));
    auto_close int root = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return err_sys(err, errno, "sysctl %s: open /proc/sys", key);
    auto_close int fd = fs_open_in_root(root, path, O_WRONLY, 0, err);
    if (fd < 0)
        return err_wrap(err, "sysctl %s", key);
    if (fs_write_fd(fd, value, strlen(value), err) < 0)
        return err_wrap(err, "sysctl %s: write \"%s\"", key, value);
    return verify_sysctl(root, path, key, value, err);
}
