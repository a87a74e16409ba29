"""The pipeline that `dlc.compile` runs unless it is given another one."""

from __future__ import annotations

# inline-pointwise runs again after prepare-contractions: the copies that it makes read through what precedes them.
DEFAULT_PIPELINE = "inline-pointwise,prepare-contractions,inline-pointwise,fuse"
