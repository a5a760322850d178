#include "agent/container_jobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_spec.h"
#include "agent/crun.h"
#include "agent/huge_pages.h"
#include "agent/user.h"
#include "agent/userns.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

char *job_state_root(const char *state_dir)
{
    return fs_format("%s/.crun", state_dir);
}

char *job_volume_path(const char *state_dir, const char *container_id, uint32_t id)
{
    return fs_format("%s/.volumes/%s/%u", state_dir, container_id, id);
}

char *job_mirror_path(const char *state_dir, uint32_t id)
{
    return fs_format("%s/.mirrors/%u", state_dir, id);
}

static char *bundle_path(const struct job_paths *at, const char *name)
{
    return fs_format("%s/%s%s", at->state_dir, at->id, name);
}

static char *scratch_path(const struct job_paths *at, const char *name)
{
    return fs_format("%s/%s%s", at->scratch_dir, at->id, name);
}

/* The root directory of an overlay is the upper one: it gets the image's mode and owner. */
static int copy_root_attributes(const char *image, const char *upper, struct err *err)
{
    struct stat st;

    if (stat(image, &st) < 0)
        return err_sys(err, errno, "image at %s", image);
    if (chown(upper, st.st_uid, st.st_gid) < 0 || chmod(upper, st.st_mode & 07777) < 0)
        return err_sys(err, errno, "%s", upper);
    return 0;
}

static int mount_overlay(const char *lower, const char *scratch, const char *rootfs,
                         struct err *err)
{
    /* volatile: what a pod writes outside its volumes does not outlive its VM, so nobody needs
     * fsync to reach the disk. */
    auto_free char *options = fs_format("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,volatile",
                                        lower, scratch, scratch);
    if (mount("overlay", rootfs, "overlay", 0, options) == 0)
        return 0;
    if (errno != EINVAL)
        return err_sys(err, errno, "mount the container's root");
    options[strlen(options) - strlen(",volatile")] = '\0';
    if (mount("overlay", rootfs, "overlay", 0, options) < 0)
        return err_sys(err, errno, "mount the container's root");
    return 0;
}

/* What is mounted beside the root for a user namespace. */
static void unmount_layers(const struct job_paths *at)
{
    auto_free char *lower = bundle_path(at, "/lower");
    auto_free char *mqueue = bundle_path(at, "/mqueue");
    (void)umount2(mqueue, MNT_DETACH);
    (void)umount2(lower, MNT_DETACH);
}

/* Only who owns the ipc namespace may mount its queues, so the container gets a mount of ours. */
static int mount_mqueue(const struct job_paths *at, struct err *err)
{
    auto_free char *dir = bundle_path(at, "/mqueue");

    if (fs_mkdir_p(dir, 0755, err) < 0)
        return -1;
    if (mount("mqueue", dir, "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return err_sys(err, errno, "mount the message queues");
    return 0;
}

/* The root directory's owner as the container's namespace has it. */
static int map_upper(const struct create_job *job, const char *upper, struct err *err)
{
    const Aspis__Agent__V1__CreateContainerRequest *req = job->req;
    struct stat st;
    uint32_t uid;
    uint32_t gid;

    if (stat(upper, &st) < 0)
        return err_sys(err, errno, "%s", upper);
    if (!userns_id(req->uids, req->n_uids, st.st_uid, &uid) ||
        !userns_id(req->gids, req->n_gids, st.st_gid, &gid))
        return err_set(err, ERR_INVALID,
                       "the image's root directory belongs to %u:%u, which is not "
                       "mapped",
                       st.st_uid, st.st_gid);
    if (chown(upper, uid, gid) < 0)
        return err_sys(err, errno, "%s", upper);
    return 0;
}

/* The container's user namespace: the pod's, or a new one with the same ids. */
static int open_userns(const struct create_job *job, struct err *err)
{
    const char *of_pod = pod_userns(job->pod);
    if (of_pod == NULL)
        return userns_open(job->req, err);
    int fd = open(of_pod, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? err_sys(err, errno, "the pod's user namespace") : fd;
}

/* What the pod's containers share belongs to their root. */
static int own_pod_files(const struct create_job *job, struct err *err)
{
    static const char *const names[] = {"resolv.conf", "hosts", "hostname", "shm"};
    const Aspis__Agent__V1__CreateContainerRequest *req = job->req;
    uint32_t uid = 0;
    uint32_t gid = 0;
    (void)userns_id(req->uids, req->n_uids, 0, &uid);
    (void)userns_id(req->gids, req->n_gids, 0, &gid);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const char *path = pod_file(job->pod, names[i]);
        if (lchown(path, uid, gid) < 0)
            return err_sys(err, errno, "%s", path);
    }
    return 0;
}

/* In a user namespace the image is mounted with its ids, the overlay, which cannot be, on top of
 * that; what is written keeps the ids it has outside. */
static int mount_mapped(const struct create_job *job, const char *scratch, const char *upper,
                        const char *rootfs, struct err *err)
{
    auto_free char *lower = bundle_path(&job->at, "/lower");
    auto_free char *bundle = bundle_path(&job->at, "");
    auto_free char *above = fs_format("%s/..", job->at.state_dir);
    auto_close int userns = open_userns(job, err);
    if (userns < 0 || fs_mkdir_p(lower, 0700, err) < 0 || map_upper(job, upper, err) < 0 ||
        own_pod_files(job, err) < 0)
        return -1;
    /* The namespace's root has to reach its root file system, and has no power over these. */
    if (chmod(above, 0711) < 0 || chmod(job->at.state_dir, 0711) < 0 || chmod(bundle, 0711) < 0)
        return err_sys(err, errno, "%s", bundle);
    int rc = userns_mount(userns, job->images[0].mountpoint, lower, err);
    if (rc == 0)
        rc = mount_overlay(lower, scratch, rootfs, err);
    unmount_layers(&job->at); /* the overlay has it */
    return rc < 0 ? -1 : mount_mqueue(&job->at, err);
}

static int mount_rootfs(const struct create_job *job, const char *rootfs, struct err *err)
{
    const struct job_paths *at = &job->at;

    if (str_empty(at->scratch_dir))
        return err_set(err, ERR_PRECONDITION, "the pod is not configured");
    auto_free char *scratch = scratch_path(at, "");
    auto_free char *upper = scratch_path(at, "/upper");
    auto_free char *work = scratch_path(at, "/work");
    if (fs_mkdir_p(upper, 0755, err) < 0 || fs_mkdir_p(work, 0700, err) < 0 ||
        fs_mkdir_p(rootfs, 0755, err) < 0 ||
        copy_root_attributes(job->images[0].mountpoint, upper, err) < 0)
        return -1;
    return job->req->n_uids > 0 ? mount_mapped(job, scratch, upper, rootfs, err)
                                : mount_overlay(job->images[0].mountpoint, scratch, rootfs, err);
}

/* Nobody who is not mapped can be somebody in the container. */
static int check_mapped(const struct create_job *job, const struct user_ids *ids, struct err *err)
{
    const Aspis__Agent__V1__CreateContainerRequest *req = job->req;
    uint32_t outside;

    if (req->n_uids == 0)
        return 0;
    if (!userns_id(req->uids, req->n_uids, ids->uid, &outside))
        return err_set(err, ERR_INVALID, "user %u is not mapped into the user namespace", ids->uid);
    if (!userns_id(req->gids, req->n_gids, ids->gid, &outside))
        return err_set(err, ERR_INVALID, "group %u is not mapped into the user namespace",
                       ids->gid);
    for (size_t i = 0; i < ids->n_groups; i++) {
        if (!userns_id(req->gids, req->n_gids, ids->groups[i], &outside))
            return err_set(err, ERR_INVALID, "group %u is not mapped into the user namespace",
                           ids->groups[i]);
    }
    return 0;
}

static int resolve_user(const struct create_job *job, const char *rootfs, struct user_ids *ids,
                        struct err *err)
{
    const Aspis__Agent__V1__User *u = job->req->user;
    struct user_request req = {.user = ""};

    if (u != NULL)
        req = (struct user_request){.user = u->user,
                                    .has_group = u->has_group,
                                    .group = u->group,
                                    .groups = u->supplemental_groups,
                                    .n_groups = u->n_supplemental_groups,
                                    .strict = u->strict_groups};
    auto_close int fd = open(rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "%s", rootfs);
    return user_resolve(fd, &req, ids, err);
}

/* The same with the ids of the container's user namespace, beside it. */
static int map_image_dir(struct create_job *job, struct err *err)
{
    auto_free char *plain = take(job->volume_path);
    auto_close int userns = open_userns(job, err);

    job->volume_path = fs_format("%s-mapped", plain);
    if (userns < 0 || fs_mkdir_p(job->volume_path, 0755, err) < 0)
        return -1;
    return userns_mount(userns, plain, job->volume_path, err);
}

/* "SERIAL/path": a directory of one of the container's images, bound where libcrun can name it
 * without following a link of the image's. */
static const char *image_dir(struct create_job *job, const char *name, struct err *err)
{
    size_t n = strcspn(name, "/");

    if (name[n] != '/')
        return NULL;
    for (size_t i = 1; i < job->n_images; i++) {
        const struct image_mount *im = &job->images[i];
        if (strlen(im->serial) != n || memcmp(im->serial, name, n) != 0)
            continue;
        free(job->volume_path);
        job->volume_path =
            fs_format("%s/.volumes/%s/image-%u", job->at.state_dir, job->at.id, job->image_binds++);
        if (image_volume_bind(im->mountpoint, name + n + 1, job->volume_path, err) < 0 ||
            (job->req->n_uids > 0 && map_image_dir(job, err) < 0))
            return NULL;
        return job->volume_path;
    }
    return NULL;
}

/* Devices that are disks of the VM get the names that they have here. */
static int name_disks(struct create_job *job, struct err *err)
{
    static const char prefix[] = "aspis:disk:";
    for (size_t i = 0; i < job->req->n_devices; i++) {
        Aspis__Agent__V1__Device *d = job->req->devices[i];
        const char *node = NULL;
        if (!str_starts(d->path, prefix))
            continue;
        for (size_t k = 1 + job->req->n_volume_disks; k < job->n_images; k++)
            if (strcmp(job->images[k].serial, d->path + strlen(prefix)) == 0)
                node = job->images[k].mountpoint;
        if (node == NULL)
            return err_set(err, ERR_INVALID, "device %.200s: no such disk", d->path);
        d->path = xstrdup(node); /* the child ends soon */
    }
    return 0;
}

/* "volume:7" is the seventh volume of the pod, mounted for this container; else a file of the pod.
 */
static const char *source_of(void *arg, const char *name, struct err *err)
{
    struct create_job *job = arg;
    uint64_t id;

    if (str_starts(name, "image:"))
        return image_dir(job, name + strlen("image:"), err);
    if (!str_starts(name, "volume:"))
        return pod_file(job->pod, name);
    if (str_to_u64(name + strlen("volume:"), &id) < 0)
        return NULL;
    for (size_t i = 0; i < job->req->n_volumes; i++) {
        if (job->req->volumes[i]->id == id) {
            free(job->volume_path);
            const Aspis__Agent__V1__HugeVolume *huge = job->req->volumes[i]->huge;
            job->volume_path = huge != NULL ? huge_pages_path(job->at.state_dir, huge)
                               : job->req->volumes[i]->mirrored
                                   ? job_mirror_path(job->at.state_dir, (uint32_t)id)
                                   : job_volume_path(job->at.state_dir, job->at.id, (uint32_t)id);
            return job->volume_path;
        }
    }
    return NULL;
}

/* Here and not in the agent: the last unmount of a volume writes back what is mapped and dirty. */
static void unmount_volumes(const struct job_paths *at)
{
    auto_free char *dir = fs_format("%s/.volumes/%s", at->state_dir, at->id);
    auto_closedir DIR *d = opendir(dir);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *path = fs_format("%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.')
            (void)umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    }
}

/* The console socket: libcrun connects to it and sends the terminal's master. Both ends are this
 * operation's, so the connection just waits in the backlog until libcrun is done. */
static int console_listen(const char *path, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path))
        return err_set(err, ERR_INTERNAL, "console socket %s: path too long", path);
    memcpy(addr.sun_path, path, strlen(path));
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    (void)unlink(path); /* of an operation that was killed */
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 1) < 0)
        return err_sys(err, errno, "console socket %s", path);
    return take_fd(&fd);
}

static int console_receive(int listener, struct err *err)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    char text[256];
    struct iovec iov = {.iov_base = text, .iov_len = sizeof(text)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof(control.space)};
    auto_close int conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int fd = -1;

    if (conn < 0 || recvmsg(conn, &msg, MSG_CMSG_CLOEXEC) < 0)
        return err_sys(err, errno, "receive the terminal");
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c == NULL || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
        c->cmsg_len != CMSG_LEN(sizeof(int)))
        return err_set(err, ERR_INTERNAL, "no terminal was sent");
    memcpy(&fd, CMSG_DATA(c), sizeof(int));
    return fd;
}

static int read_pid(const char *path, int32_t *pid, struct err *err)
{
    auto_free char *text = fs_read(path, 32, NULL, err);
    int64_t n;

    if (text == NULL)
        return -1;
    if (str_to_i64(text, &n) < 0 || n <= 1 || n > INT32_MAX)
        return err_set(err, ERR_INTERNAL, "%s holds no process id", path);
    *pid = (int32_t)n;
    return 0;
}

int create_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    struct create_job *job = arg;
    const Aspis__Agent__V1__CreateContainerRequest *req = job->req;
    auto_free char *bundle = bundle_path(&job->at, "");
    auto_free char *rootfs = bundle_path(&job->at, "/rootfs");
    auto_free char *pid_file = bundle_path(&job->at, "/pid");
    auto_free char *mqueue = req->n_uids > 0 ? bundle_path(&job->at, "/mqueue") : NULL;
    auto_free char *console = fs_format("%s/.tty-%d", job->at.state_dir, (int)getpid());
    auto_free char *state_root = job_state_root(job->at.state_dir);
    auto_free char *cgroup = cgroup_spec_path(job->at.id);
    auto_free struct user_ids *ids = xcalloc(1, sizeof(*ids));
    auto_close int listener = -1;

    if (name_disks(job, err) < 0 || fs_mkdir_p(bundle, 0700, err) < 0 ||
        fs_mkdir_p(state_root, 0700, err) < 0 || mount_rootfs(job, rootfs, err) < 0 ||
        resolve_user(job, rootfs, ids, err) < 0 || check_mapped(job, ids, err) < 0)
        return -1;
    struct spec_changes changes = {.root_path = rootfs,
                                   .readonly_rootfs = req->readonly_rootfs,
                                   .user = ids,
                                   .tty = req->tty,
                                   .rows = req->tty_rows,
                                   .cols = req->tty_cols,
                                   .pidns = job->pidns,
                                   .cgroups_path = cgroup,
                                   .userns = pod_userns(job->pod),
                                   .request = req,
                                   .mqueue = mqueue,
                                   .pod_file = source_of,
                                   .pod_file_arg = job};
    auto_free char *kept = NULL;
    auto_free char *spec =
        spec_for_create(req->oci_spec.data, req->oci_spec.len, &changes, &kept, err);
    if (spec == NULL)
        return -1;
    if (req->tty && (listener = console_listen(console, err)) < 0)
        return -1;

    struct crun_ctx ctx = {.state_root = state_root,
                           .id = job->at.id,
                           .bundle = bundle,
                           .pid_file = pid_file,
                           .console_socket = req->tty ? console : NULL,
                           .seccomp = req->seccomp_filter.len > 0 ? req->seccomp_filter.data : NULL,
                           .seccomp_len = req->seccomp_filter.len};
    int created = crun_create(&ctx, spec, kept, err);
    if (req->tty)
        (void)unlink(console);
    if (created < 0 || read_pid(pid_file, &res->pid, err) < 0 ||
        (req->tty && (*fd_out = console_receive(listener, err)) < 0))
        return -1;
    res->uid = ids->uid;
    res->gid = ids->gid;
    res->n_groups = (uint32_t)ids->n_groups;
    memcpy(res->groups, ids->groups, ids->n_groups * sizeof(ids->groups[0]));
    return 0;
}

static int exec_in(const struct exec_job *job, const char *pid_file, const char *console,
                   struct op_result *res, int *fd_out, struct err *err)
{
    const Aspis__Agent__V1__ExecRequest *req = job->req;
    auto_free char *bundle = bundle_path(&job->at, "");
    auto_free char *state_root = job_state_root(job->at.state_dir);
    auto_free char *config = fs_format("%s/%s/config.json", state_root, job->at.id);
    auto_close int listener = -1;
    int64_t oom_score_adj = 0;
    size_t len = 0;
    struct spec_exec exec = {.args = req->args,
                             .n_args = req->n_args,
                             .env = req->env,
                             .n_env = req->n_env,
                             .cwd = req->cwd,
                             .tty = req->tty,
                             .rows = req->tty_rows,
                             .cols = req->tty_cols,
                             .oom_score_adj = &oom_score_adj};
    auto_free char *json = fs_read(config, LIMIT_RPC_MESSAGE * 2, &len, err);
    auto_free char *spec = json != NULL ? spec_for_exec(json, len, &exec, err) : NULL;

    if (spec == NULL || (req->tty && (listener = console_listen(console, err)) < 0))
        return -1;
    auto_free char *adj = fs_format("%" PRId64, oom_score_adj);
    (void)fs_write_str("/proc/self/oom_score_adj", adj, NULL); /* inherited */
    struct crun_ctx ctx = {.state_root = state_root,
                           .id = job->at.id,
                           .bundle = bundle,
                           .pid_file = pid_file,
                           .console_socket = req->tty ? console : NULL};
    if (crun_exec(&ctx, spec, err) < 0 || read_pid(pid_file, &res->pid, err) < 0)
        return -1;
    if (req->tty && (*fd_out = console_receive(listener, err)) < 0)
        return -1;
    return 0;
}

int exec_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    const struct exec_job *job = arg;
    auto_free char *suffix = fs_format("/%s.pid", job->tag);
    auto_free char *pid_file = bundle_path(&job->at, suffix);
    /* Not below the bundle: a socket's path has to be short. */
    auto_free char *console = fs_format("%s/.tty-%s", job->at.state_dir, job->tag);

    int r = exec_in(job, pid_file, console, res, fd_out, err);
    (void)unlink(pid_file);
    (void)unlink(console);
    return r;
}

int remove_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    const struct job_paths *at = arg;
    auto_free char *bundle = bundle_path(at, "");
    auto_free char *rootfs = bundle_path(at, "/rootfs");
    auto_free char *state_root = job_state_root(at->state_dir);
    struct crun_ctx ctx = {.state_root = state_root, .id = at->id, .bundle = bundle};

    (void)res;
    (void)fd_out;
    if (crun_delete(&ctx, err) < 0)
        return -1;
    cgroup_remove(at->id);
    unmount_volumes(at);
    unmount_layers(at);
    auto_free char *volumes = fs_format("%s/.volumes/%s", at->state_dir, at->id);
    if (fs_rm_rf(volumes, err) < 0)
        return -1;
    if (umount2(rootfs, MNT_DETACH) < 0 && errno != EINVAL && errno != ENOENT)
        return err_sys(err, errno, "unmount %s", rootfs);
    if (!str_empty(at->scratch_dir)) {
        auto_free char *scratch = scratch_path(at, "");
        if (fs_rm_rf(scratch, err) < 0)
            return -1;
    }
    return fs_rm_rf(bundle, err);
}
