/*
 * terminal - the user's terminal while it belongs to a process elsewhere.
 *
 * Raw mode is given back by terminal_restore(), at exit(), and by the signals that end or stop the
 * program, before they do so; a program that is continued takes it again. Not when the program is
 * in the background: then the terminal is its shell's.
 *
 * One terminal per program. Threads: main.
 */
#ifndef ASPIS_CRI_CTL_TERMINAL_H
#define ASPIS_CRI_CTL_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

int terminal_raw(int fd, struct err *err);
void terminal_restore(void);
/* False when fd is no terminal or has no size. */
bool terminal_size(int fd, uint16_t *columns, uint16_t *rows);
/* An eventfd that becomes readable when the window's size may have changed (SIGWINCH). */
int terminal_watch_size(struct err *err);

/* --- leaving without ending: ctrl-p ctrl-q --- */
struct detach {
    bool held; /* a ctrl-p that has not been passed on */
};
/* Looks for the keys in `len` typed bytes and copies what is to be passed on to `out`, which has
 * room for len + 1. *detached when the keys are there; bytes behind them are dropped. */
size_t detach_filter(struct detach *d, const char *in, size_t len, char *out, bool *detached);

#endif
