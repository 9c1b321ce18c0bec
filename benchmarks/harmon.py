"""harmon_fashion with and without diffusion step annealing: do images show what prompts say, answers what images show?

The classifier that comes with the package looks at images of prompts from the captions' grammar; questions are asked
about Fashion-MNIST's test images. Settings take turns batch by batch, so that whatever else the machine does affects
their times alike. Run from the repository's root: `python -m benchmarks.harmon --results benchmarks/results --pictures
assets`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.launches import wrap
from benchmarks.settings import compared
from disa import load_model
from disa.commands.flags import HelpFormatter
from disa.data.captions import grammar_prompts
from disa.data.fashion import FASHION_CLASSES, fashion_mnist
from disa.data.transforms import to_signed, to_uint8
from disa.evaluation.extractors import load_classifier
from disa.evaluation.run import versions
from disa.generation.generators import PromptGenerator
from disa.generation.images import image_grid
from disa.models.harmon import Harmon
from disa.runtime.devices import describe_device, resolve_device, synchronize
from disa.runtime.files import atomic_write, write_json
from disa.tables.report import column, decimals, percent, table, times

COLUMNS = (
    column("setting", "setting"),
    column("ar_steps", "AR steps"),
    column("nfe", "NFE", decimals(0)),
    column("accuracy", "class accuracy", percent),
    column("seconds", "seconds per image", decimals(3)),
    column("speed_up", "speed-up", times),
)


@torch.no_grad()
def naming_accuracy(model: Harmon, count: int, batch: int, device: torch.device) -> float:
    """Share of test images whose class the answer to "What is this?" names."""
    assert model.text is not None
    images, labels = (part[:count] for part in fashion_mnist(False))
    question = torch.tensor(
        [model.text.question("What is this?", model.image_tokens((model.mar.grid, model.mar.grid)))], device=device
    )
    hits = 0
    for pixels, wanted in zip(tqdm(images.split(batch), desc="asking", unit="batch"), labels.split(batch), strict=True):
        latents = model.vae.encode(to_signed(pixels)[:, None].to(device))
        answers = model.answer(
            latents,
            question.expand(len(pixels), -1),
            model.text.image_token,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=model.text.end_token,
        )
        said = [model.text.decode(answer) for answer in answers]
        hits += sum(
            text.endswith(f" {FASHION_CLASSES[label]}") for text, label in zip(said, wanted.tolist(), strict=True)
        )
    return hits / len(labels)


def write_picture(path: Path, prompts: Sequence[str], images: dict[str, torch.Tensor]) -> None:
    """Write images in a column per prompt and a row per setting."""
    columns = min(10, len(prompts))
    figure = Figure(figsize=(13, 1.25 * len(images) + 1.3), layout="constrained")
    axes = figure.subplots(len(images), columns)
    for row, (name, pictures) in zip(axes, images.items(), strict=True):
        for i, ax in enumerate(row):
            ax.imshow(image_grid(pictures[i : i + 1], scale=4))
            ax.set_xticks([]), ax.set_yticks([])
            if i == 0:
                ax.set_ylabel(name, fontsize=8)
    for ax, prompt in zip(axes[-1], prompts, strict=False):
        ax.set_xlabel("\n".join(prompt[j : j + 18] for j in range(0, len(prompt), 18)), fontsize=7)
    with atomic_write(path) as beside:
        figure.savefig(beside, dpi=160)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.harmon", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000, help="prompts to generate images of")
    parser.add_argument("--questions", type=int, default=10000, help="test images to ask about")
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time")
    parser.add_argument("--results", type=Path, default=Path("out/harmon"), help="folder of the table")
    parser.add_argument("--pictures", type=Path, default=Path("out/harmon"), help="folder of the picture")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    model, classifier = load_model("harmon_fashion").to(device), load_classifier().to(device)
    prompts, labels = grammar_prompts(args.prompts)
    assert isinstance(model, Harmon)
    shape = (model.mar.grid, model.mar.grid)
    generators = {
        name: PromptGenerator(model, prompts, recipe.sampling, device, image_shape=shape)
        for name, recipe in compared("harmon_fashion").items()
    }
    images: dict[str, list[torch.Tensor]] = {name: [] for name in generators}
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    batches = torch.arange(args.prompts).split(args.batch_size)
    with tqdm(total=args.prompts * len(generators), unit="img", desc="generating") as bar:
        for ids in batches:
            for name, generator in generators.items():
                synchronize(device)
                start = time.perf_counter()
                images[name].append(to_uint8(generator(ids.tolist())).cpu())
                synchronize(device)
                seconds[name].append((time.perf_counter() - start) / len(ids))
                bar.update(len(ids))
    rows: list[dict[str, Any]] = []
    generated = {name: torch.cat(parts) for name, parts in images.items()}
    for name, generator in generators.items():
        with torch.no_grad():
            seen = torch.cat(
                [classifier((part / 127.5 - 1).to(device))[1].argmax(1).cpu() for part in generated[name].split(500)]
            )
        rows.append({"setting": name, "ar_steps": len(generator.nfe_per_step), "nfe": generator.nfe})
        rows[-1] |= {"accuracy": float((seen == labels).float().mean()), "seconds": statistics.median(seconds[name])}
        rows[-1]["speed_up"] = rows[0]["seconds"] / rows[-1]["seconds"]
    naming = naming_accuracy(model, args.questions, 200, device)
    machine = f"{describe_device(device)}, torch {versions()['torch']}"
    about = wrap(
        f"Written by `python -m benchmarks.harmon` on {machine}: {args.prompts:,} prompts, the same image seeds; "
        f"times are medians over batches of {args.batch_size}, the settings taking turns."
    )
    text = (
        f"# harmon_fashion with and without DiSA\n\n{about}\n\n{table(rows, COLUMNS)}\n\n"
        f'Image to text: the answer to "What is this?" names the class of {100 * naming:.1f} % of '
        f"{args.questions:,} test images.\n"
    )
    args.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.results / "harmon_fashion.md") as beside:
        beside.write_text(text)
    write_json(
        args.results / "harmon_fashion.json",
        {"text_to_image": rows, "naming": naming, "device": describe_device(device), "versions": versions()},
    )
    args.pictures.mkdir(parents=True, exist_ok=True)
    write_picture(args.pictures / "harmon_fashion_prompts.png", prompts, generated)
    print(text)


if __name__ == "__main__":
    from disa.commands.exit import run

    torch.set_num_threads(1)
    run(main)
