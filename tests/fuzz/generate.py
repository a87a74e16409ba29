"""Random programs of the IR, well typed and small, from a seed; every construct of docs/ir.md has its minimum share.

`case(seed)` makes a program and its inputs. A program is a handful of *pieces* (`tests/fuzz/pieces*.py`): each takes tensors
from the pool that inputs and earlier pieces left, emits a construct and puts its results into the pool. What nothing
reads becomes an output. Extents are static or symbolic, and 0, 1, primes and multiples of the vector length are frequent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlc.ir.expr import Expr, const
from dlc.ir.extent import IntExpr, evaluate, int_expr
from dlc.ir.program import Program
from dlc.ir.view import Val

Array: TypeAlias = np.ndarray[Any, Any]
FLOATS = (F32, F64, F16, BF16)
SIGNED = (I64, I32, I16, I8)
UNSIGNED = (U64, U32, U16, U8)
INTS = SIGNED + UNSIGNED
ALL = (*FLOATS, *INTS, BOOL)
SMALL = (1, 2, 3, 4, 5, 7, 8)
SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 19, 23, 31, 32, 33, 37, 47, 48, 63, 64, 65)
MOST_ELEMENTS = 6000


@dataclass(frozen=True)
class Case:
    """A program with inputs, and the constructs it holds.

    Attributes:
        again: inputs for other values of the symbols, which the same artifact must serve.
    """

    seed: int
    program: Program
    inputs: tuple[Array, ...]
    tags: tuple[str, ...]
    again: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class Source:
    """How an input was drawn; the range of an index may hang on an extent."""

    dtype: DType
    shape: tuple[IntExpr, ...]
    lo: IntExpr | float | None
    hi: IntExpr | float | None


@dataclass(frozen=True)
class Tensor:
    """A tensor of the pool; `shape` are the extents of this case.

    Attributes:
        clean: a float of moderate size with no infinities or NaN, or a small integer: fit for an index or a sum.
    """

    val: Val
    shape: tuple[int, ...]
    clean: bool = True

    @property
    def dtype(self) -> DType:
        return self.val.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Extent:
    """An extent and its value in this case."""

    expr: IntExpr
    value: int


class Unfit(Exception):
    """A piece does not go with what the pool holds; another one is tried."""


@dataclass
class Gen:
    """The state of a generation."""

    seed: int
    builder: Builder = field(init=False)
    rng: random.Random = field(init=False)
    np_rng: np.random.Generator = field(init=False)
    inputs: list[Array] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    pool: list[Tensor] = field(default_factory=list)
    leaving: list[Val] = field(default_factory=list)
    """results whose extents only the run determines: outputs, read by no other piece"""
    used: set[int] = field(default_factory=set)
    tags: dict[str, None] = field(default_factory=dict)
    symbols: dict[str, Extent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = Builder(f"fuzz_{self.seed}")
        self.rng = random.Random(self.seed)
        self.np_rng = np.random.default_rng(self.seed)
        self.special = self.rng.random() < 0.2
        self.zero = self.rng.random() < 0.12

    # --- choices ---

    def tag(self, *names: str) -> None:
        self.tags.update(dict.fromkeys(names))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.rng.randrange(len(options))]

    def float_type(self) -> DType:
        t: DType = self.pick((F32, F32, F32, F32, F32, F64, F16, BF16))
        self.tag(f"dtype:{t}")
        return t

    def any_type(self) -> DType:
        t: DType = self.float_type() if self.chance(0.5) else self.pick((*INTS, I64, I32, BOOL))
        self.tag(f"dtype:{t}")
        return t

    # --- extents ---

    def extent(self, lo: int = 0, hi: int = 65, symbol: float = 0.35) -> Extent:
        """A new static or symbolic extent within lo..hi, or a symbol there is already."""
        if self.chance(symbol):
            fit = [e for e in self.symbols.values() if lo <= e.value <= hi]
            if fit and self.chance(0.5):
                return self.pick(fit)
            value = self.size(lo, hi)
            name = "nsbtuvwz"[len(self.symbols) % 8] + str(len(self.symbols) // 8 or "")
            divisor = (
                self.pick([d for d in (2, 3, 4, 8) if value % d == 0 and value] or [1]) if self.chance(0.25) else 1
            )
            least = self.pick((0, 1)) if value >= 1 else 0
            least = 0 if divisor > 1 else least
            most = self.pick((None, None, value, value + 3, 4096))
            found = Extent(self.builder.symbol(name, min(least, value), most, divisor), value)
            self.symbols[name] = found
            self.tag("extent:symbol")
            return found
        value = self.size(lo, hi)
        return Extent(int_expr(value), value)

    def size(self, lo: int, hi: int) -> int:
        if hi == 0 or lo == 0 and self.zero and self.chance(0.3):
            self.tag("extent:0")
            return 0
        options = [s for s in SIZES if max(lo, 1) <= s <= hi]
        value = int(self.pick(options))
        if value == 1:
            self.tag("extent:1")
        elif value % 8:
            self.tag("extent:odd")
        return value

    def shape(self, rank: int, most: int = MOST_ELEMENTS, lo: int = 0) -> list[Extent]:
        """`rank` extents whose product is at most `most`."""
        result: list[Extent] = []
        left = most
        for k in range(rank):
            share = max(2, int(left ** (1 / (rank - k))) * (2 if rank > 1 else 1))
            e = self.extent(lo, min(65, share))
            result.append(e)
            left = max(1, left // max(e.value, 1))
        self.rng.shuffle(result)
        return result

    # --- tensors ---

    def data(self, dtype: DType, shape: Sequence[int], lo: float | None = None, hi: float | None = None) -> Array:
        """Random values; in some cases with infinities, NaN, zeros of both signs, denormals and extreme integers."""
        rng, dims = self.np_rng, tuple(shape)
        if dtype == BOOL:
            return rng.random(dims) < 0.5
        if dtype.is_int:
            least, most = (int(lo), int(hi or 0)) if lo is not None else (-20 if dtype.kind == "i" else 0, 40)
            a = rng.integers(max(least, dtype.lowest), min(most, dtype.highest), dims, endpoint=True).astype(
                dtype.numpy
            )
            if lo is None and self.chance(0.25):
                a = np.frombuffer(rng.bytes(int(np.prod(dims)) * dtype.bytes), dtype.numpy).reshape(dims).copy()
                self.tag("input:any-int")
            if lo is None and self.special:
                self._sprinkle(a, [dtype.lowest, dtype.highest, 0, -1 if dtype.kind == "i" else 1])
                self.tag("input:extreme-int")
            return a
        a = (rng.standard_normal(dims) * self.pick((1.0, 1.0, 1.0, 3.0, 0.1))).astype(np.float64)
        if lo is not None:
            a = rng.uniform(lo, hi, dims)
        elif self.chance(0.2):
            a = np.round(a * 2) / 2  # ties
        out = a.astype(dtype.numpy)
        if lo is None and self.special:
            small = {"f16": 1e-7, "f64": 5e-310}.get(dtype.name, 1e-40)
            self._sprinkle(out, [np.inf, -np.inf, np.nan, -0.0, 0.0, small, -small])
            self.tag("input:special-float")
        return out

    def _sprinkle(self, a: Array, values: Sequence[float]) -> None:
        if a.size == 0:
            return
        flat = a.reshape(-1)
        for _ in range(self.rng.randint(1, 4)):
            flat[self.rng.randrange(a.size)] = np.asarray(self.pick(values)).astype(a.dtype)

    def input(
        self,
        dtype: DType,
        shape: Sequence[Extent],
        lo: float | None = None,
        hi: float | None = None,
        hint: str = "x",
        below: IntExpr | None = None,
    ) -> Tensor:
        """A new parameter; `below` is the extent that an index stays below, and above minus which if `lo` is negative."""
        val = self.builder.input(hint, dtype, [e.expr for e in shape], donate=self.chance(0.04))
        low = -below if below is not None and lo is not None and lo < 0 and lo == -(hi or 0) - 1 else lo
        self.sources.append(Source(dtype, val.shape, low, hi if below is None else below - 1))
        dims = tuple(e.value for e in shape)
        self.inputs.append(self.data(dtype, dims, lo, hi))
        self.tag(f"dtype:{dtype}")
        return Tensor(val, dims, lo is not None or not self.special)

    def constant(
        self, dtype: DType, shape: Sequence[int], lo: float | None = None, hi: float | None = None, hint: str = "c"
    ) -> Tensor:
        """A constant of the program."""
        special, self.special = self.special, False
        array = self.data(dtype, shape, lo, hi)
        self.special = special
        self.tag("constant", f"dtype:{dtype}")
        if array.ndim == 0:
            array = array.reshape(1)
            return Tensor(self.builder.constant(array, hint).select(0, 0), ())
        return Tensor(self.builder.constant(array, hint), tuple(shape))

    def leaf(self, dtype: DType, shape: Sequence[Extent], lo: float | None = None, hi: float | None = None) -> Tensor:
        """An input, or a constant where the shape is static."""
        if self.chance(0.25) and all(e.expr.const is not None for e in shape):
            return self.constant(dtype, [e.value for e in shape], lo, hi)
        return self.input(dtype, shape, lo, hi)

    def add(self, val: Val, shape: Sequence[int], clean: bool = True) -> Tensor:
        """Put a result into the pool."""
        t = Tensor(val, tuple(shape), clean)
        self.pool.append(t)
        return t

    def sized(self, val: Val) -> tuple[int, ...]:
        """Extents of `val` in this case."""
        env = {"#" + n: e.value for n, e in self.symbols.items()}
        return tuple(max(0, int(evaluate(e, env))) for e in val.shape)

    def take(
        self, fits: Callable[[Tensor], bool], make: Callable[[], Tensor] | None = None, fresh: float = 0.4
    ) -> Tensor:
        """A tensor of the pool that fits, or a new one."""
        found = [t for t in self.pool if fits(t)]
        if found and not (make is not None and self.chance(fresh)):
            t: Tensor = self.pick(found)
            self.used.add(id(t))
            return t
        if make is None:
            raise Unfit
        return make()

    def some(self, kinds: Sequence[DType] | None = None, ranks: tuple[int, int] = (0, 4), fresh: float = 0.4) -> Tensor:
        """Any tensor of these types."""
        types = tuple(kinds) if kinds is not None else ALL

        def make() -> Tensor:
            if kinds is None:
                dtype = self.any_type()
            else:
                dtype = self.pick([t for t in types if t == F32] or types) if self.chance(0.5) else self.pick(types)
            return self.leaf(dtype, self.shape(self.rng.randint(max(ranks[0], 0), ranks[1])))

        return self.take(lambda t: t.dtype in types and ranks[0] <= t.rank <= ranks[1], make, fresh)

    def extents(self, t: Tensor) -> list[Extent]:
        return [Extent(e, n) for e, n in zip(t.val.shape, t.shape, strict=True)]

    def literal(self, dtype: DType) -> Expr:
        """A constant expression."""
        if dtype == BOOL:
            return const(self.chance(0.5), BOOL)
        if dtype.is_int:
            values = [0, 1, 2, 3, 5, 7] + ([-1, -3] if dtype.kind == "i" else [])
            return const(self.pick(values), dtype)
        return const(self.pick((0.0, 1.0, -1.0, 0.5, 2.0, 0.1, -3.25, 1e-3)), dtype)


Piece: TypeAlias = Callable[[Gen], None]


def case(seed: int, pieces: Sequence[tuple[str, float, Piece]] | None = None, length: int | None = None) -> Case:
    """The program of a seed.

    Args:
        pieces: (name, weight, piece) to choose from; by default all of them.
        length: number of pieces; random by default.
    """
    from tests.fuzz.pieces import PIECES

    table = list(pieces if pieces is not None else PIECES)
    g = Gen(seed)
    count = length or g.pick((1, 1, 2, 2, 3, 3, 4, 6))
    done = 0
    attempts = 0
    while done < count and attempts < 12 + 3 * count:
        attempts += 1
        total = sum(w for _, w, _ in table)
        at = g.rng.random() * total
        for name, weight, piece in table:
            at -= weight
            if at <= 0:
                break
        mark = (len(g.builder._blocks[0]), dict(g.tags))
        try:
            piece(g)
        except Unfit:
            if len(g.builder._blocks[0]) != mark[0] and not g.pool:
                raise
            g.tags = mark[1]
            continue
        g.tag(name)
        done += 1
    if not g.pool and not g.leaving:
        from tests.fuzz.pieces import pointwise

        pointwise(g)
    plain = {e.atom for p in g.builder.params for e in p.type.shape if e.is_var}
    for name, e in g.symbols.items():  # a symbol that no input binds plainly gets one that does
        if e.expr.atom not in plain:
            g.input(F32, [e], 0, 1, hint=f"only_{name}")
    unread = [t for t in g.pool if id(t) not in g.used]
    extra = [t for t in g.pool if id(t) in g.used]
    results = unread + ([g.pick(extra)] if extra and g.chance(0.3) else [])
    if len(results) > 1:
        g.tag("outputs:several")
    program = g.builder.finish([*(t.val for t in results), *g.leaving])
    again = _again(g)
    return Case(seed, program, tuple(g.inputs), tuple(g.tags), again)


def _again(g: Gen) -> tuple[Array, ...] | None:
    """Inputs for larger values of the symbols (a window may not fit into smaller ones)."""
    if not g.symbols or "gather:outside" in g.tags:
        return None
    known = g.builder.symbols
    env: dict[str, int] = {}
    for name, e in g.symbols.items():
        s = known[name]
        step = s.divisor * g.pick((0, 1, 2, 5, 14))
        value = e.value + step
        env["#" + name] = value if s.hi is None or value <= s.hi else e.value
    if all(env["#" + n] == e.value for n, e in g.symbols.items()):
        return None

    def number(x: IntExpr | float | None) -> float | None:
        return int(evaluate(x, env)) if isinstance(x, IntExpr) else x

    g.tag("extents:again")
    return tuple(
        g.data(s.dtype, [int(evaluate(x, env)) for x in s.shape], number(s.lo), number(s.hi)) for s in g.sources
    )
