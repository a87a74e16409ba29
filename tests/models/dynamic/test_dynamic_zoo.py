"""Dynamic networks: both arms of every decision are taken, and compiled ones decide as eager does (all of it with --all)."""

from __future__ import annotations

import pytest
import torch
from tests.models.dynamic.judge import (
    LEAST_SHARE,
    MOST_CLOSE,
    ROUTES,
    Verdict,
    Flat,
    arms,
    eager,
    judge,
    kept_verdict,
    tolerance_of,
)
from tests.models.dynamic.decisions import recorded
from tests.models.dynamic.silero import RATES, kept, sound
from tests.models.dynamic.zoo import DYNAMIC

WHOLE = 1000
SMALL = ("early_transformer", "mixture_top2", "adaptive_time", "beam_search", "skipnet_ff")
COMPILED_SAMPLE = ("early_transformer", "beam_search", "blockdrop", "greedy", "speculative", "adaptive_time")


def networks(quick: tuple[str, ...]) -> list[object]:
    return [pytest.param(n, id=n, marks=() if n in quick else pytest.mark.slow) for n in DYNAMIC]


def test_the_nine_of_the_paper_and_six_families_more_are_here() -> None:
    nine = {f"shallow_deep_{n}" for n in ("mobilenet", "vgg19", "resnet56", "wideresnet")}
    nine |= {"skipnet_rnn", "skipnet_ff", "blockdrop", "caption_resnext", "caption_googlenet"}
    further = {"early_transformer", "mixture_top2", "adaptive_time", "beam_search", "greedy", "speculative", "detection"}
    assert set(DYNAMIC) == nine | further


@pytest.mark.parametrize("name", networks(SMALL))
def test_building_twice_gives_the_same_network(name: str) -> None:
    one, two = DYNAMIC[name].build(), DYNAMIC[name].build()
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert getattr(one, "thresholds", None) == getattr(two, "thresholds", None)


@pytest.mark.parametrize("name", networks(SMALL))
def test_every_arm_is_taken_and_f32_decides_as_f64(name: str, everything: bool) -> None:
    """Of the networks alone: what the rounding of f32 may change, so that a compiler can be held to the rest."""
    entry = DYNAMIC[name]
    found = kept_verdict(entry, "eager", WHOLE, trace=True) if everything else judge(entry, eager(entry), "eager", 60)
    print(found)
    assert found.ok(tolerance_of("strict")), found
    assert min(found.arms.values(), default=1.0) >= (LEAST_SHARE if everything else 0.0), found.rare
    places = {arm.rsplit(" ", 1)[0] for arm in found.arms}
    one_sided = [p for p in places if not {f"{p} True", f"{p} False"} <= found.arms.keys()]
    assert not one_sided
    if everything:
        assert found.traced_wrong >= 0.1 * WHOLE, "a trace takes one path for all, and is right on nearly all inputs"


@pytest.mark.parametrize("name", networks(COMPILED_SAMPLE))
def test_compiled_decides_as_eager(name: str, everything: bool) -> None:
    entry = DYNAMIC[name]
    if everything:
        for route in ("dlc", "dlc-strict"):
            found = kept_verdict(entry, route, WHOLE, trace=False)
            print(found)
            assert found.ok(tolerance_of(route)), str(found)
    else:
        found = judge(entry, ROUTES["dlc"](entry), "dlc", 8)
        print(found)
        assert found.ok(tolerance_of("dlc")), str(found)


def test_the_judge_finds_a_trace_wrong() -> None:
    """One path for all inputs: what this judge is there to find."""
    entry = DYNAMIC["early_transformer"]
    with torch.no_grad():
        traced = torch.jit.trace(Flat(entry.build()), entry.sample(-1), check_trace=False)

    def candidate(*inputs: torch.Tensor) -> object:
        scores, depth = traced(*inputs)
        return {"scores": scores, "depth": depth}

    found = judge(entry, candidate, "traced", 30)
    assert len(found.parted) > 10
    assert not found.ok(1.0)


def test_the_judge_finds_small_errors_and_failures() -> None:
    entry = DYNAMIC["early_transformer"]
    model = entry.build()

    def inexact(ids: torch.Tensor) -> dict[str, object]:
        result = model(ids)
        return {"scores": result["scores"] * (1 + 1e-3), "depth": result["depth"]}

    found = judge(entry, inexact, "inexact", 5)
    assert not found.parted and found.error > 5e-4 and not found.ok(tolerance_of("default"))

    def failing(ids: torch.Tensor) -> dict[str, object]:
        raise ValueError("no")

    assert judge(entry, failing, "failing", 2).failures == 2


def test_a_verdict_with_many_close_calls_is_none() -> None:
    assert not Verdict("n", "r", 1, decisions=100, close=2).ok(1.0)
    assert Verdict("n", "r", 1, decisions=int(4 / MOST_CLOSE), close=2).ok(1.0)


def test_arms_are_counted_by_turn_or_by_place() -> None:
    entry = DYNAMIC["skipnet_ff"]
    with recorded() as decisions:
        entry.build()(*entry.sample(0))
    assert len(arms(entry, decisions)) == 15


# --- Silero VAD ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_silero_agrees_with_onnxruntime_and_torchscript(rate: int, everything: bool) -> None:
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    found = kept(rate, 600.0 if everything else 20.0)
    print(found)
    assert found.ok, found


@pytest.mark.parametrize("rate", RATES)
def test_the_sound_is_reproducible_and_varied(rate: int) -> None:
    one, two = sound(rate, 20.0), sound(rate, 20.0)
    assert one.tobytes() == two.tobytes() and len(one) == 20 * rate
    loudness = one.reshape(-1, rate // 4).std(axis=1)
    assert loudness.min() < 0.01 and loudness.max() > 0.3
