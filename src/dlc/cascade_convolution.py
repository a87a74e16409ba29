"""Sums over windows of a padded tensor, found in an Einsum of two factors, as a convolution of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Const
from dlc.ir.extent import IntExpr, Var, evaluate, has_value, variables

_CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


@dataclass(frozen=True, slots=True)
class Window:
    """One dimension of the data, `stride*move + dilation*tap - low`.

    Attributes:
        dim: which dimension.
        tap, move: the reduced and the free rank.
        low, high: padding at its begin and end; negative where elements are left out.
    """

    dim: int
    tap: str
    move: str
    stride: int
    dilation: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Convolution:
    """`sum(k, i..) X[n, k, s*y + d*i - p ..] * W[o, k, i..]`, whatever the order of dimensions.

    Attributes:
        data, filters: the two tensors.
        ranks: of the result: the batch if there is one, the filters, each window's moves.
    """

    data: str
    filters: str
    data_order: tuple[int, ...]
    filter_order: tuple[int, ...]
    windows: tuple[Window, ...]
    ranks: tuple[str, ...]

    def run(self, tensors: Mapping[str, Any]) -> Any:
        """The result over `ranks`."""
        x, w = tensors[self.data].permute(self.data_order), tensors[self.filters].permute(self.filter_order)
        single = len(self.data_order) == len(self.windows) + 1
        x = x.unsqueeze(0) if single else x
        pads = [p for window in reversed(self.windows) for p in (window.low, window.high)]
        x = torch.nn.functional.pad(x, pads)
        strides, dilations = [v.stride for v in self.windows], [v.dilation for v in self.windows]
        result = _CONVOLUTIONS[len(self.windows) - 1](x, w, stride=strides, dilation=dilations)
        return result[0] if single else result


def find_convolution(
    step: Einsum,
    factors: Sequence[Access],
    shapes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    fixed: Mapping[str, int],
) -> Convolution | None:
    """The convolution that the sum of the product of `factors` is.

    Args:
        shapes: of the tensors.
        sizes: of the step's ranks.
        fixed: values of symbols and ranks around.
    """
    if len(factors) != 2:
        return None
    for x, w in (tuple(factors), tuple(reversed(factors))):
        found = _of(step, x, w, shapes, sizes, fixed)
        if found is not None:
            return found
    return None


def _of(
    step: Einsum,
    x: Access,
    w: Access,
    shapes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    fixed: Mapping[str, int],
) -> Convolution | None:
    reduced = {r.name for r in step.reduced}
    filters = [i.atom.name for i in w.index if isinstance(i.atom, Var)]
    whole = w.default is None and len(set(filters)) == len(w.index) and set(filters) <= sizes.keys()
    if not whole or [sizes[n] for n in filters] != list(shapes[w.tensor]):
        return None
    if x.default is not None and not (isinstance(x.default, Const) and float(x.default.value) == 0.0):
        return None
    windows: list[Window] = []
    plain: list[tuple[int, str]] = []
    for d, i in enumerate(x.index):
        names = variables(i) & sizes.keys()
        if has_value(i):
            return None
        if len(names) == 2:
            window = _window(
                d, i, names & reduced & set(filters), names - reduced - set(filters), sizes, fixed, shapes[x.tensor][d]
            )
            if window is None or (x.default is None and (window.low > 0 or window.high > 0)):
                return None
            windows.append(window)
        elif isinstance(i.atom, Var) and names and sizes[i.atom.name] == shapes[x.tensor][d]:
            plain.append((d, i.atom.name))
        else:
            return None
    channel = [(d, n) for d, n in plain if n in reduced]
    batch = [(d, n) for d, n in plain if n not in reduced and n not in filters]
    outs = [n for n in filters if n not in reduced]
    taps = [v.tap for v in windows]
    if (
        not 0 < len(windows) <= 3
        or len(channel) != 1
        or len(batch) > 1
        or len(plain) != 1 + len(batch)
        or len(outs) != 1
    ):
        return None
    order = [outs[0], channel[0][1], *taps]
    if reduced != {channel[0][1], *taps} or set(filters) != set(order) or len(set(taps)) < len(taps):
        return None
    return Convolution(
        x.tensor,
        w.tensor,
        tuple(d for d, _ in (*batch, *channel)) + tuple(v.dim for v in windows),
        tuple(filters.index(n) for n in order),
        tuple(windows),
        (*(n for _, n in batch), outs[0], *(v.move for v in windows)),
    )


def _window(
    dim: int,
    i: IntExpr,
    taps: frozenset[str],
    moves: frozenset[str],
    sizes: Mapping[str, int],
    fixed: Mapping[str, int],
    size: int,
) -> Window | None:
    if len(taps) != 1 or len(moves) != 1:
        return None
    (tap,), (move,) = taps, moves

    def at(m: int, t: int) -> int:
        return int(evaluate(i, {**fixed, move: m, tap: t}))

    first = at(0, 0)
    stride, dilation = at(1, 0) - first, at(0, 1) - first
    if stride < 1 or dilation < 1 or not all(isinstance(a, Var) for m, _ in i.terms for a in m):
        return None
    last = first + stride * (sizes[move] - 1) + dilation * (sizes[tap] - 1)
    return Window(dim, tap, move, stride, dilation, -first, last + 1 - size)
