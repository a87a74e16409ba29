"""From PyTorch to a program: an nn.Module is exported, an ExportedProgram is imported operator by operator as it is.

    imported = import_torch(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    imported.program

Operators keep their exported form (no decomposition of the whole graph, which costs seconds); only operators without a
definition here are decomposed, and `Imported.decomposed` names them.
"""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind

from dlc.errors import DlcError, Internal
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.imported import Imported
from dlc.frontend.python_guess import seems_to_test_data
from dlc.frontend.python_identity import identity_asked
from dlc.frontend.torch_assertions import by_example, guards
from dlc.frontend.torch_callers import left_alone
from dlc.frontend.torch_classes import ONE_AT_A_TIME
from dlc.frontend.torch_dims import dims_of
from dlc.frontend.torch_errors import (
    BadExample,
    ExportFailed,
    ExtentIsConstant,
    MutatedInput,
    MutatedState,
    TrainingMode,
    UncapturedDecision,
    export_failed,
)
from dlc.frontend.torch_graph import GraphImporter, bounds, known, place_of
from dlc.frontend.torch_like_eager import like_eager
from dlc.frontend.torch_recurrent_shapes import symbolic_recurrence
from dlc.frontend.torch_regions import nested_nodes, regions_of
from dlc.frontend.torch_small_sizes import Asked, allow_small, asked_of_sizes, refuse_small
from dlc.frontend.torch_state import Kept, data_kept, weight_lists_kept
from dlc.frontend.torch_trees import leaf, literal, tree_of
from dlc.frontend.torch_types import Extents, ir_dtype, numpy_view
from dlc.ir.builder import Builder
from dlc.ir.dtype import I64
from dlc.ir.loc import Loc
from dlc.ir.view import Val


def import_torch(
    model: nn.Module | torch.export.ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    name: str | None = None,
    mutations: str = "refuse",
) -> Imported:
    """Import a model.

    Args:
        model: in eval mode, or already exported.
        args: example inputs, a tuple; not used for an ExportedProgram.
        kwargs: example keyword inputs.
        dynamic_shapes: as `torch.export.export` takes it; names of its Dims become extent symbols.
        name: of the program; by default the class of the model.
        mutations: "refuse" a model that writes to its buffers or inputs, or "return" the new values as extra outputs.

    Raises:
        TrainingMode: dropout or batch norm would act as in training.
        ExportFailed: torch.export cannot trace it.
        UnsupportedOperator: an operator has no definition here, with the line of the model that uses it.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return import_exported(model, name=name, mutations=mutations)
    if not isinstance(model, nn.Module):
        raise BadExample(None, message=f"a {type(model).__name__} is neither an nn.Module nor an ExportedProgram")
    start = time.perf_counter()
    with ONE_AT_A_TIME:
        exported = export_or_capture(model, args, kwargs, dynamic_shapes)
    seconds = time.perf_counter() - start

    def imported(source: Any) -> Imported:
        return import_exported(
            source,
            name=name or type(model).__name__,
            mutations=mutations,
            symbol_names={s: d.__name__ for s, d in dims_of(model, args, kwargs, dynamic_shapes, source).items()},
            arg_names=argument_names(model, len(args)),
            export_seconds=seconds,
            forgotten=getattr(exported, "forgotten", ()),
        )

    return imported(exported)


def export(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None,
    changed: list[str] | None = None,
    told: list[str] | None = None,
) -> Any:
    """`torch.export.export` as the importer likes it: no gradients, recurrent layers whole, guards deferred if need be.

    What the model changes of its attributes is as it was afterwards, and named in `changed`; `told` gets what it asks of
    extents that torch.export has no answer to, which is an error without it.
    """
    _refuse(model, args, kwargs)
    changed = [] if changed is None else changed
    unanswered: list[str] = [] if told is None else told
    try:
        with recurrence_for_export(), weight_lists_kept(model), _state_kept(model, changed) as functions:
            with asked_of_sizes() as asked, like_eager(itertools.filterfalse(left_alone, functions), unanswered.append):
                exported = _exported(model, args, kwargs, dynamic_shapes)
            unanswered += _identity_asked(functions, asked, dynamic_shapes)
            if unanswered and told is None:
                raise UncapturedDecision(None, what="an extent", why=unanswered[0])
            refuse_small(exported, model, args, kwargs or {}, asked)
            exported.by_example, exported.given = by_example(exported, model, args, kwargs or {})
            return exported
    except DlcError:
        raise
    except Exception as error:
        raise export_failed(error) from error


def _identity_asked(functions: Sequence[FunctionType], asked: Asked, dynamic_shapes: Any) -> list[str]:
    """Why a symbol is not what the model's code looks for, where it looks at what something is."""
    own = (f for f in functions if not left_alone(f) or "registry" in vars(f))
    found = set().union(*map(identity_asked, own))
    relevant = {"class"} | ({"number"} if dynamic_shapes is not None else set()) | ({"truth"} if asked.truths_kept else set())
    return ["it is compared with `is`, or its `__class__` is looked at"] if found & relevant else []


def _exported(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any) -> Any:
    options: dict[str, Any] = {"dynamic_shapes": dynamic_shapes, "strict": False}
    try:
        return torch.export.export(model, tuple(args), dict(kwargs or {}), **options)
    except Exception as first:
        if dynamic_shapes is None:
            raise
        try:
            options["prefer_deferred_runtime_asserts_over_guards"] = True
            return torch.export.export(model, tuple(args), dict(kwargs or {}), **options)
        except Exception:
            raise first from None


@contextmanager
def _state_kept(model: nn.Module, changed: list[str]) -> Iterator[list[FunctionType]]:
    """What the model leaves behind is taken back; `changed` is told of it. Yields the functions that the model can reach."""
    from unittest import mock

    kept = Kept.of(model)
    # torch.export would hide changes of attributes, by putting copies of their old values there.
    with mock.patch("torch.export._trace._detect_attribute_assignment", nullcontext), data_kept():
        try:
            yield [f for f in kept.seen.values() if isinstance(f, FunctionType)]
            kept.refuse_ticks(type(model).__name__)
            if kept.registers:  # it is in torch.export's graph, but not in its signature
                raise ExportFailed(None, message="the model registers buffers or parameters in its forward")
        finally:
            changed += (place.name for place in kept.changes())
            kept.restore()


def _refuse(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> None:
    if isinstance(args, torch.Tensor) or not isinstance(args, (tuple, list)):
        raise BadExample(None, message=f"the example inputs are a {type(args).__name__}, not a tuple")
    try:
        inspect.signature(model.forward).bind(*args, **(kwargs or {}))
    except ValueError:  # no signature is known
        pass
    except TypeError as error:
        raise BadExample(None, message=f"{type(model).__name__}.forward does not take the example inputs: {error}") from None
    refuse_training(model)


def export_or_capture(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> Any:
    """The exported program; where control flow depends on data, the recorded one (`torch_capture`).

    `torch.export` goes first, so that a model without decisions on data is imported as it always was. It cannot take one
    path silently: a decision on data raises, and if the model catches that, the recording is used that met the decision.
    A model that takes numbers or extents out of data is recorded, too: what `.item()` gives torch.export is no Python number
    (`isinstance(n, int)` is false of it), and its arithmetic is not Python's.

    A model whose text shows that `torch.export` will fail is recorded at once. With extents that do not vary, a decision in the
    recording is one that `torch.export` cannot take; a recording without any is kept for the case that it fails nevertheless.
    """
    _refuse(model, args, kwargs)
    changed: list[str] = []
    found = _exported_or_recorded(model, args, kwargs, dynamic_shapes, changed)
    if changed or getattr(found, "changed", False):
        found.forgotten = _forgotten(model, args, kwargs, dynamic_shapes, found)
    return found


def _forgotten(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, found: Any
) -> tuple[str, ...]:
    """What calls leave behind without a part in any result; a part is refused."""
    from dlc.frontend.torch_later import forgotten

    def again(starts: Any = None) -> Any:
        return recorded(model, args, kwargs, dynamic_shapes, starts).captured

    first = found.captured if hasattr(found, "captured") else again()
    return forgotten(first, again, type(model).__name__) if first.changes else ()


def _exported_or_recorded(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, changed: list[str]
) -> Any:
    early: Any = None
    if dynamic_shapes is None and _seems_to_decide(model):
        with suppress(DlcError):  # whatever it is, it is found again below, unless `torch.export` can do with it
            early = recorded(model, args, kwargs)
    if early is not None and early.decided:
        return early
    failed: ExportFailed | None = None
    told: list[str] = []
    with _data_decisions() as met:
        try:
            exported = export(model, args, kwargs, dynamic_shapes, changed, told)
        except ExportFailed as error:
            failed = error
    if failed is None and not met and not told:
        if exported.by_example:  # the recording has the branch, if it succeeds
            with suppress(DlcError):
                return recorded(model, args, kwargs, dynamic_shapes)
        return exported
    try:
        found = early or recorded(model, args, kwargs, dynamic_shapes)
    except ExportFailed as error:
        if failed is None and "__init__" not in met and not told:
            return exported
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

        on_data = failed is not None and isinstance(failed.__cause__, GuardOnDataDependentSymNode)  # which the recording can do
        if failed is None or on_data or error.loc is not None or isinstance(error, ExtentIsConstant):
            raise
        raise failed from error
    return found


def _seems_to_decide(model: nn.Module) -> bool:
    methods = (getattr(m.forward, "__func__", None) for m in model.modules())
    functions = dict.fromkeys(f for f in methods if isinstance(f, FunctionType) and not left_alone(f))
    return any(map(seems_to_test_data, functions))


def recorded(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None,
    starts: Any = None,
) -> Any:
    """The model as the recorder sees it, where an ExportedProgram is expected."""
    from dlc.frontend.torch_capture import AsExported, capture

    with recurrence_for_export(), _without_libraries(), weight_lists_kept(model), asked_of_sizes() as asked:
        exported = AsExported(capture(model, args, kwargs, dynamic_shapes, starts))
    allow_small(exported.captured.ranges, dims_of(model, args, kwargs, dynamic_shapes, exported), asked)
    return exported


@contextmanager
def _without_libraries() -> Iterator[None]:
    """PyTorch does not weigh which library would run a convolution: it asks for sizes (a batch of 16), as if the model did."""
    mkldnn = torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None)
    with mkldnn, torch.backends.nnpack.flags(enabled=False):
        yield


@contextmanager
def recurrence_for_export() -> Iterator[None]:
    """How `export` has PyTorch trace: no gradients, recurrent layers whole, attention layers operator by operator."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), symbolic_recurrence():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _data_decisions() -> Iterator[list[str]]:
    """Collects what is done about data while PyTorch traces: decisions that it refuses, numbers that it makes symbols of, text."""
    from unittest import mock

    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

    from dlc.frontend.torch_callers import asking

    met: list[str] = []

    def noting(kind: type, name: str, counts: Callable[[], bool] = lambda: True) -> Any:
        plain = getattr(kind, name)

        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if counts():
                met.append(name)
            return plain(self, *args, **kwargs)

        return mock.patch.object(kind, name, noted)

    watched = [noting(GuardOnDataDependentSymNode, "__init__")]
    watched += [noting(ShapeEnv, f"create_unbacked_{kind}") for kind in ("symint", "symfloat", "symbool")]
    watched.append(noting(FakeTensor, "__repr__", lambda: asking() is not None))  # torch.export would take its own text for the data's

    # What PyTorch would print for each: the recording, or our error, says it.
    quiet = [logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "export._trace")]
    for log in quiet:
        log.addFilter(_nothing)
    told = io.StringIO()
    try:
        with ExitStack() as stack:
            for patch in (*watched, redirect_stderr(told)):
                stack.enter_context(patch)
            yield met
    finally:
        if not met:
            sys.stderr.write(told.getvalue())
        for log in quiet:
            log.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


_ACTIVE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU)


def refuse_training(model: nn.Module) -> None:
    """Refuse a model in which a layer would act as in training."""
    for path, module in model.named_modules():
        if not module.training or not isinstance(module, _ACTIVE):
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
            continue
        raise TrainingMode(Loc(path), op=f"{type(module).__name__} '{path}'")


def argument_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the positional parameters of forward, as far as each is one argument."""
    names: list[str] = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) or len(names) == count:
            break
        names.append(p.name)
    return tuple(names)


# --- the program -----------------------------------------------------------------------------------------------------


def import_exported(
    exported: Any,
    *,
    name: str | None = None,
    mutations: str = "refuse",
    symbol_names: Mapping[Any, str] | None = None,
    arg_names: tuple[str, ...] = (),
    export_seconds: float = 0.0,
    forgotten: tuple[str, ...] = (),
) -> Imported:
    """Import an ExportedProgram; see `import_torch`."""
    start = time.perf_counter()
    given = exported.given if hasattr(exported, "given") else guards(exported)
    recorded = getattr(exported, "decomposed", None)
    exported, decomposed = with_definitions(exported) if recorded is None else (exported, recorded)
    importer = ProgramImporter(exported, name or _class_name(exported), mutations, dict(symbol_names or {}), given)
    with _no_raw_errors(importer):
        program, in_tree, out_tree, outputs, mutated = importer.run()
    return Imported(
        program,
        in_tree,
        out_tree,
        tuple(importer.input_names),
        tuple(outputs),
        mutated=tuple(mutated),
        decomposed=decomposed,
        forgotten=forgotten,
        arg_names=arg_names,
        seconds={"export": export_seconds, "import": time.perf_counter() - start},
    )


def _class_name(exported: Any) -> str:
    for node in exported.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            kind = next(iter(stack.values()))[1]
            return str(kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return "model"


@contextmanager
def _no_raw_errors(importer: ProgramImporter) -> Iterator[None]:
    """A Python exception in a definition is our fault, and is reported with the operator that caused it."""
    try:
        yield
    except DlcError:
        raise
    except Exception as error:
        c = importer.graph.ctx if importer.graph is not None else None
        message = f"{type(error).__name__} in the import of {c.target if c else 'the inputs'}: {error}"
        raise Internal(c.loc if c else None, message=message) from error


class ProgramImporter:
    """Binds the inputs and outputs of one ExportedProgram around its graph."""

    def __init__(self, exported: Any, name: str, mutations: str, symbol_names: dict[Any, str], given: Sequence[Any]) -> None:
        self.exported = exported
        self.given = given
        self.mutations = mutations
        self.b = Builder("".join(ch if ch.isalnum() else "_" for ch in name) or "model")
        self.extents = Extents()
        self.names = symbol_names
        self.input_names: list[str] = []
        self.graph: GraphImporter | None = None
        self._weights: dict[Any, Val] = {}

    def run(self) -> tuple[Any, dict[str, Any], dict[str, Any], list[str], list[tuple[str, int]]]:
        ep = self.exported
        self.graph = GraphImporter(self.b, self.extents, ep.range_constraints, ep.graph_module)
        places = [n for n in ep.graph.nodes if n.op == "placeholder"]
        specs = ep.graph_signature.input_specs
        for node, spec in zip(places, specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                self._declare(node)
        for condition in self.given:
            self.graph.take_for_given(condition)
        values, leaves = [], []
        yielded = {o for n in nested_nodes(ep.graph.nodes) for region in regions_of(n) for o in region.outputs}
        for node, spec in zip(places, specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                value, tree = self._input(node, spec)
                leaves.append(tree)
            elif node.users or node in yielded or spec.kind == InputKind.TOKEN:
                value = self._weight(node, spec)
            else:
                value = None
            values.append(value)
        kept = [n for n, spec in zip(places, specs, strict=True) if spec.kind not in (InputKind.USER_INPUT, InputKind.TOKEN)]
        results = self.graph.run(ep.graph, values, kept)
        in_tree = tree_of(ep.call_spec.in_spec, leaves, "the input")
        return self._finish(places, specs, results, in_tree)

    def _declare(self, node: Any) -> None:
        """Symbols of an input's shape."""
        fake = node.meta.get("val")
        parts = fake.shape if isinstance(fake, torch.Tensor) else [fake]
        for e in parts:
            if isinstance(e, torch.SymInt):
                for s in sorted(e.node.expr.free_symbols, key=str):
                    if s not in self.extents.symbols and isinstance(fake, torch.Tensor):
                        lo, hi = (
                            bounds(self.exported.range_constraints[s])
                            if s in self.exported.range_constraints
                            else (0, None)
                        )
                        self.extents.symbols[s] = self.b.symbol(self._symbol_name(s), max(lo, 0), hi)

    def _symbol_name(self, s: Any) -> str:
        name = "".join(ch if ch.isalnum() or ch == "_" else "_" for ch in self.names.get(s, str(s)))
        base, n = name, 2
        while name in self.b.symbols:
            name, n = f"{base}_{n}", n + 1
        return name

    def _input(self, node: Any, spec: Any) -> tuple[Any, dict[str, Any]]:
        fake = node.meta.get("val")
        loc = Loc(f"input '{node.name}'")
        if isinstance(fake, torch.Tensor):
            dtype = ir_dtype(fake.dtype, f"input '{node.name}'", loc)
            val = self.b.input(node.name, dtype, [self.extents.of(e, node.name, loc) for e in fake.shape])
            self.input_names.append(str(node.name))
            return val, leaf(len(self.input_names) - 1)
        if isinstance(fake, torch.SymInt):
            val = self.b.input(node.name, I64, ())
            self.input_names.append(str(node.name))
            expr = fake.node.expr
            lo, hi = (
                bounds(self.exported.range_constraints[expr]) if expr in self.exported.range_constraints else (0, None)
            )
            bound = self.extents.symbols.get(expr)
            if bound is None:
                bound = self.b.bind(val, str(node.name), max(lo, 0), hi)
                if expr.is_Symbol:
                    self.extents.symbols[expr] = bound
            return bound, leaf(len(self.input_names) - 1)
        value = getattr(spec.arg, "value", fake)
        return value, literal(value, f"input '{node.name}'")

    def _weight(self, node: Any, spec: Any) -> Any:
        ep = self.exported
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in ep.state_dict:
            tensor = ep.state_dict[spec.target]
        elif spec.target in ep.constants:
            tensor = ep.constants[spec.target]
        else:
            raise UnsupportedOperator(
                Loc(node.name), op=f"input '{node.name}'", reason=f"it is a {spec.kind.name.lower()}"
            )
        if not isinstance(tensor, torch.Tensor):
            raise UnsupportedOperator(
                Loc(node.name), op=f"constant '{node.name}'", reason=f"it is a {type(tensor).__name__}"
            )
        ir_dtype(tensor.dtype, f"constant '{spec.target}'", Loc(str(spec.target)))
        # Tied weights are one constant.
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else id(tensor)
        if key not in self._weights:
            self._weights[key] = self.b.constant(numpy_view(tensor), str(spec.target))
        return self._weights[key]

    def _finish(
        self, places: Sequence[Any], specs: Sequence[Any], results: Sequence[Any], in_tree: dict[str, Any]
    ) -> Any:
        assert self.graph is not None
        ep = self.exported
        outputs: list[Val] = []
        names: list[str] = []
        trees: list[dict[str, Any]] = []
        changed: list[tuple[str, Val]] = []
        flat = next(n for n in ep.graph.nodes if n.op == "output").args[0]
        for value, spec, node in zip(results, ep.graph_signature.output_specs, flat, strict=True):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                changed.append((str(spec.target), value))
            elif spec.kind == OutputKind.USER_OUTPUT:
                if isinstance(value, Val) or (
                    hasattr(node, "name") and not isinstance(value, (bool, float, str, type(None)))
                ):
                    trees.append(leaf(len(outputs)))
                    outputs.append(self.graph.ctx.val(value))
                    names.append(str(node.name))
                else:
                    trees.append(literal(value, "an output"))
            else:
                raise UnsupportedOperator(None, op="an output", reason=f"it is a {spec.kind.name.lower()}")
        for node, spec in zip(places, specs, strict=True):
            if id(node) in self.graph.written or self.mutations == "return" and id(node) in self.graph.reached:
                changed.append((str(spec.target or node.name), self.graph.env[node]))
        out_tree = tree_of(ep.call_spec.out_spec, trees, "the output")
        mutated: list[tuple[str, int]] = []
        if changed and self.mutations != "return":
            at = next((n for n in places if id(n) in self.graph.written), None)
            kinds = {s.kind for n, s in zip(places, specs, strict=True) if id(n) in self.graph.written}
            error = MutatedInput if kinds == {InputKind.USER_INPUT} else MutatedState
            place = self.graph.written[id(at)] if at is not None else None
            raise error(place, op=self.b.name, what=", ".join(f"'{n}'" for n, _ in changed[:4]))
        if changed:
            keys = []
            for key, value in changed:
                mutated.append((key, len(outputs)))
                keys.append((key, leaf(len(outputs))))
                outputs.append(value)
                names.append(key)
            out_tree = {
                "t": "tuple",
                "c": [out_tree, {"t": "dict", "k": [k for k, _ in keys], "c": [t for _, t in keys]}],
            }
        if not outputs:
            raise BadExample(None, message="the model returns no tensor")
        return self.b.finish(outputs), in_tree, out_tree, names, mutated


# --- operators without a definition ----------------------------------------------------------------------------------


def missing_operators(exported: Any) -> dict[Any, tuple[int, Loc]]:
    """Targets without a definition: how often each occurs and where first."""
    found: dict[Any, tuple[int, Loc]] = {}
    for module in exported.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op == "call_function" and not known(node.target):
                count, loc = found.get(node.target, (0, place_of(node)))
                found[node.target] = count + 1, loc
    return found


def with_definitions(exported: Any) -> tuple[Any, tuple[str, ...]]:
    """The program with the operators that have no definition here decomposed, and their names."""
    done: list[str] = []
    before = _result_types(exported)
    for _ in range(6):
        missing = missing_operators(exported)
        if not missing:
            break
        table = {}
        for target, (_count, loc) in missing.items():
            found = decomposition(target)
            if found is None:
                reason = "it has no definition and no decomposition"
                raise UnsupportedOperator(loc, op=str(target), reason=reason)
            table[target] = found
        done += [str(t) for t in table]
        try:
            with torch.no_grad(), symbolic_recurrence():
                exported = exported.run_decompositions(table)
        except Exception as error:
            target, (_count, loc) = next(iter(missing.items()))
            reason = f"it has no definition and its decomposition fails ({type(error).__name__})"
            raise UnsupportedOperator(loc, op=str(target), reason=reason) from error
    else:
        target, (_count, loc) = next(iter(missing_operators(exported).items()))
        raise UnsupportedOperator(loc, op=str(target), reason="its decomposition does not end")
    if done and _result_types(exported) != before:
        raise UnsupportedOperator(None, op=", ".join(done), reason="ATen's decomposition changes the type of a result")
    return exported, tuple(done)


def _result_types(exported: Any) -> list[tuple[Any, int]]:
    """Element type and rank of every tensor that the user gets."""
    flat = next(n for n in exported.graph.nodes if n.op == "output").args[0]
    kinds = [s.kind for s in exported.graph_signature.output_specs]
    metas = [getattr(n, "meta", {}).get("val") for n, k in zip(flat, kinds, strict=True) if k == OutputKind.USER_OUTPUT]
    return [(m.dtype, m.dim()) for m in metas if isinstance(m, torch.Tensor)]


def decomposition(target: Any) -> Any:
    """ATen's own decomposition of an operator, or None."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    if not isinstance(target, torch._ops.OpOverload):
        return None
    # The operator's own composite definition first: the full table also holds Python references of another signature.
    if target._can_decompose():
        from torch._export.utils import _get_decomp_for_cia

        return _get_decomp_for_cia(target)
    return core_aten_decompositions().get(target) or decomposition_table.get(target)


def coverage(exported: Any) -> list[dict[str, Any]]:
    """What is not supported in a program, for reports: operator, occurrences, place, and whether it will be decomposed."""
    return [
        {"op": str(target), "count": count, "loc": str(loc), "decomposed": decomposition(target) is not None}
        for target, (count, loc) in missing_operators(exported).items()
    ]


def weights_fingerprint(model: nn.Module) -> tuple[tuple[str, int, int, tuple[int, ...]], ...]:
    """Changes when a parameter or buffer is replaced or written in place: (name, address, version, shape) of each."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return tuple((n, t.data_ptr(), -1 if t.is_inference() else t._version, tuple(t.shape)) for n, t in named)


__all__ = ["coverage", "export", "import_exported", "import_torch", "missing_operators", "weights_fingerprint"]
