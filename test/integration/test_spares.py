"""Spare VMs: ready before anybody asks, nobody's until they are taken, and as private as any other then."""
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

import spares
from conftest import Pod
from cri import pb, sandbox_config

pytestmark = pytest.mark.vm("VMs made ahead")

PODS = 4


def timeline(d, sandbox):
    return json.loads(d.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])["timeline"]


@pytest.fixture
def d(own_daemon, images):
    d = own_daemon(overrides={"machine": {"spares": 1, "fork": False}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    spares.wait_ready(d)
    yield d
    if d.proc is None:
        d.start()
    d.remove_all()
    d.stop()
    assert not spares.left(d)


@pytest.fixture
def pods(d, images):
    made = []

    def make(name, **more):
        made.append(Pod(d, name, images["busybox"], **more))
        return made[-1]

    yield make
    for p in made:
        p.remove()


def test_pods_of_spares_share_nothing(d, pods):
    """S11 again: none of it may come from the template or from the time before the pod."""
    script = ("cat /proc/sys/kernel/random/uuid; head -c 65536 /dev/urandom | sha256sum; "
              "cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/eth0/address; hostname; "
              "ip -4 -o addr show eth0 | awk '{print $4}'")
    answers, offsets = [], []
    for n in range(PODS):
        spares.wait_ready(d, n + 1)
        pod = pods(f"spare{n}")
        assert "spare taken" in timeline(d, pod.id)
        c = pod.start("c", "sleep", "1000")
        answers.append(d.exec(c, "sh", "-c", script).stdout.decode().split("\n"))
        before = time.time()
        shown = d.exec(c, "adjtimex").stdout.decode()
        guest = (int(re.search(r"tv_sec: *(\d+)", shown).group(1))
                 + int(re.search(r"tv_usec: *(\d+)", shown).group(1)) / 1e6)
        offsets.append(max(before - guest, guest - time.time(), 0))
    for k, what in enumerate(["uuid", "random bytes", "boot id", "mac", "host name", "address"]):
        seen = [a[k] for a in answers]
        assert all(seen) and len(set(seen)) == PODS, (what, seen)
    assert not {"02:a5:15:00:00:01", "02:a5:15:00:00:02"} & {a[3] for a in answers}
    assert sorted(offsets)[PODS // 2] < 0.010 and max(offsets) < 0.2, offsets


def test_what_a_spare_has_touched_counts_as_its_pods(d, pods):
    """Although it stays charged to the group in which the VM was a spare, where kernels do not move charges."""
    pod = pods("charged")
    assert "spare taken" in timeline(d, pod.id)
    m = json.loads(d.client.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])["machine"]

    def ratio():
        rollup = Path(f"/proc/{m['pid']}/smaps_rollup").read_text()
        own = int(re.search(r"^Anonymous: +(\d+) kB", rollup, re.M).group(1)) << 10
        assert own > 20 << 20
        stats = d.client.PodSandboxStats(pod_sandbox_id=pod.id).stats
        return stats.linux.memory.working_set_bytes.value / own

    if not d.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.memory.working_set_bytes.value:
        pytest.skip("the host does not account for memory")
    assert 0.75 < ratio() < 2
    d.restart()
    assert 0.75 < ratio() < 2


def test_nothing_is_left_of_the_warming_up(d, pods):
    pod = pods("clean")
    assert "spare taken" in timeline(d, pod.id)
    c = pod.start("c", "sleep", "1000")
    text = d.exec(c, "sh", "-c", "ip addr; ip route; ip -6 route; cat /proc/mounts; cat /etc/hosts; hostname; "
                                 "ls /sys/block; ls /").stdout.decode()
    for trace in ("192.0.2", "2001:db8", "warm", "spare"):
        assert trace not in text, text
    # the pod's own network works
    assert d.exec(c, "ping", "-c", "1", "-W", "5", re.search(r"default via (\S+)", text).group(1)).exit_code == 0
    # no disks but the scratch disk and the two for images, and no event or container is left over
    assert [x.id for x in d.client.ListContainers().containers] == [c]
    assert [x for x in text.split() if x.startswith("vd")] == ["vda", "vdb", "vdc"]
    d.client.StopContainer(container_id=c, timeout=0)
    assert d.status(c).exit_code == 137


def test_a_taken_spare_is_confined_like_any_pod(d, pods):
    (spare,) = spares.vms(d)
    parent = f"{d.cgroup}/slice{os.getpid()}"
    pod = pods("confined", linux=pb.LinuxPodSandboxConfig(cgroup_parent=parent))
    assert "spare taken" in timeline(d, pod.id)
    groups = Path(f"/proc/{spare}/cgroup").read_text().splitlines()
    assert groups and all(g.split(":", 2)[2] == f"{parent}/aspis-{pod.id}" for g in groups), groups
    st = dict(line.split(":", 1) for line in Path(f"/proc/{spare}/status").read_text().splitlines())
    assert int(st["CapEff"], 16) == 0 and st["NoNewPrivs"].strip() == "1" and st["Seccomp"].strip() == "2"
    assert "0" not in st["Uid"].split()
    pod.remove()
    for root in Path("/sys/fs/cgroup").iterdir():
        base = root / parent.lstrip("/")
        if base.is_dir():
            base.rmdir()


def test_spares_end_with_the_daemon_and_are_collected_after_a_kill(d, pods):
    pod = pods("stays")
    c = pod.start("c", "sleep", "1000")
    spares.wait_ready(d, 2)
    (spare,) = spares.vms(d)
    d.kill()
    assert spares.vms(d) == [spare]
    d.start()
    assert spare not in spares.vms(d)
    assert d.exec(c, "echo", "still").stdout == b"still\n"
    spares.wait_ready(d, 3)
    d.stop()
    assert not spares.vms(d)
    d.start()
    assert d.exec(c, "echo", "still").stdout == b"still\n"


def test_a_dead_spare_is_replaced(d, pods):
    (spare,) = spares.vms(d)
    os.kill(spare, signal.SIGKILL)
    spares.wait_log(d, "a spare vm died")
    early = pods("early")  # does not wait for another
    assert early.run("x", "true").exit_code == 0
    spares.wait_ready(d, 2)
    assert "spare taken" in timeline(d, pods("late").id)


def test_a_spare_of_other_inputs_is_not_used(own_daemon, images):
    import shutil
    from daemon import INITRD
    d = own_daemon(overrides={"machine": {"spares": 1, "fork": False}})
    initrd = d.base / "initrd"
    shutil.copy(INITRD, initrd)
    d.overrides["machine"]["initrd"] = str(initrd)
    d.write_config()
    d.start()
    spares.wait_ready(d)
    (old,) = spares.vms(d)
    shutil.copy(INITRD, initrd.with_suffix(".new"))
    initrd.with_suffix(".new").rename(initrd)
    i = d.run_pod(sandbox_config("other"))
    assert "spare taken" not in timeline(d, i)
    spares.wait_ready(d, 2)
    assert old not in spares.vms(d)
    assert "spare taken" in timeline(d, d.run_pod(sandbox_config("fresh")))


def test_the_same_pod_twice_takes_one_spare(d):
    config = sandbox_config("twice")
    i = d.run_pod(config)
    spares.wait_ready(d, 2)
    assert d.run_pod(config) == i
    assert len(spares.vms(d)) == 1  # given back
    assert "spare taken" in timeline(d, d.run_pod(sandbox_config("another")))


def test_a_spare_grows_to_its_pods_size(d, pods):
    pod = pods("large", linux=pb.LinuxPodSandboxConfig(
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=400 << 20)))
    assert "spare taken" in timeline(d, pod.id)
    info = json.loads(d.client.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])
    assert info["machine"]["memory_bytes"] >= 400 << 20
    c = pod.start("c", "sleep", "1000")
    assert int(re.search(r"MemTotal: *(\d+)", d.exec(c, "cat", "/proc/meminfo").stdout.decode()).group(1)) > 400 << 10
