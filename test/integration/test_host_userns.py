"""User namespaces of pods without a VM. What is the same with a VM is in test_security.py, which test/run has for both."""
import fcntl
import json
import os
import subprocess
from pathlib import Path

import grpc
import pytest

from cri import container_config, pb, sandbox_config
from test_host_backend import linux, mount
from test_security import MAPPED_MOUNTS, sh, userns, with_namespaces

pytestmark = [pytest.mark.once("asks for its handlers itself"),
              pytest.mark.skipif(not MAPPED_MOUNTS, reason="the kernel is too old")]

NS_GET_USERNS = 0xB701  # linux/nsfs.h
FIRST = 65536  # of the host's ids, as userns() has them
IDS = userns()
MAPPED = {"uidMappings": IDS.uids, "gidMappings": IDS.gids}


@pytest.fixture
def mapped(make_pod):
    def make(name="mapped", **more):
        return make_pod(name, handler="aspis-host", linux=linux(userns_options=IDS, **more))
    return make



def start(pod, name, *command, pid=pb.CONTAINER, mounts=(), **security):
    config = container_config(name, pod.image, command, mounts=list(mounts), security=security or None)
    config.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=pid, userns_options=IDS))
    c = pod.daemon.create(pod.id, config, pod.config)
    pod.daemon.client.StartContainer(container_id=c)
    return c


def host_pid(daemon, c, *, word):
    """Of the container's process whose command line has this word."""
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if word in (p / "cmdline").read_bytes().decode().split("\0"):
                return int(p.name)
        except OSError:
            pass
    raise AssertionError(f"no process with {word}")


def owner(path):
    """The inode of the user namespace that a namespace belongs to."""
    with open(path) as f:
        fd = fcntl.ioctl(f, NS_GET_USERNS)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)


@pytest.mark.parametrize("pid_mode", [pb.CONTAINER, pb.POD])
def test_whose_the_namespaces_are(daemon, mapped, pid_mode):
    """As with other runtimes the pod's namespaces belong to its user namespace; its containers share that."""
    pod = mapped(pid=pid_mode)
    a = start(pod, "a", "sleep", "98701", pid=pid_mode)
    b = start(pod, "b", "sleep", "98702", pid=pid_mode)
    ns = [Path("/proc") / str(host_pid(daemon, c, word=w)) / "ns" for c, w in ((a, "98701"), (b, "98702"))]
    ids = [(n / "user").stat().st_ino for n in ns]
    assert ids[0] == ids[1] != Path("/proc/self/ns/user").stat().st_ino
    kinds = ["net", "ipc", "uts", "mnt", "cgroup"] + (["pid"] if pid_mode == pb.CONTAINER else [])
    assert {k: owner(ns[0] / k) for k in kinds} == {k: ids[0] for k in kinds}
    status = (ns[0].parent / "status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}\n" in status and f"Gid:\t{FIRST}\t" in status
    seen = sh(daemon, b, "ps")[0]
    assert ("sleep 98701" in seen) == (pid_mode == pb.POD) and "sleep 98702" in seen
    assert "pytest" not in seen and "aspisd" not in seen
    # the whole of /sys is of the pod's network
    assert sorted(sh(daemon, a, "ls /sys/class/net")[0].split()) == ["eth0", "lo"]


def test_root_has_power_over_the_pods_network_only(daemon, mapped):
    pod = mapped()
    caps = pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"])
    c = start(pod, "c", "sleep", "1000", capabilities=caps)
    assert sh(daemon, c, "ip addr add 10.98.7.6/32 dev lo && ip -o addr show lo | grep -c 10.98.7.6") == ("1\n", 0)
    assert sh(daemon, c, "hostname renamed && hostname") == ("renamed\n", 0)
    # files of the pod are its root's
    assert sh(daemon, c, "echo 9.8.7.6 x >>/etc/hosts && stat -c %u:%g /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm")[0].split() == ["0:0"] * 4
    assert sh(daemon, c, "mount -t tmpfs none /mnt && touch /mnt/x")[1] == 0
    for forbidden in ("echo 1 >/proc/sys/kernel/panic", "echo 1 >/proc/sys/vm/swappiness", "mknod /tmp/vda b 254 0"):
        assert sh(daemon, c, forbidden)[1] != 0, forbidden


def test_what_is_written_keeps_its_ids_outside(daemon, mapped):
    pod = mapped()
    c = start(pod, "c", "sleep", "1000")
    assert sh(daemon, c, "echo x >/written && chown 12:13 /written")[1] == 0
    upper = [p for p in daemon.state.rglob("written") if "upper" in p.parts]
    assert [(p.stat().st_uid, p.stat().st_gid) for p in upper] == [(FIRST + 12, FIRST + 13)]
    # the image's tree is shared and stays root's
    tree = next(daemon.state.glob("images/trees/*/root"))
    assert tree.stat().st_uid == 0


def test_privileged(daemon, mapped):
    """All capabilities, over nothing but what is the pod's."""
    pod = mapped(privileged=True)
    c = start(pod, "c", "sleep", "1000", privileged=True)
    assert sh(daemon, c, "mkdir /m && mount -t tmpfs none /m && umount /m && ls /sys/fs/cgroup >/dev/null")[1] == 0
    assert sh(daemon, c, "echo 1 >/proc/sys/vm/swappiness")[1] != 0
    assert sh(daemon, c, "head -c1 /dev/vda")[1] != 0


def test_sysctls(daemon, make_pod):
    config = linux(userns_options=IDS, sysctls={
        "kernel.shm_rmid_forced": "1", "kernel.msgmax": "12345", "fs.mqueue.msg_max": "77",
        "net.ipv4.ip_unprivileged_port_start": "99"})
    pod = make_pod("sysctls", handler="aspis-host", linux=config)
    c = start(pod, "c", "sleep", "1000")
    assert sh(daemon, c, "cd /proc/sys && cat kernel/shm_rmid_forced kernel/msgmax fs/mqueue/msg_max "
              "net/ipv4/ip_unprivileged_port_start")[0].split() == ["1", "12345", "77", "99"]
    assert Path("/proc/sys/kernel/msgmax").read_text().strip() != "12345"


def test_volumes(daemon, mapped, tmp_path):
    """What kubelet asks for: directories, files, what is mounted below, read-only, what the host mounts later."""
    v = tmp_path / "v"
    (v / "sub").mkdir(parents=True)
    (v / "sub" / "hidden").write_text("below the mount")
    (tmp_path / "file").write_text("one\n")
    subprocess.run(["mount", "--bind", v, v], check=True)
    subprocess.run(["mount", "--make-shared", v], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", v / "sub"], check=True)
    try:
        (v / "sub" / "inner").write_text("in the mount")
        os.chown(v / "sub" / "inner", 1000, 1001)
        pod = mapped()
        c = start(pod, "c", "sleep", "1000", mounts=[
            mount(v, "/v", **MAPPED), mount(v, "/ro", readonly=True, **MAPPED),
            mount(v, "/rro", readonly=True, recursive_read_only=True, **MAPPED),
            mount(v, "/slave", propagation=pb.PROPAGATION_HOST_TO_CONTAINER, **MAPPED),
            mount(tmp_path / "file", "/etc/one", **MAPPED), mount(tmp_path / "new" / "dir", "/new", **MAPPED)])
        assert sh(daemon, c, "cat /v/sub/inner; stat -c ' %u:%g' /v/sub/inner; ls /v/sub")[0] == "in the mount 1000:1001\ninner\n"
        assert sh(daemon, c, "echo 1 >/v/made && chown 7:8 /v/made && echo 2 >/v/sub/made && echo two >/etc/one && touch /new/x")[1] == 0
        assert ((v / "made").stat().st_uid, (v / "made").stat().st_gid) == (7, 8)
        assert (v / "sub" / "made").stat().st_uid == 0 and (tmp_path / "file").read_text() == "two\n"
        assert (tmp_path / "new" / "dir" / "x").stat().st_uid == 0
        assert sh(daemon, c, "touch /ro/x")[1] != 0 and sh(daemon, c, "touch /ro/sub/x")[1] == 0
        assert sh(daemon, c, "touch /rro/x")[1] != 0 and sh(daemon, c, "touch /rro/sub/x")[1] != 0
        # mounted later: without the ids, so it is nobody's
        (v / "late").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", v / "late"], check=True)
        (v / "late" / "x").touch()
        assert sh(daemon, c, "stat -c %u /slave/late/x; ls /v/late")[0] == "65534\n"
        pod.remove()
    finally:
        for _ in range(8):
            subprocess.run(["umount", "-R", v], capture_output=True)


def test_refused(daemon, mapped, make_pod, tmp_path):
    """What cannot be had is named: a file system without mapped mounts, propagation to the host, its namespaces."""
    for d in ("lower", "upper", "work", "merged"):
        (tmp_path / d).mkdir()
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                    f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work", tmp_path / "merged"], check=True)
    try:
        pod = mapped()
        with pytest.raises(grpc.RpcError) as e:
            start(pod, "c", "true", mounts=[mount(tmp_path / "merged", "/v", **MAPPED)])
        assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert f"{tmp_path}/merged: its file system (overlay) cannot be mounted with the ids" in e.value.details()
        # without a mapping it can be had, and is nobody's
        c = start(pod, "c", "sleep", "1000", mounts=[mount(tmp_path / "merged", "/v")])
        assert sh(daemon, c, "stat -c %u /v")[0] == "65534\n"
        pod.remove()
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)
    pod = mapped(privileged=True)
    with pytest.raises(grpc.RpcError) as e:
        start(pod, "c", "true", privileged=True, mounts=[
            mount(tmp_path, "/v", propagation=pb.PROPAGATION_BIDIRECTIONAL, **MAPPED)])
    assert "BIDIRECTIONAL" in e.value.details() and "user namespace" in e.value.details()
    with pytest.raises(grpc.RpcError) as e:
        with_namespaces(pod, "plain", "true")
    assert "user namespace is another one than its pod's" in e.value.details()
    for mode in ("network", "pid", "ipc"):
        with pytest.raises(grpc.RpcError) as e:
            make_pod("shared", handler="aspis-host", linux=linux(userns_options=IDS, **{mode: pb.NODE}))
        assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert f"the host's {mode} namespace" in e.value.details()


def test_restart(daemon, mapped):
    """A later daemon finds the pod's namespaces through its agent; they go with the pod."""
    pod = mapped()
    a = start(pod, "a", "sleep", "98711")
    user = (Path("/proc") / str(host_pid(daemon, a, word="98711")) / "ns" / "user").stat().st_ino
    daemon.kill()
    daemon.start()
    b = start(pod, "b", "sleep", "98712")
    assert (Path("/proc") / str(host_pid(daemon, b, word="98712")) / "ns" / "user").stat().st_ino == user
    assert sh(daemon, a, "id -u; cat /proc/self/uid_map")[0].split() == ["0", "0", str(FIRST), "65536"]


def test_only_where_it_works(own_daemon, tmp_path):
    """It is tried before it is said: an image store on a file system that cannot be mounted so makes the difference."""
    for d in ("lower", "upper", "work", "images"):
        (tmp_path / d).mkdir()
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                    f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work", tmp_path / "images"], check=True)
    try:
        d = own_daemon(overrides={"images": {"root": str(tmp_path / "images")}}).start()
        st = d.client.Status(verbose=True)
        assert {h.name: h.features.user_namespaces for h in st.runtime_handlers} == {"": True, "aspis-vm": True, "aspis-host": False}
        why = json.loads(st.info["config"])["hostUserNamespaces"]
        assert "the image store is on a file system (overlay) that this kernel cannot mount" in why
        with pytest.raises(grpc.RpcError) as e:
            d.run_pod(sandbox_config("u", linux=linux(userns_options=IDS)), runtime_handler="aspis-host")
        assert e.value.code() == grpc.StatusCode.UNIMPLEMENTED and why in e.value.details()
        d.destroy()
    finally:
        subprocess.run(["umount", "-l", tmp_path / "images"], check=True)
