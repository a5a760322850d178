#!/usr/bin/python3
"""The images that critest pulls, made from busybox and pushed to a registry on this machine.

    test/conformance/critest_images.py CERTS_D       runs a registry until standard input ends

critest names its images in full (registry.k8s.io/..., gcr.io/...). hosts.toml files in CERTS_D send the runtime to
the local registry instead, which takes the place of all of them. nginx, httpd and nonewprivs are busybox with a small static
program each (webserver.c, nonewprivs.c). What cannot be made here: test-image-digest, which critest names by the
digest of somebody else's build.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "integration"))

from images import mkimage  # noqa: E402

REGISTRIES = ("registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws", "docker.io")
STAGING = "k8s-staging-cri-tools/"
E2E = "e2e-test-images/"

# critest looks these up in its busybox; uid 1000 is one image's own
PASSWD = "".join(line for line in mkimage.PASSWD.splitlines(True) if not line.startswith("app:")) + \
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
GROUP = mkimage.GROUP + "www-data:x:33:\n"
USERS = {"test-image-user-uid": "1002", "test-image-user-username": "www-data",
         "test-image-user-uid-group": "1003:1004", "test-image-user-username-group": "www-data:1004"}

# busybox-static lacks these two; critest looks for processes and shared memory with them
PGREP = """#!/bin/sh
found=1
for p in /proc/[0-9]*; do
    if [ "$p" != "/proc/$$" ] && grep -q "$1" "$p/comm" 2>/dev/null; then
        echo "${p#/proc/}"
        found=0
    fi
done
exit $found
"""
IPCS = """#!/bin/sh
echo '------ Shared Memory Segments --------'
cat /proc/sysvipc/shm
"""


def program(name):
    """The bytes of NAME.c, linked statically."""
    source = Path(__file__).resolve().parent / f"{name}.c"
    out = Path(tempfile.mkdtemp(prefix="aspis-critest-")) / name
    try:
        subprocess.run(["gcc", "-std=gnu17", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", out, source],
                       check=True)
        return out.read_bytes()
    finally:
        out.unlink(missing_ok=True)
        out.parent.rmdir()


def plain_shell():
    """A shell that looks its commands up, as a tar: busybox-static's takes its own programs whatever the file system says. Debian's
    other build of busybox does not; it is not installed, since the two exclude each other."""
    cache = Path(os.environ.get("ASPIS_CACHE", "/var/cache/aspis")) / "busybox-shell"
    shell = cache / "sh"
    if not shell.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="aspis-critest-") as work:
            Path(work).chmod(0o755)
            quiet = {"check": True, "cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(["apt-get", "download", "busybox"], **quiet)
            subprocess.run(["dpkg-deb", "-x", next(Path(work).glob("busybox_*.deb")), "x"], **quiet)
            made = shell.with_suffix(".new")
            made.write_bytes((Path(work) / "x/bin/busybox").read_bytes())
            made.chmod(0o755)
            made.rename(shell)
    tar = mkimage.Tar().file("bin/sh", shell.read_bytes(), 0o755)
    out = subprocess.run(["ldd", shell], stdout=subprocess.PIPE, text=True, check=True).stdout
    for library in sorted(set(re.findall(r"(/lib\S+)", out))):
        tar.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)
    return tar.done()


def build(directory):
    """Layouts by "name:tag"."""
    base = mkimage.busybox_layer()
    users = (mkimage.Tar().file("etc/passwd", PASSWD).file("etc/group", GROUP).dir("var/run")
             .file("usr/bin/pgrep", PGREP, 0o755).file("usr/bin/ipcs", IPCS, 0o755).done())
    made = {}

    def image(name, *tars, **config):
        layout = mkimage.Layout(Path(directory) / name.replace("/", "-").replace(":", "-"))
        layout.tag(layout.image([base, users, *tars], config=config))
        made[name] = layout.dir

    def marked(text):
        return mkimage.Tar().file("test", text).done()

    image(E2E + "busybox:1.29-2", plain_shell())
    image(STAGING + "test-image-tag:test", marked("test"))
    image(STAGING + "test-image-tag:all", marked("all"))
    image(STAGING + "test-image-latest:latest", marked("latest"))
    for n in "123":
        image(f"{STAGING}test-image-{n}:latest", marked(n))
    image(STAGING + "test-image-tags:1", marked("tags"))
    made[STAGING + "test-image-tags:2"] = made[STAGING + "test-image-tags:3"] = made[STAGING + "test-image-tags:1"]
    for name, user in USERS.items():
        image(f"{STAGING}{name}:latest", User=user)
    predefined = (mkimage.Tar().file("etc/passwd", PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
                  .file("etc/group", GROUP + "group-defined-in-image:x:50000:default-user\n").done())
    image(STAGING + "test-image-predefined-group:latest", predefined, User="1000")
    image("pause:3.9", mkimage.Tar().file("pause", "#!/bin/sh\nexec sleep 2147483647\n", 0o755).done(),
          User="65535:65535", Entrypoint=["/pause"], Cmd=None)
    server = program("webserver")
    nginx = mkimage.Tar().file("usr/sbin/nginx", server, 0o755).done()
    image(E2E + "nginx:1.14-2", nginx, Cmd=["nginx", "80"], StopSignal="SIGQUIT", ExposedPorts={"80/tcp": {}})
    image(f"{STAGING}hostnet-nginx-{mkimage.goarch()}:latest", nginx, Cmd=["nginx", "12003"], StopSignal="SIGQUIT")
    image(E2E + "httpd:2.4.39-4", mkimage.Tar().file("usr/bin/httpd", server, 0o755).done(), Cmd=["/usr/bin/httpd", "80"])
    image(E2E + "nonewprivs:1.3", mkimage.Tar().file("nnp", program("nonewprivs"), 0o4755).done(), Entrypoint=["/nnp"],
          Cmd=None)
    for tag in ("1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"):
        image(f"docker/library/busybox:{tag}", marked(tag))
    return made


def publish(registry, directory, certs):
    """Pushes everything and points the runtime at it."""
    for name, layout in build(directory).items():
        repository, tag = name.split(":")
        registry.push(layout, repository, tag)
    redirect(registry, certs)


def redirect(registry, certs):
    """Sends a runtime that reads the directory `certs` to this registry."""
    for host in REGISTRIES:
        d = Path(certs) / host
        d.mkdir(parents=True, exist_ok=True)
        (d / "hosts.toml").write_text(f'server = "{registry.url}"\n\n[host."{registry.url}"]\n'
                                      '  capabilities = ["pull", "resolve"]\n')


def main():
    from registry import Registry
    registry = Registry().start()
    try:
        with tempfile.TemporaryDirectory(prefix="aspis-critest-") as work:
            publish(registry, work, sys.argv[1])
        print(f"serving at {registry.url}", flush=True)
        sys.stdin.read()
    finally:
        registry.stop()


if __name__ == "__main__":
    main()
