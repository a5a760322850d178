/*
 * image_tool - drives an image store from a test: one command per run, one JSON object per answer.
 *
 *     image_tool [--hosts DIR] [--unpacker P] [--jail P] [--uid N] [--stall S] [--downloads N]
 *                [--user U --password P] [--identity T] [--token T] [--auth B] [--server S]
 *                [--deadline-ms N] [--cancel-ms N] [--first-cancel-ms N] ROOT COMMAND [ARG...]
 *     pull REF...   all at once, on a thread each        list
 *     each REF...   one after the other; "@USER:PASSWORD" and "@" change who pulls
 *     find REF...   remove REF...   busy REF   fsinfo   disk ID FILE
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "cri/image/image.h"

static struct image_options opts = {.max_downloads = 3};
static struct image_auth auth;
static int64_t deadline_ms, cancel_ms, first_cancel_ms; /* the last for the first REF only */
static char *first_ref;
static struct image_store *store;
static pthread_mutex_t out_lock = PTHREAD_MUTEX_INITIALIZER;

static void print(json_t *j)
{
    pthread_mutex_lock(&out_lock);
    (void)json_dumpf(j, stdout, JSON_COMPACT | JSON_SORT_KEYS);
    (void)putchar('\n');
    (void)fflush(stdout);
    pthread_mutex_unlock(&out_lock);
    json_decref(j);
}

static json_t *failure(const struct err *err)
{
    return json_pack("{s:b,s:s,s:s}", "ok", 0, "code", err_code_name(err->code), "msg",
                     err_msg(err));
}

static json_t *list_of(const struct strv *l)
{
    json_t *a = json_array();

    for (size_t i = 0; i < l->n; i++)
        (void)json_array_append_new(a, json_string(l->v[i]));
    return a;
}

static json_t *describe(const struct image *i)
{
    return json_pack("{s:b,s:s,s:o,s:o,s:I,s:I,s:I,s:s,s:o,s:o,s:o,s:s}", "ok", 1, "id", i->id,
                     "tags", list_of(&i->repo_tags), "digests", list_of(&i->repo_digests), "size",
                     (json_int_t)i->size, "disk_size", (json_int_t)i->disk_size, "layers",
                     (json_int_t)i->n_layers, "user", i->config.user, "env",
                     list_of(&i->config.env), "cmd", list_of(&i->config.cmd), "entrypoint",
                     list_of(&i->config.entrypoint), "workdir", i->config.working_dir);
}

struct watch {
    unsigned calls;
    uint64_t bytes;
};

static void on_progress(void *arg, const struct image_progress *p)
{
    struct watch *w = arg;

    (void)__atomic_add_fetch(&w->calls, 1, __ATOMIC_RELAXED);
    (void)__atomic_add_fetch(&w->bytes, p->done, __ATOMIC_RELAXED);
}

static void *cancel_later(void *arg)
{
    (void)cancel_poll(NULL, -1, 0, (int)(cancel_ms > 0 ? cancel_ms : first_cancel_ms), NULL);
    cancel_fire(arg);
    return NULL;
}

static void *pull_one(void *arg)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c =
        cancel_new(deadline_ms > 0 ? mono_ns() + deadline_ms * 1000000 : 0, &err);
    struct watch w = {0};
    bool cancelled = cancel_ms > 0 || (first_cancel_ms > 0 && arg == first_ref);
    int64_t from = mono_ns();
    pthread_t canceller;
    char *id = NULL;
    json_t *j;

    if (cancelled)
        (void)pthread_create(&canceller, NULL, cancel_later, c);
    if (image_pull(store, arg, &auth, on_progress, &w, c, &id, &err) < 0)
        j = failure(&err);
    else
        j = json_pack("{s:b,s:s,s:i}", "ok", 1, "id", id, "progress", (int)w.calls);
    (void)json_object_set_new(j, "ms", json_integer((mono_ns() - from) / 1000000));
    if (cancelled)
        (void)pthread_join(canceller, NULL);
    print(j);
    free(id);
    return NULL;
}

static void pull(char **refs, int n)
{
    pthread_t *threads = calloc((size_t)n + 1, sizeof(*threads));

    first_ref = refs[0];
    for (int i = 0; threads != NULL && i < n; i++)
        (void)pthread_create(&threads[i], NULL, pull_one, refs[i]);
    for (int i = 0; threads != NULL && i < n; i++)
        (void)pthread_join(threads[i], NULL);
    free(threads);
}

static void become(char *who)
{
    char *colon = strchr(who, ':');

    auth = (struct image_auth){0};
    if (colon == NULL)
        return;
    *colon = '\0';
    auth.username = who;
    auth.password = colon + 1;
}

static void list(void)
{
    struct image **images = NULL;
    size_t n = 0;

    (void)image_list(store, &images, &n, NULL);
    for (size_t i = 0; i < n; i++) {
        print(describe(images[i]));
        image_free(images[i]);
    }
    free(images);
}

static void find(const char *ref)
{
    auto_err struct err err = ERR_INIT;
    auto_image struct image *i = image_find(store, ref, &err);

    print(i != NULL ? describe(i) : failure(&err));
}

static bool always(void *arg, const char *id)
{
    (void)arg;
    (void)id;
    return true;
}

static void remove_one(const char *ref, bool busy)
{
    auto_err struct err err = ERR_INIT;

    if (image_remove(store, ref, busy ? always : NULL, NULL, &err) < 0)
        print(failure(&err));
    else
        print(json_pack("{s:b}", "ok", 1));
}

static void fs_info(void)
{
    struct image_fs info = {0};

    (void)image_fs_info(store, &info, NULL);
    print(json_pack("{s:b,s:s,s:I,s:I}", "ok", 1, "mountpoint", info.mountpoint, "bytes",
                    (json_int_t)info.used_bytes, "inodes", (json_int_t)info.inodes_used));
    free(info.mountpoint);
}

static void disk(const char *id, const char *file)
{
    auto_err struct err err = ERR_INIT;
    struct image_disk d;
    int out;

    if (image_disk_open(store, id, &d, &err) < 0) {
        print(failure(&err));
        return;
    }
    out = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (size_t i = 0; i < d.n_parts; i++) {
        off_t at = 0;

        while (out >= 0 && (uint64_t)at < d.parts[i].size) {
            char buf[65536];
            ssize_t n = pread(d.parts[i].fd, buf, sizeof(buf), at);

            if (n <= 0 || write(out, buf, (size_t)n) != n)
                break;
            at += n;
        }
    }
    (void)close(out);
    print(json_pack("{s:b,s:i,s:s}", "ok", 1, "parts", (int)d.n_parts, "serial", d.serial));
    image_disk_clear(&d);
}

static int run(const char *root, const char *command, char **args, int n)
{
    auto_err struct err err = ERR_INIT;

    opts.root = root;
    store = image_store_open(&opts, &err);
    if (store == NULL || image_recover(store, &err) < 0) {
        print(failure(&err));
        image_store_close(store);
        return 1;
    }
    if (strcmp(command, "pull") == 0)
        pull(args, n);
    else if (strcmp(command, "list") == 0)
        list();
    else if (strcmp(command, "fsinfo") == 0)
        fs_info();
    else if (strcmp(command, "disk") == 0 && n == 2)
        disk(args[0], args[1]);
    for (int i = 0; i < n; i++)
        if (strcmp(command, "each") == 0 && args[i][0] == '@')
            become(args[i] + 1);
        else if (strcmp(command, "each") == 0)
            (void)pull_one(args[i]);
        else if (strcmp(command, "find") == 0)
            find(args[i]);
        else if (strcmp(command, "remove") == 0 || strcmp(command, "busy") == 0)
            remove_one(args[i], command[0] == 'b');
    image_store_close(store);
    return 0;
}

int main(int argc, char **argv)
{
    int i = 1;

    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        const char *name = argv[i] + 2, *value = argv[i + 1];

        if (strcmp(name, "hosts") == 0)
            opts.hosts_dir = value;
        else if (strcmp(name, "unpacker") == 0)
            opts.unpacker = value;
        else if (strcmp(name, "jail") == 0)
            opts.jail_helper = value;
        else if (strcmp(name, "uid") == 0)
            opts.unpack_uid = (uint32_t)atoi(value);
        else if (strcmp(name, "stall") == 0)
            opts.stall_timeout_ns = atoi(value) * INT64_C(1000000000);
        else if (strcmp(name, "downloads") == 0)
            opts.max_downloads = (uint32_t)atoi(value);
        else if (strcmp(name, "user") == 0)
            auth.username = value;
        else if (strcmp(name, "password") == 0)
            auth.password = value;
        else if (strcmp(name, "identity") == 0)
            auth.identity_token = value;
        else if (strcmp(name, "token") == 0)
            auth.registry_token = value;
        else if (strcmp(name, "auth") == 0)
            auth.auth = value;
        else if (strcmp(name, "server") == 0)
            auth.server_address = value;
        else if (strcmp(name, "deadline-ms") == 0)
            deadline_ms = atoi(value);
        else if (strcmp(name, "cancel-ms") == 0)
            cancel_ms = atoi(value);
        else if (strcmp(name, "first-cancel-ms") == 0)
            first_cancel_ms = atoi(value);
        else
            return 2;
    }
    if (i + 1 >= argc)
        return 2;
    return run(argv[i], argv[i + 1], argv + i + 2, argc - i - 2);
}
