"""A program whose cascades are compiled by other compilers: one host program, any back end for each piece.

    exe = dlc.compile(model, (x,), backend="onnxruntime")
    exe = dlc.compile(model, (x,), backend=lambda cascade: "dlc" if ... else "inductor")

Control, extents and library operations are run by the interpreter of the IR; each straight-line cascade is one module of
torch (`dlc.cascade_torch`), compiled when it is first reached, once for each combination of extents. That is for comparing
compilers piece by piece: it is no artifact, and Python stands between the pieces.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dlc.errors import BadInput, MissingPackage
from dlc.ir.einsum import flat
from dlc.ir.errors import IndexOutOfRange
from dlc.ir.extent import evaluate
from dlc.ir.interpret import bind_symbols, run_kernel, run_program
from dlc.ir.program import Cascade, Kernel, Launch, Program, program_of
from dlc.runtime.cpu import default_threads
from dlc.runtime.tree import Flattener, check_tree, flat_args, flat_result, unflattener

if TYPE_CHECKING:
    from dlc.frontend.imported import Imported

Array: TypeAlias = np.ndarray[Any, Any]
Compiled: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]
Choice: TypeAlias = str | Callable[[Cascade], str]

PIPELINE = (
    "explicit-domains,simplify-indices,fold-constants,algebra,common-einsums,dead-code,hoist-common,host-assignments,"
    "hoist-invariants,sink,cascades,share-literals"
)
"""What says nothing about one back end: the graph is cleaned up and cut at its control."""


class UnknownBackend(BadInput):
    """`backend=` names none that there is."""

    code = "DLC0691"
    template = "there is no back end '{name}'"
    hint = "the back ends are: {known}"


@dataclass
class Piece:
    """One cascade of the program, as it ran.

    Attributes:
        backend: who compiled it.
        calls, seconds: how often and how long it ran.
        compile_seconds: what its compiler took, all combinations of extents together.
    """

    name: str
    loc: str
    einsums: int
    backend: str
    calls: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0


@dataclass
class Hosted:
    """A program that calls its pieces; it is called like an executable.

    Attributes:
        pieces: its cascades by the name of their kernel.
    """

    program: Program
    imported: Imported
    choose: Callable[[Cascade], str]
    threads: int
    pieces: dict[str, Piece] = field(default_factory=dict)
    compiled: dict[tuple[Any, ...], Compiled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kernel in self.program.kernels:
            einsums = sum(1 for _ in flat(kernel.cascade.steps))
            backend = self.choose(kernel.cascade)
            if backend not in BACKENDS:
                raise UnknownBackend(name=backend, known=", ".join(BACKENDS))
            self.pieces[kernel.name] = Piece(kernel.name, str(kernel.cascade.loc), einsums, backend)
        count = len(self.program.params)
        in_tree = {"t": "tuple", "c": [self.imported.in_tree, {"t": "dict", "k": [], "c": []}]}
        match self.imported.in_tree:
            case {"t": "tuple", "c": [{"t": "tuple"}, {"t": "dict"}]}:
                in_tree = self.imported.in_tree
            case _:
                pass
        tree = check_tree(in_tree, "in_tree", count, is_input=True) if count else flat_args(0)
        self._flatten = Flattener(tree, self.imported.arg_names, count)
        results = len(self.program.results)
        out = self.imported.out_tree
        self._nest = unflattener(check_tree(out, "out_tree", results, is_input=False) if out else flat_result(results))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; torch tensors if any input is one, else NumPy arrays, nested as the model's result."""
        given = self._flatten(args, kwargs)
        torch_given = any(type(v).__module__.split(".")[0] == "torch" for v in given)
        arrays = [np.asarray(_array(v), p.type.dtype.numpy) for v, p in zip(given, self.program.params, strict=True)]
        results = run_program(self.program, arrays, launch=self._launch)
        if torch_given:
            from dlc.cascade_torch import tensor_of

            return self._nest([tensor_of(r) for r in results])
        return self._nest(list(results))

    def _launch(self, stmt: Launch, args: Sequence[Array], symbols: Mapping[str, int]) -> Sequence[Array]:
        kernel, piece = self.program.kernel_table[stmt.kernel], self.pieces[stmt.kernel]
        cascade = kernel.cascade
        bound = bind_symbols(
            cascade.params, dict(zip((p.name for p in cascade.params), args, strict=True)), (), symbols
        )
        if any(int(evaluate(r.extent, bound)) <= 0 for s in flat(cascade.steps) for r in s.all_ranks):
            return run_kernel(kernel, args, symbols)  # nothing, or the identity of a reduction
        held = {
            n: v for n, a, v in zip((p.name for p in cascade.params), stmt.args, args, strict=True) if a in self._consts
        }
        rest = [v for p, v in zip(cascade.params, args, strict=True) if p.name not in held]
        used = {n: v for n, v in bound.items() if any(n in s.symbols for s in cascade.steps)}
        key = (
            stmt.kernel,
            tuple(a for a in stmt.args if a in self._consts),
            tuple(v.shape for v in rest),
            tuple(used.items()),
        )
        if key not in self.compiled:
            began = time.perf_counter()
            self.compiled[key] = BACKENDS[piece.backend](kernel, bound, held, rest, self.threads)
            piece.compile_seconds += time.perf_counter() - began
        began = time.perf_counter()
        *results, inside = self.compiled[key](rest)
        piece.calls += 1
        piece.seconds += time.perf_counter() - began
        if not bool(np.asarray(inside).all()):
            run_kernel(kernel, args, symbols)  # says which index of which tensor
            raise IndexOutOfRange(stmt.loc, access=stmt.kernel, index="an index", dimension=0, extent=0)
        return results

    @property
    def _consts(self) -> frozenset[str]:
        return frozenset(self.program.data)

    def report(self) -> str:
        """A line for each piece: who compiled it, how often and how long it ran."""
        lines = [f"{'calls':>6} {'ms':>9} {'compile s':>9} {'Einsums':>7}  piece"]
        for p in self.pieces.values():
            lines.append(
                f"{p.calls:6} {p.seconds * 1e3:9.3f} {p.compile_seconds:9.2f} {p.einsums:7}  {p.name} {p.backend} {p.loc}"
            )
        return "\n".join(lines)


def hosted(imported: Imported, backend: Choice, threads: int | None) -> Hosted:
    """The model as a host program over pieces that `backend` compiles.

    Raises:
        UnknownBackend, MissingPackage: there is no such back end, here or at all.
        NotInTorch: a cascade has something that the back end cannot be given; where only its extents or its compiler
            say so, when it is reached.
    """
    from dlc.compiler import run_passes
    from dlc.passes.assume_bounds import assume_bounds

    program = run_passes(assume_bounds(imported.program), PIPELINE)
    choose = backend if callable(backend) else lambda _: backend
    made = Hosted(program, imported, choose, default_threads() if threads is None else threads)
    for name in {p.backend for p in made.pieces.values()}:
        for package, install in _NEEDS.get(name, ()):
            _need(package, install, name)
    for kernel in program.kernels:
        if made.pieces[kernel.name].backend != "dlc":
            from dlc.cascade_torch import refuse_early

            refuse_early(kernel.cascade, made.pieces[kernel.name].backend)
    return made


# --- back ends -------------------------------------------------------------------------------------------------------


def _module(kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], backend: str) -> Any:
    from dlc.cascade_torch import CascadeModule

    return CascadeModule(kernel.cascade, symbols, held, backend).eval()


def _in_torch(module: Any, rest: Sequence[Array], threads: int) -> Compiled:
    import torch

    from dlc.cascade_torch import tensor_of

    def run(given: Sequence[Array]) -> Sequence[Array]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return [array_of(t) for t in module(*map(tensor_of, given))]
        finally:
            torch.set_num_threads(before)

    run(rest)
    return run


def _eager(
    kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], rest: Sequence[Array], threads: int
) -> Compiled:
    return _in_torch(_module(kernel, symbols, held, "eager"), rest, threads)


def _inductor(
    kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], rest: Sequence[Array], threads: int
) -> Compiled:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from dlc.cascade_torch import tensor_of

    module = _module(kernel, symbols, held, "inductor")
    with torch.no_grad():
        graph = make_fx(module)(*map(tensor_of, rest))  # what depends on extents alone is constant in it
    return _in_torch(torch.compile(graph, fullgraph=True, dynamic=False), rest, threads)


def _exported(module: Any, rest: Sequence[Array], path: Path) -> list[str]:
    """Write the module as ONNX; the names of its inputs."""
    import torch

    from dlc.cascade_torch import tensor_of

    names = [f"x{n}" for n in range(len(rest))]
    program = torch.onnx.export(
        module, tuple(map(tensor_of, rest)), dynamo=True, input_names=names, verbose=False, optimize=True
    )
    assert program is not None
    program.save(str(path))
    return names


def _onnxruntime(
    kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], rest: Sequence[Array], threads: int
) -> Compiled:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cascade.onnx"
        names = _exported(_module(kernel, symbols, held, "onnxruntime"), rest, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}

    def run(given: Sequence[Array]) -> Sequence[Array]:
        feed = {n: v for n, v in zip(names, given, strict=True) if n in taken}
        found: Sequence[Array] = session.run(None, feed)
        return found

    return run


def _tvm(
    kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], rest: Sequence[Array], threads: int
) -> Compiled:
    from dlc.peers import tvm_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cascade.onnx"
        names = _exported(_module(kernel, symbols, held, "tvm"), rest, path)
        model = tvm_model(path, list(rest), names, threads, Path(folder))

    def run(given: Sequence[Array]) -> Sequence[Array]:
        return [np.array(r) for r in model.run([_at_64(given[k]) for k in model.order])]

    return run


def _dlc(
    kernel: Kernel, symbols: Mapping[str, int], held: Mapping[str, Array], rest: Sequence[Array], threads: int
) -> Compiled:
    import dlc

    program = program_of(kernel.cascade)
    consts = tuple(p for p in program.params if p.name in held)
    program = replace(
        program, params=tuple(p for p in program.params if p.name not in held), consts=consts, data=dict(held)
    )
    exe = dlc.compile(program, threads=threads)

    def run(given: Sequence[Array]) -> Sequence[Array]:
        found = exe(*given)
        return [*(found if isinstance(found, tuple) else (found,)), np.True_]

    return run


def _at_64(array: Array) -> Array:
    """The array at an address that is a multiple of 64."""
    block = np.empty(array.nbytes + 64, np.uint8)
    first = -block.ctypes.data % 64
    aligned: Array = block[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    aligned[...] = array
    return aligned


def array_of(t: Any) -> Array:
    """A tensor of torch as an array, bf16 included."""
    import torch

    if t.dtype == torch.bfloat16:
        import ml_dtypes

        bits: Array = t.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    found: Array = t.numpy()
    return found


def _array(v: Any) -> Any:
    return array_of(v.detach()) if type(v).__module__.split(".")[0] == "torch" else v


Backend: TypeAlias = Callable[[Kernel, Mapping[str, int], Mapping[str, Array], Sequence[Array], int], Compiled]
BACKENDS: Mapping[str, Backend] = {
    "dlc": _dlc,
    "eager": _eager,
    "inductor": _inductor,
    "onnxruntime": _onnxruntime,
    "tvm": _tvm,
}
_NEEDS = {
    "eager": (("torch", "dlc[torch]"),),
    "inductor": (("torch", "dlc[torch]"),),
    "onnxruntime": (("torch", "dlc[torch]"), ("onnxscript", "onnxscript"), ("onnxruntime", "onnxruntime")),
    "tvm": (("torch", "dlc[torch]"), ("onnxscript", "onnxscript"), ("tvm", "dlc[peers]")),
}


def _need(package: str, install: str, backend: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingPackage(what=f"backend='{backend}'", package=package, install=install)
