"""Writing a planned chain as a scan over blocks of its rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import comb, frexp

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.dtype import DType
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index, Piecewise, accesses, const, transform
from dlc.ir.extent import int_expr, maximum, minimum, var, variables
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Stmt, collect_step_types, fresh_name
from dlc.passes.emptiness import check_bounds, nonempty
from dlc.passes.reduction_chains import Kind, Member, ordered
from dlc.passes.rewrite import Names
from dlc.passes.running_plan import Centre, FoldPlan, Part, Plan, Reference, guarded_read
from dlc.passes.separate import Factor, Power, numerators_first, product, signed_sum, size_of

LARGEST = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38}
_REFERENCE = "@reference"


@dataclass(frozen=True)
class State:
    """One carry of the scan: the names of its value before the block, of the block alone, after it, and at the end.

    Attributes:
        final: the carry at the end of the scan; with several parts, of each.
        merged: the whole.
    """

    dtype: DType
    init: str
    run: str
    block: str
    next: str
    final: str
    merged: str


@dataclass
class RunningForm:
    """The scan of one plan, and the statements around it."""

    plan: Plan
    names: Names
    types: Mapping[str, TensorType]
    block: int
    facts: Facts
    parts: int = 1
    inits: list[Einsum] = field(default_factory=list)
    body: list[Einsum] = field(default_factory=list)
    carries: list[State] = field(default_factory=list)
    after: dict[str, list[Einsum]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chain = self.plan.chain
        taken = {r.name for m in chain.members.values() for r in m.step.all_ranks}
        taken |= {n.lstrip("#") for m in chain.members.values() for n in m.step.symbols}
        base = chain.rank + "_" * chain.rank[-1].isdigit()
        shares = self.block if self.parts == 1 else self.block * self.parts
        known = self.facts if self.parts == 1 else Facts()  # what a symbol's divisor says of both is beyond the prover
        self.whole_blocks = known.simplify(chain.extent % shares).const == 0
        blocks = chain.extent // self.block if self.whole_blocks else (chain.extent + (self.block - 1)) // self.block
        self.outer = Rank(fresh_name(f"{base}1", taken), (blocks + (self.parts - 1)) // self.parts)
        self.inner = Rank(fresh_name(f"{base}0", taken | {self.outer.name}), int_expr(self.block))
        self.whole = self.block * var(self.outer.name) + var(self.inner.name)
        self.part = Rank(fresh_name(f"{base}2", taken | {self.outer.name, self.inner.name}), int_expr(self.parts))
        if self.parts > 1:
            self.whole = self.whole + self.block * self.outer.extent * var(self.part.name)
        self.joins: list[Callable[[], Sequence[Einsum]]] = []
        self.blocks: dict[str, str] = {}  # local tensor -> its name in the body
        self.now: dict[str, str] = {}  # fold or value -> its value after the block
        self.fixes: dict[Expr, str] = {}
        self.terms: dict[tuple[Expr, Expr | None], str] = {}
        self.centres: dict[Centre, tuple[str, str]] = {}
        self.joining = False
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
        return self._placed(body, [*self.inits, scan] if self.parts == 1 else self.joined(scan))

    def joined(self, scan: Scan) -> list[Stmt]:
        """The scan of every part at once, and what joins the parts: each is corrected as an earlier block would be."""
        whole_parts = {s.final for s in self.carries}
        inside = whole_parts | {o for e in (*self.inits, *self.body) for o in e.outs} | {c.name for c in scan.carries}
        inits = [self.parted(e, inside) for e in self.inits]
        scan = replace(scan, body=tuple(self.parted(e, inside) for e in self.body))
        self.body, self.fixes, self.centres = [], {}, {}
        self.now = {o: o for o in self.before}
        self.before = {o: s.final for o in self.before for s in self.carries if s.merged == o}
        self.joining = True
        steps: list[Einsum] = []
        for join in self.joins:
            folds = join()
            for e in (*self.body, *folds):
                if not whole_parts.isdisjoint(e.reads):
                    ranks, e = e.ranks, self.parted(e, whole_parts)
                    if e.reduce is not None:
                        e = replace(e, ranks=ranks)
                    else:
                        whole_parts |= set(e.outs)
                steps.append(e)
            self.body = []
        return [*inits, scan, *steps]

    def parted(self, e: Einsum, inside: set[str]) -> Einsum:
        """The step for every part, as the tensors `inside` are that it reads."""
        place = var(self.part.name)

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Access) and node.tensor in inside:
                return Access(node.tensor, (place, *node.index))
            return None

        return replace(e, ranks=(self.part, *e.ranks), exprs=tuple(transform(x, visit) for x in e.exprs))

    def join(self, step: Einsum, ranks: tuple[Rank, ...], states: Sequence[State], values: Callable[[], tuple[Expr, ...]]) -> None:
        """Remember how the parts of some states become one."""
        assert step.reduce is not None
        reduce = Reduce(step.reduce.op, (self.part,), step.reduce.accumulator)
        outs, dtypes = tuple(s.merged for s in states), tuple(s.dtype for s in states)
        self.joins.append(lambda: [Einsum(outs, ranks, values(), dtypes, reduce, loc=step.loc)])

    def _placed(self, body: Sequence[Stmt], scan: Sequence[Stmt]) -> list[Stmt]:
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
        return [*first, *scan, *rest, *body[last + 1 :]]

    # --- steps of the body ---

    def where(self, step: Einsum, rank: str) -> Expr | None:
        """The step's domain in a block, which may reach beyond the rank's end."""
        extent = self.plan.chain.extent
        inside = Apply("lt", (Index(self.whole), Index(extent)))
        return conjunction((*([] if self.whole_blocks else [inside]), *(self.here(c, rank) for c in conjuncts(step.where))))

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
        where = None if step.where is None or step.reduce is not None else self.here(step.where, "")
        name = self.names.fresh(f"{tensor}_now")
        self.body.append(einsum(name, step.ranks, expr, step.dtype, where=where, loc=step.loc))
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
            self.plain(plan)

    def plain(self, plan: FoldPlan) -> None:
        """A fold of data alone: its monoid joins the blocks."""
        step, rank = plan.member.step, plan.member.rank
        assert step.reduce is not None
        if plan.is_direct:
            states = [self.state(o, o, t) for o, t in zip(step.outs, step.dtypes, strict=True)]
        else:
            base = f"{step.out}_{step.reduce.op}"
            states = [self.state(base, self.names.fresh(base), step.dtype)]
        monoid = MONOIDS[step.reduce.op]
        for state, zero in zip(states, monoid.identity(step.dtypes), strict=True):
            self.start(state, step, zero)
        reduce = Reduce(step.reduce.op, self.in_block(step.reduced, rank), step.reduce.accumulator)
        operands = step.exprs if plan.operand is None else (plan.operand,)
        exprs = tuple(self.here(e, rank) for e in operands)
        outs = tuple(s.block for s in states)
        self.body.append(
            replace(step, outs=outs, exprs=exprs, where=self.where(step, rank), reduce=reduce, order=None, pitch=0)
        )
        index = tuple(var(r.name) for r in step.ranks)
        sides = {f"a{k}": s.run for k, s in enumerate(states)} | {f"b{k}": s.block for k, s in enumerate(states)}
        for state, joined in zip(states, monoid.combine(), strict=True):
            expr = transform(joined, lambda n: Access(sides[n.tensor], index) if isinstance(n, Access) else None)
            self.body.append(einsum(state.next, step.ranks, expr, state.dtype, loc=step.loc))
        self.join(step, step.ranks, states, lambda: tuple(Access(s.final, index) for s in states))
        if not plan.is_direct:
            self.later(plan, [states[0]])
            return
        for out, state in zip(step.outs, states, strict=True):
            self.now[out], self.before[out] = state.next, state.run

    def later(self, plan: FoldPlan, states: list[State]) -> None:
        """The fold's value is made of its states: when it is asked for in the body, and after the scan."""
        self.pending[plan.member.step.out] = (plan, states)
        self.after[plan.member.step.out] = self.result(plan, states)

    def corrected(self, plan: FoldPlan) -> None:
        """A sum of terms: each has its states, corrected when its references change."""
        step = plan.member.step
        states = []
        for k, part in enumerate(plan.parts):
            many = str(k + 1) if len(plan.parts) > 1 else ""
            op = step.reduce.op if step.reduce is not None else ""
            base = step.out if plan.is_direct else f"{step.out}_{op}{many}"
            final = step.out if plan.is_direct else self.names.fresh(base)
            if part.centre is not None and part.term.shift is not None:
                states.append(self.moments(plan.member, part, base, final, part.term.shift.power))
            else:
                states.append(self.term(plan.member, part, base, final))
        if plan.is_direct:
            self.now[step.out] = states[0].next
        else:
            self.later(plan, states)

    def term(self, member: Member, part: Part, base: str, final: str) -> State:
        """The running sum (or product) of one term without a shift."""
        step = member.step
        assert step.reduce is not None
        state = self.state(base, final, step.dtype)
        self.start(state, step, MONOIDS[step.reduce.op].identity((step.dtype,))[0])
        factors = self.factors(part, member)
        self.fold_block(member, state, step.ranks, product(numerators_first(factors), const(1, step.dtype)))
        index = tuple(var(r.name) for r in step.ranks)
        old = self.fixed(Access(state.run, index), part, member)
        joined = Apply("mul" if step.reduce.op == "prod" else "add", (old, Access(state.block, index)))
        self.body.append(einsum(state.next, step.ranks, joined, state.dtype, loc=step.loc))
        self.join(step, step.ranks, [state], lambda: (self.fixed(Access(state.final, index), part, member),))
        return state

    def moments(self, member: Member, part: Part, base: str, final: str, power: int) -> State:
        """`sum w (x - c)^k` for k up to `power`: when c moves by d, each gets `d^(k-i)` of the lower ones, binomially."""
        step, dtype = member.step, member.step.dtype
        assert part.centre is not None and part.term.shift is not None
        new, move = self.centre(part.centre, member, part.sign)
        data = tuple(replace(a, sign=a.sign * part.sign) for a in part.term.shift.data)
        x = self.here(signed_sum(data, dtype), member.rank)
        deviation: Expr = self.shared(Apply("sub", (x, new)), member, self.where(step, member.rank), f"{step.out}_deviations")
        if part.sign < 0:
            deviation = Apply("neg", (deviation,))
        factors = self.factors(part, member)
        counted = not factors and step.where is None and len(step.reduced) == 1
        runs: list[Expr] = []
        finals: list[tuple[State, tuple[Rank, ...]] | None] = []
        for k in range(power + 1):
            if k == 0 and counted:
                runs.append(self.seen(member.step.dtype, before=True))
                finals.append(None)
                continue
            name = base if k == power else f"{base}_moment{k}"
            value = product(numerators_first((*factors, *[Factor(deviation)] * k)), const(1, dtype))
            names = {n for f in (*part.term.local, *(p.factor for p in part.term.powers)) for n in f.expr.variables}
            ranks = step.ranks if k or step.where is not None else tuple(r for r in step.ranks if r.name in names)
            state = self.state(name, final if k == power else self.names.fresh(f"{name}_last"), dtype)
            self.start(state, replace(step, ranks=ranks), const(0, dtype))
            self.fold_block(member, state, ranks, value)
            index = tuple(var(r.name) for r in ranks)
            runs.append(Access(state.run, index))
            old = self.fixed(_moved(runs, move, dtype), part, member)
            joined = Apply("add", (old, Access(state.block, index)))
            self.body.append(einsum(state.next, ranks, joined, dtype, loc=step.loc))
            finals.append((state, ranks))
            self.join(step, ranks, [state], partial(self.moved_parts, member, part, tuple(finals)))
        return state

    def moved_parts(
        self, member: Member, part: Part, states: tuple[tuple[State, tuple[Rank, ...]] | None, ...]
    ) -> tuple[Expr]:
        """A moment of each part about the centre of the whole."""
        assert part.centre is not None
        dtype = member.step.dtype
        moments: list[Expr] = []
        for s in states:
            if s is None:
                moments.append(self.seen(dtype, before=True))
            else:
                moments.append(Access(s[0].final, tuple(var(r.name) for r in s[1])))
        if len(moments) == 1:
            return (self.fixed(moments[0], part, member),)
        _, move = self.centre(part.centre, member, part.sign)
        return (self.fixed(_moved(moments, move, dtype), part, member),)

    def factors(self, part: Part, member: Member) -> tuple[Factor, ...]:
        """A term's factors at the block's element, with its references as they are after the block."""
        rank, one = member.rank, const(1, member.step.dtype)
        factors = tuple(Factor(self.here(f.expr, rank), f.inverse) for f in part.term.local)
        if not part.references:
            return factors
        pairs = zip(part.references, part.term.powers, strict=True)
        powers = tuple(Factor(self.guarded(p.factor.expr, r, rank), p.factor.inverse) for r, p in pairs)
        together = product(numerators_first(powers), one)
        return (Factor(self.shared(together, member, self.where(member.step, rank), f"{member.step.out}_powers")), *factors)

    def fold_block(self, member: Member, state: State, ranks: tuple[Rank, ...], expr: Expr) -> None:
        """The block's own sum, or product."""
        step = member.step
        assert step.reduce is not None
        reduce = replace(step.reduce, ranks=self.in_block(step.reduced, member.rank))
        where = self.where(step, member.rank)
        self.body.append(einsum(state.block, ranks, expr, state.dtype, reduce=reduce, where=where, loc=step.loc))

    def fixed(self, old: Expr, part: Part, member: Member) -> Expr:
        """The old value of a term, corrected for what its references changed; a product's, once for each element seen."""
        step = member.step
        for reference, power in zip(part.references, part.term.powers, strict=True):
            fix: Expr = self.fix(reference, power)
            if step.reduce is not None and step.reduce.op == "prod":
                fix = Apply("pow", (fix, self.counted(self.seen(step.dtype, before=True), member)))
            old = Apply("mul", (old, fix))
        return old

    @staticmethod
    def counted(along: Expr, member: Member) -> Expr:
        """Elements that a fold has seen: as many along the chain's rank, times those of its other ranks."""
        others = int_expr(1)
        for r in member.step.reduced:
            others = others * (r.extent if r.name != member.rank else 1)
        return along if others.const == 1 else Apply("mul", (along, Cast(member.step.dtype, Index(others))))

    def seen(self, dtype: DType, *, before: bool) -> Expr:
        """How many elements of the rank came before this block, or up to its end."""
        extent, start = self.plan.chain.extent, self.block * var(self.outer.name)
        end = start + self.block
        whole = self.block * self.outer.extent
        if self.joining:
            start, end = whole, extent
        if self.parts > 1:  # of this part, which may begin beyond the end
            here = maximum(extent - whole * var(self.part.name), int_expr(0))
            return Cast(dtype, Index(minimum(start if before else end, here if before or not self.joining else extent)))
        if before:
            return Cast(dtype, Index(start))
        return Cast(dtype, Index(end if self.whole_blocks else minimum(end, extent)))

    def centre(self, centre: Centre, member: Member, sign: int) -> tuple[Access, Expr]:
        """(the centre after the block, what the shift gains by its move), each as read by the member."""
        if centre not in self.centres:
            name = centre.read.tensor
            step = self.plan.chain.members[name].step
            index = tuple(var(r.name) for r in step.ranks)
            before, after = Access(self.before[name], index), Access(self.now[name], index)
            old, new = self.centred(centre, before, step, True), self.centred(centre, after, step, False)
            base = f"{name}_mean" if centre.mean else f"{name}_finite"
            made = tuple(self.names.fresh(f"{base}_{s}") for s in ("next", "run", "move"))
            difference = Apply("sub", (Access(made[1], index), Access(made[0], index)))
            for out, expr in zip(made, (new, old, difference), strict=True):
                self.body.append(einsum(out, step.ranks, expr, step.dtype, loc=step.loc))
            self.centres[centre] = made[0], made[2]
        new_name, move = self.centres[centre]
        moved: Expr = Access(move, centre.read.index)
        return Access(new_name, centre.read.index), moved if sign > 0 else Apply("neg", (moved,))

    def centred(self, centre: Centre, value: Access, step: Einsum, before: bool) -> Expr:
        """The centre from the state of its fold: finite where nothing has been seen."""
        dtype, one, zero = step.dtype, const(1, step.dtype), const(0, step.dtype)
        if not centre.mean:
            sign = -1 if step.reduce is not None and "max" in step.reduce.op else 1
            return _clamped(value, Reference(value, (), sign), dtype)
        if centre.count is None:
            count = self.seen(dtype, before=before)
            may_be_0 = before or self.parts > 1  # a part may have nothing to count
            return Apply("div", (value, Apply("max", (count, one)) if may_be_0 else count))
        weights = self.plan.chain.members[centre.count.tensor].step
        name = (self.before if before else self.now)[centre.count.tensor]
        place = dict(zip(centre.read.index, step.ranks, strict=True))
        index = tuple(var(place[i].name) if i in place else i for i in centre.count.index)
        assert len(weights.ranks) == len(index)
        weight = Access(name, index)
        some = Apply("select", (Apply("eq", (weight, zero)), one, weight))
        return Apply("div", (value, some))

    # --- results ---

    def result(self, plan: FoldPlan, states: Sequence[State]) -> list[Einsum]:
        """The fold's result from its terms, after the scan; the identity where there was nothing to fold."""
        step = plan.member.step
        assert step.reduce is not None
        total = self.total(plan, [s.merged for s in states])
        outer = [f.expr for p in plan.parts for f in p.term.outer] + [e for _, e in plan.outer]
        moved = any(not isinstance(e, Const) for e in outer)
        if not moved and not plan.exposed:
            return [einsum(step.out, step.ranks, total, step.dtype, loc=step.loc)]
        condition, extra = nonempty(step, self.facts, self.names.fresh)
        if moved and condition is not None:
            zero = MONOIDS[step.reduce.op].identity((step.dtype,))[0]
            total = Piecewise(((condition, total),), zero)
        if plan.exposed:
            total = Apply("select", (self.all_infinite(plan, condition), const(float("nan"), step.dtype), total))
        new = einsum(step.out, step.ranks, total, step.dtype, loc=step.loc)
        types = dict(self.types)
        for s in states:
            start = next(e for e in self.inits if e.outs == (s.init,))
            types[s.merged] = TensorType(s.dtype, tuple(r.extent for r in start.ranks))
        for e in extra:
            collect_step_types(e, types)
        check_bounds(new, types, self.facts.symbols)
        return [*extra, new]

    def all_infinite(self, plan: FoldPlan, some: Expr | None) -> Expr:
        """Whether a row has data, and nothing but the identity of a reference."""
        found: Expr | None = None
        for reference in dict.fromkeys(r for p in plan.parts for r in p.references if r.unguarded):
            bound = const(float("-inf") if reference.sign < 0 else float("inf"), plan.member.step.dtype)
            here = Apply("eq", (reference.read, bound))
            found = here if found is None else Apply("or", (found, here))
        assert found is not None
        return found if some is None else Apply("and", (found, some))

    def total(self, plan: FoldPlan, names: Sequence[str]) -> Expr:
        """The fold's value from that of its states."""
        step = plan.member.step
        index = tuple(var(r.name) for r in step.ranks)
        if plan.outer:
            value: Expr = Access(names[0], index)
            for op, e in plan.outer:
                value = Apply(op, (value, e))
            return value
        total: Expr | None = None
        for name, part in zip(names, plan.parts, strict=True):
            outer = numerators_first(part.term.outer)
            value = product((Factor(Access(name, index)), *outer), None)
            if total is None:
                total = Apply("neg", (value,)) if part.term.sign < 0 else value
            else:
                total = Apply("sub" if part.term.sign < 0 else "add", (total, value))
        assert total is not None
        return total

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

    def shared(self, e: Expr, member: Member, where: Expr | None, hint: str) -> Access:
        """A step of the body for `e`; the same for all sums that need it, whatever they name their ranks."""
        extents = {**member.step.extents, self.inner.name: self.inner.extent}
        order = [n for n in _rank_names((e, *conjuncts(where))) if n in extents]
        env = {n: var(f"@{k}") for k, n in enumerate(order)}
        key = (e.substitute(env), None if where is None else where.substitute(env))
        if key not in self.terms:
            alike = [m.step.out for m in self.plan.chain.of(Kind.MIXED) if self.origin(m, e)]
            name = self.names.fresh(f"{alike[0]}_block" if alike else hint)
            ranks = tuple(Rank(n, extents[n]) for n in order)
            self.body.append(einsum(name, ranks, e, member.step.dtype, where=where, loc=member.step.loc))
            self.terms[key] = name
        return Access(self.terms[key], tuple(var(n) for n in order))

    def origin(self, mixed: Member, e: Expr) -> bool:
        """Whether the step of the body for `e` is what the mixed member was: it has the same operator, and is first to ask."""
        expr = mixed.step.expr
        used = {t for t in self.names.taken if t == f"{mixed.step.out}_block"}
        return isinstance(expr, Apply) and isinstance(e, Apply) and expr.op == e.op and not used

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
        init, run, block, new = (fresh(f"{base}_{suffix}") for suffix in ("init", "run", "block", "next"))
        made = State(dtype, init, run, block, new, final if self.parts == 1 else fresh(f"{base}_parts"), final)
        self.carries.append(made)
        return made

    def start(self, state: State, step: Einsum, zero: Const) -> None:
        self.inits.append(einsum(state.init, step.ranks, zero, state.dtype, loc=step.loc))


def _moved(moments: Sequence[Expr], move: Expr, dtype: DType) -> Expr:
    """The last moment about a centre that moves by `move`: `M2 + d*(2*M1 + d*M0)`."""
    k = len(moments) - 1
    total = moments[0]
    for i in range(1, k + 1):
        share = comb(k, i)
        term = moments[i] if share == 1 else Apply("mul", (const(share, dtype), moments[i]))
        total = Apply("add", (term, Apply("mul", (move, total))))
    return total


def _marked(e: Expr, reference: Reference) -> Expr | None:
    """The program's own guard of an infinite reference becomes the running one."""
    if isinstance(e, Access) or not any(reference.guarded):
        return None
    read, _ = guarded_read(e)
    return None if read is None or read.tensor != reference.read.tensor else Access(_REFERENCE, read.index)


def _clamped(e: Expr, reference: Reference, dtype: DType) -> Expr:
    """The reference as a finite number at the monoid's identity, and at the other infinity where the program says so."""
    if not dtype.is_float:
        return e  # differences wrap, and so do the corrections that undo them
    largest = LARGEST[dtype.name]
    size = size_of(reference.scales)
    bound = largest if size <= 1 else largest / 2.0 ** frexp(size)[1]  # scaled, it is to be finite, too

    def finite(x: Expr, sign: int) -> Expr:
        limit = const(sign * bound, dtype)
        if bound == largest:
            return Apply("max" if sign < 0 else "min", (x, limit))
        return Apply("select", (Apply("eq", (x, const(sign * float("inf"), dtype))), limit, x))

    e = finite(e, reference.sign)
    return finite(e, -reference.sign) if reference.guarded[1] else e


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
