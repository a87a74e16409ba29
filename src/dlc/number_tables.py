"""The program whose launches give kernels the numbers that were taken out of their code (`codegen/shared_numbers.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlc.codegen.shared_numbers import NumberTable
from dlc.ir.einsum import TensorType
from dlc.ir.extent import int_expr
from dlc.ir.program import Kernel, Launch, Param, Program, Region, Stmt
from dlc.passes.rewrite import Names, map_regions


def with_tables(program: Program, tables: Mapping[str, Sequence[NumberTable]]) -> Program:
    """Each table is a constant, equal ones are one, and the last argument of the launch.

    A kernel's cascade has parameters for its tables that it does not read: its meaning is as before.

    Args:
        tables: by the kernel's name.
    """
    if not tables:
        return program
    names = Names(program)
    known: dict[tuple[str, bytes], str] = {}
    consts, data = list(program.consts), dict(program.data)

    def constant(t: NumberTable) -> str:
        key = (str(t.dtype), t.values.tobytes())
        if key not in known:
            known[key] = names.fresh("numbers")
            consts.append(Param(known[key], _type(t)))
            data[known[key]] = t.values
        return known[key]

    def launch(stmt: Stmt) -> Stmt:
        if not isinstance(stmt, Launch) or stmt.kernel not in tables:
            return stmt
        return replace(stmt, args=(*stmt.args, *map(constant, tables[stmt.kernel])))

    changed = map_regions(program, lambda region: Region(tuple(map(launch, region.body)), region.yields))
    kernels = tuple(_taking(k, tables[k.name]) if k.name in tables else k for k in program.kernels)
    return replace(changed, consts=tuple(consts), data=data, kernels=kernels)


def _taking(kernel: Kernel, tables: Sequence[NumberTable]) -> Kernel:
    params = tuple(Param(t.name, _type(t)) for t in tables)
    return replace(kernel, cascade=replace(kernel.cascade, params=(*kernel.cascade.params, *params)))


def _type(table: NumberTable) -> TensorType:
    return TensorType(table.dtype, (int_expr(table.values.size),))


__all__ = ["with_tables"]
