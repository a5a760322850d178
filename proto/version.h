/*
 * version - which release of agent.proto something came with, so that a daemon and an agent of
 * different releases know what the older one cannot do.
 *
 * What is not in the table has been there from 1.1 on, the first release.
 * test/unit/proto/test_version.c holds the table and agent.proto against what 1.1 had. No state;
 * any thread.
 */
#ifndef ASPIS_PROTO_VERSION_H
#define ASPIS_PROTO_VERSION_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_MAJOR 1
#define PROTOCOL_MINOR 2

/* A call (field NULL), or a field of a call's request. "Message.field", below a request, is only
 * told: such a field may be sent where something else has made sure that the agent knows it. */
struct protocol_addition {
    const char *method;
    const char *field;
    uint32_t minor; /* the first that knows it */
};
extern const struct protocol_addition protocol_additions[];
extern const size_t n_protocol_additions;

/* What of this request came last: the newest of the call and of the fields that are set. NULL: any
 * agent does all of it. */
const struct protocol_addition *protocol_newest(const char *method,
                                                const ProtobufCMessage *request);

/* The first minor version that has a call. */
uint32_t protocol_call_minor(const char *method);

/* Makes of a request what an agent of `minor` sees of it: fields that are newer are not set. Their
 * memory is not freed (it is an arena's). */
void protocol_forget(const char *method, ProtobufCMessage *request, uint32_t minor);

#endif
