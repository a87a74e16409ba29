"""Subscripts with numbers from data: `x[i]`, `x[:, i]`, `x[:n]`, `x[i] = v`, `layers[k]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dlc.frontend.torch_collect import Collected, Counted, Growing, counted, one_of, row, united
from dlc.frontend.torch_effects import advance_all, alter
from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_masks import is_mask
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_signs import never_negative
from dlc.frontend.torch_steps import Part
from dlc.frontend.torch_values import (
    Absent,
    Choice,
    Either,
    Elided,
    Sometimes,
    Unset,
    absent,
    alike,
    described,
    parts,
    same,
    structure,
)


def _position(v: Any) -> bool:
    """Whether this is one position along a dimension, known at run time only."""
    return isinstance(v, Number) or (
        isinstance(v, torch.Tensor) and v.dim() == 0 and not v.dtype.is_floating_point and v.dtype != torch.bool
    )


def _from_data(key: Any) -> bool:
    if isinstance(key, slice):
        return any(isinstance(b, (Number, torch.Tensor)) for b in (key.start, key.stop, key.step))
    return _position(key)


def _counted(flow: Any, key: Any) -> Any:
    """A key of a list or dict, with extents as numbers."""
    if isinstance(key, slice):
        return slice(*(_counted(flow, b) for b in (key.start, key.stop, key.step)))
    return flow.integer(key) if isinstance(key, torch.SymInt) else key


def _bounds(flow: Any, key: Any, size: Any) -> Any:
    """A slice, of a dimension of that size, whose bounds from data are extents."""
    if not isinstance(key, slice):
        return key
    return slice(_bound(flow, key.start, size), _bound(flow, key.stop, size), _extent(flow, key.step))


def _extent(flow: Any, b: Any) -> Any:
    return flow.extent(b) if isinstance(b, (Number, torch.Tensor)) else b


def _bound(flow: Any, b: Any, size: Any) -> Any:
    """A bound from data as an extent: a negative one counts from the end.

    One extent for all tensors that a number cuts, where it is known not to be negative, else one for each size.
    """
    number = flow.integer(b) if isinstance(b, (Number, torch.Tensor)) else b
    if not isinstance(number, Number) or never_negative(flow.recorder, flow.recorder.node_of(number.tensor)):
        return _extent(flow, number)
    key = id(number.tensor), str(size)
    held = flow.fronts.get(key)
    if held is None or not flow.recorder.visible(held[1].tensor):
        t = number.tensor
        front = Number(int, torch.where(t < 0, torch.clamp(t + size, min=0), t), flow)
        held = flow.fronts[key] = t, front
    return flow.extent(held[1])


def read_item(flow: Any, value: Any, key: Any, shared: bool = True) -> Any:
    """`value[key]`; what is not `shared` is written nowhere but back to it."""
    value, key = flow.narrowed(value), flow.narrowed(key)
    for v, read in ((value, lambda w: read_item(flow, w, key)), (key, lambda w: read_item(flow, value, w))):
        if isinstance(v, Either):
            return v.each(read)
        if isinstance(v, Absent):
            v.refuse()
    if isinstance(value, torch.Tensor):
        return _read_tensor(flow, value, key, shared)
    if isinstance(value, list) and type(key) is int and any(isinstance(v, (Counted, Sometimes)) for v in value):
        return _among(flow, value, key)
    flow.whole(value)
    key = _counted(flow, key)
    if not _from_data(key):
        if isinstance(value, dict) and hasattr(type(value), "__missing__") and key not in value:
            flow.touch(value)  # reading may make the entry
        return value[key]
    if isinstance(key, slice) and isinstance(value, (list, tuple, nn.ModuleList, nn.Sequential)):
        stop = None if key.stop is None else flow.integer(key.stop)
        if isinstance(stop, Number) and (key.start is None or type(key.start) is int) and key.step in (None, 1):
            items = list(value)
            first = range(len(items))[key.start :].start if items else 0
            end = Number(int, torch.where(stop.tensor < 0, stop.tensor + len(items), stop.tensor) - first, flow)
            return Part(flow, items[first:], end)
    if isinstance(key, slice):
        return value[slice(*(flow.integer(b) if b is not None else None for b in (key.start, key.stop, key.step)))]
    known = flow.integer(key)
    if isinstance(known, int):
        return value[known]
    flow.may_raise(KeyError if isinstance(value, dict) else IndexError)
    if isinstance(value, range):
        return value.start + value.step * known
    if isinstance(value, (list, tuple, nn.ModuleList)) and len(value):
        return choose_item(flow, list(value), known)
    if isinstance(value, (dict, nn.ModuleDict)) and len(value) and all(type(k) is int for k in value):
        return choose_item(flow, list(value.values()), _place(flow, list(value), known))
    return value[key]  # Python's own error, or a refusal where it needs the number


def look_up(flow: Any, value: dict[Any, Any], key: Number, default: Any = None) -> Any:
    """`value.get(key, default)` for a key from data."""
    held: Any = False
    for k in value:
        held = flow.either_holds(held, key == k)
    return flow.choose(held, lambda: read_item(flow, value, key), lambda: default)


def _place(flow: Any, keys: list[int], key: Number) -> Number:
    """Where a key from data is among those of a dict; the last where it is not."""
    at = torch.scalar_tensor(len(keys) - 1, dtype=torch.int64)
    for n, k in enumerate(keys[:-1]):
        at = torch.where(key.tensor == k, torch.scalar_tensor(n, dtype=torch.int64), at)
    return Number(int, at, flow)


def _among(flow: Any, items: list[Any], key: int) -> Any:
    """`items[key]` of a list in which something stands for elements whose number, or being there, is data."""
    around = items[: key + 1] if key >= 0 else items[key:]
    if len(items) >= len(around) == (key + 1 if key >= 0 else -key) and not any(isinstance(v, (Elided, Unset)) for v in around):
        return items[key]  # what comes before it, or after it, is there
    if not any(isinstance(v, Counted) for v in items):
        return _nth_there(flow, items, items if key >= 0 else items[::-1], key if key >= 0 else -key - 1)
    *first, last = items
    if isinstance(last, Growing) and key == -1:
        return last.last()
    if not isinstance(last, Collected) or any(isinstance(v, (Elided, Unset)) for v in first):
        flow.whole(items)
    flow.may_raise(IndexError)
    total = counted(items)
    inside = total > key if key >= 0 else total >= -key
    at = Number(int, torch.where(inside.tensor, (total * (key < 0) + key).tensor, total.tensor), flow)  # the end is outside
    if last.kind is not None:
        return Number(last.kind, row(united(items)[0], at), flow)
    if not first:
        return last.item(at)
    there = at >= len(first)
    return flow.choose(there, lambda: last.item(at - len(first)), lambda: choose_item(flow, first, at))


def _nth_there(flow: Any, items: list[Any], rest: list[Any], others: int) -> Any:
    """Of the elements of `rest` that are there the one after so many others."""
    if not rest or not isinstance(rest[0], Sometimes) and isinstance(rest[0], (Elided, Unset)):
        flow.whole(items)
    first, rest = rest[0], rest[1:]

    def there() -> Any:
        return _nth_there(flow, items, rest, others - 1) if others else first.value if isinstance(first, Sometimes) else first

    return flow.choose(first.flag, there, lambda: _nth_there(flow, items, rest, others)) if isinstance(first, Sometimes) else there()


def choose_item(flow: Any, items: list[Any], at: Number) -> Any:
    """The item at a position from data: of tensors a row of their stack, of numbers likewise, of modules one that branches.

    Tuples of equal structure are chosen from element by element.
    """
    first = items[0]
    if all(isinstance(v, torch.Tensor) and alike(first, v) is None for v in items):
        return one_of(flow, items, at)
    if all(isinstance(v, (Number, bool, int, float)) for v in items):
        kinds = {flow.kind(v) for v in items}
        if len(kinds) == 1:
            kind = kinds.pop()
            from dlc.frontend.torch_numbers import tensor_of

            return Number(kind, row(torch.stack([tensor_of(v, kind) for v in items]), at), flow)
    if all(callable(v) for v in items):
        # A negative position counts from the end.
        front = Number(int, torch.where(at.tensor < 0, at.tensor + len(items), at.tensor), flow)
        return Choice(flow, items, front)
    if all(isinstance(v, tuple) and structure(v) == structure(first) for v in items):
        columns = zip(*(parts(v)[0] for v in items), strict=True)  # type: ignore[index]  # a tuple has parts
        return parts(first)[1]([_chosen(flow, list(column), at) for column in columns])  # type: ignore[index]
    kinds_shown = described(first)
    raise flow.refused(
        UncapturedDecision, what="an index into a list", why=f"the items (such as {kinds_shown}) cannot be chosen from at run time"
    )


def _chosen(flow: Any, items: list[Any], at: Number) -> Any:
    return items[0] if all(same(v, items[0]) for v in items) else choose_item(flow, items, at)


def _read_tensor(flow: Any, x: torch.Tensor, key: Any, shared: bool = True) -> Any:
    """`x[key]`: a view as far as writes go, unless it is not `shared`."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(map(is_mask, keys)):
        return x[_positions(flow, keys)]
    if not any(map(_from_data, keys)):
        return x[key]
    if any(_wide(k) for k in keys):
        return x[tuple(_tensor(k) for k in keys)]
    keys = _without_ellipsis(keys, x.dim())
    dim = 0
    for k in keys:
        if _position(k):
            at = k.tensor if isinstance(k, Number) else k.to(torch.int64)
            x = flow.recorder.rows.take(x, dim, at) if shared else torch.index_select(x, dim, at.reshape(1)).squeeze(dim)
            continue
        x = x[(slice(None),) * dim + (_bounds(flow, k, x.shape[dim] if k is not None else 0),)]
        dim += 0 if isinstance(k, int) and not isinstance(k, bool) else 1
    return x


def _positions(flow: Any, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keys with the positions that masks pick in their place."""
    return tuple(p for k in keys for p in (flow.recorder.positions.keys(k) if is_mask(k) else (_tensor(k),)))


def _wide(k: Any) -> bool:
    """Whether a key selects several positions by value."""
    return isinstance(k, (list, bool)) or (isinstance(k, torch.Tensor) and (k.dim() > 0 or k.dtype == torch.bool))


def _tensor(k: Any) -> Any:
    return k.tensor if isinstance(k, Number) else k


def _without_ellipsis(keys: tuple[Any, ...], rank: int) -> tuple[Any, ...]:
    at = next((n for n, k in enumerate(keys) if k is Ellipsis), None)
    if at is None:
        return keys
    used = sum(1 for k in keys if k is not None and k is not Ellipsis)
    return (*keys[:at], *[slice(None)] * (rank - used), *keys[at + 1 :])


def assign_item(flow: Any, value: Any, key: Any, item: Any) -> None:
    """`value[key] = item`."""
    value, key = flow.narrowed(value), flow.narrowed(key)
    for v, write in ((value, lambda w: assign_item(flow, w, key, item)), (key, lambda w: assign_item(flow, value, w, item))):
        if isinstance(v, Either):
            v.each(write)
            return
        if isinstance(v, Absent):
            v.refuse()
    if isinstance(value, torch.Tensor):
        for v in absent((key, item)):
            v.refuse()
        _assign_tensor(flow, value, key, item)
        return
    flow.whole(value)
    if flow.own_method(value, "__setitem__", key, item):
        return
    if isinstance(key, slice):
        advance_all(flow, (item,))
    alter(flow, value, "writing an item")
    if isinstance(value, list) and _from_data(key) and not isinstance(key, slice):
        known = flow.integer(key)
        if not isinstance(known, int):
            _assign_list(flow, value, known, item)
            return
        key = known
    value[key] = item


def _assign_list(flow: Any, items: list[Any], at: Number, item: Any) -> None:
    """Every element becomes the new one if it is the one meant."""
    count = len(items)
    for n, old in enumerate(items):
        meant = flow.either_holds(at == n, at == n - count)
        items[n] = flow.choose(meant, lambda: item, lambda old=old: old)


def _assign_tensor(flow: Any, x: torch.Tensor, key: Any, item: Any) -> None:
    keys = key if isinstance(key, tuple) else (key,)
    if isinstance(item, Number):
        item = item.operand(x).to(x.dtype)
    if any(map(is_mask, keys)) and isinstance(item, torch.Tensor) and free_unbacked_symbols(item):
        x[_positions(flow, keys)] = item
        return
    if not any(map(_from_data, keys)):
        x[key] = item
        return
    value = item.to(x.dtype) if isinstance(item, torch.Tensor) else torch.scalar_tensor(item, dtype=x.dtype)
    if all(_position(k) or type(k) is int for k in keys):
        # Not `x[...] = v`, which would take the positions out of their tensors.
        x.index_put_(tuple(_index(k) for k in keys), value)
        return
    if any(_wide(k) for k in keys):
        x[tuple(_index(k) for k in keys)] = value
        return
    keys = _without_ellipsis(keys, x.dim())
    places: list[torch.Tensor | None] = []
    view, dim = x, 0
    for k in keys:
        if _position(k):
            places.append((k.tensor if isinstance(k, Number) else k.to(torch.int64)).reshape(1))
            dim += 1
            continue
        view = view[(slice(None),) * dim + (_bounds(flow, k, view.shape[dim] if k is not None else 0),)]
        if not (isinstance(k, int) and not isinstance(k, bool)):
            places.append(None)
            dim += 1
    if not any(p is not None for p in places):
        view.copy_(value.expand(view.shape))
        return
    shape = [1 if n < len(places) and places[n] is not None else e for n, e in enumerate(view.shape)]
    kept = [n for n in range(view.dim()) if not (n < len(places) and places[n] is not None)]
    grown = value.expand([view.shape[n] for n in kept]).reshape(shape)
    for n, p in enumerate(places):
        if p is not None:
            view.index_copy_(n, p, grown) if sum(q is not None for q in places) == 1 else _refuse(flow)


def _refuse(flow: Any) -> None:
    raise flow.refused(
        UncapturedDecision, what="several positions", why="they are written together with slices; write one position at a time"
    )


def _index(k: Any) -> Any:
    if isinstance(k, Number):
        return k.tensor
    return torch.scalar_tensor(k, dtype=torch.int64) if type(k) is int else k
