"""The manifest: what compiled code needs to be called, as JSON; its schema, in one place.

`check_manifest` turns the JSON into the typed `Manifest` and refuses, field by field, whatever could make the
runtime read or write where it should not.  The code generator writes the same fields as a plain dict:

    format      1                              abi        1 (the frame layout; native side: word 0)
    producer    "dlc 0.1.0"                    clock      "tsc" | "ns", unit of the profile words
    target      {"isa": "x86-64", "features": [...]}      what the CPU must have
    entry       {"object": name, "symbol": name}          i64 entry(ptr frame)
    pool        name of the object with parallel_for, or null
    symbols     [{name, lo, hi|null, divisor, inputs: [[input, dim], ...], dynamic}]
    inputs      [{name, dtype, shape: [expr], donate}]
    outputs     [{name, dtype, shape: [expr], dynamic, alias: null | ["input"|"output"|"constant", n]}]
    buffers     [{name, bytes: expr, first, last, offset}] arena, live from statement first to last; offset: the plan's
    dynamic     [{name}]                                   slots of memory that native code allocates
    spill_bytes                                            of a mapped file, for what leaves the arena during a call
    memory_budget    null | bytes that the arena never exceeds
    scratch     expr, bytes per thread                     constants  {"bytes": n, "items": [{name, offset, bytes}]}
    kernels     [{name, symbol, object, flops: expr, bytes: expr, loc}]   one per call, in profile order
    regions     [{kind, loc, items}]                       the control graph, see `control.py`; may be missing
    objects     [{name, offset, bytes, sha256}]            offsets from the start of the data sections
    checks      [{code, message, loc}]                     what error word 1 + i means
    in_tree, out_tree, arg_names                           see `tree.py`
    frame       {inputs, outputs, symbols, buffers, dynamic, size}        first word of each group

Keys that start with "x-" are kept and ignored; any other unknown key is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from dlc.errors import DlcError
from dlc.runtime.control import Region, check_regions
from dlc.runtime.dtypes import ELEMENT_TYPES, ElementType
from dlc.runtime.errors import BadManifest, WrongVersion
from dlc.runtime.expr import I64_MAX, I64_MIN, RESERVED, names_in, parse_expression
from dlc.runtime.tree import Node, check_tree, flat_args, flat_result

FORMAT: Final = 1
ABI: Final = 1
FRAME_HEADER_WORDS: Final = 16
MAX_LIST: Final = 1 << 20
MAX_NAME: Final = 4096
MAX_RANK: Final = 64  # NumPy's own limit
MAX_FRAME_WORDS: Final = 1 << 22
MAX_BYTES: Final = 1 << 46

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named extent: bounds, a divisor, and the input dimensions that carry it."""

    name: str
    lo: int
    hi: int
    divisor: int
    inputs: tuple[tuple[int, int], ...]
    dynamic: bool


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or an output; `shape` holds checked expression texts."""

    name: str
    element: ElementType
    shape: tuple[str, ...]
    donate: bool = False
    dynamic: bool = False
    alias: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Buffer:
    """One arena buffer; `offset` is where the compiler would have it, for the extents that it planned for."""

    name: str
    bytes: str
    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel call; its cost is for the profile."""

    name: str
    symbol: str
    object: str
    flops: str
    bytes: str
    loc: str


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """Where an object lies in the file, from the start of the data sections."""

    name: str
    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Check:
    """What an error word means."""

    code: str
    message: str
    loc: str


@dataclass(frozen=True, slots=True)
class Frame:
    """First word of each group of the native frame, and its length in words."""

    inputs: int
    outputs: int
    symbols: int
    buffers: int
    dynamic: int
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest."""

    producer: str
    isa: str
    features: tuple[str, ...]
    entry_object: str
    entry_symbol: str
    pool: str | None
    symbols: tuple[Symbol, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buffers: tuple[Buffer, ...]
    dynamic: tuple[str, ...]
    spill_bytes: int
    memory_budget: int | None
    scratch: str
    constants_bytes: int
    kernels: tuple[Kernel, ...]
    regions: tuple[Region, ...]
    objects: tuple[ObjectEntry, ...]
    checks: tuple[Check, ...]
    in_tree: Node
    out_tree: Node
    arg_names: tuple[str, ...]
    frame: Frame
    clock: str

    @property
    def symbol_names(self) -> tuple[str, ...]:
        """All symbols, in frame order."""
        return tuple(symbol.name for symbol in self.symbols)


class _Fields:
    """Reads one JSON object, naming the path of whatever is wrong."""

    def __init__(self, value: object, path: str, known: frozenset[str]) -> None:
        if not isinstance(value, Mapping):
            raise BadManifest(field=path or "(top)", reason="it is no JSON object")
        self.value = value
        self.path = path
        for key in value:
            if not isinstance(key, str) or (key not in known and not key.startswith("x-")):
                have = ", ".join(sorted(known))
                raise BadManifest(field=self.at(str(key)[:80]), reason=f"it is unknown (known: {have})")

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def bad(self, key: str, reason: str) -> BadManifest:
        return BadManifest(field=self.at(key), reason=reason)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, f"expected an integer from {low} to {high}, found {_show(value)}")
        return value

    def text(self, key: str, default: str | None = None, *, empty: bool = True) -> str:
        value = self.value.get(key, default)
        if not isinstance(value, str) or len(value) > MAX_NAME or (not empty and not value):
            raise self.bad(key, f"expected a text, found {_show(value)}")
        return value

    def flag(self, key: str) -> bool:
        value = self.value.get(key, False)
        if not isinstance(value, bool):
            raise self.bad(key, f"expected true or false, found {_show(value)}")
        return value

    def items(self, key: str, read: Callable[[object, str], T], *, required: bool = False) -> tuple[T, ...]:
        value = self.value.get(key, None if required else ())
        if not isinstance(value, (list, tuple)) or len(value) > MAX_LIST:
            raise self.bad(key, f"expected a list, found {_show(value)}")
        return tuple(read(item, f"{self.at(key)}[{number}]") for number, item in enumerate(value))

    def expression(self, key: str, names: frozenset[str], default: str | None = None) -> str:
        return _expression(self.value.get(key, default), names, self.at(key))


def check_manifest(value: object) -> Manifest:
    """The typed manifest of the JSON `value`.

    Raises:
        BadManifest: a field is missing or makes no sense; the message names it.
        WrongVersion: another format or ABI.
    """
    top = _Fields(value, "", _TOP)
    for key, known in (("format", FORMAT), ("abi", ABI)):
        found = top.value.get(key)
        if found != known or isinstance(found, bool):
            raise WrongVersion(what=key, found=_show(found), known=known)
    target = _Fields(top.value.get("target", {}), "target", frozenset({"isa", "features", "cpu"}))
    if target.text("isa", "x86-64") not in ("x86-64", "x86_64"):
        raise target.bad("isa", f"expected x86-64, found {_show(target.value.get('isa'))}")
    entry = _Fields(top.value.get("entry"), "entry", frozenset({"object", "symbol"}))
    symbols = top.items("symbols", _symbol)
    names = frozenset(symbol.name for symbol in symbols)
    static = frozenset(symbol.name for symbol in symbols if not symbol.dynamic)
    _unique(top, "symbols", [symbol.name for symbol in symbols])
    inputs = top.items("inputs", lambda item, path: _tensor(item, path, static, "input"), required=True)
    outputs = top.items("outputs", lambda item, path: _tensor(item, path, names, "output"), required=True)
    constants = _Fields(top.value.get("constants", {"bytes": 0}), "constants", frozenset({"bytes", "items"}))
    constants_bytes = constants.integer("bytes", 0, MAX_BYTES)
    constants.items("items", lambda item, path: _constant(item, path, constants_bytes))
    for index, symbol in enumerate(symbols):
        _check_sources(symbol, index, inputs, names)
    for index, output in enumerate(outputs):
        _check_output(index, output, inputs, outputs, constants_bytes, static)
    objects = top.items("objects", _object)
    _unique(top, "objects", [item.name for item in objects])
    frame = _frame(top.value.get("frame"))
    pool = top.value.get("pool")
    if pool is not None and (not isinstance(pool, str) or not pool):
        raise top.bad("pool", f"expected an object's name or null, found {_show(pool)}")
    clock = top.text("clock", "tsc")
    if clock not in ("tsc", "ns"):
        raise top.bad("clock", f"expected 'tsc' or 'ns', found {_show(clock)}")
    manifest = Manifest(
        producer=top.text("producer", ""),
        isa="x86-64",
        features=target.items("features", _name),
        entry_object=entry.text("object", empty=False),
        entry_symbol=entry.text("symbol", "dlc_main", empty=False),
        pool=pool,
        symbols=symbols,
        inputs=inputs,
        outputs=outputs,
        buffers=top.items("buffers", lambda item, path: _buffer(item, path, static)),
        dynamic=top.items("dynamic", lambda item, path: _Fields(item, path, _NAMED).text("name")),
        spill_bytes=top.integer("spill_bytes", 0, MAX_BYTES, 0),
        memory_budget=None if top.value.get("memory_budget") is None else top.integer("memory_budget", 0, MAX_BYTES),
        scratch=top.expression("scratch", static, "0"),
        constants_bytes=constants_bytes,
        kernels=top.items("kernels", lambda item, path: _kernel(item, path, names)),
        regions=top.items("regions", _region),
        objects=objects,
        checks=top.items("checks", _check),
        in_tree=_tree(top.value.get("in_tree"), "in_tree", len(inputs)),
        out_tree=_tree(top.value.get("out_tree"), "out_tree", len(outputs)),
        arg_names=top.items("arg_names", _name),
        frame=frame,
        clock=clock,
    )
    _check_frame(manifest)
    check_regions(manifest.regions, len(manifest.kernels))
    if objects:
        check_object_names(manifest, frozenset(item.name for item in objects))
    return manifest


def check_object_names(manifest: Manifest, have: frozenset[str]) -> None:
    """Every object that the manifest refers to exists."""
    wanted = [("entry.object", manifest.entry_object)]
    if manifest.pool is not None:
        wanted.append(("pool", manifest.pool))
    wanted += [(f"kernels[{i}].object", kernel.object) for i, kernel in enumerate(manifest.kernels) if kernel.object]
    for field, name in wanted:
        if name not in have:
            raise BadManifest(field=field, reason=f"there is no object '{name}' (have: {', '.join(sorted(have)[:8])})")


_TOP: Final = frozenset(
    "format abi producer target entry pool symbols inputs outputs buffers dynamic spill_bytes memory_budget scratch constants kernels "
    "regions objects checks in_tree out_tree arg_names frame clock".split()
)
_NAMED: Final = frozenset({"name"})
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}\Z")
_HEX64: Final = re.compile(r"[0-9a-f]{64}\Z")
_CODE: Final = re.compile(r"DLC\d{4}\Z")


def _show(value: object) -> str:
    if isinstance(value, int) and not -(2**200) < value < 2**200:
        return "a huge integer"  # printing one takes quadratic time, and Python refuses above 4300 digits
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expression(value: object, names: frozenset[str], path: str) -> str:
    try:
        parse_expression(value, names)
    except DlcError as error:
        raise BadManifest(field=path, reason=error.message) from None
    return str(value)


def _name(value: object, path: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise BadManifest(field=path, reason=f"expected a text, found {_show(value)}")
    return value


def _unique(top: _Fields, key: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise top.bad(key, "two of them have the same name")


def _symbol(value: object, path: str) -> Symbol:
    item = _Fields(value, path, frozenset({"name", "lo", "hi", "divisor", "inputs", "dynamic"}))
    name = item.text("name")
    if not _IDENTIFIER.match(name) or name in RESERVED:
        raise item.bad("name", f"expected an identifier, found {_show(name)}")
    dynamic = item.flag("dynamic")
    lo = item.integer("lo", I64_MIN, I64_MAX, 0)
    hi = I64_MAX if item.value.get("hi") is None else item.integer("hi", I64_MIN, I64_MAX)
    if hi < lo:
        raise item.bad("hi", f"it is below lo, {lo}")
    divisor = item.integer("divisor", 1, I64_MAX, 1)

    def source(pair: object, at: str) -> tuple[int, int]:
        match pair:
            case [int() as index, int() as dim] if not isinstance(index, bool) and not isinstance(dim, bool):
                return index, dim
        raise BadManifest(field=at, reason=f"expected [input, dimension], found {_show(pair)}")

    return Symbol(name, lo, hi, divisor, item.items("inputs", source), dynamic)


def _tensor(value: object, path: str, names: frozenset[str], kind: str) -> TensorSpec:
    known = {"name", "dtype", "shape"} | ({"donate"} if kind == "input" else {"dynamic", "alias"})
    item = _Fields(value, path, frozenset(known))
    dtype = item.text("dtype")
    element = ELEMENT_TYPES.get(dtype)
    if element is None:
        raise item.bad("dtype", f"unknown element type {_show(dtype)} (known: {', '.join(ELEMENT_TYPES)})")
    shape = item.items("shape", lambda dim, at: _expression(dim, names, at), required=True)
    if len(shape) > MAX_RANK:
        raise item.bad("shape", f"more than {MAX_RANK} dimensions")
    if kind == "input":
        return TensorSpec(item.text("name"), element, shape, donate=item.flag("donate"))
    alias: tuple[str, int] | None = None
    match item.value.get("alias"):
        case None:
            pass
        case [("input" | "output" | "constant") as what, int() as number] if not isinstance(number, bool):
            alias = (what, number)
        case other:
            raise item.bad("alias", f"expected null or ['input' | 'output' | 'constant', number], found {_show(other)}")
    return TensorSpec(item.text("name"), element, shape, dynamic=item.flag("dynamic"), alias=alias)


def _check_sources(symbol: Symbol, index: int, inputs: tuple[TensorSpec, ...], names: frozenset[str]) -> None:
    path = f"symbols[{index}].inputs"
    if symbol.dynamic:
        if symbol.inputs:
            raise BadManifest(field=path, reason="a dynamic symbol is found by native code, not in an input")
        return
    for number, dim in symbol.inputs:
        if not 0 <= number < len(inputs):
            raise BadManifest(field=path, reason=f"there is no input {_show(number)}")
        tensor = inputs[number]
        if dim == -1:
            if tensor.shape or tensor.element.numpy.kind not in "iu":
                raise BadManifest(field=path, reason=f"input '{tensor.name}' is no integer of rank 0")
        elif not 0 <= dim < len(tensor.shape):
            raise BadManifest(field=path, reason=f"input '{tensor.name}' has no dimension {_show(dim)}")
        elif symbol.name not in names_in(tensor.shape[dim], names):
            raise BadManifest(field=path, reason=f"'{symbol.name}' is not in '{tensor.shape[dim]}'")


def _check_output(
    index: int,
    output: TensorSpec,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    constants_bytes: int,
    static: frozenset[str],
) -> None:
    path = f"outputs[{index}]"
    if not output.dynamic:
        for dim in output.shape:
            # parsed before against all symbols; only an output whose extents native code returns may use dynamic ones
            _expression(dim, static, f"{path}.shape")
    match output.alias:
        case None:
            return
        case _ if output.dynamic:
            raise BadManifest(field=f"{path}.alias", reason="a dynamic output cannot be an alias")
        case ("input", number):
            if not 0 <= number < len(inputs):
                raise BadManifest(field=f"{path}.alias", reason=f"there is no input {_show(number)}")
            if inputs[number].element.bytes != output.element.bytes:
                raise BadManifest(field=f"{path}.alias", reason="the input's elements have another size")
        case ("output", number):
            if not 0 <= number < len(outputs) or outputs[number].alias is not None or outputs[number].dynamic:
                raise BadManifest(field=f"{path}.alias", reason=f"output {_show(number)} is missing or an alias itself")
            if outputs[number].element.bytes != output.element.bytes:
                raise BadManifest(field=f"{path}.alias", reason="the other output's elements have another size")
        case ("constant", offset):
            try:
                size = math.prod(int(dim) for dim in output.shape) * output.element.bytes
            except ValueError:
                raise BadManifest(field=f"{path}.alias", reason="a constant's shape has no symbols") from None
            if size < 0 or not 0 <= offset <= constants_bytes - size:
                raise BadManifest(field=f"{path}.alias", reason="it lies outside the constants")


def _buffer(value: object, path: str, names: frozenset[str]) -> Buffer:
    item = _Fields(value, path, frozenset({"name", "bytes", "first", "last", "offset"}))
    first = item.integer("first", 0, I64_MAX)
    last = item.integer("last", first, I64_MAX)
    offset = item.integer("offset", 0, MAX_BYTES, 0)
    return Buffer(item.text("name"), item.expression("bytes", names), first, last, offset)


def _constant(value: object, path: str, total: int) -> None:
    item = _Fields(value, path, frozenset({"name", "offset", "bytes"}))
    item.text("name")
    offset = item.integer("offset", 0, total)
    item.integer("bytes", 0, total - offset)


def _kernel(value: object, path: str, names: frozenset[str]) -> Kernel:
    item = _Fields(value, path, frozenset({"name", "symbol", "object", "flops", "bytes", "loc"}))
    flops, moved = (item.expression(key, names, "0") for key in ("flops", "bytes"))
    symbol, code, loc = (item.text(key, "") for key in ("symbol", "object", "loc"))
    return Kernel(item.text("name"), symbol, code, flops, moved, loc)


def _object(value: object, path: str) -> ObjectEntry:
    item = _Fields(value, path, frozenset({"name", "offset", "bytes", "sha256"}))
    digest = item.text("sha256")
    if not _HEX64.match(digest):
        raise item.bad("sha256", "expected 64 hexadecimal digits")
    name = item.text("name", empty=False)
    return ObjectEntry(name, item.integer("offset", 0, MAX_BYTES), item.integer("bytes", 0, MAX_BYTES), digest)


def _check(value: object, path: str) -> Check:
    item = _Fields(value, path, frozenset({"code", "message", "loc"}))
    code = item.text("code", "DLC0540")
    if not _CODE.match(code):
        raise item.bad("code", f"expected DLC and four digits, found {_show(code)}")
    return Check(code, item.text("message"), item.text("loc", ""))


def _region(value: object, path: str) -> Region:
    item = _Fields(value, path, frozenset({"kind", "loc", "items"}))
    return Region(item.text("kind"), item.text("loc", ""), item.items("items", _region_item))


def _region_item(value: object, path: str) -> tuple[Any, ...]:
    """`[what, number, ...]`; which of them are allowed is looked at when all regions are known."""
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 3 or not isinstance(value[0], str):
        raise BadManifest(field=path, reason=f"expected a list of a text and numbers, found {_show(value)}")
    for number in value[1:]:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_LIST:
            raise BadManifest(field=path, reason=f"expected a number, found {_show(number)}")
    return tuple(value)


def _frame(value: object) -> Frame:
    item = _Fields(value, "frame", frozenset({"inputs", "outputs", "symbols", "buffers", "dynamic", "size"}))
    size = item.integer("size", FRAME_HEADER_WORDS, MAX_FRAME_WORDS)
    first = {
        key: item.integer(key, FRAME_HEADER_WORDS, size)
        for key in ("inputs", "outputs", "symbols", "buffers", "dynamic")
    }
    return Frame(**first, size=size)


def _check_frame(manifest: Manifest) -> None:
    frame = manifest.frame
    groups = sorted(
        (start, length, name)
        for name, start, length in (
            ("inputs", frame.inputs, len(manifest.inputs)),
            ("outputs", frame.outputs, len(manifest.outputs)),
            ("symbols", frame.symbols, len(manifest.symbols)),
            ("buffers", frame.buffers, len(manifest.buffers)),
            ("dynamic", frame.dynamic, len(manifest.dynamic)),
        )
        if length
    )
    end, before = FRAME_HEADER_WORDS, "the header"
    for start, length, name in groups:
        if start < end:
            raise BadManifest(field=f"frame.{name}", reason=f"its words overlap those of {before}")
        end, before = start + length, name
    if end > frame.size:
        raise BadManifest(field="frame.size", reason=f"{before} ends at word {end}, beyond {frame.size}")


def _tree(value: object, path: str, count: int) -> Node:
    if value is None:
        return flat_args(count) if path == "in_tree" else flat_result(count)
    return check_tree(value, path, count, is_input=path == "in_tree")
