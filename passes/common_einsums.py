"""The same Einsum twice is one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dlc.ir.einsum import Einsum, Rank, Reduce, Scan, Step
from dlc.ir.extent import substitute, var
from dlc.ir.program import For, If, Library, Loop, Program, Region, Stmt
from dlc.passes.fold_constants import kept
from dlc.passes.pipeline import Pass
from dlc.passes.rename import rename_operands, rename_reads
from dlc.passes.rewrite import drop_dead

_HASHED_BYTES = 1 << 16


@dataclass(frozen=True)
class CommonEinsums(Pass):
    """Readers of an Einsum that computes what an earlier one does read the earlier one.

        A[i, j] = exp(X[i, j])                      A[i, j] = exp(X[i, j])
        B[p, q] = exp(X[p, q])               ->     O[i, j] = A[i, j] + A[j, i]
        O[i, j] = A[i, j] + B[j, i]

    Equal up to the names of ranks and up to tensors already found equal. Equal constants are one too: small ones by
    content, large ones when they are the same memory. A result keeps its writer, and so does what a scan yields.
    """

    name: ClassVar[str] = "common-einsums"

    def apply(self, program: Program) -> Program:
        same = _equal_constants(program)
        body = _Sharing(same, kept(program)).region(program.body, {})
        return program if body == program.body else drop_dead(program.with_body(body))


@dataclass(slots=True)
class _Sharing:
    """`names`: tensor -> the earlier one with the same value. `kept`: tensors whose writers must stay."""

    names: dict[str, str]
    kept: set[str]

    def region(self, region: Region, outer: Mapping[Hashable, tuple[str, ...]]) -> Region:
        known = dict(outer)
        body: list[Stmt] = []
        for stmt in region.body:
            match stmt:
                case Einsum() | Scan():
                    step = self.step(stmt, known)
                    body += [] if step is None else [step]
                case If():
                    # names are unique in a program, so what an arm renames means nothing outside of it
                    then, orelse = self.region(stmt.then, known), self.region(stmt.orelse, known)
                    body.append(rename_reads(replace(stmt, then=then, orelse=orelse), self.names))
                case Loop() | For():
                    body.append(rename_reads(replace(stmt, body=self.region(stmt.body, known)), self.names))
                case _:
                    stmt = rename_reads(stmt, self.names)
                    if not (
                        isinstance(stmt, Library) and not stmt.binds and self.seen(library_key(stmt), stmt, known)
                    ):
                        body.append(stmt)
        return Region(tuple(body), tuple(self.names.get(y, y) for y in region.yields))

    def step(self, step: Step, known: dict[Hashable, tuple[str, ...]]) -> Step | None:
        """The step, or None when an earlier one serves."""
        if isinstance(step, Einsum):
            step = rename_operands(step, self.names)
            return None if self.seen(canonical(step), step, known) else step
        inner = dict(known)
        steps = (self.step(s, inner) for s in step.body)
        scan = replace(step, body=tuple(s for s in steps if s is not None))
        renamed = rename_reads(scan, self.names)
        assert isinstance(renamed, Scan)
        return step if renamed == step else renamed

    def seen(self, key: Hashable, stmt: Einsum | Library, known: dict[Hashable, tuple[str, ...]]) -> bool:
        """Whether `key` was computed before; else it is from now on."""
        if key not in known:
            known[key] = stmt.outs
            return False
        if not self.kept.isdisjoint(stmt.outs):
            return False
        self.names.update(zip(stmt.outs, known[key], strict=True))
        return True


def canonical(step: Einsum) -> Einsum:
    """`step` without its own names: equal results for Einsums equal up to the names of ranks and results."""
    fresh = {r.name: f"i{n}" for n, r in enumerate(step.ranks)} | {r.name: f"r{n}" for n, r in enumerate(step.reduced)}
    outs = tuple(str(n) for n in range(len(step.outs)))
    if all(a == b for a, b in fresh.items()) or _captures(step, fresh):
        return replace(step, outs=outs)
    env = {a: var(b) for a, b in fresh.items() if a != b}
    reduce = step.reduce
    if reduce is not None:
        reduce = Reduce(reduce.op, tuple(Rank(fresh[r.name], r.extent) for r in reduce.ranks), reduce.accumulator)
    write = step.write
    if write is not None:
        write = replace(write, index=tuple(substitute(i, env) for i in write.index))
    return replace(
        step,
        outs=outs,
        ranks=tuple(Rank(fresh[r.name], r.extent) for r in step.ranks),
        exprs=tuple(e.substitute(env) for e in step.exprs),
        reduce=reduce,
        where=None if step.where is None else step.where.substitute(env),
        write=write,
    )


def _captures(step: Einsum, fresh: Mapping[str, str]) -> bool:
    """Whether a new name is that of an enclosing scan's rank."""
    outer = frozenset().union(*(e.variables for e in step.scalars)) - fresh.keys()
    return not outer.isdisjoint(fresh.values())


def library_key(stmt: Library) -> Hashable:
    return (stmt.op, stmt.args, stmt.attrs, stmt.types)


def _equal_constants(program: Program) -> dict[str, str]:
    """Constant -> an earlier constant with the same bytes."""
    first: dict[Hashable, str] = {}
    same: dict[str, str] = {}
    for c in program.consts:
        if c.name not in program.data:
            continue
        key = (c.type, _content(program.data[c.name]))
        if first.setdefault(key, c.name) != c.name:
            same[c.name] = first[key]
    return same


def _content(data: Any) -> Hashable:
    array = np.asarray(data)
    if array.nbytes <= _HASHED_BYTES:
        return array.tobytes()
    return (array.__array_interface__["data"][0], array.shape, array.strides)
