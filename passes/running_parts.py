"""Shares of a rank traversed side by side: the scan of all of them at once, and what makes one result of theirs.

Each share is corrected as an earlier block would be, from its own references to those of the whole.

Source: Dao, Haziza, Massa and Sizov, Flash-Decoding for long-context inference (2023), for the keys of one query in several shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dlc.ir.einsum import Einsum, Rank, Scan, Step
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import var
from dlc.passes.running_corrections import Corrections
from dlc.passes.running_scan import ScanBody, State


@dataclass(frozen=True)
class Join:
    """How the shares of some states become one: `values`, which may ask for corrections, folded as `fold` does."""

    fold: Einsum
    states: tuple[State, ...]
    values: Callable[[Corrections], tuple[Expr, ...]]

    def step(self, part: Rank, corrections: Corrections) -> Einsum:
        assert self.fold.reduce is not None
        reduce = replace(self.fold.reduce, ranks=(part,))
        outs, dtypes = tuple(s.merged for s in self.states), tuple(s.dtype for s in self.states)
        ranks = self.states[0].ranks
        return Einsum(outs, ranks, self.values(corrections), dtypes, reduce, loc=self.fold.loc)


def join_parts(body: ScanBody, scan: Scan, joins: Sequence[Join]) -> tuple[Step, ...]:
    """The scan with a rank for the shares in all that it computes, and the steps that join them."""
    part, finals = body.blocks.part, {s.final for s in body.carries}
    inside = finals | {o for e in (*body.inits, *body.steps) for o in e.outs} | {c.name for c in scan.carries}
    inits = [_parted(e, part, inside) for e in body.inits]
    parted = replace(scan, body=tuple(_parted(e, part, inside) for e in body.steps))
    return (*inits, parted, *_per_share(_joining(body, joins), part, finals))


def _joining(body: ScanBody, joins: Sequence[Join]) -> list[Einsum]:
    """The steps that join the shares, as if there were one."""
    last = {s.merged: s.final for s in body.carries}
    corrections = Corrections(
        body.chain,
        body.names,
        body.blocks.progress_of_join(),
        now={o: o for o in body.before},
        before={o: last[o] for o in body.before},
        steps=[],
    )
    for join in joins:
        corrections.steps.append(join.step(body.blocks.part, corrections))
    return corrections.steps


def _per_share(steps: Sequence[Einsum], part: Rank, finals: set[str]) -> list[Einsum]:
    """The steps as they follow the scan: those that read a share are done for each, up to the folds over them."""
    shares, made = set(finals), []
    for e in steps:
        if shares.isdisjoint(e.reads):
            made.append(e)
        elif e.reduce is not None:
            made.append(replace(_parted(e, part, shares), ranks=e.ranks))
        else:
            made.append(_parted(e, part, shares))
            shares |= set(e.outs)
    return made


def _parted(e: Einsum, part: Rank, inside: set[str]) -> Einsum:
    """The step for every share, as the tensors `inside` are that it reads."""

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Access) and node.tensor in inside:
            return Access(node.tensor, (var(part.name), *node.index))
        return None

    return replace(e, ranks=(part, *e.ranks), exprs=tuple(transform(x, visit) for x in e.exprs))
