"""The scan of a running form as it grows: its carries, and the steps of its body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.dtype import DType
from dlc.ir.einsum import Carry, Einsum, Rank, Scan, einsum
from dlc.ir.expr import Access, Const, Expr, transform
from dlc.ir.extent import IntExpr, var
from dlc.ir.loc import Loc
from dlc.passes.reduction_chains import Chain, Member
from dlc.passes.rewrite import Names
from dlc.passes.running_blocks import Blocks


@dataclass(frozen=True)
class State:
    """One carry of the scan: the names of its value before the block, of the block alone, after it, and at the end.

    Attributes:
        ranks: of the value.
        final: the carry at the end of the scan; with several parts, of each.
        merged: the whole.
    """

    ranks: tuple[Rank, ...]
    dtype: DType
    init: str
    run: str
    block: str
    next: str
    final: str
    merged: str

    @property
    def index(self) -> tuple[IntExpr, ...]:
        return tuple(var(r.name) for r in self.ranks)


@dataclass
class ScanBody:
    """What the scan carries and does, and what the chain's tensors are called inside.

    Attributes:
        inits: the carries' first values, computed before the scan.
        made: data that the block makes for itself, by the name of the whole.
        now: folds and values, by their value after the block.
        before: folds of data alone, by their value before the block.
        pending: folds that are computed from several states, or one and a factor, as they are after the block.
    """

    chain: Chain
    blocks: Blocks
    names: Names
    inits: list[Einsum] = field(default_factory=list)
    steps: list[Einsum] = field(default_factory=list)
    carries: list[State] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Expr] = field(default_factory=dict)

    def scan(self, loc: Loc) -> Scan:
        return Scan(
            self.blocks.outer,
            tuple(Carry(s.run, s.init) for s in self.carries),
            tuple(self.steps),
            tuple(s.next for s in self.carries),
            tuple(s.final for s in self.carries),
            loc=loc,
        )

    def carry(self, base: str, final: str, ranks: tuple[Rank, ...], zero: Const, loc: Loc) -> State:
        """A new carry that begins as `zero` everywhere; `final` is the name of its value at the end."""
        fresh = self.names.fresh
        init, run, block, new = (fresh(f"{base}_{suffix}") for suffix in ("init", "run", "block", "next"))
        last = final if self.blocks.parts == 1 else fresh(f"{base}_parts")
        made = State(ranks, zero.dtype, init, run, block, new, last, final)
        self.carries.append(made)
        self.inits.append(einsum(init, ranks, zero, zero.dtype, loc=loc))
        return made

    def add_local(self, member: Member) -> None:
        """What makes the data, for one block."""
        step, rank = member.step, member.rank
        name = self.names.fresh(f"{step.out}_block")
        expr, where = self.here(step.expr, rank), self.where(step, rank)
        self.steps.append(
            replace(step, outs=(name,), ranks=self.blocks.ranks(step.ranks, rank), exprs=(expr,), where=where)
        )
        self.made[step.out] = name

    def fold_block(self, member: Member, states: Sequence[State], exprs: tuple[Expr, ...]) -> None:
        """The block's own reduction: an element for each of its states' ranks."""
        step = member.step
        assert step.reduce is not None
        outs, dtypes = tuple(s.block for s in states), tuple(s.dtype for s in states)
        reduce = replace(step.reduce, ranks=self.blocks.ranks(step.reduced, member.rank))
        where = self.where(step, member.rank)
        self.steps.append(Einsum(outs, states[0].ranks, exprs, dtypes, reduce, where, loc=step.loc))

    def advance(self, state: State, expr: Expr, loc: Loc) -> None:
        """The state after the block."""
        self.steps.append(einsum(state.next, state.ranks, expr, state.dtype, loc=loc))

    def where(self, step: Einsum, rank: str) -> Expr | None:
        """The step's domain in a block, which may reach beyond the rank's end."""
        return conjunction((*self.blocks.inside, *(self.here(c, rank) for c in conjuncts(step.where))))

    def here(self, e: Expr, rank: str) -> Expr:
        """`e` at the block's element: data by its place in the whole, what the block made by its place in the block."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Access):
                return None
            if node.tensor in self.made:
                index = list(node.index)
                index[self.chain.dims[node.tensor]] = var(self.blocks.inner.name)
                return Access(self.made[node.tensor], tuple(index))
            if self.chain.is_running(node.tensor):
                return Access(self.current(node.tensor), node.index)
            return None

        return transform(e.substitute({rank: self.blocks.place}), visit)

    def current(self, tensor: str) -> str:
        """The name of a fold's or value's state after the block; a value is computed when it is first asked for."""
        if tensor in self.now:
            return self.now[tensor]
        step = self.chain.members[tensor].step
        expr = self.here(self.pending.get(tensor, step.expr), "")
        where = None if step.where is None or step.reduce is not None else self.here(step.where, "")
        name = self.names.fresh(f"{tensor}_now")
        self.steps.append(einsum(name, step.ranks, expr, step.dtype, where=where, loc=step.loc))
        self.now[tensor] = name
        return name
