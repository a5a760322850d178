"""Aspis beside Debian's containerd and runc: the same calls, images, network and machine, in turns.

    test/bench/run [-n 50] [--density 1,10] [--json FILE]

Both daemons are started here, with directories, bridges and cgroups of their own, and taken away again. Needs root,
the packages that test/run needs, and containerd with runc. Times are straight gRPC calls, in milliseconds.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

import daemon as world  # noqa: E402
from cri import Client, container_config, pb, sandbox_config  # noqa: E402
from images import publish  # noqa: E402
from registry import Registry  # noqa: E402

CALLS = ["RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "StopContainer", "RemoveContainer",
         "StopPodSandbox", "RemovePodSandbox"]
# ends at once on SIGTERM
COMMAND = ["sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 100000 & wait"]


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


class Aspis:
    name = "aspis"

    def __init__(self, refs, base, templates=True, memory=256, spares=1):
        self.image = refs["busybox"]
        self.d = world.Daemon(base, overrides={"machine": {"templates": templates, "base_memory_mib": memory,
                                                           "spares": spares},
                                               "daemon": {"log_level": os.environ.get("BENCH_LOG", "info")}})
        self.d.start()
        self.client = self.d.client
        self.client.PullImage(image={"image": self.image})
        deadline = time.monotonic() + 60
        while templates and "template ready" not in self.d.log_text():
            if time.monotonic() > deadline:
                raise SystemExit("no template within a minute:\n" + self.d.log_text()[-2000:])
            time.sleep(0.2)

    def daemon_pid(self):
        return self.d.proc.pid

    def spares_made(self):
        return self.d.log_text().count("spare vm ready")

    def pod_pids(self):
        return self.d.qemu_pids()

    def timeline(self, sandbox):
        info = self.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"]
        return json.loads(info).get("timeline")

    def stop(self):
        self.d.destroy()


class Containerd:
    name = "containerd"

    def __init__(self, refs, base):
        self.base = Path(base)
        self.image = refs["busybox"]
        self.address = self.base / "c.sock"
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


def timed(times, call, function, *a, **kw):
    begin = time.perf_counter()
    out = function(*a, **kw)
    times.setdefault(call, []).append((time.perf_counter() - begin) * 1000)
    return out


def wait_ready(rt):
    """Its trap is set: a process group's first process gets no signal that it does not handle."""
    deadline = time.monotonic() + 10
    while not any("ready" in p.read_text() for p in Path(rt.logs).rglob("*.log")):
        if time.monotonic() > deadline:
            raise SystemExit(f"{rt.name}: the container does not get ready")
        time.sleep(0.005)


def one_pod(rt, n, times, timelines):
    for p in Path(rt.logs).rglob("*.log"):
        p.unlink()
    c = rt.client
    pod = sandbox_config(f"{rt.name}{n}", log_directory=str(rt.logs))
    (Path(rt.logs) / "x").mkdir(exist_ok=True)
    sandbox = timed(times, "RunPodSandbox", c.RunPodSandbox, config=pod).pod_sandbox_id
    config = container_config("x", rt.image, COMMAND)
    con = timed(times, "CreateContainer", c.CreateContainer, pod_sandbox_id=sandbox, config=config,
                sandbox_config=pod).container_id
    timed(times, "StartContainer", c.StartContainer, container_id=con)
    out = timed(times, "ExecSync", c.ExecSync, container_id=con, cmd=["true"])
    if out.exit_code != 0:
        raise SystemExit(f"{rt.name}: exec ended with {out.exit_code}")
    line = rt.timeline(sandbox)
    if line:
        timelines.append(line)
    wait_ready(rt)
    timed(times, "StopContainer", c.StopContainer, container_id=con, timeout=10)
    timed(times, "RemoveContainer", c.RemoveContainer, container_id=con)
    timed(times, "StopPodSandbox", c.StopPodSandbox, pod_sandbox_id=sandbox)
    timed(times, "RemovePodSandbox", c.RemovePodSandbox, pod_sandbox_id=sandbox)


def density(rt, counts):
    """Idle pods of one container each: PSS of all there is because of them, and of the daemon."""
    out, pods = [], []
    for want in counts:
        while len(pods) < want:
            pod = sandbox_config(f"d{len(pods)}", log_directory=str(rt.logs))
            s = rt.client.RunPodSandbox(config=pod).pod_sandbox_id
            con = rt.client.CreateContainer(pod_sandbox_id=s, config=container_config("x", rt.image, COMMAND),
                                            sandbox_config=pod).container_id
            rt.client.StartContainer(container_id=con)
            pods.append(s)
        time.sleep(2)
        pids = rt.pod_pids()
        out.append({"pods": want, "pss_mib_per_pod": round(sum(map(pss, pids)) / want, 1),
                    "daemon_pss_mib": round(pss(rt.daemon_pid()), 1)})
    for s in pods:
        rt.client.StopPodSandbox(pod_sandbox_id=s)
        rt.client.RemovePodSandbox(pod_sandbox_id=s)
    return out


def figures(values):
    v = sorted(values)
    return {"median": round(statistics.median(v), 1), "p95": round(v[min(len(v) - 1, int(len(v) * 0.95))], 1),
            "min": round(v[0], 1), "n": len(v)}


def table(result):
    lines = [f"{'call, ms':18}" + "".join(f"{n + ' median (p95, min)':>34}" for n in result["calls"]) + f"{'ratio':>8}"]
    sums = {}
    for call in CALLS:
        row = f"{call:18}"
        for n, calls in result["calls"].items():
            f = calls[call]
            row += f"{f['median']:>16.1f} ({f['p95']:.1f}, {f['min']:.1f})".rjust(34)
            sums.setdefault(n, []).append(f["median"])
        if len(result["calls"]) == 2:
            row += f"{result['calls']['aspis'][call]['median'] / result['calls']['containerd'][call]['median']:>8.2f}"
        lines.append(row)
    for what, at in (("run+create+start", slice(0, 3)), ("all", slice(0, None))):
        row = f"{what:18}" + "".join(f"{sum(s[at]):>34.1f}" for s in sums.values())
        if len(sums) == 2:
            row += f"{sum(sums['aspis'][at]) / sum(sums['containerd'][at]):>8.2f}"
        lines.append(row)
    for n, rows in result["density"].items():
        for r in rows:
            lines.append(f"{n}: {r['pods']} idle pods: {r['pss_mib_per_pod']} MiB PSS per pod, daemon {r['daemon_pss_mib']} MiB")
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-n", type=int, default=50, help="pods of each, one after the other")
    ap.add_argument("--density", default="1,10", help="numbers of idle pods, increasing; empty: none")
    ap.add_argument("--json", help="write everything there")
    ap.add_argument("--only", choices=["aspis", "containerd"])
    ap.add_argument("--no-templates", action="store_true", help="boot each VM, to compare")
    ap.add_argument("--spares", type=int, default=1, help="VMs that aspis has ready before it is asked (0: none)")
    ap.add_argument("--pause", type=float, default=1.5, help="seconds of rest before each round of pods, for both")
    ap.add_argument("--memory", type=int, default=256, help="MiB of a pod without a limit")
    a = ap.parse_args()
    os.makedirs("/run/at", exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="aspis-bench-"))
    reg = Registry()
    reg.start()
    started = []
    try:
        refs = publish(reg, work, only=["busybox", "configured"])
        # the pause container of containerd: any image whose command does not end
        sys.path.insert(0, str(HERE.parents[1] / "deploy"))
        from images import Layout, mkimage
        pause = Layout(work / "pause")
        pause.tag(pause.image([mkimage.busybox_layer()], {"Entrypoint": ["sleep", "2147483647"], "Cmd": None}))
        refs["pause"] = reg.push(pause.dir, "bench/pause")
        for make in (lambda b: Aspis(refs, b, not a.no_templates, a.memory, a.spares), lambda b: Containerd(refs, b)):
            if a.only and (a.only == "aspis") != (len(started) == 0 and make.__code__.co_names[0] == "Aspis"):
                continue
            base = Path(tempfile.mkdtemp(prefix="b", dir="/run/at"))
            base.chmod(0o755)
            rt = make(base)
            rt.base_dir = base
            rt.logs = base / "pods"
            rt.logs.mkdir()
            started.append(rt)
        times = {rt.name: {} for rt in started}
        timelines = []
        for rt in started:  # the first of each warms the page cache
            one_pod(rt, 9999, {}, [])
        for n in range(a.n):
            time.sleep(a.pause)
            for rt in started if n % 2 == 0 else reversed(started):
                one_pod(rt, n, times[rt.name], timelines)
        result = {"calls": {k: {c: figures(v[c]) for c in CALLS} for k, v in times.items()}, "density": {},
                  "timelines": timelines}
        counts = [int(x) for x in a.density.split(",") if x]
        for rt in started:
            result["density"][rt.name] = density(rt, counts) if counts else []
    finally:
        for rt in started:
            rt.stop()
            shutil.rmtree(rt.base_dir, ignore_errors=True)
        reg.stop()
        shutil.rmtree(work, ignore_errors=True)
    print(table(result))
    if timelines:
        print("one RunPodSandbox of aspis, ms since its start:", timelines[len(timelines) // 2])
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
