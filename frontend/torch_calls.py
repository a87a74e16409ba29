"""Calls from rewritten Python: the model's own functions are rewritten in turn, builtins learn of numbers from data.

PyTorch's and the standard library's functions run as they are. What they would decide on data is refused by `Guard`, so that
no path is taken silently.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from dlc.frontend import torch_aside, torch_effects, torch_steps
from dlc.frontend.python_rewrite import NotRewritable, Site, rewrite
from dlc.frontend.torch_callers import LEFT_ALONE, asking, left_alone, module_of
from dlc.frontend.torch_classes import CONTEXT, Classes, calls_back, context_of
from dlc.frontend.torch_collect import Collected, Counted, counted, united
from dlc.frontend.torch_errors import EffectOnData, UncapturedDecision
from dlc.frontend.torch_flow import Branch, Flow, both
from dlc.frontend.torch_like_eager import eager_isinstance, eager_type
from dlc.frontend.torch_numbers import MATH, Number, is_number, kind_of, negated, tensor_of
from dlc.frontend.torch_scalars import divided, function_of_math, magnitude, rounded, test_of, textual, whole
from dlc.frontend.torch_scaled import scaled
from dlc.frontend.torch_short import all_items, any_of_items
from dlc.frontend.torch_sorting import in_order
from dlc.frontend.torch_subscripts import look_up
from dlc.frontend.torch_values import (
    DEAD,
    Absent,
    Either,
    Elided,
    Sometimes,
    Unset,
    absent,
    alike,
    joined_kind,
    leaves,
    mapped,
)

_CHANGING = frozenset(
    "append extend insert pop remove clear sort reverse update setdefault popitem add discard difference_update"
    " intersection_update symmetric_difference_update appendleft popleft extendleft rotate move_to_end"
    " __setitem__ __delitem__ __iadd__ __imul__ __ior__ __iand__ __ixor__ __isub__".split()
)
"""Methods that change a container."""

_KEEPING = frozenset("append appendleft add insert setdefault".split())
"""Those that put into it what they are given, as it is."""

_LOOKING = (isinstance, len, getattr, hasattr, callable, type, bool)
"""Functions that look at a value, and do nothing else."""

_MEASURING = (len, bool, isinstance, type, sum, any, all, torch.tensor, torch.stack, torch.cat)
"""Functions that take lists whose length is data."""

_PRODUCTS = frozenset("mul multiply div divide true_divide floor_divide".split())
"""Functions that take a number beside small floats in f32."""
_OF_ATTRIBUTES = ("__setattr__", "__delattr__")
_TENSOR_OPERANDS = frozenset(
    "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow eq ne lt le gt ge not_equal less"
    " less_equal greater greater_equal maximum minimum where masked_fill masked_fill_ clamp clamp_ clamp_min clamp_max"
    " clip fmin fmax atan2 copysign xlogy add_ sub_ mul_ div_ pow_ fill_ full_like logical_and logical_or"
    " bitwise_and bitwise_or __add__ __mul__".split()
)
"""Functions that take a tensor of rank 0 wherever they take a number."""


class Calls(Flow):
    """`rt.call(f, ...)`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rewritten: dict[types.FunctionType, types.FunctionType] = {}
        self.own: set[types.CodeType] = set()
        self.why: dict[types.CodeType, str] = {}
        self.modules: list[tuple[nn.Module, Any]] = []
        self.classes = Classes(self)
        self.unfinished: list[Site] = []  # of generators that do something when they are left

    # --- what is rewritten ---

    def rewriting(self, function: Any) -> Any:
        """The function rewritten; itself where it is left alone."""
        if not isinstance(function, types.FunctionType) or function.__code__ in self.own:
            return function
        function = self.classes.original(function)
        if left_alone(function):
            inner = getattr(function, "__wrapped__", None)
            # no_grad and its like wrap a function without changing what it computes
            if inner is not None and function.__code__.co_filename.endswith("_contextlib.py"):
                return self.rewriting(inner)
            return context_of(self.rewriting(inner)) if function.__code__ is CONTEXT else function
        if function not in self.rewritten:
            self.rewritten[function] = self._rewritten(function)
        return self.rewritten[function]

    def _rewritten(self, function: types.FunctionType) -> types.FunctionType:
        code = function.__code__
        try:
            made, codes = rewrite(function, self, DEAD)
        except NotRewritable as error:
            self.why[code] = str(error)
            return function
        self.own |= codes
        self.recorder.sources.add(code.co_filename)
        return made

    def prepare(self, module: nn.Module) -> None:
        """Let the module's `forward` (and those of all inside it) be the rewritten one, until `restore_modules`."""
        for m in module.modules():
            self.classes.meet(type(m))
            self.classes.hooks(m)
            method = getattr(m.forward, "__func__", None)
            if method is None or "forward" in m.__dict__:
                continue
            made = self.rewriting(method)
            if made is not method:
                m.__dict__["forward"] = types.MethodType(made, m)
                self.modules.append((m, m.__dict__["forward"]))

    def restore_modules(self) -> None:
        """Take back what `prepare` has set, where the model has not set anything else since."""
        for m, made in self.modules:
            if m.__dict__.get("forward") is made:
                del m.__dict__["forward"]
        self.modules.clear()

    def unwritten(self) -> str:
        """The function being executed, which is not rewritten, and why."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            module = frame.f_globals.get("__name__", "").partition(".")[0]
            if code in self.own:
                return "this expression"
            if code.co_flags & inspect.CO_GENERATOR and not code.co_name.startswith("<"):
                return f"'{code.co_name}', which is not rewritten: it is a generator"
            if module not in LEFT_ALONE and module not in sys.stdlib_module_names:
                return f"'{code.co_name}', which is not rewritten: {self.why.get(code, 'it is not called by rewritten code')}"
            frame = frame.f_back
        return "code that is not rewritten"

    def asked_by_model(self) -> bool:
        """Whether it is rewritten code that calls PyTorch, not PyTorch itself."""
        return asking() in self.own

    # --- calls ---

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        function = self.narrowed(function)
        if isinstance(function, Either):
            return function(*args, **kwargs)
        if isinstance(function, Absent):
            function.refuse()
        if (own := self.classes.method(function, "__call__")) is not None:
            return self.call(own, function, *args, **kwargs)
        chosen = next((n for n, v in enumerate(args) if isinstance(v, Either)), None) if function in _LOOKING else None
        if chosen is not None:
            return args[chosen].each(lambda v: self.call(function, *args[:chosen], v, *args[chosen + 1 :], **kwargs))
        try:
            special = _SPECIAL.get(function)
        except TypeError:  # not hashable
            special = None
        if special is not None:
            if function in (enumerate, zip, reversed):
                args = tuple(torch_steps.collected(v) for v in args)
                if (part := torch_steps.of_parts(function, args)) is not None:
                    return part
            for v in args if function not in torch_effects.WRITING else ():
                if isinstance(v, Absent):
                    v.refuse()
                if isinstance(v, Iterator) and function not in _LOOKING and function is not hasattr:
                    torch_effects.advance(self, v)
                if function not in _MEASURING:
                    self.whole(v)
            return self.made(special(self, *args, **kwargs))
        if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
            made = self.rewriting(function.__func__)
            if made is not function.__func__ or function.__func__.__code__ in self.own:
                return self.stopped(made, made(function.__self__, *args, **kwargs))
            return self.native(function, args, kwargs)
        if isinstance(function, types.FunctionType):
            if args and "registry" in vars(function) and "dispatch" in vars(function):  # functools.singledispatch
                return self.call(vars(function)["dispatch"](_type(self, args[0])), *args, **kwargs)
            made = self.rewriting(function)
            if made is not function or function.__code__ in self.own:
                return self.stopped(made, made(*args, **kwargs))
            return self.native(function, args, kwargs)
        if isinstance(function, functools.partial):
            return self.call(function.func, *function.args, *args, **{**function.keywords, **kwargs})
        if isinstance(function, nn.Module):
            if "forward" not in function.__dict__:
                self.prepare(function)
            return self.native(function, args, kwargs)
        if isinstance(function, type):
            return self.instance(function, args, kwargs)
        if isinstance(function, (types.BuiltinMethodType, types.MethodWrapperType)):
            return self.method(function, args, kwargs)
        return self.native(function, args, kwargs)

    def own_method(self, owner: Any, name: str, *args: Any) -> bool:
        """Call a method that an operator stands for, where the object's class defines it in Python; whether it does."""
        function = getattr(type(owner), name, None)
        if not self.writes(function):
            return False
        self.call(function, owner, *args)
        return True

    def writes(self, function: Any) -> bool:
        """Whether a function is the model's, and rewritten."""
        return isinstance(function, types.FunctionType) and self.rewriting(function).__code__ in self.own

    def instance(self, kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A new object, as `type.__call__` makes it; its `__init__` may be rewritten."""
        self.classes.meet(kind)
        self.classes.refuse_ending(kind, args)
        plain = type(kind) is type and getattr(kind, "__new__", None) is object.__new__
        start = getattr(kind, "__init__", None)
        if not plain or not self.writes(start):
            return self.born(self.native(kind, args, kwargs))
        made = self.born(object.__new__(kind))
        self.call(start, made, *args, **kwargs)
        return made

    def stopped(self, made: types.FunctionType, value: Any) -> Any:
        """What a rewritten function returns: a new generator if it is one."""
        return self.born(value) if made.__code__.co_flags & inspect.CO_GENERATOR else value

    def decide(self, value: Any) -> Any:
        own = self.classes.method(value, "__bool__", "__len__")
        return super().decide(value if own is None else self.call(own, value))

    def method(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A builtin function or a builtin object's method."""
        owner = getattr(function, "__self__", None)
        name = function.__name__
        container = isinstance(owner, (list, dict, set)) or module_of(type(owner)) == "collections"
        if container and name not in _OF_ATTRIBUTES:
            if name in _CHANGING:
                if name not in _KEEPING:
                    torch_effects.advance_all(self, args)
                self.whole(owner, unless=name in ("append", "clear"))
                self.touch(owner)
                if name == "sort" and isinstance(owner, list):
                    owner[:] = _sorted(self, owner, *args, **kwargs)
                    return None
            elif name in ("index", "count") or name.startswith("__"):
                self.whole(owner)
            elif name == "get" and isinstance(owner, dict) and args and isinstance(key := self.counted(args[0]), Number):
                return look_up(self, owner, key, *args[1:])
            elif isinstance(owner, dict):
                self.whole(owner)
            return function(*args, **kwargs)
        return self.native(function, args, kwargs)

    def native(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that is not rewritten: numbers from data become tensors or extents where it takes them."""
        owner = getattr(function, "__self__", None)
        if owner is not None and getattr(function, "__name__", "") in _OF_ATTRIBUTES:
            return torch_effects.store(self, lambda _, *named: function(*named), owner, *args, **kwargs)
        for v in absent((args, kwargs)):
            v.refuse()
        if calls_back(function):
            args, kwargs = tuple(map(self.classes.handed, args)), {k: self.classes.handed(v) for k, v in kwargs.items()}
        if not any(isinstance(v, Number) for v in leaves((args, kwargs))):
            try:
                return self.made(torch_aside.native(self, function, args, kwargs, torchs=_of_torch(function)))
            except GuardOnDataDependentSymNode as error:
                if _of_torch(function):
                    raise
                why = f"{getattr(function, '__name__', 'a function')} of the standard library needs it"
                raise self.refused(UncapturedDecision, what="an extent", why=why) from error
        if not _of_torch(function):
            return torch_aside.native(self, function, args, kwargs, torchs=False)
        name = getattr(function, "__name__", "")
        if isinstance(kwargs.get("alpha"), Number) and name.strip("_") in ("add", "sub", "subtract", "rsub"):
            return scaled(self, function, args, kwargs)
        if name in _TENSOR_OPERANDS:
            return self.with_operands(function, args, kwargs)
        return function(*self.lowered(args), **self.lowered(kwargs))

    def made(self, value: Any) -> Any:
        """What a call gives: a new object if nobody else has it."""
        kept = type(value) in (list, dict, set) or isinstance(value, Iterator)
        return self.born(value) if kept and sys.getrefcount(value) <= self.references(object()) else value

    def references(self, value: Any) -> int:
        """References to an object that only the method has which is given it: one more where TorchDynamo evaluates frames."""
        return sys.getrefcount(value)

    def with_operands(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Numbers from data as tensors of the type that they take beside the first tensor."""
        owner = getattr(function, "__self__", None)
        found = [v for v in (owner, *args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dtype != torch.bool]
        found = found or [v for v in (owner, *args) if isinstance(v, torch.Tensor)]

        name = getattr(function, "__name__", "")
        wide = name.rstrip("_") in _PRODUCTS and bool(found) and found[0].is_floating_point()

        def made(v: Any) -> Any:
            if not isinstance(v, Number):
                return v
            if wide:
                return v.kept(found[0])
            return v.operand(found[0]) if found else v.tensor.to(_default(v.kind))

        result = function(*map(made, args), **{k: made(v) for k, v in kwargs.items()})
        return result.to(found[0].dtype) if wide and not name.endswith("_") else result

    def lowered(self, v: Any) -> Any:
        """Numbers from data as PyTorch takes them: integers as extents, floats as scalars of the traced graph."""
        return mapped(v, lambda x: self.scalar(x) if isinstance(x, Number) else x)

    def scalar(self, v: Number) -> Any:
        v.settled("this call")
        if v.kind is int:
            return self.extent(v)
        with torch._C.DisableTorchFunctionSubclass():
            return self.raw_item(v.tensor)

    def raw_item(self, t: torch.Tensor) -> Any:
        """PyTorch's own `.item()`: a SymInt, SymFloat or SymBool."""
        return torch.ops.aten._local_scalar_dense.default(t)

    def extent(self, v: Any) -> Any:
        """A number as an extent."""
        number = self.integer(v)
        if not isinstance(number, Number):
            return number
        held = number.extent
        if held is not None and any(held[1] is r for r in self.recorder.stack):
            return held[0]
        extent = self.raw_item(number.tensor)
        number.extent = extent, self.recorder.region
        return extent

    def integer(self, v: Any) -> Any:
        """A value used as an integer: an int where it is known, else a `Number`."""
        if isinstance(v, torch.Tensor):
            v = self.item(v)
        if isinstance(v, torch.SymInt):
            from torch.fx.experimental.symbolic_shapes import is_concrete_int

            return int(v) if is_concrete_int(v) else Number(int, torch.scalar_tensor(v, dtype=torch.int64), self)
        if isinstance(v, Number):
            if v.kind is float:
                raise TypeError("'float' object cannot be interpreted as an integer")
            return v.to(int)
        return v.__index__() if v is not None and not isinstance(v, int) else v

    def counted(self, v: Any) -> Any:
        """An extent, or what PyTorch makes of its arithmetic, as a number; anything else as it is."""
        if isinstance(v, torch.SymFloat):
            return Number(float, torch.scalar_tensor(v, dtype=torch.float64), self)
        return self.integer(v) if isinstance(v, torch.SymInt) else v

    def whole(self, value: Any, unless: bool = False) -> None:
        """Refuse a container whose length depends on the path, and an object's attributes (`vars`) that not all paths set."""
        kind = next((c for c in (list, tuple, dict, set, deque) if isinstance(value, c)), None)
        if unless or kind is None:
            return
        held = (*dict.keys(value), *dict.values(value)) if kind is dict else kind.__iter__(value)
        for v in held:
            if isinstance(v, (Elided, Unset)):
                v.refuse()

    def kind(self, v: Any) -> type:
        return kind_of(v)

    def choose(self, test: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
        """One of two values, by data."""
        choice = Branch(self, self.here("the value chosen"), test, (None,))
        if choice.then():
            choice.close((then(),))
        if choice.orelse():
            choice.close((orelse(),))
        return choice.result()[0]

    def here(self, name: str) -> Site:
        file, line, _ = self.recorder.line()
        return Site(file, line, (name,), frozenset((name,)))

    def both_hold(self, a: Any, b: Any) -> Any:
        a, b = self.decide(a), self.decide(b)
        if not isinstance(a, Number):
            return b if a else False
        return both(self, a, b)

    def either_holds(self, a: Any, b: Any) -> Any:
        found = self.both_hold(self._not(a), self._not(b))
        return self._not(found)

    def _not(self, v: Any) -> Any:
        v = self.decide(v)
        return negated(v) if isinstance(v, Number) else not v

    def smallest(self, a: Any, b: Any) -> Any:
        return _extreme(self, "min", (a, b), None)


def _default(kind: type) -> torch.dtype:
    return torch.get_default_dtype() if kind is float else torch.int64 if kind is int else torch.bool


def _of_torch(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    of_torch = module_of(function).startswith("torch") or module_of(type(function)).startswith("torch")
    return of_torch or isinstance(owner, torch.Tensor) or isinstance(function, nn.Module)


# --- builtins --------------------------------------------------------------------------------------------------------


def _converted(kind: type) -> Callable[..., Any]:
    def convert(rt: Calls, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return kind(*args, **kwargs)
        (v,) = args
        if kind is bool:
            return rt.decide(v)
        if isinstance(v, torch.Tensor):
            v = rt.item(v)
        if isinstance(v, Number):
            if kind is int:
                whole(rt, v)
            return v.to(kind)
        if isinstance(v, torch.SymInt) and kind is int:
            return v
        v = rt.counted(v)
        return v.to(kind) if isinstance(v, Number) else kind(v)

    return convert


def _length(rt: Calls, v: Any) -> Any:
    if isinstance(v, list) and any(isinstance(x, (Counted, Sometimes)) for x in v):
        return counted(v)
    rt.whole(v)
    if isinstance(v, torch_steps.Steps):
        return v.count
    if isinstance(v, torch.Tensor) and v.dim():
        return v.shape[0]
    own = rt.classes.method(v, "__len__")
    return len(v) if own is None else rt.call(own, v)


def _extreme(rt: Calls, name: str, args: Sequence[Any], key: Any, **more: Any) -> Any:
    """`max` and `min`: the first of the greatest, as Python finds it."""
    items = list(args[0]) if len(args) == 1 and not isinstance(args[0], torch.Tensor) else list(args)
    if len(args) == 1 and isinstance(args[0], torch.Tensor):
        items = list(args[0].unbind(0))
    if key is not None or more or not any(isinstance(v, (Number, torch.Tensor, torch.SymInt)) for v in items):
        options = {"key": rt.classes.handed(key)} if key is not None else {}
        return getattr(builtins, name)(*args, **options, **more)
    best = items[0]
    for v in items[1:]:
        best = _better(rt, name, best, v)
    return best


def _better(rt: Calls, name: str, a: Any, b: Any) -> Any:
    if isinstance(a, torch.SymInt) and isinstance(b, (int, torch.SymInt)) or isinstance(b, torch.SymInt) and isinstance(a, int):
        return (torch.sym_max if name == "max" else torch.sym_min)(a, b)
    if is_number(a) and is_number(b) and not isinstance(a, torch.SymInt):
        if not isinstance(a, Number) and not isinstance(b, Number):
            return getattr(builtins, name)(a, b)
        kind, mixed = joined_kind(a, b)
        x, y = tensor_of(a, kind), tensor_of(b, kind)
        # Python keeps the first unless the second is beyond it: NaN is never beyond.
        beyond = y > x if name == "max" else y < x
        return Number(kind, torch.where(beyond, y, x), rt, mixed=mixed)
    beyond = b > a if name == "max" else b < a
    return rt.choose(beyond, lambda: b, lambda: a)


def _max(rt: Calls, *args: Any, key: Any = None, **more: Any) -> Any:
    return _extreme(rt, "max", args, key, **more)


def _min(rt: Calls, *args: Any, key: Any = None, **more: Any) -> Any:
    return _extreme(rt, "min", args, key, **more)


def _isinstance(rt: Calls, v: Any, kinds: Any) -> bool:
    if not isinstance(v, Number):
        return eager_isinstance(v, kinds)
    v.settled("isinstance")
    return isinstance(v.kind(), kinds)


def _type(rt: Calls, *args: Any) -> Any:
    if len(args) != 1:
        return type(*args)
    if not isinstance(args[0], Number):
        return eager_type(args[0])
    args[0].settled("type()")
    return args[0].kind


def _full(rt: Calls, size: Any, value: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(value, Number):
        return torch.full(rt.lowered(size), value, **kwargs)
    value.settled("the type of this tensor")
    kwargs.setdefault("dtype", _default(value.kind))
    return torch.zeros(rt.lowered(size), **kwargs).fill_(value.tensor)


def _print(rt: Calls, *args: Any, **kwargs: Any) -> None:
    if rt.on_one_path or any(isinstance(v, (Number, torch.Tensor, Absent)) for v in leaves((args, kwargs))):
        raise rt.refused(EffectOnData, what="what is printed, or whether it is,")
    print(*args, **kwargs)


def _sum(rt: Calls, over: Any, start: Any = 0) -> Any:
    total = start
    for v in over:
        if isinstance(v, Sometimes):
            total = rt.choose(v.flag, partial(operator.add, total, v.value), partial(_itself, total))
        elif isinstance(v, Collected):
            before, total = total, total + v.total()
            if isinstance(before, torch.Tensor) and alike(before, total) is not None:
                v.refuse()  # without a step it is as before
        else:
            total = total + v
    return total


def _itself(v: Any) -> Any:
    return v


def _list(rt: Calls, *args: Any) -> Any:
    if args and isinstance(args[0], torch_steps.Steps):
        raise rt.refused(UncapturedDecision, what="the length of this list", why="append to a list in a for loop")
    return rt.born(list(*args))


def _map(rt: Calls, function: Any, *over: Any) -> Any:
    return (rt.call(function, *items) for items in zip(*over, strict=False))


def _sorted(rt: Calls, over: Any, *, key: Any = None, reverse: bool = False) -> Any:
    return rt.born(in_order(rt, list(over), key, reverse))


def _cond(rt: Calls, pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
    return rt.choose(pred, lambda: rt.call(true_fn, *operands), lambda: rt.call(false_fn, *operands))


def _while_loop(rt: Calls, cond_fn: Any, body_fn: Any, carried_inputs: Any, *_: Any, **__: Any) -> Any:
    from dlc.frontend.torch_loop import Loop

    names = tuple(f"carried_inputs[{n}]" for n in range(len(carried_inputs)))
    file, line, _name = rt.recorder.line()
    live = frozenset(names)
    w = Loop(rt, Site(file, line, names, live, after=live), None, tuple(carried_inputs))
    while w.more():
        state = w.state
        try:
            if w.testing():
                w.tested(rt.call(cond_fn, *state))
            if w.working():
                state = tuple(rt.call(body_fn, *state))
            w.leave(state)
        except Exception as error:
            w.failed(error)
    return w.state


def _tensor(rt: Calls, data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> Any:
    """`torch.tensor` of numbers from data."""
    if isinstance(data, list) and any(isinstance(v, Collected) for v in data):
        whole, kind = united(data)
        return whole.to(dtype or (whole.dtype if kind is None else _default(kind)), copy=True)
    for v in leaves(data, (Elided, Unset)):
        if isinstance(v, (Elided, Unset)):
            v.refuse()
    if not any(isinstance(v, (Number, torch.SymInt)) for v in leaves(data)):
        return torch.tensor(data, dtype=dtype, device=device, **more)
    for v in leaves(data):
        if isinstance(v, Number):
            v.settled("torch.tensor")
    kinds = {int if isinstance(v, torch.SymInt) else kind_of(v) for v in leaves(data)}
    kind = float if float in kinds else int if int in kinds else bool
    dtype = dtype if dtype is not None else _default(kind)

    def made(v: Any) -> Any:
        if isinstance(v, (list, tuple)):
            return torch.stack([made(x) for x in v])
        return tensor_of(v, kind).to(dtype, copy=True)

    return made(data)


def _joined(function: Any) -> Callable[..., Any]:
    """`torch.stack` and `torch.cat`, of lists that a loop from data has filled, too."""

    def join(rt: Calls, tensors: Any, dim: int = 0, **more: Any) -> Any:
        if isinstance(tensors, (list, tuple)) and any(isinstance(v, Collected) for v in tensors):
            parts = [v.joined(function, dim) if isinstance(v, Collected) else function([v], dim) for v in tensors]
            if len({p.dtype for p in parts}) > 1:
                next(v for v in tensors if isinstance(v, Collected)).refuse()  # without a step there is another type
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        if isinstance(tensors, (list, tuple)) and any(isinstance(v, Sometimes) for v in tensors):
            return _present(tensors, dim, function is torch.stack)
        return rt.native(function, (tensors,), {"dim": dim, **more})

    return join


def _no_gradients(rt: Calls, mode: bool = True) -> Any:
    """`inference_mode`, without tensors of its own kind: nothing here has gradients."""
    return torch.no_grad()


def _present(items: Sequence[Any], dim: int, stacked: bool) -> torch.Tensor:
    """The elements that are there, along a new dimension or an old one."""
    values = [v.value if isinstance(v, Sometimes) else v for v in items]
    there = [tensor_of(v.flag if isinstance(v, Sometimes) else True, bool) for v in items]
    whole = torch.stack(values)[torch.stack(there)]
    at = dim % (whole.dim() if stacked else whole.dim() - 1)
    moved = whole.movedim(0, at)
    return moved if stacked else moved.flatten(at, at + 1)


def _no_effect(rt: Calls, *_: Any, **__: Any) -> None:
    """Checks that say something of data to the compiler only."""


_SPECIAL: dict[Any, Callable[..., Any]] = {
    int: _converted(int), float: _converted(float), bool: _converted(bool), range: torch_steps.span, len: _length,
    enumerate: torch_steps.enumerated, zip: torch_steps.zipped, reversed: torch_steps.backwards, max: _max, min: _min,
    isinstance: _isinstance, type: _type, any: any_of_items, all: all_items, print: _print, sum: _sum, list: _list, map: _map,
    sorted: _sorted, str: textual(str), repr: textual(repr), format: textual(format), abs: magnitude, divmod: divided,
    round: rounded(round), math.floor: rounded(math.floor), math.ceil: rounded(math.ceil),
    math.trunc: rounded(math.trunc), math.isnan: test_of(torch.isnan, math.isnan),
    math.isinf: test_of(torch.isinf, math.isinf), torch.cond: _cond, torch.tensor: _tensor, torch.full: _full,
    torch.inference_mode: _no_gradients, torch.stack: _joined(torch.stack), torch.cat: _joined(torch.cat),
    torch.ops.higher_order.cond: _cond, torch.ops.higher_order.while_loop: _while_loop, torch._check: _no_effect,
    torch._check_is_size: _no_effect,
    hasattr: torch_effects.has, next: torch_effects.step, **{f: torch_effects.writing(f) for f in torch_effects.WRITING},
    **{plain: function_of_math(function, plain) for plain, function in MATH.items()},
}  # fmt: skip
"""Functions that mean something else where numbers are data."""
_SPECIAL[torch._higher_order_ops.while_loop] = _while_loop
