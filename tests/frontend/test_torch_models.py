"""Small variants of the zoo's architectures: exported with symbolic extents, imported, interpreted, compared with PyTorch.

The full models run as native code in the tests of the compiler; here the importer alone is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.frontend.torch_case import compare, data
from tests.models import audio, causal, text, vision
from tests.models.entry import padding_mask, token_ids
from torch import nn
from torch.export import Dim

from dlc.frontend.torch_export import export, import_torch

BATCH, LENGTH = Dim("batch", min=1, max=64), Dim("length", min=1, max=32)
TOKENS = {0: BATCH, 1: LENGTH}


@dataclass(frozen=True)
class Small:
    """A small model, its inputs by batch and length, and its dynamic shapes."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Any, ...]]
    dynamic: tuple[Any, ...]


def ids(batch: int, length: int) -> torch.Tensor:
    return token_ids(batch, length, 50, length)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        attn_implementation="sdpa",
    )
    return text.BertOutputs(BertModel(config))


def minilm() -> nn.Module:
    return text.SentenceEmbedding(bert().bert)


def t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, attn_implementation="sdpa")
    return text.HiddenStates(T5EncoderModel(config))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, attn_implementation="sdpa")
    return causal.GreedyScores(GPT2LMHeadModel(config))


def llama(attention: str) -> nn.Module:
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

    AttentionInterface.register("grouped", causal._grouped_attention)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
        num_labels=5,
        attn_implementation="sdpa",
    )
    return vision.Classes(ViTForImageClassification(config))


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 12], depths=[1, 2], num_labels=5)
    return vision.Classes(ResNetForImageClassification(config))


def mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return vision.Classes(
        MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.15, image_size=32, num_labels=5))
    )


def efficientnet() -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=0.3,
        hidden_dim=320,
        num_labels=5,
        kernel_sizes=[3, 5],
        in_channels=[8, 16],
        out_channels=[16, 24],
        strides=[1, 2],
        num_block_repeats=[1, 2],
        expand_ratios=[1, 4],
        depthwise_padding=[],
    )
    return vision.Classes(EfficientNetForImageClassification(config))


def convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=5)
    return vision.Classes(ConvNextForImageClassification(config))


def whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        num_mel_bins=6,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        attn_implementation="sdpa",
    )
    return audio.WhisperEncoder(WhisperEncoder(config))


def images(size: int) -> Callable[[int, int], tuple[Any, ...]]:
    return lambda batch, _: (data(batch, 3, size, size),)


def decode_inputs(batch: int, length: int) -> tuple[Any, ...]:
    return (ids(batch, 1), *(data(batch, 2, length, 4, seed=n) for n in range(4)))


IMAGES = ({0: BATCH},)
CACHED = {0: BATCH, 2: Dim("cached", min=1, max=64)}
MODELS: dict[str, Small] = {
    "bert": Small(
        bert,
        lambda b, t: (ids(b, t), padding_mask(b, t), (torch.arange(t) > t // 2).long().repeat(b, 1)),
        (TOKENS, TOKENS, TOKENS),
    ),
    "minilm": Small(minilm, lambda b, t: (ids(b, t), padding_mask(b, t)), (TOKENS, TOKENS)),
    "t5_encoder": Small(t5, lambda b, t: (ids(b, t), padding_mask(b, t)), (TOKENS, TOKENS)),
    "gpt2": Small(gpt2, lambda b, t: (ids(b, t),), (TOKENS,)),
    "llama_prefill": Small(lambda: causal.Prefill(llama("sdpa")), lambda b, t: (ids(b, t),), (TOKENS,)),
    "llama_decode": Small(
        lambda: causal.Decode(llama("grouped")), decode_inputs, ({0: BATCH}, tuple(CACHED for _ in range(4)))
    ),
    "lstm_tagger": Small(lambda: text.LstmTagger(50, 6, 5, 4), lambda b, t: (ids(b, t),), (TOKENS,)),
    "vit": Small(vit, images(16), IMAGES),
    "resnet": Small(resnet, images(32), IMAGES),
    "mobilenet_v2": Small(mobilenet, images(32), IMAGES),
    "efficientnet": Small(efficientnet, images(32), IMAGES),
    "convnext": Small(convnext, images(32), IMAGES),
    "unet": Small(lambda: vision.UNet(width=4), images(16), IMAGES),
    "whisper_encoder": Small(
        whisper, lambda b, t: (data(b, 6, 2 * t),), ({0: BATCH, 2: 2 * Dim("half", min=1, max=1500)},)
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_model(name: str) -> None:
    small = MODELS[name]
    torch.manual_seed(7)
    model = small.make().eval()
    imported = import_torch(model, small.inputs(2, 6), dynamic_shapes=small.dynamic)
    assert not imported.decomposed
    compare(imported, model, small.inputs(1, 6), name)
    compare(imported, model, small.inputs(3, 9), name)


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet", "unet", "llama_decode"))]
)
def test_model_in_core_aten(name: str) -> None:
    """The same models decomposed by torch before they are given to the importer."""
    small = MODELS[name]
    torch.manual_seed(7)
    model = small.make().eval()
    exported = export(model, small.inputs(2, 6), None, small.dynamic)
    with torch.no_grad():
        core = exported.run_decompositions()
    imported = import_torch(core)
    assert not imported.decomposed
    compare(imported, model, small.inputs(3, 9), name)


def test_a_saved_program(tmp_path: Path) -> None:
    small = MODELS["minilm"]
    model = small.make().eval()
    path = tmp_path / "model.pt2"
    torch.export.save(export(model, small.inputs(2, 6), None, small.dynamic), path)
    compare(import_torch(torch.export.load(path)), model, small.inputs(3, 9))


def test_a_recurrence_beside_a_decomposed_operator() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.entr(self.lstm(x)[0].abs())

    model = Both().eval()
    imported = import_torch(model, (data(2, 5, 3),), dynamic_shapes=(TOKENS,))
    assert imported.decomposed == ("aten.special_entr.default",)
    compare(imported, model, (data(3, 7, 3),))
