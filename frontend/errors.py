"""Errors that all frontends share (DLC0200-0209)."""

from __future__ import annotations

from typing import ClassVar

from dlc.errors import Unsupported


class UnsupportedOperator(Unsupported):
    """An operator, or a form of it, that has no definition here."""

    code: ClassVar[str] = "DLC0200"
    template: ClassVar[str] = "not supported: {op} because {reason}"
