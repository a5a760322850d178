/*
 * frame - codec of the link between daemon and agent: frame headers, preambles, and the parser that
 * finds them in a byte stream of any cut (proto/README.md, "The link"). No I/O here.
 *
 * Memory: the parser owns its input buffer; a frame's payload points into it and is valid until
 * the next call. Threads: one at a time.
 */
#ifndef ASPIS_PROTO_FRAME_H
#define ASPIS_PROTO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum frame_type {
    FRAME_REQUEST = 1,
    FRAME_RESPONSE = 2,
    FRAME_DATA = 3,
    FRAME_CANCEL = 16,
    FRAME_IO_OPEN = 17,
    FRAME_IO_DATA = 18,
    FRAME_IO_ACK = 19,
    FRAME_IO_RESET = 20,
    FRAME_FS_DATA = 24,  /* a piece of a FUSE message; the stream is the volume */
    FRAME_FS_CLOSE = 25, /* agent to host: the volume's mount is gone */
};

#define FRAME_FLAG_EOF 0x01U        /* of FRAME_IO_DATA */
#define FRAME_FLAG_END 0x01U        /* of FRAME_FS_DATA: the message's last piece */
#define FRAME_FLAG_UNANSWERED 0x02U /* with it: a request whose answer nobody reads */

enum link_channel { LINK_RPC = 0, LINK_IO = 1, LINK_FS = 2 };
#define LINK_CHANNELS 3
#define LINK_VSOCK_PORT 1024 /* plus the channel number */
#define FRAME_HEADER 10
#define PREAMBLE_SIZE 32
#define PREAMBLE_NONCE 16
#define PREAMBLE_FIXED (PREAMBLE_SIZE - PREAMBLE_NONCE)
#define LINK_VERSION 1

const char *link_port_name(enum link_channel ch); /* "org.aspis.rpc", ... */

struct frame {
    uint32_t stream;
    uint8_t type;
    uint8_t flags;
    const uint8_t *payload;
    size_t len;
};

void frame_put_header(uint8_t out[FRAME_HEADER], uint32_t len, uint32_t stream, uint8_t type,
                      uint8_t flags);
/* Appends one whole frame. */
int frame_append(struct buf *out, uint32_t stream, uint8_t type, uint8_t flags, const void *payload,
                 size_t len);
/* Appends FRAME_IO_DATA with its offset. */
int frame_append_io(struct buf *out, uint32_t stream, uint8_t flags, uint64_t offset,
                    const void *data, size_t len);
/* Appends FRAME_IO_OPEN or FRAME_IO_ACK. */
int frame_append_offset(struct buf *out, uint8_t type, uint32_t stream, uint64_t offset);
/* Appends FRAME_IO_ACK with the receiver's window in bytes behind the offset. */
int frame_append_credit(struct buf *out, uint32_t stream, uint64_t offset, uint32_t window);
/* Reads the leading u64 of an io frame; -1 when it is not there. */
int frame_offset(const struct frame *f, uint64_t *offset);
/* The window that an ACK names, LIMIT_IO_WINDOW when it names none. */
uint32_t frame_window(const struct frame *f);

void preamble_make(uint8_t out[PREAMBLE_SIZE], enum link_channel ch,
                   const uint8_t nonce[PREAMBLE_NONCE]);
/* The agent's answer to a host's preamble. */
void preamble_answer(uint8_t out[PREAMBLE_SIZE], const uint8_t in[PREAMBLE_SIZE]);
/* The first place in data that holds the fixed part of a host's preamble; NULL when there is none.
 */
const void *preamble_find(const void *data, size_t len);
/* How much of data the host may put into one frame: no frame to the agent holds the fixed part of a
 * preamble, so that the agent can tell a new connection even in the middle of a frame. */
size_t preamble_safe_len(const void *data, size_t len);

enum parse_result {
    PARSE_MORE,     /* nothing complete yet */
    PARSE_FRAME,    /* *f is filled */
    PARSE_PREAMBLE, /* a host's preamble (agent side): parser->preamble holds it */
    PARSE_SYNCED,   /* the expected answer arrived (host side): frames follow */
    PARSE_BROKEN,   /* a header that can be no frame: resync needed (agent: it now scans for a
                       preamble) */
};

struct frame_parser {
    struct buf in;
    size_t used;    /* bytes of `in` that the results so far covered */
    size_t scanned; /* bytes after them already searched for a preamble (agent) */
    size_t max_payload;
    bool agent;    /* which side we are */
    bool scanning; /* discarding until a preamble (agent) or the expected answer (host) */
    uint8_t preamble[PREAMBLE_SIZE]; /* agent: the last one seen; host: the answer waited for */
};

/* Both sides start scanning. max_payload: LIMIT_RPC_MESSAGE or LIMIT_IO_FRAME + 8. */
void frame_parser_init(struct frame_parser *p, bool agent, size_t max_payload);
void frame_parser_clear(struct frame_parser *p);
/* Drops half-read input and scans again (host: for the answer to this preamble). */
void frame_parser_resync(struct frame_parser *p, const uint8_t expected_answer[PREAMBLE_SIZE]);
/* Room to read(2) into: at least 4 KiB (0 and NULL only when memory is out); then tell how much
 * arrived. */
void *frame_parser_room(struct frame_parser *p, size_t *size);
void frame_parser_fed(struct frame_parser *p, size_t n);
/* Call until PARSE_MORE. */
enum parse_result frame_parser_next(struct frame_parser *p, struct frame *f);

#endif
