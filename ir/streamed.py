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

from collections.abc import Iterable, Iterator, Sequence

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.expr import Access, Apply, Cast, Expr, accesses


def flat(steps: Iterable[Step]) -> Iterator[Einsum]:
    """The Einsums of `steps` in order, those of scans included."""
    for step in steps:
        if isinstance(step, Einsum):
            yield step
        else:
            yield from flat(step.body)


def factors(step: Einsum) -> tuple[Access, Access] | None:
    """The operands of a sum of products of two plain accesses (up to widening casts); None for another step."""
    if step.reduce is None or step.reduce.op != "sum" or len(step.exprs) != 1:
        return None
    e = step.expr
    if not (isinstance(e, Apply) and e.op == "mul"):
        return None
    first, second = (_plain(a) for a in e.args)
    return (first, second) if first is not None and second is not None else None


def _plain(e: Expr) -> Access | None:
    inner = e.arg if isinstance(e, Cast) else e
    return inner if isinstance(inner, Access) and inner.default is None and not inner.children else None


FEWEST = 8
"""Points that are worth the lanes, where another rank has more."""


def lane_rank(steps: Sequence[Step], outer: Iterable[str]) -> str | None:
    """The task rank that the lanes run along; None when the kernel does not stream.

    Args:
        steps: of one kernel, equal rank names meaning the same.
        outer: its task ranks; the last one that qualifies is taken, or, where that is short, the longest known one.
    """
    tasks = list(outer)
    einsums = list(flat(steps))
    sums = [f for s in einsums if (f := factors(s)) is not None and _has_inner(s, tasks)]
    if not sums or not any(isinstance(s, Scan) for s in steps) and len(einsums) < 2:
        return None
    if not _plain_scans(steps) or any(made_in_index(s, steps) for s in einsums):
        return None
    extents = {r.name: r.extent for s in einsums for r in s.ranks}
    able = [n for n in tasks if extents[n].const != 1 and moves_one_operand(n, sums)]
    if not able:
        return None
    last, size = able[-1], extents[able[-1]].const
    if size is None or size >= FEWEST:
        return last
    return max(reversed(able), key=lambda n: extents[n].const or 0)  # a few heads that share keys are no lanes


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


__all__ = ["dimensions", "factors", "flat", "lane_rank", "made_in_index", "moves_one_operand"]
