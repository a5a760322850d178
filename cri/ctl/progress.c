#include "cri/ctl/progress.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"

#define BAR 30

struct layer {
    char *digest, *phase;
    uint64_t done, total;
};

struct progress {
    FILE *out;
    bool tty;
    struct layer layers[LIMIT_IMAGE_LAYERS + 1];
    size_t n;
    size_t drawn; /* lines on the screen that the next drawing replaces */
};

struct progress *progress_new(FILE *out)
{
    struct progress *p = xcalloc(1, sizeof(*p));
    p->out = out;
    p->tty = isatty(fileno(out));
    return p;
}

static void print_layer(const struct progress *p, const struct layer *l)
{
    char id[16], done[32], total[32];
    ctl_puts(p->out, l->digest[0] == '\0' ? "image       " : ctl_short_id(l->digest, id));
    (void)fputc(' ', p->out);
    ctl_puts(p->out, l->phase);
    (void)fprintf(p->out, "%*s",
                  l->phase[0] != '\0' && strlen(l->phase) < 12 ? (int)(12 - strlen(l->phase)) : 1,
                  "");
    if (l->total <= 1) /* steps, not bytes */
        return;
    if (p->tty) {
        uint64_t shown = l->done < l->total ? l->done : l->total;
        int full = (int)((double)shown * BAR / (double)l->total);
        (void)fprintf(p->out, "[%.*s%*s] ", full, "##############################", BAR - full, "");
    }
    (void)fprintf(p->out, "%s of %s", ctl_size(l->done, done), ctl_size(l->total, total));
}

/* How many lines fit: more than the screen cannot be drawn over. */
static size_t screen_rows(const struct progress *p)
{
    struct winsize w;
    return ioctl(fileno(p->out), TIOCGWINSZ, &w) == 0 && w.ws_row > 1 ? w.ws_row - 1U : 20;
}

static void draw(struct progress *p)
{
    if (p->drawn > 0)
        (void)fprintf(p->out, "\033[%zuA", p->drawn);
    size_t rows = screen_rows(p);
    size_t first = p->n > rows ? p->n - rows : 0;
    p->drawn = 0;
    for (size_t i = first; i < p->n; i++, p->drawn++) {
        (void)fputs("\r\033[K", p->out);
        print_layer(p, &p->layers[i]);
        (void)fputc('\n', p->out);
    }
    (void)fflush(p->out);
}

void progress_show(struct progress *p, const Aspis__V1__Progress *report)
{
    struct layer *l = NULL;
    for (size_t i = 0; l == NULL && i < p->n; i++)
        if (strcmp(p->layers[i].digest, report->digest) == 0)
            l = &p->layers[i];
    if (l == NULL && p->n == ARRAY_LEN(p->layers))
        return;
    bool new_phase = true;
    if (l == NULL) {
        l = &p->layers[p->n++];
        l->digest = xstrdup(report->digest);
    } else {
        new_phase = strcmp(l->phase, report->phase) != 0;
        free(l->phase);
    }
    l->phase = xstrdup(report->phase);
    l->done = report->done;
    l->total = report->total;
    if (p->tty) {
        draw(p);
    } else if (new_phase) {
        print_layer(p, l);
        (void)fputc('\n', p->out);
    }
}

void progress_free(struct progress *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->layers[i].digest);
        free(p->layers[i].phase);
    }
    free(p);
}
