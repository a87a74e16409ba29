"""What `where` means to a loop: its bounds, the blocks that are inside as a whole, and those that are outside.

`where 128*b + m < n & 128*b + m <= p` in a loop over `m`, for a block of `p` in the lanes: the first inequality is the
loop's end; the second, relaxed to the largest `p` of the block, is another, and what it leaves is a mask. In a block where
the smallest values hold all inequalities neither is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.expr import Apply, Expr, Index, accesses
from dlc.ir.extent import IntExpr, has_value, int_expr, maximum, minimum, split_linear, substitute, variables
from dlc.ir.prove import constraints


@dataclass(frozen=True)
class StepDomain:
    """The domain of one step.

    Attributes:
        inequalities: integer expressions that must not be negative.
        opaque: the other conditions.
        texts: each inequality as it was written.
    """

    inequalities: tuple[IntExpr, ...] = ()
    opaque: tuple[Expr, ...] = ()
    texts: tuple[Expr, ...] = ()

    @property
    def everywhere(self) -> bool:
        return not self.inequalities and not self.opaque

    def least(self, extents: Mapping[str, IntExpr]) -> list[IntExpr] | None:
        """What each inequality is at least over `extents`; None when that is not known."""
        if self.opaque:
            return None
        found = [extreme(e, extents, greatest=False) for e in self.inequalities]
        return [e for e in found if e is not None] if None not in found else None

    def greatest(self, extents: Mapping[str, IntExpr]) -> list[IntExpr]:
        """What inequalities are at most over `extents`, as far as it is known."""
        found = [extreme(e, extents, greatest=True) for e in self.inequalities]
        return [e for e in found if e is not None]

    def bounds(self, extents: Mapping[str, IntExpr], loops: Mapping[str, IntExpr]) -> dict[str, IntExpr]:
        """For each of `loops` (name to extent), the end behind which no point of `extents` exists."""
        ends = dict(loops)
        for name, extent in loops.items():
            for e in self.inequalities:
                relaxed = extreme(e, {n: x for n, x in extents.items() if n != name}, greatest=True)
                parts = split_linear(relaxed, name) if relaxed is not None else None
                if parts is None or parts[0].const is None or parts[0].const >= 0:
                    continue
                ends[name] = minimum(ends[name], parts[1] // -parts[0].const + 1)
            if ends[name] != extent:
                ends[name] = maximum(ends[name], 0)
        return ends

    def mask(self, extents: Mapping[str, IntExpr], loops: Mapping[str, IntExpr]) -> Expr | None:
        """What is left to ask at each point when loops over one rank each run to `bounds`."""
        pairs = zip(self.inequalities, self.texts, strict=True)
        return conjunction((*(text for e, text in pairs if not is_end(e, extents, loops)), *self.opaque))

    def over(self, ranks: Mapping[str, IntExpr]) -> StepDomain:
        """Where a point exists for some index of `ranks` (name to extent); what is not known to exclude any is left out."""
        found = [extreme(e, ranks, greatest=True) for e in self.inequalities]
        kept = tuple(e for e in found if e is not None)
        opaque = tuple(e for e in self.opaque if e.variables.isdisjoint(ranks) and not any(accesses(e)))
        return StepDomain(kept, opaque, tuple(Apply("ge", (Index(e), Index(int_expr(0)))) for e in kept))


def step_domain(where: Expr | None, at: Mapping[str, IntExpr] | None = None) -> StepDomain:
    """The inequalities, with `at` for ranks, and other conditions of a `where`."""
    inequalities: list[IntExpr] = []
    texts: list[Expr] = []
    opaque: list[Expr] = []
    for part in conjuncts(where):
        found = constraints(part, None)
        if found and not any(has_value(e) for e in found):
            inequalities += [substitute(e, at or {}) for e in found]
            texts += [part] * len(found)
        else:
            opaque.append(part)
    return StepDomain(tuple(inequalities), tuple(opaque), tuple(texts))


def is_end(e: IntExpr, extents: Mapping[str, IntExpr], loops: Mapping[str, IntExpr]) -> bool:
    """Whether that `e` is not negative is the end of one of `loops`, whatever the rest of `extents`."""
    moving = variables(e) & extents.keys()
    name = next(iter(moving)) if len(moving) == 1 else None
    parts = split_linear(e, name) if name is not None and name in loops else None
    return parts is not None and parts[0].const is not None and parts[0].const < 0


def extreme(e: IntExpr, extents: Mapping[str, IntExpr], *, greatest: bool) -> IntExpr | None:
    """The greatest or least value of `e` over `0 <= name < extent`; None where it is not linear in them."""
    for name, extent in extents.items():
        if name not in variables(e):
            continue
        parts = split_linear(e, name)
        if parts is None or parts[0].const is None:
            return None
        slope, rest = parts[0].const, parts[1]
        e = rest + (extent - 1) * slope if (slope > 0) == greatest else rest
    return e


__all__ = ["StepDomain", "extreme", "is_end", "step_domain"]
