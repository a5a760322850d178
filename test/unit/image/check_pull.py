#!/usr/bin/env python3
"""Pulls images from registries that behave and registries that do not.

Usage: check_pull.py IMAGE_TOOL ASPIS_UNPACK [ASPIS_JAIL]

The hostile registry is a small server in this script whose every answer a test can bend; where Debian's
docker-registry is installed the plain cases run against that one as well. After each failed pull the
store must be empty. Speaks TAP.
"""

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.parse
import urllib.request

TOOL, UNPACK = map(os.path.abspath, sys.argv[1:3])
JAIL = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 and os.geteuid() == 0 else None
OCI = "application/vnd.oci.image."
MANIFEST, INDEX = OCI + "manifest.v1+json", OCI + "index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


class Skip(Exception):
    pass


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zstd(data):
    return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


class Image:
    """One image: its layers' tars, compressed as told, its config and manifest."""

    def __init__(self, layers, compress="gzip", config=None, arch=None, docker=False):
        machine = os.uname().machine
        self.arch = arch or {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
        self.tars = [layer_tar(files) for files in layers]
        pack = {"gzip": lambda d: gzip.compress(d, mtime=0), "zstd": zstd, "none": lambda d: d}
        self.blobs = [pack[compress](t) for t in self.tars]
        self.config = json.dumps({
            "os": "linux", "architecture": self.arch, "config": config or {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha(t) for t in self.tars]}}).encode()
        suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compress]
        self.type = DOCKER if docker else MANIFEST
        self.document = {
            "schemaVersion": 2, "mediaType": self.type,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json" if docker
                       else OCI + "config.v1+json",
                       "digest": sha(self.config), "size": len(self.config)},
            "layers": [{"mediaType": OCI + "layer.v1.tar" + suffix, "digest": sha(b),
                        "size": len(b)} for b in self.blobs]}

    @property
    def manifest(self):
        return json.dumps(self.document).encode()

    @property
    def id(self):
        return sha(self.config)


def noise(n, seed):
    return hashlib.shake_128(str(seed).encode()).digest(n)


SMALL = Image([{"etc/a": b"one\n"}, {"etc/b": b"two\n"}])
BIG = Image([{"big": noise(3_000_000, "big")}])


class Registry:
    """A registry on a free loopback port. `bend(handler, kind, ref)` sees each request first and may answer
    it (return True)."""

    def __init__(self, tls=None, clients=None, optional=False):
        self.manifests, self.blobs, self.log = {}, {}, []
        self.shown = []  # by request: the client's certificate, or None
        self.bend = None
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle_one(self):
                outer.handle(self)

            do_GET = do_HEAD = do_POST = handle_one

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            if clients:
                context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
                context.load_verify_locations(clients)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, name, image, tag="latest"):
        for blob in image.blobs + [image.config]:
            self.blobs[sha(blob)] = blob
        self.add_document(name, image.manifest, image.type, tag)

    def add_document(self, name, data, kind, tag=None):
        self.manifests[name, sha(data)] = (kind, data)
        if tag:
            self.manifests[name, tag] = (kind, data)

    def count(self, part):
        with self.lock:
            return sum(part in entry[0] for entry in self.log)

    def handle(self, h):
        length = int(h.headers.get("Content-Length") or 0)
        h.posted = h.rfile.read(length) if length else b""
        with self.lock:
            self.shown.append(h.connection.getpeercert() if hasattr(h.connection, "getpeercert") else None)
            self.log.append((f"{h.command} {h.path}", dict(h.headers.items()), h.posted))
        path = urllib.parse.urlsplit(h.path).path
        parts = path.split("/")
        kind, ref = (parts[-2], parts[-1]) if len(parts) > 3 else ("", path)
        h.name = "/".join(parts[2:-2])
        if self.bend and self.bend(h, kind, ref):
            return
        self.answer(h, kind, ref)

    def answer(self, h, kind, ref):
        if kind == "manifests" and (h.name, ref) in self.manifests:
            mtype, data = self.manifests[h.name, ref]
            send(h, 200, data, {"Content-Type": mtype, "Docker-Content-Digest": sha(data)})
        elif kind == "blobs" and ref in self.blobs:
            self.send_range(h, self.blobs[ref])
        else:
            code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            body = json.dumps({"errors": [{"code": code, "message": "not known here"}]}).encode()
            send(h, 404, body, {"Content-Type": "application/json"})

    @staticmethod
    def send_range(h, data):
        start = h.headers.get("Range")
        if not start:
            send(h, 200, data)
            return
        at = int(start.split("=")[1].rstrip("-"))
        send(h, 206, data[at:], {"Content-Range": f"bytes {at}-{len(data) - 1}/{len(data)}"})


def send(h, status, body=b"", headers=None, cut=None):
    h.send_response(status)
    for key, value in (headers or {}).items():
        h.send_header(key, value)
    h.send_header("Content-Length", str(len(body)))
    h.end_headers()
    if h.command == "HEAD":
        return
    if cut is not None:
        h.wfile.write(body[:cut])
        h.wfile.flush()
        h.connection.shutdown(socket.SHUT_RDWR)
        h.close_connection = True
    else:
        h.wfile.write(body)


def bend_layer(reg, image, answer):
    """From now on answer(h, data) answers who asks for the image's first layer, unless it returns False."""
    def bend(h, kind, ref):
        return kind == "blobs" and ref == sha(image.blobs[0]) and answer(h, image.blobs[0]) is not False
    reg.bend = bend


def begin(h, length, part=b"", **headers):
    """The head of an answer, and so much of its body; the rest is the caller's."""
    h.send_response(200)
    for key, value in headers.items():
        h.send_header(key.replace("_", "-"), value)
    h.send_header("Content-Length", str(length))
    h.end_headers()
    h.wfile.write(part)
    h.wfile.flush()
    h.close_connection = True


class Store:
    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="aspis-pull-")
        self.hosts = self.root + "-hosts"
        os.mkdir(self.hosts)

    def argv(self, *args):
        return [TOOL, "--unpacker", UNPACK, "--hosts", self.hosts, *args]

    def run(self, *args, **options):
        argv = self.argv("--stall", "5")
        if JAIL and options.pop("jail", False):
            argv += ["--jail", JAIL, "--uid", "64124"]
        for key, value in options.items():
            argv += ["--" + key.replace("_", "-"), str(value)]
        done = subprocess.run(argv + [self.root, *args], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=120)
        self.stderr = done.stderr.decode()
        if done.returncode not in (0, 1):
            raise AssertionError(f"tool died: {done.returncode}\n{self.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def pull(self, ref, **options):
        return self.run("pull", ref, **options)[0]

    def pulled(self, ref, **options):
        answer = self.pull(ref, **options)
        assert answer["ok"], answer
        return answer

    def refused(self, ref, code, text="", **options):
        answer = self.pull(ref, **options)
        assert not answer["ok"], answer
        assert answer["code"] == code, answer
        assert text in answer["msg"], answer
        return answer

    def files(self):
        return sorted(os.path.join(os.path.relpath(d, self.root), f)
                      for d, _, names in os.walk(self.root) for f in names
                      if not f.startswith(("images.db", "lock")))

    def empty(self):
        assert self.files() == [], self.files()

    def toml(self, registry, text):
        path = os.path.join(self.hosts, registry)
        os.makedirs(path, exist_ok=True)
        with open(path + "/hosts.toml", "w") as f:
            f.write(text)

    def close(self):
        shutil.rmtree(self.root)
        shutil.rmtree(self.hosts)


def tree(store, image_id):
    """name -> bytes of an image, from its disk."""
    disk = store.root + "/../" + os.path.basename(store.root) + ".disk"
    out = store.root + "-out"
    try:
        answer = store.run("disk", image_id, disk)[0]
        assert answer["ok"], answer
        subprocess.run(["fsck.erofs", f"--extract={out}", disk], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found = {}
        for d, _, names in os.walk(out):
            for name in names:
                with open(os.path.join(d, name), "rb") as f:
                    found[os.path.relpath(os.path.join(d, name), out)] = f.read()
        return found
    finally:
        shutil.rmtree(out, ignore_errors=True)
        if os.path.exists(disk):
            os.unlink(disk)


# ---- tests: each gets a registry and a store ----


def test_tag(reg, store):
    reg.add("lib/small", SMALL, "v1")
    ref = f"{reg.host}/lib/small:v1"
    answer = store.pulled(ref)
    assert answer["id"] == SMALL.id and answer["progress"] >= 4
    image, = store.run("list")
    assert image["tags"] == [ref]
    assert image["digests"] == [f"{reg.host}/lib/small@{sha(SMALL.manifest)}"]
    assert image["layers"] == 2 and image["cmd"] == ["/bin/sh"]
    total = len(SMALL.manifest) + len(SMALL.config) + sum(map(len, SMALL.blobs))
    assert image["size"] == total, (image["size"], total)
    assert image["disk_size"] > 0
    assert tree(store, SMALL.id) == {"etc/a": b"one\n", "etc/b": b"two\n"}


def test_find_forms(reg, store):
    reg.add("lib/small", SMALL)
    store.pulled(f"{reg.host}/lib/small")
    hexa = SMALL.id[7:]
    forms = [SMALL.id, hexa, hexa[:12], "sha256:" + hexa[:5], f"{reg.host}/lib/small",
             f"{reg.host}/lib/small:latest", f"{reg.host}/lib/small@{sha(SMALL.manifest)}",
             f"{reg.host}/lib/small:other@{sha(SMALL.manifest)}"]
    for answer, form in zip(store.run("find", *forms), forms):
        assert answer["ok"] and answer["id"] == SMALL.id, (form, answer)
    missing = [f"{reg.host}/lib/small:other", "small", "0" * 64, "sha256:" + "0" * 64,
               f"{reg.host}/lib/small@sha256:" + "1" * 64, f"{reg.host}/lib/smal"]
    for answer, form in zip(store.run("find", *missing), missing):
        assert answer.get("code") == "NOT_FOUND", (form, answer)
    assert store.run("find", "Not Valid")[0]["code"] == "INVALID_ARGUMENT"


def test_digest(reg, store):
    reg.add("lib/small", SMALL)
    ref = f"{reg.host}/lib/small@{sha(SMALL.manifest)}"
    store.pulled(ref)
    image, = store.run("list")
    assert image["tags"] == [] and image["digests"] == [ref], image


def test_pull_again_asks_little(reg, store):
    reg.add("lib/small", SMALL)
    ref = f"{reg.host}/lib/small"
    store.pulled(ref)
    before = len(reg.log)
    store.pulled(ref)
    assert [entry[0] for entry in reg.log[before:]] == ["HEAD /v2/lib/small/manifests/latest"]


def test_tag_moves(reg, store):
    other = Image([{"x": b"y"}])
    reg.add("lib/a", SMALL, "t")
    ref = f"{reg.host}/lib/a:t"
    store.pulled(ref)
    reg.add("lib/a", other, "t")
    assert store.pulled(ref)["id"] == other.id
    images = {i["id"]: i for i in store.run("list")}
    assert images[other.id]["tags"] == [ref]
    assert images[SMALL.id]["tags"] == [] and len(images[SMALL.id]["digests"]) == 1


def test_formats(reg, store):
    reg.add("a/plain", Image([{"f": b"plain"}], "none"))
    reg.add("a/docker", Image([{"f": b"docker"}], docker=True))
    assert tree(store, store.pulled(f"{reg.host}/a/plain")["id"]) == {"f": b"plain"}
    assert tree(store, store.pulled(f"{reg.host}/a/docker")["id"]) == {"f": b"docker"}
    if shutil.which("zstd"):
        reg.add("a/zstd", Image([{"f": b"zstd"}], "zstd"))
        assert tree(store, store.pulled(f"{reg.host}/a/zstd")["id"]) == {"f": b"zstd"}
    store.run("remove", *(i["id"] for i in store.run("list")))
    store.empty()


def test_index(reg, store):
    other = Image([{"wrong": b""}], arch="mips64")
    entries = [{"mediaType": MANIFEST, "digest": sha(i.manifest), "size": len(i.manifest),
                "platform": {"os": "linux", "architecture": i.arch}} for i in (other, SMALL)]
    entries.insert(0, {"mediaType": MANIFEST, "digest": sha(b"x"), "size": 1,
                       "platform": {"os": "unknown", "architecture": "unknown"}})
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    reg.add("m/arch", SMALL, None)
    reg.add_document("m/arch", index, INDEX, "latest")
    assert store.pulled(f"{reg.host}/m/arch")["id"] == SMALL.id
    image, = store.run("list")
    assert image["digests"] == [f"{reg.host}/m/arch@{sha(index)}"]
    del entries[2]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    reg.add_document("m/arch", index, INDEX, "none")
    store.refused(f"{reg.host}/m/arch:none", "NOT_FOUND", "no variant for linux/")


def test_index_loop(reg, store):
    data, kind = SMALL.manifest, MANIFEST
    reg.add("deep/x", SMALL, None)
    for _ in range(6):
        data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": kind, "digest": sha(data), "size": len(data)}]}).encode()
        kind = INDEX
        reg.add_document("deep/x", data, INDEX, "latest")
    store.refused(f"{reg.host}/deep/x", "INVALID_ARGUMENT", "nested")
    store.empty()


def test_not_found(reg, store):
    store.refused(f"{reg.host}/no/such", "NOT_FOUND", "")
    store.refused(f"{reg.host}/no/such@sha256:" + "0" * 64, "NOT_FOUND", "MANIFEST_UNKNOWN")
    store.refused("UPPER:x:y", "INVALID_ARGUMENT", "invalid image reference")
    store.empty()


def test_unreachable(reg, store):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    answer = store.refused(f"127.0.0.1:{port}/x", "UNAVAILABLE")
    assert answer["msg"].startswith("RegistryUnavailable: "), answer
    assert answer["ms"] < 5000
    store.empty()


def test_wrong_layer_digest(reg, store):
    reg.add("w/x", SMALL)
    victim = sha(SMALL.blobs[1])
    reg.blobs[victim] = bytes(reversed(SMALL.blobs[1]))
    answer = store.pull(f"{reg.host}/w/x")
    assert not answer["ok"] and answer["code"] in ("DATA_LOSS", "INVALID_ARGUMENT"), answer
    # The same length and a sound archive, yet other bytes.
    fake = Image([{"etc/b": b"TWO\n"}])
    image = Image([{"etc/b": b"two\n"}], "none")
    reg.add("w/y", image)
    reg.blobs[sha(image.blobs[0])] = fake.tars[0]
    store.refused(f"{reg.host}/w/y", "DATA_LOSS", "digest mismatch")
    store.empty()


def test_wrong_diff_id(reg, store):
    image = Image([{"a": b"b"}])
    image.config = image.config.replace(sha(image.tars[0]).encode(), b"sha256:" + b"5" * 64)
    image.document["config"].update(digest=sha(image.config), size=len(image.config))
    reg.add("w/diff", image)
    store.refused(f"{reg.host}/w/diff", "DATA_LOSS", "image config says")
    store.empty()


def test_wrong_manifest(reg, store):
    reg.add("w/m", SMALL)
    digest = sha(SMALL.manifest)
    reg.manifests["w/m", digest] = (MANIFEST, SMALL.manifest + b" ")
    store.refused(f"{reg.host}/w/m@{digest}", "DATA_LOSS", "digest mismatch")
    store.empty()


def test_wrong_sizes(reg, store):
    for change in (-1, 1):
        image = Image([{"a": b"b"}])
        image.document["layers"][0]["size"] += change
        reg.add("w/size", image)
        store.refused(f"{reg.host}/w/size", "DATA_LOSS", "bytes that the manifest says")
        image = Image([{"a": b"c"}])
        image.document["config"]["size"] += change
        reg.add("w/size", image)
        store.refused(f"{reg.host}/w/size", "DATA_LOSS", "bytes that the manifest says")
    store.empty()


def test_layer_counts(reg, store):
    image = Image([{"a": b"b"}, {"c": b"d"}])
    del image.document["layers"][1]
    reg.add("w/count", image)
    store.refused(f"{reg.host}/w/count", "INVALID_ARGUMENT", "1 layers, the image config 2")
    store.empty()


def test_not_a_tar(reg, store):
    image = Image([{"a": b"b"}], "none")
    image.tars = image.blobs = [b"this is no archive at all" * 100]
    image.config = json.dumps({"os": "linux", "architecture": image.arch, "rootfs": {
        "type": "layers", "diff_ids": [sha(image.tars[0])]}}).encode()
    image.document["config"].update(digest=sha(image.config), size=len(image.config))
    image.document["layers"][0].update(digest=sha(image.tars[0]), size=len(image.tars[0]))
    reg.add("w/tar", image)
    store.refused(f"{reg.host}/w/tar", "INVALID_ARGUMENT")
    store.empty()


def test_schema1(reg, store):
    reg.add_document("old/x", b'{"schemaVersion":1,"fsLayers":[]}',
                     "application/vnd.docker.distribution.manifest.v1+prettyjws", "latest")
    store.refused(f"{reg.host}/old/x", "INVALID_ARGUMENT", "schema 1")


def test_foreign_layers(reg, store):
    """Fetched where the registry has them; their `urls` are nobody's business."""
    for kind in (OCI + "layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"):
        image = Image([{"a": kind.encode()}, {"b": b"2"}])
        image.document["layers"][1].update(mediaType=kind, urls=[f"http://{reg.host}/elsewhere/layer"])
        reg.add("far/x", image)
        answer = store.pulled(f"{reg.host}/far/x")
        assert sorted(tree(store, answer["id"])) == ["a", "b"]
        store.run("remove", answer["id"])
        del reg.blobs[sha(image.blobs[1])]
        store.refused(f"{reg.host}/far/x", "NOT_FOUND", "foreign layer")
        store.empty()
    assert reg.count("elsewhere") == 0


def test_artifacts(reg, store):
    """What is no container image is refused by its name: a Helm chart, an artifact with an empty config, a signature."""
    chart = Image([{"Chart.yaml": b"x"}])
    chart.document["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")
    reg.add("art/chart", chart)
    store.refused(f"{reg.host}/art/chart", "INVALID_ARGUMENT", 'not a container image: its config has the media type '
                  '"application/vnd.cncf.helm.config.v1+json"')
    empty = Image([{"a": b"x"}])
    empty.document["artifactType"] = "application/vnd.example"
    empty.document["config"] = {"mediaType": OCI.replace("image.", "") + "empty.v1+json", "digest": sha(b"{}"), "size": 2}
    reg.add("art/empty", empty)
    store.refused(f"{reg.host}/art/empty", "INVALID_ARGUMENT", "not a container image")
    layer = Image([{"a": b"x"}])
    layer.document["layers"][0]["mediaType"] = "application/vnd.in-toto+json"
    reg.add("art/statement", layer)
    store.refused(f"{reg.host}/art/statement", "INVALID_ARGUMENT", "application/vnd.in-toto+json")
    store.empty()


def test_huge_config(reg, store):
    """By what the manifest says, and by what comes."""
    image = Image([{"a": b"x"}])
    image.document["config"]["size"] = 9 << 20
    reg.add("huge/c", image)
    store.refused(f"{reg.host}/huge/c", "INVALID_ARGUMENT", "config is larger")
    image = Image([{"a": b"y"}])
    reg.add("huge/d", image)
    reg.blobs[sha(image.config)] = b" " * (9 << 20)
    store.refused(f"{reg.host}/huge/d", "DATA_LOSS", "bytes that the manifest says")
    deep = Image([{"a": b"z"}])
    deep.config = b"[" * 200_000 + b"]" * 200_000
    deep.document["config"].update(digest=sha(deep.config), size=len(deep.config))
    reg.add("huge/e", deep)
    store.refused(f"{reg.host}/huge/e", "INVALID_ARGUMENT", "JSON")
    store.empty()


def test_huge_manifest(reg, store):
    reg.add_document("huge/x", b" " * (5 << 20), MANIFEST, "latest")
    store.refused(f"{reg.host}/huge/x", "RESOURCE_EXHAUSTED", "longer than")
    store.empty()


def test_huge_headers(reg, store):
    def bend(h, kind, ref):
        send(h, 200, b"", {f"X-{i}": "y" * 8000 for i in range(20)})
        return True
    reg.bend = bend
    answer = store.pull(f"{reg.host}/x/y")
    assert not answer["ok"], answer
    store.empty()


def test_resume(reg, store):
    """Every answer is cut; the pull goes on where it stopped."""
    reg.add("r/big", BIG)
    cuts = []

    def answer(h, data):
        if len(cuts) >= 3:
            return False
        at, headers, status = 0, {}, 200
        if h.headers.get("Range"):
            at = int(h.headers["Range"].split("=")[1].rstrip("-"))
            headers["Content-Range"] = f"bytes {at}-{len(data) - 1}/{len(data)}"
            status = 206
        cuts.append(at)
        send(h, status, data[at:], headers, cut=700_000)
        return True
    bend_layer(reg, BIG, answer)
    assert store.pulled(f"{reg.host}/r/big")["id"] == BIG.id
    assert len(cuts) == 3 and cuts[0] == 0 and 0 < cuts[1] < cuts[2], cuts
    assert tree(store, BIG.id) == {"big": noise(3_000_000, "big")}


def test_resume_without_ranges(reg, store):
    reg.add("r/big", BIG)
    cuts = []

    def answer(h, data):
        cuts.append(h.headers.get("Range"))
        if len(cuts) == 2:
            send(h, 416)
        else:
            send(h, 200, data, cut=700_000 if len(cuts) == 1 else None)
    bend_layer(reg, BIG, answer)
    store.pulled(f"{reg.host}/r/big")
    assert len(cuts) == 3 and cuts[1] and not cuts[2], cuts
    assert tree(store, BIG.id) == {"big": noise(3_000_000, "big")}


def test_lying_range(reg, store):
    """A 206 for other bytes than asked for must not be pasted in."""
    reg.add("r/big", BIG)
    n = []

    def answer(h, data):
        n.append(1)
        if h.headers.get("Range"):
            send(h, 206, data[5:], {"Content-Range": "bytes 5-9/10"})
        else:
            send(h, 200, data, cut=700_000 if len(n) == 1 else None)
    bend_layer(reg, BIG, answer)
    store.pulled(f"{reg.host}/r/big")
    assert tree(store, BIG.id) == {"big": noise(3_000_000, "big")}


def test_no_progress(reg, store):
    reg.add("r/big", BIG)
    bend_layer(reg, BIG, lambda h, data: send(h, 200, data, cut=0))
    answer = store.refused(f"{reg.host}/r/big", "UNAVAILABLE")
    assert answer["msg"].startswith("RegistryUnavailable: ")
    store.empty()


def gives_up(reg, store, answer, gate, words):
    """Pulls a layer from a server that stops sending; `gate` ends its answer."""
    reg.add("r/big", BIG)
    bend_layer(reg, BIG, answer)
    start = time.monotonic()
    store.refused(f"{reg.host}/r/big", "UNAVAILABLE", words, stall=1)
    gate.set()
    assert time.monotonic() - start < 25
    store.empty()


def test_stall(reg, store):
    gate = threading.Event()

    def answer(h, data):
        begin(h, len(data), data[:1000])
        gate.wait(30)
    gives_up(reg, store, answer, gate, "nothing came for 1 seconds")


def test_trickle(reg, store):
    """A byte now and then is no progress."""
    gate = threading.Event()

    def answer(h, data):
        begin(h, len(data))
        for i in range(300):
            h.wfile.write(data[i:i + 1])
            h.wfile.flush()
            if gate.wait(0.1):
                break
    gives_up(reg, store, answer, gate, "next to nothing came for 1 seconds")


def test_proxy(reg, store):
    """http_proxy in both spellings, but not for hosts of no_proxy."""
    reg.add("lib/small", SMALL)
    store.toml("registry.invalid", 'server = "http://registry.invalid"\n')
    seen = []

    def bend(h, kind, ref):
        seen.append(h.path)
        return False
    reg.bend = bend
    old = dict(os.environ)
    try:
        for name in ("HTTP_PROXY", "http_proxy"):
            os.environ.pop("HTTP_PROXY", None)
            os.environ.pop("http_proxy", None)
            os.environ[name] = f"http://{reg.host}"
            answer = store.pull("registry.invalid/lib/small")
            assert answer["ok"], answer
            assert seen and all(p.startswith("http://registry.invalid/v2/") for p in seen), seen
            os.environ["NO_PROXY"] = "other.invalid,registry.invalid"
            seen.clear()
            store.refused("registry.invalid/lib/small", "UNAVAILABLE", "RegistryUnavailable: ")
            assert not seen, seen
            del os.environ["NO_PROXY"]
            store.run("remove", "registry.invalid/lib/small")
    finally:
        os.environ.clear()
        os.environ.update(old)


def hang_in(reg, name, image):
    """Sends the beginning of the layer and no more until the returned event is set; its `reached` is set
    when the beginning has gone out."""
    gate = threading.Event()
    gate.reached = threading.Event()
    reg.add(name, image)

    def answer(h, data):
        begin(h, len(data), data[:100_000])
        gate.reached.set()
        gate.wait(30)
    bend_layer(reg, image, answer)
    return gate


def test_cancel(reg, store):
    gate = hang_in(reg, "c/big", BIG)
    answer = store.refused(f"{reg.host}/c/big", "CANCELLED", cancel_ms=500)
    assert answer["ms"] < 3000, answer
    store.empty()
    answer = store.refused(f"{reg.host}/c/big", "DEADLINE_EXCEEDED", deadline_ms=500)
    assert answer["ms"] < 3000, answer
    store.empty()
    gate.set()
    reg.bend = None
    store.pulled(f"{reg.host}/c/big")


def test_cancel_anywhere(reg, store):
    """Given up before, in the middle of and at the end of every document of a pull: nothing stays."""
    image = Image([{"a": noise(300_000, 7)}, {"b": b"2"}])
    reg.add("c/any", image)
    documents = ["latest", sha(image.manifest), sha(image.config)] + [sha(b) for b in image.blobs]
    for ref in documents:
        body = image.manifest if ref in documents[:2] else (image.config if ref == documents[2] else reg.blobs[ref])
        for cut in sorted({None, 0, 1, len(body) // 2, len(body) - 1}, key=lambda c: -1 if c is None else c):
            gate = threading.Event()

            def bend(h, kind, r):
                if r != ref or h.command != ("HEAD" if ref == "latest" else "GET"):
                    return False
                if cut is not None and h.command == "GET":
                    begin(h, len(body), body[:cut],
                          Content_Type=MANIFEST if kind == "manifests" else "application/octet-stream")
                gate.wait(10)
                h.close_connection = True
                return True
            reg.bend = bend
            answer = store.refused(f"{reg.host}/c/any", "CANCELLED", cancel_ms=150)
            gate.set()
            assert answer["ms"] < 3000, answer
            store.empty()
            if ref == "latest":
                break
    reg.bend = None
    store.pulled(f"{reg.host}/c/any")


def test_downloads_are_bounded(reg, store):
    """However many pulls there are, the node has so many connections for layers and no more."""
    images = [Image([{f"{k}/{i}": noise(2000, 100 * k + i)} for i in range(6)]) for k in range(3)]
    for k, image in enumerate(images):
        reg.add(f"b/{k}", image)
    layers = {sha(b) for image in images for b in image.blobs}
    busy, most, lock = [0], [0], threading.Lock()

    def bend(h, kind, ref):
        if ref not in layers:
            return False
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.05)
        with lock:
            busy[0] -= 1
        return False
    reg.bend = bend
    answers = store.run("pull", *[f"{reg.host}/b/{k}" for k in range(3)], downloads=2)
    assert all(a["ok"] for a in answers), answers
    assert most[0] == 2, most


def test_shared_layers_are_fetched_once(reg, store):
    """Images that are pulled at once and have layers in common: each blob crosses the wire once."""
    base = [{"base": noise(200_000, 1)}, {"lib": noise(100_000, 2)}]
    images = [Image(base + [{f"own{k}": b"x" * k}]) for k in range(4)]
    for k, image in enumerate(images):
        reg.add(f"s/{k}", image)
    answers = store.run("pull", *[f"{reg.host}/s/{k}" for k in range(4)])
    assert all(a["ok"] for a in answers), answers
    for image in images:
        for blob in image.blobs:
            assert reg.count(f"blobs/{sha(blob)}") == 1, reg.log
    assert len([f for f in store.files() if f.startswith("layers/")]) == 6


def test_content_changes_between_requests(reg, store):
    """The rest of a blob is another's: what was put together has not the digest, and is nothing."""
    reg.add("ch/big", BIG)
    asked = []

    def answer(h, layer):
        asked.append(h.headers.get("Range"))
        if len(asked) == 1:
            send(h, 200, layer, cut=len(layer) // 2)
        else:
            at = int(asked[-1].split("=")[1].rstrip("-"))
            rest = bytes(len(layer) - at)
            send(h, 206, rest, {"Content-Range": f"bytes {at}-{len(layer) - 1}/{len(layer)}"})
    bend_layer(reg, BIG, answer)
    answer = store.pull(f"{reg.host}/ch/big")
    assert not answer["ok"] and answer["code"] in ("DATA_LOSS", "INVALID_ARGUMENT"), answer
    assert len(asked) == 2 and asked[1], asked
    store.empty()
    reg.bend = None
    store.pulled(f"{reg.host}/ch/big")


def test_one_of_two_leaves(reg, store):
    """Two callers share a pull; the first gives up, the second gets the image."""
    gate = hang_in(reg, "c/big", BIG)
    ref = f"{reg.host}/c/big"
    p = subprocess.Popen(store.argv("--first-cancel-ms", "400", store.root, "pull", ref, ref),
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        first = json.loads(p.stdout.readline())
        assert first.get("code") == "CANCELLED" and first["ms"] < 3000, first
        reg.bend = None
        gate.set()
        second = json.loads(p.stdout.readline())
        assert second["ok"] and second["id"] == BIG.id, second
        assert reg.count("HEAD") == 1
    finally:
        gate.set()
        p.wait(20)


def test_deadline_while_connecting(reg, store):
    for host in ("192.0.2.1:5000", "registry.invalid"):
        answer = store.pull(f"{host}/x", deadline_ms=400)
        assert answer.get("code") in ("DEADLINE_EXCEEDED", "UNAVAILABLE"), answer
        assert answer["ms"] < 3000, answer
    store.empty()


def test_deadline_of_one_millisecond(reg, store):
    reg.add("lib/small", SMALL)
    store.refused(f"{reg.host}/lib/small", "DEADLINE_EXCEEDED", deadline_ms=1)
    store.empty()


def test_join(reg, store):
    """Eight pulls at once of two names with the same layers: every blob is fetched once."""
    reg.add("j/one", BIG)
    reg.add("j/two", BIG)
    refs = [f"{reg.host}/j/one", f"{reg.host}/j/two"] * 4
    answers = store.run("pull", *refs)
    assert len(answers) == 8 and all(a["ok"] and a["id"] == BIG.id for a in answers), answers
    assert reg.count(f"blobs/{sha(BIG.blobs[0])}") == 1, reg.log
    image, = store.run("list")
    assert len(image["tags"]) == 2


def test_same_layer_twice(reg, store):
    reg.add("t/twice", Image([{"a": b"1"}, {"b": b"2"}, {"a": b"1"}]))
    answer = store.pulled(f"{reg.host}/t/twice")
    assert tree(store, answer["id"]) == {"a": b"1", "b": b"2"}


def test_many_layers(reg, store):
    image = Image([{f"d/{i}": str(i).encode()} for i in range(40)])
    reg.add("t/many", image)
    store.pulled(f"{reg.host}/t/many", downloads=4)
    assert len(tree(store, image.id)) == 40


def test_shared_layers_survive_removal(reg, store):
    one = Image([{"base": b"b"}, {"one": b"1"}])
    two = Image([{"base": b"b"}, {"two": b"2"}])
    reg.add("s/one", one)
    reg.add("s/two", two)
    store.pulled(f"{reg.host}/s/one")
    store.pulled(f"{reg.host}/s/two")
    assert reg.count(f"blobs/{sha(one.blobs[0])}") == 1
    layers = len(os.listdir(store.root + "/layers"))
    assert layers == 3
    assert store.run("remove", f"{reg.host}/s/one")[0]["ok"]
    assert len(os.listdir(store.root + "/layers")) == 2
    assert tree(store, two.id) == {"base": b"b", "two": b"2"}
    assert store.run("remove", two.id, two.id)[1]["ok"]  # twice is no error
    store.empty()


def test_remove_takes_all_names(reg, store):
    for tag in ("1", "2", "3"):
        reg.add("n/x", SMALL, tag)
        store.pulled(f"{reg.host}/n/x:{tag}")
    image, = store.run("list")
    assert len(image["tags"]) == 3
    assert store.run("busy", f"{reg.host}/n/x:2")[0]["code"] == "FAILED_PRECONDITION"
    assert len(store.run("list")) == 1
    assert store.run("remove", f"{reg.host}/n/x:2")[0]["ok"]
    assert store.run("list") == []
    assert store.run("remove", f"{reg.host}/n/x:2")[0]["ok"]
    store.empty()


def test_fs_info(reg, store):
    before = store.run("fsinfo")[0]
    reg.add("r/big", BIG)
    store.pulled(f"{reg.host}/r/big")
    after = store.run("fsinfo")[0]
    assert after["bytes"] > before["bytes"] + 2_900_000 and after["inodes"] > before["inodes"]
    assert after["mountpoint"] == store.root


def test_retries(reg, store):
    reg.add("lib/small", SMALL)
    seen = {}

    def bend(h, kind, ref):
        seen[h.path] = seen.get(h.path, 0) + 1
        if seen[h.path] == 1:
            send(h, 503, b"", {"Retry-After": "0"})
            return True
        if seen[h.path] == 2 and kind == "manifests":
            send(h, 429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}',
                 {"Retry-After": "1"})
            return True
        return False
    reg.bend = bend
    store.pulled(f"{reg.host}/lib/small")


def test_server_errors(reg, store):
    reg.bend = lambda h, kind, ref: send(
        h, 500, b'{"errors":[{"code":"UNKNOWN","message":"\\u001b[31mboom\\n"}]}') or True
    answer = store.refused(f"{reg.host}/lib/small@{sha(b'x')}", "UNAVAILABLE", "boom")
    assert "\x1b" not in answer["msg"] and answer["msg"].startswith("RegistryUnavailable: ")
    reg.bend = lambda h, kind, ref: send(h, 429, b"", {"Retry-After": "3600"}) or True
    answer = store.refused(f"{reg.host}/lib/small", "UNAVAILABLE", "3600 seconds")
    assert answer["ms"] < 2000
    reg.bend = lambda h, kind, ref: send(
        h, 403, b'{"errors":[{"code":"DENIED","message":"not you"}]}') or True
    store.refused(f"{reg.host}/lib/small@{sha(b'x')}", "PERMISSION_DENIED", "DENIED: not you")
    store.empty()


def test_head_not_supported(reg, store):
    reg.add("lib/small", SMALL)

    def bend(h, kind, ref):
        if h.command == "HEAD":
            send(h, 405)
            return True
        return False
    reg.bend = bend
    store.pulled(f"{reg.host}/lib/small")


def test_redirect_keeps_secrets_home(reg, store):
    other = Registry()
    try:
        reg.add("lib/small", SMALL)
        other.add("lib/small", SMALL)

        def bend(h, kind, ref):
            if h.headers.get("Authorization") != "Basic " + base64.b64encode(b"u:secret").decode():
                send(h, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                return True
            if kind == "blobs":
                send(h, 307, b"", {"Location": f"http://{other.host}/v2/lib/small/blobs/{ref}"})
                return True
            return False
        reg.bend = bend
        store.toml(reg.host, f'server = "http://{reg.host}"\n[header]\nx-own = "mine"\n')
        store.pulled(f"{reg.host}/lib/small", user="u", password="secret")
        assert other.log, "nobody was redirected"
        for _, headers, _ in other.log:
            assert "Authorization" not in headers and "x-own" not in headers, headers
        assert all(headers.get("x-own") == "mine" for _, headers, _ in reg.log)
    finally:
        other.close()


def test_redirect_loop(reg, store):
    def bend(h, kind, ref):
        send(h, 302, b"", {"Location": h.path + "x"})
        return True
    reg.bend = bend
    store.refused(f"{reg.host}/lib/small", "UNAVAILABLE", "redirects")
    assert len(reg.log) <= 10


def test_redirect_to_file(reg, store):
    for where in ("file:///etc/passwd", "gopher://127.0.0.1/", "http://u:p@127.0.0.1/", "//"):
        reg.bend = lambda h, kind, ref, w=where: send(h, 302, b"", {"Location": w}) or True
        answer = store.pull(f"{reg.host}/lib/small")
        assert not answer["ok"], answer


class Proxy:
    """An HTTP proxy on loopback that does CONNECT: every name leads to `target`. `status` other than 200 refuses."""

    def __init__(self, target, status=200):
        self.asked = []  # "host:port", headers
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_CONNECT(self):
                outer.asked.append((self.path, dict(self.headers.items())))
                if status != 200:
                    self.send_error(status)
                    return
                with socket.create_connection(target) as up:
                    self.send_response(200)
                    self.end_headers()
                    pair = {self.connection: up, up: self.connection}
                    while True:
                        for s in select.select(list(pair), [], [])[0]:
                            data = s.recv(65536)
                            if not data:
                                return
                            pair[s].sendall(data)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Environment:
    """os.environ with changes, for a while; the proxies that main() sets are out of it."""

    def __init__(self, **more):
        self.more = more

    def __enter__(self):
        self.old = dict(os.environ)
        for name in list(os.environ):
            if name.lower() in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
                del os.environ[name]
        os.environ.update(self.more)

    def __exit__(self, *args):
        os.environ.clear()
        os.environ.update(self.old)


def test_https_proxy(reg, store):
    """CONNECT, in both spellings; the proxy sees its own credentials and nobody else's, and nobody hears of them."""
    secure = Registry(tls=issue(store.hosts, "server", authority(store.hosts, "ca"), "DNS:registry.invalid"))
    proxy = Proxy(("127.0.0.1", secure.port))
    url = f"http://prox:s3cret%21@{proxy.host}"
    try:
        secure.add("lib/small", SMALL)
        store.toml("registry.invalid", 'server = "https://registry.invalid"\nca = "../ca.pem"\n')
        token_bend(secure, lambda h, q: 200, realm="https://registry.invalid/token")
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            with Environment(**{name: url}):
                store.pulled("registry.invalid/lib/small", user="me", password="pass-w0rd")
            store.run("remove", SMALL.id)
        assert proxy.asked and all(path == "registry.invalid:443" for path, _ in proxy.asked), proxy.asked
        want = "Basic " + base64.b64encode(b"prox:s3cret!").decode()
        for _, headers in proxy.asked:
            assert headers["Proxy-Authorization"] == want and "Authorization" not in headers, headers
        assert not any("Proxy-Authorization" in headers for _, headers, _ in secure.log)
        assert any(headers.get("Authorization") == "Bearer T0KEN" for _, headers, _ in secure.log)
        del proxy.asked[:]
        with Environment(HTTPS_PROXY=url, NO_PROXY="registry.invalid"):
            answer = store.refused("registry.invalid/lib/small", "UNAVAILABLE", "RegistryUnavailable: ")
            assert not proxy.asked and "s3cret" not in json.dumps(answer) + store.stderr
        # loopback is never asked for by a proxy
        with Environment(HTTP_PROXY=url, HTTPS_PROXY=url, ALL_PROXY=url):
            reg.add("lib/small", SMALL)
            store.pulled(f"{reg.host}/lib/small")
            assert not proxy.asked
    finally:
        proxy.close()
        secure.close()


def test_proxy_refuses(reg, store):
    """A proxy that does not let us through, or is not there: said, without its credentials."""
    store.toml("registry.invalid", 'server = "https://registry.invalid"\n')
    for status in (407, 403, 0):
        proxy = Proxy(None, status)
        if status == 0:
            proxy.close()
        with Environment(HTTPS_PROXY=f"http://prox:s3cret@{proxy.host}"):
            answer = store.refused("registry.invalid/lib/small", "UNAVAILABLE", "RegistryUnavailable: ")
        assert "s3cret" not in answer["msg"] + store.stderr, answer
        assert status == 0 or str(status) in answer["msg"], answer
        if status:
            proxy.close()


def token_bend(reg, wants, give="T0KEN", uses=None, realm=None, life=None):
    """401 with a Bearer challenge at every registry path; /token answers as `wants` likes."""
    def bend(h, kind, ref):
        path = urllib.parse.urlsplit(h.path)
        if path.path == "/token":
            query = urllib.parse.parse_qs(path.query or h.posted.decode())
            status = wants(h, query)
            reply = {"token": give} if life is None else {"token": give, "expires_in": life}
            send(h, status, json.dumps(reply).encode() if status == 200 else b"{}")
            return True
        ok = h.headers.get("Authorization") == f"Bearer {give}"
        if ok and uses is not None:
            uses[0] -= 1
            ok = uses[0] >= 0
        if not ok:
            if uses is not None:
                uses[0] = 2
            send(h, 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}', {
                "WWW-Authenticate": f'Basic realm="no, \\"this\\"", Bearer '
                f'realm="{realm or f"http://{reg.host}/token"}",service="the service",'
                f'scope="repository:lib/small:pull"'})
        return not ok
    reg.bend = bend


def test_token_anonymous(reg, store):
    reg.add("lib/small", SMALL)
    seen = []

    def wants(h, query):
        seen.append((h.command, query, h.headers.get("Authorization")))
        return 200
    token_bend(reg, wants)
    store.pulled(f"{reg.host}/lib/small")
    assert seen == [("GET", {"service": ["the service"], "scope": ["repository:lib/small:pull"]},
                     None)], seen


def test_token_oauth(reg, store):
    reg.add("lib/small", SMALL)
    token_bend(reg, lambda h, q: 200 if h.command == "POST" and q["username"] == ["me"] and
               q["password"] == ["p&w"] and q["grant_type"] == ["password"] else 400)
    store.pulled(f"{reg.host}/lib/small", user="me", password="p&w")


def test_token_identity(reg, store):
    reg.add("lib/small", SMALL)
    token_bend(reg, lambda h, q: 200 if q.get("refresh_token") == ["idt"] else 401)
    store.pulled(f"{reg.host}/lib/small", identity="idt")
    store.run("remove", SMALL.id)
    answer = store.refused(f"{reg.host}/lib/small", "UNAUTHENTICATED", identity="wrong-secret")
    assert "wrong-secret" not in answer["msg"]


def test_token_basic_fallback(reg, store):
    reg.add("lib/small", SMALL)
    want = "Basic " + base64.b64encode(b"me:pw").decode()
    token_bend(reg, lambda h, q: 404 if h.command == "POST" else
               200 if h.headers.get("Authorization") == want else 401)
    store.pulled(f"{reg.host}/lib/small", auth=base64.b64encode(b"me:pw").decode())
    store.run("remove", SMALL.id)
    answer = store.refused(f"{reg.host}/lib/small", "UNAUTHENTICATED", user="me", password="bad-pw")
    assert "bad-pw" not in answer["msg"], answer
    store.empty()


def test_token_expires(reg, store):
    reg.add("lib/small", SMALL)
    fetched = []
    token_bend(reg, lambda h, q: fetched.append(1) or 200, uses=[0])
    store.pulled(f"{reg.host}/lib/small", downloads=1)
    assert len(fetched) >= 2


def test_token_is_kept(reg, store):
    """One log-in for the pulls of a repository within the token's life, and one for each who pulls."""
    for tag in ("1", "2", "3"):
        reg.add("lib/small", Image([{"tag": tag.encode()}]), tag)
    refs = [f"{reg.host}/lib/small:{tag}" for tag in ("1", "2", "3")]
    for life, times in ((300, 1), (None, 1), (5, 3), (0, 3), (-1, 3), (10**15, 1), ("300", 1)):
        fetched = []
        token_bend(reg, lambda h, q: fetched.append(q) or 200, life=life)
        del reg.log[:]
        answers = store.run("each", *refs)
        assert all(a["ok"] for a in answers), answers
        assert len(fetched) == times, (life, fetched)
        if times == 1:  # known good from the first request on
            with reg.lock:
                asked = [headers.get("Authorization") for path, headers, _ in reg.log if path.startswith("HEAD")]
            assert asked == [None] + ["Bearer T0KEN"] * 3, asked
        store.run("remove", *refs)
    fetched = []
    token_bend(reg, lambda h, q: (fetched.append(q.get("username")) or 200) if h.command == "POST" or
               not h.headers.get("Authorization") else 400, life=300)
    answers = store.run("each", refs[0], "@me:pw", refs[1], "@me:other", refs[2], "@me:pw", refs[2], "@", refs[1])
    assert all(a["ok"] for a in answers), answers
    assert fetched == [None, ["me"], ["me"]], fetched
    for d, _, names in os.walk(store.root):
        for name in names:
            with open(os.path.join(d, name), "rb") as f:
                assert b"T0KEN" not in f.read(), name


def test_kept_token_is_refused(reg, store):
    """A token that the registry no longer wants is got anew, once."""
    reg.add("lib/small", SMALL)
    reg.add("lib/small", Image([{"other": b"x"}]), "other")
    fetched = []
    token_bend(reg, lambda h, q: fetched.append(1) or 200, life=300)
    original, revoked = reg.bend, []

    def bend(h, kind, ref):
        if ref == "other" and not revoked:
            revoked.append(1)
            send(h, 401, b"", {"WWW-Authenticate": f'Bearer realm="http://{reg.host}/token",error="invalid_token"'})
            return True
        return original(h, kind, ref)
    reg.bend = bend
    answers = store.run("each", f"{reg.host}/lib/small", f"{reg.host}/lib/small:other")
    assert all(a["ok"] for a in answers), answers
    assert len(fetched) == 2 and revoked, fetched


def test_token_never_good(reg, store):
    fetched = []

    def bend(h, kind, ref):
        if h.path.startswith("/token"):
            fetched.append(1)
            send(h, 200, b'{"token":"never"}')
        else:
            send(h, 401, b"", {"WWW-Authenticate": f'Bearer realm="http://{reg.host}/token"'})
        return True
    reg.bend = bend
    store.refused(f"{reg.host}/lib/small", "UNAUTHENTICATED")
    assert 1 <= len(fetched) <= 2, fetched


def test_token_injection(reg, store):
    """A token that would end the header line is not used."""
    token_bend(reg, lambda h, q: 200, give="a\r\nX-Evil: 1")
    store.refused(f"{reg.host}/lib/small", "UNAUTHENTICATED", "unusable token")


def test_registry_token(reg, store):
    reg.add("lib/small", SMALL)
    token_bend(reg, lambda h, q: 500, give="given")
    store.pulled(f"{reg.host}/lib/small", token="given")


def test_credentials_for_another_server(reg, store):
    reg.add("lib/small", SMALL)
    store.pulled(f"{reg.host}/lib/small", user="u", password="p", server="https://other.example")

    def bend(h, kind, ref):
        send(h, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        return True
    reg.bend = bend
    store.refused(f"{reg.host}/lib/small", "UNAUTHENTICATED", user="u", password="p",
                  server="https://other.example")
    assert not any("Authorization" in headers for _, headers, _ in reg.log)
    store.refused(f"{reg.host}/lib/small", "INVALID_ARGUMENT", "base64", auth="!!!")


def test_mirror(reg, store):
    """Mirrors in file order; the upstream last; ?ns=; credentials stay with the upstream."""
    mirror = Registry()
    try:
        reg.add("lib/small", SMALL)
        mirror.add("lib/small", SMALL)
        layer = sha(SMALL.blobs[1])
        del mirror.blobs[layer]
        store.toml("images.example", f'server = "http://{reg.host}"\n'
                   f'[host."http://{mirror.host}"]\ncapabilities = ["pull"]\n')
        store.pulled("images.example/lib/small", user="u", password="p")
        assert mirror.count("manifests/latest") == 0  # may not resolve
        assert reg.count("manifests/latest") == 1
        assert mirror.count(f"blobs/{layer}") == 1 and reg.count(f"blobs/{layer}") == 1
        assert reg.count(f"blobs/{sha(SMALL.blobs[0])}") == 0
        assert all("ns=images.example" in entry[0] for entry in mirror.log + reg.log), reg.log
        assert not any("Authorization" in headers for _, headers, _ in mirror.log)
        image, = store.run("list")
        assert image["tags"] == ["images.example/lib/small:latest"]
    finally:
        mirror.close()


def test_mirror_down(reg, store):
    reg.add("lib/small", SMALL)
    store.toml("images.example", f'server = "http://{reg.host}"\n[host."http://127.0.0.1:9"]\n')
    store.pulled("images.example/lib/small")
    store.refused("images.example/lib/none", "NOT_FOUND")


def test_mirror_path(reg, store):
    reg.add("lib/small", SMALL)
    reg.bend = lambda h, kind, ref: not h.path.startswith("/cache/hub/") and not send(h, 404)
    original = reg.answer

    def answer(h, kind, ref):
        h.name = h.name.replace("hub/v2/", "").replace("hub/", "")
        original(h, kind, ref)
    reg.answer = answer
    store.toml("docker.io", f'[host."http://{reg.host}/cache/hub"]\n')
    store.pulled("lib/small")
    assert reg.log[0][0].startswith("HEAD /cache/hub/v2/lib/small/"), reg.log[0]
    store.toml("docker.io", f'[host."http://{reg.host}/cache/hub"]\noverride_path = true\n')
    del reg.log[:]
    store.pulled("lib/small")
    assert reg.log[0][0].startswith("HEAD /cache/hub/lib/small/"), reg.log[0]


def test_hosts_file_wrong(reg, store):
    store.toml(reg.host, "server = 1\n")
    store.refused(f"{reg.host}/x", "INVALID_ARGUMENT", "hosts.toml: line 1")
    store.toml(reg.host, 'server = "http://a b"\n')
    store.refused(f"{reg.host}/x", "INVALID_ARGUMENT", "usable URL")


def certificate(directory):
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
         directory + "/key.pem", "-out", directory + "/cert.pem"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise Skip("no openssl program")
    return directory + "/cert.pem", directory + "/key.pem"


def openssl(*args):
    done = subprocess.run(["openssl", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()


def authority(directory, name):
    """A CA of its own: (certificate, key)."""
    if not shutil.which("openssl"):
        raise Skip("no openssl program")
    cert, key = f"{directory}/{name}.pem", f"{directory}/{name}.ca-key"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN=aspis test {name}", "-keyout", key, "-out", cert)
    return cert, key


def issue(directory, name, ca, san="DNS:client"):
    """A certificate of that CA: (certificate, key)."""
    cert, key, request = (f"{directory}/{name}.{ext}" for ext in ("cert", "key", "req"))
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-addext", f"subjectAltName={san}", "-keyout", key, "-out", request)
    openssl("x509", "-req", "-in", request, "-CA", ca[0], "-CAkey", ca[1], "-CAcreateserial", "-days", "2",
            "-copy_extensions", "copy", "-out", cert)
    return cert, key


def test_tls_by_the_system(reg, store):
    """An authority that the machine trusts needs no configuration; a CA of hosts.toml comes beside, not instead."""
    if os.geteuid() != 0:
        raise Skip("wants root")
    system, own = authority(store.hosts, "system"), authority(store.hosts, "own")
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    hashed = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", system[0]], stdout=subprocess.PIPE).stdout.decode().strip()
    fake = store.hosts + "/fake-etc-ssl-certs"
    os.mkdir(fake)
    shutil.copy(system[0], f"{fake}/{hashed}.0")
    shutil.copy(system[0], f"{fake}/ca-certificates.crt")
    secure = Registry(tls=issue(store.hosts, "server", system, "IP:127.0.0.1"))
    ref = f"{secure.host}/lib/small"

    def pull():
        argv = ["unshare", "-m", "sh", "-c", f'mount --bind "{fake}" /etc/ssl/certs && exec "$@"', "sh", TOOL, "--unpacker", UNPACK,
                "--hosts", store.hosts, "--stall", "5", store.root, "pull", ref]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        if b"unshare failed" in done.stderr:
            raise Skip("no mount namespaces here")
        return json.loads(done.stdout)
    try:
        assert os.path.exists(bundle)
        secure.add("lib/small", SMALL)
        store.toml(secure.host, f'server = "https://{secure.host}"\n')
        store.refused(ref, "UNAVAILABLE", "certificate")
        answer = pull()
        assert answer["ok"], answer
        store.run("remove", ref)
        store.toml(secure.host, f'server = "https://{secure.host}"\nca = "../own.pem"\n')
        assert own and pull()["ok"]
    finally:
        secure.close()


def test_client_certificates(reg, store):
    """They are shown to the host's own origin only, and files that will not do are named."""
    ours, theirs = authority(store.hosts, "ours"), authority(store.hosts, "theirs")
    issue(store.hosts, "one", theirs)
    issue(store.hosts, "two", ours)
    secure = Registry(tls=issue(store.hosts, "server", ours, "IP:127.0.0.1"), clients=ours[0])
    other = Registry(tls=(store.hosts + "/server.cert", store.hosts + "/server.key"), clients=ours[0], optional=True)
    ref = f"{secure.host}/lib/small"
    head = f'server = "https://{secure.host}"\nca = "../ours.pem"\n'
    try:
        secure.add("lib/small", SMALL)
        store.toml(secure.host, head + 'client = [["../two.cert", "../two.key"]]\n')
        store.pulled(ref)
        store.run("remove", ref)
        # one file for certificate, key and chain
        with open(store.hosts + "/both.pem", "w") as f:
            for name in ("two.cert", "two.key", "ours.pem"):
                f.write(open(f"{store.hosts}/{name}").read())
        store.toml(secure.host, head + 'client = ["../both.pem"]\n')
        store.pulled(ref)
        store.run("remove", ref)
        # Docker's layout
        shutil.rmtree(os.path.join(store.hosts, secure.host))
        docker = os.path.join(store.hosts, secure.host)
        os.mkdir(docker)
        for name in ("two.cert", "two.key"):
            shutil.copy(f"{store.hosts}/{name}", docker)
        shutil.copy(ours[0], docker + "/ca.crt")
        store.pulled(ref)
        store.run("remove", ref)
        # a redirect elsewhere takes no certificate along
        store.toml(secure.host, head + 'client = ["../both.pem"]\n')
        secure.bend = lambda h, kind, r: kind == "blobs" and not send(
            h, 307, b"", {"Location": f"https://{other.host}{h.path}"})
        other.add("lib/small", SMALL)
        store.pulled(ref)
        assert other.shown and not any(other.shown) and all(secure.shown), (secure.shown, other.shown)
        secure.bend = None
        store.run("remove", ref)
        store.toml(secure.host, head + 'client = [["../one.cert", "../one.key"]]\n')
        store.refused(ref, "UNAVAILABLE", "RegistryUnavailable: ")
        store.toml(secure.host, head)
        store.refused(ref, "UNAVAILABLE", "RegistryUnavailable: ")
        # files that will not do are named
        openssl("ec", "-in", store.hosts + "/two.key", "-aes128", "-passout", "pass:x", "-out", store.hosts + "/locked.key")
        for pair, words in (('"../two.cert", "../one.key"', "one.key: not the key"),
                            ('"../two.cert", "../locked.key"', "locked.key: no key in PEM form without"),
                            ('"../two.key", "../two.key"', "two.key: no certificate"),
                            ('"../none.cert", "../two.key"', "none.cert")):
            store.toml(secure.host, head + f"client = [[{pair}]]\n")
            answer = store.pull(ref)
            assert not answer["ok"] and words in answer["msg"], answer
        store.empty()
    finally:
        secure.close()
        other.close()


def test_tls(reg, store):
    secure = Registry(tls=certificate(store.hosts))
    try:
        secure.add("lib/small", SMALL)
        ref = f"{secure.host}/lib/small"
        store.toml(secure.host, f'server = "https://{secure.host}"\n')
        answer = store.refused(ref, "UNAVAILABLE", "certificate")
        assert answer["ms"] < 5000
        store.empty()
        store.toml(secure.host, f'server = "https://{secure.host}"\nca = "../cert.pem"\n')
        store.pulled(ref)
        store.run("remove", ref)
        store.toml(secure.host, f'server = "https://{secure.host}"\nskip_verify = true\n')
        store.pulled(ref)
        store.run("remove", ref)
        # Docker's layout, in the directory's other form.
        shutil.rmtree(os.path.join(store.hosts, secure.host))
        docker = os.path.join(store.hosts, f"127.0.0.1_{secure.port}_")
        os.mkdir(docker)
        shutil.copy(store.hosts + "/cert.pem", docker + "/ca.crt")
        store.pulled(ref)
        store.run("remove", ref)
        # From TLS to plain HTTP: no.
        reg.add("lib/small", SMALL)
        secure.bend = lambda h, kind, r: kind == "blobs" and not send(
            h, 307, b"", {"Location": f"http://{reg.host}{h.path}"})
        store.refused(ref, "UNAVAILABLE", "away from TLS")
        assert not reg.log
        store.empty()
    finally:
        secure.close()


def test_damaged_records(reg, store):
    reg.add("lib/small", SMALL)
    ref = f"{reg.host}/lib/small:latest"
    store.pulled(ref)
    # Names can still be read when only some page is bad.
    db = store.root + "/images.db"
    c = sqlite3.connect(db)
    c.execute("PRAGMA user_version = 99")
    c.close()
    image, = store.run("list")
    assert image["id"] == SMALL.id and image["tags"] == [ref], image
    assert "damaged" in store.stderr
    assert os.path.exists(db + ".damaged")
    # Nothing can be read.
    for name in os.listdir(store.root):
        if name.startswith("images.db"):
            os.unlink(f"{store.root}/{name}")
    with open(db, "wb") as f:
        f.write(noise(100_000, "junk"))
    image, = store.run("list")
    assert image["id"] == SMALL.id and image["tags"] == [] and image["layers"] == 2, image
    assert tree(store, SMALL.id) == {"etc/a": b"one\n", "etc/b": b"two\n"}
    before = len(reg.log)
    store.pulled(ref)
    assert not any("blobs" in entry[0] for entry in reg.log[before:])
    assert store.run("list")[0]["tags"] == [ref]


def test_damaged_files(reg, store):
    reg.add("lib/small", SMALL)
    reg.add("lib/big", BIG)
    store.pulled(f"{reg.host}/lib/small")
    store.pulled(f"{reg.host}/lib/big")
    # Leftovers of a killed daemon.
    for path in ("tmp/7", "layers/" + "a" * 64 + ".erofs", "layers/junk", "blobs/sha256/" + "b" * 64,
                 "meta/" + "c" * 64 + ".erofs"):
        with open(f"{store.root}/{path}", "w") as f:
            f.write("x")
    with open(f"{store.root}/layers/{sha(BIG.tars[0])[7:]}.erofs", "r+b") as f:
        f.truncate(4096)
    images = store.run("list")
    assert [i["id"] for i in images] == [SMALL.id], images
    assert "dropped" in store.stderr
    assert not any("junk" in f or "a" * 64 in f or "b" * 64 in f or "c" * 64 in f or "tmp" in f
                   for f in store.files()), store.files()
    store.pulled(f"{reg.host}/lib/big")
    assert tree(store, BIG.id)["big"] == noise(3_000_000, "big")
    # A lost tree is merged again; a lost config drops the image.
    os.unlink(f"{store.root}/meta/{SMALL.id[7:]}.erofs")
    assert len(store.run("list")) == 2
    assert tree(store, SMALL.id)["etc/a"] == b"one\n"
    os.unlink(f"{store.root}/blobs/sha256/{SMALL.id[7:]}")
    assert [i["id"] for i in store.run("list")] == [BIG.id]


def test_killed(reg, store):
    """SIGKILL in the middle of a pull; the next start cleans up and pulls."""
    gate = hang_in(reg, "k/big", BIG)
    p = subprocess.Popen(store.argv(store.root, "pull", f"{reg.host}/k/big"),
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert gate.reached.wait(20)
    p.kill()
    p.wait()
    gate.set()
    reg.bend = None
    assert store.run("list") == []
    store.empty()
    store.pulled(f"{reg.host}/k/big")


def test_one_daemon(reg, store):
    gate = hang_in(reg, "k/big", BIG)
    p = subprocess.Popen(store.argv(store.root, "pull", f"{reg.host}/k/big"),
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert gate.reached.wait(20)
        assert "in use" in store.run("list")[0]["msg"]
    finally:
        p.kill()
        p.wait()
        gate.set()


def test_full_disk(reg, store):
    """RLIMIT_FSIZE stands for a full disk: an error that says so, and nothing left."""
    reg.add("r/big", BIG)
    shell = ["bash", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "x",
             *store.argv(store.root, "pull", f"{reg.host}/r/big")]
    done = subprocess.run(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    answer = json.loads(done.stdout.splitlines()[0])
    assert not answer["ok"], answer
    store.empty()
    store.pulled(f"{reg.host}/r/big")


def test_full_file_system(reg, store):
    """On a full disk the store opens, lists, and gives room back when an image is removed."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "aspis-test",
                                       store.root], stderr=subprocess.DEVNULL).returncode:
        raise Skip("cannot mount a tmpfs")
    try:
        reg.add("lib/small", SMALL)
        reg.add("lib/big", BIG)
        store.pulled(f"{reg.host}/lib/small")
        before = store.files()
        store.refused(f"{reg.host}/lib/big", "RESOURCE_EXHAUSTED", "No space left")
        assert store.files() == before
        try:
            with open(store.root + "/fill", "wb", buffering=0) as f:
                while f.write(b"x" * 4096):
                    pass
        except OSError:
            pass
        assert [i["id"] for i in store.run("list")] == [SMALL.id]
        assert store.run("remove", SMALL.id)[0]["ok"]
        assert store.files() == ["./fill"]
        os.unlink(store.root + "/fill")
        assert store.run("list") == []
        store.pulled(f"{reg.host}/lib/small")
    finally:
        subprocess.run(["umount", store.root], check=True)


def test_jailed(reg, store):
    if not JAIL:
        raise Skip("wants root and aspis-jail")
    os.chmod(store.root, 0o700)
    reg.add("lib/small", SMALL)
    store.pulled(f"{reg.host}/lib/small", jail=True)
    assert tree(store, SMALL.id) == {"etc/a": b"one\n", "etc/b": b"two\n"}


def push(port, name, image, tag, context=None):
    """Plain distribution API, as any client would."""
    base = f"http{'s' if context else ''}://127.0.0.1:{port}/v2/{name}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def call(method, url, data=b"", kind="application/octet-stream"):
        request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
        return opener.open(request, timeout=20)
    for blob in image.blobs + [image.config]:
        where = call("POST", base + "/blobs/uploads/").headers["Location"]
        where = urllib.parse.urljoin(base, where)
        call("PUT", where + ("&" if "?" in where else "?") + "digest=" + sha(blob), blob)
    call("PUT", f"{base}/manifests/{tag}", image.manifest, image.type)


class DockerRegistry:
    """Debian's docker-registry on a free port; `tls` is more JSON of its http.tls section."""

    def __init__(self, store, tls=None):
        if not shutil.which("docker-registry"):
            raise Skip("docker-registry is not installed")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.where = store.root + "-registry"
        os.mkdir(self.where)
        config = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": self.where + "/data"}},
                  "http": {"addr": f"127.0.0.1:{self.port}", **({"tls": tls} if tls else {})}, "log": {"level": "info"}}
        with open(self.where + "/config.yml", "w") as f:
            json.dump(config, f)  # JSON is YAML

    def __enter__(self):
        self.process = subprocess.Popen(["docker-registry", "serve", self.where + "/config.yml"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for line in self.process.stderr:
            if b"listening on" in line:
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return self
        self.__exit__()
        raise AssertionError("docker-registry does not start")

    def __exit__(self, *args):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        shutil.rmtree(self.where)


def test_client_certificate_is_chosen(reg, store):
    """Of several pairs the one is shown that an authority which the registry names has issued, wherever it stands."""
    ours, theirs = authority(store.hosts, "ours"), authority(store.hosts, "theirs")
    issue(store.hosts, "one", theirs)
    issue(store.hosts, "two", ours)
    server = issue(store.hosts, "server", ours, "IP:127.0.0.1")
    with DockerRegistry(store, {"certificate": server[0], "key": server[1], "clientcas": [ours[0]]}) as real:
        context = ssl.create_default_context(cafile=ours[0])
        context.load_cert_chain(store.hosts + "/two.cert", store.hosts + "/two.key")
        push(real.port, "team/app", SMALL, "1.0", context)
        host = f"127.0.0.1:{real.port}"
        one, two = '["../one.cert", "../one.key"]', '["../two.cert", "../two.key"]'
        for order in (f"{one}, {two}", f"{two}, {one}", two, f"{one}, {one}, {two}"):
            store.toml(host, f'server = "https://{host}"\nca = "../ours.pem"\nclient = [{order}]\n')
            store.pulled(f"{host}/team/app:1.0")
            store.run("remove", SMALL.id)
        store.toml(host, f'server = "https://{host}"\nca = "../ours.pem"\nclient = [{one}]\n')
        store.refused(f"{host}/team/app:1.0", "UNAVAILABLE", "RegistryUnavailable: ")
        # Docker's layout: the first by name is not the right one
        shutil.rmtree(os.path.join(store.hosts, host))
        docker = os.path.join(store.hosts, host)
        os.mkdir(docker)
        for name in ("one.cert", "one.key", "two.cert", "two.key"):
            shutil.copy(f"{store.hosts}/{name}", docker)
        shutil.copy(ours[0], docker + "/ca.crt")
        store.pulled(f"{host}/team/app:1.0")


def test_docker_registry(reg, store):
    with DockerRegistry(store) as real:
        port = real.port
        image = Image([{"bin/x": noise(200_000, 1)}, {"etc/y": b"y"}])
        push(port, "team/app", image, "1.0")
        ref = f"localhost:{port}/team/app"
        assert store.pulled(ref + ":1.0")["id"] == image.id
        store.run("remove", image.id)
        store.pulled(f"{ref}@{sha(image.manifest)}")
        assert tree(store, image.id) == {"bin/x": noise(200_000, 1), "etc/y": b"y"}
        store.refused(ref + ":2.0", "NOT_FOUND")
        store.refused(f"localhost:{port}/team/none", "NOT_FOUND")
        if shutil.which("zstd"):
            packed = Image([{"z": b"zstd"}], "zstd")
            push(port, "team/zstd", packed, "latest")
            assert tree(store, store.pulled(f"localhost:{port}/team/zstd")["id"]) == {"z": b"zstd"}


def main():
    # A proxy in the environment must not see loopback traffic.
    os.environ["http_proxy"] = os.environ["HTTP_PROXY"] = "http://127.0.0.1:9"
    tests = [(name, f) for name, f in globals().items() if name.startswith("test_")]
    only = os.environ.get("ONLY")
    if only:
        tests = [t for t in tests if only in t[0]]
    print(f"1..{len(tests)}")
    failed = 0
    for number, (name, f) in enumerate(tests, 1):
        reg, store = Registry(), Store()
        try:
            f(reg, store)
            print(f"ok {number} - {name}", flush=True)
        except Skip as e:
            print(f"ok {number} - {name} # SKIP {e}", flush=True)
        except Exception as e:  # noqa: BLE001 - every failure is one "not ok"
            failed += 1
            line = e.__traceback__
            while line.tb_next:
                line = line.tb_next
            print(f"not ok {number} - {name}", flush=True)
            print(f"# line {line.tb_lineno}: {type(e).__name__}: {str(e)[:2000]}", flush=True)
            print("# " + getattr(store, "stderr", "")[-1500:].replace("\n", "\n# "), flush=True)
        finally:
            reg.close()
            store.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
