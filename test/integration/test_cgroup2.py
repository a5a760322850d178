"""The host backend on a node of cgroup version 2.

Such a node is made here: a privileged pod in a VM, whose kernel has nothing but version 2, with this machine's files as its root. In
it run the unit tests of the control groups and the tests of this folder that say what limits do, by a daemon of their own.
"""
import re

import pytest

from conftest import Pod
from cri import pb
from daemon import BUILD, GUEST, INITRD, ROOT

pytestmark = pytest.mark.once("asks for its handlers itself")

# Of the tests of a pod on the host, those that look at control groups.
TESTS = ["test_limits_and_oom", "test_limits_on_version_2", "test_cpuset", "test_agent_killed"]

# Becomes the node's init: a root of this machine's files, read-only, what is to be written in memory, and a control group that has
# no processes itself, so that it can give its controllers away.
NODE = r"""
set -e
mkdir /sys/fs/cgroup/init
for p in $(cat /sys/fs/cgroup/cgroup.procs); do echo $p > /sys/fs/cgroup/init/cgroup.procs 2>/dev/null || :; done
for c in cpu memory pids cpuset io; do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done
for d in run tmp var root; do mount -t tmpfs -o mode=1777 none /host/$d; done
for d in $KEEP; do mkdir -p /host$d; mount --bind /keep$d /host$d; done
for d in proc sys dev; do mount --rbind /$d /host/$d; done
ip link set lo up
cd /host
pivot_root . mnt
# the shell stays, as it collects what others leave
exec chroot . /bin/sh -c "umount -l /mnt; $RUN; exit \$?"
"""


def node(pod, name, command, env):
    """Runs a command on the node; its output."""
    keep = sorted({str(p) for p in (ROOT, BUILD, GUEST, INITRD.parent)})
    mounts = [pb.Mount(host_path="/", container_path="/host", readonly=True)]
    mounts += [pb.Mount(host_path=k, container_path=f"/keep{k}", readonly=True) for k in keep]
    env = {"KEEP": " ".join(keep), "RUN": command, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
           "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **env}
    c = pod.start(name, "unshare", "-m", "sh", "-c", NODE, mounts=mounts, security={"privileged": True},
                  envs=[pb.KeyValue(key=k, value=v.encode()) for k, v in env.items()])
    st = pod.daemon.wait_state(c, pb.CONTAINER_EXITED, timeout=900)
    said = pod.output(name) + pod.output(name, "stderr")
    print(said)
    assert st.exit_code == 0, said[-8000:]
    return said


def test_a_node_of_version_2(own_daemon, images):
    d = own_daemon(overrides={"machine": {"privileged_pods": "vm"}}).start()
    d.client.PullImage(image={"image": images["busybox"]})
    big = pb.LinuxPodSandboxConfig(
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=1800 << 20, cpu_quota=200000, cpu_period=100000),
        security_context=pb.LinuxSandboxSecurityContext(privileged=True))
    pod = Pod(d, "node", images["busybox"], linux=big, handler="")
    try:
        said = node(pod, "unit", f"{BUILD}/test/unit/sandbox/test_cgroup && {BUILD}/test/unit/agent/test_agent_cgroup_stats", {})
        assert said.count("[       OK ]") >= 10 and "FAILED" not in said and "SKIPPED" not in said, said
        said = node(pod, "suite", f"cd {ROOT} && /usr/bin/python3 -m pytest -q -p no:cacheprovider --tb=short --durations=5 "
                    f"test/integration/test_host_backend.py -k '{' or '.join(TESTS)}'", {
                        "ASPIS_BUILD": str(BUILD), "ASPIS_GUEST": str(GUEST), "ASPIS_INITRD": str(INITRD),
                        "ASPIS_TEST_IMAGES": "busybox", "ASPIS_TEST_SET": '{"machine": {"templates": false}}'})
        assert int(re.search(r"(\d+) passed", said).group(1)) >= len(TESTS) and "skipped" not in said, said[-4000:]
    finally:
        pod.remove()
