/*
 * The guest's wall clock, compared with the host's whenever a heartbeat goes anyway. The answer was
 * made at some moment between question and answer, so only what is off at every such moment is
 * known to be, and only that is corrected: a slow answer corrects nothing rather than too much, and
 * is asked for again a few times.
 */
#include "base/cancel.h"
#include "base/limits.h"
#include "proto/ttrpc.pb-c.h"
#include "sandbox/link_impl.h"

/* An answer that took longer is not good enough when another can be had. */
#define COARSE_NS 5000000
/* What is not worth a word. */
#define SMALL_NS 200000
/* More is corrected at once, not with the next heartbeat (agent/clock.h: it is a step then). */
#define STEP_NS 10000000
/* Per heartbeat: a guest cannot make the daemon ask for ever. */
#define ASKS_MAX 4

int64_t link_clock_behind(int64_t asked, int64_t answered, uint64_t guest)
{
    int64_t now = guest > INT64_MAX ? INT64_MAX : (int64_t)guest;

    if (now < asked)
        return asked - now < SMALL_NS ? 0 : asked - now;
    if (now > answered)
        return now - answered < SMALL_NS ? 0 : answered - now;
    return 0;
}

void link_clock_begin(struct link *l)
{
    l->clock_asks = 0;
}

void link_clock_ask(struct link *l, Aspis__Agent__V1__ClockRequest *req)
{
    req->adjust_ns = l->clock_adjust_ns;
    l->clock_adjust_ns = 0;
    l->clock_asks++;
    l->clock_wall = wall_ns();
    l->clock_mono = mono_ns();
}

static bool read_answer(const struct frame *f, uint64_t *guest)
{
    auto_arena struct arena *a = arena_new(KiB(64));
    Aspis__Ttrpc__Response *env = NULL;
    const Aspis__Agent__V1__ClockResponse *r = NULL;

    if (a != NULL && f->len <= KiB(1))
        env = aspis__ttrpc__response__unpack(arena_allocator(a), f->len, f->payload);
    if (env != NULL && (env->status == NULL || env->status->code == 0))
        r = aspis__agent__v1__clock_response__unpack(arena_allocator(a), env->payload.len,
                                                     env->payload.data);
    *guest = r != NULL ? r->wall_clock_ns : 0;
    return *guest != 0;
}

bool link_clock_answered(struct link *l, const struct frame *f)
{
    int64_t wall = wall_ns();
    int64_t took = mono_ns() - l->clock_mono;
    int64_t moved = wall - l->clock_wall - took;
    uint64_t guest;

    if (l->clock_wall == 0 || !read_answer(f, &guest))
        return false;
    /* the host's clock was set meanwhile: the answer says nothing */
    if (moved > SMALL_NS || moved < -SMALL_NS)
        return l->clock_asks < ASKS_MAX;
    l->clock_adjust_ns = link_clock_behind(l->clock_wall, wall, guest);
    bool far = l->clock_adjust_ns > STEP_NS || l->clock_adjust_ns < -STEP_NS;
    return (far || took > COARSE_NS) && l->clock_asks < ASKS_MAX;
}
