"""What containers see of the host's directories and files, and the host of theirs."""
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from cri import pb
from daemon import BUILD


@pytest.fixture
def src(daemon):
    d = daemon.base / f"volumes-{time.monotonic_ns()}"
    d.mkdir()
    yield d
    subprocess.run(["rm", "-rf", "--one-file-system", str(d)], check=True)


def mount(host, at, **more):
    return pb.Mount(host_path=str(host), container_path=at, **more)


def out(daemon, c, script):
    r = daemon.exec(c, "sh", "-c", script)
    assert r.exit_code == 0, (script, r)
    return r.stdout.decode()


def fails(daemon, c, script):
    r = daemon.exec(c, "sh", "-c", script)
    assert r.exit_code != 0, (script, r)
    return r.stderr.decode()


def within(seconds, check):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tool(src, name):
    """A program of this folder, linked statically."""
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(src / f".{name}"),
                    str(Path(__file__).parent / f"{name}.c")], check=True)
    return src / f".{name}"


def servers(daemon):
    """Pids of the pods' file servers."""
    found = []
    for pid in daemon.qemu_pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/aspis-share\0"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_directory_is_live_both_ways(daemon, pod, src):
    (src / "a").write_text("from the host\n")
    mounts = [mount(src, "/data")]
    c = pod.start("x", "sleep", "1000", mounts=mounts)
    assert list(daemon.status(c).mounts) == mounts
    assert out(daemon, c, "cat /data/a") == "from the host\n"
    out(daemon, c, "echo back > /data/b; mkdir -p /data/d/e; ln -s b /data/l; ln /data/b /data/h")
    assert (src / "b").read_text() == "back\n" and (src / "d" / "e").is_dir()
    assert os.readlink(src / "l") == "b" and (src / "h").stat().st_nlink == 2
    (src / "late").write_text("late\n")
    within(10, lambda: daemon.exec(c, "cat", "/data/late").stdout == b"late\n")
    out(daemon, c, "mv /data/b /data/d/moved; rm -r /data/l; rmdir /data/d/e; truncate -s 3 /data/d/moved")
    assert (src / "d" / "moved").read_text() == "bac" and not (src / "l").is_symlink()
    out(daemon, c, "echo more >> /data/d/moved; cp /bin/busybox /data/busybox; cmp /bin/busybox /data/busybox")
    assert (src / "d" / "moved").read_text() == "bacmore\n"
    assert out(daemon, c, "ls /data | sort | tr '\\n' ' '") == "a busybox d h late "
    # many files, so that a directory takes several reads
    out(daemon, c, "mkdir /data/many; cd /data/many; for i in $(seq 1 500); do echo $i > file-with-a-long-name-$i; done")
    assert len(list((src / "many").iterdir())) == 500
    assert out(daemon, c, "ls /data/many | wc -l; cat /data/many/* | wc -l").split() == ["500", "500"]
    # two containers of a pod see one file, each by its own mount
    other = pod.start("y", "sleep", "1000", mounts=[mount(src, "/other")])
    out(daemon, other, "echo hi > /other/shared")
    within(10, lambda: daemon.exec(c, "cat", "/data/shared").stdout == b"hi\n")


@pytest.mark.vm("devices are not made over the file server")
def test_owners_and_modes(daemon, pod, src):
    (src / "root-only").write_text("x")
    (src / "root-only").chmod(0o600)
    src.chmod(0o777)
    c = pod.start("x", "sleep", "1000", mounts=[mount(src, "/data")],
                  security={"run_as_user": {"value": 1234}, "run_as_group": {"value": 77}})
    fails(daemon, c, "cat /data/root-only")
    out(daemon, c, "umask 027; echo x > /data/mine; mkdir /data/dir")
    st = (src / "mine").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1234, 77, 0o640)
    assert ((src / "dir").stat().st_uid, (src / "dir").stat().st_mode & 0o7777) == (1234, 0o750)
    fails(daemon, c, "chown 0 /data/mine")
    r = pod.start("r", "sleep", "1000", mounts=[mount(src, "/data")])
    out(daemon, r, "chown 5:6 /data/mine; chmod 4755 /data/mine; touch -d '2001-02-03 04:05:06' /data/mine")
    st = (src / "mine").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777, int(st.st_mtime)) == (5, 6, 0o4755, 981173106)
    out(daemon, r, "mkfifo /data/fifo")
    assert (src / "fifo").is_fifo()
    fails(daemon, r, "mknod /data/null c 1 3")
    assert not (src / "null").exists()


def test_single_files_sockets_and_links(daemon, pod, src):
    (src / "file").write_text("one\n")
    (src / "dir").mkdir()
    (src / "dir" / "inner").write_text("inner\n")
    (src / "link").symlink_to("dir")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(src / "sock"))
        c = pod.start("x", "sleep", "1000", mounts=[
            mount(src / "file", "/etc/conf.d/file"), mount(src / "link", "/linked"),
            mount(src / "sock", "/run/sock"), mount(src / "made" / "by" / "us", "/made"),
            mount(src / "file", "/etc/hosts")])
    assert out(daemon, c, "cat /etc/conf.d/file /etc/hosts /linked/inner; test -S /run/sock; ls /made") \
        == "one\none\ninner\n"
    assert (src / "made" / "by" / "us").is_dir()
    # in place, as kubelet writes /etc/hosts
    with open(src / "file", "r+") as f:
        f.write("two, longer\n")
    within(10, lambda: daemon.exec(c, "cat", "/etc/hosts").stdout == b"two, longer\n")
    out(daemon, c, "echo three > /etc/conf.d/file")
    assert (src / "file").read_text() == "three\n"
    fails(daemon, c, "rm /etc/conf.d/file")


def test_read_only(daemon, pod, src):
    (src / "a").write_text("a")
    (src / "a").chmod(0o666)
    sub = src / "sub"
    sub.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(sub)], check=True)
    try:
        c = pod.start("x", "sleep", "1000", mounts=[
            mount(src, "/ro", readonly=True), mount(src, "/rro", readonly=True, recursive_read_only=True),
            mount(src / "a", "/file", readonly=True), mount(src, "/rw")])
        for place in ("/ro/x", "/rro/x", "/rro/sub/x", "/file", "/ro/a", "/rro/a"):
            assert "Read-only" in fails(daemon, c, f"echo x > {place}"), place
        assert "Read-only" in fails(daemon, c, "rm /ro/a")
        assert "Read-only" in fails(daemon, c, "chmod 600 /ro/a")
        out(daemon, c, "echo x > /ro/sub/x; echo y > /rw/sub/y; cat /ro/a")
        assert (sub / "x").read_text() == "x\n" and (sub / "y").read_text() == "y\n"
        daemon.client.StopContainer(container_id=c, timeout=0)
        daemon.client.RemoveContainer(container_id=c)
    finally:
        subprocess.run(["umount", "--lazy", str(sub)], check=True)


@pytest.mark.vm("what a VM cannot do")
def test_what_is_refused_says_why(daemon, pod, src):
    def refused(*, code, text, **more):
        at = more.pop("at", "/data")
        with pytest.raises(grpc.RpcError) as e:
            pod.create("bad", "true", mounts=[mount(more.pop("host", src), at, **more)])
        assert e.value.code() == code and text in e.value.details(), e.value

    invalid, unimplemented = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED
    refused(code=invalid, text="recursive read-only", recursive_read_only=True)
    refused(code=invalid, text="recursive read-only", recursive_read_only=True, readonly=True,
            propagation=pb.PROPAGATION_HOST_TO_CONTAINER)
    refused(code=grpc.StatusCode.FAILED_PRECONDITION, text="BIDIRECTIONAL", propagation=pb.PROPAGATION_BIDIRECTIONAL)
    refused(code=invalid, text="host path", host="relative")
    refused(code=invalid, text="container path", at="/")
    refused(code=unimplemented, text="device", host="/dev/null")
    r = daemon.client.Status()
    assert all(h.features.recursive_read_only_mounts for h in r.runtime_handlers)
    pod.run("good", "true", mounts=[mount(src, "/data")])


def test_mounts_made_later_on_the_host(daemon, pod, src):
    for d in ("slave", "private"):
        (src / d).mkdir()
    subprocess.run(["mount", "--bind", str(src), str(src)], check=True)
    subprocess.run(["mount", "--make-shared", str(src)], check=True)
    try:
        c = pod.start("x", "sleep", "1000", mounts=[
            mount(src, "/slave", propagation=pb.PROPAGATION_HOST_TO_CONTAINER), mount(src, "/private")])
        subprocess.run(["mount", "-t", "tmpfs", "none", str(src / "slave")], check=True)
        (src / "slave" / "new").write_text("new\n")
        within(10, lambda: daemon.exec(c, "cat", "/slave/slave/new").stdout == b"new\n")
        assert daemon.exec(c, "ls", "/private/slave").stdout == b""
        # lazily: what the guest has seen of it keeps it busy, as an open file in a container would
        subprocess.run(["umount", "--lazy", str(src / "slave")], check=True)
        within(10, lambda: daemon.exec(c, "ls", "/slave/slave").stdout == b"")
        daemon.client.StopContainer(container_id=c, timeout=0)
        daemon.client.RemoveContainer(container_id=c)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(src)], check=True)


def test_kubelet_flips_a_config_map(daemon, pod, src):
    def publish(version):
        d = src / f"..v{version}"
        d.mkdir()
        (d / "key").write_text(f"value {version}\n")
        (src / "..data_tmp").symlink_to(d.name)
        (src / "..data_tmp").rename(src / "..data")

    publish(1)
    (src / "key").symlink_to("..data/key")
    c = pod.start("x", "sleep", "1000", mounts=[mount(src, "/etc/config", readonly=True)])
    assert out(daemon, c, "cat /etc/config/key") == "value 1\n"
    took = []
    for version in range(2, 6):
        begin = time.monotonic()
        publish(version)
        within(10, lambda: daemon.exec(c, "cat", "/etc/config/key").stdout == f"value {version}\n".encode())
        took.append(time.monotonic() - begin)
        subprocess.run(["rm", "-r", str(src / f"..v{version - 1}")], check=True)
    # seen by an exec, which takes its own time on a busy machine
    assert sorted(took)[len(took) // 2] < 1, took


def test_user_attributes(daemon, pod, src):
    """Extended attributes of users go both ways; others stay the host's."""
    (src / "a").write_text("a")
    os.setxattr(src / "a", "user.from", b"the host")
    os.setxattr(src / "a", "trusted.secret", b"of the host")
    c = pod.start("x", "sleep", "1000", mounts=[mount(src, "/data"), mount(src, "/ro", readonly=True),
                                                mount(tool(src, "xattr"), "/xattr", readonly=True)])
    assert out(daemon, c, "/xattr list /data/a; /xattr get /data/a user.from") == "user.from\nthe host\n"
    out(daemon, c, "/xattr set /data/a user.to value; /xattr set /data user.dir d; /xattr remove /data/a user.from")
    assert sorted(os.listxattr(src / "a")) == ["trusted.secret", "user.to"]
    assert os.getxattr(src / "a", "user.to") == b"value" and os.getxattr(src, "user.dir") == b"d"
    assert "No data" in fails(daemon, c, "/xattr get /data/a trusted.secret")
    fails(daemon, c, "/xattr set /data/a security.other y || /xattr set /data/a trusted.x y")
    assert sorted(os.listxattr(src / "a")) == ["trusted.secret", "user.to"]
    assert "Read-only" in fails(daemon, c, "/xattr set /ro/a user.x y")


def test_termination_log(daemon, pod, src):
    log = src / "termination"
    log.touch()
    log.chmod(0o666)
    for i in range(3):
        pod.run(f"x{i}", "sh", "-c", f"echo last words {i} > /dev/termination-log; exit 3",
                mounts=[mount(log, "/dev/termination-log")], security={"run_as_user": {"value": 1000}})
        assert log.read_text() == f"last words {i}\n"


@pytest.mark.vm("the file server")
def test_killed_server_is_replaced(daemon, pod, src):
    c = pod.start("x", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /data/w.tmp && mv /data/w.tmp /data/w; "
                  "cat /data/w > /dev/null || echo bad; done", mounts=[mount(src, "/data"), mount(src / "w2", "/two")])
    within(20, lambda: (src / "w").exists())
    slowest = 0
    for _ in range(5):
        (pid,) = servers(daemon)
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        assert out(daemon, c, "cat /data/w").strip().isdigit()
        slowest = max(slowest, time.monotonic() - begin)
        was = int((src / "w").read_text() or 0)
        within(10, lambda: int((src / "w").read_text() or 0) > was + 2)
        assert servers(daemon) != [pid]
    print("slowest answer after a kill", slowest)
    # removal does not hang on a server that is gone this moment
    os.kill(servers(daemon)[0], signal.SIGKILL)
    daemon.client.StopContainer(container_id=c, timeout=0)
    daemon.client.RemoveContainer(container_id=c)


@pytest.mark.vm("the file server")
def test_changes_happen_once_however_often_the_server_is_killed(daemon, pod, src):
    """Renames, exclusive creates, appends and the rest: each is done, once, and its caller is told so; files that
    are open and the working directory go on."""
    (src / "at" / "home").mkdir(parents=True)
    c = pod.start("x", "/once", working_dir="/data/at/home",
                  mounts=[mount(src, "/data"), mount(tool(src, "once"), "/once", readonly=True)])
    home = src / "at" / "home"
    within(10, lambda: (home / "log").exists())
    kills = 0
    end = time.monotonic() + 8
    while time.monotonic() < end:
        for pid in servers(daemon):
            os.kill(pid, signal.SIGKILL)
            kills += 1
        time.sleep(random.uniform(0.02, 0.5))
    was = (home / "log").read_text()
    status = daemon.status(c)
    assert status.state == pb.CONTAINER_RUNNING, f"ended with {status.exit_code}: {Path(status.log_path).read_text()}"
    within(30, lambda: (home / "log").read_text() != was)  # servers that cannot start are tried ever less often
    (home / "stop").touch()
    status = daemon.wait_state(c, pb.CONTAINER_EXITED)
    said = Path(status.log_path).read_text()
    assert status.exit_code == 0, said
    rounds = int(said.split()[-2])
    assert (home / "log").read_text().split() == [str(i + 1) for i in range(rounds)]
    assert sorted(p.name for p in home.iterdir()) == ["kept", "log", "stop"]
    print(f"{kills} kills in {rounds} rounds")
    assert kills >= 5 and rounds >= 5


@pytest.mark.vm("the file server")
def test_volumes_outlive_the_daemon(daemon, make_pod, src):
    pod = make_pod("outlive")
    c = pod.start("x", "sh", "-c", "while :; do date > /data/now; sleep 0.1; done", mounts=[mount(src, "/data")])
    within(10, lambda: (src / "now").exists())
    before = servers(daemon)
    daemon.kill()
    (src / "now").unlink()
    within(10, lambda: (src / "now").exists())
    daemon.start()
    assert servers(daemon) == before
    assert list(daemon.status(c).mounts) == [mount(src, "/data")]
    later = pod.start("y", "sleep", "1000", mounts=[mount(src, "/more")])
    assert out(daemon, later, "ls /more") == "now\n"
    # one that dies while no daemon is there is replaced by the next one
    daemon.kill()
    os.kill(before[0], signal.SIGKILL)
    (src / "now").unlink(missing_ok=True)
    daemon.start()
    within(20, lambda: (src / "now").exists())
    assert out(daemon, later, "ls /more") == "now\n"
    assert servers(daemon) != before


@pytest.mark.vm("the file server")
def test_the_server_is_confined(daemon, pod, src):
    pod.start("x", "sleep", "1000", mounts=[mount(src, "/data")])
    (pid,) = servers(daemon)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] != "0" and status["NoNewPrivs"] == "1"
    allowed = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
    for which in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"):
        assert int(status[which], 16) == allowed, which
    if b"__asan" not in (BUILD / "sandbox" / "aspis-share").read_bytes():
        assert status["Seccomp"] == "2"
    places = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert set(places) >= {"/", "/proc", "/tmp"} and len([p for p in places if p.startswith("/tmp/")]) == 1
    assert not any(str(src) in p or p.startswith(("/var", "/home", "/run")) for p in places)
    for ns in ("mnt", "pid", "net", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{ns}")


@pytest.mark.vm("the file server")
def test_removal_of_containers_frees_their_volumes(daemon, pod, src):
    pod.start("keeps", "sleep", "1000", mounts=[mount(src, "/data")])
    (pid,) = servers(daemon)
    for i in range(3):
        c = pod.start(f"c{i}", "sleep", "1000", mounts=[mount(src, "/data"), mount(src / "d", "/d")])
        out(daemon, c, "echo x > /data/x")
        daemon.client.RemoveContainer(container_id=c)
    places = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert len([p for p in places if p.startswith("/tmp/")]) == 1
    links = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()]
    assert len(links) < 12, links


def test_memory_backed(daemon, pod, src):
    """emptyDir with medium Memory: kubelet's tmpfs, shared like any directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(src)], check=True)
    try:
        c = pod.start("x", "sleep", "1000", mounts=[mount(src, "/cache")])
        out(daemon, c, "echo hi > /cache/a && mv /cache/a /cache/b && test $(stat -f -c %b /cache) -lt 300")
        assert (src / "b").read_text() == "hi\n"
        assert "No space" in fails(daemon, c, "dd if=/dev/zero of=/cache/big bs=64k count=32")
        assert (src / "big").stat().st_size < 1 << 20
        daemon.client.StopContainer(container_id=c, timeout=0)
        daemon.client.RemoveContainer(container_id=c)
    finally:
        subprocess.run(["umount", "--lazy", str(src)], check=True)
