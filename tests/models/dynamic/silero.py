"""Silero VAD over minutes of synthetic sound: compiled from ONNX, beside onnxruntime and the TorchScript it was exported from.

    python -m tests.models.dynamic.silero --minutes 10

The ONNX file holds 25 nested `If`s (on the sampling rate and on shapes). Each implementation carries its own state from step to step, so
a difference would grow. The sound has what such a detector hears: silence, noise that is louder and softer like speech,
harmonics through resonances (vowels), chirps, clicks and clipped noise, in pieces of half a second to three seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tests.ledger import Ledger, digest_of, source_digest

RATES = {16000: (512, 64), 8000: (256, 32)}
"""Sampling rate: samples per step, and samples of the step before that go in front of them."""

TOLERANCE = 1e-4
"""Of the probability; decisions (above 0.5) must be equal where the reference is farther than this from 0.5."""

Step = Callable[[np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was found at one rate.

    Attributes:
        steps, spoken: in all; those that onnxruntime calls speech.
        onnxruntime, torchscript: the largest difference of the probability.
        flipped: steps at which the decision differs from either though it was clear.
    """

    rate: int
    steps: int
    spoken: int
    onnxruntime: float
    torchscript: float
    flipped: int

    @property
    def ok(self) -> bool:
        mixed = 0.05 < self.spoken / self.steps < 0.95
        return mixed and not self.flipped and max(self.onnxruntime, self.torchscript) <= TOLERANCE


def folder() -> Path:
    import silero_vad

    return Path(silero_vad.__file__).parent / "data"


def sound(rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """f32[rate * seconds], the same for the same arguments."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    count = 0
    while count < rate * seconds:
        n = int(rate * rng.uniform(0.5, 3.0))
        kind = _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]
        parts.append(kind(np.arange(n) / rate, rate, rng) + 0.001 * rng.standard_normal(n))
        count += n
    return np.clip(np.concatenate(parts)[: int(rate * seconds)], -1, 1).astype(np.float32)


def _silence(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(t)


def _babble(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with the rhythm of syllables."""
    loudness = np.maximum(0, np.sin(2 * np.pi * rng.uniform(2, 6) * t + rng.uniform(0, 6))) ** 2
    return rng.uniform(0.05, 0.5) * loudness * rng.standard_normal(len(t))


def _vowels(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Harmonics of a gliding pitch, weighted by three resonances that change every 0.16 s."""
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 1.3 * t) + 0.15 * np.sin(2 * np.pi * 0.4 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    vowel = (t / 0.16).astype(int)
    formants = rng.uniform([250, 900, 2200], [800, 2300, 3200], (int(vowel.max(initial=0)) + 1, 3))[vowel]
    total = np.zeros_like(t)
    for harmonic in range(1, 24):
        f = harmonic * pitch
        weight = sum(np.exp(-(((f - formants[:, k]) / (120 + 60 * k)) ** 2)) / (k + 1) for k in range(3))
        total += np.where(f < 0.45 * rate, weight, 0.0) * np.sin(harmonic * phase)
    syllables = np.abs(np.sin(np.pi * t / 0.16)) ** 0.4
    return rng.uniform(0.1, 0.6) * syllables * total / max(np.abs(total).max(), 1e-9)


def _chirp(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    low, high = np.sort(rng.uniform(60, 0.45 * rate, 2))
    return rng.uniform(0.05, 0.8) * np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * max(t[-1], 1e-9))))


def _clicks(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(t)) < 20 / rate) * rng.uniform(-1, 1, len(t))


def _loud(t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return 2 * rng.standard_normal(len(t))


_KINDS = (_silence, _babble, _vowels, _chirp, _clicks, _loud)
_SHARES = (0.15, 0.15, 0.4, 0.1, 0.1, 0.1)


# --- implementations -------------------------------------------------------------------------------------------------


def stateful(rate: int, run: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Step:
    """A step by step detector from a function of (samples with context, state)."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, RATES[rate][1]), np.float32)

    def step(samples: np.ndarray) -> float:
        nonlocal state, context
        frame = np.concatenate([context, samples[None]], axis=1)
        probability, state = run(frame, state)
        context = frame[:, -context.shape[1] :]
        return float(np.asarray(probability).reshape(-1)[0])

    return step


def onnxruntime(rate: int) -> Step:
    from dlc.verification import ort_session

    session = ort_session(str(folder() / "silero_vad.onnx"), 1)
    sr = np.array(rate, np.int64)

    def run(frame: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, after = session.run(["output", "stateN"], {"input": frame, "state": state, "sr": sr})
        return probability, after

    return stateful(rate, run)


def torchscript(rate: int) -> Step:
    import torch

    model = torch.jit.load(str(folder() / "silero_vad.jit"), map_location="cpu").eval()
    model.reset_states()

    def step(samples: np.ndarray) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(samples)[None], rate))

    return step


def compiled(rate: int) -> Step:
    import dlc
    from dlc.models import open_model, with_shapes

    samples, before = RATES[rate]
    model = with_shapes(
        open_model(str(folder() / "silero_vad.onnx")), {"input": ("batch", samples + before), "state": (2, "batch", 128)}
    )
    exe = dlc.compile(model.source, specialise={"sr": np.array(rate)})
    sr = np.array(rate, np.int64)
    return stateful(rate, lambda frame, state: exe(frame, state, sr))


def agreement(rate: int, seconds: float) -> Agreement:
    """Run all three over the same sound."""
    steps = [compiled(rate), onnxruntime(rate), torchscript(rate)]
    length = RATES[rate][0]
    signal = sound(rate, seconds)
    frames = signal[: len(signal) // length * length].reshape(-1, length)
    ours, ort, script = (np.array([step(frame) for frame in frames]) for step in steps)
    clear = np.minimum(np.abs(ort - 0.5), np.abs(script - 0.5)) > TOLERANCE
    flipped = clear & (((ours > 0.5) != (ort > 0.5)) | ((ours > 0.5) != (script > 0.5)))
    return Agreement(
        rate,
        len(frames),
        int((ort > 0.5).sum()),
        float(np.abs(ours - ort).max()),
        float(np.abs(ours - script).max()),
        int(flipped.sum()),
    )


def kept(rate: int, seconds: float) -> Agreement:
    """From the ledger, or found now and put there."""
    ledger = Ledger("silero")
    digest = digest_of(source_digest(), Path(__file__).read_bytes())
    key = ledger.key(f"{rate}/{seconds:g}s", digest=digest, packages=("onnxruntime", "torch", "silero-vad"))
    row = ledger.get(key)
    if row is None:
        row = asdict(agreement(rate, seconds))
        ledger.put(key, row)
    return Agreement(**row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    found = [agreement(rate, 60 * parser.parse_args().minutes) for rate in RATES]
    for a in found:
        print(json.dumps(asdict(a)))
    return 0 if all(a.ok for a in found) else 1


if __name__ == "__main__":
    sys.exit(main())
