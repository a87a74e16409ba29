"""The control graph as data, as text, and as a drawing: cascades, decisions with their source lines, loops, and how they ran.

    {"regions": [{"kind", "loc", "items", "count"?, "time_ns"?}, ...], "calls": [{"name", "loc", "einsums"}, ...]}

Regions are those of the manifest (`dlc.runtime.control`); after a run they have counts, after a profile times, too. The
drawing is one SVG that needs nothing else: boxes are cascades, diamonds decisions, and a line leads back in each loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

from dlc.console import seconds_text
from dlc.runtime.control import Visits

Graph: TypeAlias = Mapping[str, Any]

BOX, LINE, GAP, PAD = 200, 40, 26, 16
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:currentColor;text-anchor:middle}"
    ".b,.d,.l{fill:#3b82f622;stroke:currentColor}.d{fill:#f59e0b33}.l{fill:none;stroke-dasharray:5 3}"
    ".e{fill:none;stroke:currentColor}.n{opacity:.4}"
)


def control_graph(manifest: Mapping[str, Any], visits: Sequence[Visits] = ()) -> dict[str, Any]:
    """The graph of a compiled program, with what is known of its runs."""
    regions = [dict(region) for region in manifest.get("regions", ())]
    for region, visit in zip(regions, visits, strict=False):
        region["count"] = visit.count
        if visit.time_ns is not None:
            region["time_ns"] = visit.time_ns
    calls = [
        {"name": k["name"], "loc": k.get("loc", ""), "einsums": k.get("x-einsums", 0)}
        for k in manifest.get("kernels", ())
    ]
    return {"regions": regions, "calls": calls}


def has_control(graph: Graph) -> bool:
    return len(graph["regions"]) > 1


# --- text ------------------------------------------------------------------------------------------------------------


def graph_lines(graph: Graph) -> Iterator[str]:
    """The graph as indented lines: what runs, under which decision, how often."""
    if graph["regions"]:
        yield f"program{_ran(graph, 0)}"
        yield from _region_lines(graph, 0, "  ")


def _region_lines(graph: Graph, number: int, indent: str) -> Iterator[str]:
    items = graph["regions"][number]["items"]
    if not items:
        yield f"{indent}passes on what is there"
    for what, *numbers in items:
        if what == "calls":
            yield indent + _cascade(graph, *numbers) + _place(graph, *numbers)
            continue
        loc = graph["regions"][numbers[0]]["loc"]
        if what == "if":
            yield f"{indent}if{' ' if loc else ''}{loc}"
        for inner in numbers:
            kind = graph["regions"][inner]["kind"]
            head = f"{indent}  {kind}" if what == "if" else f"{indent}{kind}{' ' if loc else ''}{loc}"
            yield head + _ran(graph, inner)
            yield from _region_lines(graph, inner, indent + ("    " if what == "if" else "  "))


def _cascade(graph: Graph, first: int, last: int) -> str:
    einsums = sum(c["einsums"] for c in graph["calls"][first : last + 1])
    return _several(last + 1 - first, "kernel") + (f", {_several(einsums, 'Einsum')}" if einsums else "")


def _place(graph: Graph, first: int, last: int) -> str:
    places = list(dict.fromkeys(c["loc"] for c in graph["calls"][first : last + 1] if c["loc"]))
    return "" if not places else f"  {places[0]}" + (f" .. {places[-1]}" if len(places) > 1 else "")


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _ran(graph: Graph, number: int) -> str:
    text = _visits(graph["regions"][number])
    return f": {text}" if text else ""


def _visits(region: Mapping[str, Any]) -> str:
    """`12 x, 3.4 us`; empty where nothing has been counted."""
    if "count" not in region:
        return ""
    text = f"{region['count']:g} x"
    return text if not region.get("time_ns") else f"{text}, {seconds_text(region['time_ns'] * 1e-9)}"


# --- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Figure:
    """A drawing with its entry at the top and its exit at the bottom, both at `middle`."""

    width: float
    height: float
    middle: float
    parts: tuple[str, ...]

    def at(self, x: float, y: float) -> str:
        return f'<g transform="translate({x:g} {y:g})">{"".join(self.parts)}</g>'


def graph_svg(graph: Graph) -> str:
    """The graph as one SVG element."""
    figure = _region(graph, 0)
    head = _label(figure.middle, 12, "program" + _ran(graph, 0))
    width, height = max(figure.width, BOX) + 2 * PAD, figure.height + 2 * PAD + LINE
    body = f"{figure.at(PAD, PAD + LINE / 2)}" + f'<g transform="translate({PAD} {PAD / 2})">{head}</g>'
    marker = (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" color="#555"><style>{_STYLE}</style>{marker}{body}</svg>'
    )


def write_svg(graph: Graph, path: str | Path) -> None:
    """Write the drawing to a file."""
    Path(path).write_text(graph_svg(graph) + "\n")


def _region(graph: Graph, number: int) -> _Figure:
    """What a region does, from top to bottom."""
    figures = []
    for what, *numbers in graph["regions"][number]["items"]:
        match what:
            case "calls":
                figures.append(_box(graph, *numbers))
            case "if":
                figures.append(_decision(graph, *numbers))
            case _:
                figures.append(_loop(graph, *numbers))
    if not figures:
        return _Figure(40, LINE, 20, (_line(20, 0, 20, LINE),))
    left = max(f.middle for f in figures)
    width = left + max(f.width - f.middle for f in figures)
    parts, y = [], 0.0
    for n, figure in enumerate(figures):
        if n:
            parts.append(_line(left, y, left, y + GAP, arrow=True))
            y += GAP
        parts.append(figure.at(left - figure.middle, y))
        y += figure.height
    return _Figure(width, y, left, tuple(parts))


def _box(graph: Graph, first: int, last: int) -> _Figure:
    calls = graph["calls"][first : last + 1]
    listed = "\n".join(f"{c['name']}  {c['loc']}".strip() for c in calls)
    parts = (
        f'<g><title>{escape(listed)}</title><rect class="b" width="{BOX}" height="{LINE}" rx="4"/>',
        _label(BOX / 2, 16, _cascade(graph, first, last)),
        _label(BOX / 2, 31, _short(_place(graph, first, last).strip())),
        "</g>",
    )
    return _Figure(BOX, LINE, BOX / 2, parts)


def _decision(graph: Graph, then: int, orelse: int) -> _Figure:
    arms = [_region(graph, n) for n in (then, orelse)]
    half, tall = BOX / 2, LINE * 1.3
    width = max(arms[0].width + GAP + arms[1].width, BOX)
    middle = width / 2
    top, deep = tall + GAP + LINE / 2, max(a.height for a in arms)
    bottom = top + deep + GAP
    loc = graph["regions"][then]["loc"]
    points = f"{middle - half:g},{tall / 2:g} {middle},0 {middle + half:g},{tall / 2:g} {middle},{tall:g}"
    parts = [
        f'<g><title>{escape(loc)}</title><polygon class="d" points="{points}"/>',
        _label(middle, tall / 2 + 4, _short(loc)),
        "</g>",
    ]
    spare = width - arms[0].width - arms[1].width - GAP
    starts = (spare / 2, spare / 2 + arms[0].width + GAP)
    for arm, number, x in zip(arms, (then, orelse), starts, strict=True):
        region = graph["regions"][number]
        at = x + arm.middle
        dim = ' class="n"' if region.get("count") == 0 else ""
        parts.append(f"<g{dim}>")
        parts.append(_line(middle, tall, at, top, arrow=True))
        parts.append(_label(at, top - 4 - GAP / 4, region["kind"] + _ran(graph, number)))
        parts.append(arm.at(x, top))
        parts.append(_line(at, top + arm.height, at, bottom - GAP / 2))
        parts.append(_line(at, bottom - GAP / 2, middle, bottom) + "</g>")
    return _Figure(width, bottom, middle, tuple(parts))


def _loop(graph: Graph, number: int) -> _Figure:
    body, region = _region(graph, number), graph["regions"][number]
    room = LINE
    width, height = body.width + 2 * room, body.height + LINE + 2 * GAP
    middle = room + body.middle
    head = f"{region['kind']} {_short(region['loc'])}{_ran(graph, number)}".strip()
    low = LINE + GAP / 2 + body.height
    side = width - room / 3
    back = f"M{middle:g} {low:g}V{low + GAP / 2:g}H{side:g}V{LINE - 6:g}H{middle + 5:g}"
    dim = ' class="n"' if region.get("count") == 0 else ""
    parts = (
        f'<g{dim}><title>{escape(region["loc"])}</title><rect class="l" width="{width:g}" height="{height:g}" rx="10"/>',
        _label(width / 2, 14, head),
        _line(middle, LINE / 2, middle, LINE + GAP / 2, arrow=True),
        body.at(room, LINE + GAP / 2),
        f'<path class="e" d="{back}" marker-end="url(#a)"/>',
        _line(middle, low + GAP / 2, middle, height),
        "</g>",
    )
    return _Figure(width, height, middle, parts)


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, arrow: bool = False) -> str:
    end = ' marker-end="url(#a)"' if arrow else ""
    return f'<path class="e" d="M{x0:g} {y0:g}L{x1:g} {y1:g}"{end}/>'


def _short(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else "..." + text[3 - limit :]
