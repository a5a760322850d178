#include "agent/disk.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

/* What is read of an image are programs, page by page as they run: the kernel's 128 KiB around each
 * fault would be mostly what is never looked at, in each VM's own memory. Reading a file once from
 * end to end in small pieces is 40 to 45 % slower for it. */
#define READ_AHEAD_KIB "32"

#define WAIT_NS (LIMIT_DEVICE_WAIT_MS * INT64_C(1000000))

struct image {
    LIST_ENTRY(image) link;
    char *serial;
    char *mountpoint;
    unsigned refs;
};

/* What a disk that was there before its image holds; or where a disk is. */
struct name {
    LIST_ENTRY(name) link;
    char *serial, *disk;
};
LIST_HEAD(name_list, name);

struct waiter {
    LIST_ENTRY(waiter) link;
    struct disks *disks;
    char *serial;
    struct loop_source *deadline;
    disk_image_fn done;
    void *arg;
};

struct disks {
    struct loop *loop;
    char *dir;
    LIST_HEAD(image_list, image) images;
    LIST_HEAD(waiter_list, waiter) waiters;
    unsigned n_waiters;
    struct name_list given, known;
    unsigned n_given;
    bool trees;         /* mounted by the daemon */
    const char **names; /* result of disks_mounted() */
};

bool disk_serial_valid(const char *serial)
{
    size_t n = serial ? strlen(serial) : 0;
    return n > 0 && n <= DISK_SERIAL_MAX && serial[0] != '.' &&
           strspn(serial, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

typedef bool (*disk_fn)(void *arg, const char *serial, const char *dev);

/* Calls fn for each disk that has a serial until it returns false. */
static void each_disk(const char *sysfs, disk_fn fn, void *arg)
{
    auto_free char *block = fs_format("%s/block", sysfs);
    auto_closedir DIR *dir = opendir(block);
    if (dir == NULL)
        return;
    const struct dirent *e;
    while ((e = readdir(dir)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        auto_free char *path = fs_format("%s/%s/serial", block, e->d_name);
        auto_free char *dev = fs_format("/dev/%s", e->d_name);
        size_t len = 0;
        auto_free char *text = fs_read(path, 64, &len, NULL);
        if (text == NULL)
            continue; /* not a virtio disk */
        text[strcspn(text, "\n")] = '\0';
        if (!fn(arg, text, dev))
            return;
    }
}

struct search {
    const char *serial;
    char *dev;
};

static bool compare(void *arg, const char *serial, const char *dev)
{
    struct search *s = arg;
    if (strcmp(serial, s->serial) == 0)
        s->dev = xstrdup(dev);
    return s->dev == NULL;
}

char *disk_find(const char *sysfs, const char *serial)
{
    struct search s = {.serial = serial};
    each_disk(sysfs, compare, &s);
    return s.dev;
}

static struct image *image_find(struct disks *d, const char *serial)
{
    struct image *i;
    LIST_FOREACH(i, &d->images, link)
    {
        if (strcmp(i->serial, serial) == 0)
            return i;
    }
    return NULL;
}

static void image_free(struct image *i)
{
    LIST_REMOVE(i, link);
    free(i->serial);
    free(i->mountpoint);
    free(i);
}

static struct name *name_find(const struct name_list *list, const char *serial)
{
    struct name *n;
    LIST_FOREACH(n, list, link)
    {
        if (strcmp(n->serial, serial) == 0)
            return n;
    }
    return NULL;
}

static void name_add(struct name_list *list, const char *serial, const char *disk)
{
    struct name *n = xcalloc(1, sizeof(*n));
    n->serial = xstrdup(serial);
    n->disk = xstrdup(disk);
    LIST_INSERT_HEAD(list, n, link);
}

static void name_free(struct name *n)
{
    LIST_REMOVE(n, link);
    free(n->serial);
    free(n->disk);
    free(n);
}

static void take_name_back(struct disks *d, struct name *given)
{
    if (given == NULL)
        return;
    d->n_given--;
    name_free(given);
}

static bool learn(void *arg, const char *serial, const char *dev)
{
    struct disks *d = arg;
    if (disk_serial_valid(serial) && name_find(&d->known, serial) == NULL)
        name_add(&d->known, serial, dev);
    return true;
}

void disks_learn(struct disks *d, const char *sysfs)
{
    each_disk(sysfs, learn, d);
}

/* Where the image's disk is; NULL: nowhere yet. */
static char *disks_find(const struct disks *d, const char *serial)
{
    const struct name *given = name_find(&d->given, serial);
    const struct name *known = given != NULL ? name_find(&d->known, given->disk) : NULL;
    if (known != NULL)
        return xstrdup(known->disk);
    return disk_find("/sys", given != NULL ? given->disk : serial);
}

static bool is_raw(const char *serial)
{
    return str_starts(serial, "raw");
}

static struct image *image_new(struct disks *d, const char *serial, const char *mountpoint)
{
    struct image *i = xcalloc(1, sizeof(*i));
    i->serial = xstrdup(serial);
    i->mountpoint = xstrdup(mountpoint);
    LIST_INSERT_HEAD(&d->images, i, link);
    return i;
}

static void read_less_ahead(const char *dev)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *path = fs_format("/sys/block/%s/queue/read_ahead_kb", dev + strlen("/dev/"));
    if (fs_write_str(path, READ_AHEAD_KIB, &err) < 0)
        log_debug("image disk keeps its read-ahead", LOG_STR("error", err_msg(&err)));
}

/* Mounts the image on `dev` (NULL: it is mounted); NULL with *err. */
static struct image *image_mount(struct disks *d, const char *serial, const char *dev,
                                 struct err *err)
{
    if (is_raw(serial))
        return image_new(d, serial, dev);
    auto_free char *mountpoint = fs_format("%s/%s", d->dir, serial);
    if (fs_mkdir_p(mountpoint, 0700, err) < 0)
        return NULL;
    if (dev != NULL)
        read_less_ahead(dev);
    if (dev != NULL &&
        mount(dev, mountpoint, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOATIME, NULL) < 0) {
        err_sys(err, errno, "image disk %s: mount %s as erofs", serial, dev);
        (void)rmdir(mountpoint);
        return NULL;
    }
    return image_new(d, serial, mountpoint);
}

static void waiter_end(struct waiter *w, const char *mountpoint, const struct err *err)
{
    LIST_REMOVE(w, link);
    w->disks->n_waiters--;
    loop_remove(w->deadline);
    w->done(w->arg, mountpoint, err);
    free(w->serial);
    free(w);
}

static void waiter_timeout(struct loop_source *src, void *arg)
{
    struct waiter *w = arg;
    (void)src;
    auto_err struct err err = ERR_INIT;
    err_set(&err, ERR_DEADLINE, "image disk %s did not appear within %d ms", w->serial,
            LIMIT_DEVICE_WAIT_MS);
    waiter_end(w, NULL, &err);
}

struct disks *disks_new(struct loop *loop, const char *dir)
{
    struct disks *d = xcalloc(1, sizeof(*d));
    d->loop = loop;
    d->dir = xstrdup(dir);
    LIST_INIT(&d->images);
    LIST_INIT(&d->waiters);
    LIST_INIT(&d->given);
    LIST_INIT(&d->known);
    return d;
}

void disks_use_trees(struct disks *d)
{
    d->trees = true;
}

static void free_names(struct name_list *list)
{
    struct name *next;
    for (struct name *n = LIST_FIRST(list); n != NULL; n = next) {
        next = LIST_NEXT(n, link);
        name_free(n);
    }
}

void disks_free(struct disks *d)
{
    if (d == NULL)
        return;
    auto_err struct err err = ERR_INIT;
    err_set(&err, ERR_CANCELLED, "the agent is ending");
    struct waiter *next_waiter;
    for (struct waiter *w = LIST_FIRST(&d->waiters); w != NULL; w = next_waiter) {
        next_waiter = LIST_NEXT(w, link);
        waiter_end(w, NULL, &err);
    }
    struct image *next_image;
    for (struct image *i = LIST_FIRST(&d->images); i != NULL; i = next_image) {
        next_image = LIST_NEXT(i, link);
        image_free(i);
    }
    free_names(&d->given);
    free_names(&d->known);
    free(d->names);
    free(d->dir);
    free(d);
}

/* Whether the image is there; then calls done, with it or with why it cannot be mounted. */
static bool try_now(struct disks *d, const char *serial, struct image **out, struct err *err)
{
    *out = image_find(d, serial);
    if (*out != NULL)
        return true;
    auto_free char *tree = d->trees ? fs_format("%s/%s", d->dir, serial) : NULL;
    auto_free char *dev = d->trees ? NULL : disks_find(d, serial);
    if (d->trees ? !fs_exists(tree) : dev == NULL)
        return false;
    *out = image_mount(d, serial, dev, err);
    return true;
}

void disks_acquire(struct disks *d, const char *serial, disk_image_fn done, void *arg)
{
    auto_err struct err err = ERR_INIT;
    struct image *i = NULL;
    if (!disk_serial_valid(serial)) {
        err_set(&err, ERR_INVALID, "image disk: not a disk serial: \"%.40s\"",
                serial ? serial : "");
    } else if (try_now(d, serial, &i, &err)) {
        if (i != NULL) {
            i->refs++;
            done(arg, i->mountpoint, NULL);
            return;
        }
    } else if (d->n_waiters >= LIMIT_RPC_CALLS) {
        err_set(&err, ERR_EXHAUSTED, "image disk %s: too many calls wait for disks", serial);
    } else {
        struct waiter *w = xcalloc(1, sizeof(*w));
        w->disks = d;
        w->deadline = loop_add_timer(d->loop, WAIT_NS, waiter_timeout, w, &err);
        if (w->deadline != NULL) {
            w->serial = xstrdup(serial);
            w->done = done;
            w->arg = arg;
            LIST_INSERT_HEAD(&d->waiters, w, link);
            d->n_waiters++;
            return;
        }
        free(w);
    }
    done(arg, NULL, &err);
}

void disks_give_up(struct disks *d, const void *arg)
{
    auto_err struct err err = ERR_INIT;
    struct waiter *w;
    err_set(&err, ERR_ABORTED, "nobody waits for the image disk any more");
    LIST_FOREACH(w, &d->waiters, link)
    {
        if (w->arg == arg) {
            waiter_end(w, NULL, &err);
            return;
        }
    }
}

void disks_rescan(struct disks *d)
{
    /* A callback may acquire again or end other waiters, so after each one the list is read anew.
     */
    bool again = true;
    while (again) {
        again = false;
        struct waiter *w;
        LIST_FOREACH(w, &d->waiters, link)
        {
            auto_err struct err err = ERR_INIT;
            struct image *i = NULL;
            if (!try_now(d, w->serial, &i, &err))
                continue;
            if (i != NULL)
                i->refs++;
            waiter_end(w, i ? i->mountpoint : NULL, i ? NULL : &err);
            again = true;
            break;
        }
    }
}

void disks_release(struct disks *d, const char *serial)
{
    struct image *i = serial ? image_find(d, serial) : NULL;
    if (i == NULL || i->refs == 0) {
        log_error("image disk released more often than acquired", LOG_STR("serial", serial));
        return;
    }
    i->refs--;
}

int disks_name(struct disks *d, const char *serial, const char *disk, struct err *err)
{
    if (!disk_serial_valid(serial) || !disk_serial_valid(disk) || is_raw(serial))
        return err_set(err, ERR_INVALID,
                       "not serials of an image and its disk: \"%.40s\", \"%.40s\"", serial, disk);
    struct name *old = name_find(&d->given, serial);
    if (old != NULL && strcmp(old->disk, disk) == 0)
        return 0;
    struct name *n;
    struct name *next;
    for (n = LIST_FIRST(&d->given); n != NULL; n = next) {
        next = LIST_NEXT(n, link);
        if (n != old && strcmp(n->disk, disk) != 0)
            continue;
        if (image_find(d, n->serial) != NULL)
            return err_set(err, ERR_PRECONDITION, "image %s is mounted from disk %s", n->serial,
                           n->disk);
        take_name_back(d, n);
    }
    if (image_find(d, serial) != NULL)
        return err_set(err, ERR_PRECONDITION, "image %s is mounted from a disk of its own", serial);
    if (d->n_given >= LIMIT_RPC_CALLS)
        return err_set(err, ERR_EXHAUSTED, "too many disks have names");
    name_add(&d->given, serial, disk);
    d->n_given++;
    disks_rescan(d);
    return 0;
}

int disks_detach(struct disks *d, const char *serial, struct err *err)
{
    if (!disk_serial_valid(serial))
        return err_set(err, ERR_INVALID, "not a disk serial: \"%.40s\"", serial ? serial : "");
    const struct waiter *w;
    LIST_FOREACH(w, &d->waiters, link)
    {
        if (strcmp(w->serial, serial) == 0)
            return err_set(err, ERR_PRECONDITION, "disk %s: a container waits for it", serial);
    }
    struct image *i = image_find(d, serial);
    if (i == NULL) {
        take_name_back(d, name_find(&d->given, serial));
        return 0;
    }
    if (i->refs > 0)
        return err_set(err, ERR_PRECONDITION, "disk %s: %u containers use it", serial, i->refs);
    if (is_raw(serial)) {
        image_free(i);
        return 0;
    }
    if (umount2(i->mountpoint, UMOUNT_NOFOLLOW) < 0) {
        if (errno == EBUSY)
            return err_set(err, ERR_PRECONDITION, "disk %s: its file system is in use", serial);
        return err_sys(err, errno, "disk %s: unmount %s", serial, i->mountpoint);
    }
    (void)rmdir(i->mountpoint);
    image_free(i);
    take_name_back(d, name_find(&d->given, serial));
    return 0;
}

const char *const *disks_mounted(struct disks *d)
{
    size_t n = 0;
    const struct image *i;
    LIST_FOREACH(i, &d->images, link) n++;
    free(d->names);
    d->names = xcalloc(n + 1, sizeof(*d->names));
    n = 0;
    LIST_FOREACH(i, &d->images, link) d->names[n++] = i->serial;
    d->names[n] = NULL;
    return d->names;
}
