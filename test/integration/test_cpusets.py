"""cpuset_cpus of containers that share a VM: each keeps to its CPUs of the host, now and after an update."""
import os
import re
import time
from pathlib import Path

import grpc
import pytest

from cri import pb
from machines import machine, wait_template

pytestmark = [pytest.mark.vm("vCPUs pinned to CPUs of the host"),
              pytest.mark.skipif(os.cpu_count() < 2, reason="this host has one CPU")]


def cpus(container_cpus, **kw):
    return dict(cpuset_cpus=container_cpus, **kw)


def threads(pid):
    """CPUs that each thread of QEMU may use, and what it has used so far in ticks."""
    out = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text()).group(1)
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        out[int(task.name)] = (allowed, int(fields[11]) + int(fields[12]))
    return out


def busy_on(d, pid, container):
    """The CPUs of the host on which the VM works while this container does."""
    before = threads(pid)
    d.exec(container, "timeout", "2", "sh", "-c", "while :; do :; done", timeout=30)
    used = {}
    for tid, (allowed, ticks) in threads(pid).items():
        used[allowed] = used.get(allowed, 0) + ticks - before.get(tid, (allowed, ticks))[1]
    return max(used, key=used.get), used


def guest_cpus(d, container):
    text = d.exec(container, "cat", "/proc/self/status").stdout.decode()
    return re.search(r"Cpus_allowed_list:\s*(\S+)", text).group(1)


def update(d, container, **kw):
    d.client.UpdateContainerResources(container_id=container, linux=pb.LinuxContainerResources(**kw))


def test_exclusive_and_shared(daemon, make_pod):
    d = daemon
    wait_template(d)
    pod = make_pod("static")
    shared = pod.start("shared", "sleep", "1000", resources=cpus("0-1"))
    m = machine(d, pod.id)
    assert m["vcpus"] == 1 and set(a for a, _ in threads(m["pid"]).values()) == {"0-1"}
    # as kubelet's static CPU manager: one container gets CPU 1, the pool shrinks a little later
    exclusive = pod.start("exclusive", "sleep", "1000", resources=cpus("1", cpu_shares=1024))
    m = machine(d, pod.id)
    assert m["vcpus"] == 2, m
    assert guest_cpus(d, exclusive) == "1" and guest_cpus(d, shared) == "0-1"
    update(d, shared, cpuset_cpus="0")
    assert guest_cpus(d, exclusive) == "1" and guest_cpus(d, shared) == "0"
    for c, cpu in ((shared, "0"), (exclusive, "1")):
        on, used = busy_on(d, m["pid"], c)
        assert on == cpu, used
        assert d.client.ContainerStatus(container_id=c).status.resources.linux.cpuset_cpus == cpu

    # a later daemon goes on from there
    d.kill()
    d.start()
    assert guest_cpus(d, exclusive) == "1" and busy_on(d, m["pid"], exclusive)[0] == "1"
    update(d, shared, cpuset_cpus="1")
    update(d, exclusive, cpuset_cpus="0")
    assert busy_on(d, m["pid"], exclusive)[0] == "0" and busy_on(d, m["pid"], shared)[0] == "1"

    # one that ends gives its CPUs back; with one set left it is the VM's
    d.client.StopContainer(container_id=exclusive, timeout=0)
    d.client.RemoveContainer(container_id=exclusive)
    assert set(a for a, _ in threads(m["pid"]).values()) == {"1"}
    assert guest_cpus(d, shared) == "0-1"  # both vCPUs, both on CPU 1
    update(d, shared, cpuset_cpus="0-1")
    assert set(a for a, _ in threads(m["pid"]).values()) == {"0-1"}


def test_one_without_a_set(daemon, make_pod):
    """It may run anywhere; who has a set keeps to it, before its first instruction."""
    d = daemon
    wait_template(d)
    pod = make_pod("mixed")
    free = pod.start("free", "sleep", "1000")
    status = pod.run("bound", "grep", "Cpus_allowed_list", "/proc/self/status", resources=cpus("1"))
    assert status.exit_code == 0 and pod.output("bound").split()[-1] == "1"
    assert machine(d, pod.id)["vcpus"] == 2
    bound = pod.start("bound2", "sleep", "1000", resources=cpus("1"))
    assert guest_cpus(d, free) == "0-1" and guest_cpus(d, bound) == "1"
    # a VM that grows: a new vCPU is of the pool
    d.client.UpdatePodSandboxResources(pod_sandbox_id=pod.id, resources=pb.LinuxContainerResources(
        memory_limit_in_bytes=400 << 20))
    assert guest_cpus(d, bound) == "1"


def test_sets_that_cannot_be_change_nothing(daemon, make_pod):
    d = daemon
    wait_template(d)
    pod = make_pod("refused")
    a = pod.start("a", "sleep", "1000", resources=cpus("0"))
    b = pod.start("b", "sleep", "1000", resources=cpus("1"))
    for bad in ("4095", "1023", "0-"):
        with pytest.raises(grpc.RpcError) as e:
            update(d, b, cpuset_cpus=bad)
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "cpuset" in e.value.details(), e.value
    pid = machine(d, pod.id)["pid"]
    assert busy_on(d, pid, b)[0] == "1" and busy_on(d, pid, a)[0] == "0"
    assert d.client.ContainerStatus(container_id=b).status.resources.linux.cpuset_cpus == "1"


def test_too_few_vcpus(own_daemon, images):
    from conftest import Pod
    d = own_daemon(overrides={"machine": {"max_vcpus": 1}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    pod = Pod(d, "narrow", images["busybox"])
    pod.start("a", "sleep", "1000", resources=cpus("0"))
    with pytest.raises(grpc.RpcError) as e:
        pod.create("b", "true", resources=cpus("1"))
    assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "take 2 vcpus, the vm can have 1" in e.value.details(), e.value
    assert pod.run("c", "true", resources=cpus("0")).exit_code == 0
    pod.remove()
