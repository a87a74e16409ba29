"""Worked cases of the IR, at least one per construct: text, inputs, and the result by NumPy written out by hand.

`test_cases.py` parses, verifies and interprets each; the same table is compiled by the tests of codegen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = Any
RNG = np.random.default_rng(7)


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A worked case.

    Attributes:
        construct: what of docs/ir.md it shows.
        text: a cascade or a program.
        inputs: arrays, in order.
        expected: what they give, computed without the IR.
    """

    name: str
    construct: str
    text: str
    inputs: tuple[Array, ...]
    expected: Callable[..., tuple[Array, ...]]


CASES: list[Case] = []


def case(name: str, construct: str, text: str, *inputs: Array) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(expected: Callable[..., Any]) -> Callable[..., Any]:
        def as_tuple(*args: Array) -> tuple[Array, ...]:
            result = expected(*args)
            return result if isinstance(result, tuple) else (result,)

        CASES.append(Case(name, construct, text.strip() + "\n", inputs, as_tuple))
        return expected

    return register


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- domains ---------------------------------------------------------------------------------------------------------


@case(
    "causal_attention",
    "where: a partial tensor, its readers inherit the domain",
    """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> O {
  QK[h, p, m]  = sum(e) Q[h, p, e] * K[h, m, e]          where m <= p
  GM[h, p]     = max(m) QK[h, p, m]
  SN[h, p, m]  = exp(QK[h, p, m] - GM[h, p])
  SD[h, p]     = sum(m) SN[h, p, m]
  AV[h, p, f]  = sum(m) SN[h, p, m] * V[h, m, f]
  O[h, p, f]   = AV[h, p, f] / SD[h, p]
}""",
    f32(2, 5, 3),
    f32(2, 5, 3),
    f32(2, 5, 4),
)
def _(q: Array, k: Array, v: Array) -> Array:
    scores = q.astype(np.float64) @ k.transpose(0, 2, 1)
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    return (softmax(scores) @ v).astype(np.float32)


@case(
    "empty_reduction",
    "where: a reduction over nothing gives the identity",
    """
cascade f(X: f32[p, m]) -> (G, S) {
  G[p] = max(m) X[p, m] where m < p
  S[p] = sum(m) X[p, m] where m < p
}""",
    f32(4, 3),
)
def _(x: Array) -> tuple[Array, ...]:
    rows = [x[p, :p].astype(np.float64) for p in range(4)]
    largest = np.array([r.max() if r.size else -np.inf for r in rows], np.float32)
    return largest, np.array([r.sum() for r in rows]).astype(np.float32)


@case(
    "partial_else",
    "else outside a partial tensor's domain",
    """
cascade f(X: f32[n]) -> Z {
  Y[n] = 2.0 * X[n] where n >= 2
  Z[n] = (Y[n] else -1.0)
}""",
    f32(5),
)
def _(x: Array) -> Array:
    return np.where(np.arange(5) >= 2, 2 * x, np.float32(-1))


@case(
    "data_domain",
    "where over a boolean tensor",
    """
cascade f(X: f32[b, n], M: bool[b, n]) -> S {
  S[b] = sum(n) X[b, n] where M[b, n]
}""",
    f32(3, 6),
    RNG.random((3, 6)) < 0.5,
)
def _(x: Array, m: Array) -> Array:
    return np.where(m, x.astype(np.float64), 0).sum(1).astype(np.float32)


# --- reads -----------------------------------------------------------------------------------------------------------


@case(
    "window",
    "affine reads: stride, padding by else, reduced ranks",
    """
cascade conv(X: f32[n, c, h, w], W: f32[o, c, 3, 3]) -> Y {
  Y[n, o, y:(h - 1)//2 + 1, x:(w - 1)//2 + 1] = sum(c, i:3, j:3) (X[n, c, 2*y + i - 1, 2*x + j - 1] else 0) * W[o, c, i, j]
}""",
    f32(2, 3, 7, 6),
    f32(4, 3, 3, 3),
)
def _(x: Array, w: Array) -> Array:
    n, _, h, width = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, w.shape[0], (h - 1) // 2 + 1, (width - 1) // 2 + 1))
    for y in range(out.shape[2]):
        for z in range(out.shape[3]):
            out[:, :, y, z] = np.einsum("ncij,ocij->no", padded[:, :, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3], w)
    return out.astype(np.float32)


@case(
    "reshape",
    "// and % in reads: a reshape folds into the access",
    """
cascade split_heads(X: f32[b, t, 6]) -> Y {
  Y[b, h:2, t, e:3] = X[b, t, 3*h + e]
  }""",
    f32(2, 4, 6),
)
def _(x: Array) -> Array:
    return x.reshape(2, 4, 2, 3).transpose(0, 2, 1, 3)


@case(
    "flatten",
    "division by a symbolic extent",
    """
cascade flatten(X: f32[a, b, c]) -> Y {
  Y[i:a*b*c] = X[i // (b*c), i // c % b, i % c]
}""",
    f32(2, 3, 4),
)
def _(x: Array) -> Array:
    return x.reshape(-1)


@case(
    "reflect_pad",
    "min and max in reads: reflection and clamping",
    """
cascade pad(X: f32[n]) -> (R, E) symbols (n in 3..) {
  R[i: n + 4] = X[max(i - 2, 2 - i) - 2*max(i - 2 - (n - 1), 0)]
  E[i: n + 4] = X[min(max(i - 2, 0), n - 1)]
}""",
    f32(5),
)
def _(x: Array) -> tuple[Array, ...]:
    return np.pad(x, 2, mode="reflect"), np.pad(x, 2, mode="edge")


@case(
    "gather",
    "another tensor's value as an index",
    """
cascade embed(E: f32[v, d], I: i64[b, t]) -> Y {
  Y[b, t, d] = E[I[b, t], d]
}""",
    f32(7, 3),
    RNG.integers(0, 7, (2, 4)),
)
def _(table: Array, index: Array) -> Array:
    return table[index]


@case(
    "concatenate",
    "piecewise definition",
    """
cascade concat(A: f32[n, d], B: f32[m, d]) -> Y {
  Y[i: n + m, d] = A[i, d] when i < n | B[i - n, d]
}""",
    f32(3, 2),
    f32(4, 2),
)
def _(a: Array, b: Array) -> Array:
    return np.concatenate([a, b])


@case(
    "roll",
    "piecewise definition with a scalar between",
    """
cascade roll(A: f32[n]) -> Y {
  Y[n] = { A[n + 1] when n < #n - 1 | A[0] * 10.0 when n == #n - 1 | 0.0 }
}""",
    f32(5),
)
def _(a: Array) -> Array:
    rolled = np.roll(a, -1)
    rolled[-1] *= 10
    return rolled


@case(
    "diagonal",
    "one rank in two indices, a broadcast",
    """
cascade f(X: f32[n, n], B: f32[1, m]) -> (D, T) {
  D[n] = X[n, n]
  T[n, m] = X[n, 0] + B[0, m]
}""".replace("X[n, 0]", "(X[n, 0] else 0)"),
    f32(4, 4),
    f32(1, 3),
)
def _(x: Array, b: Array) -> tuple[Array, ...]:
    return np.diag(x).copy(), x[:, :1] + b


# --- writes ----------------------------------------------------------------------------------------------------------


@case(
    "scatter_add",
    "scatter with a fold",
    """
cascade f(X: f32[n, d], I: i64[n], O: f32[v, d]) -> S {
  scatter(n, d) S[I[n], d] sum= X[n, d] onto O
}""",
    f32(6, 2),
    np.array([0, 3, 3, 1, 0, 3]),
    f32(4, 2),
)
def _(x: Array, index: Array, o: Array) -> Array:
    result = o.astype(np.float64)
    np.add.at(result, index, x.astype(np.float64))
    return result.astype(np.float32)


@case(
    "scatter_last",
    "scatter where the last write wins; writes outside are dropped",
    """
cascade f(X: f32[n], I: i64[n], O: f32[v]) -> S {
  scatter(n) S[I[n]] set= X[n] onto O drop
}""",
    f32(6),
    np.array([0, 3, 3, -1, 0, 9]),
    f32(4),
)
def _(x: Array, index: Array, o: Array) -> Array:
    result = o.copy()
    for k, i in enumerate(index):
        if 0 <= i < 4:
            result[i] = x[k]
    return result


@case(
    "cache_append",
    "a state updated in place: scatter at a position, donated argument",
    """
program append(donate C: f32[b, l, d], N: f32[b, 1, d], P: i64[1]) -> (C1) {
  scatter(b, i:1, d) C1[b, P[0] + i, d]: f32 set= N[b, i, d] onto C
}""",
    f32(2, 5, 3),
    f32(2, 1, 3),
    np.array([2]),
)
def _(cache: Array, new: Array, at: Array) -> Array:
    result = cache.copy()
    result[:, at[0]] = new[:, 0]
    return result


# --- reductions ------------------------------------------------------------------------------------------------------


@case(
    "argmax",
    "a tuple reduction: first index on ties, NaN wins",
    """
cascade f(X: f32[p, m]) -> (V, I) {
  (V[p], I[p]) = argmax(m) (X[p, m], m)
}""",
    np.array([[1, 5, 5], [2, np.nan, 9], [-np.inf, -np.inf, -np.inf]], np.float32),
)
def _(x: Array) -> tuple[Array, ...]:
    return np.array([5, np.nan, -np.inf], np.float32), np.array([1, 1, 0])


@case(
    "welford",
    "a monoid of three values: (n, mean, M2)",
    """
cascade f(X: f32[p, m]) -> (N, A, Q) {
  (N, A, Q)[p]: f32, f32, f32 = welford(m) (1.0, X[p, m], 0.0)
}""",
    f32(3, 17),
)
def _(x: Array) -> tuple[Array, ...]:
    wide = x.astype(np.float64)
    mean = wide.mean(1)
    return np.full(3, 17, np.float32), mean.astype(np.float32), ((wide - mean[:, None]) ** 2).sum(1).astype(np.float32)


@case(
    "accumulator",
    "an accumulator type: i8 products summed in i32",
    """
cascade f(A: i8[m, k], B: u8[k, n]) -> C {
  C[m, n] = sum(k) cast<i32>(A[m, k]) * cast<i32>(B[k, n])
}""",
    RNG.integers(-128, 128, (3, 40)).astype(np.int8),
    RNG.integers(0, 256, (40, 2)).astype(np.uint8),
)
def _(a: Array, b: Array) -> Array:
    return a.astype(np.int32) @ b.astype(np.int32)


@case(
    "half_precision",
    "f16 and bf16: rounded once, accumulated in f32",
    """
cascade f(A: f16[m, k], B: bf16[k]) -> (S, P) {
  S[m]: f16 = sum<f32>(k) A[m, k]
  P[m, k]: bf16 = cast<bf16>(cast<f32>(A[m, k]) * cast<f32>(B[k]))
}""",
    f32(2, 9).astype(np.float16),
    f32(9).astype(ml_dtypes.bfloat16),
)
def _(a: Array, b: Array) -> tuple[Array, ...]:
    product = a.astype(np.float32) * b.astype(np.float32)  # exact: 11 + 8 bits
    return a.astype(np.float64).sum(1).astype(np.float16), product.astype(ml_dtypes.bfloat16)


@case(
    "all_and_any",
    "boolean and bitwise reductions",
    """
cascade f(X: bool[p, m], Y: i32[p, m]) -> (A, O, B) {
  A[p] = and(m) X[p, m]
  O[p] = or(m) X[p, m]
  B[p] = xor(m) Y[p, m]
}""",
    RNG.random((4, 3)) < 0.7,
    RNG.integers(-100, 100, (4, 3)).astype(np.int32),
)
def _(x: Array, y: Array) -> tuple[Array, ...]:
    return x.all(1), x.any(1), np.bitwise_xor.reduce(y, axis=1)


# --- recurrences -----------------------------------------------------------------------------------------------------


@case(
    "cumulative_sum",
    "a single-Einsum iterative rank",
    """
cascade f(A: f32[n, d]) -> Z {
  Z[n, d] = Z[n - 1, d] + A[n, d]
}""",
    f32(6, 2),
)
def _(a: Array) -> Array:
    total, rows = np.zeros(2, np.float32), []
    for row in a:
        total = (total.astype(np.float64) + row).astype(np.float32)
        rows.append(total)
    return np.stack(rows)


@case(
    "running_maximum",
    "an iterative rank with its first value: RM[i+1] from RM[i]",
    """
cascade f(X: f32[i, p]) -> RM {
  RM[0, p] = -inf
  RM[i+1, p] = max(RM[i, p], X[i, p])
}""",
    f32(5, 3),
)
def _(x: Array) -> Array:
    return np.maximum.accumulate(np.concatenate([np.full((1, 3), -np.inf, np.float32), x]))


@case(
    "gated_recurrence",
    "scan with a tuple of states",
    """
cascade rnn(X: f32[t, b, i], W: f32[i, h], U: f32[h, h], H0: f32[b, h], N0: f32[b]) -> (Y, HN, NN) {
  scan t carry (H = H0, N = N0) {
    XW[b, h] = sum(i) X[t, b, i] * W[i, h]
    UH[b, h] = sum(k:h) H[b, k] * U[k, h]
    H1[b, h] = tanh(XW[b, h] + UH[b, h])
    S[b] = sum(h) H1[b, h] * H1[b, h]
    N1[b] = N[b] + S[b]
    yield (H1, N1)
  } -> (HN, NN) stack (Y = H1)
}""",
    f32(4, 2, 3),
    f32(3, 5),
    f32(5, 5) * np.float32(0.3),
    f32(2, 5),
    f32(2),
)
def _(x: Array, w: Array, u: Array, h: Array, n: Array) -> tuple[Array, ...]:
    rows = []
    for step in x:
        h = np.tanh(step.astype(np.float64) @ w + h.astype(np.float64) @ u).astype(np.float32)
        n = (n + (h.astype(np.float64) ** 2).sum(1)).astype(np.float32)
        rows.append(h)
    return np.stack(rows), h, n


# --- programs --------------------------------------------------------------------------------------------------------


@case(
    "branch",
    "if",
    """
program p(X: f32[n], C: bool[]) -> (R) {
  if C {
    A[n]: f32 = X[n] * 2.0
    yield (A)
  } else {
    B[n]: f32 = neg(X[n])
    yield (B)
  } -> (R)
}""",
    f32(4),
    np.array(False),
)
def _(x: Array, c: Array) -> Array:
    return x * 2 if c else -x


@case(
    "loop_collect",
    "while with carried and collected tensors; the count becomes an extent",
    """
program p(X: f32[], L: i64[], C: bool[]) -> (XN, Y, S) {
  loop i < L while C carry (x = X) {
    x1[]: f32 = x[] * 0.5 + cast<f32>(i[])
    go[]: bool = x1[] < 5.0
    yield (go, x1, x1)
  } -> (XN) collect (Y) upto n in 0..100
  S[]: f32 = sum(n) Y[n]
}""",
    np.array(4, np.float32),
    np.array(50),
    np.array(True),
)
def _(x: Array, limit: Array, c: Array) -> tuple[Array, ...]:
    rows, i, go = [], 0, bool(c)
    while go and i < limit:
        x = np.float32(x * np.float32(0.5) + np.float32(i))
        rows.append(x)
        go, i = bool(x < 5), i + 1
    return np.asarray(x), np.array(rows, np.float32), np.asarray(np.sum(rows, dtype=np.float64).astype(np.float32))


@case(
    "bind",
    "an integer scalar becomes an extent",
    """
program p(X: f32[m], K: i64[1]) -> (Y) {
  bind k in 0..m0 = K
  Y[i:k]: f32 = (X[i] else 0.0)
}""".replace("0..m0", "0..64"),
    f32(5),
    np.array([7]),
)
def _(x: Array, k: Array) -> Array:
    return np.concatenate([x, np.zeros(2, np.float32)])


@case(
    "library",
    "library operations, one of which binds an extent",
    """
program p(X: f32[n, m], I: i64[n]) -> (V, P, Z) {
  (V: f32[n, 2], P: i64[n, 2]) = library topk(X) {axis = 1, k = 2, largest = true, sorted = true}
  (A: i64[1, c]) = library nonzero(I) {} binds (c in 0..)
  Z[c]: i64 = A[0, c] * 10
}""",
    f32(3, 5),
    np.array([0, 4, -1]),
)
def _(x: Array, i: Array) -> tuple[Array, ...]:
    order = np.argsort(-x, axis=1, kind="stable")[:, :2]
    return np.take_along_axis(x, order, 1), order, np.nonzero(i)[0] * 10


@case(
    "kernels",
    "launches of kernels, a layout, constants of a kernel's own cascade",
    """
kernel over (b) k0(X: f32[b, n], W: f32[n, m]) -> (Z) {
  Y[b, m]: f32 = sum(n) X[b, n] * W[n, m]
  Z[b, m]: f32 = max(Y[b, m], 0.0)
}

program p(X: f32[b, n], W: f32[n, m]) -> (R) {
  V[n, m]: f32{1, 0} = W[n, m]
  (Z) = launch k0(X, V)
  R[m, b]: f32 = Z[b, m]
}""".replace("V[n, m]: f32{1, 0}", "V[n, m]: f32"),
    f32(3, 4),
    f32(4, 2),
)
def _(x: Array, w: Array) -> Array:
    return np.maximum((x.astype(np.float64) @ w).astype(np.float32), 0).T


@case(
    "transfers",
    "a tensor leaves the arena and comes back, its value the same",
    """
kernel over (n) add(A: f32[n], B: f32[n]) -> (C) {
  C[n]: f32 = A[n] + B[n]
}

program p(X: f32[n], Y: f32[n]) -> (R) {
  (S) = launch add(X, Y)
  spill S
  (T) = launch add(X, X)
  fill S
  (R) = launch add(S, T)
}""",
    f32(5),
    f32(5),
)
def _(x: Array, y: Array) -> Array:
    return (x + y) + (x + x)


# --- extents, scalars, types -----------------------------------------------------------------------------------------


@case(
    "extents",
    "extents that are expressions over symbols with facts",
    """
cascade pool(X: f32[n, c]) -> (Y, Z) symbols (n in 2..64 by 2) {
  Y[i: n//2, c] = max(X[2*i, c], X[2*i + 1, c])
  Z[i: 2*n - 1, c] = { X[i // 2, c] when i % 2 == 0 | 0.0 }
}""",
    f32(6, 2),
)
def _(x: Array) -> tuple[Array, ...]:
    spread = np.zeros((11, 2), np.float32)
    spread[::2] = x
    return np.maximum(x[::2], x[1::2]), spread


@case(
    "integer_division",
    "division that truncates, floors, is Euclidean; by zero; wrap",
    """
cascade f(A: i32[n], B: i32[n]) -> (T, F, E, R, M, W) {
  T[n] = div_trunc(A[n], B[n])
  F[n] = div_floor(A[n], B[n])
  E[n] = div_euclid(A[n], B[n])
  R[n] = rem_trunc(A[n], B[n])
  M[n] = rem_floor(A[n], B[n])
  W[n] = A[n] * A[n]
}""",
    np.array([7, -7, 7, -7, 5, -(2**31), 0], np.int32),
    np.array([2, 2, -2, -2, 0, -1, 3], np.int32),
)
def _(a: Array, b: Array) -> tuple[Array, ...]:
    def of(*values: int) -> Array:
        return np.array(values, np.int64).astype(np.int32)

    return (
        of(3, -3, -3, 3, 0, 2**31, 0),
        of(3, -4, -4, 3, 0, 2**31, 0),
        of(3, -4, -3, 4, 0, 2**31, 0),
        of(1, -1, 1, -1, 0, 0, 0),
        of(1, 1, -1, -1, 0, 0, 0),
        of(49, 49, 49, 49, 25, 0, 0),
    )


@case(
    "shifts_and_bits",
    "shifts beyond the width, bit operations",
    """
cascade f(A: i8[n], B: i8[n]) -> (L, R, N, X) {
  L[n] = shl(A[n], B[n])
  R[n] = shr(A[n], B[n])
  N[n] = not(A[n])
  X[n] = (A[n] & B[n]) | (A[n] ^ B[n])
}""",
    np.array([1, 1, -128, -1, 100], np.int8),
    np.array([3, 8, 9, 1, -1], np.int8),
)
def _(a: Array, b: Array) -> tuple[Array, ...]:
    return (
        np.array([8, 0, 0, -2, 0], np.int8),
        np.array([0, 0, -1, -1, 0], np.int8),
        ~a,
        a | b,
    )


@case(
    "casts",
    "float to integer out of range and NaN; to bool; bitcast; rounding half to even",
    """
cascade f(X: f32[n]) -> (S, W, U, B, I, R) {
  S[n] = cast<i8>(X[n])
  W[n] = cast<i8, wrap>(X[n])
  U[n] = cast<u8>(X[n])
  B[n] = cast<bool>(X[n])
  I[n] = bitcast<u32>(X[n])
  R[n] = round(X[n])
}""",
    np.array([0.0, -0.0, 2.5, 3.5, -1.9, 300.0, -300.0, np.nan, np.inf], np.float32),
)
def _(x: Array) -> tuple[Array, ...]:
    return (
        np.array([0, 0, 2, 3, -1, 127, -128, 0, 127], np.int8),
        np.array([0, 0, 2, 3, -1, 44, -44, 0, 0], np.int8),
        np.array([0, 0, 2, 3, 0, 255, 0, 0, 255], np.uint8),
        np.array([False, False, True, True, True, True, True, True, True]),
        x.view(np.uint32),
        np.array([0, -0.0, 2, 4, -2, 300, -300, np.nan, np.inf], np.float32),
    )


@case(
    "nan_and_zero",
    "NaN in max, min and select; the sign of zero; division by zero",
    """
cascade f(X: f32[n], Y: f32[n]) -> (A, B, C, D, E) {
  A[n] = max(X[n], Y[n])
  B[n] = min(X[n], Y[n])
  C[n] = maxnum(X[n], Y[n])
  D[n] = select(X[n] < Y[n], X[n], Y[n])
  E[n] = X[n] / Y[n]
}""",
    np.array([np.nan, 1, -0.0, np.inf, 1], np.float32),
    np.array([1, np.nan, 2, -np.inf, 0], np.float32),
)
def _(x: Array, y: Array) -> tuple[Array, ...]:
    nan, inf = np.nan, np.inf
    return tuple(
        np.array(v, np.float32)
        for v in (
            [nan, nan, 2, inf, 1],
            [nan, nan, -0.0, -inf, 0],
            [1, 1, 2, inf, 1],
            [1, nan, -0.0, -inf, 0],
            [nan, nan, -0.0, nan, inf],
        )
    )


@case(
    "index_values",
    "rank indices as scalars: an alibi bias, a counter-based random number",
    """
cascade f(S: f32[h]) -> (B, U) {
  B[h, p:3, m:4] = S[h] * cast<f32>(m - p)
  U[i:5] = cast<u32>(i) * u32(2654435761) ^ u32(40503)
}""",
    f32(2),
)
def _(s: Array) -> tuple[Array, ...]:
    bias = s[:, None, None] * (np.arange(4)[None, None] - np.arange(3)[None, :, None]).astype(np.float32)
    mixed = (np.arange(5, dtype=np.uint64) * 2654435761).astype(np.uint32) ^ np.uint32(40503)
    return bias.astype(np.float32), mixed


@case(
    "zero_extent",
    "extents of 0 and 1",
    """
cascade f(X: f32[n, m]) -> (S, M, T) {
  S[n] = sum(m) X[n, m]
  M[n] = max(m) X[n, m]
  T[m, n] = X[n, m]
}""",
    np.zeros((1, 0), np.float32),
)
def _(x: Array) -> tuple[Array, ...]:
    return np.zeros(1, np.float32), np.full(1, -np.inf, np.float32), np.zeros((0, 1), np.float32)


@case(
    "relayout",
    "a layout: the same values stored in another order",
    """
cascade f(W: f32[n, k]) -> P {
  P[n, k]: f32{1, 0} = W[n, k]
}""",
    f32(3, 4),
)
def _(w: Array) -> Array:
    return w
