"""Streams whose readers stop: each fills its own windows and buffers, and nothing else notices."""
import hashlib
import os
import socket
import time
from pathlib import Path

import pytest

from spdy import Forward, Session, Spdy, exit_code

pytestmark = pytest.mark.once("the server's side")

MEGABYTES = 8 << 20


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024


def median(call, n=7):
    times = []
    for _ in range(n):
        begin = time.monotonic()
        call()
        times.append(time.monotonic() - begin)
    return sorted(times)[n // 2]


def unread(url, protocol, *streams):
    """A client that never reads what comes."""
    s = Spdy(url, protocol, reading=False)
    return s, [s.open(wait=False, **h) for h in streams]


def types(*names):
    return [{"streamtype": n} for n in names]


def flood(s, stream, seconds=1.5):
    """Writes until nobody takes it any more; gives how many bytes went."""
    s.sock.settimeout(seconds)
    sent = 0
    try:
        while sent < 64 << 20:
            s.write(stream, b"\0" * 32768)
            sent += 32768
    except TimeoutError:
        pass
    return sent


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


def test_stopped_readers_slow_nobody(daemon, pod, box):
    c = daemon.client
    talk = pod.start("talk", "sh", "-c", "while true; do head -c 65536 /dev/zero | tr '\\0' t; usleep 100000; done")
    pod.start("tick", "sh", "-c", "i=0; while true; do echo tick $i; i=$((i+1)); usleep 50000; done")
    pod.start("echo", "nc", "-ll", "-p", "9090", "-e", "cat")
    quick = lambda: daemon.exec(box, "true")  # noqa: E731
    for _ in range(3):
        quick()
    alone, before = median(quick), resident(daemon.proc.pid)

    # a command that writes without end, one that reads nothing, an attacher, a forwarded port that sends all back
    out, (error, stdout, stderr) = unread(
        c.Exec(container_id=box, cmd=["sh", "-c", f"head -c {MEGABYTES} /dev/zero | tr '\\0' x; exit 4"], stdout=True, stderr=True).url,
        "v4.channel.k8s.io", *types("error", "stdout", "stderr"))
    deaf, (_, stdin, _) = unread(c.Exec(container_id=box, cmd=["sleep", "1000"], stdin=True, stdout=True).url,
                                 "v4.channel.k8s.io", *types("error", "stdin", "stdout"))
    lazy, _ = unread(c.Attach(container_id=talk, stdout=True).url, "v4.channel.k8s.io", *types("error", "stdout"))
    ports, (_, data) = unread(c.PortForward(pod_sandbox_id=pod.id).url, "portforward.k8s.io",
                              {"streamtype": "error", "port": "9090", "requestid": "1"},
                              {"streamtype": "data", "port": "9090", "requestid": "1"})
    for s, stream in ((deaf, stdin), (ports, data)):
        assert flood(s, stream) < 16 << 20  # it was stopped

    busy = median(quick)
    assert busy < 4 * alone + 0.3, (alone, busy)
    assert median(lambda: c.ListContainers(), 5) < 1
    ticks = pod.log("tick").count("\n")
    # another stream, whole and at once
    payload = os.urandom(MEGABYTES)
    s = Session(c.Exec(container_id=box, cmd=["cat"], stdin=True, stdout=True, stderr=True).url, stdin=True)
    s.spdy.write(s.stdin, payload, fin=True)
    got, _, status = s.finish()
    assert hashlib.sha256(got).digest() == hashlib.sha256(payload).digest() and exit_code(status) == 0
    # another connection of the same forwarder's pod
    other = Spdy(c.PortForward(pod_sandbox_id=pod.id).url, "portforward.k8s.io")
    f = Forward(other, 9090, 1)
    other.write(f.data, b"through", fin=True)
    assert f.finish() == (b"through", b"")
    other.close()
    # logs go on, of the container with the stopped attacher too
    talked = (pod.logs / "talk" / "0.log").stat().st_size
    deadline = time.monotonic() + 20
    while pod.log("tick").count("\n") < ticks + 20 or (pod.logs / "talk" / "0.log").stat().st_size <= talked:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert resident(daemon.proc.pid) - before < 64 << 20

    # who reads again gets every byte and the end
    out.start()
    assert out.wait(lambda: out.over(error, stdout, stderr))
    assert bytes(out.data[stdout]) == b"x" * MEGABYTES and exit_code(out.data[error]) == 4
    for s in (out, deaf, lazy, ports):
        s.close()
