"""Records ATen calls into nested regions: one list of nodes per arm and per loop body.

PyTorch's own tracer (`make_fx`, before autograd and decomposition, as `torch.export` uses it) makes the nodes; here each is
put into the region that is open. An inner region's nodes refer directly to nodes of the regions around it, as the IR's
regions read tensors from outside, so that nothing is lifted or re-traced. A region can be cut back to an earlier length: what
was recorded in an attempt that failed is gone.

Source: Reed et al., torch.fx (MLSys 2022, arXiv 2112.08429); Chen et al., DyCL (ISSTA 2023), 4.2 (sub-DNNs of the HCFG).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import (
    PreDispatchTorchFunctionMode,
    ProxyTorchDispatchMode,
    PythonKeyTracer,
    disable_autocast_cache,
    disable_proxy_modes_tracing,
    get_proxy_slot,
    track_tensor_tree,
)
from torch.utils.weak import WeakTensorKeyDictionary

from dlc.frontend.torch_masks import Positions
from dlc.frontend.torch_rows import Rows
from dlc.frontend.torch_storage import renames, storage_of, writes

_OWN = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


@dataclass(eq=False)
class Region:
    """Nodes recorded together.

    Attributes:
        nodes: in the order of execution.
        inputs: placeholders that stand for values of the caller (inputs of the model, states of a loop).
        outputs: what the region yields.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)


def branch(*_: Any) -> Any:
    """Target of an `if`: its condition is the argument, `meta["regions"]` are the arms."""
    raise AssertionError("a recorded branch is not called")


def repeat(*_: Any) -> Any:
    """Target of a loop: `meta["loop"]` is a `LoopRecord`."""
    raise AssertionError("a recorded loop is not called")


def truth(*_: Any) -> Any:
    """Target of a condition on extents: its value is `meta["val"]`, a SymBool."""
    raise AssertionError("a recorded condition is not called")


@dataclass(frozen=True, eq=False)
class LoopRecord:
    """A loop: `body.inputs` are the step number, then the states; `body.outputs` the condition if any, the next states, the collected.

    Attributes:
        first: the condition for the first step, or None.
        limit: the number of steps at most, or None.
        starts: the states before the first step.
        collected: how many of the outputs are collected.
        count: the symbol that the number of steps is bound to, when something is collected.
    """

    body: Region
    first: fx.Node | None
    limit: fx.Node | None
    starts: tuple[fx.Node, ...]
    collected: int = 0
    count: Any = None


class _Tracked(WeakTensorKeyDictionary):
    """The node of each tensor.

    A call that gives a tensor back (a write in place, `x.to(x.dtype)`) leaves it its node: the call may be on one path only,
    and what the node holds after a write is the importer's to know. Only `unsqueeze_` and its like make another value of it.
    """

    def __setitem__(self, key: torch.Tensor, value: Any) -> None:
        if key not in self or renames(value.proxy.node):
            super().__setitem__(key, value)


class Recorder(PythonKeyTracer):
    """The tracer whose nodes go to the open region."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.tensor_tracker = _Tracked()
        self.tensor_attrs: dict[Any, str] = {}
        self.stack: list[Region] = [Region()]
        self.sources: set[str] = set()  # files whose functions are rewritten
        self.constants: dict[fx.Node, Any] = {}  # values that are known (`torch_constant`), or known to be data
        self.weights: dict[fx.Node, torch.Tensor] = {}
        self.written: set[int] = set()  # memory that something writes to, perhaps
        self.merged: set[int] = set()  # memory that is another one on some paths
        self.rows = Rows(self)
        self.positions = Positions(self)

    @property
    def region(self) -> Region:
        return self.stack[-1]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["region"] = self.region
        node.meta["stack_trace"] = self.place()
        if node.op == "placeholder":
            self.region.inputs.append(node)
        self.region.nodes.append(node)
        if node.op == "get_attr":
            self.knows(node, getattr(self.root, str(node.target)))
        if writes(node):
            self._forget(node)
            self.rows.written.append(node)
        return node

    def knows(self, node: fx.Node, value: Any) -> None:
        """The node's value is known."""
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            self.weights[node] = self.constants[node] = value

    def _forget(self, node: fx.Node) -> None:
        """Something is written in place: what was known of that memory no longer holds, on any path."""
        first = node.args[0] if node.args else node.kwargs.get("self")
        storage = storage_of(first) if isinstance(first, fx.Node) else None
        if storage is None:
            self.weights = {}
        else:
            self.written |= self.merged if storage in self.merged else {storage}
        self.constants = {n: v for n, v in self.weights.items() if storage_of(n) not in self.written}

    def place(self) -> str:
        """The user's line that is being executed, in the form of a traceback."""
        file, line, name = self.line()
        return f'File "{file}", line {line}, in {name}'

    def line(self) -> tuple[str, int, str]:
        frame = sys._getframe(1)
        best = ("<model>", 0, "?")
        at: Any = frame
        while at is not None:
            file = at.f_code.co_filename
            if file in self.sources:
                return file, at.f_lineno, at.f_code.co_name
            if best[1] == 0 and not file.startswith((_OWN, _TORCH, "<")) and "/dlc/frontend/" not in file:
                best = (file, at.f_lineno, at.f_code.co_name)
            at = at.f_back
        return best

    # --- values ---

    def node_of(self, value: Any) -> fx.Node:
        """The node whose value this tensor (or extent) is."""
        if isinstance(value, torch.Tensor):
            found = get_proxy_slot(value, self, None)
            if found is None:
                node: fx.Node = self.create_arg(value)
                return node
            proxied: fx.Node = found.proxy.node
            return proxied
        return self.unwrap_proxy(value).node

    def known(self, value: torch.Tensor) -> bool:
        """Whether a tensor has been recorded."""
        return get_proxy_slot(value, self, None) is not None

    def merges(self, nodes: Iterable[fx.Node]) -> None:
        """Which memory these values are depends on the path, or on the step: what is written to one may change others."""
        self.merged |= {s for n in nodes if (s := storage_of(n)) is not None}

    def visible(self, value: torch.Tensor) -> bool:
        """Whether the value was made in a region that is open still."""
        region = self.node_of(value).meta.get("region")
        return any(region is r for r in self.stack)

    def may_be_one(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Whether two traced values may be the same tensor in eager Python, on some path."""
        return not self._sources(self.node_of(a)).isdisjoint(self._sources(self.node_of(b)))

    def _sources(self, node: fx.Node) -> set[fx.Node]:
        """The values that a branch or loop may have left in this one's place; itself among them."""
        found: set[fx.Node] = set()
        pending = [node]
        while pending:
            n = pending.pop()
            if n in found:
                continue
            found.add(n)
            pending += self.left(n) or ()
        return found

    def taken_from(self, node: fx.Node) -> Sequence[fx.Node]:
        """The operands of a node; of a result of a branch or loop, what its arms or steps leave."""
        left = self.left(node)
        return node.all_input_nodes if left is None else left

    def left(self, n: fx.Node) -> list[fx.Node] | None:
        """What a branch or loop may have left as this result of it; None for anything else."""
        of = n.args[0] if n.target is operator.getitem else None
        at = n.args[1] if of is not None else 0
        if not isinstance(of, fx.Node) or not isinstance(at, int):
            return None
        record: LoopRecord | None = of.meta.get("loop")
        if record is not None and at < len(record.starts):
            return [record.starts[at], record.body.outputs[at + (record.first is not None)]]
        regions = of.meta.get("regions")
        return [region.outputs[at] for region in regions] if regions else None

    def emit(self, target: Any, args: Sequence[fx.Node], fakes: Sequence[torch.Tensor], name: str) -> fx.Node:
        """A node with several results, `fakes`; the tensors then stand for them."""
        proxy = self.create_proxy(
            "call_function", target, tuple(fx.Proxy(a, self) for a in args), {}, name=name
        )
        with disable_proxy_modes_tracing():
            track_tensor_tree(tuple(fakes), proxy, constant=None, tracer=self)
        node: fx.Node = proxy.node
        return node

    def placeholder(self, value: Any, name: str) -> fx.Node:
        """`value` (a fake tensor) stands for an input of the open region."""
        proxy = self.create_proxy("placeholder", name, (), {}, name=name)
        # A model has hundreds of weights, and each look at a tensor's layout would go through all function modes.
        with torch._C.DisableTorchFunction(), disable_proxy_modes_tracing():
            track_tensor_tree(value, proxy, constant=None, tracer=self)
        if not isinstance(value, torch.Tensor):
            proxy.node.meta.setdefault("val", value)
        node: fx.Node = proxy.node
        return node

    @contextmanager
    def opened(self, region: Region) -> Iterator[Region]:
        self.stack.append(region)
        try:
            yield region
        finally:
            self.stack.pop()

    @contextmanager
    def recording(self) -> Iterator[ProxyTorchDispatchMode]:
        """PyTorch's calls are recorded inside."""
        from unittest import mock

        from torch._dispatch.python import enable_python_dispatcher
        from torch.fx.experimental import proxy_tensor

        # PyTorch would carry the values of small constants along, past writes in arms that may not be taken.
        no_constants = mock.patch.object(proxy_tensor, "CONSTANT_NUMEL_LIMIT", -1)
        mode = ProxyTorchDispatchMode(self, "real", pre_dispatch=True, decomposition_table=Decompositions())
        with no_constants, enable_python_dispatcher(), PreDispatchTorchFunctionMode(self), mode, disable_autocast_cache():
            yield mode


class Decompositions(dict[Any, Any]):
    """ATen's decomposition of each operator that has no definition here, looked up when it occurs; `used` names them."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[str] = []

    def __bool__(self) -> bool:
        return True

    def __contains__(self, target: object) -> bool:
        from dlc.frontend.torch_export import decomposition
        from dlc.frontend.torch_graph import known

        if not isinstance(target, torch._ops.OpOverload) or known(target):
            return False
        return decomposition(target) is not None

    def __getitem__(self, target: Any) -> Any:
        from dlc.frontend.torch_export import decomposition

        self.used.append(str(target))
        return decomposition(target)


def fresh_like(value: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same type and shape with storage of its own, not recorded."""
    with disable_proxy_modes_tracing():
        return torch.empty(tuple(value.shape), dtype=value.dtype, device=value.device)
