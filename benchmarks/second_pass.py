"""Whether GtR's frequency weight tells which tokens need more diffusion steps, on a bundled MAR.

"Generation then Reconstruction" (2026) samples the tenth of the last stage's tokens whose condition z has the largest
weight, sum over n ≤ D/2 of |FFT(z)|_n (1 + n / (D/2)), with 50 steps and the others with 20. That pays if these tokens'
sampling errors at few steps are larger. Here the error of a token is the energy distance of samples with few steps from
samples with many. Run from the repository's root: `python -m benchmarks.second_pass --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from scipy.stats import spearmanr
from torch import Tensor

from disa import ImageNoise, load_model
from disa.acceleration.calibration import energy_distance
from disa.commands.flags import HelpFormatter
from disa.diffusion import SOLVERS
from disa.grouping import Grouping
from disa.models.layers import embed_times
from disa.models.mar import MAR, DiffusionHead
from disa.runtime.files import atomic_write
from disa.tables.recipes import bundled_settings
from disa.tables.report import column, decimals, table

COUNTS, MANY = (4, 8, 20), 40
IMAGES, SHARE = 16, 10  # a tenth of the tokens is chosen

COLUMNS = (
    column("steps", "diffusion steps"),
    column("error", "error of all tokens", decimals(4)),
    column("standard_error", "standard error", decimals(4)),
    column("chosen", "of the tenth that the weight chooses", decimals(4)),
    column("weight", "rank correlation with the weight", decimals(2)),
    column("variance", "with the token's variance", decimals(2)),
)


def frequency_weight(z: Tensor) -> Tensor:
    """The weight of each token's condition: [..., D] -> [...]."""
    spectrum = torch.fft.rfft(z, dim=-1).abs()
    return (spectrum * (1 + torch.arange(spectrum.shape[-1]) / (z.shape[-1] // 2))).sum(-1)


def last_conditions(model: MAR) -> tuple[Tensor, float]:
    """The conditions [2 · images, T, D] of the last AR step in GtR's order, and the scale of guidance."""
    seen: list[tuple[Tensor, float]] = []
    bind = DiffusionHead.guided

    def guided(self: DiffusionHead, z: Tensor, times: Any, embedded: Tensor, scale: float, *more: Any) -> Any:
        seen.append((z, scale))
        return bind(self, z, times, embedded, scale, *more)

    sampling = bundled_settings("mar_fashion")["disa"]
    assert sampling.num_iter is not None
    with patch.object(DiffusionHead, "guided", guided):
        model.generate(
            torch.arange(IMAGES) % model.num_classes,
            num_iter=sampling.num_iter,
            schedule=sampling.schedule,
            guidance=sampling.guidance,
            grouping=Grouping("gtr", "stages"),
            noise=ImageNoise(range(IMAGES)),
        )
    return seen[-1]


@torch.no_grad()
def sample(head: DiffusionHead, z: Tensor, scale: float, count: int, draws: int, seed: int) -> Tensor:
    """Draw tokens [draws, C] of one condition, z [2, D] of both branches, with `count` steps."""
    solver = SOLVERS["DiSA"]
    assert solver.times is not None
    times = solver.times(count)
    embedded = embed_times(head.net.time_embed, [times], z.device)[0]
    network = head.guided(z[:, None].expand(-1, draws, -1), times, embedded, scale)
    noise = torch.randn(
        solver.draws(times), 1, draws, head.channels, generator=torch.Generator().manual_seed(seed), device="cpu"
    )
    samples: Tensor = solver.solve(network, noise, times)[0]
    return samples.double()


def measure(model: MAR, conditions: int, draws: int) -> tuple[list[dict[str, float]], float]:
    """Rows of the table, and how much of the choice stays when the channels of z are put in another order."""
    z, scale = last_conditions(model)
    both = torch.stack(z.chunk(2), dim=2).flatten(0, 1)  # [B · T, 2, D]
    generator = torch.Generator().manual_seed(0)
    picked = both[torch.randperm(len(both), generator=generator)[:conditions]]
    weight, variance, errors = frequency_weight(picked[:, 0]), [], []
    for i, one in enumerate(picked):
        many = sample(model.diffloss, one, scale, MANY, draws, i)
        variance.append(many.var(0).sum().item())
        few = (sample(model.diffloss, one, scale, count, draws, count * conditions + i) for count in COUNTS)
        errors.append([energy_distance(samples, many).item() for samples in few])
    rows = []
    chosen = weight >= weight.quantile(1 - 1 / SHARE)
    for count, error in zip(COUNTS, torch.tensor(errors).T, strict=True):
        rows.append(
            {
                "steps": count,
                "error": error.mean().item(),
                "standard_error": error.std().item() / len(error) ** 0.5,
                "chosen": error[chosen].mean().item(),
                "weight": float(spearmanr(weight, error).statistic),
                "variance": float(spearmanr(variance, error).statistic),
            }
        )
    tokens = z.chunk(2)[0]
    other = tokens[..., torch.randperm(tokens.shape[-1], generator=generator)]
    top, top_other = (frequency_weight(one).topk(tokens.shape[1] // SHARE).indices for one in (tokens, other))
    stays = (top[..., None] == top_other[:, None]).any(-1).float().mean().item()
    return rows, stays


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.second_pass", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--conditions", type=int, default=64, help="tokens of the last AR step")
    parser.add_argument("--draws", type=int, default=768, help="samples of each")
    parser.add_argument("--results", type=Path, default=Path("out/second_pass"), help="folder of the table")
    args = parser.parse_args()
    model = load_model("mar_fashion")
    assert isinstance(model, MAR)
    rows, stays = measure(model, args.conditions, args.draws)
    said = (
        f"Written by `python -m benchmarks.second_pass`: {args.conditions} tokens of the last AR step, {args.draws} "
        f"samples of each. The error is the energy distance from samples with {MANY} steps. A useful weight has a "
        "positive rank correlation with it. The weight depends on the order of the channels of z, which has no "
        f"meaning: in another order, {100 * stays:.0f} % of the chosen tenth stay ({100 / SHARE:.0f} % by chance)."
    )
    text = f"# GtR's second pass on mar_fashion\n\n{textwrap.fill(said, 120)}\n\n{table(rows, COLUMNS)}\n"
    args.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.results / "second_pass.md") as beside:
        beside.write_text(text)
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
