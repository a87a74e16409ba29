"""Architectures beyond the zoo, tiny and with random weights: imported, interpreted and compared with PyTorch (make test-all)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.frontend.torch_case import compare, data
from tests.models.entry import padding_mask, token_ids
from torch import nn
from torch.utils import _pytree as pytree

from dlc.frontend.torch_export import import_torch

T = pytest.importorskip("transformers")
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
CAUSAL = {**TEXT, "num_key_value_heads": 1, "use_cache": False}
ENCODER_DECODER = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "use_cache": False,
}
PATCHES = {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")} | {
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


def text() -> tuple[Any, ...]:
    return token_ids(2, 7, 50, 1), padding_mask(2, 7)


def ids() -> tuple[Any, ...]:
    return (token_ids(2, 7, 50, 1),)


def image(size: int = 32) -> Callable[[], tuple[Any, ...]]:
    return lambda: (data(2, 3, size, size),)


def model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """`transformers.NameModel` of `NameConfig(options)`."""
    kind = {"CLIPVision": "CLIPVisionModel", "CLIPText": "CLIPTextModel", "SiglipVision": "SiglipVisionModel"}
    return lambda: getattr(T, kind.get(name, f"{name}Model"))(getattr(T, f"{name}Config")(**options))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "distilbert": (
        model("DistilBert", vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40),
        text,
    ),
    "roberta": (model("Roberta", **TEXT), text),
    "albert": (model("Albert", **TEXT, embedding_size=8), text),
    "deberta_v2": (
        model("DebertaV2", **TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
        text,
    ),
    "modernbert": (
        model("ModernBert", **TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
        text,
    ),
    "gpt_neox": (model("GPTNeoX", **TEXT, use_cache=False), text),
    "phi": (model("Phi", **TEXT, use_cache=False), text),
    "qwen2": (model("Qwen2", **CAUSAL), text),
    "qwen3": (model("Qwen3", **CAUSAL, head_dim=8), text),
    "gemma2": (model("Gemma2", **CAUSAL, head_dim=8), text),
    "mistral": (model("Mistral", **CAUSAL), text),
    "mixtral": (model("Mixtral", **CAUSAL, num_local_experts=3), text),
    "mamba": (model("Mamba", vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4, use_cache=False), ids),
    "bart": (model("Bart", **ENCODER_DECODER, max_position_embeddings=40), text),
    "funnel": (model("Funnel", vocab_size=50, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24), text),
    "clip_text": (model("CLIPText", **TEXT), text),
    "clip_vision": (model("CLIPVision", **PATCHES), image()),
    "siglip": (model("SiglipVision", **PATCHES), image()),
    "beit": (model("Beit", **PATCHES, use_relative_position_bias=True), image()),
    "swin": (
        model("Swin", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4),
        image(),
    ),
    "segformer": (
        model("Segformer", **STAGES, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16),
        image(64),
    ),
    "mobilevit": (
        model(
            "MobileViT",
            image_size=64,
            hidden_sizes=[16, 16, 16],
            neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
            num_attention_heads=2,
        ),
        image(64),
    ),
    "regnet": (model("RegNet", embedding_size=8, **STAGES, groups_width=4), image()),
    "levit": (
        model(
            "Levit",
            image_size=64,
            hidden_sizes=[16, 16, 16],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        ),
        image(64),
    ),
    "wav2vec2": (
        model(
            "Wav2Vec2",
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=[8, 8],
            conv_stride=[5, 2],
            conv_kernel=[10, 3],
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            num_feat_extract_layers=2,
        ),
        lambda: (data(2, 800),),
    ),
}


class Tensors(nn.Module):
    """The tensors among a model's outputs, as a list."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> list[torch.Tensor]:
        return [t for t in pytree.tree_leaves(dict(self.inner(*args))) if isinstance(t, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_architecture(name: str) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    whole = Tensors(make().eval()).eval()
    args = inputs()
    compare(import_torch(whole, args), whole, args, name)
