#include "cri/inspect.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define SPEC_MAX MiB(1)

static char *spec_path(const struct container *c)
{
    auto_free char *dir = sandbox_run_dir(c->sandbox);
    return fs_format("%s/spec-%s.json", dir, c->rec.id);
}

char *inspect_console_path(const struct sandbox *s)
{
    auto_free char *dir = sandbox_run_dir(s);
    return fs_format("%s/console.log", dir);
}

void inspect_keep_spec(const struct container *c, const char *json)
{
    auto_free char *path = spec_path(c);
    (void)fs_write_atomic(path, json, strlen(json), 0600, false, NULL);
}

void inspect_drop_spec(const struct container *c)
{
    auto_free char *path = spec_path(c);
    (void)unlink(path);
}

/* In the guest a mount comes from a volume of the file share; people want to see what it is on the
 * host. */
static void name_sources(json_t *spec, const Runtime__V1__ContainerConfig *config)
{
    size_t i;
    json_t *mount;
    json_array_foreach(json_object_get(spec, "mounts"), i, mount)
    {
        const char *source = json_string_value(json_object_get(mount, "source"));
        const char *destination = json_string_value(json_object_get(mount, "destination"));
        if (source == NULL || destination == NULL || !str_starts(source, "aspis:volume:"))
            continue;
        for (size_t k = 0; k < config->n_mounts; k++) {
            if (strcmp(config->mounts[k]->container_path, destination) == 0)
                (void)json_object_set_new(mount, "source",
                                          json_string(config->mounts[k]->host_path));
        }
    }
}

/* The record is the daemon's own text, so parsing it cannot surprise; it does not follow a VM that
 * grows by itself. Under the lock. */
static json_t *machine_of(const struct sandbox *s)
{
    auto_free char *now = NULL;
    if (s->machine != NULL) {
        struct machine_record record = {0};
        machine_get_record(s->machine, &record);
        now = machine_record_encode(&record);
        machine_record_clear(&record);
    }
    json_t *machine = json_loads(now != NULL ? now : s->rec.machine, 0, NULL);
    return machine != NULL ? machine : json_null();
}

/* Copies the value of a key, if there is one. */
static void copy_key(json_t *to, const char *key, const json_t *from, const char *from_key)
{
    json_t *v = json_object_get(from, from_key);
    if (v != NULL)
        (void)json_object_set(to, key, v);
}

/* What runs the pod, and why that was chosen. */
static void put_backend(json_t *j, const struct sandbox *s, const json_t *machine)
{
    (void)json_object_set_new(j, "backend",
                              json_string(s->backend.backend == BACKEND_HOST ? "host" : "vm"));
    (void)json_object_set_new(j, "backendReason", json_string(s->backend.why));
    copy_key(j, "accelerator", machine, "accel");
    copy_key(j, "cid", machine, "cid");
}

char *inspect_sandbox(struct sandbox *s)
{
    auto_free char *console = inspect_console_path(s);
    (void)pthread_mutex_lock(&s->rt->lock);
    json_auto_t *machine = machine_of(s);
    bool silent = s->silence != NULL && s->rec.phase == SANDBOX_READY;
    const char *reason = silent ? s->silence : s->rec.reason;
    json_auto_t *j =
        json_pack("{s:s, s:s, s:s, s:s, s:s*, s:b, s:O}", "console", console, "netns", s->rec.netns,
                  "reason", reason, "runtimeHandler", s->rec.handler, "timeline", s->timeline,
                  "netNamespaceClosed", s->rec.netns[0] == '\0', "machine", machine);
    json_t *net = s->rec.net[0] != '\0' ? json_loads(s->rec.net, 0, NULL) : NULL;
    if (j != NULL) {
        put_backend(j, s, machine);
        copy_key(j, "pid", machine, "pid");
        if (net != NULL)
            (void)json_object_set_new(j, "cniResult", net);
    } else {
        json_decref(net);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    return j != NULL ? json_dumps(j, JSON_INDENT(2)) : NULL;
}

char *inspect_container(struct container *c)
{
    struct sandbox *s = c->sandbox;
    auto_free char *console = inspect_console_path(s);
    auto_free char *path = spec_path(c);
    auto_free char *text = fs_read(path, SPEC_MAX, NULL, NULL);
    json_t *spec = text != NULL ? json_loads(text, 0, NULL) : NULL;
    (void)pthread_mutex_lock(&c->rt->lock);
    json_auto_t *machine = machine_of(s);
    json_auto_t *j = json_pack(
        "{s:s, s:i, s:b, s:s, s:{s:i, s:i, s:i}, s:b, s:s}", "sandboxID", c->rec.sandbox_id, "pid",
        (int)c->pid, "removing", c->rec.phase == CONTAINER_REMOVING, "imageID", c->rec.image_id,
        "streams", "stdin", (int)c->rec.stdin_id, "stdout", (int)c->rec.stdout_id, "stderr",
        (int)c->rec.stderr_id, "oomKilled", c->oom_killed, "console", console);
    if (j != NULL) {
        put_backend(j, s, machine);
        copy_key(j, "hypervisorPid", machine, "pid");
    }
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (j != NULL && spec != NULL) {
        name_sources(spec, c->config);
        (void)json_object_set(j, "runtimeSpec", spec);
    }
    json_decref(spec);
    return j != NULL ? json_dumps(j, JSON_INDENT(2)) : NULL;
}
