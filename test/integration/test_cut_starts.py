"""R1, R11: a StartContainer that is cut, by its deadline or its daemon's death, while the guest has it still before it. What
the container is shown as afterwards is what its process does: kubelet starts another one beside one that it takes for not
started."""
import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from cri import Client, pb

BEGAN = ["sh", "-c", "echo began; exec sleep 1000"]


class Still:
    """The guest, or whatever else of the pod, stands still."""

    def __init__(self, pids):
        assert pids
        self.pids = pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def go_on(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
        self.pids = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go_on()


def guest(daemon):
    return daemon.agent_pids() or daemon.qemu_pids()


@pytest.fixture(params=[pytest.param("aspis-vm", marks=pytest.mark.vm("asks for a VM")),
                        pytest.param("aspis-host", marks=pytest.mark.once("asks for the host itself"))])
def made(request, daemon, make_pod):
    """A pod and a container in it that is to be started."""
    pod = make_pod(handler=request.param)
    return pod, pod.create("c", *BEGAN)


def begin_start(daemon, c):
    """The call is with the guest, which does not move."""
    def call():
        client = Client(daemon.socket)
        try:
            client.StartContainer(container_id=c, deadline=60)
        except grpc.RpcError:
            pass
        client.close()
    t = threading.Thread(target=call)
    t.start()
    time.sleep(0.5)
    return t


def is_true(daemon, pod, c):
    """For as long as anything could still be on its way."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        state = daemon.status(c).state
        assert state in (pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING), state
        time.sleep(0.1)
    assert (state == pb.CONTAINER_RUNNING) == (pod.output("c") == "began\n"), (state, pod.output("c"))
    if state == pb.CONTAINER_CREATED:
        daemon.client.StartContainer(container_id=c)
    deadline = time.monotonic() + 10
    while pod.output("c") == "" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert daemon.status(c).state == pb.CONTAINER_RUNNING and pod.output("c") == "began\n"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_daemon_goes_while_the_guest_has_it_before_it(daemon, made, how):
    pod, c = made
    with Still(guest(daemon)) as still:
        call = begin_start(daemon, c)
        getattr(daemon, how)()
        again = threading.Thread(target=daemon.start)
        again.start()
        time.sleep(0.5)  # the next one asks already
        still.go_on()
        again.join()
    call.join()
    is_true(daemon, pod, c)


@pytest.mark.parametrize("seconds", [0.5, 8])
def test_a_deadline_passes_while_the_guest_stands_still(daemon, made, seconds):
    """Nobody knows what becomes of it: UNKNOWN, and then what the guest says, if a little late only when asked for again."""
    pod, c = made
    with Still(guest(daemon)) as still:
        with pytest.raises(grpc.RpcError) as e:
            daemon.client.StartContainer(container_id=c, deadline=1)
        assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(seconds)
        assert daemon.status(c).state == pb.CONTAINER_UNKNOWN
        assert [i.state for i in daemon.client.ListContainers(filter={"id": c}).containers] == [pb.CONTAINER_UNKNOWN]
        still.go_on()
    if seconds > 5:
        with pytest.raises(grpc.RpcError) as e:
            daemon.client.StartContainer(container_id=c)
        assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    daemon.wait_state(c, pb.CONTAINER_RUNNING, timeout=20)
    is_true(daemon, pod, c)


def test_unknown_can_be_stopped_and_removed(daemon, made):
    """As kubelet does with one."""
    pod, c = made
    with Still(guest(daemon)) as still:
        with pytest.raises(grpc.RpcError):
            daemon.client.StartContainer(container_id=c, deadline=1)
        time.sleep(6)
        assert daemon.status(c).state == pb.CONTAINER_UNKNOWN
        still.go_on()
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert daemon.status(c).state == pb.CONTAINER_EXITED
    daemon.client.RemoveContainer(container_id=c)


@pytest.mark.vm("a volume that is served by a process")
def test_the_daemon_goes_while_the_command_is_being_executed(daemon, make_pod):
    """Between StartContainer and the command's first instruction, which waits for a volume here."""
    pod = make_pod()
    (where := daemon.base / "program").mkdir(exist_ok=True)
    (where / "x").write_text("#!/bin/sh\necho began\nexec sleep 1000\n")
    (where / "x").chmod(0o755)
    c = pod.create("c", "/v/x", mounts=[pb.Mount(host_path=str(where), container_path="/v")])
    servers = [p for p in daemon.qemu_pids() if "share" in Path(f"/proc/{p}/comm").read_text()]
    with Still(servers) as still:
        call = begin_start(daemon, c)
        time.sleep(1)
        daemon.kill()
        daemon.start()
        call.join()
        assert daemon.status(c).state == pb.CONTAINER_RUNNING and pod.output("c") == ""
        still.go_on()
    is_true(daemon, pod, c)
