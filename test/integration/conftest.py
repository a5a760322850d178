"""Fixtures: one registry and one daemon for the session, the leak audit around every test."""
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import audit  # noqa: E402
from cri import sandbox_config  # noqa: E402
import spares  # noqa: E402
from daemon import ALONE, HANDLER, SET, Daemon, Points  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "vm(reason): needs a pod in a VM; left out with ASPIS_TEST_HANDLER=aspis-host")
    config.addinivalue_line("markers", "once(reason): the same over every transport and on both backends, so test/run has it once")


def pytest_collection_modifyitems(config, items):
    if HANDLER != "aspis-host":
        return
    out = [i for i in items if i.get_closest_marker("vm")]
    config.hook.pytest_deselected(items=out)
    items[:] = [i for i in items if not i.get_closest_marker("vm")]


def world(prefix):
    Path("/run/at").mkdir(exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=prefix, dir="/run/at"))
    base.chmod(0o755)
    return base


@pytest.fixture(scope="session")
def registry():
    from registry import Registry
    r = Registry()
    r.start()
    yield r
    r.stop()


@pytest.fixture(scope="session")
def images(registry):
    """References of the test images in the registry, by short name."""
    from images import publish
    work = Path(tempfile.mkdtemp(prefix="aspis-images-"))
    only = os.environ.get("ASPIS_TEST_IMAGES")  # names, for a machine that is slow
    refs = publish(registry, work, only and only.split())
    yield refs
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_daemon(images):
    d = Daemon(world("s"))
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    yield d
    d.destroy()


@pytest.fixture
def daemon(shared_daemon):
    """The session's daemon, audited: a test leaves nothing but images."""
    d = shared_daemon
    if d.proc is None or d.proc.poll() is not None:
        d.start()
    before = audit.snapshot(d)
    fds = audit._fds(d.proc.pid)
    pid = d.proc.pid
    yield d
    assert d.proc is not None and d.proc.poll() is None, f"aspisd is gone:\n{d.log_text()[-6000:]}"
    left = [s.id for s in d.client.ListPodSandbox().items]
    d.remove_all()
    wrong = settle(d, before)
    assert not wrong, "\n".join(wrong)
    assert not left, f"the test left sandboxes {left}"
    if d.proc.pid == pid:
        # worker threads, gRPC connections and spare VMs come and go; a leak per operation does not
        assert audit._fds(pid) <= fds + 24 + 16 * len(audit._spares(d))


def settle(d, before):
    """The kernel takes a moment to let go of a veth after its namespace went."""
    deadline = time.monotonic() + 5
    while True:
        wrong = audit.compare(before, audit.snapshot(d))
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.1)


@pytest.fixture
def own_daemon(request):
    """A daemon of the test's own, not yet started: own_daemon(overrides=..., network=...)."""
    made = []

    def make(**kw):
        d = Daemon(world("o"), **kw)
        made.append(d)
        return d

    yield make
    for d in made:
        d.destroy()


@pytest.fixture
def spare_daemon(own_daemon, images):
    """spare_daemon("failpoint=...", fork=...): with one spare; audited when it has ended, since only then nothing may be left."""
    made = []
    before = audit.named_netns()

    def make(*points, fork=False, **machine):
        d = own_daemon(overrides={"machine": {"spares": 1, "fork": fork, **machine}})
        d.points = Points(d.base / "failpoints")
        d.points.set(*points)
        d.env["ASPIS_FAILPOINTS_FILE"] = str(d.points.path)
        made.append(d)
        d.start()
        d.client.PullImage(image={"image": images["busybox"]})
        return d

    yield make
    for d in made:
        d.points.clear()
        if not d.alive():
            d.start()
        d.remove_all()
        d.stop()
        assert not spares.left(d)
    # of the session's daemon too, whose spares come and go
    assert not ALONE or SET.get("machine", {}).get("spares") or not audit.named_netns() - before


class Pod:
    """A running pod and what tests do with it."""

    def __init__(self, daemon, name, image, **more):
        self.daemon = daemon
        self.image = image
        self.logs = daemon.logs / name
        self.logs.mkdir(parents=True, exist_ok=True)
        handler = more.pop("handler", HANDLER)
        self.config = sandbox_config(name, log_directory=self.logs, **more)
        self.id = daemon.run_pod(self.config, runtime_handler=handler)
        self.gone = False

    def create(self, name, *command, **more):
        from cri import container_config
        config = container_config(name, more.pop("image", self.image), command, **more)
        return self.daemon.create(self.id, config, self.config)

    def start(self, name, *command, **more):
        c = self.create(name, *command, **more)
        self.daemon.client.StartContainer(container_id=c)
        return c

    def run(self, name, *command, **more):
        """Runs to the end; gives the final status."""
        from cri import pb
        c = self.start(name, *command, **more)
        return self.daemon.wait_state(c, pb.CONTAINER_EXITED)

    def log(self, name, attempt=0):
        return (self.logs / name / f"{attempt}.log").read_text()

    def output(self, name, stream="stdout", attempt=0):
        """The bytes a container wrote, put together from its log."""
        out = []
        for line in self.log(name, attempt).splitlines():
            _, s, tag, text = line.split(" ", 3)
            if s == stream:
                out.append(text + ("\n" if tag == "F" else ""))
        return "".join(out)

    def status(self):
        return self.daemon.client.PodSandboxStatus(pod_sandbox_id=self.id).status

    def remove(self):
        if not self.gone:
            self.daemon.client.StopPodSandbox(pod_sandbox_id=self.id)
            self.daemon.client.RemovePodSandbox(pod_sandbox_id=self.id)
            self.gone = True
        shutil.rmtree(self.logs, ignore_errors=True)


@pytest.fixture
def make_pod(daemon, images):
    pods = []
    counter = [0]

    def make(name=None, image=None, **more):
        counter[0] += 1
        p = Pod(daemon, name or f"pod{counter[0]}", image or images["busybox"], **more)
        pods.append(p)
        return p

    yield make
    for p in pods:
        p.remove()


@pytest.fixture
def pod(make_pod):
    return make_pod()
