/*
 * config - the daemon's configuration file: a few keys in TOML, each with a default.
 *
 * deploy/config.toml is the commented sample and holds exactly the defaults (a test compares them).
 * A key that is not known, has the wrong type or is out of range is an error that names file, line
 * and key; nothing is guessed. Without a file all defaults apply.
 *
 * Memory: the struct owns every string it points to; config_free(). Threads: constant once loaded.
 */
#ifndef ASPIS_CRI_CONFIG_H
#define ASPIS_CRI_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/image/image.h"
#include "netplugin/cni.h"
#include "sandbox/machine.h"

#define CONFIG_DEFAULT_PATH "/etc/aspis/config.toml"
#define CONFIG_DEFAULT_SOCKET "/run/aspis/aspis.sock"

enum log_target { LOG_TARGET_AUTO, LOG_TARGET_JOURNAL, LOG_TARGET_STDERR };

struct config {
    const char *file; /* where it came from; NULL: defaults only */
    const char *socket;
    int log_level;  /* enum log_level */
    int log_target; /* enum log_target; AUTO: the journal when stderr is connected to it */
    const char *run_root, *state_root;
    int accel, transport;     /* of machine, as the parser fills them */
    int privileged_pods;      /* enum backend */
    int64_t guest_silence_ns; /* 0: guests may be silent for ever */
    bool metrics;             /* serve them at <run_root>/metrics.sock */
    struct machine_config machine;
    uint32_t spares; /* of machine: VMs to have ready */
    struct image_options images;
    struct cni_options cni;
    struct {
        const char *address;
        uint32_t port;
        const char *certificate, *key; /* PEM files; "": plain HTTP */
        int64_t idle_timeout_ns;
    } streaming;

    struct strv strings;  /* storage of the strings above */
    struct strv bin_dirs; /* storage of cni.bin_dirs */
    struct strv pinned;   /* storage of images.pinned */
};

/* path NULL: CONFIG_DEFAULT_PATH if it exists. */
struct config *config_load(const char *path, struct err *err);
/* `name` is the file's name for errors. */
struct config *config_parse(const char *text, size_t len, const char *name, struct err *err);
void config_free(struct config *c);

DEFINE_AUTO(struct config *, config_free);
#define auto_config __attribute__((cleanup(config_freep)))

/* Every key with its value, "section.key = value" per line, in the file's order; the caller's. For
 * tests and for logging at debug level: nothing in it is secret. */
char *config_text(const struct config *c);

#endif
