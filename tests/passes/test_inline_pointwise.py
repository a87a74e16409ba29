"""Pointwise producers inlined: what moves, what stays and why, and that the meaning is kept."""

from __future__ import annotations

import itertools

import pytest
from tests.passes.samples import assert_same_result, body, random_inputs, rewrite

from dlc.ir.interpret import run_program
from dlc.passes.inline_pointwise import InlinePointwise


def test_inlining_as_text(golden) -> None:  # type: ignore[no-untyped-def]
    before, after = rewrite(
        """
        cascade f(A: f32[m, n], B: f32[n], I: i64[n], K: f32[n, k]) -> (O, P, Q, R) {
          V[n, m] = A[m, n]
          W[n, m] = V[n, m] + B[n]
          O[m] = max(n) W[n, m]
          T[m, n] = A[m, n - 1] else 0.0
          P[m, n] = T[m, n] * 2.0
          J[n] = min(I[n], 3)
          Q[m, n] = A[m, J[n]]
          X[m, n] = A[m, n] * B[n]
          R[m, k] = sum(n) X[m, n] * K[n, k]
        }""",
        InlinePointwise(),
    )
    golden(str(after))
    assert_same_result(before, after, {"m": 4, "n": 5, "k": 2}, rtol=1e-6)


# Producer, and whether each of the consumers takes it in.
PRODUCERS = {
    "view": "P[i:n, j:m]: f32 = X[j, i]",
    "reversed": "P[i:n, j:m]: f32 = X[j, #n - 1 - i]",
    "cast": "P[i:n, j:m]: f32 = cast<f32>(cast<f16>(X[j, i]))",
    "pad": "P[i:n, j:m]: f32 = (X[j, i - 1] else 0.5)",
    "pieces": "P[i:n, j:m]: f32 = { X[j, i] when i < 2 | Y[i, j] }",
    "constant": "P[i:n, j:m]: f32 = -2.5",
    "index": "P[i:n, j:m]: f32 = cast<f32>(3*i + j)",
    "cheap": "P[i:n, j:m]: f32 = Y[i, j] * 2.0",
    "two reads": "P[i:n, j:m]: f32 = Y[i, j] + X[j, i]",
    "dear": "P[i:n, j:m]: f32 = exp(Y[i, j])",
    "gathered": "P[i:n, j:m]: f32 = Y[G[i], j]",
}
CONSUMERS = {
    "same order": "O[i:n, j:m]: f32 = P[i, j] - 1.0",
    "transposed": "O[j:m, i:n]: f32 = P[i, j] + Y[i, j]",
    "twice": "O[i:n, j:m]: f32 = P[i, j] * P[i, j]",
    "shifted twice": "O[i:n, j:m]: f32 = P[i, j] + (P[i - 1, j] else 9.0)",
    "guarded": "O[i:n, j:m]: f32 = (P[i + 1, j - 1] else -1.0)",
    "broadcast": "O[i:n, j:m, k:3]: f32 = P[i, j] + cast<f32>(k)",
    "reduced": "O[j:m]: f32 = sum(i:n) P[i, j]",
    "window": "O[i:n, j:m]: f32 = max(r:3) (P[i + r - 1, j] else -inf)",
    "where": "O[j:m]: f32 = min(i:n) P[i, j] where (P[i, j] > -2.0 | i == 0)",
    "row": "O[i:n, j:m]: f32 = P[0, j] + Y[i, j]",
    "gathering": "O[i:n, j:m]: f32 = P[G[i], j]",
    "product": "O[i:n, k:n]: f32 = sum(j:m) P[i, j] * Y[k, j]",
    "piece": "O[i:n, j:m]: f32 = { P[i, j] when j > 0 | 0.0 }",
}


def text(producer: str, consumer: str, more: str = "", results: str = "O") -> str:
    return f"""
    cascade f(X: f32[m, n], Y: f32[n, m], G: i64[n]) -> ({results}) symbols (m in 1.., n in 4..) {{
      {producer}
      {consumer}
      {more}
    }}"""


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_small_pair_keeps_its_meaning(producer: str, consumer: str) -> None:
    before, after = rewrite(text(PRODUCERS[producer], CONSUMERS[consumer]), InlinePointwise())
    for sizes in ({"m": 1, "n": 4}, {"m": 5, "n": 6}):
        assert_same_result(before, after, sizes, rtol=1e-6)
    assert InlinePointwise().apply(after) == after, "once is enough"


def test_which_pairs_become_one() -> None:
    """Dear arithmetic is never done twice; an operand of a product stays an access of memory; views always move."""
    left = set()
    for producer, consumer in itertools.product(PRODUCERS, CONSUMERS):
        _, after = rewrite(text(PRODUCERS[producer], CONSUMERS[consumer]), InlinePointwise())
        if len(body(after)) > 1:
            left.add((producer, consumer))
    views = {"view", "reversed", "constant", "index"}
    assert not {p for p, _ in left} & (views - {"constant", "index"})
    assert {p for p, c in left if c == "same order"} == set()
    assert {(p, c) for p, c in left if p == "dear"} >= {("dear", c) for c in ("broadcast", "window", "product")}
    assert ("pad", "product") in left and ("cheap", "product") in left and ("cast", "product") not in left


def test_what_two_read_is_computed_once() -> None:
    for producer in ("dear", "two reads"):
        _, after = rewrite(
            text(PRODUCERS[producer], "O[i:n, j:m]: f32 = P[i, j] + 1.0", "Q[i:n, j:m]: f32 = P[i, j] * 3.0", "O, Q"), InlinePointwise()
        )
        assert len(body(after)) == 3, producer
    for producer in ("view", "constant", "cheap"):
        _, after = rewrite(
            text(PRODUCERS[producer], "O[i:n, j:m]: f32 = P[i, j] + 1.0", "Q[i:n, j:m]: f32 = P[i, j] * 3.0", "O, Q"), InlinePointwise()
        )
        assert len(body(after)) == 2, producer


def test_a_result_stays_though_it_is_read() -> None:
    before, after = rewrite(text(PRODUCERS["view"], "O[i:n, j:m]: f32 = P[i, j] + 1.0", "", "P, O"), InlinePointwise())
    assert body(after) == ["P[i:n, j:m]: f32 = X[j, i]", "O[i:n, j:m]: f32 = X[j, i] + 1.0"]
    assert_same_result(before, after, {"m": 2, "n": 4})


def test_chains_and_the_limit() -> None:
    steps = "\n".join(f"S{i + 1}[i, j]: f32 = S{i}[i, j] + S{i}[i, j]" for i in range(9))
    source = f"cascade f(S0: f32[i, j]) -> (S9) {{\n{steps}\n}}"
    before, after = rewrite(source, InlinePointwise())
    assert_same_result(before, after, {"i": 2, "j": 3})
    assert 1 < len(body(after)) < 9, "expressions that double stop growing"
    small = InlinePointwise(max_nodes=8)
    assert len(body(rewrite(source, small)[1])) > len(body(after))


def test_only_views_enter_a_loop() -> None:
    before, after = rewrite(
        """
        program f(X: f32[t, d], Y: f32[d]) -> (F) {
          V[d, t] = X[t, d]
          W[d] = exp(Y[d])
          scan s:t carry (H = Y) {
            N[d] = H[d] * W[d] + V[d, s]
            yield (N)
          } -> (F)
        }""",
        InlinePointwise(),
    )
    printed = str(after)
    assert "X[s, d]" in printed and "V[" not in printed
    assert printed.count("exp(") == 1 and printed.index("exp(") < printed.index("scan")
    assert_same_result(before, after, {"t": 3, "d": 2}, rtol=1e-6)


def test_an_index_tensor_moves_into_what_it_picks() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[v, d], I: i64[n], O: f32[v, d], U: f32[n, d]) -> (Y, S) symbols (v in 4..) {
          J[n] = I[n]
          Y[n, d] = X[J[n], d]
          scatter(n, d) S[J[n], d] sum= U[n, d] onto O
        }""",
        InlinePointwise(),
    )
    assert "J[" not in str(after)
    assert_same_result(before, after, {"v": 5, "d": 3, "n": 4}, rtol=1e-6)


def test_a_partial_producer_stays() -> None:
    """What does not exist everywhere is no expression."""
    before, after = rewrite(
        """
        cascade f(X: f32[n]) -> (O) {
          P[n] = X[n] * 2.0 where n > 1
          O[n] = P[n] else -1.0
        }""",
        InlinePointwise(),
    )
    assert len(body(after)) == 2
    assert_same_result(before, after, {"n": 4})


def test_rounding_between_disappears_but_not_a_cast() -> None:
    """The producer's own rounding to its type goes; a cast that is written is kept."""
    before, after = rewrite(
        """
        cascade f(X: f32[n]) -> (O) {
          P[n]: f16 = cast<f16>(X[n])
          O[n]: f32 = cast<f32>(P[n]) * 2.0
        }""",
        InlinePointwise(),
    )
    assert body(after) == ["O[n]: f32 = cast<f32>(cast<f16>(X[n])) * 2.0"]
    assert_same_result(before, after, {"n": 9}, special=True)


def test_inputs_may_hold_anything() -> None:
    """Reading outside behind a guard is never reached: the same program on empty and one-element inputs."""
    before, after = rewrite(
        """
        cascade f(X: f32[n], Y: f32[n]) -> (O) {
          P[n] = X[n - 1] else 0.0
          Q[n] = P[n + 1] else 1.0
          O[n] = Q[n] * Y[n]
        }""",
        InlinePointwise(),
    )
    assert len(body(after)) == 1
    for n in (0, 1, 2, 5):
        arrays = random_inputs(before, {"n": n})
        for a, b in zip(run_program(before, arrays), run_program(after, arrays), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("view", "moves"), [("X[b, 32*p + l, k]", False), ("X[b, k, 32*p + l]", True)], ids=["packed", "streams as it is"]
)
def test_panels_of_an_operand_stay_packed(view: str, moves: bool) -> None:
    """What was laid out for a contraction is not undone, unless the columns are contiguous without it."""
    shape = "64, 20" if not moves else "20, 64"
    before, after = rewrite(
        f"""
        cascade f(A: f32[b, 9, 20], X: f32[b, {shape}]) -> (O) {{
          P[b, p:2, k:20, l:32] = {view}
          O[b, m:9, n:64] = sum(k:20) A[b, m, k] * P[b, n // 32, k, n % 32]
        }}""",
        InlinePointwise(),
    )
    assert ("P[" not in str(after)) == moves
    assert_same_result(before, after, {"b": 2})


DEPTHWISE = """
cascade f(X: f32[c, y, x], K: f32[c, c], S: f32[c], W: f32[c, 3, 3], V: f32[c, c, 3, 3]) -> (O) {
  C[o: c, y, x] = sum(c) K[o, c] * X[c, y, x]
  R[o: c, y, x] = max(C[o, y, x] * S[o], 0.0)
  P[o: c, i: y + 1, j: x + 1] = R[o, i, j] else 0.0
  O[o: c, i: y - 1, j: x - 1] = sum(u:3, v:3) P[o, i + u, j + v] * W[o, u, v]
}"""


def test_a_border_moves_into_the_window_and_arithmetic_stays_with_its_sum() -> None:
    before, after = rewrite(DEPTHWISE, InlinePointwise())
    assert [str(s).split("[")[0] for s in body(after)] == ["C", "R", "O"], "no padded copy, and what follows the sum is not part of one"
    assert "else 0.0" in str(body(after)[-1])
    assert_same_result(before, after, {"c": 2, "y": 5, "x": 4}, rtol=1e-6)


def test_a_border_stays_before_register_tiles() -> None:
    """A convolution over all channels reads a plain tensor: what is best for its rows is decided later."""
    full = DEPTHWISE.replace("sum(u:3, v:3) P[o, i + u, j + v] * W[o, u, v]", "sum(c, u:3, v:3) P[c, i + u, j + v] * V[o, c, u, v]")
    _, after = rewrite(full, InlinePointwise())
    assert [str(s).split("[")[0] for s in body(after)] == ["C", "R", "P", "O"]


def test_arithmetic_on_no_sum_moves_into_a_border() -> None:
    """Nothing else would compute it on the way: one kernel instead of two."""
    text = "cascade f(X: f32[n]) -> (P) {\n  R[n] = exp(X[n])\n  P[i: n + 1] = R[i] else 0.0\n}"
    _, after = rewrite(text, InlinePointwise())
    assert len(body(after)) == 1
