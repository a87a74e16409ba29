"""Tiles of a program that hold no subnormal number because vdpbf16ps made them, which has no such results."""

from __future__ import annotations

from dlc.codegen import tile
from dlc.codegen.bf16_to_mlir import LEAST_NORMAL
from dlc.codegen.tile import Stmt, TileProgram, regions
from dlc.ir.dtype import BF16


def normal_sums(program: TileProgram) -> frozenset[str]:
    """Sums of `dot<bf16, bf16>` and what begins them, through loops and branches; on processors that have the instruction."""
    return frozenset(_found(program.body, frozenset()))


def _found(body: tuple[Stmt, ...], known: frozenset[str]) -> set[str]:
    """Names in `body` and inside of it that are such tiles when `known` are."""
    found = set(known)
    for s in body:
        match s:
            case tile.Const(dst, type_, value) if type_.dtype.is_float:
                found |= {dst} if not 0 < abs(value) < LEAST_NORMAL else set()
            case tile.Dot(dst, left):
                found |= {dst} if left == BF16 else set()
            case tile.Slice(dst, src):
                found |= {dst} if src in found else set()
            case tile.Stack(dst, srcs):
                found |= {dst} if found.issuperset(srcs) else set()
            case tile.For():
                found |= _loop(s, frozenset(found))
            case tile.If(then=then, orelse=orelse):
                found |= _found(then, frozenset(found)) | _found(orelse, frozenset(found))
                both = zip(s.results, s.then_yields, s.else_yields, strict=True)
                found |= {r for r, *yields in both if found.issuperset(yields)}
            case _:
                for region in regions(s):
                    found |= _found(region, frozenset(found))
    return found


def _loop(s: tile.For, known: frozenset[str]) -> set[str]:
    """By induction: what is such a tile before the first round, and after a round when it was before."""
    carries = {name for name, init in s.carries if init in known}
    while True:
        found = _found(s.body, known | carries)
        kept = {name for (name, _), y in zip(s.carries, s.yields, strict=True) if name in carries and y in found}
        if kept == carries:
            return found | {r for (name, _), r in zip(s.carries, s.results, strict=True) if name in kept}
        carries = kept
