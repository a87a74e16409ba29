"""What a cascade costs at given extents: on a spatial target (`dlc.costmodel.spatial`), or on a CPU by its roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dlc.codegen.target import TARGETS
from dlc.codegen.target import Target as CpuTarget
from dlc.costmodel.interface import Costs, peaks_of_core
from dlc.costmodel.spatial.cascade import symbol_values
from dlc.costmodel.spatial.model import SpatialCost, predict_spatial
from dlc.costmodel.spatial.target import Target
from dlc.costmodel.work import cascade_work
from dlc.ir.einsum import Einsum, Scan, Step, TensorType
from dlc.ir.extent import IntExpr, evaluate, int_expr
from dlc.ir.pass_count import passes as count
from dlc.ir.program import Cascade, Param, cascade_types, program_of
from dlc.passes.pipeline import Pipeline
from dlc.passes.registry import passes


@dataclass(frozen=True, slots=True)
class CpuStep:
    """One Einsum on a CPU: its own operations, and its own operands and result through memory."""

    name: str
    flops: int
    bytes: int
    time_s: float


@dataclass(frozen=True, slots=True)
class CpuCost:
    """The roofline of a cascade.

    Attributes:
        passes: over the rank that has most of them.
        traffic_bytes: parameters and results once, as a fused kernel needs at least.
        latency_s: of the whole as one kernel that computes at the peak or moves `traffic_bytes`.
        unfused_s: of the Einsums one by one.
    """

    target: str
    passes: int
    flops: int
    traffic_bytes: int
    latency_s: float
    unfused_s: float
    einsums: tuple[CpuStep, ...]


def is_cpu(name: str) -> bool:
    """Whether a --target names a CPU level, and not a spatial target."""
    return name.partition("+")[0] in {"", "host", "native", *TARGETS}


def fewer_passes(cascade: Cascade) -> Cascade:
    """The cascade in its running form, where algebra finds one; a target's mapping has its own blocks, so it takes any."""
    done = Pipeline.parse("defer-factors,running-reduction{block=1}", passes()).run(program_of(cascade))
    steps = tuple(s for s in done.body.body if isinstance(s, (Einsum, Scan)))
    return replace(cascade, steps=steps, results=done.results)


def spatial_cost(
    cascade: Cascade,
    target: Target,
    extents: Mapping[str, int],
    *,
    traffic_bytes: float | None = None,
    as_published: bool = False,
) -> SpatialCost:
    """The cost of a cascade on a spatial target; from one of more passes than the mapping covers fewer are derived first."""
    covers = target.mapping.passes
    if covers is not None and count(cascade) > covers:
        cascade = fewer_passes(cascade)
    return predict_spatial(cascade, target, extents, traffic_bytes=traffic_bytes, as_published=as_published)


def cpu_cost(cascade: Cascade, target: CpuTarget, extents: Mapping[str, int], cores: int = 1) -> CpuCost:
    """The roofline of a cascade at values of its symbols, on `cores` cores.

    Raises:
        BadExtents: a symbol without a value, or a value without a symbol.
    """
    env = symbol_values(cascade, extents)
    peaks = peaks_of_core(target.vector_bits, cores=cores)
    types = cascade_types(cascade)
    steps = []
    for step, times in _einsums(cascade.steps, int_expr(1)):
        work = cascade_work(_alone(cascade, step, types))
        costs = Costs(work.flops * times, work.special * times, work.bytes * times, peaks)
        flops, moved = int(evaluate(costs.flops, env)), int(evaluate(costs.bytes, env))
        steps.append(CpuStep(step.out, flops, moved, costs.time_s(extents)))
    work = cascade_work(cascade)
    whole = Costs(work.flops, work.special, work.bytes, peaks)
    return CpuCost(
        target=target.name,
        passes=count(cascade),
        flops=int(evaluate(work.flops, env)),
        traffic_bytes=int(evaluate(work.bytes, env)),
        latency_s=whole.time_s(extents),
        unfused_s=sum(s.time_s for s in steps),
        einsums=tuple(steps),
    )


def _alone(cascade: Cascade, step: Einsum, types: Mapping[str, TensorType]) -> Cascade:
    """A cascade of one Einsum, its operands as parameters."""
    params = tuple(Param(name, types[name]) for name in step.reads)
    return Cascade(step.out, params, (step,), step.outs, cascade.symbols)


def _einsums(steps: tuple[Step, ...], times: IntExpr) -> Iterator[tuple[Einsum, IntExpr]]:
    for step in steps:
        if isinstance(step, Scan):
            yield from _einsums(step.body, times * step.rank.extent)
        else:
            yield step, times
