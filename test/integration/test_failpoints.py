"""R4, R5, R11: whatever step of a call fails, or takes the daemon with it, nothing stays behind and the same name works
at once; calls that meet while something takes long come together.

Needs a daemon built with -Dfailpoints=true (ASPIS_BUILD); the failpoints are found in the sources, so that a new one
fails here until it is known which call passes it.
"""
import concurrent.futures
import re
import shutil
import subprocess
import time
from pathlib import Path

import grpc
import pytest

import audit
import spares
from conftest import settle, world
from cri import container_config, pb, sandbox_config
from daemon import BUILD, ROOT, Daemon, Points

FOLDERS = ("base", "proto", "netplugin", "sandbox", "cri")

# failpoint -> the call that passes it
STEPS = {
    "sandbox.record": "run", "sandbox.netns": "run", "sandbox.cni": "run", "sandbox.tap": "run", "sandbox.machine": "run",
    "sandbox.configure": "run", "sandbox.ready": "run",
    "netplugin.netns": "run", "netplugin.add": "run", "netplugin.added": "run", "netplugin.tap": "run",
    "netplugin.redirect": "run",
    "machine.cgroup": "run", "machine.dirs": "run", "machine.scratch": "run", "machine.sockets": "run",
    "machine.spawn": "run", "machine.qmp": "run", "machine.link": "run", "machine.hello": "run",
    "machine.vsock": "run over user-vsock", "machine.vsock.plug": "template",
    "sandbox.del": "stop", "netplugin.del": "stop", "machine.destroy": "stop",
    "sandbox.remove": "remove",
    "machine.adopt": "adopt",
    "machine.accel": "accel",
    "template.make": "template", "template.save": "template", "template.load": "template",
    "machine.claim": "spare", "spare.make": "spare", "spare.warm": "spare",
    "zygote.freeze": "fork", "zygote.parked": "fork", "zygote.fork": "fork",  # test_forks.py
    "container.record": "create", "container.disk": "create", "container.agent": "create",
    "share.spawn": "create", "share.attached": "create",
    # of the file server itself: test/unit/sandbox/test_share_restart.c, test_share_move.c
    "share.arriving": "arrival", "share.arrived": "arrival",
    "share.begun": "change", "share.made": "change", "share.acted": "change", "share.noted": "change", "share.said": "change",
    "machine.attach.fds": "create", "machine.attach.node": "create", "machine.attach.device": "create",
    "machine.attach.name": "create",
    "container.fit": "create",
    "machine.room": "growth",
    "container.limits": "update", "machine.resize": "update", "machine.pin": "update",
    "container.start": "start", "container.started": "started",
    "container.remove": "remove container",
    "image.resolve": "pull", "image.blob": "pull", "image.layer": "pull", "image.tree": "pull", "image.record": "pull",
    "image.sweep": "collect",
    "checkpoint.files": "checkpoint", "checkpoint.freeze": "checkpoint", "checkpoint.stopped": "checkpoint",
    "checkpoint.migrate": "checkpoint", "checkpoint.scratch": "checkpoint", "checkpoint.sync": "checkpoint",
    "checkpoint.commit": "checkpoint", "checkpoint.volumes": "checkpoint",
    "checkpoint.disk": "restore", "checkpoint.load": "restore", "restore.record": "restore",
    "restore.volumes": "restore", "restore.mirrored": "restore",
    "restore.machine": "restore", "restore.become": "restore", "restore.configure": "restore", "restore.ready": "restore",
    # of pods without a VM
    "host.sockets": "run", "host.spawn": "run", "host.adopt": "adopt",
    "container.tree": "create", "host.image": "create", "host.volumes": "create", "image.extract": "extract",
}


def on_host(name):
    return name.startswith("host.") or name in ("container.tree", "image.extract")


def _found():
    names = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.c"):
            names |= set(re.findall(r'\bFAILPOINT\(\s*"([^"]+)"', path.read_text()))
    return sorted(names)


FOUND = _found()


def of_step(*steps):
    return [n for n in FOUND if STEPS.get(n) in steps]


def _built_in():
    out = subprocess.run(["nm", str(BUILD / "cri" / "aspisd")], capture_output=True, text=True)
    return "failpoint_hit" in out.stdout


pytestmark = [pytest.mark.skipif(not _built_in(), reason="the daemon is built without failpoints"),
              pytest.mark.once("goes through the steps of every backend and transport itself")]


def test_every_failpoint_is_known_here():
    assert FOUND and set(FOUND) == set(STEPS)


@pytest.fixture(scope="module")
def module_daemon(images):
    base = world("f")
    # a template being made would take the hits meant for a pod
    d = Daemon(base, env={"ASPIS_FAILPOINTS_FILE": str(base / "failpoints")},
               overrides={"machine": {"templates": False}})
    d.points = Points(base / "failpoints")
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    yield d
    d.points.clear()
    d.destroy()


@pytest.fixture
def d(module_daemon):
    """The module's daemon, audited around each test, whatever happened to its process meanwhile."""
    daemon = module_daemon
    daemon.points.clear()
    if daemon.proc is None:
        daemon.start()
    before = audit.snapshot(daemon)
    yield daemon
    daemon.points.clear()
    if daemon.proc is None or daemon.proc.poll() is not None:
        daemon.proc = None
        daemon.start()
    left = [s.id for s in daemon.client.ListPodSandbox().items]
    daemon.remove_all()
    wrong = settle(daemon, before)
    assert not left, f"the test left sandboxes {left}"
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def image(images):
    return images["busybox"]


def fails(name, call, *args, **kw):
    """The call fails and says at which failpoint."""
    with pytest.raises(grpc.RpcError) as e:
        call(*args, **kw)
    assert f"failpoint {name}" in e.value.details(), e.value.details()


def dies(d, name, call, *args, **kw):
    """The daemon is killed in the middle of the call, and comes back."""
    d.points.set(f"{name}=crash")
    with pytest.raises(grpc.RpcError) as e:
        call(*args, **kw)
    assert e.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), e.value
    assert d.proc.wait(30) == -9, "the failpoint was not passed"
    d.proc = None
    d.client.close()
    d.points.clear()
    d.start()


def nothing_left(d, before):
    assert not d.client.ListPodSandbox().items
    wrong = settle(d, before)
    assert not wrong, "\n".join(wrong)


def works(d, config, image):
    """A whole life of this very sandbox and of a container in it."""
    i = d.run_pod(config)
    c = d.create(i, container_config("works", image, ["sh", "-c", "exit 7"]), config)
    d.client.StartContainer(container_id=c)
    assert d.wait_state(c, pb.CONTAINER_EXITED).exit_code == 7
    remove(d, i)


def remove(d, i):
    d.client.StopPodSandbox(pod_sandbox_id=i)
    d.client.RemovePodSandbox(pod_sandbox_id=i)


def config_of(d, name):
    more = {}
    if on_host(name):
        more["linux"] = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)))
    return sandbox_config(name.replace(".", "-"), log_directory=d.logs / name, **more)


# ---- RunPodSandbox ----

@pytest.mark.parametrize("name", of_step("run"))
def test_run_fails(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    d.points.set(f"{name}=error")
    fails(name, d.run_pod, config)
    d.points.clear()
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", of_step("run"))
def test_daemon_dies_in_run(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    dies(d, name, d.run_pod, config)
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", of_step("run over user-vsock"))
def test_run_over_user_vsock(images, name):
    """The same, where a process stands beside each QEMU."""
    base = world("v")
    d = Daemon(base, env={"ASPIS_FAILPOINTS_FILE": str(base / "failpoints")},
               overrides={"machine": {"templates": False, "transport": "user-vsock"}})
    d.points = Points(base / "failpoints")
    try:
        d.start()
        d.client.PullImage(image={"image": images["busybox"]})
        config, before = config_of(d, name), audit.snapshot(d)
        d.points.set(f"{name}=error")
        fails(name, d.run_pod, config)
        d.points.clear()
        nothing_left(d, before)
        dies(d, name, d.run_pod, config)
        nothing_left(d, before)
        works(d, config, images["busybox"])
        nothing_left(d, before)
    finally:
        d.points.clear()
        d.destroy()


# ---- CreateContainer, StartContainer, RemoveContainer ----

@pytest.fixture
def pod(d, request):
    config = config_of(d, request.node.callspec.params.get("name", "pod"))
    i = d.run_pod(config)
    yield i, config
    remove(d, i)


def names_in(d, i):
    return [c.metadata.name for c in d.client.ListContainers(filter={"pod_sandbox_id": i}).containers]


def volumes(d):
    return [pb.Mount(host_path=str(d.base / "volume"), container_path="/data")]


def lives(d, pod, name, image):
    """The container runs, with its output in its log."""
    i, config = pod
    c = d.create(i, container_config(name, image, ["sh", "-c", "echo said; touch /data/x && exit 5"],
                                     mounts=volumes(d)), config)
    d.client.StartContainer(container_id=c)
    assert d.wait_state(c, pb.CONTAINER_EXITED).exit_code == 5
    log = Path(d.status(c).log_path).read_text()
    assert [line.split(" ", 3)[3] for line in log.splitlines()][-1] == "said"
    d.client.RemoveContainer(container_id=c)
    assert name not in names_in(d, i)


@pytest.mark.parametrize("name", of_step("create"))
def test_create_fails(d, pod, image, name):
    i, config = pod
    d.points.set(f"{name}=error")
    fails(name, d.create, i, container_config("c", image, ["true"], mounts=volumes(d)), config)
    d.points.clear()
    assert not names_in(d, i)
    lives(d, pod, "c", image)


@pytest.mark.parametrize("name", of_step("create"))
def test_daemon_dies_in_create(d, pod, image, name):
    i, config = pod
    dies(d, name, d.create, i, container_config("c", image, ["true"], mounts=volumes(d)), config)
    assert d.client.PodSandboxStatus(pod_sandbox_id=i).status.state == pb.SANDBOX_READY
    assert not names_in(d, i)
    lives(d, pod, "c", image)


@pytest.mark.parametrize("how", ["error", "crash"])
@pytest.mark.parametrize("name", of_step("extract"))
def test_extraction_can_be_repeated(d, pod, image, name, how):
    """The tree of an image for pods on the host: half of one is never used, nor kept."""
    i, config = pod
    trees = d.state / "images" / "trees"
    remove(d, i)
    forget(d, image)
    assert not list(trees.iterdir())
    d.client.PullImage(image={"image": image})
    i = d.run_pod(config)
    pod = i, config
    try:
        if how == "error":
            d.points.set(f"{name}=error")
            fails(name, d.create, i, container_config("c", image, ["true"]), config)
            d.points.clear()
        else:
            dies(d, name, d.create, i, container_config("c", image, ["true"]), config)
        assert not list(trees.iterdir()) and not list((d.state / "images" / "tmp").iterdir())
        lives(d, pod, "c", image)
    finally:
        remove(d, i)


@pytest.mark.parametrize("name", of_step("start"))
def test_start_fails(d, pod, image, name):
    i, config = pod
    c = d.create(i, container_config("c", image, ["true"]), config)
    d.points.set(f"{name}=error")
    fails(name, d.client.StartContainer, container_id=c)
    d.points.clear()
    s = d.status(c)
    assert (s.state, s.exit_code, s.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert name in s.message
    d.client.RemoveContainer(container_id=c)
    lives(d, pod, "c", image)


@pytest.mark.parametrize("name", of_step("start", "started"))
def test_daemon_dies_in_start(d, pod, image, name):
    i, config = pod
    c = d.create(i, container_config("c", image, ["sh", "-c", "exit 3"]), config)
    dies(d, name, d.client.StartContainer, container_id=c)
    if d.status(c).state == pb.CONTAINER_CREATED:
        d.client.StartContainer(container_id=c)
    assert d.wait_state(c, pb.CONTAINER_EXITED).exit_code == 3
    d.client.RemoveContainer(container_id=c)
    lives(d, pod, "c", image)


def test_daemon_dies_in_a_start_that_fails(d, image):
    """Nobody heard why; the guest still knows."""
    config = config_of(d, "doomed")
    i = d.run_pod(config)
    where = d.base / "volume"
    where.mkdir(exist_ok=True)
    (where / "bad").write_bytes(b"\0no program\n")
    (where / "bad").chmod(0o755)
    c = d.create(i, container_config("c", image, ["/data/bad"], mounts=volumes(d)), config)
    dies(d, "container.started", d.client.StartContainer, container_id=c)
    s = d.wait_state(c, pb.CONTAINER_EXITED)
    assert (s.exit_code, s.reason) == (128, "StartError") and "agent: " in s.message, s
    remove(d, i)


@pytest.mark.parametrize("how", ["error", "crash"])
@pytest.mark.parametrize("name", of_step("remove container"))
def test_remove_container_can_be_repeated(d, pod, image, name, how):
    i, config = pod
    c = d.create(i, container_config("c", image, ["sleep", "1000"]), config)
    d.client.StartContainer(container_id=c)
    if how == "error":
        d.points.set(f"{name}=error")
        fails(name, d.client.RemoveContainer, container_id=c)
        d.points.clear()
    else:
        dies(d, name, d.client.RemoveContainer, container_id=c)
    d.client.RemoveContainer(container_id=c)
    assert not names_in(d, i)
    lives(d, pod, "c", image)


# ---- CheckpointPod, RestorePod ----

@pytest.fixture
def counting(d, pod, image):
    """A container that counts in its memory and says so, and where the pod is saved."""
    i, config = pod
    c = d.create(i, container_config("c", image, ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n > /new;"
                                                  " mv /new /n; sleep 0.05; done"], mounts=volumes(d)), config)
    d.client.StartContainer(container_id=c)
    place = d.base / "saved"
    place.mkdir(mode=0o700)
    yield i, c, place
    shutil.rmtree(place)


def counts(d, c):
    """It goes on, and not from the beginning."""
    def now():
        return int(d.exec(c, "cat", "/n").stdout or 0)
    deadline, first = time.monotonic() + 20, now()
    while now() <= first + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return first


@pytest.mark.parametrize("how", ["error", "crash"])
@pytest.mark.parametrize("name", of_step("checkpoint"))
def test_checkpoint_fails(d, pod, counting, name, how):
    """Nothing of it stays, and the pod goes on."""
    i, c, place = counting
    before = counts(d, c)
    call = dict(pod_sandbox_id=i, output_path=str(place / "one"))
    if how == "error":
        d.points.set(f"{name}=error")
        fails(name, d.client.CheckpointPod, **call)
        d.points.clear()
    else:
        dies(d, name, d.client.CheckpointPod, **call)
    assert not list(place.iterdir()) and not list((d.state / "checkpoints").iterdir())
    assert counts(d, c) > before
    d.client.CheckpointPod(**call)
    assert counts(d, c) > before


@pytest.mark.parametrize("how", ["error", "crash"])
@pytest.mark.parametrize("name", of_step("restore"))
def test_restore_fails(d, pod, counting, name, how):
    i, c, place = counting
    counts(d, c)
    saved = dict(checkpoint_path=str(place / "one"), config=sandbox_config("copy", log_directory=d.logs / "copy"))
    d.client.CheckpointPod(pod_sandbox_id=i, output_path=str(place / "one"))
    before = audit.snapshot(d)
    if how == "error":
        d.points.set(f"{name}=error")
        fails(name, d.client.RestorePod, **saved)
        d.points.clear()
    else:
        dies(d, name, d.client.RestorePod, **saved)
    assert [s.id for s in d.client.ListPodSandbox().items] == [i]
    assert [s.id for s in d.client.ListContainers().containers] == [c]
    wrong = settle(d, before)
    assert not wrong, "\n".join(wrong)
    r = d.client.RestorePod(**saved)
    d.client.StartContainer(container_id=r.restored_containers[0].container_id)
    assert counts(d, r.restored_containers[0].container_id) > 0
    remove(d, r.pod_sandbox_id)
    counts(d, c)


# ---- StopPodSandbox, RemovePodSandbox ----

@pytest.mark.parametrize("how", ["error", "crash"])
@pytest.mark.parametrize("name", of_step("stop", "remove"))
def test_stop_and_remove_can_be_repeated(d, image, name, how):
    config, before = config_of(d, name), audit.snapshot(d)
    i = d.run_pod(config)
    c = d.create(i, container_config("c", image, ["sleep", "1000"]), config)
    d.client.StartContainer(container_id=c)
    call = d.client.StopPodSandbox
    if STEPS[name] == "remove":
        call(pod_sandbox_id=i)
        call = d.client.RemovePodSandbox
    if how == "error":
        d.points.set(f"{name}=error")
        fails(name, call, pod_sandbox_id=i)
        d.points.clear()
    else:
        dies(d, name, call, pod_sandbox_id=i)
    assert all(s.state == pb.SANDBOX_NOTREADY for s in d.client.ListPodSandbox().items) or STEPS[name] == "stop"
    remove(d, i)
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", of_step("stop"))
def test_what_cannot_be_undone_stays_visible_until_it_can(d, image, name):
    """A run that fails, and whose undoing fails as well."""
    config, before = config_of(d, name), audit.snapshot(d)
    d.points.set("sandbox.ready=error", f"{name}=error")
    fails("sandbox.ready", d.run_pod, config)
    d.points.clear()
    (left,) = d.client.ListPodSandbox().items
    assert left.state == pb.SANDBOX_NOTREADY
    remove(d, left.id)
    nothing_left(d, before)
    works(d, config, image)


# ---- restarts ----

@pytest.mark.parametrize("name", of_step("adopt"))
def test_adoption_fails(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    i = d.run_pod(config)
    c = d.create(i, container_config("c", image, ["sleep", "1000"]), config)
    d.client.StartContainer(container_id=c)
    d.stop()
    d.points.set(f"{name}=error")
    d.start()
    d.points.clear()
    assert d.client.PodSandboxStatus(pod_sandbox_id=i).status.state == pb.SANDBOX_NOTREADY
    s = d.status(c)
    assert (s.state, s.exit_code, s.reason) == (pb.CONTAINER_EXITED, 255, "Unknown")
    remove(d, i)
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", of_step("adopt"))
def test_daemon_dies_in_adoption(d, image, name):
    config = config_of(d, name)
    i = d.run_pod(config)
    c = d.create(i, container_config("c", image, ["sleep", "1000"]), config)
    d.client.StartContainer(container_id=c)
    d.stop()
    d.points.set(f"{name}=crash")
    with pytest.raises(AssertionError, match="ended with -9"):
        d.start()
    d.proc = None
    d.points.clear()
    d.start()
    assert d.client.PodSandboxStatus(pod_sandbox_id=i).status.state == pb.SANDBOX_READY
    assert d.exec(c, "echo", "here").stdout == b"here\n"
    remove(d, i)


# Undoing leftovers of a dead daemon may fail as well; the next one tries again.
@pytest.mark.parametrize("name", of_step("stop"))
def test_recovery_fails_once(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    d.points.set("sandbox.ready=crash")
    with pytest.raises(grpc.RpcError):
        d.run_pod(config)
    assert d.proc.wait(30) == -9
    d.proc = None
    d.points.set(f"{name}=error")
    d.start()
    d.points.clear()
    for s in d.client.ListPodSandbox().items:
        assert s.state == pb.SANDBOX_NOTREADY
        remove(d, s.id)
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", of_step("accel"))
def test_kvm_that_cannot_be_used_falls_back(own_daemon, images, name):
    d = own_daemon(overrides={"machine": {"accelerator": "auto"}}, env={"ASPIS_FAILPOINTS": f"{name}=error"})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    works(d, sandbox_config("fallback", log_directory=d.logs / "fallback"), images["busybox"])


# ---- PullImage ----

def forget(d, image):
    """The image and what was stored of it."""
    d.client.RemoveImage(image={"image": image})
    assert not d.client.ImageStatus(image={"image": image}).HasField("image")


@pytest.mark.parametrize("name", of_step("pull"))
def test_pull_fails(d, image, name):
    forget(d, image)
    try:
        d.points.set(f"{name}=error")
        fails(name, d.client.PullImage, image={"image": image})
        d.points.clear()
        assert not d.client.ImageStatus(image={"image": image}).HasField("image")
    finally:
        d.points.clear()
        d.client.PullImage(image={"image": image})
    works(d, config_of(d, name), image)


@pytest.mark.parametrize("name", of_step("pull"))
def test_daemon_dies_in_pull(d, image, name):
    forget(d, image)
    dies(d, name, d.client.PullImage, image={"image": image})
    d.client.PullImage(image={"image": image})
    works(d, config_of(d, name), image)


def test_daemon_dies_in_collection(d, image, images):
    """An image that shares a layer with the removed one loses nothing."""
    other = images["docker"]
    d.client.PullImage(image={"image": other})
    used = d.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    dies(d, "image.sweep", d.client.RemoveImage, image={"image": other})
    d.client.RemoveImage(image={"image": other})
    assert not d.client.ImageStatus(image={"image": other}).HasField("image")
    assert d.client.ImageFsInfo().image_filesystems[0].used_bytes.value < used
    works(d, config_of(d, "image.sweep"), image)
    # a file that cannot be removed now goes with the next collection
    d.client.PullImage(image={"image": other})
    d.points.set("image.sweep=error")
    d.client.RemoveImage(image={"image": other})
    d.points.clear()
    d.restart()
    assert d.client.ImageFsInfo().image_filesystems[0].used_bytes.value < used
    works(d, config_of(d, "image.sweep"), image)


# ---- delays ----

@pytest.mark.parametrize("name", ["sandbox.cni", "machine.qmp", "sandbox.ready"])
def test_the_same_run_joins(d, image, name):
    config = config_of(d, name)
    d.points.set(f"{name}=delay:1500")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = {f.result() for f in [pool.submit(d.run_pod, config) for _ in range(8)]}
    d.points.clear()
    (i,) = ids
    assert [s.id for s in d.client.ListPodSandbox().items] == [i]
    remove(d, i)


def test_joined_runs_share_the_failure_or_try_again(d, image):
    config, before = config_of(d, "joined"), audit.snapshot(d)
    d.points.set("sandbox.machine=delay:1000", "sandbox.configure=error")

    def run(_):
        try:
            return d.run_pod(config)
        except grpc.RpcError as e:
            assert "failpoint sandbox.configure" in e.details(), e.details()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert not any(pool.map(run, range(3)))
    d.points.clear()
    nothing_left(d, before)
    works(d, config, image)


@pytest.mark.parametrize("name", ["sandbox.record", "sandbox.cni", "netplugin.added", "sandbox.machine", "machine.spawn",
                                  "machine.hello", "sandbox.configure"])
def test_a_run_past_its_deadline_leaves_nothing(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    # long enough to reach the failpoint, too short to pass it
    d.points.set(f"{name}=delay:8000")
    with pytest.raises(grpc.RpcError) as e:
        d.client.RunPodSandbox(config=config, deadline=7)
    assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    d.points.clear()
    # the name is free at once: this waits for the undoing and then runs
    i = d.run_pod(config)
    remove(d, i)
    nothing_left(d, before)


def test_lists_and_status_do_not_wait(d, image):
    config = config_of(d, "slow")
    d.points.set("sandbox.cni=delay:3000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(d.run_pod, config)
        worst = 0
        while not run.done():
            begin = time.monotonic()
            d.client.ListPodSandbox()
            d.client.ListContainers()
            d.client.Version()
            d.client.Status()
            worst = max(worst, time.monotonic() - begin)
            time.sleep(0.05)
        assert worst < 2, worst
        remove(d, run.result())


def test_two_stops_and_removes_at_once(d, image):
    config, before = config_of(d, "twice"), audit.snapshot(d)
    i = d.run_pod(config)
    d.points.set("machine.destroy=delay:1000", "sandbox.remove=delay:500")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for call in (d.client.StopPodSandbox, d.client.RemovePodSandbox):
            for f in [pool.submit(call, pod_sandbox_id=i) for _ in range(4)]:
                f.result()
    d.points.clear()
    nothing_left(d, before)


@pytest.mark.parametrize("name", ["container.disk", "container.agent"])
def test_a_pod_is_removed_while_a_container_is_made(d, image, name):
    config, before = config_of(d, name), audit.snapshot(d)
    i = d.run_pod(config)
    d.points.set(f"{name}=delay:2000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(d.create, i, container_config("c", image, ["true"]), config)
        time.sleep(0.5)
        remove(d, i)
        assert made.exception() is not None
    d.points.clear()
    assert not d.client.ListContainers().containers
    nothing_left(d, before)


def test_a_stop_past_its_deadline_can_be_repeated(d, image):
    config, before = config_of(d, "late"), audit.snapshot(d)
    i = d.run_pod(config)
    d.points.set("netplugin.del=delay:3000")
    with pytest.raises(grpc.RpcError) as e:
        d.client.StopPodSandbox(pod_sandbox_id=i, deadline=1.5)
    assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    d.points.clear()
    remove(d, i)
    nothing_left(d, before)


@pytest.mark.parametrize("name", of_step("template"))
def test_a_pod_never_fails_because_of_a_template(images, name):
    base = world("g")
    transport = "user-vsock" if "vsock" in name else "auto"
    d = Daemon(base, env={"ASPIS_FAILPOINTS_FILE": str(base / "failpoints")},
               overrides={"machine": {"transport": transport}})
    points = Points(base / "failpoints")
    try:
        points.set(f"{name}=error")
        d.start()
        deadline = time.monotonic() + 60
        while not re.search("template ready|no template", d.log_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        before = audit.snapshot(d)
        for n in range(2):
            i = d.run_pod(sandbox_config(f"p{n}"))
            assert '"cloned": false' in d.client.PodSandboxStatus(pod_sandbox_id=i, verbose=True).info["info"]
        d.remove_all()
        wrong = settle(d, before)
        assert not wrong, "\n".join(wrong)
    finally:
        points.clear()
        d.destroy()


@pytest.mark.parametrize("name", of_step("update"))
def test_failed_updates_change_nothing(d, name, image):
    """An error and a crash in the middle of a change of limits: the container has what it had."""
    two = pb.LinuxPodSandboxConfig(resources=pb.LinuxContainerResources(cpu_quota=200000, cpu_period=100000))
    pod = d.run_pod(sandbox_config("updates", linux=two))
    limits = dict(memory_limit_in_bytes=100 << 20)
    if name == "machine.pin":  # another container has no cpuset, so the vCPUs are pinned apart
        limits["cpuset_cpus"] = "0"
        d.create(pod, container_config("other", image, ["sleep", "1000"]), sandbox_config("updates"))
    config = container_config("c", image, ["sleep", "1000"], resources=limits)
    c = d.create(pod, config, sandbox_config("updates"))
    d.client.StartContainer(container_id=c)
    more = dict(container_id=c, linux=pb.LinuxContainerResources(memory_limit_in_bytes=400 << 20))
    d.points.set(f"{name}=error")
    fails(name, d.client.UpdateContainerResources, **more)
    d.points.clear()
    limit = lambda: d.client.ContainerStatus(container_id=c).status.resources.linux.memory_limit_in_bytes  # noqa: E731
    assert limit() == 100 << 20
    assert d.exec(c, "cat", "/sys/fs/cgroup/memory.max").stdout == b"%d\n" % (100 << 20)
    dies(d, name, d.client.UpdateContainerResources, **more)
    assert limit() == 100 << 20
    d.client.UpdateContainerResources(**more)
    assert limit() == 400 << 20
    assert d.exec(c, "cat", "/sys/fs/cgroup/memory.max").stdout == b"%d\n" % (400 << 20)
    d.remove_all()
# ---- spare VMs ----

@pytest.mark.parametrize("name", ["spare.make", "spare.warm"])
def test_no_spare_can_be_made(spare_daemon, image, name):
    d = spare_daemon(f"{name}=error")
    spares.wait_log(d, f"failpoint {name}")
    assert not spares.left(d)
    works(d, config_of(d, name), image)


@pytest.mark.parametrize("name", ["spare.make", "spare.warm"])
def test_daemon_dies_with_a_half_made_spare(spare_daemon, image, name):
    d = spare_daemon(f"{name}=crash")
    assert d.proc.wait(60) == -9
    d.proc = None
    d.client.close()
    d.points.clear()
    d.start()
    spares.wait_ready(d)
    works(d, config_of(d, name), image)


def test_unusable_spare(spare_daemon, image):
    d = spare_daemon("machine.claim=error")
    spares.wait_ready(d)
    works(d, config_of(d, "machine.claim"), image)
    assert "a spare vm is unusable" in d.log_text()


def test_daemon_dies_while_a_spare_is_claimed(spare_daemon, image):
    d = spare_daemon("machine.claim=crash")
    spares.wait_ready(d)
    config = config_of(d, "machine.claim")
    dies(d, "machine.claim", d.run_pod, config)
    assert not d.client.ListPodSandbox().items
    works(d, config, image)
