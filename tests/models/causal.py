"""Text generation: GPT-2 and SmolLM2-135M (Llama), each over a prompt and as one decoding step.

The key and value cache are explicit tensors, `k0, v0, k1, v1, ...`, each f32[B, kv heads, T, head width]: SmolLM2's
prefill returns them, and decoding takes them and returns them one token longer.
"""

from __future__ import annotations

from typing import Any

import torch
from tests.models.entry import Entry, normal, randomise, token_ids
from tests.models.text import BATCH, TOKENS
from torch import nn
from torch.export import Dim

CACHED = Dim("cached", min=1, max=511)
LAYERS = 30
KV_HEADS = 3
HEAD_WIDTH = 64
GPT2_LAYERS = 12
GPT2_HEADS = 12


class GreedyScores(nn.Module):
    """A causal language model without cache, `ids -> f32[B, T, vocabulary]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Next-token scores at every position."""
        scores: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return scores


class Prefill(nn.Module):
    """A causal language model over a whole prompt: scores and the filled cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores f32[B, T, vocabulary], then k0, v0, k1, v1, ... of T tokens."""
        result = self.model(input_ids=input_ids, use_cache=True)
        return (result.logits, *_flat(result.past_key_values))


class Decode(nn.Module):
    """One decoding step with the cache in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """From i64[B, 1] and a cache of T tokens to scores f32[B, 1, vocabulary] and the cache of T + 1 tokens."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, key, value in zip(cache.layers, past[0::2], past[1::2], strict=True):
            # `DynamicCache(ddp_cache_data=...)` would concatenate each with an empty tensor.
            layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
            layer.keys, layer.values = key, value
        # The one query sees all of the cache. A mask of four dimensions is used as it is, which keeps transformers
        # from building one and guarding on the length of the cache.
        visible = torch.ones((1, 1, 1, past[0].shape[2] + 1), dtype=torch.bool)
        result = self.model(input_ids=input_ids, past_key_values=cache, attention_mask=visible, use_cache=True)
        return (result.logits, *_flat(result.past_key_values))


def _grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention that leaves the grouping of heads to torch.

    The "sdpa" of transformers repeats the keys, and the reshape in it guards on the strides of the longer cache in a
    way that `torch.export` cannot prove for a symbolic length.
    """
    result = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return result.transpose(1, 2).contiguous(), None


def _register_grouped() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("grouped", _grouped_attention)


def _flat(cache: object) -> tuple[torch.Tensor, ...]:
    return tuple(t for layer in cache.layers for t in (layer.keys, layer.values))  # type: ignore[attr-defined]


def _gpt2(attention: str) -> nn.Module:
    """GPT-2 small: 12 layers of width 768, 12 heads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(attn_implementation=attention)).eval()
    randomise(model, seed=4)
    return model


def _smollm2(attention: str) -> nn.Module:
    """SmolLM2-135M: 30 Llama layers of width 576, 9 query heads over 3 key heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    randomise(model, seed=5)
    return model


def make_gpt2() -> nn.Module:
    """GPT-2 small over a prompt."""
    return GreedyScores(_gpt2("sdpa")).eval()


def make_gpt2_decode() -> nn.Module:
    """GPT-2 small, one token at a time; the same weights as `make_gpt2`."""
    _register_grouped()
    return Decode(_gpt2("grouped")).eval()


def make_smollm2_prefill() -> nn.Module:
    """SmolLM2-135M over a prompt."""
    return Prefill(_smollm2("sdpa")).eval()


def make_smollm2_decode() -> nn.Module:
    """SmolLM2-135M, one token at a time; the same weights as `make_smollm2_prefill`."""
    _register_grouped()
    return Decode(_smollm2("grouped")).eval()


def gpt2_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Token numbers below 50257."""
    return (token_ids(batch, length, 50257, seed),)


def prefill_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Token numbers below 49152."""
    return (token_ids(batch, length, 49152, seed),)


def gpt2_decode_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """One token per sequence and a random cache of `length` tokens."""
    cache = normal((2 * GPT2_LAYERS, batch, GPT2_HEADS, length, HEAD_WIDTH), seed)
    return (token_ids(batch, 1, 50257, seed), *(t.clone() for t in cache.unbind(0)))


def decode_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """One token per sequence and a random cache of `length` tokens, of the scale that prefill gives."""
    cache = normal((2 * LAYERS, batch, KV_HEADS, length, HEAD_WIDTH), seed)
    return (token_ids(batch, 1, 49152, seed), *(t.clone() for t in cache.unbind(0)))


def _cache_names(layers: int) -> tuple[str, ...]:
    return tuple(f"{kind}{layer}" for layer in range(layers) for kind in "kv")


def _step_shapes(layers: int) -> tuple[Any, ...]:
    """For one token and the keys and values of all layers."""
    return {0: BATCH}, tuple({0: BATCH, 2: CACHED} for _ in range(2 * layers))


CACHE_NAMES = _cache_names(LAYERS)
ENTRIES = (
    Entry("gpt2", make_gpt2, gpt2_inputs, (TOKENS,), (32, 57), ("scores",), "text"),
    Entry(
        "gpt2_decode",
        make_gpt2_decode,
        gpt2_decode_inputs,
        _step_shapes(GPT2_LAYERS),
        (32, 57),
        ("scores", *_cache_names(GPT2_LAYERS)),
        "text",
    ),
    Entry(
        "smollm2_prefill",
        make_smollm2_prefill,
        prefill_inputs,
        (TOKENS,),
        (32, 57),
        ("scores", *CACHE_NAMES),
        "text",
    ),
    Entry(
        "smollm2_decode",
        make_smollm2_decode,
        decode_inputs,
        _step_shapes(LAYERS),
        (32, 57),
        ("scores", *CACHE_NAMES),
        "text",
    ),
)
