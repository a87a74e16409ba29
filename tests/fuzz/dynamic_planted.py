"""Miscompiles of control, put into imported programs on purpose; the random modules must find each.

    python -m tests.fuzz.dynamic_planted              every plant: after how many programs it was found, and by which

A plant gives wrong versions of one statement of a Program; the mutant is verified and interpreted like the program itself, whose own
results are compared first. One that no module's inputs tell apart is equivalent to the program, and counts as not found there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.einsum import Einsum, Rank, TensorType
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, access, const, rename_tensors, transform
from dlc.ir.extent import int_expr, var
from dlc.ir.interpret import run_program
from dlc.ir.loc import UNKNOWN
from dlc.ir.program import If, Loop, Program, Region, Stmt, fresh_name, tensor_types, walk_statements
from dlc.ir.verify import verify
from dlc.passes.rewrite import map_regions
from tests.fuzz.dynamic_generate import case
from tests.fuzz.dynamic_run import check, imported
from tests.models.dynamic.judge import interpreter

MOST, MUTANTS = 400, 4
"""Programs with a place for the plant after which it counts as not found, and mutants tried in each."""


@dataclass(frozen=True)
class Site:
    """Where a plant may go: the program, its types, the values that tensors had in one run, and what was imported."""

    program: Program
    types: Mapping[str, TensorType]
    values: Mapping[str, np.ndarray]
    model: Any = None

    def fresh(self, hint: str) -> str:
        return fresh_name(hint, set(self.types))

    def scalar(self, hint: str, like: str, expr: Callable[[Expr], Expr], dtype: DType) -> Einsum:
        """One element computed from the one of `like`."""
        shape = self.types[like].shape
        ranks = tuple(Rank(f"z{n}", extent) for n, extent in enumerate(shape))
        value = expr(access(like, *(var(r.name) for r in ranks)))
        return Einsum((self.fresh(hint),), ranks, (value,), (dtype,), loc=UNKNOWN)


Change = Callable[[Site, Any], Iterator[tuple[Stmt, ...]]]


@dataclass(frozen=True)
class Plant:
    """A fault: the kind of statement it is put into, and the statements that replace it."""

    name: str
    kind: type
    change: Change


PLANTS: list[Plant] = []


def plant(name: str, kind: type) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        PLANTS.append(Plant(name, kind, change))
        return change

    return register


# --- branches --------------------------------------------------------------------------------------------------------


@plant("negated condition", If)
def _negated(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    turned = site.scalar("negated", s.cond, lambda c: Apply("not", (c,)), BOOL)
    yield turned, replace(s, cond=turned.out)


@plant("arms swapped", If)
def _swapped(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    yield (replace(s, then=s.orelse, orelse=s.then),)


@plant("always the first arm", If)
def _first(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    yield from _forced(site, s, True)


@plant("never the first arm", If)
def _second(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    yield from _forced(site, s, False)


@plant("the example's arm for all", If)
def _traced(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    if s.cond in site.values:
        yield from _forced(site, s, bool(site.values[s.cond].reshape(-1)[0]))


def _forced(site: Site, s: If | Loop, way: bool) -> Iterator[tuple[Stmt, ...]]:
    if s.cond is not None:
        fixed = site.scalar("fixed", s.cond, lambda _: const(way, BOOL), BOOL)
        yield fixed, replace(s, cond=fixed.out)


@plant("an assignment of one arm is lost", If)
def _lost(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    for name, other in (("then", s.orelse), ("orelse", s.then)):
        arm: Region = getattr(s, name)
        outside = set(other.yields) - {o for inner in other.body for o in inner.outs}
        for k, (mine, theirs) in enumerate(zip(arm.yields, other.yields)):
            if theirs in outside and mine != theirs:
                yield (replace(s, **{name: Region(arm.body, _put(arm.yields, k, theirs))}),)


@plant("two variables swapped where arms meet", If)
def _met(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    for yields in _exchanged(site, s.then.yields):
        yield (replace(s, then=Region(s.then.body, yields)),)


@plant("an inner condition is taken for the outer", If)
def _inner(site: Site, s: If) -> Iterator[tuple[Stmt, ...]]:
    for name in ("then", "orelse"):
        arm: Region = getattr(s, name)
        for k, inner in enumerate(arm.body):
            if isinstance(inner, If) and inner.cond != s.cond:
                body = _put(arm.body, k, replace(inner, cond=s.cond))
                yield (replace(s, **{name: Region(body, arm.yields)}),)


# --- loops -----------------------------------------------------------------------------------------------------------


@plant("the loop is skipped", Loop)
def _skipped(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    yield from _forced(site, s, False)
    yield from _limited(site, s, lambda n: Apply("sub", (n, n)))


@plant("the first test of a loop is left out", Loop)
def _untested(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    yield from _forced(site, s, True)
    yield from _limited(site, s, lambda n: Apply("max", (n, const(1, I64))))


@plant("one step too few", Loop)
def _few(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    yield from _limited(site, s, lambda n: Apply("sub", (n, const(1, I64))))


@plant("one step too many", Loop)
def _many(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    yield from _limited(site, s, lambda n: Apply("add", (n, const(1, I64))))


@plant("the example's number of steps for all", Loop)
def _unrolled(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    if s.limit is not None and s.limit in site.values:
        steps = int(site.values[s.limit].reshape(-1)[0])
        yield from _limited(site, s, lambda _: const(steps, I64))


def _limited(site: Site, s: Loop, change: Callable[[Expr], Expr]) -> Iterator[tuple[Stmt, ...]]:
    if s.limit is not None:
        other = site.scalar("limit", s.limit, change, I64)
        yield other, replace(s, limit=other.out)


@plant("a break is ignored", Loop)
def _unbroken(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    if s.cond is not None and s.limit is not None:
        yield from _going(site, s, True)


@plant("the loop ends after one step", Loop)
def _once(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    if s.cond is not None:
        yield from _going(site, s, False)


def _going(site: Site, s: Loop, way: bool) -> Iterator[tuple[Stmt, ...]]:
    going = site.scalar("going", s.body.yields[0], lambda _: const(way, BOOL), BOOL)
    yield (replace(s, body=Region((*s.body.body, going), _put(s.body.yields, 0, going.out))),)


@plant("a break takes effect one step late", Loop)
def _late(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    if s.cond is None:
        return
    n = len(s.carries)
    carried, final = site.fresh("late"), site.fresh("late_end")
    start = site.scalar("late_start", s.cond, lambda _: const(True, BOOL), BOOL)
    going, rest = s.body.yields[0], s.body.yields[1:]
    body = Region(s.body.body, (carried, *rest[:n], going, *rest[n:]))
    yield start, replace(s, carries=(*s.carries, (carried, start.out)), body=body, finals=(*s.finals, final))


@plant("a carried variable is not updated", Loop)
def _dropped(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    first = 0 if s.cond is None else 1
    for k, (name, _) in enumerate(s.carries):
        if s.body.yields[first + k] != name:
            yield (replace(s, body=Region(s.body.body, _put(s.body.yields, first + k, name))),)


@plant("carried variables swapped", Loop)
def _crossed(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    first = 0 if s.cond is None else 1
    for yields in _exchanged(site, s.body.yields, range(first, first + len(s.carries))):
        yield (replace(s, body=Region(s.body.body, yields)),)


@plant("the results are those of the step before", Loop)
def _before(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    first = 0 if s.cond is None else 1
    for k, (name, init) in enumerate(s.carries):
        carried, final = site.fresh("previous"), site.fresh("previous_end")
        yields = s.body.yields[: first + len(s.carries)], s.body.yields[first + len(s.carries) :]
        body = Region(s.body.body, (*yields[0], name, *yields[1]))
        finals = (*_put(s.finals, k, final), s.finals[k])
        yield (replace(s, carries=(*s.carries, (carried, init)), body=body, finals=finals),)


@plant("a computation on changing state is hoisted", Loop)
def _hoisted(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    for k, inner in enumerate(s.body.body):
        for name, init in s.carries:
            if isinstance(inner, Einsum) and name in inner.reads and inner.write is None:
                yield (replace(s, body=Region(_put(s.body.body, k, _renamed(inner, {name: init})), s.body.yields)),)


@plant("the condition reads the state before the step", Loop)
def _stale(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    first = 0 if s.cond is None else 1
    after = {s.body.yields[first + k]: name for k, (name, _) in enumerate(s.carries)}
    for k, inner in enumerate(s.body.body):
        if isinstance(inner, Einsum) and inner.dtype == BOOL and inner.write is None and set(inner.reads) & after.keys():
            yield (replace(s, body=Region(_put(s.body.body, k, _renamed(inner, after)), s.body.yields)),)


@plant("after continue the state is that of before", Loop)
def _continued(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    first = 0 if s.cond is None else 1
    for k, (name, _) in enumerate(s.carries):
        for n, inner in enumerate(s.body.body):
            if not isinstance(inner, If) or s.body.yields[first + k] not in inner.outs:
                continue
            place = inner.outs.index(s.body.yields[first + k])
            for side in ("then", "orelse"):
                arm: Region = getattr(inner, side)
                if arm.yields[place] != name:
                    changed = replace(inner, **{side: Region(arm.body, _put(arm.yields, place, name))})
                    yield (replace(s, body=Region(_put(s.body.body, n, changed), s.body.yields)),)


@plant("the step number is one ahead", Loop)
def _ahead(site: Site, s: Loop) -> Iterator[tuple[Stmt, ...]]:
    def one_more(e: Expr) -> Expr | None:
        return Apply("add", (e, const(1, I64))) if isinstance(e, Access) and e.tensor == s.index else None

    for k, inner in enumerate(s.body.body):
        if isinstance(inner, Einsum) and s.index in inner.reads and inner.write is None:
            changed = replace(inner, exprs=tuple(transform(e, one_more) for e in inner.exprs))
            yield (replace(s, body=Region(_put(s.body.body, k, changed), s.body.yields)),)


# --- values that decide ----------------------------------------------------------------------------------------------


@plant("'and' for 'or'", Einsum)
def _logic(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    if s.dtype == BOOL and not s.ranks:
        yield from _operator(s, {"and": "or", "or": "and"})


@plant("a strict comparison of whole numbers made lax", Einsum)
def _lax(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    if all(site.types[t].dtype == I64 for t in s.reads if t in site.types):
        yield from _operator(s, {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"})


def _operator(s: Einsum, other: Mapping[str, str]) -> Iterator[tuple[Stmt, ...]]:
    def turned(e: Expr) -> Expr | None:
        return Apply(other[e.op], e.args) if isinstance(e, Apply) and e.op in other else None

    yield (replace(s, exprs=tuple(transform(e, turned) for e in s.exprs)),)


@plant("a whole number is rounded to f32", Einsum)
def _rounded(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    def narrowed(e: Expr) -> Expr | None:
        return Apply(e.op, tuple(Cast(I64, Cast(F32, a)) for a in e.args)) if isinstance(e, Apply) and e.op in _WHOLE else None

    if s.dtypes == (I64,) and s.reduce is None and s.write is None and not s.ranks:
        yield (replace(s, exprs=tuple(transform(e, narrowed) for e in s.exprs)),)


_WHOLE = ("add", "sub", "mul", "div_floor", "rem_floor", "div_trunc", "rem_trunc")


@plant("a number of the example's for all", Einsum)
def _baked(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    if len(s.outs) == 1 and not s.ranks and s.write is None and s.out in site.values and s.reads:
        value = site.values[s.out].reshape(-1)[0]
        if s.dtype == BOOL or s.dtype == I64 or s.dtype.is_float and np.isfinite(value):
            yield (replace(s, exprs=(const(value.item(), s.dtype),), reduce=None, where=None),)


@plant("an update in place is lost", Einsum)
def _unwritten(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    if s.write is not None and len(s.outs) == 1:
        t = site.types[s.write.onto]
        ranks = tuple(Rank(f"z{n}", extent) for n, extent in enumerate(t.shape))
        whole = access(s.write.onto, *(var(r.name) for r in ranks))
        yield (Einsum(s.outs, ranks, (whole,), (t.dtype,), loc=s.loc),)


@plant("an element that data choose is the first", Einsum)
def _picked(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    def first(e: Expr) -> Expr | None:
        if not (isinstance(e, Access) and any(Index(i).children for i in e.index)):
            return None
        return replace(e, index=tuple(int_expr(0) if Index(i).children else i for i in e.index))

    yield (replace(s, exprs=tuple(transform(e, first) for e in s.exprs)),)


@plant("a choice between two values swapped", Einsum)
def _selected(site: Site, s: Einsum) -> Iterator[tuple[Stmt, ...]]:
    def turned(e: Expr) -> Expr | None:
        return Apply("select", (e.args[0], e.args[2], e.args[1])) if isinstance(e, Apply) and e.op == "select" else None

    yield (replace(s, exprs=tuple(transform(e, turned) for e in s.exprs)),)


# --- mutants ---------------------------------------------------------------------------------------------------------


def _put(items: tuple[Any, ...], k: int, item: Any) -> tuple[Any, ...]:
    return (*items[:k], item, *items[k + 1 :])


def _exchanged(site: Site, names: tuple[str, ...], among: Sequence[int] | None = None) -> Iterator[tuple[str, ...]]:
    """The names with two of the same type exchanged."""
    places = range(len(names)) if among is None else among
    for a in places:
        for b in places:
            if a < b and names[a] != names[b] and site.types[names[a]] == site.types[names[b]]:
                yield _put(_put(names, a, names[b]), b, names[a])


def _renamed(step: Einsum, names: Mapping[str, str]) -> Einsum:
    where = rename_tensors(step.where, names) if step.where is not None else None
    return replace(step, exprs=tuple(rename_tensors(e, names) for e in step.exprs), where=where)


def mutants(site: Site, p: Plant) -> Iterator[Program]:
    """Every valid program with the fault at one place."""
    for stmt in walk_statements(site.program.body):
        if not isinstance(stmt, p.kind):
            continue
        for new in p.change(site, stmt):
            if new == (stmt,):
                continue
            mutant = map_regions(site.program, lambda r, stmt=stmt, new=new: _replaced(r, stmt, new))  # type: ignore[misc]
            try:
                verify(mutant)
            except DlcError:
                continue
            yield mutant


def _replaced(region: Region, old: Stmt, new: tuple[Stmt, ...]) -> Region:
    if not any(s is old or s == old for s in region.body):
        return region
    return Region(tuple(x for s in region.body for x in (new if s == old else (s,))), region.yields)


@cache
def prepared(seed: int) -> Site | None:
    """The program of a seed, if it is imported and right."""
    c = case(seed)
    try:
        model = imported(c)
    except DlcError:
        return None
    if check(c, runner=interpreter(model)).status != "ok":
        return None
    values: dict[str, np.ndarray] = {}
    run_program(model.program, [t.numpy() for t in c.inputs[0]], observe=values.__setitem__)
    return Site(model.program, tensor_types(model.program), values, model)


def hunt(p: Plant, seeds: Sequence[int], most: int = MOST) -> tuple[int, int | None, str]:
    """(programs with a place for the fault, the seed that found it, what it showed)."""
    tried = 0
    for seed in seeds:
        site = prepared(seed)
        if site is None:
            continue
        found = list(_some(mutants(site, p), MUTANTS))
        tried += bool(found)
        for mutant in found:
            result = check(case(seed), runner=interpreter(site.model, mutant))
            if result.status in ("wrong", "error"):
                return tried, seed, f"{result.status}: {result.detail}"
        if tried >= most:
            break
    return tried, None, ""


def _some(items: Iterator[Program], most: int) -> Iterator[Program]:
    for _, item in zip(range(most), items):
        yield item


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="plants (all)")
    parser.add_argument("--end", type=int, default=2000, help="seeds to look through")
    options = parser.parse_args(arguments)
    missed = 0
    for p in PLANTS:
        if options.names and p.name not in options.names:
            continue
        tried, seed, detail = hunt(p, range(options.end))
        missed += seed is None
        print(f"{p.name}: " + (f"{tried} programs, seed {seed}: {detail[:120]}" if seed is not None else f"NOT FOUND in {tried}"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
