"""The table of ONNX operators, and what a definition gets to see of its node."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.onnx_builder import ModelBuilder
from dlc.frontend.onnx_errors import InvalidNode, TooLarge, WrongAttribute
from dlc.frontend.onnx_load import attribute_value, tensor_array
from dlc.frontend.onnx_value import Array, Optional, Sequence, Tensor, Value
from dlc.ir.dtype import DType
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.loc import Loc
from dlc.ir.view import Shape, Val

if TYPE_CHECKING:
    from dlc.frontend.onnx_graph import GraphImporter, Scope

Result: TypeAlias = "Val | Value | None | Seq[Val | Value | None]"
Handler: TypeAlias = "Callable[[Ctx], Result | Seq[Result]]"

OPERATORS: dict[tuple[str, str], list[tuple[int, Handler]]] = {}
"""Definitions by (domain, name): (first operator-set version, handler), ascending."""

REFUSED: dict[tuple[str, str], str] = {}
"""Operators that are refused, with the reason."""

_MISSING = object()


def op(*names: str, since: int = 1, domain: str = "") -> Callable[[Handler], Handler]:
    """Register a definition for operators of `domain` from version `since` on."""

    def register(handler: Handler) -> Handler:
        for name in names:
            versions = OPERATORS.setdefault((domain, name), [])
            versions.append((since, handler))
            versions.sort(key=lambda v: v[0])
        return handler

    return register


def refuse(reason: str, *names: str, domain: str = "") -> None:
    """Register operators that are refused for `reason`."""
    for name in names:
        REFUSED[domain, name] = reason


def find(domain: str, name: str, version: int) -> Handler | None:
    """The definition for an operator-set version, if there is one."""
    best = None
    for since, handler in OPERATORS.get((domain, name), ()):
        if since <= version:
            best = handler
    return best


@dataclass(slots=True)
class Ctx:
    """A node as its definition sees it: inputs, attributes, the builder.

    Attributes:
        node: the NodeProto.
        version: the version of its operator set.
        ins: its inputs; None for one left out.
        attrs: attributes by name, already decoded.
    """

    graph: GraphImporter
    node: Any
    version: int
    ins: tuple[Value | None, ...]
    attrs: dict[str, Any]
    loc: Loc
    scope: Scope
    hint: str = field(default="t")

    @property
    def b(self) -> ModelBuilder:
        return self.graph.b

    @property
    def op(self) -> str:
        return str(self.node.op_type)

    @property
    def outputs(self) -> int:
        """Number of outputs the node names."""
        return len(self.node.output)

    def wants(self, i: int) -> bool:
        """Whether output `i` has a name."""
        return i < len(self.node.output) and bool(self.node.output[i])

    # --- failures ---

    def refuse(self, reason: str) -> NoReturn:
        raise UnsupportedOperator(self.loc, op=self.op, reason=reason)

    def bad(self, reason: str) -> NoReturn:
        raise InvalidNode(self.loc, op=self.op, reason=reason)

    # --- inputs ---

    def has(self, i: int) -> bool:
        return i < len(self.ins) and self.ins[i] is not None

    def value(self, i: int) -> Value:
        found = self.ins[i] if i < len(self.ins) else None
        if found is None:
            self.bad(f"input {i} is required")
        return found

    def tensor(self, i: int) -> Tensor:
        found = self.value(i)
        if isinstance(found, Optional) and isinstance(found.item, Tensor):
            return found.item
        if not isinstance(found, Tensor):
            self.bad(f"input {i} must be a tensor")
        return found

    def sequence(self, i: int) -> Sequence:
        found = self.value(i)
        if isinstance(found, Optional) and isinstance(found.item, Sequence):
            return found.item
        if not isinstance(found, Sequence):
            self.bad(f"input {i} must be a sequence")
        return found

    def x(self, i: int = 0) -> Val:
        """Input `i`, to be read at run time."""
        return self.tensor(i).val(self.b)

    def opt(self, i: int) -> Val | None:
        """Input `i` if it is given."""
        return self.x(i) if self.has(i) else None

    def numbers(self, i: int, what: str) -> Array:
        """The elements of input `i`, which must be known at import."""
        return self.graph.require_numbers(self.tensor(i), what, self)

    def extents(self, i: int, what: str) -> list[IntExpr]:
        """The elements of a rank-0 or rank-1 integer input, which may be symbolic."""
        array = self.graph.require_static(self.tensor(i), what, self)
        return [int_expr(e if isinstance(e, IntExpr) else int(e)) for e in array.ravel()]

    def bound(self, i: int, what: str) -> list[IntExpr]:
        """The elements of input `i` as extents: known ones as they are, others bound when the program runs."""
        t = self.tensor(i)
        if t.static is not None or not t.deps:
            return self.extents(i, what)
        x = t.val(self.b)
        count = x.elements.const
        if not x.dtype.is_int or x.rank > 1 or count is None:
            return self.extents(i, what)
        return [self.b.bind(x.view((), lambda n=n: [n] * x.rank), f"{self.hint}_n") for n in range(count)]

    def axes(self, i: int, attribute: str = "axes", what: str = "its axes") -> tuple[int, ...] | None:
        """Axes given as input `i` or, in older versions, as an attribute; None when absent."""
        if self.has(i):
            return tuple(int(a) for a in self.numbers(i, what).ravel())
        return self.ints(attribute, None)

    # --- attributes ---

    def _get(self, name: str, default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        if name not in self.attrs:
            if default is _MISSING:
                raise WrongAttribute(self.loc, attribute=name, op=self.op, reason="it is required")
            return default
        found = self.attrs[name]
        if not isinstance(found, kinds):
            raise WrongAttribute(
                self.loc, attribute=name, op=self.op, reason=f"{expected} is expected, not {found!r:.60}"
            )
        return found

    def int_(self, name: str, default: Any = _MISSING) -> Any:
        return self._get(name, default, (int,), "an integer")

    def flag(self, name: str, default: int = 0) -> bool:
        """An integer attribute that says yes or no."""
        found = self.int_(name, default)
        if found not in (0, 1):
            raise WrongAttribute(self.loc, attribute=name, op=self.op, reason=f"0 or 1 is expected, not {found}")
        return bool(found)

    def float_(self, name: str, default: Any = _MISSING) -> Any:
        return self._get(name, default, (float,), "a number")

    def str_(self, name: str, default: Any = _MISSING) -> Any:
        return self._get(name, default, (str,), "text")

    def ints(self, name: str, default: Any = _MISSING) -> Any:
        found = self._get(name, default, (tuple,), "a list of integers")
        if found and not all(isinstance(x, int) for x in found):
            raise WrongAttribute(self.loc, attribute=name, op=self.op, reason="a list of integers is expected")
        return found

    def floats(self, name: str, default: Any = _MISSING) -> Any:
        return self._get(name, default, (tuple,), "a list of numbers")

    def array(self, name: str) -> Array | None:
        """A tensor attribute, None when absent."""
        found = self.attrs.get(name)
        if found is None:
            return None
        if not hasattr(found, "data_type"):
            raise WrongAttribute(self.loc, attribute=name, op=self.op, reason="a tensor is expected")
        return tensor_array(found, self.graph.folder, self.loc)

    def limit(self, count: int, most: int, what: str) -> None:
        """Refuse what would take the importer too long or too much memory."""
        if count > most:
            raise TooLarge(self.loc, op=self.op, reason=f"{what} ({count}) is more than {most}")

    # --- helpers ---

    def axis(self, value: int, rank: int) -> int:
        """`value` counted from the front; out of range is an error."""
        if not -rank <= value < rank:
            self.bad(f"axis {value} is out of range for rank {rank}")
        return value + rank if value < 0 else value

    def axis_list(self, values: Seq[int], rank: int) -> list[int]:
        """Axes counted from the front, without duplicates."""
        dims = [self.axis(v, rank) for v in values]
        if len(set(dims)) != len(dims):
            self.bad(f"axes {list(values)} repeat an axis")
        return dims

    def known(self, extents: Seq[IntExpr], what: str) -> list[int]:
        """Extents as plain integers; symbolic ones are refused."""
        plain = [e.const for e in extents]
        if any(p is None for p in plain):
            self.refuse(f"{what} must be a plain integer, not {', '.join(map(str, extents))}")
        return [p for p in plain if p is not None]

    def scalar_number(self, i: int, what: str) -> Any:
        """Input `i`, of one element known at import, as a Python number."""
        array = self.numbers(i, what)
        if array.size != 1:
            self.bad(f"{what} must have one element, not {array.size}")
        return array.ravel()[0].item()


def same_dtype(c: Ctx, *vals: Val) -> DType:
    """The type all operands share; a difference is the model's fault."""
    first = vals[0].dtype
    for v in vals[1:]:
        if v.dtype != first:
            c.bad(f"operands have types {', '.join(str(x.dtype) for x in vals)}")
    return first


def attributes(node: Any, env: dict[str, Any], loc: object) -> dict[str, Any]:
    """Decoded attributes of a node; references to a function's attributes are looked up in `env`."""
    found: dict[str, Any] = {}
    for a in node.attribute:
        if a.ref_attr_name:
            if a.ref_attr_name in env:
                found[a.name] = env[a.ref_attr_name]
            continue
        found[a.name] = attribute_value(a, loc, node.op_type)
    return found


def shape_text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
