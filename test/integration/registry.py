"""Registries for the tests, all on loopback and all children of the test that are ended by pid.

Registry         Debian's docker-registry with storage in a temporary directory: open, with htpasswd (auth="basic"), with
                 a token server (auth="token"), with TLS (tls=True).
FaultyRegistry   serves one image layout over HTTP and misbehaves as told, for what a real registry cannot be made to do.
"""
import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
import ssl

USER, PASSWORD = "aspis", "a secret: with 'quotes'"
# bcrypt of PASSWORD; docker-registry takes no other kind, and Python's library cannot make one
HTPASSWD = USER + ":$2b$05$IAynLPVoF4TkispFMXSp2.iakAY3TnHDhsXiUxBu6K3zpDUPHQb.e\n"

MANIFEST_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
                  "application/vnd.docker.distribution.manifest.list.v2+json",
                  "application/vnd.docker.distribution.manifest.v2+json")


def _b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Server:
    """An HTTP server on a free loopback port, in a thread."""

    def __init__(self, handler):
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class TokenServer:
    """Hands out registry tokens: to USER with PASSWORD for everything, to nobody for pulling from public/."""

    def __init__(self, directory, service):
        self.service, self.dir = service, Path(directory)
        self.key, self.cert = self.dir / "token.key", self.dir / "token.crt"
        self.requests = []  # query and whether credentials came, for tests to look at
        self.expires_in = 300
        make_certificate(self.key, self.cert, "token server")
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, query):
                granted, known = outer.judge(query, self.headers.get("Authorization"))
                if granted is None:
                    body, status = {"errors": [{"code": "UNAUTHORIZED", "message": "bad credentials"}]}, 401
                else:
                    token = outer.token(granted)
                    body, status = {"token": token, "access_token": token, "expires_in": outer.expires_in}, 200
                outer.requests.append((self.command, query, known))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.answer(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query))

            def do_POST(self):
                # OAuth2: clients fall back to GET
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append(("POST", {}, False))
                self.send_response(405)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = _Server(Handler)
        self.url = f"http://{self.server.host}/token"

    def judge(self, query, authorization):
        """The access to grant (None: refuse) and whether the caller is known."""
        known = False
        if authorization:
            kind, _, value = authorization.partition(" ")
            if kind.lower() != "basic" or base64.b64decode(value).decode() != f"{USER}:{PASSWORD}":
                return None, False
            known = True
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.split(":")
            if known:
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
            elif name.startswith("public/"):
                access.append({"type": kind, "name": name, "actions": ["pull"]})
        return access, known

    def token(self, access):
        der = base64.b64encode(ssl.PEM_cert_to_DER_cert(self.cert.read_text())).decode()
        now = int(time.time())
        head = _b64url(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": [der]}).encode())
        body = _b64url(json.dumps({
            "iss": "aspis tests", "aud": self.service, "sub": USER, "exp": now + self.expires_in, "nbf": now - 30, "iat": now,
            "jti": os.urandom(8).hex(), "access": access}).encode())
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", str(self.key)],
                                   input=f"{head}.{body}".encode(), stdout=subprocess.PIPE, check=True).stdout
        return f"{head}.{body}.{_b64url(signature)}"

    def stop(self):
        self.server.stop()


def make_certificate(key, cert, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(cert)],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Registry:
    def __init__(self, auth=None, tls=False):
        self.auth, self.tls = auth, tls
        self.proc = self.host = self.ca = self.tokens = None
        self.log = []
        self.blobs = {}  # digest -> a repository that has it

    def start(self):
        self.dir = Path(tempfile.mkdtemp(prefix="aspis-registry-"))
        self.storage = self.dir / "storage"
        config = {
            "version": "0.1", "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": "127.0.0.1:0", "secret": "not one"},
        }
        if self.tls:
            key, self.ca = self.dir / "tls.key", self.dir / "tls.crt"
            make_certificate(key, self.ca, "localhost")
            config["http"]["tls"] = {"certificate": str(self.ca), "key": str(key)}
        if self.auth == "basic":
            (self.dir / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "aspis tests", "path": str(self.dir / "htpasswd")}}
        elif self.auth == "token":
            self.tokens = TokenServer(self.dir, "aspis test registry")
            config["auth"] = {"token": {"realm": self.tokens.url, "service": self.tokens.service,
                                        "issuer": "aspis tests", "rootcertbundle": str(self.tokens.cert)}}
        path = self.dir / "config.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        env = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
        self.proc = subprocess.Popen(["docker-registry", "serve", str(path)], env=env, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # it says which port it got
        for line in self.proc.stderr:
            self.log.append(line)
            m = re.search(r"listening on (127\.0\.0\.1:\d+)", line)
            if m:
                self.host = m.group(1)
                break
        if self.host is None:
            self.stop()
            raise RuntimeError("docker-registry did not start:\n" + "".join(self.log[-20:]))
        self.drain = threading.Thread(target=lambda: self.log.extend(self.proc.stderr), daemon=True)
        self.drain.start()
        return self

    def stop(self):
        if self.proc is not None:
            self.proc.terminate()
            try:
                self.proc.wait(10)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
            if self.host is not None:
                self.drain.join()
            self.proc.stderr.close()
            self.proc = None
        if self.tokens is not None:
            self.tokens.stop()
            self.tokens = None
        shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.host}"

    # -- pushing --

    def _request(self, method, path, name, data=None, headers=None):
        url = path if "://" in path else self.url + path
        request = urllib.request.Request(url, data=data, method=method, headers=dict(headers or {}))
        if self.auth == "basic":
            request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
        elif self.auth == "token":
            access = [{"type": "repository", "name": name, "actions": ["pull", "push", "delete"]}]
            request.add_header("Authorization", "Bearer " + self.tokens.token(access))
        context = ssl.create_default_context(cafile=str(self.ca)) if self.tls else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            return opener.open(request, timeout=30)
        except urllib.error.HTTPError as e:
            raise RuntimeError(f"{method} {url}: {e.code}: {e.read(2000).decode(errors='replace')}") from e

    def push_blob(self, name, data):
        d = "sha256:" + hashlib.sha256(data).hexdigest()
        try:
            self._request("HEAD", f"/v2/{name}/blobs/{d}", name).close()
            return d
        except RuntimeError:
            pass
        query = ""
        if d in self.blobs and self.auth != "token":  # the token is for one repository
            query = "?" + urllib.parse.urlencode({"mount": d, "from": self.blobs[d]})
        self.blobs[d] = name
        with self._request("POST", f"/v2/{name}/blobs/uploads/{query}", name, data=b"") as r:
            if r.status == 201:  # mounted
                return d
            where = urllib.parse.urljoin(self.url, r.headers["Location"])
        where += ("&" if "?" in where else "?") + urllib.parse.urlencode({"digest": d})
        self._request("PUT", where, name, data=data, headers={"Content-Type": "application/octet-stream"}).close()
        return d

    def push_manifest(self, name, reference, data, media_type):
        self._request("PUT", f"/v2/{name}/manifests/{reference}", name, data=data,
                      headers={"Content-Type": media_type}).close()

    def push(self, oci_layout, name, tag="latest", ref=None):
        """Pushes an image of a layout directory (ref: its name there, default the last one) and gives the reference
        to pull."""
        layout = Path(oci_layout)
        manifests = json.loads((layout / "index.json").read_text())["manifests"]
        if ref is not None:
            manifests = [m for m in manifests if m["annotations"]["org.opencontainers.image.ref.name"] == ref]
        self._push_tree(layout, name, manifests[-1], tag)
        return f"{self.host}/{name}:{tag}"

    def _push_tree(self, layout, name, descriptor, reference):
        data = (layout / "blobs/sha256" / descriptor["digest"][7:]).read_bytes()
        content = json.loads(data)
        for m in content.get("manifests", []):
            self._push_tree(layout, name, m, m["digest"])
        for b in [content["config"], *content["layers"]] if "config" in content else []:
            self.push_blob(name, (layout / "blobs/sha256" / b["digest"][7:]).read_bytes())
        self.push_manifest(name, reference, data, descriptor["mediaType"])

    # -- breaking --

    def damage(self, digest, change):
        """Rewrites a stored blob behind the registry's back: change(bytes) -> bytes."""
        path = self.storage / "docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"
        path.write_bytes(change(path.read_bytes()))


class FaultyRegistry:
    """Serves a layout as <host>/<any name>:<any tag>. `fault` is one of:

    none               behaves
    short-blob         says the full length and closes after half; ranges work, so a resuming client succeeds
    short-always       the same, and ranges are ignored
    flip               changes a byte in the middle of every layer
    garbage-manifest   a manifest that is no JSON
    wrong-manifest     a manifest of another digest than announced
    huge-manifest      64 MiB of blanks
    wrong-type         Content-Type contradicts the manifest's own mediaType
    endless            a layer that never ends
    stall              sends half of each layer, then nothing, until stopped
    trickle            sends each layer a byte at a time, one in a second
    redirect           sends layers from another server, which must not see credentials
    loop               redirects for ever
    busy               answers 429 with Retry-After: 1 to the first three requests
    error              answers 500 with an error body full of control characters
    basic              wants USER and PASSWORD
    """

    def __init__(self, oci_layout, fault="none"):
        self.layout, self.fault = Path(oci_layout), fault
        self.requests = []    # (method, path, headers)
        self.elsewhere = []   # the same at the redirect's target
        self.stopping = threading.Event()
        self._busy = 3

    def start(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                outer.handle(self)

            do_GET = do_HEAD

        class Other(Handler):
            def do_HEAD(self):
                outer.elsewhere.append((self.command, self.path, dict(self.headers)))
                outer.send_blob(self, self.path.rsplit("/", 1)[1])

            do_GET = do_HEAD

        self.server, self.other = _Server(Handler), _Server(Other)
        self.host = self.server.host
        return self

    def stop(self):
        self.stopping.set()
        self.server.stop()
        self.other.stop()

    def ref(self, name="test/image", tag="latest"):
        return f"{self.host}/{name}:{tag}"

    def reply(self, h, status, data=b"", **headers):
        h.send_response(status)
        for k, v in headers.items():
            h.send_header(k.replace("_", "-"), v)
        h.send_header("Content-Length", str(len(data)))
        h.end_headers()
        if h.command != "HEAD":
            h.wfile.write(data)

    def handle(self, h):
        self.requests.append((h.command, h.path, dict(h.headers)))
        try:
            self._handle(h)
        except (BrokenPipeError, ConnectionResetError):
            h.close_connection = True

    def _handle(self, h):
        if self.fault == "busy" and self._busy > 0:
            self._busy -= 1
            return self.reply(h, 429, Retry_After="1")
        if self.fault == "error":
            body = json.dumps({"errors": [{"code": "UNKNOWN", "message": "it \x1b[31m\x00 broke\n\r" + "x" * 100000}]})
            return self.reply(h, 500, body.encode(), Content_Type="application/json")
        if self.fault == "basic":
            want = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if h.headers.get("Authorization") != want:
                return self.reply(h, 401, WWW_Authenticate='Basic realm="aspis \\"tests\\""')
        path = urllib.parse.urlsplit(h.path).path
        if path.rstrip("/") == "/v2":
            return self.reply(h, 200, b"{}")
        m = re.fullmatch(r"/v2/.+/(manifests|blobs)/([^/]+)", path)
        if not m:
            return self.reply(h, 404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}')
        if m.group(1) == "manifests":
            return self.send_manifest(h, m.group(2))
        if self.fault == "redirect":
            return self.reply(h, 307, Location=f"http://{self.other.host}/data/{m.group(2)}")
        if self.fault == "loop":
            return self.reply(h, 302, Location=h.path)
        return self.send_blob(h, m.group(2))

    def send_manifest(self, h, reference):
        top = json.loads((self.layout / "index.json").read_text())["manifests"][-1]
        digest = reference if reference.startswith("sha256:") else top["digest"]
        path = self.layout / "blobs/sha256" / digest[7:]
        if not path.exists():
            return self.reply(h, 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        data = path.read_bytes()
        kind = json.loads(data)["mediaType"]
        if self.fault == "garbage-manifest":
            data = b"{\"schemaVersion\":2,\x00\xff" + data
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
        elif self.fault == "wrong-manifest":
            data += b"\n"
        elif self.fault == "huge-manifest":
            data = b" " * (64 << 20) + data
        elif self.fault == "wrong-type":
            kind = MANIFEST_TYPES[3] if kind != MANIFEST_TYPES[3] else MANIFEST_TYPES[1]
        self.reply(h, 200, data, Content_Type=kind, Docker_Content_Digest=digest)

    def is_layer(self, digest):
        """Layers are what is neither config nor manifest: not JSON."""
        with open(self.layout / "blobs/sha256" / digest[7:], "rb") as f:
            return f.read(1) != b"{"

    def send_blob(self, h, digest):
        path = self.layout / "blobs/sha256" / digest[7:]
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not path.exists():
            return self.reply(h, 404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        data = path.read_bytes()
        fault = self.fault if self.is_layer(digest) else "none"
        start, m = 0, re.fullmatch(r"bytes=(\d+)-", h.headers.get("Range", ""))
        if m and fault != "short-always":
            start = int(m.group(1))
        if fault == "flip":
            data = data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]
        if start:
            h.send_response(206)
            h.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            h.send_response(200)
        if fault == "endless":
            h.send_header("Connection", "close")
            h.end_headers()
            while not self.stopping.is_set():
                h.wfile.write(data)
            return
        h.send_header("Content-Type", "application/octet-stream")
        h.send_header("Content-Length", str(len(data) - start))
        h.end_headers()
        if h.command == "HEAD":
            return
        if fault == "trickle":
            for byte in data[start:]:
                h.wfile.write(bytes([byte]))
                h.wfile.flush()
                if self.stopping.wait(1):
                    break
            h.close_connection = True
            return
        if fault in ("short-blob", "short-always", "stall") and not start:
            h.wfile.write(data[:len(data) // 2])
            h.wfile.flush()
            if fault == "stall":
                self.stopping.wait()
            h.close_connection = True
            return
        h.wfile.write(data[start:])
