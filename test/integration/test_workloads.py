"""Pods as clusters have them: many containers and volumes, a service proxy like kube-proxy, a driver of volumes like CSI's."""
import re
import subprocess
import time
from pathlib import Path

import pytest

from cri import pb
from daemon import BRIDGE, SLOT
from images import Layout, Tar, mkimage
from test_host_backend import info, linux, privileged, shared_dir  # noqa: F401
from test_mirrors import AtomicDir
from test_network import get, wait_get
from test_volumes import mount, out, src, within  # noqa: F401

CONTAINERS = 8

# Each waits for all the others, adds up what they wrote, and ends with a number of its own when told.
MEMBER = """
set -e
cat /etc/config/key > /work/key-$ME; cat /etc/secret/token > /work/token-$ME; cat /etc/one > /work/one-$ME
echo $ME > /work/me-$ME; echo $ME > /fast/me-$ME; head -c 100000 /dev/urandom > /work/random-$ME
while [ $(ls /work | grep -c '^me-') -lt %d ]; do sleep 0.05; done
while [ $(ls /fast | grep -c '^me-') -lt %d ]; do sleep 0.05; done
echo sum $(cat /work/me-* /fast/me-* | awk '{s+=$1} END {print s}')
until [ -e /work/end ]; do sleep 0.05; done
md5sum /work/random-$ME > /work/md5-$ME; cat /etc/config/key
exit $ME
""" % (CONTAINERS, CONTAINERS)


@pytest.fixture
def memory(src):  # noqa: F811
    """An emptyDir of medium Memory, as kubelet makes it."""
    d = src / "memory"
    d.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", d], check=True)
    yield d
    subprocess.run(["umount", d], check=True)


def test_eight_containers_and_five_volumes(daemon, make_pod, src, memory):  # noqa: F811
    """emptyDir on disk and in memory, ConfigMap, Secret, a single file; every container has all of them."""
    pod = make_pod("crowd")
    (src / "work").mkdir()
    config = AtomicDir(src / "config", {"key": b"value 1\n"})
    secret = AtomicDir(src / "secret", {})
    secret.publish({"token": b"secret\n"}, mode=0o400)
    (src / "one").write_text("one\n")
    mounts = [mount(src / "work", "/work"), mount(memory, "/fast"),
              mount(config.path, "/etc/config", readonly=True), mount(secret.path, "/etc/secret", readonly=True),
              mount(src / "one", "/etc/one", readonly=True)]
    ids = [pod.start(f"c{n}", "sh", "-c", MEMBER, mounts=mounts, envs=[pb.KeyValue(key="ME", value=str(n).encode())])
           for n in range(1, CONTAINERS + 1)]
    total = 2 * sum(range(1, CONTAINERS + 1))
    for n in range(1, CONTAINERS + 1):
        within(60, lambda n=n: pod.output(f"c{n}") == f"sum {total}\n")
    assert {c.state for c in daemon.client.ListContainers().containers} == {pb.CONTAINER_RUNNING}
    stats = daemon.client.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux
    assert {s.attributes.id for s in stats.containers} == set(ids)
    for c in ids:
        assert len(daemon.status(c).mounts) == len(mounts)
        assert "Read-only" in daemon.exec(c, "sh", "-c", "echo x > /etc/config/key").stderr.decode()
    # what they wrote is on the host, and what the host changes they see
    for n in range(1, CONTAINERS + 1):
        found = [(src / "work" / f"{what}-{n}").read_text() for what in ("key", "token", "one", "me")]
        assert found == ["value 1\n", "secret\n", "one\n", f"{n}\n"] and (memory / f"me-{n}").read_text() == f"{n}\n"
    config.publish({"key": b"value 2\n"})
    for c in ids:
        within(10, lambda c=c: daemon.exec(c, "cat", "/etc/config/key").stdout == b"value 2\n")
    (src / "work" / "end").touch()
    for n, c in enumerate(ids, 1):
        st = daemon.wait_state(c, pb.CONTAINER_EXITED)
        assert st.exit_code == n, pod.output(f"c{n}", "stderr")
        assert pod.output(f"c{n}") == f"sum {total}\nvalue 2\n"
        told = (src / "work" / f"md5-{n}").read_text().split()[0]
        assert told in subprocess.run(["md5sum", src / "work" / f"random-{n}"], capture_output=True, text=True).stdout
    # one that kubelet starts again finds what the others left
    st = pod.run("c3", "sh", "-c", "ls /work | wc -l", mounts=mounts, attempt=1)
    assert (st.exit_code, pod.output("c3", attempt=1)) == (0, f"{len(list((src / 'work').iterdir()))}\n")


# --- kube-proxy ---

SERVICE = f"10.231.{200 + SLOT}.1"
CHAIN = f"ASPIS-T{SLOT}"


def with_libraries(tar, program, extra=()):
    """A program of this machine, its plugins, and what they need."""
    tar.file(str(Path(program)).lstrip("/"), Path(program).read_bytes(), 0o755)
    text = subprocess.run(["ldd", program, *extra], stdout=subprocess.PIPE, text=True, check=True).stdout
    for library in sorted({*re.findall(r"\s(/lib\S+) ", text), *map(str, extra)}):
        tar.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)
    return tar


@pytest.fixture(scope="module")
def proxy_image(registry, tmp_path_factory):
    """iptables, as an image of kube-proxy has it."""
    program = Path("/usr/sbin/xtables-nft-multi")
    plugins = [p for p in Path("/usr/lib").glob("*-linux-gnu/xtables/*.so")
               if p.stem in ("libxt_tcp", "libxt_comment", "libxt_statistic", "libxt_MARK", "libxt_mark", "libxt_NAT",
                             "libxt_DNAT", "libxt_MASQUERADE", "libxt_standard")]
    tar = with_libraries(Tar(), program, plugins).symlink("usr/sbin/iptables", "xtables-nft-multi")
    tar.symlink("usr/sbin/iptables-restore", "xtables-nft-multi").symlink("usr/sbin/iptables-save", "xtables-nft-multi")
    layout = Layout(tmp_path_factory.mktemp("proxy") / "layout")
    layout.tag(layout.image([mkimage.busybox_layer(), tar.done()]))
    return registry.push(layout.dir, "test/proxy")


def rules(backends):
    """What kube-proxy writes for a service of two endpoints: marks, a chain for the service, one for each endpoint."""
    mark = f"0x{0x10000 * (SLOT + 1):x}"
    eps = "".join(f":{CHAIN}-SEP{i} - [0:0]\n" for i in range(len(backends)))
    text = f"*nat\n:{CHAIN}-SERVICES - [0:0]\n:{CHAIN}-SVC - [0:0]\n:{CHAIN}-POST - [0:0]\n{eps}"
    text += f"-A {CHAIN}-SERVICES -d {SERVICE}/32 -p tcp -m comment --comment \"test/web\" -m tcp --dport 80 -j {CHAIN}-SVC\n"
    text += f"-A {CHAIN}-SVC -j MARK --set-xmark {mark}/{mark}\n"
    for i, ip in enumerate(backends):
        left = len(backends) - i
        pick = f" -m statistic --mode nth --every {left} --packet 0" if left > 1 else ""
        text += f"-A {CHAIN}-SVC{pick} -j {CHAIN}-SEP{i}\n"
        text += f"-A {CHAIN}-SEP{i} -p tcp -m tcp -j DNAT --to-destination {ip}:80\n"
    return text + f"-A {CHAIN}-POST -m mark --mark {mark}/{mark} -j MASQUERADE\nCOMMIT\n"


SYNC = f"""
set -e
grep -q . /lib/modules/x
iptables-restore -w 10 --noflush < /etc/rules/rules
for at in PREROUTING OUTPUT; do
    iptables -w 10 -t nat -C $at -j {CHAIN}-SERVICES 2>/dev/null || iptables -w 10 -t nat -I $at -j {CHAIN}-SERVICES
done
iptables -w 10 -t nat -C POSTROUTING -j {CHAIN}-POST 2>/dev/null || iptables -w 10 -t nat -I POSTROUTING -j {CHAIN}-POST
"""

CLEAN = f"""
for at in PREROUTING OUTPUT; do iptables -w 10 -t nat -D $at -j {CHAIN}-SERVICES; done
iptables -w 10 -t nat -D POSTROUTING -j {CHAIN}-POST
for c in $(iptables-save -t nat | sed -n 's/^:\\({CHAIN}-[A-Z0-9]*\\) .*/\\1/p'); do iptables -w 10 -t nat -F $c; done
for c in $(iptables-save -t nat | sed -n 's/^:\\({CHAIN}-[A-Z0-9]*\\) .*/\\1/p'); do iptables -w 10 -t nat -X $c; done
"""


def nat_table():
    return subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clean_tables():
    yield
    left = CHAIN in nat_table()
    if left:
        subprocess.run(["sh", "-c", CLEAN], capture_output=True)
    assert not left, "the proxy left rules on the host"


def test_a_proxy_like_kube_proxy(daemon, make_pod, proxy_image, src, clean_tables):  # noqa: F811
    """A DaemonSet's pod in the host's network writes the host's iptables: a service's address leads to pods in VMs, from the host and
    from other pods."""
    daemon.client.PullImage(image={"image": proxy_image})
    backends = [make_pod(f"backend{i}") for i in range(2)]
    for i, b in enumerate(backends):
        b.start("web", "sh", "-c", f"echo backend {i} > /page; exec httpd -f -p 80 -h /")
        wait_get(b.status().network.ip, 80)
    client = make_pod("client")
    box = client.start("box", "sleep", "1000")

    (src / "modules").mkdir()
    (src / "modules" / "x").write_text("as /lib/modules\n")
    (src / "rules").mkdir()
    (src / "rules" / "rules").write_text(rules([b.status().network.ip for b in backends]))
    lock = Path("/run/xtables.lock")
    lock.touch()
    proxy = make_pod("kube-proxy", hostname="", linux=linux(network=pb.NODE, privileged=True), handler="")
    assert info(daemon, proxy.id)["backend"] == "host"
    mounts = [mount(lock, "/run/xtables.lock"), mount(src / "modules", "/lib/modules", readonly=True),
              mount(src / "rules", "/etc/rules", readonly=True)]
    st = proxy.run("sync", "sh", "-c", SYNC, image=proxy_image, mounts=mounts, **privileged())
    assert st.exit_code == 0, proxy.output("sync", "stderr")
    try:
        assert nat_table().count(CHAIN) >= 10
        assert {get(SERVICE, 80)[-10:] for _ in range(8)} == {b"backend 0\n", b"backend 1\n"}
        seen = out(daemon, box, f"for i in 1 2 3 4 5 6 7 8; do printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {SERVICE} 80 | tail -n 1; done")
        assert set(seen.splitlines()) == {"backend 0", "backend 1"} and seen.count("\n") == 8
        # an endpoint goes: the same rules once more, without it
        backends[0].remove()
        (src / "rules" / "rules").write_text(rules([backends[1].status().network.ip]))
        st = proxy.run("sync", "sh", "-c", SYNC, image=proxy_image, mounts=mounts, attempt=1, **privileged())
        assert st.exit_code == 0, proxy.output("sync", "stderr", attempt=1)
        assert {get(SERVICE, 80)[-10:] for _ in range(4)} == {b"backend 1\n"}
    finally:
        st = proxy.run("clean", "sh", "-c", CLEAN, image=proxy_image, mounts=mounts, **privileged())
    assert st.exit_code == 0, proxy.output("clean", "stderr")
    assert CHAIN not in nat_table()


def test_a_pod_of_the_host_sees_the_hosts_links_and_its_own_netns_does_not(make_pod):
    """What a CNI agent looks at; the same image in a network namespace of its own changes nothing of the host's."""
    agent = make_pod("agent", hostname="", linux=linux(network=pb.NODE, privileged=True), handler="")
    st = agent.run("look", "sh", "-c", f"ip -o link show {BRIDGE} && ip link add aspis-d{SLOT} type bridge && echo made",
                   **privileged())
    try:
        assert st.exit_code == 0 and "made" in agent.output("look"), agent.output("look", "stderr")
        assert Path(f"/sys/class/net/aspis-d{SLOT}").exists()
    finally:
        subprocess.run(["ip", "link", "del", f"aspis-d{SLOT}"], capture_output=True)
    apart = make_pod("apart", linux=linux(privileged=True), handler="aspis-host")
    st = apart.run("look", "sh", "-c", f"ip -o link show {BRIDGE}; ip link add aspis-d{SLOT} type bridge && ip link", **privileged())
    assert st.exit_code == 0 and f"aspis-d{SLOT}" in apart.output("look") and BRIDGE not in apart.output("look")
    assert not Path(f"/sys/class/net/aspis-d{SLOT}").exists()


# --- CSI ---

# The node part of a driver: requests come over what lies in its plugin directory, volumes are mounted below kubelet's directory.
DRIVER = r"""
cd /plugin
[ -p requests ] || mkfifo requests
echo serving
while :; do
    while read verb volume target; do
        case $verb in
        stage) mkdir -p /kubelet/staging/$volume && mount -t tmpfs -o size=8m $volume /kubelet/staging/$volume ;;
        publish) mkdir -p $target && mount --bind /kubelet/staging/$volume $target ;;
        unpublish) umount $target && rmdir $target ;;
        unstage) umount /kubelet/staging/$volume && rmdir /kubelet/staging/$volume ;;
        esac
        echo $verb $volume $?
    done < requests
done
"""


def mounts_below(d):
    found = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {at for at in found if at.startswith(f"{d}/")}


def test_a_driver_like_csi(daemon, make_pod, shared_dir):  # noqa: F811
    """A privileged pod on the host mounts volumes with BIDIRECTIONAL propagation; pods in VMs use them."""
    kubelet, plugin = shared_dir / "kubelet", shared_dir / "plugin"
    for d in (kubelet, plugin):
        d.mkdir()
    driver = make_pod("csi-node", linux=linux(privileged=True), handler="")
    assert info(daemon, driver.id)["backend"] == "host"
    # at other paths than on the host, but for what is mounted by path: as drivers are deployed
    mounts = [mount(plugin, "/plugin"), mount(kubelet, "/kubelet", propagation=pb.PROPAGATION_BIDIRECTIONAL),
              mount(kubelet, str(kubelet), propagation=pb.PROPAGATION_BIDIRECTIONAL)]
    c = driver.start("driver", "sh", "-c", DRIVER, mounts=mounts, **privileged())
    within(30, lambda: driver.output("driver") == "serving\n")
    attempt = 0

    def ask(verb, volume, target=""):
        said = driver.output("driver", attempt=attempt)
        with open(plugin / "requests", "w") as f:
            f.write(f"{verb} {volume} {target}\n")
        within(20, lambda: driver.output("driver", attempt=attempt) != said)
        answer = driver.output("driver", attempt=attempt)[len(said):]
        assert answer == f"{verb} {volume} 0\n", answer + driver.output("driver", "stderr", attempt=attempt)

    data, again = kubelet / "pods" / "a" / "data", kubelet / "pods" / "b" / "data"
    ask("stage", "vol1")
    ask("publish", "vol1", data)
    ask("publish", "vol1", again)
    there = mounts_below(kubelet)
    assert there == {str(kubelet / "staging" / "vol1"), str(data), str(again)}

    writer, reader = make_pod("writer"), make_pod("reader")
    w = writer.start("c", "sleep", "1000", mounts=[mount(data, "/data")])
    r = reader.start("c", "sleep", "1000", mounts=[mount(again, "/data", readonly=True)])
    out(daemon, w, "echo from a pod > /data/file; df /data | tail -1")
    assert (kubelet / "staging" / "vol1" / "file").read_text() == "from a pod\n"
    within(10, lambda: daemon.exec(r, "cat", "/data/file").stdout == b"from a pod\n")
    assert "Read-only" in daemon.exec(r, "touch", "/data/x").stderr.decode()

    # the driver ends and comes back: its mounts are the host's
    daemon.client.StopContainer(container_id=c, timeout=0)
    assert mounts_below(kubelet) == there
    assert out(daemon, w, "cat /data/file") == "from a pod\n"
    attempt = 1
    c = driver.start("driver", "sh", "-c", DRIVER, mounts=mounts, attempt=1, **privileged())
    within(30, lambda: driver.output("driver", attempt=1) == "serving\n")
    writer.remove()
    reader.remove()
    ask("unpublish", "vol1", data)
    ask("unpublish", "vol1", again)
    ask("unstage", "vol1")
    assert not mounts_below(kubelet) and not data.exists()
