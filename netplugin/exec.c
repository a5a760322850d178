#include "netplugin/exec.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "netplugin/json.h"

/* Codes of CNI SPEC 1.1 that say "later", not "never". */
enum { CNI_TRY_AGAIN = 11, CNI_NOT_AVAILABLE = 50, CNI_LIMITED = 51 };

/* A plugin that is killed in the middle may leave what no DEL finds: host-local, between making the
 * file of a lease and writing into it whose that is. So a call that is over lets it finish. */
#define GRACE_NS (5LL * 1000000000)

extern char **environ;

char *cni_exec_find(const char *type, const char *const *bin_dirs, struct err *err)
{
    auto_buf struct buf tried = BUF_INIT(LIMIT_CNI_ERROR);

    for (size_t i = 0; bin_dirs != NULL && bin_dirs[i] != NULL; i++) {
        auto_free char *path = fs_format("%s/%s", bin_dirs[i], type);
        struct stat st;

        if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0)
            return take(path);
        (void)buf_printf(&tried, "%s%s", i == 0 ? "" : ":", bin_dirs[i]);
    }
    err_set(err, ERR_NOT_FOUND, "plugin %s: no such program in %s", type, buf_str(&tried));
    return NULL;
}

/* Ours without CNI_*, then the call's. */
static void make_env(const struct cni_exec *x, struct strv *env)
{
    const struct {
        const char *name, *value;
    } vars[] = {
        {"CNI_COMMAND", x->command}, {"CNI_CONTAINERID", x->container_id},
        {"CNI_NETNS", x->netns},     {"CNI_IFNAME", x->ifname},
        {"CNI_ARGS", x->args},
    };
    auto_buf struct buf path = BUF_INIT(LIMIT_PATH * 4);

    for (char **e = environ; e != NULL && *e != NULL; e++) {
        if (!str_starts(*e, "CNI_"))
            strv_add(env, *e);
    }
    for (size_t i = 0; i < ARRAY_LEN(vars); i++) {
        if (vars[i].value != NULL)
            strv_addf(env, "%s=%s", vars[i].name, vars[i].value);
    }
    for (size_t i = 0; x->bin_dirs != NULL && x->bin_dirs[i] != NULL; i++)
        (void)buf_printf(&path, "%s%s", i == 0 ? "" : ":", x->bin_dirs[i]);
    strv_addf(env, "CNI_PATH=%s", buf_str(&path));
}

/* A plugin's words for our error text: the last LIMIT_CNI_ERROR bytes, one line, valid UTF-8,
 * printable. */
static char *clean_text(const char *s, size_t len)
{
    char *out, *o;

    while (len > 0 && (s[len - 1] == '\n' || s[len - 1] == ' '))
        len--;
    if (len > LIMIT_CNI_ERROR) {
        s += len - LIMIT_CNI_ERROR;
        len = LIMIT_CNI_ERROR;
        while (len > 0 && ((unsigned char)*s & 0xc0) == 0x80) {
            s++;
            len--;
        }
    }
    o = out = xcalloc(len + 1, 1);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];

        *o++ = c == '\n' || c == '\t' ? ' ' : (char)(c < 0x20 || c == 0x7f ? '?' : c);
    }
    *o = '\0';
    if (!str_is_utf8(out, (size_t)(o - out))) {
        for (o = out; *o != '\0'; o++) {
            if ((unsigned char)*o >= 0x80)
                *o = '?';
        }
    }
    return out;
}

static char *clean_string(const char *s)
{
    return s == NULL ? xstrdup("") : clean_text(s, strlen(s));
}

/* {code, msg, details} on stdout, or whatever the plugin said instead. */
static int failure(int status, const json_t *reply, const struct buf *out, const struct buf *errout,
                   int *code, struct err *err)
{
    auto_free char *tail = clean_text(buf_str(errout), errout->len);
    char text[64];
    json_int_t n = reply != NULL ? json_integer_value(json_object_get(reply, "code")) : 0;

    if (n > 0 && n < 1000000) {
        auto_free char *msg = clean_string(json_get_string(reply, "msg"));
        auto_free char *details = clean_string(json_get_string(reply, "details"));

        if (code != NULL)
            *code = (int)n;
        return err_set(err,
                       n == CNI_TRY_AGAIN || n == CNI_NOT_AVAILABLE || n == CNI_LIMITED
                           ? ERR_UNAVAILABLE
                           : ERR_UNKNOWN,
                       "%s%s%s (code %d)", *msg != '\0' ? msg : "failed without a message",
                       *details != '\0' ? ": " : "", details, (int)n);
    }
    (void)spawn_status_text(status, text, sizeof(text));
    if (*tail == '\0') {
        free(tail);
        tail = clean_text(buf_str(out), out->len < 256 ? out->len : 256);
    }
    return err_set(err, ERR_UNKNOWN, "%s%s%s", text, *tail != '\0' ? ": " : "", tail);
}

static int run(const struct cni_exec *x, const char *path, const json_t *conf, json_t **reply,
               int *code, struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *deadline =
        cancel_child(cancel, x->timeout_ns > 0 ? mono_ns() + x->timeout_ns : 0, err);
    auto_buf struct buf out = BUF_INIT(LIMIT_CNI_OUTPUT), errout = BUF_INIT(LIMIT_CNI_STDERR);
    auto_strv struct strv env = {0};
    auto_free char *in = json_dumps(conf, JSON_COMPACT);
    auto_err struct err why = ERR_INIT;
    auto_json json_t *said = NULL;
    const char *argv[] = {path, NULL};
    const struct spawn_fd keep = {.child = 3, .here = x->keep_fd};
    struct spawn_opts opts = {
        .path = path, .argv = argv, .new_group = true, .fds = &keep, .n_fds = x->keep_fd > 0};
    int status;

    if (deadline == NULL || cancel_check(deadline, err) < 0)
        return -1;
    if (strcmp(x->command, "ADD") == 0 || strcmp(x->command, "DEL") == 0)
        opts.grace_ns = GRACE_NS;
    if (in == NULL)
        return err_set(err, ERR_EXHAUSTED, "configuration does not fit in memory");
    make_env(x, &env);
    opts.env = (const char *const *)env.v;
    if (spawn_run(&opts, in, strlen(in), &out, &errout, deadline, &status, &why) < 0) {
        auto_free char *tail = clean_text(buf_str(&errout), errout.len);

        if (*tail != '\0')
            err_append(&why, ": %s", tail);
        return err_move(err, &why);
    }
    if (out.len > 0)
        said = json_parse(buf_str(&out), out.len, LIMIT_CNI_OUTPUT, &why);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return failure(status, said, &out, &errout, code, err);
    if (reply == NULL)
        return 0;
    if (said == NULL) {
        auto_free char *tail = clean_text(buf_str(&errout), errout.len);

        return err_set(err, ERR_UNKNOWN, "succeeded but printed no result: %s%s%s",
                       out.len == 0 ? "nothing on stdout" : err_msg(&why),
                       *tail != '\0' ? "; it said: " : "", tail);
    }
    *reply = take(said);
    return 0;
}

int cni_exec_run(const struct cni_exec *x, const char *type, const json_t *conf, json_t **reply,
                 int *code, struct cancel *cancel, struct err *err)
{
    auto_free char *path = cni_exec_find(type, x->bin_dirs, err);

    if (code != NULL)
        *code = 0;
    if (path == NULL)
        return -1;
    if (run(x, path, conf, reply, code, cancel, err) < 0)
        return err_wrap(err, "plugin %s: %s", type, x->command);
    return 0;
}
