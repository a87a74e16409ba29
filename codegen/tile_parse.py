"""Reading the `.tile` text form: `parse(str(program)) == program`."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, VisitError

from dlc.codegen import tile
from dlc.codegen.tile import TileProgram, TileType
from dlc.errors import BadInput
from dlc.ir.dtype import DTYPES, DType
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, var
from dlc.ir.loc import UNKNOWN, Loc


class TileSyntax(BadInput):
    """A `.tile` text does not follow the grammar."""

    code = "DLC0481"
    template = "tile program: {reason}"


class _Unknown(Exception):
    """A name the grammar allows but the tables do not know."""


@cache
def _parser() -> Lark:
    grammar = (Path(__file__).parent / "tile.lark").read_text()
    return Lark(grammar, parser="lalr", maybe_placeholders=True)


def parse(text: str, name: str = "<tile>") -> TileProgram:
    """The program that `text` spells (not verified). Raises TileSyntax with the line and column of the fault."""
    try:
        tree = _parser().parse(text)
        program: TileProgram = _Build().transform(tree)
        return program
    except UnexpectedInput as error:
        line, column = getattr(error, "line", 0), getattr(error, "column", 0)
        lines = text.splitlines()
        source = lines[line - 1] if 0 < line <= len(lines) else None
        expected = sorted(getattr(error, "accepts", None) or getattr(error, "expected", None) or ())
        token = getattr(error, "token", None)
        found = "end of text" if token is None or token.type == "$END" else f"'{token}'"
        reason = f"unexpected {found}" + (f", expected one of {', '.join(expected[:8])}" if expected else "")
        span = (column - 1, column - 1 + len(token or " ")) if source is not None else None
        raise TileSyntax(Loc(name, max(line, 0), max(column, 0)), source=source, span=span, reason=reason) from None
    except VisitError as error:
        if isinstance(error.orig_exc, _Unknown):
            raise TileSyntax(Loc(name), reason=str(error.orig_exc)) from None
        raise error.orig_exc from None


def _dtype(token: str) -> DType:
    if token not in DTYPES:
        raise _Unknown(f"there is no element type '{token}'")
    return DTYPES[token]


def _ints(tokens: Any) -> tuple[int, ...]:
    return tuple(int(t) for t in tokens if t is not None)


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    """Parse tree to nodes, one method per grammar rule."""

    # the program
    def start(self, name: Token, *rest: Any) -> TileProgram:
        items = [r for r in rest if r is not None]
        buffers = tuple(i for i in items if isinstance(i, tile.Buffer))
        symbols = next((i for i in items if isinstance(i, list)), [])
        loc = next((i for i in items if isinstance(i, Loc)), UNKNOWN)
        task_var = next(i for i in items if isinstance(i, Token))
        tasks = next(i for i in items if isinstance(i, IntExpr))
        statements = tuple(i for i in items if not isinstance(i, (tile.Buffer, list, Loc, Token, IntExpr)))
        return TileProgram(str(name), buffers, tuple(symbols), tasks, str(task_var), statements, loc)

    def symbols(self, *names: Token) -> list[str]:
        return [str(n) for n in names]

    def loc(self, text: Token) -> Loc:
        return Loc(ast.literal_eval(text))

    def buffer(self, role: Token, name: Token, dtype: Token, size: IntExpr) -> tile.Buffer:
        return tile.Buffer(str(name), _dtype(dtype), str(role), size)

    def type(self, dtype: Token, shape: tuple[tuple[int, ...], int] | None = None) -> TileType:
        return TileType(_dtype(dtype), *(shape or ((), 1)))

    def shape(self, *numbers: Token | None) -> tuple[tuple[int, ...], int]:
        *slots, lanes = _ints(numbers)
        return tuple(slots), lanes

    # index expressions
    def number(self, n: Token) -> IntExpr:
        return int_expr(int(n))

    def variable(self, n: Token) -> IntExpr:
        return var(str(n))

    def add(self, a: IntExpr, b: IntExpr) -> IntExpr:
        return a + b

    def sub(self, a: IntExpr, b: IntExpr) -> IntExpr:
        return a - b

    def mul(self, a: IntExpr, b: IntExpr) -> IntExpr:
        return a * b

    def floordiv(self, a: IntExpr, b: IntExpr) -> IntExpr:
        return a // b

    def mod(self, a: IntExpr, b: IntExpr) -> IntExpr:
        return a % b

    def neg(self, a: IntExpr) -> IntExpr:
        return -a

    def minimum(self, *args: IntExpr) -> IntExpr:
        return minimum(*args)

    def maximum(self, *args: IntExpr) -> IntExpr:
        return maximum(*args)

    # constants
    def float_value(self, text: Token) -> float:
        return float(text)

    def int_value(self, text: Token) -> int:
        return int(text)

    def bool_value(self, text: Token) -> bool:
        return str(text) == "true"

    # straight-line statements
    def const(self, dst: Token, type_: TileType, value: Any) -> tile.Const:
        return tile.Const(str(dst), type_, value)

    def iota(self, dst: Token, type_: TileType, start: IntExpr) -> tile.Iota:
        return tile.Iota(str(dst), type_.dtype, type_.lanes, start)

    def from_index(self, dst: Token, dtype: Token, expr: IntExpr) -> tile.FromIndex:
        return tile.FromIndex(str(dst), _dtype(dtype), expr)

    def index_of(self, name: Token, src: Token) -> tile.IndexOf:
        return tile.IndexOf(str(name), str(src))

    def lead(self, name: Token, buffer: Token, size: Token) -> tile.Lead:
        return tile.Lead(str(name), str(buffer), int(size))

    def place(self, offset: IntExpr, *rest: IntExpr | None) -> tuple[IntExpr, tuple[IntExpr, ...], IntExpr]:
        *slots, lane = [r for r in rest if r is not None]
        return offset, tuple(slots), lane

    def mask(self, name: Token | None) -> str | None:
        return None if name is None else str(name)

    def masked(self, name: Token | None, pad: Any) -> tuple[str | None, Any]:
        return self.mask(name), 0 if pad is None else pad

    def load(self, dst: Token, type_: TileType, buffer: Token, place: Any, masked: Any) -> tile.Load:
        return tile.Load(str(dst), type_, str(buffer), *place, *masked)

    def gather(self, dst: Token, buffer: Token, offsets: Token, masked: Any) -> tile.Gather:
        return tile.Gather(str(dst), str(buffer), str(offsets), *masked)

    def store(self, buffer: Token, place: Any, src: Token, mask: str | None, *flags: Token) -> tile.Store:
        return tile.Store(str(buffer), place[0], str(src), place[1], place[2], mask, bool([f for f in flags if f]))

    def scatter(self, buffer: Token, offsets: Token, src: Token, mask: str | None, op: Token | None) -> tile.Scatter:
        return tile.Scatter(str(buffer), str(offsets), str(src), mask, None if op is None else str(op))

    def op(self, dst: Token, name: Token, *args: Token) -> tile.Op | tile.Stack:
        operands = tuple(map(str, args))
        return tile.Stack(str(dst), operands) if name == "stack" else tile.Op(str(dst), str(name), operands)

    def cast(self, dst: Token, dtype: Token, mode: Token, src: Token) -> tile.Cast:
        return tile.Cast(str(dst), str(src), _dtype(dtype), str(mode))

    def bitcast(self, dst: Token, dtype: Token, src: Token) -> tile.Bitcast:
        return tile.Bitcast(str(dst), str(src), _dtype(dtype))

    def view(self, dst: Token, dtype: Token, src: Token) -> tile.View:
        return tile.View(str(dst), str(src), _dtype(dtype))

    def unpack(self, dst: Token, bits: Token, src: Token) -> tile.Unpack:
        return tile.Unpack(str(dst), str(src), int(bits))

    def lookup(self, dst: Token, dtype: Token, *rest: Any) -> tile.Lookup:
        *table, src = rest
        return tile.Lookup(str(dst), str(src), _dtype(dtype), tuple(table))

    def zip_(self, dst: Token, low: Token, high: Token, half: Token) -> tile.Zip:
        return tile.Zip(str(dst), str(low), str(high), int(half))

    def dot(self, dst: Token, left: Token, right: Token, *operands: Token) -> tile.Dot:
        a, b, acc = map(str, operands)
        return tile.Dot(str(dst), _dtype(left), _dtype(right), a, b, acc)

    def matdot(self, dst: Token, left: Token, right: Token, *operands: Token) -> tile.MatDot:
        a, b, acc = map(str, operands)
        return tile.MatDot(str(dst), _dtype(left), _dtype(right), a, b, acc)

    def mma(self, dst: Token, left: Token, right: Token, *operands: Token) -> tile.Mma:
        a, b, acc = map(str, operands)
        return tile.Mma(str(dst), _dtype(left), _dtype(right), a, b, acc)

    def broadcast(self, dst: Token, type_: TileType, src: Token) -> tile.Broadcast:
        return tile.Broadcast(str(dst), type_, str(src))

    def slice(self, dst: Token, src: Token, *index: Token | None) -> tile.Slice:
        return tile.Slice(str(dst), str(src), _ints(index))

    def reduce_lanes(self, dst: Token, op: Token, src: Token) -> tile.Reduce:
        return tile.Reduce(str(dst), str(op), str(src))

    def reduce_slot(self, dst: Token, op: Token, axis: Token, src: Token) -> tile.Reduce:
        return tile.Reduce(str(dst), str(op), str(src), int(axis))

    def fold(self, dst: Token, op: Token, src: Token) -> tile.Fold:
        return tile.Fold(str(dst), str(op), str(src))

    def lane_mask(self, dst: Token, lanes: Token, count: IntExpr) -> tile.Mask:
        return tile.Mask(str(dst), int(lanes), count)

    def prefetch(self, buffer: Token, offset: IntExpr, direction: Token, locality: Token) -> tile.Prefetch:
        return tile.Prefetch(str(buffer), offset, int(locality), direction == "write")

    def check(self, cond: Token, check_id: Token) -> tile.Check:
        return tile.Check(str(cond), ast.literal_eval(check_id))

    # threads
    def thread(self, name: Token) -> tile.Thread:
        return tile.Thread(str(name))

    def shuffle(self, dst: Token, src: Token, thread: IntExpr) -> tile.Shuffle:
        return tile.Shuffle(str(dst), str(src), thread)

    def sync(self) -> tile.Sync:
        return tile.Sync()

    def run(self, offset: IntExpr, *strides: IntExpr | None) -> tuple[IntExpr, tuple[IntExpr, ...]]:
        return offset, tuple(s for s in strides if s is not None)

    def copy(self, type_: TileType, buffer: Token, to: Any, source: Token, of: Any) -> tile.Copy:
        return tile.Copy(type_, str(buffer), to[0], to[1], str(source), of[0], of[1])

    def commit(self) -> tile.Commit:
        return tile.Commit()

    def wait(self, but: Token) -> tile.Wait:
        return tile.Wait(int(but))

    # control
    def results(self, *names: Token) -> _Names:
        return _Names("results", tuple(map(str, names)))

    def yields(self, *names: Token) -> _Names:
        return _Names("yields", tuple(map(str, names)))

    def carry(self, *names: Token) -> _Names:
        return _Names("carry", tuple(map(str, names)))

    def unroll(self, count: Token) -> int:
        return int(count)

    def comparison(self, lhs: IntExpr, op: Token, rhs: IntExpr) -> tile.IndexCond:
        name = next(k for k, v in tile.COMPARISONS.items() if v == op)
        return tile.IndexCond(lhs, name, rhs)

    def block(self, *items: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        body, named = _split(items)
        return body, named["yields"]

    def else_(self, block: Any) -> Any:
        return block

    def for_(self, *items: Any) -> tile.For:
        body, named = _split(items)
        name = next(b for b in body if isinstance(b, Token))
        lo, hi, step = (b for b in body if isinstance(b, IntExpr))
        unroll = next((b for b in body if isinstance(b, int)), 1)
        statements = tuple(b for b in body if not isinstance(b, (Token, IntExpr, int)))
        return tile.For(
            str(name), lo, hi, step, statements, named.pairs(), named["yields"], named["results"], unroll
        )

    def if_(self, *items: Any) -> tile.If:
        body, named = _split(items)
        conds = tuple(b for b in body if isinstance(b, tile.IndexCond))
        return _if(conds, [b for b in body if isinstance(b, tuple)], named["results"])

    def when(self, *items: Any) -> tile.If:
        body, named = _split(items)
        cond = next(str(b) for b in body if isinstance(b, Token))
        return _if(cond, [b for b in body if isinstance(b, tuple)], named["results"])

    def while_(self, *items: Any) -> tile.While:
        body, named = _split(items)
        test = next(str(b) for b in body if isinstance(b, Token))
        block, yields = next(b for b in body if isinstance(b, tuple))
        statements = tuple(b for b in body if not isinstance(b, (Token, tuple)))
        return tile.While(named.pairs(), statements, test, block, yields, named["results"])


class _Names:
    """A list of names with the word that introduced it."""

    def __init__(self, kind: str, names: tuple[str, ...]) -> None:
        self.kind, self.names = kind, names


class _Named(dict[str, tuple[str, ...]]):
    def __missing__(self, key: str) -> tuple[str, ...]:
        return ()

    def pairs(self) -> tuple[tuple[str, str], ...]:
        names = self["carry"]
        return tuple(zip(names[::2], names[1::2], strict=True))


def _split(items: Any) -> tuple[tuple[Any, ...], _Named]:
    """The items that are not name lists, and the name lists by kind."""
    named = _Named({i.kind: i.names for i in items if isinstance(i, _Names)})
    return tuple(i for i in items if i is not None and not isinstance(i, _Names)), named


def _if(cond: Any, blocks: list[Any], results: tuple[str, ...]) -> tile.If:
    (then, then_yields), (orelse, else_yields) = blocks[0], blocks[1] if len(blocks) > 1 else ((), ())
    return tile.If(cond, then, orelse, then_yields, else_yields, results)


__all__ = ["TileSyntax", "parse"]
