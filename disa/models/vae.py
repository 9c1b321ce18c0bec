"""VAEs: images in [-1, 1] to unit-variance latents, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation over all pixels of Fashion-MNIST's training images, padded to 32×32 and mapped to [-1, 1].
FASHION_MEAN, FASHION_STD = -0.5620, 0.6636


# Latents of KL-16 times this have unit variance on ImageNet; every published model was trained on such latents.
KL16_SCALE = 0.2325
KL16_WIDTHS = (128, 128, 256, 256, 512)

# Autoencoders work on this many images at a time: more are not faster, and KL-16 needs 160 MiB for one of 256×256.
SLICE = 32
# Tensors of the largest size that are alive at once, in float32 as norms give them: five, and one for convolutions.
LARGEST_ALIVE, ITEM_BYTES = 6, 4
INDEXABLE = 2**31 - 1  # elements of a tensor that 32-bit indices reach; beyond, kernels fail or are wrong


class SpaceToDepth(nn.Module):
    """Lossless stand-in for small images: each block of `stride`×`stride` pixels becomes the channels of one latent.

    Args:
        stride: side of a block.
        mean, std: of the data's pixels, so that latents have unit variance.
    """

    image_channels = 1

    def __init__(self, stride: int = 4, mean: float = FASHION_MEAN, std: float = FASHION_STD) -> None:
        super().__init__()
        self.stride, self.latent_channels, self.mean, self.std = stride, stride**2, mean, std

    def extra_repr(self) -> str:
        return f"stride={self.stride}, mean={self.mean}, std={self.std}"

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> latents [B, C · stride², H / stride, W / stride]."""
        return F.pixel_unshuffle((images - self.mean) / self.std, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C · stride², h, w] -> images [B, C, h · stride, w · stride] in [-1, 1]."""
        return (F.pixel_shuffle(latents, self.stride) * self.std + self.mean).clamp(-1, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # [B, 1, HW, C]
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(out)


class Middle(nn.Module):
    """The lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, and the step to the next one."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        blocks: int,
        *,
        attention: bool = False,
        resample: tuple[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks if attention else 0))
        if resample:
            self.add_module(*resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Downsample(nn.Module):
    """Half the resolution; padded to the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution, by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Images [B, image channels, H, W] -> moments before `quant_conv` [B, 2C, h, w]."""

    def __init__(self, widths: tuple[int, ...], blocks: int, image_channels: int, latent_channels: int) -> None:
        super().__init__()
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                blocks,
                attention=i == lowest,
                resample=("downsample", Downsample(width)) if i < lowest else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents after `post_quant_conv` [B, C, h, w] -> images [B, image channels, H, W]."""

    def __init__(self, widths: tuple[int, ...], blocks: int, image_channels: int, latent_channels: int) -> None:
        super().__init__()
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # Numbered from the highest resolution, run from the lowest.
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, lowest)],
                width,
                blocks + 1,
                resample=("upsample", Upsample(width)) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], image_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def slice_rows(elements: int, free_bytes: int | None) -> int:
    """Choose how many images to work on at a time, at least one.

    Args:
        elements: of the largest tensor, per image.
        free_bytes: of the device's memory; None if they are not known.
    """
    rows = min(SLICE, INDEXABLE // elements)
    if free_bytes is not None:
        rows = min(rows, free_bytes // (LARGEST_ALIVE * ITEM_BYTES * elements))
    return max(rows, 1)


def tile_starts(length: int, limit: int) -> tuple[list[int], int]:
    """Choose where tiles of at most `limit` begin that cover `length`, evenly, and how long each is.

    Neighbours share a quarter of `limit` or more, which is at least 2.
    """
    size = min(length, limit)
    steps = -(-(length - size) // (size - max(size // 4, 1))) if length > size else 0
    return [round(i * (length - size) / max(steps, 1)) for i in range(steps + 1)], size


def join_tiles(tiles: Sequence[Tensor], starts: Sequence[int], dim: int) -> Tensor:
    """Join tiles along `dim`, where each begins at its start; where it overlaps those before, they fade linearly."""
    whole = tiles[0]
    for tile, start in zip(tiles[1:], starts[1:], strict=True):
        before, fading = whole.split((start, whole.shape[dim] - start), dim)
        overlap = fading.shape[dim]
        ramp = torch.arange(1, overlap + 1, device=tile.device, dtype=tile.dtype) / (overlap + 1)
        shape = [overlap if i == dim else 1 for i in range(tile.dim())]
        growing, after = tile.split((overlap, tile.shape[dim] - overlap), dim)
        whole = torch.cat([before, torch.lerp(fading, growing, ramp.view(shape)), after], dim)
    return whole


def free_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory that can be allocated; None for other devices, and where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later tensors
    return torch.cuda.mem_get_info(device)[0] + held


class AutoencoderKL(nn.Module):
    """A VAE of convolutions; by default KL-16, that of all published models (Rombach et al. 2022; Li et al. 2024).

    KL-16's parameter names are as released.

    Args:
        latent_channels: channels of the latents.
        widths: channels per resolution, the highest first; multiples of 4, those above 128 of 32.
        blocks: residual blocks per resolution in the encoder; the decoder has one more.
        image_channels: 3 for colour, 1 for grey.
        scale: brings latents to unit variance.

    Attributes:
        tile: None, or the side, in pixels, of the overlapping tiles that images are encoded and decoded in. Memory then
            depends on the tile, not on the image. Norms and attention see one tile, which changes images a little.
    """

    tile: int | None = None

    def __init__(
        self,
        latent_channels: int = 16,
        widths: tuple[int, ...] = KL16_WIDTHS,
        *,
        blocks: int = 2,
        image_channels: int = 3,
        scale: float = KL16_SCALE,
    ) -> None:
        super().__init__()
        self.latent_channels, self.image_channels, self.scale = latent_channels, image_channels, scale
        self.widths = widths
        self.stride = 2 ** (len(widths) - 1)  # pixels per latent, along a side
        self.encoder = Encoder(widths, blocks, image_channels, latent_channels)
        self.decoder = Decoder(widths, blocks, image_channels, latent_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log variance of the posterior, one behind the other: [B, 3, H, W] -> [B, 2C, h, w]."""
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images are {height}×{width}; their sides must be multiples of {self.stride}")
        return self._in_tiles(lambda part: self.quant_conv(self.encoder(part)), images, self.stride, 1)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w]: the posterior's mean, with `noise` a sample."""
        return sample_moments(self.moments(images), noise, self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W], in [-1, 1] up to the network's overshoot."""
        return self._in_tiles(
            lambda part: self.decoder(self.post_quant_conv(part)), latents / self.scale, 1, self.stride
        )

    def _in_tiles(self, network: Callable[[Tensor], Tensor], inputs: Tensor, grain: int, out_grain: int) -> Tensor:
        """Apply `network` to tiles of `inputs`; a latent is `grain` inputs and `out_grain` outputs along each side."""
        rows, columns = (side // grain for side in inputs.shape[2:])
        limit = max(rows, columns) if self.tile is None else self.tile // self.stride
        (tops, high), (lefts, wide) = tile_starts(rows, limit), tile_starts(columns, limit)
        strips = []
        for strip in (inputs[:, :, top * grain : (top + high) * grain] for top in tops):
            parts = (strip[..., left * grain : (left + wide) * grain] for left in lefts)
            tiles = [self._in_slices(network, part, high * self.stride, wide * self.stride) for part in parts]
            strips.append(join_tiles(tiles, [left * out_grain for left in lefts], 3))
        return join_tiles(strips, [top * out_grain for top in tops], 2)

    def _in_slices(self, network: Callable[[Tensor], Tensor], inputs: Tensor, height: int, width: int) -> Tensor:
        """Apply `network` to slices of `inputs`, whose images are `height`×`width`: the same outputs in less memory."""
        # Where resolutions meet, a tensor has the channels of either; downsampling pads by one row and one column.
        sizes = [
            max(self.widths[i : i + 2]) * (height // 2**i + 1) * (width // 2**i + 1) for i in range(len(self.widths))
        ]
        sizes.append((height * width // self.stride**2) ** 2)  # attention: each position with each
        parts = inputs.split(slice_rows(max(sizes), free_memory(inputs.device)))
        return torch.cat([network(part) for part in parts]) if len(parts) > 1 else network(inputs)

    def latent_shape(self, images: Tensor) -> tuple[int, int, int, int]:
        """Shape of the latents of `images`."""
        batch, _, height, width = images.shape
        return batch, self.latent_channels, height // self.stride, width // self.stride


VAE = SpaceToDepth | AutoencoderKL

# Name -> class and arguments. KL-16's weights are fetched; those of `fashion`, for grey images of 32×32, come with the
# package, and hold the scale of their latents.
VAES: dict[str, tuple[type[SpaceToDepth] | type[AutoencoderKL], dict[str, Any]]] = {  # Any: of several types
    "kl16": (AutoencoderKL, {}),
    "fashion": (
        AutoencoderKL,
        dict(latent_channels=8, widths=(16, 32, 64), blocks=1, image_channels=1, scale=1.0),
    ),
    "space_to_depth": (SpaceToDepth, {}),
}


def build_vae(name: str) -> VAE:
    """Build the VAE called `name`, with random weights; raise ValueError if the name is unknown."""
    if name not in VAES:
        raise ValueError(f"vae is {name!r}; allowed are {', '.join(VAES)}")
    build, arguments = VAES[name]
    return build(**arguments)


def sample_moments(moments: Tensor, noise: Tensor | None, scale: float = KL16_SCALE) -> Tensor:
    """Unit-variance latents from moments [B, 2C, h, w]: the mean, or with `noise` [B, C, h, w] a sample."""
    mean, log_variance = moments.chunk(2, dim=1)
    if noise is not None:
        mean = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
    return mean * scale
