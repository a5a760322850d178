"""Exec, attach and port-forward as kubelet's clients use them."""
import asyncio
import base64
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time

import grpc
import pytest

from cri import pb
from spdy import Forward, Session, Spdy, exit_code, http_upgrade

websockets = pytest.importorskip("websockets", reason="no python3-websockets")


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


def run(daemon, c, *cmd, stdin=None, tty=False, protocol="v4.channel.k8s.io", **streams):
    url = daemon.client.Exec(container_id=c, cmd=list(cmd), tty=tty, stdin=stdin is not None, stdout=True,
                             stderr=not tty).url
    s = Session(url, stdin=stdin is not None, tty=tty, protocol=protocol)
    if stdin is not None:
        s.spdy.write(s.stdin, stdin, fin=True)
    return s.finish()


def test_exec_streams_and_codes(daemon, box):
    assert run(daemon, box, "echo", "-n", "hello")[:2] == (b"hello", b"")
    out, err, status = run(daemon, box, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (out, err, exit_code(status)) == (b"out\n", b"err\n", 3)
    assert exit_code(run(daemon, box, "true")[2]) == 0
    assert exit_code(run(daemon, box, "sh", "-c", "exit 255")[2]) == 255
    assert exit_code(run(daemon, box, "sh", "-c", "kill -9 $$")[2]) == 137
    out, err, status = run(daemon, box, "/no/such/file")
    st = json.loads(status)
    assert st["status"] == "Failure" and st["reason"] == "InternalError" and "/no/such/file" in st["message"], st


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])
def test_every_spdy_version(daemon, box, protocol):
    out, _, status = run(daemon, box, "sh", "-c", "cat; exit 7", stdin=b"abc", protocol=protocol)
    assert out == b"abc"
    if protocol.startswith("v4"):
        assert exit_code(status) == 7
    else:
        assert b"7" in status and not status.startswith(b"{")
        assert run(daemon, box, "true", protocol=protocol)[2] == b""


def test_megabytes_both_ways(daemon, box):
    data = os.urandom(8 << 20)
    out, _, status = run(daemon, box, "cat", stdin=data)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert exit_code(status) == 0


def test_terminal_resize_and_end(daemon, box):
    url = daemon.client.Exec(container_id=box, cmd=["sh"], tty=True, stdin=True, stdout=True).url
    s = Session(url, stdin=True, tty=True)
    s.resize(120, 40)
    s.spdy.write(s.stdin, b"echo te''rm=$TERM\n")
    s.until(b"term=xterm")
    for i in range(50):
        s.resize(100 + i, 30)
    s.resize(91, 37)
    deadline = time.monotonic() + 20
    while b"37 91" not in s.out():
        assert time.monotonic() < deadline, s.out()
        s.spdy.write(s.stdin, b"stty size\n")
        time.sleep(0.2)
    s.spdy.write(s.stdin, b"exit 5\n")
    assert exit_code(s.finish()[2]) == 5


def test_slow_reader_gets_everything(daemon, box):
    url = daemon.client.Exec(container_id=box, cmd=["sh", "-c", "head -c 6000000 /dev/zero | tr '\\0' x; exit 4"], stdout=True,
                             stderr=True).url
    s = Spdy(url, "v4.channel.k8s.io", reading=False)
    error, stdout, stderr = (s.open(wait=False, streamtype=t) for t in ("error", "stdout", "stderr"))
    time.sleep(3)  # a client that does not read: nobody else notices
    assert run(daemon, box, "echo", "quick")[0] == b"quick\n"
    assert daemon.exec(box, "echo", "sync").stdout == b"sync\n"
    s.start()
    assert s.wait(lambda: s.over(error, stdout, stderr))
    assert bytes(s.data[stdout]) == b"x" * 6000000 and exit_code(s.data[error]) == 4
    s.close()


def test_ping_and_a_client_that_vanishes(daemon, box):
    url = daemon.client.Exec(container_id=box, cmd=["sh", "-c", "cat; echo end > /tmp/vanished"], stdin=True, stdout=True,
                             stderr=True).url
    s = Session(url, stdin=True)
    s.spdy.ping(7)
    assert s.spdy.wait(lambda: 7 in s.spdy.pings, 10)
    s.spdy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.spdy.sock.shutdown(socket.SHUT_RDWR)
    s.spdy.sock.close()
    deadline = time.monotonic() + 20
    while daemon.exec(box, "cat", "/tmp/vanished").exit_code != 0:  # its stdin ended
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tokens(daemon, box):
    url = daemon.client.Exec(container_id=box, cmd=["true"], stdout=True).url
    assert url.startswith("http://127.0.0.1:")
    upgrade = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"]
    assert http_upgrade(url.replace("/exec/", "/attach/"), upgrade)[1] == 404
    # guessed ones, while a good one waits: of the right form, near it, of another length, nothing
    base, good = url.rsplit("/", 1)
    for guess in ("0" * len(good), good[:-1] + ("0" if good[-1] != "0" else "1"), good[:-1], good + "0", good.swapcase() + "x", ""):
        assert http_upgrade(f"{base}/{guess}", upgrade)[1] == 404, guess
    s, status, *_ = http_upgrade(url, ["Connection: close"])
    assert status == 400  # and used
    assert http_upgrade(url, upgrade)[1] == 404
    assert http_upgrade(url.rsplit("/", 1)[0] + "/" + "0" * 32, upgrade)[1] == 404
    url = daemon.client.Exec(container_id=box, cmd=["true"], stdout=True).url
    s, status, headers, _ = http_upgrade(url, upgrade[:2] + ["X-Stream-Protocol-Version: v9"])
    assert status == 403 and ("X-Accepted-Stream-Protocol-Versions", "v4.channel.k8s.io") in headers


def code_of(call):
    with pytest.raises(grpc.RpcError) as e:
        call()
    return e.value.code()


def test_requests_that_make_no_sense(daemon, pod, box):
    S = grpc.StatusCode
    c = daemon.client
    assert code_of(lambda: c.Exec(container_id=box, cmd=["x"], tty=True, stdout=True, stderr=True)) == S.INVALID_ARGUMENT
    assert code_of(lambda: c.Exec(container_id=box, cmd=["x"])) == S.INVALID_ARGUMENT
    assert code_of(lambda: c.Exec(container_id=box, stdout=True)) == S.INVALID_ARGUMENT
    assert code_of(lambda: c.Exec(container_id="none", cmd=["x"], stdout=True)) == S.NOT_FOUND
    assert code_of(lambda: c.PortForward(pod_sandbox_id="none")) == S.NOT_FOUND
    done = pod.create("done", "true")
    assert code_of(lambda: c.Exec(container_id=done, cmd=["x"], stdout=True)) == S.FAILED_PRECONDITION
    assert code_of(lambda: c.Attach(container_id=done, stdout=True)) == S.FAILED_PRECONDITION


def test_garbage_after_the_upgrade(daemon, box):
    for junk in (b"\0" * 4096, os.urandom(65536), b"\x80\x03\x00\x01\x00\xff\xff\xff" + b"x" * 70000,
                 b"\x80\x02\x00\x01\x00\x00\x00\x00", struct.pack(">HHIIIBB", 0x8003, 1, 14, 1, 0, 0, 0) + b"junk"):
        url = daemon.client.Exec(container_id=box, cmd=["cat"], stdin=True, stdout=True, stderr=True).url
        s = Spdy(url, "v4.channel.k8s.io", reading=False)
        try:
            s.sock.sendall(junk)
        except OSError:
            pass
        s.sock.close()
    assert run(daemon, box, "echo", "fine")[0] == b"fine\n"


# --- attach ---

def test_attach_many_and_the_log(daemon, pod):
    c = pod.start("talk", "sh", "-c", "while read l; do echo got:$l; done; echo bye >&2", stdin=True, stdin_once=True)
    one = Session(daemon.client.Attach(container_id=c, stdin=True, stdout=True, stderr=True).url, stdin=True)
    two = Session(daemon.client.Attach(container_id=c, stdout=True, stderr=True).url)
    lazy = Spdy(daemon.client.Attach(container_id=c, stdout=True).url, "v4.channel.k8s.io", reading=False)
    for t in ("error", "stdout"):
        lazy.open(wait=False, streamtype=t)
    time.sleep(0.5)
    one.spdy.write(one.stdin, b"hello\n")
    one.until(b"got:hello\n")
    two.until(b"got:hello\n")
    one.spdy.write(one.stdin, b"again\n", fin=True)
    for s in (one, two):
        out, err, status = s.finish()
        assert (out, err, exit_code(status)) == (b"got:hello\ngot:again\n", b"bye\n", 0)
    lazy.close()
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    assert pod.output("talk") == "got:hello\ngot:again\n"


def test_attach_stays_with_a_container_that_listens_on(daemon, pod):
    c = pod.start("listen", "sh", "-c", "while read l; do echo got:$l; done", stdin=True)
    for word in (b"a", b"b"):
        s = Session(daemon.client.Attach(container_id=c, stdin=True, stdout=True, stderr=True).url, stdin=True)
        s.spdy.write(s.stdin, word + b"\n")
        s.until(b"got:" + word)
        s.spdy.write(s.stdin, fin=True)
        assert exit_code(s.finish()[2]) == 0
    assert daemon.status(c).state == pb.CONTAINER_RUNNING


# --- port-forward ---

def test_port_forward(daemon, pod):
    pod.start("web", "sh", "-c", "mkdir -p /tmp/w; head -c 3000000 /dev/zero >/tmp/w/big; echo hi >/tmp/w/small;"
              "httpd -f -p 127.0.0.1:8080 -h /tmp/w & nc -ll -p 9090 -e cat & wait")
    s = Spdy(daemon.client.PortForward(pod_sandbox_id=pod.id).url, "portforward.k8s.io")
    assert s.protocol == "portforward.k8s.io"
    deadline = time.monotonic() + 30
    n = 0
    while True:  # until the server listens
        n += 1
        f = Forward(s, 8080, n)
        s.write(f.data, b"GET /small HTTP/1.0\r\n\r\n")
        body, error = f.finish()
        if body.endswith(b"\r\n\r\nhi\n"):
            assert error == b""
            break
        assert b"error forwarding port 8080" in error and time.monotonic() < deadline
        time.sleep(0.3)
    many = []
    for i in range(20):
        f = Forward(s, 8080, 1000 + i)
        s.write(f.data, b"GET /%s HTTP/1.0\r\n\r\n" % (b"big" if i % 4 == 0 else b"small"), fin=i % 2 == 0)
        many.append(f)
    for i, f in enumerate(many):
        body, error = f.finish()
        assert error == b"" and body.endswith(b"\0" * 2999999 if i % 4 == 0 else b"hi\n"), (i, len(body), error)
    body, error = Forward(s, 4, 5000).finish()
    assert body == b"" and b"error forwarding port 4 to pod" in error and b"refused" in error
    s.close()


# --- WebSocket ---

def ws(url, *protocols):
    return websockets.connect(url.replace("http://", "ws://"), subprotocols=protocols or None, max_size=None)


async def ws_exec(url, protocol, stdin=None, close_stdin=True):
    got = {1: b"", 2: b"", 3: b""}
    b64 = "base64" in protocol
    async with ws(url, protocol) as w:
        assert w.subprotocol == protocol
        if stdin is not None:
            async def send():
                for at in range(0, len(stdin), 50000):
                    piece = stdin[at:at + 50000]
                    await w.send("0" + base64.b64encode(piece).decode() if b64 else b"\0" + piece)
                if close_stdin and protocol.startswith("v5"):
                    await w.send(b"\xff\0")
            sender = asyncio.ensure_future(send())
        async for m in w:
            if b64:
                got[int(m[0])] += base64.b64decode(m[1:])
            else:
                got[m[0]] += m[1:]
        if stdin is not None:
            await sender
        assert w.close_code == 1000
    return got[1], got[2], got[3]


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io",
                                      "channel.k8s.io", "base64.channel.k8s.io"])
def test_websocket_exec(daemon, box, protocol):
    data = os.urandom(1 << 20)
    cmd = ["sh", "-c", f"head -c {len(data)} | cat; echo err >&2; exit 6"]
    url = daemon.client.Exec(container_id=box, cmd=cmd, stdin=True, stdout=True, stderr=True).url
    out, err, status = asyncio.run(asyncio.wait_for(ws_exec(url, protocol, data), 100))
    assert (out == data, err) == (True, b"err\n")
    if protocol.startswith("v"):
        assert exit_code(status) == 6
    else:
        assert b"6" in status


def test_websocket_v5_ends_stdin(daemon, box):
    url = daemon.client.Exec(container_id=box, cmd=["cat"], stdin=True, stdout=True, stderr=True).url
    out, _, status = asyncio.run(asyncio.wait_for(ws_exec(url, "v5.channel.k8s.io", b"xyz"), 60))
    assert out == b"xyz" and exit_code(status) == 0


# --- crictl ---

CRICTL = shutil.which("crictl") or "/var/cache/aspis/bin/crictl"
with_crictl = pytest.mark.skipif(not os.path.exists(CRICTL), reason="no crictl: there is no Go to build it with")


@with_crictl
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_crictl(daemon, pod, transport, tmp_path):
    box = pod.start("box", "sh", "-c", "httpd -f -p 80 -h /etc & sleep 100000")
    base = [CRICTL, "--config", str(tmp_path / "none.yaml"), "-r", f"unix://{daemon.socket}", "-i", f"unix://{daemon.socket}",
            "--timeout", "60s"]
    (tmp_path / "none.yaml").write_text("")

    def crictl(*args, **kw):
        return subprocess.run(base + list(args), capture_output=True, timeout=60, **kw)

    r = crictl("exec", "--transport", transport, box, "sh", "-c", "echo out; echo err >&2")
    assert (r.returncode, r.stdout, r.stderr) == (0, b"out\n", b"err\n"), r
    r = crictl("exec", "--transport", transport, "-i", box, "cat", input=b"x" * 300000)
    assert r.stdout == b"x" * 300000, r.stderr
    r = crictl("exec", "--transport", transport, box, "sh", "-c", "exit 9")
    assert r.returncode != 0 and b"9" in r.stderr
    port = 23456 + os.getpid() % 1000
    p = subprocess.Popen(base + ["port-forward", "--transport", transport, pod.id, f"{port}:80"], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                    s.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
                    if b"root" in s.makefile("rb").read():
                        break
            except OSError:
                pass
            assert time.monotonic() < deadline and p.poll() is None
            time.sleep(0.2)
    finally:
        p.terminate()
        p.wait()
