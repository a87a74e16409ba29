"""The plan of a running form: which folds one traversal carries, and what corrects each of them."""

from __future__ import annotations

from dataclasses import dataclass

from dlc.ir.expr import Access, Expr
from dlc.passes.reduction_chains import Chain, Member
from dlc.passes.separate import Factor, Term


@dataclass(frozen=True)
class Reference:
    """The fold that bounds a power's exponent: `base^(data + sign*scales*R)` is at most 1 when R has seen the data.

    Attributes:
        read: the access to the fold's result.
        scales: positive constants that multiply it in the exponent.
        sign: of R in the exponent: -1 for a maximum, +1 for a minimum.
        guarded: infinities that the program itself replaces by a finite value: (-inf or identity, the other one).
    """

    read: Access
    scales: tuple[Factor, ...]
    sign: int
    guarded: tuple[bool, bool] = (False, False)

    @property
    def unguarded(self) -> bool:
        """Whether the program as written subtracts an infinite reference as it is."""
        return not self.guarded[0]


@dataclass(frozen=True)
class Centre:
    """What a shift subtracts: a mean of its data, or the extreme that bounds it.

    Attributes:
        read: the access to the fold: the sum of a mean, or the maximum or minimum.
        count: the access to the fold of the weights of a mean; None for a mean over the whole rank, and for an extreme.
        mean: whether it is a mean.
    """

    read: Access
    count: Access | None
    mean: bool


@dataclass(frozen=True)
class Part:
    """One running sum of a fold: a term of its operand, with the references of its powers and the centre of its shift.

    Attributes:
        sign: 1 where the shift is `data - centre`, -1 for the opposite.
    """

    term: Term
    references: tuple[Reference, ...] = ()
    centre: Centre | None = None
    sign: int = 1


@dataclass(frozen=True)
class FoldPlan:
    """How a fold runs: `parts` for an operand that depends on other folds, none for one of data alone.

    Attributes:
        operand: of a maximum or minimum, what is left when the factor or addend `outer` has moved past it.
        outer: (operator, expression) to be applied to the result.
        exposed: whether something sees the difference between 0 and NaN where all data of a row are infinite.
    """

    member: Member
    parts: tuple[Part, ...] = ()
    operand: Expr | None = None
    outer: tuple[tuple[str, Expr], ...] = ()
    exposed: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether what the traversal carries is the result itself."""
        if not self.parts:
            return not self.outer
        if self.exposed:
            return False
        only = self.parts[0]
        return len(self.parts) == 1 and only.term.sign > 0 and not only.term.outer


@dataclass(frozen=True)
class Plan:
    """A chain, and how each of its folds runs, in the order of the statements."""

    chain: Chain
    folds: tuple[FoldPlan, ...]
