"""The verifier: what every program, cascade and kernel must satisfy before anything else may rely on it.

Single assignment and definition before use; types without implicit promotion; ranks and symbols in scope; every read proven in
bounds, or guarded, or with an `else`, or a gather (whose index is checked when it runs); partial tensors read only where they
exist; scatters, scans, regions and launches of agreeing types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dlc.ir.blocked import unrolls
from dlc.ir.domain import add_domains
from dlc.ir.dtype import BOOL, I64
from dlc.ir.einsum import Einsum, Scan, Step, TensorType, flat, result_types
from dlc.ir.errors import (
    ArgumentMismatch,
    BadLayout,
    BadPitch,
    BadSymbolFact,
    BadTransfer,
    DuplicateRank,
    IrError,
    MissingConstant,
    NotResident,
    OuterRank,
    PartialEscapes,
    Redefined,
    UnboundSymbol,
    Undefined,
    UnknownKernel,
    UnknownLibraryOp,
    YieldMismatch,
)
from dlc.ir.extent import IntExpr, sym, variables
from dlc.ir.facts import Facts
from dlc.ir.library import LIBRARY
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
    cascade_types,
)
from dlc.ir.read_scalars import suggestion
from dlc.ir.streamed import dimensions
from dlc.ir.verify_expr import Scope, StepVerifier


def verify(what: Program | Cascade | Kernel, *, bounds: bool = True) -> None:
    """Return when `what` is valid, else raise.

    Args:
        bounds: also prove reads in bounds and inside domains; without it those are taken on trust.

    Raises:
        IrError: the first fault, with the place of the statement that has it.
    """
    match what:
        case Program():
            _ProgramVerifier(what, bounds).run()
        case Cascade():
            verify_cascade(what, bounds=bounds)
        case Kernel():
            verify_kernel(what, bounds=bounds)


def verify_cascade(cascade: Cascade, *, bounds: bool = True, kernel: bool = False) -> None:
    """Check a cascade; a kernel's may use symbols that the program binds, and give partial results."""
    verifier = _Verifier(bounds)
    verifier.symbols(cascade.symbols, cascade.loc)
    if kernel:
        for step in cascade.steps:
            verifier.assume(n[1:] for n in step.symbols)
    verifier.params(cascade.params, cascade.loc, kernel=kernel)
    for step in cascade.steps:
        verifier.step(step)
    for name in cascade.results:
        verifier.need(name, cascade.loc, "the results")
        if not kernel:
            verifier.whole(name, cascade.loc, "a result")


def verify_kernel(kernel: Kernel, *, bounds: bool = True) -> None:
    """Check a kernel: its cascade, and that tasks along its outer ranks are independent."""
    verify_cascade(kernel.cascade, bounds=bounds, kernel=True)
    if not kernel.outer or unrolls(list(flat(kernel.cascade.steps)), kernel.outer):
        return  # a kernel that works block by block keeps to its own block
    made = dimensions(kernel.cascade.steps)
    for step in flat(kernel.cascade.steps):
        free = [r.name for r in step.ranks]
        for name in kernel.outer:
            if name not in free:
                reason = f"'{step.out}' has no free rank '{name}', along which tasks are split"
                raise OuterRank(step.loc, kernel=kernel.name, reason=reason)
        for access in step.accesses():
            for position, rank in enumerate(made.get(access.tensor, ())):
                if rank in kernel.outer and str(access.index[position]) != rank:
                    reason = f"'{step.out}' reads '{access}' of another task along '{rank}'"
                    raise OuterRank(step.loc, kernel=kernel.name, reason=reason)
    for scan in kernel.cascade.steps:
        for carry in scan.carries if isinstance(scan, Scan) else ():
            pairs = zip(made.get(carry.init, made[carry.name]), made[carry.name], strict=True)
            if any(a != b and {a, b} & set(kernel.outer) for a, b in pairs):
                reason = f"'{carry.name}' starts from another task's '{carry.init}'"
                raise OuterRank(scan.loc, kernel=kernel.name, reason=reason)


def _check_pitch(kind: TensorType, tensor: str, loc: Loc | None) -> None:
    if kind.pitch < 0:
        raise BadPitch(loc, tensor=tensor, pitch=kind.pitch, reason="rows would overlap")
    if kind.pitch and not kind.shape:
        raise BadPitch(loc, tensor=tensor, pitch=kind.pitch, reason="it has no rows")


class _Verifier:
    """Checks statements in order, with what is known so far."""

    def __init__(self, bounds: bool) -> None:
        self.scope = Scope({}, {})
        self.bounds = bounds
        self.defined: set[str] = set()
        self.spilled: set[str] = set()

    # --- names ---

    def define(self, name: str, kind: TensorType, loc: Loc | None) -> None:
        if name in self.defined:
            raise Redefined(loc, name=name)
        self.defined.add(name)
        self.scope.types[name] = kind

    def need(self, name: str, loc: Loc | None, where: str) -> TensorType:
        if name not in self.scope.types:
            hint = suggestion(name, self.scope.types, "define it before it is read")
            raise Undefined(loc, name=name, where=where, suggestion=hint)
        if name in self.spilled:
            raise NotResident(loc, tensor=name, where=where)
        return self.scope.types[name]

    def whole(self, name: str, loc: Loc | None, use: str) -> None:
        """Check that the tensor can be taken as memory: every element is there, and nothing between them."""
        if name in self.scope.domains:
            predicate = " & ".join(map(str, self.scope.domains[name].conjuncts)).replace("#", "")
            raise PartialEscapes(loc, tensor=name, predicate=predicate, use=use)
        self.dense(name, loc, use)

    def dense(self, name: str, loc: Loc | None, use: str) -> None:
        pitch = self.scope.types[name].pitch
        if pitch:
            raise BadPitch(loc, tensor=name, pitch=pitch, reason=f"it is {use}")

    def symbols(self, symbols: Iterable[Symbol], loc: Loc | None) -> None:
        for s in symbols:
            if "#" + s.name in self.scope.symbols:
                raise BadSymbolFact(loc, name=s.name, reason="it is bound a second time")
            if s.lo < 0:
                raise BadSymbolFact(loc, name=s.name, reason=f"its least value {s.lo} is negative")
            if s.hi is not None and s.hi < s.lo:
                raise BadSymbolFact(loc, name=s.name, reason=f"its range {s.lo}..{s.hi} is empty")
            if s.divisor < 1:
                raise BadSymbolFact(loc, name=s.name, reason=f"it cannot be divided by {s.divisor}")
            self.scope.symbols["#" + s.name] = s.fact

    def assume(self, names: Iterable[str]) -> None:
        for name in names:
            self.scope.symbols.setdefault("#" + name, Symbol(name).fact)

    def params(self, params: Iterable[Param], loc: Loc | None, *, kernel: bool = False) -> None:
        for p in params:
            for e in p.type.shape:
                self.assume(n[1:] for n in variables(e))
            self.type(p.type, loc)
            self.define(p.name, p.type, loc)
            if not kernel:
                self.whole(p.name, loc, "an input")

    def type(self, kind: TensorType, loc: Loc | None) -> None:
        for e in kind.shape:
            self.extent(e, loc)
        if kind.order is not None and sorted(kind.order) != list(range(kind.rank)):
            raise BadLayout(loc, order=kind.order, tensor=str(kind), rank=kind.rank)
        _check_pitch(kind, str(kind), loc)

    def extent(self, e: IntExpr, loc: Loc | None) -> None:
        for name in sorted(variables(e)):
            if name not in self.scope.symbols:
                raise UnboundSymbol(loc, name=name.lstrip("#"))

    # --- steps ---

    def step(self, step: Step) -> None:
        if isinstance(step, Scan):
            self.scan(step)
            return
        StepVerifier(step, self.scope, self.bounds).run()
        onto = self.scope.types[step.write.onto] if step.write is not None else None
        for name, kind in zip(step.outs, result_types(step, onto), strict=True):
            _check_pitch(kind, name, step.loc)
            self.define(name, kind, step.loc)
        if step.write is not None:
            for name in (step.write.onto, step.out):
                self.dense(name, step.loc, "written element by element")
        add_domains(step, self.scope.domains)

    def scan(self, scan: Scan) -> None:
        self.extent(scan.rank.extent, scan.loc)
        if scan.rank.name in self.scope.loops:
            raise DuplicateRank(scan.loc, name=scan.rank.name, tensor=", ".join(scan.outs))
        kinds = []
        for carry in scan.carries:
            kinds.append(self.need(carry.init, scan.loc, "a scan's first values"))
            self.whole(carry.init, scan.loc, "carried by a scan")
            self.define(carry.name, kinds[-1], scan.loc)
        self.scope.loops[scan.rank.name] = scan.rank.extent
        for step in scan.body:
            self.step(step)
        del self.scope.loops[scan.rank.name]
        what = "a scan"
        self.count(what, "next values", scan.yields, scan.carries, scan.loc)
        self.count(what, "final values", scan.finals, scan.carries, scan.loc)
        for name, carry, kind in zip(scan.yields, scan.carries, kinds, strict=True):
            self.same(
                self.need(name, scan.loc, "a scan's yield"), kind, f"'{name}', carried as '{carry.name}'", scan.loc
            )
            self.whole(name, scan.loc, "carried by a scan")
        for final, kind in zip(scan.finals, kinds, strict=True):
            self.define(final, kind, scan.loc)
        for outer, inner in scan.stacked:
            kind = self.need(inner, scan.loc, "a scan's stack")
            self.dense(inner, scan.loc, "stacked")
            self.define(outer, TensorType(kind.dtype, (scan.rank.extent, *kind.shape)), scan.loc)
        inside = {o for s in scan.body for o in s.outs} | {c.name for c in scan.carries}
        add_domains(scan, self.scope.domains)
        for name in inside:  # what is inside cannot be read outside
            self.scope.types.pop(name, None)

    def count(self, what: str, kind: str, given: Sequence[object], expected: Sequence[object], loc: Loc | None) -> None:
        if len(given) != len(expected):
            raise YieldMismatch(loc, what=what, reason=f"{len(given)} {kind} for {len(expected)} expected")

    def same(
        self,
        actual: TensorType,
        expected: TensorType,
        what: str,
        loc: Loc | None,
        error: Callable[..., IrError] = YieldMismatch,
    ) -> None:
        facts = Facts({}, self.scope.symbols)
        shapes = [tuple(facts.simplify(e) for e in t.shape) for t in (actual, expected)]
        if actual.dtype != expected.dtype or shapes[0] != shapes[1] or actual.pitch != expected.pitch:
            raise error(loc, what=what, reason=f"it is {actual}, where {expected} is expected")


class _ProgramVerifier(_Verifier):
    """Adds control, constants and kernels."""

    def __init__(self, program: Program, bounds: bool) -> None:
        super().__init__(bounds)
        self.program = program
        self.kernels = program.kernel_table
        self.depth = 0  # regions around the statement

    def run(self) -> None:
        program = self.program
        if len(self.kernels) != len(program.kernels):
            names = [k.name for k in program.kernels]
            raise Redefined(program.loc, name=next(n for n in names if names.count(n) > 1))
        for kernel in program.kernels:
            verify_kernel(kernel, bounds=self.bounds)
        self.symbols(program.symbols, program.loc)
        self.params(program.params, program.loc)
        for c in program.consts:
            self.constant(c)
        self.region(program.body, "the results")
        for name in program.results:
            self.whole(name, program.loc, "a result")

    def constant(self, c: Param) -> None:
        loc = self.program.loc
        self.type(c.type, loc)
        self.define(c.name, c.type, loc)
        self.whole(c.name, loc, "a constant")
        array = self.program.data.get(c.name)
        if array is None:
            return
        shape = tuple(e.const for e in c.type.shape)
        if None in shape:
            raise MissingConstant(loc, name=c.name, reason=f"its type {c.type} has a symbolic extent")
        if tuple(array.shape) != shape or array.dtype != c.type.dtype.numpy:
            raise MissingConstant(
                loc, name=c.name, reason=f"it is {c.type}, but holds {array.dtype}{list(array.shape)}"
            )

    def region(self, region: Region, what: str) -> list[TensorType]:
        for stmt in region.body:
            self.statement(stmt)
        return [self.need(y, self.program.loc, what) for y in region.yields]

    def nested(self, region: Region, what: str) -> list[TensorType]:
        """Check a region whose tensors and symbols are not visible outside."""
        types, symbols = dict(self.scope.types), dict(self.scope.symbols)
        self.depth += 1
        kinds = self.region(region, what)
        self.depth -= 1
        for y in region.yields:
            self.whole(y, self.program.loc, "yielded")
        self.scope.types, self.scope.symbols = types, symbols
        return kinds

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Einsum() | Scan():
                self.step(stmt)
            case Launch():
                self.launch(stmt)
            case Bind(symbol, tensor):
                self.one_element(tensor, stmt.loc, "bind", integer=True)
                self.symbols((symbol,), stmt.loc)
            case Transfer():
                self.transfer(stmt)
            case Library():
                self.library(stmt)
            case If():
                self.if_(stmt)
            case Loop():
                self.loop(stmt)
            case For():
                self.for_(stmt)

    def transfer(self, stmt: Transfer) -> None:
        """A spilled tensor comes back before anything reads it; what comes back was spilled."""
        name = stmt.tensor
        if self.depth:
            raise BadTransfer(stmt.loc, tensor=name, reason="transfers stand in a program's own body, not in a region")
        if stmt.fills and name not in self.spilled:
            raise BadTransfer(stmt.loc, tensor=name, reason="it comes back without having left")
        if stmt.fills:
            self.spilled.remove(name)
        else:
            self.need(name, stmt.loc, "spill")
            self.spilled.add(name)

    def one_element(self, name: str, loc: Loc | None, what: str, *, integer: bool) -> None:
        kind = self.need(name, loc, what)
        ok = kind.dtype.is_int if integer else kind.dtype == BOOL
        if not ok or kind.elements.const != 1:
            wanted = "an integer of one element" if integer else "a bool of one element"
            raise ArgumentMismatch(
                loc, what=f"'{name}' in '{what}'", reason=f"it is {kind}, where {wanted} is expected"
            )

    def launch(self, stmt: Launch) -> None:
        if stmt.kernel not in self.kernels:
            raise UnknownKernel(stmt.loc, name=stmt.kernel, suggestion=suggestion(stmt.kernel, self.kernels))
        cascade = self.kernels[stmt.kernel].cascade
        what = f"launch of '{stmt.kernel}'"
        if len(stmt.args) != len(cascade.params) or len(stmt.outs) != len(cascade.results):
            reason = f"{len(stmt.args)} -> {len(stmt.outs)} tensors, where "
            reason += f"{len(cascade.params)} -> {len(cascade.results)} are expected"
            raise ArgumentMismatch(stmt.loc, what=what, reason=reason)
        for arg, param in zip(stmt.args, cascade.params, strict=True):
            kind = self.need(arg, stmt.loc, what)
            given = f"{what}, argument '{arg}'"
            self.same(kind, param.type, given, stmt.loc, ArgumentMismatch)
            orders = [t.order or tuple(range(t.rank)) for t in (kind, param.type)]
            if orders[0] != orders[1]:
                raise ArgumentMismatch(stmt.loc, what=given, reason=f"it is {kind}, where {param.type} is expected")
        for step in cascade.steps:
            for name in sorted(step.symbols):
                if name not in self.scope.symbols:
                    raise UnboundSymbol(stmt.loc, name=name[1:])
        made = cascade_types(cascade)
        for out, result in zip(stmt.outs, cascade.results, strict=True):
            self.define(out, made[result], stmt.loc)

    def library(self, stmt: Library) -> None:
        if stmt.op not in LIBRARY:
            raise UnknownLibraryOp(stmt.loc, op=stmt.op, known=", ".join(sorted(LIBRARY)))
        entry = LIBRARY[stmt.op]
        shape = (len(stmt.args), len(stmt.outs), len(stmt.binds))
        if shape != (entry.inputs, entry.outputs, entry.binds):
            reason = f"(inputs, results, extents bound) are {shape}, where "
            reason += f"{(entry.inputs, entry.outputs, entry.binds)} are expected"
            raise ArgumentMismatch(stmt.loc, what=stmt.op, reason=reason)
        unknown = [k for k, _ in stmt.attrs if k not in entry.attrs]
        if unknown:
            reason = f"it has no attribute '{unknown[0]}' (known: {', '.join(entry.attrs) or 'none'})"
            raise ArgumentMismatch(stmt.loc, what=stmt.op, reason=reason)
        for arg in stmt.args:
            self.need(arg, stmt.loc, stmt.op)
            self.whole(arg, stmt.loc, f"given to '{stmt.op}'")
        self.symbols(stmt.binds, stmt.loc)
        if len(stmt.outs) != len(stmt.types):
            reason = f"{len(stmt.outs)} results with {len(stmt.types)} types"
            raise ArgumentMismatch(stmt.loc, what=stmt.op, reason=reason)
        for name, kind in zip(stmt.outs, stmt.types, strict=True):
            self.type(kind, stmt.loc)
            self.define(name, kind, stmt.loc)
            self.whole(name, stmt.loc, f"given by '{stmt.op}'")

    def if_(self, stmt: If) -> None:
        self.one_element(stmt.cond, stmt.loc, "if", integer=False)
        kinds = [self.nested(region, "a branch's yield") for region in (stmt.then, stmt.orelse)]
        self.count("if", "values of the first branch", stmt.then.yields, stmt.outs, stmt.loc)
        self.count("if", "values of the second branch", stmt.orelse.yields, stmt.outs, stmt.loc)
        for name, first, second in zip(stmt.outs, *kinds, strict=True):
            self.same(second, first, f"'{name}' in the second branch", stmt.loc)
            self.type(first, stmt.loc)
            self.define(name, first, stmt.loc)

    def carried(self, carries: Sequence[tuple[str, str]], loc: Loc) -> list[TensorType]:
        kinds = []
        for name, init in carries:
            kinds.append(self.need(init, loc, "a loop's first values"))
            self.whole(init, loc, "carried by a loop")
            self.define(name, kinds[-1], loc)
        return kinds

    def loop(self, loop: Loop) -> None:
        loc = loop.loc
        if loop.limit is not None:
            self.one_element(loop.limit, loc, "loop", integer=True)
        if loop.cond is not None:
            self.one_element(loop.cond, loc, "while", integer=False)
        kinds = self.carried(loop.carries, loc)
        self.define(loop.index, TensorType(I64, ()), loc)
        yields = self.nested(loop.body, "a loop's yield")
        names = list(loop.body.yields)
        if loop.cond is not None:
            if not yields or yields[0].dtype != BOOL or yields[0].elements.const != 1:
                raise YieldMismatch(loc, what="loop", reason="with `while`, the first yield is the condition, one bool")
            yields, names = yields[1:], names[1:]
        self.count("loop", "values", names, [*loop.carries, *loop.collected], loc)
        self.count("loop", "final values", loop.finals, loop.carries, loc)
        for name, kind, expected in zip(names, yields, kinds, strict=False):
            self.same(kind, expected, f"'{name}', carried", loc)
        if loop.count is not None:
            self.symbols((loop.count,), loc)
        elif loop.collected:
            raise YieldMismatch(
                loc, what="loop", reason="collected tensors need `upto n in 0..`, which names their count"
            )
        for final, kind in zip(loop.finals, kinds, strict=True):
            self.define(final, kind, loc)
        for name, kind in zip(loop.collected, yields[len(kinds) :], strict=True):
            assert loop.count is not None
            made = TensorType(kind.dtype, (sym(loop.count.name), *kind.shape))
            self.type(made, loc)
            self.define(name, made, loc)
        for name in (loop.index, *(n for n, _ in loop.carries)):
            self.scope.types.pop(name, None)

    def for_(self, loop: For) -> None:
        loc = loop.loc
        self.extent(loop.extent, loc)
        kinds = self.carried(loop.carries, loc)
        types, known = dict(self.scope.types), dict(self.scope.symbols)
        self.symbols((loop.symbol,), loc)
        yields = self.region(loop.body, "a loop's yield")
        self.count("for", "values", loop.body.yields, loop.carries, loc)
        self.count("for", "final values", loop.finals, loop.carries, loc)
        for name, kind, expected in zip(loop.body.yields, yields, kinds, strict=True):
            self.same(kind, expected, f"'{name}', carried", loc)
        rows = [(outer, self.need(inner, loc, "a stack")) for outer, inner in loop.stacked]
        for _, inner in loop.stacked:
            self.dense(inner, loc, "stacked")
        self.scope.types, self.scope.symbols = types, known
        for final, kind in zip(loop.finals, kinds, strict=True):
            self.define(final, kind, loc)
        for outer, kind in rows:
            made = TensorType(kind.dtype, (loop.extent, *kind.shape))
            self.type(made, loc)
            self.define(outer, made, loc)
        for name, _ in loop.carries:
            self.scope.types.pop(name, None)
