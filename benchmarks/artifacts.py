"""What is made of a model once and kept in the work folder: its ONNX file for the peers, its artifact by dlc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.ledger import digest_of, source_digest

import dlc

COMPOSERS = ("compiler.py", "importing.py")
"""Of src/dlc, what an artifact depends on beside the stages."""

KEPT = 3
"""Revisions of dlc whose artifacts are kept."""


def default_work() -> Path:
    """A folder outside the tree that stays."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlc-benchmarks"


def onnx_file(entry: str, work: Path) -> tuple[Path, str]:
    """The model as ONNX with symbolic batch and length, exported once; with why not, if torch cannot export it."""
    path = work / entry / "model.onnx"
    failed = path.with_suffix(".failed")
    if not path.exists() and not failed.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = (
            "from pathlib import Path; from benchmarks.sources import source\n"
            f"source({entry!r}).write_onnx(Path({str(path)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            path.unlink(missing_ok=True)
            failed.write_text(f"torch.onnx.export: {done.stderr.strip().splitlines()[-1][:300]}")
    return path, failed.read_text() if failed.exists() else ""


def artifact(entry: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The model compiled by this revision of dlc, once; with how long that took, cold and from the cache.

    Raises:
        subprocess.CalledProcessError: it cannot be compiled.
    """
    folder = work / "artifacts" / compiler_digest()
    path, facts = folder / f"{entry}.dlc", folder / f"{entry}.json"
    if not (path.exists() and facts.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(folder)
        with tempfile.TemporaryDirectory(prefix="dlc-bench-") as cache:
            cold = compile_once(entry, Path(cache), path)
            found = {"cold": cold, "cached": compile_once(entry, Path(cache), None)}
        facts.write_text(json.dumps(found))
    return path, json.loads(facts.read_text())


def compiler_digest() -> str:
    """Of the source that decides what an artifact is."""
    root = Path(dlc.__file__).parent
    return digest_of(source_digest(), *((root / name).read_bytes() for name in COMPOSERS))


def compile_once(entry: str, cache: Path, save: Path | None) -> dict[str, Any]:
    """A compilation in a process of its own; cold with an empty cache folder, from the cache with the same again."""
    command = [sys.executable, "-m", "benchmarks.compile_once", entry, *(["--save", str(save)] if save else [])]
    environment = {**os.environ, "DLC_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _forget_old(folder: Path) -> None:
    others = [f for f in folder.parent.iterdir() if f != folder]
    for old in sorted(others, key=lambda f: f.stat().st_mtime)[: max(len(others) - KEPT + 1, 0)]:
        shutil.rmtree(old, ignore_errors=True)
