"""A batch, each sample on its own path, against the program run for each sample alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fuzz.generate import case
from tests.fuzz.pieces import PIECES
from tests.passes.control_programs import control_program
from tests.passes.samples import outputs, random_inputs

import dlc
from dlc.errors import DlcError
from dlc.ir.errors import RunTimeExtent
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import If, Library, Program, walk_statements
from dlc.ir.verify import verify
from dlc.passes.per_sample import NoSamples, NotPerSample, PerSample, batched

Array = np.ndarray[Any, Any]
Run = Callable[[Sequence[Array]], Sequence[Array]]

EARLY_EXIT = """
program f(X: f32[1, 6], G: f32[6], U: f32[6, 6]) -> (R, K) {
  A[i:1, d:6] = max(X[i, d], 0.0)
  C[] = X[0, 0] > 0.0
  if C {
    one[i:1] = 1
    yield (A, one)
  } else {
    B[i:1, d:6] = sum(k:6) A[i, k] * U[k, d]
    D[] = X[0, 1] > 0.0
    if D {
      two[i:1] = 2
      yield (B, two)
    } else {
      E[i:1, d:6] = sum(k:6) B[i, k] * U[d, k] * G[k]
      three[i:1] = 3
      yield (E, three)
    } -> (F, n)
    yield (F, n)
  } -> (R, K)
}
"""
HALTING = """
program f(X: f32[1, 6], U: f32[6, 6], N: i64[1]) -> (R, S) {
  go[] = X[0, 0] < 1.0
  steps[] = 0
  loop s < N while go carry (H = X, T = steps) {
    H1[i:1, d:6] = sum(k:6) H[i, k] * U[k, d]
    T1[] = T[] + 1
    more[] = H1[0, 0] < 1.0
    yield (more, H1, T1)
  } -> (R, S) collect ()
}
"""


def test_a_batched_branch_as_text(golden: Callable[[str], None]) -> None:
    after = PerSample().apply(parse_program(EARLY_EXIT))
    verify(after)
    assert not any(isinstance(s, If) for s in walk_statements(after.body))
    golden(str(after))


def test_a_batched_loop_as_text(golden: Callable[[str], None]) -> None:
    after = PerSample().apply(parse_program(HALTING))
    verify(after)
    golden(str(after))


@pytest.mark.parametrize("text", [EARLY_EXIT, HALTING], ids=["early exit", "halting"])
@pytest.mark.parametrize("size", [0, 1, 2, 17])
def test_compiled_for_a_batch(text: str, size: int) -> None:
    before = parse_program(text)
    exe = dlc.compile(before, per_sample=True, threads=1)
    shared = random_inputs(before, {}, 99)
    each = [random_inputs(before, {}, n) for n in range(size)]
    ones = [p.type.rank > 0 and p.type.shape[0].const == 1 for p in before.params]
    args = [
        np.concatenate([e[k] for e in each] or [shared[k][:0]]) if one else shared[k] for k, one in enumerate(ones)
    ]
    got = exe(*args)
    for n, own in enumerate(each):
        want = outputs(before, [a if one else s for a, s, one in zip(own, shared, ones, strict=True)])
        for whole, sample in zip(got, want, strict=True):
            sample = sample[0] if sample.ndim and sample.shape[0] == 1 else sample
            np.testing.assert_allclose(whole[n], sample, rtol=1e-4, atol=1e-4)
    assert all(len(whole) == size for whole in got)


def stacked(program: Program, samples: Sequence[str], size: int, seed: int) -> tuple[list[list[Array]], list[Array]]:
    """The inputs of each sample, and those of the batch."""
    shared = random_inputs(program, {}, 1000 + seed)
    names = [p.name for p in program.params]
    each = [random_inputs(program, {}, seed + n) for n in range(size)]
    own = [[a if n in samples else s for n, a, s in zip(names, e, shared, strict=True)] for e in each]
    batch = [
        (np.stack([e[k] for e in own]) if own else np.zeros((0, *shared[k].shape), shared[k].dtype))
        if n in samples
        else shared[k]
        for k, n in enumerate(names)
    ]
    return own, batch


def agree(program: Program, after: Program, samples: Sequence[str], run: Run | None = None, tolerance: float = 0.0) -> None:
    for size in (0, 1, 5):
        own, batch = stacked(program, samples, size, 7)
        got = run(batch) if run is not None else outputs(after, batch)
        for n, arrays in enumerate(own):
            for whole, sample in zip(got, outputs(program, arrays), strict=True):
                if tolerance:
                    np.testing.assert_allclose(whole[n], sample, rtol=tolerance, atol=tolerance)
                else:
                    np.testing.assert_array_equal(whole[n], sample)


@pytest.mark.parametrize("cheap", [0, 16, 1 << 30], ids=["gathered", "as it pays", "for all"])
def test_random_control_per_sample(cheap: int) -> None:
    """Nested branches and loops, with all inputs of the sample or some of them shared; bits are equal."""
    ways: Counter[str] = Counter()
    for seed in range(40):
        program = control_program(seed)
        samples = [p.name for n, p in enumerate(program.params) if (seed >> n) % 3] or ["X"]
        after = batched(program, samples, cheap=cheap, keep=True)
        verify(after)
        for s in walk_statements(after.body):
            ways["gathered" if isinstance(s, Library) else type(s).__name__] += 1
        agree(program, after, samples)
    assert ways["Loop"] > 20 and (ways["gathered"] > 40 if cheap == 0 else ways["gathered"] > 0)


def test_random_control_per_sample_compiled() -> None:
    for seed in range(5):
        program = control_program(seed)
        samples = [p.name for p in program.params]
        after = batched(program, samples, cheap=0, keep=True)
        exe = dlc.compile(after, threads=1)

        def run(arrays: Sequence[Array], exe: Any = exe) -> Sequence[Array]:
            got = exe(*arrays)
            return got if isinstance(got, tuple) else (got,)

        agree(program, after, samples, run, 1e-4)


def _verifies(program: Program) -> bool:
    try:
        verify(program)
    except DlcError:
        return False
    return True


def test_every_construct_for_a_batch() -> None:
    """The fuzzer's programs; what binds an extent per sample is refused, the rest has the bits of each sample's run."""
    done: Counter[str] = Counter()
    for seed in range(150):
        c = case(seed, PIECES)
        program = c.program
        names = [p.name for p in program.params]
        if not names or not _verifies(program):
            continue
        try:
            after = batched(program, names, cheap=0, keep=True)
        except NotPerSample:
            done["refused"] += 1
            assert {"bind", "loop:collect"} & set(c.tags) or any(t.startswith("library:") for t in c.tags), c.tags
            continue
        verify(after)
        try:
            want = run_program(program, c.inputs)
        except DlcError:
            continue  # an index out of range: an error for the batch, too
        got = run_program(after, [np.stack([a, a]) for a in c.inputs])
        for a, b in zip(want, got, strict=True):
            wide = a.dtype if a.dtype.kind != "V" else np.dtype(np.float64)  # NumPy does not know bf16's NaN
            np.testing.assert_array_equal(b[1].astype(wide), a.astype(wide))
        done.update(c.tags)
        done["done"] += 1
    assert done["done"] > 100 and done["scan"] > 5 and done["scatter"] > 3 and done["if"] > 2


def test_what_all_samples_share_is_computed_once() -> None:
    before = parse_program(
        """
        program f(X: f32[1, 4], W: f32[4, 4], C: bool[]) -> (R) {
          V[i:4, j:4] = exp(W[i, j])
          if C {
            A[i:1, j:4] = sum(k:4) X[i, k] * V[k, j]
            yield (A)
          } else {
            Z[i:1, j:4] = V[i, j]
            yield (Z)
          } -> (R)
        }
        """
    )
    after = PerSample().apply(before)
    verify(after)
    assert "V[i:4, j:4]: f32 = exp(W[i, j])" in str(after)
    assert sum(isinstance(s, If) for s in walk_statements(after.body)) == 1  # one decision for all
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal((4, 4)).astype(np.float32)
    for c in (True, False):
        (got,) = outputs(after, [x, w, np.asarray(c)])
        want = [outputs(before, [row[None], w, np.asarray(c)])[0][0] for row in x]
        np.testing.assert_array_equal(got, np.stack(want))


def test_what_no_sample_gets_to_does_not_fail() -> None:
    """A read at a shared index, out of range where no sample takes the arm, and a loop that would not end there."""
    before = parse_program(
        """
        program f(X: f32[1, 4], T: f32[3], K: i64[]) -> (R) {
          C[] = X[0, 0] > 0.0
          if C {
            row[] = T[K[]]
            yes[] = T[0] < 10.0
            zero[] = 0.0
            loop s while yes carry (h = zero) {
              h1[] = h[] + row[]
              more[] = h1[] < 2.0
              yield (more, h1)
            } -> (e) collect ()
            A[i:1, j:4] = X[i, j] + e[]
            yield (A)
          } else {
            yield (X)
          } -> (R)
        }
        """
    )
    after = PerSample(cheap=0).apply(before)
    t = np.zeros(3, np.float32)  # adding it up never gets to 2
    x = -np.ones((5, 4), np.float32)
    for k in (7, 1):
        (got,) = outputs(after, [x, t, np.asarray(k)])
        np.testing.assert_array_equal(got, x)
        np.testing.assert_array_equal(dlc.compile(after, threads=1)(x, t, np.asarray(k)), x)
    x[3] = 1.0
    with pytest.raises(DlcError, match="reads index 7"):
        outputs(after, [x, t, np.asarray(7)])
    (got,) = outputs(after, [x, t + 1, np.asarray(1)])
    np.testing.assert_array_equal(got[3], 3.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(at: i64[2, k]) = library nonzero(X) {} binds (k in 0..)\n  R[i:1] = 1.0", "'nonzero' .* another size for each sample"),
        ("n[] = cast<i64>(X[0, 0])\n  bind k in 0..9 = n\n  R[i:1] = sum(j:k) 1.0", "the extent 'k' .* each sample has its own"),
        (
            "go[] = X[0, 0] > 0.0\n  loop s while go carry (H = X) {\n  H1[i:1, j:4] = H[i, j] * 0.5\n  m[] = H1[0, 0] > 0.1\n"
            "  yield (m, H1, H1)\n  } -> (R) collect (Y) upto y in 0..",
            "a loop that collects .* its own number of steps",
        ),
    ],
)  # fmt: skip
def test_refused(body: str, message: str) -> None:
    program = parse_program(f"program f(X: f32[1, 4]) -> (R) {{\n  {body}\n}}")
    with pytest.raises(NotPerSample, match=message) as raised:
        PerSample().apply(program)
    assert raised.value.code == "DLC0310" and raised.value.exit_code == 3


def test_a_program_without_samples_is_refused() -> None:
    with pytest.raises(NoSamples, match=r"no input of 'f' has a leading dimension of 1.*X: f32\[4\]"):
        PerSample().apply(parse_program("program f(X: f32[4]) -> (R) {\n  R[i:4] = X[i]\n}"))


def test_more_than_is_there_is_refused() -> None:
    """Buffers are made for what stands as `below`, so that more is an error in both the interpreter and native code."""
    text = """
    program f(X: f32[4]) -> (R) {
      (at: i64[1, k]) = library nonzero(X) {} binds (k in 0.. below 3)
      R[i:k] = X[at[0, i]]
    }
    """
    program, exe = parse_program(text), dlc.compile(parse_program(text), threads=1)
    few, many = np.array([0, 1, 2, 0], np.float32), np.array([0, 1, 2, 3], np.float32)
    np.testing.assert_array_equal(exe(few), [1, 2])
    with pytest.raises(RunTimeExtent):
        outputs(program, [many])
    with pytest.raises(DlcError, match="below 3"):
        exe(many)


def test_work_of_one_arm_is_in_it_before_samples_are_routed(tmp_path: Path) -> None:
    program = parse_program(
        """
        program f(X: f32[1, 4], W: f32[4, 4]) -> (R) {
          C[] = X[0, 0] > 0.0
          A[i:1, j:4] = sum(k:4) X[i, k] * W[k, j]
          B[i:1, j:4] = sum(k:4) A[i, k] * W[j, k]
          if C {
            D[i:1, j:4] = exp(B[i, j])
            yield (D)
          } else {
            yield (X)
          } -> (R)
        }
        """
    )
    dlc.compile(program, per_sample=True, threads=1, dump_dir=tmp_path)
    text = (tmp_path / "000-input.ein").read_text()
    assert "A[n:some, " in text and "B[n:some, " in text


def test_a_torch_module_per_sample() -> None:
    torch = pytest.importorskip("torch")

    class Exit(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.first(x))
            return torch.cond(h.max() > 1.0, lambda h: h + 1.0, lambda h: torch.relu(self.rest(h)) @ h.T * h, (h,))

    torch.manual_seed(0)
    model, batch = Exit().eval(), torch.randn(9, 8)
    exe = dlc.compile(model, (batch[:1],), per_sample=True, threads=1)
    with torch.no_grad():
        want = torch.cat([model(x[None]) for x in batch])
        exits = [bool(torch.relu(model.first(x)).max() > 1.0) for x in batch]
    assert 0 < sum(exits) < 9
    torch.testing.assert_close(exe(batch), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exe(batch[:0]), want[:0])


def test_a_state_is_not_shared() -> None:
    program = parse_program("program f(X: f32[1, 4]) -> (R) {\n  R[i:1, j:4] = X[i, j] + 1.0\n}")
    from dlc.importing import of_program

    with pytest.raises(NotPerSample, match="'cache' .* in place"):
        dlc.compile(replace(of_program(program), mutated=(("cache", 0),)), per_sample=True)


