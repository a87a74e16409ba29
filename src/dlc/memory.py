"""How much memory this process has had resident at most, and since when that is counted (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """The most that was resident since the start or the last `reset_peak`; 0 where the system does not tell."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def reset_peak() -> bool:
    """Count from now on; False where that is not allowed, the peak then stays what it was."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


__all__ = ["peak_bytes", "reset_peak"]
