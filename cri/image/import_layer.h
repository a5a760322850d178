/*
 * import_layer - brings one layer of an image archive into the store.
 */
#ifndef ASPIS_CRI_IMAGE_IMPORT_LAYER_H
#define ASPIS_CRI_IMAGE_IMPORT_LAYER_H

#include "base/cancel.h"
#include "base/err.h"
#include "cri/image/bundle.h"
#include "cri/image/store.h"

/* Makes the layer from the file `name` of the bundle, unless the store has it. The file's own
 * digest is checked when it is not "", the uncompressed one (diff_id) always. */
int import_layer(struct image_store *s, struct store_lease *lease, const struct bundle *b,
                 const char *name, const char *digest, const char *diff_id, struct cancel *cancel,
                 struct err *err);

#endif
