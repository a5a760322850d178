"""Block devices of the host given to containers: kubelet's volumeDevices."""
import os
import subprocess
from pathlib import Path

import pytest

from cri import pb
from test_volumes import fails, out, src, within  # noqa: F401

pytestmark = pytest.mark.vm("disks of VMs")

MIB = 1 << 20


def loop_device(path, size=16 * MIB):
    with open(path, "wb") as f:
        f.truncate(size)
    r = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True)
    if r.returncode != 0:
        pytest.skip(f"no loop devices here: {r.stderr.strip()}")
    return r.stdout.strip()


@pytest.fixture
def disk(src):  # noqa: F811
    device = loop_device(src / "disk.img")
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def device(host, at, permissions="rwm"):
    return pb.Device(host_path=host, container_path=at, permissions=permissions)


def test_a_disk_both_ways(daemon, pod, disk):
    Path(disk).write_bytes(b"from the host")
    c = pod.start("x", "sleep", "1000", devices=[device(disk, "/dev/data")])
    assert out(daemon, c, "head -c 13 /dev/data; stat -c ' %F' /dev/data; blockdev --getsize64 /dev/data") \
        == f"from the host block special file\n{16 * MIB}\n"
    out(daemon, c, "echo -n from the guest | dd of=/dev/data bs=1 seek=1048576 conv=notrunc,fsync 2>/dev/null")
    with open(disk, "rb") as f:
        f.seek(MIB)
        assert f.read(14) == b"from the guest"
    out(daemon, c, "dd if=/dev/urandom of=/dev/data bs=1M count=16 conv=fsync 2>/dev/null")
    in_guest = out(daemon, c, "sha256sum < /dev/data").split()[0]
    assert in_guest == subprocess.run(["sha256sum", disk], capture_output=True, text=True, check=True).stdout.split()[0]
    # nobody else in the pod may open it
    other = pod.start("y", "sleep", "1000")
    major, minor = (int(n, 16) for n in out(daemon, c, "stat -c '%t %T' /dev/data").split())
    out(daemon, other, f"mknod /tmp-disk b {major} {minor}")
    assert "not permitted" in fails(daemon, other, "head -c 1 /tmp-disk")
    daemon.client.RemoveContainer(container_id=c)
    again = pod.start("z", "sleep", "1000", devices=[device(disk, "/dev/again")])
    assert out(daemon, again, "sha256sum < /dev/again").split()[0] == in_guest
    assert len([d for d in out(daemon, again, "ls /sys/block").split() if d.startswith("vd")]) == 4  # scratch, two for images


def test_read_only(daemon, pod, disk):
    c = pod.start("x", "sleep", "1000", devices=[device(disk, "/dev/data", "r")])
    assert out(daemon, c, "head -c 4 /dev/data | od -An -tx1").split() == ["00"] * 4
    assert fails(daemon, c, "echo x > /dev/data")
    assert out(daemon, c, "cat /sys/block/vd*/ro").split().count("1") >= 2  # the image is the other


def test_a_disk_outlives_the_daemon(daemon, make_pod, disk):
    pod = make_pod("disk-outlives")
    c = pod.start("x", "sleep", "1000", devices=[device(disk, "/dev/data")])
    daemon.kill()
    daemon.start()
    out(daemon, c, "echo still here | dd of=/dev/data conv=notrunc,fsync 2>/dev/null")
    with open(disk, "rb") as f:
        assert f.read(10) == b"still here"
    daemon.client.RemoveContainer(container_id=c)
    # nobody holds it any more
    holders = [p for p in Path("/proc").glob("[0-9]*/fd/*") if is_link_to(p, disk)]
    within(10, lambda: not [p for p in holders if is_link_to(p, disk)])


def is_link_to(path, target):
    try:
        return os.readlink(path) == target
    except OSError:
        return False
