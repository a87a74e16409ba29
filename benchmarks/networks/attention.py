"""Transformers; heads and transposes are views, the scores of all heads one tensor."""

from __future__ import annotations

from benchmarks.networks.layers import Network, Value
from dlc.passes.cosma.graph import Graph


def vit_b16() -> Graph:
    """Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv 2010.11929), base, 224 x 224."""
    net = Network("vit-b16")
    patches = net.op("conv", [net.input(3, 224, 224)], 196, 768)
    x = net.op("concat", [patches], 197, 768)
    x = net.same("add", x)
    for _ in range(12):
        normed = net.same("norm", x)
        x = net.same("add", _attention(net, normed, normed, heads=12), x)
        x = net.same("add", _feed_forward(net, net.same("norm", x), 3072), x)
    net.op("linear", [net.same("norm", x)], 1000)
    return net.graph()


def transformer() -> Graph:
    """Vaswani et al., Attention Is All You Need (arXiv 1706.03762), base, 512 tokens in and out."""
    net = Network("transformer")
    source = net.op("embed", [net.input(512, 4)], 512, 512)
    for _ in range(6):
        source = net.same("norm", _residual(net, _attention(net, source, source, heads=8), source))
        source = net.same("norm", _residual(net, _feed_forward(net, source, 2048), source))
    x = net.op("embed", [net.input(512, 4)], 512, 512)
    for _ in range(6):
        x = net.same("norm", _residual(net, _attention(net, x, x, heads=8), x))
        x = net.same("norm", _residual(net, _attention(net, x, source, heads=8), x))
        x = net.same("norm", _residual(net, _feed_forward(net, x, 2048), x))
    net.op("linear", [x], 512, 512)
    return net.graph()


def _residual(net: Network, y: Value, x: Value) -> Value:
    return net.same("add", y, x)


def _attention(net: Network, x: Value, memory: Value, heads: int) -> Value:
    q, k, v = net.same("query", x), net.same("key", memory), net.same("value", memory)
    scores = net.op("scores", [q, k], heads, x.shape[0], memory.shape[0])
    probabilities = net.same("softmax", scores)
    return net.same("project", net.op("mix", [probabilities, v], *x.shape))


def _feed_forward(net: Network, x: Value, width: int) -> Value:
    return net.op("linear", [net.op("linear", [x], x.shape[0], width)], *x.shape)
