"""What leaves fast memory when, for a given order; and a bound on it over all orders: one integer programme for both.

A tensor needs to be there at its uses; between two of them it is there throughout or not at all (what leaves later or comes back
earlier occupies more and saves nothing).  So one binary variable for a tensor's return before a use, and one for its being
written, stand for all time steps; a row for an operator asks that enough of what would be alive beside it has gone.

`encode` takes a precedence relation.  A total one gives the exact problem of that order.  A partial one (the graph's own) counts beside an
operator only what is alive there in every order, and lets a tensor return before any use that may be the next: a
relaxation of all orders at once, which classic networks, chains almost everywhere, meet exactly.

Source: Li et al., COSMA (arXiv 2311.18246), equations 1-8 and 12; interval variables instead of time-indexed ones after
Bartan et al., MOCCASIN (arXiv 2304.14463).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from dlc.passes.cosma.graph import Tables, bits
from dlc.passes.cosma.plan import Span
from dlc.passes.cosma.search import Part


@dataclass(frozen=True, slots=True)
class Precedence:
    """Which operators are known to come before and after each one, and whether that is one order."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    total: bool


def partial_order(tables: Tables) -> Precedence:
    """What the graph itself demands."""
    return Precedence(tuple(tables.before), tuple(tables.after), False)


def total_order(order: Sequence[int]) -> Precedence:
    """One order."""
    before, after, seen = [0] * len(order), [0] * len(order), 0
    everything = (1 << len(order)) - 1
    for o in order:
        before[o] = seen
        seen |= 1 << o
        after[o] = everything & ~seen
    return Precedence(tuple(before), tuple(after), True)


@dataclass(slots=True)
class Programme:
    """min cost x, rows >= their bounds, x binary.

    Attributes:
        returns: the variables' names, (tensor, use) -> column.
        operators: by row, the operator that makes it necessary, or -1.
    """

    cost: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, int], int]] = field(default_factory=list)
    returns: dict[tuple[int, int], int] = field(default_factory=dict)
    operators: list[int] = field(default_factory=list)

    def column(self, cost: int) -> int:
        self.cost.append(cost)
        return len(self.cost) - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Values of the columns, their cost, and what no values can go below."""

    values: tuple[bool, ...]
    cost: int
    bound: int


def encode(tables: Tables, given: Precedence, capacity: int) -> Programme:
    """The programme for fast memory of `capacity` bytes."""
    programme = Programme()
    written: dict[tuple[int, int], int] = {}
    demands: dict[tuple[int, ...], tuple[int, int]] = {}
    for o, alive in enumerate(_alive_beside(tables, given)):
        room = capacity - tables.footprint(o, tables.all & ~(given.after[o] | 1 << o))
        over = sum(tables.sizes[a] for a in alive) - room
        if over <= 0:
            continue
        columns = tuple(_gone(tables, given, programme, written, a, o) for a in alive)
        terms = {c: tables.sizes[a] for c, a in zip(columns, alive, strict=True)}
        key = tuple(v for item in sorted(terms.items()) for v in item)
        demands[key] = max(demands.get(key, (0, o)), (over, o))
    programme.operators += [-1] * len(programme.rows)
    for key, (over, o) in demands.items():
        terms = {c: min(size, over) for c, size in zip(key[::2], key[1::2], strict=True)}
        programme.rows.append((terms, over))
        programme.operators.append(o)
    return programme


def _alive_beside(tables: Tables, given: Precedence) -> list[list[int]]:
    """By operator, the tensors that it does not use and that are surely alive beside it: used before, and after."""
    found: list[list[int]] = [[] for _ in range(tables.count)]
    for a, uses in enumerate(tables.uses):
        later = earlier = 0
        for u in bits(uses):
            later |= given.after[u]
            earlier |= given.before[u]
        if tables.sizes[a]:
            for o in bits(later & earlier & ~uses):
                found[o].append(a)
    return found


def _gone(
    tables: Tables, given: Precedence, programme: Programme, written: dict[tuple[int, int], int], a: int, o: int
) -> int:
    """The column that is 1 when tensor `a` is elsewhere while `o` runs."""
    later = tables.uses[a] & ~given.before[o]
    surely = later & given.after[o]  # the others may have run before `o`
    following = [u for u in bits(later) if not given.before[u] & surely]
    columns = [_return(tables, given, programme, written, a, u) for u in following]
    if len(columns) == 1:
        return columns[0]
    gone = programme.column(0)
    programme.rows.append(({gone: -1, **dict.fromkeys(columns, 1)}, 0))
    return gone


def _return(
    tables: Tables, given: Precedence, programme: Programme, written: dict[tuple[int, int], int], a: int, use: int
) -> int:
    if (a, use) in programme.returns:
        return programme.returns[a, use]
    size = tables.sizes[a]
    column = programme.returns[a, use] = programme.column(size)
    made = (given.before[use] & tables.written[a]).bit_count()
    whole = made == tables.written[a].bit_count()
    if tables.written[a] and not (whole and tables.clean_outputs >> a & 1):
        key = (a, made if given.total else 0)
        if key not in written:
            written[key] = programme.column(size)
        programme.rows.append(({written[key]: 1, column: -1}, 0))
    return column


def parts(tables: Tables, capacity: int, time_limit_s: float) -> tuple[Part, ...]:
    """What falls apart in the relaxation of all orders: sets of tensors, each with its own least cost."""
    programme = encode(tables, partial_order(tables), capacity)
    group = list(range(len(programme.cost)))

    def find(c: int) -> int:
        while group[c] != c:
            group[c] = group[group[c]]
            c = group[c]
        return c

    for terms, _ in programme.rows:
        first, *others = terms
        for c in others:
            group[find(c)] = find(first)
    members: dict[int, list[int]] = {}
    for c in range(len(group)):
        members.setdefault(find(c), []).append(c)
    own: dict[int, list[int]] = {}
    for r, (terms, _) in enumerate(programme.rows):
        own.setdefault(find(next(iter(terms))), []).append(r)
    tensor_of = {c: a for (a, _), c in programme.returns.items()}
    solved: dict[str, int] = {}  # layers that are alike have parts that are alike
    found = []
    for root, columns in members.items():
        place = {c: i for i, c in enumerate(columns)}
        costs = [programme.cost[c] for c in columns]
        rows = [programme.rows[r] for r in own.get(root, ())]
        part = Programme(costs, [({place[c]: v for c, v in terms.items()}, low) for terms, low in rows])
        key = repr((part.cost, part.rows))
        if key not in solved:
            answer = solve(part, time_limit_s)
            solved[key] = 0 if answer is None else answer.bound
        if solved[key]:
            tensors = tuple(sorted({tensor_of[c] for c in columns if c in tensor_of}))
            operators = {programme.operators[r] for r in own[root]} - {-1}
            found.append(Part(tensors, sum(1 << o for o in operators), solved[key]))
    return tuple(found)


def decode(tables: Tables, order: Sequence[int], programme: Programme, answer: Answer) -> tuple[Span, ...]:
    """The stays of all tensors in a total order: from a use to the last one before the tensor leaves."""
    step = {o: at for at, o in enumerate(order)}
    returns = {key for key, column in programme.returns.items() if answer.values[column]}
    spans: list[Span] = []
    for a, uses in enumerate(tables.uses):
        steps = sorted(step[o] for o in bits(uses))
        first = None
        for at, following in zip(steps, [*steps[1:], None]):
            first = at if first is None else first
            if following is None or (a, order[following]) in returns:
                spans.append((a, first, at))
                first = None
    return tuple(spans)


def solve(programme: Programme, time_limit_s: float) -> Answer | None:
    """By CP-SAT, whose arithmetic is exact; None when it found nothing in time.

    HiGHS is as fast on these programmes (docs/schedule.md), but has tolerances.
    """
    if not programme.rows:
        return Answer((False,) * len(programme.cost), 0, 0)
    model = cp_model.CpModel()
    columns = [model.new_bool_var(f"x{i}") for i in range(len(programme.cost))]
    for terms, low in programme.rows:
        model.add(sum(v * columns[c] for c, v in terms.items()) >= low)
    model.minimize(sum(c * x for c, x in zip(programme.cost, columns, strict=True) if c))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(time_limit_s, 0.01)
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    values = tuple(bool(solver.value(x)) for x in columns)
    return Answer(values, _cost(programme, values), math.ceil(solver.best_objective_bound - 1e-6))


def _cost(programme: Programme, values: Sequence[bool]) -> int:
    return sum(c for c, v in zip(programme.cost, values, strict=True) if v)
