/* An image's /etc/passwd and /etc/group, and the user string of a request:
 * "<user>\0<passwd>\0<group>". */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/user.h"
#include "base/cleanup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct user_ids ids;
    auto_err struct err err = ERR_INIT;
    const uint8_t *end = data + size;
    const uint8_t *first = memchr(data, 0, size);

    if (first == NULL)
        return 0;
    const uint8_t *passwd = first + 1;
    const uint8_t *second = memchr(passwd, 0, (size_t)(end - passwd));
    size_t passwd_len = (size_t)((second != NULL ? second : end) - passwd);
    size_t group_len = second != NULL ? (size_t)(end - second - 1) : 0;
    /* Copies without a NUL behind them, so that an overrun is seen. */
    auto_free char *p = malloc(passwd_len > 0 ? passwd_len : 1);
    auto_free char *g = malloc(group_len > 0 ? group_len : 1);
    memcpy(p, passwd, passwd_len);
    if (group_len > 0)
        memcpy(g, second + 1, group_len);

    uint32_t given[2] = {1, 2};
    struct user_request req = {.user = (const char *)data, .groups = given, .n_groups = 2};
    if (user_lookup(p, passwd_len, g, group_len, &req, &ids, &err) == 0 &&
        (ids.uid == UINT32_MAX || ids.gid == UINT32_MAX || ids.n_groups > LIMIT_USER_GROUPS ||
         ids.home[0] != '/' || memchr(ids.home, 0, sizeof(ids.home)) == NULL))
        abort();
    return 0;
}
