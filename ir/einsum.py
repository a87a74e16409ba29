"""One step of a cascade: the extended Einsum, its ranks, reduction, domain and write; and the scan, a recurrence of Einsums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from dlc.ir.dtype import DType
from dlc.ir.expr import Access, Expr, Index, accesses
from dlc.ir.extent import IntExpr, int_expr, show, show_extent, sym, var, variables
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.names import show_name
from dlc.ir.node import Node, remembered


@dataclass(frozen=True, slots=True, eq=False)
class TensorType(Node):
    """Element type, extents over symbols, and layout.

    Attributes:
        order: storage order of the dimensions, outermost first; None is the order written (row-major).
        pitch: elements of memory left free after each row (the dimension stored innermost). Rows a multiple of a page apart
            fall into the same sets of the first cache.
    """

    dtype: DType
    shape: tuple[IntExpr, ...]
    order: tuple[int, ...] | None = None
    pitch: int = 0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> IntExpr:
        total = int_expr(1)
        for extent in self.shape:
            total = total * extent
        return total

    @property
    def strides(self) -> tuple[IntExpr, ...]:
        """Elements between neighbours along each dimension, in the stored order."""
        return self._steps()[0]

    @property
    def stored(self) -> IntExpr:
        """Elements of memory that it takes, those between rows included."""
        return self._steps()[1]

    def _steps(self) -> tuple[tuple[IntExpr, ...], IntExpr]:
        step, result, gap = int_expr(1), [int_expr(0)] * self.rank, self.pitch
        for dimension in reversed(self.order or tuple(range(self.rank))):
            result[dimension] = step
            step, gap = step * (self.shape[dimension] + gap), 0
        return tuple(result), step

    @property
    def row_major(self) -> bool:
        """Whether the elements lie in the order written, without gaps."""
        return self.pitch == 0 and self.order in (None, tuple(range(self.rank)))

    def __str__(self) -> str:
        shape = ", ".join(show_extent(e) for e in self.shape)
        return f"{self.dtype}[{shape}]{show_layout(self.order, self.pitch)}"


@dataclass(frozen=True, slots=True, eq=False)
class Rank(Node):
    """A named rank over `0 <= name < extent`."""

    name: str
    extent: IntExpr

    def __str__(self) -> str:
        name = show_name(self.name)
        return name if self.extent == sym(self.name) else f"{name}:{show_extent(self.extent)}"


def rank(name: str, extent: IntExpr | int) -> Rank:
    return Rank(name, int_expr(extent))


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Node):
    """Fold `ranks` with the monoid `op` (`dlc.ir.monoid.MONOIDS`), accumulating in `accumulator` (None: the default)."""

    op: str
    ranks: tuple[Rank, ...]
    accumulator: DType | None = None

    def __str__(self) -> str:
        kind = "" if self.accumulator is None else f"<{self.accumulator}>"
        return f"{self.op}{kind}({', '.join(map(str, self.ranks))})"


WRITE_OPS = ("set", "sum", "prod", "max", "min")


@dataclass(frozen=True, slots=True, eq=False)
class Write(Node):
    """A scatter: the value goes to `index` of a copy of `onto`, folded with `op`.

    `set` keeps the last write in iteration order (row-major over the Einsum's ranks). A negative or too large index is an
    error unless `drop`, where the write is left out.
    """

    index: tuple[IntExpr, ...]
    onto: str
    op: str = "set"
    drop: bool = False


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Einsum(Node):
    """One step of a cascade, `AV[f, p] = sum(m) A[m, p] * V[f, m]`.

    Attributes:
        outs: the tensors written: one, or the components of a tuple reduction.
        ranks: the free ranks. Without a `write` they are the dimensions of the result, in order.
        exprs: the point-wise expression of each component, over free and reduced ranks.
        dtypes: element type of each result; the value is rounded to it once.
        reduce: how reduced ranks are folded, None when there are none.
        where: domain: points where it is false do not exist.
        write: scatter instead of a dense result.
        order: storage order of the result's dimensions (layout); None is row-major.
        pitch: elements of memory left free after each row of the result (layout).
    """

    outs: tuple[str, ...]
    ranks: tuple[Rank, ...]
    exprs: tuple[Expr, ...]
    dtypes: tuple[DType, ...]
    reduce: Reduce | None = None
    where: Expr | None = None
    write: Write | None = None
    order: tuple[int, ...] | None = None
    pitch: int = 0
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def out(self) -> str:
        """The tensor written, for the common case of one."""
        return self.outs[0]

    @property
    def expr(self) -> Expr:
        return self.exprs[0]

    @property
    def dtype(self) -> DType:
        return self.dtypes[0]

    @property
    def reduced(self) -> tuple[Rank, ...]:
        return self.reduce.ranks if self.reduce is not None else ()

    @property
    def all_ranks(self) -> tuple[Rank, ...]:
        return self.ranks + self.reduced

    @property
    def extents(self) -> dict[str, IntExpr]:
        """Extent of every rank in scope."""
        return {r.name: r.extent for r in self.all_ranks}

    @property
    def scalars(self) -> tuple[Expr, ...]:
        """Every expression of the step: values and domain."""
        return self.exprs + ((self.where,) if self.where is not None else ())

    def accesses(self) -> Iterator[Access]:
        """Every read of a tensor by element, scatter indices included (not `write.onto`, which is read whole)."""
        return iter(_accesses(self))

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of tensors read, in order of first occurrence."""
        return _reads(self)

    @property
    def symbols(self) -> frozenset[str]:
        """Extent symbols that occur (with `#`)."""
        names: frozenset[str] = frozenset().union(*(variables(r.extent) for r in self.all_ranks))
        for e in self.scalars:
            names |= e.variables
        if self.write is not None:
            for i in self.write.index:
                names |= variables(i)
        return frozenset(n for n in names if n.startswith("#"))

    @property
    def row_major(self) -> bool:
        """Whether the result is stored in the order written, without gaps."""
        return self.pitch == 0 and (self.order is None or self.order == tuple(range(len(self.order))))

    @property
    def is_view(self) -> bool:
        """Whether it only reads one element of one tensor of the same type."""
        return self.reduce is None and self.write is None and len(self.exprs) == 1 and isinstance(self.expr, Access)

    def __str__(self) -> str:
        return show_step(self)


@remembered
def _accesses(step: Einsum) -> tuple[Access, ...]:
    """Passes ask for it again and again, and it is a walk through the whole expression."""
    inside = [*step.scalars, *(Index(i) for i in (step.write.index if step.write is not None else ()))]
    return tuple(a for e in inside for a in accesses(e))


@remembered
def _reads(step: Einsum) -> tuple[str, ...]:
    names = dict.fromkeys(a.tensor for a in step.accesses())
    if step.write is not None:
        names[step.write.onto] = None
    return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class Carry(Node):
    """A state of a scan: `name` in the body, `init` before the first step."""

    name: str
    init: str


@dataclass(frozen=True, slots=True, eq=False)
class Scan(Node):
    """A recurrence over `rank`: the step loop.

    Each step runs `body` with the carries' current values and the step number as the rank variable; `yields` are the next
    values. After the last step `finals` hold the carries, and each stacked tensor holds a body tensor of every step along a
    new leading dimension.
    """

    rank: Rank
    carries: tuple[Carry, ...]
    body: tuple[Step, ...]
    yields: tuple[str, ...]
    finals: tuple[str, ...]
    stacked: tuple[tuple[str, str], ...] = ()
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def outs(self) -> tuple[str, ...]:
        return self.finals + tuple(outer for outer, _ in self.stacked)

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors read from outside the scan."""
        inside = {c.name for c in self.carries} | {o for s in self.body for o in s.outs}
        names = dict.fromkeys(c.init for c in self.carries)
        for step in self.body:
            names.update(dict.fromkeys(r for r in step.reads if r not in inside))
        names.update(dict.fromkeys(y for y in self.yields if y not in inside))
        return tuple(names)

    @property
    def symbols(self) -> frozenset[str]:
        inner = frozenset().union(*(s.symbols for s in self.body))
        return inner | frozenset(n for n in variables(self.rank.extent) if n.startswith("#"))

    def __str__(self) -> str:
        return show_step(self)


Step: TypeAlias = Einsum | Scan


def flat(steps: Iterable[Step]) -> Iterator[Einsum]:
    """The Einsums of `steps` in order, those of scans included."""
    for step in steps:
        if isinstance(step, Einsum):
            yield step
        else:
            yield from flat(step.body)


def einsum(
    out: str,
    ranks: tuple[Rank, ...],
    expr: Expr,
    dtype: DType,
    *,
    reduce: Reduce | None = None,
    where: Expr | None = None,
    loc: Loc = UNKNOWN,
) -> Einsum:
    """The common Einsum: one result, no scatter."""
    return Einsum((out,), ranks, (expr,), (dtype,), reduce, where, loc=loc)


def result_types(step: Einsum, onto: TensorType | None = None) -> tuple[TensorType, ...]:
    """Types of the tensors `step` writes; a scatter's result has the type of `onto`."""
    if step.write is not None:
        assert onto is not None, "a scatter needs the type it writes onto"
        return (TensorType(onto.dtype, onto.shape, step.order, step.pitch),)
    shape = tuple(r.extent for r in step.ranks)
    return tuple(TensorType(t, shape, step.order, step.pitch) for t in step.dtypes)


# --- text ------------------------------------------------------------------------------------------------------------


def show_layout(order: tuple[int, ...] | None, pitch: int) -> str:
    """`{0, 2, 1 + 16}`: dimension 1 innermost and 16 elements free after each row; without an order `{+ 16}`."""
    if order is None and not pitch:
        return ""
    parts = [", ".join(map(str, order))] if order is not None else []
    return "{" + " ".join(parts + ([f"+ {pitch}"] if pitch else [])) + "}"


def show_loc(loc: Loc) -> str:
    import json

    return f" loc({json.dumps(str(loc))})" if loc else ""


def show_step(step: Step, indent: str = "", locs: bool = False, scope: frozenset[str] = frozenset()) -> str:
    """Text of a step; with `locs`, its source location too. `scope` names the loop variables of enclosing scans."""
    if isinstance(step, Einsum):
        return indent + _show_einsum(step, scope) + (show_loc(step.loc) if locs else "")
    carries = ", ".join(f"{show_name(c.name)} = {show_name(c.init)}" for c in step.carries)
    lines = [f"{indent}scan {step.rank} carry ({carries}) {{"]
    lines += [show_step(s, indent + "  ", locs, scope | {step.rank.name}) for s in step.body]
    lines.append(f"{indent}  yield ({show_names(step.yields)})")
    stacked = "".join(f" stack ({show_name(outer)} = {show_name(inner)})" for outer, inner in step.stacked)
    lines.append(f"{indent}}} -> ({show_names(step.finals)}){stacked}" + (show_loc(step.loc) if locs else ""))
    return "\n".join(lines)


def show_names(names: tuple[str, ...]) -> str:
    return ", ".join(map(show_name, names))


def _show_einsum(step: Einsum, outer: frozenset[str]) -> str:
    scope = outer.union(r.name for r in step.all_ranks)
    name = show_name(step.out) if len(step.outs) == 1 else f"({show_names(step.outs)})"
    types = ", ".join(str(t) for t in step.dtypes)
    layout = show_layout(step.order, step.pitch)
    body = ", ".join(e.show(scope) for e in step.exprs)
    # `sum(m) -X` would read as a difference
    body = body if len(step.exprs) == 1 and not (step.reduce is not None and body.startswith("-")) else f"({body})"
    fold = f"{step.reduce} " if step.reduce is not None else ""
    where = f" where {step.where.show(scope)}" if step.where is not None else ""
    ranks = ", ".join(map(str, step.ranks))
    if step.write is None:
        return f"{name}[{ranks}]: {types}{layout} = {fold}{body}{where}"
    index = ", ".join(show(i, scope) for i in step.write.index)
    drop = " drop" if step.write.drop else ""
    head = f"scatter({ranks}) {name}[{index}]: {types}{layout} {step.write.op}="
    return f"{head} {fold}{body}{where} onto {show_name(step.write.onto)}{drop}"


def identity(out: str, source: str, of: TensorType, names: tuple[str, ...] | None = None) -> Einsum:
    """`out = source`, the copy that a relayout is."""
    names = names or tuple(f"i{n}" for n in range(of.rank))
    ranks = tuple(Rank(n, e) for n, e in zip(names, of.shape, strict=True))
    return einsum(out, ranks, Access(source, tuple(var(n) for n in names)), of.dtype)
