#include "agent/oom_score.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_spec.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define MAX_DEPTH 16

static void set_one(int64_t pid, int64_t from, const char *to)
{
    auto_free char *path = fs_format("/proc/%" PRId64 "/oom_score_adj", pid);
    auto_free char *text = fs_read(path, 32, NULL, NULL);
    int64_t now;
    if (text == NULL)
        return; /* it has ended */
    text[strcspn(text, "\n")] = '\0';
    if (str_to_i64(text, &now) == 0 && now == from)
        (void)fs_write_str(path, to, NULL); /* on a host that forbids less it stays */
}

static void set_all(int dirfd, int depth, int64_t from, const char *to)
{
    auto_close int procs = openat(dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    auto_free char *text = procs >= 0 ? fs_read_fd(procs, MiB(1), NULL, NULL) : NULL;
    char *save = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t pid;
        if (str_to_i64(line, &pid) == 0 && pid > 1)
            set_one(pid, from, to);
    }
    auto_close int copy = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_closedir DIR *d = copy >= 0 && depth < MAX_DEPTH ? fdopendir(copy) : NULL;
    const struct dirent *e;
    if (d == NULL)
        return;
    (void)take_fd(&copy);
    while ((e = readdir(d)) != NULL) {
        auto_close int sub = e->d_type == DT_DIR && e->d_name[0] != '.'
                                 ? openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                                 : -1;
        if (sub >= 0)
            set_all(sub, depth + 1, from, to);
    }
}

int oom_score_set(const char *id, const char *config, int32_t adj, struct err *err)
{
    size_t len = 0;
    int64_t from = 0;
    auto_free char *text = fs_read(config, LIMIT_RPC_MESSAGE * 2, &len, err);
    if (text == NULL)
        return -1;
    auto_free char *spec = spec_set_oom_score(text, len, adj, &from, err);
    if (spec == NULL || fs_write_atomic(config, spec, strlen(spec), 0600, false, err) < 0)
        return -1;
    auto_free char *dir = cgroup_file(id, "");
    auto_free char *to = fs_format("%" PRId32, adj);
    auto_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return 0; /* it has ended */
    /* a child born just before its parent was met has the old one: once more */
    for (int i = 0; i < 2; i++)
        set_all(fd, 0, from, to);
    return 0;
}
