/*
 * pull_layers - fetches and converts the layers of one image, several at once.
 *
 * Each layer is made once on the node (store_layer_claim), streamed from the registry through a
 * pipe into the confined converter; both its compressed digest and its diff_id must fit before it
 * counts.
 */
#ifndef ASPIS_CRI_IMAGE_PULL_LAYERS_H
#define ASPIS_CRI_IMAGE_PULL_LAYERS_H

#include "base/cancel.h"
#include "base/err.h"
#include "cri/image/image.h"
#include "cri/image/manifest.h"
#include "cri/image/registry.h"
#include "cri/image/store.h"

/* diff_ids has one entry per layer of m. The first failure stops the others. */
int pull_layers(struct image_store *s, struct store_lease *lease, struct registry *registry,
                const struct manifest *m, const struct strv *diff_ids, image_progress_fn progress,
                void *arg, struct cancel *cancel, struct err *err);

#endif
