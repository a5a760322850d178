"""cAdvisor's metrics through CRI, and the daemon's own."""
import http.client
import re
import socket
import stat
import time

import pytest

from cri import pb

pytestmark = pytest.mark.once("the daemon's own counters")

# What critest's newest conformance specs want, a value for each of the first list.
WANTED = """
container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total
container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes
container_fs_usage_bytes container_last_seen container_memory_cache container_memory_failcnt
container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes
container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total
container_network_transmit_bytes_total container_network_transmit_errors_total
container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_processes container_sockets container_spec_cpu_period
container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_swap_limit_bytes
container_start_time_seconds container_threads container_threads_max
container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total
container_spec_cpu_quota container_spec_memory_reservation_limit_bytes container_ulimits_soft
container_blkio_device_usage_total container_fs_reads_bytes_total container_fs_reads_total
container_fs_writes_bytes_total container_fs_writes_total
""".split()


def test_every_metric_has_its_labels_and_a_value(daemon, make_pod):
    pod = make_pod("metrics", namespace="ns")
    c = pod.start("x", "sh", "-c", "dd if=/dev/zero of=/f bs=1M count=4; sync; cat /bin/busybox > /dev/null; sleep 1000; :",
                  resources={"cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512,
                             "memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": 96 << 20})
    time.sleep(2)
    keys = {}
    for d in daemon.client.ListMetricDescriptors().descriptors:
        assert d.name and d.help and d.label_keys and d.name not in keys
        keys[d.name] = list(d.label_keys)
    mine = [p for p in daemon.client.ListPodSandboxMetrics().pod_metrics if p.pod_sandbox_id == pod.id]
    assert len(mine) == 1
    [container] = mine[0].container_metrics
    assert container.container_id == c
    found = {}
    for m in list(mine[0].metrics) + list(container.metrics):
        assert len(m.label_values) == len(keys[m.name])
        labels = dict(zip(keys[m.name], m.label_values))
        assert labels["pod"] == "metrics" and labels["namespace"] == "ns"
        assert m.HasField("value") and m.timestamp > 0
        found.setdefault(m.name, []).append((labels, m.value.value, m.metric_type))
    missing = [w for w in WANTED if w not in found]
    assert not missing, missing
    assert set(found) <= set(keys)

    def value(name, **labels):
        got = [v for got, v, _ in found[name] if got["container"] == "x" and labels.items() <= got.items()]
        assert len(got) == 1, (name, got)
        return got[0]
    assert value("container_spec_memory_limit_bytes") == 96 << 20
    assert value("container_spec_cpu_quota") == 50000 and value("container_spec_cpu_shares") == 512
    assert value("container_processes") == 2 and value("container_threads") == 2
    assert value("container_file_descriptors") >= 6
    assert value("container_fs_usage_bytes") >= 4 << 20
    assert abs(value("container_start_time_seconds") - time.time()) < 60
    assert abs(value("container_last_seen") - time.time()) < 30
    assert value("container_memory_failures_total", failure_type="pgfault") > 100
    assert sum(v for got, v, _ in found["container_fs_writes_bytes_total"]) >= 4 << 20
    assert any(v > 0 for _, v, _ in found["container_network_receive_bytes_total"])
    types = {n: t[0][2] for n, t in found.items()}
    assert all((types[n] == pb.COUNTER) == (n.endswith("_total") or n == "container_memory_failcnt")
               for n in types if n != "container_fs_inodes_total")
    streamed = [p for r in daemon.client.stream("StreamPodSandboxMetrics") for p in r.pod_sandbox_metrics]
    assert {p.pod_sandbox_id for p in streamed} == {pod.id} and len(streamed[0].container_metrics[0].metrics) > 40


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def scrape(daemon):
    c = UnixConnection(daemon.run / "metrics.sock")
    c.request("GET", "/metrics")
    r = c.getresponse()
    text = r.read().decode()
    assert r.status == 200 and r.getheader("Content-Type").startswith("text/plain; version=0.0.4")
    values = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) aspis_[a-z_]+ .+", line), line
            continue
        m = re.fullmatch(r"(aspis_[a-z_]+(?:\{[^{}]*\})?) ([0-9.e+-]+)", line)
        assert m, line
        assert m[1] not in values
        values[m[1]] = float(m[2])
    return values


def test_prometheus_endpoint(daemon, make_pod):
    path = daemon.run / "metrics.sock"
    mode = path.stat()
    assert stat.S_ISSOCK(mode.st_mode) and stat.S_IMODE(mode.st_mode) == 0o600 and mode.st_uid == 0
    before = scrape(daemon)
    pod = make_pod("counted")
    pod.start("x", "sleep", "1000")
    daemon.client.Version()
    after = scrape(daemon)

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)
    assert grown('aspis_calls_total{method="Version",code="OK"}') == 1
    assert grown('aspis_calls_total{method="RunPodSandbox",code="OK"}') == 1
    assert grown('aspis_call_seconds_count{method="RunPodSandbox"}') == 1
    assert grown('aspis_call_seconds_bucket{method="RunPodSandbox",le="+Inf"}') == 1
    assert grown('aspis_call_seconds_sum{method="RunPodSandbox"}') > 0
    assert grown('aspis_machine_starts_total{how="booted"}') + grown('aspis_machine_starts_total{how="cloned"}') == 1
    assert after['aspis_sandboxes{state="ready"}'] == before['aspis_sandboxes{state="ready"}'] + 1
    assert after['aspis_containers{state="running"}'] == before['aspis_containers{state="running"}'] + 1
    assert after["aspis_resident_memory_bytes"] > 1 << 20
    # buckets of a histogram never fall
    for method in ("RunPodSandbox", "Version"):
        counts = [v for k, v in after.items() if k.startswith(f'aspis_call_seconds_bucket{{method="{method}"')]
        assert counts == sorted(counts) and len(counts) > 5


def test_prometheus_endpoint_takes_nonsense(daemon):
    for junk in (b"\0" * 100, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
                 b"GET " + b"/" * 100000):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10)
        s.connect(str(daemon.run / "metrics.sock"))
        try:
            s.sendall(junk)
            answer = s.recv(100)
            assert answer == b"" or b" 4" in answer[:16], answer
        except (BrokenPipeError, ConnectionResetError, socket.timeout):
            pass
        finally:
            s.close()
    assert scrape(daemon)
