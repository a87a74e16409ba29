"""`dlc.compile` and `dlc.load`: dispatch, reports, caches, saved programs in a process that has NumPy only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc import compiler
from dlc.codegen.target import BASELINE
from dlc.errors import DlcError
from dlc.ir.parser import parse_program

sys.path.insert(0, str(Path(__file__).parent / "codegen"))
from scalar_lower import lower

TEXT = """
kernel over (i, j) mm(A: f32[m, k], B: f32[k, n]) -> (C) symbols (m in 0.., k in 0.., n in 0..) {
  C[i:m, j:n]: f32 = sum(e:k) A[i, e] * B[e, j]
}
program matmul(A: f32[m, k], B: f32[k, n]) -> (C) symbols (m in 0.., k in 0.., n in 0..) {
  (C) = launch mm(A, B)
}
"""


def build(**options: object) -> dlc.Executable:
    return compiler.compile_program(parse_program(TEXT), BASELINE, lower=lower, **options)


def test_symbolic_program_in_a_process_with_numpy_only(tmp_path: Path) -> None:
    exe = build()
    exe.save(tmp_path / "m.dlc")
    code = f"""
import sys
for name in ("torch", "onnx", "mlir", "llvm", "lark", "ml_dtypes"):
    sys.modules[name] = None
import numpy as np, dlc
exe = dlc.load({str(tmp_path / "m.dlc")!r})
for m, k, n in ((3, 4, 5), (1, 1, 1), (0, 3, 2), (33, 65, 17), (2, 0, 3)):
    a, b = np.random.rand(m, k).astype("f4"), np.random.rand(k, n).astype("f4")
    np.testing.assert_allclose(exe(a, b), a @ b, rtol=1e-5)
assert not {{"dlc.codegen", "dlc.passes", "dlc.ir", "dlc.frontend"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr


def test_report_and_cache(tmp_path: Path) -> None:
    from dlc.runtime.cache import KernelCache

    first = build(cache=KernelCache(tmp_path)).compile_report
    second = build(cache=KernelCache(tmp_path)).compile_report
    assert (first.hits, first.misses, second.hits, second.misses) == (0, 1, 1, 0)
    assert second.distinct == second.launches == 1 and second.object_bytes > 0
    assert "1 launches of 1 kernels, 1 from the cache" in str(second)


def test_equal_kernels_are_compiled_once() -> None:
    square = "(A: f32[m, k], B: f32[k, k]) -> (C) symbols (m in 0.., k in 0..)"
    body = "{ C[i:m, j:k]: f32 = sum(e:k) A[i, e] * B[e, j] }"
    text = f"""
kernel over (i, j) one{square} {body}
kernel over (i, j) other{square} {body}
program twice{square} {{
  (D) = launch one(A, B)
  (C) = launch other(D, B)
}}
"""
    report = compiler.compile_program(parse_program(text), BASELINE, lower=lower).compile_report
    assert (report.kernels, report.distinct, report.launches) == (2, 1, 2)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (3, "DLC0611"),
        ("nothing.onnx", "DLC0612"),
        ("model.txt", "DLC0611"),
        ("model.dlc", "DLC0611"),
        ("program p( {\n}", "DLC0100"),
    ],
)
def test_what_is_no_model_is_refused(model: object, code: str) -> None:
    with pytest.raises(DlcError, match=code):
        dlc.compile(model)


def test_bad_options_are_refused() -> None:
    with pytest.raises(DlcError, match="DLC0610"):
        dlc.compile(TEXT, accuracy="exact")
    with pytest.raises(DlcError, match="DLC0460"):
        dlc.compile(TEXT, target="arm")
    with pytest.raises(DlcError, match="DLC0301"):
        dlc.compile(TEXT, passes="no-such-pass")


def test_constants_are_packed_aligned_and_unused_ones_dropped() -> None:
    text = """
kernel over (i) add3(a: f32[3], b: f32[3], c: f32[3]) -> (y) { y[i:3]: f32 = a[i] + b[i] + c[i] }
program p(x: f32[3]) -> (y) {
  const u: f32[3]
  const v: f32[3]
  const w: f32[3]
  (y) = launch add3(x, v, w)
}
"""
    from dataclasses import replace

    data = {name: np.float32([1, 2, 3]) * (i + 1) for i, name in enumerate("uvw")}
    program = replace(parse_program(text), data=data)
    exe = compiler.compile_program(program, BASELINE, lower=lower)
    items = exe.manifest["constants"]["items"]
    assert [(i["name"], i["offset"], i["bytes"]) for i in items] == [("v", 0, 12), ("w", 64, 12)]
    np.testing.assert_array_equal(exe(np.zeros(3, np.float32)), np.float32([5, 10, 15]))
    missing = replace(program, data={})
    with pytest.raises(DlcError, match="DLC0614"):
        compiler.compile_program(missing, BASELINE, lower=lower)


def test_dump_has_every_level(tmp_path: Path) -> None:
    from dlc.dump import Dump

    with Dump(tmp_path) as dump:
        compiler.compile_program(parse_program(TEXT), BASELINE, lower=lower, dump=dump)
    names = {p.name for p in (tmp_path / "kernels").iterdir()}
    assert {"mm.ein", "mm.tile", "mm.mlir", "mm.ll", "mm.s", "dlc_main.mlir"} <= names
    assert (tmp_path / "memory.json").exists() and (tmp_path / "index.html").exists()
