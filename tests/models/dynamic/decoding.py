"""Decoding of a small language model: greedy with a stop token, by beam search, and with speculative acceptance.

Source: Sutskever, Vinyals and Le, NIPS 2014 (arXiv 1409.3215), section 3.2 (beams); Leviathan, Kalman and Matias, Fast
Inference from Transformers via Speculative Decoding, ICML 2023 (2211.17192), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.models.dynamic.entry import Dynamic
from tests.models.entry import normal, randomise, token_ids
from torch import nn
from torch.nn import functional

WORDS, WIDTH, STOP = 64, 64, 0
PROMPT, LIMIT = 4, 24
BEAMS, BEAM_LIMIT = 3, 16
DRAFTED, SPECULATED = 4, 20


class Decoder(nn.Module):
    """One layer of causal attention over a buffer of fixed length, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(PROMPT + LIMIT, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS)

    def step(self, word: torch.Tensor, n: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Scores f32[64] of the word after `word`, which is the n-th; its key and value are written into the caches."""
        x = self.words(word) + self.places.weight[n]
        keys[n] = self.key(x)
        values[n] = self.value(x)
        attention = torch.softmax(keys[: n + 1] @ self.query(x) * WIDTH**-0.5, dim=0)
        x = self.norm(x + self.out(attention @ values[: n + 1]))
        return self.scores(x)


class Greedy(nn.Module):
    """The best word after the best word."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def forward(self, prompt: torch.Tensor) -> tuple[torch.Tensor, int, torch.Tensor]:
        """From i64[4]: a buffer i64[28] of words, how many of them count, and the sum of their scores."""
        keys = torch.zeros(PROMPT + LIMIT, WIDTH, dtype=self.decoder.words.weight.dtype)
        values = torch.zeros_like(keys)
        words = torch.zeros(PROMPT + LIMIT, dtype=torch.int64)
        words[:PROMPT] = prompt
        scores = self.decoder.step(prompt[0], 0, keys, values)
        for k in range(1, PROMPT):
            scores = self.decoder.step(prompt[k], k, keys, values)
        n = PROMPT
        total = torch.zeros((), dtype=keys.dtype)
        while n < PROMPT + LIMIT:
            best, word = torch.log_softmax(scores, dim=0).max(dim=0)
            words[n] = word
            total = total + best
            n += 1
            if word == STOP or n == PROMPT + LIMIT:
                break
            scores = self.decoder.step(word, n - 1, keys, values)
        return words, n, total


class Recurrent(nn.Module):
    """A GRU language model."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.words = nn.Embedding(WORDS, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.scores = nn.Linear(hidden, WORDS)

    def forward(self, words: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From i64[N] and f32[N, H]: log-probabilities f32[N, 64] of the next words, and the next state."""
        state = self.cell(self.words(words), state)
        return functional.log_softmax(self.scores(state), dim=1), state


class BeamSearch(nn.Module):
    """Three sentences at once; it ends when all of them have."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Recurrent(WIDTH)

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """From a state f32[1, 64]: words i64[3, 16], their log-probabilities f32[3], and the steps made."""
        states = state.expand(BEAMS, -1)
        words = torch.ones(BEAMS, dtype=torch.int64)
        totals = torch.zeros(BEAMS, dtype=state.dtype)
        totals[1:] = -torch.inf  # all beams begin alike
        history = torch.zeros(BEAMS, BEAM_LIMIT, dtype=torch.int64)
        done = torch.zeros(BEAMS, dtype=torch.bool)
        only_stop = torch.full((WORDS,), -torch.inf, dtype=state.dtype)
        only_stop[STOP] = 0.0
        steps = 0
        for t in range(BEAM_LIMIT):
            scores, next_states = self.model(words, states)
            scores = torch.where(done[:, None], only_stop, scores)
            totals, flat = (totals[:, None] + scores).flatten().topk(BEAMS)
            origin, words = flat // WORDS, flat % WORDS
            history = history[origin]
            history[:, t] = words
            states = next_states[origin]
            done = done[origin] | (words == STOP)
            steps = t + 1
            if done.all():
                break
        return history, totals, steps


class Speculative(nn.Module):
    """A small model drafts four words, the large one keeps those it would have said as well."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = Recurrent(32)
        self.target = Recurrent(WIDTH)

    def forward(self, first: torch.Tensor, chances: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """From a word i64[1] and uniform numbers f32[20, 4]: words i64[24], how many count, and rounds made."""
        words = torch.zeros(SPECULATED + DRAFTED, dtype=torch.int64)
        words[0] = first[0]
        n = 1
        rounds = 0
        draft_state = chances.new_zeros(1, self.draft.hidden)
        target_state = chances.new_zeros(1, self.target.hidden)
        last = first
        while n < SPECULATED:
            drafted = []
            likely = []
            word, state = last, draft_state
            for _ in range(DRAFTED):
                scores, state = self.draft(word, state)
                word = scores.argmax(dim=1)
                drafted.append(word)
                likely.append(scores[0, word[0]])
            kept = 0
            word = last
            for k in range(DRAFTED):
                scores, after = self.target(word, target_state)
                if chances[n, k] > torch.exp(scores[0, drafted[k][0]] - likely[k]):
                    break
                target_state = after
                _, draft_state = self.draft(word, draft_state)
                word = drafted[k]
                words[n] = word[0]
                n += 1
                kept += 1
                if n == SPECULATED:
                    break
            if n < SPECULATED and kept < DRAFTED:
                scores, target_state = self.target(word, target_state)
                _, draft_state = self.draft(word, draft_state)
                word = scores.argmax(dim=1)
                words[n] = word[0]
                n += 1
            last = word
            rounds += 1
        return words, n, rounds


def _model(make: Callable[[], nn.Module], seed: int, stop: float, sharp: float = 2.0) -> Callable[[], nn.Module]:
    """Seeded weights, sharp distributions, and a stop word that is said now and then."""

    def build() -> nn.Module:
        model = make()
        randomise(model, seed)
        model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("words.weight"):
                    parameter.mul_(8.0)
                elif name.endswith("scores.weight"):
                    parameter.mul_(sharp)
                elif name.endswith("scores.bias"):
                    parameter[STOP] = stop
        return model

    return build


def prompts(seed: int) -> tuple[torch.Tensor, ...]:
    return (token_ids(1, PROMPT, WORDS, 300_007 + seed)[0],)


def states(seed: int) -> tuple[torch.Tensor, ...]:
    return (torch.tanh(normal((1, WIDTH), 310_007 + seed)),)


def chances(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(320_009 + seed)
    return torch.randint(0, WORDS, (1,), generator=generator), torch.rand(SPECULATED, DRAFTED, generator=generator)


ENTRIES = (
    Dynamic("greedy", _model(Greedy, 121, 2.0), prompts, "Sutskever et al. (arXiv 1409.3215)", by_place=True),
    Dynamic("beam_search", _model(BeamSearch, 122, 4.0, 12.0), states, "Sutskever et al. (arXiv 1409.3215)", by_place=True),
    Dynamic("speculative", _model(Speculative, 123, 0.0), chances, "Leviathan et al. (arXiv 2211.17192)", by_place=True),
)
