"""States of a loop that grow along one dimension by as much in every step, or not at all, as `x = torch.cat([x, f(x)])` does.

Such a state is kept as rows up to the greatest size that it can have, and how many of them there are; the loop's body sees the
rows that are there. The greatest size follows from how many steps there are at most, or from what the loop's condition says
of the size itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from dlc.frontend.torch_flow import MOST_CUT, UNKNOWN_SIZE, most_of, size_at_run_time
from dlc.frontend.torch_numbers import Number, tensor_of
from dlc.frontend.torch_values import Grown, Growth, Lengths, parts, structure

_MOST_CASES = 64


def growing(flow: Any, start: Any, end: Any) -> tuple[int, int, bool] | None:
    """How a step makes a tensor longer: along which dimension, by how much, whether always; None if it does anything else to it."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if isinstance(start, torch.Tensor) and isinstance(end, Lengths):
        if end.joined(start) is None or not isinstance(start.shape[end.dim], int):
            return None
        longer = [n - start.shape[end.dim] for n in end.sizes]
        return (end.dim, max(longer), False) if min(longer) >= 0 else None
    if not isinstance(start, torch.Tensor) or not isinstance(end, torch.Tensor):
        return None
    if start.dtype != end.dtype or start.dim() != end.dim() or start.device != end.device:
        return None
    with disable_proxy_modes_tracing():
        dims = [d for d, (p, q) in enumerate(zip(start.shape, end.shape, strict=True)) if not statically_known_true(p == q)]
        more = _more(flow, end.shape[dims[0]], start.shape[dims[0]]) if len(dims) == 1 else None
    if not more or min(more) < 0 or max(more) == 0:
        return None
    return dims[0], max(more), len(more) == 1


def _more(flow: Any, end: Any, start: Any) -> set[int] | None:
    """By how much one extent exceeds another, on one path or the other; None where that is no known number."""
    more = end - start
    found: set[int] = set()
    pending = {more if isinstance(more, int) else more.node.expr.expand()}
    for _ in range(_MOST_CASES):
        if not pending:
            return found
        e = pending.pop()
        if isinstance(e, int) or e.is_Integer:
            found.add(int(e))
            continue
        chosen = next((s for s in e.free_symbols if s in flow.sizes), None)
        if chosen is None:
            return None
        pending |= {e.subs(chosen, _expression(side)).expand() for side in flow.sizes[chosen]}
    return None


def _expression(e: Any) -> Any:
    return e if isinstance(e, int) else e.node.expr


def opened(start: torch.Tensor, dim: int, by: int, even: bool) -> Grown | None:
    """The state before the loop, of a greatest size that is not known yet; None if its other extents are data."""
    size = start.shape[dim]
    first = most_of(size)
    if first is None or not all(isinstance(e, int) for d, e in enumerate(start.shape) if d != dim):
        return None
    return _room(start, Growth(dim, by, size if isinstance(size, int) else 0, first, even=even))


def _room(start: torch.Tensor, g: Growth) -> Grown:
    """The state before the loop; its rows are made when the loop is (`packed`)."""
    with disable_proxy_modes_tracing():
        rows = torch.empty(_shape(start, g), dtype=start.dtype, device=start.device)
    size = start.shape[g.dim]
    return Grown(rows, size, g, start)


def _shape(v: torch.Tensor, g: Growth) -> list[int]:
    return [(g.most or UNKNOWN_SIZE) if d == g.dim else e for d, e in enumerate(v.shape)]


def packed(flow: Any, v: torch.Tensor, g: Growth) -> Grown:
    """A tensor as rows up to the greatest size."""
    size = v.shape[g.dim]
    whole = torch.zeros(_shape(v, g), dtype=v.dtype)
    whole.narrow(g.dim, 0, size).copy_(v)
    return Grown(whole, size if isinstance(size, int) and g.even else Number(int, torch.scalar_tensor(size, dtype=torch.int64), flow), g)


def sized(v: Grown, steps: int) -> Grown | None:
    """The state before the loop where there are at most so many steps; None if that is too large."""
    most = v.growth.first + v.growth.by * steps
    made = _room(v.origin, replace(v.growth, most=most))
    return made if made.whole.numel() <= MOST_CUT else None


def shown(flow: Any, v: Any, left: int) -> Any:
    """What the model sees of a state to which at least `left` steps are to come: the rows that are there."""
    return each(v, lambda g: _rows(flow, g, left))


def _rows(flow: Any, v: Grown, left: int) -> Any:
    if v.origin is not None and v.growth.even:
        return v.origin
    if v.origin is not None:  # as long as data say, from now on
        v = packed(flow, v.origin, v.growth)
    g = v.growth
    size = size_at_run_time(tensor_of(v.size, int), (g.most or UNKNOWN_SIZE) - left * g.by, g.least)
    return v.whole.narrow(g.dim, 0, size)


def _has_grown(flow: Any, seen: Any, end: Any, g: Growth) -> bool:
    """Whether a step has added as much as the first one, or nothing where that may be."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if not isinstance(end, torch.Tensor) or end.dtype != seen.dtype or end.dim() != seen.dim():
        return False
    with disable_proxy_modes_tracing():
        more = _more(flow, end.shape[g.dim], seen.shape[g.dim])
        grows = more == {g.by} if g.even else more is not None and min(more) >= 0 and max(more) <= g.by
        rest = [(p, q) for d, (p, q) in enumerate(zip(seen.shape, end.shape, strict=True)) if d != g.dim]
        return grows and all(statically_known_true(p == q) for p, q in rest)


def each(v: Any, f: Callable[[Grown], Any]) -> Any:
    """The value with `f` of each growing state in it; itself if there is none."""
    if isinstance(v, Grown):
        return f(v)
    found = parts(v)
    if found is None:
        return v
    items = [each(item, f) for item in found[0]]
    return v if all(p is q for p, q in zip(items, found[0], strict=True)) else found[1](items)


class Uneven(Exception):
    """A state grows by another number of rows in some steps; the argument is how (`growing`), None if that is unknown."""


def filled(flow: Any, start: Any, seen: Any, end: Any) -> Any:
    """What a step leaves, with its growing states as rows up to the greatest size.

    Args:
        flow: the recording.
        start: the value before the loop.
        seen: what the model has seen of it at the start of the step.
        end: what it has left.

    Raises:
        Uneven: a state has grown otherwise than before.
    """
    if isinstance(start, Grown):
        if not _has_grown(flow, seen, end, start.growth):
            raise Uneven(growing(flow, seen, end))
        return packed(flow, end, start.growth)
    a, b, c = parts(start), parts(seen), parts(end)
    if a is None or b is None or c is None or not structure(start) == structure(seen) == structure(end):
        return end
    items = [filled(flow, *v) for v in zip(a[0], b[0], c[0], strict=True)]
    return end if all(p is q for p, q in zip(items, c[0], strict=True)) else c[1](items)
