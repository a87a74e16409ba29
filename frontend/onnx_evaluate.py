"""Constants that only a computation gives: the statements behind a value, run by the IR's interpreter at import."""

from __future__ import annotations

from dlc.errors import DlcError
from dlc.frontend.onnx_value import Array
from dlc.ir.builder import Builder
from dlc.ir.extent import variables
from dlc.ir.program import Program, Region, Stmt
from dlc.ir.view import Val

MAX_ELEMENTS = 1 << 22


def evaluate_constant(b: Builder, val: Val) -> Array | None:
    """The elements of `val`, which depends on no input; None when it cannot be computed here."""
    if val.elements.const is None or val.elements.const > MAX_ELEMENTS:
        return None
    from dlc.ir.interpret import run_program

    own = b.materialize(val, "known")
    assert own.name is not None
    needed = {own.name}
    chosen: list[Stmt] = []
    statements = [s for block in b._blocks for s in block]
    for stmt in reversed(statements):
        if needed & set(stmt.outs):
            chosen.append(stmt)
            needed |= set(stmt.reads)
    if any(p.name in needed for p in b.params):
        return None
    consts = tuple(p for p in b.consts if p.name in needed)
    if any(variables(e) for p in consts for e in p.type.shape):
        return None
    data = {p.name: b.data[p.name] for p in consts}
    program = Program("known", (), Region(tuple(reversed(chosen)), (own.name,)), consts, (), (), data)
    try:
        return run_program(program, [])[0]
    except (DlcError, KeyError, LookupError):  # it depends on an extent after all
        return None


