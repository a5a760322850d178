"""What files do in a container, on its root and on a volume, checked by posix.c: an own small pjdfstest, fsx and
fsstress. What differs on volumes is listed in sandbox/README.md."""
import pytest
from test_volumes import mount, out, src, tool  # noqa: F401

pytestmark = pytest.mark.vm("the guest's file system for volumes")

# by name; the reason for each is in sandbox/README.md, "What differs on volumes"
ON_VOLUMES = {"unnamed", "acls", "file_capabilities", "device_nodes"}
ON_ROOT = {"unnamed"}  # overlayfs before Linux 6.3


def differences(daemon, c, where):
    lines = out(daemon, c, f"mkdir {where}; /posix {where}").splitlines()
    assert len(lines) > 30 and all(line.startswith(("ok ", "differs ")) for line in lines), lines
    found = {line.split()[1].rstrip(":"): line for line in lines if line.startswith("differs ")}
    for line in found.values():
        print(where, line)
    return set(found)


def test_files(daemon, pod, src):  # noqa: F811
    c = pod.start("x", "sleep", "1000", mounts=[
        mount(src, "/data"), mount(tool(src, "posix"), "/posix", readonly=True)])
    assert differences(daemon, c, "/on-root") == ON_ROOT
    assert differences(daemon, c, "/data/posix") == ON_VOLUMES
