"""R10: the daemon is newer than a pod's agent. What the older agent can do goes on; what it cannot is refused in words."""
import os
import time
from pathlib import Path

import grpc
import pytest

from conftest import Pod
from cri import pb
from daemon import INITRD

pytestmark = pytest.mark.vm("agents of an older release in VMs")

# This source's agent without the calls and fields that came after 1.1; or a real one of an earlier release, by hand.
OLD = Path(os.environ.get("ASPIS_OLD_INITRD", INITRD.with_name("aspis-initrd-old.cpio")))


def use(daemon, initrd):
    daemon.overrides["machine"] = {"initrd": str(initrd)}
    daemon.write_config()


@pytest.fixture
def old_pod(own_daemon, images):
    """A pod whose agent is of the earlier release, under a daemon of this one that was restarted with its own initrd."""
    if not OLD.exists():
        pytest.fail(f"{OLD} is missing: a build with -Dtest_agents=true makes it")
    d = own_daemon()
    use(d, OLD)
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    pod = Pod(d, "older", images["busybox"])
    pod.c = pod.start("x", "sh", "-c", "i=0; while :; do echo $((i += 1)); sleep 0.2; done")
    assert d.exec(pod.c, "echo", "before").stdout == b"before\n"
    pod.boot = boot_id(d, pod.c)
    return pod


def boot_id(d, c):
    return d.exec(c, "cat", "/proc/sys/kernel/random/boot_id").stdout


def no_machine(d):
    """A killed daemon's QEMU is some other process's child, which takes a moment to wait for it."""
    deadline = time.monotonic() + 5
    while d.qemu_pids():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def adopt(pod, how="kill"):
    d = pod.daemon
    getattr(d, how)()
    use(d, INITRD)
    return d.start()


def test_an_older_agent_serves_its_whole_life(old_pod):
    d, c = old_pod.daemon, old_pod.c
    assert old_pod.run("other", "sh", "-c", "echo out; exit 7").exit_code == 7
    assert old_pod.output("other") == "out\n"
    d.client.StopContainer(container_id=c, timeout=0)
    assert d.status(c).exit_code == 137
    old_pod.remove()
    no_machine(d)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_newer_daemon_adopts_its_pods(old_pod, images, how):
    d, c = adopt(old_pod, how), old_pod.c
    assert old_pod.status().state == pb.SANDBOX_READY and d.status(c).state == pb.CONTAINER_RUNNING
    assert boot_id(d, c) == old_pod.boot
    # everything of before works on: exec, a new container, its log, port forwarding's call, the old one's log
    assert old_pod.run("later", "sh", "-c", "echo later; exit 4").exit_code == 4
    assert old_pod.output("later") == "later\n"
    lines = old_pod.output("x").splitlines()
    assert lines == [str(i + 1) for i in range(len(lines))]
    # a volume as kubelet writes it: the agent cannot mirror it and shares it, as it always did
    volume = d.base / "configmap"
    (volume / "..1").mkdir(parents=True)
    (volume / "..1" / "key").write_text("value")
    (volume / "..data").symlink_to("..1")
    (volume / "key").symlink_to("..data/key")
    mount = pb.Mount(container_path="/config", host_path=str(volume), readonly=True)
    assert old_pod.run("configured", "cat", "/config/key", mounts=[mount]).exit_code == 0
    assert old_pod.output("configured") == "value\n"
    # a pod of today beside it
    new = Pod(d, "newer", images["busybox"])
    n = new.start("y", "sleep", "1000")
    # lists have both; the numbers of the older one's guest are not known, and that is all
    stats = {s.attributes.id: s for s in d.client.ListContainerStats().stats}
    assert stats[n].cpu.usage_core_nano_seconds.value > 0
    assert c not in stats or not stats[c].cpu.usage_core_nano_seconds.value
    pods = {s.attributes.id: s for s in d.client.ListPodSandboxStats().stats}
    assert new.id in pods
    d.client.ListPodSandboxMetrics()
    assert "speaks version 1.1" in d.log_text() and "Stats needs 1.2" in d.log_text()
    assert "no method" not in d.log_text()
    new.remove()
    d.client.StopContainer(container_id=c, timeout=0)
    old_pod.remove()
    no_machine(d)


def test_what_the_older_agent_cannot_do_is_said(old_pod, images):
    """An image volume would be an empty directory if its field were just not seen."""
    d = adopt(old_pod)
    mounts = [pb.Mount(container_path="/data", image=pb.ImageSpec(image=images["busybox"]), readonly=True)]
    with pytest.raises(grpc.RpcError) as e:
        old_pod.create("v", "true", mounts=mounts)
    text = e.value.details()
    assert "speaks version 1.1" in text and "volume_disks needs 1.2" in text and old_pod.id[:12] in text, text
    assert not [x for x in d.client.ListContainers(filter={"pod_sandbox_id": old_pod.id}).containers
                if x.metadata.name == "v"]
    # without it the same name works, and a pod started now has it
    assert old_pod.run("v", "true").exit_code == 0
    new = Pod(d, "newer", images["busybox"])
    assert new.run("v", "ls", "/data/bin", mounts=mounts).exit_code == 0
    new.remove()
    old_pod.remove()
