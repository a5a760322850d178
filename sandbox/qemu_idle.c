/*
 * What an emulated VM gives back when its pod is idle: the driver's side of aspis-trim.so
 * (qemu_trim.c).
 */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "sandbox/qemu_vm.h"

bool qemu_can_trim(const char *binary, const char *library, struct cancel *cancel)
{
    auto_strv struct strv argv = {0};
    strv_add(&argv, binary);
    strv_add(&argv, "-nodefaults");
    strv_add(&argv, "-no-user-config");
    strv_add(&argv, "-display");
    strv_add(&argv, "none");
    strv_add(&argv, "-machine");
    strv_add(&argv, "none");
    strv_add(&argv, "-accel");
    strv_add(&argv, "tcg");
    auto_free char *file = qemu_escape(library);
    strv_add(&argv, "-plugin");
    strv_addf(&argv, "file=%s,probe=on", file);
    const char *env[] = {NULL};
    struct spawn_opts o = {
        .path = binary, .argv = (const char *const *)argv.v, .env = env, .new_group = true};
    auto_err struct err err = ERR_INIT;
    int status = -1;
    /* a QEMU that starts a machine instead is ended by the token */
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + QEMU_PROBE_NS, &err);
    return limit != NULL && spawn_run(&o, NULL, 0, NULL, NULL, limit, &status, &err) == 0 &&
           status == 0;
}

void qemu_owned(struct hv *hv)
{
    (void)pthread_mutex_lock(&hv->lock);
    /* without the plugin it is ignored */
    if (!hv->exited && hv->proc.pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, hv->proc.pidfd, SIGURG, NULL, 0);
    (void)pthread_mutex_unlock(&hv->lock);
}
