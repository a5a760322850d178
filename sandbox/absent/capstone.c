/*
 * libcapstone: the disassembler for what QEMU's debugging options print. This one cannot be opened,
 * for which QEMU prints numbers.
 */
#include <stdbool.h>
#include <stddef.h>

#include "sandbox/absent/absent.h"

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
