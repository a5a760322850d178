"""Guests' wall clocks are the host's, within 10 ms, whatever either of them does."""
import ctypes
import socket
import struct
import time

import pytest

from conftest import Pod
from cri import pb
from test_volumes import src, tool  # noqa: F401

pytestmark = pytest.mark.vm("a pod on the host has the host's clock")

MS, HOUR = 1_000_000, 3600 * 10 ** 9
AS_IT_DOES = -2 ** 63


class Clock:
    """A guest's, by a program in it that may set it."""

    def __init__(self, d, image, src):  # noqa: F811
        self.pod = Pod(d, "clock", image)
        self.pod.start("c", "/clock", mounts=[pb.Mount(host_path=str(tool(src, "clock")), container_path="/clock")],
                       security={"capabilities": {"add_capabilities": ["SYS_TIME"]}})
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(2)
        self.socket.connect((self.pod.status().network.ip, 9000))
        self.off()

    def ask(self, add=0, ppm=AS_IT_DOES):
        """How long it took, and what the guest's clock was then, against the middle of the host's meanwhile."""
        for _ in range(20):
            begin = time.time_ns()
            self.socket.send(struct.pack("qq", add, ppm))
            try:
                guest, = struct.unpack("q", self.socket.recv(64))
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.2)
                continue
            assert guest > 0, "the guest's clock cannot be set"
            end = time.time_ns()
            return end - begin, guest - (begin + end) // 2
        raise AssertionError("the guest does not answer")

    def off(self):
        return min(self.ask() for _ in range(20))[1]


@pytest.fixture
def clock(own_daemon, images, src, request):  # noqa: F811
    d = own_daemon(overrides={"machine": {"guest_silence_seconds": request.param}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    c = Clock(d, images["busybox"], src)
    yield c
    c.socket.close()
    c.pod.remove()


def back(clock, seconds):
    """By when it is right again."""
    begin = time.monotonic()
    while abs(clock.off()) > 10 * MS:
        assert time.monotonic() < begin + seconds, f"off by {clock.off() / MS} ms"
        time.sleep(0.1)


@pytest.mark.parametrize("clock", [4], indirect=True)
def test_a_guest_that_runs_too_fast_is_held(clock):
    """By 0.4 ms a second, which is more than time services ever let a host's clock differ."""
    back(clock, 5)
    clock.ask(ppm=400)
    seen = []
    end = time.monotonic() + 40
    while time.monotonic() < end:
        seen.append(clock.off())
        time.sleep(0.5)
    assert max(map(abs, seen)) < 10 * MS, [round(o / MS, 2) for o in seen]


@pytest.mark.parametrize("clock", [4], indirect=True)
@pytest.mark.parametrize("by", [HOUR, -HOUR, 50 * MS, -50 * MS])
def test_a_guest_that_was_set_is_set_back(clock, by):
    clock.ask(add=by)
    back(clock, 10)


# as the kernel has it: the fields before are modes, offset, freq, maxerror, esterror, status, constant, precision, tolerance
class Timex(ctypes.Structure):
    _fields_ = [("modes", ctypes.c_uint), ("before", ctypes.c_long * 8), ("sec", ctypes.c_long), ("usec", ctypes.c_long),
                ("after", ctypes.c_long * 20)]


def set_host(us):
    """The host's clock by a microsecond, which is all it takes for the kernel to say that it was set."""
    t = Timex(modes=0x0100, sec=-1 if us < 0 else 0, usec=us % 10 ** 6)
    assert ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(t)) >= 0, ctypes.get_errno()


@pytest.mark.parametrize("clock", [0], indirect=True)
def test_a_host_that_is_set_tells_its_guests_at_once(clock):
    """Heartbeats are a minute apart here."""
    clock.ask(add=5 * 10 ** 9)
    time.sleep(3)
    assert abs(clock.off() - 5 * 10 ** 9) < 100 * MS
    set_host(1)
    try:
        back(clock, 5)
    finally:
        set_host(-1)
