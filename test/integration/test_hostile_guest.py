"""S3: a pod's guest was taken over and turns against the daemon, over a real link. It loses its pod, with the reason told;
the daemon stays small and quick, and nobody else's pod or container notices."""
import json
import os
import time
from pathlib import Path

import grpc
import pytest

from conftest import Pod
from cri import pb
from daemon import INITRD

pytestmark = pytest.mark.vm("a guest that turns on its host")

# The real agent, which turns bad at an exec of "attack HOW": test/hostile/hostile.c.
BAD = INITRD.with_name("aspis-initrd-bad.cpio")
SILENCE = 4


@pytest.fixture(scope="module")
def bad_daemon(images, tmp_path_factory):
    from conftest import world
    from daemon import Daemon
    if not BAD.exists():
        pytest.fail(f"{BAD} is missing: a build with -Dtest_agents=true makes it")
    d = Daemon(world("h"), overrides={"machine": {"initrd": str(BAD), "guest_silence_seconds": SILENCE}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    yield d
    d.destroy()


class World:
    def __init__(self, d, image, name):
        self.d = d
        self.runs = 0
        self.bad = Pod(d, f"bad-{name}", image)
        volume = d.base / "volume"
        volume.mkdir(exist_ok=True)
        self.c = self.bad.start("x", "sh", "-c", "while :; do echo line; sleep 0.1; done",
                                mounts=[pb.Mount(container_path="/data", host_path=str(volume))])
        self.good = Pod(d, f"good-{name}", image)
        self.g = self.good.start("y", "sleep", "100000")
        self.boot = self.d.exec(self.g, "cat", "/proc/sys/kernel/random/boot_id").stdout
        self.rss = self.memory()

    def memory(self):
        """MiB that the daemon has in memory."""
        text = Path(f"/proc/{self.d.proc.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) >> 10

    def cpu(self):
        """Seconds of processor time of the daemon so far."""
        fields = Path(f"/proc/{self.d.proc.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def attack(self, *how):
        with pytest.raises(grpc.RpcError):
            self.d.client.ExecSync(container_id=self.c, cmd=["attack", *how], timeout=3, deadline=6)

    def reason(self):
        return json.loads(self.d.client.PodSandboxStatus(pod_sandbox_id=self.bad.id, verbose=True).info["info"])["reason"]

    def until_lost(self, seconds=10):
        deadline = time.monotonic() + seconds
        while self.bad.status().state == pb.SANDBOX_READY:
            assert time.monotonic() < deadline, "the pod is still READY"
            time.sleep(0.05)
        return self.reason()

    def others_are_fine(self):
        begin = time.monotonic()
        states = {s.id: s.state for s in self.d.client.ListPodSandbox().items}
        self.d.client.ListContainers()
        assert time.monotonic() - begin < 5
        assert states[self.good.id] == pb.SANDBOX_READY
        assert self.d.status(self.g).state == pb.CONTAINER_RUNNING
        assert self.d.exec(self.g, "cat", "/proc/sys/kernel/random/boot_id").stdout == self.boot
        self.runs += 1
        assert self.good.run(f"more{self.runs}", "sh", "-c", "exit 3").exit_code == 3
        assert time.monotonic() - begin < 30
        # the address sanitizer keeps 256 MiB of what was freed
        limit = 600 if "libasan" in Path(f"/proc/{self.d.proc.pid}/maps").read_text() else 150
        assert self.memory() < self.rss + limit, f"{self.rss} MiB before, {self.memory()} MiB now"

    def end(self):
        begin = time.monotonic()
        self.bad.remove()
        assert time.monotonic() - begin < 30
        self.good.remove()
        assert not self.d.client.ListPodSandbox().items


@pytest.fixture
def attacked(bad_daemon, images, request):
    w = World(bad_daemon, images["busybox"], request.node.callspec.params.get("how", "x")
              if hasattr(request.node, "callspec") else "x")
    yield w
    w.end()


@pytest.mark.parametrize("how, words", [
    ("garbage", "no frame"), ("garbage-io", "no frame"), ("answers", "flood"), ("streams", "stream"),
    ("silence", "has not answered")])
def test_a_guest_that_breaks_the_protocol_loses_its_pod(attacked, how, words):
    attacked.attack(how)
    reason = attacked.until_lost(SILENCE + 10)
    assert words in reason, reason
    assert len(reason) < 8192
    attacked.others_are_fine()


@pytest.mark.parametrize("how", ["wrong-answers", "events", "volumes", "garbage-fs"])
def test_a_guest_that_only_lies_troubles_nobody(attacked, how):
    """Well-formed rubbish for ever: its pod may go or stay, the others do not notice."""
    attacked.attack(how)
    begin, used, log = time.monotonic(), attacked.cpu(), len(attacked.d.log_text())
    for _ in range(5):
        attacked.others_are_fine()
    seconds = time.monotonic() - begin
    assert attacked.cpu() - used < 0.6 * seconds + 0.5, "the daemon is busy with one guest"
    assert len(attacked.d.log_text()) - log < 30000 * (seconds + 1), "the daemon's log is flooded"


def test_a_guest_speaks_for_its_own_containers_only(attacked):
    attacked.attack("exits", attacked.g, attacked.good.id, "")
    time.sleep(12)  # what waits for the end of a log has given up
    attacked.others_are_fine()
    assert attacked.d.status(attacked.g).exit_code == 0


def test_what_a_guest_says_of_its_own_container_is_bounded(attacked):
    """It may end it whenever it likes: once, at a time that can be."""
    attacked.attack("exits", attacked.c)
    s = attacked.d.wait_state(attacked.c, pb.CONTAINER_EXITED, timeout=30)
    assert (s.exit_code, s.reason) == (77, "Error")
    attacked.others_are_fine()
    attacked.d.client.RemoveContainer(container_id=attacked.c, deadline=60)
