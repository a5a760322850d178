/* aspisctl exec, attach */
#include <getopt.h>
#include <string.h>

#include "cri/ctl/ctl.h"
#include "cri/ctl/stream.h"
#include "proto/admin.pb-c.h"

/* A container whose streams have ended has too, or does so at once. */
#define EXIT_NS (1LL * 1000000000)

static int parse(struct stream_options *o, int argc, char **argv, struct err *err)
{
    static const struct option options[] = {
        {"stdin", no_argument, NULL, 'i'},
        {"tty", no_argument, NULL, 't'},
        {NULL, 0, NULL, 0},
    };
    int opt;
    while ((opt = getopt_long(argc, argv, "+it", options, NULL)) != -1) {
        if (opt == 'i')
            o->in = true;
        else if (opt == 't')
            o->tty = true;
        else
            return ctl_usage(err, "%s knows only the options -i and -t", argv[0]);
    }
    return 0;
}

int cmd_exec(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    struct stream_options o = {0};
    if (parse(&o, argc, argv, err) < 0)
        return -1;
    int first = optind;
    int cmd = first + 1 < argc && strcmp(argv[first + 1], "--") == 0 ? first + 2 : first + 1;
    if (cmd >= argc)
        return ctl_usage(err, "exec needs a CONTAINER and a command");
    const char *id = stream_check(&o, err) == 0 ? ctl_container(ctl, argv[first], err) : NULL;
    if (id == NULL)
        return -1;
    Runtime__V1__ExecRequest r = RUNTIME__V1__EXEC_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    r.cmd = &argv[cmd];
    r.n_cmd = (size_t)(argc - cmd);
    r.stdin = o.in;
    r.tty = o.tty;
    r.stdout = true;
    r.stderr = !o.tty;
    const Runtime__V1__ExecResponse *out = (const Runtime__V1__ExecResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "Exec", &r.base, &runtime__v1__exec_response__descriptor, err);
    int code = 0;
    return out == NULL || stream_run(out->url, &o, &code, err) < 0 ? -1 : code;
}

/* Its exit code; 0 while it runs on without us. */
static int exit_code(struct ctl *ctl, const char *id)
{
    Aspis__V1__WaitContainerRequest r = ASPIS__V1__WAIT_CONTAINER_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    const Aspis__V1__WaitContainerResponse *out =
        (const Aspis__V1__WaitContainerResponse *)gclient_call(
            ctl->client, ADMIN_SERVICE "WaitContainer", &r.base,
            &aspis__v1__wait_container_response__descriptor, ctl->arena, EXIT_NS, NULL);
    return out != NULL ? out->exit_code : 0;
}

int cmd_attach(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    struct stream_options o = {.detachable = true};
    if (parse(&o, argc, argv, err) < 0)
        return -1;
    o.detachable = o.in && o.tty;
    if (argc - optind != 1)
        return ctl_usage(err, "attach needs one CONTAINER");
    const char *id = stream_check(&o, err) == 0 ? ctl_container(ctl, argv[optind], err) : NULL;
    if (id == NULL)
        return -1;
    Runtime__V1__AttachRequest r = RUNTIME__V1__ATTACH_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    r.stdin = o.in;
    r.tty = o.tty;
    r.stdout = true;
    r.stderr = !o.tty;
    const Runtime__V1__AttachResponse *out = (const Runtime__V1__AttachResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "Attach", &r.base, &runtime__v1__attach_response__descriptor, err);
    int code = 0;
    int end = out == NULL ? -1 : stream_run(out->url, &o, &code, err);
    if (end == STREAM_DETACHED)
        (void)fputs("detached; the container runs on\n", stderr);
    return end < 0 ? -1 : end == STREAM_SUCCESS ? exit_code(ctl, id) : code;
}
