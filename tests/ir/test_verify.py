"""Each rule of the verifier: a text that breaks it, the code and the place of the error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlc.ir import errors
from dlc.ir.dtype import BOOL, F32, F64, I64
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, TensorType, Write, einsum
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Expr, Piecewise, access, const
from dlc.ir.extent import int_expr, sym, value, var
from dlc.ir.loc import Loc
from dlc.ir.parser import parse, parse_program
from dlc.ir.program import Bind, Cascade, If, Kernel, Launch, Library, Loop, Param, Program, Region, Symbol, Transfer
from dlc.ir.verify import verify

N = sym("n")
HERE = Loc("model.py", 3, 1)
X = Param("X", TensorType(F32, (N,)))
I_N = (Rank("i", N),)


def cascade(*steps: Einsum | Scan, params: tuple[Param, ...] = (X,), results: tuple[str, ...] = ("Z",)) -> Cascade:
    return Cascade("f", params, steps, results)


def step(e: Expr, ranks: tuple[Rank, ...] = I_N, dtype: object = F32, **more: object) -> Einsum:
    return Einsum(("Z",), ranks, (e,), (dtype,), loc=HERE, **more)  # type: ignore[arg-type]


READ = access("X", "i")
BROKEN: list[tuple[type[errors.IrError], Cascade]] = [
    (errors.Redefined, cascade(step(READ), step(READ))),
    (errors.Undefined, cascade(step(access("Y", "i")))),
    (errors.WrongRankCount, cascade(step(access("X", "i", "i")))),
    (errors.TypeClash, cascade(step(Apply("add", (READ, const(1.0, F64)))))),
    (errors.TypeClash, cascade(step(Access("X", (var("i") - 1,), const(0.0, F64))))),
    (errors.TypeClash, cascade(step(Piecewise(((const(True, BOOL), READ),), const(0.0, F64))))),
    (errors.WrongKind, cascade(step(Apply("xor", (READ, READ))))),
    (errors.WrongKind, cascade(step(Bitcast(I64, READ), dtype=I64))),
    (errors.WrongKind, cascade(step(Access("X", (value(READ),))))),
    (errors.ResultType, cascade(step(READ, dtype=F64))),
    (errors.NotBool, cascade(step(READ, where=READ))),
    (errors.NotBool, cascade(step(Apply("select", (READ, READ, READ))))),
    (errors.NotBool, cascade(step(Piecewise(((READ, READ),), READ)))),
    (errors.UnknownRank, cascade(step(access("X", "j")))),
    (errors.DuplicateRank, cascade(step(READ, ranks=(Rank("i", N), Rank("i", N))))),
    (errors.UnboundSymbol, cascade(step(const(1.0), ranks=(Rank("i", sym("k")),)))),
    (errors.NotInBounds, cascade(step(Access("X", (var("i") + 1,))))),
    (errors.NotInBounds, cascade(step(Access("X", (var("i") - 1,))))),
    (errors.NotInBounds, cascade(step(Access("X", (int_expr(0),)), ranks=()))),
    (errors.UnknownReduction, cascade(step(READ, ranks=(), reduce=Reduce("median", I_N)))),
    (errors.ReductionArity, cascade(step(READ, ranks=(), reduce=Reduce("argmax", I_N)))),
    (errors.BadReduction, cascade(step(Apply("lt", (READ, READ)), ranks=(), dtype=BOOL, reduce=Reduce("sum", I_N)))),
    (errors.ResultType, cascade(step(READ, ranks=(), reduce=Reduce("sum", I_N, I64)))),
    (errors.BadScatter, cascade(step(READ, write=Write((var("i") + 1,), "X")))),
    (errors.BadScatter, cascade(step(READ, write=Write((var("i"), var("i")), "X")))),
    (errors.BadScatter, cascade(step(READ, write=Write((var("i"),), "X", "mean")))),
    (errors.ResultType, cascade(step(const(1, I64), dtype=I64, write=Write((var("i"),), "X")))),
    (errors.BadLayout, cascade(step(READ, order=(1,)))),
    (errors.BadPitch, cascade(step(READ, pitch=-4))),
    (errors.BadPitch, cascade(step(READ, pitch=4, write=Write((var("i"),), "X")))),
    (errors.UnknownOperator, cascade(step(Apply("expp", (READ,))))),
    (errors.WrongArity, cascade(step(Apply("exp", (READ, READ))))),
    (errors.UnknownOperator, cascade(step(Cast(F32, READ, "loud")))),
    (errors.DivisionByZeroExtent, cascade(step(Access("X", (var("i") // sym("m"),), const(0.0)), ranks=I_N),
                                          params=(X, Param("Y", TensorType(F32, (sym("m"),)))))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "what"), BROKEN, ids=lambda x: x.__name__ if isinstance(x, type) else "")
def test_steps(error: type[errors.IrError], what: Cascade) -> None:
    with pytest.raises(error) as caught:
        verify(what)
    assert str(caught.value.loc) == "model.py:3:1"
    assert type(caught.value) is error


OUTSIDE = [
    (errors.OutsideDomain, "Y[n] = X[n] where n >= 2\n  Z[n: #n - 1] = Y[n + 1] - X[n]"),
    (errors.PartialEscapes, "Z[n] = X[n] where n >= 2"),
    (errors.PartialEscapes, "Y[n] = X[n] where n >= 2\n  Z[n] = exp(Y[n])"),
    (errors.NotInBounds, "Z[i: 2*n] = X[i] when i <= #n | 0.0"),
    (errors.NotInBounds, "Z[i: n] = X[2*i] * 2.0 when i < #n | 0.0"),
]


@pytest.mark.parametrize(("error", "text"), OUTSIDE)
def test_domains_and_guards(error: type[errors.IrError], text: str) -> None:
    with pytest.raises(error) as caught:
        verify(parse(f"cascade f(X: f32[n]) -> Z {{\n  {text}\n}}", "bad.ein"))
    assert str(caught.value.loc).startswith("bad.ein:")
    assert caught.value.help is not None


PITCHED = [
    ("Z[n:3, k:5]: f32{+ 4} = X[n, k]", "'Z' cannot have a pitch of 4: it is a result"),
    ("Y[n:3]: f32{+ 4} = X[n, 0]\n  scatter(n:3, k:5) Z[n] set= X[n, k] onto Y",
     "'Y' cannot have a pitch of 4: it is written element by element"),
    ("Y[n:3] = X[n, 0]\n  scatter(n:3, k:5) Z[n]: f32{+ 4} set= X[n, k] onto Y",
     "'Z' cannot have a pitch of 4: it is written element by element"),
    ("S[]: f32{+ 4} = 0.0\n  Z[n:3] = X[n, 0] + S[]", "'S' cannot have a pitch of 4: it has no rows"),
    ("Y[k:5]: f32{+ 4} = X[0, k]\n  scan t:3 carry (h = Y) {\n    g[k:5] = h[k]\n    yield (g)\n  } -> (Z)",
     "'Y' cannot have a pitch of 4: it is carried by a scan"),
    ("Y[k:5] = X[0, k]\n  scan t:3 carry (h = Y) {\n    g[k:5]: f32{+ 4} = h[k]\n    yield (g)\n  } -> (Z)",
     "'g', carried as 'h': it is f32[5]{+ 4}, where f32[5] is expected"),
    ("Y[k:5] = X[0, k]\n  scan t:3 carry (h = Y) {\n    g[k:5] = h[k]\n    f[k:5]: f32{+ 4} = h[k]\n    yield (g)\n"
     "  } -> (E) stack (Z = f)", "'f' cannot have a pitch of 4: it is stacked"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), PITCHED)
def test_pitch(text: str, message: str) -> None:
    """Only what Einsums alone read may have gaps between its rows; without the pitch each text is valid."""
    text = f"cascade f(X: f32[3, 5]) -> Z {{\n  {text}\n}}"
    verify(parse(text.replace("{+ 4}", "")))
    with pytest.raises(errors.IrError) as caught:
        verify(parse(text, "bad.ein"))
    assert message in str(caught.value)
    assert str(caught.value.loc).startswith("bad.ein:")


def test_inputs_and_constants_have_no_pitch() -> None:
    text = "program f(X: f32[4, 8]) -> Z {\n  const C: f32[4, 8]\n  Z[n:4, k:8] = X[n, k] + C[n, k]\n}"
    verify(parse(text))
    for name, use in (("X", "an input"), ("C", "a constant")):
        with pytest.raises(errors.BadPitch, match=f"'{name}' cannot have a pitch of 4: it is {use}"):
            verify(parse(text.replace(f"{name}: f32[4, 8]", f"{name}: f32[4, 8]{{1, 0 + 4}}")))


def test_a_launch_passes_on_the_pitch() -> None:
    text = """kernel over (n) copy(A: f32[4, 8]{+ 4}) -> B {
  B[n:4, k:8] = A[n, k]
}
program f(X: f32[4, 8]) -> Z {
  Y[n:4, k:8]: f32{+ 4} = X[n, k]
  (Z) = launch copy(Y)
}"""
    verify(parse(text))
    with pytest.raises(errors.ArgumentMismatch, match=r"it is f32\[4, 8\], where f32\[4, 8\]\{\+ 4\} is expected"):
        verify(parse(text.replace("Y[n:4, k:8]: f32{+ 4}", "Y[n:4, k:8]: f32")))


def test_a_launch_passes_on_the_order() -> None:
    text = """kernel over (n) copy(A: f32[4, 8]{1, 0}) -> B {
  B[n:4, k:8] = A[n, k]
}
program f(X: f32[4, 8]) -> Z {
  Y[n:4, k:8]: f32{1, 0} = X[n, k]
  (Z) = launch copy(Y)
}"""
    verify(parse(text))
    with pytest.raises(errors.ArgumentMismatch, match=r"it is f32\[4, 8\], where f32\[4, 8\]\{1, 0\} is expected"):
        verify(parse(text.replace("Y[n:4, k:8]: f32{1, 0}", "Y[n:4, k:8]: f32")))


FINE = [
    "Y[i: 0] = X[i + 5]\n  Z[n] = X[n]",
    "Y[n] = X[n] where n >= 2\n  Z[n] = (Y[n] else 0.0)",
    "Y[n] = X[n] where n >= 2\n  Z[i: 1] = max(n) Y[n]",
    "Y[n] = X[n - 2] where n >= 2\n  Z[i: n] = (Y[i] else 1.0)",
    "Z[i: 2*n] = X[i] when i < #n | X[i - #n]",
    "Z[i: 2*n] = X[2*n - 1 - i] when i >= #n | X[i]".replace("2*n - 1", "2*#n - 1"),
    "Z[i: n] = X[i] * 2.0 when i < #n | 0.0",
    "Y[n] = X[n] where n >= 2\n  Z[i: n] = Y[i] when i > 1 | 0.0",
]


@pytest.mark.parametrize("text", FINE)
def test_accepts(text: str) -> None:
    verify(parse(f"cascade f(X: f32[n]) -> Z {{\n  {text}\n}}"))


def scan(**changes: object) -> Cascade:
    made = Scan(Rank("t", N), (Carry("h", "H"),), (einsum("h1", (), access("h"), F32),), ("h1",), ("Z",), (), HERE)
    params = (X, Param("H", TensorType(F32, ())), Param("H2", TensorType(F64, ())))
    return cascade(replace(made, **changes), params=params)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (errors.YieldMismatch, {"yields": ()}),
        (errors.YieldMismatch, {"finals": ("Z", "Z2")}),
        (errors.YieldMismatch, {"yields": ("X",)}),
        (errors.Undefined, {"carries": (Carry("h", "G"),)}),
        (
            errors.YieldMismatch,
            {"carries": (Carry("h", "H2"),), "body": (einsum("h1", (), Cast(F32, access("h")), F32),)},
        ),
        (errors.UnboundSymbol, {"rank": Rank("t", sym("q"))}),
        (errors.Undefined, {"stacked": (("Y", "nothing"),)}),
    ],
)
def test_scans(error: type[errors.IrError], changes: dict[str, object]) -> None:
    verify(scan())
    with pytest.raises(error) as caught:
        verify(scan(**changes))
    assert str(caught.value.loc) == "model.py:3:1"


C = Param("C", TensorType(BOOL, ()))
COPY = einsum("A", I_N, READ, F32)
OTHER = einsum("B", I_N, READ, F32)
KERNEL = Kernel(Cascade("k", (X,), (einsum("Y", I_N, READ, F32),), ("Y",)), ("i",))


def program(*stmts: object, results: tuple[str, ...] = ("Z",), kernels: tuple[Kernel, ...] = (KERNEL,)) -> Program:
    return Program("p", (X, C), Region(stmts, results), kernels=kernels)  # type: ignore[arg-type]


def branch(*, cond: str = "C", second: Region | None = None) -> If:
    return If(cond, Region((COPY,), ("A",)), second or Region((OTHER,), ("B",)), ("Z",), HERE)


HALF = einsum("B", (Rank("i", int_expr(2)),), const(1.0), F32)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (errors.ArgumentMismatch, program(branch(cond="X"))),
        (errors.YieldMismatch, program(branch(second=Region((HALF,), ("B",))))),
        (errors.YieldMismatch, program(branch(second=Region((OTHER,), ())))),
        (errors.UnknownKernel, program(Launch("kk", ("X",), ("Z",), HERE))),
        (errors.ArgumentMismatch, program(Launch("k", ("X", "X"), ("Z",), HERE))),
        (errors.ArgumentMismatch, program(Launch("k", ("C",), ("Z",), HERE))),
        (errors.ArgumentMismatch, program(Bind(Symbol("q"), "X", HERE))),
        (errors.UnknownLibraryOp, program(Library("fft", ("X",), (), (), loc=HERE))),
        (errors.ArgumentMismatch, program(Library("sort", ("X",), (), (), loc=HERE))),
        (errors.ArgumentMismatch, program(Library("nonzero", ("X",), ("Z",), (TensorType(I64, (int_expr(1), sym("q"))),),
                                                  (("axis", 1),), (Symbol("q"),), loc=HERE))),
        (errors.BadSymbolFact, program(Library("nonzero", ("X",), ("Z",), (TensorType(I64, (int_expr(1), N)),), (),
                                               (Symbol("n"),), loc=HERE))),
        (errors.YieldMismatch, program(Loop("i", None, "C", (), Region((COPY,), ("A",)), (), loc=HERE))),
        (errors.YieldMismatch, program(Loop("i", None, None, (("h", "X"),), Region((), ("C",)), ("Z",), loc=HERE))),
    ],
)  # fmt: skip
def test_statements(error: type[errors.IrError], what: Program) -> None:
    verify(program(branch()))
    with pytest.raises(error) as caught:
        verify(what)
    assert str(caught.value.loc) == "model.py:3:1"


LEAVES, RETURNS = Transfer("X", False, HERE), Transfer("X", True, HERE)


@pytest.mark.parametrize(
    ("error", "stmts", "message"),
    [
        (errors.NotResident, (LEAVES, Launch("k", ("X",), ("Z",), HERE)), "'X' is read in .* while it is spilled"),
        (errors.NotResident, (LEAVES, LEAVES), "'X' is read in 'spill' while it is spilled"),
        (errors.BadTransfer, (RETURNS,), "'X': it comes back without having left"),
        (errors.Undefined, (Transfer("Q", False, HERE),), "'Q'"),
        (
            errors.BadTransfer,
            (If("C", Region((COPY, LEAVES, RETURNS), ("A",)), Region((OTHER,), ("B",)), ("Z",), HERE),),
            "not in a region",
        ),
    ],
)
def test_transfers(error: type[errors.IrError], stmts: tuple[object, ...], message: str) -> None:
    verify(program(LEAVES, RETURNS, Launch("k", ("X",), ("Z",), HERE)))
    with pytest.raises(error, match=message) as caught:
        verify(program(*stmts))
    assert str(caught.value.loc) == "model.py:3:1"


@pytest.mark.parametrize("s", [Symbol("n", lo=-1), Symbol("n", lo=4, hi=3), Symbol("n", divisor=0)])
def test_symbol_facts(s: Symbol) -> None:
    with pytest.raises(errors.BadSymbolFact):
        verify(Cascade("f", (X,), (step(READ),), ("Z",), (s,)))


def test_kernels_outer_ranks() -> None:
    two = einsum("Y2", (Rank("i", N - 1),), Access("Y", (var("i") + 1,)), F32)
    crossing = replace(KERNEL, cascade=replace(KERNEL.cascade, steps=(*KERNEL.cascade.steps, two), results=("Y2",)))
    with pytest.raises(errors.OuterRank, match="another task"):
        verify(crossing)
    lost = replace(KERNEL, outer=("j",))
    with pytest.raises(errors.OuterRank, match="no free rank"):
        verify(lost)


def test_constants() -> None:
    text = "program p(X: f32[2]) -> (Z) {\n  const W: f32[2]\n  Z[i:2] = X[i] * W[i]\n}"
    fine = replace(parse_program(text), data={"W": np.zeros(2, np.float32)})
    verify(fine)
    with pytest.raises(errors.MissingConstant):
        verify(replace(fine, data={"W": np.zeros(3, np.float32)}))


def test_the_message_reads_well() -> None:
    with pytest.raises(errors.NotInBounds) as caught:
        verify(parse("cascade f(X: f32[n]) -> Z {\n  Z[n] = X[n + 1]\n}", "bad.ein"))
    assert str(caught.value).splitlines()[0] == (
        "bad.ein:2:3: error[DLC0130]: 'X[n + 1]' may read outside 'X': 0 <= n + 1 < #n is not proven"
    )


SCANNING = """kernel over (o0, o1) k(a0: f32[4, 4, 3]) -> (t5) {{
  t0[{first}]: f32 = 0.0
  scan s0:3 carry (t1 = t0) {{
    t2[o0:4, o1:4]: f32 = {read} * 0.5 + a0[o0, o1, s0]
    t3[{made}]: f32 = t2[o0, o1]
    yield (t3)
  }} -> (t4)
  t5[o0:4, o1:4]: f32 = {last}
}}

program p(A: f32[4, 4, 3]) -> (O) {{
  (O) = launch k(A)
}}
"""
SQUARE = {"first": "o0:4, o1:4", "read": "t1[o0, o1]", "made": "o0:4, o1:4", "last": "t4[o0, o1]"}


def test_states_of_scans_keep_to_their_task() -> None:
    verify(parse_program(SCANNING.format(**SQUARE)))
    for what, text, reason in (
        ("first", "o1:4, o0:4", "'t1' starts from another task's 't0'"),
        ("read", "t1[o1, o0]", r"'t2' reads 't1\[o1, o0\]' of another task along 'o0'"),
        ("read", "t1[o0, 0]", r"'t2' reads 't1\[o0, 0\]' of another task along 'o1'"),
        ("made", "o1:4, o0:4", "of another task along|starts from another task's"),
        ("last", "t4[o1, o0]", r"'t5' reads 't4\[o1, o0\]' of another task along 'o0'"),
        ("last", "t4[o0, 3 - o1]", "of another task along 'o1'"),
    ):
        with pytest.raises(errors.OuterRank, match=reason) as caught:
            verify(parse_program(SCANNING.format(**{**SQUARE, what: text})))
        assert caught.value.loc


def test_states_that_stay_as_they_are() -> None:
    text = SCANNING.format(**SQUARE).replace("yield (t3)", "yield (t1)")
    verify(parse_program(text))
    given = text.replace("t1 = t0", "t1 = a1").replace("3]) -> (t5)", "3], a1: f32[4, 4]) -> (t5)")
    given = given.replace("(A: f32[4, 4, 3])", "(A: f32[4, 4, 3], B: f32[4, 4])").replace("k(A)", "k(A, B)")
    verify(parse_program(given))
