"""What tests of spare VMs look at."""
import time
from pathlib import Path

import audit


def pids(d):
    """Processes of VMs that no pod has: QEMU, and aspis-vsock beside it."""
    found = []
    for p in Path("/proc").iterdir():
        try:
            # a killed daemon's child stays a zombie for as long as init pleases
            if (p.name.isdigit() and f"{d.cgroup}-spare/" in (p / "cgroup").read_text()
                    and (p / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"):
                found.append(int(p.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def vms(d):
    """One process of each such VM: its QEMU."""
    return [p for p in pids(d) if Path(f"/proc/{p}/comm").read_text().startswith("qemu")]


def wait_log(d, text, n=1, timeout=120):
    deadline = time.monotonic() + timeout
    while d.log_text().count(text) < n:
        assert time.monotonic() < deadline, d.log_text()[-3000:]
        time.sleep(0.05)


def wait_ready(d, n=1, timeout=120):
    wait_log(d, "spare vm ready", n, timeout)


def left(d):
    """All that there is of VMs without a pod, while the daemon has no pods."""
    found = [str(p) for p in pids(d)]
    found += sorted(audit._cgroups(d.cgroup + "-spare"))
    found += sorted(audit._not_template(audit._files(d.run / "sandboxes", d.run / "netns", d.state / "sandboxes")))
    return found
