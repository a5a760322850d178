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
