"""ONNX models as programs: `import_model`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.frontend import onnx_ops
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.imported import Imported, leaf
from dlc.frontend.onnx_builder import ModelBuilder, SymbolsMeet
from dlc.frontend.onnx_errors import (
    BadSpecialisation,
    MalformedModel,
    NeedsStructure,
    NeedsValue,
    UnsupportedOpset,
    shown,
)
from dlc.frontend.onnx_graph import SUPPORTED_DOMAINS, GraphImporter, Scope, canonical_domain
from dlc.frontend.onnx_load import check_model, element_type, load_model, onnx
from dlc.frontend.onnx_schema import OLDEST
from dlc.frontend.onnx_value import Optional, Sequence, Tensor, Value
from dlc.ir.builder import Builder
from dlc.ir.dtype import DType
from dlc.ir.extent import IntExpr, IntLike, split_linear, substitute, variables
from dlc.ir.loc import Loc
from dlc.ir.view import Val

for _module in pkgutil.iter_modules(onnx_ops.__path__):
    importlib.import_module(f"dlc.frontend.onnx_ops.{_module.name}")

def import_model(
    model: Any,
    *,
    specialise: Mapping[str, Any] | None = None,
    examples: Mapping[str, Any] | None = None,
    overridable: Collection[str] = (),
    folder: Path | None = None,
    check: bool = True,
) -> Imported:
    """An ONNX model as a program of the IR.

    Args:
        model: a path, the bytes of a file, or a ModelProto.
        specialise: values of inputs that decide shapes or structure. The program holds for these values alone; the inputs
            stay parameters, so that the caller can check what is passed.
        examples: example inputs by name: nested lists for sequences, None for an empty optional, arrays for inputs whose
            declared type has no shape. Only structure is taken from them, and extents where a branch depends on an extent (the
            symbol's range then says for which extents the program holds).
        overridable: inputs with an initializer as default that the caller wants to feed; other defaults are constants.
        folder: where external data lie, for a ModelProto or bytes; a path's own folder otherwise.
        check: whether to run ONNX's checker first.

    Raises:
        NeedsValue: the values of some inputs must be given by `specialise`.
        NeedsStructure: an example is needed for a sequence, an optional or an input without a shape.
        DlcError: everything else that is wrong or not supported, with its node.
    """
    proto, own_folder, name = load_model(model)
    if check:
        check_model(proto, name)
    try:
        equal: dict[str, IntExpr] = {}
        while True:
            try:
                given = dict(specialise or {}), dict(examples or {})
                return _import(proto, folder or own_folder, name, *given, overridable, equal)
            except SymbolsMeet as e:
                equal = {n: substitute(v, {"#" + e.name: e.equal}) for n, v in equal.items()} | {e.name: e.equal}
    except DlcError:
        raise
    except RecursionError:
        raise MalformedModel(Loc(name), reason="graphs nest too deeply") from None


def import_for(model: Any, examples: Mapping[str, Any], **options: Any) -> Imported:
    """`import_model`, taking from `examples` what it turns out to need: structure first, values where it must."""
    values: dict[str, Any] = dict(options.pop("specialise", None) or {})
    options.setdefault("check", True)
    while True:
        try:
            return import_model(model, specialise=values, examples=examples, **options)
        except NeedsValue as e:
            fresh = {n: np.asarray(examples[n]) for n in e.names if n not in values and examples.get(n) is not None}
            if not fresh:
                raise
            values |= fresh
            options["check"] = False


def _import(
    proto: Any,
    folder: Path | None,
    name: str,
    specialise: dict[str, Any],
    examples: dict[str, Any],
    overridable: Collection[str],
    equal: Mapping[str, IntExpr],
) -> Imported:
    b = ModelBuilder(_identifier(proto.graph.name))
    importer = GraphImporter(b, folder, name, proto)
    scope = Scope({}, _opsets(proto, name))
    defaults = {t.name for t in proto.graph.initializer}
    signature = _Signature(b, name, specialise, examples, equal)
    for info in proto.graph.input:
        if info.name in defaults and info.name not in overridable:
            continue
        scope.names[info.name] = signature.add(info)
    unknown = sorted(set(specialise) - set(signature.names))
    if unknown:
        raise BadSpecialisation(Loc(name), name=unknown[0], reason="the model has no such input")
    importer.inputs = signature.tensors
    importer.demands.extents = signature.extents
    outputs = importer.run_in(proto.graph, scope)
    if not outputs:
        raise MalformedModel(Loc(name), reason="it has no outputs")
    vals: list[Val] = []
    trees = [_out_tree(v, vals, b) for v in outputs]
    program = b.finish(vals)
    return Imported(
        program,
        {"t": "tuple", "c": signature.trees},
        {"t": "tuple", "c": trees},
        tuple(signature.leaves),
        tuple(o.name for o in proto.graph.output),
        {n: np.asarray(v) for n, v in specialise.items()},
    )


def _identifier(name: str) -> str:
    clean = "".join(c if c.isalnum() and c.isascii() or c == "_" else "_" for c in name) or "model"
    return clean if clean[0].isalpha() or clean[0] == "_" else f"m_{clean}"


def _opsets(proto: Any, name: str) -> dict[str, int]:
    versions: dict[str, int] = {}
    local = {canonical_domain(f.domain) for f in proto.functions}
    for entry in proto.opset_import:
        domain = canonical_domain(entry.domain)
        versions[domain] = max(entry.version, versions.get(domain, 0))
    newest = onnx.defs.onnx_opset_version()
    version = versions.get("", 0)
    if version and not 1 <= version <= newest:
        raise UnsupportedOpset(Loc(name), domain="ai.onnx", version=version, reason=f"versions {OLDEST} to {newest} are known")
    for domain in versions:
        if domain not in SUPPORTED_DOMAINS and domain not in local and _used(proto, domain):
            raise UnsupportedOpset(Loc(name), domain=domain, version=versions[domain], reason="that domain is not known here")
    return versions


def _used(proto: Any, domain: str) -> bool:
    return any(canonical_domain(n.domain) == domain for n in proto.graph.node)


class _Signature:
    """The inputs: parameters of the program, symbols for their extents, and how they are nested."""

    def __init__(
        self,
        b: Builder,
        label: str,
        specialise: dict[str, Any],
        examples: dict[str, Any],
        equal: Mapping[str, IntExpr],
    ) -> None:
        self.b, self.label, self.specialise, self.examples, self.equal = b, label, specialise, examples, equal
        self.tensors: dict[str, Tensor] = {}
        self.trees: list[dict[str, Any]] = []
        self.leaves: list[str] = []
        self.names: list[str] = []
        self.symbols: dict[str, str] = {}
        self.extents: dict[str, int] = {}
        self.taken: set[str] = set()

    def add(self, info: Any) -> Value:
        if info.name in self.names:
            raise MalformedModel(Loc(self.label), reason=f"two inputs are called '{info.name}'")
        self.names.append(info.name)
        loc = Loc(f"{self.label}: input '{info.name}'")
        value, tree = self.of_type(info.name, info.type, loc, info.name in self.examples, self.examples.get(info.name))
        if isinstance(value, Tensor):
            self.tensors[info.name] = value
            if info.name in self.specialise:
                value = self.fixed(info.name, value, loc)
        elif info.name in self.specialise:
            raise BadSpecialisation(loc, name=info.name, reason="only tensors can be specialised")
        self.trees.append(tree)
        return value

    def fixed(self, name: str, value: Tensor, loc: Loc) -> Tensor:
        array = np.asarray(self.specialise[name])
        if array.dtype != value.dtype.numpy:
            raise BadSpecialisation(loc, name=name, reason=f"its type is {array.dtype}, {value.dtype} is expected")
        fits = len(value.shape) == array.ndim
        if not fits or any(e.const is not None and e.const != n for e, n in zip(value.shape, array.shape, strict=True)):
            raise BadSpecialisation(loc, name=name, reason=f"its shape is {list(array.shape)}, {list(value.shape)} is expected")
        return Tensor(static=array.copy(), hint=name)

    def of_type(self, name: str, type_: Any, loc: Loc, shown_example: bool, example: Any) -> tuple[Value, dict[str, Any]]:
        kind = type_.WhichOneof("value")
        if kind == "tensor_type":
            return self.tensor(name, type_.tensor_type, loc, example if shown_example else None)
        if kind == "sequence_type":
            if not shown_example or example is None:
                raise NeedsStructure(loc, name=name, what="length", kind="sequence")
            elem = type_.sequence_type.elem_type
            # Elements of a sequence need not agree in extents, so their dim_params name nothing in common.
            free = _without_params(elem)
            parts = [self.of_type(f"{name}_{n}", free, loc, True, e) for n, e in enumerate(example)]
            dtype = element_type(elem.tensor_type.elem_type, loc, "sequence") if elem.HasField("tensor_type") else None
            return Sequence(tuple(v for v, _ in parts), dtype), {"t": "list", "c": [t for _, t in parts]}
        if kind == "optional_type":
            if not shown_example:
                raise NeedsStructure(loc, name=name, what="presence", kind="optional")
            if example is None:
                return Optional(None), {"t": "none"}
            value, tree = self.of_type(name, type_.optional_type.elem_type, loc, True, example)
            return Optional(value), tree
        if kind is None:
            raise MalformedModel(loc, reason=f"input '{name}' has no type")
        raise UnsupportedOperator(loc, op=f"input '{name}'", reason=f"values of kind {kind} have no native form yet")

    def tensor(self, name: str, type_: Any, loc: Loc, example: Any) -> tuple[Tensor, dict[str, Any]]:
        dtype = element_type(type_.elem_type, loc, f"input '{name}'")
        shape = self.shape(name, type_, loc, example)
        val = self.b.input(name, dtype, shape)
        self.leaves.append(name)
        return Tensor(val, deps=frozenset({name})), leaf(len(self.leaves) - 1)

    def shape(self, name: str, type_: Any, loc: Loc, example: Any) -> list[IntLike]:
        if not type_.HasField("shape"):
            if example is None:
                raise NeedsStructure(loc, name=name, what="number of dimensions", kind="tensor without a declared shape")
            return [self.symbol(f"{name}_d{d}", None, n) for d, n in enumerate(np.shape(example))]
        shape: list[IntLike] = []
        for d, dim in enumerate(type_.shape.dim):
            if dim.HasField("dim_value"):
                if dim.dim_value < 0:
                    raise MalformedModel(loc, reason=f"input '{name}' has a negative extent")
                shape.append(dim.dim_value)
            else:
                given = np.shape(example)[d] if example is not None and d < np.ndim(example) else None
                shape.append(self.symbol(f"{name}_d{d}", dim.dim_param or None, given))
        return shape

    def symbol(self, fallback: str, param: str | None, given: int | None) -> IntLike:
        """The symbol for a dim_param (one per name), or a fresh one; `given` is its extent in the example."""
        if param is not None and param in self.symbols:
            name = self.symbols[param]
            return self.equal[name] if name in self.equal else self.b.symbol(name)
        name = _identifier(param or fallback)
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        if param is not None:
            self.symbols[param] = name
        if given is not None:
            self.extents[name] = int(given)
        if name in self.equal:
            return self.alias(self.equal[name], given)
        return self.b.symbol(name)

    def alias(self, expr: IntExpr, given: int | None) -> IntExpr:
        """What a symbol was found to be; symbols that no input declares are declared here."""
        for v in sorted(variables(expr)):
            self.taken.add(v[1:])
            self.b.symbol(v[1:])
            parts = split_linear(expr, v)
            if given is not None and parts is not None and parts[1].const is not None and parts[0].const:
                self.extents.setdefault(v[1:], (int(given) - parts[1].const) // parts[0].const)
        return expr


def _without_params(type_: Any) -> Any:
    free = onnx.TypeProto()
    free.CopyFrom(type_)
    for dim in free.tensor_type.shape.dim if free.HasField("tensor_type") else ():
        if dim.HasField("dim_param"):
            dim.ClearField("dim_param")
    return free


def _out_tree(v: Value, vals: list[Val], b: Builder) -> dict[str, Any]:
    match v:
        case Tensor():
            vals.append(v.val(b))
            return leaf(len(vals) - 1)
        case Sequence(items):
            return {"t": "list", "c": [_out_tree(i, vals, b) for i in items]}
        case Optional(item):
            return {"t": "none"} if item is None else _out_tree(item, vals, b)


def output_types(imported: Imported) -> tuple[DType, ...]:
    """Element types of the tensor outputs."""
    from dlc.ir.program import tensor_types

    types = tensor_types(imported.program)
    return tuple(types[r].dtype for r in imported.program.results)


__all__ = ["Imported", "import_for", "import_model", "output_types", "shown"]
