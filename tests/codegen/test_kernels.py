"""Programs through the default pipeline to native code, against the interpreter: one for each fault found by fuzzing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import dlc
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F16, F32, I64
from dlc.ir.einsum import Einsum, Rank
from dlc.ir.expr import Expr, Index, access, apply, const
from dlc.ir.extent import IntExpr, value, var
from dlc.ir.interpret import run_program
from dlc.ir.view import Val

Build = Callable[[Builder], tuple[Sequence[Val], Sequence[np.ndarray]]]


def agree(build: Build, *, target: str = "host", exact: bool = False) -> tuple[np.ndarray, ...]:
    """Compile and run, compare with the interpreter, and return the results."""
    b = Builder("case")
    outs, inputs = build(b)
    program = b.finish(outs)
    want = run_program(program, inputs)
    got = dlc.compile(program, target=target, threads=2)(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        if exact or w.dtype.kind in "iub":
            exactly = (lambda a: a.astype(np.float64)) if w.dtype.kind not in "iub" else (lambda a: a)
            np.testing.assert_array_equal(exactly(g), exactly(w))
        else:
            np.testing.assert_allclose(g.astype(np.float64), w.astype(np.float64), rtol=1e-5, atol=1e-6)
    return got


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def test_readers_of_partial_tensors_inherit_the_domain() -> None:
    """An intermediate step is partial only by what it reads; after fusion its reader still skips what does not exist."""

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", F32, (6, 23))
        ranks = (Rank("i", x.shape[0]), Rank("j", x.shape[1]))
        where = apply("le", Index(var("j")), Index(var("i")))
        b.emit(Einsum(("part",), ranks, (x(var("i"), var("j")),), (F32,), where=where))
        b.types["part"] = x_type = b.types["x"]
        assert x_type.rank == 2
        twice = b.map("twice", lambda u: apply("mul", const(2.0), u), b.tensor("part"))
        return [b.reduce_axes("low", "min", twice, [1], False)], [np.abs(normal(6, 23)) + 1]

    (low,) = agree(build)
    assert (low > 0).all()


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_constants_of_16_bits_are_rounded(dtype) -> None:  # type: ignore[no-untyped-def]
    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", dtype, (40,))
        return [b.map("y", lambda u: apply("mul", u, const(1 / 17, dtype)), x)], [normal(40).astype(dtype.numpy)]

    agree(build, exact=True)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_nextafter_steps_in_its_own_type(dtype) -> None:  # type: ignore[no-untyped-def]
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8])
    a, c = (x.reshape(-1).astype(dtype.numpy) for x in np.meshgrid(special, special))

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x, y = b.input("x", dtype, a.shape), b.input("y", dtype, a.shape)
        return [b.map("z", lambda u, v: apply("nextafter", u, v), x, y)], [a, c]

    agree(build, exact=True)


def test_nextafter_of_something_computed() -> None:
    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", BF16, (64,))
        y = b.map("y", lambda u: apply("nextafter", apply("mul", u, const(0.3, BF16)), u), x)
        return [y], [normal(64).astype(BF16.numpy)]

    agree(build, exact=True)


def test_kernels_without_points() -> None:
    """Static extents of 0 anywhere: no division of a task number by them."""

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        n = b.symbol("n", 1)
        x, y = b.input("x", F32, (0, n)), b.input("y", F32, (n, 2))
        z = b.contract("z", "mk,kn->mn", x, y)
        w = b.map("w", lambda u: apply("exp", u), b.input("v", F32, (3, 0, 5)))
        s = b.reduce_axes("s", "sum", w, [1], False)
        return [z, w, s], [normal(0, 7), normal(7, 2), normal(3, 0, 5)]

    agree(build)


def test_a_tuple_reduction_over_one_element() -> None:
    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", F32, (5, 1))
        v, i = b.tuple_reduce(("v", "i"), "argmax", (5,), (1,), lambda i, r: (x(i[0], r[0]), Index(r[0])), (F32, I64))
        return [v, i], [normal(5, 1)]

    agree(build)


def test_nests_do_not_share_tiles_over_inner_ranks() -> None:
    """`t2` is made with lanes along its rows, and read by a nest with lanes along the columns."""

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", F32, (3, 9, 3))
        y = b.map("y", lambda u: apply("exp", u), x)
        rows = b.reduce_axes("rows", "max", y, [2], True)
        back = b.map("back", lambda u, v: apply("sub", u, v), y, rows)
        return [b.reduce_axes("cols", "sum", back, [1], False)], [normal(3, 9, 3)]

    agree(build)


def test_gathered_operand_of_a_masked_contraction() -> None:
    """The offsets of a column operand that is not linear in the lanes have no slots; the mask of the columns has."""
    w = normal(20, 1, 3, 1, dtype="float16")

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x, k = b.input("x", F16, (1, 1, 9, 7)), b.constant(w, "w")

        def term(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            read = access("x", i[0], r[0], i[2] + 2 * r[1] - 2, i[3] + 2 * r[2], default=const(0.0, F16))
            return apply("mul", read, k(i[1], *r))

        assert x.rank == 4
        return [b.reduce("y", "sum", (1, 20, 9, 7), (1, 3, 1), term, F16)], [normal(1, 1, 9, 7, dtype="float16")]

    b = Builder("case")
    outs, inputs = build(b)
    program = b.finish(outs)
    (want,) = run_program(program, inputs)
    np.testing.assert_allclose(dlc.compile(program)(*inputs).astype("f8"), want.astype("f8"), atol=4e-3)


def test_folding_does_not_round_within_an_expression() -> None:
    """2 + 0.0123 in bf16 would be 2.016, and its cosine 4 units off."""

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x = b.input("x", BF16, (3,))
        inner = apply("add", const(2.0, BF16), const(0.0123, BF16))
        return [b.map("y", lambda u: apply("add", u, apply("cos", inner)), x)], [np.zeros(3, BF16.numpy)]

    agree(build, exact=True)


def test_an_epilogue_reads_its_tile_whatever_the_index_looks_like() -> None:
    """With a batch of at most 1, merging batch and columns simplifies the index of the result and not of its reader."""
    w = normal(20, 2, 3)

    def build(b: Builder) -> tuple[Sequence[Val], Sequence[np.ndarray]]:
        x, k = b.input("x", F32, (b.symbol("s", 0, 1), 2, 15)), b.constant(w, "w")

        def term(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            return apply("mul", x(i[0], r[0], i[2] + r[1]), k(i[1], *r))

        return [b.reduce("y", "sum", (x.shape[0], 20, 13), (2, 3), term, F32)], [normal(1, 2, 15)]

    agree(build)


def test_a_gather_from_a_view_is_checked_against_the_view() -> None:
    """Row 6 of the tensor exists, but the view has 4 rows only; and its padding must not hide an index that is negative."""
    from dlc.errors import DlcError

    b = Builder("case")
    x, ix = b.input("x", F32, (9, 3)), b.input("ix", I64, (2,))
    rows = b.compute("rows", (4, 3), lambda i, j: x(i + 2, j), F32)
    padded = b.compute("padded", (6, 3), lambda i, j: access("x", i - 3, j, default=const(0.0)), F32)
    outs = [b.compute(f"g{n}", (2, 3), lambda i, j, v=v: v(value(ix(i)), j), F32) for n, v in enumerate((rows, padded))]
    exe = dlc.compile(b.finish(outs))
    a = normal(9, 3)
    g0, g1 = exe(a, np.array([0, 3]))
    np.testing.assert_array_equal(g0, a[[2, 5]])
    np.testing.assert_array_equal(g1, [np.zeros(3), a[0]])
    for wrong in (4, -1):
        with pytest.raises(DlcError):
            exe(a, np.array([0, wrong]))
