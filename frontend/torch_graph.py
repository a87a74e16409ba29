"""Walks an exported graph and calls the definition of each operator. In-place operators become new values.

PyTorch tensors that share storage are found by the storage of their traced results. When one of them is written, the tensor
at the root of the storage gets a new value (a scatter where the write was through a view), and all the others are read anew
from it.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import fx

from dlc.errors import Internal
from dlc.frontend import (
    torch_attention,
    torch_binary,
    torch_contract,
    torch_control,
    torch_conv,
    torch_create,
    torch_index,
    torch_library,
    torch_norm,
    torch_pointwise,
    torch_pool,
    torch_quantised,
    torch_recurrent,
    torch_reduce,
    torch_regions,
    torch_views,
)
from dlc.frontend.torch_alias import Aliases, aliases
from dlc.frontend.torch_assertions import TRIED, asserted, fact_of, least_values
from dlc.frontend.torch_context import TABLE, Ctx, select
from dlc.frontend.torch_errors import EscapedValue, MutatedState, SharedMemory
from dlc.frontend.torch_identity import Identities
from dlc.frontend.torch_regions import nested_nodes
from dlc.frontend.torch_storage import contiguous, functional_name, storage_of, writes
from dlc.frontend.torch_types import Extents
from dlc.ir.builder import Builder
from dlc.ir.dtype import BOOL, F64
from dlc.ir.expr import Access
from dlc.ir.extent import IntExpr, Var, var
from dlc.ir.loc import Loc
from dlc.ir.view import Val

FAMILIES = (
    torch_attention, torch_binary, torch_contract, torch_control, torch_conv, torch_create, torch_index, torch_library, torch_norm,
    torch_pointwise, torch_pool, torch_quantised, torch_recurrent, torch_reduce, torch_views,
)  # fmt: skip
"""The modules that fill the table."""

IGNORED = frozenset(
    "aten._assert_async.default aten._assert_async.msg aten._assert_scalar.default aten._assert_tensor_metadata.default"
    " aten.sym_constrain_range.default aten.sym_constrain_range_for_size.default aten._functional_assert_async.msg"
    " aten._functional_assert_scalar.default aten._functional_sym_constrain_range.default"
    " aten._functional_sym_constrain_range_for_size.default aten._print.default".split()
)
"""Checks of what the traced shapes already say; of an extent alone they are facts (`torch_assertions`)."""

_AUTOCAST = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution mm bmm matmul linear addmm"
    " addbmm baddbmm linalg_vecdot linalg_matmul chain_matmul scaled_dot_product_attention einsum lstm gru"
    " rnn_tanh rnn_relu".split()
)
"""Operators whose operands autocast converts on the CPU."""


@functools.cache
def _numbers(found: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a definition's parameters that take known numbers, "" for the others."""
    _ctx, *parameters = inspect.signature(found).parameters.values()
    known = takewhile(lambda p: p.kind is p.POSITIONAL_OR_KEYWORD, parameters)
    return tuple(p.name if p.annotation in ("float", "int", "bool") else "" for p in known)


def definition(target: str) -> Callable[..., Any] | None:
    """The definition of an ATen target; an in-place operator has that of its plain form."""
    found = TABLE.get(target)
    if found is not None:
        return found
    plain = functional_name(target)
    return TABLE.get(plain) if plain is not None else None


def known(target: object) -> bool:
    """Whether a call's target can be imported as it is."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        return name in IGNORED or definition(name) is not None or name.startswith("aten.sym_")
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name() in torch_control.CONTROL
    return True


def place_of(node: fx.Node) -> Loc:
    """The user's line that made the node, with the operator: `modeling_bert.py:173 (aten.linear)`."""
    target = node.target
    name = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    op = ".".join(name.split(".")[:2])
    trace = node.meta.get("stack_trace")
    if not trace:
        return Loc(f"{node.name} ({op})")
    best = ""
    for line in reversed(trace.splitlines()):
        text = line.strip()
        if text.startswith('File "'):
            best = best or text
            if "/torch/" not in text:
                best = text
                break
    path, _, rest = best.removeprefix('File "').partition('"')
    number = rest.removeprefix(", line ").partition(",")[0]
    return Loc(f"{path.rpartition('/')[2]}:{number} ({op})") if path else Loc(f"{node.name} ({op})")


class GraphImporter:
    """Imports the nodes of graphs into one builder."""

    def __init__(self, b: Builder, extents: Extents, ranges: Mapping[Any, Any], owner: fx.GraphModule) -> None:
        self.b = b
        self.extents = extents
        self.ranges = ranges
        self.owner = owner
        self.ctx = Ctx(b, extents)
        self.ctx.graph = self
        self.env: dict[fx.Node, Any] = {}
        self.written: dict[int, Any] = {}  # roots that are written to, by identity: the place of the first write
        self.autocast = False
        self.sharing: dict[int, list[fx.Node]] = {}
        self.reached: dict[int, Any] = {}  # roots that a write may reach on some path only: the place of the first
        self.aliases = Aliases()
        self.identities = Identities(b)
        self._track = False
        self._inputs: set[fx.Node] = set()
        self._lasting: frozenset[int] = frozenset()

    # --- graphs ---

    def run(self, graph: fx.Graph, inputs: Sequence[Any], lasting: Sequence[fx.Node] = ()) -> tuple[Any, ...]:
        """Import `graph` with its placeholders bound to `inputs`; the values of its outputs, flat.

        `lasting` are the placeholders whose memory outlives the program.
        """
        self._track = any(writes(n) for n in nested_nodes(list(graph.nodes)))
        if self._track:
            kept = [n for n in nested_nodes(list(graph.nodes)) if n.op == "get_attr"]
            self._lasting = frozenset(s for s in map(storage_of, (*lasting, *kept)) if s is not None)
            self.aliases = aliases(list(graph.nodes), self._lasting)
            self.identities.tagged = self.aliases.tagged
        places = [n for n in graph.nodes if n.op == "placeholder"]
        for node, value in zip(places, inputs, strict=True):
            self.env[node] = value
            self._note(node)
        self._inputs = set(places)
        output = self.nodes(graph.nodes)
        if output is None:
            return ()
        flat = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
        return tuple(self.value(a) for a in flat)

    def nodes(self, nodes: Iterable[fx.Node]) -> fx.Node | None:
        """Import nodes one after the other; the output node, if there is one."""
        for node in nodes:
            match node.op:
                case "call_function":
                    self._call(node)
                case "get_attr":
                    self.env[node] = self._attribute(node)
                    self._note(node)
                case "output":
                    return node
                case "placeholder":
                    pass
                case kind:
                    raise self.ctx.malformed(f"a node of kind {kind} is not expected")
        return None

    def bind(self, node: fx.Node, value: Any) -> None:
        """`node`, an input, is `value`."""
        self.env[node] = value
        self._note(node)

    def inner(self, module: fx.GraphModule, inputs: Sequence[Any], autocast: bool | None = None) -> tuple[Any, ...]:
        """Import a sub-graph where it is called; `autocast` says whether its products take the type of their result."""
        other = GraphImporter(self.b, self.extents, self.ranges, module)
        other.autocast = self.autocast if autocast is None else autocast
        before = self.b.loc
        try:
            results = other.run(module.graph, inputs)
        finally:
            self.b.loc = before
        if any(id(n) in written for n in other._inputs for written in (other.written, other.reached)):
            raise MutatedState(self.ctx.loc, op=self.ctx.target, what="a tensor from outside inside a sub-graph")
        return results

    def value(self, a: Any) -> Any:
        """An argument with nodes replaced by what they stand for."""
        if isinstance(a, fx.Node):
            return self.env[a] if a in self.env else self._unbound(a)
        if isinstance(a, (list, tuple)):
            return [self.value(x) for x in a]
        if isinstance(a, torch.SymInt):
            return plain(self.extents.of(a, self.ctx.target, self.ctx.loc))
        return a

    def _unbound(self, node: fx.Node) -> Any:
        """A node that is not imported here: an extent is known by its expression, anything else was left behind on a path."""
        meta = node.meta.get("val")
        if isinstance(meta, torch.SymInt):
            return plain(self.extents.of(meta, self.ctx.target, self.ctx.loc))
        raise EscapedValue(self.ctx.loc, op=self.ctx.target)

    def _attribute(self, node: fx.Node) -> Any:
        found: Any = self.owner
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            from dlc.frontend.torch_types import numpy_view

            return self.b.constant(numpy_view(found), str(node.target))
        return found

    def _call(self, node: fx.Node) -> None:
        target = node.target
        c = self.ctx
        c.loc = place_of(node)
        c.target = (
            str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
        )
        if c.target == "aten._assert_scalar.default":
            self._assertion(node)
        if c.target in IGNORED or target is torch._C._set_grad_enabled:
            return
        self.b.loc = c.loc
        if node in self.aliases.undecided:
            raise SharedMemory(c.loc, op=c.target, why=self.aliases.undecided[node])
        value = self._execute(node)
        if writes(node):
            first = node.args[0] if node.args else node.kwargs["self"]
            assert isinstance(first, fx.Node)
            self._write(first, value)
            self._follow(node, first)
            value = self.env[first]
        self.env[node] = value
        if "chosen" in node.meta:
            at, items = node.meta["chosen"]
            self.identities.chosen(storage_of(node), self.env[at], [storage_of(n) for n in items])
        self._note(node)

    def _assertion(self, node: fx.Node) -> None:
        condition = asserted(node)
        if condition is not None:
            self.take_for_given(condition.node.expr)

    def take_for_given(self, condition: Any) -> None:
        """What holds of the inputs' extents becomes a fact of a symbol, or is checked in each call."""
        named = {s: self.b.symbols[e.name[1:]] for s, e in self._input_symbols() if e.name[1:] in self.b.symbols}
        if not condition.free_symbols <= named.keys():
            return
        fact = fact_of(condition, named[next(iter(condition.free_symbols))]) if len(condition.free_symbols) == 1 else None
        if fact is not None:
            self.b.symbols[fact.name] = fact
            if fact.hi is not None and fact.hi <= fact.lo + TRIED:
                return
        try:
            for expr, least in least_values(condition):
                value = self.ctx.extents.of(expr, self.ctx.target, self.ctx.loc)
                if not self.ctx.proven(value - least):
                    self.b.bind(self.b.extent_value(value), "what_the_example_decided", lo=least)
        except ValueError as error:
            reason = f"the example decided '{error}', which other sizes of dynamic_shapes decide otherwise"
            raise self.ctx.unsupported(reason) from None

    def _input_symbols(self) -> Iterator[tuple[Any, Var]]:
        """Symbols of the inputs' shapes."""
        for s, e in self.ctx.extents.symbols.items():
            if isinstance(e.atom, Var):
                yield s, e.atom

    def _execute(self, node: fx.Node) -> Any:
        """The value of a call; emits its statements."""
        c, target = self.ctx, node.target
        c.node, c.meta = node, node.meta.get("val", node.meta.get("example_value"))
        if target is operator.getitem:
            return self._item(node)
        recorded = torch_regions.RECORDED.get(target) if callable(target) else None
        if recorded is not None:
            return recorded(c, node)
        if isinstance(target, torch._ops.HigherOrderOperator):
            handler = torch_control.CONTROL.get(target.name())
            c.target = target.name()
            if handler is None:
                raise c.unsupported("this higher-order operator has no definition")
            return handler(c, *(self.value(a) for a in node.args), **{k: self.value(v) for k, v in node.kwargs.items()})
        if isinstance(c.meta, (torch.SymInt, torch.SymBool, torch.SymFloat, int, float)) and not _reads(target):
            return self._scalar(c.meta)
        if not isinstance(target, torch._ops.OpOverload):
            raise c.unsupported("it is a Python function on tensors; export the model with torch.export")
        c.target = str(target)
        found = definition(c.target)
        if found is None:
            raise c.unsupported("it has no definition and no decomposition")
        args, kwargs = self._arguments(target, node)
        if self.autocast and c.target.split(".")[1] in _AUTOCAST:
            args, kwargs = self._lowered(args), {k: self._lowered(v) for k, v in kwargs.items()}
        self._numbers_are_known(found, args)
        result = found(c, *args, **kwargs)
        self._check(result)
        return result

    def _numbers_are_known(self, found: Callable[..., Any], args: Sequence[Any]) -> None:
        """Refuse a number from data where the definition takes one that is known."""
        for name, v in zip(_numbers(found), args, strict=False):
            if name and isinstance(v, Val):
                reason = f"'{name}' is a number computed from data; compute with tensors, as in `torch.where(x > 0, x, x * s)`"
                raise self.ctx.unsupported(reason)

    def _item(self, node: fx.Node) -> Any:
        container = self.value(node.args[0])
        return container[node.args[1]]

    def _scalar(self, meta: Any) -> Any:
        """A number computed from shapes."""
        if isinstance(meta, torch.SymInt):
            return plain(self.extents.of(meta, self.ctx.target, self.ctx.loc))
        if isinstance(meta, torch.SymBool):
            expr = self.extents.truth(meta.node.expr)
            return Val(BOOL, (), lambda _: expr)
        if isinstance(meta, torch.SymFloat):
            expr = self.extents.float_value(meta.node.expr)
            return Val(F64, (), lambda _: expr)
        return meta

    def _arguments(self, target: torch._ops.OpOverload, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """Arguments as the schema orders them: keywords of positional parameters become positional."""
        args = [self.value(a) for a in node.args]
        kwargs = {k: self.value(v) for k, v in node.kwargs.items()}
        if kwargs:
            for place, parameter in enumerate(target._schema.arguments):
                if parameter.kwarg_only or place < len(args):
                    continue
                if parameter.name in kwargs:
                    args.append(kwargs.pop(parameter.name))
                elif any(p.name in kwargs and not p.kwarg_only for p in target._schema.arguments[place:]):
                    args.append(parameter.default_value)
                else:
                    break
        for name in ("device", "layout", "pin_memory", "memory_format", "generator", "non_blocking"):
            kwargs.pop(name, None)
        return args, kwargs

    def _lowered(self, a: Any) -> Any:
        """Float tensors in the type of the result: what autocast does to the operands of a product."""
        if isinstance(a, (list, tuple)):
            return [self._lowered(x) for x in a]
        return self.ctx.cast(a, self.ctx.dtype) if isinstance(a, Val) and a.dtype.is_float else a

    def _check(self, result: Any) -> None:
        """A definition must give what was traced: rank, constant extents and type."""
        metas = self.ctx.meta if isinstance(self.ctx.meta, (tuple, list)) else (self.ctx.meta,)
        values = result if isinstance(result, (tuple, list)) else (result,)
        for v, m in zip(values, metas, strict=False):
            if not isinstance(v, Val) or not isinstance(m, torch.Tensor):
                continue
            bad = len(m.shape) != v.rank or any(
                isinstance(e, int) and own.const is not None and own.const != e
                for e, own in zip(m.shape, v.shape, strict=True)
            )
            if bad or self.ctx.ir(m.dtype) != v.dtype:
                want = f"{m.dtype}{list(m.shape)}"
                got = f"{v.dtype}[{', '.join(map(str, v.shape))}]"
                raise Internal(
                    self.ctx.loc, message=f"the definition of {self.ctx.target} gives {got} where torch gives {want}"
                )

    # --- storage ---

    def _note(self, node: fx.Node) -> None:
        if not self._track:
            return
        key = storage_of(node)
        several = isinstance(node.meta.get("val"), (tuple, list))
        # Of several fresh results each is a root of its own, once it is taken out.
        if key is not None and not (several and key not in self.sharing):
            self.sharing.setdefault(key, []).append(node)
            self.identities.made(key, everywhere=node.op == "get_attr")

    def _write(self, node: fx.Node, value: Val) -> None:
        """Give the tensor that `node` shows a new value, and everything that shares its storage."""
        old = self.env[node]
        value = self.ctx.cast(value, old.dtype).broadcast_to(old.shape)
        members = self.sharing.get(storage_of(node) or -1, [node])
        root = members[0]
        self._changes(root)
        self.written.setdefault(id(root), self.ctx.loc)
        if root is not node:
            value = self._through(root, node, members, value)
        self.env[root] = value
        self._replay(members[1:])

    def _changes(self, root: fx.Node) -> None:
        """Refuse to change a tensor that the model keeps without declaring it: nobody could give it back its new value."""
        if root.op == "get_attr":
            raise self._kept()

    def _kept(self) -> MutatedState:
        return MutatedState(self.ctx.loc, op=self.ctx.target, what="a tensor that is kept from call to call, and is no buffer,")

    def _follow(self, node: fx.Node, first: fx.Node) -> None:
        """Let the tensors show a write that are the written memory on the path taken."""
        own = self.root_of(first)
        for storage in sorted(self.aliases.reached.get(node, ()), key=lambda s: s in self._lasting):
            root = self.root_of_storage(storage)
            if root is None and storage in self._lasting:
                raise self._kept()
            if own is None or root is None:
                raise SharedMemory(self.ctx.loc, op=self.ctx.target, why="it is not at hand here")
            self._changes(root)
            (self.written if storage in self._lasting else self.reached).setdefault(id(root), self.ctx.loc)
            old, new = self.env[root], self.env[own]
            one = self.identities.same(storage_of(first), storage)
            value = self.ctx.b.map(str(root.name), select, one, new.reshape(old.shape), old, dtype=old.dtype)
            self.replace(root, value)

    def _through(self, root: fx.Node, node: fx.Node, members: list[fx.Node], value: Val) -> Val:
        """The root with `value` written where `node` sees it."""
        base = self.b.materialize(self.env[root])
        self.env[root] = base
        self._replay(members[1:])
        seen = self.env[node]
        probe = seen.at(tuple(var(f"i{n}") for n in range(seen.rank)))
        if not isinstance(probe, Access) or probe.tensor != base.name or probe.default is not None:
            raise MutatedState(self.ctx.loc, op=self.ctx.target, what="a tensor through a view that is not plain")
        if all(contiguous(n) for n in (root, node)) and seen.elements == base.elements:
            return value.reshape(base.shape)
        return self.b.scatter(
            str(node.name), base, seen.shape, lambda *i: seen.at(i).index, lambda *i: value.at(i), "set"
        )

    def root_of(self, node: fx.Node) -> fx.Node | None:
        """The node at the root of the memory that `node` shows, if it is known here."""
        return self.root_of_storage(storage_of(node) or -1)

    def root_of_storage(self, storage: int) -> fx.Node | None:
        members = self.sharing.get(storage)
        return members[0] if members else None

    def replace(self, root: fx.Node, value: Val) -> None:
        """The tensor at the root of some memory has a new value."""
        self.env[root] = value
        self._replay(self.sharing.get(storage_of(root) or -1, [root])[1:])

    def _replay(self, nodes: Sequence[fx.Node]) -> None:
        c = self.ctx
        saved = c.node, c.meta, c.target
        for n in nodes:
            if n.op == "call_function":
                self.env[n] = self.env[n.args[0]] if writes(n) else self._execute(n)
        c.node, c.meta, c.target = saved

    # --- run-time extents ---

    def unbacked(self, meta: Any) -> list[Any]:
        """Symbols of a traced result that no input determines and that are not bound yet, in order."""
        found: dict[Any, None] = {}

        def visit(v: Any) -> None:
            if isinstance(v, (tuple, list)):
                for x in v:
                    visit(x)
            elif isinstance(v, torch.Tensor):
                for e in v.shape:
                    visit(e)
            elif isinstance(v, torch.SymInt):
                for s in sorted(v.node.expr.free_symbols, key=str):
                    if s not in self.extents.symbols:
                        found[s] = None

        if self.ctx.node is not None and meta is self.ctx.meta:
            for s in self.ctx.node.meta.get("unbacked_bindings", {}) or {}:
                if s not in self.extents.symbols:
                    found[s] = None
        visit(meta)
        return list(found)

    def range_of(self, symbols: Sequence[Any]) -> tuple[int, int | None]:
        """What the trace knows of a run-time integer."""
        for s in symbols:
            if s in self.ranges:
                lo, hi = bounds(self.ranges[s])
                return max(lo, 0), hi
        return 0, None


def bounds(value_range: Any) -> tuple[int, int | None]:
    """A ValueRanges as (least, greatest or None)."""

    def whole(v: Any) -> int | None:
        try:
            n = int(v)
        except (TypeError, ValueError, OverflowError, AttributeError):  # the last is what int(sympy.oo) ends in
            return None
        return n if abs(n) < 1 << 62 else None

    return whole(value_range.lower) or 0, whole(value_range.upper)


def plain(e: IntExpr) -> IntExpr | int:
    return e if e.const is None else e.const


def _reads(target: object) -> bool:
    """Whether a scalar result comes from a tensor's values."""
    return str(target) in ("aten.item.default", "aten._local_scalar_dense.default")

