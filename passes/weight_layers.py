"""Where a program multiplies by a constant matrix, or reads rows of one that data chooses: what weights can be quantised in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dlc.ir.dtype import BF16, F16, F32
from dlc.ir.einsum import Einsum, Rank, TensorType
from dlc.ir.expr import Access, Apply, Cast, Expr, accesses
from dlc.ir.extent import has_value
from dlc.ir.facts import Facts
from dlc.passes.inline_pointwise import inline_access, is_pointwise

FLOATS = (F32, F16, BF16)
_SHOWN = 8  # names in an error


@dataclass(frozen=True)
class Linear:
    """`sum(k) rows[.., k] * W[n, k]` or `W[k, n]`, W a constant.

    Attributes:
        tensor: the constant.
        side: which factor of the product reads it.
        column, term: the ranks n and k.
        transposed: whether it is W[k, n].
    """

    step: Einsum
    tensor: str
    side: int
    column: Rank
    term: Rank
    transposed: bool

    @property
    def rows(self) -> Expr:
        """The other factor."""
        assert isinstance(self.step.expr, Apply)
        return self.step.expr.args[1 - self.side]


@dataclass(frozen=True)
class Gather:
    """Reads `E[I[b], d]` of a constant matrix, in an Einsum without reduction; all of the tensor `tensor` in `step` are such."""

    step: Einsum
    tensor: str


def find_linear(step: Einsum, weights: Mapping[str, TensorType], known: Mapping[str, Einsum]) -> Linear | None:
    """The step as a product with one of the constants `weights`; `known` are steps before it, through whose views it reads."""
    if step.reduce is None or step.reduce.op != "sum" or len(step.reduced) != 1 or step.where is not None:
        return None
    if step.write is not None or step.order is not None or step.pitch or step.dtype not in FLOATS:
        return None
    if not isinstance(step.expr, Apply) or step.expr.op != "mul":
        return None
    for side in (1, 0):
        read = _through_views(step.expr.args[side], step, weights, known)
        other = step.expr.args[1 - side]
        if read is not None and not any(a.tensor in weights for a in accesses(other)):
            found = _matrix(step, side, read, weights[read.tensor], other)
            if found is not None:
                return found
    return None


def _through_views(
    e: Expr, step: Einsum, weights: Mapping[str, TensorType], known: Mapping[str, Einsum]
) -> Access | None:
    if isinstance(e, Cast) and e.dtype in FLOATS:
        e = e.arg
    while isinstance(e, Access) and e.tensor in known and is_pointwise(known[e.tensor]):
        inner = inline_access(e, known[e.tensor], Facts(step.extents, {}))
        if not isinstance(inner, Access):
            return None
        e = inner
    return e if isinstance(e, Access) and e.tensor in weights and e.default is None else None


def _matrix(step: Einsum, side: int, read: Access, of: TensorType, other: Expr) -> Linear | None:
    (term,) = step.reduced
    names = [str(i) if i.is_var else "" for i in read.index]
    column = next((r for r in step.ranks if r.name in names and r.name not in other.variables), None)
    if column is None or term.name not in other.variables or sorted(names) != sorted([column.name, term.name]):
        return None
    extents = {column.name: column.extent, term.name: term.extent}
    if any(extents[n] != e for n, e in zip(names, of.shape, strict=True)):
        return None
    return Linear(step, read.tensor, side, column, term, names[0] == term.name)


def find_gather(step: Einsum, weights: Mapping[str, TensorType]) -> Gather | None:
    """The step as a read of rows of one of the constants `weights`."""
    if not is_pointwise(step):
        return None
    reads = [a for a in step.accesses() if a.tensor in weights]
    tensors = {a.tensor for a in reads}
    if len(tensors) != 1 or any(a.default is not None for a in reads):
        return None
    if any(not has_value(a.index[0]) or has_value(a.index[1]) for a in reads):
        return None
    return Gather(step, reads[0].tensor)


def skipped(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern matches the name: a whole part of it between dots and underscores, or all of it with wildcards."""
    return any(
        fnmatchcase(name, p) or re.search(rf"(^|[._/]){re.escape(p)}($|[._/])", name) is not None for p in patterns
    )


def unused_skip(names: Sequence[str], patterns: tuple[str, ...]) -> str | None:
    """The first pattern that matches none of the names."""
    return next((p for p in patterns if not any(skipped(name, (p,)) for name in names)), None)


def near_names(pattern: str, names: Iterable[str]) -> str:
    """What of the names, whole or in parts, may have been meant by a pattern; all of a few where nothing is like it."""
    names = list(names)
    parts = dict.fromkeys(part for name in names for part in _runs_of_parts(name))
    near = difflib.get_close_matches(pattern, parts, 3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"what can be quantised is {shown}" if names else "nothing in it can be quantised"


def _runs_of_parts(name: str) -> list[str]:
    """The name and what `skipped` takes for whole parts of it."""
    borders = [-1, *(m.start() for m in re.finditer(r"[._/]", name)), len(name)]
    return [name[a + 1 : b] for n, a in enumerate(borders) for b in borders[n + 1 :] if b > a + 1]
