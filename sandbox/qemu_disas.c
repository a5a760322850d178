/*
 * aspis-disas.so - stands in for libcapstone in clones.
 *
 * QEMU is linked with the disassembler for what its debugging options print, which are never asked
 * for here. Its tables are pointers, so each process would have 1.3 MB of them relocated for itself
 * alone. Preloaded under the library's name this is what QEMU finds instead: a disassembler that
 * cannot be opened, for which QEMU prints numbers. A QEMU that wants more of it does not start at
 * all, which is tried before any clone gets it (qemu_idle.c).
 */
#include <stdbool.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))
#define UNSUPPORTED 2 /* CS_ERR_ARCH */

EXPORT int cs_open(int arch, int mode, size_t *handle);
EXPORT int cs_close(size_t *handle);
EXPORT int cs_option(size_t handle, int type, size_t value);
EXPORT void *cs_malloc(size_t handle);
EXPORT bool cs_disasm_iter(size_t handle, const void **code, size_t *size, void *address,
                           void *insn);

int cs_open(int arch, int mode, size_t *handle)
{
    (void)arch;
    (void)mode;
    *handle = 0;
    return UNSUPPORTED;
}

int cs_close(size_t *handle)
{
    *handle = 0;
    return UNSUPPORTED;
}

int cs_option(size_t handle, int type, size_t value)
{
    (void)handle;
    (void)type;
    (void)value;
    return UNSUPPORTED;
}

void *cs_malloc(size_t handle)
{
    (void)handle;
    return NULL;
}

bool cs_disasm_iter(size_t handle, const void **code, size_t *size, void *address, void *insn)
{
    (void)handle;
    (void)code;
    (void)size;
    (void)address;
    (void)insn;
    return false;
}
