"""What ONNX's own schemas say of a node: whether its inputs fit, the body it expands to, the defaults of its attributes."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dlc.frontend.onnx_errors import InvalidNode
from dlc.frontend.onnx_load import ONNX_TYPES, attribute_value, onnx, type_name
from dlc.frontend.onnx_value import Tensor, Value
from dlc.ir.dtype import DType
from dlc.ir.loc import Loc


@dataclass(frozen=True, slots=True)
class Formal:
    """A formal input: its name, type variable, types allowed (ONNX's spelling), and whether a node may leave it out."""

    name: str
    variable: str
    types: frozenset[str]
    optional: bool
    variadic: bool
    uniform: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """Formal inputs of an operator at one version."""

    formals: tuple[Formal, ...]
    least: int
    most: int

    def formal(self, i: int) -> Formal | None:
        if i < len(self.formals):
            return self.formals[i]
        last = self.formals[-1] if self.formals else None
        return last if last is not None and last.variadic else None


@lru_cache(maxsize=4096)
def signature(domain: str, name: str, version: int) -> Signature | None:
    """The signature of an operator, None when ONNX has no such operator."""
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None
    option = onnx.defs.OpSchema.FormalParameterOption
    formals = tuple(
        Formal(
            p.name,
            p.type_str,
            frozenset(p.types),
            p.option == option.Optional,
            p.option == option.Variadic,
            p.is_homogeneous,
        )
        for p in schema.inputs
    )
    return Signature(formals, schema.min_input, schema.max_input)


OLDEST = 7
"""The first operator-set version whose operators are all defined here."""


@lru_cache(maxsize=1024)
def changed_since(name: str, version: int) -> bool:
    """Whether an operator of a version before `OLDEST` is another one than that version's."""
    try:
        old, new = (onnx.defs.get_schema(name, v, "").since_version for v in (version, OLDEST))
    except onnx.defs.SchemaError:
        return False
    return bool(old != new)


def onnx_name(dtype: DType) -> str:
    """`tensor(float)` and the like."""
    return f"tensor({type_name(ONNX_TYPES[dtype])})"


def check_inputs(domain: str, node: Any, version: int, ins: Seq[Value | None], loc: Loc) -> None:
    """Refuse a node whose inputs are too few, too many, or of types its operator does not take."""
    sig = signature(domain, node.op_type, version)
    if sig is None:
        return
    if not sig.least <= len(ins) <= sig.most:
        wanted = f"{sig.least}" if sig.least == sig.most else f"{sig.least} to {sig.most}"
        raise InvalidNode(loc, op=node.op_type, reason=f"it takes {wanted} inputs, {len(ins)} are given")
    bound: dict[str, DType] = {}
    for i, v in enumerate(ins):
        formal = sig.formal(i)
        if formal is None:
            continue
        if v is None:
            if not formal.optional and not formal.variadic:
                raise InvalidNode(loc, op=node.op_type, reason=f"input {i} ('{formal.name}') is required")
            continue
        if not isinstance(v, Tensor):
            continue
        if onnx_name(v.dtype) not in formal.types and not any(t.startswith(("seq", "optional")) for t in formal.types):
            raise InvalidNode(loc, op=node.op_type, reason=f"input {i} ('{formal.name}') cannot be of type {v.dtype}")
        if "(" in formal.variable or not formal.uniform:
            continue
        first = bound.setdefault(formal.variable, v.dtype)
        if first != v.dtype:
            raise InvalidNode(loc, op=node.op_type, reason=f"inputs of one type {formal.variable} are {first} and {v.dtype}")


def schema_function(domain: str, node: Any, version: int, ins: Seq[Value | None]) -> Any:
    """The body ONNX itself gives an operator, as a FunctionProto; None when there is none."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    try:
        if schema.has_function:
            versions = [v for v in schema.function_opset_versions if v <= version]
            if versions:
                return _function(schema.get_function_with_opset_version(max(versions)))
        if schema.has_context_dependent_function:
            versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
            types = [type_proto(v) for v in ins]
            if versions and all(t is not None for t in types):
                data = [t.SerializeToString() for t in types if t is not None]
                body = schema.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), data)
                return _function(body)
    except (RuntimeError, ValueError):
        return None
    return None


def _function(data: bytes) -> Any:
    body = onnx.FunctionProto()
    body.ParseFromString(data)
    return body


def schema_defaults(domain: str, node: Any, version: int, loc: Loc) -> dict[str, Any]:
    """Default values of the attributes of an operator that is expanded by its own body."""
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    given = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}
    return {n: attribute_value(a, loc, node.op_type) for n, a in given.items()}


def type_proto(v: Value | None) -> Any:
    """The TypeProto of a value; None for what is no tensor."""
    if v is None:
        return onnx.TypeProto()
    if not isinstance(v, Tensor):
        return None
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = ONNX_TYPES[v.dtype]
    proto.tensor_type.shape.SetInParent()
    for e in v.shape:
        dim = proto.tensor_type.shape.dim.add()
        if e.const is not None:
            dim.dim_value = e.const
        else:
            dim.dim_param = str(e)
    return proto
