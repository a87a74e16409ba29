"""Writing a planned chain as a scan over blocks of its rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import frexp

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.dtype import DType
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, TensorType, einsum
from dlc.ir.expr import Access, Apply, Const, Expr, Index, accesses, const, transform
from dlc.ir.extent import int_expr, var, variables
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Stmt, fresh_name
from dlc.passes.emptiness import nonempty
from dlc.passes.reduction_chains import Kind, Member, ordered
from dlc.passes.rewrite import Names
from dlc.passes.running_plan import FoldPlan, Part, Plan, Reference, guarded_read
from dlc.passes.separate import Factor, Power, numerators_first, product

LARGEST = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38}
_REFERENCE = "@reference"


@dataclass(frozen=True)
class State:
    """One carry of the scan: the names of its value before the block, of the block alone, after it, and at the end."""

    dtype: DType
    init: str
    run: str
    block: str
    next: str
    final: str


@dataclass
class RunningForm:
    """The scan of one plan, and the statements around it."""

    plan: Plan
    names: Names
    types: Mapping[str, TensorType]
    block: int
    facts: Facts
    inits: list[Einsum] = field(default_factory=list)
    body: list[Einsum] = field(default_factory=list)
    carries: list[State] = field(default_factory=list)
    after: dict[str, list[Einsum]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chain = self.plan.chain
        taken = {r.name for m in chain.members.values() for r in m.step.all_ranks}
        taken |= {n.lstrip("#") for m in chain.members.values() for n in m.step.symbols}
        base = chain.rank + "_" * chain.rank[-1].isdigit()
        self.outer = Rank(fresh_name(f"{base}1", taken), (chain.extent + (self.block - 1)) // self.block)
        self.inner = Rank(fresh_name(f"{base}0", taken | {self.outer.name}), int_expr(self.block))
        self.whole = self.block * var(self.outer.name) + var(self.inner.name)
        self.blocks: dict[str, str] = {}  # local tensor -> its name in the body
        self.now: dict[str, str] = {}  # fold or value -> its value after the block
        self.fixes: dict[Expr, str] = {}
        self.terms: dict[tuple[Expr, Expr | None], str] = {}
        self.pending: dict[str, tuple[FoldPlan, list[State]]] = {}
        self.before: dict[str, str] = {}  # direct fold -> its value before the block

    # --- the region ---

    def rewritten(self, body: Sequence[Stmt]) -> list[Stmt]:
        """The statements with the chain replaced: what it needs, the scan, and what depends on it."""
        chain, plans = self.plan.chain, {id(p.member.step): p for p in self.plan.folds}
        members = ordered(chain, body)
        for member in members:
            if member.kind is Kind.LOCAL:
                self.local(member)
            elif member.kind is Kind.FOLD:
                self.fold(plans[id(member.step)])
        scan = Scan(
            self.outer,
            tuple(Carry(s.run, s.init) for s in self.carries),
            tuple(self.body),
            tuple(s.next for s in self.carries),
            tuple(s.final for s in self.carries),
            loc=members[-1].step.loc,
        )
        return self._placed(body, scan)

    def _placed(self, body: Sequence[Stmt], scan: Scan) -> list[Stmt]:
        """Statements that need nothing of the chain come before the scan, the others after it, in their order."""
        chain = self.plan.chain
        ids = {id(m.step): m for m in chain.members.values()}
        late = {o for m in chain.members.values() if m.kind is not Kind.LOCAL for o in m.step.outs}
        last = max(k for k, s in enumerate(body) if id(s) in ids)
        first: list[Stmt] = []
        rest: list[Stmt] = []
        for stmt in body[: last + 1]:
            member = ids.get(id(stmt))
            if member is None or member.kind is Kind.VALUE:
                if late.isdisjoint(stmt.reads):
                    first.append(stmt)
                else:
                    late.update(stmt.outs)
                    rest.append(stmt)
            elif member.kind is Kind.FOLD:
                rest += self.after.get(member.step.out, [])
        return [*first, *self.inits, scan, *rest, *body[last + 1 :]]

    # --- steps of the body ---

    def where(self, step: Einsum, rank: str) -> Expr | None:
        """The step's domain in a block, which may reach beyond the rank's end."""
        extent = self.plan.chain.extent
        inside = Apply("lt", (Index(self.whole), Index(extent)))
        short = self.facts.simplify(extent % self.block).const != 0
        return conjunction((*([inside] if short else []), *(self.here(c, rank) for c in conjuncts(step.where))))

    def here(self, e: Expr, rank: str) -> Expr:
        """`e` at the block's element: data by its place in the whole, what the block made by its place in the block."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Access):
                return None
            if node.tensor in self.blocks:
                index = list(node.index)
                index[self.plan.chain.dims[node.tensor]] = var(self.inner.name)
                return Access(self.blocks[node.tensor], tuple(index))
            if self.plan.chain.is_running(node.tensor):
                return Access(self.current(node.tensor), node.index)
            return None

        return transform(e.substitute({rank: self.whole}), visit)

    def current(self, tensor: str) -> str:
        """The name of a fold's or value's state after the block; a value is computed when it is first asked for."""
        if tensor in self.now:
            return self.now[tensor]
        step, expr = self.plan.chain.members[tensor].step, self.plan.chain.members[tensor].step.expr
        if tensor in self.pending:
            plan, states = self.pending[tensor]
            expr = self.total(plan, [s.next for s in states])
        expr = self.here(expr, "")
        name = self.names.fresh(f"{tensor}_now")
        self.body.append(einsum(name, step.ranks, expr, step.dtype, where=step.where, loc=step.loc))
        self.now[tensor] = name
        return name

    def in_block(self, ranks: Sequence[Rank], rank: str) -> tuple[Rank, ...]:
        return tuple(self.inner if r.name == rank else r for r in ranks)

    def local(self, member: Member) -> None:
        """What makes the data, for one block."""
        step, rank = member.step, member.rank
        name = self.names.fresh(f"{step.out}_block")
        expr, where = self.here(step.expr, rank), self.where(step, rank)
        ranks = self.in_block(step.ranks, rank)
        self.body.append(replace(step, outs=(name,), ranks=ranks, exprs=(expr,), where=where))
        self.blocks[step.out] = name

    # --- folds ---

    def fold(self, plan: FoldPlan) -> None:
        if plan.parts:
            self.corrected(plan)
        else:
            self.plain(plan.member)

    def plain(self, member: Member) -> None:
        """A fold of data alone: its monoid joins the blocks."""
        step, rank = member.step, member.rank
        assert step.reduce is not None
        states = [self.state(o, o, t) for o, t in zip(step.outs, step.dtypes, strict=True)]
        monoid = MONOIDS[step.reduce.op]
        for state, zero in zip(states, monoid.identity(step.dtypes), strict=True):
            self.start(state, step, zero)
        reduce = Reduce(step.reduce.op, self.in_block(step.reduced, rank), step.reduce.accumulator)
        exprs = tuple(self.here(e, rank) for e in step.exprs)
        outs = tuple(s.block for s in states)
        self.body.append(
            replace(step, outs=outs, exprs=exprs, where=self.where(step, rank), reduce=reduce, order=None)
        )
        index = tuple(var(r.name) for r in step.ranks)
        sides = {f"a{k}": s.run for k, s in enumerate(states)} | {f"b{k}": s.block for k, s in enumerate(states)}
        for state, joined in zip(states, monoid.combine(), strict=True):
            expr = transform(joined, lambda n: Access(sides[n.tensor], index) if isinstance(n, Access) else None)
            self.body.append(einsum(state.next, step.ranks, expr, state.dtype, loc=step.loc))
        for out, state in zip(step.outs, states, strict=True):
            self.now[out], self.before[out] = state.next, state.run

    def corrected(self, plan: FoldPlan) -> None:
        """A sum of terms: each has its state, corrected when its references change."""
        step = plan.member.step
        states = []
        for k, part in enumerate(plan.parts):
            base = step.out if plan.is_direct else f"{step.out}_sum{k + 1 if len(plan.parts) > 1 else ''}"
            state = self.state(base, step.out if plan.is_direct else self.names.fresh(base), step.dtype)
            self.start(state, step, const(0, step.dtype))
            self.sum_block(plan.member, part, state)
            index = tuple(var(r.name) for r in step.ranks)
            old: Expr = Access(state.run, index)
            for reference, power in zip(part.references, part.term.powers, strict=True):
                old = Apply("mul", (old, self.fix(reference, power)))
            expr = Apply("add", (old, Access(state.block, index)))
            self.body.append(einsum(state.next, step.ranks, expr, state.dtype, loc=step.loc))
            states.append(state)
        if plan.is_direct:
            self.now[step.out] = states[0].next
            return
        self.pending[step.out] = (plan, states)
        self.after[step.out] = self.result(plan, states)

    def result(self, plan: FoldPlan, states: Sequence[State]) -> list[Einsum]:
        """The fold's result from its terms, after the scan."""
        step = plan.member.step
        total = self.total(plan, [s.final for s in states])
        extra: tuple[Einsum, ...] = ()
        if any(not isinstance(f.expr, Const) for p in plan.parts for f in p.term.outer):
            condition, extra = nonempty(step, self.facts, self.names.fresh)
            if condition is not None:
                total = Apply("select", (condition, total, const(0, step.dtype)))
        return [*extra, einsum(step.out, step.ranks, total, step.dtype, loc=step.loc)]

    def total(self, plan: FoldPlan, names: Sequence[str]) -> Expr:
        step = plan.member.step
        index = tuple(var(r.name) for r in step.ranks)
        total: Expr | None = None
        for name, part in zip(names, plan.parts, strict=True):
            value = product((Factor(Access(name, index)), *numerators_first(part.term.outer)), None)
            if total is None:
                total = Apply("neg", (value,)) if part.term.sign < 0 else value
            else:
                total = Apply("sub" if part.term.sign < 0 else "add", (total, value))
        assert total is not None
        return total

    def sum_block(self, member: Member, part: Part, state: State) -> None:
        """A term's sum over the block, with its references as they are after the block."""
        step, rank = member.step, member.rank
        assert step.reduce is not None
        where, one = self.where(step, rank), const(1, step.dtype)
        factors = tuple(Factor(self.here(f.expr, rank), f.inverse) for f in part.term.local)
        if part.references:
            pairs = zip(part.references, part.term.powers, strict=True)
            powers = tuple(Factor(self.guarded(p.factor.expr, r, rank), p.factor.inverse) for r, p in pairs)
            factors = (Factor(self.shared(product(numerators_first(powers), one), member, where)), *factors)
        reduce = Reduce("sum", self.in_block(step.reduced, rank), step.reduce.accumulator)
        expr = product(numerators_first(factors), one)
        self.body.append(einsum(state.block, step.ranks, expr, step.dtype, reduce=reduce, where=where, loc=step.loc))

    def guarded(self, e: Expr, reference: Reference, rank: str) -> Expr:
        """A power at the block's element: its reference is finite, so that all -inf so far makes 0 and not NaN."""
        kept = self.plan.chain.inlined(e, Kind.VALUE)
        name = reference.read.tensor
        marked = transform(kept, lambda n: _marked(n, reference))
        dtype = self.types[name].dtype

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Access) and node.tensor in (_REFERENCE, name):
                return _clamped(Access(self.now[name], node.index), reference, dtype)
            return None

        return self.here(transform(marked, visit), rank)

    def shared(self, e: Expr, member: Member, where: Expr | None) -> Access:
        """A step of the body for the powers `e`; the same for all sums that need it, whatever they name their ranks."""
        extents = {**member.step.extents, self.inner.name: self.inner.extent}
        order = [n for n in _rank_names((e, *conjuncts(where))) if n in extents]
        env = {n: var(f"@{k}") for k, n in enumerate(order)}
        key = (e.substitute(env), None if where is None else where.substitute(env))
        if key not in self.terms:
            mixed = [a.tensor for a in accesses(member.step.expr) if a.tensor in self.plan.chain.dims]
            mixed = [t for t in mixed if self.plan.chain.is_running(t)]
            name = self.names.fresh(f"{mixed[0]}_block" if mixed else f"{member.step.out}_terms")
            ranks = tuple(Rank(n, extents[n]) for n in order)
            self.body.append(einsum(name, ranks, e, member.step.dtype, where=where, loc=member.step.loc))
            self.terms[key] = name
        return Access(self.terms[key], tuple(var(n) for n in order))

    def fix(self, reference: Reference, power: Power) -> Access:
        """What a power changes by when its reference does: 1 where it does not, for infinities and NaN have no difference."""
        name = reference.read.tensor
        step = self.plan.chain.members[name].step
        index = tuple(var(r.name) for r in step.ranks)
        new, old = Access(self.now[name], index), Access(self.before[name], index)
        if reference.sign < 0:
            moved, change = Apply("gt", (new, old)), Apply("sub", (old, new))
        else:
            moved, change = Apply("lt", (new, old)), Apply("sub", (new, old))
        expr = power.base(product((Factor(change), *reference.scales), None))
        made = Apply("select", (moved, expr, const(1, step.dtype)))
        if made not in self.fixes:
            self.fixes[made] = self.names.fresh(f"{name}_fix")
            self.body.append(einsum(self.fixes[made], step.ranks, made, step.dtype, loc=step.loc))
        return Access(self.fixes[made], reference.read.index)

    # --- states ---

    def state(self, base: str, final: str, dtype: DType) -> State:
        fresh = self.names.fresh
        made = State(
            dtype, fresh(f"{base}_init"), fresh(f"{base}_run"), fresh(f"{base}_block"), fresh(f"{base}_next"), final
        )
        self.carries.append(made)
        return made

    def start(self, state: State, step: Einsum, zero: Const) -> None:
        self.inits.append(einsum(state.init, step.ranks, zero, state.dtype, loc=step.loc))


def _marked(e: Expr, reference: Reference) -> Expr | None:
    """The program's own guard of an infinite reference becomes the running one."""
    if isinstance(e, Access) or not any(reference.guarded):
        return None
    read, _ = guarded_read(e)
    return None if read is None or read.tensor != reference.read.tensor else Access(_REFERENCE, read.index)


def _clamped(e: Expr, reference: Reference, dtype: DType) -> Expr:
    """The reference as a finite number at the monoid's identity, and at the other infinity where the program says so."""
    bound = LARGEST[dtype.name]
    for s in reference.scales:
        size = float(s.expr.value) if isinstance(s.expr, Const) else 1.0
        grown = 1 / size if s.inverse else size
        bound /= 2.0 ** max(0, frexp(grown)[1])  # scaled, it is to be finite, too
    low, high = ("max", -bound), ("min", bound)
    identity, other = (low, high) if reference.sign < 0 else (high, low)
    e = Apply(identity[0], (e, const(identity[1], dtype)))
    return Apply(other[0], (e, const(other[1], dtype))) if reference.guarded[1] else e


def _rank_names(exprs: Sequence[Expr]) -> list[str]:
    """Ranks in the order of their first use: reads first, by position, so that it does not depend on names."""
    found: dict[str, None] = {}
    for e in exprs:
        for a in accesses(e):
            for i in a.index:
                found.update(dict.fromkeys(sorted(variables(i))))
    for e in exprs:
        found.update(dict.fromkeys(sorted(e.variables)))
    return list(found)
