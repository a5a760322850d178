/*
 * message - checks on protobuf messages that protobuf-c does not make: text that is no UTF-8,
 * embedded NULs, over-long strings, broken wire data.
 *
 * protobuf-c accepts any bytes as a string and cuts it at a NUL; Go clients refuse a whole message
 * for one bad byte. So requests are checked on the wire before they are unpacked, and replies are
 * repaired.
 *
 * Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_MESSAGE_H
#define ASPIS_CRI_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/arena.h"

/* Checks wire data against its type: well-formed, every string valid UTF-8 without NUL and at most
 * max_string bytes, at most LIMIT_MESSAGE_DEPTH levels. INVALID naming the field's path
 * ("config.labels[2].key"). */
int message_check(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                  size_t max_string, struct err *err);

/* Checks and unpacks a request. INVALID, or EXHAUSTED when the arena is full. */
ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *desc, const void *data,
                                 size_t len, size_t max_string, struct arena *arena,
                                 struct err *err);

/* Packs a message into memory from malloc (the caller's, *len bytes), each byte of a string that is
 * not part of valid UTF-8 replaced with U+FFFD. The message itself is not changed; `arena` is used
 * only when there is something to replace. EXHAUSTED when the result is larger than max bytes. */
uint8_t *message_pack(const ProtobufCMessage *message, size_t max, struct arena *arena, size_t *len,
                      struct err *err);

/* A copy of at most max bytes of s as valid UTF-8 (at most three times as long), for people:
 * control characters other than newline and tab become '?', or a client's string could speak to a
 * terminal. From malloc, NULL when memory is out. */
char *message_text(const char *s, size_t max);

#endif
