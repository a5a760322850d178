/* aspisctl: the command line */
#include <getopt.h>
#include <signal.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "cri/ctl/ctl.h"

/* As in cri/config.h, which needs all of the daemon. */
#define DEFAULT_SOCKET "/run/aspis/aspis.sock"

static const struct command {
    const char *name, *arguments, *help;
    int (*fn)(struct ctl *ctl, int argc, char **argv, struct err *err);
} commands[] = {
    {"run", "[--rm] [-d] [--name NAME] [-e NAME=VALUE] IMAGE [-- CMD...]",
     "run an image in a pod of its own, pulled if absent; exits as it does", cmd_run},
    {"pods", "[-q] [NAME]", "list pods (-q: only their ids)", cmd_pods},
    {"ps", "[-a]", "list running (-a: all) containers", cmd_ps},
    {"exec", "[-i] [-t] CONTAINER [--] CMD...",
     "run a command in a container (-i: with input, -t: in a terminal); exits as it does",
     cmd_exec},
    {"attach", "[-i] [-t] CONTAINER",
     "see a container's output as it comes; with -it, ctrl-p ctrl-q leaves it running", cmd_attach},
    {"port-forward", "POD LOCAL:REMOTE...",
     "lead ports of 127.0.0.1 and ::1 into a pod, until interrupted (LOCAL empty: a free one)",
     cmd_port_forward},
    {"logs", "[-f] CONTAINER", "print a container's output (-f: as it comes)", cmd_logs},
    {"stop", "[-t SECONDS] CONTAINER...", "stop containers (10 seconds, then SIGKILL)", cmd_stop},
    {"rm", "CONTAINER...", "remove containers", cmd_rm},
    {"stopp", "POD...", "stop pods", cmd_stopp},
    {"rmp", "POD...", "stop and remove pods", cmd_rmp},
    {"checkpoint", "POD DIRECTORY", "save a pod while it runs", cmd_checkpoint},
    {"restore", "DIRECTORY NAME",
     "make a pod of this name that goes on where a pod of `run` was saved", cmd_restore},
    {"image", "pull IMAGE | ls | rm IMAGE... | import PATH [NAME]", "images", cmd_image},
    {"stats", "", "what pods and containers use; (vm): the pod with its machine, on the host",
     cmd_stats},
    {"info", "", "versions and condition of the daemon", cmd_info},
    {"console", "POD", "what the pod's guest has said on its console", cmd_console},
};

static void usage(FILE *out)
{
    (void)fputs("Usage: aspisctl [--socket PATH] COMMAND ...\n\n", out);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        (void)fprintf(out, "  %s %s\n        %s\n", commands[i].name, commands[i].arguments,
                      commands[i].help);
    (void)fputs("\nPods and containers may be named by id, by the beginning of one, or by name.\n"
                "The socket is " DEFAULT_SOCKET " unless --socket says otherwise.\n",
                out);
}

static int run_command(const struct command *cmd, const char *socket, int argc, char **argv)
{
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *arena = arena_new(MiB(256));
    auto_gclient struct gclient *client = gclient_open(socket, &err);
    int rc = -1;
    if (client != NULL && arena != NULL) {
        struct ctl ctl = {.socket = socket, .client = client, .arena = arena};
        optind = 1;
        rc = cmd->fn(&ctl, argc, argv, &err);
    }
    if (rc >= 0)
        return rc;
    (void)fflush(stdout);
    (void)fputs("aspisctl: ", stderr);
    ctl_puts(stderr, err_msg(&err));
    (void)fputc('\n', stderr);
    return 1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},
        {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *socket = DEFAULT_SOCKET;
    int opt;
    while ((opt = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
        switch (opt) {
        case 's':
            socket = optarg;
            break;
        case 'v':
            (void)puts("aspisctl " ASPIS_VERSION);
            return 0;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return EXIT_USAGE;
        }
    }
    (void)log_init("aspisctl", LOG_LEVEL_ERROR, false);
    (void)signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; optind < argc && i < ARRAY_LEN(commands); i++)
        if (strcmp(argv[optind], commands[i].name) == 0)
            return run_command(&commands[i], socket, argc - optind, argv + optind);
    if (optind < argc)
        (void)fprintf(stderr, "aspisctl: unknown command `%s`\n\n", argv[optind]);
    usage(stderr);
    return EXIT_USAGE;
}
