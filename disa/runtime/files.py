"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

# What comes with the package: small weights, their statistics and configs.
BUNDLED = Path(__file__).parents[1] / "bundled"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` on success, remove it on failure.

    The name is hidden and carries the process number, so that ranks never share one; the suffix is kept, because
    libraries choose a format by it. A full disk raises an OSError that names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:  # the writing library names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def check_folder(folder: str | Path, flag: str) -> None:
    """Raise a ValueError that names `flag` if files cannot be written to `folder`; nothing is left there."""
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{flag} is in {folder}, where nothing can be written ({error.strerror})") from error
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`, which one process at a time can; one that dies releases it.

    A file system that has no locks raises an OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # a soft lock would outlive a killed process
        held = FileLock(path, poll_interval=0.01, fallback_to_soft=False).acquire()
    except OSError as error:
        raise OSError(
            error.errno, f"no lock on {path} ({error.strerror}); choose a folder on a file system that has locks"
        ) from error
    with held:
        yield


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as indented JSON."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def image_files(folder: str | Path) -> list[Path]:
    """List the images anywhere below `folder`, by name; none at all raises a FileNotFoundError."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"there are no images in {folder}")
    return found


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
