"""Where scalars are logged: TensorBoard's files in a folder, or Weights & Biases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import SupportsFloat

from .extras import extra
from .files import atomic_write

TRACKERS = ("tensorboard", "wandb")
Scalars = Mapping[str, SupportsFloat]
_RUN = "wandb-run"  # the file of the run's id


def check_tracker(name: str) -> None:
    """Refuse, before the work, a tracker that is unknown (ValueError) or not installed (MissingExtra)."""
    if name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}; allowed are {', '.join(TRACKERS)}")
    if name == "wandb":
        with extra("wandb"):
            import wandb  # noqa: F401


@contextlib.contextmanager
def track(
    name: str, folder: Path, step: int = 0, config: Mapping[str, object] | None = None
) -> Iterator[Callable[[Scalars, int], object]]:
    """Yield a function that logs the scalars of a step; only the main rank calls this.

    Args:
        name: one of TRACKERS. Weights & Biases takes account, project and mode from its environment variables.
        folder: of the log; its name is the run's.
        step: the first one that is logged. If it is not 0, what was logged before in `folder` is continued.
        config: settings to keep beside the scalars.

    Raises:
        ValueError, MissingExtra: as `check_tracker`; OSError: Weights & Biases cannot begin.
    """
    check_tracker(name)
    if name == "tensorboard":
        with extra("train"):
            from torch.utils.tensorboard import SummaryWriter
        with SummaryWriter(str(folder), purge_step=step) as writer:
            yield lambda scalars, step: [writer.add_scalar(key, value, step) for key, value in scalars.items()]
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    before = (folder / _RUN).read_text() if step and (folder / _RUN).is_file() else None
    try:
        run = wandb.init(name=folder.name, dir=folder, config=dict(config or {}), id=before, resume="allow")
    except wandb.Error as error:
        advice = "WANDB_MODE=offline in the environment needs no account"
        raise OSError(f"wandb cannot begin ({str(error).splitlines()[0]}); {advice}") from error
    with run:
        with atomic_write(folder / _RUN) as beside:
            beside.write_text(run.id)
        # Of a run that died, wandb leaves out the steps that come a second time: they are the same ones.
        yield lambda scalars, step: scalars and run.log({key: float(one) for key, one in scalars.items()}, step=step)
