/* aspisctl logs, stop, rm, stopp, rmp */
#include <getopt.h>
#include <poll.h>
#include <string.h>

#include "base/fs.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"
#include "cri/ctl/follow.h"
#include "cri/ctl/wait.h"

int cmd_logs(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    bool follow = false;
    int opt;
    while ((opt = getopt(argc, argv, "+f")) != -1) {
        if (opt != 'f')
            return ctl_usage(err, "logs knows only the option -f");
        follow = true;
    }
    if (argc - optind != 1)
        return ctl_usage(err, "logs needs one CONTAINER");
    const char *id = ctl_container(ctl, argv[optind], err);
    const Runtime__V1__ContainerStatus *s = id != NULL ? ctl_container_status(ctl, id, err) : NULL;
    if (s == NULL)
        return -1;
    if (str_empty(s->log_path))
        return err_set(err, ERR_NOT_FOUND, "container `%s` has no log", argv[optind]);
    if (!fs_exists(s->log_path))
        return err_set(err, ERR_NOT_FOUND, "container `%s`: there is no log `%s`", argv[optind],
                       s->log_path);
    auto_follow struct follow *f = follow_open(s->log_path, STDOUT_FILENO, STDERR_FILENO, err);
    if (f == NULL)
        return -1;
    if (!follow || s->state == RUNTIME__V1__CONTAINER_STATE__CONTAINER_EXITED)
        return follow_read(f, err);
    auto_wait struct wait *w = wait_start(ctl->socket, id, err);
    return w == NULL ? -1 : wait_following(w, f, NULL, err);
}

/* --- for each argument --- */

typedef const char *(*find_fn)(struct ctl *ctl, const char *arg, struct err *err);
typedef int (*do_fn)(struct ctl *ctl, const char *id, struct err *err);

/* All are tried; the first error is the result. */
static int each(struct ctl *ctl, int argc, char **argv, find_fn find, do_fn fn, const char *what,
                struct err *err)
{
    if (argc < 2)
        return ctl_usage(err, "%s needs at least one %s", argv[0], what);
    int rc = 0;
    for (int i = 1; i < argc; i++) {
        auto_err struct err one = ERR_INIT;
        const char *id = find(ctl, argv[i], &one);
        if (id != NULL && fn(ctl, id, &one) == 0) {
            (void)puts(argv[i]);
        } else if (rc == 0) {
            rc = err_move(err, &one);
        } else {
            (void)fprintf(stderr, "aspisctl: ");
            ctl_puts(stderr, err_msg(&one));
            (void)fputc('\n', stderr);
        }
    }
    return rc;
}

static int64_t grace = 10;

static int stop(struct ctl *ctl, const char *id, struct err *err)
{
    return ctl_stop_container(ctl, id, grace, err);
}

int cmd_stop(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    int opt;
    while ((opt = getopt(argc, argv, "+t:")) != -1)
        if (opt != 't' || str_to_i64(optarg, &grace) < 0 || grace < 0)
            return ctl_usage(err, "stop: -t needs a number of seconds");
    argv[optind - 1] = argv[0];
    return each(ctl, argc - optind + 1, argv + optind - 1, ctl_container, stop, "CONTAINER", err);
}

int cmd_rm(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    return each(ctl, argc, argv, ctl_container, ctl_remove_container, "CONTAINER", err);
}

int cmd_stopp(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    return each(ctl, argc, argv, ctl_pod, ctl_stop_pod, "POD", err);
}

static char *log_dir_of(struct ctl *ctl, const char *id)
{
    Runtime__V1__PodSandboxStatusRequest r = RUNTIME__V1__POD_SANDBOX_STATUS_REQUEST__INIT;
    r.pod_sandbox_id = (char *)(uintptr_t)id;
    const Runtime__V1__PodSandboxStatusResponse *s =
        (const Runtime__V1__PodSandboxStatusResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "PodSandboxStatus", &r.base,
            &runtime__v1__pod_sandbox_status_response__descriptor, NULL);
    if (s == NULL || s->status == NULL || s->status->metadata == NULL)
        return NULL;
    return ctl_log_dir(s->status->metadata->name, s->status->metadata->uid);
}

/* Also the logs, if `aspisctl run` made the pod. */
static int stop_and_remove_pod(struct ctl *ctl, const char *id, struct err *err)
{
    auto_free char *logs = log_dir_of(ctl, id);
    if (ctl_stop_pod(ctl, id, err) < 0 || ctl_remove_pod(ctl, id, err) < 0)
        return -1;
    return logs != NULL ? fs_rm_rf(logs, err) : 0;
}

int cmd_rmp(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    return each(ctl, argc, argv, ctl_pod, stop_and_remove_pod, "POD", err);
}
