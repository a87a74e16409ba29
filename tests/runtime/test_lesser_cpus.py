"""Artifacts on processors with fewer instructions than this one, which qemu-user emulates: they give the same bits, or refuse.

The execution engine compiles for the host whatever it is told; only a processor that lacks an instruction shows that none is left.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tests.fuzz.generate import case

import dlc
from dlc.codegen.target import host_flags, parse_target
from dlc.errors import Unsupported
from dlc.runtime import cpu
from dlc.runtime.cpuid import known_features, reported_features

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "codegen"))
from bit_layers import Layer  # noqa: E402
from coded_layers import Case  # noqa: E402

QEMU = shutil.which("qemu-x86_64")
LESSER = {"baseline": "Nehalem", "avx2": "Haswell"}
"""A processor that has what the level needs and little more."""
FUZZED = 24

TEXTS = {
    "contraction": """cascade f(X: f32[b, 37], W: f32[37, 21], B: f32[21]) -> (O, S) symbols (b in 1..) {
  Y[i:b, j:21] = sum(k:37) X[i, k] * W[k, j]
  O[i:b, j:21] = exp(tanh(Y[i, j] + B[j]))
  S[i:b] = max(j:21) O[i, j]
}""",
    "attention": """cascade f(Q: f32[2, 40, 16], K: f32[2, 150, 16], V: f32[2, 150, 16]) -> (O) {
  QK[h:2, p:40, m:150] = sum(e:16) Q[h, p, e] * K[h, m, e] where m <= 2*p + 3
  GM[h:2, p:40] = max(m:150) QK[h, p, m]
  SN[h:2, p:40, m:150] = exp(QK[h, p, m] - GM[h, p])
  SD[h:2, p:40] = sum(m:150) SN[h, p, m]
  AV[h:2, p:40, f:16] = sum(m:150) SN[h, p, m] * V[h, m, f]
  O[h:2, p:40, f:16] = AV[h, p, f] / SD[h, p]
}""",
    "bytes": """cascade f(X: u8[19, 70], W: i8[70, 33], S: f32[33]) -> (O) {
  Y[i:19, j:33]: i32 = sum(k:70) cast<i32>(X[i, k]) * cast<i32>(W[k, j])
  O[i:19, j:33] = cast<f32>(Y[i, j]) * S[j]
}""",
    "words": """cascade f(X: f32[19, 70], W: f32[70, 33]) -> (O) {
  A[i:19, k:70]: bf16 = cast<bf16>(X[i, k])
  B[k:70, j:33]: bf16 = cast<bf16>(W[k, j])
  O[i:19, j:33]: f32 = sum(k:70) cast<f32>(A[i, k]) * cast<f32>(B[k, j])
}""",
    "convolution": """cascade f(X: f32[2, 5, 13, 11], W: f32[18, 5, 3, 3], D: f32[18, 3, 3]) -> (O) {
  Y[b:2, n:18, y:7, x:6] = sum(c:5, i:3, j:3) (X[b, c, 2*y + i - 1, 2*x + j - 1] else 0.0) * W[n, c, i, j]
  O[b:2, n:18, y:7, x:6] = sum(i:3, j:3) (Y[b, n, y + i - 1, x + j - 1] else 0.0) * D[n, i, j]
}""",
}
LAYERS = {
    "codes": Case("i3", "f32", 3, 3, 70, 40, 32, zeros="u4"),
    "codes-of-bytes": Case("i5", "i8", 3, 3, 70, 40, 32),
    "codes-of-floats": Case("f6e2m3", "bf16", 5, 5, 70, 40, 32),
    "bits": Layer("b1", "b1", 2, 256, 40, 128),
    "few-bits": Layer("u2", "i3", 9, 256, 40, 128),
}


def emulated(model: str, artifact: Path, inputs: list[np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """(what the artifact gives on the emulated processor, what was printed); nothing when it failed."""
    if QEMU is None:
        pytest.skip("qemu-user is not installed (`make emulator`)")
    given, made = artifact.with_suffix(".in.npz"), artifact.with_suffix(".out.npz")
    np.savez(given, **{f"0.{k}": a for k, a in enumerate(inputs)})
    packages = [str(ROOT / "src"), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path[:0] = {packages!r}; sys.argv[1:] = {[str(artifact), str(given), str(made)]!r}; "
    code += f"import runpy; runpy.run_path({str(ROOT / 'tests/models/artifact_run.py')!r}, run_name='__main__')"
    python = str(Path(sys.executable).resolve())
    done = subprocess.run([QEMU, "-cpu", model, python, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode >= 0, f"died of signal {-done.returncode}: {done.stderr}"
    results = dict(np.load(made)) if done.returncode == 0 else {}
    return {k: v for k, v in results.items() if k.startswith("0.")}, done.stderr


def same_bits(program: object, level: str, inputs: list[np.ndarray], tmp_path: Path) -> None:
    if not host_flags().issuperset(parse_target(level).features):
        pytest.skip("the host lacks this level")
    executable = dlc.compile(program, target=level, threads=2)
    here = executable(*inputs)
    executable.save(tmp_path / "model.dlc")
    there, told = emulated(LESSER[level], tmp_path / "model.dlc", inputs)
    results = here if isinstance(here, (tuple, list)) else (here,)
    assert len(there) == len(results), told
    for n, a in enumerate(results):
        want = np.ascontiguousarray(a)
        assert there[f"0.{n}"].shape == np.shape(a) and there[f"0.{n}"].tobytes() == want.tobytes()


def inputs_of(text: str) -> list[np.ndarray]:
    from dlc.ir.parser import parse_program

    rng = np.random.default_rng(3)
    made = []
    for p in parse_program(text).params:
        shape = tuple(e.const if e.const is not None else 5 for e in p.type.shape)
        drawn = rng.integers(0, 100, shape) if p.type.dtype.is_int else rng.standard_normal(shape)
        made.append(drawn.astype(p.type.dtype.numpy))
    return made


@pytest.mark.parametrize("level", LESSER)
@pytest.mark.parametrize("name", TEXTS)
def test_the_same_bits_on_a_lesser_processor(name: str, level: str, tmp_path: Path) -> None:
    same_bits(TEXTS[name], level, inputs_of(TEXTS[name]), tmp_path)


@pytest.mark.parametrize("level", LESSER)
@pytest.mark.parametrize("name", LAYERS)
def test_codes_on_a_lesser_processor(name: str, level: str, tmp_path: Path) -> None:
    """Weights of few bits, whose kernels have each level's own ways to take them apart."""
    layer = LAYERS[name]
    assert layer.count is not None
    inputs = layer.inputs() if isinstance(layer, Case) else layer.inputs(layer.count)
    same_bits(layer.program(), level, [inputs], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("level", LESSER)
@pytest.mark.parametrize("seed", range(FUZZED))
def test_random_programs_on_a_lesser_processor(seed: int, level: str, tmp_path: Path) -> None:
    found = case(seed)
    if not found.inputs or any(a.dtype.kind == "V" for a in found.inputs):
        pytest.skip("a file of NumPy's holds no call without inputs, and no bf16")
    try:
        same_bits(found.program, level, list(found.inputs), tmp_path)
    except Unsupported:
        pytest.skip("the program is refused")


@pytest.mark.parametrize(("level", "model"), [("avx2", "Nehalem"), ("avx512", "Haswell")])
def test_a_processor_that_lacks_the_level_is_told(level: str, model: str, tmp_path: Path) -> None:
    """One error, not an illegal instruction: the kernel's list is the host's, so CPUID has to be asked."""
    if not host_flags().issuperset(parse_target(level).features):
        pytest.skip("the host lacks this level")
    dlc.compile(TEXTS["contraction"], target=level).save(tmp_path / "model.dlc")
    there, told = emulated(model, tmp_path / "model.dlc", inputs_of(TEXTS["contraction"]))
    assert not there and "error[DLC0504]" in told and ("avx512f" if level == "avx512" else "avx2") in told


def test_cpuid_agrees_with_the_kernel() -> None:
    """The kernel may hide what CPUID reports, not the other way round."""
    reported = reported_features()
    if reported is None or not cpu._listed_features():
        pytest.skip("nothing to compare")
    assert cpu._listed_features() & known_features() <= reported <= known_features()
    assert {"sse2", "sse42", "popcnt"} <= reported


@pytest.mark.parametrize(
    ("reported", "listed", "found"),
    [
        (frozenset({"avx"}), frozenset({"avx", "avx2", "erms"}), {"avx", "erms"}),
        (frozenset({"avx", "avx2"}), frozenset({"avx", "erms"}), {"avx", "erms"}),
        (frozenset({"avx"}), frozenset(), {"avx"}),
        (None, frozenset({"avx2"}), {"avx2"}),
    ],
)
def test_features_are_what_both_grant(
    reported: frozenset[str] | None, listed: frozenset[str], found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "reported_features", lambda: reported)
    monkeypatch.setattr(cpu, "_listed_features", lambda: listed)
    assert cpu.cpu_features.__wrapped__() == found
