"""The operator graph of a fused program: its kernels and other top-level statements, and the tensors between them."""

from __future__ import annotations

from collections.abc import Mapping

from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.extent import evaluate
from dlc.ir.program import Launch, Program, Stmt, tensor_types
from dlc.passes.cosma.graph import Graph, Tensor
from dlc.passes.cosma.in_place import in_place


def graph_of(program: Program, extents: Mapping[str, int] | None = None, *, weights: bool = False) -> Graph:
    """Statements of the body as operators; sizes at `extents`, or at each symbol's least value (1 if that is 0).

    Results of element-wise kernels take over an operand's storage: that of the one read last here, if there are several.

    Args:
        extents: values of symbols, by name.
        weights: constants take part, too: they are read from where they lie as inputs are.
    """
    types = tensor_types(program)
    values = {"#" + s.name: max(s.lo, 1) for s in program.symbols}
    values |= {"#" + name.removeprefix("#"): value for name, value in (extents or {}).items()}
    known = dict(values)
    for name, fact in program.facts.items():  # bound on the way: at most as large as it may be
        known.setdefault(name, fact.hi if fact.hi is not None else max(fact.lo, 1))
    body = program.body.body
    producer = {name: o for o, stmt in enumerate(body) for name in stmt.outs}
    consumers: dict[str, list[int]] = {}
    for o, stmt in enumerate(body):
        for name in dict.fromkeys(stmt.reads):
            consumers.setdefault(name, []).append(o)
    constants = {c.name for c in program.consts}
    names = [p.name for p in program.params] + ([c.name for c in program.consts] if weights else []) + list(producer)
    names = [name for name in names if name in consumers or name in producer]
    place = {name: at for at, name in enumerate(names)}
    sizes = {name: _bytes(types[name], known) for name in names}
    taken = {
        result: place[operand]
        for result, operand in _taken(program, {name: max(of) for name, of in consumers.items()}).items()
        if operand in place and sizes[operand] == sizes[result]
    }
    tensors = tuple(
        Tensor(
            name,
            sizes[name],
            (producer[name],) if name in producer else (),
            tuple(consumers.get(name, ())),
            output=name in program.results and name in producer,
            weight=name in constants,
            takes=taken.get(name),
        )
        for name in names
    )
    cheap = tuple(o for o, stmt in enumerate(body) if _is_cheap(program, stmt))
    return Graph(program.name, tuple(_operator_name(stmt) for stmt in body), tensors, cheap)


def _taken(program: Program, last: Mapping[str, int]) -> dict[str, str]:
    """By result an operand that it may lie on, a different one for each result of a launch."""
    definitions, found = program.kernel_table, dict[str, str]()
    for o, stmt in enumerate(program.body.body):
        if isinstance(stmt, Launch):
            for number, result in sorted(in_place(definitions[stmt.kernel]), key=lambda pair: last[stmt.args[pair[0]]] != o):
                operand, name = stmt.args[number], stmt.outs[result]
                if name not in found and stmt.args.count(operand) == 1 and operand not in (found.get(other) for other in stmt.outs):
                    found[name] = operand
    return found


def _is_cheap(program: Program, stmt: Stmt) -> bool:
    """Whether a statement is a kernel that computes each element from a few others, without a reduction."""
    if not isinstance(stmt, Launch):
        return False
    steps = program.kernel_table[stmt.kernel].cascade.steps
    return all(isinstance(step, Einsum) and step.reduce is None for step in steps)


def _bytes(of: TensorType, known: Mapping[str, int]) -> int:
    size = of.stored * of.dtype.bytes
    return max(int(evaluate(size, known)), 0)


def _operator_name(stmt: Stmt) -> str:
    return stmt.kernel if isinstance(stmt, Launch) else f"{type(stmt).__name__.lower()} {', '.join(stmt.outs)}"
