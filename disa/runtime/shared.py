"""The folder of weights that all families share."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "pretrained_models"  # in commands and configs
FAMILIES = ("MAR_DiSA", "FlowAR_DiSA", "xAR_DiSA", "Harmon_DiSA")
PACKAGE = Path(__file__).parents[2]  # where the package lies: a checkout, or an installation


def shared_folder() -> Path:
    """Return where fetched files go: DISA_WEIGHTS, or `pretrained_models` at the top of the checkout; without one here.

    The environment variable DISA_WEIGHTS names a folder.
    """
    return Path(os.environ.get("DISA_WEIGHTS") or _top() / NAME)


def places(path: str | Path) -> list[Path]:
    """List where the file or folder `path` may be, itself first.

    What begins with `pretrained_models` may be in the shared folder, too, and in that of any family's folder.
    """
    path = Path(path)
    if path.parts[:1] != (NAME,):
        return [path]
    own = [root / family / NAME for root in (Path(), _top()) for family in ("", *FAMILIES)]
    return [folder.joinpath(*path.parts[1:]) for folder in dict.fromkeys([Path(NAME), shared_folder(), *own])]


def _top() -> Path:
    """Find the top of the checkout, from a family's folder or from the package."""
    here = Path.cwd()
    if here.name in FAMILIES:
        return here.parent
    return PACKAGE if (PACKAGE / FAMILIES[0]).is_dir() else Path()
