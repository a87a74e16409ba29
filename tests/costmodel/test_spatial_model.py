"""The spatial model beyond the published rows: other arrays, other texts of the same cascade, other cascades, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlc.costing import cpu_cost, spatial_cost
from dlc.costmodel.spatial.cascade import normalise
from dlc.costmodel.spatial.errors import (
    BadExtents,
    BadTarget,
    BufferTooSmall,
    UnknownOperation,
    UnknownTarget,
    UnmappableCascade,
)
from dlc.costmodel.spatial.model import SpatialCost, predict_spatial
from dlc.costmodel.spatial.roles import roles_of
from dlc.costmodel.spatial.target import Target, known_targets, load_target
from dlc.codegen.target import parse_target
from dlc.ir.pass_count import passes as count
from dlc.ir.parser import parse_cascade
from tests.costmodel.spatial_cascades import CASCADE_5, CASCADES, DEFERRED, ONE_PASS, THREE_PASS

SMALL = {"h": 4, "p": 1024, "m": 1024, "e": 64, "f": 64}


def predict(text: str, target: str | Target = "fusemax", **extents: int) -> SpatialCost:
    target = load_target(target) if isinstance(target, str) else target
    return predict_spatial(parse_cascade(text, "t.ein"), target, extents or SMALL)


def square(n: int, target: str = "fusemax") -> Target:
    found = load_target(target)
    shapes = {"2d": (n, n), "1d": (n,)}
    return replace(found, arrays={k: replace(a, shape=shapes[k]) for k, a in found.arrays.items()})


# --- other arrays ----------------------------------------------------------------------------------------------------


def closed_form(n: int, l3: int, c: int, width: int, length: int) -> tuple[float, float]:
    """(traffic in bytes, latency in s) of FuseMax in closed form, worked out from its mapping by hand."""
    e = f = width
    p = m = length
    m1 = m // n
    bound = (l3 - 2 * n * (e + f)) // (2 * n * (e + 2 + f))
    p1 = max(d for d in range(1, min(p // n, bound) + 1) if p // n % d == 0)
    traffic = 2 * c * ((e + f) * p + p // (p1 * n) * (e + f) * m)
    qk, lm, slnv = c * e * m * p / n**2, c * m * p / n**2, c * f * m * p / n**2
    rm = c * m1 * p / n
    cycles = max(qk + lm, rm + f * rm + c * f * p / n) + rm + max(8 * lm, 8 * rm) + max(slnv, f * rm)
    return traffic, max(cycles / 940e6, traffic / (400 * 2**30))


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize(("c", "width", "length"), [(768, 64, 4096), (64, 128, 16384), (8, 32, 65536)])
def test_other_arrays_by_the_closed_form(n: int, c: int, width: int, length: int) -> None:
    target = square(n)
    found = predict(ONE_PASS, target, h=c, p=length, m=length, e=width, f=width)
    traffic, latency = closed_form(n, target.buffer.bytes, c, width, length)
    assert found.traffic_bytes == traffic
    assert found.latency_s == pytest.approx(latency, rel=1e-12)
    assert 0 < found.util_2d <= 1 + 1e-12 and 0 < found.util_1d <= 1 + 1e-12


def test_a_smaller_buffer_loads_keys_and_values_more_often() -> None:
    target = load_target("fusemax")
    at = {"h": 1, "p": 65536, "m": 65536, "e": 64, "f": 64}
    traffic = [
        predict(ONE_PASS, replace(target, buffer=replace(target.buffer, bytes=n << 20)), **at).traffic_bytes
        for n in (64, 16, 4, 1)
    ]
    assert traffic == sorted(traffic) and len(set(traffic)) == 4


def test_ragged_extents_cost_no_less_time_than_what_fills_the_array() -> None:
    full, ragged = predict(ONE_PASS, **SMALL), predict(ONE_PASS, **{**SMALL, "p": 1000, "m": 1001})
    assert ragged.latency_s == pytest.approx(full.latency_s, rel=0.01)
    assert ragged.energy_j < full.energy_j and ragged.util_2d == pytest.approx(full.util_2d, rel=0.01)


# --- other texts of the same cascade ---------------------------------------------------------------------------------


def figures(found: SpatialCost) -> tuple[float, ...]:
    return (found.traffic_bytes, found.latency_s, found.util_2d, found.util_1d, found.energy_j)


RENAMED = {
    "BQK": "s",
    "LM": "b",
    "RM": "c",
    "SLN": "w",
    "PRM": "scale",
    "RD": "d",
    "RNV": "o",
    "Q": "x",
    "K": "y",
    "V": "z",
}


def renamed(text: str) -> str:
    import re

    for old, new in RENAMED.items():
        text = re.sub(rf"\b{old}(\d|K)?\b", lambda m, new=new: new + (m[1] or ""), text)
    for old, new in {"h": "heads", "p": "rows", "m": "cols", "e": "a", "f": "b2", "m1": "t", "m0": "u"}.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def test_names_do_not_matter() -> None:
    at = dict(zip(("heads", "rows", "cols", "a", "b2"), SMALL.values(), strict=True))
    assert figures(predict(renamed(ONE_PASS), **at)) == figures(predict(ONE_PASS))
    assert figures(predict(renamed(THREE_PASS), "unfused", **at)) == figures(predict(THREE_PASS, "unfused"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("128", "64"),  # how the text blocks the keys
        (" where 128*m1 + m0 < m", ""),
        ("RD[h, p] * PRM[h, p] + SLD[h, p]", "SLD[h, p] + PRM[h, p] * RD[h, p]"),
        ("sum(m0) SLN[h, p, m0] * V", "sum(m0) exp(BQK[h, p, m0] - RM1[h, p]) * V"),
    ],
)
def test_spelling_does_not_matter(old: str, new: str) -> None:
    text = ONE_PASS.replace(old, new).replace("+ 127", "+ 63" if new == "64" else "+ 127")
    assert text != ONE_PASS
    if "exp(" in new:  # the weights are then computed within the product, and once more for the sum
        text = text.replace(
            "    SLD[h, p] = sum(m0) SLN[h, p, m0]\n", "    SLD[h, p] = sum(m0) exp(BQK[h, p, m0] - RM1[h, p])\n"
        )
        text = text.replace("    SLN[h, p, m0] = exp(BQK[h, p, m0] - RM1[h, p])\n", "")
    assert figures(predict(text)) == pytest.approx(figures(predict(ONE_PASS)), rel=1e-12)


def test_one_symbol_for_two_ranks() -> None:
    """Self-attention over one length: queries and keys are still two ranks."""
    text = THREE_PASS.replace("K: f32[h, m, e], V: f32[h, m, f]", "K: f32[h, p, e], V: f32[h, p, f]")
    text = (
        text.replace("QK[h, p, m] =", "QK[h, p, m: p] =").replace("max(m)", "max(m: p)").replace("sum(m)", "sum(m: p)")
    )
    text = text.replace("SN[h, p, m] =", "SN[h, p, m: p] =").replace("A[h, p, m] =", "A[h, p, m: p] =")
    at = {n: s for n, s in SMALL.items() if n != "m"}
    found = predict(text, "unfused", **at)
    assert figures(found) == figures(predict(THREE_PASS, "unfused")) and found.ranks["stream"] == "m"


def test_a_block_longer_than_the_stream() -> None:
    at = {**SMALL, "m": 64}
    shorter = ONE_PASS.replace("128", "64").replace("+ 127", "+ 63")
    assert figures(predict(ONE_PASS, **at)) == figures(predict(shorter, **at))


def test_a_state_that_leaves_is_stored() -> None:
    text = ONE_PASS.replace("-> O {", "-> (O, RMK) {")
    assert predict(text).traffic_bytes - predict(ONE_PASS).traffic_bytes == 2 * 4 * 1024


@pytest.mark.parametrize(("bound", "cycles"), [("0.0", 1), ("-3.4028234663852886e+38", 0)])
def test_only_a_bound_within_the_range_is_an_operation(bound: str, cycles: int) -> None:
    text = CASCADES["mlp"].replace("max(H[p, m], 0.0)", f"max(H[p, m], {bound})")
    found = predict(text, p=256, m=256, e=8, f=8)
    assert {e.name: e.cycles for e in found.einsums}["R"] == cycles


def test_a_scale_is_a_product_per_point_of_its_result() -> None:
    scaled = THREE_PASS.replace("K[h, m, e]\n", "K[h, m, e] * 0.125\n")
    plain, found = predict(THREE_PASS, "flat"), predict(scaled, "flat")
    more = found.energy_parts_j["arithmetic"] - plain.energy_parts_j["arithmetic"]
    assert more * 1e12 == pytest.approx(4 * 1024 * 1024 * 17.1645)


# --- roles and passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stream", "parallel", "batch", "passes"),
    [
        ("one-pass", "m", "p", ("h",), 1),
        ("cascade-5", "m", "p", ("h",), 1),
        ("three-pass", "m", "p", ("h",), 3),
        ("deferred", "m", "p", ("h",), 2),
        ("softmax", "m", "p", ("h",), 3),
        ("layernorm", "m", "p", ("h",), 3),
        ("mlp", "m", "p", (), 1),
        ("product", "m", "p", (), 1),
        ("row-sum", "m", "p", (), 1),
    ],
)
def test_roles_of_ranks(name: str, stream: str, parallel: str, batch: tuple[str, ...], passes: int) -> None:
    cascade = parse_cascade(CASCADES[name])
    names = {str(n).lstrip("#") for p in cascade.params for n in p.type.shape}
    normal = normalise(cascade, {n: s for n, s in SMALL.items() if n in names}, "t")
    found = roles_of(normal, "t")
    assert (found.stream, found.parallel, found.batch, count(cascade)) == (stream, parallel, batch, passes)


def test_a_long_inner_rank_is_not_laid_over_the_array() -> None:
    assert predict(ONE_PASS, **{**SMALL, "f": 4096}).ranks["parallel"] == "p"


def test_a_ragged_tile_takes_no_more_of_the_buffer_than_there_is() -> None:
    """260 queries on 256 lanes: two pieces, but 260 rows of queries and state."""
    target = load_target("fusemax")
    words = 256 * (64 + 64) + 260 * (64 + 2 + 64)
    at = {**SMALL, "p": 260}
    for bytes_, tiles in ((2 * words, (2,)), (2 * words - 2, (1,))):
        assert predict(ONE_PASS, replace(target, buffer=replace(target.buffer, bytes=bytes_)), **at).tiles == tiles


def test_normal_form_takes_merged_einsums_apart(golden: Callable[..., None]) -> None:
    lines = []
    for op in normalise(parse_cascade(ONE_PASS), SMALL, "t").operations:
        work = " + ".join(f"{n} {op_name}" for op_name, n in op.work.items())
        lines.append(
            f"{op.out}[{', '.join(op.ranks)}] folds ({', '.join(op.reduced)}) reads {', '.join(op.reads)}: {work}, {op.place}"
        )
    golden("\n".join(lines))


# --- other cascades --------------------------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_is_spilled_and_read_in_every_pass() -> None:
    target = load_target("flat")
    target = replace(target, buffer=replace(target.buffer, bytes=1 << 20))
    at = {"h": 1, "p": 512, "m": 4096, "e": 64, "f": 64}
    found = predict(DEFERRED, target, **at)
    once = 2 * 512 * 4096
    assert found.spilled == ("QK",)
    assert found.traffic_bytes - predict(DEFERRED, "flat", **at).traffic_bytes >= 2 * once


def test_fusing_a_softmax_moves_less_than_not_fusing_it() -> None:
    fused, apart = predict(THREE_PASS, "flat"), predict(THREE_PASS, "unfused")
    assert fused.traffic_bytes < apart.traffic_bytes / 5 and fused.latency_s < apart.latency_s


def test_division_deferral_saves_a_quarter_of_the_softmax() -> None:
    before, after = predict(THREE_PASS, "flat"), predict(DEFERRED, "flat")
    assert after.latency_s == pytest.approx(before.latency_s * (3 + 64 / 1024) / 4, rel=1e-9)


def test_more_passes_than_the_mapping_covers_are_derived_from() -> None:
    """And not where it covers them, or the cascade has one already."""
    derived = spatial_cost(parse_cascade(THREE_PASS), load_target("fusemax"), SMALL)
    assert derived.passes == 1 and derived.latency_s == predict(ONE_PASS).latency_s
    assert derived.traffic_bytes == predict(ONE_PASS).traffic_bytes
    for text, target in ((THREE_PASS, "unfused"), (CASCADE_5, "fusemax")):
        assert spatial_cost(parse_cascade(text), load_target(target), SMALL) == predict(text, target)


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(
    kind: type[Exception], text: str, words: str, place: str, target: str | Target = "fusemax", **extents: int
) -> None:
    with pytest.raises(kind) as caught:
        predict(text, target, **extents)
    assert words in str(caught.value) and str(caught.value).startswith(place), str(caught.value)
    assert "help: " in str(caught.value)


def test_refuses_more_passes_than_the_mapping_covers() -> None:
    refused(UnmappableCascade, THREE_PASS, "'SN' is in pass 2 over 'm', and it covers 1", "t.ein:4:3: error[DLC0703]")


def test_refuses_a_scan_apart() -> None:
    refused(UnmappableCascade, ONE_PASS, "the body of a scan is one loop nest", "t.ein:6:5: ", "unfused")


@pytest.mark.parametrize(
    ("text", "words", "place"),
    [
        ("S[i: n, d] = X[2*(i // 2), d]", "'X' is read at '2*(i // 2)'", "t.ein:2:"),
        ("G[i: n, d] = X[I[i], d]", "'X' is read at 'I[i]'", "t.ein:2:"),
        ("(V[n], J[n]) = argmax(d) (X[n, d], d)", "folds a tuple", "t.ein:2:"),
        ("scatter(n, d) S[n, d] sum= X[n, d] onto X", "a scatter", "t.ein:2:"),
        ("scan n carry (H = H0) {\nH1[d] = H[d] + X[n, d]\nyield (H1)\n} -> (S)", "no block of a rank", "t.ein:3:"),
        ("S[d] = H0[d] + H0[d]", "no operation has a second rank", "t.ein:2:"),
    ],
)
def test_refuses_what_it_has_no_place_for(text: str, words: str, place: str) -> None:
    results = "(V, J)" if text.startswith("(V") else text.split("[")[0].split(" ")[-1] if "scan" not in text else "S"
    head = f"cascade c(X: f32[n, d], H0: f32[d], I: i64[n]) -> {results} {{\n{text}\n}}"
    refused(UnmappableCascade, head, words, place, "flat", n=8, d=4)


def test_refuses_an_operation_without_a_cost() -> None:
    text = THREE_PASS.replace("exp(", "tanh(")
    refused(
        UnknownOperation, text, "does not say what 'tanh' costs on the array '1d'", "t.ein:4:3: error[DLC0704]", "flat"
    )


def test_refuses_a_buffer_that_holds_no_tile() -> None:
    target = load_target("fusemax")
    target = replace(target, buffer=replace(target.buffer, bytes=50_000))
    refused(BufferTooSmall, ONE_PASS, "the buffer of 'fusemax' holds 50000", "t.ein:", target)


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ({"h": 1}, "no value for e, f, m, p"),
        ({**SMALL, "z": 3}, "it has no symbol 'z'"),
        ({**SMALL, "p": 0}, "'p' is 0, less than 1"),
    ],
)
def test_refuses_wrong_extents(extents: dict[str, int], words: str) -> None:
    refused(BadExtents, ONE_PASS, words, "error[DLC0702]", **extents)


def test_unknown_target() -> None:
    with pytest.raises(UnknownTarget, match="there is no target 'tpu'.*\n.*flat, fusemax,"):
        load_target("tpu")


def own(tmp_path: Path, **fields: Any) -> str:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"base": "fusemax", "name": "own", **fields}))
    return str(path)


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    name = own(tmp_path, arrays={"2d": {"shape": [128, 128]}, "1d": {"shape": [128]}})
    assert figures(predict(ONE_PASS, name)) == figures(predict(ONE_PASS, square(128)))
    (tmp_path / "next.json").write_text(json.dumps({"base": "own.json", "name": "next", "clock_hz": 470e6}))
    slower = predict(ONE_PASS, str(tmp_path / "next.json"))
    assert slower.latency_s == pytest.approx(2 * predict(ONE_PASS, name).latency_s)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clock_hz": "fast"}, 'clock_hz: "fast" is no number'),
        ({"clock_hz": 0}, "clock_hz: 0.0 is not positive"),
        ({"colour": "red"}, "file: 'colour' is no field of it"),
        ({"arrays": {"2d": {"shape": [16]}}}, "arrays.2d.shape: [16] is not 2 positive integers"),
        ({"arrays": {"2d": {"shape": [16, 32]}, "3d": {}}}, "arrays: '3d' is no field of it"),
        ({"operations": {"exp": {"as": {"mac": 6}}}}, "operations.mac of array"),
        ({"operations": {"exp": {"cycles": 1}}}, "operations.exp of array 2d.pj: it is missing"),
        ({"mapping": {"phases": "two"}}, "mapping.phases: 'two' is neither"),
        ({"mapping": {"bind": [{"array": "0d"}]}}, "mapping.bind[0].array: '0d' is neither"),
        ({"mapping": {"bind": [{"array": "1d", "when": {"name": "QK"}}]}}, "mapping.bind[0].when: 'name' is no field"),
        ({"mapping": {"nests": {"1d": {"above": ["batch", "tile"]}}}}, "mapping.nests.1d: 'tile' is no loop"),
        ({"mapping": {"nests": {"1d": {"space": ["stream", "parallel"]}}}}, "mapping.nests.1d.space: it has one role"),
        ({"mapping": {"nests": {"1d": {"below": []}}}}, "needs the loop parallel1 below"),
        (
            {"mapping": {"nests": {"1d": {"above": ["batch", "stream1"]}}}},
            "each of batch, parallel2, stream1 stands once",
        ),
        ({"buffer": {"bytes": -1}}, "buffer.bytes: -1 is not positive"),
        ({"base": "own.json"}, "base: 'own.json' is its own base"),
        ({"arrays": {"1d": {"shape": [128]}}, "mapping": {"nests": {"1d": {"space": ["stream"]}}}}, "equally many"),
    ],
)
def test_refuses_a_bad_target(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadTarget) as caught:
        load_target(own(tmp_path, **fields))
    assert words in str(caught.value)


def test_refuses_a_target_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{\n  oops\n}")
    with pytest.raises(BadTarget, match="line 2: Expecting property name"):
        load_target(str(tmp_path / "t.json"))


@pytest.mark.parametrize("name", known_targets())
def test_targets_that_come_with_dlc_say_what_they_are(name: str) -> None:
    found = load_target(name)
    assert found.name == name and len(found.source) > 40


# --- the CPU ---------------------------------------------------------------------------------------------------------


def test_cpu_figures() -> None:
    found = cpu_cost(parse_cascade(THREE_PASS), parse_target("avx512"), SMALL)
    points = 4 * 1024 * 1024
    assert found.passes == 3 and found.flops == points * (2 * 64 * 2 + 1 + 2 + 1 + 1)
    assert found.traffic_bytes == 4 * 4 * 4 * 1024 * 64
    assert found.latency_s < found.unfused_s == pytest.approx(sum(e.time_s for e in found.einsums))
    assert [e.name for e in found.einsums] == ["QK", "GM", "SN", "SD", "A", "AV"]


def test_cpu_figures_of_a_scan_count_every_step() -> None:
    found = cpu_cost(parse_cascade(ONE_PASS), parse_target("avx2"), SMALL)
    product = next(e for e in found.einsums if e.name == "BQK")
    assert product.flops == 2 * 4 * 1024 * 1024 * 64 and found.passes == 1
