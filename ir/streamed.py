"""Kernels whose tasks hold a block of points in the lanes and stream everything else past it.

    kernel over (h, p) {
      S[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e]
      G[h, p]    = max(m) S[h, p, m]
      ...
      O[h, p, f] = sum(m) N[h, p, m] * V[h, m, f]
    }

Every step has all task ranks, several of them are contractions, and each contraction has one operand that moves along the
*lane* rank (`p`) and one that does not. A task does a block of `p`: what the kernel makes for it lies in the core's own
scratch with `p` innermost, so that every step is lane by lane, reductions included, and the other operands are read as
scalars wherever they lie. A scan between the steps is a loop inside the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.expr import Access, accesses
from dlc.ir.products import factors

FEWEST = 8
"""Points that are worth the lanes: with one query they belong to the keys, and the plain form is as good."""


def lane_rank(steps: Sequence[Step], outer: Iterable[str]) -> str | None:
    """The task rank that the lanes run along; None when the kernel does not stream.

    Args:
        steps: of one kernel, equal rank names meaning the same.
        outer: its task ranks; of those that qualify the longest is taken, the last of equals. One of unknown extent, which may
            be a batch of one as well as a text, counts as the fewest that are worth it.
    """
    tasks = list(outer)
    einsums = list(flat(steps))
    sums = [f for s in einsums if (f := factors(s)) is not None and _has_inner(s, tasks)]
    if not sums or not any(isinstance(s, Scan) for s in steps) and len(einsums) < 2:
        return None
    if not _plain_scans(steps) or any(made_in_index(s, steps) for s in einsums):
        return None
    extents = {r.name: r.extent for s in einsums for r in s.ranks}
    able = {n: extents[n].const for n in reversed(tasks) if extents[n].const != 1 and moves_one_operand(n, sums)}
    return max(able, key=lambda n: FEWEST if (size := able[n]) is None else size, default=None)


def moves_one_operand(name: str, sums: Iterable[tuple[Access, Access]]) -> bool:
    """Whether one operand of each contraction, and one alone, moves along the rank `name`."""
    return all((name in a.variables) != (name in b.variables) for a, b in sums)


def _has_inner(step: Einsum, tasks: Sequence[str]) -> bool:
    return any(r.name not in tasks and r.extent.const != 1 for r in step.ranks)


def _plain_scans(steps: Sequence[Step]) -> bool:
    """Whether scans are loops of Einsums over states that are theirs: made for them before, and anew in each step."""
    makers = {o: s for s in steps if isinstance(s, Einsum) for o in s.outs}
    read = {r for s in flat(steps) for r in s.reads}
    inits = [c.init for s in steps if isinstance(s, Scan) for c in s.carries]
    if len(set(inits)) != len(inits) or not read.isdisjoint(inits) or not makers.keys() >= set(inits):
        return False
    for scan in steps:
        if isinstance(scan, Scan):
            body = [s for s in scan.body if isinstance(s, Einsum)]
            if scan.stacked or len(body) != len(scan.body) or not {o for s in body for o in s.outs} >= set(scan.yields):
                return False
    return all(s.write is None for s in flat(steps))


def made_in_index(step: Einsum, steps: Iterable[Step]) -> bool:
    """Whether `step` takes an index, or what is read outside of a tensor, from what `steps` make."""
    made = {o for s in flat(steps) for o in s.outs}
    return any(b.tensor in made for a in step.accesses() for child in a.children for b in accesses(child))


def dimensions(steps: Sequence[Step]) -> dict[str, tuple[str, ...]]:
    """The rank names along the dimensions of every tensor that `steps` make, states and their last values included."""
    made: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if isinstance(step, Einsum):
            if step.write is None:
                made.update(dict.fromkeys(step.outs, tuple(r.name for r in step.ranks)))
            continue
        inner = dimensions(step.body)
        for carry, final, after in zip(step.carries, step.finals, step.yields, strict=True):
            made[carry.name] = made[final] = inner.get(after) or made.get(carry.init, ())
        made.update(inner)
    return made


__all__ = ["FEWEST", "dimensions", "lane_rank", "made_in_index", "moves_one_operand"]
