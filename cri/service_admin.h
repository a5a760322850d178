/*
 * service_admin - the Admin service of aspisctl: image transfers with progress, waiting for a
 * container (proto/admin.proto).
 *
 * Handlers (cri/call.h); call->daemon is a struct daemon.
 */
#ifndef ASPIS_CRI_SERVICE_ADMIN_H
#define ASPIS_CRI_SERVICE_ADMIN_H

#include "cri/call.h"

/* Streams of events. */
int admin_import_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                       struct err *err);
int admin_pull_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err);

int admin_wait_container(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                         struct err *err);

#endif
