"""The page of results, from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlc.paired import geometric_mean

COLUMNS = ("dlc", "onnxruntime", "openvino", "inductor", "inductor+freezing", "iree", "tvm", "eager")
PEAK_SHARE = 0.8
"""Kernels below this share of the multiply-add peak are listed."""

INTRO = """\
# Whole models beside their peers

Written by `python -m benchmarks.run`. Median milliseconds per call, f32 (or what the name says), from torch tensors to torch tensors; in
parentheses the lowest and the highest median of a turn. **Bold** is the fastest. dlc runs one saved `.dlc` per model, with symbolic
batch (and length, where the model has one), for all its rows; OpenVINO, IREE and TVM were given the static shapes, Inductor specialises by
itself, and TVM was not tuned. Inputs come from a ring larger than the last-level cache, of 64 sets at most. Contenders take turns in
processes of their own, with pauses between; a turn during which a probe kernel found the machine below its usual speed is repeated.
Every contender's results were compared with eager's (onnxruntime's for Silero VAD) before it was timed. The ratio is dlc's time over that
of the fastest peer (below 1 dlc is faster): the median of the ratios within each round, with a bootstrap 95 % interval; a tilde marks
one that disturbed rounds are part of. Who takes more than five times as long as the fastest has one turn. A dash: not part of that run.
"""


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    parts = [INTRO]
    counts = sorted({run["threads"] for r in results for run in r["runs"]}, reverse=True)
    for threads in counts:
        parts += [f"## {plural(threads)}", latency_table(results, threads), summary(results, threads)]
        parts += [f"![The best peer's time over dlc's](latency-{threads}.svg)"]
    parts += ["## Memory", MEMORY_INTRO]
    parts += [f"{plural(threads)}:\n\n{memory_table(results, threads)}" for threads in counts]
    parts += ["## Compiling and starting", COMPILE_INTRO, compile_table(results)]
    parts += ["## Where the time of dlc goes", PROFILE_INTRO.format(share=PEAK_SHARE)]
    parts += [text for r in results for run in r["runs"] if run["profile"] for text in profile_text(label(r), run)]
    parts += ["## What was measured", *measured(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def plural(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def label(result: dict[str, Any]) -> str:
    """The row's name."""
    return str(result.get("row") or result["model"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


Runs = list[tuple[dict[str, Any], dict[str, Any]]]


def runs_with(results: Sequence[dict[str, Any]], threads: int) -> tuple[Runs, list[str]]:
    """The results that have a run with so many threads, and who took part in any of them."""
    runs = [(r, run) for r in results for run in r["runs"] if run["threads"] == threads]
    return runs, [n for n in COLUMNS if any(row["name"] == n for _, run in runs for row in run["rows"])]


def latency_table(results: Sequence[dict[str, Any]], threads: int) -> str:
    runs, names = runs_with(results, threads)
    lines = []
    for result, run in runs:
        rows = {row["name"]: row for row in run["rows"]}
        fastest = min((row["median"] for row in rows.values() if "median" in row), default=0.0)
        error = rows["dlc"].get("error")
        lines.append(
            [
                label(result),
                *(cell(rows.get(n), fastest) for n in names),
                ratio_cell(run, rows),
                f"{error:.0e}" if error is not None else "-",
                *([cpu_ratio(rows)] if threads == 1 else []),
            ]
        )
    notes = [
        f"- {label(r)}, {row['name']}: {row['absent']}" for r, run in runs for row in run["rows"] if row.get("absent")
    ]
    last = ("processor time, dlc / best peer",) if threads == 1 else ()
    text = table(("model", *names, "dlc / best peer", "dlc's error", *last), lines)
    return text + ("\n\nNot timed:\n\n" + "\n".join(notes) if notes else "")


def ratio_cell(run: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """`0.93 [0.92, 0.95] (openvino)`."""
    if not run["ratio_to_best"]:
        return "-"
    interval = ""
    if run.get("interval"):
        low, high = run["interval"]
        interval = f" [{low:.2f}, {high:.2f}]" + "~" * rows[run["best_peer"]]["paired"]["noisy"]
    return f"{run['ratio_to_best']:.2f}{interval} ({run['best_peer']})"


def summary(results: Sequence[dict[str, Any]], threads: int) -> str:
    """The geometric mean of the ratios, the best and the worst of them."""
    ratios = {label(r): run["ratio_to_best"] for r, run in runs_with(results, threads)[0] if run["ratio_to_best"]}
    if not ratios:
        return ""
    first, last = (pick(ratios, key=lambda name: ratios[name]) for pick in (min, max))
    mean = geometric_mean(ratios.values())
    slower = sum(ratio > 1 / 0.97 for ratio in ratios.values())
    return (
        f"Over {len(ratios)} rows the geometric mean of dlc / best peer is {mean:.3f} (the best peer takes {1 / mean:.2f} times as "
        f"long as dlc), from {ratios[first]:.2f} ({first}) to {ratios[last]:.2f} ({last}); in {slower} of them dlc has less than 0.97 "
        f"of the best peer's speed."
    )


MEMORY_INTRO = """\
Most megabytes that a contender's process had resident: while the model was loaded or compiled / while it ran, in each case less what the
process with its libraries and inputs had before (that is given, rounded, as the last number: `loading / running + before`)."""


def memory_table(results: Sequence[dict[str, Any]], threads: int) -> str:
    runs, names = runs_with(results, threads)
    lines = [
        [label(r), *(memory_cell(next((row for row in run["rows"] if row["name"] == n), None)) for n in names)]
        for r, run in runs
    ]
    return table(("model", *names), lines)


def memory_cell(row: dict[str, Any] | None) -> str:
    memory = (row or {}).get("memory", {})
    if "run" not in memory:
        return "-"
    base = memory["base"]
    prepare, run = (max(memory[key] - base, 0) / 1e6 for key in ("prepare", "run"))
    return f"{prepare:.0f} / {run:.0f} + {base / 1e6:.0f}"


def cpu_ratio(rows: dict[str, dict[str, Any]]) -> str:
    """By processor time, which does not depend on what else the machine does; for one thread it is the time of a call."""
    times = {name: row["cpu_median"] for name, row in rows.items() if "cpu_median" in row}
    own = times.pop("dlc", None)
    others = {name: t for name, t in times.items() if name != "eager"} or times
    if own is None or not others:
        return "-"
    best = min(others, key=lambda name: others[name])
    return f"{own / others[best]:.2f} ({best})"


def cell(row: dict[str, Any] | None, fastest: float) -> str:
    if row is None or "median" not in row:
        return "-"
    low, high = row["block_medians"]
    text = f"{row['median'] * 1e3:.2f}"
    text = f"**{text}**" if row["median"] == fastest else text
    noisy = "" if row["blocks"] else " noisy"
    return f"{text} ({low * 1e3:.2f}-{high * 1e3:.2f}{noisy})"


COMPILE_INTRO = """\
Seconds. *Cold*: a new process, an empty cache; dlc's own time is everything but torch's export, writing the caches included.
*From the cache*: the same call in another new process. *First result*: from before a process starts to after its first inference
on a `.dlc` file, where nothing but NumPy can be imported (median of 3)."""


def compile_table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for r in {r["model"]: r for r in results}.values():
        cold, cached = r["compile"]["cold"], r["compile"]["cached"]
        lines.append(
            [
                r["model"],
                f"{cold['seconds']['export']:.1f}",
                f"{cold['own_seconds']:.1f}",
                f"{cached['own_seconds']:.2f}" + ("" if cached["from_cache"] else " (not from the cache)"),
                f"{sorted(r['first_result_s'])[1]:.2f}",
                f"{cold['distinct']} of {cold['launches']}",
                f"{cold['artifact_bytes'] / 1e6:.0f}",
            ]
        )
    head = (
        "model",
        "torch.export",
        "dlc, cold",
        "dlc, from the cache",
        "first result",
        "kernels, launches",
        ".dlc, MB",
    )
    return table(head, lines)


PROFILE_INTRO = """\
Kernels of one call, those with the same code added up; the share of the peak is of the multiply-add rate that a probe
kernel reaches with as many threads in the model's type (f32, bf16, or bytes, counted like floats). Kernels that move memory rather
than compute have a low one by nature. Listed are those that take 1 % of the time or more; a mark shows those below {share:.0%} of the
peak."""


def peak_of(run: dict[str, Any]) -> tuple[float, str]:
    """The peak of the run, GFLOP/s, and the type it is in; of older results in f32."""
    if run.get("peak"):
        return run["peak"]["gflops"], run["peak"]["products"]
    return (run["probe"]["best_gflops"] if run["probe"] else 0.0), "f32"


def profile_text(model: str, run: dict[str, Any]) -> list[str]:
    profile = run["profile"]
    peak, products = peak_of(run)
    lines, below = [], 0.0
    for row in profile["rows"]:
        share = row["gflops"] / peak if peak else 0.0
        below += row["share"] if share < PEAK_SHARE else 0.0
        if row["share"] >= 0.01:
            lines.append(
                [
                    f"{row['name']}, {row['loc']}" + (" <" if share < PEAK_SHARE else ""),
                    str(row["calls"]),
                    f"{row['time_ns'] / 1e6:.2f}",
                    f"{row['share']:.1%}",
                    f"{row['gflops']:.0f}",
                    f"{share:.0%}",
                    f"{row['gbytes']:.1f}",
                ]
            )
    flops = sum(row["flops"] for row in profile["rows"])
    total = (
        f"{model}, {run['threads']} threads: kernels {profile['kernels_ns'] / 1e6:.2f} ms of "
        f"{profile['total_ns'] / 1e6:.2f} ms, {flops / 1e9:.2f} GFLOP, {flops / max(profile['kernels_ns'], 1):.0f} GFLOP/s; "
        f"the peak in {products} is {peak:.0f} GFLOP/s; {below:.0%} of the time goes to kernels below {PEAK_SHARE:.0%} of it."
    )
    return [f"### {model}", total, table(("kernel", "calls", "ms", "share", "GFLOP/s", "of peak", "GB/s"), lines)]


def measured(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for r in results:
        probes = ", ".join(
            f"{run['threads']}: {run['probe']['best_gflops']:.0f} GFLOP/s, {run['probe']['slow_looks']} slow looks"
            for run in r["runs"]
            if run["probe"]
        )
        ring = f", {r['ring']['sets']} sets of them, {r['ring']['bytes'] / 1e6:.1f} MB" if "ring" in r else ""
        when = "".join(
            f"; {run['threads']} threads on {run['date']}, revision {run['revision'][:10]}" for run in r["runs"] if "date" in run
        )
        lines.append(f"- {label(r)}: {machine_text(r)}{when}; inputs {', '.join(r['inputs'])}{ring}; probe by threads: {probes}")
    return ["\n".join(lines)]


def machine_text(result: Mapping[str, Any]) -> str:
    """When, of which revision, on what."""
    m = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return (
        f"{result['date']} UTC, revision {result['revision'][:10]}{'+' * result['revision'].endswith('+')}, {m['cpu']}, "
        f"{m['cores']} cores, load {result['load'][0]:.1f} before and {result['load'][1]:.1f} after; {versions}"
    )
