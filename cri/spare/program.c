/*
 * The only program of the image that spare VMs are warmed up with (warm.c): has the guest's kernel
 * do what it does for any program that starts, says a line, then ends at once when it was given an
 * argument, else starts itself once more as a shell starts a command, and ends at SIGTERM. It runs
 * without the C library's start-up code, which keeps it at some kilobytes.
 */
#include <fcntl.h>
#include <linux/rseq.h>
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KERNEL_SIGSET_BYTES 8
#define PAGE 4096L
#define STEP (16 * PAGE) /* what one fault maps */

/* Pages of a file that were never read, as of any program's own. */
static void touch_file(void)
{
    long fd = syscall(SYS_openat, AT_FDCWD, "/data", O_RDONLY | O_CLOEXEC, 0);
    struct stat st = {.st_size = 0};
    if (fd < 0)
        return;
    (void)syscall(SYS_fstat, fd, &st);
    long at = syscall(SYS_mmap, NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    const volatile char *data = (const volatile char *)at;
    for (long i = 0; at > 0 && i < st.st_size; i += STEP)
        (void)data[i];
    (void)syscall(SYS_munmap, at, st.st_size);
    /* its data, of which some becomes read-only when it is relocated */
    at = syscall(SYS_mmap, NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (at > 0)
        *(volatile char *)(at + PAGE) = 1;
    (void)syscall(SYS_mprotect, at + PAGE, PAGE, PROT_READ);
    (void)syscall(SYS_munmap, at, 3 * PAGE);
    (void)syscall(SYS_close, fd);
}

/* As a shell does, with a command that sleeps. */
static void run_command(void)
{
    static char path[] = "/warm";
    static char argument[] = "x";
    static char *const argv[] = {path, argument, NULL};
    static char *const env[] = {NULL};
    struct timespec moment = {.tv_nsec = 1000000};
    (void)syscall(SYS_prctl, PR_SET_NAME, path + 1);
    (void)syscall(SYS_getppid);
    long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0) {
        (void)syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &moment, NULL);
        (void)syscall(SYS_execve, path, argv, env);
        (void)syscall(SYS_exit_group, 1);
    }
    (void)syscall(SYS_wait4, -1, NULL, 0, NULL);
}

/* What a C library asks for before main(), in its order. */
static void start_up(void)
{
    static struct rseq area __attribute__((aligned(32)));
    static int tid;
    static long robust[3];
    struct rlimit limit;
    char text[256];
    long end = syscall(SYS_brk, 0);
    end = syscall(SYS_brk, end + 40 * PAGE);
    *(volatile char *)(end - 1) = 1;
    (void)syscall(SYS_set_tid_address, &tid);
    (void)syscall(SYS_set_robust_list, robust, sizeof(robust));
    (void)syscall(SYS_rseq, &area, sizeof(area), 0, 0x53053053);
    (void)syscall(SYS_prlimit64, 0, RLIMIT_STACK, NULL, &limit);
    (void)syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", text, sizeof(text));
    (void)syscall(SYS_getrandom, text, 8, 1);
    long at = syscall(SYS_mmap, NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
    *(volatile char *)at = 1;
    *(volatile char *)(at + 2 * PAGE) = 1;
    (void)syscall(SYS_mprotect, at, PAGE, PROT_READ);
    (void)syscall(SYS_munmap, at, 4 * PAGE);
    (void)syscall(SYS_getuid);
}

__attribute__((noreturn, used)) static void run(const long *stack)
{
    static const char line[] = "warm\n";
    uint64_t term = UINT64_C(1) << (SIGTERM - 1);
    start_up();
    touch_file();
    (void)syscall(SYS_write, STDOUT_FILENO, line, sizeof(line) - 1);
    if (*stack < 2) { /* argc */
        run_command();
        /* blocked, since a namespace's init is never sent a signal that would just kill it */
        (void)syscall(SYS_rt_sigprocmask, SIG_BLOCK, &term, NULL, KERNEL_SIGSET_BYTES);
        (void)syscall(SYS_rt_sigtimedwait, &term, NULL, NULL, KERNEL_SIGSET_BYTES);
    }
    for (;;)
        (void)syscall(SYS_exit_group, 0);
}

/* The kernel enters here with argc, argv and envp on the stack. */
#if defined(__x86_64__)
__asm__(
    ".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl run\n");
#else
// cppcheck-suppress preprocessorErrorDirective
#error "what does a process of this architecture begin with?"
#endif
