"""`dlc explain FILE.ein --target ... --extent ...`: what a cascade costs, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlc.cli import main
from tests.costmodel.spatial_cascades import ONE_PASS, THREE_PASS

CLIPPED = THREE_PASS.replace("exp(QK[h, p, m] - GM[h, p])", "exp(max(QK[h, p, m] - GM[h, p], -8.0))")
EXTENTS = "h=768,p=262144,m=262144,e=64,f=64"


@pytest.fixture
def one(tmp_path: Path) -> str:
    path = tmp_path / "one.ein"
    path.write_text(ONE_PASS)
    return str(path)


@pytest.fixture
def three(tmp_path: Path) -> str:
    path = tmp_path / "three.ein"
    path.write_text(THREE_PASS)
    return str(path)


def test_table_for_people(one: str, capsys: pytest.CaptureFixture[str], golden: Callable[..., None]) -> None:
    assert main(["explain", one, "--target", "fusemax", "--extent", EXTENTS]) == 0
    golden(capsys.readouterr().out)


def test_one_object_for_scripts(one: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", one, "--target", "fusemax", "--extent", EXTENTS, "--as-published", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passes"] == 1 and facts["traffic_bytes"] == 463856467968
    assert facts["latency_s"] == pytest.approx(118.2793728) and facts["energy_j"] == pytest.approx(1.2658834632312842e5)
    assert facts["util_2d"] == pytest.approx(0.9923042100497962) and facts["util_1d"] == pytest.approx(1.0)
    assert {e["name"]: round(e["time_s"], 3) for e in facts["einsums"]}["BQK"] == 54.829


def test_extents_may_come_one_by_one(one: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [word for part in EXTENTS.split(",") for word in ("--extent", part)]
    assert main(["explain", one, "--target", "fusemax", *parts, "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "fusemax"


def test_traffic_from_elsewhere(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", three, "--target", "flat", "--extent", EXTENTS, "--traffic-bytes", "435458144206848"]
    assert main([*arguments, "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["traffic_bytes"] == 435458144206848 and facts["latency_s"] == pytest.approx(1013.88)
    assert facts["passes"] == 3 and facts["bound"] == "memory"


def test_a_cpu_without_a_spatial_target(
    three: str, capsys: pytest.CaptureFixture[str], golden: Callable[..., None]
) -> None:
    small = ["--extent", "h=4,p=512,m=512,e=64,f=64", "--target", "avx512"]
    assert main(["explain", three, *small]) == 0
    golden(capsys.readouterr().out)
    assert main(["explain", three, *small, "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passes"] == 3 and facts["traffic_bytes"] == 4 * 4 * 4 * 512 * 64
    assert facts["util_2d"] is None and facts["util_1d"] is None and facts["energy_j"] is None
    assert [e["name"] for e in facts["einsums"]] == ["QK", "GM", "SN", "SD", "A", "AV"]


def test_more_passes_than_the_target_covers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clipped scores have no running form: the second pass stays, and the mapping has one."""
    path = tmp_path / "clipped.ein"
    path.write_text(CLIPPED)
    assert main(["explain", str(path), "--target", "fusemax", "--extent", EXTENTS]) == 3
    assert "clipped.ein:4:3: error[DLC0703]" in capsys.readouterr().err


def test_three_passes_are_derived_to_one(three: str, one: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for path in (three, one):
        assert main(["explain", path, "--target", "fusemax", "--extent", EXTENTS, "--format", "json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        found.append({name: facts[name] for name in ("passes", "traffic_bytes", "latency_s", "util_2d", "util_1d")})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "fusemax"], 1, "error[DLC0702]: extents of 'attention': no value for e, f, h, m, p"),
        (["--target", "fusemax", "--extent", "h=x"], 2, "write NAME=N,NAME=N with integers, not 'h=x'"),
        (["--target", "tpu", "--extent", EXTENTS], 1, "error[DLC0700]: there is no target 'tpu'"),
        (["--extent", EXTENTS + ",z=1"], 1, "it has no symbol 'z'"),
        (["--extent", EXTENTS, "--traffic-bytes", "7"], 1, "error[DLC0644]: --traffic-bytes has no use here"),
        (["--extent", EXTENTS, "--as-published"], 1, "error[DLC0644]: --as-published has no use here"),
        (["--target", "fusemax", "--extent", EXTENTS, "--kernel", "k"], 1, "error[DLC0644]: --kernel has no use here"),
        (["--target", "fusemax", "--extent", EXTENTS, "--traffic-bytes", "-5"], 2, "0 or more, not '-5'"),
    ],
)
def test_refusals(arguments: list[str], code: int, words: str, three: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", three, *arguments]) == code
    assert words in capsys.readouterr().err


def test_only_a_cascade_has_a_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "model.onnx", "--target", "fusemax", "--extent", "p=1"]) == 1
    assert "error[DLC0643]: --extent and spatial targets are for a cascade's text" in capsys.readouterr().err
    (tmp_path / "model.onnx").write_bytes(b"")
    assert main(["explain", str(tmp_path / "model.onnx"), "--target", "fusemax"]) != 0
    assert "unknown target 'fusemax'" in capsys.readouterr().err
    path = tmp_path / "program.ein"
    path.write_text("program p(X: f32[n]) -> (Y) {\n  Y[n] = X[n] * 2.0\n}\n")
    assert main(["explain", str(path), "--extent", "n=4"]) == 1
    assert "where a cascade is expected" in capsys.readouterr().err
