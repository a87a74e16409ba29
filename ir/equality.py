"""When two kernels are the same kernel: names put in a canonical form, and a digest of that.

Tensors are named by the order in which they are defined and ranks by their place in their step, so that the same layer twice gives
equal text, whatever the importer called things. Extent symbols keep their names: they are the program's. Locations do not count.
The digest is of text, not of Python's hashes: it is the same in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from dlc.ir.einsum import Carry, Einsum, Rank, Scan, Step, Write
from dlc.ir.expr import Access, Expr, rename_tensors
from dlc.ir.extent import IntExpr, var
from dlc.ir.loc import UNKNOWN
from dlc.ir.program import Cascade, Kernel, Param, show_cascade

_VERSION = "1"  # changes when the text form's meaning does


def canonical(cascade: Cascade, outer: tuple[str, ...] = ()) -> Cascade:
    """`cascade` with canonical names and no locations; equal for equal layers. `outer` names ranks that all steps share."""
    names: dict[str, str] = {}
    params = tuple(Param(_name(names, p.name, "p"), p.type, p.donate) for p in cascade.params)
    shared = {name: f"o{k}" for k, name in enumerate(outer)}
    steps = tuple(_step(s, names, shared, 0) for s in cascade.steps)
    results = tuple(names.get(r, r) for r in cascade.results)
    symbols = tuple(sorted(cascade.symbols, key=lambda s: s.name))
    return Cascade("c", params, steps, results, symbols, UNKNOWN)


def canonical_kernel(kernel: Kernel) -> Kernel:
    """A kernel with canonical names."""
    return Kernel(canonical(kernel.cascade, kernel.outer), tuple(f"o{k}" for k in range(len(kernel.outer))))


def digest(kernel: Kernel | Cascade) -> str:
    """Hexadecimal SHA-256 of the canonical text: equal kernels have equal digests, in every process."""
    made = canonical_kernel(kernel) if isinstance(kernel, Kernel) else canonical(kernel)
    text = str(made) if isinstance(made, Kernel) else show_cascade(made)
    return hashlib.sha256(f"{_VERSION}\n{text}".encode()).hexdigest()


def same(a: Kernel | Cascade, b: Kernel | Cascade) -> bool:
    """Whether two are equal up to names and locations."""
    return type(a) is type(b) and digest(a) == digest(b)


def _name(names: dict[str, str], name: str, prefix: str) -> str:
    names[name] = f"{prefix}{len(names)}"
    return names[name]


def _step(step: Step, names: dict[str, str], shared: Mapping[str, str], depth: int) -> Step:
    if isinstance(step, Scan):
        return _scan(step, names, shared, depth)
    ranks = dict(shared)
    for k, r in enumerate(step.ranks):
        ranks.setdefault(r.name, f"i{k}")
    for k, r in enumerate(step.reduced):
        ranks.setdefault(r.name, f"r{k}")
    renamed = {old: var(new) for old, new in ranks.items()}

    def rename(e: Expr) -> Expr:
        return rename_tensors(e.substitute(renamed), names)

    def place(e: IntExpr) -> IntExpr:
        moved = rename(Access("", (e,)))
        assert isinstance(moved, Access)
        return moved.index[0]

    def rank(r: Rank) -> Rank:
        return Rank(ranks[r.name], r.extent)

    exprs = tuple(rename(e) for e in step.exprs)
    where = None if step.where is None else rename(step.where)
    reduce = None if step.reduce is None else replace(step.reduce, ranks=tuple(map(rank, step.reduce.ranks)))
    write = step.write
    if write is not None:
        write = Write(tuple(map(place, write.index)), names.get(write.onto, write.onto), write.op, write.drop)
    outs = tuple(_name(names, o, "t") for o in step.outs)
    ranks_ = tuple(map(rank, step.ranks))
    return Einsum(outs, ranks_, exprs, step.dtypes, reduce, where, write, step.order, step.pitch, UNKNOWN)


def _scan(scan: Scan, names: dict[str, str], shared: Mapping[str, str], depth: int) -> Scan:
    inits = [names.get(c.init, c.init) for c in scan.carries]
    carries = tuple(Carry(_name(names, c.name, "t"), i) for c, i in zip(scan.carries, inits, strict=True))
    inner = {**shared, scan.rank.name: f"s{depth}"}
    body = tuple(_step(s, names, inner, depth + 1) for s in scan.body)
    yields = tuple(names.get(y, y) for y in scan.yields)
    stacked = [names.get(inside, inside) for _, inside in scan.stacked]
    finals = tuple(_name(names, f, "t") for f in scan.finals)
    outers = tuple((_name(names, o, "t"), i) for (o, _), i in zip(scan.stacked, stacked, strict=True))
    return Scan(Rank(f"s{depth}", scan.rank.extent), carries, body, yields, finals, outers, UNKNOWN)
