"""The GPUs that kernels are compiled for; none of them is run."""

from __future__ import annotations

from dlc.codegen.target import Target

WARP = 32
"""Threads of a warp."""
SHARED_BYTES = 48 * 1024
"""Shared memory that a block has without asking the driver for more."""
MATRIX_UNIT = "mma"
_PTX_VERSION = "+ptx80"  # the first that knows sm_90


def _gpu(chip: str) -> Target:
    # a register of a tile is a word for each thread; 64 of them leave room for addresses
    return Target(chip, chip, _PTX_VERSION, ("fma", MATRIX_UNIT), vector_bits=32 * WARP, vector_registers=64)


GPU_TARGETS = {chip: _gpu(chip) for chip in ("sm_80", "sm_90")}
