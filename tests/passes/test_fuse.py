"""Fusion into kernels: every small chain keeps its meaning, and each condition of joining has its pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.samples import assert_same_result, random_inputs, rewrite

from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import For, Launch, Program
from dlc.passes.fuse import Fuse
from dlc.passes.prepare_contractions import PrepareContractions

SIZES = ({"m": 5, "n": 6, "k": 3}, {"m": 1, "n": 1, "k": 1}, {"m": 9, "n": 17, "k": 2})


def fused(steps: str, results: str, **kwargs: int) -> tuple[Program, Program]:
    text = f"""
    cascade f(A: f32[m, n], B: f32[n], C: f32[m], W: f32[n, k], I: i64[m]) -> ({results})
        symbols (m in 1.., n in 1.., k in 1..) {{
      {steps}
    }}""".replace("\n        symbols", " symbols")
    return rewrite(text, Fuse(**kwargs))


def steps_of(program: Program) -> list[int]:
    """How many Einsums each launch, in order, runs."""
    table = program.kernel_table
    return [len(table[s.kernel].cascade.steps) for s in program.body.body if isinstance(s, Launch)]


def test_fusion_as_text(golden) -> None:  # type: ignore[no-untyped-def]
    """A product with its epilogue, a softmax over its rows, and one more that reads both."""
    before, after = fused(
        """
      S[m, k] = sum(n) A[m, n] * W[n, k]
      T[m, k] = max(S[m, k] + C[m], 0.0)
      G[m] = max(n) A[m, n]
      E[m, n] = exp(A[m, n] - G[m])
      D[m] = sum(n) E[m, n]
      P[m, n] = E[m, n] / D[m]
      Q[m] = T[m, 0] + P[m, 0]""",
        "Q",
    )
    golden(str(after))
    for sizes in SIZES:
        assert_same_result(before, after, sizes, rtol=1e-5)


# Steps over X0 (f32[m, n]) that give X1, then over X1 that give X2; `R` names the step's own reduced row.
LINKS = {
    "point": "X{o}[m, n] = exp(X{i}[m, n])",
    "bias": "X{o}[m, n] = X{i}[m, n] + B[n]",
    "rows": "R{o}[m] = max(n) X{i}[m, n]\nX{o}[m, n] = X{i}[m, n] - R{o}[m]",
    "columns": "R{o}[n] = sum(m) X{i}[m, n]\nX{o}[m, n] = X{i}[m, n] * R{o}[n]",
    "transposed": "R{o}[n, m] = X{i}[m, n] * 2.0\nX{o}[m, n] = R{o}[n, m] + 1.0",
    "reversed": "X{o}[m, n] = X{i}[#m - 1 - m, n]",
    "shifted": "X{o}[m, n] = X{i}[m, n] - (X{i}[m, n - 1] else 0.0)",
    "broadcast": "R{o}[n] = X{i}[0, n]\nX{o}[m, n] = R{o}[n] + C[m]",
    "gathered": "X{o}[m, n] = X{i}[I[m] % #m, n]",
    "product": "R{o}[m, k] = sum(n) X{i}[m, n] * W[n, k]\nX{o}[m, n] = sum(k) R{o}[m, k] * W[n, k]",
    "scatter": "scatter(m, n) X{o}[I[m] % #m, n] sum= X{i}[m, n] onto A",
    "arg": "(V{o}[m], J{o}[m]) = argmax(n) (X{i}[m, n], n)\nX{o}[m, n] = X{i}[m, n] * V{o}[m] + cast<f32>(J{o}[m])",
    "domain": "R{o}[m, n] = X{i}[m, n] * 0.5 where n <= m\nX{o}[m, n] = R{o}[m, n] else 1.0",
    "total": "R{o}[] = sum(m, n) X{i}[m, n]\nX{o}[m, n] = X{i}[m, n] * R{o}[]",
}


@pytest.mark.parametrize("first", LINKS)
@pytest.mark.parametrize("second", LINKS)
def test_every_small_chain_keeps_its_meaning(first: str, second: str) -> None:
    steps = LINKS[first].format(i=0, o=1) + "\n" + LINKS[second].format(i=1, o=2)
    for results, least in (("X2", 8), ("X1, X2", 1)):
        before, after = fused(f"X0[m, n] = A[m, n] * 0.25\n{steps}", results, least_tasks=least)
        assert all(isinstance(s, Launch) for s in after.body.body)
        for sizes in SIZES[: 1 if least == 8 else 2]:
            assert_same_result(before, after, sizes, rtol=1e-4)


def test_what_joins() -> None:
    """One launch where all can run inside the same tasks; two (or more) where each reason forbids it."""
    one = {
        ("point",), ("bias",), ("rows",), ("shifted",), ("rows", "rows"), ("point", "rows", "bias"), ("arg",), ("gathered", "point"), ("transposed", "point"),
    }  # fmt: skip
    for chain in one:
        steps = "\n".join(LINKS[c].format(i=n, o=n + 1) for n, c in enumerate(chain))
        before, after = fused(steps.replace("X0", "A"), f"X{len(chain)}")
        assert len(steps_of(after)) == 1, (chain, str(after))
        assert_same_result(before, after, SIZES[0], rtol=1e-4)
    several = {
        ("columns",): "the rows are not contiguous",
        ("point", "reversed"): "reads another task's row",
        ("point", "shifted"): "a read with `else` needs the whole row in memory",
        ("product",): "a product starts a kernel of its own",
        ("scatter",): "a scatter is alone",
        ("point", "scatter"): "a scatter is alone",
        ("total",): "one task for a plane of unknown size",
        ("point", "gathered"): "which task makes it is data",
    }
    for chain, reason in several.items():
        steps = "\n".join(LINKS[c].format(i=n, o=n + 1) for n, c in enumerate(chain))
        _, after = fused(steps.replace("X0", "A"), f"X{len(chain)}")
        if chain != ("scatter",):
            assert len(steps_of(after)) > 1, (chain, reason, str(after))


def test_an_epilogue_joins_its_product_and_nothing_else_does() -> None:
    product = "S[m, k] = sum(n) A[m, n] * W[n, k]\n"
    for epilogue, launches in {
        "O[m, k] = max(S[m, k], 0.0)": 1,
        "O[m, k] = S[m, k] + C[m]": 1,
        "T[m, k] = exp(S[m, k])\nO[m, k] = T[m, k] / C[m]": 1,
        "O[k, m] = S[m, k] * 2.0": 1,  # the same points, stored another way
        "O[m] = max(k) S[m, k]": 2,
        "O[m, k] = S[m, k] - S[m, 0]": 2,
        "O[m, k, j:2] = S[m, k] * cast<f32>(j)": 2,
        "O[m, k] = S[m, k] - (S[m, k - 1] else 0.0)": 2,
    }.items():
        before, after = fused(product + epilogue, "O")
        assert len(steps_of(after)) == launches, (epilogue, str(after))
        assert_same_result(before, after, SIZES[0], rtol=1e-5)


def test_no_cycles() -> None:
    """d reads a and c, c reads b, b reads a by columns: joining d with a would make a's kernel wait for itself."""
    before, after = fused(
        """
      P[m, n] = exp(A[m, n])
      Q[n] = sum(m) P[m, n]
      R[n] = Q[n] * B[n]
      O[m, n] = P[m, n] + R[n]""",
        "O",
    )
    seen: set[str] = {p.name for p in after.params}
    for launch in after.body.body:
        assert isinstance(launch, Launch) and seen >= set(launch.args)
        seen |= set(launch.outs)
    assert_same_result(before, after, SIZES[0], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(LINKS)), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6))
def test_random_graphs_are_ordered_and_keep_their_meaning(links: list[tuple[str, int, int]]) -> None:
    """Each step reads one or two earlier ones, wherever those ended up."""
    steps = ["X0[m, n] = A[m, n] * 0.25"]
    for n, (kind, back, other) in enumerate(links):
        source, more = max(n - back, 0), max(n - other, 0)
        steps.append(LINKS[kind].format(i=source, o=f"a{n + 1}"))
        steps.append(f"X{n + 1}[m, n] = 0.5 * Xa{n + 1}[m, n] + 0.25 * X{more}[m, n]")
    before, after = fused("\n".join(steps), f"X{len(links)}")
    arrays = [np.abs(a) * 0.5 if a.dtype == np.float32 else a for a in random_inputs(before, SIZES[0])]
    with np.errstate(all="ignore"):
        for a, b in zip(run_program(before, arrays), run_program(after, arrays), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3)


def test_square_tensors() -> None:
    """Diagonals and transposes: an equal extent is not the same rank."""
    reads = ("X[i, i]", "X[i, 0]", "X[0, i]", "max(X[i, i], X[i, 0])")
    squares = ("X[i, j]", "X[j, i]", "X[i, i]", "X[j, j] + X[i, j]", "X[i, j] * X[j, i]", "X[i, j] + D[j]", "X[j, i] + D[i]")
    for read in reads:
        for square in squares:
            before, after = rewrite(
                f"""
                cascade f(A: f32[s, s]) -> (D, O) symbols (s in 1..) {{
                  X[i:s, j:s] = exp(A[i, j])
                  D[i:s] = {read}
                  O[i:s, j:s] = {square}
                }}""",
                Fuse(least_tasks=1),
            )
            for kernel in after.kernels:
                for step in kernel.cascade.steps:
                    assert isinstance(step, Einsum) and set(kernel.outer) <= {r.name for r in step.ranks}, str(kernel)
            for s in (1, 4):
                assert_same_result(before, after, {"s": s})


def test_limits() -> None:
    chain = "\n".join(LINKS["point"].format(i=n, o=n + 1) for n in range(7)).replace("X0", "A")
    assert steps_of(fused(chain, "X7")[1]) == [7]
    assert steps_of(fused(chain, "X7", max_steps=3)[1]) == [3, 3, 1]
    rows = LINKS["rows"].format(i="0", o="1").replace("X0", "A")
    assert steps_of(fused(rows, "X1")[1]) == [2]
    wide = rewrite(f"cascade f(A: f32[16, 100000]) -> (X1) {{\n{rows.replace('[m', '[m:16').replace('n]', 'n:100000]')}\n}}"
                   .replace("A[m:16, n:100000]", "A[m, n]").replace("R1[m:16]\n", "R1[m]\n").replace("max(n)", "max(n:100000)")
                   .replace("- R1[m:16]", "- R1[m]").replace("R1[m:16] = max", "R1[m:16] = max"), Fuse())[1]  # fmt: skip
    assert len(steps_of(wide)) == 2, "rows of 400 kB do not stay in a core's cache"
    few = rewrite("cascade f(A: f32[2, 5000]) -> (X) {\n R[m:2] = max(n:5000) A[m, n]\n X[m:2, n:5000] = A[m, n] - R[m]\n}", Fuse())[1]
    assert len(steps_of(few)) == 2, "two tasks leave cores idle"


def test_equal_layers_are_one_kernel() -> None:
    layer = "S{o}[m, n] = tanh(X{i}[m, n] + B[n])\nR{o}[m] = sum(n) S{o}[m, n]\nX{o}[m, n] = S{o}[m, n] / R{o}[m]\nscatter(m, n) Y{o}[I[m] % #m, n] sum= X{o}[m, n] onto A\n"
    steps = "".join(layer.format(i=n if n == 0 else f"{n}", o=n + 1).replace(f"X{n}[", f"Y{n}[") for n in range(3))
    _, after = fused(steps.replace("Y0", "A"), "Y3")
    assert len(after.body.body) == 6 and len(after.kernels) == 2


def test_a_scan_becomes_a_loop_of_launches() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[t, d], H0: f32[d]) -> (F, Z) {
          scan t carry (H = H0) {
            G[d] = H[d] * 0.5 + X[t, d]
            N[d] = tanh(G[d])
            yield (N)
          } -> (F) stack (Z = N)
        }""",
        Fuse(),
    )
    (loop,) = after.body.body
    assert isinstance(loop, For) and loop.symbol.name != "t", "the extent t is another thing than the step"
    assert len(loop.body.body) == 1
    for t in (0, 1, 4):
        assert_same_result(before, after, {"t": t, "d": 3}, rtol=1e-6)


def test_two_scans_over_ranks_of_one_name() -> None:
    scan = """
          scan s:{n} carry (H{k} = C) {{
            N{k}[d] = H{k}[d] * 0.5 + X[s, d]
            yield (N{k})
          }} -> (F{k})"""
    before, after = rewrite(
        f"cascade f(X: f32[t, d], C: f32[d]) -> (F1, F2) symbols (t in 2..) {{{scan.format(n='t', k=1)}{scan.format(n='2', k=2)}\n}}",
        Fuse(),
    )
    loops = [s for s in after.body.body if isinstance(s, For)]
    assert len({s.symbol.name for s in loops}) == 2, "each has its own bound"
    assert_same_result(before, after, {"t": 4, "d": 3}, rtol=1e-6)


def test_given_kernels_are_kept_and_fusing_again_changes_nothing() -> None:
    _, once = fused(LINKS["rows"].format(i=0, o=1).replace("X0", "A"), "X1")
    again = Fuse().apply(once)
    assert again == once
    assert parse_program(str(once)) == once
    edited = str(once).replace("max(", "min(")
    mixed = Fuse().apply(parse_program(edited))
    assert "min(" in str(mixed)
    assert_same_result(parse_program(edited), mixed, SIZES[0])


def test_row_contiguity_follows_the_layout() -> None:
    """After channels-last relayout a reduction over channels has its rows contiguous; over pixels it has not."""
    text = """
    cascade f(X: f32[2, 8, 6, 6]) -> (O) {
      S[b:2, c:8, y:6, x:6] = X[b, c, y, x] * 2.0
      G[b:2, y:6, x:6] = max(c:8) S[b, c, y, x]
      O[b:2, c:8, y:6, x:6] = S[b, c, y, x] - G[b, y, x]
    }"""
    before = parse_program(text)
    assert len(steps_of(Fuse().apply(before))) > 1
    last = parse_program(text.replace("S[b:2, c:8, y:6, x:6] =", "S[b:2, c:8, y:6, x:6]: f32{0, 2, 3, 1} ="))
    order = PrepareContractions().apply(last)
    assert any(s.order == (0, 2, 3, 1) for s in order.body.body if isinstance(s, Einsum))
    assert_same_result(before, Fuse().apply(order), {})
