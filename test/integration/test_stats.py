"""What pods use: numbers of a known load, filters, and lists that wait for nobody."""
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cri import pb
from daemon import BUILD


def of(stats, container):
    found = [s for s in stats if s.attributes.id == container]
    assert len(found) == 1, f"{container} is {len(found)} times in the list"
    return found[0]


def spin(seconds):
    """A shell that uses one CPU for about so long, by its own clock of CPU time."""
    return ["sh", "-c", f"timeout {seconds} sh -c 'while :; do :; done'; sleep 1000"]


@pytest.mark.vm("reads the guest's control groups")
def test_cpu_of_a_known_load(daemon, make_pod):
    pod = make_pod("load")
    idle = pod.start("idle", "sleep", "1000")
    busy = pod.start("busy", *spin(1000))
    daemon.client.ListContainerStats()
    time.sleep(4)
    # the guest's own measure of the same process is the yardstick
    def cpu_of_shell():
        text = daemon.exec(busy, "sh", "-c", "cat /sys/fs/cgroup/cpu.stat").stdout.decode()
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) * 1000
    before = cpu_of_shell()
    s = of(daemon.client.ListContainerStats().stats, busy)
    after = cpu_of_shell()
    assert before <= s.cpu.usage_core_nano_seconds.value <= after
    assert after > 1_000_000_000
    # a rate over the last seconds: about one CPU as the guest counts, less what it did not get
    assert s.cpu.HasField("usage_nano_cores") and 300_000_000 < s.cpu.usage_nano_cores.value < 1_200_000_000
    quiet = of(daemon.client.ListContainerStats().stats, idle)
    assert quiet.cpu.usage_core_nano_seconds.value < 2_000_000_000
    again = of(daemon.client.ListContainerStats().stats, busy)
    assert again.cpu.usage_core_nano_seconds.value >= s.cpu.usage_core_nano_seconds.value
    assert again.cpu.timestamp >= s.cpu.timestamp > (time.time() - 60) * 1e9


@pytest.mark.vm("reads the guest's control groups")
def test_memory_of_a_known_load(daemon, make_pod):
    pod = make_pod("memory")
    size = 32 << 20
    c = pod.start("x", "sh", "-c",
                  f"x=$(yes a | head -c {size}); echo ready; sleep 1000; :",
                  resources={"memory_limit_in_bytes": 160 << 20})
    deadline = time.monotonic() + 60
    while "ready" not in pod.log("x"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    m = daemon.client.ContainerStats(container_id=c).stats.memory
    seen = int(dict(line.split() for line in daemon.exec(c, "cat", "/sys/fs/cgroup/memory.stat")
                    .stdout.decode().splitlines())["anon"])
    assert abs(m.rss_bytes.value - seen) <= 0.05 * seen + (2 << 20)
    assert m.rss_bytes.value >= size
    assert m.rss_bytes.value <= m.working_set_bytes.value <= m.usage_bytes.value
    assert m.available_bytes.value == (160 << 20) - m.working_set_bytes.value
    assert m.page_faults.value > 1000
    assert m.psi.Some.Avg10 >= 0 and m.HasField("psi")


def near(have, want, slack=0):
    """Within five per cent, and what the programs around the load need themselves."""
    assert abs(have - want) <= 0.05 * want + slack, f"{have} instead of {want}"


@pytest.mark.vm("a busy host gives a pod of its own less than the quota")
def test_known_amounts_to_five_per_cent(daemon, make_pod):
    """A fifth of a CPU, 64 MiB of memory, 20 MiB written, 400 kB received and sent."""
    pod = make_pod("known")
    gateway = pod.run("route", "sh", "-c", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'") and pod.output("route").strip()
    # its quota is what it gets; dd holds its buffer until somebody reads
    cpu = pod.start("cpu", "sh", "-c", "while :; do :; done", resources={"cpu_quota": 20000, "cpu_period": 100000})
    memory = pod.start("memory", "sh", "-c", "dd if=/dev/zero bs=64M count=1 2>/dev/null | { sleep 1000; }")
    disk = pod.start("disk", "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=20 2>/dev/null; sync; echo done; sleep 1000")

    def within(seconds, probe):
        deadline = time.monotonic() + seconds
        while not probe():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    within(60, lambda: "done" in pod.log("disk"))
    near(daemon.client.ContainerStats(container_id=disk).stats.writable_layer.used_bytes.value, 20 << 20)
    within(30, lambda: daemon.client.ContainerStats(container_id=memory).stats.memory.rss_bytes.value > 60 << 20)
    s = daemon.client.ContainerStats(container_id=memory).stats.memory
    near(s.rss_bytes.value, 64 << 20)
    near(s.working_set_bytes.value, 64 << 20, slack=3 << 20)
    one = daemon.client.ContainerStats(container_id=cpu).stats.cpu
    time.sleep(8)  # eighty periods
    two = daemon.client.ContainerStats(container_id=cpu).stats.cpu
    near(two.usage_core_nano_seconds.value - one.usage_core_nano_seconds.value, (two.timestamp - one.timestamp) / 5)
    near(two.usage_nano_cores.value, 200_000_000)
    daemon.client.StopContainer(container_id=cpu, timeout=0)
    before = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.network.default_interface
    r = daemon.exec(disk, "ping", "-q", "-c", "280", "-i", "0.01", "-s", "1400", gateway)
    assert r.exit_code == 0 and b"280 packets received" in r.stdout, r
    time.sleep(0.5)
    after = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.network.default_interface
    for was, now in ((before.rx_bytes, after.rx_bytes), (before.tx_bytes, after.tx_bytes)):
        near(now.value - was.value, 280 * (1400 + 8 + 20 + 14))  # ICMP, IP, Ethernet


def test_writable_layer(daemon, make_pod):
    pod = make_pod("layer")
    c = pod.start("x", "sh", "-c", "mkdir /d; dd if=/dev/zero of=/d/file bs=1M count=20; "
                  "for i in 1 2 3 4 5; do echo > /d/$i; done; sync; echo done; sleep 1000")
    deadline = time.monotonic() + 60
    while "done" not in pod.log("x"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    w = daemon.client.ContainerStats(container_id=c).stats.writable_layer
    assert 20 << 20 <= w.used_bytes.value <= 21 << 20
    assert 8 <= w.inodes_used.value <= 16
    assert os.path.isdir(w.fs_id.mountpoint)


def test_filters(daemon, make_pod):
    one, two = make_pod("one"), make_pod("two", labels={"tier": "b"})
    a = one.start("a", "sleep", "1000", labels={"app": "x"})
    b = two.start("b", "sleep", "1000", labels={"app": "y"})
    done = two.start("c", "true")
    daemon.wait_state(done, pb.CONTAINER_EXITED)

    def ids(**f):
        flt = pb.ContainerStatsFilter(**f)
        return {s.attributes.id for s in daemon.client.ListContainerStats(filter=flt).stats}
    assert ids() == {a, b}
    assert ids(id=a) == {a}
    assert ids(id=a[:13]) == {a}
    assert ids(pod_sandbox_id=two.id) == {b}
    assert ids(label_selector={"app": "x"}) == {a}
    assert ids(id=a, label_selector={"app": "y"}) == set()

    def pods(**f):
        flt = pb.PodSandboxStatsFilter(**f)
        return {s.attributes.id for s in daemon.client.ListPodSandboxStats(filter=flt).stats}
    assert pods() == {one.id, two.id}
    assert pods(id=one.id) == {one.id}
    assert pods(label_selector={"tier": "b"}) == {two.id}
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.ContainerStats(container_id="f" * 64)
    assert e.value.code() == grpc.StatusCode.NOT_FOUND
    # the streams say the same
    got = [s for r in daemon.client.stream("StreamContainerStats") for s in r.container_stats]
    assert {s.attributes.id for s in got} == {a, b} and all(s.cpu.timestamp for s in got)
    got = [s for r in daemon.client.stream("StreamPodSandboxStats") for s in r.pod_sandbox_stats]
    assert {s.attributes.id for s in got} == {one.id, two.id}
    got = [s.id for r in daemon.client.stream("StreamPodSandboxes") for s in r.pod_sandboxes]
    assert sorted(got) == sorted([one.id, two.id])
    got = [c.id for r in daemon.client.stream("StreamContainers") for c in r.containers]
    assert sorted(got) == sorted([a, b, done])


@pytest.mark.vm("the VM's own cost")
def test_pod_numbers(daemon, make_pod):
    pod = make_pod("whole", labels={"k": "v"})
    c = pod.start("x", "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    daemon.client.PodSandboxStats(pod_sandbox_id=pod.id)
    before = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats
    assert before.attributes.metadata.name == "whole" and before.attributes.labels["k"] == "v"
    net = before.linux.network.default_interface
    assert net.name == "eth0"
    count = 20
    # to the pod's gateway, which answers each: both directions count at least the payload
    gateway = daemon.exec(c, "sh", "-c", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").stdout.decode().strip()
    r = daemon.exec(c, "ping", "-q", "-c", str(count), "-i", "0.1", "-s", "1000", gateway)
    assert r.exit_code == 0, r
    time.sleep(0.5)
    after = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats
    net2 = after.linux.network.default_interface
    for was, now in ((net.rx_bytes, net2.rx_bytes), (net.tx_bytes, net2.tx_bytes)):
        assert now.value - was.value >= count * 1000
    assert after.linux.process.process_count.value == 3
    assert [s.attributes.id for s in after.linux.containers] == [c]
    # what the VM costs the host is more than what its containers use
    inside = after.linux.containers[0]
    assert after.linux.memory.working_set_bytes.value > inside.memory.working_set_bytes.value
    assert after.linux.cpu.usage_core_nano_seconds.value > 0
    assert after.linux.cpu.usage_core_nano_seconds.value >= before.linux.cpu.usage_core_nano_seconds.value


def test_totals_grow_across_restarts(daemon, make_pod):
    pod = make_pod("steady")
    c = pod.start("x", "sh", "-c", "while :; do :; done")
    time.sleep(1)
    one = daemon.client.ContainerStats(container_id=c).stats.cpu.usage_core_nano_seconds.value
    vm = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.cpu.usage_core_nano_seconds.value
    daemon.kill()
    daemon.start()
    assert daemon.client.ContainerStats(container_id=c).stats.cpu.usage_core_nano_seconds.value > one
    assert daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.cpu.usage_core_nano_seconds.value > vm


@pytest.mark.vm("stops a VM")
def test_lists_do_not_wait_for_a_stopped_vm(daemon, make_pod):
    stuck = make_pod("stuck")
    a = stuck.start("a", "sleep", "1000")
    of(daemon.client.ListContainerStats().stats, a)
    qemu = set(daemon.qemu_pids())
    fine = make_pod("fine")
    b = fine.start("b", "sleep", "1000")
    for pid in qemu:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.5)
        first = time.monotonic()
        known = of(daemon.client.ListContainerStats().stats, a)
        assert time.monotonic() - first < 8
        assert known.cpu.timestamp  # what was known before
        # nobody waits for it a second time
        with ThreadPoolExecutor(8) as pool:
            begin = time.monotonic()
            for stats in pool.map(lambda _: daemon.client.ListContainerStats().stats, range(16)):
                assert of(stats, b).cpu.timestamp > known.cpu.timestamp
                assert of(stats, a).cpu.timestamp == known.cpu.timestamp
            daemon.client.ListPodSandboxStats()
            daemon.client.ListPodSandboxMetrics()
            assert time.monotonic() - begin < 5
    finally:
        for pid in qemu:
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 20
    while of(daemon.client.ListContainerStats().stats, a).cpu.timestamp == known.cpu.timestamp:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.vm("what there is to say about a VM")
def test_verbose_info_says_what_people_look_for(daemon, make_pod, tmp_path):
    pod = make_pod("shown")
    host = tmp_path / "data"
    host.mkdir()
    c = pod.start("x", "sleep", "1000", envs=[pb.KeyValue(key="A", value=b"b")],
                  mounts=[pb.Mount(container_path="/data", host_path=str(host))])

    def info():
        return (json.loads(daemon.client.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]),
                json.loads(daemon.client.ContainerStatus(container_id=c, verbose=True).info["info"]))
    p, i = info()
    assert p["pid"] in daemon.qemu_pids() and p["backend"] == "vm" and p["backendReason"]
    assert p["accelerator"] == "tcg" and p["cniResult"] and p["netns"].startswith("/run/netns/")
    assert os.path.exists(p["console"]) and i["console"] == p["console"]
    assert i["sandboxID"] == pod.id and i["hypervisorPid"] == p["pid"]
    # its number in the guest: the first process there has 1, so ask the kernel's own view of the group
    assert i["pid"] > 1
    spec = i["runtimeSpec"]
    assert spec["process"]["args"] == ["sleep", "1000"] and "A=b" in spec["process"]["env"]
    assert [m["source"] for m in spec["mounts"] if m["destination"] == "/data"] == [str(host)]
    path = daemon.run / "sandboxes" / pod.id / f"spec-{c}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    daemon.restart()
    again = info()
    assert again[1]["runtimeSpec"] == spec and again[1]["pid"] == i["pid"]
    daemon.client.RemoveContainer(container_id=c)
    assert not path.exists()


def test_tools_show_stats(daemon, make_pod):
    pod = make_pod("tabled")
    c = pod.start("worker", "sh", "-c", "while :; do :; done")
    for _ in range(2):
        out = subprocess.run([str(BUILD / "cri" / "ctl" / "aspisctl"), "--socket", str(daemon.socket), "stats"],
                             capture_output=True, text=True, check=True).stdout
        time.sleep(1.5)
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:2] == ["POD", "CONTAINER"]
    assert ["tabled", "(vm)"] in [r[:2] for r in rows]
    [worker] = [r for r in rows if r[:2] == ["tabled", "worker"]]
    assert float(worker[2]) > 20 and worker[3] == "%"
    if shutil.which("crictl"):
        out = subprocess.run(["crictl", "--runtime-endpoint", f"unix://{daemon.socket}", "stats", "-o", "json"],
                             capture_output=True, text=True, check=True).stdout
        [s] = json.loads(out)["stats"]
        assert s["attributes"]["id"] == c and int(s["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
        out = subprocess.run(["crictl", "--runtime-endpoint", f"unix://{daemon.socket}", "statsp", "-o", "json"],
                             capture_output=True, text=True, check=True).stdout
        assert json.loads(out)["stats"][0]["attributes"]["id"] == pod.id
