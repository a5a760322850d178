/* The SPDY reader and what the daemon makes of a client's frames, in pieces of any size. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "cri/streaming/spdy.h"

static int on_syn(void *arg, uint32_t id, bool fin, const struct spdy_header *h, size_t n,
                  struct err *err)
{
    size_t *sum = arg;
    (void)err;
    (void)fin;
    *sum += id;
    for (size_t i = 0; i < n; i++) {
        for (const char *p = h[i].name; *p != '\0'; p++)
            (*sum)++;
        for (const char *p = h[i].value; *p != '\0'; p++)
            (*sum)++;
    }
    return 0;
}

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool fin, struct err *err)
{
    size_t *sum = arg;
    (void)id;
    (void)fin;
    (void)err;
    for (size_t i = 0; i < len; i++)
        *sum += ((const uint8_t *)data)[i];
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t sum = 0;
    const struct spdy_callbacks cb = {.syn_stream = on_syn, .data = on_data, .arg = &sum};
    if (size == 0)
        return 0;
    auto_spdy_reader struct spdy_reader *r = spdy_reader_new(&cb);
    size_t step = data[0] % 64 + 1U;
    for (size_t at = 1; at < size; at += step) {
        if (spdy_feed(r, data + at, size - at < step ? size - at : step, NULL) < 0)
            break;
    }
    return 0;
}
