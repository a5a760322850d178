/*
 * container_images - the images a container uses: its own, and those it mounts (Mount.image).
 *
 * From a client's names to image ids that are on record, so that a restarted daemon knows the same
 * users; from ids to disks in the pod's VM, plugged in when the first container wants one and out
 * when the last has gone. Threads: any; each function says which locks it takes.
 */
#ifndef ASPIS_CRI_CONTAINER_IMAGES_H
#define ASPIS_CRI_CONTAINER_IMAGES_H

#include "cri/image/image.h"
#include "cri/model.h"

/* What kubelet looks for at the start of a CreateContainer error (CRI's error conventions). */
#define IMAGE_VOLUME_ERROR "ImageVolumeMountFailed"
/* Puts it there when the error is one of an image volume, wherever it came from. Returns -1. */
int container_images_mark_error(struct err *err);

/* The images of one configuration, kept from being removed. */
struct container_images {
    struct image_store *store;
    struct image *own; /* the container's */
    /* A copy in which each image volume names its image by id (which is what kubelet compares with
     * Image.id to know images in use), image_ref is a name by digest and user_specified_image what
     * the client said. */
    Runtime__V1__ContainerConfig *config;
    struct strv held; /* ids */
};
int container_images_find(struct image_store *s, const Runtime__V1__ContainerConfig *config,
                          struct container_images *out, struct err *err);
/* From here on only in_use() keeps them: the container must be in the model. */
void container_images_let_go(struct container_images *i);

/* The image's name by digest, or its id when it has none; borrowed. */
const char *container_images_ref(const struct image *i);

/* Whether c uses the image. Under the runtime's lock. */
bool container_images_uses(const struct container *c, const char *id);

/* Plugs in all of c's images; c is in the model. */
int container_images_attach(struct container *c, struct machine *m, struct cancel *cancel,
                            struct err *err);
/* Serials of the image volumes' disks, in the order of the mounts. */
void container_images_volume_disks(const struct container *c, struct strv *serials);
/* The guest has let go of c: unplugs what no other container of the pod uses, but for c's own
 * image, which stays until another takes its place. What cannot be unplugged stays until the pod
 * ends. */
void container_images_detach(struct container *c, struct cancel *cancel);

#endif
