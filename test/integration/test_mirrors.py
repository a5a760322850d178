"""ConfigMaps, Secrets and the like: copies in the guest's memory that follow the host's (sandbox/mirror.h)."""
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from cri import container_config, pb
from test_security import pod_linux, userns
from test_volumes import fails, mount, out, servers, src, tool, within  # noqa: F401

pytestmark = pytest.mark.vm("copies in a guest's memory; on the host the volume itself is mounted")


class AtomicDir:
    """A directory as kubelet's atomic writer keeps it."""

    def __init__(self, path, files):
        self.path = path
        self.n = 0
        self.path.mkdir(exist_ok=True)
        self.publish(files)

    def publish(self, files, mode=0o644, owner=0):
        """files: {path: bytes}"""
        self.n += 1
        new = self.path / f"..2026_11_21_00_00_{self.n:02}.{os.getpid()}"
        old = self.path / "..data"
        was = old.resolve() if old.is_symlink() else None
        new.mkdir(mode=0o755)
        for name, content in files.items():
            f = new / name
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_bytes(content)
            f.chmod(mode)
            os.chown(f, owner, owner)
        (self.path / "..data_tmp").symlink_to(new.name)
        (self.path / "..data_tmp").rename(old)
        names = {name.split("/")[0] for name in files}
        for name in names:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        for link in self.path.iterdir():
            if not link.name.startswith("..") and link.name not in names:
                link.unlink()
        if was is not None:
            shutil.rmtree(was)


@pytest.fixture
def config_map(src):  # noqa: F811
    return AtomicDir(src / "cm", {"key": b"value 1\n", "dir/nested": b"nested\n"})


def kind(daemon, c, at):
    """tmpfs: mirrored; fuse: shared."""
    lines = out(daemon, c, "cat /proc/self/mountinfo").splitlines()
    (line,) = [x for x in lines if x.split()[4] == at]
    return line.split(" - ")[1].split()[0]


def records(daemon):
    found = [json.loads(p.read_text())["volumes"] for p in Path(daemon.run).rglob("mirror.json")]
    return [v for volumes in found for v in volumes]


def test_what_the_container_sees(daemon, pod, config_map):
    (config_map.path / "..data" / "key").chmod(0o640)
    os.chown(config_map.path / "..data" / "key", 0, 77)
    config_map.path.chmod(0o2775)
    script = config_map.path / "..data" / "dir" / "nested"
    script.chmod(0o755)
    script.write_text("#!/bin/sh\necho executed\n")
    os.utime(script, (981173106, 981173106))
    c = pod.start("x", "sleep", "1000", mounts=[mount(config_map.path, "/etc/config", readonly=True)])
    assert kind(daemon, c, "/etc/config") == "tmpfs"
    assert out(daemon, c, "cat /etc/config/key; /etc/config/dir/nested; readlink /etc/config/key") \
        == "value 1\nexecuted\n..data/key\n"
    assert out(daemon, c, "stat -L -c '%a %u %g %s' /etc/config/key /etc/config").splitlines() \
        == ["640 0 77 8", "2775 0 0 " + out(daemon, c, "stat -c %s /etc/config").strip()]
    assert out(daemon, c, "stat -L -c %Y /etc/config/dir/nested") == "981173106\n"
    for change in ("echo x > /etc/config/key", "rm /etc/config/key", "touch /etc/config/new", "chmod 777 /etc/config/key"):
        assert "Read-only" in fails(daemon, c, change), change
    assert not servers(daemon), "no file server is needed"


def test_flips_arrive_in_order_and_inotify_tells(daemon, pod, config_map, src):  # noqa: F811
    c = pod.start("x", "/tell", "/etc/config", mounts=[
        mount(config_map.path, "/etc/config", readonly=True), mount(tool(src, "tell_changes"), "/tell", readonly=True)])
    log = Path(daemon.status(c).log_path)
    within(5, lambda: log.read_text().endswith("ready\n"))
    took = []
    for version in range(2, 7):
        begin = time.monotonic()
        config_map.publish({"key": f"value {version}\n".encode(), f"new-{version}": b""})
        within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == f"value {version}\n".encode())
        took.append(time.monotonic() - begin)
        within(10, lambda: out(daemon, c, "ls /etc/config").split() == ["key", f"new-{version}"])
    # seen by an exec, which takes its own time on a busy machine
    assert sorted(took)[len(took) // 2] < 1, took
    last = (f"delete ..2026_11_21_00_00_05.{os.getpid()}\n", "move new-6\n")
    within(10, lambda: all(line in log.read_text() for line in last))
    told = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
    assert told.count("move ..data") == 5
    for version in range(2, 7):
        made = told.index(f"create ..2026_11_21_00_00_{version:02}.{os.getpid()}")
        flipped = told.index("move ..data", made)
        # a copy made between kubelet's flip and its names has the names later than the old version's end
        assert flipped < told.index(f"move new-{version}"), told
        assert flipped < told.index(f"delete ..2026_11_21_00_00_{version - 1:02}.{os.getpid()}"), told


def test_no_reader_ever_sees_half_a_version(daemon, pod, config_map):
    names = [f"k{i}" for i in range(40)]
    config_map.publish({n: b"1\n" for n in names})
    c = pod.start("x", "sh", "-c", "cd /etc/config; while :; do v=$(readlink ..data); s=$(cat $v/* 2>/dev/null | sort -u | wc -l);"
                  " n=$(ls $v 2>/dev/null | wc -l); test \"$(readlink ..data)\" = $v && { test $s = 1 && test $n = 40 || echo $v has $s of $n; }; done",
                  mounts=[mount(config_map.path, "/etc/config", readonly=True)])
    for version in range(2, 22):
        config_map.publish({n: f"{version}\n".encode() for n in names})
        time.sleep(0.1)
    within(10, lambda: daemon.exec(c, "cat", "/etc/config/k7").stdout == b"21\n")
    assert Path(daemon.status(c).log_path).read_text() == ""


def test_late_changes_of_owners_and_contents(daemon, pod, config_map):
    """As older kubelets make them for fsGroup, after the flip; and by hand."""
    c = pod.start("x", "sleep", "1000", mounts=[mount(config_map.path, "/etc/config", readonly=True)])
    os.chown(config_map.path / "..data" / "key", 0, 2000)
    within(10, lambda: out(daemon, c, "stat -L -c %g /etc/config/key") == "2000\n")
    (config_map.path / "..data" / "key").write_text("in place\n")
    within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == b"in place\n")
    (config_map.path / "..data" / "more").write_text("more\n")
    (config_map.path / "..data" / "key").unlink()
    within(10, lambda: out(daemon, c, "ls /etc/config/..data/").split() == ["dir", "more"])


def test_what_does_not_fit_is_shared(daemon, pod, config_map, src):  # noqa: F811
    big = AtomicDir(src / "big", {"key": b"x" * (1 << 20) + b"x"})
    odd = AtomicDir(src / "odd", {"key": b"odd\n"})
    (odd.path / "real").write_text("no link\n")
    fifo = AtomicDir(src / "fifo", {"key": b"fifo\n"})
    os.mkfifo(fifo.path / "..data" / "pipe")
    away = AtomicDir(src / "away", {"key": b"away\n"})
    (away.path / "out").symlink_to("/etc/shadow")
    c = pod.start("x", "sleep", "1000", mounts=[
        mount(config_map.path, "/good", readonly=True), mount(config_map.path, "/rw"),
        mount(config_map.path / "key", "/sub", readonly=True),
        mount(big.path, "/big", readonly=True), mount(odd.path, "/odd", readonly=True),
        mount(fifo.path, "/fifo", readonly=True), mount(away.path, "/away", readonly=True)])
    kinds = {at: kind(daemon, c, at) for at in ("/good", "/rw", "/sub", "/big", "/odd", "/fifo", "/away")}
    assert kinds.pop("/good") == "tmpfs" and set(kinds.values()) == {"fuse"}, kinds
    assert out(daemon, c, "cat /good/key /rw/key /sub /odd/real /fifo/key /away/key; wc -c < /big/key") \
        == "value 1\nvalue 1\nvalue 1\nno link\nfifo\naway\n1048577\n"


def test_growth_beyond_what_is_copied(daemon, pod, config_map):
    c = pod.start("x", "sleep", "1000", mounts=[mount(config_map.path, "/etc/config", readonly=True)])
    config_map.publish({"key": b"x" * (2 << 20)})
    within(5, lambda: daemon.exec(c, "sh", "-c", "wc -c < /etc/config/key").stdout == b"2097152\n")
    config_map.publish({"key": b"x" * (4 << 20)})
    within(5, lambda: "stays as it was" in daemon.log_text())
    assert out(daemon, c, "wc -c < /etc/config/key") == "2097152\n"
    config_map.publish({"key": b"small again\n"})
    within(5, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == b"small again\n")


def test_one_copy_per_pod_until_its_last_user_goes(daemon, pod, config_map):
    mounts = [mount(config_map.path, "/etc/config", readonly=True)]
    a = pod.start("a", "sleep", "1000", mounts=mounts)
    b = pod.start("b", "sleep", "1000", mounts=mounts)
    (record,) = records(daemon)
    assert record["owners"] == [a, b]
    assert out(daemon, a, "stat -L -c %i /etc/config/key") == out(daemon, b, "stat -L -c %i /etc/config/key")
    daemon.client.RemoveContainer(container_id=a)
    config_map.publish({"key": b"value 2\n"})
    within(10, lambda: daemon.exec(b, "cat", "/etc/config/key").stdout == b"value 2\n")
    daemon.client.RemoveContainer(container_id=b)
    within(5, lambda: records(daemon) == [])
    c = pod.start("c", "sleep", "1000", mounts=mounts)
    assert out(daemon, c, "cat /etc/config/key") == "value 2\n"
    assert records(daemon)[0]["id"] == record["id"] + 1


def test_mirrors_outlive_the_daemon(daemon, make_pod, config_map):
    pod = make_pod("mirror-outlives")
    c = pod.start("x", "sh", "-c", "while :; do cat /etc/config/key; sleep 0.1; done",
                  mounts=[mount(config_map.path, "/etc/config", readonly=True)])
    log = Path(daemon.status(c).log_path)
    within(5, lambda: "value 1" in log.read_text())
    daemon.kill()
    config_map.publish({"key": b"while nobody looked\n"})
    daemon.start()
    within(10, lambda: "while nobody looked" in log.read_text())
    config_map.publish({"key": b"afterwards\n"})
    within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == b"afterwards\n")
    # gone on the host: what the guest has stays
    config_map.path.rename(config_map.path.with_name("away"))
    assert out(daemon, c, "cat /etc/config/key") == "afterwards\n"


def test_in_a_user_namespace(daemon, make_pod, config_map, src):  # noqa: F811
    """Owners as the mapping has them, inotify, flips, one copy per mapping; and a later daemon knows it all."""
    ids = userns()
    pod = make_pod("mirror-mapped", linux=pod_linux(userns_options=ids))
    maps = {"readonly": True, "uidMappings": ids.uids, "gidMappings": ids.gids}
    config_map.publish({"key": b"value 2\n", "dir/nested": b"n\n"}, mode=0o440, owner=1000)
    config = container_config("x", pod.image, ("/tell", "/etc/config"), mounts=[
        mount(config_map.path, "/etc/config", **maps), mount(config_map.path, "/plain", readonly=True),
        mount(tool(src, "tell_changes"), "/tell", **maps)], security={"run_as_user": pb.Int64Value(value=1000)})
    config.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=pb.CONTAINER, userns_options=ids))
    c = daemon.create(pod.id, config, pod.config)
    daemon.client.StartContainer(container_id=c)
    assert (kind(daemon, c, "/etc/config"), kind(daemon, c, "/plain")) == ("tmpfs", "tmpfs")
    assert out(daemon, c, "stat -L -c %u:%g:%a /etc/config/key /etc/config/dir /plain/key").split() == \
        ["1000:1000:440", "0:0:755", "65534:65534:440"]
    assert out(daemon, c, "cat /etc/config/key") == "value 2\n"
    assert "denied" in fails(daemon, c, "cat /plain/key")
    assert "Read-only" in fails(daemon, c, "echo x > /etc/config/new")
    assert sorted(r["ids"] for r in records(daemon)) == [[0, 0, 0, 0], [65536, 65536, 65536, 65536]]
    log = Path(daemon.status(c).log_path)
    within(5, lambda: log.read_text().endswith("ready\n"))
    begin = time.monotonic()
    config_map.publish({"key": b"value 3\n"}, mode=0o400, owner=1000)
    within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == b"value 3\n")
    print("flip", time.monotonic() - begin)
    within(10, lambda: "move ..data" in log.read_text())
    daemon.kill()
    config_map.publish({"key": b"value 4\n"}, mode=0o400, owner=1000)
    daemon.start()
    within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == b"value 4\n")
    assert out(daemon, c, "stat -L -c %u /etc/config/key") == "1000\n"
