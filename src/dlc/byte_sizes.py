"""Numbers of bytes as people write them: `256KiB`, `16MiB`, `1.5 GiB`, `1MB`, `4096`."""

from __future__ import annotations

import re

from dlc.errors import BadInput

UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class BadByteSize(BadInput):
    """A number of bytes cannot be read."""

    code = "DLC0694"
    template = "'{given}' is no number of bytes"
    hint = "write an integer, or a number with KiB, MiB, GiB, KB, MB or GB"


def parse_bytes(given: str | int) -> int:
    """The number of bytes that `given` says."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(given))
    if match is None or match[2].upper() not in UNITS:
        raise BadByteSize(given=given)
    return (
        int(float(match[1]) * UNITS[match[2].upper()]) if "." in match[1] else int(match[1]) * UNITS[match[2].upper()]
    )
