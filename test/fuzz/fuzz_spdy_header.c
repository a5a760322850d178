/* The header block behind the decompressor: the input is compressed first, so that every mutation
 * reaches the parser. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>

#include "cri/streaming/spdy.h"

static int on_syn(void *arg, uint32_t id, bool fin, const struct spdy_header *h, size_t n,
                  struct err *err)
{
    size_t *sum = arg;
    (void)err;
    (void)fin;
    (void)id;
    for (size_t i = 0; i < n; i++)
        *sum += strlen(h[i].name) + strlen(h[i].value);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t frame[65536];
    size_t sum = 0;
    size_t dict_len;
    const void *dict = spdy_dictionary(&dict_len);
    const struct spdy_callbacks cb = {.syn_stream = on_syn, .arg = &sum};
    z_stream z = {0};
    if (deflateInit(&z, 1) != Z_OK)
        return 0;
    (void)deflateSetDictionary(&z, dict, (uInt)dict_len);
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)size;
    z.next_out = frame + 18;
    z.avail_out = sizeof(frame) - 18;
    (void)deflate(&z, Z_SYNC_FLUSH);
    size_t n = sizeof(frame) - 8 - z.avail_out;
    (void)deflateEnd(&z);
    const uint8_t head[18] = {0x80,       3, 0, 1, 0, (uint8_t)(n >> 16), (uint8_t)(n >> 8),
                              (uint8_t)n, 0, 0, 0, 1};
    memcpy(frame, head, sizeof(head));
    auto_spdy_reader struct spdy_reader *r = spdy_reader_new(&cb);
    (void)spdy_feed(r, frame, n + 8, NULL);
    return 0;
}
