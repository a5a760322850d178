#include "cri/image/bundle.h"

#include <fcntl.h>
#include <search.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define MEMBERS_MAX 100000
#define EXTENSION_MAX KiB(64) /* PAX records or a long name */
#define LINKS_MAX 4

struct member {
    uint64_t offset, size;
    char *target; /* of a link: another member's name */
    char *name;
};

struct bundle {
    int fd;
    bool is_dir;
    void *members; /* tsearch() root, by name */
    size_t n;
};

/* Tar headers */

struct header { /* POSIX ustar */
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type;
    char linkname[100], magic[6], version[2], uname[32], gname[32], major[8], minor[8];
    char prefix[155], pad[12];
};
_Static_assert(sizeof(struct header) == 512, "tar header");

/* What extension headers say about the next member. */
struct extension {
    char *name, *target;
    bool has_size;
    uint64_t size;
};

static void extension_clear(struct extension *x)
{
    free(x->name);
    free(x->target);
    *x = (struct extension){0};
}

/* Octal digits between spaces and NULs, or GNU's base 256. */
static int number(const char *field, size_t len, uint64_t *out)
{
    uint64_t v = 0;
    size_t i = 0;
    if (((unsigned char)field[0] & 0x80) != 0) {
        for (i = 1; i < len; i++) {
            if (v > (uint64_t)INT64_MAX >> 8)
                return -1;
            v = v << 8 | (unsigned char)field[i];
        }
        *out = v;
        return ((unsigned char)field[0] & 0x7f) == 0 ? 0 : -1;
    }
    while (i < len && field[i] == ' ')
        i++;
    for (; i < len && field[i] >= '0' && field[i] <= '7'; i++) {
        if (v > (uint64_t)INT64_MAX >> 3)
            return -1;
        v = v << 3 | (uint64_t)(field[i] - '0');
    }
    *out = v;
    return i == len || field[i] == ' ' || field[i] == '\0' ? 0 : -1;
}

static bool checksum_fits(const struct header *h)
{
    const unsigned char *p = (const unsigned char *)h;
    size_t at = offsetof(struct header, checksum);
    uint64_t want;
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof(*h); i++)
        sum += i >= at && i < at + sizeof(h->checksum) ? ' ' : p[i];
    return number(h->checksum, sizeof(h->checksum), &want) == 0 && want == sum;
}

static bool all_zero(const struct header *h)
{
    static const struct header zero;
    return memcmp(h, &zero, sizeof(zero)) == 0;
}

/* Without "./", doubled slashes and "..", as far as it leads: "a/../b" is "b". NULL: out of memory.
 */
static char *clean_name(const char *base, const char *name)
{
    auto_free char *in = fs_format("%s/%s", base, name);
    char *out = in != NULL ? malloc(strlen(in) + 1) : NULL;
    size_t n = 0;
    if (out == NULL)
        return NULL;
    for (const char *p = in; *p != '\0';) {
        size_t len = strcspn(p, "/");
        if (len == 2 && p[0] == '.' && p[1] == '.') {
            while (n > 0 && out[--n] != '/')
                ;
        } else if (len > 0 && !(len == 1 && p[0] == '.')) {
            if (n > 0)
                out[n++] = '/';
            memcpy(out + n, p, len);
            n += len;
        }
        p += len;
        p += strspn(p, "/");
    }
    out[n] = '\0';
    return out;
}

static int read_at(int fd, void *data, size_t len, uint64_t at, struct err *err)
{
    char *p = data;
    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "read the archive");
        if (n == 0)
            return err_set(err, ERR_INVALID, "the archive is cut short");
        p += n;
        at += (size_t)n;
        len -= (size_t)n;
    }
    return 0;
}

/* "LEN KEY=VALUE\n" records. */
static int parse_pax(struct extension *x, char *text, size_t len, struct err *err)
{
    for (size_t at = 0; at < len;) {
        char *end;
        errno = 0;
        unsigned long n = strtoul(text + at, &end, 10);
        char *key = end + 1;
        if (errno != 0 || *end != ' ' || n > len - at || text + at + n <= key ||
            text[at + n - 1] != '\n')
            return err_set(err, ERR_INVALID, "the archive has a bad PAX header");
        text[at + n - 1] = '\0';
        char *value = strchr(key, '=');
        if (value == NULL)
            return err_set(err, ERR_INVALID, "the archive has a bad PAX header");
        *value++ = '\0';
        if (strcmp(key, "path") == 0 || strcmp(key, "linkpath") == 0) {
            char **to = key[0] == 'p' ? &x->name : &x->target;
            free(*to);
            *to = xstrdup(value);
        } else if (strcmp(key, "size") == 0) {
            if (str_to_u64(value, &x->size) < 0)
                return err_set(err, ERR_INVALID, "the archive has a bad PAX header");
            x->has_size = true;
        }
        at += n;
    }
    return 0;
}

static int read_extension(const struct bundle *b, struct extension *x, char type, uint64_t at,
                          uint64_t size, struct err *err)
{
    if (type == 'g')
        return 0;
    if (size == 0 || size > EXTENSION_MAX)
        return err_set(err, ERR_INVALID, "the archive has an extended header of %llu bytes",
                       (unsigned long long)size);
    auto_free char *text = calloc(1, (size_t)size + 1);
    if (text == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (read_at(b->fd, text, (size_t)size, at, err) < 0)
        return -1;
    if (type == 'x')
        return parse_pax(x, text, (size_t)size, err);
    char **to = type == 'L' ? &x->name : &x->target;
    free(*to);
    *to = take(text);
    return 0;
}

static int compare_members(const void *a, const void *b)
{
    const struct member *x = a;
    const struct member *y = b;
    return strcmp(x->name, y->name);
}

static void member_free(void *arg)
{
    struct member *m = arg;
    free(m->target);
    free(m->name);
    free(m);
}

/* The member of that name, a fresh one if there was none; NULL: out of memory. */
static struct member *get_member(struct bundle *b, const char *name)
{
    struct member *fresh = calloc(1, sizeof(*fresh));
    if (fresh == NULL)
        return NULL;
    fresh->name = strdup(name);
    struct member **there =
        fresh->name != NULL ? tsearch(fresh, &b->members, compare_members) : NULL;
    if (there == NULL || *there != fresh)
        member_free(fresh);
    return there != NULL ? *there : NULL;
}

static int add_member(struct bundle *b, const struct header *h, const struct extension *x,
                      uint64_t offset, uint64_t size, struct err *err)
{
    char plain[sizeof(h->prefix) + sizeof(h->name) + 2];
    bool ustar = memcmp(h->magic, "ustar\0", 6) == 0 && h->prefix[0] != '\0';
    (void)snprintf(plain, sizeof(plain), "%.*s%s%.*s", ustar ? (int)sizeof(h->prefix) : 0,
                   h->prefix, ustar ? "/" : "", (int)sizeof(h->name), h->name);
    auto_free char *name = clean_name("", x->name != NULL ? x->name : plain);
    if (name == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (++b->n > MEMBERS_MAX)
        return err_set(err, ERR_EXHAUSTED, "the archive has more than %d members", MEMBERS_MAX);
    struct member *m = get_member(b, name);
    if (m == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    m->offset = offset;
    m->size = size;
    free(m->target);
    m->target = NULL;
    if (h->type == '2' || h->type == '1') {
        char link[sizeof(h->linkname) + 1];
        (void)snprintf(link, sizeof(link), "%.*s", (int)sizeof(h->linkname), h->linkname);
        char *slash = strrchr(name, '/');
        if (slash != NULL)
            *slash = '\0';
        /* A symlink's target is relative to its directory, a hard link's to the archive. */
        m->target = clean_name(h->type == '2' && slash != NULL ? name : "",
                               x->target != NULL ? x->target : link);
        if (m->target == NULL)
            return err_set(err, ERR_EXHAUSTED, "out of memory");
    }
    return 0;
}

/* One header and what it announces; *at moves behind it. Returns 1 at the archive's end. */
static int read_member(struct bundle *b, uint64_t *at, uint64_t total, struct extension *x,
                       struct err *err)
{
    struct header h;
    uint64_t size;
    if (*at == total)
        return 1;
    if (read_at(b->fd, &h, sizeof(h), *at, err) < 0)
        return -1;
    if (all_zero(&h))
        return 1;
    if (!checksum_fits(&h) || number(h.size, sizeof(h.size), &size) < 0)
        return err_set(err, ERR_INVALID,
                       "not a tar archive (a compressed one must be unpacked "
                       "first)");
    bool extends = strchr("xgLK", h.type) != NULL && h.type != '\0';
    if (!extends && x->has_size)
        size = x->size;
    if (h.type >= '1' && h.type <= '6')
        size = 0;
    *at += sizeof(h);
    if (size > total - *at)
        return err_set(err, ERR_INVALID, "the archive is cut short");
    int rc = 0;
    if (extends) {
        rc = read_extension(b, x, h.type, *at, size, err);
    } else {
        if (h.type == '0' || h.type == '\0' || h.type == '7' || h.type == '1' || h.type == '2')
            rc = add_member(b, &h, x, *at, size, err);
        extension_clear(x);
    }
    uint64_t padded = (size + sizeof(h) - 1) & ~(uint64_t)(sizeof(h) - 1);
    *at = padded > total - *at ? total : *at + padded;
    return rc;
}

static int read_members(struct bundle *b, uint64_t total, struct err *err)
{
    struct extension x = {0};
    uint64_t at = 0;
    int rc;
    while ((rc = read_member(b, &at, total, &x, err)) == 0)
        ;
    extension_clear(&x);
    return rc < 0 ? -1 : 0;
}

/* The bundle */

struct bundle *bundle_open(const char *path, struct err *err)
{
    auto_bundle struct bundle *b = xcalloc(1, sizeof(*b));
    struct stat st;
    b->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (b->fd < 0 || fstat(b->fd, &st) < 0) {
        (void)err_sys(err, errno, "open %s", path);
        return NULL;
    }
    b->is_dir = S_ISDIR(st.st_mode);
    if (!b->is_dir && !S_ISREG(st.st_mode)) {
        (void)err_set(err, ERR_INVALID, "%s is neither a directory nor a file", path);
        return NULL;
    }
    if (!b->is_dir && read_members(b, (uint64_t)st.st_size, err) < 0) {
        (void)err_wrap(err, "%s", path);
        return NULL;
    }
    return take(b);
}

void bundle_close(struct bundle *b)
{
    if (b == NULL)
        return;
    tdestroy(b->members, member_free);
    cleanup_closep(&b->fd);
    free(b);
}

static const struct member *find(const struct bundle *b, const char *name)
{
    auto_free char *clean = clean_name("", name);
    for (int i = 0; clean != NULL && i < LINKS_MAX; i++) {
        const struct member key = {.name = clean};
        struct member **m = tfind(&key, &b->members, compare_members);
        if (m == NULL || (*m)->target == NULL)
            return m != NULL ? *m : NULL;
        free(clean);
        clean = strdup((*m)->target);
    }
    return NULL;
}

bool bundle_has(const struct bundle *b, const char *name)
{
    struct bundle_file f;
    if (bundle_file(b, name, &f, NULL) < 0)
        return false;
    (void)close(f.fd);
    return true;
}

int bundle_file(const struct bundle *b, const char *name, struct bundle_file *out, struct err *err)
{
    struct stat st;
    if (!b->is_dir) {
        const struct member *m = find(b, name);
        if (m == NULL)
            return err_set(err, ERR_NOT_FOUND, "the archive has no file %s", name);
        out->fd = fcntl(b->fd, F_DUPFD_CLOEXEC, 3);
        out->offset = m->offset;
        out->size = m->size;
        return out->fd < 0 ? err_sys(err, errno, "duplicate a descriptor") : 0;
    }
    auto_close int fd = fs_open_in_root(b->fd, name, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, err);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "stat %s", name);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_INVALID, "%s is not a regular file", name);
    out->offset = 0;
    out->size = (uint64_t)st.st_size;
    out->fd = take_fd(&fd);
    return 0;
}

char *bundle_read(const struct bundle *b, const char *name, size_t max, size_t *len,
                  struct err *err)
{
    struct bundle_file f;
    if (bundle_file(b, name, &f, err) < 0)
        return NULL;
    auto_close int fd = f.fd;
    if (f.size > max) {
        (void)err_set(err, ERR_EXHAUSTED, "%s has %llu bytes, more than %zu", name,
                      (unsigned long long)f.size, max);
        return NULL;
    }
    auto_free char *data = malloc((size_t)f.size + 1);
    if (data == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    if (read_at(fd, data, (size_t)f.size, f.offset, err) < 0) {
        (void)err_wrap(err, "%s", name);
        return NULL;
    }
    data[f.size] = '\0';
    *len = (size_t)f.size;
    return take(data);
}
