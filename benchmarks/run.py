"""Whole models beside their peers: `python -m benchmarks.run [MODEL ...]`, results to benchmarks/results/MODEL.json.

For each model of tests/models, f32, batch 1, two threads: the error against eager PyTorch; latency of dlc, onnxruntime,
OpenVINO, Inductor and eager in the same run; dlc's own compile time cold and from the cache (torch's export beside it);
and, from the saved .dlc, the time of a new process until its first result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT = ("bert_base", "resnet50", "mobilenet_v2", "minilm")
PEERS = ("onnxruntime", "openvino", "inductor", "eager")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=DEFAULT, help="names of tests/models/zoo.py")
    parser.add_argument("--length", type=int, default=128, help="tokens of language models")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DLC_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ.setdefault("KMP_BLOCKTIME", "20")  # idle OpenMP threads must not take the next contender's cores
    for name in options.models:
        result = benchmark(name, options)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        show(result)
    return 0


def benchmark(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one model."""
    import torch
    from tests.models.zoo import ZOO

    import dlc
    from benchmarks.harness import compete, machine

    torch.set_num_threads(options.threads)
    entry = ZOO[name]
    model = entry.make()
    length = options.length if entry.symbolic_length else entry.lengths[0]
    inputs = entry.inputs(options.batch, length, 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLC_CACHE_DIR"] = f"{folder}/cache"
        compiled = {}
        for when in ("cold", "cached"):
            # without gradients, as a user would, and the trace of recurrences as in the tests
            exe = compile_entry(dlc, entry, model)
            compiled[when] = exe.compile_report.to_json()
        artifact = f"{folder}/{name}.dlc"
        exe.save(artifact)
        exe = dlc.load(artifact, threads=options.threads)
        with torch.no_grad():
            want = flat(model(*inputs))
        got = flat(exe(*inputs))
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want))
        contenders: dict[str, Callable[[], Any]] = {"dlc": lambda: exe(*inputs)}
        refused = {}
        for peer in filter(None, options.peers.split(",")):
            try:
                contenders[peer] = PEER[peer](entry, model, inputs, Path(folder), options.threads)
            except Exception as fault:  # a peer that cannot run the model is a result, too
                refused[peer] = f"{type(fault).__name__}: {str(fault)[:200]}"
        times = compete(contenders, rounds=options.rounds)
        start = first_result(artifact, inputs, folder)
        size = os.path.getsize(artifact)
    latency = {peer: t.to_json() for peer, t in times.items()}
    rivals = [latency[p]["median_ms"] for p in latency if p not in ("dlc", "eager")]
    return {
        "model": name,
        "input": [list(x.shape) for x in inputs],
        "threads": options.threads,
        "error": error,
        "latency": latency,
        "refused": refused,
        "ratio_to_best_peer": latency["dlc"]["median_ms"] / min(rivals) if rivals else None,
        "compile": compiled,
        "first_result_s": start,
        "artifact_bytes": size,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def compile_entry(dlc: Any, entry: Any, model: Any) -> Any:
    """The model with symbolic batch (and length)."""
    import torch
    from tests.models.recurrence import symbolic_recurrence

    with torch.no_grad(), symbolic_recurrence():
        return dlc.compile(model, entry.example(), dynamic_shapes=entry.dynamic_shapes)


def first_result(artifact: str, inputs: Any, folder: str) -> float:
    """Seconds from the start of a new Python process to its first result, NumPy's import included (least of 3)."""
    import numpy as np

    np.savez(f"{folder}/in.npz", *[x.numpy() for x in inputs])
    code = (
        "import numpy as np, dlc\n"
        f"exe = dlc.load({artifact!r})\n"
        f"feeds = np.load('{folder}/in.npz')\n"
        "exe(*[feeds[k] for k in feeds.files])\n"
    )
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        best = min(best, time.perf_counter() - began)
    return best


def flat(result: Any) -> list[Any]:
    import torch

    if isinstance(result, torch.Tensor):
        return [result.float()]
    if isinstance(result, dict):
        result = tuple(result.values())
    return [t for part in result if part is not None for t in flat(part)]


# peers


def eager(entry: Any, model: Any, inputs: Any, folder: Path, threads: int) -> Callable[[], Any]:
    import torch

    def call() -> Any:
        with torch.no_grad():
            return model(*inputs)

    return call


def inductor(entry: Any, model: Any, inputs: Any, folder: Path, threads: int) -> Callable[[], Any]:
    import torch
    import torch._inductor.config as config

    config.freezing = True
    fast = torch.compile(model)

    def call() -> Any:
        with torch.no_grad():
            return fast(*inputs)

    call()
    return call


def onnxruntime(entry: Any, model: Any, inputs: Any, folder: Path, threads: int) -> Callable[[], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    path = _onnx(entry, model, folder)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)}
    return lambda: session.run(None, feeds)


def openvino(entry: Any, model: Any, inputs: Any, folder: Path, threads: int) -> Callable[[], Any]:
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinning halves everybody's speed on a shared machine
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.compile_model(ov.Core().read_model(_onnx(entry, model, folder)), "CPU", settings).create_infer_request()
    arrays = [x.numpy() for x in inputs]
    return lambda: request.infer(arrays)


def _onnx(entry: Any, model: Any, folder: Path) -> Path:
    from tests.models.zoo import export_onnx

    path = folder / "model.onnx"
    return path if path.exists() else export_onnx(entry, path, model)


PEER = {"eager": eager, "inductor": inductor, "onnxruntime": onnxruntime, "openvino": openvino}


def show(result: dict[str, Any]) -> None:
    print(f"{result['model']} {result['input']}, {result['threads']} threads: error {result['error']:.1e}")
    for name, row in sorted(result["latency"].items(), key=lambda item: item[1]["median_ms"]):
        print(f"  {name:12} {row['median_ms']:9.2f} ms  least {row['least_ms']:9.2f}  ({row['calls']} calls)")
    for peer, why in result["refused"].items():
        print(f"  {peer:12} not run: {why}")
    ratio = result["ratio_to_best_peer"]
    if ratio is not None:
        print(f"  {ratio:.2f} times the best peer")
    cold, cached = (result["compile"][when] for when in ("cold", "cached"))
    print(
        f"  compiled in {cold['own_seconds']:.1f} s, from the cache {cached['own_seconds']:.2f} s "
        f"(torch.export {cold['seconds']['export']:.1f} s); first result after {result['first_result_s']:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
