/*
 * share_move - what a pod's guest knows of its volumes goes with it when the pod is saved, to a pod
 * whose volumes are other directories: files are then the same by the names that lead to them.
 *
 * When the pod is saved, names that lead to another file than the one that is known (or to none)
 * are taken out of the state. When it is restored, every file becomes the one that its name leads
 * to now. What is not found, or is of another kind, keeps its number, which then leads nowhere
 * (ESTALE) and never to another file. Part of the program aspis-share only.
 *
 * The state comes from a checkpoint: it is hostile until share_state_is_sound(), and each name is
 * only ever looked up in the directory that it is recorded for, through no link.
 *
 * Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_MOVE_H
#define ASPIS_SANDBOX_SHARE_MOVE_H

#include "sandbox/share_state.h"

/* Of a copy of a state that no server uses; it is then "moved" (share_state_moved()). */
void share_move_leave(struct share_state *s);
/* Before anything of a moved state is taken over; it is then like any other. Can be repeated when
 * it was interrupted. */
void share_move_arrive(struct share_state *s);

#endif
