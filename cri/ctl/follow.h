/*
 * follow - prints a container's log file, and goes on as it grows.
 *
 * Reads the CRI log format ("<time> <stdout|stderr> <P|F> <text>") and writes the texts to our
 * stdout and stderr as the container wrote them. New records are found by inotify; a rotated file
 * is read to its end before the new one. Threads: one.
 */
#ifndef ASPIS_CRI_CTL_FOLLOW_H
#define ASPIS_CRI_CTL_FOLLOW_H

#include <stdbool.h>

#include "base/cleanup.h"
#include "base/err.h"

struct follow;

/* path need not exist yet. out, errout: descriptors to write to. */
struct follow *follow_open(const char *path, int out, int errout, struct err *err);
/* Readable when follow_read() may find something new. */
int follow_fd(const struct follow *f);
/* Prints all complete records that are there. */
int follow_read(struct follow *f, struct err *err);
void follow_close(struct follow *f);

DEFINE_AUTO(struct follow *, follow_close);
#define auto_follow __attribute__((cleanup(follow_closep)))

#endif
