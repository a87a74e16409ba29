"""DLC_LOGS: what dlc logs to stderr, in the grammar of torch's TORCH_LOGS.

    DLC_LOGS=passes              each pass with its time
    DLC_LOGS=compile             where the time of a compilation went, and what came from the cache
    DLC_LOGS=+passes,-compile    + also what is of interest to developers only, - only errors
    DLC_LOGS=all                 everything
    DLC_LOGS=traceback           Python's traceback of internal errors on the command line

Each name is a logger, `dlc.NAME`, of Python's logging: a program may configure them itself instead.
"""

from __future__ import annotations

import logging
import os
import sys

from dlc.errors import BadInput

NAMES = ("passes", "compile")
FLAGS = ("traceback",)


class UnknownLog(BadInput):
    """DLC_LOGS names nothing that logs."""

    code = "DLC0680"
    template = "DLC_LOGS: there is no log '{name}'"
    hint = "the logs are: {known}; + before a name shows more, - only errors"


def levels(text: str) -> dict[str, int]:
    """Level by logger name.

    Raises:
        UnknownLog: a name that is none.
    """
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name = part.lstrip("+-")
        if name not in (*NAMES, *FLAGS, "all"):
            raise UnknownLog(name=name, known=", ".join(("all", *NAMES, *FLAGS)))
        level = {"+": logging.DEBUG, "-": logging.ERROR}.get(part[0], logging.INFO)
        found.update(dict.fromkeys(NAMES if name == "all" else () if name in FLAGS else (name,), level))
    return found


def configure(text: str | None = None) -> None:
    """Turn on what DLC_LOGS (or `text`) asks for; a mistake in the environment is told, and no reason to fail."""
    try:
        wanted = levels(os.environ.get("DLC_LOGS", "") if text is None else text)
    except UnknownLog as error:
        if text is not None:
            raise
        print(error, file=sys.stderr)
        return
    parent = logging.getLogger("dlc")
    if wanted and not parent.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
        parent.addHandler(handler)
        parent.propagate = False
    for name, level in wanted.items():
        logging.getLogger(f"dlc.{name}").setLevel(level)
