"""A spatial target as data: the architecture, what operations cost on it, and the mapping of a cascade to it.

Targets are JSON files (`targets/`, or the user's own); `base` takes what is not said from another. docs/spatial-model.md
describes every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from dlc.costmodel.spatial.errors import BadTarget, UnknownTarget

LOOPS = ("batch", "parallel2", "stream1", "parallel1")
ROLES = ("stream", "parallel")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Memory:
    """Energy of reading and of writing one row of `row_words` values; `bytes` is the capacity, where one counts."""

    read_pj: float
    write_pj: float
    row_words: int = 1
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Cycles and energy of one operation on one element of an array."""

    cycles: float
    pj: float


@dataclass(frozen=True, slots=True)
class Array:
    """Processing elements in one or two dimensions, each with a register file."""

    shape: tuple[int, ...]
    file: Memory
    operations: Mapping[str, Cost]

    @property
    def size(self) -> int:
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True, slots=True)
class Selector:
    """A property of operations; what is None does not matter.

    Attributes:
        array: bound to this array.
        stream, parallel, inner: iterates a rank of that role.
        folds_stream: folds the streamed rank.
        outside: is not in the stream's loop.
        feeds: its result is read by an operation on that array in the same step.
        crossings_min, crossings_max: how often the longest path to it changes the array within a step.
    """

    array: str | None = None
    stream: bool | None = None
    parallel: bool | None = None
    inner: bool | None = None
    folds_stream: bool | None = None
    outside: bool | None = None
    feeds: str | None = None
    crossings_min: int | None = None
    crossings_max: int | None = None


@dataclass(frozen=True, slots=True)
class Nest:
    """Loops around an operation of an array, outermost first.

    Attributes:
        above: loops outside a tile of the buffer.
        below: loops inside the tile, outside the array.
        space: roles laid over the array's dimensions. All other ranks are walked inside an element.
    """

    above: tuple[str, ...]
    below: tuple[str, ...]
    space: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the schedule in which the arrays work side by side; it takes as long as the slower one.

    Attributes:
        takes: operations with one of these properties, of those that no earlier stage took.
        fill: whether each tile also waits until the 2-D array is filled, a cycle per row.
    """

    takes: tuple[Selector, ...]
    fill: bool = False


@dataclass(frozen=True, slots=True)
class SpatialMapping:
    """How a cascade is laid out in space and time.

    Attributes:
        passes: the most passes over the streamed rank that it covers; None is any number.
        phases: `one`, everything fused; `arrays`, each run of operations on one array by itself, through memory.
        bind: the array of the first selector that holds.
        nests: per array.
        accumulate: operations whose partial sums stay and are added to in every step of the stream.
        stages: of each phase.
    """

    passes: int | None
    phases: str
    bind: tuple[tuple[Selector, str], ...]
    nests: Mapping[str, Nest]
    accumulate: tuple[Selector, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What the figures published for a target got wrong; only a request for them as published repeats it.

    Attributes:
        one_element_files: register files are counted for one element of an array, not for all.
        wrapping_elision: reads of partial sums that are not there yet are left out by a count that wraps at 2^64.
        free_operations: operations whose energy was not counted.
    """

    one_element_files: bool = False
    wrapping_elision: bool = False
    free_operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A target; units are in the names.

    Attributes:
        stage: the 1-D array's files as a level between buffer and 2-D array; None where that costs nothing.
        dram: `row_words` is in values, as everywhere.
    """

    name: str
    source: str
    clock_hz: float
    value_bytes: int
    arrays: Mapping[str, Array]
    stage: Memory | None
    buffer: Memory
    dram: Memory
    dram_bytes_per_s: float
    mapping: SpatialMapping
    published: Published = field(default_factory=Published)


def known_targets() -> tuple[str, ...]:
    """Names of the targets that come with dlc."""
    folder = resources.files("dlc.costmodel.spatial.targets")
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json")))


def load_target(name: str) -> Target:
    """The target of a name, or of a JSON file's path.

    Raises:
        UnknownTarget: neither.
        BadTarget: a field is missing or not what the schema says.
    """
    return _Reader(name).target(_merged(name, None, ()))


def _merged(name: str, beside: Path | None, seen: tuple[str, ...]) -> dict[str, Any]:
    """The description with its bases filled in."""
    text, folder = _text(name, beside)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as fault:
        raise BadTarget(name=name, field=f"line {fault.lineno}", reason=fault.msg) from fault
    if not isinstance(found, dict):
        raise BadTarget(name=name, field="file", reason="it is not an object")
    base = found.pop("base", None)
    if base is None:
        return found
    if base in seen:
        raise BadTarget(name=name, field="base", reason=f"'{base}' is its own base")
    return _overlay(_merged(str(base), folder, (*seen, name)), found)


def _text(name: str, beside: Path | None) -> tuple[str, Path | None]:
    if name in known_targets():
        return resources.files("dlc.costmodel.spatial.targets").joinpath(f"{name}.json").read_text(), None
    path = Path(name) if beside is None else beside / name
    if path.suffix != ".json" or not path.is_file():
        raise UnknownTarget(name=name, known=", ".join(known_targets()))
    return path.read_text(), path.parent


def _overlay(under: dict[str, Any], over: dict[str, Any], whole: bool = False) -> dict[str, Any]:
    """`under` with the fields of `over`, objects field by field; an operation's cost is taken as a whole."""
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not whole:
            result[key] = _overlay(old, value, key == "operations")
        else:
            result[key] = value
    return result


class _Reader:
    """Reads one description; every fault names its field."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fault(self, where: str, reason: str) -> BadTarget:
        return BadTarget(name=self.name, field=where, reason=reason)

    def get(self, data: Mapping[str, Any], where: str, kind: type[T], *, positive: bool = False) -> T:
        key = where.rpartition(".")[2]
        if key not in data:
            raise self.fault(where, "it is missing")
        value = data[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fault(where, f"{json.dumps(data[key])} is no {_WORDS[kind]}")
        if isinstance(value, (int, float)) and (value < 0 or (positive and value == 0)):
            raise self.fault(where, f"{value} is not {'positive' if positive else 'zero or more'}")
        return value

    def only(self, data: Mapping[str, Any], where: str, known: tuple[str, ...]) -> None:
        unknown = [k for k in data if k not in known]
        if unknown:
            raise self.fault(where, f"'{unknown[0]}' is no field of it; it has {', '.join(known)}")

    def target(self, data: dict[str, Any]) -> Target:
        self.only(data, "file", _FIELDS)
        dram = self.get(data, "dram", dict)
        access = self.get(dram, "dram.access_bytes", int, positive=True)
        value_bytes = self.get(data, "value_bytes", int, positive=True)
        pj = self.get(dram, "dram.pj", float)
        rate = self.get(dram, "dram.bytes_per_s", float, positive=True)
        arrays = self.get(data, "arrays", dict)
        self.only(arrays, "arrays", ("2d", "1d"))
        mapping = self.mapping(self.get(data, "mapping", dict))
        read = {n: self.array(self.get(arrays, f"arrays.{n}", dict), n, data) for n in ("2d", "1d")}
        along = {
            read[n].shape[nest.space.index("stream")] for n, nest in mapping.nests.items() if "stream" in nest.space
        }
        if mapping.phases == "one" and len(along) != 1:
            raise self.fault("mapping.nests", "arrays that step together have the stream over equally many elements")
        return Target(
            name=self.get(data, "name", str),
            source=self.get(data, "source", str),
            clock_hz=self.get(data, "clock_hz", float, positive=True),
            value_bytes=value_bytes,
            arrays=read,
            stage=None if data.get("stage") is None else self.memory(self.get(data, "stage", dict), "stage"),
            buffer=self.memory(self.get(data, "buffer", dict), "buffer", sized=True),
            dram=Memory(pj, pj, max(access // value_bytes, 1)),
            dram_bytes_per_s=rate,
            mapping=mapping,
            published=self.published(data.get("published", {})),
        )

    def memory(self, data: Mapping[str, Any], where: str, sized: bool = False) -> Memory:
        size = self.get(data, f"{where}.bytes", int, positive=True) if sized else 0
        row = self.get(data, f"{where}.row_words", int, positive=True) if "row_words" in data else 1
        return Memory(self.get(data, f"{where}.read_pj", float), self.get(data, f"{where}.write_pj", float), row, size)

    def array(self, data: dict[str, Any], name: str, whole: Mapping[str, Any]) -> Array:
        shape = self.get(data, f"arrays.{name}.shape", list)
        dimensions = int(name[0])
        if len(shape) != dimensions or not all(isinstance(n, int) and n > 0 for n in shape):
            raise self.fault(f"arrays.{name}.shape", f"{json.dumps(shape)} is not {dimensions} positive integers")
        file = self.memory(self.get(data, f"arrays.{name}.file", dict), f"arrays.{name}.file")
        given = {**self.get(whole, "operations", dict), **data.get("operations", {})}
        return Array(tuple(shape), file, {op: self.cost(given, op, name) for op in given})

    def cost(self, given: Mapping[str, Any], op: str, array: str, depth: int = 0) -> Cost:
        where = f"operations.{op} of array {array}"
        data = given.get(op)
        if not isinstance(data, dict) or depth > 4:
            raise self.fault(where, "it needs `cycles` and `pj`, or `as` other operations that have them")
        if "as" not in data:
            return Cost(self.get(data, f"{where}.cycles", float), self.get(data, f"{where}.pj", float))
        parts = [(self.cost(given, part, array, depth + 1), count) for part, count in data["as"].items()]
        return Cost(sum(c.cycles * n for c, n in parts), sum(c.pj * n for c, n in parts))

    def mapping(self, data: dict[str, Any]) -> SpatialMapping:
        self.only(data, "mapping", ("passes", "phases", "bind", "nests", "accumulate", "stages"))
        passes = self.get(data, "mapping.passes", int, positive=True) if data.get("passes") is not None else None
        phases = self.get(data, "mapping.phases", str)
        if phases not in ("one", "arrays"):
            raise self.fault("mapping.phases", f"'{phases}' is neither 'one' nor 'arrays'")
        nests = self.get(data, "mapping.nests", dict)
        bind = []
        for n, rule in enumerate(self.get(data, "mapping.bind", list)):
            array = self.get(rule, f"mapping.bind[{n}].array", str)
            if array not in ("2d", "1d"):
                raise self.fault(f"mapping.bind[{n}].array", f"'{array}' is neither '2d' nor '1d'")
            bind.append((self.selector(rule.get("when", {}), f"mapping.bind[{n}].when"), array))
        stages = []
        for n, stage in enumerate(self.get(data, "mapping.stages", list)):
            takes = self.get(stage, f"mapping.stages[{n}].takes", list)
            chosen = tuple(self.selector(t, f"mapping.stages[{n}].takes") for t in takes)
            stages.append(Stage(chosen, bool(stage.get("fill", False))))
        return SpatialMapping(
            passes,
            phases,
            tuple(bind),
            {n: self.nest(self.get(nests, f"mapping.nests.{n}", dict), n) for n in ("2d", "1d")},
            tuple(self.selector(s, "mapping.accumulate") for s in data.get("accumulate", [])),
            tuple(stages),
        )

    def nest(self, data: dict[str, Any], array: str) -> Nest:
        where = f"mapping.nests.{array}"
        above, below, space = (tuple(self.get(data, f"{where}.{part}", list)) for part in ("above", "below", "space"))
        loops = above + below
        wrong = [n for n in loops if n not in LOOPS] + [n for n in space if n not in ROLES]
        if wrong:
            raise self.fault(where, f"'{wrong[0]}' is no loop; loops are {', '.join(LOOPS)}, space {', '.join(ROLES)}")
        if len(set(loops)) < len(loops) or {"batch", "parallel2", "stream1"} - set(loops) or "parallel1" in above:
            raise self.fault(where, "each of batch, parallel2, stream1 stands once, parallel1 at most once and below")
        if "parallel1" not in below and "parallel" in space:
            raise self.fault(where, "a parallel rank laid over the array needs the loop parallel1 below")
        if len(space) != int(array[0]) or len(set(space)) < len(space):
            raise self.fault(f"{where}.space", f"it has one role for each of {array[0]} dimensions")
        return Nest(above, below, space)

    def selector(self, data: Any, where: str) -> Selector:
        if not isinstance(data, dict):
            raise self.fault(where, f"{json.dumps(data)} is no object")
        self.only(data, where, tuple(Selector.__dataclass_fields__))
        return Selector(**data)

    def published(self, data: dict[str, Any]) -> Published:
        self.only(data, "published", tuple(Published.__dataclass_fields__))
        return Published(**{**data, "free_operations": tuple(data.get("free_operations", ()))})


_WORDS: dict[type, str] = {int: "integer", float: "number", str: "text", dict: "object", list: "list"}
_FIELDS = tuple("name source clock_hz value_bytes arrays operations stage buffer dram mapping published".split())
