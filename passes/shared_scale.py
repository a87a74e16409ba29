"""What every reader of a contraction first does to it with a constant is done once, on the register tile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.expr import Access, Apply, Const, Expr, transform, walk
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.products import factors
from dlc.ir.program import fresh_name


def share_scales(steps: Sequence[Step]) -> list[Step]:
    """The steps with `S * 0.125` a step of its own where `S` is a contraction that several steps read only so.

        S[p, m] = sum(e) Q[p, e] * K[m, e]                S[p, m] = sum(e) Q[p, e] * K[m, e]
        G[p]    = max(m) S[p, m] * 0.125            ->    T[p, m] = S[p, m] * 0.125
        N[p, m] = exp(S[p, m] * 0.125 - G[p])             G[p]    = max(m) T[p, m] ...
    """
    found = list(steps)
    taken = {o for s in flat(steps) for o in s.outs} | {r for s in steps for r in s.reads}
    for step in list(flat(steps)):
        use = _only_use(step, found) if factors(step) is not None else None
        if use is None:
            continue
        name = fresh_name(f"{step.out}_scaled", taken)
        taken.add(name)
        own = tuple(int_expr(0) if r.extent.const == 1 else var(r.name) for r in step.ranks)
        scaled = replace(step, outs=(name,), exprs=(_applied(use, own),), reduce=None)
        found = [s for old in found for s in _with(old, step, scaled, use)]
    return found


def _uses(e: Expr, tensor: str) -> Iterable[Apply | None]:
    """For each read of `tensor` in `e` the operation with a constant that it is the operand of, else None."""
    for node in walk(e):
        for child in node.children:
            if isinstance(child, Access) and child.tensor == tensor:
                plain = isinstance(node, Apply) and len(node.args) == 2 and any(isinstance(a, Const) for a in node.args)
                yield node if isinstance(node, Apply) and plain else None
    if isinstance(e, Access) and e.tensor == tensor:
        yield None


def _only_use(step: Einsum, steps: Sequence[Step]) -> Apply | None:
    uses = [u for s in flat(steps) for e in s.scalars for u in _uses(e, step.out)]
    shapes = {None if u is None else (u.op, tuple(a if isinstance(a, Const) else None for a in u.args)) for u in uses}
    return uses[0] if len(uses) > 1 and len(shapes) == 1 else None


def _applied(use: Apply, index: tuple[IntExpr, ...]) -> Expr:
    return Apply(use.op, tuple(replace(a, index=index) if isinstance(a, Access) else a for a in use.args))


def _with(step: Step, contraction: Einsum, scaled: Einsum, use: Apply) -> list[Step]:
    """`step` reading `scaled`, which follows `contraction`."""
    if step == contraction:
        return [step, scaled]
    if isinstance(step, Scan):
        return [replace(step, body=tuple(s for old in step.body for s in _with(old, contraction, scaled, use)))]

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Apply) and node.op == use.op:
            read = next((a for a in node.args if isinstance(a, Access) and a.tensor == contraction.out), None)
            return Access(scaled.out, read.index) if read is not None else None
        return None

    return [
        replace(
            step,
            exprs=tuple(transform(e, visit) for e in step.exprs),
            where=transform(step.where, visit) if step.where is not None else None,
        )
    ]


__all__ = ["share_scales"]
