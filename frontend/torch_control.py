"""PyTorch's higher-order operators: branches and loops become those of the program, wrappers are imported in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlc.frontend.torch_context import Ctx
from dlc.ir.dtype import BOOL
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val

CONTROL: dict[str, Callable[..., Any]] = {}
"""Definitions by the operator's name."""


def control(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        CONTROL.update(dict.fromkeys(names, handler))
        return handler

    return register


@control("wrap_with_set_grad_enabled")
def set_grad_enabled(c: Ctx, enabled: bool, module: Any, *args: Any) -> Any:
    return list(c.graph.inner(module, args))


@control("wrap_with_autocast")
def autocast(c: Ctx, device: str, dtype: Any, enabled: bool, cache: Any, module: Any, *args: Any) -> Any:
    return list(c.graph.inner(module, args, autocast=bool(enabled)))


@control("wrap", "invoke_subgraph", "tag_activation_checkpoint", "hints_wrapper")
def wrapped(c: Ctx, module: Any, *args: Any, **_: Any) -> Any:
    if not isinstance(module, torch.fx.GraphModule):
        raise c.unsupported("its sub-graph is not a GraphModule")
    rest = args[1:] if args and isinstance(args[0], str) else args
    flat = rest[0] if len(rest) == 1 and isinstance(rest[0], list) else rest
    return list(c.graph.inner(module, flat))


def _condition(c: Ctx, value: Any) -> Val:
    """A predicate as a boolean of one element."""
    if isinstance(value, Val):
        return c.cast(value, BOOL)
    return c.b.scalar(bool(value), BOOL)


def _tensors(c: Ctx, values: Sequence[Any], metas: Sequence[Any]) -> list[Val]:
    """What a sub-graph gives, as tensors of the traced types."""
    found = []
    for v, m in zip(values, metas, strict=True):
        if isinstance(m, torch.Tensor):
            found.append(c.cast(c.val(v), c.ir(m.dtype)))
        else:
            raise c.unsupported("it gives a number that depends on the branch")
    return found


@control("cond")
def cond(c: Ctx, predicate: Any, true_module: Any, false_module: Any, operands: Sequence[Any] = ()) -> Any:
    metas = list(c.meta)
    graph, loc, target, node = c.graph, c.loc, c.target, c.node

    def arm(module: Any) -> Callable[[], list[Val]]:
        def build() -> list[Val]:
            values = graph.inner(module, operands)
            c.loc, c.target, c.node, c.meta = loc, target, node, metas
            # Both arms yield tensors of one type each; a view takes that shape by being computed.
            return [v if v.name is not None else c.b.materialize(v, c.hint) for v in _tensors(c, values, metas)]

        return build

    return list(c.b.if_(_condition(c, predicate), arm(true_module), arm(false_module), c.hint))


@control("while_loop")
def while_loop(c: Ctx, cond_module: Any, body_module: Any, carried: Sequence[Any], extra: Sequence[Any] = ()) -> Any:
    graph, loc, target, node, metas = c.graph, c.loc, c.target, c.node, list(c.meta)
    if any(not isinstance(v, Val) and not isinstance(v, (int, IntExpr)) for v in carried):
        raise c.unsupported("it carries something that is neither a tensor nor an integer")
    if any(not isinstance(m, torch.Tensor) for m in metas):
        raise c.unsupported("it carries an integer; make it a tensor of rank 0")
    starts = [c.val(v) for v in carried]
    first = _condition(c, graph.inner(cond_module, [*starts, *extra])[0])

    def body(_: Val, states: tuple[Val, ...]) -> tuple[Val, Sequence[Val], Sequence[Val]]:
        values = graph.inner(body_module, [*states, *extra])
        c.loc, c.target, c.node, c.meta = loc, target, node, metas
        nexts = [c.b.materialize(v) for v in _tensors(c, values, metas)]
        again = _condition(c, graph.inner(cond_module, [*nexts, *extra])[0])
        return again, nexts, ()

    finals, _ = c.b.loop(c.hint, starts, body, cond=first)
    return list(finals)


@control("scan")
def scan(c: Ctx, module: Any, init: Sequence[Val], xs: Sequence[Val], extra: Sequence[Any] = (), **_: Any) -> Any:
    """`scan` of higher-order operators: the leading dimension of `xs` is stepped."""
    graph = c.graph
    n = len(init)

    def body(t: IntExpr, states: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        values = graph.inner(module, [*states, *(x.select(0, t) for x in xs), *extra])
        return values[:n], values[n:]

    finals, stacked = c.b.scan(c.hint, xs[0].shape[0], init, body)
    return [*finals, *stacked]


@control("auto_functionalized", "auto_functionalized_v2")
def functionalized(c: Ctx, *_: Any, **__: Any) -> Any:
    raise c.unsupported("custom operators have no definition here")
