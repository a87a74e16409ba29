"""What rewrites share: mapping a program's straight-line runs, uses of tensors, dead code, and names that are free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.program import For, If, Library, Loop, Program, Region, Stmt, regions, walk_statements


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
    """Without statements and constants whose results nothing needs. Bindings and checks stay."""

    def region(r: Region, live: set[str]) -> Region:
        live = live | set(r.yields)
        kept: list[Stmt] = []
        for stmt in reversed(r.body):
            if isinstance(stmt, (Einsum, Scan, Library, If)) and live.isdisjoint(stmt.outs) and not _binds(stmt):
                continue
            live |= set(stmt.reads)
            kept.append(_with_regions(stmt, lambda inner, live=live: region(inner, live)))  # type: ignore[misc]
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


def _binds(stmt: Stmt) -> bool:
    if isinstance(stmt, Library):
        return bool(stmt.binds)
    return any(_binds(s) or not isinstance(s, (Einsum, Scan, Library, If)) for r in regions(stmt) for s in r.body)


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
