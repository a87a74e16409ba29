"""Where a node comes from: the user's Python line or the ONNX node; carried through every rewrite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in the user's model or in a text file.

    Attributes:
        name: what the user knows it by: `model.py:12`, an ONNX node name, a dump's file name.
        line, column: 1-based position in text input; 0 when there is none.
    """

    name: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if self.line:
            return f"{self.name or '<text>'}:{self.line}:{self.column}"
        return self.name

    def __bool__(self) -> bool:
        return bool(self.name or self.line)


UNKNOWN = Loc()
