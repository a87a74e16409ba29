"""Nesting of arguments and results: the model's own structure, as JSON, and walks over it.

A node is one of

    {"t": "leaf", "i": n}                     input or output n
    {"t": "tuple" | "list", "c": [node]}
    {"t": "dict", "k": [str | int], "c": [node]}
    {"t": "namedtuple", "n": name, "k": [field], "c": [node]}
    {"t": "none"}                             None
    {"t": "const", "v": scalar}               the same value as when compiled

The input tree describes the pair `(args, kwargs)`, as torch.export does.
"""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from dlc.runtime.errors import BadManifest, WrongArgumentCount

MAX_DEPTH: Final = 64
MAX_NODES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a tree; which fields count depends on `kind`."""

    kind: str
    index: int = -1
    children: tuple[Node, ...] = ()
    keys: tuple[str | int, ...] = ()
    value: object = None
    name: str = ""


def flat_args(count: int) -> Node:
    """The input tree of `count` positional tensors."""
    leaves = tuple(Node("leaf", index) for index in range(count))
    return Node("tuple", children=(Node("tuple", children=leaves), Node("dict")))


def flat_result(count: int) -> Node:
    """The output tree of a bare tensor, or of a tuple of `count`."""
    leaves = tuple(Node("leaf", index) for index in range(count))
    return leaves[0] if count == 1 else Node("tuple", children=leaves)


def check_tree(value: object, path: str, count: int, *, is_input: bool) -> Node:
    """The typed tree of JSON `value`, in which each of `count` leaves occurs.

    Raises:
        BadManifest: it is no such tree.
    """
    seen: set[int] = set()
    budget = [MAX_NODES]
    node = _check(value, path, count, seen, 0, budget)
    if len(seen) != count:
        missing = next(index for index in range(count) if index not in seen)
        raise BadManifest(field=path, reason=f"number {missing} occurs nowhere in it")
    if is_input:
        match node:
            case Node(kind="tuple", children=(Node(kind="tuple" | "list"), Node(kind="dict") as kwargs)):
                if all(isinstance(key, str) for key in kwargs.keys):
                    return node
        raise BadManifest(field=path, reason="it is no pair of a tuple and a dict")
    return node


def _check(value: object, path: str, count: int, seen: set[int], depth: int, budget: list[int]) -> Node:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise BadManifest(field=path, reason="it is nested too deeply or too large")

    def below(children: object) -> tuple[Node, ...]:
        if not isinstance(children, (list, tuple)):
            raise BadManifest(field=path, reason="children are no list")
        return tuple(_check(c, f"{path}.c[{i}]", count, seen, depth + 1, budget) for i, c in enumerate(children))

    if not isinstance(value, Mapping):
        raise BadManifest(field=path, reason="a node is no JSON object")
    kind = value.get("t")
    match kind:
        case "leaf":
            index = value.get("i")
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
                raise BadManifest(field=path, reason=f"expected a leaf number below {count}")
            seen.add(index)
            return Node("leaf", index)
        case "tuple" | "list":
            return Node(kind, children=below(value.get("c", ())))
        case "dict" | "namedtuple":
            children, keys = below(value.get("c", ())), value.get("k", ())
            if not isinstance(keys, (list, tuple)) or len(keys) != len(children):
                raise BadManifest(field=path, reason="keys and children differ in number")
            if any(not isinstance(key, (str, int)) for key in keys) or len(set(keys)) != len(keys):
                raise BadManifest(field=path, reason="keys are no distinct texts or integers")
            name = value.get("n", "")
            if kind == "namedtuple" and not all(_is_field(key) for key in (name, *keys)):
                raise BadManifest(field=path, reason="a named tuple needs identifiers for its name and fields")
            return Node(kind, children=children, keys=tuple(keys), name=name if kind == "namedtuple" else "")
        case "none":
            return Node("none")
        case "const":
            constant = value.get("v")
            if constant is not None and not isinstance(constant, (bool, int, float, str)):
                raise BadManifest(field=path, reason="a constant is no JSON scalar")
            return Node("const", value=constant)
    raise BadManifest(field=path, reason=f"unknown kind of node {str(kind)[:40]!r}")


def _is_field(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)


class Flattener:
    """Turns `(args, kwargs)` into the list of inputs."""

    def __init__(self, tree: Node, arg_names: Sequence[str], count: int) -> None:
        args, kwargs = tree.children
        self.count = count
        self.args = args.children
        self.kwargs = dict(zip(kwargs.keys, kwargs.children))
        # a model compiled with positional arguments may be called by name, and the other way round
        self.positions = {name: at for at, name in enumerate(arg_names[: len(self.args)]) if name not in self.kwargs}
        # the common case, tensors in order, needs no walk
        leaves = [node.index for node in self.args if node.kind == "leaf"]
        self.is_flat = not self.kwargs and len(self.args) == count and leaves == list(range(count))
        self.expected = _describe(args, kwargs, arg_names)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        if self.is_flat and not kwargs and len(args) == self.count:
            return args
        values: list[Any] = list(args)
        rest = dict(kwargs)
        if len(values) > len(self.args):
            raise self._wrong(f"{len(values)} positional arguments were given, {len(self.args)} expected")
        by_position = {self.positions[name]: name for name in rest if name in self.positions}
        for at in range(len(values), len(self.args)):
            if at not in by_position:
                if self.args[at].kind == "none":
                    values.append(None)
                    continue
                if self.args[at].kind == "const":
                    values.append(self.args[at].value)
                    continue
                named = next((name for name, where in self.positions.items() if where == at), f"number {at}")
                raise self._wrong(f"the positional argument {named} is missing")
            values.append(rest.pop(by_position[at]))
        inputs: list[Any] = [_UNSET] * self.count
        for at, (node, value) in enumerate(zip(self.args, values)):
            self._fill(node, value, f"args[{at}]", inputs)
        for key, node in self.kwargs.items():
            if key not in rest and node.kind not in ("none", "const"):
                raise self._wrong(f"the keyword argument '{key}' is missing")
            if key in rest:
                self._fill(node, rest.pop(key), str(key), inputs)
        if rest:
            raise self._wrong(f"unknown keyword argument '{next(iter(rest))}'")
        return inputs

    def _wrong(self, reason: str) -> WrongArgumentCount:
        return WrongArgumentCount(reason=reason, expected=self.expected)

    def _fill(self, node: Node, value: Any, path: str, inputs: list[Any]) -> None:
        match node.kind:
            case "leaf":
                if value is None:
                    raise self._wrong(f"{path} is None, expected a tensor")
                inputs[node.index] = value
            case "tuple" | "list":
                if not isinstance(value, (tuple, list)) or len(value) != len(node.children):
                    raise self._wrong(f"{path} is no {node.kind} of {len(node.children)}")
                for at, (child, item) in enumerate(zip(node.children, value)):
                    self._fill(child, item, f"{path}[{at}]", inputs)
            case "dict":
                if not isinstance(value, Mapping) or set(value) != set(node.keys):
                    raise self._wrong(f"{path} is no dict with the keys {', '.join(map(str, node.keys))}")
                for key, child in zip(node.keys, node.children):
                    self._fill(child, value[key], f"{path}[{key!r}]", inputs)
            case "namedtuple":
                for key, child in zip(node.keys, node.children):
                    if not hasattr(value, str(key)):
                        raise self._wrong(f"{path} has no attribute '{key}'")
                    self._fill(child, getattr(value, str(key)), f"{path}.{key}", inputs)
            case "none":
                if value is not None:
                    raise self._wrong(f"{path} was None when the model was compiled")
            case _:
                if value is not node.value and (type(value) is not type(node.value) or value != node.value):
                    raise self._wrong(f"{path} was {node.value!r} when the model was compiled and cannot change")


_UNSET: Final = object()


def unflattener(tree: Node) -> Callable[[Sequence[Any]], Any]:
    """The function that nests a list of outputs as `tree` says."""
    match tree.kind:
        case "leaf":
            index = tree.index
            return lambda values: values[index]
        case "tuple" | "list":
            kind: Callable[..., Any] = tuple if tree.kind == "tuple" else list
            if [child.index for child in tree.children if child.kind == "leaf"] == list(range(len(tree.children))):
                size = len(tree.children)
                return lambda values: kind(values[:size])
            parts = [unflattener(child) for child in tree.children]
            return lambda values: kind(part(values) for part in parts)
        case "dict":
            items = [(key, unflattener(child)) for key, child in zip(tree.keys, tree.children)]
            return lambda values: {key: part(values) for key, part in items}
        case "namedtuple":
            make = _tuple_type(tree.name, tuple(map(str, tree.keys)))
            parts = [unflattener(child) for child in tree.children]
            return lambda values: make(*(part(values) for part in parts))
        case "const":
            constant = tree.value
            return lambda values: constant
    return lambda values: None


@cache
def _tuple_type(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)  # the fields are only known here


def flatten_out(tree: Node, value: Any, outputs: list[Any]) -> bool:
    """Write the leaves of `value`, nested as `tree`, into `outputs`; False if it is nested otherwise."""
    match tree.kind:
        case "leaf":
            outputs[tree.index] = value
            return value is not None
        case "tuple" | "list":
            same = isinstance(value, (tuple, list)) and len(value) == len(tree.children)
            return same and all(flatten_out(child, item, outputs) for child, item in zip(tree.children, value))
        case "dict":
            same = isinstance(value, Mapping) and set(value) == set(tree.keys)
            return same and all(flatten_out(c, value[key], outputs) for key, c in zip(tree.keys, tree.children))
        case "namedtuple":
            have = all(hasattr(value, str(key)) for key in tree.keys)
            pairs = zip(tree.keys, tree.children)
            return have and all(flatten_out(child, getattr(value, str(key)), outputs) for key, child in pairs)
    return True


def _describe(args: Node, kwargs: Node, arg_names: Sequence[str]) -> str:
    shown = [arg_names[at] if at < len(arg_names) else f"arg{at}" for at in range(len(args.children))]
    shown += [f"{key}=" for key in kwargs.keys]
    return f"({', '.join(shown)})" if shown else "no arguments"
