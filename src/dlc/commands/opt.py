"""Read a program's text (or any dump), run passes over it, verify, and print the result.

  dlc opt model.ein --pass-pipeline 'inline-pointwise,fuse'
  dlc opt dumps/002-simplify-indices.ein --passes 'dead-code,fuse{max_steps=8}' --print-ir-after-change
  dlc opt model.ein                      verify only, print in the usual form
  dlc opt --list-passes                  all passes with their options, and the usual pipeline
  dlc opt model.ein --passes simplify-indices --check-numbers     interpret before and after each pass, on random data

FILE may be - for standard input, an .onnx file or a Python model (then the imported program is what passes see).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.commands import options as shared
from dlc.console import Console

if TYPE_CHECKING:
    from dlc.ir.program import Program


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE", nargs="?", help="an .ein file, -, or a model")
    parser.add_argument(
        "--pass-pipeline", "--passes", dest="pass_pipeline", default="", metavar="P", help="passes to run"
    )
    parser.add_argument("--compile-from", metavar="PASS", help="begin the pipeline at this pass")
    parser.add_argument("--compile-to", metavar="PASS", help="end the pipeline after this pass")
    parser.add_argument(
        "--disable-pass", action="append", default=[], metavar="NAME", help="leave a pass out; repeatable"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the result there instead of stdout")
    parser.add_argument("--locs", action="store_true", help="print source locations, too")
    parser.add_argument("--list-passes", action="store_true", help="list passes and options")
    parser.add_argument("--check-numbers", action="store_true", help="name the first pass that changes a result")
    parser.add_argument("--dump-dir", "--print-ir-tree-dir", dest="dump_dir", metavar="DIR", help="write dumps there")
    shared.add_printing(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    if options.list_passes:
        return list_passes(console)
    if options.model is None:
        console.warn("opt needs a FILE (or --list-passes); see dlc opt --help")
        return 2
    from dlc.passes.pipeline import Pipeline
    from dlc.passes.registry import passes

    program = read_program(options.model)
    text = options.pass_pipeline
    if not text and (options.compile_from or options.compile_to):
        from dlc.passes.default import DEFAULT_PIPELINE

        text = DEFAULT_PIPELINE
    pipeline = Pipeline.parse(text, passes())
    pipeline = pipeline.without(options.disable_pass).part(options.compile_from, options.compile_to)
    watching, timer = shared.observers(options)
    if options.check_numbers:
        watching = (*watching, numeric_check(program))
    if options.dump_dir:
        from dlc.dump import Dump

        with Dump(options.dump_dir, model=options.model) as dump:
            result = pipeline.run(program, (dump, *watching), verify=options.check_each)
    else:
        result = pipeline.run(program, watching, verify=options.check_each)
    if timer is not None:
        print(timer.table(), file=sys.stderr)
    return _print(result, options, console)


def read_program(spec: str) -> Program:
    """The program of a text file (- is standard input; constants beside it are read), or a model's as imported."""
    from dlc.importing import import_any, import_text

    if spec.endswith(".ein"):
        return import_any(Path(spec), None, None, None, None).program
    if spec == "-":
        return import_text(sys.stdin.read(), "<stdin>").program
    from dlc.models import open_model

    model = open_model(spec)
    return import_any(model.source, model.inputs, None, model.dynamic_shapes, None).program


def list_passes(console: Console) -> int:
    from dlc.passes.pipeline import options_of
    from dlc.passes.registry import passes

    rows: list[dict[str, Any]] = []
    for name, kind in passes().items():
        summary = (kind.__doc__ or "").strip().splitlines()[0] if kind.__doc__ else ""
        listed = {o: {"type": t, "default": d} for o, (t, d) in options_of(kind).items()}
        rows.append({"name": name, "summary": summary, "options": listed})
        console.say(f"{name}: {summary}")
        for option, fact in listed.items():
            console.say(f"    {option}: {fact['type']}, default {fact['default']}")
    from dlc.passes.default import DEFAULT_PIPELINE as usual

    console.emit({"pipeline": usual}, rows)
    console.say(f"\nthe usual pipeline: {usual or 'no pass'}")
    return 0


def numeric_check(program: Program, seed: int = 0) -> Any:
    """An observer that interprets the program after each pass on random inputs."""
    from dlc.commands.numbers import interpreter_on_random_data
    from dlc.passes.observers import NumericCheck

    return NumericCheck(interpreter_on_random_data(program, seed))


def _print(result: Program, options: argparse.Namespace, console: Console) -> int:
    from dlc.ir.program import show_program

    text = show_program(result, locs=options.locs)
    if options.output:
        Path(options.output).write_text(text + "\n")
        return 0
    console.emit({"program": text})
    console.say(text)
    return 0
