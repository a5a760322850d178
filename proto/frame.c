#include "proto/frame.h"

#include <string.h>

#include "base/limits.h"

#define MAGIC_SIZE 8
static const char host_magic[MAGIC_SIZE] = {'A', 'S', 'P', 'I', 'S', 'L', 'N', 'K'};
static const char agent_magic[MAGIC_SIZE] = {'A', 'S', 'P', 'I', 'S', 'A', 'C', 'K'};

/* What one read may bring; a big frame in progress asks for more at once. */
#define ROOM_MIN KiB(16)
#define ROOM_BIG KiB(64)
/* An empty buffer larger than this is given back. */
#define KEEP_MAX KiB(256)

static void put_u32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)(v >> 32));
    put_u32(p + 4, (uint32_t)v);
}

const char *link_port_name(enum link_channel ch)
{
    switch (ch) {
    case LINK_RPC:
        return "org.aspis.rpc";
    case LINK_IO:
        return "org.aspis.io";
    case LINK_FS:
        return "org.aspis.fs";
    }
    return "";
}

void frame_put_header(uint8_t out[FRAME_HEADER], uint32_t len, uint32_t stream, uint8_t type,
                      uint8_t flags)
{
    put_u32(out, len);
    put_u32(out + 4, stream);
    out[8] = type;
    out[9] = flags;
}

int frame_append(struct buf *out, uint32_t stream, uint8_t type, uint8_t flags, const void *payload,
                 size_t len)
{
    uint8_t *p;

    if (len > LIMIT_RPC_MESSAGE) {
        out->overflow = true;
        return -1;
    }
    p = buf_reserve(out, FRAME_HEADER + len);
    if (p == NULL)
        return -1;
    frame_put_header(p, (uint32_t)len, stream, type, flags);
    if (len > 0)
        memcpy(p + FRAME_HEADER, payload, len);
    buf_commit(out, FRAME_HEADER + len);
    return 0;
}

int frame_append_io(struct buf *out, uint32_t stream, uint8_t flags, uint64_t offset,
                    const void *data, size_t len)
{
    uint8_t *p;

    if (len > LIMIT_IO_FRAME) {
        out->overflow = true;
        return -1;
    }
    p = buf_reserve(out, FRAME_HEADER + 8 + len);
    if (p == NULL)
        return -1;
    frame_put_header(p, (uint32_t)len + 8, stream, FRAME_IO_DATA, flags);
    put_u64(p + FRAME_HEADER, offset);
    if (len > 0)
        memcpy(p + FRAME_HEADER + 8, data, len);
    buf_commit(out, FRAME_HEADER + 8 + len);
    return 0;
}

int frame_append_offset(struct buf *out, uint8_t type, uint32_t stream, uint64_t offset)
{
    uint8_t p[8];

    put_u64(p, offset);
    return frame_append(out, stream, type, 0, p, sizeof(p));
}

int frame_append_credit(struct buf *out, uint32_t stream, uint64_t offset, uint32_t window)
{
    uint8_t p[12];

    put_u64(p, offset);
    put_u32(p + 8, window);
    return frame_append(out, stream, FRAME_IO_ACK, 0, p, sizeof(p));
}

uint32_t frame_window(const struct frame *f)
{
    return f->len < 12 ? LIMIT_IO_WINDOW : get_u32(f->payload + 8);
}

int frame_offset(const struct frame *f, uint64_t *offset)
{
    if (f->len < 8)
        return -1;
    *offset = (uint64_t)get_u32(f->payload) << 32 | get_u32(f->payload + 4);
    return 0;
}

void preamble_make(uint8_t out[PREAMBLE_SIZE], enum link_channel ch,
                   const uint8_t nonce[PREAMBLE_NONCE])
{
    memcpy(out, host_magic, MAGIC_SIZE);
    put_u32(out + 8, LINK_VERSION);
    put_u32(out + 12, (uint32_t)ch);
    memcpy(out + PREAMBLE_FIXED, nonce, PREAMBLE_NONCE);
}

void preamble_answer(uint8_t out[PREAMBLE_SIZE], const uint8_t in[PREAMBLE_SIZE])
{
    memmove(out, in, PREAMBLE_SIZE);
    memcpy(out, agent_magic, MAGIC_SIZE);
}

/* The fixed part of a preamble of our version for one of the channels. */
static bool is_preamble(const uint8_t *p)
{
    return memcmp(p, host_magic, MAGIC_SIZE) == 0 && get_u32(p + 8) == LINK_VERSION &&
           get_u32(p + 12) < LINK_CHANNELS;
}

/* Where host_magic stands, or NULL. Every byte of stdin passes here in the guest, where memmem
 * takes a good part of the time under emulation and memchr next to none: so it goes from one of the
 * magic's rarer letters to the next, as long as that letter is rare in the data too. */
static const uint8_t *find_magic(const uint8_t *p, const uint8_t *end)
{
    const size_t at = MAGIC_SIZE - 1;
    size_t misses = (size_t)(end - p) / 64;

    while ((size_t)(end - p) >= MAGIC_SIZE) {
        const uint8_t *last = memchr(p + at, host_magic[at], (size_t)(end - p) - at);

        if (last == NULL)
            return NULL;
        if (memcmp(last - at, host_magic, MAGIC_SIZE) == 0)
            return last - at;
        p = last - at + 1;
        if (misses-- == 0)
            return memmem(p, (size_t)(end - p), host_magic, MAGIC_SIZE);
    }
    return NULL;
}

const void *preamble_find(const void *data, size_t len)
{
    const uint8_t *p = data;
    const uint8_t *end = p + len;

    while ((size_t)(end - p) >= PREAMBLE_FIXED) {
        p = find_magic(p, end);
        if (p == NULL || (size_t)(end - p) < PREAMBLE_FIXED)
            return NULL;
        if (is_preamble(p))
            return p;
        p++;
    }
    return NULL;
}

size_t preamble_safe_len(const void *data, size_t len)
{
    const uint8_t *p = preamble_find(data, len);

    return p == NULL ? len : (size_t)(p - (const uint8_t *)data) + MAGIC_SIZE;
}

void frame_parser_init(struct frame_parser *p, bool agent, size_t max_payload)
{
    *p = (struct frame_parser){
        .in = BUF_INIT(FRAME_HEADER + max_payload + ROOM_BIG + PREAMBLE_SIZE),
        .max_payload = max_payload,
        .agent = agent,
        .scanning = true,
    };
}

void frame_parser_clear(struct frame_parser *p)
{
    buf_clear(&p->in);
    p->used = 0;
    p->scanned = 0;
}

void frame_parser_resync(struct frame_parser *p, const uint8_t expected_answer[PREAMBLE_SIZE])
{
    frame_parser_clear(p);
    p->scanning = true;
    if (expected_answer != NULL)
        memcpy(p->preamble, expected_answer, PREAMBLE_SIZE);
}

static size_t avail(const struct frame_parser *p)
{
    return p->in.len - p->used;
}

void *frame_parser_room(struct frame_parser *p, size_t *size)
{
    size_t want = ROOM_MIN;
    void *room;

    if (avail(p) == 0 && p->in.cap > KEEP_MAX)
        buf_clear(&p->in);
    else
        buf_consume(&p->in, p->used);
    p->used = 0;
    /* The length was checked when the header was parsed; memory still only grows as bytes come. */
    if (!p->scanning && p->in.len >= FRAME_HEADER &&
        get_u32((const uint8_t *)p->in.data) > ROOM_MIN)
        want = ROOM_BIG;
    room = buf_reserve(&p->in, want);
    if (room == NULL) {
        /* Out of memory, or a caller that does not drain: what is here cannot be used. */
        frame_parser_clear(p);
        p->scanning = true;
        room = buf_reserve(&p->in, want);
        if (room == NULL)
            want = 0;
    }
    *size = want;
    return room;
}

void frame_parser_fed(struct frame_parser *p, size_t n)
{
    buf_commit(&p->in, n);
}

/* Drops all but the last few bytes, which may be the start of what is looked for. */
static void keep_tail(struct frame_parser *p, size_t tail)
{
    if (avail(p) > tail)
        p->used = p->in.len - tail;
}

static enum parse_result take_preamble(struct frame_parser *p, const uint8_t *at)
{
    size_t left = (size_t)((const uint8_t *)p->in.data + p->in.len - at);

    if (left < PREAMBLE_SIZE) {
        p->used = p->in.len - left;
        p->scanned = 0;
        p->scanning = true;
        return PARSE_MORE;
    }
    memcpy(p->preamble, at, PREAMBLE_SIZE);
    p->used = p->in.len - left + PREAMBLE_SIZE;
    p->scanned = 0;
    p->scanning = false;
    return PARSE_PREAMBLE;
}

static enum parse_result scan(struct frame_parser *p)
{
    const uint8_t *start = (const uint8_t *)p->in.data + p->used;
    const uint8_t *at;

    if (p->agent) {
        at = preamble_find(start, avail(p));
        if (at != NULL)
            return take_preamble(p, at);
        keep_tail(p, PREAMBLE_FIXED - 1);
        return PARSE_MORE;
    }
    at = memmem(start, avail(p), p->preamble, PREAMBLE_SIZE);
    if (at == NULL) {
        keep_tail(p, PREAMBLE_SIZE - 1);
        return PARSE_MORE;
    }
    p->used += (size_t)(at - start) + PREAMBLE_SIZE;
    p->scanning = false;
    return PARSE_SYNCED;
}

static bool known_type(uint8_t type)
{
    return (type >= FRAME_REQUEST && type <= FRAME_DATA) ||
           (type >= FRAME_CANCEL && type <= FRAME_IO_RESET) || type == FRAME_FS_DATA ||
           type == FRAME_FS_CLOSE;
}

static enum parse_result broken(struct frame_parser *p)
{
    p->scanning = true;
    p->scanned = 0;
    return PARSE_BROKEN;
}

enum parse_result frame_parser_next(struct frame_parser *p, struct frame *f)
{
    const uint8_t *h;
    uint32_t len;
    size_t whole;

    for (;;) {
        if (avail(p) == 0)
            return PARSE_MORE;
        if (p->scanning)
            return scan(p);
        h = (const uint8_t *)p->in.data + p->used;
        /* A repeated preamble was answered twice: the second answer stands between frames. */
        if (!p->agent && avail(p) >= PREAMBLE_SIZE && memcmp(h, p->preamble, PREAMBLE_SIZE) == 0) {
            p->used += PREAMBLE_SIZE;
            continue;
        }
        break;
    }
    if (avail(p) < FRAME_HEADER)
        return PARSE_MORE;
    len = get_u32(h);
    whole = FRAME_HEADER + (size_t)len;
    if (len > p->max_payload) {
        /* Between frames only the start of a preamble may look like this. */
        const uint8_t *magic = p->agent ? (const uint8_t *)host_magic : p->preamble;
        size_t need = p->agent ? PREAMBLE_FIXED : PREAMBLE_SIZE;

        if (p->agent && avail(p) >= need && is_preamble(h))
            return take_preamble(p, h);
        if (avail(p) < need && memcmp(h, magic, MAGIC_SIZE) == 0)
            return PARSE_MORE;
        return broken(p);
    }
    if (!known_type(h[8]))
        return broken(p);
    if (p->agent) {
        /* No frame to us holds a preamble (preamble_safe_len), so one that stands inside a frame
         * is the start of a new connection whose predecessor was cut. */
        size_t have = avail(p) < whole ? avail(p) : whole;
        size_t from = p->scanned < PREAMBLE_FIXED ? 0 : p->scanned - (PREAMBLE_FIXED - 1);
        const uint8_t *at = preamble_find(h + from, have - from);

        if (at != NULL)
            return take_preamble(p, at);
        p->scanned = have;
    }
    if (avail(p) < whole)
        return PARSE_MORE;
    *f = (struct frame){.stream = get_u32(h + 4),
                        .type = h[8],
                        .flags = h[9],
                        .payload = h + FRAME_HEADER,
                        .len = len};
    p->used += whole;
    p->scanned = 0;
    return PARSE_FRAME;
}
