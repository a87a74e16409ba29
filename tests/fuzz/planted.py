"""Faults put into the compiler on purpose, each of which the random programs must find.

A plant names a function and a piece of its source to replace. The function is compiled again from the changed source and
put wherever the old one was imported; afterwards everything is as before. A plant whose text is no longer in the source fails
its test: the fault must then be written anew, so that the list keeps up with the code.
"""

from __future__ import annotations

import __future__

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.fuzz.bounds import Reference, Undetermined, reference
from tests.fuzz.generate import Case, case
from tests.fuzz.run import Result, check


@dataclass(frozen=True)
class Plant:
    """A fault.

    Attributes:
        where: `module:function` or `module:Class.method`.
        old, new: the text replaced in its source, and by what.
        pieces: constructs likely to show it; other programs are skipped, so that the hunt is short.
    """

    name: str
    where: str
    old: str
    new: str
    pieces: tuple[str, ...] = ()


PLANTS: tuple[Plant, ...] = (
    Plant(
        "tail mask one short",
        "dlc.codegen.nest:for_vectors",
        "em.b.mask(lanes, hi - loop.index)",
        "em.b.mask(lanes, hi - loop.index - 1)",
    ),
    Plant(
        "no identity in masked lanes",
        "dlc.codegen.nest:_accumulate",
        "    if exists is not None:\n",
        "    if exists is not None and monoid.op != 'max':\n",
        ("monoid:max",),
    ),
    Plant(
        "store truncates",
        "dlc.codegen.scalar_to_mlir:Scalars._to_half",
        "v.iop('addi', v.iop('addi', bits, v.ci(0x7FFF)), odd)".replace("'", '"'),
        "bits",
        ("dtype:bf16",),
    ),
    Plant(
        "loop bound one short",
        "dlc.codegen.nest:_fold_loops",
        "em.b.loop(name, 0, extent,",
        "em.b.loop(name, 0, extent - 1,",
    ),
    Plant(
        "layout of parameters forgotten",
        "dlc.passes.fuse:_Fusion._launch",
        "Param(tensors[n], self.types[n])",
        "Param(tensors[n], replace(self.types[n], order=None))",
        ("relayout", "convolution", "contraction"),
    ),
    Plant(
        "default dropped",
        "dlc.codegen.point:Emitter._access",
        'result = self.b.op("select", guard, result, default)',
        "pass",
        ("views", "window"),
    ),
    Plant(
        "max loses NaN",
        "dlc.codegen.scalar_to_mlir:Scalars._extreme",
        'return v.select(v.cmp("uno", b, b), b, closer)',
        "return closer",
        ("input:special-float",),
    ),
    Plant(
        "unsigned compared as signed",
        "dlc.codegen.scalar_to_mlir:Scalars._int",
        "if not signed and predicate not in",
        "if False and predicate not in",
        ("dtype:u8", "dtype:u16", "dtype:u32", "dtype:u64"),
    ),
    Plant(
        "floor division truncates",
        "dlc.codegen.scalar_to_mlir:Scalars._division",
        'if rounding == "floor":',
        "if False:",
        ("op:div_floor", "op:rem_floor", "coordinates", "views"),
    ),
    Plant(
        "accumulator starts at 0",
        "dlc.codegen.nest:_fold",
        "identity = tuple(c.value for c in monoid.identity(types))",
        "identity = tuple(c.value if monoid.op in ('add', 'mul', 'and') else type(c.value)(0) for c in monoid.identity(types))",
        ("reduction", "norm", "arg"),
    ),
    Plant(
        "select swapped",
        "dlc.codegen.point:Emitter._piecewise",
        '"select", g, v, result',
        '"select", g, result, v',
        ("concat", "stack"),
    ),
    Plant(
        "stale double buffer",
        "dlc.codegen.host:_Entry.either",
        "return code.select(odd,",
        "return code.select(code.compare('ne', step, step),",
        ("recurrent", "swap", "nested", "cumulative"),
    ),
    Plant(
        "kernels out of order",
        "dlc.passes.fuse:_in_order",
        "        for n in sorted(group.depends):\n            visit(groups[n])\n",
        "",
        ("crossing", "scatter", "norm"),
    ),
    Plant(
        "merged rank too short",
        "dlc.codegen.merge:_merge_pair",
        "extent = ranks[outer] * ranks[inner]",
        "extent = ranks[outer] * ranks[inner] - 1",
    ),
    Plant(
        "bounds check missing",
        "dlc.codegen.point:Emitter._access",
        'self.b.check(self.b.op("not", outside), f"bounds {e.tensor}")',
        "pass",
        ("gather:outside",),
    ),
    Plant(
        "packing loses the last column",
        "dlc.passes.prepare_contractions:_Preparation._constant",
        "(guard[0], int(guard[1].const or 0))",
        "(guard[0], int(guard[1].const or 0) - 1)",
        ("contraction:constant", "conv"),
    ),
    Plant(
        "tail lanes not folded",
        "dlc.codegen.nest:_fold_lanes",
        "folded = b.reduce(monoid.op, b.op(monoid.op, folded, tail))",
        "folded = b.reduce(monoid.op, folded)",
        ("reduction", "norm"),
    ),
    Plant(
        "argmax takes the last of equals",
        "dlc.codegen.nest:_apply_combine",
        "em.b.op(op, *",
        "em.b.op({'gt': 'ge', 'lt': 'le'}.get(op, op), *",
        ("arg",),
    ),
    Plant(
        "cast mode ignored",
        "dlc.codegen.point:Emitter._value",
        "done = b.cast(source, dtype, mode)",
        "done = b.cast(source, dtype, 'sat')",
        ("cast:wrap",),
    ),
    Plant(
        "arena overlap",
        "dlc.runtime.arena:plan",
        "if begin > last or end < first:",
        "if begin >= last or end <= first:",
    ),
    Plant(
        "inlining forgets the padding",
        "dlc.passes.inline_pointwise:inline_access",
        "if not guards:",
        "if True:",
        ("view:pad",),
    ),
    Plant(
        "row remainder skipped",
        "dlc.codegen.contraction:_ContractionLowering._rows",
        "while rows > 1:",
        "while False:",
        ("contraction", "convolution"),
    ),
    Plant(
        "scatter writes twice",
        "dlc.codegen.scatter:_write",
        'if write.op != "set":',
        'if write.op not in ("set", "max"):',
        ("scatter:max",),
    ),
    Plant(
        "descending order reverses ties",
        "dlc.codegen.library:_sort",
        "return less(b, x, y) if descending else less(b, y, x)",
        'return b.op("not", less(b, y, x)) if descending else less(b, y, x)',
        ("sort:descending", "library:topk"),
    ),
    Plant(
        "NaN has no place in the order",
        "dlc.codegen.library:less",
        'return b.op("or", smaller, b.op("and", b.op("eq", x, x), b.op("ne", y, y)))',
        "return smaller",
        ("library:sort", "library:topk", "library:unique"),
    ),
    Plant(
        "duplicates are not counted",
        "dlc.codegen.library_sets:unique_write",
        'b.op("add", b.load(_INDEX, "out3", at), one)',
        'b.load(_INDEX, "out3", at)',
        ("library:unique",),
    ),
    Plant(
        "nonzero in column-major order",
        "dlc.codegen.library:_nonzero_write",
        "reversed(range(x.rank))",
        "range(x.rank)",
        ("library:nonzero",),
    ),
)


def resolve(where: str) -> tuple[Any, str, Any]:
    """(holder, attribute name, function)."""
    module_name, path = where.split(":")
    holder: Any = import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    return holder, name, inspect.getattr_static(holder, name)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """The compiler with the fault in it."""
    holder, name, function = resolve(plant.where)
    source = textwrap.dedent(inspect.getsource(function))
    if plant.old not in source:
        raise LookupError(f"'{plant.name}': {plant.where} no longer holds {plant.old!r}")
    code = compile(
        source.replace(plant.old, plant.new),
        f"<planted {plant.name}>",
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    scope: dict[str, Any] = {}
    exec(code, function.__globals__, scope)  # noqa: S102 - our own source
    faulty = scope[name]
    places = [(holder, name)]
    if not inspect.isclass(holder):
        places += [
            (m, k)
            for n, m in list(sys.modules.items())
            if n.startswith("dlc.") and m is not holder
            for k, v in list(vars(m).items())
            if v is function
        ]
    for place, k in places:
        setattr(place, k, faulty)
    try:
        yield
    finally:
        for place, k in places:
            setattr(place, k, function)


@dataclass(frozen=True)
class Prepared:
    """A case with its reference; None where that raises or is not determined."""

    case: Case
    want: Reference | None


@cache
def prepared(seed: int) -> Prepared:
    c = case(seed)
    try:
        return Prepared(c, reference(c.program, c.inputs))
    except Undetermined:
        return Prepared(c, None)
    except Exception:  # noqa: BLE001 - a case that must be refused
        return Prepared(c, None)


class Objects:
    """Object code of one plant: the usual cache would return what the sound compiler made of the same tile program."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data


def apart(plant: Plant, end: int, most: int) -> dict[str, Any]:
    """`hunt` in a process of its own, for a fault may write anywhere; and whether the program found is sound without it."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.planted", plant.name, str(end), str(most)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests"), str(root / "src")])}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=1200, check=False)
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    told: dict[str, Any] = lines[-1]
    if done.returncode and not told["found"]:  # died in the program it had begun: that is finding it, too
        told = {**told, "found": True, "detail": f"exit code {done.returncode}"}
    if told["found"]:
        told["sound"] = check(prepared(told["seed"]).case, "host", 1).status == "ok"
    return told


def hunt(
    plant: Plant, seeds: Sequence[int], most: int = 150, report: Callable[[int, int], None] | None = None
) -> tuple[int, Result | None]:
    """(programs tried, what the first failing one showed); programs without the plant's constructs are not counted."""
    tried, objects = 0, Objects()
    for seed in seeds:
        p = prepared(seed)
        if plant.pieces and not set(plant.pieces) & set(p.case.tags):
            continue
        if p.want is None and "gather:outside" not in p.case.tags:
            continue
        tried += 1
        if report is not None:
            report(tried, seed)
        with planted(plant):
            result = check(p.case, "host", 1, given=p.want, cache=objects)
        if result.status in ("wrong", "error"):
            return tried, result
        if tried >= most:
            break
    return tried, None


def main(argv: Sequence[str]) -> int:
    """Hunt for the plant named; a JSON line for each program begun, and one for the outcome."""
    plant = next(p for p in PLANTS if p.name == argv[0])

    def say(**told: Any) -> None:
        print(json.dumps(told), flush=True)

    def begun(n: int, seed: int) -> None:
        say(found=False, tried=n, seed=seed, detail="")

    tried, result = hunt(plant, range(int(argv[1])), int(argv[2]), begun)
    if result is None:
        say(found=False, tried=tried, seed=-1, detail="")
    else:
        say(found=True, tried=tried, seed=result.seed, detail=f"{result.status}: {result.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
