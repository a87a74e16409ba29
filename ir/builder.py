"""Building programs: what importers use to emit Einsums, control and library operations, one statement at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dlc.ir.codes import as_stored
from dlc.ir.dtype import BOOL, I64, DType, default_accumulator, from_numpy
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, Step, TensorType, Write
from dlc.ir.expr import Access, Cast, Const, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, IntLike, Min, evaluate, int_expr, sym, var, variables
from dlc.ir.facts import Facts
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.program import Bind, If, Library, Loop, Param, Program, Region, Stmt, Symbol, collect_step_types
from dlc.ir.view import Shape, Val, as_shape


class Builder:
    """Collects the statements of a program.

    Every `Val` it returns is a tensor of the program (or a view of one). Names are made from the hints given, so that dumps
    are the same from run to run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.params: list[Param] = []
        self.consts: list[Param] = []
        self.data: dict[str, Any] = {}
        self.symbols: dict[str, Symbol] = {}
        self.types: dict[str, TensorType] = {}
        self.loc: Loc = UNKNOWN
        self._blocks: list[list[Stmt]] = [[]]
        self._const_by_id: dict[int, tuple[Any, Val]] = {}
        self._counts: dict[str, int] = {}

    # --- names, locations, symbols ---

    def fresh(self, hint: str) -> str:
        """A tensor name not used yet, from `hint` (made an identifier)."""
        base = "".join(c if c.isalnum() or c == "_" else "_" for c in hint) or "t"
        base = f"t_{base}" if not (base[0].isalpha() or base[0] == "_") else base
        base = f"{base}_" if base in _RESERVED else base
        if base not in self.types and base not in self._counts:
            self._counts[base] = 1
            return base
        while True:
            self._counts[base] = self._counts.get(base, 1) + 1
            name = f"{base}_{self._counts[base]}"
            if name not in self.types and name not in self._counts:
                self._counts[name] = 1
                return name

    @contextmanager
    def at(self, loc: Loc) -> Iterator[None]:
        """Statements emitted inside carry `loc`."""
        before, self.loc = self.loc, loc
        try:
            yield
        finally:
            self.loc = before

    def symbol(self, name: str, lo: int = 0, hi: int | None = None, divisor: int = 1) -> IntExpr:
        """Declare an extent symbol that the inputs bind."""
        self.symbols.setdefault(name, Symbol(name, lo, hi, divisor))
        return sym(name)

    def broadcast(self, *shapes: Shape) -> Shape:
        """`broadcast_shapes`, where symbolic extents that meet are taken to be equal (`equate`)."""
        result = list(broadcast_shapes(*shapes))
        for shape in shapes:
            for d, extent in enumerate(shape):
                at = len(result) - len(shape) + d
                if extent.const != 1 and result[at].const != 1:
                    result[at] = self.equate(result[at], extent)
        return tuple(result)

    def equate(self, a: IntExpr, b: IntExpr) -> IntExpr:
        """Record that the model needs `a == b`, as facts of symbols that a call is checked against; returns the simpler.

        `s == min(512, max(s, 0))` says that s is at most 512; `s == 7` says just that. Two symbols that must agree, or
        anything else, are left to the verifier's proof of each read.
        """
        if a == b:
            return a
        facts = Facts({}, {"#" + n: s.fact for n, s in self.symbols.items()})
        for plain, other in ((a, b), (b, a)):
            names = [n[1:] for n in variables(plain)]
            if len(names) != 1 or names[0] not in self.symbols:
                continue
            known = self.symbols[names[0]]
            if plain.is_var and other.const is not None:
                self.symbols[names[0]] = Symbol(names[0], other.const, other.const)
                return other
            least = facts.simplify(other).atom
            if isinstance(least, Min) and facts.simplify(plain) in least.args:
                caps = [e.const for e in least.args if e.const is not None]
                if len(caps) == len(least.args) - 1:
                    hi = last_below(plain, "#" + names[0], min(caps))
                    hi = min(hi, known.hi) if known.hi is not None else hi
                    self.symbols[names[0]] = Symbol(names[0], known.lo, hi, known.divisor, known.below)
                    return plain
        return a

    # --- leaves ---

    def input(self, name: str, dtype: DType, shape: Sequence[IntLike], *, donate: bool = False) -> Val:
        """A parameter of the program."""
        name = self.fresh(name)
        type_ = TensorType(dtype, as_shape(shape))
        self.params.append(Param(name, type_, donate))
        return self._tensor(name, type_)

    def constant(self, array: Any, hint: str = "c") -> Val:
        """A constant by reference. A rank-0 array becomes a literal."""
        found = self._const_by_id.get(id(array))
        if found is not None and found[0] is array:
            return found[1]
        value = as_stored(array)
        dtype = from_numpy(value.dtype)
        if value.ndim == 0 and dtype.native:
            return self.scalar(value.item() if dtype.name != "bf16" else float(value), dtype)
        name = self.fresh(hint)
        type_ = TensorType(dtype, as_shape(value.shape))
        self.consts.append(Param(name, type_))
        self.data[name] = value
        val = self._tensor(name, type_)
        self._const_by_id[id(array)] = (array, val)
        return val

    def scalar(self, value: float | int | bool, dtype: DType) -> Val:
        """A rank-0 literal."""
        literal = const(value, dtype)
        return Val(dtype, (), lambda _: literal)

    def extent_value(self, e: IntLike) -> Val:
        """A rank-0 i64 with the value of an integer expression over symbols."""
        expr = int_expr(e)
        return Val(I64, (), lambda _: Index(expr))

    def _tensor(self, name: str, type_: TensorType) -> Val:
        self.types[name] = type_
        return Val(type_.dtype, type_.shape, lambda i: Access(name, i), name)

    def tensor(self, name: str) -> Val:
        """The tensor `name` of the program."""
        return self._tensor(name, self.types[name])

    # --- Einsums ---

    def emit(self, stmt: Stmt) -> None:
        """Append a statement as it is; its tensors' types are recorded for Einsums and scans."""
        if isinstance(stmt, (Einsum, Scan)):
            collect_step_types(stmt, self.types)
        self._blocks[-1].append(stmt)

    def compute(
        self,
        hint: str,
        shape: Sequence[IntLike],
        element: Callable[..., Expr],
        dtype: DType,
        where: Callable[..., Expr] | None = None,
    ) -> Val:
        """A pointwise Einsum: the element at `i...` is `element(*i)`, rounded to `dtype`; it exists where `where(*i)` holds."""
        extents = as_shape(shape)
        ranks = _free_ranks(extents)
        index = [var(r.name) for r in ranks]
        expr, domain = element(*index), where(*index) if where is not None else None
        name = self.fresh(hint)
        self.emit(Einsum((name,), ranks, (expr,), (dtype,), where=domain, loc=self.loc))
        return self.tensor(name)

    def map(self, hint: str, op: Callable[..., Expr], *args: Val, dtype: DType | None = None) -> Val:
        """A pointwise Einsum over operands broadcast together: `op` gets one scalar expression per operand."""
        shape = self.broadcast(*(a.shape for a in args))
        wide = [a.broadcast_to(shape) for a in args]
        return self.compute(hint, shape, lambda *i: op(*(a.at(i) for a in wide)), dtype or args[0].dtype)

    def reduce(
        self,
        hint: str,
        op: str,
        shape: Sequence[IntLike],
        over: Sequence[IntLike],
        element: Callable[[tuple[IntExpr, ...], tuple[IntExpr, ...]], Expr],
        dtype: DType,
        *,
        accumulator: DType | None = None,
        where: Callable[[tuple[IntExpr, ...], tuple[IntExpr, ...]], Expr] | None = None,
    ) -> Val:
        """`out[i...] = op(r...) element(i, r)` with `r` over the extents `over`; without `over`, a pointwise Einsum."""
        free, folded = _free_ranks(as_shape(shape)), _reduced_ranks(as_shape(over))
        i, r = tuple(var(x.name) for x in free), tuple(var(x.name) for x in folded)
        name = self.fresh(hint)
        fold = Reduce(op, folded, accumulator) if folded else None
        domain = where(i, r) if where is not None else None
        self.emit(Einsum((name,), free, (element(i, r),), (dtype,), fold, domain, loc=self.loc))
        return self.tensor(name)

    def reduce_axes(
        self, hint: str, op: str, x: Val, axes: Sequence[int], keepdim: bool, dtype: DType | None = None
    ) -> Val:
        """Reduce `x` along `axes`."""
        dims = sorted({a % x.rank for a in axes}) if x.rank else []
        kept = [d for d in range(x.rank) if d not in dims]

        def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            where = dict(zip(kept, i, strict=True)) | dict(zip(dims, r, strict=True))
            return x.at(tuple(where[d] for d in range(x.rank)))

        out = self.reduce(hint, op, [x.shape[d] for d in kept], [x.shape[d] for d in dims], element, dtype or x.dtype)
        return self._keep(out, dims, keepdim)

    def _keep(self, out: Val, dims: Sequence[int], keepdim: bool) -> Val:
        for d in dims if keepdim else ():
            out = out.unsqueeze(d)
        return out

    def tuple_reduce(
        self,
        hints: Sequence[str],
        op: str,
        shape: Sequence[IntLike],
        over: Sequence[IntLike],
        element: Callable[[tuple[IntExpr, ...], tuple[IntExpr, ...]], tuple[Expr, ...]],
        dtypes: Sequence[DType],
    ) -> tuple[Val, ...]:
        """A reduction with a tuple monoid, as `argmax` over (value, index)."""
        free, folded = _free_ranks(as_shape(shape)), _reduced_ranks(as_shape(over))
        i, r = tuple(var(x.name) for x in free), tuple(var(x.name) for x in folded)
        names = tuple(self.fresh(h) for h in hints)
        self.emit(Einsum(names, free, element(i, r), tuple(dtypes), Reduce(op, folded), loc=self.loc))
        return tuple(self.tensor(n) for n in names)

    def contract(
        self, hint: str, spec: str, *args: Val, dtype: DType | None = None, accumulator: DType | None = None
    ) -> Val:
        """Sum of products in einsum notation: `contract("y", "bmk,kn->bmn", x, w)`."""
        left, right = spec.split("->")
        labels = left.split(",")
        extents: dict[str, IntExpr] = {}
        for label, arg in zip(labels, args, strict=True):
            assert len(label) == arg.rank, (spec, arg.shape)
            for letter, extent in zip(label, arg.shape, strict=True):
                if letter not in extents or extents[letter].const == 1:
                    extents[letter] = extent
                elif extent.const != 1:
                    extents[letter] = self.equate(extents[letter], extent)
        over = [c for c in extents if c not in right]

        def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            env = dict(zip(right, i, strict=True)) | dict(zip(over, r, strict=True))
            factors = [
                a.at(
                    tuple(
                        env[c] if a.shape[d].const != 1 or extents[c].const == 1 else int_expr(0)
                        for d, c in enumerate(label)
                    )
                )
                for label, a in zip(labels, args, strict=True)
            ]
            product = factors[0]
            for f in factors[1:]:
                product = apply("mul", product, f)
            return product

        out = dtype or args[0].dtype
        acc = accumulator if accumulator is not None and accumulator != default_accumulator(out) else None
        return self.reduce(
            hint, "sum", [extents[c] for c in right], [extents[c] for c in over], element, out, accumulator=acc
        )

    def scatter(
        self,
        hint: str,
        onto: Val,
        over: Sequence[IntLike],
        index: Callable[..., Sequence[IntLike]],
        element: Callable[..., Expr],
        op: str = "set",
        *,
        drop: bool = False,
        where: Callable[..., Expr] | None = None,
    ) -> Val:
        """A copy of `onto` with `element(*i)` written (or folded) at `index(*i)`, for `i` over the extents `over`."""
        base = self.materialize(onto)
        ranks = _free_ranks(as_shape(over))
        i = tuple(var(r.name) for r in ranks)
        name = self.fresh(hint)
        assert base.name is not None
        write = Write(tuple(int_expr(e) for e in index(*i)), base.name, op, drop)
        domain = where(*i) if where is not None else None
        self.emit(Einsum((name,), ranks, (element(*i),), (onto.dtype,), None, domain, write, loc=self.loc))
        return self.tensor(name)

    def cast(self, x: Val, dtype: DType, mode: str = "sat", hint: str = "cast") -> Val:
        """`x` as another element type; a view, since reading converts."""
        if x.dtype == dtype:
            return x
        base = x.at
        literal = base(()) if x.rank == 0 else None
        if isinstance(literal, Const) and literal.dtype.native and dtype.native:
            from dlc.ir.scalar import cast_array

            array = cast_array(np.asarray(literal.value, literal.dtype.numpy), dtype.numpy, mode)
            return self.scalar(float(array) if dtype.is_float else array.item(), dtype)
        del hint
        return Val(dtype, x.shape, lambda i: Cast(dtype, base(i), mode))

    def materialize(self, x: Val, hint: str = "copy") -> Val:
        """`x` as a tensor of its own (itself if it is one)."""
        if x.name is not None:
            return x
        return self.compute(hint, x.shape, lambda *i: x.at(i), x.dtype)

    # --- recurrences and control ---

    def scan(
        self,
        hint: str,
        steps: IntLike,
        inits: Sequence[Val],
        body: Callable[[IntExpr, tuple[Val, ...]], tuple[Sequence[Val], Sequence[Val]]],
    ) -> tuple[tuple[Val, ...], tuple[Val, ...]]:
        """A recurrence. `body(t, carries)` returns (next carries, tensors to stack).

        Returns:
            the carries after the last step, and the stacked tensors with a new leading dimension of extent `steps`.
        """
        rank_name = self.fresh(f"{hint}_t")
        starts = [self.materialize(v, f"{hint}_init") for v in inits]
        carries = []
        for v in starts:
            assert v.name is not None
            name = self.fresh(f"{hint}_state")
            self.types[name] = TensorType(v.dtype, v.shape)
            carries.append(Carry(name, v.name))
        self._blocks.append([])
        nexts, stacks = body(var(rank_name), tuple(self.tensor(c.name) for c in carries))
        # A yielded tensor is one the body writes, so that states and stacks have storage of their own.
        local = {o for s in self._blocks[-1] for o in s.outs}
        yields = [self._own(v, local, f"{hint}_next") for v in nexts]
        inner = [self._own(v, local, f"{hint}_out") for v in stacks]
        steps_ = self._blocks.pop()
        assert all(isinstance(s, (Einsum, Scan)) for s in steps_), "a scan's body holds Einsums only"
        body_steps: tuple[Step, ...] = tuple(s for s in steps_ if isinstance(s, (Einsum, Scan)))
        finals = tuple(self.fresh(f"{hint}_final") for _ in carries)
        stacked = tuple((self.fresh(f"{hint}_all"), n) for n in inner)
        self.emit(
            Scan(Rank(rank_name, int_expr(steps)), tuple(carries), body_steps, tuple(yields), finals, stacked, self.loc)
        )
        return tuple(self.tensor(f) for f in finals), tuple(self.tensor(o) for o, _ in stacked)

    def _own(self, v: Val, local: set[str], hint: str) -> str:
        if v.name is None or v.name not in local:
            v = self.compute(hint, v.shape, lambda *i: v.at(i), v.dtype)
            assert v.name is not None
            local.add(v.name)
        return v.name

    def if_(
        self, cond: Val, then: Callable[[], Sequence[Val]], orelse: Callable[[], Sequence[Val]], hint: str = "if"
    ) -> tuple[Val, ...]:
        """`cond` is a boolean of one element; both arms yield tensors of equal types."""
        flag = self._scalar_tensor(cond, f"{hint}_cond")
        arms = [self._region(then), self._region(orelse)]
        outs = tuple(self.fresh(f"{hint}_out") for _ in arms[0].yields)
        for out, y in zip(outs, arms[0].yields, strict=True):
            self.types[out] = self.types[y]
        self.emit(If(flag, arms[0], arms[1], outs, self.loc))
        return tuple(self.tensor(o) for o in outs)

    def _region(self, build: Callable[[], Sequence[Val]]) -> Region:
        self._blocks.append([])
        try:
            values = [self.materialize(v) for v in build()]
        finally:
            block = self._blocks.pop()
        return Region(tuple(block), tuple(v.name for v in values if v.name is not None))

    def loop(
        self,
        hint: str,
        inits: Sequence[Val],
        body: Callable[[Val, tuple[Val, ...]], tuple[Val | None, Sequence[Val], Sequence[Val]]],
        *,
        limit: Val | None = None,
        cond: Val | None = None,
        bound: int | None = None,
    ) -> tuple[tuple[Val, ...], tuple[Val, ...]]:
        """A loop. `body(i, carries)` returns (condition for another step or None, next carries, tensors to collect)."""
        index = self.fresh(f"{hint}_i")
        self.types[index] = TensorType(I64, ())
        top = self._scalar_tensor(limit, f"{hint}_limit") if limit is not None else None
        flag = self._scalar_tensor(cond, f"{hint}_cond") if cond is not None else None
        names: list[tuple[str, str]] = []
        for v in inits:
            start = self.materialize(v, f"{hint}_init")
            assert start.name is not None
            name = self.fresh(f"{hint}_state")
            self.types[name] = TensorType(v.dtype, v.shape)
            names.append((name, start.name))
        collected_count = 0

        def build() -> Sequence[Val]:
            nonlocal collected_count
            again, nexts, collected = body(self.tensor(index), tuple(self.tensor(n) for n, _ in names))
            collected_count = len(collected)
            first = (
                [self.materialize(again if again is not None else self.scalar(True, BOOL))] if flag is not None else []
            )
            return [*first, *nexts, *collected]

        region = self._region(build)
        finals = tuple(self.fresh(f"{hint}_final") for _ in names)
        for final, (_, init) in zip(finals, names, strict=True):
            self.types[final] = self.types[init]
        outs = tuple(self.fresh(f"{hint}_all") for _ in range(collected_count))
        count = Symbol(self.fresh(f"{hint}_n"), 0, bound) if outs else None
        for out, inner in zip(outs, region.yields[len(region.yields) - collected_count :], strict=True):
            assert count is not None
            self.types[out] = TensorType(self.types[inner].dtype, (sym(count.name), *self.types[inner].shape))
        self.emit(Loop(index, top, flag, tuple(names), region, finals, outs, count, self.loc))
        return tuple(self.tensor(f) for f in finals), tuple(self.tensor(o) for o in outs)

    def _scalar_tensor(self, v: Val, hint: str) -> str:
        flat = v if v.rank == 0 else v.view((), lambda: [0] * v.rank)
        name = self.materialize(flat, hint).name
        assert name is not None
        return name

    def bind(self, value: Val, hint: str = "n", lo: int = 0, hi: int | None = None, most: IntExpr | None = None) -> IntExpr:
        """A run-time integer as an extent, of at least `lo` and at most `hi` or, where that takes symbols, `most`."""
        name = self.fresh(hint)
        below = None
        if most is not None:
            hi, below = (most.const, None) if most.const is not None else (hi, most + 1)
        self.emit(Bind(Symbol(name, lo, hi, below=below), self._scalar_tensor(value, f"{hint}_value"), self.loc))
        return sym(name)

    def library(
        self,
        op: str,
        args: Sequence[Val],
        results: Sequence[tuple[str, DType, Sequence[IntLike]]],
        attrs: dict[str, int | float | bool | str] | None = None,
        binds: Sequence[tuple[str, int, int | None]] = (),
    ) -> tuple[Val, ...]:
        """A library operation; `results` are (hint, type, shape), `binds` (symbol name, lo, hi) of extents it determines."""
        inputs = tuple(self.materialize(a).name or "" for a in args)
        outs = tuple(self.fresh(h) for h, _, _ in results)
        types = tuple(TensorType(t, as_shape(s)) for _, t, s in results)
        self.types.update(zip(outs, types, strict=True))
        symbols = tuple(Symbol(n, lo, hi) for n, lo, hi in binds)
        self.emit(Library(op, inputs, outs, types, tuple((attrs or {}).items()), symbols, self.loc))
        return tuple(self.tensor(o) for o in outs)

    # --- the end ---

    def finish(self, outputs: Sequence[Val]) -> Program:
        """The program that yields `outputs`."""
        names: list[str] = []
        for v in outputs:
            own = self.materialize(v, "out")
            if own.name in names or any(own.name == p.name for p in self.params + self.consts):
                own = self.compute("out", v.shape, lambda *i, v=v: v.at(i), v.dtype)
            assert own.name is not None
            names.append(own.name)
        assert len(self._blocks) == 1, "a region was left open"
        body = Region(tuple(self._blocks[0]), tuple(names))
        symbols = tuple(self.symbols.values())
        return Program(self.name, tuple(self.params), body, tuple(self.consts), (), symbols, self.data)


_RESERVED = frozenset(
    "cascade program kernel const scan carry yield stack where when else onto scatter drop if loop while bind launch library"
    " symbols in by over from upto collect binds donate true false inf nan min max val idx cast bitcast loc".split()
)


def last_below(e: IntExpr, name: str, cap: int) -> int:
    """The largest value of `name` up to which `e`, which grows with it, is at most `cap`."""
    lo, hi = 0, 1
    while evaluate(e, {name: hi}) <= cap and hi < 1 << 40:
        lo, hi = hi, 2 * hi
    while hi - lo > 1:
        middle = (lo + hi) // 2
        lo, hi = (middle, hi) if evaluate(e, {name: middle}) <= cap else (lo, middle)
    return lo


def _free_ranks(shape: Shape) -> tuple[Rank, ...]:
    return tuple(Rank(f"i{n}", e) for n, e in enumerate(shape))


def _reduced_ranks(shape: Shape) -> tuple[Rank, ...]:
    return tuple(Rank(f"r{n}", e) for n, e in enumerate(shape))


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy broadcasting; an extent of 1 gives way, unequal others are the caller's to refuse (ValueError)."""
    depth = max((len(s) for s in shapes), default=0)
    result: list[IntExpr] = []
    for d in range(depth):
        extents = [s[d - depth + len(s)] for s in shapes if d - depth + len(s) >= 0]
        wide = [e for e in extents if e.const != 1]
        distinct = dict.fromkeys(wide)
        if len(distinct) > 1:
            consts = [e for e in distinct if e.const is not None]
            if len(consts) > 1:
                raise ValueError(f"extents {', '.join(map(str, distinct))} do not broadcast together")
            # Symbols that must agree at run time: keep the constant when there is one.
            result.append((consts or list(distinct))[0])
            continue
        result.append(next(iter(distinct), int_expr(1)))
    return tuple(result)
