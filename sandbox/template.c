#include "sandbox/template.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "sandbox/scratch.h"

/* Between attempts once this many in a row came to nothing. */
#define QUICK_FAILURES 3
#define PAUSE_NS INT64_C(300000000000)
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

struct template
{
    atomic_uint refs;
    char *key;
    int ram, state, scratch;
};

struct template_pool {
    struct machine_factory *f;
    struct cancel *stop;
    pthread_t thread;
    bool runs; /* the thread; fixed after start */

    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool wanted;   /* the thread is to make one */
    bool making;   /* it is at it */
    bool stopping; /* it is to end */
    struct template *current;
    unsigned failures;           /* in a row, of boots and clones */
    int64_t not_before;          /* CLOCK_MONOTONIC ns */
    char *why;                   /* of the last failure */
    void (*ready_fn)(void *arg); /* told of a new one; may be NULL */
    void *ready_arg;
};

/* --- one template --- */

struct template *template_ref(struct template *t)
{
    if (t != NULL)
        (void)atomic_fetch_add(&t->refs, 1);
    return t;
}

void template_unref(struct template *t)
{
    if (t == NULL || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    cleanup_closep(&t->ram);
    cleanup_closep(&t->state);
    cleanup_closep(&t->scratch);
    free(t->key);
    free(t);
}

/* Anew, since each clone reads it with an offset of its own. */
static int open_again(int fd, const char *what, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, O_RDONLY | O_CLOEXEC);
    return again >= 0 ? again : err_sys(err, errno, "open the template's %s", what);
}

int template_open(const struct template *t, struct hv_template *out, struct err *err)
{
    if ((out->state_fd = open_again(t->state, "state", err)) < 0 ||
        (out->scratch_fd = open_again(t->scratch, "disk", err)) < 0)
        return -1;
    out->ram_fd = fcntl(t->ram, F_DUPFD_CLOEXEC, 3);
    if (out->ram_fd < 0)
        return err_sys(err, errno, "open the template's memory");
    return 0;
}

static int memory_file(const char *name, uint64_t bytes, struct err *err)
{
    auto_close int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* QEMU, under an uid of its own, opens the RAM by way of its descriptor */
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fchmod(fd, 0666) < 0)
        return err_sys(err, errno, "make memory file %s", name);
    return take_fd(&fd);
}

/* --- the key --- */

static int add_file(struct buf *b, const char *path, struct err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, errno, "%s", path);
    (void)buf_printf(b, "%s %" PRIu64 ":%" PRIu64 " %" PRIu64 " %" PRId64 ".%09ld\n", path,
                     (uint64_t)st.st_dev, (uint64_t)st.st_ino, (uint64_t)st.st_size,
                     (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return 0;
}

static char *make_key(struct machine_factory *f, enum accel accel, const char *scratch,
                      struct err *err)
{
    struct machine_size size = machine_base_size(f);
    struct hv_spec hs = machine_hv_spec(f, accel, &size);
    hs.cid = f->transport == TRANSPORT_VSOCK ? 3 : 0;
    auto_free char *shape = f->hv->shape(&hs, err);
    auto_buf struct buf b = BUF_INIT(KiB(128));
    if (shape == NULL || buf_puts(&b, shape) < 0 || add_file(&b, f->config.qemu, err) < 0 ||
        add_file(&b, f->config.kernel, err) < 0 || add_file(&b, f->config.initrd, err) < 0 ||
        /* the guest has read the disk's first blocks */
        add_file(&b, scratch, err) < 0)
        return NULL;
    return buf_take(&b);
}

/* --- a tap that leads nowhere --- */

struct tap_job {
    int fd;
    int error;
};

/* In a network namespace of its own, which lives as long as the tap. The pods' taps have a virtio
 * header, so the template's guest must have met one to use their offloads. */
static void *tap_thread(void *arg)
{
    struct tap_job *j = arg;
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    (void)snprintf(r.ifr_name, sizeof(r.ifr_name), "tap0");
    if (unshare(CLONE_NEWNET) == 0)
        j->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (j->fd < 0 || ioctl(j->fd, TUNSETIFF, &r) < 0)
        j->error = errno;
    return NULL;
}

static int make_tap(struct err *err)
{
    struct tap_job j = {.fd = -1};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, tap_thread, &j);
    if (rc != 0)
        return err_sys(err, rc, "start a thread");
    (void)pthread_join(thread, NULL);
    if (j.error == 0)
        return j.fd;
    cleanup_closep(&j.fd);
    return err_sys(err, j.error, "make a tap for the template");
}

/* --- making one --- */

static void ignore_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    (void)arg;
    (void)event;
}

static void ignore_dead(void *arg, const char *reason)
{
    (void)arg;
    (void)reason;
}

/* Boots a VM on t's memory files and takes it away again. */
static int fill(struct template_pool *p, struct template *t, enum accel accel, struct err *err)
{
    struct machine_factory *f = p->f;
    char id[32] = "template-";
    size_t n = strlen(id);
    fs_random_hex(id + n, 12);
    id[n + 12] = '\0';
    auto_close int tap = make_tap(err);
    if (tap < 0)
        return -1;
    struct machine_spec spec = {
        .sandbox_id = id, .cgroup_parent = "", .tap_fd = tap, .mac = TEMPLATE_MAC};
    struct machine_callbacks cb = {.on_event = ignore_event, .on_dead = ignore_dead};
    struct hv_template files = {.ram_fd = t->ram, .state_fd = -1, .scratch_fd = -1};
    struct machine_how how = {
        .accel = accel, .timeout_ns = f->config.boot_timeout_ns, .tpl = &files};
    struct machine *m = machine_boot(f, &spec, &how, &cb, p->stop, err);
    if (m == NULL)
        return -1;
    int ret = machine_save(m, t->state, p->stop, err);
    auto_free char *scratch = machine_scratch_path(m);
    if (ret == 0 && (t->scratch = open(scratch, O_RDONLY | O_CLOEXEC)) < 0)
        ret = err_sys(err, errno, "open %s", scratch);
    auto_err struct err undo = ERR_INIT;
    if (machine_destroy(m, NULL, &undo) < 0 && ret == 0)
        ret = err_move(err, &undo);
    machine_free(m);
    return ret;
}

static struct template *make(struct template_pool *p, struct err *err)
{
    struct machine_factory *f = p->f;
    if (FAILPOINT("template.make", err) < 0 || machine_decide_accel(f, p->stop, err) < 0)
        return NULL;
    (void)pthread_mutex_lock(&f->lock);
    enum accel accel = f->accel;
    (void)pthread_mutex_unlock(&f->lock);
    auto_free char *scratch =
        scratch_master(f->config.state_root, f->config.scratch_bytes, p->stop, err);
    if (scratch == NULL)
        return NULL;
    auto_template struct template *t = xcalloc(1, sizeof(*t));
    atomic_init(&t->refs, 1);
    t->ram = t->state = t->scratch = -1;
    t->key = make_key(f, accel, scratch, err);
    machine_try_libraries(f, p->stop);
    if (t->key == NULL ||
        (t->ram = memory_file("aspis-ram", machine_base_size(f).memory_bytes, err)) < 0 ||
        (t->state = memory_file("aspis-state", 0, err)) < 0 || fill(p, t, accel, err) < 0)
        return NULL;
    auto_free char *now = make_key(f, accel, scratch, err);
    if (now == NULL)
        return NULL;
    if (strcmp(now, t->key) != 0) {
        (void)err_set(err, ERR_ABORTED, "what it is made of changed meanwhile");
        return NULL;
    }
    /* EBUSY while anybody still has it mapped for writing */
    if (fcntl(t->ram, F_ADD_SEALS, SEALS) < 0 || fcntl(t->state, F_ADD_SEALS, SEALS) < 0) {
        (void)err_sys(err, errno, "seal the memory files");
        return NULL;
    }
    return take(t);
}

/* --- the pool --- */

/* Under lock. */
static void failed(struct template_pool *p, const char *why)
{
    free(p->why);
    p->why = xstrdup(why);
    p->failures++;
    if (p->failures >= QUICK_FAILURES)
        p->not_before = mono_ns() + PAUSE_NS;
}

/* Under lock. */
static void request(struct template_pool *p)
{
    if (p->wanted || p->making || mono_ns() < p->not_before)
        return;
    p->wanted = true;
    (void)pthread_cond_signal(&p->wake);
}

/* Under lock, which is let go of meanwhile. */
static void make_one(struct template_pool *p)
{
    auto_err struct err err = ERR_INIT;
    p->wanted = false;
    p->making = true;
    (void)pthread_mutex_unlock(&p->lock);
    int64_t begin = mono_ns();
    struct template *t = make(p, &err);
    struct stat ram = {0};
    struct stat state = {0};
    if (t != NULL) {
        (void)fstat(t->ram, &ram);
        (void)fstat(t->state, &state);
        log_info("template ready", LOG_INT("ms", (mono_ns() - begin) / 1000000),
                 LOG_INT("ram_kib", ram.st_blocks / 2), LOG_INT("state_bytes", state.st_size));
    } else if (!cancel_fired(p->stop)) {
        log_warn("no template: pods boot their VMs", LOG_STR("error", err_msg(&err)));
    }
    (void)pthread_mutex_lock(&p->lock);
    p->making = false;
    if (t == NULL) {
        failed(p, err_msg(&err));
        if (p->failures < QUICK_FAILURES)
            p->wanted = true;
        return;
    }
    template_unref(p->current);
    p->current = t;
    if (p->ready_fn != NULL)
        p->ready_fn(p->ready_arg);
}

static void *pool_thread(void *arg)
{
    struct template_pool *p = arg;
    (void)pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        if (p->wanted)
            make_one(p);
        else
            (void)pthread_cond_wait(&p->wake, &p->lock);
    }
    (void)pthread_mutex_unlock(&p->lock);
    return NULL;
}

struct template_pool *template_pool_new(struct machine_factory *f)
{
    struct template_pool *p = xcalloc(1, sizeof(*p));
    p->f = f;
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->wake, NULL);
    return p;
}

void template_pool_start(struct template_pool *p)
{
    auto_err struct err err = ERR_INIT;
    if (p == NULL || p->runs)
        return;
    p->stop = cancel_new(0, &err);
    p->wanted = true;
    int rc = p->stop != NULL ? pthread_create(&p->thread, NULL, pool_thread, p) : EMFILE;
    p->runs = rc == 0;
    if (!p->runs)
        log_warn("no templates: pods boot their VMs", LOG_STR("error", strerror(rc)));
}

void template_pool_notify(struct template_pool *p, void (*fn)(void *arg), void *arg)
{
    if (p == NULL)
        return;
    (void)pthread_mutex_lock(&p->lock);
    p->ready_fn = fn;
    p->ready_arg = arg;
    (void)pthread_mutex_unlock(&p->lock);
}

void machine_start_templates(struct machine_factory *f)
{
    template_pool_start(f->templates);
}

void template_pool_free(struct template_pool *p)
{
    if (p == NULL)
        return;
    if (p->runs) {
        cancel_fire(p->stop);
        (void)pthread_mutex_lock(&p->lock);
        p->stopping = true;
        (void)pthread_cond_signal(&p->wake);
        (void)pthread_mutex_unlock(&p->lock);
        (void)pthread_join(p->thread, NULL);
    }
    cancel_unref(p->stop);
    template_unref(p->current);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_cond_destroy(&p->wake);
    free(p->why);
    free(p);
}

char *template_pool_text(struct template_pool *p)
{
    if (p == NULL)
        return xstrdup("off");
    (void)pthread_mutex_lock(&p->lock);
    char *text = p->current != NULL ? xstrdup("ready")
                 : p->wanted || p->making
                     ? xstrdup("being made")
                     : fs_format("none: %s", p->why != NULL ? p->why : "not started");
    (void)pthread_mutex_unlock(&p->lock);
    return text;
}

struct template *template_take(struct template_pool *p, enum accel accel,
                               const struct machine_size *size)
{
    if (p == NULL || !p->runs)
        return NULL;
    /* What is larger grows after the clone, as far as the template's devices go. */
    struct machine_size base = machine_base_size(p->f);
    if (size->memory_bytes > base.max_memory_bytes || size->vcpus > base.max_vcpus)
        return NULL;
    auto_free char *scratch =
        scratch_master(p->f->config.state_root, p->f->config.scratch_bytes, NULL, NULL);
    auto_free char *key = scratch != NULL ? make_key(p->f, accel, scratch, NULL) : NULL;
    struct template *t = NULL;
    (void)pthread_mutex_lock(&p->lock);
    if (p->current != NULL && (key == NULL || strcmp(p->current->key, key) != 0)) {
        template_unref(p->current);
        p->current = NULL;
        p->failures = 0; /* other inputs, other luck */
        p->not_before = 0;
    }
    if (p->current != NULL) {
        t = p->current;
        (void)atomic_fetch_add(&t->refs, 1);
    } else {
        request(p);
    }
    (void)pthread_mutex_unlock(&p->lock);
    return t;
}

void template_worked(struct template_pool *p)
{
    (void)pthread_mutex_lock(&p->lock);
    p->failures = 0;
    (void)pthread_mutex_unlock(&p->lock);
}

void template_suspect(struct template_pool *p, struct template *t, const char *why)
{
    log_warn("a clone failed: its pod boots, its template goes", LOG_STR("error", why));
    (void)pthread_mutex_lock(&p->lock);
    if (p->current == t) {
        template_unref(p->current);
        p->current = NULL;
        failed(p, why);
        request(p);
    }
    (void)pthread_mutex_unlock(&p->lock);
}
