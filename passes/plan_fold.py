"""How one fold runs along: its operand as terms, each with the folds that correct it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlc.ir.domain import conjuncts
from dlc.ir.dtype import F32, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Expr, accesses, const, dtype_of
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.passes.plan_centres import find_centre
from dlc.passes.plan_operand import Operand
from dlc.passes.plan_references import find_reference
from dlc.passes.reduction_chains import Chain, Kind, Member
from dlc.passes.refusals import Reason, Refused
from dlc.passes.running_plan import FoldPlan, Part, Reference
from dlc.passes.scalar_rules import Rules
from dlc.passes.separate import (
    Addend,
    Factor,
    Power,
    Scope,
    Term,
    Unseparable,
    numerators_first,
    product,
    signed_sum,
    terms,
)

_ADDS_UP = ("sum", "prod", "welford")


@dataclass(frozen=True)
class FoldPlanner:
    """Plans the folds of a chain, one by one; `Refused` where a fold cannot run along."""

    chain: Chain
    types: Mapping[str, TensorType]
    facts: Facts

    def plan(self, member: Member) -> FoldPlan:
        self._check_domain(member)
        _check_rounding(member)
        if not self.chain.depends(member.step):
            return FoldPlan(member)
        self._check_result(member)
        try:
            return self._dependent(Operand(self.chain, member, self._scope(member)))
        except Unseparable as error:
            raise Refused(Reason.INSEPARABLE, str(error)) from error

    def _scope(self, member: Member) -> Scope:
        def dtype(e: Expr) -> DType:
            return dtype_of(e, lambda t: self.types[t].dtype)

        return Scope(frozenset(r.name for r in member.step.reduced), self.chain.is_running, dtype)

    def _check_domain(self, member: Member) -> None:
        """Every result has its element, and no condition waits for a fold."""
        step = member.step
        if any(not c.variables & {r.name for r in step.reduced} for c in conjuncts(step.where)):
            raise Refused(Reason.PARTIAL, f"where {step.where}")
        if any(self.chain.is_running(a.tensor) for c in conjuncts(step.where) for a in accesses(c)):
            raise Refused(Reason.INSEPARABLE, f"where {step.where}")

    @staticmethod
    def _check_result(member: Member) -> None:
        """A partial result can be corrected: it is one value, of a type that keeps it."""
        step = member.step
        assert step.reduce is not None
        if MONOIDS[step.reduce.op].arity > 1:
            raise Refused(Reason.TUPLE, step.reduce.op)
        if _is_short(step.dtype):
            raise Refused(Reason.NARROW, str(step.dtype))

    def _dependent(self, operand: Operand) -> FoldPlan:
        """The plan of a fold whose operand depends on other folds."""
        member = operand.member
        assert member.step.reduce is not None
        match member.step.reduce.op:
            case "sum":
                found = terms(self.chain.operand(member), operand.scope)
                return FoldPlan(member, tuple(p for t in found for p in _parts(t, operand)))
            case "prod":
                return FoldPlan(member, (self._factor(operand),))
            case "max" | "min":
                return self._extreme(operand)
            case op:
                raise Refused(Reason.MONOID, op)

    def _factor(self, operand: Operand) -> Part:
        """A product's operand: powers and data. A factor free of the rank would overflow, raised to the number of elements."""
        member = operand.member
        if member.step.where is not None:
            raise Refused(Reason.MONOID, "prod under a domain: its elements are not counted")
        found = terms(self.chain.operand(member), operand.scope)
        if len(found) != 1 or found[0].shift is not None:
            raise Refused(Reason.INSEPARABLE, f"prod of {member.step.expr}")
        (part,) = _parts(found[0], operand)
        if part.term.sign < 0 or part.term.outer:
            why = "a factor to the power of the number of elements" if part.term.outer else str(member.step.expr)
            raise Refused(Reason.UNSTABLE if part.term.outer else Reason.SIGN, why)
        return part

    def _extreme(self, operand: Operand) -> FoldPlan:
        """A maximum or minimum: addends free of the rank move past it, and factors that are not negative."""
        member, scope, dtype = operand.member, operand.scope, operand.member.step.dtype
        whole = self.chain.operand(member)
        summed = operand.addends(whole)
        if all(not scope.is_mixed(a.body) for a in summed):
            data = tuple(a for a in summed if not scope.is_outer(a.body))
            outer = tuple(a for a in summed if scope.is_outer(a.body))
            return FoldPlan(member, operand=signed_sum(data, dtype), outer=(("add", signed_sum(outer, dtype)),))
        found = terms(whole, scope)
        if len(found) != 1 or found[0].shift is not None or found[0].powers or found[0].sign < 0:
            raise Refused(Reason.INSEPARABLE, str(whole))
        for f in found[0].outer:
            if not self._is_nonnegative(f.expr):
                raise Refused(Reason.SIGN, str(f.expr))
        local = product(numerators_first(found[0].local), const(1, dtype))
        return FoldPlan(
            member, operand=local, outer=tuple(("div" if f.inverse else "mul", f.expr) for f in found[0].outer)
        )

    def _is_nonnegative(self, e: Expr) -> bool:
        """Whether `e` is never negative: sums, products, and minima of what is not are not, either."""
        rules = Rules(lambda t: self.types[t].dtype, self.facts)
        for m in self.chain.folds:
            op = m.step.reduce.op if m.step.reduce is not None else ""
            if op in ("sum", "prod", "min") and rules.is_nonnegative(self.chain.operand(m)):
                rules.nonnegative.add(m.step.out)
        return rules.is_nonnegative(self.chain.inlined(e, Kind.VALUE))


def _check_rounding(member: Member) -> None:
    """What is carried from block to block is no narrower than what the fold adds up in."""
    step = member.step
    if step.reduce is not None and step.reduce.op in _ADDS_UP and accumulates_wider(step):
        raise Refused(Reason.NARROW, f"{accumulator(step)} to {step.dtype}")


def accumulator(step: Einsum) -> DType:
    """The type that a fold adds up in: as the text says, else short floats in f32 and others in their own."""
    assert step.reduce is not None
    return step.reduce.accumulator or (F32 if _is_short(step.dtype) else step.dtype)


def accumulates_wider(step: Einsum) -> bool:
    """Whether the fold's float result is rounded to a narrower type when all has been added."""
    return step.dtype.is_float and accumulator(step).bits > step.dtype.bits


def _is_short(dtype: DType) -> bool:
    return dtype.is_float and dtype.bits < F32.bits


def _parts(term: Term, operand: Operand) -> list[Part]:
    """The term with a reference for each power and a centre for its shift.

    What an exponent has beside its reference moves past the reduction as a power of its own; what a shift of power 1
    subtracts beside its centre is another term.
    """
    found: list[Reference] = []
    for k, power in enumerate(term.powers):
        reference, kept, rest = find_reference(power, operand)
        found.append(reference)
        bounded, past = _split_power(power, kept, rest, operand.member.step.dtype)
        term = replace(term, outer=term.outer + past, powers=(*term.powers[:k], bounded, *term.powers[k + 1 :]))
    references = tuple(found)
    if term.shift is None:
        return [Part(term, references)]
    centre, sign, others = find_centre(term.shift, operand)
    return [Part(term, references, centre, sign), *(Part(_unshifted(term, a), references) for a in others)]


def _split_power(
    power: Power, kept: Addend, rest: tuple[Addend, ...], dtype: DType
) -> tuple[Power, tuple[Factor, ...]]:
    """(the power with one addend free of the rank in its exponent, a power of the other addends, which moves past)."""
    bounded = replace(power, rest=(kept,))
    if not rest:
        return bounded, ()
    if power.factor.expr != power.written:
        raise Refused(Reason.INSEPARABLE, str(power.factor.expr))
    exponent = signed_sum((*power.data, kept), dtype)
    return replace(bounded, factor=Factor(power.base(exponent))), (Factor(power.base(signed_sum(rest, dtype))),)


def _unshifted(term: Term, a: Addend) -> Term:
    """The term with an addend of its shift in place of the shift; it is free of the rank, and moves past."""
    return replace(term, sign=term.sign * a.sign, outer=(*term.outer, Factor(a.body), *a.scales), shift=None)
