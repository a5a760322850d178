/*
 * user - who a container's process runs as: names resolved against the container's own /etc/passwd
 * and /etc/group.
 *
 * Both files come from an image and are hostile: they are opened below the root so that no link
 * leads out of it, read up to LIMIT_USER_FILE, and lines that make no sense are skipped. Rules (as
 * container runtimes have them): "" is root; a number needs no entry and then has group 0; an
 * unknown name is an error; the part after ':' and then `group` override the entry's group.
 * Supplementary groups are the primary group, then (unless strict) the groups in /etc/group that
 * list the user, then the given ones, each once.
 *
 * No state; any thread.
 */
#ifndef ASPIS_AGENT_USER_H
#define ASPIS_AGENT_USER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/limits.h"

struct user_request {
    const char *user; /* "", "1000", "nobody", "nobody:nogroup", "1000:1000" */
    bool has_group;
    uint32_t group;
    const uint32_t *groups;
    size_t n_groups;
    bool strict;
};

struct user_ids {
    uint32_t uid;
    uint32_t gid;
    uint32_t groups[LIMIT_USER_GROUPS];
    size_t n_groups;
    char home[256]; /* from the passwd entry; "/" without one */
};

/* passwd and group: contents of the two files, lengths without a NUL; NULL when there is none. */
int user_lookup(const char *passwd, size_t passwd_len, const char *group, size_t group_len,
                const struct user_request *req, struct user_ids *out, struct err *err);

/* The same with the files below rootfd. A file that is missing is an empty one. */
int user_resolve(int rootfd, const struct user_request *req, struct user_ids *out, struct err *err);

#endif
