"""The roofline: a kernel takes as long as its arithmetic or its memory traffic, whichever is longer.

Source: Williams, Waterman and Patterson, Roofline, CACM 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dlc.costmodel.interface import Costs, Peaks
from dlc.costmodel.work import cascade_work, step_operations
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.extent import evaluate
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
    env = {n if n.startswith("#") else "#" + n: v for n, v in (symbols or {}).items()}
    return int(evaluate(cascade_work(kernel.cascade).bytes, env)) <= capacity_bytes


def steps_time_s(
    kernels: Sequence[Sequence[Einsum]], sizes: Mapping[str, int], peaks: Peaks, streamed_bytes: int = 0
) -> float:
    """Seconds of steps that run as the given kernels one after the other, before there are kernels to ask about.

    What a kernel leaves is written to a cache and read from there by the next; the constants are streamed from memory by
    the kernel that takes longest.

    Args:
        sizes: values of the symbols in the steps' extents.
        streamed_bytes: of constants that no cache holds from one call to the next.
    """
    total, longest = 0.0, 0.0
    for steps in kernels:
        flops, special = (float(evaluate(n, sizes)) for n in step_operations(steps))
        compute = (flops - special) / peaks.flops_per_s + special / peaks.special_per_s
        last = steps[-1]
        left = float(evaluate(TensorType(last.dtype, tuple(r.extent for r in last.ranks)).elements, sizes))
        time = max(compute, 2 * left * last.dtype.bytes / peaks.cache_bytes_per_s)
        total, longest = total + time + peaks.launch_s, max(longest, time)
    return total + max(0.0, streamed_bytes / peaks.bytes_per_s - longest)
