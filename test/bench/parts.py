"""The measurements; each takes started runtimes and gives plain data for JSON."""
import concurrent.futures
import re
import socket
import sqlite3
import statistics
import threading
import time
import urllib.request
from pathlib import Path

from cri import container_config, pb, sandbox_config
from runtimes import cpu_seconds, mem_available, pss

# the first ExecSync comes while the container's shell is still starting, the second when it has started
CALLS = ["RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync at once", "ExecSync", "StopContainer",
         "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"]
STARTED = 0.5  # seconds
# ends at once on SIGTERM
COMMAND = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]


def figures(values):
    v = sorted(values)
    return {"median": round(statistics.median(v), 2), "p95": round(v[min(len(v) - 1, int(len(v) * 0.95))], 2),
            "min": round(v[0], 2), "n": len(v)}


def timed(times, call, function, *a, **kw):
    begin = time.perf_counter()
    out = function(*a, **kw)
    times.setdefault(call, []).append((time.perf_counter() - begin) * 1000)
    return out


def start_pod(rt, name, times=None):
    times = {} if times is None else times
    c = rt.client
    pod = sandbox_config(name, log_directory=str(rt.logs))
    sandbox = timed(times, "RunPodSandbox", c.RunPodSandbox, config=pod).pod_sandbox_id
    config = container_config("x", rt.image, COMMAND, log_path=f"{name}.log")
    con = timed(times, "CreateContainer", c.CreateContainer, pod_sandbox_id=sandbox, config=config,
                sandbox_config=pod).container_id
    timed(times, "StartContainer", c.StartContainer, container_id=con)
    return sandbox, con


def remove_pod(rt, sandbox):
    rt.client.StopPodSandbox(pod_sandbox_id=sandbox)
    rt.client.RemovePodSandbox(pod_sandbox_id=sandbox)


def execute(rt, con, *cmd, timeout=300):
    out = rt.client.ExecSync(container_id=con, cmd=list(cmd), timeout=timeout)
    if out.exit_code != 0:
        raise SystemExit(f"{rt.name}: {cmd} ended with {out.exit_code}: {out.stderr.decode(errors='replace')}")
    return out.stdout.decode(errors="replace")


# --- 1. one pod after the other ---

def one_pod(rt, n, times, timelines):
    c = rt.client
    sandbox, con = start_pod(rt, f"{rt.name}{n}", times)
    for row, rest in (("ExecSync at once", 0), ("ExecSync", STARTED)):
        time.sleep(rest)
        out = timed(times, row, c.ExecSync, container_id=con, cmd=["true"])
        if out.exit_code != 0:
            raise SystemExit(f"{rt.name}: exec ended with {out.exit_code}")
    line = rt.timeline(sandbox)
    if line:
        timelines.append(line)
    timed(times, "StopContainer", c.StopContainer, container_id=con, timeout=10)
    timed(times, "RemoveContainer", c.RemoveContainer, container_id=con)
    timed(times, "StopPodSandbox", c.StopPodSandbox, pod_sandbox_id=sandbox)
    timed(times, "RemovePodSandbox", c.RemovePodSandbox, pod_sandbox_id=sandbox)


def calls(runtimes, rounds, pause):
    times, timelines = {rt.name: {} for rt in runtimes}, []
    for rt in runtimes:  # the first of each warms the page cache
        one_pod(rt, 9999, {}, [])
    for n in range(rounds):
        time.sleep(pause)
        for rt in runtimes if n % 2 == 0 else reversed(runtimes):
            one_pod(rt, n, times[rt.name], timelines)
    return {"figures": {k: {c: figures(v[c]) for c in CALLS} for k, v in times.items()}, "timelines": timelines}


# --- 2. many at a time ---

def burst_once(rt, pods, at_a_time, tag):
    made = []

    def one(n):
        begin = time.perf_counter()
        made.append(start_pod(rt, f"burst{tag}-{n}")[0])
        return (time.perf_counter() - begin) * 1000

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        each = list(pool.map(one, range(pods)))
    total = time.perf_counter() - begin
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda s: remove_pod(rt, s), made))
    return total, each


def burst(runtimes, pods, at_a_time, rounds):
    totals, each = {rt.name: [] for rt in runtimes}, {rt.name: [] for rt in runtimes}
    for n in range(rounds):
        for rt in runtimes if n % 2 == 0 else reversed(runtimes):
            total, latencies = burst_once(rt, pods, at_a_time, n)
            totals[rt.name].append(total)
            each[rt.name] += latencies
    return {"pods": pods, "at_a_time": at_a_time,
            "figures": {n: {"all_running_s": round(statistics.median(totals[n]), 2), "per_pod_ms": figures(each[n])}
                        for n in totals}}


# --- 3 and 4. idle pods: what they hold, and what lists cost meanwhile ---

def list_latency(rt, sandbox, con, rounds=30):
    out = {}
    c = rt.client
    for name, call, kw in (("ListPodSandbox", c.ListPodSandbox, {}), ("ListContainers", c.ListContainers, {}),
                           ("PodSandboxStatus", c.PodSandboxStatus, {"pod_sandbox_id": sandbox}),
                           ("ContainerStatus", c.ContainerStatus, {"container_id": con})):
        times, size = {}, 0
        for _ in range(rounds):
            size = timed(times, name, call, **kw).ByteSize()
        out[name] = dict(figures(times[name]), reply_bytes=size)
    return out


def density(rt, counts, settle, idle=10):
    """Idle pods of one container each, which have been idle for `settle` seconds: everything that exists because of them."""
    out, pods = [], []
    before = mem_available()
    for want in counts:
        while len(pods) < want:
            pods.append(start_pod(rt, f"idle{len(pods)}"))
        time.sleep(settle)
        pids, daemon = rt.pod_pids(), rt.daemon_pid()
        cpu, cpu_daemon, begin = cpu_seconds(pids), cpu_seconds([daemon]), time.monotonic()
        time.sleep(idle)
        span = time.monotonic() - begin
        row = {"pods": want, "processes": len(pids), "pss_mib_per_pod": round(sum(map(pss, pids)) / want, 1),
               "daemon_pss_mib": round(pss(daemon), 1),
               "mem_available_less_mib": round(before - mem_available()),
               "idle_cpu_percent_per_pod": round((cpu_seconds(pids) - cpu) / span / want * 100, 2),
               "daemon_cpu_percent": round((cpu_seconds([daemon]) - cpu_daemon) / span * 100, 2)}
        row["lists"] = list_latency(rt, *pods[-1])
        out.append(row)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda p: remove_pod(rt, p[0]), pods))
    return out


def synthetic_lists(aspis, counts):
    return [synthetic_list(aspis, n) for n in counts]


def synthetic_list(aspis, count):
    """Lists over many ended pods whose records are copies of one real pod's."""
    sandbox, con = start_pod(aspis, f"copied{count}")
    aspis.client.StopPodSandbox(pod_sandbox_id=sandbox)
    aspis.d.stop()
    db = sqlite3.connect(next(Path(aspis.d.state).glob("*.db")))
    db.row_factory = sqlite3.Row
    with db:
        for table, message, key in (("sandboxes", pb.PodSandboxConfig, sandbox), ("containers", pb.ContainerConfig, con)):
            row = dict(db.execute(f"SELECT * FROM {table} WHERE id = ?", (key,)).fetchone())
            for n in range(count - 1):
                copy, config = dict(row), message.FromString(row["config"])
                copy["id"] = f"{n:08x}" + row["id"][8:]
                if table == "sandboxes":
                    config.metadata.uid = f"copy-{n}"
                else:
                    copy["sandbox_id"] = f"{n:08x}" + sandbox[8:]
                copy["config"] = config.SerializeToString()
                db.execute(f"INSERT INTO {table} ({','.join(copy)}) VALUES ({','.join('?' * len(copy))})",
                           list(copy.values()))
    db.close()
    aspis.d.start()
    aspis.client = aspis.d.client
    found = len(aspis.client.ListPodSandbox().items)
    if found != count:
        raise SystemExit(f"{found} of {count} synthetic pods are listed")
    out = {"pods": count, "lists": list_latency(aspis, sandbox, con), "daemon_pss_mib": round(pss(aspis.daemon_pid()), 1)}
    for item in aspis.client.ListPodSandbox().items:
        aspis.client.RemovePodSandbox(pod_sandbox_id=item.id)
    return out


# --- 5. inside a pod ---

class Source:
    """On the host's end of the bridge: sends `size` bytes to whoever connects."""

    def __init__(self, address, size):
        self.size = size
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        block = bytes(1 << 20)
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            with conn:
                for _ in range(self.size >> 20):
                    conn.sendall(block)

    def close(self):
        self.listener.close()


def download(address, size):
    with urllib.request.urlopen(f"http://{address}:8080/net", timeout=120) as r:
        got = 0
        while block := r.read(1 << 20):
            got += len(block)
    if got != size:
        raise SystemExit(f"{got} of {size} bytes came out of the pod")


MIB = 64


def inside(runtimes, rounds):
    """MB/s, or operations a second, or milliseconds; each as it is."""
    pods = {rt.name: start_pod(rt, "inside") for rt in runtimes}
    sources = {rt.name: Source(rt.gateway, MIB << 20) for rt in runtimes}
    address = {}
    for rt in runtimes:
        sandbox, con = pods[rt.name]
        address[rt.name] = rt.client.PodSandboxStatus(pod_sandbox_id=sandbox).status.network.ip
        execute(rt, con, "sh", "-c", f"truncate -s {MIB}M /net && httpd -p 8080 -h /")
    values = {}

    def measure(rt, what, unit, amount, work):
        begin = time.perf_counter()
        if callable(work):
            work()
        else:
            execute(rt, pods[rt.name][1], "sh", "-c", work)
        values.setdefault(what, {"unit": unit, "of": {}})["of"].setdefault(rt.name, []).append(
            amount / (time.perf_counter() - begin))

    for n in range(rounds):
        for rt in runtimes if n % 2 == 0 else reversed(runtimes):
            gw, ip = rt.gateway, address[rt.name]
            measure(rt, "root file system write", "MB/s", MIB * 1.048576,
                    f"dd if=/dev/zero of=/f bs=1M count={MIB} conv=fsync 2>/dev/null")
            measure(rt, "root file system read, cached", "MB/s", MIB * 1.048576, "cat /f >/dev/null")
            measure(rt, "files created and removed", "files/s", 500,
                    "mkdir /d && i=0; while [ $i -lt 500 ]; do : >/d/$i; i=$((i+1)); done; rm -r /d /f")
            measure(rt, "network in", "MB/s", MIB * 1.048576, f"nc {gw} {sources[rt.name].port} </dev/null >/dev/null")
            measure(rt, "network out", "MB/s", MIB * 1.048576, lambda ip=ip: download(ip, MIB << 20))
            measure(rt, "system calls", "calls/s", 400000, "dd if=/dev/zero of=/dev/null bs=1 count=200000 2>/dev/null")
            measure(rt, "processes", "processes/s", 100, "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done")
            measure(rt, "SHA-256", "MB/s", 16 * 1.048576, "dd if=/dev/zero bs=1M count=16 2>/dev/null | sha256sum >/dev/null")
            ping = execute(rt, pods[rt.name][1], "ping", "-c", "20", "-i", "0.05", gw)
            avg = re.search(r"= [\d.]+/([\d.]+)/", ping)
            values.setdefault("ping", {"unit": "ms", "of": {}})["of"].setdefault(rt.name, []).append(float(avg.group(1)))
    for source in sources.values():
        source.close()
    for rt in runtimes:
        remove_pod(rt, pods[rt.name][0])
    return {what: {"unit": v["unit"], "of": {n: round(statistics.median(x), 2) for n, x in v["of"].items()}}
            for what, v in values.items()}
