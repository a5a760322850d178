"""R8: damaged records, missing images, a full disk, a limit on file sizes: the daemon serves on, says what is wrong, and only
what is affected suffers."""
import errno
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import time

import grpc
import pytest

from conftest import Pod
from cri import pb, sandbox_config

pytestmark = pytest.mark.once("the daemon's own files")


def fails(call, *args, **kw):
    with pytest.raises(grpc.RpcError) as e:
        call(*args, **kw)
    return e.value


def started(own_daemon, images, **kw):
    d = own_daemon(**kw)
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    return d


def no_machine(d, timeout=10):
    deadline = time.monotonic() + timeout
    while d.qemu_pids():
        assert time.monotonic() < deadline, "a VM that no record owns runs on"
        time.sleep(0.05)


def change(d, sql, *values):
    with sqlite3.connect(d.state / "state.db") as db:
        assert db.execute(sql, values).rowcount == 1
    db.close()


def test_a_damaged_record_costs_its_own_pod_only(own_daemon, images):
    d = started(own_daemon, images)
    good, bad, half = (Pod(d, n, images["busybox"]) for n in ("good", "bad", "half"))
    g, h, lost = good.start("x", "sleep", "1000"), half.start("y", "sleep", "1000"), half.start("z", "sleep", "1000")
    bad.start("x", "sleep", "1000")
    d.kill()
    change(d, "UPDATE sandboxes SET config = x'ff00ff' WHERE id = ?", bad.id)
    change(d, "UPDATE containers SET config = x'ff00ff' WHERE id = ?", lost)
    d.start()
    text = d.log_text()
    assert f"record of sandbox {bad.id}" in text and "its pod will be collected" in text
    assert f"container={lost}" in text and "record of container is unusable" in text
    states = {s.id: s.state for s in d.client.ListPodSandbox().items}
    assert states[good.id] == states[half.id] == pb.SANDBOX_READY
    assert states.get(bad.id, pb.SANDBOX_NOTREADY) == pb.SANDBOX_NOTREADY
    for c in (g, h):
        assert d.status(c).state == pb.CONTAINER_RUNNING and d.exec(c, "echo", "hi").stdout == b"hi\n"
    assert good.run("more", "sh", "-c", "exit 3").exit_code == 3
    for p in (good, half, bad):
        p.remove()
    no_machine(d)
    # the damaged one's name works at once
    again = Pod(d, "bad", images["busybox"])
    again.remove()


def test_flipped_bits_and_cut_files_never_stop_the_daemon(own_daemon, images):
    """Whatever is wrong with the file, the daemon starts, answers, and starts pods; what it no longer knows is collected."""
    dice = random.Random(8)
    d = started(own_daemon, images)
    for n in range(8):
        pod = Pod(d, f"p{n}", images["busybox"])
        pod.start("x", "sleep", "1000")
        d.stop()
        db = d.state / "state.db"
        data = bytearray(db.read_bytes())
        if n % 4 == 3:
            del data[dice.randrange(len(data)):]
        else:
            for _ in range(1 << (2 * n)):
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        db.write_bytes(data)
        d.start()
        for s in d.client.ListPodSandbox().items:
            d.client.PodSandboxStatus(pod_sandbox_id=s.id)
        for c in d.client.ListContainers().containers:
            d.status(c.id)
        d.remove_all()
        no_machine(d)
    Pod(d, "last", images["busybox"]).remove()


def test_images_that_are_gone(own_daemon, images):
    d = started(own_daemon, images)
    pod = Pod(d, "keeps", images["busybox"])
    c = pod.start("x", "sleep", "1000")
    d.stop()
    shutil.rmtree(d.state / "images")
    d.start()
    # what runs holds its files open
    assert d.status(c).state == pb.CONTAINER_RUNNING and d.exec(c, "echo", "hi").stdout == b"hi\n"
    assert pod.status().state == pb.SANDBOX_READY
    assert not d.client.ListImages().images
    e = fails(pod.create, "more", "true")
    assert e.code() == grpc.StatusCode.NOT_FOUND and "busybox" in e.details()
    d.client.PullImage(image={"image": images["busybox"]})
    assert pod.run("more", "true").exit_code == 0
    pod.remove()


@pytest.fixture
def small_disk(own_daemon, tmp_path):
    """A daemon whose records, images and scratch disks are on a file system of 160 MiB of their own."""
    d = own_daemon()
    image = tmp_path / "disk"
    with open(image, "wb") as f:
        f.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(d.state)], check=True)
    yield d
    if d.proc is not None:
        d.remove_all()
        d.stop()
    subprocess.run(["umount", str(d.state)], check=True)


def fill(d):
    fd = os.open(d.state / "ballast", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096, 1):
        try:
            while os.write(fd, bytes(size)):
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC
    os.close(fd)


def test_a_full_disk(small_disk, images):
    d = small_disk
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    pod = Pod(d, "before", images["busybox"])
    c = pod.start("x", "sleep", "1000")
    fill(d)
    try:
        # what is needs no room
        assert pod.status().state == pb.SANDBOX_READY and d.status(c).state == pb.CONTAINER_RUNNING
        assert d.exec(c, "echo", "hi").stdout == b"hi\n"
        e = fails(d.client.PullImage, image={"image": images["layers40"]})
        assert "space" in e.details().lower() or "full" in e.details().lower(), e.details()
        # a new pod works or says why and leaves nothing, so its name can be tried again and again
        new = {}
        for n in range(3):
            for _ in range(3):
                try:
                    new[n] = d.run_pod(sandbox_config(f"full{n}"))
                except grpc.RpcError as e:
                    assert "space" in e.details() or "full" in e.details(), e.details()
                    assert e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert {s.id for s in d.client.ListPodSandbox().items} == {pod.id, *new.values()}
        assert len(d.qemu_pids()) == 1 + len(new)
        # the daemon comes back on a full disk and knows its pods
        d.kill()
        d.start()
        assert pod.status().state == pb.SANDBOX_READY and d.status(c).state == pb.CONTAINER_RUNNING
        assert d.exec(c, "echo", "hi").stdout == b"hi\n"
        d.stop()
        d.start()
        assert d.exec(c, "echo", "hi").stdout == b"hi\n"
    finally:
        (d.state / "ballast").unlink()
    for s in d.client.ListPodSandbox().items:
        if s.id != pod.id:
            d.client.StopPodSandbox(pod_sandbox_id=s.id)
            d.client.RemovePodSandbox(pod_sandbox_id=s.id)
    assert len(d.qemu_pids()) == 1
    d.run_pod(sandbox_config("full0"))
    assert pod.run("after", "true").exit_code == 0
    pod.remove()
    d.remove_all()


def test_a_limit_on_file_sizes(own_daemon, images):
    """A log that may not grow holds its container back; nothing is lost, and the daemon lives."""
    d = started(own_daemon, images)
    pod, other = Pod(d, "limited", images["busybox"]), Pod(d, "other", images["busybox"])
    soft, hard = resource.prlimit(d.proc.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(d.proc.pid, resource.RLIMIT_FSIZE, (300000, hard))
    try:
        total, tail = 10000, "x" * 200  # more than fits on the way: a container that ended is not waited for long
        c = pod.start("x", "sh", "-c", f"i=0; while [ $i -lt {total} ]; do i=$((i+1)); echo line number $i {tail}; done")
        log = pod.logs / "x" / "0.log"
        deadline = time.monotonic() + 180
        while not log.exists() or log.stat().st_size < 290000:
            assert time.monotonic() < deadline, "the log does not reach its limit"
            time.sleep(0.1)
        time.sleep(1)
        assert log.stat().st_size <= 300000 and d.proc.poll() is None
        assert d.status(c).state == pb.CONTAINER_RUNNING
        assert other.run("y", "sh", "-c", "exit 3").exit_code == 3
    finally:
        resource.prlimit(d.proc.pid, resource.RLIMIT_FSIZE, (soft, hard))
    d.wait_state(c, pb.CONTAINER_EXITED)
    assert pod.output("x").splitlines() == [f"line number {i} {tail}" for i in range(1, total + 1)]
    pod.remove()
    other.remove()
