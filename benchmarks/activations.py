"""Memory that a contender takes for activations in one call, beside its arena as planned: measured in a process of its own.

    python -m benchmarks.activations KIND NAME FILE

KIND is dlc, onnxruntime, openvino or inductor, NAME a model of `benchmarks.arena`, FILE its artifact or ONNX file. One thread, f32.

All but Inductor keep what they allocated for the next call. So: one call or two, to load and compile whatever is put off; give the
memory back (`memory.enable_memory_arena_shrinkage`, `release_memory`, dlc's idle block); one more call into memory
that is there for its results; and the pages that are the process's own (`Anonymous` of smaps_rollup) after it less those before
it. Without huge pages, and with allocations above 64 KiB in mappings of their own, that is what the call touches.

Inductor frees each tensor when it is dead. Of its allocations, which PyTorch's profiler lists, the most that are alive at once counts,
results excluded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PR_SET_THP_DISABLE = 41
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
"""Of the process: glibc gives back what is freed, so that it is touched anew."""

Array = np.ndarray[Any, Any]


def touched(release: Callable[[], object], call: Callable[[], object]) -> int:
    """Bytes of pages that a call adds to the process, its results, if it returns any, included."""
    release()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = anonymous()
    kept = call()
    after = anonymous()
    del kept
    return after - before


def anonymous() -> int:
    """Bytes of this process's own pages."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup has no line 'Anonymous:'")


def of_dlc(path: str, inputs: list[Array]) -> int:
    """The arena and the threads' scratch memory."""
    import dlc

    exe = dlc.load(path, threads=1)
    results = exe(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    size = sum(np.asarray(r).nbytes for r in results)
    del results

    def release() -> None:
        exe._slabs._idle.clear()
        exe._lent._idle.clear()  # of results that were given back

    return touched(release, lambda: exe(*inputs)) - size


def of_onnxruntime(path: str, inputs: list[Array]) -> int:
    """Its arena, which keeps what it has."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = dict(zip((i.name for i in session.get_inputs()), inputs, strict=True))
    results = session.run(None, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for out, array in zip(session.get_outputs(), results, strict=True):
        binding.bind_output(out.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    shrink = ort.RunOptions()
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    for _ in range(2):
        session.run_with_iobinding(binding, shrink)
    return touched(lambda: None, lambda: session.run_with_iobinding(binding))


def of_openvino(path: str, inputs: list[Array]) -> int:
    """The memory of its infer request."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape({i: list(a.shape) for i, a in enumerate(inputs)})
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    for index, array in enumerate(inputs):
        request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
    results = [np.empty(list(o.shape), o.get_element_type().to_dtype()) for o in compiled.outputs]
    for index, array in enumerate(results):
        array.fill(0)
        request.set_output_tensor(index, ov.Tensor(array, shared_memory=True))
    request.infer()
    return touched(compiled.release_memory, request.infer)


def of_inductor(name: str, inputs: list[Array]) -> int:
    """The most of its tensors that is alive at once, but for inputs, weights and results."""
    import torch
    from tests.models.zoo import ZOO

    torch.set_num_threads(1)
    with torch.no_grad():
        compiled = torch.compile(ZOO[name].make().eval())
        given = [torch.from_numpy(a) for a in inputs]
        for _ in range(2):
            compiled(*given)
        activity = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
            results = compiled(*given)
    kept = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)}
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    return most_alive([e for e in events if e.get("name") == "[memory]"], kept)


def most_alive(events: list[dict[str, Any]], kept: set[int]) -> int:
    """Of allocations and frees in order of time, but for those that are at `kept` addresses at the end."""
    events = sorted(events, key=lambda e: e["ts"])
    facts = [(int(e["args"]["Addr"]), int(e["args"]["Bytes"])) for e in events]
    last = {address: at for at, (address, size) in enumerate(facts) if size > 0}
    results = {at for address, at in last.items() if address in kept}
    alive: dict[int, int] = {}
    most = 0
    for at, (address, size) in enumerate(facts):
        if size < 0:
            alive.pop(address, None)  # what was there before the call is none of its own
        elif at not in results:
            alive[address] = size
            most = max(most, sum(alive.values()))
    return most


def main(kind: str, name: str, file: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    with np.load(os.environ["DLC_INPUTS"]) as arrays:
        inputs = [arrays[key] for key in arrays.files]
    measure = {"dlc": of_dlc, "onnxruntime": of_onnxruntime, "openvino": of_openvino, "inductor": of_inductor}[kind]
    print(measure(name if kind == "inductor" else file, inputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
