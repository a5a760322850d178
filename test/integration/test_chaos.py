"""R1: the daemon is killed at random moments during random calls, and nothing that it acknowledged is lost or changed.

ASPIS_CHAOS_ROUNDS=300 runs so many kills (by hand); without it as many as fit into 40 seconds. ASPIS_CHAOS_SEED repeats the
same choices, though never the same timing."""
import os
import random
import threading
import time
import traceback

import grpc

from conftest import Pod, settle
from cri import Client, container_config, pb, sandbox_config

import audit

ROUNDS = int(os.environ.get("ASPIS_CHAOS_ROUNDS", "0"))
SEED = int(os.environ.get("ASPIS_CHAOS_SEED", "1"))
SECONDS = 40
ACTORS = 3
GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
STATE = {pb.CONTAINER_CREATED: "created", pb.CONTAINER_RUNNING: "running", pb.CONTAINER_EXITED: "exited"}
SLEEP = ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]


class Lost(Exception):
    """The daemon went during the call: nobody knows whether it was done."""


class Actor(threading.Thread):
    """One client with a pod of its own. `pod` and `containers` are what was acknowledged; a call that was lost makes
    room for two outcomes, and the next look decides which one it was."""

    def __init__(self, daemon, image, number, up, stop):
        super().__init__()
        self.d, self.image, self.number, self.up, self.stop = daemon, image, number, up, stop
        self.random = random.Random(SEED * 1000 + number)
        self.client = None
        self.pod = self.boot = self.lost = None
        self.attempt = 0
        self.containers = {}  # id: the states it may be in
        self.error = None
        self.calls = self.losses = 0

    def call(self, name, **fields):
        if self.client is None:
            self.client = Client(self.d.socket)
        self.calls += 1
        try:
            return getattr(self.client, name)(deadline=120, **fields)
        except grpc.RpcError as e:
            if e.code() not in GONE:
                raise
            self.client.close()
            self.client = None
            self.losses += 1
            raise Lost(name) from e

    def config(self):
        return sandbox_config(f"chaos{self.number}", attempt=self.attempt,
                              log_directory=self.d.logs / f"chaos{self.number}")

    # --- what a client does ---
    def run_pod(self):
        self.lost = "pod"
        self.pod = self.call("RunPodSandbox", config=self.config()).pod_sandbox_id
        self.lost = None

    def create(self):
        n = self.calls
        self.lost = "container"
        config = container_config(f"c{n}", self.image, SLEEP)
        c = self.call("CreateContainer", pod_sandbox_id=self.pod, config=config, sandbox_config=self.config())
        self.containers[c.container_id] = {"created"}
        self.lost = None

    def change(self, c, outcome, name, **fields):
        was = self.containers[c]
        self.containers[c] = was | {outcome}
        self.call(name, container_id=c, **fields)
        self.containers[c] = {outcome}

    def remove(self, c):
        if self.containers[c] == {"running"}:
            self.containers[c] = {"running", "exited"}  # it is killed first
        self.change(c, "removed", "RemoveContainer")
        del self.containers[c]

    def remove_pod(self):
        self.lost = "removal"
        self.call("StopPodSandbox", pod_sandbox_id=self.pod)
        self.call("RemovePodSandbox", pod_sandbox_id=self.pod)
        self.pod = self.boot = self.lost = None
        self.containers = {}
        self.attempt += 1

    def exec(self, c):
        out = self.call("ExecSync", container_id=c, cmd=["cat", "/proc/sys/kernel/random/boot_id"], timeout=60)
        assert out.exit_code == 0, out
        if self.boot is None:
            self.boot = out.stdout
        assert out.stdout == self.boot, "another boot of the guest"

    def look(self):
        """What the daemon says, against what was acknowledged; decides what was lost."""
        mine = [s for s in self.call("ListPodSandbox").items if s.metadata.name == f"chaos{self.number}"]
        if self.lost == "pod":
            assert len(mine) <= 1, mine
            if mine and mine[0].state == pb.SANDBOX_READY:
                self.pod = mine[0].id
            elif mine:  # half-made: kubelet would take it away
                self.call("StopPodSandbox", pod_sandbox_id=mine[0].id)
                self.call("RemovePodSandbox", pod_sandbox_id=mine[0].id)
        elif self.lost == "removal":
            if mine:
                assert [s.id for s in mine] == [self.pod]
                self.remove_pod()
            else:
                self.pod = self.boot = None
                self.containers = {}
                self.attempt += 1
        else:
            assert [(s.id, s.state) for s in mine] == ([(self.pod, pb.SANDBOX_READY)] if self.pod else []), \
                f"acknowledged {self.pod}, listed {mine}"
        if self.pod is not None:
            self.look_at_containers()
        self.lost = None

    def look_at_containers(self):
        status = self.call("PodSandboxStatus", pod_sandbox_id=self.pod).status
        assert status.state == pb.SANDBOX_READY and status.network.ip
        found = {c.id: STATE.get(c.state, "unknown") for c in self.call(
            "ListContainers", filter={"pod_sandbox_id": self.pod}).containers}
        new = set(found) - set(self.containers)
        assert len(new) <= (self.lost == "container"), f"nobody made {new}"
        for c in list(self.containers):
            state = found.get(c, "removed")
            assert state in self.containers[c], f"container {c} is {state}, not {self.containers[c]}"
            if state == "removed":
                del self.containers[c]
            elif state == "running" and "exited" in self.containers[c]:
                # a stop whose signal is on its way: it ends when it likes, so it is ended
                self.change(c, "exited", "StopContainer", timeout=0)
            else:
                self.containers[c] = {state}
                assert STATE[self.call("ContainerStatus", container_id=c).status.state] == state
        for c in new:
            self.containers[c] = {found[c]}

    def step(self):
        if self.pod is None:
            self.run_pod()
            return
        if len(self.containers) < 2:
            self.create()
            return
        c = self.random.choice(sorted(self.containers))
        state, = self.containers[c]
        dice = self.random.random()
        if dice < 0.05:
            self.remove_pod()
        elif dice < 0.2:
            self.look()
        elif dice < 0.3:
            self.remove(c)
        elif state == "created":
            self.change(c, "running", "StartContainer")
        elif state == "running" and dice < 0.8:
            self.exec(c)
        elif state == "running":
            self.change(c, "exited", "StopContainer", timeout=self.random.choice([0, 10]))
        else:
            self.remove(c)

    def run(self):
        unsure, lost_in_a_row = False, 0
        while not (self.stop.is_set() and not unsure):
            try:
                if unsure:
                    self.look()
                    unsure, lost_in_a_row = False, 0
                else:
                    self.step()
            except Lost:
                unsure = True
                lost_in_a_row += 1
                back = self.up.wait(120)
                if not back or lost_in_a_row > 100 or self.stop.is_set() and not self.d.alive():
                    self.error = "the daemon never came back"
                    return
            except BaseException:
                self.error = f"lost={self.lost} containers={self.containers}\n{traceback.format_exc()}"
                return


def test_killed_at_any_moment_during_any_call(own_daemon, images):
    dice = random.Random(SEED)
    d = own_daemon()
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    before = audit.snapshot(d)
    stay = Pod(d, "stay", images["busybox"])
    counter = stay.start("x", "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")
    started = d.status(counter).started_at
    boot = d.exec(counter, "cat", "/proc/sys/kernel/random/boot_id").stdout
    up, stop = threading.Event(), threading.Event()
    up.set()
    actors = [Actor(d, images["busybox"], n, up, stop) for n in range(ACTORS)]
    for a in actors:
        a.start()
    kills, end = 0, time.monotonic() + SECONDS
    try:
        while kills < ROUNDS or (not ROUNDS and time.monotonic() < end):
            time.sleep(dice.uniform(0, dice.choice([0.3, 3, 8])))
            if any(a.error for a in actors):
                break
            up.clear()
            if dice.random() < 0.2:
                d.stop()  # in the middle of calls too: whole, and with nothing leaked
            else:
                d.kill()
            kills += 1
            d.start()
            up.set()
            s = d.status(counter)
            assert (s.state, s.started_at) == (pb.CONTAINER_RUNNING, started)
            assert stay.status().state == pb.SANDBOX_READY
    finally:
        stop.set()
        up.set()
        for a in actors:
            a.join(300)
    assert not any(a.is_alive() for a in actors), "a client hangs"
    wrong = [f"client {a.number}: {a.error}" for a in actors if a.error]
    assert not wrong, f"after {kills} kills, seed {SEED}:\n" + "\n".join(wrong) + d.log_text()[-6000:]
    calls, losses = sum(a.calls for a in actors), sum(a.losses for a in actors)
    print(f"{kills} kills, {calls} calls, {losses} of them lost")
    assert kills >= 5 and calls > 10 * ACTORS and losses > 0
    # the pod that nobody touched: the same guest, every line of its log
    assert d.exec(counter, "cat", "/proc/sys/kernel/random/boot_id").stdout == boot
    d.client.StopContainer(container_id=counter, timeout=0)
    lines = stay.output("x").splitlines()
    assert lines == [f"line {i + 1}" for i in range(len(lines))] and len(lines) > 20
    for a in actors:
        a.look()
        a.client.close()
    d.remove_all()
    wrong = settle(d, before)
    assert not wrong, (wrong, [(p.name, p.read_text()) for p in (d.ipam / "aspis-test").iterdir()])
