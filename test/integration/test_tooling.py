"""The tests' own tools: what images.py makes and registry.py serves is what other people's programs take it for."""
import json
import os
import shutil
import subprocess
import urllib.request

import pytest

import images as im
from registry import PASSWORD, USER, FaultyRegistry, Registry

pytestmark = pytest.mark.once("tools, not pods")

GOOD = ["busybox", "docker", "zstd", "plain", "mixed", "layers40", "layers40-zstd", "multi", "multi-docker",
        "configured", "user-app"]  # not nested-index: skopeo does not follow an index within an index
skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")


def run(*argv, ok=True):
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, env=env)
    assert (p.returncode == 0) == ok, f"{argv}: {p.returncode}\n{p.stdout}{p.stderr}"
    return p.stdout + p.stderr


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return im.build(tmp_path_factory.mktemp("images"))


@skopeo
@pytest.mark.parametrize("name", GOOD)
def test_a_good_layout_is_copied(name, layouts, tmp_path):
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layouts[name]}", f"dir:{tmp_path}/out")
    info = json.loads(run("skopeo", "inspect", "--config", f"oci:{layouts[name]}"))
    assert info["architecture"] == im.mkimage.goarch()


def test_the_same_input_gives_the_same_bytes(layouts, tmp_path):
    again = im.build(tmp_path)
    for name, path in layouts.items():
        assert (path / "index.json").read_bytes() == (again[name] / "index.json").read_bytes(), name


@pytest.mark.skipif(shutil.which("umoci") is None or os.geteuid() != 0, reason="no umoci or not root")
@pytest.mark.parametrize("name", ["layers40", "layers40-zstd"])
def test_the_layers_mean_what_they_are_said_to(name, layouts, tmp_path):
    if name.endswith("zstd"):
        run("skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", "gzip", "--dest-compress",
            f"oci:{layouts[name]}", f"oci:{tmp_path}/gz:latest")
        source = f"{tmp_path}/gz:latest"
    else:
        source = f"{layouts[name]}:latest"
    run("umoci", "unpack", "--image", source, str(tmp_path / "out"))
    root = tmp_path / "out/rootfs"
    have = {str(p.relative_to(root)): p.read_text() for p in (root / "t").rglob("*") if p.is_file() and not p.is_symlink()}
    _, want = im.layered()
    assert have == want
    assert os.readlink(root / "t/d8") == "d9"


@skopeo
@pytest.mark.parametrize("auth,tls", [(None, False), (None, True), ("basic", False), ("token", False)])
def test_a_registry_takes_and_gives(auth, tls, layouts, tmp_path):
    r = Registry(auth=auth, tls=tls).start()
    try:
        pid = r.proc.pid
        flags = ["--src-tls-verify=false"]
        creds = [f"--src-creds={USER}:{PASSWORD}"] if auth else []
        for name in ("busybox", "docker", "multi", "zstd"):
            ref = r.push(layouts[name], f"test/{name}", "v1")
            assert ref == f"{r.host}/test/{name}:v1"
            run("skopeo", "--insecure-policy", "copy", "-q", *flags, *creds, f"docker://{ref}", f"dir:{tmp_path}/{name}")
        if auth:
            text = run("skopeo", "--insecure-policy", "copy", "-q", *flags, f"docker://{r.host}/test/busybox:v1",
                       f"dir:{tmp_path}/x", ok=False)
            assert "unauthorized" in text.lower() or "denied" in text.lower() or "authentication required" in text.lower()
            run("skopeo", "--insecure-policy", "copy", "-q", *flags, f"--src-creds={USER}:wrong",
                f"docker://{r.host}/test/busybox:v1", f"dir:{tmp_path}/x", ok=False)
        if auth == "token":
            ref = r.push(layouts["busybox"], "public/busybox")
            run("skopeo", "--insecure-policy", "copy", "-q", *flags, f"docker://{ref}", f"dir:{tmp_path}/public")
            assert any(known for _, _, known in r.tokens.requests)
    finally:
        r.stop()
    assert not os.path.exists(f"/proc/{pid}") and not r.dir.exists()


@skopeo
def test_everything_is_published_and_the_broken_is_broken(tmp_path):
    r = Registry().start()
    try:
        refs = im.publish(r, tmp_path / "w")
        for name in GOOD + ["nested-index", "bad-dotdot", "bad-device"]:
            run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{refs[name]}")
        for name in ("bad-digest", "bad-size"):
            run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{refs[name]}",
                f"dir:{tmp_path}/out", ok=False)
    finally:
        r.stop()


FAULTS = {"none": True, "redirect": True, "busy": True, "basic": False, "flip": False, "garbage-manifest": False,
          "wrong-manifest": False, "loop": False, "error": False, "short-always": False}


@skopeo
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_registry_fails_as_told(fault, layouts, tmp_path):
    r = FaultyRegistry(layouts["busybox"], fault).start()
    try:
        # by digest, so that a manifest of another digest is noticed
        top = json.loads((layouts["busybox"] / "index.json").read_text())["manifests"][-1]
        ref = r.ref().rsplit(":", 1)[0] + "@" + top["digest"]
        run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{ref}", f"dir:{tmp_path}/out",
            ok=FAULTS[fault])
        if fault == "redirect":
            assert r.elsewhere
    finally:
        r.stop()


def test_a_broken_off_blob_can_be_resumed(layouts):
    r = FaultyRegistry(layouts["busybox"], "short-blob").start()
    layer = im.layers_of(layouts["busybox"])[0]
    url = f"http://{r.host}/v2/test/image/blobs/{layer['digest']}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        got = b""
        try:
            with opener.open(url, timeout=10) as reply:
                while piece := reply.read1(65536):
                    got += piece
        except Exception:
            pass
        assert 0 < len(got) < layer["size"]
        rest = urllib.request.Request(url, headers={"Range": f"bytes={len(got)}-"})
        with opener.open(rest, timeout=10) as reply:
            assert reply.status == 206
            got += reply.read()
        assert im.mkimage.digest(got) == layer["digest"]
    finally:
        r.stop()
