"""What `--quantize` made of a model, in lines for people and in facts for programs."""

from __future__ import annotations

from typing import Any

from dlc.console import Console, bytes_text
from dlc.runtime.executable import Executable


def facts_of(executable: Executable) -> list[dict[str, Any]]:
    """Each quantised matrix; empty without `--quantize`, and when the program came from the cache."""
    report = executable.compile_report
    return [] if report is None else [layer.to_json() for layer in report.quantised]


def say_quantised(executable: Executable, console: Console) -> None:
    """One line for each matrix, and their sum."""
    layers = facts_of(executable)
    if not layers:
        return
    count = [rows * columns for rows, columns in (layer["shape"] for layer in layers)]
    size = sum(n * layer["bits"] for n, layer in zip(count, layers, strict=True)) / 8
    console.say(
        f"  {len(layers)} matrices quantised: {bytes_text(int(size))}, {8 * size / sum(count):.2f} bits per weight"
    )
    width = max(len(layer["name"]) for layer in layers)
    for layer in layers:
        rows, columns = layer["shape"]
        error = f"weights {layer['weight_error']:.2%}"
        if layer["output_error"] is not None:
            error += f", products {layer['output_error']:.2%}"
        apart = f", {layer['outliers']} columns in f16" if layer["outliers"] else ""
        console.say(
            f"    {layer['name']:{width}}  {rows} x {columns}  {layer['type']} {layer['bits']:.2f} bits  error: {error}{apart}"
        )
