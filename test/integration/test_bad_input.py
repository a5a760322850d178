"""What a client, an administrator or a full disk can do wrong: a clear error with the right code, nothing left behind, and
the same call works once the cause is gone."""
import json
import os
import stat
import time

import grpc
import pytest

from cri import METHODS, container_config, pb, sandbox_config
from daemon import ALONE

pytestmark = pytest.mark.once("refusals, long before a pod is made")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def fails(call, *args, **kw):
    with pytest.raises(grpc.RpcError) as e:
        call(*args, **kw)
    return e.value


def test_unknown_ids(daemon):
    c = daemon.client
    nobody = "f" * 64
    assert fails(c.PodSandboxStatus, pod_sandbox_id=nobody).code() == NOT_FOUND
    assert fails(c.ContainerStatus, container_id=nobody).code() == NOT_FOUND
    assert fails(c.StartContainer, container_id=nobody).code() == NOT_FOUND
    assert fails(c.ReopenContainerLog, container_id=nobody).code() == NOT_FOUND
    e = fails(c.CreateContainer, pod_sandbox_id=nobody, config=container_config("x", "busybox"))
    assert e.code() == NOT_FOUND and nobody in e.details()
    c.StopPodSandbox(pod_sandbox_id=nobody)
    c.RemovePodSandbox(pod_sandbox_id=nobody)
    c.RemoveContainer(container_id=nobody)
    assert not c.ImageStatus(image={"image": "no/such:image"}).HasField("image")
    c.RemoveImage(image={"image": "no/such:image"})


def test_empty_fields(daemon):
    c = daemon.client
    assert fails(c.PodSandboxStatus, pod_sandbox_id="").code() == INVALID
    assert fails(c.StopContainer, container_id="").code() == INVALID
    assert fails(c.RunPodSandbox).code() == INVALID
    e = fails(c.RunPodSandbox, config=pb.PodSandboxConfig())
    assert e.code() == INVALID and "metadata" in e.details()
    bad = sandbox_config("x")
    bad.metadata.name = ""
    assert "metadata.name" in fails(c.RunPodSandbox, config=bad).details()
    assert fails(c.PullImage, image={"image": ""}).code() == INVALID


@pytest.mark.parametrize("name", ["a;b", "x" * 300, "line\nbreak"])
def test_names_that_cannot_be(daemon, name):
    assert fails(daemon.client.RunPodSandbox, config=sandbox_config(name, hostname="h")).code() == INVALID


def test_broken_wire_data(daemon):
    path = METHODS["RunPodSandbox"][0]
    good = pb.RunPodSandboxRequest(config=sandbox_config("abc")).SerializeToString()
    for data in (b"\xff" * 100, good[:-3], good.replace(b"abc", b"a\xffc", 1), good.replace(b"abc", b"a\0c", 1)):
        assert fails(daemon.client.raw, path, data).code() == INVALID
    long = pb.RunPodSandboxRequest(config=sandbox_config("x" * (1 << 20)))
    assert fails(daemon.client.RunPodSandbox, long).code() == INVALID
    # 2 MiB of empty map entries want 117 MB of memory when unpacked
    entry = bytes([0x32, 0x00])
    inner = entry * (1 << 20)
    request = b"\x0a" + _varint(len(inner)) + inner
    with open(f"/proc/{daemon.proc.pid}/clear_refs", "w") as f:
        f.write("5")  # the peak begins anew
    before = peak(daemon)
    assert fails(daemon.client.raw, path, request).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak(daemon) - before < 64 << 10
    assert fails(daemon.client.raw, path, bytes(20 << 20)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert fails(daemon.client.raw, "/runtime.v1.RuntimeService/Nope", b"").code() == grpc.StatusCode.UNIMPLEMENTED
    assert fails(daemon.client.raw, "/nope", b"").code() == grpc.StatusCode.UNIMPLEMENTED
    daemon.client.Version()


def peak(daemon):
    """The most KiB of memory that the daemon had."""
    with open(f"/proc/{daemon.proc.pid}/status") as f:
        return int(f.read().split("VmHWM:")[1].split()[0])


def _varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return out


def test_the_unbuilt_method_says_so_and_no_other(daemon):
    assert len(METHODS) == 43
    for name, (path, _, _) in METHODS.items():
        if name.startswith("Stream") or name == "GetContainerEvents":
            continue  # they do not end; test_events.py and test_stats.py have them
        try:
            daemon.client.raw(path, b"")
        except grpc.RpcError as e:
            assert (e.code() == grpc.StatusCode.UNIMPLEMENTED) == (name == "CheckpointContainer"), (name, e.details())
            assert name != "CheckpointContainer" or name in e.details()
        else:
            assert name != "CheckpointContainer"


def test_what_a_vm_pod_cannot_be(daemon):
    run = daemon.client.RunPodSandbox
    assert "no-such" in fails(run, config=sandbox_config("h"), runtime_handler="no-such").details()
    for options in ({"network": pb.NODE}, {"pid": pb.NODE}, {"ipc": pb.NODE}):
        linux = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(**options)))
        e = fails(run, config=sandbox_config("h", linux=linux), runtime_handler="aspis-vm")
        assert e.code() == grpc.StatusCode.FAILED_PRECONDITION and "NODE" in e.details()


def test_container_configs_that_fail_leave_nothing(daemon, pod):
    image = pod.image

    def create(config):
        return fails(daemon.client.CreateContainer, pod_sandbox_id=pod.id, config=config,
                     sandbox_config=pod.config)

    e = create(container_config("x", "no/such:image"))
    assert e.code() == NOT_FOUND and "no/such" in e.details()
    assert create(container_config("", image, ["true"])).code() == INVALID
    assert create(pb.ContainerConfig()).code() == INVALID
    assert create(container_config("x", image, ["true"], working_dir="relative")).code() == INVALID
    assert create(container_config("x", image, ["true"], envs=[{"key": "a=b", "value": b""}])).code() == INVALID
    assert create(container_config("x", image, ["true"], envs=[{"key": "A", "value": b"\xff\xfe"}])).code() == INVALID
    e = create(container_config("x", image, ["true"], log_path="../../etc/x"))
    assert e.code() == INVALID and "log_path" in e.details()
    e = create(container_config("x", image, ["true"],
                                security={"capabilities": {"add_capabilities": ["FLY"]}}))
    assert e.code() == INVALID and "FLY" in e.details()
    e = create(container_config("x", image, ["true"], mounts=[
        pb.Mount(container_path="/fine", host_path=str(daemon.base)),
        pb.Mount(container_path="/x", host_path="/dev/zero")]))
    assert e.code() == grpc.StatusCode.UNIMPLEMENTED and "/dev/zero" in e.details()
    assert not daemon.client.ListContainers(filter={"pod_sandbox_id": pod.id}).containers
    # the same name works at once
    assert pod.run("x", "true").exit_code == 0
    c = pod.create("twice", "true")
    e = create(container_config("twice", image, ["true"]))
    assert e.code() == grpc.StatusCode.ALREADY_EXISTS and c[:12] in e.details()


def test_every_string_is_data(daemon, make_pod):
    """S5: nothing a client writes is interpreted on the way."""
    nasty = 'a,b=c;$(touch /tmp/pwned) `id` "q" \'s\' \\ \t %s %n ../.. \u00fc\U0001f600'
    pod = make_pod("nasty", labels={nasty: nasty}, annotations={nasty: nasty})
    assert dict(pod.status().labels) == {nasty: nasty}
    pod.run("x", "printf", "%s", args=[nasty + "\nsecond"], labels={"l": nasty},
            envs=[{"key": "N", "value": nasty.encode()}])
    assert pod.output("x") == nasty + "\nsecond\n"
    assert not os.path.exists("/tmp/pwned")


def test_no_cni_configuration(own_daemon, images):
    d = own_daemon(network=False)
    d.start()
    conditions = {c.type: c for c in d.client.Status().status.conditions}
    assert conditions["RuntimeReady"].status and not conditions["NetworkReady"].status
    assert conditions["NetworkReady"].message
    e = fails(d.client.RunPodSandbox, config=sandbox_config("x"))
    assert "network" in e.details().lower()
    assert not d.client.ListPodSandbox().items and not d.qemu_pids()
    # a broken file is told, a good one is taken without a restart
    (d.cni_conf / "05-broken.conflist").write_text("{ this is not json")
    d.write_network()
    deadline = time.monotonic() + 10
    while not {c.type: c for c in d.client.Status().status.conditions}["NetworkReady"].status:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    d.run_pod(sandbox_config("x"))


def plugin(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("body, words", [
    ("exec sleep 1000", "hang"),
    ("cat >/dev/null; echo rubbish; echo 'my own words' >&2; exit 1", "my own words"),
    ("cat >/dev/null; echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"try later\"}'; exit 1", "try later"),
    ("cat >/dev/null; head -c 3000000 /dev/zero; exit 0", "hang"),
    ("cat >/dev/null; echo '{\"cniVersion\":\"1.0.0\",\"ips\":[]}'", "address")])
def test_plugins_that_misbehave(own_daemon, images, body, words):
    d = own_daemon(overrides={"network": {"plugin_timeout_seconds": 2}})
    bin_dir = d.base / "bin"
    bin_dir.mkdir()
    plugin(bin_dir / "bad", "#!/bin/sh\nif [ $CNI_COMMAND = VERSION ]; then "
           "echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'; exit 0; fi\n"
           "if [ $CNI_COMMAND = DEL ]; then exit 0; fi\n" + body + "\n")
    d.overrides["network"]["bin_dirs"] = [str(bin_dir), "/usr/lib/cni"]
    d.write_config()
    d.write_network({"cniVersion": "1.0.0", "name": "bad", "plugins": [{"type": "bad"}]})
    d.start()
    netns = set(os.listdir("/run/netns"))
    begin = time.monotonic()
    e = fails(d.client.RunPodSandbox, config=sandbox_config("x"))
    assert time.monotonic() - begin < 30
    assert words == "hang" or words in e.details(), e.details()
    assert "default/x" in e.details() or "test/x" in e.details()
    assert not ALONE or set(os.listdir("/run/netns")) <= netns
    assert not d.client.ListPodSandbox().items and not d.qemu_pids()
    d.write_network()
    time.sleep(1.5)
    d.run_pod(sandbox_config("x"))


def test_missing_guest_kernel(own_daemon, images):
    d = own_daemon(overrides={"machine": {"kernel": "/nonexistent/vmlinuz"}})
    d.start()
    c = {c.type: c for c in d.client.Status().status.conditions}["RuntimeReady"]
    assert not c.status and "/nonexistent/vmlinuz" in c.message
    e = fails(d.client.RunPodSandbox, config=sandbox_config("x"))
    assert "/nonexistent/vmlinuz" in e.details()
    assert not d.client.ListPodSandbox().items


def test_guest_that_does_not_boot_shows_its_last_words(own_daemon, images):
    d = own_daemon(overrides={"machine": {"boot_timeout_seconds": 15}})
    empty = d.base / "empty.cpio"
    import subprocess
    subprocess.run("printf '' | cpio -o -H newc > " + str(empty), shell=True, check=True, capture_output=True)
    d.overrides["machine"]["initrd"] = str(empty)
    d.write_config()
    d.start()
    begin = time.monotonic()
    e = fails(d.client.RunPodSandbox, config=sandbox_config("x"))
    assert "panic" in e.details().lower() or "VFS" in e.details(), e.details()
    assert time.monotonic() - begin < 40
    assert not d.client.ListPodSandbox().items and not d.qemu_pids()


def test_deadline_of_a_cancelled_run_leaves_nothing(daemon):
    given_up = 0
    for timeout in (0.001, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 1.0):
        try:
            i = daemon.client.RunPodSandbox(config=sandbox_config("short"), deadline=timeout).pod_sandbox_id
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            given_up += 1
        else:  # a clone is there in no time
            daemon.client.StopPodSandbox(pod_sandbox_id=i)
            daemon.client.RemovePodSandbox(pod_sandbox_id=i)
    assert given_up >= 2
    deadline = time.monotonic() + 30
    while daemon.qemu_pids() or daemon.client.ListPodSandbox().items:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    i = daemon.run_pod(sandbox_config("short"))
    daemon.client.StopPodSandbox(pod_sandbox_id=i)
    daemon.client.RemovePodSandbox(pod_sandbox_id=i)


def test_check_says_what_this_machine_can_do(daemon, own_daemon):
    import subprocess
    from daemon import BUILD
    r = subprocess.run([str(BUILD / "cri" / "aspisd"), "--config", str(daemon.config), "--check"],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode == 0, r.stdout + r.stderr
    assert "qemu" in r.stdout.lower() and "kvm" in r.stdout.lower()
    d = own_daemon(overrides={"machine": {"kernel": "/nonexistent/vmlinuz"}})
    r = subprocess.run([str(BUILD / "cri" / "aspisd"), "--config", str(d.config), "--check"],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode != 0 and "/nonexistent/vmlinuz" in r.stdout + r.stderr
    d.config.write_text("[daemon]\nno_such_key = 1\n")
    r = subprocess.run([str(BUILD / "cri" / "aspisd"), "--config", str(d.config), "--check"],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode != 0 and "no_such_key" in r.stderr and "line 2" in r.stderr
