"""Operands that a kernel's result may lie on when kernels are atomic: each of its elements is made of the operand's element there.

What reads the operand is one step alone, the one that makes the result, and only at the point it makes.  Then a machine that
computes the step in any order, element by element, has read each element of the operand for the last time when it writes there.
(A compiled kernel computes in blocks; `codegen/in_place.py` says of one what it may do.)
"""

from __future__ import annotations

from dlc.ir.einsum import Einsum, TensorType, result_types
from dlc.ir.expr import Access
from dlc.ir.extent import IntExpr, var
from dlc.ir.program import Kernel


def in_place(kernel: Kernel) -> tuple[tuple[int, int], ...]:
    """Numbers of parameters and of results that may lie where they do."""
    cascade = kernel.cascade
    steps = cascade.steps
    if not all(isinstance(step, Einsum) and step.write is None for step in steps):
        return ()
    found = []
    for result, name in enumerate(cascade.results):
        for number, param in enumerate(cascade.params):
            reads = [(step, a) for step in steps if isinstance(step, Einsum) for a in step.accesses() if a.tensor == param.name]
            if reads and all(_at_its_point(step, name, a, param.type) for step, a in reads):
                found.append((number, result))
    return tuple(found)


def _at_its_point(step: Einsum, name: str, access: Access, of: TensorType) -> bool:
    """Whether a step makes `name`, and reads the element that lies where the result's does, in memory of one size."""
    if name not in step.outs:
        return False
    made = result_types(step)[step.outs.index(name)]
    points = tuple(var(r.name) for r in step.ranks)
    return _same_size(made, of) and _places(points, made) == _places(access.index, of)


def _same_size(a: TensorType, b: TensorType) -> bool:
    return (a.dtype.bytes, a.stored) == (b.dtype.bytes, b.stored)


def _places(index: tuple[IntExpr, ...], of: TensorType) -> set[tuple[IntExpr, IntExpr]]:
    """What decides the address: each index with its stride, where there is more than one."""
    return {(i, stride) for i, stride, extent in zip(index, of.strides, of.shape, strict=True) if extent.const != 1}
