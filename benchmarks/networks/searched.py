"""Networks that an architecture search found, for ImageNet at 224 x 224: cells that read the two cells before them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.networks.layers import Network, Value
from dlc.passes.cosma.graph import Graph

Step = tuple[str, int]
"""An operation and the state it reads: 0 the cell before the last, 1 the last one, 2 and more the blocks of this cell."""


def _apply(net: Network, operation: str, x: Value, channels: int, stride: int) -> Value:
    kind, _, kernel = operation.partition(" ")
    if kind == "sep":  # twice a depthwise and a pointwise convolution
        y = net.conv(net.conv(x, x.channels, stride, "depthwise"), channels)
        return net.conv(net.conv(y, channels, 1, "depthwise"), channels)
    if kind == "dil":
        return net.conv(net.conv(x, x.channels, stride, "depthwise"), channels)
    if kind == "narrow":  # 1 x 1 to a quarter, the kernel (or its two factors), 1 x 1
        y = net.conv(x, channels // 4)
        y = net.conv(y, channels // 4, stride)
        y = net.conv(y, channels // 4) if kernel == "1x7" else y
        return net.conv(y, channels)
    if kind == "pool":
        return net.pool(x, stride)
    if kind == "conv":
        return net.conv(x, channels, stride)
    assert kind == "same"
    return x if stride == 1 and x.channels == channels else net.conv(x, channels, stride)


def _cell(
    net: Network, before: Value, last: Value, steps: Sequence[Step], joined: Sequence[int], channels: int, stride: int
) -> Value:
    """Blocks of two operations and their sum; the states `joined` are concatenated."""
    first = net.conv(before, channels, before.shape[1] // last.shape[1] or 1)
    states = [first, net.conv(last, channels)]
    for (left, i), (right, j) in zip(steps[::2], steps[1::2], strict=True):
        a = _apply(net, left, states[i], channels, stride if i < 2 else 1)
        b = _apply(net, right, states[j], channels, stride if j < 2 else 1)
        states.append(net.same("add", a, b))
    return net.concat(*(states[i] for i in joined))


NASNET_NORMAL = ("sep", 1), ("same", 1), ("sep", 0), ("sep", 1), ("pool", 1), ("same", 0), ("pool", 0), ("pool", 0), ("sep", 0), ("sep", 0)
NASNET_REDUCE = ("sep", 1), ("sep", 0), ("pool", 1), ("sep", 0), ("pool", 1), ("sep", 0), ("pool", 2), ("same", 3), ("sep", 2), ("pool", 1)


def nasnet_a() -> Graph:
    """Zoph et al., Learning Transferable Architectures (arXiv 1707.07012), NASNet-A (4 @ 1056)."""
    net = Network("nasnet-a")
    stem = net.conv(net.input(3, 224, 224), 32, 2)
    before, last = stem, _cell(net, stem, stem, NASNET_REDUCE, (3, 4, 5, 6), 11, 2)
    before, last = last, _cell(net, before, last, NASNET_REDUCE, (3, 4, 5, 6), 22, 2)
    for stage in range(3):
        if stage:
            before, last = last, _cell(net, before, last, NASNET_REDUCE, (3, 4, 5, 6), 44 << stage, 2)
        for _ in range(4):
            before, last = last, _cell(net, before, last, NASNET_NORMAL, (0, 2, 3, 4, 5, 6), 44 << stage, 1)
    net.head(last)
    return net.graph()


AMOEBA_NORMAL = (
    ("conv", 1), ("pool", 1), ("same", 1), ("narrow 1x7", 0), ("conv", 0),
    ("narrow 1x7", 0), ("pool", 2), ("same", 2), ("pool", 1), ("conv", 5),
)  # fmt: skip
AMOEBA_REDUCE = (
    ("pool", 0), ("pool", 0), ("same", 2), ("narrow 3x3", 1), ("narrow 1x7", 2),
    ("pool", 2), ("same", 3), ("pool", 1), ("pool", 2), ("conv", 3),
)  # fmt: skip


def amoebanet_d() -> Graph:
    """Real et al., Regularized Evolution (arXiv 1802.01548), AmoebaNet-D (18, 208), cells as in torchgpipe."""
    net = Network("amoebanet-d")
    channels = 208 // 4
    stem = net.conv(net.input(3, 224, 224), channels, 2)
    before, last = stem, _cell(net, stem, stem, AMOEBA_REDUCE, (4, 5, 6), channels, 2)
    before, last = last, _cell(net, before, last, AMOEBA_REDUCE, (4, 5, 6), channels * 2, 2)
    for stage in range(3):
        width = channels * 4 << stage
        if stage:
            before, last = last, _cell(net, before, last, AMOEBA_REDUCE, (4, 5, 6), width, 2)
        for _ in range(6):
            before, last = last, _cell(net, before, last, AMOEBA_NORMAL, (0, 3, 4, 6), width, 1)
    net.head(last)
    return net.graph()


PNAS = (
    ("sep", 0), ("pool", 0), ("sep", 1), ("pool", 1), ("sep", 1),
    ("sep", 1), ("sep", 4), ("pool", 1), ("sep", 0), ("same", 1),
)  # fmt: skip


def pnasnet5() -> Graph:
    """Liu et al., Progressive Neural Architecture Search (arXiv 1712.00559), PNASNet-5 (N = 3, F = 54)."""
    net = Network("pnasnet-5")
    stem = net.conv(net.input(3, 224, 224), 32, 2)
    before, last = stem, _cell(net, stem, stem, PNAS, (2, 3, 4, 5, 6), 13, 2)
    before, last = last, _cell(net, before, last, PNAS, (2, 3, 4, 5, 6), 27, 2)
    for stage in range(3):
        for block in range(3 + (stage > 0)):
            stride = 2 if stage and not block else 1
            before, last = last, _cell(net, before, last, PNAS, (2, 3, 4, 5, 6), 54 << stage, stride)
    net.head(last)
    return net.graph()


DARTS_NORMAL = ("sep", 0), ("sep", 1), ("sep", 0), ("sep", 1), ("sep", 1), ("same", 0), ("same", 0), ("dil", 2)
DARTS_REDUCE = ("pool", 0), ("pool", 1), ("same", 2), ("pool", 1), ("pool", 0), ("same", 2), ("same", 2), ("pool", 1)


def darts() -> Graph:
    """Liu et al., DARTS (arXiv 1806.09055), second-order cells, 14 of them with 48 channels."""
    net = Network("darts")
    before = net.conv(net.conv(net.input(3, 224, 224), 24, 2), 48, 2)
    last = net.conv(before, 48, 2)
    channels = 48
    for cell in range(14):
        reduce = cell in (14 // 3, 2 * 14 // 3)
        channels *= 2 if reduce else 1
        steps = DARTS_REDUCE if reduce else DARTS_NORMAL
        before, last = last, _cell(net, before, last, steps, (2, 3, 4, 5), channels, 2 if reduce else 1)
    net.head(last)
    return net.graph()
