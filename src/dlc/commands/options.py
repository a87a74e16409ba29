"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlc.console import Console
from dlc.errors import BadInput
from dlc.feeds import call_arguments, load_inputs, random_inputs, symbol_values
from dlc.models import Model, open_model, with_shapes

if TYPE_CHECKING:
    from dlc.passes.observers import Observer, Timer
    from dlc.runtime.executable import Executable


class BadSpecialise(BadInput):
    """A --specialise option names no input, or a value that is none."""

    code = "DLC0622"
    template = "--specialise {given}: {reason}"
    hint = "the inputs are: {known}"


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("text", "json", "jsonl"),
        default="text",
        help="text for people; json, one object; jsonl, one object per line",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="threads per inference (default: DLC_NUM_THREADS)")


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Options of everything that compiles."""
    group = parser.add_argument_group("compilation")
    group.add_argument("--target", default="host", metavar="T", help="host (default), avx512, avx2 or baseline")
    group.add_argument(
        "--accuracy",
        choices=("strict", "default", "fast"),
        default="default",
        help="strict leaves out rewrites that amplify rounding errors (Winograd); fast is default, for now",
    )
    group.add_argument(
        "--pass-pipeline",
        "--passes",
        dest="pass_pipeline",
        metavar="P",
        help="these passes instead of the usual ones, as dlc opt reads them",
    )
    group.add_argument(
        "--disable-pass", action="append", default=[], metavar="NAME", help="leave a pass out; repeatable"
    )
    group.add_argument(
        "--specialise",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="value of an ONNX input that decides shapes; the result holds for it alone; repeatable",
    )
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        metavar="NAME=N,N",
        help="extents of an ONNX input: integers, or names for symbolic ones; repeatable",
    )
    group.add_argument(
        "--per-sample",
        action="store_true",
        help="the model decides for one sample: take batches of any size, each sample on its own path",
    )
    group.add_argument(
        "--quantize",
        metavar="Q",
        help="store matrices in few bits: i4:g64, u3:row:a=i8, auto:4.5bits (docs/quantisation.md)",
    )
    group.add_argument(
        "--memory-budget",
        type=byte_size,
        metavar="N",
        help="bytes, or 16MiB, that the arena never exceeds; what does not fit is spilled to a mapped file",
    )
    group.add_argument(
        "--schedule-time",
        type=float,
        metavar="S",
        help="seconds for the plan of the arena (default 1; of a scratchpad 60), of which the best found is taken",
    )
    group.add_argument("--dump-dir", metavar="DIR", help="write every pass's result and an HTML report there")
    add_printing(parser)


def add_printing(parser: argparse.ArgumentParser) -> None:
    """Options that watch a pipeline; everything goes to stderr."""
    group = parser.add_argument_group("watching the passes (on stderr)")
    when = group.add_mutually_exclusive_group()
    for name, text in (
        ("all", "print the program after each pass"),
        ("change", "print what each pass changed, as a diff"),
        ("failure", "print the program that a failing pass was given"),
    ):
        when.add_argument(f"--print-ir-after-{name}", dest="print_ir", action="store_const", const=name, help=text)
    group.add_argument(
        "--print-ir-before", action="append", default=[], metavar="PASS", help="print what PASS is given"
    )
    group.add_argument("--print-ir-after", action="append", default=[], metavar="PASS", help="print what PASS makes")
    group.add_argument("--timing", action="store_true", help="print the time of each pass")
    group.add_argument("--no-check-each", dest="check_each", action="store_false", help="do not verify after each pass")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument("--input", metavar="FILE", help=".npz with the inputs by name or position, or .npy; else random")
    group.add_argument("--seed", type=int, default=0, help="of random inputs (default 0)")
    group.add_argument(
        "--symbol",
        action="append",
        default=[],
        metavar="NAME=N",
        help="value of a symbolic extent for random inputs; repeatable",
    )
    group.add_argument(
        "--int-range",
        type=int_range,
        default=(0, 2),
        metavar="LO:HI",
        help="random integers are LO to HI-1 (default 0:2, safe for indices)",
    )


def _shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    name, equals, shape = text.partition("=")
    extents = tuple(int(e) if e.isdigit() else e for e in re.sub(r"(?<=\d)x(?=\d)", ",", shape).split(",") if e)
    if not equals or any(isinstance(e, str) and not e.isidentifier() for e in extents):
        raise argparse.ArgumentTypeError(f"write NAME=N,N, not '{text}'")
    return name, extents


def extents(text: str) -> dict[str, int]:
    """`h=768,p=262144` as values of symbols."""
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if not name.strip().isidentifier() or not number.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"write NAME=N,NAME=N with integers, not '{text}'")
        found[name.strip()] = int(number)
    return found


def byte_size(text: str) -> int:
    """A number of bytes as people write it, `16MiB`."""
    from dlc.byte_sizes import parse_bytes

    try:
        return parse_bytes(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(error.message) from None


def byte_count(text: str) -> float:
    """A number of bytes, not below 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"write a number of bytes, 0 or more, not '{text}'")
    return number


def int_range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    try:
        return int(low), int(high) if colon else int(low) + 1
    except ValueError:
        raise argparse.ArgumentTypeError(f"write LO:HI, not '{text}'") from None


def observers(options: argparse.Namespace) -> tuple[tuple[Observer, ...], Timer | None]:
    """What the printing options ask for: the observers, and among them the timer, if any."""
    from dlc.passes.observers import PrintIR, Timer

    found: list[Any] = []
    if options.print_ir or options.print_ir_before or options.print_ir_after:
        when: Literal["all", "change", "failure", "none"] = options.print_ir or "none"
        found.append(PrintIR(sys.stderr, when, options.print_ir_before, options.print_ir_after))
    timer = Timer() if options.timing else None
    if timer is not None:
        found.append(timer)
    return tuple(found), timer


def dump_dir(options: argparse.Namespace) -> str | None:
    return options.dump_dir or os.environ.get("DLC_DUMP_DIR") or None


def compile_model(model: Model, options: argparse.Namespace, console: Console) -> Executable:
    """Compile an opened model as the options say; load it if it is compiled."""
    from dlc import compiler
    from dlc.runtime.executable import Executable

    threads = getattr(options, "threads", None)
    model = with_shapes(model, dict(options.shape))
    if model.kind == "dlc":
        return compiler.load(model.source, threads=threads)
    watching, timer = observers(options)
    with console.step(f"compiling {model.spec}"):
        executable = compiler.compile(
            model.source,
            model.inputs,
            dynamic_shapes=model.dynamic_shapes,
            target=options.target,
            threads=threads,
            accuracy=options.accuracy,
            per_sample=options.per_sample,
            dump_dir=dump_dir(options),
            passes=options.pass_pipeline,
            disable_passes=tuple(options.disable_pass),
            name=model.spec,
            observers=watching,
            progress=lambda done, of, name: console.progress(f"compiled {done} of {of} kernels"),
            verify_each=options.check_each,
            memory_budget=options.memory_budget,
            schedule_time=compiler.SCHEDULE_SECONDS if options.schedule_time is None else options.schedule_time,
            specialise=specialised(model, options.specialise) if model.kind == "onnx" else None,
            quantize=options.quantize,
        )
    assert isinstance(executable, Executable)  # only without `specialise` it might be compiled per value
    if timer is not None:
        print(timer.table(), file=sys.stderr)
    return executable


def specialised(model: Model, given: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of ONNX inputs from `name=1,2,3`, with the type and rank that the model declares.

    Raises:
        BadSpecialise: no such input, no number, or more than a list of numbers.
    """
    if not given:
        return {}
    import onnx

    proto = model.source
    if not isinstance(proto, onnx.ModelProto):
        proto = onnx.load(str(proto), load_external_data=False)
    inputs = {i.name: i.type.tensor_type for i in proto.graph.input}
    values = {}
    for text in given:
        name, _, numbers = text.partition("=")
        if name not in inputs:
            raise BadSpecialise(given=text, reason="the model has no such input", known=", ".join(inputs) or "none")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].elem_type)
        rank = len(inputs[name].shape.dim)
        try:
            value = np.array([float(n) for n in numbers.split(",") if n.strip()]).astype(dtype)
        except ValueError:
            raise BadSpecialise(given=text, reason="write NAME=A,B with numbers", known=", ".join(inputs)) from None
        if rank > 1 or (rank == 0 and value.size != 1):
            raise BadSpecialise(given=text, reason=f"the input has rank {rank}", known=", ".join(inputs))
        values[name] = value.reshape(()) if rank == 0 else value
    return values


def executable_of(options: argparse.Namespace, console: Console) -> tuple[Model, Executable]:
    """The model a verb was given, ready to run; an artifact needs NumPy alone."""
    model = open_model(options.model)
    if model.kind == "dlc":
        from dlc.runtime.executable import load

        return model, load(model.source, threads=getattr(options, "threads", None))
    return model, compile_model(model, options, console)


def arrays_for(executable: Executable, options: argparse.Namespace) -> list[np.ndarray]:
    """The inputs that the options ask for, in the order of the manifest."""
    if options.input:
        return load_inputs(options.input, executable.manifest)
    symbols = symbol_values(executable.manifest, options.symbol)
    return random_inputs(executable.manifest, symbols=symbols, seed=options.seed, int_range=options.int_range)


def call_for(executable: Executable, options: argparse.Namespace) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one call of the executable."""
    return call_arguments(executable.manifest, arrays_for(executable, options))
