"""Library operations as programs: sort, top-k, nonzero, unique and non-maximum suppression become Einsums, scans and loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan, TensorType
from dlc.ir.program import Library, Loop, Program, Region, Stmt, Symbol, tensor_types
from dlc.ir.view import Val
from dlc.passes.library_boxes import nms
from dlc.passes.library_order import sort, topk
from dlc.passes.library_select import nonzero, unique
from dlc.passes.library_tools import KEY_TYPES, Expansion
from dlc.passes.pipeline import Pass
from dlc.passes.rename import rename_reads
from dlc.passes.rewrite import Names, map_regions

EXPANSIONS: dict[str, Callable[[Expansion, Library, list[Val]], list[Val]]] = {
    "sort": sort,
    "topk": topk,
    "nonzero": nonzero,
    "unique": unique,
    "nms": nms,
}


@dataclass(frozen=True)
class ExpandLibrary(Pass):
    """Replace each library operation by its definition in the IR.

        sort      place[i] = sum(j) [X[j] comes before X[i]];  order[place[i]] = i;  values[p] = X[order[p]]
        topk      a few: a scan that takes the best of what comes after the last one taken; many: as sort
        nonzero   counts of blocks, their running sums, a scatter; the total becomes the extent
        unique    ranks of rows column by column; equal ranks are equal rows; running sums number them
        nms       a loop: every class takes its best box and drops what overlaps it

    Floats are compared by an integer key of the same order (NaN above all, 0.0 equal to -0.0). Sorting takes O(n^2)
    comparisons; no intermediate is larger than the operands.
    """

    name: ClassVar[str] = "expand-library"

    def apply(self, program: Program) -> Program:
        types = tensor_types(program)
        names = Names(program)

        def region(r: Region) -> Region:
            body: list[Stmt] = []
            for stmt in r.body:
                body += _expanded(stmt, types, names, program) if isinstance(stmt, Library) else [stmt]
            return r if len(body) == len(r.body) else Region(tuple(body), r.yields)

        return map_regions(program, region)


def _expanded(stmt: Library, types: dict[str, TensorType], names: Names, program: Program) -> list[Stmt]:
    if stmt.op not in EXPANSIONS or any(types[a].dtype not in KEY_TYPES for a in stmt.args):
        return [stmt]
    symbols = {n[1:]: Symbol(n[1:], f.lo, f.hi, f.divisor) for n, f in program.facts.items()}
    b = Expansion(stmt, types, names.taken, symbols)
    results = EXPANSIONS[stmt.op](b, stmt, [b.tensor(a) for a in stmt.args])
    final = {b.own(v): out for v, out in zip(results, stmt.outs, strict=True)}
    body = [_with_outs(s, final) for s in b.statements]
    for s in body:
        names._add(s)
    return body


def _with_outs(stmt: Stmt, names: dict[str, str]) -> Stmt:
    """`stmt` reading and writing tensors under other names (only Einsums and scans write what is renamed)."""
    stmt = rename_reads(stmt, names)
    if names.keys().isdisjoint(stmt.outs):
        return stmt
    match stmt:
        case Scan():
            finals = tuple(names.get(f, f) for f in stmt.finals)
            return replace(stmt, finals=finals, stacked=tuple((names.get(o, o), i) for o, i in stmt.stacked))
        case Loop():
            return replace(stmt, finals=tuple(names.get(f, f) for f in stmt.finals))
        case Einsum():
            return replace(stmt, outs=tuple(names.get(o, o) for o in stmt.outs))
        case _:
            raise AssertionError(f"{type(stmt).__name__} among the statements of an expansion")
