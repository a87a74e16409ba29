"""How fine the float types are: unit roundoff, distance at 0, greatest number."""

from __future__ import annotations

import numpy as np

from dlc.ir.codes import magnitudes
from dlc.ir.dtype import DType

_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
_LEAST = {
    "f64": 2.0**-1074,
    "f32": 2.0**-149,
    "f16": 2.0**-24,
    "bf16": 2.0**-133,
}
_GREATEST = {"f64": 1.797e308, "f32": 3.4028e38, "f16": 65504.0, "bf16": 3.389e38}


def unit_roundoff(dtype: DType) -> float:
    """Half the distance from 1 to the next number of the type; 0 for integers."""
    if dtype.format is not None:
        return 2.0 ** -(dtype.format.mantissa + 1)
    return _ROUNDOFF[dtype.name] if dtype.is_float else 0.0


def least_step(dtype: DType) -> float:
    """The distance between 0 and the numbers next to it; 0 for integers."""
    if dtype.format is not None:
        return float(np.diff(magnitudes(dtype.format)[:2])[0])
    return _LEAST.get(dtype.name, 0.0)


def greatest(dtype: DType) -> float:
    """The greatest finite number of a float type; infinity for integers."""
    if dtype.format is not None:
        return float(magnitudes(dtype.format)[-1])
    return _GREATEST.get(dtype.name, np.inf)
