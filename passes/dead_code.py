"""Statements and constants that nothing needs go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlc.ir.program import Program
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import drop_dead


@dataclass(frozen=True)
class DeadCode(Pass):
    """Drop Einsums, scans, branches, library operations and constants whose results reach no output.

    What binds an extent stays, for binding checks its range.
    """

    name: ClassVar[str] = "dead-code"

    def apply(self, program: Program) -> Program:
        return drop_dead(program)
