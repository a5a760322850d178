/*
 * image_volume - the images that a container mounts beside its own: Mount.image of CRI.
 *
 * An image disk is mounted once for the whole guest (agent/disk.h). A container gets a directory of
 * it by a bind mount of its own, made by the operation that creates the container and undone by the
 * one that removes it. Runs in operations' children; nothing is kept.
 */
#ifndef ASPIS_AGENT_IMAGE_VOLUME_H
#define ASPIS_AGENT_IMAGE_VOLUME_H

#include "base/err.h"

/* An image of a container and where it is mounted; NULL until it is. */
struct image_mount {
    char *serial;
    char *mountpoint;
};

/* Binds the directory `path` ("" for all) of the image at `mountpoint` to `target`, which is made.
 * The image is somebody else's: links in it lead nowhere else, and only a directory will do, as
 * containerd and KEP-4639 say. NOT_FOUND, INVALID naming the path. */
int image_volume_bind(const char *mountpoint, const char *path, const char *target,
                      struct err *err);

#endif
