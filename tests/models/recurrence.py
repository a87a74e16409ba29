"""Exporting recurrent layers with a symbolic length.

`torch.export` keeps `aten.lstm.input`, `aten.gru.input` and `aten.rnn_*.input` as single operators in the graph, but to
learn the shape of their results it runs their Python definition on fake tensors, and that one loops over the time
steps: the length becomes a constant. Inside `symbolic_recurrence()` only the shapes are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decompositions


def _lstm_shapes(
    inp: torch.Tensor, hidden: tuple[torch.Tensor, torch.Tensor], params: Any, has_biases: bool, reverse: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """One direction of one layer, time first: f32[T, B, H] and the two last states f32[B, H]."""
    h, c = hidden
    return inp.new_empty((inp.shape[0], inp.shape[1], h.shape[-1])), (torch.empty_like(h), torch.empty_like(c))


def _rnn_shapes(
    inp: torch.Tensor, hidden: torch.Tensor, params: Any, has_biases: bool, hidden_fn: Any = None, reverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for GRU and plain RNN layers, which have one state."""
    return inp.new_empty((inp.shape[0], inp.shape[1], hidden.shape[-1])), torch.empty_like(hidden)


@contextmanager
def symbolic_recurrence() -> Iterator[None]:
    """While it lasts, LSTM, GRU and RNN layers can be exported with a symbolic length."""
    saved = decompositions.one_layer_lstm, decompositions.one_layer_rnn
    decompositions.one_layer_lstm, decompositions.one_layer_rnn = _lstm_shapes, _rnn_shapes
    try:
        yield
    finally:
        decompositions.one_layer_lstm, decompositions.one_layer_rnn = saved
