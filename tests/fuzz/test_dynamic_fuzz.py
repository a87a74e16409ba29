"""Random modules with Python control flow decide as eager does: a sample in `make test`, 10,000 in `make test-all`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from ledger import Ledger
from tests.fuzz.dynamic_generate import both_ways, case, load
from tests.fuzz.dynamic_planted import PLANTS, Plant, hunt
from tests.fuzz.dynamic_run import DYNAMIC, alike, check, runs
from tests.fuzz.dynamic_shrink import shrink
from tests.fuzz.run import Result, run, summary

SAMPLE, COMPILED, WHOLE = 60, 40, 10_000
MOST_REFUSED, LEAST_BOTH, MOST_OPEN = 0.05, 0.8, 0.02
CONSTRUCTS = (
    "if:1", "if:2", "if:3", "nested", "while", "for:static", "for:dynamic", "for:tensor", "for:layers", "for:list", "break", "continue",
    "early-return", "early-return:loop", "conditional-expression", "boolean", "assign:float", "assign:int", "assign:bool", "assign:scalar",
    "assign:vector", "swap", "in-place", "collection", "collection:write", "list:read", "dict:read", "helper", "index:dynamic",
    "iterator", "size", "container:ordered", "container:counter", "container:deque", "attribute:of-self", "attribute:by-name",
    "helper:recursive", "library:bisect", "library:heapq", "counter:unread", "try",
)  # fmt: skip
QUICK = ("negated condition", "one step too many", "a carried variable is not updated")


def test_every_construct_occurs() -> None:
    counts = Counter(t for seed in range(SAMPLE) for t in case(seed).tags)
    few = {tag: counts[tag] for tag in CONSTRUCTS if counts[tag] < 2}
    assert not few, few
    assert set(counts) <= set(CONSTRUCTS), "a construct that is not listed"


def test_cases_are_reproducible() -> None:
    for seed in range(5):
        first = case(seed)
        case.cache_clear()
        again = case(seed)
        assert first.source == again.source and first.tags == again.tags
        assert all(torch.equal(a, b) for x, y in zip(first.inputs, again.inputs) for a, b in zip(x, y))


def test_both_arms_run() -> None:
    shares = [both_ways(case(seed)) for seed in range(SAMPLE)]
    assert sum(s == 1.0 for s in shares) >= LEAST_BOTH * len(shares), shares


def test_eager_passes_its_own_judgement() -> None:
    assert all(check(case(seed), "eager").status == "ok" for seed in range(10))


def test_compiled_decides_as_eager(everything: bool) -> None:
    if everything:
        results = run(range(WHOLE), workers=2, ledger=Ledger("dynamic_fuzz"), family=DYNAMIC)
    else:
        results = run(range(COMPILED), workers=1, family=DYNAMIC)
    print(summary(results))
    faults = [r for r in results if r.status in ("wrong", "error", "crash")]
    assert not faults, "\n".join(_told(r) for r in faults[:5])
    refused = [r for r in results if r.status == "refused"]
    assert len(refused) <= MOST_REFUSED * len(results), [r.detail for r in refused]
    assert sum(r.open_elements / max(r.elements, 1) for r in results) <= MOST_OPEN * len(results)  # a loop may ask the same again


def _told(r: Result) -> str:
    return f"seed {r.seed}: {r.status} {r.detail}\n  see it: python -m tests.fuzz.dynamic_run --seed {r.seed} --shrink"


def test_a_loop_without_end_is_no_program() -> None:
    """Whether it makes tensors or not."""
    head = case(0).source.split("    def forward")[0]
    loop = "    def forward(self, x, y, k):\n        n = 0\n        while n < 4:\n            STEP\n        return x\n"
    for step in ("n = n", "y = y + 1.0"):
        with pytest.raises(RuntimeError, match="lines"):
            runs(replace(case(0), source=head + loop.replace("STEP", step)))
    assert runs(replace(case(0), source=head + loop.replace("STEP", "n = n + 1")))


def test_shrinking_keeps_the_fault() -> None:
    """Down to little more than the one statement that is looked for."""
    seed = next(s for s in range(200) if "while" in case(s).tags)
    small = shrink(case(seed), lambda c: runs(c) and "while" in c.source.split("def forward")[1], 30.0)
    body = small.source.split("def forward")[1].splitlines()
    assert any("while" in line for line in body) and len(body) < 10
    load(small)(*small.inputs[0])


def test_faults_are_alike_whatever_their_place() -> None:
    a = Result(1, "error", "DLC0212 KeyError: gt_5 [net_1.py:3]")
    assert alike(a, Result(1, "error", "DLC0212 KeyError: gt_7 [net_2.py:9]"))
    assert not alike(a, Result(1, "error", "DLC0212 TypeError: gt_5"))


def test_there_are_twenty_plants() -> None:
    assert len({p.name for p in PLANTS}) == len(PLANTS) >= 20


@pytest.mark.parametrize(
    "plant", [pytest.param(p, id=p.name, marks=() if p.name in QUICK else pytest.mark.slow) for p in PLANTS]
)
def test_a_planted_fault_is_found(plant: Plant) -> None:
    tried, seed, detail = hunt(plant, range(2000))
    print(f"{plant.name}: {tried} programs, seed {seed}: {detail[:160]}")
    assert seed is not None, f"not found by {tried} programs"
