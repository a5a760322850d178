#include "agent/user.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fs.h"

/* A piece of a line: not terminated. */
struct field {
    const char *p;
    size_t len;
};

struct lines {
    const char *p;
    const char *end;
};

static bool next_line(struct lines *l, struct field *line)
{
    if (l->p == NULL || l->p >= l->end)
        return false;
    size_t left = (size_t)(l->end - l->p);
    const char *nl = memchr(l->p, '\n', left);
    line->p = l->p;
    line->len = nl != NULL ? (size_t)(nl - l->p) : left;
    l->p += line->len + 1;
    return true;
}

/* Cuts the text up to the next `sep` off `rest`; false when nothing is left. */
static bool next_field(struct field *rest, char sep, struct field *out)
{
    if (rest->p == NULL)
        return false;
    const char *hit = rest->len > 0 ? memchr(rest->p, sep, rest->len) : NULL;
    out->p = rest->p;
    if (hit == NULL) {
        out->len = rest->len;
        rest->p = NULL;
        rest->len = 0;
    } else {
        out->len = (size_t)(hit - rest->p);
        rest->p = hit + 1;
        rest->len -= out->len + 1;
    }
    return true;
}

static bool field_is(const struct field *f, const char *s, size_t len)
{
    return f->len == len && memcmp(f->p, s, len) == 0;
}

/* (uid_t)-1 means "no change" to the kernel, so it is nobody's number. */
static bool parse_id(const char *s, size_t len, uint32_t *out)
{
    uint64_t v = 0;

    if (len == 0 || len > 10)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(s[i] - '0');
    }
    if (v >= UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

struct passwd_entry {
    struct field name;
    uint32_t uid;
    uint32_t gid;
    struct field home;
};

/* name:password:uid:gid:gecos:home:shell; what follows gid may be missing. */
static bool parse_passwd(struct field line, struct passwd_entry *e)
{
    struct field f;

    if (!next_field(&line, ':', &e->name) || e->name.len == 0 || e->name.p[0] == '#')
        return false;
    if (!next_field(&line, ':', &f))
        return false;
    if (!next_field(&line, ':', &f) || !parse_id(f.p, f.len, &e->uid))
        return false;
    if (!next_field(&line, ':', &f) || !parse_id(f.p, f.len, &e->gid))
        return false;
    e->home = (struct field){NULL, 0};
    if (next_field(&line, ':', &f))
        (void)next_field(&line, ':', &e->home);
    return true;
}

struct group_entry {
    struct field name;
    uint32_t gid;
    struct field members;
};

/* name:password:gid:member,member */
static bool parse_group(struct field line, struct group_entry *e)
{
    struct field f;

    if (!next_field(&line, ':', &e->name) || e->name.len == 0 || e->name.p[0] == '#')
        return false;
    if (!next_field(&line, ':', &f))
        return false;
    if (!next_field(&line, ':', &f) || !parse_id(f.p, f.len, &e->gid))
        return false;
    if (!next_field(&line, ':', &e->members))
        e->members = (struct field){NULL, 0};
    return true;
}

static bool find_passwd(const char *text, size_t len, const struct field *name, const uint32_t *uid,
                        struct passwd_entry *e)
{
    struct lines lines = {text, text != NULL ? text + len : NULL};
    struct field line;

    while (next_line(&lines, &line)) {
        if (!parse_passwd(line, e))
            continue;
        if (name != NULL ? field_is(&e->name, name->p, name->len) : e->uid == *uid)
            return true;
    }
    return false;
}

static int add_group(struct user_ids *ids, uint32_t gid, struct err *err)
{
    for (size_t i = 0; i < ids->n_groups; i++)
        if (ids->groups[i] == gid)
            return 0;
    if (ids->n_groups == LIMIT_USER_GROUPS)
        return err_set(err, ERR_EXHAUSTED, "more than %d supplementary groups", LIMIT_USER_GROUPS);
    ids->groups[ids->n_groups++] = gid;
    return 0;
}

static bool lists_member(struct field members, const struct field *name)
{
    struct field m;

    while (next_field(&members, ',', &m))
        if (field_is(&m, name->p, name->len))
            return true;
    return false;
}

static int resolve_group(const char *text, size_t len, const struct field *want, uint32_t *gid,
                         struct err *err)
{
    struct lines lines = {text, text != NULL ? text + len : NULL};
    struct field line;
    struct group_entry e;

    if (parse_id(want->p, want->len, gid))
        return 0;
    while (next_line(&lines, &line)) {
        if (parse_group(line, &e) && field_is(&e.name, want->p, want->len)) {
            *gid = e.gid;
            return 0;
        }
    }
    return err_set(err, ERR_INVALID, "group \"%.*s\" is not in the image's /etc/group",
                   (int)want->len, want->p);
}

static void take_home(struct user_ids *out, const struct field *home)
{
    if (home->p == NULL || home->len == 0 || home->p[0] != '/' || home->len >= sizeof(out->home) ||
        memchr(home->p, '\0', home->len) != NULL)
        return;
    memcpy(out->home, home->p, home->len);
    out->home[home->len] = '\0';
}

int user_lookup(const char *passwd, size_t passwd_len, const char *group, size_t group_len,
                const struct user_request *req, struct user_ids *out, struct err *err)
{
    const char *text = req->user != NULL ? req->user : "";
    struct field rest = {text, strlen(text)};
    struct field user = {text, 0};
    struct field group_name = {NULL, 0};
    struct passwd_entry e;
    bool found;

    if (rest.len > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "user name is longer than %d bytes", LIMIT_NAME);
    (void)next_field(&rest, ':', &user);
    if (rest.p != NULL)
        group_name = rest;

    memset(out, 0, sizeof(*out));
    out->home[0] = '/';

    if (user.len == 0) {
        out->uid = 0;
        found = find_passwd(passwd, passwd_len, NULL, &out->uid, &e);
    } else if (parse_id(user.p, user.len, &out->uid)) {
        found = find_passwd(passwd, passwd_len, NULL, &out->uid, &e);
    } else {
        found = find_passwd(passwd, passwd_len, &user, NULL, &e);
        if (!found)
            return err_set(err, ERR_INVALID, "user \"%.*s\" is not in the image's /etc/passwd",
                           (int)user.len, user.p);
        out->uid = e.uid;
    }
    if (found) {
        out->gid = e.gid;
        take_home(out, &e.home);
    }
    if (group_name.len > 0 && resolve_group(group, group_len, &group_name, &out->gid, err) < 0)
        return -1;
    if (req->has_group) {
        if (req->group == UINT32_MAX)
            return err_set(err, ERR_INVALID, "group %u is not valid", req->group);
        out->gid = req->group;
    }

    if (add_group(out, out->gid, err) < 0)
        return -1;
    if (!req->strict && found) {
        struct lines lines = {group, group != NULL ? group + group_len : NULL};
        struct field line;
        struct group_entry g;

        while (next_line(&lines, &line))
            if (parse_group(line, &g) && lists_member(g.members, &e.name) &&
                add_group(out, g.gid, err) < 0)
                return -1;
    }
    for (size_t i = 0; i < req->n_groups; i++) {
        if (req->groups[i] == UINT32_MAX)
            return err_set(err, ERR_INVALID, "group %u is not valid", req->groups[i]);
        if (add_group(out, req->groups[i], err) < 0)
            return -1;
    }
    return 0;
}

/* NULL without *err set: there is no such file. */
static char *read_in_root(int rootfd, const char *path, size_t *len, struct err *err)
{
    auto_err struct err local = ERR_INIT;
    struct stat st;
    auto_close int fd = fs_open_in_root(rootfd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, &local);

    *len = 0;
    if (fd < 0) {
        if (local.sys_errno != ENOENT && local.sys_errno != ENOTDIR)
            err_move(err, &local);
        return NULL;
    }
    /* A FIFO or device in the image must not hold us up or feed us for ever. */
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        err_set(err, ERR_INVALID, "%s of the image is not a regular file", path);
        return NULL;
    }
    char *data = fs_read_fd(fd, LIMIT_USER_FILE, len, err);
    if (data == NULL)
        err_wrap(err, "%s of the image", path);
    return data;
}

int user_resolve(int rootfd, const struct user_request *req, struct user_ids *out, struct err *err)
{
    auto_err struct err local = ERR_INIT;
    auto_free char *passwd = NULL;
    auto_free char *group = NULL;
    size_t passwd_len = 0;
    size_t group_len = 0;

    passwd = read_in_root(rootfd, "etc/passwd", &passwd_len, &local);
    if (local.code != ERR_OK)
        return err_move(err, &local);
    group = read_in_root(rootfd, "etc/group", &group_len, &local);
    if (local.code != ERR_OK)
        return err_move(err, &local);
    return user_lookup(passwd, passwd_len, group, group_len, req, out, err);
}
