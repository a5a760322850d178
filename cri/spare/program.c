/*
 * The only program of the image that spare VMs are warmed up with (warm.c): says a line, then ends
 * at once when it was given an argument, else at SIGTERM. It runs without the C library's start-up
 * code, which keeps it at some kilobytes.
 */
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KERNEL_SIGSET_BYTES 8

__attribute__((noreturn, used)) static void run(const long *stack)
{
    static const char line[] = "warm\n";
    uint64_t term = UINT64_C(1) << (SIGTERM - 1);
    (void)syscall(SYS_write, STDOUT_FILENO, line, sizeof(line) - 1);
    if (*stack < 2) { /* argc */
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
