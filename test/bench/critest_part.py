"""critest's own benchmarks, for both runtimes in turns: the life of a container and of a pod sandbox, as critest times them."""
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "conformance"))

import critest  # noqa: E402
import critest_images  # noqa: E402

ROUNDS = 3
FILES = {"Container": "container_benchmark_data.json", "PodSandbox": "pod_benchmark_data.json"}


def publish(registry, work, runtimes):
    """critest names its images in full: every runtime is sent to the registry on this machine for them."""
    critest_images.publish(registry, work / "critest", runtimes[0].certs)
    for rt in runtimes[1:]:
        critest_images.redirect(registry, rt.certs)


def one_run(rt, out, n):
    """{what: [{operation: ms}]} of one run of critest."""
    out.mkdir(parents=True, exist_ok=True)
    params = out / "params.yml"
    params.write_text(f"containersNumber: {n}\npodsNumber: {n}\n")
    specs = critest.run(rt.endpoint, out, focus=["benchmark"], skip=["on Image", "listing Image"], timeout=1800,
                        flags=["--benchmark", f"--benchmarking-params-file={params}", f"--benchmarking-output-dir={out}"])
    failed = [s for s in specs if s.state != "passed"]
    if failed or not specs:
        raise SystemExit(f"critest --benchmark failed on {rt.name}:\n{critest.table(specs)}")
    found = {}
    for what, name in FILES.items():
        data = json.loads((out / name).read_text())
        found[what] = [dict(zip(data["operationsNames"], (ns / 1e6 for ns in p["operationsDurationsNs"])))
                       for p in data["datapoints"]]
    return found


def measure(runtimes, work, n):
    samples = {}
    for r in range(ROUNDS):
        for rt in runtimes if r % 2 == 0 else reversed(runtimes):
            found = one_run(rt, work / f"run-{rt.name}-{r}", -(-n // ROUNDS))
            for what, points in found.items():
                for p in points:
                    for operation, ms in p.items():
                        samples.setdefault(f"{what}: {operation}", {}).setdefault(rt.name, []).append(ms)
    return {op: {name: round(statistics.median(v), 2) for name, v in of.items()} for op, of in samples.items()}
