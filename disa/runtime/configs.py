"""Harmon's configs: files of names and values in mmengine's format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .extras import extra
from .files import BUNDLED

Config = dict[str, Any]  # Any: a file's values


def read_config(path: str | Path, needed: Collection[str], options: Mapping[str, object] | None = None) -> Config:
    """Read a config file, with `options` (dotted names -> values) replacing what it says.

    A path like `configs/models/harmon_fashion.py` that is no file here names a config of the package. Without a file, a
    FileNotFoundError is raised; a file that is no config, or lacks one of the `needed` values, raises a ValueError.
    """
    with extra("harmon"):
        from mmengine import config as mmengine

    file = next((one for one in (Path(path), BUNDLED / path) if one.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"there is no config {path}; the folders of configs/ hold examples")
    try:
        config = mmengine.Config.fromfile(file)
        config.merge_from_dict(dict(options or {}))
    except Exception as error:  # it is Python, and can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ValueError(f"{path} cannot be read as a config ({reason})") from error
    if lacking := [key for key in needed if key not in config]:
        raise ValueError(f"{path} says nothing on {', '.join(lacking)}; see the examples in configs/")
    return config.to_dict()
