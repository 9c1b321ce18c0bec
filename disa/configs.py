"""Harmon's configs: files of names and values, as mmengine reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def read_config(path: str | Path, needed: Collection[str], options: Mapping[str, Any] | None = None) -> Any:
    """A config file, with `options` (dotted names → values) replacing what it says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no config, or lacks one of the `needed` values.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no config {path}; the folders of configs/ hold examples")
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(dict(options or {}))
    except Exception as error:  # it is Python, and can fail in any way
        raise ValueError(f"{path} cannot be read as a config ({(str(error).strip() or type(error).__name__).splitlines()[-1]})") from error
    if lacking := [key for key in needed if key not in config]:
        raise ValueError(f"{path} says nothing on {', '.join(lacking)}; see the examples in configs/")
    return config
