"""What every cost model answers: how much work a kernel is, and how long it will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dlc.ir.extent import IntExpr, evaluate
from dlc.ir.program import Kernel


@dataclass(frozen=True, slots=True)
class Peaks:
    """Rates of the machine a kernel is to run on, all cores together.

    Attributes:
        flops_per_s: f32 operations, a fused multiply-add counted as two.
        bytes_per_s: memory traffic.
        special_per_s: divisions, roots and elementary functions, f32.
        launch_s: what a kernel costs that does nothing.
        cache_bytes_per_s: traffic of what one kernel leaves in the last cache for the next.
    """

    flops_per_s: float = 100e9
    bytes_per_s: float = 20e9
    special_per_s: float = 4e9
    launch_s: float = 1e-6
    cache_bytes_per_s: float = 60e9


def peaks_of_core(vector_bits: int, ghz: float = 2.5, gbytes_per_s: float = 20.0, cores: int = 1) -> Peaks:
    """Peaks of `cores` cores with two multiply-add units of `vector_bits` each, where nothing was measured: 8 flops of
    512-bit units per byte of memory, as on Zen 4 with both cores reading.
    """
    lanes = vector_bits // 32
    rate = lanes * ghz * 1e9 * cores
    # memory is shared: two cores draw less than twice what one does
    memory = gbytes_per_s * 1e9 * cores**0.7
    return Peaks(4 * rate, memory, rate / 5, cache_bytes_per_s=3 * memory)


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of a kernel as expressions over extent symbols, and the peaks it is measured against.

    Attributes:
        flops: arithmetic operations; a multiply-add counts two, an elementary function one.
        special: those among them that are divisions, roots or elementary functions.
        bytes: what is read and written at least once (elements that are read through a gather: at most once each).
    """

    flops: IntExpr
    special: IntExpr
    bytes: IntExpr
    peaks: Peaks

    def time_s(self, symbols: Mapping[str, int] | None = None) -> float:
        """Predicted seconds at values of the symbols (`b` or `#b`)."""
        env = {n if n.startswith("#") else "#" + n: v for n, v in (symbols or {}).items()}
        special = float(evaluate(self.special, env))
        compute = (float(evaluate(self.flops, env)) - special) / self.peaks.flops_per_s
        compute += special / self.peaks.special_per_s
        return max(compute, float(evaluate(self.bytes, env)) / self.peaks.bytes_per_s) + self.peaks.launch_s


class CostModel(Protocol):
    """A model: analytic or learned."""

    def predict(self, kernel: Kernel, peaks: Peaks) -> Costs:
        """The cost of one launch of `kernel`."""
        ...
