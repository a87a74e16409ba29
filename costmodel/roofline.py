"""The roofline: a kernel takes as long as its arithmetic or its memory traffic, whichever is longer.

Source: Williams, Waterman and Patterson, Roofline, CACM 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dlc.costmodel.interface import Costs, Peaks
from dlc.costmodel.work import cascade_work
from dlc.ir.program import Kernel


@dataclass(frozen=True, slots=True)
class Roofline:
    """The model as `CostModel`."""

    def predict(self, kernel: Kernel, peaks: Peaks) -> Costs:
        return predict(kernel, peaks)


@lru_cache(maxsize=1 << 12)
def predict(kernel: Kernel, peaks: Peaks = Peaks()) -> Costs:  # noqa: B008 (a frozen value)
    """Operations and bytes of one launch of `kernel`, and its time against `peaks`."""
    work = cascade_work(kernel.cascade)
    return Costs(work.flops, work.special, work.bytes, peaks)


def fits(kernel: Kernel, capacity_bytes: int, symbols: dict[str, int] | None = None) -> bool:
    """Whether all that `kernel` touches is within `capacity_bytes` (of a cache), at values of the symbols."""
    from dlc.ir.extent import evaluate

    env = {n if n.startswith("#") else "#" + n: v for n, v in (symbols or {}).items()}
    return int(evaluate(cascade_work(kernel.cascade).bytes, env)) <= capacity_bytes
