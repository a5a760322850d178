/*
 * progress - shows how far an image transfer is: a bar per layer on a terminal, else a line per
 * layer and phase.
 *
 * Threads: one.
 */
#ifndef ASPIS_CRI_CTL_PROGRESS_H
#define ASPIS_CRI_CTL_PROGRESS_H

#include <stdio.h>

#include "proto/admin.pb-c.h"

struct progress;

struct progress *progress_new(FILE *out);
void progress_show(struct progress *p, const Aspis__V1__Progress *report);
/* Leaves the last state on the screen. */
void progress_free(struct progress *p);

#endif
