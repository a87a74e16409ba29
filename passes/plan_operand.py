"""Recognising a fold of the very data that a later operand has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dlc.ir.domain import conjuncts
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.passes.reduction_chains import Chain, Kind, Member
from dlc.passes.separate import Addend, Scope, addends


@dataclass(frozen=True)
class SeenFold:
    """A fold of data alone, as a later operand reads it.

    Attributes:
        fold: the fold.
        env: the places of its ranks, in those of the operand.
    """

    fold: Member
    env: Mapping[str, IntExpr]

    @property
    def op(self) -> str:
        assert self.fold.step.reduce is not None
        return self.fold.step.reduce.op

    def here(self, e: Expr) -> Expr:
        """An expression of the fold in the operand's ranks."""
        return one_element(e.substitute(self.env), self.fold.step)


@dataclass(frozen=True)
class Operand:
    """Where a plan looks for the folds that correct it: the operand of `member`, and what is known there."""

    chain: Chain
    member: Member
    scope: Scope

    def addends(self, e: Expr) -> tuple[Addend, ...]:
        return tuple(addends(e, self.scope))

    def outer_addends(self, parts: Iterable[Addend]) -> tuple[Addend, ...]:
        """Addends free of the rank, down to the folds that they are made of."""
        return tuple(
            x for a in parts for x in addends(self.chain.inlined(a.body, Kind.VALUE), self.scope, a.sign, a.scales)
        )

    def data_addends(self, parts: Iterable[Addend], sign: int = 1) -> tuple[Addend, ...]:
        """`sign` times the data that the operand has along the rank."""
        return tuple(
            x
            for d in parts
            for x in addends(one_element(d.body, self.member.step), self.scope, sign * d.sign, d.scales)
        )

    def fold_at(self, read: Access) -> SeenFold | None:
        """The fold that is read, if it is made of data alone and sees all that the operand's fold does."""
        fold = self.chain.members.get(read.tensor)
        if fold is None or fold.kind is not Kind.FOLD or self.chain.depends(fold.step) or read.default is not None:
            return None
        places = {r.name: i for r, i in zip(fold.step.ranks, read.index, strict=True)}
        seen = SeenFold(fold, places | {fold.rank: var(self.member.rank)})
        own = set(conjuncts(self.member.step.where))
        return seen if all(c.substitute(seen.env) in own for c in conjuncts(fold.step.where)) else None

    def seen_addends(self, e: Expr, seen: SeenFold) -> tuple[Addend, ...]:
        """Data that the fold has seen, comparable with `data_addends`."""
        return tuple(addends(seen.here(e), replace(self.scope, running=lambda t: False)))


def one_element(e: Expr, step: Einsum) -> Expr:
    """`e` with the ranks of extent 1 at 0, so that equal reads look equal."""
    return e.substitute({r.name: int_expr(0) for r in step.all_ranks if r.extent.const == 1})


def keys(parts: Iterable[Addend]) -> set[object]:
    """Equal for equal sums, whatever the order of their addends."""
    return {a.key() for a in parts}
