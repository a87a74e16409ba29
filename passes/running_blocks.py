"""How a traversal cuts its rank: into shares, these into blocks, and these into elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlc.ir.einsum import Rank
from dlc.ir.expr import Apply, Expr, Index
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, var
from dlc.ir.facts import Facts
from dlc.ir.program import fresh_name
from dlc.passes.reduction_chains import Chain


@dataclass(frozen=True)
class Progress:
    """How many elements of the rank had been seen before a step of the traversal, and are when it is done.

    Attributes:
        may_be_none: whether there may be none even when it is done.
    """

    before: IntExpr
    after: IntExpr
    may_be_none: bool


@dataclass(frozen=True)
class Blocks:
    """Element `inner` of block `outer` of share `part` of a rank.

    Attributes:
        extent: of the rank.
        block: elements of a block.
        parts: shares, traversed side by side.
        whole: whether the blocks fill the rank exactly, so that none reaches beyond its end.
    """

    extent: IntExpr
    block: int
    parts: int
    whole: bool
    outer: Rank
    inner: Rank
    part: Rank

    @staticmethod
    def of(chain: Chain, block: int, parts: int, facts: Facts) -> Blocks:
        """The blocks of the chain's rank, under names that none of its steps has."""
        known = facts if parts == 1 else Facts()  # what a symbol's divisor says of both is beyond the prover
        whole = known.simplify(chain.extent % (block * parts)).const == 0
        blocks = chain.extent // block if whole else (chain.extent + (block - 1)) // block
        taken = {r.name for m in chain.members.values() for r in m.step.all_ranks}
        taken |= {n.lstrip("#") for m in chain.members.values() for n in m.step.symbols}
        base = chain.rank + "_" * chain.rank[-1].isdigit()
        outer = fresh_name(f"{base}1", taken)
        inner = fresh_name(f"{base}0", taken | {outer})
        part = fresh_name(f"{base}2", taken | {outer, inner})
        return Blocks(
            chain.extent,
            block,
            parts,
            whole,
            Rank(outer, (blocks + (parts - 1)) // parts),
            Rank(inner, int_expr(block)),
            Rank(part, int_expr(parts)),
        )

    @property
    def place(self) -> IntExpr:
        """The element's place in the rank."""
        here = self.block * var(self.outer.name) + var(self.inner.name)
        return here if self.parts == 1 else here + self._share * var(self.part.name)

    @property
    def inside(self) -> tuple[Expr, ...]:
        """What holds where the element is one of the rank's; nothing where it always is."""
        return () if self.whole else (Apply("lt", (Index(self.place), Index(self.extent))),)

    @property
    def _share(self) -> IntExpr:
        return self.block * self.outer.extent

    def ranks(self, ranks: Sequence[Rank], rank: str) -> tuple[Rank, ...]:
        """The ranks of a step in a block: `inner` in place of its own name `rank` for the chain's."""
        return tuple(self.inner if r.name == rank else r for r in ranks)

    def progress(self) -> Progress:
        """Elements of the share seen by a step of the scan."""
        start = self.block * var(self.outer.name)
        end = start + self.block
        if self.parts == 1:
            return Progress(start, end if self.whole else minimum(end, self.extent), False)
        here = maximum(self.extent - self._share * var(self.part.name), int_expr(0))  # it may begin beyond the end
        return Progress(minimum(start, here), minimum(end, here), True)

    def progress_of_join(self) -> Progress:
        """Elements of the share alone, and of all of them."""
        here = maximum(self.extent - self._share * var(self.part.name), int_expr(0))
        return Progress(minimum(self._share, here), self.extent, True)
