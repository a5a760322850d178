"""Sizes and limits: what a pod asks for is what its VM and its containers get, also while it runs."""
import json
import re
import time
from pathlib import Path

import grpc
import pytest

from conftest import Pod
from cri import container_config, pb, sandbox_config
from machines import machine, wait_template

pytestmark = pytest.mark.vm("sizes of VMs; files of the guest's control groups")

MIB = 1 << 20


def resources(**kw):
    return pb.LinuxContainerResources(**kw)


def pod_resources(**kw):
    return pb.LinuxPodSandboxConfig(resources=resources(**kw))


def guest_memory(d, container):
    text = d.exec(container, "cat", "/proc/meminfo").stdout.decode()
    return int(re.search(r"MemTotal: *(\d+)", text).group(1)) * 1024


def pss(pid):
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: *(\d+)", text, re.M).group(1)) * 1024


def test_larger_pods_are_clones_that_grow(daemon, make_pod):
    wait_template(daemon)
    small = make_pod("small")
    large = make_pod("large", linux=pod_resources(memory_limit_in_bytes=600 * MIB, cpu_quota=200000, cpu_period=100000))
    m = machine(daemon, large.id)
    assert m["cloned"] and m["vcpus"] == 2, m
    assert 696 * MIB <= m["memory_bytes"] < (696 + 128) * MIB, m
    a, b = small.start("c", "sleep", "1000"), large.start("c", "sleep", "1000")
    added = guest_memory(daemon, b) - guest_memory(daemon, a)
    assert added == m["memory_bytes"] - machine(daemon, small.id)["memory_bytes"]
    assert daemon.exec(b, "nproc").stdout == b"2\n"
    assert daemon.exec(a, "nproc").stdout == b"1\n"
    # all of it can be used
    assert daemon.exec(b, "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; "
                       "mkdir /t; echo ok").stdout == b"ok\n"
    daemon.kill()
    daemon.start()
    after = machine(daemon, large.id)
    assert after == m
    assert daemon.exec(b, "nproc").stdout == b"2\n"


def cgroup(d, container, name):
    return d.exec(container, "cat", f"/sys/fs/cgroup/{name}").stdout.decode().strip()


def limits(d, container):
    return d.client.ContainerStatus(container_id=container).status.resources.linux


def test_limits_change_while_the_container_runs(daemon, make_pod):
    d = daemon
    pod = make_pod("updated")
    c = pod.start("c", "sleep", "1000", resources=dict(memory_limit_in_bytes=100 * MIB, cpu_shares=512, cpu_quota=50000,
                                                    cpu_period=100000))
    assert cgroup(d, c, "memory.max") == str(100 * MIB)
    assert cgroup(d, c, "cpu.max") == "50000 100000"
    weight = cgroup(d, c, "cpu.weight")

    # what is not named stays
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=150 * MIB))
    assert cgroup(d, c, "memory.max") == str(150 * MIB)
    assert cgroup(d, c, "cpu.max") == "50000 100000" and cgroup(d, c, "cpu.weight") == weight
    d.client.UpdateContainerResources(container_id=c, linux=resources(
        cpu_quota=75000, cpu_shares=1024, memory_swap_limit_in_bytes=150 * MIB,
        unified={"pids.max": "77", "memory.high": str(140 * MIB)}))
    assert cgroup(d, c, "cpu.max") == "75000 100000"
    assert int(cgroup(d, c, "cpu.weight")) > int(weight)
    assert cgroup(d, c, "pids.max") == "77" and cgroup(d, c, "memory.high") == str(140 * MIB)
    assert cgroup(d, c, "memory.swap.max") == "0"
    want = limits(d, c)
    assert (want.memory_limit_in_bytes, want.cpu_quota, want.cpu_period, want.cpu_shares) == (
        150 * MIB, 75000, 100000, 1024)
    assert want.unified == {"pids.max": "77", "memory.high": str(140 * MIB)}

    # down again; below what is in use it is refused and nothing changes
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=64 * MIB))
    assert cgroup(d, c, "memory.max") == str(64 * MIB)
    d.exec(c, "sh", "-c", "mount -t tmpfs x /mnt 2>/dev/null; head -c 30000000 /dev/zero > /dev/shm/x")
    with pytest.raises(grpc.RpcError) as e:
        d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=8 * MIB,
                                                                          unified={"pids.max": "5"}))
    assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION and "in use" in e.value.details()
    assert cgroup(d, c, "memory.max") == str(64 * MIB) and cgroup(d, c, "pids.max") == "77"
    # one value that the kernel refuses takes back the others
    with pytest.raises(grpc.RpcError) as e:
        d.client.UpdateContainerResources(container_id=c, linux=resources(
            memory_limit_in_bytes=128 * MIB, unified={"pids.max": "many"}))
    assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "pids.max" in e.value.details()
    assert cgroup(d, c, "memory.max") == str(64 * MIB)
    assert limits(d, c).memory_limit_in_bytes == 64 * MIB

    want = limits(d, c)
    d.kill()
    d.start()
    assert limits(d, c) == want
    d.client.UpdateContainerResources(container_id=c, linux=resources(cpu_shares=2048))
    assert limits(d, c).memory_limit_in_bytes == 64 * MIB and limits(d, c).cpu_shares == 2048


@pytest.mark.parametrize("handler", ["aspis-vm", "aspis-host"])
def test_oom_score_changes_while_the_container_runs(daemon, make_pod, handler):
    """Of all processes but those that have chosen their own, and of commands executed later."""
    d = daemon
    pod = make_pod("oom", handler=handler)
    c = pod.start("c", "sh", "-c", "(echo 777 > /proc/self/oom_score_adj; exec sleep 1001) & sleep 1002 & exec sleep 1000",
                  resources=dict(oom_score_adj=500))

    def scores():
        text = d.exec(c, "sh", "-c", "for p in /proc/[0-9]*; do echo $(tr '\\0' ' ' < $p/cmdline) $(cat $p/oom_score_adj); done").stdout
        return {line.split()[1]: int(line.split()[2]) for line in text.decode().splitlines() if line.startswith("sleep")}

    deadline = time.monotonic() + 20
    while scores() != {"1000": 500, "1001": 777, "1002": 500}:
        assert time.monotonic() < deadline, scores()
    d.client.UpdateContainerResources(container_id=c, linux=resources(oom_score_adj=600))
    assert scores() == {"1000": 600, "1001": 777, "1002": 600}
    assert limits(d, c).oom_score_adj == 600
    assert d.exec(c, "cat", "/proc/self/oom_score_adj").stdout == b"600\n"
    # what is not named stays; more than there is is the most
    d.client.UpdateContainerResources(container_id=c, linux=resources(cpu_shares=512))
    assert scores()["1000"] == 600
    d.kill()
    d.start()
    d.client.UpdateContainerResources(container_id=c, linux=resources(oom_score_adj=5000))
    assert scores() == {"1000": 1000, "1001": 777, "1002": 1000}


def test_update_before_start_and_after_the_end(daemon, make_pod):
    d = daemon
    pod = make_pod("early")
    c = pod.create("c", "sh", "-c", "cat /sys/fs/cgroup/memory.max")
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=80 * MIB))
    d.client.StartContainer(container_id=c)
    d.wait_state(c, pb.CONTAINER_EXITED)
    assert pod.output("c") == f"{80 * MIB}\n"
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=90 * MIB))
    assert limits(d, c).memory_limit_in_bytes == 90 * MIB


@pytest.mark.parametrize("what,says", [
    (dict(unified={"cgroup.procs": "1"}), "cgroup.procs"),
    (dict(unified={"memory/../cgroup.kill": "1"}), "memory"),
    (dict(cpuset_cpus="0;1"), "cpuset_cpus"),
    (dict(cpuset_cpus="4095"), "cpuset"),
    (dict(memory_limit_in_bytes=1 << 20), str(4 * MIB)),
    (dict(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=MIB), "swap"),
    (dict(cpu_quota=-7), "negative"),
])
def test_limits_that_cannot_be(daemon, make_pod, what, says):
    pod = make_pod("refused")
    with pytest.raises(grpc.RpcError) as e:
        pod.create("c", "true", resources=dict(**what))
    assert says in e.value.details() and e.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED), e.value
    c = pod.create("d", "true")
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.UpdateContainerResources(container_id=c, linux=resources(**what))
    assert says in e.value.details()


def test_pod_grows_and_shrinks_with_its_limits(daemon, make_pod):
    d = daemon
    wait_template(d)
    pod = make_pod("resized", linux=pod_resources(memory_limit_in_bytes=100 * MIB, cpu_quota=50000, cpu_period=100000))
    c = pod.start("c", "sleep", "1000", resources=dict(memory_limit_in_bytes=100 * MIB))
    base = guest_memory(d, c)
    size = machine(d, pod.id)["memory_bytes"]
    # as kubelet does it: the pod first, then the container
    d.client.UpdatePodSandboxResources(pod_sandbox_id=pod.id, resources=resources(
        memory_limit_in_bytes=700 * MIB, cpu_quota=200000))
    m = machine(d, pod.id)
    assert m["memory_bytes"] >= 796 * MIB and m["vcpus"] == 2, m
    assert guest_memory(d, c) - base == m["memory_bytes"] - size
    assert d.exec(c, "nproc").stdout == b"2\n"
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=700 * MIB))
    hog = "dd if=/dev/zero of=/dev/null bs=500M count=1 2>/dev/null && echo fits"
    assert d.exec(c, "sh", "-c", hog, timeout=60).stdout == b"fits\n"
    d.kill()
    d.start()
    assert machine(d, pod.id) == m
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=120 * MIB))
    d.client.UpdatePodSandboxResources(pod_sandbox_id=pod.id, resources=resources(memory_limit_in_bytes=120 * MIB))
    deadline = time.monotonic() + 20
    while guest_memory(d, c) > base + 256 * MIB:  # what the kernel can let go of
        assert time.monotonic() < deadline, (guest_memory(d, c), base)
        time.sleep(0.2)
    # a container's own growth counts where the pod's does not come first
    d.client.UpdateContainerResources(container_id=c, linux=resources(memory_limit_in_bytes=400 * MIB))
    assert machine(d, pod.id)["memory_bytes"] >= 496 * MIB


def test_more_than_the_host_is_refused(daemon, make_pod):
    pod = make_pod("greedy")
    c = pod.start("c", "sleep", "1000")
    got = daemon.client.UpdateContainerResources
    got(container_id=c, linux=resources(memory_limit_in_bytes=1 << 50))
    assert machine(daemon, pod.id)["vcpus"] == 1


def test_memory_hog_dies_at_its_limit(daemon, make_pod):
    pod = make_pod("hog")
    status = pod.run("c", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1",
                     resources=dict(memory_limit_in_bytes=64 * MIB))
    assert status.reason == "OOMKilled" and status.exit_code == 137, status
    again = pod.run("d", "true", resources=dict(memory_limit_in_bytes=4 * MIB))
    assert again.exit_code == 0


def test_pod_without_a_limit_grows_when_it_needs_to_and_gives_back(daemon, make_pod):
    """256 MiB to begin with; 600 MB asked for, used, freed."""
    wait_template(daemon)
    pod = make_pod("hungry")
    c = pod.start("c", "sleep", "1000")
    m = machine(daemon, pod.id)
    assert m["cloned"] and m["memory_bytes"] == 256 * MIB
    before = pss(m["pid"])
    hog = pod.start("hog", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=600M count=1 2>/dev/null; echo done $?; "
                    "dd if=/dev/zero bs=600M count=1 2>/dev/null | sleep 3")
    daemon.wait_state(hog, pb.CONTAINER_RUNNING)
    peak, deadline = 0, time.monotonic() + 60
    while daemon.client.ContainerStatus(container_id=hog).status.state == pb.CONTAINER_RUNNING:
        peak = max(peak, pss(m["pid"]))
        assert time.monotonic() < deadline
        time.sleep(0.1)
    status = daemon.client.ContainerStatus(container_id=hog).status
    assert status.reason != "OOMKilled" and pod.output("hog") == "done 0\n", (status, pod.output("hog"))
    assert machine(daemon, pod.id)["memory_bytes"] >= 900 * MIB
    assert peak > before + 550 * 10**6, (before, peak)
    deadline = time.monotonic() + 30
    while pss(m["pid"]) > before + 150 * MIB:
        assert time.monotonic() < deadline, (before, peak, pss(m["pid"]))
        time.sleep(0.5)
    # what others share with this clone is what it was
    assert make_pod("sibling").run("x", "true").exit_code == 0
    daemon.kill()
    daemon.start()
    assert machine(daemon, pod.id)["memory_bytes"] >= 900 * MIB


def test_growth_ends_at_the_ceiling(own_daemon, images):
    d = own_daemon(overrides={"machine": {"memory_ceiling_mib": 384}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    wait_template(d)
    pod = Pod(d, "bounded", images["busybox"])
    status = pod.run("c", "dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1")
    assert status.exit_code == 137 and status.reason == "OOMKilled", status
    assert machine(d, pod.id)["memory_bytes"] == 384 * MIB
    assert pod.run("d", "true").exit_code == 0
    pod.remove()


def test_pods_without_a_limit_do_not_outgrow_the_host(own_daemon, images):
    """A host without room gives none: the guest's OOM killer acts, not the host's, until there is room again."""
    d = own_daemon(overrides={"machine": {"host_reserve_mib": 1 << 24}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    wait_template(d)
    pod = Pod(d, "greedy", images["busybox"])
    before = machine(d, pod.id)["memory_bytes"]
    hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"]
    for n in range(2):
        status = pod.run(f"c{n}", *hog)
        assert status.exit_code == 137 and status.reason == "OOMKilled", status
    assert machine(d, pod.id)["memory_bytes"] == before
    assert "the host is short of memory" in d.log_text()
    # it asks again after a while, each time
    asked = d.log_text().count("the host is short of memory")
    deadline = time.monotonic() + 60
    n = 2
    while d.log_text().count("the host is short of memory") == asked:
        assert time.monotonic() < deadline, "a guest that was refused once never asks again"
        time.sleep(2)
        assert pod.run(f"c{n}", *hog).reason == "OOMKilled"
        n += 1
    # and the daemon's successor may find room
    d.stop()
    d.overrides["machine"]["host_reserve_mib"] = 0
    d.write_config()
    d.start()
    assert pod.run("last", *hog).exit_code == 0
    assert machine(d, pod.id)["memory_bytes"] > before
    pod.remove()


def test_the_host_cgroup_holds_all_of_the_pod(daemon, make_pod, tmp_path):
    (tmp_path / "v").write_text("x")
    pod = make_pod("grouped")
    pod.start("c", "sleep", "1000", mounts=[pb.Mount(host_path=str(tmp_path), container_path="/v")],
              resources=dict(cpuset_cpus="0", cpuset_mems="0"))
    m = machine(daemon, pod.id)
    share = json.loads((daemon.run / "sandboxes" / pod.id / "share.json").read_text())
    for pid in (m["pid"], share["pid"]):
        seen = 0
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if mounted(controllers):
                assert path == m["cgroup"], (pid, line)
                seen += 1
        assert seen > 0
    # the container's cpuset is of host CPUs: it is the VM's
    allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", Path(f"/proc/{m['pid']}/status").read_text()).group(1)
    assert allowed == "0"


def mounted(controllers):
    """Is there a hierarchy of these ("": version 2)?"""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2" and controllers == "":
            return True
        if kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options):
            return True
    return False


def test_very_large_pods_are_clones_too(daemon, make_pod):
    """More than the first of the two devices can add."""
    if int(re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text()).group(1)) < 4 << 20:
        pytest.skip("this host is too small")
    wait_template(daemon)
    pod = make_pod("huge", linux=pod_resources(memory_limit_in_bytes=2800 * MIB))
    m = machine(daemon, pod.id)
    assert m["cloned"] and m["memory_bytes"] >= 2896 * MIB, m
    c = pod.start("c", "sleep", "1000")
    assert guest_memory(daemon, c) > 2750 * MIB
    daemon.client.UpdatePodSandboxResources(pod_sandbox_id=pod.id, resources=resources(memory_limit_in_bytes=400 * MIB))
    deadline = time.monotonic() + 30
    while guest_memory(daemon, c) > 1024 * MIB:
        assert time.monotonic() < deadline, guest_memory(daemon, c)
        time.sleep(0.2)


def test_a_host_limit_too_small_for_a_vm_is_refused(daemon, make_pod):
    memory = next((line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
                   if " - cgroup " in line and "memory" in line.split()[-1].split(",")), None)
    if memory is None:
        pytest.skip("cgroup v1's memory controller is not mounted here")
    parent = f"{daemon.cgroup}-small"
    at = Path(memory + parent)
    at.mkdir()
    try:
        (at / "memory.limit_in_bytes").write_text(str(4 * MIB))
        with pytest.raises(grpc.RpcError) as e:
            make_pod("tiny", linux=pb.LinuxPodSandboxConfig(cgroup_parent=parent))
        assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert str(4 * MIB) in e.value.details() and str(96 * MIB) in e.value.details()
    finally:
        at.rmdir()
