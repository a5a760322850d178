#include "cri/image/image_tree.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/log.h"
#include "cri/image/extract.h"
#include "sandbox/lock.h"

static char *tree_path(const struct image_store *s, const char *id, const char *name)
{
    return fs_format("%s/trees/%s%s", s->opts.root, digest_hex(id), name);
}

/* "BYTES INODES BOOT-ID\n" */
static int read_usage(const char *path, uint64_t *bytes, uint64_t *inodes, char boot[64])
{
    auto_free char *text = fs_read(path, 256, NULL, NULL);
    char *save = NULL;
    char *words[3] = {0};
    for (int i = 0; text != NULL && i < 3; i++)
        words[i] = strtok_r(i == 0 ? text : NULL, " \n", &save);
    if (words[0] == NULL || words[1] == NULL || words[2] == NULL ||
        str_to_u64(words[0], bytes) < 0 || str_to_u64(words[1], inodes) < 0)
        return -1;
    (void)snprintf(boot, 64, "%s", words[2]);
    return 0;
}

void image_tree_usage(const struct image_store *s, const char *id, uint64_t *bytes,
                      uint64_t *inodes)
{
    auto_free char *path = tree_path(s, id, "/usage");
    char boot[64];
    *bytes = *inodes = 0;
    if (read_usage(path, bytes, inodes, boot) < 0)
        *bytes = *inodes = 0;
}

int image_trees_begin(struct image_store *s, struct err *err)
{
    auto_free char *base = fs_format("%s/trees", s->opts.root);
    auto_free char *boot_id = fs_boot_id(err);
    if (boot_id == NULL || fs_mkdir_p(base, 0700, err) < 0)
        return -1;
    auto_closedir DIR *d = opendir(base);
    const struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *dir = fs_format("%s/%s", base, e->d_name);
        auto_free char *usage = fs_format("%s/usage", dir);
        uint64_t bytes;
        uint64_t inodes;
        char boot[64];
        if (e->d_name[0] != '.' &&
            (read_usage(usage, &bytes, &inodes, boot) < 0 || strcmp(boot, boot_id) != 0) &&
            fs_rm_rf(dir, err) < 0)
            return -1;
    }
    return 0;
}

void image_trees_sweep_locked(struct image_store *s,
                              bool (*used)(const struct image_store *s, const char *id))
{
    auto_free char *base = fs_format("%s/trees", s->opts.root);
    auto_closedir DIR *d = opendir(base);
    const struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *id = fs_format("sha256:%s", e->d_name);
        if (e->d_name[0] == '.' || (digest_valid(id) && used(s, id)))
            continue;
        auto_free char *from = fs_format("%s/%s", base, e->d_name);
        auto_free char *to = store_tmp_path(s);
        if (rename(from, to) == 0)
            strv_add(&s->dead_trees, to);
    }
}

void image_trees_bury(struct image_store *s)
{
    (void)pthread_mutex_lock(&s->lock);
    auto_strv struct strv dead = s->dead_trees;
    s->dead_trees = (struct strv){0};
    (void)pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < dead.n; i++) {
        auto_err struct err err = ERR_INIT;
        if (fs_rm_rf(dead.v[i], &err) < 0)
            log_warn("cannot remove an image's tree before the next start",
                     LOG_STR("error", err_msg(&err)));
    }
}

/* The layers' files, as long as the caller's lease. */
static int layer_paths(struct image_store *s, const char *id, struct strv *paths, struct err *err)
{
    (void)pthread_mutex_lock(&s->lock);
    const struct store_image *i = store_find_id_locked(s, id);
    for (size_t k = 0; i != NULL && k < i->rec.layers.n; k++) {
        auto_free char *path = store_layer_path(s, i->rec.layers.v[k]);
        strv_add(paths, path);
    }
    (void)pthread_mutex_unlock(&s->lock);
    return i != NULL ? 0 : err_set(err, ERR_NOT_FOUND, "image %s not found", id);
}

static int make_tree(struct image_store *s, const char *id, const char *tmp, struct cancel *cancel,
                     struct err *err)
{
    auto_strv struct strv paths = {0};
    auto_free char *boot_id = fs_boot_id(err);
    auto_free char *usage_path = fs_format("%s/usage", tmp);
    auto_free char *path = tree_path(s, id, "");
    struct extract_usage usage;
    if (boot_id == NULL || layer_paths(s, id, &paths, err) < 0 || fs_mkdir_p(tmp, 0700, err) < 0)
        return -1;
    if (extract_image((const char *const *)paths.v, paths.n, tmp, &usage, cancel, err) < 0 ||
        FAILPOINT("image.extract", err) < 0)
        return -1;
    auto_free char *text = fs_format("%llu %llu %s\n", (unsigned long long)usage.bytes,
                                     (unsigned long long)usage.inodes, boot_id);
    if (fs_write_atomic(usage_path, text, strlen(text), 0600, false, err) < 0)
        return -1;
    if (rename(tmp, path) < 0)
        return err_sys(err, errno, "rename %s to %s", tmp, path);
    (void)pthread_mutex_lock(&s->lock);
    struct store_image *i = store_find_id_locked(s, id);
    if (i != NULL)
        i->disk_size = store_disk_size_locked(s, i);
    (void)pthread_mutex_unlock(&s->lock);
    return 0;
}

int image_tree_dir(struct image_store *s, const char *id, struct cancel *cancel, char **dir,
                   struct err *err)
{
    auto_lease struct store_lease *lease = store_lease_begin(s);
    auto_free char *path = tree_path(s, id, "/root");
    if (!store_image_hold(lease, id))
        return err_set(err, ERR_NOT_FOUND, "image %s not found", id);
    if (!fs_exists(path)) {
        if (lock_within(&s->extracting, cancel, "the extraction of another image", err) < 0)
            return -1;
        int ret = 0;
        if (!fs_exists(path)) {
            auto_free char *tmp = store_tmp_path(s);
            ret = make_tree(s, id, tmp, cancel, err);
            if (ret < 0)
                (void)fs_rm_rf(tmp, NULL);
        }
        (void)pthread_mutex_unlock(&s->extracting);
        if (ret < 0)
            return err_wrap(err, "extract image %.19s", id);
    }
    *dir = take(path);
    return 0;
}
