"""What is found out about branches and loops of rewritten source, beside the syntax tree."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class BranchNote:
    """Of an `If`.

    Attributes:
        live: names whose values matter after it; None where nobody looked.
        returns: for each arm, whether it ends in a return whatever happens, so that its variables are dead afterwards.
        behind: the loop that it follows, where it is there for what comes after a return out of that loop.
    """

    live: set[str] | None = None
    returns: tuple[bool, bool] = (False, False)
    behind: ast.stmt | None = None


@dataclass
class LoopNote:
    """Of a `While` or `For`.

    Attributes:
        live: names whose values matter after it or in its next step; None where nobody looked.
        after: names whose values matter after it; None where nobody looked.
        flags: names of the flags that end it.
        followed: whether an `If` is `behind` it.
        names, name: its state, and its own variable, once it is rewritten.
    """

    live: set[str] | None = None
    after: set[str] | None = None
    flags: tuple[str, ...] = ()
    followed: bool = False
    names: tuple[str, ...] = ()
    name: str = ""


@dataclass
class Notes:
    """Of one function, by the statement."""

    branches: defaultdict[ast.stmt, BranchNote] = field(default_factory=lambda: defaultdict(BranchNote))
    loops: defaultdict[ast.stmt, LoopNote] = field(default_factory=lambda: defaultdict(LoopNote))


__all__ = ["BranchNote", "LoopNote", "Notes"]
