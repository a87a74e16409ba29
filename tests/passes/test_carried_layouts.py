"""Values of branches and states of loops in the order that contractions want."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.passes.control_programs import control_program
from tests.passes.samples import assert_same_result, outputs, random_inputs

import dlc
import dlc.passes.carried_layouts as carried
from dlc.ir.einsum import Einsum
from dlc.ir.parser import parse_program
from dlc.ir.program import If, Launch, walk_statements
from dlc.ir.verify import verify
from dlc.passes.carried_layouts import CarriedLayouts
from dlc.passes.default import DEFAULT_PIPELINE
from dlc.passes.per_sample import NotPerSample, batched

GATED = """
program f(X: f32[3, 6, 6], G: bool[], N: i64[]) -> (O) {
  const S: f32[4, 3]
  const W: f32[4, 4, 3, 3]
  const V: f32[5, 4]
  A[c:4, y:6, x:6] = sum(k:3) X[k, y, x] * S[c, k]
  B[c:4, y:6, x:6] = max(A[c, y, x], 0.0)
  if G {
    C[c:4, y:6, x:6] = sum(k:4, i:3, j:3) (B[k, y + i - 1, x + j - 1] else 0.0) * W[c, k, i, j]
    D[c:4, y:6, x:6] = C[c, y, x] + B[c, y, x]
    yield (D)
  } else {
    yield (B)
  } -> (R)
  loop s < N carry (H = R) {
    E[c:4, y:6, x:6] = sum(k:4, i:3, j:3) (H[k, y + i - 1, x + j - 1] else 0.0) * W[c, k, i, j]
    yield (E)
  } -> (T) collect ()
  O[o:5, y:6, x:6] = sum(c:4) T[c, y, x] * V[o, c]
}
"""


def with_data(text: str) -> Any:
    program = parse_program(text)
    rng = np.random.default_rng(0)
    for c in program.consts:
        program.data[c.name] = rng.standard_normal([e.const for e in c.type.shape]).astype(np.float32)  # type: ignore[index]
    return program


def test_carried_layouts_as_text(golden: Callable[[str], None]) -> None:
    before = with_data(GATED)
    after = CarriedLayouts().apply(before)
    assert_same_result(before, after, {}, rtol=1e-5)
    golden(str(after))


def test_no_kernel_of_a_gated_block_turns_anything() -> None:
    """What an arm gives is stored as the next contraction reads it: the compiled program has no copy of it."""
    assert "carried-layouts,winograd" in DEFAULT_PIPELINE
    program = with_data(GATED)
    exe = dlc.compile(program, threads=1)
    for n in range(3):
        arrays = random_inputs(program, {}, n)
        np.testing.assert_allclose(exe(*arrays), outputs(program, arrays)[0], rtol=1e-4, atol=1e-3)
    from dlc.compiler import run_passes

    for s in walk_statements(run_passes(program).body):
        if isinstance(s, If):
            assert not s.orelse.body and isinstance(s.then.body[-1], Launch)


@pytest.mark.parametrize(
    "change",
    [
        ("-> (O) {", "-> (O, R) {"),  # a result has its own order
        ("(R)\n", "(R)\n  (P: f32[4, 6, 2], Q: i64[4, 6, 2]) = library topk(R) {axis = 2, largest = true}\n"),
        ("yield (B)\n", "Y[c:4, y:6, x:6] = X[0, y, x] * 2.0\n  Z[c:4, y:6, x:6]: f32{1, 2, 0} = Y[c, y, x]\n  yield (Z)\n"),
    ],
    ids=["result", "library operation", "layout asked for"],
)
def test_what_is_needed_as_it_is_stays(change: tuple[str, str]) -> None:
    before = with_data(GATED.replace(*change))
    after = CarriedLayouts().apply(before)
    branch = next(s for s in after.body.body if isinstance(s, If))
    (made,) = (s for s in walk_statements(branch.then) if isinstance(s, Einsum) and s.out == branch.then.yields[0])
    assert [r.name for r in made.ranks] == ["c", "y", "x"]
    assert_same_result(before, after, {}, rtol=1e-5)


def test_an_input_that_an_arm_passes_on_is_copied_there() -> None:
    text = GATED.replace("X: f32[3, 6, 6]", "X: f32[3, 6, 6], P: f32[4, 6, 6]").replace("yield (B)", "yield (P)")
    before = with_data(text)
    after = CarriedLayouts().apply(before)
    branch = next(s for s in after.body.body if isinstance(s, If))
    (copy,) = branch.orelse.body
    assert isinstance(copy, Einsum) and copy.is_view and branch.orelse.yields == (copy.out,)
    assert_same_result(before, after, {}, rtol=1e-5)


def test_no_contraction_no_turn() -> None:
    before = with_data(GATED.replace(" * W[c, k, i, j]", "").replace(" * V[o, c]", "").replace(" * S[c, k]", ""))
    assert CarriedLayouts().apply(before) == before


def test_any_turn_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random control over tensors of rank 3, turned at random."""
    monkeypatch.setattr(carried, "_wanted", _at_random)
    turned = 0
    for seed in range(60):
        program = control_program(seed)
        try:
            for symbol in ("m", "n"):
                program = batched(program, ["X", "Y"], symbol, 1 << 30, keep=True)
        except NotPerSample:
            continue
        after = CarriedLayouts().apply(program)
        turned += after != program
        verify(after)
        for n in range(2):
            arrays = random_inputs(program, {"m": 2, "n": 3}, n)
            for a, b in zip(outputs(program, arrays), outputs(after, arrays), strict=True):
                np.testing.assert_array_equal(b, a)
    assert turned > 10


def _at_random(step: Einsum, weights: set[str]) -> Iterator[tuple[str, int]]:
    del weights
    for name, rank in ((step.out, len(step.ranks)), *((a.tensor, len(a.index)) for a in step.accesses())):
        if rank > 1:
            yield from [(name, sum(map(ord, name)) % rank)] * 3


def test_a_gated_network_of_convolutions() -> None:
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, width: int, limit: float) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.limit = limit

        def forward(self, x: Any) -> Any:
            return torch.cond(x.mean() > self.limit, lambda x: torch.relu(x + self.b(torch.relu(self.a(x)))), lambda x: x * 1.0, (x,))

    torch.manual_seed(0)
    blocks = [Block(16, limit) for limit in (-9.0, 9.0, 0.1, 0.3)]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), *blocks, torch.nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(2, 3, 12, 12)
    exe = dlc.compile(net, (x,), threads=1)
    for scale in (0.1, 1.0, 5.0):
        with torch.no_grad():
            torch.testing.assert_close(exe(scale * x), net(scale * x), rtol=1e-4, atol=1e-4)
