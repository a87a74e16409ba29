"""Names in the text form: plain where they can be, in backquotes where they would read as something else."""

from __future__ import annotations

import re
from functools import lru_cache

KEYWORDS = frozenset(
    """cascade kernel over program const donate symbols in by scan carry yield stack if else loop while collect upto launch
    library binds bind spill fill scatter onto drop where when loc true false inf nan Infinity NaN idx val""".split()
)
_PLAIN = re.compile(r"[A-Za-z_$][\w$]*(\.[\w$]+)*|@[\w@$]+([./][\w@$]+)*", re.ASCII)
_ESCAPES = {"\\": "\\\\", "`": "\\`", "\n": "\\n", "\r": "\\r"}


@lru_cache(maxsize=1 << 16)
def show_name(name: str) -> str:
    """`name` as the text form writes it."""
    if _PLAIN.fullmatch(name) and name not in KEYWORDS:
        return name
    return "`" + "".join(_ESCAPES.get(c, c) for c in name) + "`"


def read_name(text: str) -> str:
    """The name that `text`, a token of the text form, stands for."""
    if not text.startswith("`"):
        return text
    back = {"n": "\n", "r": "\r"}
    return re.sub(r"\\(.)", lambda m: back.get(m[1], m[1]), text[1:-1])
