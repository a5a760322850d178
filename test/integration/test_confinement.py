"""S1, S2, S7: how QEMU is locked up, read from /proc; who may talk to the daemon."""
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from cri import sandbox_config
from daemon import BUILD

pytestmark = pytest.mark.vm("QEMU's confinement")


SECRETS = ("etc/shadow", "etc/passwd", "root", "home", "var/lib", "run/aspis")


def status_of(pid):
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def named(daemon, name):
    """The daemon's processes whose program's name begins so."""
    return {p for p in daemon.qemu_pids() if status_of(p)["Name"].strip().startswith(name)}


def test_qemu_has_nothing(daemon, make_pod):
    before = named(daemon, "qemu")
    pods = [make_pod("j1"), make_pod("j2")]
    pids = named(daemon, "qemu") - before
    assert len(pids) == 2
    uids = set()
    for pid in pids:
        st = status_of(pid)
        assert "qemu" in st["Name"]
        for cap in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            assert int(st[cap], 16) == 0, (cap, st[cap])
        assert st["NoNewPrivs"].strip() == "1" and st["Seccomp"].strip() == "2"
        ids = set(st["Uid"].split()) | set(st["Gid"].split())
        assert len(ids) == 1 and "0" not in ids
        uids |= ids
        assert not st["Groups"].split() or set(st["Groups"].split()) <= ids
        for ns in ("mnt", "pid", "ipc", "net"):
            assert os.readlink(f"/proc/{pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{ns}"), ns
        root = Path(f"/proc/{pid}/root")
        for secret in SECRETS:
            assert not (root / secret).exists(), secret
        args = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        # but for -name, by which an operator and a later daemon recognise the process
        text = " ".join(a for a in args if not a.startswith("guest="))
        assert "-sandbox" in args and "spawn=deny" in text and "elevateprivileges=deny" in text
        # every file, tap and socket comes as a descriptor
        assert str(daemon.state) not in text and str(daemon.run) not in text
        assert daemon.cgroup in Path(f"/proc/{pid}/cgroup").read_text()
    assert len(uids) == 2
    assert len({os.readlink(f"/proc/{p}/ns/net") for p in pids}) == 2
    del pods


def test_descriptors_of_qemu(daemon, make_pod):
    before = named(daemon, "qemu")
    make_pod("fds")
    (pid,) = named(daemon, "qemu") - before
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd)
        assert not target.endswith((".db", ".sock", "aspisd.log")), target


def test_the_vsock_device_has_nothing(own_daemon, images):
    d = own_daemon(overrides={"machine": {"transport": "user-vsock"}})
    d.start()
    sandbox = d.run_pod(sandbox_config("v"))
    (pid,) = named(d, "aspis-vsock")
    (qemu,) = named(d, "qemu")
    st = status_of(pid)
    for cap in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        assert int(st[cap], 16) == 0, (cap, st[cap])
    assert st["NoNewPrivs"].strip() == "1" and st["Uid"] == status_of(qemu)["Uid"]
    if b"__asan" not in (BUILD / "sandbox" / "aspis-vsock").read_bytes():
        assert st["Seccomp"].strip() == "2"
    for ns in ("mnt", "pid", "ipc", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{ns}"), ns
    for secret in SECRETS:
        assert not (Path(f"/proc/{pid}/root") / secret).exists(), secret
    # its death is its VM's: nothing else reaches the guest
    os.kill(qemu, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in status_of(pid)["State"]:
        assert time.monotonic() < deadline, "aspis-vsock outlives its QEMU"
        time.sleep(0.05)
    d.client.StopPodSandbox(pod_sandbox_id=sandbox)
    d.client.RemovePodSandbox(pod_sandbox_id=sandbox)
    assert not Path(f"/proc/{pid}").exists()


def test_socket_is_for_root_alone(daemon):
    st = os.stat(daemon.socket)
    assert stat.S_ISSOCK(st.st_mode) and stat.S_IMODE(st.st_mode) == 0o600 and st.st_uid == 0


def test_nothing_but_streaming_listens_and_that_on_loopback(daemon):
    inodes = set()
    for fd in Path(f"/proc/{daemon.proc.pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{daemon.proc.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                # 0A: listening; only the streaming server does, on 127.0.0.1
                assert table.startswith("tcp") and (fields[3] != "0A" or fields[1].startswith("0100007F:")), line
