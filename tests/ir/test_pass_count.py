"""Pass counts: the paper's cascades, the usual normalisations, and every small cascade against the definition by brute force."""

from __future__ import annotations

import random
import re

import pytest

from dlc.ir.errors import NoSuchFiber
from dlc.ir.expr import Index
from dlc.ir.extent import int_expr, sym
from dlc.ir.facts import Facts
from dlc.ir.fiber import Covering, covering
from dlc.ir.parser import parse_cascade, parse_expr, parse_program
from dlc.ir.pass_count import all_passes, cascades_of, count_passes, passes
from dlc.ir.program import Cascade, cascade_types
from dlc.ir.rank_class import rank_classes
from dlc.ir.verify import verify_cascade
from tests.ir import pass_cascades as texts
from tests.ir.pass_oracle import oracle_passes
from tests.ir.pass_strategies import FiberMaker
from tests.ir.strategies import random_cascade


def made(text: str) -> Cascade:
    cascade = parse_cascade(text)
    verify_cascade(cascade)
    return cascade


ATTENTIONS = {
    "three": (texts.THREE_PASS, 3),
    "two": (texts.TWO_PASS, 2),
    "two, read through m // 128": (texts.TWO_PASS_FLAT, 2),
    "two, division deferred": (texts.DEFERRED, 2),
    "one": (texts.ONE_PASS, 1),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    text, expected = ATTENTIONS[name]
    cascade = made(text)
    assert passes(cascade) == expected
    assert count_passes(cascade, "m", "K").passes == expected
    assert count_passes(cascade, "m", "V").passes == 1


RENAMED = {"h": "i0", "p": "r0", "m": "n2", "e": "i9", "f": "i3", "m1": "t", "m0": "b", "QK": "v7", "BQK": "v7", "GM": "v8", "SN": "v1", "K": "arg1"}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_names_do_not_count(name: str) -> None:
    text, expected = ATTENTIONS[name]
    cascade = made(re.sub(r"\b[A-Za-z]\w*", lambda m: RENAMED.get(m[0], m[0]), text))
    assert passes(cascade) == expected
    assert count_passes(cascade, "n2", "arg1").passes == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_order_of_independent_steps_does_not_count(name: str, seed: int) -> None:
    text, expected = ATTENTIONS[name]
    cascade = made(text)
    rng, left = random.Random(seed), list(cascade.steps)
    known, order = {p.name for p in cascade.params}, []
    while left:
        step = rng.choice([s for s in left if known.issuperset(s.reads)])
        left.remove(step)
        order.append(step)
        known.update(step.outs)
    shuffled = Cascade(cascade.name, cascade.params, tuple(order), cascade.results, cascade.symbols)
    assert passes(shuffled) == expected


@pytest.mark.parametrize("name", ATTENTIONS)
def test_views_between_steps_do_not_count(name: str) -> None:
    """The keys arrive transposed, in blocks of 4 columns, through two more tensors."""
    text, expected = ATTENTIONS[name]
    heads = "h, " if "Q: f32[h" in text else ""
    first = text.index("{\n") + 2
    extent = ": 128*n" if "128*n" in text else ""
    views = f"  KT[{heads}e, m{extent}] = K[{heads}m, e]\n  KV[{heads}m{extent}, e] = KT[{heads}e, m]\n"
    cascade = made(text[:first] + views + re.sub(r"\bK\[", "KV[", text[first:]))
    assert passes(cascade) == expected
    assert count_passes(cascade, "m", "K").passes == expected


def test_grouped_queries_share_their_keys() -> None:
    text = texts.THREE_PASS.replace("K: f32[h,", "K: f32[g,").replace("V: f32[h,", "V: f32[g,")
    text = text.replace("K[h, m", "K[h//4, m").replace("QK[h//4, m", "QK[h, m").replace("V[h, m", "V[h//4, m")
    text = text.replace("Q: f32[h,", "Q: f32[4*g,").replace("QK[h, p, m] = ", "QK[h: 4*g, p, m] = ")
    text = text.replace("GM[h,", "GM[h: 4*g,", 1).replace("SN[h,", "SN[h: 4*g,", 1).replace("SD[h,", "SD[h: 4*g,", 1)
    text = text.replace("  A[h,", "  A[h: 4*g,", 1).replace("AV[h,", "AV[h: 4*g,", 1)
    cascade = made(text)
    assert passes(cascade) == 3
    assert count_passes(cascade, "m", "K").passes == 3


def test_an_input_in_blocks_is_two_ranks_unless_it_is_said() -> None:
    two, one = made(texts.TWO_PASS_SPLIT_INPUTS), made(texts.ONE_PASS_SPLIT_INPUTS)
    assert (passes(two), passes(one)) == (3, 2)
    assert (passes(two, (("m1", "m0"),)), passes(one, (("m1", "m0"),))) == (2, 1)
    assert count_passes(two, ("m1", "m0"), "K").passes == 2
    assert count_passes(one, "m0", "K").passes == 2, "each block is read twice, while it is live"


def test_barriers_name_who_waits_for_what() -> None:
    first, second = count_passes(made(texts.THREE_PASS), "m", "K").barriers
    assert (first.reduction, first.reader, first.through, first.level) == ("GM", "SN", "QK", 2)
    assert (second.reduction, second.reader, second.through, second.level) == ("SD", "A", "SN", 3)
    assert second.why == (
        "A reads SN along m and needs SD, which is known only after every element along m of K has been read"
    )


def test_every_einsum_has_its_pass() -> None:
    count = count_passes(made(texts.TWO_PASS), "m", "K")
    assert dict(count.index) == {"QK": 1, "LM": 1, "SLN": 1, "SLD": 1, "GM": 1, "C": 1, "SD": 1, "A": 2, "AV": 2}
    assert count.visits == {"QK", "LM", "SLN", "SLD", "A", "AV"}
    assert (count.pass_of("A"), count.pass_of("nothing")) == (2, 0)


def test_footprint_is_the_fiber_across_a_barrier_and_the_block_without() -> None:
    three = count_passes(made(texts.THREE_PASS), "m", "K").footprint
    assert (three.elements, three.bytes, three.whole) == (sym("m"), 4 * sym("m"), True)
    one = count_passes(made(texts.ONE_PASS), "m", "K").footprint
    assert (one.elements, one.bytes, one.whole) == (int_expr(128), int_expr(512), False)


COUNTED = {
    "reassociated": ("A: f32[k], B: f32[k]", "Z", "Y[] = sum(k) A[k] * B[k]\nX[] = sum(k) A[k]\nZ[] = Y[] * X[]", 1),
    "paper's pair": ("A: f32[k], B: f32[k]", "Z", "Y[] = sum(k) A[k] * B[k]\nZ[] = sum(k) Y[] * A[k]", 2),
    "logsumexp": ("X: f32[t, d]", "L", "M[t] = max(d) X[t, d]\nS[t] = sum(d) exp(X[t, d] - M[t])\nL[t] = log(S[t]) + M[t]", 2),
    "softmax": ("X: f32[t, d]", "Y", "M[t] = max(d) X[t, d]\nN[t, d] = exp(X[t, d] - M[t])\nS[t] = sum(d) N[t, d]\nY[t, d] = N[t, d] / S[t]", 3),
    "log-softmax": ("X: f32[t, d]", "Y", "M[t] = max(d) X[t, d]\nS[t] = sum(d) exp(X[t, d] - M[t])\nY[t, d] = X[t, d] - M[t] - log(S[t])", 3),
    "layer norm": ("X: f32[t, d], G: f32[d]", "Y", "M[t] = sum(d) X[t, d] / 64.0\nC[t, d] = X[t, d] - M[t]\nV[t] = sum(d) C[t, d] * C[t, d]\nY[t, d] = C[t, d] * rsqrt(V[t] + 0.1) * G[d]", 3),
    "layer norm by moments": ("X: f32[t, d], G: f32[d]", "Y", "M[t] = sum(d) X[t, d] / 64.0\nV[t] = sum(d) X[t, d] * X[t, d]\nY[t, d] = (X[t, d] - M[t]) * rsqrt(V[t] - M[t] * M[t] + 0.1) * G[d]", 2),
    "layer norm by Welford": ("X: f32[t, d], G: f32[d]", "Y", "(N, M, V)[t] = welford(d) (1.0, X[t, d], 0.0)\nY[t, d] = (X[t, d] - M[t]) * rsqrt(V[t] + 0.1) * G[d]", 2),
    "RMS norm": ("X: f32[t, d]", "Y", "V[t] = sum(d) X[t, d] * X[t, d]\nY[t, d] = X[t, d] * rsqrt(V[t])", 2),
    "variance": ("X: f32[t, d]", "V", "M[t] = sum(d) X[t, d]\nV[t] = sum(d) (X[t, d] - M[t]) * (X[t, d] - M[t])", 2),
    "cumsum": ("X: f32[t]", "Z", "Z[t] = Z[t - 1] + X[t]", 1),
    "softmax of a cumsum": ("X: f32[t]", "Y", "Z[t] = Z[t - 1] + X[t]\nM[] = max(t) Z[t]\nN[t] = exp(Z[t] - M[])\nS[] = sum(t) N[t]\nY[t] = N[t] / S[]", 3),
    "cumsum against a cumsum": ("X: f32[t]", "Y", "Z[t] = Z[t - 1] + X[t]\nR[t] = R[t - 1] + Z[#t - 1 - t]\nY[t] = exp(R[t])", 2),
    "two directions apart": ("X: f32[t]", "Y", "Z[t] = Z[t - 1] + X[t]\nR[t] = R[t - 1] + X[#t - 1 - t]\nY[t] = Z[t] * R[#t - 1 - t]", 2),
    "matrix product": ("A: f32[m, k], B: f32[k, n]", "C", "C[m, n] = sum(k) A[m, k] * B[k, n]", 1),
    "two matrix products": ("A: f32[m, k], B: f32[k, n], D: f32[n, q]", "E", "C[m, n] = sum(k) A[m, k] * B[k, n]\nE[m, q] = sum(n) C[m, n] * D[n, q]", 1),
    "product and softmax": ("A: f32[m, k], B: f32[k, n]", "Y", "C[m, n] = sum(k) A[m, k] * B[k, n]\nM[m] = max(n) C[m, n]\nN[m, n] = exp(C[m, n] - M[m])\nS[m] = sum(n) N[m, n]\nY[m, n] = N[m, n] / S[m]", 3),
    "windows": ("X: f32[t, 66], F: f32[3]", "Y", "C[t, i: 64] = sum(j: 3) X[t, i + j] * F[j]\nM[t] = sum(i: 64) C[t, i]\nY[t, i: 64] = C[t, i] - M[t]", 2),
    "a gather and what chose it": ("X: f32[t]", "Y", "(V, I)[] = argmax(t) (X[t], t)\nY[t] = X[t] - X[I[]]", 2),
    "a Gram matrix read by its rows": ("X: f32[t, d]", "Y", "G[t, u: #t] = sum(d) X[t, d] * X[u, d]\nM[t] = max(u: #t) G[t, u]\nY[t, d] = X[t, d] * M[t]", 2),
}  # fmt: skip


def counted(name: str) -> tuple[Cascade, int]:
    params, results, body, expected = COUNTED[name]
    symbols = " symbols (t in 1..)" if "#t - 1" in body or "I[]" in body else ""
    return made(f"cascade c({params}) -> {results}{symbols} {{\n{body}\n}}"), expected


@pytest.mark.parametrize("name", COUNTED)
def test_known_counts(name: str) -> None:
    cascade, expected = counted(name)
    assert passes(cascade) == expected, [(r.tensor, r.rank, r.passes) for r in all_passes(cascade)]


BLOCKS_OF_TWO = {"128": "2", "127": "1", "where 2*m1 + m0 < m": "", "where m <= p": "", "m in 1..": "m in 2.. by 2"}


@pytest.mark.parametrize("name", ["three", "two", "two, read through m // 128", "two, division deferred", "one"])
def test_attention_by_definition(name: str) -> None:
    text, expected = ATTENTIONS[name]
    if name == "one":
        text = text.replace("O {", "O symbols (m in 2.. by 2) {").replace("-3.4028234663852886e38", "-1.0e38")
    for old, new in BLOCKS_OF_TWO.items():
        text = text.replace(old, new)
    block = 2 if "(m + 1)//2" in text or "m//2]" in text else 1
    sizes = {"h": 1, "p": 1, "e": 2, "f": 1, "m": 4 * block, "n": 4}
    assert oracle_passes(parse_cascade(text), "K", (1,) if "[h" in text else (0,), sizes, block) == expected


@pytest.mark.parametrize("seed", range(60))
def test_random_cascades_by_definition(seed: int) -> None:
    check_by_definition(seed, exact=True)


@pytest.mark.parametrize("seed", range(1000, 1030))
def test_scans_in_both_directions_are_never_undercounted(seed: int) -> None:
    check_by_definition(seed, exact=False)


def check_by_definition(seed: int, *, exact: bool) -> None:
    """Every row equals the brute force (or is not below it); fibers of four points tell up to four passes apart."""
    cascade = made(FiberMaker(random.Random(seed), exact).text())
    types = cascade_types(cascade)
    for row in all_passes(cascade):
        inside_a_scan = row.tensor.startswith("S")
        if inside_a_scan or types[row.tensor].shape[row.dims[0]].const == 2 or row.passes > 4:
            continue
        least = oracle_passes(cascade, row.tensor, row.dims, {})
        if least is None:  # the fiber meets itself in one operation
            assert not exact
        elif exact:
            assert row.passes == max(least, 1), (row.tensor, row.rank, str(cascade))
        else:
            assert row.passes >= least, (row.tensor, row.rank, str(cascade))


@pytest.mark.parametrize("seed", range(60))
def test_every_construct_is_counted(seed: int) -> None:
    """No construct of the IR is refused; there are barriers exactly where there is more than one pass, each with a reason."""
    for row in all_passes(random_cascade(random.Random(seed)).cascade):
        assert row.passes >= 1
        assert {b.level for b in row.barriers} == set(range(2, row.passes + 1)), row
        assert all(b.reader in b.why and b.reduction in b.why for b in row.barriers)


def test_maxima_of_blocks_are_a_partition_and_do_not_count() -> None:
    rows = {(r.tensor, r.dims): r for r in all_passes(made(texts.TWO_PASS))}
    assert rows["LM", (2,)].passes == 3
    assert rows["LM", (2,)].partition
    assert not rows["QK", (2, 3)].partition
    assert rows["QK", (2, 3)].passes == 2


def test_a_recurrence_reads_its_weights_in_every_step() -> None:
    text = """
cascade rnn(X: f32[t, h], U: f32[h, h], H0: f32[h]) -> HT {
  scan t carry (H = H0) {
    P[h] = sum(k: h) H[k] * U[k, h]
    H1[h] = tanh(P[h] + X[t, h])
    yield (H1)
  } -> (HT)
}
"""
    rows = {(r.tensor, r.dims): r for r in all_passes(made(text))}
    assert (rows["U", (0,)].passes, rows["U", (0,)].repeats) == (1, (("t", sym("t")),))
    assert rows["X", (1,)].repeats == (), "every step has its own fiber"
    assert rows["X", (0,)].passes == 1


def test_what_is_made_elsewhere_on_the_fiber_is_waited_for() -> None:
    """Rows of a Gram matrix, other blocks' maxima, the last of a running sum: each needs all of the fiber."""
    gram, _ = counted("a Gram matrix read by its rows")
    assert count_passes(gram, "t", "X").passes == 2
    text = """
cascade blocks(X: f32[4*n]) -> Y {
  L[b: n] = max(i: 4) X[4*b + i]
  D[b: n, i: 4, c: n] = X[4*b + i] - L[c]
  Y[b: n] = sum(i: 4, c: n) D[b, i, c]
}
"""
    (barrier,) = next(r for r in all_passes(made(text)) if r.tensor == "X").barriers
    assert (barrier.reduction, barrier.reader) == ("L", "D")
    assert passes(made(text.replace("L[c]", "L[b]"))) == 1
    last = "cascade last(X: f32[t]) -> Y symbols (t in 1..) {\nZ[t] = Z[t - 1] + X[t]\nY[t] = X[t] - Z[#t - 1]\n}"
    assert passes(made(last)) == 2


@pytest.mark.parametrize(
    ("index", "ranks", "windows", "exact"),
    [
        ("128*a + b", ("a", "b"), (), True),
        ("k + 3*a", ("a", "k"), (), True),
        ("c + k", ("c",), ("k",), True),
        ("2*c + k", ("c",), ("k",), True),
        ("c + 2*k", ("c",), ("k",), True),
        ("c + n", ("c", "n"), (), False),
        ("c*n", ("c", "n"), (), False),
        ("(128*a + b)//64", ("a", "b"), (), True),
        ("128*((128*a + b)//128)", ("a", "b"), (), True),
        ("7", (), (), True),
    ],
)
def test_ranks_that_enumerate_an_index(
    index: str, ranks: tuple[str, ...], windows: tuple[str, ...], exact: bool
) -> None:
    extents = {"a": sym("s"), "b": int_expr(8), "c": sym("c"), "k": int_expr(3), "n": sym("n")}
    expr = parse_expr(f"idx({index})", tuple(extents))
    assert isinstance(expr, Index)
    assert covering(expr.expr, extents, Facts()) == Covering(ranks, windows, exact)


def test_a_fold_over_part_of_an_unclear_index_counts_as_one_of_all() -> None:
    text = """
cascade unclear(X: f32[2*s + 2*n]) -> Y symbols (s in 1.., n in 1..) {
  S[c: s] = sum(d: n) X[c + d]
  Y[c: s, d: n] = X[c + d] - S[c]
}
"""
    assert count_passes(made(text), "c", "X").passes == 2


def test_a_scan_that_needs_all_of_its_state_counts_one_step() -> None:
    text = """
cascade center(X: f32[h], W: f32[t]) -> Y {
  scan t carry (H = X) {
    M[] = sum(h) H[h]
    H1[h] = H[h] - M[] * W[t]
    yield (H1)
  } -> (Y)
}
"""
    row = count_passes(made(text), "h", "X")
    assert (row.passes, row.repeats) == (2, (("t", sym("t")),))
    assert len(row.barriers) == 1


def test_fibers_across_a_scan() -> None:
    """Steps of a running sum of rows, normalised along the row; lanes of a running sum, folded after it; its final value."""
    text = """
cascade rows(X: f32[t, h], W: f32[4*n]) -> (Y, Z) {
  H0[h]: f32 = 0.0
  scan t carry (H = H0) {
    H1[h] = H[h] + X[t, h]
    yield (H1)
  } -> (HT) stack (S = H1)
  M[t] = max(h) S[t, h]
  Y[t, h] = S[t, h] - M[t] + HT[h]
  L0[i: 4]: f32 = 0.0
  scan s: n carry (L = L0) {
    L1[i: 4] = L[i] + W[4*s + i]
    yield (L1)
  } -> (LN)
  T[] = sum(i: 4) LN[i]
  Z[j: 4*n] = W[j] - T[]
}
"""
    cascade = made(text)
    (along_h,) = count_passes(cascade, "h", "X").barriers
    assert (along_h.reduction, along_h.reader) == ("M", "Y")
    (along_t,) = count_passes(cascade, "t", "X").barriers
    assert (along_t.reduction, along_t.reader) == ("HT", "Y")
    (of_lanes,) = next(r for r in all_passes(cascade) if r.tensor == "W").barriers
    assert (of_lanes.reduction, of_lanes.reader) == ("T", "Z")


def test_scatter_and_update() -> None:
    text = """
cascade update(C: f32[m, d], X: f32[1, d], I: i64[1]) -> (D, Y) {
  scatter(n: 1, d) D[I[n], d] set= X[n, d] onto C
  M[d] = max(m) D[m, d]
  Y[m, d] = D[m, d] - M[d]
}
"""
    assert count_passes(made(text), "m", "C").passes == 2


def test_rank_classes_join_what_accesses_tie() -> None:
    classes = {c.name: c for c in rank_classes(made(texts.ONE_PASS))}
    assert {"m", "m0", "m1"} <= classes["m"].names
    assert {("K", 1), ("V", 1), ("BQK", 2), ("SLN", 2)} <= classes["m"].dims
    assert count_passes(made(texts.ONE_PASS), classes["m"], "K").passes == 1


def test_a_program_is_counted_kernel_by_kernel() -> None:
    text = """
kernel over (t) k0(X: f32[t, d]) -> (Y) {
  M[t] = max(d) X[t, d]
  Y[t, d] = X[t, d] - M[t]
}

program p(A: f32[t, d], G: bool[]) -> (R) {
  (Z) = launch k0(A)
  if G {
    S[t] = sum(d) Z[t, d]
    T[t, d] = Z[t, d] / S[t]
    V[t] = sum(d) T[t, d]
    U[t, d] = T[t, d] - V[t]
    yield (U)
  } else {
    yield (Z)
  } -> (R)
}
"""
    program = parse_program(text)
    assert [(c.name, c.results) for c in cascades_of(program)] == [("k0", ("Y",)), ("p", ("U",))]
    assert passes(program) == 3
    assert count_passes(program, "d", "X").passes == 2
    assert count_passes(program, "d", "Z").passes == 3


def test_a_kernel_inside_a_loop_sees_a_block_and_does_not_count_it() -> None:
    """The body of a scan as a kernel: the step is a symbol, and the block is read twice while it is live."""
    text = """
kernel over (p) k0(S: f32[p, m], R: f32[p]) -> (T) symbols (t in 0..) {
  B[p, i: 128] = S[p, 128*#t + i] where 128*#t + i < m
  L[p] = max(i: 128) B[p, i]
  N[p, i: 128] = exp(B[p, i] - L[p])
  D[p] = sum(i: 128) N[p, i]
  T[p] = D[p] + R[p]
}

program p(S: f32[p, m], R0: f32[p]) -> (RT) {
  for t in 0.. < (m + 127)//128 carry (R = R0) {
    (R1) = launch k0(S, R)
    yield (R1)
  } -> (RT)
}
"""
    program = parse_program(text)
    row = count_passes(program, "m", "S")
    assert (row.passes, row.partition, row.footprint.elements) == (2, True, int_expr(128))
    assert passes(program) == 1


def test_a_tensor_without_the_rank_is_an_error() -> None:
    with pytest.raises(NoSuchFiber) as caught:
        count_passes(made(texts.THREE_PASS), "f", "K")
    assert caught.value.code == "DLC0156"
    assert "'K' of 'attention' has no dimension along rank 'f'" in str(caught.value)
