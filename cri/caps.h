/*
 * caps - Linux capabilities by name and number.
 *
 * A set is a 64-bit mask, 1 << CAP_*. Threads: any.
 */
#ifndef ASPIS_CRI_CAPS_H
#define ASPIS_CRI_CAPS_H

#include <stdint.h>

#define CAPS_ALL_NAME (-2)
#define CAPS_COUNT 41

/* The number of "NET_ADMIN", "CAP_NET_ADMIN", in any case; CAPS_ALL_NAME for ALL; -1 when unknown.
 */
int caps_index(const char *name);
/* "NET_ADMIN"; index is below CAPS_COUNT. */
const char *caps_name(int index);
static inline uint64_t caps_everything(void)
{
    return (UINT64_C(1) << CAPS_COUNT) - 1;
}

#endif
