"""dlc, a deep-learning compiler: `compile` a model, `load` an artifact.

Names are resolved on first use, so that `import dlc` costs nothing and a process that only runs an
artifact imports NumPy alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dlc.compiler import compile
    from dlc.errors import DlcError, Unsupported
    from dlc.gguf_weights import load_gguf
    from dlc.quantize import Quantize
    from dlc.runtime.executable import Executable, load

_HOME = {
    "compile": "dlc.compiler",
    "load": "dlc.runtime.executable",
    "Quantize": "dlc.quantize",
    "load_gguf": "dlc.gguf_weights",
    "Executable": "dlc.runtime.executable",
    "DlcError": "dlc.errors",
    "Unsupported": "dlc.errors",
}

if os.environ.get("DLC_LOGS"):
    from dlc.logs import configure as _configure_logs

    _configure_logs()

__all__ = ["DlcError", "Executable", "Quantize", "Unsupported", "__version__", "compile", "load", "load_gguf"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'dlc' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
