"""How much a kernel computes and moves, counted from its Einsums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlc.ir.einsum import Einsum, Step
from dlc.ir.expr import Access, Apply, Const, Expr, Index, Piecewise, walk
from dlc.ir.extent import IntExpr, int_expr, minimum, product, variables
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.node import remembered
from dlc.ir.program import Cascade, cascade_types

SPECIAL_OPS = frozenset(
    "div div_trunc div_floor div_euclid rem_trunc rem_floor rem_euclid pow atan2 sqrt rsqrt exp exp2 expm1 log log2 log1p"
    " sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf sigmoid lgamma".split()
)
_FREE = frozenset("select and or xor not eq ne lt le gt ge isnan isinf signbit copysign".split())


def is_free(op: str) -> bool:
    """Whether a scalar operator only chooses or compares, which is not counted as arithmetic."""
    return op in _FREE


@dataclass(frozen=True, slots=True)
class Work:
    """Counts over extent symbols.

    Attributes:
        flops: arithmetic operations at every point (choosing and comparing is not counted, nor is index arithmetic).
        special: divisions, roots and elementary functions among them.
        bytes: memory read and written, each element once.
    """

    flops: IntExpr
    special: IntExpr
    bytes: IntExpr


def cascade_work(cascade: Cascade) -> Work:
    """The work of running `cascade` once: operations of its steps, and traffic of its parameters and results."""
    flops, special = step_operations(cascade.steps)
    return Work(flops, special, cascade_bytes(cascade))


def step_operations(steps: Iterable[Step]) -> tuple[IntExpr, IntExpr]:
    """(arithmetic operations, those of them that are special) of all points of `steps`."""
    flops, special = int_expr(0), int_expr(0)
    for step in steps:
        if isinstance(step, Einsum):
            each, costly = _per_point(step)
            points = product(r.extent for r in step.all_ranks)
            flops, special = flops + points * each, special + points * costly
        else:
            inner, costly_inner = step_operations(step.body)
            flops, special = flops + inner * step.rank.extent, special + costly_inner * step.rank.extent
    return flops, special


def _per_point(step: Einsum) -> tuple[int, int]:
    counts = [_operations(e) for e in step.exprs]
    each, special = sum(a for a, _ in counts), sum(s for _, s in counts)
    if step.reduce is not None:
        monoid = MONOIDS[step.reduce.op]
        each += 1 if monoid.op is not None else sum(_operations(e)[0] for e in monoid.combine()) or monoid.arity
    elif step.write is not None and step.write.op != "set":
        each += 1
    return each, special


@remembered
def _operations(e: Expr) -> tuple[int, int]:
    """(operations, special ones) of one evaluation; what only computes with indices is free."""
    if isinstance(e, Apply) and not is_free(e.op) and not all(isinstance(n, (Apply, Index, Const)) for n in walk(e)):
        own = (1, int(e.op in SPECIAL_OPS))
    else:
        own = (0, 0)
    if isinstance(e, (Index, Const, Access)):
        return own
    parts = [_operations(c) for c in e.children]
    if isinstance(e, Piecewise):  # a point takes one of the pieces
        pieces = [_operations(v) for _, v in e.cases] + [_operations(e.otherwise)]
        parts = [max(pieces), *(_operations(g) for g, _ in e.cases)]
    return own[0] + sum(a for a, _ in parts), own[1] + sum(s for _, s in parts)


def cascade_bytes(cascade: Cascade) -> IntExpr:
    """Bytes of parameters and results; of a parameter no more elements than are read."""
    types = cascade_types(cascade)
    facts = Facts({}, {"#" + s.name: s.fact for s in cascade.symbols})
    total = int_expr(0)
    for name in cascade.results:
        total = total + types[name].elements * types[name].dtype.bytes
    touched = _touched(cascade.steps, frozenset(p.name for p in cascade.params))
    for p in cascade.params:
        elements = p.type.elements
        read = touched.get(p.name, elements)
        total = total + _least(read, elements, facts) * p.type.dtype.bytes
    return total


def _touched(steps: Iterable[Step], params: frozenset[str]) -> dict[str, IntExpr]:
    """An upper bound of the elements read from each parameter; missing where it is read whole."""
    seen: dict[tuple[str, tuple[IntExpr, ...]], IntExpr] = {}
    whole: set[str] = set()

    def visit(step: Step, outer: dict[str, IntExpr]) -> None:
        if not isinstance(step, Einsum):
            whole.update(c.init for c in step.carries)
            whole.update(step.yields)
            for inner in step.body:
                visit(inner, {**outer, step.rank.name: step.rank.extent})
            return
        extents = {**outer, **step.extents}
        if step.write is not None:
            whole.add(step.write.onto)
        for a in step.accesses():
            if a.tensor in params:
                used = frozenset().union(*map(variables, a.index)) & extents.keys()
                seen[a.tensor, a.index] = product(extents[n] for n in sorted(used))

    for step in steps:
        visit(step, {})
    totals: dict[str, IntExpr] = {}
    for (tensor, _), points in seen.items():
        totals[tensor] = totals.get(tensor, int_expr(0)) + points
    return {t: n for t, n in totals.items() if t not in whole}


def _least(a: IntExpr, b: IntExpr, facts: Facts) -> IntExpr:
    if facts.nonneg(a - b):
        return b
    return a if facts.nonneg(b - a) else minimum(a, b)
