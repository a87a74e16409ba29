"""From a matrix of weights to codes, scales and zero points: rounding to nearest, and with the error of each column passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.codes import encode, values
from dlc.ir.dtype import DType
from dlc.ir.evaluate import hold, round_to

Array: TypeAlias = np.ndarray[Any, Any]

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_SHRINK_MORE = (*_SHRINK, 0.6, 0.5, 0.4, 0.3)
"""How far the greatest weight of a group may be cut off: with few codes the others gain more than it loses."""
_FEW_BITS = 6
_LARGEST = 256.0  # what the greatest weight becomes in floats of a wide range: scales stay numbers of any 16-bit type
_BLOCK = 128  # columns after which errors are passed on to all that follow
_DAMPING = 0.01


@dataclass(frozen=True)
class Grid:
    """How weights become codes.

    Attributes:
        dtype: type of the codes.
        group: weights along a row that share a scale; None for the whole row.
        scales: type that scales are kept in.
        zero: `none`, `codes` (a zero point of the codes' type) or `real` (one of the scales' type).
    """

    dtype: DType
    group: int | None
    scales: DType
    zero: str = "none"

    def groups(self, columns: int) -> int:
        return 1 if self.group is None else -(-columns // self.group)

    def bits(self, columns: int) -> float:
        """Bits of memory per weight, scales and zero points included."""
        width = 8 / self.dtype.per_byte if self.dtype.per_byte else self.dtype.bits
        own = {"none": 0, "codes": self.dtype.bits, "real": self.scales.bits}[self.zero]
        return width + (self.scales.bits + own) * self.groups(columns) / columns


@dataclass(frozen=True)
class Quantised:
    """A matrix `(value(codes) - zeros) * scales`.

    Attributes:
        codes: u8[n, k].
        scales: [n, groups], stored in the grid's type.
        zeros: [n, groups]: codes (u8), or numbers stored in the type of the scales; None without zero points.
    """

    grid: Grid
    codes: Array
    scales: Array
    zeros: Array | None

    def dense(self) -> Array:
        """The matrix, f64[n, k]."""
        columns = self.codes.shape[1]
        numbers = values(self.grid.dtype).astype(np.float64)[self.codes]
        if self.zeros is not None:
            numbers = numbers - _spread(_zero_values(self.grid, self.zeros), self.grid.group, columns)
        return numbers * _spread(hold(self.scales, self.grid.scales), self.grid.group, columns)


def _spread(per_group: Array, group: int | None, columns: int) -> Array:
    return np.repeat(per_group, group or columns, axis=1)[:, :columns]


def _zero_values(grid: Grid, zeros: Array) -> Array:
    if grid.zero == "codes":
        return values(grid.dtype).astype(np.float64)[zeros]
    return hold(zeros, grid.scales)


# --- one group -------------------------------------------------------------------------------------------------------


def group_parameters(w: Array, grid: Grid, importance: Array | None = None) -> tuple[Array, Array | None]:
    """Scales [n] (stored) and zero points [n] of groups of weights w: f64[n, g]; the best of a few by squared error.

    Args:
        importance: weight of each column's error, f64[g].
    """
    best: tuple[Array, Array, Array | None] | None = None
    for scale, zero in _candidates(w, grid):
        stored, zeros = _stored(scale, zero, grid)
        error = (w - _nearest(w, grid, stored, zeros)) ** 2
        loss = np.sum(error if importance is None else error * importance, axis=1)
        if best is None:
            best = loss, stored, zeros
            continue
        better = loss < best[0]
        zeros = None if zeros is None or best[2] is None else np.where(better, zeros, best[2])
        best = np.where(better, loss, best[0]), np.where(better, stored, best[1]), zeros
    assert best is not None
    return best[1], best[2]


def _candidates(w: Array, grid: Grid) -> list[tuple[Array, Array | None]]:
    dtype = grid.dtype
    shrinks = _SHRINK_MORE if dtype.bits <= 2 else _SHRINK if dtype.bits <= _FEW_BITS else (1.0,)
    if grid.zero != "none":
        low, high = w.min(axis=1), w.max(axis=1)
        ranges = [(np.minimum(low, 0), np.maximum(high, 0))]
        if grid.zero == "real":  # of weights that are nearly one number the zero point is out of reach without 0 in the range
            ranges.append((low, high))
        span = _greatest(dtype) - _least(dtype)
        return [
            (s * (b - a) / span, _least(dtype) - s * a / np.maximum(s * (b - a) / span, 1e-30)) for a, b in ranges for s in shrinks
        ]
    size = np.abs(w).max(axis=1)
    made: list[tuple[Array, Array | None]] = [
        (s * size / _greatest(dtype), None) for s in shrinks if _greatest(dtype) > 0
    ]
    if abs(_least(dtype)) > _greatest(dtype):  # two's complement has one more number below 0: turn the sign to use it
        at = np.take_along_axis(w, np.abs(w).argmax(axis=1)[:, None], 1)[:, 0]
        made += [(s * at / _least(dtype), None) for s in shrinks]
    return made


def _greatest(dtype: DType) -> float:
    if not dtype.is_float:
        return float(dtype.highest)
    numbers = values(dtype)
    most = float(numbers[np.isfinite(numbers)].max())
    return most if most <= 2 * _LARGEST else float(most * 2.0 ** -np.floor(np.log2(most / _LARGEST)))


def _least(dtype: DType) -> float:
    return -_greatest(dtype) if dtype.is_float else float(dtype.lowest)


def _stored(scale: Array, zero: Array | None, grid: Grid) -> tuple[Array, Array | None]:
    """Scales and zero points as they are kept; a scale beyond the reach of its type is the nearest one to it that is not 0."""
    least, most = _reach(grid.scales)
    within = np.copysign(np.clip(np.abs(scale), least, most), 1.0 if grid.scales.is_coded else scale)  # powers of two have no sign
    kept = round_to(within, grid.scales)
    if zero is None:
        return kept, None
    return kept, encode(zero, grid.dtype) if grid.zero == "codes" else round_to(zero, grid.scales)


def _reach(dtype: DType) -> tuple[float, float]:
    """The least number above 0 of a type of scales, and the greatest."""
    if dtype.is_coded:
        numbers = values(dtype)
        numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
        return float(numbers.min()), float(numbers.max())
    infinity = round_to(np.array([np.inf]), dtype).view(f"u{dtype.bytes}")
    least, most = hold(np.array([1, infinity[0] - 1], infinity.dtype).view(dtype.numpy), dtype)  # the bits next to those of 0 and of it
    return float(least), float(most)


def codes_for(w: Array, grid: Grid, scales: Array, zeros: Array | None) -> Array:
    """Codes (u8[n, g]) of weights of one group per row."""
    x = w / hold(scales, grid.scales)[:, None]
    return encode(x if zeros is None else x + _zero_values(grid, zeros)[:, None], grid.dtype)


def _numbers(codes: Array, grid: Grid, scales: Array, zeros: Array | None) -> Array:
    x = values(grid.dtype).astype(np.float64)[codes]
    return (x if zeros is None else x - _zero_values(grid, zeros)[:, None]) * hold(scales, grid.scales)[:, None]


def _nearest(w: Array, grid: Grid, scales: Array, zeros: Array | None) -> Array:
    return _numbers(codes_for(w, grid, scales, zeros), grid, scales, zeros)


# --- a matrix --------------------------------------------------------------------------------------------------------


def round_to_nearest(w: Array, grid: Grid) -> Quantised:
    """Each weight of w: f64[n, k] as the nearest one of its group."""
    n, k = w.shape
    size, groups = grid.group or k, grid.groups(k)
    full = np.zeros((n, groups * size))
    full[:, :k] = w
    if groups * size > k and (grid.zero == "real" or grid.dtype.is_bipolar):
        full[:, k:] = w[:, -1:]  # what is beyond must not widen the last group's range, nor count as errors of numbers that have no 0
    rows = full.reshape(n * groups, size)
    scales, zeros = group_parameters(rows, grid)
    codes = codes_for(rows, grid, scales, zeros).reshape(n, groups * size)[:, :k]
    return Quantised(grid, codes, scales.reshape(n, groups), None if zeros is None else zeros.reshape(n, groups))


def compensated(w: Array, grid: Grid, moments: Array) -> Quantised:
    """Codes chosen column by column, the rounding error of each made up for by the columns that follow.

    Minimises `|(W - W') X|` over calibration inputs X, of which `moments` is X X^T, f64[k, k]. An input that is always 0 leaves its
    weights free.

    Source: Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1; the scales of a group are chosen when its first column is
    reached, from the weights as they are then.
    """
    n, k = w.shape
    size = grid.group or k
    upper = _inverse_factor(moments)
    left = w.astype(np.float64).copy()
    codes = np.zeros((n, k), np.uint8)
    kept: list[tuple[Array, Array | None]] = []
    importance = np.maximum(np.diag(moments), 0)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        errors = np.zeros((n, stop - start))
        for j in range(start, stop):
            if j % size == 0:
                weight = importance[j : j + size]
                kept.append(group_parameters(left[:, j : j + size], grid, weight if weight.any() else None))
            scales, zeros = kept[-1]
            codes[:, j] = codes_for(left[:, j : j + 1], grid, scales, zeros)[:, 0]
            error = (left[:, j] - _numbers(codes[:, j : j + 1], grid, scales, zeros)[:, 0]) / upper[j, j]
            left[:, j + 1 : stop] -= np.outer(error, upper[j, j + 1 : stop])
            errors[:, j - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    zeros_of = [z for _, z in kept if z is not None]
    return Quantised(grid, codes, np.stack([s for s, _ in kept], 1), np.stack(zeros_of, 1) if zeros_of else None)


def _inverse_factor(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse of the damped moments."""
    h = moments.astype(np.float64).copy()
    at = np.arange(len(h))
    dead = np.diag(h) <= 0
    h[at[dead], at[dead]] = 1.0
    damping = _DAMPING * float(np.mean(np.diag(h)))
    h[at, at] += damping
    return np.linalg.cholesky(np.linalg.inv(h)).T


# --- errors ----------------------------------------------------------------------------------------------------------


def relative_error(w: Array, approximation: Array, moments: Array | None = None) -> float:
    """|W - W'| / |W|, or with moments the same of the products with the calibration inputs."""
    difference = w - approximation

    def size(a: Array) -> float:
        return float(np.sum(a * a) if moments is None else np.sum((a @ moments) * a))

    whole = size(w)
    return float(np.sqrt(max(size(difference), 0.0) / whole)) if whole > 0 else 0.0
