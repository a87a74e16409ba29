"""Extents of 0 and 1: torch.export traces as if there were none, and lets its program be called with them nevertheless.

    if x.shape[0] == 1:     # traced as False, for every batch

What Python code asks of sizes while a model is traced is noted where 0 or 1 would have another answer (`asked_of_sizes`). Where
dynamic_shapes allows that extent, eager and the exported program are run with it (`refuse_small`): where they part, calls
with it are refused.
"""

from __future__ import annotations

import dis
import functools
import itertools
import operator
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._sympy.value_ranges import ValueRanges

from dlc.frontend.torch_compared import same_results

Question = tuple[Any, Any, Any, Callable[[Any, Any], Any]]
"""The ShapeEnv, what is compared with what, and how."""


class Asked:
    """What code asks of sizes while it is traced."""

    def __init__(self) -> None:
        self.questions: dict[Question, None] = {}
        self.truths_kept = False  # an answer went somewhere else than into a branch

    def small(self) -> Mapping[Any, set[int]]:
        """By symbol: of 0 and 1, those for which a question has another answer than it had in the trace."""
        found: defaultdict[Any, set[int]] = defaultdict(set)
        for question in self.questions:
            for some, small in _otherwise(*question):
                for s in some:
                    found[s].add(small)
        return found


_TORCH = str(Path(torch.__file__).parent)
_MODULES = str(Path(torch.__file__).parent / "nn")
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    f"__{name}__": getattr(operator, name) for name in ("lt", "le", "gt", "ge")
} | {"__eq__": sympy.Eq, "__ne__": sympy.Ne}
_SMALL = (0, 1)


@contextmanager
def asked_of_sizes() -> Iterator[Asked]:
    """Collects what is asked of sizes outside PyTorch's own operators, whose results do not depend on the answer."""
    asked = Asked()

    def noting(kind: type, name: str, compare: Callable[[Any, Any], Any]) -> Any:
        plain = getattr(kind, name)

        def noted(self: Any, *other: Any) -> Any:
            frame = sys._getframe(1)
            if _of_the_model(frame.f_code.co_filename):
                _note(asked, self, other[0] if other else 0, compare)
                asked.truths_kept |= bool(other) and not _branches(frame)
            return plain(self, *other)

        return mock.patch.object(kind, name, noted)

    with ExitStack() as stack:
        for kind in (torch.SymInt, torch.SymFloat):
            for name, compare in _COMPARISONS.items():
                stack.enter_context(noting(kind, name, compare))
        stack.enter_context(noting(torch.SymInt, "__bool__", sympy.Ne))
        stack.enter_context(mock.patch.object(FakeTensor, "is_contiguous", _asking_for_layout(asked), create=True))
        yield asked


def _asking_for_layout(asked: Asked) -> Any:
    """`x.is_contiguous()`, which one row may be where several are not."""

    def is_contiguous(self: FakeTensor, *args: Any, **kwargs: Any) -> bool:
        if _of_the_model(sys._getframe(1).f_code.co_filename):
            for extent in self.shape:
                if isinstance(extent, torch.SymInt):
                    _note(asked, extent, 1, sympy.Eq)
        return torch.Tensor.is_contiguous(self, *args, **kwargs)

    return is_contiguous


@functools.cache
def _of_the_model(file: str) -> bool:
    return not file.startswith(_TORCH) or file.startswith(_MODULES)


def _branches(frame: types.FrameType) -> bool:
    """Whether what a frame is computing is the condition of a branch."""
    later = (dis.opname[op] for op in frame.f_code.co_code[frame.f_lasti + 2 :: 2])
    return next((name for name in later if name != "CACHE"), "").startswith(("POP_JUMP", "JUMP_IF"))


def _note(asked: Asked, a: Any, b: Any, compare: Callable[[Any, Any], Any]) -> None:
    left, right = (getattr(v, "node", None) and v.node.expr or v for v in (a, b))
    with suppress(TypeError):  # not hashable: no number
        asked.questions[a.node.shape_env, left, right, compare] = None


def _otherwise(env: Any, left: Any, right: Any, compare: Callable[[Any, Any], Any]) -> Iterator[tuple[set[Any], int]]:
    """Which symbols at 0 or 1 give another answer; a symbol may have turned out to be computed of another since it was asked for."""
    sides = [env.replace(v) if isinstance(v, sympy.Basic) else v for v in (left, right)]
    free = set().union(*(v.free_symbols for v in sides if isinstance(v, sympy.Basic)))
    held = env.backed_var_to_val
    if not free or not free <= held.keys():
        return

    def answer(sizes: Mapping[Any, int]) -> bool | None:
        with suppress(TypeError, ValueError, ZeroDivisionError):
            return bool(compare(*(v.subs({**held, **sizes}) if isinstance(v, sympy.Basic) else v for v in sides)))
        return None

    traced = answer({})
    for small in _SMALL:
        for some in ({s} for s in free) if len(free) == 1 else (*({s} for s in free), free):
            if answer(dict.fromkeys(some, small)) != traced:
                yield some, small


def allow_small(ranges: dict[Any, Any], dims: Mapping[Any, Any], asked: Asked) -> None:
    """An extent of 1 in a recorded program, which begins with 2: where its Dim allows it, and nothing asked for it."""
    small = asked.small()
    for s, dim in dims.items():
        if s in ranges and 1 not in small.get(s, ()) and dim.min < ranges[s].lower == 2:
            ranges[s] = ValueRanges(1, ranges[s].upper)


def refuse_small(
    exported: torch.export.ExportedProgram, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], asked: Asked
) -> None:
    """No extents of 0 or 1 where something `asked` for them and an exported program does not do what the model does.

    The program's operators are fixed, as are the model's for given sizes, so that the examples, cut to a size, tell them apart.
    """
    ranges = exported.range_constraints
    allowed = {s: sorted(n for n in small if s in ranges and ranges[s].lower <= n) for s, small in asked.small().items()}
    still = []
    for s, n in [(s, n) for s, small in allowed.items() for n in small]:
        if not same_results(exported, model, args, kwargs, {s: n}):
            _begin(ranges, s, n + 1)
        elif n == 1:
            still.append(s)
    for pair in itertools.combinations(still, 2):
        if not same_results(exported, model, args, kwargs, dict.fromkeys(pair, 1)):
            for s in pair:
                _begin(ranges, s, 2)


def _begin(ranges: dict[Any, Any], symbol: Any, least: int) -> None:
    upper = ranges[symbol].upper
    ranges[symbol] = ValueRanges(least, max(upper, sympy.Integer(least)))


__all__ = ["Asked", "allow_small", "asked_of_sizes", "refuse_small"]
