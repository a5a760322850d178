"""One pod's trouble is not another's: a wedged guest, a host that was rebooted."""
import json
import os
import signal
import sqlite3
import time

from cri import pb


def test_a_wedged_guest_blocks_nobody(daemon, make_pod):
    stuck = make_pod("stuck")
    c = stuck.start("x", "sleep", "1000")
    pid = json.loads(daemon.client.PodSandboxStatus(pod_sandbox_id=stuck.id, verbose=True).info["info"])["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        slowest = 0.0
        for n in range(4):
            other = make_pod(f"free{n}")
            assert other.run("x", "true").exit_code == 0
            begin = time.monotonic()
            daemon.client.ListPodSandbox()
            daemon.client.ListContainers()
            daemon.client.Status()
            stuck.status()
            daemon.status(c)
            slowest = max(slowest, time.monotonic() - begin)
            other.remove()
        assert slowest < 1
        # and the wedged one can be taken away
        begin = time.monotonic()
        stuck.remove()
        assert time.monotonic() - begin < 30
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def test_nothing_stale_is_ready_after_a_reboot(daemon, make_pod):
    pod = make_pod("old")
    c = pod.start("x", "sleep", "1000")
    daemon.kill()
    for pid in daemon.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    with sqlite3.connect(daemon.state / "state.db") as db:
        db.execute("UPDATE sandboxes SET boot_id='another'")
    db.close()
    daemon.start()
    assert pod.status().state == pb.SANDBOX_NOTREADY
    s = daemon.status(c)
    assert (s.state, s.reason) == (pb.CONTAINER_EXITED, "Unknown") and "restarted" in s.message
