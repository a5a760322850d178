"""A SPDY/3.1 client as Kubernetes' clients are: written from the draft, nothing of the product's code."""
import json
import socket
import struct
import threading
import time
import zlib
from urllib.parse import urlparse

WORDS = """options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow
authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5
content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since
last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer
transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public
set-cookie keep-alive origin""".split()
TAIL = ("100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
        "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal "
        "Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, "
        "Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
        "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.")
DICTIONARY = b"".join(struct.pack(">I", len(w)) + w.replace("_", " ").encode() for w in WORDS) + TAIL.encode()


def http_upgrade(url, headers, method="POST", timeout=60, context=None):
    """(socket, status, headers, what came behind them)"""
    u = urlparse(url)
    s = socket.create_connection((u.hostname, u.port), timeout=timeout)
    if context is not None:
        s = context.wrap_socket(s, server_hostname=u.hostname)
    lines = [f"{method} {u.path} HTTP/1.1", f"Host: {u.netloc}", *headers]
    s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = s.recv(4096)
        assert more, f"closed after {head!r}"
        head += more
    head, rest = head.split(b"\r\n\r\n", 1)
    status, *fields = head.decode().split("\r\n")
    return s, int(status.split()[1]), [tuple(f.split(": ", 1)) for f in fields], rest


class Spdy:
    """One connection; streams are read by a thread into .data[id], and end with None in .ended."""

    def __init__(self, url, *protocols, reading=True):
        self.sock, self.status, self.headers, rest = http_upgrade(
            url, ["Connection: Upgrade", "Upgrade: SPDY/3.1"] + [f"X-Stream-Protocol-Version: {p}" for p in protocols])
        self.protocol = dict(self.headers).get("X-Stream-Protocol-Version")
        self.buffer = rest
        self.deflate = zlib.compressobj(9, zdict=DICTIONARY)
        self.inflate = zlib.decompressobj(zdict=DICTIONARY)
        self.next_id = 1
        self.cond = threading.Condition()
        self.replied, self.ended, self.reset, self.pings = set(), set(), set(), []
        self.data = {}
        self.closed = False
        self.lock = threading.Lock()
        if reading and self.status == 101:
            self.sock.settimeout(None)
            self.start()

    def start(self):
        threading.Thread(target=self.read, daemon=True).start()

    # --- frames out ---
    def send(self, raw):
        with self.lock:
            self.sock.sendall(raw)

    def open(self, wait=True, **headers):
        plain = struct.pack(">I", len(headers))
        for k, v in headers.items():
            plain += struct.pack(">I", len(k)) + k.encode() + struct.pack(">I", len(v)) + v.encode()
        block = self.deflate.compress(plain) + self.deflate.flush(zlib.Z_SYNC_FLUSH)
        sid, self.next_id = self.next_id, self.next_id + 2
        self.data[sid] = bytearray()
        body = struct.pack(">IIBB", sid, 0, 0, 0) + block
        self.send(struct.pack(">HHI", 0x8003, 1, len(body)) + body)
        if wait:
            self.wait(lambda: sid in self.replied or sid in self.reset, 30)
        return sid

    def write(self, sid, data=b"", fin=False):
        for at in range(0, max(len(data), 1), 32768):
            piece = data[at:at + 32768]
            last = fin and at + 32768 >= len(data)
            self.send(struct.pack(">II", sid, (1 << 24 if last else 0) | len(piece)) + piece)

    def rst(self, sid):
        self.send(struct.pack(">HHIII", 0x8003, 3, 8, sid, 5))

    def ping(self, n):
        self.send(struct.pack(">HHII", 0x8003, 6, 4, n))

    def close(self):
        try:
            self.send(struct.pack(">HHIII", 0x8003, 7, 8, 0, 0))
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    # --- frames in ---
    def exactly(self, n):
        while len(self.buffer) < n:
            more = self.sock.recv(1 << 18)
            if not more:
                raise EOFError
            self.buffer += more
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def read(self):
        try:
            while True:
                a, b = struct.unpack(">II", self.exactly(8))
                body = self.exactly(b & 0xffffff)
                with self.cond:
                    self.frame(a, b >> 24, body)
                    self.cond.notify_all()
        except (EOFError, OSError):
            with self.cond:
                self.closed = True
                self.cond.notify_all()

    def frame(self, a, flags, body):
        if not a & 0x80000000:
            assert a in self.replied, "data before the reply"
            assert a not in self.ended
            self.data[a] += body
            if flags & 1:
                self.ended.add(a)
            return
        assert a >> 16 == 0x8003
        kind = a & 0xffff
        if kind == 2:
            assert self.inflate.decompress(body[4:]) == b"\0\0\0\0"
            self.replied.add(struct.unpack(">I", body[:4])[0])
        elif kind == 3:
            self.reset.add(struct.unpack(">II", body)[0])
        elif kind == 6:
            self.pings.append(struct.unpack(">I", body)[0])

    def wait(self, done, timeout=60):
        with self.cond:
            assert self.cond.wait_for(lambda: done() or self.closed, timeout), "nothing happens"
        return done()

    def over(self, *sids):
        return all(s in self.ended or s in self.reset for s in sids if s)


class Session:
    """exec or attach, as client-go does it."""

    def __init__(self, url, stdin=False, stdout=True, stderr=True, tty=False, protocol="v4.channel.k8s.io"):
        self.spdy = Spdy(url, protocol)
        assert self.spdy.status == 101, self.spdy.status
        assert self.spdy.protocol == protocol
        o = self.spdy.open
        self.error = o(streamtype="error")
        self.stdin = o(streamtype="stdin") if stdin else 0
        self.stdout = o(streamtype="stdout") if stdout else 0
        self.stderr = o(streamtype="stderr") if stderr and not tty else 0
        self.size = o(streamtype="resize") if tty and protocol[1] in "345" else 0

    def resize(self, cols, rows):
        self.spdy.write(self.size, json.dumps({"Width": cols, "Height": rows}).encode() + b"\n")

    def out(self):
        return bytes(self.spdy.data[self.stdout])

    def until(self, text, timeout=60):
        assert self.spdy.wait(lambda: text in self.spdy.data[self.stdout], timeout), self.out()

    def finish(self, timeout=120):
        """(stdout, stderr, status) when the server has ended all streams"""
        s = self.spdy
        assert s.wait(lambda: s.over(self.error, self.stdout, self.stderr), timeout), (self.out(), bytes(s.data[self.error]))
        out = (self.out(), bytes(s.data.get(self.stderr, b"")), bytes(s.data[self.error]))
        s.close()
        return out


def exit_code(status):
    st = json.loads(status)
    if st["status"] == "Success":
        return 0
    assert st["reason"] == "NonZeroExitCode", st
    return int(next(c["message"] for c in st["details"]["causes"] if c["reason"] == "ExitCode"))


class Forward:
    """One TCP connection within a port-forward connection."""

    def __init__(self, spdy, port, n):
        self.spdy = spdy
        self.error = spdy.open(streamtype="error", port=str(port), requestid=str(n))
        spdy.write(self.error, fin=True)
        self.data = spdy.open(streamtype="data", port=str(port), requestid=str(n))

    def finish(self, timeout=60):
        s = self.spdy
        assert s.wait(lambda: s.over(self.error, self.data), timeout)
        return bytes(s.data[self.data]), bytes(s.data[self.error])
