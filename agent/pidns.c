#include "agent/pidns.h"

#include <errno.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/urgent.h"

_Noreturn void pidns_init_main(void)
{
    sigset_t all;
    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    for (;;) {
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        int sig = 0;
        (void)sigwait(&chld, &sig);
    }
}

pid_t pidns_start(struct err *err)
{
    /* A fork in all but the namespace; the child does nothing but execve, so libc's state does not
     * matter. */
    long pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid < 0)
        return err_sys(err, errno, "make a process namespace");
    if (pid == 0) {
        char name[] = PIDNS_INIT_NAME;
        char *argv[] = {name, NULL};
        char *env[] = {NULL};
        urgent_end();
        (void)close_range(0, ~0U, CLOSE_RANGE_CLOEXEC);
        /* The magic link works even though the agent's own file is gone. */
        execve("/proc/self/exe", argv, env);
        _exit(127);
    }
    return (pid_t)pid;
}
