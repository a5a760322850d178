"""Runs critest against a daemon and reads its report. Used by test/conformance/run and by the integration tests.

    binary()                       critest, built once into the cache; RuntimeError where that is not possible
    run(endpoint, out, ...)        the specs that ran, as a list of Spec
    known(handler)                 specs that need not pass, from the file `known`
    surprises(specs, handler)      what is not as that file says
    table(specs)                   text for people
"""
import json
import os
import subprocess
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ASPIS_CACHE", "/var/cache/aspis")) / "bin"
VERSION = "v1.36.0"

# state: passed, failed, skipped (by the spec itself), as ginkgo says; reason: of a failure or a skip
Spec = namedtuple("Spec", "name state seconds reason")


def binary():
    path = CACHE / f"critest-{VERSION}"
    if not path.exists():
        r = subprocess.run([str(HERE / "build-critest"), str(path)], capture_output=True, text=True)
        if r.returncode != 0:
            raise RuntimeError("critest cannot be built: " + (r.stderr.strip().splitlines() or ["?"])[-1])
    return path


def run(endpoint, out, focus=None, skip=None, flags=(), timeout=7200, handler=""):
    """Leaves critest.log, report.json and junit.xml in the directory `out`."""
    out = Path(out)
    report = out / "report.json"
    report.unlink(missing_ok=True)
    command = [str(binary()), f"--runtime-endpoint=unix://{endpoint}", "--ginkgo.no-color",
               f"--ginkgo.json-report={report}", f"--ginkgo.junit-report={out / 'junit.xml'}"]
    if handler:
        command.append(f"--runtime-handler={handler}")
    command += [f"--ginkgo.focus={f}" for f in focus or []] + [f"--ginkgo.skip={s}" for s in skip or []]
    with open(out / "critest.log", "w") as log:
        proc = subprocess.Popen(command + list(flags), cwd=out, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT)
        try:
            proc.wait(timeout)
        finally:
            if proc.poll() is None:
                proc.kill()
                proc.wait()
    if not report.exists():
        raise RuntimeError(f"critest wrote no report:\n{(out / 'critest.log').read_text()[-4000:]}")
    return parse(report)


def parse(report):
    specs = []
    for suite in json.loads(Path(report).read_text()):
        for s in suite["SpecReports"] or []:
            # without a run time it was filtered out by focus or skip
            if s["LeafNodeType"] != "It" or (s["State"] == "skipped" and not s.get("Failure", {}).get("Message")):
                continue
            name = " > ".join([*(s["ContainerHierarchyTexts"] or []), s["LeafNodeText"]])
            state = s["State"] if s["State"] in ("passed", "skipped", "pending") else "failed"
            reason = " ".join(s.get("Failure", {}).get("Message", "").split())
            specs.append(Spec(name, state, round(s.get("RunTime", 0) / 1e9, 1), reason))
    return sorted(specs)


def known(handler=""):
    """The file `known`, as far as it is about this runtime handler: {name of a spec: (state, reason)}."""
    found = {}
    for line in (HERE / "known").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            spec, _, reason = line.partition(" # ")
            state, which, name = spec.split(None, 2)
            if which in ("*", handler or "default"):
                found[name.strip()] = (state, reason.strip())
    return found


def surprises(specs, handler="", whole=False):
    """What is not as `known` says: failures and skips that it does not list, listed ones that did something else, and, when all
    specs were to run, listed ones that do not exist."""
    listed = known(handler)
    wrong = []
    for s in specs:
        want, _ = listed.get(s.name, ("passed", ""))
        if s.state == "passed" and want != "passed":
            wrong.append(f"passed, so it is no longer to be in `known`: {s.name}")
        elif s.state != want:
            wrong.append(f"{s.state}: {s.name}: {s.reason[:300]}")
    there = {s.name for s in specs}
    return wrong + [f"in `known`, but there is no such spec: {n}" for n in listed if whole and n not in there]


def table(specs, reasons=200):
    lines = [f"{s.state:8} {s.seconds:7.1f} s  {s.name}" + (f"\n{'':19}{s.reason[:reasons]}" if s.reason else "")
             for s in sorted(specs, key=lambda s: ({"passed": 0, "skipped": 1}.get(s.state, 2), s.name))]
    count = {state: sum(s.state == state for s in specs) for state in ("passed", "failed", "skipped")}
    lines.append(f"{len(specs)} specs: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped, "
                 f"{sum(s.seconds for s in specs):.0f} s")
    return "\n".join(lines)
