"""The images of the tests, all made here out of busybox-static: good ones in every format, and broken ones.

    refs = publish(registry, work)      short name -> reference, see CATALOGUE below
"""
import functools
import importlib.machinery
import importlib.util
import json
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _load_mkimage():
    loader = importlib.machinery.SourceFileLoader("mkimage", str(ROOT / "deploy/mkimage"))
    spec = importlib.util.spec_from_loader("mkimage", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


mkimage = _load_mkimage()
mkimage.busybox_layer = functools.lru_cache(mkimage.busybox_layer)
Layout, Tar = mkimage.Layout, mkimage.Tar
OTHER_ARCH = "arm64" if mkimage.goarch() != "arm64" else "amd64"

# What the image `configured` says of itself.
CONFIGURED = {
    "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $GREETING from $PWD"],
    "Env": ["PATH=/usr/bin:/bin", "GREETING=hello"], "WorkingDir": "/made/at/start", "StopSignal": "SIGUSR1",
    "Volumes": {"/data": {}}, "Labels": {"org.example.test": "yes"}, "ExposedPorts": {"80/tcp": {}},
}
USERS = {"user-nobody": "nobody", "user-app": "app", "user-uid": "1000", "user-uid-gid": "1000:2000",
         "user-app-group": "app:more", "user-missing": "ghost"}


# ---- the many-layered image ----

def layered(count=40):
    """`count` layers that add, replace, hide and link below /t, the first being busybox. Returns their tars and what
    a correct union holds: path -> content of all regular files below /t."""
    tars, want = [mkimage.busybox_layer()], {}

    def drop(prefix):
        for p in [p for p in want if p == prefix or p.startswith(prefix + "/")]:
            del want[p]

    for i in range(1, count):
        t = Tar().dir("t")

        def put(path, text):
            t.file(path, text)
            want[path] = text

        put(f"t/n{i}", f"{i}\n")
        put("t/same", f"same {i}\n")
        t.dir(f"t/d{i}")
        put(f"t/d{i}/a", f"a{i}\n")
        put(f"t/d{i}/b", f"b{i}\n")
        if i % 5 == 0:
            t.file(f"t/.wh.n{i - 3}", "")
            drop(f"t/n{i - 3}")
        if i % 7 == 0:  # an opaque directory hides what is below, not what the same layer brings, in either order
            drop(f"t/d{i - 1}")
            t.dir(f"t/d{i - 1}")
            put(f"t/d{i - 1}/before", "x\n")
            t.file(f"t/d{i - 1}/.wh..wh..opq", "")
            put(f"t/d{i - 1}/after", "y\n")
        if i == 9:  # a whiteout after its namesake in one layer: the new one stays
            drop("t/d4")
            t.dir("t/d4")
            put("t/d4/new", "new\n")
            t.file("t/.wh.d4", "")
        if i == 20:  # a file in place of a directory
            drop("t/d3")
            put("t/d3", "a file now\n")
        if i == 21:  # and the other way round
            drop("t/n1")
            t.dir("t/n1")
            put("t/n1/x", "x\n")
        if i == 25:  # a hard link to a file of a lower layer
            t.hardlink("t/link", "t/n24")
            want["t/link"] = want["t/n24"]
        if i == 30:  # a symbolic link in place of a directory; what was in it is gone
            drop("t/d8")
            t.symlink("t/d8", "d9")
        if i == 32:
            t.file("t/xattr", "x\n", pax={"SCHILY.xattr.user.test": "value"})
            want["t/xattr"] = "x\n"
        if i == 33:  # whiteouts of what is not there
            t.file("t/.wh.never", "").file("t/.wh..wh.aufs", "")
        tars.append(t.done())
    return tars, want


def nested_directory():
    """Paths of 3 kB, names of 255 bytes, a file without its parents in the tar."""
    t = Tar()
    t.file("no/parents/here", "x\n")
    t.file("n" * 255, "long\n")
    t.file("/".join(["d" * 100] * 30) + "/f", "deep\n")
    return t.done()


# ---- hostile layers ----

def hostile_layers():
    """Name -> tar. What must hold for each: nothing is made outside of the root, and nothing crashes."""
    def one(*entries):
        t = Tar()
        for how, *args in entries:
            getattr(t, how)(*args)
        return t.done()

    many_links = Tar().file("f", "x")
    for i in range(2000):
        many_links.hardlink(f"l{i}", "f" if i == 0 else f"l{i - 1}")
    device = Tar()
    device.add("dev-null", tarfile.CHRTYPE, 0o666, major=1, minor=3)
    device.add("dev-disk", tarfile.BLKTYPE, 0o660, major=8, minor=0)
    device.add("fifo", tarfile.FIFOTYPE, 0o644)
    good = mkimage.busybox_layer()
    return {
        "dotdot": one(("file", "../escaped", "x"), ("file", "a/../../escaped", "x"), ("dir", "..")),
        "absolute": one(("file", "/etc/absolute", "x"), ("file", "//etc//absolute2", "x")),
        "symlink": one(("symlink", "up", "../../../.."), ("file", "up/tmp/aspis-escaped", "x"),
                       ("symlink", "abs", "/"), ("file", "abs/tmp/aspis-escaped", "x")),
        "hardlink": one(("hardlink", "shadow", "../../../../etc/shadow"), ("hardlink", "passwd", "/etc/passwd-none")),
        "device": device.done(),
        "whiteouts": one(("file", ".wh.", ""), ("file", ".wh...", ""), ("file", ".wh..", ""), ("file", ".wh..wh..opq", ""),
                         ("file", "a/.wh.../x", "x")),
        "loop": one(("symlink", "a", "b"), ("symlink", "b", "a"), ("file", "a/x", "x")),
        "links": many_links.done(),
        "cut": good[:len(good) // 2 + 100],
        "garbage": bytes(range(256)) * 400,
    }


# ---- all of it ----

def build(work, only=None):
    """Writes the layouts below `work`, or those named; short name -> layout directory."""
    work = Path(work)
    busybox = mkimage.busybox_layer()
    small = Tar().dir("extra").file("extra/file", "from the second layer\n").done()
    out = {}

    def layout(name, make):
        if only is not None and name not in only:
            return
        made = Layout(work / name)
        made.tag(make(made))
        out[name] = made.dir

    layout("busybox", lambda w: w.image([busybox]))
    layout("docker", lambda w: w.image([busybox, small], docker=True))
    layout("zstd", lambda w: w.image([busybox, small], how="zstd"))
    layout("plain", lambda w: w.image([busybox, small], how="none"))
    layout("mixed", lambda w: w.image([busybox, small, nested_directory()], how=["zstd", "none", "gzip"]))
    layout("configured", lambda w: w.image([busybox], CONFIGURED))
    layout("no-command", lambda w: w.image([busybox], {"Cmd": None}))
    for name, user in USERS.items():
        layout(name, lambda w, user=user: w.image([busybox], {"User": user, "Cmd": ["id"]}))
    tars, _ = layered()
    layout("layers40", lambda w: w.image(tars))
    layout("layers40-zstd", lambda w: w.image(tars, how="zstd"))
    layout("multi", lambda w: index(w, busybox))
    layout("multi-docker", lambda w: index(w, busybox, docker=True))
    layout("other-platform", lambda w: index(w, busybox, archs=[OTHER_ARCH]))
    layout("nested-index", lambda w: w.blob(mkimage.to_json({
        "schemaVersion": 2, "mediaType": mkimage.INDEX, "manifests": [index(w, busybox)]}), mkimage.INDEX))
    layout("empty-index", lambda w: w.blob(mkimage.to_json(
        {"schemaVersion": 2, "mediaType": mkimage.INDEX, "manifests": []}), mkimage.INDEX))
    layout("bad-diffid", lambda w: w.image([busybox, small], diff_ids=[mkimage.digest(busybox), mkimage.digest(b"not it")]))
    layout("bad-count", lambda w: w.image([busybox, small], diff_ids=[mkimage.digest(busybox)]))
    layout("bad-config", lambda w: bad_config(w, busybox))
    for name, tar in hostile_layers().items():
        layout(f"bad-{name}", lambda w, tar=tar: w.image([busybox, tar]))
    return out


def index(layout, busybox, docker=False, archs=None):
    """A list of platforms and, as docker buildx leaves it, an attestation that is no image."""
    manifests = []
    for arch in archs or [OTHER_ARCH, mkimage.goarch()]:
        marker = Tar().file("platform", arch + "\n").done()
        manifests.append({**layout.image([busybox, marker] if arch == mkimage.goarch() else [marker], arch=arch, docker=docker),
                          "platform": {"os": "linux", "architecture": arch}})
    statement = layout.blob(b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")
    attestation = {"schemaVersion": 2, "mediaType": mkimage.MANIFEST,
                   "config": layout.blob(b'{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":[]}}',
                                         mkimage.CONFIG), "layers": [statement]}
    if not docker:
        manifests.insert(0, {**layout.blob(mkimage.to_json(attestation), mkimage.MANIFEST),
                             "platform": {"os": "unknown", "architecture": "unknown"},
                             "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                                             "vnd.docker.reference.digest": manifests[-1]["digest"]}})
    kind = "application/vnd.docker.distribution.manifest.list.v2+json" if docker else mkimage.INDEX
    return layout.blob(mkimage.to_json({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}), kind)


def bad_config(layout, busybox):
    """A config of the right digest that is no image config."""
    good = layout.image([busybox])
    manifest = json.loads((layout.dir / "blobs/sha256" / good["digest"][7:]).read_bytes())
    manifest["config"] = layout.blob(b'{"rootfs":{"type":"layers","diff_ids":"none"},"config":[],"os":7}', mkimage.CONFIG)
    return layout.blob(mkimage.to_json(manifest), mkimage.MANIFEST)


def layers_of(layout):
    """Descriptors of the layers of a single-platform layout."""
    layout = Path(layout)
    top = json.loads((layout / "index.json").read_text())["manifests"][-1]
    return json.loads((layout / "blobs/sha256" / top["digest"][7:]).read_text())["layers"]


def publish(registry, work, only=None):
    """Builds everything and pushes it as <host>/test/<short name>:latest, plus
      bad-digest   a layer whose bytes are others than its digest says
      bad-size     a layer that is shorter than its descriptor says
    Returns short name -> reference."""
    work = Path(work)
    refs = {name: registry.push(path, f"test/{name}") for name, path in build(work, only).items()}
    for name, change in (("bad-digest", lambda b: b[:-1] + bytes([b[-1] ^ 1])), ("bad-size", lambda b: b[:-1])):
        if only is not None and name not in only:
            continue
        # a layer of its own: the registry keeps one copy of a blob for all images
        made = Layout(work / name)
        made.tag(made.image([mkimage.busybox_layer(), Tar().file("name", name).done()]))
        refs[name] = registry.push(made.dir, f"test/{name}")
        registry.damage(layers_of(made.dir)[1]["digest"], change)
    return refs
