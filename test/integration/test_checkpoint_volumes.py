"""CheckpointPod and RestorePod of pods with volumes of the host, as kubelet makes them: the guest's files are those of
the same names in the new pod's volumes (sandbox/share_move.h)."""
import hashlib
import json
import random
import re
import shutil
import threading
from pathlib import Path

import grpc
import pytest

from cri import container_config, pb, sandbox_config
from test_checkpoint import Saved, place, refused, save, wait_for  # noqa: F401
from test_mirrors import AtomicDir, kind
from test_volumes import mount, out, servers, src, tool, within  # noqa: F401

pytestmark = [pytest.mark.vm("what is saved is a VM"), pytest.mark.once("a VM on user-vsock cannot be saved")]

APPEND = "exec 3>>/data/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.05; done"


class PodDir:
    """What kubelet makes for one pod with one container: files, directories, and the mounts of them."""

    def __init__(self, path, name, of=None):
        self.path = path / name
        self.path.mkdir()
        (self.path / "etc-hosts").write_text(f"127.0.0.1 localhost\n10.9.9.9 {name}\n")
        (self.path / "termination").touch()
        self.data = self.path / "data"
        if of is None:
            self.data.mkdir()
        else:
            shutil.copytree(of.data, self.data, symlinks=True)  # as a volume's snapshot would be
        self.config = AtomicDir(self.path / "config", {"key": f"{name}\n".encode(), f"of-{name}": b""})
        self.token = AtomicDir(self.path / "token", {"token": f"token of {name}\n".encode()})
        self.token.publish({"token": f"token of {name}\n".encode()})

    def mounts(self, *more):
        return [mount(self.data, "/data"), mount(self.config.path, "/etc/config", readonly=True),
                mount(self.token.path, "/var/run/secrets/kubernetes.io/serviceaccount", readonly=True),
                mount(self.path / "etc-hosts", "/etc/hosts"),
                mount(self.path / "termination", "/dev/termination-log"), *more]

    def container(self, pod, name, command, *more):
        return container_config(name, pod.image, command, mounts=self.mounts(*more))

    def lines(self, name="log"):
        return (self.data / name).read_text().split()


def start(daemon, pod, config):
    c = daemon.create(pod.id, config, pod.config)
    daemon.client.StartContainer(container_id=c)
    return c


def test_an_ordinary_pod_goes_on(daemon, place, make_pod, src):  # noqa: F811
    """Saved and stopped, its volume moved: what it appends to an open file is whole."""
    pod = make_pod("src", dns_config=pb.DNSConfig(servers=["10.0.0.53"]))
    old = PodDir(src, "one")
    command = ["sh", "-c", APPEND]
    c = start(daemon, pod, old.container(pod, "main", command))
    wait_for(lambda: (old.data / "log").exists() and len(old.lines()) > 10)
    assert kind(daemon, c, "/etc/config") == "tmpfs" and kind(daemon, c, "/data") == "fuse"
    save(daemon, pod, place / "one", options={"leave-running": "false"})
    before = len(old.lines())
    new = PodDir(src, "two", of=old)
    shutil.rmtree(old.path)
    config = sandbox_config("copy", log_directory=daemon.logs / "copy", dns_config=pb.DNSConfig(servers=["10.0.0.54"]))
    copy = Saved(daemon, place / "one", "copy", config, containers=[new.container(pod, "main", command)])
    c = copy.containers["main"]
    wait_for(lambda: len(new.lines()) > before + 10)
    assert new.lines() == [str(i + 1) for i in range(len(new.lines()))]
    assert out(daemon, c, "cat /etc/config/key") == "two\n"
    assert out(daemon, c, "cat /var/run/secrets/kubernetes.io/serviceaccount/token") == "token of two\n"
    assert "10.9.9.9 two" in out(daemon, c, "cat /etc/hosts")
    assert "10.0.0.54" in out(daemon, c, "cat /etc/resolv.conf")
    out(daemon, c, "echo said > /dev/termination-log; mkdir /data/d; echo x > /data/d/x; mv /data/d /data/e")
    assert (new.path / "termination").read_text() == "said\n"
    assert (new.data / "e" / "x").read_text() == "x\n"
    (new.path / "etc-hosts").write_text("10.9.9.8 changed\n")
    within(5, lambda: "changed" in out(daemon, c, "cat /etc/hosts"))
    new.token.publish({"token": b"another\n"})
    within(5, lambda: out(daemon, c, "cat /var/run/secrets/kubernetes.io/serviceaccount/token") == "another\n")
    listed = {m.container_path: m.host_path for m in daemon.status(c).mounts}
    assert listed["/data"] == str(new.data)
    copy.remove()
    assert not servers(daemon)
