"""Pointwise producers move into their consumers' expressions: views, pads, casts, and arithmetic read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.bit_sums import packed_sum
from dlc.ir.domain import unconditional_accesses
from dlc.ir.dtype import I64
from dlc.ir.einsum import Einsum, Scan, Step, TensorType
from dlc.ir.errors import NotInBounds
from dlc.ir.expr import (
    Access,
    Apply,
    Bitcast,
    Cast,
    Const,
    Expr,
    Index,
    Piecewise,
    accesses,
    apply,
    const,
    index_value,
    transform,
    walk,
)
from dlc.ir.extent import IntExpr, Mod, Value, Var, has_value, int_expr, rebuild, split_linear, var, variables
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.forms import form
from dlc.ir.node import remembered
from dlc.ir.program import For, If, Loop, Program, Region, Stmt, regions, tensor_types
from dlc.ir.verify_expr import Scope, StepVerifier
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.once import OncePerForm
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import access_counts, all_einsums, drop_dead
from dlc.passes.windows import slides_point_by_point
from dlc.passes.words import packed_in_words

_HEAVY = frozenset(
    "exp exp2 expm1 log log2 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf sigmoid lgamma pow div"
    " sqrt rsqrt rem_floor rem_trunc div_floor div_trunc div_euclid rem_euclid atan2".split()
)


@dataclass(frozen=True)
class InlinePointwise(Pass):
    """Substitute a pointwise Einsum into the Einsums that read it.

        B[i, j] = A[j, i] + c[j]            O[i, k] = max(j) A[j, i] + c[j]
        O[i, k] = max(j) B[i, j]     ->

    Views, pads and constants always move. Arithmetic moves when it is evaluated no more often than before (one reader that
    visits each element once), or is cheap. An operand of a contraction stays a plain access, and what rounds a sum to a
    smaller type stays with the sum; panels that were packed for one stay packed. The intermediate rounding
    to the producer's type disappears, so results can only be nearer to exact.
    """

    name: ClassVar[str] = "inline-pointwise"
    max_nodes: int = 160
    prove: bool = True

    def apply(self, program: Program) -> Program:
        return _Inliner(explicit_domains(program), self.max_nodes, self.prove).run()


class _Inliner:
    def __init__(self, program: Program, max_nodes: int, prove: bool) -> None:
        self.program, self.max_nodes, self.prove = program, max_nodes, prove
        self.counts = access_counts(program)
        shapes = [e for p in program.params for e in p.type.shape]
        undeclared = {n for e in shapes for n in variables(e)}  # the inputs bind them, whether or not facts are given
        self.symbols: dict[str, SymbolFact] = dict.fromkeys(sorted(undeclared), SymbolFact()) | program.facts
        self.types = tensor_types(program)
        self.scope = Scope(self.types, self.symbols)
        self.once = OncePerForm()
        self.folded = {o for step in all_einsums(program) if step.reduce is not None for o in step.outs}

    def run(self) -> Program:
        body = self._region(self.program.body, {})
        return drop_dead(self.program.with_body(body)) if body != self.program.body else self.program

    def _region(self, region: Region, known: dict[str, Einsum]) -> Region:
        """`known`: producers that may be substituted, by tensor."""
        known = dict(known)
        body: list[Stmt] = []
        for stmt in region.body:
            if isinstance(stmt, Einsum):
                stmt = self._inline(stmt, known)
                if is_pointwise(stmt):
                    known[stmt.out] = stmt
            elif isinstance(stmt, Scan):
                stmt = self._scan(stmt, known)
            elif isinstance(stmt, If):
                arms = [self._region(r, known) for r in regions(stmt)]
                stmt = replace(stmt, then=arms[0], orelse=arms[1])
            elif isinstance(stmt, (Loop, For)):
                stmt = replace(stmt, body=self._region(stmt.body, _movable_into_loops(known)))
            body.append(stmt)
        return Region(tuple(body), region.yields)

    def _scan(self, scan: Scan, known: dict[str, Einsum]) -> Scan:
        inner = _movable_into_loops(known)
        self.scope.loops[scan.rank.name] = scan.rank.extent
        steps: list[Step] = []
        for step in scan.body:
            if isinstance(step, Scan):
                steps.append(self._scan(step, inner))
                continue
            step = self._inline(step, inner)
            if is_pointwise(step):
                inner[step.out] = step
            steps.append(step)
        del self.scope.loops[scan.rank.name]
        return replace(scan, body=tuple(steps))

    def _inline(self, consumer: Einsum, known: dict[str, Einsum]) -> Einsum:
        known = {t: known[t] for t in consumer.reads if t in known and self._may_move(known[t], consumer)}
        if not known:
            return consumer
        made = [form(p) for p in known.values()]
        tensors = dict.fromkeys(t for f in (form(consumer), *made) for t in f.tensors)
        numbers = {t: n for n, t in enumerate(tensors)}
        given = (
            tuple((f.step, tuple(numbers[t] for t in f.tensors), self.counts[f.tensors[0]]) for f in made),
            tuple((self.types.get(t), t in self.folded) for t in tensors),
            tuple(self.scope.loops.items()),
        )
        return self.once(consumer, given, lambda step: self._inlined(step, known), tensors)

    def _inlined(self, consumer: Einsum, known: dict[str, Einsum]) -> Einsum:
        """The consumer with what is worthwhile of these producers in it."""
        if packed_sum(consumer, self.types) is not None:
            return consumer  # its operands are laid out for it
        facts = self.scope.pool.facts(consumer.extents, self.symbols)
        factors = _contraction_factors(consumer)
        worded = packed_in_words(consumer, self.types)  # its rows were made contiguous
        pads = _pads(consumer)
        slides = slides_point_by_point(consumer)

        def visit(e: Expr) -> Expr | None:
            if not isinstance(e, Access) or e.tensor not in known:
                return None
            producer = known[e.tensor]
            operand = any(f is not None and e.tensor == f.tensor for f in factors)
            view = _plain_view(producer) or slides and _pads(producer)
            if operand and (worded or not view or _narrows(producer, self.types)):
                return None
            if operand and _in_panels(e, consumer) and not self._streams(producer):
                return None
            if pads and self._stays_with_sum(producer):
                return None
            if not self._worthwhile(producer, consumer, e) or not self._keeps_checks(e, producer, facts):
                return None
            return inline_access(e, producer, facts, self.types)

        exprs = tuple(transform(e, visit) for e in consumer.exprs)
        where = transform(consumer.where, visit) if consumer.where is not None else None
        write = consumer.write
        if write is not None:
            index = tuple(_transform_index(i, visit) for i in write.index)
            write = replace(write, index=index) if index != write.index else write
        if exprs == consumer.exprs and where == consumer.where and write == consumer.write:
            return consumer
        if sum(1 for e in exprs for _ in walk(e)) > self.max_nodes:
            return consumer
        inlined = replace(consumer, exprs=exprs, where=where, write=write)
        return inlined if self._proven(inlined) else consumer

    def _stays_with_sum(self, producer: Einsum) -> bool:
        """Whether the producer is arithmetic on a sum that nothing else reads: the kernel of the sum has it in registers."""
        return cost(producer.expr) > 0 and any(t in self.folded and self.counts[t] == 1 for t in producer.reads)

    def _streams(self, view: Einsum) -> bool:
        """Whether the last rank of a plain view is contiguous in what it shows."""
        (a,) = accesses(view.expr)
        flat = int_expr(0)
        for i, s in zip(a.index, self.types[a.tensor].strides, strict=True):
            flat = flat + i * s
        parts = split_linear(flat, view.ranks[-1].name)
        return parts is not None and parts[0].const == 1

    def _proven(self, step: Einsum) -> bool:
        """Whether every read is still proven to be in bounds: a window over a window can be beyond the prover."""
        if not self.prove:
            return True
        try:
            StepVerifier(step, self.scope).run()
        except NotInBounds:
            return False
        return True

    def _keeps_checks(self, access: Access, producer: Einsum, facts: Facts) -> bool:
        """Whether an index held in a tensor is still checked against the producer's extents when the producer is gone."""
        if access.default is not None:
            return True
        reads = list(unconditional_accesses(producer.expr))
        for i, r in zip(access.index, producer.ranks, strict=True):
            if not has_value(i) or facts.within(i, r.extent):
                continue
            same = (var(r.name), r.extent - 1 - var(r.name))  # in range exactly when the rank is
            if not any(
                j in same and n == r.extent
                for read in reads
                for j, n in zip(read.index, self.types[read.tensor].shape, strict=True)
            ):
                return False
        return True

    def _may_move(self, producer: Einsum, consumer: Einsum) -> bool:
        """Whether `_worthwhile` can hold for some access: most producers are too much work for any."""
        if not self.folded.isdisjoint(producer.reads) and _narrows(producer, self.types):
            return False  # the kernel that makes the sum is to store the smaller type
        if cost(form(producer).step.expr) <= 1:  # the form's, which equal producers share
            return True
        most = max((n for a, n in _times_read(consumer).items() if a.tensor == producer.out), default=0)
        return self.counts[producer.out] <= most

    def _worthwhile(self, producer: Einsum, consumer: Einsum, access: Access) -> bool:
        if _plain_view(producer) or isinstance(producer.expr, (Const, Index)):
            return True
        uses = self.counts[producer.out]
        same_reader = _times_read(consumer)[access]
        if is_view(producer):
            return uses <= max(1, same_reader) or not any(
                True for e in accesses(producer.expr) if e.default is not None
            )
        operators = cost(producer.expr)
        if operators <= 1 and producer.ranks == ():
            return True
        if uses <= same_reader:
            return operators <= 2 or visits_once(consumer, access)
        alone = len(producer.reads) <= 1  # recomputing would read them all again
        return operators <= 1 and alone and visits_once(consumer, access)


@remembered
def _times_read(step: Einsum) -> Counter[Access]:
    return Counter(step.accesses())


def is_pointwise(step: Einsum) -> bool:
    return step.reduce is None and step.write is None and step.where is None and len(step.outs) == 1


def is_view(step: Einsum) -> bool:
    """Whether the expression only picks elements (pieces, pads, casts of them)."""
    return cost(step.expr) == 0


def _pads(step: Einsum) -> bool:
    """Whether the step is a view with a border: free where its readers take the border as a default, a copy otherwise."""
    return is_view(step) and any(a.default is not None for a in accesses(step.expr))


def _plain_view(step: Einsum) -> bool:
    e = step.expr
    while isinstance(e, Cast | Bitcast):
        e = e.arg
    return isinstance(e, Access) and e.default is None and not any(has_value(i) for i in e.index)


def _in_panels(a: Access, consumer: Einsum) -> bool:
    """Whether a free rank of the consumer is taken apart into panels, `B[n // 48, k, n % 48]`: the operand was packed so."""
    atom = a.index[-1].atom if a.index else None
    if not isinstance(atom, Mod) or not isinstance(atom.num.atom, Var):
        return False
    return atom.num.atom.name in {r.name for r in consumer.ranks} and any(i == atom.num // atom.den for i in a.index)


def _narrows(step: Einsum, types: Mapping[str, TensorType]) -> bool:
    """Whether the step rounds what it reads to a smaller type: a contraction is to read the smaller one, as often as it does."""
    return any(step.dtype.bits < types[a.tensor].dtype.bits for a in step.accesses() if a.tensor in types)


@remembered
def cost(e: Expr) -> int:
    """Arithmetic operators in `e`, a transcendental or division counted as ten; guards over indices are not counted."""

    def counted(n: Expr) -> tuple[int, bool]:
        """Operators in `n`, and whether it is of indices alone."""
        parts = [counted(c) for c in n.children]
        operators = sum(p[0] for p in parts)
        match n:
            case Apply(op):
                if all(p[1] for p in parts):
                    return 0, True
                return operators + (10 if op in _HEAVY else 1), False
            case Index() | Const():
                return operators, all(p[1] for p in parts)
            case _:
                return operators, False

    return counted(e)[0]


def visits_once(consumer: Einsum, access: Access) -> bool:
    """Whether the consumer reads each element through `access` at most once: every rank of it is an index of its own."""
    plain = {i.atom.name for i in access.index if isinstance(i.atom, Var)}
    names = {r.name for r in consumer.all_ranks if r.extent.const != 1}
    return (
        names <= plain or names <= {n for i in access.index for n in variables(i)} and len(access.index) >= len(names)
    )


def _movable_into_loops(known: dict[str, Einsum]) -> dict[str, Einsum]:
    """Only views enter a loop body: arithmetic would be done again every step."""
    return {n: s for n, s in known.items() if _plain_view(s) or isinstance(s.expr, Const)}


def _contraction_factors(step: Einsum) -> tuple[Access | None, ...]:
    if step.reduce is None or step.reduce.op != "sum" or not isinstance(step.expr, Apply) or step.expr.op != "mul":
        return ()
    return tuple(_inner_access(a) for a in step.expr.args)


def _inner_access(e: Expr) -> Access | None:
    e = e.arg if isinstance(e, Cast) else e
    return e if isinstance(e, Access) else None


def inline_access(
    access: Access, producer: Einsum, facts: Facts, types: Mapping[str, TensorType] | None = None
) -> Expr:
    """The producer's expression at the access's index; a default becomes a guarded piece unless the bounds are proven,
    or the producer only moves dimensions about.
    """
    env = {r.name: i for r, i in zip(producer.ranks, access.index, strict=True)}
    inner = producer.expr.substitute(env)
    if access.default is None:
        return inner
    if isinstance(inner, Access) and inner.default is None and types and _same_bounds(producer, access, facts, types):
        return Access(inner.tensor, inner.index, access.default)
    guards: list[Expr] = []
    for i, r in zip(access.index, producer.ranks, strict=True):
        if not facts.nonneg(i):
            guards.append(apply("ge", Index(i), const(0, I64)))
        if not facts.less(i, r.extent):
            guards.append(apply("lt", Index(i), Index(r.extent)))
    if not guards:
        return inner
    guard = guards[0]
    for g in guards[1:]:
        guard = apply("and", guard, g)
    return Piecewise(((guard, inner),), access.default)


def _same_bounds(producer: Einsum, access: Access, facts: Facts, types: Mapping[str, TensorType]) -> bool:
    """Whether the one access that the producer is leaves its tensor exactly where `access` leaves the producer."""
    source = producer.expr
    assert isinstance(source, Access)
    extents = producer.extents
    covered: set[str] = set()
    for i, size in zip(source.index, types[source.tensor].shape, strict=True):
        if i.const is not None:
            continue
        if not isinstance(i.atom, Var) or extents.get(i.atom.name) != size:
            return False
        covered.add(i.atom.name)
    open_ = [r for i, r in zip(access.index, producer.ranks, strict=True) if not facts.within(i, r.extent)]
    return all(r.name in covered for r in open_)


def _transform_index(e: IntExpr, visit: Callable[[Expr], Expr | None]) -> IntExpr:
    if not has_value(e):
        return e

    def leaf(atom: Var | Value) -> IntExpr:
        return var(atom.name) if isinstance(atom, Var) else index_value(transform(atom.expr, visit))

    return rebuild(e, leaf)
