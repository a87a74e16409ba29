"""PyTorch's pytree structures as the trees of `dlc.frontend.imported`."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from dlc.frontend.errors import UnsupportedOperator


def tree_of(spec: Any, leaves: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    """The nesting `spec` with `leaves` in place of its leaves; `what` names it in errors."""
    return _build(spec, iter(leaves), what)


def _build(spec: Any, leaves: Iterator[dict[str, Any]], what: str) -> dict[str, Any]:
    if spec.is_leaf():
        return next(leaves)
    kind, context = spec.type, spec.context
    children = [_build(s, leaves, what) for s in spec.children()]
    if kind in (tuple, list):
        return {"t": kind.__name__, "c": children}
    if kind.__module__ == "torch.return_types":  # what sort, topk and max(dim) return
        return {"t": "namedtuple", "n": kind.__name__, "k": list(kind.__match_args__)[: len(children)], "c": children}
    if isinstance(kind, type) and issubclass(kind, tuple) and not hasattr(kind, "_fields") and kind.__name__ == "Size":
        return {"t": "tuple", "c": children}
    if kind in (dict, OrderedDict):
        return {"t": "dict", "k": list(context), "c": children}
    if kind is defaultdict:
        return {"t": "dict", "k": list(context[1]), "c": children}
    if kind.__name__ == "namedtuple":
        return {"t": "namedtuple", "n": context.__name__, "k": list(context._fields), "c": children}
    keys = _keys(context, len(children))
    if keys is not None:
        return {"t": "dict", "k": keys, "c": children}
    raise UnsupportedOperator(None, op=what, reason=f"it is nested in a {kind.__name__}, whose fields have no names")


def _keys(context: Any, count: int) -> list[str] | None:
    """Field names of a registered class (a dataclass, a ModelOutput): a list of them is its context, or is in it."""
    if isinstance(context, dict):
        context = list(context)
    if isinstance(context, (list, tuple)):
        if len(context) == count and all(isinstance(k, str) for k in context):
            return list(context)
        for part in context:
            found = _keys(part, count) if isinstance(part, (list, tuple)) and part else None
            if found is not None:
                return found
    return None


def leaf(index: int) -> dict[str, Any]:
    return {"t": "leaf", "i": index}


def literal(value: Any, what: str) -> dict[str, Any]:
    """A leaf that is no tensor."""
    if value is None:
        return {"t": "none"}
    if isinstance(value, (bool, int, float, str)):
        return {"t": "const", "v": value}
    raise UnsupportedOperator(None, op=what, reason=f"it is a {type(value).__name__}")
