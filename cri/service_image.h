/*
 * service_image - the ImageService of CRI, on top of cri/image/image.h.
 *
 * Handlers (cri/call.h); call->daemon is a struct daemon.
 */
#ifndef ASPIS_CRI_SERVICE_IMAGE_H
#define ASPIS_CRI_SERVICE_IMAGE_H

#include "cri/call.h"

int cri_list_images(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                    struct err *err);
int cri_stream_images(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                      struct err *err);
int cri_image_status(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err);
int cri_pull_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                   struct err *err);
int cri_remove_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err);
int cri_image_fs_info(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                      struct err *err);

#endif
