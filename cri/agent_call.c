#include "cri/agent_call.h"

#include "base/limits.h"

const ProtobufCMessage *agent_ask(struct sandbox *s, const char *method,
                                  const ProtobufCMessage *req,
                                  const ProtobufCMessageDescriptor *reply, struct arena *arena,
                                  struct cancel *cancel, struct err *err)
{
    struct machine *m = sandbox_use_machine(s, err);
    if (m == NULL)
        return NULL;
    const ProtobufCMessage *r = link_call(machine_link(m), method, req, reply, arena, cancel, err);
    sandbox_release_machine(s);
    return r;
}

int agent_tell(struct sandbox *s, const char *method, const ProtobufCMessage *req, int64_t limit_ns,
               struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *limit =
        cancel_child(cancel, limit_ns > 0 ? mono_ns() + limit_ns : 0, err);
    if (limit == NULL)
        return -1;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return err_set(err, ERR_EXHAUSTED, "no memory for a call to the agent");
    return agent_ask(s, method, req, &aspis__agent__v1__empty__descriptor, a, limit, err) != NULL
               ? 0
               : -1;
}
