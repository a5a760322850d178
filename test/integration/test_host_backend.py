"""Pods without a VM: the host's namespaces, privileged containers, and everything that a pod in a VM can do, too."""
import hashlib
import io
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import grpc
import pytest

import images as im
from cri import container_config, pb, sandbox_config
from test_security import MAPPED_MOUNTS
from test_streaming import (  # noqa: F401  with this file's pod and box
    test_attach_many_and_the_log, test_exec_streams_and_codes, test_megabytes_both_ways, test_port_forward,
    test_terminal_resize_and_end)

pytestmark = pytest.mark.once("asks for its handlers itself")

NODE, POD, CONTAINER = pb.NODE, pb.POD, pb.CONTAINER


def linux(privileged=False, sysctls=None, cgroup_parent="", **modes):
    modes.setdefault("pid", CONTAINER)
    return pb.LinuxPodSandboxConfig(
        cgroup_parent=cgroup_parent, sysctls=sysctls or {},
        security_context=pb.LinuxSandboxSecurityContext(
            privileged=privileged, namespace_options=pb.NamespaceOption(**modes)))


def info(daemon, sandbox):
    import json
    return json.loads(daemon.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])


def privileged(**more):
    return {"security": {"privileged": True}, **more}


@pytest.fixture
def host_net(make_pod):
    return make_pod(hostname="", linux=linux(network=NODE))


def test_host_network(daemon, host_net):
    """It reaches what listens on the host's loopback, has the host's name, and no address of its own."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        c, _ = server.accept()
        c.sendall(b"from the host\n")
        c.close()

    threading.Thread(target=serve, daemon=True).start()
    st = host_net.run("c", "sh", "-c",
                      f"nc 127.0.0.1 {server.getsockname()[1]} </dev/null; hostname; echo $HOSTNAME; cat /etc/hostname")
    assert st.exit_code == 0, st
    name = socket.gethostname()
    assert host_net.output("c").split("\n")[:4] == ["from the host", name, name, name]
    status = host_net.status()
    assert status.network.ip == ""
    assert status.linux.namespaces.options.network == NODE
    facts = info(daemon, host_net.id)
    assert facts["backend"] == "host" and "network" in facts["backendReason"], facts
    server.close()


def test_host_pid(daemon, make_pod):
    pod = make_pod(linux=linux(pid=NODE))
    c = pod.start("c", "sleep", "1000", pid=NODE)
    me = daemon.exec(c, "cat", f"/proc/{os.getpid()}/comm").stdout.decode().strip()
    assert me == Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    # its network is its own, from CNI
    ip = pod.status().network.ip
    assert ip in daemon.exec(c, "ip", "addr").stdout.decode()
    # killing the container does not touch what else runs in the namespace
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert daemon.status(c).exit_code == 137


@pytest.mark.parametrize("mode", [NODE, POD])
def test_ipc(daemon, make_pod, mode):
    """System V memory made on the host shows only with the host's ipc namespace, and so does /dev/shm."""
    made = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=True).stdout.split()[-1]
    mark = Path("/dev/shm/aspis-host-test")
    mark.write_text("here\n")
    try:
        pod = make_pod(linux=linux(ipc=mode, network=NODE))
        assert pod.run("c", "sh", "-c", "cat /proc/sysvipc/shm; ls /dev/shm").exit_code == 0
        out = pod.output("c")
        ids = [line.split()[1] for line in out.splitlines() if len(line.split()) > 8]
        assert (made in ids) == (mode == NODE), out
        assert ("aspis-host-test" in out) == (mode == NODE)
    finally:
        subprocess.run(["ipcrm", "-m", made], check=True)
        mark.unlink()


def test_pod_network_and_dns(daemon, images):
    """Handler aspis-host with nothing of the host: the pod's own network namespace, uts, ipc."""
    config = sandbox_config("hp2", log_directory=daemon.logs, hostname="hp2",
                            dns_config=pb.DNSConfig(servers=["10.9.9.9"], searches=["x.example"]))
    s = daemon.run_pod(config, runtime_handler="aspis-host")
    try:
        st = daemon.client.PodSandboxStatus(pod_sandbox_id=s).status
        assert st.network.ip and st.runtime_handler == "aspis-host"
        c = daemon.create(s, container_config("c", images["busybox"], ["sleep", "1000"]), config)
        daemon.client.StartContainer(container_id=c)
        out = daemon.exec(c, "sh", "-c", "hostname; cat /etc/resolv.conf /etc/hosts; ip -o addr; ps").stdout.decode()
        assert "hp2" in out and "10.9.9.9" in out and "x.example" in out and f"{st.network.ip}\thp2" in out
        assert "sleep 1000" in out and "python" not in out  # its own process namespace
        # it answers from outside
        c = daemon.create(s, container_config("web", images["busybox"], ["nc", "-l", "-p", "8080", "-e", "echo", "hi"]), config)
        daemon.client.StartContainer(container_id=c)
        within(5, lambda: b"8080" in daemon.exec(c, "netstat", "-ltn").stdout)
        assert socket.create_connection((st.network.ip, 8080), timeout=5).recv(10) == b"hi\n"
    finally:
        daemon.client.StopPodSandbox(pod_sandbox_id=s)
        daemon.client.RemovePodSandbox(pod_sandbox_id=s)


def test_shared_process_namespace(daemon, make_pod):
    pod = make_pod(linux=linux(network=NODE, pid=POD))
    a = pod.start("a", "sleep", "1234", pid=POD)
    b = pod.start("b", "sleep", "2345", pid=POD)
    out = daemon.exec(b, "ps").stdout.decode()
    assert "sleep 1234" in out and "sleep 2345" in out and "pytest" not in out
    assert daemon.exec(a, "cat", "/proc/1/comm").stdout != b"sleep\n"


def test_privileged(daemon, make_pod):
    """A privileged container mounts, sees the host's devices, may write to sysfs and its cgroups."""
    pod = make_pod(linux=linux(privileged=True))
    facts = info(daemon, pod.id)
    assert facts["backend"] == "host" and "privileged" in facts["backendReason"]
    st = pod.run("c", "sh", "-c", "mkdir /m && mount -t tmpfs none /m && echo mounted; ls /dev; "
                 "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; grep -E ' (/sys|/sys/fs/cgroup) ' /proc/mounts; "
                 "cat /proc/timer_list >/dev/null && echo open", **privileged())
    out = pod.output("c")
    assert st.exit_code == 0, out
    assert "mounted" in out and "open" in out
    assert "loop-control" in out and "vda" in out
    own = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")][0]
    assert out.split("CapEff:")[1].split()[0] == own.split()[1]
    assert " /sys sysfs rw" in out

    # a container that is not privileged in the same pod is confined
    st = pod.run("d", "sh", "-c", "mount -t tmpfs none /tmp; echo $?; touch /sys/x; cat /dev/vda | head -c1; ls /dev")
    out = pod.output("d")
    assert out.startswith("1\n") and "vda" not in out.split()


def test_confinement(daemon, host_net):
    """The ordinary walls: capabilities, masked and read-only paths, devices, no way to the agent's program."""
    st = host_net.run(
        "c", "sh", "-c",
        "grep CapEff /proc/self/status; cat /proc/kcore | head -c1 | wc -c; echo x >/proc/sys/vm/swappiness; "
        "mknod /tmp/vda b 254 0 && head -c1 /tmp/vda; ls -l /proc/1/exe; mount -t tmpfs none /mnt")
    out, err = host_net.output("c"), host_net.output("c", "stderr")
    assert st.exit_code != 0
    assert out.split()[1] == "00000000a80425fb"
    assert out.split()[2] == "0"
    assert "swappiness" in err and "vda" in err
    agent = [p for p in daemon.agent_pids()]
    assert len(agent) == 1
    # the program that supervises is not the host's file but a read-only mount of it
    r = subprocess.run(["sh", "-c", f": >>/proc/{agent[0]}/exe"], capture_output=True, text=True)
    assert "Read-only file system" in r.stderr or "Text file busy" in r.stderr


def test_seccomp(daemon, host_net):
    """The same filters as in a guest."""
    default = {"seccomp": pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)}
    st = host_net.run("c", "sh", "-c", "grep Seccomp: /proc/self/status; unshare -U true", security=default)
    assert st.exit_code != 0 and host_net.output("c").split() == ["Seccomp:", "2"]
    st = host_net.run("d", "grep", "Seccomp:", "/proc/self/status")
    assert host_net.output("d").split() == ["Seccomp:", "0"]


def test_pid_target(daemon, make_pod):
    pod = make_pod(linux=linux(network=NODE))
    a = pod.start("a", "sleep", "1234")
    config = container_config("b", pod.image, ["sleep", "4321"])
    config.linux.security_context.namespace_options.pid = pb.TARGET
    config.linux.security_context.namespace_options.target_id = a
    b = daemon.create(pod.id, config, pod.config)
    daemon.client.StartContainer(container_id=b)
    assert b"sleep 1234" in daemon.exec(b, "ps").stdout


def test_security_context(daemon, host_net):
    st = host_net.run("c", "sh", "-c", "id -u; id -g; id -G; grep -E 'NoNewPrivs' /proc/self/status; touch /x",
                      security={"run_as_user": pb.Int64Value(value=1000), "run_as_group": pb.Int64Value(value=2000),
                                "supplemental_groups": [3000], "no_new_privs": True, "readonly_rootfs": True})
    assert st.exit_code == 1
    out = host_net.output("c").split()
    assert out[0] == "1000" and out[1] == "2000" and "3000" in out and out[-1] == "1"
    assert "Read-only" in host_net.output("c", "stderr")


# --- volumes ---

def mount(host, container, **more):
    return pb.Mount(host_path=str(host), container_path=container, **more)


@pytest.fixture
def shared_dir(tmp_path):
    """A directory that is a shared mount, as / is where systemd runs."""
    d = tmp_path / "shared"
    d.mkdir()
    subprocess.run(["mount", "--bind", d, d], check=True)
    subprocess.run(["mount", "--make-shared", d], check=True)
    yield d
    for _ in range(4):
        subprocess.run(["umount", "-R", d], capture_output=True)


def within(seconds, probe):
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_mount_propagation(daemon, make_pod, shared_dir):
    """BIDIRECTIONAL: a mount made in the container appears on the host and the other way round; HOST_TO_CONTAINER:
    only into the container; private: neither."""
    pod = make_pod(linux=linux(privileged=True))
    for d in ("both", "slave", "private", "from-host"):
        (shared_dir / d).mkdir()
    c = pod.start("c", "sleep", "1000", **privileged(), mounts=[
        mount(shared_dir, "/both", propagation=pb.PROPAGATION_BIDIRECTIONAL),
        mount(shared_dir, "/slave", propagation=pb.PROPAGATION_HOST_TO_CONTAINER),
        mount(shared_dir, "/private")])
    for where in ("both", "slave", "private"):
        r = daemon.exec(c, "sh", "-c", f"mount -t tmpfs none /{where}/{where} && touch /{where}/{where}/made")
        assert r.exit_code == 0, r
    assert (shared_dir / "both" / "made").exists()
    assert not (shared_dir / "slave" / "made").exists() and not (shared_dir / "private" / "made").exists()
    subprocess.run(["mount", "-t", "tmpfs", "none", shared_dir / "from-host"], check=True)
    (shared_dir / "from-host" / "x").touch()
    assert daemon.exec(c, "ls", "/both/from-host", "/slave/from-host").stdout.split().count(b"x") == 2
    assert daemon.exec(c, "ls", "/private/from-host").stdout == b""
    pod.remove()
    # what the container mounted on the host stays the host's, as with other runtimes
    assert (shared_dir / "both" / "made").exists()


def test_bidirectional_needs_a_shared_mount(daemon, make_pod, tmp_path):
    pod = make_pod(linux=linux(privileged=True))
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-private", tmp_path], check=True)
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "sleep", "1", **privileged(),
                       mounts=[mount(tmp_path, "/v", propagation=pb.PROPAGATION_BIDIRECTIONAL)])
        assert "not a shared mount" in e.value.details()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_volumes(daemon, host_net, tmp_path):
    """Directories, files, missing sources, read-only with and without what is mounted below, sockets of the host."""
    d = tmp_path / "d"
    (d / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", d / "sub"], check=True)
    sock = tmp_path / "s.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(sock))
    server.listen()
    (tmp_path / "file").write_text("one\n")
    try:
        c = host_net.start("c", "sleep", "1000", mounts=[
            mount(d, "/rw"), mount(d, "/ro", readonly=True), mount(d, "/rro", readonly=True, recursive_read_only=True),
            mount(tmp_path / "file", "/etc/one"), mount(tmp_path / "missing" / "dir", "/missing"),
            mount(sock, "/run/s.sock")])
        sh = lambda text: daemon.exec(c, "sh", "-c", text)  # noqa: E731
        assert sh("touch /rw/a /rw/sub/b /ro/sub/c").exit_code == 0
        assert (d / "a").exists() and (d / "sub" / "b").exists() and (d / "sub" / "c").exists()
        assert b"Read-only" in sh("touch /ro/x").stderr
        assert b"Read-only" in sh("touch /rro/x").stderr and b"Read-only" in sh("touch /rro/sub/x").stderr
        assert (tmp_path / "missing" / "dir").is_dir()
        (tmp_path / "file").write_text("two\n")
        assert sh("cat /etc/one").stdout == b"two\n"
        assert sh("nc -w1 local:/run/s.sock </dev/null; test -S /run/s.sock").exit_code == 0
    finally:
        server.close()
        host_net.remove()
        subprocess.run(["umount", d / "sub"], check=True)


def test_devices(daemon, host_net):
    """CRI's Device list."""
    c = host_net.start("c", "sleep", "1000", devices=[
        pb.Device(container_path="/dev/my-loop", host_path="/dev/loop-control", permissions="rw"),
        pb.Device(container_path="/dev/loop0", host_path="/dev/loop0", permissions="r"),
        pb.Device(container_path="/dev/null", host_path="/dev/null", permissions="rwm")])
    r = daemon.exec(c, "sh", "-c", "ls -l /dev/my-loop && : </dev/my-loop && test -b /dev/loop0")
    assert r.exit_code == 0, r
    assert b"10, 237" in r.stdout
    with pytest.raises(grpc.RpcError) as e:
        host_net.create("d", "sleep", "1", devices=[
            pb.Device(container_path="/dev/x", host_path="/dev/no-such", permissions="rw")])
    assert "/dev/no-such" in e.value.details()


# --- the rule ---

@pytest.mark.parametrize("modes, word", [({"network": NODE}, "network"), ({"pid": NODE}, "pid"), ({"ipc": NODE}, "ipc")])
def test_vm_handler_refuses_host_namespaces(daemon, images, modes, word):
    with pytest.raises(grpc.RpcError) as e:
        daemon.run_pod(sandbox_config("r", linux=linux(**modes)), runtime_handler="aspis-vm")
    assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"{word} namespace NODE" in e.value.details() and "aspis-host" in e.value.details()


def test_handlers(daemon, make_pod):
    st = daemon.client.Status()
    assert [h.name for h in st.runtime_handlers] == ["", "aspis-vm", "aspis-host"]
    assert all(h.features.recursive_read_only_mounts for h in st.runtime_handlers)
    mapped = {h.name: h.features.user_namespaces for h in st.runtime_handlers}
    assert mapped == {"": True, "aspis-vm": True, "aspis-host": MAPPED_MOUNTS}, st.info
    with pytest.raises(grpc.RpcError) as e:
        daemon.run_pod(sandbox_config("r"), runtime_handler="runc")
    assert "aspis-host" in e.value.details()
    vm = make_pod()
    assert info(daemon, vm.id)["backend"] == "vm"
    for bad, word in (({"mounts": [mount("/tmp", "/x", propagation=pb.PROPAGATION_BIDIRECTIONAL)]}, "aspis-host"),
                      ({"devices": [pb.Device(container_path="/dev/x", host_path="/dev/loop-control", permissions="r")]}, "aspis-host"),
                      (privileged(), "privileged")):
        with pytest.raises(grpc.RpcError) as e:
            vm.create("bad", "sleep", "1", **bad)
        assert word in e.value.details()


def test_privileged_in_a_vm(own_daemon, images):
    """privileged_pods = "vm": everything within the guest, nothing of the host."""
    d = own_daemon(overrides={"machine": {"privileged_pods": "vm"}}).start()
    d.client.PullImage(image={"image": images["busybox"]})
    config = sandbox_config("p", linux=linux(privileged=True), log_directory=d.logs)
    s = d.run_pod(config)
    assert info(d, s)["backend"] == "vm"
    c = d.create(s, container_config("c", images["busybox"], ["sleep", "1000"], **privileged()), config)
    d.client.StartContainer(container_id=c)
    r = d.exec(c, "sh", "-c", "mount -t tmpfs none /mnt && ip link add d0 type dummy; grep CapEff /proc/self/status; "
               "echo 1 >/proc/sys/net/ipv4/ip_forward && hostname; uname -r")
    assert b"000001ffffffffff" in r.stdout and r.exit_code == 0, r
    assert os.uname().release.encode() not in r.stdout
    d.remove_all()


# --- the life of a pod ---

def test_exec_logs_signals(daemon, host_net):
    c = host_net.start("c", "sh", "-c", "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.1; done")
    r = daemon.exec(c, "sh", "-c", "echo x; echo y >&2; exit 3")
    assert (r.stdout, r.stderr, r.exit_code) == (b"x\n", b"y\n", 3)
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec(c, "no-such-command")
    assert "no-such-command" in e.value.details()
    daemon.client.StopContainer(container_id=c, timeout=20)
    st = daemon.status(c)
    assert st.exit_code == 7
    assert host_net.output("c") == "out\nbye\n" and host_net.output("c", "stderr") == "err\n"
    c = host_net.start("d", "sh", "-c", "trap '' TERM; (trap '' TERM; sleep 1000) & while :; do sleep 0.1; done")
    begin = time.monotonic()
    daemon.client.StopContainer(container_id=c, timeout=1)
    assert 0.9 < time.monotonic() - begin < 15
    assert daemon.status(c).exit_code == 137
    # whatever a container leaves in the background goes with it
    assert "sleep 1000" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.split("\n")


def test_start_error(daemon, host_net):
    c = host_net.create("c", "/no/such/file")
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.StartContainer(container_id=c)
    assert "/no/such/file" in e.value.details()
    st = daemon.status(c)
    assert st.exit_code == 128 and st.reason == "StartError"


@pytest.fixture
def podx(daemon):
    """A cgroup parent as kubelet would make it for the pod."""
    yield daemon.cgroup + "/burst/podx"
    for root in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        for sub in ("burst/podx", "burst"):
            if (root / daemon.cgroup.lstrip("/") / sub).is_dir():
                (root / daemon.cgroup.lstrip("/") / sub).rmdir()


def group_file(path, v1, v2):
    """Value of a file of a cgroup on the host, whichever version has it."""
    for where in (f"/sys/fs/cgroup/{v1.split('.')[0]}/{path.lstrip('/')}/{v1}", f"/sys/fs/cgroup/{path.lstrip('/')}/{v2}"):
        if Path(where).exists():
            return Path(where).read_text().strip()
    raise AssertionError(f"{path} has neither {v1} nor {v2}")


def test_limits_and_oom(daemon, make_pod, podx):
    """Containers' groups lie below the pod's, their limits hold, and change while they run."""
    pod = make_pod(hostname="", linux=linux(network=NODE, cgroup_parent=podx))
    c = pod.start("c", "sleep", "1000",
                  resources={"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512, "cpu_quota": 50000, "cpu_period": 100000})
    group = f"{podx}/aspis-{pod.id}/{c}"
    assert group_file(group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(
        memory_limit_in_bytes=96 << 20, cpu_quota=75000, cpu_shares=1024))
    assert group_file(group, "memory.limit_in_bytes", "memory.max") == str(96 << 20)
    assert group_file(group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "75000"
    assert group_file(group, "cpu.cfs_period_us", "cpu.max").split()[-1] == "100000"
    assert daemon.status(c).resources.linux.memory_limit_in_bytes == 96 << 20
    daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(memory_limit_in_bytes=32 << 20))
    assert group_file(group, "memory.limit_in_bytes", "memory.max") == str(32 << 20)
    st = pod.run("oom", "sh", "-c", "tail /dev/zero", resources={"memory_limit_in_bytes": 16 << 20})
    assert (st.exit_code, st.reason) == (137, "OOMKilled"), st
    pod.remove()
    with pytest.raises(AssertionError):
        group_file(group, "memory.limit_in_bytes", "memory.max")


def test_limits_on_version_2(daemon, make_pod, podx):
    """Each file of the container's group, and what the kernel makes of it."""
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("control groups of version 1; test_cgroup2.py runs this on a node of version 2")
    pod = make_pod(hostname="", linux=linux(network=NODE, cgroup_parent=podx))
    c = pod.start("c", "sleep", "1000", resources={
        "memory_limit_in_bytes": 64 << 20, "memory_swap_limit_in_bytes": 64 << 20, "cpu_shares": 2048, "cpu_quota": 20000,
        "cpu_period": 100000, "cpuset_cpus": "0", "unified": {"pids.max": "20", "memory.high": str(60 << 20)}})
    group = Path(f"/sys/fs/cgroup{podx}/aspis-{pod.id}/{c}")
    files = {name: (group / name).read_text().strip() for name in (
        "memory.max", "memory.swap.max", "memory.high", "cpu.max", "cpuset.cpus", "pids.max", "cgroup.type")}
    assert files == {"memory.max": str(64 << 20), "memory.swap.max": "0", "memory.high": str(60 << 20), "cpu.max": "20000 100000",
                     "cpuset.cpus": "0", "pids.max": "20", "cgroup.type": "domain"}
    assert int((group / "cpu.weight").read_text()) > 39
    # processes: the twenty-first is refused
    r = daemon.exec(c, "sh", "-c", "i=0; while [ $i -lt 30 ]; do sleep 100 & i=$((i+1)); done; wait")
    assert b"fork" in r.stderr and r.exit_code != 0, r
    assert "max 0" not in (group / "pids.events").read_text() and 10 < int((group / "pids.current").read_text()) <= 20
    daemon.client.StopContainer(container_id=c, timeout=0)
    # the agent has a group beside its containers', since no group may have both processes and groups with controllers
    agent = (Path(f"/proc/{daemon.agent_pids()[0]}/cgroup").read_text().split(":", 2)[2].strip())
    assert f"aspis-{pod.id}/" in agent and c not in agent
    # a fifth of a CPU is all it gets
    d = pod.start("d", "sh", "-c", "while :; do :; done", resources={"cpu_quota": 20000, "cpu_period": 100000})
    stat = Path(f"/sys/fs/cgroup{podx}/aspis-{pod.id}/{d}/cpu.stat")

    def used():
        return int(dict(line.split() for line in stat.read_text().splitlines())["usage_usec"]) / 1e6

    before, begin = used(), time.monotonic()
    time.sleep(3)
    assert used() - before < 0.3 * (time.monotonic() - begin)
    assert "nr_throttled 0" not in stat.read_text()
    s = daemon.client.ContainerStats(container_id=d).stats
    assert abs(s.cpu.usage_core_nano_seconds.value / 1e9 - used()) < 0.5
    assert daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux.memory.usage_bytes.value > 0
    st = pod.run("oom", "sh", "-c", "tail /dev/zero", resources={"memory_limit_in_bytes": 16 << 20})
    assert (st.exit_code, st.reason) == (137, "OOMKilled"), st
    pod.remove()


def test_cpuset(daemon, make_pod):
    """The host's CPUs, for the container itself."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    assert pod.run("c", "grep", "Cpus_allowed_list", "/proc/self/status", resources={"cpuset_cpus": "0"}).exit_code == 0
    assert pod.output("c").split() == ["Cpus_allowed_list:", "0"]
    # also while it runs
    c = pod.start("e", "sleep", "1000", resources={"cpuset_cpus": "0"})
    last = os.cpu_count() - 1
    daemon.client.UpdateContainerResources(container_id=c, linux=pb.LinuxContainerResources(cpuset_cpus=f"{last},{last}"))
    assert daemon.exec(c, "grep", "Cpus_allowed_list", "/proc/self/status").stdout.split()[-1] == b"%d" % last
    with pytest.raises(grpc.RpcError) as e:
        pod.create("d", "true", resources={"cpuset_cpus": "4095"})
    assert "cpuset" in e.value.details() and e.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_stats(daemon, make_pod):
    """Numbers of a known load, from whichever version of cgroups the host has."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    c = pod.start("c", "sh", "-c", "head -c 30000000 /dev/zero >/dev/shm/x; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; "
                  "touch /written; sleep 1000")
    within(60, lambda: daemon.exec(c, "ls", "/written").exit_code == 0)
    st = daemon.client.ContainerStats(container_id=c).stats
    assert st.cpu.usage_core_nano_seconds.value > 50_000_000
    assert 25_000_000 < st.memory.usage_bytes.value < 100_000_000
    assert st.writable_layer.used_bytes.value > 0 or st.writable_layer.inodes_used.value > 0
    p = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats
    assert p.linux.memory.usage_bytes.value >= st.memory.usage_bytes.value
    assert not p.linux.network.interfaces and p.linux.network.default_interface.name == ""


def test_removal_is_quick_and_complete(daemon, make_pod):
    """Also below a hierarchy of version 2 that is mounted beside those of version 1 and is not used."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    c = pod.run("c", "true").id
    begin = time.monotonic()
    daemon.client.RemoveContainer(container_id=c)
    assert time.monotonic() - begin < 10
    look = "umount -l /sys/fs/cgroup/unified 2>/dev/null; find /sys/fs/cgroup -path '*%s*'" % daemon.cgroup.strip("/")
    found = subprocess.run(["unshare", "-m", "sh", "-c", look], capture_output=True, text=True).stdout
    assert pod.id in found and c not in found and "/unified/" not in found


def test_image_volume(daemon, images, make_pod):
    pod = make_pod(linux=linux(network=NODE))
    other = images["layers40"]
    daemon.client.PullImage(image={"image": other})
    st = pod.run("c", "sh", "-c", "cat /img/t/same; touch /img/x", mounts=[
        pb.Mount(container_path="/img", image=pb.ImageSpec(image=other), readonly=True)])
    assert "same" in pod.output("c") and st.exit_code == 1
    assert "Read-only" in pod.output("c", "stderr")
    daemon.client.RemoveContainer(container_id=st.id)
    daemon.client.RemoveImage(image=pb.ImageSpec(image=other))


def test_sysctls(daemon, make_pod):
    pod = make_pod(linux=linux(pid=NODE, sysctls={"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}))
    st = pod.run("c", "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shm_rmid_forced", pid=NODE)
    assert st.exit_code == 0 and pod.output("c") == "1\n1\n"
    assert Path("/proc/sys/kernel/shm_rmid_forced").read_text() == "0\n"
    for modes, key in (({"network": NODE}, "net.ipv4.ip_forward"), ({"pid": NODE}, "vm.swappiness"),
                       ({"ipc": NODE}, "kernel.shmmax")):
        with pytest.raises(grpc.RpcError) as e:
            daemon.run_pod(sandbox_config("s", linux=linux(sysctls={key: "1"}, **modes)))
        assert key in e.value.details()


def test_image_tree(daemon, images, make_pod):
    """The tree of an image is made once, is what its forty layers mean, and goes with the image."""
    trees = daemon.state / "images" / "trees"
    name = images["layers40"]
    daemon.client.PullImage(image={"image": name})
    ref = pb.ImageSpec(image=name)
    pod = make_pod(linux=linux(network=NODE), image=name)
    before = set(trees.iterdir())
    st = pod.run("x", "sh", "-c", "find t -type f | while read f; do echo \"== $f\"; cat \"$f\"; done", working_dir="/")
    assert st.exit_code == 0
    made = set(trees.iterdir()) - before
    assert len(made) == 1
    have = {}
    for part in pod.output("x").split("== ")[1:]:
        path, text = part.split("\n", 1)
        have[path] = text
    assert have == im.layered()[1]
    used = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    pod.start("d", "sleep", "1000")
    assert set(trees.iterdir()) - before == made
    with pytest.raises(grpc.RpcError):
        daemon.client.RemoveImage(image=ref)
    pod.remove()
    daemon.client.RemoveImage(image=ref)
    assert set(trees.iterdir()) == before
    assert daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value < used - (1 << 20)
    # and again, as new
    daemon.client.PullImage(image={"image": name})
    pod = make_pod(linux=linux(network=NODE), image=name)
    assert pod.run("c", "cat", "/t/same").exit_code == 0
    pod.remove()
    daemon.client.RemoveImage(image=ref)


def test_image_removed_and_pulled_again_under_a_pod(daemon, images, make_pod):
    """A pod that lives on gets the new tree, not what is left of the old one."""
    name = images["layers40"]
    ref = pb.ImageSpec(image=name)
    pod = make_pod(linux=linux(network=NODE))
    for attempt in range(2):
        daemon.client.PullImage(image={"image": name})
        st = pod.run("c", "cat", "/t/same", image=name, attempt=attempt)
        assert st.exit_code == 0 and "same" in pod.output("c", attempt=attempt)
        daemon.client.RemoveContainer(container_id=st.id)
        daemon.client.RemoveImage(image=ref)


def test_tree_keeps_attributes(daemon, make_pod, tmp_path, registry):
    """Owners, modes, times, hard links, devices, fifos, capabilities."""
    t = im.Tar()
    t._tar.addfile(tar_info("suid", mode=0o4755, uid=12, gid=34, size=4), io.BytesIO(b"suid"))
    t._tar.addfile(tar_info("dir", type=tarfile.DIRTYPE, mode=0o1777))
    t._tar.addfile(tar_info("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666))
    t._tar.addfile(tar_info("pipe", type=tarfile.FIFOTYPE, mode=0o600))
    t._tar.addfile(tar_info("hard", type=tarfile.LNKTYPE, linkname="suid"))
    t._tar.addfile(tar_info("soft", type=tarfile.SYMTYPE, linkname="/suid", uid=5, gid=6))
    cap = tar_info("cap", size=1, mode=0o755)
    cap.pax_headers = {"SCHILY.xattr.user.note": "hello",
                       "SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"}
    t._tar.addfile(cap, io.BytesIO(b"c"))
    big = b"x" + bytes(8 << 20) + b"y"
    t._tar.addfile(tar_info("big", size=len(big)), io.BytesIO(big))
    layout = im.Layout(tmp_path / "odd")
    layout.tag(layout.image([im.mkimage.busybox_layer(), t.done()]))
    ref = registry.push(layout.dir, "test/attributes")
    daemon.client.PullImage(image={"image": ref})
    pod = make_pod(linux=linux(network=NODE), image=ref)
    st = pod.run("c", "sh", "-c", "stat -c '%n %f %u %g %h %Y %t %T' suid dir null pipe hard soft cap; md5sum big; readlink soft",
                 working_dir="/")
    out = pod.output("c")
    want = hashlib.md5(big).hexdigest()
    assert st.exit_code == 0, out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["suid"][:5] == ["89ed", "12", "34", "2", "1000000000"] and rows["hard"][:4] == rows["suid"][:4]
    assert rows["dir"][0] == "43ff" and rows["null"][0] == "21b6" and rows["null"][5:] == ["1", "3"]
    assert rows["pipe"][0] == "1180" and rows["soft"][:3] == ["a1ff", "5", "6"]
    assert rows[want] == ["big"]
    (tree,) = [p for p in (daemon.state / "images" / "trees").iterdir() if (p / "root" / "cap").exists()]
    assert os.getxattr(tree / "root" / "cap", "user.note") == b"hello"
    assert os.getxattr(tree / "root" / "cap", "security.capability")[:4] == b"\x01\0\0\x02"
    pod.remove()
    daemon.client.RemoveImage(image=pb.ImageSpec(image=ref))


def tar_info(name, **fields):
    i = tarfile.TarInfo(name)
    i.mtime = 1000000000
    i.mode = 0o644
    for k, v in fields.items():
        setattr(i, k, v)
    return i


# --- streaming: the same tests as for VMs ---

@pytest.fixture
def pod(make_pod):
    return make_pod(handler="aspis-host")


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


# --- faults ---

def test_restart_adopts(daemon, make_pod):
    """kill -9 of the daemon: the pod runs on, no line is lost, an exit meanwhile is told, exec works after."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    c = pod.start("c", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
    ends = pod.start("ends", "sh", "-c", "sleep 1; exit 5")
    agent = daemon.agent_pids()
    within(5, lambda: pod.output("c").count("\n") > 5)
    daemon.kill()
    time.sleep(1.5)
    daemon.start()
    assert daemon.agent_pids() == agent
    assert pod.status().state == pb.SANDBOX_READY
    assert daemon.wait_state(ends, pb.CONTAINER_EXITED).exit_code == 5
    assert daemon.exec(c, "echo", "hello").stdout == b"hello\n"
    n = pod.output("c").count("\n")
    within(5, lambda: pod.output("c").count("\n") > n)
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert [int(x) for x in pod.output("c").split()] == list(range(1, pod.output("c").count("\n") + 1))
    d = pod.run("d", "echo", "new")
    assert d.exit_code == 0
    assert info(daemon, pod.id)["backend"] == "host"


def test_agent_killed(daemon, make_pod):
    """The supervisor's death is the pod's: NOTREADY within a second, and its containers are not left alone."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    c = pod.start("c", "sh", "-c", "sleep 4321 & sleep 4322")
    agent = daemon.agent_pids()
    assert len(agent) == 1
    os.kill(agent[0], signal.SIGKILL)
    within(10, lambda: pod.status().state == pb.SANDBOX_NOTREADY)
    st = daemon.wait_state(c, pb.CONTAINER_EXITED, timeout=5)
    assert st.exit_code == 255 or st.exit_code == 137, st
    within(10, lambda: "sleep 432" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout)
    assert "agent" in info(daemon, pod.id)["reason"]


def test_agent_killed_while_the_daemon_is_away(daemon, make_pod):
    pod = make_pod(hostname="", linux=linux(network=NODE))
    c = pod.start("c", "sh", "-c", "sleep 4323 & sleep 4324")
    agent = daemon.agent_pids()
    daemon.kill()
    os.kill(agent[0], signal.SIGKILL)
    daemon.start()
    assert pod.status().state == pb.SANDBOX_NOTREADY
    assert daemon.status(c).state == pb.CONTAINER_EXITED
    within(10, lambda: "sleep 432" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout)


def test_lost_record(daemon, make_pod):
    """A daemon that died between the agent's start and the record leaves an agent that only its name tells."""
    pod = make_pod(hostname="", linux=linux(network=NODE))
    pod.start("c", "sleep", "4325")
    assert len(daemon.agent_pids()) == 1
    daemon.kill()
    import sqlite3
    for name in daemon.state.glob("*.db"):
        db = sqlite3.connect(name)
        for (table,) in db.execute("select name from sqlite_master where type='table'").fetchall():
            if table in ("sandboxes", "containers"):
                db.execute(f"delete from {table}")
        db.commit()
        db.close()
    daemon.start()
    pod.gone = True
    within(5, lambda: not daemon.agent_pids())
    assert "sleep 4325" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_failed_start_leaves_nothing(own_daemon, images, tmp_path):
    agent = tmp_path / "aspis-agent"
    agent.write_text("#!/bin/sh\necho cannot today >&2\nexit 3\n")
    agent.chmod(0o755)
    d = own_daemon(overrides={"machine": {"agent": str(agent), "boot_timeout_seconds": 20}}).start()
    with pytest.raises(grpc.RpcError) as e:
        d.run_pod(sandbox_config("f", linux=linux(network=NODE)))
    assert "cannot today" in e.value.details() and "exit status 3" in e.value.details(), e.value.details()
    assert not d.client.ListPodSandbox().items
