"""Python values that depend on the path taken: how two of them become one, leaf by leaf.

Containers of equal structure are united element by element. Tensors of equal type and shape, and numbers, become results of
the branch; equal constants stay what they are; everything else becomes `Absent`, which is refused when it is used, and not
before: most variables are dead after a branch.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from dlc.frontend.torch_callers import left_alone
from dlc.frontend.torch_errors import ArmsDiffer, NotAlwaysDefined
from dlc.frontend.torch_numbers import EXACT, Number, is_number, kind_of
from dlc.frontend.torch_plain import attributes_of, copied, plain_method, refill


class Dead:
    """The value of a variable on a path that has left: whatever the other path has is right."""

    def __repr__(self) -> str:
        return "<dead>"


DEAD = Dead()


class Absent:
    """A value that cannot be used: `error` says why when it is."""

    __slots__ = ("_error", "_owner")
    __hash__ = object.__hash__

    def __init__(self, owner: Any, error: Callable[[], tuple[type, dict[str, Any]]]) -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_error", error)

    def refuse(self) -> NoReturn:
        kind, fields = self._error()
        raise self._owner.refused(kind, **fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.refuse()

    def _use(self, *_: Any) -> Any:
        self.refuse()

    __setattr__ = __call__ = __iter__ = __len__ = __bool__ = __getitem__ = __eq__ = __ne__ = __lt__ = __gt__ = _use
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = __index__ = __float__ = _use
    __str__ = __int__ = __setitem__ = __contains__ = __le__ = __ge__ = __matmul__ = __pow__ = _use

    def __repr__(self) -> str:
        if self._owner.asked_by_model():
            self.refuse()
        return "<absent>"


def undefined(owner: Any, name: str, place: str | None = None) -> Absent:
    """A variable without a value: on every path, or on some since `place`."""
    if place is None:
        return Unbound(owner, name)
    return Absent(owner, lambda: (NotAlwaysDefined, {"name": name, "place": place}))


class Unset(Absent):
    """An attribute that some paths since `place` have set: whether an object has it is a decision, too."""

    __slots__ = ()

    def __init__(self, owner: Any, name: str, place: str) -> None:
        super().__init__(owner, lambda: (NotAlwaysDefined, {"name": name, "place": place}))


class Unbound(Absent):
    """A local variable that nothing has set yet: using it is Python's own error."""

    __slots__ = ("_name",)

    def __init__(self, owner: Any, name: str) -> None:
        super().__init__(owner, lambda: (NotAlwaysDefined, {"name": name, "place": "nothing before"}))
        object.__setattr__(self, "_name", name)

    def refuse(self) -> NoReturn:
        raise UnboundLocalError(f"cannot access local variable '{self._name}' where it is not associated with a value")


class Partial(Absent):
    """A variable that some paths since `place` have set.

    Attributes:
        value: what it is where it is set; anything of that type elsewhere.
        flag: whether it is set: a bool, or one from data.
    """

    __slots__ = ("_made", "flag", "value")
    _made: tuple[Any, str, str]

    def __init__(self, owner: Any, name: str, place: str, value: Any, flag: Any) -> None:
        super().__init__(owner, lambda: (NotAlwaysDefined, {"name": name, "place": place}))
        for field, v in (("_made", (owner, name, place)), ("value", value), ("flag", flag)):
            object.__setattr__(self, field, v)

    def again(self, value: Any, flag: Any) -> Partial:
        """The same variable with another value."""
        return Partial(*self._made, value, flag)


class Maybe(Partial):
    """A value that is None on some paths: None can be told from the rest, which can be used where it is there."""

    __slots__ = ()

    def __init__(self, owner: Any, name: str, place: str, value: Any, flag: Any) -> None:
        super().__init__(owner, name, place, value, flag)
        reason = f"{described(value)} on one path and None on the other"
        object.__setattr__(self, "_error", lambda: (ArmsDiffer, {"name": name, "place": place, "reason": reason}))

    def __hash__(self) -> int:
        self.refuse()

    def again(self, value: Any, flag: Any) -> Maybe:
        return Maybe(*self._made, value, flag)


class Either(Absent):
    """One of two things that a branch cannot compute: texts, types, modules, functions. It can be called, compared and looked up.

    Attributes:
        flag: whether it is `then`, a truth value from data; else it is `orelse`.
    """

    __slots__ = ("_made", "flag", "orelse", "then")
    _made: tuple[Any, str, str]
    flag: Any
    then: Any
    orelse: Any

    def __hash__(self) -> int:
        self.refuse()

    def __init__(self, owner: Any, name: str, place: str, flag: Any, then: Any, orelse: Any) -> None:
        reason = f"{described(then)} on one path and {described(orelse)} on the other"
        super().__init__(owner, lambda: (ArmsDiffer, {"name": name, "place": place, "reason": reason}))
        for field, v in (("_made", (owner, name, place)), ("flag", flag), ("then", then), ("orelse", orelse)):
            object.__setattr__(self, field, v)

    def again(self, flag: Any, then: Any, orelse: Any) -> Either:
        return Either(*self._made, flag, then, orelse)

    def each(self, function: Callable[[Any], Any]) -> Any:
        """`function` of the one that it is."""
        return self._owner.choose(self.flag, lambda: function(self.then), lambda: function(self.orelse))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.each(lambda v: getattr(v, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.each(lambda v: self._owner.call(v, *args, **kwargs))

    def __eq__(self, other: Any) -> Any:
        return self.each(lambda v: v == other)

    def __ne__(self, other: Any) -> Any:
        return self.each(lambda v: v != other)

    def __and__(self, other: Any) -> Any:
        return self.each(lambda v: v & other)

    def __or__(self, other: Any) -> Any:
        return self.each(lambda v: v | other)

    def __add__(self, other: Any) -> Any:
        return self.each(lambda v: v + other)


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """How a tensor of a loop's state grows.

    Attributes:
        dim: along which dimension.
        by: by how much in every step, at most.
        least, first: its size before the loop, at least and at most.
        most: its greatest size; None as long as it is not known.
        even: whether it grows by that much in every step.
    """

    dim: int
    by: int
    least: int
    first: int
    most: int | None = None
    even: bool = True


class Grown:
    """A tensor of a loop's state that steps make longer: rows up to its greatest size, and how many there are.

    Attributes:
        whole: the rows.
        size: how many of them there are.
        growth: how it grows.
        origin: the tensor itself, as it is before the loop.
    """

    def __init__(self, whole: Any, size: Any, growth: Growth, origin: Any = None) -> None:
        self.whole = whole
        self.size = size
        self.growth = growth
        self.origin = origin

    def again(self, whole: Any, size: Any) -> Grown:
        return Grown(whole, size, self.growth)


class Lengths(Absent):
    """Tensors that are as long as one another in all dimensions but one, where the path decides among known sizes.

    Attributes:
        name: the variable.
        like: one of them.
        dim: the dimension.
        sizes: of all of them.
    """

    __slots__ = ("_made", "dim", "like", "name", "sizes")
    _made: tuple[Any, str, str]
    name: str
    dim: int
    like: torch.Tensor
    sizes: tuple[int, ...]

    def __init__(self, owner: Any, name: str, place: str, like: torch.Tensor, dim: int, sizes: tuple[int, ...]) -> None:
        pair = [described_as(like, dim, n) for n in (sizes[0], sizes[-1])]
        reason = f"{pair[0]} on one path and {pair[1]} on the other"
        super().__init__(owner, lambda: (ArmsDiffer, {"name": name, "place": place, "reason": reason}))
        for field, v in (("_made", (owner, name, place)), ("name", name), ("like", like), ("dim", dim), ("sizes", sizes)):
            object.__setattr__(self, field, v)

    def joined(self, other: Any) -> Lengths | None:
        """This, or a tensor, or another of this kind; None where they differ in anything else."""
        like, sizes = (other.like, other.sizes) if isinstance(other, Lengths) else (other, None)
        dim = differing_dim(self.like, like) if isinstance(like, torch.Tensor) else None
        if not isinstance(like, torch.Tensor) or dim not in (None, self.dim) or (dim is None and self.like.shape != like.shape):
            return None
        return Lengths(*self._made, self.like, self.dim, (*self.sizes, *(sizes or (int(like.shape[self.dim]),))))


def differing_dim(a: torch.Tensor, b: torch.Tensor) -> int | None:
    """The only dimension in which two tensors of known sizes differ."""
    if a.dtype != b.dtype or a.dim() != b.dim() or a.device != b.device or not all(isinstance(e, int) for e in (*a.shape, *b.shape)):
        return None
    dims = [d for d, (p, q) in enumerate(zip(a.shape, b.shape, strict=True)) if p != q]
    return dims[0] if len(dims) == 1 else None


class Choice:
    """One of several callables, chosen by a number from data: calling it branches."""

    def __init__(self, flow: Any, items: Sequence[Any], at: Any) -> None:
        self.flow = flow
        self.items = list(items)
        self.at = at

    def again(self, at: Any) -> Choice:
        return Choice(self.flow, self.items, at)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(0, len(self.items), args, kwargs)

    def _call(self, lo: int, hi: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of the items from `lo` on, below `hi`."""
        if hi - lo == 1:
            return self.flow.call(self.items[lo], *args, **kwargs)
        middle = (lo + hi) // 2
        return self.flow.choose(
            self.at < middle, lambda: self._call(lo, middle, args, kwargs), lambda: self._call(middle, hi, args, kwargs)
        )


def selectable(v: Any) -> bool:
    """Whether `Either` can stand for this or something else."""
    if isinstance(v, (torch.Tensor, Number, Absent)):
        return isinstance(v, Either)
    return callable(v) or isinstance(v, (str, bytes, enum.Enum, torch.dtype, torch.device))


def lasting(v: Any) -> bool:
    """Whether a value of the type of `v` can be made anywhere: of numbers, constants, and tensors of extents that are known before."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for x in leaves(v):
        if isinstance(x, torch.Tensor):
            if free_unbacked_symbols(x):
                return False
        elif not (is_number(x) or x is None or isinstance(x, Dead) or selectable(x)):
            return False
    return True


class Elided(Absent):
    """Stands for all elements of a container whose length depends on the path."""

    __slots__ = ()

    def __init__(
        self, owner: Any, name: str, place: str, reason: str, error: tuple[type, dict[str, Any]] | None = None
    ) -> None:
        super().__init__(owner, lambda: error or (ArmsDiffer, {"name": name, "place": place, "reason": reason}))


class Sometimes(Elided):
    """The element that a list has on some paths only, after all that come before it.

    Attributes:
        value: what it is where it is there.
        flag: whether it is, a truth value from data.
    """

    __slots__ = ("_made", "flag", "value")
    _made: tuple[Any, str, str, str]

    def __init__(self, owner: Any, name: str, place: str, reason: str, value: Any, flag: Any) -> None:
        super().__init__(owner, name, place, reason)
        for field, v in (("_made", (owner, name, place, reason)), ("value", value), ("flag", flag)):
            object.__setattr__(self, field, v)

    def again(self, value: Any, flag: Any) -> Sometimes:
        return Sometimes(*self._made, value, flag)


def differing(owner: Any, name: str, place: str, reason: str) -> Absent:
    return Absent(owner, lambda: (ArmsDiffer, {"name": name, "place": place, "reason": reason}))


def described_as(v: torch.Tensor, dim: int, size: int) -> str:
    """What a tensor is, of another size in one dimension."""
    shape = [size if d == dim else e for d, e in enumerate(v.shape)]
    return f"a tensor {str(v.dtype).removeprefix('torch.')}{shape}"


def described(v: Any) -> str:
    """What a value is, for messages."""
    if isinstance(v, torch.Tensor):
        return f"a tensor {str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
    if isinstance(v, Number):
        return f"a number ({v.kind.__name__})"
    if isinstance(v, (list, tuple, dict)):
        return f"a {type(v).__name__} of {len(v)}"
    if v is None or isinstance(v, (bool, int, float, str)):
        return f"{type(v).__name__} {v!r}" if v is not None else "None"
    if isinstance(v, Elided):
        return "as many elements as data say"
    return f"a {type(v).__name__}"


# --- structure -------------------------------------------------------------------------------------------------------


def parts(v: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """The elements of a container and how to make it again; None for a leaf."""
    kind = type(v)
    if kind is list:
        return list(v), list
    if kind is tuple or kind is torch.Size:
        return list(v), tuple
    if isinstance(v, (Partial, Sometimes)):
        return [v.value, v.flag], lambda items: v.again(*items)
    if isinstance(v, Grown):
        return [v.whole, v.size], lambda items: v.again(*items)
    if isinstance(v, Choice):
        return [v.at], lambda items: v.again(*items)
    if isinstance(v, Either):
        return [v.flag, v.then, v.orelse], lambda items: v.again(*items)
    if isinstance(v, tuple) and hasattr(v, "_fields"):
        return _with_attributes(v, list(v), lambda held: tuple.__new__(kind, held))
    if isinstance(v, tuple) and kind.__module__ == "torch.return_types":
        return list(v), kind
    if isinstance(v, dict):
        kept = dict(plain_method(v, "items")(v))

        def mapping(values: list[Any]) -> Any:
            made = copied(v)
            refill(made, dict(zip(kept, values, strict=True)))
            return made

        return _with_attributes(v, list(kept.values()), mapping)
    if kind is deque:
        return list(v), lambda held: deque(held, v.maxlen)
    if kind is set:
        return [], lambda _: set(v)
    if is_record(v):
        return _with_attributes(v, [], lambda _: copy.copy(v))
    return None


_RECORDS = (types.SimpleNamespace, argparse.Namespace)


def is_record(v: Any) -> bool:
    """Whether an object is what its attributes are, and nothing else."""
    return type(v) in _RECORDS or dataclasses.is_dataclass(v) and not isinstance(v, (type, torch.nn.Module))


def _also_elements(v: Any, own: Mapping[str, Any]) -> dict[str, int]:
    """The attributes of a dict that are its elements by the same name, and the positions of these."""
    at = {key: n for n, key in enumerate(plain_method(v, "__iter__")(v))} if own and isinstance(v, dict) else {}
    return {name: at[name] for name, held in own.items() if name in at and dict.get(v, name) is held}


def _with_attributes(
    v: Any, elements: list[Any], make: Callable[[list[Any]], Any]
) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The parts of a container and how to make it again: its elements, then its attributes."""
    own = attributes_of(v)
    at = _also_elements(v, own)
    rest = [name for name in own if name not in at]

    def made(held: list[Any]) -> Any:
        found = make(held[: len(elements)])
        named = dict(zip(rest, held[len(elements) :], strict=True)) | {name: held[n] for name, n in at.items()}
        for name in own:
            object.__setattr__(found, name, named[name])
        return found

    return [*elements, *(own[name] for name in rest)], made


def structure(v: Any) -> Any:
    """Equal for containers that are made of the same kinds, keys and lengths at their top, and have the same attributes."""
    kind = type(v)
    if isinstance(v, dict):
        own = attributes_of(v)
        keys = tuple(map(_key, plain_method(v, "__iter__")(v)))
        return kind, keys, getattr(v, "default_factory", None), *own, *_also_elements(v, own).items()
    if isinstance(v, Grown):
        return kind, v.growth
    if isinstance(v, Choice):
        return kind, *map(id, v.items)
    if isinstance(v, tuple) and hasattr(v, "_fields"):
        return kind, len(v), *attributes_of(v)
    if kind is set:
        return kind, frozenset(map(_key, v))
    if kind is deque:
        return kind, len(v), v.maxlen
    if kind in (list, tuple, torch.Size) or isinstance(v, tuple):
        return (tuple if kind is torch.Size else kind), len(v)
    return kind, is_record(v) and tuple(attributes_of(v))


def _key(v: Any) -> Any:
    """Equal for what is one key of a dict, or one element of a set, on both paths: two objects are two, however they show themselves."""
    if isinstance(v, (tuple, frozenset)):
        return type(v), (tuple if isinstance(v, tuple) else frozenset)(map(_key, v))
    plain = type(v) in (bool, int, float, complex, str, bytes, type(None), range)
    return (type(v), repr(v)) if plain else id(v)


def leaves(v: Any, closed: tuple[type, ...] = ()) -> Iterator[Any]:
    """The leaves of nested containers; those of `closed` kinds count as leaves."""
    found = None if isinstance(v, closed) else parts(v)
    if found is None:
        yield v
        return
    for item in found[0]:
        yield from leaves(item, closed)


def absent(v: Any) -> Iterator[Absent]:
    """The values in nested containers that cannot be used as they are."""
    if isinstance(v, Absent):
        yield v
        return
    found = parts(v)
    for item in found[0] if found is not None else ():
        yield from absent(item)


def _itself(v: Any) -> Any:
    return v


def mapped(v: Any, leaf: Callable[[Any], Any], shown: Callable[[Any], Any] = _itself) -> Any:
    """The same containers with `leaf` of each leaf; the same object when nothing changed.

    Args:
        v: the value.
        leaf: the new leaf.
        shown: what a container holds, where that is not what it holds now.
    """
    now = shown(v)
    found = parts(now)
    if found is None:
        return leaf(v)
    items = [mapped(item, leaf, shown) for item in found[0]]
    if now is v and all(a is b for a, b in zip(items, found[0], strict=True)):
        return v
    return found[1](items)


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are one value on every path."""
    if a is b:
        return True
    if isinstance(a, (torch.Tensor, Number, Absent)) or isinstance(b, (torch.Tensor, Number, Absent)):
        return isinstance(a, Number) and isinstance(b, Number) and a.tensor is b.tensor and a.kind is b.kind
    if type(a) is not type(b):
        return False
    if isinstance(a, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return bool(a.node.expr == b.node.expr)
    if isinstance(a, (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, range, slice)):
        return repr(a) == repr(b) and same_attributes(a, b)
    if type(a).__hash__ is None:
        return False  # what can be changed is another object
    equal = getattr(type(a), "__eq__", None)
    if equal is object.__eq__ or (isinstance(equal, types.FunctionType) and not left_alone(equal)):
        return False  # objects that the model's code calls equal may hold something else
    if isinstance(a, Mapping) and list(a) != list(b):
        return False
    try:
        return bool(a == b) and same_attributes(a, b)
    except Exception:
        return False


def same_attributes(a: Any, b: Any) -> bool:
    """Whether two objects that are equal otherwise are so in what their classes of their own keep beside."""
    p, q = (getattr(v, "__dict__", {}) for v in (a, b))
    return p is q or p.keys() == q.keys() and all(same(p[name], q[name]) for name in p)


def same_tree(a: Any, b: Any) -> bool:
    """Whether two values are equal in structure and in every leaf."""
    if a is b:
        return True
    x, y = parts(a), parts(b)
    if x is None or y is None:
        return x is None and y is None and same(a, b)
    return structure(a) == structure(b) and all(same_tree(p, q) for p, q in zip(x[0], y[0], strict=True))


def unite(
    a: Any,
    b: Any,
    leaf: Callable[[Any, Any], Any],
    shown: tuple[Callable[[Any], Any], Callable[[Any], Any]] = (_itself, _itself),
    made: Callable[[Any, Any, Any], Any] = lambda a, b, united: united,
) -> Any:
    """Both values as one: containers of equal structure are walked, `leaf` unites what is left.

    Args:
        a, b: the values.
        leaf: one leaf of two.
        shown: what containers hold on either side, where that is not what they hold now.
        made: is told of each container that two became (or a changed one), and gives what stands for it.
    """
    if a is b:
        return a
    if isinstance(a, Dead):
        return made(b, b, mapped(b, lambda v: leaf(DEAD, v), shown[1]))
    if isinstance(b, Dead):
        return made(a, a, mapped(a, lambda v: leaf(v, DEAD), shown[0]))
    p, q = shown[0](a), shown[1](b)
    x, y = parts(p), parts(q)
    if x is None or y is None or structure(p) != structure(q):
        return a if p is a and q is b and same_tree(a, b) else leaf(a, b)
    return made(a, b, x[1]([unite(v, w, leaf, shown, made) for v, w in zip(x[0], y[0], strict=True)]))


def joined_kind(a: Any, b: Any) -> tuple[type, bool]:
    """The Python type that holds both numbers, and whether the type itself depends on the path."""
    kinds = {kind_of(a), kind_of(b)}
    mixed = len(kinds) > 1 or any(v.mixed if isinstance(v, Number) else _of_its_own_class(v) for v in (a, b))
    return (float if float in kinds else int if int in kinds else bool), mixed


def _of_its_own_class(v: Any) -> bool:
    """Whether a number is one of a class like `IntEnum`, whose members are more than numbers."""
    return isinstance(v, (int, float)) and type(v) not in (bool, int, float)


def apart(a: Any, b: Any) -> bool:
    """Whether no type of the IR holds both numbers as they are: an int beyond what floats are exact for, beside a float."""
    kind, _ = joined_kind(a, b)
    most = EXACT if kind is float else 1 << 63
    return any(type(v) is int and (abs(v) > most or v == 1 << 63) for v in (a, b))


def alike(a: Any, b: Any) -> str | None:
    """Why two tensors cannot be one result; None when they can."""
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if a.dtype != b.dtype or len(a.shape) != len(b.shape) or a.device != b.device:
        return f"{described(a)} on one path and {described(b)} on the other"
    with disable_proxy_modes_tracing():  # comparing extents is no part of the program
        if not all(p is q or statically_known_true(p == q) for p, q in zip(a.shape, b.shape, strict=True)):
            return f"{described(a)} on one path and {described(b)} on the other"
    return None


def same_shape(a: Any, b: Any) -> bool:
    """Whether two values have the same containers."""
    x, y = parts(a), parts(b)
    if x is None or y is None:
        return x is None and y is None
    return structure(a) == structure(b) and all(map(same_shape, x[0], y[0]))


def difference(a: Any, b: Any) -> tuple[Any, Any]:
    """The innermost parts in which two values differ in structure or type."""
    x, y = parts(a), parts(b)
    if x is None or y is None or structure(a) != structure(b):
        return a, b
    for p, q in zip(x[0], y[0], strict=True):
        if not same_tree(p, q) and (not same_shape(p, q) or type(p) is not type(q)):
            return difference(p, q)
    for p, q in zip(x[0], y[0], strict=True):
        if not same_tree(p, q):
            return difference(p, q)
    return a, b


__all__ = [
    "DEAD", "Absent", "Choice", "Dead", "Either", "Elided", "Grown", "Growth", "Lengths", "Maybe", "Partial", "Sometimes",
    "Unbound", "Unset", "absent", "alike", "apart", "described", "differing", "differing_dim", "is_number", "joined_kind", "lasting",
    "leaves", "mapped", "parts", "same", "same_tree", "selectable", "structure", "undefined", "unite",
]  # fmt: skip
