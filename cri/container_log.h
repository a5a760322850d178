/*
 * container_log - a container's output as a CRI log file: every byte once, in order, across daemon
 * restarts.
 *
 * Records are "<RFC3339Nano> <stdout|stderr> <F|P> <bytes>\n" (kubelet's
 * pkg/kubelet/kuberuntime/logs); lines over 16 KiB are cut into P records. Exactly-once works by a
 * small state file mapped into memory: after each write to the log it takes, in one step, the log's
 * size and the stream offsets that the log now holds. A new daemon cuts the log back to that size
 * and asks the agent to go on from those offsets, so a kill between the two leaves neither gap nor
 * double line. Bytes are acknowledged to the agent only after that, so a full disk stops the
 * container's output instead of losing it; writing is tried again every second.
 *
 * Threads: data comes on the io loop; the other calls from any thread. Memory: the log owns its
 * streams; log_close() ends them.
 */
#ifndef ASPIS_CRI_CONTAINER_LOG_H
#define ASPIS_CRI_CONTAINER_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"
#include "sandbox/link.h"

struct container_log;

struct container_log_options {
    const char *path;       /* "" or NULL: output is read and thrown away */
    const char *state_path; /* made if missing */
    const char *container_id;
    struct loop *io;
    /* Once, on the io loop: every stream has ended and all of it is in the file. */
    void (*on_done)(void *arg);
    /* Each byte and each end of a stream (0 stdout, 1 stderr) as it comes; mostly on the io loop,
     * must not block. May be NULL. */
    void (*on_output)(void *arg, unsigned stream, const void *data, size_t len);
    void (*on_output_end)(void *arg, unsigned stream);
    void *arg;
};

struct container_log *container_log_open(const struct container_log_options *o, struct err *err);
/* Starts reading the streams (0: none of that kind). */
int container_log_attach(struct container_log *l, struct link *link, uint32_t stdout_id,
                         uint32_t stderr_id, struct err *err);
/* What the file has of stdout and stderr. */
void container_log_offsets(struct container_log *l, uint64_t out[2]);
/* Makes the state of a log that does not exist yet, whose streams begin there. */
int container_log_begin(const char *state_path, const uint64_t offsets[2], struct err *err);
/* The file was renamed: go on in a new one at the same path. No record is lost or split. */
int container_log_reopen(struct container_log *l, struct err *err);
/* Writes what is still held back as an unfinished line: for a machine that died. */
void container_log_flush(struct container_log *l);
void container_log_close(struct container_log *l); /* NULL is fine */

#endif
