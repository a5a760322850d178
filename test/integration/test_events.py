"""GetContainerEvents, and guests that stand still."""
import json
import os
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from conftest import Pod
from cri import pb

CREATED, STARTED = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
STOPPED, DELETED = pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT


class Listener:
    """One subscriber, read by a thread of its own."""

    def __init__(self, daemon):
        self.call = daemon.client.stream("GetContainerEvents", deadline=300)
        self.queue = queue.Queue()
        self.error = None
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            for e in self.call:
                self.queue.put(e)
        except grpc.RpcError as e:
            self.error = e

    def next(self, timeout=30):
        return self.queue.get(timeout=timeout)

    def until(self, container, kind, timeout=60):
        """All events up to that one."""
        got = []
        deadline = time.monotonic() + timeout
        while True:
            e = self.next(max(0.1, deadline - time.monotonic()))
            got.append(e)
            if (e.container_id, e.container_event_type) == (container, kind):
                return got

    def close(self):
        self.call.cancel()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def listen(daemon):
    made = []

    def make():
        made.append(Listener(daemon))
        time.sleep(0.3)  # until the daemon has it on its list
        return made[-1]

    yield make
    for m in made:
        m.close()


def short(events):
    return [(e.container_id, e.container_event_type) for e in events]


def test_the_life_of_a_pod_in_events(daemon, images, listen):
    many = [listen() for _ in range(3)]
    pod = Pod(daemon, "told", images["busybox"])
    c = pod.start("x", "sh", "-c", "exit 3")
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    quick = pod.start("y", "sleep", "1000")
    daemon.client.StopContainer(container_id=quick, timeout=0)
    never = pod.create("z", "true")
    daemon.client.RemoveContainer(container_id=c)
    pod.remove()
    for m in many:
        events = m.until(pod.id, DELETED)
        seen = short(events)
        assert [k for i, k in seen if i == pod.id] == [CREATED, STARTED, STOPPED, DELETED]
        assert [k for i, k in seen if i == c] == [CREATED, STARTED, STOPPED, DELETED]
        assert [k for i, k in seen if i == quick] == [CREATED, STARTED, STOPPED, DELETED]
        assert [k for i, k in seen if i == never] in ([CREATED, STOPPED, DELETED], [CREATED, DELETED])
        assert seen[0] == (pod.id, CREATED) and seen[-1] == (pod.id, DELETED)
        assert [e.created_at for e in events] == sorted(e.created_at for e in events)
        for e in events:
            assert e.pod_sandbox_status.id == pod.id and e.pod_sandbox_status.metadata.name == "told"
        # statuses are those of the moment
        [end] = [e for e in events if (e.container_id, e.container_event_type) == (c, STOPPED)]
        [st] = [s for s in end.containers_statuses if s.id == c]
        assert (st.state, st.exit_code) == (pb.CONTAINER_EXITED, 3)
        assert end.pod_sandbox_status.state == pb.SANDBOX_READY
        [gone] = [e for e in events if (e.container_id, e.container_event_type) == (c, DELETED)]
        assert c not in [s.id for s in gone.containers_statuses]


STATE_OF = {CREATED: pb.CONTAINER_CREATED, STARTED: pb.CONTAINER_RUNNING, STOPPED: pb.CONTAINER_EXITED, DELETED: None}


class Poller:
    """What kubelet knows without events: a list, again and again. seen: (before, after, {container: state}) of each."""

    def __init__(self, daemon):
        self.daemon, self.seen, self.end = daemon, [], threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self):
        while not self.end.wait(0.02):
            before = time.monotonic()
            states = {c.id: c.state for c in self.daemon.client.ListContainers().containers}
            self.seen.append((before, time.monotonic(), states))

    def close(self):
        self.end.set()
        self.thread.join(10)


def test_events_agree_with_polling(daemon, make_pod, listen):
    """Three pods at once, each container started, ended or stopped, and removed: the events of each are the changes that a poll
    sees, in that order and no later, and at the end both know the same."""
    listener, poller = listen(), Poller(daemon)
    at = []  # (when it came, container, kind)

    def collect():
        while True:
            e = listener.queue.get()
            if e is None:
                return
            at.append((time.monotonic(), e.container_id, e.container_event_type))

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    pods = [make_pod(f"burst{i}") for i in range(3)]
    kept, removed = {}, []

    def life(pod):
        for i in range(4):
            c = pod.start(f"c{i}", "sh", "-c", f"exit {i}" if i % 2 else "sleep 1000")
            if i == 2:
                kept[c] = pb.CONTAINER_RUNNING
                continue
            if i == 0:
                daemon.client.StopContainer(container_id=c, timeout=0)
            daemon.wait_state(c, pb.CONTAINER_EXITED)
            if i == 3:
                kept[c] = pb.CONTAINER_EXITED
            else:
                daemon.client.RemoveContainer(container_id=c)
                removed.append(c)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(life, pods))
    final = {c.id: c.state for c in daemon.client.ListContainers().containers}
    assert final == kept
    want = len(removed) * 4 + sum(2 if s == pb.CONTAINER_RUNNING else 3 for s in kept.values())
    deadline = time.monotonic() + 10
    while len([1 for _, c, _ in at if c in kept or c in removed]) < want and time.monotonic() < deadline:
        time.sleep(0.05)
    poller.close()
    listener.queue.put(None)
    collector.join(10)
    for c in [*kept, *removed]:
        told = [(t, k) for t, who, k in at if who == c]
        whole = [CREATED, STARTED, STOPPED, DELETED]
        assert [k for _, k in told] == (whole if c in removed else whole[:2] if kept[c] == pb.CONTAINER_RUNNING else whole[:3])
        last = -1
        for before, after, states in poller.seen:
            # what an event told before the poll began, the poll knows
            known = max([whole.index(k) for t, k in told if t < before], default=-1)
            # None before it was made and after it was removed: told apart by what was seen or told of it before, for a
            # container may well live and be removed between two polls
            gone = 3 if max(last, known) >= 0 else -1
            step = whole.index({v: k for k, v in STATE_OF.items()}[states.get(c)]) if c in states else gone
            assert step >= last, "a poll saw it go back"
            assert step >= known
            # what the poll knew, an event has told within two seconds
            if step >= 0:
                assert min(t for t, k in told if whole.index(k) >= step) < after + 2
            last = step
        if c in kept:
            assert STATE_OF[told[-1][1]] == final[c]


def test_a_subscriber_that_does_not_read_loses_its_stream(daemon, make_pod, listen):
    def silent():
        return daemon.client.channel.unary_stream(
            "/runtime.v1.RuntimeService/GetContainerEvents", request_serializer=bytes,
            response_deserializer=bytes)(b"", timeout=300)
    stuck, cancelled = silent(), silent()
    listener = listen()
    # each event carries the pod's annotations: some of them are more than any queue holds
    pod = make_pod("talks", annotations={"big": "x" * 200_000})
    cancelled.cancel()
    for i in range(12):
        c = pod.start(f"c{i}", "true")
        daemon.wait_state(c, pb.CONTAINER_EXITED)
        daemon.client.RemoveContainer(container_id=c)
        # one that reads misses nothing
        assert [k for d, k in short(listener.until(c, DELETED)) if d == c] == [CREATED, STARTED, STOPPED, DELETED]
    with pytest.raises(grpc.RpcError) as e:
        for _ in stuck:
            pass
    assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    # and it may come again
    again = listen()
    c = pod.start("after", "true")
    again.until(c, STOPPED)


def test_a_killed_machine_in_events(daemon, make_pod, listen):
    listener = listen()
    pod = make_pod("dies")
    c = pod.start("x", "sleep", "1000")
    listener.until(c, STARTED)
    for pid in daemon.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    events = listener.until(c, STOPPED)
    assert (pod.id, STOPPED) in short(events)
    assert events[-1].pod_sandbox_status.state == pb.SANDBOX_NOTREADY


def test_a_silent_guest_is_not_ready_until_it_answers(own_daemon, images, listen):
    d = own_daemon(overrides={"machine": {"guest_silence_seconds": 4}})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    pod = Pod(d, "silent", images["busybox"])
    fine = Pod(d, "fine", images["busybox"])
    c = pod.start("x", "sleep", "1000")
    listener = Listener(d)
    info = d.client.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]
    qemu = json.loads(info)["machine"]["pid"]
    os.kill(qemu, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        while pod.status().state == pb.SANDBOX_READY:
            assert time.monotonic() < stopped + 4 + 1 + 5  # a busy machine
            time.sleep(0.05)
        assert time.monotonic() - stopped > 2.5
        listener.until(pod.id, STOPPED)
        info = d.client.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]
        assert "has not answered for 4 s" in info and "stopped" in info
        # the container did not end, the neighbour is fine, the log says it
        assert d.status(c).state == pb.CONTAINER_RUNNING
        assert fine.status().state == pb.SANDBOX_READY
        assert "guest is silent" in d.log_text()
        begin = time.monotonic()
        ready = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
        assert [s.id for s in d.client.ListPodSandbox(filter=ready).items] == [fine.id]
        d.client.ListContainerStats()
        assert time.monotonic() - begin < 5
    finally:
        os.kill(qemu, signal.SIGCONT)
    listener.until(pod.id, STARTED)
    assert pod.status().state == pb.SANDBOX_READY
    assert d.exec(c, "echo", "hi").stdout == b"hi\n"
    # what kubelet would do with one that stays silent
    os.kill(qemu, signal.SIGSTOP)
    while pod.status().state == pb.SANDBOX_READY:
        assert time.monotonic() < stopped + 60
        time.sleep(0.1)
    pod.remove()
    fine.remove()
    listener.close()
