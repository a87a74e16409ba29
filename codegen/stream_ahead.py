"""Fetches of what the next step of a scan reads as scalars, a share of it with each register tile of this one.

It lies further apart than the processor looks ahead by itself; without this a task waits for memory in each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dlc.codegen.nest import PointStep
from dlc.codegen.stream_frame import Block, Frame
from dlc.ir.expr import accesses
from dlc.ir.extent import IntExpr, minimum, split_linear, substitute


@dataclass(frozen=True)
class _Panel:
    """An operand in memory, of two ranks in a step of the scan: lines along one, one after the other across them."""

    tensor: str
    flat: IntExpr
    along: str
    across: str


def fetch_ahead(frame: Frame, step: PointStep, block: Block, row: str, index: IntExpr, rows: int) -> None:
    """Ask for the share of the next step of the scan that goes with the tile of `rows` rows at `index`."""
    if block.edge or block.scan is None:
        return
    inner = {**step.reduced, row: frame.em.facts.ranks[row]}
    for panel in _panels(frame, step, block.scan, inner):
        extent = inner[panel.across]
        if panel.across == row:
            share = index, minimum(index + rows, extent)
        else:
            share = _share(frame, extent, index // rows, (inner[row] + (rows - 1)) // rows)
        _fetch(frame, panel, block.at(block.scan, block.base[block.scan] + 1), share)


def _panels(frame: Frame, step: PointStep, scan: str, inner: dict[str, IntExpr]) -> Iterator[_Panel]:
    """What `step` reads as scalars, each time something else, and contiguous along one of `inner`."""
    for a in dict.fromkeys(a for e in step.exprs for a in accesses(e)):
        if frame.lane in a.variables or scan not in a.variables or a.tensor in frame.plan.locals:
            continue
        flat = frame.em.flat(frame.low.storage[a.tensor], a.index)
        along = next((n for n in inner if (p := split_linear(flat, n)) is not None and p[0].const == 1), None)
        across = [n for n in inner if n in a.variables and n != along]
        if along is not None and len(across) == 1:
            yield _Panel(a.tensor, flat, along, across[0])


def _share(frame: Frame, extent: IntExpr, tile: IntExpr, tiles: IntExpr) -> tuple[IntExpr, IntExpr]:
    """From where to where `extent` goes with one of `tiles` tiles."""
    each = (extent + tiles - 1) // tiles
    first = tile * each
    return frame.b.named(first), frame.b.named(minimum(first + each, extent))


def _fetch(frame: Frame, panel: _Panel, following: Block, share: tuple[IntExpr, IntExpr]) -> None:
    line = frame.low.target.line_bytes // frame.low.types[panel.tensor].dtype.bytes
    length = frame.em.facts.ranks[panel.along]
    with frame.b.loop(panel.across, *share) as outer, frame.b.loop(panel.along, 0, length, line) as inner:
        at = following.at(panel.across, outer.index).at(panel.along, inner.index)
        frame.b.prefetch(frame.low.storage[panel.tensor].buffer, substitute(panel.flat, at.base), locality=2)


__all__ = ["fetch_ahead"]
