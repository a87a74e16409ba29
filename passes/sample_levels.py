"""The samples that are computed together, and the tensors of theirs: gathered, shared, merged, with places and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dlc.ir.dtype import I64, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType, Write, einsum
from dlc.ir.expr import Access, Expr, Index, Piecewise, const
from dlc.ir.extent import IntExpr, int_expr, sym, value, var
from dlc.ir.loc import Loc
from dlc.ir.program import Library, Program, Stmt, Symbol, bound_symbols, fresh_name, tensor_types, walk_statements
from dlc.passes.rewrite import Names
from dlc.passes.sample_dependence import sample_dependent

SAMPLE = "n"
"""The rank of samples in the Einsums that are made here."""


@dataclass
class Level:
    """Samples that are computed together.

    Attributes:
        extent: how many they are.
        names: the tensors of these samples, by their names in the program for one.
        parent, at: which of whose samples these are; `at` is i64[1, extent].
    """

    extent: IntExpr
    names: dict[str, str] = field(default_factory=dict)
    parent: Level | None = None
    at: str = ""


@dataclass(frozen=True)
class Given:
    """A tensor of the program for one sample, as samples that part ways give it.

    Attributes:
        name: the tensor.
        place: each sample's place among those that computed it; None where all of the level have it.
    """

    name: str
    place: str | None = None


class Samples:
    """Base of the batching: the level at hand, and tensors of it.

    Attributes:
        dependent: tensors that differ from sample to sample.
        types: of the program for one sample.
        renamed: tensors that get another name.
        body: statements of the region that is being made.
    """

    def __init__(self, program: Program, samples: Sequence[str], symbol: str) -> None:
        self.program = program
        self.dependent = sample_dependent(program, samples)
        self.types = tensor_types(program)
        self.names = Names(program)
        self.symbols = {s.name for s in program.symbols} | {n[1:] for n in program.facts}
        self.symbols |= {s.name for stmt in walk_statements(program.body) for s in bound_symbols(stmt)}
        self.batch = self.fresh_symbol(symbol)
        self.level = Level(sym(self.batch))
        self.renamed: dict[str, str] = {}
        self.body: list[Stmt] = []

    def fresh_symbol(self, base: str) -> str:
        name = fresh_name(base, self.symbols)
        self.symbols.add(name)
        return name

    def emit(self, stmt: Stmt) -> None:
        self.body.append(stmt)

    # --- levels ---

    @contextmanager
    def region(self) -> Iterator[list[Stmt]]:
        """Statements of a nested region; what is gathered in it is not known after it."""
        outside, kept = self.body, []
        step: Level | None = self.level
        while step is not None:
            kept.append((step, dict(step.names)))
            step = step.parent
        self.body = []
        try:
            yield self.body
        finally:
            self.body = outside
            for level, names in kept:
                level.names = names

    @contextmanager
    def some(self, mask: str, loc: Loc) -> Iterator[str]:
        """The samples of `mask` as the level at hand; gives each one's place among them."""
        around = self.level
        count = Symbol(self.fresh_symbol("some"), below=around.extent + 1)
        at, zeros, place = (self.names.fresh(f"{mask}_{what}") for what in ("at", "zeros", "place"))
        kind = TensorType(I64, (int_expr(1), sym(count.name)))
        self.emit(Library("nonzero", (mask,), (at,), (kind,), binds=(count,), loc=loc))
        self.per_sample(zeros, I64, lambda n: const(0, I64), loc)
        write = Write((_held(at, int_expr(0), var(SAMPLE)),), zeros)
        ranks = (Rank(SAMPLE, sym(count.name)),)
        self.emit(Einsum((place,), ranks, (Index(var(SAMPLE)),), (I64,), write=write, loc=loc))
        self.level = Level(sym(count.name), parent=around, at=at)
        try:
            yield place
        finally:
            self.level = around

    # --- tensors ---

    def define(self, name: str) -> str:
        """The name of what is `name` in the program for one, for the samples at hand."""
        found = self.renamed.get(name, name)
        self.level.names[name] = found
        return found

    def read(self, name: str, level: Level | None = None) -> str:
        """The tensor `name` of a level's samples, gathered from the level around it when it is made there."""
        level = level or self.level
        if name not in level.names:
            assert level.parent is not None, name
            source = self.read(name, level.parent)
            some = self.names.fresh(f"{name}_some")
            at = _held(level.at, int_expr(0), var(SAMPLE))
            self.emit(self.spread(some, name, lambda i: Access(source, (at, *i)), level.extent))
            level.names[name] = some
        return level.names[name]

    def everywhere(self, name: str) -> str:
        """The tensor with a dimension of samples, whether or not it depends on them."""
        if name in self.dependent:
            return self.read(name)
        wide = self.names.fresh(f"{name}_each")
        self.emit(self.spread(wide, name, lambda i: Access(name, i), self.level.extent))
        return wide

    def element(self, given: str | Given, sample: IntExpr, index: tuple[IntExpr, ...]) -> Expr:
        """The element of one sample, or of what all samples share."""
        if isinstance(given, str):
            given = Given(given)
        if given.name not in self.dependent:
            return Access(given.name, index)
        at = sample if given.place is None else _held(given.place, sample)
        return Access(self.read(given.name), (at, *index))

    def scalar(self, given: str | Given, sample: IntExpr) -> Expr:
        """The element of a tensor that has one for each sample."""
        name = given if isinstance(given, str) else given.name
        return self.element(given, sample, (int_expr(0),) * self.types[name].rank)

    # --- Einsums ---

    def spread(
        self,
        out: str,
        like: str,
        element: Callable[[tuple[IntExpr, ...]], Expr],
        extent: IntExpr,
        loc: Loc | None = None,
    ) -> Einsum:
        """An Einsum over samples and the elements of `like`."""
        of = self.types[like]
        ranks = free_ranks(of.shape)
        index = tuple(var(r.name) for r in ranks)
        step = einsum(out, (Rank(SAMPLE, extent), *ranks), element(index), of.dtype)
        return step if loc is None else einsum(out, step.ranks, step.expr, of.dtype, loc=loc)

    def per_sample(self, out: str, dtype: DType, element: Callable[[IntExpr], Expr], loc: Loc) -> None:
        """A vector with one element for each sample."""
        self.emit(einsum(out, (Rank(SAMPLE, self.level.extent),), element(var(SAMPLE)), dtype, loc=loc))

    def choose(self, out: str, like: str, mask: str, then: Given, orelse: Given, loc: Loc) -> None:
        """`out` has one of two tensors' elements for each sample."""
        n = var(SAMPLE)

        def element(index: tuple[IntExpr, ...]) -> Expr:
            case = (Access(mask, (n,)), self.element(then, n, index))
            return Piecewise((case,), self.element(orelse, n, index))

        self.emit(self.spread(out, like, element, self.level.extent, loc))

    def any_of(self, mask: str, dtype: DType, loc: Loc) -> str:
        """Whether `mask` holds for any sample."""
        out = self.names.fresh(f"any_{mask}")
        reduce = Reduce("or", (Rank(SAMPLE, self.level.extent),))
        self.emit(einsum(out, (), Access(mask, (var(SAMPLE),)), dtype, reduce=reduce, loc=loc))
        return out


def free_ranks(shape: Sequence[IntExpr]) -> tuple[Rank, ...]:
    return tuple(Rank(f"i{n}", e) for n, e in enumerate(shape))


def _held(tensor: str, *index: IntExpr) -> IntExpr:
    """The index that an element of an integer tensor is."""
    return value(Access(tensor, index))
