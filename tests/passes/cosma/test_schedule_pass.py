"""The pass `schedule` and `dlc explain --target scratchpad`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.networks.__main__ import FOLDER
from dlc.cli import main
from dlc.ir.parser import parse_program
from dlc.ir.verify import verify
from dlc.passes.cosma.from_program import graph_of
from dlc.passes.cosma.graph import Tables
from dlc.passes.cosma.optimise import traffic_of_order
from dlc.passes.cosma.peak import peak_of
from dlc.passes.pipeline import Pipeline
from dlc.passes.registry import passes

TEXT = """
program branches(X: f32[8, 8], Y: f32[8, 8]) -> (Z) {
  A[i, j] = exp(X[j, i])
  B[i, j] = exp(Y[j, i])
  S[i] = sum(j) A[i, j]
  T[i] = sum(j) B[i, j]
  Z[i] = S[i] * T[i]
}
"""
FUSED = "fuse{max_steps=1}"
IN_PLACE = TEXT.replace("[j, i]", "[i, j]")


def test_a_result_goes_before_the_next_one_comes(golden: Callable[..., None]) -> None:
    before = Pipeline.parse(FUSED, passes()).run(parse_program(TEXT))
    after = Pipeline.parse("schedule", passes()).run(before)
    verify(after)
    golden("\n".join(str(s) for s in after.body.body))
    order = [before.body.body.index(s) for s in after.body.body]
    tables = Tables(graph_of(before))
    assert sorted(order) == list(range(5)) and peak_of(tables, order) < peak_of(tables, range(5))


def test_an_order_that_is_good_enough_stays() -> None:
    once = Pipeline.parse(f"{FUSED},schedule", passes()).run(parse_program(TEXT))
    assert Pipeline.parse("schedule", passes()).run(once) is once


def test_a_budget() -> None:
    before = Pipeline.parse(FUSED, passes()).run(parse_program(TEXT))
    after = Pipeline.parse("schedule{budget=544 level=scratchpad}", passes()).run(before)
    order = [before.body.body.index(s) for s in after.body.body]
    tables = Tables(graph_of(before))
    assert traffic_of_order(tables, order, 544) == 0 < traffic_of_order(tables, range(5), 544)


def test_sizes_of_a_program() -> None:
    program = Pipeline.parse(FUSED, passes()).run(parse_program(TEXT))
    sizes = {t.name: (t.bytes, t.producers, t.output) for t in graph_of(program).tensors}
    assert sizes["X"] == (256, (), False) and sizes["A"] == (256, (0,), False) and sizes["Z"] == (32, (4,), True)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "branches.ein"
    path.write_text(TEXT)
    return str(path)


def test_explain_a_model(model: str, capsys: pytest.CaptureFixture[str], golden: Callable[..., None]) -> None:
    assert main(["explain", model, "--target", "scratchpad", "--budget", "512", "--passes", FUSED]) == 0
    said = capsys.readouterr().out
    golden("\n".join(line.rstrip() for line in said.splitlines() if not line.startswith("traffic")))
    assert "traffic bytes: 64 (proven least" in said


def test_an_element_wise_kernel_writes_over_its_operand(model: str, capsys: pytest.CaptureFixture[str], golden: Callable[..., None]) -> None:
    """Half the memory is enough for it, and nothing has to leave."""
    Path(model).write_text(IN_PLACE)
    assert main(["explain", model, "--target", "scratchpad", "--budget", "512", "--passes", FUSED]) == 0
    said = capsys.readouterr().out
    golden("\n".join(line.rstrip() for line in said.splitlines() if not line.startswith("traffic")))
    assert "traffic bytes: 0 (proven least" in said and "one operator needs 288 B" in said


def test_explain_for_scripts_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", str(FOLDER / "vit-b16.json"), "--target", "scratchpad", "--budget", "1MiB"]
    assert main([*arguments, "--format", "json", "--dump-dir", str(tmp_path / "dump")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["proven"] and facts["value"] == facts["bound"] == 7262208 and facts["budget_bytes"] == 1 << 20
    assert sum(t["bytes"] for t in facts["transfers"] if not t["compulsory"]) == 7262208
    assert [s["operator"] for s in facts["steps"]] == facts["order"]
    for n, step in enumerate(facts["steps"]):
        there = {a["name"] for a in facts["addresses"] if a["first"] <= n <= a["last"]}
        assert step["writes"] and there >= {*step["reads"], *step["writes"]}, step
    drawn = json.loads((tmp_path / "dump" / "memory.json").read_text())
    assert drawn["arena_bytes"] == facts["peak_bytes"] <= 1 << 20 and drawn["buffers"] == facts["addresses"]
    assert '"addresses"' not in (tmp_path / "dump" / "schedule.json").read_text()
    assert "arena_bytes" in (tmp_path / "dump" / "index.html").read_text()


def test_too_small_a_budget_has_its_exit_code(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", model, "--target", "scratchpad", "--budget", "511", "--passes", FUSED]) == 6
    said = capsys.readouterr().err
    assert "DLC0322" in said and "least budget of this program is 512 bytes" in said


def test_a_budget_without_a_scratchpad(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", model, "--budget", "512"]) == 1
    assert "--budget has no use here: it is for --target scratchpad" in capsys.readouterr().err
