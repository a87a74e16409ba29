"""Compare two programs, two dump directories, or two files of saved outputs.

  dlc diff dumps/000-input.ein dumps/004-fuse.ein     programs: which statements differ, and how
  dlc diff dumps-before dumps-after                   dump directories: file by file
  dlc diff out1.npz out2.npz --tolerance 1e-5         numbers: largest difference of each array

Ends with 0 when nothing differs and with 4 when something does.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

import numpy as np

from dlc.console import Console
from dlc.errors import EXIT_MISMATCH, BadInput
from dlc.feeds import load_arrays


class CannotDiff(BadInput):
    """The two things are not of a kind."""

    code = "DLC0640"
    template = "cannot compare '{a}' with '{b}': {reason}"
    hint = "give two .ein files, two dump directories, or two .npz or .npy files"


ARRAYS = (".npz", ".npy")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a program, dump directory or file of arrays")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="T",
        help="largest difference that is none, as a part of the largest magnitude in A (default 0)",
    )
    parser.add_argument("--context", type=int, default=2, metavar="N", help="equal lines around each (default 2)")
    parser.add_argument(
        "--format", choices=("text", "json", "jsonl"), default="text", help="text for people; json; one row per line"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    a, b = Path(options.a), Path(options.b)
    for path in (a, b):
        if not path.exists():
            raise CannotDiff(a=a, b=b, reason=f"there is no '{path}'")
    if a.is_dir() and b.is_dir():
        rows = diff_folders(a, b, options.context)
    elif a.suffix in ARRAYS and b.suffix in ARRAYS:
        rows = diff_arrays(load_arrays(a), load_arrays(b), options.tolerance)
    elif a.is_file() and b.is_file() and a.suffix not in ARRAYS and b.suffix not in ARRAYS:
        rows = [diff_programs(a, b, options.context)]
    else:
        raise CannotDiff(a=a, b=b, reason="they are not of one kind")
    equal = all(row["equal"] for row in rows)
    console.emit({"equal": equal}, rows)
    for row in rows:
        console.say(f"{row['name']}: {row['what']}")
        if row.get("diff"):
            console.say(_colored(row["diff"], console))
    return 0 if equal else EXIT_MISMATCH


def diff_programs(a: Path, b: Path, context: int) -> dict[str, Any]:
    """Structural first: equal programs may be written differently; then the lines that differ, in the usual form."""
    from dlc.errors import DlcError

    texts = a.read_text(), b.read_text()
    structural = None
    if a.suffix == b.suffix == ".ein" and texts[0] != texts[1]:
        from dlc.ir.parser import parse

        try:
            programs = [parse(text, str(path)) for text, path in zip(texts, (a, b))]
        except DlcError:
            pass  # then only the lines can be compared
        else:
            structural = programs[0] == programs[1]
            texts = _text(programs[0]), _text(programs[1])
    if texts[0] == texts[1] or structural:
        what = "equal" if structural is None else "equal programs (text, names of places or order of facts differ)"
        return {"name": a.name, "equal": True, "what": what}
    before, after = (text.splitlines() for text in texts)
    lines = list(difflib.unified_diff(before, after, str(a), str(b), lineterm="", n=context))
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    return {
        "name": a.name,
        "equal": False,
        "what": f"{removed} lines removed, {added} added",
        "diff": "\n".join(lines),
    }


def diff_folders(a: Path, b: Path, context: int) -> list[dict[str, Any]]:
    """Programs and kernels of two dump directories, by name; times and versions are left out."""
    kinds = {".ein", ".tile", ".mlir", ".ll", ".s"}
    names = sorted(
        {
            str(f.relative_to(folder))
            for folder in (a, b)
            for f in folder.rglob("*")
            if f.suffix in kinds and f.is_file()
        }
    )
    if not names:
        raise CannotDiff(a=a, b=b, reason="neither holds a dump")
    rows = []
    for name in names:
        here, there = a / name, b / name
        if not (here.exists() and there.exists()):
            rows.append({"name": name, "equal": False, "what": f"only in {a if here.exists() else b}"})
        else:
            rows.append({**diff_programs(here, there, context), "name": name})
    return rows


def diff_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float) -> list[dict[str, Any]]:
    """One row per array: largest difference, where, and whether it is within the tolerance."""
    if not set(a) & set(b) and len(a) == len(b):  # saved under other names: by position
        b = dict(zip(a, b.values()))
    rows = []
    for name in dict.fromkeys((*a, *b)):
        if name not in a or name not in b:
            rows.append({"name": name, "equal": False, "what": f"only in {'A' if name in a else 'B'}"})
            continue
        facts = compare(b[name], a[name], tolerance)
        rows.append({"name": name, **facts})
    return rows


def compare(got: np.ndarray, want: np.ndarray, tolerance: float) -> dict[str, Any]:
    """How an array differs from a reference: {equal, what, error, ...}.

    Args:
        got, want: NaN equals NaN, infinity itself.
        tolerance: largest |difference| as a part of the largest finite |want|.
    """
    from dlc.passes.observers import difference_of

    if got.shape != want.shape:
        return {"equal": False, "what": f"shape {list(got.shape)} instead of {list(want.shape)}", "error": None}
    if want.dtype == bool or want.dtype.kind in "iu":
        differ = difference_of(got.astype(want.dtype), want, 0.0)
        return {"equal": differ is None, "what": differ or "equal", "error": None if differ else 0.0}
    if want.dtype.kind == "c":
        got, want = (np.stack([v.real, v.imag], -1) for v in (got, want))
    x, y = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    scale = float(np.abs(y[np.isfinite(y)]).max()) if np.isfinite(y).any() else 0.0
    largest = float(np.abs(x[finite] - y[finite]).max()) if finite.any() else 0.0
    error = largest / scale if scale else largest
    differ = difference_of(x, y, tolerance * (scale or 1.0))
    what = "equal" if largest == 0 and differ is None else f"largest error {error:.2e} of the largest value"
    if differ is not None:
        what += f"; {differ}"
    return {"equal": differ is None, "what": what, "error": error, "scale": scale}


def _text(parsed: Any) -> str:
    return "\n\n".join(map(str, parsed)) if isinstance(parsed, tuple) else str(parsed)


def _colored(text: str, console: Console) -> str:
    if not console.color(console.out):
        return text
    colors = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}
    return "\n".join(f"{colors[x[0]]}{x}\x1b[0m" if x[:1] in colors else x for x in text.splitlines())
