"""Errors of the spatial model (DLC0700-0719): targets, extents, and cascades that a mapping does not cover."""

from __future__ import annotations

from dlc.errors import BadInput, Infeasible, Unsupported


class UnknownTarget(BadInput):
    """The target is neither one that comes with dlc nor a file."""

    code = "DLC0700"
    template = "there is no target '{name}'"
    hint = (
        "the spatial targets are: {known}; or give the path of a JSON file (docs/spatial-model.md has its fields), "
        "or a CPU: host, avx512, avx2, baseline"
    )


class BadTarget(BadInput):
    """A target file that does not say what the schema asks for."""

    code = "DLC0701"
    template = "target '{name}': {field}: {reason}"
    hint = "docs/spatial-model.md has the fields; `base` takes what is not said from another target"


class BadExtents(BadInput):
    """Extents that the cascade has no symbols for, or symbols without a value."""

    code = "DLC0702"
    template = "extents of '{cascade}': {reason}"
    hint = "give --extent {symbols}"


class UnmappableCascade(Unsupported):
    """The mapping has no place for this cascade, or the model cannot tell which rank is which."""

    code = "DLC0703"
    template = "the mapping of target '{target}' does not cover this: {reason}"
    hint = "{way_out}"


class UnknownOperation(Unsupported):
    """The target does not say what an operation costs."""

    code = "DLC0704"
    template = "target '{target}' does not say what '{op}' costs on the array '{array}'"
    hint = "add it to the array's `operations`, with `cycles` and `pj`, or `as` other operations; it has: {known}"


class BufferTooSmall(Infeasible):
    """Not even the smallest tile of the mapping fits the on-chip buffer."""

    code = "DLC0705"
    template = (
        "{needed_bytes} bytes are live on chip in the smallest tile, the buffer of '{target}' holds {buffer_bytes}"
    )
    hint = "a larger buffer, a smaller array, or smaller extents of the ranks {ranks}"
