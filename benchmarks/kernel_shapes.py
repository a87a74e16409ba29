"""Which kernels are timed: shapes from a seeded generator, primes among them, in families with one limit each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

SEED = 20261127
L3_SHARE = 16 << 20
"""Weights up to this many bytes stay in the last-level cache between calls."""

LAYERS = 4
"""Convolutions of stride 1 in a row, from C to F channels and back, as networks have them: layouts are converted at the ends."""

BEYOND = 64 << 20
"""Weights of at least so many bytes do not."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel to time.

    Attributes:
        kind: linear (M, K, N), conv (B, C, pixels, F, window, stride, groups), layer_norm (rows, width),
            softmax (rows, width), chain (rows, width), attention and causal (B, H, key heads, queries, keys, D).
        dims: the numbers that the kind takes.
        given: whether results go into given outputs.
    """

    kind: str
    dims: tuple[int, ...]
    given: bool = False

    @property
    def name(self) -> str:
        """An identifier, from which `parse` finds the kernel again."""
        return "_".join([self.kind, *map(str, self.dims)]) + ("_given" if self.given else "")

    @classmethod
    def parse(cls, name: str) -> Kernel:
        given = name.endswith("_given")
        words = name.removesuffix("_given").split("_")
        split = next(k for k, word in enumerate(words) if word.isdigit())
        return cls("_".join(words[:split]), tuple(map(int, words[split:])), given)

    @property
    def layers(self) -> int:
        """How many layers are in a row."""
        return LAYERS if self.kind == "conv" and self.dims[5] == 1 else 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the inputs, the weights not among them."""
        match self.kind:
            case "linear":
                return (self.dims[:2],)
            case "conv":
                b, c, pixels = self.dims[:3]
                return ((b, c, pixels, pixels),)
            case "attention" | "causal":
                b, h, shared, p, m, d = self.dims
                return ((b, h, p, d), (b, shared, m, d), (b, shared, m, d))
            case _:
                return (self.dims,)

    @property
    def output(self) -> tuple[int, ...]:
        match self.kind:
            case "linear":
                return (self.dims[0], self.dims[2])
            case "conv":
                b, c, pixels, f, _, stride, _ = self.dims
                return (b, f if self.layers % 2 else c, -(-pixels // stride), -(-pixels // stride))
            case "attention" | "causal":
                return self.shapes[0]
            case _:
                return self.dims

    @property
    def weights(self) -> int:
        """How many there are."""
        match self.kind:
            case "linear":
                return (self.dims[1] + 1) * self.dims[2]
            case "conv":
                _, c, _, f, window, _, groups = self.dims
                return self.layers * (c // groups * window**2 * f + f)  # the biases of C channels are a little less
            case "layer_norm" | "chain":
                return 2 * self.dims[1]
            case _:
                return 0

    @property
    def flops(self) -> int:
        """Multiplications and additions of the contraction; 0 for kernels that only move memory."""
        match self.kind:
            case "linear":
                return 2 * math.prod(self.dims)
            case "conv":
                b, c, pixels, f, window, stride, groups = self.dims
                places = b * (-(-pixels // stride)) ** 2
                return self.layers * 2 * places * f * (c // groups) * window**2
            case "attention" | "causal":
                b, h, _, p, m, d = self.dims
                return 4 * b * h * p * m * d // (2 if self.kind == "causal" else 1)
            case _:
                return 0

    @property
    def bytes(self) -> int:
        """The least traffic of a call: inputs, weights and outputs once each."""
        return 4 * (sum(map(math.prod, self.shapes)) + self.weights + math.prod(self.output))


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels with a common limit.

    Attributes:
        name, title: for the command line, and for the page.
        limit: fma, read, copy, or none where no probe measures what bounds it.
        kernels: what is timed.
        goal, speedup: the share of the limit and the best peer's time over ours that the project asks for; 0 for none.
        pairs: an odd shape and the round one beside it, whose rates are compared.
    """

    name: str
    title: str
    limit: str
    kernels: tuple[Kernel, ...]
    goal: float = 0.0
    speedup: float = 0.0
    pairs: tuple[tuple[str, str], ...] = ()


def families() -> tuple[Family, ...]:
    """All of them; equal on every call."""
    return (
        Family("linear", "linear, 128 rows and more", "fma", many_rows(24), 0.90, 1.05),
        Family("linear8", "linear, 8 rows, weights in the cache", "fma", few_rows(8, 8), 0.88, 1.15),
        Family("linear1", "linear, 1 row, weights in the cache", "none", few_rows(1, 8), 0.0, 1.35),
        Family("linear1-memory", "linear, 1 row, weights in memory", "read", from_memory(), 0.85, 1.0),
        Family("conv1x1", "1 x 1 convolutions", "fma", convolutions("conv1x1"), 0.88, 1.0),
        Family("strided", "strided convolutions", "fma", convolutions("strided"), 0.88, 1.0),
        Family("conv3x3-56", "3 x 3 convolutions, 56 pixels", "fma", squares(56, 64), 0.0, 2.5),
        Family("conv3x3-28", "3 x 3 convolutions, 28 pixels", "fma", squares(28, 128), 0.0, 2.5),
        Family("conv3x3-14", "3 x 3 convolutions, 14 pixels", "fma", squares(14, 256), 0.0, 1.9),
        Family("conv3x3-7", "3 x 3 convolutions, 7 pixels", "fma", squares(7, 512), 0.0, 1.0),
        Family("depthwise", "depthwise convolutions", "none", convolutions("depthwise")),
        Family("layer_norm", "layer norm", "none", of_kind("layer_norm"), 0.0, 1.8),
        Family("softmax", "softmax", "none", of_kind("softmax")),
        Family("attention", "attention", "fma", of_kind("attention"), 0.85, 1.1),
        Family("causal", "causal attention", "fma", of_kind("causal"), 0.80, 1.8),
        Family("decode", "attention of one query, 32 heads that share 8 of keys", "read", decodes(), 0.85, 1.0),
        Family("chain-given", "pointwise chain over 64 MB into given outputs", "copy", chains(True), 0.90, 1.0),
        Family("chain-fresh", "pointwise chain over 64 MB into fresh outputs", "none", chains(False), 0.0, 1.0),
        odd_family(),
    )


WIDTHS = (512, 768, 1024, 1536, 2048, 3072, 4096, 769, 1021, 2053)
ROWS = (128, 197, 256, 384, 512, 131, 257, 509)


def many_rows(count: int) -> tuple[Kernel, ...]:
    """Distinct shapes of 0.1 to 6 GFLOP, drawn from usual sizes and primes."""
    return distinct(count, lambda g: Kernel("linear", (pick(g, ROWS), pick(g, WIDTHS), pick(g, WIDTHS))), 10**8, 6 * 10**9)


def few_rows(rows: int, count: int) -> tuple[Kernel, ...]:
    """The same widths for all numbers of rows; weights that stay in the cache."""
    draw: Draw = lambda g: Kernel("linear", (1, pick(g, WIDTHS), pick(g, WIDTHS)))  # noqa: E731
    shapes = distinct(count, draw, 10**6, L3_SHARE // 2)  # a weight is 2 operations and 4 bytes
    return tuple(Kernel("linear", (rows, *k.dims[1:])) for k in shapes)


def from_memory() -> tuple[Kernel, ...]:
    found = ((4096, 4096), (4099, 4801), (3072, 8192), (5003, 4093))
    assert all(4 * k * n >= BEYOND for k, n in found)
    return tuple(Kernel("linear", (1, *widths)) for widths in found)


def squares(pixels: int, channels: int) -> tuple[Kernel, ...]:
    """3 x 3 with stride 1: the usual number of channels, three quarters of it, and a prime below it."""
    below = next(n for n in range(channels - 1, 1, -1) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    return tuple(Kernel("conv", (1, c, pixels, c, 3, 1, 1)) for c in (channels, channels * 3 // 4, below))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "conv1x1": (
        (1, 64, 56, 256, 1, 1, 1),
        (1, 256, 56, 64, 1, 1, 1),
        (1, 128, 28, 512, 1, 1, 1),
        (1, 512, 28, 128, 1, 1, 1),
        (1, 1024, 14, 256, 1, 1, 1),
        (1, 256, 14, 1021, 1, 1, 1),
        (1, 61, 56, 167, 1, 1, 1),
        (3, 96, 28, 384, 1, 1, 1),
    ),
    "strided": (
        (1, 3, 224, 64, 7, 2, 1),
        (1, 128, 56, 128, 3, 2, 1),
        (1, 256, 28, 256, 3, 2, 1),
        (1, 256, 56, 512, 1, 2, 1),
        (1, 512, 28, 1024, 1, 2, 1),
        (1, 127, 56, 131, 3, 2, 1),
    ),
    "depthwise": (
        (1, 32, 112, 32, 3, 1, 32),
        (1, 144, 56, 144, 3, 1, 144),
        (1, 144, 56, 144, 3, 2, 144),
        (1, 240, 28, 240, 5, 1, 240),
        (1, 384, 14, 384, 3, 1, 384),
        (1, 960, 7, 960, 3, 1, 960),
        (1, 96, 56, 96, 7, 1, 96),
        (1, 97, 29, 97, 3, 1, 97),
    ),
}

OTHERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "layer_norm": ((128, 768), (512, 1024), (197, 768), (1499, 384), (131, 769), (8, 4096)),
    "softmax": ((1536, 128), (6144, 512), (1021, 1000), (36864, 49)),
    "attention": (
        (1, 12, 12, 128, 128, 64),
        (1, 12, 12, 512, 512, 64),
        (1, 12, 12, 2048, 2048, 64),
        (1, 12, 12, 8192, 8192, 64),
        (8, 12, 12, 128, 128, 64),
        (1, 9, 3, 1021, 1021, 64),
        (1, 8, 8, 257, 257, 40),
    ),
    "causal": (
        (1, 12, 12, 512, 512, 64),
        (1, 12, 12, 2048, 2048, 64),
        (1, 12, 12, 8192, 8192, 64),
        (1, 9, 3, 1021, 1021, 64),
    ),
}


def convolutions(name: str) -> tuple[Kernel, ...]:
    return tuple(Kernel("conv", dims) for dims in CONVOLUTIONS[name])


def of_kind(kind: str) -> tuple[Kernel, ...]:
    return tuple(Kernel(kind, dims) for dims in OTHERS[kind])


def decodes() -> tuple[Kernel, ...]:
    return tuple(Kernel("attention", (1, 32, 8, 1, keys, 128)) for keys in (4096, 32768))


def chains(given: bool) -> tuple[Kernel, ...]:
    """About 64 MB each: max(x * a + b, 0) with a and b along the last dimension."""
    return tuple(Kernel("chain", dims, given) for dims in ((16384, 1024), (21841, 769)))


def odd_family() -> Family:
    """Odd shapes, each beside a round neighbour."""
    pairs = (
        (Kernel("linear", (127, 769, 3067)), Kernel("linear", (128, 768, 3072))),
        (Kernel("linear", (3, 1021, 1021)), Kernel("linear", (4, 1024, 1024))),
        (Kernel("conv", (3, 127, 28, 131, 3, 1, 1)), Kernel("conv", (4, 128, 28, 128, 3, 1, 1))),
        (Kernel("conv", (1, 5, 56, 64, 3, 1, 1)), Kernel("conv", (1, 8, 56, 64, 3, 1, 1))),
        (Kernel("conv", (1, 61, 29, 67, 1, 1, 1)), Kernel("conv", (1, 64, 28, 64, 1, 1, 1))),
        (Kernel("layer_norm", (127, 769)), Kernel("layer_norm", (128, 768))),
    )
    kernels = tuple(k for pair in pairs for k in pair)
    return Family("odd", "odd shapes beside round ones", "none", kernels, pairs=tuple((a.name, b.name) for a, b in pairs))


Draw = Callable[[np.random.Generator], Kernel]


def pick(generator: np.random.Generator, among: tuple[int, ...]) -> int:
    return int(generator.choice(among))


def distinct(count: int, draw: Draw, least: int, most: int) -> tuple[Kernel, ...]:
    """`count` different kernels with a number of operations within bounds, or as many as there are."""
    found: dict[Kernel, None] = {}
    for kernel in drawn(draw):
        if least <= kernel.flops <= most:
            found[kernel] = None
        if len(found) == count:
            break
    return tuple(found)


def drawn(draw: Draw) -> Iterator[Kernel]:
    generator = np.random.default_rng(SEED)
    for _ in range(2000):
        yield draw(generator)
