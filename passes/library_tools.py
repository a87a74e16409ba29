"""What the expansions of library operations share: a builder inside a program, order keys of numbers, running counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType, Write
from dlc.ir.expr import Apply, Bitcast, Cast, Expr, Index, access, const
from dlc.ir.extent import IntExpr, IntLike, int_expr, var
from dlc.ir.program import Library, Stmt, Symbol
from dlc.ir.view import Val, as_shape

Point = tuple[IntExpr, ...]
KEY_TYPES: dict[DType, DType] = {F64: I64, F32: I32, F16: I16, BF16: I16, BOOL: U8} | {
    t: t for t in (I8, I16, I32, I64, U8, U16, U32, U64)
}
_BLOCK = 64


class Expansion(Builder):
    """A builder whose statements take the place of a library operation; names are new to the whole program."""

    def __init__(
        self, stmt: Library, types: Mapping[str, TensorType], taken: set[str], symbols: Mapping[str, Symbol]
    ) -> None:
        super().__init__(stmt.op)
        self.types = dict(types)
        self.loc = stmt.loc
        self.symbols = dict(symbols)
        self._counts = dict.fromkeys(taken, 1)
        self._hint = stmt.outs[0]

    @property
    def statements(self) -> list[Stmt]:
        return self._blocks[0]

    def fresh(self, hint: str) -> str:
        """Names begin with that of the operation's first result."""
        return super().fresh(f"{self._hint}_{hint}")

    def own(self, v: Val) -> str:
        """The name of a tensor that a statement here writes, with `v`'s value."""
        written = {o for s in self.statements for o in s.outs}
        if v.name is None or v.name not in written:
            v = self.compute("copy", v.shape, lambda *i: v.at(i), v.dtype)
        assert v.name is not None
        return v.name

    def fold(
        self,
        hints: Sequence[str],
        op: str,
        shape: Sequence[IntLike],
        over: Sequence[IntLike],
        element: Callable[[Point, Point], Sequence[Expr]],
        dtypes: Sequence[DType],
        where: Callable[[Point, Point], Expr] | None = None,
    ) -> tuple[Val, ...]:
        """A reduction, of a tuple perhaps, over the points where `where` holds."""
        free = tuple(Rank(f"i{n}", e) for n, e in enumerate(as_shape(shape)))
        folded = tuple(Rank(f"r{n}", e) for n, e in enumerate(as_shape(over)))
        i, r = tuple(var(x.name) for x in free), tuple(var(x.name) for x in folded)
        names = tuple(self.fresh(h) for h in hints)
        domain = where(i, r) if where is not None else None
        self.emit(Einsum(names, free, tuple(element(i, r)), tuple(dtypes), Reduce(op, folded), domain, loc=self.loc))
        return tuple(self.tensor(n) for n in names)

    def put(
        self,
        hint: str,
        shape: Sequence[IntLike],
        start: Expr,
        over: Sequence[IntLike],
        index: Callable[[Point], Sequence[IntLike]],
        element: Callable[[Point], Expr],
        dtype: DType,
        op: str = "set",
        where: Callable[[Point], Expr] | None = None,
    ) -> Val:
        """A tensor of `start` with `element(i)` written at `index(i)` for the points `i` where `where` holds."""
        base = self.compute(f"{hint}_start", shape, lambda *_: start, dtype)
        assert base.name is not None
        ranks = tuple(Rank(f"i{n}", e) for n, e in enumerate(as_shape(over)))
        i = tuple(var(r.name) for r in ranks)
        name = self.fresh(hint)
        write = Write(tuple(int_expr(e) for e in index(i)), base.name, op)
        domain = where(i) if where is not None else None
        self.emit(Einsum((name,), ranks, (element(i),), (dtype,), None, domain, write, loc=self.loc))
        return self.tensor(name)


def keys(b: Expansion, x: Val, *, reverse: bool = False) -> Val:
    """Integers in the order of `x`: NaN greatest, 0.0 equal to -0.0. With `reverse`, in the opposite order."""
    kind = KEY_TYPES[x.dtype]

    def element(*i: IntExpr) -> Expr:
        v = x.at(i)
        key: Expr
        if x.dtype.is_float:
            bits = Bitcast(kind, Apply("add", (v, const(0.0, x.dtype))))  # -0.0 + 0.0 is 0.0
            # of negative floats the greater has the smaller bits
            turned = Apply("xor", (bits, const(kind.highest, kind)))
            key = Apply("select", (Apply("lt", (bits, const(0, kind))), turned, bits))
            key = Apply("select", (Apply("ne", (v, v)), const(kind.highest, kind), key))
        else:
            key = v if x.dtype == kind else Cast(kind, v)
        return Apply("not", (key,)) if reverse else key

    return b.compute("key", x.shape, element, kind)


def one_if(predicate: Expr, dtype: DType = I64) -> Expr:
    return Cast(dtype, predicate)


def at_scalar(x: Val) -> Expr:
    """The element of a tensor of one element."""
    return x.at(tuple(int_expr(0) for _ in x.shape))


@dataclass(frozen=True, slots=True)
class Running:
    """How many flags are set before each element of a sequence.

    The sequence is cut into blocks of `block`; element `block*p + q` is `q` of block `p`.
    """

    blocks: IntExpr
    block: int
    offset: Val
    within: Val
    total: Val

    def at_block(self, p: IntExpr, q: IntExpr) -> Expr:
        """The number before element `q` of block `p`."""
        return Apply("add", (self.offset.at((p,)), self.within.at((p, q))))

    def at(self, i: IntExpr) -> Expr:
        """The number before element `i`, an index that is read from a tensor."""
        return self.at_block(i // self.block, i % self.block)


def running_count(b: Expansion, flags: Val) -> Running:
    """Exclusive running counts of `flags`, bool[n], in O(n*64 + (n/64)^2) steps and O(n) memory."""
    (n,) = flags.shape
    blocks = (n + (_BLOCK - 1)) // _BLOCK
    outside = const(False, BOOL)

    def flag(p: IntExpr, q: IntExpr) -> Expr:
        assert flags.name is not None
        return one_if(access(flags.name, _BLOCK * p + q, default=outside))

    counts = b.reduce("counts", "sum", [blocks], [_BLOCK], lambda i, r: flag(i[0], r[0]), I64)
    (offset,) = b.fold(
        ("offset",), "sum", [blocks], [blocks], lambda i, r: (counts.at(r),), (I64,),
        where=lambda i, r: Apply("lt", (Index(r[0]), Index(i[0]))),
    )  # fmt: skip
    (within,) = b.fold(
        ("within",), "sum", [blocks, _BLOCK], [_BLOCK], lambda i, r: (flag(i[0], r[0]),), (I64,),
        where=lambda i, r: Apply("lt", (Index(r[0]), Index(i[1]))),
    )  # fmt: skip
    total = b.reduce("total", "sum", [], [blocks], lambda i, r: counts.at(r), I64)
    return Running(blocks, _BLOCK, offset, within, total)
