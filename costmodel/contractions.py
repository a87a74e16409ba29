"""Contractions of a cascade and pairs of them, found by their ranks alone.

A contraction folds a product of two tensors over ranks both have; each of its other ranks belongs to the left, the right or both
(batch). Two make a pair when the second folds the first's result along the first's right ranks and the result itself is never
stored: attention's QK and AV, whatever happens to the elements in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.expr import Access, Apply, Cast, Expr
from dlc.ir.extent import IntExpr, int_expr, product, var, variables
from dlc.ir.facts import Facts
from dlc.ir.fiber import FiberWalk, covering, dimension
from dlc.ir.program import Cascade, cascade_types


@dataclass(frozen=True, slots=True)
class Contraction:
    """`out[batch, m, n] = sum(k) left[batch, m, k] * right[batch, n, k]`, with the extents' products over symbols.

    Attributes:
        reuse: how many points of `m` and `k` read the same element of an operand (windows of a convolution), at most.
        bytes: of one operand element, the smaller of both.
        stored: whether the result leaves the cascade.
        left_ranks, right_ranks: dimensions of the result behind `m` and behind `n`.
    """

    out: str
    left: str
    right: str
    batch: IntExpr
    m: IntExpr
    n: IntExpr
    k: IntExpr
    reuse: IntExpr
    bytes: int
    stored: bool
    left_ranks: tuple[int, ...]
    right_ranks: tuple[int, ...]

    @property
    def turned(self) -> Contraction:
        """The same with left and right exchanged."""
        return replace(
            self,
            left=self.right,
            right=self.left,
            m=self.n,
            n=self.m,
            left_ranks=self.right_ranks,
            right_ranks=self.left_ranks,
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contractions of which the second consumes the first's result: P = first.m, M = first.n, E = first.k, F = `f`."""

    first: Contraction
    second: Contraction

    @property
    def f(self) -> IntExpr:
        """Width of the second right operand."""
        return self.second.n


def contractions(cascade: Cascade) -> tuple[Contraction, ...]:
    """Every contraction, in order."""
    types = cascade_types(cascade)
    scanned = dict(_scanned(cascade.steps, {}))
    found = []
    for step, around in _einsums(cascade.steps, {}):
        operands = next(_products(step), None)
        if operands is not None:
            size = min(types[a.tensor].dtype.bytes for a in operands)
            stored = step.out in cascade.results
            found.append(_contraction(step, operands, around, scanned, _facts(cascade), size, stored))
    return tuple(c for c in found if c is not None)


def pairs(cascade: Cascade) -> tuple[Pair, ...]:
    """Pairs of contractions; each contraction is in one at most."""
    all_of = contractions(cascade)
    found: list[Pair] = []
    used: set[str] = set()
    for first in all_of:
        if first.stored or first.out in used:
            continue
        pair = _pair(cascade, first, all_of, used) or _pair(cascade, first.turned, all_of, used)
        if pair is not None:
            used |= {first.out, pair.second.out}
            found.append(pair)
    return tuple(found)


def _pair(cascade: Cascade, first: Contraction, all_of: Iterable[Contraction], used: set[str]) -> Pair | None:
    """`first` with the contraction that folds its result along its right ranks, that result on its left."""
    if not first.right_ranks:
        return None
    types = cascade_types(cascade)
    place = int_expr(0)
    for n in first.right_ranks:
        place = place * types[first.out].shape[n] + var(dimension(n))
    walk = FiberWalk(_facts(cascade), (first.out, place))
    walk.run(cascade.steps)
    for c in all_of:
        if c.out in walk.visits and not walk.traces[c.out].carries and c.out not in used:
            inner = walk.traces.get(c.left)
            return Pair(first, c if inner is not None and inner.carries else c.turned)
    return None


def _facts(cascade: Cascade) -> Facts:
    return Facts({}, {"#" + s.name: s.fact for s in cascade.symbols})


def _products(step: Einsum) -> Iterator[tuple[Access, Access]]:
    """Two accesses that a sum's terms are the product of, perhaps with further factors."""
    if step.reduce is None or step.reduce.op != "sum" or len(step.exprs) != 1:
        return
    factors = [f for f in _factors(step.expr) if isinstance(f, Access)]
    folded = {r.name for r in step.reduced}
    for i, a in enumerate(factors):
        for b in factors[i + 1 :]:
            if folded & _ranks(a) & _ranks(b):
                yield a, b


def _factors(e: Expr) -> Iterator[Expr]:
    match e:
        case Apply("mul", (a, b)):
            yield from _factors(a)
            yield from _factors(b)
        case Cast(_, arg):
            yield from _factors(arg)
        case _:
            yield e


def _ranks(a: Access) -> set[str]:
    return {n for i in a.index for n in variables(i) if not n.startswith("#")}


def _contraction(
    step: Einsum,
    operands: tuple[Access, Access],
    around: Mapping[str, IntExpr],
    scanned: Mapping[str, Mapping[str, IntExpr]],
    facts: Facts,
    size: int,
    stored: bool,
) -> Contraction | None:
    left, right = operands
    extents = {**around, **step.extents}
    # a tensor made in a scan's body is another one in each step
    of_left = (_ranks(left) | scanned.get(left.tensor, {}).keys()) & extents.keys()
    of_right = (_ranks(right) | scanned.get(right.tensor, {}).keys()) & extents.keys()
    folded = {r.name for r in step.reduced} | (of_left & of_right & around.keys())
    m, n = of_left - of_right, of_right - of_left
    if not m or not n:
        return None
    windows = {w for a in (left, right) for i in a.index for w in covering(i, extents, facts).windows} & folded
    return Contraction(
        step.out,
        left.tensor,
        right.tensor,
        product(extents[r] for r in sorted((of_left & of_right) - folded)),
        product(extents[r] for r in sorted(m)),
        product(extents[r] for r in sorted(n)),
        product(extents[r] for r in sorted(folded & of_left & of_right)),
        product(extents[r] for r in sorted(windows)),
        size,
        stored,
        tuple(k for k, r in enumerate(step.ranks) if r.name in m),
        tuple(k for k, r in enumerate(step.ranks) if r.name in n),
    )


def _einsums(steps: Iterable[Step], around: Mapping[str, IntExpr]) -> Iterator[tuple[Einsum, Mapping[str, IntExpr]]]:
    for step in steps:
        if isinstance(step, Einsum):
            yield step, around
        else:
            yield from _einsums(step.body, {**around, step.rank.name: step.rank.extent})


def _scanned(steps: Iterable[Step], around: Mapping[str, IntExpr]) -> Iterator[tuple[str, Mapping[str, IntExpr]]]:
    """The scan ranks around each tensor that is made in a body."""
    for step in steps:
        if isinstance(step, Scan):
            inner = {**around, step.rank.name: step.rank.extent}
            yield from ((c.name, inner) for c in step.carries)
            yield from _scanned(step.body, inner)
        elif around:
            yield from ((out, around) for out in step.outs)
