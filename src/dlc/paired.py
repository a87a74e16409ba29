"""A ratio of two contenders' times, paired by round, and how sure it is.

Both had a turn in every round, within seconds of each other: what the machine did in that time is in both times, and not
in their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 4000
LEAST_ROUNDS = 3
"""With fewer rounds in which the machine was undisturbed for both, disturbed ones are taken, too."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A contender's turn in a round: the median of its calls, and whether the machine was undisturbed."""

    median: float
    fine: bool = True


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over rounds of one contender's time over another's, with a bootstrap 95 % interval.

    Attributes:
        ratio: the median of the paired ratios.
        low, high: bounds of the interval; equal to the ratio when there is one round.
        rounds: how many pairs there are.
        noisy: whether disturbed rounds are among them.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    noisy: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_ratio(own: Mapping[int, Turn], other: Mapping[int, Turn], seed: int = 0) -> Ratio | None:
    """The ratio of own over other; None when they never met in a round."""
    shared = sorted(own.keys() & other.keys())
    fine = [n for n in shared if own[n].fine and other[n].fine]
    rounds = fine if len(fine) >= min(LEAST_ROUNDS, len(shared)) else shared
    if not rounds:
        return None
    ratios = np.array([own[n].median / other[n].median for n in rounds])
    low, high = bootstrap(ratios, seed)
    return Ratio(float(np.median(ratios)), low, high, len(rounds), len(rounds) != len(fine))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the median of values drawn anew with replacement."""
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def geometric_mean(values: Iterable[float]) -> float:
    """Of at least one positive value."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def add_ratios(rows: Sequence[dict[str, Any]], turns: Mapping[str, Mapping[int, Turn]], name: str = "dlc") -> None:
    """Give each row of another contender `paired`: the time of `name` over its own."""
    for row in rows:
        if row["name"] != name and name in turns and row["name"] in turns:
            ratio = paired_ratio(turns[name], turns[row["name"]])
            if ratio is not None:
                row["paired"] = ratio.to_json()


__all__ = ["Ratio", "Turn", "add_ratios", "bootstrap", "geometric_mean", "paired_ratio"]
