"""Runs the node cases of `onnx.backend.test` and says for each: pass, refused (with code and reason), wrong, or crash.

    python tests/onnx_backend/runner.py [--filter REGEX] [--jobs N] [--json FILE] [--table docs/onnx-operators.md] [-v]

How a case is run is a function `(Imported, inputs) -> outputs`; `interpret` runs the IR's interpreter, `compiled` saves a
`.dlc`, loads it again and runs native code.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dlc.errors import DlcError, Unsupported  # noqa: E402
from dlc.frontend.imported import Imported  # noqa: E402
from dlc.ir.codes import as_stored  # noqa: E402
from dlc.ir.dtype import from_numpy  # noqa: E402
from dlc.ir.evaluate import hold  # noqa: E402

Execute = Callable[[Imported, Sequence[Any]], Sequence[Any]]
SECONDS_PER_CASE = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        status: pass, near (the reference's own rounding), refused, wrong, crash.
        how: native, folded (no statement left), specialised (a run-time input decided shapes).
        op: the operator the case is about.
        f32: whether its inputs are f32 or integers of shapes only, so that it counts towards f32 coverage.
    """

    name: str
    op: str
    status: str
    how: str = ""
    code: str = ""
    reason: str = ""
    f32: bool = False
    seconds: float = 0.0


@cache
def node_cases() -> dict[str, Any]:
    """The node cases by name, made once per process (the order of making decides their random data)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


def data_sets(case: Any) -> list[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs as NumPy arrays, nested lists or None."""
    if case.data_sets:
        return [([_array(x) for x in i], [_array(x) for x in o]) for i, o in case.data_sets]
    from onnx import numpy_helper, load_tensor  # type: ignore[attr-defined]

    found = []
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        parts = []
        for kind in ("input", "output"):
            files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
            parts.append([numpy_helper.to_array(load_tensor(str(f))) for f in files])
        found.append((parts[0], parts[1]))
    return found


def _array(value: Any) -> Any:
    """A TensorProto as an array; other values as they are."""
    if hasattr(value, "data_type"):
        from onnx import numpy_helper

        return numpy_helper.to_array(value)
    return value


def model_of(case: Any) -> Any:
    if case.model is not None:
        return case.model
    import onnx

    return onnx.load(str(Path(case.model_dir) / "model.onnx"))


def flatten(value: Any) -> list[Any]:
    """Leaves of a nested value; None has none."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flatten(item)]
    return [np.asarray(value)]


def interpret(imported: Imported, inputs: Sequence[Any]) -> Sequence[Any]:
    from dlc.ir.interpret import run_program

    return run_program(imported.program, list(inputs))


def compiled(imported: Imported, inputs: Sequence[Any]) -> Sequence[Any]:
    """Compile to a file, load that file, run it."""
    import dlc

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.dlc"
        dlc.compile(imported.program).save(path)
        result = dlc.load(path)(*inputs)
    return result if isinstance(result, (list, tuple)) else [result]


def import_case(model: Any, names: Sequence[str], inputs: Sequence[Any]) -> tuple[Imported, bool]:
    """The model imported, asking the inputs for structure, and for values where it must."""
    from dlc.frontend.onnx_import import import_for

    from dlc.ir.verify import verify

    imported = import_for(model, dict(zip(names, inputs, strict=False)))
    verify(imported.program)
    return imported, bool(imported.specialised)


def has_statements(imported: Imported) -> bool:
    return bool(imported.program.body.body) and bool(imported.program.params)


def compare(got: Sequence[Any], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """Empty when equal within the case's own tolerance, else what differs."""
    if len(got) != len(expected):
        return f"{len(got)} outputs, {len(expected)} expected"
    for n, (a, e) in enumerate(zip(got, expected, strict=True)):
        a, e = as_stored(a), as_stored(e)
        if a.dtype != e.dtype:
            return f"output {n} has type {a.dtype}, {e.dtype} expected"
        if a.shape != e.shape:
            return f"output {n} has shape {a.shape}, {e.shape} expected"
        if e.dtype.kind in "biu":
            if not np.array_equal(a, e):
                return f"output {n} differs at {int((a != e).sum())} of {a.size} places"
            continue
        if e.dtype.names is not None:
            rtol, atol = 0.0, 0.0  # of small types every number counts
        wide = [hold(x, from_numpy(x.dtype)).astype(np.float64) for x in (a, e)]
        if not np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(all="ignore"):
                return f"output {n} differs by up to {np.nanmax(np.abs(wide[0] - wide[1])):.3g} (of {np.nanmax(np.abs(wide[1])):.3g})"
    return ""


def is_near(got: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether outputs agree to two units of their type in the greatest value: the reference's own rounding, not a fault.

    ONNX's reference sums bf16 in bf16, element by element, and transforms complex64 with its noise; both depart from the exact
    result by more than the case's tolerance allows.
    """
    if len(got) != len(expected):
        return False
    for a, e in zip(got, expected, strict=True):
        a, e = as_stored(a), as_stored(e)
        if a.dtype != e.dtype or a.shape != e.shape or e.dtype.names is not None:
            return False
        if e.dtype.kind in "biu":
            if not np.array_equal(a, e):
                return False
            continue
        import ml_dtypes

        unit = float(ml_dtypes.finfo(e.dtype).eps)
        wide = [x.astype(np.float64) for x in (a, e)]
        if not np.allclose(*wide, rtol=0, atol=2 * unit * float(np.abs(wide[1]).max(initial=0))):
            return False
    return True


def operator_of(model: Any, name: str) -> str:
    """The operator a case is about: its only node's, else the one its name starts with."""
    nodes = model.graph.node
    if len(nodes) == 1:
        return str(nodes[0].op_type)
    return re.sub(r"^test_", "", name).split("_expanded")[0]


def is_f32(model: Any) -> bool:
    from onnx import TensorProto

    types = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    return TensorProto.FLOAT in types and types <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


def run_case(name: str, execute: Execute) -> Outcome:
    """Import and run one case."""
    case = node_cases()[name]
    start = time.perf_counter()
    model = model_of(case)
    op, f32, how = operator_of(model, name), is_f32(model), ""

    def outcome(status: str, code: str = "", reason: str = "") -> Outcome:
        return Outcome(name, op, status, how, code, reason, f32, round(time.perf_counter() - start, 3))

    try:
        for inputs, expected in data_sets(case):
            names = [i.name for i in model.graph.input]
            imported, specialised = import_case(model, names, inputs)
            how = "specialised" if specialised else "native" if has_statements(imported) else "folded"
            given = flatten(inputs)
            with np.errstate(all="ignore"):
                got = execute(imported, given)
            difference = compare(got, flatten(expected), case.rtol, case.atol)
            if difference:
                return outcome("near" if is_near(got, flatten(expected)) else "wrong", reason=difference)
    except Unsupported as e:
        return outcome("refused", e.code, e.message)
    except DlcError as e:
        # A coded error that is not a refusal, on a valid model: a fault of ours.
        return outcome("crash", e.code, f"{e.message} {last_frame(e.__cause__)}")
    except Exception as e:
        return outcome("crash", type(e).__name__, f"{str(e)[:300]} {last_frame(e)}")
    return outcome("pass")


def last_frame(e: BaseException | None) -> str:
    if e is None or e.__traceback__ is None:
        return ""
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"[{Path(frame.filename).name}:{frame.lineno} {frame.name}]"


EXECUTE: dict[str, Execute] = {"interpret": interpret, "compiled": compiled}


def _run(job: tuple[str, str]) -> Outcome:
    warnings.simplefilter("ignore")
    return run_case(job[0], EXECUTE[job[1]])


def run_all(names: Iterable[str], how: str = "interpret", jobs: int = 2, ledger: Any = None) -> list[Outcome]:
    """Run cases in processes of their own; the order of the result is that of `names`.

    With a `Ledger`, cases whose model, data and compiler are unchanged since they last passed are not run again.
    """
    cases = node_cases()  # made before the fork, so that all see the same data
    names = list(names)
    keys = {n: _key(ledger, n, cases[n], how) for n in names} if ledger is not None else {}
    known = {n: Outcome(**found) for n, key in keys.items() if (found := ledger.get(key)) is not None}
    work = [(n, how) for n in names if n not in known]

    def done(outcomes: Iterable[Outcome]) -> None:
        for o in outcomes:
            known[o.name] = o
            if ledger is not None and o.status in ("pass", "near", "refused"):
                ledger.put(keys[o.name], asdict(o))

    if jobs <= 1:
        done(map(_run, work))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            done(pool.map(_run, work, chunksize=8))
    return [known[n] for n in names]


def _key(ledger: Any, name: str, case: Any, how: str) -> Any:
    from ledger import digest_of, source_digest

    stages = ("frontend", "ir") if how == "interpret" else ("frontend", "ir", "passes", "codegen", "costmodel", "runtime")
    data = [leaf for inputs, outputs in data_sets(case) for leaf in flatten([inputs, outputs])]
    digest = digest_of(model_of(case).SerializeToString(deterministic=True), *data, source_digest(*stages))
    return ledger.key(f"{name} {how}", digest=digest, packages=("onnx", "numpy"))


def summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {"total": len(outcomes)}
    for o in outcomes:
        counts[o.status] = counts.get(o.status, 0) + 1
        if o.status == "pass":
            counts[f"pass {o.how}"] = counts.get(f"pass {o.how}", 0) + 1
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="run ONNX's node cases")
    parser.add_argument("--filter", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--ledger", action="store_true", help="do not run again what has not changed")
    parser.add_argument("--how", choices=sorted(EXECUTE), default="interpret")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args(argv)
    names = [n for n in node_cases() if re.search(args.filter, n)]
    kept = None
    if args.ledger:
        from ledger import Ledger

        kept = Ledger("onnx_nodes")
    outcomes = run_all(names, args.how, args.jobs, kept)
    for o in outcomes:
        if o.status in ("wrong", "crash") or args.verbose:
            print(f"{o.status:8}{o.name}: {o.code} {o.reason}")
    print(json.dumps(summary(outcomes)))
    if args.json:
        args.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    if args.table:
        sys.path.insert(0, str(Path(__file__).parent))
        from table import write_table

        write_table(args.table, outcomes, args.how)
    return 0


if __name__ == "__main__":
    sys.exit(main())
