/* libpmem: persistent memory on the host. Behind it are libndctl, libdaxctl, libkmod, libcrypto. */
#include "sandbox/absent/absent.h"

ABSENT(pmem_memcpy_persist)
ABSENT(pmem_persist)
