"""A network is written down as calls; what remains is the graph of its operators and the sizes of their results.

Conventions: one byte per element and batch 1; padding, bias, activation and a norm after a convolution are part of it; views are
nothing; a norm before a convolution is a multiplication and an addition; concatenation, addition and pooling are operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dlc.passes.cosma.graph import Graph, Tensor


@dataclass(frozen=True)
class Value:
    """Tensor number `index` with the shape [C, *space] (or [rows, width])."""

    index: int
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]


class Network:
    """Collects operators in the order in which they are called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.operators: list[str] = []
        self.tensors: list[tuple[str, int, list[int], list[int]]] = []

    def input(self, *shape: int) -> Value:
        return self._tensor("input", shape, [])

    def _tensor(self, name: str, shape: tuple[int, ...], producers: list[int]) -> Value:
        self.tensors.append((name, prod(shape), producers, []))
        return Value(len(self.tensors) - 1, shape)

    def operator(self, kind: str, inputs: list[Value], *shapes: tuple[int, ...]) -> list[Value]:
        number = len(self.operators)
        self.operators.append(f"{kind}.{number}")
        for index in dict.fromkeys(v.index for v in inputs):
            self.tensors[index][3].append(number)
        return [self._tensor(f"{kind}.{number}" + (f".{i}" if i else ""), s, [number]) for i, s in enumerate(shapes)]

    def op(self, kind: str, inputs: list[Value], *shape: int) -> Value:
        return self.operator(kind, inputs, shape)[0]

    def graph(self) -> Graph:
        """The graph; what nobody reads is its output."""
        return Graph(
            self.name,
            tuple(self.operators),
            tuple(Tensor(n, size, tuple(a), tuple(b), output=not b) for n, size, a, b in self.tensors),
        )

    # -- layers

    def conv(self, x: Value, channels: int, stride: int = 1, kind: str = "conv") -> Value:
        return self.op(kind, [x], channels, *(-(-n // stride) for n in x.shape[1:]))

    def pool(self, x: Value, stride: int = 2, kind: str = "pool") -> Value:
        return self.conv(x, x.channels, stride, kind)

    def same(self, kind: str, *inputs: Value) -> Value:
        return self.op(kind, list(inputs), *inputs[0].shape)

    def concat(self, *parts: Value) -> Value:
        return self.op("concat", list(parts), sum(p.channels for p in parts), *parts[0].shape[1:])

    def norm_before(self, x: Value) -> Value:
        return self.same("add", self.same("mul", x))

    def head(self, x: Value, classes: int = 1000) -> Value:
        return self.op("linear", [self.op("mean", [x], x.channels)], classes)
