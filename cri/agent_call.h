/*
 * agent_call - calls to the agent of a sandbox's machine.
 *
 * The machine is held for as long as the call takes, so that nobody takes it down meanwhile; a
 * sandbox without one answers PRECONDITION. Threads: any that may block.
 */
#ifndef ASPIS_CRI_AGENT_CALL_H
#define ASPIS_CRI_AGENT_CALL_H

#include "cri/model.h"

/* The reply lives in the arena. NULL with *err; what the agent said is in its text. */
const ProtobufCMessage *agent_ask(struct sandbox *s, const char *method,
                                  const ProtobufCMessage *req,
                                  const ProtobufCMessageDescriptor *reply, struct arena *arena,
                                  struct cancel *cancel, struct err *err);
/* A call whose answer is empty. limit_ns: at most so long; 0: as long as `cancel` lets it. */
int agent_tell(struct sandbox *s, const char *method, const ProtobufCMessage *req, int64_t limit_ns,
               struct cancel *cancel, struct err *err);

#endif
