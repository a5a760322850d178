#include "sandbox/qemu_argv.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "proto/frame.h"
#include "sandbox/qemu_slot.h"

char *qemu_escape(const char *value)
{
    char *out = xcalloc(2 * strlen(value) + 1, 1);
    char *p = out;
    for (; *value != '\0'; value++) {
        *p++ = *value;
        if (*value == ',')
            *p++ = ',';
    }
    return out;
}

static int check_mac(const char *mac, struct err *err)
{
    for (int i = 0; mac != NULL && i < 17; i++) {
        bool ok = i % 3 == 2 ? mac[i] == ':' : isxdigit((unsigned char)mac[i]) != 0;
        if (!ok)
            return err_set(err, ERR_INVALID, "the NIC's MAC is malformed");
    }
    if (mac == NULL || mac[17] != '\0')
        return err_set(err, ERR_INVALID, "the NIC's MAC is malformed");
    return 0;
}

static void add_opt(struct strv *a, const char *opt, const char *value)
{
    strv_add(a, opt);
    if (value != NULL)
        strv_add(a, value);
}

static void kernel_args(const struct hv_spec *s, const struct qemu_arch *arch, struct strv *a)
{
    char tsc[64] = "";
    bool tcg = s->accel == ACCEL_TCG;
    /* without it TCG boots hang in the TSC's calibration on a busy host; it also fixes
     * loops_per_jiffy */
    if (tcg && arch->tsc && s->tsc_khz > 0)
        (void)snprintf(tsc, sizeof(tsc), " tsc_early_khz=%" PRIu64, s->tsc_khz);
    strv_add(a, "-append");
    strv_addf(a, "console=%s %s%s%s%s", arch->console, arch->kernel_args, tcg ? " " : "",
              tcg ? arch->kernel_args_tcg : "", tsc);
}

uint64_t qemu_more_bytes(const struct hv_spec *s)
{
    if (s->max_memory_bytes <= s->memory_bytes)
        return 0;
    uint64_t bytes = (s->max_memory_bytes - s->memory_bytes) / HV_MEMORY_STEP * HV_MEMORY_STEP;
    return bytes < QEMU_MORE_AT_HAND ? bytes : QEMU_MORE_AT_HAND;
}

bool qemu_is_clone(const struct hv_spec *s)
{
    return s->tpl != NULL && s->tpl->state_fd >= 0;
}

bool qemu_trims(const struct hv_spec *s)
{
    return qemu_is_clone(s) && s->accel == ACCEL_TCG && s->thrift.trim != NULL &&
           s->trim_seconds > 0 && s->fork_library == NULL;
}

bool qemu_is_incoming(const struct hv_spec *s)
{
    return qemu_is_clone(s) || s->restore != NULL;
}

/* QEMU opens the file by name, for writing also where it is mapped privately (up to 8.1): a clone's
 * is sealed against writes. */
static void ram_args(const struct hv_spec *s, struct strv *a)
{
    strv_add(a, "-object");
    strv_addf(a, "memory-backend-file,id=ram,size=%" PRIu64 "M,mem-path=/proc/self/fd/%d,share=%s",
              s->memory_bytes / MiB(1), QEMU_FD_RAM,
              qemu_is_clone(s) && !s->user_vsock ? "off" : "on");
}

static void machine_args(const struct hv_spec *s, const struct qemu_arch *arch, struct strv *a)
{
    auto_free char *name = qemu_escape(s->name);
    add_opt(a, s->binary, NULL);
    strv_add(a, "-name");
    strv_addf(a, "guest=%s", name);
    add_opt(a, "-nodefaults", NULL);
    add_opt(a, "-no-user-config", NULL);
    add_opt(a, "-display", "none");
    add_opt(a, "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    add_opt(a, "-no-reboot", NULL);
    strv_add(a, "-machine");
    /* the state names the RAM by its backend, which QEMU calls QEMU_RAM_DEFAULT if there is none */
    const char *ram = s->restore != NULL ? s->restore->ram_id : s->tpl != NULL ? "ram" : NULL;
    strv_addf(a, "%s%s%s", arch->machine, ram != NULL ? ",memory-backend=" : "",
              ram != NULL ? ram : "");
    add_opt(a, "-accel",
            s->accel == ACCEL_KVM ? "kvm" : "tcg,tb-size=" QEMU_TB_MIB ",thread=multi");
    if (qemu_trims(s)) {
        strv_add(a, "-plugin");
        strv_addf(a, "file=" QEMU_JAIL_TRIM ",seconds=%u,buffer=" QEMU_TB_MIB, s->trim_seconds);
    }
    add_opt(a, "-cpu", s->accel == ACCEL_KVM ? "host" : arch->cpu_tcg);
    strv_add(a, "-smp");
    strv_addf(a, "cpus=%u,maxcpus=%u", s->vcpus, s->max_vcpus);
    strv_add(a, "-m");
    strv_addf(a, "size=%" PRIu64 "M,maxmem=%" PRIu64 "M", s->memory_bytes / MiB(1),
              s->max_memory_bytes / MiB(1));
    if (s->restore != NULL) {
        strv_add(a, "-object");
        strv_addf(a, "memory-backend-ram,id=%s,size=%" PRIu64 "M", s->restore->ram_id,
                  s->memory_bytes / MiB(1));
    } else if (s->tpl != NULL) {
        ram_args(s, a);
    }
    if (qemu_is_incoming(s)) {
        /* it is told where the state is when it knows how to read it (qemu_template.c) */
        add_opt(a, "-incoming", "defer");
        return; /* kernel and initrd are in its RAM */
    }
    add_opt(a, "-kernel", QEMU_JAIL_KERNEL);
    add_opt(a, "-initrd", QEMU_JAIL_INITRD);
    kernel_args(s, arch, a);
}

/* The listening sockets exist already; a client may be connected before QEMU has started. */
static void socket_chardev(struct strv *a, const char *id, int fd)
{
    strv_add(a, "-chardev");
    strv_addf(a, "socket,id=%s,fd=%d,server=on,wait=off", id, fd);
}

static void channel_args(const struct hv_spec *s, struct strv *a)
{
    if (s->cid != 0) {
        strv_add(a, "-device");
        strv_addf(a, "vhost-vsock-pci,guest-cid=%u,vhostfd=%d", s->cid, QEMU_FD_VHOST);
        return;
    }
    if (s->user_vsock) {
        strv_add(a, "-chardev");
        strv_addf(a, "socket,id=vsock,fd=%d", QEMU_FD_VSOCK);
        /* a clone has its template's ports, unused, and gets the device later */
        if (!qemu_is_clone(s)) {
            add_opt(a, "-device", "vhost-user-vsock-pci,id=vsock,chardev=vsock");
            return;
        }
    }
    /* under emulation the vCPU's own thread takes what the guest writes, with no other to wake */
    add_opt(a, "-device",
            s->accel == ACCEL_KVM ? "virtio-serial-pci,id=ports,max_ports=4"
                                  : "virtio-serial-pci,id=ports,max_ports=4,ioeventfd=off");
    for (int ch = 0; ch < LINK_CHANNELS; ch++) {
        char id[16];
        (void)snprintf(id, sizeof(id), "ch%d", ch);
        socket_chardev(a, id, QEMU_FD_CHANNEL + ch);
        strv_add(a, "-device");
        strv_addf(a, "virtserialport,bus=ports.0,nr=%d,chardev=%s,name=%s", ch + 1, id,
                  link_port_name((enum link_channel)ch));
    }
}

/* Memory that is added while the VM runs (qemu_size.c): none of it at first. A memory file of
 * QEMU's own, shared, so that a template's state leaves it out like the rest of the RAM. */
static void more_memory_args(const struct hv_spec *s, struct strv *a)
{
    uint64_t bytes = qemu_more_bytes(s);
    if (bytes == 0)
        return;
    strv_add(a, "-object");
    strv_addf(a, "memory-backend-memfd,id=" QEMU_MORE "-ram,size=%" PRIu64 "M,share=on,reserve=off",
              bytes / MiB(1));
    add_opt(a, "-device",
            "virtio-mem-pci,id=" QEMU_MORE ",memdev=" QEMU_MORE "-ram,requested-size=0");
}

static void device_args(const struct hv_spec *s, const struct qemu_arch *arch, struct strv *a)
{
    socket_chardev(a, "ctl", QEMU_FD_CONTROL);
    add_opt(a, "-mon", "chardev=ctl,mode=control");
    socket_chardev(a, "con", QEMU_FD_CONSOLE);
    add_opt(a, "-serial", "chardev:con");
    strv_add(a, "-device");
    strv_addf(a, "%s,id=" QEMU_PLUG_BUS, arch->plug_bridge);
    channel_args(s, a);
    strv_add(a, "-device");
    strv_addf(a, "virtio-balloon-pci,free-page-reporting=%s",
              s->tpl == NULL || s->pages_library != NULL ? "on" : "off");
    more_memory_args(s, a);
    if (arch->vmgenid)
        add_opt(a, "-device", "vmgenid,guid=auto");
    if (s->tap_fd >= 0) {
        strv_add(a, "-netdev");
        strv_addf(a, "tap,id=net,fd=%d,vhost=off", QEMU_FD_TAP);
        strv_add(a, "-device");
        strv_addf(a, "virtio-net-pci,netdev=net,mac=%s,romfile=", s->mac);
    }
}

/* The disk dies with the pod, so flushes need not reach the host's disk; a full host disk is the
 * guest's write error, not a stopped VM. */
static void scratch_args(const struct hv_spec *s, struct strv *a)
{
    if (s->scratch_fd < 0)
        return;
    strv_add(a, "-add-fd");
    strv_addf(a, "fd=%d,set=%d", QEMU_FD_SCRATCH, QEMU_SCRATCH_FDSET);
    strv_add(a, "-blockdev");
    strv_addf(a,
              "driver=file,node-name=scratch,filename=/dev/fdset/%d,discard=unmap,"
              "detect-zeroes=unmap,cache.no-flush=on,aio=threads",
              QEMU_SCRATCH_FDSET);
    strv_add(a, "-device");
    strv_addf(a, "virtio-blk-pci,drive=scratch,serial=%s,werror=report,rerror=report,romfile=",
              s->scratch_serial);
}

int qemu_argv(const struct hv_spec *spec, const struct qemu_arch *arch, struct strv *argv,
              struct err *err)
{
    if (spec->tap_fd >= 0 && check_mac(spec->mac, err) < 0)
        return -1;
    machine_args(spec, arch, argv);
    device_args(spec, arch, argv);
    scratch_args(spec, argv);
    if (spec->scratch_fd >= 0)
        qemu_slot_args(argv);
    return 0;
}
