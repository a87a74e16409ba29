"""`compile` and `load`: from a model to an executable, stage by stage.

    import (a frontend) -> passes -> memory plan -> kernels and entry as native code -> manifest -> Executable

Every stage is a function of the stages' folders; this file only composes them and keeps their times in
`exe.compile_report`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dlc
from dlc.arena_plan import SCHEDULE_SECONDS, ArenaPlan, heirs_of, memory_report, plan_arena, plan_within, scratch_bytes
from dlc.byte_sizes import parse_bytes
from dlc.codegen.build import HOST_OPT_LEVEL, Built, Lower, ObjectCache, Progress, build_kernels, build_pool, build_text
from dlc.codegen.host import host_entry
from dlc.codegen.host_manifest import Interface, constant_layout, host_manifest
from dlc.codegen.target import Target, parse_target
from dlc.collector import collector_put_off
from dlc.control_graph import control_graph
from dlc.costmodel.words import word_costs
from dlc.errors import BadInput, DlcError, Internal, Unsupported
from dlc.ir.codes import codes_of
from dlc.ir.dtype import DType
from dlc.ir.einsum import TensorType
from dlc.ir.errors import DivisionByZeroExtent, NotInBounds
from dlc.ir.extent import int_expr
from dlc.ir.packing import pack
from dlc.ir.program import Launch, Param, Program, Transfer, fresh_name, walk_statements
from dlc.ir.verify import verify
from dlc.number_tables import with_tables
from dlc.passes.assume_bounds import assume_bounds
from dlc.passes.default import default_pipeline
from dlc.program_cache import ProgramCache, program_key
from dlc.runtime.cache import KernelCache
from dlc.runtime.cpu import default_threads
from dlc.runtime.executable import Executable, empty_constants
from dlc.runtime.executable import load as _load_artifact
from dlc.specialising import Specialising

if TYPE_CHECKING:
    from dlc.dump import Dump
    from dlc.frontend.imported import Imported
    from dlc.hosted import Choice, Hosted
    from dlc.passes.observers import Observer
    from dlc.passes.pipeline import Pipeline
    from dlc.passes.quantize_weights import QuantisedLayer
    from dlc.quantize import Quantize

LOG = logging.getLogger("dlc.compile")
ACCURACY = ("strict", "default", "fast")
ENTRY, POOL = "entry", "pool"
BEFORE_BATCHING = (
    "explicit-domains,simplify-indices,fold-constants,algebra,common-einsums,dead-code,hoist-common,host-assignments,"
    "hoist-invariants,sink"
)
"""What has to be done while there are branches: each arm's own work is in it before samples are sent there."""
PACK_THREADS = 2
_PACKED_AT_ONCE = 1 << 22
PAGE_BYTES = 4096
BLOCK = 128


class UnknownAccuracy(BadInput):
    """`accuracy=` is none of the known levels."""

    code = "DLC0610"
    template = "unknown accuracy '{accuracy}': known are strict, default and fast"


class ConstantMissing(BadInput):
    """The text of a program names a constant; its bytes are elsewhere."""

    code = "DLC0614"
    template = "the bytes of constant '{name}' are not at hand"
    hint = "a text refers to its constants by name: keep the dump's constants/ folder beside it, or set Program.data"


class ExtentsNotProven(Unsupported):
    """A model with symbolic extents may read outside a tensor for some of their values."""

    code = "DLC0617"
    template = "not supported: this operator because its symbolic extents are not proven to fit: {reason}"
    hint = "make the extents involved static, or give equal ones the same name (dim_params, dynamic_shapes=)"


_WORTH_KEEPING_S = 1.0  # a program that compiles faster than this is not kept whole


@dataclass
class CompileReport:
    """How a compilation went; `exe.compile_report`.

    Attributes:
        seconds: wall time by stage. `export` is torch's own part of the import; `total` is everything, export included.
        kernels: kernels of the program; `distinct` of them are different code.
        hits, misses: how many distinct kernels came from the cache, and how many were compiled.
        constants_bytes, object_bytes: sizes in the artifact.
        target: what the code is for.
        decomposed: operators that torch decomposed, for lack of a definition of their own.
        forgotten: attributes and variables that the model's own calls change, without a part in any result: the program leaves them alone.
        specialised: inputs whose values are compiled in.
        from_cache: the whole program was found compiled; the counts are then 0.
        quantised: the matrices that `quantize=` made of few bits, with their errors; empty when from the cache.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    kernels: int = 0
    distinct: int = 0
    launches: int = 0
    hits: int = 0
    misses: int = 0
    constants_bytes: int = 0
    object_bytes: int = 0
    target: str = ""
    decomposed: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    specialised: tuple[str, ...] = ()
    from_cache: bool = False
    quantised: tuple[QuantisedLayer, ...] = ()

    @property
    def own_seconds(self) -> float:
        """What dlc itself took: everything but torch's export."""
        return self.seconds.get("total", 0.0) - self.seconds.get("export", 0.0)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "seconds": {k: round(v, 6) for k, v in self.seconds.items()},
            "own_seconds": round(self.own_seconds, 6),
            "kernels": self.kernels,
            "distinct": self.distinct,
            "launches": self.launches,
            "cache": {"hits": self.hits, "misses": self.misses},
            "constants_bytes": self.constants_bytes,
            "object_bytes": self.object_bytes,
            "target": self.target,
            "decomposed": list(self.decomposed),
            "forgotten": list(self.forgotten),
            "specialised": list(self.specialised),
            "from_cache": self.from_cache,
            "quantised": [layer.to_json() for layer in self.quantised],
        }

    def __str__(self) -> str:
        if self.from_cache:
            return f"loaded from the program cache in {self.own_seconds:.2f} s"
        parts = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items() if stage != "total")
        return (
            f"compiled in {self.own_seconds:.2f} s ({parts}); {self.launches} launches of {self.distinct} kernels, "
            f"{self.hits} from the cache; {self.object_bytes / 1e3:.0f} kB code, "
            f"{self.constants_bytes / 1e6:.1f} MB constants"
        )


@collector_put_off()
def compile(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str | Target = "host",
    threads: int | None = None,
    accuracy: str = "default",
    dump_dir: str | os.PathLike[str] | None = None,
    passes: str | Pipeline | None = None,
    disable_passes: Sequence[str] = (),
    cache: bool | ObjectCache = True,
    name: str | None = None,
    observers: Sequence[Observer] = (),
    progress: Progress | None = None,
    verify_each: bool = False,
    specialise: Mapping[str, Any] | None = None,
    per_sample: bool = False,
    backend: Choice = "dlc",
    schedule_time: float = SCHEDULE_SECONDS,
    memory_budget: int | str | None = None,
    quantize: Quantize | str | None = None,
) -> Executable | Specialising | Hosted:
    """Compile a model for this machine's processor.

    Args:
        model: an nn.Module (with example inputs in `args` and `kwargs`), an ExportedProgram, an ONNX model (path, bytes
            or ModelProto), cascade text or an .ein file, or a program of the IR.
        args, kwargs: example inputs of an nn.Module, nested as in a call.
        dynamic_shapes: which dimensions vary, as torch.export takes it.
        target: 'host', 'avx512', 'avx2' or 'baseline', with '+feature' appended for more.
        threads: of the executable; by default DLC_NUM_THREADS, OMP_NUM_THREADS, or the CPUs at hand.
        accuracy: 'strict' leaves out rewrites that amplify rounding errors (`passes/winograd.py`); 'default'; 'fast' allows no
            more than that yet.
        dump_dir: folder for everything the compilation does (see `dlc.dump`); also written when it fails.
        passes: pipeline to run instead of the default one.
        disable_passes: names of passes of the pipeline to leave out.
        cache: whether to use the cache of compiled kernels, or a cache.
        name: of the program, for messages and dumps.
        observers: watch the passes.
        progress: called after each compiled kernel with (done, of, name).
        verify_each: verify the program after each pass, not only what went in and what comes out.
        specialise: values of ONNX inputs that decide shapes; the result holds for these values alone. Without it, a
            model that needs some is compiled for each value it is called with (`dlc.specialising`).
        per_sample: the model is written for one sample (inputs whose first dimension is 1); the executable takes batches of
            any size, in which each sample takes its own branches and steps (`passes/per_sample.py`).
        backend: who compiles the straight-line cascades: 'dlc', or 'onnxruntime', 'inductor', 'tvm' or 'eager', or a function
            from a cascade to one of these. With any but 'dlc' the result is a `dlc.hosted.Hosted`, for comparisons.
        schedule_time: seconds for the plan of the arena, where the least is not found at once.
        memory_budget: bytes, or '16MiB', that the arena never exceeds, the threads' scratch memory included; what does not
            fit is spilled to a mapped file as planned, and the results are the same to the bit.
        quantize: store the model's matrices in few bits (`dlc.Quantize`, or its short form `i4:g64`).

    Raises:
        DlcError: with a code, a place and a way out.
    """
    from dlc.importing import import_any, is_ir, is_onnx
    from dlc.quantize import Quantize, quantise

    if accuracy not in ACCURACY:
        raise UnknownAccuracy(accuracy=accuracy)
    options = {k: v for k, v in locals().items() if k not in ("model", "import_any", "is_ir", "is_onnx", "Quantize", "quantise")}
    if specialise is None and is_onnx(model):
        from dlc.frontend.onnx_errors import NeedsValue

        try:
            return compile(model, **{**options, "specialise": {}})
        except NeedsValue as error:
            return _specialising(model, options, error)
    wanted = parse_target(target) if isinstance(target, str) else target
    report = CompileReport(target=str(wanted))
    began = time.perf_counter()
    with ExitStack() as stack:
        dump = None
        dump_dir = dump_dir or os.environ.get("DLC_DUMP_DIR") or None
        if dump_dir is not None:
            from dlc.dump import Dump

            dump = stack.enter_context(Dump(dump_dir, model=name or _shown(model), target=str(wanted)))
        start = time.perf_counter()
        given = None if args is None else tuple(args) if isinstance(args, (tuple, list)) else (args,)
        imported = import_any(model, given, kwargs, dynamic_shapes, specialise, name)
        export = 0.0 if imported is model else float(imported.seconds.get("export", 0.0))  # what is given was exported before
        if per_sample:
            imported = _per_sample(imported)
        report.seconds["export"] = export
        report.seconds["import"] = time.perf_counter() - start - export
        report.decomposed = tuple(imported.decomposed)
        report.forgotten = tuple(imported.forgotten)
        if report.forgotten:
            LOG.warning("%s: calls of the model change %s; calls of the program do not", imported.program.name, ", ".join(report.forgotten))
        report.specialised = tuple(imported.specialised)
        if dump is not None:
            dump.stage("import", report.seconds["import"], export_seconds=export)
        wish = Quantize.of(quantize)
        if backend != "dlc":
            from dlc.hosted import hosted

            return hosted(imported if wish is None else quantise(imported, wish)[0], backend, threads)
        if passes is None:
            passes = default_pipeline(wanted.lanes, wanted.vector_registers, accuracy, word_costs(wanted.has))
        key = None
        budget_threads = None if memory_budget is None else threads or default_threads()  # each has scratch memory
        if cache is True and dump is None and not observers:
            start = time.perf_counter()
            more = (schedule_time, memory_budget, budget_threads, wish and wish.key())
            key = program_key(imported, (wanted.key, str(passes), tuple(disable_passes), accuracy, *more))
            kept = ProgramCache().get(key, threads)
            report.seconds["program cache"] = time.perf_counter() - start
            if kept is not None:
                report.from_cache = True
                report.seconds["total"] = time.perf_counter() - began
                kept.compile_report = report
                return kept
        if wish is not None:
            start = time.perf_counter()
            imported, report.quantised = quantise(imported, wish)
            report.seconds["quantise"] = time.perf_counter() - start
            if dump is not None:
                dump.json("quantisation", [layer.to_json() for layer in report.quantised])
        start = time.perf_counter()
        assumed = assume_bounds(imported.program)
        if not is_ir(model):
            _check_import(assumed)
        program = run_passes(
            assumed,
            passes,
            disable_passes,
            (*observers, dump) if dump else observers,
            verify_each,
        )
        report.seconds["passes"] = time.perf_counter() - start
        if dump is not None:
            from dlc.pass_report import analyse

            dump.json("pass_analysis", analyse(assumed, program, wanted.l2_bytes))
        executable = compile_program(
            program,
            wanted,
            imported=imported,
            threads=threads,
            cache=cache,
            dump=dump,
            progress=progress,
            report=report,
            schedule_time=schedule_time,
            memory_budget=None if memory_budget is None else parse_bytes(memory_budget),
        )
        report.seconds["total"] = time.perf_counter() - began
        LOG.info("%s", report)
        if key is not None and report.own_seconds > _WORTH_KEEPING_S:
            ProgramCache().put(key, executable)
        if dump is not None:
            dump.note(report=report.to_json())
    return executable


def _specialising(model: Any, options: dict[str, Any], needs: Any) -> Specialising:
    """The model compiled per value; for the example inputs, if there are any, at once."""
    from dlc.importing import onnx_inputs

    def compile_for(values: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Executable:
        # What is called with is the example for this value: extents may go with it, as frame length with sample rate.
        made = compile(model, **{**options, "args": args, "kwargs": kwargs, "specialise": values})
        assert isinstance(made, Executable)
        return made

    made = Specialising(compile_for, onnx_inputs(model), needs.names, type(needs))
    args, kwargs = options["args"], options["kwargs"] or {}
    if args or kwargs:
        made.executable(*(args if isinstance(args, (tuple, list)) else (args,)), **kwargs)
    return made


def _per_sample(imported: Imported) -> Imported:
    """The model of one sample for a batch."""
    from dlc.passes.per_sample import NotPerSample, PerSample

    if imported.mutated:
        name = imported.mutated[0][0]
        raise NotPerSample(op=f"'{name}'", reason="the model changes it in place, and all samples would share it")
    one = run_passes(assume_bounds(imported.program), BEFORE_BATCHING)
    return replace(imported, program=PerSample().apply(one))


def _check_import(program: Program) -> None:
    """Refuse a model whose reads are not proven, in the model's words: the text of the IR is not the user's to mend."""
    try:
        verify(program)
    except (NotInBounds, DivisionByZeroExtent) as error:
        raise ExtentsNotProven(error.loc, reason=error.message) from error


def load(path: str | os.PathLike[str], threads: int | None = None) -> Executable:
    """The executable that `exe.save` wrote; needs NumPy alone."""
    return _load_artifact(path, threads)


@collector_put_off()
def run_passes(
    program: Program,
    passes: str | Pipeline | None = None,
    disable: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    verify_each: bool = False,
) -> Program:
    """The program after the pipeline (the default one for AVX-512 when `passes` is None)."""
    from dlc.passes.pipeline import Pipeline
    from dlc.passes.registry import passes as known

    pipeline = passes
    if not isinstance(pipeline, Pipeline):
        pipeline = Pipeline.parse(default_pipeline() if pipeline is None else pipeline, known())
    if disable:
        pipeline = pipeline.without(disable)
    after = pipeline.run(program, tuple(observers), verify=verify_each)
    if not verify_each:
        try:
            verify(after)
        except DlcError:
            pipeline.run(program, verify=True)  # names the pass that made it
            raise
    return after


def compile_program(
    program: Program,
    target: Target,
    *,
    imported: Imported | None = None,
    threads: int | None = None,
    cache: bool | ObjectCache = True,
    dump: Dump | None = None,
    progress: Progress | None = None,
    report: CompileReport | None = None,
    lower: Lower | None = None,
    schedule_time: float = SCHEDULE_SECONDS,
    memory_budget: int | None = None,
) -> Executable:
    """Code generation: the executable of a program whose statements are launches and control.

    Args:
        imported: nesting and names of inputs and outputs; flat and the program's own without it.
        lower: kernel -> tile program, when not the usual lowering.
        The rest as in `compile`.
    """
    report = report if report is not None else CompileReport(target=str(target))
    program, expected = _with_expected(program, imported)
    store: ObjectCache | None = None
    if cache is True:
        store = KernelCache()
    elif cache is not False:
        store = cache
    clock = time.perf_counter
    start = clock()
    built = build_kernels(
        program, target, store=store, dump=dump.kernel if dump is not None else None, progress=progress, lower=lower
    )
    report.seconds.update(built.seconds)
    program = with_tables(program, built.tables)
    start = clock()
    heirs = heirs_of(program, built.kernels)
    if memory_budget is None:
        arena = plan_arena(program, schedule_time, heirs)
    else:
        scratch = scratch_bytes(program, built.kernels, threads)
        arena = plan_within(program, memory_budget, scratch, schedule_time, heirs)
    program, plan = arena.program, arena.memory
    report.seconds["plan"] = clock() - start
    start = clock()
    layout, size = constant_layout(program, [*expected.values(), *_used_constants(program)])
    host = host_entry(program, plan, built.kernels, {name: at for name, (at, _) in layout.items()}, expected)
    if dump is not None:
        dump.kernel("dlc_main", "mlir", host.mlir)
    entry, _ = build_text(host.mlir, target, store, opt_level=HOST_OPT_LEVEL)
    objects = {**built.objects, ENTRY: entry, POOL: build_pool(target, store)}
    manifest = host_manifest(
        program,
        plan,
        host,
        built.kernels,
        layout,
        target,
        producer=f"dlc {dlc.__version__}",
        entry=ENTRY,
        pool=POOL,
        interface=interface_of(imported),
        spill_bytes=arena.spill_bytes,
        memory_budget=memory_budget,
    )
    manifest["x-arena"] = arena.facts
    report.seconds["entry"] = clock() - start
    start = clock()
    constants = pack_constants(program, layout, size)
    executable = Executable.from_parts(manifest, objects, constants, threads)
    report.seconds["load"] = clock() - start
    _count(report, built, len(host.calls), size, objects)
    if dump is not None:
        dump.json("memory", memory_report(arena))
        dump.json("schedule", schedule_report(program, arena))
        dump.json("control", control_graph(executable.manifest))
        for stage in ("plan", "lower", "compile", "entry", "load"):
            dump.stage(stage, report.seconds[stage])
        dump.note(kernels=report.kernels, distinct=report.distinct, cache_hits=built.hits)
    executable.compile_report = report
    return executable


def interface_of(imported: Imported | None) -> Interface:
    if imported is None:
        return Interface()
    in_tree, names = imported.in_tree, imported.arg_names
    match in_tree:
        case {"t": "tuple", "c": [{"t": "tuple"}, {"t": "dict"}]}:
            pass
        case _:  # positional arguments alone; those that are tensors have their input's name
            if not names and [c.get("i") for c in in_tree.get("c", ())] == list(range(len(imported.input_names))):
                names = imported.input_names
            in_tree = {"t": "tuple", "c": [in_tree, {"t": "dict", "k": [], "c": []}]}
    return Interface(imported.input_names, imported.output_names, in_tree, imported.out_tree, names)


def _with_expected(program: Program, imported: Imported | None) -> tuple[Program, dict[int, str]]:
    """The values that the program was specialised on, as constants for the entry to compare with: constant by input."""
    if imported is None or not imported.specialised:
        return program, {}
    taken = {c.name for c in program.consts} | {p.name for p in program.params}
    expected, consts, data = {}, list(program.consts), dict(program.data)
    for name, value in imported.specialised.items():
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        index = imported.input_names.index(name)
        constant = fresh_name(f"expected_{index}", taken)
        of = TensorType(program.params[index].type.dtype, tuple(int_expr(n) for n in array.shape))
        consts.append(Param(constant, of))
        data[constant] = array
        expected[index] = constant
    return replace(program, consts=tuple(consts), data=data), expected


def _count(report: CompileReport, built: Built, launches: int, size: int, objects: Mapping[str, bytes]) -> None:
    report.kernels, report.distinct, report.launches = len(built.kernels), len(built.objects), launches
    report.hits, report.misses = built.hits, built.misses
    report.constants_bytes = size
    report.object_bytes = sum(map(len, objects.values()))


def _used_constants(program: Program) -> list[str]:
    """Names that statements read, and results: constants among them are kept, the others are dropped."""
    names: dict[str, None] = {}
    for stmt in walk_statements(program.body):
        names.update(dict.fromkeys(stmt.reads))
    names.update(dict.fromkeys(program.results))
    return list(names)


def pack_constants(program: Program, layout: Mapping[str, tuple[int, int]], size: int) -> np.ndarray:
    """The constants' bytes in one block, u8[size], that starts at a multiple of 64."""
    block = empty_constants(size)
    types = {c.name: c.type for c in program.consts}

    def place(name: str) -> None:
        at, length = layout[name]
        of = types[name]
        try:
            array = np.asarray(program.data[name])
        except KeyError:
            raise ConstantMissing(program.loc, name=name) from None
        if array.dtype != of.dtype.numpy or array.shape != tuple(e.const for e in of.shape):
            found = f"{array.dtype}{list(array.shape)}"
            raise Internal(program.loc, message=f"constant '{name}' is {found}, its type says {of}")
        if of.order is not None:
            array = array.transpose(of.order)
        if of.dtype.is_coded and length:
            _pack(block[at : at + length], array, of.dtype)
        elif length:
            _copy(block[at : at + length].view(array.dtype).reshape(array.shape), array)

    with ThreadPoolExecutor(PACK_THREADS) as team:  # NumPy copies without the interpreter lock
        for _ in team.map(place, sorted(layout, key=lambda name: -layout[name][1])):
            pass
    return block


def _pack(target: np.ndarray, array: np.ndarray, dtype: DType) -> None:
    """The codes of `array` without gaps, a block of them at a time; zeros behind them."""
    done, parts = 0, [codes_of(array)]
    while parts:
        part = parts.pop()
        if part.ndim > 1 and part.size > _PACKED_AT_ONCE and part[0].size % 8 == 0 and dtype.per_byte is None:
            parts += reversed(list(part))
            continue
        packed = pack(part, dtype)
        target[done : done + packed.size] = packed
        done += packed.size
    target[done:] = 0


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, in blocks where the rows of a transposed source all lie in the same sets of the cache."""
    across = source.ndim >= 2 and abs(source.strides[-1]) % PAGE_BYTES == 0 and source.strides[-1] != 0
    if not across or source.shape[-2] < BLOCK or source.shape[-1] > BLOCK:
        target[...] = source
        return
    rows, columns = source.shape[-2:]
    bounce = np.empty((columns, BLOCK + 64 // source.itemsize), source.dtype)[:, :BLOCK]
    for outer in np.ndindex(source.shape[:-2]):
        lines, panel = source[outer].T, target[outer]
        for first in range(0, rows, BLOCK):
            part = bounce[:, : min(BLOCK, rows - first)]
            part[...] = lines[:, first : first + BLOCK]
            panel[first : first + BLOCK] = part.T


def schedule_report(program: Program, plan: ArenaPlan) -> dict[str, Any]:
    """The order of launches and transfers, and how far the arena is from what is alive at once, which no plan can go below."""
    order: list[dict[str, Any]] = []
    for stmt in walk_statements(program.body):
        if isinstance(stmt, Launch):
            order.append({"kernel": stmt.kernel, "reads": stmt.args, "writes": stmt.outs, "loc": str(stmt.loc)})
        elif isinstance(stmt, Transfer):
            order.append({"fill" if stmt.fills else "spill": stmt.tensor})
    return {
        "objective": "arena bytes",
        "value": plan.height,
        "bound": plan.bound,
        "gap": round(plan.gap, 4),
        "method": "program order, addresses packed",
        "seconds": round(plan.seconds, 4),
        "symbols": {name[1:]: value for name, value in plan.symbols.items()},
        "order": order,
    }


def _shown(model: Any) -> str:
    if isinstance(model, (str, Path)):
        text = str(model)
        return text if "\n" not in text and len(text) < 200 else "cascade text"
    return type(model).__name__


__all__ = ["CompileReport", "DlcError", "compile", "compile_program", "load", "pack_constants", "run_passes"]
