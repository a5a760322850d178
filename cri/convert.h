/*
 * convert - pieces of replies that several handlers build: maps, metadata, copies of messages,
 * verbose info.
 *
 * Everything returned lives in the call's arena. The functions are called with the runtime's lock
 * held where they read the model, so they do no I/O. Threads: any.
 */
#ifndef ASPIS_CRI_CONVERT_H
#define ASPIS_CRI_CONVERT_H

#include <stdbool.h>

#include "cri/call.h"
#include "cri/model.h"
#include "proto/cri/v1/api.pb-c.h"

/* protobuf-c gives every map its own entry type; all of string to string have this shape. */
struct map_entry {
    ProtobufCMessage base;
    char *key;
    char *value;
};

/* Copies n entries (of any map type) into an array of entries of type desc. */
void *convert_map(struct call *call, const void *entries, size_t n,
                  const ProtobufCMessageDescriptor *desc, struct err *err);
/* A map of one or two entries: pairs of key and value, count of pairs. */
void *convert_pairs(struct call *call, const char *const *pairs, size_t n,
                    const ProtobufCMessageDescriptor *desc, struct err *err);
/* A deep copy; NULL for NULL or (with *err) when the arena is full. */
void *convert_copy(struct call *call, const ProtobufCMessage *m, struct err *err);
/* true when every wanted pair is among the labels. Any map types. */
bool convert_selector_matches(const void *labels, size_t n_labels, const void *wanted,
                              size_t n_wanted);

Runtime__V1__ContainerState convert_container_state(const struct container *c);

/* ContainerStatus without the image's tag, which needs the image store. */
Runtime__V1__ContainerStatus *convert_container_status(struct call *call, struct container *c,
                                                       struct err *err);

#endif
