"""A tensor as the importer sees it: a type, a shape, and how to read an element. Views change only the reading.

Transposes, reshapes, slices, expansions and paddings of a `Val` never become operators: each composes an index map, and the
Einsum that finally reads it carries the composed access.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dlc.ir.dtype import DType
from dlc.ir.expr import Expr, Piecewise, access, apply, index_value
from dlc.ir.expr import Index as IndexNode
from dlc.ir.extent import IntExpr, IntLike, int_expr, product

Shape: TypeAlias = tuple[IntExpr, ...]


def as_shape(shape: Sequence[IntLike]) -> Shape:
    return tuple(int_expr(e) for e in shape)


@dataclass(frozen=True)
class Val:
    """A readable tensor.

    Attributes:
        dtype: element type.
        shape: extents over symbols.
        at: the element at an index (one IntExpr per dimension), as an expression.
        name: the tensor it is, when reading it is the plain access of a whole tensor; else None.
    """

    dtype: DType
    shape: Shape
    at: Callable[[tuple[IntExpr, ...]], Expr] = field(compare=False)
    name: str | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> IntExpr:
        return product(self.shape)

    def __call__(self, *index: IntLike) -> Expr:
        """The element at `index`."""
        assert len(index) == self.rank, (self, index)
        return self.at(tuple(int_expr(i) for i in index))

    def view(self, shape: Sequence[IntLike], index: Callable[..., Sequence[IntLike]]) -> Val:
        """The tensor of `shape` whose element at `i...` is this one's at `index(*i)`."""
        base = self.at
        return Val(self.dtype, as_shape(shape), lambda i: base(tuple(int_expr(e) for e in index(*i))))

    def permute(self, dims: Sequence[int]) -> Val:
        """Dimension `n` of the result is dimension `dims[n]` of this."""
        if tuple(dims) == tuple(range(self.rank)):
            return self
        place = {d: n for n, d in enumerate(dims)}
        return self.view([self.shape[d] for d in dims], lambda *i: [i[place[d]] for d in range(self.rank)])

    def transpose(self, a: int, b: int) -> Val:
        dims = list(range(self.rank))
        dims[a], dims[b] = dims[b], dims[a]
        return self.permute(dims)

    def reshape(self, shape: Sequence[IntLike]) -> Val:
        """The same elements in row-major order under another shape; the caller has resolved -1."""
        new = as_shape(shape)
        if new == self.shape:
            return self
        old = self.shape
        groups = _matching_groups(old, new)

        def index(*i: IntExpr) -> list[IntExpr]:
            result: list[IntExpr] = []
            for (o0, o1), (n0, n1) in groups:
                result += _unflatten(_flatten(i[n0:n1], new[n0:n1]), old[o0:o1])
            return result

        return self.view(new, index)

    def unsqueeze(self, dim: int) -> Val:
        """A new dimension of extent 1 at `dim`."""
        d = dim % (self.rank + 1)
        return self.view([*self.shape[:d], 1, *self.shape[d:]], lambda *i: [*i[:d], *i[d + 1 :]])

    def squeeze(self, *dims: int) -> Val:
        """Drop dimensions (their extent is 1)."""
        gone = {d % self.rank for d in dims}
        kept = [d for d in range(self.rank) if d not in gone]

        def index(*i: IntExpr) -> list[IntExpr]:
            by_dim = dict(zip(kept, i, strict=True))
            return [by_dim.get(d, int_expr(0)) for d in range(self.rank)]

        return self.view([self.shape[d] for d in kept], index)

    def broadcast_to(self, shape: Sequence[IntLike]) -> Val:
        """NumPy broadcasting to `shape`: missing leading dimensions and extents of 1 repeat."""
        new = as_shape(shape)
        if new == self.shape:
            return self
        extra = len(new) - self.rank
        repeats = [self.shape[d].const == 1 and new[extra + d].const != 1 for d in range(self.rank)]
        return self.view(new, lambda *i: [int_expr(0) if repeats[d] else i[extra + d] for d in range(self.rank)])

    def slice(self, dim: int, start: IntLike, size: IntLike, step: int = 1) -> Val:
        """Elements `start, start + step, ...` (`size` of them) along `dim`."""
        d = dim % self.rank
        shape = [*self.shape[:d], int_expr(size), *self.shape[d + 1 :]]
        return self.view(shape, lambda *i: [*i[:d], i[d] * step + start, *i[d + 1 :]])

    def select(self, dim: int, at: IntLike) -> Val:
        """The slice at `at` along `dim`, without that dimension."""
        d = dim % self.rank
        return self.view([*self.shape[:d], *self.shape[d + 1 :]], lambda *i: [*i[:d], int_expr(at), *i[d:]])

    def flip(self, *dims: int) -> Val:
        """Reversed along `dims`."""
        turned = {d % self.rank for d in dims}
        shape = self.shape
        return self.view(shape, lambda *i: [shape[d] - 1 - i[d] if d in turned else i[d] for d in range(len(shape))])

    def pad(self, before: Sequence[IntLike], after: Sequence[IntLike], fill: Expr) -> Val:
        """Surrounded by `fill`; negative amounts crop. The read is guarded, so it folds into the reader's access."""
        lo, hi = as_shape(before), as_shape(after)
        shape = tuple(e + a + b for e, a, b in zip(self.shape, lo, hi, strict=True))
        base = self

        def at(i: tuple[IntExpr, ...]) -> Expr:
            inner = tuple(x - a for x, a in zip(i, lo, strict=True))
            if all(a.const == 0 and b.const == 0 for a, b in zip(lo, hi, strict=True)):
                return base.at(inner)
            if base.name is not None:
                return access(base.name, *inner, default=fill)
            guards: list[Expr] = []
            for x, extent, a, b in zip(inner, base.shape, lo, hi, strict=True):
                if a.const != 0:
                    guards.append(apply("ge", IndexNode(x), IndexNode(int_expr(0))))
                if b.const != 0:
                    guards.append(apply("lt", IndexNode(x), IndexNode(extent)))
            guard = guards[0]
            for g in guards[1:]:
                guard = apply("and", guard, g)
            return Piecewise(((guard, base.at(inner)),), fill)

        return Val(self.dtype, shape, at)

    def gather_value(self, *index: IntLike) -> IntExpr:
        """The element at `index` of an integer tensor, as an index into another one."""
        return index_value(self(*index))


def _flatten(index: Sequence[IntExpr], shape: Sequence[IntExpr]) -> IntExpr:
    flat = int_expr(0)
    for i, e in zip(index, shape, strict=True):
        flat = flat * e + i
    return flat


def _unflatten(flat: IntExpr, shape: Sequence[IntExpr]) -> list[IntExpr]:
    """Row-major index of `flat` in `shape`; extents of 1 (and 0) get 0, and the outermost is not reduced (it is in range)."""
    result: list[IntExpr] = []
    live = [d for d, e in enumerate(shape) if e.const not in (0, 1)]
    for d in reversed(range(len(shape))):
        if shape[d].const in (0, 1):  # nothing reads at an extent of 0
            result.append(int_expr(0))
        elif live and d == live[0]:
            result.append(flat)
        else:
            result.append(flat % shape[d])
            flat = flat // shape[d]
    return result[::-1]


def _matching_groups(old: Shape, new: Shape) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The finest split of both shapes into runs with equal products, so that a reshape divides only where it must."""
    groups: list[tuple[tuple[int, int], tuple[int, int]]] = []
    o = n = o_start = n_start = 0
    p, q = int_expr(1), int_expr(1)
    while o < len(old) or n < len(new):
        if (o, n) != (o_start, n_start) and p == q and o > o_start and n > n_start:
            groups.append(((o_start, o), (n_start, n)))
            o_start, n_start, p, q = o, n, int_expr(1), int_expr(1)
            continue
        take_old = o < len(old) and (n >= len(new) or o == o_start or _smaller(p, q))
        if o == o_start and n == n_start and o < len(old) and n < len(new) and old[o] == new[n]:
            groups.append(((o, o + 1), (n, n + 1)))
            o, n = o + 1, n + 1
            o_start, n_start = o, n
            continue
        if take_old:
            p, o = p * old[o], o + 1
        else:
            q, n = q * new[n], n + 1
    if (o_start, n_start) != (len(old), len(new)):
        groups.append(((o_start, len(old)), (n_start, len(new))))
    return groups


def _smaller(p: IntExpr, q: IntExpr) -> bool:
    """Whether to widen the old side: it has the smaller product, or divides the other."""
    if p.const is not None and q.const is not None:
        return p.const < q.const
    if q.const is None and p.const is not None:
        return True
    if p.const is None and q.const is None and p.terms and q.terms:
        (pm, pc), (qm, qc) = p.terms[0], q.terms[0]
        if len(p.terms) == 1 and len(q.terms) == 1 and set(pm) <= set(qm):
            return (len(pm), pc) < (len(qm), qc)
    return False
