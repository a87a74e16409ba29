"""Cascades and programs: tensors with types, straight-line Einsums, control, and the kernels that fusion makes.

A `Cascade` is a closed list of Einsums. A `Program` adds control (`If`, `Loop`), library operations and run-time extents;
its straight-line parts are Einsums written directly among the statements. After fusion a program's statements are `Launch`es of
`Kernel`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from dlc.ir.einsum import Einsum, Scan, Step, TensorType, show_loc, show_names, show_step
from dlc.ir.extent import IntExpr, int_expr, show_extent
from dlc.ir.facts import SymbolFact
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.names import show_name
from dlc.ir.node import Node


@dataclass(frozen=True, slots=True, eq=False)
class Param(Node):
    """A named tensor with its type.

    Attributes:
        donate: the caller gives the memory up: an output may alias it.
    """

    name: str
    type: TensorType
    donate: bool = False

    def __str__(self) -> str:
        return f"{'donate ' if self.donate else ''}{show_name(self.name)}: {self.type}"


@dataclass(frozen=True, slots=True, eq=False)
class Symbol(Node):
    """An extent symbol (name without `#`) and what is known of it; `below` is an expression it is always less than."""

    name: str
    lo: int = 0
    hi: int | None = None
    divisor: int = 1
    below: IntExpr | None = None

    @property
    def fact(self) -> SymbolFact:
        return SymbolFact(self.lo, self.hi, self.divisor, self.below)

    def __str__(self) -> str:
        by = f" by {self.divisor}" if self.divisor != 1 else ""
        below = f" below {show_extent(self.below)}" if self.below is not None else ""
        return f"{show_name(self.name)} in {self.lo}..{'' if self.hi is None else self.hi}{by}{below}"


@dataclass(frozen=True, slots=True, eq=False)
class Cascade(Node):
    """A closed, straight-line list of steps: `cascade f(A: f32[m, k]) -> (C) { ... }`."""

    name: str
    params: tuple[Param, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]
    symbols: tuple[Symbol, ...] = ()
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    def __str__(self) -> str:
        return show_cascade(self)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel(Node):
    """A fused cascade that runs as one native kernel.

    Attributes:
        cascade: its steps; tensors that are not results live inside the kernel.
        outer: names of the ranks every step has as free ranks, or follows block by block (`dlc.ir.blocked`), and along
            which tasks are independent.
    """

    cascade: Cascade
    outer: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.cascade.name

    def __str__(self) -> str:
        head = f"kernel over ({show_names(self.outer)})"
        return show_cascade(self.cascade, head)


@dataclass(frozen=True, slots=True, eq=False)
class Launch(Node):
    """Run `kernel` on tensors of the program: `k3(x, W) -> (y)`."""

    kernel: str
    args: tuple[str, ...]
    outs: tuple[str, ...]
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.args


@dataclass(frozen=True, slots=True, eq=False)
class Bind(Node):
    """A run-time integer becomes an extent: `bind n = T[0] in 0..hi`; `T` is an integer tensor of one element."""

    symbol: Symbol
    tensor: str
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def outs(self) -> tuple[str, ...]:
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tensor,)


@dataclass(frozen=True, slots=True, eq=False)
class Transfer(Node):
    """A tensor leaves the arena for slower memory, `spill x`, or comes back, `fill x`; its value stays the same.

    Between the two nothing may read it. Transfers stand in a program's own body, not in regions.

    Attributes:
        fills: whether it comes back.
    """

    tensor: str
    fills: bool
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def outs(self) -> tuple[str, ...]:
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tensor,)


@dataclass(frozen=True, slots=True, eq=False)
class Library(Node):
    """A library operation (`dlc.ir.library`): sort, top-k, nonzero, unique, NMS ... It may bind fresh extent symbols.

    Attributes:
        op: the operation's name.
        attrs: constants that choose its form, as (name, value) with int, float, bool or str values.
        binds: symbols whose values the operation determines (nonzero's count).
        types: types of `outs`, over old and bound symbols.
    """

    op: str
    args: tuple[str, ...]
    outs: tuple[str, ...]
    types: tuple[TensorType, ...]
    attrs: tuple[tuple[str, int | float | bool | str], ...] = ()
    binds: tuple[Symbol, ...] = ()
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.args


@dataclass(frozen=True, slots=True, eq=False)
class Region(Node):
    """Statements and the tensors they yield."""

    body: tuple[Stmt, ...]
    yields: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors read from outside."""
        inside: set[str] = set()
        names: dict[str, None] = {}
        for stmt in self.body:
            names.update(dict.fromkeys(r for r in stmt.reads if r not in inside))
            inside |= set(stmt.outs)
        names.update(dict.fromkeys(y for y in self.yields if y not in inside))
        return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class If(Node):
    """`if C { ... yield (A) } else { ... yield (B) } -> (R)`: `C` is a boolean tensor of one element."""

    cond: str
    then: Region
    orelse: Region
    outs: tuple[str, ...]
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.cond, *self.then.reads, *self.orelse.reads)))


@dataclass(frozen=True, slots=True, eq=False)
class Loop(Node):
    """A loop with carried tensors: `loop i < N while C carry (H = H0) { ... } -> (H1) collect (Y = y)`.

    Attributes:
        index: name of the step number inside, an i64 scalar.
        limit: i64 scalar tensor with the greatest number of steps, or None.
        cond: boolean scalar tensor: whether to do the first step, or None; then `body.yields[0]` decides on the next.
        carries: (name inside, initial tensor).
        body: yields the condition (when `cond`), then the carries' next values, then one element per collected tensor.
        finals: the carries after the loop.
        collected: tensors stacked along a new leading dimension of extent `count`.
        count: the symbol bound to the number of steps done, when something is collected.
    """

    index: str
    limit: str | None
    cond: str | None
    carries: tuple[tuple[str, str], ...]
    body: Region
    finals: tuple[str, ...]
    collected: tuple[str, ...] = ()
    count: Symbol | None = None
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def outs(self) -> tuple[str, ...]:
        return self.finals + self.collected

    @property
    def reads(self) -> tuple[str, ...]:
        inside = {self.index, *(name for name, _ in self.carries)}
        names = dict.fromkeys(init for _, init in self.carries)
        names.update(dict.fromkeys(n for n in (self.limit, self.cond) if n is not None))
        names.update(dict.fromkeys(r for r in self.body.reads if r not in inside))
        return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class For(Node):
    """A scan after fusion, its body made of launches: `for t < T carry (H = H0) { ... yield (H1) } -> (HT) stack (Y = y)`.

    The step number is the extent symbol `symbol` inside. `body.yields` are the carries' next values; each stacked pair is
    (outer, inner): tensor `inner` of every step along a new leading dimension of `outer`.
    """

    symbol: Symbol
    extent: IntExpr
    carries: tuple[tuple[str, str], ...]
    body: Region
    finals: tuple[str, ...]
    stacked: tuple[tuple[str, str], ...] = ()
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def outs(self) -> tuple[str, ...]:
        return self.finals + tuple(outer for outer, _ in self.stacked)

    @property
    def reads(self) -> tuple[str, ...]:
        inside = {name for name, _ in self.carries}
        names = dict.fromkeys(init for _, init in self.carries)
        names.update(dict.fromkeys(r for r in self.body.reads if r not in inside))
        return tuple(names)


Stmt: TypeAlias = Einsum | Scan | Launch | Bind | Transfer | Library | If | Loop | For


@dataclass(frozen=True, slots=True, eq=False)
class Program(Node):
    """A whole network.

    Attributes:
        params: the inputs, in order; symbols in their shapes are bound by the call.
        consts: constants by reference; their bytes are in `data`, never in the text.
        body: the statements; its yields are the outputs, in order.
        kernels: definitions that `Launch`es name.
        symbols: facts of the extent symbols that the inputs bind.
        data: arrays of the constants (not compared, not printed).
    """

    name: str
    params: tuple[Param, ...]
    body: Region
    consts: tuple[Param, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    symbols: tuple[Symbol, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def results(self) -> tuple[str, ...]:
        return self.body.yields

    @property
    def kernel_table(self) -> dict[str, Kernel]:
        return {k.name: k for k in self.kernels}

    @property
    def facts(self) -> dict[str, SymbolFact]:
        """Facts of every symbol, with `#` names, those bound inside included."""
        known = {"#" + s.name: s.fact for s in self.symbols}
        for stmt in walk_statements(self.body):
            for s in bound_symbols(stmt):
                known["#" + s.name] = s.fact
        return known

    def with_body(self, body: Region) -> Program:
        return self if body is self.body else replace(self, body=body)

    def __str__(self) -> str:
        return show_program(self)


def bound_symbols(stmt: Stmt) -> tuple[Symbol, ...]:
    """Symbols a statement binds."""
    match stmt:
        case Bind(symbol):
            return (symbol,)
        case Library():
            return stmt.binds
        case Loop() if stmt.count is not None:
            return (stmt.count,)
        case For():
            return (stmt.symbol,)
        case _:
            return ()


def regions(stmt: Stmt) -> tuple[Region, ...]:
    """Regions nested in a statement."""
    match stmt:
        case If():
            return (stmt.then, stmt.orelse)
        case Loop() | For():
            return (stmt.body,)
        case _:
            return ()


def walk_statements(region: Region) -> Iterator[Stmt]:
    """Every statement, nested ones after the one that holds them."""
    for stmt in region.body:
        yield stmt
        for inner in regions(stmt):
            yield from walk_statements(inner)


def tensor_types(program: Program) -> dict[str, TensorType]:
    """Type of every tensor of the program, nested regions and scan bodies included (names are unique in a program)."""
    types = {p.name: p.type for p in program.params + program.consts}
    _collect_region(program.body, types, program.kernel_table)
    return types


def cascade_types(cascade: Cascade) -> dict[str, TensorType]:
    """Type of every tensor of a cascade."""
    types = {p.name: p.type for p in cascade.params}
    for step in cascade.steps:
        collect_step_types(step, types)
    return types


def collect_step_types(step: Step, types: dict[str, TensorType]) -> None:
    """Add the types of what `step` writes."""
    from dlc.ir.einsum import result_types

    if isinstance(step, Einsum):
        onto = types[step.write.onto] if step.write is not None else None
        types.update(zip(step.outs, result_types(step, onto), strict=True))
        return
    for carry in step.carries:
        types[carry.name] = types[carry.init]
    for inner in step.body:
        collect_step_types(inner, types)
    for final, carry in zip(step.finals, step.carries, strict=True):
        types[final] = types[carry.init]
    for outer, inner_name in step.stacked:
        inner_type = types[inner_name]
        types[outer] = TensorType(inner_type.dtype, (step.rank.extent, *inner_type.shape))


def _collect_region(region: Region, types: dict[str, TensorType], kernels: Mapping[str, Kernel]) -> None:
    for stmt in region.body:
        match stmt:
            case Einsum() | Scan():
                collect_step_types(stmt, types)
            case Launch():
                made = cascade_types(kernels[stmt.kernel].cascade)
                types.update({o: made[r] for o, r in zip(stmt.outs, kernels[stmt.kernel].cascade.results, strict=True)})
            case Library():
                types.update(zip(stmt.outs, stmt.types, strict=True))
            case If():
                _collect_region(stmt.then, types, kernels)
                _collect_region(stmt.orelse, types, kernels)
                types.update({o: types[y] for o, y in zip(stmt.outs, stmt.then.yields, strict=True)})
            case Loop():
                _collect_loop(stmt, types, kernels)
            case For():
                types.update({name: types[init] for name, init in stmt.carries})
                _collect_region(stmt.body, types, kernels)
                types.update({f: types[init] for f, (_, init) in zip(stmt.finals, stmt.carries, strict=True)})
                for outer, inner_name in stmt.stacked:
                    inner_type = types[inner_name]
                    types[outer] = TensorType(inner_type.dtype, (stmt.extent, *inner_type.shape))
            case Bind() | Transfer():
                pass


def _collect_loop(loop: Loop, types: dict[str, TensorType], kernels: Mapping[str, Kernel]) -> None:
    from dlc.ir.dtype import I64
    from dlc.ir.extent import sym

    types[loop.index] = TensorType(I64, ())
    for name, init in loop.carries:
        types[name] = types[init]
    _collect_region(loop.body, types, kernels)
    for final, (_, init) in zip(loop.finals, loop.carries, strict=True):
        types[final] = types[init]
    collected_yields = loop.body.yields[len(loop.body.yields) - len(loop.collected) :]
    for name, inner in zip(loop.collected, collected_yields, strict=True):
        assert loop.count is not None
        types[name] = TensorType(types[inner].dtype, (sym(loop.count.name), *types[inner].shape))


def fresh_name(base: str, taken: Mapping[str, Any] | set[str] | frozenset[str]) -> str:
    """`base`, or `base_2`, `base_3` ..., whichever is not taken."""
    if base not in taken:
        return base
    n = 2
    while f"{base}_{n}" in taken:
        n += 1
    return f"{base}_{n}"


def program_of(cascade: Cascade) -> Program:
    """The program that runs one cascade."""
    body = Region(cascade.steps, cascade.results)
    return Program(cascade.name, cascade.params, body, symbols=cascade.symbols, loc=cascade.loc)


# --- text ------------------------------------------------------------------------------------------------------------


def _show_symbols(symbols: tuple[Symbol, ...]) -> str:
    return f" symbols ({', '.join(map(str, symbols))})" if symbols else ""


def show_cascade(cascade: Cascade, head: str = "cascade", locs: bool = False) -> str:
    params = ", ".join(map(str, cascade.params))
    results = show_names(cascade.results)
    lines = [f"{head} {show_name(cascade.name)}({params}) -> ({results}){_show_symbols(cascade.symbols)} {{"]
    lines += [show_step(s, "  ", locs) for s in cascade.steps]
    return "\n".join([*lines, "}"]) + (show_loc(cascade.loc) if locs else "")


def show_program(program: Program, locs: bool = False) -> str:
    """Text of a program: kernels first, then constants by reference and the statements."""
    parts = [show_cascade(k.cascade, f"kernel over ({show_names(k.outer)})", locs) for k in program.kernels]
    params = ", ".join(map(str, program.params))
    results = show_names(program.results)
    head = f"program {show_name(program.name)}({params}) -> ({results}){_show_symbols(program.symbols)} {{"
    lines = [head]
    lines += [f"  const {c}" for c in program.consts]
    lines += [_show_stmt(s, "  ", locs) for s in program.body.body]
    parts.append("\n".join([*lines, "}"]) + (show_loc(program.loc) if locs else ""))
    return "\n\n".join(parts)


def _names(names: tuple[str, ...]) -> str:
    return f"({show_names(names)})"


def _show_region(region: Region, indent: str, locs: bool) -> list[str]:
    inner = [_show_stmt(s, indent + "  ", locs) for s in region.body]
    return [*inner, f"{indent}  yield {_names(region.yields)}"]


def _show_stmt(stmt: Stmt, indent: str, locs: bool) -> str:
    tail = show_loc(stmt.loc) if locs else ""
    match stmt:
        case Einsum() | Scan():
            return show_step(stmt, indent, locs)
        case Launch(kernel, args, outs):
            return f"{indent}{_names(outs)} = launch {show_name(kernel)}{_names(args)}{tail}"
        case Bind(symbol, tensor):
            return f"{indent}bind {symbol} = {show_name(tensor)}{tail}"
        case Transfer(tensor, fills):
            return f"{indent}{'fill' if fills else 'spill'} {show_name(tensor)}{tail}"
        case Library():
            return indent + _show_library(stmt) + tail
        case If():
            lines = [f"{indent}if {show_name(stmt.cond)} {{", *_show_region(stmt.then, indent, locs), f"{indent}}} else {{"]
            lines += [*_show_region(stmt.orelse, indent, locs), f"{indent}}} -> {_names(stmt.outs)}{tail}"]
            return "\n".join(lines)
        case For():
            carries = ", ".join(f"{show_name(name)} = {show_name(init)}" for name, init in stmt.carries)
            stacked = "".join(f" stack ({show_name(outer)} = {show_name(inner)})" for outer, inner in stmt.stacked)
            lines = [f"{indent}for {stmt.symbol} < {show_extent(stmt.extent)} carry ({carries}) {{"]
            lines += _show_region(stmt.body, indent, locs)
            lines.append(f"{indent}}} -> {_names(stmt.finals)}{stacked}{tail}")
            return "\n".join(lines)
        case Loop():
            limit = f" < {show_name(stmt.limit)}" if stmt.limit is not None else ""
            cond = f" while {show_name(stmt.cond)}" if stmt.cond is not None else ""
            carries = ", ".join(f"{show_name(name)} = {show_name(init)}" for name, init in stmt.carries)
            count = f" upto {stmt.count}" if stmt.count is not None else ""
            lines = [f"{indent}loop {show_name(stmt.index)}{limit}{cond} carry ({carries}) {{"]
            lines += _show_region(stmt.body, indent, locs)
            lines.append(f"{indent}}} -> {_names(stmt.finals)} collect {_names(stmt.collected)}{count}{tail}")
            return "\n".join(lines)


def _show_library(stmt: Library) -> str:
    import json

    attrs = ", ".join(f"{show_name(k)} = {json.dumps(v)}" for k, v in stmt.attrs)
    outs = ", ".join(f"{show_name(o)}: {t}" for o, t in zip(stmt.outs, stmt.types, strict=True))
    binds = f" binds ({', '.join(map(str, stmt.binds))})" if stmt.binds else ""
    return f"({outs}) = library {show_name(stmt.op)}{_names(stmt.args)} {{{attrs}}}{binds}"


def shape_of(*extents: IntExpr | int) -> tuple[IntExpr, ...]:
    return tuple(int_expr(e) for e in extents)
