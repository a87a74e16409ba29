"""Whether a reduction has anything to fold: what is done after it must give the identity where it has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

from dlc.ir.domain import conjuncts
from dlc.ir.dtype import BOOL
from dlc.ir.einsum import Einsum, Reduce, TensorType, einsum
from dlc.ir.errors import NotInBounds, OutsideDomain
from dlc.ir.expr import Access, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, int_expr, var, variables
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.program import Program
from dlc.ir.prove import Assumptions
from dlc.ir.verify_expr import Scope, StepVerifier
from dlc.passes.refusals import Reason, Refused


def nonempty(step: Einsum, facts: Facts, fresh: Callable[[str], str]) -> tuple[Expr | None, tuple[Einsum, ...]]:
    """(condition over free ranks under which a point is folded, Einsums that it reads); None where there always is one."""
    known = Facts({**facts.ranks, **{r.name: r.extent for r in step.ranks}}, facts.symbols)
    if _has_witness(step, known):
        return None, ()
    if step.where is None:
        condition: Expr | None = None
        for r in step.reduced:
            if not known.nonneg(r.extent - 1):
                here = apply("lt", Index(int_expr(0)), Index(r.extent))
                condition = here if condition is None else apply("and", condition, here)
        return condition, ()
    assert step.reduce is not None
    ranks = tuple(r for r in step.ranks if r.name in step.where.variables)
    name = fresh(f"{step.out}_any")
    some = einsum(
        name, ranks, const(True, BOOL), BOOL, reduce=Reduce("or", step.reduce.ranks), where=step.where, loc=step.loc
    )
    return Access(name, tuple(var(r.name) for r in ranks)), (some,)


def known_symbols(program: Program) -> dict[str, SymbolFact]:
    """Facts of every symbol, those that the inputs bind without a declaration included."""
    shapes = [e for p in program.params for e in p.type.shape]
    return dict.fromkeys(sorted({n for e in shapes for n in variables(e)}), SymbolFact()) | program.facts


def check_bounds(step: Einsum, types: Mapping[str, TensorType], symbols: Mapping[str, SymbolFact]) -> None:
    """What is read after a reduction instead of inside is in bounds there, too.

    Raises:
        Refused: the bounds followed from a domain that only the reduction has.
    """
    try:
        StepVerifier(step, Scope(dict(types), dict(symbols))).run()
    except (NotInBounds, OutsideDomain) as error:
        raise Refused(Reason.BOUNDS, error.message) from error


def _has_witness(step: Einsum, known: Facts) -> bool:
    """Whether some point is proven to be in the domain: the first, the last, or the diagonal."""
    if not all(known.nonneg(r.extent - 1) for r in step.reduced):
        return step.where is not None and _diagonal(step, known)
    return step.where is None or _corner(step, known) or _diagonal(step, known)


def _corner(step: Einsum, known: Facts) -> bool:
    ends = product(*((int_expr(0), r.extent - 1) for r in step.reduced))
    return any(_holds(step, known, dict(zip((r.name for r in step.reduced), point, strict=True))) for point in ends)


def _diagonal(step: Einsum, known: Facts) -> bool:
    if len(step.reduced) != 1:
        return False
    (m,) = step.reduced
    return any(known.within(var(r.name), m.extent) and _holds(step, known, {m.name: var(r.name)}) for r in step.ranks)


def _holds(step: Einsum, known: Facts, point: Mapping[str, IntExpr]) -> bool:
    under = Assumptions(known)
    return all(under.holds(c.substitute(point)) for c in conjuncts(step.where))
