"""Whose code it is that runs, or calls: the model's, PyTorch's, the standard library's."""

from __future__ import annotations

import sys
import sysconfig
import types
from typing import Any

LEFT_ALONE = frozenset(
    "torch numpy dlc builtins functorch sympy onnx filelock fsspec jinja2 mpmath networkx triton pytest _pytest pluggy".split()
)
"""Packages that are no model's: those that compile one, what PyTorch itself requires, and pytest, which writes itself into `assert`."""
_STANDARD = sysconfig.get_paths()["stdlib"]

_ON_THE_WAY = frozenset(
    "torch._tensor torch._tensor_str torch.overrides torch._subclasses.fake_tensor unittest.mock"
    " torch._export.non_strict_utils torch.fx.experimental.proxy_tensor".split()
)
"""What is between a function of PyTorch and the code that calls it."""
_CALLING = frozenset(f"dlc.frontend.torch_{name}" for name in "calls effects subscripts aside classes".split())
"""What is between rewritten code and a function that it calls."""
_TELLING = frozenset("logging warnings traceback".split())
"""Who turns values into text for people."""


def module_of(thing: Any) -> str:
    """The name of the module that a class or function is from; of a metaclass it can be a descriptor, for its instances."""
    name = getattr(thing, "__module__", None)
    return name if isinstance(name, str) else ""


def asking() -> types.CodeType | None:
    """The code that has called PyTorch; None where that is PyTorch itself."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in _ON_THE_WAY and not module.startswith(("dlc.frontend", "torch.utils._contextlib")):
            return None if module.partition(".")[0] in LEFT_ALONE else frame.f_code
        frame = frame.f_back
    return None


def asking_for(frame: types.FrameType | None) -> types.FrameType | None:
    """The frame of the model's code that calls, perhaps through the standard library or `rt.call`; None where others call."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        root = module.partition(".")[0]
        if root in _TELLING:
            return None
        if root not in sys.stdlib_module_names and module not in _CALLING:
            return None if root in LEFT_ALONE else frame
        frame = frame.f_back
    return None


def left_alone(function: types.FunctionType) -> bool:
    """Whether a function belongs to PyTorch, NumPy, dlc or the standard library."""
    module = module_of(function).partition(".")[0]
    if module in LEFT_ALONE:
        return True
    file = function.__code__.co_filename
    return module in sys.stdlib_module_names or (file.startswith(_STANDARD) and "site-packages" not in file)
