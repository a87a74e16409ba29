"""Small filters with unit stride by Winograd's short convolutions, where that costs less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from dlc.costmodel.interface import peaks_of_core
from dlc.costmodel.roofline import steps_time_s
from dlc.ir.dtype import F32, I64
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType, einsum
from dlc.ir.expr import Access, Apply, Const, Expr, Index, Piecewise, apply, const, walk
from dlc.ir.extent import IntExpr, Var, has_value, int_expr, var, variables
from dlc.ir.forms import form
from dlc.ir.products import plain_access
from dlc.ir.program import Param, Program, Region, Stmt, fresh_name, tensor_types
from dlc.ir.rename import rename_einsum
from dlc.passes.bands import Chain, in_bands, tiles_of_band
from dlc.passes.contractions import contraction_factors
from dlc.passes.cook_toom import CookToom, Matrix, cook_toom
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.inline_pointwise import is_pointwise
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import Names, access_counts, drop_dead, map_regions, whole_reads

TAPS = 3
OUTPUTS = (4, 2)
"""Outputs per tile and dimension that are tried; the larger saves more products and loses more bits."""


@dataclass(frozen=True)
class Winograd(Pass):
    """Compute a convolution of three taps and stride 1 by F(m, 3) in one or two of its dimensions.

        O[b, c, y, x] = sum(k, i, j) (X[b, k, y+i-1, x+j-1] else 0) * W[c, k, i, j]
    ->  T[b, ty, tx, u, j, k] = sum over i of B^T[u, i] X[b, k, m ty+i-1, m tx+j-1]              written out, B^T is small
        V[u, v, b, ty, tx, k] = sum over j of B^T[v, j] T[b, ty, tx, u, j, k]
        M[u, v, b, ty, tx, c] = sum(k) V[u, v, b, ty, tx, k] * U[u, v, c, k]                     U = G W G^T, a constant
        S[b, ty, tx, u, x', c], Y[b, ty, tx, y', x', c]: A^T along v, then along u
        O[b, c, y, x] = Y[b, y // m, x // m, y % m, x % m, c]

    F(4, 3) needs 4 times fewer products in two dimensions, F(2, 3) 2.25 times. The result is the same over the reals. In
    f32 the errors of a tile's outputs are relative to the largest input of the tile, not to the terms of each output: at
    most `CookToom.amplification` per dimension (16 and 2.7) times what a direct sum of terms that large could lose. A
    pixel a million times larger than its neighbours costs these their low bits, and one beyond 1e37, an infinity or NaN
    reaches the whole tile: `accuracy="strict"` leaves this pass out. It is done where the roofline of the parts is below
    `gain` times that of the direct form.

    Where V and M together are more than `cache_bytes` (half a last cache), they are made band by band of the image's lines, at
    most `band_bytes` at a time, with the point-wise step that follows: see `bands.py`. The result is the same to the bit.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), algorithm 1.
    """

    name: ClassVar[str] = "winograd"
    lanes: int = 16
    gain: float = 0.85
    cache_bytes: int = 16 << 20
    band_bytes: int = 10 << 20

    def apply(self, program: Program) -> Program:
        return _Rewrite(explicit_domains(program), self).run()

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        known = {c.name for c in before.consts}
        return {"filters": sum(c.name not in known for c in after.consts)} if after is not before else {}


@dataclass(frozen=True)
class Window:
    """A dimension of the image that is read at `y + tap + offset`.

    Attributes:
        dim: of the image.
        y: the free rank; tap: the reduced one, of extent `TAPS`.
        weight_dim: of the weights, read at `tap`.
    """

    dim: int
    y: Rank
    tap: str
    weight_dim: int
    offset: IntExpr


@dataclass(frozen=True)
class Convolution:
    """A step that this pass can rewrite: its operands and its one or two windows."""

    step: Einsum
    image: Access
    weights: Access
    windows: tuple[Window, ...]


def find_convolution(step: Einsum, constants: frozenset[str] | set[str]) -> Convolution | None:
    """The step as a convolution by constant weights with windows of three taps and unit stride, or None."""
    factors = contraction_factors(step)
    if factors is None or step.dtype != F32 or step.reduce is None or not step.row_major:
        return None
    for weights, image in (factors, factors[::-1]):
        plain = plain_access(weights)
        if plain is None or plain is not weights or plain.tensor not in constants:
            continue
        if not isinstance(image, Access) or any(has_value(i) for i in image.index):
            continue
        if image.default is not None and image.default != Const(0.0, F32):
            continue
        windows = [w for r in step.reduced if (w := _window(step, r, image, plain)) is not None]
        used = {w.tap for w in windows[:2]}
        deep = [r for r in step.reduced if r.name not in used and r.name in image.variables & plain.variables]
        wide = [r for r in step.ranks if r.name in plain.variables - image.variables]
        if windows and deep and wide:
            return Convolution(step, image, plain, tuple(windows[:2]))
    return None


def _window(step: Einsum, tap: Rank, image: Access, weights: Access) -> Window | None:
    if tap.extent.const != TAPS:
        return None
    dims = [d for d, i in enumerate(image.index) if tap.name in variables(i)]
    places = [d for d, i in enumerate(weights.index) if tap.name in variables(i)]
    if len(dims) != 1 or len(places) != 1 or weights.index[places[0]] != var(tap.name):
        return None
    for y in step.ranks:
        rest = image.index[dims[0]] - var(tap.name) - var(y.name)
        elsewhere = any(y.name in variables(i) for d, i in enumerate(image.index) if d != dims[0])
        if rest.const is not None and not elsewhere and y.name not in weights.variables:
            return Window(dims[0], y, tap.name, places[0], rest)
    return None


@dataclass
class _Rewrite:
    program: Program
    options: Winograd
    consts: list[Param] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    chosen: dict[tuple[Einsum, int], int | None] = field(default_factory=dict)

    def run(self) -> Program:
        self.names, self.types = Names(self.program), tensor_types(self.program)
        kept = (c for c in self.program.consts if c.name in self.program.data)
        self.constants = {c.name for c in kept if c.type.dtype == F32}
        self.counts, self.whole = access_counts(self.program), whole_reads(self.program)
        self.peaks = peaks_of_core(self.options.lanes * 32)
        program = map_regions(self.program, self._region)
        if program is self.program:
            return program
        consts = (*program.consts, *self.consts)
        return drop_dead(replace(program, consts=consts, data={**program.data, **self.data}))

    def _region(self, region: Region) -> Region:
        body: list[Stmt] = []
        known = {p.name for p in (*self.program.params, *self.program.consts)}
        absorbed: set[str] = set()
        for n, stmt in enumerate(region.body):
            found = find_convolution(stmt, self.constants) if isinstance(stmt, Einsum) else None
            if not absorbed.isdisjoint(stmt.outs):
                continue
            if found is None:
                body.append(stmt)
            else:
                tail = self._tail(found.step, region.body[n + 1 :], known)
                made, took = self._best(found, tail)
                body += made
                absorbed |= set(tail.outs) if took and tail is not None else set()
            known |= set(stmt.outs)
        return region if len(body) == len(region.body) and not absorbed else Region(tuple(body), region.yields)

    def _tail(self, step: Einsum, after: Sequence[Stmt], known: set[str]) -> Einsum | None:
        """The only statement that reads the step's result, point by point, over the step's own ranks; else None."""
        if self.counts[step.out] != 1 or step.out in self.whole:
            return None
        reader = next((s for s in after if step.out in s.reads), None)
        if not isinstance(reader, Einsum) or not is_pointwise(reader) or not reader.row_major:
            return None
        (own,) = (a for a in reader.accesses() if a.tensor == step.out)
        if not {t for t in reader.reads if t != step.out} <= known or any(has_value(i) for a in reader.accesses() for i in a.index):
            return None
        if any(isinstance(e, Index) for e in walk(reader.expr)):
            return None
        at = {i.atom.name: r.name for i, r in zip(own.index, step.ranks, strict=True) if isinstance(i.atom, Var)}
        units = [r.name for r in step.ranks if r.extent.const == 1 and r.name not in at.values()]
        left = [r.name for r in reader.ranks if r.extent.const == 1 and r.name not in at]
        at |= dict(zip(left, units, strict=False))
        whole = len(at) == len(step.ranks) and at.keys() == {r.name for r in reader.ranks}
        if own.default is not None or not whole or any(r.extent != step.extents[at[r.name]] for r in reader.ranks):
            return None
        return rename_einsum(reader, at, {})

    def _best(self, conv: Convolution, tail: Einsum | None) -> tuple[Sequence[Stmt], bool]:
        """The cheapest form, the direct one unless another is clearly cheaper, and whether `tail` is part of it."""
        elements = self.types[conv.weights.tensor].elements.const or 0
        key = (form(conv.step).step, elements)  # the form says which factor is the image: the one with windows
        if key not in self.chosen:
            self.chosen[key] = self._chosen(conv, elements)
        chosen = self.chosen[key]
        if chosen is None:
            return [conv.step], False
        transform = cook_toom(chosen, TAPS)
        made = cascade(conv, transform, self.names.fresh)
        array = transform_weights(conv, transform, np.asarray(self.program.data[conv.weights.tensor]))
        self.consts.append(Param(made.weights, TensorType(F32, tuple(map(int_expr, array.shape)))))
        self.data[made.weights] = array
        bands = self._bands(conv, made, transform.m, tail)
        return (bands, True) if bands is not None else ([*made.before, made.product, *made.after], False)

    def _bands(self, conv: Convolution, made: Form, m: int, tail: Einsum | None) -> list[Stmt] | None:
        """The form band by band where what passes between its parts is more than a cache holds, and lines follow each other."""
        step, window = conv.step, conv.windows[0]
        storage = made.after[-1].order or tuple(range(len(step.ranks)))
        names = tuple(step.ranks[d].name for d in storage)
        outer = [step.ranks[d] for d in storage[: storage.index(step.ranks.index(window.y))]]
        tile = made.product.ranks[made.tile]
        steps = (*made.before, made.product, *made.after, *([tail] if tail is not None else []))
        chain = Chain(steps, tile, window.y, m, names, (made.before[-1].out, made.product.out))
        if any(r.extent.const != 1 for r in outer) or chain.between * (tile.extent.const or 0) <= self.options.cache_bytes:
            return None
        tiles = tiles_of_band(chain, self.options.band_bytes)
        return in_bands(chain, tiles, self.names.fresh) if tiles else None

    def _chosen(self, conv: Convolution, weights: int) -> int | None:
        """Outputs per tile of the cheapest form, None for the direct one; the filters have `weights` elements."""
        sizes = _sizes(conv)
        limit = self.options.gain * steps_time_s([[conv.step]], sizes, self.peaks, 4 * weights)
        best: tuple[float, int] | None = None
        for m in OUTPUTS:
            made = cascade(conv, cook_toom(m, TAPS), lambda base: base)
            grown = weights * cook_toom(m, TAPS).n ** len(conv.windows) / TAPS ** len(conv.windows)
            time = steps_time_s(made.kernels(), sizes, self.peaks, int(4 * grown))
            if time < limit and (best is None or time < best[0]):
                best = (time, m)
        return None if best is None else best[1]


def _sizes(conv: Convolution) -> dict[str, int]:
    """What to take symbols for: an image of unknown size has 64 pixels in a row, everything else unknown is one."""
    image = {n for w in conv.windows for n in variables(w.y.extent)}
    unknown = {n for r in conv.step.all_ranks for n in variables(r.extent)}
    return {n: 64 if n in image else 1 for n in unknown}


def transform_weights(conv: Convolution, transform: CookToom, array: np.ndarray) -> np.ndarray:
    """G along each window's dimension of the weights, in f64, rounded once; the new dimensions come first."""
    g = np.asarray(transform.g, dtype=np.float64)
    moved = np.moveaxis(array.astype(np.float64), [w.weight_dim for w in conv.windows], range(len(conv.windows)))
    for k in range(len(conv.windows)):
        moved = np.moveaxis(np.tensordot(g, moved, axes=(1, k)), 0, k)
    return np.ascontiguousarray(moved.astype(np.float32))


@dataclass(frozen=True)
class Form:
    """A convolution by F(m, r): transforms of the image, products, transforms of the result; the filter's is a constant."""

    before: tuple[Einsum, ...]
    product: Einsum
    after: tuple[Einsum, ...]
    weights: str
    tile: int

    def kernels(self) -> list[list[Einsum]]:
        """How its parts will run: each list as one kernel."""
        return [list(self.before), [self.product], list(self.after)]


def cascade(conv: Convolution, transform: CookToom, fresh: Any) -> Form:
    """The Einsums of `conv` by `transform`; `fresh` makes names of tensors."""
    step, windows, m, n = conv.step, conv.windows, transform.m, transform.n
    taken = {r.name for r in step.all_ranks} | {v for r in step.all_ranks for v in variables(r.extent)}

    def rank(base: str, extent: IntExpr | int) -> Rank:
        made = Rank(fresh_name(base, taken), int_expr(extent))
        taken.add(made.name)
        return made

    tiles = [rank(f"{w.y.name}_t", (w.y.extent + (m - 1)) // m) for w in windows]
    spots = [rank("u", n) for _ in windows]  # positions of the products
    outs = [rank("e", m) for _ in windows]  # outputs inside a tile
    of_window = {w.y.name: t for w, t in zip(windows, tiles, strict=True)}
    base = step.out
    lane = step.ranks[_lane(conv)]
    free = [of_window.get(r.name, r) for r in step.ranks if r != lane] + [lane]
    image_free = [of_window.get(r.name, r) for r in step.ranks if r.name in conv.image.variables]
    depth = [r for r in step.reduced if r.name in conv.image.variables and r.name not in {w.tap for w in windows}]
    depth.sort(key=lambda r: r.extent.const or 64)

    def made(name: str, ranks: Sequence[Rank], expr: Expr) -> Einsum:
        return einsum(name, tuple(ranks), expr, F32, loc=step.loc)

    def at(name: str, ranks: Sequence[Rank], **index: IntExpr) -> Access:
        return Access(name, tuple(index.get(r.name, var(r.name)) for r in ranks))

    def image(positions: Sequence[IntExpr]) -> Expr:
        index = list(conv.image.index)
        for w, t, p in zip(windows, tiles, positions, strict=True):
            index[w.dim] = m * var(t.name) + p + w.offset
        return Access(conv.image.tensor, tuple(index), const(0.0, F32))

    before: list[Einsum] = []
    v_ranks = [*spots, *image_free, *depth]
    if len(windows) == 2:
        column = rank("j", n)
        t_ranks = [*image_free, spots[0], column, *depth]
        t = fresh(f"{base}_bx")
        rows = _combined(transform.bt, spots[0], lambda i: image([int_expr(i), var(column.name)]))
        before.append(made(t, t_ranks, rows))
        inputs = _combined(transform.bt, spots[1], lambda j: at(t, t_ranks, **{column.name: int_expr(j)}))
    else:
        inputs = _combined(transform.bt, spots[0], lambda i: image([int_expr(i)]))
    v = fresh(f"{base}_v")
    before.append(made(v, v_ranks, inputs))

    weights = fresh(f"{conv.weights.tensor}_u")
    taken_dims = {w.weight_dim for w in windows}
    filter_index = (*(var(s.name) for s in spots), *(i for d, i in enumerate(conv.weights.index) if d not in taken_dims))
    ranks = [*spots, *free]
    product = fresh(f"{base}_m")
    left = [r for r in step.reduced if r.name not in {w.tap for w in windows}]
    accumulator = step.reduce.accumulator if step.reduce is not None else None
    multiply = replace(
        made(product, ranks, Apply("mul", (at(v, v_ranks), Access(weights, filter_index)))),
        reduce=Reduce("sum", tuple(left), accumulator),
    )

    after: list[Einsum] = []
    source, source_ranks = product, ranks
    for k in reversed(range(len(windows))):
        here = [outs[k], *(r for r in source_ranks if r != spots[k])]
        name = fresh(f"{base}_y")
        old, old_ranks, spot = source, source_ranks, spots[k]
        expr = _combined(transform.at, outs[k], lambda u, o=old, r=old_ranks, s=spot: at(o, r, **{s.name: int_expr(u)}))
        after.append(made(name, here, expr))
        source, source_ranks = name, here
    index = {t.name: var(w.y.name) // m for w, t in zip(windows, tiles, strict=True)}
    index |= {e.name: var(w.y.name) % m for w, e in zip(windows, outs, strict=True)}
    result = Access(source, tuple(index.get(r.name, var(r.name)) for r in source_ranks))
    after.append(replace(made(step.out, step.ranks, result), order=_channels_last(conv)))
    return Form(tuple(before), multiply, tuple(after), weights, multiply.ranks.index(tiles[0]))


def _lane(conv: Convolution) -> int:
    """The widest dimension of the result that the weights alone have: the lanes of the product."""
    ranks = conv.step.ranks
    own = [d for d, r in enumerate(ranks) if r.name in conv.weights.variables - conv.image.variables]
    return max(own, key=lambda d: ranks[d].extent.const or 64)


def _channels_last(conv: Convolution) -> tuple[int, ...] | None:
    """Storage order of the result with the product's lanes innermost."""
    ranks, last = conv.step.ranks, _lane(conv)
    order = (*(d for d in range(len(ranks)) if d != last), last)
    return None if order == tuple(range(len(ranks))) else order


def _combined(matrix: Matrix, rank: Rank, term: Any) -> Expr:
    """`sum over i of matrix[rank, i] * term(i)` written out, a piece for each row."""
    rows = [_row(row, term) for row in matrix]
    pieces = tuple(
        (apply("lt", Index(var(rank.name)), Const(k + 1, I64)), row) for k, row in enumerate(rows[:-1])
    )
    return Piecewise(pieces, rows[-1])


def _row(row: Sequence[Fraction], term: Any) -> Expr:
    total: Expr | None = None
    for i, factor in enumerate(row):
        if not factor:
            continue
        size, negative = abs(factor), factor < 0
        value: Expr = term(i) if size == 1 else Apply("mul", (const(float(size), F32), term(i)))
        if total is None:
            total = Apply("neg", (value,)) if negative else value
        else:
            total = Apply("sub" if negative else "add", (total, value))
    assert total is not None
    return total


__all__ = ["Convolution", "Winograd", "cascade", "find_convolution", "transform_weights"]
