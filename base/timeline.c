#include "base/timeline.h"

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/limits.h"

void timeline_begin(struct timeline *t)
{
    *t = (struct timeline){.begin = mono_ns()};
    (void)pthread_mutex_init(&t->lock, NULL);
}

void timeline_mark(struct timeline *t, const char *step)
{
    if (t == NULL)
        return;
    int64_t now = mono_ns();
    (void)pthread_mutex_lock(&t->lock);
    if (t->n < TIMELINE_STEPS) {
        t->steps[t->n].name = step;
        t->steps[t->n].at = now - t->begin;
        t->n++;
    }
    (void)pthread_mutex_unlock(&t->lock);
}

char *timeline_text(struct timeline *t)
{
    auto_buf struct buf b = BUF_INIT(KiB(4));
    (void)pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->n; i++)
        (void)buf_printf(&b, "%s%s %.1f", i > 0 ? ", " : "", t->steps[i].name,
                         (double)t->steps[i].at / 1e6);
    (void)pthread_mutex_unlock(&t->lock);
    (void)buf_puts(&b, "");
    return buf_take(&b);
}

bool timeline_older(const struct timeline *t, int64_t ns)
{
    return mono_ns() - t->begin >= ns;
}

void timeline_end(struct timeline *t)
{
    (void)pthread_mutex_destroy(&t->lock);
}
