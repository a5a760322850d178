/* QMP messages from a QEMU that a guest may have taken over. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sandbox/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data;
    while (size > 0) {
        const char *nl = memchr(p, '\n', size);
        size_t len = nl != NULL ? (size_t)(nl - p) : size;
        auto_err struct err err = ERR_INIT;
        struct qmp_message m;
        if (qmp_parse(p, len, &m, &err) == 0) {
            /* what the client relies on */
            if (m.value == NULL || (m.kind == QMP_EVENT && m.text == NULL) ||
                (m.kind == QMP_ERROR && (m.text == NULL || m.class == NULL)) ||
                (m.kind == QMP_RETURN && m.data == NULL) ||
                (m.kind == QMP_EVENT && m.data != NULL && !json_is_object(m.data)))
                __builtin_trap();
            qmp_message_clear(&m);
        } else if (m.value != NULL || err.code == ERR_OK) {
            __builtin_trap();
        }
        if (nl == NULL)
            break;
        size -= len + 1;
        p = nl + 1;
    }
    return 0;
}
