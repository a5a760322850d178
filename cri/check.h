/*
 * check - `aspisd --check`: what this machine can do for pods, what it cannot, and why.
 *
 * Starts nothing and changes nothing. Threads: none but its own.
 */
#ifndef ASPIS_CRI_CHECK_H
#define ASPIS_CRI_CHECK_H

#include <stdio.h>

struct config;

/* Prints one line per finding. 0 when pods can run, 1 when something they need is missing. */
int check_machine(const struct config *config, FILE *out);

#endif
