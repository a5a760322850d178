"""The daemon comes and goes; pods stay. Machines die; somebody says so."""
import os
import signal
import time

import grpc
import pytest

from conftest import Pod
from cri import pb


def view(d):
    """What a client sees, without the things that change by themselves."""
    sandboxes = sorted(d.client.ListPodSandbox().items, key=lambda s: s.id)
    containers = sorted(d.client.ListContainers().containers, key=lambda c: c.id)
    statuses = [d.client.PodSandboxStatus(pod_sandbox_id=s.id).status for s in sandboxes]
    return ([s.SerializeToString(deterministic=True) for s in sandboxes],
            [c.SerializeToString(deterministic=True) for c in containers],
            [s.SerializeToString(deterministic=True) for s in statuses],
            [d.status(c.id).SerializeToString(deterministic=True) for c in containers])


def uptime(d, c):
    return float(d.exec(c, "cat", "/proc/uptime").stdout.split()[0])


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_pods_outlive_the_daemon(daemon, make_pod, how):
    pod = make_pod("stay")
    c = pod.start("run", "sleep", "100000")
    pod.run("done", "sh", "-c", "exit 9")
    before = view(daemon)
    up = uptime(daemon, c)
    getattr(daemon, how)()
    daemon.start()
    assert view(daemon) == before
    assert uptime(daemon, c) > up
    assert daemon.exec(c, "echo", "hi").stdout == b"hi\n"
    # and everything still works on the adopted pod
    assert pod.run("later", "sh", "-c", "exit 4").exit_code == 4
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert daemon.status(c).exit_code == 137


def test_log_is_whole_across_kills(daemon, make_pod):
    pod = make_pod("lines")
    total = 4000
    c = pod.start("x", "sh", "-c",
                  f"i=0; while [ $i -lt {total} ]; do i=$((i+1)); echo line $i; "
                  "[ $((i % 100)) = 0 ] && sleep 0.1; done; exit 6")
    for pause in (0.3, 0.9, 0.1, 0.5):
        time.sleep(pause)
        daemon.kill()
        daemon.start()
    s = daemon.wait_state(c, pb.CONTAINER_EXITED, timeout=180)
    assert s.exit_code == 6
    assert pod.output("x").splitlines() == [f"line {i}" for i in range(1, total + 1)]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_half_a_line_stays_one_across_a_restart(daemon, make_pod, how):
    pod = make_pod("half")
    c = pod.start("x", "sh", "-c", "echo first; printf one; while [ ! -e /go ]; do sleep 0.1; done; echo two")
    deadline = time.monotonic() + 30
    while pod.output("x") != "first\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # half of it is with the daemon
    getattr(daemon, how)()
    daemon.start()
    daemon.exec(c, "touch", "/go")
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    assert [line.split(" ", 3)[2:] for line in pod.log("x").splitlines()] == [["F", "first"], ["F", "onetwo"]]


def test_what_ends_while_the_daemon_stops_keeps_its_output(daemon, make_pod):
    """Its exit may be known before all of its output is: the next daemon shows both, whole."""
    pod = make_pod("ending")
    total = 3000000
    for n in range(6):
        name = f"x{n}"
        c = pod.start(name, "sh", "-c", f"head -c {total} /dev/zero | tr '\\0' x; exit {n}")
        time.sleep(0.15 * n)
        daemon.stop()
        daemon.start()
        s = daemon.wait_state(c, pb.CONTAINER_EXITED)
        assert s.exit_code == n
        assert len(pod.output(name).rstrip("\n")) == total


def test_end_of_a_container_while_the_daemon_is_away(daemon, make_pod):
    pod = make_pod("away")
    quiet = pod.start("quiet", "sh", "-c", "sleep 2; echo last words; exit 42")
    hog = pod.start("hog", "sh", "-c", "sleep 2; x=a; while :; do x=$x$x$x$x; done",
                    resources={"memory_limit_in_bytes": 32 << 20})
    daemon.kill()
    time.sleep(6)
    daemon.start()
    s = daemon.wait_state(quiet, pb.CONTAINER_EXITED)
    assert (s.exit_code, s.reason) == (42, "Error")
    assert pod.output("quiet") == "last words\n"
    s = daemon.wait_state(hog, pb.CONTAINER_EXITED)
    assert (s.exit_code, s.reason) == (137, "OOMKilled")


def test_killed_qemu_is_seen_within_a_second(daemon, make_pod):
    pod = make_pod("dies")
    c = pod.start("x", "sleep", "1000")
    before = set(daemon.qemu_pids())
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 1 + 2  # a busy machine
    while pod.status().state != pb.SANDBOX_NOTREADY:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    s = daemon.wait_state(c, pb.CONTAINER_EXITED, timeout=5)
    assert (s.exit_code, s.reason) == (255, "Unknown") and "signal 9" in s.message
    with pytest.raises(grpc.RpcError) as e:
        pod.create("y", "true")
    assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.vm("a guest's kernel")
def test_guest_panic_is_seen_and_explained(daemon, make_pod):
    pod = make_pod("panics")
    c = pod.start("x", "sleep", "1000",
                  security={"capabilities": {"add_capabilities": ["ALL"]}, "readonly_paths": []})
    # the container's /proc/sysrq-trigger is writable when nothing is read-only
    with pytest.raises(grpc.RpcError):
        daemon.client.ExecSync(container_id=c, cmd=["sh", "-c", "echo c > /proc/sysrq-trigger"], deadline=10)
    deadline = time.monotonic() + 5
    while pod.status().state != pb.SANDBOX_NOTREADY:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert daemon.wait_state(c, pb.CONTAINER_EXITED).reason == "Unknown"


def test_machine_that_died_while_the_daemon_was_away(daemon, make_pod):
    pod = make_pod("gone")
    c = pod.start("x", "sleep", "1000")
    daemon.kill()
    for pid in daemon.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    assert pod.status().state == pb.SANDBOX_NOTREADY
    s = daemon.status(c)
    assert (s.state, s.exit_code, s.reason) == (pb.CONTAINER_EXITED, 255, "Unknown")


def test_what_no_record_owns_is_collected(daemon, images):
    pod = Pod(daemon, "orphan", images["busybox"])
    pod.start("x", "sleep", "1000")
    daemon.kill()
    db = daemon.state / "state.db"
    for p in daemon.state.glob("state.db*"):
        p.unlink()
    assert daemon.qemu_pids()
    daemon.start()
    assert db.exists() and not daemon.client.ListPodSandbox().items
    deadline = time.monotonic() + 5
    while daemon.qemu_pids():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_damaged_records_do_not_stop_the_daemon(own_daemon):
    d = own_daemon()
    d.start()
    d.stop()
    (d.state / "state.db").write_bytes(b"this is no database" * 1000)
    for p in d.state.glob("state.db-*"):
        p.unlink()
    d.start()
    assert "damaged" in d.log_text()
    assert not d.client.ListPodSandbox().items
    assert list(d.state.glob("state.db.damaged-*"))


def test_second_daemon_is_refused(daemon):
    from daemon import BUILD
    import subprocess
    r = subprocess.run([str(BUILD / "cri" / "aspisd"), "--config", str(daemon.config)],
                       capture_output=True, text=True, timeout=30)
    assert r.returncode != 0 and "another" in r.stderr.lower()
    daemon.client.Version()
