"""The streaming server at its limits: TLS, time that runs out, clients that do not read or vanish, too many of everything; and
the WebSocket forms that other tests leave out."""
import asyncio
import base64
import os
import shutil
import socket
import ssl
import struct
import subprocess
import time
from pathlib import Path

import grpc
import pytest

import audit
from conftest import Pod
from cri import pb
from daemon import BUILD
from registry import make_certificate
from spdy import Session, Spdy, exit_code, http_upgrade

pytestmark = pytest.mark.once("the server's side")

websockets = pytest.importorskip("websockets", reason="no python3-websockets")
CTL = str(BUILD / "cri" / "ctl" / "aspisctl")
CRICTL = shutil.which("crictl") or "/var/cache/aspis/bin/crictl"
UPGRADE = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"]


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


def eventually(check, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def own_pod(own_daemon, images, name, **overrides):
    d = own_daemon(overrides={"streaming": overrides})
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    return d, Pod(d, name, images["busybox"])


def reset(sock, reader=False):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if reader:  # a thread waits in recv(), which keeps the socket
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def tasks(d):
    return len(os.listdir(f"/proc/{d.proc.pid}/task"))


# --- TLS ---

def test_tls(own_daemon, images, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make_certificate(key, cert, "localhost")
    d, pod = own_pod(own_daemon, images, "tls", tls_certificate=str(cert), tls_key=str(key))
    box = pod.start("box", "sh", "-c", "httpd -f -p 80 -h /etc & sleep 100000")
    url = d.client.Exec(container_id=box, cmd=["sh", "-c", "head -c 2000000 | md5sum; exit 3"], stdin=True, stdout=True, stderr=True).url
    assert url.startswith("https://127.0.0.1:")

    # who does not trust the certificate learns nothing, and the token is still good
    with pytest.raises(ssl.SSLCertVerificationError):
        http_upgrade(url, UPGRADE, context=ssl.create_default_context())
    with pytest.raises((OSError, AssertionError)):
        http_upgrade(url, UPGRADE)
    trusts = ssl.create_default_context(cafile=str(cert))

    async def over_websocket():
        out = {1: b"", 2: b"", 3: b""}
        async with websockets.connect(url.replace("https://", "wss://"), subprotocols=["v5.channel.k8s.io"], ssl=trusts) as w:
            for _ in range(40):
                await w.send(b"\0" + b"x" * 50000)
            await w.send(b"\xff\0")
            async for m in w:
                out[m[0]] += m[1:]
        return out

    out = asyncio.run(asyncio.wait_for(over_websocket(), 60))
    import hashlib
    assert out[1].startswith(hashlib.md5(b"x" * 2000000).hexdigest().encode()) and exit_code(out[3]) == 3

    # aspisctl, also without trust
    def ctl(*args, trust=str(cert), **kw):
        return subprocess.run([CTL, "--socket", str(d.socket), *args], capture_output=True, timeout=60,
                              env=dict(os.environ, SSL_CERT_FILE=trust), **kw)

    data = os.urandom(3000000)
    r = ctl("exec", "-i", box, "sh", "-c", "cat; exit 4", input=data)
    assert (r.returncode, r.stdout == data, r.stderr) == (4, True, b"")
    r = ctl("exec", box, "true", trust="")
    assert r.returncode == 1 and b"certificate" in r.stderr, r.stderr
    if os.path.exists(CRICTL):
        (tmp_path / "none.yaml").write_text("")
        base = [CRICTL, "--config", str(tmp_path / "none.yaml"), "-r", f"unix://{d.socket}", "-i", f"unix://{d.socket}"]
        for transport in ("spdy", "websocket"):
            r = subprocess.run(base + ["exec", "--transport", transport, "--tls-ca", str(cert), "--tls-cert", str(cert),
                                       "--tls-key", str(key), "-i", box, "cat"], input=data[:300000],
                               capture_output=True, timeout=60)
            assert r.stdout == data[:300000], r.stderr
    p = subprocess.Popen([CTL, "--socket", str(d.socket), "port-forward", pod.id, ":80"], stdout=subprocess.PIPE,
                         env=dict(os.environ, SSL_CERT_FILE=str(cert)))
    try:
        port = int(p.stdout.readline().split(b":")[1].split()[0])

        def fetch():
            with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
                s.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
                try:
                    return b"root" in s.makefile("rb").read()
                except ConnectionResetError:
                    return False

        eventually(fetch, "no answer through the port")
    finally:
        p.terminate()
        assert p.wait(20) == 0
        p.stdout.close()
    pod.remove()


def test_a_broken_certificate_is_named(own_daemon, tmp_path):
    (tmp_path / "junk.pem").write_text("junk")
    d = own_daemon(overrides={"streaming": {"tls_certificate": str(tmp_path / "junk.pem"), "tls_key": str(tmp_path / "junk.pem")}})
    with pytest.raises(AssertionError, match="aspisd ended with"):
        d.start()
    assert "junk.pem" in d.log_text() and "certificate" in d.log_text(), d.log_text()
    d.proc = None  # it has ended


# --- time ---

def test_what_takes_too_long(own_daemon, images):
    """Each bound at the same time, since each takes its time: tokens 60 s, streams that are not opened 30 s, idle 5 s (here)."""
    d, pod = own_pod(own_daemon, images, "slow", idle_timeout_seconds=5)
    box = pod.start("box", "sh", "-c", "sleep 100000")
    begin = time.monotonic()
    expired = d.client.Exec(container_id=box, cmd=["true"], stdout=True).url

    idle = Session(d.client.Exec(container_id=box, cmd=["sh", "-c", "cat; echo over > /tmp/idle"], stdin=True, stdout=True, stderr=True).url,
                   stdin=True)
    busy = Session(d.client.Exec(container_id=box, cmd=["sh", "-c", "sleep 12; echo done"], stdout=True, stderr=True).url)
    # opens one stream of three, and says something now and then so that it is not idle
    half = Spdy(d.client.Exec(container_id=box, cmd=["sh", "-c", "echo ran > /tmp/half"], stdout=True, stderr=True).url,
                "v4.channel.k8s.io")
    half.open(streamtype="error")
    alone = Spdy(d.client.PortForward(pod_sandbox_id=pod.id).url, "portforward.k8s.io")
    error = alone.open(streamtype="error", port="80", requestid="1")
    silent = socket.create_connection(("127.0.0.1", int(expired.split(":")[2].split("/")[0])))  # sends no request at all
    n = 1
    while time.monotonic() - begin < 40 and not (half.closed and alone.over(error)):
        if n % 10 == 1:
            for s in (half, alone, busy.spdy):
                try:
                    s.ping(n)
                except OSError:
                    pass
        n += 2
        if busy.spdy.over(busy.stdout):
            assert busy.out() == b"done\n"
        time.sleep(0.1)
    waited = time.monotonic() - begin
    assert 29 < waited < 40, (waited, half.closed, alone.ended)
    assert half.closed and b"did not come" in alone.data[error]
    assert idle.spdy.closed, "an idle session goes on"
    assert b"over" in d.exec(box, "cat", "/tmp/idle").stdout  # its process got the end of its input
    assert d.exec(box, "test", "-e", "/tmp/half").exit_code == 1
    assert busy.finish()[0] == b"done\n"
    alone.close()
    silent.settimeout(30)
    assert silent.recv(100) == b"" or True
    silent.close()
    assert http_upgrade(d.client.Exec(container_id=box, cmd=["true"], stdout=True).url, UPGRADE)[1] == 101
    time.sleep(max(0, 61 - (time.monotonic() - begin)))
    assert http_upgrade(expired, UPGRADE)[1] == 404
    pod.remove()


# --- too many ---

def test_caps_of_tokens_and_connections(own_daemon, images):
    d, pod = own_pod(own_daemon, images, "many")
    box = pod.start("box", "sh", "-c", "sleep 100000")
    talk = Session(d.client.Exec(container_id=box, cmd=["cat"], stdin=True, stdout=True, stderr=True).url, stdin=True)
    talk.spdy.write(talk.stdin, b"one")
    talk.until(b"one")
    keep = d.client.Exec(container_id=box, cmd=["echo", "kept"], stdout=True, stderr=True).url
    host = ("127.0.0.1", int(keep.split(":")[2].split("/")[0]))

    # connections: what comes beyond the cap waits; those that are in go on
    held = [socket.create_connection(host, timeout=10) for _ in range(560)]
    late = socket.create_connection(host, timeout=10)
    late.sendall(("\r\n".join([f"POST {keep[keep.index('/exec'):]} HTTP/1.1", "Host: x", *UPGRADE]) + "\r\n\r\n").encode())
    late.settimeout(2)
    with pytest.raises(TimeoutError):
        late.recv(1)
    assert audit._fds(d.proc.pid) < 512 + 200
    talk.spdy.write(talk.stdin, b"two")
    talk.until(b"onetwo")
    assert d.exec(box, "echo", "sync").stdout == b"sync\n"
    for s in held:
        s.close()
    late.settimeout(60)
    assert late.recv(100).startswith(b"HTTP/1.1 101")
    late.close()

    # tokens
    last = None
    for n in range(1001):
        try:
            last = d.client.Exec(container_id=box, cmd=["echo", "last"], stdout=True, stderr=True).url
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            break
    assert n == 1000
    assert Session(last).finish()[0] == b"last\n"  # and makes room
    d.client.Attach(container_id=box, stdout=True)
    talk.spdy.write(talk.stdin, fin=True)
    assert talk.finish()[0] == b"onetwo"
    pod.remove()


# --- clients that do not read, or vanish ---

def rss(d):
    for line in Path(f"/proc/{d.proc.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10


def test_an_attacher_that_never_reads_is_dropped(daemon, pod):
    size = 32 << 20
    c = pod.start("flood", "sh", "-c", "read l; for i in $(seq 32); do head -c 1048576 /dev/zero | tr '\\0' x; sleep 0.05; done; "
                  "echo; echo over", stdin=True, stdin_once=True)
    good = Session(daemon.client.Attach(container_id=c, stdin=True, stdout=True, stderr=True).url, stdin=True)
    lazy = Spdy(daemon.client.Attach(container_id=c, stdout=True).url, "v4.channel.k8s.io", reading=False)
    lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    streams = [lazy.open(wait=False, streamtype=t) for t in ("error", "stdout")]
    time.sleep(0.5)
    before = rss(daemon)
    good.spdy.write(good.stdin, b"go\n", fin=True)
    out, _, status = good.finish(200)
    assert len(out) == size + 6 and out.endswith(b"x\nover\n") and out.count(b"x") == size and exit_code(status) == 0
    if "libasan" not in Path(f"/proc/{daemon.proc.pid}/maps").read_text():
        assert rss(daemon) - before < 20 << 20, "memory grows with what is not read"
    # what it missed is told when it reads at last
    lazy.start()
    assert lazy.wait(lambda: lazy.over(*streams))
    assert b"reads too slowly" in lazy.data[streams[0]] and len(lazy.data[streams[1]]) < size
    lazy.close()
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    assert len(pod.output("flood")) == size + 6


def test_clients_that_vanish_leave_nothing(daemon, pod, box):
    """As containerd has it: the process gets the end of its input and runs on, its output thrown away."""
    before = tasks(daemon)
    sessions = []
    for i in range(6):
        url = daemon.client.Exec(container_id=box, cmd=["sh", "-c", f"yes | head -c 8000000; echo end > /tmp/out{i}"], stdout=True,
                                 stderr=True).url
        s = Spdy(url, "v4.channel.k8s.io", reading=False)
        for t in ("error", "stdout", "stderr"):
            s.open(wait=False, streamtype=t)
        sessions.append(s)
    for i in range(6):
        url = daemon.client.Exec(container_id=box, cmd=["sh", "-c", f"cat > /dev/null; echo end > /tmp/in{i}"], stdin=True, stdout=True,
                                 stderr=True).url
        s = Session(url, stdin=True)
        s.spdy.write(s.stdin, b"x" * 100000)
        sessions.append(s.spdy)
    assert sessions[0].sock.recv(100)  # it is under way
    for i, s in enumerate(sessions):
        reset(s.sock, reader=i >= 6)
    ends = [f"/tmp/{way}{i}" for way in ("out", "in") for i in range(6)]
    eventually(lambda: daemon.exec(box, "sh", "-c", "cat " + " ".join(ends)).stdout == b"end\n" * 12, "a process hangs")
    eventually(lambda: tasks(daemon) <= before + 4, "threads stay")

    # a terminal says the end as ctrl-d does
    s = Session(daemon.client.Exec(container_id=box, cmd=["sh", "-c", "cat > /dev/null; echo end > /tmp/tty"], tty=True, stdin=True,
                                   stdout=True).url, stdin=True, tty=True)
    reset(s.spdy.sock, reader=True)
    eventually(lambda: daemon.exec(box, "cat", "/tmp/tty").stdout == b"end\n", "its terminal stays open")

    # one that never ends stays as long as its container, and no longer
    for tty in (False, True):
        s = Session(daemon.client.Exec(container_id=box, cmd=["sleep", "54321"], tty=tty, stdin=True, stdout=True, stderr=not tty).url,
                    stdin=True, tty=tty)
        eventually(lambda: b"54321" in daemon.exec(box, "ps").stdout, "it does not run")
        reset(s.spdy.sock, reader=True)
    daemon.client.StopContainer(container_id=box, timeout=0)
    eventually(lambda: tasks(daemon) <= before + 4, "threads stay")


# --- WebSocket ---

def ws(url, *protocols):
    return websockets.connect(url.replace("http://", "ws://"), subprotocols=protocols or None, max_size=None)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io", ""])
def test_websocket_attach(daemon, pod, protocol):
    c = pod.start("talk", "sh", "-c", "while read l; do echo got:$l; [ \"$l\" = q ] && break; done; echo bye >&2", stdin=True, stdin_once=True)
    url = daemon.client.Attach(container_id=c, stdin=True, stdout=True, stderr=True).url

    async def talk():
        got = {1: b"", 2: b"", 3: b""}
        b64 = "base64" in protocol
        async with ws(url, *([protocol] if protocol else [])) as w:
            assert (w.subprotocol or "") == protocol
            first = await w.recv()  # the sign that it is connected
            assert first == ("1" if b64 else b"\1")

            async def say(text):
                await w.send("0" + base64.b64encode(text).decode() if b64 else b"\0" + text)

            await say(b"he")
            await say(b"llo\n")
            await say(b"\n" if protocol.startswith("v5") else b"q\n")
            if protocol.startswith("v5"):
                await w.send(b"\xff\0")  # the end of stdin
            async for m in w:
                channel, data = (int(m[0]), base64.b64decode(m[1:])) if b64 else (m[0], m[1:])
                got[channel] += data
            assert w.close_code == 1000
        return got

    got = asyncio.run(asyncio.wait_for(talk(), 60))
    assert got[1] == (b"got:hello\ngot:\n" if protocol.startswith("v5") else b"got:hello\ngot:q\n") and got[2] == b"bye\n"
    assert exit_code(got[3]) == 0 if protocol.startswith("v") else got[3] == b""


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
def test_websocket_forwards_the_ports_of_the_request(daemon, pod, protocol):
    c = pod.start("web", "sh", "-c", "mkdir /tmp/w; head -c 300000 /dev/zero > /tmp/w/big; httpd -f -p 8080 -h /tmp/w & "
                  "nc -ll -p 9090 -e cat & wait")
    eventually(lambda: daemon.exec(c, "sh", "-c", "nc 127.0.0.1 8080 </dev/null && nc 127.0.0.1 9090 </dev/null").exit_code == 0,
               "no server")
    url = daemon.client.PortForward(pod_sandbox_id=pod.id, port=[8080, 9090, 4]).url
    b64 = "base64" in protocol

    async def talk():
        got = {i: b"" for i in range(6)}
        async with ws(url, *([protocol] if protocol else [])) as w:
            async def say(channel, data):
                await w.send(str(channel) + base64.b64encode(data).decode() if b64 else bytes([channel]) + data)

            async def until(done):
                while not done():
                    m = await w.recv()
                    channel, data = (int(m[0]), base64.b64decode(m[1:])) if b64 else (m[0], m[1:])
                    got[channel] += data

            await until(lambda: all(len(got[i]) >= 2 for i in got))
            assert [struct.unpack("<H", got[i][:2])[0] for i in got] == [8080, 8080, 9090, 9090, 4, 4]
            await say(0, b"GET /big HTTP/1.0\r\n\r\n")
            await say(2, bytes(range(256)))
            await until(lambda: got[0].endswith(b"\0" * 300000) and len(got[2]) == 258 and len(got[5]) > 2)
        return got

    got = asyncio.run(asyncio.wait_for(talk(), 60))
    assert got[2][2:] == bytes(range(256)) and got[1][2:] == got[3][2:] == b""
    assert b"error forwarding port 4 to pod" in got[5] and b"refused" in got[5]
