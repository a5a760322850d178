"""Huge pages: a container's limit is reserved in its VM out of added memory, bounded, mounted, and given back."""
import os
import re
import subprocess
from pathlib import Path

import grpc
import pytest

from cri import pb
from machines import machine

MIB = 1 << 20
CODE = grpc.StatusCode
VM = pytest.mark.vm("the guest's own huge pages")


def limit(n, size="2MB"):
    return dict(hugepage_limits=[pb.HugepageLimit(page_size=size, limit=n)])


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    out = tmp_path_factory.mktemp("huge") / "huge"
    subprocess.run(["cc", "-static", "-O1", "-o", out, Path(__file__).with_name("huge.c")], check=True)
    return pb.Mount(host_path=str(out), container_path="/huge", readonly=True)


def meminfo(d, c, name):
    text = d.exec(c, "cat", "/proc/meminfo").stdout.decode()
    return int(re.search(rf"^{name}: *(\d+)", text, re.M).group(1))


def limit_of(d, c):
    return d.exec(c, "cat", "/sys/fs/cgroup/hugetlb.2MB.max").stdout.decode().strip()


@VM
def test_reserved_bounded_and_given_back(daemon, make_pod, tool):
    d = daemon
    pod = make_pod("huge")
    before = machine(d, pod.id)["memory_bytes"]
    first = pod.start("first", "sleep", "1000", mounts=[tool], resources=limit(64 * MIB))
    assert meminfo(d, first, "HugePages_Total") == 32
    assert machine(d, pod.id)["memory_bytes"] >= before + 64 * MIB
    assert limit_of(d, first) == str(64 * MIB)
    # all of them are the container's, and no more
    assert d.exec(first, "/huge", "anon", "32").stdout == b"32 pages\n"
    assert d.exec(first, "/huge", "anon", "33").exit_code == 1
    # other memory is what it was
    small = pod.start("small", "sleep", "1000", mounts=[tool], resources=limit(0))
    assert meminfo(d, small, "HugePages_Total") == 32 and limit_of(d, small) == "0"
    assert d.exec(small, "/huge", "anon", "1").exit_code == 128 + 7  # SIGBUS
    second = pod.start("second", "sleep", "1000", mounts=[tool], resources=limit(32 * MIB))
    assert meminfo(d, second, "HugePages_Total") == 48
    # kubelet's other sizes are of the host, and 0
    pod.start("sizes", "sleep", "1000", resources=dict(hugepage_limits=[
        pb.HugepageLimit(page_size="1GB", limit=0), pb.HugepageLimit(page_size="2MB", limit=0)]))

    # a resize moves both; what is not named stays
    d.client.UpdateContainerResources(container_id=second, linux=pb.LinuxContainerResources(**limit(96 * MIB)))
    assert meminfo(d, second, "HugePages_Total") == 80 and limit_of(d, second) == str(96 * MIB)
    assert d.exec(second, "/huge", "anon", "48").stdout == b"48 pages\n"
    d.client.UpdateContainerResources(container_id=second, linux=pb.LinuxContainerResources(cpu_shares=512))
    assert limit_of(d, second) == str(96 * MIB)
    status = d.client.ContainerStatus(container_id=second).status.resources.linux
    assert [(h.page_size, h.limit) for h in status.hugepage_limits] == [("2MB", 96 * MIB)]
    d.kill()
    d.start()
    assert meminfo(d, second, "HugePages_Total") == 80
    d.client.UpdateContainerResources(container_id=second, linux=pb.LinuxContainerResources(**limit(4 * MIB)))
    assert meminfo(d, second, "HugePages_Total") == 34

    # they go with their containers
    for c in (first, second):
        d.client.StopContainer(container_id=c, timeout=0)
        d.client.RemoveContainer(container_id=c)
    assert meminfo(d, small, "HugePages_Total") == 0


@VM
def test_a_sysctl_reserves_beside(daemon, make_pod, tool):
    """vm.nr_hugepages as a sysctl of the pod is not undone by limits that come and go."""
    pod = make_pod("beside", linux=pb.LinuxPodSandboxConfig(sysctls={"vm.nr_hugepages": "3"}))
    c = pod.start("c", "sleep", "1000", resources=limit(8 * MIB))
    assert meminfo(daemon, c, "HugePages_Total") == 7
    daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(**limit(0)))
    assert meminfo(daemon, c, "HugePages_Total") == 3


@pytest.fixture
def hugetlbfs(tmp_path):
    made = []

    def make(name="hugepages", size="2M"):
        at = tmp_path / name
        at.mkdir()
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={size}", "none", at], check=True)
        made.append(at)
        return at

    yield make
    for at in made:
        subprocess.run(["umount", at], check=True)


@VM
def test_volume_of_huge_pages(daemon, make_pod, tool, hugetlbfs):
    """As kubelet makes an emptyDir of medium HugePages: a hugetlbfs of the host, group and mode set."""
    d = daemon
    at = hugetlbfs()
    os.chown(at, 0, 2000)
    at.chmod(0o2770)
    volume = pb.Mount(host_path=str(at), container_path="/pages")
    pod = make_pod("volume")
    a = pod.start("a", "sleep", "1000", mounts=[tool, volume], resources=limit(16 * MIB))
    assert d.exec(a, "stat", "-c", "%a %u %g", "/pages").stdout == b"2770 0 2000\n"
    assert b" hugetlbfs " in d.exec(a, "grep", " /pages ", "/proc/mounts").stdout
    assert d.exec(a, "/huge", "file", "/pages/x", "8").stdout == b"8 pages\n"
    assert meminfo(d, a, "HugePages_Free") == 0
    assert list(at.iterdir()) == [] and d.exec(a, "ls", "/pages").stdout == b"x\n"
    # the pod's other containers see the same, and so does the next one of this name
    b = pod.start("b", "sleep", "1000", mounts=[tool, pb.Mount(host_path=str(at), container_path="/p", readonly=True)])
    assert d.exec(b, "stat", "-c", "%s", "/p/x").stdout == f"{16 * MIB}\n".encode()
    assert d.exec(b, "rm", "/p/x").exit_code != 0
    d.client.StopContainer(container_id=a, timeout=0)
    d.client.RemoveContainer(container_id=a)
    a = pod.start("a", "sleep", "1000", mounts=[tool, volume], resources=limit(16 * MIB), attempt=1)
    assert d.exec(a, "rm", "/pages/x").exit_code == 0
    assert d.exec(a, "/huge", "file", "/pages/y", "8").stdout == b"8 pages\n"
    # another pod has its own
    other = make_pod("other")
    c = other.start("c", "ls", "-A", "/pages", mounts=[volume])
    d.wait_state(c, pb.CONTAINER_EXITED)
    assert other.output("c") == ""


@VM
def test_volumes_that_cannot_be(daemon, make_pod, hugetlbfs):
    pod = make_pod("odd")
    full, large = hugetlbfs("full"), hugetlbfs("large", "1G")
    (full / "sub").mkdir()
    for source, says in ((full, "not empty"), (full / "sub", "the whole only"), (large, "1048576 KiB")):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "true", mounts=[pb.Mount(host_path=str(source), container_path="/pages")])
        assert says in e.value.details() and str(source) in e.value.details(), e.value.details()


@VM
@pytest.mark.parametrize("what,code,says", [
    (limit(1 << 30, "1GB"), CODE.UNIMPLEMENTED, "huge pages of 1GB"),
    (limit(2 * MIB, "2 MB"), CODE.INVALID_ARGUMENT, "2 MB"),
    (limit(3 * MIB), CODE.INVALID_ARGUMENT, "3145728"),
    (limit(1 << 49), CODE.FAILED_PRECONDITION, f"{1 << 29} MiB of huge pages"),
])
def test_limits_that_cannot_be(daemon, make_pod, what, code, says):
    pod = make_pod("refused")
    with pytest.raises(grpc.RpcError) as e:
        pod.create("c", "true", resources=what)
    assert e.value.code() == code and says in e.value.details(), e.value
    c = pod.start("d", "sleep", "1000")
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(**what))
    assert e.value.code() == code and says in e.value.details(), e.value
    assert meminfo(daemon, c, "HugePages_Total") == 0


def test_on_the_host_what_cannot_be_bounded_is_refused(daemon, make_pod):
    if Path("/sys/fs/cgroup/hugetlb").is_dir():
        pytest.skip("this host bounds huge pages")
    pod = make_pod("onhost", handler="aspis-host")
    with pytest.raises(grpc.RpcError) as e:
        pod.create("c", "true", resources=limit(2 * MIB))
    assert e.value.code() == CODE.FAILED_PRECONDITION and "huge pages of 2MB" in e.value.details()
    c = pod.start("d", "sleep", "1000", resources=limit(0))
    daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(**limit(0)))
