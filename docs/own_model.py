"""Diffusion step annealing in a model that is not ours: the lines between the marks are all it takes.

The model is a toy whose answer is known. Each token [B, 1, C] refines the one before,
x[i] = x[i-1] + spread(i) · normal, with less and less left to refine. The backbone is that mean, the head the exact
denoiser of that Gaussian.
Run: `python docs/own_model.py`.
"""

import math

import torch

from disa import Annealing, ImageNoise, StepSchedule
from disa.diffusion import SOLVERS, GaussianProcess

CHANNELS, AR_STEPS = 4, 32
ALPHA_BAR = GaussianProcess().alpha_bar
evaluations = 0


def spread(step: int) -> float:
    """Standard deviation of a token given the ones before."""
    return 1 / (1 + step)


def backbone(tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Tokens so far [B, 1 + i, C] -> what the head is told of the next one: its mean [B, 1, C] and its spread."""
    return tokens[:, -1:], spread(tokens.shape[1] - 1)


def head(x: torch.Tensor, t: float, z: tuple[torch.Tensor, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy token x [B, 1, C] at timestep t, given its condition z -> (epsilon, v), as a trained head predicts them."""
    global evaluations
    evaluations += 1
    alpha_bar, (mean, deviation) = ALPHA_BAR[int(t)], z
    epsilon = math.sqrt(1 - alpha_bar) / (alpha_bar * deviation**2 + 1 - alpha_bar) * (x - math.sqrt(alpha_bar) * mean)
    return epsilon, torch.zeros_like(x)


def generate(seeds: list[int], schedule: StepSchedule) -> torch.Tensor:
    """Sequences [B, AR_STEPS, C], one a seed."""
    # --- from here
    anneal = Annealing(schedule, SOLVERS["DiSA"], AR_STEPS, ImageNoise(seeds))
    tokens = torch.zeros(len(seeds), 1, CHANNELS)
    for step in range(AR_STEPS):
        z = backbone(tokens)
        new = anneal(step, lambda x, t, z=z: head(x, t, z), tokens=1, channels=CHANNELS)
        tokens = torch.cat([tokens, new], dim=1)
    # --- to here
    return tokens[:, 1:]


def main() -> None:
    """Print, for the full count, for DiSA and for the low count, how many evaluations it takes and what comes out."""
    global evaluations
    for name, schedule in {
        "50 everywhere": StepSchedule(50, 50, "constant"),
        "50 down to 5": StepSchedule(50, 5, "linear"),
        "5 everywhere": StepSchedule(5, 5, "constant"),
    }.items():
        evaluations = 0
        last = generate(list(range(2000)), schedule)[:, -1]
        print(
            f"{name:13}: {evaluations:4} evaluations of the head; standard deviation of the last token {last.std():.3f}"
        )
    print(f"exact: {math.sqrt(sum(spread(step) ** 2 for step in range(AR_STEPS))):.3f}")


if __name__ == "__main__":
    main()
