"""Vision models: ViT-base, ResNet-50, MobileNetV2, EfficientNet-b0, ConvNeXt-tiny and DenseNet-121 at 224 x 224,
and a U-Net at two sizes.

Images are f32[B, 3, H, W]; the batch is symbolic, the image size fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.models.densenet import densenet121
from tests.models.entry import Entry, calibrate_batch_norm, images, randomise
from tests.models.text import BATCH
from torch import nn

IMAGES = {0: BATCH}


class Classes(nn.Module):
    """A transformers image classifier as `f32[B, 3, H, W] -> f32[B, classes]`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.classifier(pixel_values=pixels).logits
        return scores


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__(
            nn.Conv2d(channels, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """A U-Net of four levels: the decoder concatenates what the encoder saw at the same resolution.

    The first upsampling steps are transposed convolutions and the last one is bilinear, the two ways in common use.
    """

    def __init__(self, channels: int = 3, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        self.down1 = DoubleConv(channels, width)
        self.down2 = DoubleConv(width, 2 * width)
        self.down3 = DoubleConv(2 * width, 4 * width)
        self.bottom = DoubleConv(4 * width, 8 * width)
        self.pool = nn.MaxPool2d(2)
        self.up3 = nn.ConvTranspose2d(8 * width, 4 * width, 2, stride=2)
        self.merge3 = DoubleConv(8 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = DoubleConv(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.merge1 = DoubleConv(3 * width, width)
        self.classes = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class scores per pixel, f32[B, classes, H, W]; H and W are multiples of 8."""
        full = self.down1(pixels)
        half = self.down2(self.pool(full))
        quarter = self.down3(self.pool(half))
        low = self.bottom(self.pool(quarter))
        low = self.merge3(torch.cat([self.up3(low), quarter], dim=1))
        low = self.merge2(torch.cat([self.up2(low), half], dim=1))
        low = self.merge1(torch.cat([self.up1(low), full], dim=1))
        scores: torch.Tensor = self.classes(low)
        return scores


def _calibrated(model: nn.Module, seed: int, size: int = 224) -> nn.Module:
    """In eval mode, with batch norms fitted to random images of that size."""
    model.eval()
    calibrate_batch_norm(model, (images(8, size, seed),))
    return model


def _finish(model: nn.Module, seed: int, size: int = 224) -> nn.Module:
    """The model with seeded weights and fitted batch norms."""
    randomise(model, seed)
    return _calibrated(model, seed, size)


def make_vit_base() -> nn.Module:
    """ViT-base, 12 layers of width 768 over 16 x 16 patches, 1000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    return _finish(Classes(ViTForImageClassification(ViTConfig(num_labels=1000, attn_implementation="sdpa"))), seed=11)


def make_resnet50() -> nn.Module:
    """ResNet-50 with 1000 classes; the default configuration of transformers is this one."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    randomise(model, seed=12)
    with torch.no_grad():
        # As in trained networks a block adds little to its input; at full strength each block of a random network
        # magnifies rounding errors, by a factor of a hundred over all of them.
        for stage in model.resnet.encoder.stages:
            for block in stage.layers:
                block.layer[-1].normalization.weight.mul_(0.3)
    return _calibrated(Classes(model), seed=12)


def make_mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0 with 1001 classes, padded as TensorFlow does (asymmetric)."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return _finish(Classes(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1001))), seed=13)


def make_efficientnet_b0() -> nn.Module:
    """EfficientNet-b0 with 1000 classes: depthwise convolutions, squeeze and excite, SiLU."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        dropout_rate=0.2,
        hidden_dim=1280,
        num_labels=1000,
    )
    model = EfficientNetForImageClassification(config)
    # The pooling of transformers is a window of 1280 x 1280 that ends with the image. This is the same, and OpenVINO takes it.
    model.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return _finish(Classes(model), seed=14)


def make_convnext_tiny() -> nn.Module:
    """ConvNeXt-tiny with 1000 classes: 7 x 7 depthwise convolutions, layer norm over channels, GELU."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _finish(Classes(ConvNextForImageClassification(ConvNextConfig(num_labels=1000))), seed=15)


def make_densenet121() -> nn.Module:
    """DenseNet-121 with 1000 classes."""
    return _finish(densenet121(), seed=17)


def make_unet_256() -> nn.Module:
    """The U-Net above, for images of 256 x 256."""
    return _finish(UNet(), seed=16, size=256)


def make_unet() -> nn.Module:
    """The U-Net above, for images of 96 x 96."""
    return _finish(UNet(), seed=16, size=96)


def _images(size: int) -> Callable[[int, int, int], tuple[torch.Tensor, ...]]:
    def inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Random images f32[batch, 3, size, size]; `length` is not used."""
        return (images(batch, size, seed),)

    return inputs


def _entry(name: str, make: Callable[[], nn.Module], size: int = 224) -> Entry:
    return Entry(name, make, _images(size), (IMAGES,), (size,), ("scores",), "vision")


ENTRIES = (
    _entry("vit_base", make_vit_base),
    _entry("resnet50", make_resnet50),
    _entry("mobilenet_v2", make_mobilenet_v2),
    _entry("efficientnet_b0", make_efficientnet_b0),
    _entry("convnext_tiny", make_convnext_tiny),
    _entry("densenet121", make_densenet121),
    _entry("unet", make_unet, 96),
    _entry("unet_256", make_unet_256, 256),
)
