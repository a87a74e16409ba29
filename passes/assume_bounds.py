"""What a model's own indexing demands of its symbolic extents becomes facts, which each call is checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dlc.ir.builder import last_below
from dlc.ir.errors import NotInBounds
from dlc.ir.extent import IntExpr, int_expr, split_linear, substitute, variables
from dlc.ir.program import Program, Symbol
from dlc.ir.verify import verify
from dlc.passes.inline_pointwise import InlinePointwise
from dlc.passes.simplify_indices import SimplifyIndices

_ROUNDS = 12


def assume_bounds(program: Program) -> Program:
    """The program with its input symbols' ranges narrowed until every read is proven.

    `hidden[:, 0]` needs a length of at least 1, a position table of 512 rows a length of at most 512. The reference fails outside
    these ranges too; with the facts, dlc refuses such a call by naming the input. A program whose reads are all proven
    keeps its ranges. Used on what an importer made, before the first pass; it looks through index tensors as the
    simplifier will.
    """
    if not program.symbols:
        return program
    program = _narrow(program, lambda p: p)
    return _narrow(program, lambda p: SimplifyIndices().apply(InlinePointwise(prove=False).apply(p)))


def _narrow(program: Program, view: Callable[[Program], Program]) -> Program:
    for _ in range(_ROUNDS):
        try:
            verify(view(program))
        except NotInBounds as error:
            narrowed = _narrowed(program, error)
            if narrowed is None:
                return program
            program = narrowed
            continue
        break
    return program


def _narrowed(program: Program, error: NotInBounds) -> Program | None:
    """One more fact that the read in `error` needs; None when nothing simple helps."""
    unproven = error.unproven
    if unproven is None:
        return None
    index, extent, ranks = unproven
    table = {s.name: s for s in program.symbols}
    upper = _upper_symbol(index, extent, ranks)
    if upper is not None and upper[0] in table:
        name, hi = upper
        known = table[name]
        if known.hi is None or hi < known.hi:
            return _with(program, replace(known, hi=hi))
    mentioned = {n[1:] for e in (index, extent, *ranks.values()) for n in variables(e) if n.startswith("#")}
    raised = [
        replace(s, lo=1)
        for s in program.symbols
        if s.lo < 1 and s.hi != 0 and (s.name in mentioned or index.const is not None)
    ]
    return _with(program, *raised) if raised else None


def _upper_symbol(index: IntExpr, extent: IntExpr, ranks: dict[str, IntExpr]) -> tuple[str, int] | None:
    """The symbol, and its greatest value, for which the largest index stays below a constant extent."""
    if extent.const is None:
        return None
    largest = substitute(index, {n: _where_largest(index, n, ranks[n]) for n in variables(index) if n in ranks})
    names = variables(largest)
    if len(names) != 1 or not next(iter(names)).startswith("#"):
        return None
    name = next(iter(names))
    return name[1:], last_below(largest, name, extent.const - 1)


def _where_largest(index: IntExpr, rank: str, extent: IntExpr) -> IntExpr:
    """The end of the rank at which the index is largest, taken to be the last unless the index falls with it."""
    parts = split_linear(index, rank)
    falls = parts is not None and parts[0].const is not None and parts[0].const < 0
    return int_expr(0) if falls else extent - 1


def _with(program: Program, *symbols: Symbol) -> Program:
    table = {s.name: s for s in symbols}
    return replace(program, symbols=tuple(table.get(s.name, s) for s in program.symbols))
