/*
 * A VM that runs is copied by QEMU's migration into a file: all of its RAM, unlike a template's,
 * and the state of its devices. It stands still meanwhile and goes on afterwards, whatever became
 * of the copy.
 *
 * A copy is made with the same command line, but for what is one pod's, and its disks plugged in
 * where they were; QEMU refuses a state that does not fit.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/qemu_vm.h"

#define FD_NAME "checkpoint"
#define GIVE_UP_NS INT64_C(10000000000) /* to end a migration, or to go on */
#define BANDWIDTH INT64_C(100000000000) /* bytes per second: no bound */

void qemu_on_migration(struct hv *hv, const char *status)
{
    int end = strcmp(status, "completed") == 0   ? MIGRATION_DONE
              : strcmp(status, "failed") == 0    ? MIGRATION_FAILED
              : strcmp(status, "cancelled") == 0 ? MIGRATION_CANCELLED
                                                 : MIGRATION_RUNS;
    if (end == MIGRATION_RUNS)
        return;
    atomic_store(&hv->migration, end);
    (void)eventfd_write(hv->migrated, 1);
}

/* --- what the VM is --- */

/* QEMU does not tell all of it, its command line does; a QEMU that was taken over can only harm its
 * own copy. */
static int read_args(struct hv *hv, struct hv_shape *out, struct err *err)
{
    char path[64];
    size_t len = 0;
    uint64_t size = 0;
    uint64_t most = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)hv->watch.proc.pid);
    auto_free char *args = fs_read(path, MiB(1), &len, err);
    if (args == NULL)
        return err_wrap(err, "learn how the vm was made");
    (void)snprintf(out->ram_id, sizeof(out->ram_id), "%s", QEMU_RAM_DEFAULT);
    for (const char *p = args; p < args + len; p += strlen(p) + 1) {
        const char *ram = strstr(p, ",memory-backend=");
        (void)sscanf(p, "size=%" SCNu64 "M,maxmem=%" SCNu64 "M", &size, &most);
        (void)sscanf(p, "cpus=%u,maxcpus=%u", &out->boot_vcpus, &out->max_vcpus);
        if (ram != NULL && strncmp(p, "q35", 3) == 0)
            (void)snprintf(out->ram_id, sizeof(out->ram_id), "%.15s", strchr(ram, '=') + 1);
    }
    if (size == 0 || most < size || most > UINT64_MAX / MiB(1) || out->boot_vcpus == 0 ||
        out->max_vcpus < out->boot_vcpus)
        return err_set(err, ERR_INTERNAL, "qemu's arguments do not tell how the vm was made");
    out->boot_bytes = size * MiB(1);
    out->max_bytes = most * MiB(1);
    return 0;
}

/* Under the disks' lock. */
static void list_disks(const struct hv *hv, struct hv_shape *out)
{
    for (unsigned i = 1; i <= QEMU_SLOTS; i++) {
        if (hv->slots[i] == NULL)
            continue;
        struct hv_disk *d = &out->disks[out->n_disks++];
        d->slot = i;
        (void)snprintf(d->serial, sizeof(d->serial), "%s", hv->slots[i]);
    }
}

static int learn_shape(struct hv *hv, struct hv_shape *out, struct cancel *cancel, struct err *err)
{
    struct hv_size size;
    _Static_assert(QEMU_SLOTS < HV_MAX_DISKS, "room for all disks");
    *out = (struct hv_shape){0};
    if (read_args(hv, out, err) < 0 || qemu_size(hv, &size, cancel, err) < 0)
        return -1;
    struct hv_spec s = {.memory_bytes = out->boot_bytes, .max_memory_bytes = out->max_bytes};
    if (size.added_bytes > qemu_more_bytes(&s) || size.requested_bytes > qemu_more_bytes(&s))
        return err_set(err, ERR_PRECONDITION,
                       "its VM has grown by more than %" PRIu64 " MiB, which cannot be saved",
                       qemu_more_bytes(&s) / MiB(1));
    out->vcpus = size.vcpus;
    out->added_bytes = size.added_bytes;
    list_disks(hv, out);
    for (size_t i = 0; i < out->n_disks; i++) {
        if (str_starts(out->disks[i].serial, MACHINE_RAW_DISK))
            return err_set(err, ERR_PRECONDITION,
                           "it has a block device of the host, which cannot be saved");
    }
    return 0;
}

/* --- the copy --- */

static void forget_migration(struct hv *hv)
{
    eventfd_t ignored;
    atomic_store(&hv->migration, MIGRATION_RUNS);
    (void)eventfd_read(hv->migrated, &ignored);
}

/* Waits for the end, whichever. */
static int wait_end(struct hv *hv, struct cancel *cancel, struct err *err)
{
    if (cancel_poll(cancel, hv->migrated, POLLIN, -1, err) < 0)
        return -1;
    if (atomic_load(&hv->migration) == MIGRATION_RUNS)
        return err_set(err, ERR_UNAVAILABLE, "qemu is gone");
    return 0;
}

static void explain_failure(struct hv *hv, struct err *err)
{
    auto_cancel struct cancel *own = cancel_new(mono_ns() + GIVE_UP_NS, NULL);
    json_auto_t *r = qmp_call(hv->qmp, "query-migrate", NULL, -1, own, NULL);
    const char *why = json_string_value(json_object_get(r, "error-desc"));
    (void)err_set(err, ERR_INTERNAL, "qemu could not write the state%s%.300s",
                  why != NULL ? ": " : "", why != NULL ? why : "");
}

static int stop_migration(struct hv *hv, struct cancel *own, struct err *err)
{
    if (qmp_run(hv->qmp, "migrate_cancel", NULL, -1, own, err) < 0)
        return -1;
    return wait_end(hv, own, err);
}

static int write_state(struct hv *hv, int fd, struct cancel *cancel, struct err *err)
{
    if (qemu_set_migration(hv, false, cancel, err) < 0 ||
        qmp_run(hv->qmp, "migrate-set-parameters",
                json_pack("{s:I}", "max-bandwidth", (json_int_t)BANDWIDTH), -1, cancel, err) < 0 ||
        qmp_run(hv->qmp, "getfd", json_pack("{s:s}", "fdname", FD_NAME), fd, cancel, err) < 0)
        return -1;
    forget_migration(hv);
    if (FAILPOINT("checkpoint.migrate", err) < 0)
        return -1;
    auto_err struct err e = ERR_INIT;
    int ret = qmp_run(hv->qmp, "migrate", json_pack("{s:s}", "uri", "fd:" FD_NAME), -1, cancel, &e);
    if (ret == 0)
        ret = wait_end(hv, cancel, &e);
    if (ret < 0 && (e.code == ERR_CANCELLED || e.code == ERR_DEADLINE)) {
        auto_cancel struct cancel *own = cancel_new(mono_ns() + GIVE_UP_NS, NULL);
        auto_err struct err undo = ERR_INIT;
        if (stop_migration(hv, own, &undo) < 0)
            (void)err_append(&e, " (and the migration does not end: %s)", err_msg(&undo));
    }
    if (ret < 0)
        return err_move(err, &e);
    if (atomic_load(&hv->migration) != MIGRATION_DONE) {
        explain_failure(hv, err);
        return -1;
    }
    return 0;
}

/* Under the disks' lock, or before anybody has the VM. */
static int go_on(struct hv *hv, struct err *err)
{
    auto_cancel struct cancel *own = cancel_new(mono_ns() + GIVE_UP_NS, err);
    if (own == NULL || qemu_unpark_disks(hv, own, err) < 0 ||
        qmp_run(hv->qmp, "cont", NULL, -1, own, err) < 0)
        return err_wrap(err, "let the vm go on");
    atomic_store(&hv->saving, false);
    atomic_store(&hv->copying, false);
    return 0;
}

static int copy(struct hv *hv, int state_fd, int (*paused)(void *arg, struct err *err), void *arg,
                struct cancel *cancel, struct err *err)
{
    atomic_store(&hv->copying, true);
    atomic_store(&hv->saving, true);
    auto_err struct err e = ERR_INIT;
    int ret = qmp_run(hv->qmp, "stop", NULL, -1, cancel, &e);
    if (ret == 0)
        ret = FAILPOINT("checkpoint.stopped", &e);
    if (ret == 0)
        ret = qemu_park_disks(hv, cancel, &e);
    if (ret == 0)
        ret = write_state(hv, state_fd, cancel, &e);
    if (ret == 0)
        ret = paused(arg, &e);
    auto_err struct err undo = ERR_INIT;
    if (go_on(hv, &undo) < 0) {
        /* a pod that stands still for ever is a dead one that nobody is told of */
        hv_watch_kill(&hv->watch);
        ret = ret < 0 ? err_append(&e, " (and %s)", err_msg(&undo)) : err_move(&e, &undo);
    }
    return ret < 0 ? err_move(err, &e) : 0;
}

int qemu_checkpoint(struct hv *hv, int state_fd, struct hv_shape *out,
                    int (*paused)(void *arg, struct err *err), void *arg, struct cancel *cancel,
                    struct err *err)
{
    /* none is plugged in or out meanwhile */
    if (lock_within(&hv->disks, cancel, "another disk of this vm", err) < 0)
        return -1;
    int ret = learn_shape(hv, out, cancel, err);
    if (ret == 0)
        ret = copy(hv, state_fd, paused, arg, cancel, err);
    (void)pthread_mutex_unlock(&hv->disks);
    return ret;
}

int qemu_wake(struct hv *hv, struct cancel *cancel, struct err *err)
{
    /* states in which only a checkpoint leaves a VM */
    static const char *const ours[] = {"paused", "finish-migrate", "postmigrate"};
    json_auto_t *r = qmp_call(hv->qmp, "query-status", NULL, -1, cancel, err);
    if (r == NULL)
        return -1;
    const char *status = json_string_value(json_object_get(r, "status"));
    bool stopped = false;
    for (size_t i = 0; status != NULL && i < ARRAY_LEN(ours); i++)
        stopped = stopped || strcmp(status, ours[i]) == 0;
    if (!stopped)
        return 0;
    forget_migration(hv);
    json_auto_t *m = qmp_call(hv->qmp, "query-migrate", NULL, -1, cancel, err);
    if (m == NULL)
        return -1;
    status = json_string_value(json_object_get(m, "status"));
    bool over = status == NULL || strcmp(status, "none") == 0 || strcmp(status, "failed") == 0 ||
                strcmp(status, "completed") == 0 || strcmp(status, "cancelled") == 0;
    auto_cancel struct cancel *own = cancel_child(cancel, mono_ns() + GIVE_UP_NS, err);
    /* it may end between the question and the wait, and then says nothing more: try all the same */
    if (own == NULL)
        return -1;
    if (!over)
        (void)stop_migration(hv, own, NULL);
    return go_on(hv, err);
}

/* --- the other side --- */

int qemu_restore(struct hv *hv, const struct hv_restore *r, struct cancel *cancel, struct err *err)
{
    char uri[32];
    (void)snprintf(uri, sizeof(uri), "fd:%d", QEMU_FD_STATE);
    if (qemu_add_vcpus(hv, r->vcpus, cancel, err) < 0)
        return err_wrap(err, "add vcpus");
    for (size_t i = 0; i < r->n_disks; i++) {
        const struct hv_disk *d = &r->disks[i];
        if (qemu_add_disk_at(hv, d->slot, d->serial, d->parts, d->n_parts, cancel, err) < 0)
            return -1;
    }
    auto_qmp_expect struct qmp_expect *done =
        qmp_expect(hv->qmp, "MIGRATION", "status", "completed", err);
    /* no announcements: they would carry the saved pod's MAC */
    if (done == NULL || FAILPOINT("checkpoint.load", err) < 0 ||
        qemu_set_migration(hv, false, cancel, err) < 0 ||
        qmp_run(hv->qmp, "migrate-set-parameters", json_pack("{s:i}", "announce-rounds", 0), -1,
                cancel, err) < 0 ||
        qmp_run(hv->qmp, "migrate-incoming", json_pack("{s:s}", "uri", uri), -1, cancel, err) < 0 ||
        qmp_expect_wait(done, cancel, err) < 0 ||
        qmp_run(hv->qmp, "cont", NULL, -1, cancel, err) < 0)
        return err_wrap(err, "load the saved state");
    return 0;
}
