/*
 * pull - from a reference to an image in the store; what image_pull() runs on a thread of its own.
 *
 * Threads: one call per job. Memory: the caller keeps ownership of everything it passes.
 */
#ifndef ASPIS_CRI_IMAGE_PULL_H
#define ASPIS_CRI_IMAGE_PULL_H

#include "base/cancel.h"
#include "base/err.h"
#include "cri/image/image.h"
#include "cri/image/reference.h"
#include "cri/image/registry.h"

/* progress may be called on several threads at once. *id is the caller's. On failure nothing stays
 * that was not there before. */
int pull_image(struct image_store *s, struct registry *registry, const struct reference *ref,
               image_progress_fn progress, void *arg, struct cancel *cancel, char **id,
               struct err *err);

#endif
