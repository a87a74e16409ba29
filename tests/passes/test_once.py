"""Work done once for equal steps and equal runs: the same programs come out as when each is looked at anew."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.passes.control_programs import control_program
from tests.passes.test_inline_pointwise import CONSUMERS, PRODUCERS

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Apply
from dlc.ir.forms import _SHARED, form
from dlc.ir.parser import parse_program
from dlc.ir.program import Program, walk_statements
from dlc.passes import fuse
from dlc.passes.default import DEFAULT_PIPELINE
from dlc.passes.fuse import Fuse
from dlc.passes.inline_pointwise import InlinePointwise
from dlc.passes.once import OncePerForm
from dlc.passes.pipeline import Pipeline
from dlc.passes.registry import passes
from dlc.passes.simplify_indices import SimplifyIndices

FIRST = {name: PRODUCERS[name] for name in ("view", "pad", "constant", "cheap", "two reads", "dear")}
THEN = [name for name in CONSUMERS if name not in ("same order", "twice", "guarded", "piece")]
PASSES = {"inline": InlinePointwise(), "simplify": SimplifyIndices(), "fuse": Fuse()}


class Nothing(dict[Any, Any]):
    """A table in which nothing is ever found."""

    def __contains__(self, key: object) -> bool:
        return False


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function with every step and run looked at anew."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(OncePerForm, "__call__", lambda _, step, given, change, more=(): change(step))
            made = fuse._Fusion.__init__

            def without(self: Any, *args: Any) -> None:
                made(self, *args)
                self.parted = Nothing()

            patch.setattr(fuse._Fusion, "__init__", without)
            return function()

    return call


def steps(text: str) -> list[Einsum]:
    return [s for s in parse_program(text).body.body if isinstance(s, Einsum)]


# --- the helper itself ---


def test_a_change_is_made_once_per_form_and_per_what_it_depends_on() -> None:
    a, b, c = steps(
        "program p(X: f32[4], Y: f32[4]) -> (A, B, C) {\n"
        "  A[i:4] = X[i] * Y[i]\n  B[i:4] = Y[i] * A[i]\n  C[i:4] = X[i] * X[i]\n}"
    )
    once, seen = OncePerForm(), []

    def turned(step: Einsum) -> Einsum:
        seen.append(step.out)
        (product,) = step.exprs
        assert isinstance(product, Apply)
        return replace(step, exprs=(Apply("add", product.args[::-1]),))

    assert str(once(a, 1, turned)) == "A[i:4]: f32 = Y[i] + X[i]"
    second = once(b, 1, turned)
    assert str(second) == "B[i:4]: f32 = A[i] + Y[i]" and second.loc == b.loc
    assert form(second).step is form(once(a, 1, turned)).step, "what was made from a form has its form at once"
    assert str(once(c, 1, turned)) == "C[i:4]: f32 = X[i] + X[i]"
    assert seen == ["A", "C"]
    once(b, 2, turned)
    assert seen == ["A", "C", "B"]


def test_what_stays_as_it_is_is_the_same_object() -> None:
    a, b = steps("program p(X: f32[4], Y: f32[4]) -> (A, B) {\n  A[i:4] = exp(X[i])\n  B[i:4] = exp(Y[i])\n}")
    once, seen = OncePerForm(), []

    def unchanged(step: Einsum) -> Einsum:
        seen.append(step)
        return step

    assert once(a, None, unchanged) is a and once(b, None, unchanged) is b and len(seen) == 1


# --- the passes that use it ---

SECOND = {
    "equal": "O, O2",
    "its producer is read once more": "O, O2, Z",
    "its producer is a result": "O, O2, P2",
    "an operand lies in another order": "O, O2",
}


def twins(pair: str, second: str, kinds: tuple[str, str] = ("f32", "f32")) -> Program:
    """A pair of steps, a branch, and the same over other tensors; the second one has something that the first has not."""
    twin = pair.replace("P[", "P2[").replace("O[", "O2[").replace("Y[", "Y2[")
    order = "{1, 0}" if second == "an operand lies in another order" else ""
    return parse_program(
        f"program p(X: f32[m, n], Y: {kinds[0]}[n, m], Y2: {kinds[1]}[n, m]{order}, G: i64[n], C: bool[]) -> ({SECOND[second]}, B) "
        f"symbols (m in 1.., n in 4..) {{\n  {pair}\n  if C {{\n    yield (X)\n  }} else {{\n    yield (X)\n  }} -> (B)\n  {twin}\n"
        + ("  Z[i:n, j:m]: f32 = P2[i, j] * 5.0\n" if second.endswith("more") else "")
        + "}"
    )


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("consumer", THEN)
def test_a_pair_that_occurs_twice_is_treated_as_if_it_were_alone(
    name: str, second: str, consumer: str, anew: Callable[..., Any]
) -> None:
    for producer in FIRST:
        program = twins(f"{FIRST[producer]}\n  {CONSUMERS[consumer]}", second)
        got, want = PASSES[name].apply(program), anew(lambda p=program: PASSES[name].apply(p))
        assert got == want, producer


NARROWING = {  # the second pair reads a wider number, which is to be rounded before it is multiplied
    "f16, f32": ("f16", "f32"),
    "f64, f16": ("f64", "f16"),
}


@pytest.mark.parametrize("kinds", NARROWING.values(), ids=NARROWING)
def test_pairs_whose_operands_have_other_types_are_different_pairs(kinds: tuple[str, str], anew: Callable[..., Any]) -> None:
    product = "P[i:n, j:m]: f32 = cast<f32>(Y[i, j])\n  O[i:n, k:n]: f32 = sum(j:m) P[i, j] * X[j, k]"
    program = twins(product, "equal", kinds)
    for step in PASSES.values():
        assert step.apply(program) == anew(lambda step=step: step.apply(program))


def test_a_sum_rounded_to_a_smaller_type_differs_from_other_numbers_so_rounded(anew: Callable[..., Any]) -> None:
    program = parse_program(
        "program p(X: f32[4, 8], Y: f32[4], W: f32[4]) -> (O, O2) {\n"
        "  S[i:4] = sum(k:8) X[i, k]\n  P[i:4]: f16 = cast<f16>(Y[i])\n  O[i:4]: f16 = P[i] + cast<f16>(W[i])\n"
        "  Q[i:4]: f16 = cast<f16>(S[i])\n  O2[i:4]: f16 = Q[i] + cast<f16>(W[i])\n}"
    )
    got = InlinePointwise().apply(program)
    assert got == anew(lambda: InlinePointwise().apply(program))
    assert [s.out for s in got.body.body if isinstance(s, Einsum)] == ["S", "O", "Q", "O2"]


def test_a_launch_has_the_place_of_its_own_steps(anew: Callable[..., Any]) -> None:
    lines = ["S{n}[i:4] = sum(k:4) {x}[k] * W[i, k]", "T{n}[i:4] = sum(k:4) {x}[k] * W[k, i]"]
    runs = ["".join(f'  {line.format(n=n, x=x)} loc("{line[0]}{n}")\n' for line in lines) for n, x in enumerate("XY")]
    branch = "  if C {\n    yield (X)\n  } else {\n    yield (Y)\n  } -> (B)\n"
    program = parse_program(
        "program p(X: f32[4], Y: f32[4], W: f32[4, 4], C: bool[]) -> (S0, T0, S1, T1, B) {\n" + branch.join(runs) + "}"
    )
    got, want = Fuse().apply(program), anew(lambda: Fuse().apply(program))
    assert got == want and _places(got) == _places(want)
    assert {"S0", "T0", "S1", "T1"} <= set(_places(got))


@pytest.mark.parametrize("seed", range(24))
def test_programs_with_control_come_out_the_same(seed: int, anew: Callable[..., Any]) -> None:
    program = control_program(seed)

    def run() -> Program:
        return Pipeline.parse(DEFAULT_PIPELINE, passes()).run(program, verify=False)

    got, want = run(), anew(run)
    assert str(got) == str(want)
    assert _places(got) == _places(want)


def _places(program: Program) -> list[str]:
    return [str(s.loc) for s in walk_statements(program.body)]


def test_equal_blocks_are_fused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block = "  S{n}[i:4] = sum(k:4) {x}[k] * W{n}[i, k]\n  T{n}[i:4] = max(S{n}[i], 0.0)\n  if C {{\n    yield (T{n})\n  }} else {{\n    yield ({x})\n  }} -> (B{n})\n"
    count = 5
    body = "".join(block.format(n=n, x=f"B{n - 1}" if n else "X") for n in range(count))
    weights = ", ".join(f"W{n}: f32[4, 4]" for n in range(count))
    program = parse_program(f"program p(X: f32[4], C: bool[], {weights}) -> (B{count - 1}) {{\n{body}}}")
    fusion = fuse._Fusion(program, Fuse())
    asked: list[int] = []
    parted = fusion._parted

    def counted(*run: Any) -> Any:
        asked.append(1)
        return parted(*run)

    monkeypatch.setattr(fusion, "_parted", counted)
    after = fusion.run()
    assert len(asked) == 1 and len(after.kernels) == 1
    assert [s.args for s in after.body.body if hasattr(s, "kernel")] == [
        (f"B{n - 1}" if n else "X", f"W{n}") for n in range(count)
    ]


def test_runs_of_the_same_steps_wired_otherwise_are_different_runs(anew: Callable[..., Any]) -> None:
    branch = "  if C {\n    yield (X)\n  } else {\n    yield (Y)\n  } -> (B)\n"
    runs = [f"  S{n}[i:4] = exp(X[i])\n  T{n}[i:4] = {a} * {b}\n" for n, (a, b) in enumerate((("S0[i]", "Y[i]"), ("Y[i]", "S1[i]")))]
    program = parse_program(
        "program p(X: f32[4], Y: f32[4], C: bool[]) -> (T0, T1, B) {\n" + branch.join(runs) + "}"
    )
    assert Fuse().apply(program) == anew(lambda: Fuse().apply(program))


@pytest.mark.parametrize("turned", [False, True])
def test_an_index_is_simplified_by_the_extents_of_its_own_operand(turned: bool) -> None:
    lines = ["A[i:4] = (X[i] else 0.0)", "B[i:4] = (Y[i] else 0.0)"]
    text = "\n  ".join(reversed(lines) if turned else lines)
    after = SimplifyIndices().apply(parse_program(f"program p(X: f32[4], Y: f32[3]) -> (A, B) {{\n  {text}\n}}"))
    assert {str(s) for s in after.body.body} == {"A[i:4]: f32 = X[i]", "B[i:4]: f32 = (Y[i] else 0.0)"}


def test_threads_come_to_the_same_programs_and_nothing_is_kept() -> None:
    pipeline = Pipeline.parse(DEFAULT_PIPELINE, passes())
    seeds = [3, 5, 7, 11]
    want = [str(pipeline.run(control_program(s), verify=False)) for s in seeds]
    shared = control_program(seeds[0])

    def run(n: int) -> str:
        program = shared if n % 4 == 0 else control_program(seeds[n % 4])
        return str(pipeline.run(program, verify=False))

    with ThreadPoolExecutor(4) as team:
        assert list(team.map(run, range(16))) == want * 4
    gc.collect()
    before = len(_SHARED)
    pipeline.run(control_program(13), verify=False)
    gc.collect()
    assert len(_SHARED) == before
