"""The NumPy interpreter: what cascades and programs mean. Compiled code is compared with this.

Extent symbols take their values from the shapes of the inputs. Statements run in order; a tensor is dropped after its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.codes import as_stored
from dlc.ir.domain import Domain, add_domains
from dlc.ir.dtype import from_numpy
from dlc.ir.einsum import Einsum, Scan, Step, TensorType
from dlc.ir.errors import RunTimeExtent, SymbolMismatch, UnboundSymbol, Undefined, UnknownLibraryOp, WrongInputs
from dlc.ir.evaluate import evaluate_step
from dlc.ir.extent import IntExpr, evaluate, split_linear, substitute, variables
from dlc.ir.loc import Loc
from dlc.ir.program import (
    Bind,
    Cascade,
    For,
    If,
    Kernel,
    Launch,
    Library,
    Loop,
    Param,
    Program,
    Region,
    Stmt,
    Symbol,
    Transfer,
    collect_step_types,
    tensor_types,
)

Array: TypeAlias = np.ndarray[Any, Any]
Inputs: TypeAlias = Sequence[Any] | Mapping[str, Any]
Observer: TypeAlias = Callable[[str, Array], None]
Launcher: TypeAlias = Callable[[Launch, Sequence[Array], Mapping[str, int]], Sequence[Array]]
"""Runs the kernel of a launch on its arguments, with the values of the symbols bound so far."""


def run_program(
    program: Program,
    inputs: Inputs,
    data: Mapping[str, Any] | None = None,
    *,
    observe: Observer | None = None,
    launch: Launcher | None = None,
) -> tuple[Array, ...]:
    """The outputs of `program` on `inputs` (in order or by name); `observe` is shown every tensor as it is computed.

    Constants come from `data`, else from `program.data`. Given `launch`, kernels are run by it: control, extents and library
    operations stay the interpreter's.

    Raises:
        WrongInputs, SymbolMismatch: the inputs do not fit the parameters.
        IndexOutOfRange, ScatterOutOfRange: an index held in a tensor is out of range.
    """
    arrays = arrange(program.params, inputs)
    symbols = bind_symbols(program.params, arrays, program.symbols)
    known = data if data is not None else program.data
    env: dict[str, Array] = dict(arrays)
    for c in program.consts:
        if c.name not in known:
            raise WrongInputs(program.loc, reason=f"constant '{c.name}' has no data")
        env[c.name] = as_stored(known[c.name])
    run = _Run(env, symbols, program, observe=observe, launcher=launch)
    run.region(program.body)
    return tuple(run.read(y) for y in program.results)


def run_cascade(
    cascade: Cascade,
    inputs: Inputs,
    symbols: Mapping[str, int] | None = None,
    *,
    observe: Observer | None = None,
) -> tuple[Array, ...]:
    """The results of `cascade` on `inputs`; `symbols` gives extents that no input's shape determines."""
    arrays = arrange(cascade.params, inputs)
    bound = bind_symbols(cascade.params, arrays, cascade.symbols, symbols)
    run = _Run(dict(arrays), bound, observe=observe)
    for step in cascade.steps:
        run.step(step)
    return tuple(run.read(r) for r in cascade.results)


def eval_einsum(
    step: Einsum,
    env: Mapping[str, Array],
    symbols: Mapping[str, int],
    domains: Mapping[str, Domain] | None = None,
) -> tuple[Array, ...]:
    """The stored results of one Einsum; `symbols` holds extents (`#n` or `n`) and loop variables, by name."""
    return evaluate_step(step, env, with_hash(symbols), domains or {})


def with_hash(symbols: Mapping[str, int]) -> dict[str, int]:
    """`symbols` where each extent symbol is also known by its `#` name."""
    return {**{"#" + n: int(v) for n, v in symbols.items() if n[0] != "#"}, **{n: int(v) for n, v in symbols.items()}}


# --- inputs and symbols ----------------------------------------------------------------------------------------------


def arrange(params: Sequence[Param], inputs: Inputs) -> dict[str, Array]:
    """Inputs by name, with their number, rank and element type checked."""
    if isinstance(inputs, Mapping):
        missing = [p.name for p in params if p.name not in inputs]
        if missing:
            raise WrongInputs(reason=f"input '{missing[0]}' is not given")
        given = [inputs[p.name] for p in params]
    else:
        given = list(inputs)
    if len(given) != len(params):
        raise WrongInputs(reason=f"{len(params)} inputs are expected, {len(given)} given")
    arrays = {}
    for p, value in zip(params, given, strict=True):
        a = as_stored(value)
        if a.ndim != p.type.rank:
            raise WrongInputs(reason=f"input '{p.name}' is {p.type}, but has {a.ndim} dimensions")
        if a.dtype != p.type.dtype.numpy:
            raise WrongInputs(reason=f"input '{p.name}' is {p.type}, but holds {a.dtype}")
        arrays[p.name] = a
    return arrays


def bind_symbols(
    params: Sequence[Param],
    arrays: Mapping[str, Array],
    symbols: Sequence[Symbol] = (),
    given: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Values of extent symbols (with `#`), solved from the arrays' shapes.

    Raises:
        SymbolMismatch: two shapes disagree, or a value breaks what is declared of the symbol.
    """
    known = {n: v for n, v in with_hash(given or {}).items() if n.startswith("#")}
    open_ = [(p, d, e, arrays[p.name].shape[d]) for p in params for d, e in enumerate(p.type.shape)]
    progress = True
    while progress:
        progress = False
        for _, _, e, size in open_:
            solved = _solve(substitute(e, known), size)
            if solved is not None:
                known[solved[0]] = solved[1]
                progress = True
    for p, d, e, size in open_:
        unknown = variables(e) - known.keys()
        if unknown:
            raise SymbolMismatch(reason=f"'{sorted(unknown)[0][1:]}' does not follow from the shapes of the inputs")
        if int(evaluate(e, known)) != size:
            expected = f"{e} = {int(evaluate(e, known))}".replace("#", "")
            raise SymbolMismatch(reason=f"dimension {d} of input '{p.name}' is {size}, but {expected}")
    for s in symbols:
        if "#" + s.name in known:
            check_symbol(s, known["#" + s.name])
    return known


def _solve(e: IntExpr, size: int) -> tuple[str, int] | None:
    """The one unknown of `e == size`, when `e` is linear in it and the solution is whole."""
    names = variables(e)
    if len(names) != 1:
        return None
    (name,) = names
    parts = split_linear(e, name)
    if parts is None or parts[0].const in (None, 0) or parts[1].const is None:
        return None
    slope, rest = parts[0].const, parts[1].const
    assert slope is not None
    quotient, remainder = divmod(size - rest, slope)
    return (name, quotient) if remainder == 0 else None


def check_symbol(symbol: Symbol, value: int, loc: object = None) -> None:
    """Refuse a value that breaks the symbol's range or divisor."""
    high = "" if symbol.hi is None else str(symbol.hi)
    if value < symbol.lo or (symbol.hi is not None and value > symbol.hi) or value % symbol.divisor:
        by = f" by {symbol.divisor}" if symbol.divisor != 1 else ""
        raise RunTimeExtent(loc, symbol=symbol.name, value=value, range=f"{symbol.lo}..{high}{by}")


# --- statements ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """The state of a run: tensors, extents and domains."""

    env: MutableMapping[str, Array]
    symbols: dict[str, int]
    program: Program | None = None
    domains: dict[str, Domain] = field(default_factory=dict)
    observe: Observer | None = None
    launcher: Launcher | None = None
    _types: dict[str, TensorType] | None = None

    def read(self, name: str, loc: Loc | None = None) -> Array:
        if name not in self.env:
            raise Undefined(loc, name=name, where="this statement", suggestion="define it before it is used")
        return self.env[name]

    def write(self, name: str, value: Array) -> None:
        self.env[name] = value
        if self.observe is not None:
            self.observe(name, value)

    def region(self, region: Region, keep: Collection[str] = ()) -> None:
        """Run the statements; tensors of this region that nothing later reads are dropped, except those to `keep`."""
        last: dict[str, int] = {}
        for position, stmt in enumerate(region.body):
            last.update(dict.fromkeys(stmt.reads, position))
        kept: set[str] = {*region.yields, *keep}
        own: set[str] = set()
        for stmt in region.body:
            own |= set(stmt.outs)
        drop: dict[int, list[str]] = {}
        masks = {a for d in self.domains.values() for c in d.conjuncts for a in c.variables}
        for name, position in last.items():
            if name in own and name not in kept and name not in masks:
                drop.setdefault(position, []).append(name)
        for position, stmt in enumerate(region.body):
            self.statement(stmt)
            if not self.domains:  # a domain's predicate may name a tensor long after its last visible use
                for name in drop.get(position, ()):
                    self.env.pop(name, None)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Einsum() | Scan():
                self.step(stmt)
            case Launch():
                self._launch(stmt)
            case Bind(symbol, tensor):
                self._bind(symbol, int(self.read(tensor, stmt.loc).reshape(-1)[0]), stmt.loc)
            case Transfer():
                pass
            case Library():
                self._library(stmt)
            case If():
                self._if(stmt)
            case Loop():
                self._loop(stmt)
            case For():
                self._for(stmt)

    def step(self, step: Step) -> None:
        if isinstance(step, Scan):
            self._scan(step)
            return
        self._need_symbols(step)
        for name, value in zip(step.outs, evaluate_step(step, self.env, self.symbols, self.domains), strict=True):
            self.write(name, value)
        add_domains(step, self.domains)

    def _need_symbols(self, step: Einsum) -> None:
        missing = sorted(step.symbols - self.symbols.keys())
        if missing:
            raise UnboundSymbol(step.loc, name=missing[0][1:])
        for name in step.reads:
            self.read(name, step.loc)

    def _scan(self, scan: Scan) -> None:
        for carry in scan.carries:
            self.env[carry.name] = self.read(carry.init, scan.loc)
        count = max(0, int(evaluate(scan.rank.extent, self.symbols)))
        rows: dict[str, list[Array]] = {outer: [] for outer, _ in scan.stacked}
        outside = self.symbols.get(scan.rank.name)
        for t in range(count):
            self.symbols[scan.rank.name] = t
            for step in scan.body:
                self.step(step)
            for outer, inner in scan.stacked:
                rows[outer].append(self.read(inner))
            following = [self.read(y) for y in scan.yields]
            for carry, value in zip(scan.carries, following, strict=True):
                self.env[carry.name] = value
        self.symbols.pop(scan.rank.name, None)
        if outside is not None:
            self.symbols[scan.rank.name] = outside
        for final, carry in zip(scan.finals, scan.carries, strict=True):
            self.write(final, self.env[carry.name])
        for outer, inner in scan.stacked:
            self.write(outer, np.stack(rows[outer]) if count else self._no_rows(scan, inner))
        add_domains(scan, self.domains)

    def _no_rows(self, scan: Scan, inner: str) -> Array:
        """A stack of zero steps: the type of one row must come from the text."""
        types = {n: TensorType(from_numpy(a.dtype), tuple(_extents(a))) for n, a in self.env.items()}
        collect_step_types(scan, types)
        return self._empty(types[inner])

    def _empty(self, row: TensorType) -> Array:
        shape = tuple(max(0, int(evaluate(e, self.symbols))) for e in row.shape)
        return np.zeros((0, *shape), row.dtype.numpy)

    def _launch(self, stmt: Launch) -> None:
        assert self.program is not None
        kernel = self.program.kernel_table[stmt.kernel]
        args = [self.read(a, stmt.loc) for a in stmt.args]
        if self.launcher is not None:
            results = tuple(self.launcher(stmt, args, self.symbols))
        else:
            results = run_kernel(kernel, args, self.symbols)
        for name, value in zip(stmt.outs, results, strict=True):
            self.write(name, value)

    def _bind(self, symbol: Symbol, value: int, loc: Loc) -> None:
        check_symbol(symbol, value, loc)
        if symbol.below is not None and value >= int(evaluate(symbol.below, self.symbols)):
            raise RunTimeExtent(loc, symbol=symbol.name, value=value, range=f"{symbol.lo}.. below {symbol.below}")
        self.symbols["#" + symbol.name] = value

    def _library(self, stmt: Library) -> None:
        from dlc.ir.library import LIBRARY

        if stmt.op not in LIBRARY:
            raise UnknownLibraryOp(stmt.loc, op=stmt.op, known=", ".join(sorted(LIBRARY)))
        entry = LIBRARY[stmt.op]
        shapes = [tuple(self._known_extent(e) for e in t.shape) for t in stmt.types]
        values = entry.meaning([self.read(a, stmt.loc) for a in stmt.args], dict(stmt.attrs), shapes)
        fixed = [np.asarray(v).astype(t.dtype.numpy, copy=False) for v, t in zip(values, stmt.types, strict=True)]
        for symbol in stmt.binds:
            self._bind(symbol, _bound_value(symbol, stmt.types, fixed), stmt.loc)
        for name, value, t in zip(stmt.outs, fixed, stmt.types, strict=True):
            expected = tuple(int(evaluate(e, self.symbols)) for e in t.shape)
            if value.shape != expected:
                raise SymbolMismatch(stmt.loc, reason=f"'{name}' of {stmt.op} has shape {value.shape}, not {expected}")
            self.write(name, value)

    def _known_extent(self, e: IntExpr) -> int | None:
        return int(evaluate(e, self.symbols)) if variables(e) <= self.symbols.keys() else None

    def _if(self, stmt: If) -> None:
        region = stmt.then if bool(self.read(stmt.cond, stmt.loc).reshape(-1)[0]) else stmt.orelse
        self.region(region)
        for name, value in zip(stmt.outs, [self.read(y) for y in region.yields], strict=True):
            self.write(name, value)

    def _loop(self, loop: Loop) -> None:
        limit = None if loop.limit is None else int(self.read(loop.limit, loop.loc).reshape(-1)[0])
        going = loop.cond is None or bool(self.read(loop.cond, loop.loc).reshape(-1)[0])
        carried = [self.read(init, loop.loc) for _, init in loop.carries]
        rows: list[list[Array]] = [[] for _ in loop.collected]
        done = 0
        while going and (limit is None or done < limit):
            self.env[loop.index] = np.asarray(done, np.int64)
            for (name, _), value in zip(loop.carries, carried, strict=True):
                self.env[name] = value
            self.region(loop.body)
            values = [self.read(y) for y in loop.body.yields]
            if loop.cond is not None:
                going = bool(values.pop(0).reshape(-1)[0])
            carried = values[: len(carried)]
            for row, value in zip(rows, values[len(carried) :], strict=True):
                row.append(value)
            done += 1
        if loop.count is not None:
            self._bind(loop.count, done, loop.loc)
        for name, value in zip(loop.finals, carried, strict=True):
            self.write(name, value)
        for name, row in zip(loop.collected, rows, strict=True):
            self.write(name, np.stack(row) if row else self._no_elements(name))

    def _for(self, loop: For) -> None:
        count = max(0, int(evaluate(loop.extent, self.symbols)))
        carried = [self.read(init, loop.loc) for _, init in loop.carries]
        rows: list[list[Array]] = [[] for _ in loop.stacked]
        for t in range(count):
            self._bind(loop.symbol, t, loop.loc)
            for (name, _), value in zip(loop.carries, carried, strict=True):
                self.env[name] = value
            self.region(loop.body, {inner for _, inner in loop.stacked})
            carried = [self.read(y) for y in loop.body.yields]
            for row, (_, inner) in zip(rows, loop.stacked, strict=True):
                row.append(self.read(inner))
        for name, value in zip(loop.finals, carried, strict=True):
            self.write(name, value)
        for (outer, _), row in zip(loop.stacked, rows, strict=True):
            self.write(outer, np.stack(row) if row else self._no_elements(outer))

    def _no_elements(self, name: str) -> Array:
        assert self.program is not None
        if self._types is None:
            self._types = tensor_types(self.program)
        whole = self._types[name]
        return self._empty(TensorType(whole.dtype, whole.shape[1:]))


def run_kernel(kernel: Kernel, args: Sequence[Array], symbols: Mapping[str, int] | None = None) -> tuple[Array, ...]:
    """A kernel is its cascade; symbols it does not see in its arguments come from the program."""
    return run_cascade(kernel.cascade, args, symbols)


def _bound_value(symbol: Symbol, types: Sequence[TensorType], values: Sequence[Array]) -> int:
    """The symbol's value, read off the shape of a result that has it as an extent."""
    for t, v in zip(types, values, strict=True):
        for e, n in zip(t.shape, v.shape, strict=True):
            if e.is_var and "#" + symbol.name in variables(e):
                return int(n)
    raise UnboundSymbol(name=symbol.name)


def _extents(a: Array) -> list[IntExpr]:
    from dlc.ir.extent import int_expr

    return [int_expr(n) for n in a.shape]
