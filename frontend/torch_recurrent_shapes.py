"""Recurrent layers with a symbolic length.

`torch.export` keeps `aten.lstm.input` and its kin whole, but learns their results' shapes by running a Python definition
that loops over the time steps, which makes the length a constant. Here only the shapes are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decompositions


def _lstm(inp: torch.Tensor, hidden: Any, params: Any, has_biases: bool, reverse: bool = False) -> Any:
    """One direction of one layer, T[T, B, I] to T[T, B, H] and the last states."""
    h, c = hidden
    return inp.new_empty((inp.shape[0], inp.shape[1], h.shape[-1])), (torch.empty_like(h), torch.empty_like(c))


def _rnn(
    inp: torch.Tensor, hidden: torch.Tensor, params: Any, has_biases: bool, hidden_fn: Any = None, reverse: bool = False
) -> Any:
    return inp.new_empty((inp.shape[0], inp.shape[1], hidden.shape[-1])), torch.empty_like(hidden)


@contextmanager
def symbolic_recurrence() -> Iterator[None]:
    """While it lasts, LSTM, GRU and RNN layers are traced without looping over their steps."""
    names = ("one_layer_lstm", "one_layer_rnn")
    if not all(hasattr(decompositions, n) for n in names):
        yield  # another version of torch: lengths become constants
        return
    saved = [getattr(decompositions, n) for n in names]
    decompositions.one_layer_lstm, decompositions.one_layer_rnn = _lstm, _rnn
    try:
        yield
    finally:
        decompositions.one_layer_lstm, decompositions.one_layer_rnn = saved
