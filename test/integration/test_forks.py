"""VMs that are copies of one warmed-up VM's process: as separate, and as confined, as clones."""
import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

import spares
from conftest import Pod
from cri import pb, sandbox_config
from machines import machine, timeline
from test_confinement import SECRETS, status_of

pytestmark = [pytest.mark.vm("copies of VMs"), pytest.mark.once("only VMs with virtio-serial are copied")]

COPIES = 20
STEPS = ["zygote.freeze", "zygote.parked", "zygote.fork"]


@pytest.fixture
def make(spare_daemon):
    def start(*points, ready=True):
        d = spare_daemon(*points, fork=True, transport="virtio-serial")
        if ready:
            spares.wait_log(d, "zygote ready")
            spares.wait_ready(d)
        return d

    return start


def zygote(d):
    """Its process: the only one of the spares' that has capabilities."""
    (pid,) = [p for p in spares.vms(d) if int(status_of(p)["CapEff"], 16) != 0]
    return pid


def thread_ids(pid):
    """In the process's own namespace."""
    return {status_of(f"{pid}/task/{t.name}")["NSpid"].split()[-1] for t in Path(f"/proc/{pid}/task").iterdir()}


def is_copy(d, p):
    t = timeline(d, p.id)
    return "copy: qemu" in t or "spare taken" in t


def test_twenty_copies_share_nothing(make, images):
    d = make()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(lambda n: Pod(d, f"copy{n}", images["busybox"]), range(COPIES)))
        assert all(is_copy(d, p) for p in pods)
        script = ("cat /proc/sys/kernel/random/uuid; dd if=/dev/urandom bs=32 count=1 2>/dev/null | sha256sum; "
                  "cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/eth0/address; hostname; "
                  "ip -4 -o addr show eth0 | awk '{print $4}'; head -c 65536 /dev/urandom | sha256sum")
        running = list(pool.map(lambda p: p.start("c", "sleep", "1000"), pods))
        answers = list(pool.map(lambda c: d.exec(c, "sh", "-c", script).stdout.decode().split("\n"), running))
    for k, what in enumerate(["uuid", "random bytes", "boot id", "mac", "host name", "address", "more random bytes"]):
        seen = [a[k] for a in answers]
        assert all(seen) and len(set(seen)) == COPIES, (what, seen)
    # disks are each pod's own
    for n, c in enumerate(running):
        assert d.exec(c, "sh", "-c", f"cat /mine 2>/dev/null; echo {n} > /mine; sync").stdout == b""
    for n, c in enumerate(running):
        assert d.exec(c, "cat", "/mine").stdout == b"%d\n" % n
    offsets = []
    for c in running:
        before = time.time()
        shown = d.exec(c, "adjtimex").stdout.decode()
        guest = (int(re.search(r"tv_sec: *(\d+)", shown).group(1))
                 + int(re.search(r"tv_usec: *(\d+)", shown).group(1)) / 1e6)
        offsets.append(max(before - guest, guest - time.time(), 0))
    assert sorted(offsets)[COPIES // 2] < 0.010 and max(offsets) < 0.2, offsets


def test_copies_are_confined(make, images):
    d = make()
    pods = [Pod(d, f"j{n}", images["busybox"]) for n in range(3)]
    assert any("copy: qemu" in timeline(d, p.id) for p in pods) and all(is_copy(d, p) for p in pods)
    mother = zygote(d)
    pids = [machine(d, p.id)["pid"] for p in pods]
    uids, own = set(), set()
    for p, pid in zip(pods, pids):
        for task in Path(f"/proc/{pid}/task").iterdir():
            st = status_of(f"{pid}/task/{task.name}")
            for cap in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
                assert int(st[cap], 16) == 0, (cap, st[cap])
            assert st["NoNewPrivs"].strip() == "1" and st["Seccomp"].strip() == "2"
            ids = set(st["Uid"].split()) | set(st["Gid"].split())
            assert len(ids) == 1 and "0" not in ids
            assert not st["Groups"].split() or set(st["Groups"].split()) <= ids
            uids |= ids
            assert os.readlink(task / "ns/mnt") == os.readlink(f"/proc/{pid}/ns/mnt")
        # mutexes know their owners by these
        assert "1" in thread_ids(pid) and len(thread_ids(pid) & thread_ids(mother)) >= 3
        for ns in ("mnt", "pid", "ipc", "net", "uts", "cgroup"):
            there = os.readlink(f"/proc/{pid}/ns/{ns}")
            assert there not in (os.readlink(f"/proc/self/ns/{ns}"), os.readlink(f"/proc/{mother}/ns/{ns}")), ns
            own.add(there)
        assert not list((Path(f"/proc/{pid}/root") / "proc").iterdir())
        for secret in SECRETS:
            assert not (Path(f"/proc/{pid}/root") / secret).exists(), secret
        assert f"guest={d.run}/sandboxes/{p.id}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert p.id in Path(f"/proc/{pid}/cgroup").read_text()
    assert len(uids) == len(pids) and len(own) == 6 * len(pids)
    # no socket, counter, disk or tap of another's
    def files(pid):
        return {(s.st_dev, s.st_ino) for s in [os.stat(f) for f in Path(f"/proc/{pid}/fd").iterdir()
                                               if os.readlink(f).startswith(("socket:", "pipe:", "/"))
                                               and "/dev/" not in os.readlink(f)
                                               and "aspis-" not in os.readlink(f)]}
    for a in [mother, *pids]:
        for b in pids:
            assert a == b or not files(a) & files(b), (a, b)


def test_a_copy_grows_is_saved_and_outlives_the_daemon(make, images):
    d = make()
    first = Pod(d, "spare", images["busybox"])
    linux = pb.LinuxPodSandboxConfig(resources=pb.LinuxContainerResources(
        memory_limit_in_bytes=400 << 20, cpu_quota=200000, cpu_period=100000))
    p = Pod(d, "large", images["busybox"], linux=linux)
    assert "copy: qemu" in timeline(d, p.id), timeline(d, p.id)
    c = p.start("c", "sleep", "1000")
    assert int(re.search(r"MemTotal: *(\d+)", d.exec(c, "cat", "/proc/meminfo").stdout.decode()).group(1)) > 400 << 10
    assert d.exec(c, "nproc").stdout == b"2\n"
    assert d.exec(c, "sh", "-c", "head -c 200m /dev/zero | tail -c 1 | wc -c").stdout == b"1\n"
    d.exec(c, "sh", "-c", "echo kept > /data")
    place = d.base / "saved"
    d.client.CheckpointPod(pod_sandbox_id=p.id, output_path=str(place))
    r = d.client.RestorePod(checkpoint_path=str(place), config=sandbox_config(
        "again", log_directory=d.logs / "again", linux=linux))
    (restored,) = r.restored_containers
    d.client.StartContainer(container_id=restored.container_id)
    assert d.exec(restored.container_id, "cat", "/data").stdout == b"kept\n"
    shutil.rmtree(place)
    d.kill()
    d.start()
    assert d.exec(c, "cat", "/data").stdout == b"kept\n"
    assert d.exec(first.start("c", "sleep", "1000"), "echo", "still").stdout == b"still\n"
    spares.wait_log(d, "zygote ready", 2)


def test_a_dead_zygote_is_replaced(make, images):
    d = make()
    p = Pod(d, "before", images["busybox"])
    os.kill(zygote(d), signal.SIGKILL)
    spares.wait_log(d, "zygote ready", 2)
    assert p.run("c", "true").exit_code == 0  # copies do not need it
    spares.wait_ready(d, 2)
    q = Pod(d, "after", images["busybox"])
    assert is_copy(d, q) and q.run("c", "true").exit_code == 0


def test_a_zygote_that_hangs_is_replaced(make, images):
    """What it answers in the end is nobody's."""
    d = make()
    p = Pod(d, "before", images["busybox"])  # takes the spare
    stuck = zygote(d)
    os.kill(stuck, signal.SIGSTOP)
    pods = [Pod(d, f"cloned{n}", images["busybox"]) for n in range(2)]
    assert "a copy of the zygote failed" in d.log_text()
    with contextlib.suppress(ProcessLookupError):
        os.kill(stuck, signal.SIGCONT)
    spares.wait_log(d, "zygote ready", 2)
    assert all(q.run("c", "true").exit_code == 0 for q in (p, *pods))
    spares.wait_ready(d, 2)
    q = Pod(d, "after", images["busybox"])
    assert is_copy(d, q) and q.run("c", "true").exit_code == 0


@pytest.mark.parametrize("name", STEPS)
def test_without_copies_vms_are_cloned(make, images, name):
    d = make(f"{name}=error", ready=False)
    spares.wait_ready(d)
    spares.wait_log(d, f"failpoint {name}")
    pods = [Pod(d, f"clone{n}", images["busybox"]) for n in range(2)]
    assert not any("copy: qemu" in timeline(d, p.id) for p in pods)
    assert all(p.run("c", "true").exit_code == 0 for p in pods)
    spares.wait_ready(d, 2)
    d.kill()  # a spare that could not be a copy is found by the next daemon too: spare_daemon looks


@pytest.mark.parametrize("name", STEPS)
def test_daemon_dies_meanwhile(make, images, name):
    d = make(f"{name}=crash", ready=False)
    assert d.proc.wait(120) == -9
    d.proc = None
    d.client.close()
    d.points.clear()
    d.start()
    spares.wait_log(d, "zygote ready")
    spares.wait_ready(d)
    p = Pod(d, "after", images["busybox"])
    assert is_copy(d, p) and p.run("c", "true").exit_code == 0
