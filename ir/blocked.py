"""Kernels that work on small blocks of points: which of their ranks are unrolled, and which run block by block.

In a kernel over tasks `ty, c` the steps

    S[ty, e:4, c] = ...                    O[y:13, c] = max(S[y // 4, y % 4, c], 0.0)

have an inner rank `e` of a few points and a *blocked* rank `y = 4*ty + e'`: every task does the block of four `y` that it
has the operands of. Both are unrolled, so that what passes between the steps stays in registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr, Index, Piecewise, walk
from dlc.ir.extent import FloorDiv, IntExpr, Var, has_value, substitute, var, variables

MOST_POINTS = 64
"""Points of one step that are unrolled: more would be code that no instruction cache holds."""
MOST_NODES = 4096
"""Expression nodes of all unrolled points together."""
MOST_PIECES = 8
"""A rank that pieces distinguish is unrolled up to this extent."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rank that runs in blocks, `y = size * outer + (0 .. size - 1)`."""

    outer: str
    size: int


def blocked_ranks(steps: Sequence[Einsum], outer: Iterable[str]) -> dict[str, Block]:
    """The ranks of `steps` that follow a task rank block by block: they read what the kernel makes at `y // size`.

    Args:
        steps: of one kernel, equal rank names meaning the same.
        outer: the kernel's task ranks.
    """
    tasks = set(outer)
    made: dict[str, Einsum] = {}
    found: dict[str, Block] = {}
    for step in steps:
        extents = {r.name: r.extent for r in step.ranks}
        for a in step.accesses():
            if a.tensor not in made:
                continue
            for r, i in zip(made[a.tensor].ranks, a.index, strict=True):
                block = block_of(i, r.name, r.extent, extents) if r.name in tasks else None
                if block is not None:
                    found.setdefault(*block)
        made |= dict.fromkeys(step.outs, step)
    return found


def block_of(
    index: IntExpr, outer: str, blocks: IntExpr, extents: Mapping[str, IntExpr]
) -> tuple[str, Block] | None:
    """(rank, block) when `index` is `y // size` and walks all of `outer`'s `blocks`."""
    atom = index.atom
    if not isinstance(atom, FloorDiv) or not isinstance(atom.num.atom, Var) or atom.den.const is None:
        return None
    name, size = atom.num.atom.name, atom.den.const
    if name not in extents or not 2 <= size <= MOST_PIECES or blocks != (extents[name] + (size - 1)) // size:
        return None
    return name, Block(outer, size)


def told_apart(step: Einsum) -> set[str]:
    """Short ranks on which the pieces of a pointwise step depend: unrolled, the choice between them is free."""
    if step.reduce is not None or step.where is not None or step.write is not None or not step.ranks:
        return set()
    short = {r.name for r in step.ranks if r.extent.const is not None and 2 <= r.extent.const <= MOST_PIECES}
    order = step.order or tuple(range(len(step.ranks)))
    short -= {step.ranks[order[-1]].name}
    guards = [g for e in step.exprs for n in walk(e) if isinstance(n, Piecewise) for g, _ in n.cases]
    return {v for g in guards for n in walk(g) if isinstance(n, Index) for v in variables(n.expr)} & short


def unrolls(steps: Sequence[Einsum], outer: Iterable[str]) -> bool:
    """Whether a kernel of `steps` over tasks `outer` is computed block by block, its inner points unrolled.

    Every step is pointwise, its inner ranks are blocked or short, the storage's innermost rank (the lanes) is a task's, and
    what it reads of earlier steps lies in its own block.
    """
    tasks = set(outer)
    blocks = blocked_ranks(steps, tasks)
    made: dict[str, Einsum] = {}
    nodes = 0
    for step in steps:
        points = _points(step, tasks, blocks)
        if points is None or not all(_own_block(a, made[a.tensor], step, tasks, blocks) for a in _reads(step, made)):
            return False
        nodes += points * unrolled_nodes(step.expr)
        made |= dict.fromkeys(step.outs, step)
    inner = any(r.name not in tasks and r.extent.const != 1 for s in steps for r in s.ranks)
    return inner and nodes <= MOST_NODES


def _points(step: Einsum, tasks: set[str], blocks: Mapping[str, Block]) -> int | None:
    """Points of one task's block of `step`, None when the step cannot be unrolled."""
    if step.reduce is not None or step.where is not None or step.write is not None or len(step.outs) != 1:
        return None
    names = [r.name for r in step.ranks]
    covered = [n for n in names if n in tasks] + [blocks[n].outer for n in names if n in blocks]
    if sorted(covered) != sorted(tasks):  # each task rank once: with two, a task would do only the diagonal
        return None
    points = 1
    for r in step.ranks:
        if r.name in tasks and r.name in blocks:
            return None
        if r.name not in tasks:
            points *= blocks[r.name].size if r.name in blocks else r.extent.const or MOST_POINTS + 1
    if points > 1:
        lanes = step.ranks[(step.order or tuple(range(len(step.ranks))))[-1]]
        if lanes.name not in tasks or (lanes.extent.const or MOST_PIECES) < MOST_PIECES:
            return None
    return points if points <= MOST_POINTS else None


def _reads(step: Einsum, made: Mapping[str, Einsum]) -> list[Access]:
    return [a for a in step.accesses() if a.tensor in made]


def _own_block(a: Access, producer: Einsum, step: Einsum, tasks: set[str], blocks: Mapping[str, Block]) -> bool:
    """Whether `a` reads what the same task makes, at points known while compiling."""
    if a.default is not None:
        return False
    inner = {r.name for r in step.ranks} - tasks
    for r, i in zip(producer.ranks, a.index, strict=True):
        if r.name in tasks:
            extents = {x.name: x.extent for x in step.ranks}
            followed = block_of(i, r.name, r.extent, extents)
            if i != var(r.name) and (followed is None or blocks.get(followed[0]) != followed[1]):
                return False
        elif r.name in blocks:
            if i != var(r.name):
                return False
        elif has_value(i) or not variables(i) <= inner or not _known(i, blocks):
            return False
    return True


def _known(index: IntExpr, blocks: Mapping[str, Block]) -> bool:
    """Whether `index` is the same in every block, at both ends of it: `y % 4` in blocks of 4 is, in blocks of 2 it is not."""
    first = {n: blocks[n].size * var(blocks[n].outer) for n in variables(index) if n in blocks}
    rest = {n: 0 for n in variables(index) if n not in blocks}
    last = {n: e + (blocks[n].size - 1) for n, e in first.items()}
    return all(substitute(index, {**ends, **rest}).const is not None for ends in (first, last))


def unrolled_nodes(e: Expr) -> int:
    """Nodes of an expression when pieces are chosen between while compiling."""
    if isinstance(e, Piecewise):
        return max(unrolled_nodes(v) for v in (*(v for _, v in e.cases), e.otherwise))
    if isinstance(e, Access):
        return 1
    return 1 + sum(unrolled_nodes(c) for c in e.children)


__all__ = ["Block", "block_of", "blocked_ranks", "told_apart", "unrolls"]
