"""The leak audit: what exists on the machine because of pods, before a test and after it, must be the same."""
import os
import subprocess
from pathlib import Path

from daemon import ALONE, BRIDGE


def _links():
    """Host ends of pods' interfaces on the suite's own bridge, and taps that strayed out of a namespace."""
    names = {p.name for p in Path("/sys/class/net").iterdir() if p.name.startswith("tap")}
    ports = Path("/sys/class/net") / BRIDGE / "brif"
    return names | ({p.name for p in ports.iterdir()} if ports.is_dir() else set())


def _mounts(daemon):
    """Those of other daemons' directories are theirs, and a suite that shares the machine cannot tell whose a namespace is."""
    found = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    own = (f"{daemon.base}/", f"{daemon.state}/")
    return [m for m in found if m.startswith(own) or not m.startswith(("/run/at/", "/var/lib/aspis"))
            and (ALONE or not m.startswith(("/run/netns", "/tmp", "/sys/kernel/")))]


def _cgroups(name):
    """os.walk, since it does not mind a directory that goes while it looks."""
    found = set()
    for root in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        for at, below, _ in os.walk(root / name.lstrip("/")):
            found |= {os.path.join(at, d) for d in below}
    return found


def _children(pid):
    out = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--ppid", str(pid)], capture_output=True, text=True)
    return sorted(" ".join(line.split()[1:]) for line in out.stdout.splitlines())


def _fds(pid):
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except FileNotFoundError:
        return 0


def _files(*dirs):
    found = set()
    for d in dirs:
        if d.is_dir():
            found |= {str(p) for p in d.iterdir()}
    return found


def _not_template(names):
    """A daemon boots its template whenever it likes: the VM, gone in seconds, is no pod's."""
    return type(names)(n for n in names if "/template-" not in n and "aspis-template-" not in n)


def named_netns():
    return {p.name for p in Path("/run/netns").glob("cni-*")}


def _spares(daemon):
    """VMs that no pod has taken yet, which the daemon makes whenever it likes: their ids."""
    return {Path(d).name.removeprefix("aspis-") for d in _cgroups(daemon.cgroup + "-spare")}


def _spares_netns():
    """Names of the network namespaces of such VMs, of any daemon that a test has."""
    names = set()
    for note in Path("/run/at").glob("*/r/netns/*"):
        try:
            if any(d.endswith(note.name) for d in _cgroups(f"/aspis-test-{note.parts[3]}-spare")):
                names.add(Path(note.read_text().strip()).name)
        except FileNotFoundError:
            pass
    return names


def snapshot(daemon):
    netns = Path("/run/netns")
    spares = _spares(daemon) | _spares_netns()

    def pods(names):
        return type(names)(n for n in _not_template(names) if not any(s in n for s in spares))

    return {
        "qemu": sorted(daemon.qemu_pids()),
        "children": pods(_children(daemon.proc.pid) if daemon.proc else []),
        "links": _links(),
        # a suite that shares the machine cannot tell whose a namespace is
        "netns": pods({p.name for p in netns.iterdir()} if ALONE and netns.is_dir() else set()),
        "mounts": pods(_mounts(daemon)),
        "cgroups": pods(_cgroups(daemon.cgroup)),
        "run files": pods(_files(daemon.run / "sandboxes", daemon.run / "netns", daemon.run / "logs")),
        "scratch": pods(_files(daemon.state / "sandboxes")),
        "cni cache": _files(daemon.cni_cache / "results"),
        "ipam": {p for p in _files(daemon.ipam / "aspis-test") if not p.endswith(("lock", ".0", ".1"))
                 and "last_reserved_ip" not in p},
    }


def compare(before, after):
    """A readable list of what is there now and was not. What went away meanwhile was somebody else's."""
    wrong = []
    for key, was in before.items():
        extra = [x for x in after[key] if x not in was]
        if extra:
            wrong.append(f"{key}: left behind {extra}")
    return wrong
