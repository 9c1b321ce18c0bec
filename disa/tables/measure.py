"""Measure recipes: load their weights, choose what to measure, and keep what is known."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ..acceleration import Acceleration
from ..annealing import AnnealedModel
from ..data.captions import grammar_prompts
from ..data.text import TextTokenizer
from ..evaluation.extractors import EXTRACTORS, Extractor
from ..evaluation.plan import MetricSpec, plan_metrics
from ..evaluation.results import Results
from ..evaluation.run import evaluate
from ..generation.generators import Generator, LabelGenerator, PromptGenerator, choose_attention, image_shape
from ..models import MODELS
from ..models.harmon import Harmon
from ..runtime import distributed
from ..runtime.devices import resolve_dtype
from ..weights.fetch import CATALOGUE, find_published
from ..weights.load import find_model, load_bundled_vae, load_model, load_vae
from .recipes import Recipe

Make = Callable[[Recipe], Generator]  # of any recipe with the weights that were loaded


def load(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Make:
    """Load the weights of `recipe`, ready to generate what any recipe with the same asks for."""
    model = load_weights(recipe).to(device, dtype)
    if isinstance(model, Harmon):
        choose_attention(model.llm, device)
        return lambda recipe: prompt_generator(model, recipe, device)
    vae = load_bundled_vae(recipe.model) if recipe.bundled else load_vae(find_published("kl16"))
    vae.to(device, dtype)
    return lambda recipe: LabelGenerator(model, vae, recipe.sampling, device)


def check_weights(recipe: Recipe) -> Path:
    """Return the file of the weights of `recipe`; raise FileNotFoundError if there is none."""
    path = find_published(recipe.checkpoint) if recipe.checkpoint in CATALOGUE else recipe.checkpoint
    return find_model(recipe.model, path)


def load_weights(recipe: Recipe) -> AnnealedModel:
    """Load the model of `recipe`, with its text tokenizer."""
    model = load_model(recipe.model, check_weights(recipe))
    if isinstance(model, Harmon) and recipe.text_tokenizer:
        model.text = TextTokenizer.load(recipe.text_tokenizer)
    return model


def prompt_generator(model: Harmon, recipe: Recipe, device: torch.device) -> PromptGenerator:
    """Make the generator of a recipe of Harmon."""
    shape = image_shape(recipe.image_size, model.vae.stride) if recipe.image_size else (model.mar.grid, model.mar.grid)
    make = partial(PromptGenerator, model, sampling=recipe.sampling, device=device, image_shape=shape)
    if recipe.prompts:
        return make(recipe.prompts, images_per_prompt=-(-recipe.num_images // len(recipe.prompts)))
    prompts, labels = grammar_prompts(recipe.num_images)
    return make(prompts, classes=labels.tolist())


def plan_recipe(
    recipe: Recipe, metrics: str, features: str, reference: str, extractors: Mapping[str, Extractor] = EXTRACTORS
) -> tuple[list[MetricSpec], list[str]]:
    """Choose what to measure, and say what cannot be; a recipe's own prompts have no images or classes to compare with.

    Raises a ValueError as `plan_metrics`, and if there would be no Fréchet distance, though one is wanted.
    """
    if recipe.prompts:
        return [], []
    if reference == "auto" and not recipe.bundled:
        with contextlib.suppress(FileNotFoundError):
            reference = str(find_published("adm_in256_stats"))
    specs, left_out = plan_metrics(metrics, features, reference, bundled=recipe.bundled, extractors=extractors)
    if left_out and not any("fid" in spec.metrics for spec in specs):
        raise ValueError(f"{'; '.join(left_out)}; mend that, or give --metrics none for times alone")
    return specs, left_out


@dataclass(frozen=True)
class Measurements:
    """What is known of recipes, in the folder `out`: results by their names, or why they could not run."""

    out: Path
    device: torch.device
    dtype: str  # or auto
    acceleration: Acceleration = Acceleration()
    save_seconds: float = 120.0  # as for `evaluate`
    results: dict[str, Results] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)  # model -> what this machine cannot measure of it

    def __post_init__(self) -> None:
        resolve_dtype(self.dtype, self.device)  # refuses an unknown one before the work

    def dtype_of(self, recipe: Recipe) -> str:
        """The number type that a recipe's networks compute in."""
        return resolve_dtype(self.dtype, self.device, MODELS[recipe.model].half)

    def folder(self, recipe: Recipe) -> Path:
        """Name the folder of a recipe's results; rows of several tables that ask for the same share it."""
        name = f"{recipe.sampling.name()}-{recipe.num_images}images-{self.dtype_of(recipe)}"
        other = (recipe.checkpoint, tuple(recipe.prompts), recipe.image_size, recipe.text_tokenizer)
        if any(other):
            name += f"-{hashlib.sha256(repr(other).encode()).hexdigest()[:6]}"
        return self.out / recipe.model / name

    def of(self, recipe: Recipe | None) -> Results | None:
        """Return the results of a recipe, if there are any; those of an earlier run do, unless it could not run now."""
        if recipe is None or recipe.name in self.problems:
            return None
        return self.results.get(recipe.name) or Results.read(self.folder(recipe) / "results.json")

    def measure(self, recipe: Recipe, make: Make, specs: Sequence[MetricSpec]) -> None:
        """Evaluate one recipe, or go on with it; every rank calls this."""
        try:
            generator = distributed.on_all(lambda: make(recipe))
            share = -(-recipe.num_images // distributed.world_size())
            for sentence in self.acceleration.apply(
                generator.model, generator.vae, device=self.device, batch_size=recipe.batch_size, images=share
            ):
                distributed.print_main(sentence)
            distributed.print_main(
                f"{len(generator.nfe_per_step)} AR steps, NFE {generator.nfe:,}, {self.dtype_of(recipe)}"
            )
            self.results[recipe.name] = evaluate(
                generator,
                self.folder(recipe),
                specs=specs,
                settings={"model": recipe.model, "dtype": self.dtype_of(recipe)},
                num_images=recipe.num_images,
                batch_size=recipe.batch_size,
                intervals=True,
                save_seconds=self.save_seconds,
            )
        except distributed.USER_ERRORS as error:
            self.problems[recipe.name] = str(error)

    def complaints(self, asked: Sequence[Recipe]) -> list[str]:
        """Say which of `asked` could not run or be measured, and why."""
        rows: dict[str, list[str]] = {}
        for recipe in asked:
            if recipe.name in self.problems:
                rows.setdefault(self.problems[recipe.name], []).append(recipe.label)
        not_run = [f"Not run: {', '.join(labels)}. {_sentence(problem)}" for problem, labels in rows.items()]
        left_out = dict.fromkeys(text for recipe in asked for text in self.left_out.get(recipe.model, ()))
        return [*not_run, *map(_sentence, left_out)]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
