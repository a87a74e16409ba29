"""The memory plan of a program: who writes where, and from which statement to which a buffer is needed.

Statements are numbered in the order they run, nested ones included; a loop's number is below those of its body, and
one number after them is its end. What lives across a loop's back edge lives for the whole loop. A kernel that may write in place
does so when its operand is not needed any more, and two tensors are one buffer then. The offsets are not
chosen here: `dlc.arena_plan` packs the buffers for the extents that are known, and the runtime, guided by what it
found, for those of a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from dlc.errors import Internal
from dlc.ir.einsum import TensorType
from dlc.ir.extent import IntExpr, variables
from dlc.ir.limits import at_most, symbol_limits
from dlc.ir.memory import (
    ArenaBuffer,
    AtBuffer,
    AtConstant,
    AtEither,
    AtHeap,
    AtInput,
    AtOutput,
    AtPointer,
    AtSlice,
    AtSpilled,
    MemoryPlan,
    OutputPlan,
    Place,
    library_temporaries,
)
from dlc.ir.program import (
    Bind,
    For,
    If,
    Launch,
    Library,
    Loop,
    Program,
    Region,
    Stmt,
    Transfer,
    regions,
    tensor_types,
)

NEVER = 1 << 60
"""Later than every statement."""

SMALL_BYTES = 1 << 20
"""A tensor of run-time size stays in the arena when its bound is below this; larger ones are allocated to measure."""


Heirs: TypeAlias = Mapping[str, tuple[str, ...]]
"""By result of a launch, the operands whose storage it may take over, the preferred one first."""


def plan_memory(program: Program, outside: frozenset[str] = frozenset(), heirs: Heirs | None = None) -> MemoryPlan:
    """Places and lifetimes of all tensors of a program of launches, library operations and control.

    Args:
        outside: tensors that lie outside the arena for all their lives; each would have a buffer of its own.
        heirs: what a kernel may write in place. It does so where nothing else leads to the operand's buffer any more, in
            statements of the program's own body.
    """
    return _Planner(program, outside, heirs or {}).plan()


@dataclass(slots=True)
class _Buffer:
    name: str
    bytes: IntExpr
    first: int
    last: int


@dataclass(slots=True)
class _LoopScope:
    """A loop that is being walked: where it began, and the last numbers to move to its end when that is known."""

    begin: int
    extended: set[int] = field(default_factory=set)


class _Planner:
    def __init__(self, program: Program, outside: frozenset[str], heirs: Heirs) -> None:
        self.program = program
        self.outside = outside
        self.heirs = heirs
        self.last_read = _last_reads(program)
        self.position = 0  # in the program's body
        self.depth = 0  # regions around the statement
        self.types = tensor_types(program)
        self.places: dict[str, Place] = {}
        self.buffers: list[_Buffer] = []
        self.heap: list[str] = []
        self.copied: dict[str, AtEither] = {}
        self.roots: dict[str, frozenset[int]] = {}
        self.leading: dict[int, list[str]] = {}  # buffer -> names that led to it at some time
        self.wanted: dict[str, Place] = {}
        self.loops: list[_LoopScope] = []
        self.stays: dict[str, list[int]] = {}
        self.spilled: dict[str, _Buffer] = {}
        self.depth_of: dict[int, int] = {}  # buffer -> how many loops are around its definition
        self.clock = 0
        self.inputs = {p.name: i for i, p in enumerate(program.params)}
        self.values = _value_symbols(program, self.inputs)
        self.static = {"#" + s.name for s in program.symbols} | set(self.values)
        self.limits, self.loose = symbol_limits(program)

    def plan(self) -> MemoryPlan:
        program = self.program
        for index, param in enumerate(program.params):
            self.place(param.name, AtInput(index))
        for const in program.consts:
            self.place(const.name, AtConstant(const.name))
        outputs = self.outputs()
        starts = []
        for self.position, stmt in enumerate(program.body.body):
            starts.append(self.clock + 1)
            self.statement(stmt)
        self.clock += 1
        starts.append(self.clock)
        for name in program.results:
            self.use(name)
        buffers = tuple(ArenaBuffer(b.name, b.bytes, b.first, b.last) for b in self.buffers)
        self.check_hand_over(outputs)
        stays = {name: tuple(of) for name, of in self.stays.items()}
        spilled = {name: ArenaBuffer(b.name, b.bytes, b.first, b.last) for name, b in self.spilled.items()}
        heap, copied = tuple(self.heap), self.copied
        return MemoryPlan(
            self.places,
            buffers,
            heap,
            copied,
            tuple(outputs),
            self.values,
            stays,
            spilled,
            tuple(starts),
            self.pinned(),
        )

    def pinned(self) -> frozenset[int]:
        """Buffers that are not one tensor's own."""
        own = {i for stays in self.stays.values() for i in stays}
        own |= {place.index for place in self.places.values() if isinstance(place, AtBuffer)}
        shared = {i for name, roots in self.roots.items() if not isinstance(self.places[name], AtBuffer) for i in roots}
        return frozenset(range(len(self.buffers))) - (own - shared)

    def outputs(self) -> list[OutputPlan]:
        """How each result reaches the caller; asks for those that a statement can write in place."""
        program = self.program
        consts = {c.name for c in program.consts}
        writable = _written_here(program.body)
        plans: list[OutputPlan] = []
        for index, name in enumerate(program.results):
            dynamic = not self.is_static(self.types[name])
            before = next((i for i, p in enumerate(plans) if p.tensor == name), None)
            if name in self.inputs:
                plans.append(OutputPlan(name, "input", self.inputs[name]))
            elif name in consts:
                plans.append(OutputPlan(name, "constant"))
            elif dynamic:
                plans.append(OutputPlan(name, "hand over" if before is None else "clone"))
            elif before is not None:
                plans.append(OutputPlan(name, "output", before))
            elif name in writable:
                self.wanted[name] = AtOutput(index)
                plans.append(OutputPlan(name, "direct"))
            else:
                plans.append(OutputPlan(name, "copy"))
        return plans

    def check_hand_over(self, outputs: list[OutputPlan]) -> None:
        """Only a heap block can be given away; an address or an arena buffer is copied."""
        for index, output in enumerate(outputs):
            if output.how == "hand over" and not isinstance(self.places[output.tensor], AtHeap):
                outputs[index] = OutputPlan(output.tensor, "clone")

    # -- walking

    def region(self, region: Region) -> None:
        self.depth += 1
        for stmt in region.body:
            self.statement(stmt)
        self.depth -= 1

    def statement(self, stmt: Stmt) -> None:
        self.clock += 1
        match stmt:
            case Launch():
                for name in stmt.args:
                    self.use(name)
                taken: set[int] = set()
                for name in stmt.outs:
                    index = self.inherited(stmt, name, taken)
                    self.define(name, None if index is None else AtBuffer(index))
            case Bind():
                self.use(stmt.tensor)
            case Transfer():
                self.transfer(stmt)
            case If():
                self.branch(stmt)
            case For():
                for outer, _ in stmt.stacked:
                    self.define(outer)
                self.loop(stmt)
            case Loop():
                for name in stmt.collected:
                    self.place(name, self.new_heap(name))
                self.loop(stmt)
            case Library():
                for name in stmt.args:
                    self.use(name)
                for name, of in library_temporaries(stmt, self.types).items():
                    self.types[name] = of
                    self.define(name)
                for name in stmt.outs:
                    self.define(name)
            case _:
                raise Internal(stmt.loc, message=f"{type(stmt).__name__} is left over: the program is not fused")

    def transfer(self, stmt: Transfer) -> None:
        """A tensor leaves its buffer, or comes back into another one."""
        name = stmt.tensor
        place = self.places[name]
        if not isinstance(place, AtBuffer):
            raise Internal(stmt.loc, message=f"'{name}' has no buffer of its own that it could leave")
        stays = self.stays.setdefault(name, [place.index])
        home = self.spilled.setdefault(name, _Buffer(name, self.buffers[place.index].bytes, self.clock, self.clock))
        if stmt.fills:
            home.last = self.clock
            self.buffers.append(_Buffer(name, home.bytes, self.clock, self.clock))
            stays.append(len(self.buffers) - 1)
            self.depth_of[stays[-1]] = 0
            self.place(name, place, frozenset((stays[-1],)))
        elif len(stays) == 1:
            self.use(name)  # the copy that is made now serves later departures, too

    def branch(self, stmt: If) -> None:
        self.use(stmt.cond)
        for arm in (stmt.then, stmt.orelse):
            self.region(arm)
            self.clock += 1
            for name in arm.yields:
                self.use(name)
        for out, a, b in zip(stmt.outs, stmt.then.yields, stmt.orelse.yields, strict=True):
            self.place(out, AtPointer(), self.roots[a] | self.roots[b])
            self.use(out)

    def loop(self, stmt: For | Loop) -> None:
        inits = [init for _, init in stmt.carries]
        for name in inits:
            self.use(name)
        if isinstance(stmt, Loop):
            for given in (stmt.limit, stmt.cond):
                if given is not None:
                    self.use(given)
        next_values = stmt.body.yields[_first_carry(stmt) :]
        self.carries(stmt, next_values)
        if isinstance(stmt, Loop):
            self.place(stmt.index, AtPointer())
        self.loops.append(_LoopScope(self.clock))
        self.region(stmt.body)
        self.clock += 1
        for name in (*stmt.body.yields, *(carry for carry, _ in stmt.carries)):
            self.use(name)
        if isinstance(stmt, For):
            for outer, inner in stmt.stacked:
                self.use(outer)
                self.use(inner)
        scope = self.loops.pop()
        self.clock += 1
        for index in scope.extended:
            self.touch(index)
        for final, (carry, _), value in zip(stmt.finals, stmt.carries, next_values, strict=False):
            self.place(final, AtPointer(), self.roots[carry] | self.roots[value])
            self.use(final)

    def carries(self, stmt: For | Loop, next_values: tuple[str, ...]) -> None:
        """Decide for each carry how its next value outlives the step that makes it."""
        inside = _defined(stmt)
        written = _written_here(stmt.body)
        if isinstance(stmt, For):
            for outer, inner in stmt.stacked:
                if inner in written and inner not in self.wanted:
                    self.wanted[inner] = AtSlice(outer, stmt.symbol.name)
        for (carry, init), value in zip(stmt.carries, next_values, strict=False):
            roots = self.roots[init]
            if value in written:
                if value not in self.wanted:
                    self.wanted[value] = self.pair(value, self.types[carry])
                roots |= self.roots_of(self.wanted[value])
            elif value in inside and value != carry:
                self.copied[carry] = self.pair(carry, self.types[carry])
                roots |= self.roots_of(self.copied[carry])
            elif value != carry:
                roots |= self.roots[value]  # the same tensor of outside in every step
            self.place(carry, AtPointer(), roots)

    # -- places

    def inherited(self, stmt: Launch, name: str, taken: set[int]) -> int | None:
        """Buffer of an operand that the result `name` takes over, for nothing else will look there; None without one."""
        of = self.types[name]
        elsewhere = self.depth or name in self.wanted or name in self.outside
        if elsewhere or (name in self.program.results and not self.is_static(of)):
            return None
        size = self.upper_bound(of.stored * of.dtype.bytes)
        for operand in self.heirs.get(name, ()):
            roots = self.roots[operand]
            if not isinstance(self.places[operand], AtBuffer) or not taken.isdisjoint(roots):
                continue
            (index,) = roots
            leading = self.leading[index]
            readers = [other for other in stmt.args if other in leading]
            dead = all(self.last_read.get(other, -1) <= self.position for other in leading)
            if dead and readers == [operand] and self.buffers[index].bytes == size:
                taken.add(index)
                return index
        return None

    def define(self, name: str, place: Place | None = None) -> None:
        place = place or self.wanted.get(name)
        if name in self.outside:
            of = self.types[name]
            size = self.upper_bound(of.stored * of.dtype.bytes)
            assert place is None and size is not None, name
            self.spilled[name] = _Buffer(name, size, self.clock, self.clock)
            place = AtSpilled(name)
        elif place is None:
            place = self.new_storage(name, self.types[name])
        self.place(name, place, self.roots_of(place))
        for index in self.roots[name]:
            self.touch(index)

    def place(self, name: str, place: Place, roots: frozenset[int] = frozenset()) -> None:
        self.places[name] = place
        self.roots[name] = roots
        for index in roots:
            self.leading.setdefault(index, []).append(name)

    def roots_of(self, place: Place) -> frozenset[int]:
        match place:
            case AtBuffer(index):
                return frozenset((index,))
            case AtEither(even, odd):
                return self.roots_of(even) | self.roots_of(odd)
            case AtSlice(outer):
                return self.roots[outer]
            case _:
                return frozenset()

    def pair(self, name: str, of: TensorType) -> AtEither:
        return AtEither(self.new_storage(f"{name}.even", of), self.new_storage(f"{name}.odd", of))

    def new_heap(self, name: str) -> AtHeap:
        self.heap.append(name)
        return AtHeap(len(self.heap) - 1)

    def new_storage(self, name: str, of: TensorType) -> AtBuffer | AtHeap:
        size = of.stored * of.dtype.bytes
        bound = self.upper_bound(size)
        result = name in self.program.results and not self.is_static(of)
        if bound is None or result:
            return self.new_heap(name)
        self.buffers.append(_Buffer(name, bound, self.clock, self.clock))
        index = len(self.buffers) - 1
        self.depth_of[index] = len(self.loops)
        return AtBuffer(index)

    def use(self, name: str) -> None:
        if name in self.outside:
            self.spilled[name].last = NEVER if self.loops else max(self.spilled[name].last, self.clock)
        for index in self.roots[name]:
            self.touch(index)

    def touch(self, index: int) -> None:
        """The buffer is needed now, and, if it comes from outside a loop, until that loop's end."""
        buffer = self.buffers[index]
        buffer.first = min(buffer.first, self.clock)
        buffer.last = max(buffer.last, self.clock)
        for scope in self.loops[self.depth_of[index] :]:
            scope.extended.add(index)

    # -- sizes

    def is_static(self, of: TensorType) -> bool:
        return all(variables(e) <= self.static for e in of.shape)

    def upper_bound(self, size: IntExpr) -> IntExpr | None:
        """`size`, or what it cannot exceed, over symbols that the call binds; None without such a (small) bound."""
        sure = at_most(size, self.static, self.limits)
        if sure is not None:
            return sure
        found = at_most(size, self.static, self.limits | self.loose)
        return found if found is not None and found.const is not None and found.const <= SMALL_BYTES else None


def _value_symbols(program: Program, inputs: Mapping[str, int]) -> dict[str, int]:
    """Symbols that a top-level bind reads from a parameter of rank 0: the runtime can bind them before the call."""
    types = {p.name: p.type for p in program.params}
    found: dict[str, int] = {}
    for stmt in program.body.body:
        if isinstance(stmt, Bind) and stmt.tensor in inputs:
            of = types[stmt.tensor]
            if of.rank == 0 and of.dtype.is_int:
                found["#" + stmt.symbol.name] = inputs[stmt.tensor]
    return found


def _last_reads(program: Program) -> dict[str, int]:
    """By tensor, the last statement of the body that reads it, nested ones counting as the one around them; results last of all."""
    last = {name: at for at, stmt in enumerate(program.body.body) for name in stmt.reads}
    return last | dict.fromkeys(program.results, len(program.body.body))


def _written_here(region: Region) -> set[str]:
    """Tensors that a statement of this very region writes, so that they can be written elsewhere instead."""
    names: set[str] = set()
    for stmt in region.body:
        if isinstance(stmt, (Launch, Library)):
            names |= set(stmt.outs)
        elif isinstance(stmt, For):
            names |= {outer for outer, _ in stmt.stacked}
    return names


def _defined(stmt: For | Loop) -> set[str]:
    """Names that exist only inside the loop."""
    names = {carry for carry, _ in stmt.carries}
    if isinstance(stmt, Loop):
        names.add(stmt.index)
    return names | _outs(stmt.body)


def _outs(region: Region) -> set[str]:
    names: set[str] = set()
    for stmt in region.body:
        names |= set(stmt.outs)
        for inner in regions(stmt):
            names |= _outs(inner)
    return names


def _first_carry(stmt: For | Loop) -> int:
    """Where the carries' next values begin among the body's yields."""
    return 1 if isinstance(stmt, Loop) and stmt.cond is not None else 0
