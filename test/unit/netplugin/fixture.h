/*
 * fixture - a scratch directory with a configuration directory, a bin directory of fake plugins
 * (links to test/data/cni/fake-plugin) and a cache directory.
 */
#ifndef TEST_NETPLUGIN_FIXTURE_H
#define TEST_NETPLUGIN_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define SEC(n) ((n)*1000000000LL)

struct fixture {
    char root[64];
    char *conf, *bin, *cache, *fake;
    const char *bin_dirs[2];
};

static inline void fx_write(const char *dir, const char *name, const char *text)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    auto_err struct err err = ERR_INIT;

    if (fs_write_atomic(path, text, strlen(text), 0644, false, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static inline char *fx_read(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);

    return fs_read(path, MiB(4), NULL, NULL);
}

static inline void fx_plugin(const struct fixture *f, const char *type)
{
    auto_free char *path = fs_format("%s/%s", f->bin, type);

    assert_int_equal(symlink(TEST_DATA "/cni/fake-plugin", path), 0);
}

static inline int fx_setup(void **state)
{
    static struct fixture f;

    (void)snprintf(f.root, sizeof(f.root), "/tmp/aspis-cni-XXXXXX");
    if (mkdtemp(f.root) == NULL)
        return -1;
    f.conf = fs_format("%s/net.d", f.root);
    f.bin = fs_format("%s/bin", f.root);
    f.cache = fs_format("%s/cache", f.root);
    f.fake = fs_format("%s/fake", f.root);
    f.bin_dirs[0] = f.bin;
    f.bin_dirs[1] = NULL;
    if (mkdir(f.conf, 0755) < 0 || mkdir(f.bin, 0755) < 0 || mkdir(f.fake, 0755) < 0)
        return -1;
    (void)setenv("FAKE_CNI_DIR", f.fake, 1);
    *state = &f;
    return 0;
}

static inline int fx_teardown(void **state)
{
    struct fixture *f = *state;
    int ret = fs_rm_rf(f->root, NULL);

    free(f->conf);
    free(f->bin);
    free(f->cache);
    free(f->fake);
    return ret;
}

#endif
