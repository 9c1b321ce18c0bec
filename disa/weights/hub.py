"""Files of the Hugging Face hub, in the cache that all its users share: huggingface_hub continues and checks them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path


def hub_file(repository: str, name: str) -> Path:
    """Fetch one file of a repository, once; raise OSError if that fails."""
    import huggingface_hub

    with _one_sentence(repository):
        return Path(huggingface_hub.hf_hub_download(repository, name))


def hub_folder(repository: str, patterns: Sequence[str]) -> Path:
    """Fetch the files of a repository whose names match one of `patterns`, once; raise OSError if that fails."""
    import huggingface_hub

    with _one_sentence(repository):
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))


@contextlib.contextmanager
def _one_sentence(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its releases raise those of requests or httpx, too
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(f"{repository} could not be fetched from the hub ({said})") from error
