"""Sums of products of two tensors: what register tiles are made for, read off an Einsum's expression."""

from __future__ import annotations

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr


def plain_access(e: Expr) -> Access | None:
    """The access that `e` is, up to a cast: no default, nothing gathered."""
    inner = e.arg if isinstance(e, Cast) else e
    return inner if isinstance(inner, Access) and not inner.children else None


def bordered_access(e: Expr) -> Access | None:
    """The access that `e` is, up to a cast, plain or 0 outside of its tensor; nothing gathered."""
    inner = e.arg if isinstance(e, Cast) else e
    if not isinstance(inner, Access) or inner.children not in ((), (inner.default,)):
        return None
    return inner if inner.default is None or isinstance(inner.default, Const) and inner.default.value == 0 else None


def bordered_operands(e: Expr) -> tuple[Expr, Expr] | None:
    """The two factors of `A[...] * B[...]`, one of which may be 0 outside of its tensor; None for another expression."""
    if not (isinstance(e, Apply) and e.op == "mul"):
        return None
    first, second = e.args
    if bordered_access(first) is None or bordered_access(second) is None:
        return None
    return None if plain_access(first) is None and plain_access(second) is None else (first, second)


def product_operands(e: Expr) -> tuple[Expr, Expr] | None:
    """The two factors of `A[...] * B[...]`, plain accesses up to a cast; None for another expression."""
    if not (isinstance(e, Apply) and e.op == "mul"):
        return None
    first, second = e.args
    return None if plain_access(first) is None or plain_access(second) is None else (first, second)


def factors(step: Einsum) -> tuple[Access, Access] | None:
    """The accesses of a sum of products of two; None for another step."""
    if step.reduce is None or step.reduce.op != "sum" or len(step.exprs) != 1:
        return None
    operands = product_operands(step.expr)
    if operands is None:
        return None
    first, second = (plain_access(o) for o in operands)
    return (first, second) if first is not None and second is not None else None


__all__ = ["bordered_access", "bordered_operands", "factors", "plain_access", "product_operands"]
