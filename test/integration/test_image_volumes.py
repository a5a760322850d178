"""Mount.image: images as read-only volumes, what keeps them, and the words kubelet looks for."""
import concurrent.futures

import grpc
import pytest

import images as im
from cri import container_config, pb
from test_bad_input import fails
from test_images import image, pull, remove

CODE = grpc.StatusCode
PREFIX = "ImageVolumeMountFailed: "


def content():
    """A layer with directories, a file in the way, and symlinks that try to leave."""
    t = im.Tar().dir("data").file("data/file", "of the volume\n").dir("data/deep").file("data/deep/er", "deeper\n")
    t.dir("bin").file("bin/run", "#!/bin/sh\necho ran\n", mode=0o755)
    t.symlink("inside", "data/deep").symlink("absolute", "/data").symlink("up", "../../../etc")
    t.symlink("etc-link", "/etc").symlink("procfs", "/proc/self/root").symlink("loop", "loop").symlink("gone", "nowhere")
    return t.done()


@pytest.fixture(scope="module")
def volume(registry, tmp_path_factory):
    """A reference of an image that only makes sense as a volume: no command, no shell."""
    layout = im.Layout(tmp_path_factory.mktemp("volume") / "v")
    layout.tag(layout.image([content()], {"Cmd": None}))
    return registry.push(layout.dir, "test/volume")


def mount(ref, path="/vol", sub="", **more):
    more.setdefault("readonly", True)
    return pb.Mount(container_path=path, image=pb.ImageSpec(image=ref), image_sub_path=sub, **more)


def create_fails(pod, name, *mounts):
    config = container_config(name, pod.image, ("true",), mounts=mounts)
    e = fails(pod.daemon.client.CreateContainer, pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    assert e.details().startswith(PREFIX), e.details()
    return e


@pytest.mark.vm("a disk of its own")
def test_an_image_is_mounted(daemon, make_pod, volume):
    volume_id = pull(daemon, volume)
    pod = make_pod("imgvol")
    script = ("cat /vol/data/file /sub/er; ls /vol; echo x > /vol/data/file; /vol/bin/run; "
              "grep -E ' /(vol|sub) ' /proc/mounts; rm /vol/data/file; mkdir /sub/new")
    c = pod.start("x", "sh", "-c", script, mounts=[mount(volume_id), mount(volume, "/sub", "data/deep/")])
    s = daemon.wait_state(c, pb.CONTAINER_EXITED)
    out, err = pod.output("x"), pod.output("x", "stderr")
    assert out.startswith("of the volume\ndeeper\n") and "inside" in out, out
    assert err.count("Read-only file system") == 3 and "/vol/bin/run: Permission denied" in err, err
    for where in ("/vol", "/sub"):
        line = next(x for x in out.splitlines() if f" {where} erofs " in x)
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(line.split()[3].split(",")), line
    # kubelet compares mounts[].image.image with Image.id to know what is in use
    assert [(m.container_path, m.image.image, m.host_path, m.readonly) for m in s.mounts] == [
        ("/vol", volume_id, "", True), ("/sub", volume_id, "", True)]
    assert s.mounts[1].image.user_specified_image == volume and s.mounts[1].image_sub_path == "data/deep/"
    assert s.mounts[0].image.image_ref == image(daemon, volume).repo_digests[0]
    pod.remove()
    remove(daemon, volume)
    assert image(daemon, volume) is None


def test_the_pods_own_image_as_a_volume(daemon, make_pod, images):
    pod = make_pod("ownvol")
    assert pod.run("x", "test", "-x", "/again/bin/sh", mounts=[mount(images["busybox"], "/again")]).exit_code == 0
    assert pod.run("y", "test", "-x", "/bin/sh").exit_code == 0


@pytest.mark.parametrize("sub, shows", [("inside", "er"), ("absolute", "file"), ("./data//deep/.", "er")])
def test_links_of_the_image_stay_in_it(daemon, make_pod, volume, sub, shows):
    pull(daemon, volume)
    pod = make_pod("links")
    assert pod.run("x", "ls", "/vol", mounts=[mount(volume, sub=sub)]).exit_code == 0
    assert shows in pod.output("x").split()
    pod.remove()
    remove(daemon, volume)


def test_sub_paths_that_will_not_do(daemon, make_pod, volume):
    pull(daemon, volume)
    pod = make_pod("badsub")
    for sub, code, words in [
            ("missing", CODE.NOT_FOUND, "does not exist"), ("data/file", CODE.INVALID_ARGUMENT, "no directory"),
            ("..", CODE.INVALID_ARGUMENT, "leaves"), ("data/../data", CODE.INVALID_ARGUMENT, "leaves"),
            ("/data", CODE.INVALID_ARGUMENT, "not relative"), ("gone", CODE.NOT_FOUND, "does not exist"),
            # these lead out of the image; within it there is no such place
            ("up", CODE.NOT_FOUND, "does not exist"), ("etc-link", CODE.NOT_FOUND, "does not exist"),
            ("procfs", CODE.NOT_FOUND, "does not exist"), ("loop", CODE.INVALID_ARGUMENT, "too many links")]:
        e = create_fails(pod, "x", mount(volume, sub=sub))
        assert e.code() == code and words in e.details() and "/vol" in e.details(), (sub, e.details())
    # nothing stayed of any of them: the same name works
    assert pod.run("x", "true", mounts=[mount(volume)]).exit_code == 0
    pod.remove()
    remove(daemon, volume)


def test_requests_that_will_not_do(daemon, make_pod, volume):
    volume_id = pull(daemon, volume)
    pod = make_pod("badvol")
    for m, code, words in [
            (mount(volume, readonly=False), CODE.INVALID_ARGUMENT, "read-only"),
            (mount(volume, host_path="/tmp"), CODE.INVALID_ARGUMENT, "/tmp"),
            (mount("sha256:" + "0" * 64), CODE.NOT_FOUND, "not found"),
            (mount("no-such/image:v1"), CODE.NOT_FOUND, "no-such/image"),
            (mount(volume, propagation=pb.PROPAGATION_HOST_TO_CONTAINER), CODE.INVALID_ARGUMENT, "propagate")]:
        e = create_fails(pod, "x", m)
        assert e.code() == code and words in e.details(), e.details()
    # an error of something else is not called one of an image volume
    config = container_config("x", pod.image, ("true",), working_dir="relative", mounts=[mount(volume_id)])
    e = fails(daemon.client.CreateContainer, pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    assert PREFIX not in e.details()
    pod.remove()
    remove(daemon, volume)


def test_an_image_volume_keeps_its_image(daemon, make_pod, volume):
    volume_id = pull(daemon, volume)
    pod = make_pod("keeps")
    c = pod.start("x", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done", mounts=[mount(volume)])
    assert fails(daemon.client.RemoveImage, image={"image": volume}).code() == CODE.FAILED_PRECONDITION
    daemon.kill()
    daemon.start()
    assert fails(daemon.client.RemoveImage, image={"image": volume_id}).code() == CODE.FAILED_PRECONDITION
    assert daemon.status(c).mounts[0].image.image == volume_id
    assert daemon.exec(c, "cat", "/vol/data/file").stdout == b"of the volume\n"
    # an ended container still counts, as its image does
    daemon.client.StopContainer(container_id=c, timeout=5)
    assert fails(daemon.client.RemoveImage, image={"image": volume_id}).code() == CODE.FAILED_PRECONDITION
    daemon.client.RemoveContainer(container_id=c)
    remove(daemon, volume_id)
    assert image(daemon, volume) is None


def plugged(daemon):
    """Deleted or not: the files of images that a VM holds open."""
    import os
    from pathlib import Path
    found = set()
    for pid in daemon.qemu_pids():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue
            if "/images/meta/" in target:
                found.add(target)
    return found


@pytest.mark.vm("disks of VMs")
def test_disks_go_with_their_last_user(daemon, make_pod, volume):
    """An image that no container of the pod uses any more is not held by its VM: removing it frees its space."""
    pull(daemon, volume)
    pod = make_pod("unplug")
    assert pod.run("keep", "true").exit_code == 0
    before = plugged(daemon)
    one = pod.create("one", "true", mounts=[mount(volume)])
    two = pod.create("two", "true", mounts=[mount(volume, sub="data")])
    during = plugged(daemon)
    assert len(during) == len(before) + 1
    daemon.client.RemoveContainer(container_id=one)
    assert plugged(daemon) == during
    daemon.client.RemoveContainer(container_id=two)
    assert plugged(daemon) == before
    # and it comes back when it is wanted again
    assert pod.run("three", "cat", "/vol/data/file", mounts=[mount(volume)]).exit_code == 0
    # several come and go at once
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        def cycle(n):
            for k in range(2):
                c = pod.create(f"c{n}", "true", attempt=k, mounts=[mount(volume)])
                daemon.client.RemoveContainer(container_id=c)
        list(pool.map(cycle, range(4)))
    pod.remove()
    remove(daemon, volume)


def test_removal_and_creation_at_once(daemon, make_pod, volume):
    """Whoever comes first: a container that was made has its image, and an image that is gone made no container."""
    pull(daemon, volume)
    pod = make_pod("race")
    outcomes = set()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for n in range(24):
            volume_id = pull(daemon, volume)
            config = container_config("x", pod.image, ("true",), attempt=n, mounts=[mount(volume_id)])
            going = [pool.submit(daemon.client.CreateContainer, pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)]
            going += [pool.submit(remove, daemon, volume_id) for _ in range(3)]
            errors = [g.exception() for g in going]
            there = image(daemon, volume_id) is not None
            outcomes.add(there)
            if errors[0] is None:
                assert there, "a container was made and its image was removed"
                assert all(e.code() == CODE.FAILED_PRECONDITION for e in errors[1:] if e is not None)
                daemon.client.RemoveContainer(container_id=going[0].result().container_id)
            else:
                assert errors[0].code() == CODE.NOT_FOUND and errors[0].details().startswith(PREFIX), errors[0].details()
                assert not there and errors[1:] == [None] * 3
    pod.remove()
    remove(daemon, volume)
    assert outcomes, "nothing was tried"
