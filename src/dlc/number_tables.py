"""The program whose launches give kernels the numbers that were taken out of their code (`codegen/shared_numbers.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlc.codegen.shared_numbers import NumberTable
from dlc.ir.einsum import TensorType
from dlc.ir.extent import int_expr
from dlc.ir.program import Kernel, Param, Program
from dlc.passes.rewrite import Relaunched, relaunch


def with_tables(program: Program, tables: Mapping[str, Sequence[NumberTable]]) -> Program:
    """Each table is a constant and a last argument of the launch.

    A kernel's cascade has parameters for its tables that it does not read: its meaning is as before.

    Args:
        tables: by the kernel's name.
    """
    if not tables:
        return program
    to = {name: Relaunched(name, tuple(("numbers", t.dtype, t.values) for t in given)) for name, given in tables.items()}
    return relaunch(program, to, tuple(_taking(k, tables.get(k.name, ())) for k in program.kernels))


def _taking(kernel: Kernel, tables: Sequence[NumberTable]) -> Kernel:
    params = tuple(Param(t.name, TensorType(t.dtype, (int_expr(t.values.size),))) for t in tables)
    return replace(kernel, cascade=replace(kernel.cascade, params=(*kernel.cascade.params, *params))) if params else kernel


__all__ = ["with_tables"]
