"""Convolutional networks for images and video, and segmentation heads; sizes as in the papers and torchvision."""

from __future__ import annotations

from benchmarks.networks.layers import Network, Value
from dlc.passes.cosma.graph import Graph

IMAGE = (3, 224, 224)
VIDEO = (3, 16, 224, 224)


def resnet50() -> Graph:
    """He et al., Deep Residual Learning (arXiv 1512.03385), table 1."""
    net = Network("resnet50")
    return _classified(net, _resnet(net, net.input(*IMAGE), inner=1))


def resnext50() -> Graph:
    """Xie et al., Aggregated Residual Transformations (arXiv 1611.05431), 32x4d; a grouped convolution is one operator."""
    net = Network("resnext50")
    return _classified(net, _resnet(net, net.input(*IMAGE), inner=2))


def resnext50_split() -> Graph:
    """The same as exporters without grouped convolutions write it: a split, 32 convolutions and a concatenation."""
    net = Network("resnext50-split")
    return _classified(net, _resnet(net, net.input(*IMAGE), inner=2, groups=32))


def _classified(net: Network, x: Value) -> Graph:
    net.head(x)
    return net.graph()


def _resnet(net: Network, x: Value, inner: int, groups: int = 1, strides: tuple[int, ...] = (1, 2, 2, 2)) -> Value:
    x = net.pool(net.conv(x, 64, 2))
    for stage, (blocks, stride) in enumerate(zip((3, 4, 6, 3), strides, strict=True)):
        width = 64 << stage
        for block in range(blocks):
            x = _bottleneck(net, x, width * inner, width * 4, stride if block == 0 else 1, groups, block == 0)
    return x


def _bottleneck(net: Network, x: Value, middle: int, out: int, stride: int, groups: int, project: bool) -> Value:
    y = net.conv(x, middle)
    y = net.conv(y, middle, stride) if groups == 1 else _grouped(net, y, stride, groups)
    y = net.conv(y, out)
    return net.same("add", y, net.conv(x, out, stride) if project else x)


def _grouped(net: Network, x: Value, stride: int, groups: int) -> Value:
    part = (x.channels // groups, *x.shape[1:])
    slices = net.operator("split", [x], *[part] * groups)
    return net.concat(*(net.conv(s, s.channels, stride) for s in slices))


def densenet121() -> Graph:
    """Huang et al., Densely Connected Convolutional Networks (arXiv 1608.06993), table 1."""
    net = Network("densenet121")
    x = net.pool(net.conv(net.input(*IMAGE), 64, 2))
    for layers in (6, 12, 24, 16):
        if x.channels != 64:  # between blocks
            x = net.pool(net.conv(net.norm_before(x), x.channels // 2))
        for _ in range(layers):
            x = net.concat(x, net.conv(net.conv(net.norm_before(x), 128), 32))
    return _classified(net, net.norm_before(x))


def fc_densenet103() -> Graph:
    """Jegou et al., The One Hundred Layers Tiramisu (arXiv 1611.09326), table 2."""
    net = Network("fc-densenet103")
    x = net.conv(net.input(*IMAGE), 48)
    skips = []
    for layers in (4, 5, 7, 10, 12):
        x, _ = _tiramisu_block(net, x, layers)
        skips.append(x)
        x = net.pool(net.conv(net.norm_before(x), x.channels))
    _, new = _tiramisu_block(net, x, 15)
    for layers in (12, 10, 7, 5, 4):
        skip = skips.pop()
        up = net.op("deconv", [new], new.channels, *skip.shape[1:])
        x, new = _tiramisu_block(net, net.concat(skip, up), layers, last=True)
    net.conv(new, 11)
    return net.graph()


def _tiramisu_block(net: Network, x: Value, layers: int, last: bool = False) -> tuple[Value, Value]:
    """(input and new features, new features), each as one tensor."""
    new: list[Value] = []
    for layer in range(layers):
        feature = net.conv(net.norm_before(x), 16)
        new.append(feature)
        if layer + 1 < layers or not last:
            x = net.concat(x, feature)
    return x, net.concat(*new) if last or layers == 15 else new[-1]


def r2plus1d18() -> Graph:
    """Tran et al., A Closer Look at Spatiotemporal Convolutions (arXiv 1711.11248); norms stand alone, as exported."""
    net = Network("r2plus1d-18")
    x = _spatial_temporal(net, net.input(*VIDEO), 45, 64, (1, 2))
    for stage in range(4):
        for block in range(2):
            width, stride = 64 << stage, 2 if stage and not block else 1
            middle = x.channels * width * 27 // (x.channels * 9 + 3 * width)
            y = _spatial_temporal(net, x, middle, width, (stride, stride))
            middle = width * width * 27 // (width * 9 + 3 * width)
            y = _volume(net, net.same("norm", _volume(net, y, middle, 1, 1)), width, 1, 1)
            y = net.same("norm", y)
            x = net.same("add", y, _volume(net, x, width, stride, stride) if stride > 1 else x)
    return _classified(net, x)


def _volume(net: Network, x: Value, channels: int, time: int, space: int) -> Value:
    t, h, w = x.shape[1:]
    return net.op("conv", [x], channels, -(-t // time), -(-h // space), -(-w // space))


def _spatial_temporal(net: Network, x: Value, middle: int, out: int, strides: tuple[int, int]) -> Value:
    """(1, k, k) and (k, 1, 1) convolutions with a norm and an activation after each."""
    x = net.same("norm", _volume(net, x, middle, 1, strides[1]))
    return net.same("norm", _volume(net, x, out, strides[0], 1))


def s3d() -> Graph:
    """Xie et al., Rethinking Spatiotemporal Feature Learning (arXiv 1712.04851), over Inception v1."""
    net = Network("s3d")
    x = _spatial_temporal(net, net.input(*VIDEO), 64, 64, (2, 2))
    x = _volume(net, x, 64, 1, 2)
    x = net.same("norm", _volume(net, x, 64, 1, 1))
    x = _volume(net, _spatial_temporal(net, x, 192, 192, (1, 1)), 192, 1, 2)
    for at, (a, b0, b1, c0, c1, d) in enumerate(_INCEPTION):
        if at == 2 or at == 7:
            x = _volume(net, x, x.channels, 2, 2)
        left = net.same("norm", _volume(net, x, a, 1, 1))
        second = _spatial_temporal(net, net.same("norm", _volume(net, x, b0, 1, 1)), b1, b1, (1, 1))
        third = _spatial_temporal(net, net.same("norm", _volume(net, x, c0, 1, 1)), c1, c1, (1, 1))
        pooled = net.same("norm", _volume(net, _volume(net, x, x.channels, 1, 1), d, 1, 1))
        x = net.concat(left, second, third, pooled)
    x = _volume(net, x, x.channels, 1, x.shape[2])
    return _classified(net, net.conv(x, 400))


_INCEPTION = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def fcn_resnet50() -> Graph:
    """Long et al., Fully Convolutional Networks (arXiv 1411.4038), over a dilated ResNet-50 (torchvision)."""
    net = Network("fcn-resnet50")
    x = _resnet(net, net.input(*IMAGE), 1, strides=(1, 2, 1, 1))
    net.op("resize", [net.conv(net.conv(x, 512), 21)], 21, 224, 224)
    return net.graph()


def deeplabv3_resnet50() -> Graph:
    """Chen et al., Rethinking Atrous Convolution (arXiv 1706.05587), over a dilated ResNet-50 (torchvision)."""
    net = Network("deeplabv3-resnet50")
    x = _resnet(net, net.input(*IMAGE), 1, strides=(1, 2, 1, 1))
    branches = [net.conv(x, 256) for _ in range(4)]
    pooled = net.conv(net.op("mean", [x], x.channels, 1, 1), 256)
    branches.append(net.op("resize", [pooled], 256, *x.shape[1:]))
    y = net.conv(net.conv(net.concat(*branches), 256), 256)
    net.op("resize", [net.conv(y, 21)], 21, 224, 224)
    return net.graph()


def lraspp_mobilenet_v3() -> Graph:
    """Howard et al., Searching for MobileNetV3 (arXiv 1905.02244), tables 1 and section 6.4, dilated (torchvision)."""
    net = Network("lraspp-mobilenet-v3")
    x = net.conv(net.input(*IMAGE), 16, 2)
    low = x
    for at, (expanded, out, squeeze, stride) in enumerate(_MOBILENET):
        x = _inverted_residual(net, x, expanded, out, squeeze, stride)
        low = x if at == 5 else low
    high = net.conv(x, 960)
    scale = net.conv(net.op("mean", [high], 960, 1, 1), 128)
    gated = net.same("mul", net.conv(high, 128), scale)
    up = net.op("resize", [gated], 128, *low.shape[1:])
    out = net.same("add", net.conv(low, 21), net.conv(up, 21))
    net.op("resize", [out], 21, 224, 224)
    return net.graph()


_MOBILENET = (
    (16, 16, False, 1),
    (64, 24, False, 2),
    (72, 24, False, 1),
    (72, 40, True, 2),
    (120, 40, True, 1),
    (120, 40, True, 1),
    (240, 80, False, 2),
    (200, 80, False, 1),
    (184, 80, False, 1),
    (184, 80, False, 1),
    (480, 112, True, 1),
    (672, 112, True, 1),
    (672, 160, True, 1),
    (960, 160, True, 1),
    (960, 160, True, 1),
)


def _inverted_residual(net: Network, x: Value, expanded: int, out: int, squeeze: bool, stride: int) -> Value:
    y = x if expanded == x.channels else net.conv(x, expanded)
    y = net.conv(y, expanded, stride, "depthwise")
    if squeeze:
        narrow = net.conv(net.op("mean", [y], expanded, 1, 1), expanded // 4)
        y = net.same("mul", y, net.conv(narrow, expanded))
    y = net.conv(y, out)
    return net.same("add", x, y) if stride == 1 and out == x.channels else y
