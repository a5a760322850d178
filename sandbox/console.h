/*
 * console - keeps the last of what a VM prints: a bounded file for people and a tail for error
 * texts.
 *
 * Reads a stream (the guest's serial console, or the hypervisor's stderr) on a loop and appends it
 * to a file that never exceeds LIMIT_CONSOLE_FILE: when full it begins anew with the tail. The
 * writer is QEMU's socket or a pipe: nothing on disk can grow while no daemon reads, and QEMU drops
 * what nobody reads.
 *
 * Threads: console_tail() from any; new and free from any. Memory: freed by console_free().
 */
#ifndef ASPIS_SANDBOX_CONSOLE_H
#define ASPIS_SANDBOX_CONSOLE_H

#include "base/cleanup.h"
#include "base/err.h"
#include "base/loop.h"

struct console;

/* Takes fd. An existing file is continued (its end becomes the tail). */
struct console *console_new(struct loop *loop, int fd, const char *path, struct err *err);
/* Reads what the stream still holds, without waiting; on the loop's thread. */
void console_drain(struct console *c);
/* The last LIMIT_CONSOLE_TAIL lines, at most max bytes, control characters removed; the caller's.
 */
char *console_tail(struct console *c, size_t max);
/* The last line with `needle` among what the tail keeps, cut to 200 bytes; NULL: none. The
 * caller's. */
char *console_line(struct console *c, const char *needle);
void console_free(struct console *c); /* NULL is fine */

DEFINE_AUTO(struct console *, console_free);

#endif
