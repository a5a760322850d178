/*
 * cgroup_stats - what a control group (version 2) uses, read from its files.
 *
 * A file that is missing or cannot be understood leaves its numbers 0: kernels differ in what they
 * offer. Calls wait for nothing but the kernel. Threads: any; no state.
 */
#ifndef ASPIS_AGENT_CGROUP_STATS_H
#define ASPIS_AGENT_CGROUP_STATS_H

#include "proto/agent.pb-c.h"

#define CGROUP_STATS_DEVICES 16

/* A message and what it points to. Not to be moved once filled. */
struct cgroup_stats {
    Aspis__Agent__V1__GroupStats msg;
    Aspis__Agent__V1__Pressure pressure[3]; /* cpu, memory, io */
    Aspis__Agent__V1__PressureLine lines[3][2];
    Aspis__Agent__V1__DeviceIo devices[CGROUP_STATS_DEVICES];
    Aspis__Agent__V1__DeviceIo *device_list[CGROUP_STATS_DEVICES];
};

/* Everything but the container's id and its layer. dir: the group's directory. */
void cgroup_stats_read(struct cgroup_stats *s, const char *dir);
/* The same of version 1: dir is the group's directory in a hierarchy, the caller's to free. */
void cgroup_stats_read_v1(struct cgroup_stats *s, const char *id,
                          char *(*dir)(const char *hierarchy, const char *id));
/* How many processes are in the group and those below it. */
uint64_t cgroup_stats_count(const char *dir);
/* Adds what needs a look at each process: descriptors, sockets and the first one's limits. Bounded:
 * of a group with very many processes or descriptors the numbers are those of the first. proc:
 * "/proc"; init: the container's first process. */
void cgroup_stats_add_processes(struct cgroup_stats *s, const char *dir, const char *proc,
                                int64_t init);

/* /proc/net/dev into rows of n at most, loopback left out; names are in the text, which is changed.
 * Returns how many. */
size_t cgroup_stats_links(char *text, Aspis__Agent__V1__LinkStats *rows, size_t n);

#endif
