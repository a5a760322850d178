"""aspisctl exec, attach and port-forward, as a person or a script uses them."""
import fcntl
import hashlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import termios
import threading
import time

import pytest

from cri import pb
from daemon import BUILD

pytestmark = pytest.mark.once("the client's side")

CTL = str(BUILD / "cri" / "ctl" / "aspisctl")
CRICTL = shutil.which("crictl") or "/var/cache/aspis/bin/crictl"


@pytest.fixture
def box(pod):
    return pod.start("box", "sh", "-c", "sleep 100000")


def argv(daemon, *args):
    return [CTL, "--socket", str(daemon.socket), *args]


def ctl(daemon, *args, **kw):
    kw.setdefault("stdin", None if "input" in kw else subprocess.DEVNULL)
    if "input" in kw:
        kw.pop("stdin")
    return subprocess.run(argv(daemon, *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100, **kw)


# --- exec ---

def test_exec_codes_and_streams(daemon, box):
    r = ctl(daemon, "exec", box, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (r.returncode, r.stdout, r.stderr) == (3, b"out\n", b"err\n")
    assert ctl(daemon, "exec", box[:12], "true").returncode == 0
    assert ctl(daemon, "exec", "box", "sh", "-c", "exit 255").returncode == 255
    assert ctl(daemon, "exec", box, "sh", "-c", "kill -9 $$").returncode == 137
    r = ctl(daemon, "exec", box, "cat")  # without -i there is nothing to read
    assert (r.returncode, r.stdout) == (0, b"")
    r = ctl(daemon, "exec", box, "/no/such/file")
    assert r.returncode == 1 and r.stderr.startswith(b"aspisctl: ") and b"/no/such/file" in r.stderr
    r = ctl(daemon, "exec", "no-such-container", "true")
    assert r.returncode == 1 and b"no-such-container" in r.stderr
    r = ctl(daemon, "exec", "-it", box, "sh", input=b"x")
    assert r.returncode == 1 and b"no terminal" in r.stderr
    r = ctl(daemon, "exec", "-t", box, "sh", "-c", "tty; echo $TERM; echo err >&2; exit 4")
    assert r.returncode == 4 and b"/dev/pts/" in r.stdout and b"xterm" in r.stdout and b"err" in r.stdout and r.stderr == b""


def test_exec_input_ends_and_output_goes_on(daemon, box):
    data = os.urandom(5 << 20)
    r = ctl(daemon, "exec", "-i", box, "sh", "-c", "cat; echo end >&2; exit 5", input=data)
    assert (r.returncode, r.stderr) == (5, b"end\n")
    assert hashlib.sha256(r.stdout).digest() == hashlib.sha256(data).digest()
    r = ctl(daemon, "exec", "-i", box, "sh", "-c", "head -c 3; exit 6", input=data)  # who reads only the beginning
    assert (r.returncode, r.stdout) == (6, data[:3])
    p = subprocess.Popen(argv(daemon, "exec", box, "yes"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout.read(4) == b"y\ny\n"
    p.stdout.close()
    assert p.wait(20) == 1 and b"write to stdout" in p.stderr.read()
    p.stderr.close()


# --- attach ---

def test_attach_ends_with_the_container(daemon, pod):
    c = pod.start("talk", "sh", "-c", "while read l; do echo got:$l; done; echo bye >&2; exit 7", stdin=True, stdin_once=True)
    r = ctl(daemon, "attach", "-i", c, input=b"one\ntwo\n")
    assert (r.returncode, r.stdout, r.stderr) == (7, b"got:one\ngot:two\n", b"bye\n")
    daemon.wait_state(c, pb.CONTAINER_EXITED)
    r = ctl(daemon, "attach", c)
    assert r.returncode == 1 and b"not running" in r.stderr


def test_attach_leaves_a_container_that_listens_on(daemon, pod):
    c = pod.start("listen", "sh", "-c", "while read l; do echo got:$l; done", stdin=True)
    for word in (b"a", b"b"):
        p = subprocess.Popen(argv(daemon, "attach", "-i", c), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        p.stdin.write(word + b"\n")
        p.stdin.flush()
        assert p.stdout.readline() == b"got:" + word + b"\n"
        p.stdin.close()
        assert p.wait(20) == 0
        p.stdout.close()
    assert daemon.status(c).state == pb.CONTAINER_RUNNING


# --- port-forward ---

class Forward:
    def __init__(self, daemon, pod, *ports):
        self.p = subprocess.Popen(argv(daemon, "port-forward", pod, *ports), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.ports = []
        for _ in ports:
            line = self.p.stdout.readline().decode()
            m = re.match(r"Forwarding 127.0.0.1:(\d+)( and ::1)? to port \d+ of the pod\n", line)
            assert m, (line, self.p.stderr.read1() if not line else "")
            self.ports.append(int(m[1]))

    def connect(self, i=0, host="127.0.0.1"):
        return socket.create_connection((host, self.ports[i]), timeout=60)

    def end(self, sig=signal.SIGINT):
        self.p.send_signal(sig)
        code = self.p.wait(20)
        err = self.p.stderr.read()
        self.p.stdout.close()
        self.p.stderr.close()
        return code, err


@pytest.fixture
def forward(daemon):
    made = []

    def make(*args):
        made.append(Forward(daemon, *args))
        return made[-1]

    yield make
    for f in made:
        if f.p.poll() is None:
            f.p.kill()
            f.p.wait()


def everything(s):
    out = b""
    while piece := s.recv(1 << 18):
        out += piece
    return out


def eventually(check, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_port_forward(daemon, pod, forward):
    pod.start("web", "sh", "-c", "mkdir -p /tmp/w; head -c 2000000 /dev/zero >/tmp/w/big; echo hi >/tmp/w/small;"
              "httpd -f -p 8080 -h /tmp/w & nc -ll -p 9090 -e cat & wait")
    f = forward(pod.id, ":8080", "0:9090", ":4")

    def get(name, host="127.0.0.1"):
        with f.connect(0, host) as s:
            s.sendall(b"GET /%s HTTP/1.0\r\n\r\n" % name.encode())
            return everything(s).split(b"\r\n\r\n", 1)[-1]

    eventually(lambda: get("small") == b"hi\n")
    assert get("small", "::1") == b"hi\n"
    # only the loopback
    listening = subprocess.run(["ss", "-Hltn", f"sport = :{f.ports[0]}"], capture_output=True, text=True).stdout
    assert sorted(line.split()[3] for line in listening.splitlines()) == [f"127.0.0.1:{f.ports[0]}", f"[::1]:{f.ports[0]}"]

    # one that does not read holds nobody up
    lazy = f.connect()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    lazy.sendall(b"GET /big HTTP/1.0\r\n\r\n")
    got = {}

    def fetch(i):
        got[i] = len(get("big" if i % 4 == 0 else "small"))

    threads = [threading.Thread(target=fetch, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == {i: 2000000 if i % 4 == 0 else 3 for i in range(24)}
    assert len(everything(lazy).split(b"\r\n\r\n", 1)[1]) == 2000000
    lazy.close()

    # half-close: the echo comes after our end
    data = os.urandom(500000)

    def echo():
        with f.connect(1) as s:
            t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
            t.start()
            back = everything(s)
            t.join()
            return back == data

    eventually(echo)

    with f.connect(2) as s, pytest.raises(ConnectionResetError):
        assert s.recv(1) == b""
        raise AssertionError("an orderly end instead of a reset")
    code, err = f.end()
    assert code == 0 and b"port 4: " in err and b"refused" in err


def test_port_forward_refuses_what_cannot_be(daemon, pod, forward):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        n = taken.getsockname()[1]
        r = ctl(daemon, "port-forward", pod.id, f"{n}:80")
        assert r.returncode == 1 and f"127.0.0.1 port {n}".encode() in r.stderr and b"in use" in r.stderr
    for bad in ("80:0", "x", "70000", "1:2:3", "", ":"):
        r = ctl(daemon, "port-forward", pod.id, bad)
        assert r.returncode == 1 and b"LOCAL:REMOTE" in r.stderr, bad
    r = ctl(daemon, "port-forward", "no-such-pod", "80")
    assert r.returncode == 1 and b"no-such-pod" in r.stderr
    f = forward(pod.id, ":80")
    with f.connect():
        pass  # connects and leaves
    # the pod goes away: the next connection ends the program, with the reason
    pod.remove()
    try:
        with f.connect() as s:
            assert s.recv(1) == b""
    except ConnectionResetError:
        pass
    assert f.p.wait(20) == 1 and pod.id.encode() in f.p.stderr.read()


# --- a terminal ---

class Terminal:
    """A program on a pseudo terminal whose slave stays open here, so that its settings can be compared."""

    def __init__(self, args):
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 100))
        self.before = termios.tcgetattr(self.slave)

        def own_terminal():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # ignored in the background of a script or under nohup, which the program respects
            for sig in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(sig, signal.SIG_DFL)

        self.p = subprocess.Popen(args, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
                                  preexec_fn=own_terminal)
        self.got = b""
        os.set_blocking(self.master, False)

    def until(self, what, seconds=60):
        deadline = time.monotonic() + seconds
        while what not in self.got:
            assert time.monotonic() < deadline, self.got
            try:
                self.got += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.02)

    def type(self, data):
        while data:
            try:
                data = data[os.write(self.master, data):]
            except BlockingIOError:
                time.sleep(0.02)

    def attrs(self):
        return termios.tcgetattr(self.slave)

    def close(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal():
    made = []

    def make(args):
        made.append(Terminal(args))
        return made[-1]

    yield make
    for t in made:
        t.close()


def test_every_byte_passes_a_terminal(daemon, box, terminal):
    t = terminal(argv(daemon, "exec", "-it", box, "sh", "-c", "stty raw -echo; echo ready; head -c 512; exit 9"))
    t.until(b"ready")
    assert t.attrs() != t.before
    t.got = b""
    every = bytes(range(256)) + bytes(range(255, -1, -1))
    t.type(every)
    assert t.p.wait(30) == 9
    t.until(every[-20:])
    assert t.got.endswith(every)
    assert t.attrs() == t.before


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_killed_client_gives_the_terminal_back(daemon, box, terminal, sig):
    t = terminal(argv(daemon, "exec", "-it", box, "sh"))
    t.type(b"echo re''ady\n")
    t.until(b"\r\nready")
    assert t.attrs() != t.before
    t.p.send_signal(sig)
    assert t.p.wait(20) == -sig
    assert t.attrs() == t.before


def test_the_daemons_end_gives_the_terminal_back(own_daemon, images, terminal):
    d = own_daemon()
    d.start()
    d.client.PullImage(image={"image": images["busybox"]})
    from conftest import Pod
    p = Pod(d, "alone", images["busybox"])
    c = p.start("box", "sh", "-c", "sleep 100000")
    t = terminal(argv(d, "exec", "-it", c, "sh"))
    t.type(b"echo re''ady\n")
    t.until(b"\r\nready")
    d.kill()
    assert t.p.wait(30) == 1
    t.until(b"aspisctl: the daemon")
    assert t.attrs() == t.before
    d.start()
    p.remove()


def test_detaching_leaves_the_container(daemon, pod, terminal):
    c = pod.start("tty", "sh", tty=True, stdin=True)
    for i in range(2):
        t = terminal(argv(daemon, "attach", "-it", c))
        t.type(b"echo ag''ain$((%d+1))\n" % i)
        t.until(b"again%d" % (i + 1))
        t.type(b"\x10")
        t.type(b"\x11")
        assert t.p.wait(20) == 0
        t.until(b"detached")
        assert t.attrs() == t.before
    t = terminal(argv(daemon, "attach", "-it", c))
    t.type(b"exit 8\n")
    assert t.p.wait(30) == 8
    assert t.attrs() == t.before


# --- tmux: what a person sees ---

class Tmux:
    def __init__(self, tmp_path):
        self.base = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", "100", "-y", "30", "bash --norc --noprofile")
        self.run("set-option", "-g", "status", "off")
        self.run("resize-window", "-x", "100", "-y", "30")

    def run(self, *args):
        return subprocess.run(self.base + list(args), check=True, capture_output=True, text=True, timeout=20).stdout

    def keys(self, *keys):
        self.run("send-keys", *keys)

    def line(self, text):
        self.run("send-keys", "-l", text)
        self.keys("Enter")

    def screen(self):
        return self.run("capture-pane", "-p")

    def see(self, pattern, seconds=60):
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.screen(), re.M):
            assert time.monotonic() < deadline, self.screen()
            time.sleep(0.1)

    def ask(self, line, pattern, seconds=60):
        """Types the line until the answer is seen: what was typed early may be lost in the change to raw mode."""
        deadline = time.monotonic() + seconds
        while True:
            self.line(line)
            try:
                return self.see(pattern, 3)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise


@pytest.fixture
def tmux(tmp_path):
    t = Tmux(tmp_path)
    yield t
    t.run("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
@pytest.mark.parametrize("program", ["aspisctl", "crictl"])
def test_a_shell_in_a_window(daemon, box, tmux, tmp_path, program):
    if program == "crictl" and not os.path.exists(CRICTL):
        pytest.skip("no crictl: there is no Go to build it with")
    (tmp_path / "none.yaml").write_text("")
    command = {"aspisctl": f"{CTL} --socket {daemon.socket} exec -it {box} sh",
               "crictl": f"{CRICTL} --config {tmp_path}/none.yaml -r unix://{daemon.socket} exec -it {box} sh"}[program]
    tmux.ask("PS1='local: '", r"^local: ")
    tmux.line("clear; stty -g >%s/before; %s; echo code=$?; stty -g >%s/after" % (tmp_path, command, tmp_path))
    tmux.ask("PS1='guest: '", r"^guest:\s*$")
    tmux.line("echo sum=$((20+3))")
    tmux.see(r"^sum=23$")
    tmux.ask("clear; stty size", r"^30 100$")
    for rows, columns in ((24, 80), (41, 133), (27, 91)):
        tmux.run("resize-window", "-x", str(columns), "-y", str(rows))
        tmux.ask("clear; stty size", rf"^{rows} {columns}$")

    # ctrl-c ends what runs in the foreground, and nothing else
    tmux.line("clear; sleep 5000; echo after=$?")
    eventually(lambda: b"sleep 5000" in daemon.exec(box, "ps").stdout)
    tmux.keys("C-c")
    tmux.ask("echo alive=$((40+2))", r"^alive=42$")
    assert "after=0" not in tmux.screen() and b"sleep 5000" not in daemon.exec(box, "ps").stdout

    # a program that uses the whole screen
    tmux.line("clear; vi /tmp/written")
    tmux.see(r"^~")
    tmux.keys("i")
    tmux.line("first line")
    tmux.run("send-keys", "-l", "second ünïcode")
    tmux.see(r"^second ünïcode")
    tmux.keys("Escape")
    tmux.see(r"^- /tmp/written")  # not together with what comes next: that would be another key
    assert tmux.screen().splitlines()[0] == "first line"
    tmux.line(":wq")
    tmux.see(r"^guest:")
    assert daemon.exec(box, "cat", "/tmp/written").stdout.decode() == "first line\nsecond ünïcode\n"

    if program == "aspisctl":  # stopped and continued by its shell
        pid = next(int(p) for p in os.listdir("/proc") if p.isdigit() and _cmdline(p).startswith(f"{CTL}\0--socket\0{daemon.socket}\0exec"))
        os.kill(pid, signal.SIGTSTP)
        tmux.see(r"Stopped")
        tmux.ask("clear; echo here=$((1+1))", r"^here=2$")
        tmux.line("fg")
        tmux.ask("echo there=$((1+2))", r"^there=3$")
    tmux.line("exit 17")
    tmux.see(r"^code=(17|1)$" if program == "crictl" else r"^(code=17|local: )")
    if program == "aspisctl":
        # bash goes on behind a stopped command at once; the code of the continued one is fg's
        tmux.ask("clear; stty -g >%s/last; cmp %s/before %s/last && echo sa''me" % (tmp_path, tmp_path, tmp_path), r"^same$")
    else:
        tmux.ask("clear; cmp %s/before %s/after && echo sa''me" % (tmp_path, tmp_path), r"^same$")


def _cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read()
    except OSError:
        return ""
