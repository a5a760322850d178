/*
 * stdio - the streams of all processes on the `io` channel: bounded rings, credit, resumption.
 *
 * An output stream reads its pipe (or pty) while its ring has room, keeps the bytes until they are
 * acknowledged, and so stops the process rather than lose a byte. An input stream writes to its
 * pipe and grants the host credit as the process reads. One stream never waits for another: frames
 * are sent round robin.
 *
 * Single-threaded, on the agent's loop. The stream table owns rings and descriptors.
 */
#ifndef ASPIS_AGENT_STDIO_H
#define ASPIS_AGENT_STDIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"

struct peer;
struct stdio;

struct stdio *stdio_new(struct loop *loop, struct err *err);
void stdio_free(struct stdio *s);
/* The streams' end of the `io` channel, for channels.c to attach descriptors to. Owned by s. */
struct peer *stdio_peer(struct stdio *s);

/* Takes fd (read end, made non-blocking). on_eof runs once when the last byte was read from the fd
 * (EOF or EIO of a pty), even if not yet sent or acknowledged. Returns the stream id (> 0), 0 on
 * error. */
uint32_t stdio_add_output(struct stdio *s, int fd, void (*on_eof)(void *arg), void *arg,
                          struct err *err);
/* Takes fd (write end); the host's EOF closes it (for a pty: sends ^D instead when is_tty). */
uint32_t stdio_add_input(struct stdio *s, int fd, bool is_tty, struct err *err);
/* Reads what is in the pipe right now, for which the ring may pass its window by what a pipe can
 * hold, and then treats the stream as ended (on_eof runs before this returns, if it has not run
 * yet): for a process that is gone while a stranger still holds its pipe open. */
void stdio_finish_output(struct stdio *s, uint32_t id);
/* Forgets a stream: closes the fd, frees the ring; the host gets RESET if it asks for it. 0 and
 * unknown ids are fine. */
void stdio_remove(struct stdio *s, uint32_t id);

#endif
