#include "sandbox/host_memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"

/* A guest that was short of memory has used most of what it got after this. */
#define SETTLE_NS INT64_C(10000000000)

void host_memory_init(struct host_memory *h)
{
    *h = (struct host_memory){.granted = 0};
    (void)pthread_mutex_init(&h->lock, NULL);
}

void host_memory_destroy(struct host_memory *h)
{
    (void)pthread_mutex_destroy(&h->lock);
}

static bool available(const char *meminfo, uint64_t *bytes)
{
    const char *at = meminfo != NULL ? strstr(meminfo, "\nMemAvailable:") : NULL;
    uint64_t kib;
    if (at == NULL || sscanf(at, "\nMemAvailable: %" SCNu64 " kB", &kib) != 1)
        return false;
    *bytes = kib < UINT64_MAX / 1024 ? kib * 1024 : UINT64_MAX;
    return true;
}

uint64_t host_memory_grant_of(struct host_memory *h, const char *meminfo, int64_t now,
                              uint64_t want, uint64_t step, uint64_t reserve)
{
    uint64_t room;
    want -= want % step;
    if (!available(meminfo, &room))
        return want;
    (void)pthread_mutex_lock(&h->lock);
    if (now - h->granted_at > SETTLE_NS)
        h->granted = 0;
    room = room > reserve ? room - reserve : 0;
    room = room > h->granted ? room - h->granted : 0;
    uint64_t got = want <= room ? want : room - room % step;
    if (got > 0) {
        h->granted += got;
        h->granted_at = now;
    }
    (void)pthread_mutex_unlock(&h->lock);
    return got;
}

uint64_t host_memory_grant(struct host_memory *h, uint64_t want, uint64_t step, uint64_t reserve)
{
    if (FAILPOINT("machine.room", NULL) < 0)
        return 0;
    auto_free char *text = fs_read("/proc/meminfo", KiB(64), NULL, NULL);
    return host_memory_grant_of(h, text, mono_ns(), want, step, reserve);
}
