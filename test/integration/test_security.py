"""What a container may do, tried out: real programs do the forbidden thing in real pods."""
import json
import os
import re
import time
from pathlib import Path

import grpc
import pytest

from cri import container_config, pb, sandbox_config
from daemon import HANDLER

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

# tmpfs can be mounted with other ids from here on
MAPPED_MOUNTS = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 3)
needs_userns = pytest.mark.skipif(HANDLER == "aspis-host" and not MAPPED_MOUNTS, reason="the host's kernel is too old")


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


@needs_userns
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
    # low ports, though the network is not the namespace's
    out, code = sh(daemon, c, "httpd -p 127.0.0.1:80 -h /etc && wget -q -O - http://127.0.0.1/hostname")
    assert (out, code) == ("mapped\n", 0)
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


def file_servers(daemon):
    from test_volumes import servers
    return servers(daemon)


@needs_userns
def test_volumes_in_a_user_namespace(daemon, make_pod, tmp_path):
    """kubelet maps every volume: files are the container's by the ids they have on the host, also after the file
    server was killed."""
    ids = userns()
    pod = make_pod("mapped", linux=pod_linux(userns_options=ids))
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "root").write_text("r")
    (volume / "app").write_text("a")
    (volume / "far").write_text("f")
    os.chown(volume / "app", 1000, 1001)
    os.chown(volume / "far", 70000, 70000)
    single = tmp_path / "hosts"
    single.write_text("1.2.3.4 x\n")
    mounts = [pb.Mount(host_path=str(volume), container_path="/v", uidMappings=ids.uids, gidMappings=ids.gids),
              pb.Mount(host_path=str(single), container_path="/etc/hosts", uidMappings=ids.uids, gidMappings=ids.gids),
              pb.Mount(host_path=str(volume), container_path="/plain")]
    config = container_config("c", pod.image, ("sleep", "1000"), mounts=mounts)
    config.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=pb.CONTAINER, userns_options=ids))
    c = daemon.create(pod.id, config, pod.config)
    daemon.client.StartContainer(container_id=c)
    owners = "stat -c %u:%g /v/root /v/app /v/far /etc/hosts"
    want = ["0:0", "1000:1001", "65534:65534", "0:0"]
    assert sh(daemon, c, owners)[0].split() == want
    out, code = sh(daemon, c, "echo new > /v/new && mkdir /v/d && ln -s new /v/l && chown 33:34 /v/d && cat /v/root"
                              " && echo 5.6.7.8 y >> /etc/hosts")
    assert (out, code) == ("r", 0)
    assert [(os.lstat(volume / n).st_uid, os.lstat(volume / n).st_gid) for n in ("new", "d", "l")] == \
        [(0, 0), (33, 34), (0, 0)]
    assert "5.6.7.8" in single.read_text()
    assert sh(daemon, c, "chown 70000 /v/new")[1] != 0
    # without a mapping everything is nobody's
    assert sh(daemon, c, "stat -c %u /plain/root && cat /plain/root && ! touch /plain/x 2>/dev/null")[0].split() == ["65534", "r"]
    for pid in file_servers(daemon):
        os.kill(pid, 9)
    assert sh(daemon, c, owners.replace("/v/far ", ""))[0].split() == [want[0], want[1], want[3]]
    image = container_config("image", pod.image, ("sleep", "1000"), mounts=[pb.Mount(
        container_path="/i", readonly=True, image=pb.ImageSpec(image=pod.image), uidMappings=ids.uids, gidMappings=ids.gids)])
    image.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=pb.CONTAINER, userns_options=ids))
    i = daemon.create(pod.id, image, pod.config)
    daemon.client.StartContainer(container_id=i)
    assert sh(daemon, i, "stat -c %u /i/bin/busybox && ! touch /i/x 2>/dev/null") == ("0\n", 0)
    daemon.client.RemoveContainer(container_id=i)
    with pytest.raises(grpc.RpcError) as e:
        other = [pb.IDMapping(container_id=0, host_id=7, length=100)]
        bad = container_config("bad", pod.image, ("true",), mounts=[
            pb.Mount(host_path=str(volume), container_path="/v", uidMappings=other, gidMappings=other)])
        bad.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(pid=pb.CONTAINER, userns_options=ids))
        daemon.create(pod.id, bad, pod.config)
    assert "one mapping" in e.value.details()


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


@pytest.mark.vm("a VM has none of the host's devices")
def test_host_devices_are_refused(pod):
    for path in ("/dev/sda", "/dev/mem", "/dev", "/etc/passwd", "/dev/../dev/mem"):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "true", devices=[pb.Device(host_path=path, container_path="/dev/x", permissions="rwm")])
        assert path in e.value.details() and "aspis-host" in e.value.details()


# ---- sysctls ----

@pytest.mark.vm("of the whole kernel")
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


# ---- CDI ----

@pytest.fixture
def cdi_file():
    """A description that is there for one test; the directory is the machine's."""
    made = []
    directory = Path("/var/run/cdi")
    had = directory.exists()

    def make(text, suffix="json"):
        directory.mkdir(exist_ok=True)
        path = directory / f"aspis-test-{os.getpid()}-{len(made)}.{suffix}"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink()
    if not had and directory.exists():
        directory.rmdir()


def cdi(*names):
    return [pb.CDIDevice(name=n) for n in names]


def test_cdi_devices(daemon, pod, cdi_file):
    cdi_file({"cdiVersion": "0.6.0", "kind": "aspis.test/dev", "containerEdits": {"env": ["OF_KIND=1", "A=kind"]}, "devices": [
        {"name": "tun", "containerEdits": {"env": ["A=device"], "deviceNodes": [
            {"path": "/dev/my/tun", "hostPath": "/dev/net/tun", "permissions": "rw"}]}},
        {"name": "host", "containerEdits": {"deviceNodes": [{"path": "/dev/sda"}]}},
        {"name": "hook", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/bin/true"}]}}]})
    c = pod.start("c", "sleep", "1000", CDI_devices=cdi("aspis.test/dev=tun", "aspis.test/dev=tun"))
    assert sh(daemon, c, "echo $OF_KIND $A")[0] == "1 device\n"
    assert sh(daemon, c, ": <> /dev/my/tun")[1] == 0
    for name, says in (("aspis.test/dev=host", "/dev/sda"), ("aspis.test/dev=hook", "hooks"),
                       ("aspis.test/dev=none", "no file in"), ("nonsense", "vendor/class=device")):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("bad", "true", CDI_devices=cdi(name))
        assert says in e.value.details() and (name in e.value.details() or says.startswith("/dev"))
    broken = cdi_file("{")
    with pytest.raises(grpc.RpcError) as e:
        pod.create("bad", "true", CDI_devices=cdi("aspis.test/dev=none"))
    assert str(broken) in e.value.details()
    pod.start("still", "true", CDI_devices=cdi("aspis.test/dev=tun"))


@pytest.mark.parametrize("handler", ["aspis-vm", "aspis-host"])
def test_cdi_mounts_groups_hooks(daemon, make_pod, cdi_file, tmp_path, handler):
    """From YAML: mounts with their options, groups, and a program of the container's before its command."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "x.so").write_text("library\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)  # a hook runs as the container's user
    cdi_file(f"""
cdiVersion: 0.6.0
kind: aspis.test/more
devices:
- name: all
  containerEdits:
    env: [FROM=yaml]
    additionalGids: [4711, 0]
    mounts:
    - {{hostPath: {tmp_path}/lib/x.so, containerPath: /lib/x.so, options: [ro, bind]}}
    - hostPath: {tmp_path}/data
      containerPath: /data
      options: [rw, rbind, nosuid, nodev, noexec, rprivate]
    hooks:
    - hookName: startContainer
      path: /bin/sh
      args: [sh, -c, "id -u > /data/hook; test -r /lib/x.so && echo $MINE >> /data/hook"]
      env: [MINE=1, PATH=/bin]
- name: shared
  containerEdits:
    mounts: [{{hostPath: {tmp_path}/data, containerPath: /data, options: [rshared]}}]
- name: hook
  containerEdits:
    hooks: [{{hookName: createContainer, path: /usr/bin/true}}]
- name: fails
  containerEdits:
    hooks: [{{hookName: startContainer, path: /bin/false, args: ["false"]}}]
""", "yaml")
    d = daemon
    pod = make_pod(handler=handler)
    c = pod.create("c", "sleep", "1000", CDI_devices=cdi("aspis.test/more=all"),
                   security=dict(run_as_user=pb.Int64Value(value=1000), supplemental_groups=[12]))
    assert not (tmp_path / "data" / "hook").exists()
    d.client.StartContainer(container_id=c)
    assert sh(d, c, "cat /lib/x.so; echo $FROM")[0].split() == ["library", "yaml"]
    assert {"1000", "12", "4711"} <= set(sh(d, c, "id -G")[0].split())
    assert (tmp_path / "data" / "hook").read_text().split()[-1] == "1"
    options = sh(d, c, "grep ' /data ' /proc/mounts")[0].split()[3].split(",")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(options), options
    assert "ro" in sh(d, c, "grep ' /lib/x.so ' /proc/mounts")[0].split()[3].split(",")
    assert len(d.client.ContainerStatus(container_id=c).status.mounts) == 0
    # a volume's life: it comes back with the next container
    d.client.StopContainer(container_id=c, timeout=0)
    d.client.RemoveContainer(container_id=c)
    again = pod.start("again", "cat", "/data/hook", CDI_devices=cdi("aspis.test/more=all"), attempt=1)
    assert d.wait_state(again, pb.CONTAINER_EXITED).exit_code == 0
    with pytest.raises(grpc.RpcError) as e:
        pod.create("bad", "true", CDI_devices=cdi("aspis.test/more=hook"))
    assert "createContainer" in e.value.details() and "/usr/bin/true" in e.value.details()
    if handler == "aspis-vm":
        with pytest.raises(grpc.RpcError) as e:
            pod.create("bad", "true", CDI_devices=cdi("aspis.test/more=shared"))
        assert "BIDIRECTIONAL" in e.value.details()
    bad = pod.create("fails", "true", CDI_devices=cdi("aspis.test/more=fails"))
    with pytest.raises(grpc.RpcError) as e:
        d.client.StartContainer(container_id=bad)
    assert "hook" in e.value.details(), e.value


# ---- capabilities, paths ----

def mask(*names):
    order = ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
             "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"]
    return sum(1 << order.index(n) for n in names)


@pytest.mark.parametrize("security, eff, bnd, amb", [
    ({}, 0xa80425fb, 0xa80425fb, 0),
    ({"capabilities": caps(drop=["ALL"])}, 0, 0, 0),
    ({"capabilities": caps("ALL")}, (1 << 41) - 1, (1 << 41) - 1, 0),
    ({"capabilities": caps("NET_ADMIN", drop=["ALL"])}, mask("NET_ADMIN"), mask("NET_ADMIN"), 0),
    ({"capabilities": caps("ALL", drop=["CAP_SYS_ADMIN"])}, ((1 << 41) - 1) & ~(1 << 21), ((1 << 41) - 1) & ~(1 << 21), 0),
    # who is not root has what is ambient, and nothing else
    ({"run_as_user": pb.Int64Value(value=1000)}, 0, 0xa80425fb, 0),
    ({"run_as_user": pb.Int64Value(value=1000), "capabilities": caps(ambient=["NET_BIND_SERVICE"], drop=["ALL"])},
     mask("NET_BIND_SERVICE"), mask("NET_BIND_SERVICE"), mask("NET_BIND_SERVICE")),
], ids=["default", "none", "all", "one", "all-but-one", "user", "ambient"])
@pytest.mark.vm("the host may have fewer than all")
def test_capabilities(daemon, pod, security, eff, bnd, amb):
    c = pod.start("c", "sleep", "1000", security=security)
    for source in ("self", "1"):
        out, _ = sh(daemon, c, f"grep Cap /proc/{source}/status")
        got = {line.split(":")[0]: int(line.split()[1], 16) for line in out.splitlines()}
        assert (got["CapEff"], got["CapBnd"], got["CapAmb"]) == (eff, bnd, amb), (source, out)


def test_unknown_capability_is_named(pod):
    for bad in (caps("NET_ADMINN"), caps(drop=["FLY"]), caps(ambient=["CAP_FLY"])):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "true", security={"capabilities": bad})
        assert "FLY" in e.value.details() or "NET_ADMINN" in e.value.details()


def test_no_new_privileges(daemon, pod):
    for name, value in (("yes", True), ("no", False)):
        c = pod.start(name, "sleep", "1000", security={"no_new_privs": value, "seccomp": DEFAULT,
                                                       "run_as_user": pb.Int64Value(value=1000)})
        assert field(daemon, c, "NoNewPrivs") == str(int(value))
        assert field(daemon, c, "Seccomp") == "2"


@pytest.mark.vm("changes what the whole kernel has")
def test_masked_and_readonly_paths(daemon, pod):
    paths = {"masked_paths": ["/proc/kcore", "/proc/scsi", "/etc/passwd"], "readonly_paths": ["/proc/sys", "/tmp"]}
    c = pod.start("c", "sleep", "1000", security=paths)
    assert sh(daemon, c, "cat /etc/passwd /proc/kcore")[0] == ""
    assert "Read-only" in sh(daemon, c, "touch /tmp/x")[0]
    assert "Read-only" in sh(daemon, c, "echo 1 > /proc/sys/vm/swappiness")[0]
    free = pod.start("free", "sleep", "1000")  # empty lists are procMount Unmasked
    assert sh(daemon, free, "echo 61 > /proc/sys/vm/swappiness && cat /proc/sys/vm/swappiness") == ("61\n", 0)


def test_apparmor_is_refused(pod):
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="my-profile")
    for security in ({"apparmor": profile}, {"apparmor": DEFAULT}, {"apparmor_profile": "localhost/my-profile"}):
        with pytest.raises(grpc.RpcError) as e:
            pod.create("c", "true", security=security)
        assert e.value.code() == grpc.StatusCode.FAILED_PRECONDITION and "AppArmor" in e.value.details()
    pod.run("free", "true", security={"apparmor": UNCONFINED})


def test_no_process_has_the_agents_priority(daemon, make_pod):
    """The agent and its operations go before containers; nothing that a container executes does."""
    pod = make_pod("prio", linux=pod_linux(pid=pb.POD))
    nice = "{ read -r line; line=${line##*) }; set -- $line; echo ${17}; }"
    for n, pid in enumerate((pb.POD, pb.CONTAINER)):
        c = pod.start(f"c{n}", "sh", "-c", f"{nice} < /proc/self/stat > /nice; exec sleep 1000", pid=pid)
        assert sh(daemon, c, "while [ ! -s /nice ]; do :; done; cat /nice") == ("0\n", 0)
        assert sh(daemon, c, f"{nice} < /proc/$$/stat") == ("0\n", 0)
        assert sh(daemon, c, f"{nice} < /proc/1/stat") == ("0\n", 0)
