"""What of a model dlc does not support, found before compiling.

Importing stops at its first refusal, so all operators are looked up in the tables first; a refusal that depends on
attributes or types comes from the import itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from dlc.errors import Unsupported
from dlc.importing import import_any
from dlc.models import Model


def unsupported(model: Model) -> list[dict[str, Any]]:
    """One row per operator and reason, most frequent first: {op, count, reason, where}."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    scan = {"onnx": _onnx_operators, "torch": _torch_operators, "exported": _torch_operators}.get(model.kind)
    model = _exported(model)
    for op, reason, where in scan(model) if scan is not None else ():
        row = found.setdefault((op, reason), {"op": op, "count": 0, "reason": reason, "where": where})
        row["count"] += 1
    try:
        import_any(model.source, model.inputs, None, model.dynamic_shapes, None)
    except Unsupported as error:
        op, reason = str(error.fields.get("op", error.code)), str(error.fields.get("reason", error.message))
        if not any(row["op"] in (op, op.removeprefix("aten.")) for row in found.values()):
            found[op, reason] = {"op": op, "count": 1, "reason": reason, "where": str(error.loc or "")}
    else:
        return []  # whatever had no definition of its own was decomposed into what has
    return sorted(found.values(), key=lambda row: -row["count"])


def operators(model: Model) -> Counter[str]:
    """How often each operator occurs in a model."""
    if model.kind == "onnx":
        return Counter(node.op_type for node, _ in _onnx_nodes(_proto(model).graph))
    return Counter(str(node.target) for node in _torch_nodes(_exported(model)))


def _exported(model: Model) -> Model:
    """A Python model as its export, so that it is traced once."""
    if model.kind != "torch" or model.inputs is None:
        return model
    import torch

    program = torch.export.export(model.source, model.inputs, dynamic_shapes=model.dynamic_shapes, strict=False)
    return Model(model.spec, "exported", program)


def _proto(model: Model) -> Any:
    import onnx

    return onnx.load(str(model.source), load_external_data=False)


def _onnx_operators(model: Model) -> Iterator[tuple[str, str, str]]:
    import onnx

    from dlc.frontend import onnx_import  # noqa: F401  fills the table
    from dlc.frontend.onnx_ops.registry import OPERATORS, REFUSED

    try:
        proto = _proto(model)
    except Exception:
        return  # the import says what is wrong with the file
    own = {(_domain(f.domain), f.name) for f in proto.functions}
    graphs = [proto.graph, *proto.functions]
    for node, where in (pair for graph in graphs for pair in _onnx_nodes(graph)):
        key = (_domain(node.domain), node.op_type)
        if key in REFUSED:
            yield node.op_type, REFUSED[key], where
        elif key not in OPERATORS and key not in own:
            try:
                schema = onnx.defs.get_schema(node.op_type, domain=key[0])
            except onnx.defs.SchemaError:
                yield node.op_type, f"no operator of that name is known in domain '{key[0] or 'ai.onnx'}'", where
                continue
            if not (schema.has_function or schema.has_context_dependent_function):
                yield node.op_type, "it has no definition here", where


def _onnx_nodes(graph: Any) -> Iterator[tuple[Any, str]]:
    """Nodes of a graph and of the graphs in their attributes, with a name for people."""
    for number, node in enumerate(graph.node):
        yield node, node.name or f"{graph.name}, node {number}"
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from _onnx_nodes(inner)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _torch_operators(model: Model) -> Iterator[tuple[str, str, str]]:
    if model.kind != "exported":
        return
    from dlc.frontend.torch_export import coverage

    for row in coverage(model.source):
        if not row["decomposed"]:
            for _ in range(row["count"]):
                yield row["op"], "it has no definition here, and no decomposition", row["loc"]


def _torch_nodes(model: Model) -> Iterator[Any]:
    if model.kind == "exported":
        yield from (node for node in model.source.graph.nodes if node.op == "call_function")
