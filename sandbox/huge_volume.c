#include "sandbox/huge_volume.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* Ids of the other volumes count from 1. */
#define FIRST_ID 0xf0000000U

/* Whether the mount shows its file system from the root on: not a directory of it, as a sub path
 * is. */
static bool whole(uint64_t mount_id)
{
    auto_free char *text = fs_read("/proc/self/mountinfo", MiB(8), NULL, NULL);
    char *save = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        uint64_t id;
        char root[8];
        if (sscanf(line, "%" SCNu64 " %*u %*u:%*u %7s", &id, root) == 2 && id == mount_id)
            return strcmp(root, "/") == 0;
    }
    return false;
}

static bool has_files(int fd)
{
    auto_close int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_closedir DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    const struct dirent *e;
    if (d == NULL)
        return true;
    (void)take_fd(&copy);
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            return true;
    }
    return false;
}

/* What a user namespace makes of an id; the guest's hugetlbfs cannot be mapped. */
static uint32_t mapped(uint32_t id, uint32_t first, uint32_t n)
{
    return n == 0 ? id : id < n ? first + id : 65534;
}

static int check(const struct machine_volume *v, int fd, const struct statfs *fs,
                 const struct statx *st, struct err *err)
{
    if ((uint64_t)fs->f_bsize != HUGE_VOLUME_PAGE)
        return err_set(err, ERR_UNIMPLEMENTED,
                       "volume %.200s: it is of huge pages of %" PRIu64
                       " KiB; a VM has those of 2048 KiB",
                       v->source, (uint64_t)fs->f_bsize / KiB(1));
    if (!S_ISDIR(st->stx_mode) || (st->stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0 ||
        !whole(st->stx_mnt_id))
        return err_set(err, ERR_PRECONDITION,
                       "volume %.200s: of a volume of huge pages a VM pod can have the whole only",
                       v->source);
    if (has_files(fd))
        return err_set(err, ERR_PRECONDITION,
                       "volume %.200s: it is of huge pages and not empty; what the host has in it "
                       "cannot be shared with a VM",
                       v->source);
    return 0;
}

int huge_volume_find(struct machine_volume *v, size_t index, struct err *err)
{
    struct statfs fs;
    struct statx st;
    v->huge.name[0] = '\0';
    auto_close int fd = open(v->source, O_PATH | O_CLOEXEC);
    if (fd < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != HUGETLBFS_MAGIC)
        return 0;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, &st) < 0)
        return err_sys(err, errno, "volume %.200s", v->source);
    if (check(v, fd, &fs, &st, err) < 0)
        return -1;
    (void)snprintf(v->huge.name, sizeof(v->huge.name), "%u-%u", st.stx_dev_major, st.stx_dev_minor);
    v->huge.mode = st.stx_mode & 07777;
    v->huge.uid = mapped(st.stx_uid, v->ids.uid, v->ids.n_uids);
    v->huge.gid = mapped(st.stx_gid, v->ids.gid, v->ids.n_gids);
    v->id = FIRST_ID + (uint32_t)index;
    v->mirrored = false;
    v->file = false;
    v->all_readonly = v->readonly;
    return 1;
}
