/* aspisctl checkpoint, restore: a pod into a directory of this machine, and pods out of one */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"

/* The daemon has another working directory. */
static char *absolute(const char *path, struct err *err)
{
    auto_free char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    if (path[0] == '/')
        return xstrdup(path);
    if (cwd == NULL)
        (void)err_sys(err, errno, "working directory");
    return cwd != NULL ? fs_format("%s/%s", cwd, path) : NULL;
}

int cmd_checkpoint(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc != 3)
        return ctl_usage(err, "checkpoint needs a POD and a DIRECTORY");
    auto_free char *path = absolute(argv[2], err);
    const char *id = path != NULL ? ctl_pod(ctl, argv[1], err) : NULL;
    if (id == NULL)
        return -1;
    Runtime__V1__CheckpointPodRequest req = RUNTIME__V1__CHECKPOINT_POD_REQUEST__INIT;
    req.pod_sandbox_id = (char *)(uintptr_t)id;
    req.output_path = path;
    return ctl_call(ctl, RUNTIME_SERVICE "CheckpointPod", &req.base,
                    &runtime__v1__checkpoint_pod_response__descriptor, err) != NULL
               ? 0
               : -1;
}

static int start(struct ctl *ctl, char *id, struct err *err)
{
    Runtime__V1__StartContainerRequest req = RUNTIME__V1__START_CONTAINER_REQUEST__INIT;
    req.container_id = id;
    return ctl_call(ctl, RUNTIME_SERVICE "StartContainer", &req.base,
                    &runtime__v1__start_container_response__descriptor, err) != NULL
               ? 0
               : -1;
}

static int restore(struct ctl *ctl, char *path, char *name, struct err *err)
{
    char uid[17];
    fs_random_hex(uid, 16);
    auto_free char *logs = ctl_log_dir(name, uid);
    if (logs == NULL)
        return ctl_usage(err, "restore: bad name `%s`", name);
    if (fs_mkdir_p(logs, 0755, err) < 0)
        return -1;
    Runtime__V1__PodSandboxMetadata meta = RUNTIME__V1__POD_SANDBOX_METADATA__INIT;
    meta.name = name;
    meta.uid = uid;
    meta.namespace_ = (char *)(uintptr_t) "default";
    Runtime__V1__LinuxPodSandboxConfig linux_config = RUNTIME__V1__LINUX_POD_SANDBOX_CONFIG__INIT;
    Runtime__V1__PodSandboxConfig config = RUNTIME__V1__POD_SANDBOX_CONFIG__INIT;
    config.metadata = &meta;
    config.hostname = name;
    config.log_directory = logs;
    config.linux = &linux_config;
    Runtime__V1__RestorePodRequest req = RUNTIME__V1__RESTORE_POD_REQUEST__INIT;
    req.checkpoint_path = path;
    req.config = &config;
    const Runtime__V1__RestorePodResponse *out = (const Runtime__V1__RestorePodResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "RestorePod", &req.base,
        &runtime__v1__restore_pod_response__descriptor, err);
    if (out == NULL) {
        (void)fs_rm_rf(logs, NULL);
        return -1;
    }
    for (size_t i = 0; i < out->n_restored_containers; i++) {
        if (start(ctl, out->restored_containers[i]->container_id, err) < 0)
            return -1;
    }
    (void)puts(out->pod_sandbox_id);
    return 0;
}

int cmd_restore(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc != 3)
        return ctl_usage(err, "restore needs a DIRECTORY and a NAME");
    auto_free char *path = absolute(argv[1], err);
    return path != NULL ? restore(ctl, path, argv[2], err) : -1;
}
