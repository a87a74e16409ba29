"""One contender of a contest, in a process of its own: `python -m dlc.contender`, driven by `dlc.contest` over its pipes.

Each line on stdin is a command, each line on stdout its answer, both JSON. Between commands the process only waits, so
that just one contender runs at any time and its library's idle threads have gone to sleep when the next one's turn comes.
What libraries print goes to stderr. A process can hold several models: each command may name one by its `slot`.

    {"do": "prepare", "kind": "dlc", ...Plan}     -> {"seconds", "versions", "note", "memory"}, or {"absent": why}
    {"do": "check", "path": FILE, "sets": N}      -> {"outputs": N}; the results for the first sets of inputs, as FILE
    {"do": "block", "seconds": S, "least": N, "most": N, "warm": S}
                              -> {"times": [seconds per call], "cpu": [...], "peak_bytes": resident at most}
    {"do": "profile", "repeat": N}                -> a dlc profile, a row per kernel
    {"do": "forget"}                              -> {}; the model is gone

Kinds: dlc (a .dlc file), onnxruntime, openvino, iree, tvm (an ONNX file), eager, inductor, inductor+freezing (a Python
model, as `dlc.models` names one).
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dlc import memory
from dlc.feeds import call_arguments, flat_outputs

if TYPE_CHECKING:
    from dlc.peers import StaticModel

Call = Callable[[], Any]
ONNX_KINDS = ("onnxruntime", "openvino", "iree", "tvm")
TORCH_KINDS = ("eager", "inductor", "inductor+freezing")
KINDS = ("dlc", *ONNX_KINDS, *TORCH_KINDS)


class Contender:
    """The model under one compiler or library, on a ring of inputs.

    Attributes:
        calls: one per set of inputs; each runs the model once.
        note: what a reader should know about the settings.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.note = ""
        self.kind = str(plan["kind"])
        self.threads = int(plan["threads"])
        self.as_torch = bool(plan.get("torch"))
        self.manifest: Mapping[str, Any] = plan.get("manifest") or {}
        self.given_outputs = bool(plan.get("given_outputs"))
        self.executable: Any = None
        self.ring = read_ring(plan["inputs"])
        self.names = list(plan.get("names") or ())
        self._turn = 0
        if self.as_torch or self.kind in TORCH_KINDS:
            import torch

            torch.set_num_threads(self.threads)
            torch.set_grad_enabled(False)
        make = {
            "dlc": self._dlc,
            "onnxruntime": self._onnxruntime,
            "openvino": self._openvino,
            "iree": self._iree,
            "tvm": self._tvm,
            "eager": self._torch,
            "inductor": self._torch,
            "inductor+freezing": self._torch,
        }[self.kind]
        self.memory = {"base": memory.peak_bytes()}  # with this process's libraries and inputs, before the model
        self.calls: list[Call] = make(plan)
        began = time.perf_counter()
        self.calls[0]()
        self.first_call_s = time.perf_counter() - began
        self.memory["prepare"] = memory.peak_bytes()

    def block(self, seconds: float, least: int, most: int, warm: float) -> dict[str, Any]:
        """Seconds of each call for about `seconds`, after at least one call and `warm` seconds that do not count.

        There are `least` calls unless they take two and a half times as long as was asked for. Beside the wall time the
        processor time of all threads, which for one thread is the same however busy the machine. The inputs go on
        where the last block ended.
        """
        clock, process_time = time.perf_counter, time.process_time
        calls, count = self.calls, len(self.calls)
        gc.collect()
        gc.disable()
        memory.reset_peak()
        try:
            end = clock() + warm
            calls[-1]()
            while clock() < end:
                calls[-1]()
            times: list[float] = []
            cpu: list[float] = []
            end, last = clock() + seconds, clock() + 2.5 * seconds
            while not times or (len(times) < least and clock() < last) or (clock() < end and len(times) < most):
                call = calls[self._turn % count]
                self._turn += 1
                cpu_began, began = process_time(), clock()
                call()
                times.append(clock() - began)
                cpu.append(process_time() - cpu_began)
        finally:
            gc.enable()
        return {"times": times, "cpu": cpu, "peak_bytes": memory.peak_bytes()}

    def check(self, path: str, sets: int = 3) -> int:
        """Write the results for the first sets of inputs; returns how many outputs there are."""
        results = [flat_outputs(call()) for call in self.calls[:sets]]
        save_ring(path, results)
        return len(results[0])

    def profile(self, repeat: int) -> dict[str, Any]:
        """The kernel calls of a dlc executable, each with the digest of its code as `symbol`."""
        manifest = self.executable.manifest
        args, kwargs = call_arguments(manifest, self._given(self.ring[0]))
        result = dict(self.executable.profile(*args, repeat=repeat, **kwargs).to_json())
        for row in result["rows"]:
            row["symbol"] = manifest["kernels"][row["index"]]["symbol"]
        return result

    def _given(self, arrays: list[np.ndarray]) -> list[Any]:
        """The inputs as the caller has them: tensors of the framework, or arrays."""
        if not (self.as_torch or self.kind in TORCH_KINDS):
            return list(arrays)
        import torch

        return [torch.from_numpy(a) for a in arrays]

    def _dlc(self, plan: Mapping[str, Any]) -> list[Call]:
        from dlc.runtime.executable import load

        executable = self.executable = load(plan["model"], self.threads)

        def one(given: list[Any]) -> Call:
            args, kwargs = call_arguments(executable.manifest, given)
            if self.given_outputs:
                result = executable(*args, **kwargs)
                return lambda: executable(*args, out=result, **kwargs)
            return lambda: executable(*args, **kwargs)

        return [one(self._given(arrays)) for arrays in self.ring]

    def _onnxruntime(self, plan: Mapping[str, Any]) -> list[Call]:
        from dlc.verification import ort_session

        session = ort_session(plan["model"], self.threads)
        wanted = [i.name for i in session.get_inputs()]

        def one(given: list[Any]) -> Call:
            if self.given_outputs:
                return self._bound(session, self._named(wanted, given))
            if not self.as_torch:
                feeds = self._named(wanted, given)
                return lambda: session.run(None, feeds)
            import torch

            tensors = self._named(wanted, given)
            back = torch.from_numpy
            return lambda: [back(o) for o in session.run(None, {n: t.numpy() for n, t in tensors.items()})]

        return [one(self._given(arrays)) for arrays in self.ring]

    def _bound(self, session: Any, feeds: Mapping[str, Any]) -> Call:
        """onnxruntime on outputs that are given to it, by its I/O binding."""
        import onnxruntime as ort

        arrays = {n: np.asarray(t) for n, t in feeds.items()}
        results = session.run(None, arrays)
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for output, result in zip(session.get_outputs(), results):
            binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(result))

        def call() -> Any:
            session.run_with_iobinding(binding)
            return results

        return call

    def _openvino(self, plan: Mapping[str, Any]) -> list[Call]:
        import openvino as ov

        model = ov.Core().read_model(plan["model"])
        wanted = [i.get_any_name() for i in model.inputs]
        order = list(self._named(wanted, list(range(len(self.ring[0])))).values())
        model.reshape({i.get_any_name(): list(self.ring[0][k].shape) for i, k in zip(model.inputs, order)})
        self.note = "static shapes"
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # pinned threads collide with those of others on a shared machine
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": str(plan.get("precision", "f32")),
        }
        request = ov.compile_model(model, "CPU", settings).create_infer_request()
        if self.given_outputs:
            for k, output in enumerate(request.model_outputs):
                request.set_output_tensor(k, ov.Tensor(np.empty(output.shape, np.dtype(output.element_type.to_dtype()))))

        def one(given: list[Any]) -> Call:
            ordered = [given[k] for k in order]
            if not self.as_torch:
                return lambda: list(request.infer(ordered, share_inputs=True).values())
            import torch

            back = torch.from_numpy
            return lambda: [back(o) for o in request.infer([t.numpy() for t in ordered], share_inputs=True).values()]

        return [one(self._given(arrays)) for arrays in self.ring]

    def _iree(self, plan: Mapping[str, Any]) -> list[Call]:
        from dlc.peers import iree_model

        return self._static(plan, iree_model)

    def _tvm(self, plan: Mapping[str, Any]) -> list[Call]:
        from dlc.peers import tvm_model

        return self._static(plan, tvm_model)

    def _static(self, plan: Mapping[str, Any], build: Callable[..., StaticModel]) -> list[Call]:
        """The model compiled for the ring's shapes, by a compiler that keeps its work in the plan's cache folder."""
        model = build(Path(plan["model"]), self.ring[0], self.names, self.threads, Path(plan["cache"]))
        self.note = model.note

        def one(arrays: list[np.ndarray]) -> Call:
            given = [arrays[k] for k in model.order]
            if not self.as_torch:
                return lambda: model.run(given)
            import torch

            tensors = [torch.from_numpy(a) for a in given]
            return lambda: [torch.from_numpy(o) for o in model.run([t.numpy() for t in tensors])]

        return [one(arrays) for arrays in self.ring]

    def _torch(self, plan: Mapping[str, Any]) -> list[Call]:
        if self.given_outputs:
            raise ValueError("it always makes its outputs anew")
        import torch

        from dlc.models import open_model

        opened = open_model(plan["model"])
        module = opened.source.module() if opened.kind == "exported" else opened.source
        if self.kind != "eager":
            module = torch.compile(module, options={"freezing": True} if self.kind == "inductor+freezing" else None)

        def one(given: list[Any]) -> Call:
            args, kwargs = call_arguments(self.manifest, given)
            return lambda: module(*args, **kwargs)

        return [one(self._given(arrays)) for arrays in self.ring]

    def _named(self, wanted: list[str], given: list[Any]) -> dict[str, Any]:
        """The inputs that a library's model wants: by name where the names are ours, else in order."""
        known = dict(zip(self.names, given))
        if set(wanted) <= set(known):
            return {name: known[name] for name in wanted}
        if len(wanted) != len(given):
            raise ValueError(f"it takes {len(wanted)} inputs ({', '.join(wanted)}), not {len(given)}")
        return dict(zip(wanted, given))


def save_ring(path: str | Path, ring: Sequence[Sequence[np.ndarray]]) -> None:
    """Write sets of arrays as an .npz file with arrays `set.position`."""
    named: dict[str, Any] = {f"{s}.{i}": a for s, arrays in enumerate(ring) for i, a in enumerate(arrays)}
    np.savez(path, **named)


def read_ring(path: str) -> list[list[np.ndarray]]:
    """Sets of inputs from an .npz file with arrays `set.position`; aligned to 64 bytes, as torch's own tensors are."""
    with np.load(path) as arrays:
        keys = sorted((int(s), int(i)) for s, _, i in (name.partition(".") for name in arrays.files))
        ring: list[list[np.ndarray]] = [[] for _ in range(1 + max(s for s, _ in keys))]
        for s, i in keys:
            ring[s].append(aligned(arrays[f"{s}.{i}"]))
    return ring


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 63, np.uint8)
    start = -room.ctypes.data % 64
    copy: np.ndarray = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def versions(kind: str) -> dict[str, str]:
    """Versions of the packages that this kind of contender is made of."""
    packages = {
        "dlc": ("dlc",),
        "onnxruntime": ("onnxruntime",),
        "openvino": ("openvino",),
        "iree": ("iree-base-compiler", "iree-base-runtime"),
        "tvm": ("apache-tvm",),
    }.get(kind, ("torch",))
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def reason(error: Exception) -> str:
    """What an error says in its first line; where that only tells a place in a library's source, all the others."""
    lines = str(error).strip().split("\n")
    telling = [line.strip() for line in lines if line.strip() and not line.startswith(("Exception from ", "Check "))]
    return lines[0] if lines[:1] == telling[:1] else " ".join(telling) or lines[0]


def serve(commands: TextIO, answers: TextIO) -> None:
    """Obey commands until there are no more."""
    contenders: dict[str, Contender] = {}
    for line in commands:
        command = json.loads(line)
        action, slot = command.pop("do"), str(command.pop("slot", ""))
        contender = contenders.get(slot)
        try:
            if action == "prepare":
                began = time.perf_counter()
                contender = contenders[slot] = Contender(command)
                seconds = time.perf_counter() - began
                answer: dict[str, Any] = {"seconds": seconds, "versions": versions(contender.kind)}
                answer |= {"note": contender.note, "memory": contender.memory, "first_call_s": contender.first_call_s}
            elif action == "forget":
                contenders.pop(slot, None)
                answer = {}
            elif contender is None:
                answer = {"error": "it was not prepared"}
            elif action == "check":
                answer = {"outputs": contender.check(**command)}
            elif action == "block":
                answer = dict(contender.block(**command))
            else:
                answer = contender.profile(**command)
        except ImportError as error:
            answer = {"absent": f"{error.name or error} is not installed", "error": str(error)}
        except Exception as error:  # a library's refusal is a result of the contest, too
            text = reason(error)
            told = re.sub(r"(?<![\w:/])(/[\w.+-]+)+/(?=[\w.])", "", text)  # results are read on other machines: files without folders
            answer = {"absent": f"{type(error).__name__}: {told[:300]}", "error": text}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)
    answers.flush()
    os._exit(0)  # libraries' threads and atexit hooks have nothing left to do, and some take seconds


if __name__ == "__main__":
    main()

__all__ = ["KINDS", "ONNX_KINDS", "TORCH_KINDS", "Contender", "read_ring", "save_ring", "serve"]
