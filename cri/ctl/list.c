/* aspisctl pods, ps, info, console */
#include <getopt.h>
#include <string.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"

static int no_arguments(int argc, char **argv, struct err *err)
{
    return argc > 1 ? ctl_usage(err, "%s takes no argument `%s`", argv[0], argv[1]) : 0;
}

/* The pod's addresses, "" when it has none or is gone meanwhile. */
static const char *pod_ip(struct ctl *ctl, char *id)
{
    Runtime__V1__PodSandboxStatusRequest r = RUNTIME__V1__POD_SANDBOX_STATUS_REQUEST__INIT;
    r.pod_sandbox_id = id;
    const Runtime__V1__PodSandboxStatusResponse *s =
        (const Runtime__V1__PodSandboxStatusResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "PodSandboxStatus", &r.base,
            &runtime__v1__pod_sandbox_status_response__descriptor, NULL);
    return s != NULL && s->status != NULL && s->status->network != NULL ? s->status->network->ip
                                                                        : "";
}

int cmd_pods(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    bool quiet = false;
    int opt;
    while ((opt = getopt(argc, argv, "+q")) != -1) {
        if (opt != 'q')
            return ctl_usage(err, "pods knows only the option -q");
        quiet = true;
    }
    if (argc - optind > 1)
        return ctl_usage(err, "pods takes one NAME at most");
    const char *name = optind < argc ? argv[optind] : NULL;
    Runtime__V1__ListPodSandboxRequest r = RUNTIME__V1__LIST_POD_SANDBOX_REQUEST__INIT;
    const Runtime__V1__ListPodSandboxResponse *list =
        (const Runtime__V1__ListPodSandboxResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "ListPodSandbox", &r.base,
            &runtime__v1__list_pod_sandbox_response__descriptor, err);
    if (list == NULL)
        return -1;
    struct table t = {.n_columns = 6};
    static const char *const heads[] = {"POD", "NAME", "NAMESPACE", "STATE", "IP", "AGE"};
    for (size_t i = 0; i < ARRAY_LEN(heads); i++)
        table_cell(&t, heads[i]);
    char text[32];
    for (size_t i = 0; i < list->n_items; i++) {
        const Runtime__V1__PodSandbox *p = list->items[i];
        const char *pod_name = p->metadata != NULL ? p->metadata->name : "";
        if (name != NULL && strcmp(name, pod_name) != 0)
            continue;
        if (quiet)
            (void)printf("%s\n", p->id);
        bool ready = p->state == RUNTIME__V1__POD_SANDBOX_STATE__SANDBOX_READY;
        table_cell(&t, ctl_short_id(p->id, text));
        table_cell(&t, pod_name);
        table_cell(&t, p->metadata != NULL ? p->metadata->namespace_ : "");
        table_cell(&t, ready ? "ready" : "not ready");
        table_cell(&t, ready && !quiet ? pod_ip(ctl, p->id) : "");
        table_cell(&t, ctl_age(p->created_at, text));
    }
    if (quiet)
        strv_clear(&t.cells);
    else
        table_print(&t, stdout);
    return 0;
}

static const char *state_name(Runtime__V1__ContainerState s)
{
    static const char *const names[] = {"created", "running", "exited", "unknown"};
    return (unsigned)s < ARRAY_LEN(names) ? names[s] : "unknown";
}

int cmd_ps(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    bool all = false;
    int opt;
    while ((opt = getopt(argc, argv, "+a")) != -1) {
        if (opt != 'a')
            return ctl_usage(err, "ps knows only the option -a");
        all = true;
    }
    if (no_arguments(argc - optind + 1, argv + optind - 1, err) < 0)
        return -1;
    Runtime__V1__ListContainersRequest r = RUNTIME__V1__LIST_CONTAINERS_REQUEST__INIT;
    const Runtime__V1__ListContainersResponse *list =
        (const Runtime__V1__ListContainersResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "ListContainers", &r.base,
            &runtime__v1__list_containers_response__descriptor, err);
    if (list == NULL)
        return -1;
    struct table t = {.n_columns = 6};
    table_cell(&t, "CONTAINER");
    table_cell(&t, "POD");
    table_cell(&t, "NAME");
    table_cell(&t, "IMAGE");
    table_cell(&t, "STATE");
    table_cell(&t, "AGE");
    char text[32];
    for (size_t i = 0; i < list->n_containers; i++) {
        const Runtime__V1__Container *c = list->containers[i];
        if (!all && c->state != RUNTIME__V1__CONTAINER_STATE__CONTAINER_RUNNING)
            continue;
        table_cell(&t, ctl_short_id(c->id, text));
        table_cell(&t, ctl_short_id(c->pod_sandbox_id, text));
        table_cell(&t, c->metadata != NULL ? c->metadata->name : "");
        bool named = c->image != NULL && !str_empty(c->image->user_specified_image);
        table_cell(&t, named ? c->image->user_specified_image : ctl_short_id(c->image_ref, text));
        table_cell(&t, state_name(c->state));
        table_cell(&t, ctl_age(c->created_at, text));
    }
    table_print(&t, stdout);
    return 0;
}

static void print_status(const Runtime__V1__StatusResponse *s)
{
    for (size_t i = 0; s->status != NULL && i < s->status->n_conditions; i++) {
        const Runtime__V1__RuntimeCondition *c = s->status->conditions[i];
        ctl_puts(stdout, c->type);
        (void)printf(": %s", c->status ? "yes" : "no");
        if (!str_empty(c->reason) || !str_empty(c->message)) {
            (void)fputs(" (", stdout);
            ctl_puts(stdout, c->reason);
            (void)fputs(!str_empty(c->reason) && !str_empty(c->message) ? ": " : "", stdout);
            ctl_puts(stdout, c->message);
            (void)fputc(')', stdout);
        }
        (void)fputc('\n', stdout);
    }
    (void)fputs("RuntimeHandlers:", stdout);
    for (size_t i = 0; i < s->n_runtime_handlers; i++) {
        (void)fputs(" \"", stdout);
        ctl_puts(stdout, s->runtime_handlers[i]->name);
        (void)fputc('"', stdout);
    }
    (void)fputc('\n', stdout);
    for (size_t i = 0; i < s->n_info; i++) {
        ctl_puts(stdout, s->info[i]->key);
        (void)fputs(": ", stdout);
        ctl_puts(stdout, s->info[i]->value);
        (void)fputc('\n', stdout);
    }
}

int cmd_info(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (no_arguments(argc, argv, err) < 0)
        return -1;
    Runtime__V1__VersionRequest vr = RUNTIME__V1__VERSION_REQUEST__INIT;
    const Runtime__V1__VersionResponse *v = (const Runtime__V1__VersionResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "Version", &vr.base, &runtime__v1__version_response__descriptor, err);
    if (v == NULL)
        return -1;
    (void)printf("aspisctl: %s\nSocket: %s\nRuntime: ", ASPIS_VERSION, ctl->socket);
    ctl_puts(stdout, v->runtime_name);
    (void)fputc(' ', stdout);
    ctl_puts(stdout, v->runtime_version);
    (void)fputs("\nCRI: ", stdout);
    ctl_puts(stdout, v->runtime_api_version);
    (void)fputc('\n', stdout);
    Runtime__V1__StatusRequest sr = RUNTIME__V1__STATUS_REQUEST__INIT;
    sr.verbose = true;
    const Runtime__V1__StatusResponse *s = (const Runtime__V1__StatusResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "Status", &sr.base, &runtime__v1__status_response__descriptor, err);
    if (s == NULL)
        return -1;
    print_status(s);
    return 0;
}

int cmd_console(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc != 2)
        return ctl_usage(err, "console needs one POD");
    const char *id = ctl_pod(ctl, argv[1], err);
    if (id == NULL)
        return -1;
    Runtime__V1__PodSandboxStatusRequest r = RUNTIME__V1__POD_SANDBOX_STATUS_REQUEST__INIT;
    r.pod_sandbox_id = (char *)(uintptr_t)id;
    r.verbose = true;
    const Runtime__V1__PodSandboxStatusResponse *s =
        (const Runtime__V1__PodSandboxStatusResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "PodSandboxStatus", &r.base,
            &runtime__v1__pod_sandbox_status_response__descriptor, err);
    if (s == NULL)
        return -1;
    const char *path = NULL;
    for (size_t i = 0; i < s->n_info; i++)
        if (strcmp(s->info[i]->key, "console") == 0)
            path = s->info[i]->value;
    if (str_empty(path))
        return err_set(err, ERR_NOT_FOUND, "pod `%s` has no console", argv[1]);
    auto_free char *text = fs_read(path, LIMIT_CONSOLE_FILE * 2, NULL, err);
    if (text == NULL)
        return err_wrap(err, "console of pod `%s`", argv[1]);
    /* A guest wrote it: control characters but newline and tab are not for our terminal. */
    if (isatty(STDOUT_FILENO))
        ctl_puts(stdout, text);
    else
        (void)fputs(text, stdout);
    return 0;
}
