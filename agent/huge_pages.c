#include "agent/huge_pages.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define PAGE MiB(2)
#define SYS "/sys/kernel/mm/hugepages/hugepages-2048kB"
#define MAX_PAGES (UINT64_C(1) << 24)

static uint64_t read_number(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    auto_free char *text = fs_read(path, 64, NULL, NULL);
    uint64_t n = 0;
    if (text != NULL)
        text[strcspn(text, "\n")] = '\0';
    return text != NULL && str_to_u64(text, &n) == 0 ? n : 0;
}

/* Reserved, without those that only their users keep. */
static uint64_t reserved(const char *dir)
{
    uint64_t all = read_number(dir, "nr_hugepages");
    uint64_t surplus = read_number(dir, "surplus_hugepages");
    return all > surplus ? all - surplus : 0;
}

uint64_t huge_pages_reserve_in(const char *sys, uint64_t *ours, uint64_t want)
{
    uint64_t now = reserved(sys);
    uint64_t mine = *ours / PAGE;
    uint64_t others = now > mine ? now - mine : 0;
    uint64_t pages = want / PAGE + (want % PAGE != 0);
    if (pages > MAX_PAGES)
        pages = MAX_PAGES;
    if (pages == mine)
        return mine * PAGE;
    auto_free char *path = fs_format("%s/nr_hugepages", sys);
    auto_free char *value = fs_format("%" PRIu64, others + pages);
    (void)fs_write_str(path, value, NULL);
    now = reserved(sys);
    mine = now > others ? now - others : 0;
    *ours = (mine < pages ? mine : pages) * PAGE;
    return *ours;
}

uint64_t huge_pages_reserve(uint64_t *ours, uint64_t want)
{
    return huge_pages_reserve_in(SYS, ours, want);
}

char *huge_pages_path(const char *dir, const Aspis__Agent__V1__HugeVolume *v)
{
    return fs_format("%s/.huge/%s", dir, v->name);
}

int huge_pages_mount(const char *dir, const Aspis__Agent__V1__HugeVolume *v, struct err *err)
{
    if (v->name[0] == '\0' || strlen(v->name) > LIMIT_NAME ||
        strspn(v->name, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(v->name))
        return err_set(err, ERR_INVALID, "volume of huge pages: its name");
    auto_free char *path = huge_pages_path(dir, v);
    auto_free char *options = fs_format("pagesize=2M,uid=%u,gid=%u", v->uid, v->gid);
    if (fs_exists(path))
        return 0;
    if (fs_mkdir_p(path, 0755, err) < 0)
        return -1;
    if (mount("aspis-huge", path, "hugetlbfs", MS_NOSUID | MS_NODEV, options) == 0) {
        if (chmod(path, v->mode & 07777) == 0) /* the option knows no set-group-id */
            return 0;
        (void)umount2(path, MNT_DETACH);
    }
    (void)err_sys(err, errno, "mount huge pages at %s", path);
    (void)rmdir(path);
    return -1;
}
