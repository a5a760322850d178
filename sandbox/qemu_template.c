/*
 * Templates in QEMU's terms: its migration, with the RAM left out (x-ignore-shared) because both
 * sides map the same file. The state of the devices is some 400 kB.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/qemu_vm.h"

#define STATE_NAME "state"

char *qemu_shape(const struct hv_spec *spec, struct err *err)
{
    const struct qemu_arch *arch = qemu_arch_host();
    static const struct hv_template making = {.ram_fd = 0, .state_fd = -1};
    auto_strv struct strv argv = {0};
    auto_buf struct buf text = BUF_INIT(KiB(64));
    struct hv_spec s = *spec;
    if (arch == NULL) {
        (void)err_set(err, ERR_UNIMPLEMENTED, "qemu is not supported on this architecture");
        return NULL;
    }
    /* What differs from one VM to the next is not part of the state. */
    s.name = "";
    s.tsc_khz = 0;
    s.tap_fd = s.scratch_fd = 0;
    s.mac = "02:00:00:00:00:00";
    s.cid = s.cid != 0 ? 3 : 0;
    s.tpl = &making;
    if (qemu_argv(&s, arch, &argv, err) < 0)
        return NULL;
    for (size_t i = 0; i < argv.n; i++)
        (void)buf_printf(&text, "%s\n", argv.v[i]);
    if (!buf_ok(&text)) {
        (void)err_set(err, ERR_EXHAUSTED, "qemu's arguments are too long");
        return NULL;
    }
    return buf_take(&text);
}

/* `events` gives an event for each change of the migration's state, so nothing is polled. */
int qemu_set_migration(struct hv *hv, bool ignore_shared, struct cancel *cancel, struct err *err)
{
    json_t *args =
        json_pack("{s:[{s:s,s:b},{s:s,s:b}]}", "capabilities", "capability", "x-ignore-shared",
                  "state", ignore_shared, "capability", "events", "state", 1);
    return qmp_run(hv->qmp, "migrate-set-capabilities", args, -1, cancel, err);
}

int qemu_save(struct hv *hv, int state_fd, struct cancel *cancel, struct err *err)
{
    if (FAILPOINT("template.save", err) < 0 || qemu_set_migration(hv, true, cancel, err) < 0 ||
        qmp_run(hv->qmp, "getfd", json_pack("{s:s}", "fdname", STATE_NAME), state_fd, cancel, err) <
            0)
        return err_wrap(err, "save state");
    /* A failure ends the process (see on_event() in qemu.c), and with it the wait. */
    auto_qmp_expect struct qmp_expect *done =
        qmp_expect(hv->qmp, "MIGRATION", "status", "completed", err);
    atomic_store(&hv->saving, true);
    if (done == NULL ||
        qmp_run(hv->qmp, "migrate", json_pack("{s:s}", "uri", "fd:" STATE_NAME), -1, cancel, err) <
            0 ||
        qmp_expect_wait(done, cancel, err) < 0)
        return err_wrap(err, "save state");
    return 0;
}

int qemu_load_state(struct hv *hv, bool to_the_end, struct cancel *cancel, struct err *err)
{
    char uri[32];
    (void)snprintf(uri, sizeof(uri), "fd:%d", QEMU_FD_STATE);
    /* no announcements: they would carry the template's MAC */
    auto_qmp_expect struct qmp_expect *done =
        to_the_end ? qmp_expect(hv->qmp, "MIGRATION", "status", "completed", err) : NULL;
    if (to_the_end && done == NULL)
        return err_wrap(err, "load state");
    if (FAILPOINT("template.load", err) < 0 || qemu_set_migration(hv, true, cancel, err) < 0 ||
        qmp_run(hv->qmp, "migrate-set-parameters", json_pack("{s:i}", "announce-rounds", 0), -1,
                cancel, err) < 0 ||
        qmp_run(hv->qmp, "migrate-incoming", json_pack("{s:s}", "uri", uri), -1, cancel, err) < 0 ||
        (done != NULL && qmp_expect_wait(done, cancel, err) < 0))
        return err_wrap(err, "load state");
    return 0;
}
