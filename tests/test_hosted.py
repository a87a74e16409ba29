"""One host program, other compilers for its pieces: results against the interpreter and the model, refusals, choice."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.fuzz.generate import case
from tests.passes.control_programs import control_program
from tests.passes.samples import outputs, random_inputs

import dlc
from dlc.errors import DlcError, MissingPackage
from dlc.importing import of_program
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Cascade, Launch, Program, walk_statements
from dlc.ir.verify import verify
from dlc.passes.cascades import Cascades

torch = pytest.importorskip("torch")

from dlc.cascade_torch import NotInTorch  # noqa: E402  (needs torch)
from dlc.hosted import BACKENDS, Hosted, UnknownBackend, hosted  # noqa: E402

TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2}


def tuple_of(found: Any) -> Sequence[Any]:
    return found if isinstance(found, tuple) else (found,)


def near(got: Sequence[Any], want: Sequence[Any], tolerance: float = 1e-4) -> None:
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        bound = TOLERANCE.get(b.dtype.name, tolerance)
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=bound, atol=bound, equal_nan=True)


def test_straight_runs_are_cascades() -> None:
    before = parse_program(
        """
        program f(X: f32[4], Y: f32[4], C: bool[]) -> (R) {
          A[i:4] = exp(X[i])
          B[i:4] = A[i] + Y[i]
          if C {
            D[k:4] = exp(B[k])
            E[k:4] = D[k] + X[k]
            yield (E)
          } else {
            F[i:4] = B[i] * 2.0
            yield (F)
          } -> (G)
          scan t:3 carry (h = G) {
            u[i:4] = h[i] * 0.5 + cast<f32>(t)
            yield (u)
          } -> (S)
          R[i:4] = S[i] + G[i]
        }
        """
    )
    after = Cascades().apply(before)
    verify(after)
    launches = [s for s in walk_statements(after.body) if isinstance(s, Launch)]
    assert len(launches) == 4 and launches[0].kernel == launches[1].kernel  # equal cascades are one
    assert len(after.kernels) == 3
    for n in range(3):
        arrays = random_inputs(before, {}, n)
        np.testing.assert_array_equal(outputs(before, arrays)[0], outputs(after, arrays)[0])


def test_random_control_through_torch() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(15):
        program = control_program(seed)
        kinds.update(type(s).__name__ for s in walk_statements(program.body))
        exe = hosted(of_program(program), "eager", 1)
        for n in range(2):
            arrays = random_inputs(program, {}, n)
            near(tuple_of(exe(*arrays)), outputs(program, arrays))
    assert kinds["If"] > 5 and kinds["Loop"] > 5


def test_every_construct_through_torch() -> None:
    """The fuzzer's programs: most are covered, the rest is refused, and an index out of range is the error that it is."""
    done: Counter[str] = Counter()
    for seed in range(120):
        c = case(seed)
        try:
            want: Sequence[Any] | None = run_program(c.program, c.inputs)
        except DlcError:
            want = None
        try:
            found = tuple_of(hosted(of_program(c.program), "eager", 1)(*c.inputs))
        except NotInTorch as error:
            done["refused"] += 1
            assert error.exit_code == 3 and "'" in error.message
            continue
        except DlcError:
            done["same error" if want is None else "unproven"] += 1
            continue
        assert want is not None, seed
        with np.errstate(all="ignore"):
            near(found, want, 2e-3)
        done["done"] += 1
        done.update(c.tags)
    assert done["done"] > 70 and done["refused"] < 40 and done["unproven"] <= 1
    assert min(done[t] for t in ("gather", "contraction", "conv", "scan", "scatter")) > 2


class Exit(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A convolution, and another one unless it is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.rest = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.stem(x))
        y = self.head(h.mean((2, 3)))
        sure = torch.softmax(y, -1).max() > 0.3
        return torch.cond(sure, lambda h, y: y * 0.5, lambda h, y: self.head(self.rest(h).amax((2, 3))) + y, (h, y))


@pytest.fixture(scope="module")
def exits() -> tuple[Any, list[Any], list[Any]]:
    torch.manual_seed(0)
    model = Exit().eval()
    inputs = [torch.randn(1, 3, 12, 12) * scale for scale in (0.1, 1.0, 4.0, 9.0)]
    with torch.no_grad():
        return model, inputs, [model(x) for x in inputs]


@pytest.mark.parametrize("backend", ["dlc", "eager", "inductor", "onnxruntime", "tvm"])
def test_each_back_end_runs_the_pieces(backend: str, exits: tuple[Any, list[Any], list[Any]]) -> None:
    package = {"onnxruntime": "onnxruntime", "tvm": "tvm"}.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model, inputs, want = exits
    exe = dlc.compile(model, (inputs[0],), backend=lambda _: backend, threads=1)
    assert isinstance(exe, Hosted)
    for x, y in zip(inputs, want, strict=True):
        torch.testing.assert_close(exe(x), y, rtol=1e-4, atol=1e-4)
    ran = [p.calls for p in exe.pieces.values()]
    assert len(ran) == 3 and max(ran) == 4 and 0 < min(ran) < 4, "both arms are taken"
    assert all(p.backend == backend for p in exe.pieces.values()) and backend in exe.report()


def test_a_back_end_for_each_piece(exits: tuple[Any, list[Any], list[Any]]) -> None:
    model, inputs, want = exits

    def choose(cascade: Cascade) -> str:
        return "dlc" if any(s.reduce is not None for s in cascade.steps if not hasattr(s, "carries")) else "eager"

    exe = dlc.compile(model, (inputs[0],), backend=choose, threads=1)
    assert isinstance(exe, Hosted)
    assert {p.backend for p in exe.pieces.values()} == {"dlc", "eager"}
    for x, y in zip(inputs, want, strict=True):
        torch.testing.assert_close(exe(x), y, rtol=1e-4, atol=1e-4)


def test_an_attention_layer_through_torch() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 7, 16)
    exe = dlc.compile(layer, (x,), backend="eager", threads=1)
    with torch.no_grad():
        torch.testing.assert_close(exe(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_batch_per_sample_through_torch(exits: tuple[Any, list[Any], list[Any]]) -> None:
    model, inputs, want = exits
    exe = dlc.compile(model, (inputs[0],), backend="eager", per_sample=True, threads=1)
    torch.testing.assert_close(exe(torch.cat(inputs)), torch.cat(want), rtol=1e-4, atol=1e-4)
    assert exe(torch.cat(inputs)[:0]).shape == (0, 5)


def of(body: str, head: str = "X: f32[4], I: i64[2]") -> Program:
    return parse_program(f"program f({head}) -> (R) {{\n  {body}\n}}")


def test_an_index_out_of_range_is_an_error() -> None:
    exe = hosted(of_program(of("R[k:2] = X[I[k]]")), "eager", 1)
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(exe(x, np.array([3, 0])), [3, 0])
    for wrong in ([4, 0], [0, -1]):
        with pytest.raises(DlcError, match=r"reads index (4|-1)"):
            exe(x, np.array(wrong))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("R[i:4] = nextafter(X[i], 0.0)", "of the operator 'nextafter'"),
        ("R[k:2]: i32 = cast<i32, wrap>(X[I[k]])", "with wrap-around"),
    ],
)
def test_what_torch_does_not_have_is_refused_by_name(body: str, reason: str) -> None:
    with pytest.raises(NotInTorch, match=rf"backend='eager' because .*{reason}") as raised:
        hosted(of_program(of(body)), "eager", 1)
    assert raised.value.code == "DLC0690" and "<text>:2:3" in str(raised.value)


def test_an_unknown_back_end() -> None:
    with pytest.raises(UnknownBackend, match="no back end 'xla'") as raised:
        dlc.compile(of("R[k:2] = X[I[k]]"), backend="xla")
    assert all(name in (raised.value.help or "") for name in BACKENDS)


def test_a_back_end_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "tvm" else there(n, *a))
    with pytest.raises(MissingPackage, match="backend='tvm' needs the package 'tvm'"):
        dlc.compile(of("R[k:2] = X[I[k]]"), backend="tvm")


