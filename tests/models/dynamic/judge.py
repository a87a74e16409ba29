"""A compiled network against eager in f64: the same path wherever eager is sure of it, and the same numbers along it.

    python -m tests.models.dynamic.judge --count 1000 --route dlc skipnet_rnn blockdrop

What a network decided is in what it returns: whole numbers (the exit, the blocks taken, the words) and shapes, beside its
floats. An input is *clear* if each of eager's decisions in f64 has a margin above `decisions.CLOSE`; for these a candidate must
return the same whole numbers and shapes, and floats within the tolerance of the largest of each output. An input that is
not clear may part from eager; if it does not, its floats count as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tests.ledger import Ledger, digest_of, source_digest
from tests.models.dynamic.decisions import CLOSE, Decision, recorded
from tests.models.dynamic.entry import Dynamic
from tests.models.dynamic.zoo import DYNAMIC
from torch import nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from dlc.frontend.imported import Imported
    from dlc.ir.program import Program

TOLERANCE = {"default": 1e-4, "strict": 1e-5}
LEAST_SHARE, MOST_CLOSE = 0.05, 1e-3
MOST_TENSORS = 20_000
"""Computed in one interpreted run; a faulty loop may have no end."""

Candidate = Callable[..., Any]


@dataclass(slots=True)
class Verdict:
    """What was found on `inputs` inputs.

    Attributes:
        decisions, close: of all inputs together, one for each margin; those with too small a one.
        parted: seeds of clear inputs on which the candidate took another path.
        parted_close: seeds of other inputs on which it did.
        error: the largest difference along equal paths, relative to the largest of the output.
        failed: the first failure of the candidate, and how many inputs failed.
        traced_wrong: on how many inputs a trace of the network is wrong; -1 if it was not asked for.
        traced_failed: why a trace could not be made.
        arms: by decision and value, the share of inputs that took it.
    """

    name: str
    route: str
    inputs: int
    decisions: int = 0
    close: int = 0
    parted: list[int] = field(default_factory=list)
    parted_close: list[int] = field(default_factory=list)
    error: float = 0.0
    failed: str = ""
    failures: int = 0
    traced_wrong: int = -1
    traced_failed: str = ""
    arms: dict[str, float] = field(default_factory=dict)

    @property
    def close_share(self) -> float:
        return self.close / max(self.decisions, 1)

    @property
    def rare(self) -> dict[str, float]:
        """Arms that too few inputs take."""
        return {arm: share for arm, share in self.arms.items() if share < LEAST_SHARE}

    def ok(self, tolerance: float) -> bool:
        close = self.close <= max(1, MOST_CLOSE * self.decisions)
        return not self.parted and not self.failed and self.error <= tolerance and close

    def __str__(self) -> str:
        parts = [
            f"{self.name} [{self.route}] {self.inputs} inputs: {len(self.parted)} parted, error {self.error:.1e}",
            f"{self.decisions} decisions, {self.close_share:.3%} close ({len(self.parted_close)} parted there)",
            f"{len(self.arms)} arms, the rarest {min(self.arms.values(), default=0):.1%}",
        ]
        if self.traced_wrong >= 0:
            parts.append(f"a trace is wrong on {self.traced_wrong}" + (f" ({self.traced_failed})" * bool(self.traced_failed)))
        if self.failed:
            parts.append(f"FAILED on {self.failures}: {self.failed}")
        return "; ".join(parts)


def judge(entry: Dynamic, candidate: Candidate, route: str, number: int, *, first: int = 0, trace: bool = False) -> Verdict:
    """Compare `candidate` with eager on the inputs of seeds `first` .. `first + number - 1`."""
    wide = entry.build().double()
    found = Verdict(entry.name, route, number)
    traced = _traced(entry, found) if trace else None
    taken: Counter[str] = Counter()
    for seed in range(first, first + number):
        inputs = entry.sample(seed)
        with recorded() as decisions:
            want = flat(wide(*(t.double() if t.is_floating_point() else t for t in inputs)))
        margins = {d.margin for d in decisions if np.isfinite(d.margin)}  # a choice that is used twice was made once
        close = sum(m <= CLOSE for m in margins)
        found.decisions, found.close = found.decisions + len(margins), found.close + close
        taken.update(arms(entry, decisions))
        if trace:
            found.traced_wrong += _wrong(traced, inputs, want)
        try:
            got = flat(_run(candidate, inputs))
        except Exception as error:  # noqa: BLE001 - it is what the candidate did
            found.failed = found.failed or f"seed {seed}: {type(error).__name__}: {error}"[:400]
            found.failures += 1
            continue
        if not same_path(want, got):
            (found.parted_close if close else found.parted).append(seed)
        else:
            found.error = max(found.error, difference(want, got))
    found.arms = {arm: n / number for arm, n in sorted(taken.items())}
    return found


def arms(entry: Dynamic, decisions: Sequence[Decision]) -> set[str]:
    """The arms that a run took: place (and turn, where each turn is a decision of its own) and value."""
    turns: Counter[str] = Counter()
    seen = set()
    for d in decisions:
        turn = "" if entry.by_place else f"#{turns[d.place]}"
        turns[d.place] += 1
        if isinstance(d.value, bool):
            seen.add(f"{d.place}{turn} {d.value}")
    return seen


def flat(result: Any) -> list[np.ndarray]:
    """All leaves of a result as arrays, Python numbers as arrays of rank 0."""
    return [x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in tree_leaves(result)]


def same_path(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> bool:
    """Equal shapes and equal whole numbers."""
    return len(want) == len(got) and all(
        w.shape == g.shape and (w.dtype.kind == "f") == (g.dtype.kind == "f") and (w.dtype.kind == "f" or np.array_equal(w, g))
        for w, g in zip(want, got)
    )


def difference(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """The largest difference of an output, relative to the largest of that output."""
    worst = 0.0
    for w, g in zip(want, got):
        if w.dtype.kind == "f" and w.size:
            finite = np.isfinite(w)
            if not np.array_equal(w[~finite], g[~finite], equal_nan=True):
                return np.inf
            apart = np.abs(w[finite] - g[finite]).max(initial=0.0)
            worst = max(worst, float(apart / max(np.abs(w[finite]).max(initial=0.0), 1e-30)) if apart else 0.0)
    return worst


def _run(candidate: Candidate, inputs: Sequence[torch.Tensor]) -> Any:
    with torch.no_grad():
        return candidate(*(t.clone() for t in inputs))


class Flat(nn.Module):
    """A module whose results are tensors, as tracing wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.as_tensor(x) for x in tree_leaves(self.model(*inputs)))


def _traced(entry: Dynamic, found: Verdict) -> Candidate | None:
    found.traced_wrong = 0
    try:
        with torch.no_grad():
            return torch.jit.trace(Flat(entry.build()), entry.sample(-1), check_trace=False)
    except Exception as error:  # noqa: BLE001 - then it is wrong on all
        found.traced_failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return None


def _wrong(traced: Candidate | None, inputs: Sequence[torch.Tensor], want: Sequence[np.ndarray]) -> bool:
    if traced is None:
        return True
    try:
        got = flat(_run(traced, inputs))
    except Exception:  # noqa: BLE001
        return True
    return not same_path(want, got) or difference(want, got) > TOLERANCE["default"]


# --- candidates ------------------------------------------------------------------------------------------------------


def eager(entry: Dynamic) -> Candidate:
    """The network itself in f32: what the rounding of f32 alone may change."""
    return entry.build()


def compiled(entry: Dynamic, **options: Any) -> Candidate:
    import dlc

    return dlc.compile(entry.build(), entry.sample(-1), **options)


def interpreted(entry: Dynamic) -> Candidate:
    """The imported program, interpreted: what the capture alone may change."""
    from dlc.importing import import_any

    return interpreter(import_any(entry.build(), entry.sample(-1), None, None, None))


def interpreter(imported: Imported, program: Program | None = None) -> Candidate:
    """The NumPy interpreter on an imported model, or on a program made from it, with the model's nesting of results."""
    from dlc.ir.interpret import run_program
    from dlc.runtime.tree import check_tree, unflattener

    given = imported.program if program is None else program
    nest = unflattener(check_tree(imported.out_tree, "out_tree", len(given.results), is_input=False))

    def run(*inputs: torch.Tensor) -> Any:
        computed = count()

        def observe(name: str, value: np.ndarray) -> None:
            if next(computed) >= MOST_TENSORS:
                raise TimeoutError("the program does not end")

        return nest(run_program(given, [t.numpy() for t in inputs], observe=observe))

    return run


ROUTES: dict[str, Callable[[Dynamic], Candidate]] = {
    "eager": eager,
    "dlc": compiled,
    "dlc-strict": lambda entry: compiled(entry, accuracy="strict"),
    "interpreted": interpreted,
}


def kept_verdict(entry: Dynamic, route: str, count: int, *, trace: bool, again: bool = False) -> Verdict:
    """The verdict from the ledger, or a new one that is put there."""
    ledger = Ledger("dynamic")
    folder = Path(__file__).parent
    sources = digest_of(*(f.read_bytes() for f in sorted(folder.glob("*.py")) if not f.name.startswith("test_")))
    digest = digest_of(sources, "" if route == "eager" else source_digest())
    key = ledger.key(f"{entry.name}/{route}/{count}" + "/traced" * trace, digest=digest, packages=("torch",))
    row = None if again else ledger.get(key)
    if row is not None:
        return Verdict(**row)
    try:
        found = judge(entry, ROUTES[route](entry), route, count, trace=trace)
    except Exception as error:  # noqa: BLE001 - refused or worse: a verdict as well
        found = Verdict(entry.name, route, 0, failed=f"{type(error).__name__}: {error}"[:600], failures=count)
    ledger.put(key, asdict(found))
    return found


def tolerance_of(route: str) -> float:
    return TOLERANCE["strict" if route.endswith("strict") else "default"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (all)")
    parser.add_argument("--route", choices=tuple(ROUTES), default="dlc")
    parser.add_argument("--count", type=int, default=1000, help="inputs")
    parser.add_argument("--no-trace", action="store_true", help="do not run a trace beside it")
    parser.add_argument("--again", action="store_true", help="run what the ledger already has")
    parser.add_argument("--json", type=Path, help="write the verdicts there")
    options = parser.parse_args(arguments)
    verdicts = []
    for name in options.names or DYNAMIC:
        verdicts.append(
            kept_verdict(DYNAMIC[name], options.route, options.count, trace=not options.no_trace, again=options.again)
        )
        print(verdicts[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(v) for v in verdicts], indent=1) + "\n")
    return 0 if all(v.ok(tolerance_of(options.route)) for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
