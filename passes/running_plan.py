"""Deciding whether a chain of reductions can run as one traversal, and what corrects each partial result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.ir.domain import conjuncts
from dlc.ir.dtype import BF16, F16, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Const, Expr, Piecewise, accesses, dtype_of
from dlc.ir.extent import int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Stmt
from dlc.passes.reduction_chains import Chain, Kind, Member
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.separate import Addend, Factor, Power, Scope, Term, Unseparable, addends, terms

_SHORT = (F16, BF16)
_IDENTITY_REFERENCE = {"max": -1, "argmax": -1, "argmax_last": -1, "min": 1, "argmin": 1, "argmin_last": 1}
"""Folds whose value bounds all they have seen; the sign that it needs in an exponent to keep that from growing."""


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


@dataclass(frozen=True)
class Part:
    """One running sum of a fold: a term of its operand, with the references of its powers."""

    term: Term
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class FoldPlan:
    """How a fold runs: `parts` for an operand that depends on other folds, none for one of data alone."""

    member: Member
    parts: tuple[Part, ...] = ()

    @property
    def is_direct(self) -> bool:
        """Whether what the traversal carries is the result itself."""
        if not self.parts:
            return True
        only = self.parts[0]
        return len(self.parts) == 1 and only.term.sign > 0 and not only.term.outer


@dataclass(frozen=True)
class Plan:
    chain: Chain
    folds: tuple[FoldPlan, ...]


def plan_chain(
    chain: Chain, body: Sequence[Stmt], outside: frozenset[str], types: Mapping[str, TensorType], facts: Facts
) -> tuple[Plan | None, list[Refusal]]:
    """The plan of a chain, and the folds that had to be left out of it (they follow the traversal).

    Raises:
        Refused: where nothing of the chain can be done in one traversal.
    """
    planner = _Planner(chain, types, facts)
    refusals: list[Refusal] = []
    plans: list[FoldPlan] = []
    for member in chain.folds:
        if any(not chain.is_running(t) and t in chain.tainted for t in member.step.reads):
            _leave(chain, member)
            continue
        try:
            plans.append(planner.fold(member))
        except Refused as error:
            detail = error.detail.replace("#", "")
            refusals.append(Refusal(member.step.out, member.rank, error.reason, detail, member.step.loc))
            _leave(chain, member)
    _check_kept(chain, body, outside)
    if not any(p.parts for p in plans):
        return None, refusals
    return Plan(chain, tuple(plans)), refusals


def _leave(chain: Chain, member: Member) -> None:
    """The fold is done after the traversal, and so is all that depends on it."""
    left = set(member.step.outs)
    for name, m in list(chain.members.items()):
        if name in left or not left.isdisjoint(m.step.reads):
            left.update(m.step.outs)
            del chain.members[name]
            chain.tainted[name] = m.step


def _check_kept(chain: Chain, body: Sequence[Stmt], outside: frozenset[str]) -> None:
    """Nothing but the chain reads what is point-wise along the rank of folds."""
    inside = {id(m.step) for m in chain.members.values()}
    mixed = {m.step.out for m in chain.of(Kind.MIXED)}
    kept = mixed & outside
    for s in body:
        if isinstance(s, Einsum) and id(s) not in inside:
            kept |= mixed & set(s.reads)
    if kept:
        raise Refused(Reason.KEPT, ", ".join(sorted(kept)))


@dataclass
class _Planner:
    chain: Chain
    types: Mapping[str, TensorType]
    facts: Facts

    def scope(self, member: Member) -> Scope:
        def dtype(e: Expr) -> DType:
            return dtype_of(e, lambda t: self.types[t].dtype)

        return Scope(member.rank, self.chain.is_running, dtype)

    def fold(self, member: Member) -> FoldPlan:
        step, scope = member.step, self.scope(member)
        assert step.reduce is not None
        if any(not c.variables & {r.name for r in step.reduced} for c in conjuncts(step.where)):
            raise Refused(Reason.PARTIAL, f"where {step.where}")
        if any(self.chain.is_running(a.tensor) for c in conjuncts(step.where) for a in accesses(c)):
            raise Refused(Reason.INSEPARABLE, f"where {step.where}")
        if not self.chain.depends(step):
            return FoldPlan(member)
        if MONOIDS[step.reduce.op].arity > 1:
            raise Refused(Reason.TUPLE, step.reduce.op)
        if step.dtype in _SHORT:
            raise Refused(Reason.NARROW, str(step.dtype))
        if step.reduce.op != "sum":
            raise Refused(Reason.MONOID, step.reduce.op)
        try:
            found = terms(self.chain.operand(member), scope)
        except Unseparable as error:
            raise Refused(Reason.INSEPARABLE, str(error)) from error
        return FoldPlan(member, tuple(self.part(t, member, scope) for t in found))

    def part(self, term: Term, member: Member, scope: Scope) -> Part:
        """The term with a reference for each power; the rest of an exponent moves past the reduction."""
        if term.shift is not None:
            raise Refused(Reason.INSEPARABLE, str(term.shift.expr))
        powers: list[Power] = []
        references: list[Reference] = []
        outer = list(term.outer)
        for power in term.powers:
            reference, kept, rest = self.reference(power, member, scope)
            references.append(reference)
            powers.append(replace(power, rest=(kept,)))
            if rest:
                raise Refused(Reason.UNSTABLE, str(power.factor.expr))
        return Part(replace(term, powers=tuple(powers), outer=tuple(outer)), tuple(references))

    def reference(self, power: Power, member: Member, scope: Scope) -> tuple[Reference, Addend, tuple[Addend, ...]]:
        """The fold that bounds the exponent, its addend, and the other addends."""
        rest = tuple(
            x for a in power.rest for x in addends(self.chain.inlined(a.body, Kind.VALUE), scope, a.sign, a.scales)
        )
        for k, a in enumerate(rest):
            bound = self.bounded(a, power, member, scope)
            if bound is not None:
                return bound, a, rest[:k] + rest[k + 1 :]
        raise Refused(Reason.UNSTABLE, str(power.factor.expr))

    def bounded(self, a: Addend, power: Power, member: Member, scope: Scope) -> Reference | None:
        """The addend as a reference that bounds the data of the exponent; None when it is none."""
        read, guarded = guarded_read(a.body)
        fold = self.chain.members.get(read.tensor) if read is not None else None
        if read is None or fold is None or fold.kind is not Kind.FOLD or fold.step.reduce is None:
            return None
        sign = _IDENTITY_REFERENCE.get(fold.step.reduce.op)
        if sign != a.sign or fold.step.outs[0] != read.tensor or not _positive(a.scales):
            return None
        env = {r.name: i for r, i in zip(fold.step.ranks, read.index, strict=True)} | {fold.rank: var(member.rank)}
        seen = fold.step.expr.substitute(env)
        if self.chain.depends(fold.step) or not self.sees(fold, member, env):
            return None
        wanted = {
            replace(x, sign=-sign * x.sign, scales=(*x.scales, *a.scales)).key()
            for x in addends(plain(seen, fold.step), replace(scope, running=lambda t: False))
        }
        have = {x.key() for d in power.data for x in addends(plain(d.body, member.step), scope, d.sign, d.scales)}
        return Reference(read, a.scales, sign, guarded) if wanted == have else None

    def sees(self, fold: Member, member: Member, env: Mapping[str, object]) -> bool:
        """Whether the fold looks at every point that the member does."""
        own = set(conjuncts(member.step.where))
        return all(c.substitute(env) in own for c in conjuncts(fold.step.where))  # type: ignore[arg-type]


def plain(e: Expr, step: Einsum) -> Expr:
    """`e` with the ranks of extent 1 at 0, so that equal reads look equal."""
    return e.substitute({r.name: int_expr(0) for r in step.all_ranks if r.extent.const == 1})


def _positive(scales: Sequence[Factor]) -> bool:
    return all(isinstance(s.expr, Const) and s.expr.value > 0 for s in scales)


def guarded_read(e: Expr) -> tuple[Access | None, tuple[bool, bool]]:
    """The fold read, through a choice of a finite value where it is infinite: (read, (identity, other infinity))."""
    match e:
        case Access(_, _, None):
            return e, (False, False)
        case (
            Apply("select", (Apply("eq", (Access(_, _, None) as read, Const() as c)), Const() as instead, again))
            | Piecewise(((Apply("eq", (Access(_, _, None) as read, Const() as c)), Const() as instead),), again)
        ) if again == read and abs(float(c.value)) == float("inf") and abs(float(instead.value)) < float("inf"):
            return read, (True, False)
        case (
            Apply("select", (Apply("isinf", (Access(_, _, None) as read,)), Const() as instead, again))
            | Piecewise(((Apply("isinf", (Access(_, _, None) as read,)), Const() as instead),), again)
        ) if again == read and abs(float(instead.value)) < float("inf"):
            return read, (True, True)
        case _:
            return None, (False, False)
