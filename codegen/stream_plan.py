"""A streaming kernel in parts, before code is made of them: which steps are one nest, what lies in scratch, what is turned.

    stage   an operand that moves along the lanes, brought into scratch once (per step of a scan, if it moves with that)
    tile    a contraction on register tiles, with the point-wise steps that follow on the tile
    sweep   point-wise steps and folds over one inner rank in one loop, then point-wise steps over the lanes alone
    nest    any other point-wise steps and folds, lane by lane
    rows    point-wise steps whose results leave the kernel
    loop    a scan: its states lie in scratch; a next value that is computed point by point replaces its state in place
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Scan, flat
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import IntExpr, int_expr, var


@dataclass(frozen=True)
class Local:
    """A tensor in scratch (or, unless `stored`, in registers): the extents of its inner dimensions; the lanes are innermost.

    Attributes:
        kept: for each dimension of the tensor, whether it is an inner one.
    """

    dtype: DType
    inner: tuple[IntExpr, ...]
    kept: tuple[bool, ...]
    stored: bool = True


@dataclass(frozen=True)
class Stage:
    """`name[ranks..., lane] = access`; `bounded` when that is read only where `reader` exists."""

    name: str
    access: Access
    ranks: dict[str, IntExpr]
    reader: Einsum
    bounded: bool

    def moves(self, rank: str) -> bool:
        """Whether it is another one at another index of `rank`."""
        where = self.reader.where
        return rank in self.access.variables or (self.bounded and where is not None and rank in where.variables)


Kind: TypeAlias = Literal["tile", "sweep", "nest", "rows"]


@dataclass(frozen=True)
class Group:
    """Steps that run together."""

    kind: Kind
    steps: tuple[Einsum, ...]


@dataclass(frozen=True)
class Loop:
    """A scan inside a task.

    Attributes:
        copies: what moves next values into states that they could not replace in place.
        idle: whether a step in which every reduction is over nothing leaves all states as they are.
    """

    scan: Scan
    items: tuple[Item, ...]
    copies: tuple[Einsum, ...]
    idle: bool

    @property
    def einsums(self) -> Iterator[Einsum]:
        return flat(self.scan.body)


Item: TypeAlias = Stage | Group | Loop


@dataclass(frozen=True)
class Plan:
    """A streaming kernel in parts.

    Attributes:
        lane: the name of the index along the lanes.
        tasks: ranks with one index in a task.
        locals: tensors that the kernel makes for itself.
        aliases: locals that lie in another one's buffer.
        stages: what a read of an operand along the lanes becomes, by the read and the domain that bounds it.
    """

    lane: str
    tasks: set[str]
    items: tuple[Item, ...] = ()
    locals: dict[str, Local] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    stages: dict[tuple[Access, Expr | None], Access] = field(default_factory=dict)

    def loops(self) -> Iterator[Loop]:
        return (i for i in self.items if isinstance(i, Loop))

    def local_index(self, tensor: str, index: Sequence[IntExpr]) -> tuple[IntExpr, ...]:
        """Where scratch has the element that `index` names."""
        kept = self.locals[tensor].kept
        return (*(i for i, k in zip(index, kept, strict=True) if k), var(self.lane))

    def with_stages(self, e: Expr, where: Expr | None) -> Expr:
        """`e` of a step over `where` with what is staged read in scratch; an index that is staged too gives way."""
        written = {stage: a for (a, _), stage in self.stages.items()}

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Access):
                return None
            as_written = transform(node, lambda n: written.get(n) if isinstance(n, Access) else None)
            return self.staged(as_written, where) if isinstance(as_written, Access) else None

        return transform(e, visit)

    def staged(self, a: Access, where: Expr | None) -> Access | None:
        """Where scratch has what `a` reads in a step over `where`."""
        return self.stages.get((a, where)) or self.stages.get((a, None))

    def outside(self, e: Expr, where: Expr | None) -> list[Access]:
        """The reads of `e`, in a step over `where`, that go to memory the kernel did not make."""
        return [a for a in self._reads(e) if self.staged(a, where) is None]

    def _reads(self, e: Expr) -> Iterator[Access]:
        """The reads of memory in `e`, without those in their indices and defaults."""
        if isinstance(e, Access) and e.tensor not in self.locals:
            yield e
        else:
            for child in e.children:
                yield from self._reads(child)

    def work(self) -> IntExpr:
        """Operations of all steps per lane: two a point."""
        total = int_expr(0)
        for item in self.items:
            if isinstance(item, Group):
                total = total + self._points(item.steps)
            elif isinstance(item, Loop):
                total = total + self._points(item.einsums) * item.scan.rank.extent
        return total * 2

    def _points(self, steps: Iterable[Einsum]) -> IntExpr:
        total = int_expr(0)
        for step in steps:
            product = int_expr(1)
            for r in step.all_ranks:
                product = product * (1 if r.name in self.tasks else r.extent)
            total = total + product
        return total


__all__ = ["Group", "Item", "Kind", "Local", "Loop", "Plan", "Stage"]
