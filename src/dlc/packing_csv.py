"""Buffers from and to MiniMalloc's CSV: `id,lower,upper,size` and, where wanted, `alignment`, `hint` and `offset`.

Lives are half-open; a last column called `end` instead of `upper` is inclusive, as MiniMalloc has it. An `offset` that is
given is kept; the answer has one in every row, and the other columns as they were.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlc.errors import BadInput
from dlc.ir.loc import Loc
from dlc.passes.packing import Buffer
from dlc.runtime.whole_file import whole_file

NAMES = {
    "id": ("id", "buffer", "buffer_id"),
    "lower": ("lower", "start"),
    "upper": ("upper", "end"),
    "size": ("size",),
    "alignment": ("alignment",),
    "hint": ("hint",),
    "offset": ("offset",),
}
REQUIRED = ("id", "lower", "upper", "size")


class BadBuffers(BadInput):
    """A CSV file of buffers does not say what has to be known."""

    code = "DLC0697"
    template = "{reason}"
    hint = "the columns are id,lower,upper,size and, if wanted, alignment,hint,offset; lives are half-open"


class UnreadableBuffers(BadInput):
    """There is no such file of buffers, or it is none of text."""

    code = "DLC0699"
    template = "cannot be read: {reason}"
    hint = "give a file of comma-separated values in UTF-8 that this user may read"


@dataclass(frozen=True, slots=True)
class Table:
    """A file of buffers: its columns, its rows as they are, and what they mean."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    buffers: tuple[Buffer, ...]


def read_buffers(path: Path) -> Table:
    """The table in `path`.

    Raises:
        BadBuffers: with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableBuffers(Loc(str(path)), reason=str(error)) from None
    reader = csv.reader(io.StringIO(text), strict=True)
    lines: list[tuple[int, tuple[str, ...]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, tuple(cell.strip() for cell in cells)))
    except csv.Error as error:
        raise BadBuffers(Loc(str(path), reader.line_num), reason=f"no CSV: {error}") from None
    if not lines:
        raise BadBuffers(Loc(str(path)), reason="the file is empty")
    header, columns = lines[0]
    at = _columns(path, header, columns)
    inclusive = columns[at["upper"]] == "end"
    seen: dict[str, int] = {}
    buffers = []
    for line, row in lines[1:]:
        loc = Loc(str(path), line)
        if len(row) != len(columns):
            raise BadBuffers(loc, reason=f"{len(row)} cells under {len(columns)} columns")
        buffer = _buffer(loc, at, row, inclusive)
        if buffer.id in seen:
            raise BadBuffers(loc, reason=f"buffer '{buffer.id}' is in line {seen[buffer.id]} already")
        seen[buffer.id] = line
        buffers.append(buffer)
    return Table(columns, tuple(row for _, row in lines[1:]), tuple(buffers))


def _columns(path: Path, line: int, columns: tuple[str, ...]) -> dict[str, int]:
    loc = Loc(str(path), line)
    at: dict[str, int] = {}
    for meaning, names in NAMES.items():
        found = [i for i, column in enumerate(columns) if column in names]
        if len(found) > 1:
            raise BadBuffers(loc, reason=f"two columns say the {meaning}")
        if found:
            at[meaning] = found[0]
        elif meaning in REQUIRED:
            raise BadBuffers(loc, reason=f"no column '{meaning}' among {', '.join(columns)}")
    if "gaps" in columns:
        raise BadBuffers(loc, reason="buffers with gaps in their lives are not supported")
    return at


def _buffer(loc: Loc, at: dict[str, int], row: tuple[str, ...], inclusive: bool) -> Buffer:
    def number(column: str, default: int | None = None) -> int:
        text = row[at[column]] if column in at else ""
        if not text and default is not None:
            return default
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise BadBuffers(loc, reason=f"{column} is '{text[:40]}', no integer")
        if len(text) > 20 or abs(value := int(text)) >= 1 << 60:
            raise BadBuffers(loc, reason=f"{column} is {text[:40]}, beyond 2^60")
        return value

    lower, upper, size = number("lower"), number("upper") + inclusive, number("size")
    alignment, hint, offset = number("alignment", 1), number("hint", -1), number("offset", -1)
    for holds, reason in (
        (upper >= lower, f"the life from {lower} to {upper} ends before it begins"),
        (size >= 0, f"size is {size}"),
        (offset >= -1, f"offset is {offset}"),
        (alignment > 0, f"alignment is {alignment}"),
        (offset < 0 or alignment <= 0 or offset % alignment == 0, f"offset {offset} is no multiple of {alignment}"),
    ):
        if not holds:
            raise BadBuffers(loc, reason=reason)
    given, wanted = (None if n < 0 else n for n in (offset, hint))
    return Buffer(row[at["id"]], lower, upper, size, alignment, given, wanted)


def write_buffers(path: Path, table: Table, offsets: Sequence[int]) -> None:
    """The table with its offsets, all of it or nothing.

    Raises:
        CannotWrite: what is at `path` is unchanged.
    """
    columns = [c for c in table.columns if c != "offset"]
    kept = [i for i, c in enumerate(table.columns) if c != "offset"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "offset"])
    for row, offset in zip(table.rows, offsets, strict=True):
        writer.writerow([*(row[i] for i in kept), offset])
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
