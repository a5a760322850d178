/*
 * The frame parser, agent side and host side, fed the same bytes whole and in pieces: both ways
 * must give the same frames, and every payload must be readable. The first byte chooses side and
 * cut.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/frame.h"

#define MAX_PAYLOAD 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct tally {
    uint64_t hash;
    size_t events;
};

static void note(struct tally *t, uint64_t v)
{
    t->hash = (t->hash ^ v) * 0x100000001b3U;
}

static void run(bool agent, const uint8_t *data, size_t size, size_t piece, struct tally *t)
{
    static const uint8_t nonce[PREAMBLE_NONCE] = "fuzz-fuzz-fuzz-";
    uint8_t answer[PREAMBLE_SIZE];
    struct frame_parser p;
    struct frame f;

    frame_parser_init(&p, agent, MAX_PAYLOAD);
    preamble_make(answer, LINK_IO, nonce);
    preamble_answer(answer, answer);
    if (!agent)
        frame_parser_resync(&p, answer);
    while (size > 0) {
        size_t room;
        void *to = frame_parser_room(&p, &room);
        size_t n = size < piece ? size : piece;
        enum parse_result r;

        if (to == NULL)
            abort();
        if (n > room)
            n = room;
        memcpy(to, data, n);
        frame_parser_fed(&p, n);
        data += n;
        size -= n;
        while ((r = frame_parser_next(&p, &f)) != PARSE_MORE) {
            t->events++;
            note(t, r);
            if (r != PARSE_FRAME)
                continue;
            if (f.len > MAX_PAYLOAD)
                abort();
            note(t, f.stream);
            note(t, f.type);
            for (size_t i = 0; i < f.len; i++)
                note(t, f.payload[i]);
        }
    }
    frame_parser_clear(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tally whole = {0};
    struct tally cut = {0};

    if (size < 1)
        return 0;
    run(data[0] & 1U, data + 1, size - 1, SIZE_MAX, &whole);
    run(data[0] & 1U, data + 1, size - 1, (size_t)(data[0] >> 1) + 1, &cut);
    if (whole.hash != cut.hash || whole.events != cut.events)
        abort();
    return 0;
}
