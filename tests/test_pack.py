"""`dlc pack`: MiniMalloc's format in and out, proofs, and errors with their line."""

from __future__ import annotations

import csv
import os
import stat
from pathlib import Path

import pytest

from dlc.cli import main
from dlc.packing_csv import BadBuffers

EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"
"""MiniMalloc's example: at most 12 bytes are alive at once."""


def pack(path: Path, *options: str) -> int:
    return main(["pack", str(path), *options])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_writes_the_table_with_offsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(EXAMPLE)
    assert pack(source, "--capacity", "12", "-o", str(out)) == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["id", "lower", "upper", "size", "offset"]
    assert [r["id"] for r in rows] == ["b1", "b2", "b3", "b4", "b5"]
    for a in rows:
        assert 0 <= int(a["offset"]) <= 8
        for b in rows:
            if a["id"] < b["id"] and int(a["lower"]) < int(b["upper"]) and int(b["lower"]) < int(a["upper"]):
                assert abs(int(a["offset"]) - int(b["offset"])) >= 4
    assert "5 buffers in 12 B" in capsys.readouterr().out


def test_proves_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(EXAMPLE)
    assert pack(source, "--capacity", "11", "-o", str(out)) == 6
    assert not out.exists()
    message = capsys.readouterr().err
    assert "do not fit below 11: 12 bytes are alive at time 0" in message and "no capacity below 12 can do" in message


def test_extra_columns_are_read_and_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("id,start,end,size,alignment,offset,note\na,0,4,3,1,4,x\nb,4,9,3,4,,y\nc,5,6,1,1,-1,z\n")
    assert pack(source, "-o", str(out)) == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["id", "start", "end", "size", "alignment", "note", "offset"]
    assert [r["note"] for r in rows] == ["x", "y", "z"]
    assert [r["offset"] for r in rows[:2]] == ["4", "0"]  # `end` is inclusive: a and b meet at 4


def test_without_a_capacity_it_packs_as_low_as_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text(EXAMPLE)
    assert pack(source, "--format", "json") == 0
    assert '"height": 12' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", "in.csv", "the file is empty"),
        ("id,lower,size\n", "in.csv:1", "no column 'upper' among id, lower, size"),
        ("id,lower,upper,size,size\n", "in.csv:1", "two columns say the size"),
        ("id,lower,upper,size,gaps\n", "in.csv:1", "buffers with gaps in their lives are not supported"),
        ("id,lower,upper,size\na,0,1\n", "in.csv:2", "3 cells under 4 columns"),
        ("id,lower,upper,size\n\na,0,x,1\n", "in.csv:3", "upper is 'x', no integer"),
        ("id,lower,upper,size\na,3,1,1\n", "in.csv:2", "the life from 3 to 1 ends before it begins"),
        ("id,lower,upper,size\na,0,1,-1\n", "in.csv:2", "size is -1"),
        ("id,lower,upper,size\na,0,1,1\na,0,1,1\n", "in.csv:3", "buffer 'a' is in line 2 already"),
        ("id,lower,upper,size,alignment\na,0,1,1,0\n", "in.csv:2", "alignment is 0"),
        ("id,lower,upper,size,alignment,offset\na,0,1,1,4,6\n", "in.csv:2", "offset 6 is no multiple of 4"),
        (f"id,lower,upper,size\na,0,1,{1 << 70}\n", "in.csv:2", f"size is {1 << 70}, beyond 2^60"),
        ("id,lower,upper,size\na,0,1,1_000\n", "in.csv:2", "size is '1_000', no integer"),
        ("id,lower,upper,size\na,0,1," + "9" * 5000 + "\n", "in.csv:2", "size is " + "9" * 40 + ", beyond 2^60"),
        ("id,lower,upper,size,offset\na,0,1,1,-5\n", "in.csv:2", "offset is -5"),
        ('id,lower,upper,size\n"a,0,1,1\n', "in.csv", "no CSV: unexpected end of data"),
    ],
)
def test_one_error_with_its_line(
    text: str, place: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.csv"
    source.write_text(text)
    assert pack(source, "--capacity", "9") == 1
    message = capsys.readouterr().err
    assert place in message and f"error[{BadBuffers.code}]: {reason}" in message


@pytest.mark.parametrize("capacity", [(), ("--capacity", "10")], ids=["as low as can be", "a capacity"])
def test_given_offsets_that_collide(capacity: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,lower,upper,size,offset\na,0,2,4,0\nb,1,3,4,2\n")
    assert pack(source, *capacity) == 6
    message = capsys.readouterr().err
    assert "DLC0693" in message and "'a' and 'b' overlap" in message and "no capacity can do" in message


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tmp_path / "none.csv") == 1
    message = capsys.readouterr().err
    assert "DLC0699" in message and "No such file" in message and "UTF-8" in message


def test_what_is_no_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder or a pipe where the answer should go, and nothing else is left behind; a link is followed."""
    source = tmp_path / "in.csv"
    source.write_text(EXAMPLE)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        assert pack(source, "-o", str(tmp_path / name)) == 1
        assert "it exists and is no regular file" in capsys.readouterr().err
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert pack(source, "-o", str(tmp_path / "link.csv")) == 0
    assert (tmp_path / "link.csv").is_symlink() and len(rows_of(tmp_path / "real.csv")) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "in.csv", "link.csv", "pipe", "real.csv"]
