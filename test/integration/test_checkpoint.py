"""CheckpointPod and RestorePod: a pod is saved while it runs, and pods are made from what was saved."""
import json
import os
import shutil
import socket
import time

import grpc
import pytest

from conftest import Pod
from cri import container_config, pb, sandbox_config

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /new; mv /new /count; sleep 0.05; done"

pytestmark = [pytest.mark.vm("what is saved is a VM"), pytest.mark.once("a VM on user-vsock cannot be saved")]


class Saved:
    """A restored pod and what tests do with it."""

    def __init__(self, daemon, path, name, config=None, containers=(), start=True):
        self.daemon = daemon
        self.logs = daemon.logs / name
        self.logs.mkdir(parents=True, exist_ok=True)
        self.config = config or sandbox_config(name, log_directory=self.logs)
        r = daemon.client.RestorePod(checkpoint_path=str(path), config=self.config,
                                     container_configs=containers)
        self.id = r.pod_sandbox_id
        self.containers = {c.name: c.container_id for c in r.restored_containers}
        if start:
            for c in self.containers.values():
                daemon.client.StartContainer(container_id=c)

    def lines(self, name):
        text = (self.logs / name / "0.log").read_text()
        return [line.split(" ", 3)[3] for line in text.splitlines()]

    def remove(self):
        self.daemon.client.StopPodSandbox(pod_sandbox_id=self.id)
        self.daemon.client.RemovePodSandbox(pod_sandbox_id=self.id)


@pytest.fixture
def place(daemon):
    """Where checkpoints go; nothing of a failed one stays there."""
    for old in daemon.logs.glob("*"):
        if old.name.startswith(("src", "copy")):  # of other tests here: logs are appended to
            shutil.rmtree(old)
    path = daemon.base / "checkpoints"
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def out(d, c, *cmd):
    return d.exec(c, *cmd).stdout.decode().strip()


def wait_for(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def counted(pod, name="count", n=10):
    wait_for(lambda: len(pod.output(name).split()) >= n)


def test_a_counter_goes_on(daemon, place, make_pod):
    pod = make_pod("src")
    c = pod.start("count", "sh", "-c", COUNTER)
    counted(pod)
    daemon.exec(c, "sh", "-c", "echo kept > /data; mkdir /d; echo more > /d/x")
    daemon.client.CheckpointPod(pod_sandbox_id=pod.id, output_path=str(place / "one"))
    # the pod goes on
    assert daemon.client.PodSandboxStatus(pod_sandbox_id=pod.id).status.state == pb.SANDBOX_READY
    before = int(out(daemon, c, "cat", "/count"))
    wait_for(lambda: int(out(daemon, c, "cat", "/count")) > before + 3)
    numbers = [int(x) for x in pod.output("count").split()]
    assert numbers == list(range(1, len(numbers) + 1))
    # and its copy from where it was
    new = Saved(daemon, place / "one", "copy", start=False)
    cid = new.containers["count"]
    assert daemon.status(cid).state == pb.CONTAINER_CREATED
    assert new.lines("count") == []
    daemon.client.StartContainer(container_id=cid)
    wait_for(lambda: len(new.lines("count")) >= 10)
    first = int(new.lines("count")[0])
    assert 10 < first <= len(numbers)
    got = [int(x) for x in new.lines("count")]
    assert got == list(range(first, first + len(got)))
    assert out(daemon, cid, "cat", "/data") == "kept"
    assert out(daemon, cid, "cat", "/d/x") == "more"
    assert daemon.status(cid).state == pb.CONTAINER_RUNNING
    new.remove()


def save(daemon, pod, path, **more):
    daemon.client.CheckpointPod(pod_sandbox_id=pod.id, output_path=str(path), **more)
    return path


def refused(code, words, call, **fields):
    with pytest.raises(grpc.RpcError) as e:
        call(**fields)
    assert e.value.code() == getattr(grpc.StatusCode, code), e.value.details()
    assert words in e.value.details(), e.value.details()


def eth0(daemon, c):
    mac = out(daemon, c, "cat", "/sys/class/net/eth0/address")
    ip = [w for w in out(daemon, c, "ip", "-4", "addr", "show", "dev", "eth0").split() if w.count(".") == 3]
    return mac, ip[0].split("/")[0]


def test_two_copies_are_two_pods(daemon, place, make_pod):
    """Nothing that must be a pod's own is its original's: ids, address, MAC, names, random numbers."""
    pod = make_pod("src", hostname="original")
    c = pod.start("main", "nc", "-ll", "-p", "8000", "-e", "hostname")
    other = pod.start("other", "sleep", "100000")
    save(daemon, pod, place / "one")
    copies = [Saved(daemon, place / "one", f"copy{i}",
                    sandbox_config(f"copy{i}", hostname=f"host{i}", log_directory=daemon.logs / f"copy{i}"))
              for i in range(2)]
    ours = [other] + [p.containers["other"] for p in copies]
    seen = [eth0(daemon, i) for i in ours]
    assert len({m for m, _ in seen}) == 3 and len({i for _, i in seen}) == 3, seen
    for p, (_, ip) in zip([pod, *copies], seen):
        st = daemon.client.PodSandboxStatus(pod_sandbox_id=p.id).status
        assert st.network.ip == ip
    assert [out(daemon, i, "hostname") for i in ours] == ["original", "host0", "host1"]
    for what in (["cat", "/proc/sys/kernel/random/uuid"], ["sh", "-c", "head -c32 /dev/urandom | md5sum"]):
        assert len({out(daemon, i, *what) for i in ours}) == 3
    assert len({p.id for p in [pod, *copies]} | set(ours) | {c}) == 7
    # a server that listened before answers everywhere
    for (_, ip), name in zip(seen, ("original", "host0", "host1")):
        with socket.create_connection((ip, 8000), timeout=10) as s:
            assert s.recv(100).decode().strip() == name
    for p in copies:
        p.remove()
    assert out(daemon, other, "echo", "still") == "still"


def test_a_copy_is_a_pod_like_others(daemon, place, make_pod):
    """Exit, exec, stats, a second container, stop and remove; its log is whole."""
    pod = make_pod("src")
    pod.start("count", "sh", "-c", "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 9")
    pod.start("stays", "sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done")
    pod.run("ended", "sh", "-c", "exit 5")
    counted(pod, "count", 20)
    save(daemon, pod, place / "one")
    written = int(pod.output("count").split()[-1])
    new = Saved(daemon, place / "one", "copy")
    assert set(new.containers) == {"count", "stays"}  # what had ended is not part of it
    st = daemon.wait_state(new.containers["count"], pb.CONTAINER_EXITED, timeout=60)
    assert (st.exit_code, st.reason) == (9, "Error")
    got = [int(x) for x in new.lines("count")]
    assert got == list(range(got[0], 201)) and got[0] <= written + 1
    stays = new.containers["stays"]
    assert out(daemon, stays, "sh", "-c", "echo in; exit 0") == "in"
    stats = daemon.client.ContainerStats(container_id=stays).stats
    assert stats.memory.usage_bytes.value > 0 and stats.attributes.id == stays
    status = daemon.status(stays)
    assert status.image.image and status.started_at >= status.created_at > 0
    listed = {c.id for c in daemon.client.ListContainers(filter={"pod_sandbox_id": new.id}).containers}
    assert listed == set(new.containers.values())
    config = container_config("later", pod.image, ["sh", "-c", "exit 4"])
    later = daemon.create(new.id, config, new.config)
    daemon.client.StartContainer(container_id=later)
    assert daemon.wait_state(later, pb.CONTAINER_EXITED).exit_code == 4
    daemon.client.StopContainer(container_id=stays, timeout=20)
    assert daemon.status(stays).exit_code == 3
    assert new.lines("stays") == ["bye"]
    daemon.client.RemoveContainer(container_id=stays)
    new.remove()


def test_copies_outlive_the_daemon(daemon, place, make_pod):
    pod = make_pod("src")
    pod.start("count", "sh", "-c", COUNTER)
    counted(pod)
    save(daemon, pod, place / "one")
    daemon.restart()
    new = Saved(daemon, place / "one", "copy", start=False)
    c = new.containers["count"]
    daemon.kill()
    daemon.start()
    assert daemon.status(c).state == pb.CONTAINER_CREATED
    assert new.lines("count") == []
    daemon.client.StartContainer(container_id=c)
    wait_for(lambda: len(new.lines("count")) > 5)
    daemon.kill()
    daemon.start()
    n = len(new.lines("count"))
    wait_for(lambda: len(new.lines("count")) > n + 5)
    got = [int(x) for x in new.lines("count")]
    assert got == list(range(got[0], got[0] + len(got)))
    assert daemon.status(c).state == pb.CONTAINER_RUNNING
    # a copy of the copy
    pod.id, first = new.id, pod.id
    save(daemon, pod, place / "two")
    pod.id = first
    last = got[-1]
    second = Saved(daemon, place / "two", "copy2")
    wait_for(lambda: len(second.lines("count")) > 5)
    assert int(second.lines("count")[0]) >= last
    second.remove()
    new.remove()


def test_time_goes_on(daemon, place, make_pod):
    pod = make_pod("src")
    c = pod.start("x", "sleep", "100000")
    save(daemon, pod, place / "one")
    assert abs(int(out(daemon, c, "date", "+%s")) - time.time()) < 3
    time.sleep(5)
    new = Saved(daemon, place / "one", "copy")
    assert abs(int(out(daemon, new.containers["x"], "date", "+%s")) - time.time()) < 3
    new.remove()


def test_size_and_several_disks(daemon, place, make_pod, images):
    """A VM that has grown, with vCPUs plugged in and image volumes."""
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=512 << 20, cpu_quota=200000, cpu_period=100000)
    pod = make_pod("src", linux=pb.LinuxPodSandboxConfig(
        resources=limits, security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(pid=pb.CONTAINER))))
    daemon.client.PullImage(image={"image": images["docker"]})
    mount = pb.Mount(container_path="/image", image=pb.ImageSpec(image=images["docker"]), readonly=True)
    c = pod.start("x", "sh", "-c", "dd if=/dev/urandom of=/dev/shm/x bs=1M count=40 2>/dev/null; sleep 10000",
                  resources={"memory_limit_in_bytes": 400 << 20}, mounts=[mount])
    wait_for(lambda: out(daemon, c, "sh", "-c", "stat -c %s /dev/shm/x || true") == str(40 << 20))
    show = ["sh", "-c", "md5sum /dev/shm/x; find /image -type f | sort | xargs md5sum; nproc;"
            " grep MemTotal /proc/meminfo"]
    want = out(daemon, c, *show)
    save(daemon, pod, place / "one")
    assert out(daemon, c, *show) == want
    config = sandbox_config("copy", log_directory=daemon.logs / "copy", linux=pod.config.linux)
    new = Saved(daemon, place / "one", "copy", config)
    assert out(daemon, new.containers["x"], *show) == want
    new.remove()


def test_stopped_when_saved(daemon, place, make_pod):
    pod = make_pod("src")
    c = pod.start("count", "sh", "-c", COUNTER)
    counted(pod)
    save(daemon, pod, place / "one", options={"leave-running": "false"})
    assert daemon.status(c).state == pb.CONTAINER_EXITED
    assert daemon.client.PodSandboxStatus(pod_sandbox_id=pod.id).status.state == pb.SANDBOX_NOTREADY
    last = int(pod.output("count").split()[-1])
    new = Saved(daemon, place / "one", "copy")
    wait_for(lambda: new.lines("count"))
    assert int(new.lines("count")[0]) == last + 1  # not one was counted in between
    new.remove()


def test_commands_do_not_follow(daemon, place, make_pod):
    """What a client had executed in the saved pod ends in the copy, whose client is not there; in the pod it goes on."""
    import concurrent.futures
    pod = make_pod("src")
    c = pod.start("x", "sleep", "100000")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(daemon.exec, c, "sleep", "12")
        wait_for(lambda: "sleep 12" in out(daemon, c, "ps"))
        save(daemon, pod, place / "one")
        new = Saved(daemon, place / "one", "copy")
        assert "sleep 12" not in out(daemon, new.containers["x"], "ps")
        assert "sleep 12" in out(daemon, c, "ps")
        assert running.result().exit_code == 0
    new.remove()


def test_what_cannot_be_saved_is_refused(daemon, place, make_pod):
    call = daemon.client.CheckpointPod
    pod = make_pod("src")
    where = {"pod_sandbox_id": pod.id, "output_path": str(place / "one")}
    refused("FAILED_PRECONDITION", "no container of it runs", call, **where)
    waits = pod.create("waits", "sleep", "1000")
    refused("FAILED_PRECONDITION", "container waits has not been started", call, **where)
    daemon.client.StartContainer(container_id=waits)
    two = pod.start("two", "sleep", "1000")
    refused("FAILED_PRECONDITION", "container two runs too and is not named", call, container_ids=[waits], **where)
    refused("FAILED_PRECONDITION", "is not one that runs in the pod", call, container_ids=[waits, two, "0" * 64],
            **where)
    refused("INVALID_ARGUMENT", '"compress" is not known', call, options={"compress": "x"}, **where)
    refused("INVALID_ARGUMENT", "output_path", call, pod_sandbox_id=pod.id)
    refused("INVALID_ARGUMENT", "absolute", call, pod_sandbox_id=pod.id, output_path="one")
    refused("NOT_FOUND", "not found", call, pod_sandbox_id="0" * 64, output_path=str(place / "one"))
    assert list(place.iterdir()) == []
    host = make_pod("host", linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(
        namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER))))
    host.start("x", "sleep", "1000")
    refused("FAILED_PRECONDITION", "on the host", call, pod_sandbox_id=host.id, output_path=str(place / "one"))
    full = place / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    for path, words in ((full, "is not empty"), (full / "mine", "no directory"), (place / "no" / "way", "No such file")):
        with pytest.raises(grpc.RpcError) as e:
            call(pod_sandbox_id=pod.id, output_path=str(path))
        assert words in e.value.details(), e.value.details()
    assert (full / "mine").read_text() == "mine"
    (place / "link").symlink_to(full)
    refused("FAILED_PRECONDITION", "no directory", call, pod_sandbox_id=pod.id, output_path=str(place / "link"))
    full.chmod(0o777)
    refused("FAILED_PRECONDITION", "others than root", call, pod_sandbox_id=pod.id, output_path=str(full))
    mounts = []
    for name in ("a", "b"):
        (place / name).mkdir()
        mounts.append(pb.Mount(container_path="/v", host_path=str(place / name)))
    three = pod.start("three", "sleep", "1000", mounts=mounts)
    refused("FAILED_PRECONDITION", "container three: two volumes are at /v", call, **where)
    daemon.client.StopContainer(container_id=three, timeout=0)
    refused("UNIMPLEMENTED", "", daemon.client.CheckpointContainer, container_id=two, location=str(place / "c.tar"))
    assert out(daemon, two, "echo", "well") == "well"


def test_an_empty_directory_is_filled(daemon, place, make_pod):
    """kubelet makes the directory. What is in it is root's alone."""
    pod = make_pod("src")
    c = pod.start("x", "sleep", "1000")
    (place / "one").mkdir()
    save(daemon, pod, place / "one", container_ids=[c])
    assert sorted(p.name for p in (place / "one").iterdir()) == ["manifest.json", "scratch", "vm", "volumes"]
    for p in (place / "one").iterdir():
        assert p.stat().st_mode & 0o777 == 0o600
    assert (place / "one" / "scratch").stat().st_blocks * 512 < 64 << 20
    m = json.loads((place / "one" / "manifest.json").read_text())
    assert [x["name"] for x in m["containers"]] == ["x"]
    refused("FAILED_PRECONDITION", "is not empty", daemon.client.CheckpointPod, pod_sandbox_id=pod.id,
            output_path=str(place / "one"))
    Saved(daemon, place / "one", "copy").remove()


def test_hostile_checkpoints_are_refused(daemon, place, make_pod):
    pod = make_pod("src")
    pod.start("x", "sleep", "1000")
    good = save(daemon, pod, place / "good")
    text = (good / "manifest.json").read_text()
    n = 0

    def refuse(words, change, code=None):
        nonlocal n
        n += 1
        bad = place / f"bad{n}"
        shutil.copytree(good, bad)
        change(bad)
        with pytest.raises(grpc.RpcError) as e:
            daemon.client.RestorePod(checkpoint_path=str(bad), config=sandbox_config("copy"))
        assert words in e.value.details(), e.value.details()
        assert code is None or e.value.code() == getattr(grpc.StatusCode, code), e.value
        assert len(daemon.client.ListPodSandbox().items) == 1
        shutil.rmtree(bad)

    def manifest(fn):
        def change(bad):
            m = json.loads(text)
            fn(m)
            (bad / "manifest.json").write_text(json.dumps(m))
        return change

    def put(*keys, value):
        def fn(m):
            for k in keys[:-1]:
                m = m[k]
            m[keys[-1]] = value
        return manifest(fn)

    def flip(name, at):
        def change(bad):
            with open(bad / name, "r+b") as f:
                f.seek(at)
                b = f.read(1)
                f.seek(at)
                f.write(bytes([b[0] ^ 1]))
        return change

    def replace(name, make):
        def change(bad):
            (bad / name).unlink()
            make(bad / name)
        return change

    refuse("it has no file manifest.json", lambda b: (b / "manifest.json").unlink(), "NOT_FOUND")
    refuse("it has no file vm", lambda b: (b / "vm").unlink())
    refuse("vm is a symbolic link", replace("vm", lambda p: p.symlink_to(good / "vm")))
    refuse("manifest.json is a symbolic link", replace("manifest.json", lambda p: p.symlink_to("/etc/passwd")))
    refuse("no file of its own", replace("vm", lambda p: os.link(good / "vm", p)))
    refuse("no file of its own", replace("scratch", os.mkfifo))
    refuse("others than root", lambda b: os.chown(b / "vm", 1000, 1000))
    refuse("others than root", lambda b: os.chmod(b / "scratch", 0o644))
    refuse("others than root", lambda b: os.chown(b, 1000, 1000))
    refuse("others than root", lambda b: os.chmod(b, 0o777))
    refuse("bytes, the manifest says", lambda b: os.truncate(b / "vm", (b / "vm").stat().st_size - 1), "DATA_LOSS")
    refuse("bytes, the manifest says", lambda b: os.truncate(b / "scratch", 4096), "DATA_LOSS")
    refuse("vm is not what the manifest says", flip("vm", 5000), "DATA_LOSS")
    refuse("scratch is not what the manifest says", flip("scratch", 1024), "DATA_LOSS")
    refuse("no checkpoint of a pod", lambda b: (b / "manifest.json").write_text("{}"), "INVALID_ARGUMENT")
    refuse("no checkpoint of a pod", lambda b: os.truncate(b / "manifest.json", len(text) // 2), "INVALID_ARGUMENT")
    refuse("is of version 99", put("version", value=99), "FAILED_PRECONDITION")
    refuse("made with QEMU 1.0", put("machine", "qemu", value="1.0"), "FAILED_PRECONDITION")
    refuse("ran under kvm", put("machine", "accel", value="kvm"), "FAILED_PRECONDITION")
    refuse("another processor", put("machine", "cpu", value="x"), "FAILED_PRECONDITION")
    refuse("manifest", put("machine", "mac", value="$(reboot)"), "INVALID_ARGUMENT")
    refuse("impossible size", put("machine", "boot_bytes", value=1 << 60), "INVALID_ARGUMENT")
    refuse("impossible number of vcpus", put("machine", "vcpus", value=0), "INVALID_ARGUMENT")
    refuse("slot", put("machine", "disks", 0, "slot", value=77), "INVALID_ARGUMENT")
    refuse("kind is not known", put("machine", "ram", value="x,share=on"), "INVALID_ARGUMENT")
    refuse("image", put("machine", "disks", 0, "image", value="../../etc/passwd"), "INVALID_ARGUMENT")
    refuse("is not here", put("machine", "disks", 0, "image", value="sha256:" + "0" * 64), "FAILED_PRECONDITION")
    refuse("otherwise than", put("machine", "disks", 0, "layout", value="sha256:" + "0" * 64), "FAILED_PRECONDITION")
    refuse("pod", put("pod", value="zz"), "INVALID_ARGUMENT")
    refuse("container x: image", put("containers", 0, "image", value="sha256:" + "0" * 64), "FAILED_PRECONDITION")
    refuse("id", put("containers", 0, "id", value="../x"), "INVALID_ARGUMENT")
    # the guest knows no such container, or the state is of another machine: found out late, and undone
    refuse("does not run", put("containers", 0, "id", value="0" * 64))

    def other_memory(b):
        m = json.loads(text)
        m["machine"]["boot_bytes"] += 1 << 20
        m["machine"]["max_bytes"] += 1 << 20
        (b / "manifest.json").write_text(json.dumps(m))
    refuse("load of migration failed", other_memory)
    refused("INVALID_ARGUMENT", "absolute", daemon.client.RestorePod, checkpoint_path="x", config=sandbox_config("copy"))
    refused("INVALID_ARGUMENT", "checkpoint_path is empty", daemon.client.RestorePod, config=sandbox_config("copy"))
    # and what it is copied from still works
    Saved(daemon, good, "copy").remove()


def test_what_cannot_be_restored_is_refused(daemon, place, make_pod, images):
    pod = make_pod("src")
    daemon.client.PullImage(image={"image": images["docker"]})
    mount = pb.Mount(container_path="/image", image=pb.ImageSpec(image=images["docker"]), readonly=True)
    pod.start("x", "sleep", "1000", mounts=[mount])
    good = save(daemon, pod, place / "good")
    call = daemon.client.RestorePod
    here = {"checkpoint_path": str(good), "config": sandbox_config("copy")}
    same = container_config("x", pod.image, ["sleep", "1000"], mounts=[mount])
    refused("ALREADY_EXISTS", "exists as", call, checkpoint_path=str(good))  # under its own name
    refused("FAILED_PRECONDITION", "on the host", call, runtime_handler="aspis-host", **here)
    refused("INVALID_ARGUMENT", '"x" is not known', call, options={"x": "y"}, **here)
    for bad, words in ((container_config("x", pod.image, ["sleep", "1"], mounts=[mount]), "its command"),
                       (container_config("x", pod.image, ["sleep", "1000"], mounts=[mount], tty=True), "its tty"),
                       (container_config("x", pod.image, ["sleep", "1000"]), "its mounts"),
                       (container_config("x", images["docker"], ["sleep", "1000"], mounts=[mount]), "its image was"),
                       (container_config("y", pod.image, ["sleep", "1000"], mounts=[mount]), "container x")):
        refused("FAILED_PRECONDITION", words, call, container_configs=[bad], **here)
    refused("FAILED_PRECONDITION", "1 containers were saved, 2 are asked for", call,
            container_configs=[same, container_config("z", pod.image)], **here)
    refused("FAILED_PRECONDITION", "security context", call, checkpoint_path=str(good), config=sandbox_config(
        "copy", linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(pid=pb.POD)))))
    same.labels["who"] = "copy"
    new = Saved(daemon, good, "copy", containers=[same])
    assert daemon.status(new.containers["x"]).labels["who"] == "copy"
    new.remove()
    daemon.client.StopPodSandbox(pod_sandbox_id=pod.id)
    daemon.client.RemovePodSandbox(pod_sandbox_id=pod.id)
    daemon.client.RemoveImage(image={"image": images["docker"]})
    refused("FAILED_PRECONDITION", "is not here", call, **here)


@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.2, 0.5, 1])
def test_deadlines(daemon, place, make_pod, seconds):
    pod = make_pod("src")
    c = pod.start("count", "sh", "-c", COUNTER)
    counted(pod)
    try:
        daemon.client.CheckpointPod(pod_sandbox_id=pod.id, output_path=str(place / "one"), deadline=seconds)
        saved = True
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        saved = False
    # the call may end a moment before its work does
    wait_for(lambda: (place / "one" / "manifest.json").exists() or not (place / "one").exists())
    assert not saved or (place / "one" / "manifest.json").exists()
    before = int(out(daemon, c, "cat", "/count"))
    wait_for(lambda: int(out(daemon, c, "cat", "/count")) > before + 3)
    if not (place / "one").exists():
        save(daemon, pod, place / "one")
    try:
        r = daemon.client.RestorePod(checkpoint_path=str(place / "one"), config=sandbox_config("copy"),
                                     deadline=seconds)
        ids = [r.pod_sandbox_id]
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        ids = []
    time.sleep(1.5)
    for s in daemon.client.ListPodSandbox().items:
        if s.id != pod.id:
            ids.append(s.id)
    for i in set(ids):
        daemon.client.StopPodSandbox(pod_sandbox_id=i)
        daemon.client.RemovePodSandbox(pod_sandbox_id=i)
    Saved(daemon, place / "one", "copy").remove()


def test_no_room_for_it(daemon, place, make_pod):
    """A full disk is the checkpoint's failure, not the pod's."""
    pod = make_pod("src")
    c = pod.start("x", "sleep", "1000")
    full = place / "small"
    full.mkdir()
    assert os.system(f"mount -t tmpfs -o size=8m,mode=700 small {full}") == 0
    try:
        with pytest.raises(grpc.RpcError) as e:
            daemon.client.CheckpointPod(pod_sandbox_id=pod.id, output_path=str(full))
        assert "could not write the state" in e.value.details(), e.value.details()
        assert list(full.iterdir()) == []
    finally:
        os.system(f"umount {full}")
    assert out(daemon, c, "echo", "well") == "well"
    Saved(daemon, save(daemon, pod, place / "one"), "copy").remove()


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
def test_daemon_killed_while_saving(daemon, place, make_pod, seconds):
    """Wherever it was: the pod goes on when the next daemon comes, and the directory is whole or not there."""
    import threading
    pod = make_pod("src")
    c = pod.start("count", "sh", "-c", COUNTER)
    counted(pod)
    killer = threading.Timer(seconds, daemon.kill)
    killer.start()
    with pytest.raises(grpc.RpcError):
        save(daemon, pod, place / "one")
        raise grpc.RpcError  # it was quicker
    killer.join()
    daemon.start()
    before = int(out(daemon, c, "cat", "/count"))
    wait_for(lambda: int(out(daemon, c, "cat", "/count")) > before + 3)
    numbers = [int(x) for x in pod.output("count").split()]
    assert numbers == list(range(1, len(numbers) + 1))
    if not (place / "one").exists():
        save(daemon, pod, place / "one")
    assert not list((daemon.state / "checkpoints").iterdir())
    Saved(daemon, place / "one", "copy").remove()


def test_aspisctl(daemon, place, images):
    """People save what they have run, and run it again under another name."""
    import subprocess
    from daemon import BUILD

    def ctl(*args):
        r = subprocess.run([BUILD / "cri" / "ctl" / "aspisctl", "--socket", daemon.socket, *args],
                           capture_output=True, text=True, cwd=place)
        assert r.returncode == 0, r.stderr
        return r.stdout.strip()
    c = ctl("run", "-d", "--name", "first", images["busybox"], "--", "sh", "-c", COUNTER)
    wait_for(lambda: int(out(daemon, c, "sh", "-c", "cat /count || echo 0")) > 5)
    ctl("checkpoint", "first", "one")
    new = ctl("restore", "one", "second")
    assert int(ctl("exec", "second", "--", "cat", "/count")) > 5
    assert int(ctl("logs", "second").split()[0]) > 5
    ctl("rmp", "first", new)
