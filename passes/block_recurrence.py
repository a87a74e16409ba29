"""A causal sum of products with a decaying weight becomes a recurrence over blocks with a small state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from dlc.ir.domain import conjunction
from dlc.ir.dtype import BF16, F16
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, const, transform
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.program import Program, Region, Stmt, fresh_name
from dlc.ir.prove import as_index
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.rewrite import Names, drop_dead, map_regions
from dlc.passes.running_reduction import count_scans
from dlc.passes.separate import Factor, numerators_first, product


@dataclass(frozen=True)
class BlockRecurrence(Pass):
    """Sum over all earlier positions with the help of a state that summarises the blocks before.

        QK[p, m] = sum(e) Q[p, e] * K[m, e]                                where m <= p
        O[p, f]  = sum(m) QK[p, m] * pow(G, p - m) * V[m, f]               where m <= p
    ->  scan p1: (p + 63)//64 carry (ST = 0) {                             with row i and key j of the block
          O_past[i, f] = sum(e) Q[64*p1 + i, e] * ST[e, f]
          QK_block[i, j] = sum(e) Q[64*p1 + i, e] * K[64*p1 + j, e]        where j <= i
          O_block[i, f] = sum(j) QK_block[i, j] * pow(G, i - j) * V[64*p1 + j, f]  where j <= i
          O_rows[i, f] = O_past[i, f] * pow(G, i) + O_block[i, f]
          ST_next[e, f] = ST[e, f] * pow(G, 64) + sum(j) pow(G, 64 - j) * K[64*p1 + j, e] * V[64*p1 + j, f]
        }

    The work grows with p instead of p squared: the contraction over e is done after the one over m. Holds for `where m <= p`
    alone, over two ranks of one extent, when every factor has p or m or neither, but for weights `b^(p - m)` (`pow` or `exp`,
    b free of both), which split at the block's start: all exponents stay between 0 and p. The sum is reassociated; the
    powers are not divided.

    Source: Yang et al., Gated linear attention (arXiv 2312.06635), section 4.1; Sun et al., Retentive network (2307.08621).
    """

    name: ClassVar[str] = "block-recurrence"
    block: int = 64

    def __post_init__(self) -> None:
        if self.block < 1:
            raise BadOption(option="block", name=self.name, wanted="at least 1", value=self.block)

    def apply(self, program: Program) -> Program:
        return _Rewriter(explicit_domains(program), self.block).run()

    def explain(self, program: Program) -> tuple[Refusal, ...]:
        """The causal sums that stay as they are, and why."""
        rewriter = _Rewriter(explicit_domains(program), self.block)
        rewriter.run()
        return tuple(rewriter.refusals)

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        return {} if after is before else {"scans": count_scans(after) - count_scans(before)}


@dataclass
class _Rewriter:
    program: Program
    block: int
    refusals: list[Refusal] = field(default_factory=list)
    done: int = 0

    def run(self) -> Program:
        self.names = Names(self.program)
        program = map_regions(self.program, self._region)
        return program if program is self.program else drop_dead(program)

    def _region(self, region: Region) -> Region:
        made: dict[str, Einsum] = {}
        body: list[Stmt] = []
        before = self.done
        for stmt in region.body:
            if isinstance(stmt, Einsum) and stmt.write is None and len(stmt.outs) == 1:
                body += self._step(stmt, made)
                made[stmt.out] = stmt
            else:
                body.append(stmt)
        return region if self.done == before else Region(tuple(body), region.yields)

    def _step(self, step: Einsum, made: Mapping[str, Einsum]) -> Sequence[Stmt]:
        ranks = causal_ranks(step)
        if ranks is None:
            return [step]
        facts = Facts({}, self.program.facts)
        try:
            if facts.nonneg(self.block - ranks[0].extent):
                raise Refused(Reason.SHORT, f"{ranks[0].extent} in blocks of {self.block}")
            form = _Form(step, *ranks, made, self.names, self.block, facts)
            new = form.statements()
        except Refused as error:
            detail = error.detail.replace("#", "")
            self.refusals.append(Refusal(step.out, ranks[1].name, error.reason, detail, step.loc))
            return [step]
        self.done += 1
        return new


def causal_ranks(step: Einsum) -> tuple[Rank, Rank] | None:
    """(row, key) of a sum over the keys up to the row, two ranks of one extent."""
    if step.reduce is None or step.reduce.op != "sum" or len(step.reduced) != 1 or step.dtype in (F16, BF16):
        return None
    (m,) = step.reduced
    for p in step.ranks:
        if p.extent == m.extent and p.extent.const != 1 and step.where in _orders(m.name, p.name):
            return p, m
    return None


def _orders(m: str, p: str) -> tuple[Expr, ...]:
    """Ways to write `m <= p`."""
    return Apply("le", (Index(var(m)), Index(var(p)))), Apply("ge", (Index(var(p)), Index(var(m))))


@dataclass
class _Form:
    """The recurrence of one sum."""

    step: Einsum
    p: Rank
    m: Rank
    made: Mapping[str, Einsum]
    names: Names
    block: int
    facts: Facts
    summed: list[Rank] = field(default_factory=list)
    rows: list[Factor] = field(default_factory=list)
    keys: list[Factor] = field(default_factory=list)
    weights: list[Factor] = field(default_factory=list)
    sign: int = 1

    def __post_init__(self) -> None:
        self.taken = {r.name for r in self.step.all_ranks} | {n.lstrip("#") for n in self.step.symbols}
        self.distance = var(self.p.name) - var(self.m.name)
        self.sort(self.step.expr)
        if not any(self.m.name in f.expr.variables for f in self.keys):
            raise Refused(Reason.INSEPARABLE, f"no factor of '{self.step.out}' has '{self.m.name}'")

    # --- taking the operand apart ---

    def sort(self, e: Expr, inverse: bool = False) -> None:
        """Each factor to the row, the key, or the weights; through producers that have both."""
        has_p, has_m = self.p.name in e.variables, self.m.name in e.variables
        match e:
            case Apply("mul", (a, b)):
                self.sort(a, inverse)
                self.sort(b, inverse)
            case Apply("div", (a, b)):
                self.sort(a, inverse)
                self.sort(b, not inverse)
            case Apply("neg", (a,)):
                self.sign = -self.sign
                self.sort(a, inverse)
            case _ if not has_p or not has_m:
                (self.keys if has_m else self.rows).append(Factor(e, inverse))
            case Access(tensor, _, None) if tensor in self.made:
                self.through(e, self.made[tensor], inverse)
            case _ if self.is_weight(e):
                self.weights.append(Factor(e, inverse))
            case _:
                raise Refused(Reason.INSEPARABLE, str(e))

    def through(self, e: Access, producer: Einsum, inverse: bool) -> None:
        """A point-wise producer's factors, or those of a contraction, whose ranks are then summed here."""
        env = {r.name: i for r, i in zip(producer.ranks, e.index, strict=True)}
        allowed = (None, *_orders(self.m.name, self.p.name))
        where = None if producer.where is None else producer.where.substitute(env)
        if where not in allowed or producer.reduce is not None and (inverse or producer.reduce.op != "sum"):
            raise Refused(Reason.OPAQUE, str(e))
        for r in producer.reduced:
            name = fresh_name(r.name, self.taken)
            self.taken.add(name)
            self.summed.append(Rank(name, r.extent))
            env[r.name] = var(name)
        self.sort(producer.expr.substitute(env), inverse)

    def is_weight(self, e: Expr) -> bool:
        """Whether `e` is a power whose exponent is a multiple of `p - m`, by a base free of both."""
        match e:
            case Apply("pow", (base, exponent)):
                return self.is_free(base) and self.is_multiple(exponent)
            case Apply("exp" | "exp2", (exponent,)):
                return self.is_multiple(exponent)
            case _:
                return False

    def is_multiple(self, e: Expr) -> bool:
        match e:
            case Cast(dtype, distance):
                return dtype.is_float and as_index(distance) == self.distance
            case Apply("neg", (a,)):
                return self.is_multiple(a)
            case Apply("mul", (a, b)):
                return self.is_free(a) and self.is_multiple(b) or self.is_free(b) and self.is_multiple(a)
            case Apply("div", (a, b)):
                return self.is_free(b) and self.is_multiple(a)
            case _:
                return False

    def is_free(self, e: Expr) -> bool:
        return e.variables.isdisjoint({self.p.name, self.m.name})

    # --- the scan ---

    def statements(self) -> list[Stmt]:
        step, dtype, loc = self.step, self.step.dtype, self.step.loc
        self.whole_blocks = self.facts.simplify(self.p.extent % self.block).const == 0
        blocks = self.p.extent // self.block if self.whole_blocks else (self.p.extent + (self.block - 1)) // self.block
        outer = self.rank(f"{self.p.name}1", blocks)
        i, j = self.rank(f"{self.p.name}0", self.block), self.rank(f"{self.m.name}0", self.block)
        base, start = step.out, self.block * var(outer.name)
        row, key = {self.p.name: start + var(i.name)}, {self.m.name: start + var(j.name)}
        rows, keys = self.at(self.rows, row), self.at(self.keys, key)
        own = {n for f in keys for n in f.expr.variables} - {j.name, outer.name}
        free = [r for r in (*step.ranks, *self.summed) if r.name in own]
        weighing = {n for f in self.weights for n in f.expr.variables} - {self.p.name, self.m.name}
        free += [r for r in step.ranks if r.name in weighing and r not in free]
        state = {s: self.names.fresh(f"{base}_{s}") for s in ("init", "state", "sum", "next", "past", "block", "rows", "all")}
        at_state = Access(state["state"], tuple(var(r.name) for r in free))
        in_rows, in_keys = self.inside(row[self.p.name]), self.inside(key[self.m.name])
        causal = Apply("le", (Index(var(j.name)), Index(var(i.name))))
        ranks = tuple(i if r == self.p else r for r in step.ranks)
        summed = Reduce("sum", tuple(self.summed)) if self.summed else None

        def made(name: str, over: Sequence[Rank], factors: Sequence[Factor], reduce: Reduce | None, *where: Expr | None) -> Einsum:
            expr = product(numerators_first(tuple(factors)), const(1, dtype))
            domain = conjunction(w for w in where if w is not None)
            return einsum(name, tuple(over), expr, dtype, reduce=reduce, where=domain, loc=loc)

        past = made(state["past"], ranks, [*rows, Factor(at_state)], summed, in_rows)
        body: list[Einsum] = [past]
        near = [*rows, *keys]
        if self.summed:
            inner = [f for f in near if f.expr.variables & {r.name for r in self.summed}]
            used = {n for f in inner for n in f.expr.variables}
            over = [*(r for r in step.ranks if r.name in used), i, j]
            name = self.names.fresh(f"{base}_scores")
            body.append(made(name, over, inner, summed, in_rows, causal))
            near = [Factor(Access(name, tuple(var(r.name) for r in over))), *(f for f in near if f not in inner)]
        near += self.weighed(var(i.name) - var(j.name))
        body.append(made(state["block"], ranks, near, Reduce("sum", (j,)), in_rows, causal))
        index = tuple(var(r.name) for r in ranks)
        old = product((Factor(Access(state["past"], index)), *self.weighed(var(i.name))), None)
        both: Expr = Apply("add", (old, Access(state["block"], index)))
        both = both if self.sign > 0 else Apply("neg", (both,))
        body.append(einsum(state["rows"], ranks, both, dtype, where=in_rows, loc=loc))
        gained = [*self.weighed(self.block - var(j.name)), *keys]
        body.append(made(state["sum"], free, gained, Reduce("sum", (j,)), in_keys))
        kept = product((Factor(at_state), *self.weighed(int_expr(self.block))), None)
        total = Apply("add", (kept, Access(state["sum"], at_state.index)))
        body.append(einsum(state["next"], tuple(free), total, dtype, loc=loc))
        scan = Scan(
            outer, (Carry(state["state"], state["init"]),), tuple(body), (state["next"],),
            (self.names.fresh(f"{base}_last"),), ((state["all"], state["rows"]),), loc,
        )  # fmt: skip
        place = tuple(var(r.name) % self.block if r == self.p else var(r.name) for r in step.ranks)
        result = Access(state["all"], (var(self.p.name) // self.block, *place))
        start_of = einsum(state["init"], tuple(free), const(0, dtype), dtype, loc=loc)
        return [start_of, scan, replace(step, exprs=(result,), reduce=None, where=None)]

    def rank(self, base: str, extent: IntExpr | int) -> Rank:
        name = fresh_name(base, self.taken)
        self.taken.add(name)
        return Rank(name, int_expr(extent))

    @staticmethod
    def at(factors: Sequence[Factor], env: Mapping[str, IntExpr]) -> list[Factor]:
        return [Factor(f.expr.substitute(env), f.inverse) for f in factors]

    def inside(self, place: IntExpr) -> Expr | None:
        """Whether a row or key of the last block exists; None where all do."""
        return None if self.whole_blocks else Apply("lt", (Index(place), Index(self.p.extent)))

    def weighed(self, distance: IntExpr) -> list[Factor]:
        """The weights at another distance."""

        def visit(e: Expr) -> Expr | None:
            if isinstance(e, Cast) and as_index(e.arg) == self.distance:
                return Cast(e.dtype, Index(distance))
            return None

        return [Factor(transform(f.expr, visit), f.inverse) for f in self.weights]
