/*
 * limits - every bound that Aspis puts on what comes from outside, in one place.
 *
 * A length, count or time that a guest, registry, CNI plugin or client can choose is checked
 * against one of these before it is believed. Sizes in bytes unless the name says otherwise.
 */
#ifndef ASPIS_BASE_LIMITS_H
#define ASPIS_BASE_LIMITS_H

#define KiB(n) ((size_t)(n)*1024U)
#define MiB(n) ((size_t)(n)*1024U * 1024U)
#define GiB(n) ((uint64_t)(n)*1024U * 1024U * 1024U)

/* CRI (kubelet's own receive limit is 16 MiB: shared/facts/kubelet.md 2). */
#define LIMIT_GRPC_MESSAGE MiB(16)
#define LIMIT_CALL_ARENA MiB(64)       /* unpacked request plus reply of one call */
#define LIMIT_CALLS_AT_ONCE 1024       /* concurrent CRI calls in the daemon */
#define LIMIT_EXEC_SYNC_OUTPUT MiB(15) /* stdout plus stderr in an ExecSync reply */
#define LIMIT_NAME 253                 /* sandbox/container name parts, labels' keys */
#define LIMIT_STRING KiB(256)          /* any other single string in a CRI request */
#define LIMIT_PATH 4096
#define LIMIT_MESSAGE_DEPTH 16    /* nesting of messages; CRI's deepest is 8 */
#define LIMIT_STREAM_QUEUE MiB(1) /* packed messages waiting for a slow stream reader */
#define LIMIT_STREAM_STALL_NS (10LL * 1000000000) /* no progress for so long ends a stream */
#define LIMIT_STATUS_TEXT KiB(4)   /* of an error in a gRPC status: a header, which clients bound */
#define LIMIT_CONFIG_FILE KiB(256) /* /etc/aspis/config.toml */
#define LIMIT_STATS_AT_ONCE 64     /* guests asked for their numbers at the same time */
#define LIMIT_EVENT_SUBSCRIBERS 64 /* GetContainerEvents calls at once */
#define LIMIT_EVENT_QUEUE MiB(4)   /* packed events waiting for one of them */

/* Link between daemon and agent. */
#define LIMIT_RPC_MESSAGE MiB(4)       /* ttrpc's own limit */
#define LIMIT_RPC_CALLS 128            /* unanswered calls on one link */
#define LIMIT_IO_FRAME KiB(64)         /* payload of one stdio frame */
#define LIMIT_IO_WINDOW KiB(256)       /* unacknowledged bytes per stdio stream */
#define LIMIT_IO_INPUT_WINDOW KiB(512) /* the same of stdin, where the agent says so */
#define LIMIT_AGENT_EVENTS 4096        /* exit records kept until acknowledged */
#define LIMIT_LINK_JUNK 4096           /* unasked-for frames on a channel within a second */
#define LIMIT_LINK_STALE MiB(64)       /* bytes on a connection before its preamble is answered */
#define LIMIT_AGENT_CALL_ARENA MiB(16) /* one unpacked request in the guest */
#define LIMIT_PIPE MiB(1)              /* what a pipe can hold (fs.pipe-max-size) */
#define LIMIT_AGENT_SLOW_NS INT64_C(1000000000) /* a call's steps are worth a line from then on */
#define LIMIT_DEVICE_WAIT_MS 10000              /* guest: for a disk or NIC that a call names */
#define LIMIT_SYSCTL_VALUE KiB(4)
#define LIMIT_POD_SYSCTLS 256
#define LIMIT_POD_INTERFACES 32
#define LIMIT_POD_FILE KiB(256)    /* resolv.conf, hosts */
#define LIMIT_GUEST_ERROR KiB(4)   /* of a guest's error text put into ours */
#define LIMIT_AGENT_CONTAINERS 512 /* in one guest */
#define LIMIT_IMAGE_VOLUMES 64     /* of one container */
#define LIMIT_AGENT_PROCESSES 4096 /* in one guest, ended ones not yet removed included */
#define LIMIT_CONTAINER_ID 128     /* container and exec ids */
#define LIMIT_USER_FILE MiB(4)     /* /etc/passwd or /etc/group of an image */
#define LIMIT_USER_GROUPS 1024     /* supplementary groups of one process */
#define LIMIT_CONSOLE_FILE MiB(1)
#define LIMIT_CONSOLE_TAIL 20 /* lines */

/* The userspace vsock device of one VM. */
#define LIMIT_VSOCK_CONNECTIONS 64
#define LIMIT_VSOCK_CREDIT KiB(256) /* bytes of the guest's that wait for one client */
#define LIMIT_VSOCK_STRANGERS 32    /* packets for no connection that wait for their reset */

/* The file share: FUSE on the `fs` channel. */
#define LIMIT_FS_FRAME KiB(64) /* one piece of a FUSE message */
#define LIMIT_FS_DATA KiB(128) /* of one READ or WRITE */
#define LIMIT_FS_MESSAGE (LIMIT_FS_DATA + KiB(4))
#define LIMIT_FS_XATTR KiB(64)  /* one value, or a list of names */
#define LIMIT_FS_QUEUE KiB(512) /* guest: bytes waiting for the channel */
#define LIMIT_FS_VOLUMES 512    /* mounted in one pod at a time */
#define LIMIT_FS_INODES 500000  /* that one pod's guest may know: a descriptor each */
#define LIMIT_FS_HANDLES 262144 /* open files and directories of one pod's volumes */
#define LIMIT_FS_WAITING 256    /* guest: requests of all volumes that have no answer yet */

/* Volumes that are copied into the guest: at first, and what they may grow to; a ConfigMap or
 * Secret has at most 1 MiB. */
#define LIMIT_MIRROR_FIRST MiB(1)
#define LIMIT_MIRROR_BYTES MiB(3)
#define LIMIT_MIRROR_POD MiB(8) /* all of one pod, as they were at first */
#define LIMIT_MIRROR_ENTRIES                                                                       \
    1000 /* files and directories of one; the same for names at its top                            \
          */
#define LIMIT_MIRROR_DEPTH 16
#define LIMIT_MIRROR_VOLUMES 64 /* in one pod */

/* CNI. */
#define LIMIT_CNI_OUTPUT MiB(1)
#define LIMIT_CNI_CONF MiB(1)
#define LIMIT_CNI_PLUGINS 64 /* in one list */
#define LIMIT_NETLINK_OBJECTS 4096
#define LIMIT_POD_ADDRESSES 64
#define LIMIT_POD_ROUTES 512
#define LIMIT_POD_NEIGHBOURS 512
#define LIMIT_CNI_INTERFACES 64 /* in one result */
#define LIMIT_NETINFO_TEXT MiB(1)
#define LIMIT_CNI_STDERR KiB(64)
#define LIMIT_CNI_ERROR KiB(4) /* of a plugin's own words put into our error */
#define LIMIT_CNI_CACHE MiB(4) /* one file of the result cache */
#define LIMIT_CNI_FILES 256    /* looked at in the configuration directory */
#define LIMIT_CNI_AT_ONCE 16   /* plugin chains running at the same time */

/* Images. */
#define LIMIT_MANIFEST MiB(4)
#define LIMIT_IMAGE_CONFIG MiB(8)
#define LIMIT_IMAGE_LAYERS 127
#define LIMIT_INDEX_DEPTH 3
#define LIMIT_INDEX_ENTRIES 1024
#define LIMIT_HTTP_HEADER KiB(64)
#define LIMIT_HTTP_PROGRESS KiB(1) /* the least that must come within the stall timeout */
#define LIMIT_HTTP_ERROR_BODY KiB(64)
#define LIMIT_REDIRECTS 8
#define LIMIT_LAYER_ENTRIES 2000000  /* tar members in one layer */
#define LIMIT_LAYER_UNPACKED GiB(64) /* default of a configuration key */
#define LIMIT_XATTR_BYTES KiB(64)    /* of one inode */
#define LIMIT_SYMLINK 4095
#define LIMIT_TREE_BYTES MiB(768) /* memory for the names and attributes of a layer or image */
#define LIMIT_TREE_DEPTH 512      /* directories in one another */
#define LIMIT_HOSTS_TOML KiB(256)
#define LIMIT_TOKEN_REPLY KiB(256) /* of a registry's token service */
#define LIMIT_TOKENS 256           /* of token services, kept in memory */
#define LIMIT_TOKEN_LIFE_S 3600    /* a token is not used longer, whatever its service says */
#define LIMIT_CLIENT_CERTS 16      /* for one registry host */
#define LIMIT_REGISTRY_TEXT 1024   /* of a registry's error text put into ours */
#define LIMIT_REGISTRY_HOSTS 32    /* mirrors in one hosts.toml */
#define LIMIT_REFERENCE 1024       /* an image reference */

/* TOML: configuration and hosts.toml. */
#define LIMIT_TOML MiB(1)
#define LIMIT_TOML_TABLES 1024
#define LIMIT_TOML_KEYS 4096 /* in a document; the same for array items */
#define LIMIT_TOML_DEPTH 8   /* parts of a dotted name, nested arrays */

/* Streaming: exec, attach, port-forward. */
#define LIMIT_STREAM_TOKENS 1000 /* URLs handed out and not yet used */
#define LIMIT_STREAM_TOKEN_NS (60LL * 1000000000)
#define LIMIT_STREAM_CONNECTIONS 512 /* at once, those in their HTTP request included */
#define LIMIT_STREAM_LANES 512       /* streams in one connection */
#define LIMIT_STREAM_FORWARDS 1024   /* forwarded TCP connections at once, all clients together */
#define LIMIT_STREAM_PORTS 64        /* in one port-forward request */
#define LIMIT_STREAM_LINGER_NS (900LL * 1000000000) /* for the client to read its last byte */
#define LIMIT_STREAM_OPEN_NS (30LL * 1000000000)    /* for the client to open all its streams */
#define LIMIT_ATTACH_BUFFER MiB(4)                  /* output that an attached client is behind */
#define LIMIT_SPDY_CONTROL KiB(64)
#define LIMIT_SPDY_HEADERS 64           /* in one block */
#define LIMIT_SPDY_HEADER_BYTES KiB(64) /* of one block, inflated */
#define LIMIT_AGENT_FORWARDS 512        /* guest: forwarded connections at once */
#define LIMIT_DIAL_NS (10LL * 1000000000)

/* Seccomp profiles on the host. */
#define LIMIT_SECCOMP_PROFILE MiB(1) /* of the file */
#define LIMIT_SECCOMP_RULES 4096     /* system calls of all rules together */
#define LIMIT_SECCOMP_ARCHS 64
#define LIMIT_SECCOMP_FILTERS 64 /* compiled ones that are kept */

/* A pod that was saved. */
#define LIMIT_CHECKPOINT_MANIFEST MiB(16)

/* CDI files on the host. */
#define LIMIT_CDI_FILE MiB(4)
#define LIMIT_CDI_FILES 256 /* looked at in one directory */
#define LIMIT_CDI_EDITS 512 /* devices, and what they bring of a kind */

/* QMP. */
#define LIMIT_QMP_LINE MiB(1)

/* Container log lines: kubelet and containerd cut at 16 KiB. */
#define LIMIT_LOG_LINE KiB(16)

#endif
