"""Models as PTX for NVIDIA GPUs: the kernels only, compiled and not run (docs/gpu.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.codegen.gpu_targets import GPU_TARGETS
from dlc.codegen.target import UnknownTarget

if TYPE_CHECKING:
    from dlc.codegen.ptx import PtxKernel
    from dlc.quantize import Quantize


def compile_ptx(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "sm_80",
    dynamic_shapes: Any = None,
    accuracy: str = "default",
    disable_passes: Sequence[str] = (),
    specialise: Mapping[str, Any] | None = None,
    quantize: Quantize | str | None = None,
    name: str | None = None,
) -> list[PtxKernel]:
    """Each distinct kernel of a model as PTX; the arguments as `dlc.compile` takes them.

    Args:
        target: 'sm_80' or 'sm_90'.

    Raises:
        NotForWarps: a kernel does what has no GPU code.
    """
    from dlc.codegen.ptx import ptx_kernels
    from dlc.compiler import run_passes
    from dlc.importing import import_any
    from dlc.passes.assume_bounds import assume_bounds
    from dlc.passes.default import default_pipeline
    from dlc.quantize import Quantize, quantise

    if target not in GPU_TARGETS:
        raise UnknownTarget(name=target, known=", ".join(GPU_TARGETS))
    chip = GPU_TARGETS[target]
    given = None if args is None else tuple(args) if isinstance(args, (tuple, list)) else (args,)
    imported = import_any(model, given, kwargs, dynamic_shapes, specialise, name)
    wish = Quantize.of(quantize)
    if wish is not None:
        imported, _ = quantise(imported, wish)
    pipeline = default_pipeline(chip.lanes, chip.vector_registers, accuracy)
    return ptx_kernels(run_passes(assume_bounds(imported.program), pipeline, disable_passes), chip)


def write(kernels: Sequence[PtxKernel], folder: Path) -> None:
    """`NAME.ptx` of each kernel, `NAME.mlir`, and the tile programs of a task and of one of its threads."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in kernels:
        texts = {"ptx": k.ptx, "mlir": k.mlir, "tile": str(k.whole), "thread.tile": str(k.thread)}
        for ending, text in texts.items():
            (folder / f"{k.name}.{ending}").write_text(text)


def facts(kernel: PtxKernel) -> dict[str, Any]:
    """What is known of a kernel, for `--format json`."""
    usage = kernel.usage
    known = {"registers": usage.registers, "spilled_bytes": usage.spilled_stores + usage.spilled_loads} if usage else None
    return {"name": kernel.name, "entry": kernel.entry, "ptx_bytes": len(kernel.ptx), "ptxas": known}


def usage_text(kernel: PtxKernel) -> str:
    """What `ptxas` says, or that there is none."""
    usage = kernel.usage
    if usage is None:
        return "not assembled: no ptxas on PATH"
    return f"{usage.registers} registers, {usage.spilled_stores} bytes spilled, {usage.spilled_loads} read back"
