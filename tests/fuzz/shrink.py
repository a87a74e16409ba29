"""The least program that still fails: outputs and steps are dropped, expressions replaced by their parts, extents shrunk.

Greedy and without memory: each candidate that still fails in the same way becomes the program, until none does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Scan
from dlc.ir.expr import Apply, Cast, Expr, Piecewise, dtype_of
from dlc.ir.extent import substitute
from dlc.ir.program import Library, Param, Program, Region, Stmt, tensor_types
from dlc.ir.verify import verify
from dlc.passes.rewrite import drop_dead
from tests.fuzz.generate import Case

T = TypeVar("T")


def shrink(
    c: Case, target: str, status: str, limit_s: float = 60.0, fails: Callable[[Case], bool] | None = None
) -> Case:
    """A smaller case with the same `status` under `tests.fuzz.run.check` (or for which `fails` holds)."""
    from tests.fuzz.run import check

    def still(candidate: Case) -> bool:
        verify(candidate.program)
        return fails(candidate) if fails is not None else check(candidate, target, 1).status == status

    return greedy(c, candidates, still, limit_s)


def greedy(c: T, smaller: Callable[[T], Iterator[T]], still: Callable[[T], bool], limit_s: float) -> T:
    """The case after as many steps to a smaller one that still fails as the time allows."""
    end = time.monotonic() + limit_s
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for candidate in smaller(c):
            if time.monotonic() > end:
                break
            if holds(still, candidate):
                c, progress = candidate, True
                break
    return c


def holds(still: Callable[[T], bool], candidate: T) -> bool:
    try:
        return still(candidate)
    except Exception:  # noqa: BLE001 - no program, or another fault: not this one
        return False


def candidates(c: Case) -> Iterator[Case]:
    """Smaller cases, the boldest first."""
    p = c.program
    results = p.results
    if len(results) > 1:
        for name in results:
            yield tidy(c, replace(p, body=Region(p.body.body, (name,))))
        for name in results:
            yield tidy(c, replace(p, body=Region(p.body.body, tuple(r for r in results if r != name))))
    types = tensor_types(p)
    made = {o for s in p.body.body for o in s.outs}
    for k in reversed(range(len(p.body.body))):  # a step's results become inputs
        stmt = p.body.body[k]
        if isinstance(stmt, (Einsum, Scan, Library)) and not set(stmt.outs) & set(results):
            yield from _cut(c, k)
        elif isinstance(stmt, Einsum) and len(stmt.outs) == 1:
            if not (set(stmt.reads) & made) and len(p.body.body) > 1:
                continue
    for name in results:  # stop earlier
        for stmt in p.body.body:
            if name in stmt.outs:
                for r in stmt.reads:
                    if r in made:
                        yield tidy(c, replace(p, body=Region(p.body.body, (r,))))
    for k, stmt in enumerate(p.body.body):
        if isinstance(stmt, Einsum):
            for new in _simpler(stmt, lambda t: types[t].dtype):
                body = (*p.body.body[:k], new, *p.body.body[k + 1 :])
                yield tidy(c, replace(p, body=Region(body, p.body.yields)))
    for s in p.symbols:
        yield from _without_symbol(c, s.name)


def tidy(c: Case, program: Program) -> Case:
    """Without dead statements and unread inputs that bind nothing."""
    program = drop_dead(program)
    read = {n for s in program.body.body for n in s.reads} | set(program.results)
    kept = [k for k, q in enumerate(program.params) if q.name in read]
    bound = {v for k in kept for e in program.params[k].type.shape for v in [str(e)]}
    kept += [
        k
        for k, q in enumerate(program.params)
        if k not in kept and any(e.is_var and str(e) not in bound for e in q.type.shape)
    ]
    kept.sort()
    smaller = replace(program, params=tuple(program.params[k] for k in kept))
    again = tuple(c.again[k] for k in kept) if c.again is not None and len(c.again) == len(c.inputs) else None
    return replace(c, program=smaller, inputs=tuple(c.inputs[k] for k in kept), again=again)


def _cut(c: Case, k: int) -> Iterator[Case]:
    """Statement `k` removed, its results given as inputs with the values they had."""
    from tests.fuzz.bounds import Undetermined, reference

    p = c.program
    stmt = p.body.body[k]
    types = tensor_types(p)
    probe = replace(p, body=Region(p.body.body[: k + 1], tuple(stmt.outs)))
    try:
        values = reference(probe, c.inputs).results
    except (Undetermined, NotImplementedError):
        return
    params = p.params + tuple(Param(o, replace(types[o], order=None, pitch=0)) for o in stmt.outs)
    body = Region(p.body.body[:k] + p.body.body[k + 1 :], p.body.yields)
    symbols = p.symbols + (stmt.binds if isinstance(stmt, Library) else ())  # the inputs bind what it found
    yield tidy(replace(c, inputs=c.inputs + values, again=None), replace(p, params=params, body=body, symbols=symbols))


def _simpler(step: Einsum, tensors: Callable[[str], DType]) -> Iterator[Einsum]:
    if step.where is not None:
        yield replace(step, where=None)
    if step.order is not None:
        yield replace(step, order=None)
    if step.pitch:
        yield replace(step, pitch=0)
    for n, e in enumerate(step.exprs):
        for new in _smaller(e, tensors):
            yield replace(step, exprs=(*step.exprs[:n], new, *step.exprs[n + 1 :]))


def _smaller(e: Expr, tensors: Callable[[str], DType]) -> Iterator[Expr]:
    """Parts of the same type in place of the whole, then the whole with a smaller part."""
    try:
        whole = dtype_of(e, tensors)
    except KeyError:
        return
    parts: tuple[Expr, ...] = ()
    rebuild: Callable[[tuple[Expr, ...]], Expr]
    match e:
        case Apply(op, args):
            parts, rebuild = args, lambda a: Apply(op, a)
        case Cast(dtype, arg, mode):
            parts, rebuild = (arg,), lambda a: Cast(dtype, a[0], mode)
        case Piecewise(cases, otherwise):
            yield otherwise
            yield from (v for _, v in cases)
            return
        case _:
            return
    for x in parts:
        if dtype_of(x, tensors) == whole:
            yield x
    for n, x in enumerate(parts):
        for new in _smaller(x, tensors):
            yield rebuild((*parts[:n], new, *parts[n + 1 :]))


def _without_symbol(c: Case, name: str) -> Iterator[Case]:
    """The symbol replaced by its value in this case, then (where inputs can be cut) by a smaller one."""
    from dlc.ir.interpret import bind_symbols

    p = c.program
    arrays: dict[str, Any] = {q.name: a for q, a in zip(p.params, c.inputs, strict=True)}
    values = bind_symbols(p.params, arrays, p.symbols)
    value = values.get("#" + name)
    if value is None:
        return
    env = {"#" + name: value}
    if any(not isinstance(s, (Einsum, Library)) for s in p.body.body):
        return
    params = tuple(
        replace(q, type=replace(q.type, shape=tuple(substitute(x, env) for x in q.type.shape))) for q in p.params
    )
    body: list[Stmt] = []
    for s in p.body.body:
        if isinstance(s, Library):
            types = tuple(replace(t, shape=tuple(substitute(x, env) for x in t.shape)) for t in s.types)
            body.append(replace(s, types=types))
            continue
        assert isinstance(s, Einsum)
        reduce = s.reduce
        if reduce is not None:
            reduce = replace(reduce, ranks=tuple(replace(r, extent=substitute(r.extent, env)) for r in reduce.ranks))
        body.append(
            replace(
                s,
                ranks=tuple(replace(r, extent=substitute(r.extent, env)) for r in s.ranks),
                reduce=reduce,
                exprs=tuple(e.substitute(env) for e in s.exprs),
                where=s.where.substitute(env) if s.where is not None else None,
                write=replace(s.write, index=tuple(substitute(i, env) for i in s.write.index)) if s.write else None,
            )
        )
    symbols = tuple(s for s in p.symbols if s.name != name)
    yield tidy(
        replace(c, again=None), replace(p, params=params, body=Region(tuple(body), p.body.yields), symbols=symbols)
    )


__all__ = ["candidates", "np", "shrink", "tidy"]
