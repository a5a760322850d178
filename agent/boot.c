#include "agent/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/pod_cgroup.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define MODULE_LIST "/modules.order"
#define NEW_ROOT "/newroot"
/* What containerd's and CRI-O's units give containers; a spec's own rlimits come on top. */
#define OPEN_FILES 1048576

static void problem(const char *what, const char *object)
{
    int e = errno;
    log_error(what, LOG_STR("object", object), LOG_STR("error", strerror(e)));
}

static void load_modules(void)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *list = fs_read(MODULE_LIST, KiB(64), NULL, &err);
    if (list == NULL) {
        /* A kernel with everything built in comes without. */
        if (err.code != ERR_NOT_FOUND)
            log_error("cannot read the module list", LOG_STR("error", err_msg(&err)));
        return;
    }
    char *save = NULL;
    for (char *path = strtok_r(list, "\n", &save); path != NULL;
         path = strtok_r(NULL, "\n", &save)) {
        auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            problem("cannot load a kernel module", path);
        (void)unlink(path); /* its memory is the pod's */
    }
    (void)unlink(MODULE_LIST);
}

/* A tmpfs becomes the root, over the initramfs, which stays below it, empty but for what runs. */
static void switch_root(void)
{
    (void)unlink("/init");
    if (mkdir(NEW_ROOT, 0755) < 0 && errno != EEXIST)
        problem("cannot make the new root", NEW_ROOT);
    if (mount("root", NEW_ROOT, "tmpfs", MS_NODEV | MS_NOSUID, "mode=0755") < 0 ||
        chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
        chdir("/") < 0)
        problem("cannot move to the new root", NEW_ROOT);
}

static const struct {
    const char *type, *dir;
    unsigned long flags;
    const char *options;
} file_systems[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755"},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777"},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate"},
};

static void mount_all(void)
{
    for (size_t i = 0; i < ARRAY_LEN(file_systems); i++) {
        const char *dir = file_systems[i].dir;
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            problem("cannot make a mount point", dir);
        if (mount(file_systems[i].type, dir, file_systems[i].type, file_systems[i].flags,
                  file_systems[i].options) < 0)
            problem("cannot mount", dir);
    }
}

/* The kernel hands PID 1 its console if there is one; libraries count on 0 to 2 being open. */
static void open_standard_fds(void)
{
    if (fcntl(STDERR_FILENO, F_GETFD) >= 0)
        return;
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int i = 0; i <= STDERR_FILENO; i++) {
        if (fd >= 0 && fd != i)
            (void)dup2(fd, i);
    }
    if (fd > STDERR_FILENO)
        (void)close(fd);
}

static void set_limit(int resource, const char *name, rlim_t soft, rlim_t hard)
{
    struct rlimit limit = {.rlim_cur = soft, .rlim_max = hard};
    if (setrlimit(resource, &limit) < 0)
        problem("cannot set a limit", name);
}

static void set_value(const char *path, const char *value)
{
    auto_err struct err err = ERR_INIT;
    if (fs_exists(path) && fs_write_str(path, value, &err) < 0)
        log_warn("cannot set a kernel parameter", LOG_STR("error", err_msg(&err)));
}

void boot_system(void)
{
    load_modules();
    switch_root();
    mount_all();
    cgroup_make_pod();
    open_standard_fds();
    (void)umask(022);
    (void)setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);

    /* These pass on to containers. */
    set_limit(RLIMIT_NOFILE, "nofile", OPEN_FILES, OPEN_FILES);
    set_limit(RLIMIT_NPROC, "nproc", RLIM_INFINITY, RLIM_INFINITY);
    set_limit(RLIMIT_CORE, "core", 0, RLIM_INFINITY);

    /* Added memory is used at once, and what kubelet sets on a node holds in here too. */
    set_value("/sys/devices/system/memory/auto_online_blocks", "online");
    set_value("/proc/sys/vm/overcommit_memory", "1");

    /* An idle guest is to sleep: these wake it twice, once, and a quarter of a time a second. */
    set_value("/proc/sys/vm/compaction_proactiveness", "0");
    set_value("/proc/sys/vm/stat_interval", "60");
    set_value("/proc/sys/kernel/watchdog", "0");

    (void)reboot(RB_DISABLE_CAD);
}

void boot_cpu_added(const char *devpath)
{
    auto_free char *path = fs_format("/sys%s/online", devpath);
    set_value(path, "1");
}

_Noreturn void boot_power_off(void)
{
    (void)kill(-1, SIGKILL);
    sync();
    for (;;) {
        (void)reboot(RB_POWER_OFF);
        (void)reboot(RB_AUTOBOOT); /* a machine without power control */
        (void)pause();
    }
}
