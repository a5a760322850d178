#include "cri/caps.h"

#include <linux/capability.h>
#include <stddef.h>
#include <strings.h>

/* In the kernel's order (linux/capability.h). */
static const char *const names[] = {
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
};

_Static_assert(sizeof(names) / sizeof(names[0]) == CAPS_COUNT, "all capabilities have a name");
_Static_assert(CAP_CHECKPOINT_RESTORE == CAPS_COUNT - 1, "the last capability");

int caps_index(const char *name)
{
    if (strncasecmp(name, "CAP_", 4) == 0)
        name += 4;
    if (strcasecmp(name, "ALL") == 0)
        return CAPS_ALL_NAME;
    for (int i = 0; i < CAPS_COUNT; i++) {
        if (strcasecmp(name, names[i]) == 0)
            return i;
    }
    return -1;
}

const char *caps_name(int index)
{
    return names[index];
}
