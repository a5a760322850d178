"""The result of a run as text and as a drawing."""
from parts import CALLS

GROUPS = [("run+create+start", CALLS[:3]), ("create+start", CALLS[1:3]), ("stop+remove", CALLS[5:]), ("all", CALLS)]


def ratio(of):
    return f"{of['aspis'] / of['containerd']:>8.2f}" if len(of) == 2 and of["containerd"] else ""


def calls_table(result):
    names = list(result["figures"])
    lines = [f"{'call, ms':18}" + "".join(f"{n + ' median (p95, min)':>34}" for n in names) + f"{'ratio':>8}"]
    for call in CALLS:
        of = {n: result["figures"][n][call] for n in names}
        lines.append(f"{call:18}" + "".join(f"{f['median']:.1f} ({f['p95']:.1f}, {f['min']:.1f})".rjust(34) for f in of.values()) +
                     ratio({n: f["median"] for n, f in of.items()}))
    for what, members in GROUPS:
        of = {n: sum(result["figures"][n][c]["median"] for c in members) for n in names}
        lines.append(f"{what:18}" + "".join(f"{v:>34.1f}" for v in of.values()) + ratio(of))
    return lines


def burst_table(result):
    of = result["figures"]
    lines = [f"{result['pods']} pods, {result['at_a_time']} at a time:"]
    for n, f in of.items():
        lines.append(f"  {n}: all running after {f['all_running_s']:.2f} s; one pod {f['per_pod_ms']['median']:.0f} ms, "
                     f"p95 {f['per_pod_ms']['p95']:.0f} ms")
    if len(of) == 2:
        lines.append("  ratio of the whole:" + ratio({n: f["all_running_s"] for n, f in of.items()}))
    return lines


def lists_line(lists):
    return ", ".join(f"{k} {v['median']:.2f} ms/{v['reply_bytes'] / 1000:.1f} kB" for k, v in lists.items())


def density_table(result):
    lines = ["idle pods:"]
    for n, rows in result.items():
        for r in rows:
            lines.append(f"  {n} {r['pods']:>4}: {r['pss_mib_per_pod']:.1f} MiB PSS and {r['idle_cpu_percent_per_pod']:.2f} % CPU a pod, "
                         f"daemon {r['daemon_pss_mib']:.1f} MiB {r['daemon_cpu_percent']:.1f} %, MemAvailable "
                         f"less by {r['mem_available_less_mib']} MiB")
            lines.append(f"       {lists_line(r['lists'])}")
    return lines


def inside_table(result):
    lines = [f"{'inside':32}" + "".join(f"{n:>14}" for n in next(iter(result.values()))["of"]) + "   unit"]
    for what, v in result.items():
        lines.append(f"{what:32}" + "".join(f"{x:>14.1f}" for x in v["of"].values()) + f"   {v['unit']:12}" + ratio(v["of"]))
    return lines


def critest_table(result):
    lines = [f"{'critest --benchmark, median ms':42}" + "".join(f"{n:>14}" for n in next(iter(result.values())))]
    for what, of in result.items():
        lines.append(f"{what:42}" + "".join(f"{x:>14.1f}" for x in of.values()) + ratio(of))
    return lines


def text(result):
    lines = []
    if "calls" in result:
        lines += calls_table(result["calls"]) + [""]
    if "burst" in result:
        lines += burst_table(result["burst"]) + [""]
    if "density" in result:
        lines += density_table(result["density"]) + [""]
    if "synthetic" in result:
        lines += [f"aspis, {s['pods']} ended pods: daemon {s['daemon_pss_mib']} MiB; {lists_line(s['lists'])}"
                  for s in result["synthetic"]] + [""]
    if "inside" in result:
        lines += inside_table(result["inside"]) + [""]
    if "critest" in result:
        lines += critest_table(result["critest"])
    return "\n".join(lines).rstrip()


def draw(result, path):
    import matplotlib  # Debian's python3-matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aspis"
    from matplotlib import pyplot

    colours = {"aspis": "#1f6f8b", "containerd": "#c9a227"}
    parts = [p for p in ("calls", "burst", "density") if p in result]
    fig, axes = pyplot.subplots(1, len(parts), figsize=(5.2 * len(parts), 4.2), squeeze=False)
    for ax, part in zip(axes[0], parts):
        if part == "calls":
            names = list(result[part]["figures"])
            for k, n in enumerate(names):
                f = [result[part]["figures"][n][c] for c in CALLS]
                at = [i + 0.4 * k - 0.2 for i in range(len(CALLS))]
                ax.barh(at, [x["median"] for x in f], 0.38, color=colours[n], label=n)
                ax.plot([x["p95"] for x in f], at, "|", color="black", markersize=7)
            ax.set_yticks(range(len(CALLS)), CALLS)
            ax.invert_yaxis()
            ax.set_title("One call, ms: median (bar), p95 (mark)")
        elif part == "burst":
            of = result[part]["figures"]
            ax.bar(list(of), [f["all_running_s"] for f in of.values()], color=[colours[n] for n in of])
            ax.set_title(f"{result[part]['pods']} pods, {result[part]['at_a_time']} at a time: s until all run")
        else:
            for n, rows in result[part].items():
                ax.plot([r["pods"] for r in rows], [r["pss_mib_per_pod"] for r in rows], "o-", color=colours[n], label=n)
            ax.set_ylim(bottom=0)
            ax.set_xlabel("idle pods")
            ax.set_title("MiB (PSS) a pod, everything counted")
        if part != "burst":
            ax.legend(frameon=False)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
