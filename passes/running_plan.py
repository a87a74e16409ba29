"""Deciding whether a chain of reductions can run as one traversal, and what corrects each partial result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.ir.domain import conjuncts
from dlc.ir.dtype import BF16, F16, F64, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index, Piecewise, accesses, const, dtype_of
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Stmt
from dlc.passes.reduction_chains import Chain, Kind, Member, reads_of
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.scalar_rules import Rules
from dlc.passes.separate import (
    Addend,
    Factor,
    Power,
    Scope,
    Shift,
    Term,
    Unseparable,
    addends,
    numerators_first,
    product,
    signed_sum,
    size_of,
    terms,
)

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
    try:
        _check_kept(chain, body, outside)
    except Refused:
        if refusals:  # what is kept is kept for the folds that were left out: their reasons are the cause
            return None, refusals
        raise
    if not any(p.parts or p.outer for p in plans):
        return None, refusals
    sums = {p.member.step.out for p in plans if any(r.unguarded for q in p.parts for r in q.references)}
    sums -= {p.member.step.out for p in plans if p.parts and all(_divides(q.term, sums) for q in p.parts)}
    shown = exposed(chain, body, outside, sums)
    return Plan(chain, tuple(replace(p, exposed=p.member.step.out in shown) for p in plans)), refusals


def exposed(chain: Chain, body: Sequence[Stmt], outside: frozenset[str], sums: set[str]) -> set[str]:
    """Of the sums that are 0 in the running form where the cascade as written has NaN, those that are not divided by one.

    Where all data of a row are the reference's identity, `exp(x - GM)` is `exp(-inf + inf)`, which is NaN; the running form,
    whose reference is finite, has 0 there. A quotient by such a sum is NaN either way.
    """
    found = sums & outside
    inside = {id(m.step) for m in chain.members.values() if m.kind is not Kind.VALUE}
    for s in body:
        if isinstance(s, Einsum) and id(s) not in inside and not sums.isdisjoint(reads_of(s)):
            found |= {a.tensor for e in s.scalars for a in _undivided(e, sums)}
    return found


def _divides(term: Term, sums: set[str]) -> bool:
    """Whether a term is divided by one of `sums` itself."""
    return any(f.inverse and any(a.tensor in sums for a in accesses(f.expr)) for f in term.outer)


def _undivided(e: Expr, sums: set[str]) -> Iterator[Access]:
    """Reads of `sums` that are not in a quotient by one of them."""
    if isinstance(e, Apply) and e.op == "div" and any(a.tensor in sums for a in accesses(e.args[1])):
        return
    if isinstance(e, Access) and e.tensor in sums:
        yield e
    for child in e.children:
        yield from _undivided(child, sums)


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
            kept |= mixed & set(reads_of(s))
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

        return Scope(frozenset(r.name for r in member.step.reduced), self.chain.is_running, dtype)

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
        try:
            match step.reduce.op:
                case "sum":
                    found = terms(self.chain.operand(member), scope)
                    return FoldPlan(member, tuple(p for t in found for p in self.parts(t, member, scope)))
                case "prod":
                    return FoldPlan(member, (self.factor(member, scope),))
                case "max" | "min":
                    return self.extreme(member, scope)
                case op:
                    raise Refused(Reason.MONOID, op)
        except Unseparable as error:
            raise Refused(Reason.INSEPARABLE, str(error)) from error

    def parts(self, term: Term, member: Member, scope: Scope) -> list[Part]:
        """The term with a reference for each power and a centre for its shift.

        What an exponent has beside its reference moves past the reduction as a power of its own; what a shift of power 1
        subtracts beside its centre is another term.
        """
        references: list[Reference] = []
        for k, power in enumerate(term.powers):
            reference, kept, rest = self.reference(power, member, scope)
            references.append(reference)
            kept_power = replace(power, rest=(kept,))
            if rest:
                exponent = signed_sum((*power.data, kept), member.step.dtype)
                if power.factor.expr != power.written:
                    raise Refused(Reason.INSEPARABLE, str(power.factor.expr))
                kept_power = replace(kept_power, factor=Factor(power.base(exponent)))
                past = Factor(power.base(signed_sum(rest, member.step.dtype)))
                term = replace(term, outer=(*term.outer, past))
            term = replace(term, powers=(*term.powers[:k], kept_power, *term.powers[k + 1 :]))
        if term.shift is None:
            return [Part(term, tuple(references))]
        centre, sign, rest = self.centre(term.shift, member, scope)
        moved = [
            Part(
                replace(
                    term,
                    sign=term.sign * a.sign,
                    outer=(*term.outer, Factor(a.body), *a.scales),
                    shift=None,
                ),
                tuple(references),
            )
            for a in rest
        ]
        return [Part(term, tuple(references), centre, sign), *moved]

    def factor(self, member: Member, scope: Scope) -> Part:
        """A product's operand: powers and data. A factor free of the rank would overflow, raised to the number of elements."""
        if member.step.where is not None:
            raise Refused(Reason.MONOID, "prod under a domain: its elements are not counted")
        found = terms(self.chain.operand(member), scope)
        if len(found) != 1 or found[0].shift is not None:
            raise Refused(Reason.INSEPARABLE, f"prod of {member.step.expr}")
        (part,) = self.parts(found[0], member, scope)
        if part.term.sign < 0 or part.term.outer:
            why = "a factor to the power of the number of elements" if part.term.outer else str(member.step.expr)
            raise Refused(Reason.UNSTABLE if part.term.outer else Reason.SIGN, why)
        return part

    def extreme(self, member: Member, scope: Scope) -> FoldPlan:
        """A maximum or minimum: addends free of the rank move past it, and factors that are not negative."""
        operand = self.chain.operand(member)
        dtype = member.step.dtype
        summed = tuple(addends(operand, scope))
        if all(not scope.is_mixed(a.body) for a in summed):
            data = tuple(a for a in summed if not scope.is_outer(a.body))
            outer = tuple(a for a in summed if scope.is_outer(a.body))
            return FoldPlan(member, operand=signed_sum(data, dtype), outer=(("add", signed_sum(outer, dtype)),))
        found = terms(operand, scope)
        if len(found) != 1 or found[0].shift is not None or found[0].powers or found[0].sign < 0:
            raise Refused(Reason.INSEPARABLE, str(operand))
        for f in found[0].outer:
            if not self.nonnegative(f.expr):
                raise Refused(Reason.SIGN, str(f.expr))
        local = product(numerators_first(found[0].local), const(1, dtype))
        return FoldPlan(
            member, operand=local, outer=tuple(("div" if f.inverse else "mul", f.expr) for f in found[0].outer)
        )

    def nonnegative(self, e: Expr) -> bool:
        """Whether `e` is never negative: sums, products, and extremes of what is not are not, either."""
        rules = Rules(lambda t: self.types[t].dtype, self.facts)
        for m in self.chain.folds:
            op = m.step.reduce.op if m.step.reduce is not None else ""
            if op in ("sum", "prod", "min") and rules.is_nonnegative(self.chain.operand(m)):
                rules.nonnegative.add(m.step.out)
        return rules.is_nonnegative(self.chain.inlined(e, Kind.VALUE))

    # --- centres ---

    def centre(self, shift: Shift, member: Member, scope: Scope) -> tuple[Centre, int, tuple[Addend, ...]]:
        """(centre, sign of the data, addends beside the centre)."""
        rest = tuple(
            x for a in shift.centre for x in addends(self.chain.inlined(a.body, Kind.VALUE), scope, a.sign, a.scales)
        )
        for k, a in enumerate(rest):
            others = rest[:k] + rest[k + 1 :]
            found = self.mean(a, shift, member, scope)
            if found is None and shift.power == 1:  # squares of a move from -inf would be NaN
                found = self.bound(a, shift, member, scope)
            if found is not None and (shift.power == 1 or not others):
                return found, -a.sign, others
        raise Refused(Reason.UNSTABLE, f"{shift.expr}: what it subtracts is neither a mean nor the extreme of its data")

    def fold_at(self, read: Access, member: Member) -> tuple[Member, dict[str, IntExpr]] | None:
        """The fold that is read, if it is made of data alone and sees all that the member does; its names here."""
        fold = self.chain.members.get(read.tensor)
        if fold is None or fold.kind is not Kind.FOLD or self.chain.depends(fold.step) or read.default is not None:
            return None
        env = {r.name: i for r, i in zip(fold.step.ranks, read.index, strict=True)} | {fold.rank: var(member.rank)}
        return (fold, env) if self.sees(fold, member, env) else None

    def data_keys(self, e: Expr, fold: Member, env: Mapping[str, IntExpr], scope: Scope) -> set[object]:
        local = replace(scope, running=lambda t: False)
        return {x.key() for x in addends(plain(e.substitute(env), fold.step), local)}

    def shift_keys(self, shift: Shift, sign: int, member: Member, scope: Scope) -> set[object]:
        parts = (x for d in shift.data for x in addends(plain(d.body, member.step), scope, -sign * d.sign, d.scales))
        return {x.key() for x in parts}

    def mean(self, a: Addend, shift: Shift, member: Member, scope: Scope) -> Centre | None:
        """`S / count`, with S the sum of the shift's data, perhaps weighted, and the count that of the weights."""
        match a.body:
            case Access() as read if a.scales:
                found = self.fold_at(read, member)
                if found is None or found[0].step.reduce is None or found[0].step.reduce.op != "sum":
                    return None
                (fold, env), extent = found, self.chain.extent
                same = self.data_keys(fold.step.expr, fold, env, scope) == self.shift_keys(shift, a.sign, member, scope)
                whole = fold.step.where is None and len(fold.step.reduced) == 1
                return Centre(read, None, True) if same and whole and _is_share(a.scales, extent) else None
            case Apply("div", (Access() as read, Access() as count)) if not a.scales:
                sums, weights = self.fold_at(read, member), self.fold_at(count, member)
                if sums is None or weights is None:
                    return None
                if any(f[0].step.reduce is None or f[0].step.reduce.op != "sum" for f in (sums, weights)):
                    return None
                wanted = self.shift_keys(shift, a.sign, member, scope)
                value = self.without_weights(sums, weights)
                return (
                    Centre(read, count, True)
                    if value is not None and self.data_keys(value, sums[0], sums[1], scope) == wanted
                    else None
                )
            case _:
                return None

    def without_weights(
        self, sums: tuple[Member, dict[str, IntExpr]], weights: tuple[Member, dict[str, IntExpr]]
    ) -> Expr | None:
        """What the sum weighs, as it names its ranks: `X[m]` of `W[m] * X[m]` for the weights `W[m]`."""
        weight = plain(weights[0].step.expr.substitute(weights[1]), weights[0].step)
        match sums[0].step.expr:
            case e if isinstance(weight, Const) and weight.value == 1:
                return e
            case Apply("mul", (x, y)):
                for w, value in ((x, y), (y, x)):
                    if plain(w.substitute(sums[1]), sums[0].step) == weight:
                        return value
        return None

    def bound(self, a: Addend, shift: Shift, member: Member, scope: Scope) -> Centre | None:
        """The maximum or minimum of the shift's data."""
        found = self.fold_at(a.body, member) if isinstance(a.body, Access) else None
        if found is None or not isinstance(a.body, Access) or a.scales:
            return None
        fold, env = found
        op = fold.step.reduce.op if fold.step.reduce is not None else ""
        if op not in _IDENTITY_REFERENCE or fold.step.outs[0] != a.body.tensor:
            return None
        same = self.data_keys(fold.step.expr, fold, env, scope) == self.shift_keys(shift, a.sign, member, scope)
        return Centre(a.body, None, False) if same else None

    # --- references ---

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
        found = self.fold_at(read, member)
        if found is None or not _grows(power):
            return None
        fold, env = found
        wanted = {
            replace(x, sign=-sign * x.sign, scales=(*x.scales, *a.scales)).key()
            for x in addends(plain(fold.step.expr.substitute(env), fold.step), replace(scope, running=lambda t: False))
        }
        have = {x.key() for d in power.data for x in addends(plain(d.body, member.step), scope, d.sign, d.scales)}
        return Reference(read, a.scales, sign, guarded) if wanted == have else None

    def sees(self, fold: Member, member: Member, env: Mapping[str, IntExpr]) -> bool:
        """Whether the fold looks at every point that the member does."""
        own = set(conjuncts(member.step.where))
        return all(c.substitute(env) in own for c in conjuncts(fold.step.where))


def plain(e: Expr, step: Einsum) -> Expr:
    """`e` with the ranks of extent 1 at 0, so that equal reads look equal."""
    return e.substitute({r.name: int_expr(0) for r in step.all_ranks if r.extent.const == 1})


def _is_share(scales: Sequence[Factor], extent: IntExpr) -> bool:
    """Whether the scales divide by the number of elements of the rank."""
    if len(scales) != 1:
        return False
    match scales[0]:
        case Factor(Const(number), inverse) if extent.const is not None and float(number) != 0:
            return float(number) == extent.const if inverse else _is_reciprocal(float(number), extent.const)
        case Factor(Cast(dtype, Index(e)), True):
            return dtype.is_float and e == extent
        case Factor(Apply("div", (Const(1), Cast(dtype, Index(e)))), False):
            return dtype.is_float and e == extent
        case _:
            return False


def _is_reciprocal(number: float, extent: int) -> bool:
    """Whether the constant is 1/extent, as some float type rounds it: the running mean is then as exact as the mean is."""
    return abs(number * extent - 1) <= 2.0**-23


def _grows(power: Power) -> bool:
    """Whether the power grows with its exponent: its base is a constant above 1."""
    made = power.base(const(1, F64))
    match made:
        case Apply("pow", (Const(number), _)):
            return float(number) > 1
        case Apply("pow", _):
            return False
        case _:
            return True


def _positive(scales: Sequence[Factor]) -> bool:
    return all(isinstance(s.expr, Const) for s in scales) and size_of(tuple(scales)) > 0


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
