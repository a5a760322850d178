"""The whole life of a pod, and what its containers see and say."""
import concurrent.futures
import re
import subprocess
import time

import grpc
import pytest

from cri import container_config, pb, sandbox_config
from daemon import GATEWAY4, GATEWAY6


def code_of(excinfo):
    return excinfo.value.code()


def test_version_and_status(daemon):
    v = daemon.client.Version(version="v1")
    assert (v.runtime_name, v.runtime_api_version) == ("aspis", "v1")
    assert v.version and v.runtime_version
    r = daemon.client.Status(verbose=True)
    conditions = {c.type: c for c in r.status.conditions}
    assert conditions["RuntimeReady"].status, conditions["RuntimeReady"]
    assert conditions["NetworkReady"].status, conditions["NetworkReady"]
    assert "" in [h.name for h in r.runtime_handlers]
    assert all(h.features.user_namespaces for h in r.runtime_handlers if h.name in ("", "aspis-vm"))
    assert '"accelerator": "tcg"' in r.info["config"]
    assert daemon.client.RuntimeConfig().linux.cgroup_driver == pb.CGROUPFS
    daemon.client.UpdateRuntimeConfig(
        runtime_config=pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.1.0.0/16")))


def test_life_of_a_pod_with_two_containers(daemon, make_pod):
    labels = {"app": "web", "weird": "a;b ,c\n\u00fc"}
    notes = {"note": "x" * 5000}
    pod = make_pod("life", labels=labels, annotations=notes)
    st = pod.status()
    assert st.state == pb.SANDBOX_READY
    assert dict(st.labels) == labels and dict(st.annotations) == notes
    assert st.metadata == pod.config.metadata
    assert st.network.ip.startswith(GATEWAY4[:-1]) and len(st.network.additional_ips) == 1
    assert st.linux.namespaces.options.pid == pb.CONTAINER

    a = pod.create("a", "sh", "-c", "echo out; echo err >&2; sleep 1000", labels=labels)
    b = pod.create("b", "sh", "-c", "sleep 1000")
    assert daemon.status(a).state == pb.CONTAINER_CREATED
    listed = daemon.client.ListContainers(filter={"pod_sandbox_id": pod.id}).containers
    assert {c.id for c in listed} == {a, b}
    for c in (a, b):
        daemon.client.StartContainer(container_id=c)
        s = daemon.status(c)
        assert s.state == pb.CONTAINER_RUNNING and s.started_at >= s.created_at > 0
        assert s.image_ref and s.image.image
    assert dict(daemon.status(a).labels) == labels

    # both share the network and the hostname, each has its own processes
    assert daemon.exec(a, "hostname").stdout == b"life\n"
    daemon.exec(a, "sh", "-c", "echo shared > /dev/shm/x")
    assert daemon.exec(b, "cat", "/dev/shm/x").stdout == b"shared\n"
    assert b"sleep 1000" in daemon.exec(b, "ps").stdout
    assert daemon.exec(b, "sh", "-c", "ps | grep -c '[e]cho out' || true").stdout == b"0\n"

    daemon.client.StopContainer(container_id=b, timeout=0)
    s = daemon.status(b)
    assert (s.state, s.exit_code, s.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert s.finished_at >= s.started_at
    daemon.client.RemoveContainer(container_id=b)
    with pytest.raises(grpc.RpcError) as e:
        daemon.status(b)
    assert code_of(e) == grpc.StatusCode.NOT_FOUND

    assert re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F out$", pod.log("a").splitlines()[0])
    assert sorted(pod.output("a", s) for s in ("stdout", "stderr")) == ["err\n", "out\n"]

    daemon.client.StopPodSandbox(pod_sandbox_id=pod.id)
    daemon.client.StopPodSandbox(pod_sandbox_id=pod.id)
    assert pod.status().state == pb.SANDBOX_NOTREADY
    s = daemon.status(a)
    assert (s.state, s.exit_code) == (pb.CONTAINER_EXITED, 137)
    daemon.client.RemovePodSandbox(pod_sandbox_id=pod.id)
    daemon.client.RemovePodSandbox(pod_sandbox_id=pod.id)
    pod.gone = True
    with pytest.raises(grpc.RpcError) as e:
        pod.status()
    assert code_of(e) == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("script, code, reason", [
    ("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -9 $$", 137, "Error"),
    ("kill -15 $$", 143, "Error"), ("kill -SEGV $$", 139, "Error")])
def test_exit_codes(pod, script, code, reason):
    # a shell as PID 1 ignores signals it has no handler for; its child does not
    s = pod.run("x", "sh", "-c", f"sh -c '{script}'; c=$?; exit $c" if "kill" in script else script)
    assert (s.exit_code, s.reason) == (code, reason)


def test_init_killed_by_signal(daemon, pod):
    c = pod.start("x", "sleep", "1000")
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert daemon.status(c).exit_code == 137


def test_stop_uses_the_stop_signal_and_the_grace(daemon, pod):
    polite = pod.start("polite", "sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done")
    stubborn = pod.start("stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    time.sleep(1)
    daemon.client.StopContainer(container_id=polite, timeout=20)
    assert daemon.status(polite).exit_code == 3
    assert pod.output("polite") == "bye\n"
    begin = time.monotonic()
    daemon.client.StopContainer(container_id=stubborn, timeout=2)
    assert 2 <= time.monotonic() - begin < 12
    assert daemon.status(stubborn).exit_code == 137
    daemon.client.StopContainer(container_id=stubborn, timeout=2)
    daemon.client.StopContainer(container_id="f" * 64, timeout=2)


def test_out_of_memory(pod):
    s = pod.run("hog", "sh", "-c", "x=a; while :; do x=$x$x$x$x; done",
                resources={"memory_limit_in_bytes": 32 << 20})
    assert (s.exit_code, s.reason) == (137, "OOMKilled")


def test_missing_program_fails_at_once_and_says_why(daemon, pod):
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as e:
        pod.start("bad", "/nope")
    assert time.monotonic() - begin < 20
    assert "/nope" in e.value.details()
    # created as with other runtimes; it is the start that fails, also after a restart of the daemon
    (c,) = daemon.client.ListContainers(filter={"pod_sandbox_id": pod.id}).containers
    s = daemon.status(c.id)
    assert (s.state, s.exit_code, s.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "/nope" in s.message
    later = pod.create("later", "/nope")
    daemon.restart()
    assert daemon.status(later).state == pb.CONTAINER_CREATED
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.StartContainer(container_id=later)
    assert "/nope" in e.value.details()
    daemon.client.RemoveContainer(container_id=later)
    pod.run("good", "true")


def test_exec(daemon, pod):
    c = pod.start("x", "sleep", "1000")
    r = daemon.exec(c, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (r.stdout, r.stderr, r.exit_code) == (b"out\n", b"err\n", 5)
    assert daemon.exec(c, "sh", "-c", "kill -9 $$").exit_code == 137
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec(c, "/nope")
    assert "/nope" in e.value.details() and time.monotonic() - begin < 10
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec(c)
    assert code_of(e) == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec("0" * 64, "true")
    assert code_of(e) == grpc.StatusCode.NOT_FOUND


def test_exec_timeout_kills_the_process(daemon, pod):
    c = pod.start("x", "sleep", "1000")
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec(c, "sh", "-c", "exec sleep 777", timeout=1)
    assert code_of(e) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 15
    assert daemon.exec(c, "sh", "-c", "ps | grep -c '[s]leep 777' || true").stdout == b"0\n"
    # a client that gives up leaves nothing running either
    with pytest.raises(grpc.RpcError):
        daemon.client.ExecSync(container_id=c, cmd=["sh", "-c", "exec sleep 778"], deadline=1)
    deadline = time.monotonic() + 10
    while daemon.exec(c, "sh", "-c", "ps | grep -c '[s]leep 778' || true").stdout != b"0\n":
        assert time.monotonic() < deadline


def test_exec_output_is_complete_and_capped(daemon, pod):
    c = pod.start("x", "sleep", "1000")
    r = daemon.exec(c, "sh", "-c", "seq 1 100000; seq 1 50000 >&2")
    assert r.stdout == b"".join(b"%d\n" % i for i in range(1, 100001))
    assert r.stderr == b"".join(b"%d\n" % i for i in range(1, 50001))
    r = daemon.exec(c, "sh", "-c", "dd if=/dev/zero bs=1M count=20 2>/dev/null")
    assert r.exit_code == 0 and 1 << 20 < len(r.stdout) < 16 << 20


def test_exec_in_a_stopped_container(daemon, pod):
    c = pod.start("x", "true")
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    with pytest.raises(grpc.RpcError) as e:
        daemon.exec(c, "true")
    assert code_of(e) == grpc.StatusCode.FAILED_PRECONDITION


def test_big_log_is_complete_before_exited(pod):
    pod.run("x", "seq", "1", "200000")
    lines = [line.split(" ", 3)[3] for line in pod.log("x").splitlines()]
    assert lines == [str(i) for i in range(1, 200001)]


def test_log_long_lines_and_no_newline(pod):
    pod.run("x", "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' a; echo; printf end")
    parts = [line.split(" ", 3) for line in pod.log("x").splitlines()]
    assert [p[2] for p in parts] == ["P", "P", "F", "F"]
    assert "".join(p[3] for p in parts[:3]) == "a" * 40000
    assert parts[3][3] == "end"


def test_reopen_log_loses_nothing(daemon, pod):
    c = pod.start("x", "sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done; sleep 1000")
    path = pod.logs / "x" / "0.log"
    for n in range(3):
        time.sleep(0.3)
        path.rename(path.with_suffix(f".{n}"))
        daemon.client.ReopenContainerLog(container_id=c)
        assert path.exists()
    deadline = time.monotonic() + 60
    while True:
        lines = []
        for p in [path.with_suffix(f".{n}") for n in range(3)] + [path]:
            lines += [line.split(" ", 3)[3] for line in p.read_text().splitlines()]
        if len(lines) >= 3000 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert lines == [str(i) for i in range(1, 3001)]
    daemon.client.StopContainer(container_id=c, timeout=0)
    with pytest.raises(grpc.RpcError) as e:
        daemon.client.ReopenContainerLog(container_id=c)
    assert code_of(e) == grpc.StatusCode.FAILED_PRECONDITION


def test_tty_and_stdin_containers(daemon, pod):
    c = pod.start("t", "sh", "-c", "test -t 1 && echo terminal; sleep 1000", tty=True)
    deadline = time.monotonic() + 20
    while "terminal" not in pod.log("t"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    daemon.client.StopContainer(container_id=c, timeout=0)
    # nobody attaches: an open stdin must not read as ended
    c = pod.start("i", "sh", "-c", "read x; echo ended", stdin=True)
    time.sleep(1.5)
    assert daemon.status(c).state == pb.CONTAINER_RUNNING
    s = pod.run("n", "sh", "-c", "read x; echo ended")
    assert s.exit_code == 0 and pod.output("n") == "ended\n"


def test_env_command_args_and_workdir(pod):
    pod.run("x", "sh", "-c", 'echo "$A|$HOSTNAME|$(pwd)|$0"', args=["zero"], working_dir="/new/dir",
            envs=[{"key": "A", "value": b"x y=z"}])
    assert pod.output("x").startswith("x y=z|") and pod.output("x").endswith("|/new/dir|zero\n")


def test_users_and_groups(daemon, pod):
    def identity(name, **security):
        s = pod.run(name, "id", security=security)
        return pod.output(name).strip(), s.user.linux

    text, user = identity("root")
    assert text.startswith("uid=0(root) gid=0(root)") and (user.uid, user.gid) == (0, 0)
    text, user = identity("num", run_as_user={"value": 4321}, run_as_group={"value": 77},
                          supplemental_groups=[5, 6])
    assert "uid=4321 gid=77" in text
    assert set(re.sub(r"\([^)]*\)", "", text).split("groups=")[1].split(",")) == {"77", "5", "6"}
    assert (user.uid, user.gid) == (4321, 77) and set(user.supplemental_groups) >= {5, 6}
    text, user = identity("name", run_as_username="nobody")
    assert "(nobody)" in text and user.uid != 0
    with pytest.raises(grpc.RpcError) as e:
        pod.run("ghost", "id", security={"run_as_username": "ghost"})
    assert "ghost" in e.value.details()
    with pytest.raises(grpc.RpcError) as e:
        pod.run("grp", "id", security={"run_as_group": {"value": 5}})
    assert code_of(e) == grpc.StatusCode.INVALID_ARGUMENT


def test_read_only_root_and_capabilities(pod):
    s = pod.run("ro", "sh", "-c", "echo x > /file", security={"readonly_rootfs": True})
    assert s.exit_code != 0 and "Read-only" in pod.output("ro", "stderr")
    pod.run("caps", "grep", "CapEff", "/proc/self/status",
            security={"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_ADMIN"]}})
    assert int(pod.output("caps").split()[1], 16) == 1 << 12


def test_shared_process_namespace(daemon, make_pod):
    pod = make_pod("shared")
    a = pod.start("a", "sleep", "4242", pid=pb.POD)
    b = pod.start("b", "sleep", "1000", pid=pb.POD)
    assert b"sleep 4242" in daemon.exec(b, "ps").stdout
    daemon.client.StopContainer(container_id=a, timeout=0)
    assert b"sleep 4242" not in daemon.exec(b, "ps").stdout


def test_dns_files_and_hostname(daemon, make_pod):
    pod = make_pod("dns", dns_config={"servers": ["10.0.0.53"], "searches": ["a.example", "b.example"],
                                      "options": ["ndots:5"]})
    c = pod.start("x", "sleep", "1000")
    text = daemon.exec(c, "cat", "/etc/resolv.conf").stdout.decode()
    assert text == "search a.example b.example\nnameserver 10.0.0.53\noptions ndots:5\n"
    assert daemon.exec(c, "cat", "/etc/hostname").stdout == b"dns\n"
    hosts = daemon.exec(c, "cat", "/etc/hosts").stdout.decode()
    assert f"{pod.status().network.ip}\tdns" in hosts
    shm = daemon.exec(c, "df", "-k", "/dev/shm").stdout.decode()
    assert "65536" in shm


def test_network_both_ways(daemon, pod):
    c = pod.start("web", "sh", "-c", "mkdir -p /www && echo hello > /www/index.html && httpd -f -p 8080 -h /www")
    ip4 = pod.status().network.ip
    ip6 = pod.status().network.additional_ips[0].ip
    for url in (f"http://{ip4}:8080/", f"http://[{ip6}]:8080/"):
        out = subprocess.run(["curl", "-sS", "--max-time", "20", "--retry", "20", "--retry-connrefused",
                              "--retry-delay", "1", "--noproxy", "*", url], capture_output=True, text=True)
        assert out.stdout == "hello\n", out.stderr
    # pod to host: the bridge's own addresses
    for gateway in (GATEWAY4, GATEWAY6):
        r = daemon.exec(c, "ping", "-c", "1", "-W", "5", gateway)
        assert r.exit_code == 0, r
    mtu = daemon.exec(c, "cat", "/sys/class/net/eth0/mtu").stdout
    assert mtu == b"1500\n"


def test_pod_to_pod(daemon, make_pod):
    a, b = make_pod("a"), make_pod("b")
    a.start("web", "sh", "-c", "mkdir -p /www && echo hi > /www/index.html && httpd -f -p 80 -h /www")
    c = b.start("x", "sleep", "1000")
    # not wget: Debian's static busybox crashes in it
    script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {a.status().network.ip} 80"
    deadline = time.monotonic() + 30
    r = daemon.exec(c, "sh", "-c", script)
    while r.exit_code != 0 and time.monotonic() < deadline:  # it does not listen yet
        time.sleep(0.2)
        r = daemon.exec(c, "sh", "-c", script)
    assert r.stdout.endswith(b"\r\n\r\nhi\n"), r


def test_ten_pods_at_once(daemon, make_pod, images):
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        pods = list(pool.map(lambda i: make_pod(f"many{i}"), range(10)))
        assert len({p.status().network.ip for p in pods}) == 10
        done = list(pool.map(lambda p: p.run("x", "hostname"), pods))
    assert all(s.exit_code == 0 for s in done)
    assert [p.output("x") for p in pods] == [f"many{i}\n" for i in range(10)]
    assert len(daemon.client.ListPodSandbox(filter={"state": {"state": pb.SANDBOX_READY}}).items) == 10


def test_same_sandbox_sixteen_times(daemon):
    config = sandbox_config("same")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda _: daemon.run_pod(config), range(16)))
    assert len(set(ids)) == 1
    daemon.client.StopPodSandbox(pod_sandbox_id=ids[0])
    daemon.client.RemovePodSandbox(pod_sandbox_id=ids[0])


def test_filters(daemon, make_pod):
    a = make_pod("fa", labels={"k": "1", "both": "x"})
    b = make_pod("fb", labels={"k": "2", "both": "x"})

    def ids(**f):
        return {s.id for s in daemon.client.ListPodSandbox(filter=f).items}

    assert ids(label_selector={"k": "1"}) == {a.id}
    assert ids(label_selector={"both": "x"}) >= {a.id, b.id}
    assert ids(label_selector={"k": "1", "both": "y"}) == set()
    assert ids(id=a.id) == {a.id} and ids(id="0" * 64) == set()
    c = a.create("x", "true", labels={"c": "1"})
    assert [x.id for x in daemon.client.ListContainers(filter={"label_selector": {"c": "1"}}).containers] == [c]
    assert not daemon.client.ListContainers(
        filter={"id": c, "state": {"state": pb.CONTAINER_RUNNING}}).containers


def test_container_writes_are_its_own_and_gone_with_it(daemon, pod):
    a = pod.start("a", "sh", "-c", "echo mine > /marker; rm /etc/passwd; sleep 1000")
    time.sleep(0.5)
    b = pod.start("b", "sleep", "1000")
    assert daemon.exec(b, "sh", "-c", "test -e /marker").exit_code == 1
    assert daemon.exec(b, "test", "-s", "/etc/passwd").exit_code == 0
    assert daemon.exec(a, "cat", "/marker").stdout == b"mine\n"
    daemon.client.StopContainer(container_id=a, timeout=0)
    daemon.client.RemoveContainer(container_id=a)
    a = pod.start("a", "sleep", "1000", attempt=1)
    assert daemon.exec(a, "sh", "-c", "test -e /marker").exit_code == 1
