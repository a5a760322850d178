"""What a container may do, tried out: real programs do the forbidden thing in real pods."""
import json
import re
import struct
import subprocess
import time

import grpc
import pytest

from cri import container_config, pb, sandbox_config

DEFAULT = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
UNCONFINED = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)


def localhost(path):
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(path))


def caps(*add, drop=(), ambient=()):
    return pb.Capability(add_capabilities=add, drop_capabilities=drop, add_ambient_capabilities=ambient)


def sh(daemon, container, script):
    """Output and exit code of a script in a container, both outputs together."""
    r = daemon.exec(container, "sh", "-c", f"({script}) 2>&1")
    return r.stdout.decode(errors="replace"), r.exit_code


def field(daemon, container, name):
    out, _ = sh(daemon, container, f"grep '^{name}:' /proc/self/status")
    return out.split()[1]


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- seccomp ----

def test_runtime_default_denies(daemon, pod):
    """The init and what is executed later have the same filter. A new user namespace needs no capability, so it is the
    filter that says no."""
    script = "unshare -U true && echo made || echo refused; sleep 1000"
    pod.start("free", "sh", "-c", script)
    c = pod.start("c", "sh", "-c", script, security={"seccomp": DEFAULT})
    until(lambda: pod.output("free") and pod.output("c"))
    assert (pod.output("free"), pod.output("c")) == ("made\n", "refused\n")
    assert field(daemon, c, "Seccomp") == "2"
    assert sh(daemon, c, "grep Seccomp: /proc/1/status")[0].split()[1] == "2"
    for script in ("unshare -m true", "unshare -U true", "unshare -n true", "mount -t tmpfs x /tmp",
                   "mount --bind / /tmp", "swapoff /dev/null", "hostname other"):
        out, code = sh(daemon, c, script)
        assert code != 0 and re.search("not permitted|denied", out), (script, out)
    out, code = sh(daemon, c, "mkdir /tmp/x && chown 1:1 /tmp/x && ls -d /tmp/x && chroot / true")
    assert code == 0, out


def test_capabilities_open_the_default_profile(daemon, pod):
    c = pod.start("c", "sleep", "1000", security={"seccomp": DEFAULT, "capabilities": caps("SYS_ADMIN")})
    out, code = sh(daemon, c, "unshare -m true && mount -t tmpfs x /tmp && umount /tmp")
    assert code == 0, out


def test_no_profile_is_unconfined(daemon, pod):
    for name, security in (("nil", {}), ("unconfined", {"seccomp": UNCONFINED}),
                           ("old", {"seccomp_profile_path": "unconfined"})):
        c = pod.start(name, "sleep", "1000", security=security)
        assert field(daemon, c, "Seccomp") == "0", name
    c = pod.start("old-default", "sleep", "1000", security={"seccomp_profile_path": "runtime/default"})
    assert field(daemon, c, "Seccomp") == "2"


def test_localhost_profile(daemon, pod, tmp_path):
    profile = tmp_path / "no-mkdir.json"
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}))
    for name, security in (("new", {"seccomp": localhost(profile)}),
                           ("old", {"seccomp_profile_path": f"localhost/{profile}"})):
        c = pod.start(name, "sleep", "1000", security=security)
        out, code = sh(daemon, c, "mkdir /tmp/x")
        assert code != 0 and "quota" in out.lower(), out
        assert sh(daemon, c, "touch /tmp/y")[1] == 0
    # Docker's form: conditions on capabilities
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO",
                      "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}))
    c = pod.start("without", "sleep", "1000", security={"seccomp": localhost(profile)})
    assert sh(daemon, c, "chmod 400 /tmp")[1] != 0
    c = pod.start("with", "sleep", "1000",
                  security={"seccomp": localhost(profile), "capabilities": caps("SYS_ADMIN")})
    assert sh(daemon, c, "chmod 1777 /tmp")[1] == 0


def test_killed_by_the_profile(daemon, pod, tmp_path):
    profile = tmp_path / "kill.json"
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]}))
    c = pod.start("c", "sleep", "1000", security={"seccomp": localhost(profile)})
    assert daemon.exec(c, "mkdir", "/tmp/x").exit_code == 128 + 31


@pytest.mark.parametrize("text, says", [
    (None, "No such file"), ("{", "line 1"), ('{"defaultAction": "SCMP_ACT_MAYBE"}', "SCMP_ACT_MAYBE"),
    ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "listener"), ("x" * (2 << 20), "profile")],
    ids=["missing", "cut", "action", "notify", "large"])
def test_bad_profile_is_named(pod, tmp_path, text, says):
    profile = tmp_path / "bad profile.json"
    if text is not None:
        profile.write_text(text)
    with pytest.raises(grpc.RpcError) as e:
        pod.create("c", "true", security={"seccomp": localhost(profile)})
    assert str(profile) in e.value.details() and says in e.value.details()


def test_bad_profile_of_a_pod(daemon, tmp_path):
    config = sandbox_config("bad", linux=pb.LinuxPodSandboxConfig(
        security_context=pb.LinuxSandboxSecurityContext(seccomp=localhost(tmp_path / "none.json"))))
    with pytest.raises(grpc.RpcError) as e:
        daemon.run_pod(config)
    assert str(tmp_path / "none.json") in e.value.details()


# ---- namespaces ----

def userns(host_id=65536, length=65536):
    m = [pb.IDMapping(container_id=0, host_id=host_id, length=length)]
    return pb.UserNamespace(mode=pb.POD, uids=m, gids=m)


def pod_linux(**namespaces):
    return pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(
        namespace_options=pb.NamespaceOption(**{"pid": pb.CONTAINER, **namespaces})))


def with_namespaces(pod, name, *command, security=None, **namespaces):
    """Creates and starts a container with these namespace options."""
    config = container_config(name, pod.image, command, security=security)
    config.linux.security_context.namespace_options.CopyFrom(
        pb.NamespaceOption(**{"pid": pb.CONTAINER, **namespaces}))
    c = pod.daemon.create(pod.id, config, pod.config)
    pod.daemon.client.StartContainer(container_id=c)
    return c


def test_target_sees_the_other_containers_processes(daemon, pod, make_pod):
    target = pod.start("target", "sh", "-c", "sleep 1234; true")
    with pytest.raises(grpc.RpcError) as e:
        with_namespaces(pod, "nobody", "true", pid=pb.TARGET, target_id="f" * 64)
    assert "f" * 64 in e.value.details()
    debug = with_namespaces(pod, "debug", "sleep", "1000", pid=pb.TARGET, target_id=target)
    out, _ = sh(daemon, debug, "ps")
    assert "sleep 1234" in out and "sleep 1000" in out
    assert "sleep 1234" in sh(daemon, debug, "cat /proc/1/cmdline | tr '\\0' ' '")[0]
    assert sh(daemon, debug, "cat /proc/1/root/etc/hostname")[0] != ""
    other = make_pod("other")
    with pytest.raises(grpc.RpcError) as e:
        with_namespaces(other, "foreign", "true", pid=pb.TARGET, target_id=target)
    assert "has no container" in e.value.details()
    # its end is the target's
    daemon.client.StopContainer(container_id=target, timeout=0)
    s = daemon.wait_state(debug, pb.CONTAINER_EXITED)
    assert s.exit_code == 137
    with pytest.raises(grpc.RpcError) as e:
        with_namespaces(pod, "late", "true", pid=pb.TARGET, target_id=target)
    assert "not running" in e.value.details()


def test_user_namespace(daemon, make_pod):
    pod = make_pod("mapped", linux=pod_linux(userns_options=userns()))
    c = with_namespaces(pod, "c", "sleep", "1000", userns_options=userns(), security={"seccomp": DEFAULT})
    assert sh(daemon, c, "cat /proc/self/uid_map")[0].split() == ["0", "65536", "65536"]
    assert sh(daemon, c, "id -u; id -g")[0].split() == ["0", "0"]
    # files are those of the image, owned by who owns them there, and new ones are the container's
    assert sh(daemon, c, "stat -c %u:%g /bin/sh /etc/passwd")[0].split() == ["0:0", "0:0"]
    out, code = sh(daemon, c, "echo x > /root.txt && mkdir -p /a/b && chown 1000:1000 /a && stat -c %u:%g /root.txt /a")
    assert (out.split(), code) == (["0:0", "1000:1000"], 0)
    assert sh(daemon, c, "rm /etc/motd; echo new > /etc/motd; cat /etc/motd")[0].endswith("new\n")
    assert sh(daemon, c, "cat /etc/hosts /etc/resolv.conf > /dev/null; echo hi > /dev/shm/x")[1] == 0
    # root in there is nobody outside
    assert sh(daemon, c, "echo 1 > /proc/sys/kernel/panic")[1] != 0
    assert sh(daemon, c, "mount -t tmpfs x /a")[1] != 0
    # low ports and pings, though the network is not the namespace's
    assert sh(daemon, c, "ping -c 1 127.0.0.1")[1] == 0
    user = with_namespaces(pod, "user", "sh", "-c", "id; touch /tmp/mine; stat -c %u /tmp/mine; sleep 1000",
                           userns_options=userns(), security={"run_as_user": pb.Int64Value(value=1000)})
    until(lambda: "\n1000\n" in pod.output("user"))
    assert field(daemon, user, "Uid") == "1000"
    tty = container_config("tty", pod.image, ("sleep", "1000"), tty=True, stdin=True)
    tty.linux.security_context.namespace_options.CopyFrom(
        pb.NamespaceOption(pid=pb.POD, userns_options=userns()))
    t = daemon.create(pod.id, tty, pod.config)
    daemon.client.StartContainer(container_id=t)
    assert "sleep 1000" in sh(daemon, t, "ps")[0]
    with pytest.raises(grpc.RpcError) as e:
        with_namespaces(pod, "far", "true", userns_options=userns(),
                        security={"run_as_user": pb.Int64Value(value=70000)})
    assert "70000 is not mapped" in e.value.details()
    with pytest.raises(grpc.RpcError) as e:
        pod.create("plain", "true")
    assert "user namespace" in e.value.details()
    for x in (user, t, c):
        daemon.client.RemoveContainer(container_id=x)


# ---- devices ----

def test_devices_of_the_guest(daemon, pod):
    c = pod.start("c", "sleep", "1000", devices=[
        pb.Device(host_path="/dev/fuse", container_path="/dev/fuse", permissions="rw"),
        pb.Device(host_path="/dev/net/tun", container_path="/dev/net/tun", permissions="r"),
        pb.Device(host_path="/dev/zero", container_path="/dev/noughts", permissions="r")])
    assert sh(daemon, c, "ls -l /dev/fuse /dev/net/tun")[1] == 0
    assert sh(daemon, c, ": < /dev/net/tun && : <> /dev/fuse")[1] == 0
    out, code = sh(daemon, c, ": > /dev/net/tun")
    assert code != 0 and "not permitted" in out
    assert sh(daemon, c, "head -c 3 /dev/noughts | od -An -tx1")[0].split() == ["00"] * 3
    none = pod.start("none", "sleep", "1000")
    assert sh(daemon, none, "ls /dev/fuse")[1] != 0
    # mknod is allowed, opening the node is not
    assert "not permitted" in sh(daemon, none, "mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda")[0]


def test_host_devices_are_refused(pod):
    for path in ("/dev/sda", "/dev/mem", "/dev", "/etc/passwd", "/dev/../dev/mem"):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "true", devices=[pb.Device(host_path=path, container_path="/dev/x", permissions="rwm")])
        assert path in e.value.details() and "aspis-host" in e.value.details()


# ---- sysctls ----

def test_sysctls(daemon, make_pod):
    pod = make_pod("tuned", linux=pb.LinuxPodSandboxConfig(
        security_context=pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.CONTAINER)),
        sysctls={"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.core.somaxconn": "777",
                 "net/ipv4/ip_local_port_range": "2000 3000", "vm.max_map_count": "262144", "kernel.sem": "250 32000 100 128",
                 "kernel.msgmax": "9000"}))
    c = pod.start("c", "sleep", "1000")
    for path, want in (("kernel/shm_rmid_forced", "1"), ("fs/mqueue/msg_max", "100"), ("net/core/somaxconn", "777"),
                       ("net/ipv4/ip_local_port_range", "2000 3000"), ("vm/max_map_count", "262144"),
                       ("kernel/sem", "250 32000 100 128"), ("kernel/msgmax", "9000")):
        assert sh(daemon, c, f"cat /proc/sys/{path}")[0].split() == want.split()


@pytest.mark.parametrize("name, value, says", [
    ("net.ipv4.nothing", "1", "No such file"), ("net.ipv4.ip_forward", "maybe", "maybe"),
    ("net.ipv4.ip_forward", "1 2", "kernel holds"), ("kernel.core_pattern", "|/bin/sh", "may not be set"),
    ("net/../kernel/core_pattern", "x", "no sysctl's name")])
def test_bad_sysctl_is_named(daemon, name, value, says):
    config = sandbox_config("bad", linux=pb.LinuxPodSandboxConfig(sysctls={name: value}))
    with pytest.raises(grpc.RpcError) as e:
        daemon.run_pod(config)
    assert name in e.value.details() and says in e.value.details()
