"""The page of the kernels' results, from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kernel_shapes import Family, families
from benchmarks.markdown import machine_text, plural, table
from dlc.paired import geometric_mean

CONTENDERS = ("dlc", "onnxruntime", "openvino", "eager", "inductor")

INTRO = """\
# Kernels beside their peers

Written by `python -m benchmarks.kernels`. Small modules, f32, compiled by `dlc.compile` with a symbolic first extent (rows or batch),
beside the same as ONNX with static shapes, and eager PyTorch; median microseconds, torch tensors in and out, in interleaved
rounds with one process per contender. Stride-1 convolutions are four in a row, from C to F channels and back. *Rate* is dlc's: GFLOP/s of
the operations that the definition has (a Winograd convolution does fewer), GB/s of inputs, weights and outputs once each. *Limit* is what
the probes reached in the same run with as many threads: multiply-adds, a plain read, or a plain copy past the caches. *dlc / best peer* is
paired by round, with a bootstrap 95 % interval; below 1 dlc is faster. A tilde marks ratios that disturbed rounds are part of.
"""


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as Markdown; one result per family and number of threads."""
    known = {family.name: family for family in families()}
    parts = [INTRO]
    for threads in sorted({r["threads"] for r in results}, reverse=True):
        mine = [r for r in results if r["threads"] == threads and r["family"] in known]
        parts += [f"## {plural(threads)}", overview(mine, known), f"![Roofline](kernels-{threads}.svg)"]
        parts += [text for r in mine for text in family_text(r, known[r["family"]])]
    parts += ["## What was measured", "\n".join(measured(r) for r in results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview(results: Sequence[Mapping[str, Any]], known: Mapping[str, Family]) -> str:
    lines = []
    for r in results:
        family = known[r["family"]]
        ratios, shares = values(r, "ratio"), values(r, "share")
        lines.append(
            [
                family.title,
                str(len(r["kernels"])),
                f"{geometric_mean(shares):.1%} of {family.limit}" if shares else "-",
                f"{family.goal:.0%}" if family.goal else "-",
                f"{1 / geometric_mean(ratios):.2f}" if ratios else "-",
                f"{family.speedup:.2f}" if family.speedup else "-",
                f"{1 / max(ratios):.2f} to {1 / min(ratios):.2f}" if ratios else "-",
            ]
        )
    head = ("family", "shapes", "share of the limit", "goal", "best peer / dlc", "goal", "from, to")
    return "Geometric means; the time of the best peer over dlc's, so that above 1 dlc is faster.\n\n" + table(head, lines)


def values(result: Mapping[str, Any], key: str) -> list[float]:
    return [k[key] for k in result["kernels"] if k.get(key)]


def family_text(result: Mapping[str, Any], family: Family) -> list[str]:
    names = [n for n in CONTENDERS if any(row["name"] == n for k in result["kernels"] for row in k["rows"])]
    lines = [kernel_line(kernel, names, result["threads"]) for kernel in result["kernels"]]
    head = ("kernel", *names, "rate", "of limit", "dlc / best peer", "error")
    parts = [f"### {family.title}", limit_text(result), table(head, lines)]
    if family.pairs:
        parts.append(pairs_text(result, family))
    notes = [
        f"- {k['name']}, {row['name']}: {row['absent']}" for k in result["kernels"] for row in k["rows"] if row.get("absent")
    ]
    return [*parts, *(["Not timed:\n\n" + "\n".join(notes)] if notes else [])]


def limit_text(result: Mapping[str, Any]) -> str:
    limits = result["limits"]
    return f"Probes: {limits['fma']:.0f} GFLOP/s, read {limits['read']:.1f} GB/s, copy {limits['copy']:.1f} GB/s."


def kernel_line(kernel: Mapping[str, Any], names: Sequence[str], threads: int) -> list[str]:
    rows = {row["name"]: row for row in kernel["rows"]}
    ratio = "-"
    if kernel.get("ratio"):
        low, high = kernel["interval"]
        ratio = f"{kernel['ratio']:.2f} [{low:.2f}, {high:.2f}]{'~' * kernel['noisy']} ({kernel['best_peer']})"
    error = rows["dlc"].get("error")
    return [
        kernel["name"],
        *(f"{rows[n]['median'] * 1e6:.1f}" if "median" in rows.get(n, {}) else "-" for n in names),
        rate_text(kernel),
        f"{kernel['share']:.0%}" if kernel.get("share") else "-",
        ratio,
        f"{error:.0e}" if error is not None else "-",
    ]


def rate_text(kernel: Mapping[str, Any]) -> str:
    if kernel.get("gflops"):
        return f"{kernel['gflops']:.0f} GFLOP/s"
    return f"{kernel['gbytes']:.1f} GB/s" if kernel.get("gbytes") else "-"


def pairs_text(result: Mapping[str, Any], family: Family) -> str:
    """Each odd shape's rate over that of the round shape beside it."""
    found = {k["name"]: k for k in result["kernels"]}
    lines = []
    for odd, even in family.pairs:
        rates = [found.get(name, {}).get("gflops") or found.get(name, {}).get("gbytes") for name in (odd, even)]
        lines.append([odd, even, f"{rates[0] / rates[1]:.2f}" if all(rates) else "-"])
    return table(("odd shape", "round shape", "rate / rate"), lines, left=2)


def measured(result: Mapping[str, Any]) -> str:
    return (
        f"- {result['family']}, {plural(result['threads'])}: {machine_text(result)}; {result['rounds']} rounds; "
        f"{result['slow_looks']} slow looks of the probe"
    )
