"""Work done once for equal steps and equal runs: the same programs come out as when each is looked at anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.passes.control_programs import control_program
from tests.passes.test_inline_pointwise import CONSUMERS, PRODUCERS

from dlc.ir.einsum import Einsum
from dlc.ir.forms import form
from dlc.ir.parser import parse_cascade, parse_program
from dlc.ir.program import Program, program_of
from dlc.passes import fuse
from dlc.passes.default import DEFAULT_PIPELINE
from dlc.passes.fuse import Fuse
from dlc.passes.inline_pointwise import InlinePointwise
from dlc.passes.once import OncePerForm
from dlc.passes.pipeline import Pipeline
from dlc.passes.registry import passes
from dlc.passes.simplify_indices import SimplifyIndices

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
        x, y = step.expr.args  # type: ignore[union-attr]
        return type(step)(step.outs, step.ranks, (type(step.expr)("add", (y, x)),), step.dtypes, loc=step.loc)  # type: ignore[call-arg]

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
    assert once(a, None, lambda s: seen.append(s) or s) is a  # type: ignore[func-returns-value]
    assert once(b, None, lambda s: seen.append(s) or s) is b and len(seen) == 1  # type: ignore[func-returns-value]


# --- the passes that use it ---

SECOND = {
    "equal": ("", "O, O2"),
    "its producer is read once more": ("Z[i:n, j:m]: f32 = P2[i, j] * 5.0", "O, O2, Z"),
    "its producer is a result": ("", "O, O2, P2"),
    "its operand is another type": ("", "O, O2"),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_pair_that_occurs_twice_is_treated_as_if_it_were_alone(
    name: str, second: str, consumer: str, anew: Callable[..., Any]
) -> None:
    more, results = SECOND[second]
    kind = "f32{1, 0}" if second == "its operand is another type" else "f32"
    for producer in PRODUCERS:
        pair = f"{PRODUCERS[producer]}\n  {CONSUMERS[consumer]}"
        twin = pair.replace("P[", "P2[").replace("O[", "O2[").replace("Y[", "Y2[")
        text = f"""
        cascade f(X: f32[m, n], Y: f32[n, m], Y2: {kind}[n, m], G: i64[n]) -> ({results}) symbols (m in 1.., n in 4..) {{
          {pair}
          {twin}
          {more}
        }}""" if kind == "f32" else f"""
        cascade f(X: f32[m, n], Y: f32[n, m], Y2: f32[n, m]{{1, 0}}, G: i64[n]) -> ({results}) symbols (m in 1.., n in 4..) {{
          {pair}
          {twin}
        }}"""
        program = program_of(parse_cascade(text))
        assert PASSES[name].apply(program) == anew(lambda p=program: PASSES[name].apply(p)), producer


@pytest.mark.parametrize("seed", range(40))
def test_programs_with_control_come_out_the_same(seed: int, anew: Callable[..., Any]) -> None:
    program = control_program(seed)

    def run() -> Program:
        return Pipeline.parse(DEFAULT_PIPELINE, passes()).run(program, verify=False)

    got, want = run(), anew(run)
    assert str(got) == str(want)
    assert _places(got) == _places(want)


def _places(program: Program) -> list[str]:
    from dlc.ir.program import walk_statements

    return [str(s.loc) for s in walk_statements(program.body)]


def test_equal_blocks_are_fused_once() -> None:
    block = "  S{n}[i:4] = sum(k:4) {x}[k] * W{n}[i, k]\n  T{n}[i:4] = max(S{n}[i], 0.0)\n  if C {{\n    yield (T{n})\n  }} else {{\n    yield ({x})\n  }} -> (B{n})\n"
    count = 5
    body = "".join(block.format(n=n, x=f"B{n - 1}" if n else "X") for n in range(count))
    weights = ", ".join(f"W{n}: f32[4, 4]" for n in range(count))
    program = parse_program(f"program p(X: f32[4], C: bool[], {weights}) -> (B{count - 1}) {{\n{body}}}")
    fusion = fuse._Fusion(program, Fuse())
    asked: list[int] = []
    parted = fusion._parted
    fusion._parted = lambda *a: asked.append(1) or parted(*a)  # type: ignore[method-assign, func-returns-value]
    after = fusion.run()
    assert len(asked) == 1 and len(after.kernels) == 1
    assert [s.args for s in after.body.body if hasattr(s, "kernel")] == [
        (f"B{n - 1}" if n else "X", f"W{n}") for n in range(count)
    ]
