/*
 * Which of the host's CPUs each vCPU's thread runs on. QEMU names its threads by their ids in its
 * own process namespace, so they are looked up among those that /proc shows of it.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/qemu_vm.h"

/* The innermost id of the line "NSpid: 4711 12". */
static int64_t inner_id(const char *status)
{
    const char *p = status != NULL ? strstr(status, "\nNSpid:") : NULL;
    int64_t id = -1;
    for (p = p != NULL ? p + strlen("\nNSpid:") : NULL; p != NULL && *p != '\n' && *p != '\0';) {
        char *end;
        id = strtoll(p, &end, 10);
        if (end == p)
            return -1;
        p = end;
    }
    return id;
}

/* -1: QEMU has no such thread. */
static pid_t find_thread(pid_t qemu, int64_t inner)
{
    auto_free char *tasks = fs_format("/proc/%d/task", (int)qemu);
    auto_closedir DIR *d = opendir(tasks);
    const struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *path = fs_format("%s/%s/status", tasks, e->d_name);
        int64_t outer;
        if (str_to_i64(e->d_name, &outer) < 0)
            continue;
        auto_free char *text = fs_read(path, KiB(16), NULL, NULL);
        if (inner_id(text) == inner)
            return (pid_t)outer;
    }
    return -1;
}

/* "" is all there are: what the control group allows. */
static int pin(pid_t thread, const char *list, struct err *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (unsigned i = 0; *list == '\0' && i < CPU_SETSIZE; i++)
        CPU_SET(i, &set);
    for (const char *p = list; *p != '\0';) {
        char *end;
        unsigned long from = strtoul(p, &end, 10);
        unsigned long to = *end == '-' ? strtoul(end + 1, &end, 10) : from;
        for (unsigned long i = from; i <= to && i < CPU_SETSIZE; i++)
            CPU_SET(i, &set);
        if (end == p || (*end != ',' && *end != '\0'))
            return err_set(err, ERR_INVALID, "\"%.64s\" is no list of CPUs", list);
        p = *end == ',' ? end + 1 : end;
    }
    if (sched_setaffinity(thread, sizeof(set), &set) < 0)
        return err_sys(err, errno, "pin a vcpu to \"%.64s\"", list);
    return 0;
}

int qemu_pin_vcpus(struct hv *hv, char *const *lists, size_t n, struct cancel *cancel,
                   struct err *err)
{
    if (FAILPOINT("machine.pin", err) < 0)
        return -1;
    json_auto_t *cpus = qmp_call(hv->qmp, "query-cpus-fast", NULL, -1, cancel, err);
    size_t i;
    const json_t *cpu;
    if (cpus == NULL)
        return -1;
    json_array_foreach(cpus, i, cpu)
    {
        int64_t index = json_integer_value(json_object_get(cpu, "cpu-index"));
        int64_t inner = json_integer_value(json_object_get(cpu, "thread-id"));
        pid_t thread = inner > 0 ? find_thread(hv->watch.proc.pid, inner) : -1;
        if (thread < 0 || index < 0)
            return err_set(err, ERR_INTERNAL, "qemu's vcpu %" PRId64 " has no thread", index);
        if (pin(thread, lists != NULL && (size_t)index < n ? lists[index] : "", err) < 0)
            return -1;
    }
    return 0;
}
