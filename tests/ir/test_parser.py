"""The text form: sugar, inference, names, locations, and errors with their place and quote."""

from __future__ import annotations

import pytest

from dlc.ir import errors
from dlc.ir.dtype import F32, F64, I32, I64
from dlc.ir.einsum import Einsum, Rank, Scan, TensorType, einsum
from dlc.ir.expr import Access, Apply, Const, Index, Piecewise, access, const
from dlc.ir.extent import int_expr, maximum, minimum, sym, value, var
from dlc.ir.names import KEYWORDS, read_name, show_name
from dlc.ir.parser import parse, parse_cascade, parse_expr, parse_program
from dlc.ir.program import Cascade, Kernel, Param, Program


def one(text: str, head: str = "X: f32[n], Y: f64[n], I: i32[n]") -> Einsum:
    made = parse_cascade(f"cascade f({head}) -> Z {{\n  {text}\n}}")
    assert isinstance(made.steps[-1], Einsum)
    return made.steps[-1]


# --- what people write -----------------------------------------------------------------------------------------------


def test_types_are_inferred() -> None:
    assert one("Z[n] = X[n] * 2").dtype == F32
    assert one("Z[n] = 2 * Y[n]").dtype == F64
    assert one("Z[n] = I[n] + 1").expr == Apply("add", (access("I", "n"), const(1, I32)))
    assert one("Z[n] = n").dtype == I64
    assert one("Z[n] = 1.5").dtype == F32
    assert one("Z[n]: f64 = 1").expr == const(1.0, F64)
    assert str(one("Z[n] = X[n] < 1").dtype) == "bool"


def test_extents_are_inferred() -> None:
    assert one("Z[i] = X[i]").ranks == (Rank("i", sym("n")),)
    assert one("Z[i: n + 1] = (X[i] else 0)").ranks == (Rank("i", sym("n") + 1),)
    with pytest.raises(errors.UnknownName, match="extent of rank 'i'"):
        one("Z[i] = X[i + 1]")


def test_names_resolve_to_ranks_then_symbols_then_tensors() -> None:
    made = one("Z[i: n] = X[n - 1 - i] + X[k[0]]".replace("k[0]", "val(I[0])"))
    assert made.expr == Apply(
        "add", (Access("X", (sym("n") - 1 - var("i"),)), Access("X", (value(Access("I", (int_expr(0),))),)))
    )
    assert one("Z[n] = X[#n - 1 - n]").expr == Access("X", (sym("n") - 1 - var("n"),))
    assert one("Z[n] = X[n] * S", "X: f32[n], S: f32[]").expr == Apply("mul", (access("X", "n"), Access("S", ())))


def test_layout_of_the_text_is_free() -> None:
    text = """
    ;; a comment
    cascade f(
      X: f32[n],   ;; another
      Y: f32[n]
    ) -> (Z) {

      Z[n] =
        X[n] +
        Y[n]
    }
    """
    assert parse(text) == parse("cascade f(X: f32[n], Y: f32[n]) -> Z {\n  Z[n]: f32 = X[n] + Y[n]\n}")


def test_precedence() -> None:
    a, b, c = (Access(n, ()) for n in "abc")
    types = dict.fromkeys("abc", F32)
    assert parse_expr("a + b * c", (), types) == Apply("add", (a, Apply("mul", (b, c))))
    assert parse_expr("a - b - c", (), types) == Apply("sub", (Apply("sub", (a, b)), c))
    assert parse_expr("a < b & b < c", (), types) == Apply("and", (Apply("lt", (a, b)), Apply("lt", (b, c))))
    assert parse_expr("-1.0 * a - b", (), types) == Apply("sub", (Apply("mul", (const(-1.0), a)), b))
    assert parse_expr("-a", (), types) == Apply("neg", (a,))
    assert parse_expr("i // 4 + 1 <= j", ("i", "j")) == Apply(
        "le", (Apply("add", (Index(var("i") // 4), const(1, I64))), Index(var("j")))
    )


def test_minimum_is_an_index_inside_brackets_and_an_operator_outside() -> None:
    made = parse_expr("X[min(i, 3)]", ("i",))
    assert made == Access("X", (minimum(var("i"), 3),))
    assert parse_expr("max(i, j)", ("i", "j")) == Apply("max", (Index(var("i")), Index(var("j"))))
    assert parse_expr("idx(max(i, j))", ("i", "j")) == Index(maximum(var("i"), var("j")))


def test_piecewise() -> None:
    made = one("Z[n] = X[n] when n < 3 | 0")
    assert made.expr == Piecewise(((Apply("lt", (Index(var("n")), const(3, I64))), access("X", "n")),), const(0.0))
    assert one("Z[n] = 1.0 + { X[n] when n < 3 | 0 }").expr == Apply("add", (const(1.0), made.expr))


def test_reduction_or_function() -> None:
    assert one("Z[i:1] = max(n) X[n]").reduce is not None
    assert one("Z[n] = max(X[n], 0)").reduce is None
    assert one("Z[n] = exp(X[n]) - 1").expr == Apply("sub", (Apply("exp", (access("X", "n"),)), const(1.0)))
    assert one("Z[i:1] = sum(n) (-1.0)").expr == const(-1.0)


# --- iterative ranks -------------------------------------------------------------------------------------------------


def steps(text: str, head: str = "X: f32[n, m]") -> tuple[object, ...]:
    made = parse_cascade(f"cascade f({head}) -> Z {{\n  {text}\n}}")
    assert parse(str(made)) == made
    return made.steps


def test_an_iterative_rank_is_a_scan() -> None:
    init, scan = steps("Z[n, m] = Z[n - 1, m] + X[n, m]")
    assert isinstance(scan, Scan) and isinstance(init, Einsum)
    assert init.expr == const(0.0)
    assert scan.stacked == (("Z", "Z_cur"),)


def test_the_first_value_may_be_given() -> None:
    init, _ = steps("Z[n, m] = (Z[n - 1, m] else 3.0) * 0.5 + X[n, m]")
    assert isinstance(init, Einsum) and init.expr == const(3.0)


def test_iteration_along_an_inner_dimension() -> None:
    *_, last = steps("Z[n, m] = max(Z[n, m - 1], X[n, m])")
    assert isinstance(last, Einsum) and last.expr == access("Z_rows", "m", "n")


@pytest.mark.parametrize(
    "text",
    [
        "Z[n, m] = Z[n - 2, m] + X[n, m]",
        "Z[n, m] = tanh(Z[n - 1, m]) * X[n, m]",
        "Z[n + 1, m] = max(Z[n, m], X[n, m])\n  Z[0, m] = 1.0",
        "Z[0, m] = 1.0",
        "Z[n, m] = Z[n, m] + X[n, m]",
    ],
)
def test_what_is_no_iteration(text: str) -> None:
    with pytest.raises(errors.IrError) as caught:
        steps(text)
    assert str(caught.value.loc).startswith("<text>:")


# --- names -----------------------------------------------------------------------------------------------------------

ODD = [
    "input.1",
    "/layer/MatMul_output_0",
    "onnx::Add 3",
    "1",
    "scan",
    "where",
    "a`b\\c",
    "x\ny",
    "é",
    "@weights/7",
    "a..b",
]


@pytest.mark.parametrize("name", [*ODD, *sorted(KEYWORDS)])
def test_any_name_round_trips(name: str) -> None:
    assert read_name(show_name(name)) == name
    step = einsum(f"{name}_out", (Rank(name, sym(name)),), Access(name, (var(name),)), F32)
    made = Cascade(name, (Param(name, TensorType(F32, (sym(name),))),), (step,), (f"{name}_out",))
    assert parse(str(made)) == made


# --- programs --------------------------------------------------------------------------------------------------------


def test_kernels_alone() -> None:
    (kernel,) = parse("kernel over (b) k(X: f32[b]) -> (Y) {\n  Y[b]: f32 = X[b] * 2.0\n}")  # type: ignore[misc]
    assert isinstance(kernel, Kernel) and kernel.outer == ("b",)
    assert parse(str(kernel)) == (kernel,)


def test_a_cascade_is_a_program() -> None:
    text = "cascade f(X: f32[n]) -> Z {\n  Z[n] = X[n]\n}"
    made = parse_program(text)
    assert isinstance(made, Program) and made.results == ("Z",)
    assert parse(str(made)) == made
    with pytest.raises(errors.WrongTextKind):
        parse_cascade(str(made))
    with pytest.raises(errors.WrongTextKind):
        parse(text + text)


def test_locations() -> None:
    text = 'cascade f(X: f32[n]) -> Z {\n  Y[n] = X[n] loc("model.py:7")\n  Z[n] = Y[n]\n}'
    first, second = parse_cascade(text, "dump.ein").steps
    assert str(first.loc) == "model.py:7"
    assert str(second.loc) == "dump.ein:3:3"


# --- errors ----------------------------------------------------------------------------------------------------------

WRONG = [
    ("Z[n] = X[n] +", errors.SyntaxFault, "3:1", "unexpected '}'"),
    ("Z[n] = sqrt X[n]", errors.SyntaxFault, "2:15", "unexpected 'X'"),
    ("Z[n] = X[n]]", errors.SyntaxFault, "2:14", "unexpected ']'"),
    ("Z[n] = XX[n]", errors.UndefinedTensor, "2:10", "did you mean 'X'?"),
    ("Z[n] = X[nn]", errors.UnknownName, "2:12", "did you mean 'n'?"),
    ("Z[n] = expp(X[n])", errors.UnknownOperator, "2:10", "did you mean 'exp'?"),
    ("Z[i:1] = summ(n) X[n]", errors.UnknownReduction, "2:12", "known: sum"),
    ("Z[n]: f33 = X[n]", errors.UnknownName, "2:9", "did you mean 'f32'?"),
    ("Z[n] = I[n] * 2.5", errors.BadLiteral, "2:17", "not a value of type i32"),
    ("Z[n] = cast<f7e8m6>(X[n])", errors.UnknownName, "2:14", "did you mean 'f8e8m0'?"),
    ("Z[n] = b2(0)", errors.BadLiteral, "2:13", "'0' is not a value of type b2"),
    ("Z[n] = u8(300)", errors.BadLiteral, "2:13", "'300' is not a value of type u8"),
    ("Z[n] = X[n * 1.5]", errors.NotAnIndex, "2:16", "cannot be an index"),
    ("Z[n] = X[n // 0]", errors.NotAnIndex, "2:12", "divides by zero"),
    ("Z[n] = X[exp(n)]", errors.NotAnIndex, "2:12", "wrap a scalar in val"),
    ("Z[n] = max(X[n])", errors.WrongArity, "2:10", "takes 2 operands, not 1"),
    ("Z[n] = cast(X[n])", errors.SyntaxFault, "2:10", "cast<type>"),
    ("Z[n] = cast<i8, loud>(X[n])", errors.UnknownName, "2:14", "cast mode 'loud'"),
    ("(A, B)[i:1] = argmax(n) X[n]", errors.ReductionArity, "2:3", "folds 2 values"),
    ("yield (X)", errors.SyntaxFault, "1:", "yield"),
    ("(A) = launch k(X)", errors.UnknownKernel, "2:16", "no kernel"),
    ("scatter(n) Z[n] sum= X[n] onto W", errors.UndefinedTensor, "2:34", "'W'"),
]


@pytest.mark.parametrize(("text", "error", "place", "message"), WRONG)
def test_errors(text: str, error: type[errors.IrError], place: str, message: str) -> None:
    with pytest.raises(error) as caught:
        parse(f"cascade f(X: f32[n], Y: f64[n], I: i32[n]) -> Z {{\n  {text}\n}}", "bad.ein")
    shown = str(caught.value)
    assert shown.startswith(f"bad.ein:{place}")
    assert message in shown
    assert "^" in shown
    assert type(caught.value) is error


def test_an_error_prints_in_full() -> None:
    with pytest.raises(errors.UndefinedTensor) as caught:
        parse("cascade f(AB: f32[n]) -> Z {\n  Z[n] = exp(AC[n]) + 1\n}", "bad.ein")
    assert str(caught.value) == (
        "bad.ein:2:14: error[DLC0102]: tensor 'AC' is read here but no input or earlier Einsum defines it\n"
        "    Z[n] = exp(AC[n]) + 1\n"
        "               ^~\n"
        "  help: did you mean 'AB'?"
    )


@pytest.mark.parametrize(
    "text", ["", "x", "cascade", "cascade f(", "cascade f() -> (", "\x00", "cascade f() -> () {\n}}", "`", '"']
)
def test_rubbish(text: str) -> None:
    with pytest.raises(errors.IrError):
        parse(text)


def test_empty_cascade() -> None:
    made = parse("cascade f() -> () {\n}")
    assert made == Cascade("f", (), (), ())
    assert parse(str(made)) == made


def test_constants_in_text() -> None:
    for c in (
        const(-0.0),
        const(float("nan")),
        const(float("-inf")),
        const(1e-30),
        const(0.1, F64),
        const(-5, I64),
        const(7, I32),
    ):
        step = einsum("Z", (), c, c.dtype)
        made = Cascade("f", (), (step,), ("Z",))
        (again,) = parse_cascade(str(made)).steps
        assert isinstance(again, Einsum) and isinstance(again.expr, Const)
        assert again.expr == c
