"""`torch.compile(model, backend="dlc")`: inference through dlc.

Dynamo hands over a graph whose parameters and buffers are inputs.  Here they become constants again, so that they can
be packed, and every call checks that they are still the same tensors in the same memory with the same version, and that
a sample of their elements is unchanged (`.data` and inference tensors are written without a new version); if not, the
graph is compiled again with the new ones.  The graph is compiled at its first call, outside dynamo's own tracing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlc.errors import Unsupported

MAX_VARIANTS = 8
"""Executables kept for one graph when an extent could not stay symbolic; the oldest goes."""

SAMPLE = 1024
"""Elements of each weight compared at every call, evenly spaced; smaller tensors are compared whole."""


class TrainingMode(Unsupported):
    """Gradients would be needed, and dlc computes none."""

    code = "DLC0670"
    template = "torch.compile(backend='dlc') is for inference, but gradients are enabled and {what} requires one"
    hint = "call model.eval(), and the model under torch.no_grad() or torch.inference_mode()"


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where an integer input of the graph is found: dimension `dimension` of tensor input `tensor`."""

    tensor: int
    dimension: int


class _Snapshot:
    """A weight as it was compiled in."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.address, self.version = weight.data_ptr(), _version(weight)
        flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach().flatten()
        self.live = flat[:: max(1, flat.numel() // SAMPLE)]  # a view: it sees what is written later
        self.kept = self.live.clone()

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether `weight` is still this tensor with, as far as seen, these contents."""
        same = weight is self.weight and weight.data_ptr() == self.address and _version(weight) == self.version
        return same and torch.equal(self.live, self.kept)


class _Closed(torch.nn.Module):
    """The graph with its weights inside, over the tensor inputs alone; returns the graph's tuple."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        order: Sequence[object],
        weights: Sequence[torch.Tensor],
        integers: Sequence[int],
    ) -> None:
        super().__init__()
        self.graph = graph
        self.integers = tuple(integers)
        self.order = tuple(order)
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight_{number}", weight.detach())

    def forward(self, *tensors: torch.Tensor) -> Any:
        values: list[Any] = []
        for source in self.order:
            match source:
                case _Extent(tensor, dimension):
                    values.append(tensors[tensor].shape[dimension])
                case ("weight", number):
                    values.append(getattr(self, f"weight_{number}"))
                case ("integer", int(number)):
                    values.append(self.integers[number])
                case ("tensor", int(number)):
                    values.append(tensors[number])
                case _:
                    raise AssertionError(source)
        return self.graph(*values)


def dlc_backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any
) -> Callable[..., tuple[Any, ...]]:
    """What dynamo calls; `options` go to `dlc.compile` (`torch.compile(..., options={"accuracy": "fast"})`).

    Raises:
        TrainingMode: gradients are enabled and an input requires one.
    """
    if torch.is_grad_enabled():
        for node, value in zip(_placeholders(graph), example_inputs, strict=True):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                raise TrainingMode(what=f"'{node.name}'")
    return _Compiled(graph, dict(options.pop("options", None) or {}, **options))


class _Compiled:
    """One graph of dynamo: compiled at the first call, again when weights change."""

    def __init__(self, graph: torch.fx.GraphModule, options: dict[str, Any]) -> None:
        self.graph = graph
        self.options = options
        self._lock = threading.Lock()
        self._weights: list[_Snapshot] = []
        self._executables: dict[object, Any] = {}
        nodes = _placeholders(graph)
        self._weight_at = [i for i, node in enumerate(nodes) if _is_weight(node)]
        self._tensor_at = [
            i for i, n in enumerate(nodes) if i not in self._weight_at and isinstance(_example(n), torch.Tensor)
        ]
        self._dynamic = [_symbolic_dimensions(_example(nodes[i])) for i in self._tensor_at]
        self._integer_at: list[int] = []  # integers that are no extent of an input: strides, arguments
        self._order = [self._source(i, nodes) for i in range(len(nodes))]

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        tensors = [args[i] for i in self._tensor_at]
        with self._lock:
            weights = [args[i] for i in self._weight_at]
            if not self._same(weights):
                self._executables.clear()
                self._weights = [_Snapshot(w) for w in weights]
            executable = self._executable(tensors, weights, tuple(int(args[i]) for i in self._integer_at))
        return tuple(executable(*(t.detach() for t in tensors)))

    def _same(self, weights: Sequence[torch.Tensor]) -> bool:
        return len(weights) == len(self._weights) and all(
            snapshot.holds(now) for snapshot, now in zip(self._weights, weights)
        )

    def _executable(
        self, tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], integers: tuple[int, ...]
    ) -> Any:
        """The executable for these shapes; one is made for each value of `integers`."""
        shapes = tuple(tuple(t.shape) for t in tensors)
        for key in ((integers, "every shape"), (integers, shapes)):
            if key in self._executables:
                return self._executables[key]
        from dlc.compiler import compile
        from dlc.runtime.executable import Executable

        module = _Closed(self.graph, self._order, weights, integers).eval()
        dynamic = tuple(dict.fromkeys(dims, torch.export.Dim.AUTO) or None for dims in self._dynamic)
        with torch.no_grad():
            executable = compile(
                module,
                tuple(t.detach() for t in tensors),
                dynamic_shapes=(dynamic,) if any(dynamic) else None,  # the one parameter is *tensors
                **self.options,
            )
        assert isinstance(executable, Executable)
        # export may have found that an extent is fixed after all; then this one serves these shapes alone
        entries = executable.manifest["inputs"]
        fixed = any(
            isinstance(entry["shape"][d], int) or str(entry["shape"][d]).isdigit()
            for entry, dims in zip(entries, self._dynamic)
            for d in dims
        )
        if len(self._executables) >= MAX_VARIANTS:
            self._executables.pop(next(iter(self._executables)))
        self._executables[integers, shapes if fixed else "every shape"] = executable
        return executable

    def _source(self, index: int, nodes: Sequence[torch.fx.Node]) -> object:
        if index in self._weight_at:
            return ("weight", self._weight_at.index(index))
        if index in self._tensor_at:
            return ("tensor", self._tensor_at.index(index))
        wanted = str(_example(nodes[index]))
        for number, position in enumerate(self._tensor_at):
            for dimension, extent in enumerate(_example(nodes[position]).shape):
                if str(extent) == wanted:
                    return _Extent(number, dimension)
        self._integer_at.append(index)
        return ("integer", len(self._integer_at) - 1)


def _version(weight: torch.Tensor) -> int:
    """Changes when the tensor is written in place; tensors made under inference_mode have no such number."""
    return -1 if weight.is_inference() else weight._version


def _placeholders(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _example(node: torch.fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _is_weight(node: torch.fx.Node) -> bool:
    """Parameters and buffers: dynamo calls them static inputs."""
    example = _example(node)
    if isinstance(example, torch.nn.Parameter):
        return True
    return isinstance(example, torch.Tensor) and "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def _symbolic_dimensions(example: torch.Tensor) -> tuple[int, ...]:
    return tuple(d for d, extent in enumerate(example.shape) if not isinstance(extent, int))
