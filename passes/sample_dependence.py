"""Which tensors of a program for one sample differ from sample to sample."""

from __future__ import annotations

from collections.abc import Iterable

from dlc.ir.einsum import Einsum, Scan
from dlc.ir.extent import has_value
from dlc.ir.program import If, Loop, Program, Region, Stmt


def sample_dependent(program: Program, inputs: Iterable[str]) -> frozenset[str]:
    """Tensors that depend on the sample, when the parameters `inputs` do.

    A branch on such a condition makes all it gives depend on the sample, and a loop that each sample leaves at its own
    step all its states. Where only some samples get, so does what may fail or not end: it must not run for none of them.
    """
    found = set(inputs)
    while True:
        before = len(found)
        _region(program.body, found, False)
        if len(found) == before:
            return frozenset(found)


def diverges(loop: Loop, dependent: frozenset[str] | set[str]) -> bool:
    """Whether samples leave the loop at steps of their own."""
    decides = {loop.limit, loop.cond} | ({loop.body.yields[0]} if loop.cond is not None else set())
    return not decides.isdisjoint(dependent)


def may_fail(step: Einsum) -> bool:
    """Whether the step reads or writes at an index that a tensor holds and that nothing guards."""
    if step.write is not None and not step.write.drop:
        return True
    return any(a.default is None and any(map(has_value, a.index)) for a in step.accesses())


def _region(region: Region, found: set[str], apart: bool) -> None:
    """`apart`: whether only some samples get here."""
    for stmt in region.body:
        _statement(stmt, found, apart)


def _statement(stmt: Stmt, found: set[str], apart: bool) -> None:
    match stmt:
        case If():
            own = stmt.cond in found
            _region(stmt.then, found, apart or own)
            _region(stmt.orelse, found, apart or own)
            for out, *values in zip(stmt.outs, stmt.then.yields, stmt.orelse.yields, strict=True):
                if own or not found.isdisjoint(values):
                    found.add(out)
        case Loop():
            first = 0 if stmt.cond is None else 1
            pairs = list(zip(stmt.carries, stmt.body.yields[first:], stmt.finals, strict=False))
            own = apart or diverges(stmt, found)
            for (name, init), value, final in pairs:
                if own or init in found or value in found:
                    found.update((name, final))
            _region(stmt.body, found, own)
            rows = zip(stmt.collected, stmt.body.yields[first + len(pairs) :], strict=True)
            found.update(out for out, inner in rows if inner in found)
        case Scan():
            for carry, value, final in zip(stmt.carries, stmt.yields, stmt.finals, strict=True):
                if carry.init in found or value in found:
                    found.update((carry.name, final))
            for step in stmt.body:
                _statement(step, found, apart)
            found.update(outer for outer, inner in stmt.stacked if inner in found)
        case Einsum():
            if not found.isdisjoint(stmt.reads) or (apart and may_fail(stmt)):
                found.update(stmt.outs)
        case _:
            if not found.isdisjoint(stmt.reads):
                found.update(stmt.outs)
