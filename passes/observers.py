"""Who watches a pipeline: timing, printing, checking the numbers.  (Dumps to a folder are `dlc.dump.Dump`.)

An observer sees the programs and changes nothing; a pass does not know that it is watched.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dlc.errors import Internal

if TYPE_CHECKING:
    from dlc.ir.program import Program
    from dlc.passes.pipeline import Event, Pass, Pipeline


class PassChangedResult(Internal):
    """A pass changed what the program computes."""

    code = "DLC0307"
    template = "pass '{name}' changed output {output}: {difference}"


class Observer:
    """Does nothing; observers override what they need."""

    def start(self, pipeline: Pipeline, program: Program) -> None:
        """Before the first pass."""

    def before(self, index: int, step: Pass, program: Program) -> None:
        """Before each pass."""

    def after(self, event: Event) -> None:
        """After each pass, once its output is verified."""

    def failed(self, index: int, step: Pass, program: Program, error: BaseException) -> None:
        """A pass, its verification or another observer raised; `program` is the pass's input."""

    def finish(self, program: Program) -> None:
        """After the last pass."""


@dataclass
class Timer(Observer):
    """Wall time of each pass, in `rows` as (pass, seconds, whether it changed something)."""

    rows: list[tuple[str, float, bool]] = field(default_factory=list)

    def after(self, event: Event) -> None:
        self.rows.append((str(event.step), event.seconds, event.changed))

    @property
    def total(self) -> float:
        """Seconds of all passes."""
        return sum(seconds for _, seconds, _ in self.rows)

    def table(self) -> str:
        """The rows as text, slowest share visible."""
        lines = [f"{'ms':>9}  {'share':>5}  pass"]
        for name, seconds, changed in self.rows:
            share = seconds / self.total if self.total else 0.0
            lines.append(f"{seconds * 1e3:9.2f}  {share:5.0%}  {name}{'' if changed else '  (no change)'}")
        lines.append(f"{self.total * 1e3:9.2f}   100%  total")
        return "\n".join(lines)


class _Writer(Protocol):
    def write(self, text: str, /) -> object: ...


@dataclass
class PrintIR(Observer):
    """Print programs to a stream: `--print-ir-after-all | -change | -failure`, and `--print-ir-before/after PASS`.

    Attributes:
        when: `all` prints after every pass, `change` only a diff where one changed something, `failure` the input
            of a failed pass only, `none` nothing but the named ones.
        passes_before, passes_after: names of passes around which the program is always printed.
    """

    stream: _Writer
    when: Literal["all", "change", "failure", "none"] = "all"
    passes_before: Collection[str] = ()
    passes_after: Collection[str] = ()

    def before(self, index: int, step: Pass, program: Program) -> None:
        if step.name in self.passes_before:
            self._print(f"before pass {index + 1}, {step}", str(program))

    def after(self, event: Event) -> None:
        title = f"after pass {event.index + 1} of {event.count}, {event.step}"
        if self.when == "all" or event.step.name in self.passes_after:
            self._print(title if event.changed else f"{title} (no change)", str(event.after) if event.changed else "")
        elif self.when == "change" and event.changed:
            lines = difflib.unified_diff(
                str(event.before).splitlines(), str(event.after).splitlines(), "before", "after", lineterm=""
            )
            self._print(title, "\n".join(lines))

    def failed(self, index: int, step: Pass, program: Program, error: BaseException) -> None:
        if self.when != "none":
            self._print(f"input of pass {index + 1}, {step}, which failed", str(program))

    def _print(self, title: str, text: str) -> None:
        self.stream.write(f"// ---- {title} ----\n{text}\n" if text else f"// ---- {title} ----\n")


@dataclass
class NumericCheck(Observer):
    """Interpret the program after each pass on fixed data; the first pass that changes an output is named.

    Attributes:
        interpret: program -> its outputs, on data of the caller's choice.
        bound: program -> largest allowed |difference| per output, from the error model; without one, 1e-4 of the
            output's largest magnitude, for a pass may reassociate.
    """

    interpret: Callable[[Program], tuple[np.ndarray, ...]]
    bound: Callable[[Program], tuple[float | np.ndarray, ...]] | None = None
    _reference: tuple[np.ndarray, ...] = ()
    _bounds: tuple[float | np.ndarray, ...] = ()

    def start(self, pipeline: Pipeline, program: Program) -> None:
        self._reference = self.interpret(program)
        if self.bound is not None:
            self._bounds = self.bound(program)
        else:
            self._bounds = tuple(1e-4 * _largest(value) for value in self._reference)

    def after(self, event: Event) -> None:
        if not event.changed:
            return
        outputs = self.interpret(event.after)
        if len(outputs) != len(self._reference):
            counts = f"{len(outputs)} outputs instead of {len(self._reference)}"
            raise PassChangedResult(name=event.step.name, output="count", difference=counts)
        for number, (got, want, allowed) in enumerate(zip(outputs, self._reference, self._bounds, strict=True)):
            difference = difference_of(got, want, allowed)
            if difference is not None:
                raise PassChangedResult(name=event.step.name, output=number, difference=difference)


def difference_of(got: np.ndarray, want: np.ndarray, allowed: float | np.ndarray) -> str | None:
    """Where and how two arrays differ by more than allowed (NaN equals NaN, infinity itself), or None.

    Args:
        got, want: arrays of the same shape and type, else that is the difference.
        allowed: largest absolute difference, one for all or per element.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if got.size == 0:
        return None
    a, b = got, want
    if a.dtype == bool or a.dtype.kind in "iu":
        wrong = a != b
    else:
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            wrong = ~(same | (np.abs(a - b) <= allowed))
    if not wrong.any():
        return None
    where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    place = ", ".join(str(int(i)) for i in where)
    return f"[{place}] is {got[where]} instead of {want[where]} ({int(wrong.sum())} of {wrong.size} elements differ)"


def _largest(value: np.ndarray) -> float:
    if value.size == 0 or value.dtype.kind not in "f":
        return 0.0
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max()) if finite.size else 0.0
