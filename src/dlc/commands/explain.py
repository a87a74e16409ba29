"""What the compiler made of a model: symbols, kernels, memory; what a cascade costs; or what an error code means.

dlc explain model.dlc             inputs, outputs, symbols, kernels by size, memory, constants, target
dlc explain model.onnx            compile it first, and tell what was fused into each kernel, its passes and traffic
dlc explain model.onnx --kernel k3    one kernel, as the Einsums that are in it
dlc explain attention.ein --target fusemax --extent h=768,p=4096,m=4096,e=64,f=64
                                  time, traffic and energy of a cascade on a spatial accelerator, Einsum by Einsum
dlc explain attention.ein --extent h=768,p=4096,m=4096,e=64,f=64      the same by the roofline of this CPU
dlc explain model.onnx --target scratchpad --budget 256KiB
                                  order, addresses and transfers of the kernels in a fast memory of that size
dlc explain DLC0102               an error code: what it says and the way out
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.commands import options as shared
from dlc.commands import scratchpad
from dlc.commands.quantised import say_quantised
from dlc.console import Console, bytes_text, seconds_text
from dlc.control_graph import Graph, control_graph, graph_lines, has_control, write_svg
from dlc.errors import REGISTRY, BadInput, DlcError
from dlc.feeds import signature
from dlc.models import open_model

if TYPE_CHECKING:
    from dlc.costing import CpuCost
    from dlc.costmodel.spatial.model import SpatialCost


class NoSuchCode(BadInput):
    """An error code nobody declares."""

    code = "DLC0641"
    template = "there is no error {wanted}"
    hint = "like it are: {known}; docs/errors.md lists all"


class NoSuchKernel(BadInput):
    """A kernel that the model does not have."""

    code = "DLC0642"
    template = "the model has no kernel '{wanted}'"
    hint = "its kernels are: {known}"


class NoCascade(BadInput):
    """What only a cascade's text can be asked about was asked of another model."""

    code = "DLC0643"
    template = "--extent and spatial targets are for a cascade's text, and '{model}' is none"
    hint = "give an .ein file with one cascade; `dlc opt MODEL` prints a model's program"


class OptionHasNoUse(BadInput):
    """An option of `dlc explain` that nothing of what was asked would look at."""

    code = "DLC0644"
    template = "{option} has no use here: it is for {use}"
    hint = "leave it out"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_CODE", help="a .dlc file, a model, or an error code")
    parser.add_argument("--kernel", metavar="NAME", help="show this kernel's Einsums (of a model, not of a .dlc file)")
    cost = parser.add_argument_group("cost of a cascade (--target also takes a spatial target's name or JSON file)")
    cost.add_argument(
        "--extent", action="append", default=[], type=shared.extents, metavar="NAME=N,...", help="values of its symbols"
    )
    cost.add_argument(
        "--traffic-bytes",
        type=shared.byte_count,
        metavar="N",
        help="memory traffic known from elsewhere, instead of the counted one",
    )
    cost.add_argument(
        "--as-published", action="store_true", help="energy with the errors of the figures published for the target"
    )
    parser.add_argument("--graph", metavar="FILE", help="draw the control graph there (SVG)")
    scratchpad.configure(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    if re.fullmatch(r"DLC\d{4}", options.model):
        return explain_code(options.model, console)
    _check_use(options)
    if options.target == scratchpad.TARGET:
        return scratchpad.explain(options, console)
    if options.extent or (options.model.endswith(".ein") and not _is_cpu(options.target)):
        return explain_cost(options, console)
    model = open_model(options.model)
    if model.kind == "dlc":
        manifest = shared.executable_of(options, console)[1].manifest
        explain_manifest(manifest, {}, console)
        return say_control(control_graph(manifest), console, options.graph)
    with tempfile.TemporaryDirectory() as folder:
        if shared.dump_dir(options) is None:
            options.dump_dir = folder
        executable = shared.compile_model(model, options, console)
        dumped = Path(str(shared.dump_dir(options)))
        kernels = _kernel_texts(dumped)
        analysis = json.loads((dumped / "pass_analysis.json").read_text())
    if options.kernel:
        if options.kernel not in kernels:
            raise NoSuchKernel(wanted=options.kernel, known=", ".join(kernels) or "unknown")
        console.emit({"kernel": options.kernel, "program": kernels[options.kernel]})
        console.say(kernels[options.kernel])
        return 0
    from dlc.pass_report import facts_of, say_passes  # not for .dlc files: an artifact runs where no compiler is

    explain_manifest(executable.manifest, kernels, console, facts_of(analysis, model.kind == "ein"))
    say_passes(analysis, console)
    say_quantised(executable, console)
    return say_control(control_graph(executable.manifest), console, options.graph)


def _check_use(options: argparse.Namespace) -> None:
    """Refuse what would be ignored in silence."""
    scheduled = options.target == scratchpad.TARGET
    spatial = not scheduled and not _is_cpu(options.target)
    given = {"--budget": options.budget is not None, "--weights": options.weights, "--recompute": options.recompute}
    for option in (name for name, there in given.items() if there and not scheduled):
        raise OptionHasNoUse(option=option, use="--target scratchpad")
    if scheduled and options.kernel:
        raise OptionHasNoUse(option="--kernel", use="a model that is compiled for this processor")
    if options.traffic_bytes is not None and not spatial:
        raise OptionHasNoUse(option="--traffic-bytes", use="a spatial --target")
    if options.as_published and not spatial:
        raise OptionHasNoUse(option="--as-published", use="a spatial --target")
    for option, given in (("--kernel", options.kernel), ("--graph", options.graph)):
        if given and (spatial or options.extent):
            raise OptionHasNoUse(option=option, use="a model that is compiled for this processor")


def explain_code(code: str, console: Console) -> int:
    """Print an error class's template, hint and docstring."""
    all_errors()
    kind = REGISTRY.get(code)
    if kind is None:
        raise NoSuchCode(wanted=code, known=", ".join(c for c in sorted(REGISTRY) if c[:5] == code[:5]) or "none")
    meaning = (kind.__doc__ or "").strip()
    facts = {
        "code": code,
        "kind": kind.__name__,
        "meaning": meaning,
        "template": kind.template,
        "help": kind.hint,
        "exit_code": kind.exit_code,
    }
    console.emit(facts)
    console.say(f"{code} {kind.__name__}: {kind.template}")
    if meaning:
        console.say(f"  {meaning}")
    if kind.hint:
        console.say(f"  help: {kind.hint}")
    console.say(f"  dlc ends with exit code {kind.exit_code}")
    return 0


def all_errors() -> dict[str, Any]:
    """Every error class of dlc by code: imports what can be imported here."""
    import importlib
    import pkgutil

    import dlc

    for module in pkgutil.walk_packages(dlc.__path__, "dlc.", onerror=lambda name: None):
        if "__main__" not in module.name:
            try:
                importlib.import_module(module.name)
            except (ImportError, DlcError):
                continue  # a part whose packages are not installed
    return dict(sorted(REGISTRY.items()))


def _is_cpu(target: str) -> bool:
    from dlc.costing import is_cpu

    return is_cpu(target)


def explain_cost(options: argparse.Namespace, console: Console) -> int:
    """Print what a cascade costs at the extents that the options give."""
    from dlc.codegen.target import parse_target
    from dlc.costing import cpu_cost, spatial_cost
    from dlc.costmodel.spatial.target import load_target
    from dlc.ir.parser import parse_cascade

    model = open_model(options.model) if options.model.endswith(".ein") else None
    if model is None:
        raise NoCascade(model=options.model)
    cascade = parse_cascade(Path(options.model).read_text(), options.model)
    extents = {name: size for given in options.extent for name, size in given.items()}
    if _is_cpu(options.target):
        _print_cpu_cost(cpu_cost(cascade, parse_target(options.target), extents, options.threads or 1), console)
        return 0
    target = load_target(options.target)
    cost = spatial_cost(
        cascade, target, extents, traffic_bytes=options.traffic_bytes, as_published=options.as_published
    )
    _print_spatial_cost(cost, console)
    return 0


def _print_spatial_cost(cost: SpatialCost, console: Console) -> None:
    facts = asdict(cost)
    console.emit(facts)
    console.say(f"target:   {cost.target}")
    console.say("ranks:    " + ", ".join(f"{role} {names}" for role, names in cost.ranks.items() if names))
    console.say(f"passes:   {cost.passes} over {cost.ranks['stream']}")
    console.say(
        f"traffic:  {cost.traffic_bytes:.0f} bytes" + (f", spilled: {', '.join(cost.spilled)}" if cost.spilled else "")
    )
    console.say(f"latency:  {seconds_text(cost.latency_s)}, by {cost.bound}")
    console.say(f"in use:   2-D array {cost.util_2d:.1%}, 1-D array {cost.util_1d:.1%}")
    parts = ", ".join(f"{name} {joules:.3g}" for name, joules in cost.energy_parts_j.items())
    console.say(f"energy:   {cost.energy_j:.4g} J ({parts})\n")
    rows = [(e.stage, e.array, e.name, e.points, seconds_text(e.time_s), f"{e.share:.1%}") for e in cost.einsums]
    console.table(("stage", "array", "Einsum", "points", "time", "of latency"), rows, "r  rrr")


def _print_cpu_cost(cost: CpuCost, console: Console) -> None:
    # a CPU has no arrays to keep busy, and its energy is not modelled
    console.emit({**asdict(cost), "util_2d": None, "util_1d": None, "energy_j": None})
    console.say(f"target:   {cost.target}, by its roofline")
    console.say(f"passes:   {cost.passes}")
    console.say(f"traffic:  {cost.traffic_bytes} bytes, {cost.flops} operations")
    console.say(f"latency:  {seconds_text(cost.latency_s)} fused, {seconds_text(cost.unfused_s)} Einsum by Einsum\n")
    rows = [(e.name, e.flops, e.bytes, seconds_text(e.time_s)) for e in cost.einsums]
    console.table(("Einsum", "operations", "bytes", "time"), rows, " rrr")


def explain_manifest(
    manifest: dict[str, Any], kernels: dict[str, str], console: Console, more: Mapping[str, Any] | None = None
) -> int:
    """Print what an artifact's manifest says; scripts get the facts of `more`, too."""
    calls = manifest.get("kernels", ())
    grouped: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        grouped.setdefault(call.get("symbol", call["name"]), []).append(call)
    arena = manifest.get("buffers", ())
    facts = {
        "inputs": manifest.get("inputs", ()),
        "outputs": manifest.get("outputs", ()),
        "symbols": manifest.get("symbols", ()),
        "target": manifest.get("target"),
        "constants_bytes": manifest.get("constants", {}).get("bytes", 0),
        "buffers": arena,
        "kernel_calls": len(calls),
        "kernels": len(grouped),
        "control": control_graph(manifest),
        **(more or {}),
    }
    rows = [
        {"kernel": c["name"], "flops": c.get("flops", 0), "bytes": c.get("bytes", 0), "loc": c.get("loc", "")}
        for c in calls
    ]
    console.emit(facts, rows)
    console.say(f"inputs:    {signature(manifest) or 'none'}")
    console.say(f"outputs:   {signature({'inputs': manifest.get('outputs', ())})}")
    for symbol in manifest.get("symbols", ()):
        top = "" if symbol.get("hi") is None else symbol["hi"]
        source = "at run time" if symbol.get("dynamic") else "from the inputs"
        console.say(f"symbol:    {symbol['name']} in {symbol.get('lo', 0)}..{top}, {source}")
    target = manifest.get("target", {})
    console.say(f"target:    {target.get('isa')} {' '.join(target.get('features', ()))}")
    console.say(f"constants: {bytes_text(facts['constants_bytes'])}")
    console.say(f"arena:     {len(arena)} buffers, {len(manifest.get('dynamic', ()))} sized at run time{_arena(manifest)}")
    console.say(f"kernels:   {len(calls)} calls of {len(grouped)} distinct ones\n")
    table = []
    for symbol, group in sorted(grouped.items(), key=lambda item: -len(item[1])):
        first = group[0]
        steps = len(re.findall(r"^\s+\S.*=", kernels.get(first["name"], ""), re.MULTILINE))
        places = ", ".join(dict.fromkeys(str(c.get("loc", "")) for c in group if c.get("loc")))
        table.append((len(group), symbol, steps or "", first.get("flops", ""), first.get("bytes", ""), _short(places)))
    console.table(("calls", "kernel", "Einsums", "flops", "bytes", "from"), table, "r r")
    return 0


def say_control(graph: Graph, console: Console, drawing: str | None) -> int:
    """Print the control graph where there is control, and draw it where that is asked for."""
    if has_control(graph):
        console.say("")
        for line in graph_lines(graph):
            console.say(line)
    if drawing:
        write_svg(graph, drawing)
        console.say(f"control graph: {drawing}")
    return 0


def _arena(manifest: Mapping[str, Any]) -> str:
    """The plan's size, how far it is from what is alive at once, and what is spilled."""
    plan = manifest.get("x-arena")
    if plan is None:
        return ""
    gap = "the least there is" if plan["bytes"] == plan["bound"] else f"at most {plan['gap']:.1%} above the least"
    at = ", ".join(f"{name} = {value}" for name, value in plan["symbols"].items())
    text = f"; {bytes_text(plan['bytes'])}{f' at {at}' if at else ''}, {gap}"
    if manifest.get("spill_bytes"):
        text += (
            f"; budget {bytes_text(manifest['memory_budget'])}, {bytes_text(manifest['spill_bytes'])} outside, "
            f"{bytes_text(plan['traffic'])} copied"
        )
    return text


def _kernel_texts(folder: Path) -> dict[str, str]:
    return {p.stem: p.read_text() for p in sorted(folder.glob("kernels/*.ein"))}


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
