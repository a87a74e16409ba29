"""The suite as data: which model of which size each row of the results is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the results; rows of the same entry run the same artifact, whose batch and length are symbolic.

    Attributes:
        entry: a model of `benchmarks.sources`.
        batch: how many at once.
        length: tokens, frames or cached tokens; 0 where the model has no such thing.
    """

    entry: str
    batch: int = 1
    length: int = 0

    @property
    def name(self) -> str:
        """`bert_base-8x128`, `resnet50-8`."""
        return f"{self.entry}-{self.batch}" + (f"x{self.length}" if self.length else "")


SUITE = (
    Row("bert_base", 1, 128),
    Row("bert_base", 8, 128),
    Row("bert_base", 1, 512),
    Row("minilm", 1, 128),
    Row("gpt2", 1, 128),
    Row("gpt2_decode", 1, 128),
    Row("smollm2_prefill", 1, 128),
    Row("smollm2_decode", 1, 128),
    Row("vit_base"),
    Row("resnet50"),
    Row("resnet50", 8),
    Row("mobilenet_v2"),
    Row("efficientnet_b0"),
    Row("convnext_tiny"),
    Row("densenet121"),
    Row("unet_256"),
    Row("whisper_tiny_encoder", 1, 3000),
    Row("lstm_tagger", 1, 128),
    Row("silero_vad"),
    Row("mlp", 128),
    Row("dlrm", 128),
    Row("bert_base_bf16", 1, 128),
    Row("vit_base_bf16"),
    Row("resnet50_bf16"),
    Row("mobilenet_v2_bf16"),
    Row("bert_base_i8", 1, 128),
    Row("vit_base_i8"),
    Row("resnet50_i8"),
    Row("mobilenet_v2_i8"),
)


def chosen(names: Iterable[str]) -> tuple[Row, ...]:
    """The rows with these names, where the name of an entry stands for all its rows; in the suite's order.

    Raises:
        ValueError: a name that is neither.
    """
    wanted = set(names)
    known = {row.name for row in SUITE} | {row.entry for row in SUITE}
    if wanted - known:
        raise ValueError(f"not in the suite: {', '.join(sorted(wanted - known))}; it has {', '.join(sorted(known))}")
    return tuple(row for row in SUITE if {row.name, row.entry} & wanted)
