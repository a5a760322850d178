/*
 * Libraries that QEMU is linked with and a clone never calls.
 *
 * Each of them, and each that it is linked with in turn, has pages of its own in every process:
 * relocated tables, data, what its constructors allocate; libcapstone 1.3 MB of them, libcrypto
 * (behind libpmem) 0.4, all of what is replaced here 2.3. The files of this folder are built under
 * those libraries' names into a directory which a clone's dynamic linker looks into first. A QEMU
 * that wants more of one of them does not start at all, which is tried before any clone gets them
 * (qemu_idle.c). What is only named here ends the process: nothing leads to it but command line
 * options and QMP commands that are never given.
 */
#ifndef ASPIS_SANDBOX_ABSENT_H
#define ASPIS_SANDBOX_ABSENT_H

#define EXPORT __attribute__((visibility("default")))

/* A function that must be there and is not called. */
#define ABSENT(name)                                                                               \
    EXPORT __attribute__((noreturn)) void name(void);                                              \
    void name(void)                                                                                \
    {                                                                                              \
        __builtin_trap();                                                                          \
    }

#endif
