"""What does not depend on the inputs is computed now: Einsums over constants, literals, branches, run-time extents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dlc.errors import DlcError
from dlc.ir.domain import result_domain
from dlc.ir.dtype import I64, from_numpy
from dlc.ir.einsum import Einsum, Rank, Scan, Step, TensorType, einsum, identity
from dlc.ir.evaluate import Block, Reader, round_to
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, const, index_value, transform, walk
from dlc.ir.extent import IntExpr, Value, Var, has_value, int_expr, maximum, minimum, rebuild, var, variables
from dlc.ir.facts import Facts
from dlc.ir.interpret import eval_einsum
from dlc.ir.program import Bind, For, If, Loop, Param, Program, Region, Stmt, tensor_types, walk_statements
from dlc.passes.inline_pointwise import cost
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import drop_dead
from dlc.passes.specialise import specialise_statement, specialise_type

_POINTS = 1 << 28
_VIEW_BYTES = 1 << 16
_UNIFORM_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluate what is constant.

        B[i, j] = W[j, i] * s[0]          (W, s constants)         ->   const B, its data computed by the interpreter
        y = 2.0 * 3.0 + x[i]                                       ->   y = 6.0 + x[i]
        x[i] * s[0]                       (s a constant)           ->   x[i] * 0.125
        if C { A } else { B }             (C constant)             ->   the statements of one arm
        loop ... while C                  (C constantly false)     ->   the initial states
        bind n = T[0]                     (T = 2*s)                ->   n is 2*s everywhere

    An Einsum is evaluated when its extents are static and its result is at most `max_bytes` or four times its operands;
    views of large constants, and cheap expressions of indices alone, are left to be read through, but for what branches
    and loops pass on. Values are rounded as
    declared, so a literal that was wider than its type inside one expression is rounded there once more. With
    `uniform`, a constant whose elements are all equal bit for bit is read as that literal.
    """

    name: ClassVar[str] = "fold-constants"
    max_bytes: int = 1 << 20
    uniform: bool = False

    def apply(self, program: Program) -> Program:
        return _Folder(program, self).run()


@dataclass(slots=True)
class _Folder:
    program: Program
    options: FoldConstants
    arrays: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, IntExpr] = field(default_factory=dict)
    generated: set[str] = field(default_factory=set)
    symbols: dict[str, IntExpr] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    kept_names: set[str] = field(default_factory=set)
    passed_on: set[str] = field(default_factory=set)
    types: dict[str, TensorType] = field(default_factory=dict)
    literals: dict[str, Const | None] = field(default_factory=dict)

    def run(self) -> Program:
        program = self.program
        self.arrays = {c.name: program.data[c.name] for c in program.consts if c.name in program.data}
        self.kept_names = kept(program)
        self.passed_on = _passed_on(program)
        self.types = tensor_types(program)
        body = self.region(program.body)
        if body == program.body:
            return program
        new = tuple(
            Param(n, TensorType(from_numpy(a.dtype), tuple(map(int_expr, a.shape)))) for n, a in self.made.items()
        )
        data = {**program.data, **self.made}
        folded = drop_dead(replace(program, body=body, consts=program.consts + new, data=data))
        used = {c.name for c in folded.consts}
        return replace(folded, data={n: a for n, a in folded.data.items() if n in used or n not in self.made})

    def region(self, region: Region) -> Region:
        body: list[Stmt] = []
        for stmt in region.body:
            if self.symbols:
                stmt = specialise_statement(stmt, self.symbols)
            body += self.statement(stmt)
        same = len(body) == len(region.body) and all(a is b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)

    def statement(self, stmt: Stmt) -> list[Stmt]:
        match stmt:
            case Einsum():
                stmt = self.literal_operands(stmt)
                return [] if self.evaluated(stmt) else [stmt]
            case Scan():
                return [self.scan(stmt)]
            case If():
                return self.branch(stmt)
            case Loop():
                return self.loop(stmt)
            case For():
                return [_with_body(stmt, self.region(stmt.body))]
            case Bind():
                return [] if self.bound(stmt) else [stmt]
            case _:
                return [stmt]

    # --- Einsums ---

    def scan(self, scan: Scan) -> Scan:
        body: list[Step] = []
        for step in scan.body:
            if isinstance(step, Scan):
                body.append(self.scan(step))
                continue
            step = self.literal_operands(step)
            if not self.evaluated(step):
                body.append(step)
        same = len(body) == len(scan.body) and all(a is b for a, b in zip(body, scan.body, strict=True))
        return scan if same else replace(scan, body=tuple(body))

    def literal_operands(self, step: Einsum) -> Einsum:
        """Operators on literals computed; elements of constants read, where index or constant is uniform."""
        exprs = tuple(transform(e, self.visit) for e in step.exprs)
        where = None if step.where is None else transform(step.where, self.visit)
        write = step.write
        if write is not None and any(map(has_value, write.index)):
            write = replace(write, index=tuple(map(self.index, write.index)))
        same = where is step.where and all(a is b for a, b in zip(exprs, step.exprs, strict=True))
        return step if same and write == step.write else replace(step, exprs=exprs, where=where, write=write)

    def index(self, e: IntExpr) -> IntExpr:
        def leaf(atom: Var | Value) -> IntExpr:
            return var(atom.name) if isinstance(atom, Var) else index_value(transform(atom.expr, self.visit))

        return rebuild(e, leaf) if has_value(e) else e

    def visit(self, e: Expr) -> Expr | None:
        match e:
            case Access(tensor, index, None) if tensor in self.arrays and not any(map(has_value, index)):
                return self.element(tensor, index)
            case Access(tensor, (), None) if tensor in self.scalars:
                return Index(self.scalars[tensor])
            case _:
                return fold_scalar(e)

    def element(self, tensor: str, index: tuple[IntExpr, ...]) -> Const | None:
        if tensor not in self.literals:
            several = np.asarray(self.arrays[tensor]).size > 1
            self.literals[tensor] = None if several and not self.options.uniform else _uniform(self.arrays[tensor])
        found = self.literals[tensor]
        if found is not None:
            return found
        array = np.asarray(self.arrays[tensor])
        at = [i.const for i in index]
        if not all(a is not None and 0 <= a < n for a, n in zip(at, array.shape, strict=True)):
            return None
        return _literal(array[tuple(a for a in at if a is not None)])

    def evaluated(self, step: Einsum) -> bool:
        """Whether the step's results are now constants, so that it can go; notes what is known of them."""
        self.note_integer(step)
        if not all(r in self.arrays for r in step.reads) or result_domain(step, step.where) is not None:
            return False
        if not all(e.variables <= step.extents.keys() for e in step.scalars) or any(not t.native for t in step.dtypes):
            return False
        extents = [r.extent.const for r in step.all_ranks]
        if step.symbols or any(e is None for e in extents):
            return False
        points = np.prod([e or 0 for e in extents], dtype=np.float64)
        elements = float(np.prod([e or 0 for e in extents[: len(step.ranks)]], dtype=np.float64))
        if step.write is not None:
            elements = float(np.asarray(self.arrays[step.write.onto]).size)
        size = elements * sum(t.bytes for t in step.dtypes)
        operands = sum(np.asarray(self.arrays[r]).nbytes for r in step.reads)
        if points > _POINTS or (size > self.options.max_bytes and size > 4 * operands):
            return False
        generator = all(r in self.generated for r in step.reads)
        single = elements == 1
        cheap = generator and step.reduce is None and step.write is None and cost(step.expr) < 10 and not single
        cheap = cheap and not (size <= _VIEW_BYTES and self.passed_on.issuperset(step.outs))
        if size > _VIEW_BYTES and (cheap or _plain_view(step)):
            return False
        try:
            values = eval_einsum(step, self.arrays, {})
        except DlcError:
            return False  # an index out of range is an error of the run, if it gets there
        self.arrays.update(zip(step.outs, values, strict=True))
        if cheap:
            self.generated.update(step.outs)
            return False
        if not self.kept_names.isdisjoint(step.outs):
            return False
        self.made.update(zip(step.outs, values, strict=True))
        return True

    def note_integer(self, step: Einsum) -> None:
        """Remember an integer scalar that is an expression of extents."""
        if step.ranks or step.reduce is not None or step.write is not None or step.where is not None:
            return
        if step.dtypes == (I64,):
            found = self.integer(step.expr)
            if found is not None and not has_value(found) and all(n.startswith("#") for n in variables(found)):
                self.scalars[step.out] = found

    def integer(self, e: Expr) -> IntExpr | None:
        match e:
            case Index(expr):
                return expr
            case Const(number, dtype) if dtype == I64:
                return int_expr(int(number))
            case Access(tensor, ()):
                return self.scalars.get(tensor)
            case Apply(op, args) if op in _INTEGER:
                parts = [self.integer(a) for a in args]
                known = [p for p in parts if p is not None]
                if len(known) < len(parts) or (op in ("div_floor", "rem_floor") and not (known[1].const or 0) > 0):
                    return None
                return _INTEGER[op](*known)
            case _:
                return None

    # --- control ---

    def scalar(self, name: str) -> bool | int | None:
        """The value of a scalar tensor, if it is known."""
        if name in self.arrays:
            array = np.asarray(self.arrays[name])
            return array.reshape(-1)[0].item() if array.size else None
        found = self.scalars.get(name)
        return None if found is None else found.const

    def branch(self, stmt: If) -> list[Stmt]:
        known = self.scalar(stmt.cond)
        if known is None:
            then, orelse = self.region(stmt.then), self.region(stmt.orelse)
            same = then is stmt.then and orelse is stmt.orelse
            return [stmt if same else replace(stmt, then=then, orelse=orelse)]
        arm = self.region(stmt.then if known else stmt.orelse)
        return [*arm.body, *self.copies(stmt.outs, arm.yields)]

    def copies(self, outs: tuple[str, ...], sources: tuple[str, ...]) -> list[Stmt]:
        return [identity(o, s, self.type_of(s)) for o, s in zip(outs, sources, strict=True)]

    def type_of(self, name: str) -> TensorType:
        return specialise_type(self.types[name], self.symbols)

    def loop(self, stmt: Loop) -> list[Stmt]:
        going = None if stmt.cond is None else self.scalar(stmt.cond)
        limit = None if stmt.limit is None else self.scalar(stmt.limit)
        if going is not False and not (limit is not None and limit <= 0):
            return [_with_body(stmt, self.region(stmt.body))]
        if stmt.count is not None:
            self.symbols["#" + stmt.count.name] = int_expr(0)
        empty: list[Stmt] = []
        for name in stmt.collected:
            t = self.type_of(name)
            ranks = tuple(Rank(f"i{n}", e) for n, e in enumerate(t.shape))
            empty.append(einsum(name, ranks, const(0, t.dtype), t.dtype, loc=stmt.loc))
        return [*self.copies(stmt.finals, tuple(init for _, init in stmt.carries)), *empty]

    def bound(self, stmt: Bind) -> bool:
        """Whether the extent is known, and in its range: then it is replaced everywhere after."""
        found = self.scalars.get(stmt.tensor)
        if found is None:
            known = self.scalar(stmt.tensor)
            if known is None:
                return False
            found = int_expr(int(known))
        symbol = stmt.symbol
        facts = Facts({}, self.program.facts)
        if not facts.nonneg(found - symbol.lo) or (symbol.hi is not None and not facts.nonneg(symbol.hi - found)):
            return False
        if symbol.divisor != 1 and (found % symbol.divisor).const != 0:
            return False
        if symbol.below is not None and not facts.less(found, symbol.below):
            return False
        self.symbols["#" + symbol.name] = found
        return True


_INTEGER: dict[str, Callable[..., IntExpr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "min": lambda a, b: minimum(a, b),
    "max": lambda a, b: maximum(a, b),
    "div_floor": lambda a, b: a // b,
    "rem_floor": lambda a, b: a % b,
}


def fold_scalar(e: Expr) -> Expr | None:
    """An operator, cast or bit cast of literals as a literal; None where an operand is not one."""
    match e:
        case Apply(_, args) if args and all(isinstance(a, Const) for a in args):
            pass
        case Cast(_, Const()) | Bitcast(_, Const()):
            pass
        case _:
            return None
    if any(isinstance(c, Const) and not c.dtype.native for c in walk(e)):
        return None
    value, dtype = Reader({}, {}).values(e, Block((), (), (), {}))
    if not dtype.native:
        return None
    stored = round_to(value, dtype)
    if isinstance(e, Apply) and dtype.is_float and dtype.bits < 32 and not _same(stored, value):
        return None  # inside of an expression it is not rounded to so few bits
    result = _literal(stored)
    if isinstance(e, Bitcast) and result is not None and result.value != result.value:
        return None  # the bits of this NaN matter
    return result


def _same(stored: Any, value: Any) -> bool:
    return bool(np.array_equal(np.asarray(stored).astype(np.float64), np.asarray(value), equal_nan=True))


def _literal(stored: Any) -> Const | None:
    """A stored element as a literal."""
    array = np.asarray(stored)
    dtype = from_numpy(array.dtype)
    if not dtype.native:
        return None
    return const(float(array) if dtype.is_float else array.item(), dtype)


def _uniform(stored: Any) -> Const | None:
    """The literal that every element of a (small) constant is, bit for bit."""
    array = np.asarray(stored)
    if not 0 < array.size <= _UNIFORM_ELEMENTS:
        return None
    flat = array.reshape(-1)
    raw = np.ascontiguousarray(flat).view(np.uint8).reshape(flat.size, -1)
    return _literal(flat[0]) if (raw == raw[0]).all() else None


def _plain_view(step: Einsum) -> bool:
    return step.is_view and not any(map(has_value, step.expr.index))  # type: ignore[union-attr]


def _with_body(stmt: Loop | For, body: Region) -> Stmt:
    return stmt if body is stmt.body else replace(stmt, body=body)


def _passed_on(program: Program) -> set[str]:
    """Tensors that control takes as memory: an address of constants is cheaper than a kernel that writes them anew."""
    names: set[str] = set()
    for stmt in walk_statements(program.body):
        match stmt:
            case If():
                names.update(stmt.then.yields + stmt.orelse.yields)
            case Loop():
                names.update(stmt.body.yields)
                names.update(init for _, init in stmt.carries)
            case Scan():
                names.update(c.init for c in stmt.carries)
            case _:
                pass
    return names


def kept(program: Program) -> set[str]:
    """Tensors whose writer must stay: results of the program, and what a scan yields or stacks."""
    names = set(program.body.yields)

    def scan(s: Scan) -> None:
        names.update(s.yields)
        names.update(inner for _, inner in s.stacked)
        for x in s.body:
            if isinstance(x, Scan):
                scan(x)

    for stmt in walk_statements(program.body):
        match stmt:
            case Scan():
                scan(stmt)
            case For():
                names.update(stmt.body.yields)
                names.update(inner for _, inner in stmt.stacked)
            case _:
                pass
    return names
