"""A model whose control flow depends on data, recorded as a graph with branches and loops.

The model's Python is rewritten (`python_rewrite`) and run once on fake tensors; `Captured` then holds what an
ExportedProgram would, its graph a `Region` with regions inside.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from dlc.errors import DlcError
from dlc.frontend.torch_errors import MutatedState, RecursionOnData, UncapturedDecision, export_failed, model_raised
from dlc.frontend.torch_guard import Guard
from dlc.frontend.torch_heap import MISSING, Cell
from dlc.frontend.torch_later import Starts, objects_in, unchanging
from dlc.frontend.torch_like_eager import symbols_without_text
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_recorder import Recorder, Region
from dlc.frontend.torch_runtime import Runtime
from dlc.frontend.torch_state import Change, Kept, Place, data_kept
from dlc.frontend.torch_values import Absent, Dead
from dlc.frontend.torch_watch import watched
from dlc.ir.loc import Loc


@dataclass(frozen=True)
class Captured:
    """A recorded model.

    Attributes:
        region: the whole graph; its inputs are the weights, then the leaves of the example inputs.
        weights: by name, in the order of the region's first inputs.
        constants: tensors that the graph refers to by attribute.
        leaves: the example's leaves: fake tensors, or constants.
        outputs: per leaf of the output its node, or a constant.
        in_spec, out_spec: nesting of inputs and outputs.
        ranges: what is known of the symbols.
        decided: how many decisions on data were recorded.
        recorder: the recording itself.
        changes: what the call leaves behind.
        known: addresses of the objects that there were before the call.
        decomposed: operators without a definition of their own.
    """

    region: Region
    weights: Mapping[str, torch.Tensor]
    constants: nn.Module
    leaves: tuple[Any, ...]
    outputs: tuple[Any, ...]
    in_spec: Any
    out_spec: Any
    ranges: dict[Any, Any]
    decided: int
    recorder: Recorder
    changes: tuple[Change, ...]
    known: set[int]
    decomposed: tuple[str, ...] = field(default=())


def capture(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None,
    starts: Starts | None = None,
) -> Captured:
    """Record the model on example inputs (`torch.export.export`'s arguments).

    Args:
        model, args, kwargs, dynamic_shapes: as there.
        starts: what the model finds of earlier calls.

    Raises:
        UncapturedDecision, ArmsDiffer, ...: what cannot be recorded, at the user's line.
        ExportFailed: the model itself raises an exception, or the sizes do not fit `dynamic_shapes`.
    """
    from torch._export.non_strict_utils import make_fake_inputs, produce_guards_and_solve_constraints
    from torch._guards import TracingContext, tracing
    from torch.export._trace import _fakify_params_buffers

    kwargs = dict(kwargs or {})
    try:
        fake_mode, fake_args, fake_kwargs, equalities, signature, shapes = make_fake_inputs(
            model, tuple(args), kwargs, dynamic_shapes
        )
    except Exception as error:
        raise export_failed(error) from error
    fakes = _fakify_params_buffers(fake_mode, model)
    real = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    recorder = Recorder()
    rt = Runtime(recorder)
    flat, in_spec = pytree.tree_flatten((tuple(fake_args), dict(fake_kwargs)))
    with torch.no_grad(), fake_mode, tracing(TracingContext(fake_mode)), recorder.recording() as mode:
        nodes: dict[int, fx.Node] = {}
        for name, fake in fakes.items():
            nodes[id(fake)] = recorder.placeholder(fake, name.replace(".", "_"))
            recorder.knows(nodes[id(fake)], real[name])
        names = input_names(model, args, kwargs)
        for n, (value, name) in enumerate(zip(flat, names, strict=True)):
            recorder.placeholder(value, name or f"arg{n}")
        with _running(model, fakes, rt, starts or Starts({})) as left:
            result = _run(model, rt, fake_args, fake_kwargs)
            flat_out, out_spec = pytree.tree_flatten(result)
            outputs = tuple(_output(rt, v) for v in flat_out)
            rt.ended()
        if rt.refusals:
            raise rt.refusals[0]
    root = recorder.stack[0]
    try:
        produce_guards_and_solve_constraints(fake_mode, None, shapes, equalities, signature)
    except Exception as error:
        raise export_failed(error) from error
    return Captured(
        root,
        {name: real[name] for name in fakes},
        recorder.root,
        tuple(flat),
        outputs,
        in_spec,
        out_spec,
        dict(fake_mode.shape_env.var_to_range),
        rt.decided,
        recorder,
        tuple(left.changes),
        left.known,
        tuple(dict.fromkeys(mode.decomposition_table.used)),
    )


def _run(model: nn.Module, rt: Runtime, args: Any, kwargs: Any) -> Any:
    try:
        return rt.call(model, *args, **kwargs)
    except DlcError:
        raise
    except Exception as error:
        if rt.refusals:
            raise rt.refusals[0] from error
        if isinstance(error, RecursionError) and rt.on_one_path:
            place, source, name = _raised_at(error, rt)
            raise RecursionOnData(place, source=source, name=name) from error
        raise model_raised(error, *_raised_at(error, rt)[:2]) from error


def _raised_at(error: Exception, rt: Runtime) -> tuple[Loc | None, str | None, str]:
    """The user's line that an exception came from, its text, and the function's name."""
    at, found, name = error.__traceback__, None, ""
    while at is not None:
        if at.tb_frame.f_code.co_filename in rt.recorder.sources:
            found, name = (at.tb_frame.f_code.co_filename, at.tb_lineno), at.tb_frame.f_code.co_name
        at = at.tb_next
    if found is None:
        return None, None, name
    return Loc(f"{Path(found[0]).name}:{found[1]}"), linecache.getline(*found).rstrip() or None, name


@dataclass
class _Left:
    """What a call has left behind."""

    changes: list[Change] = field(default_factory=list)
    known: set[int] = field(default_factory=set)


@contextmanager
def _running(model: nn.Module, fakes: Mapping[str, torch.Tensor], rt: Runtime, starts: Starts) -> Iterator[_Left]:
    """Fake weights in the model, rewritten methods, no gradients; all as it was afterwards."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._export.non_strict_utils import _NonStrictTorchFunctionHandler
    from torch.nn.utils.stateless import _reparametrize_module

    root = rt.frames[0]
    with _reparametrize_module(model, dict(fakes), tie_weights=True, strict=True, stack_weights=True):
        kept = Kept.of(model)
        left = _Left(known=kept.known)
        try:
            starts.write(rt)
            for start in starts.found.values():
                kept.follow(objects_in(start.value), start.change.name)
            with _NonStrictTorchFunctionHandler(), enable_python_dispatcher(), Guard(rt), _extents_without_text(rt):
                with watched(rt, starts.unknown), data_kept(), rt.classes.rewritten(kept.seen.values()):
                    rt.prepare(model)
                    yield left
                    rt.restore_modules()
            kept.refuse_ticks(type(model).__name__)
            left.changes = _changes(kept, rt, starts)
            left.known = kept.known
            written = [c for c, before, after in root.restore().values() if before is not after and _registered(c)]
        finally:
            root.restore()
            kept.restore()
            rt.restore_modules()
    if written:
        what = ", ".join(f"'{c}'" for c in written[:4])
        place, source = rt.touched.get(written[0].key, (None, None))
        raise MutatedState(place, source=source, op=type(model).__name__, what=what)


def _extents_without_text(rt: Runtime) -> AbstractContextManager[None]:
    """The model gets no text of an extent that is not known: PyTorch's would be its symbol's name."""

    def refuse(why: str) -> None:
        raise rt.refused(UncapturedDecision, what="an extent", why=why)

    return symbols_without_text(refuse)


def _changes(kept: Kept, rt: Runtime, starts: Starts) -> list[Change]:
    """The places that hold something else now, and those that the call did not find as they were."""
    found = [Change(p.cell, p.name, p.before, None, *_changed_at(p, rt)) for p in kept.changes()]
    keys = {c.cell.key for c in found}
    found += [start.change for key, start in starts.found.items() if key not in keys]
    if not starts.found:  # objects that the call has made and left somewhere
        made_here = [p for c in found for p in kept.follow(objects_in(c.cell.read()), c.name)]
        found += [Change(p.cell, p.name, MISSING, None) for p in made_here]
    made: dict[int, Any] = {}
    return [replace(c, after=unchanging(c.cell.read(), kept.known, made)) for c in found]


def _changed_at(place: Place, rt: Runtime) -> tuple[Loc | None, str | None]:
    """Where a place was changed, and that line."""
    if place.line is None:
        return rt.touched.get(place.cell.key, (None, None))
    file, line = place.line
    return Loc(f"{Path(file).name}:{line}"), linecache.getline(file, line).rstrip() or None


def _registered(cell: Cell) -> bool:
    """Whether a changed place is a weight or a buffer of a module."""
    return isinstance(cell.owner, nn.Module) and (cell.name in cell.owner._buffers or cell.name in cell.owner._parameters)


def _output(rt: Runtime, v: Any) -> Any:
    """The node of an output, or the constant that it is."""
    if isinstance(v, Absent):
        v.refuse()
    assert not isinstance(v, Dead)
    if isinstance(v, Number):
        v = v.tensor
    if isinstance(v, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return rt.recorder.node_of(v)
    return v


def input_names(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each leaf of the inputs: that of its parameter, numbered where the parameter has several."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        bound = None
    names: list[str] = []
    parameters = list(bound.signature.parameters) if bound is not None else []
    for n, value in enumerate(args):
        name = parameters[n] if n < len(parameters) else f"arg{n}"
        names += _numbered(name, value)
    for name, value in kwargs.items():
        names += _numbered(name, value)
    return names


def _numbered(name: str, value: Any) -> list[str]:
    count = len(pytree.tree_leaves(value))
    return [name] * count if count == 1 else [f"{name}_{n}" for n in range(count)]


class AsExported:
    """A recorded model where the importer expects an ExportedProgram."""

    def __init__(self, captured: Captured) -> None:
        region = captured.region
        self.captured = captured
        self.changed = bool(captured.changes)
        count = len(captured.weights)
        output = fx.Node(fx.Graph(), "dlc_output", "output", "output", (captured.outputs,), {})
        self.graph = SimpleNamespace(nodes=[*region.nodes, output])
        self.graph_module = captured.constants
        self.range_constraints = captured.ranges
        self.state_dict = captured.weights
        self.constants: dict[str, Any] = {}
        self.decomposed = captured.decomposed
        self.decided = captured.decided
        self.call_spec = SimpleNamespace(in_spec=captured.in_spec, out_spec=captured.out_spec)
        weights = [SimpleNamespace(kind=InputKind.PARAMETER, target=n, arg=None) for n in captured.weights]
        inputs = [SimpleNamespace(kind=InputKind.USER_INPUT, target=None, arg=None) for _ in region.inputs[count:]]
        results = [SimpleNamespace(kind=OutputKind.USER_OUTPUT, target=None) for _ in captured.outputs]
        self.graph_signature = SimpleNamespace(input_specs=[*weights, *inputs], output_specs=results)
