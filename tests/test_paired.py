"""Ratios paired by round: what they are of, which rounds count, how wide the interval is."""

from __future__ import annotations

import numpy as np
import pytest

from dlc.paired import Turn, add_ratios, bootstrap, geometric_mean, paired_ratio


def turns(*medians: float, slow: tuple[int, ...] = ()) -> dict[int, Turn]:
    return {n: Turn(m, n not in slow) for n, m in enumerate(medians)}


def test_drift_of_the_machine_cancels() -> None:
    drift = [1.0, 1.5, 2.0, 1.2, 3.0]
    ratio = paired_ratio(turns(*(0.9 * d for d in drift)), turns(*drift))
    assert ratio is not None and not ratio.noisy and ratio.rounds == 5
    assert ratio.ratio == pytest.approx(0.9)
    assert ratio.high - ratio.low < 1e-9


def test_disturbed_rounds_count_only_where_there_are_too_few_others() -> None:
    calm = turns(1.0, 1.0, 1.0, 1.0)
    ratio = paired_ratio(turns(0.9, 0.9, 0.9, 9.0, slow=(3,)), calm)
    assert ratio is not None and (ratio.rounds, ratio.noisy) == (3, False)
    ratio = paired_ratio(turns(0.9, 0.9, 9.0, 9.0, slow=(2, 3)), calm)
    assert ratio is not None and (ratio.rounds, ratio.noisy) == (4, True)


def test_only_rounds_of_both_are_paired() -> None:
    ratio = paired_ratio({0: Turn(2.0), 7: Turn(4.0)}, {7: Turn(1.0), 8: Turn(50.0)})
    assert ratio is not None and (ratio.ratio, ratio.low, ratio.high, ratio.rounds) == (4.0, 4.0, 4.0, 1)
    assert paired_ratio({0: Turn(1.0)}, {1: Turn(1.0)}) is None


def test_the_interval_covers_the_median_of_what_was_drawn_from() -> None:
    generator = np.random.default_rng(1)
    intervals = [bootstrap(1 + 0.1 * generator.standard_normal(15)) for _ in range(200)]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    assert 0.88 * 200 <= covered <= 0.99 * 200
    assert np.median([high - low for low, high in intervals]) < 0.2


def test_rows_get_the_ratio_of_dlc_over_them() -> None:
    rows = [{"name": "dlc"}, {"name": "other"}, {"name": "late"}]
    add_ratios(rows, {"dlc": turns(1.0, 3.0), "other": turns(2.0, 6.0)})
    assert rows[1]["paired"]["ratio"] == 0.5
    assert "paired" not in rows[0] and "paired" not in rows[2]


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
