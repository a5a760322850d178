/*
 * host_agent - how aspis-agent is started as a pod's supervisor on the host: its command line and
 * its descriptors, which sandbox/host.c makes and agent/host.c reads.
 *
 *     aspis-agent --host RUN_DIR --state DIR --cgroup PATH [--join DIR]... [--netns FILE]
 *                 [--host-net] [--host-ipc] [--host-uts]
 *
 * RUN_DIR is the pod's run directory and tells whose agent it is. `--state` takes what containers
 * write, `--cgroup` is the pod's group below each hierarchy, `--join` a group's directory that the
 * agent enters. Listening sockets are HOST_FD_CHANNEL and the following, in the order of enum
 * link_channel. The agent's program is executed through HOST_FD_PROGRAM, a mount of that one file
 * which is read-only and in no namespace: no container can write to the host's file through
 * /proc/<pid>/exe (as CVE-2019-5736 did).
 */
#ifndef ASPIS_PROTO_HOST_AGENT_H
#define ASPIS_PROTO_HOST_AGENT_H

/* Where things are in the agent's mount namespace, which is its own: as in a guest. The daemon
 * attaches images and volumes there. */
#define HOST_DIR_IMAGES "/run/aspis/images"               /* /<serial> */
#define HOST_DIR_VOLUMES "/run/aspis/containers/.volumes" /* /<container>/<id> */

#define HOST_FD_CHANNEL 3
#define HOST_FD_PROGRAM 6
#define HOST_AGENT_NAME "aspis-agent" /* argv[0] and comm */

#endif
