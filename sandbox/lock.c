#include "sandbox/lock.h"

#include <time.h>

int lock_within(pthread_mutex_t *lock, struct cancel *cancel, const char *what, struct err *err)
{
    int64_t deadline = cancel != NULL ? cancel_deadline(cancel) : 0;
    int rc;
    if (deadline == 0) {
        rc = pthread_mutex_lock(lock);
    } else {
        /* timedlock and not clocklock, which ThreadSanitizer does not know */
        int64_t at = wall_ns() + (deadline - mono_ns());
        struct timespec ts = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
        rc = pthread_mutex_timedlock(lock, &ts);
    }
    if (rc != 0)
        return err_sys(err, rc, "wait for %s", what);
    if (cancel_check(cancel, err) < 0) {
        (void)pthread_mutex_unlock(lock);
        return -1;
    }
    return 0;
}
