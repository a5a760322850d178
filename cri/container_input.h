/*
 * container_input - a container's standard input, shared by all who are attached to it.
 *
 * The stream is opened with the first write and closed with the container. Threads: any but the
 * loops'; writers take turns.
 */
#ifndef ASPIS_CRI_CONTAINER_INPUT_H
#define ASPIS_CRI_CONTAINER_INPUT_H

#include "cri/model.h"

/* As stream_write(). PRECONDITION for a container that was made without stdin. */
int container_input_write(struct container *c, const void *data, size_t len, bool eof,
                          struct cancel *cancel, struct err *err);
void container_input_close(struct container *c);

#endif
