"""The ledger: results of slow checks, kept so that only what changed is run again.

One file of JSON lines per family of checks, `tests/ledger/<name>.jsonl`, each line

    {"check": "test_add_cpu", "digest": "3f…", "versions": "dlc=0.1.0 onnx=1.23.2", "machine": "avx512", "result": …}

A result counts as long as all four parts of its key are the same: what was checked, a digest of what the outcome
depends on (the kernel's digest, or of the inputs and expected outputs), the versions of the packages that had a say,
and the kind of machine.  A line is one `write` in append mode, so several processes may write at once and a killed run
loses at most its last line; a later line with the same key wins.

    ledger = Ledger("onnx_nodes")
    key = ledger.key("test_add_cpu", digest=digest_of(model_bytes), packages=("onnx", "numpy"))
    result = ledger.get(key)
    if result is None:
        result = {"status": "pass", "native": True}
        ledger.put(key, result)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "ledger"


@dataclass(frozen=True, slots=True)
class Key:
    """What a result depends on; equal keys, equal results."""

    check: str
    digest: str
    versions: str
    machine: str


def digest_of(*parts: object) -> str:
    """A short digest of texts, bytes, arrays (their type, shape and bytes) or anything with a stable `str`."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes | bytearray | memoryview):
            data = bytes(part)
        elif hasattr(part, "tobytes") and hasattr(part, "shape"):
            data = f"{part.dtype}{part.shape}".encode() + part.tobytes()
        else:
            data = str(part).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:24]


@cache
def source_digest(*stages: str) -> str:
    """Digest of the source of some stages (all of them by default): for checks that see the whole compiler."""
    root = Path(__file__).resolve().parent.parent
    names = stages or ("frontend", "ir", "passes", "codegen", "costmodel", "runtime")
    files = sorted(f for name in names for f in (root / name).rglob("*") if f.suffix in {".py", ".lark", ".ein"})
    return digest_of(*(part for f in files for part in (f.relative_to(root), f.read_bytes())))


@cache
def versions(packages: tuple[str, ...] = ()) -> str:
    """`name=version` of dlc and the given packages."""
    return " ".join(f"{name}={metadata.version(name)}" for name in ("dlc", *packages))


@cache
def machine() -> str:
    """The kind of machine, not which one: the widest instruction set and the architecture."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    except OSError:
        pass
    widest = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else "baseline"
    return f"{widest} {platform.machine()}"


class Ledger:
    """One family of slow checks and their kept results."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.path = folder / f"{name}.jsonl"
        self._results: dict[Key, Any] = {}
        self._read_to = 0
        self._refresh()

    def key(self, check: str, *, digest: str = "", packages: tuple[str, ...] = ()) -> Key:
        return Key(check, digest, versions(packages), machine())

    def get(self, key: Key) -> Any | None:
        """The kept result, or None."""
        return self._results.get(key)

    def put(self, key: Key, result: Any) -> None:
        """Keep a result (plain JSON data), at once and durably against a kill of this process."""
        line = {
            "check": key.check,
            "digest": key.digest,
            "versions": key.versions,
            "machine": key.machine,
            "result": result,
        }
        data = (json.dumps(line, sort_keys=True) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        self._results[key] = result

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return iter(self._results.items())

    def compact(self, keep: set[Key] | None = None) -> None:
        """Write the file again, one line per key (of `keep` only), in the order of checks: before committing it."""
        self._refresh()
        kept = {k: r for k, r in self._results.items() if keep is None or k in keep}
        temporary = self.path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        writer = Ledger.__new__(Ledger)
        writer.path, writer._results, writer._read_to = temporary, {}, 0
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        for key in sorted(kept, key=lambda k: (k.check, k.digest, k.versions, k.machine)):
            writer.put(key, kept[key])
        os.replace(temporary, self.path)
        self._results = kept

    def _refresh(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for raw in file:
                try:
                    line = json.loads(raw)
                    key = Key(line["check"], line["digest"], line["versions"], line["machine"])
                except (ValueError, KeyError, TypeError):
                    continue  # the torn last line of a killed run
                self._results[key] = line["result"]
