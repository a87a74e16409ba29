"""What an eager run decided, where, and how nearly it decided otherwise.

    with recorded() as decisions:
        model(*inputs)

Nothing of the model is known here. A mode of torch sees every operation; results of comparisons carry how far they are from
turning over, whatever is computed from them inherits it, and a decision is noted where it leaves the tensors or enters
a computation:

    bool(t), int(t), t.item()          of a tensor that is decided (a comparison, an index) or of a whole number
    n < m, int(n), round(n)            of a Python number that came from `.item()`; of a whole one, comparisons
    x[mask], embedding(k), where(m, ..)   a mask or an index that is used by an operation on floats: which elements it picked
    x[mask], nonzero(mask), where(mask)   a new extent: whether there is anything

The margin is the distance to the turning point over the scale of what was compared, max(1, |a|, |b|); infinite where only whole
numbers that were given decide. For `any` it is the largest margin of the true elements, for `all` the least, and so on: the
robustness of the formula.

Source: robust semantics of predicates, Fainekos and Pappas, Robustness of temporal logic specifications (2009), section 3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CLOSE = 1e-5
"""Calls with a lesser margin may go either way in f32."""

_TORCH = str(Path(torch.__file__).parent)
_COMPARISONS = {"gt": 1, "ge": 1, "greater": 1, "greater_equal": 1, "lt": -1, "le": -1, "less": -1, "less_equal": -1}
_EQUALITIES = ("eq", "ne", "equal", "not_equal")
_TURNS = ("argmax", "argmin", "max", "min", "topk", "sort", "argsort")
_SAME_SHAPE = ("reshape", "view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "expand", "clone", "detach",
               "contiguous", "select", "__getitem__", "getitem", "stack", "cat", "roll", "flip", "t")  # fmt: skip
_ASIDE = ("dim", "size", "numel", "__len__", "stride", "is_floating_point", "__repr__", "data_ptr", "__get__", "type")
_INTO_PYTHON = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "is_nonzero", "__contains__")


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a run.

    Attributes:
        place: `file:line:column` of the innermost code that is not torch's.
        value: what was decided: a truth value, a whole number, or the numbers picked.
        margin: see above.
    """

    place: str
    value: Any
    margin: float

    @property
    def close(self) -> bool:
        return self.margin <= CLOSE


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Decision] = []
        self.margins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the tensor is kept, so that its id stays its own
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", "")).strip("_")
        name = name[1:] if name in ("rand", "ror", "rxor") else name
        if self.inside or getattr(func, "__name__", "") in _ASIDE:
            return func(*args, **kwargs)
        self.inside = True
        try:
            if getattr(func, "__name__", "") in _INTO_PYTHON:
                return self._into_python(func, args, kwargs)
            result = func(*args, **kwargs)
            self._follow(name, args, kwargs, result)
            return result
        finally:
            self.inside = False

    # --- what leaves the tensors

    def _into_python(self, func: Any, args: Any, kwargs: Any) -> Any:
        t, result = args[0], func(*args, **kwargs)
        name = func.__name__
        if not isinstance(t, torch.Tensor):
            return result
        if t.is_floating_point() and id(t) not in self.margins:
            if name in ("item", "tolist"):
                return _numbers(result, self)
            if name == "__float__":
                return result
            value = float(t)
            distance = abs(value) if name in ("__bool__", "is_nonzero") else _to_turn(value)
            self.note(result, distance / max(1.0, abs(value)))
        elif name != "__float__" or id(t) in self.margins:
            margin = self._least(t)
            self.note(result, margin)
            if name in ("item", "tolist") and t.dtype != torch.bool:
                return _wholes(result, self, margin)
        return result

    def note(self, value: Any, margin: float) -> None:
        self.decisions.append(Decision(_place(), value, margin))

    def _least(self, *tensors: torch.Tensor) -> float:
        found = [self.margins[id(t)][1] for t in tensors if id(t) in self.margins]
        return min((float(m.abs().min()) for m in found if m.numel()), default=math.inf)

    def _signed(self, t: torch.Tensor) -> torch.Tensor:
        """Its margins, infinite ones if nothing was rounded on the way to it."""
        return self.margins[id(t)][1] if id(t) in self.margins else torch.where(t.bool(), math.inf, -math.inf).double()

    # --- what stays among them

    def _follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        made = [r for r in tree_leaves(result) if isinstance(r, torch.Tensor)]
        base = name.rstrip("_").removeprefix("logical_").removeprefix("bitwise_")
        if base in _COMPARISONS or base in _EQUALITIES:
            self._compared(base, args[0], args[1], made[0])
        elif base in _TURNS and given and given[0].is_floating_point():
            for m in made:
                if not m.is_floating_point():
                    self._put(m, _gap(base, given[0], m, args[1:], kwargs))
        elif given and given[0].is_floating_point() and made and base in ("long", "int", "to", "floor", "ceil", "round", "type"):
            if not made[0].is_floating_point() or base in ("floor", "ceil", "round"):
                x = given[0].double()
                self._put(made[0], (x - x.round()).abs() / x.abs().clamp(min=1.0))
        elif any(id(g) in self.margins for g in given):
            self._inherit(base, args, given, made or given[:1] * (base == "setitem"))

    def _compared(self, base: str, a: Any, b: Any, made: torch.Tensor) -> None:
        if any(isinstance(x, torch.Tensor) and x.is_floating_point() and id(x) not in self.margins for x in (a, b)):
            x, y = (torch.as_tensor(v).double() for v in (a, b))
            scale = max(1.0, _largest(x), _largest(y))
            if base in _COMPARISONS:
                self._put(made, _COMPARISONS[base] * (x - y) / scale)
            else:
                self._put(made, torch.where(made, 1.0, -1.0) * (x - y).abs() / scale)
            return
        least = self._least(*(x for x in (a, b) if isinstance(x, torch.Tensor)))
        if least < math.inf:
            self._put(made, torch.where(made, least, -least))

    def _inherit(self, base: str, args: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        """Operations on what is decided: logic keeps the signs, anything else the least margin; floats absorb it."""
        signed = [self.margins[id(g)][1] for g in given if id(g) in self.margins]
        whole = [m for m in made if not m.is_floating_point()]
        if base in _SAME_SHAPE and given[0] is args[0] and len(given) == 1 and made and made[0].dtype == given[0].dtype:
            moved = self._again(base, args, signed[0])
            if moved is not None and moved.shape == made[0].shape:
                self._put(made[0], moved)
                return
        if base == "not" or base == "invert":
            self._put(made[0], -signed[0])
        elif base in ("any", "all") and signed[0].numel():
            self._put(made[0], signed[0].max() if base == "any" else signed[0].min())
        elif base in ("and", "or") and len(given) == 2:
            turn = torch.minimum if base == "and" else torch.maximum
            self._put(made[0], turn(*torch.broadcast_tensors(*map(self._signed, given))))
        elif len(given) == 1 and whole and len(whole) == len(made) and made[0].shape == signed[0].shape == given[0].shape:
            self._put(made[0], signed[0] if made[0].dtype == given[0].dtype else signed[0].abs())
        else:
            least = self._least(*given)
            for m in whole:
                self._put(m, torch.where(m, least, -least) if m.dtype == torch.bool else torch.full(m.shape, least).double())
            picked = [g for g in given if id(g) in self.margins]
            if base in ("nonzero", "masked_select", "getitem") or base == "where" and len(given) == 1:
                masks = [g for g in picked if g.dtype == torch.bool and g.ndim]
                if any(base != "getitem" or m is not args[0] for m in masks):  # an extent that depends on data
                    self.note(made[0].shape[0] > 0, least)
            if len(whole) < len(made):
                self.note(tuple(v for g in picked for v in g.flatten().tolist()), least)

    def _again(self, base: str, args: Any, margin: torch.Tensor) -> torch.Tensor | None:
        """The same view of the margins."""
        if margin.ndim and margin.shape != args[0].shape:
            return None
        try:
            return getattr(margin.expand(args[0].shape), {"getitem": "__getitem__"}.get(base, base))(*args[1:])
        except (AttributeError, TypeError, RuntimeError):
            return None

    def _put(self, made: torch.Tensor, margin: torch.Tensor) -> None:
        self.margins[id(made)] = (made, margin)


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _to_turn(value: float) -> float:
    """From a number to the nearest at which truncation gives another."""
    return abs(value - round(value)) if math.isfinite(value) and round(value) else math.inf


def _gap(base: str, x: torch.Tensor, made: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    """How far each place in an order is from being another element's: the distance to its neighbours in the order."""
    given = args[1:2] if base == "topk" else args[:1]
    dim = kwargs.get("dim", given[0] if given else None)
    flat = dim is None and base in ("argmax", "argmin", "max", "min")
    lined = x.double().flatten() if flat else x.double().movedim(-1 if dim is None else dim, -1)
    ascending = base in ("argmin", "min") or kwargs.get("largest") is False
    order = lined.sort(dim=-1, descending=not ascending).values
    count = 1 if base in ("argmax", "argmin", "max", "min") else made.shape[-1 if dim is None else dim]
    first = order[..., : count + 1]
    scale = max(1.0, _largest(first[first.isfinite()]))
    steps = ((first[..., :-1] - first[..., 1:]).abs() / scale).nan_to_num(0.0, math.inf)
    steps = nn.functional.pad(steps, (1, max(0, count + 1 - first.shape[-1])), value=math.inf)
    around = torch.minimum(steps[..., :count], steps[..., 1 : count + 1])
    if base in ("argmax", "argmin", "max", "min"):
        return around[..., 0].reshape(made.shape)
    return around.movedim(-1, -1 if dim is None else dim)


@cache
def _positions(code: Any) -> list[Any]:
    return list(code.co_positions())


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back  # type: ignore[assignment]
    line, _, column, _ = _positions(frame.f_code)[frame.f_lasti // 2]
    return f"{Path(frame.f_code.co_filename).name}:{line}:{column}"


# --- Python numbers --------------------------------------------------------------------------------------------------


class Number(float):
    """A float that came from a tensor: what it is compared with is a decision."""

    recorder: _Recorder

    def __new__(cls, value: float, recorder: _Recorder) -> Number:
        made = super().__new__(cls, value)
        made.recorder = recorder
        return made

    def __bool__(self) -> bool:
        result = float(self) != 0.0
        self.recorder.note(result, abs(float(self)) / max(1.0, abs(float(self))))
        return result

    def __int__(self) -> int:
        return self.turned(float.__int__(self))

    __trunc__ = __int__

    def __floor__(self) -> int:
        return self.turned(math.floor(float(self)))

    def __ceil__(self) -> int:
        return self.turned(math.ceil(float(self)))

    def __round__(self, digits: Any = None) -> Any:
        if digits is not None:
            return Number(round(float(self), digits), self.recorder)
        value = float(self)
        self.recorder.note(round(value), abs(value - math.floor(value) - 0.5) / max(1.0, abs(value)))
        return round(value)

    def turned(self, result: int) -> int:
        self.recorder.note(result, _to_turn(float(self)) / max(1.0, abs(float(self))))
        return result

    __hash__ = float.__hash__


class Whole(int):
    """A whole number that came from a tensor: noted once already, and again, with what comes out, where it is compared."""

    recorder: _Recorder
    margin: float

    def __new__(cls, value: int, recorder: _Recorder, margin: float) -> Whole:
        made = super().__new__(cls, value)
        made.recorder, made.margin = recorder, margin
        return made

    __hash__ = int.__hash__


def _whole_comparison(name: str) -> Callable[[Whole, Any], Any]:
    def compare(self: Whole, other: Any) -> Any:
        result = getattr(int, name)(self, other)
        if result is not NotImplemented:
            self.recorder.note(result, self.margin)
        return result

    return compare


def _comparison(name: str) -> Callable[[Number, Any], Any]:
    def compare(self: Number, other: Any) -> Any:
        result = getattr(float, name)(self, other)
        if result is not NotImplemented:
            a, b = float(self), float(other)
            self.recorder.note(result, abs(a - b) / max(1.0, abs(a), abs(b)) if math.isfinite(a - b) else math.inf)
        return result

    return compare


def _arithmetic(name: str) -> Callable[..., Any]:
    def compute(self: Number, *others: Any) -> Any:
        result = getattr(float, name)(self, *others)
        return Number(result, self.recorder) if isinstance(result, float) else result

    return compute


for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Number, _name, _comparison(_name))
    setattr(Whole, _name, _whole_comparison(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _side in ("__", "__r"):
        setattr(Number, f"{_side}{_name}__", _arithmetic(f"{_side}{_name}__"))
for _name in ("__neg__", "__pos__", "__abs__"):
    setattr(Number, _name, _arithmetic(_name))


def _numbers(value: Any, recorder: _Recorder) -> Any:
    if isinstance(value, list):
        return [_numbers(v, recorder) for v in value]
    return Number(value, recorder) if isinstance(value, float) else value


def _wholes(value: Any, recorder: _Recorder, margin: float) -> Any:
    if isinstance(value, list):
        return [_wholes(v, recorder, margin) for v in value]
    return Whole(value, recorder, margin)


@contextmanager
def recorded() -> Iterator[list[Decision]]:
    """The decisions of what is run inside, in order."""
    recorder = _Recorder()
    with recorder, torch.no_grad():
        yield recorder.decisions
