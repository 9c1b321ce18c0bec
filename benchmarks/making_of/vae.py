"""Train `fashion_vae`, the VAE of small grey images: `python -m benchmarks.making_of.vae`.

Run the same command again to continue after an interruption.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.features import extract_features, statistics_of
from disa.commands.flags import HelpFormatter
from disa.data.fashion import fashion_mnist
from disa.data.transforms import to_signed, to_uint8
from disa.evaluation.metrics import Statistics, frechet_distance
from disa.generation.images import image_grid
from disa.models.vae import AutoencoderKL, build_vae
from disa.runtime.devices import has_bfloat16, resolve_device
from disa.runtime.files import BUNDLED, atomic_write, write_json
from disa.training.optimization import EMA
from disa.weights.load import load_into, open_checkpoint, save_weights

EMA_RATE = 0.999
SPACES = ("fashion-classifier", "efficientnet-lite0")  # the second at the end only, for it takes minutes


class PatchDiscriminator(nn.Sequential):
    """Tell real patches from restored ones: images [B, 1, H, W] -> one logit per 4×4 pixels [B, 1, H/4, W/4]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )


def build() -> AutoencoderKL:
    """Build the VAE."""
    vae = build_vae("fashion")
    assert isinstance(vae, AutoencoderKL)
    return vae


def pixel_loss(restored: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of pixels and, so that edges count, of the differences between neighbours."""
    error = restored - images
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def discriminator_loss(real: Tensor, restored: Tensor) -> Tensor:
    """Hinge loss of a discriminator's logits."""
    return F.relu(1 - real).mean() + F.relu(1 + restored).mean()


def kl_loss(moments: Tensor) -> Tensor:
    """Divergence of the posterior from a unit Gaussian, in nats per latent number."""
    mean, log_variance = moments.chunk(2, dim=1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


@torch.no_grad()
def initialize(vae: AutoencoderKL) -> None:
    """Keep the signal's variance through all convolutions; residual branches start at 0, the posterior's std at e⁻³."""
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):
            branch = name.endswith(("conv2", "proj_out"))
            nn.init.normal_(layer.weight, std=0.0 if branch else layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.get_parameter("bias"))
    vae.quant_conv.weight[vae.latent_channels :] = 0
    vae.quant_conv.get_parameter("bias")[vae.latent_channels :] = -6


class Training:
    """VAE, discriminator, and what a continued run needs."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.step = args, device, 0
        self.vae = build().to(device)
        initialize(self.vae)
        self.discriminator = PatchDiscriminator().to(device)
        self.ema = EMA(self.vae, EMA_RATE)
        self.optimizers = [
            torch.optim.AdamW(self.vae.parameters(), betas=(0.9, 0.99), weight_decay=0.01),
            torch.optim.AdamW(self.discriminator.parameters(), betas=(0.5, 0.99), weight_decay=0.01),
        ]
        self.path = args.output / "training.pth"

    def state(self) -> dict[str, object]:
        """Collect what a checkpoint holds."""
        return {
            "step": self.step,
            "vae": self.vae.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
        }

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        with atomic_write(self.path) as beside:
            torch.save(self.state(), beside)

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.vae.load_state_dict(state["vae"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"].cpu())

    def learning_rate(self) -> float:
        """Learning rate of this step: a warm-up of 200 steps, then a half cosine down to 0."""
        return self.args.lr * min(self.step / 200, 0.5 + 0.5 * math.cos(math.pi * self.step / self.args.steps))

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16, except on CPUs that lack it."""
        enabled = self.device.type != "cpu" or has_bfloat16()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def advance(self, images: Tensor) -> dict[str, float]:
        """Take one step on images [B, 1, 32, 32]; return the losses."""
        for optimizer, share in zip(self.optimizers, (1, 0.5), strict=True):
            optimizer.param_groups[0]["lr"] = self.learning_rate() * share
        with self.autocast():
            moments = self.vae.moments(images)
            mean, log_variance = moments.float().chunk(2, dim=1)
            latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            restored = self.vae.decode(latents)
        kl = kl_loss(moments.float())
        pixels = restored.detach().float().requires_grad_()
        error = pixel_loss(pixels, images)
        (gradient,) = torch.autograd.grad(error, pixels)
        losses = {"pixels": error.item(), "kl": kl.item()}
        if self.step >= self.args.adversarial_from * self.args.steps:
            # What the discriminator asks of a pixel is brought to a fixed share of what the pixel's error asks.
            with self.autocast():
                wish = -self.discriminator(pixels).float().mean()
            (asked,) = torch.autograd.grad(wish, pixels)
            gradient = gradient + asked * (self.args.adversarial * gradient.norm() / (asked.norm() + 1e-12))
            losses["discriminator"] = self.teach(images, pixels.detach())
        self.optimizers[0].zero_grad()
        torch.autograd.backward([restored, kl * self.args.kl_weight], [gradient.to(restored.dtype), None])
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizers[0].step()
        self.ema.update(self.step)
        self.step += 1
        return losses

    def teach(self, images: Tensor, restored: Tensor) -> float:
        """Take one step of the discriminator."""
        with self.autocast():
            real, fake = self.discriminator(torch.cat([images, restored])).float().chunk(2)
        loss = discriminator_loss(real, fake)
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        return loss.item()


def batches(images: Tensor, size: int, step: int, seed: int) -> Iterator[Tensor]:
    """Yield batches for ever, from the one of `step`; each epoch has an order of its own that depends on the seed."""
    per_epoch = len(images) // size
    while True:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + step // per_epoch))
        for rows in order[: per_epoch * size].view(per_epoch, size)[step % per_epoch :]:
            yield to_signed(images[rows])[:, None]
            step += 1


@torch.no_grad()
def normalize(vae: AutoencoderKL, images: Tensor) -> None:
    """Give the latents of images [N, 1, 32, 32] in [-1, 1] mean 0 per channel and variance 1 over all."""
    latents = torch.cat([vae.encode(batch) for batch in images.split(500)])
    mean, channels = latents.mean((0, 2, 3)), vae.latent_channels
    std = (latents - mean.view(1, -1, 1, 1)).std()
    encoding, decoding = vae.quant_conv, vae.post_quant_conv
    decoding.get_parameter("bias").add_(decoding.weight[:, :, 0, 0] @ mean)
    decoding.weight.mul_(std)
    encoding.get_parameter("bias")[:channels] -= mean
    for parameter in (encoding.weight, encoding.get_parameter("bias")):
        parameter[:channels] /= std
    encoding.get_parameter("bias")[channels:] -= 2 * std.log()


def load_exported(path: Path) -> AutoencoderKL:
    """Load the weights that `export` wrote, in float32."""
    vae = build()
    load_into(vae, open_checkpoint(path), path)
    return vae.eval()


@torch.no_grad()
def restore(vae: AutoencoderKL, images: Tensor, noise: float = 0.0) -> Tensor:
    """Encode and decode uint8 [N, H, W], with Gaussian noise of that deviation on the latents of unit variance."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for batch in images.split(100):
        latents = vae.encode(to_signed(batch)[:, None])
        latents = latents + noise * torch.randn(latents.shape, generator=generator)
        parts.append(to_uint8(vae.decode(latents))[:, 0])
    return torch.cat(parts)


def distance(images: Tensor, extractor: str) -> float:
    """Compute the Fréchet distance of uint8 [N, 32, 32] from the test images."""
    reference = Statistics.load(BUNDLED / f"fashion_test_{extractor}.npz")
    return frechet_distance(statistics_of(extract_features(images, extractor, batch_size=200)), reference)


def export(training: Training, images: Tensor, test_images: Tensor) -> dict[str, float]:
    """Write the averaged weights in float16, what they do to test images, and a picture of 48 above restored ones."""
    folder, ended = training.args.output, training.step == training.args.steps
    training.ema.swap()
    vae = build()
    vae.load_state_dict(training.vae.state_dict())
    training.ema.swap()
    normalize(vae, to_signed(images[:5000])[:, None])
    path = folder / "fashion_vae.safetensors"
    save_weights({name: value.half() for name, value in vae.state_dict().items()}, path)
    vae = load_exported(path)  # as rounded
    restored, noisy = (restore(vae, test_images, noise) for noise in (0.0, 0.1))
    with torch.no_grad():
        log_variance = vae.moments(to_signed(test_images[:500])[:, None]).chunk(2, dim=1)[1]
    measured: dict[str, float] = {
        "step": training.step,
        "mean error of 255": (restored.float() - test_images.float()).abs().mean().item(),
        "mean deviation of the posterior": (0.5 * log_variance).exp().mean().item(),
    }
    for space in SPACES if ended else SPACES[:1]:
        measured[f"{space} distance"] = distance(restored, space)
        measured[f"{space} distance with noise of 0.1 on latents"] = distance(noisy, space)
    write_json(folder / "measured.json", measured)
    rows = [part for i in range(0, 48, 12) for part in (test_images[i : i + 12], restored[i : i + 12])]
    with atomic_write(folder / f"step{training.step:06d}.png") as beside:
        image_grid(torch.cat(rows), 12, scale=4).save(beside)
    return measured


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("fashion_vae"), help="folder to write")
    parser.add_argument("--data_path", default=None, help="folder of Fashion-MNIST's files")
    parser.add_argument("--steps", type=int, default=5000, help="of the whole training")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--kl_weight", type=float, default=1e-2, help="of the divergence per latent number")
    parser.add_argument("--adversarial", type=float, default=0.3, help="gradient of the discriminator, by the pixels'")
    parser.add_argument("--adversarial_from", type=float, default=0.3, help="share of the steps without it")
    parser.add_argument("--save_seconds", type=float, default=120, help="between checkpoints")
    parser.add_argument("--export_steps", type=int, default=2000, help="between exports of weights and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    images, test_images = (fashion_mnist(train, args.data_path)[0] for train in (True, False))
    if not 1 <= args.batch_size <= len(images):
        raise ValueError(f"batch_size is {args.batch_size}; there are {len(images)} images")
    training = Training(args, resolve_device(args.device))
    args.output.mkdir(parents=True, exist_ok=True)
    if training.path.is_file():
        training.load()
        print(f"continuing at step {training.step}")
    saved_at = time.monotonic()
    for batch in batches(images, args.batch_size, training.step, args.seed):
        if training.step >= args.steps:
            break
        losses = training.advance(batch.to(training.device))
        if training.step % 100 == 0:
            told = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"step {training.step} of {args.steps}  {told}", flush=True)
        ended = training.step == args.steps
        if ended or training.step % args.export_steps == 0:
            print(export(training, images, test_images), flush=True)
        if ended or time.monotonic() - saved_at > args.save_seconds:
            training.save()
            saved_at = time.monotonic()


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
