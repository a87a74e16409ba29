"""What example inputs say about the rows that layers multiply, found by interpreting the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlc.ir.dtype import F32
from dlc.ir.einsum import Einsum, Step, einsum
from dlc.ir.evaluate import Array, hold
from dlc.ir.expr import Cast, dtype_of
from dlc.ir.interpret import run_program
from dlc.ir.program import Program, tensor_types
from dlc.passes.quantize_weights import BadQuantisation, Calibration, QuantizeWeights, Search
from dlc.passes.rewrite import Names, map_regions
from dlc.passes.weight_layers import Linear


def calibrate(program: Program, options: QuantizeWeights, inputs: Sequence[Sequence[Any]]) -> dict[int, Calibration]:
    """The calibration of each linear layer by its place; layers that no input reaches have none.

    Args:
        inputs: one list of arrays per call, in the order of the program's parameters.
    """
    probes = _Probes(program, options)
    probing = map_regions(program, probes.region)
    moments = _Moments(frozenset(probes.names_of))
    for arrays in inputs:
        run_program(probing, arrays, program.data, observe=moments.observe)
    found = {}
    for place, name in enumerate(probes.names_of):
        if name in moments.sums:
            found[place] = Calibration(moments.sums[name], moments.greatest[name])
    return found


class _Probes(Search):
    """Puts before each layer an Einsum with the rows that it multiplies."""

    def __init__(self, program: Program, options: QuantizeWeights) -> None:
        super().__init__(program, options)
        self.names, self.types = Names(program), tensor_types(program)
        self.names_of: list[str] = []

    def linear(self, layer: Linear) -> Sequence[Step]:
        free = tuple(r for r in layer.step.ranks if r.name in layer.rows.variables)
        name = self.names.fresh(f"{layer.step.out}_rows")
        self.names_of.append(name)
        rows = layer.rows
        if dtype_of(rows, lambda t: self.types[t].dtype) != F32:
            rows = Cast(F32, rows)
        probe: Einsum = einsum(name, (*free, layer.term), rows, F32, loc=layer.step.loc)
        return [probe, layer.step]


@dataclass
class _Moments:
    wanted: frozenset[str]
    sums: dict[str, Array] = field(default_factory=dict)
    greatest: dict[str, Array] = field(default_factory=dict)

    def observe(self, name: str, value: Array) -> None:
        if name not in self.wanted or value.size == 0:
            return
        rows = hold(value, F32).reshape(-1, value.shape[-1])
        if not np.isfinite(rows).all():
            raise BadQuantisation(reason=f"a calibration input makes an infinity or NaN of what '{name.removesuffix('_rows')}' multiplies")
        most = np.abs(rows).max(axis=0)
        self.sums[name] = self.sums.get(name, 0.0) + rows.T @ rows
        self.greatest[name] = np.maximum(self.greatest[name], most) if name in self.greatest else most
