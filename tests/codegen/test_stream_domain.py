"""What a `where` means to loops, against enumeration: every small system of inequalities. And what leaves a scan's states be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.stream_domain import StepDomain, extreme, step_domain
from dlc.codegen.stream_idle import is_idle
from dlc.codegen.tile import Buffer, TileProgram
from dlc.codegen.tile_build import Builder
from dlc.codegen.tile_interp import run as run_tile
from dlc.ir.einsum import Einsum
from dlc.ir.domain import conjunction
from dlc.ir.dtype import BOOL
from dlc.ir.einsum import Scan
from dlc.ir.expr import Apply, Expr, Index
from dlc.ir.extent import IntExpr, evaluate, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.parser import parse_program

M, N, LANES = 3, 2, 4
EXTENTS = {"m": int_expr(M), "n": int_expr(N), "l": int_expr(LANES)}
LOOPS = {"m": int_expr(M), "n": int_expr(N)}
SLOPES = list(itertools.product((-2, -1, 0, 1), (-1, 0, 1), (-1, 0, 1)))
SINGLE = [(a, b, c, k) for a, b, c in SLOPES for k in (-2, 0, 1, 3)]


def inequality(a: int, b: int, c: int, k: int) -> IntExpr:
    return var("m") * a + var("n") * b + var("l") * c + k


def where(*parts: IntExpr) -> Expr | None:
    return conjunction(Apply("ge", (Index(p), Index(int_expr(0)))) for p in parts)


def holds(e: Expr | None, point: Mapping[str, int]) -> bool:
    match e:
        case None:
            return True
        case Apply("and", (a, b)):
            return holds(a, point) and holds(b, point)
        case Apply("ge", (Index(a), Index(b))):
            return evaluate(a, point) >= evaluate(b, point)
    raise AssertionError(e)


def points() -> list[dict[str, int]]:
    return [dict(zip("mnl", p, strict=True)) for p in itertools.product(range(M), range(N), range(LANES))]


@pytest.mark.parametrize("system", [*((s,) for s in SINGLE), *itertools.product(SINGLE[::7], SINGLE[3::11])], ids=str)
def test_bounds_and_masks_leave_what_exists(system: tuple[tuple[int, int, int, int], ...]) -> None:
    parts = [inequality(*s) for s in system]
    domain = step_domain(where(*parts))
    ends = {n: evaluate(e, {}) for n, e in domain.bounds(EXTENTS, LOOPS).items()}
    mask = domain.mask(EXTENTS, LOOPS)
    assert all(0 <= ends[n] for n in LOOPS)
    least, greatest = domain.least(EXTENTS), domain.greatest(EXTENTS)
    assert least is not None
    for e, lo, hi in zip(domain.inequalities, least, greatest, strict=True):
        values = [evaluate(e, p) for p in points()]
        assert (evaluate(lo, {}), evaluate(hi, {})) == (min(values), max(values))
    for p in points():
        exists = all(evaluate(e, p) >= 0 for e in parts)
        visited = p["m"] < ends["m"] and p["n"] < ends["n"]
        assert exists == (visited and holds(mask, p))
    for name in LOOPS:
        for other in (n for n in EXTENTS if n != name):
            over = domain.over({other: EXTENTS[other]})
            for p in points():
                some = any(all(evaluate(e, {**p, other: i}) >= 0 for e in parts) for i in range(evaluate(EXTENTS[other], {})))
                assert not some or holds(over.mask({}, {}), p)  # never leaves out a point
                assert len(parts) > 1 or some == holds(over.mask({}, {}), p)


def test_arithmetic_and_equations_are_inequalities() -> None:
    for text, count in (
        ("16*m + p < 13", 1), ("m >= 1", 1), ("-1 < m", 1), ("m == p", 2), ("not(m < p)", 1), ("m < 3 & B[p] & p >= m", 2),
        ("m < 3 | p < 2", 0), ("m % 2 <= p", 1),
    ):
        source = f"cascade f(X: f32[9], B: bool[9]) -> (Y) {{ Y[p:9] = sum(m:9) X[m] where {text} }}"
        (step,) = parse_program(source).body.body
        assert isinstance(step, Einsum)
        domain = step_domain(step.where)
        assert len(domain.inequalities) == count, text
        assert bool(domain.opaque) == ("|" in text or "B" in text)
        assert (domain.least(EXTENTS) is None) == (bool(domain.opaque) or "%" in text)
    assert step_domain(None) == StepDomain() and StepDomain().everywhere


def test_an_extreme_is_not_known_of_products() -> None:
    assert extreme(var("m") * var("l"), EXTENTS, greatest=True) is None
    assert extreme(var("m") * var("#k"), EXTENTS, greatest=True) is None
    assert extreme(var("#k") - var("m"), EXTENTS, greatest=False) == var("#k") - (M - 1)


# --- masks of so many lanes ---


@pytest.mark.parametrize("op", ["le", "lt", "ge", "gt"])
@pytest.mark.parametrize("slope", [-2, -1, 0, 1, 2])
def test_every_mask_of_lanes(op: str, slope: int) -> None:
    """Whatever a comparison of indices becomes, it is true where it should be; of slope 1 it needs no vector of indices."""
    for offset, step, first in itertools.product(range(-6, 7), (-1, 0, 2), (0, 3)):
        builder = Builder({"out": BOOL})
        em = Emitter(builder, Facts({}), {})
        space = Space({"l": int_expr(first), "m": int_expr(0)}, "l", LANES, (Slot("m", 3, 1),))
        e = Apply(op, (Index(var("l") * slope + var("m") * step), Index(int_expr(offset))))
        tile = builder.broadcast(em.value(e, space), space.tile(BOOL))
        builder.store("out", int_expr(0), tile, (int_expr(LANES),), int_expr(1))
        out = Buffer("out", BOOL, "out", int_expr(3 * LANES))
        memory = np.zeros(3 * LANES, bool)
        program = TileProgram("k", (out,), (), int_expr(1), "task", builder.body())
        assert not run_tile(program, {"out": memory})
        compare = {"le": np.less_equal, "lt": np.less, "ge": np.greater_equal, "gt": np.greater}[op]
        m, lane = np.arange(3)[:, None], first + np.arange(LANES)
        np.testing.assert_array_equal(memory.reshape(3, LANES), compare(lane * slope + m * step, offset))
        assert ("iota" not in str(program)) == (abs(slope) <= 1)


# --- steps that do nothing ---

SCAN = """cascade f(X: f32[4, 3]) -> (OA, OB) {{
  A0[i:2, j:2]: f32 = 0.0
  B0[i:2, j:2]: f32 = 0.0
  scan t:4 carry (A = A0, B = B0) {{
    {steps}
    yield ({yields})
  }} -> (OA, OB)
}}"""
WHERE = "where t < 3"
IDLE = {
    "a running maximum": f"M[i:2, j:2]: f32 = max(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = max(A[i, j], M[i, j])",
    "a running minimum": f"M[i:2, j:2]: f32 = min(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = min(M[i, j], A[i, j])",
    "a running sum": f"M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[i, j] + M[i, j]",
    "a running product": f"M[i:2, j:2]: f32 = prod(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[i, j] * M[i, j]",
    "a corrected sum": f"""M[i:2, j:2]: f32 = max(k:3) X[t, k] {WHERE}
      N[i:2, j:2]: f32 = max(A[i, j], M[i, j])
      P[i:2, j:2]: f32 = select(N[i, j] > A[i, j], exp(A[i, j] - N[i, j]), 1.0)
      S[i:2, j:2]: f32 = sum(k:3) exp(X[t, k]) {WHERE}
      A1[i:2, j:2]: f32 = A[i, j] * P[i, j] + S[i, j]""",
}
BUSY = {
    "a sum of everything": "M[i:2, j:2]: f32 = sum(k:3) X[t, k]\n A1[i:2, j:2]: f32 = A[i, j] + M[i, j]",
    "a state that decays": f"M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[i, j] * 0.5 + M[i, j]",
    "a state that is turned": f"M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[j, i] + M[i, j]",
    "a state that is turned on the way": f"""M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}
      N[i:2, j:2]: f32 = A[j, i] + M[i, j]
      A1[i:2, j:2]: f32 = N[i, j] + M[i, j]""",
    "one element everywhere": f"M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[i, 0] + M[i, j]",
    "elements that differ": f"""M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}
      A1[i:2, j:2]: f32 = A[i, j] + select(A[i, 0] > A[i, 1], 1.0, M[i, j])""",
    "the other state": f"M[i:2, j:2]: f32 = sum(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = B[i, j] + M[i, j]",
    "a maximum from 0": f"M[i:2, j:2]: f32 = max(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = max(A[i, j], max(M[i, j], 0.0))",
    "a sum of maxima": f"M[i:2, j:2]: f32 = max(k:3) X[t, k] {WHERE}\n A1[i:2, j:2]: f32 = A[i, j] + M[i, j]",
    "a counter": "A1[i:2, j:2]: f32 = A[i, j] + 1.0",
}


def scan(steps: str, yields: str = "A1, B1") -> Scan:
    source = SCAN.format(steps=f"B1[i:2, j:2]: f32 = B[i, j] + 0.0\n{steps}", yields=yields)
    return next(s for s in parse_program(source).body.body if isinstance(s, Scan))


@pytest.mark.parametrize("name", IDLE)
def test_idle(name: str) -> None:
    assert is_idle(scan(IDLE[name]))


@pytest.mark.parametrize("name", BUSY)
def test_not_idle(name: str) -> None:
    assert not is_idle(scan(BUSY[name]))


def test_states_that_change_places_are_not_idle() -> None:
    assert not is_idle(scan(IDLE["a running sum"], "B1, A1"))
    assert not is_idle(scan(IDLE["a running sum"], "A1, A1"))
