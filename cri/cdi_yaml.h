/*
 * cdi_yaml - YAML text as the JSON value it stands for: for CDI descriptions, which come as either.
 *
 * One document; plain scalars are null, booleans and decimal numbers as in YAML's core schema, else
 * strings. What aliases repeat counts each time against one bound, and so does depth. Pure; any
 * thread.
 */
#ifndef ASPIS_CRI_CDI_YAML_H
#define ASPIS_CRI_CDI_YAML_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

/* The caller's; NULL with INVALID, or EXHAUSTED past a bound. */
json_t *cdi_yaml_load(const char *text, size_t len, struct err *err);

#endif
