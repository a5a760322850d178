"""Images as CRI's clients see them: ids, names that move, what keeps an image, and that secrets stay secrets."""
import base64
import concurrent.futures
import os
import threading
import time
from pathlib import Path

import grpc
import pytest

import images as im
from cri import container_config, pb
from registry import PASSWORD, USER, FaultyRegistry, Registry
from test_bad_input import fails
from test_images import fresh, image, pull, remove  # noqa: F401

CODE = grpc.StatusCode


def make(directory, text, **config):
    """A layout whose image prints `text`."""
    layout = im.Layout(directory)
    layout.tag(layout.image([im.mkimage.busybox_layer(), im.Tar().file("what", text + "\n").done()],
                            {"Cmd": ["cat", "/what"], **config}))
    return layout.dir


def listed(daemon):
    return {i.id: i for i in daemon.client.ListImages().images}


def stored(daemon):
    """The store's files but for its records."""
    root = daemon.state / "images"
    return sorted(str(p.relative_to(root)) for d in ("blobs", "layers", "meta", "tmp") for p in (root / d).rglob("*") if p.is_file())


def test_one_image_from_two_registries(daemon, make_pod, registry, tmp_path):
    """One content, one id, whatever it is called and wherever it came from."""
    layout = make(tmp_path / "l", "same content")
    other = Registry().start()
    try:
        a, b = registry.push(layout, "sem/one"), other.push(layout, "else/two", tag="v2")
        first = pull(daemon, a)
        assert pull(daemon, b) == first
        i = listed(daemon)[first]
        assert sorted(i.repo_tags) == sorted([a, b]) and len(i.repo_digests) == 2
        assert {d.split("@")[0] for d in i.repo_digests} == {a.rsplit(":", 1)[0], b.rsplit(":", 1)[0]}
        assert len({d.split("@")[1] for d in i.repo_digests}) == 1
        pod = make_pod("two")
        for n, name in enumerate((a, b, first, *i.repo_digests)):
            s = pod.run(f"c{n}", "cat", "/what", image=name)
            assert s.exit_code == 0 and s.image_id == first and s.image_ref in i.repo_digests
        assert {c.image_id for c in daemon.client.ListContainers(filter={"pod_sandbox_id": pod.id}).containers} == {first}
        pod.remove()
        remove(daemon, b)  # by any one of its names the whole image goes
        assert image(daemon, a) is None and first not in listed(daemon)
    finally:
        other.stop()


def test_pull_by_digest_and_by_both(daemon, registry, tmp_path):
    ref = registry.push(make(tmp_path / "l", "by digest"), "sem/digest")
    repo = ref.rsplit(":", 1)[0]
    tagged = pull(daemon, ref)
    digest = image(daemon, ref).repo_digests[0]
    remove(daemon, ref)
    assert pull(daemon, digest) == tagged
    i = image(daemon, digest)
    assert list(i.repo_tags) == [] and list(i.repo_digests) == [digest]  # untagged, but listed and found
    assert tagged in listed(daemon) and image(daemon, ref) is None
    # with a tag besides the digest the digest counts, even when there is no such tag
    assert pull(daemon, f"{repo}:never@{digest.split('@')[1]}") == tagged
    assert list(image(daemon, tagged).repo_tags) == []
    assert pull(daemon, ref) == tagged
    assert list(image(daemon, digest).repo_tags) == [ref]
    wrong = digest.split("@")[0] + "@sha256:" + "0" * 64
    assert fails(daemon.client.PullImage, image={"image": wrong}).code() == CODE.NOT_FOUND
    remove(daemon, digest)
    assert image(daemon, ref) is None


def test_a_tag_moves(daemon, make_pod, registry, tmp_path):
    """The old image loses the name, not its containers; both stay until somebody removes them."""
    ref = registry.push(make(tmp_path / "old", "old"), "sem/moves")
    old = pull(daemon, ref)
    old_digest = image(daemon, ref).repo_digests[0]
    pod = make_pod("moves")
    c = pod.create("before", "cat", "/what", image=ref)
    assert registry.push(make(tmp_path / "new", "new"), "sem/moves") == ref
    assert image(daemon, ref).id == old  # until somebody pulls
    new = pull(daemon, ref)
    assert new != old and image(daemon, ref).id == new
    assert list(image(daemon, old).repo_tags) == [] and list(image(daemon, old).repo_digests) == [old_digest]
    assert list(listed(daemon)[new].repo_tags) == [ref]
    daemon.restart()
    assert image(daemon, ref).id == new and list(image(daemon, old).repo_tags) == []
    daemon.client.StartContainer(container_id=c)
    assert daemon.wait_state(c, pb.CONTAINER_EXITED).image_id == old and pod.output("before") == "old\n"
    assert pod.run("after", "cat", "/what", image=ref).image_id == new and pod.output("after") == "new\n"
    assert fails(daemon.client.RemoveImage, image={"image": old}).code() == CODE.FAILED_PRECONDITION
    pod.remove()
    remove(daemon, old, new)


def test_what_the_client_called_it(daemon, make_pod, images):
    """kubelet creates by id and says beside it what the user wrote; statuses show that, and the id apart from it."""
    ref = images["busybox"]
    image_id = image(daemon, ref).id
    pod = make_pod("called")
    config = container_config("x", image_id, ("true",))
    config.image.user_specified_image = "busybox:as-written"
    c = daemon.create(pod.id, config, pod.config)
    s = daemon.status(c)
    assert s.image.image == "busybox:as-written" and s.image.user_specified_image == "busybox:as-written"
    assert s.image_id == image_id and s.image_ref == image(daemon, ref).repo_digests[0]
    (item,) = daemon.client.ListContainers(filter={"id": c}).containers
    assert item.image_id == image_id and item.image.image == image_id
    # and of one that was created by its name
    c = pod.create("y", "true", image=ref)
    assert daemon.status(c).image.image == ref
    for handler in ("", "aspis-vm"):
        spec = {"image": ref, "runtime_handler": handler, "user_specified_image": "anything", "annotations": {"a": "b"}}
        assert daemon.client.PullImage(image=spec).image_ref == image_id
        assert daemon.client.ImageStatus(image=spec).image.id == image_id
    e = fails(daemon.client.ImageStatus, image={"image": ref, "runtime_handler": "nobody"})
    assert e.code() == CODE.INVALID_ARGUMENT and "nobody" in e.details()


def test_size_is_stable(daemon, registry, tmp_path):
    """What the registry would send: config, manifest and packed layers; the same after pulls and restarts."""
    layout = make(tmp_path / "l", "sized")
    ref = registry.push(layout, "sem/size")
    want = sum(p.stat().st_size for p in (layout / "blobs/sha256").iterdir())
    pull(daemon, ref)
    assert image(daemon, ref).size == want
    pull(daemon, ref)
    daemon.restart()
    assert image(daemon, ref).size == want
    remove(daemon, ref)


def test_five_removals_at_once(daemon, registry, tmp_path):
    """By id, short id, tag, name without tag and digest, all at the same time."""
    ref = registry.push(make(tmp_path / "l", "five"), "sem/five")
    before = stored(daemon)
    for _ in range(3):
        i = daemon.client.ImageStatus(image={"image": pull(daemon, ref)}).image
        names = [i.id, i.id[7:19], ref, ref.rsplit(":", 1)[0], i.repo_digests[0]]
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda n: remove(daemon, n), names))
        assert image(daemon, ref) is None and i.id not in listed(daemon)
        assert stored(daemon) == before


def test_pinned_image_can_still_be_removed(own_daemon, registry, tmp_path):
    """Pinning is for kubelet's collection, which skips it; a person who means it may. Moves with the tag."""
    ref = registry.push(make(tmp_path / "a", "pinned"), "sem/pinned")
    d = own_daemon(overrides={"images": {"pinned": [ref]}})
    d.start()
    first = pull(d, ref)
    assert image(d, first).pinned
    registry.push(make(tmp_path / "b", "pinned, too"), "sem/pinned")
    second = pull(d, ref)
    assert image(d, second).pinned and not image(d, first).pinned
    remove(d, first, second)
    assert not listed(d)


def test_secrets_are_in_no_file(daemon, fresh, tmp_path):  # noqa: F811
    """After pulls with a password and with a token: neither is in a log, a record, a core of the state."""
    for auth in ("token", "basic"):
        r = Registry(auth=auth).start()
        try:
            ref = r.push(fresh, "private/secret")
            fails(daemon.client.PullImage, image={"image": ref}, auth={"username": USER, "password": "wr0ng-" + PASSWORD})
            pull(daemon, ref, username=USER, password=PASSWORD)
            pull(daemon, ref, username=USER, password=PASSWORD)
            if auth == "token":  # the second pull knew it still
                granted = [known for command, _, known in r.tokens.requests if command == "GET" and known]
                assert len(granted) == 1, r.tokens.requests
            remove(daemon, ref)
        finally:
            r.stop()
    needles = [PASSWORD.encode(), base64.b64encode(f"{USER}:{PASSWORD}".encode()), b"eyJ0eXAiOiJKV1Qi"]
    for root in (daemon.base, daemon.state):
        for path in Path(root).rglob("*"):
            if path.is_file() and path.stat().st_size < 64 << 20:
                data = path.read_bytes()
                assert not any(n in data for n in needles), path


def test_proxy_of_the_environment(own_daemon, fresh):  # noqa: F811
    """The daemon's environment names the proxy; its password is in no log and no error."""
    r = FaultyRegistry(fresh).start()
    seen = []
    import http.server
    import http.client

    class Proxy(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            seen.append((self.path, self.headers.get("Proxy-Authorization")))
            if self.path.startswith("http://refused."):
                return self.send_error(403)
            up = http.client.HTTPConnection(r.host)
            up.request(self.command, "/" + self.path.split("/", 3)[3])
            answer = up.getresponse()
            self.send_response(answer.status)
            for k, v in answer.getheaders():
                self.send_header(k, v)
            self.end_headers()
            self.wfile.write(answer.read())
            up.close()

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    d = own_daemon(env={"HTTP_PROXY": f"http://prox:s3cr3t-word@127.0.0.1:{server.server_address[1]}",
                        "NO_PROXY": "direct.invalid"})
    for name in ("registry.invalid", "refused.invalid", "direct.invalid"):
        (d.certs / name).mkdir()
        (d.certs / name / "hosts.toml").write_text(f'server = "http://{name}"\n')
    try:
        d.start()
        pull(d, "registry.invalid/by/proxy:latest")
        assert seen and all(a == "Basic " + base64.b64encode(b"prox:s3cr3t-word").decode() for _, a in seen)
        errors = [fails(d.client.PullImage, image={"image": f"{name}/x"}).details() for name in ("refused.invalid", "direct.invalid")]
        assert not any("direct" in path for path, _ in seen)
        assert "s3cr3t-word" not in d.log_text() and not any("s3cr3t-word" in e for e in errors), errors
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        r.stop()


def test_one_byte_a_minute(own_daemon, fresh):  # noqa: F811
    """A registry that trickles is as silent as one that sends nothing: given up after the silence, by the daemon's own key."""
    d = own_daemon(overrides={"images": {"stall_timeout_seconds": 2}})
    d.start()
    r = FaultyRegistry(fresh, "trickle").start()
    try:
        begin = time.monotonic()
        e = fails(d.client.PullImage, image={"image": r.ref("slow/one")})
        assert e.code() == CODE.UNAVAILABLE and e.details().startswith("RegistryUnavailable: "), e.details()
        assert "next to nothing came for 2 seconds" in e.details() and time.monotonic() - begin < 40
        assert not d.client.ListImages().images
    finally:
        r.stop()


def test_killed_at_many_moments_of_pulls(daemon, registry, tmp_path):
    """SIGKILL at any time: after the restart each image is whole or not there, nothing is left over, and pulls work."""
    layouts = {n: make(tmp_path / str(n), f"n{n} " + os.urandom(200_000).hex()) for n in range(3)}
    refs = [registry.push(layout, f"sem/kill{n}") for n, layout in layouts.items()]
    before = stored(daemon)
    for moment in (0.02, 0.05, 0.1, 0.2, 0.4):
        pulls = [threading.Thread(target=_try, args=(daemon.client, ref)) for ref in refs]
        for t in pulls:
            t.start()
        time.sleep(moment)
        daemon.kill()
        for t in pulls:
            t.join()
        daemon.start()
        there = [i for i in (image(daemon, ref) for ref in refs) if i is not None]
        for i in there:
            remove(daemon, i.id)
        assert stored(daemon) == before
    for ref in refs:
        pull(daemon, ref)
    remove(daemon, *refs)


def _try(client, ref):
    try:
        client.PullImage(image={"image": ref})
    except (grpc.RpcError, ValueError):
        pass


@pytest.mark.parametrize("kind", ["artifact", "schema1", "no-command"])
def test_images_that_no_container_can_use(daemon, make_pod, registry, images, tmp_path, kind):
    """Refused with a sentence that says why."""
    if kind == "no-command":
        pull(daemon, images["no-command"])
        pod = make_pod("nothing")
        config = container_config("x", images["no-command"])
        e = fails(daemon.client.CreateContainer, pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        assert e.code() == CODE.INVALID_ARGUMENT and "no command specified" in e.details()
        pod.remove()
        return remove(daemon, images["no-command"])
    layout = im.Layout(tmp_path / "l")
    if kind == "artifact":
        top = layout.image([im.Tar().file("x", "y").done()])
        import json
        path = layout.dir / "blobs/sha256" / top["digest"][7:]
        manifest = json.loads(path.read_bytes())
        manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
        layout.tag(layout.blob(im.mkimage.to_json(manifest), im.mkimage.MANIFEST))
        ref, words = registry.push(layout.dir, "sem/chart"), "not a container image"
    else:
        # docker-registry takes no schema 1 any more
        layout.tag(layout.blob(b'{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws",'
                               b'"name":"x","tag":"latest","fsLayers":[],"history":[]}',
                               "application/vnd.docker.distribution.manifest.v1+prettyjws"))
        r = FaultyRegistry(layout.dir).start()
        ref, words = r.ref("old/one"), "schema 1 format, which is obsolete"
    e = fails(daemon.client.PullImage, image={"image": ref})
    assert e.code() == CODE.INVALID_ARGUMENT and words in e.details(), e.details()
    assert image(daemon, ref) is None
    if kind == "schema1":
        r.stop()
