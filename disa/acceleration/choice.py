"""What pays is applied: captured graphs and compiled blocks, once per run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..annealing import AnnealedModel
from .capture import Captured
from .compile import Network, compile_blocks, lacking

MODES = ("auto", "on", "off")
# By the counts of `benchmarks.launches`, at 5 µs each, launches take longer than the kernels of an H100 up to a batch
# of 5 to 14 images, for all class-conditional models.
SMALL_BATCH = 8
# A captured generation costs about four eager ones, and later ones a fifth: it takes some to win.
FEW_BATCHES = 8
# Compiling takes one or two minutes, which a GPU wins back in some thousand images. A CPU does not: the bundled models
# took five times as long with compiled blocks as with packed weights (`disa.runtime.packed`).
MANY_IMAGES = 2_000


@dataclass(frozen=True)
class Acceleration:
    """Whether to compile blocks, and to capture graphs: "auto" where it pays, "on" or "off", else a ValueError."""

    compiled: str = "auto"
    graphs: str = "auto"

    def __post_init__(self) -> None:
        for name, mode in (("compile", self.compiled), ("graphs", self.graphs)):
            if mode not in MODES:
                raise ValueError(f"{name} is {mode!r}; allowed are {', '.join(MODES)}")

    def check(self, device: torch.device) -> None:
        """Refuse what is "on" and impossible on `device` with a ValueError."""
        if self.graphs == "on" and device.type != "cuda":
            raise ValueError(f"graphs needs a CUDA device, and this is {device.type}; use --graphs auto")
        if self.compiled == "on" and (lack := lacking(device)):
            raise ValueError(f"compile needs {lack}, and there is none; use --compile auto")

    def apply(self, model: Network, vae: Network, *, device: torch.device, batch_size: int, images: int) -> list[str]:
        """Change `model` and `vae`, in place, when both are where they stay; again for another batch size.

        Args:
            model: in its final dtype, on `device`.
            vae: decodes its latents; it may be a part of `model`.
            batch_size: images at a time.
            images: images that this rank will make.

        Returns:
            One sentence per thing applied.

        Raises:
            ValueError: as `check`.
        """
        self.check(device)
        said, on_gpu = [], device.type == "cuda"
        # Blocks first: they are compiled when they first run, which is before they are captured.
        pays = on_gpu and images >= MANY_IMAGES and not lacking(device)
        if self.compiled == "on" or (self.compiled == "auto" and pays):
            blocks = compile_blocks(model, vae)
            said.append(f"{blocks} blocks are compiled when they first run")
        pays = on_gpu and batch_size <= SMALL_BATCH and images >= FEW_BATCHES * batch_size
        if self.graphs == "on" or (self.graphs == "auto" and pays):
            captured = Captured()
            for module in model.modules():
                if isinstance(module, AnnealedModel):
                    module.run = captured
            said.append(f"diffusion steps run as CUDA graphs, captured in the first batch of {batch_size}")
        return said
