"""CheckpointPod and RestorePod: a pod is saved while it runs, and pods are made from what was saved."""
import json
import os
import shutil
import time

import grpc
import pytest

from conftest import Pod
from cri import container_config, pb, sandbox_config

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /count; sleep 0.05; done"


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


def test_a_counter_goes_on(daemon, make_pod, place):
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
