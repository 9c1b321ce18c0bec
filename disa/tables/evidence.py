"""What annealing rests on, measured on a model: three observations, as numbers, a table and a picture.

As AR steps go by, the condition alone says more of a token; tokens vary less given their condition; and the paths from
noise to them are straighter (Zhao et al., "DiSA", 2025).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..acceleration.calibration import follow, observing
from ..annealing import AnnealedModel, Network
from ..runtime.files import atomic_write
from ..solver import get_solver
from . import report


@dataclass(frozen=True)
class StepEvidence:
    """What is observed at one AR step, and standard errors over images.

    Attributes:
        ar_step: counted from 0.
        tokens: how many it samples.
        prediction_error: mean squared error of one evaluation's prediction of a token, from pure noise and the
            condition, over the variance of all tokens that the step samples: 1 is no better than their mean.
        variance: of a token given its condition, summed over channels.
        total_variance: of all tokens that the step samples.
        path_ratio: length of the path from noise to token over the distance of its ends: 1 is a straight line.
    """

    ar_step: int
    tokens: int
    prediction_error: float
    prediction_error_se: float
    variance: float
    variance_se: float
    total_variance: float
    path_ratio: float
    path_ratio_se: float


class Evidence:
    """Observes a `model` while it generates.

    Args:
        model: with a solver for `sampler`.
        steps: diffusion steps at every AR step.
        draws: samples per condition, at least 2.
        seed: of these samples.
    """

    def __init__(self, model: AnnealedModel, sampler: str, steps: int, draws: int, seed: int) -> None:
        self.model, self.solver, self.draws = model, get_solver(model.solvers, sampler), draws
        choose = self.solver.times or model.flow_times
        assert choose is not None  # a model has the one or the other
        self.times = choose(steps)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self._tokens: list[int] = []
        self._measured: list[list[Tensor]] = []  # of each AR step and generation [images, 3]
        self._moments: list[list[Tensor]] = []  # means of tokens and their squares, [images, 2, C]

    def observe(
        self,
        generate: Callable[[Sequence[int]], object],
        images: int,
        batch_size: int,
        progress: Callable[[], object] = lambda: None,
    ) -> list[StepEvidence]:
        """Observe all AR steps of as many images.

        Args:
            generate: makes the images with these ids, with the model and the sampler.
            progress: called after each AR step of each batch.
        """
        for start in range(0, images, batch_size):
            ids = range(start, min(start + batch_size, images))
            with observing(self.model, [self.times], partial(self._sample, len(ids), progress)):
                generate(ids)
        return [self._summary(step) for step in range(len(self._tokens))]

    def _sample(
        self,
        batch: int,
        progress: Callable[[], object],
        step: int,
        network: Network,
        tokens: int,
        channels: int,
        temperature: float,
    ) -> Tensor:
        """Measure one AR step; return one of its samples [B, T, C]."""
        flow = self.solver.times is None
        times = sorted(self.times, reverse=True)[: len(self.times) - flow]  # without the data's
        samples, predictions = [], []
        for _ in range(self.draws):
            size = (self.solver.draws(self.times), batch, tokens, channels)
            noise = torch.randn(size, generator=self.generator, device=self.generator.device)
            samples.append(self.solver.solve(network, noise, self.times, temperature).float())
            predictions.append(follow(network, noise[0], times[:1]).points[-1])
        path = follow(network, noise[0], times)
        drawn, predicted = torch.stack(samples), torch.stack(predictions).mean(0)  # [draws, B, T, C] and [B, T, C]
        # In the coordinates of a flow, x / (alpha + sigma), a token that its condition determines has a straight path
        # in all families.
        sums = path.scale if flow else path.scale * (1 + path.u)  # of alpha and sigma
        points = torch.stack([point / one for point, one in zip(path.points, sums.tolist(), strict=True)])
        length = points.diff(dim=0).norm(dim=-1).sum(0)
        measured = (
            (drawn - predicted).square().sum(-1).mean((0, 2)),
            drawn.var(0).sum(-1).mean(1),
            (length / (points[-1] - points[0]).norm(dim=-1)).mean(1),
        )
        if step == len(self._tokens):
            self._tokens.append(tokens)
            self._measured.append([])
            self._moments.append([])
        self._measured[step].append(torch.stack(measured, dim=-1).double().cpu())
        self._moments[step].append(torch.stack([drawn, drawn.square()]).double().mean((1, 3)).transpose(0, 1).cpu())
        progress()
        return drawn[0]

    def _summary(self, step: int) -> StepEvidence:
        measured, (mean, square) = torch.cat(self._measured[step]), torch.cat(self._moments[step]).mean(0)
        total = (square - mean.square()).sum().item()
        error, variance, ratio = measured.mean(0).tolist()
        error_se, variance_se, ratio_se = (measured.std(0) / len(measured) ** 0.5).tolist()
        errors = error / total, error_se / total
        return StepEvidence(step, self._tokens[step], *errors, variance, variance_se, total, ratio, ratio_se)


def write_evidence(steps: Sequence[StepEvidence], settings: Mapping[str, object], folder: Path) -> str:
    """Write `evidence.json`, `evidence.md` and `evidence.png`; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [dataclasses.asdict(one) for one in steps]
    table = report.table(records, COLUMNS)
    report.write_text(folder / "evidence.json", json.dumps({**settings, "steps": records}, indent=1) + "\n")
    report.write_text(folder / "evidence.md", f"{table}\n")
    with atomic_write(folder / "evidence.png") as beside:
        report.plot_evidence(records).savefig(beside, dpi=160)
    return table


_two, _three = report.decimals(2), report.decimals(3)
COLUMNS: report.Columns[Mapping[str, object]] = (
    report.column("ar_step", "AR step"),
    report.column("tokens", "tokens"),
    report.column("prediction_error", "error of one evaluation", _three),
    report.column("prediction_error_se", "±", _three),
    report.column("variance", "variance given the condition", _two),
    report.column("variance_se", "±", _two),
    report.column("total_variance", "of all tokens", _two),
    report.column("path_ratio", "path over distance", _three),
    report.column("path_ratio_se", "±", _three),
)
