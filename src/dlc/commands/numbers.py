"""Random data for programs of the IR, and the interpreter on it: what `opt --check-numbers` compares with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.feeds import random_inputs, symbol_values

if TYPE_CHECKING:
    from dlc.ir.program import Param, Program, Symbol


def shapes_of(params: Sequence[Param], symbols: Sequence[Symbol]) -> dict[str, Any]:
    """Parameters in the form of a manifest's `inputs` and `symbols`, for `dlc.feeds`."""
    from dlc.ir.extent import show_extent, variables

    inputs = [
        {"name": p.name, "dtype": str(p.type.dtype), "shape": [show_extent(e) for e in p.type.shape]} for p in params
    ]
    facts: dict[str, dict[str, Any]] = {
        s.name: {"name": s.name, "lo": s.lo, "hi": s.hi, "divisor": s.divisor} for s in symbols
    }
    for name in (v.removeprefix("#") for p in params for e in p.type.shape for v in sorted(variables(e))):
        facts.setdefault(name, {"name": name})  # nothing is known of it
    return {"inputs": inputs, "symbols": list(facts.values())}


def random_arrays(
    params: Sequence[Param], symbols: Sequence[Symbol], given: Sequence[str] = (), seed: int = 0
) -> list[np.ndarray]:
    """A random array for each parameter; equal for equal seeds."""
    manifest = shapes_of(params, symbols)
    return random_inputs(manifest, symbols=symbol_values(manifest, given), seed=seed)


def with_data(program: Program, seed: int = 0) -> Program:
    """The program with random arrays for the constants it has no bytes of (a dump without its constants)."""
    missing = [c for c in program.consts if c.name not in program.data]
    if not missing:
        return program
    arrays = random_arrays(missing, program.symbols, seed=seed + 1)
    return replace(program, data={**program.data, **dict(zip((c.name for c in missing), arrays))})


def interpreter_on_random_data(program: Program, seed: int = 0) -> Callable[[Program], tuple[np.ndarray, ...]]:
    """A function that interprets a rewritten form of `program` on the inputs that fit the original."""
    from dlc.ir.interpret import run_program

    data = with_data(program, seed).data
    inputs = random_arrays(program.params, program.symbols, seed=seed)

    def interpret(rewritten: Program) -> tuple[np.ndarray, ...]:
        return run_program(rewritten, inputs, {**data, **rewritten.data})

    return interpret
