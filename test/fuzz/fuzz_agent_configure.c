/* The agent's checks of ConfigurePod: whatever unpacks must be refused or be safe to apply. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "agent/disk.h"
#include "agent/identity.h"
#include "agent/net_check.h"
#include "base/err.h"
#include "base/limits.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_arena struct arena *arena = arena_new(MiB(16));
    if (arena == NULL)
        return 0;
    Aspis__Agent__V1__ConfigurePodRequest *req =
        aspis__agent__v1__configure_pod_request__unpack(arena_allocator(arena), size, data);
    if (req == NULL)
        return 0;
    auto_err struct err err = ERR_INIT;
    if (net_check(req, &err) < 0 && err_msg(&err)[0] == '\0')
        abort();
    (void)identity_check_hostname(req->hostname, NULL);
    (void)disk_serial_valid(req->scratch_disk);
    for (size_t i = 0; i < req->n_sysctls; i++) {
        char *path = identity_sysctl_path(req->sysctls[i]->key, NULL);
        free(path);
    }
    return 0;
}
