#include "sandbox/qemu_arch.h"

#include <stddef.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/cleanup.h"

/* x86-64: q35 with a conventional bridge, since ACPI hot-plug behind it takes 16 ms where native
 * PCIe takes 175 and needs 5 s to unplug. `max` under TCG: images built for x86-64-v2 and v3 do not
 * run on qemu64. la57 is masked because five-level page walks only cost; erms and fsrm because they
 * make kernel and libc copy and clear memory with `rep movsb`, which TCG does a byte at a time,
 * where it would be eight; smap because each access to a user's memory would end a translated
 * block; rep_good, which the kernel makes up itself, because `rep stosq` is a block of its own for
 * each of its words. mitigations=off since what they guard against is not what translated code
 * does. reboot=t with -no-reboot ends QEMU at a panic. lsm: those that programs of a pod can use;
 * AppArmor and Tomoyo have no policy in a guest and look up the path of each file all the same. The
 * tables of names and inodes are hashed into, so that each new one makes another of their pages the
 * clone's own: a quarter of what the kernel would take. A guest of one or two vCPUs, one pod's,
 * need not wait for RCU to be convenient: cgroups are joined and namespaces left sooner. No
 * virtio-rng: the processor has RDRAND, and the daemon sends entropy before anything of the pod
 * runs. */
static const struct qemu_arch table[] = {
    {
        .name = "x86_64",
        .machine = "q35,usb=off,vmport=off,sata=off,smbus=off,i8042=off",
        .cpu_tcg = "max,la57=off,erms=off,fsrm=off,smap=off",
        .console = "ttyS0",
        .kernel_args = "quiet reboot=t panic=-1 swiotlb=noforce cryptomgr.notests "
                       "lsm=landlock,yama audit=0 rcupdate.rcu_expedited=1 dhash_entries=8192 "
                       "ihash_entries=4096",
        .kernel_args_tcg = "no_timer_check noreplace-smp mitigations=off init_on_alloc=0 "
                           "clearcpuid=rep_good",
        .tsc = true,
        .vmgenid = true,
        .plug_bridge = "pcie-pci-bridge",
    },
};

const struct qemu_arch *qemu_arch_host(void)
{
    struct utsname u;
    if (uname(&u) < 0)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        if (strcmp(table[i].name, u.machine) == 0)
            return &table[i];
    }
    return NULL;
}
