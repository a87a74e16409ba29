"""Addresses for buffers of known lifetimes: baselines, bounds and a complete search, on NumPy alone."""

from dlc.passes.packing.buffers import Buffer, Infeasible, NotFound, Packed, check, most_live
from dlc.passes.packing.fit import best_fit, first_fit
from dlc.passes.packing.packer import Placement, fit_least, pack, pack_least

__all__ = [
    "Buffer",
    "Infeasible",
    "NotFound",
    "Packed",
    "Placement",
    "best_fit",
    "check",
    "first_fit",
    "fit_least",
    "most_live",
    "pack",
    "pack_least",
]
