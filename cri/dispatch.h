/*
 * dispatch - which handler serves which method: every method of CRI and Admin, by name.
 *
 * The table is complete: a method that is not built has an entry without handler and is answered
 * with UNIMPLEMENTED naming it, which kubelet understands as "fall back". A unit test holds the
 * table against the services' descriptors.
 *
 * Handlers are declared in cri/service_runtime.h and cri/service_image.h as cri_<method_snake> and
 * admin_<method_snake>. Threads: any; the table is constant.
 */
#ifndef ASPIS_CRI_DISPATCH_H
#define ASPIS_CRI_DISPATCH_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "cri/call.h"

struct method {
    const char *service; /* "runtime.v1.RuntimeService" */
    const char *name;    /* "RunPodSandbox" */
    const ProtobufCMessageDescriptor *request, *reply;
    call_handler handler; /* NULL: not implemented */
    bool streaming;       /* many replies */
    bool quiet;           /* called so often that success is not worth a line at info */
};

/* All methods; *n of them. */
const struct method *dispatch_methods(size_t *n);

/* The method of a gRPC path ("/runtime.v1.RuntimeService/Version") among n; NULL when there is
 * none. */
const struct method *dispatch_find(const struct method *methods, size_t n, const char *path,
                                   size_t len);

/* Runs the call's handler and logs its end. Fills *reply on success (never NULL then, unless the
 * method streams). */
int dispatch_run(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                 struct err *err);

#endif
