#include "agent/late_signal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* Doubling: 8 tries make 5.1 s. */
#define FIRST_NS 20000000LL

struct late_signal {
    struct late_signal **slot;
    struct loop_source *timer;
    pid_t pid;
    int sig;
    int64_t delay_ns, waited_ns;
};

static bool has_signal(const char *status, const char *key, int sig)
{
    const char *at = strstr(status, key);
    if (at == NULL)
        return false;
    uint64_t mask = strtoull(at + strlen(key), NULL, 16);
    return (mask >> (sig - 1) & 1) != 0;
}

/* NSpid ends with the process's number in its own namespace. */
static bool is_init(const char *status)
{
    const char *at = strstr(status, "\nNSpid:");
    if (at == NULL)
        return false;
    size_t len = strcspn(++at, "\n");
    return len > 2 && at[len - 1] == '1' && (at[len - 2] == '\t' || at[len - 2] == ' ');
}

bool late_signal_dropped(const char *status, int sig)
{
    return sig != SIGKILL && sig != SIGSTOP && is_init(status) &&
           !has_signal(status, "\nSigBlk:", sig) && !has_signal(status, "\nSigIgn:", sig) &&
           !has_signal(status, "\nSigCgt:", sig);
}

static bool dropped(pid_t pid, int sig)
{
    char path[32];
    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    auto_free char *status = fs_read(path, KiB(16), NULL, NULL);
    return status != NULL && late_signal_dropped(status, sig);
}

void late_signal_free(struct late_signal **slot)
{
    struct late_signal *s = *slot;
    if (s == NULL)
        return;
    loop_remove(s->timer);
    free(s);
    *slot = NULL;
}

static void on_timer(struct loop_source *src, void *arg)
{
    struct late_signal *s = arg;
    bool again = dropped(s->pid, s->sig);
    s->waited_ns += s->delay_ns;
    s->delay_ns *= 2;
    bool sent = kill(s->pid, s->sig) == 0;
    if (!again || !sent || s->waited_ns + s->delay_ns > LATE_SIGNAL_NS ||
        loop_set_timer(src, s->delay_ns) < 0)
        late_signal_free(s->slot);
}

int late_signal_send(struct loop *loop, struct late_signal **slot, pid_t pid, int sig,
                     struct err *err)
{
    late_signal_free(slot);
    bool again = dropped(pid, sig);
    if (kill(pid, sig) < 0 && errno != ESRCH)
        return err_sys(err, errno, "signal %d", sig);
    if (!again)
        return 0;
    struct late_signal *s = xcalloc(1, sizeof(*s));
    *s = (struct late_signal){.slot = slot, .pid = pid, .sig = sig, .delay_ns = FIRST_NS};
    s->timer = loop_add_timer(loop, s->delay_ns, on_timer, s, err);
    if (s->timer == NULL) {
        free(s);
        return -1;
    }
    *slot = s;
    return 0;
}
