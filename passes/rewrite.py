"""What rewrites share: mapping a program's straight-line runs, uses of tensors, dead code, and names that are free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Scan, Step, TensorType, flat
from dlc.ir.expr import Access, Expr, index_value, transform
from dlc.ir.extent import IntExpr, Value, Var, has_value, int_expr, rebuild, var
from dlc.ir.program import (
    Bind,
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
    regions,
    walk_statements,
)

Data: TypeAlias = np.ndarray[Any, Any]


def map_regions(program: Program, change: Callable[[Region], Region]) -> Program:
    """The program with `change` applied to every region, inner ones first."""

    def visit(region: Region) -> Region:
        body = tuple(_with_regions(s, visit) for s in region.body)
        return change(
            region if all(a is b for a, b in zip(body, region.body, strict=True)) else Region(body, region.yields)
        )

    return program.with_body(visit(program.body))


def _with_regions(stmt: Stmt, visit: Callable[[Region], Region]) -> Stmt:
    match stmt:
        case If():
            then, orelse = visit(stmt.then), visit(stmt.orelse)
            return stmt if then is stmt.then and orelse is stmt.orelse else replace(stmt, then=then, orelse=orelse)
        case Loop() | For():
            body = visit(stmt.body)
            return stmt if body is stmt.body else replace(stmt, body=body)
        case _:
            return stmt


def has_branches(program: Program) -> bool:
    return any(isinstance(s, If) for s in walk_statements(program.body))


def has_loops(program: Program) -> bool:
    return any(isinstance(s, (Loop, For, Scan)) for s in walk_statements(program.body))


def map_steps(program: Program, change: Callable[[Einsum], Einsum]) -> Program:
    """The program with `change` applied to every Einsum, those in scans included."""

    def step(s: Step) -> Step:
        if isinstance(s, Einsum):
            return change(s)
        body = tuple(step(x) for x in s.body)
        return s if all(a is b for a, b in zip(body, s.body, strict=True)) else replace(s, body=body)

    def region(r: Region) -> Region:
        body = tuple(step(s) if isinstance(s, (Einsum, Scan)) else s for s in r.body)
        return r if all(a is b for a, b in zip(body, r.body, strict=True)) else Region(body, r.yields)

    return map_regions(program, region)


def map_accesses(step: Einsum, change: Callable[[Access], Access]) -> Einsum:
    """The Einsum with `change` applied to every access, those in indices and domains included (not to `write.onto`)."""

    def visit(e: Expr) -> Expr | None:
        return change(e) if isinstance(e, Access) else None

    def index(e: IntExpr) -> IntExpr:
        def leaf(atom: Var | Value) -> IntExpr:
            return var(atom.name) if isinstance(atom, Var) else index_value(transform(atom.expr, visit))

        return rebuild(e, leaf) if has_value(e) else e

    exprs = tuple(transform(e, visit) for e in step.exprs)
    where = None if step.where is None else transform(step.where, visit)
    write = step.write
    if write is not None and any(map(has_value, write.index)):
        write = replace(write, index=tuple(map(index, write.index)))
    same = all(a == b for a, b in zip(exprs, step.exprs, strict=True)) and where == step.where and write == step.write
    return step if same else replace(step, exprs=exprs, where=where, write=write)


def all_einsums(program: Program) -> Iterable[Einsum]:
    """Every Einsum of the program, those in scans included."""
    for stmt in walk_statements(program.body):
        if isinstance(stmt, (Einsum, Scan)):
            yield from flat((stmt,))


def whole_reads(program: Program) -> set[str]:
    """Tensors that something needs as memory: results, region yields, states, conditions, library operands."""
    needed = set(program.body.yields)

    def scan(s: Step) -> None:
        if isinstance(s, Einsum):
            if s.write is not None:
                needed.add(s.write.onto)
            return
        needed.update(s.yields)
        needed.update(c.init for c in s.carries)
        needed.update(inner for _, inner in s.stacked)
        for x in s.body:
            scan(x)

    for stmt in walk_statements(program.body):
        if isinstance(stmt, (Einsum, Scan)):
            scan(stmt)
            continue
        for region in regions(stmt):
            needed.update(region.yields)
        match stmt:
            case If(cond):
                needed.add(cond)
            case Loop():
                needed.update(init for _, init in stmt.carries)
                needed.update(n for n in (stmt.limit, stmt.cond) if n is not None)
            case For():
                needed.update(init for _, init in stmt.carries)
            case _:
                needed.update(stmt.reads)
    return needed


def access_counts(program: Program) -> Counter[str]:
    """How many element accesses each tensor has, over all Einsums."""
    counts: Counter[str] = Counter()
    for step in all_einsums(program):
        counts.update(a.tensor for a in step.accesses())
    return counts


def drop_dead(program: Program) -> Program:
    """Without statements, constants, values of branches and states of loops that nothing needs. Bindings and checks stay."""

    def region(r: Region, live: set[str]) -> Region:
        live = live | set(r.yields)
        kept: list[Stmt] = []
        for stmt in reversed(r.body):
            if not isinstance(stmt, (Bind, Launch)) and live.isdisjoint(stmt.outs) and not _binds(stmt):
                continue
            left = _needed(stmt, live, region)
            live |= set(left.reads)
            kept.append(left)
        kept.reverse()
        return (
            r
            if len(kept) == len(r.body) and all(a is b for a, b in zip(kept, r.body, strict=True))
            else Region(tuple(kept), r.yields)
        )

    body = region(program.body, set())
    used = {n for s in walk_statements(body) for n in s.reads} | set(body.yields)
    consts = tuple(c for c in program.consts if c.name in used)
    if body is program.body and len(consts) == len(program.consts):
        return program
    return replace(program, body=body, consts=consts)


def _needed(stmt: Stmt, live: set[str], region: Callable[[Region, set[str]], Region]) -> Stmt:
    """The statement with what its regions make for `live` alone; `region` drops what is dead in one."""
    match stmt:
        case If():
            kept = [n for n, out in enumerate(stmt.outs) if out in live]
            then, orelse = (region(_yielding(arm, kept), set()) for arm in (stmt.then, stmt.orelse))
            same = then is stmt.then and orelse is stmt.orelse
            return stmt if same else replace(stmt, then=then, orelse=orelse, outs=tuple(stmt.outs[n] for n in kept))
        case Loop():
            return _needed_in_loop(stmt, live, region)
        case For():
            body = region(stmt.body, {inner for _, inner in stmt.stacked})
            return stmt if body is stmt.body else replace(stmt, body=body)
        case _:
            return stmt


def _needed_in_loop(loop: Loop, live: set[str], region: Callable[[Region, set[str]], Region]) -> Loop:
    first = 0 if loop.cond is None else 1
    last = first + len(loop.carries)
    rows = [n for n, out in enumerate(loop.collected) if out in live]
    states = [n for n, out in enumerate(loop.finals) if out in live]
    while True:  # a state is needed after the loop, or for what is needed in a step
        yields = [*range(first), *(first + n for n in states), *(last + n for n in rows)]
        body = region(_yielding(loop.body, yields), set())
        more = [n for n, (name, _) in enumerate(loop.carries) if n in states or name in body.reads]
        if more == states:
            break
        states = more
    if body is loop.body:
        return loop
    return replace(
        loop,
        carries=tuple(loop.carries[n] for n in states),
        body=body,
        finals=tuple(loop.finals[n] for n in states),
        collected=tuple(loop.collected[n] for n in rows),
    )


def _yielding(region: Region, kept: list[int]) -> Region:
    """The region with those of its yields alone."""
    if len(kept) == len(region.yields):
        return region
    return Region(region.body, tuple(region.yields[n] for n in kept))


def _binds(stmt: Stmt) -> bool:
    """Whether an extent is bound by the statement, or inside it, or something else that has to stay is there."""
    inner = any(_binds(s) for r in regions(stmt) for s in r.body)
    match stmt:
        case Library():
            return bool(stmt.binds)
        case Loop():
            return stmt.count is not None or inner
        case Bind() | Launch():
            return True
        case _:
            return inner


@dataclass(frozen=True, slots=True)
class Relaunched:
    """What a launch becomes: one of `kernel`, with constants as its last arguments.

    Attributes:
        given: a name to begin with, and the numbers, of each.
    """

    kernel: str
    given: tuple[tuple[str, DType, Data], ...]


def relaunch(program: Program, to: Mapping[str, Relaunched], kernels: tuple[Kernel, ...]) -> Program:
    """The program with these kernels, whose launches give some of them more; constants of the same bits are one.

    Args:
        to: by the name of the kernel that is launched now; others stay.
    """
    names = Names(program)
    known: dict[tuple[str, DType, tuple[int, ...], bytes], str] = {}
    consts, data = list(program.consts), dict(program.data)

    def constant(base: str, dtype: DType, values: Data) -> str:
        key = (base, dtype, values.shape, values.tobytes())
        if key not in known:
            known[key] = names.fresh(base)
            consts.append(Param(known[key], TensorType(dtype, tuple(map(int_expr, values.shape)))))
            data[known[key]] = values
        return known[key]

    def launch(stmt: Stmt) -> Stmt:
        if not isinstance(stmt, Launch) or stmt.kernel not in to:
            return stmt
        made = to[stmt.kernel]
        return replace(stmt, kernel=made.kernel, args=(*stmt.args, *(constant(*given) for given in made.given)))

    changed = map_regions(program, lambda region: Region(tuple(map(launch, region.body)), region.yields))
    return replace(changed, consts=tuple(consts), data=data, kernels=kernels)


class Names:
    """Fresh names of a program's tensors."""

    def __init__(self, program: Program) -> None:
        self.taken = {p.name for p in program.params + program.consts}
        for stmt in walk_statements(program.body):
            self._add(stmt)

    def _add(self, stmt: Stmt) -> None:
        self.taken |= set(stmt.outs)
        match stmt:
            case Scan():
                self.taken |= {c.name for c in stmt.carries} | {stmt.rank.name}
                for inner in stmt.body:
                    self._add(inner)
            case Loop():
                self.taken |= {n for n, _ in stmt.carries} | {stmt.index}
            case For():
                self.taken |= {n for n, _ in stmt.carries}
            case _:
                pass

    def fresh(self, base: str) -> str:
        """`base`, or `base_2`, `base_3` ..."""
        name, n = base, 2
        while name in self.taken:
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        return name

    def copy(self) -> Names:
        """Names for a trial: what is taken of them stays free here."""
        made = Names.__new__(Names)
        made.taken = set(self.taken)
        return made
