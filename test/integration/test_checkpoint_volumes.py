"""CheckpointPod and RestorePod of pods with volumes of the host, as kubelet makes them: the guest's files are those of
the same names in the new pod's volumes (sandbox/share_move.h)."""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading

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


def test_copies_have_volumes_of_their_own(daemon, place, make_pod, src):  # noqa: F811
    """The pod goes on with its volume, two copies with theirs, through daemons and servers that are killed; a copy of
    a copy too."""
    pod = make_pod("src")
    old = PodDir(src, "one")
    command = ["sh", "-c", APPEND]
    start(daemon, pod, old.container(pod, "main", command))
    wait_for(lambda: (old.data / "log").exists() and len(old.lines()) > 10)
    save(daemon, pod, place / "one")
    dirs = [PodDir(src, f"two{i}", of=old) for i in range(2)]
    copies = [Saved(daemon, place / "one", f"copy{i}", containers=[d.container(pod, "main", command)])
              for i, d in enumerate(dirs)]

    def all_go_on():
        had = [len(d.lines()) for d in [old, *dirs]]
        within(20, lambda: all(len(d.lines()) > n + 5 for d, n in zip([old, *dirs], had)))
    all_go_on()
    assert old.lines() == [str(i + 1) for i in range(len(old.lines()))]
    for d in dirs:
        # from where the pod was saved, behind what its volume held when it was copied
        numbers = [int(x) for x in d.lines()]
        first = next((i for i, n in enumerate(numbers) if n != i + 1), None)
        if first is not None:
            assert numbers[first:] == list(range(numbers[first], numbers[first] + len(numbers) - first))
            assert 10 < numbers[first] <= first + 1
    for pid in servers(daemon):
        os.kill(pid, signal.SIGKILL)
    all_go_on()
    daemon.kill()
    daemon.start()
    all_go_on()
    for d, p in zip(dirs, copies):
        d.config.publish({"key": b"later\n"})
        within(5, lambda: out(daemon, p.containers["main"], "cat /etc/config/key") == "later\n")
    pod.id, first = copies[1].id, pod.id
    save(daemon, pod, place / "two", options={"leave-running": "false"})
    pod.id = first
    last = int(dirs[1].lines()[-1])
    again = PodDir(src, "three", of=dirs[1])
    third = Saved(daemon, place / "two", "copy2", containers=[again.container(pod, "main", command)])
    wait_for(lambda: int(again.lines()[-1]) > last + 5)
    tail = [int(x) for x in again.lines()][len(dirs[1].lines()) - 1:]
    assert tail == list(range(last, last + len(tail)))
    # a volume that comes later has a number of its own
    (src / "more").mkdir()
    later = daemon.create(third.id, container_config("later", pod.image, ["sh", "-c", "echo x > /more/x; cat /data/log"],
                                                     mounts=[mount(src / "more", "/more"), mount(again.data, "/data")]),
                          third.config)
    daemon.client.StartContainer(container_id=later)
    assert daemon.wait_state(later, pb.CONTAINER_EXITED).exit_code == 0
    assert (src / "more" / "x").read_text() == "x\n"
    for p in [third, *copies]:
        p.remove()


def test_new_config_map_is_told_by_inotify(daemon, place, make_pod, src):  # noqa: F811
    pod = make_pod("src")
    old = PodDir(src, "one")
    tell = mount(tool(src, "tell_changes"), "/tell", readonly=True)
    start(daemon, pod, old.container(pod, "main", ["/tell", "/etc/config"], tell))
    wait_for(lambda: pod.output("main") == "ready\n")
    save(daemon, pod, place / "one")
    new = PodDir(src, "two")
    new.config.publish({"key": b"new\n", "of-two": b""})
    copy = Saved(daemon, place / "one", "copy", start=False,
                 containers=[new.container(pod, "main", ["/tell", "/etc/config"], tell)])
    c = copy.containers["main"]
    assert copy.lines("main") == []  # it has not been started
    daemon.client.StartContainer(container_id=c)
    within(10, lambda: "move of-two" in copy.lines("main"))
    told = copy.lines("main")
    assert told.count("move ..data") == 1
    assert told.index("move ..data") < told.index("move of-two") < told.index("delete of-one")
    assert out(daemon, c, "ls /etc/config; cat /etc/config/key") == "key\nof-two\nnew\n"
    assert out(daemon, c, "ls -A /etc/config | grep -c '^\\.\\.2'") == "1\n"
    assert pod.output("main") == "ready\n"
    copy.remove()


FILES = ["kept", "lost", "replaced", "unlinked", "other"]
SHOW = "for f in 3 4 5 6 7; do dd bs=64 count=1 <&$f 2>&1 | head -n1; done; pwd; ls"


def test_what_is_gone_is_stale_alone(daemon, place, make_pod, src):  # noqa: F811
    """Open files, directories and the working directory."""
    pod = make_pod("src")
    old = PodDir(src, "one")
    for f in FILES:
        (old.data / f).write_text(f"{f} one\n" * 3)
    for d in ("here", "away"):
        (old.data / d).mkdir()
        (old.data / d / "file").write_text(f"{d}\n")
    script = ("cd /data; exec 3</data/kept 4</data/lost 5</data/replaced 6</data/unlinked 7</data/other"
              " 8</data/away 9>>/data/away/file; rm unlinked; rm replaced; echo next > replaced; cd here; echo ready;"
              " while ! test -e /data/go; do sleep 0.1; done; "
              "for f in 3 4 5 6 7; do echo $f $(head -n1 <&$f 2>&1); done; pwd; cat file; ls; (echo more >&9) 2>&1; "
              "ls /data/away 2>&1; echo again > /data/lost; cat /data/lost; ls /data; echo done; sleep 1000")
    start(daemon, pod, old.container(pod, "main", ["sh", "-c", script]))
    wait_for(lambda: pod.output("main") == "ready\n")
    save(daemon, pod, place / "one")
    new = PodDir(src, "two", of=old)
    (new.data / "lost").unlink()
    (new.data / "unlinked").write_text("another file\n")  # of that name, which the pod does not have open
    (new.data / "other").write_text("other two\n")
    shutil.rmtree(new.data / "away")
    (new.data / "away").write_text("no directory any more\n")
    copy = Saved(daemon, place / "one", "copy", containers=[new.container(pod, "main", ["sh", "-c", script])])
    (new.data / "go").touch()
    (old.data / "go").touch()
    within(20, lambda: copy.lines("main")[-1:] == ["done"])
    said = "\n".join(copy.lines("main"))
    assert "3 kept one" in said and "7 other two" in said, said
    for fd in (4, 5, 6):  # 5 and 6 had no name even before; a cache in between says EIO
        assert re.search(f"^{fd} .*(Stale file handle|Input.output error)", said, re.M), said
    assert "/data/here\nhere\nfile\n" in said, said
    assert re.search("write error: Stale file handle", said), said
    assert "/data/away" in said and "again" in said, said
    assert (new.data / "lost").read_text() == "again\n" and (new.data / "away").is_file()
    assert (new.data / "unlinked").read_text() == "another file\n"
    # in the pod itself nothing has changed
    within(20, lambda: pod.output("main").endswith("done\n"))
    assert "3 kept one" in pod.output("main") and "4 lost one" in pod.output("main")
    assert (old.data / "away" / "file").read_text() == "away\nmore\n"
    copy.remove()


def test_roots_are_needed(daemon, place, make_pod, src):  # noqa: F811
    """A volume that is missing or of another kind is refused by name, before anything is made."""
    pod = make_pod("src")
    old = PodDir(src, "one")
    command = ["sleep", "100000"]
    start(daemon, pod, old.container(pod, "main", command))
    save(daemon, pod, place / "one")
    new = PodDir(src, "two")
    call = daemon.client.RestorePod

    def refuse(words, *mounts, code="FAILED_PRECONDITION"):
        config = container_config("main", pod.image, command, mounts=mounts)
        refused(code, words, call, checkpoint_path=str(place / "one"), config=sandbox_config("copy"),
                container_configs=[config])
        assert [s.id for s in daemon.client.ListPodSandbox().items] == [pod.id]

    good = new.mounts()
    refuse(f"volume at /data: {src}/no is not there", mount(src / "no", "/data"), *good[1:])
    assert not (src / "no").exists()
    refuse("its mounts", *good[1:])
    refuse("its mounts", mount(new.data, "/elsewhere"), *good[1:])
    refuse("its mounts", mount(new.data, "/data", readonly=True), *good[1:])
    refuse("is no directory, the saved one was one", mount(new.path / "etc-hosts", "/data"), *good[1:])
    refuse("is a directory, the saved one was none", *good[:3], mount(new.data, "/etc/hosts"), good[4])
    refuse("/dev/null is a device", *good[:3], mount("/dev/null", "/etc/hosts"), good[4])
    refuse("volume at /etc/config: the saved one was a volume that kubelet writes atomically", good[0],
           mount(new.data, "/etc/config", readonly=True), *good[2:])
    # in another order they are the same
    copy = Saved(daemon, place / "one", "copy", containers=[
        container_config("main", pod.image, command, mounts=good[::-1])])
    c = copy.containers["main"]
    assert out(daemon, c, "echo x > /data/x; cat /etc/hosts /etc/config/key").endswith("two\ntwo\n")
    assert (new.data / "x").exists()
    copy.remove()
    # as they were saved, if nothing is said of them: the same directories, until they are gone
    copy = Saved(daemon, place / "one", "copy")
    assert out(daemon, copy.containers["main"], "echo y > /data/y; cat /etc/config/key") == "one\n"
    assert (old.data / "y").exists()
    copy.remove()
    pod.remove()
    shutil.rmtree(old.path)
    refused("FAILED_PRECONDITION", f"volume at /data: {old.data} is not there", call,
            checkpoint_path=str(place / "one"), config=sandbox_config("copy"))


def test_containers_share_volumes(daemon, place, make_pod, src):  # noqa: F811
    """One copy in the guest for both, one directory seen by both; one of them had ended."""
    pod = make_pod("src")
    old = PodDir(src, "one")
    for name in ("a", "b"):
        start(daemon, pod, old.container(pod, name, ["sleep", "100000"]))
    ended = start(daemon, pod, old.container(pod, "ended", ["sh", "-c", "exit 0"]))
    daemon.wait_state(ended, pb.CONTAINER_EXITED)
    save(daemon, pod, place / "one")
    new = PodDir(src, "two")
    other = PodDir(src, "other")
    configs = [new.container(pod, n, ["sleep", "100000"]) for n in ("a", "b")]
    refused("FAILED_PRECONDITION", "were one volume when the pod was saved", daemon.client.RestorePod,
            checkpoint_path=str(place / "one"), config=sandbox_config("copy"),
            container_configs=[configs[0], other.container(pod, "b", ["sleep", "100000"])])
    copy = Saved(daemon, place / "one", "copy", containers=configs)
    a, b = copy.containers["a"], copy.containers["b"]
    out(daemon, a, "echo said > /data/x")
    assert out(daemon, b, "cat /data/x /etc/config/key") == "said\ntwo\n"
    daemon.client.StopContainer(container_id=a, timeout=0)
    daemon.client.RemoveContainer(container_id=a)
    new.config.publish({"key": b"later\n"})
    within(5, lambda: out(daemon, b, "cat /etc/config/key") == "later\n")
    copy.remove()


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25, 0.35, 0.5])
def test_daemon_killed_while_saving_volumes(daemon, place, make_pod, src, seconds):  # noqa: F811
    pod = make_pod("src")
    old = PodDir(src, "one")
    command = ["sh", "-c", APPEND]
    start(daemon, pod, old.container(pod, "main", command))
    wait_for(lambda: (old.data / "log").exists() and len(old.lines()) > 10)
    killer = threading.Timer(seconds, daemon.kill)
    killer.start()
    with pytest.raises(grpc.RpcError):
        save(daemon, pod, place / "one")
        raise grpc.RpcError  # it was quicker
    killer.join()
    daemon.start()
    had = len(old.lines())
    within(20, lambda: len(old.lines()) > had + 5)
    assert old.lines() == [str(i + 1) for i in range(len(old.lines()))]
    if not (place / "one").exists():
        save(daemon, pod, place / "one")
    new = PodDir(src, "two", of=old)
    had = len(new.lines())
    copy = Saved(daemon, place / "one", "copy", containers=[new.container(pod, "main", command)])
    within(20, lambda: len(new.lines()) > had + 5)
    copy.remove()


def blocks_of(path):
    """Those of 64 KiB that hold something, and where."""
    with open(path, "rb") as f:
        size, at = path.stat().st_size, 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA) & ~0xffff
            except OSError:  # ENXIO
                return
            f.seek(at)
            block = f.read(64 << 10)
            if block.strip(b"\0"):
                yield at, block
            at += len(block)


def digest_of(path):
    """As cri/checkpoint_dir.h says."""
    h = hashlib.sha256()
    for at, block in blocks_of(path):
        h.update(b"%x\n" % at + block)
    return "sha256:" + h.hexdigest()


def test_hostile_volumes(daemon, place, make_pod, src):  # noqa: F811
    """What a checkpoint says of volumes leads nowhere else, whatever it is."""
    pod = make_pod("src")
    old = PodDir(src, "one")
    (old.data / "d").mkdir()
    (old.data / "d" / "file").write_text("file\n")
    (src / "outside").write_text("outside\n")
    command = ["sh", "-c", "exec 3>>/data/d/file 4</data/d/file; cd /data/d; echo ready; while :; do sleep 0.1; done"]
    start(daemon, pod, old.container(pod, "main", command))
    wait_for(lambda: pod.output("main") == "ready\n")
    good = save(daemon, pod, place / "good")
    m = json.loads((good / "manifest.json").read_text())
    assert digest_of(good / "volumes") == m["volumes"]["digest"]
    new = PodDir(src, "two", of=old)
    config = new.container(pod, "main", command)
    bad = place / "bad"

    def with_manifest(fn, volumes=None):
        shutil.rmtree(bad, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", good, bad], check=True)
        if volumes is not None:
            volumes(bad / "volumes")
        changed = json.loads((good / "manifest.json").read_text())
        fn(changed)
        (bad / "manifest.json").write_text(json.dumps(changed))

    def refuse(words, fn, volumes=None, code="INVALID_ARGUMENT"):
        with_manifest(fn, volumes)
        refused(code, words, daemon.client.RestorePod, checkpoint_path=str(bad), config=sandbox_config("copy"),
                container_configs=[config])

    def put(key, value, at=0):
        return lambda m: m["containers"][0]["volumes"][at].update({key: value})

    refuse("volumes", put("id", 0))
    refuse("volumes", put("id", m["machine"]["last_volume"] + 1))
    refuse("volumes", put("id", m["containers"][0]["volumes"][3]["id"]))
    refuse("volumes", put("mirrored", True))
    refuse("volumes", put("id", 1, at=1))
    refuse("volumes", lambda m: m["containers"][0]["volumes"].pop())
    refuse("volumes", lambda m: m["containers"][0].pop("volumes"))
    refuse("impossible ids", lambda m: m["machine"].update(last_volume=1 << 31))
    refuse("impossible ids", lambda m: m["machine"].update(last_mirror=7))
    refuse("version 3", lambda m: m.update(version=3), code="FAILED_PRECONDITION")
    refuse("volumes is not what", lambda m: None, lambda p: overwrite(p, 8192, b"x"), code="DATA_LOSS")
    refuse("no file volumes", lambda m: None, lambda p: p.unlink(), code="NOT_FOUND")
    refuse("symbolic link", lambda m: None, lambda p: (p.unlink(), p.symlink_to("/etc/passwd")),
           code="FAILED_PRECONDITION")
    assert len(daemon.client.ListPodSandbox().items) == 1

    def described(m):
        m["volumes"] = {"bytes": (bad / "volumes").stat().st_size, "digest": digest_of(bad / "volumes")}
    refuse("another layout", described, lambda p: p.write_bytes(b"x" * 10000), code="FAILED_PRECONDITION")
    # names that lead out of the volume, and anything
    chance = random.Random(5)
    names = [at + x.start() for at, block in blocks_of(good / "volumes") for x in re.finditer(b"file\0", block)]
    assert names
    changes = [lambda p: [overwrite(p, n, b"..\0") for n in names],
               lambda p: [overwrite(p, n, b"../../outside\0") for n in names],
               *[lambda p: damage(p, chance) for _ in range(4)]]
    for change in changes:
        with_manifest(described, change)
        copy = Saved(daemon, bad, "copy", containers=[config])
        c = copy.containers["main"]
        assert out(daemon, c, "cat /data/d/file; echo x > /data/new; rm /data/new; cat /etc/config/key") == "file\ntwo\n"
        copy.remove()
    assert (src / "outside").read_text() == "outside\n"


def overwrite(path, at, what):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(what)


def damage(path, chance):
    """Here and there in what is not empty, but not in the first words, which make it a state at all."""
    used = [at + n for at, block in blocks_of(path) for n in range(0, len(block), 4096)
            if block[n:n + 4096].strip(b"\0")]
    for _ in range(200):
        overwrite(path, chance.choice(used) + chance.randrange(64, 4096), bytes([chance.randrange(256)]))
