"""A cascade as operations over unified ranks: one arithmetic step per point, what it reads, and where it stands.

Einsums of a text may be merged (`RD1 = RD * PRM + SLD`) or split; the model must not care. So every Einsum is taken apart
at operands that are themselves computed: what is left has one arithmetic operator of two operands, under functions of one
operand (`exp(a - b)` stays together). Ranks of different Einsums are one where they index the same dimension of a tensor.
A scan over blocks, which reads `K[128*m1 + m0]`, is one streamed rank: how a CPU blocks it is nothing to the accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import ml_dtypes

from dlc.costmodel.spatial.errors import BadExtents, UnmappableCascade
from dlc.costmodel.work import is_free
from dlc.ir.contract import factors
from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise, accesses, walk
from dlc.ir.extent import IntExpr, Var, atoms, evaluate, variables
from dlc.ir.loc import Loc
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Cascade, fresh_name

Place = Literal["body", "outside"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the normal form.

    Attributes:
        ranks: names of its (unified) ranks.
        kind: input; local, made and read in one step of the loop nest; state, carried from one step to the next.
        stepped: whether there is a new one in every step of the scan, though no rank of it says so.
    """

    name: str
    ranks: tuple[str, ...]
    kind: Literal["input", "local", "state"]
    stepped: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One Einsum of the normal form.

    Attributes:
        out: the tensor written.
        ranks: its free ranks.
        reduced: ranks that are folded.
        reads: tensors read at every point, each once.
        work: arithmetic operations at every point, by name (`mul` under a sum is a multiply-accumulate).
        place: in the body of the scan, or outside.
    """

    out: str
    ranks: tuple[str, ...]
    reduced: tuple[str, ...]
    reads: tuple[str, ...]
    work: Mapping[str, int]
    place: Place
    loc: Loc = field(compare=False, repr=False)

    @property
    def all_ranks(self) -> tuple[str, ...]:
        return self.ranks + self.reduced


@dataclass(frozen=True, slots=True)
class Normal:
    """A cascade taken apart.

    Attributes:
        operations: in the order of the text.
        tensors: by name; the scan's final values are the states they end as.
        extents: of every rank.
        results: tensors that leave the cascade.
        streamed: the scan's rank, None without a scan.
        next_of: of each state, the tensor that is its next value.
    """

    name: str
    operations: tuple[Operation, ...]
    tensors: Mapping[str, Tensor]
    extents: Mapping[str, int]
    results: tuple[str, ...]
    streamed: str | None
    next_of: Mapping[str, str]


def normalise(cascade: Cascade, extents: Mapping[str, int], target: str) -> Normal:
    """`cascade` at `extents` (values of its symbols) as operations over unified ranks.

    Args:
        target: whom errors name.

    Raises:
        BadExtents: a symbol without a value, or a value without a symbol.
        UnmappableCascade: gathers, windows, scatters, tuple reductions, more than one scan, or a scan not over blocks.
    """
    env = symbol_values(cascade, extents)
    return _Normaliser(cascade, env, target).run()


def symbol_values(cascade: Cascade, extents: Mapping[str, int]) -> dict[str, int]:
    """The environment of the cascade's extents; every symbol of its parameters must have a value.

    Raises:
        BadExtents: one is missing, not positive, or of no symbol.
    """
    known = sorted({n[1:] for p in cascade.params for e in p.type.shape for n in variables(e) if n.startswith("#")})
    symbols = ",".join(f"{n}=..." for n in known) or "nothing: it has no symbols"
    for name, size in extents.items():
        if name not in known:
            raise BadExtents(cascade=cascade.name, reason=f"it has no symbol '{name}'", symbols=symbols)
        if size < 1:
            raise BadExtents(cascade=cascade.name, reason=f"'{name}' is {size}, less than 1", symbols=symbols)
    missing = [n for n in known if n not in extents]
    if missing:
        raise BadExtents(cascade=cascade.name, reason="no value for " + ", ".join(missing), symbols=symbols)
    return {"#" + n: v for n, v in extents.items()}


_Key = tuple[str, str | int]  # (step, rank) or (tensor, dimension)


class _Normaliser:
    """The state of one normalisation: classes of ranks by union-find, operations and tensors found so far."""

    def __init__(self, cascade: Cascade, env: Mapping[str, int], target: str) -> None:
        self.cascade, self.env, self.target = cascade, env, target
        self.parent: dict[_Key, _Key] = {}
        self.sizes: dict[_Key, int] = {}
        self.streams: list[_Key] = []
        self.operations: list[Operation] = []
        self.tensors: dict[str, Tensor] = {}
        self.alias: dict[str, str] = {}
        self.made: dict[tuple[Expr, Place, tuple[str, ...]], str] = {}
        self.taken = {o for s in flat(cascade.steps) for o in s.outs} | {p.name for p in cascade.params}
        self.constants: set[str] = set()
        self.next_of: dict[str, str] = {}

    def run(self) -> Normal:
        scans = [s for s in self.cascade.steps if isinstance(s, Scan)]
        if len(scans) > 1 or any(isinstance(s, Scan) for scan in scans for s in scan.body):
            self.refuse(scans[-1].loc, "it has more than one scan", "give each scan a cascade of its own")
        for p in self.cascade.params:
            for d, extent in enumerate(p.type.shape):
                self.sizes[self.find((p.name, d))] = int(evaluate(extent, self.env))
        for step in self.cascade.steps:
            self.unify_step(step, None)
        if scans and not self.streams:
            reason = "no tensor is read by the scan in blocks"
            self.refuse(scans[0].loc, reason, "read the scanned rank as K[B*m1 + m0], with a rank m0 inside the block")
        names = self.name_classes()
        for p in self.cascade.params:
            ranks = tuple(names[self.find((p.name, d))] for d in range(p.type.rank))
            self.tensors[p.name] = Tensor(p.name, ranks, "input")
        for step in self.cascade.steps:
            self.lower_step(step, names)
        extents = {n: self.sizes.get(k, 1) for k, n in names.items()}
        streamed = names[self.find(self.streams[0])] if scans else None
        results = tuple(self.alias.get(r, r) for r in self.cascade.results)
        return Normal(self.cascade.name, tuple(self.operations), self.tensors, extents, results, streamed, self.next_of)

    def refuse(self, loc: Loc, reason: str, way_out: str) -> None:
        raise UnmappableCascade(loc, target=self.target, reason=reason, way_out=way_out)

    # --- ranks -------------------------------------------------------------------------------------------------------

    def find(self, key: _Key) -> _Key:
        root = key
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        self.parent[key] = root
        return root

    def union(self, a: _Key, b: _Key) -> None:
        first, second = self.find(a), self.find(b)
        if first != second:
            self.parent[second] = first
            size = max(self.sizes.pop(second, 0), self.sizes.get(first, 0))
            if size:
                self.sizes[first] = size

    def unify_step(self, step: Step, scan: Scan | None) -> None:
        if isinstance(step, Scan):
            for inner in step.body:
                self.unify_step(inner, step)
            self.unify_carries(step)
            return
        if step.write is not None:
            self.refuse(step.loc, f"'{step.out}' is written by a scatter", "leave the scatter out of the cascade")
        if len(step.outs) > 1:
            self.refuse(step.loc, "a reduction folds a tuple", "write it as reductions of one value each")
        for r in step.all_ranks:
            key = self.find((step.out, r.name))
            self.sizes[key] = max(self.sizes.get(key, 0), int(evaluate(r.extent, self.env)))
        for d, r in enumerate(step.ranks):
            self.union((step.out, r.name), (step.out, d))
        for a in step.accesses():
            for d, index in enumerate(a.index):
                used = variables(index) & {r.name for r in step.all_ranks}
                blocked = scan is not None and scan.rank.name in variables(index)
                if index.is_var and used:
                    self.union((step.out, next(iter(used))), (a.tensor, d))
                elif blocked and len(used) == 1 and index.const is None and not _has_divisions(index):
                    self.stream(step, a.tensor, d, next(iter(used)))
                elif blocked:
                    reason = f"the scan reads '{a.tensor}[{index}]', which is no block of a rank"
                    self.refuse(step.loc, reason, "read the scanned rank as K[B*m1 + m0]")
                elif used:
                    reason = f"'{a.tensor}' is read at '{index}', which is not a rank by itself"
                    self.refuse(step.loc, reason, "the model knows no windows and gathers")

    def stream(self, step: Einsum, tensor: str, dimension: int, block: str) -> None:
        """The dimension is the streamed rank: as long as the tensor is, not as the block."""
        size = self.sizes[self.find((tensor, dimension))]
        self.union((tensor, dimension), (step.out, block))
        self.streams.append((tensor, dimension))
        self.union(self.streams[0], (tensor, dimension))
        self.sizes[self.find((tensor, dimension))] = size

    def unify_carries(self, scan: Scan) -> None:
        if scan.stacked:
            self.refuse(scan.loc, "the scan stacks its steps", "the model has no place for them; compute them apart")
        ranks = {s.out: len(s.ranks) for s in (*self.cascade.steps, *scan.body) if isinstance(s, Einsum)}
        ranks |= {p.name: p.type.rank for p in self.cascade.params}
        for carry, yielded, final in zip(scan.carries, scan.yields, scan.finals, strict=True):
            for d in range(ranks[carry.init]):
                for other in (carry.name, yielded, final):
                    self.union((carry.init, d), (other, d))

    def name_classes(self) -> dict[_Key, str]:
        """A name for each class of ranks: the symbol of a parameter's extent where it has one, else the rank's own."""
        symbols: dict[_Key, str] = {}
        for p in self.cascade.params:
            for d, extent in enumerate(p.type.shape):
                if extent.is_var and next(iter(variables(extent))).startswith("#"):
                    symbols.setdefault(self.find((p.name, d)), next(iter(variables(extent)))[1:])
        own: dict[_Key, str] = {}
        for step in flat(self.cascade.steps):
            for r in step.all_ranks:
                own.setdefault(self.find((step.out, r.name)), r.name)
        names: dict[_Key, str] = {}
        for key in dict.fromkeys(self.find(k) for k in list(self.parent)):
            wanted = symbols.get(key, own.get(key, "unit"))
            if wanted in names.values():  # two ranks share a symbol
                wanted = own.get(key, wanted)
            names[key] = fresh_name(wanted, frozenset(names.values()))
        return names

    # --- operations --------------------------------------------------------------------------------------------------

    def lower_step(self, step: Step, names: Mapping[_Key, str]) -> None:
        if isinstance(step, Einsum):
            self.lower_einsum(step, "outside", names)
            return
        ranks = {c.name: self.tensors[c.init].ranks for c in step.carries}
        for carry, final in zip(step.carries, step.finals, strict=True):
            self.tensors[carry.name] = Tensor(carry.name, ranks[carry.name], "state")
            self.alias[final] = carry.name
        for inner in step.body:
            assert isinstance(inner, Einsum)  # no scan in a scan: `run` refused it
            self.lower_einsum(inner, "body", names)
        for carry, yielded in zip(step.carries, step.yields, strict=True):
            if yielded in self.tensors and yielded != carry.name:
                self.next_of[carry.name] = yielded
                self.tensors[yielded] = replace(self.tensors[yielded], kind="state")

    def lower_einsum(self, step: Einsum, place: Place, names: Mapping[_Key, str]) -> None:
        at = {r.name: names[self.find((step.out, r.name))] for r in step.all_ranks}
        free, folded = tuple(at[r.name] for r in step.ranks), tuple(at[r.name] for r in step.reduced)
        if not any(True for _ in step.accesses()):
            self.tensors[step.out] = Tensor(step.out, free, "local")
            self.constants.add(step.out)
            return
        context = _Context(step, place, at)
        work: Counter[str] = Counter()
        reads: dict[str, None] = {}
        out = step.out
        if step.reduce is None:
            self.gather(step.expr, context, work, reads)
        elif step.reduce.op == "sum" and any(isinstance(f, Const) for f in factors(step.expr)):
            out = self.new_name(f"{step.out}_sum")
            self.gather_reduced(step, context, work, reads)
        else:
            self.gather_reduced(step, context, work, reads)
        if step.where is not None:
            self.collect(step.where, reads)
        self.add(out, free, folded, reads, work, context)
        if out != step.out:  # a constant is multiplied after the sum, where there are fewer points
            self.add(step.out, free, (), {out: None}, {"mul": 1}, context)

    def add(
        self,
        out: str,
        free: tuple[str, ...],
        folded: tuple[str, ...],
        reads: Mapping[str, None],
        work: Mapping[str, int],
        context: _Context,
    ) -> None:
        tensors = tuple(dict.fromkeys(self.alias.get(t, t) for t in reads if t not in self.constants))
        self.operations.append(Operation(out, free, folded, tensors, dict(work), context.place, context.step.loc))
        self.tensors[out] = Tensor(out, free, "local", stepped=context.place == "body")

    def gather_reduced(self, step: Einsum, context: _Context, work: Counter[str], reads: dict[str, None]) -> None:
        """A sum of products is multiply-accumulates; constants are taken out of it; any other reduction folds a tensor."""
        assert step.reduce is not None
        monoid = MONOIDS[step.reduce.op]
        if monoid.op is None:
            self.refuse(step.loc, f"'{step.reduce.op}' folds a tuple", "write it as reductions of one value each")
        found = [step.expr]
        if step.reduce.op == "sum":
            found = [f for f in factors(step.expr) if not isinstance(f, Const)]
        for factor in found:
            self.operand(factor, context, work, reads)
        if len(found) > 1:
            work["mul"] += len(found) - 1
        else:
            work[str(monoid.op)] += 1

    def gather(self, e: Expr, context: _Context, work: Counter[str], reads: dict[str, None]) -> None:
        """Count the operations of `e`; an operand of two that is itself computed becomes an operation before this one."""
        match e:
            case Const() | Index():
                return
            case Access():
                self.collect(e, reads)
            case Cast(arg=arg) | Bitcast(arg=arg):
                self.gather(arg, context, work, reads)
            case Apply(op, args) if is_free(op) or len(args) == 1 or _saturates(e):
                for a in args:
                    self.gather(a, context, work, reads)
                if not is_free(op) and not _saturates(e):
                    work[op] += 1
            case Apply(op, args):
                for a in args:
                    self.operand(a, context, work, reads)
                work[op] += 1
            case Piecewise(cases, otherwise):
                for a in (*(x for case in cases for x in case), otherwise):
                    self.gather(a, context, work, reads)

    def operand(self, e: Expr, context: _Context, work: Counter[str], reads: dict[str, None]) -> None:
        costs = any(isinstance(n, Apply) and not is_free(n.op) and not _saturates(n) for n in walk(e))
        if not costs or not any(True for _ in accesses(e)):
            self.gather(e, context, work, reads)
            return
        free = tuple(v for k, v in context.at.items() if k in e.variables)
        name = self.made.get((e, context.place, free))
        if name is None:
            inner: Counter[str] = Counter()
            inner_reads: dict[str, None] = {}
            self.gather(e, context, inner, inner_reads)
            root = next(n.op for n in walk(e) if isinstance(n, Apply))
            name = self.new_name(f"{context.step.out}_{root}")
            self.add(name, free, (), inner_reads, inner, context)
            self.made[e, context.place, free] = name
        reads[name] = None

    def new_name(self, base: str) -> str:
        name = fresh_name(base, self.taken)
        self.taken.add(name)
        return name

    def collect(self, e: Expr, reads: dict[str, None]) -> None:
        for a in accesses(e):
            reads[a.tensor] = None


@dataclass(frozen=True, slots=True)
class _Context:
    """Which Einsum is being taken apart, where it stands, and the unified name of each of its ranks."""

    step: Einsum
    place: Place
    at: Mapping[str, str]


def _saturates(e: Expr) -> bool:
    """Whether `e` only keeps a value within the finite numbers of its type: arithmetic that saturates does so by itself."""
    if not isinstance(e, Apply) or e.op not in ("max", "min"):
        return False
    bounds = [a for a in e.args if isinstance(a, Const) and a.dtype.is_float]
    return any(abs(a.value) >= float(ml_dtypes.finfo(a.dtype.numpy).max) for a in bounds)


def _has_divisions(index: IntExpr) -> bool:
    return any(not isinstance(a, Var) for a in atoms(index))
