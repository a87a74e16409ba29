"""Reading ONNX files: protobuf, checker, external data, tensors and attributes as Python values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import MissingPackage
from dlc.frontend.onnx_errors import (
    ExternalData,
    MalformedModel,
    UnreadableModel,
    UnsupportedType,
    WrongAttribute,
    shown,
)
from dlc.frontend.onnx_value import Array
from dlc.ir.codes import as_stored, coded
from dlc.ir.dtype import BF16, BOOL, DTYPES, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlc.ir.loc import Loc
from dlc.ir.packing import packed_bytes, unpack

try:
    import onnx
    from onnx import AttributeProto, TensorProto, numpy_helper
except ImportError as missing:  # pragma: no cover - exercised only without the extra
    raise MissingPackage(what="reading an ONNX model", package="onnx", install="dlc[onnx]") from missing

CODED_NAMES = {
    "UINT2": "u2",
    "INT2": "i2",
    "UINT4": "u4",
    "INT4": "i4",
    "FLOAT4E2M1": "f4e2m1",
    "FLOAT6E2M3": "f6e2m3",
    "FLOAT6E3M2": "f6e3m2",
    "FLOAT8E4M3FN": "f8e4m3",
    "FLOAT8E4M3FNUZ": "f8e4m3fnuz",
    "FLOAT8E5M2": "f8e5m2",
    "FLOAT8E5M2FNUZ": "f8e5m2fnuz",
    "FLOAT8E8M0": "f8e8m0",
}
"""ONNX's small types by dlc's names; older versions of onnx lack some."""
ELEMENT_TYPES: dict[int, DType] = {
    TensorProto.FLOAT: F32,
    TensorProto.DOUBLE: F64,
    TensorProto.FLOAT16: F16,
    TensorProto.BFLOAT16: BF16,
    TensorProto.INT64: I64,
    TensorProto.INT32: I32,
    TensorProto.INT16: I16,
    TensorProto.INT8: I8,
    TensorProto.UINT64: U64,
    TensorProto.UINT32: U32,
    TensorProto.UINT16: U16,
    TensorProto.UINT8: U8,
    TensorProto.BOOL: BOOL,
    **{
        TensorProto.DataType.Value(n): DTYPES[t]
        for n, t in CODED_NAMES.items()
        if n in TensorProto.DataType.keys()  # noqa: SIM118
    },
}
ONNX_TYPES: dict[DType, int] = {t: n for n, t in ELEMENT_TYPES.items()}
MAX_TENSOR_BYTES = 1 << 40


def element_type(number: int, loc: object, op: str) -> DType:
    """The IR's type of an ONNX element type; strings and complex numbers are refused."""
    found = ELEMENT_TYPES.get(number)
    if found is None:
        raise UnsupportedType(loc, op=op, reason=f"element type {type_name(number)} has no native form yet")
    return found


def type_name(number: int) -> str:
    try:
        return str(TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"number {number}"


def load_model(source: Any) -> tuple[Any, Path | None, str]:
    """`(ModelProto, folder of its file or None, name for messages)` of a path, bytes or ModelProto."""
    if isinstance(source, onnx.ModelProto):
        _check_text(source, "model")
        return source, None, source.graph.name or "model"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(bytes(source), "model"), None, "model"
    if not isinstance(source, (str, os.PathLike)):
        raise UnreadableModel(None, reason=f"a path, bytes or ModelProto is expected, not {type(source).__name__}")
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UnreadableModel(Loc(str(path)), reason=e.strerror or type(e).__name__) from None
    return _parse(data, str(path)), path.resolve().parent, path.name


def _parse(data: bytes, name: str) -> Any:
    try:
        model = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf has several, none of them public
        raise UnreadableModel(Loc(name), reason=shown(e) or type(e).__name__) from None
    if not model.HasField("graph"):
        raise UnreadableModel(Loc(name), reason="it holds no graph")
    _check_text(model, name)
    return model


def _check_text(message: Any, name: str) -> None:
    """Refuse names that are no UTF-8 text: protobuf hands them out as bytes."""
    for field, value in message.ListFields():
        if field.message_type is None:
            if field.type != field.TYPE_STRING:
                continue
            if any(not isinstance(v, str) for v in ((value,) if isinstance(value, (str, bytes)) else value)):
                raise UnreadableModel(Loc(name), reason=f"a {field.name} in it is not UTF-8 text")
        elif field.message_type.name != "TensorProto":
            for item in [value] if hasattr(value, "ListFields") else value:
                _check_text(item, name)
        else:
            for tensor in [value] if hasattr(value, "ListFields") else value:
                if not isinstance(tensor.name, str):
                    raise UnreadableModel(Loc(name), reason="the name of a tensor in it is not UTF-8 text")


def check_model(model: Any, name: str) -> None:
    """Run ONNX's own checker; models whose data lie outside the file are checked without their data."""
    try:
        slim = _without_data(model)
        onnx.checker.check_model(slim, skip_opset_compatibility_check=True)
    except onnx.checker.ValidationError as e:
        raise MalformedModel(Loc(name), reason=shown(_first_line(str(e)), 400)) from None
    except (ValueError, MemoryError) as e:  # too large to serialise: the importer's own checks remain
        if "2" not in str(e):
            raise MalformedModel(Loc(name), reason=shown(e, 400)) from None
    except UnicodeDecodeError as e:
        raise MalformedModel(Loc(name), reason=shown(e, 400)) from None


def _without_data(model: Any) -> Any:
    """A copy whose large and external tensors are empty: what the checker looks at, cheaply."""
    slim = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            for inner, part in value.ListFields():
                if inner.name != "initializer":
                    _copy_field(slim.graph, inner, part)
        else:
            _copy_field(slim, field, value)
    for tensor in model.graph.initializer:
        stub = slim.graph.initializer.add()
        if len(tensor.raw_data) > 4096:
            stub.name, stub.data_type = tensor.name, tensor.data_type
            stub.dims.append(0)
        else:
            stub.CopyFrom(tensor)
    for tensor in _all_tensors(slim):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.ClearField("dims")
            tensor.dims.append(0)
    return slim


def _copy_field(into: Any, field: Any, value: Any) -> None:
    target = getattr(into, field.name)
    if hasattr(target, "MergeFrom"):
        target.MergeFrom(value)
    else:
        setattr(into, field.name, value)


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==>")]
    return lines[0] if lines else text


def _all_tensors(model: Any) -> list[Any]:
    found: list[Any] = []

    def of_graph(graph: Any) -> None:
        found.extend(graph.initializer)
        for node in graph.node:
            of_node(node)

    def of_node(node: Any) -> None:
        for a in node.attribute:
            if a.HasField("t"):
                found.append(a.t)
            found.extend(a.tensors)
            if a.HasField("g"):
                of_graph(a.g)
            for g in a.graphs:
                of_graph(g)

    of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            of_node(node)
    return found


def tensor_array(tensor: Any, folder: Path | None, loc: object) -> Array:
    """A TensorProto as a NumPy array."""
    dtype = element_type(tensor.data_type, loc, f"tensor '{tensor.name}'")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_array(tensor, dtype, folder, loc)
    if any(d < 0 for d in tensor.dims):
        raise MalformedModel(loc, reason=f"tensor '{tensor.name}' has a negative extent")
    try:
        return as_stored(numpy_helper.to_array(tensor))
    except Exception as e:
        raise MalformedModel(loc, reason=f"tensor '{tensor.name}': {shown(e)}") from None


def _external_array(tensor: Any, dtype: DType, folder: Path | None, loc: object) -> Array:
    def refuse(reason: str) -> ExternalData:
        return ExternalData(loc, tensor=tensor.name, reason=reason)

    fields = {e.key: e.value for e in tensor.external_data}
    location = fields.get("location", "")
    path = external_path(location, folder, refuse)
    count = 1
    for d in tensor.dims:
        if d < 0:
            raise refuse("it has a negative extent")
        count *= d
    needed = packed_bytes(count, dtype) if dtype.is_coded else count * dtype.bytes
    try:
        offset, length = int(fields.get("offset", "0")), int(fields.get("length", str(needed)))
    except ValueError:
        raise refuse("offset and length must be integers") from None
    if offset < 0 or length != needed or needed > MAX_TENSOR_BYTES:
        raise refuse(f"{length} bytes at offset {offset} are stated where its type and shape need {needed}")
    try:
        size = path.stat().st_size
        if offset + needed > size:
            raise refuse(f"'{location}' has {size} bytes, {offset + needed} are needed")
        if needed == 0:
            return np.zeros(tuple(tensor.dims), dtype.numpy)
        if dtype.is_coded:
            stream = np.memmap(path, np.uint8, "r", offset, (needed,))
            return coded(unpack(stream, dtype, count), dtype).reshape(tuple(tensor.dims))
        return np.memmap(path, dtype.numpy, "r", offset, tuple(tensor.dims) or (1,)).reshape(tuple(tensor.dims))
    except OSError as e:
        raise refuse(f"'{location}': {e.strerror or type(e).__name__}") from None


def external_path(location: str, folder: Path | None, refuse: Any) -> Path:
    """The data file named `location`, proven to lie in or below `folder`."""
    if folder is None:
        raise refuse("the model was not given as a file, so its folder is unknown")
    if not location or "\0" in location:
        raise refuse("it names no file")
    pure = Path(location)
    if pure.is_absolute() or location.startswith(("/", "\\")) or (len(location) > 1 and location[1] == ":"):
        raise refuse(f"'{shown(location)}' is an absolute path")
    if ".." in location.replace("\\", "/").split("/"):
        raise refuse(f"'{shown(location)}' leads outside the model's folder")
    try:
        root = folder.resolve()
        resolved = (root / pure).resolve()
    except (OSError, RuntimeError):
        raise refuse(f"'{shown(location)}' cannot be resolved") from None
    if not resolved.is_relative_to(root):
        raise refuse(f"'{shown(location)}' is a link that leads outside the model's folder")
    if not resolved.is_file():
        raise refuse(f"'{shown(location)}' does not exist" if not resolved.exists() else f"'{shown(location)}' is not a file")
    return resolved


_PLAIN = {
    AttributeProto.FLOAT: lambda a: float(a.f),
    AttributeProto.INT: lambda a: int(a.i),
    AttributeProto.FLOATS: lambda a: tuple(float(x) for x in a.floats),
    AttributeProto.INTS: lambda a: tuple(int(x) for x in a.ints),
    AttributeProto.TENSOR: lambda a: a.t,
    AttributeProto.GRAPH: lambda a: a.g,
    AttributeProto.GRAPHS: lambda a: tuple(a.graphs),
    AttributeProto.TENSORS: lambda a: tuple(a.tensors),
    AttributeProto.TYPE_PROTO: lambda a: a.tp,
}


def attribute_value(a: Any, loc: object, op: str) -> Any:
    """The Python value of an attribute: int, float, str, tuples of them, or the proto it holds."""
    if a.type == AttributeProto.STRING:
        return _text(a.s, a.name, loc, op)
    if a.type == AttributeProto.STRINGS:
        return tuple(_text(s, a.name, loc, op) for s in a.strings)
    read = _PLAIN.get(a.type)
    if read is None:
        raise WrongAttribute(loc, attribute=a.name, op=op, reason=f"its type (number {a.type}) is not supported")
    return read(a)  # type: ignore[no-untyped-call]


def _text(data: bytes, name: str, loc: object, op: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise WrongAttribute(loc, attribute=name, op=op, reason="it is not UTF-8 text") from None
