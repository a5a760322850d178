"""Exec, attach and port-forward with client-go's own executors and forwarder (streamclient/), in every protocol version it offers."""
import concurrent.futures
import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from cri import pb

pytestmark = pytest.mark.once("the client's side")

SPDY = ["spdy-v4", "spdy-v3", "spdy-v2", "spdy-v1"]
EVERY = ["spdy", "ws", "fallback", "ws-v4", *SPDY]
# what tells an exit code to the client: older ones have only a text, and client-go's version 1 does not wait for it
CODES = ["spdy", "ws", "fallback", "ws-v4", "spdy-v4"]
NO_CODE = 250
# WebSocket v4 has no message for the end of stdin, client-go's SPDY version 1 does not send it
NO_STDIN_END = ["ws-v4", "spdy-v1"]
MEGABYTES = 20 << 20


@pytest.fixture(scope="module")
def streamclient():
    r = subprocess.run([str(Path(__file__).parent / "streamclient/build")], capture_output=True, text=True)
    if r.returncode != 0:
        # where there is Go, the client must build
        assert "no Go here" in r.stderr, r.stderr
        pytest.skip("no Go here")
    return r.stdout.strip()


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


@pytest.fixture
def client(streamclient):
    """client("stream", url, "-tty", stdin=b"...") runs one to its end; .start() gives the process."""
    running = []

    def start(command, url, *flags, args=(), **kw):
        kw.setdefault("stdin", subprocess.PIPE)
        p = subprocess.Popen([streamclient, *flags, command, url, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
        running.append(p)
        return p

    def run(command, url, *flags, stdin=None, timeout=40):
        p = start(command, url, *(("-stdin",) if stdin is not None else ()), *flags)
        out, err = p.communicate(stdin, timeout)
        return p.returncode, out, err

    run.start = start
    yield run
    for p in running:
        if p.poll() is None:
            p.kill()
            p.communicate()


@pytest.fixture
def execute(daemon, box, client):
    def run(protocol, *cmd, stdin=None, tty=False, flags=()):
        url = daemon.client.Exec(container_id=box, cmd=list(cmd), tty=tty, stdin=stdin is not None, stdout=True, stderr=not tty).url
        return client("stream", url, "-protocol", protocol, *(("-tty",) if tty else ()), *flags, stdin=stdin)
    return run


@pytest.mark.parametrize("protocol", EVERY)
def test_output_and_exit_codes(execute, protocol):
    assert execute(protocol, "sh", "-c", "echo -n out; echo -n err >&2") == (0, b"out", b"err")
    for code, how in ((1, "exit 1"), (255, "exit 255"), (137, "kill -9 $$"), (143, "kill -15 $$")):
        got, out, err = execute(protocol, "sh", "-c", f"echo before; {how}")
        assert out == b"before\n"
        if protocol in CODES:
            assert (got, err) == (code, b"")
        elif got != 0 or protocol != "spdy-v1":
            assert got == NO_CODE and str(code).encode() in err
    got, out, err = execute(protocol, "/no/such/file")
    assert out == b"" and (got == NO_CODE and b"/no/such/file" in err or protocol == "spdy-v1")


@pytest.mark.parametrize("protocol", [p for p in EVERY if p not in NO_STDIN_END])
def test_end_of_stdin(execute, protocol):
    # what comes after the end of stdin still arrives: only one direction was closed
    got, out, err = execute(protocol, "sh", "-c", "cat; echo -n +end; echo -n e >&2", stdin=b"some input")
    assert (got, out, err) == (0, b"some input+end", b"e")
    assert execute(protocol, "wc", "-c", stdin=b"") == (0, b"0\n", b"")


@pytest.mark.parametrize("protocol", NO_STDIN_END)
def test_stdin_that_cannot_end(execute, protocol):
    # the command reads what it wants and ends by itself
    assert execute(protocol, "head", "-c", "4", stdin=b"four and more") == (0, b"four", b"")


@pytest.mark.parametrize("protocol", EVERY)
def test_terminal_and_sizes(execute, protocol):
    # the sizes come as fast as the client sends them, the last one stays; versions 1 and 2 have no sizes
    sized = protocol not in ("spdy-v1", "spdy-v2")
    wait = "until [ \"$(stty size 2>/dev/null)\" = '37 91' ]; do usleep 20000; done; " if sized else ""
    many = ",".join(f"{20 + i}x80" for i in range(15)) + ",37x91"
    got, out, err = execute(protocol, "sh", "-c", wait + "stty size 2>&1; echo to-err >&2; tty; exit 6", tty=True,
                            flags=("-sizes", many))
    lines = out.replace(b"\r", b"").decode().split("\n")
    assert lines[0] == "37 91" or not sized
    assert lines[1] == "to-err" and lines[2].startswith("/dev/pts/"), out
    assert got == (6 if protocol in CODES else NO_CODE) or protocol == "spdy-v1", err


def test_shell_on_a_terminal(daemon, box, client):
    url = daemon.client.Exec(container_id=box, cmd=["sh"], tty=True, stdin=True, stdout=True).url
    p = client.start("stream", url, "-protocol", "ws", "-stdin", "-tty")
    p.stdin.write(b"echo te''rm=$TERM\nexit 9\n")
    p.stdin.flush()
    out, err = p.communicate(timeout=60)
    assert b"term=xterm" in out and p.returncode == 9, (out, err)


@pytest.mark.parametrize("protocol", ["spdy", "ws"])
def test_megabytes_both_ways(execute, protocol):
    data = os.urandom(MEGABYTES)
    want = hashlib.sha256(data).hexdigest()
    got, out, err = execute(protocol, "sh", "-c", "sha256sum | cut -c 1-64", stdin=data)
    assert (got, out.decode().strip(), err) == (0, want, b"")
    got, out, err = execute(protocol, "cat", stdin=data)
    assert (got, len(out), hashlib.sha256(out).hexdigest(), err) == (0, len(data), want, b"")


@pytest.mark.parametrize("protocol", ["spdy", "ws"])
def test_megabytes_on_both_outputs(execute, protocol):
    half = MEGABYTES // 2
    script = f"head -c {half} /dev/zero | tr '\\0' e >&2 & head -c {half} /dev/zero | tr '\\0' o; wait; exit 3"
    got, out, err = execute(protocol, "sh", "-c", script)
    assert got == 3 and out == b"o" * half and err == b"e" * half


@pytest.mark.parametrize("protocol", EVERY)
def test_attach(daemon, pod, client, protocol):
    c = pod.start("talk", "sh", "-c", "read l; echo got:$l; echo err:$l >&2; exit 5", stdin=True, stdin_once=True)
    url = daemon.client.Attach(container_id=c, stdin=True, stdout=True, stderr=True).url
    got, out, err = client("stream", url, "-protocol", protocol, stdin=b"hello\n")
    assert got == 0 and (out, err) == (b"got:hello\n", b"err:hello\n"), (got, out, err)
    assert daemon.wait_state(c, pb.CONTAINER_EXITED).exit_code == 5
    assert pod.output("talk") == "got:hello\n" and pod.output("talk", "stderr") == "err:hello\n"


# --- port-forward ---

@pytest.fixture
def served(pod):
    """A web server, an echo server, and a counter that answers only after the end of its input."""
    pod.start("web", "sh", "-c", "mkdir -p /tmp/w; head -c 3000000 /dev/zero | tr '\\0' w >/tmp/w/big; echo hi >/tmp/w/small;"
              "httpd -f -p 127.0.0.1:8080 -h /tmp/w & nc -ll -p 9090 -e cat & nc -ll -p 9091 -e wc -c & wait")
    c = pod.start("wait", "sh", "-c", "for p in 8080 9090 9091; do until nc 127.0.0.1 $p </dev/null; do usleep 50000; done; done")
    assert pod.daemon.wait_state(c, pb.CONTAINER_EXITED).exit_code == 0
    return pod


class Forward:
    def __init__(self, client, daemon, pod, protocol, *ports):
        url = daemon.client.PortForward(pod_sandbox_id=pod.id, port=list(ports)).url
        self.p = client.start("forward", url, "-protocol", protocol, args=[f"0:{p}" for p in ports])
        self.at = {}
        for _ in ports:
            line = self.p.stdout.readline().split()
            assert line[:1] == [b"listening"], (line, self.p.stderr.read())
            self.at[int(line[2])] = int(line[1])

    def connect(self, port):
        return socket.create_connection(("127.0.0.1", self.at[port]), timeout=60)

    def ask(self, port, request, half_close=False):
        with self.connect(port) as s:
            s.sendall(request)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            got = b""
            while True:
                piece = s.recv(1 << 16)
                if not piece:
                    return got
                got += piece

    def end(self):
        _, err = self.p.communicate(timeout=30)
        return self.p.returncode, err.decode()


@pytest.mark.parametrize("protocol", ["spdy", "ws", "fallback"])
def test_port_forward(daemon, served, client, protocol):
    f = Forward(client, daemon, served, protocol, 8080, 9090, 9091)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        asks = [pool.submit(f.ask, 8080, b"GET /%s HTTP/1.0\r\n\r\n" % (b"big" if i % 4 == 0 else b"small")) for i in range(20)]
        for i, a in enumerate(asks):
            body = a.result().split(b"\r\n\r\n", 1)[1]
            assert body == (b"w" * 3000000 if i % 4 == 0 else b"hi\n"), (i, len(body))
    # half-close: the server answers after the end of its input
    assert f.ask(9091, b"x" * 100000, half_close=True).strip() == b"100000"
    data = os.urandom(2 << 20)
    with f.connect(9090) as s, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
        back = b"".join(iter(lambda: s.recv(1 << 16), b""))
        sending.result()
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    assert f.end()[0] == 0


@pytest.mark.parametrize("protocol", ["spdy", "ws"])
def test_refused_port(daemon, served, client, protocol):
    f = Forward(client, daemon, served, protocol, 4)
    with f.connect(4) as s:
        assert s.recv(10) == b""
    f.p.wait(30)  # client-go gives up on all of it after any error
    code, err = f.end()
    assert code == NO_CODE and "lost connection" in err
    assert "error forwarding port 4 to pod" in err and "refused" in err, err
