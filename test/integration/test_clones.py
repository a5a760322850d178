"""S11: pods that start from one template are different machines. And a template that does not fit is not used."""
import concurrent.futures
import json
import re
import shutil
import time
from pathlib import Path

from conftest import Pod
from cri import pb, sandbox_config
from daemon import INITRD
from machines import machine, wait_template

CLONES = 20


def test_twenty_clones_share_nothing(daemon, make_pod):
    wait_template(daemon)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(lambda n: make_pod(f"clone{n}"), range(CLONES)))
    assert all(machine(daemon, p.id)["cloned"] for p in pods)
    script = ("cat /proc/sys/kernel/random/uuid; dd if=/dev/urandom bs=32 count=1 2>/dev/null | sha256sum; "
              "cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/eth0/address; hostname; "
              "ip -4 -o addr show eth0 | awk '{print $4}'; head -c 65536 /dev/urandom | sha256sum")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = list(pool.map(lambda p: p.start("c", "sleep", "1000"), pods))
        answers = list(pool.map(lambda c: daemon.exec(c, "sh", "-c", script).stdout.decode().split("\n"), running))
    for k, what in enumerate(["uuid", "random bytes", "boot id", "mac", "host name", "address", "more random bytes"]):
        seen = [a[k] for a in answers]
        assert all(seen) and len(set(seen)) == CLONES, (what, seen)
    # the template's own address stays its own
    assert "02:a5:15:00:00:01" not in [a[3] for a in answers]
    # the clock is the host's: within 10 ms, and what a look at it takes
    offsets = []
    for c in running:
        best = None
        for _ in range(5):
            before = time.time()
            shown = daemon.exec(c, "adjtimex").stdout.decode()
            guest = (int(re.search(r"tv_sec: *(\d+)", shown).group(1))
                     + int(re.search(r"tv_usec: *(\d+)", shown).group(1)) / 1e6)
            after = time.time()
            off = max(before - guest, guest - after, 0)
            best = off if best is None else min(best, off)
        offsets.append(best)
    # the time travels with ConfigurePod, so on a machine with more to do than processors it is late by a turn
    assert sorted(offsets)[CLONES // 2] < 0.010 and max(offsets) < 0.2, offsets


def test_clones_of_a_clone_host_survive_the_daemon(daemon, make_pod):
    wait_template(daemon)
    pod = make_pod("cloned-stays")
    assert machine(daemon, pod.id)["cloned"]
    c = pod.start("x", "sleep", "1000")
    daemon.kill()
    daemon.start()
    assert machine(daemon, pod.id)["cloned"]
    assert daemon.exec(c, "echo", "still").stdout == b"still\n"
    assert pod.run("y", "sh", "-c", "exit 5").exit_code == 5


def test_writes_stay_in_their_clone(daemon, make_pod):
    """Memory is copied on write, disks are their own."""
    wait_template(daemon)
    a, b = make_pod("wa"), make_pod("wb")
    ca, cb = a.start("x", "sleep", "1000"), b.start("x", "sleep", "1000")
    fill = "dd if=/dev/urandom of=/f bs=1M count=40 2>/dev/null; sha256sum < /f"
    sums = [daemon.exec(c, "sh", "-c", fill).stdout for c in (ca, cb)]
    assert sums[0] != sums[1]
    assert [daemon.exec(c, "sh", "-c", "sha256sum < /f").stdout for c in (ca, cb)] == sums
    third = make_pod("wc")
    assert third.run("x", "true").exit_code == 0


def test_other_inputs_make_another_template(own_daemon, images):
    d = own_daemon(overrides={"machine": {}})
    initrd = Path(d.base) / "initrd"
    shutil.copy(INITRD, initrd)
    d.overrides["machine"]["initrd"] = str(initrd)
    d.write_config()
    d.start()
    first = d.run_pod(sandbox_config("early"))  # does not wait for it
    wait_template(d)
    second = d.run_pod(sandbox_config("cloned"))
    assert machine(d, second)["cloned"]
    shutil.copy(INITRD, initrd.with_suffix(".new"))
    initrd.with_suffix(".new").rename(initrd)
    third = d.run_pod(sandbox_config("changed"))
    assert not machine(d, third)["cloned"]
    wait_template(d, 2)
    fourth = d.run_pod(sandbox_config("cloned-again"))
    assert machine(d, fourth)["cloned"]
    assert first


def test_templates_can_be_off(own_daemon, images):
    d = own_daemon(overrides={"machine": {"templates": False}})
    d.start()
    assert not machine(d, d.run_pod(sandbox_config("x")))["cloned"]
    assert "template" not in d.log_text()
    assert json.loads(d.client.Status(verbose=True).info["config"])["templates"] == "off"
