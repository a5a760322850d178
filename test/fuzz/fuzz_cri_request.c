/* A CRI or Admin request as a client may send it: checked and unpacked as every request of the
 * daemon's methods. The first byte picks the method. What passes is packed again, which must
 * succeed and pass too. */
#include <stdint.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cri/message.h"
#include "proto/admin.pb-c.h"
#include "proto/cri/v1/api.pb-c.h"

static const ProtobufCMessageDescriptor *pick(unsigned n)
{
    static const ProtobufCServiceDescriptor *const services[] = {
        &runtime__v1__runtime_service__descriptor,
        &runtime__v1__image_service__descriptor,
        &aspis__v1__admin__descriptor,
    };
    unsigned total = 0;
    for (size_t i = 0; i < ARRAY_LEN(services); i++)
        total += services[i]->n_methods;
    n %= total;
    for (size_t i = 0; i < ARRAY_LEN(services); i++) {
        if (n < services[i]->n_methods)
            return services[i]->methods[n].input;
        n -= services[i]->n_methods;
    }
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *desc = pick(data[0]);
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *arena = arena_new(MiB(4));
    const ProtobufCMessage *m = message_unpack(desc, data + 1, size - 1, LIMIT_STRING, arena, &err);
    if (m == NULL) {
        if (err.code != ERR_INVALID && err.code != ERR_EXHAUSTED)
            abort();
        return 0;
    }
    size_t len;
    auto_free uint8_t *packed = message_pack(m, MiB(16), arena, &len, &err);
    if (packed == NULL || message_check(desc, packed, len, LIMIT_STRING, &err) < 0)
        abort();
    return 0;
}
