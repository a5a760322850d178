/*
 * share_fixture - the file server's program, spoken to as a guest would: one volume, one
 * connection, servers one after the other.
 */
#ifndef ASPIS_TEST_SHARE_FIXTURE_H
#define ASPIS_TEST_SHARE_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/spawn.h"
#include "proto/frame.h"

struct guest {
    struct spawn_proc server;
    int fd;
    int state; /* what servers leave to each other; -1: nothing */
    struct frame_parser in;
    uint32_t volume; /* the server looks for it at /tmp/<volume> */
    char dir[32];
    uint64_t unique;
    char reply[LIMIT_FS_MESSAGE];
    size_t reply_len;
};

/* The server is $ASPIS_SHARE. */
void start(struct guest *g);
/* state: taken. failpoints: as in $ASPIS_FAILPOINTS, or NULL. */
void start_with(struct guest *g, int state, const char *failpoints);
/* Another server in place of one that ended. */
void start_again(struct guest *g, const char *failpoints);
void stop(struct guest *g);

/* False when the server hung up. */
bool more(struct guest *g);
void ask(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len);
/* The same with the number of an earlier request. */
void ask_as(struct guest *g, uint64_t unique, uint32_t opcode, uint64_t node, const void *body,
            size_t len);
/* The answer's error, 0 for success; 1 when the server hung up. */
int hear(struct guest *g);
int call(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len);
void init(struct guest *g);
uint64_t node_of(struct guest *g, const char *name);
uint64_t node_in(struct guest *g, uint64_t dir, const char *name);
uint64_t open_node(struct guest *g, uint32_t opcode, uint64_t node, uint32_t flags);
void make_file(struct guest *g, const char *name, const char *text);

#endif
