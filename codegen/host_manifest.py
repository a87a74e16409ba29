"""The manifest of a compiled program: what the runtime has to know, as JSON; `dlc.runtime.manifest` has the schema."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlc.codegen.host import Host, HostKernel
from dlc.codegen.target import Target
from dlc.codegen.tile import scratch_offsets
from dlc.costmodel.work import cascade_work
from dlc.errors import Internal, Unsupported
from dlc.ir.coded_sums import memory_of
from dlc.ir.dtype import DType
from dlc.ir.einsum import flat
from dlc.ir.extent import Atom, FloorDiv, IntExpr, Max, Min, Mod, Var, int_expr, maximum, variables
from dlc.ir.limits import all_limits, at_most
from dlc.ir.memory import MemoryPlan, OutputPlan
from dlc.ir.program import Program, bound_symbols, tensor_types, walk_statements


@dataclass(frozen=True, slots=True)
class Interface:
    """How the caller sees the program.

    Attributes:
        input_names, output_names: the model's own names; empty to use the program's.
        in_tree, out_tree: nesting of inputs and outputs, None for flat.
        arg_names: positional arguments that may be passed by keyword.
    """

    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    in_tree: dict[str, Any] | None = None
    out_tree: dict[str, Any] | None = None
    arg_names: tuple[str, ...] = ()


def host_manifest(
    program: Program,
    plan: MemoryPlan,
    host: Host,
    kernels: Mapping[str, HostKernel],
    constants: Mapping[str, tuple[int, int]],
    target: Target,
    *,
    producer: str,
    entry: str,
    pool: str | None,
    interface: Interface | None = None,
    spill_bytes: int = 0,
    memory_budget: int | None = None,
) -> dict[str, Any]:
    """The manifest, less the table of objects that the runtime adds.

    Args:
        constants: byte offset and size of each constant in the block.
        entry, pool: names of the objects that have `dlc_main` and the pool's functions.
        spill_bytes: what a call needs outside the arena.
        memory_budget: what the arena never exceeds, or None.
    """
    interface = interface or Interface()
    names = symbol_names(host.symbols)
    types = tensor_types(program)
    limits = all_limits(program)

    def text(e: IntExpr) -> str:
        return expression(e, names)

    def tensor(name: str, shown: str) -> dict[str, Any]:
        of = types[name]
        if not of.row_major:
            raise Internal(program.loc, message=f"'{name}' crosses the program's border in the layout of {of}")
        return {"name": shown, "dtype": str(of.dtype), "shape": [text(e) for e in of.shape]}

    inputs = [
        {**tensor(p.name, _given(interface.input_names, i, p.name)), "donate": p.donate}
        for i, p in enumerate(program.params)
    ]
    outputs = [
        {
            **tensor(o.tensor, _given(interface.output_names, i, o.tensor)),
            "dynamic": o.how in ("hand over", "clone"),
            "alias": _alias(o, constants),
        }
        for i, o in enumerate(plan.outputs)
    ]
    manifest: dict[str, Any] = {
        "format": 1,
        "abi": 1,
        "producer": producer,
        "target": {"isa": "x86-64", "features": list(target.features)},
        "entry": {"object": entry, "symbol": "dlc_main"},
        "symbols": _symbols(program, plan, host, names),
        "inputs": inputs,
        "outputs": outputs,
        "buffers": [
            {"name": b.name, "bytes": text(b.bytes), "first": b.first, "last": b.last, "offset": b.offset}
            for b in plan.buffers
        ],
        "dynamic": [{"name": name} for name in plan.heap],
        "spill_bytes": spill_bytes,
        "memory_budget": memory_budget,
        "scratch": text(scratch_extent(program, kernels, plan.values)),
        "constants": {
            "bytes": 0,
            "items": [{"name": n, "offset": at, "bytes": size} for n, (at, size) in constants.items()],
        },
        "kernels": _calls(program, host, kernels, limits, names),
        "regions": [{"kind": r.kind, "loc": str(r.loc), "items": r.items} for r in host.regions],
        "checks": [{"code": c.code, "message": c.message, "loc": c.loc} for c in host.checks],
        "arg_names": list(interface.arg_names),
        "frame": host.frame,
        "clock": "tsc",
    }
    if pool is not None:
        manifest["pool"] = pool
    if interface.in_tree is not None:
        manifest["in_tree"] = interface.in_tree
    if interface.out_tree is not None:
        manifest["out_tree"] = interface.out_tree
    return manifest


def _given(names: tuple[str, ...], index: int, otherwise: str) -> str:
    return names[index] if index < len(names) and names[index] else otherwise


def _alias(output: OutputPlan, constants: Mapping[str, tuple[int, int]]) -> list[Any] | None:
    match output.how:
        case "input" | "output":
            return [output.how, output.index]
        case "constant":
            return ["constant", constants[output.tensor][0]]
        case _:
            return None


def _symbols(program: Program, plan: MemoryPlan, host: Host, names: Mapping[str, str]) -> list[dict[str, Any]]:
    facts = {"#" + s.name: s for s in program.symbols}
    for stmt in walk_statements(program.body):
        for s in bound_symbols(stmt):
            facts.setdefault("#" + s.name, s)
    listed = []
    for position, name in enumerate(host.symbols):
        fact = facts[name]
        entry: dict[str, Any] = {"name": names[name], "lo": fact.lo, "hi": fact.hi, "divisor": fact.divisor}
        if name in plan.values:
            entry["inputs"] = [[plan.values[name], -1]]
        entry["dynamic"] = position >= host.static_symbols
        listed.append(entry)
    return listed


def _calls(
    program: Program,
    host: Host,
    kernels: Mapping[str, HostKernel],
    limits: Mapping[str, IntExpr],
    names: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One entry per launch; a kernel in a loop costs what all its runs cost, for so it is measured."""
    works = {k.name: cascade_work(k.cascade) for k in program.kernels}
    einsums = {k.name: sum(1 for _ in flat(k.cascade.steps)) for k in program.kernels}
    costs = {name: (work.flops, work.bytes) for name, work in works.items()}
    known = frozenset(host.symbols)
    calls = []
    for call in host.calls:
        kernel = kernels[call.kernel]
        cost = costs.get(call.kernel) or (kernel.work * kernel.tile.tasks, int_expr(0))
        flops, moved = (at_most(e * call.trips, known, limits) for e in cost)
        calls.append(
            {
                "name": call.kernel,
                "symbol": kernel.symbol,
                "object": kernel.object,
                "flops": "0" if flops is None else expression(flops, names),
                "bytes": "0" if moved is None else expression(moved, names),
                "loc": str(call.loc or kernel.tile.loc),
                "x-einsums": einsums.get(call.kernel, 0),
            }
        )
    return calls


def scratch_extent(program: Program, kernels: Mapping[str, HostKernel], values: Iterable[str]) -> IntExpr:
    """Scratch bytes per thread, enough for each kernel, over the symbols that the call binds (`values` among them)."""
    static = frozenset("#" + s.name for s in program.symbols) | frozenset(values)
    limits = all_limits(program)
    needs: list[IntExpr] = []
    for kernel in kernels.values():
        _, size = scratch_offsets(kernel.tile)
        bounded = at_most(size, static, limits)
        if bounded is None:
            unbound = ", ".join(sorted(n[1:] for n in variables(size) - static))
            raise Unsupported(
                kernel.tile.loc,
                op=kernel.tile.name,
                reason=f"its scratch memory depends on {unbound}, which is only known at run time and has no bound",
            )
        needs.append(bounded)
    return maximum(int_expr(0), *dict.fromkeys(needs)) if needs else int_expr(0)


# -- constants -------------------------------------------------------------------------------------------------------


def constant_layout(
    program: Program, used: Iterable[str], alignment: int = 64
) -> tuple[dict[str, tuple[int, int]], int]:
    """(offset, bytes) of each used constant, aligned, in order of first use; equal arrays share their place."""
    types = {c.name: c.type for c in program.consts}
    layout: dict[str, tuple[int, int]] = {}
    shared: dict[tuple[int, DType, tuple[int, ...] | None], tuple[int, int]] = {}
    at = 0
    for name in dict.fromkeys(used):
        if name not in types:
            continue
        of = types[name]
        kind, elements = memory_of(of)
        if elements.const is None:
            raise Internal(program.loc, message=f"constant '{name}' has the shape {of}")
        key = (id(program.data.get(name)), of.dtype, of.order)
        if name in program.data and key in shared:
            layout[name] = shared[key]
            continue
        layout[name] = shared[key] = (at, elements.const * kind.bytes)
        at += -(-layout[name][1] // alignment) * alignment
    return layout, at


# -- text of expressions ---------------------------------------------------------------------------------------------


def symbol_names(symbols: Iterable[str]) -> dict[str, str]:
    """A distinct Python identifier for each symbol (`#` names), its own name where that is one."""
    names: dict[str, str] = {}
    for symbol in symbols:
        base = re.sub(r"\W", "_", symbol[1:], flags=re.ASCII) or "n"
        if (
            not re.match(r"[A-Za-z_]", base)
            or base in ("min", "max", "True", "False", "None")
            or keyword.iskeyword(base)
        ):
            base = "n_" + base
        name, count = base, 1
        while name in names.values():
            count += 1
            name = f"{base}_{count}"
        names[symbol] = name
    return names


def expression(e: IntExpr, names: Mapping[str, str]) -> str:
    """Text of `e` in the manifest's language."""
    if not e.terms:
        return "0"
    text = ""
    for monomial, coefficient in e.terms:
        factors = [_atom(a, names) for a in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        term = "*".join(factors)
        sign = "-" if coefficient < 0 else ""
        text = f"{text} {sign or '+'} {term}" if text else sign + term
    return text


def _atom(atom: Atom, names: Mapping[str, str]) -> str:
    match atom:
        case Var(name):
            return names[name]
        case FloorDiv(num, den):
            return f"(({expression(num, names)}) // ({expression(den, names)}))"
        case Mod(num, den):
            return f"(({expression(num, names)}) % ({expression(den, names)}))"
        case Min(args) | Max(args):
            kind = "min" if isinstance(atom, Min) else "max"
            return f"{kind}({', '.join(expression(a, names) for a in args)})"
        case _:
            raise Internal(message=f"the extent {atom} depends on a tensor's value")
