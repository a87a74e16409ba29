"""Straight-line runs of a region, made longer: fusion does not stop at a branch that has nothing to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dlc.ir.einsum import Einsum
from dlc.ir.program import Stmt, bound_symbols


def longer_runs(body: Sequence[Stmt], needed: Iterable[str]) -> tuple[Stmt, ...]:
    """The statements in an order where an Einsum that is the only reader of another one is in the same run, if it may be.

        A[i] = sum(k) ...                  A[i] = sum(k) ...
        if C { .. } -> (R)         ->      B[i] = exp(A[i])
        B[i] = exp(A[i])                   if C { .. } -> (R)

    A branch, a loop, a library operation or a bound extent ends a run; what depends on one stays after it. Nothing moves
    that would not save its operand a way through memory.

    Args:
        needed: tensors that are read after the region, or that it yields.
    """
    readers = Counter(name for stmt in body for name in set(stmt.reads))
    readers.update(needed)
    segments: list[list[Stmt]] = [[]]
    ends: list[Stmt] = []  # what ends each segment but the last
    since: dict[str, int] = {}  # first segment where a tensor or symbol is there
    made: set[str] = set()  # tensors that an Einsum of a segment makes
    for stmt in body:
        if not isinstance(stmt, Einsum):
            ends.append(stmt)
            segments.append([])
            since.update(dict.fromkeys((*stmt.outs, *("#" + s.name for s in bound_symbols(stmt))), len(ends)))
            continue
        last = len(segments) - 1
        first = max((since.get(name, 0) for name in (*stmt.reads, *stmt.symbols)), default=0)
        saves = any(name in made and since[name] == first and readers[name] == 1 for name in stmt.reads)
        at = first if first < last and saves else last
        segments[at].append(stmt)
        since.update(dict.fromkeys(stmt.outs, at))
        made.update(stmt.outs)
    result: list[Stmt] = []
    for n, segment in enumerate(segments):
        result += segment
        result += ends[n : n + 1]
    return tuple(result)
