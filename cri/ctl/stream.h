/*
 * stream - a session of exec or attach between the user's descriptors and the daemon.
 *
 * Output goes to stdout and stderr as it comes; input is read only when it was asked for. With a
 * terminal on both sides it is put into raw mode for as long as the session lasts, and its size is
 * followed. Threads: main.
 */
#ifndef ASPIS_CRI_CTL_STREAM_H
#define ASPIS_CRI_CTL_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct stream_options {
    bool in, tty;
    bool detachable; /* ctrl-p ctrl-q ends the session (only with in and tty) */
};

enum stream_end {
    STREAM_SUCCESS, /* the status says so */
    STREAM_EXITED,  /* with *code */
    STREAM_DETACHED,
};

/* What the user's descriptors must be for these options. Before anything is asked of the daemon. */
int stream_check(const struct stream_options *o, struct err *err);
/* Until the end: an enum stream_end, or -1 with what the status or the connection said. */
int stream_run(const char *url, const struct stream_options *o, int *code, struct err *err);

/* The error stream's last word, in the form of v4.channel.k8s.io; as stream_run(). */
int stream_status(const char *json, size_t len, int *code, struct err *err);

#endif
