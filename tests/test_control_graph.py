"""The control graph: how often each region ran and how long, its text, its drawing, what the commands make of it."""

from __future__ import annotations

import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.cli import main
from dlc.control_graph import control_graph, graph_lines, graph_svg, has_control
from dlc.runtime.control import Region, Visits, check_regions
from dlc.runtime.errors import BadManifest
from dlc.runtime.executable import Executable

TEXT = """
program f(X: f32[64], C: bool[], N: i64[]) -> (R, S) {
  if C {
    A[i:64] = exp(X[i])
    yield (A)
  } else {
    yield (X)
  } -> (R)
  loop s < N carry (H = R) {
    G[i:64] = sum(k:64) H[i] * X[k]
    D[] = rem_floor(s[], 3) == 0
    if D {
      H1[i:64] = G[i] * 0.5 + X[i]
      yield (H1)
    } else {
      H2[i:64] = G[i] * 0.5 - X[i]
      yield (H2)
    } -> (H3)
    yield (H3)
  } -> (S) collect ()
}
"""
STRAIGHT = "cascade f(X: f32[8]) -> (R) {\n  R[i:8] = exp(X[i])\n}"
X = np.linspace(-0.1, 0.1, 64, dtype=np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.ein"
    path.write_text(TEXT)
    return path


def call(exe: Any, taken: bool, steps: int) -> None:
    exe(X, np.asarray(taken), np.asarray(steps))


def test_each_region_is_counted_over_all_calls(tmp_path: Path) -> None:
    exe = dlc.compile(TEXT, threads=1)
    assert isinstance(exe, Executable)
    assert [r.kind for r in exe.regions] == ["program", "then", "else", "while", "then", "else"]
    assert exe.visits == (0,) * 6
    for taken, steps in ((True, 0), (False, 4), (False, 7)):
        call(exe, taken, steps)
    assert exe.visits == (3, 1, 2, 11, 2 + 3, 2 + 4)
    exe.save(tmp_path / "f.dlc")
    loaded = dlc.load(tmp_path / "f.dlc")
    call(loaded, True, 1)
    assert loaded.visits == (1, 1, 0, 1, 1, 0)
    assert exe.visits[0] == 3


def test_calls_side_by_side_lose_no_count() -> None:
    exe = dlc.compile(TEXT, threads=1)
    assert isinstance(exe, Executable)
    team = [threading.Thread(target=lambda: [call(exe, True, 3) for _ in range(300)]) for _ in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert exe.visits == (1200, 1200, 0, 3600, 1200, 2400)


def test_scans_are_counted_and_straight_programs_are_not() -> None:
    scan = "program f(X: f32[t], Z: f32[]) -> (L) {\n  scan t carry (h = Z) {\n    u[] = h[] + X[t]\n    yield (u)\n  } -> (L)\n}"
    exe = dlc.compile(scan, threads=1)
    assert isinstance(exe, Executable)
    exe(np.ones(5, np.float32), np.asarray(0, np.float32))
    if len(exe.regions) > 1:  # a scan may be a loop inside a kernel
        assert [(r.kind, n) for r, n in zip(exe.regions, exe.visits, strict=True)] == [("program", 1), ("for", 5)]
    straight = dlc.compile(STRAIGHT, threads=1)
    assert isinstance(straight, Executable)
    straight(np.ones(8, np.float32))
    assert straight.visits == () and len(straight.regions) == 1


def test_a_profile_has_counts_and_times_per_run() -> None:
    exe = dlc.compile(TEXT, threads=1)
    assert isinstance(exe, Executable)
    profile = exe.profile(X, np.asarray(False), np.asarray(6), repeat=4, warmup=1)
    assert [v.count for v in profile.visits] == [1, 0, 1, 6, 2, 4]
    times = [v.time_ns or 0.0 for v in profile.visits]
    assert times[1] == 0 and times[3] > 0
    assert times[4] + times[5] <= times[3] <= times[0]  # what is inside takes no longer than what it is in
    assert exe.visits == (5, 0, 5, 30, 10, 20)
    assert profile.to_json()["regions"][3]["kind"] == "while"


def test_the_graph_as_text(golden: Callable[[str], None]) -> None:
    exe = dlc.compile(TEXT, threads=1)
    assert isinstance(exe, Executable)
    plain = control_graph(exe.manifest)
    ran = control_graph(exe.manifest, [Visits(n, 1000.0 * n) for n in (1, 0, 1, 6, 2, 4)])
    golden("\n".join([*graph_lines(plain), "", *graph_lines(ran)]))
    assert not has_control(control_graph(dlc.compile(STRAIGHT, threads=1).manifest))  # type: ignore[union-attr]


Box = tuple[float, float, float, float]


def boxes(element: ET.Element, x: float = 0.0, y: float = 0.0) -> Iterator[tuple[str, Box]]:
    """Class and (left, top, right, bottom) of each shape in the drawing."""
    moved = re.match(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
    if moved:
        x, y = x + float(moved[1]), y + float(moved[2])
    tag = element.tag.rpartition("}")[2]
    if tag == "rect":
        yield element.get("class", ""), (x, y, x + float(element.get("width", 0)), y + float(element.get("height", 0)))
    if tag == "polygon":
        points = [tuple(map(float, p.split(","))) for p in element.get("points", "").split()]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        yield "d", (x + min(xs), y + min(ys), x + max(xs), y + max(ys))
    for child in element:
        yield from boxes(child, x, y)


def test_the_drawing_is_whole_and_nothing_covers_anything() -> None:
    exe = dlc.compile(TEXT, threads=1)
    assert isinstance(exe, Executable)
    svg = graph_svg(control_graph(exe.manifest, [Visits(n, 1e3) for n in (1, 0, 1, 6, 2, 4)]))
    root = ET.fromstring(svg)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    width, height = (float(root.get(side, 0)) for side in ("width", "height"))
    found = list(boxes(root))
    kinds = [kind for kind, _ in found]
    assert (kinds.count("d"), kinds.count("l"), kinds.count("b")) == (2, 1, 4)
    for _, (left, top, right, bottom) in found:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    solid = [box for kind, box in found if kind in "bd"]
    for n, a in enumerate(solid):
        for b in solid[:n]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    (frame,) = (box for kind, box in found if kind == "l")
    inside = [b for b in solid if frame[0] < b[0] and b[2] < frame[2] and frame[1] < b[1] and b[3] < frame[3]]
    assert len(inside) == 4  # the loop's: one cascade, the decision, and both arms
    text = "".join(root.itertext())
    assert "while <text>:9:3: 6 x" in text and "<text>:3:3" in text and "else: 1 x" in text


def test_explain_and_profile_draw_it(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing, dump = tmp_path / "graph.svg", tmp_path / "dump"
    assert main(["explain", str(file), "--graph", str(drawing)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"if \S*model\.ein:3:3\n    then\n      1 kernel, 1 Einsum", said)
    assert "0 x" not in said and drawing.read_text().startswith("<svg")
    arguments = ["profile", str(file), "--int-range", "4:5", "--graph", str(drawing), "--dump-dir", str(dump)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"while \S*model\.ein:9:3: 4 x, ", said)
    page = (dump / "index.html").read_text()
    assert 'tab("control"' in page and "u003csvg" in page and "4 x, " in page


@pytest.mark.parametrize(
    ("regions", "field"),
    [
        ([Region("then", "", ())], r"regions\[0\].kind"),
        ([Region("program", "", ()), Region("program", "", ())], r"regions\[1\].kind"),
        ([Region("program", "", (("calls", 0, 2),))], r"regions\[0\].items"),
        ([Region("program", "", (("calls", 1, 0),))], r"regions\[0\].items"),
        ([Region("program", "", (("loop", 0),))], r"regions\[0\].items"),
        ([Region("program", "", (("loop", 9),))], r"regions\[0\].items"),
        ([Region("program", "", (("if", 1),)), Region("then", "", ())], r"regions\[0\].items"),
        ([Region("program", "", (("jump", 1),)), Region("then", "", ())], r"regions\[0\].items"),
        ([Region("program", "", (("if", 1, 1),)), Region("then", "", ())], r"regions\[1\]"),
        ([Region("program", "", ()), Region("then", "", ())], r"regions\[1\]"),
    ],
)
def test_a_graph_that_is_none_is_refused(regions: list[Region], field: str) -> None:
    with pytest.raises(BadManifest, match=field):
        check_regions(regions, 2)
