/*
 * tokens - streaming requests waiting for their client: one per URL handed out.
 *
 * A token is 16 random bytes, good for one use within LIMIT_STREAM_TOKEN_NS; at most
 * LIMIT_STREAM_TOKENS wait at once. What is found is removed, so a second use finds nothing.
 *
 * Memory: the store owns the requests it holds; tokens_take() gives one to the caller. Threads:
 * any.
 */
#ifndef ASPIS_CRI_STREAMING_TOKENS_H
#define ASPIS_CRI_STREAMING_TOKENS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

enum request_kind { REQUEST_EXEC, REQUEST_ATTACH, REQUEST_PORT_FORWARD };

struct stream_request {
    enum request_kind kind;
    char *id; /* of the container, or of the sandbox */
    struct strv cmd;
    bool tty, in, out, err;
    uint16_t *ports; /* of a port-forward, as many as were asked for */
    size_t n_ports;
};

void stream_request_free(struct stream_request *r);
DEFINE_AUTO(struct stream_request *, stream_request_free);
#define auto_stream_request __attribute__((cleanup(stream_request_freep)))

#define TOKEN_LENGTH 32 /* hex digits */

struct tokens;

/* clock: monotonic nanoseconds (mono_ns but in tests). */
struct tokens *tokens_new(int64_t (*clock)(void));
void tokens_free(struct tokens *t);
/* Takes *r in any case. EXHAUSTED when too many wait. */
int tokens_put(struct tokens *t, struct stream_request *r, char token[TOKEN_LENGTH + 1],
               struct err *err);
/* NULL: unknown, used, expired or of another kind. */
struct stream_request *tokens_take(struct tokens *t, enum request_kind kind, const char *token);

#endif
