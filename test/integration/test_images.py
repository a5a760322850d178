"""Images from a real docker-registry, and from one that misbehaves; import without any."""
import concurrent.futures
import subprocess
import threading
import time

import grpc
import pytest

import images as im
from cri import pb
from daemon import BUILD
from registry import PASSWORD, USER, FaultyRegistry, Registry
from test_bad_input import fails

pytestmark = pytest.mark.once("pulling and keeping images makes no pod")

CODE = grpc.StatusCode


def pull(daemon, ref, **auth):
    return daemon.client.PullImage(image={"image": ref}, auth=auth or None).image_ref


def image(daemon, ref):
    r = daemon.client.ImageStatus(image={"image": ref})
    return r.image if r.HasField("image") else None


def remove(daemon, *refs):
    for ref in refs:
        daemon.client.RemoveImage(image={"image": ref})


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return im.build(tmp_path_factory.mktemp("layouts"))


@pytest.fixture
def fresh(tmp_path):
    """A layout like no other: neither its layer nor its id is in the store already."""
    layout = im.Layout(tmp_path / "fresh")
    layout.tag(layout.image([im.mkimage.busybox_layer(), im.Tar().file("unique", str(tmp_path) + "x" * 100000).done()]))
    return layout.dir


@pytest.mark.parametrize("name", ["docker", "zstd", "plain", "mixed", "multi", "multi-docker", "nested-index"])
def test_formats_run(daemon, make_pod, images, name):
    image_id = pull(daemon, images[name])
    got = image(daemon, images[name])
    assert got.id == image_id and got.size > 0 and list(got.repo_tags) == [images[name]]
    assert len(got.repo_digests) == 1 and got.repo_digests[0].startswith(images[name].rsplit(":", 1)[0] + "@sha256:")
    pod = make_pod(name)
    want = "extra/file" if name in ("docker", "zstd", "plain", "mixed") else "platform"
    s = pod.run("x", "cat", f"/{want}", image=images[name])
    assert s.exit_code == 0 and pod.output("x")
    assert s.image_id == image_id
    pod.remove()
    remove(daemon, images[name])
    assert image(daemon, images[name]) is None


@pytest.mark.parametrize("name", ["layers40", "layers40-zstd"])
def test_forty_layers(daemon, make_pod, images, name):
    """Whiteouts, opaque directories and replaced files come out as the layers mean them."""
    pull(daemon, images[name])
    _, want = im.layered()
    pod = make_pod("forty")
    s = pod.run("x", "sh", "-c", "find t -type f | while read f; do echo \"== $f\"; cat \"$f\"; done", image=images[name],
                working_dir="/")
    assert s.exit_code == 0
    have = {}
    for part in pod.output("x").split("== ")[1:]:
        path, text = part.split("\n", 1)
        have[path] = text
    assert have == want
    pod.remove()
    remove(daemon, images[name])


def test_names_of_one_image(daemon, images):
    ref = images["busybox"]
    i = image(daemon, ref)
    for name in (i.id, i.id[7:], i.id[7:19], ref, ref.rsplit(":", 1)[0], i.repo_digests[0]):
        assert image(daemon, name).id == i.id, name
    by_digest = pull(daemon, i.repo_digests[0])
    assert by_digest == i.id
    assert [x.id for x in daemon.client.ListImages().images].count(i.id) == 1
    assert [x.id for x in daemon.client.ListImages(filter={"image": {"image": ref}}).images] == [i.id]


def test_removal_is_by_any_name_and_repeatable(daemon, images):
    ref = images["docker"]
    before = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    pull(daemon, ref)
    during = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    assert during > before
    digest = image(daemon, ref).repo_digests[0]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: remove(daemon, digest), range(5)))
    assert image(daemon, ref) is None
    remove(daemon, ref)
    assert daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value < during


def test_image_in_use_stays(daemon, make_pod, images):
    pull(daemon, images["docker"])
    pod = make_pod("user")
    c = pod.create("x", "true", image=images["docker"])
    e = fails(daemon.client.RemoveImage, image={"image": images["docker"]})
    assert e.code() == CODE.FAILED_PRECONDITION
    daemon.client.StartContainer(container_id=c)
    assert daemon.wait_state(c, pb.CONTAINER_EXITED).exit_code == 0
    pod.remove()
    remove(daemon, images["docker"])


def test_pulls_at_once_share_their_work(daemon, images):
    names = ["docker", "zstd", "plain", "mixed"] * 3
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        ids = list(pool.map(lambda n: pull(daemon, images[n]), names))
    for n, i in zip(names, ids):
        assert image(daemon, images[n]).id == i
    remove(daemon, *{images[n] for n in names})


def test_users_of_images(daemon, make_pod, images):
    for name, user in im.USERS.items():
        pull(daemon, images[name])
        i = image(daemon, images[name])
        head = user.split(":")[0]
        if head.isdigit():
            assert i.uid.value == int(head) and not i.username
        else:
            assert i.username == head
    remove(daemon, *[images[n] for n in im.USERS])


@pytest.mark.parametrize("name, words", [
    ("bad-digest", "digest"), ("bad-size", ""), ("bad-diffid", "diff"), ("bad-count", "layer"), ("bad-config", "config"),
    ("other-platform", "linux/"), ("empty-index", "linux/"), ("bad-dotdot", ".."), ("bad-cut", ""), ("bad-garbage", "")])
def test_images_that_lie(daemon, images, name, words):
    used = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    e = fails(daemon.client.PullImage, image={"image": images[name]})
    assert e.code() in (CODE.INVALID_ARGUMENT, CODE.DATA_LOSS, CODE.NOT_FOUND, CODE.FAILED_PRECONDITION), e.code()
    assert words in e.details() and f"test/{name}" in e.details(), e.details()
    assert image(daemon, images[name]) is None
    assert abs(daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value - used) < 1 << 20


@pytest.mark.parametrize("name", ["bad-absolute", "bad-symlink", "bad-device", "bad-links"])
def test_odd_layers_stay_in_their_root(daemon, make_pod, images, name):
    try:
        pull(daemon, images[name])
    except grpc.RpcError as e:  # refused is fine, escaped is not
        assert e.code() in (CODE.INVALID_ARGUMENT, CODE.DATA_LOSS)
        return
    pod = make_pod("odd")
    pod.run("x", "true", image=images[name])
    import os
    assert not os.path.exists("/tmp/aspis-escaped") and not os.path.exists("/etc/absolute")
    pod.remove()
    remove(daemon, images[name])


@pytest.mark.parametrize("fault, code", [
    ("short-always", CODE.UNAVAILABLE), ("flip", CODE.DATA_LOSS), ("garbage-manifest", None),
    ("wrong-manifest", CODE.DATA_LOSS), ("huge-manifest", None), ("wrong-type", None), ("loop", None),
    ("error", CODE.UNAVAILABLE), ("basic", CODE.UNAUTHENTICATED)])
def test_registries_that_misbehave(daemon, fresh, fault, code):
    r = FaultyRegistry(fresh, fault).start()
    try:
        begin = time.monotonic()
        e = fails(daemon.client.PullImage, image={"image": r.ref("bad/one")})
        assert time.monotonic() - begin < 60
        assert code is None or e.code() == code, (e.code(), e.details())
        assert "bad/one" in e.details() and len(e.details()) < 8192
        assert all(c.isprintable() or c == "\n" for c in e.details())
        assert image(daemon, r.ref("bad/one")) is None
        # the same call works once the cause is gone
        r.fault = "none"
        pull(daemon, r.ref("bad/one"))
    finally:
        r.stop()
    remove(daemon, r.ref("bad/one"))


@pytest.mark.parametrize("fault", ["short-blob", "redirect", "busy"])
def test_resume_redirect_and_retry(daemon, fresh, fault):
    r = FaultyRegistry(fresh, fault).start()
    try:
        pull(daemon, r.ref("ok/one"))
        if fault == "short-blob":
            assert any("Range" in h for _, _, h in r.requests)
        if fault == "redirect":
            assert r.elsewhere and not any("Authorization" in h for _, _, h in r.elsewhere)
    finally:
        r.stop()
    remove(daemon, r.ref("ok/one"))


def test_silent_registry_is_given_up(own_daemon, fresh):
    d = own_daemon(overrides={"images": {"stall_timeout_seconds": 2}})
    d.start()
    r = FaultyRegistry(fresh, "stall").start()
    try:
        begin = time.monotonic()
        pull(d, r.ref())  # the silent connection is given up, the rest comes by another
        assert 2 <= time.monotonic() - begin < 40
        assert any("Range" in h for _, _, h in r.requests)
    finally:
        r.stop()


def test_cancelled_pull_leaves_nothing(daemon, fresh):
    r = FaultyRegistry(fresh, "stall").start()
    try:
        used = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
        for deadline in (0.001, 0.5):
            e = fails(daemon.client.PullImage, image={"image": r.ref()}, deadline=deadline)
            assert e.code() == CODE.DEADLINE_EXCEEDED
        end = time.monotonic() + 15
        while abs(daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value - used) > 1 << 20:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        r.stop()


def test_daemon_killed_during_a_pull(daemon, fresh):
    r = FaultyRegistry(fresh, "stall").start()
    used = daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value
    t = threading.Thread(target=lambda: fails(daemon.client.PullImage, image={"image": r.ref()}))
    try:
        t.start()
        time.sleep(1)
        daemon.kill()
        t.join()
        daemon.start()
        assert abs(daemon.client.ImageFsInfo().image_filesystems[0].used_bytes.value - used) < 1 << 20
        r.fault = "none"
        pull(daemon, r.ref())
    finally:
        r.stop()
    remove(daemon, r.ref())


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_authentication(daemon, fresh, auth):
    r = Registry(auth=auth).start()
    try:
        ref = r.push(fresh, "private/image")
        e = fails(daemon.client.PullImage, image={"image": ref})
        assert e.code() in (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED)
        e = fails(daemon.client.PullImage, image={"image": ref}, auth={"username": USER, "password": "wr0ng-pass"})
        assert e.code() in (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED)
        pull(daemon, ref, username=USER, password=PASSWORD)
        import base64
        pull(daemon, ref, auth=base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
        text = daemon.log_text()
        assert PASSWORD not in text and "wr0ng-pass" not in text
        remove(daemon, ref)
    finally:
        r.stop()


def test_tls_and_mirrors_by_hosts_toml(daemon, fresh):
    r = Registry(tls=True).start()
    try:
        r.push(fresh, "mirrored/image")
        host = r.host.replace("127.0.0.1", "localhost")
        ref = f"{host}/mirrored/image:latest"
        assert fails(daemon.client.PullImage, image={"image": ref}).code() == CODE.UNAVAILABLE
        d = daemon.certs / host
        d.mkdir()
        (d / "hosts.toml").write_text(f'server = "https://{host}"\n[host."https://{host}"]\n  ca = "{r.ca}"\n')
        pull(daemon, ref)
        remove(daemon, ref)
        m = daemon.certs / "registry.example"
        m.mkdir()
        (m / "hosts.toml").write_text(f'server = "https://registry.example"\n[host."https://{host}"]\n'
                                      f'  capabilities = ["pull", "resolve"]\n  ca = "{r.ca}"\n')
        pull(daemon, "registry.example/mirrored/image:latest")
        assert list(image(daemon, "registry.example/mirrored/image").repo_tags) == ["registry.example/mirrored/image:latest"]
        remove(daemon, "registry.example/mirrored/image")
    finally:
        r.stop()
        import shutil
        for p in daemon.certs.iterdir():
            shutil.rmtree(p)


def test_unreachable_registry_says_so(daemon):
    e = fails(daemon.client.PullImage, image={"image": "127.0.0.1:1/x:latest"})
    assert e.code() == CODE.UNAVAILABLE and e.details().startswith("RegistryUnavailable: ")
    e = fails(daemon.client.PullImage, image={"image": "repository/UPPER"})
    assert e.code() == CODE.INVALID_ARGUMENT


def ctl(daemon, *args, check=True):
    r = subprocess.run([str(BUILD / "cri" / "ctl" / "aspisctl"), "--socket", str(daemon.socket), *args],
                       capture_output=True, text=True, timeout=120)
    assert not check or r.returncode == 0, r.stdout + r.stderr
    return r


def test_import_without_a_registry(daemon, make_pod, layouts, tmp_path):
    ctl(daemon, "image", "import", str(layouts["docker"]), "imported/one:v1")
    assert image(daemon, "imported/one:v1") is not None
    archive = tmp_path / "a.tar"
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layouts['plain']}",
                    f"docker-archive:{archive}:imported/two:v2"], check=True)
    ctl(daemon, "image", "import", str(archive))
    pod = make_pod("imported")
    for name in ("imported/one:v1", "imported/two:v2"):
        s = pod.run(name.split(":")[1], "cat", "/extra/file", image=name)
        assert s.exit_code == 0
    assert "imported/one" in ctl(daemon, "image", "ls").stdout
    pod.remove()
    ctl(daemon, "image", "rm", "imported/one:v1")
    ctl(daemon, "image", "rm", "imported/two:v2", check=False)  # the same image by another name
    r = ctl(daemon, "image", "import", "/nonexistent", check=False)
    assert r.returncode != 0 and "/nonexistent" in r.stderr
    r = ctl(daemon, "image", "import", "/etc/passwd", check=False)
    assert r.returncode != 0


def test_aspisctl_in_a_shell(daemon, images):
    ref = images["busybox"]
    r = ctl(daemon, "run", "--rm", ref, "--", "sh", "-c", "echo to you; exit 3", check=False)
    assert (r.returncode, r.stdout) == (3, "to you\n"), r.stderr
    ctl(daemon, "run", "-d", "--name", "shell", ref, "--", "sh", "-c", "echo started; sleep 1000")
    try:
        assert "shell" in ctl(daemon, "pods").stdout and "running" in ctl(daemon, "ps").stdout
        r = ctl(daemon, "exec", "shell", "sh", "-c", "echo in; echo err >&2; exit 6", check=False)
        assert (r.returncode, r.stdout, r.stderr) == (6, "in\n", "err\n")
        deadline = time.monotonic() + 10
        while "started" not in ctl(daemon, "logs", "shell").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # a clone's console begins where its template's ended
        assert "configured" in ctl(daemon, "console", "shell").stdout
        assert "aspis" in ctl(daemon, "info").stdout
    finally:
        for s in daemon.client.ListPodSandbox().items:
            ctl(daemon, "stopp", s.id)
            ctl(daemon, "rmp", s.id)
    r = ctl(daemon, "exec", "nobody", "true", check=False)
    assert r.returncode != 0 and "nobody" in r.stderr


def test_stream_and_pins(own_daemon, registry, images):
    """StreamImages says what ListImages says; the configuration pins; unknown handlers are refused."""
    d = own_daemon(overrides={"images": {"pinned": [images["docker"]], "max_unpackers": 1}})
    d.start()
    names = ["docker", "zstd", "busybox"]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ids = list(pool.map(lambda n: pull(d, images[n]), names))
    stream = d.client.channel.unary_stream(
        "/runtime.v1.ImageService/StreamImages", request_serializer=pb.StreamImagesRequest.SerializeToString,
        response_deserializer=pb.StreamImagesResponse.FromString)
    got = [i for part in stream(pb.StreamImagesRequest(), timeout=30) for i in part.images]
    assert sorted(i.id for i in got) == sorted(set(ids))
    assert {i.id for i in got if i.pinned} == {ids[0]}
    e = fails(d.client.PullImage, image={"image": images["zstd"], "runtime_handler": "nobody"})
    assert e.code() == CODE.INVALID_ARGUMENT and "nobody" in e.details()
    assert pull(d, images["zstd"]) == ids[1]


def test_container_file_system_is_counted(daemon, make_pod):
    def used():
        return daemon.client.ImageFsInfo().container_filesystems[0].used_bytes.value
    before = used()
    pod = make_pod("writes")
    assert pod.run("x", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null; sync").exit_code == 0
    assert used() >= before + (8 << 20)
    pod.remove()
    assert used() <= before + (1 << 20)


def test_bounds_of_the_configuration(own_daemon, images):
    d = own_daemon(overrides={"images": {"max_layer_entries": 20, "max_layer_mib": 4096}})
    d.start()
    e = fails(d.client.PullImage, image={"image": images["busybox"]})
    assert e.code() == CODE.RESOURCE_EXHAUSTED and "more than 20 entries" in e.details()
    assert not d.client.ListImages().images


def test_progress_on_a_terminal(daemon, fresh, registry):
    import os
    import pty
    ref = registry.push(fresh, "progress/image")
    parent, child = pty.openpty()
    p = subprocess.Popen([str(BUILD / "cri" / "ctl" / "aspisctl"), "--socket", str(daemon.socket), "image", "pull", ref],
                         stdin=child, stdout=child, stderr=child)
    os.close(child)
    out = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(parent)
    assert p.wait(30) == 0, out
    assert b"\r" in out or b"\x1b[" in out, out
    assert image(daemon, ref).id.encode() in out and b"B" in out, out
    remove(daemon, ref)
