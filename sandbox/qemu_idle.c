/*
 * The driver's side of aspis-trim.so and the libraries of absent/: whether this QEMU takes
 * them, and the word that a VM is a pod's and used.
 */
#include <signal.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"
#include "sandbox/qemu_vm.h"

bool qemu_takes(const char *binary, const struct hv_libraries *libraries, struct cancel *cancel)
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
    auto_free char *file = qemu_escape(libraries->trim);
    strv_add(&argv, "-plugin");
    strv_addf(&argv, "file=%s,probe=on", file);
    auto_free char *path = fs_format("LD_LIBRARY_PATH=%s", libraries->absent);
    const char *env[] = {path, "LD_BIND_NOW=1", NULL};
    struct spawn_opts o = {
        .path = binary, .argv = (const char *const *)argv.v, .env = env, .new_group = true};
    auto_err struct err err = ERR_INIT;
    int status = -1;
    /* a QEMU that starts a machine instead is ended by the token */
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + QEMU_PROBE_NS, &err);
    return limit != NULL && spawn_run(&o, NULL, 0, NULL, NULL, limit, &status, &err) == 0 &&
           status == 0;
}

void qemu_used(struct hv *hv)
{
    hv_watch_signal(&hv->watch, SIGURG); /* without the plugin it is ignored */
}
