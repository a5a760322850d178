"""Aspis beside Debian's containerd and runc: the same calls, images, network and machine, in turns.

    test/bench/run [-n 50] [--parts calls,burst,density,lists,inside,critest] [--json FILE] [--plot FILE.svg]

Both daemons are started here, with directories, bridges and cgroups of their own, and taken away again. Needs root,
the packages that test/run needs, and containerd with runc. Times are straight gRPC calls, in milliseconds.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))
sys.path.insert(0, str(HERE.parents[1] / "deploy"))

import critest_part  # noqa: E402
import parts  # noqa: E402
import report  # noqa: E402
from images import Layout, mkimage, publish  # noqa: E402
from registry import Registry  # noqa: E402
from runtimes import Aspis, Containerd  # noqa: E402

PARTS = ["calls", "burst", "density", "lists", "inside", "critest"]


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-n", type=int, default=50, help="pods of each, one after the other")
    ap.add_argument("--parts", default=",".join(PARTS), help="what to measure, of " + ", ".join(PARTS))
    ap.add_argument("--burst", default="50,10,3", help="pods, how many at a time, rounds")
    ap.add_argument("--density", default="1,10,50,100", help="numbers of idle pods, increasing")
    ap.add_argument("--settle", type=float, default=45, help="seconds that pods have been idle when their memory is looked at")
    ap.add_argument("--synthetic", default="10,100,500", help="numbers of ended pods for the lists")
    ap.add_argument("--rounds", type=int, default=5, help="rounds of the measurements inside a pod")
    ap.add_argument("--json", help="write everything there")
    ap.add_argument("--plot", help="draw the result there (SVG; needs python3-matplotlib)")
    ap.add_argument("--only", choices=["aspis", "containerd"])
    ap.add_argument("--no-templates", action="store_true", help="boot each VM, to compare")
    ap.add_argument("--no-fork", action="store_true", help="clone each VM from the template, to compare")
    ap.add_argument("--spares", type=int, default=1, help="VMs that aspis has ready before it is asked (0: none)")
    ap.add_argument("--pause", type=float, default=1.5, help="seconds of rest before each round of pods, for both")
    ap.add_argument("--memory", type=int, default=256, help="MiB of a pod without a limit")
    return ap.parse_args()


def start(make, started):
    base = Path(tempfile.mkdtemp(prefix="b", dir="/run/at"))
    base.chmod(0o755)
    rt = make(base)
    rt.base_dir = base
    rt.logs = base / "pods"
    rt.logs.mkdir()
    started.append(rt)


def main():
    a = arguments()
    wanted = a.parts.split(",")
    if set(wanted) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(set(wanted) - set(PARTS))}")
    os.makedirs("/run/at", exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="aspis-bench-"))
    reg = Registry()
    reg.start()
    started, result = [], {}
    try:
        refs = publish(reg, work, only=["busybox", "configured"])
        # the pause container of containerd: any image whose command does not end
        pause = Layout(work / "pause")
        pause.tag(pause.image([mkimage.busybox_layer()], {"Entrypoint": ["sleep", "2147483647"], "Cmd": None}))
        refs["pause"] = reg.push(pause.dir, "bench/pause")
        if a.only != "containerd":
            start(lambda base: Aspis(refs, base, not a.no_templates, a.memory, a.spares, not a.no_fork), started)
        if a.only != "aspis":
            start(lambda base: Containerd(refs, base), started)
        if "calls" in wanted:
            result["calls"] = parts.calls(started, a.n, a.pause)
        if "burst" in wanted:
            result["burst"] = parts.burst(started, *map(int, a.burst.split(",")))
        if "density" in wanted:
            result["density"] = {rt.name: parts.density(rt, [int(x) for x in a.density.split(",")], a.settle) for rt in started}
        if "lists" in wanted and a.only != "containerd":
            result["synthetic"] = parts.synthetic_lists(started[0], [int(x) for x in a.synthetic.split(",")])
        if "inside" in wanted:
            result["inside"] = parts.inside(started, a.rounds)
        if "critest" in wanted:
            critest_part.publish(reg, work, started)
            result["critest"] = critest_part.measure(started, work, a.n)
    finally:
        for rt in started:
            rt.stop()
            shutil.rmtree(rt.base_dir, ignore_errors=True)
        reg.stop()
        shutil.rmtree(work, ignore_errors=True)
    print(report.text(result))
    lines = result.get("calls", {}).get("timelines")
    if lines:
        print("one RunPodSandbox of aspis, ms since its start:", lines[len(lines) // 2])
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=1) + "\n")
    if a.plot:
        report.draw(result, a.plot)


if __name__ == "__main__":
    main()
