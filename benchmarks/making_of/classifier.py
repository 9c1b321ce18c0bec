"""Train the Fashion-MNIST classifier that comes with the package: `python -m benchmarks.making_of.classifier`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from disa.commands.flags import HelpFormatter
from disa.data.fashion import fashion_mnist
from disa.data.transforms import to_signed
from disa.evaluation.classifier import FashionClassifier
from disa.runtime.devices import resolve_device
from disa.runtime.files import atomic_write


def augment(images: Tensor) -> Tensor:
    """Move images [B, 1, H, W] by up to two pixels, and mirror half of them."""
    shift = torch.randint(-2, 3, (2,)).tolist()
    images = images.roll(shift, dims=(2, 3))  # the border is black, so nothing enters from the other side
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images.flip(-1), images)


@torch.no_grad()
def accuracy(model: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    """Compute the share of images [N, 1, 32, 32] in [-1, 1] that are classified as their label."""
    model.eval()
    hits = sum(
        int((model(batch)[1].argmax(1) == wanted).sum())
        for batch, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fashion_classifier.safetensors"), help="where the weights go")
    parser.add_argument("--data_path", default=None, help="folder of Fashion-MNIST's files")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    torch.manual_seed(args.seed)
    (images, labels), (test_images, test_labels) = (fashion_mnist(train, args.data_path) for train in (True, False))
    images, test_images = (to_signed(pixels)[:, None].to(device) for pixels in (images, test_images))
    labels, test_labels = labels.to(device), test_labels.to(device)
    model = FashionClassifier().to(device)
    steps = args.epochs * (len(images) // args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    with tqdm(total=steps * args.batch_size, unit="img", unit_scale=True, desc="training") as bar:
        for epoch in range(args.epochs):
            model.train()
            for rows in torch.randperm(len(images), device=device)[: steps // args.epochs * args.batch_size].view(
                -1, args.batch_size
            ):
                loss = F.cross_entropy(model(augment(images[rows]))[1], labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                plan.step()
                bar.update(args.batch_size)
            bar.set_postfix(epoch=epoch + 1, test_accuracy=f"{accuracy(model, test_images, test_labels):.4f}")
    score = accuracy(model, test_images, test_labels)
    with atomic_write(args.out) as beside:
        save_file(
            model.cpu().state_dict(),
            beside,
            metadata={"test_accuracy": f"{score:.4f}", "epochs": str(args.epochs), "seed": str(args.seed)},
        )
    print(f"accuracy on the 10,000 test images: {score:.4f}; weights in {args.out}")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
