"""ATen's scaled dot product attention as a cascade: scores, mask, softmax, values.

A row that the mask hides completely gives 0, as ATen does on the CPU (its softmax alone would give NaN).
"""

from __future__ import annotations

import math
from typing import Any

from dlc.frontend.torch_context import Ctx, add, index_cmp, mul, op, select, wide_type
from dlc.frontend.torch_errors import TrainingMode
from dlc.frontend.torch_reduce import softmax_of
from dlc.ir.dtype import BOOL, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val


def attention(
    c: Ctx, query: Val, key: Val, value: Val, mask: Val | None, causal: bool, scale: Any, grouped: bool
) -> Val:
    """softmax(Q K' * scale + mask) V over T[..., L, E], T[..., S, E], T[..., S, F]; `grouped` shares key heads."""
    t = c.dtype
    w = wide_type(t)
    h = c.hint.replace("scaled_dot_product_attention", "attention")
    lead = list(query.shape[:-2])
    q, k, v = query, key, c.cast(value, w)
    groups = None
    if grouped and q.rank >= 3 and q.shape[-3] != k.shape[-3]:
        groups = q.shape[-3] // k.shape[-3]
        # Query heads as (key head, head in its group): the shared head needs no division.
        q = q.reshape([*lead[:-1], k.shape[-3], groups, *q.shape[-2:]])
        k, v = k.unsqueeze(k.rank - 2), v.unsqueeze(v.rank - 2)
        lead = [*lead[:-1], key.shape[-3], groups]
    n = len(lead)
    lead = list(c.broadcast(*(_leading(x, n) for x in (q, k, v))))
    factor = _scale(query.shape[-1], scale, w)

    letters = "abcdefgh"[:n]
    scores = c.b.contract(
        f"{h}_scores", f"{letters}le,{_shared(k, letters, lead)}me->{letters}lm", q, _trim(k, n, lead), dtype=w
    )
    full = [*lead, q.shape[-2], k.shape[-2]]
    bias = _mask(mask, groups, n, full)
    lowest = const(-math.inf, w)

    def element(*i: IntExpr) -> Expr:
        e = mul(scores.at(i), factor)
        if bias is not None:
            m = bias.at(i)
            e = select(m, e, lowest) if bias.dtype == BOOL else add(e, m if bias.dtype == w else Cast(w, m))
        return e

    # Keys after the query are no part of the sum: not terms of weight 0, which an infinite value would turn into NaN.
    where = (lambda *i: index_cmp("le", i[-1], i[-2])) if causal else None
    masked = c.b.compute(f"{h}_masked", full, element, w, where)
    weights = softmax_of(c, masked, n + 1, safe=bias is not None, hint=f"{h}_weights")
    # Stored with the heads inside the rows, [..., L, H, F]: most models join the heads next, which is then no copy.
    outer, heads = (letters[:1], letters[1:]) if n > 1 else (letters, "")
    spec = f"{letters}lm,{_shared(v, letters, lead)}mf->{outer}l{heads}f"
    rows = c.b.contract(h, spec, weights, _trim(v, n, lead), dtype=w)
    out = c.cast(rows.permute([0, *range(2, n + 1), 1, n + 1]) if heads else rows, t)
    return out.reshape([*query.shape[:-3], query.shape[-3], *out.shape[-2:]]) if groups is not None else out


def _leading(x: Val, n: int) -> Val:
    """The batch part of a shape, for broadcasting."""
    return Val(x.dtype, x.shape[: x.rank - 2], lambda i: const(0, x.dtype))


def _shared(x: Val, letters: str, lead: list[IntExpr]) -> str:
    """Labels of the batch dimensions that `x` really has; extents of 1 are shared."""
    own = letters[len(letters) - (x.rank - 2) :]
    return "".join(ch for d, ch in enumerate(own) if x.shape[d].const != 1 or lead[letters.index(ch)].const == 1)


def _trim(x: Val, n: int, lead: list[IntExpr]) -> Val:
    offset = n - (x.rank - 2)
    gone = [d for d in range(x.rank - 2) if x.shape[d].const == 1 and lead[offset + d].const != 1]
    return x.squeeze(*gone) if gone else x


def _mask(mask: Val | None, groups: Any, n: int, full: list[IntExpr]) -> Val | None:
    if mask is None:
        return None
    if groups is not None and mask.rank >= 3:
        heads = mask.shape[-3]
        split = [1, 1] if heads.const == 1 else [full[n - 2], groups]
        mask = mask.reshape([*mask.shape[:-3], *split, *mask.shape[-2:]])
    return mask.broadcast_to(full)


def _scale(width: IntExpr, scale: Any, w: DType) -> Expr:
    if scale is not None:
        return const(float(scale), w) if isinstance(scale, (int, float)) else scale.at(())
    if width.const is not None:
        return const(1 / math.sqrt(width.const) if width.const else math.inf, w)
    return apply("rsqrt", Cast(w, Index(width)))


@op("scaled_dot_product_attention")
def sdpa(c: Ctx, query: Val, key: Val, value: Val, attn_mask: Val | None = None, dropout_p: float = 0.0, is_causal: bool = False,
         *, scale: float | None = None, enable_gqa: bool = False) -> Val:  # fmt: skip
    if dropout_p:
        raise TrainingMode(c.loc, op=c.target)
    return attention(c, query, key, value, attn_mask, is_causal, scale, enable_gqa)


@op("_scaled_dot_product_flash_attention_for_cpu")
def flash(c: Ctx, query: Val, key: Val, value: Val, dropout_p: float = 0.0, is_causal: bool = False, *,
          attn_mask: Val | None = None, scale: float | None = None) -> tuple[Val, Val]:  # fmt: skip
    if dropout_p:
        raise TrainingMode(c.loc, op=c.target)
    _unread(c, 1)
    return attention(c, query, key, value, attn_mask, is_causal, scale, True), c.b.scalar(0, wide_type(c.dtype))


@op("_scaled_dot_product_attention_math")
def math_attention(c: Ctx, query: Val, key: Val, value: Val, attn_mask: Val | None = None, dropout_p: float = 0.0,
                   is_causal: bool = False, dropout_mask: Any = None, *, scale: float | None = None,
                   enable_gqa: bool = False) -> tuple[Val, Val]:  # fmt: skip
    if dropout_p:
        raise TrainingMode(c.loc, op=c.target)
    _unread(c, 1)
    return attention(c, query, key, value, attn_mask, is_causal, scale, enable_gqa), c.b.scalar(0, wide_type(c.dtype))


def _unread(c: Ctx, n: int) -> None:
    if any(u.op == "call_function" and u.args[1:] == (n,) and u.users for u in c.node.users):
        raise c.unsupported(f"its result {n} is read")


@op("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
def fast_path(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported(
        "PyTorch's fused encoder layer was traced; call torch.backends.mha.set_fastpath_enabled(False) before the export"
    )
