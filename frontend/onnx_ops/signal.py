"""Fourier transforms as sums over a table of roots, mel weights, determinants, n-gram counts."""

from __future__ import annotations

import math

import numpy as np

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.frontend.onnx_value import Tensor
from dlc.ir.dtype import F32, F64, I64, DType
from dlc.ir.expr import Cast, Expr, Index, Piecewise, apply, const, index_value
from dlc.ir.extent import IntExpr, IntLike, int_expr
from dlc.ir.view import Val


def roots(c: Ctx, n: int, dtype: DType) -> tuple[Val, Val]:
    """cos and sin of 2 pi k / n for k < n."""
    angle = 2 * np.pi * np.arange(n) / n
    cos, sin = np.cos(angle), np.sin(angle)
    return c.b.constant(cos.astype(dtype.numpy), "cos"), c.b.constant(sin.astype(dtype.numpy), "sin")


def term(x: Val, at: tuple[IntExpr, ...], part: IntExpr, cos: Expr, sin: Expr, sign: int) -> Expr:
    """Real (part 0) or imaginary part of x[at] * (cos + i*sign*sin), where x has a trailing part dimension."""
    real = x.at((*at, int_expr(0)))
    turned = apply("mul", real, sin)
    if x.shape[-1].const == 1:
        re, im = apply("mul", real, cos), turned if sign > 0 else apply("neg", turned)
    else:
        imag = x.at((*at, int_expr(1)))
        across = apply("mul", imag, sin)
        re = apply("sub" if sign > 0 else "add", apply("mul", real, cos), across)
        im = apply("add" if sign > 0 else "sub", apply("mul", imag, cos), turned)
    return Piecewise(((apply("eq", Index(part), const(0, I64)), re),), im)


@op("DFT")
def dft(c: Ctx) -> Result:
    x = c.x(0)
    if c.version >= 20:
        axis = int(c.scalar_number(2, "its axis")) if c.has(2) else -2
    else:
        axis = c.int_("axis", 1)
    axis = c.axis(axis, x.rank)
    inverse, onesided = c.flag("inverse", 0), c.flag("onesided", 0)
    if axis == x.rank - 1 or x.shape[-1].const not in (1, 2):
        c.bad("its last dimension holds the real and imaginary parts")
    (extent,) = c.known([x.shape[axis]], "the extent it transforms")
    if c.has(1):
        n = int(c.scalar_number(1, "its length"))
    else:
        n = 2 * (extent - 1) if inverse and onesided else extent
    if n < 1:
        c.bad(f"a transform of length {n}")
    c.limit(n, 1 << 20, "its length")
    dtype, t = x.dtype, F64
    cos, sin = roots(c, n, t)
    # Terms cancel: f64 throughout, rounded once.
    source = x
    x = Val(t, source.shape, lambda i: Cast(t, source.at(i)))
    bins = n // 2 + 1 if onesided and not inverse else n
    used = min(extent, n // 2 + 1 if inverse and onesided else n)

    def turn(i: tuple[IntExpr, ...], r: IntExpr) -> IntExpr:
        return (i[axis] * r) % n

    if inverse and onesided:

        def real(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            at = (*i[:axis], r[0], *i[axis + 1 : -1])
            value = apply("mul", x.at((*at, int_expr(0))), cos(turn(i, r[0])))
            if x.shape[-1].const == 2:
                value = apply("sub", value, apply("mul", x.at((*at, int_expr(1))), sin(turn(i, r[0]))))
            ends = apply("eq", Index(r[0]), const(0, I64))
            if n % 2 == 0:
                ends = apply("or", ends, apply("eq", Index(r[0]), const(n // 2, I64)))
            return apply("mul", value, apply("select", ends, const(1, t), const(2, t)))

        full: list[IntLike] = [*x.shape[:axis], n, *x.shape[axis + 1 : -1], 1]
        y = c.b.reduce(f"{c.hint}_sum", "sum", full, [used], real, t)
        return c.b.map(c.hint, lambda a: Cast(dtype, apply("div", a, const(n, t))), y, dtype=dtype)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        at = (*i[:axis], r[0], *i[axis + 1 : -1])
        k = turn(i, r[0])
        return term(x, at, i[-1], cos(k), sin(k), 1 if inverse else -1)

    shape: list[IntLike] = [*x.shape[:axis], bins, *x.shape[axis + 1 : -1], 2]
    if not inverse:
        return c.b.cast(c.b.reduce(c.hint, "sum", shape, [used], element, t), dtype)
    y = c.b.reduce(f"{c.hint}_sum", "sum", shape, [used], element, t)
    return c.b.map(c.hint, lambda a: Cast(dtype, apply("div", a, const(n, t))), y, dtype=dtype)


@op("STFT")
def stft(c: Ctx) -> Result:
    x = c.x(0)
    step = int(c.scalar_number(1, "its frame step"))
    window = c.opt(2)
    onesided = c.flag("onesided", 1)
    if x.rank == 2:
        x = x.unsqueeze(2)
    if c.has(3):
        n = int(c.scalar_number(3, "its frame length"))
    elif window is not None:
        (n,) = c.known([window.shape[0]], "its frame length")
    else:
        c.bad("neither a window nor a frame length is given")
    if step < 1 or n < 1:
        c.bad(f"frames of {n} every {step}")
    c.limit(n, 1 << 20, "its frame length")
    t = x.dtype
    cos, sin = roots(c, n, t)
    frames = (x.shape[1] - n) // step + 1
    bins = n // 2 + 1 if onesided else n

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        k = (i[2] * r[0]) % n
        value = term(x, (i[0], i[1] * step + r[0]), i[3], cos(k), sin(k), -1)
        return value if window is None else apply("mul", value, window(r[0]))

    return c.b.reduce(c.hint, "sum", [x.shape[0], frames, bins, 2], [n], element, t)


@op("MelWeightMatrix")
def mel_weight_matrix(c: Ctx) -> Result:
    bands, length, rate = (int(c.scalar_number(i, "its sizes")) for i in range(3))
    low, high = (float(c.scalar_number(i, "its edges")) for i in (3, 4))
    dtype = element_type(c.int_("output_datatype", 1), c.loc, c.op)
    if bands < 1 or length < 1 or rate < 1 or low < 0 or high > rate / 2:
        c.bad("its sizes and edges do not fit together")
    c.limit(bands * length, 1 << 24, "its number of weights")
    mel = [2595 * math.log10(1 + f / 700) for f in (low, high)]
    step = (mel[1] - mel[0]) / (bands + 2)
    hertz = 700 * (10 ** ((np.arange(bands + 2) * step + mel[0]) / 2595) - 1)
    edges = (((length + 1) * hertz) // rate).astype(int)
    weights = np.zeros((length // 2 + 1, bands))
    for band in range(bands):
        left, centre, right = edges[band : band + 3]
        if centre == left:
            weights[centre, band] = 1
        else:
            places = np.arange(left, centre + 1)
            weights[places, band] = (places - left) / (centre - left)
        if right > centre:
            places = np.arange(centre, right)
            weights[places, band] = (right - places) / (right - centre)
    return Tensor(static=weights.astype(dtype.numpy), hint=c.hint)


@op("Det")
def det(c: Ctx) -> Result:
    """Gaussian elimination with row pivots, one step per column."""
    x = c.x(0)
    if x.rank < 2:
        c.bad(f"its input has {x.rank} dimensions, fewer than 2")
    n, m = c.known(x.shape[-2:], "the size of its matrices")
    if n != m:
        c.bad(f"its matrices are {n} x {m}")
    if n > 64:
        c.refuse(f"matrices of {n} x {n} are too large")
    t, lead = wide_type(x.dtype), list(x.shape[:-2])
    a = Val(t, x.shape, lambda i: Cast(t, x.at(i))) if t != x.dtype else x
    total = c.b.scalar(1.0, t).broadcast_to(lead)
    for k in range(n):
        rows = a

        def candidate(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...], a: Val = rows, k: int = k) -> tuple[Expr, ...]:
            return apply("abs", a.at((*i, r[0] + k, int_expr(k)))), Index(r[0] + k)

        hints = (f"{c.hint}_most", f"{c.hint}_row")
        _, row = c.b.tuple_reduce(hints, "argmax", lead, [n - k], candidate, (t, I64))

        def pivot_at(i: tuple[IntExpr, ...], j: IntExpr, a: Val = rows, row: Val = row) -> Expr:
            return a.at((*i, index_value(row.at(i)), j))

        def factor(*i: IntExpr, k: int = k, pivot_at=pivot_at, row: Val = row, total: Val = total) -> Expr:  # type: ignore[no-untyped-def]
            value = apply("mul", total.at(i), pivot_at(i, int_expr(k)))
            return apply("select", apply("eq", row.at(i), const(k, I64)), value, apply("neg", value))

        new_total = c.b.compute(f"{c.hint}_part", lead, factor, t)
        if k + 1 < n:

            def eliminated(*i: IntExpr, a: Val = rows, k: int = k, pivot_at=pivot_at, row: Val = row) -> Expr:  # type: ignore[no-untyped-def]
                lead_, r, j = i[:-2], i[-2], i[-1]
                # The row that the pivot came from holds what was in the pivot's place.
                source = index_value(apply("select", apply("eq", Index(r), row.at(lead_)), const(k, I64), Index(r)))
                pivot = pivot_at(lead_, int_expr(k))
                share = apply("div", a.at((*lead_, source, int_expr(k))), pivot)
                moved = apply("sub", a.at((*lead_, source, j)), apply("mul", share, pivot_at(lead_, j)))
                return apply("select", apply("eq", pivot, const(0, t)), const(0, t), moved)

            a = c.b.compute(f"{c.hint}_rows", x.shape, eliminated, t)
        total = new_total
    return total if t == x.dtype else c.b.cast(total, x.dtype)


@op("TfIdfVectorizer")
def tfidf_vectorizer(c: Ctx) -> Result:
    x = c.x(0)
    pool = c.ints("pool_int64s", None)
    if pool is None or not x.dtype.is_int:
        c.refuse("strings have no native form")
    if x.rank not in (1, 2):
        c.bad(f"its input has {x.rank} dimensions")
    flat = x if x.rank == 2 else x.unsqueeze(0)
    starts, places = [*c.ints("ngram_counts"), len(pool)], c.ints("ngram_indexes")
    shortest, longest, skips = c.int_("min_gram_length"), c.int_("max_gram_length"), c.int_("max_skip_count")
    weights, mode = c.floats("weights", None), c.str_("mode")
    if mode not in ("TF", "IDF", "TFIDF"):
        c.bad(f"mode {mode!r} is unknown")
    if len(set(places)) != len(places):
        c.refuse("n-grams that share a place of the result have no native form yet")
    if not 1 <= shortest <= longest or skips < 0 or any(p < 0 for p in places):
        c.bad("its lengths, skips and places do not fit together")
    size = max(places, default=-1) + 1
    rows, length = flat.shape
    parts: list[tuple[Val, list[int]]] = []
    seen = 0
    for n in range(1, len(starts)):
        grams = np.array(pool[starts[n - 1] : starts[n]], x.dtype.numpy).reshape(-1, n)
        ids = list(range(seen, seen + len(grams)))
        seen += len(grams)
        if len(grams) and shortest <= n <= longest:
            parts.append((count_grams(c, flat, grams, n, skips if n > 1 else 0, length), ids))
    column = np.full(size, -1, np.int64)
    gram_of = np.zeros(size, np.int64)
    joined = 0
    for _, ids in parts:
        for k, g in enumerate(ids):
            column[places[g]], gram_of[places[g]] = joined + k, g
        joined += len(ids)
    from dlc.frontend.onnx_ops.shapes import concat_vals

    if not parts:
        return c.b.scalar(0.0, F32).broadcast_to([size] if x.rank == 1 else [rows, size])
    counts = concat_vals(c, [v for v, _ in parts], 1)
    where = c.b.constant(column, "column")
    factor = np.ones(size, np.float32)
    if weights is not None and mode != "TF":
        factor = np.array([weights[g] for g in gram_of], np.float32)
    scale = c.b.constant(factor, "weights")

    def element(b: IntExpr, o: IntExpr) -> Expr:
        known = apply("ge", where(o), const(0, I64))
        value: Expr = Cast(F32, counts(b, where.gather_value(o)))
        if mode == "IDF":
            value = apply("select", apply("gt", value, const(0.0)), const(1.0), const(0.0))
        if mode != "TF":
            value = apply("mul", value, scale(o))
        return Piecewise(((known, value),), const(0.0))

    y = c.b.compute(c.hint, [rows, size], element, F32)
    return y.squeeze(0) if x.rank == 1 else y


def count_grams(c: Ctx, x: Val, grams: np.ndarray, n: int, skips: int, length: IntExpr) -> Val:
    """How often each of `grams` occurs in each row of `x`, i64[rows, grams], with every distance up to `skips` + 1."""
    table = c.b.constant(grams, "grams")
    total: Val | None = None
    c.limit(skips, 4096, "its skip count")
    for distance in range(1, skips + 2):
        reach = (n - 1) * distance
        if length.const is not None and length.const <= reach:
            continue

        def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...], distance: int = distance) -> Expr:
            same: Expr | None = None
            for k in range(n):
                one = apply("eq", x(i[0], r[0] + k * distance), table(i[1], k))
                same = one if same is None else apply("and", same, one)
            assert same is not None
            return Cast(I64, same)

        part = c.b.reduce(f"{c.hint}_count", "sum", [x.shape[0], len(grams)], [length - reach], element, I64)
        total = part if total is None else c.b.map(f"{c.hint}_counts", lambda a, e: apply("add", a, e), total, part)
    return total if total is not None else c.b.scalar(0, I64).broadcast_to([x.shape[0], len(grams)])
