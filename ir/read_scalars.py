"""Reading parsed trees as scalar expressions and as indices, which share one grammar.

A bare name is a rank if one is in scope, else an extent symbol, else a tensor of rank 0. Literals take the type of a typed
sibling operand, then the expected type, then f32 (with a point) or i64 (without).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

from lark import Token, Tree

from dlc.ir.codes import values
from dlc.ir.dtype import BOOL, DTYPES, F32, I64, DType
from dlc.ir.einsum import TensorType
from dlc.ir.errors import (
    BadLiteral,
    IrError,
    NotAnIndex,
    SyntaxFault,
    UndefinedTensor,
    UnknownName,
    UnknownOperator,
    WrongArity,
)
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, sym, value, var
from dlc.ir.loc import Loc
from dlc.ir.names import read_name
from dlc.ir.scalar import CAST_MODES, INFIX, SCALAR_OPS

Node: TypeAlias = "Tree[Token]"


def name_of(token: Any) -> str:
    return read_name(str(token))


def names_in(tree: Node) -> tuple[str, ...]:
    return tuple(name_of(t) for t in tree.children)


def suggestion(name: str, known: Iterable[str], otherwise: str = "check the spelling") -> str:
    """`did you mean 'x'?`, or the other way out."""
    close = difflib.get_close_matches(name, [k for k in known if k], n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else otherwise


@dataclass
class Source:
    """The text, for places and quotes."""

    lines: list[str]
    file: str

    def place(self, node: Any) -> tuple[int, int, int]:
        """Line, column (1-based) and width of a token or tree."""
        if isinstance(node, Token):
            return node.line or 1, node.column or 1, len(node)
        meta = getattr(node, "meta", None)
        if meta is None or getattr(meta, "empty", True):
            return 1, 1, 1
        width = meta.end_column - meta.column if meta.end_line == meta.line else 1
        return meta.line, meta.column, width

    def loc(self, node: Any) -> Loc:
        line, column, _ = self.place(node)
        return Loc(self.file, line, column)

    def fail(self, error: type[IrError], node: Any, /, **fields: Any) -> NoReturn:
        line, column, width = self.place(node)
        quote = self.lines[line - 1] if 0 < line <= len(self.lines) else None
        raise error(Loc(self.file, line, column), source=quote, span=(column - 1, column - 1 + width), **fields)


@dataclass
class Scalars:
    """Reads trees as scalar expressions and as indices.

    Attributes:
        ranks: rank and loop variables in scope.
        symbols: extent symbols known.
        types: tensors known; None when any name will do.
        lenient: unknown bare names are symbols.
    """

    source: Source
    ranks: frozenset[str]
    symbols: set[str]
    types: Mapping[str, TensorType] | None
    given: Mapping[str, DType] = field(default_factory=dict)
    lenient: bool = False
    untyped: frozenset[str] = frozenset()
    _inferred: dict[int, DType | None] = field(default_factory=dict)

    # --- types ---

    def tensor_type(self, token: Any) -> DType | None:
        name = name_of(token)
        if name in self.untyped:
            return None
        if self.types is not None and name in self.types:
            return self.types[name].dtype
        if name in self.given:
            return self.given[name]
        if self.types is None:
            return F32
        hint = suggestion(name, self.types, "define it above this line, or add it to the inputs")
        self.source.fail(UndefinedTensor, token, tensor=name, suggestion=hint)

    def infer(self, node: Node) -> DType | None:
        """The type of a tree, None when it consists of literals only."""
        key = id(node)
        if key not in self._inferred:
            self._inferred[key] = self._infer(node)
        return self._inferred[key]

    def _infer(self, node: Node) -> DType | None:
        children = node.children
        match node.data:
            case "literal":
                return BOOL if children[0].type in ("TRUE", "FALSE") else None
            case "name":
                name = name_of(children[0])
                return I64 if self._is_index_name(name) else self.tensor_type(children[0])
            case "symbol_ref":
                return I64
            case "access":
                return self.tensor_type(children[0])
            case "access_else":
                return self.infer(children[0])
            case "negative":
                return self.infer(children[1])
            case "piecewise":
                values = [c.children[0] if c.data == "case" else c for c in children if isinstance(c, Tree)]
                return self._first(values)
            case "binary":
                operator = str(children[1])
                if operator in ("//", "%"):
                    return I64
                if SCALAR_OPS[INFIX[operator]].typing == "compare":
                    return BOOL
                return self._first((children[0], children[2]))
            case "call":
                return self._infer_call(node)
            case _:
                return None

    def _first(self, nodes: Iterable[Node]) -> DType | None:
        return next((t for t in map(self.infer, nodes) if t is not None), None)

    def _infer_call(self, node: Node) -> DType | None:
        name, args = name_of(node.children[0]), self.call_args(node)
        if name in ("cast", "bitcast"):
            return self.type_argument(node)[0]
        if name in DTYPES:
            return DTYPES[name]
        if name in ("idx", "val"):
            return I64 if name == "idx" else self._first(args)
        if name not in SCALAR_OPS:
            self.source.fail(
                UnknownOperator, node, op=name, suggestion=suggestion(name, (*SCALAR_OPS, "cast", "bitcast"))
            )
        match SCALAR_OPS[name].typing:
            case "compare" | "test":
                return BOOL
            case "select":
                return self._first(args[1:])
            case _:
                return self._first(args)

    def call_args(self, node: Node) -> list[Node]:
        args = node.children[-1].children
        for a in args:
            if len(a.children) != 1:
                self.source.fail(
                    SyntaxFault, a, found="an extent", expected="an operand (extents belong to reductions)"
                )
        return [a.children[0] for a in args]  # type: ignore[misc]

    def type_argument(self, node: Node) -> tuple[DType, str]:
        if len(node.children) != 3:
            self.source.fail(
                SyntaxFault, node, found=f"'{node.children[0]}' without a type", expected="cast<type>(...)"
            )
        name, *mode = [p.strip() for p in str(node.children[1]).strip("<> \t").split(",")]
        if mode and mode[0] not in CAST_MODES:
            hint = suggestion(mode[0], CAST_MODES, f"known: {', '.join(CAST_MODES)}")
            self.source.fail(UnknownName, node.children[1], kind="cast mode", name=mode[0], suggestion=hint)
        if name not in DTYPES:
            hint = suggestion(name, DTYPES)
            self.source.fail(UnknownName, node.children[1], kind="element type", name=name, suggestion=hint)
        return DTYPES[name], mode[0] if mode else "sat"

    # --- scalars ---

    def expr(self, node: Node, expected: DType | None = None) -> Expr:
        """The scalar expression; literals without a typed sibling take the expected type."""
        children = node.children
        match node.data:
            case "literal":
                return self.literal(children[0], expected)
            case "name":
                name = name_of(children[0])
                if self._is_index_name(name):
                    return Index(self._name(children[0]))
                self.tensor_type(children[0])
                return Access(name, ())
            case "symbol_ref":
                return Index(sym(name_of(children[1])))
            case "access":
                self.tensor_type(children[0])
                return Access(name_of(children[0]), self._indices(children[1]))
            case "access_else":
                read = self.expr(children[0])
                assert isinstance(read, Access)
                return replace(
                    read, default=self.expr(children[2] if len(children) > 2 else children[1], self.infer(children[0]))
                )
            case "negative":
                inner = children[1]
                if isinstance(inner, Tree) and inner.data == "literal" and inner.children[0].type != "TRUE":
                    return self.literal(inner.children[0], expected, negative=True)
                return Apply("neg", (self.expr(inner, expected),))
            case "piecewise":
                return self._piecewise(node, expected)
            case "binary":
                return self._binary(node, expected)
            case "call":
                return self._call(node, expected)
            case _:
                self.source.fail(SyntaxFault, node, found="a tuple", expected="one value")

    def literal(self, token: Token, expected: DType | None, negative: bool = False) -> Const:
        text = str(token)
        if token.type in ("TRUE", "FALSE"):
            return const(token.type == "TRUE", BOOL)
        whole = token.type == "INT"
        dtype = expected if expected is not None else I64 if whole else F32
        if dtype == BOOL or (not whole and not dtype.is_float):
            self.source.fail(BadLiteral, token, text=text, dtype=dtype)
        number = (int(text) if whole else float(text)) * (-1 if negative else 1)
        if dtype.is_float:
            return const(-0.0 if negative and number == 0 else number, dtype)
        if not dtype.lowest <= number <= dtype.highest or (dtype.kind == "c" and number not in values(dtype)):
            self.source.fail(BadLiteral, token, text=f"{number}", dtype=dtype)
        return const(number, dtype)

    def _indices(self, tree: Node) -> tuple[IntExpr, ...]:
        return tuple(self.index(i) for i in tree.children)

    def _piecewise(self, node: Node, expected: DType | None) -> Expr:
        dtype = self.infer(node) or expected
        parts = [c for c in node.children if isinstance(c, Tree)]
        cases = tuple((self.expr(c.children[1], BOOL), self.expr(c.children[0], dtype)) for c in parts[:-1])
        return Piecewise(cases, self.expr(parts[-1], dtype))

    def _binary(self, node: Node, expected: DType | None) -> Expr:
        left, operator, right = node.children
        if str(operator) in ("//", "%"):
            return Index(self.index(node))
        op = INFIX[str(operator)]
        dtype = self._first((left, right))
        if dtype is None and SCALAR_OPS[op].typing != "compare":
            dtype = expected
        if dtype is None:  # two literals: one with a point makes both floats
            dtype = F32 if any(t.type != "INT" for n in (left, right) for t in n.scan_values(lambda _: True)) else I64
        return Apply(op, (self.expr(left, dtype), self.expr(right, dtype)))

    def _call(self, node: Node, expected: DType | None) -> Expr:
        name, args = name_of(node.children[0]), self.call_args(node)
        arity = 1 if name in ("cast", "bitcast", "idx", "val") or name in DTYPES else None
        if arity is None:
            self.infer(node)  # refuses unknown operators
            arity = SCALAR_OPS[name].arity
        if len(args) != arity:
            self.source.fail(WrongArity, node, op=name, expected=arity, given=len(args))
        if name == "cast":
            target, mode = self.type_argument(node)
            return Cast(target, self.expr(args[0]), mode)
        if name == "bitcast":
            return Bitcast(self.type_argument(node)[0], self.expr(args[0]))
        if name in DTYPES:
            return self._typed_constant(node, DTYPES[name], args[0])
        if name == "idx":
            return Index(self.index(args[0]))
        if name == "val":
            return self.expr(args[0], expected)
        entry = SCALAR_OPS[name]
        dtype: DType | None
        if entry.typing == "select":
            dtype = self._first(args[1:]) or expected
            return Apply(name, (self.expr(args[0], BOOL), self.expr(args[1], dtype), self.expr(args[2], dtype)))
        dtype = self._first(args)
        if dtype is None and entry.typing == "same":
            dtype = expected or (I64 if "f" not in entry.kinds else None)
        return Apply(name, tuple(self.expr(a, dtype) for a in args))

    def _typed_constant(self, node: Node, dtype: DType, arg: Node) -> Const:
        negative = arg.data == "negative"
        inner = arg.children[1] if negative else arg
        if inner.data != "literal":
            self.source.fail(SyntaxFault, node, found=f"{dtype}(...) of an expression", expected=f"cast<{dtype}>(...)")
        return self.literal(inner.children[0], dtype, negative)

    # --- indices ---

    def _is_index_name(self, name: str) -> bool:
        if name in self.ranks or name in self.symbols:
            return True
        known = name in self.given or (self.types is not None and name in self.types) or name in self.untyped
        return self.lenient and not known

    def _name(self, token: Any) -> IntExpr:
        name = name_of(token)
        return var(name) if name in self.ranks else sym(name)

    def index(self, node: Node) -> IntExpr:
        """The tree as an integer expression over ranks, symbols and tensor elements."""
        children = node.children
        match node.data:
            case "literal" if children[0].type == "INT":
                return int_expr(int(children[0]))
            case "name":
                name = name_of(children[0])
                if self._is_index_name(name):
                    return self._name(children[0])
                if self.types is not None and name not in self.types and name not in self.given:
                    hint = suggestion(
                        name, (*self.ranks, *self.symbols), "name a rank of this step or an extent symbol"
                    )
                    self.source.fail(UnknownName, node, kind="rank or extent", name=name, suggestion=hint)
                return value(Access(name, ()))
            case "symbol_ref":
                return sym(name_of(children[1]))
            case "negative":
                return -self.index(children[1])
            case "access" | "access_else":
                return value(self.expr(node))
            case "binary":
                return self._index_binary(node)
            case "call":
                return self._index_call(node)
            case _:
                self._not_an_index(node, "it is not an integer expression")

    def _index_binary(self, node: Node) -> IntExpr:
        left, operator, right = node.children
        if str(operator) not in ("+", "-", "*", "//", "%"):
            self._not_an_index(node, f"'{operator}' makes no integer")
        a, b = self.index(left), self.index(right)
        match str(operator):
            case "+":
                return a + b
            case "-":
                return a - b
            case "*":
                return a * b
        if b.const == 0:
            self._not_an_index(node, "it divides by zero")
        return a // b if str(operator) == "//" else a % b

    def _index_call(self, node: Node) -> IntExpr:
        name, args = name_of(node.children[0]), self.call_args(node)
        match name:
            case "min" | "max" if args:
                return (minimum if name == "min" else maximum)(*map(self.index, args))
            case "val" if len(args) == 1:
                return value(self.expr(args[0]))
            case "idx" if len(args) == 1:
                return self.index(args[0])
            case _:
                self._not_an_index(node, f"'{name}' is not an index operation (wrap a scalar in val(...))")

    def _not_an_index(self, node: Node, reason: str) -> NoReturn:
        line, column, width = self.source.place(node)
        text = self.source.lines[line - 1][column - 1 : column - 1 + width] if line <= len(self.source.lines) else "?"
        self.source.fail(NotAnIndex, node, text=text, reason=reason)
