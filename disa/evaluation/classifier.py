"""A small classifier of Fashion-MNIST: whether an image shows its label, and a feature space of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _level(channels: int, out_channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs in (channels, out_channels):
        layers += [nn.Conv2d(inputs, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.SiLU()]
    return [*layers, nn.MaxPool2d(2)]


class FashionClassifier(nn.Module):
    """Three levels of convolutions; 128 features, 10 logits."""

    features = 128

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(*_level(1, 24), *_level(24, 48), *_level(48, 96))
        self.to_features = nn.Linear(96 * 4 * 4, self.features)
        self.to_logits = nn.Linear(self.features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images [B, 1, 32, 32] in [-1, 1]: features [B, 128], logits [B, 10]."""
        features = F.silu(self.to_features(F.dropout(self.body(images).flatten(1), 0.2, self.training)))
        return features, self.to_logits(features)
