"""Models that index into an axis need it to have elements: say so as facts of the input symbols, and only then."""

from __future__ import annotations

from dataclasses import replace

from dlc.ir.errors import NotInBounds
from dlc.ir.program import Program
from dlc.ir.verify import verify


def assume_nonempty(program: Program) -> Program:
    """The program with input symbols at least 1 where some read is in bounds only then.

    `hidden[:, 0]` of a model with a symbolic length reads outside for length 0, where the reference fails as well; with the fact
    the read is proven, and a call with length 0 is refused by name. A model without such reads keeps accepting empty
    inputs. Used on what an importer made, before the first pass.
    """
    try:
        verify(program)
    except NotInBounds:
        symbols = tuple(replace(s, lo=max(s.lo, 1)) for s in program.symbols)
        return replace(program, symbols=symbols) if symbols != program.symbols else program
    return program
