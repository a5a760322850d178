#include "cri/seccomp_default.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/limits.h"

/* Calls of a family, separated by spaces. Names that this architecture or libseccomp lacks do no
 * harm: another one of a profile's architectures may have them. */
static const char *const everyone[] = {
    /* memory */
    "brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock "
    "munlockall membarrier memfd_create memfd_secret remap_file_pages pkey_alloc pkey_free "
    "pkey_mprotect map_shadow_stack process_mrelease",
    /* opening and closing files */
    "open openat openat2 creat close close_range access faccessat faccessat2 dup dup2 dup3 fcntl "
    "fcntl64 flock name_to_handle_at ioctl",
    /* reading and writing */
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek "
    "readahead sendfile sendfile64 splice tee vmsplice copy_file_range sync syncfs fsync fdatasync "
    "sync_file_range fadvise64 fadvise64_64 fallocate truncate truncate64 ftruncate ftruncate64",
    /* what files are */
    "stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs "
    "fstatfs64 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown "
    "lchown32 utime utimes futimesat utimensat utimensat_time64 umask cachestat",
    "getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr "
    "removexattr lremovexattr fremovexattr",
    /* directories and names */
    "getcwd chdir fchdir getdents getdents64 mkdir mkdirat rmdir mknod mknodat link linkat symlink "
    "symlinkat readlink readlinkat rename renameat renameat2 unlink unlinkat",
    /* waiting for descriptors */
    "poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 "
    "epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 "
    "signalfd signalfd4 inotify_init inotify_init1 inotify_add_watch inotify_rm_watch "
    "fanotify_mark "
    "pipe pipe2",
    /* asynchronous I/O of the old kind; io_uring takes work past this filter and is not here */
    "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    /* sockets; socket() itself is below */
    "socketcall socketpair bind listen accept accept4 connect shutdown getsockname getpeername "
    "getsockopt setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg "
    "recvmmsg_time64",
    /* System V and POSIX queues, semaphores, shared memory */
    "ipc msgget msgsnd msgrcv msgctl semget semop semctl semtimedop semtimedop_time64 shmget shmat "
    "shmdt shmctl mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64 "
    "mq_timedreceive mq_timedreceive_time64",
    /* processes; clone is below */
    "fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid "
    "getpgrp setpgid getsid setsid set_tid_address prctl seccomp restart_syscall rseq "
    "set_thread_area get_thread_area pidfd_open pidfd_send_signal uname sysinfo times getcpu",
    /* locks between threads */
    "futex futex_time64 futex_wait futex_waitv futex_wake futex_requeue set_robust_list "
    "get_robust_list",
    /* signals */
    "kill tkill tgkill rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn "
    "rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack "
    "sigprocmask "
    "sigreturn pause",
    /* who one is: the kernel asks for the capability itself */
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 "
    "getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid "
    "setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid "
    "setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset",
    /* limits and scheduling */
    "getrlimit ugetrlimit setrlimit prlimit64 getrusage getpriority setpriority ioprio_get "
    "ioprio_set sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr "
    "sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max "
    "sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64",
    /* time; setting it is below */
    "time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 "
    "clock_nanosleep clock_nanosleep_time64 nanosleep alarm getitimer setitimer adjtimex "
    "clock_adjtime clock_adjtime64 timer_create timer_delete timer_getoverrun timer_gettime "
    "timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime "
    "timerfd_gettime64 timerfd_settime timerfd_settime64 getrandom",
    /* a process's own sandbox */
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    /* looking into processes: the kernel asks for the same user or CAP_SYS_PTRACE itself */
    "ptrace process_vm_readv process_vm_writev",
    /* of single architectures */
    "arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint "
    "cacheflush set_tls swapcontext riscv_flush_icache s390_pci_mmio_read s390_pci_mmio_write "
    "s390_runtime_instr",
};

#define CAP(name) (UINT64_C(1) << CAP_##name)

/* Allowed for who holds one of the capabilities. */
static const struct {
    uint64_t any;
    const char *names;
} with_caps[] = {
    {CAP(DAC_READ_SEARCH), "open_by_handle_at"},
    {CAP(SYS_ADMIN), "mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig "
                     "fsmount fspick setns unshare clone clone3 sethostname setdomainname quotactl "
                     "quotactl_fd fanotify_init lookup_dcookie"},
    {CAP(SYS_ADMIN) | CAP(BPF), "bpf"},
    {CAP(SYS_ADMIN) | CAP(PERFMON), "perf_event_open"},
    {CAP(SYS_ADMIN) | CAP(SYSLOG), "syslog"},
    {CAP(SYS_BOOT), "reboot"},
    {CAP(SYS_CHROOT), "chroot"},
    {CAP(SYS_MODULE), "init_module finit_module delete_module"},
    {CAP(SYS_NICE), "get_mempolicy set_mempolicy set_mempolicy_home_node mbind"},
    {CAP(SYS_PACCT), "acct"},
    {CAP(SYS_PTRACE), "kcmp pidfd_getfd process_madvise"},
    {CAP(SYS_RAWIO), "iopl ioperm"},
    {CAP(SYS_TIME), "settimeofday stime clock_settime clock_settime64"},
    {CAP(SYS_TTY_CONFIG), "vhangup"},
};

/* CLONE_NEWTIME is missing: clone takes those bits for the exit signal. */
#define NEW_NAMESPACES                                                                             \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |  \
     CLONE_NEWNET)

static int allow(struct seccomp_profile *p, const char *names, struct err *err)
{
    while (*names != '\0') {
        char name[64];
        size_t len = strcspn(names, " ");
        memcpy(name, names, len);
        name[len] = '\0';
        names += len;
        names += strspn(names, " ");
        if (seccomp_profile_add(p, name, SCMP_ACT_ALLOW, NULL, 0, err) < 0)
            return -1;
    }
    return 0;
}

static int allow_when(struct seccomp_profile *p, const char *name, struct seccomp_arg arg,
                      struct err *err)
{
    return seccomp_profile_add(p, name, SCMP_ACT_ALLOW, &arg, 1, err);
}

/* Linux and its variants, and asking which one it is; not those that switch off address space
 * layout randomisation. */
static int allow_personalities(struct seccomp_profile *p, struct err *err)
{
    static const uint64_t harmless[] = {0x0, 0x8, 0x20000, 0x20008, 0xffffffff};
    for (size_t i = 0; i < ARRAY_LEN(harmless); i++) {
        struct seccomp_arg arg = {.op = SCMP_CMP_EQ, .value = harmless[i]};
        if (allow_when(p, "personality", arg, err) < 0)
            return -1;
    }
    return 0;
}

static int allow_clone(struct seccomp_profile *p, const struct seccomp_facts *facts,
                       struct err *err)
{
    if ((facts->caps & CAP(SYS_ADMIN)) != 0)
        return 0; /* allowed with all flags */
    bool s390 = seccomp_arch_native() == SCMP_ARCH_S390X || seccomp_arch_native() == SCMP_ARCH_S390;
    struct seccomp_arg arg = {
        .index = s390 ? 1 : 0, .op = SCMP_CMP_MASKED_EQ, .value = NEW_NAMESPACES};
    return allow_when(p, "clone", arg, err) < 0
               ? -1
               : seccomp_profile_add(p, "clone3", SCMP_ACT_ERRNO(ENOSYS), NULL, 0, err);
}

static int fill(const struct seccomp_facts *facts, struct seccomp_profile *p, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(everyone); i++) {
        if (allow(p, everyone[i], err) < 0)
            return -1;
    }
    for (size_t i = 0; i < ARRAY_LEN(with_caps); i++) {
        if ((facts->caps & with_caps[i].any) != 0 && allow(p, with_caps[i].names, err) < 0)
            return -1;
    }
    /* vsock would reach the hypervisor's side from inside the pod */
    struct seccomp_arg vsock = {.op = SCMP_CMP_NE, .value = AF_VSOCK};
    if (allow_when(p, "socket", vsock, err) < 0 || allow_personalities(p, err) < 0)
        return -1;
    return allow_clone(p, facts, err);
}

int seccomp_default_make(const struct seccomp_facts *facts, struct seccomp_profile *p,
                         struct err *err)
{
    static const uint32_t archs[] = {SCMP_ARCH_X86_64,  SCMP_ARCH_X86, SCMP_ARCH_X32,
                                     SCMP_ARCH_AARCH64, SCMP_ARCH_ARM, SCMP_ARCH_S390X,
                                     SCMP_ARCH_S390};
    *p = (struct seccomp_profile){.default_action = SCMP_ACT_ERRNO(EPERM)};
    for (size_t i = 0; i < ARRAY_LEN(archs); i++)
        seccomp_profile_add_arch(p, archs[i]);
    if (fill(facts, p, err) == 0)
        return 0;
    seccomp_profile_clear(p);
    return -1;
}
