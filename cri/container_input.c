#include "cri/container_input.h"

static int open_stream(struct container *c, struct err *err)
{
    if (c->input != NULL)
        return 0;
    if (c->rec.stdin_id == 0)
        return err_set(err, ERR_PRECONDITION, "the container has no stdin");
    struct machine *m = sandbox_use_machine(c->sandbox, err);
    if (m == NULL)
        return -1;
    c->input = stream_open_input(machine_link(m), c->rec.stdin_id, err);
    sandbox_release_machine(c->sandbox);
    return c->input != NULL ? 0 : -1;
}

int container_input_write(struct container *c, const void *data, size_t len, bool eof,
                          struct cancel *cancel, struct err *err)
{
    if (oplock_take(&c->input_turn, cancel, err) < 0)
        return -1;
    auto_oplock struct oplock *held = &c->input_turn;
    if (open_stream(c, err) < 0)
        return -1;
    return stream_write(c->input, data, len, eof, cancel, err);
}

void container_input_close(struct container *c)
{
    if (oplock_take(&c->input_turn, NULL, NULL) < 0)
        return;
    auto_oplock struct oplock *held = &c->input_turn;
    stream_close(c->input);
    c->input = NULL;
}
