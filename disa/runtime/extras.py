"""Optional dependencies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtra(ImportError):
    """A package is not installed that one of the extras installs."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of the extra `name` in this context; where one is missing, MissingExtra says what installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise MissingExtra(f"{package} is not installed; pip install 'disa[{name}]'") from error
