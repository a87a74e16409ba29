"""Which results take over an operand's buffer: where nothing else leads to it, and nowhere else."""

from __future__ import annotations

import re

import pytest

from dlc.ir.memory import AtBuffer
from dlc.ir.parser import parse_program
from dlc.passes.schedule import plan_memory

KERNELS = """
kernel over (i) inc(a: f32[8]) -> (y) {
  y[i:8]: f32 = a[i] + 1.0
}
kernel over (i) add(a: f32[8], b: f32[8]) -> (y) {
  y[i:8]: f32 = a[i] + b[i]
}
kernel over (i) both(a: f32[8], b: f32[8]) -> (y, z) {
  y[i:8]: f32 = a[i] + b[i]
  z[i:8]: f32 = a[i] - b[i]
}
kernel over (i) half(a: f32[8]) -> (y) {
  y[i:4]: f32 = a[i]
}
kernel over (i) twice(a: f32[4]) -> (y) {
  y[i:8]: f32 = a[i // 2]
}
kernel over () sign(a: f32[8]) -> (c) {
  c[]: bool = a[0] > 0.0
}
"""

CASES = {
    "not needed any more": ("(a) = launch inc(x)  (y) = launch inc(a)  (r) = launch inc(y)", {"y": "a"}, {"y": "a"}),
    "needed later": ("(a) = launch inc(x)  (y) = launch inc(a)  (r) = launch add(y, a)", {"y": "a"}, {}),
    "a chain": (
        "(a) = launch inc(x)  (b) = launch inc(a)  (c) = launch inc(b)  (r) = launch inc(c)",
        {"b": "a", "c": "b"},
        {"b": "a", "c": "a"},
    ),
    "not said to be possible": ("(a) = launch inc(x)  (y) = launch inc(a)  (r) = launch inc(y)", {}, {}),
    "given twice": ("(a) = launch inc(x)  (y) = launch add(a, a)  (r) = launch inc(y)", {"y": "a"}, {}),
    "the second of two": (
        "(a) = launch inc(x)  (b) = launch inc(x)  (y) = launch add(a, b)  (r) = launch add(y, a)",
        {"y": "ab"},
        {"y": "b"},
    ),
    "once for two results": (
        "(a) = launch inc(x)  (y, z) = launch both(a, x)  (r) = launch inc(z)",
        {"y": "a", "z": "a"},
        {"y": "a"},
    ),
    "of another size": (
        "(a) = launch inc(x)  (y) = launch half(a)  (b) = launch twice(y)  (r) = launch inc(b)",
        {"y": "a", "b": "y"},
        {},
    ),
    "an input": ("(y) = launch inc(x)  (r) = launch inc(y)", {"y": "x"}, {}),
    "into the caller's memory": ("(a) = launch inc(x)  (r) = launch inc(a)", {"r": "a"}, {}),
    "another name leads there": (
        """(a) = launch inc(x)  (c) = launch sign(x)
           if c { yield (a) } else { yield (x) } -> (s)
           (y) = launch inc(a)  (r) = launch add(y, s)""",
        {"y": "a"},
        {},
    ),
    "another name, for the last time": (
        """(a) = launch inc(x)  (c) = launch sign(x)
           if c { yield (a) } else { yield (x) } -> (s)
           (b) = launch inc(s)  (y) = launch inc(a)  (r) = launch add(y, b)""",
        {"y": "a"},
        {"y": "a"},
    ),
    "another name of the same launch": (
        """(a) = launch inc(x)  (c) = launch sign(x)
           if c { yield (a) } else { yield (x) } -> (s)
           (y) = launch add(a, s)  (r) = launch inc(y)""",
        {"y": "a"},
        {},
    ),
    "in every step of a loop": (
        """(a) = launch inc(x)
           for t in 0.. < 3 carry (h = x) {
             (y) = launch inc(a)  (z) = launch add(y, h)  yield (z)
           } -> (e)
           (r) = launch inc(e)""",
        {"y": "a", "z": "y"},
        {},
    ),
    "what has come back": (
        "(a) = launch inc(x)  spill a  (b) = launch inc(x)  fill a  (y) = launch add(a, b)  (r) = launch inc(y)",
        {"y": "a"},
        {"y": "a"},
    ),
}
"""Statements, by result the operands it may lie on (one letter each), and by result whose buffer it has."""


@pytest.mark.parametrize("name", CASES)
def test_takes_over(name: str) -> None:
    body, may, does = CASES[name]
    body = re.sub(r"  +|(?<=\{) | (?=\})", "\n  ", body)
    program = parse_program(f"{KERNELS}\nprogram p(x: f32[8]) -> (r) {{\n  {body}\n}}")
    plan = plan_memory(program, heirs={result: tuple(operands) for result, operands in may.items()})
    apart = plan_memory(program)

    def buffer(tensor: str) -> int | None:
        place = plan.places[tensor]
        return plan.stays.get(tensor, (place.index,))[-1] if isinstance(place, AtBuffer) else None

    found = {}
    for result in may:
        others = [o for o in "ab" if o in plan.places and o != result and buffer(o) is not None and buffer(o) == buffer(result)]
        found |= {result: others[0]} if others else {}
    assert found == does
    assert len(plan.buffers) == len(apart.buffers) - len(does)
