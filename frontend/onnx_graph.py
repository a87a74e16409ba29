"""Walking an ONNX graph: names, folding, dispatch to the operator table, functions and nested graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlc.errors import DlcError
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.onnx_builder import ModelBuilder, SymbolsMeet
from dlc.frontend.onnx_errors import (
    InvalidNode,
    MalformedModel,
    NeedsValue,
    UndefinedValue,
    UnsupportedOpset,
    shown,
)
from dlc.frontend.onnx_evaluate import evaluate_constant
from dlc.frontend.onnx_extents import Demands
from dlc.frontend.onnx_load import attribute_value, onnx, tensor_array
from dlc.frontend.onnx_ops.fold import fold
from dlc.frontend.onnx_ops.registry import REFUSED, Ctx, attributes, find
from dlc.frontend.onnx_schema import OLDEST, changed_since, check_inputs, schema_defaults, schema_function
from dlc.frontend.onnx_value import (
    NOTHING,
    Array,
    ExtentTest,
    Optional,
    Sequence,
    Tensor,
    Value,
    extent_test,
)
from dlc.ir.loc import Loc
from dlc.ir.view import Val

INSIDE_LOOP = frozenset({"\0loop"})
"""Dependency of values that change from step to step: never constant, never specialised."""
MAX_DEPTH = 64
MAX_SPECIALISED_ELEMENTS = 4096
SUPPORTED_DOMAINS = ("", "com.microsoft", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


@dataclass(slots=True)
class Scope:
    """Names in reach: those of this graph, then those of the graphs around it.

    Attributes:
        opsets: version per operator domain ("" is ai.onnx).
        attrs: attribute values of the function being expanded.
    """

    names: dict[str, Value | None]
    opsets: Mapping[str, int]
    attrs: dict[str, Any] = field(default_factory=dict)
    parent: Scope | None = None
    depth: int = 0

    def find(self, name: str) -> tuple[bool, Value | None]:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True, scope.names[name]
            scope = scope.parent
        return False, None


class GraphImporter:
    """Imports the nodes of one model into a `Builder`."""

    def __init__(self, b: ModelBuilder, folder: Path | None, label: str, model: Any) -> None:
        self.b = b
        self.folder = folder
        self.label = label
        self.functions = {(canonical_domain(f.domain), f.name, f.overload): f for f in model.functions}
        self.inputs: dict[str, Tensor] = {}
        self.demands = Demands(b)

    # --- graphs ---

    def run_graph(self, graph: Any, bindings: Mapping[str, Value | None], outer: Scope) -> list[Value]:
        """Import a nested graph with its inputs bound; its outputs."""
        if outer.depth >= MAX_DEPTH:
            raise MalformedModel(Loc(self.label), reason=f"graphs and functions nest deeper than {MAX_DEPTH}")
        scope = Scope(dict(bindings), outer.opsets, outer.attrs, outer, outer.depth + 1)
        return self.run_in(graph, scope)

    def run_in(self, graph: Any, scope: Scope) -> list[Value]:
        """Import `graph`'s initializers and nodes into `scope`; its outputs."""
        self.add_initializers(graph, scope)
        self.run_nodes(graph.node, scope)
        return [self.lookup(o.name, scope, Loc(f"{self.label}: output '{o.name}'")) for o in graph.output]

    def add_initializers(self, graph: Any, scope: Scope) -> None:
        for tensor in graph.initializer:
            if tensor.name not in scope.names:
                loc = Loc(f"{self.label}: initializer '{tensor.name}'")
                array = tensor_array(tensor, self.folder, loc)
                scope.names[tensor.name] = Tensor(static=array, hint=tensor.name)
        if graph.sparse_initializer:
            raise UnsupportedOperator(Loc(self.label), op="sparse_initializer", reason="sparse tensors have no native form yet")

    def lookup(self, name: str, scope: Scope, loc: Loc) -> Value:
        found, value = scope.find(name)
        if not found or value is None:
            raise UndefinedValue(loc, name=name)
        return value

    def run_nodes(self, nodes: Iterable[Any], scope: Scope) -> None:
        for node in nodes:
            loc = Loc(self.place(node))
            with self.b.at(loc):
                try:
                    self.run_node(node, scope, loc)
                except SymbolsMeet:
                    raise
                except DlcError as e:
                    if e.loc is None:
                        e.loc = loc
                    raise
                except RecursionError:
                    raise MalformedModel(loc, reason="graphs or functions nest too deeply") from None
                except MemoryError:
                    raise InvalidNode(loc, op=node.op_type, reason="its constants do not fit in memory") from None
                except Exception as e:
                    raise InvalidNode(loc, op=node.op_type, reason=f"{type(e).__name__}: {shown(e)}") from e

    def place(self, node: Any) -> str:
        name = node.name or next((o for o in node.output if o), "")
        return f"{self.label}: {name} ({node.op_type})" if name else f"{self.label}: ({node.op_type})"

    # --- nodes ---

    def run_node(self, node: Any, scope: Scope, loc: Loc) -> None:
        ins: list[Value | None] = []
        for name in node.input:
            if not name:
                ins.append(None)
                continue
            found, value = scope.find(name)
            if not found:
                raise UndefinedValue(loc, name=name)
            ins.append(value)
        domain = canonical_domain(node.domain)
        function = self.functions.get((domain, node.op_type, node.overload))
        if function is not None:
            outs = self.call_function(function, node, ins, scope, loc)
        else:
            outs = self.run_operator(domain, node, tuple(ins), scope, loc)
        for name, value in zip(node.output, outs, strict=False):
            if name:
                scope.names[name] = value
        if len(outs) < len(node.output) and any(node.output[len(outs) :]):
            raise UnsupportedOperator(loc, op=node.op_type, reason=f"its output {len(outs)} has no definition here")

    def run_operator(self, domain: str, node: Any, ins: tuple[Value | None, ...], scope: Scope, loc: Loc) -> list[Value | None]:
        version = scope.opsets.get(domain)
        if version is None:
            raise UnsupportedOpset(loc, domain=domain, version="none", reason="the model does not import that domain")
        if domain == "" and version < OLDEST and changed_since(node.op_type, version):
            raise UnsupportedOpset(loc, domain="ai.onnx", version=version, reason=f"{node.op_type} changed in version {OLDEST}")
        check_inputs(domain, node, version, ins, loc)
        attrs = attributes(node, scope.attrs, loc)
        hint = next((o for o in node.output if o), node.op_type)
        c = Ctx(self, node, version, ins, attrs, loc, scope, hint)
        folded = fold(c) if domain == "" else None
        if folded is not None:
            return list(folded)
        handler = find(domain, node.op_type, version)
        if handler is not None:
            return with_test(c, self.results(handler(c), ins))
        reason = REFUSED.get((domain, node.op_type))
        if reason is not None:
            raise UnsupportedOperator(loc, op=node.op_type, reason=reason)
        body = schema_function(domain, node, version, ins)
        if body is None:
            known = domain in SUPPORTED_DOMAINS and onnx.defs.has(node.op_type, domain)
            why = "it has no definition here" if known else f"no operator of that name is known in domain '{domain or 'ai.onnx'}'"
            raise UnsupportedOperator(loc, op=node.op_type, reason=why)
        return self.call_function(body, node, list(ins), scope, loc, schema_defaults(domain, node, version, loc))

    def results(self, result: Any, ins: tuple[Value | None, ...]) -> list[Value | None]:
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        deps = deps_of(ins)
        return [Tensor(x, deps=deps) if isinstance(x, Val) else x for x in items]

    def call_function(
        self,
        function: Any,
        node: Any,
        ins: list[Value | None],
        scope: Scope,
        loc: Loc,
        defaults: dict[str, Any] | None = None,
    ) -> list[Value | None]:
        """Expand a function's body in a scope of its own."""
        if scope.depth >= MAX_DEPTH:
            raise MalformedModel(loc, reason=f"functions nest deeper than {MAX_DEPTH}: '{function.name}' may call itself")
        if len(ins) > len(function.input):
            raise InvalidNode(loc, op=node.op_type, reason=f"the function takes {len(function.input)} inputs, {len(ins)} are given")
        attrs = dict(defaults or {})
        attrs |= {a.name: attribute_value(a, loc, function.name) for a in function.attribute_proto}
        attrs |= attributes(node, scope.attrs, loc)
        opsets = {**scope.opsets, **{canonical_domain(o.domain): o.version for o in function.opset_import}}
        padded = ins + [None] * (len(function.input) - len(ins))
        names: dict[str, Value | None] = dict(zip(function.input, padded, strict=True))
        inner = Scope(names, opsets, attrs, None, scope.depth + 1)
        self.run_nodes(function.node, inner)
        used = function.output[: len(node.output)]
        return [self.lookup(o, inner, loc) if node.output[n] else None for n, o in enumerate(used)]

    # --- values that must be known ---

    def require_static(self, t: Tensor, what: str, c: Ctx) -> Array:
        """The elements of `t` as numbers or integer expressions."""
        if t.static is not None:
            return t.static
        if t.deps:
            self.need_inputs(t.deps, what, c)
        found = evaluate_constant(self.b, t.val(self.b))
        if found is None:
            c.refuse(f"{what} cannot be computed when compiling")
        t.static = found
        return found

    def require_numbers(self, t: Tensor, what: str, c: Ctx) -> Array:
        """The elements of `t` as numbers."""
        self.require_static(t, what, c)
        numbers = t.numbers
        if numbers is None:
            c.refuse(f"{what} must be plain numbers, but depends on a symbolic extent")
        return numbers

    def need_inputs(self, deps: frozenset[str], what: str, c: Ctx) -> None:
        """Raise what asks for the values of `deps`, where they are small enough to specialise on."""
        for name in sorted(deps):
            source = self.inputs.get(name)
            elements = None if source is None else source.val(self.b).elements.const
            if source is None or (elements is None and source.val(self.b).rank > 1) or (elements or 0) > MAX_SPECIALISED_ELEMENTS:
                c.refuse(f"{what} must be known when compiling, but is computed from data")
            if source.dtype.is_float and (elements is None or elements > 64):
                c.refuse(f"{what} must be known when compiling, but is computed from the data of input '{name}'")
        if not deps:
            c.refuse(f"{what} depends on extents in a way that cannot be decided when compiling")
        names = tuple(sorted(deps))
        inputs = ", ".join(f"'{n}'" for n in names)
        raise NeedsValue(c.loc, op=c.op, reason=f"{what} must be known when compiling", inputs=inputs, names=names)


def with_test(c: Ctx, outs: list[Value | None]) -> list[Value | None]:
    """Remember of a boolean which test on extents it is the answer to."""
    first = outs[0] if outs else None
    if not isinstance(first, Tensor) or first.static is not None:
        return outs
    tensors = [v for v in c.ins if isinstance(v, Tensor)]
    if c.op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual") and len(tensors) == 2:
        first.test = extent_test(c.op, tensors[0], tensors[1])
    elif c.op in ("Cast", "Identity", "Not", "Squeeze", "Unsqueeze", "Reshape") and tensors and tensors[0].test is not None:
        test = tensors[0].test
        first.test = ExtentTest(test.name, test.difference, test.negated != (c.op == "Not"))
    return outs


def canonical_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def deps_of(values: Iterable[Value | None]) -> frozenset[str]:
    """Graph inputs that the elements of `values` depend on; known values depend on none."""
    found = NOTHING
    for v in values:
        match v:
            case Tensor():
                found |= NOTHING if v.static is not None else v.deps
            case Sequence(items):
                found |= deps_of(items)
            case Optional(item):
                found |= deps_of((item,))
            case None:
                pass
    return found
