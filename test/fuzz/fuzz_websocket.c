/* The WebSocket reader, in pieces of any size. */
#include <stddef.h>
#include <stdint.h>

#include "cri/streaming/websocket.h"

static int on_piece(void *arg, const void *data, size_t len, bool start, bool end, struct err *err)
{
    size_t *sum = arg;
    (void)start;
    (void)end;
    (void)err;
    for (size_t i = 0; i < len; i++)
        *sum += ((const uint8_t *)data)[i];
    return 0;
}

static int on_control(void *arg, enum ws_opcode op, const void *data, size_t len, struct err *err)
{
    (void)op;
    return on_piece(arg, data, len, true, true, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t sum = 0;
    const struct ws_callbacks cb = {.piece = on_piece, .control = on_control, .arg = &sum};
    if (size == 0)
        return 0;
    auto_ws_reader struct ws_reader *r = ws_reader_new(&cb);
    size_t step = data[0] % 64 + 1U;
    for (size_t at = 1; at < size; at += step) {
        if (ws_feed(r, data + at, size - at < step ? size - at : step, NULL) < 0)
            break;
    }
    return 0;
}
