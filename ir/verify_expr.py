"""The verifier's rules for one step: types, ranks, and that every read is in bounds and inside its tensor's domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from dlc.ir.domain import Domain, conjuncts, effective_where
from dlc.ir.dtype import BOOL, I64, DType
from dlc.ir.einsum import WRITE_OPS, Einsum, TensorType
from dlc.ir.errors import (
    ArgumentMismatch,
    BadLayout,
    BadReduction,
    BadScatter,
    DivisionByZeroExtent,
    DuplicateRank,
    IrError,
    NotBool,
    NotInBounds,
    OutsideDomain,
    ReductionArity,
    ResultType,
    TypeClash,
    Undefined,
    UnknownOperator,
    UnknownRank,
    UnknownReduction,
    WrongArity,
    WrongKind,
    WrongRankCount,
)
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import FloorDiv, IntExpr, Mod, Value, Var, atoms, has_value, int_expr, show
from dlc.ir.facts import FactsPool, SymbolFact
from dlc.ir.loc import Loc
from dlc.ir.monoid import MONOIDS
from dlc.ir.prove import Assumptions
from dlc.ir.read_scalars import suggestion
from dlc.ir.scalar import CAST_MODES, SCALAR_OPS


@dataclass
class Scope:
    """What a step may refer to.

    Attributes:
        types: tensors defined so far.
        symbols: extent symbols bound so far, with facts, by `#` name.
        loops: extents of enclosing scans' ranks.
        domains: domains of partial tensors.
        pool: what is proven about the ranks of its steps.
    """

    types: dict[str, TensorType]
    symbols: dict[str, SymbolFact]
    loops: dict[str, IntExpr] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    pool: FactsPool = field(default_factory=FactsPool)


class StepVerifier:
    """Checks one Einsum within a scope."""

    def __init__(self, step: Einsum, scope: Scope, strict_bounds: bool = True) -> None:
        self.step, self.scope = step, scope
        empty = any(e.const is not None and e.const <= 0 for e in (*step.extents.values(), *scope.loops.values()))
        self.strict = strict_bounds and not empty  # where there are no points nothing is read
        self.names = frozenset(r.name for r in step.all_ranks) | frozenset(scope.loops)
        facts = scope.pool.facts({**scope.loops, **step.extents}, scope.symbols)
        nonempty = tuple(r - 1 for r in facts.ranks.values() if not r.is_var and r.const is None)
        self.base = Assumptions(facts, nonempty)

    def fail(self, error: type[IrError], /, **fields: Any) -> NoReturn:
        raise error(self.step.loc or Loc(f"step '{', '.join(self.step.outs)}'"), **fields)

    def show(self, e: Expr | IntExpr) -> str:
        return show(e, self.names) if isinstance(e, IntExpr) else e.show(self.names)

    def run(self) -> None:
        self._ranks()
        step = self.step
        where = effective_where(step, self.scope.domains)
        types = []
        under = self.base
        for predicate in conjuncts(step.where):
            dtype = self.type(predicate, under)
            if dtype != BOOL:
                self.fail(NotBool, what="a domain", dtype=dtype)
            under = under.given(predicate)
        own = under
        for predicate in conjuncts(where):
            under = under.given(predicate)
        for e in step.exprs:
            types.append(self.type(e, under, unconditional=True))
        if step.reduce is None:
            self._plain_result(types)
        else:
            self._reduction(types)
        if step.write is not None:
            self._write(own)
        if step.order is not None:
            rank = len(step.ranks) if step.write is None else self.scope.types[step.write.onto].rank
            if sorted(step.order) != list(range(rank)):
                self.fail(BadLayout, order=step.order, tensor=step.out, rank=rank)

    # --- ranks, results ---

    def _ranks(self) -> None:
        seen = set(self.scope.loops)
        for r in self.step.all_ranks:
            if r.name in seen:
                self.fail(DuplicateRank, name=r.name, tensor=self.step.out)
            seen.add(r.name)
            self.index(r.extent, self.base, extent=True)

    def _plain_result(self, types: list[DType]) -> None:
        step = self.step
        if len(step.outs) != 1 or len(step.exprs) != 1:
            self.fail(ReductionArity, op="an Einsum without a reduction", expected=1, given=len(step.exprs))
        if types[0] != step.dtype:
            self.fail(ResultType, name=step.out, declared=step.dtype, actual=types[0])

    def _reduction(self, types: list[DType]) -> None:
        step, reduce = self.step, self.step.reduce
        assert reduce is not None
        if reduce.op not in MONOIDS:
            self.fail(UnknownReduction, op=reduce.op, known=", ".join(MONOIDS))
        monoid = MONOIDS[reduce.op]
        for given in (len(step.outs), len(step.exprs), len(step.dtypes)):
            if given != monoid.arity:
                self.fail(ReductionArity, op=reduce.op, expected=monoid.arity, given=given)
        if monoid.arity > 1:
            if reduce.accumulator is not None:
                self.fail(BadReduction, op=reduce.op, dtype=reduce.accumulator, reason="a tuple has no single accumulator")
            for name, declared, actual in zip(step.outs, step.dtypes, types, strict=True):
                if declared != actual:
                    self.fail(ResultType, name=name, declared=declared, actual=actual)
            self._tuple_types(reduce.op, types)
            return
        accumulator, declared, actual = reduce.accumulator or step.dtype, step.dtype, types[0]
        if actual != accumulator and not _widens(actual, accumulator):
            self.fail(ResultType, name=step.out, declared=accumulator, actual=actual)
        if accumulator.is_float != declared.is_float:
            reason = f"the accumulator is {accumulator}, the result {declared}"
            self.fail(BadReduction, op=reduce.op, dtype=declared, reason=reason)
        if monoid.op is not None and accumulator.kind not in SCALAR_OPS[monoid.op].kinds:
            self.fail(BadReduction, op=reduce.op, dtype=accumulator, reason=f"'{monoid.op}' does not take it")

    def _tuple_types(self, op: str, types: list[DType]) -> None:
        if op == "welford":
            if any(not t.is_float or t != types[0] for t in types):
                self.fail(BadReduction, op=op, dtype=types[0], reason="its three values are floats of one type")
        elif not types[1].is_int:
            self.fail(BadReduction, op=op, dtype=types[1], reason="the second value is an integer, the index")

    def _write(self, under: Assumptions) -> None:
        step, write = self.step, self.step.write
        assert write is not None
        if write.onto not in self.scope.types:
            self._undefined(write.onto)
        target = self.scope.types[write.onto]
        if len(step.outs) != 1:
            self.fail(BadScatter, tensor=step.out, reason="it writes one tensor")
        if write.op not in WRITE_OPS:
            self.fail(BadScatter, tensor=step.out, reason=f"'{write.op}' is none of {', '.join(WRITE_OPS)}")
        if len(write.index) != target.rank:
            self.fail(BadScatter, tensor=step.out, reason=f"{len(write.index)} indices for {target}")
        if target.dtype != step.dtype:
            self.fail(ResultType, name=step.out, declared=step.dtype, actual=target.dtype)
        if write.op in ("sum", "prod") and step.dtype == BOOL:
            self.fail(BadScatter, tensor=step.out, reason=f"'{write.op}' of booleans")
        if write.onto in self.scope.domains:
            self.fail(BadScatter, tensor=step.out, reason=f"'{write.onto}' is partial")
        reduced = {r.name for r in step.reduced}
        for i, extent in zip(write.index, target.shape, strict=True):
            self.index(i, under)
            if not reduced.isdisjoint(int_variables(i)):
                self.fail(BadScatter, tensor=step.out, reason=f"the index {self.show(i)} mentions a reduced rank")
            if not write.drop and not has_value(i) and self.strict and not under.within(i, extent):
                reason = f"the index {self.show(i)} is not proven to be in 0..{extent} (`drop` leaves such writes out)"
                self.fail(BadScatter, tensor=step.out, reason=reason.replace("#", ""))

    # --- expressions ---

    def type(self, e: Expr, under: Assumptions, unconditional: bool = False) -> DType:
        """The type of `e`, all rules checked; `under` holds wherever it is evaluated."""
        match e:
            case Const(_, dtype):
                return dtype
            case Index(expr):
                self.index(expr, under)
                return I64
            case Access():
                return self._access(e, under, unconditional)
            case Apply(op, args):
                return self._apply(op, args, under, unconditional)
            case Cast(dtype, arg, mode):
                self.type(arg, under, unconditional)
                if mode not in CAST_MODES:
                    hint = suggestion(mode, CAST_MODES, f"known: {', '.join(CAST_MODES)}")
                    self.fail(UnknownOperator, op=f"cast mode {mode}", suggestion=hint)
                return dtype
            case Bitcast(dtype, arg):
                source = self.type(arg, under, unconditional)
                if source.bits != dtype.bits:
                    self.fail(WrongKind, op=f"bitcast<{dtype}>", dtype=source)
                return dtype
            case Piecewise(cases, otherwise):
                return self._piecewise(cases, otherwise, under)

    def _piecewise(self, cases: tuple[tuple[Expr, Expr], ...], otherwise: Expr, under: Assumptions) -> DType:
        types = []
        for guard, value in cases:
            dtype = self.type(guard, under)
            if dtype != BOOL:
                self.fail(NotBool, what="the guard of a piece", dtype=dtype)
            types.append(self.type(value, under.given(guard)))
            under = under.given_not(guard)
        types.append(self.type(otherwise, under))
        if any(t != types[0] for t in types):
            self.fail(TypeClash, op="pieces", types=", ".join(map(str, types)), first=types[0])
        return types[0]

    def _apply(self, op: str, args: tuple[Expr, ...], under: Assumptions, unconditional: bool) -> DType:
        if op not in SCALAR_OPS:
            self.fail(UnknownOperator, op=op, suggestion=suggestion(op, SCALAR_OPS))
        entry = SCALAR_OPS[op]
        if len(args) != entry.arity:
            self.fail(WrongArity, op=op, expected=entry.arity, given=len(args))
        types = [self.type(a, under, unconditional) for a in args]
        operands = types
        if entry.typing == "select":
            if types[0] != BOOL:
                self.fail(NotBool, what="the condition of a select", dtype=types[0])
            operands = types[1:]
        if any(t != operands[0] for t in operands):
            self.fail(TypeClash, op=op, types=", ".join(map(str, operands)), first=operands[0])
        if operands[0].kind not in entry.kinds:
            self.fail(WrongKind, op=op, dtype=operands[0])
        return BOOL if entry.typing in ("compare", "test") else operands[0]

    def _undefined(self, name: str) -> NoReturn:
        hint = suggestion(name, self.scope.types, "define it before it is read")
        self.fail(Undefined, name=name, where=", ".join(self.step.outs), suggestion=hint)

    def _access(self, e: Access, under: Assumptions, unconditional: bool) -> DType:
        if e.tensor not in self.scope.types:
            self._undefined(e.tensor)
        kind = self.scope.types[e.tensor]
        if len(e.index) != kind.rank:
            self.fail(WrongRankCount, access=self.show(e), given=len(e.index), tensor=e.tensor, type=kind)
        for i, extent in zip(e.index, kind.shape, strict=True):
            self.index(i, under)
            if e.default is None and not has_value(i) and self.strict and not under.within(i, extent):
                try:
                    self.fail(
                        NotInBounds,
                        access=self.show(e),
                        tensor=e.tensor,
                        index=self.show(i),
                        extent=show(extent, self.names),
                    )
                except NotInBounds as error:
                    error.unproven = (i, extent, dict(under.facts.ranks))
                    raise
        if e.default is not None:
            dtype = self.type(e.default, under)
            if dtype != kind.dtype:
                self.fail(TypeClash, op="else", types=f"{kind.dtype}, {dtype}", first=kind.dtype)
        elif e.tensor in self.scope.domains and self.strict:
            self._inside_domain(e, under, unconditional)
        return kind.dtype

    def _inside_domain(self, e: Access, under: Assumptions, unconditional: bool) -> None:
        domain = self.scope.domains[e.tensor]
        place = dict(zip(domain.ranks, e.index, strict=True))
        for original, here in zip(domain.conjuncts, domain.at(e), strict=True):
            mentioned = [place[n] for n in domain.ranks if n in original.variables]
            plain = all(i.is_var for i in mentioned) and len(set(mentioned)) == len(mentioned)
            if unconditional and plain or (not unconditional and under.holds(here)):
                continue
            # an unconditional read joins its own predicate to the domain: it must be proven from the step's own where
            if unconditional and self._own_assumptions().holds(here):
                continue
            self.fail(OutsideDomain, access=self.show(e), tensor=e.tensor, predicate=self.show(here))

    def _own_assumptions(self) -> Assumptions:
        under = self.base
        for predicate in conjuncts(self.step.where):
            under = under.given(predicate)
        return under

    # --- indices ---

    def index(self, e: IntExpr, under: Assumptions, extent: bool = False) -> None:
        """Every name in `e` is known, every divisor positive, every gather an integer."""
        for atom in atoms(e):
            match atom:
                case Var(name):
                    self._variable(name, e, extent)
                case Value(inner):
                    if extent:
                        self.fail(ArgumentMismatch, what=f"an extent of '{self.step.out}'", reason="it depends on data")
                    dtype = self.type(inner, under)
                    if not dtype.is_int:
                        self.fail(WrongKind, op="an index", dtype=dtype)
                case FloorDiv(_, den) | Mod(_, den):
                    if self.strict and not under.nonneg(den - int_expr(1)):
                        self.fail(DivisionByZeroExtent, expr=self.show(e), den=self.show(den))

    def _variable(self, name: str, e: IntExpr, extent: bool) -> None:
        if name.startswith("#"):
            if name not in self.scope.symbols:
                from dlc.ir.errors import UnboundSymbol

                self.fail(UnboundSymbol, name=name[1:])
        elif extent or name not in self.names:
            known = [n[1:] for n in self.scope.symbols] if extent else self.names
            hint = suggestion(name, known, "free ranks stand on the left side, reduced ranks in the reduction")
            self.fail(UnknownRank, name=name, expr=show(e), suggestion=hint)


def int_variables(e: IntExpr) -> frozenset[str]:
    from dlc.ir.extent import variables

    return variables(e)


def _widens(source: DType, target: DType) -> bool:
    """Whether every value of `source` is one of `target`."""
    if source.is_float and target.is_float:
        return source.bits < target.bits
    if source.is_int and target.is_int:
        return target.lowest <= source.lowest and source.highest <= target.highest
    return False


