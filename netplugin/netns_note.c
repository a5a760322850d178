#include "netplugin/netns_note.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/netns.h"

#define OURS "/run/netns/cni-"

int netns_note_write(const char *dir, const char *id, const char *path, struct err *err)
{
    auto_free char *note = fs_format("%s/%s", dir, id);
    if (fs_mkdir_p(dir, 0700, err) < 0 ||
        fs_write_atomic(note, path, strlen(path), 0600, false, err) < 0)
        return err_wrap(err, "note the network namespace");
    return 0;
}

void netns_note_drop(const char *dir, const char *id)
{
    auto_free char *note = fs_format("%s/%s", dir, id);
    (void)unlink(note);
}

static int collect(const char *note, struct err *err)
{
    auto_free char *path = fs_read(note, LIMIT_PATH, NULL, NULL);
    if (path != NULL && str_starts(path, OURS) && strchr(path + strlen(OURS), '/') == NULL &&
        netns_remove(path, err) < 0)
        return -1;
    (void)unlink(note);
    return 0;
}

int netns_notes_collect(const char *dir, bool (*known)(void *arg, const char *id), void *arg,
                        struct err *err)
{
    int ret = 0;
    auto_closedir DIR *d = opendir(dir);
    if (d == NULL)
        return errno == ENOENT ? 0 : err_sys(err, errno, "open %s", dir);
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        auto_free char *note = fs_format("%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.' && !known(arg, e->d_name) && collect(note, err) < 0)
            ret = -1;
    }
    return ret;
}
