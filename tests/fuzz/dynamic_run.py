"""Compile random modules with Python control flow and compare their decisions and results with eager's.

    python -m tests.fuzz.dynamic_run 0 10000               two processes, results kept in tests/ledger/dynamic_fuzz.jsonl
    python -m tests.fuzz.dynamic_run --seed 17 --shrink    one seed, its source and the least one that still fails
    python -m tests.fuzz.dynamic_run 0 300 --route interpreted --fresh

Eager runs in f64 and notes its decisions. Where all of them are clear (`tests.models.dynamic.decisions`) the compiled module must
return the same whole numbers and shapes, and floats within 1e-4; values are of the order of one, so decisions that differ show.
Route `interpreted` takes the imported program to the NumPy interpreter: what the capture alone may break.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ledger import Ledger  # noqa: E402
from tests.fuzz.dynamic_generate import Case, case, load, wide, widened  # noqa: E402
from tests.fuzz.run import Family, Result, first_line, run, summary  # noqa: E402
from tests.models.dynamic.decisions import recorded  # noqa: E402
from tests.models.dynamic.judge import flat, interpreter, same_path  # noqa: E402

TOLERANCE = 1e-4
Runner = Callable[..., Any]


def imported(c: Case) -> Any:
    """The module as a program of the IR, with the nesting of its results."""
    from dlc.importing import import_any

    with torch.no_grad():
        return import_any(load(c), c.inputs[0], None, c.dynamic_shapes, None)


def compiled(c: Case) -> Runner:
    import dlc

    with torch.no_grad():
        exe: Runner = dlc.compile(load(c), c.inputs[0], dynamic_shapes=c.dynamic_shapes)
    return exe


ROUTES: dict[str, Callable[[Case], Runner]] = {
    "compiled": compiled,
    "interpreted": lambda c: interpreter(imported(c)),
    "eager": load,
}


def check(c: Case, route: str = "compiled", runner: Runner | None = None) -> Result:
    """Compare `runner`, or what the route makes of the case, with eager; `elements` are decisions, `open` the close ones."""
    from dlc.errors import Unsupported

    start = time.perf_counter()
    decisions = close = 0

    def result(status: str, detail: str = "") -> Result:
        return Result(c.seed, status, detail, c.tags, decisions, close, round(time.perf_counter() - start, 3))

    try:
        given = runner if runner is not None else ROUTES[route](c)
    except Unsupported as e:
        return result("refused", f"{e.code} {_reason(e)}")
    except Exception as e:  # noqa: BLE001 - whatever it is, it is a finding
        return result("error", f"while compiling: {_told(e)}")
    model = wide(c)
    for n, inputs in enumerate(c.inputs):
        with recorded() as made:
            want = flat(model(*widened(inputs)))
        doubtful = sum(d.close for d in made)
        decisions, close = decisions + len(made), close + doubtful
        try:
            with torch.no_grad():
                got = flat(given(*(t.clone() for t in inputs)))
        except Exception as e:  # noqa: BLE001
            if c.sized and _of_sizes(e):
                continue  # refused with these sizes, which is said
            return result("error", f"inputs {n}: {_told(e)}")
        fault = "" if doubtful else apart(want, got)
        if fault:
            return result("wrong", f"inputs {n}: {fault}")
    return result("ok")


def _of_sizes(e: Exception) -> bool:
    """Whether a call is refused for what the program takes for given of extents."""
    from dlc.ir.errors import RunTimeExtent
    from dlc.runtime.errors import RuntimeCheckFailed, SymbolOutOfRange

    checked = "what_the_example_decided" in str(e) or "of_an_extent_of_1" in str(e)
    return isinstance(e, SymbolOutOfRange) or isinstance(e, RunTimeExtent) and ("'rows'" in str(e) or checked) or (
        isinstance(e, RuntimeCheckFailed) and checked
    )


def apart(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> str:
    """What differs; empty if nothing does."""
    if not same_path(want, got):
        return f"{[_short(a) for a in got]} and not {[_short(a) for a in want]}"
    for n, (w, g) in enumerate(zip(want, got)):
        if w.dtype.kind == "f" and w.size:
            scale = max(1.0, float(np.abs(w).max()))
            if not np.abs(w - g).max() <= TOLERANCE * scale:
                return f"output {n} is {_short(g)} and not {_short(w)}"
    return ""


def _short(a: np.ndarray) -> str:
    return f"{a.dtype}{list(a.shape)} {np.array2string(a, precision=5, threshold=6)}"


def _reason(e: BaseException) -> str:
    """What is said after the place, which is another in each program."""
    return re.sub(r"^.*?error\[\w+\]: ", "", first_line(e)) + f" [{first_line(e).split(': ')[0]}]"


def _told(e: BaseException) -> str:
    where = traceback.extract_tb(e.__traceback__)[-1]
    code = f"{e.code} " if hasattr(e, "code") and isinstance(e.code, str) else ""
    return f"{code}{type(e).__name__} at {Path(where.filename).name}:{where.lineno}: {_reason(e)}"


def one(seed: int) -> Result:
    torch.set_num_threads(1)
    return check(case(seed), os.environ.get("DLC_FUZZ_ROUTE", "compiled"))


def tags_of(seed: int) -> tuple[str, ...]:
    return case(seed).tags


DYNAMIC = Family(
    one,
    tags_of,
    ("dynamic_generate.py", "dynamic_pieces.py", "dynamic_run.py", "../models/dynamic/decisions.py"),
    ("frontend", "ir", "passes", "codegen", "costmodel", "runtime"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("range", nargs="*", type=int, default=[0, 10000], help="first seed and end")
    parser.add_argument("--seed", type=int, help="one seed, shown")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the least source that still fails")
    parser.add_argument("--route", choices=tuple(ROUTES), default="compiled")
    parser.add_argument("--fresh", action="store_true", help="without the ledger")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    os.environ["DLC_FUZZ_ROUTE"] = args.route
    if args.seed is not None:
        return _show(case(args.seed), args.route, args.shrink)
    first, end = (args.range + [0, 0])[:2] if len(args.range) != 1 else (0, args.range[0])

    def report(r: Result) -> None:
        if r.status != "ok":
            print(f"seed {r.seed} {r.status}: {r.detail[:260]}", flush=True)

    kept = None if args.fresh or args.route != "compiled" else Ledger("dynamic_fuzz")
    results = run(range(first, end), args.workers, kept, report, family=DYNAMIC)
    print(summary(results))
    return 1 if any(r.status in ("wrong", "error", "crash") for r in results) else 0


def _show(c: Case, route: str, small: bool) -> int:
    outcome = check(c, route)
    if small and outcome.status != "ok":
        from tests.fuzz.dynamic_shrink import shrink

        c = shrink(c, lambda candidate: runs(candidate) and alike(check(candidate, route), outcome))
        outcome = check(c, route)
    print(c.source)
    print(outcome.status, outcome.detail)
    return 0 if outcome.status == "ok" else 1


MOST_LINES = 50_000
"""Of a generated module in one call; one that does more, as with the statement gone that its loop ends by, is no program."""


@contextmanager
def bounded(model: torch.nn.Module) -> Iterator[None]:
    """RuntimeError where `model` executes more than `MOST_LINES` of its own file, tensors or not."""
    file, left = type(model).forward.__code__.co_filename, MOST_LINES

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError(f"more than {MOST_LINES} lines")
        return line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename == file else None)
    try:
        yield
    finally:
        sys.settrace(before)


def runs(c: Case) -> bool:
    """Whether this is a program at all: eager takes every input, comes to an end and gives tensors."""
    model = load(c)
    with torch.no_grad(), bounded(model):
        return all(any(a.ndim for a in flat(model(*(t.clone() for t in inputs)))) for inputs in c.inputs)


def alike(a: Result, b: Result) -> bool:
    """The same fault, as far as one can tell: the status, and the error's code and place."""
    return a.status == b.status and (a.status == "wrong" or _general(a.detail) == _general(b.detail))


def _general(detail: str) -> str:
    """Without the place and the names of values."""
    return re.sub(r"\b[a-z]+_?\d+(_\d+)?\b|\[.*\]", "", detail)


if __name__ == "__main__":
    os.environ.setdefault("DLC_CACHE_DIR", str(ROOT / "build" / "fuzz-cache"))
    sys.exit(main())
