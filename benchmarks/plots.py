"""Two plots as SVG, written by hand: bars of ratios for the suite, and a roofline of the kernels.

    python -m benchmarks.plots        draw what benchmarks/results holds again
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 900
FAST, SLOW, PLAIN, FAINT = "#2b6cb0", "#c05621", "#222222", "#bbbbbb"
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#b83280", "#4a5568", "#319795")


def ratios_svg(results: Sequence[Mapping[str, Any]], threads: int) -> str:
    """A bar per row of the suite: the best peer's time over dlc's, with its interval; longer is better."""
    rows = [(name_of(r), run) for r in results for run in r["runs"] if run["threads"] == threads and run["ratio_to_best"]]
    left, top, step = 190, 50, 22
    most = max([1.5, *(1 / run["ratio_to_best"] for _, run in rows)])
    most = min(most, 3.0)
    scale = (WIDTH - left - 60) / most
    parts = [text(10, 24, f"Time of the best peer over dlc's, {threads} threads; above 1 dlc is faster", 15)]
    for k, (name, run) in enumerate(rows):
        y = top + k * step
        parts += bar(name, 1 / run["ratio_to_best"], run.get("interval"), left, y, scale, most)
    bottom = top + len(rows) * step
    parts.append(line(left + scale, top - 8, left + scale, bottom, PLAIN))
    return document(parts, bottom + 20)


def bar(
    name: str, speedup: float, interval: Sequence[float] | None, left: int, y: int, scale: float, most: float
) -> list[str]:
    """One bar, its label, its interval as a whisker, and the number."""
    length = min(speedup, most) * scale
    colour = FAST if speedup >= 1 else SLOW
    parts = [
        text(left - 8, y + 12, name, 12, "end"),
        f'<rect x="{left}" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>',
        text(left + length + 6, y + 12, f"{speedup:.2f}", 11),
    ]
    if interval:
        ends = [left + min(1 / bound, most) * scale for bound in interval]
        parts.append(line(ends[1], y + 7.5, ends[0], y + 7.5, "#000000", 2))
    return parts


def roofline_svg(results: Sequence[Mapping[str, Any]], threads: int) -> str:
    """Each kernel by its operations per byte and its rate, under the limits that the probes of the run reached."""
    mine = [r for r in results if r["threads"] == threads]
    points = [(r["family"], k["flops"] / k["bytes"], k["gflops"]) for r in mine for k in r["kernels"] if k.get("gflops")]
    if not points:
        return document([text(10, 24, "no kernels", 15)], 40)
    peak = max(r["limits"]["fma"] for r in mine)
    read = max(r["limits"]["read"] for r in mine)
    highest = max(peak, *(rate for _, _, rate in points))
    frame = Frame(80, WIDTH - 190, 50, 470, (0.1, 1000.0), (1.0, 10 ** math.ceil(math.log10(highest))))
    parts = [text(10, 24, f"Kernels of dlc, {threads} threads: GFLOP/s over operations per byte", 15), *frame.grid()]
    ridge = peak / read
    parts += [
        line(*frame.at(0.1, 0.1 * read), *frame.at(ridge, peak), PLAIN, 2),
        line(*frame.at(ridge, peak), *frame.at(1000, peak), PLAIN, 2),
        text(frame.at(0.12, read * 0.12)[0] + 8, frame.at(0.12, read * 0.2)[1], f"plain read, {read:.0f} GB/s", 11),
        text(frame.at(1000, peak)[0], frame.at(1000, peak)[1] - 6, f"multiply-adds, {peak:.0f} GFLOP/s", 11, "end"),
    ]
    names = list(dict.fromkeys(family for family, _, _ in points))
    for family, intensity, rate in points:
        x, y = frame.at(intensity, rate)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour_of(names, family)}" fill-opacity="0.75"/>')
    for k, family in enumerate(names):
        y = 60 + 18 * k
        parts.append(f'<circle cx="{WIDTH - 170}" cy="{y}" r="4" fill="{colour_of(names, family)}"/>')
        parts.append(text(WIDTH - 160, y + 4, family, 12))
    return document(parts, 520)


def colour_of(names: Sequence[str], name: str) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]


class Frame:
    """Logarithmic axes: a range of values for each, on a rectangle of the drawing."""

    def __init__(
        self, left: int, right: int, top: int, bottom: int, xs: tuple[float, float], ys: tuple[float, float]
    ) -> None:
        self.left, self.right, self.top, self.bottom, self.xs, self.ys = left, right, top, bottom, xs, ys

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies; outside values lie on the edge."""
        return (
            self.left + share(x, self.xs) * (self.right - self.left),
            self.bottom - share(y, self.ys) * (self.bottom - self.top),
        )

    def grid(self) -> list[str]:
        """A line and a number for each power of ten."""
        parts = []
        for value in powers(self.xs):
            x, _ = self.at(value, self.ys[0])
            parts += [line(x, self.top, x, self.bottom, FAINT), text(x, self.bottom + 16, f"{value:g}", 11, "middle")]
        for value in powers(self.ys):
            _, y = self.at(self.xs[0], value)
            parts += [line(self.left, y, self.right, y, FAINT), text(self.left - 6, y + 4, f"{value:g}", 11, "end")]
        return parts


def share(value: float, bounds: tuple[float, float]) -> float:
    low, high = map(math.log10, bounds)
    return min(max((math.log10(value) - low) / (high - low), 0.0), 1.0)


def powers(bounds: tuple[float, float]) -> list[float]:
    first, last = (round(math.log10(b)) for b in bounds)
    return [10.0**k for k in range(first, last + 1)]


def text(x: float, y: float, words: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def document(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def name_of(result: Mapping[str, Any]) -> str:
    return str(result.get("row") or result["model"])


def draw(folder: Path) -> list[Path]:
    """The plots of the results that are in a folder, one for each number of threads."""
    written = []
    for stem, plot, counts in (("latency", ratios_svg, suite_threads), ("kernels", roofline_svg, kernel_threads)):
        path = folder / f"{stem}.json"
        if path.exists():
            results = json.loads(path.read_text())
            for threads in counts(results):
                written.append(folder / f"{stem}-{threads}.svg")
                written[-1].write_text(plot(results, threads))
    return written


def suite_threads(results: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({run["threads"] for r in results for run in r["runs"]})


def kernel_threads(results: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({r["threads"] for r in results})


if __name__ == "__main__":
    print("\n".join(map(str, draw(RESULTS))))
    sys.exit(0)
