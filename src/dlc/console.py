"""What the command line prints: results on stdout in the format asked for, progress and errors on stderr.

Progress is shown on a terminal only; colour only on a terminal and not under NO_COLOR.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from dlc.errors import DlcError


class Console:
    """Where one run of `dlc` prints.

    Attributes:
        format: text, json (one object) or jsonl (one object per line).
    """

    def __init__(self, format: str = "text", out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.format = format
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self._live = False

    @property
    def text(self) -> bool:
        return self.format == "text"

    def color(self, stream: TextIO) -> bool:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def say(self, line: str = "") -> None:
        """A line of the result, in text format; scripts get `emit` instead."""
        if self.text:
            self._clear()
            print(line, file=self.out)

    def emit(self, value: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """The result for scripts: as json one object (with `rows`), as jsonl the rows and then the object."""
        if self.format == "json":
            rows = list(rows)
            print(json.dumps({**value, **({"rows": rows} if rows else {})}, default=_plain, indent=2), file=self.out)
        elif self.format == "jsonl":
            for row in (*rows, value):
                print(json.dumps(row, default=_plain), file=self.out)

    def progress(self, text: str) -> None:
        """What is being done now; replaced by the next one."""
        if self.err.isatty():
            self._clear()
            self.err.write(f"  {text} ...")
            self.err.flush()
            self._live = True

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Progress around a part of the work; its time stays on the terminal when it took long."""
        began = time.perf_counter()
        self.progress(text)
        yield
        seconds = time.perf_counter() - began
        self._clear()
        if seconds > 1 and self.err.isatty():
            print(f"  {text}: {seconds:.1f} s", file=self.err)

    def warn(self, text: str) -> None:
        self._clear()
        print(f"dlc: {text}", file=self.err)

    def error(self, error: DlcError) -> None:
        """An error with its place, way out and notes; as an object for scripts."""
        self._clear()
        if not self.text:
            print(json.dumps({"error": error.to_json()}, default=_plain), file=self.out)
        text = error.render()
        if self.color(self.err):
            text = text.replace(f"error[{error.code}]", f"\x1b[1;31merror[{error.code}]\x1b[0m", 1)
        print(text, file=self.err)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> None:
        """Aligned columns; `right` has an `r` for each column that is aligned right, anything else is left."""
        if not self.text:
            return
        cells = [list(map(str, head)), *([str(c) for c in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        for number, row in enumerate(cells):
            parts = [c.rjust(w) if right[i : i + 1] == "r" else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
            line = "  ".join(parts).rstrip()
            self.say(f"\x1b[1m{line}\x1b[0m" if number == 0 and self.color(self.out) else line)

    def _clear(self) -> None:
        if self._live:
            self.err.write("\r\x1b[K")
            self.err.flush()
            self._live = False


def bytes_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def seconds_text(seconds: float) -> str:
    """A duration for people."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _plain(value: Any) -> Any:
    for method in ("to_json", "tolist", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)
