/*
 * runtime - sandboxes and containers: the daemon's model of them and the operations on them.
 *
 * Made once by main.c. Handlers (service_runtime.c) translate between CRI messages and the calls in
 * sandbox_ops.h and container_ops.h; the model itself is in model.h.
 *
 * Threads: any. runtime_free() lets every VM run on; a later daemon adopts them.
 */
#ifndef ASPIS_CRI_RUNTIME_H
#define ASPIS_CRI_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/loop.h"

struct runtime;
struct machine_factory;
struct cni;
struct image_store;

struct runtime_deps {
    struct loop *control, *io;
    struct machine_factory *factory;
    struct cni *cni;
    struct image_store *images;
    const char *run_root;     /* "/run/aspis" */
    const char *state_root;   /* "/var/lib/aspis" */
    uint32_t spares;          /* VMs to have ready before anybody asks */
    int64_t guest_silence_ns; /* heartbeat.h; 0: none */
    bool privileged_on_host;  /* privileged pods run without a VM unless their handler says aspis-vm
                               */
};

struct runtime *runtime_new(const struct runtime_deps *deps, struct err *err);
/* Takes over what an earlier daemon left: adopts running VMs, marks dead ones NOTREADY, finishes
 * half-done removals and creations, collects what no record owns. Before serving; one bad sandbox
 * never fails the whole. */
int runtime_recover(struct runtime *rt, struct cancel *cancel, struct err *err);
void runtime_free(struct runtime *rt);

/* Begins to listen for guests that fall silent; once, after recovery. */
int runtime_watch(struct runtime *rt, struct err *err);

/* For image_remove(): arg is the struct runtime. */
bool runtime_image_in_use(void *arg, const char *image_id);

#endif
