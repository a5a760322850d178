#include "agent/vport.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"

#define NAME_MAX_BYTES 128

/* Does <sysfs>/<entry>/name hold this name? */
static bool has_name(const char *sysfs, const char *entry, const char *name)
{
    auto_free char *path = fs_format("%s/%s/name", sysfs, entry);
    auto_free char *text = NULL;

    if (path == NULL)
        return false;
    text = fs_read(path, NAME_MAX_BYTES, NULL, NULL);
    if (text == NULL)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return strcmp(text, name) == 0;
}

static int open_node(const char *dev, const char *entry, const char *name, struct err *err)
{
    auto_free char *path = fs_format("%s/%s", dev, entry);
    int fd;

    if (path == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        (void)err_sys(err, errno, "open port %s (%s)", name, path);
        if (err != NULL)
            err->code = ERR_UNAVAILABLE;
    }
    return fd;
}

int vport_open(const char *sysfs, const char *dev, const char *name, struct err *err)
{
    auto_closedir DIR *d = opendir(sysfs);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.' && has_name(sysfs, e->d_name, name))
            return open_node(dev, e->d_name, name, err);
    }
    return err_set(err, ERR_NOT_FOUND, "no virtio-serial port %s", name);
}
