"""Sizes and limits: what a pod asks for is what its VM and its containers get, also while it runs."""
import json
import re
import time
from pathlib import Path

import grpc
import pytest

from conftest import Pod
from cri import container_config, pb, sandbox_config

MIB = 1 << 20


def wait_template(d, n=1, timeout=90):
    deadline = time.monotonic() + timeout
    while d.log_text().count("template ready") < n:
        assert time.monotonic() < deadline, d.log_text()[-3000:]
        time.sleep(0.1)


def machine(d, sandbox):
    return json.loads(d.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])["machine"]


def resources(**kw):
    return pb.LinuxContainerResources(**kw)


def pod_resources(**kw):
    return pb.LinuxPodSandboxConfig(resources=resources(**kw))


def guest_memory(d, container):
    text = d.exec(container, "cat", "/proc/meminfo").stdout.decode()
    return int(re.search(r"MemTotal: *(\d+)", text).group(1)) * 1024


def pss(pid):
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: *(\d+)", text, re.M).group(1)) * 1024


def test_larger_pods_are_clones_that_grow(daemon, make_pod):
    wait_template(daemon)
    small = make_pod("small")
    large = make_pod("large", linux=pod_resources(memory_limit_in_bytes=600 * MIB, cpu_quota=200000, cpu_period=100000))
    m = machine(daemon, large.id)
    assert m["cloned"] and m["vcpus"] == 2, m
    assert 696 * MIB <= m["memory_bytes"] < (696 + 128) * MIB, m
    a, b = small.start("c", "sleep", "1000"), large.start("c", "sleep", "1000")
    added = guest_memory(daemon, b) - guest_memory(daemon, a)
    assert added == m["memory_bytes"] - machine(daemon, small.id)["memory_bytes"]
    assert daemon.exec(b, "nproc").stdout == b"2\n"
    assert daemon.exec(a, "nproc").stdout == b"1\n"
    # all of it can be used
    assert daemon.exec(b, "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; "
                       "mkdir /t; echo ok").stdout == b"ok\n"
    daemon.kill()
    daemon.start()
    after = machine(daemon, large.id)
    assert after == m
    assert daemon.exec(b, "nproc").stdout == b"2\n"
