/*
 * aspis-fork.so - preloaded into a QEMU that is to be copied by fork(): its guest's memory, its
 * devices' state and, what no file can hold, the code that it has translated.
 *
 * The daemon starts a VM, warms it up, stops it and hangs up on all of its sockets. The first
 * request on the descriptor that ASPIS_FORK_FD names parks QEMU for good: a signal brings every
 * thread into a handler, which notes where it was and waits. Each request then has the main thread,
 * in its handler, clone the process. In the child it replaces what must not be shared, waits for
 * the daemon to put the process where it belongs, makes the other threads again with the identities
 * that glibc knows them by (thread pointer, tid word, robust list, rseq) and, in a process
 * namespace of the child's own, with the ids that they had: a mutex that somebody held knows its
 * owner by that. (The main thread's id is 1 there, and glibc believes that from the beginning.) The
 * process locks itself in as jail_main.c does, and all threads return from their handlers: to QEMU
 * nothing has happened but system calls that were interrupted.
 *
 * What is replaced: the descriptors that the request names, and every other one of the same file;
 * event counters and epoll sets, by new ones of the same state; memory that is mapped shared from
 * memory files which QEMU made. QEMU's own system call filter would not let it clone: it is kept,
 * and loaded by each child before any thread goes on. The jail's /proc goes away.
 *
 * Relies on: glibc's struct pthread being found by the thread pointer, which clone(CLONE_SETTLS)
 * takes; PR_GET_TID_ADDRESS; a QEMU that uses no timers, AIO contexts or rings of the kernel's.
 * Where one of them is met, the request is refused. Nothing here allocates once threads are parked.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/rseq.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox/qemu_fork.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_THREADS 64
#define MAX_FDS 256
#define MAX_ENTRIES 64
#define MAX_SHARED 8
#define STACK (16U << 10)
#define COPY_PID 1 /* in its own process namespace */
#define CAP_HEADER _LINUX_CAPABILITY_VERSION_3

struct thread {
    pid_t tid;
    char comm[16];
    void *tp;      /* thread pointer */
    int *tid_word; /* in glibc's struct pthread */
    void *robust;
    size_t robust_size;
    ucontext_t at;
};

struct entry { /* of an epoll set */
    int set, fd;
    struct epoll_event event;
};

enum kind { OTHER, MEMORY, EVENTFD, EPOLL };

struct descriptor {
    int fd;
    enum kind kind;
    dev_t dev;
    ino_t ino;
    int flags, fd_flags;
    uint64_t count;
};

struct shared { /* memory that QEMU maps shared from a file that it made */
    void *at;
    size_t size;
    off_t offset;
    ino_t ino;
};

static int control = -1;
static pid_t helper;
static struct thread threads[MAX_THREADS];
static unsigned n_threads;
static _Alignas(16) char stacks[MAX_THREADS][STACK];
static struct descriptor descriptors[MAX_FDS];
static unsigned n_descriptors;
static struct entry entries[MAX_ENTRIES];
static unsigned n_entries;
static struct shared shared[MAX_SHARED];
static unsigned n_shared;
static struct sock_filter filter[4096];
static struct sock_fprog program = {.filter = filter};
static bool active; /* in the children too */
static char *name;  /* the value of -name among the arguments */
static size_t name_size;
static unsigned long offload;
static bool offload_known;

static atomic_uint parked;  /* threads in their handlers; a futex */
static atomic_uint command; /* what the main thread waits for; a futex */
static atomic_uint answer;  /* counts the main thread's answers; a futex */
/* in the child */
static atomic_uint arrived;  /* threads that have what they had and may do no more; a futex */
static atomic_uint released; /* they may go on; a futex */
static atomic_int failed;    /* errno of one that could not */
static struct fork_request request;
static int request_fds[FORK_MAX_FDS];
static unsigned request_n_fds;
static long fork_pid;
static int fork_pidfd;
static bool quiesced;

static void futex_wait(atomic_uint *word, unsigned value)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* --- what QEMU would otherwise do --- */

static int park_signal(void)
{
    return SIGRTMAX - 3;
}

/* QEMU blocks all signals in most of its threads. */
static const sigset_t *let_through(int how, const sigset_t *set, sigset_t *copy)
{
    if (!active || set == NULL || how == SIG_UNBLOCK)
        return set;
    *copy = *set;
    (void)sigdelset(copy, park_signal());
    return copy;
}

EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    set = let_through(how, set, &copy);
    return syscall(SYS_rt_sigprocmask, how, set, old, _NSIG / 8) == 0 ? 0 : errno;
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t copy;
    set = let_through(how, set, &copy);
    return (int)syscall(SYS_rt_sigprocmask, how, set, old, _NSIG / 8);
}

/* As in qemu_pages.c, and the children need all of the memory. */
EXPORT int madvise(void *addr, size_t len, int advice)
{
    if (advice == MADV_DONTFORK || (advice == MADV_HUGEPAGE && (len < (32UL << 20) || active)))
        return 0;
    return (int)syscall(SYS_madvise, addr, len, advice);
}

/* Kept for the children. */
EXPORT int seccomp_load(const scmp_filter_ctx ctx)
{
    int fd = (int)syscall(SYS_memfd_create, "filter", MFD_CLOEXEC);
    int ret = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);
    ssize_t n = ret == 0 ? pread(fd, filter, sizeof(filter), 0) : -1;
    (void)close(fd);
    if (n <= 0 || (size_t)n == sizeof(filter))
        return -EINVAL;
    program.len = (unsigned short)((size_t)n / sizeof(filter[0]));
    if (active)
        return 0;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0
               ? 0
               : -errno;
}

/* No rings: the kernel's side of one cannot be copied. */
int io_uring_queue_init(unsigned n, void *ring, unsigned flags);
EXPORT int io_uring_queue_init(unsigned n, void *ring, unsigned flags)
{
    (void)n;
    (void)ring;
    (void)flags;
    return -ENOSYS;
}

/* The library's generator would go on alike in every child. */
int gnutls_rnd(int level, void *data, size_t size);
EXPORT int gnutls_rnd(int level, void *data, size_t size)
{
    (void)level;
    for (size_t n = 0; n < size;) {
        ssize_t got = getrandom((char *)data + n, size - n, 0);
        if (got < 0 && errno != EINTR)
            return -1;
        n += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

EXPORT int ioctl(int fd, unsigned long op, ...)
{
    va_list ap;
    va_start(ap, op);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    if (op == TUNSETOFFLOAD) {
        offload = (unsigned long)arg;
        offload_known = true;
    }
    return (int)syscall(SYS_ioctl, fd, op, arg);
}

/* --- the child --- */

static _Noreturn void give_up(int fd, const char *what)
{
    struct fork_word w = {.error = errno != 0 ? errno : EINVAL};
    (void)strncpy(w.what, what, sizeof(w.what) - 1);
    (void)send(fd, &w, sizeof(w), MSG_NOSIGNAL);
    _exit(126);
}

/* What is the same file as `old`. */
static const char *replace_file(int old, int fresh)
{
    struct stat st;
    int vnet;
    if (fstat(old, &st) < 0)
        return "look at a descriptor";
    if (ioctl(old, TUNGETVNETHDRSZ, &vnet) == 0 &&
        (ioctl(fresh, TUNSETVNETHDRSZ, &vnet) < 0 ||
         (offload_known && ioctl(fresh, TUNSETOFFLOAD, offload) < 0)))
        return "set up the tap";
    for (unsigned i = 0; i < n_descriptors; i++) {
        const struct descriptor *d = &descriptors[i];
        if (d->dev != st.st_dev || d->ino != st.st_ino)
            continue;
        if (dup3(fresh, d->fd, d->fd_flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0 ||
            (d->flags & O_NONBLOCK && fcntl(d->fd, F_SETFL, d->flags & O_NONBLOCK) < 0))
            return "replace a descriptor";
    }
    return NULL;
}

/* As QEMU has nothing in it that counts: such memory is for what is plugged in later. */
static const char *replace_shared(const struct shared *s)
{
    int fd = (int)syscall(SYS_memfd_create, "ram", MFD_CLOEXEC);
    struct stat st = {0};
    for (unsigned i = 0; i < n_descriptors; i++) {
        const struct descriptor *d = &descriptors[i];
        if (d->kind == MEMORY && d->ino == s->ino &&
            (fstat(d->fd, &st) < 0 || dup3(fd, d->fd, O_CLOEXEC) < 0))
            return "replace shared memory";
    }
    if (fd < 0 || st.st_size == 0 || ftruncate(fd, st.st_size) < 0 ||
        syscall(SYS_mmap, s->at, s->size, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, s->offset) < 0)
        return "make new shared memory";
    (void)close(fd);
    return NULL;
}

static const char *replace_anonymous(const struct descriptor *d)
{
    int fd = d->kind == EVENTFD ? eventfd(0, EFD_CLOEXEC) : epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0 || dup3(fd, d->fd, d->fd_flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0 ||
        fcntl(d->fd, F_SETFL, d->flags & O_NONBLOCK) < 0 ||
        (d->kind == EVENTFD && d->count > 0 &&
         write(d->fd, &d->count, sizeof(d->count)) != sizeof(d->count)))
        return "make a new event counter";
    (void)close(fd);
    return NULL;
}

static const char *replace_all(void)
{
    const char *bad = NULL;
    const int *fd = request_fds;
    for (unsigned i = 0; i < request.n_targets && bad == NULL; i++) {
        int fresh = *fd++;
        bad = replace_file(request.targets[i] >= 0 ? request.targets[i] : *fd++, fresh);
    }
    for (unsigned i = 0; i < n_shared && bad == NULL; i++)
        bad = replace_shared(&shared[i]);
    for (unsigned i = 0; i < n_descriptors && bad == NULL; i++) {
        if (descriptors[i].kind >= EVENTFD)
            bad = replace_anonymous(&descriptors[i]);
    }
    for (unsigned i = 0; i < n_entries && bad == NULL; i++) {
        if (epoll_ctl(entries[i].set, EPOLL_CTL_ADD, entries[i].fd, &entries[i].event) < 0)
            bad = "fill an epoll set";
    }
    for (unsigned i = 0; i + 1 < request_n_fds; i++)
        (void)close(request_fds[i]);
    return bad;
}

/* Of the process, while it has but one thread. */
static const char *leave_host(void)
{
    if (setsid() < 0)
        return "start session";
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWNET) < 0)
        return "make namespaces";
    if (sethostname("jail", 4) < 0)
        return "set hostname";
    if (umount2("/proc", MNT_DETACH) < 0)
        return "take /proc away";
    (void)umask(077);
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
        if (prctl(PR_CAPBSET_DROP, cap) < 0)
            return "empty the bounding set";
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return NULL;
}

/* Of the calling thread; raw, since glibc would have every thread do it, and they are not in a
 * state to. Ids are chosen with a capability, so this comes after they have been made. */
static const char *lock_in(void)
{
    uint32_t uid = request.uid;
    if (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, uid, uid, uid) < 0 ||
        syscall(SYS_setresuid, uid, uid, uid) < 0)
        return "become the pod's user";
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    if (syscall(SYS_capset, &head, sets) < 0)
        return "drop capabilities";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return "set no_new_privs";
    return NULL;
}

/* On a temporary stack, as the thread that it stands for. */
static void thread_again(void *arg)
{
    struct thread *t = arg;
    (void)syscall(SYS_set_robust_list, t->robust, t->robust_size);
    (void)prctl(PR_SET_NAME, t->comm);
    if (__rseq_size > 0)
        (void)syscall(SYS_rseq, (char *)t->tp + __rseq_offset, 32, 0, RSEQ_SIG);
    if (request.uid != 0 && lock_in() != NULL)
        atomic_store(&failed, errno != 0 ? errno : EINVAL);
    (void)atomic_fetch_add(&arrived, 1);
    futex_wake(&arrived);
    while (atomic_load(&released) == 0)
        futex_wait(&released, 0);
    (void)setcontext(&t->at);
    _exit(125);
}

/* clone3(2) that returns to its caller only; glibc has no such function. fn must not return. */
static long clone3_run(const struct clone_args *args, void (*fn)(void *), void *arg)
{
    long ret;
#if defined(__x86_64__)
    register void (*f)(void *) __asm__("r12") = fn;
    register void *a __asm__("r13") = arg;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(ret)
                     : "a"(SYS_clone3), "D"(args), "S"(sizeof(*args)), "r"(f), "r"(a)
                     : "rcx", "r11", "memory", "cc");
#elif defined(__aarch64__)
    register void (*f)(void *) __asm__("x19") = fn;
    register void *a __asm__("x20") = arg;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof(*args);
    register long x8 __asm__("x8") = SYS_clone3;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x20\n\t"
                     "blr x19\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x8), "r"(f), "r"(a)
                     : "x30", "memory", "cc");
    ret = x0;
#else
// cppcheck-suppress preprocessorErrorDirective
#error "how does a thread of this architecture begin?"
#endif
    if (ret < 0)
        errno = (int)-ret;
    return ret < 0 ? -1 : ret;
}

static const char *make_threads(void)
{
    for (unsigned i = 0; i < n_threads; i++) {
        struct thread *t = &threads[i];
        if (t->tid == threads[0].tid)
            continue;
        struct clone_args args = {
            .flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                     CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID,
            .parent_tid = (uint64_t)(uintptr_t)t->tid_word,
            .child_tid = (uint64_t)(uintptr_t)t->tid_word,
            .tls = (uint64_t)(uintptr_t)t->tp,
            .stack = (uint64_t)(uintptr_t)stacks[i],
            .stack_size = STACK,
            .set_tid = (uint64_t)(uintptr_t)&t->tid,
            .set_tid_size = request.uid != 0 ? 1 : 0,
        };
        if (clone3_run(&args, thread_again, t) < 0)
            return "make a thread";
    }
    for (unsigned n; (n = atomic_load(&arrived)) < n_threads - 1;)
        futex_wait(&arrived, n);
    errno = atomic_load(&failed);
    return errno == 0 ? NULL : "lock a thread in";
}

/* What is in force for all threads before any of them goes on. */
static const char *confine(void)
{
    const char *bad = request.uid != 0 ? leave_host() : NULL;
    if (bad == NULL)
        bad = make_threads();
    if (bad == NULL && request.uid != 0)
        bad = lock_in();
    if (bad != NULL)
        return bad;
    /* as after execve: the daemon tells its VMs by their /proc directories' owners */
    if (request.uid != 0 && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
        return "set dumpable";
    if (program.len > 0 &&
        (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0))
        return "load the filter";
    return NULL;
}

static void be_child(void)
{
    int word = request_fds[request_n_fds - 1];
    char go;
    errno = 0;
    (void)close(control);
    control = -1;
    if (name != NULL && strlen(request.name) + 1 == name_size)
        memcpy(name, request.name, name_size);
    const char *bad = replace_all();
    if (bad != NULL)
        give_up(word, bad);
    if (read(word, &go, 1) != 1)
        _exit(126);
    if ((bad = confine()) != NULL)
        give_up(word, bad);
    atomic_store(&released, 1);
    futex_wake(&released);
    struct fork_word ok = {.error = 0};
    (void)send(word, &ok, sizeof(ok), MSG_NOSIGNAL);
    (void)close(word);
}

/* --- the zygote --- */

/* The main thread, in its handler. True in the child. */
static bool serve(void)
{
    for (unsigned seen = 0;;) {
        unsigned now;
        while ((now = atomic_load(&command)) == seen)
            futex_wait(&command, seen);
        seen = now;
        struct clone_args args = {
            .flags = CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID |
                     (request.uid != 0 ? CLONE_PARENT | CLONE_NEWPID : 0),
            .pidfd = (uint64_t)(uintptr_t)&fork_pidfd,
            .child_tid = (uint64_t)(uintptr_t)threads[0].tid_word,
            .exit_signal = request.uid != 0 ? 0 : SIGCHLD,
        };
        long pid = syscall(SYS_clone3, &args, sizeof(args));
        if (pid == 0)
            return true;
        fork_pid = pid < 0 ? -errno : pid;
        (void)atomic_fetch_add(&answer, 1);
        futex_wake(&answer);
    }
}

static struct thread *this_thread(void)
{
    pid_t tid = (pid_t)syscall(SYS_gettid);
    for (unsigned i = 0; i < n_threads; i++) {
        if (threads[i].tid == tid)
            return &threads[i];
    }
    return NULL;
}

static void on_park(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)info;
    (void)context;
    int saved = errno;
    struct thread *const t = this_thread();
    if (t == NULL)
        return;
    volatile bool back = false;
    t->tp = __builtin_thread_pointer();
    (void)prctl(PR_GET_TID_ADDRESS, &t->tid_word, 0, 0, 0);
    (void)syscall(SYS_get_robust_list, 0, &t->robust, &t->robust_size);
    // cppcheck-suppress getcontextCalled; nothing else says where a thread was
    (void)getcontext(&t->at);
    if (!back) {
        back = true;
        (void)atomic_fetch_add(&parked, 1);
        futex_wake(&parked);
        if (t == &threads[0]) {
            (void)serve();
            be_child();
        } else {
            for (;;)
                futex_wait(&released, 0); /* never, in the zygote */
        }
    }
    errno = saved;
}

static int read_comm(pid_t tid, char comm[16])
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/comm", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, comm, 16) : -1;
    if (fd >= 0)
        (void)close(fd);
    if (n > 0)
        comm[n - 1] = '\0'; /* for the newline */
    return n > 0 ? 0 : -1;
}

static int list_threads(void)
{
    DIR *d = opendir("/proc/self/task");
    struct dirent *e;
    n_threads = 1;
    threads[0].tid = getpid();
    while (d != NULL && (e = readdir(d)) != NULL) {
        pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);
        if (tid <= 0 || tid == helper || tid == threads[0].tid)
            continue;
        if (n_threads == MAX_THREADS)
            break;
        threads[n_threads].tid = tid;
        if (read_comm(tid, threads[n_threads].comm) < 0)
            break;
        n_threads++;
    }
    int ret = d == NULL || e != NULL ? -1 : 0;
    if (d != NULL)
        (void)closedir(d);
    return ret;
}

static int describe(struct descriptor *d)
{
    char path[64];
    char target[64] = "";
    char line[256];
    struct stat st;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", d->fd);
    ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n < 0 || fstat(d->fd, &st) < 0)
        return -1;
    d->dev = st.st_dev;
    d->ino = st.st_ino;
    d->flags = fcntl(d->fd, F_GETFL);
    d->fd_flags = fcntl(d->fd, F_GETFD);
    d->kind = OTHER;
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof(peer);
    if (S_ISSOCK(st.st_mode) && getpeername(d->fd, (struct sockaddr *)&peer, &peer_size) == 0)
        return -1; /* somebody is still connected */
    if (strcmp(target, "anon_inode:[eventfd]") == 0)
        d->kind = EVENTFD;
    else if (strcmp(target, "anon_inode:[eventpoll]") == 0)
        d->kind = EPOLL;
    else if (strncmp(target, "/memfd:", 7) == 0)
        d->kind = MEMORY;
    else if (strncmp(target, "anon_inode:", 11) == 0 &&
             strcmp(target, "anon_inode:[signalfd]") != 0)
        return -1;
    if (d->kind < EVENTFD)
        return 0;
    d->dev = 0; /* all such share one inode */
    d->ino = 0;
    (void)snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", d->fd);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return -1;
    while (fgets(line, sizeof(line), f) != NULL) {
        unsigned long long data;
        unsigned events;
        int fd;
        // NOLINTBEGIN(cert-err34-c): the kernel writes these
        (void)sscanf(line, "eventfd-count: %" SCNx64, &d->count);
        if (sscanf(line, "tfd: %d events: %x data: %llx", &fd, &events, &data) == 3) {
            // NOLINTEND(cert-err34-c)
            if (n_entries == MAX_ENTRIES)
                break;
            entries[n_entries++] = (struct entry){d->fd, fd, {.events = events, .data.u64 = data}};
        }
    }
    (void)fclose(f);
    return n_entries < MAX_ENTRIES ? 0 : -1;
}

static int list_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    struct dirent *e;
    int ret = d != NULL ? 0 : -1;
    while (ret == 0 && (e = readdir(d)) != NULL) {
        int fd = (int)strtol(e->d_name, NULL, 10);
        if (e->d_name[0] == '.' || fd == dirfd(d) || fd == control)
            continue;
        if (n_descriptors == MAX_FDS) {
            ret = -1;
            break;
        }
        descriptors[n_descriptors].fd = fd;
        ret = describe(&descriptors[n_descriptors++]);
    }
    if (d != NULL)
        (void)closedir(d);
    return ret;
}

static int list_shared(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        unsigned long begin;
        unsigned long end;
        unsigned long offset;
        unsigned long inode;
        char mode[5];
        // NOLINTNEXTLINE(cert-err34-c): the kernel writes these
        if (sscanf(line, "%lx-%lx %4s %lx %*s %lu", &begin, &end, mode, &offset, &inode) != 5 ||
            mode[3] != 's' || strstr(line, "/memfd:") == NULL)
            continue;
        if (n_shared == MAX_SHARED)
            break;
        // NOLINTNEXTLINE(performance-no-int-to-ptr)
        shared[n_shared++] = (struct shared){(void *)begin, end - begin, (off_t)offset, inode};
    }
    if (f == NULL)
        return -1;
    (void)fclose(f);
    return n_shared < MAX_SHARED ? 0 : -1;
}

/* Counters are read last: until a thread is parked it may still add to one. */
static int quiesce(void)
{
    pid_t pid = getpid();
    if (list_threads() < 0 || list_shared() < 0)
        return -1;
    for (unsigned i = 0; i < n_threads; i++) {
        unsigned before = i;
        if (syscall(SYS_tgkill, pid, threads[i].tid, park_signal()) < 0)
            return -1;
        unsigned now;
        while ((now = atomic_load(&parked)) <= before)
            futex_wait(&parked, now);
    }
    for (unsigned i = 0; i < n_threads; i++) {
        if (threads[i].tid_word == NULL ||
            *threads[i].tid_word != (i == 0 ? COPY_PID : threads[i].tid))
            return -1;
    }
    return list_descriptors();
}

static void reply(int error, long pid, int pidfd)
{
    struct fork_reply r = {.error = error, .pid = (int32_t)pid};
    struct iovec iov = {&r, sizeof(r)};
    union {
        struct cmsghdr h;
        char space[CMSG_SPACE(sizeof(int))];
    } c = {0};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (pidfd >= 0) {
        m.msg_control = &c;
        m.msg_controllen = sizeof(c);
        c.h.cmsg_len = CMSG_LEN(sizeof(int));
        c.h.cmsg_level = SOL_SOCKET;
        c.h.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&c.h), &pidfd, sizeof(pidfd));
    }
    (void)sendmsg(control, &m, MSG_NOSIGNAL);
}

/* False at the end of the connection. */
static bool take_request(void)
{
    struct iovec iov = {&request, sizeof(request)};
    union {
        struct cmsghdr h;
        char space[CMSG_SPACE(sizeof(request_fds))];
    } c;
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c)};
    ssize_t n;
    do
        n = recvmsg(control, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    request_n_fds = 0;
    if (n != (ssize_t)sizeof(request))
        return false;
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    if (h != NULL && h->cmsg_type == SCM_RIGHTS) {
        request_n_fds = (unsigned)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(request_fds, CMSG_DATA(h), request_n_fds * sizeof(int));
    }
    return true;
}

static bool fits_request(void)
{
    unsigned n = request.n_targets + 1;
    for (unsigned i = 0; i < request.n_targets && i < FORK_MAX_FDS; i++)
        n += request.targets[i] < 0 ? 1 : 0;
    return request.n_targets > 0 && n == request_n_fds && n <= FORK_MAX_FDS;
}

static void *helper_thread(void *arg)
{
    (void)arg;
    helper = (pid_t)syscall(SYS_gettid);
    while (take_request()) {
        if (!quiesced) {
            if (quiesce() < 0) {
                reply(EBUSY, 0, -1);
                break;
            }
            quiesced = true;
        }
        if (fits_request()) {
            unsigned before = atomic_load(&answer);
            (void)atomic_fetch_add(&command, 1);
            futex_wake(&command);
            while (atomic_load(&answer) == before)
                futex_wait(&answer, before);
            if (fork_pid > 0) {
                reply(0, fork_pid, fork_pidfd);
                (void)close(fork_pidfd);
            } else {
                reply((int)-fork_pid, 0, -1);
            }
        } else {
            reply(request_n_fds == 0 && request.n_targets == 0 ? 0 : EINVAL, 0, -1);
        }
        for (unsigned i = 0; i < request_n_fds; i++)
            (void)close(request_fds[i]);
    }
    return NULL; /* nobody is left to ask for a copy: the next daemon ends it like any stray */
}

/* glibc takes the main thread's id for what it will be in every copy, before anybody owns a mutex.
 */
static int rename_main_thread(void)
{
    int *word = NULL;
    if (prctl(PR_GET_TID_ADDRESS, &word, 0, 0, 0) < 0 || word == NULL || *word != getpid())
        return -1;
    *word = COPY_PID;
    return 0;
}

/* glibc gives constructors what it gives main(). */
__attribute__((constructor)) static void begin(int argc, char **argv)
{
    const char *text = getenv("ASPIS_FORK_FD");
    if (text == NULL)
        return;
    for (int i = 1; i + 1 < argc; i++) {
        static const char prefix[] = "guest=";
        if (strcmp(argv[i], "-name") == 0 &&
            strncmp(argv[i + 1], prefix, sizeof(prefix) - 1) == 0) {
            name = argv[i + 1] + sizeof(prefix) - 1;
            name_size = strlen(name) + 1;
        }
    }
    control = (int)strtol(text, NULL, 10);
    active = true;
    struct sigaction act = {.sa_sigaction = on_park, .sa_flags = SA_SIGINFO};
    (void)sigfillset(&act.sa_mask);
    pthread_t t;
    sigset_t all;
    sigset_t old;
    (void)sigfillset(&all);
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, _NSIG / 8);
    if (rename_main_thread() < 0 || fcntl(control, F_SETFD, FD_CLOEXEC) < 0 ||
        sigaction(park_signal(), &act, NULL) < 0 ||
        pthread_create(&t, NULL, helper_thread, NULL) != 0)
        _exit(125);
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, _NSIG / 8);
}
