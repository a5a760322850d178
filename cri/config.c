#include "cri/config.h"

#include <arpa/inet.h>
#include <string.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/toml.h"

/* What a key's value is and what it becomes in the struct. */
enum kind {
    ADDRESS, /* IP address -> const char * */
    FILE_IF, /* absolute path or "" -> const char * */
    PATH,    /* absolute path -> const char * */
    SECONDS, /* -> int64_t nanoseconds */
    MEBI,    /* -> uint64_t bytes */
    NUMBER,  /* -> uint32_t */
    CHOICE,  /* one of `names` -> int */
    FLAG,    /* true or false -> bool */
    PATHS,   /* of absolute paths -> struct strv */
    TEXTS,   /* of strings -> struct strv */
};

struct key {
    const char *section, *name;
    enum kind kind;
    size_t offset;    /* in struct config */
    const char *text; /* default of PATH, CHOICE, PATHS (separated by ':') */
    int64_t number;   /* default of the others */
    int64_t min, max; /* of the number as written */
    const char *names[5];
};

#define AT(field) offsetof(struct config, field)

static const struct key keys[] = {
    {"daemon", "socket", PATH, AT(socket), .text = CONFIG_DEFAULT_SOCKET},
    {"daemon", "run_root", PATH, AT(run_root), .text = "/run/aspis"},
    {"daemon", "state_root", PATH, AT(state_root), .text = "/var/lib/aspis"},
    {"daemon", "metrics", FLAG, AT(metrics), .number = 1},
    {"daemon", "log_level", CHOICE, AT(log_level), .text = "info",
     .names = {"debug", "info", "warn", "error"}},
    {"daemon", "log_target", CHOICE, AT(log_target), .text = "auto",
     .names = {"auto", "journal", "stderr"}},

    {"machine", "qemu", PATH, AT(machine.qemu), .text = "/usr/bin/qemu-system-x86_64"},
    {"machine", "kernel", PATH, AT(machine.kernel), .text = ASPIS_LIBDIR "/vmlinuz"},
    {"machine", "initrd", PATH, AT(machine.initrd), .text = ASPIS_LIBDIR "/aspis-initrd.cpio"},
    {"machine", "jail_helper", PATH, AT(machine.jail_helper),
     .text = ASPIS_LIBEXECDIR "/aspis-jail"},
    {"machine", "share_helper", PATH, AT(machine.share_helper),
     .text = ASPIS_LIBEXECDIR "/aspis-share"},
    {"machine", "agent", PATH, AT(machine.agent), .text = ASPIS_LIBEXECDIR "/aspis-agent"},
    {"machine", "vsock_helper", PATH, AT(machine.vsock_helper),
     .text = ASPIS_LIBEXECDIR "/aspis-vsock"},
    {"machine", "accelerator", CHOICE, AT(accel), .text = "auto", .names = {"auto", "kvm", "tcg"}},
    {"machine", "transport", CHOICE, AT(transport), .text = "auto",
     .names = {"auto", "virtio-serial", "vsock", "user-vsock"}},
    {"machine", "uid_base", NUMBER, AT(machine.uid_base), .number = 1900000000, .min = 1000,
     .max = 4000000000},
    {"machine", "uid_count", NUMBER, AT(machine.uid_count), .number = 65536, .min = 1,
     .max = 1000000},
    {"machine", "base_memory_mib", MEBI, AT(machine.base_memory_bytes), .number = 1024, .min = 64,
     .max = 1 << 24},
    {"machine", "overhead_memory_mib", MEBI, AT(machine.overhead_memory_bytes), .number = 96,
     .min = 16, .max = 1 << 20},
    {"machine", "max_memory_mib", MEBI, AT(machine.max_memory_bytes), .number = 0, .min = 0,
     .max = 1 << 24},
    {"machine", "memory_ceiling_mib", MEBI, AT(machine.memory_ceiling_bytes), .number = 0, .min = 0,
     .max = 1 << 24},
    {"machine", "host_reserve_mib", MEBI, AT(machine.host_reserve_bytes), .number = 256, .min = 0,
     .max = 1 << 24},
    {"machine", "max_vcpus", NUMBER, AT(machine.max_vcpus), .number = 0, .min = 0, .max = 1024},
    {"machine", "scratch_mib", MEBI, AT(machine.scratch_bytes), .number = 20480, .min = 16,
     .max = 1 << 24},
    {"machine", "boot_timeout_seconds", SECONDS, AT(machine.boot_timeout_ns), .number = 60,
     .min = 1, .max = 3600},
    {"machine", "kvm_probe_timeout_seconds", SECONDS, AT(machine.kvm_probe_timeout_ns),
     .number = 10, .min = 1, .max = 3600},
    {"machine", "guest_silence_seconds", SECONDS, AT(guest_silence_ns), .number = 30, .min = 0,
     .max = 86400},
    {"machine", "templates", FLAG, AT(machine.templates), .number = 1},
    {"machine", "idle_trim_seconds", NUMBER, AT(machine.idle_seconds), .number = 15, .min = 0,
     .max = 86400},
    {"machine", "privileged_pods", CHOICE, AT(privileged_pods), .text = "host",
     .names = {"vm", "host"}}, /* in the order of enum backend */
    {"machine", "spares", NUMBER, AT(spares), .number = 1, .min = 0, .max = 64},
    {"machine", "cgroup_root", PATH, AT(machine.cgroup_root), .text = "/aspis"},

    {"images", "root", PATH, AT(images.root), .text = "/var/lib/aspis/images"},
    {"images", "unpacker", PATH, AT(images.unpacker), .text = ASPIS_LIBEXECDIR "/aspis-unpack"},
    {"images", "unpack_uid", NUMBER, AT(images.unpack_uid), .number = 1899999999, .min = 1000,
     .max = 4000000000},
    {"images", "hosts_dir", PATH, AT(images.hosts_dir), .text = "/etc/aspis/certs.d"},
    {"images", "stall_timeout_seconds", SECONDS, AT(images.stall_timeout_ns), .number = 300,
     .min = 1, .max = 86400},
    {"images", "max_downloads", NUMBER, AT(images.max_downloads), .number = 6, .min = 1, .max = 64},
    {"images", "max_unpackers", NUMBER, AT(images.max_unpackers), .number = 0, .min = 0, .max = 64},
    {"images", "pinned", TEXTS, AT(pinned), .text = ""},
    {"images", "max_manifest_mib", MEBI, AT(images.max_manifest_bytes), .number = 4, .min = 1,
     .max = LIMIT_MANIFEST >> 20},
    {"images", "max_config_mib", MEBI, AT(images.max_config_bytes), .number = 8, .min = 1,
     .max = LIMIT_IMAGE_CONFIG >> 20},
    {"images", "max_layers", NUMBER, AT(images.max_layers), .number = LIMIT_IMAGE_LAYERS, .min = 1,
     .max = LIMIT_IMAGE_LAYERS},
    {"images", "max_layer_entries", NUMBER, AT(images.max_layer_entries),
     .number = LIMIT_LAYER_ENTRIES, .min = 1, .max = 100000000},
    {"images", "max_layer_mib", MEBI, AT(images.max_layer_bytes), .number = 65536, .min = 1,
     .max = 1 << 24},

    {"network", "conf_dir", PATH, AT(cni.conf_dir), .text = "/etc/cni/net.d"},
    {"network", "bin_dirs", PATHS, AT(bin_dirs), .text = "/opt/cni/bin:/usr/lib/cni"},
    {"network", "cache_dir", PATH, AT(cni.cache_dir), .text = "/var/lib/cni"},
    {"network", "plugin_timeout_seconds", SECONDS, AT(cni.timeout_ns), .number = 60, .min = 1,
     .max = 3600},

    {"streaming", "address", ADDRESS, AT(streaming.address), .text = "127.0.0.1"},
    {"streaming", "port", NUMBER, AT(streaming.port), .number = 0, .min = 0, .max = 65535},
    {"streaming", "tls_certificate", FILE_IF, AT(streaming.certificate), .text = ""},
    {"streaming", "tls_key", FILE_IF, AT(streaming.key), .text = ""},
    {"streaming", "idle_timeout_seconds", SECONDS, AT(streaming.idle_timeout_ns), .number = 14400,
     .min = 1, .max = 1 << 24},
};

static void *member(struct config *c, const struct key *k)
{
    return (char *)c + k->offset;
}

static int set_number(struct config *c, const struct key *k, int64_t n)
{
    if (n < k->min || n > k->max)
        return -1;
    void *at = member(c, k);
    if (k->kind == NUMBER)
        *(uint32_t *)at = (uint32_t)n;
    else if (k->kind == SECONDS)
        *(int64_t *)at = n * 1000000000;
    else
        *(uint64_t *)at = (uint64_t)n << 20;
    return 0;
}

static void set_text(struct config *c, const struct key *k, const char *s)
{
    strv_add(&c->strings, s);
    *(const char **)member(c, k) = c->strings.v[c->strings.n - 1];
}

static int set_choice(struct config *c, const struct key *k, const char *s)
{
    for (int i = 0; i < (int)ARRAY_LEN(k->names) && k->names[i] != NULL; i++)
        if (strcmp(k->names[i], s) == 0) {
            *(int *)member(c, k) = i;
            return 0;
        }
    return -1;
}

static void set_paths(struct strv *list, const char *joined)
{
    auto_free char *copy = xstrdup(joined);
    char *save = NULL;
    for (char *s = strtok_r(copy, ":", &save); s != NULL; s = strtok_r(NULL, ":", &save))
        strv_add(list, s);
}

static void set_defaults(struct config *c)
{
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const struct key *k = &keys[i];
        switch (k->kind) {
        case ADDRESS:
        case FILE_IF:
        case PATH:
            set_text(c, k, k->text);
            break;
        case CHOICE:
            (void)set_choice(c, k, k->text);
            break;
        case PATHS:
            set_paths(member(c, k), k->text);
            break;
        case TEXTS:
            break;
        case FLAG:
            *(bool *)member(c, k) = k->number != 0;
            break;
        case NUMBER:
        case MEBI:
        case SECONDS:
            (void)set_number(c, k, k->number);
            break;
        }
    }
}

/* What follows from the keys. */
static int complete(struct config *c, struct err *err)
{
    c->machine.run_root = c->run_root;
    c->machine.state_root = c->state_root;
    c->machine.image_root = c->images.root;
    c->machine.accel = (enum accel)c->accel;
    c->machine.transport = (enum transport)c->transport;
    c->images.jail_helper = c->machine.jail_helper;
    c->cni.bin_dirs = (const char *const *)c->bin_dirs.v;
    c->images.pinned = (const char *const *)c->pinned.v;
    if (c->bin_dirs.n == 0)
        return err_set(err, ERR_INVALID, "network.bin_dirs is empty");
    if (c->images.unpack_uid >= c->machine.uid_base &&
        c->images.unpack_uid - c->machine.uid_base < c->machine.uid_count)
        return err_set(err, ERR_INVALID,
                       "images.unpack_uid lies in the range of the machines' uids");
    if ((c->streaming.certificate[0] == '\0') != (c->streaming.key[0] == '\0'))
        return err_set(err, ERR_INVALID,
                       "streaming.tls_certificate and tls_key are given together or not at all");
    if (c->machine.max_memory_bytes != 0 &&
        c->machine.max_memory_bytes < c->machine.base_memory_bytes)
        return err_set(err, ERR_INVALID, "machine.max_memory_mib is less than base_memory_mib");
    return 0;
}

static int want(const struct key *k, const struct toml_value *v, enum toml_type type,
                struct err *err)
{
    if (v->type == type)
        return 0;
    return err_set(err, ERR_INVALID, "line %d: %s.%s must be %s, not %s", v->line, k->section,
                   k->name, toml_type_name(type), toml_type_name(v->type));
}

static int check_path(const struct key *k, const struct toml_value *v, struct err *err)
{
    if (want(k, v, TOML_STRING, err) < 0)
        return -1;
    if (v->str[0] != '/' || strlen(v->str) >= LIMIT_PATH)
        return err_set(err, ERR_INVALID, "line %d: %s.%s must be an absolute path", v->line,
                       k->section, k->name);
    return 0;
}

static int check_address(const struct key *k, const struct toml_value *v, struct err *err)
{
    struct in6_addr addr;
    if (want(k, v, TOML_STRING, err) < 0)
        return -1;
    if (inet_pton(AF_INET, v->str, &addr) != 1 && inet_pton(AF_INET6, v->str, &addr) != 1)
        return err_set(err, ERR_INVALID, "line %d: %s.%s must be an IP address", v->line,
                       k->section, k->name);
    return 0;
}

static int set_value(struct config *c, const struct key *k, const struct toml_value *v,
                     struct err *err)
{
    struct strv *list = member(c, k);
    switch (k->kind) {
    case ADDRESS:
        if (check_address(k, v, err) < 0)
            return -1;
        set_text(c, k, v->str);
        return 0;
    case FILE_IF:
        if (want(k, v, TOML_STRING, err) < 0 || (v->str[0] != '\0' && check_path(k, v, err) < 0))
            return -1;
        set_text(c, k, v->str);
        return 0;
    case PATH:
        if (check_path(k, v, err) < 0)
            return -1;
        set_text(c, k, v->str);
        return 0;
    case PATHS:
    case TEXTS:
        if (want(k, v, TOML_ARRAY, err) < 0)
            return -1;
        strv_clear(list);
        for (size_t i = 0; i < v->n_items; i++) {
            if ((k->kind == PATHS ? check_path(k, &v->items[i], err)
                                  : want(k, &v->items[i], TOML_STRING, err)) < 0)
                return -1;
            strv_add(list, v->items[i].str);
        }
        return 0;
    case CHOICE:
        if (want(k, v, TOML_STRING, err) < 0)
            return -1;
        if (set_choice(c, k, v->str) == 0)
            return 0;
        (void)err_set(err, ERR_INVALID, "line %d: %s.%s cannot be \"%s\", but one of:", v->line,
                      k->section, k->name, v->str);
        for (size_t i = 0; i < ARRAY_LEN(k->names) && k->names[i] != NULL; i++)
            (void)err_append(err, " %s", k->names[i]);
        return -1;
    case FLAG:
        if (want(k, v, TOML_BOOL, err) < 0)
            return -1;
        *(bool *)member(c, k) = v->num != 0;
        return 0;
    case NUMBER:
    case MEBI:
    case SECONDS:
        if (want(k, v, TOML_INTEGER, err) < 0)
            return -1;
        if (set_number(c, k, v->num) == 0)
            return 0;
        return err_set(err, ERR_INVALID, "line %d: %s.%s must be from %lld to %lld", v->line,
                       k->section, k->name, (long long)k->min, (long long)k->max);
    }
    return -1;
}

static const struct key *find_key(const char *section, const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strcmp(keys[i].section, section) == 0 &&
            (name == NULL || strcmp(keys[i].name, name) == 0))
            return &keys[i];
    return NULL;
}

static int read_table(struct config *c, const struct toml_table *t, struct err *err)
{
    if (t->path.n == 0) {
        if (t->n_keys > 0)
            return err_set(err, ERR_INVALID, "line %d: unknown key \"%s\" outside any section",
                           t->keys[0].line, t->keys[0].name);
        return 0;
    }
    if (t->path.n > 1 || find_key(t->path.v[0], NULL) == NULL)
        return err_set(err, ERR_INVALID, "line %d: unknown section [%s%s]", t->line, t->path.v[0],
                       t->path.n > 1 ? "..." : "");
    for (size_t i = 0; i < t->n_keys; i++) {
        const struct key *k = find_key(t->path.v[0], t->keys[i].name);
        if (k == NULL)
            return err_set(err, ERR_INVALID, "line %d: unknown key \"%s\" in [%s]", t->keys[i].line,
                           t->keys[i].name, t->path.v[0]);
        if (set_value(c, k, &t->keys[i].value, err) < 0)
            return -1;
    }
    return 0;
}

static struct config *config_new(void)
{
    struct config *c = xcalloc(1, sizeof(*c));
    set_defaults(c);
    return c;
}

struct config *config_parse(const char *text, size_t len, const char *name, struct err *err)
{
    auto_config struct config *c = config_new();
    strv_add(&c->strings, name);
    c->file = c->strings.v[c->strings.n - 1];
    auto_toml struct toml_doc *doc = NULL;
    int rc = toml_parse(text, len, &doc, err);
    for (size_t i = 0; rc == 0 && i < doc->n_tables; i++)
        rc = read_table(c, &doc->tables[i], err);
    if (rc == 0)
        rc = complete(c, err);
    if (rc < 0) {
        (void)err_wrap(err, "%s", name);
        return NULL;
    }
    return take(c);
}

struct config *config_load(const char *path, struct err *err)
{
    if (path == NULL && !fs_exists(CONFIG_DEFAULT_PATH)) {
        struct config *c = config_new();
        (void)complete(c, NULL);
        return c;
    }
    const char *name = path != NULL ? path : CONFIG_DEFAULT_PATH;
    size_t len;
    auto_free char *text = fs_read(name, LIMIT_CONFIG_FILE, &len, err);
    if (text == NULL) {
        (void)err_wrap(err, "configuration");
        return NULL;
    }
    return config_parse(text, len, name, err);
}

void config_free(struct config *c)
{
    if (c == NULL)
        return;
    strv_clear(&c->strings);
    strv_clear(&c->bin_dirs);
    strv_clear(&c->pinned);
    free(c);
}

char *config_text(const struct config *c)
{
    auto_buf struct buf b = BUF_INIT(LIMIT_CONFIG_FILE * 2);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const struct key *k = &keys[i];
        const void *at = (const char *)c + k->offset;
        const struct strv *list = at;
        (void)buf_printf(&b, "%s.%s = ", k->section, k->name);
        switch (k->kind) {
        case ADDRESS:
        case FILE_IF:
        case PATH:
            (void)buf_puts(&b, *(const char *const *)at);
            break;
        case CHOICE:
            (void)buf_puts(&b, k->names[*(const int *)at]);
            break;
        case PATHS:
        case TEXTS:
            for (size_t d = 0; d < list->n; d++)
                (void)buf_printf(&b, "%s%s", d > 0 ? k->kind == PATHS ? ":" : " " : "", list->v[d]);
            break;
        case FLAG:
            (void)buf_puts(&b, *(const bool *)at ? "true" : "false");
            break;
        case NUMBER:
            (void)buf_printf(&b, "%u", *(const uint32_t *)at);
            break;
        case MEBI:
            (void)buf_printf(&b, "%llu", (unsigned long long)(*(const uint64_t *)at >> 20));
            break;
        case SECONDS:
            (void)buf_printf(&b, "%lld", (long long)(*(const int64_t *)at / 1000000000));
            break;
        }
        (void)buf_putc(&b, '\n');
    }
    return buf_take(&b);
}
