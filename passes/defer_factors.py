"""Factors that lack every reduced rank move past the reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.dtype import BF16, F16
from dlc.ir.einsum import Einsum, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index, Piecewise, const
from dlc.ir.extent import int_expr, var
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Program, Region, Stmt, collect_step_types, tensor_types
from dlc.passes.emptiness import check_bounds, known_symbols, nonempty
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import Pass
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.rewrite import Names, all_einsums, drop_dead, map_regions
from dlc.passes.scalar_rules import Rules
from dlc.passes.separate import Factor, numerators_first, product

_SHORT = (F16, BF16)


@dataclass(frozen=True)
class DeferFactors(Pass):
    """Multiply, divide and add after a reduction what its reduced ranks do not need.

        A[m, p]  = SN[m, p] / SD[p]                    AV_sum[f, p] = sum(m) SN[m, p] * V[f, m]
        AV[f, p] = sum(m) A[m, p] * V[f, m]      ->    AV[f, p]     = AV_sum[f, p] / SD[p]

        Z[]      = sum(k) Y[] * A[k]             ->    Z_sum[] = sum(k) A[k];  Z[] = Z_sum[] * Y[]

    For attention M·P divisions become F·P (M keys, P queries, F value width), and two passes over A of the second pair
    become one, for its sum no longer waits for Y. Factors are found through point-wise producers; these stay where something
    else reads them. Past `max` and `min` addends move, and factors that cannot be negative. With `distribute`, sums are taken
    apart, too: `sum (x - c) * w = sum x * w - c * sum w`, and factors of `prod` move to the power of the number of elements.
    The first loses all digits where c is much larger than the differences (a layer norm's mean), the second overflows where the
    product of all does not, which is why neither is done unasked; `running-reduction` moves the centre along instead.

    Floating point is reassociated: a sum of m terms is off by m rounding errors of its terms as before, but partial sums
    may overflow that a division had kept small, and an infinite factor meets the sum instead of each term. Where nothing
    is reduced (an empty domain) the identity stays, not 0/0. Not done for 16-bit results, which the sum would be rounded to.

    Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), sections III-C and IV-D; Dao, FlashAttention-2 (2307.08691).
    """

    name: ClassVar[str] = "defer-factors"
    distribute: bool = False

    def apply(self, program: Program) -> Program:
        return _Rewriter(explicit_domains(program), self.distribute).run()

    def explain(self, program: Program) -> tuple[Refusal, ...]:
        """The reductions with a factor that stays inside, and why."""
        rewriter = _Rewriter(explicit_domains(program), self.distribute)
        rewriter.run()
        return tuple(rewriter.refusals)

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        known = {s.out for s in all_einsums(before)}
        made = [s for s in all_einsums(after) if s.out not in known and s.reduce is not None and s.reduce.op != "or"]
        return {"reductions": len(made)} if made else {}


@dataclass(frozen=True)
class Split:
    """A product taken apart: `inner` needs the reduced ranks, `outer` does not."""

    sign: int
    inner: tuple[Factor, ...]
    outer: tuple[Factor, ...]

    def times(self, other: Split) -> Split:
        return Split(self.sign * other.sign, self.inner + other.inner, self.outer + other.outer)


@dataclass
class _Rewriter:
    program: Program
    distribute: bool
    refusals: list[Refusal] = field(default_factory=list)
    deferred: int = 0

    def run(self) -> Program:
        self.names, self.types, self.symbols = Names(self.program), tensor_types(self.program), known_symbols(self.program)
        program = map_regions(self.program, self._region)
        return program if program is self.program else drop_dead(program)

    def _region(self, region: Region) -> Region:
        producers: dict[str, Einsum] = {}
        body: list[Stmt] = []
        before = self.deferred
        for stmt in region.body:
            if not isinstance(stmt, Einsum):
                body.append(stmt)
                continue
            if stmt.reduce is None and stmt.write is None:
                producers[stmt.out] = stmt
            body += self._deferred(stmt, producers)
        return region if self.deferred == before else Region(tuple(body), region.yields)

    def _deferred(self, step: Einsum, producers: Mapping[str, Einsum]) -> Sequence[Einsum]:
        if step.reduce is None or step.write is not None or len(step.outs) != 1:
            return [step]
        rule = _Rule(step, producers, self.names, self.types, self.symbols, self.distribute)
        try:
            new = rule.apply()
        except Refused as error:
            ranks = ", ".join(r.name for r in step.reduced)
            self.refusals.append(Refusal(step.out, ranks, error.reason, error.detail.replace("#", ""), step.loc))
            return [step]
        if new is None:
            return [step]
        self.deferred += 1
        return new


@dataclass
class _Rule:
    """The rewrite of one reduction."""

    step: Einsum
    producers: Mapping[str, Einsum]
    names: Names
    types: Mapping[str, TensorType]
    symbols: Mapping[str, SymbolFact]
    distribute: bool
    before: list[Einsum] = field(default_factory=list)
    made: list[Einsum] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts = Facts({}, self.symbols)

    def apply(self) -> list[Einsum] | None:
        step = self.step
        assert step.reduce is not None
        ranks = frozenset(r.name for r in step.reduced)
        match step.reduce.op:
            case "sum":
                splits = self.terms(step.expr, ranks)
                found = any(s.outer for s in splits)
            case "prod":
                splits = [self.split(step.expr, ranks)]
                found = bool(splits[0].outer)
            case "max" | "min":
                return self.extreme(ranks)
            case _:
                return None
        if not found:
            return None
        self.check(splits)
        return self.rewritten(splits)

    def check(self, splits: Sequence[Split]) -> None:
        step = self.step
        if step.dtype in _SHORT:
            raise Refused(Reason.NARROW, str(step.dtype))
        if not step.dtype.is_float and any(f.inverse for s in splits for f in s.outer):
            raise Refused(Reason.MONOID, "integer division")
        if step.reduce is not None and step.reduce.op == "prod":
            if not self.distribute:
                raise Refused(Reason.UNSTABLE, "a factor to the power of the number of elements; distribute=true allows it")
            if step.where is not None or not step.dtype.is_float:
                raise Refused(Reason.MONOID, "prod under a domain or of integers: its elements are not counted")
            if splits[0].sign < 0:
                raise Refused(Reason.SIGN, str(step.expr))

    # --- taking apart ---

    def split(self, e: Expr, ranks: frozenset[str]) -> Split:
        """`e` as a product; through a point-wise producer where that has a factor without the ranks."""
        if ranks.isdisjoint(e.variables):
            return Split(1, (), (Factor(e),))
        match e:
            case Apply("neg", (a,)):
                return Split(-1, (), ()).times(self.split(a, ranks))
            case Apply("mul", (a, b)):
                return self.split(a, ranks).times(self.split(b, ranks))
            case Apply("div", (a, b)):
                below = self.split(b, ranks)
                inverse = Split(
                    below.sign, tuple(f.flipped() for f in below.inner), tuple(f.flipped() for f in below.outer)
                )
                return self.split(a, ranks).times(inverse)
            case Access(tensor, _, None) if tensor in self.producers:
                return self.through(e, self.producers[tensor], ranks)
            case _:
                return Split(1, (Factor(e),), ())

    def through(self, e: Access, producer: Einsum, ranks: frozenset[str]) -> Split:
        """The producer's factors; what is left of it is an access, or a step of its own."""
        places = zip(producer.ranks, e.index, strict=True)
        own = frozenset(r.name for r, i in places if not ranks.isdisjoint(Index(i).variables))
        split = self.split(producer.expr, own)
        plain = all(isinstance(f.expr, Access) for f in split.inner)
        if not split.outer or not plain and all(isinstance(f.expr, Const) for f in split.outer):
            return Split(1, (Factor(e),), ())  # a constant is no reason for a step of its own
        env = {r.name: i for r, i in zip(producer.ranks, e.index, strict=True)}
        inner = split.inner
        if not plain:
            rest = product(numerators_first(inner), const(1, producer.dtype))
            name = self.names.fresh(f"{producer.out}_rest")
            self.before.append(replace(producer, outs=(name,), exprs=(rest,)))
            inner = (Factor(Access(name, tuple(var(r.name) for r in producer.ranks))),)

        def here(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
            return tuple(Factor(f.expr.substitute(env), f.inverse) for f in factors)

        return Split(split.sign, here(inner), here(split.outer))

    def terms(self, e: Expr, ranks: frozenset[str]) -> list[Split]:
        """`e` as a sum of products: one, unless sums are to be distributed and that frees a factor."""
        if not self.distribute:
            return [self.split(e, ranks)]
        found = self.expanded(e, ranks)
        return found if any(s.outer for s in found) else [self.split(e, ranks)]

    def expanded(self, e: Expr, ranks: frozenset[str]) -> list[Split]:
        match e:
            case _ if ranks.isdisjoint(e.variables):
                return [Split(1, (), (Factor(e),))]
            case Apply("add" | "sub" as op, (a, b)):
                sign = Split(-1 if op == "sub" else 1, (), ())
                return self.expanded(a, ranks) + [sign.times(s) for s in self.expanded(b, ranks)]
            case Apply("mul", (a, b)):
                return [s.times(t) for s in self.expanded(a, ranks) for t in self.expanded(b, ranks)]
            case Access(tensor, index, None) if tensor in self.producers:
                producer = self.producers[tensor]
                env = {r.name: i for r, i in zip(producer.ranks, index, strict=True)}
                inner = self.expanded(producer.expr.substitute(env), ranks)
                return inner if len(inner) > 1 or inner[0].outer else [self.split(e, ranks)]
            case _:
                return [self.split(e, ranks)]

    # --- putting together ---

    def rewritten(self, splits: Sequence[Split]) -> list[Einsum]:
        step = self.step
        assert step.reduce is not None
        made: list[Einsum] = []
        total: Expr | None = None
        for k, split in enumerate(splits):
            value, sum_ = self.inner(split, str(k + 1) if len(splits) > 1 else "")
            made.append(sum_)
            outer = numerators_first(split.outer)
            if step.reduce.op == "prod":
                outer = self.powers(outer)
            value = product((Factor(value), *outer), None)
            if total is None:
                total = value if split.sign > 0 else Apply("neg", (value,))
            else:
                total = Apply("add" if split.sign > 0 else "sub", (total, value))
        assert total is not None
        constant = all(isinstance(f.expr, Const) for s in splits for f in s.outer)
        return [*self.before, *made, *self.result(total, constant)]

    def inner(self, split: Split, suffix: str) -> tuple[Expr, Einsum]:
        """(the reduction of what is left, as read; the reduction): over the free ranks that it needs."""
        step = self.step
        assert step.reduce is not None
        expr = product(numerators_first(split.inner), const(1, step.dtype))
        return self.reduced(expr, f"{step.out}_{step.reduce.op}{suffix}")

    def reduced(self, expr: Expr, base: str) -> tuple[Expr, Einsum]:
        step = self.step
        used = expr.variables | (step.where.variables if step.where is not None else frozenset())
        ranks = tuple(r for r in step.ranks if r.name in used)
        name = self.names.fresh(base)
        new = einsum(name, ranks, expr, step.dtype, reduce=step.reduce, where=step.where, loc=step.loc)
        self.made.append(new)
        return Access(name, tuple(var(r.name) for r in ranks)), new

    def powers(self, factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
        count = int_expr(1)
        for r in self.step.reduced:
            count = count * r.extent
        exponent = Cast(self.step.dtype, Index(count))
        return tuple(Factor(Apply("pow", (f.expr, exponent)), f.inverse) for f in factors)

    def result(self, total: Expr, constant: bool) -> list[Einsum]:
        """The step that applies what moved, on the domain that the reduction had; the identity where it had nothing."""
        step = self.step
        assert step.reduce is not None
        extra: tuple[Einsum, ...] = ()
        if not constant:
            condition, extra = nonempty(step, self.facts, self.names.fresh)
            if condition is not None:
                zero = MONOIDS[step.reduce.op].identity((step.dtype,))[0]
                total = Piecewise(((condition, total),), zero)
        reduced = {r.name for r in step.reduced}
        where = conjunction(c for c in conjuncts(step.where) if reduced.isdisjoint(c.variables))
        new = replace(step, exprs=(total,), reduce=None, where=where)
        types = dict(self.types)
        for made in (*self.before, *self.made, *extra):
            collect_step_types(made, types)
        check_bounds(new, types, self.symbols)
        return [*extra, new]

    # --- maxima and minima ---

    def extreme(self, ranks: frozenset[str]) -> list[Einsum] | None:
        """Addends without the ranks move past a maximum or minimum, and so do factors that are never negative."""
        step = self.step
        inner, outer = _addends(step.expr, ranks)
        if inner is not None and outer is not None:
            self.check(())
            if not step.dtype.is_float:
                return None  # integers wrap: the greatest sum is not the sum of the greatest
            value, new = self.reduced(inner, f"{step.out}_{step.reduce.op}" if step.reduce else step.out)
            return [new, *self.result(Apply("add", (value, outer)), isinstance(outer, Const))]
        split = self.split(step.expr, ranks)
        if not split.outer:
            return None
        self.check([split])
        rules = Rules(lambda t: self.types[t].dtype, self.facts)
        for f in split.outer:
            if not rules.is_nonnegative(f.expr):
                raise Refused(Reason.SIGN, str(f.expr))
        if split.sign < 0 or not step.dtype.is_float:
            raise Refused(Reason.SIGN, str(step.expr))
        value, new = self.inner(split, "")
        total = product((Factor(value), *numerators_first(split.outer)), None)
        constant = all(isinstance(f.expr, Const) for f in split.outer)
        return [*self.before, new, *self.result(total, constant)]


def _addends(e: Expr, ranks: frozenset[str]) -> tuple[Expr | None, Expr | None]:
    """(what needs the ranks, what does not) of a sum."""
    if ranks.isdisjoint(e.variables):
        return None, e
    match e:
        case Apply("add" | "sub" as op, (a, b)):
            (x, y), (u, v) = _addends(a, ranks), _addends(b, ranks)
            return _joined(op, x, u), _joined(op, y, v)
        case _:
            return e, None


def _joined(op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    if b is None:
        return a
    if a is None:
        return Apply("neg", (b,)) if op == "sub" else b
    return Apply(op, (a, b))
