"""Which rank of a contraction is its rows, which its columns, and whether register tiles suit it.

    O[m, n] = sum(k) A[m, k] * B[k, n]

The *column* rank n has unit stride in B (inside a panel, where B is packed) and none in A; the *row* rank m moves A only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlc.codegen.grouped_dot import find_grouping
from dlc.codegen.point import Emitter, compute_type
from dlc.ir.expr import Access, Apply, Cast, Expr
from dlc.ir.extent import IntExpr, Mod, atoms, int_expr, split_linear, substitute, var
from dlc.ir.products import bordered_operands, plain_access

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering

_LONG = 7  # rows that make a tile worth having; among ranks this long the stride decides


@dataclass(frozen=True)
class Roles:
    """What each rank of a contraction is.

    Attributes:
        rows: the operand read by scalar broadcast; cols: the operand read by vectors.
        row, col: the ranks that move only one of them (`row` may be None).
        words: whether several terms of the sum share a 32-bit word of each operand.
    """

    rows: Expr
    cols: Expr
    row: str | None
    col: str
    words: bool = False


def find_contraction(low: KernelLowering) -> Roles | None:
    """The roles of the kernel's first step when it is a contraction that register tiles suit, else None."""
    first = low.steps[0]
    if first.reduce is None or first.reduce.op != "sum" or first.where is not None or len(first.exprs) != 1:
        return None
    if any(s.reduce is not None for s in low.steps[1:]):
        return None
    operands = bordered_operands(first.exprs[0])
    if operands is None:
        return None
    free = {r.name: r.extent for r in first.ranks}
    roles = choose_roles(low.em, operands, free, low.target.lanes)
    if roles is None or not (roles.words or compute_type(first.dtype).is_float):
        return None
    return roles


def access_of(e: Expr) -> Access:
    """The access of a factor, which may be cast."""
    inner = e.arg if isinstance(e, Cast) else e
    assert isinstance(inner, Access)
    return inner


def choose_roles(em: Emitter, operands: tuple[Expr, Expr], free: dict[str, IntExpr], lanes: int) -> Roles | None:
    """Pick the column rank (unit stride in one operand, absent from the other, long) and the row rank."""
    best: tuple[float, Roles] | None = None
    for cols, rows in (operands, operands[::-1]):
        a, b = access_of(rows), access_of(cols)
        if plain_access(cols) is None:
            continue
        if a.tensor not in em.storage or b.tensor not in em.storage:
            return None
        for name, extent in free.items():
            if name in a.variables or name not in b.variables or (extent.const or 16) < 2:
                continue
            words = find_grouping(em, a, b, name, lanes) if plain_access(rows) is not None else None
            if _panel_slope(em, b, name, extent) != (1 if words is None else words.size):
                continue
            row = _row_rank(em, a, b, free, name)
            score = float(min(extent.const or 64, 64)) + (32.0 if row is not None else 0.0)
            if best is None or score > best[0]:
                best = (score, Roles(rows, cols, row, name, words is not None))
    return best[1] if best is not None else None


def panel_width(index: tuple[IntExpr, ...], name: str) -> int | None:
    """NR when `name` is stored in panels (`B[n // NR, ..., n % NR]`)."""
    for i in index:
        for atom in atoms(i):
            if isinstance(atom, Mod) and atom.num == var(name) and atom.den.const is not None:
                return atom.den.const
    return None


def _panel_slope(em: Emitter, b: Access, name: str, extent: IntExpr) -> int | None:
    """Stride of `name` in `b` inside one panel."""
    width = panel_width(b.index, name)
    facts = em.facts
    index = b.index
    if width is not None:
        facts = em.facts.with_ranks({"panel": (extent + (width - 1)) // width, "column": int_expr(width)})
        index = tuple(facts.simplify(substitute(i, {name: var("panel") * width + var("column")})) for i in index)
        name = "column"
    parts = split_linear(facts.simplify(em.storage[b.tensor].offset(index)), name)
    return parts[0].const if parts is not None else None


def _row_rank(em: Emitter, a: Access, b: Access, free: dict[str, IntExpr], col: str) -> str | None:
    """The free rank that moves `a` linearly and not `b`: long enough for a tile, then the one with the least stride.

    Rows near each other share cache lines and pages: in an image the pixels of a line, not those of a column.
    """
    best: tuple[int, int, str] | None = None
    for name, extent in free.items():
        if name == col or name in b.variables or name not in a.variables or extent.const == 1:
            continue
        parts = split_linear(em.flat(em.storage[a.tensor], a.index), name)
        if parts is None:
            continue
        size = min(extent.const if extent.const is not None else _LONG, _LONG)
        stride = parts[0].const if parts[0].const is not None else 1 << 40
        if best is None or (size, -stride) > best[:2]:
            best = (size, -stride, name)
    return best[2] if best is not None else None


def factors_of(e: Expr) -> tuple[Expr, Expr]:
    """The two factors of a product."""
    assert isinstance(e, Apply)
    left, right = e.args
    return left, right


__all__ = ["Roles", "access_of", "choose_roles", "factors_of", "find_contraction", "panel_width"]
