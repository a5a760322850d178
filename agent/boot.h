/*
 * boot - turns the kernel's initramfs into the system that containers need, and ends it.
 *
 * For PID 1 only. Nothing here fails: what cannot be done is logged to the console and the agent
 * goes on with what there is, since a dead PID 1 is a dead pod, and the daemon sees what is missing
 * by the calls that fail.
 */
#ifndef ASPIS_AGENT_BOOT_H
#define ASPIS_AGENT_BOOT_H

/* Loads the modules of /modules.order, moves to a tmpfs as root (pivot_root cannot leave the
 * initramfs), mounts the kernel's file systems, sets limits and defaults. Standard descriptors are
 * open afterwards. */
void boot_system(void);

/* A CPU was plugged in: there is no udev here to bring it up. devpath as in struct uevent. */
void boot_cpu_added(const char *devpath);

/* Kills everything, syncs and powers the machine off. */
_Noreturn void boot_power_off(void);

#endif
