"""The pipeline that `dlc.compile` runs unless it is given another one."""

from __future__ import annotations

DEFAULT_PIPELINE = ""
