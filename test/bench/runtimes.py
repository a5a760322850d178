"""The two runtimes under measurement, each with directories, a bridge and cgroups of its own, and what is read of their processes."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

import daemon as world  # noqa: E402
import spares  # noqa: E402
from cri import Client  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def pss(pid):
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def processes():
    """pid -> (parent, command line)"""
    out = {}
    for p in Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                stat = (p / "stat").read_text()
                out[int(p.name)] = (int(stat.rsplit(")", 1)[1].split()[1]),
                                    (p / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except (OSError, IndexError):
                pass
    return out


def cpu_seconds(pids):
    """User and system time that these processes have had."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / TICKS


def mem_available():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/meminfo has no MemAvailable")


class Aspis:
    name = "aspis"
    gateway = world.GATEWAY4

    def __init__(self, refs, base, templates=True, memory=256, spares=1, fork=True):
        self.image = refs["busybox"]
        self.d = world.Daemon(base, overrides={"machine": {"templates": templates, "base_memory_mib": memory,
                                                           "spares": spares, "fork": fork},
                                               "daemon": {"log_level": os.environ.get("BENCH_LOG", "info")}})
        self.certs, self.endpoint = self.d.certs, self.d.socket
        self.d.start()
        self.client = self.d.client
        self.client.PullImage(image={"image": self.image})
        if templates:  # as on a node that has been up for a minute
            self.wait("spare vm ready" if spares > 0 else "template ready")

    def wait(self, words):
        deadline = time.monotonic() + 60
        while words not in self.d.log_text():
            if time.monotonic() > deadline:
                raise SystemExit(f"no \"{words}\" within a minute:\n" + self.d.log_text()[-2000:])
            time.sleep(0.2)

    def daemon_pid(self):
        return self.d.proc.pid

    def pod_pids(self):
        return self.d.qemu_pids() + spares.pids(self.d)

    def timeline(self, sandbox):
        info = self.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"]
        return json.loads(info).get("timeline")

    def stop(self):
        self.d.destroy()


class Containerd:
    name = "containerd"
    gateway = world.GATEWAY4.replace("10.231.", "10.232.")

    def __init__(self, refs, base):
        self.base = Path(base)
        self.image = refs["busybox"]
        self.address = self.endpoint = self.base / "c.sock"
        self.certs = self.base / "certs.d"
        self.certs.mkdir()
        root = Path("/var/lib/aspis-bench") / self.base.name  # overlayfs does not stack on every file system
        self.root = root
        conf = self.base / "cni.d"
        conf.mkdir()
        bridge = f"aspisb{world.SLOT}"
        self.bridge = bridge
        net = world.conflist(bridge=bridge, ipam_dir=str(self.base / "ipam"))
        text = json.dumps(net).replace(f"10.231.{7 + world.SLOT}.", f"10.232.{7 + world.SLOT}.").replace("fd00:a515:", "fd00:a516:")
        (conf / "10-bench.conflist").write_text(text)
        config = self.base / "config.toml"
        bins = next(str(p) for p in (Path("/opt/cni/bin"), Path("/usr/lib/cni")) if (p / "bridge").exists())
        config.write_text(f"""version = 2
root = "{root}"
state = "{self.base}/state"
[grpc]
address = "{self.address}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{refs['pause']}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bins}"
conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{self.certs}"
""")
        self.log = open(self.base / "containerd.log", "wb")
        self.proc = subprocess.Popen(["containerd", "--config", str(config)], stdin=subprocess.DEVNULL, stdout=self.log,
                                     stderr=self.log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client = Client(self.address)
                self.client.Status(deadline=5)
                break
            except Exception:
                if time.monotonic() > deadline or self.proc.poll() is not None:
                    raise SystemExit((self.base / "containerd.log").read_text()[-3000:])
                time.sleep(0.2)
        for ref in (self.image, refs["pause"]):
            self.client.PullImage(image={"image": ref})

    def daemon_pid(self):
        return self.proc.pid

    def pod_pids(self):
        """The shims of this daemon and everything below them."""
        every = processes()
        found = {p for p, (_, cmd) in every.items() if "containerd-shim" in cmd and str(self.address) in cmd}
        grown = True
        while grown:
            more = {p for p, (parent, _) in every.items() if parent in found} - found
            grown = bool(more)
            found |= more
        return sorted(found)

    def timeline(self, sandbox):
        return None

    def stop(self):
        for s in self.client.ListPodSandbox().items:
            self.client.StopPodSandbox(pod_sandbox_id=s.id)
            self.client.RemovePodSandbox(pod_sandbox_id=s.id)
        self.proc.terminate()
        self.proc.wait(30)
        self.log.close()
        subprocess.run(["ip", "link", "delete", self.bridge], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.root, ignore_errors=True)
